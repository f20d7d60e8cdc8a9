//! What happens next.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::raftpb::Message;
use state::watch::{Output, StreamId};

use crate::client::{Op, Outcome};
use crate::cluster::{Told, Whim};
use crate::host::Question;

/// Something that happens to a process. It is lost if the process has ended meanwhile, and waits while it is frozen.
pub enum Happening {
    /// A heartbeat interval has passed.
    Tick,
    /// The log's thread gets its turn.
    Log,
    /// The apply thread gets its turn.
    Apply,
    /// The upkeep thread gets its turn.
    Upkeep,
    /// The thread that zeroes segments gets its turn.
    Spare,
    /// It is not frozen any more.
    Thaw,
    /// Somebody may have slept long enough.
    Timers,
    /// Work that takes long is done.
    Work(Box<dyn FnOnce() + Send>),
    /// A message arrives.
    Message {
        /// From this seat.
        from: usize,
        /// Encoded.
        bytes: Bytes,
    },
    /// A snapshot arrives.
    Snapshot {
        /// From this seat.
        from: usize,
        /// The message.
        message: Box<Message>,
        /// Its file.
        file: Vec<Bytes>,
    },
    /// What became of a snapshot that was sent.
    SnapshotEnded {
        /// To this member.
        to: u64,
        /// Whether it arrived.
        delivered: bool,
    },
    /// A message to this member was lost, and that was noticed.
    Unreachable(u64),
    /// This member's process is gone.
    Gone(u64),
    /// This member says that the receiver was removed.
    Removed(u64),
    /// Another member asks.
    Question {
        /// From this seat, in this life of its process.
        from: (usize, u64),
        /// What.
        question: Question,
    },
    /// The answer to a question of this process arrives; the call hands it to whoever waits.
    Answer(Box<dyn FnOnce() + Send>),
    /// A client asks.
    Request(Op),
    /// A client wants something of its stream of watches.
    Watch {
        /// Which client.
        client: usize,
        /// Its stream.
        stream: StreamId,
        /// What.
        whim: Whim,
    },
    /// A client wants to be told of the next change in the v2 tree.
    Wait {
        /// Which client.
        client: usize,
        /// Which of its requests.
        request: u64,
    },
    /// The task that feeds watchers gets its turn.
    Watchers,
}

/// Something that happens.
pub enum Event {
    /// To a process: its seat, and which of its lives.
    At(usize, u64, Happening),
    /// A client makes up its mind.
    Client(usize),
    /// A client gets an answer to its operation of this number.
    Answer(usize, u64, Outcome),
    /// A client has waited long enough.
    Patience(usize, u64),
    /// A client of watches begins its next stream.
    Watch(usize),
    /// A client of watches makes up its mind what to do with its stream.
    Whim(usize, StreamId),
    /// A client of watches is shown something on its stream.
    Watched(usize, StreamId, Vec<Output>),
    /// A client has waited long enough for its request about the v2 tree.
    WaitOver(usize, u64),
    /// A client is told of a change in the v2 tree.
    Waited(usize, u64, Told),
    /// Trouble.
    Trouble,
    /// The trouble with this number is over.
    Over(u64),
    /// The leader is told to hand over.
    HandOver,
    /// Something happens to a machine because its member leads.
    Hunted(usize),
    /// Whoever runs the cluster looks after it.
    Operator,
    /// A machine is switched on again.
    Restart(usize),
}

/// Everything that is going to happen, in order.
#[derive(Default)]
pub struct Agenda {
    events: BTreeMap<(u64, u64), Event>,
    next: u64,
}

impl Agenda {
    /// Plans something; what is planned for the same moment happens in the order in which it was planned.
    pub fn at(&mut self, time_us: u64, event: Event) {
        self.events.insert((time_us, self.next), event);
        self.next += 1;
    }

    /// The next thing to happen, and when.
    pub fn pop(&mut self) -> Option<(u64, Event)> {
        self.events.pop_first().map(|((time_us, _), event)| (time_us, event))
    }
}
