//! `lease`: time limits for keys.

use super::Command;
use crate::call::{Call, Failure, exit, with_code};
use crate::flags::switch;
use crate::go;
use crate::output::Done;
use crate::output::lease::TimeToLive;
use crate::terminal;
use cli::Format;
use cli::Group;
use client::Error;
use proto::etcdserverpb::{LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest};

pub const LEASE: Command = Command {
    name: "lease",
    group: Group::KeyValue,
    about: "Lease related commands",
    commands: &[
        Command {
            name: "grant",
            usage: "<ttl>",
            about: "Creates leases",
            example: "etcdctl lease grant 60",
            run: Some(grant),
            ..Command::NONE
        },
        Command {
            name: "revoke",
            usage: "<leaseID>",
            about: "Revokes leases",
            example: "etcdctl lease revoke 32695410dcc0ca06",
            run: Some(revoke),
            ..Command::NONE
        },
        Command {
            name: "timetolive",
            usage: "<leaseID> [options]",
            about: "Get lease information",
            example: "etcdctl lease timetolive --keys 32695410dcc0ca06",
            flags: &[switch("keys", "Show the keys that go with the lease.")],
            run: Some(time_to_live),
            ..Command::NONE
        },
        Command {
            name: "list",
            about: "List all active leases",
            example: "etcdctl lease list",
            run: Some(list),
            ..Command::NONE
        },
        Command {
            name: "keep-alive",
            usage: "[options] <leaseID>",
            about: "Keeps leases alive (renew)",
            example: "etcdctl lease keep-alive 32695410dcc0ca06",
            flags: &[switch("once", "Renew the lease only once.")],
            run: Some(keep_alive),
            ..Command::NONE
        },
    ],
    ..Command::NONE
};

fn lease_id(text: &str) -> Result<i64, Failure> {
    go::parse_int(text, 16)
        .map_err(|reason| Failure::arguments(format!("bad lease ID arg ({reason}), expecting ID in Hex")))
}

fn grant(call: &Call) -> Result<(), Failure> {
    let [ttl] = call.args()[..] else {
        return Err(Failure::arguments("lease grant command needs TTL argument"));
    };
    let ttl = go::parse_int(ttl, 10).map_err(|reason| Failure::arguments(format!("bad TTL ({reason})")))?;
    call.block_on(async {
        let answer = call
            .client()
            .await?
            .lease_grant(LeaseGrantRequest { ttl, id: 0 })
            .await
            .map_err(|error| Failure::new(exit::ERROR, format!("failed to grant lease ({error})")))?;
        call.printer()?.show(&answer)
    })
}

fn revoke(call: &Call) -> Result<(), Failure> {
    let [id] = call.args()[..] else {
        return Err(Failure::arguments("lease revoke command needs 1 argument"));
    };
    let id = lease_id(id)?;
    call.block_on(async {
        let answer = call
            .client()
            .await?
            .lease_revoke(LeaseRevokeRequest { id })
            .await
            .map_err(|error| Failure::new(exit::ERROR, format!("failed to revoke lease ({error})")))?;
        call.printer()?.show(&Done {
            text: format!("lease {id:016x} revoked"),
            message: &answer,
            header: answer.header.as_ref(),
            has_fields: true,
            go_type: Some("*clientv3.LeaseRevokeResponse"),
        })
    })
}

fn time_to_live(call: &Call) -> Result<(), Failure> {
    let [id] = call.args()[..] else {
        return Err(Failure::arguments("lease timetolive command needs lease ID as argument"));
    };
    let request = LeaseTimeToLiveRequest { id: lease_id(id)?, keys: call.parsed.is("keys") };
    let with_keys = request.keys;
    call.block_on(async {
        let client = call.patient_client().await?;
        let answer = client.lease_time_to_live(request).await.map_err(with_code(exit::BAD_CONNECTION))?;
        call.printer()?.show(&TimeToLive { answer: &answer, with_keys })
    })
}

fn list(call: &Call) -> Result<(), Failure> {
    call.block_on(async {
        let client = call.patient_client().await?;
        let answer = client.lease_leases(LeaseLeasesRequest {}).await.map_err(with_code(exit::BAD_CONNECTION))?;
        call.printer()?.show(&answer)
    })
}

fn keep_alive(call: &Call) -> Result<(), Failure> {
    let [id] = call.args()[..] else {
        return Err(Failure::arguments("lease keep-alive command needs lease ID as argument"));
    };
    let id = lease_id(id)?;
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.patient_client().await?;
        if call.parsed.is("once") {
            let answer = client.keep_alive_once(id).await.map_err(with_code(exit::BAD_CONNECTION))?;
            return printer.show(&answer);
        }
        let mut renewals = client.keep_alive(id);
        loop {
            match renewals.next().await {
                Ok(answer) => printer.show(&answer)?,
                Err(error @ Error::Server { .. }) if error.is("etcdserver: requested lease not found") => break,
                Err(error) => return Err(Failure::new(exit::BAD_CONNECTION, error)),
            }
        }
        if printer.format == Format::Simple {
            terminal::say(&format!("lease {id:016x} expired or revoked."));
        }
        Ok(())
    })
}
