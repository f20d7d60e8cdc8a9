//! A client of a cluster's v2 API: asks one member after the other until one answers.

use super::endpoint::{self, Endpoint};
use super::http::{self, Connection, Deadlines, Request, Response};
use super::json::{self, Event, KeyError, Member, Members, Message};
use super::secure::Tls;
use cli::go;
use std::fmt;
use std::time::{Duration, Instant};

/// How many redirections are followed.
const REDIRECTS: usize = 10;

/// A request that any member can be sent.
#[derive(Clone, Debug, Default)]
pub struct Action {
    /// `GET`, `PUT`…
    pub method: &'static str,
    /// The path, not escaped.
    pub path: String,
    /// What stands behind it.
    pub query: Vec<(&'static str, String)>,
    /// What is sent along.
    pub body: Body,
    /// Whether only one member is asked: what is done twice would not be the same.
    pub once: bool,
    /// Whether the answer may take for ever.
    pub waits: bool,
}

/// What is sent along with a request.
#[derive(Clone, Debug, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    None,
    /// Fields of a form.
    Form(Vec<(&'static str, String)>),
    /// JSON.
    Json(String),
}

/// Why there is no answer. Displays as the original's error.
#[derive(Debug)]
pub enum Error {
    /// One member did not answer, or nobody was asked.
    One(Failure),
    /// No member answered.
    All(Vec<Failure>),
    /// A member refused.
    Key(KeyError),
    /// Anything else that a member said, or that is wrong with what it said.
    Said(String),
    /// An answer without a body.
    EmptyBody,
}

/// What went wrong with one member.
#[derive(Debug)]
pub enum Failure {
    /// No answer came.
    Http(http::Error),
    /// No answer came, or none that helps.
    Member(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Http(error) => error.fmt(f),
            Failure::Member(text) => f.write_str(text),
        }
    }
}

impl Failure {
    /// Whether it is the network's fault.
    fn is_connection(&self) -> bool {
        matches!(self, Failure::Http(http::Error::Dial(_) | http::Error::Read(_) | http::Error::Timeout))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::One(failure) => failure.fmt(f),
            Error::All(failures) => {
                f.write_str("client: etcd cluster is unavailable or misconfigured")?;
                failures.iter().enumerate().try_for_each(|(i, failure)| writeln!(f, "; error #{i}: {failure}"))
            }
            Error::Key(error) => error.fmt(f),
            Error::Said(text) => f.write_str(text),
            Error::EmptyBody => f.write_str("client: response body is empty"),
        }
    }
}

impl Error {
    /// Whether it is the network's fault alone.
    pub fn is_connection(&self) -> bool {
        match self {
            Error::One(failure) => failure.is_connection(),
            Error::All(failures) => failures.iter().all(Failure::is_connection),
            Error::Key(_) | Error::Said(_) | Error::EmptyBody => false,
        }
    }

    /// What is said beside the error itself.
    pub fn detail(&self) -> Option<String> {
        let Error::All(failures) = self else { return None };
        Some(detail(failures))
    }
}

fn detail(failures: &[Failure]) -> String {
    failures.iter().enumerate().map(|(i, failure)| format!("error #{i}: {failure}\n")).collect()
}

/// The client.
pub struct Cluster {
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last.
    pinned: usize,
    connection: Option<(usize, Connection)>,
    tls: Tls,
    authorization: Option<String>,
    head_timeout: Duration,
    total_timeout: Duration,
    /// Whether requests are shown on stderr.
    is_debug: bool,
}

impl Cluster {
    /// A client of these endpoints.
    pub fn new(
        endpoints: Vec<Endpoint>,
        tls: Tls,
        authorization: Option<String>,
        (head_timeout, total_timeout): (Duration, Duration),
        is_debug: bool,
    ) -> Cluster {
        let mut cluster = Cluster {
            endpoints: Vec::new(),
            pinned: 0,
            connection: None,
            tls,
            authorization,
            head_timeout,
            total_timeout,
            is_debug,
        };
        cluster.set_endpoints(endpoints);
        cluster
    }

    /// The endpoints, with this between them.
    pub fn endpoints(&self, between: &str) -> String {
        self.endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(between)
    }

