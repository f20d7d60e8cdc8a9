//! Random users, roles, permissions and operations in the name of random users, on two servers: every answer has to be equal,
//! refusals and their texts included.
//!
//! Calls are made by hand on HTTP/2, because who makes one differs from call to call. Tokens differ between the servers, so each
//! keeps its own in the same places.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use proto::authpb::{Permission, UserAddOptions};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request as Op;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpStream;

use super::{Difference, Failure, Version};
use crate::harness::{Binary, Options, Server};

/// What to compare, and for how long.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// How many operations.
    pub operations: u64,
    /// Where the random operations start from.
    pub seed: u64,
    /// The server that is taken to be right.
    pub reference: Binary,
    /// The server under test.
    pub subject: Binary,
}

/// What a comparison without a difference has covered.
#[derive(Debug, Default)]
pub struct AuthReport {
    /// Operations done on each server.
    pub operations: u64,
    /// How many of each method.
    pub methods: BTreeMap<&'static str, u64>,
    /// How many ended in each error.
    pub errors: BTreeMap<String, u64>,
    /// The revision of users and roles at the end.
    pub revision: u64,
    /// The time it took.
    pub took: Duration,
}

impl fmt::Display for AuthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} operations in {:.1?}, all answers equal", self.operations, self.took)?;
        writeln!(f, "last auth revision {}", self.revision)?;
        for (method, times) in &self.methods {
            writeln!(f, "  {times:>8}  {method}")?;
        }
        writeln!(f, "errors, equal on both:")?;
        self.errors.iter().try_for_each(|(error, times)| writeln!(f, "  {times:>8}  {error}"))
    }
}

/// What etcd closed last: which put of a transaction is looked at how, and which calls need to be somebody's. With an older server
/// on one side the two would differ, so nothing of that is done.
const CLOSED: Version = Version(3, 7, 1);

/// Starts both servers on fresh directories, compares, and stops them.
pub async fn run(settings: &AuthSettings) -> Result<AuthReport, Failure> {
    let options = Options {
        flags: vec!["--log-level=error".into(), "--bcrypt-cost=4".into(), "--auth-token-ttl=3000".into()],
        ..Options::default()
    };
    let servers = [Server::start(&settings.reference, options.clone())?, Server::start(&settings.subject, options)?];
    let mut oldest = CLOSED;
    for server in &servers {
        let version = server.version().as_deref().and_then(Version::parse);
        let version = version.ok_or_else(|| Failure::NoVersion { server: server.binary().name.clone() })?;
        oldest = oldest.min(version);
    }
    let mut comparison = Comparison {
        settings,
        random: StdRng::seed_from_u64(settings.seed),
        is_closed: oldest >= CLOSED,
        servers: [Rpc::connect(&servers[0]).await, Rpc::connect(&servers[1]).await],
        tokens: Vec::new(),
        report: AuthReport::default(),
        before: VecDeque::new(),
    };
    let began = Instant::now();
    comparison.run().await?;
    comparison.report.took = began.elapsed();
    Ok(comparison.report)
}

struct Comparison<'a> {
    settings: &'a AuthSettings,
    random: StdRng,
    /// Both servers have all of etcd's repairs.
    is_closed: bool,
    servers: [Rpc; 2],
    /// Who has authenticated, and the token on each server; the newest last.
    tokens: Vec<(String, [String; 2])>,
    report: AuthReport,
    before: VecDeque<String>,
}

const USERS: [&str; 6] = ["root", "alice", "bob", "carol", "dave", ""];
const ROLES: [&str; 6] = ["root", "r1", "r2", "r3", "r4", ""];
const PASSWORDS: [&str; 3] = ["one", "two", ""];
const LEASES: i64 = 4;
/// So many tokens are remembered, good ones and bad ones.
const TOKENS: usize = 24;

