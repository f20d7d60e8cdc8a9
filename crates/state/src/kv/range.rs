//! Ranges at one revision.
//!
//! A range is answered in two steps: [`select`] walks the index and decides which versions belong to the answer,
//! looking at no value; then their bytes are read and either decoded ([`range`]) or passed on as they are
//! ([`encode`]).

use std::cmp::Reverse;
use std::ops::ControlFlow;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::mvccpb::KeyValue;
use store::{Found, KeyMeta, KeyRange, Location, Pin, RangeEnd, Store, StoreError};

use super::{Failure, decode, read};
use crate::Error;

/// Versions that belong to an answer.
struct Selection {
    items: Vec<Item>,
    /// The items' keys, one after the other, if they were asked for.
    keys: Bytes,
    count: i64,
    more: bool,
}

struct Item {
    found: Found,
    key_start: usize,
    key_end: usize,
}

/// How a request wants its answer.
struct Plan {
    order: SortOrder,
    target: SortTarget,
    /// Keys to keep at the end; `usize::MAX` = all.
    limit: usize,
    /// Keys to look at; fewer than all only if they are the first ones anyway.
    fetch: usize,
    filtered: bool,
    /// Everything asked for is in the index.
    index_only: bool,
}

impl Plan {
    fn of(request: &pb::RangeRequest) -> Self {
        let asked = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        let order = match (asked, target) {
            // The index is in key order already.
            (SortOrder::Ascend, SortTarget::Key) => SortOrder::None,
            (SortOrder::None, target) if target != SortTarget::Key => SortOrder::Ascend,
            (order, _) => order,
        };
        let filtered = request.min_mod_revision != 0
            || request.max_mod_revision != 0
            || request.min_create_revision != 0
            || request.max_create_revision != 0;
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        // As in etcd, a limit without an order cuts before a sort by target, not after it.
        let cut_early = !filtered && (asked == SortOrder::None || order == SortOrder::None);
        let fetch = if cut_early { limit.saturating_add(1) } else { usize::MAX };
        let index_only = request.keys_only && target != SortTarget::Value;
        Self { order, target, limit, fetch, filtered, index_only }
    }
}

