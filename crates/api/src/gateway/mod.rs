//! The JSON gateway: the v3 API for those who speak HTTP and JSON, as grpc-gateway offers it in etcd.
//!
//! A request is translated and then makes the very same call as a gRPC client would, through a pipe
//! ([`crate::grpc::pipe`]); there is no second way to anything.

mod decode;
mod encode;
mod exchange;
pub(crate) mod websocket;

use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use proto::schema::{self, Message};

pub(crate) use exchange::{Exchange, Piece};

use crate::grpc::method::Method;
use crate::status::{Code, Refusal};
use crate::worker::Worker;

/// What the paths begin with; the last two are those of etcd before 3.4.
const PREFIXES: [&str; 3] = ["/v3/", "/v3beta/", "/v3alpha/"];

/// Each path behind its prefix.
const PATHS: &[(&str, Method)] = &[
    ("kv/range", Method::Range),
    ("kv/put", Method::Put),
    ("kv/deleterange", Method::DeleteRange),
    ("kv/txn", Method::Txn),
    ("kv/compaction", Method::Compact),
    ("watch", Method::Watch),
    ("lease/grant", Method::LeaseGrant),
    ("lease/revoke", Method::LeaseRevoke),
    ("kv/lease/revoke", Method::LeaseRevoke),
    ("lease/keepalive", Method::LeaseKeepAlive),
    ("lease/timetolive", Method::LeaseTimeToLive),
    ("kv/lease/timetolive", Method::LeaseTimeToLive),
    ("lease/leases", Method::LeaseLeases),
    ("kv/lease/leases", Method::LeaseLeases),
    ("cluster/member/add", Method::MemberAdd),
    ("cluster/member/remove", Method::MemberRemove),
    ("cluster/member/update", Method::MemberUpdate),
    ("cluster/member/list", Method::MemberList),
    ("cluster/member/promote", Method::MemberPromote),
    ("maintenance/alarm", Method::Alarm),
    ("maintenance/status", Method::Status),
    ("maintenance/defragment", Method::Defragment),
    ("maintenance/hash", Method::Hash),
    ("maintenance/hashkv", Method::HashKv),
    ("maintenance/snapshot", Method::Snapshot),
    ("maintenance/transfer-leadership", Method::MoveLeader),
    ("maintenance/downgrade", Method::Downgrade),
    ("auth/enable", Method::AuthEnable),
    ("auth/disable", Method::AuthDisable),
    ("auth/status", Method::AuthStatus),
    ("auth/authenticate", Method::Authenticate),
    ("auth/user/add", Method::UserAdd),
    ("auth/user/get", Method::UserGet),
    ("auth/user/list", Method::UserList),
    ("auth/user/delete", Method::UserDelete),
    ("auth/user/changepw", Method::UserChangePassword),
    ("auth/user/grant", Method::UserGrantRole),
    ("auth/user/revoke", Method::UserRevokeRole),
    ("auth/role/add", Method::RoleAdd),
    ("auth/role/get", Method::RoleGet),
    ("auth/role/list", Method::RoleList),
    ("auth/role/delete", Method::RoleDelete),
    ("auth/role/grant", Method::RoleGrantPermission),
    ("auth/role/revoke", Method::RoleRevokePermission),
    ("lock/lock", Method::Lock),
    ("lock/unlock", Method::Unlock),
    ("election/campaign", Method::Campaign),
    ("election/proclaim", Method::Proclaim),
    ("election/leader", Method::Leader),
    ("election/observe", Method::Observe),
    ("election/resign", Method::Resign),
];

/// How much longer than the largest message its JSON may be: a third for base64, and room for names and blanks.
const TEXT_PER_MESSAGE: usize = 4;

/// The longest JSON of a request.
fn max_text_bytes(worker: &Worker) -> usize {
    worker.max_message_bytes().saturating_mul(TEXT_PER_MESSAGE)
}

/// The part of a path that names the method, if it is one of the gateway's.
pub(crate) fn below_prefix(path: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix))
}

/// Begins to answer a request for the method called `name`. `eager`: the body need not come to its end.
pub(crate) fn begin(worker: &Rc<Worker>, name: &str, head: &Parts, eager: bool) -> Result<Exchange, Refusal> {
    let Some((_, method)) = PATHS.iter().find(|(known, _)| *known == name) else {
        return Err(Refusal::new(Code::NotFound, "Not Found"));
    };
    if head.method != http::Method::POST && !eager {
        return Err(Refusal::new(Code::Unimplemented, "Method Not Allowed"));
    }
    Exchange::new(worker, *method, messages(*method), head, eager)
}

