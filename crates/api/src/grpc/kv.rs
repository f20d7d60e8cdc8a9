//! The KV service.

use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use proto::etcdserverpb as pb;
use state::{Error, Reader, check};
use store::KeyRange;
use tokio::task::{spawn_blocking, spawn_local, yield_now};

use crate::grpc::guard::Unguarded;
use crate::grpc::wire::Responder;
use crate::grpc::{Read, read};
use crate::slow::Subject;
use crate::worker::{Worker, frame_into};

/// A range that may touch more keys than this is read on a blocking thread: it takes longer than the other connections
/// of the worker should wait.
const WIDE_KEYS: usize = 1000;

pub(crate) fn range(worker: &Rc<Worker>, responder: Responder, request: Unguarded<pb::RangeRequest>) {
    let serializable = request.peek().serializable;
    if worker.member().is_learner() && !serializable {
        return responder.refuse(worker, Error::NotSupportedForLearner);
    }
    if let Err(error) = check::range(request.peek()) {
        return responder.refuse(worker, error);
    }
    read(worker, responder, request.map(Read::Range), serializable);
}

/// Answers a checked range from what this member has applied.
pub(crate) fn run_range(worker: &Rc<Worker>, responder: Responder, request: pb::RangeRequest) {
    worker.shared.metrics.ranges.inc();
    let reader = worker.member().state();
    let header = worker.header(0);
    if !is_wide(reader, &request) {
        let frame = worker.frame_with(|out| reader.range_encoded(&request, &header, out));
        return answer_read(worker, responder, frame, Subject::Range(&request));
    }
    let (worker, reader) = (worker.clone(), reader.clone());
    spawn_local(async move {
        // Bytes are shared, so this copies no key.
        let about = request.clone();
        let read = spawn_blocking(move || {
            frame_into(&mut BytesMut::new(), |out| reader.range_encoded(&request, &header, out))
        });
        let frame = read.await.unwrap_or(Err(Error::Stopped));
        answer_read(&worker, responder, frame, Subject::Range(&about));
    });
}

/// Answers with what was read, unless users or roles have changed since the caller was looked at.
fn answer_read(worker: &Worker, responder: Responder, frame: Result<Bytes, Error>, subject: Subject<'_>) {
    let frame = worker.holds(&responder.access).and(frame);
    responder.answer_about(worker, frame, subject);
}

/// Whether a range may take so long that it must not run on the worker's own thread.
fn is_wide(reader: &Reader, request: &pb::RangeRequest) -> bool {
    if request.range_end.is_empty() {
        return false;
    }
    let plain = request.sort_order == 0
        && request.sort_target == 0
        && request.min_mod_revision == 0
        && request.max_mod_revision == 0
        && request.min_create_revision == 0
        && request.max_create_revision == 0
        && !request.count_only;
    // With sorting, filters or counting the limit does not bound the work; `count` does not bound it either, but that
    // is the index's own business and quick.
    if plain && (1..=WIDE_KEYS as i64).contains(&request.limit) {
        return false;
    }
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let at = if request.revision > 0 { request.revision } else { reader.revision() };
    let mut seen = 0;
    reader.store().scan(&range, at, &mut |_, _| {
        seen += 1;
        if seen > WIDE_KEYS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    seen > WIDE_KEYS
}

pub(crate) fn put(worker: &Rc<Worker>, responder: Responder, request: pb::PutRequest) {
    if let Err(error) = check::put(&request) {
        return responder.refuse(worker, error);
    }
    worker.propose(pb::InternalRaftRequest { put: Some(request), ..Default::default() }, responder);
}

pub(crate) fn delete_range(worker: &Rc<Worker>, responder: Responder, request: pb::DeleteRangeRequest) {
    if let Err(error) = check::delete_range(&request) {
        return responder.refuse(worker, error);
    }
    worker.propose(pb::InternalRaftRequest { delete_range: Some(request), ..Default::default() }, responder);
}

pub(crate) fn txn(worker: &Rc<Worker>, responder: Responder, request: Unguarded<pb::TxnRequest>) {
    if let Err(error) = check::txn(request.peek(), worker.member().limits().max_txn_ops) {
        return responder.refuse(worker, error);
    }
    if Reader::is_read_only(request.peek()) {
        let serializable = Reader::is_serializable(request.peek());
        return read(worker, responder, request.map(Read::Txn), serializable);
    }
    request.pass(worker, responder, |worker, responder, request| {
        worker.propose(pb::InternalRaftRequest { txn: Some(request), ..Default::default() }, responder);
    });
}

/// Answers a checked, read-only txn from what this member has applied.
pub(crate) fn run_txn(worker: &Rc<Worker>, responder: Responder, request: pb::TxnRequest) {
    let reader = worker.member().state();
    if !ranges_of(&request).any(|range| is_wide(reader, range)) {
        return answer_txn(worker, responder, reader.txn_read_only(&request), &request);
    }
    let (worker, reader) = (worker.clone(), reader.clone());
    spawn_local(async move {
        let about = request.clone();
        let read = spawn_blocking(move || reader.txn_read_only(&request));
        answer_txn(&worker, responder, read.await.unwrap_or(Err(Error::Stopped)), &about);
    });
}

fn answer_txn(worker: &Worker, responder: Responder, result: Result<pb::TxnResponse, Error>, request: &pb::TxnRequest) {
    let frame = result.map(|mut response| {
        worker.complete(&mut response.header);
        worker.frame(&response)
    });
    answer_read(worker, responder, frame, Subject::Txn(request));
}

fn ranges_of(request: &pb::TxnRequest) -> impl Iterator<Item = &pb::RangeRequest> {
    request.success.iter().chain(&request.failure).filter_map(|op| match &op.request {
        Some(pb::request_op::Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

pub(crate) fn compact(worker: &Rc<Worker>, responder: Responder, request: pb::CompactionRequest) {
    worker.propose(pb::InternalRaftRequest { compaction: Some(request), ..Default::default() }, responder);
}

pub(crate) fn range_stream(worker: &Rc<Worker>, responder: Responder, request: Unguarded<pb::RangeRequest>) {
    if let Err(error) = check::range_stream(request.peek()) {
        return responder.refuse(worker, error);
    }
    let worker = worker.clone();
    spawn_local(async move {
        if !request.peek().serializable
            && let Err(error) = worker.barrier().await
        {
            return responder.refuse(&worker, error);
        }
        request.pass(&worker, responder, |worker, responder, request| {
            spawn_local(send_range(worker.clone(), responder, request));
        });
    });
}

async fn send_range(worker: Rc<Worker>, responder: Responder, request: pb::RangeRequest) {
    let access = responder.access.clone();
    worker.shared.metrics.ranges.inc();
    let max_bytes = worker.member().limits().max_request_bytes;
    let mut chunks = match worker.member().state().range_stream(request, max_bytes) {
        Ok(chunks) => chunks,
        Err(error) => return responder.refuse(&worker, error),
    };
    let Some(mut outgoing) = responder.stream(&worker) else { return };
    loop {
        let chunk = chunks.next_chunk();
        if let Err(error) = worker.holds(&access) {
            return outgoing.refuse(&worker, error);
        }
        let mut chunk = match chunk {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return outgoing.end(&worker),
            Err(error) => return outgoing.refuse(&worker, error),
        };
        // Only the last chunk has a header.
        if chunk.header.is_some() {
            worker.complete(&mut chunk.header);
        }
        let frame = worker.frame(&pb::RangeStreamResponse { range_response: Some(chunk) });
        if outgoing.send(&worker, frame).await.is_err() {
            return outgoing.abandoned(&worker);
        }
        yield_now().await;
    }
}
