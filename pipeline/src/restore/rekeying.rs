//! Where re-keying goes on.
//!
//! It has no state to restore. Its group's offset is the only thing that it
//! goes by, and is never reset: what was re-keyed would be re-keyed again. An
//! offset that this program has not committed is therefore held against the
//! topics that re-keying writes to: of a raw partition, every record before the
//! position is in the internal topic or a dead letter, and none behind it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::offsets::Question;
use super::{Progress, Restored, Setup, Waiting, create, is_passing, watermarks};
use crate::clients::{self, Logs, Sight};
use crate::commit_record::Ends;
use crate::consumed::raw_record;
use crate::outgoing;
use crate::rekey;
use crate::stage::Stage;
use crate::store::Store;
use crate::transaction::Trouble;

/// One step takes about so long.
const STEP_TIME_MAX: Duration = Duration::from_millis(100);

/// The search for the position of a raw partition.
#[derive(Debug)]
pub struct Resume {
    partition: i32,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Offsets that a transaction holds back are not known yet.
    Committed(Question),
    /// The offset is not ours: what was written decides.
    Written(Option<i64>, Search, Waiting),
}

impl Resume {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(partition: i32) -> Resume {
        Resume { partition, step: Step::Committed(Question::new(partition)) }
    }

    /// The raw partition.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Takes one bounded step. `consumer` is the worker's, a member of the group.
    ///
    /// # Errors
    /// Where the group was reset, or records are gone before they were read.
    pub fn step<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
    ) -> Result<Progress, Trouble> {
        let partition = self.partition;
        match &mut self.step {
            Step::Committed(question) => match question.ask(setup, consumer) {
                Ok(Some(ours)) if ours.ends.is_some() => {
                    finish(setup, consumer, partition, Start::Level(ours.position), false)
                }
                Ok(other) => {
                    let search = Search::begin(setup)?;
                    self.step = Step::Written(other.map(|other| other.position), search, Waiting::default());
                    Ok(Progress::Left(0))
                }
                Err(Trouble::Again(_)) => Ok(Progress::Waiting),
                Err(trouble) => Err(trouble),
            },
            Step::Written(committed, search, waiting) => match search.step(setup, partition)? {
                Searched::All => {
                    let start = Start::judge(*committed, search.written);
                    finish(setup, consumer, partition, start, search.written.is_some())
                }
                Searched::Undecided => {
                    waiting.note(setup, partition, "a transaction is not decided");
                    Ok(Progress::Waiting)
                }
                Searched::Some => Ok(Progress::Left(0)),
            },
        }
    }
}

/// How re-keying of a raw partition goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Nothing was re-keyed, and nothing is committed.
    Beginning,
    /// The committed offset is where it left.
    Level(i64),
    /// Kafka has forgotten the committed offset; what was written says it.
    Forgotten(i64),
    /// The offset was set ahead.
    Ahead { written: i64, committed: i64 },
    /// The offset was set back: what lies between would be re-keyed twice.
    Behind { written: i64, committed: i64 },
}

impl Start {
    /// `committed` is an offset that is not ours, `written` the position behind
    /// the last record that was re-keyed or became a dead letter.
    fn judge(committed: Option<i64>, written: Option<i64>) -> Start {
        match (committed, written) {
            (None, None) => Start::Beginning,
            (None, Some(written)) => Start::Forgotten(written),
            (Some(committed), None) => Start::Ahead { written: 0, committed },
            (Some(committed), Some(written)) if committed == written => Start::Level(committed),
            (Some(committed), Some(written)) if committed > written => Start::Ahead { written, committed },
            (Some(committed), Some(written)) => Start::Behind { written, committed },
        }
    }
}

fn finish<C: ConsumerContext>(
    setup: &Setup,
    consumer: &BaseConsumer<C>,
    partition: i32,
    start: Start,
    is_foreign: bool,
) -> Result<Progress, Trouble> {
    let topology = &setup.topology;
    let topic = &topology.source.topic;
    let group = Stage::Rekey.group(topology);
    let (low, end) = watermarks(consumer, topic, partition)?;
    let refused = |committed: i64, written: i64| {
        Trouble::Stop(anyhow!(
            "the offset of group {group} was reset to {committed} for {topic} [{partition}], which is re-keyed up to \
             {written}: re-keying is never reset. Set it to {written} again; a replay resets group {} on {} \
             (`ticket-pipeline replay`)",
            topology.group,
            topology.rekeyed_topic
        ))
    };
    let position = match start {
        Start::Beginning => low,
        Start::Level(position) => position,
        Start::Forgotten(position) => {
            tracing::warn!(
                partition,
                position,
                "no committed offset: re-keying goes on behind what it has written"
            );
            position
        }
        // What is gone can be skipped, and nothing else once re-keying has begun.
        Start::Ahead { written, committed } if written == 0 || committed <= low => {
            tracing::warn!(
                partition,
                written,
                committed,
                "SKIPPING: the committed offset is ahead of what is re-keyed; what lies between is never read"
            );
            committed
        }
        Start::Ahead { written, committed } | Start::Behind { written, committed } => {
            return Err(refused(committed, written));
        }
    };
    if position < low {
        return Err(Trouble::Stop(anyhow!(
            "the records of {topic} [{partition}] from {position} to {low} are gone before they were re-keyed: to skip \
             them, reset the offset of group {group} for this partition to {low}"
        )));
    }
    if position > end {
        return Err(Trouble::Stop(anyhow!(
            "{topic} [{partition}] ends at {end}, before the position {position} up to which it was re-keyed: was it \
             deleted and made anew? To begin anew, name another group in the topology"
        )));
    }
    tracing::info!(partition, position, "re-keying goes on");
    let ends = Ends { changelog: 0, ids: 0 };
    Ok(Progress::Done(Box::new(Restored {
        store: Store::in_memory(),
        position,
        ends,
        stream_time_ms: i64::MIN,
        replay: None,
        is_foreign,
    })))
}

