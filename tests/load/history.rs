//! What the store has done, held against what the writers asked for and were told.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};

use super::reader::Read;
use super::watcher::View;
use super::writer::Attempt;

/// The store's history up to a revision, and the writes that are not in it yet.
#[derive(Debug)]
pub struct History {
    revision: i64,
    pairs: BTreeMap<Bytes, KeyValue>,
    /// By their value, which only they have.
    attempts: HashMap<Bytes, Attempt>,
    /// Whether a write that nobody answered may still be done later, as one that a member held back.
    late_writes: bool,
    /// What was read and not yet held against the history.
    reads: Vec<Read>,
    /// The events since [`History::forget_new_events`], with the pair before each.
    new: Vec<Event>,
}

/// What a stretch of history was made of.
#[derive(Debug, Default)]
pub struct Counted {
    /// Writes with an answer.
    pub acknowledged: u64,
    /// Writes without, found.
    pub unanswered_done: u64,
    /// Writes without, not found.
    pub unanswered_not_done: u64,
}

impl Default for History {
    fn default() -> History {
        History {
            revision: 1,
            pairs: BTreeMap::new(),
            attempts: HashMap::new(),
            late_writes: false,
            reads: Vec::new(),
            new: Vec::new(),
        }
    }
}

impl History {
    /// The history of a cluster, in which a write without an answer may be done at any time: the member that has taken
    /// it may hand it on when it wakes up.
    pub fn with_late_writes() -> History {
        History { late_writes: true, ..History::default() }
    }

    /// Takes note of what was read since the last check.
    pub fn has_shown(&mut self, reads: Vec<Read>) {
        self.reads.extend(reads);
    }

    /// The revision up to which everything was checked.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Takes note of writes that were sent.
    pub fn attempted(&mut self, attempts: Vec<Attempt>) {
        self.attempts.extend(attempts.into_iter().map(|attempt| (attempt.value.clone(), attempt)));
    }

    /// Follows the store's `events` up to `revision` and checks each write, and each read against the state at its
    /// revision. After it nothing is open: a write that was not found now must never be found, unless late writes are
    /// possible.
    pub fn extend(&mut self, events: impl Iterator<Item = Event>, revision: i64) -> Result<Counted, String> {
        let mut counted = Counted::default();
        let mut reads = std::mem::take(&mut self.reads);
        reads.sort_by_key(|read| read.at);
        if let Some(stale) = reads.iter().find(|read| read.at < self.revision && read.floor > 0) {
            return Err(format!("a stale read, revision {} was known before: {stale:?}", self.revision));
        }
        let mut reads = reads.into_iter().peekable();
        // What is older now is a serializable read of a member that lagged; its state is gone and cannot be compared.
        while reads.next_if(|read| read.at < self.revision).is_some() {}
        self.shows(&mut reads)?;
        let mut events = events.peekable();
        while let Some(first) = events.next() {
            let at = mod_revision(&first);
            if at != self.revision + 1 {
                return Err(format!("revision {at} follows revision {}", self.revision));
            }
            let mut group = vec![first];
            while let Some(event) = events.next_if(|event| mod_revision(event) == at) {
                group.push(event);
            }
            let attempt = self.apply(at, &group)?;
            match attempt.acknowledged {
                Some(_) => counted.acknowledged += 1,
                None => counted.unanswered_done += 1,
            }
            self.revision = at;
            self.shows(&mut reads)?;
        }
        if let Some(read) = reads.next() {
            return Err(format!("a read from after the store's last revision {revision}: {read:?}"));
        }
        if self.revision != revision {
            return Err(format!("the history ends at revision {}, the store says {revision}", self.revision));
        }
        if let Some(lost) = self.attempts.values().find(|attempt| attempt.acknowledged.is_some()) {
            return Err(format!("an acknowledged write is lost: {lost:?}"));
        }
        counted.unanswered_not_done = self.attempts.len() as u64;
        if !self.late_writes {
            self.attempts.clear();
        }
        Ok(counted)
    }

    /// Checks the reads that were answered from the state as it is now in the history.
    fn shows(&self, reads: &mut std::iter::Peekable<impl Iterator<Item = Read>>) -> Result<(), String> {
        while let Some(read) = reads.next_if(|read| read.at == self.revision) {
            if read.at < read.floor {
                return Err(format!("a stale read: {read:?}"));
            }
            let there = self.pairs.get(&read.key);
            if there != read.pair.as_ref() {
                return Err(format!("a read that differs from the history, which has {there:?}: {read:?}"));
            }
        }
        Ok(())
    }

