//! `txn`: compares, and does one of two things.

use super::Command;
use super::kv::{DEL_FLAGS, GET_FLAGS, PUT_FLAGS, delete_request, put_request, range_request};
use super::words::split;
use crate::call::{Call, Failure, exit};
use crate::flags::{self, Flag, switch};
use crate::go;
use crate::raw;
use crate::terminal;
use cli::Group;
use client::{Condition, Txn};
use proto::etcdserverpb::compare::CompareResult;
use proto::etcdserverpb::request_op::Request;
use std::io::BufRead;

pub const TXN: Command = Command {
    name: "txn",
    group: Group::KeyValue,
    usage: "[options]",
    about: "Txn processes all the requests in one transaction",
    example: "etcdctl txn <<'END'\nmod(\"key\") > \"0\"\n\nput key changed\nget other --prefix\n\nput key created\n\nEND",
    flags: &[switch("interactive", "Say what is to be typed next.").or('i')],
    run: Some(txn),
    ..Command::NONE
};

fn txn(call: &Call) -> Result<(), Failure> {
    if !call.parsed.args.is_empty() {
        return Err(Failure::arguments("txn command does not accept argument"));
    }
    let is_interactive = call.parsed.is("interactive");
    let transaction = read(&mut std::io::stdin().lock(), &mut |title| {
        if is_interactive {
            terminal::say(title);
        }
    })?;
    call.block_on(async { call.printer()?.show(&call.client().await?.txn(transaction).await?) })
}

/// Reads the three blocks of a transaction, each ended by an empty line.
fn read(input: &mut dyn BufRead, announce: &mut dyn FnMut(&str)) -> Result<Txn, Failure> {
    let mut transaction = Txn::new();
    announce("compares:");
    while let Some(line) = next_line(input)? {
        transaction = transaction.when(condition(&line)?);
    }
    announce("success requests (get, put, del):");
    while let Some(line) = next_line(input)? {
        transaction = transaction.then(operation(&line)?);
    }
    announce("failure requests (get, put, del):");
    while let Some(line) = next_line(input)? {
        transaction = transaction.otherwise(operation(&line)?);
    }
    Ok(transaction)
}

/// The next line of a block, `None` at its end. A block that the input breaks off is an error.
fn next_line(input: &mut dyn BufRead) -> Result<Option<String>, Failure> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line).map_err(|error| Failure::new(exit::INVALID_INPUT, error))?;
    if line.pop() != Some(b'\n') {
        return Err(Failure::new(exit::INVALID_INPUT, "EOF"));
    }
    let line = raw::text(&line).trim().to_owned();
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// `target("key") operator "value"`.
fn condition(line: &str) -> Result<Condition, Failure> {
    let wrong = |text: String| Failure::new(exit::INVALID_INPUT, text);
    let malformed = || wrong(format!("malformed comparison: {line}"));
    let (target, rest) = line.split_once('(').ok_or_else(malformed)?;
    let (key, rest) = go::unquote(rest).ok_or_else(malformed)?;
    let rest = rest.strip_prefix(')').ok_or_else(malformed)?;
    let (operator, value) = rest.trim_start().split_once(char::is_whitespace).ok_or_else(malformed)?;
    let (value, _) = go::unquote(value.trim_start()).ok_or_else(malformed)?;
    let is = match operator {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(wrong(format!("malformed comparison: {line} (unknown operator {operator})"))),
    };
    let number = |radix| {
        go::parse_int(&String::from_utf8_lossy(&value), radix)
            .map_err(|_| wrong(format!("invalid txn compare request: {line}")))
    };
    Ok(match target {
        "ver" | "version" => Condition::version(key, is, number(10)?),
        "c" | "create" => Condition::create_revision(key, is, number(10)?),
        "m" | "mod" => Condition::mod_revision(key, is, number(10)?),
        "val" | "value" => Condition::value(key, is, value),
        "lease" => Condition::lease(key, is, number(16)?),
        _ => return Err(wrong(format!("malformed comparison: {line} (unknown target {target})"))),
    })
}

/// A `get`, `put` or `del` as on the command line.
fn operation(line: &str) -> Result<Request, Failure> {
    let words = split(line);
    let invalid = || Failure::new(exit::INVALID_INPUT, format!("invalid txn request: {line}"));
    let (name, arguments) = words.split_first().ok_or_else(invalid)?;
    let parsed = |flags: &[Flag]| flags::parse(flags, arguments).map_err(|_| invalid());
    Ok(match name.as_str() {
        "get" => Request::RequestRange(range_request(&parsed(GET_FLAGS)?)?),
        "put" => Request::RequestPut(put_request(&parsed(PUT_FLAGS)?, &mut std::io::empty())?),
        "del" => Request::RequestDeleteRange(delete_request(&parsed(DEL_FLAGS)?)?),
        _ => return Err(invalid()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::etcdserverpb::TxnRequest;

    fn read_text(text: &str) -> Result<TxnRequest, Failure> {
        read(&mut text.as_bytes(), &mut |_| {}).map(Into::into)
    }

    #[test]
    fn three_blocks_make_a_transaction() {
        let text = "val(\"k\") = \"v\"\nlease(\"k\") != \"ff\"\n\nput k \"two words\"\nget a --prefix\n\ndel k\n\n";
        let request = read_text(text).unwrap();
        assert_eq!((request.compare.len(), request.success.len(), request.failure.len()), (2, 2, 1));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, code, words) in [
            ("", 3, "EOF"),
            ("val(\"k\") = \"v\"", 3, "EOF"),
            ("val k = v\n\n", 3, "malformed comparison: val k = v"),
            ("bad(\"k\") = \"v\"\n", 3, "malformed comparison: bad(\"k\") = \"v\" (unknown target bad)"),
            ("val(\"k\") ~ \"v\"\n", 3, "malformed comparison: val(\"k\") ~ \"v\" (unknown operator ~)"),
            ("version(\"k\") = \"x\"\n", 3, "invalid txn compare request: version(\"k\") = \"x\""),
            ("\nnonsense k\n", 3, "invalid txn request: nonsense k"),
            ("\nput k\n", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        ] {
            assert_eq!(read_text(text).unwrap_err(), Failure::new(code, words));
        }
    }
}
