//! JSON to protobuf and back.

use bytes::Bytes;
use proptest::prelude::*;
use prost::encoding::{WireType, encode_key, encode_varint};
use proto::schema::{Kind, METHODS, Message};

use super::decode;
use crate::gateway::encode::encode;
use crate::json::Scanner;

fn request(method: &str) -> &'static Message {
    METHODS.iter().find(|(path, ..)| path.ends_with(&format!("/{method}"))).expect("a method").1
}

/// The message that a body holds, as JSON, or what is wrong with it.
fn through(text: &str, message: &'static Message) -> Result<String, String> {
    let mut scanner = Scanner::default();
    let end = match scanner.scan(text.as_bytes())? {
        Some(end) => end,
        None if scanner.may_end() => text.len(),
        None if scanner.is_blank() => return Err("EOF".into()),
        None => return Err("unexpected EOF".into()),
    };
    let bytes = decode(text[..end].trim_start().as_bytes(), message)?;
    let mut json = String::new();
    encode(&bytes, message, &mut json).expect("what was made can be read");
    Ok(json)
}

/// Each line: a method, the body of a request to it, and what grpc-gateway v2.33 with protobuf-go and etcd's API 3.7 make of it:
/// the message, or an error.
#[test]
fn bodies_are_understood_and_refused_as_gos_libraries_do_it() {
    let lines = include_str!("../../tests/data/protojson.jsonl");
    let mut compared = 0;
    for line in lines.lines() {
        let [method, text, kind, expected]: [String; 4] = serde_json::from_str(line).expect("a line of four");
        let found = match through(&text, request(&method)) {
            Ok(json) => ("OK", json),
            Err(fault) => ("ERR", fault),
        };
        assert_eq!(found, (kind.as_str(), expected), "{method}: {text}");
        compared += 1;
    }
    assert!(compared > 100, "only {compared} lines");
}

/// Bytes that are taken from the front, and zeros when they are used up: so that a failure shrinks.
struct Entropy<'a>(&'a [u8]);

impl Entropy<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    fn number(&mut self) -> u64 {
        let bytes = self.byte() % 9;
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.byte() % 12).map(|_| self.byte()).collect()
    }
}

/// Any message, in the one form in which the translation writes it.
fn any_message(message: &'static Message, entropy: &mut Entropy<'_>, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chosen = 0_u32;
    for field in message.fields {
        if entropy.byte().is_multiple_of(2) || depth == 0 && matches!(field.kind, Kind::Message(_)) {
            continue;
        }
        if let Some(oneof) = field.oneof {
            if chosen & 1 << oneof != 0 {
                continue;
            }
            chosen |= 1 << oneof;
        }
        let count = if field.is_repeated { entropy.byte() % 4 } else { 1 };
        for _ in 0..count {
            let counts = field.is_repeated || field.has_presence();
            let mut varint = |value: u64| {
                if value != 0 || counts {
                    encode_key(field.number, WireType::Varint, &mut out);
                    encode_varint(value, &mut out);
                }
            };
            let bytes = match field.kind {
                Kind::Bool => {
                    varint(entropy.number() & 1);
                    continue;
                }
                Kind::Int32 | Kind::Enum(_) => {
                    varint(i64::from(entropy.number() as i32) as u64);
                    continue;
                }
                Kind::Uint32 => {
                    varint(u64::from(entropy.number() as u32));
                    continue;
                }
                Kind::Int64 | Kind::Uint64 => {
                    varint(entropy.number());
                    continue;
                }
                Kind::String => String::from_utf8_lossy(&entropy.bytes()).into_owned().into_bytes(),
                Kind::Bytes => entropy.bytes(),
                Kind::Message(inner) => any_message(inner, entropy, depth - 1),
            };
            if !bytes.is_empty() || counts || matches!(field.kind, Kind::Message(_)) {
                encode_key(field.number, WireType::LengthDelimited, &mut out);
                encode_varint(bytes.len() as u64, &mut out);
                out.extend(bytes);
            }
        }
    }
    out
}

/// As many messages within messages as take part in the random ones.
const DEPTH: usize = 4;

proptest! {
    /// Whatever is said can be said in JSON, and means the same.
    #[test]
    fn a_message_survives_its_way_through_json(bytes in prop::collection::vec(any::<u8>(), 0..600), which: prop::sample::Index) {
        let (_, request, response) = METHODS[which.index(METHODS.len())];
        for message in [request, response] {
            // Requests and responses of the health service have maps, which no path leads to.
            if message.name.starts_with("grpc.health") {
                continue;
            }
            let said = any_message(message, &mut Entropy(&bytes), DEPTH);
            let mut json = String::new();
            encode(&said, message, &mut json).expect("a message");
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
            let mut scanner = Scanner::default();
            prop_assert_eq!(scanner.scan(json.as_bytes()), Ok(Some(json.len())), "{}", json);
            let understood = decode(json.as_bytes(), message).expect("our own JSON");
            prop_assert_eq!(Bytes::from(understood), Bytes::from(said), "{}", json);
        }
    }

    /// No text makes it panic, and what it takes is a message.
    #[test]
    fn any_text_is_a_message_or_is_refused(text in r#"[\[\]{}:,"0-9a-z\\ .eE+_=-]{0,60}"#, which: prop::sample::Index) {
        let (_, message, _) = METHODS[which.index(METHODS.len())];
        let _ = through(&text, message);
        let _ = through(&format!(r#"{{"key":{text}}}"#), message);
    }

    #[test]
    fn any_bytes_are_a_message_or_are_not(bytes in prop::collection::vec(any::<u8>(), 0..200), which: prop::sample::Index) {
        let (_, _, message) = METHODS[which.index(METHODS.len())];
        let _ = encode(&bytes, message, &mut String::new());
    }
}

/// Transactions may hold transactions; only so many, or the stack would end.
#[test]
fn messages_nest_only_so_deep() {
    let nested = |depth: usize| {
        let begin = r#"{"success":[{"request_txn":"#.repeat(depth);
        format!("{begin}{{}}{}", "}]}".repeat(depth))
    };
    assert!(through(&nested(40), request("Txn")).is_ok());
    assert_eq!(through(&nested(3000), request("Txn")), Err("proto: exceeded max recursion depth".into()));
    assert_eq!(through(&"[".repeat(20_000), request("Txn")), Err("exceeded max depth".into()));
    // Brackets that mean nothing take no stack.
    let unknown = format!(r#"{{"unknown":{}{},"key":"YQ=="}}"#, "[".repeat(9000), "]".repeat(9000));
    assert_eq!(through(&unknown, request("Put")), Ok(r#"{"key":"YQ=="}"#.into()));
}
