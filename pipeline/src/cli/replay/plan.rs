//! What a replay of a partition would take up again, asked of Kafka alone: it
//! works where the state directory is out of reach.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use ticket_pipeline::clients::{self, Logs};
use ticket_pipeline::commit_record::{Ends, IdsRecord};
use ticket_pipeline::consumed::raw_record;
use ticket_pipeline::entry;
use ticket_pipeline::envelope::Decoder;
use ticket_pipeline::topics;
use ticket_pipeline::topology::Topology;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_TIMEOUT: Duration = Duration::from_millis(200);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The first look at the ids log's tail goes back so many offsets; each further one eight times as many.
const TAIL_MIN: i64 = 16;

/// Where to, as it was typed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Earliest,
    Offset(i64),
    /// Milliseconds since the epoch.
    TimeMs(i64),
    Shift(i64),
    Current,
}

/// What a replay of one partition means.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) partition: i32,
    /// The input position that the state belongs to.
    pub(super) state: i64,
    /// The position to replay from.
    pub(super) to: i64,
    /// Where the raw topic begins.
    pub(super) low: i64,
    /// The raw records between the two.
    pub(super) records: u64,
    /// The tickets that they are of.
    pub(super) tickets: u64,
    /// Of these, the ones first seen in a record that the raw topic no longer holds.
    pub(super) past_gone: u64,
    /// What is worth knowing, a line each.
    pub(super) notes: Vec<String>,
}

impl Planned {
    pub(super) fn is_moved(&self) -> bool {
        self.to < self.state
    }
}

/// Where a state stands, by the ids log.
enum Standing {
    At(i64),
    Rebuilding { from: i64, to: i64 },
}

/// A hash of a ticket's uid.
type Ticket = blake3::Hash;

pub(super) struct Kafka<'t> {
    topology: &'t Topology,
    observer: BaseConsumer<Logs>,
}

