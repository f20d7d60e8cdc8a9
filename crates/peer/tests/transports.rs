//! Two members that talk to each other.

mod support;

use proto::raftpb::{Message, MessageType};
use support::{Member, append, heartbeat};

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
