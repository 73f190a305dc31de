//! One transaction: begin, send, commit, abort.
//!
//! Everything that leaves the pipeline leaves through here. It does not know
//! tasks or stores: it is told what to send, and which positions to commit.

mod deliveries;
mod native;
mod trouble;

use std::time::{Duration, Instant};

use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::commit_record::{Ends, IdsRecord, NOTHING_KEY};
use crate::crash::{self, Step};
use crate::record::{Destination, Header, OutgoingRecord};
use crate::stage::Stage;
use crate::topology::{KeyedBy, TRANSACTION_TIMEOUT_MS, Topology};
use deliveries::{Deliveries, Report};
use native::{Client, Failure, Membership, Outgoing, OutgoingHeaders};
use trouble::{is_forgotten, is_permanent, remedy};

pub use native::{has_joined, knows_a_broker, read_headers};
pub use trouble::Trouble;

/// librdkafka's default.
const SOCKET_TIMEOUT_MS: u64 = 60_000;

/// The longest that a full queue may stay full. Records time out before.
const QUEUE_FULL_TIME_MAX: Duration = Duration::from_secs(60);

/// A call that may be repeated is repeated for so long.
const RETRY_TIME_MAX: Duration = Duration::from_secs(60);

/// So long librdkafka is given to fence a predecessor before it is asked again, the first time and in the end.
const FENCE_STEP_MIN: Duration = Duration::from_millis(20);
const FENCE_STEP_MAX: Duration = Duration::from_millis(500);

/// A coordinator that lives has written a commit's markers long before.
pub(crate) const MARKED_WITHIN: Duration = Duration::from_secs(25);

/// So often a flush looks whether the coordinator is still there; a broker takes longer to restart.
const FLUSH_STEP_MS: i32 = 100;

/// A worker's transactional producer.
pub struct Producer {
    client: Client,
    routes: Routes,
    input_topic: String,
    group: String,
    transactional_id: String,
    /// A larger value is never taken into the queue.
    queue_bytes: usize,
    /// After an end that took longer, a request of it that was given up and sent again may still
    /// arrive, and decide the next transaction; a new producer's epoch fences that.
    end_time_max: Duration,
    sent: u64,
    sent_bytes: usize,
    committed_at: Option<Instant>,
    /// The losses of the coordinator's connection that endanger no commit of ours.
    losses: u64,
}

/// Where each destination stands among the client's topics.
struct Routes {
    events: Vec<usize>,
    late: usize,
    dead_letter: usize,
    changelog: usize,
    ids: usize,
    /// `None` where nothing is re-keyed: there is no such topic then.
    rekeyed: Option<usize>,
}

/// A partition that the transaction moved.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// The input partition.
    pub partition: i32,
    /// Its new input position.
    pub position: i64,
    /// The ends of changelog and ids log before this transaction.
    pub ends: Ends,
    /// The state does not belong to that position yet. What is committed then
    /// names no ends: it is as the reset left it, and fences all the same.
    pub is_rebuilding: bool,
}

/// A partition whose ids log lacks the marker of a transaction that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmarked {
    /// The changelog lacks it too.
    pub changelog: bool,
}

