//! Who may do what, over the wire: a matrix of everything that can be asked and everybody who can ask it, and a test for each
//! hole in etcd's access control that was ever published.
//!
//! What the matrix expects is written down here once more, naively: each row says which rights it takes, each caller which rights
//! it has.

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use keelson_api::Member as _;
use keelson_api::grpc::method::Method;
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request as Op;
use proto::healthpb::{HealthCheckRequest, HealthListRequest};
use proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use proto::v3lockpb::{LockRequest, UnlockRequest};
use proto::{authpb, mvccpb};
use support::{Server, frame};
use tokio::net::TcpStream;

// --- calling ---

/// A connection, and its gRPC by hand.
struct Rpc {
    send: SendRequest<Bytes>,
}

/// What came first: a message, or the end with a status.
#[derive(Debug)]
struct Answer {
    message: Option<Bytes>,
    status: i32,
    text: String,
}

impl Answer {
    fn decode<M: Message + Default>(&self) -> M {
        M::decode(self.message.clone().unwrap_or_else(|| panic!("refused: {self:?}"))).expect("well-formed")
    }
}

impl Rpc {
    async fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address).await.expect("the server listens");
        let (send, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        Self { send }
    }

    /// Asks, and waits for the first message or the end, whatever kind of method it is.
    async fn call(&self, method: Method, token: Option<&str>, message: &impl Message) -> Answer {
        self.call_framed(method, token, frame(message)).await
    }

    async fn call_framed(&self, method: Method, token: Option<&str>, framed: Vec<u8>) -> Answer {
        let call = self.try_call(method, token, framed);
        let answer = tokio::time::timeout(std::time::Duration::from_secs(20), call).await;
        answer.unwrap_or_else(|_| panic!("no answer to {} with token {token:?}", method.path()))
    }

    async fn try_call(&self, method: Method, token: Option<&str>, framed: Vec<u8>) -> Answer {
        let mut client = self.send.clone().ready().await.expect("the connection stands");
        let mut request =
            Request::post(format!("http://server{}", method.path())).header("content-type", "application/grpc");
        if let Some(token) = token {
            request = request.header("token", token);
        }
        let request = request.header("te", "trailers").body(()).expect("a request");
        let (response, mut send) = client.send_request(request, false).expect("sent");
        // Streams of requests stay open on our side: some methods end when theirs does.
        let ends = !matches!(method, Method::Watch);
        send.send_data(framed.into(), ends).expect("sent");
        let (head, mut body) = response.await.expect("answered").into_parts();
        let mut received = Vec::new();
        let mut trailers = head.headers;
        if !trailers.contains_key("grpc-status") {
            while let Some(chunk) = body.data().await {
                let chunk = chunk.expect("whole");
                body.flow_control().release_capacity(chunk.len()).expect("received");
                received.extend(chunk);
                if let Some(length) = received.get(1..5) {
                    let end = 5 + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
                    if received.len() >= end {
                        let message = Some(Bytes::copy_from_slice(&received[5..end]));
                        return Answer { message, status: 0, text: String::new() };
                    }
                }
            }
            trailers = body.trailers().await.expect("whole").expect("a status comes last");
        }
        let text = |name| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        Answer { message: None, status: text("grpc-status").parse().expect("a number"), text: text("grpc-message") }
    }

    /// What must succeed.
    async fn must<M: Message + Default>(&self, method: Method, token: Option<&str>, message: &impl Message) -> M {
        self.call(method, token, message).await.decode()
    }

    async fn token(&self, name: &str) -> String {
        let request = pb::AuthenticateRequest { name: name.into(), password: name.into() };
        self.must::<pb::AuthenticateResponse>(Method::Authenticate, None, &request).await.token
    }

    /// Adds a user whose password is its name.
    async fn add_user(&self, name: &str, role: Option<&str>) {
        let user = pb::AuthUserAddRequest { name: name.into(), password: name.into(), ..Default::default() };
        self.must::<pb::AuthUserAddResponse>(Method::UserAdd, None, &user).await;
        if let Some(role) = role {
            let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: role.into() };
            self.must::<pb::AuthUserGrantRoleResponse>(Method::UserGrantRole, None, &grant).await;
        }
    }

    async fn add_role(&self, name: &str, permissions: &[(authpb::permission::Type, &str, &str)]) {
        let role = pb::AuthRoleAddRequest { name: name.into() };
        self.must::<pb::AuthRoleAddResponse>(Method::RoleAdd, None, &role).await;
        for (kind, key, range_end) in permissions {
            let perm =
                Some(authpb::Permission { perm_type: *kind as i32, key: bytes(key), range_end: bytes(range_end) });
            let grant = pb::AuthRoleGrantPermissionRequest { name: name.into(), perm };
            self.must::<pb::AuthRoleGrantPermissionResponse>(Method::RoleGrantPermission, None, &grant).await;
        }
    }

    async fn enable(&self) {
        self.must::<pb::AuthEnableResponse>(Method::AuthEnable, None, &pb::AuthEnableRequest {}).await;
    }

    async fn put(&self, token: Option<&str>, key: &str, lease: i64) {
        let put = pb::PutRequest { key: bytes(key), value: bytes("v"), lease, ..Default::default() };
        self.must::<pb::PutResponse>(Method::Put, token, &put).await;
    }

    /// Takes the office `k/held`, or goes on holding it.
    async fn hold(&self, token: Option<&str>) {
        self.call(Method::LeaseGrant, token, &pb::LeaseGrantRequest { ttl: 1000, id: 14 }).await;
        let campaign = CampaignRequest { name: bytes("k/held"), lease: 14, value: bytes("root") };
        self.must::<CampaignResponse>(Method::Campaign, token, &campaign).await;
    }

    /// Makes the lease, unless it is there, with a key on it.
    async fn lease(&self, token: Option<&str>, id: i64, key: &str) {
        self.call(Method::LeaseGrant, token, &pb::LeaseGrantRequest { ttl: 1000, id }).await;
        self.put(token, key, id).await;
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

// --- the matrix: who ---

const READ: authpb::permission::Type = authpb::permission::Type::Read;
const WRITE: authpb::permission::Type = authpb::permission::Type::Write;
const BOTH: authpb::permission::Type = authpb::permission::Type::Readwrite;

/// A caller and its rights: what it may read and write begins with this.
struct Who {
    name: &'static str,
    token: Option<String>,
    reads: Option<&'static str>,
    writes: Option<&'static str>,
}

/// What a call ends with, as far as rights are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It came through, to success or to an error of its own.
    Through,
    NoUser,
    BadToken,
    Denied,
}

