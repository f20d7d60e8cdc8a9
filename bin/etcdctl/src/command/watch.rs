//! `watch`: shows what happens to keys, and runs a command for each event.

use super::Command;
use super::words::split;
use crate::call::{Call, Failure, exit};
use crate::flags::{self, Flag, Parsed, number, switch};
use crate::go;
use crate::output::Printer;
use crate::output::kv::event_name;
use crate::raw;
use crate::terminal;
use cli::Format;
use cli::Group;
use client::{Client, Error, Get};
use proto::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchResponse};
use std::collections::BTreeMap;
use std::io::BufRead;
use tokio::sync::{broadcast, mpsc};

const WATCH_FLAGS: &[Flag] = &[
    switch("interactive", "Read watches from stdin, a line each.").or('i'),
    switch("prefix", "Watch keys with this prefix."),
    number("rev", "0", "Revision to begin at; 0 is now."),
    switch("prev-kv", "Show what keys held before, too."),
    switch("progress-notify", "Have the server tell how far the watch is, now and then."),
];

pub const WATCH: Command = Command {
    name: "watch",
    group: Group::KeyValue,
    usage: "[options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
    about: "Watches events stream on keys or prefixes",
    example: "etcdctl watch greeting\netcdctl watch --prefix /app/ --rev 100\netcdctl watch greeting -- sh -c 'echo $ETCD_WATCH_KEY'",
    flags: WATCH_FLAGS,
    run: Some(watch),
    ..Command::NONE
};

/// One watch and the command that each of its events runs.
#[derive(Debug, PartialEq)]
struct Wanted {
    request: WatchCreateRequest,
    exec: Vec<String>,
}

/// The watch that flags, arguments and `ETCDCTL_WATCH_KEY` and `…_RANGE_END` ask for.
fn wanted(parsed: &Parsed, key_variable: &str, end_variable: &str) -> Result<Wanted, Failure> {
    let wrong = |text: &str| Err(Failure::arguments(text));
    if key_variable.is_empty() && !end_variable.is_empty() {
        let end = go::quote(end_variable.as_bytes());
        return Err(Failure::arguments(format!("ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={end}")));
    }
    let (args, exec) = match parsed.before_dashes {
        None => (&parsed.args[..], &[][..]),
        Some(count) => {
            let (args, exec) = parsed.args.split_at(count);
            if exec.is_empty() {
                return wrong("bad number of arguments (found separator --, but no commands)");
            }
            (args, exec)
        }
    };
    let (key, end) = match (key_variable, args) {
        ("", []) => return wrong("bad number of arguments"),
        ("", [key]) => (key.as_str(), ""),
        ("", [key, end]) => (key.as_str(), end.as_str()),
        (_, []) => (key_variable, end_variable),
        ("", _) => return wrong("bad number of arguments"),
        _ => return wrong("bad number of arguments (found conflicting environment key)"),
    };
    let (key, end) = (raw::bytes(key), raw::bytes(end));
    let range: RangeRequest = match (parsed.is("prefix"), end.is_empty()) {
        (true, false) => return wrong("`range_end` and `--prefix` are mutually exclusive"),
        (true, true) => Get::prefix(key),
        (false, false) => Get::range(key, end),
        (false, true) => Get::key(key),
    }
    .into();
    let request = WatchCreateRequest {
        key: range.key,
        range_end: range.range_end,
        start_revision: parsed.number("rev"),
        progress_notify: parsed.is("progress-notify"),
        prev_kv: parsed.is("prev-kv"),
        ..Default::default()
    };
    Ok(Wanted { request, exec: exec.to_vec() })
}

fn watch(call: &Call) -> Result<(), Failure> {
    let variables = (call.variable("ETCDCTL_WATCH_KEY"), call.variable("ETCDCTL_WATCH_RANGE_END"));
    if call.parsed.is("interactive") {
        return interactive(call);
    }
    let wanted = wanted(&call.parsed, variables.0, variables.1)?;
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.patient_client().await?;
        let (_none, progress) = broadcast::channel(1);
        Err(follow(client, wanted, printer, progress).await)
    })
}

/// Watches until it fails, which is the only way a watch ends.
async fn follow(client: Client, wanted: Wanted, printer: Printer, mut progress: broadcast::Receiver<()>) -> Failure {
    let mut watcher = client.watch(wanted.request, true);
    let mut may_ask = true;
    loop {
        let response = tokio::select! {
            response = watcher.next() => response,
            wish = progress.recv(), if may_ask => {
                match wish {
                    Ok(()) | Err(broadcast::error::RecvError::Lagged(_)) => watcher.request_progress(),
                    Err(broadcast::error::RecvError::Closed) => may_ask = false,
                }
                continue;
            }
        };
        let shown = match response {
            Ok(response) => show(&response, &wanted.exec, printer),
            Err(error) => {
                eprintln!("watch was canceled ({error})");
                return cancelled(error, printer);
            }
        };
        if let Err(failure) = shown {
            return failure;
        }
    }
}

/// The formats for programs show the end as well.
fn cancelled(error: Error, printer: Printer) -> Failure {
    if printer.format == Format::Json
        && let Error::WatchCanceled { reason, compact_revision } = error
    {
        let last = WatchResponse { canceled: true, compact_revision, cancel_reason: reason, ..Default::default() };
        if let Err(failure) = printer.show(&last) {
            return failure;
        }
    }
    Failure::new(exit::INTERRUPTED, "watch is canceled by the server")
}

