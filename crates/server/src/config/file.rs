//! The config file: YAML, of which JSON is a part.

use super::check::ConfigError;
use super::flags::{FLAGS, Slot, Typed};
use super::url::Url;
use serde_json::{Map, Value};

/// Puts every setting of a config file into `typed`. Keys that mean nothing are ignored.
pub(super) fn apply(text: &str, typed: &mut Typed) -> Result<(), ConfigError> {
    let syntax = |reason: String| ConfigError::FileSyntax(format!("error converting YAML to JSON: yaml: {reason}"));
    let document: Value = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_saphyr::from_str(text).map_err(|error| syntax(error.to_string()))?
    };
    let settings = match document {
        Value::Null => return Ok(()),
        Value::Object(settings) => settings,
        other => return Err(type_error(kind(&other), "value of type embed.configYAML")),
    };
    // etcd first reads every value into its type and only then looks at the URLs.
    section(&settings, "", typed, false)?;
    section(&settings, "", typed, true)
}

/// One map of the file; `path` is empty or ends with a dot.
fn section(settings: &Map<String, Value>, path: &str, typed: &mut Typed, urls: bool) -> Result<(), ConfigError> {
    for (key, value) in settings {
        let key = format!("{path}{key}");
        let is_section =
            FLAGS.iter().any(|flag| flag.file_key.strip_prefix(&key).is_some_and(|rest| rest.starts_with('.')));
        if is_section {
            match value {
                Value::Null => {}
                Value::Object(inner) => section(inner, &format!("{key}."), typed, urls)?,
                other => return Err(type_error(kind(other), &format!("struct field configYAML.{key} of type struct"))),
            }
        }
        // Go's decoder takes keys in any case.
        let Some(flag) = FLAGS.iter().find(|flag| flag.file_key.eq_ignore_ascii_case(&key)) else { continue };
        let is_url = matches!(flag.slot, Slot::Urls(_) | Slot::OptionalUrls(_));
        if value.is_null() || is_url != urls {
            if is_url && !matches!(value, Value::String(_) | Value::Null) {
                return Err(wrong_type(value, &key, "string"));
            }
            continue;
        }
        typed.given.insert(flag.name);
        put(&flag.slot, value, &key, typed)?;
    }
    Ok(())
}

fn put(slot: &Slot, value: &Value, key: &str, typed: &mut Typed) -> Result<(), ConfigError> {
    let wrong = |go_type: &str| Err(wrong_type(value, key, go_type));
    match (slot, value) {
        (Slot::Bool(field), Value::Bool(value)) => *field(typed) = *value,
        (Slot::Bool(_), _) => return wrong("bool"),
        (Slot::Uint(field), Value::Number(number)) if number.is_u64() => {
            *field(typed) = number.as_u64().unwrap_or_default();
        }
        (Slot::Uint(_), _) => return wrong("uint"),
        (Slot::Uint32(field), Value::Number(number)) if number.as_u64().is_some_and(|n| u32::try_from(n).is_ok()) => {
            *field(typed) = number.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
        }
        (Slot::Uint32(_), _) => return wrong("uint32"),
        (Slot::Int(field), Value::Number(number)) if number.is_i64() => {
            *field(typed) = number.as_i64().unwrap_or_default();
        }
        (Slot::Int(_), _) => return wrong("int64"),
        // A duration in the file counts nanoseconds.
        (Slot::Duration(field), Value::Number(number)) if number.is_i64() => {
            let nanos = number.as_i64().unwrap_or_default();
            *field(typed) = std::time::Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        }
        (Slot::Duration(_), _) => return wrong("time.Duration"),
        (Slot::Text(field) | Slot::Choice(_, field), Value::String(text)) => *field(typed) = text.clone(),
        (Slot::Text(_) | Slot::Choice(..), _) => return wrong("string"),
        (Slot::Urls(field) | Slot::OptionalUrls(field), Value::String(text)) => {
            if text.is_empty() {
                return Ok(());
            }
            *field(typed) = Url::parse_list(text)
                .map_err(|error| ConfigError::FileUrl { key: key.to_owned(), reason: error.to_string() })?;
        }
        (Slot::Urls(_) | Slot::OptionalUrls(_), _) => return wrong("string"),
        (Slot::Words(_) | Slot::Custom(_) | Slot::Origins(_), Value::String(text)) => {
            slot.set(typed, text).map_err(|reason| ConfigError::FileValue { key: key.to_owned(), reason })?;
        }
        (Slot::Words(_) | Slot::Custom(_) | Slot::Origins(_), _) => return wrong("string"),
        (Slot::List(field), Value::Array(items)) => {
            let texts: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            match texts {
                Some(texts) => *field(typed) = texts,
                None => return wrong("string"),
            }
        }
        // 3.5 and earlier had a single name here.
        (Slot::List(field), Value::String(text)) if key.contains("allowed-") => *field(typed) = vec![text.clone()],
        (Slot::List(_), _) => return wrong("[]string"),
        (Slot::Nothing, _) => {}
    }
    Ok(())
}

fn wrong_type(value: &Value, key: &str, go_type: &str) -> ConfigError {
    let owner = if key.contains('.') { "securityConfig" } else { "configYAML" };
    type_error(kind(value), &format!("struct field {owner}.{key} of type {go_type}"))
}

fn type_error(kind: String, target: &str) -> ConfigError {
    ConfigError::FileSyntax(format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} into Go {target}"
    ))
}

/// What Go's decoder calls a value.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if number.is_f64() || number.as_i64().is_some_and(|n| n < 0) => {
            format!("number {number}")
        }
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}
