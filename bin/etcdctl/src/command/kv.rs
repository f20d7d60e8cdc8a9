//! `get`, `put`, `del` and `compaction`.

use super::Command;
use crate::call::{Call, Failure, exit};
use crate::flags::{self, Flag, Parsed, number, switch, text};
use crate::go;
use crate::output::kv::Pairs;
use crate::raw;
use crate::terminal;
use cli::Format;
use cli::Group;
use client::{Delete, Get};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};
use std::io::Read;
use std::time::Duration;

/// How long `del` of a range waits for second thoughts.
const SECOND_THOUGHTS: Duration = Duration::from_secs(2);

pub const GET_FLAGS: &[Flag] = &[
    text("consistency", "l", "Linearizable (l) or serializable (s)."),
    text("order", "", "Order of the results: ASCEND or DESCEND."),
    text("sort-by", "", "What to sort by: CREATE, KEY, MODIFY, VALUE or VERSION."),
    number("limit", "0", "Largest number of results; 0 is all."),
    switch("prefix", "Get keys with this prefix."),
    switch("from-key", "Get keys that are not before this one."),
    number("rev", "0", "Revision to read at; 0 is the newest."),
    switch("keys-only", "Get only the keys."),
    switch("count-only", "Get only how many there are."),
    switch("print-value-only", "Print only values, with -w simple."),
    number("min-create-rev", "0", "Only keys created at this revision or later."),
    number("max-create-rev", "0", "Only keys created at this revision or earlier."),
    number("min-mod-rev", "0", "Only keys written at this revision or later."),
    number("max-mod-rev", "0", "Only keys written at this revision or earlier."),
    switch("stream", "Print results as they come, in parts (etcd 3.7)."),
];

pub const GET: Command = Command {
    name: "get",
    group: Group::KeyValue,
    usage: "[options] <key> [range_end]",
    about: "Gets the key or a range of keys",
    example: "etcdctl get greeting\netcdctl get --prefix /app/ --limit 10 --keys-only\netcdctl get a c               # a and b, not c",
    flags: GET_FLAGS,
    run: Some(get),
    ..Command::NONE
};

/// What to ask for, given what was typed.
pub fn range_request(parsed: &Parsed) -> Result<RangeRequest, Failure> {
    let args = &parsed.args;
    let [key, ..] = &args[..] else {
        return Err(Failure::arguments("get command needs one argument as key and an optional argument as range_end"));
    };
    let (prefix, from_key) = prefix_or_from_key(parsed)?;
    if parsed.is("keys-only") && parsed.is("count-only") {
        return Err(Failure::arguments("`--keys-only` and `--count-only` cannot be set at the same time, choose one"));
    }
    let serializable = match parsed.text("consistency") {
        "s" => true,
        "l" => false,
        other => {
            let text = format!("unknown consistency flag {}", go::quote(other.as_bytes()));
            return Err(Failure::new(exit::BAD_FEATURE, text));
        }
    };
    let key = raw::bytes(key);
    let range: RangeRequest = match args.get(1) {
        Some(_) if prefix || from_key => return Err(one_argument_only()),
        Some(end) => Get::range(key, raw::bytes(end)),
        None if prefix => Get::prefix(key),
        None if from_key => Get::from_key(key),
        None => Get::key(key),
    }
    .into();
    let order = match parsed.text("order").to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => {
            return Err(Failure::new(exit::BAD_FEATURE, format!("bad sort order {}", parsed.text("order"))));
        }
    };
    let target = match parsed.text("sort-by").to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => {
            return Err(Failure::new(exit::BAD_FEATURE, format!("bad sort target {}", parsed.text("sort-by"))));
        }
    };
    let bounds = |min: &str, max: &str, names: [&str; 2]| {
        let (least, most) = (parsed.number(min), parsed.number(max));
        if most != 0 && least > most {
            let [least_name, most_name] = names;
            return Err(Failure::new(exit::BAD_FEATURE, format!("{least_name}(={least}) > {most_name}(={most})")));
        }
        Ok((least, most))
    };
    let created = bounds("min-create-rev", "max-create-rev", ["getMinCreateRev", "getMaxCreateRev"])?;
    let modified = bounds("min-mod-rev", "max-mod-rev", ["getMinModRev", "getMaxModRev"])?;
    Ok(RangeRequest {
        limit: parsed.number("limit"),
        revision: parsed.number("rev"),
        // Ascending by key is how keys come anyway; saying so would have the server sort them.
        sort_order: if target == SortTarget::Key && order == SortOrder::Ascend { SortOrder::None } else { order }
            as i32,
        sort_target: target as i32,
        serializable,
        keys_only: parsed.is("keys-only"),
        count_only: parsed.is("count-only"),
        min_create_revision: created.0,
        max_create_revision: created.1,
        min_mod_revision: modified.0,
        max_mod_revision: modified.1,
        ..range
    })
}

