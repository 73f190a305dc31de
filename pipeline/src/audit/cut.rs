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

use super::reading::{self, Progress, Range};
use crate::clients::{self, Logs};
use crate::commit_record::Ends;
use crate::stage::Stage;
use crate::topics;
use crate::topology::Topology;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Where everything stood.
#[derive(Debug)]
pub(super) struct Cut {
    /// Of every stage.
    pub(super) inputs: Vec<Input>,
    /// Where records are re-keyed, the topic that they are re-keyed into is an output too.
    pub(super) outputs: Vec<Output>,
    /// How many partitions every topic has.
    pub(super) partitions: i32,
}

/// An input partition of a stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input {
    pub(super) stage: Stage,
    pub(super) partition: i32,
    /// The topic's first offset.
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

impl Input {
    /// What tells it from all others in rows.
    pub(super) fn number(&self) -> i32 {
        match self.stage {
            Stage::Tickets => self.partition,
            Stage::Rekey => -1 - self.partition,
        }
    }
}

impl Cut {
    /// Whether retention has taken records of an output partition.
    pub(super) fn is_head_gone(&self, topic: &str, partition: i32) -> bool {
        let ranges = self.outputs.iter().filter(|output| output.topic == topic).flat_map(|one| &one.ranges);
        ranges.into_iter().any(|range| range.partition == partition && range.from > 0)
    }

    /// Makes it.
    ///
    /// # Errors
    /// Where Kafka does not answer, or where no cut can be made: the error says why.
    pub(super) fn make(topology: &Topology) -> Result<Cut> {
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

        let stages = Stage::all(topology);
        let (mut inputs, mut groups) = (Vec::new(), Vec::new());
        for stage in stages {
            let group = Group::of(topology, *stage)?;
            for partition in 0..partitions(stage.topic(topology))? {
                inputs.push(input(topology, &group, &reader, partition)?);
            }
            groups.push(group);
        }
        let rekeyed = stages.contains(&Stage::Rekey).then_some(topology.rekeyed_topic.as_str());
        let mut outputs = Vec::new();
        for topic in topology.output_topics().chain(rekeyed) {
            let mut ranges = Vec::new();
            for partition in 0..partitions(topic)? {
                let (from, to) = topics::bounds(&observer, topic, partition)?;
                ranges.push(Range { partition, from, to });
            }
            outputs.push(Output { topic: topic.to_owned(), ranges });
        }

        let deadline = Instant::now() + clients::decided_within(topology);
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
        for Group { stage, reader, .. } in &groups {
            for input in inputs.iter_mut().filter(|input| input.stage == *stage) {
                let found = committed(reader, stage.topic(topology), input.partition, deadline)?;
                let (reached, _) = found.unwrap_or((input.low, None));
                input.reached = reached.max(input.committed);
            }
        }
        Ok(Cut { inputs, outputs, partitions: partitions(topology.input_topic())? })
    }
}

fn client(config: &rdkafka::ClientConfig) -> Result<BaseConsumer<Logs>> {
    config.create_with_context(Logs).context("create a client")
}

/// Those who ask for a stage's committed offsets.
struct Group {
    stage: Stage,
    /// For what is committed now.
    observer: BaseConsumer<Logs>,
    /// For what is committed when no transaction holds it back any more.
    reader: BaseConsumer<Logs>,
}

impl Group {
    fn of(topology: &Topology, stage: Stage) -> Result<Group> {
        let mut config = clients::log_reader(topology);
        let reader = client(config.set("group.id", stage.group(topology)))?;
        Ok(Group { stage, observer: client(&clients::observer_of(topology, stage))?, reader })
    }
}

fn input(topology: &Topology, group: &Group, logs: &BaseConsumer<Logs>, partition: i32) -> Result<Input> {
    let Group { stage, observer, reader } = group;
    let stage = *stage;
    let source = stage.topic(topology);
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let found = committed(observer, source, partition, deadline)?;
    // Asked for after the committed position, so that the position is not before it.
    let (low, _) = topics::bounds(observer, source, partition)?;
    let remedy = "start the pipeline once, and audit then";
    match found {
        Some((position, Some(ends))) => {
            // Re-keying has no state, and so no logs.
            let ends = Some(ends).filter(|_| stage == Stage::Tickets);
            Ok(Input { stage, partition, low, committed: position, ends, reached: position })
        }
        Some((position, None)) => bail!(
            "the committed offset {position} of {source} [{partition}] was set by a reset, and the pipeline has not run \
             since: {remedy}"
        ),
        None => {
            // Of re-keying nothing tells here; what it wrote of this partition is then found as unexpected.
            if stage == Stage::Tickets && has_state(topology, observer, logs, partition)? {
                // A first transaction may have been committed meanwhile.
                let deadline = Instant::now() + clients::decided_within(topology);
                ensure!(
                    committed(reader, source, partition, deadline)?.is_some(),
                    "group {} has no committed offset for {source} [{partition}], though there is state: Kafka has \
                     forgotten it; {remedy}",
                    stage.group(topology)
                );
                return input(topology, group, logs, partition);
            }
            Ok(Input { stage, partition, low, committed: low, ends: None, reached: low })
        }
    }
}

/// Whether anything of a partition's ids log is committed. What a first transaction wrote that was
/// aborted, or is to be, is no state.
fn has_state(
    topology: &Topology,
    observer: &BaseConsumer<Logs>,
    logs: &BaseConsumer<Logs>,
    partition: i32,
) -> Result<bool> {
    let topic = &topology.ids_topic;
    let (from, to) = topics::bounds(observer, topic, partition)?;
    wait_decided(logs, topic, partition, to, Instant::now() + clients::decided_within(topology))?;
    let mut has_any = from > 0;
    if !has_any {
        let range = Range { partition, from, to };
        reading::read(topology, topic, &[range], &Progress::default(), |_| {
            has_any = true;
            Ok(())
        })?;
    }
    Ok(has_any)
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
                "a transaction in {topic} [{partition}] at offset {stable} is neither committed nor aborted for longer \
                 than it can live: is it hanging? (kafka-transactions.sh find-hanging)"
            );
        }
        thread::sleep(ASK_AGAIN);
    }
}
