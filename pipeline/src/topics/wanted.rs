//! What the topics must be like, as data.
//!
//! It does not know what topics there are: it is told what the raw topic is
//! like, for the others are measured by it.

use std::collections::HashSet;

use crate::topology::{KAFKA_RECORD_BYTES_MAX, KeyedBy, Topology};

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Raw ticket events come from here. It is others' where it exists: we only make it, and never alter it.
    Raw,
    /// Raw records with the ticket uid as their key, on their way to the pipeline.
    Rekeyed,
    /// The events of one type (or of a type and its alias), forwarded and derived.
    Events,
    /// Copies of late records.
    Late,
    /// Records that cannot be used.
    DeadLetter,
    /// What a store can be rebuilt from.
    Changelog,
    /// Processed event ids and input positions.
    Ids,
}

impl Role {
    /// The role in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Raw => "raw",
            Role::Rekeyed => "re-keyed",
            Role::Events => "events",
            Role::Late => "late",
            Role::DeadLetter => "dead letter",
            Role::Changelog => "changelog",
            Role::Ids => "ids",
        }
    }
}

/// What one topic must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// How many partitions it has.
    pub partitions: i32,
    /// Its settings, by Kafka's own names.
    pub settings: Vec<Setting>,
}

/// What one setting of a topic must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Kafka's name of it.
    pub name: &'static str,
    /// What it must be.
    pub must: Must,
}

/// What a setting must be, and which other values break the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Must {
    /// Exactly this; anything else breaks the contract.
    Be(&'static str),
    /// At least `wanted`; what is below `broken_below` breaks the contract.
    Reach {
        /// What a new topic gets.
        wanted: i64,
        /// Below this the pipeline would sooner or later stand still.
        broken_below: i64,
    },
    /// Exactly this limit of time or bytes, -1 being none. A smaller one breaks
    /// the contract where it `loses` records; a greater one does not.
    Keep {
        /// What a new topic gets.
        limit: i64,
        /// Whether a smaller limit deletes what must be kept.
        loses: bool,
    },
}

impl Must {
    /// The value that a new topic gets.
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Must::Be(value) => (*value).to_owned(),
            Must::Reach { wanted, .. } => wanted.to_string(),
            Must::Keep { limit, .. } => limit.to_string(),
        }
    }
}

/// What is known of the raw topic, by which the others are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawTopic {
    /// How many partitions it has.
    pub partitions: i32,
    /// Its `max.message.bytes`.
    pub record_bytes_max: i64,
    /// Its `retention.ms`.
    pub retention_ms: i64,
}

impl RawTopic {
    /// The raw topic that is made where there is none.
    #[must_use]
    pub fn to_be_made(topology: &Topology) -> RawTopic {
        RawTopic {
            partitions: topology.source.partitions,
            record_bytes_max: KAFKA_RECORD_BYTES_MAX.into(),
            retention_ms: topology.topic_settings.retention_ms,
        }
    }
}

/// How much longer than the raw record a dead letter may be, for the headers
/// that it gets; a re-keyed record has its ticket uid besides.
const HEADROOM_BYTES: i64 = 65_536;

/// Room for the largest commit record, of about 1 MiB, twice over.
const IDS_RECORD_BYTES_MAX: i64 = 2_097_152;

