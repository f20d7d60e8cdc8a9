//! What the cluster has agreed on, and whether everybody keeps to it.
//!
//! The members' own reports of what is committed make one log, which must be the same for all of them and for ever; the
//! model says what each entry of it does. With that order known, linearizability needs no search: a write has its
//! place in the log, a read has the revision in its header, and what is left to check is that places and results agree
//! with the model, and with the order in which clients saw things happen.

use std::collections::BTreeMap;

use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::raftpb::ConfChange;
use proto::v2pb;
use state::v2::V2;
use state::{Error, Response};
use wal::{Entry, EntryKind, HardState};

use crate::host::Given;
use crate::lease::Leases;
use crate::locker;
use crate::membership::Membership;
use crate::model::Model;
use crate::trace::digest;
use crate::v2;

/// A promise was broken.
#[derive(Clone, Debug)]
pub struct Violation(pub String);

/// For `return`: a broken promise in words.
macro_rules! violation {
    ($($words:tt)*) => { Err(Violation(format!($($words)*))) };
}
pub(crate) use violation;

/// Answers are compared for so many entries behind the newest; members that lag further were compared by what they did.
const REMEMBERED: usize = 20_000;

/// One entry of the agreed log.
#[derive(Debug, Default)]
struct Agreed {
    term: u64,
    digest: u64,
    /// The newest revision after it.
    revision: i64,
    request_id: u64,
    /// What its client calls it.
    tag: String,
    /// What the model says to it, or the first member if the model knows nothing of it.
    given: Option<Given>,
    /// What the model of the v2 tree says to it, until a member has been compared with that.
    v2: Option<v2::Expected>,
}

/// Where a write of a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its index in the log.
    pub index: u64,
    /// The newest revision after it.
    pub revision: i64,
}

/// The agreed log and what follows from it.
#[derive(Debug)]
pub struct Ledger {
    /// What the log does.
    pub model: Model,
    /// The v2 tree.
    pub v2: v2::Tree,
    /// Who the members are.
    pub membership: Membership,
    /// What clients were told of their leases.
    pub leases: Leases,
    /// From index 1.
    log: Vec<Agreed>,
    /// Indexes of the newest entries by request ID.
    by_id: BTreeMap<u64, u64>,
    /// Places of clients' writes, by what the client calls them.
    by_tag: BTreeMap<String, u64>,
    /// Whether members have little room.
    has_quota: bool,
    /// When somebody was last seen to lead a new term, in microseconds.
    elected_us: u64,
    /// Who led which term.
    leaders: BTreeMap<u64, u64>,
    /// The newest vote that each member has given: the term, and to whom.
    votes: BTreeMap<u64, (u64, u64)>,
    /// HashKV by revision and compaction, and who said so first.
    hashes: BTreeMap<(i64, i64), (u32, usize)>,
    /// How many answers were compared with the model's.
    pub compared: u64,
}

impl Ledger {
    /// Before the first entry.
    pub fn new(min_lease_ttl: i64, has_quota: bool) -> Self {
        Self {
            model: Model::new(min_lease_ttl),
            v2: v2::Tree::default(),
            membership: Membership::default(),
            leases: Leases::default(),
            log: Vec::new(),
            by_id: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            has_quota,
            elected_us: 0,
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            hashes: BTreeMap::new(),
            compared: 0,
        }
    }

    /// The newest index that any member knows to be committed.
    pub fn last_index(&self) -> u64 {
        self.log.len() as u64
    }

    /// The newest revision after the entry at an index.
    pub fn revision_at(&self, index: u64) -> i64 {
        index.checked_sub(1).and_then(|at| self.log.get(at as usize)).map_or(1, |agreed| agreed.revision)
    }

    /// The first index after which a revision is there.
    pub fn index_of(&self, revision: i64) -> u64 {
        1 + self.log.partition_point(|agreed| agreed.revision < revision) as u64
    }

    /// A member says that it leads a term.
    /// Whether nobody has been seen to lead that term before.
    pub fn leads(&mut self, member: u64, term: u64, now_us: u64) -> Result<bool, Violation> {
        match self.leaders.insert(term, member) {
            None => {
                self.elected_us = now_us;
                Ok(true)
            }
            Some(other) if other != member => violation!("{other:x} and {member:x} both lead term {term}"),
            _ => Ok(false),
        }
    }

