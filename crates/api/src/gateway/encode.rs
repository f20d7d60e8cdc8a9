//! Protobuf to JSON, by the rules of protobuf's JSON mapping as etcd's gateway sets them: proto's own field names, in the
//! order in which they are declared; 64-bit integers as strings, bytes in base64, enums by name; what is zero left out,
//! unless it is the member of a oneof that was chosen.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use proto::schema::{Field, Kind, Message};

/// Messages within messages. The other way round nothing deeper comes in.
const MAX_DEPTH: usize = 110;

/// Appends the JSON of a message. `None`: the bytes are no such message.
pub(crate) fn encode(bytes: &[u8], message: &'static Message, out: &mut String) -> Option<()> {
    object(bytes, message, MAX_DEPTH, out)
}

/// A field as it stands in the message.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

fn object(mut bytes: &[u8], message: &'static Message, depth: usize, out: &mut String) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let mut found: Vec<(usize, Wire<'_>)> = Vec::new();
    while bytes.has_remaining() {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        let wire = read(wire_type, &mut bytes)?;
        let Some(position) = message.fields.iter().position(|field| field.number == number) else { continue };
        if let Some(wire) = wire {
            found.push((position, wire));
        }
    }
    // Nearly always it is in order; a list's members keep theirs.
    found.sort_by_key(|(position, _)| *position);
    out.push('{');
    let begin = out.len();
    let mut rest = &found[..];
    while let Some((position, _)) = rest.first() {
        let (group, after) = rest.split_at(rest.iter().take_while(|(other, _)| other == position).count());
        rest = after;
        let field = &message.fields[*position];
        if field.is_repeated {
            list(field, group, begin, depth, out)?;
            continue;
        }
        // What is there twice counts as it was last.
        let (_, wire) = group.last()?;
        let is_zero = match (field.kind, wire) {
            (Kind::Message(_), _) => false,
            (_, Wire::Varint(value)) => *value == 0,
            (_, Wire::Bytes(bytes)) => bytes.is_empty(),
        };
        if !is_zero || field.has_presence() {
            name(field, begin, out);
            value(field, *wire, depth, out)?;
        }
    }
    out.push('}');
    Some(())
}

/// The value behind a key; `None` in it: of a kind that no field of ours has.
#[allow(clippy::option_option)] // malformed, unknown, known
fn read<'a>(wire_type: WireType, bytes: &mut &'a [u8]) -> Option<Option<Wire<'a>>> {
    let mut skip = |length: usize| {
        let (piece, after) = bytes.split_at_checked(length)?;
        *bytes = after;
        Some(piece)
    };
    Some(match wire_type {
        WireType::Varint => Some(Wire::Varint(decode_varint(bytes).ok()?)),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
            let (piece, after) = bytes.split_at_checked(length)?;
            *bytes = after;
            Some(Wire::Bytes(piece))
        }
        WireType::ThirtyTwoBit => skip(4).map(|_| None)?,
        WireType::SixtyFourBit => skip(8).map(|_| None)?,
        WireType::StartGroup | WireType::EndGroup => return None,
    })
}

fn name(field: &Field, begin: usize, out: &mut String) {
    if out.len() > begin {
        out.push(',');
    }
    out.push('"');
    out.push_str(field.name);
    out.push_str("\":");
}

fn list(
    field: &'static Field,
    group: &[(usize, Wire<'_>)],
    begin: usize,
    depth: usize,
    out: &mut String,
) -> Option<()> {
    let is_packable = !matches!(field.kind, Kind::Message(_) | Kind::String | Kind::Bytes);
    let mut is_first = true;
    let mut next = |out: &mut String| {
        if std::mem::take(&mut is_first) {
            name(field, begin, out);
            out.push('[');
        } else {
            out.push(',');
        }
    };
    for (_, wire) in group {
        match *wire {
            Wire::Bytes(mut packed) if is_packable => {
                while packed.has_remaining() {
                    next(out);
                    value(field, Wire::Varint(decode_varint(&mut packed).ok()?), depth, out)?;
                }
            }
            wire => {
                next(out);
                value(field, wire, depth, out)?;
            }
        }
    }
    if !is_first {
        out.push(']');
    }
    Some(())
}

fn value(field: &'static Field, wire: Wire<'_>, depth: usize, out: &mut String) -> Option<()> {
    use std::fmt::Write;
    match (field.kind, wire) {
        (Kind::Message(inner), Wire::Bytes(bytes)) => return object(bytes, inner, depth, out),
        (Kind::String, Wire::Bytes(bytes)) => string(std::str::from_utf8(bytes).ok()?, out),
        (Kind::Bytes, Wire::Bytes(bytes)) => {
            out.push('"');
            STANDARD.encode_string(bytes, out);
            out.push('"');
        }
        (Kind::Bool, Wire::Varint(value)) => out.push_str(if value != 0 { "true" } else { "false" }),
        // Writing to a string cannot fail.
        (Kind::Int32, Wire::Varint(value)) => drop(write!(out, "{}", value as i32)),
        (Kind::Uint32, Wire::Varint(value)) => drop(write!(out, "{}", value as u32)),
        (Kind::Int64, Wire::Varint(value)) => drop(write!(out, "\"{}\"", value as i64)),
        (Kind::Uint64, Wire::Varint(value)) => drop(write!(out, "\"{value}\"")),
        (Kind::Enum(kind), Wire::Varint(value)) => match kind.values.iter().find(|(_, known)| *known == value as i32) {
            Some((name, _)) => string(name, out),
            None => drop(write!(out, "{}", value as i32)),
        },
        _ => return None,
    }
    Some(())
}

/// Appends a string in quotes.
pub(crate) fn string(text: &str, out: &mut String) {
    use std::fmt::Write;
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|char: char| char < ' ' || char == '"' || char == '\\') {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            // Writing to a string cannot fail.
            byte => drop(write!(out, "\\u{byte:04x}")),
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}
