//! gRPC, directly on HTTP/2.
//!
//! A call is taken by the task that reads its connection. If the request is there (a unary request nearly always
//! comes in the same packet as its headers) it is decoded and begun right away; what has to wait leaves a continuation
//! with the [`Worker`] and no task. Only calls that stream, or whose request is still on its way, get one.

mod auth;
mod cluster;
mod election;
pub(crate) mod guard;
mod health;
mod kv;
mod lease;
mod line;
mod lock;
mod maintenance;
pub mod method;
pub(crate) mod pipe;
mod sink;
pub(crate) mod watch;
pub(crate) mod wire;

use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request};
use prometheus::IntCounter;
use proto::etcdserverpb as pb;
use state::Error;
use state::auth::Action;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use crate::caller::{Caller, Client};
use crate::conn::Serves;
use crate::ops::Port;
use crate::slow::Subject;
use crate::status::{Code, Refusal};
use crate::worker::Worker;
use guard::{Guarded, Unguarded};
use method::{Kind, Method};
use wire::{Broken, Incoming, Responder, Sink, parse_timeout};

/// Held by each request of a connection that is in work, also after its client has taken it back.
pub(crate) type InWork = Rc<()>;

/// Begins a request that came over HTTP/2, be it a call or plain HTTP. `arrived` is shared by those that came together.
pub(crate) fn begin(
    worker: &Rc<Worker>,
    client: &Client,
    serves: Serves,
    in_work: &InWork,
    arrived: std::time::Instant,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    if serves == Serves::Http || !is_grpc(&head.headers) {
        if serves == Serves::Grpc {
            crate::ops::refuse_http2(&head, respond);
            return;
        }
        let in_work = in_work.clone();
        let plain = crate::http2::serve(worker.clone(), Port::of(client), head, body, respond);
        spawn_local(async move {
            plain.await;
            drop(in_work);
        });
        return;
    }
    let path = head.uri.path();
    let Some(method) = Method::from_path(path) else {
        wire::refuse_unknown(&mut respond, Method::unknown(path));
        return;
    };
    worker.counters.started(method);
    let caller = Caller::of_grpc(&head.headers, client);
    let mut responder = Responder::new(Sink::Http2(respond, in_work.clone()), method, caller, None, arrived);
    match deadline(&head.headers) {
        Ok(deadline) => responder.deadline = deadline,
        Err(refusal) => return responder.refuse(worker, refusal),
    }
    let encoding = head.headers.get("grpc-encoding").cloned();
    start(worker, responder, &head.headers, Incoming::new(body, worker.max_message_bytes(), encoding));
}

/// Begins a call that is made inside the process. `ask` may send what is to be there from the start.
pub(crate) fn begin_inside(
    worker: &Rc<Worker>,
    method: Method,
    caller: Caller,
    metadata: &HeaderMap,
    ask: impl FnOnce(&pipe::Call),
) -> pipe::Call {
    let (call, requests, answers) = pipe::pipe();
    ask(&call);
    worker.counters.started(method);
    // Whoever calls keeps the time.
    let responder = Responder::new(Sink::Pipe(answers), method, caller, None, std::time::Instant::now());
    start(worker, responder, metadata, Incoming::inside(requests, worker.max_message_bytes()));
    call
}

fn start(worker: &Rc<Worker>, responder: Responder, metadata: &HeaderMap, mut incoming: Incoming) {
    let method = responder.method;
    let require_leader = metadata.get("hasleader").is_some_and(|value| value == "true");
    if let Err(refusal) = admit(worker, method, require_leader, metadata) {
        return responder.refuse(worker, refusal);
    }
    match method.kind() {
        Kind::BidiStream if method == Method::Watch => {
            spawn_local(watch::serve(worker.clone(), responder, incoming, require_leader));
        }
        Kind::BidiStream => {
            spawn_local(lease::keep_alive(worker.clone(), responder, incoming));
        }
        Kind::Unary | Kind::ServerStream => match incoming.poll_message(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(message) => begin_with(worker, responder, message),
            Poll::Pending => {
                spawn_local(begin_later(worker.clone(), responder, incoming));
            }
        },
    }
}

