//! Splitting a line into words, for what is typed into `txn` and `watch -i`.

use crate::go;
use crate::raw;

/// The words of a line. `"…"` holds blanks and Go's escapes, `'…'` holds anything; a quote that is never closed is
/// skipped, as etcdctl does.
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let quoted = match first {
            '"' => go::unquote(rest).map(|(word, rest)| (raw::text(&word), rest)),
            '\'' => rest[1..].split_once('\'').map(|(word, rest)| (word.to_owned(), rest)),
            _ => {
                let (word, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
                Some((word.to_owned(), after))
            }
        };
        rest = match quoted {
            Some((word, after)) => {
                words.push(word);
                after
            }
            None => &rest[1..],
        }
        .trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(split(r#"put k "two words" 'it''s' a"b"#), ["put", "k", "two words", "it", "s", "a\"b"]);
        assert_eq!(split(r#"put "open"#), ["put", "open"]);
        assert_eq!(split(r#"put k """#), ["put", "k", ""]);
    }
}
