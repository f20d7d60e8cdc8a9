//! `etcdctl`: etcd's command line client. Commands, texts and exit codes are etcd's, so that scripts go on working.

mod call;
mod command;
mod output;
mod v2;

use call::{Call, Failure, exit};
use cli::{Asked, flags, go, raw, terminal};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| raw::text(word.as_bytes())).collect();
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), raw::text(value.as_bytes())))
        .filter(|(name, _)| name.starts_with("ETCDCTL_"))
        .collect();
    match environment.get("ETCDCTL_API").map(String::as_str) {
        None | Some("" | "3") => {}
        Some("2") => return v2::run(&words),
        Some(version) => {
            eprintln!("unsupported API version {version}");
            return ExitCode::from(exit::ERROR);
        }
    }
    match cli::find(&command::ROOT, &words).ask() {
        Asked::Help(text) => terminal::print(text.as_bytes()),
        Asked::Mistake(text) => {
            eprint!("{text}");
            return ExitCode::from(exit::ERROR);
        }
        Asked::Run(run, parsed) => {
            let mut call = Call::new(*parsed, environment);
            let done = call.take_environment().and_then(|()| {
                if call.parsed.is("debug") {
                    call.show_settings();
                }
                run(&call)
            });
            if let Err(Failure { code, text }) = done {
                if let Some(text) = text {
                    eprintln!("Error: {text}");
                }
                return ExitCode::from(code);
            }
        }
    }
    ExitCode::SUCCESS
}