impl Comparison<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        self.begin().await?;
        while self.report.operations < self.settings.operations {
            self.step().await?;
            // Whatever has become of root, and of authentication, the world must go on.
            if self.report.operations.is_multiple_of(97) {
                self.begin().await?;
            }
        }
        let status: Option<pb::AuthStatusResponse> =
            self.call("Auth/AuthStatus", None, pb::AuthStatusRequest {}).await?;
        self.report.revision = status.map_or(0, |status| status.auth_revision);
        self.begin().await?;
        let everything = Bytes::from_static(b"\0");
        let everything = pb::RangeRequest { key: everything.clone(), range_end: everything, ..Default::default() };
        self.call::<pb::RangeResponse>("KV/Range", self.root(), everything).await?;
        Ok(())
    }

    /// The newest token of root.
    fn root(&self) -> Option<usize> {
        self.tokens.iter().rposition(|(user, _)| user == "root")
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        let root = pb::AuthUserAddRequest { name: "root".into(), password: "one".into(), ..Default::default() };
        self.call::<pb::AuthUserAddResponse>("Auth/UserAdd", self.root(), root).await?;
        let grant = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        self.call::<pb::AuthUserGrantRoleResponse>("Auth/UserGrantRole", self.root(), grant).await?;
        let leases = if self.is_closed || self.tokens.is_empty() { LEASES } else { 0 };
        for id in 1..=leases {
            self.call::<pb::LeaseGrantResponse>(
                "Lease/LeaseGrant",
                self.root(),
                pb::LeaseGrantRequest { ttl: 100_000, id },
            )
            .await?;
        }
        self.call::<pb::AuthEnableResponse>("Auth/AuthEnable", self.root(), pb::AuthEnableRequest {}).await?;
        self.authenticate("root", "one").await
    }

    // --- choosing ---

    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.random.random_range(0..of.len())]
    }

    fn often(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn key(&mut self) -> Bytes {
        let length = self.random.random_range(1..=2);
        (0..length).map(|_| self.random.random_range(b'a'..=b'e')).collect::<Vec<u8>>().into()
    }

    /// A key and a range end; now and then one that makes no sense.
    fn range(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        let end = match self.random.random_range(0..10) {
            0..4 => Bytes::new(),
            4 => Bytes::from_static(b"\0"),
            5 => self.key(),
            6 => [key.as_ref(), b"\0"].concat().into(),
            _ => {
                let mut end = key.to_vec();
                *end.last_mut().expect("keys are not empty") += self.random.random_range(1..3u8);
                end.into()
            }
        };
        (key, end)
    }

    /// Whose token to call with: mostly root's newest for what changes users, anybody's otherwise.
    fn caller(&mut self, mostly_root: bool) -> Option<usize> {
        if self.tokens.is_empty() || self.often(4) {
            return None;
        }
        if mostly_root && self.often(85) {
            return self.root();
        }
        Some(self.random.random_range(0..self.tokens.len()))
    }

    fn put(&mut self) -> pb::PutRequest {
        let (ignore_value, ignore_lease) = (self.often(10), self.often(10));
        pb::PutRequest {
            key: self.key(),
            value: if ignore_value { Bytes::new() } else { self.key() },
            lease: if ignore_lease || self.often(60) { 0 } else { self.random.random_range(1..=LEASES + 1) },
            prev_kv: self.often(30),
            ignore_value,
            ignore_lease,
        }
    }

    fn range_request(&mut self) -> pb::RangeRequest {
        let (key, range_end) = self.range();
        pb::RangeRequest {
            key,
            range_end,
            serializable: self.often(20),
            count_only: self.often(10),
            ..Default::default()
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end) = self.range();
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.often(40) }
    }

    fn txn(&mut self, depth: usize) -> pb::TxnRequest {
        let mut compare = Vec::new();
        if self.often(50) {
            let (key, range_end) = self.range();
            compare.push(pb::Compare { key, range_end, result: self.random.random_range(0..4), ..Default::default() });
        }
        let branch = |comparison: &mut Self| -> Vec<pb::RequestOp> {
            let count = comparison.random.random_range(0..3);
            (0..count).map(|_| pb::RequestOp { request: Some(comparison.op(depth)) }).collect()
        };
        let (success, failure) = (branch(self), branch(self));
        pb::TxnRequest { compare, success, failure }
    }

    fn op(&mut self, depth: usize) -> Op {
        match self.random.random_range(0..10) {
            0..4 => Op::RequestRange(self.range_request()),
            4..7 => {
                let mut put = self.put();
                // Which of two mistakes is told of changed with 3.6.
                if put.ignore_value || put.ignore_lease {
                    put.lease = 0;
                }
                if !self.is_closed {
                    (put.prev_kv, put.lease) = (false, 0);
                }
                Op::RequestPut(put)
            }
            7..9 => Op::RequestDeleteRange(self.delete()),
            _ if depth < 4 && self.is_closed => Op::RequestTxn(self.txn(depth + 1)),
            _ => Op::RequestRange(self.range_request()),
        }
    }

    // --- doing ---

    async fn step(&mut self) -> Result<(), Failure> {
        match self.random.random_range(0..100) {
            0..30 => self.change_users().await,
            30..38 => self.log_in().await,
            38..90 => self.use_keys().await,
            _ => self.look_around().await,
        }
    }

    async fn change_users(&mut self) -> Result<(), Failure> {
        let by = self.caller(true);
        let (user, role) = (self.one(&USERS).to_owned(), self.one(&ROLES).to_owned());
        match self.random.random_range(0..100) {
            0..14 => {
                let options =
                    self.often(40).then(|| UserAddOptions { no_password: self.random.random_range(0..3) == 0 });
                let password = self.one(&PASSWORDS).to_owned();
                let request = pb::AuthUserAddRequest { name: user, password, options, ..Default::default() };
                self.call::<pb::AuthUserAddResponse>("Auth/UserAdd", by, request).await?;
            }
            14..19 => {
                self.call::<pb::AuthUserDeleteResponse>(
                    "Auth/UserDelete",
                    by,
                    pb::AuthUserDeleteRequest { name: user },
                )
                .await?;
            }
            19..24 => {
                // Root keeps its own, or nobody would come in any more.
                let password = if user == "root" { "one" } else { self.one(&PASSWORDS) }.to_owned();
                let request = pb::AuthUserChangePasswordRequest { name: user, password, ..Default::default() };
                self.call::<pb::AuthUserChangePasswordResponse>("Auth/UserChangePassword", by, request).await?;
            }
            24..42 => {
                let request = pb::AuthUserGrantRoleRequest { user, role };
                self.call::<pb::AuthUserGrantRoleResponse>("Auth/UserGrantRole", by, request).await?;
            }
            42..50 => {
                let request = pb::AuthUserRevokeRoleRequest { name: user, role };
                self.call::<pb::AuthUserRevokeRoleResponse>("Auth/UserRevokeRole", by, request).await?;
            }
            50..60 => {
                self.call::<pb::AuthRoleAddResponse>("Auth/RoleAdd", by, pb::AuthRoleAddRequest { name: role }).await?;
            }
            60..63 => {
                self.call::<pb::AuthRoleDeleteResponse>("Auth/RoleDelete", by, pb::AuthRoleDeleteRequest { role })
                    .await?;
            }
            63..88 => {
                let (key, mut range_end) = self.range();
                // Permissions that make no sense are refused since 3.5.10 and 3.4.26.
                if !self.is_closed && range_end.as_ref() != b"\0" && range_end <= key {
                    range_end = Bytes::new();
                }
                let perm_type = self.random.random_range(0..3);
                let perm = (!self.is_closed || self.often(97)).then_some(Permission { perm_type, key, range_end });
                let request = pb::AuthRoleGrantPermissionRequest { name: role, perm };
                self.call::<pb::AuthRoleGrantPermissionResponse>("Auth/RoleGrantPermission", by, request).await?;
            }
            88..97 => {
                let (key, range_end) = self.range();
                let request = pb::AuthRoleRevokePermissionRequest { role, key, range_end };
                self.call::<pb::AuthRoleRevokePermissionResponse>("Auth/RoleRevokePermission", by, request).await?;
            }
            97 => {
                self.call::<pb::AuthDisableResponse>("Auth/AuthDisable", by, pb::AuthDisableRequest {}).await?;
            }
            _ => {
                self.call::<pb::AuthEnableResponse>("Auth/AuthEnable", by, pb::AuthEnableRequest {}).await?;
            }
        }
        Ok(())
    }

    async fn log_in(&mut self) -> Result<(), Failure> {
        let (user, password) = (self.one(&USERS), self.one(&PASSWORDS));
        self.authenticate(user, password).await
    }

    async fn authenticate(&mut self, user: &str, password: &str) -> Result<(), Failure> {
        let request = pb::AuthenticateRequest { name: user.into(), password: password.into() };
        let answers = self.ask("Auth/Authenticate", None, &request).await;
        let [reference, subject] = answers.each_ref().map(|answer| answer.decode::<pb::AuthenticateResponse>());
        if let (Ok(reference), Ok(subject)) = (&reference, &subject) {
            self.tokens.push((user.to_owned(), [reference.token.clone(), subject.token.clone()]));
            if self.tokens.len() > TOKENS {
                self.tokens.remove(0);
            }
        }
        let shown = |response: Result<pb::AuthenticateResponse, String>| response.map(|response| scrub(&response));
        self.judge("Auth/Authenticate", &format!("{request:?}"), shown(reference), shown(subject))
    }

    async fn use_keys(&mut self) -> Result<(), Failure> {
        let by = self.caller(false);
        match self.random.random_range(0..100) {
            0..30 => {
                let request = self.range_request();
                self.call::<pb::RangeResponse>("KV/Range", by, request).await?;
            }
            30..50 => {
                let request = self.put();
                self.call::<pb::PutResponse>("KV/Put", by, request).await?;
            }
            50..62 => {
                let request = self.delete();
                self.call::<pb::DeleteRangeResponse>("KV/DeleteRange", by, request).await?;
            }
            62..85 => {
                let request = self.txn(1);
                self.call::<pb::TxnResponse>("KV/Txn", by, request).await?;
            }
            85..92 => {
                let (key, mut range_end) = self.range();
                if !self.is_closed && range_end.as_ref() == b"\0" {
                    range_end = Bytes::new();
                }
                let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
                let request =
                    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
                self.call::<pb::WatchResponse>("Watch/Watch", by, request).await?;
            }
            _ if self.is_closed => self.use_leases(by).await?,
            _ => {}
        }
        Ok(())
    }

    async fn use_leases(&mut self, by: Option<usize>) -> Result<(), Failure> {
        let id = self.random.random_range(1..=LEASES + 1);
        match self.random.random_range(0..10) {
            0..3 => {
                let request = pb::LeaseKeepAliveRequest { id };
                self.call::<pb::LeaseKeepAliveResponse>("Lease/LeaseKeepAlive", by, request).await?;
            }
            3..5 => {
                self.call::<pb::LeaseRevokeResponse>("Lease/LeaseRevoke", by, pb::LeaseRevokeRequest { id }).await?;
            }
            5..7 => {
                let request = pb::LeaseGrantRequest { ttl: 100_000, id };
                self.call::<pb::LeaseGrantResponse>("Lease/LeaseGrant", by, request).await?;
            }
            7..9 => {
                let request = pb::LeaseTimeToLiveRequest { id, keys: self.often(50) };
                self.call::<pb::LeaseTimeToLiveResponse>("Lease/LeaseTimeToLive", by, request).await?;
            }
            _ => {
                let answers = self.ask("Lease/LeaseLeases", by, &pb::LeaseLeasesRequest {}).await;
                // They come by the time at which they end, which for those of the same second is anybody's guess.
                let [reference, subject] = answers.each_ref().map(|answer| {
                    let mut response = answer.decode::<pb::LeaseLeasesResponse>()?;
                    response.leases.sort_by_key(|lease| lease.id);
                    Ok(scrub(&response))
                });
                self.judge("Lease/LeaseLeases", &format!("by {by:?}"), reference, subject)?;
            }
        }
        Ok(())
    }

    async fn look_around(&mut self) -> Result<(), Failure> {
        let by = self.caller(false);
        let (name, role) = (self.one(&USERS).to_owned(), self.one(&ROLES).to_owned());
        match self.random.random_range(0..10) {
            0..3 => {
                self.call::<pb::AuthUserGetResponse>("Auth/UserGet", by, pb::AuthUserGetRequest { name }).await?;
            }
            3..6 => {
                self.call::<pb::AuthRoleGetResponse>("Auth/RoleGet", by, pb::AuthRoleGetRequest { role }).await?;
            }
            6 => {
                self.call::<pb::AuthUserListResponse>("Auth/UserList", by, pb::AuthUserListRequest {}).await?;
            }
            7 => {
                self.call::<pb::AuthRoleListResponse>("Auth/RoleList", by, pb::AuthRoleListRequest {}).await?;
            }
            _ if !self.is_closed => {}
            8 => {
                self.call::<pb::AuthStatusResponse>("Auth/AuthStatus", by, pb::AuthStatusRequest {}).await?;
            }
            _ => {
                let request = pb::CompactionRequest { revision: 1 << 40, physical: false };
                self.call::<pb::CompactionResponse>("KV/Compact", by, request).await?;
            }
        }
        Ok(())
    }

    /// Does the same on both servers; the answer, if it was no error.
    async fn call<R: Message + Default + fmt::Debug>(
        &mut self,
        method: &'static str,
        by: Option<usize>,
        request: impl Message + fmt::Debug,
    ) -> Result<Option<R>, Failure> {
        let answers = self.ask(method, by, &request).await;
        let who = by.map_or("nobody".to_owned(), |at| format!("{} ({at})", self.tokens[at].0));
        let [reference, subject] = answers.each_ref().map(|answer| answer.decode::<R>());
        let shown = |response: &Result<R, String>| response.as_ref().map(scrub).map_err(String::clone);
        self.judge(method, &format!("{request:?} by {who}"), shown(&reference), shown(&subject))?;
        Ok(subject.ok())
    }

    async fn ask(&self, method: &str, by: Option<usize>, request: &impl Message) -> [Answer; 2] {
        let token = |side: usize| by.map(|at| self.tokens[at].1[side].as_str());
        let (reference, subject) = tokio::join!(
            self.servers[0].call(method, token(0), request),
            self.servers[1].call(method, token(1), request)
        );
        [reference, subject]
    }

    fn judge(
        &mut self,
        method: &'static str,
        what: &str,
        reference: Result<String, String>,
        subject: Result<String, String>,
    ) -> Result<(), Failure> {
        let number = self.report.operations;
        if reference != subject {
            return Err(Failure::Difference(Box::new(Difference {
                seed: self.settings.seed,
                number,
                what: format!("{method} {what}\n  reference: {reference:?}\n  subject:   {subject:?}"),
                changes: self.before.iter().cloned().collect(),
            })));
        }
        self.report.operations += 1;
        *self.report.methods.entry(method).or_default() += 1;
        if let Err(error) = &subject {
            *self.report.errors.entry(error.clone()).or_default() += 1;
        }
        self.before.push_back(format!("{method} {what} => {subject:?}"));
        if self.before.len() > 24 {
            self.before.pop_front();
        }
        Ok(())
    }
}

