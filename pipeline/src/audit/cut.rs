//! A consistent cut through topics that a pipeline is writing to.
//!
//! A transaction's outputs are in the log before its positions are committed. So
//! the committed positions come first, then the true ends of the outputs, which
//! hold everything of the former and perhaps more; and when all transactions
//! below those ends are decided, the committed positions again: what the outputs
//! hold beyond the first positions comes from before the second.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::reading::Range;
use crate::clients::{self, Logs};
use crate::commit_record::Ends;
use crate::topics;
use crate::topology::TRANSACTION_TIMEOUT_MS;
use crate::topology::{KeyedBy, Topology};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// A broker ends a transaction that is older than its timeout within ten seconds.
const DECIDED_WITHIN: Duration = Duration::from_millis(TRANSACTION_TIMEOUT_MS + 15_000);

/// Where everything stood.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<Output>,
}

/// An input partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input {
    pub(super) partition: i32,
    /// The raw topic's first offset.
    pub(super) low: i64,
    /// What is committed: everything before it must be in the outputs.
    pub(super) committed: i64,
    /// What of changelog and ids log belongs to it; `None` where nothing is committed.
    pub(super) ends: Option<Ends>,
    /// Everything before it may be in the outputs.
    pub(super) reached: i64,
}

/// An output topic with its partitions' ranges.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) topic: String,
    pub(super) ranges: Vec<Range>,
}

impl Cut {
    /// Makes it.
    ///
    /// # Errors
    /// Where Kafka does not answer, or where no cut can be made: the error says why.
    pub(super) fn make(topology: &Topology) -> Result<Cut> {
        ensure!(
            topology.source.keyed_by == KeyedBy::TicketUid,
            "the audit does not know `keyed_by: nothing`: what the pipeline reads there is not the raw topic"
        );
        let source = &topology.source.topic;
        let observer = client(&clients::observer(topology))?;
        let reader = client(&clients::log_reader(topology))?;
        let metadata = observer
            .fetch_metadata(None, ANSWER_TIMEOUT)
            .map_err(|error| topics::no_answer(&topology.kafka, &error))?;
        let partitions = |topic: &str| -> Result<i32> {
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let count = found.map_or(0, |found| found.partitions().len());
            ensure!(
                count > 0,
                "topic {topic} does not exist: is this the topology that the pipeline runs with?"
            );
            i32::try_from(count).context("count partitions")
        };

        let mut inputs = Vec::new();
        for partition in 0..partitions(source)? {
            inputs.push(input(topology, &observer, partition)?);
        }
        let mut outputs = Vec::new();
        for topic in topology.output_topics() {
            let mut ranges = Vec::new();
            for partition in 0..partitions(topic)? {
                let (from, to) = topics::bounds(&observer, topic, partition)?;
                ranges.push(Range { partition, from, to });
            }
            outputs.push(Output { topic: topic.to_owned(), ranges });
        }

        let deadline = Instant::now() + DECIDED_WITHIN;
        for (topic, range) in
            outputs.iter().flat_map(|one| one.ranges.iter().map(|range| (&one.topic, range)))
        {
            wait_decided(&reader, topic, range.partition, range.to, deadline)?;
        }
        for input in &inputs {
            let Some(ends) = input.ends else { continue };
            wait_decided(&reader, &topology.changelog_topic, input.partition, ends.changelog, deadline)?;
            wait_decided(&reader, &topology.ids_topic, input.partition, ends.ids, deadline)?;
        }
        for input in &mut inputs {
            let (reached, _) =
                committed(&reader, source, input.partition, deadline)?.unwrap_or((input.low, None));
            input.reached = reached.max(input.committed);
        }
        Ok(Cut { inputs, outputs })
    }
}

fn client(config: &rdkafka::ClientConfig) -> Result<BaseConsumer<Logs>> {
    config.create_with_context(Logs).context("create a client")
}

fn input(topology: &Topology, observer: &BaseConsumer<Logs>, partition: i32) -> Result<Input> {
    let source = &topology.source.topic;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let found = committed(observer, source, partition, deadline)?;
    // Asked for after the committed position, so that the position is not before it.
    let (low, _) = topics::bounds(observer, source, partition)?;
    let remedy = "start the pipeline once, and audit then";
    match found {
        Some((position, Some(ends))) => {
            Ok(Input { partition, low, committed: position, ends: Some(ends), reached: position })
        }
        Some((position, None)) => bail!(
            "the committed offset {position} of {source} [{partition}] was set by a reset, and the pipeline has not run \
             since: {remedy}"
        ),
        None => {
            let (_, ids) = topics::bounds(observer, &topology.ids_topic, partition)?;
            ensure!(
                ids == 0,
                "group {} has no committed offset for {source} [{partition}], though there is state: Kafka has \
                 forgotten it; {remedy}",
                topology.group
            );
            Ok(Input { partition, low, committed: low, ends: None, reached: low })
        }
    }
}

/// The committed position with what its metadata says.
fn committed(
    client: &BaseConsumer<Logs>,
    topic: &str,
    partition: i32,
    deadline: Instant,
) -> Result<Option<(i64, Option<Ends>)>> {
    loop {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        // While a transaction holds offsets back, a client of committed ones gets no answer.
        let answer = client.committed_offsets(list, Duration::from_secs(2)).and_then(|list| {
            let Some(found) = list.find_partition(topic, partition) else { return Ok(None) };
            found.error()?;
            Ok(Some((found.offset(), found.metadata().to_owned())))
        });
        match answer {
            Ok(Some((Offset::Offset(position), metadata))) => {
                let ends = Ends::of_metadata(&metadata)
                    .with_context(|| format!("read the committed offset of {topic} [{partition}]"))?;
                return Ok(Some((position, ends)));
            }
            Ok(_) => return Ok(None),
            Err(error) if Instant::now() > deadline => {
                return Err(error)
                    .with_context(|| format!("ask for the committed offset of {topic} [{partition}]"));
            }
            Err(_) => thread::sleep(ASK_AGAIN),
        }
    }
}

/// Waits until no transaction below an offset is open.
fn wait_decided(
    reader: &BaseConsumer<Logs>,
    topic: &str,
    partition: i32,
    offset: i64,
    deadline: Instant,
) -> Result<()> {
    loop {
        let (_, stable) = topics::bounds(reader, topic, partition)?;
        if stable >= offset {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "a transaction in {topic} [{partition}] at offset {stable} is neither committed nor aborted for {} s: is it \
                 hanging? (kafka-transactions.sh find-hanging)",
                DECIDED_WITHIN.as_secs()
            );
        }
        thread::sleep(ASK_AGAIN);
    }
}
