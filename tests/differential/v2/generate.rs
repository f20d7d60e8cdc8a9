//! Random requests to `/v2`: few paths so that they meet, every parameter, right and wrong, and conditions that hold as
//! often as they fail.

use std::collections::BTreeMap;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::{HttpReply, HttpRequest};

/// Names of nodes; `%2F` is a separator in disguise, and what begins with an underscore is hidden.
const NAMES: [&str; 11] = ["a", "b", "c", "d", "_h", "_", "x%2Fy", "%C3%A4%20%2B", "1", "%3Cq%26%22%3E", "a.b~c"];
/// Values as a form carries them; the last is not UTF-8.
const VALUES: [&str; 9] =
    ["", "1", "2", "old", "a+b%26c", "%3Cb%3E%26%E2%80%A8", "%22quoted%5C", "line%0Abreak%09%00%7F", "%FFbad%C3"];
const FLAGS: [&str; 11] = ["true", "false", "1", "0", "t", "F", "TRUE", "False", "yes", "", "tRuE"];
const NUMBERS: [&str; 8] = ["0", "1", "-1", "x", "", "18446744073709551615", "18446744073709551616", "3.5"];
/// Paths that are answered without a look at the tree.
const PLAIN: [(&str, &str); 10] = [
    ("GET", "/v2/machines/"),
    ("GET", "/v2/stats"),
    ("POST", "/v2/stats/self"),
    ("GET", "/v2/keys/a//b"),
    ("PUT", "/v2/keys/../keys/a"),
    ("DELETE", "/v2/keys/./a?x=1"),
    ("GET", "/v2/auth/enable"),
    ("OPTIONS", "/v2/keys/a"),
    ("PATCH", "/v2/keys/a"),
    ("GET", "/v2/members/nobody"),
];

/// What is known of a key from an answer.
#[derive(Clone, Debug)]
struct Known {
    modified: u64,
    value: String,
}