impl End {
    fn of(text: &str) -> Self {
        match text {
            "etcdserver: user name is empty" => Self::NoUser,
            "etcdserver: invalid auth token" => Self::BadToken,
            "etcdserver: permission denied" => Self::Denied,
            "etcdserver: revision of auth store is old" => panic!("nothing has changed"),
            _ => Self::Through,
        }
    }
}

/// What a request takes.
#[derive(Clone, Debug)]
enum Takes {
    /// Nothing, and a bad token does not matter either.
    Nothing,
    /// Nothing, but a token that comes along must be good.
    NoRights,
    /// To be somebody.
    AUser,
    Root,
    SelfOrRoot(&'static str),
    /// To be somebody, and these rights: kind, key, range end.
    Keys(Vec<(authpb::permission::Type, &'static str, &'static str)>),
}

fn holds(right: Option<&str>, key: &str, range_end: &str) -> bool {
    // All prefixes here end with a slash, and `0` comes behind that.
    let inside =
        |prefix: &str| range_end == format!("{}0", &prefix[..prefix.len() - 1]) || range_end.starts_with(prefix);
    right.is_some_and(|prefix| key.starts_with(prefix) && (range_end.is_empty() || inside(prefix)))
}

fn expected(who: &Who, takes: &Takes) -> End {
    match (who.name, takes) {
        (_, Takes::Nothing) => End::Through,
        ("bad" | "expired", _) => End::BadToken,
        (_, Takes::NoRights) | ("root", _) => End::Through,
        ("nobody", _) => End::NoUser,
        (_, Takes::AUser) => End::Through,
        (name, Takes::SelfOrRoot(own)) if name == *own => End::Through,
        (_, Takes::Root | Takes::SelfOrRoot(_)) => End::Denied,
        (_, Takes::Keys(rights)) => {
            let all = rights.iter().all(|(kind, key, end)| {
                (*kind == WRITE || holds(who.reads, key, end)) && (*kind == READ || holds(who.writes, key, end))
            });
            if all { End::Through } else { End::Denied }
        }
    }
}

// --- the matrix: what ---

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes("v"), ..Default::default() }
}

fn range(key: &'static str, range_end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), range_end: bytes(range_end), ..Default::default() }
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), prev_kv }
}