/// What a step of the search came to.
enum Searched {
    /// A transaction is open where it is to read.
    Undecided,
    /// There is more.
    Some,
    /// All is read.
    All,
}

/// Reads what was written, up to where it ended when the search began.
struct Search {
    /// Topics that are still to be read, each with its partitions' ends.
    topics: Vec<(String, HashMap<i32, i64>)>,
    /// Reads the last of them; `None` as long as transactions are open there.
    client: Option<BaseConsumer<Logs>>,
    sight: Sight,
    /// The position behind the last raw record of the partition that was found.
    written: Option<i64>,
}

impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("written", &self.written).finish_non_exhaustive()
    }
}

impl Search {
    fn begin(setup: &Setup) -> Result<Search, Trouble> {
        let topology = &setup.topology;
        // Open transactions and all: what they hold must be decided first.
        let observer = create(&clients::observer(topology))?;
        let mut topics = Vec::new();
        for topic in [&topology.rekeyed_topic, &topology.dead_letter_topic] {
            let mut ends = HashMap::new();
            for partition in 0..setup.partitions {
                let (low, end) = watermarks(&observer, topic, partition)?;
                if low < end {
                    ends.insert(partition, end);
                }
            }
            topics.push((topic.clone(), ends));
        }
        let sight = Sight::new(&clients::base(&topology.kafka));
        Ok(Search { topics, client: None, sight, written: None })
    }

    /// One bounded step, for a raw partition.
    fn step(&mut self, setup: &Setup, partition: i32) -> Result<Searched, Trouble> {
        let Search { topics, client, sight, written } = self;
        if topics.pop_if(|(_, open)| open.is_empty()).is_some() {
            // The end of a partition is told without its topic: a client for each topic.
            *client = None;
        }
        let Some((topic, open)) = topics.last_mut() else { return Ok(Searched::All) };
        if open.is_empty() {
            return Ok(Searched::Some);
        }
        let client = match client {
            Some(client) => client,
            None => {
                let reader = create(&clients::log_reader(&setup.topology))?;
                for (partition, end) in &*open {
                    if watermarks(&reader, topic, *partition)?.1 < *end {
                        return Ok(Searched::Undecided);
                    }
                }
                let mut list = TopicPartitionList::new();
                for partition in open.keys() {
                    list.add_partition_offset(topic, *partition, Offset::Beginning)
                        .with_context(|| format!("read {topic} [{partition}]"))?;
                }
                reader.assign(&list).with_context(|| format!("read {topic}"))?;
                client.insert(reader)
            }
        };
        sight.keep(client.client());
        let until = Instant::now() + STEP_TIME_MAX;
        while !open.is_empty() && Instant::now() < until {
            match client.poll(STEP_TIME_MAX) {
                None => break,
                Some(Ok(record)) => {
                    let place = place(setup, &record).with_context(|| {
                        format!("read {topic} [{}] at {}", record.partition(), record.offset())
                    })?;
                    if let Some((_, offset)) = place.filter(|(of, _)| *of == partition) {
                        *written = Some(written.map_or(offset + 1, |written| written.max(offset + 1)));
                    }
                    if open.get(&record.partition()).is_some_and(|end| record.offset() + 1 >= *end) {
                        open.remove(&record.partition());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(ended))) => {
                    open.remove(&ended);
                }
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => {
                    return Err(Trouble::Stop(anyhow!(error).context(format!("read {topic}"))));
                }
            }
        }
        Ok(Searched::Some)
    }
}

/// Raw partition and offset of a record that re-keying has written.
fn place(setup: &Setup, record: &BorrowedMessage<'_>) -> Result<Option<(i32, i64)>> {
    let mut headers = Vec::new();
    let there = raw_record(record, &mut headers);
    if record.topic() != setup.topology.rekeyed_topic {
        return Ok(outgoing::dead_letter_place(there.headers, &setup.topology.source.topic));
    }
    rekey::raw(&there).map(|raw| Some((raw.partition, raw.offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_is_not_ours_is_held_against_what_was_written() {
        for (committed, written, start) in [
            (None, None, Start::Beginning),
            (None, Some(7), Start::Forgotten(7)),
            (Some(7), Some(7), Start::Level(7)),
            (Some(9), Some(7), Start::Ahead { written: 7, committed: 9 }),
            (Some(3), None, Start::Ahead { written: 0, committed: 3 }),
            (Some(3), Some(7), Start::Behind { written: 7, committed: 3 }),
        ] {
            assert_eq!(Start::judge(committed, written), start);
        }
    }
}