/// Makes requests from a seed and from what the servers have answered so far.
pub(super) struct Generator {
    random: SmallRng,
    /// By the path that was asked for.
    known: BTreeMap<String, Known>,
    /// The newest index that an answer named.
    pub(super) index: u64,
    /// Begins every path; empty for the whole tree.
    pub(super) below: String,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), known: BTreeMap::new(), index: 0, below: String::new() }
    }

    pub(super) fn once_in(&mut self, times: u32) -> bool {
        self.random.random_ratio(1, times)
    }

    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        self.random.random_range(from..=to)
    }

    fn one_of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list.choose(&mut self.random).copied().unwrap_or_default()
    }

    /// A path below `/v2/keys`; seldom the root.
    fn path(&mut self) -> String {
        let mut path = self.below.clone();
        for _ in 0..*[0, 1, 1, 1, 2, 2, 2, 3, 3, 4].choose(&mut self.random).unwrap_or(&1) {
            path.push('/');
            // The first few are met more often.
            let names = if self.once_in(2) { &NAMES[..3] } else { &NAMES[..] };
            path.push_str(self.one_of(names));
        }
        if self.once_in(25) {
            path.push('/');
        }
        path
    }

    /// Something that changes the tree, or would.
    pub(super) fn change(&mut self) -> HttpRequest {
        let method = *["PUT", "PUT", "PUT", "PUT", "POST", "DELETE"].choose(&mut self.random).unwrap_or(&"PUT");
        let path = self.path();
        let mut parameters: Vec<(&str, String)> = Vec::new();
        if method != "DELETE" {
            if !self.once_in(6) {
                parameters.push(("value", self.one_of(&VALUES).into()));
            }
            if self.once_in(6) {
                parameters.push(("dir", "true".into()));
            }
            if self.once_in(5) {
                // No request of this kind runs out while the comparison runs: that could not be compared.
                let ttl = self.between(100_000, 200_000);
                parameters.push(("ttl", ttl.to_string()));
            }
            match self.between(0, 5) {
                0 => parameters.push(("prevExist", "true".into())),
                1 => parameters.push(("prevExist", "false".into())),
                _ => {}
            }
            if self.once_in(12) {
                parameters.push(("refresh", "true".into()));
                if !self.once_in(4) {
                    parameters.retain(|(name, _)| *name != "value" && *name != "ttl");
                    parameters.push(("ttl", "150000".into()));
                }
            }
            if self.once_in(10) {
                parameters.push(("noValueOnSuccess", "true".into()));
            }
        } else {
            if self.once_in(3) {
                parameters.push(("recursive", "true".into()));
            }
            if self.once_in(3) {
                parameters.push(("dir", "true".into()));
            }
        }
        if self.once_in(3) {
            self.condition(&path, &mut parameters);
        }
        self.spoil(&mut parameters);
        self.request(method, &path, parameters)
    }

    fn condition(&mut self, path: &str, parameters: &mut Vec<(&str, String)>) {
        let known = self.known.get(path).cloned();
        let known = known.filter(|_| !self.once_in(4));
        if self.once_in(2) {
            let value = known.as_ref().map(|known| utf8_percent_encode(&known.value, NON_ALPHANUMERIC).to_string());
            parameters.push(("prevValue", value.unwrap_or_else(|| self.one_of(&VALUES).into())));
        }
        if self.once_in(2) {
            let index = known.map_or_else(|| self.between(0, 50), |known| known.modified);
            parameters.push(("prevIndex", index.to_string()));
        }
    }

    /// Now and then, something wrong.
    fn spoil(&mut self, parameters: &mut Vec<(&str, String)>) {
        if !self.once_in(12) {
            return;
        }
        const ALL: [&str; 14] = [
            "dir",
            "prevExist",
            "recursive",
            "sorted",
            "stream",
            "quorum",
            "refresh",
            "noValueOnSuccess",
            "prevIndex",
            "prevValue",
            "waitIndex",
            "ttl",
            "unknown",
            "value",
        ];
        let name = self.one_of(&ALL);
        let value = match name {
            "prevIndex" | "waitIndex" => self.one_of(&NUMBERS),
            // A valid one would run out during the comparison.
            "ttl" => self.one_of(&["-1", "x", "", "18446744073709551616", "1e9", "%205"]),
            "value" | "prevValue" => self.one_of(&["%zz", "a;b", "%"]),
            _ => self.one_of(&FLAGS),
        };
        let place = self.between(0, parameters.len() as u64) as usize;
        parameters.insert(place, (name, value.into()));
    }

    /// Parameters go into the query or, if the method has one, into the body, or into both.
    fn request(&mut self, method: &'static str, path: &str, parameters: Vec<(&str, String)>) -> HttpRequest {
        let in_body = method != "GET" && method != "HEAD" && self.once_in(2);
        let (mut query, mut form) = (Vec::new(), Vec::new());
        for (name, value) in parameters {
            let pair = format!("{name}={value}");
            if in_body && !self.once_in(8) { &mut form } else { &mut query }.push(pair);
        }
        let mut target = format!("/v2/keys{path}");
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query.join("&"));
        }
        let request = HttpRequest::new(method, target);
        if in_body { request.with_form(form.join("&")) } else { request }
    }

    /// Something that leaves the tree as it is.
    pub(super) fn read(&mut self) -> HttpRequest {
        if self.once_in(40) {
            let (method, path) = *PLAIN.choose(&mut self.random).unwrap_or(&PLAIN[0]);
            return HttpRequest::new(method, path);
        }
        if self.once_in(40) {
            return HttpRequest::new("GET", "/v2/stats/store");
        }
        let method = if self.once_in(10) { "HEAD" } else { "GET" };
        let path = self.path();
        let mut parameters: Vec<(&str, String)> = Vec::new();
        for name in ["recursive", "sorted"] {
            if self.once_in(2) {
                parameters.push((name, "true".into()));
            }
        }
        if self.once_in(5) {
            parameters.push(("quorum", "true".into()));
        }
        self.spoil(&mut parameters);
        self.request(method, &path, parameters)
    }

    /// A wait for what has already happened, which is answered at once.
    pub(super) fn watch_the_past(&mut self) -> HttpRequest {
        let oldest = self.index.saturating_sub(1_100).max(1);
        let since = self.between(oldest, self.index);
        let recursive = !self.once_in(3);
        let path = if self.once_in(4) { self.path() } else { String::new() };
        let mut query = format!("/v2/keys{path}?wait=true&waitIndex={since}");
        if recursive {
            query.push_str("&recursive=true");
        }
        HttpRequest::new("GET", query)
    }

    /// Learns from the answer to one of its requests.
    pub(super) fn learn(&mut self, request: &HttpRequest, reply: &HttpReply) {
        if let Some(index) = reply.number("x-etcd-index") {
            self.index = self.index.max(index);
        }
        let answer = reply.json();
        let node = &answer["node"];
        let path = request.path.split('?').next().and_then(|path| path.strip_prefix("/v2/keys"));
        if let (Some(path), Some(modified), Some(value)) =
            (path, node["modifiedIndex"].as_u64(), node["value"].as_str())
        {
            self.known.insert(path.to_owned(), Known { modified, value: value.to_owned() });
        }
    }
}