/// `--prefix` and `--from-key`, which exclude each other.
fn prefix_or_from_key(parsed: &Parsed) -> Result<(bool, bool), Failure> {
    let both = (parsed.is("prefix"), parsed.is("from-key"));
    if both == (true, true) {
        return Err(Failure::arguments("`--prefix` and `--from-key` cannot be set at the same time, choose one"));
    }
    Ok(both)
}

fn one_argument_only() -> Failure {
    Failure::arguments("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")
}

fn get(call: &Call) -> Result<(), Failure> {
    let request = range_request(&call.parsed)?;
    let values_only = call.parsed.is("print-value-only");
    let printer = call.printer()?;
    if request.count_only && printer.format != Format::Fields {
        return Err(Failure::arguments("--count-only is only for `--write-out=fields`"));
    }
    if values_only && printer.format != Format::Simple {
        return Err(Failure::arguments("print-value-only is only for `--write-out=simple`"));
    }
    call.block_on(async {
        let client = call.client().await?;
        if call.parsed.is("stream") {
            let mut parts = client.range_stream(request).await?;
            while let Some(part) = parts.next().await? {
                let answer = part.range_response.unwrap_or_default();
                printer.show(&Pairs { answer: &answer, values_only })?;
            }
            return Ok(());
        }
        printer.show(&Pairs { answer: &client.range(request).await?, values_only })
    })
}

pub const PUT_FLAGS: &[Flag] = &[
    text("lease", "0", "Lease (hexadecimal ID) that the key goes with."),
    switch("prev-kv", "Print what the key held before."),
    switch("ignore-value", "Keep the value that the key has."),
    switch("ignore-lease", "Keep the lease that the key has."),
];

pub const PUT: Command = Command {
    name: "put",
    group: Group::KeyValue,
    usage: "[options] <key> <value> (<value> can also be given from stdin)",
    about: "Puts the given key into the store",
    example: "etcdctl put greeting hello\netcdctl put greeting -- -starts-with-a-dash\ncat file | etcdctl put greeting",
    flags: PUT_FLAGS,
    run: Some(put),
    ..Command::NONE
};

/// What to ask for, given what was typed; `stdin` is read for a value that is missing.
pub fn put_request(parsed: &Parsed, stdin: &mut dyn Read) -> Result<PutRequest, Failure> {
    let no_value = || Failure::arguments("put command needs 1 argument and input from stdin or 2 arguments");
    let [key, values @ ..] = &parsed.args[..] else { return Err(no_value()) };
    let ignore_value = parsed.is("ignore-value");
    if ignore_value && !values.is_empty() {
        return Err(Failure::arguments("put command needs only 1 argument when 'ignore-value' is set"));
    }
    let lease = go::parse_int(parsed.text("lease"), 16)
        .map_err(|reason| Failure::arguments(format!("bad lease ID ({reason}), expecting ID in Hex")))?;
    let value = match values.first() {
        Some(value) => raw::bytes(value).into(),
        None if ignore_value => Vec::new(),
        None => {
            let mut value = Vec::new();
            stdin.read_to_end(&mut value).map_err(|error| Failure::new(exit::IO, error))?;
            if value.is_empty() {
                return Err(no_value());
            }
            value
        }
    };
    Ok(PutRequest {
        key: raw::bytes(key),
        value: value.into(),
        lease,
        prev_kv: parsed.is("prev-kv"),
        ignore_value,
        ignore_lease: parsed.is("ignore-lease"),
    })
}

