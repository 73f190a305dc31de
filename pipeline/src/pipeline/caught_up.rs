//! Knows when everything that was in the raw topic at the start is committed,
//! by this process or by others of the group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::Every;
use crate::clients::{self, Logs};
use crate::topics;
use crate::topology::Topology;

const LOOK: Duration = Duration::from_millis(200);
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The first look at a partition's tail goes back so many offsets; each further one eight times as many.
const TAIL_MIN: i64 = 8;

pub(super) struct CaughtUp {
    topology: Arc<Topology>,
    observer: BaseConsumer<Logs>,
    /// Partitions that are still behind, with the position that they must reach.
    targets: Vec<(i32, i64)>,
    look: Every,
}

impl CaughtUp {
    /// Notes where the raw topic ends now.
    ///
    /// # Errors
    /// Where that cannot be known.
    pub(super) fn begin(topology: &Arc<Topology>, partitions: i32) -> Result<CaughtUp> {
        let observer = clients::observer(topology).create_with_context(Logs).context("create a client")?;
        let mut targets = Vec::new();
        for partition in 0..partitions {
            if let Some(position) = end_of_records(topology, partition)? {
                targets.push((partition, position));
            }
        }
        tracing::info!(?targets, "running until caught up");
        Ok(CaughtUp { topology: Arc::clone(topology), observer, targets, look: Every::new(LOOK) })
    }

    /// Looks, every so often; `true` when nothing is behind any more.
    pub(super) fn tick(&mut self) -> bool {
        if !self.look.is_due() {
            return false;
        }
        let topic = &self.topology.source.topic;
        let mut list = TopicPartitionList::new();
        for (partition, _) in &self.targets {
            list.add_partition(topic, *partition);
        }
        if list.count() == 0 {
            return true;
        }
        // Where Kafka does not answer, the workers say so; the next look may succeed.
        let Ok(committed) = self.observer.committed_offsets(list, QUERY_TIMEOUT) else { return false };
        self.targets.retain(|(partition, target)| {
            let found = committed.find_partition(topic, *partition).map(|found| found.offset());
            !matches!(found, Some(Offset::Offset(position)) if position >= *target)
        });
        self.targets.is_empty()
    }
}

/// The position behind the last record; `None` where there is none. The log's
/// end may lie further on: the markers of transactions take offsets too.
fn end_of_records(topology: &Topology, partition: i32) -> Result<Option<i64>> {
    let topic = &topology.source.topic;
    let mut tail = TAIL_MIN;
    loop {
        // A client for each look, so that the end of a partition told to an earlier one is not taken for this one's.
        let client: BaseConsumer<Logs> =
            clients::log_reader(topology).create_with_context(Logs).context("create a client")?;
        let (low, end) = topics::bounds(&client, topic, partition)?;
        let from = low.max(end - tail);
        if from >= end {
            return Ok(None);
        }
        let found = last_record(&client, topic, partition, from, end)
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
    from: i64,
    end: i64,
) -> Result<Option<i64>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(from))?;
    client.assign(&list)?;
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut last = None;
    while Instant::now() < deadline {
        match client.poll(Duration::from_millis(100)) {
            Some(Ok(record)) if record.offset() < end => last = Some(record.offset()),
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            Some(Err(_)) | None => {}
        }
        if last.is_some_and(|offset| offset + 1 >= end) {
            return Ok(last);
        }
    }
    bail!("no answer within {READ_TIMEOUT:?}")
}
