//! What the API needs from the member behind it.
//!
//! The trait is the seam between *speaking* (this crate) and *driving* (crate `server`). Whatever takes time is asked
//! with a [`Reply`] and answered later, from any thread; whatever can be answered at once returns at once and must be
//! quick, because it is called on the thread that serves thousands of other connections.

use std::time::Duration;

use bytes::Bytes;
use proto::etcdserverpb::InternalRaftRequest;
use proto::v2pb;
use state::Error;

use crate::mailbox::Reply;
use crate::v2::{FollowerStats, SelfStats};

/// What comes back through a [`Reply`].
pub type Outcome = Result<Answer, Error>;

/// A successful answer to one of the [`Member`] calls that take a [`Reply`].
#[derive(Debug)]
pub enum Answer {
    /// [`Member::propose`]: the entry was applied on this member, with this result. An entry that was refused when
    /// applied is an `Err` of the outcome.
    Applied(state::Response),
    /// [`Member::read_index`]: the read may run now. Also the answer of calls that only say "done".
    Done,
    /// [`Member::lease_renew`]: the lease's TTL in seconds; 0 if there is no such lease (any more).
    Renewed(i64),
    /// [`Member::lease_time_to_live`].
    TimeToLive(TimeToLive),
    /// [`Member::change_membership`]: what the membership is after the change.
    Members {
        /// The member that was added, if the change was an addition.
        added: Option<state::Member>,
        /// All members, ordered by ID.
        members: Vec<state::Member>,
    },
    /// [`Member::downgrade`]: the cluster version, `major.minor`.
    Version(String),
}

/// What is known of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeToLive {
    /// Seconds that remain, rounded down; -1 if there is no such lease.
    pub ttl: i64,
    /// The TTL that was granted, in seconds.
    pub granted_ttl: i64,
    /// The attached keys, if they were asked for.
    pub keys: Vec<Bytes>,
}

/// Who answers: goes into every response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's ID.
    pub cluster_id: u64,
    /// This member's ID.
    pub member_id: u64,
}

/// Limits on what a client may ask, from the command line.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `--max-request-bytes`: bound on an encoded log request. A gRPC message may be 512 KiB larger.
    pub max_request_bytes: usize,
    /// `--max-txn-ops`: bound on the operations of a transaction.
    pub max_txn_ops: usize,
    /// `--max-concurrent-streams`: HTTP/2 streams a connection may have open.
    pub max_concurrent_streams: u32,
    /// How long a linearizable read, or any request without a deadline of its own, waits for the cluster, in
    /// milliseconds: 5 s plus two election timeouts.
    pub request_timeout_ms: u64,
    /// The election timeout in milliseconds; a stream that requires a leader is ended after three of them without one.
    pub election_timeout_ms: u64,
    /// `--watch-progress-notify-interval` in milliseconds.
    pub watch_progress_interval_ms: u64,
    /// `--grpc-keepalive-interval` in milliseconds: how often a quiet connection is pinged; 0 = never.
    pub keepalive_interval_ms: u64,
    /// `--grpc-keepalive-timeout` in milliseconds: how long the answer to such a ping may take.
    pub keepalive_timeout_ms: u64,
    /// `--warning-apply-duration`: reads that take longer are logged.
    pub warning_apply: Duration,
    /// `--warning-unary-request-duration`: calls that take longer are logged.
    pub warning_unary_request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_request_bytes: 1_572_864,
            max_txn_ops: 128,
            max_concurrent_streams: u32::MAX,
            request_timeout_ms: 7_000,
            election_timeout_ms: 1_000,
            watch_progress_interval_ms: 600_000,
            keepalive_interval_ms: 7_200_000,
            keepalive_timeout_ms: 20_000,
            warning_apply: Duration::from_millis(100),
            warning_unary_request: Duration::from_millis(300),
        }
    }
}

/// The member as `Maintenance.Status`, `/health` and the metrics show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The version reported on the wire.
    pub version: String,
    /// Agreed version of the cluster, `X.Y.0`; empty while undecided.
    pub cluster_version: String,
    /// Version of the storage format, `X.Y.0`; empty while unknown.
    pub storage_version: String,
    /// ID of the leader; 0 if there is none.
    pub leader: u64,
    /// Current raft term.
    pub term: u64,
    /// Committed raft index.
    pub raft_index: u64,
    /// Applied raft index.
    pub applied_index: u64,
    /// Whether this member is a learner.
    pub is_learner: bool,
    /// Size of the store's files in bytes.
    pub db_size: i64,
    /// Size of what is reachable in them in bytes.
    pub db_size_in_use: i64,
    /// `--quota-backend-bytes`; what applies, not what was typed.
    pub quota_bytes: i64,
    /// Whether a downgrade is under way, and to which version.
    pub downgrade_target: Option<String>,
}

/// How much a member tells of itself: this and what weighs more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// The traffic with another member since this one was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// The other member.
    pub id: u64,
    /// Whether messages get through at this moment.
    pub active: bool,
    /// How often they have ceased to.
    pub disconnects: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Messages that could not be sent.
    pub send_failures: u64,
    /// Streams from it that broke, and messages that could not be read.
    pub receive_failures: u64,
}

/// A change to the membership, as the Cluster service asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Adds a member.
    Add {
        /// Where its peers find it.
        peer_urls: Vec<String>,
        /// Whether it joins without a vote.
        is_learner: bool,
    },
    /// Removes a member.
    Remove {
        /// Which.
        id: u64,
    },
    /// Replaces a member's peer URLs.
    Update {
        /// Which.
        id: u64,
        /// Its new URLs.
        peer_urls: Vec<String>,
    },
    /// Gives a learner its vote.
    Promote {
        /// Which.
        id: u64,
    },
}

