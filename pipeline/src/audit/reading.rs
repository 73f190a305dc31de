//! Ranges of offsets, read to their end.
//!
//! It does not know what the records are for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::clients::{self, Logs, Sight};
use crate::topology::Topology;

/// librdkafka mends what it can by itself; past this nothing came for too long.
const STILL_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Memory for one client's queue; several read side by side.
const QUEUE_KIB: &str = "16384";

/// How far a long piece of work is, for somebody else to look at.
#[derive(Debug, Default)]
pub struct Progress {
    /// Offsets that were read.
    pub done: AtomicU64,
    /// Offsets that are to be read; it grows as more becomes known.
    pub total: AtomicU64,
    /// Whether the records are read a second time, to say what is wrong with them.
    pub is_second_pass: AtomicBool,
}

/// Offsets of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) partition: i32,
    /// The first.
    pub(super) from: i64,
    /// The one behind the last. Everything before it is decided.
    pub(super) to: i64,
}

impl Range {
    fn is_empty(&self) -> bool {
        self.from >= self.to
    }

    fn length(&self) -> u64 {
        u64::try_from(self.to - self.from).unwrap_or_default()
    }
}

/// Reads committed records of one topic, in their order in each partition.
///
/// # Errors
/// Where they cannot be read, and those of `take`.
pub(super) fn read(
    topology: &Topology,
    topic: &str,
    ranges: &[Range],
    progress: &Progress,
    mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    if ranges.iter().all(Range::is_empty) {
        return Ok(());
    }
    let mut config = clients::log_reader(topology);
    config.set("queued.max.messages.kbytes", QUEUE_KIB);
    // That a partition ends is told by a fetch that finds nothing: not after half a second.
    config.set("fetch.wait.max.ms", "10");
    // The end of a partition is told without its topic: one client for each topic.
    let client: BaseConsumer<Logs> = config.create_with_context(Logs).context("create a client")?;
    let mut open: HashMap<i32, Range> = HashMap::new();
    assign(&client, topic, ranges, &mut open)?;
    let total: u64 = open.values().map(Range::length).sum();
    progress.total.fetch_add(total, Ordering::Relaxed);
    let mut sight = Sight::new(&config);
    let mut still_since = Instant::now();
    while !open.is_empty() {
        match client.poll(POLL) {
            Some(Ok(record)) => {
                still_since = Instant::now();
                let partition = record.partition();
                let Some(range) = open.get_mut(&partition) else { continue };
                let (offset, to) = (record.offset(), range.to);
                let passed = (offset + 1).min(to) - range.from;
                progress.done.fetch_add(u64::try_from(passed).unwrap_or_default(), Ordering::Relaxed);
                range.from = (offset + 1).min(to);
                if offset < to {
                    take(&record).with_context(|| format!("{topic} [{partition}] offset {offset}"))?;
                }
                if range.is_empty() {
                    open.remove(&partition);
                    rest(&client, topic, partition)?;
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                still_since = Instant::now();
                if let Some(range) = open.remove(&partition) {
                    // What is left are markers of transactions.
                    progress.done.fetch_add(range.length(), Ordering::Relaxed);
                }
            }
            Some(Err(error)) if is_out_of_range(&error) => bail!(
                "{topic}: records were deleted while they were read ({error}): run the audit again, or give the topic \
                 a longer retention"
            ),
            Some(Err(error)) if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                return Err(error).with_context(|| format!("read {topic}"));
            }
            Some(Err(_)) | None => {
                sight.keep(client.client());
            }
        }
        if still_since.elapsed() > STILL_MAX {
            bail!("read {topic}: nothing came for {} s; left are {:?}", STILL_MAX.as_secs(), open.values());
        }
    }
    Ok(())
}

fn assign(
    client: &BaseConsumer<Logs>,
    topic: &str,
    ranges: &[Range],
    open: &mut HashMap<i32, Range>,
) -> Result<()> {
    let mut list = TopicPartitionList::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        list.add_partition_offset(topic, range.partition, Offset::Offset(range.from))?;
        open.insert(range.partition, *range);
    }
    client.assign(&list).with_context(|| format!("read {topic}"))
}

/// On a live topic a partition that is read would otherwise go on and on.
fn rest(client: &BaseConsumer<Logs>, topic: &str, partition: i32) -> Result<()> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    client.pause(&list).with_context(|| format!("read {topic}"))
}

fn is_out_of_range(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(error.rdkafka_error_code(), Some(Code::OffsetOutOfRange | Code::AutoOffsetReset))
}
