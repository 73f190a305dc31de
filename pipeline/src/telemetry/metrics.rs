//! Every metric: its name, unit and meaning, as data. `docs/metrics.md` is made
//! from here, and a test holds it against this.
//!
//! Names and units follow OpenTelemetry's conventions for messaging where there
//! is one. None is ever labelled by ticket, organisation or person: there is no
//! bound on how many of them there are.

use std::fmt::Write as _;

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Its name in OpenTelemetry.
    pub name: &'static str,
    /// What its numbers do.
    pub kind: Kind,
    /// Its unit (UCUM); empty where it has none.
    pub unit: &'static str,
    /// What it is labelled by.
    pub attributes: &'static [&'static str],
    /// What it counts or measures, for people.
    pub meaning: &'static str,
}

/// What a metric's numbers do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// They only grow.
    Counter,
    /// They go up and down.
    Gauge,
    /// Each falls into a bucket, by these bounds.
    Histogram(&'static [f64]),
}

/// The messaging system: always `kafka`.
pub const SYSTEM: &str = "messaging.system";
/// What was done with a record: `poll` or `send`.
pub const OPERATION: &str = "messaging.operation.name";
/// The topic.
pub const TOPIC: &str = "messaging.destination.name";
/// The partition.
pub const PARTITION: &str = "messaging.destination.partition.id";
/// The consumer group.
pub const GROUP: &str = "messaging.consumer.group.name";
/// What went wrong: a dead letter's code.
pub const ERROR: &str = "error.type";
/// The event type.
pub const EVENT_TYPE: &str = "ticket.event.type";
/// What became of a record or a transaction.
pub const OUTCOME: &str = "ticket.outcome";
/// Where an event comes from.
pub const ORIGIN: &str = "ticket.origin";
/// Where a task is in its life.
pub const STATE: &str = "ticket.task.state";
/// Restore or rebuild.
pub const PHASE: &str = "ticket.restore.phase";
/// What memory is used for.
pub const PART: &str = "ticket.store.part";
/// The program's version.
pub const VERSION: &str = "service.version";
/// The version of the Kafka client.
pub const LIBRDKAFKA: &str = "librdkafka.version";

const ATTRIBUTES: &[(&str, &str)] = &[
    (SYSTEM, "always `kafka`"),
    (OPERATION, "`poll` for what is read, `send` for what is written"),
    (TOPIC, "the topic"),
    (PARTITION, "the partition of the topic that is read"),
    (GROUP, "the consumer group"),
    (
        ERROR,
        "why a record went to the dead-letter topic: the code of its header `__streams.errors.exception`",
    ),
    (EVENT_TYPE, "the event type, such as `ticket:status:changed`; absent where there is none"),
    (
        OUTCOME,
        "of a raw record: `emitted`, `duplicate`, `dropped`, `dead_letter` or, where it is re-keyed first, `rekeyed`; of a transaction: `committed`, `aborted` \
         (it is made again) or `unknown` (the clients are built anew and the log is asked)",
    ),
    (
        ORIGIN,
        "of an outgoing record: `forwarded`, `derived`, `late`, `dead_letter` or `rekeyed`; of a twin: `native` or `derived`",
    ),
    (STATE, "`created` (it waits for its turn), `restoring`, `rebuilding` or `running`"),
    (PHASE, "`restore` (the store follows its changelog) or `rebuild` (the state is made anew for a replay)"),
    (
        PART,
        "`recent` (what is not in RocksDB yet, or was written out last) or `cache` (RocksDB's, shared by all stores)",
    ),
    (VERSION, "the program's version"),
    (LIBRDKAFKA, "the version of the Kafka client"),
];

/// Raw records.
pub const CONSUMED: Metric = Metric {
    name: "messaging.client.consumed.messages",
    kind: Kind::Counter,
    unit: "{message}",
    attributes: &[SYSTEM, OPERATION, TOPIC, GROUP, EVENT_TYPE, OUTCOME],
    meaning: "Raw records whose transaction is committed, by event type and by what became of them.",
};

/// Outgoing records.
pub const SENT: Metric = Metric {
    name: "messaging.client.sent.messages",
    kind: Kind::Counter,
    unit: "{message}",
    attributes: &[SYSTEM, OPERATION, TOPIC, EVENT_TYPE, ORIGIN],
    meaning: "Records written to output topics in committed transactions, by topic, event type and origin.",
};

/// Duplicates.
pub const DUPLICATES: Metric = Metric {
    name: "ticket.duplicates",
    kind: Kind::Counter,
    unit: "{record}",
    attributes: &[],
    meaning: "Raw records dropped because their event id was seen before, within the window.",
};

/// Twins.
pub const TWINS_DROPPED: Metric = Metric {
    name: "ticket.twins.dropped",
    kind: Kind::Counter,
    unit: "{event}",
    attributes: &[ORIGIN],
    meaning: "Events dropped because their twin of the other origin had been emitted; `native` ones also by `native_specifics: drop`.",
};