impl<'t> Kafka<'t> {
    pub(super) fn connect(topology: &'t Topology) -> Result<Kafka<'t>> {
        let observer = clients::observer(topology).create_with_context(Logs).context("create a client")?;
        Ok(Kafka { topology, observer })
    }

    /// How many members the group has; `None` where it has none.
    pub(super) fn members(&self) -> Result<Option<usize>> {
        let until = Instant::now() + ANSWER_TIMEOUT;
        let groups = loop {
            match self.observer.fetch_group_list(Some(&self.topology.group), ANSWER_TIMEOUT) {
                Ok(groups) => break groups,
                // A broker that has just started says so until it has read its groups.
                Err(KafkaError::GroupListFetch(RDKafkaErrorCode::CoordinatorLoadInProgress))
                    if Instant::now() < until =>
                {
                    std::thread::sleep(ASK_AGAIN);
                }
                Err(error) => return Err(topics::no_answer(&self.topology.kafka, &error)),
            }
        };
        let members: usize = groups.groups().iter().map(|group| group.members().len()).sum();
        Ok((members > 0).then_some(members))
    }

    /// The partitions that were asked for, else all.
    pub(super) fn partitions(&self, wanted: &[i32]) -> Result<Vec<i32>> {
        let topic = self.topology.input_topic();
        let metadata = self
            .observer
            .fetch_metadata(Some(topic), ANSWER_TIMEOUT)
            .with_context(|| format!("ask for the partitions of {topic}"))?;
        let count = metadata.topics().first().map_or(0, |found| found.partitions().len());
        ensure!(count > 0, "{topic} does not exist: `ticket-pipeline topics apply` makes the topics");
        let all = 0..i32::try_from(count).context("count the partitions")?;
        if let Some(partition) = wanted.iter().find(|partition| !all.contains(partition)) {
            bail!("{topic} has no partition {partition}: it has {count}, counted from 0");
        }
        let mut partitions: Vec<i32> = if wanted.is_empty() { all.collect() } else { wanted.to_vec() };
        partitions.sort_unstable();
        partitions.dedup();
        Ok(partitions)
    }

    /// Plans for one partition.
    pub(super) fn plan(&self, partition: i32, target: Target) -> Result<Planned> {
        let topic = self.topology.input_topic();
        let (low, end) = topics::bounds(&self.observer, topic, partition)?;
        let committed = self.committed(partition)?;
        let mut notes = Vec::new();
        let (state, at_most) = match (committed, self.standing(partition)?) {
            // Our metadata: the state is where the offset is, whatever the log's tail holds.
            (Some((position, true)), _) => (position, position),
            (_, None) => {
                notes.push(
                    "there is no state: nothing was ever read, so there is nothing to replay".to_owned(),
                );
                (low, low)
            }
            (Some((position, false)), Some(Standing::At(state))) => {
                if position < state {
                    notes.push(format!("it is reset to {position} already; the next run replays from there"));
                }
                (state, state)
            }
            (_, Some(Standing::Rebuilding { from, to })) => {
                notes.push(format!("a replay from {to} began and did not end: the next run begins it again"));
                (from, to)
            }
            (None, Some(Standing::At(state))) => {
                notes.push(format!(
                    "the group has no committed offset; without a replay the next run goes on from the state's position \
                     {state}"
                ));
                (state, state)
            }
        };
        ensure!(
            state <= end,
            "it ends at {end}, before the position {state} up to which it was read: was the topic deleted and made anew? \
             There is no past of this state to replay"
        );
        let asked_for = match target {
            Target::Earliest => low,
            Target::Offset(offset) => offset,
            Target::TimeMs(time_ms) => self.offset_at(partition, time_ms)?.unwrap_or(state).min(state),
            Target::Shift(records) => {
                let (position, _) = committed.context(
                    "the group has no committed offset to shift: name a position with --to-offset",
                )?;
                position.saturating_add(records)
            }
            Target::Current => committed.map_or(state, |(position, _)| position),
        };
        ensure!(
            asked_for <= state,
            "{asked_for} is ahead of {state}, up to which it was read: a replay goes back, and what lies between would \
             never be read"
        );
        if asked_for < low {
            notes.push(format!("it begins at {low}: what lies before, from {asked_for}, is gone"));
        }
        let to = asked_for.max(low).min(at_most);
        let mut planned = Planned { partition, state, to, low, records: 0, tickets: 0, past_gone: 0, notes };
        if planned.is_moved() {
            let tickets = self.tickets(&mut planned)?;
            planned.tickets = tickets.len() as u64;
            if low > 0 {
                planned.past_gone = self.past_gone(&planned, &tickets)?;
            }
        }
        Ok(planned)
    }

    /// Sets the group's offsets. Kafka refuses it where the group has members by now.
    pub(super) fn reset(&self, plan: &[&Planned]) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for planned in plan {
            list.add_partition_offset(
                self.topology.input_topic(),
                planned.partition,
                Offset::Offset(planned.to),
            )?;
        }
        self.observer
            .commit(&list, CommitMode::Sync)
            .with_context(|| format!("set the offsets of group {}", self.topology.group))
    }

    /// The committed position, and whether it was committed by a run.
    fn committed(&self, partition: i32) -> Result<Option<(i64, bool)>> {
        let topic = self.topology.input_topic();
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        let list =
            self.observer.committed_offsets(list, ANSWER_TIMEOUT).context("ask for the committed offset")?;
        let Some(found) = list.find_partition(topic, partition) else { return Ok(None) };
        found.error().context("ask for the committed offset")?;
        let Offset::Offset(position) = found.offset() else { return Ok(None) };
        Ok(Some((position, Ends::of_metadata(found.metadata())?.is_some())))
    }

