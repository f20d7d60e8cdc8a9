//! What must be true: of an answer, and of all members when there is peace.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use state::Response;

use super::Cluster;
use crate::client::{Op, Outcome, is_verdict};
use crate::ledger::{Violation, violation};
use crate::workload::Ask;

impl Cluster {
    /// Checks an outcome. Gives the newest index of the log that the client knows of now.
    pub(super) fn check(&mut self, op: &Op, outcome: &Outcome) -> Result<u64, Violation> {
        self.trace.note(op.number);
        match (&op.ask, outcome) {
            (Ask::V2(_), Outcome::Wrote(Ok(outcome))) => {
                Ok(self.ledger.wrote(&op.tag, op.floor, &Ok(outcome.clone()))?.index)
            }
            (Ask::Write(request), Outcome::Wrote(result)) => {
                if result.as_ref().is_err_and(|error| !is_verdict(error)) {
                    return Ok(0);
                }
                let place = self.ledger.wrote(&op.tag, op.floor, result)?;
                self.trace.note(place.index);
                if let Some(grant) = &request.lease_grant
                    && result.is_ok()
                {
                    self.workload.leases.push(grant.id);
                    if self.workload.leases.len() > 12 {
                        self.workload.leases.remove(0);
                    }
                }
                if let Ok(Response::LeaseGrant(granted)) = result {
                    self.ledger.leases.promised(granted.id, op.asked_us, granted.ttl)?;
                }
                if let Ok(Response::LeaseRevoke(_)) = result
                    && let Some(revoke) = &request.lease_revoke
                {
                    self.workload.leases.retain(|id| *id != revoke.id);
                }
                Ok(place.index)
            }
            (Ask::Range(request), Outcome::Ranged(result)) => {
                let floor = if request.serializable { 0 } else { op.floor };
                self.ledger.ranged(&op.tag, request, floor, result)
            }
            (Ask::ReadTxn(request), Outcome::ReadTxn(Ok(response))) => {
                let floor = if state::Reader::is_serializable(request) { 0 } else { op.floor };
                self.ledger.read_txn(&op.tag, request, floor, response)
            }
            (Ask::Renew(id), Outcome::Renewed(Ok(ttl))) if *ttl > 0 => {
                self.ledger.leases.promised(*id, op.asked_us, *ttl)?;
                Ok(0)
            }
            _ => Ok(0),
        }
    }

    /// Checks whom a member takes for members, if that is new.
    pub(super) fn check_members(&mut self, at: usize) -> Result<(), Violation> {
        let membership = &self.ledger.membership;
        let Some(running) = &mut self.seats[at].running else { return Ok(()) };
        let epoch = membership.epoch(running.member.applied());
        if epoch == running.epoch {
            return Ok(());
        }
        running.epoch = epoch;
        let voters = running.member.raft_status().map(|status| status.voters);
        epoch.map_or(Ok(()), |epoch| membership.seen(at, epoch, &running.api.state().members(), voters))
    }

    /// Whether whoever runs the cluster has nothing left to do.
    pub fn is_as_wished(&self) -> bool {
        self.operator.is_idle() && self.rotten.is_none()
    }

    /// Whether everybody is settled, watchers have been shown everything, and there is room. While clients go on asking for
    /// what does not fit, alarms come back as fast as they go.
    pub fn is_done(&self) -> bool {
        self.is_settled()
            && self.ledger.model.alarms().next().is_none()
            && self.watchers_are_complete()
            && self.waiters_are_told()
    }

    /// Whether all members run and have applied all that was agreed on, and nobody runs who is none.
    fn is_settled(&self) -> bool {
        let last = self.ledger.last_index();
        let members = self.ledger.membership.members();
        self.seats.iter().filter(|seat| !seat.retired && seat.life > 0).all(|seat| {
            let member = seat.running.as_ref().filter(|_| members.contains_key(&seat.id));
            member.is_some_and(|running| {
                running.member.applied() == last
                    && running.api.leader() != 0
                    && !running.member.wants_log()
                    && running.member.is_ready()
            })
        })
    }

    /// Where everybody stands, for a message.
    pub fn seen(&self) -> String {
        let mut text = format!("agreed up to {}", self.ledger.last_index());
        for watch in self.lacking() {
            text.push_str(&format!("; not shown everything: {watch:?}"));
        }
        for waiter in self.waiters_to_tell() {
            text.push_str(&format!("; not told: {waiter:?}"));
        }
        text.push_str(&format!("; to do: {:?}", self.operator));
        for (at, seat) in self.seats.iter().enumerate() {
            let status = seat.running.as_ref().map(|running| {
                let status = running.member.raft_status();
                let (term, leader) = (running.api.term(), running.api.leader());
                let busy = (running.member.wants_log(), running.member.wants_apply());
                format!("applied {}, term {term}, leader {leader:x}, {busy:?}, {status:?}", running.member.applied())
            });
            text.push_str(&format!(
                "; m{at} ({:x}): {}",
                seat.id,
                status.unwrap_or_else(|| format!("down, {:?}", seat.refused))
            ));
        }
        text
    }

    /// Nobody has asked to renew leases since a moment: those that should have ended must have.
    pub fn leases_ended(&self, since_us: u64) -> Result<(), Violation> {
        let since_us = since_us.max(self.renewed_us);
        self.ledger.leases_ended(since_us, self.settings.election_ms * 1000, self.now_us)
    }

    /// Compares what all running members hold.
    pub fn compare(&mut self) -> Result<(), Violation> {
        let mut first: Option<(usize, String)> = None;
        for at in 0..self.seats.len() {
            let Some(running) = &self.seats[at].running else { continue };
            if running.member.applied() != self.ledger.last_index() {
                continue;
            }
            let reader = running.api.state().clone();
            let hash = reader.hash_kv(0).map_err(|error| Violation(format!("m{at} cannot hash its keys: {error}")))?;
            self.ledger.hashed(at, &hash)?;
            let everything = pb::RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                ..Default::default()
            };
            let range = reader.range(&everything);
            self.ledger.ranged("the final comparison", &everything, self.ledger.last_index(), &range)?;
            self.ledger.v2_compared(at, reader.v2())?;
            let mut leases = reader.lessor().leases();
            leases.sort_unstable();
            let expected: Vec<i64> = self.ledger.model.leases().collect();
            if leases != expected {
                return violation!("m{at} has the leases {leases:?}, expected {expected:?}");
            }
            let rest = format!("{:?} {:?} {:?}", reader.members(), reader.alarms(0), reader.cluster_version());
            // Up to what each member counts for itself.
            let tree = String::from_utf8_lossy(&reader.v2_snapshot_json()).into_owned();
            let rest = rest + tree.split(r#""Stats":"#).next().unwrap_or_default();
            match &first {
                Some((other, theirs)) if *theirs != rest => {
                    let same = theirs.bytes().zip(rest.bytes()).take_while(|(a, b)| a == b).count().saturating_sub(200);
                    let part = |text: &str| text.chars().skip(same).take(600).collect::<String>();
                    return violation!("m{other} and m{at} differ: {} and {}", part(theirs), part(&rest));
                }
                Some(_) => {}
                None => first = Some((at, rest)),
            }
        }
        Ok(())
    }
}