/// Late records.
pub const LATE: Metric = Metric {
    name: "ticket.late",
    kind: Kind::Counter,
    unit: "{record}",
    attributes: &[],
    meaning: "Raw records older than the newest seen of their ticket: forwarded, and copied to the late topic.",
};

/// Truncated records.
pub const TRUNCATED: Metric = Metric {
    name: "ticket.truncated",
    kind: Kind::Counter,
    unit: "{record}",
    attributes: &[],
    meaning: "Outgoing records cut to `limits.record_size_max`.",
};

/// Dead letters.
pub const DEAD_LETTERS: Metric = Metric {
    name: "ticket.dead_letters",
    kind: Kind::Counter,
    unit: "{record}",
    attributes: &[ERROR],
    meaning: "Raw records that could not be used and went to the dead-letter topic.",
};

/// Lag in records.
pub const LAG: Metric = Metric {
    name: "ticket.lag",
    kind: Kind::Gauge,
    unit: "{record}",
    attributes: &[TOPIC, PARTITION, GROUP],
    meaning: "End of the records of a partition of a topic that is read less the committed position, for each that runs here.",
};

/// Lag in time.
pub const LAG_TIME: Metric = Metric {
    name: "ticket.lag.time",
    kind: Kind::Gauge,
    unit: "s",
    attributes: &[TOPIC, PARTITION, GROUP],
    meaning: "How long the oldest record that is not committed has been in the partition, as far as this process has seen it there; 0 where there is none. Looked at every 2 s.",
};

/// End-to-end latency.
pub const LATENCY: Metric = Metric {
    name: "ticket.latency",
    kind: Kind::Histogram(&[
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0,
    ]),
    unit: "s",
    attributes: &[],
    meaning: "From a raw record's Kafka timestamp to the commit of what it became. Replayed histories are as old as their timestamps say.",
};

/// Transactions.
pub const TRANSACTION_DURATION: Metric = Metric {
    name: "ticket.transaction.duration",
    kind: Kind::Histogram(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
    unit: "s",
    attributes: &[OUTCOME],
    meaning: "From a transaction's first record to its end and the stores' taking over. Its count by outcome is that of the transactions.",
};

/// Records in a transaction.
pub const TRANSACTION_RECORDS: Metric = Metric {
    name: "ticket.transaction.records",
    kind: Kind::Histogram(&[1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0]),
    unit: "{record}",
    attributes: &[],
    meaning: "Raw records in a committed transaction.",
};

/// Bytes in a transaction.
pub const TRANSACTION_SIZE: Metric = Metric {
    name: "ticket.transaction.size",
    kind: Kind::Histogram(&[
        1024.0,
        16_384.0,
        65_536.0,
        262_144.0,
        1_048_576.0,
        4_194_304.0,
        16_777_216.0,
        67_108_864.0,
    ]),
    unit: "By",
    attributes: &[],
    meaning: "Keys and values of the raw records in a committed transaction.",
};

/// Tasks.
pub const TASKS: Metric = Metric {
    name: "ticket.tasks",
    kind: Kind::Gauge,
    unit: "{task}",
    attributes: &[STATE],
    meaning: "Partitions that the group has given to this process, by where they are in their life.",
};

/// Restore and rebuild: what is left.
pub const RESTORE_REMAINING: Metric = Metric {
    name: "ticket.restore.remaining",
    kind: Kind::Gauge,
    unit: "{record}",
    attributes: &[PARTITION, PHASE],
    meaning: "Records that a restore or rebuild under way has left to read, at most.",
};

/// Restore and rebuild: what is done.
pub const RESTORE_RECORDS: Metric = Metric {
    name: "ticket.restore.records",
    kind: Kind::Counter,
    unit: "{record}",
    attributes: &[PHASE],
    meaning: "Records that restores and rebuilds have read; its rate is theirs.",
};

/// Rebalances.
pub const REBALANCES: Metric = Metric {
    name: "ticket.rebalances",
    kind: Kind::Counter,
    unit: "{rebalance}",
    attributes: &[],
    meaning: "How often the group has told a worker which partitions are its own, no change included.",
};

/// Stores on the disk.
pub const STORE_SIZE: Metric = Metric {
    name: "ticket.store.size",
    kind: Kind::Gauge,
    unit: "By",
    attributes: &[PARTITION],
    meaning: "Live data in the files of a partition's store.",
};

/// Stores in memory.
pub const STORE_MEMORY: Metric = Metric {
    name: "ticket.store.memory",
    kind: Kind::Gauge,
    unit: "By",
    attributes: &[PART],
    meaning: "Memory of all stores together.",
};

/// The write buffers.
pub const STORE_WRITE_BUFFERS: Metric = Metric {
    name: "ticket.store.write_buffers",
    kind: Kind::Gauge,
    unit: "By",
    attributes: &[],
    meaning: "Of RocksDB's cache, what is written and not yet in a file.",
};

/// The cache's bound.
pub const STORE_CACHE_LIMIT: Metric = Metric {
    name: "ticket.store.cache.limit",
    kind: Kind::Gauge,
    unit: "By",
    attributes: &[],
    meaning: "What bounds RocksDB's cache: a quarter of `limits.memory_mb`.",
};

/// Readiness.
pub const READY: Metric = Metric {
    name: "ticket.ready",
    kind: Kind::Gauge,
    unit: "",
    attributes: &[],
    meaning: "1 where `/readyz` says that all is ready, else 0.",
};

/// The build.
pub const BUILD: Metric = Metric {
    name: "ticket.build.info",
    kind: Kind::Gauge,
    unit: "",
    attributes: &[VERSION, LIBRDKAFKA],
    meaning: "Always 1: what runs is in the labels.",
};

/// All of them, in the order of the document.
pub const METRICS: [Metric; 23] = [
    CONSUMED,
    SENT,
    DUPLICATES,
    TWINS_DROPPED,
    LATE,
    TRUNCATED,
    DEAD_LETTERS,
    LAG,
    LAG_TIME,
    LATENCY,
    TRANSACTION_DURATION,
    TRANSACTION_RECORDS,
    TRANSACTION_SIZE,
    TASKS,
    RESTORE_REMAINING,
    RESTORE_RECORDS,
    REBALANCES,
    STORE_SIZE,
    STORE_MEMORY,
    STORE_WRITE_BUFFERS,
    STORE_CACHE_LIMIT,
    READY,
    BUILD,
];

impl Metric {
    /// Its name on the page `/metrics`.
    #[must_use]
    pub fn prometheus_name(&self) -> String {
        let unit = match self.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        };
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{unit}{suffix}", label(self.name))
    }
}

