//! What members say to each other, and how it gets there.

use std::sync::Arc;

use bytes::Bytes;
use disk::mem::Fault;
use peer::{CallError, LeaseError, PromoteError};
use prost::Message as _;
use proto::raftpb::{Message, MessageType};

use super::{Cluster, Running, url_of};
use crate::agenda::{Event, Happening};
use crate::host::{Outgoing, Question};
use crate::ledger::Violation;
use crate::trace::digest;

impl Cluster {
    pub(super) fn seat_of(&self, id: u64) -> Option<usize> {
        self.seats.iter().position(|seat| seat.id == id && !seat.retired)
    }

    pub(super) fn send(&mut self, from: usize, outgoing: Outgoing) -> Result<(), Violation> {
        let now_us = self.now_us;
        match outgoing {
            Outgoing::Message { to, bytes, vote, once } => {
                if let Some(term) = vote {
                    let asks = Message::decode(bytes.clone()).is_ok_and(|m| m.r#type() == MessageType::MsgVote);
                    let voter = self.seats[from].id;
                    self.ledger.votes(voter, term, if asks { voter } else { to })?;
                }
                let knows = self.seats[from].running.as_ref().is_some_and(|running| running.machine.knows(to));
                let Some(seat) = self.seat_of(to).filter(|_| knows) else { return Ok(()) };
                self.trace.note(digest(&bytes));
                let mut arrivals = self.network.send(now_us, from, seat, bytes.len());
                if once {
                    arrivals.truncate(1);
                }
                if arrivals.is_empty() && self.random.chance(300) {
                    self.plan(from, 1_000, Happening::Unreachable(to));
                }
                let life = self.seats[seat].life;
                for when in arrivals {
                    let message = Happening::Message { from, bytes: bytes.clone() };
                    self.agenda.at(when, Event::At(seat, life, message));
                }
            }
            Outgoing::Snapshot { message, file } => {
                let to = message.to.unwrap_or(0);
                let arrival = match (self.seat_of(to), file) {
                    (Some(seat), Ok(file)) => {
                        let bytes = file.iter().map(Bytes::len).sum();
                        self.network.send(now_us, from, seat, bytes).first().map(|when| (seat, *when, file))
                    }
                    _ => None,
                };
                match arrival {
                    Some((seat, when, file)) => {
                        let life = self.seats[seat].life;
                        let when = when + self.random.around(30_000);
                        self.agenda.at(when, Event::At(seat, life, Happening::Snapshot { from, message, file }));
                    }
                    None => self.plan(from, 2_000, Happening::SnapshotEnded { to, delivered: false }),
                }
            }
            Outgoing::Answer { to: (seat, life), deliver } => {
                if let Some(when) = self.network.send(now_us, from, seat, 200).first() {
                    self.agenda.at(*when, Event::At(seat, life, Happening::Answer(deliver)));
                }
            }
            Outgoing::Question { url, question } => {
                let asker = (from, self.seats[from].life);
                let seat = self.seats.iter().position(|seat| url_of(&seat.flags.name) == url);
                let arrival = seat.and_then(|seat| Some((seat, *self.network.send(now_us, from, seat, 200).first()?)));
                // An answer that came first is the one that counts.
                let gives_up = question.clone();
                let fail = Happening::Answer(Box::new(move || gives_up.fail()));
                self.plan(from, 5_000_000, fail);
                if let Some((seat, when)) = arrival {
                    let life = self.seats[seat].life;
                    self.agenda.at(when, Event::At(seat, life, Happening::Question { from: asker, question }));
                }
            }
        }
        Ok(())
    }

    pub(super) fn snapshot_arrives(&mut self, at: usize, from: usize, message: Message, file: &[Bytes]) {
        if !self.is_calm && self.random.chance(150) {
            // Somewhere between the first byte and the moment when it is in force.
            let after = self.random.below(30) as usize;
            self.inject(at, Fault::PowerFails { after });
        }
        let Some(running) = &self.seats[at].running else { return };
        let to = message.to.unwrap_or(0);
        let whole: Vec<u8> = file.concat();
        let delivered = to == running.api.identity().member_id
            && running.link.save_snapshot(&message, &mut whole.as_slice()).is_ok()
            && running.link.step(message).is_ok();
        self.tally.snapshots += u64::from(delivered);
        self.trace.say(self.now_us, format_args!("m{at} gets a snapshot of {} bytes from m{from}", whole.len()));
        self.plan(from, 1_000, Happening::SnapshotEnded { to, delivered });
    }

    /// Answers a question on this seat's tasks; each answer goes back over the network.
    pub(super) fn question_arrives(&mut self, at: usize, asker: (usize, u64), question: Question) {
        let Some(running) = &mut self.seats[at].running else { return };
        let machine = Arc::clone(&running.machine);
        let link = Arc::clone(&running.link);
        match question {
            Question::Version(slot) => machine.answer(asker, slot, Ok(version_of(running))),
            Question::Renew(id, slot) => running.tasks.begin(Box::pin(async move {
                machine.answer(asker, slot, link.renew_lease(id).await.map_err(refused_lease));
            })),
            Question::Remaining(id, keys, slot) => running.tasks.begin(Box::pin(async move {
                machine.answer(asker, slot, link.remaining_lease(id, keys).await.map_err(refused_lease));
            })),
            Question::Promote(id, slot) => running.tasks.begin(Box::pin(async move {
                // Whoever asked looks at the membership itself.
                machine.answer(asker, slot, link.promote(id).await.map(|_| Vec::new()).map_err(refused_promotion));
            })),
        }
    }
}

pub(super) fn version_of(running: &Running) -> peer::Version {
    let status = running.api.status();
    let cluster = if status.cluster_version.is_empty() { "not_decided".into() } else { status.cluster_version };
    peer::Version { server: status.version, cluster, storage: None }
}

fn refused_lease(error: LeaseError) -> CallError {
    let status = match error {
        LeaseError::NotFound => 404,
        LeaseError::NotPrimary => 400,
        LeaseError::Timeout => 408,
        LeaseError::Other(_) => 500,
    };
    CallError::Refused { status, text: error.to_string() }
}

fn refused_promotion(error: PromoteError) -> CallError {
    let status = match error {
        PromoteError::NotFound => 404,
        PromoteError::NotLearner | PromoteError::NotReady => 412,
        PromoteError::Other(_) => 500,
    };
    CallError::Refused { status, text: error.to_string() }
}
