//! Commands for the v2 tree.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use keelson_state::v2::{Answer, Outcome, Watch};
use keelson_state::{Error, Response, State};
use proto::v2pb;

use super::{Args, World};

/// Midnight of 2020-01-01, when a script's clock begins. Nanoseconds since 1970.
const BEGIN_NS: i64 = 1_577_836_800_000_000_000;

#[derive(Default)]
pub(super) struct Watches(BTreeMap<String, Watch>);

fn line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

fn shown(outcome: Outcome) -> Vec<String> {
    match outcome {
        Ok(Answer::Changed(event)) => vec![line(&event.line())],
        Ok(Answer::Found(found)) => vec![format!("{} @{}", line(&found.line()), found.index)],
        Ok(Answer::Nothing) => vec![],
        Err(error) => vec![line(&error.to_json())],
    }
}

impl World {
    fn now_ns(&self) -> i64 {
        BEGIN_NS + i64::try_from(self.now_ms).expect("a short script") * 1_000_000
    }

    pub(super) fn v2(&mut self, text: &str) -> Result<Vec<String>, Error> {
        let names = [
            "value",
            "ttl",
            "dir",
            "prevExist",
            "prevValue",
            "prevIndex",
            "recursive",
            "refresh",
            "stream",
            "since",
            "times",
        ];
        let args = Args::parse(text, &names);
        let path = || format!("/1{}", args.words.get(1).copied().unwrap_or("/").trim_end_matches('/'));
        let name = || (*args.words.get(1).expect("the name of a watch")).to_owned();
        let v2 = self.reader.v2();
        match args.words[0] {
            "get" => {
                return Ok(shown(v2.get(&path(), args.has("recursive"), self.now_ns()).map(Answer::Found)));
            }
            "wait" => {
                let path = format!("/1{}", args.words[2]);
                let since = args.number("since") as u64;
                return Ok(match v2.watch(&path, args.has("recursive"), args.has("stream"), since) {
                    Ok(watch) => {
                        let began = format!("from @{}", watch.start_index);
                        self.watches.0.insert(name(), watch);
                        vec![began]
                    }
                    Err(error) => vec![line(&error.to_json())],
                });
            }
            "events" => {
                let watch = self.watches.0.get_mut(&name()).expect("a watch of this name");
                let mut events = Vec::new();
                loop {
                    match watch.poll_next(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(Some(event)) => events.push(line(&event.line())),
                        Poll::Ready(None) => {
                            events.push("the end".into());
                            return Ok(events);
                        }
                        Poll::Pending => return Ok(events),
                    }
                }
            }
            "leave" => {
                self.watches.0.remove(&name());
                return Ok(vec![]);
            }
            "counters" => {
                // In the order of their names, however the JSON library keeps them.
                let json: std::collections::BTreeMap<String, serde_json::Value> =
                    serde_json::from_str(&v2.counters().to_json()).expect("JSON");
                let counts = json.iter();
                let counted = counts.filter(|(_, count)| **count != 0).map(|(name, count)| format!("{name} {count}"));
                return Ok(vec![counted.collect::<Vec<_>>().join(", ")]);
            }
            _ => {}
        }
        let now = self.now_ns();
        let bytes = |name: &str| args.options.get(name).map(|value| Bytes::copy_from_slice(value.as_bytes()));
        let request = v2pb::Request {
            id: Some(1),
            method: Some(args.words[0].to_uppercase()),
            path: Some(path().into()),
            val: bytes("value"),
            dir: Some(args.has("dir")),
            prev_value: bytes("prevValue"),
            prev_index: Some(args.number("prevIndex") as u64),
            prev_exist: args.options.get("prevExist").map(|value| *value == "true"),
            expiration: args.has("ttl").then(|| now + args.number("ttl") * 1_000_000_000),
            recursive: Some(args.has("recursive")),
            refresh: args.has("refresh").then_some(true),
            time: Some(now),
            ..Default::default()
        };
        let mut last = Vec::new();
        for _ in 0..args.number("times").max(1) {
            let data = prost::Message::encode_to_vec(&request).into();
            self.index += 1;
            let index = self.index;
            let applied = State::apply(self.state(), index, 1, &data).expect("an entry that can be applied");
            last = match applied.result? {
                Response::V2(outcome) => shown(*outcome),
                other => panic!("{other:?}"),
            };
        }
        Ok(last)
    }
}