    /// One revision: it must be one write, whole, and as it was acknowledged.
    fn apply(&mut self, at: i64, group: &[Event]) -> Result<Attempt, String> {
        let value = group.iter().find_map(|event| event.kv.as_ref().filter(|pair| !pair.value.is_empty()));
        let value = value.map(|pair| &pair.value).ok_or_else(|| format!("revision {at} puts nothing: {group:?}"))?;
        let attempt = self.attempts.remove(value).ok_or_else(|| {
            format!("revision {at} was never asked for, or was there before, or was not there before: {group:?}")
        })?;
        if attempt.acknowledged.is_some_and(|acknowledged| acknowledged != at) {
            return Err(format!("acknowledged at another revision than {at}: {attempt:?}"));
        }
        if at <= attempt.floor {
            return Err(format!("revision {at} was done before it was asked for: {attempt:?}"));
        }
        let expected = self.events_of(&attempt, at);
        let equal = expected.len() == group.len()
            && expected
                .iter()
                .zip(group)
                .all(|(expected, event)| (expected.r#type, &expected.kv) == (event.r#type, &event.kv));
        if !equal {
            return Err(format!("revision {at} is {group:?}\nand should be {expected:?}"));
        }
        for event in expected {
            let pair = event.kv.clone().unwrap_or_default();
            match event.r#type() {
                EventType::Put => self.pairs.insert(pair.key.clone(), pair),
                EventType::Delete => self.pairs.remove(&pair.key),
            };
            self.new.push(event);
        }
        Ok(attempt)
    }

    /// The events that `attempt` makes when it is done at revision `at`.
    fn events_of(&self, attempt: &Attempt, at: i64) -> Vec<Event> {
        let puts = attempt.puts.iter().map(|(key, lease)| {
            let before = self.pairs.get(key);
            let pair = KeyValue {
                key: key.clone(),
                create_revision: before.map_or(at, |before| before.create_revision),
                mod_revision: at,
                version: before.map_or(0, |before| before.version) + 1,
                value: attempt.value.clone(),
                lease: *lease,
            };
            Event { r#type: EventType::Put.into(), kv: Some(pair), prev_kv: before.cloned() }
        });
        let deletes = attempt.deletes.iter().filter_map(|key| {
            let before = self.pairs.get(key)?;
            let pair = KeyValue { key: key.clone(), mod_revision: at, ..KeyValue::default() };
            Some(Event { r#type: EventType::Delete.into(), kv: Some(pair), prev_kv: Some(before.clone()) })
        });
        puts.chain(deletes).collect()
    }

    /// The store's current pairs are those that the history leads to.
    pub fn equals(&self, pairs: &[KeyValue]) -> Result<(), String> {
        if self.pairs.values().eq(pairs) {
            return Ok(());
        }
        let differing = self.pairs.values().zip(pairs).find(|(expected, pair)| expected != pair);
        let (expected, there) = (self.pairs.len(), pairs.len());
        Err(format!("the store has {there} pairs, its history leads to {expected}; first difference: {differing:?}"))
    }

    /// The keys attached to `lease` are those of the current pairs that name it.
    pub fn keys_of_lease(&self, lease: i64, keys: &[Bytes]) -> Result<(), String> {
        let attached: Vec<&Bytes> =
            self.pairs.iter().filter(|(_, pair)| pair.lease == lease).map(|(key, _)| key).collect();
        match keys.iter().eq(attached.iter().copied()) {
            true => Ok(()),
            false => Err(format!("the lease has the keys {keys:?}, it should have {attached:?}")),
        }
    }

    /// The new events as `view` shows them.
    pub fn new_events(&self, view: View) -> Vec<Event> {
        self.new.iter().filter(|event| view.shows(event)).map(|event| view.as_shown(event)).collect()
    }

    /// All watchers have been checked.
    pub fn forget_new_events(&mut self) {
        self.new.clear();
    }
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |pair| pair.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u64, key: &str, acknowledged: Option<i64>) -> Attempt {
        let value = Bytes::from(format!("value {number}"));
        Attempt { writer: 1, puts: vec![(key.to_owned().into(), 0)], deletes: vec![], value, floor: 0, acknowledged }
    }

    fn put(attempt: &Attempt, at: i64, create_revision: i64, version: i64) -> Event {
        let (key, value) = (attempt.puts[0].0.clone(), attempt.value.clone());
        let pair = KeyValue { key, create_revision, mod_revision: at, version, value, lease: 0 };
        Event { r#type: EventType::Put.into(), kv: Some(pair), prev_kv: None }
    }

    /// Two writes of one key, acknowledged at revisions 2 and 3.
    fn two_writes() -> (History, [Attempt; 2]) {
        let attempts = [attempt(1, "a", Some(2)), attempt(2, "a", Some(3))];
        let mut history = History::default();
        history.attempted(attempts.to_vec());
        (history, attempts)
    }

    fn complaint(outcome: Result<Counted, String>) -> String {
        outcome.expect_err("the history breaks a promise")
    }

    #[test]
    fn a_history_as_acknowledged_is_accepted() {
        let (mut history, [first, second]) = two_writes();
        let counted = history.extend([put(&first, 2, 2, 1), put(&second, 3, 2, 2)].into_iter(), 3).expect("as it was");
        assert_eq!((counted.acknowledged, counted.unanswered_done, counted.unanswered_not_done), (2, 0, 0));
        assert!(history.equals(&[]).is_err(), "an empty store is not what it leads to");
    }

    #[test]
    fn an_acknowledged_write_that_is_not_there_is_lost() {
        let (mut history, [first, _]) = two_writes();
        assert!(complaint(history.extend([put(&first, 2, 2, 1)].into_iter(), 2)).contains("lost"));
    }

    #[test]
    fn a_gap_between_revisions_is_found() {
        let (mut history, [_, second]) = two_writes();
        assert!(complaint(history.extend([put(&second, 3, 3, 1)].into_iter(), 3)).contains("follows revision 1"));
    }

    #[test]
    fn a_write_at_another_revision_than_acknowledged_is_found() {
        let (mut history, [_, second]) = two_writes();
        assert!(complaint(history.extend([put(&second, 2, 2, 1)].into_iter(), 2)).contains("another revision"));
    }

    #[test]
    fn a_write_done_twice_is_found() {
        let (mut history, [first, _]) = two_writes();
        let twice = [put(&first, 2, 2, 1), put(&first, 3, 2, 2)];
        assert!(complaint(history.extend(twice.into_iter(), 3)).contains("never asked for"));
    }

    #[test]
    fn half_a_transaction_is_found() {
        let mut whole = attempt(1, "a", None);
        whole.puts.push((Bytes::from_static(b"b"), 0));
        let mut history = History::default();
        history.attempted(vec![whole.clone()]);
        assert!(complaint(history.extend([put(&whole, 2, 2, 1)].into_iter(), 2)).contains("should be"));
    }

    #[test]
    fn a_wrong_version_is_found() {
        let (mut history, [first, second]) = two_writes();
        let wrong = [put(&first, 2, 2, 1), put(&second, 3, 2, 3)];
        assert!(complaint(history.extend(wrong.into_iter(), 3)).contains("should be"));
    }

    #[test]
    fn a_write_without_an_answer_may_be_there_or_not_but_not_later() {
        let unanswered = attempt(1, "a", None);
        let mut history = History::default();
        history.attempted(vec![unanswered.clone()]);
        assert_eq!(history.extend([].into_iter(), 1).expect("not done").unanswered_not_done, 1);
        assert!(complaint(history.extend([put(&unanswered, 2, 2, 1)].into_iter(), 2)).contains("never asked for"));
    }

    /// A proposal can wait in a member that stands still; it is then done after all.
    #[test]
    fn in_a_cluster_a_write_without_an_answer_may_be_done_later() {
        let unanswered = attempt(1, "a", None);
        let mut history = History::with_late_writes();
        history.attempted(vec![unanswered.clone()]);
        history.extend([].into_iter(), 1).expect("not done yet");
        assert_eq!(history.extend([put(&unanswered, 2, 2, 1)].into_iter(), 2).expect("done").unanswered_done, 1);
    }

    #[test]
    fn a_write_before_one_that_was_acknowledged_first_is_found() {
        let (mut history, [mut first, second]) = two_writes();
        (first.floor, first.acknowledged) = (2, None);
        history.attempted(vec![first.clone()]);
        let swapped = [put(&first, 2, 2, 1), put(&second, 3, 2, 2)];
        assert!(complaint(history.extend(swapped.into_iter(), 3)).contains("before it was asked for"));
    }

    /// Each read is held against the state at the revision that it names, and that revision against what was known.
    #[test]
    fn a_stale_or_wrong_read_is_found() {
        let judged = |at: i64, floor: i64, version: i64| {
            let (mut history, [first, second]) = two_writes();
            let events = [put(&first, 2, 2, 1), put(&second, 3, 2, 2)];
            let pair = events.iter().filter_map(|event| event.kv.clone()).find(|pair| pair.version == version);
            history.has_shown(vec![Read { key: Bytes::from_static(b"a"), at, pair, floor, member: 0 }]);
            history.extend(events.into_iter(), 3).map(|_| ())
        };
        assert_eq!(judged(3, 3, 2), Ok(()));
        assert_eq!(judged(2, 2, 1), Ok(()), "the second write was not acknowledged when it was sent");
        assert!(judged(2, 3, 1).expect_err("stale").contains("stale"));
        assert!(judged(3, 3, 1).expect_err("wrong").contains("differs"));
        assert!(judged(4, 3, 2).expect_err("too new").contains("after the store's last"));

        let (mut history, [first, second]) = two_writes();
        history.extend([put(&first, 2, 2, 1), put(&second, 3, 2, 2)].into_iter(), 3).expect("as it was");
        let read = |at, floor| Read { key: Bytes::from_static(b"a"), at, pair: None, floor, member: 0 };
        // A serializable read of a member that has gone back hides nothing.
        history.has_shown(vec![read(1, 0), read(2, 2)]);
        assert!(complaint(history.extend([].into_iter(), 3)).contains("stale"));
    }
}
