//! Findings in words: which record, where, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt;

use super::compare::Fault;
use super::found::Whole;
use super::state::StateReport;

/// So many bytes are shown where two values differ.
const EXCERPT_BYTES: usize = 48;
/// So many differences of a record are named.
const DIFFERENCES_MAX: usize = 6;

/// One fault, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What is wrong.
    pub fault: Fault,
    /// The output topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The record's offset there; `None` where it is missing.
    pub offset: Option<i64>,
    /// Its event id; a dead letter may have none.
    pub event_id: Option<String>,
    /// The raw record that it comes from, where that is known, in words.
    pub source: Option<String>,
    /// Why it is a fault.
    pub reason: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.fault.as_str(), self.topic, self.partition)?;
        if let Some(offset) = self.offset {
            write!(f, " offset {offset}")?;
        }
        write!(f, ", event {}", self.event_id.as_deref().unwrap_or("without an id"))?;
        if let Some(source) = &self.source {
            write!(f, " (of {source})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What an audit came to.
#[derive(Debug, Default)]
pub struct Report {
    /// The first faults.
    pub lines: Vec<Line>,
    /// How many there are of each kind.
    pub counts: BTreeMap<Fault, u64>,
    /// Raw records that were read.
    pub raw_records: u64,
    /// Output records that were read, and those that are as they must be, by topic.
    pub checked: BTreeMap<String, (u64, u64)>,
    /// What a reader of the result must know.
    pub notes: Vec<String>,
    /// The comparison of states, where it was asked for.
    pub state: Option<StateReport>,
}

impl Report {
    /// Whether everything is as it must be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.faults() == 0
    }

    /// How many faults there are.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.state.as_ref().map_or(0, |state| state.faults)
    }
}

impl Whole {
    /// The event id, from the headers.
    pub(super) fn event_id(&self) -> Option<String> {
        let value = |wanted: &[u8]| {
            let (_, value) = self.headers.iter().rev().find(|(name, _)| name == wanted)?;
            value.as_deref().map(|value| String::from_utf8_lossy(value).into_owned())
        };
        value(b"event_id")
    }
}

/// In what a record differs from what it must be.
pub(super) fn differences(expected: &Whole, found: &Whole) -> String {
    let mut all = Vec::new();
    if expected.topic != found.topic {
        all.push(format!("it must be in {}", expected.topic));
    }
    if expected.partition != found.partition {
        all.push(format!("it must be in partition {}", expected.partition));
    }
    if expected.key != found.key {
        all.push(format!("its key is {} and must be {}", shown(&found.key), shown(&expected.key)));
    }
    let expected_ms = if expected.timestamp_ms == 0 { 1 } else { expected.timestamp_ms };
    if expected_ms != found.timestamp_ms {
        all.push(format!("its timestamp is {} and must be {expected_ms}", found.timestamp_ms));
    }
    if expected.value != found.value {
        all.push(value_difference(expected.value.as_deref(), found.value.as_deref()));
    }
    if expected.headers.len() != found.headers.len() {
        all.push(format!("it has {} headers and must have {}", found.headers.len(), expected.headers.len()));
    }
    for ((name, value), (found_name, found_value)) in expected.headers.iter().zip(&found.headers) {
        let is_text_for_people = name == b"__streams.errors.message" && found_value.is_some();
        if name != found_name {
            all.push(format!(
                "header \"{}\" stands where \"{}\" must",
                found_name.escape_ascii(),
                name.escape_ascii()
            ));
            break;
        }
        if value != found_value && !is_text_for_people {
            let name = name.escape_ascii();
            all.push(format!("header \"{name}\" is {} and must be {}", shown(found_value), shown(value)));
        }
    }
    all.truncate(DIFFERENCES_MAX);
    all.join("; ")
}

fn value_difference(expected: Option<&[u8]>, found: Option<&[u8]>) -> String {
    let (Some(expected), Some(found)) = (expected, found) else {
        return format!("its value is {} and must be {}", length(found), length(expected));
    };
    let at = expected.iter().zip(found).position(|(one, other)| one != other);
    let at = at.unwrap_or(expected.len().min(found.len()));
    let excerpt = |bytes: &[u8]| {
        let rest = bytes.get(at..).unwrap_or_default();
        rest.get(..EXCERPT_BYTES.min(rest.len())).unwrap_or_default().escape_ascii().to_string()
    };
    format!(
        "its value of {} bytes, which must be {}, differs from byte {at} on: `{}` and must be `{}`",
        found.len(),
        expected.len(),
        excerpt(found),
        excerpt(expected)
    )
}

fn length(value: Option<&[u8]>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| format!("{} bytes", value.len()))
}

fn shown(bytes: &Option<Vec<u8>>) -> String {
    let Some(bytes) = bytes else { return "null".to_owned() };
    let head = bytes.get(..EXCERPT_BYTES.min(bytes.len())).unwrap_or_default();
    let more = if head.len() < bytes.len() { "…" } else { "" };
    format!("\"{}{more}\"", head.escape_ascii())
}
