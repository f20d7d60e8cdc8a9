//! A member whose data is not what the others have: it does not start, or the leader finds it out and the cluster
//! refuses writes. And the way back to an older version, which members agree on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_tests::harness::{Cluster, Http, HttpRequest, Setup, http_get, ours};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::downgrade_request::DowngradeAction;
use proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DowngradeRequest, PutRequest, RangeRequest, StatusRequest,
};
use tonic::{Code, Status};

/// How long a leader may take to find out, checking every second.
const FOUND_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks; there is nothing to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes of a frame before its payload: length, checksum, kind, revision.
const FRAME_HEADER: usize = 21;

fn three(flags: &[&str]) -> Cluster {
    let mut setup = Setup::new(vec![ours(), ours(), ours()]);
    setup.flags = flags.iter().map(Into::into).collect();
    Cluster::start(setup).unwrap_or_else(|problem| panic!("the cluster starts: {problem}"))
}

async fn put(cluster: &Cluster, member: usize, key: &'static str, value: &'static str) -> Result<(), Status> {
    let mut client = cluster.client(member).await.expect("a connection");
    let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
    client.kv.put(put).await.map(drop)
}

async fn get(cluster: &Cluster, member: usize, key: &'static str) -> String {
    let mut client = cluster.client(member).await.expect("a connection");
    let range = RangeRequest { key: key.into(), serializable: true, ..RangeRequest::default() };
    let answer = client.kv.range(range).await.expect("reads are served in spite of the alarm").into_inner();
    String::from_utf8_lossy(&answer.kvs[0].value).into_owned()
}

async fn alarms(cluster: &Cluster, member: usize) -> Vec<AlarmMember> {
    let mut client = cluster.client(member).await.expect("a connection");
    let list = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
    client.maintenance.alarm(list).await.expect("alarms are listed").into_inner().alarms
}

