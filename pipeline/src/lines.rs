//! Records as lines of JSON, for people and tests.
//!
//! A raw line is `{"partition", "offset", "timestamp", "key", "value",
//! "headers": [[name, value], …]}`; bytes that are not UTF-8 stand in base64
//! under `key_b64` or `value_b64`.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::record::{Header, Origin, OutgoingRecord, RawRecord};

/// A raw record that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawLine {
    /// The input partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// The Kafka timestamp, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The headers, in their order.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    partition: i32,
    offset: i64,
    timestamp: i64,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    key_b64: Option<String>,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    value_b64: Option<String>,
    #[serde(default)]
    headers: Vec<(String, Option<String>)>,
}

impl RawLine {
    /// Reads a raw line.
    ///
    /// # Errors
    /// Where the line is not of that form; the error says what is wrong with it.
    pub fn parse(line: &str) -> Result<RawLine> {
        let line: Line = serde_json::from_str(line).context("read the raw line")?;
        Ok(RawLine {
            partition: line.partition,
            offset: line.offset,
            timestamp_ms: line.timestamp,
            key: bytes(line.key, line.key_b64).context("decode \"key_b64\"")?,
            value: bytes(line.value, line.value_b64).context("decode \"value_b64\"")?,
            headers: line
                .headers
                .into_iter()
                .map(|(name, value)| (name.into_bytes(), value.map(String::into_bytes)))
                .collect(),
        })
    }

    /// Hands the record to `use_record`, with its headers borrowed.
    pub fn with_record<T>(&self, use_record: impl FnOnce(&RawRecord<'_>) -> T) -> T {
        let headers: Vec<Header<'_>> =
            self.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref())).collect();
        use_record(&RawRecord {
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
        })
    }
}

/// An outgoing record as a line, without the newline; `topic` is its topic's name.
#[must_use]
pub fn outgoing_line(topic: &str, record: &OutgoingRecord<'_>) -> String {
    let headers: Vec<Value> =
        record.headers().map(|(name, value)| json!([text(name), value.map(text)])).collect();
    let mut line = Map::new();
    line.insert("topic".into(), topic.into());
    line.insert("partition".into(), record.partition.into());
    insert_bytes(&mut line, "key", record.key);
    insert_bytes(&mut line, "value", record.value);
    line.insert("headers".into(), headers.into());
    line.insert("timestamp".into(), record.timestamp_ms.into());
    line.insert("origin".into(), origin(record.origin).into());
    Value::Object(line).to_string()
}

/// The word for an origin in lines.
#[must_use]
pub fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Forwarded => "forwarded",
        Origin::Derived => "derived",
        Origin::Late => "late",
        Origin::DeadLetter => "dlq",
        Origin::Rekeyed => "rekeyed",
    }
}

fn bytes(text: Option<String>, encoded: Option<String>) -> Result<Option<Vec<u8>>> {
    match (text, encoded) {
        (_, Some(encoded)) => Ok(Some(STANDARD.decode(encoded)?)),
        (text, None) => Ok(text.map(String::into_bytes)),
    }
}

fn insert_bytes(line: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => line.insert(name.into(), Value::Null),
        Some((_, Ok(text))) => line.insert(name.into(), text.into()),
        Some((bytes, Err(_))) => line.insert(format!("{name}_b64"), STANDARD.encode(bytes).into()),
    };
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
