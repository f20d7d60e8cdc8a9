//! Transactions: all compares first, then all checks, then all changes.
//!
//! The order makes a transaction atomic without anything to roll back. Which branch is taken, in nested transactions
//! too, depends on the state at the start alone. Every operation of the chosen branches is then checked, and only
//! when all may succeed is the first one carried out.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as OpResponse;
use proto::mvccpb::KeyValue;
use store::{Found, KeyRange, Location, Pin, RangeEnd, Store};

use super::range::{pin_newest, range, range_at};
use super::write::WriteTxn;
use super::{Failure, decode, read};
use crate::{Error, Lessor};

/// Whether a transaction can only read. A nested transaction counts as a write.
pub(crate) fn is_read_only(request: &pb::TxnRequest) -> bool {
    ops(request).all(|op| matches!(op.request, Some(Op::RequestRange(_))))
}

/// Whether all its ranges are serializable.
pub(crate) fn is_serializable(request: &pb::TxnRequest) -> bool {
    ops(request).all(|op| matches!(&op.request, Some(Op::RequestRange(range)) if range.serializable))
}

fn ops(request: &pb::TxnRequest) -> impl Iterator<Item = &pb::RequestOp> {
    request.success.iter().chain(&request.failure)
}

/// The branches that a transaction takes.
struct Chosen<'a> {
    succeeded: bool,
    steps: Vec<Step<'a>>,
}

