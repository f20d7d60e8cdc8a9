//! The Maintenance service.

use std::rc::Rc;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use sha2::{Digest, Sha256};
use state::Error;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::Instant;

use crate::grpc::wire::Responder;
use crate::member::{Answer, SnapshotSource};
use crate::worker::{Worker, mismatched};

/// Size of a snapshot's pieces on the wire.
const BLOB_BYTES: usize = 32 << 10;

pub(crate) fn alarm(worker: &Rc<Worker>, responder: Responder, request: pb::AlarmRequest) {
    worker.propose(pb::InternalRaftRequest { alarm: Some(request), ..Default::default() }, responder);
}

pub(crate) fn status(worker: &Rc<Worker>, responder: Responder, _: pb::StatusRequest) {
    let status = worker.member().status();
    let reader = worker.member().state();
    let mut errors = Vec::new();
    if status.leader == 0 {
        errors.push(Error::NoLeader.to_string());
    }
    for alarm in reader.alarms(0) {
        errors.push(format!("memberID:{} alarm:{}", alarm.member_id, alarm.alarm().as_str_name()));
    }
    let frame = worker.frame(&pb::StatusResponse {
        header: Some(worker.header(reader.revision())),
        version: status.version,
        db_size: status.db_size,
        leader: status.leader,
        raft_index: status.raft_index,
        raft_term: status.term,
        raft_applied_index: status.applied_index,
        errors,
        db_size_in_use: status.db_size_in_use,
        is_learner: status.is_learner,
        storage_version: status.storage_version,
        db_size_quota: status.quota_bytes,
        downgrade_info: Some(pb::DowngradeInfo {
            enabled: status.downgrade_target.is_some(),
            target_version: status.downgrade_target.unwrap_or_default(),
        }),
    });
    responder.message(worker, frame);
}

pub(crate) fn defragment(worker: &Rc<Worker>, responder: Responder, _: pb::DefragmentRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let metrics = worker.shared.metrics.clone();
        metrics.defrag_inflight.set(1);
        let begun = Instant::now();
        let answer = worker.ask(|member, reply| member.defragment(reply)).await;
        metrics.defrag.observe(begun.elapsed().as_secs_f64());
        metrics.defrag_inflight.set(0);
        // No header: the original gives none either.
        responder.answer(&worker, answer.map(|_| worker.frame(&pb::DefragmentResponse { header: None })));
    });
}

pub(crate) fn hash(worker: &Rc<Worker>, responder: Responder, _: pb::HashRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let begun = Instant::now();
        let member = worker.shared.member.clone();
        let hash = spawn_blocking(move || member.hash()).await.unwrap_or(Err(Error::Stopped));
        worker.shared.metrics.hash.observe(begun.elapsed().as_secs_f64());
        let header = Some(worker.header(worker.member().state().revision()));
        responder.answer(&worker, hash.map(|hash| worker.frame(&pb::HashResponse { header, hash })));
    });
}

pub(crate) fn hash_kv(worker: &Rc<Worker>, responder: Responder, request: pb::HashKvRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let begun = Instant::now();
        let reader = worker.member().state().clone();
        let hash = spawn_blocking(move || reader.hash_kv(request.revision)).await.unwrap_or(Err(Error::Stopped));
        worker.shared.metrics.hash_kv.observe(begun.elapsed().as_secs_f64());
        let frame = hash.map(|hash| {
            worker.frame(&pb::HashKvResponse {
                header: Some(worker.header(worker.member().state().revision())),
                hash: hash.hash,
                compact_revision: hash.compact_revision,
                hash_revision: hash.hash_revision,
            })
        });
        responder.answer(&worker, frame);
    });
}

pub(crate) fn move_leader(worker: &Rc<Worker>, responder: Responder, request: pb::MoveLeaderRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        if worker.member().leader() != worker.member().identity().member_id {
            return responder.refuse(&worker, Error::NotLeader);
        }
        let answer = worker.ask(|member, reply| member.move_leader(request.target_id, reply)).await;
        responder.answer(&worker, answer.map(|_| worker.frame(&pb::MoveLeaderResponse { header: None })));
    });
}

pub(crate) fn downgrade(worker: &Rc<Worker>, responder: Responder, request: pb::DowngradeRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let answer = worker.ask(|member, reply| member.downgrade(request.action, request.version, reply)).await;
        let result = match answer {
            Ok(Answer::Version(version)) => {
                let header = Some(worker.header(worker.member().state().revision()));
                Ok(worker.frame(&pb::DowngradeResponse { header, version }))
            }
            Ok(other) => Err(mismatched(&other)),
            Err(error) => Err(error),
        };
        responder.answer(&worker, result);
    });
}

pub(crate) fn snapshot(worker: &Rc<Worker>, responder: Responder, _: pb::SnapshotRequest) {
    spawn_local(send_snapshot(worker.clone(), responder));
}

/// Sends the image in pieces and after it the SHA-256 of all of them, so that what a client has saved can be checked.
async fn send_snapshot(worker: Rc<Worker>, responder: Responder) {
    let begun = Instant::now();
    let member = worker.shared.member.clone();
    // Taking it may touch the disk.
    let taken = spawn_blocking(move || member.snapshot()).await.unwrap_or(Err(Error::Stopped));
    let mut source = match taken {
        Ok(source) => source,
        Err(error) => return responder.refuse(&worker, error),
    };
    let Some(mut outgoing) = responder.stream(&worker) else { return };
    let version = worker.member().status().storage_version;
    let mut remaining_bytes = source.total_bytes();
    let mut digest = Sha256::new();
    loop {
        let chunk;
        (source, digest, chunk) = match spawn_blocking(move || next_chunk(source, digest)).await {
            Ok(next) => next,
            Err(_) => return outgoing.refuse(&worker, Error::Stopped),
        };
        let mut chunk = match chunk {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return outgoing.refuse(&worker, error),
        };
        while !chunk.is_empty() {
            let blob = chunk.split_to(chunk.len().min(BLOB_BYTES));
            remaining_bytes = remaining_bytes.saturating_sub(blob.len() as u64);
            let response = pb::SnapshotResponse { header: None, remaining_bytes, blob, version: version.clone() };
            if outgoing.send(&worker, worker.frame(&response)).await.is_err() {
                return outgoing.abandoned(&worker);
            }
        }
    }
    let blob = Bytes::copy_from_slice(&digest.finalize());
    let response = pb::SnapshotResponse { header: None, remaining_bytes: 0, blob, version };
    if outgoing.send(&worker, worker.frame(&response)).await.is_err() {
        return outgoing.abandoned(&worker);
    }
    worker.shared.metrics.backend_snapshot.observe(begun.elapsed().as_secs_f64());
    outgoing.end(&worker);
}

type Snapshot = Box<dyn SnapshotSource>;

fn next_chunk(mut source: Snapshot, mut digest: Sha256) -> (Snapshot, Sha256, Result<Option<Bytes>, Error>) {
    let chunk = source.next_chunk();
    if let Ok(Some(chunk)) = &chunk {
        digest.update(chunk);
    }
    (source, digest, chunk)
}
