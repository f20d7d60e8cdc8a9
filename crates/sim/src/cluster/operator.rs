//! Whoever runs the cluster: adds members, removes them, and replaces machines whose disks are lost.
//!
//! One thing after the other, as people are told to do it; each step is tried again until the agreed log shows that it is
//! done. That is also what keeps the cluster alive: never more than one disk is lost at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use api::mailbox::Reply;
use api::{Member, MemberChange};
use bytes::Bytes;
use disk::MemDisk;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, CompactionRequest, DeleteRangeRequest, InternalRaftRequest, RequestHeader};
use proto::v2pb;

use super::{Cluster, End, Seat, url_of};
use crate::agenda::{Event, Happening};
use crate::ledger::Violation;
use crate::workload;

/// The most members that a cluster grows to.
const MAX_MEMBERS: usize = 7;
/// The most machines that a world ever has.
const MAX_MACHINES: usize = 24;
/// The mean time between two looks, in microseconds.
const LOOK_US: u64 = 1_000_000;

/// What may be wanted.
#[derive(Clone, Copy, Debug)]
pub enum Wish {
    /// One member more.
    Grow {
        /// That first only learns.
        learner: bool,
    },
    /// One member less.
    Shrink {
        /// The one that leads, rather than any.
        leader: bool,
    },
    /// A disk is lost with all that is on it; another machine takes its place.
    Replace {
        /// Which first only learns.
        learner: bool,
    },
}

/// A step towards it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Remove(u64),
    Add { seat: usize, learner: bool },
    Start(usize),
    Promote(usize),
}

/// What is still to do.
#[derive(Debug, Default)]
pub struct Operator {
    steps: VecDeque<Step>,
    /// How many requests were made.
    orders: u64,
}

impl Operator {
    /// Whether nothing is.
    pub fn is_idle(&self) -> bool {
        self.steps.is_empty()
    }
}

impl Cluster {
    /// Wants something, unless there is something to do already or it would be too much.
    pub fn wish(&mut self, wish: Wish) {
        if !self.operator.is_idle() {
            return;
        }
        if self.rotten.is_some() && !matches!(wish, Wish::Replace { .. }) {
            // First things first.
            return;
        }
        let members = &self.ledger.membership.members();
        let voters = self.ledger.membership.voters();
        let has_learner = voters < members.len();
        let ids: Vec<u64> = members.keys().copied().collect();
        let has_room = self.seats.len() < MAX_MACHINES;
        match wish {
            Wish::Grow { learner } if has_room && members.len() < MAX_MEMBERS && !(learner && has_learner) => {
                self.add_seat(learner);
            }
            Wish::Shrink { leader } if voters > 1 => {
                let leading = self.seats.iter().filter_map(|seat| Some(seat.running.as_ref()?.api.leader()));
                let leading = leading.filter(|id| ids.contains(id)).max();
                let any = self.random.pick(&ids).copied();
                let is_last = |id: &u64| voters == 1 && !self.ledger.membership.members()[id].is_learner;
                if let Some(id) = leading.filter(|_| leader).or(any).filter(|id| !is_last(id)) {
                    self.operator.steps.push_back(Step::Remove(id));
                }
            }
            Wish::Replace { learner }
                if (has_room || self.rotten.is_some()) && voters > 2 && !(learner && has_learner) =>
            {
                let any = self.random.pick(&ids).and_then(|id| self.seat_of(*id));
                let Some(seat) = self.rotten.take().or(any) else { return };
                let id = self.seats[seat].id;
                self.say(format_args!("m{seat}'s disk is lost"));
                self.end(seat, End::PowerLost);
                self.seats[seat].retired = true;
                self.seats[seat].disk = MemDisk::new();
                self.operator.steps.push_back(Step::Remove(id));
                self.add_seat(learner);
            }
            _ => {}
        }
    }

    fn add_seat(&mut self, learner: bool) {
        let seat = self.seats.len();
        let flags = self.settings.flags(&format!("m{seat}"), Vec::new(), true);
        let boot_us = self.random.below(1_000_000_000);
        self.seats.push(Seat::new(flags, boot_us));
        self.operator.steps.extend([Step::Add { seat, learner }, Step::Start(seat)]);
        if learner {
            self.operator.steps.push_back(Step::Promote(seat));
        }
    }

    /// Plans the next look.
    pub(super) fn look_later(&mut self) {
        let wait = self.random.around(LOOK_US);
        self.later(wait, Event::Operator);
    }

    /// Goes on with what is to be done.
    pub(super) fn operate(&mut self) -> Result<(), Violation> {
        self.look_later();
        self.decommission();
        self.make_room()?;
        while let Some(step) = self.operator.steps.front().copied() {
            let membership = &self.ledger.membership;
            let member = |seat: usize| -> Option<&state::Member> {
                let id = membership.at_url(&url_of(&self.seats[seat].flags.name))?;
                membership.members().get(&id)
            };
            let is_half = |id: &u64| {
                membership.voters() == 2 && membership.members().get(id).is_some_and(|member| !member.is_learner)
            };
            let change = match step {
                // The other one must learn that it is alone now, from a member that stops as soon as it knows that itself. If
                // nothing gets through just then, the cluster stands for ever; raft's rules allow that.
                Step::Remove(id) if is_half(&id) && !self.is_calm => return Ok(()),
                Step::Remove(id) => membership.members().get(&id).map(|_| MemberChange::Remove { id }),
                Step::Add { seat, learner } => match member(seat) {
                    Some(member) => {
                        self.seats[seat].id = member.id;
                        None
                    }
                    None => {
                        let peer_urls = vec![url_of(&self.seats[seat].flags.name)];
                        Some(MemberChange::Add { peer_urls, is_learner: learner })
                    }
                },
                Step::Start(seat) => match member(seat) {
                    Some(member) if member.name.is_empty() => return self.start(seat),
                    _ => None,
                },
                Step::Promote(seat) => match member(seat) {
                    Some(member) if member.is_learner => Some(MemberChange::Promote { id: member.id }),
                    _ => None,
                },
            };
            match change {
                Some(change) => return self.change(change),
                None => drop(self.operator.steps.pop_front()),
            }
            self.say(format_args!("the operator: {step:?} is done"));
        }
        Ok(())
    }

