//! `watch`: one readable line for each derived event, live.
//!
//! A reader beside the pipeline: it belongs to no group and commits nothing.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use ticket_pipeline::clients::{self, Sight};
use ticket_pipeline::topics;
use ticket_pipeline::topology::{RuleEvents, Topology};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_millis(200);
/// A partition that is not reached by then is not waited for.
const REACH_TIME_MAX: Duration = Duration::from_secs(30);
/// A number from here on is milliseconds since the epoch, else seconds.
const MILLISECONDS_FROM: f64 = 100_000_000_000.0;
/// The longest value that is shown whole, in characters.
const VALUE_CHARACTERS_MAX: usize = 60;

/// The arguments of `watch`.
#[derive(Debug, Args)]
#[command(after_help = "A line is the event's time, the ticket and what changed:
  2016-02-29T05:30:00Z  INC0000047    status         New -> Active
Only what is committed is shown. Events that the platform published itself are marked native.
Order is kept for each ticket. NO_COLOR turns colours off, as does a pipe.

Examples:
  ticket-pipeline watch
  ticket-pipeline watch --from beginning --until-idle 5s
  ticket-pipeline watch --type ticket:status:changed --type ticket:assigned | grep INC0000047")]
pub(crate) struct Arguments {
    /// Where to begin: with what comes from now on, or with all that the topics hold.
    #[arg(long, value_enum, default_value_t = From::Now)]
    from: From,
    /// Stop, with exit code 0, after so long without a new event: `5s`, `500ms`, `2m`.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    until_idle: Option<Duration>,
    /// Only events of this type; may be given again. Without it, all types that a rule derives.
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    types: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    Beginning,
    Now,
}

fn duration(text: &str) -> Result<Duration> {
    let duration: SignedDuration = text.parse().context("a duration is a number and its unit, as in 5s")?;
    ensure!(duration.is_positive(), "a duration must be greater than 0");
    Ok(duration.unsigned_abs())
}

/// Runs `watch`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let topology = Topology::load(topology)?;
    let topics = watched(&topology, &arguments.types)?;
    let reader = clients::reader(&topology.kafka)?;
    let partitions = assign(&reader, &topology, &topics, arguments.from)?;
    let from = if arguments.from == From::Now { "now" } else { "the beginning" };
    eprintln!("watching {} topics ({partitions} partitions) from {from}; Ctrl-C ends it", topics.len());
    let sight = Sight::new(&clients::base(&topology.kafka));
    match follow(&reader, sight, partitions, arguments) {
        // Whoever read the lines has seen enough: `watch | head`.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

/// The topics to read, each with the event types that it carries.
fn watched<'a>(topology: &'a Topology, types: &[String]) -> Result<BTreeMap<&'a str, Vec<&'a str>>> {
    let mut topics: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    if types.is_empty() {
        let derived = topology.rules.iter().flat_map(|rule| match rule.events {
            RuleEvents::One(index) => [Some(index), None, None],
            RuleEvents::OnOff { on, off } => [on, off, None],
            RuleEvents::AddedRemovedChanged { added, removed, changed } => [added, removed, changed],
        });
        for event_type in derived.flatten().filter_map(|index| topology.event_types.get(index)) {
            topics.entry(&event_type.topic).or_default().push(&event_type.name);
        }
    }
    for name in types {
        let Some(event_type) = topology.event_types.iter().find(|event_type| event_type.name == *name) else {
            bail!("the topology has no event type {name:?}; `ticket-pipeline topics plan` lists the topics");
        };
        topics.entry(&event_type.topic).or_default().push(&event_type.name);
    }
    ensure!(!topics.is_empty(), "no rule of the topology derives anything; name an event type by --type");
    Ok(topics)
}

/// Assigns all partitions of the topics, and says how many there are.
fn assign(
    reader: &BaseConsumer,
    topology: &Topology,
    topics: &BTreeMap<&str, Vec<&str>>,
    from: From,
) -> Result<usize> {
    let metadata = reader
        .fetch_metadata(None, ANSWER_TIMEOUT)
        .map_err(|error| topics::no_answer(&topology.kafka, &error))?;
    let mut assignment = TopicPartitionList::new();
    for name in topics.keys() {
        let found = metadata.topics().iter().find(|topic| topic.name() == *name);
        let found = found.filter(|topic| !topic.partitions().is_empty());
        let found = found.ok_or_else(|| {
            anyhow!("topic {name} does not exist; run `ticket-pipeline topics apply` first")
        })?;
        for partition in found.partitions() {
            let offset = match from {
                From::Beginning => Offset::Beginning,
                // Asked for here and not left to the client: whatever comes after the first word to the
                // person is shown.
                From::Now => Offset::Offset(topics::bounds(reader, name, partition.id())?.1),
            };
            assignment.add_partition_offset(name, partition.id(), offset)?;
        }
    }
    reader.assign(&assignment).context("read the derived topics")?;
    Ok(assignment.count())
}