/// A database image on its way to a client.
pub trait SnapshotSource: Send {
    /// Size of the whole image in bytes, fixed when the snapshot was taken.
    fn total_bytes(&self) -> u64;
    /// The next piece of the image, of any size; `None` after the last. May read from disk, so it is called on a
    /// blocking thread.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, Error>;
}

/// The member that answers the clients.
///
/// Every `reply` must be sent exactly once; one that is dropped unsent answers [`Error::Stopped`].
pub trait Member: Send + Sync + 'static {
    /// Proposes a log entry; the caller leaves `header` empty and the member gives it its ID. Refused at once, through
    /// the reply, when there is no leader, the quota is used up, the request is too large or too much is waiting to be
    /// applied. Otherwise answered with [`Answer::Applied`] once *this* member has applied it, or with
    /// [`Error::Timeout`] and its kin. A physical compaction is answered when its work is done.
    fn propose(&self, request: InternalRaftRequest, reply: Reply);

    /// Ends a worker's turn: what it has proposed since the last call belongs together. A member may leave proposals
    /// lying until then.
    fn submit(&self) {}

    /// A linearizable read barrier: answered with [`Answer::Done`] once this member has applied everything that was
    /// committed in the cluster at the moment of the call.
    fn read_index(&self, reply: Reply);

    /// Whether a linearizable read needs no barrier at this moment: this member is the leader and the only voter, has
    /// applied an entry of its own term, and so has answered no write that it has not applied.
    fn read_is_local(&self) -> bool;

    /// What this member has applied.
    fn state(&self) -> &state::Reader;

    /// Everything that `Status` shows; called rarely.
    fn status(&self) -> Status;

    /// The traffic with each other member, for the metrics; called when they are scraped.
    fn peer_traffic(&self) -> Vec<PeerTraffic> {
        Vec::new()
    }

    /// This member's and its cluster's ID.
    fn identity(&self) -> Identity;

    /// Current raft term; called for every response, so an atomic.
    fn term(&self) -> u64;

    /// ID of the leader, 0 if there is none; an atomic.
    fn leader(&self) -> u64;

    /// Whether this member is a learner; an atomic.
    fn is_learner(&self) -> bool;

    /// A fresh request ID (the member's ID, a timestamp and a counter); lease IDs picked by the server come from here.
    fn next_id(&self) -> u64;

    /// Renews a lease, on the leader (forwarded to it if need be): [`Answer::Renewed`].
    fn lease_renew(&self, id: i64, reply: Reply);

    /// What is known of a lease, from the leader: [`Answer::TimeToLive`].
    fn lease_time_to_live(&self, id: i64, keys: bool, reply: Reply);

    /// Monotonic milliseconds, the clock that the state's leases and watch progress count by.
    fn now_ms(&self) -> u64;

    /// The limits in force.
    fn limits(&self) -> &Limits;

    /// Takes a snapshot of the state as a bbolt image. The trailing checksum of the RPC is added by the API.
    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, Error>;

    /// Answers [`Answer::Done`] when the store has given back what space it can.
    fn defragment(&self, reply: Reply);

    /// Hands the leadership to another voter: [`Answer::Done`]. Called on the leader only. Without a transfer of its own
    /// a member can do what a cluster of one needs: keep the leadership, or refuse whom it does not know.
    fn move_leader(&self, target: u64, reply: Reply) {
        reply.send(match self.state().member(target) {
            Some(member) if member.is_learner => Err(Error::BadLeaderTransferee),
            None => Err(Error::BadLeaderTransferee),
            Some(_) if target == self.identity().member_id => Ok(Answer::Done),
            Some(_) => Err(Error::Unimplemented("MoveLeader".into())),
        });
    }

    /// Changes the membership: [`Answer::Members`].
    fn change_membership(&self, change: MemberChange, reply: Reply) {
        let _ = change;
        reply.send(Err(Error::Unimplemented("membership changes".into())));
    }

    /// Validates, begins or ends a downgrade: [`Answer::Version`].
    fn downgrade(&self, action: i32, version: String, reply: Reply) {
        let _ = (action, version);
        reply.send(Err(Error::Unimplemented("Downgrade".into())));
    }

    /// Proposes a request of the v2 API; the member gives it its ID. Answered like [`Member::propose`], with
    /// [`state::Response::V2`].
    fn propose_v2(&self, request: v2pb::Request, reply: Reply) {
        let _ = request;
        reply.send(Err(Error::Unimplemented("the v2 API".into())));
    }

    /// Applied raft index.
    fn applied_index(&self) -> u64 {
        self.status().applied_index
    }

    /// Committed raft index; called for every answer of the v2 API.
    fn raft_index(&self) -> u64 {
        self.status().raft_index
    }

    /// Changes what is logged from now on.
    fn set_log_level(&self, level: LogLevel) {
        let _ = level;
    }

    /// What `/v2/stats/self` shows.
    fn self_stats(&self) -> SelfStats {
        SelfStats::default()
    }

    /// What `/v2/stats/leader` shows; asked on the leader only.
    fn follower_stats(&self) -> Vec<FollowerStats> {
        Vec::new()
    }

    /// The CRC-32C over the whole database as `Maintenance.Hash` defines it.
    fn hash(&self) -> Result<u32, Error> {
        Err(Error::Unimplemented("Hash".into()))
    }
}
