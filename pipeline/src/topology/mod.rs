//! `topology.yaml` as a value: what is read, what is derived and what is
//! written, validated before anything connects.
//!
//! Knows no broker, no record and no state: whether the topics are as the
//! topology says is for [`crate::topics`] to find out.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use kafka::{KAFKA_RECORD_BYTES_MAX, TRANSACTION_TIMEOUT_MS};
pub use mistakes::{Mistake, Mistakes};
pub use section::{written_duration, written_size};

mod environment;
mod event_types;
mod kafka;
mod mistakes;
mod properties;
mod rules;
mod section;
mod validate;
mod yaml;

/// Which topics feed which store, rules and outputs, and how.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The consumer group; the internal topics and transactional ids begin with it.
    pub group: String,
    /// Where raw ticket events come from.
    pub source: Source,
    /// Copies of late records go here.
    pub late_topic: String,
    /// Records that cannot be used go here.
    pub dead_letter_topic: String,
    /// The compacted topic from which a store can be rebuilt.
    pub changelog_topic: String,
    /// The log of processed event ids and input positions.
    pub ids_topic: String,
    /// Where raw records are re-keyed; used with [`KeyedBy::Nothing`] only.
    pub rekeyed_topic: String,
    /// Settings of the topics that we create.
    pub topic_settings: TopicSettings,
    /// Every event type with its topic: the contract's 25, the alias, then the
    /// types of user rules. Indexed by [`EventTypeIndex`].
    pub event_types: Vec<EventType>,
    /// What is derived, in the order of emission within one source event.
    pub rules: Vec<Rule>,
    /// What is late, what is a duplicate, what becomes of native specifics.
    pub policies: Policies,
    /// Where the stores live, and how they are kept.
    pub state: State,
    /// Threads, identity and pace.
    pub runtime: Runtime,
    /// A bound on everything that could grow.
    pub limits: Limits,
    /// The pages about the process.
    pub http: Http,
    /// How Kafka is reached.
    pub kafka: Kafka,
    /// The inverse of `event_types`.
    event_type_indexes: HashMap<String, EventTypeIndex>,
}

/// The raw topic.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, `ticket.raw` by default.
    pub topic: String,
    /// How many partitions it gets where it does not exist yet.
    pub partitions: i32,
    /// What its records' keys are.
    pub keyed_by: KeyedBy,
}

/// What the keys of the raw topic's records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyedBy {
    /// The ticket uid, partitioned by murmur2.
    TicketUid,
    /// Nothing that can be relied on: records are re-keyed first.
    Nothing,
}

/// Settings of the topics that we create.
#[derive(Debug, Clone)]
pub struct TopicSettings {
    /// `retention.ms`; -1 keeps records for ever.
    pub retention_ms: i64,
    /// -1 leaves it to the broker's default.
    pub replication_factor: i32,
}

/// An index into [`Topology::event_types`].
pub type EventTypeIndex = usize;

/// One event type and its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType {
    /// `ticket:status:changed`.
    pub name: String,
    /// `ticket.status.changed`; the alias has the topic of its original.
    pub topic: String,
    /// One of the contract's 25 types or the alias: raw records of it are
    /// forwarded. A user rule's type is not; as a raw record's it is unknown.
    pub native: bool,
}

/// What is tracked of a ticket, and the event types that say that it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// How the field is read and compared.
    pub kind: Kind,
    /// `change.field` of the derived event.
    pub field: String,
    /// Member names below the ticket, one path after another; the first that is
    /// present decides. Never empty, nor is a path or a member name of it.
    pub paths: Vec<Vec<String>>,
    /// A reference's `X.email` is read and written too.
    pub email: bool,
    /// The event types.
    pub events: RuleEvents,
    /// Names the field in the store: a digest of kind, paths and `email`, so that a
    /// renamed or moved rule finds its known values again. Two rules may share
    /// it only where kind and paths are the same.
    pub store_key: [u8; 4],
}