    /// A member says that somebody has its vote in a term.
    pub fn votes(&mut self, voter: u64, term: u64, candidate: u64) -> Result<(), Violation> {
        match self.votes.get(&voter) {
            Some((voted, other)) if *voted == term && *other != candidate => {
                violation!("{voter:x} votes for {candidate:x} in term {term}, after it has voted for {other:x}")
            }
            Some((voted, _)) if *voted > term => Ok(()),
            _ => {
                self.votes.insert(voter, (term, candidate));
                Ok(())
            }
        }
    }

    /// A member starts, and this is what it knows of its votes.
    pub fn remembers(&self, voter: u64, hard_state: HardState) -> Result<(), Violation> {
        match self.votes.get(&voter) {
            Some((term, candidate))
                if (hard_state.term, hard_state.vote) != (*term, *candidate) && hard_state.term <= *term =>
            {
                violation!("{voter:x} starts with {hard_state:?}, but has voted for {candidate:x} in term {term}")
            }
            _ => Ok(()),
        }
    }

    /// A member knows an entry to be committed, at this moment of true time.
    pub fn committed(&mut self, who: usize, entry: &Entry, now_us: u64) -> Result<(), Violation> {
        let Entry { index, term, .. } = *entry;
        let mine = digest(&entry.data) ^ entry.kind as u64;
        if let Some(agreed) = self.log.get(index as usize - 1) {
            if (agreed.term, agreed.digest) != (term, mine) {
                return violation!(
                    "member {who} commits another entry at {index} than was agreed: term {term} for {}: {}",
                    agreed.term,
                    printed(entry)
                );
            }
            return Ok(());
        }
        if index != self.last_index() + 1 {
            return violation!("member {who} commits {index}, and nobody has committed {}", self.last_index() + 1);
        }
        let mut request = pb::InternalRaftRequest::default();
        let mut agreed = Agreed { term, digest: mine, ..Default::default() };
        match (entry.kind, pb::InternalRaftRequest::decode(entry.data.clone())) {
            (EntryKind::ConfChange | EntryKind::ConfChangeV2, _) => {
                let change = ConfChange::decode(entry.data.clone()).unwrap_or_default();
                let effect = self.membership.change(index, &change);
                self.v2.member(&effect);
            }
            (EntryKind::Normal, Ok(decoded)) => request = decoded,
            (EntryKind::Normal, Err(_)) => {
                // What is no request of v3 is one of v2.
                let request = v2pb::Request::decode(entry.data.clone()).unwrap_or_default();
                agreed.v2 = self.v2.apply(&request);
                agreed.request_id = request.id();
                // Where no client says who it is, the field says 0.
                if let Some(client) = (request.since() >> 32).checked_sub(1) {
                    agreed.tag = format!("c{client}-{}", request.since() & u64::from(u32::MAX));
                }
            }
        }
        let effect = self.membership.apply(index, &request);
        self.v2.member(&effect);
        let header = request.header.clone().unwrap_or_default();
        let given = self.model.apply(&request);
        if let (Some(txn), Some(Ok(Response::Txn(done)))) = (&request.txn, &given)
            && done.succeeded
        {
            locker::acted(txn, &self.model)?;
        }
        agreed.given = given.map(|given| Given::Response(Box::new(given)));
        agreed.revision = self.model.revision();
        if header.id != 0 {
            (agreed.request_id, agreed.tag) = (header.id, header.username.clone());
        }
        let (id, tag) = (agreed.request_id, agreed.tag.clone());
        self.log.push(agreed);
        if let Some(revoke) = &request.lease_revoke {
            // Requests of clients have names, those of leaders have none.
            match header.username.is_empty() {
                true => self.leases.expired(revoke.id, now_us)?,
                false => self.leases.revoked(revoke.id),
            }
        }
        if id != 0 && self.by_id.insert(id, index).is_some() {
            return violation!("request {id:x} is in the log twice, the second time at {index}");
        }
        if !tag.is_empty()
            && let Some(first) = self.by_tag.insert(tag.clone(), index)
        {
            return violation!("{tag} is in the log twice, at {first} and at {index}");
        }
        if let Some(old) = self.log.len().checked_sub(REMEMBERED) {
            let old = &mut self.log[old];
            old.given = None;
            self.by_id.remove(&old.request_id);
            self.by_tag.remove(&std::mem::take(&mut old.tag));
            // What is compacted for all of that time is asked for by nobody.
            let unasked = old.revision.min(self.model.compact_revision());
            if index.is_multiple_of(1000) {
                self.model.forget_before(unasked);
            }
        }
        Ok(())
    }

