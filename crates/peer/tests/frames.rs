//! The framing of both kinds of streams, against bytes that real etcds sent and against itself.

use bytes::{Bytes, BytesMut};
use peer::frame::{Decoder, Encoder, FrameError, Gather, MAX_ENTRIES, MAX_FRAME_BYTES};
use proptest::prelude::*;
use prost::Message as _;
use proto::raftpb::{Entry, Message, MessageType};

/// Decodes a stream that arrives in pieces of `size`; whatever is left over at the end is a mistake.
fn decode(mut decoder: Decoder, bytes: &[u8], size: usize) -> Result<Vec<Message>, FrameError> {
    let (mut input, mut messages) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(size.max(1)) {
        input.extend_from_slice(piece);
        decoder.decode(&mut input, &mut messages)?;
    }
    assert!(input.is_empty(), "{} bytes left over", input.len());
    Ok(messages)
}

fn encode(mut encoder: Encoder, messages: &[Message]) -> Vec<u8> {
    let mut gather = Gather::default();
    for message in messages {
        encoder.encode(message, &mut gather);
    }
    std::iter::from_fn(|| gather.pop()).flatten().collect()
}

fn counts(messages: &[Message]) -> Vec<(MessageType, usize)> {
    let mut counts = Vec::new();
    for message in messages {
        match counts.iter_mut().find(|(kind, _)| *kind == message.r#type()) {
            Some((_, count)) => *count += 1,
            None => counts.push((message.r#type(), 1)),
        }
    }
    counts.sort();
    counts
}

/// A leader of 3.4.23: led in term 2, lost leadership, led again in term 4.
#[test]
fn appends_of_etcd_3_4_are_understood() {
    let bytes = include_bytes!("data/msgapp-3.4.23.bin");
    let (from, to) = (0x455b88dffbecc8f4, 0xb76385ab29d7ecff);
    for size in [1, 7, 2048, bytes.len()] {
        let messages = decode(Decoder::append(from, to), bytes, size).unwrap();
        assert_eq!(counts(&messages), [(MessageType::MsgApp, 25)]);
        assert!(messages.iter().all(|message| message.from() == from && message.to() == to));
        let entries: Vec<_> = messages.iter().flat_map(|message| &message.entries).collect();
        let positions: Vec<_> = entries.iter().map(|entry| (entry.term(), entry.index())).collect();
        let expected: Vec<_> = (4..=13).map(|index| (2, index)).chain((18..=21).map(|index| (4, index))).collect();
        assert_eq!(positions, expected);
        let last = messages.last().unwrap();
        assert_eq!((last.term(), last.log_term(), last.index(), last.commit()), (4, 4, 21, 21));
        assert_eq!(entries[5].data()[..], hex("22080a02613012027630a2060b0885fc9aa5cac0a8fac801")[..]);
    }
}

/// The same of 3.7.1, where entries were sent again after a refusal, so that the index goes back.
#[test]
fn appends_of_etcd_3_7_are_understood_and_encoded_byte_for_byte() {
    let bytes = include_bytes!("data/msgapp-3.7.1.bin");
    let messages = decode(Decoder::append(0xd3639a02866405b2, 0x1a8486f6b9fd63e7), bytes, 100).unwrap();
    assert_eq!(counts(&messages), [(MessageType::MsgApp, 25)]);
    let indexes: Vec<_> = messages.iter().map(Message::index).collect();
    assert_eq!(indexes[..8], [3, 6, 4, 7, 6, 7, 8, 8]);

    // Our own bytes are the same but for the two link heartbeats, at 956 and at the end.
    let without_heartbeats = [&bytes[..956], &bytes[957..1170]].concat();
    assert_eq!(encode(Encoder::append(), &messages), without_heartbeats);
}

#[test]
fn the_other_messages_are_understood_and_link_heartbeats_left_out() {
    use MessageType as Type;
    type Counts = &'static [(MessageType, usize)];
    let cases: [(&[u8], u64, Counts); 2] = [
        (
            include_bytes!("data/message-3.4.23.bin"),
            0xb76385ab29d7ecff,
            &[
                (Type::MsgProp, 2),
                (Type::MsgAppResp, 25),
                (Type::MsgVote, 1),
                (Type::MsgVoteResp, 2),
                (Type::MsgHeartbeat, 8),
                (Type::MsgHeartbeatResp, 34),
                (Type::MsgTimeoutNow, 1),
                (Type::MsgReadIndex, 1),
            ],
        ),
        (
            include_bytes!("data/message-3.7.1.bin"),
            0xff349b294811b11c,
            &[
                (Type::MsgProp, 2),
                (Type::MsgAppResp, 24),
                (Type::MsgVote, 1),
                (Type::MsgVoteResp, 2),
                (Type::MsgHeartbeat, 8),
                (Type::MsgHeartbeatResp, 35),
                (Type::MsgTimeoutNow, 1),
                (Type::MsgReadIndex, 1),
                (Type::MsgPreVoteResp, 1),
            ],
        ),
    ];
    for (bytes, from, expected) in cases {
        let messages = decode(Decoder::message(), bytes, 333).unwrap();
        assert!(messages.iter().all(|message| message.from() == from));
        assert_eq!(counts(&messages), expected);
    }
}

#[test]
fn link_heartbeats_are_those_of_3_7_and_say_nothing() {
    for (mut encoder, decoder, expected) in [
        (Encoder::message(), Decoder::message(), hex("00000000000000020808")),
        (Encoder::append(), Decoder::append(1, 2), hex("00")),
    ] {
        let mut gather = Gather::default();
        encoder.heartbeat(&mut gather);
        let bytes = gather.pop().unwrap();
        assert_eq!(bytes[..], expected[..]);
        assert!(decode(decoder, &bytes, 1).unwrap().is_empty());
    }
    // As 3.4 and 3.5 write it, with every field.
    let old = hex("000000000000001e08081000180020002800300040004a0a12080a0228001000180050005800");
    assert!(decode(Decoder::message(), &old, 64).unwrap().is_empty());
}

/// Lengths and counts are believed only as far as bytes follow.
#[test]
fn frames_beyond_the_limits_are_refused_before_anything_is_allocated() {
    let too_long = (MAX_FRAME_BYTES + 1).to_be_bytes();
    let refused = |decoder, bytes: &[u8]| decode(decoder, bytes, 4096).unwrap_err();
    let append = || Decoder::append(1, 2);
    assert!(matches!(refused(Decoder::message(), &too_long), FrameError::TooLong { .. }));
    assert!(matches!(refused(append(), &[&[2], &too_long[..]].concat()), FrameError::TooLong { .. }));
    let one = 1u64.to_be_bytes();
    assert!(matches!(refused(append(), &[&[1], &one[..], &too_long[..]].concat()), FrameError::TooLong { .. }));
    let too_many = (MAX_ENTRIES + 1).to_be_bytes();
    assert!(matches!(refused(append(), &[&[1], &too_many[..]].concat()), FrameError::TooMany));
    assert!(matches!(refused(append(), &[3]), FrameError::UnknownType(3)));

    // Two entries whose lengths are within the limit each, but not together.
    let mut decoder = append();
    let mut input = BytesMut::new();
    input.extend_from_slice(&[1]);
    input.extend_from_slice(&2u64.to_be_bytes());
    input.extend_from_slice(&0u64.to_be_bytes());
    input.extend_from_slice(&MAX_FRAME_BYTES.to_be_bytes());
    decoder.decode(&mut input, &mut Vec::new()).expect("the first is empty, the second is awaited");
    assert!(input.capacity() < 1 << 10, "nothing is set aside for what has not come");

    // An append at the end of all indexes, then one more entry.
    let mut at_end = append_of(5, 5, u64::MAX, 0, 0);
    at_end.commit = Some(u64::MAX);
    let mut bytes = encode(Encoder::append(), &[at_end]);
    bytes.extend([1]);
    bytes.extend(1u64.to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    assert!(matches!(refused(append(), &bytes), FrameError::Overflow));
}

/// Two bytes can ask for a struct of 72: a frame of many empty entries, or of messages in messages, is not decoded.
#[test]
fn a_frame_that_would_swell_is_refused() {
    let frame = |content: Vec<u8>| [&(content.len() as u64).to_be_bytes()[..], &content].concat();
    let entries = frame([7 << 3 | 2, 0].repeat(MAX_ENTRIES as usize + 1));
    assert!(matches!(decode(Decoder::message(), &entries, 1 << 20).unwrap_err(), FrameError::TooMany));
    let nested = frame([14 << 3 | 2, 0].repeat(40_000));
    assert!(matches!(decode(Decoder::message(), &nested, 1 << 20).unwrap_err(), FrameError::TooMany));
    let torn = frame([7 << 3 | 2, 0x7f].repeat(40_000));
    assert!(matches!(decode(Decoder::message(), &torn, 1 << 20).unwrap_err(), FrameError::Malformed(_)));
}

/// Data of some size is neither copied when it is sent nor when it is received.
#[test]
fn large_entries_are_shared() {
    let data = Bytes::from(vec![7; 100_000]);
    let mut message = append_of(2, 2, 9, 1, 0);
    message.entries[0].data = Some(data.clone());
    let mut gather = Gather::default();
    let mut encoder = Encoder::append();
    encoder.encode(&append_of(2, 1, 8, 1, 0), &mut gather);
    encoder.encode(&message, &mut gather);
    let pieces: Vec<_> = std::iter::from_fn(|| gather.pop()).collect();
    assert!(pieces.iter().any(|piece| piece.as_ptr() == data.as_ptr()), "sent from where it lies");

    let mut input = BytesMut::from(&pieces.concat()[..]);
    let memory = input.as_ptr_range();
    let mut messages = Vec::new();
    Decoder::append(1, 2).decode(&mut input, &mut messages).unwrap();
    let received = messages[1].entries[0].data();
    assert_eq!(received, data);
    assert!(memory.contains(&received.as_ptr()), "received into where it stays");
}

fn append_of(term: u64, log_term: u64, index: u64, entries: usize, data_bytes: usize) -> Message {
    let entry = |offset| Entry {
        term: Some(term),
        index: Some(index.wrapping_add(1 + offset as u64)),
        r#type: None,
        data: Some(vec![offset as u8; data_bytes].into()),
    };
    Message {
        r#type: Some(MessageType::MsgApp as i32),
        from: Some(1),
        to: Some(2),
        term: Some(term),
        log_term: Some(log_term),
        index: Some(index),
        entries: (0..entries).map(entry).collect(),
        commit: Some(index / 2),
        ..Message::default()
    }
}

prop_compose! {
    /// Appends that often continue one another, as a leader's do, and sometimes do not.
    fn appends()(steps in prop::collection::vec((0u64..3, any::<bool>(), 0usize..4, prop_oneof![0usize..300, 4000usize..5000]), 0..20))
        -> Vec<Message>
    {
        let (mut term, mut index) = (1, 10);
        let mut messages = Vec::new();
        for (new_term, goes_back, entries, data_bytes) in steps {
            let log_term = term;
            term += u64::from(new_term == 2);
            index -= u64::from(goes_back && index > 1);
            messages.push(append_of(term, log_term, index, entries, data_bytes));
            index += entries as u64;
        }
        messages
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(messages in appends(), size in 1usize..5000) {
        let bytes = encode(Encoder::append(), &messages);
        prop_assert_eq!(&decode(Decoder::append(1, 2), &bytes, size).unwrap(), &messages);
        let bytes = encode(Encoder::message(), &messages);
        prop_assert_eq!(&decode(Decoder::message(), &bytes, size).unwrap(), &messages);
        let expected: Vec<u8> = messages
            .iter()
            .flat_map(|message| [&(message.encoded_len() as u64).to_be_bytes()[..], &message.encode_to_vec()].concat())
            .collect();
        prop_assert_eq!(bytes, expected);
    }

    /// Whatever comes, a decoder answers with messages or an error.
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), frame in prop::collection::vec(any::<u8>(), 0..60)) {
        let framed = [&(frame.len() as u64).to_be_bytes()[..], &frame].concat();
        for input in [&bytes[..], &framed, &[&[1, 0, 0, 0, 0, 0, 0, 0, 1], &framed[..]].concat(), &[&[2], &framed[..]].concat()] {
            let _ = Decoder::message().decode(&mut BytesMut::from(input), &mut Vec::new());
            let _ = Decoder::append(1, 2).decode(&mut BytesMut::from(input), &mut Vec::new());
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
