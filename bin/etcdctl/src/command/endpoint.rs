//! `endpoint`: how each endpoint is.

use super::Command;
use crate::call::{Call, Failure, exit};
use crate::flags::{number, switch};
use crate::output::cluster::{EndpointHash, EndpointStatus, Health, alarm_name};
use cli::Group;
use client::{Client, Error, Get};
use proto::etcdserverpb::{AlarmRequest, HashKvRequest, MemberListRequest, StatusRequest};
use std::time::Instant;
use tokio::task::JoinSet;

pub const ENDPOINT: Command = Command {
    name: "endpoint",
    group: Group::Maintenance,
    about: "Endpoint related commands",
    flags: &[switch("cluster", "Use all endpoints of the cluster's members.")],
    commands: &[
        Command {
            name: "health",
            about: "Checks the healthiness of endpoints specified in `--endpoints` flag",
            example: "etcdctl endpoint health --cluster",
            run: Some(health),
            ..Command::NONE
        },
        Command {
            name: "status",
            about: "Prints out the status of endpoints specified in `--endpoints` flag",
            example: "etcdctl endpoint status --cluster -w table",
            run: Some(status),
            ..Command::NONE
        },
        Command {
            name: "hashkv",
            about: "Prints the KV history hash for each endpoint in --endpoints",
            example: "etcdctl endpoint hashkv --cluster",
            flags: &[number("rev", "0", "Revision up to which to count; 0 is all.")],
            run: Some(hash_kv),
            ..Command::NONE
        },
    ],
    ..Command::NONE
};

/// The endpoints to look at: the configured ones, or with `--cluster` those of all members.
pub async fn endpoints(call: &Call, client: &Client) -> Result<Vec<String>, Failure> {
    if !call.parsed.is("cluster") {
        return Ok(client.endpoints().to_vec());
    }
    let list = client.member_list(MemberListRequest { linearizable: true }).await;
    let list = list.map_err(|error| {
        Failure::new(exit::ERROR, format!("failed to fetch endpoints from etcd cluster member list: {error}"))
    })?;
    Ok(list.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

fn health(call: &Call) -> Result<(), Failure> {
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.client().await?;
        let endpoints = endpoints(call, &client).await?;
        let mut checks = JoinSet::new();
        for (place, endpoint) in endpoints.into_iter().enumerate() {
            let client = client.only(&endpoint)?;
            checks.spawn(async move { (place, check(client, endpoint).await) });
        }
        let mut found = checks.join_all().await;
        found.sort_by_key(|(place, _)| *place);
        let found: Vec<Health> = found.into_iter().map(|(_, health)| health).collect();
        printer.show(&found)?;
        if found.iter().any(|health| !health.error.is_empty()) {
            return Err(Failure::new(exit::ERROR, "unhealthy cluster"));
        }
        Ok(())
    })
}

/// An endpoint is healthy if it commits something, and nothing is wrong that it knows of.
async fn check(client: Client, endpoint: String) -> Health {
    let begun = Instant::now();
    let committed = client.range(Get::key("health")).await;
    let took = begun.elapsed();
    let error = match committed {
        Ok(_) => String::new(),
        // Being refused takes consensus, too.
        Err(error) if error.is("etcdserver: permission denied") => String::new(),
        Err(error) => return Health { endpoint, is_healthy: false, took, error: error.to_string() },
    };
    match client.alarm(AlarmRequest::default()).await {
        Ok(answer) if answer.alarms.is_empty() => Health { endpoint, is_healthy: true, took, error },
        Ok(answer) => {
            let names: String = answer.alarms.iter().map(|alarm| format!("{} ", alarm_name(alarm.alarm()))).collect();
            Health { endpoint, is_healthy: false, took, error: format!("Active Alarm(s): {names}") }
        }
        Err(_) => Health { endpoint, is_healthy: false, took, error: "Unable to fetch the alarm list".to_owned() },
    }
}

fn status(call: &Call) -> Result<(), Failure> {
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.client().await?;
        let mut found = Vec::new();
        let mut failed = false;
        for endpoint in endpoints(call, &client).await? {
            match client.only(&endpoint)?.status(StatusRequest {}).await {
                Ok(status) => found.push(EndpointStatus { endpoint, status }),
                Err(error) => {
                    eprintln!("Failed to get the status of endpoint {endpoint} ({error})");
                    failed = true;
                }
            }
        }
        printer.show(&found)?;
        if failed { Err(Failure::silent(exit::ERROR)) } else { Ok(()) }
    })
}

fn hash_kv(call: &Call) -> Result<(), Failure> {
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.client().await?;
        let mut found = Vec::new();
        let mut failure: Option<Error> = None;
        for endpoint in endpoints(call, &client).await? {
            let request = HashKvRequest { revision: call.parsed.number("rev") };
            match client.only(&endpoint)?.hash_kv(request).await {
                Ok(answer) => found.push(EndpointHash { endpoint, answer }),
                Err(error) => {
                    eprintln!("Failed to get the hash of endpoint {endpoint} ({error})");
                    failure = Some(error);
                }
            }
        }
        printer.show(&found)?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    })
}
