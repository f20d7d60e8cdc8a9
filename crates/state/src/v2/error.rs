//! Why a v2 request is refused: etcd's codes and texts.

use super::json;

/// What is wrong. The number is etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Code {
    KeyNotFound = 100,
    TestFailed = 101,
    NotFile = 102,
    NotDir = 104,
    NodeExist = 105,
    RootReadOnly = 107,
    DirNotEmpty = 108,
    Unauthorized = 110,
    PrevValueRequired = 201,
    TtlNotANumber = 202,
    IndexNotANumber = 203,
    InvalidField = 209,
    InvalidForm = 210,
    RefreshValue = 211,
    RefreshTtlRequired = 212,
    RaftInternal = 300,
    EventIndexCleared = 401,
}

impl Code {
    /// etcd's words.
    pub fn message(self) -> &'static str {
        match self {
            Self::KeyNotFound => "Key not found",
            Self::TestFailed => "Compare failed",
            Self::NotFile => "Not a file",
            Self::NotDir => "Not a directory",
            Self::NodeExist => "Key already exists",
            Self::RootReadOnly => "Root is read only",
            Self::DirNotEmpty => "Directory not empty",
            Self::Unauthorized => "The request requires user authentication",
            Self::PrevValueRequired => "PrevValue is Required in POST form",
            Self::TtlNotANumber => "The given TTL in POST form is not a number",
            Self::IndexNotANumber => "The given index in POST form is not a number",
            Self::InvalidField => "Invalid field",
            Self::InvalidForm => "Invalid POST form",
            Self::RefreshValue => "Value provided on refresh",
            Self::RefreshTtlRequired => "A TTL must be provided on refresh",
            Self::RaftInternal => "Raft Internal Error",
            Self::EventIndexCleared => "The event in requested index is outdated and cleared",
        }
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::KeyNotFound => 404,
            Self::TestFailed | Self::NodeExist => 412,
            Self::NotFile | Self::DirNotEmpty => 403,
            Self::Unauthorized => 401,
            Self::RaftInternal => 500,
            _ => 400,
        }
    }
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {} ({cause}) [{index}]", *code as u16, code.message())]
pub struct Error {
    /// What.
    pub code: Code,
    /// Where, or in what way.
    pub cause: String,
    /// The index at that time; 0 if the request did not get as far as the tree.
    pub index: u64,
}

impl Error {
    /// A refusal.
    pub fn new(code: Code, cause: impl Into<String>, index: u64) -> Self {
        Self { code, cause: cause.into(), index }
    }

    /// A request with a method that the tree does not know.
    pub(super) fn unknown_method() -> Self {
        Self::new(Code::RaftInternal, "etcdserver: unknown method", 0)
    }

    /// Ends the search for expired nodes; nobody sees it.
    pub(super) fn nothing_expired() -> Self {
        Self::new(Code::KeyNotFound, "", 0)
    }

    /// The body of an answer, with the namespace of users' keys cut off.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let cause = self.cause.strip_prefix(super::KEYS).unwrap_or(&self.cause);
        out.extend_from_slice(format!(r#"{{"errorCode":{},"message":"#, self.code as u16).as_bytes());
        json::string(&mut out, self.code.message().as_bytes());
        if !cause.is_empty() {
            out.extend_from_slice(br#","cause":"#);
            json::string(&mut out, cause.as_bytes());
        }
        out.extend_from_slice(format!(r#","index":{}}}"#, self.index).as_bytes());
        out.push(b'\n');
        out
    }
}
