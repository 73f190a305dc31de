//! The tree of a file to a topology, or every reason why not.
//!
//! Knows each section's settings, their bounds and what must hold between them;
//! how a file is read, and what rules and Kafka's properties are, it does not.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::event_types::{EventTypes, TOPIC_NAME, is_topic_name};
use super::kafka::read_kafka;
use super::mistakes::{Mistakes, shown};
use super::rules::read_rules;
use super::section::{Section, duration_ms, number};
use super::yaml::Node;
use super::{
    Http, KeyedBy, Limits, NativeSpecifics, Ordering, Policies, Runtime, Source, State, TopicSettings,
    Topology,
};

const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 3600 * SECOND_MS;
const MIB: u64 = 1 << 20;
/// Less is not kept: the process itself and the buffers of two workers take over 100 (`scripts/bench bounds`).
const MEMORY_MB_MIN: u64 = 256;

/// The topology that a document over the defaults is; `None` where a mistake has
/// been noted, and it may be worthless where one has.
///
/// Everything is looked at before the first `None` gives up, so that all
/// mistakes are told at once.
pub(super) fn validate(
    document: Option<&Node>,
    defaults: Option<&Node>,
    mistakes: &mut Mistakes,
) -> Option<Topology> {
    let root = Section::root(document, defaults, mistakes);
    let group = read_group(&root, mistakes);
    let source = root.section("source", mistakes);
    let outputs = root.section("outputs", mistakes);
    let source_topic = topic(&source, "topic", mistakes);
    let late_topic = topic(&outputs, "late", mistakes);
    let dead_letter_topic = topic(&outputs, "dead_letter", mistakes);
    let mut event_types = EventTypes::native(outputs.free_map("events", mistakes), mistakes);
    let rules = read_rules(&root, &mut event_types, mistakes);

    let internal = |purpose: &str| group.as_ref().map(|group| format!("{group}-{purpose}"));
    let (changelog_topic, ids_topic, rekeyed_topic) =
        (internal("changelog"), internal("ids"), internal("rekeyed"));
    let group_line = root.line("group");
    let mut topics: Vec<(String, String, usize)> = [
        (&source_topic, "the raw topic", source.line("topic")),
        (&late_topic, "late records", outputs.line("late")),
        (&dead_letter_topic, "dead letters", outputs.line("dead_letter")),
        (&changelog_topic, "the changelog", group_line),
        (&ids_topic, "the event ids", group_line),
        (&rekeyed_topic, "re-keyed records", group_line),
    ]
    .into_iter()
    .filter_map(|(topic, purpose, line)| Some((topic.clone()?, purpose.to_owned(), line)))
    .collect();
    topics.extend(event_types.topics());
    note_shared_topics(&topics, mistakes);

    let source = read_source(&source, source_topic, mistakes);
    let topic_settings = read_topic_settings(&root.section("topics", mistakes), mistakes);
    let policies = read_policies(&root.section("policies", mistakes), mistakes);
    let state = read_state(&root.section("state", mistakes), mistakes);
    let runtime = read_runtime(&root.section("runtime", mistakes), mistakes);
    let limits = read_limits(&root.section("limits", mistakes), mistakes);
    let http = read_http(&root.section("http", mistakes), mistakes);
    let commit_interval_ms = runtime.as_ref().map(|runtime| runtime.commit_interval_ms);
    let kafka = read_kafka(&root.section("kafka", mistakes), commit_interval_ms, mistakes);

    let event_types = event_types.into_types();
    let indexes = event_types.iter().enumerate().map(|(index, event_type)| (event_type.name.clone(), index));
    Some(Topology {
        group: group?,
        source: source?,
        late_topic: late_topic?,
        dead_letter_topic: dead_letter_topic?,
        changelog_topic: changelog_topic?,
        ids_topic: ids_topic?,
        rekeyed_topic: rekeyed_topic?,
        topic_settings: topic_settings?,
        event_type_indexes: indexes.collect(),
        event_types,
        rules,
        policies: policies?,
        state: state?,
        runtime: runtime?,
        limits: limits?,
        http: http?,
        kafka: kafka?,
    })
}

