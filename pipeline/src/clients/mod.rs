//! The Kafka clients' configuration: our defaults, the topology's properties
//! over them, and over those what the guarantee rests on.
//!
//! It knows no protocol.

mod asker;
mod sight;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext};

use crate::stage::Stage;
use crate::topology::{Kafka, TRANSACTION_TIMEOUT_MS, Topology};
pub use asker::Asker;
pub use sight::Sight;

/// A transaction takes in no more records when it has sent and remembers so much, whatever memory
/// there is: a few raw records can make gigabytes, and Kafka aborts what lasts too long.
const TRANSACTION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Memory for the queue of one that reads a log, or the raw topic for a rebuild, in KiB.
const LOG_QUEUE_KIB: &str = "8192";

/// A broker looks every 10 s for transactions that are past their timeout, and then aborts
/// them, which takes a busy one its time.
const ABORTED_WITHIN: Duration = Duration::from_secs(30);

/// Who a worker is: the same names after a restart.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its transactional id and its group instance id: see [`Stage::member_id`].
    pub id: String,
    /// The group that it belongs to.
    pub group: String,
    /// How far into the commit interval its first transaction begins (half as far where it has two in it):
    /// between those of the others.
    pub offset: Duration,
    /// Memory for the consumer's queue, in KiB.
    pub consumer_queue_kib: usize,
    /// Memory for the producer's queue, in KiB.
    pub producer_queue_kib: usize,
    /// The most bytes of raw records in one of its transactions.
    pub batch_bytes_max: usize,
    /// What one of its transactions may send and remember, in bytes.
    pub transaction_bytes_max: usize,
}

impl Member {
    /// A stage's worker in a slot of this process, of so many in all stages, with
    /// its share of the memory: a thirty-second of the limit for all consumers' queues,
    /// where a record takes half as much again as its bytes, a quarter for all producers', a sixteenth
    /// for the records of all transactions, and a sixth for what comes of them, which mostly fits into the
    /// producers' queues then.
    #[must_use]
    pub fn new(topology: &Topology, stage: Stage, instance: &str, slot: usize, workers: usize) -> Member {
        let share_kib = topology.limits.memory_mb.saturating_mul(1024) / workers.max(1);
        let interval = Duration::from_millis(topology.runtime.commit_interval_ms);
        Member {
            id: stage.member_id(topology, instance, slot),
            group: stage.group(topology),
            offset: interval.mul_f64(slot as f64 / workers.max(1) as f64),
            consumer_queue_kib: (share_kib / 32).clamp(1024, 512 * 1024),
            producer_queue_kib: (share_kib / 4).clamp(4 * 1024, 1024 * 1024),
            batch_bytes_max: topology.limits.batch_bytes_max.min(share_kib * 1024 / 16),
            transaction_bytes_max: (share_kib * 1024 / 6).min(TRANSACTION_BYTES_MAX),
        }
    }
}

/// What every client shares: brokers, then the pass-through properties.
#[must_use]
pub fn base(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Info);
    config.set("bootstrap.servers", &kafka.brokers);
    config.set("client.id", "ticket-pipeline");
    for (name, value) in &kafka.properties {
        config.set(name, value);
    }
    config
}

/// A worker's consumer of its stage's topic.
#[must_use]
pub fn consumer(topology: &Topology, member: &Member) -> ClientConfig {
    let mut config = base(&topology.kafka);
    config.set("partition.assignment.strategy", "cooperative-sticky");
    // Longer than a broker takes to restart, or every restart moves partitions.
    config.set("session.timeout.ms", "45000");
    // How soon a member hears of a rebalance, and so how long another waits for its partitions:
    // twice, for a cooperative rebalance has two rounds.
    config.set("heartbeat.interval.ms", "500");
    config.set("max.poll.interval.ms", "600000");
    config.set("queued.max.messages.kbytes", member.consumer_queue_kib.to_string());
    config.set("fetch.max.bytes", (member.consumer_queue_kib * 1024).min(50 * 1024 * 1024).to_string());
    // Compressed, and for each partition: it is what the queue may be exceeded by.
    config.set("max.partition.fetch.bytes", "262144");
    // Records are processed once a commit interval, so a fetch may wait for some: each that brings a few costs
    // the broker and us as much as one that brings many.
    config.set("fetch.min.bytes", "65536");
    config.set("fetch.wait.max.ms", fetch_wait_ms(topology.runtime.commit_interval_ms).to_string());
    // With a small local queue the default of a second leaves the worker idle.
    config.set("fetch.queue.backoff.ms", "10");
    set_all(&mut config, &topology.kafka.properties);
    set_all(&mut config, &topology.kafka.consumer);
    config.set("group.id", &member.group);
    config.set("group.instance.id", &member.id);
    config.set("isolation.level", "read_committed");
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "error");
    config.set("allow.auto.create.topics", "false");
    if config.get("group.protocol") == Some("consumer") {
        // Here the broker assigns and times out, and a static member that died
        // would be refused until its session ends.
        let classic = [
            "partition.assignment.strategy",
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "group.instance.id",
        ];
        for name in classic {
            config.remove(name);
        }
    }
    config
}

