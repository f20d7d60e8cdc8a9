//! What clients ask, and what they are told.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use api::mailbox::{Delivery, Reply};
use api::{Answer, Member};
use bytes::BytesMut;
use prost::Message as _;
use proto::etcdserverpb as pb;
use state::Error;

use super::{Cluster, Running};
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
        let ask = match &mut self.clients[number].locker {
            Some(locker) => locker.next(&mut self.workload),
            None => self.workload.next(self.ledger.model.revision()),
        };
        if self.random.chance(150) {
            self.clients[number].seat = self.any_machine();
        }
        let client = &mut self.clients[number];
        client.begun += 1;
        self.tally.asked += 1;
        if self.without.has_request(self.tally.asked - 1) {
            let pause = self.random.around(self.settings.pause_us);
            return self.later(pause, Event::Client(number));
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

    pub(super) fn request_arrives(&mut self, at: usize, op: Op) -> Result<(), Violation> {
        let Some(running) = &mut self.seats[at].running else { return Ok(()) };
        let ticket = running.next_ticket;
        running.next_ticket += 1;
        let reply = Reply::new(Arc::clone(&running.mailbox), ticket);
        let api = Arc::clone(&running.api);
        let mut now = None;
        match &op.ask {
            // A learner's door is closed to everything else.
            Ask::Range(range) if !range.serializable && api.is_learner() => now = Some(Outcome::Unsent),
            Ask::Write(_) | Ask::V2(_) | Ask::ReadTxn(_) | Ask::Renew(_) if api.is_learner() => {
                now = Some(Outcome::Unsent)
            }
            Ask::Write(request) => {
                let mut request = (**request).clone();
                // A member passes on who asks. Nobody is logged in, so it says nothing to the state machine.
                request.header = Some(pb::RequestHeader { username: op.tag.clone(), ..Default::default() });
                api.propose(request, reply);
                api.submit();
            }
            Ask::V2(request) => {
                let mut request = (**request).clone();
                // What the API does: it reads the clock, and a TTL becomes a moment.
                let now_ns = running.machine.wall_ns();
                request.time = Some(now_ns);
                request.expiration = request.expiration.map(|ttl_ns| ttl_ns + now_ns);
                // Of no meaning to a write; here it says who asks.
                request.since = Some(((op.client as u64 + 1) << 32) + op.number);
                api.propose_v2(request, reply);
                api.submit();
            }
            Ask::Range(range) if range.serializable || api.read_is_local() => now = Some(read(&api, &op.ask)),
            Ask::ReadTxn(txn) if state::Reader::is_serializable(txn) || api.read_is_local() => {
                now = Some(read(&api, &op.ask));
            }
            Ask::Range(_) | Ask::ReadTxn(_) => api.read_index(reply),
            Ask::Renew(id) => api.lease_renew(*id, reply),
        }
        match now {
            Some(outcome) => {
                running.has_read(at, &outcome)?;
                self.reply(&op, outcome);
            }
            None => drop(running.pending.insert(ticket, op)),
        }
        Ok(())
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
        // A member that stops answers all at once, in no order.
        deliveries.sort_by_key(|delivery| delivery.ticket);
        let api = Arc::clone(&running.api);
        let mut answers = Vec::new();
        for Delivery { ticket, outcome, .. } in deliveries {
            if running.orders.remove(&ticket) {
                match outcome {
                    // One that was forwarded is answered without the list.
                    Ok(Answer::Members { members, .. }) if !members.is_empty() => {
                        self.ledger.membership.told(&members)?;
                    }
                    other => self.trace.say(self.now_us, format_args!("the operator is told {other:?}")),
                }
                continue;
            }
            let Some(op) = running.pending.remove(&ticket) else { continue };
            if matches!(op.ask, Ask::Renew(_)) {
                self.renewed_us = self.now_us;
            }
            let outcome = match (&op.ask, outcome) {
                (Ask::Write(_) | Ask::V2(_), Ok(Answer::Applied(response))) => Outcome::Wrote(Ok(response)),
                (Ask::Write(_) | Ask::V2(_), Err(error)) => Outcome::Wrote(Err(error)),
                (Ask::Range(_) | Ask::ReadTxn(_), Ok(Answer::Done)) => read(&api, &op.ask),
                (Ask::Range(_), Err(error)) => Outcome::Ranged(Err(error)),
                (Ask::ReadTxn(_), Err(error)) => Outcome::ReadTxn(Err(error)),
                (Ask::Renew(_), Ok(Answer::Renewed(ttl))) => Outcome::Renewed(Ok(ttl)),
                (Ask::Renew(_), Err(error)) => Outcome::Renewed(Err(error)),
                (ask, Ok(other)) => return violation!("{ask:?} was answered with {other:?}"),
            };
            running.has_read(at, &outcome)?;
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
        if let Some(locker) = &mut self.clients[number].locker {
            locker.told(&outcome);
        }
        let known = self.check(&op, &outcome)?;
        self.floor = self.floor.max(known);
        match outcome {
            Outcome::Lost => self.tally.lost += 1,
            _ => self.tally.answered += u64::from(outcome.is_done()),
        }
        if matches!(outcome, Outcome::Unsent | Outcome::Lost) || self.random.chance(30) {
            self.clients[number].seat = self.any_machine();
        }
        let pause = self.random.around(self.settings.pause_us);
        self.agenda.at(self.now_us + pause, Event::Client(number));
        Ok(())
    }
}

impl Running {
    /// What a member lets its readers see never goes back while it runs, however little they ask for.
    fn has_read(&mut self, at: usize, outcome: &Outcome) -> Result<(), Violation> {
        let header = match outcome {
            Outcome::Ranged(Ok(response)) => &response.header,
            Outcome::ReadTxn(Ok(response)) => &response.header,
            _ => return Ok(()),
        };
        let revision = header.map_or(0, |header| header.revision);
        if revision < self.read_revision {
            return violation!(
                "m{at} shows revision {revision} to a reader, after it has shown {}",
                self.read_revision
            );
        }
        self.read_revision = revision;
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
        Ask::Write(_) | Ask::V2(_) | Ask::Renew(_) => Outcome::Unsent,
    }
}