/// Prints events until nothing has come for as long as asked.
fn follow(reader: &BaseConsumer, mut sight: Sight, partitions: usize, arguments: &Arguments) -> Result<()> {
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let mut out = io::stdout().lock();
    let started = Instant::now();
    let mut last = started;
    let mut ends_reached = 0;
    let mut noted = None;
    let mut counts = (0_u64, 0_u64);
    loop {
        // Nothing is idle that was not reached yet.
        let settled = ends_reached >= partitions || started.elapsed() > REACH_TIME_MAX;
        let idle = arguments.until_idle.filter(|_| settled);
        let left = idle.map(|idle| idle.saturating_sub(last.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        match reader.poll(left.map_or(POLL_TIMEOUT, |left| left.min(POLL_TIMEOUT))) {
            None => {
                sight.keep(reader.client());
            }
            Some(Ok(record)) => {
                noted = None;
                let seen = describe(record.payload().unwrap_or_default());
                if !is_asked_for(&seen, &arguments.types) {
                    continue;
                }
                last = Instant::now();
                counts.0 += u64::from(seen.derived);
                counts.1 += u64::from(!seen.derived);
                writeln!(out, "{}", line(&record, &seen, colours))?;
            }
            // The end is told without its topic, so ends are counted. One that is told
            // again has had an event since, and with it a new idle time.
            Some(Err(KafkaError::PartitionEOF(_))) => {
                ends_reached += 1;
                if ends_reached == partitions {
                    last = Instant::now();
                }
            }
            // No group is joined, so there is none to be allowed.
            Some(Err(error))
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {}
            Some(Err(error)) if is_final(&error) => return Err(error).context("read the derived topics"),
            Some(Err(error)) => {
                // librdkafka connects again by itself, and repeats itself until then.
                let note = error.to_string();
                if noted.as_ref() != Some(&note) {
                    eprintln!("{note}; reading on");
                    noted = Some(note);
                }
            }
        }
    }
    out.flush()?;
    eprintln!("{} derived and {} native events", counts.0, counts.1);
    Ok(())
}

/// An error that no waiting mends.
fn is_final(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        use RDKafkaErrorCode::{
            Authentication, ClusterAuthorizationFailed, Fatal, SaslAuthenticationFailed,
            TopicAuthorizationFailed,
        };
        matches!(
            code,
            Authentication
                | ClusterAuthorizationFailed
                | Fatal
                | SaslAuthenticationFailed
                | TopicAuthorizationFailed
        )
    })
}

/// A topic may carry an alias's events beside those of the type that was asked for.
fn is_asked_for(seen: &Seen, types: &[String]) -> bool {
    types.is_empty() || seen.event_type.as_ref().is_none_or(|event_type| types.contains(event_type))
}

fn line(record: &BorrowedMessage<'_>, seen: &Seen, colours: bool) -> String {
    let ticket = record.key().map(String::from_utf8_lossy).unwrap_or_default();
    let time = seen.time.clone().or_else(|| {
        let timestamp_ms = record.timestamp().to_millis()?;
        Timestamp::from_millisecond(timestamp_ms).ok().map(|time| time.to_string())
    });
    let paint = |code: &str, text: &str| {
        if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    };
    // Padded before it is painted: colours have no width.
    let time = format!("{:<20}", time.unwrap_or_default());
    let ticket = format!("{:<12}", printable(&ticket));
    let subject = format!("{:<13}", seen.subject);
    format!(
        "{}  {}  {}  {}",
        paint("2", &time),
        paint("1", &ticket),
        paint(if seen.derived { "36" } else { "33" }, &subject),
        seen.change
    )
    .trim_end()
    .to_owned()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What is shown of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// Its type; `None` where the bytes are no event.
    event_type: Option<String>,
    /// When it happened; `None` where it does not say.
    time: Option<String>,
    /// Derived by the pipeline, and not published by the platform itself.
    derived: bool,
    /// The field that changed.
    subject: String,
    /// From what to what.
    change: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "eventType")]
    event_type: String,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata {
    origin: String,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    change: Change<'a>,
}

