//! A range answered in chunks, so that neither side holds all of it.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb as pb;
use store::{Found, KeyRange, Location, Pin, RangeEnd, Store};

use super::decode;
use super::range::{pin, pin_newest};
use crate::Error;

/// Keys of the first chunk; later ones adapt to the size of the pairs.
const FIRST_CHUNK_KEYS: usize = 10;

/// A range answered in chunks, all at one revision. Merge rule: concatenate `kvs`; header, `more` and `count` come with
/// the last chunk only.
#[derive(Debug)]
pub struct RangeStream {
    request: pb::RangeRequest,
    pin: Pin,
    at: i64,
    /// The newest revision when the stream began: what the last chunk's header says.
    revision: i64,
    /// The keys that are left; `None` once the last chunk has been given.
    rest: Option<KeyRange>,
    /// Keys that may still be sent.
    limit: usize,
    sent: i64,
    chunk_keys: usize,
    chunk_bytes: usize,
}

impl RangeStream {
    pub(crate) fn begin(store: &Store, request: pb::RangeRequest, chunk_bytes: usize) -> Result<Self, Error> {
        let revision = store.revision();
        let (pin, at) = if request.revision > 0 { pin(store, request.revision, revision)? } else { pin_newest(store) };
        let revision = revision.max(at);
        let rest = Some(KeyRange::from_wire(request.key.clone(), request.range_end.clone()));
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let chunk_keys = FIRST_CHUNK_KEYS;
        Ok(Self { request, pin, at, revision, rest, limit, sent: 0, chunk_keys, chunk_bytes })
    }

    /// The next chunk; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<pb::RangeResponse>, Error> {
        let Some(range) = self.rest.take() else { return Ok(None) };
        let header = Some(pb::ResponseHeader { revision: self.revision, ..Default::default() });
        if self.request.count_only {
            let count = self.pin.store().count(&range, self.at);
            return Ok(Some(pb::RangeResponse { header, kvs: Vec::new(), more: false, count }));
        }
        let take = self.chunk_keys.min(self.limit);
        let mut found = Vec::with_capacity(take.min(1_024));
        let mut next = None;
        let mut visit = |key: &[u8], item: Found| {
            if found.len() == take {
                next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            let key = if self.request.keys_only { Bytes::copy_from_slice(key) } else { Bytes::new() };
            found.push((key, item));
            ControlFlow::Continue(())
        };
        match (&range.end, self.pin.store().get(&range.start, self.at)) {
            (RangeEnd::Single, Some(item)) => {
                let _ = visit(&range.start, item);
            }
            (RangeEnd::Single, None) => {}
            _ => self.pin.store().scan(&range, self.at, &mut visit),
        }
        let kvs = self.read(found)?;
        self.sent += kvs.len() as i64;
        self.limit -= kvs.len();
        match next {
            Some(next) if self.limit > 0 => {
                let bytes: usize = kvs.iter().map(Message::encoded_len).sum();
                self.adapt(bytes);
                self.rest = Some(KeyRange { start: next, end: range.end });
                Ok(Some(pb::RangeResponse { header: None, kvs, more: false, count: 0 }))
            }
            Some(next) => {
                let left = self.pin.store().count(&KeyRange { start: next, end: range.end }, self.at);
                Ok(Some(pb::RangeResponse { header, kvs, more: true, count: self.sent + left }))
            }
            None => Ok(Some(pb::RangeResponse { header, kvs, more: false, count: self.sent })),
        }
    }

    fn read(&self, found: Vec<(Bytes, Found)>) -> Result<Vec<proto::mvccpb::KeyValue>, Error> {
        let mut kvs = Vec::with_capacity(found.len());
        if self.request.keys_only {
            kvs.extend(found.into_iter().map(|(key, item)| proto::mvccpb::KeyValue {
                key,
                create_revision: item.meta.create_revision,
                mod_revision: item.meta.modified.main,
                version: item.meta.version,
                value: Bytes::new(),
                lease: 0,
            }));
            return Ok(kvs);
        }
        let locations: Vec<Location> = found.iter().map(|(_, item)| item.location).collect();
        let mut broken = None;
        let read = self.pin.store().read_many(&locations, &mut |payload| match decode(payload) {
            Ok(kv) => kvs.push(kv),
            Err(failure) => broken = Some(failure),
        });
        read.map_err(super::Failure::from)?;
        match broken {
            Some(failure) => Err(failure.into()),
            None => Ok(kvs),
        }
    }

    /// Small chunks cost round trips, large ones memory.
    fn adapt(&mut self, bytes: usize) {
        if bytes < self.chunk_bytes / 2 {
            self.chunk_keys = self.chunk_keys.saturating_mul(2);
        } else if bytes > self.chunk_bytes.saturating_mul(2) {
            self.chunk_keys = (self.chunk_keys / 2).max(1);
        }
    }
}