fn put(call: &Call) -> Result<(), Failure> {
    let request = put_request(&call.parsed, &mut std::io::stdin().lock())?;
    call.block_on(async { call.printer()?.show(&call.client().await?.put(request).await?) })
}

pub const DEL_FLAGS: &[Flag] = &[
    switch("prefix", "Delete keys with this prefix."),
    switch("prev-kv", "Print what was deleted."),
    switch("from-key", "Delete keys that are not before this one."),
    switch("range", "Delete a range of keys without delay."),
];

pub const DEL: Command = Command {
    name: "del",
    group: Group::KeyValue,
    usage: "[options] <key> [range_end]",
    about: "Removes the specified key or range of keys [key, range_end)",
    example: "etcdctl del greeting\netcdctl del --prefix /app/ --prev-kv",
    flags: DEL_FLAGS,
    run: Some(del),
    ..Command::NONE
};

/// What to ask for, given what was typed.
pub fn delete_request(parsed: &Parsed) -> Result<DeleteRangeRequest, Failure> {
    let (key, end) = match &parsed.args[..] {
        [key] => (raw::bytes(key), None),
        [key, end] => (raw::bytes(key), Some(raw::bytes(end))),
        _ => {
            return Err(Failure::arguments(
                "del command needs one argument as key and an optional argument as range_end",
            ));
        }
    };
    let (prefix, from_key) = prefix_or_from_key(parsed)?;
    let delete: DeleteRangeRequest = match end {
        Some(_) if prefix || from_key => return Err(one_argument_only()),
        Some(end) => Delete::range(key, end),
        None if prefix => Delete::prefix(key),
        None if from_key => Delete::from_key(key),
        None => Delete::key(key),
    }
    .into();
    Ok(DeleteRangeRequest { prev_kv: parsed.is("prev-kv"), ..delete })
}

fn del(call: &Call) -> Result<(), Failure> {
    let request = delete_request(&call.parsed)?;
    if let [from, to] = call.args()[..]
        && !call.parsed.is("range")
    {
        eprintln!(
            "Warning: Keys between {from:?} and {to:?} will be deleted. Please interrupt the command within next 2 \
             seconds to cancel. You can provide `--range` flag to avoid the delay."
        );
        std::thread::sleep(SECOND_THOUGHTS);
    }
    call.block_on(async { call.printer()?.show(&call.client().await?.delete(request).await?) })
}

pub const COMPACTION: Command = Command {
    name: "compaction",
    aliases: &["compact"],
    group: Group::KeyValue,
    usage: "[options] <revision>",
    about: "Compacts the event history in etcd",
    example: "etcdctl compaction 1234",
    flags: &[flags::switch("physical", "Wait until the space is free.")],
    run: Some(compaction),
    ..Command::NONE
};

fn compaction(call: &Call) -> Result<(), Failure> {
    let [revision] = call.args()[..] else {
        return Err(Failure::arguments("compaction command needs 1 argument"));
    };
    let revision = go::parse_int(revision, 10).map_err(|reason| Failure::new(exit::ERROR, reason))?;
    call.block_on(async {
        let request = CompactionRequest { revision, physical: call.parsed.is("physical") };
        let mut client = call.client().await?;
        if request.physical {
            // Freeing space takes as long as it takes.
            client = client.with_timeout(call.typed_timeout());
        }
        client.compact(request).await?;
        terminal::say(&format!("compacted revision {revision}"));
        Ok(())
    })
}
