//! `--proxy`: no member but a proxy of the v2 API, which knows the members by asking them.
//!
//! Each request goes to one endpoint after the other, in an order that is drawn anew whenever the members are asked,
//! until one answers. An endpoint that does not is left in peace for a while. What the proxy knows of the cluster is kept
//! in `proxy/cluster` of its data directory, which from then on counts more than flags.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::HttpOptions;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use peer::{Caller, Dialer};
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use tls::{Connector, Socket, Stream, TlsError};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Config, ProxyMode};
use crate::listen::{self, Bound};
use crate::security::Security;

/// How often the members are asked while none is known.
const ASK_AT_FIRST: Duration = Duration::from_secs(1);
/// How long a member may take to say who is in its cluster.
const ANSWER: Duration = Duration::from_secs(1);
/// The largest body of a request that is passed on.
const MAX_BODY_BYTES: usize = 10 << 20;
/// How long a client may take to send its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(300);
/// Fields that concern one connection only (RFC 2616, section 13.5.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailers",
    "transfer-encoding",
    "upgrade",
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

type Body = BoxBody<Bytes, hyper::Error>;

/// What the cluster file holds.
#[derive(Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
struct ClusterFile {
    #[serde(rename = "PeerURLs")]
    peer_urls: Vec<String>,
}