    fn offset_at(&self, partition: i32, time_ms: i64) -> Result<Option<i64>> {
        let topic = self.topology.input_topic();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(time_ms))?;
        let list = self
            .observer
            .offsets_for_times(list, ANSWER_TIMEOUT)
            .context("ask for the first record at or after that time")?;
        Ok(list.find_partition(topic, partition).and_then(|found| match found.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }

    /// What the last record of the ids log that says it says of the state.
    fn standing(&self, partition: i32) -> Result<Option<Standing>> {
        let topic = &self.topology.ids_topic;
        let (low, end) = topics::bounds(&self.observer, topic, partition)?;
        let mut tail = TAIL_MIN;
        loop {
            let from = low.max(end.saturating_sub(tail));
            let mut standing = None;
            self.read(topic, partition, (from, end), |record| {
                match IdsRecord::decode(record.payload().unwrap_or_default())? {
                    IdsRecord::Commit(commit) => standing = Some(Standing::At(commit.input)),
                    IdsRecord::Rebuilding(rebuilding) => {
                        standing = Some(Standing::Rebuilding { from: rebuilding.from, to: rebuilding.to });
                    }
                    IdsRecord::Recomputed(_) | IdsRecord::Nothing => {}
                }
                Ok(())
            })?;
            if standing.is_some() || from == low {
                return Ok(standing);
            }
            tail = tail.saturating_mul(8);
        }
    }

    /// The tickets of the records that are taken up again; counts these.
    fn tickets(&self, planned: &mut Planned) -> Result<HashSet<Ticket>> {
        let mut tickets = HashSet::new();
        let mut decoder = Decoder::default();
        let range = (planned.to, planned.state);
        self.read(self.topology.input_topic(), planned.partition, range, |record| {
            planned.records += 1;
            if let Some(key) = record.key() {
                tickets.insert(blake3::hash(key));
                return Ok(());
            }
            let mut headers = Vec::new();
            let raw = raw_record(record, &mut headers);
            // A dead letter is no ticket's.
            tickets.extend(
                decoder.decode(&raw, self.topology).ok().map(|event| blake3::hash(event.uid.as_bytes())),
            );
            Ok(())
        })?;
        Ok(tickets)
    }

    /// How many of the tickets were last written in the range, and first before the raw topic's beginning.
    fn past_gone(&self, planned: &Planned, tickets: &HashSet<Ticket>) -> Result<u64> {
        let topic = &self.topology.changelog_topic;
        let range = topics::bounds(&self.observer, topic, planned.partition)?;
        let mut gone: HashMap<Ticket, bool> = HashMap::new();
        self.read(topic, planned.partition, range, |record| {
            let ticket = blake3::hash(record.key().unwrap_or_default());
            if tickets.contains(&ticket) {
                let place = record.payload().and_then(entry::written_and_first);
                let is_gone =
                    place.is_some_and(|(written, first)| written >= planned.to && first < planned.low);
                gone.insert(ticket, is_gone);
            }
            Ok(())
        })?;
        Ok(gone.values().filter(|is_gone| **is_gone).count() as u64)
    }

    /// Hands the committed records of a range to `take`.
    fn read(
        &self,
        topic: &str,
        partition: i32,
        (from, to): (i64, i64),
        mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
    ) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        // A client for each range: the end of a partition is told without its topic.
        let client: BaseConsumer<Logs> =
            clients::log_reader(self.topology).create_with_context(Logs).context("create a client")?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(from))?;
        client.assign(&list).with_context(|| format!("read {topic} [{partition}] from {from}"))?;
        let mut heard_at = Instant::now();
        loop {
            match client.poll(POLL_TIMEOUT) {
                Some(Ok(record)) => {
                    if record.offset() >= to {
                        return Ok(());
                    }
                    heard_at = Instant::now();
                    take(&record)
                        .with_context(|| format!("read {topic} [{partition}] at {}", record.offset()))?;
                    if record.offset() + 1 >= to {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) if heard_at.elapsed() > ANSWER_TIMEOUT => {
                    return Err(error).with_context(|| format!("read {topic} [{partition}]"));
                }
                None if heard_at.elapsed() > ANSWER_TIMEOUT => {
                    bail!("read {topic} [{partition}]: no answer within {ANSWER_TIMEOUT:?}");
                }
                Some(Err(_)) | None => {}
            }
        }
    }
}
