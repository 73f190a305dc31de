//! The real histories, and what the expected file says must come of each event.
//!
//! It does not know how they are multiplied, nor how the pipeline derives.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ticket_pipeline::lines::RawLine;

use crate::stream::mix;

/// As long as the uids of the histories, so that a renamed event has as many bytes.
pub const UID_BYTES: usize = 10;
/// A UUID's.
pub const EVENT_ID_BYTES: usize = 36;
/// `2016-02-29T01:23:00Z`.
pub const TIMESTAMP_BYTES: usize = 20;

/// Where an event's id stands in every value.
pub const EVENT_ID_AT: usize = r#"{"eventId":""#.len();

/// One event of a history, with what must come of it.
#[derive(Debug)]
pub struct Template {
    /// The value as it came.
    pub value: Vec<u8>,
    /// Where its timestamp stands in the value.
    pub timestamp_at: usize,
    /// Where its ticket's uid stands in the value.
    pub uids_at: Vec<usize>,
    /// The topic that it is forwarded to.
    pub forwarded_to: String,
    /// What must be derived from it, in order.
    pub derived: Vec<Derived>,
}

/// What stands before a ticket's members.
const TICKET: &[u8] = br#""ticket":{"#;

impl Template {
    /// Puts text behind the first place where `behind` stands.
    fn insert(&mut self, behind: &[u8], text: &[u8]) {
        let Some(at) = self.value.windows(behind.len()).position(|window| window == behind) else { return };
        let at = at + behind.len();
        self.value.splice(at..at, text.iter().copied());
        for place in self.uids_at.iter_mut().chain([&mut self.timestamp_at]).filter(|place| **place >= at) {
            *place += text.len();
        }
    }
}

/// A derived event that must come of a template.
#[derive(Debug)]
pub struct Derived {
    /// The topic that it goes to.
    pub topic: String,
    /// The bytes of `payload.change`; no name that is changed stands in them.
    pub change: String,
}

/// The real histories.
#[derive(Debug)]
pub struct Histories {
    /// Each ticket's events, in their order; the first is a `ticket:created`.
    pub all: Vec<Vec<Template>>,
    /// What an event of them brings.
    pub means: Means,
}

/// What one event brings, on average.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    /// Of a raw value.
    pub raw_bytes: f64,
    /// Derived events.
    pub derived_per_event: f64,
    /// Of a derived value.
    pub derived_bytes: f64,
    /// Names and values of an outgoing record's headers.
    pub header_bytes: f64,
}

impl Histories {
    /// Reads them from the test data.
    ///
    /// Histories with a late event are left out: their events get new times.
    pub fn read(data: &Path) -> Result<Histories> {
        let expected = Expected::read(&data.join("histories.expected.ndjson.zst"))?;
        let mut tickets: Vec<Vec<Template>> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for line in lines(&data.join("histories.raw.ndjson.zst"))? {
            let raw = RawLine::parse(&line?)?;
            let uid = String::from_utf8(raw.key.context("a history's event has a key")?)?;
            if expected.late_uids.contains(&uid) {
                continue;
            }
            let place = *places.entry(uid.clone()).or_insert_with(|| {
                tickets.push(Vec::new());
                tickets.len() - 1
            });
            let template = template(raw.value.context("a history's event has a value")?, &uid, &expected)?;
            if let Some(ticket) = tickets.get_mut(place) {
                ticket.push(template);
            }
        }
        ensure!(
            tickets.iter().all(|events| events.first().is_some_and(|first| first.derived.is_empty())),
            "a history does not begin with a ticket:created"
        );
        let means = means(&tickets, &expected);
        Ok(Histories { all: tickets, means })
    }

    /// The same with tickets that are longer by so many bytes, and a few more: by a member
    /// that no rule asks for, whose text is hard to compress.
    #[must_use]
    pub fn padded(mut self, bytes: usize) -> Histories {
        let text: String = (0..bytes as u64).map(|at| char::from(b'A' + (mix(at) % 26) as u8)).collect();
        let member = format!("\"attachment\":\"{text}\",");
        self.means.raw_bytes += member.len() as f64;
        for template in self.all.iter_mut().flatten() {
            template.insert(TICKET, member.as_bytes());
        }
        self
    }

    /// How many events an average history has.
    pub fn events_per_ticket(&self) -> f64 {
        self.all.iter().map(Vec::len).sum::<usize>() as f64 / self.all.len().max(1) as f64
    }
}

/// The expected file, by source event id.
#[derive(Default)]
struct Expected {
    forwarded_to: HashMap<String, String>,
    derived: HashMap<String, Vec<Derived>>,
    late_uids: std::collections::HashSet<String>,
    derived_count: u64,
    derived_bytes: usize,
    header_bytes: usize,
    records: u64,
}

impl Expected {
    fn read(path: &Path) -> Result<Expected> {
        let mut expected = Expected::default();
        for line in lines(path)? {
            let line: Value = serde_json::from_str(&line?).with_context(|| format!("read {path:?}"))?;
            expected.add(&line).with_context(|| format!("use a line of {path:?}"))?;
        }
        Ok(expected)
    }