/// The peer URLs that a proxy of this data directory knows; none if it has not been there before.
///
/// # Errors
/// When the file cannot be read or understood.
pub(crate) fn known(data_dir: &Path) -> io::Result<Option<Vec<String>>> {
    match std::fs::read(cluster_path(data_dir)) {
        Ok(json) => Ok(Some(serde_json::from_slice::<ClusterFile>(&json)?.peer_urls)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn cluster_path(data_dir: &Path) -> PathBuf {
    data_dir.join("proxy").join("cluster")
}

/// Where requests can go.
#[derive(Debug)]
struct Endpoint {
    /// `http://host:port`
    url: String,
    /// It did not answer, and is not asked before this time.
    rests_until: Option<Instant>,
}

/// A proxy at work.
#[derive(Debug)]
pub(crate) struct Proxy {
    config: Config,
    http: HttpOptions,
    /// For members that are asked who they are, and for endpoints that are reached in TLS.
    dialer: Dialer,
    connector: Connector,
    peer_urls: Mutex<Vec<String>>,
    endpoints: Mutex<Vec<Endpoint>>,
}

impl Proxy {
    /// A proxy of the cluster whose members have these peer URLs.
    ///
    /// # Errors
    /// When the files for TLS cannot be used.
    pub(crate) fn new(config: &Config, security: &Security, peer_urls: Vec<String>) -> Result<Arc<Self>, TlsError> {
        let http = HttpOptions {
            cors: config.cors.clone(),
            host_whitelist: config.host_whitelist.clone(),
            v2: config.enable_v2,
            gateway: false,
            ..HttpOptions::default()
        };
        let this = Self {
            config: config.clone(),
            http,
            dialer: security.dialer.clone(),
            connector: security.connector_of_proxy()?,
            peer_urls: Mutex::new(peer_urls),
            endpoints: Mutex::default(),
        };
        Ok(Arc::new(this))
    }

    /// Asks the members who they are, again and again, until the task is dropped.
    pub(crate) async fn keep_asking(self: Arc<Self>) {
        loop {
            self.ask().await;
            let knows_some = !self.endpoints.lock().is_empty();
            sleep(if knows_some { Duration::from_millis(self.config.proxy.refresh_interval_ms) } else { ASK_AT_FIRST })
                .await;
        }
    }

    /// Asks one member after the other until one answers. If none does, what is known stays.
    pub(crate) async fn ask(&self) {
        let asked = self.peer_urls.lock().clone();
        for url in &asked {
            let members = match Caller::new(ANSWER).through(&self.dialer).members(url).await {
                Ok(members) => members.members,
                Err(error) => {
                    tracing::warn!(address = url.as_str(), %error, "could not get cluster response");
                    continue;
                }
            };
            let mut peer_urls: Vec<String> = members.iter().flat_map(|member| member.peer_urls.clone()).collect();
            peer_urls.sort_unstable();
            if !peer_urls.is_empty() {
                if let Err(error) = save(&self.config.data_dir, &peer_urls) {
                    tracing::warn!(%error, "proxy: failed to save the cluster file");
                }
                *self.peer_urls.lock() = peer_urls;
            }
            let client_urls = members.into_iter().flat_map(|member| member.client_urls).collect();
            self.refresh(client_urls);
            return;
        }
    }

    /// Takes over new endpoints. Those that are known and rest go on resting.
    fn refresh(&self, mut urls: Vec<String>) {
        urls.shuffle(&mut rand::rng());
        let mut endpoints = self.endpoints.lock();
        let rests: BTreeMap<String, Option<Instant>> =
            endpoints.drain(..).map(|endpoint| (endpoint.url, endpoint.rests_until)).collect();
        *endpoints =
            urls.into_iter().map(|url| Endpoint { rests_until: rests.get(&url).copied().flatten(), url }).collect();
        let found: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
        tracing::info!(endpoints = ?found, "endpoints found");
    }

    /// Endpoints that can be asked now.
    fn available(&self) -> Vec<String> {
        let now = Instant::now();
        let endpoints = self.endpoints.lock();
        let awake = endpoints.iter().filter(|endpoint| endpoint.rests_until.is_none_or(|until| until <= now));
        awake.map(|endpoint| endpoint.url.clone()).collect()
    }

    fn rest(&self, url: &str) {
        let until = Instant::now() + Duration::from_millis(self.config.proxy.failure_wait_ms);
        for endpoint in self.endpoints.lock().iter_mut().filter(|endpoint| endpoint.url == url) {
            endpoint.rests_until = Some(until);
        }
        tracing::info!(endpoint = url, "marked endpoint unavailable");
    }

    /// Serves a listener until the task is dropped.
    pub(crate) async fn accept(self: Arc<Self>, bound: Bound) {
        let serve = move |stream: Stream, client: api::Client, remote: Option<SocketAddr>| {
            let this = Arc::clone(&self);
            async move {
                let service = service_fn(|request| {
                    let (this, client) = (Arc::clone(&this), client.clone());
                    async move { Ok::<_, std::convert::Infallible>(this.serve(request, &client, remote).await) }
                });
                // How a connection ends is the client's business.
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .title_case_headers(true)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        };
        listen::serve_here(bound, serve).await;
    }

    async fn serve(
        &self,
        request: Request<Incoming>,
        client: &api::Client,
        remote: Option<SocketAddr>,
    ) -> Response<Body> {
        let (head, body) = request.into_parts();
        let origin = head.headers.clone();
        if let Some(refusal) = self.http.refuse_host(client.is_secure, &head.uri, &head.headers) {
            return refusal.map(whole);
        }
        let mut response = match head.uri.path() {
            _ if head.method == Method::OPTIONS => Response::new(whole(Bytes::new())),
            "/v2/config/local/proxy" => self.show(&head.method),
            _ if self.config.proxy.mode == ProxyMode::Readonly && head.method != Method::GET => {
                with_status(StatusCode::NOT_IMPLEMENTED)
            }
            _ => match Limited::new(body, MAX_BODY_BYTES).collect().await {
                Ok(body) => self.pass_on(head, body.to_bytes(), remote).await,
                Err(error) => {
                    message(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to read request body: {error}"))
                }
            },
        };
        self.http.allow_origin(&origin, response.headers_mut());
        response
    }

    /// What this proxy knows.
    fn show(&self, method: &Method) -> Response<Body> {
        if method != Method::GET {
            let mut refusal = with_status(StatusCode::METHOD_NOT_ALLOWED);
            *refusal.body_mut() = whole("Method Not Allowed\n".into());
            let headers = refusal.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
            return refusal;
        }
        let json = serde_json::json!({ "endpoints": self.available() });
        let mut response = Response::new(whole(format!("{json}\n").into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }

    async fn pass_on(&self, mut head: Parts, body: Bytes, remote: Option<SocketAddr>) -> Response<Body> {
        let endpoints = self.available();
        if endpoints.is_empty() {
            return message(StatusCode::SERVICE_UNAVAILABLE, "zero endpoints currently available");
        }
        strip(&mut head.headers);
        head.headers.remove(http::header::CONTENT_LENGTH);
        let before: Vec<&str> =
            head.headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        let client = remote.map(|remote| remote.ip().to_string());
        let chain = before.into_iter().map(str::to_owned).chain(client).collect::<Vec<_>>().join(", ");
        if let (false, Ok(chain)) = (chain.is_empty(), HeaderValue::from_str(&chain)) {
            head.headers.insert(FORWARDED_FOR, chain);
        }
        for endpoint in &endpoints {
            match self.exchange(endpoint, &head, body.clone()).await {
                Ok(response) => return response,
                Err(error) => {
                    tracing::warn!(endpoint = endpoint.as_str(), %error, "failed to direct request");
                    self.rest(endpoint);
                }
            }
        }
        let text = format!("unable to get response from {} endpoint(s)", endpoints.len());
        message(StatusCode::BAD_GATEWAY, &text)
    }

    async fn dial(&self, url: &Uri, address: &str) -> io::Result<Stream> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        if self.config.proxy.write_timeout_ms > 0 {
            // What was written has to be taken within this time.
            let limit = Duration::from_millis(self.config.proxy.write_timeout_ms);
            socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(limit))?;
        }
        if url.scheme_str() == Some("https") {
            let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
            return self.connector.connect(Socket::Tcp(socket), host).await;
        }
        Ok(socket.into())
    }

    /// One request to one endpoint, on a connection of its own, which lives as long as the answer's body.
    async fn exchange(&self, endpoint: &str, head: &Parts, body: Bytes) -> io::Result<Response<Body>> {
        let settings = &self.config.proxy;
        let url: Uri = endpoint.parse().map_err(io::Error::other)?;
        let address = url.authority().ok_or(io::ErrorKind::InvalidInput)?.as_str();
        let dial = self.dial(&url, address);
        let socket = match settings.dial_timeout_ms {
            0 => dial.await?,
            limit => timeout(Duration::from_millis(limit), dial).await.map_err(|_| io::ErrorKind::TimedOut)??,
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await;
        let (mut sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            // Its end shows in the body that comes from it.
            let _ = connection.await;
        });
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = head.method.clone();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        *request.uri_mut() = target.parse().map_err(io::Error::other)?;
        *request.headers_mut() = head.headers.clone();
        request.headers_mut().insert(HOST, HeaderValue::from_str(address).map_err(io::Error::other)?);
        let answer = sender.send_request(request);
        let answer = match settings.read_timeout_ms {
            0 => answer.await,
            limit => timeout(Duration::from_millis(limit), answer).await.map_err(|_| io::ErrorKind::TimedOut)?,
        };
        let (mut head, body) = answer.map_err(io::Error::other)?.into_parts();
        strip(&mut head.headers);
        Ok(Response::from_parts(head, body.boxed()))
    }
}

/// Writes the cluster file if it would say something else, so that a crash leaves the old one or the new one.
fn save(data_dir: &Path, peer_urls: &[String]) -> io::Result<()> {
    if known(data_dir)?.is_some_and(|known| known == peer_urls) {
        return Ok(());
    }
    let path = cluster_path(data_dir);
    let backup = path.with_extension("bkp");
    let file = ClusterFile { peer_urls: peer_urls.to_vec() };
    std::fs::write(&backup, serde_json::to_vec(&file)?)?;
    std::fs::File::open(&backup)?.sync_all()?;
    std::fs::rename(&backup, &path)?;
    tracing::info!(peers = ?peer_urls, "proxy: updated peer urls in cluster file");
    Ok(())
}

fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn with_status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

fn message(status: StatusCode, text: &str) -> Response<Body> {
    tracing::info!("{text}");
    let mut response = with_status(status);
    *response.body_mut() = whole(serde_json::json!({ "message": format!("httpproxy: {text}") }).to_string().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
