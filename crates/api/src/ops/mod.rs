//! Plain HTTP: what is asked of which path; health, version, metrics. The same answers over HTTP/1.1 and HTTP/2.

mod checks;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW,
    CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use serde_json::json;

use crate::caller::Client;
use crate::gateway::{self, Exchange};
use crate::http1::{Answer, Payload};
use crate::member::Member;
use crate::metrics::file_descriptors;
use crate::v2;
use crate::worker::Worker;

/// As in etcd.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// What scripts of other origins may do, where they may do anything.
const ALLOWED_METHODS: &str = "POST, GET, OPTIONS, PUT, DELETE";
const ALLOWED_FIELDS: &str = "accept, content-type, authorization";

/// Settings of the plain HTTP side.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// `--cors`: origins that scripts may come from; `*` = all.
    pub cors: Vec<String>,
    /// `--host-whitelist`: names under which plain HTTP clients may address us; `*` = all.
    pub host_whitelist: Vec<String>,
    /// `--enable-v2`: whether there is anything under `/v2`.
    pub v2: bool,
    /// `--enable-grpc-gateway`: whether there is anything under `/v3`.
    pub gateway: bool,
    /// How long a client may take to send a request that comes to an end, and between two requests.
    pub request_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            cors: vec!["*".into()],
            host_whitelist: vec!["*".into()],
            v2: true,
            gateway: true,
            request_timeout: REQUEST_TIMEOUT,
        }
    }
}

/// What kind of listener a request came to; each offers other paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Client { is_secure: bool },
    Metrics,
}

const SECURE: Port = Port::Client { is_secure: true };

impl Port {
    /// What a client has connected to.
    pub(crate) fn of(client: &Client) -> Self {
        Self::Client { is_secure: client.is_secure }
    }
}

/// Begins to answer a request to the JSON gateway; `None` if it is not one. An error is the whole answer.
pub(crate) fn begin_gateway(
    worker: &Rc<Worker>,
    port: Port,
    head: &Parts,
) -> Option<Result<Box<Exchange>, Response<Bytes>>> {
    let name = gateway_method(worker, port, head)?;
    let options = &worker.shared.http;
    let begun = gateway::begin(worker, &name, head, false);
    Some(begun.map(Box::new).map_err(|refusal| {
        let mut response = gateway::error(&refusal);
        options.allow_origin(&head.headers, response.headers_mut());
        response
    }))
}

/// The name of the method that a request to the gateway is for; `None` if it is not one.
pub(crate) fn gateway_method(worker: &Worker, port: Port, head: &Parts) -> Option<String> {
    let options = &worker.shared.http;
    if port == Port::Metrics || !options.gateway || head.method == Method::OPTIONS {
        return None;
    }
    // What is not in order is refused, or sent to its right place, by those who answer everything else.
    let path = v2::decode_path(head.uri.path())?;
    let name = gateway::below_prefix(&path)?;
    if v2::clean_location(&path, None).is_some()
        || options.refuse_host(port == SECURE, &head.uri, &head.headers).is_some()
    {
        return None;
    }
    Some(name.to_owned())
}

/// Answers any other request.
pub(crate) async fn serve(worker: &Rc<Worker>, port: Port, head: Parts, body: Payload) -> Answer {
    if port == Port::Metrics {
        return respond(worker, port, &head).await.into();
    }
    let Some(path) = v2::decode_path(head.uri.path()) else { return v2::bad_request().into() };
    let options = &worker.shared.http;
    if head.method != Method::OPTIONS && options.refuse_host(port == SECURE, &head.uri, &head.headers).is_none() {
        let answer = match v2::clean_location(&path, head.uri.query()) {
            Some(location) => Some(v2::redirect(&head.method, &location).into()),
            None if options.v2 => serve_v2(worker, &head, &path, body).await,
            None => None,
        };
        if let Some(mut answer) = answer {
            if let Some(origin) = options.allowed_origin(&head.headers) {
                answer.fields.add("Access-Control-Allow-Headers", ALLOWED_FIELDS);
                answer.fields.add("Access-Control-Allow-Methods", ALLOWED_METHODS);
                answer.fields.add("Access-Control-Allow-Origin", origin);
            }
            return answer;
        }
    }
    respond(worker, port, &head).await.into()
}