/// Room for `-changelog` and for what follows the group in transactional ids.
const GROUP_BYTES_MAX: usize = 200;

fn read_group(root: &Section<'_>, mistakes: &mut Mistakes) -> Option<String> {
    let remedy = "write 1 to 200 of the letters a-z A-Z, digits and . _ -, for topics begin with it";
    root.read("group", remedy, mistakes, |scalar| {
        let sound = is_topic_name(&scalar.text) && scalar.text.len() <= GROUP_BYTES_MAX;
        sound.then(|| scalar.text.clone())
    })
}

fn topic(section: &Section<'_>, key: &str, mistakes: &mut Mistakes) -> Option<String> {
    section.read(key, TOPIC_NAME, mistakes, |scalar| is_topic_name(&scalar.text).then(|| scalar.text.clone()))
}

/// Kafka's metrics hold `.` and `_` for one, so it refuses a topic whose name
/// differs from another's only in them.
fn note_shared_topics(topics: &[(String, String, usize)], mistakes: &mut Mistakes) {
    for (index, (topic, purpose, line)) in topics.iter().enumerate() {
        let metric = topic.replace('.', "_");
        let earlier = topics.iter().take(index).find(|(other, ..)| other.replace('.', "_") == metric);
        let Some((other, other_purpose, other_line)) = earlier else { continue };
        let what = if other == topic {
            format!("the topic {} is that of {other_purpose} and of {purpose}", shown(topic))
        } else {
            format!(
                "the topic {} of {purpose} and {} of {other_purpose} are one to Kafka",
                shown(topic),
                shown(other)
            )
        };
        // A default stands on no line: what the file says itself is what can be changed.
        mistakes.note(*line.max(other_line), what, "give each its own");
    }
}

fn read_source(section: &Section<'_>, topic: Option<String>, mistakes: &mut Mistakes) -> Option<Source> {
    const PARTITIONS_MAX: u64 = 10_000;
    let partitions = section.number("partitions", 1..=PARTITIONS_MAX, mistakes);
    let keyed_by = section.choice(
        "keyed_by",
        &[("ticket_uid", KeyedBy::TicketUid), ("nothing", KeyedBy::Nothing)],
        mistakes,
    );
    Some(Source { topic: topic?, partitions: i32::try_from(partitions?).ok()?, keyed_by: keyed_by? })
}

fn read_topic_settings(section: &Section<'_>, mistakes: &mut Mistakes) -> Option<TopicSettings> {
    let remedy = "write forever, or a whole number and a unit (ms, s, m, h, d), such as 30d";
    let retention_ms = section.read("retention", remedy, mistakes, |scalar| match scalar.text.as_str() {
        "forever" => Some(-1),
        text => duration_ms(text).filter(|ms| *ms > 0).and_then(|ms| i64::try_from(ms).ok()),
    });
    let remedy = "write default (the broker's), or a whole number from 1 to 32767, without quotes";
    let replication_factor =
        section.read("replication_factor", remedy, mistakes, |scalar| match scalar.text.as_str() {
            "default" => Some(-1),
            _ => number(scalar)
                .filter(|copies| (1..=32_767).contains(copies))
                .and_then(|copies| copies.try_into().ok()),
        });
    Some(TopicSettings { retention_ms: retention_ms?, replication_factor: replication_factor? })
}

fn read_policies(section: &Section<'_>, mistakes: &mut Mistakes) -> Option<Policies> {
    let ordering = section.choice(
        "ordering",
        &[("timestamp", Ordering::Timestamp), ("offset", Ordering::Offset)],
        mistakes,
    );
    let native_specifics = section.choice(
        "native_specifics",
        &[("once", NativeSpecifics::Once), ("both", NativeSpecifics::Both), ("drop", NativeSpecifics::Drop)],
        mistakes,
    );
    let dedupe_window_ms = section.duration_ms("dedupe_window", DAY_MS..=3650 * DAY_MS, mistakes);
    let cloudevents = section.flag("cloudevents", mistakes);
    Some(Policies {
        ordering: ordering?,
        native_specifics: native_specifics?,
        dedupe_window_ms: i64::try_from(dedupe_window_ms?).ok()?,
        cloudevents: cloudevents?,
    })
}

