//! One change of one key, encoded once for everybody who watches it.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};
use store::{Deleted, Store, StoreError, Written};

/// Tag of `WatchResponse.events`.
const EVENTS: u8 = 11 << 3 | 2;
/// Tags of `mvccpb.Event`.
const TYPE: u8 = 1 << 3;
const KV: u8 = 2 << 3 | 2;
const PREV_KV: u8 = 3 << 3 | 2;
/// `Event.type` of a DELETE; a PUT is 0 and left out.
const DELETE: u8 = 1;
/// Tag of `mvccpb.KeyValue.mod_revision`.
const MOD_REVISION: u8 = 3 << 3;

/// A change, with the stored bytes of its pair.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: i64,
    pub(crate) deleted: bool,
    /// The put that created the key: there is nothing before it.
    created: bool,
    key_start: usize,
    key_end: usize,
    /// The stored `mvccpb.KeyValue`, which begins with the key; a tombstone's holds nothing else.
    payload: Bytes,
    framed: OnceLock<Bytes>,
    framed_with_previous: OnceLock<Bytes>,
}

impl Event {
    pub(crate) fn put(key_len: usize, written: &Written) -> Self {
        Self::new(written.meta.modified.main, false, written.meta.version == 1, key_len, written.payload.clone())
    }

    pub(crate) fn delete(key_len: usize, deleted: &Deleted) -> Self {
        Self::new(deleted.revision.main, true, false, key_len, deleted.payload.clone())
    }

    fn new(revision: i64, deleted: bool, created: bool, key_len: usize, payload: Bytes) -> Self {
        let key_start = 1 + encoded_len_varint(key_len as u64);
        let key_end = key_start + key_len;
        assert!(key_end <= payload.len(), "a stored pair begins with its key");
        let (framed, framed_with_previous) = (OnceLock::new(), OnceLock::new());
        Self { revision, deleted, created, key_start, key_end, payload, framed, framed_with_previous }
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.payload[self.key_start..self.key_end]
    }

    /// About the memory this takes, in bytes.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + 2 * self.payload.len()
    }

    /// The event as field 11 of a `WatchResponse`.
    pub(crate) fn framed(&self) -> Bytes {
        self.framed.get_or_init(|| frame(&self.payload, self.deleted.then_some(self.revision), None)).clone()
    }

    /// The same with the pair as it was one revision before, if that has not been compacted.
    pub(crate) fn framed_with_previous(&self, store: &Store) -> Result<Bytes, StoreError> {
        // Asked anew each time: what is compacted is not shown, even if somebody saw it before.
        if self.created || self.revision - 1 < store.compact_revision() {
            return Ok(self.framed());
        }
        if let Some(framed) = self.framed_with_previous.get() {
            return Ok(framed.clone());
        }
        let previous = previous(store, self.key(), self.revision)?;
        let framed = frame(&self.payload, self.deleted.then_some(self.revision), previous.as_deref());
        Ok(self.framed_with_previous.get_or_init(|| framed).clone())
    }
}

/// The stored pair that was there before `revision` changed it; `None` if there was none, or it has been compacted.
pub(crate) fn previous(store: &Store, key: &[u8], revision: i64) -> Result<Option<Bytes>, StoreError> {
    let at = revision - i64::from(!mutant::on(mutant::PreviousIsCurrent));
    let _pin = store.pin(at);
    if at < store.compact_revision() {
        return Ok(None);
    }
    store.get(key, at).map(|found| store.read(found.location)).transpose()
}

/// Encodes an event as field 11 of a `WatchResponse`. `deleted_at`: the event is a DELETE, whose pair gets this
/// `mod_revision`, which a tombstone does not store.
pub(crate) fn frame(payload: &[u8], deleted_at: Option<i64>, previous: Option<&[u8]>) -> Bytes {
    let delimited = |len: usize| 1 + encoded_len_varint(len as u64) + len;
    let kv_len = payload.len() + deleted_at.map_or(0, |revision| 1 + encoded_len_varint(revision as u64));
    let type_len = if deleted_at.is_some() { 2 } else { 0 };
    let event_len = type_len + delimited(kv_len) + previous.map_or(0, |previous| delimited(previous.len()));
    let mut out = BytesMut::with_capacity(delimited(event_len));
    out.put_u8(EVENTS);
    encode_varint(event_len as u64, &mut out);
    if deleted_at.is_some() {
        out.put_slice(&[TYPE, DELETE]);
    }
    out.put_u8(KV);
    encode_varint(kv_len as u64, &mut out);
    out.put_slice(payload);
    if let Some(revision) = deleted_at {
        out.put_u8(MOD_REVISION);
        encode_varint(revision as u64, &mut out);
    }
    if let Some(previous) = previous {
        out.put_u8(PREV_KV);
        encode_varint(previous.len() as u64, &mut out);
        out.put_slice(previous);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::etcdserverpb::WatchResponse;
    use proto::mvccpb::{self, KeyValue, event::EventType};

    fn pair(mod_revision: i64, value: &'static str) -> KeyValue {
        KeyValue { key: "k".into(), create_revision: 2, mod_revision, version: 1, value: value.into(), lease: 7 }
    }

    fn decode(framed: Bytes) -> mvccpb::Event {
        WatchResponse::decode(framed).expect("a response with one event").events.remove(0)
    }

    #[test]
    fn a_frame_is_a_response_with_one_event() {
        let (new, old) = (pair(300, "new"), pair(2, "old"));
        let event = decode(frame(&new.encode_to_vec(), None, Some(&old.encode_to_vec())));
        let kv = Some(new);
        assert_eq!(event, mvccpb::Event { r#type: EventType::Put as i32, kv, prev_kv: Some(old) });
    }

    #[test]
    fn a_deletion_tells_the_key_and_when() {
        let tombstone = KeyValue { key: "k".into(), ..Default::default() };
        let event = decode(frame(&tombstone.encode_to_vec(), Some(300), None));
        let kv = Some(KeyValue { key: "k".into(), mod_revision: 300, ..Default::default() });
        assert_eq!(event, mvccpb::Event { r#type: EventType::Delete as i32, kv, prev_kv: None });
    }
}
