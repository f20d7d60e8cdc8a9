//! A client that watches, and whether what it is shown is what happened: all of it, once, in order, a revision as a whole.
//!
//! A watch knows up to which revision it has been shown everything. Whatever comes next names a revision, and must hold
//! exactly the changes from there up to that one, as the model has them.

use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::mvccpb::Event;
use state::watch::{Events, Output, OutputKind, WatchCreate};

use crate::ledger::{Violation, violation};
use crate::model::Model;

/// A watch, as its client knows it.
#[derive(Debug)]
pub struct Watch {
    /// What it asks for; the start is where it goes on after its stream was lost.
    pub create: WatchCreate,
    /// The first revision of which it has not been shown everything; 0 until its member has said.
    next: i64,
}

/// What an output means for its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// It goes on.
    Fine,
    /// The member cannot go on with a watch: its disk failed it.
    Broken,
}

impl Watch {
    /// A watch that has not been asked for yet.
    pub fn new(create: WatchCreate) -> Self {
        Self { next: create.start_revision, create }
    }

    /// What to ask for on a new stream: what is missing.
    pub fn resumed(&mut self) -> WatchCreate {
        self.create.start_revision = self.next;
        self.create.clone()
    }

    /// Whether it has been shown all that there is.
    pub fn is_complete(&self, model: &Model) -> bool {
        let from = self.next;
        from > 0 && (!model.knows(from) || model.events(&self.create, from, model.revision()).is_empty())
    }

    /// Takes what a member says about this watch, or about its whole stream.
    pub fn take(&mut self, output: &Output, model: &Model) -> Result<Means, Violation> {
        let revision = output.revision;
        if revision > model.revision() {
            return violation!("a watch was told of revision {revision}, and the newest is {}", model.revision());
        }
        match &output.kind {
            OutputKind::Created if self.next == 0 => self.next = revision + 1,
            OutputKind::Created => {}
            OutputKind::Events(events) => self.shown(&decoded(events)?, revision, model)?,
            OutputKind::Progress => self.shown(&[], revision, model)?,
            OutputKind::Canceled { compact_revision: 0, reason } if !reason.is_empty() => return Ok(Means::Broken),
            OutputKind::Canceled { compact_revision, .. } => {
                if *compact_revision > model.compact_revision() || *compact_revision <= self.next {
                    return violation!(
                        "a watch that had everything before {} was ended by a compaction at {compact_revision}; the newest is {}",
                        self.next,
                        model.compact_revision()
                    );
                }
                // What is gone is gone; the client begins again where there still is something.
                self.next = *compact_revision;
            }
            OutputKind::Rejected { reason } => return violation!("{:?} was refused: {reason}", self.create),
        }
        Ok(Means::Fine)
    }

    /// These are said to be all changes up to a revision that were still missing.
    fn shown(&mut self, events: &[Event], revision: i64, model: &Model) -> Result<(), Violation> {
        if model.knows(self.next) {
            let expected = model.events(&self.create, self.next, revision);
            let is_shown = |expected: &[Event]| {
                events.len() == expected.len()
                    && events.iter().zip(expected).all(|(event, expected)| is_same(event, expected, model))
            };
            if !is_shown(&expected) && !is_shown(&kept(&expected, model.compact_revision())) {
                return violation!(
                    "{:?} was shown up to {revision}, with everything before {} known: {events:?}, expected {expected:?}",
                    self.create,
                    self.next
                );
            }
        }
        self.next = self.next.max(revision + 1);
        Ok(())
    }
}

/// What a compaction leaves of events. At its own revision it keeps the last of each key, so that a pair that the same
/// transaction has deleted again is gone; etcd keeps as much.
fn kept(events: &[Event], compact_revision: i64) -> Vec<Event> {
    let place = |event: &Event| event.kv.as_ref().map(|pair| (pair.key.clone(), pair.mod_revision));
    let is_kept = |(at, event): &(usize, &Event)| {
        let compacted = event.kv.as_ref().is_some_and(|pair| pair.mod_revision <= compact_revision);
        !compacted || !events[at + 1..].iter().any(|later| place(later) == place(event))
    };
    events.iter().enumerate().filter(is_kept).map(|(_, event)| event.clone()).collect()
}

/// The previous pair may be gone where a compaction has passed.
fn is_same(event: &Event, expected: &Event, model: &Model) -> bool {
    let revision = expected.kv.as_ref().map_or(0, |pair| pair.mod_revision);
    let may_lack = event.prev_kv.is_none() && revision <= model.compact_revision();
    event.r#type == expected.r#type && event.kv == expected.kv && (event.prev_kv == expected.prev_kv || may_lack)
}