    /// Does one of the things that an operator does about a full cluster, while it is one.
    fn make_room(&mut self) -> Result<(), Violation> {
        let Some((alarm, member_id)) = self.ledger.model.alarms().next() else { return Ok(()) };
        let mut request = InternalRaftRequest::default();
        match self.random.below(10) {
            0 => return self.order(|api, reply| api.defragment(reply)),
            1 => {
                let all = Bytes::from_static(b"\0");
                let delete = DeleteRangeRequest { key: all.clone(), range_end: all, prev_kv: false };
                request.delete_range = Some(delete);
            }
            2..4 => {
                let revision = self.ledger.model.revision();
                request.compaction = Some(CompactionRequest { revision, physical: true });
            }
            // What is in the v2 tree takes space as well, and no quota ends its growth.
            4 => {
                self.operator.orders += 1;
                let name = self.random.pick(&workload::NAMES).copied().unwrap_or_default();
                let delete = v2pb::Request {
                    method: Some("DELETE".into()),
                    path: Some(format!("/1/{name}").into()),
                    recursive: Some(true),
                    // Who asks, as with clients; there are not so many of them.
                    since: Some((u64::from(u32::MAX) << 32) + self.operator.orders),
                    time: Some((self.now_us * 1000).cast_signed()),
                    ..Default::default()
                };
                return self.order(|api, reply| {
                    api.propose_v2(delete, reply);
                    api.submit();
                });
            }
            _ => {
                let action = AlarmAction::Deactivate as i32;
                request.alarm = Some(AlarmRequest { action, member_id, alarm });
            }
        }
        self.operator.orders += 1;
        let username = format!("operator-{}", self.operator.orders);
        request.header = Some(RequestHeader { username, ..Default::default() });
        self.order(|api, reply| {
            api.propose(request, reply);
            api.submit();
        })
    }

    /// Asks any member for a change.
    fn change(&mut self, change: MemberChange) -> Result<(), Violation> {
        self.say(format_args!("the operator wants {change:?}"));
        self.order(|api, reply| api.change_membership(change, reply))
    }

    /// Has the leader hand over to any other member.
    pub(super) fn move_leader(&mut self) -> Result<(), Violation> {
        let leads = |seat: &Seat| seat.running.as_ref().is_some_and(|running| running.api.leader() == seat.id);
        let Some(at) = self.seats.iter().position(leads) else { return Ok(()) };
        let ids: Vec<u64> = self.ledger.membership.members().keys().copied().collect();
        let Some(to) = self.random.pick(&ids).copied() else { return Ok(()) };
        self.say(format_args!("m{at} is to hand over to {to:x}"));
        self.order_of(at, |api, reply| api.move_leader(to, reply))
    }

    /// Orders something of any member.
    fn order(&mut self, ask: impl FnOnce(&dyn Member, Reply)) -> Result<(), Violation> {
        let at = self.any_machine();
        self.order_of(at, ask)
    }

    fn order_of(&mut self, at: usize, ask: impl FnOnce(&dyn Member, Reply)) -> Result<(), Violation> {
        let is_frozen = self.seats[at].frozen_until_us > self.now_us;
        let Some(running) = self.seats[at].running.as_mut().filter(|_| !is_frozen) else { return Ok(()) };
        let reply = Reply::new(Arc::clone(&running.mailbox), running.next_ticket);
        running.orders.insert(running.next_ticket);
        running.next_ticket += 1;
        running.machine.advance(self.now_us);
        ask(&*running.api, reply);
        self.settle(at)
    }

    /// Has machines that were removed learn of it; switches off those that know nobody who is still there to tell them.
    fn decommission(&mut self) {
        for at in 0..self.seats.len() {
            let seat = &self.seats[at];
            let members = self.ledger.membership.members();
            let Some(running) = seat.running.as_ref().filter(|_| self.ledger.membership.is_removed(seat.id)) else {
                continue;
            };
            if !running.api.state().members().iter().any(|known| members.contains_key(&known.id)) {
                self.end(at, End::Killed);
                self.seats[at].retired = true;
                continue;
            }
            // It goes on dialling those it knows, also when it has nothing to say to them, and they turn it away.
            let turns_away = |other: &&Seat| {
                let there = other.running.as_ref();
                running.machine.reaches(other.id) && there.is_some_and(|there| there.link.is_removed(self.seats[at].id))
            };
            if let Some(by) = self.seats.iter().find(turns_away).map(|other| other.id) {
                self.plan(at, 1_000, Happening::Removed(by));
            }
        }
    }
}
