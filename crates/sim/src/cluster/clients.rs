//! What clients ask, and what they are told.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use api::mailbox::{Delivery, Reply};
use api::{Answer, Member};
use bytes::BytesMut;
use prost::Message as _;
use proto::etcdserverpb as pb;
use state::Error;

use super::Cluster;
use crate::agenda::{Event, Happening};
use crate::client::{Op, Outcome};
use crate::ledger::{Violation, violation};
use crate::workload::Ask;

/// How long a client waits for an answer, in microseconds.
const PATIENCE_US: u64 = 10_000_000;

impl Cluster {
    /// A client begins its next operation.
    pub(super) fn ask(&mut self, number: usize) {
        if !self.asking {
            let later = self.now_us + 500_000;
            self.agenda.at(later, Event::Client(number));
            return;
        }
        let ask = self.workload.next(self.ledger.model.revision());
        let client = &mut self.clients[number];
        client.begun += 1;
        self.tally.asked += 1;
        if self.random.chance(150) {
            client.seat = self.random.below(self.seats.len() as u64) as usize;
        }
        let tag = format!("c{number}-{}", client.begun);
        let op = Op { client: number, number: client.begun, tag, ask, floor: self.floor, asked_us: self.now_us };
        client.waiting = Some(op.clone());
        let seat = client.seat;
        let begun = client.begun;
        let wait = self.random.around(200);
        self.plan(seat, wait, Happening::Request(op));
        self.agenda.at(self.now_us + PATIENCE_US, Event::Patience(number, begun));
    }

    pub(super) fn request_arrives(&mut self, at: usize, op: Op) {
        let Some(running) = &mut self.seats[at].running else { return };
        let ticket = running.next_ticket;
        running.next_ticket += 1;
        let reply = Reply::new(Arc::clone(&running.mailbox), ticket);
        let api = Arc::clone(&running.api);
        let mut now = None;
        match &op.ask {
            Ask::Write(request) => {
                let mut request = (**request).clone();
                // A member passes on who asks. Nobody is logged in, so it says nothing to the state machine.
                request.header = Some(pb::RequestHeader { username: op.tag.clone(), ..Default::default() });
                api.propose(request, reply);
                api.submit();
            }
            Ask::Range(range) if range.serializable || api.read_is_local() => now = Some(read(&api, &op.ask)),
            Ask::ReadTxn(txn) if state::Reader::is_serializable(txn) || api.read_is_local() => {
                now = Some(read(&api, &op.ask));
            }
            Ask::Range(_) | Ask::ReadTxn(_) => {
                if api.is_learner() {
                    now = Some(Outcome::Unsent);
                } else {
                    api.read_index(reply);
                }
            }
            Ask::Renew(id) => api.lease_renew(*id, reply),
        }
        match now {
            Some(outcome) => self.reply(&op, outcome),
            None => drop(running.pending.insert(ticket, op)),
        }
    }

    fn reply(&mut self, op: &Op, outcome: Outcome) {
        let way = self.random.around(200);
        self.agenda.at(self.now_us + way, Event::Answer(op.client, op.number, outcome));
    }

    /// Passes on what a member has answered. Whether there was anything.
    pub(super) fn deliveries(&mut self, at: usize) -> Result<bool, Violation> {
        let Some(running) = &mut self.seats[at].running else { return Ok(false) };
        let mut deliveries: Vec<Delivery> = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        if running.mailbox.poll_take(&mut deliveries, &mut context) == Poll::Pending {
            return Ok(false);
        }
        let api = Arc::clone(&running.api);
        let mut answers = Vec::new();
        for Delivery { ticket, outcome } in deliveries {
            let Some(op) = running.pending.remove(&ticket) else { continue };
            let outcome = match (&op.ask, outcome) {
                (Ask::Write(_), Ok(Answer::Applied(response))) => Outcome::Wrote(Ok(response)),
                (Ask::Write(_), Err(error)) => Outcome::Wrote(Err(error)),
                (Ask::Range(_) | Ask::ReadTxn(_), Ok(Answer::Done)) => read(&api, &op.ask),
                (Ask::Range(_), Err(error)) => Outcome::Ranged(Err(error)),
                (Ask::ReadTxn(_), Err(error)) => Outcome::ReadTxn(Err(error)),
                (Ask::Renew(_), Ok(Answer::Renewed(ttl))) => Outcome::Renewed(Ok(ttl)),
                (Ask::Renew(_), Err(error)) => Outcome::Renewed(Err(error)),
                (ask, Ok(other)) => return violation!("{ask:?} was answered with {other:?}"),
            };
            answers.push((op, outcome));
        }
        // A member without power answers nobody.
        if !self.seats[at].disk.is_off() {
            for (op, outcome) in answers {
                self.reply(&op, outcome);
            }
        }
        Ok(true)
    }

    pub(super) fn answered(&mut self, number: usize, op: u64, outcome: Outcome) -> Result<(), Violation> {
        let client = &mut self.clients[number];
        if client.waiting.as_ref().is_none_or(|waiting| waiting.number != op) {
            return Ok(());
        }
        let Some(op) = client.waiting.take() else { return Ok(()) };
        self.trace.say(self.now_us, format_args!("{} {:?}: {outcome:?}", op.tag, op.ask));
        let known = self.check(&op, &outcome)?;
        self.floor = self.floor.max(known);
        match outcome {
            Outcome::Lost => self.tally.lost += 1,
            _ => self.tally.answered += 1,
        }
        if matches!(outcome, Outcome::Unsent | Outcome::Lost) || self.random.chance(30) {
            self.clients[number].seat = self.random.below(self.seats.len() as u64) as usize;
        }
        let pause = self.random.around(self.settings.pause_us);
        self.agenda.at(self.now_us + pause, Event::Client(number));
        Ok(())
    }
}

/// Answers a read from what a member has applied, as its API does.
fn read(api: &Arc<dyn Member>, ask: &Ask) -> Outcome {
    match ask {
        Ask::Range(request) => {
            let mut out = BytesMut::new();
            let header = pb::ResponseHeader::default();
            let read = api.state().range_encoded(request, &header, &mut out);
            let decode = || pb::RangeResponse::decode(out.freeze()).map_err(|error| Error::Internal(error.to_string()));
            Outcome::Ranged(read.and_then(|()| decode()))
        }
        Ask::ReadTxn(request) => Outcome::ReadTxn(api.state().txn_read_only(request)),
        Ask::Write(_) | Ask::Renew(_) => Outcome::Unsent,
    }
}