/// The kinds of field that a rule can track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something with an identity, and perhaps a name.
    Reference,
    /// A boolean.
    Flag,
    /// Any JSON value.
    Scalar,
    /// A set of identities.
    Set,
    /// A map of key to value; every key has changes of its own.
    Map,
}

/// Which event type a change becomes; a direction that is `None` derives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleEvents {
    /// Any kind: every change becomes this type.
    One(EventTypeIndex),
    /// Flags.
    OnOff {
        /// From false to true.
        on: Option<EventTypeIndex>,
        /// From true to false.
        off: Option<EventTypeIndex>,
    },
    /// Maps.
    AddedRemovedChanged {
        /// A value where there was none.
        added: Option<EventTypeIndex>,
        /// None where there was a value.
        removed: Option<EventTypeIndex>,
        /// Another value.
        changed: Option<EventTypeIndex>,
    },
}

/// What is late, what is a duplicate, what becomes of native specifics.
#[derive(Debug, Clone)]
pub struct Policies {
    /// What decides whether an event is late.
    pub ordering: Ordering,
    /// What becomes of the specific events that the platform publishes itself.
    pub native_specifics: NativeSpecifics,
    /// How long event ids, announcements and deletion marks are remembered, in
    /// milliseconds of stream time; 24 h at least.
    pub dedupe_window_ms: i64,
    /// Whether CloudEvents headers are written.
    pub cloudevents: bool,
}

/// What decides whether an event is late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// The envelope's timestamp.
    Timestamp,
    /// The log's order is the truth: nothing is late.
    Offset,
}

/// What becomes of the specific events that the platform publishes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NativeSpecifics {
    /// A change reaches its topic once, whichever came first.
    Once,
    /// All are emitted.
    Both,
    /// Native ones are dropped and counted.
    Drop,
}

/// Where the stores live, and how they are kept.
#[derive(Debug, Clone)]
pub struct State {
    /// The state directory.
    pub dir: PathBuf,
    /// A store is flushed after so many changelog records,
    pub flush_records_max: u64,
    /// or after so many milliseconds, whichever comes first.
    pub flush_interval_ms: u64,
}

/// Threads, identity and pace.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Worker threads; `None` is one for each core. Never more than partitions.
    pub workers: Option<usize>,
    /// A name that survives restarts; `None` keeps one in the state directory.
    pub instance: Option<String>,
    /// From the beginning of one transaction of a partition to that of its next, where no batch is full before.
    pub commit_interval_ms: u64,
}

/// A bound on everything that could grow.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest value of an outgoing record, in bytes.
    pub record_bytes_max: usize,
    /// The most that one raw record may emit, keys and headers included, in bytes.
    pub emitted_bytes_max: usize,
    /// The most that may be remembered of one ticket, its uid included, in bytes.
    pub entry_bytes_max: usize,
    /// The most records of one transaction.
    pub batch_records_max: usize,
    /// The most bytes of raw records in one transaction.
    pub batch_bytes_max: usize,
    /// Memory for caches, overlays, queues and fetch buffers together, in MiB.
    pub memory_mb: usize,
}

impl Limits {
    /// The largest record of an event that is made, key, headers and framing
    /// included, in bytes: its topic must allow as much.
    ///
    /// The value has its limit; the headers that we add repeat up to three of its
    /// strings, and those that are carried on have as much as a raw record.
    #[must_use]
    pub fn event_bytes_max(&self) -> usize {
        self.record_bytes_max.saturating_mul(4).saturating_add(KAFKA_RECORD_BYTES_MAX as usize)
    }
}

/// The pages about the process.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where they are served; `None` serves none. Port 0 is a free one.
    pub listen: Option<SocketAddr>,
}