    /// Takes other endpoints. Clients begin at any of them, so that not all ask the same member.
    fn set_endpoints(&mut self, endpoints: Vec<Endpoint>) {
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        self.endpoints = endpoints;
        let mut state = u64::from(nanos ^ std::process::id()) | 1;
        for last in (1..self.endpoints.len()).rev() {
            // xorshift64: which order it is need not be hard to guess.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            self.endpoints.swap(last, (state % (last as u64 + 1)) as usize);
        }
        self.pinned = 0;
        self.connection = None;
    }

    /// Asks the cluster for its members' client URLs and uses those from now on.
    pub fn sync(&mut self) -> Result<(), Error> {
        let urls = self.members()?.into_iter().flat_map(|member| member.client_urls.unwrap_or_default());
        let mut endpoints = Vec::new();
        for url in urls {
            endpoints.push(Endpoint::parse(&url).map_err(Error::Said)?);
        }
        if endpoints.is_empty() {
            return Err(Error::Said(NO_ENDPOINTS.to_owned()));
        }
        let sorted = |endpoints: &[Endpoint]| {
            let mut urls: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
            urls.sort();
            urls
        };
        if sorted(&endpoints) != sorted(&self.endpoints) {
            self.set_endpoints(endpoints);
        }
        Ok(())
    }

    /// Asks members until one answers.
    pub fn call(&mut self, action: &Action) -> Result<Response, Error> {
        let deadline = if action.waits { None } else { Some(Instant::now() + self.total_timeout) };
        let mut failures = Vec::new();
        for i in 0..self.endpoints.len() {
            let at = (self.pinned + i) % self.endpoints.len();
            match self.follow(at, action, deadline) {
                Ok(response) if response.status / 100 != 5 => {
                    self.pinned = at;
                    return Ok(response);
                }
                Ok(response) => failures.push(Failure::Member(self.server_error(at, response.status))),
                Err(Failure::Http(http::Error::Timeout)) => {
                    return Err(Error::One(Failure::Http(http::Error::Timeout)));
                }
                Err(failure) => failures.push(failure),
            }
            if action.once
                && let Some(failure) = failures.pop()
            {
                return Err(Error::One(failure));
            }
        }
        Err(Error::All(failures))
    }

    fn server_error(&self, at: usize, status: u16) -> String {
        let endpoint = &self.endpoints[at];
        let reason = match status {
            500 | 503 => return format!("client: etcd member {endpoint} has no leader"),
            501 => "Not Implemented",
            502 => "Bad Gateway",
            504 => "Gateway Timeout",
            505 => "HTTP Version Not Supported",
            507 => "Insufficient Storage",
            508 => "Loop Detected",
            511 => "Network Authentication Required",
            _ => "",
        };
        format!("client: etcd member {endpoint} returns server error [{reason}]")
    }

    /// Asks one member, and whom it refers to.
    fn follow(&mut self, at: usize, action: &Action, deadline: Option<Instant>) -> Result<Response, Failure> {
        let member = self.endpoints[at].clone();
        let path = endpoint::escape_path(&endpoint::clean(&format!("{}{}", member.path, action.path)));
        let query: Vec<(&str, &str)> = action.query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut url = member.url_of(&path, &endpoint::form(&query));
        for _ in 0..=REDIRECTS {
            let response = self.ask(at, &url, action, deadline)?;
            if response.status / 100 != 3 {
                return Ok(response);
            }
            let Some(location) = response.location else {
                return Err(Failure::Member("location header not set".to_owned()));
            };
            url = location;
        }
        Err(Failure::Member("client: too many redirects".to_owned()))
    }