/// Refuses what is no gRPC where only that is served, as grpc-go does.
pub(crate) fn refuse_http2(head: &Parts, mut send: SendResponse<Bytes>) {
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let refusal = with_type(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "application/grpc",
        format!("invalid gRPC request content-type {content_type:?}"),
    );
    let (head, body) = refusal.into_parts();
    // An error means that the client has gone.
    if let Ok(mut stream) = send.send_response(Response::from_parts(head, ()), false) {
        let _ = stream.send_data(body, true);
    }
}

/// Answers a request of the v2 API, and counts it.
async fn serve_v2(worker: &Rc<Worker>, head: &Parts, path: &str, body: Payload) -> Option<Answer> {
    let begun = std::time::Instant::now();
    let response = v2::serve(worker, head, path, body).await?;
    let metrics = &worker.shared.metrics;
    // Of what is no method of the API there may be any number.
    let method = match head.method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    };
    metrics.http_received.with_label_values(&[method]).inc();
    if response.status.is_success() {
        metrics.http_successful.with_label_values(&[method]).observe(begun.elapsed().as_secs_f64());
    } else {
        metrics.http_failed.with_label_values(&[method, response.status.as_str()]).inc();
    }
    Some(response)
}

async fn respond(worker: &Rc<Worker>, port: Port, head: &Parts) -> Response<Bytes> {
    if port == Port::Metrics {
        return route(worker, port, head).await;
    }
    let options = &worker.shared.http;
    if let Some(refusal) = options.refuse_host(port == SECURE, &head.uri, &head.headers) {
        return refusal;
    }
    let mut response = match head.method {
        Method::OPTIONS => empty(StatusCode::OK),
        _ => route(worker, port, head).await,
    };
    options.allow_origin(&head.headers, response.headers_mut());
    response
}

async fn route(worker: &Rc<Worker>, port: Port, head: &Parts) -> Response<Bytes> {
    let (method, path) = (&head.method, head.uri.path());
    let query = head.uri.query().unwrap_or("");
    let not_found = || text(StatusCode::NOT_FOUND, "404 page not found\n");
    match (path, port) {
        ("/version", Port::Client { .. }) => only_get(method, async { version(worker) }).await,
        ("/health", _) => only_get(method, checks::health(worker, query)).await,
        ("/metrics", _) => metrics(worker),
        ("/debug/load", _) => only_get(method, async { load(worker, head) }).await,
        ("/debug/vars", Port::Client { .. }) => only_get(method, async { variables(worker) }).await,
        _ => {
            let (root, check) = match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
                Some((root, check)) => (root, Some(check)),
                None => (path.trim_start_matches('/'), None),
            };
            match checks::group(root, check) {
                Some(group) => only_get(method, checks::run(worker, &group, query)).await,
                None => not_found(),
            }
        }
    }
}

async fn only_get(method: &Method, response: impl Future<Output = Response<Bytes>>) -> Response<Bytes> {
    if method == Method::GET {
        return response.await;
    }
    let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    refusal
}

fn version(worker: &Worker) -> Response<Bytes> {
    with_type(StatusCode::OK, "application/json", version_json(worker.member()))
}

/// The body of `/version`, on the client port and for peers.
pub fn version_json(member: &dyn Member) -> Vec<u8> {
    let status = member.status();
    let or = |version: String, absent: &str| if version.is_empty() { absent.to_owned() } else { version };
    // Written by hand, so that the fields come in etcd's order.
    let body = format!(
        r#"{{"etcdserver":{},"etcdcluster":{},"storage":{}}}"#,
        json!(status.version),
        json!(or(status.cluster_version, "not_decided")),
        json!(or(status.storage_version, "unknown")),
    );
    body.into_bytes()
}