fn read_state(section: &Section<'_>, mistakes: &mut Mistakes) -> Option<State> {
    let dir = section.text("dir", "write the path of a directory", mistakes);
    let flush_records_max = section.number("flush_records", 1..=100_000_000, mistakes);
    let flush_interval_ms = section.duration_ms("flush_interval", 1..=DAY_MS, mistakes);
    Some(State {
        dir: PathBuf::from(dir?),
        flush_records_max: flush_records_max?,
        flush_interval_ms: flush_interval_ms?,
    })
}

fn read_runtime(section: &Section<'_>, mistakes: &mut Mistakes) -> Option<Runtime> {
    // A transaction must end well before the broker gives it up, after 10 s at the earliest.
    const COMMIT_INTERVAL_MS_MAX: u64 = 5 * SECOND_MS;
    const WORKERS_MAX: u64 = 1024;
    const INSTANCE_BYTES_MAX: usize = 200;
    let remedy = "write cores, or a whole number from 1 to 1024, without quotes";
    let workers = section.read("workers", remedy, mistakes, |scalar| match scalar.text.as_str() {
        "cores" => Some(None),
        _ => {
            let count = number(scalar).filter(|count| (1..=WORKERS_MAX).contains(count))?;
            Some(Some(usize::try_from(count).ok()?))
        }
    });
    let remedy = "write at most 200 of the letters a-z A-Z, digits and . _ -, or leave it empty";
    let instance = section.read("instance", remedy, mistakes, |scalar| match scalar.text.as_str() {
        "" => Some(None),
        name if is_topic_name(name) && name.len() <= INSTANCE_BYTES_MAX => Some(Some(name.to_owned())),
        _ => None,
    });
    let commit_interval_ms = section.duration_ms("commit_interval", 1..=COMMIT_INTERVAL_MS_MAX, mistakes);
    Some(Runtime { workers: workers?, instance: instance?, commit_interval_ms: commit_interval_ms? })
}

fn read_http(section: &Section<'_>, mistakes: &mut Mistakes) -> Option<Http> {
    let remedy = "write an address and a port, such as 127.0.0.1:9464 or 0.0.0.0:9464, or off";
    let listen = section.read("listen", remedy, mistakes, |scalar| match scalar.text.as_str() {
        "off" => Some(None),
        // A name could be several addresses; this one is not.
        text => text.replacen("localhost:", "127.0.0.1:", 1).parse::<SocketAddr>().ok().map(Some),
    });
    Some(Http { listen: listen? })
}

fn read_limits(section: &Section<'_>, mistakes: &mut Mistakes) -> Option<Limits> {
    let record_bytes_max = section.size_bytes("record_size_max", 1 << 10..=64 * MIB, mistakes);
    let emitted_bytes_max = section.size_bytes("emitted_size_max", MIB..=64 * 1024 * MIB, mistakes);
    let entry_bytes_max = section.size_bytes("entry_size_max", 64 << 10..=512 * MIB, mistakes);
    let batch_records_max = section.number("batch_records_max", 1..=1_000_000, mistakes);
    let batch_bytes_max = section.size_bytes("batch_size_max", 64 << 10..=1024 * MIB, mistakes);
    let memory_mb = section.number("memory_mb", MEMORY_MB_MIN..=1024 * 1024, mistakes);
    Some(Limits {
        record_bytes_max: usize::try_from(record_bytes_max?).ok()?,
        emitted_bytes_max: usize::try_from(emitted_bytes_max?).ok()?,
        entry_bytes_max: usize::try_from(entry_bytes_max?).ok()?,
        batch_records_max: usize::try_from(batch_records_max?).ok()?,
        batch_bytes_max: usize::try_from(batch_bytes_max?).ok()?,
        memory_mb: usize::try_from(memory_mb?).ok()?,
    })
}