/// An attribute's name on the page `/metrics`.
#[must_use]
pub fn label(attribute: &str) -> String {
    attribute.replace('.', "_")
}

/// The document.
#[must_use]
pub fn document() -> String {
    let mut text = HEAD.to_owned();
    for metric in &METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let unit = if metric.unit.is_empty() { "–".to_owned() } else { format!("`{}`", metric.unit) };
        let attributes: Vec<String> = metric.attributes.iter().map(|name| format!("`{name}`")).collect();
        writeln!(
            text,
            "| `{}`<br>`{}` | {kind} | {unit} | {} | {} |",
            metric.name,
            metric.prometheus_name(),
            attributes.join("<br>"),
            metric.meaning
        )
        .expect("a string takes all");
    }
    text += ATTRIBUTES_HEAD;
    for (name, meaning) in ATTRIBUTES {
        writeln!(text, "| `{name}`<br>`{}` | {meaning} |", label(name)).expect("a string takes all");
    }
    text += HISTOGRAMS_HEAD;
    for metric in METRICS {
        if let Kind::Histogram(bounds) = metric.kind {
            let bounds: Vec<String> = bounds.iter().map(f64::to_string).collect();
            writeln!(text, "| `{}` | {} |", metric.name, bounds.join(", ")).expect("a string takes all");
        }
    }
    text
}

const HEAD: &str = "# Metrics

Made from `pipeline/src/telemetry/metrics.rs`; a test holds it against that table.

They are on the page `/metrics` for Prometheus (`http.listen` in the topology), and are pushed by OTLP where
`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` is set. The second name is Prometheus's.
Counters are as of the last commit: what was aborted does not count. They begin at zero with each process.

| name | kind | unit | attributes | meaning |
|---|---|---|---|---|
";

const ATTRIBUTES_HEAD: &str = "
## Attributes

None is a ticket, an organisation or a person.

| name | meaning |
|---|---|
";

const HISTOGRAMS_HEAD: &str = "
## Histograms

| name | upper bounds of its buckets, in its unit |
|---|---|
";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_document_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        // A person who has changed the table says so.
        if std::env::var_os("WRITE_DOCS").is_some() {
            std::fs::write(&path, document()).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == document(), "docs/metrics.md is out of date: run this test with WRITE_DOCS=1");
    }

    #[test]
    fn names_differ_and_attributes_are_explained_and_bounded() {
        let mut names = HashSet::new();
        for metric in &METRICS {
            assert!(names.insert(metric.prometheus_name()), "{}", metric.name);
            for attribute in metric.attributes {
                assert!(ATTRIBUTES.iter().any(|(name, _)| name == attribute), "{attribute}");
                for unbounded in ["uid", "org", "actor", "email", "event.id"] {
                    assert!(!attribute.contains(unbounded), "{attribute}");
                }
            }
            if let Kind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted_by(|one, other| one < other), "{}", metric.name);
            }
        }
    }
}