/// Values stay bytes: a number may be greater than any type of ours.
#[derive(Deserialize)]
struct Change<'a> {
    field: String,
    key: Option<String>,
    name: Option<String>,
    #[serde(default, borrow, deserialize_with = "null_too")]
    from: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "null_too")]
    to: Option<&'a RawValue>,
    added: Option<Vec<String>>,
    removed: Option<Vec<String>>,
}

/// A null that is there is told from a member that is not.
fn null_too<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    id: String,
    name: Option<String>,
    #[serde(rename = "email")]
    _email: Option<String>,
}

/// An event's bytes in words.
fn describe(value: &[u8]) -> Seen {
    let Ok(event) = serde_json::from_slice::<Event<'_>>(value) else {
        let change = "(cannot be shown)".to_owned();
        return Seen { event_type: None, time: None, derived: false, subject: "native".to_owned(), change };
    };
    let origin = event.metadata.and_then(|metadata| serde_json::from_str::<Metadata>(metadata.get()).ok());
    let payload = serde_json::from_str::<Payload<'_>>(event.payload.get()).ok();
    let derived = origin.is_some_and(|metadata| metadata.origin == "derived");
    let (subject, change) = match payload.filter(|_| derived) {
        Some(payload) => in_words(&payload.change),
        None => ("native".to_owned(), printable(&event.event_type)),
    };
    let time = event.timestamp.map(|timestamp| time(timestamp.get()));
    Seen { event_type: Some(event.event_type), time, derived, subject, change }
}

/// The field, and what it did.
fn in_words(change: &Change<'_>) -> (String, String) {
    let field = match change.field.as_str() {
        "customField" => "custom field".to_owned(),
        field => printable(field),
    };
    if change.added.is_some() || change.removed.is_some() {
        let signed = |sign: char, identities: &Option<Vec<String>>| -> Vec<String> {
            identities.iter().flatten().map(|identity| format!("{sign}{}", printable(identity))).collect()
        };
        return (field, [signed('+', &change.added), signed('-', &change.removed)].concat().join(" "));
    }
    let words = match (change.from, change.to) {
        (Some(from), Some(to)) => references(from, to).unwrap_or_else(|| {
            let [from, to] = [from, to].map(value);
            format!("{from} -> {to}")
        }),
        (None, Some(to)) => format!("added {}", value(to)),
        (Some(from), None) => format!("removed {}", value(from)),
        (None, None) => String::new(),
    };
    match &change.key {
        // The name is for people; where it is empty the key must do.
        Some(key) => {
            let name = change.name.as_ref().filter(|name| !name.is_empty()).unwrap_or(key);
            (field, format!("{}: {words}", printable(name)))
        }
        None => (field, words),
    }
}

/// Names of what is referred to; identities, too, where the names are the
/// same. `None` where a side is no reference.
fn references(from: &RawValue, to: &RawValue) -> Option<String> {
    let [from, to] = [from, to].map(|side| serde_json::from_str::<Option<Reference>>(side.get()));
    let (from, to) = (from.ok()?, to.ok()?);
    let name = |reference: &Reference| reference.name.clone().unwrap_or_else(|| reference.id.clone());
    let alike = match (&from, &to) {
        (None, None) => return None,
        (Some(from), Some(to)) => name(from) == name(to),
        _ => false,
    };
    let show = |side: Option<Reference>| match side {
        None => "none".to_owned(),
        Some(reference) if alike => printable(&format!("{} ({})", name(&reference), reference.id)),
        Some(reference) => printable(&name(&reference)),
    };
    Some(format!("{} -> {}", show(from), show(to)))
}

/// A JSON value; strings without the escapes that they need not have.
fn value(json: &RawValue) -> String {
    let text = serde_json::from_str::<String>(json.get()).ok();
    printable(&text.map_or_else(|| json.get().to_owned(), |text| format!("{text:?}")))
}

