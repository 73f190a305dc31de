//! What a rebuild reads from Kafka: the raw topic, the stream time that the ids
//! log holds, and where the outputs end. It decides nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::clients::{self, Logs, Sight};
use crate::commit_record::IdsRecord;
use crate::record::RawRecord;
use crate::restore::{Setup, create, is_passing, watermarks};
use crate::topology::KeyedBy;
use crate::transaction::{Trouble, read_headers};

/// One step takes about so long.
const STEP_TIME_MAX: Duration = Duration::from_millis(100);
/// The clock is looked at once for so many records.
const RECORDS_PER_LOOK: u32 = 256;

/// Reads one partition from a position on.
struct Client {
    consumer: BaseConsumer<Logs>,
    sight: Sight,
}

/// What came of a poll.
enum Polled<'c> {
    Record(rdkafka::message::BorrowedMessage<'c>),
    End,
    Nothing,
}

fn open(setup: &Setup, topic: &str, partition: i32, position: i64) -> Result<Client, Trouble> {
    let config = clients::log_reader(&setup.topology);
    let consumer = create(&config)?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(position))
        .and_then(|()| consumer.assign(&list))
        .with_context(|| format!("read {topic} [{partition}] from {position}"))?;
    Ok(Client { consumer, sight: Sight::new(&config) })
}

fn poll(client: &BaseConsumer<Logs>, wait: Duration) -> Result<Polled<'_>, Trouble> {
    match client.poll(wait) {
        None => Ok(Polled::Nothing),
        Some(Ok(record)) => Ok(Polled::Record(record)),
        Some(Err(KafkaError::PartitionEOF(_))) => Ok(Polled::End),
        Some(Err(error)) => match error.rdkafka_error_code() {
            // Retention went on: the next start judges anew what is there.
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                Err(Trouble::Rebuild(format!("the log no longer holds what was to be read: {error}")))
            }
            _ if is_passing(&error) => Ok(Polled::Nothing),
            _ => Err(Trouble::Stop(anyhow!(error).context("read for a rebuild"))),
        },
    }
}

/// Reads the raw records of a partition up to a position.
pub(super) struct RawReader {
    client: Client,
    position: i64,
    /// Mostly they go out, and nothing goes out. Re-keyed records say in them where they come from.
    reads_headers: bool,
}

impl std::fmt::Debug for RawReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawReader").field("position", &self.position).finish_non_exhaustive()
    }
}

impl RawReader {
    pub(super) fn open(setup: &Setup, partition: i32, position: i64) -> Result<RawReader, Trouble> {
        let client = open(setup, setup.topology.input_topic(), partition, position)?;
        let reads_headers = setup.topology.source.keyed_by == KeyedBy::Nothing;
        Ok(RawReader { client, position, reads_headers })
    }

    /// Hands some records before `end` to `take`, for as long as it says that
    /// it may have more; where the reading then stands.
    pub(super) fn read(
        &mut self,
        end: i64,
        mut take: impl FnMut(&RawRecord<'_>) -> Result<bool>,
    ) -> Result<i64, Trouble> {
        let until = Instant::now() + STEP_TIME_MAX;
        let mut looks = 0u32;
        let reads_headers = self.reads_headers;
        let Client { consumer, sight } = &mut self.client;
        sight.keep(consumer.client());
        while self.position < end {
            looks += 1;
            let wait = if looks % RECORDS_PER_LOOK == 1 {
                let wait = until.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    break;
                }
                wait
            } else {
                STEP_TIME_MAX
            };
            match poll(consumer, wait)? {
                Polled::Nothing => break,
                // Markers of transactions may stand between the last record and the position.
                Polled::End => self.position = end,
                Polled::Record(record) if record.offset() >= end => self.position = end,
                Polled::Record(record) => {
                    self.position = record.offset() + 1;
                    let mut headers = Vec::new();
                    if reads_headers {
                        read_headers(&record, &mut headers);
                    }
                    let raw = RawRecord {
                        partition: record.partition(),
                        offset: record.offset(),
                        timestamp_ms: record.timestamp().to_millis().unwrap_or(-1),
                        key: record.key(),
                        value: record.payload(),
                        headers: &headers,
                    };
                    let more = take(&raw).with_context(|| format!("recompute offset {}", raw.offset))?;
                    if !more {
                        break;
                    }
                }
            }
        }
        Ok(self.position)
    }
}

/// Finds the stream time before a raw position, as far as the ids log reaches back.
pub(super) struct StreamTimeReader {
    client: Option<Client>,
    /// The greatest that any record says of what lies before the position.
    best_ms: i64,
}

impl std::fmt::Debug for StreamTimeReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamTimeReader").field("best_ms", &self.best_ms).finish_non_exhaustive()
    }
}

impl StreamTimeReader {
    pub(super) fn new() -> StreamTimeReader {
        StreamTimeReader { client: None, best_ms: i64::MIN }
    }

    /// Reads on; at the log's end, the stream time before `position`
    /// (`i64::MIN` where the log does not say).
    pub(super) fn read(
        &mut self,
        setup: &Setup,
        partition: i32,
        position: i64,
    ) -> Result<Option<i64>, Trouble> {
        let Client { consumer, sight } = match &mut self.client {
            Some(client) => client,
            None => {
                let topic = &setup.topology.ids_topic;
                let observer = create(&clients::observer(&setup.topology))?;
                let (low, end) = watermarks(&observer, topic, partition)?;
                if low >= end {
                    return Ok(Some(i64::MIN));
                }
                self.client.insert(open(setup, topic, partition, low)?)
            }
        };
        sight.keep(consumer.client());
        let until = Instant::now() + STEP_TIME_MAX;
        while Instant::now() < until {
            match poll(consumer, STEP_TIME_MAX)? {
                Polled::Nothing => break,
                Polled::End => return Ok(Some(self.best_ms)),
                Polled::Record(record) => {
                    // Every run says the same of a position, and an id's record was read at its offset.
                    let record = IdsRecord::decode(record.payload().unwrap_or_default())?;
                    if let IdsRecord::Commit(commit) | IdsRecord::Recomputed(commit) = record {
                        if commit.input <= position {
                            self.best_ms = self.best_ms.max(commit.stream_time_ms);
                        }
                        let before = commit.ids.iter().filter(|(_, seen)| seen.offset < position);
                        self.best_ms = before.map(|(_, seen)| seen.timestamp_ms).fold(self.best_ms, i64::max);
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Where every partition of every output topic ends now, open transactions and all.
pub(super) fn output_ends(setup: &Setup) -> Result<Vec<(String, Vec<i64>)>, Trouble> {
    let observer = create(&clients::observer(&setup.topology))?;
    setup
        .topology
        .output_topics()
        .map(|topic| {
            let end = |partition| watermarks(&observer, topic, partition).map(|(_, end)| end);
            Ok((topic.to_owned(), (0..setup.partitions).map(end).collect::<Result<_, Trouble>>()?))
        })
        .collect()
}
