//! The same random requests to `/v2` of two servers: every answer has to be equal, status, headers, body and indexes.
//!
//! Changes are made one at a time, on both servers at once; reads and waits for the past come between them. Now and then
//! an *episode* is played in a directory of its own: watches are opened, changes made below it, and the end is told by
//! changes that each of the watches has to see, so that nothing has to be waited for in vain. In another kind of episode
//! nodes run out by themselves; since nothing else happens meanwhile, the indexes stay comparable.

mod comparable;
mod generate;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use super::{Difference, Failure};
use crate::harness::{Binary, Http, HttpReply, HttpRequest, OpenReply, Options, Server};
use comparable::{Counters, comparable, comparable_line, times_fit};
use generate::Generator;

/// How many changes a difference shows.
const CHANGES_SHOWN: usize = 8;
/// How long nodes may take to run out after their time.
const EXPIRED_WITHIN: Duration = Duration::from_secs(30);
/// Pause between two looks at an index; there is nothing to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What to compare, and for how long.
#[derive(Clone, Debug)]
pub struct V2Settings {
    /// How many requests.
    pub operations: u64,
    /// Where the random requests start from.
    pub seed: u64,
    /// The server that is taken to be right.
    pub reference: Binary,
    /// The server under test.
    pub subject: Binary,
    /// Print progress to stderr.
    pub verbose: bool,
}

/// What a comparison without a difference has covered.
#[derive(Debug, Default)]
pub struct V2Report {
    /// Requests made to each server.
    pub operations: u64,
    /// How many of each method and status.
    pub kinds: BTreeMap<String, u64>,
    /// How many answers named each error.
    pub errors: BTreeMap<u64, u64>,
    /// Watches that were open while the tree changed, and the events they saw.
    pub watches: (u64, u64),
    /// Nodes that ran out.
    pub expired: u64,
    /// The tree's last index.
    pub index: u64,
    /// The time it took.
    pub took: Duration,
}

impl fmt::Display for V2Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} requests in {:.1?}, all answers equal", self.operations, self.took)?;
        let (watches, events) = self.watches;
        writeln!(
            f,
            "last index {}, {watches} watches saw {events} events, {} nodes expired",
            self.index, self.expired
        )?;
        for (kind, times) in &self.kinds {
            writeln!(f, "  {times:>8}  {kind}")?;
        }
        writeln!(f, "errors, equal on both:")?;
        self.errors.iter().try_for_each(|(code, times)| writeln!(f, "  {times:>8}  {code}"))
    }
}

/// Starts both servers on fresh directories, compares, and stops them.
pub async fn run(settings: &V2Settings) -> Result<V2Report, Failure> {
    let flags = vec!["--log-level=warn".into(), "--enable-v2=true".into()];
    let options = Options { flags, ..Options::default() };
    let servers = [Server::start(&settings.reference, options.clone())?, Server::start(&settings.subject, options)?];
    Comparison::begin(settings, &servers).await?.run().await
}

struct Comparison<'a> {
    settings: &'a V2Settings,
    servers: &'a [Server; 2],
    clients: [Http; 2],
    generator: Generator,
    /// The counters of each server at the beginning.
    begun: [Counters; 2],
    report: V2Report,
    changes: VecDeque<String>,
    episodes: u64,
    started: Instant,
}

impl<'a> Comparison<'a> {
    async fn begin(settings: &'a V2Settings, servers: &'a [Server; 2]) -> Result<Self, Failure> {
        let clients = servers.each_ref().map(|server| Http::new(server.client_addr()));
        let mut comparison = Self {
            settings,
            servers,
            clients,
            generator: Generator::new(settings.seed),
            begun: Default::default(),
            report: V2Report::default(),
            changes: VecDeque::new(),
            episodes: 0,
            started: Instant::now(),
        };
        // Both have told the cluster of themselves before they serve, but the version may still be on its way.
        comparison.same_index(Instant::now() + EXPIRED_WITHIN, |reference, subject| reference == subject).await?;
        let counters = HttpRequest::new("GET", "/v2/stats/store");
        let replies = comparison.both(&counters).await?;
        comparison.begun = replies.map(|reply| reply.json().as_object().cloned().unwrap_or_default());
        Ok(comparison)
    }

    async fn run(mut self) -> Result<V2Report, Failure> {
        let mut next_word = 0;
        while self.report.operations < self.settings.operations {
            let change = self.generator.change();
            self.compare(change).await?;
            for _ in 0..self.generator.between(0, 3) {
                let read = self.generator.read();
                self.compare(read).await?;
            }
            if self.generator.once_in(8) {
                self.past().await?;
            }
            if self.generator.once_in(120) {
                self.watching().await?;
            }
            if self.generator.once_in(2_500) {
                self.expiring().await?;
            }
            if self.settings.verbose && self.report.operations >= next_word {
                let (operations, index) = (self.report.operations, self.generator.index);
                eprintln!("{operations} requests, index {index}, {:.0?}", self.started.elapsed());
                next_word = operations + 10_000;
            }
        }
        self.compare(HttpRequest::new("GET", "/v2/keys/?recursive=true&sorted=true")).await?;
        self.compare(HttpRequest::new("GET", "/v2/stats/store")).await?;
        self.report.index = self.generator.index;
        self.report.took = self.started.elapsed();
        Ok(self.report)
    }