/// How Kafka is reached. The maps hold librdkafka's own property names; where it
/// has two for one property, the one that Kafka's Java client has too
/// (`linger.ms`, `compression.type`, `max.partition.fetch.bytes`,
/// `sasl.mechanism`). Its `Debug` masks secrets.
#[derive(Clone)]
pub struct Kafka {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// For every client.
    pub properties: Vec<(String, String)>,
    /// For consumers.
    pub consumer: Vec<(String, String)>,
    /// For producers.
    pub producer: Vec<(String, String)>,
}

/// The topology that is shipped with the program; what a user's leaves out is as
/// in here, so this file is the only place where a default stands.
const SHIPPED: &str = include_str!("../../../topology.yaml");

impl Topology {
    /// Reads and validates a file, with variables from the environment.
    ///
    /// # Errors
    /// Everything that is wrong with it, or that it cannot be read.
    pub fn load(path: &Path) -> Result<Topology, Mistakes> {
        let file_name = path.display().to_string();
        let refuse = |line: usize, what: String, remedy: &str| {
            let mut mistakes = Mistakes::of(&file_name);
            mistakes.note(line, what, remedy);
            mistakes
        };
        let bytes = std::fs::read(path).map_err(|error| {
            refuse(0, format!("read the file: {error}"), "give the path of a topology with --topology")
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let sound = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = sound.iter().filter(|byte| **byte == b'\n').count() + 1;
            refuse(line, "this is not UTF-8".to_owned(), "save the file as UTF-8")
        })?;
        Topology::parse(&file_name, &text, &|name| std::env::var(name).ok())
    }

    /// Validates a topology's text; `file_name` is what mistakes call it,
    /// `environment` gives a variable's value.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        file_name: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Topology, Mistakes> {
        let mut mistakes = Mistakes::of(file_name);
        let defaults = yaml::read(SHIPPED, environment, &mut mistakes).map(yaml::Node::without_lines);
        let document = yaml::read(text, environment, &mut mistakes);
        // Half a tree would bring mistakes that are none.
        if mistakes.len() > 0 && document.is_none() {
            return Err(mistakes.sorted());
        }
        match validate::validate(document.as_ref(), defaults.as_ref(), &mut mistakes) {
            Some(topology) if mistakes.len() == 0 => Ok(topology),
            _ => Err(mistakes.sorted()),
        }
    }

    /// The shipped topology in an empty environment.
    ///
    /// # Panics
    /// Never: a test reads it too.
    #[must_use]
    pub fn shipped() -> Topology {
        Topology::parse("topology.yaml", SHIPPED, &|_| None).expect("a test parses the shipped topology")
    }

    /// The index of an event type, a user rule's too ([`EventType::native`] tells).
    #[must_use]
    pub fn event_type(&self, name: &str) -> Option<EventTypeIndex> {
        self.event_type_indexes.get(name).copied()
    }

    /// Where the records are that tickets' tasks read: the raw topic, or the one
    /// that it is re-keyed into first. Offsets of state and of replays are its.
    #[must_use]
    pub fn input_topic(&self) -> &str {
        match self.source.keyed_by {
            KeyedBy::TicketUid => &self.source.topic,
            KeyedBy::Nothing => &self.rekeyed_topic,
        }
    }

    /// The topics that records are emitted to, each once: those of all event
    /// types, then that of late copies, then the dead-letter topic.
    pub fn output_topics(&self) -> impl Iterator<Item = &str> {
        let mut listed = HashSet::new();
        self.event_types
            .iter()
            .map(|event_type| event_type.topic.as_str())
            .chain([self.late_topic.as_str(), self.dead_letter_topic.as_str()])
            .filter(move |topic| listed.insert(*topic))
    }
}

impl Kafka {
    /// All properties with the section they stand in (`properties`, `consumer`,
    /// `producer`), secrets masked: for people.
    pub fn masked_properties(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        [("properties", &self.properties), ("consumer", &self.consumer), ("producer", &self.producer)]
            .into_iter()
            .flat_map(|(section, properties)| {
                properties
                    .iter()
                    .map(move |(name, value)| (section, name.as_str(), kafka::masked(name, value)))
            })
    }
}

#[cfg(test)]
mod tests;