/// Single operations, and what they take. Lease 11 hangs on `k/leased`, 12 on `x/leased`, and 13 on nothing.
fn operations() -> Vec<(&'static str, Op, Takes)> {
    let keys = |rights: &[(authpb::permission::Type, &'static str, &'static str)]| Takes::Keys(rights.to_vec());
    vec![
        ("range of a key", Op::RequestRange(range("k/1", "")), keys(&[(READ, "k/1", "")])),
        ("range of a prefix", Op::RequestRange(range("k/", "k0")), keys(&[(READ, "k/", "k0")])),
        ("range of more than the prefix", Op::RequestRange(range("k/", "k1")), keys(&[(READ, "k/", "k1")])),
        ("range from a key on", Op::RequestRange(range("k/1", "\0")), keys(&[(READ, "k/1", "\0")])),
        ("range of everything", Op::RequestRange(range("\0", "\0")), keys(&[(READ, "\0", "\0")])),
        (
            "count",
            Op::RequestRange(pb::RangeRequest { count_only: true, ..range("x/", "x0") }),
            keys(&[(READ, "x/", "x0")]),
        ),
        ("put", Op::RequestPut(put("k/1")), keys(&[(WRITE, "k/1", "")])),
        ("put elsewhere", Op::RequestPut(put("x/1")), keys(&[(WRITE, "x/1", "")])),
        (
            "put with prev_kv",
            Op::RequestPut(pb::PutRequest { prev_kv: true, ..put("k/1") }),
            keys(&[(BOTH, "k/1", "")]),
        ),
        (
            "put with ignore_value",
            Op::RequestPut(pb::PutRequest { ignore_value: true, value: Bytes::new(), ..put("k/leased") }),
            keys(&[(WRITE, "k/leased", "")]),
        ),
        (
            "put with ignore_lease",
            Op::RequestPut(pb::PutRequest { ignore_lease: true, ..put("k/leased") }),
            keys(&[(WRITE, "k/leased", "")]),
        ),
        (
            "put with a lease of one's own keys",
            Op::RequestPut(pb::PutRequest { lease: 11, ..put("k/2") }),
            keys(&[(WRITE, "k/2", ""), (WRITE, "k/leased", "")]),
        ),
        (
            "put with a lease of others' keys",
            Op::RequestPut(pb::PutRequest { lease: 12, ..put("k/3") }),
            keys(&[(WRITE, "k/3", ""), (WRITE, "x/leased", "")]),
        ),
        (
            "put with a bare lease",
            Op::RequestPut(pb::PutRequest { lease: 13, ..put("k/4") }),
            keys(&[(WRITE, "k/4", "")]),
        ),
        ("delete", Op::RequestDeleteRange(delete("k/5", "", false)), keys(&[(WRITE, "k/5", "")])),
        ("delete with prev_kv", Op::RequestDeleteRange(delete("k/5", "", true)), keys(&[(BOTH, "k/5", "")])),
        ("delete of a range", Op::RequestDeleteRange(delete("k/5", "k/6", false)), keys(&[(WRITE, "k/5", "k/6")])),
        ("delete from a key on", Op::RequestDeleteRange(delete("k/5", "\0", false)), keys(&[(WRITE, "k/5", "\0")])),
        ("delete of others' keys", Op::RequestDeleteRange(delete("x/5", "x/6", true)), keys(&[(BOTH, "x/5", "x/6")])),
    ]
}

/// The operation at this depth of transactions in each other, always in this branch.
fn nested(op: Op, depth: usize, success: bool) -> pb::TxnRequest {
    let op = match depth {
        1 => op,
        _ => Op::RequestTxn(nested(op, depth - 1, success)),
    };
    let ops = vec![pb::RequestOp { request: Some(op) }];
    match success {
        true => pb::TxnRequest { success: ops, ..Default::default() },
        false => pb::TxnRequest { failure: ops, ..Default::default() },
    }
}

/// A transaction that only looks: at this depth it compares a key with a value.
fn comparing(depth: usize) -> pb::TxnRequest {
    if depth > 1 {
        return nested(Op::RequestTxn(comparing(1)), depth - 1, true);
    }
    let compare = pb::Compare { key: bytes("k/1"), target: 3, ..Default::default() };
    pb::TxnRequest { compare: vec![compare], ..Default::default() }
}