/// How long a fetch may wait for more, in milliseconds: a tenth of the commit interval.
#[must_use]
pub fn fetch_wait_ms(commit_interval_ms: u64) -> u64 {
    (commit_interval_ms / 10).clamp(3, 100)
}

/// A worker's transactional producer.
#[must_use]
pub fn producer(topology: &Topology, member: &Member) -> ClientConfig {
    let mut config = base(&topology.kafka);
    // A transaction writes to many partitions, each in requests of its own: shorter than its records take to be
    // processed makes more of them, longer leaves more to be sent at its end. A flush does not wait for it.
    config.set("linger.ms", "30");
    config.set("compression.type", "lz4");
    config.set("retry.backoff.ms", "20");
    config.set("queue.buffering.max.kbytes", member.producer_queue_kib.to_string());
    config.set("queue.buffering.max.messages", "1000000");
    config.set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS.to_string());
    // librdkafka waits for a group's coordinator that has left the cluster until the state of any connection changes,
    // which may be never. It is longer than a coordinator's loss counts after a commit.
    config.set("connections.max.idle.ms", "30000");
    set_all(&mut config, &topology.kafka.properties);
    set_all(&mut config, &topology.kafka.producer);
    config.set("transactional.id", &member.id);
    config.set("enable.idempotence", "true");
    // Of each record that arrives, librdkafka's own thread tells us in passing.
    config.set("delivery.report.only.error", "true");
    // The topics say how large a record may be: a changelog entry may be four
    // times as large as a raw record. Batches stay at `batch.size`.
    config.set("message.max.bytes", "1000000000");
    config
}

/// The longest that a transaction of ours can live, until readers are past it.
#[must_use]
pub fn decided_within(topology: &Topology) -> Duration {
    let given = topology.kafka.producer.iter().find(|(name, _)| name == "transaction.timeout.ms");
    let timeout_ms = given.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(TRANSACTION_TIMEOUT_MS);
    Duration::from_millis(timeout_ms) + ABORTED_WITHIN
}

/// A reader by positions of its own: it never joins the group that it names.
#[must_use]
pub fn log_reader(topology: &Topology) -> ClientConfig {
    let mut config = base(&topology.kafka);
    config.set("fetch.queue.backoff.ms", "10");
    // It reads to an end, which a broker tells only when a fetch has waited for more.
    config.set("fetch.wait.max.ms", "10");
    set_all(&mut config, &topology.kafka.consumer);
    // Several read side by side.
    config.set("queued.max.messages.kbytes", LOG_QUEUE_KIB);
    config.set("group.id", &topology.group);
    config.set("isolation.level", "read_committed");
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "error");
    config.set("enable.partition.eof", "true");
    config.set("allow.auto.create.topics", "false");
    without_membership(&mut config);
    config
}

/// Asks for the true ends of partitions, open transactions and all, and for
/// what the group has committed so far; it reads nothing and never joins.
#[must_use]
pub fn observer(topology: &Topology) -> ClientConfig {
    let mut config = log_reader(topology);
    config.set("isolation.level", "read_uncommitted");
    config
}

/// The same for the group of a stage.
#[must_use]
pub fn observer_of(topology: &Topology, stage: Stage) -> ClientConfig {
    let mut config = observer(topology);
    config.set("group.id", stage.group(topology));
    config
}

/// A client that creates, describes and alters topics.
///
/// # Errors
/// Where librdkafka refuses a property.
pub fn admin(kafka: &Kafka) -> Result<AdminClient<DefaultClientContext>> {
    base(kafka).create().context("make an admin client")
}

/// A consumer of committed records that belongs to no group: it is told what
/// to read, commits nothing, and is in nobody's way.
///
/// # Errors
/// Where librdkafka refuses a property.
pub fn reader(kafka: &Kafka) -> Result<BaseConsumer> {
    let mut config = base(kafka);
    set_all(&mut config, &kafka.consumer);
    config
        // librdkafka hands out no record without a group's name, though no such group is ever joined.
        .set("group.id", "ticket-pipeline-reader")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .context("make a consumer without a group")
}

/// The configuration of a producer that keeps the order and writes each record
/// once. It uses no transactions, for their markers would take offsets.
#[must_use]
pub fn idempotent_producer(kafka: &Kafka) -> ClientConfig {
    let mut config = base(kafka);
    config
        .set("linger.ms", "5")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.kbytes", "65536")
        // The topic's limit is to decide, not the client's.
        .set("message.max.bytes", "1000000000");
    set_all(&mut config, &kafka.producer);
    config.set("enable.idempotence", "true");
    config
}

/// The version of the Kafka client that is linked in.
#[must_use]
pub fn librdkafka_version() -> String {
    rdkafka::util::get_rdkafka_version().1
}

fn set_all(config: &mut ClientConfig, properties: &[(String, String)]) {
    for (name, value) in properties {
        config.set(name, value);
    }
}

