//! Applying entries: what is refused, what stops the member, and what must not depend on it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::{Disk, MemDisk};
use keelson_state::members::{self, Member};
use keelson_state::{Config, Error, Fatal, MemberChange, Reader, Response, State};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::raftpb::{self, ConfChangeType};
use store::{Mark, Options, Store};

fn open(disk: &Arc<dyn Disk>, quota_bytes: i64) -> (State, Reader, Mark) {
    let (store, writer, mark) = Store::open(disk.clone(), Path::new("/store"), Options::default()).expect("a store");
    let config = Config { quota_bytes, heartbeat_ms: 100, election_timeout_ms: 1_000 };
    let (state, reader) = State::open(store, writer, &mark, config).expect("a state");
    (state, reader, mark)
}

fn memory() -> Arc<dyn Disk> {
    Arc::new(MemDisk::new())
}

fn put(key: &str, value: &[u8]) -> pb::InternalRaftRequest {
    let put = pb::PutRequest { key: key.to_owned().into(), value: value.to_vec().into(), ..Default::default() };
    let header = Some(pb::RequestHeader { id: 77, ..Default::default() });
    pb::InternalRaftRequest { header, put: Some(put), ..Default::default() }
}

fn entry(request: &pb::InternalRaftRequest) -> Bytes {
    request.encode_to_vec().into()
}

fn get(reader: &Reader, key: &'static str) -> Option<Bytes> {
    let request = pb::RangeRequest { key: key.into(), ..Default::default() };
    reader.range(&request).expect("a range").kvs.pop().map(|kv| kv.value)
}

#[test]
fn an_answer_finds_its_client_by_the_requests_id() {
    let (mut state, _, _) = open(&memory(), 0);
    let applied = state.apply(1, 1, &entry(&put("k", b"v"))).unwrap();
    assert_eq!(applied.request_id, 77);
    assert!(matches!(applied.result, Ok(Response::Put(_))));
    let applied = state.apply(2, 2, &Bytes::new()).unwrap();
    assert_eq!((applied.request_id, applied.result), (0, Ok(Response::None)));
}

#[test]
fn an_entry_that_is_in_the_store_already_changes_nothing() {
    let (mut state, reader, _) = open(&memory(), 0);
    state.apply(1, 1, &entry(&put("k", b"v"))).unwrap();
    state.apply(1, 1, &entry(&put("k", b"again"))).unwrap();
    assert_eq!((reader.revision(), get(&reader, "k")), (2, Some("v".into())));
}

#[test]
fn an_entry_that_nobody_can_read_stops_the_member() {
    let (mut state, _, _) = open(&memory(), 0);
    let error = state.apply(5, 1, &Bytes::from_static(b"\xff\xff\xff")).unwrap_err();
    assert!(matches!(error, Fatal::BadEntry { index: 5, .. }), "{error}");
}

/// The member that let the entry in had room, and every member must do the same with it; only the answer tells that the
/// space is used up, and asks for the alarm.
#[test]
fn over_the_quota_a_put_is_applied_and_answered_with_no_space() {
    let (mut state, reader, _) = open(&memory(), 4_000);
    let value = [b'x'; 1_000];
    let mut index = 0;
    let refused = loop {
        index += 1;
        let request = put(&format!("k{index}"), &value);
        let over = reader.over_quota(&request);
        let applied = state.apply(index, 1, &entry(&request)).unwrap();
        assert_eq!(applied.result.is_err(), over, "admission and apply agree");
        if over {
            break applied;
        }
    };
    assert_eq!(refused.result, Err(Error::NoSpace));
    assert!(refused.raise_no_space);
    assert_eq!(reader.revision(), 1 + index as i64, "it was applied all the same");

    let alarm = pb::AlarmRequest { action: 1, member_id: 9, alarm: pb::AlarmType::Nospace as i32 };
    let alarm = pb::InternalRaftRequest { alarm: Some(alarm), ..Default::default() };
    state.apply(index + 1, 1, &entry(&alarm)).unwrap();
    let applied = state.apply(index + 2, 1, &entry(&put("k", &value))).unwrap();
    assert_eq!((applied.result, applied.raise_no_space), (Err(Error::NoSpace), false));
    assert_eq!(reader.revision(), 1 + index as i64, "now it is not even applied");

    let delete = pb::DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: false };
    let delete = pb::InternalRaftRequest { delete_range: Some(delete), ..Default::default() };
    assert!(!reader.over_quota(&delete));
    assert!(state.apply(index + 3, 1, &entry(&delete)).unwrap().result.is_ok(), "what frees space always passes");
}