/// One method's row, with a request whose every outcome leaves the world as it is. No wildcard: a new method has to be given one.
/// `None`: it has rows of its own.
fn row(method: Method, cell: usize) -> Option<(Vec<u8>, Takes)> {
    use Takes::{AUser, Keys, NoRights, Nothing, Root, SelfOrRoot};
    let text = |text: &str| text.to_owned();
    let key = || LeaderKey { name: bytes("k/e"), key: bytes("k/e/1"), rev: 1, lease: 0 };
    let at = |kind, name: &'static str| Keys(vec![(kind, name, "")]);
    Some(match method {
        Method::Range | Method::Put | Method::Txn | Method::DeleteRange | Method::RangeStream | Method::Watch => {
            return None;
        }
        Method::Compact => (frame(&pb::CompactionRequest { revision: 1 << 40, physical: false }), Root),
        Method::LeaseGrant => (frame(&pb::LeaseGrantRequest { ttl: 10, id: 13 }), AUser),
        Method::LeaseRevoke => (frame(&pb::LeaseRevokeRequest { id: 11 }), at(WRITE, "k/leased")),
        Method::LeaseKeepAlive => (frame(&pb::LeaseKeepAliveRequest { id: 12 }), at(WRITE, "x/leased")),
        Method::LeaseTimeToLive => (frame(&pb::LeaseTimeToLiveRequest { id: 12, keys: true }), at(READ, "x/leased")),
        Method::LeaseLeases => (frame(&pb::LeaseLeasesRequest {}), Keys(vec![(READ, "k/", "k0"), (READ, "x/", "x0")])),
        Method::MemberAdd => (frame(&pb::MemberAddRequest::default()), Root),
        Method::MemberRemove => (frame(&pb::MemberRemoveRequest { id: 1 }), Root),
        Method::MemberUpdate => (frame(&pb::MemberUpdateRequest::default()), Root),
        Method::MemberPromote => (frame(&pb::MemberPromoteRequest { id: 1 }), Root),
        Method::MemberList => (frame(&pb::MemberListRequest { linearizable: cell.is_multiple_of(2) }), AUser),
        Method::Alarm => (frame(&pb::AlarmRequest { action: 1, member_id: 1, alarm: 0 }), Root),
        Method::Status => (frame(&pb::StatusRequest {}), AUser),
        Method::Defragment => (frame(&pb::DefragmentRequest {}), Root),
        Method::Hash => (frame(&pb::HashRequest {}), Root),
        Method::HashKv => (frame(&pb::HashKvRequest::default()), Root),
        Method::Snapshot => (frame(&pb::SnapshotRequest {}), Root),
        Method::MoveLeader => (frame(&pb::MoveLeaderRequest { target_id: 99 }), Root),
        Method::Downgrade => (frame(&pb::DowngradeRequest::default()), Root),
        Method::AuthEnable => (frame(&pb::AuthEnableRequest {}), Root),
        // It ends everything, so root's turn is the last of all.
        Method::AuthDisable => (frame(&pb::AuthDisableRequest {}), Root),
        Method::AuthStatus => (frame(&pb::AuthStatusRequest {}), NoRights),
        Method::Authenticate => {
            (frame(&pb::AuthenticateRequest { name: text("right"), password: text("right") }), Nothing)
        }
        Method::UserAdd => (frame(&pb::AuthUserAddRequest { name: text("right"), ..Default::default() }), Root),
        Method::UserGet => (frame(&pb::AuthUserGetRequest { name: text("right") }), SelfOrRoot("right")),
        Method::UserList => (frame(&pb::AuthUserListRequest {}), Root),
        Method::UserDelete => (frame(&pb::AuthUserDeleteRequest { name: text("none") }), Root),
        Method::UserChangePassword => {
            (frame(&pb::AuthUserChangePasswordRequest { name: text("none"), ..Default::default() }), Root)
        }
        Method::UserGrantRole => {
            (frame(&pb::AuthUserGrantRoleRequest { user: text("none"), role: text("root") }), Root)
        }
        Method::UserRevokeRole => {
            (frame(&pb::AuthUserRevokeRoleRequest { name: text("none"), role: text("root") }), Root)
        }
        Method::RoleAdd => (frame(&pb::AuthRoleAddRequest { name: text("right") }), Root),
        Method::RoleGet => (frame(&pb::AuthRoleGetRequest { role: text("right") }), SelfOrRoot("right")),
        Method::RoleList => (frame(&pb::AuthRoleListRequest {}), Root),
        Method::RoleDelete => (frame(&pb::AuthRoleDeleteRequest { role: text("none") }), Root),
        Method::RoleGrantPermission => (frame(&pb::AuthRoleGrantPermissionRequest::default()), Root),
        Method::RoleRevokePermission => (frame(&pb::AuthRoleRevokePermissionRequest::default()), Root),
        // A line of its own for each: nobody waits for somebody else.
        Method::Lock => {
            (frame(&LockRequest { name: format!("k/lock{cell}").into(), lease: 0 }), Keys(vec![(BOTH, "k/", "k0")]))
        }
        Method::Unlock => (frame(&UnlockRequest { key: bytes("k/none") }), at(WRITE, "k/none")),
        Method::Campaign => {
            let name = format!("k/vote{cell}").into();
            (frame(&CampaignRequest { name, lease: 0, value: bytes("me") }), Keys(vec![(BOTH, "k/", "k0")]))
        }
        Method::Proclaim => (frame(&ProclaimRequest { leader: Some(key()), value: bytes("me") }), at(BOTH, "k/e/1")),
        Method::Leader => (frame(&LeaderRequest { name: bytes("k/held") }), Keys(vec![(READ, "k/", "k0")])),
        Method::Observe => (frame(&LeaderRequest { name: bytes("k/held") }), Keys(vec![(READ, "k/", "k0")])),
        Method::Resign => (frame(&ResignRequest { leader: Some(key()) }), at(BOTH, "k/e/1")),
        Method::HealthCheck | Method::HealthWatch => (frame(&HealthCheckRequest::default()), Nothing),
        Method::HealthList => (frame(&HealthListRequest {}), Nothing),
    })
}