/// Waits for the first alarm.
async fn alarm(cluster: &Cluster, member: usize) -> AlarmMember {
    let deadline = tokio::time::Instant::now() + FOUND_WITHIN;
    loop {
        if let Some(alarm) = alarms(cluster, member).await.first() {
            return *alarm;
        }
        assert!(tokio::time::Instant::now() < deadline, "no alarm within {FOUND_WITHIN:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Writes `wrong` in the place of `right`, which is as long, wherever it is stored (in checkpoints as well), with a checksum that fits: damage that
/// no checksum shows.
fn damage(data_dir: &Path, right: &str, wrong: &str) {
    let store = data_dir.join("member/store");
    let files = std::fs::read_dir(&store).expect("the store's directory").map(|entry| entry.expect("a file").path());
    let segments: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "seg" || kind == "idx")).collect();
    let mut found = 0;
    for path in segments {
        let mut bytes = std::fs::read(&path).expect("a segment");
        let mut at = 0;
        while let Some(length) = bytes.get(at..at + 4) {
            let end = at + 8 + u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            let Some(frame) = bytes.get_mut(at..end).filter(|frame| frame.len() >= FRAME_HEADER) else { break };
            let mut places = 0;
            while let Some(place) = frame.windows(right.len()).position(|window| window == right.as_bytes()) {
                frame[place..place + right.len()].copy_from_slice(wrong.as_bytes());
                places += 1;
            }
            if places > 0 {
                let checksum = crc32c::crc32c(&frame[8..]);
                frame[4..8].copy_from_slice(&checksum.to_le_bytes());
                found += places;
            }
            at = end;
        }
        std::fs::write(&path, bytes).expect("the segment is written back");
    }
    assert_ne!(found, 0, "{right} is stored in {}", store.display());
}

/// A follower and its ID.
async fn follower(cluster: &Cluster) -> (usize, u64) {
    let leader = cluster.wait_for_leader(&[0, 1, 2]).await.expect("a leader");
    let follower = (leader + 1) % 3;
    (follower, cluster.member_id(follower).await.expect("an ID"))
}

#[tokio::test]
async fn a_member_whose_data_differs_does_not_start() {
    let mut cluster = three(&[]);
    put(&cluster, 0, "k", "the-right-value").await.expect("written");
    put(&cluster, 0, "other", "v").await.expect("written");
    let (bad, id) = follower(&cluster).await;
    cluster.must_be_equal().await.expect("equal at first");
    cluster.member(bad).stop().expect("SIGTERM ends it");
    damage(cluster.member(bad).data_dir(), "the-right-value", "the-wrong-value");
    cluster.spawn(bad).expect("it starts");
    let status = cluster.member(bad).wait_ended(FOUND_WITHIN).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let log = cluster.member(bad).log();
    for line in [
        "starting initial corruption check",
        "found different hash values from remote peer",
        &format!("{id:x} found data inconsistency with peers"),
    ] {
        assert!(log.contains(line), "{line:?} is missing from\n{log}");
    }
    // The others go on.
    let other = (bad + 1) % 3;
    put(&cluster, other, "k", "a-newer-value").await.expect("two of three are enough");
    assert_eq!(alarms(&cluster, other).await, []);
    // It was the data alone.
    damage(cluster.member(bad).data_dir(), "the-wrong-value", "the-right-value");
    cluster.restart(bad).expect("with the right data it starts");
    cluster.must_be_equal().await.expect("equal again");
}

/// A value that only the v2 tree of one member has.
async fn with_a_wrong_v2_tree(flags: &[&str]) -> (Cluster, usize, u64) {
    let mut cluster = three(flags);
    let (bad, id) = follower(&cluster).await;
    let set = HttpRequest::new("PUT", "/v2/keys/k").with_form("value=the-right-value");
    let done = Http::new(cluster.member(bad).client_addr()).ask(&set).await.expect("an answer");
    assert_eq!(done.status, 201, "{done:?}");
    cluster.must_be_equal().await.expect("equal at first");
    cluster.member(bad).stop().expect("SIGTERM ends it");
    damage(cluster.member(bad).data_dir(), "the-right-value", "the-wrong-value");
    (cluster, bad, id)
}

#[tokio::test]
async fn a_member_whose_v2_tree_differs_does_not_start() {
    let (mut cluster, bad, id) = with_a_wrong_v2_tree(&[]).await;
    cluster.spawn(bad).expect("it starts");
    let status = cluster.member(bad).wait_ended(FOUND_WITHIN).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let log = cluster.member(bad).log();
    for line in ["found different v2 trees", &format!("{id:x} found data inconsistency with peers")] {
        assert!(log.contains(line), "{line:?} is missing from\n{log}");
    }
    // It was the tree alone.
    damage(cluster.member(bad).data_dir(), "the-wrong-value", "the-right-value");
    cluster.restart(bad).expect("with the right tree it starts");
}

#[tokio::test]
async fn the_leader_finds_the_member_whose_v2_tree_differs() {
    let flags = ["--corrupt-check-time=1s", "--feature-gates=InitialCorruptCheck=false"];
    let (mut cluster, bad, id) = with_a_wrong_v2_tree(&flags).await;
    cluster.restart(bad).expect("it starts, since it does not ask");
    for member in 0..3 {
        let alarm = alarm(&cluster, member).await;
        assert_eq!(alarm, AlarmMember { member_id: id, alarm: AlarmType::Corrupt.into() });
    }
}

/// Both occasions on which a leader compares; a compaction is what brings about the second one.
#[tokio::test]
async fn the_leader_finds_the_member_whose_data_differs_and_the_cluster_refuses_writes() {
    let no_initial_check = "--feature-gates=CompactHashCheck=true,InitialCorruptCheck=false";
    for flags in [
        ["--corrupt-check-time=1s", "--feature-gates=InitialCorruptCheck=false"].as_slice(),
        &["--corrupt-check-time=0", "--compact-hash-check-time=1s", no_initial_check],
    ] {
        let mut cluster = three(flags);
        put(&cluster, 0, "k", "the-right-value").await.expect("written");
        let (bad, id) = follower(&cluster).await;
        cluster.must_be_equal().await.expect("equal at first");
        cluster.member(bad).stop().expect("SIGTERM ends it");
        damage(cluster.member(bad).data_dir(), "the-right-value", "the-wrong-value");
        cluster.restart(bad).expect("it starts, since it does not ask");
        put(&cluster, bad, "other", "v").await.expect("nobody knows yet");
        let mut client = cluster.client(bad).await.expect("a connection");
        let compaction = CompactionRequest { revision: 2, physical: true };
        client.kv.compact(compaction).await.expect("nobody knows yet");

        for member in 0..3 {
            let alarm = alarm(&cluster, member).await;
            assert_eq!(alarm, AlarmMember { member_id: id, alarm: AlarmType::Corrupt.into() }, "{flags:?}");
            let refused = put(&cluster, member, "k", "v").await.expect_err("nothing is built on wrong data");
            assert_eq!((refused.code(), refused.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
            let expected = if member == bad { "the-wrong-value" } else { "the-right-value" };
            assert_eq!(get(&cluster, member, "k").await, expected);
            let ready = http_get(cluster.addresses()[member], "/readyz").expect("an answer");
            assert!(ready.contains("[-]data_corruption failed: alarm activated: CORRUPT"), "{ready}");
        }
    }
}

#[tokio::test]
async fn a_downgrade_is_agreed_on_and_lowers_the_version_of_the_cluster() {
    let cluster = three(&["--downgrade-check-time=1s"]);
    let (follower, _) = follower(&cluster).await;
    let downgrade = async |action: DowngradeAction, version: &str| {
        let mut client = cluster.client(follower).await.expect("a connection");
        let request = DowngradeRequest { action: action.into(), version: version.to_owned() };
        let answer = client.maintenance.downgrade(request).await;
        answer.map(|answer| answer.into_inner().version).map_err(|s| (s.code(), s.message().to_owned()))
    };
    let refused = |code, text: &str| Err((code, text.to_owned()));
    let malformed = refused(Code::InvalidArgument, "etcdserver: wrong downgrade target version format");
    let invalid = refused(Code::InvalidArgument, "etcdserver: invalid downgrade target version");
    assert_eq!(downgrade(DowngradeAction::Validate, "3").await, malformed);
    assert_eq!(downgrade(DowngradeAction::Enable, "v3.6").await, malformed);
    assert_eq!(downgrade(DowngradeAction::Validate, "3.5").await, invalid);
    assert_eq!(downgrade(DowngradeAction::Enable, "3.7").await, invalid);
    assert_eq!(downgrade(DowngradeAction::Validate, "3.6").await, Ok("3.7".into()));
    assert_eq!(downgrade(DowngradeAction::Cancel, "").await, Ok("3.7".into()), "there is nothing to cancel");

    let info = async |member: usize| {
        let mut client = cluster.client(member).await.expect("a connection");
        let status = client.maintenance.status(StatusRequest {}).await.expect("a status").into_inner();
        let info = status.downgrade_info.expect("what is known of a downgrade");
        (info.enabled, info.target_version)
    };
    let version_becomes = async |version: &str| {
        let deadline = tokio::time::Instant::now() + FOUND_WITHIN;
        for address in cluster.addresses() {
            while !http_get(address, "/version").is_ok_and(|answer| answer.contains(version)) {
                assert!(tokio::time::Instant::now() < deadline, "{address} does not say {version}");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    };
    assert_eq!(info(0).await, (false, String::new()));
    assert_eq!(downgrade(DowngradeAction::Enable, "3.6.4").await, Ok("3.7".into()));
    version_becomes(r#""etcdcluster":"3.6.0""#).await;
    for member in 0..3 {
        assert_eq!(info(member).await, (true, "3.6.0".into()));
    }
    let busy = refused(Code::FailedPrecondition, "etcdserver: cluster has a downgrade job in progress");
    assert_eq!(downgrade(DowngradeAction::Enable, "3.5").await, busy);
    assert_eq!(downgrade(DowngradeAction::Enable, "3.6").await, invalid);

    assert_eq!(downgrade(DowngradeAction::Cancel, "").await, Ok("3.6".into()));
    assert_eq!(info(follower).await, (false, String::new()));
    // All members run 3.7, so that is what they go back to.
    version_becomes(r#""etcdcluster":"3.7.0""#).await;
}
