//! The small tables beside the keys: leases, users, members. Newest wins, and all of it is in memory.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Bound;

use bytes::Bytes;

use crate::Table;
use crate::frame::{self, HEADER};

/// All rows of all tables.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    rows: BTreeMap<Table, BTreeMap<Bytes, Bytes>>,
    live_bytes: u64,
}

/// Payload of a row's frame: table, key, value. A removal has an empty value.
pub(crate) fn encode_row(out: &mut Vec<u8>, table: Table, key: &[u8], value: &[u8]) {
    out.push(table as u8);
    frame::put_bytes(out, key);
    out.extend_from_slice(value);
}

/// Reads what [`encode_row`] wrote.
pub(crate) fn decode_row(mut payload: &[u8]) -> Option<(Table, &[u8], &[u8])> {
    let (&table, rest) = payload.split_first()?;
    payload = rest;
    let key = frame::get_bytes(&mut payload)?;
    Some((Table::from_byte(table)?, key, payload))
}

/// About what a row takes in a segment.
fn cost(key: &[u8], value: &[u8]) -> u64 {
    (HEADER + 2 + key.len() + value.len()) as u64
}

impl Tables {
    pub(crate) fn set(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.live_bytes += cost(key, value);
        let rows = self.rows.entry(table).or_default();
        let value = Bytes::copy_from_slice(value);
        // Most rows are there already: another key would be made only to be thrown away.
        let old = match rows.get_mut(key) {
            Some(place) => Some(mem::replace(place, value)),
            None => rows.insert(Bytes::copy_from_slice(key), value),
        };
        if let Some(old) = old {
            self.live_bytes -= cost(key, &old);
        }
    }

    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) {
        if let Some(old) = self.rows.get_mut(&table).and_then(|rows| rows.remove(key)) {
            self.live_bytes -= cost(key, &old);
        }
    }

    pub(crate) fn row(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.rows.get(&table)?.get(key).cloned()
    }

    pub(crate) fn rows(&self, table: Table) -> Vec<(Bytes, Bytes)> {
        self.rows.get(&table).into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// About the bytes that the rows need in a segment.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The first `count` rows of all tables behind `after`.
    pub(crate) fn behind(&self, after: Option<&(Table, Bytes)>, count: usize) -> Vec<(Table, Bytes, Bytes)> {
        let from = after.map_or(Bound::Unbounded, |(table, _)| Bound::Included(*table));
        self.rows
            .range((from, Bound::Unbounded))
            .flat_map(|(&table, rows)| {
                let from = match after {
                    Some((in_table, key)) if *in_table == table => Bound::Excluded(key.clone()),
                    _ => Bound::Unbounded,
                };
                rows.range((from, Bound::Unbounded)).map(move |(key, value)| (table, key.clone(), value.clone()))
            })
            .take(count)
            .collect()
    }
}