/// What a watch's first answer says.
fn end_of_watch(answer: &Answer) -> End {
    let response: pb::WatchResponse = answer.decode();
    assert_eq!(response.canceled, !response.cancel_reason.is_empty(), "{response:?}");
    End::of(response.cancel_reason.split_once(" desc = ").map_or("", |(_, text)| text))
}

struct Matrix {
    rpc: Rpc,
    callers: Vec<Who>,
    cells: usize,
    by_end: BTreeMap<String, usize>,
    unexpected: Vec<String>,
}

impl Matrix {
    async fn world(server: &Server) -> Self {
        let rpc = Rpc::connect(server).await;
        rpc.lease(None, 11, "k/leased").await;
        rpc.lease(None, 12, "x/leased").await;
        rpc.lease(None, 13, "k/4").await;
        rpc.put(None, "k/4", 0).await;
        rpc.add_role("right", &[(BOTH, "k/", "k0")]).await;
        rpc.add_role("reader", &[(READ, "k/", "k0")]).await;
        rpc.add_role("writer", &[(WRITE, "k/", "k0")]).await;
        rpc.add_role("wrong", &[(BOTH, "x/", "x0")]).await;
        rpc.add_user("root", Some("root")).await;
        rpc.add_user("idle", None).await;
        for role in ["right", "reader", "writer", "wrong"] {
            rpc.add_user(role, Some(role)).await;
        }
        rpc.enable().await;
        let expired = rpc.token("right").await;
        // As if it had not been used for a day.
        let tokens = server.member.state().auth().tokens();
        tokens.sweep(1, 1);
        tokens.sweep(86_400_000, 1);
        let who = |name, token, reads, writes| Who { name, token, reads, writes };
        let mut callers = vec![
            who("nobody", None, None, None),
            who("bad", Some("xxxxxxxxxxxxxxxx.1".to_owned()), None, None),
            who("expired", Some(expired), None, None),
        ];
        for (name, reads, writes) in [
            ("idle", None, None),
            ("wrong", Some("x/"), Some("x/")),
            ("reader", Some("k/"), None),
            ("writer", None, Some("k/")),
            ("right", Some("k/"), Some("k/")),
            ("root", Some(""), Some("")),
        ] {
            callers.push(who(name, Some(rpc.token(name).await), reads, writes));
        }
        Self { rpc, callers, cells: 0, by_end: BTreeMap::new(), unexpected: Vec::new() }
    }

    async fn cell(&mut self, caller: usize, what: &str, method: Method, message: &impl Message, takes: &Takes) {
        self.cell_framed(caller, what, method, frame(message), takes).await;
    }

    async fn cell_framed(&mut self, caller: usize, what: &str, method: Method, framed: Vec<u8>, takes: &Takes) {
        let who = &self.callers[caller];
        let answer = self.rpc.call_framed(method, who.token.as_deref(), framed).await;
        let end = match method {
            Method::Watch => end_of_watch(&answer),
            _ => End::of(&answer.text),
        };
        self.cells += 1;
        *self.by_end.entry(format!("{end:?}")).or_default() += 1;
        let expected = expected(who, takes);
        if end != expected {
            self.unexpected.push(format!("{} by {}: {end:?} instead of {expected:?} ({answer:?})", what, who.name));
        }
    }
}