    async fn both(&mut self, request: &HttpRequest) -> Result<[HttpReply; 2], Failure> {
        let [reference, subject] = &mut self.clients;
        match tokio::join!(reference.ask(request), subject.ask(request)) {
            (Ok(reference), Ok(subject)) => Ok([reference, subject]),
            (reference, subject) => Err(self.difference(format!("{request:?}: {reference:?}, {subject:?}"))),
        }
    }

    /// One request, whose answers have to be equal.
    async fn compare(&mut self, request: HttpRequest) -> Result<HttpReply, Failure> {
        if request.method != "GET" && request.method != "HEAD" {
            if self.changes.len() == CHANGES_SHOWN {
                self.changes.pop_front();
            }
            self.changes.push_back(format!("{request:?}"));
        }
        let [reference, subject] = self.both(&request).await?;
        let one = comparable(&request, &reference, &self.begun[0]);
        let other = comparable(&request, &subject, &self.begun[1]);
        if one != other || !times_fit(&reference.body, &subject.body) {
            return Err(self.difference(format!("{request:?}\n  reference: {reference:?}\n  subject:   {subject:?}")));
        }
        self.generator.learn(&request, &reference);
        self.report.operations += 1;
        *self.report.kinds.entry(format!("{} {}", request.method, reference.status)).or_default() += 1;
        if let Some(code) = reference.json()["errorCode"].as_u64() {
            *self.report.errors.entry(code).or_default() += 1;
        }
        Ok(reference)
    }

    /// A wait for what the history may have. It is answered at once, or else not at all.
    async fn past(&mut self) -> Result<(), Failure> {
        let request = self.generator.watch_the_past();
        // A change that the watch has to see follows, in case that the history has nothing for it.
        let target = request.path.split('?').next().unwrap_or_default().to_owned();
        let mut watches = self.open(&request).await?;
        if let Some(watches) = &mut watches {
            let is_root = target == "/v2/keys" || target == "/v2/keys/";
            let target = if is_root { format!("{target}/last") } else { target };
            self.compare(HttpRequest::new("PUT", format!("{target}?value=last"))).await?;
            // Below a file, or at a directory, nothing can be set.
            let told = is_root && request.path.contains("recursive");
            if told {
                self.next_event(&request, watches).await?;
            }
        }
        Ok(())
    }

    /// Opens a watch on both servers; none if both refuse it in the same way.
    async fn open(&mut self, request: &HttpRequest) -> Result<Option<[OpenReply; 2]>, Failure> {
        let mut replies = Vec::new();
        for server in self.servers {
            match Http::new(server.client_addr()).begin(request).await {
                Ok(reply) => replies.push(reply),
                Err(error) => return Err(self.difference(format!("{request:?}: {error}"))),
            }
        }
        let Ok([mut reference, mut subject]) = <[OpenReply; 2]>::try_from(replies) else { return Ok(None) };
        self.report.operations += 1;
        let index = |reply: &OpenReply| (reply.status, reply.headers.get("x-etcd-index").cloned());
        if index(&reference) != index(&subject) {
            return Err(self.difference(format!("{request:?}: {reference:?}, {subject:?}")));
        }
        if reference.status == 200 {
            return Ok(Some([reference, subject]));
        }
        let lines = [reference.line().await, subject.line().await];
        match lines {
            [Ok(one), Ok(other)] if one == other => Ok(None),
            lines => Err(self.difference(format!("{request:?}: {lines:?}"))),
        }
    }

    /// The next event of a watch, which has to come, and be the same.
    async fn next_event(
        &mut self,
        request: &HttpRequest,
        watches: &mut [OpenReply; 2],
    ) -> Result<Option<Value>, Failure> {
        let [reference, subject] = watches;
        match tokio::join!(reference.line(), subject.line()) {
            (Ok(Some(one)), Ok(Some(other))) => {
                let (event, subjects) = (comparable_line(&one), comparable_line(&other));
                if event != subjects || !times_fit(&one, &other) {
                    return Err(self.difference(format!("{request:?}\n  reference: {one}\n  subject:   {other}")));
                }
                self.report.watches.1 += 1;
                Ok(Some(event))
            }
            (Ok(None), Ok(None)) => Ok(None),
            (reference, subject) => {
                Err(self.difference(format!("{request:?}\n  reference: {reference:?}\n  subject:   {subject:?}")))
            }
        }
    }