fn passes(request: &pb::RangeRequest, meta: &KeyMeta) -> bool {
    let within = |revision: i64, min: i64, max: i64| (min == 0 || revision >= min) && (max == 0 || revision <= max);
    within(meta.modified.main, request.min_mod_revision, request.max_mod_revision)
        && within(meta.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Walks the index. Sorting by value needs the values and is left to the caller, and with it the limit.
fn select(store: &Store, request: &pb::RangeRequest, plan: &Plan, at: i64) -> Selection {
    let keys = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    if request.count_only {
        return Selection { items: Vec::new(), keys: Bytes::new(), count: store.count(&keys, at), more: false };
    }
    let mut items: Vec<Item> = Vec::new();
    let mut key_bytes = Vec::new();
    let mut seen = 0;
    let mut visit = |key: &[u8], found: Found| {
        seen += 1;
        if plan.filtered && !passes(request, &found.meta) {
            return ControlFlow::Continue(());
        }
        let key_start = key_bytes.len();
        if plan.index_only {
            key_bytes.extend_from_slice(key);
        }
        items.push(Item { found, key_start, key_end: key_bytes.len() });
        if items.len() >= plan.fetch { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    if keys.end == RangeEnd::Single {
        if let Some(found) = store.get(&keys.start, at) {
            let _ = visit(&keys.start, found);
        }
    } else {
        store.scan(&keys, at, &mut visit);
    }
    let count = if items.len() >= plan.fetch { store.count(&keys, at) } else { seen };
    sort(&mut items, plan);
    let mut more = false;
    if plan.target != SortTarget::Value && items.len() > plan.limit {
        items.truncate(plan.limit);
        more = true;
    }
    Selection { items, keys: key_bytes.into(), count, more }
}

fn sort(items: &mut [Item], plan: &Plan) {
    if plan.order == SortOrder::None {
        return;
    }
    let by: fn(&Item) -> i64 = match plan.target {
        SortTarget::Version => |item| item.found.meta.version,
        SortTarget::Create => |item| item.found.meta.create_revision,
        SortTarget::Mod => |item| item.found.meta.modified.main,
        // In this order already.
        SortTarget::Key if plan.order == SortOrder::Descend => return items.reverse(),
        SortTarget::Key | SortTarget::Value => return,
    };
    // What is equal stays in the order of keys, either way.
    match plan.order {
        SortOrder::Descend => items.sort_by_key(|item| Reverse(by(item))),
        _ => items.sort_by_key(by),
    }
}

/// Pins the revision that a request wants; what is looked up at it must be asked of [`Pin::store`]. `current`: the newest revision it may see.
pub(crate) fn pin(store: &Store, requested: i64, current: i64) -> Result<(Pin, i64), Error> {
    let at = if requested <= 0 { current } else { requested };
    if at > current {
        return Err(Error::FutureRev);
    }
    let pin = store.pin(at);
    // Only now: a compaction that is asked for later leaves alone what is visible at the pin.
    if at < pin.store().compact_revision() {
        return Err(Error::Compacted);
    }
    Ok((pin, at))
}

/// Pins the newest revision.
pub(crate) fn pin_newest(store: &Store) -> (Pin, i64) {
    loop {
        // A compaction may overtake us between the two steps; then there is a newer revision to take.
        if let Ok(pinned) = pin(store, 0, store.revision()) {
            return pinned;
        }
    }
}

/// Answers a range; `current` is the newest revision it may see, and the revision of its header.
pub(crate) fn range(store: &Store, request: &pb::RangeRequest, current: i64) -> Result<pb::RangeResponse, Failure> {
    let (pin, at) = pin(store, request.revision, current)?;
    range_at(pin.store(), request, at, current)
}

/// The same at a revision that the caller has pinned.
pub(crate) fn range_at(
    store: &Store,
    request: &pb::RangeRequest,
    at: i64,
    current: i64,
) -> Result<pb::RangeResponse, Failure> {
    let plan = Plan::of(request);
    let Selection { items, keys, count, mut more } = select(store, request, &plan, at);
    let mut kvs = Vec::with_capacity(items.len());
    if plan.index_only {
        kvs.extend(items.iter().map(|item| key_only(item, &keys)));
    } else if let [item] = items.as_slice() {
        kvs.push(read(store, &item.found)?);
    } else {
        let locations: Vec<Location> = items.iter().map(|item| item.found.location).collect();
        let mut broken = None;
        store.read_many(&locations, &mut |payload| match decode(payload) {
            Ok(kv) => kvs.push(kv),
            Err(failure) => broken = Some(failure),
        })?;
        if let Some(failure) = broken {
            return Err(failure);
        }
    }
    if plan.target == SortTarget::Value {
        match plan.order {
            SortOrder::Descend => kvs.sort_by(|a, b| b.value.cmp(&a.value)),
            _ => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
        }
        if kvs.len() > plan.limit {
            kvs.truncate(plan.limit);
            more = true;
        }
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    let header = pb::ResponseHeader { revision: current, ..Default::default() };
    Ok(pb::RangeResponse { header: Some(header), kvs, more, count })
}

fn key_only(item: &Item, keys: &Bytes) -> KeyValue {
    let meta = &item.found.meta;
    KeyValue {
        key: keys.slice(item.key_start..item.key_end),
        create_revision: meta.create_revision,
        mod_revision: meta.modified.main,
        version: meta.version,
        value: Bytes::new(),
        lease: 0,
    }
}

/// Tags of `RangeResponse`.
const HEADER: u8 = 1 << 3 | 2;
const KVS: u8 = 2 << 3 | 2;
const MORE: u8 = 3 << 3;
const COUNT: u8 = 4 << 3;

/// Answers a plain range of one key at the newest revision as wire bytes, without the cost of a pin; the commonest
/// request there is. `false`: it is not that plain, or a compaction came in between; nothing has been written.
pub(crate) fn encode_newest_of_one(
    store: &Store,
    request: &pb::RangeRequest,
    header: &pb::ResponseHeader,
    out: &mut BytesMut,
) -> Result<bool, Failure> {
    let plan = Plan::of(request);
    let plain = !plan.index_only && !plan.filtered && !request.count_only && plan.target != SortTarget::Value;
    if !plain || !request.range_end.is_empty() || request.revision > 0 {
        return Ok(false);
    }
    let store = &store.view();
    let current = store.revision();
    let payload = match store.get(&request.key, current).map(|found| store.read(found.location)) {
        None => None,
        Some(Ok(payload)) => Some(payload),
        Some(Err(StoreError::Compacted)) => return Ok(false),
        Some(Err(error)) => return Err(error.into()),
    };
    // A compaction above the revision that we looked at may have taken away what was visible there.
    if store.compact_revision() > current {
        return Ok(false);
    }
    let header = pb::ResponseHeader { revision: current, ..*header };
    out.reserve(64 + payload.as_ref().map_or(0, Bytes::len));
    put_header(&header, out);
    if let Some(payload) = payload {
        put_kv(&payload, out);
        out.put_slice(&[COUNT, 1]);
    }
    Ok(true)
}

/// Answers a range at a pinned revision as wire bytes: stored bytes are passed on undecoded. `header.revision` is
/// replaced by `current`.
pub(crate) fn encode(
    store: &Store,
    request: &pb::RangeRequest,
    at: i64,
    current: i64,
    header: &pb::ResponseHeader,
    out: &mut BytesMut,
) -> Result<(), Failure> {
    let plan = Plan::of(request);
    let header = pb::ResponseHeader { revision: current, ..*header };
    if plan.target == SortTarget::Value {
        let mut response = range_at(store, request, at, current)?;
        response.header = Some(header);
        out.reserve(response.encoded_len());
        response.encode_raw(out);
        return Ok(());
    }
    let start = out.len();
    let written = (|| {
        put_header(&header, out);
        let Selection { items, keys, count, more } = select(store, request, &plan, at);
        if plan.index_only {
            for item in &items {
                let kv = key_only(item, &keys);
                out.put_u8(KVS);
                encode_varint(kv.encoded_len() as u64, out);
                kv.encode_raw(out);
            }
        } else if let [item] = items.as_slice() {
            put_kv(&store.read(item.found.location)?, out);
        } else if !items.is_empty() {
            let locations: Vec<Location> = items.iter().map(|item| item.found.location).collect();
            store.read_many(&locations, &mut |payload| put_kv(&payload, out))?;
        }
        if more {
            out.put_slice(&[MORE, 1]);
        }
        if count != 0 {
            out.put_u8(COUNT);
            encode_varint(count as u64, out);
        }
        Ok(())
    })();
    if written.is_err() {
        // Half an answer must not be left in the caller's buffer.
        out.truncate(start);
    }
    written
}

fn put_header(header: &pb::ResponseHeader, out: &mut BytesMut) {
    out.put_u8(HEADER);
    encode_varint(header.encoded_len() as u64, out);
    header.encode_raw(out);
}

fn put_kv(payload: &Bytes, out: &mut BytesMut) {
    out.reserve(1 + encoded_len_varint(payload.len() as u64) + payload.len());
    out.put_u8(KVS);
    encode_varint(payload.len() as u64, out);
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_cuts_the_walk_short_only_if_the_first_keys_are_the_answer() {
        let fetch = |order: SortOrder, target: SortTarget, min_mod_revision: i64| {
            let request = pb::RangeRequest {
                limit: 5,
                sort_order: order as i32,
                sort_target: target as i32,
                min_mod_revision,
                ..Default::default()
            };
            Plan::of(&request).fetch
        };
        assert_eq!(fetch(SortOrder::None, SortTarget::Key, 0), 6);
        assert_eq!(fetch(SortOrder::Ascend, SortTarget::Key, 0), 6);
        assert_eq!(fetch(SortOrder::Descend, SortTarget::Key, 0), usize::MAX);
        assert_eq!(fetch(SortOrder::Ascend, SortTarget::Version, 0), usize::MAX);
        assert_eq!(fetch(SortOrder::None, SortTarget::Key, 1), usize::MAX);
        let negative = pb::RangeRequest { limit: -1, ..Default::default() };
        assert_eq!(Plan::of(&negative).limit, usize::MAX);
    }
}