#[tokio::test]
async fn everything_that_can_be_asked_by_everybody_who_can_ask_it() {
    let server = Server::start();
    let mut matrix = Matrix::world(&server).await;
    for caller in 0..matrix.callers.len() {
        for (name, op, takes) in operations() {
            match &op {
                Op::RequestRange(range) => {
                    matrix.cell(caller, name, Method::Range, range, &takes).await;
                    let serializable = pb::RangeRequest { serializable: true, ..range.clone() };
                    matrix.cell(caller, &format!("serializable {name}"), Method::Range, &serializable, &takes).await;
                    matrix.cell(caller, &format!("streamed {name}"), Method::RangeStream, range, &takes).await;
                    let create = pb::WatchCreateRequest {
                        key: range.key.clone(),
                        range_end: range.range_end.clone(),
                        ..Default::default()
                    };
                    let watch = pb::WatchRequest {
                        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
                    };
                    matrix.cell(caller, &format!("watch instead of {name}"), Method::Watch, &watch, &takes).await;
                }
                Op::RequestPut(put) => matrix.cell(caller, name, Method::Put, put, &takes).await,
                Op::RequestDeleteRange(delete) => matrix.cell(caller, name, Method::DeleteRange, delete, &takes).await,
                Op::RequestTxn(_) => unreachable!("those are made below"),
            }
            for depth in 1..=5 {
                for success in [true, false] {
                    let txn = nested(op.clone(), depth, success);
                    let what = format!("{name} in {depth} transactions, success {success}");
                    matrix.cell(caller, &what, Method::Txn, &txn, &takes).await;
                }
            }
        }
        for depth in 1..=5 {
            let takes = Takes::Keys(vec![(READ, "k/1", "")]);
            let what = format!("compare in {depth} transactions");
            matrix.cell(caller, &what, Method::Txn, &comparing(depth), &takes).await;
        }
        let root = matrix.callers.last().and_then(|who| who.token.clone());
        for &method in Method::ALL {
            let Some((request, takes)) = row(method, matrix.cells) else { continue };
            if method == Method::AuthDisable && matrix.callers[caller].name == "root" {
                continue;
            }
            // Whoever may has ended it.
            matrix.rpc.lease(root.as_deref(), 11, "k/leased").await;
            matrix.rpc.lease(root.as_deref(), 12, "x/leased").await;
            matrix.rpc.hold(root.as_deref()).await;
            matrix.cell_framed(caller, method.path(), method, request, &takes).await;
        }
        let get = pb::AlarmRequest::default();
        matrix.cell(caller, "list of alarms", Method::Alarm, &get, &Takes::AUser).await;
        let bare = pb::LeaseTimeToLiveRequest { id: 12, keys: false };
        matrix.cell(caller, "time to live without keys", Method::LeaseTimeToLive, &bare, &Takes::AUser).await;
        let own = pb::LeaseTimeToLiveRequest { id: 11, keys: true };
        let takes = Takes::Keys(vec![(READ, "k/leased", "")]);
        matrix.cell(caller, "keys of one's own lease", Method::LeaseTimeToLive, &own, &takes).await;
        let own = pb::LeaseKeepAliveRequest { id: 11 };
        let takes = Takes::Keys(vec![(WRITE, "k/leased", "")]);
        matrix.cell(caller, "keeping one's own lease alive", Method::LeaseKeepAlive, &own, &takes).await;
    }
    let root = matrix.callers.len() - 1;
    matrix.cell(root, "AuthDisable", Method::AuthDisable, &pb::AuthDisableRequest {}, &Takes::Root).await;
    println!("{} cells, {} unexpected; {:?}", matrix.cells, matrix.unexpected.len(), matrix.by_end);
    assert!(matrix.unexpected.is_empty(), "{:#?}", matrix.unexpected);
    assert!(matrix.cells > 2_000, "the matrix has shrunk to {}", matrix.cells);
}

// --- published holes ---

/// alice may read `a/` and write `b/`; root may everything. Their tokens.
async fn alice_and_root(server: &Server) -> (Rpc, String, String) {
    let rpc = Rpc::connect(server).await;
    rpc.add_role("half", &[(READ, "a/", "a0"), (WRITE, "b/", "b0")]).await;
    rpc.add_user("alice", Some("half")).await;
    rpc.add_user("root", Some("root")).await;
    rpc.put(None, "secret", 0).await;
    rpc.put(None, "b/1", 0).await;
    rpc.lease(None, 7, "secret").await;
    rpc.enable().await;
    let (alice, root) = (rpc.token("alice").await, rpc.token("root").await);
    (rpc, alice, root)
}

fn assert_denied(answer: &Answer) {
    assert_eq!((answer.status, answer.text.as_str()), (7, "etcdserver: permission denied"), "{answer:?}");
}

