//! The JSON gateway's first path: the member list, by which scripts learn that a member has joined its cluster.
//!
//! grpc-gateway's conventions: 64-bit integers as strings, fields without a value left out, proto's own field names.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Serialize;

use super::{text, with_type};
use crate::worker::Worker;

#[derive(Serialize)]
struct MemberList {
    header: Header,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Header {
    cluster_id: String,
    member_id: String,
    raft_term: String,
}

#[derive(Serialize)]
struct Member {
    #[serde(rename = "ID")]
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "peerURLs", skip_serializing_if = "Vec::is_empty")]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs", skip_serializing_if = "Vec::is_empty")]
    client_urls: Vec<String>,
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
}

/// `POST /v3/cluster/member/list`. The request has one field, `linearizable`, which changes nothing while a member has
/// no peers.
pub(super) fn member_list(worker: &Worker) -> Response<Bytes> {
    let member = worker.member();
    let identity = member.identity();
    let list = MemberList {
        header: Header {
            cluster_id: identity.cluster_id.to_string(),
            member_id: identity.member_id.to_string(),
            raft_term: member.term().to_string(),
        },
        members: member
            .state()
            .members()
            .into_iter()
            .map(|m| Member {
                id: m.id.to_string(),
                name: m.name,
                peer_urls: m.peer_urls,
                client_urls: m.client_urls,
                is_learner: m.is_learner,
            })
            .collect(),
    };
    match serde_json::to_string(&list) {
        Ok(body) => with_type(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