fn without_membership(config: &mut ClientConfig) {
    for name in [
        "group.protocol",
        "group.instance.id",
        "group.remote.assignor",
        "partition.assignment.strategy",
        "session.timeout.ms",
        "heartbeat.interval.ms",
    ] {
        config.remove(name);
    }
}

/// So long a client tries to connect before it is asked why it could not.
const WHY_TIME_MAX: Duration = Duration::from_secs(15);
/// So long a better reason is waited for than that a connection does not come about.
const BETTER_TIME_MAX: Duration = Duration::from_secs(5);
const WHY_POLL: Duration = Duration::from_millis(100);

/// Why no broker can be reached, in librdkafka's own words, which only a client
/// that is polled hears: a new one tries. `None` where it does not say, or where it
/// can.
#[must_use]
pub fn why_unreachable(kafka: &Kafka) -> Option<(RDKafkaErrorCode, String)> {
    let mut config = base(kafka);
    config.set("group.id", "ticket-pipeline-reader");
    let client: BaseConsumer<Reason> = config.create_with_context(Reason::default()).ok()?;
    let began = Instant::now();
    // It connects only when it is asked something.
    client.fetch_metadata(None, WHY_POLL).err()?;
    while !client.context().has_answer() {
        let time_max = if client.context().said().is_some() { BETTER_TIME_MAX } else { WHY_TIME_MAX };
        if began.elapsed() > time_max {
            break;
        }
        // A line of the log ends a poll as well, so that its end does not mean that all was said.
        drop(client.poll(WHY_POLL));
    }
    client.context().said().take()
}

/// Keeps the first reason why a broker cannot be reached.
#[derive(Default)]
struct Reason {
    said: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Reason {
    fn said(&self) -> MutexGuard<'_, Option<(RDKafkaErrorCode, String)>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A broker was there, and it or we would not go on.
    fn has_answer(&self) -> bool {
        matches!(*self.said(), Some((RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL, _)))
    }
}

impl ClientContext for Reason {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, text: &str) {
        // Of a connection that was merely closed there is no error.
        if facility == "FAIL" {
            let text = text.split_once("]: ").map_or(text, |(_thread, text)| text);
            let transport = RDKafkaErrorCode::BrokerTransportFailure;
            self.said().get_or_insert_with(|| (transport, text.to_owned()));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode::{AllBrokersDown, Authentication, SSL};
        match error.rdkafka_error_code() {
            // It follows from the others.
            Some(AllBrokersDown) | None => {}
            // Of a host's several addresses one may refuse what another does not.
            Some(code @ (Authentication | SSL)) => *self.said() = Some((code, reason.to_owned())),
            Some(code) => {
                self.said().get_or_insert_with(|| (code, reason.to_owned()));
            }
        }
    }
}

impl ConsumerContext for Reason {}

/// librdkafka's own words, into our log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Logs;

impl ClientContext for Logs {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for Logs {}

/// Hands one of librdkafka's lines to our log.
pub fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            // It retries by itself; what it cannot mend comes back as an error of a call.
            tracing::warn!(target: "librdkafka", facility, "{text}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{text}"),
        RDKafkaLogLevel::Notice => tracing::info!(target: "librdkafka", facility, "{text}"),
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "librdkafka", facility, "{text}")
        }
    }
}

/// Hands an error event to our log; the end of a partition is none.
pub fn log_error(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::PartitionEOF) => {}
        _ => tracing::warn!(target: "librdkafka", %error, "{reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_transactions_take_its_share_of_the_memory_and_no_more_than_is_sound() {
        const KIB: usize = 1024;
        let cases = [
            (320, 2, 10 * 1024 * KIB, 163_840 * KIB / 6),
            (4096, 2, 16 * 1024 * KIB, 64 * 1024 * KIB),
            (256, 64, 256 * KIB, 4096 * KIB / 6),
        ];
        for (memory_mb, workers, batch, transaction) in cases {
            let text = format!("limits: {{memory_mb: {memory_mb}}}\n");
            let topology = Topology::parse("topology.yaml", &text, &|_| None).unwrap();
            let member = Member::new(&topology, Stage::Tickets, "one", 0, workers);
            let found = (member.batch_bytes_max, member.transaction_bytes_max);
            assert_eq!(found, (batch, transaction), "{memory_mb} MiB for {workers} workers");
        }
        let refused = Topology::parse("topology.yaml", "limits: {memory_mb: 255}\n", &|_| None);
        let said = format!("{:?}", refused.unwrap_err());
        assert!(said.contains("memory_mb") && said.contains("256"), "{said}");
    }

    #[test]
    fn a_transaction_is_waited_for_as_long_as_its_producer_lets_it_live() {
        for (kafka, seconds) in [("{}", 45), ("{producer: {transaction.timeout.ms: 60000}}", 90)] {
            let topology = Topology::parse("topology.yaml", &format!("kafka: {kafka}\n"), &|_| None).unwrap();
            assert_eq!(decided_within(&topology), Duration::from_secs(seconds), "{kafka}");
        }
    }
}