enum Step<'a> {
    Range(&'a pb::RangeRequest),
    Put(&'a pb::PutRequest),
    DeleteRange(&'a pb::DeleteRangeRequest),
    Txn(Chosen<'a>),
}

impl<'a> Chosen<'a> {
    /// Evaluates the compares at the pinned revision `at`, those of nested transactions too. How deep they nest was
    /// bounded when the request was decoded.
    fn decide(store: &Store, request: &'a pb::TxnRequest, at: i64) -> Result<Self, Failure> {
        let mut succeeded = true;
        let skipped = if mutant::on(mutant::LastCompareCounts) { request.compare.len().saturating_sub(1) } else { 0 };
        for compare in request.compare.iter().skip(skipped) {
            if !holds(store, compare, at)? {
                succeeded = false;
                break;
            }
        }
        let branch = if succeeded { &request.success } else { &request.failure };
        let mut steps = Vec::with_capacity(branch.len());
        for op in branch {
            steps.push(match &op.request {
                Some(Op::RequestRange(request)) => Step::Range(request),
                Some(Op::RequestPut(request)) => Step::Put(request),
                Some(Op::RequestDeleteRange(request)) => Step::DeleteRange(request),
                Some(Op::RequestTxn(request)) => Step::Txn(Self::decide(store, request, at)?),
                None => return Err(Error::KeyNotFound.into()),
            });
        }
        Ok(Self { succeeded, steps })
    }

    /// Whether every put may succeed.
    fn check_puts(
        &self,
        store: &Store,
        lessor: &Lessor,
        at: i64,
        deleted: &mut Vec<&'a pb::DeleteRangeRequest>,
    ) -> Result<(), Error> {
        for step in &self.steps {
            match step {
                Step::Put(request) => {
                    // A delete before it in the same transaction may take the key away: only open-ended deletes get
                    // past the check for duplicates.
                    let needs_key = request.ignore_value || request.ignore_lease;
                    let taken = || deleted.iter().any(|range| covers(range, &request.key));
                    if needs_key && (taken() || store.get(&request.key, at).is_none()) {
                        return Err(Error::KeyNotFound);
                    }
                    if request.lease != 0 && !lessor.exists(request.lease) {
                        return Err(Error::LeaseNotFound);
                    }
                }
                Step::DeleteRange(request) => deleted.push(request),
                Step::Txn(nested) => nested.check_puts(store, lessor, at, deleted)?,
                Step::Range(_) => {}
            }
        }
        Ok(())
    }

    /// Whether every range asks for a revision that is there.
    fn check_ranges(&self, current: i64, compacted: i64) -> Result<(), Error> {
        for step in &self.steps {
            match step {
                Step::Range(request) if request.revision == 0 => {}
                Step::Range(request) if request.revision > current => return Err(Error::FutureRev),
                Step::Range(request) if request.revision < compacted => return Err(Error::Compacted),
                Step::Txn(nested) => nested.check_ranges(current, compacted)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&self, txn: &mut WriteTxn) -> Result<pb::TxnResponse, Failure> {
        let mut responses = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            responses.push(op_response(match step {
                Step::Range(request) => OpResponse::ResponseRange(txn.range(request)?),
                Step::Put(request) => OpResponse::ResponsePut(txn.put(request)?),
                Step::DeleteRange(request) => OpResponse::ResponseDeleteRange(txn.delete_range(request)?),
                Step::Txn(nested) => OpResponse::ResponseTxn(nested.run(txn)?),
            }));
        }
        // A nested header stays empty, but is there.
        Ok(pb::TxnResponse { header: Some(pb::ResponseHeader::default()), succeeded: self.succeeded, responses })
    }
}

fn op_response(response: OpResponse) -> pb::ResponseOp {
    pb::ResponseOp { response: Some(response) }
}

fn covers(request: &pb::DeleteRangeRequest, key: &[u8]) -> bool {
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    match &range.end {
        RangeEnd::Single => key == range.start.as_ref(),
        RangeEnd::Unbounded => key >= range.start.as_ref(),
        RangeEnd::Before(end) => key >= range.start.as_ref() && key < end.as_ref(),
    }
}

/// Carries out a transaction that came through the log.
pub(crate) fn execute(txn: &mut WriteTxn, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Failure> {
    let begin = txn.revision();
    let _pin = txn.store().pin(begin);
    let chosen = Chosen::decide(txn.store(), request, begin)?;
    if !is_read_only(request) {
        chosen.check_puts(txn.store(), txn.lessor(), begin, &mut Vec::new())?;
    }
    chosen.check_ranges(begin, txn.store().compact_revision())?;
    let mut response = match chosen.run(txn) {
        Err(Failure::Refused(error)) => panic!("an operation was refused after all had been checked: {error}"),
        other => other?,
    };
    response.header = txn.header();
    Ok(response)
}

/// Carries out a transaction that can only read, beside the applying side.
pub(crate) fn execute_read_only(store: &Store, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Failure> {
    let (pin, current): (Pin, i64) = pin_newest(store);
    let store = pin.store();
    let chosen = Chosen::decide(store, request, current)?;
    chosen.check_ranges(current, store.compact_revision())?;
    let mut responses = Vec::with_capacity(chosen.steps.len());
    for step in &chosen.steps {
        let Step::Range(request) = step else {
            return Err(Error::Internal("a transaction with writes was taken for one that only reads".into()).into());
        };
        let response = if request.revision <= 0 {
            range_at(store, request, current, current)?
        } else {
            range(store, request, current)?
        };
        responses.push(op_response(OpResponse::ResponseRange(response)));
    }
    let header = Some(pb::ResponseHeader { revision: current, ..Default::default() });
    Ok(pb::TxnResponse { header, succeeded: chosen.succeeded, responses })
}

/// Whether a compare holds for every living key of its range. Of an empty range only "is not there" can hold.
fn holds(store: &Store, compare: &pb::Compare, at: i64) -> Result<bool, Failure> {
    let range = KeyRange::from_wire(compare.key.clone(), compare.range_end.clone());
    let target = CompareTarget::try_from(compare.target);
    let in_values = matches!(target, Ok(CompareTarget::Value | CompareTarget::Lease));
    if range.end == RangeEnd::Single {
        let Some(found) = store.get(&range.start, at) else { return Ok(holds_for_nothing(compare)) };
        let pair = if in_values { read(store, &found)? } else { meta_only(&found) };
        return Ok(holds_for(compare, &pair));
    }
    let mut any = false;
    let mut all = true;
    let mut locations: Vec<Location> = Vec::new();
    store.scan(&range, at, &mut |_, found| {
        any = true;
        if in_values {
            locations.push(found.location);
        } else if !holds_for(compare, &meta_only(&found)) {
            all = false;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    if !any {
        return Ok(holds_for_nothing(compare));
    }
    // In pieces, so that the first pair that differs saves reading the rest.
    for piece in locations.chunks(256) {
        let mut broken = None;
        store.read_many(piece, &mut |payload| match decode(payload) {
            Ok(pair) => all &= holds_for(compare, &pair),
            Err(failure) => broken = Some(failure),
        })?;
        if let Some(failure) = broken {
            return Err(failure);
        }
        if !all {
            break;
        }
    }
    Ok(all)
}

fn meta_only(found: &Found) -> KeyValue {
    KeyValue {
        create_revision: found.meta.create_revision,
        mod_revision: found.meta.modified.main,
        version: found.meta.version,
        ..Default::default()
    }
}

/// A key that is not there has version, revisions and lease 0, but no value to compare with.
fn holds_for_nothing(compare: &pb::Compare) -> bool {
    compare.target != CompareTarget::Value as i32 && holds_for(compare, &KeyValue::default())
}

fn holds_for(compare: &pb::Compare, pair: &KeyValue) -> bool {
    // An operand of another target than the one named counts as not given: 0, or the empty value.
    let order = match (CompareTarget::try_from(compare.target), &compare.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(operand))) => pair.version.cmp(operand),
        (Ok(CompareTarget::Version), _) => pair.version.cmp(&0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(operand))) => pair.create_revision.cmp(operand),
        (Ok(CompareTarget::Create), _) => pair.create_revision.cmp(&0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(operand))) => pair.mod_revision.cmp(operand),
        (Ok(CompareTarget::Mod), _) => pair.mod_revision.cmp(&0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(operand))) => pair.value.cmp(operand),
        (Ok(CompareTarget::Value), _) => pair.value.as_ref().cmp(&[]),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(operand))) => pair.lease.cmp(operand),
        (Ok(CompareTarget::Lease), _) => pair.lease.cmp(&0),
        (Err(_), _) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}