/// A timestamp as UTC to the second, where it can be read; else as it came.
fn time(json: &str) -> String {
    let text = serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_owned());
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        // Read as floating point: to the second that is exact enough for the eye.
        let number = text.parse::<f64>().ok()?;
        let seconds = if number < MILLISECONDS_FROM { number } else { number / 1000.0 };
        Timestamp::from_second(seconds.floor() as i64).ok()
    });
    time.map_or_else(|| printable(&text), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// One line of bounded length that cannot steer a terminal.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == VALUE_CHARACTERS_MAX {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(change: &str) -> String {
        format!(
            r#"{{"eventId":"e","eventType":"t","timestamp":"2026-01-05T06:36:12.726+05:30","payload":{{"ticket":{{}},
                "change":{change}}},"metadata":{{"schemaVersion":"1","origin":"derived"}}}}"#
        )
    }

    /// `subject change` of a derived event.
    fn words(change: &str) -> String {
        let seen = describe(derived(change).as_bytes());
        assert!(seen.derived);
        format!("{} {}", seen.subject, seen.change)
    }

    #[test]
    fn each_kind_of_change_has_its_words() {
        for (change, expected) in [
            (
                r#"{"field":"status","from":{"id":"o","name":"Open"},"to":{"id":"closed"}}"#,
                "status Open -> closed",
            ),
            (
                r#"{"field":"assignedAgent","from":null,"to":{"id":"7","name":"Bo","email":"b@x"}}"#,
                "assignedAgent none -> Bo",
            ),
            (r#"{"field":"status","from":{"id":"o","name":"Open"},"to":null}"#, "status Open -> none"),
            (
                r#"{"field":"priority","from":{"id":"1","name":"P"},"to":{"id":"2","name":"P"}}"#,
                "priority P (1) -> P (2)",
            ),
            (r#"{"field":"isEscalated","from":false,"to":true}"#, "isEscalated false -> true"),
            (
                r#"{"field":"customField","key":"k","name":"Prio","from":"a","to":-1.5}"#,
                r#"custom field Prio: "a" -> -1.5"#,
            ),
            (r#"{"field":"customField","key":"k","to":1e999}"#, "custom field k: added 1e999"),
            (r#"{"field":"slaPolicy","key":"k","name":"","from":60}"#, "slaPolicy k: removed 60"),
            (r#"{"field":"tags","added":["x","z"],"removed":["y"]}"#, "tags +x +z -y"),
            (r#"{"field":"dueDate","from":null,"to":"2026-02-01"}"#, r#"dueDate null -> "2026-02-01""#),
            (r#"{"field":"x","from":{"id":"1","a":1},"to":null}"#, r#"x {"id":"1","a":1} -> null"#),
        ] {
            assert_eq!(words(change), expected);
        }
    }

    #[test]
    fn a_native_event_is_marked_and_nothing_is_made_of_its_payload() {
        let native =
            r#"{"eventType":"ticket:assigned","timestamp":1767574147.5,"payload":{"change":{"field":"x"}}}"#;
        let seen = describe(native.as_bytes());
        assert!(!seen.derived);
        assert_eq!((seen.subject.as_str(), seen.change.as_str()), ("native", "ticket:assigned"));
        assert_eq!(seen.time.as_deref(), Some("2026-01-05T00:49:07Z"));
    }

    #[test]
    fn bytes_that_are_no_event_are_shown_as_such() {
        for bytes in [&b""[..], b"\xff", b"[]", br#"{"eventType":1,"payload":{}}"#] {
            assert_eq!(describe(bytes).event_type, None);
        }
    }

    #[test]
    fn times_are_shown_in_utc() {
        let seen = describe(derived(r#"{"field":"x"}"#).as_bytes());
        assert_eq!(seen.time.as_deref(), Some("2026-01-05T01:06:12Z"));
        assert_eq!(time("1767574933454"), "2026-01-05T01:02:13Z");
        assert_eq!(time("\"1.7675749330e9\""), "2026-01-05T01:02:13Z");
        assert_eq!(time("\"yesterday\""), "yesterday");
    }

    #[test]
    fn a_value_cannot_steer_the_terminal_nor_fill_it() {
        assert_eq!(printable("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(printable(&"é".repeat(100)).chars().count(), VALUE_CHARACTERS_MAX + 1);
    }

    #[test]
    fn durations_are_a_number_and_its_unit() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        for bad in ["5", "0s", "-1s", "soon", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
