//! The world in which a script runs: one member's state on a disk in memory, a clock, and a watch hub.

mod v2;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use disk::{Disk, MemDisk};
use keelson_state::lease::Renewal;
use keelson_state::watch::{Hub, Output, OutputKind, StreamOutput, WatchCreate};
use keelson_state::{Applied, Config, Error, Reader, Response, State, check};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as OpResponse;
use proto::mvccpb::{KeyValue, event::EventType};
use store::{Options, Store};

const MAX_OPS: usize = 128;
const PROGRESS_MS: u64 = 1_000;

pub struct World {
    disk: Arc<dyn Disk>,
    state: Option<State>,
    reader: Reader,
    hub: Hub,
    wakes: Arc<AtomicUsize>,
    index: u64,
    now_ms: u64,
    watches: v2::Watches,
}

type Answer = Result<Vec<String>, Error>;

/// The words of a command: those with `=` or without further meaning, in order, and options.
struct Args<'a> {
    words: Vec<&'a str>,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Args<'a> {
    /// `names`: the options this command knows; anything else is a word, so that `put k=v` is one.
    fn parse(text: &'a str, names: &[&str]) -> Self {
        let mut args = Args { words: Vec::new(), options: BTreeMap::new() };
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if names.contains(&name) {
                args.options.insert(name, value);
            } else {
                args.words.push(word);
            }
        }
        args
    }

    fn has(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    fn number(&self, name: &str) -> i64 {
        self.options.get(name).map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
    }

    fn key(&self, n: usize) -> Bytes {
        self.words.get(n).map_or_else(Bytes::new, |word| bytes_of(word))
    }

    fn id(&self, n: usize) -> i64 {
        self.words.get(n).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("word {n} is no number"))
    }
}

/// `\0` stands for a zero byte, `''` for nothing.
fn bytes_of(word: &str) -> Bytes {
    if word == "''" { Bytes::new() } else { word.replace("\\0", "\0").into_bytes().into() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "\\0")
}

fn pair(kv: &KeyValue) -> String {
    let mut out = format!("{}={}", text(&kv.key), text(&kv.value));
    let _ = write!(out, " create={} mod={} version={}", kv.create_revision, kv.mod_revision, kv.version);
    if kv.lease != 0 {
        let _ = write!(out, " lease={}", kv.lease);
    }
    out
}

fn revision(header: &Option<pb::ResponseHeader>) -> String {
    match header {
        Some(header) => format!("revision {}", header.revision),
        None => "no header".into(),
    }
}

impl World {
    pub fn new() -> Self {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
        let (state, reader, hub, wakes) = open(&disk);
        Self { disk, state: Some(state), reader, hub, wakes, index: 0, now_ms: 0, watches: v2::Watches::default() }
    }

