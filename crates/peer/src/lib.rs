//! Members talking to members: etcd's rafthttp, in both directions, as etcd 3.4 to 3.7 speak it.
//!
//! A member serves its peers over HTTP/1.1 and dials them. Raft messages travel in one of four ways:
//!
//! | way | who dials | what |
//! |---|---|---|
//! | stream `msgapp` | the receiver | appends, in a framing that leaves out what both sides know ([`frame`]) |
//! | stream `message` | the receiver | everything else, and appends while the other stream is away |
//! | pipeline | the sender | one `POST /raft` per message, while a stream is away; at most four at once |
//! | snapshot | the sender | one `POST /raft/snapshot`: the message, then a bbolt file |
//!
//! Everything runs on one thread named `peer` ([`Transport`]). Whoever sends only adds to an inbox; the thread takes all
//! that gathered there, and each connection writes all that gathered for it at once. The other direction is
//! the trait [`Local`], through which this crate reaches the member that it belongs to.
//!
//! What holds:
//! - [`Transport::send`] never blocks. A queue that is full drops, and says so by [`Local::report_unreachable`]; raft
//!   sends again.
//! - Nothing that a peer sends allocates more than what has arrived, and what may arrive is limited.
//! - A peer that stops in the middle of anything is given up after seconds.
//!
//! Absent: no decision of consensus is taken here, and no message is changed on its way.

mod appends;
mod calls;
mod chunked;
mod dial;
pub mod frame;
mod headers;
mod hub;
mod io;
mod local;
mod outlet;
mod pipeline;
mod probe;
mod queue;
mod serve;
mod snapshot;
mod transport;
mod url;

pub use appends::{AppendLatency, AppendRate};
pub use calls::{CallError, Caller, HashKv, Member, Members, Version, blocking};
pub use io::Dialer;
pub use local::{BoxFuture, HashError, LeaseError, Local, PromoteError, RemainingLease, StepError};
pub use transport::{Config, Listener, PeerStatus, Transport};