/// What a commit brought.
#[derive(Debug)]
pub struct Receipt {
    /// The partitions, in the order of the request, with the ends after it.
    pub ends: Vec<Ends>,
    /// It took so long that the producer must be made anew.
    pub slow: bool,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// Connects, for a worker of a stage. Nothing of a predecessor's is decided
    /// yet: see [`Producer::fence`].
    ///
    /// # Errors
    /// Where the configuration is refused.
    pub fn connect(
        topology: &Topology,
        stage: Stage,
        config: &ClientConfig,
        partitions: i32,
    ) -> Result<Producer, Trouble> {
        let mut names: Vec<&str> = Vec::new();
        let mut route = |name| {
            names.iter().position(|known| *known == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            })
        };
        let routes = Routes {
            events: topology.event_types.iter().map(|event| route(event.topic.as_str())).collect(),
            late: route(topology.late_topic.as_str()),
            dead_letter: route(topology.dead_letter_topic.as_str()),
            changelog: route(topology.changelog_topic.as_str()),
            ids: route(topology.ids_topic.as_str()),
            rekeyed: (topology.source.keyed_by == KeyedBy::Nothing)
                .then(|| route(topology.rekeyed_topic.as_str())),
        };
        // These carry raw records as they came, and the raw topic's limit counts compressed bytes.
        let is_untouched = |topic: &usize| *topic == routes.dead_letter || Some(*topic) == routes.rekeyed;
        let untouched: Vec<usize> = (0..names.len()).filter(is_untouched).collect();
        let client = Client::connect(config, Deliveries::new(partitions), &names, &untouched)?;
        let queue_kib = number(config, "queue.buffering.max.kbytes").unwrap_or(u64::MAX);
        Ok(Producer {
            client,
            routes,
            input_topic: stage.topic(topology).to_owned(),
            group: stage.group(topology),
            transactional_id: config.get("transactional.id").unwrap_or_default().to_owned(),
            queue_bytes: usize::try_from(queue_kib.saturating_mul(1024)).unwrap_or(usize::MAX),
            end_time_max: end_time_max(config),
            sent: 0,
            sent_bytes: 0,
            committed_at: None,
            losses: 0,
        })
    }

    /// Ends whatever a predecessor of the same transactional id left open, and
    /// fences it. `false`: not yet, ask again.
    ///
    /// librdkafka tries again after half a second where it has no connection yet, or
    /// where the coordinator still ends what the predecessor left; asked again, it
    /// tries at once (`rd_kafka_txn_op_init_transactions`).
    ///
    /// # Errors
    /// Where asking again cannot help.
    pub fn fence(&mut self, timeout: Duration) -> Result<bool, Trouble> {
        let (started, mut step) = (Instant::now(), FENCE_STEP_MIN);
        loop {
            let timeout_ms = i32::try_from(step.as_millis()).unwrap_or(i32::MAX);
            match self.client.init_transactions(timeout_ms) {
                Ok(()) => return Ok(true),
                Err(failure) if !failure.is_retriable => {
                    return Err(self.judge("init the producer's transactions", &failure));
                }
                Err(_) if started.elapsed() >= timeout => return Ok(false),
                Err(_) => step = (step * 2).min(FENCE_STEP_MAX),
            }
        }
    }

    /// Whether the client knows of any broker, connected or not.
    #[must_use]
    pub fn knows_a_broker(&self) -> bool {
        self.client.knows_a_broker()
    }

    /// Looks whether the last commit may have lost its markers. Its coordinator
    /// acknowledges a commit first and writes the markers then. Where it died
    /// between, they may never come (see ARCHITECTURE.md), and whatever decides the
    /// *next* transaction of this producer decides the records of both. So the next
    /// one must not come before the log says that the last one is there.
    ///
    /// # Errors
    /// Where the connection to the coordinator was lost soon after a commit, or in it.
    pub fn check_coordinator(&mut self) -> Result<(), Trouble> {
        let losses = self.client.coordinator_losses();
        if losses != self.losses && self.committed_at.is_some_and(|at| at.elapsed() < MARKED_WITHIN) {
            return Err(Trouble::Rebuild(
                "the connection to the transaction coordinator was lost after a commit".into(),
            ));
        }
        self.losses = losses;
        Ok(())
    }

    /// Gives logs of a partition a commit marker, behind records of nothing and of no time. It
    /// decides whatever this producer had left undecided there (Kafka's
    /// `ProducerStateManager.completeTxn`), so that must be known as committed.
    ///
    /// # Errors
    /// Where the transaction for it is not committed. It is then aborted, and what was
    /// undecided with it, in the ids log in any case: that comes first.
    pub fn mark(&mut self, partition: i32, Unmarked { changelog }: Unmarked) -> Result<(), Trouble> {
        let mut transaction = self.begin()?;
        transaction.ids(partition, &IdsRecord::Nothing, 0)?;
        transaction.flush()?;
        if changelog {
            transaction.changelog(partition, NOTHING_KEY, None, 0)?;
            transaction.flush()?;
        }
        transaction.end_well()
    }

    /// Opens a transaction. Nothing is sent by this.
    ///
    /// # Errors
    /// Where the producer is not usable any more.
    pub fn begin(&mut self) -> Result<Transaction<'_>, Trouble> {
        self.client.deliveries().reset();
        self.sent = 0;
        self.sent_bytes = 0;
        self.client.begin_transaction().map_err(|failure| self.judge("begin a transaction", &failure))?;
        Ok(Transaction { producer: self, open: true })
    }

    /// What an error asks for where there is no transaction to abort.
    fn judge(&self, what: &str, failure: &Failure) -> Trouble {
        let fatal = self.client.fatal_error().map_or_else(String::new, |why| format!(" ({why})"));
        if is_permanent(failure.code) {
            return Trouble::Stop(anyhow!("{what}: {failure}{fatal}; {}", self.remedy(failure.code)));
        }
        Trouble::Rebuild(format!("{what}: {failure}{fatal}"))
    }

    fn remedy(&self, code: RDKafkaErrorCode) -> String {
        match code {
            RDKafkaErrorCode::GroupAuthorizationFailed => {
                format!("allow the pipeline's user Read on group {} in Kafka's ACLs", self.group)
            }
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed => format!(
                "allow the pipeline's user Write on transactional id {} in Kafka's ACLs, and on all others that begin \
                 with its group",
                self.transactional_id
            ),
            code => remedy(code).to_owned(),
        }
    }
}