    pub fn run(&mut self, line: &str) -> Vec<String> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match command {
            "txn" => self.txn(rest),
            "put" | "get" | "del" => self.op(line),
            "stream" => self.stream(rest),
            "compact" => self.compact(rest),
            "maintain" => {
                while self.reader.store().maintain().expect("maintenance") {}
                Ok(vec![])
            }
            "restart" => self.restart(),
            "grant" | "revoke" | "checkpoint" | "keepalive" | "ttl" | "leases" | "expired" | "promote" | "demote"
            | "checkpoints" => self.lease(command, rest),
            "time" => {
                let seconds: f64 = rest.trim_end_matches('s').parse().expect("seconds");
                self.now_ms += (seconds * 1_000.0) as u64;
                self.reader.lessor().observe_time(self.now_ms);
                Ok(vec![])
            }
            "alarm" => self.alarm(rest),
            "v2" => self.v2(rest),
            "watch" | "cancel" | "close" | "block" | "unblock" | "progress" | "poll" | "tick" | "arm" => {
                Ok(self.watch(command, rest))
            }
            other => panic!("unknown command {other}"),
        };
        match answer {
            Ok(lines) => lines,
            Err(error) => vec![format!("error: {error}")],
        }
    }

    fn state(&mut self) -> &mut State {
        self.state.as_mut().expect("the state is only away while it restarts")
    }

    fn apply(&mut self, request: pb::InternalRaftRequest) -> Result<Response, Error> {
        self.index += 1;
        let id = 1_000 + self.index;
        let header = Some(pb::RequestHeader { id, ..Default::default() });
        let data = pb::InternalRaftRequest { header, ..request }.encode_to_vec().into();
        let index = self.index;
        let Applied { request_id, result, .. } = self.state().apply(index, 1, &data).expect("a healthy disk");
        assert_eq!(request_id, id);
        result
    }

    /// A put, get or delete by itself.
    fn op(&mut self, line: &str) -> Answer {
        match parse_op(line) {
            Op::RequestPut(request) => {
                check::put(&request)?;
                match self.apply(pb::InternalRaftRequest { put: Some(request), ..Default::default() })? {
                    Response::Put(response) => Ok(put_lines(&response)),
                    other => panic!("{other:?}"),
                }
            }
            Op::RequestRange(request) => {
                check::range(&request)?;
                Ok(range_lines(&self.range(&request)?))
            }
            Op::RequestDeleteRange(request) => {
                check::delete_range(&request)?;
                match self.apply(pb::InternalRaftRequest { delete_range: Some(request), ..Default::default() })? {
                    Response::DeleteRange(response) => Ok(delete_lines(&response)),
                    other => panic!("{other:?}"),
                }
            }
            Op::RequestTxn(_) => unreachable!("not parsed here"),
        }
    }

    /// Both ways of answering a range must agree.
    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        let header = pb::ResponseHeader { cluster_id: 7, member_id: 8, revision: 0, raft_term: 9 };
        let mut encoded = BytesMut::from("before".as_bytes());
        let outcome = self.reader.range_encoded(request, &header, &mut encoded);
        let expected = self.reader.range(request);
        assert_eq!(outcome.as_ref().err(), expected.as_ref().err());
        let mut response = match expected {
            Ok(response) => response,
            Err(error) => {
                assert_eq!(&encoded[..], b"before");
                return Err(error);
            }
        };
        let revision = response.header.map_or(0, |header| header.revision);
        response.header = Some(pb::ResponseHeader { revision, ..header });
        assert_eq!(&encoded[6..], response.encode_to_vec(), "{request:?}");
        Ok(response)
    }

    fn stream(&self, rest: &str) -> Answer {
        let args = Args::parse(rest, &["chunk", "limit", "rev", "count", "keys", "sort", "minmod"]);
        let chunk_bytes = args.number("chunk") as usize;
        let Op::RequestRange(request) = parse_op(&format!("get {rest}")) else { unreachable!() };
        let key = args.key(0);
        let range_end = args.key(1);
        let request = pb::RangeRequest { key, range_end, ..request };
        check::range_stream(&request)?;
        let mut stream = self.reader.range_stream(request, chunk_bytes)?;
        let mut lines = Vec::new();
        while let Some(chunk) = stream.next_chunk()? {
            let (first, last) = (chunk.kvs.first(), chunk.kvs.last());
            let keys = first.zip(last).map(|(a, b)| format!(" {}..{}", text(&a.key), text(&b.key)));
            let mut line = format!("{} keys{}", chunk.kvs.len(), keys.unwrap_or_default());
            if chunk.header.is_some() {
                let _ = write!(line, "; {}, count {}, more {}", revision(&chunk.header), chunk.count, chunk.more);
            }
            lines.push(line);
        }
        Ok(lines)
    }

    fn txn(&mut self, rest: &str) -> Answer {
        let request = Parser(rest).txn();
        check::txn(&request, MAX_OPS)?;
        if Reader::is_read_only(&request) {
            let beside = self.reader.txn_read_only(&request);
            let logged = self.apply(pb::InternalRaftRequest { txn: Some(request), ..Default::default() });
            match (&beside, &logged) {
                (Ok(beside), Ok(Response::Txn(logged))) => assert_eq!(beside, logged),
                (Err(beside), Err(logged)) => assert_eq!(beside, logged),
                // An alarm stops the log, not those who read beside it.
                (Ok(_), Err(Error::Corrupt)) => {}
                _ => panic!("{beside:?} {logged:?}"),
            }
            return beside.map(|response| txn_lines(&response));
        }
        match self.apply(pb::InternalRaftRequest { txn: Some(request), ..Default::default() })? {
            Response::Txn(response) => Ok(txn_lines(&response)),
            other => panic!("{other:?}"),
        }
    }

    fn compact(&mut self, rest: &str) -> Answer {
        let request = pb::CompactionRequest { revision: rest.parse().expect("a revision"), physical: false };
        match self.apply(pb::InternalRaftRequest { compaction: Some(request), ..Default::default() })? {
            Response::Compact { response, .. } => Ok(vec![format!("ok, {}", revision(&response.header))]),
            other => panic!("{other:?}"),
        }
    }

    fn restart(&mut self) -> Answer {
        self.state.take().expect("a state").close().expect("a clean stop");
        let (state, reader, hub, wakes) = open(&self.disk);
        assert_eq!(state.applied_index(), self.index);
        (self.state, self.reader, self.hub, self.wakes) = (Some(state), reader, hub, wakes);
        Ok(vec![format!("revision {}", self.reader.revision())])
    }

    fn lease(&mut self, command: &str, rest: &str) -> Answer {
        let args = Args::parse(rest, &["keys"]);
        let lessor = self.reader.lessor();
        let list = |ids: Vec<i64>| Ok(vec![format!("{ids:?}")]);
        match command {
            "grant" => {
                let request = pb::LeaseGrantRequest { id: args.id(0), ttl: args.id(1) };
                match self.apply(pb::InternalRaftRequest { lease_grant: Some(request), ..Default::default() })? {
                    Response::LeaseGrant(granted) => {
                        self.reader.lessor().observe_time(self.now_ms);
                        Ok(vec![format!("lease {} ttl={}", granted.id, granted.ttl)])
                    }
                    other => panic!("{other:?}"),
                }
            }
            "revoke" => {
                let request = pb::LeaseRevokeRequest { id: args.id(0) };
                match self.apply(pb::InternalRaftRequest { lease_revoke: Some(request), ..Default::default() })? {
                    Response::LeaseRevoke(revoked) => Ok(vec![format!("ok, {}", revision(&revoked.header))]),
                    other => panic!("{other:?}"),
                }
            }
            "checkpoint" => {
                let checkpoints = vec![pb::LeaseCheckpoint { id: args.id(0), remaining_ttl: args.id(1) }];
                let request = pb::LeaseCheckpointRequest { checkpoints };
                self.apply(pb::InternalRaftRequest { lease_checkpoint: Some(request), ..Default::default() })?;
                Ok(vec!["ok".into()])
            }
            "keepalive" => Ok(vec![match lessor.renew(args.id(0), self.now_ms) {
                Renewal::Renewed { ttl, clear_checkpoint: false } => format!("ttl={ttl}"),
                Renewal::Renewed { ttl, clear_checkpoint: true } => format!("ttl={ttl}, clear the checkpoint"),
                other => format!("{other:?}"),
            }]),
            "ttl" => Ok(vec![match lessor.time_to_live(args.id(0), args.has("keys"), self.now_ms) {
                Some(answer) => {
                    let keys: Vec<_> = answer.keys.iter().map(|key| text(key)).collect();
                    let keys = if args.has("keys") { format!(" keys={}", keys.join(",")) } else { String::new() };
                    format!("ttl={} granted={}{keys}", answer.ttl, answer.granted_ttl)
                }
                None => "no such lease".into(),
            }]),
            "leases" => list(lessor.leases()),
            "expired" => list(lessor.expired(self.now_ms, 100)),
            "checkpoints" => {
                let records = lessor.checkpoints(self.now_ms);
                Ok(records.iter().map(|record| format!("{} remaining={}", record.id, record.remaining_ttl)).collect())
            }
            "promote" => {
                lessor.promote(self.now_ms, 1_000);
                Ok(vec![])
            }
            _ => {
                lessor.demote();
                Ok(vec![])
            }
        }
    }

    fn alarm(&mut self, rest: &str) -> Answer {
        let args = Args::parse(rest, &[]);
        let (action, kind) = (args.words[0], args.words.get(1).copied().unwrap_or("none"));
        let action = match action {
            "list" => pb::alarm_request::AlarmAction::Get,
            "set" => pb::alarm_request::AlarmAction::Activate,
            _ => pb::alarm_request::AlarmAction::Deactivate,
        };
        let alarm = match kind {
            "nospace" => pb::AlarmType::Nospace,
            "corrupt" => pb::AlarmType::Corrupt,
            _ => pb::AlarmType::None,
        };
        let member_id = if args.words.len() > 2 { args.id(2) as u64 } else { 0 };
        let request = pb::AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 };
        match self.apply(pb::InternalRaftRequest { alarm: Some(request), ..Default::default() })? {
            Response::Alarm(response) => {
                let alarms = response.alarms.iter();
                Ok(alarms.map(|alarm| format!("member {} {}", alarm.member_id, alarm.alarm().as_str_name())).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    fn watch(&mut self, command: &str, rest: &str) -> Vec<String> {
        let names = ["id", "start", "prev", "noput", "nodelete", "notify", "budget"];
        let args = Args::parse(rest, &names);
        let stream = args.words.first().and_then(|word| word.parse().ok()).unwrap_or(0);
        match command {
            "watch" => {
                let create = WatchCreate {
                    key: args.key(1),
                    range_end: args.key(2),
                    start_revision: args.number("start"),
                    watch_id: args.number("id"),
                    progress_notify: args.has("notify"),
                    no_put: args.has("noput"),
                    no_delete: args.has("nodelete"),
                    prev_kv: args.has("prev"),
                };
                output_lines(stream, &self.hub.create(stream, create))
            }
            "cancel" => {
                let output = self.hub.cancel(stream, args.id(1));
                output_lines(stream, output.as_slice())
            }
            "close" => {
                self.hub.close(stream);
                vec![]
            }
            "block" | "unblock" => {
                self.hub.set_ready(stream, command == "unblock");
                vec![]
            }
            "progress" => {
                self.hub.request_progress(stream);
                vec![]
            }
            "poll" => {
                let budget = if args.has("budget") { args.number("budget") as usize } else { 1_000 };
                let (outputs, more) = self.hub.poll(budget);
                let mut lines = stream_lines(&outputs);
                if more {
                    lines.push("there is more".into());
                }
                lines
            }
            "arm" => {
                let wakes = self.wakes.load(Ordering::SeqCst);
                let (total, slow) = self.hub.watchers();
                vec![format!(
                    "armed: {}, woken {wakes} times, {total} watchers, {slow} of them not synced",
                    self.hub.arm()
                )]
            }
            _ => stream_lines(&self.hub.tick(self.now_ms)),
        }
    }
}

fn open(disk: &Arc<dyn Disk>) -> (State, Reader, Hub, Arc<AtomicUsize>) {
    let (store, writer, mark) = Store::open(disk.clone(), Path::new("/store"), Options::default()).expect("a store");
    let config = Config { quota_bytes: 0, heartbeat_ms: 100, election_timeout_ms: 1_000 };
    let (state, reader) = State::open(store, writer, &mark, config).expect("a state");
    let wakes = Arc::new(AtomicUsize::new(0));
    let counter = wakes.clone();
    let wake = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let hub = Hub::new(&reader, wake, PROGRESS_MS);
    (state, reader, hub, wakes)
}

fn put_lines(response: &pb::PutResponse) -> Vec<String> {
    let mut lines = vec![revision(&response.header)];
    lines.extend(response.prev_kv.as_ref().map(|kv| format!("previous {}", pair(kv))));
    lines
}

fn delete_lines(response: &pb::DeleteRangeResponse) -> Vec<String> {
    let mut lines = vec![format!("deleted {}, {}", response.deleted, revision(&response.header))];
    lines.extend(response.prev_kvs.iter().map(|kv| format!("previous {}", pair(kv))));
    lines
}

fn range_lines(response: &pb::RangeResponse) -> Vec<String> {
    let mut lines: Vec<_> = response.kvs.iter().map(pair).collect();
    let more = if response.more { ", more" } else { "" };
    lines.push(format!("count {}{more}, {}", response.count, revision(&response.header)));
    lines
}

fn txn_lines(response: &pb::TxnResponse) -> Vec<String> {
    let branch = if response.succeeded { "then" } else { "else" };
    let mut lines = vec![format!("{branch}, {}", revision(&response.header))];
    for op in &response.responses {
        let inner = match op.response.as_ref().expect("a response") {
            OpResponse::ResponseRange(response) => range_lines(response),
            OpResponse::ResponsePut(response) => put_lines(response),
            OpResponse::ResponseDeleteRange(response) => delete_lines(response),
            OpResponse::ResponseTxn(response) => txn_lines(response),
        };
        lines.extend(inner.into_iter().map(|line| format!("  {line}")));
    }
    lines
}

fn stream_lines(outputs: &[StreamOutput]) -> Vec<String> {
    let mut outputs: Vec<_> = outputs.iter().collect();
    outputs.sort_by_key(|output| output.stream);
    outputs.iter().flat_map(|output| output_lines(output.stream, &output.items)).collect()
}

fn output_lines(stream: u64, outputs: &[Output]) -> Vec<String> {
    let mut lines = Vec::new();
    for output in outputs {
        let who = format!("{stream}/{} at {}:", output.watch_id, output.revision);
        match &output.kind {
            OutputKind::Created => lines.push(format!("{who} created")),
            OutputKind::Rejected { reason } => lines.push(format!("{who} created, canceled: {reason}")),
            OutputKind::Progress => lines.push(format!("{who} progress")),
            OutputKind::Canceled { compact_revision: 0, reason } if reason.is_empty() => {
                lines.push(format!("{who} canceled"));
            }
            OutputKind::Canceled { compact_revision, reason } => {
                lines.push(format!("{who} canceled, compacted at {compact_revision} {reason}").trim_end().to_owned());
            }
            OutputKind::Events(events) => {
                for framed in events.iter() {
                    let response = pb::WatchResponse::decode(framed.clone()).expect("a framed event");
                    assert_eq!(response.events.len(), 1);
                    let event = &response.events[0];
                    let kv = event.kv.as_ref().expect("a pair");
                    let what = match event.r#type() {
                        EventType::Put => format!("PUT {}", pair(kv)),
                        EventType::Delete => {
                            let only =
                                KeyValue { key: kv.key.clone(), mod_revision: kv.mod_revision, ..Default::default() };
                            assert_eq!(*kv, only, "a DELETE tells only key and mod_revision");
                            format!("DELETE {} mod={}", text(&kv.key), kv.mod_revision)
                        }
                    };
                    let before = event.prev_kv.as_ref().map(|kv| format!(", was {}", pair(kv)));
                    lines.push(format!("{who} {what}{}", before.unwrap_or_default()));
                }
            }
        }
    }
    lines
}

/// `put k=v [lease=] [prev] [ignore_value] [ignore_lease]`, `get k [end] ...`, `del k [end] [prev]`.
fn parse_op(line: &str) -> Op {
    let (command, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    match command {
        "put" => {
            let args = Args::parse(rest, &["lease", "prev", "ignore_value", "ignore_lease"]);
            let word = args.words.first().copied().unwrap_or("");
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            Op::RequestPut(pb::PutRequest {
                key: bytes_of(key),
                value: bytes_of(value),
                lease: args.number("lease"),
                prev_kv: args.has("prev"),
                ignore_value: args.has("ignore_value"),
                ignore_lease: args.has("ignore_lease"),
            })
        }
        "get" => {
            let names = [
                "rev",
                "limit",
                "sort",
                "count",
                "keys",
                "minmod",
                "maxmod",
                "mincreate",
                "maxcreate",
                "serializable",
                "chunk",
            ];
            let args = Args::parse(rest, &names);
            let (order, target) =
                args.options.get("sort").and_then(|sort| sort.split_once(':')).unwrap_or(("none", "key"));
            let order = ["none", "asc", "desc"].iter().position(|name| *name == order).map_or(9, |n| n as i32);
            let target = ["key", "version", "create", "mod", "value"].iter().position(|name| *name == target);
            Op::RequestRange(pb::RangeRequest {
                key: args.key(0),
                range_end: args.key(1),
                limit: args.number("limit"),
                revision: args.number("rev"),
                sort_order: order,
                sort_target: target.map_or(9, |n| n as i32),
                serializable: args.has("serializable"),
                keys_only: args.has("keys"),
                count_only: args.has("count"),
                min_mod_revision: args.number("minmod"),
                max_mod_revision: args.number("maxmod"),
                min_create_revision: args.number("mincreate"),
                max_create_revision: args.number("maxcreate"),
            })
        }
        "del" => {
            let args = Args::parse(rest, &["prev"]);
            Op::RequestDeleteRange(pb::DeleteRangeRequest {
                key: args.key(0),
                range_end: args.key(1),
                prev_kv: args.has("prev"),
            })
        }
        other => panic!("unknown operation {other:?}"),
    }
}

/// `if value k = v, version a b > 1 then put k=w; txn (...) else get k`; every part may be missing.
struct Parser<'a>(&'a str);

impl<'a> Parser<'a> {
    fn txn(&mut self) -> pb::TxnRequest {
        let mut request = pb::TxnRequest::default();
        loop {
            self.0 = self.0.trim_start();
            if let Some(rest) = self.0.strip_prefix("if ") {
                self.0 = rest;
                let compares = self.until(&[" then", " else", ")"]);
                request.compare = compares.split(", ").map(compare).collect();
            } else if let Some(rest) = self.0.strip_prefix("then") {
                self.0 = rest;
                request.success = self.ops();
            } else if let Some(rest) = self.0.strip_prefix("else") {
                self.0 = rest;
                request.failure = self.ops();
            } else {
                return request;
            }
        }
    }

    fn ops(&mut self) -> Vec<pb::RequestOp> {
        let mut ops = Vec::new();
        loop {
            self.0 = self.0.trim_start().trim_start_matches(';').trim_start();
            if self.0.is_empty() || self.0.starts_with(')') || self.0.starts_with("else") || self.0.starts_with("then")
            {
                return ops;
            }
            let request = if let Some(rest) = self.0.strip_prefix("txn (") {
                self.0 = rest;
                let nested = self.txn();
                self.0 = self.0.strip_prefix(')').expect("a closing parenthesis");
                Some(Op::RequestTxn(nested))
            } else {
                match self.until(&[";", ")", " else", " then"]) {
                    "nothing" => None,
                    op => Some(parse_op(op)),
                }
            };
            ops.push(pb::RequestOp { request });
        }
    }

    fn until(&mut self, ends: &[&str]) -> &'a str {
        let end = ends.iter().filter_map(|end| self.0.find(end)).min().unwrap_or(self.0.len());
        let (before, after) = self.0.split_at(end);
        self.0 = after;
        before.trim()
    }
}

/// `target key [end] op operand`
fn compare(text: &str) -> pb::Compare {
    let words: Vec<_> = text.split_whitespace().collect();
    let [target, key, range_end @ .., op, operand] = words.as_slice() else { panic!("compare {text:?}") };
    let number = || operand.parse().unwrap_or_else(|_| panic!("compare with {operand:?}"));
    let (target, target_union) = match *target {
        "version" => (CompareTarget::Version, TargetUnion::Version(number())),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number())),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number())),
        "value" => (CompareTarget::Value, TargetUnion::Value(bytes_of(operand))),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number())),
        other => panic!("compare target {other:?}"),
    };
    let result = match *op {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        other => panic!("compare operator {other:?}"),
    };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: bytes_of(key),
        range_end: range_end.first().map_or_else(Bytes::new, |end| bytes_of(end)),
        target_union: Some(target_union),
    }
}
