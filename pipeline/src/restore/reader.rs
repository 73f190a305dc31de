//! What a restore reads from Kafka: changelog, ids log, and where a log ends. It
//! decides nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Setup;
use crate::clients::{self, Logs, Sight};
use crate::commit_record::{Ends, IdsRecord, Rebuilding};
use crate::store::{Begun, Positions, Reset, Writes};
use crate::transaction::Trouble;

/// One step takes about so long.
const STEP_TIME_MAX: Duration = Duration::from_millis(100);

/// The clock is looked at once for so many records.
const RECORDS_PER_LOOK: u64 = 256;

/// A consumer that closes is asked so often whether it has.
const CLOSE_POLL: Duration = Duration::from_millis(1);

const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Reads one partition of one log up to a target.
pub(super) struct Reader {
    client: BaseConsumer<Logs>,
    sight: Sight,
    pub(super) log: Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    Changelog,
    Ids,
}

/// What one step read.
pub(super) struct Portion {
    pub(super) records: u64,
    /// The stream time of the first commit record.
    pub(super) first_time_ms: Option<i64>,
    /// The log ends there.
    pub(super) is_end: bool,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reader").field(&self.log).finish()
    }
}

impl Reader {
    /// `None` where there is nothing left to read.
    pub(super) fn open(
        setup: &Setup,
        partition: i32,
        positions: &Positions,
        targets: Ends,
    ) -> Result<Option<Reader>, Trouble> {
        let topology = &setup.topology;
        let (log, topic, position) = if positions.changelog < targets.changelog {
            (Log::Changelog, &topology.changelog_topic, positions.changelog)
        } else if positions.ids < targets.ids {
            (Log::Ids, &topology.ids_topic, positions.ids)
        } else {
            return Ok(None);
        };
        // A client for each log: the end of a partition is told without its
        // topic, so one from before must not be taken for it.
        let config = clients::log_reader(topology);
        let client = create(&config)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(position))
            .and_then(|()| client.assign(&list))
            .with_context(|| format!("read {topic} [{partition}] from {position}"))?;
        Ok(Some(Reader { client, sight: Sight::new(&config), log }))
    }

    pub(super) fn topic<'a>(&self, setup: &'a Setup) -> &'a str {
        match self.log {
            Log::Changelog => &setup.topology.changelog_topic,
            Log::Ids => &setup.topology.ids_topic,
        }
    }

    /// Some records into `writes`, until they are about so large.
    pub(super) fn read(
        &mut self,
        setup: &Setup,
        partition: i32,
        writes: &mut Writes,
        bytes_max: usize,
        positions: &mut Positions,
    ) -> Result<Portion> {
        self.sight.keep(self.client.client());
        let until = Instant::now() + STEP_TIME_MAX;
        let mut portion = Portion { records: 0, first_time_ms: None, is_end: false };
        // Records that are there already are taken without a look at the clock.
        let mut wait = STEP_TIME_MAX;
        while writes.size_bytes() < bytes_max && !wait.is_zero() {
            if portion.records.is_multiple_of(RECORDS_PER_LOOK) {
                wait = until.saturating_duration_since(Instant::now());
            }
            match self.client.poll(wait) {
                None => break,
                Some(Ok(record)) => {
                    portion.records += 1;
                    let time_ms = self.take(setup, &record, writes, positions).with_context(|| {
                        format!("read {} [{partition}] at {}", record.topic(), record.offset())
                    })?;
                    portion.first_time_ms = portion.first_time_ms.or(time_ms);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Portion { is_end: true, ..portion }),
                Some(Err(error)) if is_passing(&error) => {
                    wait = until.saturating_duration_since(Instant::now());
                }
                Some(Err(error)) => return Err(error.into()),
            }
        }
        Ok(portion)
    }

    /// One record; of a commit record the stream time.
    fn take(
        &self,
        setup: &Setup,
        record: &impl Message,
        writes: &mut Writes,
        positions: &mut Positions,
    ) -> Result<Option<i64>> {
        let next = record.offset() + 1;
        match self.log {
            Log::Changelog => {
                writes.entry(
                    record.key().context("a record of the changelog without a key")?,
                    record.payload(),
                );
                positions.changelog = next;
                Ok(None)
            }
            Log::Ids => {
                let commit = match IdsRecord::decode(record.payload().unwrap_or_default())? {
                    IdsRecord::Commit(commit) => {
                        positions.input = commit.input;
                        positions.rebuilding = None;
                        Some(commit)
                    }
                    IdsRecord::Recomputed(commit) => {
                        if let Some(begun) = &mut positions.rebuilding {
                            begun.has_written = true;
                        }
                        Some(commit)
                    }
                    // The ids that are void now do no harm: they lie ahead, and a
                    // task takes no id for seen that lies ahead of it.
                    IdsRecord::Rebuilding(Rebuilding { from, to, .. }) => {
                        let begun = Begun::after(positions.rebuilding, Reset { from, to });
                        positions.rebuilding = Some(begun);
                        None
                    }
                    IdsRecord::Nothing => None,
                };
                if let Some(commit) = &commit {
                    positions.stream_time_ms = commit.stream_time_ms;
                    let window_ms = setup.topology.policies.dedupe_window_ms;
                    let forgotten_before_ms = commit.stream_time_ms.saturating_sub(window_ms);
                    let ids = commit.ids.iter().filter(|(_, seen)| seen.timestamp_ms >= forgotten_before_ms);
                    ids.for_each(|(id, seen)| writes.id(id, *seen));
                }
                positions.ids = next;
                Ok(commit.map(|commit| commit.stream_time_ms))
            }
        }
    }
}

impl Drop for Reader {
    /// rust-rdkafka's own drop looks every 100 ms whether the consumer is closed.
    fn drop(&mut self) {
        if self.client.close_queue().is_ok() {
            while !self.client.closed() {
                drop(self.client.poll(CLOSE_POLL));
            }
        }
    }
}

/// Whether waiting may help.
pub(crate) fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    !matches!(
        error.rdkafka_error_code(),
        None | Some(
            Code::AutoOffsetReset
                | Code::OffsetOutOfRange
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::Authentication
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::InvalidTopic
                | Code::BadMessage
                | Code::Fatal
        )
    )
}

/// What librdkafka calls an unknown partition may have no leader yet, or be asked
/// for at a broker that has just started and does not know of it.
fn has_no_leader(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition)
}

pub(crate) fn create(config: &ClientConfig) -> Result<BaseConsumer<Logs>, Trouble> {
    Ok(config.create_with_context(Logs).context("create a client")?)
}

pub(crate) fn watermarks<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64), Trouble> {
    let what = || format!("ask where {topic} [{partition}] ends");
    let until = Instant::now() + QUERY_TIMEOUT;
    loop {
        match client.fetch_watermarks(topic, partition, QUERY_TIMEOUT) {
            Ok(bounds) => return Ok(bounds),
            Err(error) if !is_passing(&error) && !has_no_leader(&error) => {
                return Err(Trouble::Stop(anyhow!(error).context(what())));
            }
            // A topic that was just made may have no leader yet. New clients would
            // not find one sooner, and a member that comes and goes unsettles the group.
            Err(_) if Instant::now() < until => std::thread::sleep(ASK_AGAIN_AFTER),
            Err(error) => return Err(Trouble::Rebuild(format!("{}: {error}", what()))),
        }
    }
}