#[test]
fn without_a_quota_there_is_always_room() {
    let (_, reader, _) = open(&memory(), -1);
    assert_eq!(reader.quota_bytes(), 0);
    assert!(!reader.over_quota(&put("k", &[0; 100_000])));
}

#[test]
fn without_a_root_user_authentication_stays_off() {
    let (mut state, reader, _) = open(&memory(), 0);
    let request = pb::InternalRaftRequest { auth_enable: Some(pb::AuthEnableRequest {}), ..Default::default() };
    let applied = state.apply(1, 1, &entry(&request)).unwrap();
    assert_eq!(applied.result, Err(Error::RootUserNotExist));
    assert_eq!(reader.revision(), 1);
}

/// The mark never holds the membership of a change that was refused.
#[test]
fn a_refused_configuration_change_keeps_the_conf_state() {
    let disk = memory();
    let (mut state, reader, _) = open(&disk, 0);
    let member = Member { id: 7, peer_urls: vec!["http://a".into()], ..Default::default() };
    let change = raftpb::ConfChange {
        r#type: Some(ConfChangeType::ConfChangeAddNode as i32),
        node_id: Some(7),
        context: Some(members::add_context(&member).into()),
        id: Some(42),
    };
    let changed = state.apply_conf_change(1, 1, &change, "first".into()).unwrap();
    assert_eq!(changed.change, MemberChange::Added(member.clone()));
    assert_eq!((changed.request_id, changed.result), (42, Ok(vec![member.clone()])));

    let changed = state.apply_conf_change(2, 1, &change, "second".into()).unwrap();
    assert_eq!((changed.change, changed.result), (MemberChange::None, Err(Error::MemberExist)));
    let mark = state.sync().unwrap();
    assert_eq!(mark, Mark { index: 2, term: 1, conf_state: "first".into() });

    state.close().unwrap();
    drop(reader);
    let (_, reader, mark) = open(&disk, 0);
    assert_eq!((mark.index, mark.conf_state), (2, "first".into()));
    assert_eq!(reader.members(), [member]);
}

#[test]
fn what_members_say_of_themselves_and_the_cluster_survives_a_restart() {
    let disk = memory();
    let (mut state, reader, _) = open(&disk, 0);
    let member = Member { id: 7, peer_urls: vec!["http://a".into()], ..Default::default() };
    let change = raftpb::ConfChange {
        node_id: Some(7),
        context: Some(members::add_context(&member).into()),
        ..Default::default()
    };
    state.apply_conf_change(1, 1, &change, Bytes::new()).unwrap();
    let attributes = proto::membershippb::Attributes { name: "n".into(), client_urls: vec!["http://c".into()] };
    let requests = [
        pb::InternalRaftRequest {
            cluster_member_attr_set: Some(proto::membershippb::ClusterMemberAttrSetRequest {
                member_id: 7,
                member_attributes: Some(attributes),
            }),
            ..Default::default()
        },
        pb::InternalRaftRequest {
            cluster_version_set: Some(proto::membershippb::ClusterVersionSetRequest { ver: "3.7.0".into() }),
            ..Default::default()
        },
        pb::InternalRaftRequest {
            downgrade_info_set: Some(proto::membershippb::DowngradeInfoSetRequest {
                enabled: true,
                ver: "3.6.0".into(),
            }),
            ..Default::default()
        },
    ];
    for (n, request) in requests.iter().enumerate() {
        state.apply(n as u64 + 2, 1, &entry(request)).unwrap().result.unwrap();
    }
    state.close().unwrap();
    drop(reader);
    let (_, reader, _) = open(&disk, 0);
    let named = Member { name: "n".into(), client_urls: vec!["http://c".into()], ..member };
    assert_eq!(reader.member(7), Some(named));
    assert_eq!(reader.cluster_version().as_deref(), Some("3.7.0"));
    assert_eq!(reader.downgrade(), pb::DowngradeInfo { enabled: true, target_version: "3.6.0".into() });
}
