//! What the store has done, held against what the writers asked for and were told.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};

use super::watcher::View;
use super::writer::Attempt;

/// The store's history up to a revision, and the writes that are not in it yet.
#[derive(Debug)]
pub struct History {
    revision: i64,
    pairs: BTreeMap<Bytes, KeyValue>,
    /// By their value, which only they have.
    attempts: HashMap<Bytes, Attempt>,
    /// The number of each writer's last write.
    last_of_writer: BTreeMap<usize, u64>,
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
            last_of_writer: BTreeMap::new(),
            new: Vec::new(),
        }
    }
}

impl History {
    /// The revision up to which everything was checked.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Takes note of writes that were sent.
    pub fn attempted(&mut self, attempts: Vec<Attempt>) {
        self.attempts.extend(attempts.into_iter().map(|attempt| (attempt.value.clone(), attempt)));
    }

    /// Follows the store's `events` up to `revision` and checks each write. After it nothing is open: a write that
    /// was not found now must never be found.
    pub fn extend(&mut self, events: impl Iterator<Item = Event>, revision: i64) -> Result<Counted, String> {
        let mut counted = Counted::default();
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
        }
        if self.revision != revision {
            return Err(format!("the history ends at revision {}, the store says {revision}", self.revision));
        }
        if let Some(lost) = self.attempts.values().find(|attempt| attempt.acknowledged.is_some()) {
            return Err(format!("an acknowledged write is lost: {lost:?}"));
        }
        counted.unanswered_not_done = self.attempts.len() as u64;
        self.attempts.clear();
        Ok(counted)
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
        let last = self.last_of_writer.entry(attempt.writer).or_default();
        if attempt.number <= *last {
            return Err(format!("revision {at}: the writer's write {last} came before {attempt:?}"));
        }
        *last = attempt.number;
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
        Attempt { writer: 1, number, puts: vec![(key.to_owned().into(), 0)], deletes: vec![], value, acknowledged }
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
}