/// One topic after the other, in the order in which records flow through them.
#[must_use]
pub fn wanted(topology: &Topology, raw: RawTopic) -> Vec<Wanted> {
    let retention_ms = topology.topic_settings.retention_ms;
    let topic = |name: &str, role, settings| Wanted {
        name: name.to_owned(),
        role,
        partitions: raw.partitions,
        settings,
    };
    let mut all = vec![topic(
        &topology.source.topic,
        Role::Raw,
        deleting(retention_ms, false, at_least(raw.record_bytes_max)),
    )];
    let dead_letter_bytes_max = raw.record_bytes_max.saturating_add(HEADROOM_BYTES);
    if topology.source.keyed_by == KeyedBy::Nothing {
        // The ticket uid comes out of the value, and may be nearly as long.
        let bytes = raw.record_bytes_max.saturating_add(dead_letter_bytes_max);
        let settings = deleting(raw.retention_ms, true, at_least(bytes));
        all.push(topic(&topology.rekeyed_topic, Role::Rekeyed, settings));
    }
    let mut seen = HashSet::new();
    // An alias shares the topic of its original.
    for event_type in topology.event_types.iter().filter(|event_type| seen.insert(&event_type.topic)) {
        let settings = deleting(retention_ms, true, event_bytes(topology, raw));
        all.push(topic(&event_type.topic, Role::Events, settings));
    }
    let late = deleting(retention_ms, true, event_bytes(topology, raw));
    all.push(topic(&topology.late_topic, Role::Late, late));
    let dead_letter = deleting(retention_ms, true, at_least(dead_letter_bytes_max));
    all.push(topic(&topology.dead_letter_topic, Role::DeadLetter, dead_letter));
    let changelog = changelog(at_least(changelog_bytes(topology, raw)));
    all.push(topic(&topology.changelog_topic, Role::Changelog, changelog));
    all.push(topic(&topology.ids_topic, Role::Ids, deleting(-1, true, at_least(IDS_RECORD_BYTES_MAX))));
    all
}

fn at_least(bytes: i64) -> Must {
    Must::Reach { wanted: bytes, broken_below: bytes }
}

/// An entry has its limit, and the broker measures it with what frames it.
fn changelog_bytes(topology: &Topology, raw: RawTopic) -> i64 {
    let entry_bytes_max = bytes(topology.limits.entry_bytes_max);
    raw.record_bytes_max.saturating_mul(4).max(entry_bytes_max.saturating_add(HEADROOM_BYTES))
}

/// Only a raw record of odd headers comes near the most that a record may be, so
/// a topic with Kafka's default still serves; not one below it: librdkafka fills
/// its batches to 1,000,000 bytes whatever the topic says, and the broker
/// measures batches.
fn event_bytes(topology: &Topology, raw: RawTopic) -> Must {
    let (value_bytes_max, kafkas) = (bytes(topology.limits.record_bytes_max), KAFKA_RECORD_BYTES_MAX.into());
    let beyond_kafkas = raw.record_bytes_max.saturating_sub(kafkas).max(0);
    Must::Reach {
        wanted: bytes(topology.limits.event_bytes_max()).saturating_add(beyond_kafkas),
        broken_below: kafkas.max(value_bytes_max.saturating_add(HEADROOM_BYTES)),
    }
}

fn bytes(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A topic that keeps every record for so long.
fn deleting(retention_ms: i64, loses: bool, record_bytes: Must) -> Vec<Setting> {
    let mut settings = vec![
        Setting { name: "cleanup.policy", must: Must::Be("delete") },
        Setting { name: "retention.ms", must: Must::Keep { limit: retention_ms, loses } },
        Setting { name: "retention.bytes", must: Must::Keep { limit: -1, loses } },
    ];
    settings.extend(timestamps_and_size(record_bytes));
    settings
}

/// A topic that keeps the last record of each key. Compaction deletes nothing
/// by age or size, so that those limits are only put right.
fn changelog(record_bytes: Must) -> Vec<Setting> {
    let mut settings = vec![
        Setting { name: "cleanup.policy", must: Must::Be("compact") },
        Setting { name: "retention.ms", must: Must::Keep { limit: -1, loses: false } },
        Setting { name: "retention.bytes", must: Must::Keep { limit: -1, loses: false } },
    ];
    settings.extend(timestamps_and_size(record_bytes));
    settings
}

/// Records carry the timestamps of their sources, however far from the
/// broker's clock those are; a broker that refuses one stops the pipeline.
fn timestamps_and_size(record_bytes: Must) -> [Setting; 4] {
    [
        Setting { name: "message.timestamp.type", must: Must::Be("CreateTime") },
        Setting { name: "message.timestamp.before.max.ms", must: at_least(i64::MAX) },
        Setting { name: "message.timestamp.after.max.ms", must: at_least(i64::MAX) },
        Setting { name: "max.message.bytes", must: record_bytes },
    ]
}