    /// Watches, and changes below one directory while they are open.
    async fn watching(&mut self) -> Result<(), Failure> {
        self.episodes += 1;
        let top = format!("/w{}", self.episodes);
        self.compare(HttpRequest::new("PUT", format!("/v2/keys{top}?dir=true"))).await?;
        self.compare(HttpRequest::new("PUT", format!("/v2/keys{top}/a/a?value=1"))).await?;
        let places = ["", "/a", "/a/a", "/b", "/_h", "/a/_h", "/_h/b"];
        let mut watches = Vec::new();
        for _ in 0..self.generator.between(1, 5) {
            let place = places[self.generator.between(0, places.len() as u64 - 1) as usize];
            let mut query = format!("/v2/keys{top}{place}?wait=true");
            let stream = self.generator.once_in(2);
            if stream {
                query.push_str("&stream=true");
            }
            if self.generator.once_in(2) {
                query.push_str("&recursive=true");
            }
            if self.generator.once_in(4) {
                query.push_str(&format!("&waitIndex={}", self.generator.index + self.generator.between(1, 6)));
            }
            let request = HttpRequest::new("GET", query);
            if let Some(open) = self.open(&request).await? {
                self.report.watches.0 += 1;
                watches.push((request, open, stream));
            }
        }
        self.compare(HttpRequest::new("GET", "/v2/stats/store")).await?;
        self.generator.below = top.clone();
        for _ in 0..self.generator.between(1, 12) {
            // A change of the directory itself could end it, and with it the watches.
            let change = self.generator.change();
            if change.path.trim_end_matches('/') != format!("/v2/keys{top}")
                && !change.path.starts_with(&format!("/v2/keys{top}?"))
            {
                self.compare(change).await?;
            }
        }
        self.generator.below.clear();
        // Every place exists, and then is gone: each watch sees that.
        for place in ["/a", "/_h"] {
            self.compare(HttpRequest::new("DELETE", format!("/v2/keys{top}{place}?recursive=true"))).await?;
        }
        for place in ["/a/a", "/a/_h", "/_h/b", "/b"] {
            self.compare(HttpRequest::new("PUT", format!("/v2/keys{top}{place}?value=end"))).await?;
        }
        self.compare(HttpRequest::new("DELETE", format!("/v2/keys{top}/b?recursive=true"))).await?;
        let end = self.compare(HttpRequest::new("DELETE", format!("/v2/keys{top}?recursive=true"))).await?;
        let end = end.number("x-etcd-index").unwrap_or(0);
        for (request, mut open, stream) in watches {
            loop {
                let event = self.next_event(&request, &mut open).await?;
                let index = event.as_ref().and_then(|event| event["node"]["modifiedIndex"].as_u64());
                // Whoever watches what was gone before the directory sees nothing of its end.
                let is_last = index == Some(end) || request.path.contains("/b?") && index == Some(end - 1);
                if !stream || is_last || event.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Nodes run out: files, directories with all that is in them, refreshed ones later than they would have.
    async fn expiring(&mut self) -> Result<(), Failure> {
        self.episodes += 1;
        let top = format!("/v2/keys/t{}", self.episodes);
        let nodes = self.generator.between(2, 9);
        self.compare(HttpRequest::new("PUT", format!("{top}?dir=true"))).await?;
        let watch = HttpRequest::new("GET", format!("{top}?wait=true&stream=true&recursive=true"));
        let Some(mut watches) = self.open(&watch).await? else { return Ok(()) };
        self.report.watches.0 += 1;
        for node in 0..nodes {
            let is_dir = self.generator.once_in(3);
            if is_dir {
                self.compare(HttpRequest::new("PUT", format!("{top}/n{node}/inside?value=1"))).await?;
                self.next_event(&watch, &mut watches).await?;
                // Far enough apart from the others that both servers find them in the same order.
                let ttl = 5 + node % 3;
                let request = format!("{top}/n{node}?dir=true&prevExist=true&ttl={ttl}");
                self.compare(HttpRequest::new("PUT", request)).await?;
            } else {
                self.compare(HttpRequest::new("PUT", format!("{top}/n{node}?value=1&ttl={}", 5 + node % 3))).await?;
            }
            self.next_event(&watch, &mut watches).await?;
        }
        let last = self.generator.index;
        let deadline = Instant::now() + EXPIRED_WITHIN;
        self.same_index(deadline, |reference, subject| reference == last + nodes && subject == last + nodes).await?;
        for _ in 0..nodes {
            self.next_event(&watch, &mut watches).await?;
        }
        self.report.expired += nodes;
        self.generator.index = last + nodes;
        self.compare(HttpRequest::new("GET", format!("{top}?recursive=true&sorted=true"))).await?;
        self.compare(HttpRequest::new("DELETE", format!("{top}?recursive=true"))).await?;
        self.next_event(&watch, &mut watches).await?;
        Ok(())
    }

    /// Waits until the two indexes fit.
    async fn same_index(&mut self, deadline: Instant, fits: impl Fn(u64, u64) -> bool) -> Result<(), Failure> {
        // A missing key: each look is one failed get on either server.
        let look = HttpRequest::new("GET", "/v2/keys/there-is-no-such-key");
        loop {
            let [reference, subject] = self.both(&look).await?.map(|reply| reply.number("x-etcd-index").unwrap_or(0));
            if fits(reference, subject) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.difference(format!("indexes are {reference} and {subject}")));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn difference(&self, what: String) -> Failure {
        Failure::Difference(Box::new(Difference {
            seed: self.settings.seed,
            number: self.report.operations,
            what,
            changes: self.changes.iter().cloned().collect(),
        }))
    }
}