    fn ask(&mut self, at: usize, url: &str, action: &Action, deadline: Option<Instant>) -> Result<Response, Failure> {
        let (content_type, body) = match &action.body {
            Body::None => (None, None),
            Body::Form(fields) => {
                let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
                (Some("application/x-www-form-urlencoded"), Some(endpoint::form(&fields)))
            }
            Body::Json(text) => (Some("application/json"), Some(text.clone())),
        };
        if self.is_debug {
            let data = body.as_ref().map_or(String::new(), |body| format!(" -d {}", go::quote(body.as_bytes())));
            eprintln!("cURL Command: curl -X {} {url}{data}", action.method);
        }
        let Some((_, behind)) = url.split_once("://") else {
            return Err(Failure::Member("unsupported protocol scheme \"\"".to_owned()));
        };
        let target = behind.find('/').map_or("/", |at| &behind[at..]).to_owned();
        let request = Request {
            method: action.method,
            target,
            content_type,
            body: body.map(String::into_bytes).unwrap_or_default(),
            authorization: self.authorization.clone(),
        };
        let mut other = Endpoint::parse(url).map_err(Failure::Member)?;
        other.path.clear();
        let is_bounded = !action.waits && !self.head_timeout.is_zero();
        let head = is_bounded.then(|| Instant::now() + self.head_timeout);
        let deadlines = Deadlines { head, whole: deadline };
        self.exchange(at, &other, &request, deadlines).map_err(|error| match error {
            http::Error::HeadTimeout => {
                Failure::Member(format!("client: endpoint {} exceeded header timeout", self.endpoints[at]))
            }
            error => Failure::Http(error),
        })
    }

    /// Sends a request over the connection that is open, or over a new one.
    fn exchange(
        &mut self,
        at: usize,
        endpoint: &Endpoint,
        request: &Request,
        deadlines: Deadlines,
    ) -> Result<Response, http::Error> {
        let own = &self.endpoints[at];
        let is_own = (&endpoint.scheme, &endpoint.host) == (&own.scheme, &own.host);
        let open = self.connection.take().filter(|(of, connection)| is_own && *of == at && connection.is_open);
        let mut connection = match open {
            Some((_, connection)) => connection,
            None => Connection::open(endpoint, &self.tls, deadlines)?,
        };
        let answer = connection.call(&endpoint.host, request, deadlines);
        // A member may close a connection that nobody uses; a reading request can be sent again.
        let may_repeat = connection.was_used() && request.method == "GET";
        let answer = match answer {
            Err(http::Error::Read(_) | http::Error::Malformed(_)) if may_repeat => {
                connection = Connection::open(endpoint, &self.tls, deadlines)?;
                connection.call(&endpoint.host, request, deadlines)
            }
            answer => answer,
        };
        self.connection = Some((at, connection)).filter(|(_, connection)| is_own && connection.is_open);
        answer
    }

    /// Asks for a key, or changes one.
    pub fn key(&mut self, action: &Action) -> Result<Event, Error> {
        let invalid = |_| {
            let text = "client: response is invalid json. The endpoint is probably not valid etcd cluster endpoint";
            Error::Said(text.to_owned())
        };
        let response = self.call(action)?;
        if !matches!(response.status, 200 | 201) {
            return Err(Error::Key(json::read(&response.body).map_err(invalid)?));
        }
        if response.body.is_empty() {
            return Err(Error::EmptyBody);
        }
        let mut event: Event = json::read(&response.body).map_err(invalid)?;
        if let Some(index) = response.index {
            event.index = go::parse_uint(&index, 10).map_err(Error::Said)?;
        }
        Ok(event)
    }

    /// The members.
    pub fn members(&mut self) -> Result<Vec<Member>, Error> {
        let action = Action { method: "GET", path: "/v2/members".to_owned(), ..Action::default() };
        let members: Members = self.call(&action)?.expect(&[200])?.json()?;
        Ok(members.members.unwrap_or_default())
    }
}

/// What is said when a cluster's members publish no URLs.
pub const NO_ENDPOINTS: &str = "client: no endpoints available";

impl Response {
    /// Fails unless the status is one of these.
    pub fn expect(self, statuses: &[u16]) -> Result<Response, Error> {
        if statuses.contains(&self.status) {
            Ok(self)
        } else {
            Err(Error::Said(format!("unexpected status code {}", self.status)))
        }
    }

    /// Fails with what the member says, unless the status is one of these.
    pub fn expect_or_message(self, statuses: &[u16]) -> Result<Response, Error> {
        if statuses.contains(&self.status) {
            return Ok(self);
        }
        let message: Message = self.json()?;
        Err(Error::Said(message.message))
    }

    /// The body's JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        json::read(&self.body).map_err(Error::Said)
    }
}
