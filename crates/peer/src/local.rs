//! What this crate wants from the member that it belongs to.

use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::time::Duration;

use proto::raftpb::Message;

/// A future whose type nobody needs to name.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why a message from a peer was not taken. All of them are answered with the same status and text, as etcd does.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The sender was removed from the cluster.
    #[error("cannot process message from removed member")]
    Removed,
    /// This member is stopping.
    #[error("server stopped")]
    Stopped,
    /// Raft refused it.
    #[error("{0}")]
    Refused(String),
}

/// Why a forwarded lease request failed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is no such lease. Answered with 404.
    #[error("lease not found")]
    NotFound,
    /// This member does not lead. Answered with 400.
    #[error("not a primary lessor")]
    NotPrimary,
    /// This member did not catch up in time with what it knows to be committed. Answered with 408.
    #[error("waiting for node to catch up its applied index has timed out")]
    Timeout,
    /// Anything else. Answered with 500.
    #[error("{0}")]
    Other(String),
}

/// Why a learner was not promoted.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// There is no such member. Answered with 404.
    #[error("membership: ID not found")]
    NotFound,
    /// The member votes already. Answered with 412.
    #[error("membership: can only promote a learner member")]
    NotLearner,
    /// The learner is too far behind. Answered with 412.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    NotReady,
    /// Anything else. etcd answers with 500 and a JSON body that does not say what it was.
    #[error("{0}")]
    Other(String),
}

/// Why a hash was not computed. Answered with 400, and the last one with 500.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The revision is gone.
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    /// The revision is yet to come.
    #[error("mvcc: required revision is a future revision")]
    Future,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What a leader knows of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemainingLease {
    /// The lease.
    pub id: i64,
    /// Seconds that remain.
    pub ttl: i64,
    /// Seconds that were granted.
    pub granted_ttl: i64,
    /// The keys attached to it, if they were asked for.
    pub keys: Vec<bytes::Bytes>,
}

/// The member that a [`crate::Transport`] belongs to.
///
/// Every method but [`Local::save_snapshot`] is called on the peer thread (and `report_unreachable` also from within
/// [`crate::Transport::send`]), so it must return at once: hand the matter over to a queue, or answer
/// from what is in memory. What takes longer returns a future.
pub trait Local: Send + Sync + 'static {
    /// Takes a message from a peer. It is addressed to this member and of a type that travels.
    fn step(&self, message: Message) -> Result<(), StepError>;

    /// Takes all messages that arrived on a stream with one read, in order, and leaves `messages` empty. Refusals are
    /// not reported to the sender: a stream has no way to say so. Worth overriding where waking
    /// another thread has a price.
    fn step_all(&self, messages: &mut Vec<Message>) {
        for message in messages.drain(..) {
            if let Err(error) = self.step(message) {
                tracing::debug!(%error, "a message from a peer was not taken");
            }
        }
    }

    /// A message to this peer was dropped or may have been lost: raft should probe before it sends more.
    fn report_unreachable(&self, id: u64);

    /// A snapshot was delivered, or was not.
    fn report_snapshot(&self, id: u64, delivered: bool);

    /// A stream from this peer ended and nobody listens at its addresses any more: its process is very likely dead. Told
    /// within milliseconds, once per loss. A frozen or unreachable host is never reported this way.
    fn peer_gone(&self, id: u64);

    /// The peer `by` says that this member was removed from the cluster. May be told more than once.
    fn removed(&self, by: u64);

    /// Was this member removed from the cluster (as far as this member has applied)?
    fn is_removed(&self, id: u64) -> bool;

    /// The body of `GET /members`: a JSON array, without a newline at its end.
    fn members(&self) -> Vec<u8>;

    /// The body of `GET /version`: JSON.
    fn version(&self) -> Vec<u8>;

    /// Saves the bbolt file that comes with a snapshot message, durably. Called on a thread that may block; reading
    /// fails when the sender goes away or stalls, and then nothing may remain. [`Local::step`] follows with the message.
    fn save_snapshot(&self, message: &Message, body: &mut dyn Read) -> Result<(), String>;

    /// Keeps a lease alive on behalf of a follower; gives the TTL in seconds.
    fn renew_lease(&self, id: i64) -> BoxFuture<Result<i64, LeaseError>>;

    /// What remains of a lease, and which keys it has if `keys`.
    fn remaining_lease(&self, id: i64, keys: bool) -> BoxFuture<Result<RemainingLease, LeaseError>>;

    /// Promotes a learner on behalf of a follower; gives the members as [`Local::members`] does.
    fn promote(&self, id: u64) -> BoxFuture<Result<Vec<u8>, PromoteError>>;

    /// The hash of all keys at a revision (0 = the newest).
    fn hash_kv(&self, revision: i64) -> BoxFuture<Result<crate::HashKv, HashError>>;

    /// What users had in the v2 tree after a log entry, as a number that differs if anything of it does; none if this
    /// member cannot tell. etcd does not ask that.
    fn v2_digest(&self, log_index: u64) -> BoxFuture<Option<u64>>;

    /// Is a downgrade of the cluster under way? Answered after a linearizable check, as etcd does.
    fn downgrade_enabled(&self) -> BoxFuture<Result<bool, String>>;

    /// A probe of this peer came back after so long.
    fn round_trip(&self, id: u64, took: Duration) {
        let _ = (id, took);
    }
}