/// Anybody could list members, set and clear alarms, compact, and interfere with leases.
#[tokio::test]
async fn cve_2026_33413_nothing_is_done_for_who_has_shown_nothing() {
    let server = Server::start();
    let (rpc, alice, _) = alice_and_root(&server).await;
    let nobody = |answer: Answer| {
        assert_eq!((answer.status, answer.text.as_str()), (3, "etcdserver: user name is empty"), "{answer:?}");
    };
    nobody(rpc.call(Method::MemberList, None, &pb::MemberListRequest::default()).await);
    nobody(rpc.call(Method::Alarm, None, &pb::AlarmRequest { action: 1, member_id: 1, alarm: 1 }).await);
    nobody(rpc.call(Method::Compact, None, &pb::CompactionRequest { revision: 2, physical: false }).await);
    nobody(rpc.call(Method::LeaseGrant, None, &pb::LeaseGrantRequest { ttl: 10, id: 0 }).await);
    nobody(rpc.call(Method::LeaseRevoke, None, &pb::LeaseRevokeRequest { id: 7 }).await);
    nobody(rpc.call(Method::LeaseKeepAlive, None, &pb::LeaseKeepAliveRequest { id: 7 }).await);
    nobody(rpc.call(Method::LeaseLeases, None, &pb::LeaseLeasesRequest {}).await);
    nobody(rpc.call(Method::LeaseTimeToLive, None, &pb::LeaseTimeToLiveRequest { id: 7, keys: false }).await);
    assert_denied(
        &rpc.call(Method::Alarm, Some(&alice), &pb::AlarmRequest { action: 1, member_id: 1, alarm: 1 }).await,
    );
    assert_denied(
        &rpc.call(Method::Compact, Some(&alice), &pb::CompactionRequest { revision: 2, physical: false }).await,
    );
    assert_denied(&rpc.call(Method::LeaseRevoke, Some(&alice), &pb::LeaseRevokeRequest { id: 7 }).await);
}

/// What stood in a transaction inside a transaction was not looked at.
#[tokio::test]
async fn cve_2026_33343_a_transaction_in_a_transaction_hides_nothing() {
    let server = Server::start();
    let (rpc, alice, root) = alice_and_root(&server).await;
    for depth in 2..=5 {
        for op in [
            Op::RequestRange(range("secret", "")),
            Op::RequestPut(put("secret")),
            Op::RequestDeleteRange(delete("secret", "", false)),
        ] {
            assert_denied(&rpc.call(Method::Txn, Some(&alice), &nested(op, depth, true)).await);
        }
    }
    let found: pb::RangeResponse = rpc.must(Method::Range, Some(&root), &range("secret", "")).await;
    assert_eq!(found.kvs[0].version, 2, "untouched");
}

/// A put in a transaction gave away the previous pair, and attached to other people's leases.
#[tokio::test]
async fn cve_2026_44283_a_put_in_a_transaction_takes_what_a_put_takes() {
    let server = Server::start();
    let (rpc, alice, _) = alice_and_root(&server).await;
    let looks = pb::PutRequest { prev_kv: true, ..put("b/1") };
    let attaches = pb::PutRequest { lease: 7, ..put("b/1") };
    for depth in 1..=3 {
        for put in [&looks, &attaches] {
            let txn = nested(Op::RequestPut(put.clone()), depth, true);
            assert_denied(&rpc.call(Method::Txn, Some(&alice), &txn).await);
        }
        let plain = nested(Op::RequestPut(put("b/1")), depth, true);
        assert!(rpc.must::<pb::TxnResponse>(Method::Txn, Some(&alice), &plain).await.succeeded);
    }
}

/// Keys of a lease were told to whoever asked for its time.
#[tokio::test]
async fn cve_2023_32082_the_keys_of_a_lease_are_for_who_may_read_them() {
    let server = Server::start();
    let (rpc, alice, root) = alice_and_root(&server).await;
    let with_keys = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
    assert_denied(&rpc.call(Method::LeaseTimeToLive, Some(&alice), &with_keys).await);
    let told: pb::LeaseTimeToLiveResponse = rpc.must(Method::LeaseTimeToLive, Some(&root), &with_keys).await;
    assert_eq!(told.keys, ["secret"]);
    let bare = pb::LeaseTimeToLiveRequest { id: 7, keys: false };
    let told: pb::LeaseTimeToLiveResponse = rpc.must(Method::LeaseTimeToLive, Some(&alice), &bare).await;
    assert!(told.keys.is_empty());
}