fn show(response: &WatchResponse, exec: &[String], printer: Printer) -> Result<(), Failure> {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    if response.events.is_empty() {
        terminal::say(&format!("progress notify: {revision}"));
    }
    printer.show(response)?;
    let [program, arguments @ ..] = exec else { return Ok(()) };
    for event in &response.events {
        let kv = event.kv.clone().unwrap_or_default();
        let status = std::process::Command::new(raw::argument(program))
            .args(arguments.iter().map(|word| raw::argument(word)))
            .env("ETCD_WATCH_REVISION", revision.to_string())
            .env("ETCD_WATCH_EVENT_TYPE", go::quote(event_name(event).as_bytes()))
            .env("ETCD_WATCH_KEY", go::quote(&kv.key))
            .env("ETCD_WATCH_VALUE", go::quote(&kv.value))
            .status();
        let reason = match status {
            Ok(status) if status.success() => continue,
            Ok(status) => status.code().map_or_else(|| status.to_string(), |code| format!("exit status {code}")),
            Err(error) => error.to_string(),
        };
        let command: Vec<_> = exec.iter().map(|word| go::quote(word.as_bytes())).collect();
        eprintln!("command [{}] error ({reason})", command.join(" "));
        return Err(Failure::silent(exit::ERROR));
    }
    Ok(())
}

/// Reads watches from stdin and runs all of them.
fn interactive(call: &Call) -> Result<(), Failure> {
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.patient_client().await?;
        let (lines, mut read) = mpsc::unbounded_channel();
        // A blocked read cannot be given up, so it has a thread of its own, which dies with the process.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let (wish, _) = broadcast::channel(4);
        let (failed, mut failure) = mpsc::channel(1);
        loop {
            let line = tokio::select! {
                line = read.recv() => line,
                Some(failure) = failure.recv() => return Err(failure),
            };
            let Some(line) = line else {
                return Err(Failure::new(exit::INVALID_INPUT, "error reading watch request line: EOF"));
            };
            match typed(&line) {
                Ok(Typed::Progress) => {
                    // Nobody listens while nothing is watched.
                    let _nobody = wish.send(());
                }
                Ok(Typed::Watch(wanted)) => {
                    let (client, progress, failed) = (client.clone(), wish.subscribe(), failed.clone());
                    tokio::spawn(async move {
                        let failure = follow(client, wanted, printer, progress).await;
                        // A command that failed ends the program; a watch that the server ended does not.
                        if failure.code == exit::ERROR {
                            let _ended = failed.send(failure).await;
                        }
                    });
                }
                Err(complaint) => eprintln!("{complaint}"),
            }
        }
    })
}

/// What a line of `watch -i` asks for.
#[derive(Debug, PartialEq)]
enum Typed {
    Watch(Wanted),
    Progress,
}

fn typed(line: &str) -> Result<Typed, String> {
    let line = line.trim_end();
    let words = split(line);
    match words.split_first() {
        None => Err(format!("Invalid command: {line} (watch and progress supported)")),
        Some((name, _)) if name == "progress" => Ok(Typed::Progress),
        Some((name, rest)) if name == "watch" => {
            let invalid = |reason: String| format!("Invalid command {line} ({reason})");
            let parsed = flags::parse(WATCH_FLAGS, rest).map_err(|error| match error {
                flags::FlagError::Usage(text) => invalid(text),
                flags::FlagError::Help => invalid("watch [options] <key> [range_end]".to_owned()),
            })?;
            let variables: BTreeMap<_, _> =
                ["ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END"].map(|name| (name, std::env::var(name))).into();
            let variable = |name| variables.get(name).and_then(|value| value.as_deref().ok()).unwrap_or_default();
            wanted(&parsed, variable("ETCDCTL_WATCH_KEY"), variable("ETCDCTL_WATCH_RANGE_END"))
                .map(Typed::Watch)
                .map_err(|failure| invalid(failure.text.unwrap_or_default()))
        }
        Some(_) => Err(format!("Invalid command {line} (only support watch)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn wants(line: &str, key: &str, end: &str) -> Result<(Bytes, Bytes, String), String> {
        let parsed = flags::parse(WATCH_FLAGS, &split(line)).unwrap();
        wanted(&parsed, key, end)
            .map(|wanted| (wanted.request.key, wanted.request.range_end, wanted.exec.join(" ")))
            .map_err(|failure| failure.text.unwrap())
    }

    #[test]
    fn keys_come_from_arguments_or_from_the_environment_but_not_from_both() {
        let watch = |key: &'static str, end: &'static str, exec: &str| {
            Ok((Bytes::from(key), Bytes::from(end), exec.to_owned()))
        };
        assert_eq!(wants("k", "", ""), watch("k", "", ""));
        assert_eq!(wants("k z -- echo -n x", "", ""), watch("k", "z", "echo -n x"));
        assert_eq!(wants("--prefix k", "", ""), watch("k", "l", ""));
        assert_eq!(wants("-- echo", "k", "z"), watch("k", "z", "echo"));
        for (line, key, end, words) in [
            ("", "", "", "bad number of arguments"),
            ("a b c", "", "", "bad number of arguments"),
            ("a", "k", "", "bad number of arguments (found conflicting environment key)"),
            ("a --", "", "", "bad number of arguments (found separator --, but no commands)"),
            ("", "", "z", "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END=\"z\""),
            ("a z --prefix", "", "", "`range_end` and `--prefix` are mutually exclusive"),
        ] {
            assert_eq!(wants(line, key, end), Err(words.to_owned()));
        }
    }

    #[test]
    fn only_watch_and_progress_can_be_typed() {
        assert_eq!(typed("progress"), Ok(Typed::Progress));
        assert_eq!(typed("bogus"), Err("Invalid command bogus (only support watch)".to_owned()));
        assert_eq!(typed(""), Err("Invalid command:  (watch and progress supported)".to_owned()));
    }
}