/// What a method takes and gives.
fn messages(method: Method) -> (&'static Message, &'static Message) {
    static MESSAGES: OnceLock<Vec<(&'static Message, &'static Message)>> = OnceLock::new();
    let all = MESSAGES.get_or_init(|| {
        let known = |method: &Method| schema::METHODS.iter().find(|(path, ..)| *path == method.path());
        let messages = |method| {
            let (_, request, response) = known(method).expect("every method of ours is in the .proto files");
            (*request, *response)
        };
        Method::ALL.iter().map(messages).collect()
    });
    all[method as usize]
}

/// What of a request's header is the call's metadata: `Grpc-Metadata-Hasleader: true` is `hasleader: true`.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let name = name.as_str().strip_prefix("grpc-metadata-").map(|name| HeaderName::from_bytes(name.as_bytes()));
        if let Some(Ok(name)) = name {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

/// `Grpc-Timeout`: a number and its unit. None: it is zero, which is no timeout.
fn timeout(value: &HeaderValue) -> Result<Option<Duration>, Refusal> {
    let shown = String::from_utf8_lossy(value.as_bytes());
    let parsed = (|| {
        let (&unit, digits) = value.as_bytes().split_last()?;
        let number: i64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        // One in the past has run out.
        let number = u64::try_from(number).unwrap_or(0);
        let timeout = match unit {
            b'H' => Duration::from_secs(number.saturating_mul(3600)),
            b'M' => Duration::from_secs(number.saturating_mul(60)),
            b'S' => Duration::from_secs(number),
            b'm' => Duration::from_millis(number),
            b'u' => Duration::from_micros(number),
            b'n' => Duration::from_nanos(number),
            _ => return None,
        };
        Some(Some(timeout).filter(|timeout| !timeout.is_zero() || digits.starts_with(b"-")))
    })();
    parsed.ok_or_else(|| Refusal::new(Code::InvalidArgument, format!("invalid grpc-timeout: {shown}")))
}

// --- errors ---

/// The HTTP status that goes with a code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        // "Client closed request"; not in any standard.
        Code::Canceled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

fn error_json(refusal: &Refusal) -> String {
    let mut out = format!("{{\"code\":{},\"message\":", refusal.code as u8);
    encode::string(&refusal.message, &mut out);
    out.push('}');
    out
}

pub(crate) fn error(refusal: &Refusal) -> Response<Bytes> {
    let mut response = json(http_status(refusal.code), error_json(refusal));
    if refusal.code == Code::Unauthenticated
        && let Ok(message) = HeaderValue::from_str(&refusal.message)
    {
        response.headers_mut().insert(WWW_AUTHENTICATE, message);
    }
    response
}

fn json(status: StatusCode, body: String) -> Response<Bytes> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    use super::{decode, encode, schema};
    use crate::json::Scanner;

    /// Reads a body for one of the methods; what is understood is said again, which has to mean the same.
    pub fn json(which: usize, text: &[u8]) {
        let (_, request, response) = schema::METHODS[which % schema::METHODS.len()];
        // Health has maps, and no path.
        if request.name.starts_with("grpc.health") {
            return;
        }
        let _ = encode::encode(text, response, &mut String::new());
        let mut scanner = Scanner::default();
        let Ok(Some(end)) = scanner.scan(text) else { return };
        let Ok(message) = decode::decode(&text[..end], request) else { return };
        let mut said = String::new();
        encode::encode(&message, request, &mut said).expect("what was understood can be said");
        assert_eq!(Scanner::default().scan(said.as_bytes()), Ok(Some(said.len())), "{said}");
        let again = decode::decode(said.as_bytes(), request).expect("what was said is understood");
        let mut twice = String::new();
        encode::encode(&again, request, &mut twice).expect("a message");
        assert_eq!(said, twice);
    }
}

#[cfg(test)]
mod paths {
    use super::*;

    /// A new method needs a path, or a place in this list.
    #[test]
    fn every_method_has_a_path() {
        let without = [Method::RangeStream, Method::HealthCheck, Method::HealthList, Method::HealthWatch];
        for method in Method::ALL {
            let has_path = PATHS.iter().any(|(_, known)| known == method);
            assert_eq!(has_path, !without.contains(method), "{}", method.path());
            let (request, response) = messages(*method);
            assert!(!request.name.is_empty() && !response.name.is_empty());
        }
    }
}