/// For a request that had not arrived when its headers did.
async fn begin_later(worker: Rc<Worker>, responder: Responder, mut incoming: Incoming) {
    let message = match responder.deadline {
        None => incoming.message().await,
        Some(deadline) => match timeout_at(deadline, incoming.message()).await {
            Ok(message) => message,
            Err(_) => return responder.refuse(&worker, Error::DeadlineExceeded),
        },
    };
    begin_with(&worker, responder, message);
}

fn begin_with(worker: &Rc<Worker>, responder: Responder, message: Result<Option<Bytes>, Broken>) {
    match message {
        Ok(Some(message)) => {
            worker.counters.received(responder.method, message.len());
            run(worker, responder, message);
        }
        Ok(None) => responder.refuse(worker, Refusal::new(Code::Internal, "EOF")),
        Err(Broken::Reset) => responder.abandoned(worker),
        Err(Broken::Refused(refusal)) => responder.refuse(worker, refusal),
    }
}

/// Runs a call with one request.
fn run(worker: &Rc<Worker>, responder: Responder, message: Bytes) {
    match responder.method {
        Method::Range => with_unguarded(worker, responder, message, kv::range),
        Method::Put => with(worker, responder, message, kv::put),
        Method::Txn => with_unguarded(worker, responder, message, kv::txn),
        Method::DeleteRange => with(worker, responder, message, kv::delete_range),
        Method::Compact => with(worker, responder, message, kv::compact),
        Method::RangeStream => with_unguarded(worker, responder, message, kv::range_stream),
        Method::LeaseGrant => with(worker, responder, message, lease::grant),
        Method::LeaseRevoke => with(worker, responder, message, lease::revoke),
        Method::LeaseTimeToLive => with(worker, responder, message, lease::time_to_live),
        Method::LeaseLeases => with(worker, responder, message, lease::leases),
        Method::MemberAdd => with(worker, responder, message, cluster::add),
        Method::MemberRemove => with(worker, responder, message, cluster::remove),
        Method::MemberUpdate => with(worker, responder, message, cluster::update),
        Method::MemberList => with_unguarded(worker, responder, message, cluster::list),
        Method::MemberPromote => with(worker, responder, message, cluster::promote),
        Method::Alarm => with(worker, responder, message, maintenance::alarm),
        Method::Status => with(worker, responder, message, maintenance::status),
        Method::Defragment => with(worker, responder, message, maintenance::defragment),
        Method::Hash => with(worker, responder, message, maintenance::hash),
        Method::HashKv => with(worker, responder, message, maintenance::hash_kv),
        Method::Snapshot => with(worker, responder, message, maintenance::snapshot),
        Method::MoveLeader => with(worker, responder, message, maintenance::move_leader),
        Method::Downgrade => with(worker, responder, message, maintenance::downgrade),
        Method::HealthCheck => with(worker, responder, message, health::check),
        Method::HealthList => with(worker, responder, message, health::list),
        Method::HealthWatch => with(worker, responder, message, health::watch),
        Method::Lock => with(worker, responder, message, lock::lock),
        Method::Unlock => with(worker, responder, message, lock::unlock),
        Method::Campaign => with(worker, responder, message, election::campaign),
        Method::Proclaim => with(worker, responder, message, election::proclaim),
        Method::Leader => with(worker, responder, message, election::leader),
        Method::Observe => with(worker, responder, message, election::observe),
        Method::Resign => with(worker, responder, message, election::resign),
        Method::AuthEnable => with(worker, responder, message, auth::enable),
        Method::AuthDisable => with(worker, responder, message, auth::disable),
        Method::AuthStatus => with(worker, responder, message, auth::status),
        Method::Authenticate => with(worker, responder, message, auth::authenticate),
        Method::UserAdd => with(worker, responder, message, auth::user_add),
        Method::UserGet => with(worker, responder, message, auth::user_get),
        Method::UserList => with(worker, responder, message, auth::user_list),
        Method::UserDelete => with(worker, responder, message, auth::user_delete),
        Method::UserChangePassword => with(worker, responder, message, auth::user_change_password),
        Method::UserGrantRole => with(worker, responder, message, auth::user_grant_role),
        Method::UserRevokeRole => with(worker, responder, message, auth::user_revoke_role),
        Method::RoleAdd => with(worker, responder, message, auth::role_add),
        Method::RoleGet => with(worker, responder, message, auth::role_get),
        Method::RoleList => with(worker, responder, message, auth::role_list),
        Method::RoleDelete => with(worker, responder, message, auth::role_delete),
        Method::RoleGrantPermission => with(worker, responder, message, auth::role_grant_permission),
        Method::RoleRevokePermission => with(worker, responder, message, auth::role_revoke_permission),
        Method::Watch | Method::LeaseKeepAlive => unreachable!("streams of requests do not come here"),
    }
}