    /// A member has applied entries; these are its answers.
    pub fn applied(&mut self, who: usize, index: u64, answers: Vec<(u64, Given)>) -> Result<(), Violation> {
        if index > self.last_index() {
            return violation!("member {who} has applied {index}, which nobody has committed");
        }
        for (id, given) in answers {
            let Some(at) = self.by_id.get(&id) else { continue };
            let agreed = &mut self.log[*at as usize - 1];
            self.compared += 1;
            if let (Given::Response(given), Some(expected)) = (&given, agreed.v2.take())
                && let Ok(Response::V2(outcome)) = &**given
            {
                v2::Tree::check(&format!("entry {at} of v2"), &expected, outcome)?;
            }
            let expected = &mut agreed.given;
            match expected {
                // Whether there is room is for each member to see; it says so after having done what was asked.
                Some(expected) if self.has_quota && expected.is_ok() && given.is_no_space() => {}
                Some(expected) if *expected != given => {
                    return violation!("member {who} answers entry {at} with {given:?}, expected {expected:?}");
                }
                Some(_) => {}
                None => *expected = Some(given),
            }
        }
        Ok(())
    }

    /// Nobody has renewed a lease since a moment, and there was peace. Those that should have ended by now must have.
    pub fn leases_ended(&self, since_us: u64, election_us: u64, now_us: u64) -> Result<(), Violation> {
        let since_us = since_us.max(self.elected_us);
        for id in self.model.leases() {
            let ttl_us = self.model.ttl(id).unwrap_or(0).unsigned_abs() * 1_000_000;
            if since_us + ttl_us + ttl_us / 100 + election_us + 1_000_000 < now_us {
                return violation!("lease {id} of {ttl_us} us is there at {now_us} us, unrenewed since {since_us} us");
            }
        }
        Ok(())
    }

    /// A member's hash of all keys.
    pub fn hashed(&mut self, who: usize, hash: &store::HashKv) -> Result<(), Violation> {
        let at = (hash.hash_revision, hash.compact_revision);
        let (first, whose) = *self.hashes.entry(at).or_insert((hash.hash, who));
        if first != hash.hash {
            return violation!("members {whose} and {who} differ at revision {}: {first:x}, {:x}", at.0, hash.hash);
        }
        if self.hashes.len() > 10_000 {
            self.hashes.pop_first();
        }
        Ok(())
    }

    /// Compares a member's v2 tree.
    pub fn v2_compared(&self, who: usize, tree: &V2) -> Result<(), Violation> {
        if tree.index() != self.v2.index() {
            return violation!("m{who}'s v2 tree is at {}, expected {}", tree.index(), self.v2.index());
        }
        for top in ["/0", "/1"] {
            let outcome = tree.get(top, true, 0).map(state::v2::Answer::Found);
            v2::Tree::check(&format!("m{who}'s {top}"), &self.v2.get(top, true, 0), &outcome)?;
        }
        Ok(())
    }

    /// Where a client's write stands, if it was committed.
    pub fn place(&self, tag: &str) -> Option<Place> {
        self.by_tag.get(tag).map(|index| Place { index: *index, revision: self.revision_at(*index) })
    }

    /// A write of a client was answered. `floor` is the newest index that the client could know of when it asked.
    pub fn wrote(&mut self, tag: &str, floor: u64, outcome: &Result<Response, Error>) -> Result<Place, Violation> {
        let Some(place) = self.place(tag) else {
            return violation!("{tag} was acknowledged with {outcome:?}, and is not in the log");
        };
        if place.index <= floor {
            return violation!("{tag} took effect at {}, but began when {floor} had been answered", place.index);
        }
        match &self.log[place.index as usize - 1].given {
            Some(Given::Response(expected)) if **expected != *outcome => {
                violation!("{tag}, entry {}, was answered with {outcome:?}, expected {expected:?}", place.index)
            }
            _ => Ok(place),
        }
    }

