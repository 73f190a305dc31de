//! What was emitted, against what must be: every topic, partition, order for
//! each key, value byte, header and timestamp.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A record that was emitted, or must be; topics by the names of the contract.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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

/// A line and the raw partition that its source is in.
pub(crate) type Sourced = (i32, Line);

/// Panics with the first difference, in the order of the lines; `what` says of which run.
pub(crate) fn assert_same(what: &str, expected: &[Line], emitted: &[Line]) {
    let expected: Vec<Sourced> = expected.iter().map(|line| (0, line.clone())).collect();
    assert_same_by_source(what, &expected, emitted);
}

/// The same where records were read from several partitions at once: a ticket
/// whose records lie in two of them (they have no key, or are not where their
/// key belongs) is promised the order of each, not one between them.
pub(crate) fn assert_same_by_source(what: &str, expected: &[Sourced], emitted: &[Line]) {
    let mut streams: BTreeMap<Stream, (Sources<'_>, Vec<&Line>)> = BTreeMap::new();
    for (source, line) in expected {
        streams.entry(stream(line)).or_default().0.entry(*source).or_default().push(line);
    }
    for line in emitted {
        streams.entry(stream(line)).or_default().1.push(line);
    }
    for ((topic, partition, key), (sources, emitted)) in &streams {
        let key = key.as_deref().map(String::from_utf8_lossy);
        let place = format!("{what}: {topic} [{partition}] key {key:?}");
        assert_interleaved(&place, sources, emitted);
        let count: usize = sources.values().map(Vec::len).sum();
        assert!(count == emitted.len(), "{place}: {} records emitted, {count} expected", emitted.len());
    }
}

/// What is expected from each raw partition.
type Sources<'a> = BTreeMap<i32, Vec<&'a Line>>;

/// Each emitted line is the next of one of the sources. Where it could be the
/// next of several, each way is followed.
fn assert_interleaved(place: &str, sources: &Sources<'_>, emitted: &[&Line]) {
    let sources: Vec<&[&Line]> = sources.values().map(Vec::as_slice).collect();
    let mut ways = BTreeSet::from([vec![0; sources.len()]]);
    for (index, line) in emitted.iter().enumerate() {
        let mut next = BTreeSet::new();
        for way in &ways {
            for (source, lines) in sources.iter().enumerate() {
                if lines.get(way[source]) == Some(line) {
                    let mut way = way.clone();
                    way[source] += 1;
                    next.insert(way);
                }
            }
        }
        if next.is_empty() {
            let expected = ways.first().into_iter().flat_map(|way| {
                way.iter().zip(&sources).filter_map(|(at, lines)| lines.get(*at)).map(|line| told(line))
            });
            let expected: Vec<String> = expected.collect();
            panic!(
                "{place}, record {index}:\n expected {}\n emitted  {}",
                expected.join("\n or       "),
                told(line)
            );
        }
        ways = next;
    }
}

/// Gives each line of an expected file the raw partition of its source, which
/// the same line of the tasks knows.
pub(crate) fn with_sources(expected: Vec<Line>, by_tasks: Vec<Sourced>) -> Vec<Sourced> {
    let mut sources: BTreeMap<Stream, VecDeque<i32>> = BTreeMap::new();
    for (source, line) in by_tasks {
        sources.entry(stream(&line)).or_default().push_back(source);
    }
    let with_source = |line: Line| {
        let source = sources.get_mut(&stream(&line)).and_then(VecDeque::pop_front);
        (source.unwrap_or_else(|| panic!("the tasks do not emit {}", told(&line))), line)
    };
    expected.into_iter().map(with_source).collect()
}

fn stream(line: &Line) -> Stream {
    (line.topic.clone(), line.partition, line.key.clone())
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

#[test]
fn what_is_missing_doubled_or_out_of_order_is_found() {
    let line = |value: &str| Line {
        topic: "t".to_owned(),
        partition: 0,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
        timestamp_ms: 1,
        origin: None,
    };
    let same = |expected: &[(i32, &str)], emitted: &[&str]| {
        let expected: Vec<Sourced> = expected.iter().map(|(source, value)| (*source, line(value))).collect();
        let emitted: Vec<Line> = emitted.iter().map(|value| line(value)).collect();
        std::panic::catch_unwind(|| assert_same_by_source("", &expected, &emitted)).is_ok()
    };
    assert!(same(&[(0, "a"), (0, "b")], &["a", "b"]));
    assert!(!same(&[(0, "a"), (0, "b")], &["b", "a"]));
    assert!(!same(&[(0, "a"), (0, "b")], &["a"]));
    assert!(!same(&[(0, "a"), (0, "b")], &["a", "b", "b"]));
    assert!(!same(&[], &["a"]));
    // Two sources: any order between them, the own one within each.
    for emitted in [["a", "b", "a", "c"], ["a", "a", "b", "c"], ["a", "c", "a", "b"]] {
        assert!(same(&[(0, "a"), (0, "b"), (1, "a"), (1, "c")], &emitted), "{emitted:?}");
    }
    assert!(!same(&[(0, "a"), (0, "b"), (1, "a"), (1, "c")], &["b", "a", "a", "c"]));
}