/// Who might read one key could watch everything behind it (GHSA-xg4h-6gfc-h4m8, 3.7.1).
#[tokio::test]
async fn a_watch_from_a_key_on_takes_more_than_that_key() {
    let server = Server::start();
    let rpc = Rpc::connect(&server).await;
    rpc.add_role("one", &[(READ, "a", "")]).await;
    rpc.add_role("rest", &[(READ, "a", "\0")]).await;
    rpc.add_user("alice", Some("one")).await;
    rpc.add_user("bob", Some("rest")).await;
    rpc.add_user("root", Some("root")).await;
    rpc.enable().await;
    let (alice, bob) = (rpc.token("alice").await, rpc.token("bob").await);
    let watch = |range_end: &'static str| pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: bytes("a"),
            range_end: bytes(range_end),
            ..Default::default()
        })),
    };
    let refused: pb::WatchResponse = rpc.must(Method::Watch, Some(&alice), &watch("\0")).await;
    assert!(refused.created && refused.canceled);
    assert_eq!(refused.watch_id, -1);
    assert_eq!(refused.cancel_reason, "rpc error: code = PermissionDenied desc = etcdserver: permission denied");
    assert!(!rpc.must::<pb::WatchResponse>(Method::Watch, Some(&alice), &watch("")).await.canceled);
    assert!(!rpc.must::<pb::WatchResponse>(Method::Watch, Some(&bob), &watch("\0")).await.canceled);
}

// --- tokens and watches in time ---

#[tokio::test]
async fn a_token_ends_with_the_password_the_user_and_authentication() {
    let server = Server::start();
    let (rpc, alice, root) = alice_and_root(&server).await;
    let status = pb::StatusRequest {};
    let bad = |answer: Answer| {
        assert_eq!((answer.status, answer.text.as_str()), (16, "etcdserver: invalid auth token"), "{answer:?}");
    };
    let change =
        pb::AuthUserChangePasswordRequest { name: "alice".into(), password: "alice2".into(), ..Default::default() };
    rpc.must::<pb::StatusResponse>(Method::Status, Some(&alice), &status).await;
    rpc.must::<pb::AuthUserChangePasswordResponse>(Method::UserChangePassword, Some(&root), &change).await;
    bad(rpc.call(Method::Status, Some(&alice), &status).await);
    let old = pb::AuthenticateRequest { name: "alice".into(), password: "alice".into() };
    let old = rpc.call(Method::Authenticate, None, &old).await;
    assert_eq!(old.text, "etcdserver: authentication failed, invalid user ID or password");
    let new = pb::AuthenticateRequest { name: "alice".into(), password: "alice2".into() };
    let alice = rpc.must::<pb::AuthenticateResponse>(Method::Authenticate, None, &new).await.token;
    rpc.must::<pb::StatusResponse>(Method::Status, Some(&alice), &status).await;
    let delete = pb::AuthUserDeleteRequest { name: "alice".into() };
    rpc.must::<pb::AuthUserDeleteResponse>(Method::UserDelete, Some(&root), &delete).await;
    bad(rpc.call(Method::Status, Some(&alice), &status).await);
    rpc.must::<pb::AuthDisableResponse>(Method::AuthDisable, Some(&root), &pb::AuthDisableRequest {}).await;
    rpc.enable().await;
    bad(rpc.call(Method::Status, Some(&root), &status).await);
}

#[tokio::test]
async fn a_watch_ends_with_the_permission_and_before_what_is_written_then() {
    let server = Server::start();
    let (rpc, alice, root) = alice_and_root(&server).await;
    let mut watch = proto::etcdserverpb::watch_client::WatchClient::new(server.channel().await);
    let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
    let mut request = tonic::Request::new(Requests(asked));
    request.metadata_mut().insert("token", alice.parse().expect("a token"));
    let create = pb::WatchCreateRequest { key: bytes("a/1"), ..Default::default() };
    ask.send(pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) })
        .expect("open");
    let mut answers = watch.watch(request).await.expect("answered").into_inner();
    assert!(answers.message().await.expect("open").expect("more").created);
    rpc.put(Some(&root), "a/1", 0).await;
    let events: Vec<mvccpb::Event> = answers.message().await.expect("open").expect("more").events;
    assert_eq!(events.len(), 1);
    let revoke = pb::AuthRoleRevokePermissionRequest { role: "half".into(), key: bytes("a/"), range_end: bytes("a0") };
    rpc.must::<pb::AuthRoleRevokePermissionResponse>(Method::RoleRevokePermission, Some(&root), &revoke).await;
    rpc.put(Some(&root), "a/1", 0).await;
    let last = answers.message().await.expect("open").expect("more");
    assert!(last.canceled && last.events.is_empty(), "{last:?}");
    assert_eq!(last.cancel_reason, "rpc error: code = PermissionDenied desc = etcdserver: permission denied");
}

/// Requests as a test sends them.
struct Requests(tokio::sync::mpsc::UnboundedReceiver<pb::WatchRequest>);

impl tonic::codegen::tokio_stream::Stream for Requests {
    type Item = pb::WatchRequest;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