/// Decodes the request and hands it to its method if its caller may make it.
fn with<M: prost::Message + Default + Guarded + 'static>(
    worker: &Rc<Worker>,
    responder: Responder,
    message: Bytes,
    method: impl FnOnce(&Rc<Worker>, Responder, M) + 'static,
) {
    match decode(message) {
        Ok(request) => Unguarded::new(request).pass(worker, responder, method),
        Err(refusal) => responder.refuse(worker, refusal),
    }
}

/// The same for a method that lets its request pass itself: permissions are looked at behind the barrier of a read, where a
/// member that lags has heard of the newest ones.
fn with_unguarded<M: prost::Message + Default + Guarded + 'static>(
    worker: &Rc<Worker>,
    responder: Responder,
    message: Bytes,
    method: impl FnOnce(&Rc<Worker>, Responder, Unguarded<M>),
) {
    match decode(message) {
        Ok(request) => method(worker, responder, Unguarded::new(request)),
        Err(refusal) => responder.refuse(worker, refusal),
    }
}

pub(crate) fn decode<M: prost::Message + Default>(message: Bytes) -> Result<M, Refusal> {
    M::decode(message)
        .map_err(|error| Refusal::new(Code::Internal, format!("grpc: error unmarshalling request: {error}")))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, Refusal> {
    match headers.get("grpc-timeout") {
        None => Ok(None),
        // One that cannot be added to the clock is as good as none.
        Some(value) => Ok(Instant::now().checked_add(parse_timeout(value)?)),
    }
}

/// What can be said of a call before its request is read.
fn admit(worker: &Worker, method: Method, require_leader: bool, headers: &HeaderMap) -> Result<(), Refusal> {
    let member = worker.member();
    if member.is_learner() && !method.served_by_learner() {
        return Err(Error::NotSupportedForLearner.into());
    }
    worker.client_versions.borrow_mut().count(worker, method, headers.get("client-api-version"))?;
    if require_leader && member.leader() == 0 {
        return Err(Error::NoLeader.into());
    }
    Ok(())
}

/// The counters of `etcd_server_client_requests_total` that this worker has met. Clients name their version in every
/// request, nearly always the same few.
#[derive(Default)]
pub(crate) struct ClientVersions {
    known: Vec<KnownVersion>,
}

struct KnownVersion {
    version: HeaderValue,
    unary: IntCounter,
    stream: IntCounter,
}

impl ClientVersions {
    /// More versions than this are counted as unknown, so that a client cannot grow the metrics at will.
    const MOST: usize = 64;

    fn count(&mut self, worker: &Worker, method: Method, version: Option<&HeaderValue>) -> Result<(), Refusal> {
        static UNKNOWN: HeaderValue = HeaderValue::from_static("unknown");
        let mut version = version.unwrap_or(&UNKNOWN);
        let position = match self.known.iter().position(|known| known.version == *version) {
            Some(position) => position,
            None => {
                let text = std::str::from_utf8(version.as_bytes()).map_err(|_| Error::InvalidClientAPIVersion)?;
                if self.known.len() >= Self::MOST {
                    version = &UNKNOWN;
                }
                let text = if version == UNKNOWN { "unknown" } else { text };
                let requests = &worker.shared.metrics.client_requests;
                self.known.push(KnownVersion {
                    version: version.clone(),
                    unary: requests.with_label_values(&["unary", text]),
                    stream: requests.with_label_values(&["stream", text]),
                });
                // One over the limit replaces nothing: the entry for "unknown" is found from now on.
                self.known.truncate(Self::MOST + 1);
                self.known.len() - 1
            }
        };
        let known = &self.known[position];
        match method.kind() {
            Kind::Unary => known.unary.inc(),
            Kind::ServerStream | Kind::BidiStream => known.stream.inc(),
        }
        Ok(())
    }
}

/// A read that may have to wait for a barrier.
#[derive(Debug)]
pub(crate) enum Read {
    Range(pb::RangeRequest),
    Txn(pb::TxnRequest),
    Members(pb::MemberListRequest),
}

impl Guarded for Read {
    fn action(&self) -> Action<'_> {
        match self {
            Read::Range(request) => request.action(),
            Read::Txn(request) => request.action(),
            Read::Members(request) => request.action(),
        }
    }
}

