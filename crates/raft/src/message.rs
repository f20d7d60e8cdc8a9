//! The wall between the wire and raft-rs.
//!
//! Peers' bytes are parsed by our own types; what gets past [`from_wire`] is a message that raft-rs can handle. It was
//! written for a network that only its own kind uses, and stops the process when a message is impossible: an entry with
//! term 0, a hole between entries, a snapshot whose membership names a member twice. Each check here stands for one such
//! place, and `tests/hostile.rs` throws arbitrary messages at a driver in every role.
//!
//! Entry data, contexts and snapshot data are shared in both directions, never copied. raft-rs's own fields 13 to 16
//! (snapshot request, priorities, commit term) exist on neither side: they have other meanings in etcd.

use bytes::Bytes;
use proto::raftpb;
use raft::eraftpb::{self, MessageType as RaftType};

use crate::conf_change::{self, ConfChangeError};

/// Terms and indexes beyond this are refused, so that adding to one cannot overflow. At a million a second it takes 140,000
/// years to get there.
const MAX_NUMBER: u64 = 1 << 62;

/// Why a message is not for consensus.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A type this version does not know.
    #[error("unknown message type {0}")]
    UnknownType(i32),
    /// A type that only a member itself may produce.
    #[error("{0} is never sent between members")]
    Local(&'static str),
    /// No sender, or ourselves.
    #[error("sender {0:x} cannot be")]
    Sender(u64),
    /// For somebody else.
    #[error("addressed to {to:x}, this is {own:x}")]
    Addressee {
        /// Whom it was for.
        to: u64,
        /// Who we are.
        own: u64,
    },
    /// Every message but forwarded requests carries its sender's term.
    #[error("{0} without a term")]
    NoTerm(&'static str),
    /// A term or index near the end of its range.
    #[error("{what} {value} is out of range")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// An entry type this version does not know.
    #[error("unknown entry type {0}")]
    EntryType(i32),
    /// Entries whose places in the log or terms do not follow on one another.
    #[error("entry {index} of term {term} cannot follow entry {before_index} of term {before_term}")]
    Entries {
        /// Index of the entry.
        index: u64,
        /// Its term.
        term: u64,
        /// Index that comes before it in the message.
        before_index: u64,
        /// Term of that one.
        before_term: u64,
    },
    /// A forwarded request that asks for nothing. It would bring a real etcd down, too.
    #[error("{0} without anything in it")]
    Empty(&'static str),
    /// A proposed membership change that no member could apply.
    #[error(transparent)]
    ConfChange(#[from] ConfChangeError),
    /// A snapshot that cannot be.
    #[error("snapshot of index {index}, term {term} in term {message_term}: {reason}")]
    Snapshot {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// Term of the message.
        message_term: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// An acknowledgement of entries that this leader does not have.
    #[error("acknowledges index {index}, the log ends at {last}")]
    BeyondLog {
        /// What was acknowledged.
        index: u64,
        /// Where our log ends.
        last: u64,
    },
    /// raft-rs would not have it.
    #[error("{0}")]
    Raft(String),
}

/// Checks a peer's message and hands it to raft-rs's types. `own` is this member's ID.
pub(crate) fn from_wire(message: raftpb::Message, own: u64) -> Result<eraftpb::Message, MessageError> {
    let kind = kind(message.r#type.unwrap_or(0))?;
    let name = name(kind);
    let from = message.from.unwrap_or(0);
    let to = message.to.unwrap_or(0);
    if from == 0 || from == own {
        return Err(MessageError::Sender(from));
    }
    if to != own {
        return Err(MessageError::Addressee { to, own });
    }
    let number = |what, value: Option<u64>| match value.unwrap_or(0) {
        value if value > MAX_NUMBER => Err(MessageError::OutOfRange { what, value }),
        value => Ok(value),
    };
    let mut out = eraftpb::Message::default();
    out.set_msg_type(kind);
    out.from = from;
    out.to = to;
    out.term = number("term", message.term)?;
    out.log_term = number("log term", message.log_term)?;
    out.index = number("index", message.index)?;
    out.commit = number("commit index", message.commit)?;
    out.reject = message.reject.unwrap_or(false);
    out.reject_hint = number("reject hint", message.reject_hint)?;
    out.context = message.context.unwrap_or_default();
    match kind {
        RaftType::MsgPropose | RaftType::MsgReadIndex => {
            if message.entries.is_empty() {
                return Err(MessageError::Empty(name));
            }
            // Requests of a follower's clients. The term in which they were sent has no meaning.
            out.term = 0;
        }
        _ if out.term == 0 => return Err(MessageError::NoTerm(name)),
        _ => {}
    }
    match kind {
        RaftType::MsgPropose => out.set_entries(proposed(message.entries)?.into()),
        RaftType::MsgAppend => {
            out.set_entries(appended(message.entries, (out.index, out.log_term), out.term)?.into());
        }
        RaftType::MsgReadIndex | RaftType::MsgReadIndexResp => {
            // The request's context is opaque: 8 bytes in every etcd so far, but theirs to choose.
            let context = message.entries.into_iter().next().and_then(|entry| entry.data).unwrap_or_default();
            if context.is_empty() {
                return Err(MessageError::Empty(name));
            }
            out.set_entries(vec![entry_of(eraftpb::EntryType::EntryNormal, context)].into());
        }
        RaftType::MsgSnapshot => out.set_snapshot(snapshot(message.snapshot.unwrap_or_default(), out.term)?),
        _ => {}
    }
    Ok(out)
}

/// raft-rs's message as peers know it. Zeros are left out, as etcd 3.7 does; every version reads that.
pub(crate) fn to_wire(mut message: eraftpb::Message) -> raftpb::Message {
    let some = |value: u64| (value != 0).then_some(value);
    let kind = message.get_msg_type();
    // raft-rs tells its commit index in acknowledgements and votes; etcd does not, and nobody uses it without the
    // commit term, which is not sent.
    let commit = match kind {
        RaftType::MsgAppend | RaftType::MsgHeartbeat => message.commit,
        _ => 0,
    };
    raftpb::Message {
        r#type: Some(wire_kind(kind) as i32),
        to: some(message.to),
        from: some(message.from),
        term: some(message.term),
        log_term: some(message.log_term),
        index: some(message.index),
        entries: message.take_entries().into_iter().map(entry_to_wire).collect(),
        commit: some(commit),
        vote: None,
        snapshot: message.has_snapshot().then(|| snapshot_to_wire(message.take_snapshot())),
        reject: message.reject.then_some(true),
        reject_hint: some(message.reject_hint),
        context: (!message.context.is_empty()).then(|| message.take_context()),
        responses: Vec::new(),
    }
}

/// An entry that has no place in the log yet. A membership change is kept where raft-rs does not look, in the entry's context:
/// it parses the data of a proposed one with rust-protobuf, and refuses etcd's numbers. Without data it takes it
/// for a change of nothing, and all that it does for proposed changes (one at a time) stays as it is.
pub(crate) fn entry_of(kind: eraftpb::EntryType, data: Bytes) -> eraftpb::Entry {
    let mut entry = eraftpb::Entry::default();
    entry.set_entry_type(kind);
    if kind == eraftpb::EntryType::EntryNormal {
        entry.data = data;
    } else {
        entry.context = data;
    }
    entry
}

/// What [`entry_of`] was given.
pub(crate) fn data_of(entry: &eraftpb::Entry) -> &Bytes {
    if entry.get_entry_type() == eraftpb::EntryType::EntryNormal { &entry.data } else { &entry.context }
}

fn proposed(entries: Vec<raftpb::Entry>) -> Result<Vec<eraftpb::Entry>, MessageError> {
    entries
        .into_iter()
        .map(|entry| {
            let kind = entry_kind(entry.r#type.unwrap_or(0))?;
            let data = entry.data.unwrap_or_default();
            match kind {
                eraftpb::EntryType::EntryNormal => {}
                eraftpb::EntryType::EntryConfChange => drop(conf_change::decode(&data)?),
                // etcd's members stop when they are to apply one.
                eraftpb::EntryType::EntryConfChangeV2 => return Err(MessageError::EntryType(2)),
            }
            Ok(entry_of(kind, data))
        })
        .collect()
}

fn appended(
    entries: Vec<raftpb::Entry>,
    before: (u64, u64),
    leader_term: u64,
) -> Result<Vec<eraftpb::Entry>, MessageError> {
    let (mut index, mut term) = before;
    // raft-rs answers term 0 for places outside the log, so a place with term 0 would seem to match anywhere.
    if (index == 0) != (term == 0) || term > leader_term {
        return Err(MessageError::Entries { index, term, before_index: 0, before_term: 0 });
    }
    entries
        .into_iter()
        .map(|entry| {
            let kind = entry_kind(entry.r#type.unwrap_or(0))?;
            let mut out = entry_of(kind, entry.data.unwrap_or_default());
            out.index = entry.index.unwrap_or(0);
            out.term = entry.term.unwrap_or(0);
            if out.index != index + 1 || out.term < term.max(1) || out.term > leader_term {
                return Err(MessageError::Entries {
                    index: out.index,
                    term: out.term,
                    before_index: index,
                    before_term: term,
                });
            }
            (index, term) = (out.index, out.term);
            Ok(out)
        })
        .collect()
}

fn snapshot(snapshot: raftpb::Snapshot, message_term: u64) -> Result<eraftpb::Snapshot, MessageError> {
    let metadata = snapshot.metadata.unwrap_or_default();
    let index = metadata.index.unwrap_or(0);
    let term = metadata.term.unwrap_or(0);
    let refuse = |reason| Err(MessageError::Snapshot { index, term, message_term, reason });
    if index == 0 || term == 0 {
        return refuse("it is empty");
    }
    if index > MAX_NUMBER || term > message_term {
        return refuse("it is from the future");
    }
    let conf_state = metadata.conf_state.unwrap_or_default();
    if conf_state.voters.is_empty() {
        return refuse("its membership has no voter");
    }
    if let Err(reason) = conf_change::check(&conf_state) {
        return refuse(reason);
    }
    let mut out = eraftpb::Snapshot { data: snapshot.data.unwrap_or_default(), ..eraftpb::Snapshot::default() };
    out.mut_metadata().index = index;
    out.mut_metadata().term = term;
    out.mut_metadata().set_conf_state(conf_change::conf_state_to_raft(&conf_state));
    Ok(out)
}

fn entry_to_wire(entry: eraftpb::Entry) -> raftpb::Entry {
    let kind = entry.get_entry_type() as i32;
    let data = if kind == 0 { entry.data } else { entry.context };
    raftpb::Entry {
        term: (entry.term != 0).then_some(entry.term),
        index: (entry.index != 0).then_some(entry.index),
        r#type: (kind != 0).then_some(kind),
        data: (!data.is_empty()).then_some(data),
    }
}

fn snapshot_to_wire(mut snapshot: eraftpb::Snapshot) -> raftpb::Snapshot {
    let metadata = snapshot.take_metadata();
    raftpb::Snapshot {
        data: (!snapshot.data.is_empty()).then(|| snapshot.take_data()),
        metadata: Some(raftpb::SnapshotMetadata {
            conf_state: Some(conf_change::conf_state_from_raft(metadata.get_conf_state())),
            index: Some(metadata.index),
            term: Some(metadata.term),
        }),
    }
}

fn entry_kind(number: i32) -> Result<eraftpb::EntryType, MessageError> {
    match number {
        0 => Ok(eraftpb::EntryType::EntryNormal),
        1 => Ok(eraftpb::EntryType::EntryConfChange),
        2 => Ok(eraftpb::EntryType::EntryConfChangeV2),
        other => Err(MessageError::EntryType(other)),
    }
}

/// What peers may send. The rest are messages of a member to itself, and must not come from outside.
fn kind(number: i32) -> Result<RaftType, MessageError> {
    use raftpb::MessageType as Wire;
    let Ok(wire) = Wire::try_from(number) else { return Err(MessageError::UnknownType(number)) };
    Ok(match wire {
        Wire::MsgProp => RaftType::MsgPropose,
        Wire::MsgApp => RaftType::MsgAppend,
        Wire::MsgAppResp => RaftType::MsgAppendResponse,
        Wire::MsgVote => RaftType::MsgRequestVote,
        Wire::MsgVoteResp => RaftType::MsgRequestVoteResponse,
        Wire::MsgSnap => RaftType::MsgSnapshot,
        Wire::MsgHeartbeat => RaftType::MsgHeartbeat,
        Wire::MsgHeartbeatResp => RaftType::MsgHeartbeatResponse,
        Wire::MsgTransferLeader => RaftType::MsgTransferLeader,
        Wire::MsgTimeoutNow => RaftType::MsgTimeoutNow,
        Wire::MsgReadIndex => RaftType::MsgReadIndex,
        Wire::MsgReadIndexResp => RaftType::MsgReadIndexResp,
        Wire::MsgPreVote => RaftType::MsgRequestPreVote,
        Wire::MsgPreVoteResp => RaftType::MsgRequestPreVoteResponse,
        Wire::MsgHup
        | Wire::MsgBeat
        | Wire::MsgUnreachable
        | Wire::MsgSnapStatus
        | Wire::MsgCheckQuorum
        | Wire::MsgStorageAppend
        | Wire::MsgStorageAppendResp
        | Wire::MsgStorageApply
        | Wire::MsgStorageApplyResp
        | Wire::MsgForgetLeader => return Err(MessageError::Local(wire.as_str_name())),
    })
}

/// The numbers are the same on both sides; this says so type by type.
fn wire_kind(kind: RaftType) -> raftpb::MessageType {
    use raftpb::MessageType as Wire;
    match kind {
        RaftType::MsgHup => Wire::MsgHup,
        RaftType::MsgBeat => Wire::MsgBeat,
        RaftType::MsgPropose => Wire::MsgProp,
        RaftType::MsgAppend => Wire::MsgApp,
        RaftType::MsgAppendResponse => Wire::MsgAppResp,
        RaftType::MsgRequestVote => Wire::MsgVote,
        RaftType::MsgRequestVoteResponse => Wire::MsgVoteResp,
        RaftType::MsgSnapshot => Wire::MsgSnap,
        RaftType::MsgHeartbeat => Wire::MsgHeartbeat,
        RaftType::MsgHeartbeatResponse => Wire::MsgHeartbeatResp,
        RaftType::MsgUnreachable => Wire::MsgUnreachable,
        RaftType::MsgSnapStatus => Wire::MsgSnapStatus,
        RaftType::MsgCheckQuorum => Wire::MsgCheckQuorum,
        RaftType::MsgTransferLeader => Wire::MsgTransferLeader,
        RaftType::MsgTimeoutNow => Wire::MsgTimeoutNow,
        RaftType::MsgReadIndex => Wire::MsgReadIndex,
        RaftType::MsgReadIndexResp => Wire::MsgReadIndexResp,
        RaftType::MsgRequestPreVote => Wire::MsgPreVote,
        RaftType::MsgRequestPreVoteResponse => Wire::MsgPreVoteResp,
    }
}

fn name(kind: RaftType) -> &'static str {
    wire_kind(kind).as_str_name()
}
