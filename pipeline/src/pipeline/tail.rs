//! Where the records of a partition end: the log's end may lie further on, for
//! the markers of transactions, and what was aborted, take offsets too.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::clients::{self, Logs};
use crate::topics;
use crate::topology::Topology;

/// The first look at a partition's tail goes back so many offsets; each further one eight times as many.
const TAIL_MIN: i64 = 8;

/// The position behind the last record that readers of committed ones see, before
/// an end where one is given; `None` where there is none.
///
/// # Errors
/// Where Kafka does not answer in time, or a transaction that is open before the
/// given end may still make records of what lies there.
pub(super) fn end_of_records(
    topology: &Topology,
    topic: &str,
    partition: i32,
    before: Option<i64>,
    timeout: Duration,
) -> Result<Option<i64>> {
    let mut tail = TAIL_MIN;
    loop {
        // A client for each look, so that the end of a partition told to an earlier one is not taken for this one's.
        let client: BaseConsumer<Logs> =
            clients::log_reader(topology).create_with_context(Logs).context("create a client")?;
        let (low, end) = topics::bounds(&client, topic, partition)?;
        ensure!(before.is_none_or(|before| before <= end), "a transaction is open in {topic} [{partition}]");
        let end = before.unwrap_or(end);
        let from = low.max(end - tail);
        if from >= end {
            return Ok(None);
        }
        let found = last_record(&client, topic, partition, from..end, timeout)
            .with_context(|| format!("read the end of {topic} [{partition}]"))?;
        if found.is_some() || from == low {
            return Ok(found.map(|offset| offset + 1));
        }
        tail = tail.saturating_mul(8);
    }
}

fn last_record(
    client: &BaseConsumer<Logs>,
    topic: &str,
    partition: i32,
    range: Range<i64>,
    timeout: Duration,
) -> Result<Option<i64>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(range.start))?;
    client.assign(&list)?;
    let deadline = Instant::now() + timeout;
    let mut last = None;
    while Instant::now() < deadline {
        match client.poll(Duration::from_millis(100)) {
            Some(Ok(record)) if record.offset() < range.end => last = Some(record.offset()),
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            Some(Err(_)) | None => {}
        }
        if last.is_some_and(|offset| offset + 1 >= range.end) {
            return Ok(last);
        }
    }
    bail!("no answer within {timeout:?}")
}