/// The members as their peers ask for them before they join: a JSON array.
pub fn members_json(member: &dyn Member) -> Vec<u8> {
    // Members and their rows in the store have the same shape, so this cannot fail.
    serde_json::to_vec(&member.state().members()).unwrap_or_else(|_| b"[]".to_vec())
}

fn metrics(worker: &Worker) -> Response<Bytes> {
    let body = worker.shared.metrics.scrape(worker.member());
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

/// Who causes load: a page for browsers, JSON for everybody else.
fn load(worker: &Worker, head: &Parts) -> Response<Bytes> {
    let (load, now) = (&worker.shared.metrics.load, std::time::Instant::now());
    let is_guarded = worker.member().state().auth().is_enabled();
    let accepts = head.headers.get(ACCEPT).and_then(|accepts| accepts.to_str().ok()).unwrap_or("");
    if accepts.contains("text/html") && head.uri.query() != Some("format=json") {
        return with_type(StatusCode::OK, "text/html; charset=utf-8", load.html(now, is_guarded));
    }
    with_type(StatusCode::OK, "application/json", format!("{:#}\n", load.json(now, is_guarded)))
}

fn variables(worker: &Worker) -> Response<Bytes> {
    let status = worker.member().status();
    let identity = worker.member().identity();
    let is_leader = status.leader == identity.member_id;
    let body = json!({
        "cmdline": std::env::args().collect::<Vec<_>>(),
        "file_descriptor_limit": file_descriptors().1 as i64,
        "memstats": {},
        "raft.status": {
            "id": format!("{:x}", identity.member_id),
            "term": status.term,
            "commit": status.raft_index,
            "lead": format!("{:x}", status.leader),
            "raftState": if is_leader { "StateLeader" } else { "StateFollower" },
            "applied": status.applied_index,
        },
    });
    with_type(StatusCode::OK, "application/json; charset=utf-8", body.to_string())
}

// --- who may ask ---

impl HttpOptions {
    /// Refuses a request that came in the clear and names us by a name we do not go by: a web page that rebinds its own name to our address
    /// would otherwise reach us through its visitors' browsers.
    pub fn refuse_host(&self, is_secure: bool, uri: &Uri, headers: &HeaderMap) -> Option<Response<Bytes>> {
        if is_secure || self.host_whitelist.iter().any(|allowed| allowed == "*") {
            return None;
        }
        let named = uri.host().or_else(|| headers.get(HOST)?.to_str().ok()).unwrap_or("");
        let host = without_port(named);
        if self.host_whitelist.iter().any(|allowed| allowed == host) {
            return None;
        }
        let body = format!(
            "\netcd received your request, but the Host header was unrecognized.\n\nTo fix this, choose one of the following \
             options:\n- Enable TLS, then any HTTPS request will be allowed.\n- Add the hostname you want to use to the \
             whitelist in settings.\n  - e.g. etcd --host-whitelist {host:?}\n\nThis requirement has been added to help \
             prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n"
        );
        Some(text(StatusCode::MISDIRECTED_REQUEST, body))
    }

    /// Tells browsers which pages' scripts may read this answer.
    pub fn allow_origin(&self, request: &HeaderMap, response: &mut HeaderMap) {
        if let Some(origin) = self.allowed_origin(request) {
            response.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS));
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            response.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_FIELDS));
        }
    }

    /// The origin whose scripts may read the answer to this request, if any.
    fn allowed_origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        if self.cors.iter().any(|origin| origin == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = request.get(ORIGIN)?;
        self.cors.iter().any(|allowed| origin == allowed).then(|| origin.clone())
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => {
            name.trim_start_matches('[').trim_end_matches(']')
        }
        _ => host,
    }
}

// --- shapes ---

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let body = body.into();
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = with_type(status, "text/plain; charset=utf-8", body);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}
