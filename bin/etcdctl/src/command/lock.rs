//! `lock` and `elect`.

use super::Command;
use crate::call::{Call, Failure, exit};
use crate::flags::{number, switch};
use crate::output::kv::Pairs;
use crate::raw;
use cli::Group;
use client::{Election, Error, Get, Mutex, Session};
use proto::etcdserverpb::RangeResponse;
use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// For how long a candidate's session outlives it, in seconds; etcdctl's.
const ELECTION_TTL: i64 = 60;

pub const LOCK: Command = Command {
    name: "lock",
    group: Group::Concurrency,
    usage: "<lockname> [exec-command arg1 arg2 ...]",
    about: "Acquires a named lock",
    example: "etcdctl lock backup -- sh -c 'tar c /data | ssh host cat > data.tar'\netcdctl lock backup            # until Ctrl-C",
    flags: &[number("ttl", "10", "For how long the lock outlives its holder, in seconds.")],
    run: Some(lock),
    ..Command::NONE
};

/// SIGINT and SIGTERM, which ask to end in order.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(exit::IO, error);
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn expired(error: Error) -> Failure {
    match error {
        Error::SessionExpired => Failure::new(exit::ERROR, "session expired"),
        error => error.into(),
    }
}

fn lock(call: &Call) -> Result<(), Failure> {
    let args = call.args();
    let [name, exec @ ..] = &args[..] else {
        return Err(Failure::arguments("lock takes a lock name argument and an optional command to execute"));
    };
    let printer = call.printer()?;
    let status = call.block_on(async {
        let mut stop = Stop::new()?;
        let client = call.patient_client().await?;
        let session = Session::begin(&client, call.parsed.number("ttl")).await?;
        let mutex = Mutex::new(&session, name);
        let held = tokio::select! {
            held = mutex.lock() => held.map_err(expired)?,
            () = stop.asked() => {
                session.end().await?;
                return Err(Failure::new(exit::ERROR, "context canceled"));
            }
        };
        let mut status = 0;
        match exec {
            [] => {
                let answer = client.range(Get::key(held.key.clone())).await?;
                if answer.kvs.is_empty() {
                    return Err(Failure::new(exit::ERROR, "lock lost on init"));
                }
                printer.show(&Pairs { answer: &answer, values_only: false })?;
                tokio::select! {
                    () = stop.asked() => {}
                    () = session.ended() => return Err(expired(Error::SessionExpired)),
                }
            }
            [program, arguments @ ..] => {
                let key = OsString::from_vec(held.key.to_vec());
                let revision = held.header.as_ref().map_or(held.revision, |header| header.revision).to_string();
                let command = std::process::Command::new(raw::argument(program))
                    .args(arguments.iter().map(|word| raw::argument(word)))
                    .env("ETCD_LOCK_KEY", key)
                    .env("ETCD_LOCK_REV", revision)
                    .spawn();
                let mut child = command.map_err(|error| Failure::new(exit::ERROR, format!("{program}: {error}")))?;
                // The child is waited for on a thread of its own, so that the lease goes on being renewed meanwhile. It
                // belongs to our process group and gets Ctrl-C itself.
                let waited = tokio::task::spawn_blocking(move || child.wait()).await;
                let ended = waited
                    .map_err(io::Error::other)
                    .and_then(|ended| ended)
                    .map_err(|error| Failure::new(exit::IO, error))?;
                status = ended.code().or(ended.signal().map(|number| 128 + number)).unwrap_or(1);
            }
        }
        mutex.unlock(&held).await?;
        session.end().await?;
        Ok(status)
    })?;
    match status {
        0 => Ok(()),
        code => Err(Failure::silent(u8::try_from(code).unwrap_or(exit::ERROR))),
    }
}

pub const ELECT: Command = Command {
    name: "elect",
    group: Group::Concurrency,
    usage: "<election-name> [proposal]",
    about: "Observes and participates in leader election",
    example: "etcdctl elect primary host-1     # until Ctrl-C\netcdctl elect -l primary          # watch who leads",
    flags: &[switch("listen", "Only show who leads.").or('l')],
    run: Some(elect),
    ..Command::NONE
};

fn elect(call: &Call) -> Result<(), Failure> {
    let listens = call.parsed.is("listen");
    let (name, proposal) = match (&call.args()[..], listens) {
        ([name], true) => (name.to_string(), None),
        ([name, proposal], false) => (name.to_string(), Some(raw::bytes(proposal))),
        ([_], false) => return Err(Failure::arguments("no proposal argument but -l not set")),
        ([_, _], true) => return Err(Failure::arguments("proposal given but -l is set")),
        _ => {
            return Err(Failure::arguments("elect takes one election name argument and an optional proposal argument"));
        }
    };
    let printer = call.printer()?;
    call.block_on(async {
        let mut stop = Stop::new()?;
        let client = call.patient_client().await?;
        let Some(proposal) = proposal else {
            let mut shown = Ok(());
            let observed = Election::observe(&client, &name, |leader| {
                let answer = RangeResponse { kvs: vec![leader.clone()], count: 1, ..Default::default() };
                shown = printer.show(&Pairs { answer: &answer, values_only: false });
                if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            tokio::select! {
                observed = observed => observed?,
                () = stop.asked() => {}
            }
            return shown;
        };
        let session = Session::begin(&client, ELECTION_TTL).await?;
        let election = Election::new(&session, &name);
        let held = tokio::select! {
            held = election.campaign(proposal) => held.map_err(expired)?,
            () = stop.asked() => {
                session.end().await?;
                return Err(Failure::new(exit::ERROR, "context canceled"));
            }
        };
        let answer = client.range(Get::key(held.key.clone())).await?;
        printer.show(&Pairs { answer: &answer, values_only: false })?;
        tokio::select! {
            () = stop.asked() => {}
            () = session.ended() => return Err(Failure::new(exit::ERROR, "elect: session expired")),
        }
        election.resign(&held).await?;
        session.end().await?;
        Ok(())
    })
}