    /// A client has got the answer to a range. `floor`: if it was linearizable, the newest index known when it began.
    pub fn ranged(
        &self,
        what: &str,
        request: &pb::RangeRequest,
        floor: u64,
        outcome: &Result<pb::RangeResponse, Error>,
    ) -> Result<u64, Violation> {
        let response = match outcome {
            Ok(response) => response,
            Err(Error::Compacted) if request.revision < self.model.compact_revision() => return Ok(0),
            Err(Error::FutureRev) if request.revision > self.revision_at(floor) => return Ok(0),
            Err(Error::Compacted | Error::FutureRev) => {
                return violation!("{what} at revision {} was refused: {outcome:?}", request.revision);
            }
            Err(_) => return Ok(0),
        };
        let current = response.header.map_or(0, |header| header.revision);
        self.read_at(what, current, floor)?;
        let at = if request.revision > 0 { request.revision } else { current };
        if at > current {
            return violation!("{what} was answered at revision {at}, and the newest was {current}");
        }
        if self.model.knows(at) {
            let expected = self.model.range_whatever_is_compacted(request, at, current);
            if expected != *response {
                return violation!("{what} {request:?} was answered with {response:?}, expected {expected:?}");
            }
        }
        Ok(self.index_of(current))
    }

    /// The same for a transaction that only reads.
    pub fn read_txn(
        &self,
        what: &str,
        request: &pb::TxnRequest,
        floor: u64,
        response: &pb::TxnResponse,
    ) -> Result<u64, Violation> {
        let current = response.header.map_or(0, |header| header.revision);
        self.read_at(what, current, floor)?;
        if self.model.knows(current) {
            let expected = self.model.read_txn(request, current);
            if expected != *response {
                return violation!("{what} {request:?} was answered with {response:?}, expected {expected:?}");
            }
        }
        Ok(self.index_of(current))
    }

    fn read_at(&self, what: &str, revision: i64, floor: u64) -> Result<(), Violation> {
        if revision < self.revision_at(floor) {
            return violation!("{what} saw revision {revision}, but {} was known before", self.revision_at(floor));
        }
        if revision > self.model.revision() {
            return violation!("{what} saw revision {revision}, and the newest is {}", self.model.revision());
        }
        Ok(())
    }
}

fn printed(entry: &Entry) -> String {
    match entry.kind {
        EntryKind::Normal => format!("{:?}", pb::InternalRaftRequest::decode(entry.data.clone())),
        kind => format!("{kind:?}"),
    }
}

/// Each check has to complain about a history that breaks its promise, and about none that keeps it.
#[cfg(test)]
mod tests {
    use super::*;

