//! Puts and deletes inside one transaction of the store.

use std::ops::ControlFlow;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::mvccpb::KeyValue;
use store::{Found, KeyRange, Location, RangeEnd, Store, Writer};

use super::{Failure, decode, range, read};
use crate::watch::{Event, Feed};
use crate::{Error, Lessor};

/// Changes that become visible together, as one revision. Nothing to undo: whatever can be refused must be refused
/// before the first change.
pub(crate) struct WriteTxn<'a> {
    writer: &'a mut Writer,
    store: Store,
    lessor: &'a Lessor,
    /// The revision before this transaction.
    begin: i64,
    events: Vec<Event>,
}

impl<'a> WriteTxn<'a> {
    pub(crate) fn begin(writer: &'a mut Writer, lessor: &'a Lessor) -> Self {
        let store = writer.store().clone();
        let begin = store.revision();
        Self { writer, store, lessor, begin, events: Vec::new() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn lessor(&self) -> &Lessor {
        self.lessor
    }

    /// What a read in this transaction sees, and what its header says: the revision before it, or its own once
    /// something has changed.
    pub(crate) fn revision(&self) -> i64 {
        if self.events.is_empty() { self.begin } else { self.writer.in_progress() }
    }

    /// Publishes the changes, to readers and watchers in one step. Returns the revision then.
    pub(crate) fn commit(self, feed: &Feed) -> i64 {
        if self.events.is_empty() {
            return self.begin;
        }
        let writer = self.writer;
        let revision = feed.publish(self.events, || writer.commit());
        assert_eq!(revision, self.begin + 1, "a transaction advances the revision by one");
        revision
    }

    pub(crate) fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Failure> {
        range::range(&self.store, request, self.revision())
    }

    /// The living pair of a key, as this transaction sees it.
    fn pair(&self, key: &[u8]) -> Result<Option<KeyValue>, Failure> {
        let at = self.revision();
        let _pin = self.store.pin(at);
        self.store.get(key, at).map(|found| read(&self.store, &found)).transpose()
    }

    pub(crate) fn put(&mut self, request: &pb::PutRequest) -> Result<pb::PutResponse, Failure> {
        let looks_back = request.prev_kv || request.ignore_value || request.ignore_lease;
        let previous = if looks_back { self.pair(&request.key)? } else { None };
        let (mut value, mut lease) = (&request.value, request.lease);
        if request.ignore_value || request.ignore_lease {
            let Some(previous) = &previous else { return Err(Error::KeyNotFound.into()) };
            if request.ignore_value {
                value = &previous.value;
            }
            if request.ignore_lease {
                lease = previous.lease;
            }
        }
        let written = self.writer.put(&request.key, value, lease)?;
        if lease != 0 || written.previous.is_some_and(|previous| previous.meta.leased) {
            self.lessor.attach(&request.key, lease);
        }
        self.events.push(Event::put(request.key.len(), &written));
        let prev_kv = if request.prev_kv { previous } else { None };
        Ok(pb::PutResponse { header: self.header(), prev_kv })
    }

    pub(crate) fn delete_range(
        &mut self,
        request: &pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Failure> {
        let at = self.revision();
        let _pin = self.store.pin(at);
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let mut keys: Vec<Bytes> = Vec::new();
        let mut locations: Vec<Location> = Vec::new();
        let mut visit = |key: &[u8], found: Found| {
            keys.push(Bytes::copy_from_slice(key));
            locations.push(found.location);
            ControlFlow::Continue(())
        };
        if range.end != RangeEnd::Single {
            self.store.scan(&range, at, &mut visit);
        } else if let Some(found) = self.store.get(&range.start, at) {
            keys.push(range.start);
            locations.push(found.location);
        }
        let mut prev_kvs = Vec::new();
        if request.prev_kv {
            let mut broken = None;
            self.store.read_many(&locations, &mut |payload| match decode(payload) {
                Ok(kv) => prev_kvs.push(kv),
                Err(failure) => broken = Some(failure),
            })?;
            if let Some(failure) = broken {
                return Err(failure);
            }
        }
        for key in &keys {
            self.delete(key)?;
        }
        Ok(pb::DeleteRangeResponse { header: self.header(), deleted: keys.len() as i64, prev_kvs })
    }

    /// Deletes one key if it lives.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<(), Failure> {
        let Some(deleted) = self.writer.delete(key)? else { return Ok(()) };
        if deleted.previous.meta.leased {
            self.lessor.attach(key, 0);
        }
        self.events.push(Event::delete(key.len(), &deleted));
        Ok(())
    }

    pub(crate) fn header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { revision: self.revision(), ..Default::default() })
    }
}
