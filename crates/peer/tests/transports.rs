//! Two members that talk to each other.

mod support;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::raftpb::{ConfState, Message, MessageType, Snapshot, SnapshotMetadata};
use support::{Member, append, heartbeat, wait_until};

#[test]
fn messages_of_both_streams_arrive_in_order_and_unchanged() {
    let (a, b) = Member::pair();
    // Of the term before, of this one, and a large one: all three ways to write an append.
    let mut first = append(1, 2, 9, "first");
    first.log_term = Some(1);
    let appends: Vec<Message> = std::iter::once(first)
        .chain((10..500).map(|index| append(1, 2, index, vec![index as u8; 256])))
        .chain([append(1, 2, 500, vec![9; 1 << 20])])
        .collect();
    let heartbeats: Vec<Message> = (0..500).map(|commit| heartbeat(1, 2, commit)).collect();
    let mixed = appends.iter().zip(&heartbeats).flat_map(|(append, heartbeat)| [append.clone(), heartbeat.clone()]);
    for batch in mixed.collect::<Vec<_>>().chunks(37) {
        a.transport.send(batch.to_vec());
    }
    let received = b.local.take_messages(appends.len() + appends.len().min(heartbeats.len()));
    let (received_appends, received_heartbeats): (Vec<_>, Vec<_>) =
        received.into_iter().partition(|message| message.r#type() == MessageType::MsgApp);
    assert_eq!(received_appends, appends);
    assert_eq!(received_heartbeats, heartbeats[..received_heartbeats.len()]);
    assert!(a.transport.active_since(2).is_some());
    assert!(a.local.look(|told| told.unreachable.is_empty()));
}

/// Neither a message to somebody else, nor one that a member only sends to itself, nor a proposal of nothing.
#[test]
fn what_must_not_arrive_does_not() {
    let (a, b) = Member::pair();
    let of_type = |message_type: MessageType| Message { r#type: Some(message_type as i32), ..heartbeat(1, 2, 0) };
    a.transport.send(vec![
        of_type(MessageType::MsgHup),
        of_type(MessageType::MsgUnreachable),
        of_type(MessageType::MsgProp),
        heartbeat(1, 77, 0),
        heartbeat(1, 2, 5),
    ]);
    assert_eq!(b.local.take_messages(1), [heartbeat(1, 2, 5)]);
    // A snapshot without its file is refused where it is sent.
    a.transport.send(vec![of_type(MessageType::MsgSnap)]);
    a.local.wait_for("a report", |told| (told.snapshots == [(2, false)]).then_some(()));
}

/// A member that does not know the sender refuses its streams, and takes its messages by post. It remembers where the
/// sender listens, so that it can answer.
#[test]
fn without_streams_messages_are_posted() {
    let (a, b) = (Member::start(1), Member::start(2));
    a.add(&b);
    let messages: Vec<_> = (0..20).map(|commit| heartbeat(1, 2, commit)).collect();
    a.transport.send(messages.clone());
    let mut received = b.local.take_messages(messages.len());
    received.sort_by_key(Message::commit); // four connections know no order
    assert_eq!(received, messages);
    assert_eq!(a.transport.open_streams(2), 0);

    b.transport.send(vec![heartbeat(2, 1, 5)]);
    assert_eq!(a.local.take_messages(1), [heartbeat(2, 1, 5)]);

    // As soon as it is told of the sender, there are streams.
    b.add(&a);
    a.wait_until_streams_to(&b);
    b.wait_until_streams_to(&a);
}

#[test]
fn what_does_not_fit_the_queue_is_dropped_and_reported() {
    // Accepts connections, by way of the backlog, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = Member::start(1);
    a.transport.add_peer(2, vec![format!("http://{}", silent.local_addr().unwrap())]);
    a.transport.send((0..1000).map(|commit| heartbeat(1, 2, commit)).collect());
    a.local.wait_for("reports", |told| (told.unreachable.len() >= 1000 - 64 - 4).then_some(()));
    assert_eq!(a.transport.active_since(2), None);
}

#[test]
fn a_member_that_comes_back_is_reached_again() {
    let a = Member::start(1);
    let b = Member::start(2);
    let address = b.address;
    a.add(&b);
    b.add(&a);
    a.wait_until_streams_to(&b);
    drop(b);
    a.local.wait_for("the loss", |told| (!told.unreachable.is_empty()).then_some(()));

    let b = Member::start_at(2, TcpListener::bind(address).unwrap(), |_| ());
    b.add(&a);
    a.wait_until_streams_to(&b);
    a.transport.send(vec![heartbeat(1, 2, 1)]);
    assert_eq!(b.local.take_messages(1), [heartbeat(1, 2, 1)]);
}

#[test]
fn a_peer_whose_address_changes_is_found_at_the_new_one() {
    let (a, b) = (Member::start(1), Member::start(2));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    a.transport.add_peer(2, vec![format!("http://{nobody}")]);
    b.add(&a);
    a.wait_until_streams_to(&b);
    assert_eq!(b.transport.open_streams(1), 0);
    a.transport.update_peer(2, vec![b.url()]);
    b.wait_until_streams_to(&a);
}

#[test]
fn members_of_different_clusters_do_not_talk() {
    let a = Member::start(1);
    let b = Member::start_at(2, TcpListener::bind("127.0.0.1:0").unwrap(), |config| config.cluster_id += 1);
    a.add(&b);
    b.add(&a);
    a.transport.send(vec![heartbeat(1, 2, 0)]);
    a.local.wait_for("a report", |told| (told.unreachable == [2]).then_some(()));
    b.transport.send(vec![heartbeat(2, 1, 0)]);
    b.local.wait_for("a report", |told| (told.unreachable == [1]).then_some(()));
    for member in [&a, &b] {
        assert!(member.local.look(|told| told.messages.is_empty() && told.removed_by.is_empty()));
    }
}

/// It learns of it by its streams; what it posts is refused.
#[test]
fn a_removed_member_is_told_so() {
    let (a, b) = Member::pair();
    b.local.removed.lock().insert(1);
    b.transport.remove_peer(1);
    a.local.wait_for("the removal", |told| told.removed_by.contains(&2).then_some(()));
    a.local.look(|told| told.unreachable.clear());
    a.transport.send(vec![heartbeat(1, 2, 0)]);
    a.local.wait_for("the refusal", |told| told.unreachable.contains(&2).then_some(()));
    assert!(b.local.look(|told| told.messages.is_empty()));
}

/// Nothing is given up between members that have nothing to say, whatever has a deadline.
#[test]
fn idle_members_stay_connected_and_probe_each_other() {
    let (a, b) = Member::pair();
    let since = [a.transport.active_since(2), b.transport.active_since(1)];
    a.local.wait_for("probes beyond every deadline", |told| (told.round_trips == 3).then_some(()));
    assert_eq!([a.transport.active_since(2), b.transport.active_since(1)], since);
    let (id, status) = a.transport.statuses().remove(0);
    assert_eq!((id, status.disconnects, status.receive_failures), (2, 0, 0));
    assert!(status.round_trip.is_some());
    assert!(a.local.look(|told| told.unreachable.is_empty() && told.gone.is_empty()));
}

/// A process that is killed closes its connections; one that is stopped does not.
mod other_process {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    const PEER_URL: &str = "KEELSON_PEER_TEST_URL";

    /// Not a test of its own: the other process.
    #[test]
    #[ignore = "runs as another test's child process"]
    fn member_2() {
        let Ok(url) = std::env::var(PEER_URL) else { return };
        let member = Member::start(2);
        member.transport.add_peer(1, vec![url]);
        println!("\nlistening {}", member.url());
        io::stdin().read_to_end(&mut Vec::new()).unwrap(); // until the parent is gone
    }

    struct Process(Child);

    impl Process {
        fn start(peer: &Member) -> (Self, String) {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "other_process::member_2", "--ignored", "--nocapture"]);
            command.env(PEER_URL, peer.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut process = Self(command.spawn().unwrap());
            let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
            let url = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("listening ").map(str::to_owned));
            (process, url.expect("the child listens"))
        }

        fn signal(&self, signal: rustix::process::Signal) {
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn wait_for_streams(a: &Member) {
        wait_until("the streams are there", || {
            a.transport.open_streams(2) == 2 && a.transport.statuses()[0].1.received_bytes > 0
        });
    }

    #[test]
    fn a_killed_peer_is_reported_at_once_and_only_once() {
        let a = Member::start(1);
        for _ in 0..3 {
            let (process, url) = Process::start(&a);
            a.transport.add_peer(2, vec![url]);
            wait_for_streams(&a);
            let killed = Instant::now();
            process.signal(rustix::process::Signal::KILL);
            let reported = a.local.wait_for("the report", |told| Some(told.gone.first()?.1));
            println!("reported after {:?}", reported - killed);
            // A few more dials, all refused: no second report.
            a.local.look(|told| told.unreachable.clear());
            for round in 0..3 {
                a.transport.send(vec![heartbeat(1, 2, round)]);
            }
            a.local.wait_for("refusals", |told| (told.unreachable.len() >= 3).then_some(()));
            a.local.look(|told| assert_eq!(std::mem::take(&mut told.gone).len(), 1));
            a.transport.remove_peer(2);
        }
    }

    /// Its streams are given up after five seconds of silence, but its process is there.
    #[test]
    fn a_frozen_peer_is_not_reported_as_gone() {
        let a = Member::start(1);
        let (process, url) = Process::start(&a);
        a.transport.add_peer(2, vec![url]);
        wait_for_streams(&a);
        process.signal(rustix::process::Signal::STOP);
        wait_until("the peer is inactive", || a.transport.active_since(2).is_none());
        process.signal(rustix::process::Signal::CONT);
        wait_until("the peer is active again", || {
            a.transport.active_since(2).is_some() && a.transport.open_streams(2) == 2
        });
        assert!(a.local.look(|told| told.gone.is_empty()));
    }
}

mod snapshots {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    type Body = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

    fn message(index: u64) -> Message {
        let conf_state = ConfState { voters: vec![1, 2], ..ConfState::default() };
        let metadata = SnapshotMetadata { conf_state: Some(conf_state), index: Some(index), term: Some(2) };
        Message {
            r#type: Some(MessageType::MsgSnap as i32),
            from: Some(1),
            to: Some(2),
            term: Some(2),
            snapshot: Some(Snapshot { data: Some("{}".into()), metadata: Some(metadata) }),
            ..Message::default()
        }
    }

    fn pieces(count: usize) -> Vec<Bytes> {
        (0..count).map(|number| Bytes::from(vec![number as u8; 300_000])).collect()
    }

    #[test]
    fn the_file_is_saved_before_its_message_is_stepped() {
        let (a, b) = Member::pair();
        let pieces = pieces(20);
        let body: Body = Box::new(pieces.clone().into_iter().map(Ok));
        a.transport.send_snapshot(message(7), body);
        assert_eq!(b.local.take_messages(1), [message(7)]);
        b.local.look(|told| assert_eq!(told.files, [(7, Ok(pieces.concat()))]));
        a.local.wait_for("the report", |told| (told.snapshots == [(2, true)]).then_some(()));

        // By a member whose streams the receiver does not know.
        let c = Member::start(3);
        c.add(&b);
        c.transport
            .send_snapshot(Message { from: Some(3), ..message(8) }, Box::new(pieces.clone().into_iter().map(Ok)));
        c.local.wait_for("the report", |told| (told.snapshots == [(2, true)]).then_some(()));
    }

    /// Neither end keeps more than a little of the file, however slowly the other end works.
    #[test]
    fn a_large_file_takes_little_memory() {
        const MIB: usize = 1 << 20;
        let (a, b) = Member::pair();
        *b.local.slow_disk.lock() = Some(Duration::from_millis(1));
        let pulled = Arc::new(AtomicU64::new(0));
        let piece = Bytes::from(vec![1; MIB]);
        let source = {
            let pulled = pulled.clone();
            (0..64).map(move |_| {
                pulled.fetch_add(MIB as u64, Ordering::Relaxed);
                Ok(piece.clone())
            })
        };
        a.transport.send_snapshot(message(9), Box::new(source));
        let most_ahead = a.local.wait_for("the report", {
            let mut most = 0;
            let (b, pulled) = (&b, &pulled);
            move |told| {
                let received = b.transport.statuses()[0].1.received_bytes;
                most = most.max(pulled.load(Ordering::Relaxed).saturating_sub(received));
                told.snapshots.first().map(|&report| {
                    assert_eq!(report, (2, true));
                    most
                })
            }
        });
        assert_eq!(pulled.load(Ordering::Relaxed), 64 << 20);
        assert!(most_ahead < 32 << 20, "{most_ahead} bytes between reading and writing");
    }

    /// Half a file must not pass for a whole one.
    #[test]
    fn a_file_that_cannot_be_read_to_its_end_is_not_saved() {
        let (a, b) = Member::pair();
        let failing: Body = Box::new(pieces(5).into_iter().map(Ok).chain([Err(io::Error::other("bad sector"))]));
        a.transport.send_snapshot(message(7), failing);
        a.local.wait_for("the report", |told| (told.snapshots == [(2, false)]).then_some(()));
        b.local.wait_for("the failure", |told| told.files.first().map(|(_, file)| assert!(file.is_err())));

        // The same when the sender's whole connection goes.
        let mut head = format!(
            "POST /raft/snapshot HTTP/1.1\r\nHost: x\r\nX-Etcd-Cluster-Id: {:x}\r\nX-Server-Version: 3.4.23\r\nContent-Length: 100000\r\n\r\n",
            support::CLUSTER
        )
        .into_bytes();
        let encoded = prost::Message::encode_to_vec(&message(10));
        head.extend((encoded.len() as u64).to_be_bytes());
        head.extend(encoded);
        head.extend([1; 5000]);
        let mut stream = TcpStream::connect(b.address).unwrap();
        stream.write_all(&head).unwrap();
        drop(stream);
        b.local.wait_for("the failure", |told| told.files.get(1).map(|(_, file)| assert!(file.is_err())));
        assert!(b.local.look(|told| told.messages.is_empty()));
    }

    #[test]
    fn a_snapshot_that_cannot_be_delivered_is_reported() {
        let a = Member::start(1);
        a.transport.send_snapshot(message(7), Box::new(std::iter::empty()));
        a.local.wait_for("the report", |told| (told.snapshots == [(2, false)]).then_some(()));
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        a.transport.add_peer(2, vec![format!("http://{nobody}")]);
        a.transport.send_snapshot(message(7), Box::new(std::iter::empty()));
        a.local.wait_for("the report", |told| (told.snapshots == [(2, false); 2]).then_some(()));
    }
}