/// An open transaction. Dropped without a commit, it is aborted.
#[derive(Debug)]
pub struct Transaction<'p> {
    producer: &'p mut Producer,
    open: bool,
}

impl Transaction<'_> {
    /// How much was sent, in bytes of keys and values.
    #[must_use]
    pub fn sent_bytes(&self) -> usize {
        self.producer.sent_bytes
    }

    /// Sends an outgoing record.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn send(&mut self, record: &OutgoingRecord<'_>) -> Result<(), Trouble> {
        let routes = &self.producer.routes;
        let topic = match record.destination {
            Destination::Event(index) => *routes
                .events
                .get(index)
                .ok_or_else(|| anyhow!("send a record of event type {index}, which the topology lacks"))?,
            Destination::Late => routes.late,
            Destination::DeadLetter => routes.dead_letter,
            Destination::Rekeyed => routes
                .rekeyed
                .ok_or_else(|| anyhow!("send a re-keyed record where the topology re-keys none"))?,
        };
        let outgoing = Outgoing {
            topic,
            partition: record.partition,
            key: record.key,
            value: record.value,
            timestamp_ms: record.timestamp_ms,
            report: Report::Arrival,
        };
        self.produce(&outgoing, record.headers())
    }

    /// Sends an entry to the changelog; `None` is a tombstone.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn changelog(
        &mut self,
        partition: i32,
        uid: &[u8],
        entry: Option<&[u8]>,
        timestamp_ms: i64,
    ) -> Result<(), Trouble> {
        let topic = self.producer.routes.changelog;
        let report = Report::ChangelogEnd(partition);
        let outgoing = Outgoing { topic, partition, key: Some(uid), value: entry, timestamp_ms, report };
        self.produce(&outgoing, std::iter::empty())
    }

    /// Sends a record to the ids log.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn ids(&mut self, partition: i32, record: &IdsRecord, timestamp_ms: i64) -> Result<(), Trouble> {
        let value = record.encode();
        let topic = self.producer.routes.ids;
        let report = Report::IdsEnd(partition);
        let outgoing = Outgoing { topic, partition, key: None, value: Some(&value), timestamp_ms, report };
        self.produce(&outgoing, std::iter::empty())
    }

    /// Commits what was sent together with the input positions.
    ///
    /// # Errors
    /// Only `Ok` means that it is committed; [`Trouble::Again`] that it is not.
    pub fn commit<C: ConsumerContext>(
        mut self,
        moved: &[Moved],
        consumer: &BaseConsumer<C>,
    ) -> Result<Receipt, Trouble> {
        self.flush()?;
        crash::at(Step::SendOffsets);
        let ends = self.ends(moved)?;
        let start = Instant::now();
        self.send_offsets(moved, &ends, consumer)?;
        crash::at(Step::Commit);
        self.end_well()?;
        crash::at(Step::Apply);
        Ok(Receipt { ends, slow: start.elapsed() > self.producer.end_time_max })
    }

    fn end_well(&mut self) -> Result<(), Trouble> {
        self.repeat("commit a transaction", Client::commit_transaction)?;
        self.open = false;
        self.producer.committed_at = Some(Instant::now());
        Ok(())
    }

    /// Ends the transaction; nothing that was sent will be read.
    ///
    /// # Errors
    /// Where the producer is not usable any more.
    pub fn abort(mut self) -> Result<(), Trouble> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Trouble> {
        self.open = false;
        // The first error is the cause: what follows it, a failing abort as well, would hide it.
        match self.producer.client.abort_cause() {
            Some(cause) if is_permanent(cause.code) => {
                let remedy = self.producer.remedy(cause.code);
                return Err(Trouble::Stop(anyhow!("send records in a transaction: {cause}; {remedy}")));
            }
            // It knows neither whether the transaction was committed before, nor that it is to be aborted.
            Some(cause) if is_forgotten(cause.code) => {
                return Err(Trouble::Rebuild(format!(
                    "the coordinator has forgotten the transaction: {cause}"
                )));
            }
            _ => {}
        }
        self.producer.check_coordinator()?;
        let started = Instant::now();
        loop {
            match self.producer.client.abort_transaction() {
                Ok(()) => return Ok(()),
                Err(failure) if failure.is_retriable && started.elapsed() < RETRY_TIME_MAX => {}
                Err(failure) => return Err(self.producer.judge("abort a transaction", &failure)),
            }
        }
    }

    /// An undelivered record would make the commit a lie, so it is counted, not
    /// believed: a fenced producer's flush succeeds with nothing sent.
    fn flush(&mut self) -> Result<(), Trouble> {
        while !self.producer.client.flush(FLUSH_STEP_MS) {
            // Before the coordinator is back: it has not taken this transaction's partitions yet.
            if let Err(trouble) = self.producer.check_coordinator() {
                self.open = false;
                return Err(trouble);
            }
        }
        let deliveries = self.producer.client.deliveries();
        let (delivered, sent) = (deliveries.delivered(), self.producer.sent);
        match deliveries.take_failure() {
            None if delivered == sent => Ok(()),
            None => Err(self.give_up(format!("deliver {sent} records: {delivered} arrived"))),
            Some((code, why)) if is_permanent(code) => {
                Err(Trouble::Stop(anyhow!("deliver a record: {why}; {}", self.producer.remedy(code))))
            }
            Some((_, why)) => Err(self.give_up(format!("deliver a record: {why}"))),
        }
    }

    fn ends(&self, moved: &[Moved]) -> Result<Vec<Ends>, Trouble> {
        let Producer { client, routes, .. } = &*self.producer;
        let end = |topic, partition, report, before| {
            client.deliveries().end_after(report, before).map_err(|first| {
                Trouble::Stop(anyhow!(
                    "a record to {} [{partition}] came to lie at offset {first}, where there had been {before} before: the \
                     topic was deleted and made anew while this ran, and the state cannot be restored from it",
                    client.topic_name(topic)
                ))
            })
        };
        let ends = moved.iter().map(|&Moved { partition, ends, .. }| {
            let changelog = Report::ChangelogEnd(partition);
            Ok(Ends {
                changelog: end(routes.changelog, partition, changelog, ends.changelog)?,
                ids: end(routes.ids, partition, Report::IdsEnd(partition), ends.ids)?,
            })
        });
        ends.collect()
    }

    fn send_offsets<C: ConsumerContext>(
        &mut self,
        moved: &[Moved],
        ends: &[Ends],
        consumer: &BaseConsumer<C>,
    ) -> Result<(), Trouble> {
        let mut offsets = TopicPartitionList::with_capacity(moved.len());
        for (moved, ends) in moved.iter().zip(ends) {
            let mut offset = offsets.add_partition(&self.producer.input_topic, moved.partition);
            offset
                .set_offset(Offset::Offset(moved.position))
                .map_err(|error| anyhow!(error).context("set a position to commit"))?;
            if !moved.is_rebuilding {
                offset.set_metadata(ends.to_metadata());
            }
        }
        // While the group is active the broker takes offsets of a member that
        // never joined it for those of an outsider, and does not fence them.
        let member = Membership::of(consumer);
        if !member.has_joined() || consumer.assignment_lost() {
            return Err(self.give_up("send offsets: this worker is no member of the group now".into()));
        }
        self.repeat("send offsets", |client| client.send_offsets(&offsets, &member))
    }

    /// Repeats a call while librdkafka says that it may be, with the same arguments.
    fn repeat(&mut self, what: &str, call: impl Fn(&Client) -> Result<(), Failure>) -> Result<(), Trouble> {
        let started = Instant::now();
        loop {
            let Err(failure) = call(&self.producer.client) else { return Ok(()) };
            if failure.requires_abort {
                return Err(self.give_up(format!("{what}: {failure}")));
            }
            if !failure.is_retriable || started.elapsed() > RETRY_TIME_MAX {
                // The outcome is unknown, so there is nothing that may be aborted.
                self.open = false;
                return Err(self.producer.judge(what, &failure));
            }
            tracing::debug!(what, %failure, "repeating a call");
        }
    }

    fn give_up(&mut self, why: String) -> Trouble {
        match self.end() {
            Ok(()) => Trouble::Again(why),
            Err(trouble) => trouble,
        }
    }

    fn produce<'h>(
        &mut self,
        record: &Outgoing<'_>,
        headers: impl ExactSizeIterator<Item = Header<'h>>,
    ) -> Result<(), Trouble> {
        let mut headers = OutgoingHeaders::new(headers);
        let (value_bytes, queue_bytes) = (record.value.map_or(0, <[u8]>::len), self.producer.queue_bytes);
        let started = Instant::now();
        loop {
            match self.producer.client.produce(record, &mut headers) {
                RDKafkaErrorCode::NoError => {
                    self.producer.sent += 1;
                    self.producer.sent_bytes +=
                        [record.key, record.value].into_iter().flatten().map(<[u8]>::len).sum::<usize>();
                    crash::at(Step::Send);
                    return Ok(());
                }
                RDKafkaErrorCode::QueueFull if value_bytes > queue_bytes => {
                    return Err(Trouble::Stop(anyhow!(
                        "send a record of {value_bytes} bytes to {}: the producer's queue holds {queue_bytes}; raise \
                         limits.memory_mb",
                        self.producer.client.topic_name(record.topic)
                    )));
                }
                RDKafkaErrorCode::QueueFull if started.elapsed() < QUEUE_FULL_TIME_MAX => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                code if is_permanent(code) => {
                    let topic = self.producer.client.topic_name(record.topic);
                    let remedy = self.producer.remedy(code);
                    return Err(Trouble::Stop(anyhow!("send a record to {topic}: {code}; {remedy}")));
                }
                code => return Err(self.give_up(format!("send a record: {code}"))),
            }
        }
    }
}

/// Two thirds of the time after which librdkafka gives a request up: `socket.timeout.ms`, for
/// which a transactional producer takes no more than `transaction.timeout.ms`.
fn end_time_max(config: &ClientConfig) -> Duration {
    let socket_ms = number(config, "socket.timeout.ms").unwrap_or(SOCKET_TIMEOUT_MS);
    let transaction_ms = number(config, "transaction.timeout.ms").unwrap_or(TRANSACTION_TIMEOUT_MS);
    Duration::from_millis(socket_ms.min(transaction_ms) * 2 / 3)
}

fn number(config: &ClientConfig, name: &str) -> Option<u64> {
    config.get(name)?.trim().parse().ok()
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open
            && let Err(trouble) = self.end()
        {
            tracing::warn!(?trouble, "a transaction could not be aborted");
        }
    }
}
