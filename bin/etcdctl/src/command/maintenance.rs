//! `alarm`, `defrag`, `move-leader` and `downgrade`.

use super::Command;
use super::endpoint::endpoints;
use crate::call::{Call, Failure, exit};
use crate::flags::switch;
use crate::go;
use crate::output::show_done;
use crate::terminal;
use cli::Group;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::downgrade_request::DowngradeAction;
use proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DowngradeRequest, MoveLeaderRequest, StatusRequest,
};
use std::time::Instant;

pub const ALARM: Command = Command {
    name: "alarm",
    group: Group::Maintenance,
    about: "Alarm related commands",
    commands: &[
        Command {
            name: "disarm",
            about: "Disarms all alarms",
            example: "etcdctl alarm disarm",
            run: Some(disarm),
            ..Command::NONE
        },
        Command {
            name: "list",
            about: "Lists all alarms",
            example: "etcdctl alarm list",
            run: Some(list),
            ..Command::NONE
        },
    ],
    ..Command::NONE
};

fn list(call: &Call) -> Result<(), Failure> {
    if !call.parsed.args.is_empty() {
        return Err(Failure::arguments("alarm list command accepts no arguments"));
    }
    call.block_on(async { call.printer()?.show(&call.client().await?.alarm(AlarmRequest::default()).await?) })
}

fn disarm(call: &Call) -> Result<(), Failure> {
    if !call.parsed.args.is_empty() {
        return Err(Failure::arguments("alarm disarm command accepts no arguments"));
    }
    call.block_on(async {
        let client = call.client().await?;
        let raised = client.alarm(AlarmRequest::default()).await?.alarms;
        let mut cleared = AlarmResponse::default();
        for AlarmMember { member_id, alarm } in raised {
            let request = AlarmRequest { action: AlarmAction::Deactivate as i32, member_id, alarm };
            let answer = client.alarm(request).await?;
            cleared.header = answer.header;
            cleared.alarms.extend(answer.alarms);
        }
        call.printer()?.show(&cleared)
    })
}

pub const DEFRAG: Command = Command {
    name: "defrag",
    group: Group::Maintenance,
    about: "Defragments the storage of the etcd members with given endpoints",
    example: "etcdctl defrag --cluster",
    flags: &[switch("cluster", "Use all endpoints of the cluster's members.")],
    run: Some(defrag),
    ..Command::NONE
};

fn defrag(call: &Call) -> Result<(), Failure> {
    call.block_on(async {
        let client = call.client().await?;
        let mut failed = false;
        for endpoint in endpoints(call, &client).await? {
            let begun = Instant::now();
            let answer = client.only(&endpoint)?.defragment(DefragmentRequest {}).await;
            let took = go::duration(begun.elapsed());
            match answer {
                Ok(_) => terminal::say(&format!("Finished defragmenting etcd member[{endpoint}]. took {took}")),
                Err(error) => {
                    eprintln!("Failed to defragment etcd member[{endpoint}]. took {took}. ({error})");
                    failed = true;
                }
            }
        }
        if failed { Err(Failure::silent(exit::ERROR)) } else { Ok(()) }
    })
}

pub const MOVE_LEADER: Command = Command {
    name: "move-leader",
    group: Group::Maintenance,
    usage: "<transferee-member-id>",
    about: "Transfers leadership to another etcd cluster member.",
    example: "etcdctl --endpoints=10.0.0.1:2379,10.0.0.2:2379 move-leader c89feb932daef420",
    run: Some(move_leader),
    ..Command::NONE
};

fn move_leader(call: &Call) -> Result<(), Failure> {
    let [target] = call.args()[..] else {
        return Err(Failure::arguments("move-leader command needs 1 argument"));
    };
    let target_id = go::parse_uint(target, 16).map_err(Failure::arguments)?;
    call.block_on(async {
        let client = call.client().await?;
        // Only the leader can hand its office over, so it has to be asked itself.
        for endpoint in client.endpoints() {
            let client = client.only(endpoint)?;
            let status = client.status(StatusRequest {}).await?;
            let member = status.header.map_or(0, |header| header.member_id);
            if status.leader == member {
                let answer = client.move_leader(MoveLeaderRequest { target_id }).await?;
                return show_done!(call.printer()?, answer, "Leadership transferred from {member:x} to {target_id:x}");
            }
        }
        Err(Failure::arguments(format!("no leader endpoint given at [{}]", client.endpoints().join(" "))))
    })
}

pub const DOWNGRADE: Command = Command {
    name: "downgrade",
    group: Group::Maintenance,
    about: "Downgrade related commands",
    commands: &[
        Command {
            name: "validate",
            usage: "<TARGET_VERSION>",
            about: "Validate downgrade capability before starting downgrade",
            example: "etcdctl downgrade validate 3.6",
            run: Some(|call| downgrade(call, DowngradeAction::Validate)),
            ..Command::NONE
        },
        Command {
            name: "enable",
            usage: "<TARGET_VERSION>",
            about: "Start a downgrade action to cluster",
            example: "etcdctl downgrade enable 3.6",
            run: Some(|call| downgrade(call, DowngradeAction::Enable)),
            ..Command::NONE
        },
        Command {
            name: "cancel",
            about: "Cancel the ongoing downgrade action to cluster",
            example: "etcdctl downgrade cancel",
            run: Some(|call| downgrade(call, DowngradeAction::Cancel)),
            ..Command::NONE
        },
    ],
    ..Command::NONE
};

fn downgrade(call: &Call, action: DowngradeAction) -> Result<(), Failure> {
    let (name, version) = match (action, call.parsed.args.first()) {
        (DowngradeAction::Cancel, _) => ("cancel", String::new()),
        (DowngradeAction::Validate, Some(version)) => ("validate", version.clone()),
        (DowngradeAction::Enable, Some(version)) => ("enable", version.clone()),
        (_, None) => return Err(Failure::arguments("no target version input")),
    };
    call.block_on(async {
        let answer = call.client().await?.downgrade(DowngradeRequest { action: action as i32, version }).await?;
        show_done!(call.printer()?, answer, "Downgrade {name} success, cluster version {}", answer.version)
    })
}
