//! What the cluster has agreed on, and whether everybody keeps to it.
//!
//! The members' own reports of what is committed make one log, which must be the same for all of them and for ever; the
//! model says what each entry of it does. With that order known, linearizability needs no search: a write has its
//! place in the log, a read has the revision in its header, and what is left to check is that places and results agree
//! with the model, and with the order in which clients saw things happen.

use std::collections::BTreeMap;

use prost::Message as _;
use proto::etcdserverpb as pb;
use state::{Error, Response};
use wal::{Entry, EntryKind};

use crate::host::Given;
use crate::lease::Leases;
use crate::model::Model;
use crate::trace::digest;

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
#[derive(Debug)]
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
    /// What clients were told of their leases.
    pub leases: Leases,
    /// From index 1.
    log: Vec<Agreed>,
    /// Indexes of the newest entries by request ID.
    by_id: BTreeMap<u64, u64>,
    /// Places of clients' writes, by what the client calls them.
    by_tag: BTreeMap<String, u64>,
    /// Who led which term.
    leaders: BTreeMap<u64, u64>,
    /// HashKV by revision and compaction, and who said so first.
    hashes: BTreeMap<(i64, i64), (u32, usize)>,
    /// How many answers were compared with the model's.
    pub compared: u64,
}

impl Ledger {
    /// Before the first entry.
    pub fn new(min_lease_ttl: i64) -> Self {
        Self {
            model: Model::new(min_lease_ttl),
            leases: Leases::default(),
            log: Vec::new(),
            by_id: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            leaders: BTreeMap::new(),
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
    pub fn leads(&mut self, member: u64, term: u64) -> Result<(), Violation> {
        match self.leaders.insert(term, member) {
            Some(other) if other != member => violation!("{other:x} and {member:x} both lead term {term}"),
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
        let request = match entry.kind {
            EntryKind::Normal => pb::InternalRaftRequest::decode(entry.data.clone()).unwrap_or_default(),
            EntryKind::ConfChange | EntryKind::ConfChangeV2 => pb::InternalRaftRequest::default(),
        };
        let header = request.header.clone().unwrap_or_default();
        let given = self.model.apply(&request).map(|given| Given::Response(Box::new(given)));
        let (revision, tag) = (self.model.revision(), header.username.clone());
        self.log.push(Agreed { term, digest: mine, revision, request_id: header.id, tag, given });
        if let Some(revoke) = &request.lease_revoke {
            // Requests of clients have names, those of leaders have none.
            match header.username.is_empty() {
                true => self.leases.expired(revoke.id, now_us)?,
                false => self.leases.revoked(revoke.id),
            }
        }
        if header.id != 0 && self.by_id.insert(header.id, index).is_some() {
            return violation!("request {:x} is in the log twice, the second time at {index}", header.id);
        }
        if !header.username.is_empty()
            && let Some(first) = self.by_tag.insert(header.username.clone(), index)
        {
            return violation!("{} is in the log twice, at {first} and at {index}", header.username);
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
            let expected = &mut self.log[*at as usize - 1].given;
            self.compared += 1;
            match expected {
                Some(expected) if *expected != given => {
                    return violation!("member {who} answers entry {at} with {given:?}, expected {expected:?}");
                }
                Some(_) => {}
                None => *expected = Some(given),
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