    fn add(&mut self, line: &Value) -> Result<()> {
        let text =
            |name: &str| line.get(name).and_then(Value::as_str).with_context(|| format!("lacks {name}"));
        let (topic, value) = (text("topic")?.to_owned(), text("value")?);
        self.records += 1;
        self.header_bytes += line
            .get("headers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(Value::as_str)
            .map(str::len)
            .sum::<usize>();
        match text("origin")? {
            "late" => {
                self.late_uids.insert(text("key")?.to_owned());
            }
            "forwarded" => {
                self.forwarded_to.insert(event_id(value)?, topic);
            }
            "derived" => {
                let parsed: Value = serde_json::from_str(value)?;
                let source = parsed.pointer("/metadata/source/eventId").and_then(Value::as_str);
                let change = change(value.as_bytes()).context("a derived event has a change")?;
                let derived = Derived { topic, change: String::from_utf8(change.to_vec())? };
                self.derived
                    .entry(source.context("a derived event has a source")?.to_owned())
                    .or_default()
                    .push(derived);
                self.derived_count += 1;
                self.derived_bytes += value.len();
            }
            other => anyhow::bail!("origin {other} is not among the histories'"),
        }
        Ok(())
    }
}

/// How many records of each topic must come of the real histories.
pub fn expected_counts(data: &Path) -> Result<std::collections::BTreeMap<String, u64>> {
    let mut counts = std::collections::BTreeMap::new();
    for line in lines(&data.join("histories.expected.ndjson.zst"))? {
        let line: Value = serde_json::from_str(&line?)?;
        let topic = line.get("topic").and_then(Value::as_str).context("an expected line has a topic")?;
        *counts.entry(topic.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

/// The raw lines of a file of the test data.
pub fn raw_lines(path: &Path) -> Result<Vec<RawLine>> {
    lines(path)?.map(|line| RawLine::parse(&line?)).collect()
}

/// The bytes of a derived event's `payload.change`.
pub fn change(value: &[u8]) -> Option<&[u8]> {
    const BEFORE: &[u8] = br#","change":"#;
    const BEHIND: &[u8] = br#"},"metadata":{"schemaVersion""#;
    let find = |wanted: &[u8]| value.windows(wanted.len()).rposition(|window| window == wanted);
    value.get(find(BEFORE)? + BEFORE.len()..find(BEHIND)?)
}

fn template(value: Vec<u8>, uid: &str, expected: &Expected) -> Result<Template> {
    let text = String::from_utf8(value)?;
    ensure!(uid.len() == UID_BYTES, "ticket {uid:?} is not {UID_BYTES} bytes long");
    let id = event_id(&text)?;
    let member = r#""timestamp":""#;
    let timestamp_at = text.find(member).context("an event has a timestamp")? + member.len();
    ensure!(
        text.get(timestamp_at + TIMESTAMP_BYTES..).is_some_and(|rest| rest.starts_with('"')),
        "a timestamp is not {TIMESTAMP_BYTES} bytes long"
    );
    let uids_at = text.match_indices(uid).map(|(at, _)| at).collect();
    let forwarded_to = expected.forwarded_to.get(&id).context("an event is forwarded")?.clone();
    let derived = expected.derived.get(&id).map_or_else(Vec::new, |derived| {
        derived
            .iter()
            .map(|derived| Derived { topic: derived.topic.clone(), change: derived.change.clone() })
            .collect()
    });
    Ok(Template { value: text.into_bytes(), timestamp_at, uids_at, forwarded_to, derived })
}

fn event_id(value: &str) -> Result<String> {
    let id = value.get(EVENT_ID_AT..EVENT_ID_AT + EVENT_ID_BYTES);
    Ok(id.with_context(|| format!("{value:.80} does not begin with an event id"))?.to_owned())
}

fn means(tickets: &[Vec<Template>], expected: &Expected) -> Means {
    let events = tickets.iter().flatten();
    let count = events.clone().count().max(1) as f64;
    let derived = events.clone().map(|event| event.derived.len()).sum::<usize>() as f64;
    Means {
        raw_bytes: events.map(|event| event.value.len()).sum::<usize>() as f64 / count,
        derived_per_event: derived / count,
        derived_bytes: expected.derived_bytes as f64 / expected.derived_count.max(1) as f64,
        header_bytes: expected.header_bytes as f64 / expected.records.max(1) as f64,
    }
}

fn lines(path: &Path) -> Result<impl Iterator<Item = Result<String>> + use<>> {
    let file = File::open(path).with_context(|| format!("open {path:?}"))?;
    let mut decoder = zstd::Decoder::new(file).with_context(|| format!("read {path:?}"))?;
    decoder.window_log_max(27)?;
    Ok(BufReader::new(decoder).lines().map(|line| Ok(line?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_event_is_whole_and_all_places_in_it_have_moved() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
        let plain = Histories::read(&data).unwrap();
        let padded = Histories::read(&data).unwrap().padded(1_000);
        for (plain, padded) in plain.all.iter().flatten().zip(padded.all.iter().flatten()) {
            let [text, longer] = [plain, padded].map(|one| std::str::from_utf8(&one.value).unwrap());
            let ticket = serde_json::from_str::<Value>(longer).unwrap()["payload"]["ticket"].take();
            assert_eq!(ticket["attachment"].as_str().map(str::len), Some(1_000));
            let [uids, moved] = [(text, plain), (longer, padded)].map(|(text, one)| {
                one.uids_at.iter().map(|at| &text[*at..at + UID_BYTES]).collect::<Vec<_>>()
            });
            assert_eq!(uids, moved);
            let timestamp = |text: &str, at: usize| text[at..at + TIMESTAMP_BYTES].to_owned();
            assert_eq!(timestamp(text, plain.timestamp_at), timestamp(longer, padded.timestamp_at));
        }
    }
}