/// A response without what belongs to the server that gives it, and to the moment: the seconds that a lease has left.
fn scrub(response: &impl fmt::Debug) -> String {
    let shown = format!("{response:?}");
    let mut kept = String::with_capacity(shown.len());
    let mut rest = shown.as_str();
    while let Some(at) =
        ["cluster_id: ", "member_id: ", "raft_term: ", " ttl: "].iter().filter_map(|name| rest.find(name)).min()
    {
        let (before, field) = rest.split_at(at);
        kept.push_str(before);
        let end = field.find([',', '}']).unwrap_or(field.len());
        rest = &field[end..];
    }
    kept + rest
}

/// A connection, and its gRPC.
struct Rpc {
    send: SendRequest<Bytes>,
}

struct Answer {
    message: Option<Bytes>,
    error: String,
}

impl Answer {
    fn decode<R: Message + Default>(&self) -> Result<R, String> {
        match &self.message {
            Some(message) => R::decode(message.clone()).map_err(|error| error.to_string()),
            None => Err(self.error.clone()),
        }
    }
}

impl Rpc {
    async fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.client_addr()).await.expect("the server listens");
        let (send, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        Self { send }
    }

    /// Asks, and waits for the first message or the end.
    async fn call(&self, method: &str, token: Option<&str>, request: &impl Message) -> Answer {
        let call = self.try_call(method, token, request);
        match tokio::time::timeout(Duration::from_secs(20), call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer { message: None, error: error.to_string() },
            Err(_) => Answer { message: None, error: "no answer within 20 s".into() },
        }
    }

    async fn try_call(&self, method: &str, token: Option<&str>, request: &impl Message) -> Result<Answer, h2::Error> {
        let mut client = self.send.clone().ready().await?;
        let mut head = Request::post(format!("http://server/etcdserverpb.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            head = head.header("token", token);
        }
        let (response, mut send) = client.send_request(head.body(()).expect("well-formed"), false)?;
        let mut framed = vec![0];
        framed.extend((request.encoded_len() as u32).to_be_bytes());
        framed.extend(request.encode_to_vec());
        send.send_data(framed.into(), method != "Watch/Watch")?;
        let (head, mut body) = response.await?.into_parts();
        let mut trailers = head.headers;
        let mut received = Vec::new();
        if !trailers.contains_key("grpc-status") {
            while let Some(chunk) = body.data().await {
                let chunk = chunk?;
                // Cannot fail for what has just come.
                let _ = body.flow_control().release_capacity(chunk.len());
                received.extend(chunk);
                let mut reader = received.as_slice();
                if reader.len() >= 5 {
                    reader.advance(1);
                    let length = reader.get_u32() as usize;
                    if reader.len() >= length {
                        return Ok(Answer {
                            message: Some(Bytes::copy_from_slice(&reader[..length])),
                            error: String::new(),
                        });
                    }
                }
            }
            trailers = body.trailers().await?.unwrap_or_default();
        }
        let text = |name| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Answer { message: None, error: format!("{} {}", text("grpc-status"), text("grpc-message")) })
    }
}
