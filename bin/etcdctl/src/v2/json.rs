//! What members answer, and what is shown of it.

use cli::json::{Object, push_list};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

/// How deep an answer's brackets may nest. Keys of etcd can nest deeper, but no tree that people use does.
/// The bound keeps a malicious answer from exhausting the stack.
const MAX_DEPTH: usize = 500;

/// An answer to a request for keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    /// What was done.
    pub action: String,
    /// The node, as it is now.
    pub node: Option<Node>,
    /// The node, as it was.
    #[serde(rename = "prevNode")]
    pub previous: Option<Node>,
    /// The index of the store when it answered; from a header.
    #[serde(skip)]
    pub index: u64,
}

/// A key or a directory.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Node {
    /// Its path.
    pub key: String,
    /// Whether it is a directory.
    pub dir: bool,
    /// Its value.
    pub value: String,
    /// What is in the directory.
    pub nodes: Option<Vec<Node>>,
    /// The index of its creation.
    pub created_index: u64,
    /// The index of its last change.
    pub modified_index: u64,
    /// When it ends, RFC 3339.
    pub expiration: Option<String>,
    /// In how many seconds.
    pub ttl: i64,
}

/// An error that a member answers with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeyError {
    /// etcd's code.
    pub error_code: i64,
    /// What is wrong.
    pub message: String,
    /// With what.
    pub cause: String,
    /// The index of the store.
    pub index: u64,
}

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({}) [{}]", self.error_code, self.message, self.cause, self.index)
    }
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its ID, in hexadecimal.
    pub id: String,
    /// Its name; empty until it has started.
    pub name: String,
    /// Where members reach it.
    #[serde(rename = "peerURLs")]
    pub peer_urls: Option<Vec<String>>,
    /// Where clients reach it.
    #[serde(rename = "clientURLs")]
    pub client_urls: Option<Vec<String>>,
}

/// An answer with members.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Members {
    /// All of them.
    pub members: Option<Vec<Member>>,
}

/// An answer that says what is wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Message {
    /// What.
    pub message: String,
}

/// Reads an answer, or says why it makes no sense, in Go's words.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    if depth(text) > MAX_DEPTH {
        return Err("exceeded max depth".to_owned());
    }
    let text = String::from_utf8_lossy(text);
    // Go looks through all of it before it makes anything of it.
    decode::<IgnoredAny>(&text).and_then(|_| decode(&text)).map_err(|error| in_gos_words(&text, &error))
}

fn decode<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let mut decoder = serde_json::Deserializer::from_str(text);
    decoder.disable_recursion_limit();
    let value = T::deserialize(&mut decoder)?;
    decoder.end().map(|()| value)
}

/// How deep brackets nest, whether or not they fit.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn in_gos_words(text: &str, error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    if !error.is_syntax() {
        return format!("json: {error}");
    }
    let reason = error.to_string();
    let place = match reason.split(" at line").next().unwrap_or_default() {
        "trailing characters" => "after top-level value",
        "expected `:`" => "after object key",
        "expected `,` or `}`" => "after object key:value pair",
        "expected `,` or `]`" => "after array element",
        "key must be a string" => "looking for beginning of object key string",
        _ => "looking for beginning of value",
    };
    // Columns count from 1, and 0 is the end of the line before.
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let wrong = line.get(error.column().saturating_sub(1)..).and_then(|rest| rest.chars().next()).unwrap_or('\n');
    format!("invalid character {wrong:?} {place}")
}

impl Event {
    /// As `-o json` shows it.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        let mut object = Object::begin(&mut out);
        object.text("action", &self.action);
        object.value("node", |out| write_node(out, self.node.as_ref()));
        object.value("prevNode", |out| write_node(out, self.previous.as_ref()));
        object.end();
        out
    }
}

fn write_node(out: &mut String, node: Option<&Node>) {
    let Some(node) = node else { return out.push_str("null") };
    let mut object = Object::begin(out);
    object.text("key", &node.key);
    object.some_flag("dir", node.dir);
    object.text("value", &node.value);
    object.value("nodes", |out| match &node.nodes {
        Some(nodes) => push_list(out, nodes, |out, node| write_node(out, Some(node))),
        None => out.push_str("null"),
    });
    object.number("createdIndex", node.created_index);
    object.number("modifiedIndex", node.modified_index);
    if let Some(expiration) = &node.expiration {
        object.text("expiration", expiration);
    }
    object.some_number("ttl", node.ttl);
    object.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_told_in_gos_words() {
        for (text, words) in [
            ("404 page not found\n", "invalid character 'p' after top-level value"),
            ("<html>", "invalid character '<' looking for beginning of value"),
            ("", "unexpected end of JSON input"),
            ("{\"members\":[", "unexpected end of JSON input"),
            ("{\"members\" 1}", "invalid character '1' after object key"),
            ("{\"members\":[] 1}", "invalid character '1' after object key:value pair"),
            ("{x", "invalid character 'x' looking for beginning of object key string"),
        ] {
            assert_eq!(read::<Members>(text.as_bytes()).unwrap_err(), words, "{text}");
        }
    }

    #[test]
    fn a_deep_answer_is_read_and_a_bottomless_one_refused() {
        let nested = |levels: usize| {
            let open = r#"{"node":{"nodes":["#.to_owned() + &r#"{"nodes":["#.repeat(levels);
            open + &"]}".repeat(levels + 1) + "}"
        };
        assert!(read::<Event>(nested(240).as_bytes()).is_ok());
        assert_eq!(read::<Event>(nested(5_000).as_bytes()).unwrap_err(), "exceeded max depth");
        assert!(read::<Event>("[".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn an_event_is_shown_with_all_that_go_would_show() {
        let event: Event =
            read(br#"{"action":"get","node":{"key":"/a","value":"<","modifiedIndex":5,"createdIndex":4}}"#).unwrap();
        let node = r#"{"key":"/a","value":"\u003c","nodes":null,"createdIndex":4,"modifiedIndex":5}"#;
        assert_eq!(event.to_json(), format!(r#"{{"action":"get","node":{node},"prevNode":null}}"#));
    }
}