impl Unguarded<Read> {
    /// Answers now from what this member has applied.
    pub(crate) fn run(self, worker: &Rc<Worker>, responder: Responder) {
        self.pass(worker, responder, |worker, responder, read| match read {
            Read::Range(request) => kv::run_range(worker, responder, request),
            Read::Txn(request) => kv::run_txn(worker, responder, request),
            Read::Members(_) => cluster::run_list(worker, responder),
        });
    }
}

/// Runs a read now if it may see what this member has, or after a barrier.
fn read(worker: &Rc<Worker>, responder: Responder, read: Unguarded<Read>, serializable: bool) {
    if serializable || worker.member().read_is_local() {
        read.run(worker, responder);
    } else {
        worker.read_after_barrier(responder, read);
    }
}

/// Answers a call with the result of its log entry.
pub(crate) fn answer_applied(worker: &Worker, responder: Responder, response: state::Response, subject: Subject<'_>) {
    use state::Response;
    let frame = match response {
        Response::Put(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::DeleteRange(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::Txn(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::Range(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::Compact { mut response, .. } => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::LeaseGrant(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::LeaseRevoke(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::LeaseCheckpoint(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::Alarm(mut response) => {
            worker.complete(&mut response.header);
            worker.frame(&response)
        }
        Response::Auth(response) => auth_frame(worker, response),
        Response::V2(_) | Response::None => {
            let error = Error::Internal("etcdserver: the entry has no answer".into());
            return responder.refuse(worker, error);
        }
    };
    responder.message_about(worker, frame, subject);
}

fn auth_frame(worker: &Worker, mut response: state::auth::Response) -> Bytes {
    use state::auth::Response;
    worker.complete(response.header_mut());
    match &response {
        Response::Enable(response) => worker.frame(response),
        Response::Disable(response) => worker.frame(response),
        Response::Status(response) => worker.frame(response),
        Response::Authenticate(response) => worker.frame(response),
        Response::UserAdd(response) => worker.frame(response),
        Response::UserGet(response) => worker.frame(response),
        Response::UserList(response) => worker.frame(response),
        Response::UserDelete(response) => worker.frame(response),
        Response::UserChangePassword(response) => worker.frame(response),
        Response::UserGrantRole(response) => worker.frame(response),
        Response::UserRevokeRole(response) => worker.frame(response),
        Response::RoleAdd(response) => worker.frame(response),
        Response::RoleGet(response) => worker.frame(response),
        Response::RoleList(response) => worker.frame(response),
        Response::RoleDelete(response) => worker.frame(response),
        Response::RoleGrantPermission(response) => worker.frame(response),
        Response::RoleRevokePermission(response) => worker.frame(response),
    }
}