fn decoded(events: &Events) -> Result<Vec<Event>, Violation> {
    let frames: Vec<u8> = events.iter().flatten().copied().collect();
    match pb::WatchResponse::decode(frames.as_slice()) {
        Ok(response) => Ok(response.events),
        Err(error) => violation!("events that cannot be decoded: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::etcdserverpb::{DeleteRangeRequest, InternalRaftRequest, PutRequest};

    use super::*;

    /// `a` is made at revision 2, changed at 3, gone at 4; `b` is made at 5.
    fn model() -> Model {
        let mut model = Model::new(2);
        let put = |key: &'static str| Some(PutRequest { key: key.into(), value: "v".into(), ..Default::default() });
        let delete = Some(DeleteRangeRequest { key: "a".into(), ..Default::default() });
        for request in [
            InternalRaftRequest { put: put("a"), ..Default::default() },
            InternalRaftRequest { put: put("a"), ..Default::default() },
            InternalRaftRequest { delete_range: delete, ..Default::default() },
            InternalRaftRequest { put: put("b"), ..Default::default() },
        ] {
            model.apply(&request).expect("a request that it knows").expect("a fine request");
        }
        model
    }

    fn all(start_revision: i64) -> WatchCreate {
        let all = Bytes::from_static(b"\0");
        WatchCreate {
            key: all.clone(),
            range_end: all,
            start_revision,
            watch_id: 1,
            prev_kv: true,
            ..Default::default()
        }
    }

    /// What a watch is shown of some revisions, in a message that says to be complete up to `upto`.
    fn shown(model: &Model, from: i64, to: i64, upto: i64) -> Output {
        let events = model
            .events(&all(1), from, to)
            .into_iter()
            .map(|event| pb::WatchResponse { events: vec![event], ..Default::default() }.encode_to_vec().into());
        let kind = OutputKind::Events(events.collect::<Vec<Bytes>>().into());
        Output { watch_id: 1, revision: upto, kind }
    }

    #[test]
    fn a_watch_that_is_shown_everything_is_content() {
        let model = model();
        let mut watch = Watch::new(all(2));
        watch.take(&shown(&model, 2, 3, 3), &model).unwrap();
        assert!(!watch.is_complete(&model));
        watch.take(&shown(&model, 4, 5, 5), &model).unwrap();
        assert!(watch.is_complete(&model));
        watch.take(&Output { watch_id: -1, revision: 5, kind: OutputKind::Progress }, &model).unwrap();
    }

    /// Put and deleted by one transaction, at the revision of a compaction (seed 1796153455 of 2 minutes).
    #[test]
    fn a_compaction_keeps_the_last_of_a_key_at_its_revision() {
        let event = |revision| Event {
            kv: Some(proto::mvccpb::KeyValue { key: "a".into(), mod_revision: revision, ..Default::default() }),
            ..Event::default()
        };
        let events = [event(4), event(4), event(5), event(5)];
        assert_eq!(kept(&events, 4), [event(4), event(5), event(5)]);
        assert_eq!(kept(&events, 3), events);
    }

    #[test]
    fn a_watch_complains_about_what_is_missing_repeated_or_out_of_order() {
        let model = model();
        let progress = |revision| Output { watch_id: -1, revision, kind: OutputKind::Progress };
        for (what, outputs) in [
            ("one is missing", vec![shown(&model, 3, 5, 5)]),
            ("the message says to be complete, and is not", vec![shown(&model, 2, 3, 4)]),
            ("progress before the events", vec![shown(&model, 2, 3, 3), progress(4)]),
            ("one comes twice", vec![shown(&model, 2, 3, 3), shown(&model, 3, 4, 4)]),
            ("out of order", vec![shown(&model, 4, 4, 4), shown(&model, 2, 3, 4)]),
            ("from the future", vec![progress(6)]),
        ] {
            let mut watch = Watch::new(all(2));
            assert!(outputs.iter().any(|output| watch.take(output, &model).is_err()), "{what}");
        }
    }

    #[test]
    fn a_watch_complains_about_a_wrong_past_and_filters_that_do_not_filter() {
        let model = model();
        let mut without_past = Watch::new(WatchCreate { prev_kv: false, ..all(2) });
        assert!(without_past.take(&shown(&model, 2, 5, 5), &model).is_err());
        let mut only_deletes = Watch::new(WatchCreate { no_put: true, ..all(2) });
        assert!(only_deletes.take(&shown(&model, 2, 5, 5), &model).is_err());
        let mut only_b = Watch::new(WatchCreate { key: "b".into(), range_end: Bytes::new(), ..all(2) });
        assert!(only_b.take(&shown(&model, 2, 5, 5), &model).is_err());
    }

    #[test]
    fn a_compaction_ends_only_a_watch_that_needs_what_is_gone() {
        let mut model = model();
        let canceled = |compact_revision| {
            let kind = OutputKind::Canceled { compact_revision, reason: String::new() };
            Output { watch_id: 1, revision: 5, kind }
        };
        assert!(Watch::new(all(2)).take(&canceled(4), &model).is_err(), "nobody has compacted anything");
        let compaction = Some(pb::CompactionRequest { revision: 4, physical: false });
        model.apply(&InternalRaftRequest { compaction, ..Default::default() });
        Watch::new(all(2)).take(&canceled(4), &model).unwrap();
        assert!(Watch::new(all(4)).take(&canceled(4), &model).is_err(), "revision 4 is still there");
    }
}
