//! What was emitted, against what must be: every topic, partition, order for
//! each key, value byte, header and timestamp.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A record that was emitted, or must be; topics by the names of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) timestamp_ms: i64,
    /// Kafka does not know it: `None` for what was read from there.
    pub(crate) origin: Option<String>,
}

/// Its text is free, but not empty.
const MESSAGE: &str = "__streams.errors.message";

impl Line {
    /// Reads an expected line, or one that `derive` has written.
    pub(crate) fn parse(line: &str) -> Line {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let headers = line["headers"].as_array().expect("a line has headers").iter().map(|header| {
            let name = header[0].as_str().expect("a header has a name").to_owned();
            (name, header[1].as_str().map(|value| value.as_bytes().to_vec()))
        });
        let parsed = Line {
            topic: line["topic"].as_str().expect("a line has a topic").to_owned(),
            partition: line["partition"].as_i64().expect("a line has a partition") as i32,
            key: bytes(&line, "key"),
            value: bytes(&line, "value"),
            headers: headers.collect(),
            timestamp_ms: line["timestamp"].as_i64().expect("a line has a timestamp"),
            origin: line["origin"].as_str().map(str::to_owned),
        };
        parsed.with_free_message()
    }

    /// Any text of the message counts as the same one.
    pub(crate) fn with_free_message(mut self) -> Line {
        for (name, value) in &mut self.headers {
            if name == MESSAGE && value.as_ref().is_some_and(|value| !value.is_empty()) {
                *value = Some(b"(free)".to_vec());
            }
        }
        self
    }

    pub(crate) fn without_origin(mut self) -> Line {
        self.origin = None;
        self
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().find(|(found, _)| found == name)?;
        value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The value as JSON; null where it is none.
    pub(crate) fn json(&self) -> Value {
        self.value.as_deref().and_then(|value| serde_json::from_slice(value).ok()).unwrap_or_default()
    }
}

fn bytes(line: &Value, name: &str) -> Option<Vec<u8>> {
    if let Some(text) = line[name].as_str() {
        return Some(text.as_bytes().to_vec());
    }
    let encoded = line[format!("{name}_b64")].as_str()?;
    Some(STANDARD.decode(encoded).expect("base64 stands under a name that ends in _b64"))
}

/// Topic, partition and key: what order is promised for.
type Stream = (String, i32, Option<Vec<u8>>);

/// Panics with the first difference; `what` says of which run.
pub(crate) fn assert_same(what: &str, expected: &[Line], emitted: &[Line]) {
    let (expected, emitted) = (streams(expected), streams(emitted));
    for (stream, expected) in &expected {
        let emitted = emitted.get(stream).map_or([].as_slice(), Vec::as_slice);
        let place = format!(
            "{what}: {} [{}] key {:?}",
            stream.0,
            stream.1,
            stream.2.as_deref().map(String::from_utf8_lossy)
        );
        for (index, (expected, emitted)) in expected.iter().zip(emitted).enumerate() {
            assert!(
                expected == emitted,
                "{place}, record {index}:\n expected {}\n emitted  {}",
                told(expected),
                told(emitted)
            );
        }
        assert!(
            expected.len() == emitted.len(),
            "{place}: {} records expected, {} emitted; the first too many or missing: {}",
            expected.len(),
            emitted.len(),
            emitted.get(expected.len()).or(expected.get(emitted.len())).map_or_else(String::new, |line| told(line))
        );
    }
    if let Some((stream, lines)) = emitted.iter().find(|(stream, _)| !expected.contains_key(*stream)) {
        panic!("{what}: nothing was expected in {stream:?}: {}", told(lines[0]));
    }
}

fn streams(lines: &[Line]) -> BTreeMap<Stream, Vec<&Line>> {
    let mut streams: BTreeMap<Stream, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        streams.entry((line.topic.clone(), line.partition, line.key.clone())).or_default().push(line);
    }
    streams
}

fn told(line: &Line) -> String {
    let text = |bytes: &Option<Vec<u8>>| match bytes {
        Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        None => "null".to_owned(),
    };
    let headers: Vec<String> =
        line.headers.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
    format!("{:?} at {} headers {headers:?} value {}", line.origin, line.timestamp_ms, text(&line.value))
}