    fn put(id: u64, tag: &str, value: &'static str) -> pb::InternalRaftRequest {
        pb::InternalRaftRequest {
            header: Some(pb::RequestHeader { id, username: tag.into(), ..Default::default() }),
            put: Some(pb::PutRequest { key: "k".into(), value: value.into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn entry(index: u64, request: &pb::InternalRaftRequest) -> Entry {
        Entry { index, term: 1, kind: EntryKind::Normal, data: request.encode_to_vec().into() }
    }

    fn answer(revision: i64) -> Result<Response, Error> {
        let header = Some(pb::ResponseHeader { revision, ..Default::default() });
        Ok(Response::Put(pb::PutResponse { header, prev_kv: None }))
    }

    /// Two puts, `a` and `b`, which make revisions 2 and 3.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(2, false);
        ledger.committed(0, &entry(1, &put(11, "a", "1")), 0).unwrap();
        ledger.committed(0, &entry(2, &put(12, "b", "2")), 0).unwrap();
        ledger
    }

    fn range(value: &'static str, mod_revision: i64, revision: i64) -> Result<pb::RangeResponse, Error> {
        let pair = proto::mvccpb::KeyValue {
            key: "k".into(),
            value: value.into(),
            create_revision: 2,
            mod_revision,
            version: mod_revision - 1,
            lease: 0,
        };
        let header = Some(pb::ResponseHeader { revision, ..Default::default() });
        Ok(pb::RangeResponse { header, kvs: vec![pair], count: 1, more: false })
    }

    #[test]
    fn a_term_has_one_leader() {
        let mut ledger = ledger();
        ledger.leads(7, 3, 0).unwrap();
        ledger.leads(7, 3, 1).unwrap();
        ledger.leads(8, 4, 2).unwrap();
        assert!(ledger.leads(8, 3, 3).is_err());
    }

    #[test]
    fn a_member_votes_once_in_a_term_and_remembers_it() {
        let mut ledger = ledger();
        let kept = |term, vote| HardState { term, vote, commit: 0 };
        ledger.votes(7, 3, 8).unwrap();
        ledger.votes(7, 3, 8).unwrap();
        assert!(ledger.votes(7, 3, 9).is_err());
        ledger.remembers(7, kept(3, 8)).unwrap();
        ledger.remembers(7, kept(4, 0)).unwrap();
        ledger.remembers(9, kept(1, 0)).unwrap();
        assert!(ledger.remembers(7, kept(3, 0)).is_err(), "whom it voted for");
        assert!(ledger.remembers(7, kept(2, 8)).is_err(), "that it voted");
        ledger.votes(7, 4, 9).unwrap();
    }

    #[test]
    fn what_is_agreed_stays() {
        let mut ledger = ledger();
        ledger.committed(1, &entry(1, &put(11, "a", "1")), 0).unwrap();
        assert!(ledger.committed(1, &entry(2, &put(12, "b", "other")), 0).is_err());
        assert!(ledger.committed(1, &Entry { term: 2, ..entry(2, &put(12, "b", "2")) }, 0).is_err());
        assert!(ledger.committed(1, &entry(4, &put(13, "c", "3")), 0).is_err(), "a gap");
    }

    #[test]
    fn nothing_is_carried_out_twice() {
        assert!(ledger().committed(0, &entry(3, &put(11, "c", "3")), 0).is_err(), "the same request");
        assert!(ledger().committed(0, &entry(3, &put(13, "a", "3")), 0).is_err(), "the same operation of a client");
    }

    #[test]
    fn members_answer_as_the_model_does() {
        let given = |revision| vec![(11, Given::Response(Box::new(answer(revision))))];
        ledger().applied(0, 1, given(2)).unwrap();
        assert!(ledger().applied(0, 1, given(3)).is_err());
        assert!(ledger().applied(0, 3, Vec::new()).is_err(), "nobody has committed so much");
    }

    #[test]
    fn an_acknowledged_write_is_in_the_log_and_in_its_time() {
        let mut ledger = ledger();
        assert_eq!(ledger.wrote("b", 1, &answer(3)).unwrap(), Place { index: 2, revision: 3 });
        assert!(ledger.wrote("c", 1, &answer(4)).is_err(), "lost");
        assert!(ledger.wrote("b", 2, &answer(3)).is_err(), "it took effect before it was asked for");
        assert!(ledger.wrote("b", 1, &answer(2)).is_err(), "a wrong answer");
    }

    #[test]
    fn a_linearizable_read_sees_what_was_known_before() {
        let ledger = ledger();
        let request = pb::RangeRequest { key: "k".into(), ..Default::default() };
        ledger.ranged("a read", &request, 2, &range("2", 3, 3)).unwrap();
        ledger.ranged("a serializable read", &request, 0, &range("1", 2, 2)).unwrap();
        assert!(ledger.ranged("a stale read", &request, 2, &range("1", 2, 2)).is_err());
        assert!(ledger.ranged("a wrong read", &request, 2, &range("1", 2, 3)).is_err());
        assert!(ledger.ranged("a read of the future", &request, 2, &range("2", 3, 4)).is_err());
    }

    #[test]
    fn compacted_and_future_are_said_only_when_true() {
        let ledger = ledger();
        let request = |revision| pb::RangeRequest { key: "k".into(), revision, ..Default::default() };
        assert!(ledger.ranged("a read", &request(2), 0, &Err(Error::Compacted)).is_err());
        assert!(ledger.ranged("a read", &request(3), 2, &Err(Error::FutureRev)).is_err());
        ledger.ranged("a read", &request(9), 2, &Err(Error::FutureRev)).unwrap();
    }

    #[test]
    fn equal_revisions_have_equal_hashes() {
        let hash = |hash| store::HashKv { hash, hash_revision: 3, compact_revision: -1 };
        let mut ledger = ledger();
        ledger.hashed(0, &hash(5)).unwrap();
        ledger.hashed(1, &hash(5)).unwrap();
        assert!(ledger.hashed(2, &hash(6)).is_err());
    }

    #[test]
    fn a_lease_that_nobody_renews_ends() {
        let mut ledger = ledger();
        let grant = Some(pb::LeaseGrantRequest { id: 5, ttl: 10 });
        ledger
            .committed(0, &entry(3, &pb::InternalRaftRequest { lease_grant: grant, ..Default::default() }), 0)
            .unwrap();
        ledger.leases_ended(0, 1_000_000, 11_000_000).unwrap();
        assert!(ledger.leases_ended(0, 1_000_000, 13_000_000).is_err());
        ledger.leads(7, 3, 5_000_000).unwrap();
        ledger.leases_ended(0, 1_000_000, 13_000_000).unwrap();
    }
}
