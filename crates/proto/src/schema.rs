//! What the messages of the services look like, for whoever translates them without knowing their types: generated from the
//! same `.proto` files.

use std::fmt;

/// A message.
#[derive(Debug)]
pub struct Message {
    /// Its full name.
    pub name: &'static str,
    /// The full names of its oneofs.
    pub oneofs: &'static [&'static str],
    /// In the order in which they are declared; at most 64.
    pub fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub struct Field {
    /// As the `.proto` file calls it.
    pub name: &'static str,
    /// As JSON calls it by default.
    pub json_name: &'static str,
    /// Its number.
    pub number: u32,
    /// What it holds, or each of it if it is repeated.
    pub kind: Kind,
    /// It is a list.
    pub is_repeated: bool,
    /// The oneof that it is a member of, by its place in [`Message::oneofs`].
    pub oneof: Option<u8>,
}

impl Field {
    /// Whether a zero is told apart from nothing.
    pub fn has_presence(&self) -> bool {
        self.oneof.is_some()
    }
}

/// What a field holds.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    String,
    Bytes,
    Enum(&'static Enum),
    Message(&'static Message),
}

impl Kind {
    /// As `.proto` files write it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int32 => "int32",
            Kind::Int64 => "int64",
            Kind::Uint32 => "uint32",
            Kind::Uint64 => "uint64",
            Kind::String => "string",
            Kind::Bytes => "bytes",
            Kind::Enum(_) => "enum",
            Kind::Message(_) => "message",
        }
    }
}

/// Not what a message consists of: that may be itself.
impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Enum(kind) => write!(f, "enum {}", kind.name),
            Kind::Message(message) => write!(f, "message {}", message.name),
            other => f.write_str(other.name()),
        }
    }
}

/// An enumeration.
#[derive(Debug)]
pub struct Enum {
    /// Its full name.
    pub name: &'static str,
    /// Names and numbers.
    pub values: &'static [(&'static str, i32)],
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));
