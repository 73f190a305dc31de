//! Brings a store to where the log says that it should be, and says where the
//! input goes on.
//!
//! The committed offset's metadata names the ends of changelog and ids log that
//! belong to it; the difference between them and the store's positions is read.
//! It advances in bounded steps, so that its worker keeps polling. It does not
//! know tasks, nor what an entry means.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::clients::{self, Logs, TRANSACTION_TIMEOUT_MS};
use crate::commit_record::{Ends, IdsRecord};
use crate::store::{Positions, StateDirectory, Store, Writes};
use crate::topology::Topology;
use crate::transaction::Trouble;

/// One step writes at most so much, and takes about so long.
const STEP_BYTES_MAX: usize = 1024 * 1024;
const STEP_TIME_MAX: Duration = Duration::from_millis(100);

/// While a transaction holds offsets back, asking for them blocks; the worker
/// has others to serve meanwhile. A slow broker is given more time by and by.
const COMMITTED_TIMEOUT_MIN: Duration = Duration::from_millis(250);
const COMMITTED_TIMEOUT_MAX: Duration = Duration::from_secs(4);

const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// A broker ends a transaction that is older than its timeout within ten seconds.
const HANGING_AFTER: Duration = Duration::from_millis(TRANSACTION_TIMEOUT_MS + 10_000);

/// What a process knows when its workers start.
#[derive(Debug)]
pub struct Setup {
    /// The topology.
    pub topology: Arc<Topology>,
    /// Where the stores are.
    pub state: StateDirectory,
    /// How many partitions the raw topic has, and every other.
    pub partitions: i32,
    /// The changelog's `delete.retention.ms`.
    pub delete_retention_ms: i64,
}

/// What the group has committed for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Committed {
    position: i64,
    /// `None` where the offset was not committed by us, as after a reset.
    ends: Option<Ends>,
}

/// Where the input goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// There is no state, and nothing is committed.
    Beginning,
    /// State and committed offset agree.
    Level(i64),
    /// Kafka has forgotten the committed offset; the state has not.
    Forgotten(i64),
    /// The committed offset was moved ahead: what lies between is never read.
    Skip {
        /// The state's input position.
        state: i64,
        /// The committed one.
        committed: i64,
    },
    /// The committed offset was moved back: what lies between is to be emitted again.
    Replay {
        /// The state's input position.
        state: i64,
        /// The committed one.
        committed: i64,
    },
}

impl Start {
    /// Judged by the state's input position, which is the last commit record's,
    /// and the committed one.
    fn judge(state: Option<i64>, committed: Option<i64>) -> Start {
        match (state, committed) {
            (None, None) => Start::Beginning,
            (Some(state), None) => Start::Forgotten(state),
            (None, Some(0)) => Start::Beginning,
            (None, Some(committed)) => Start::Skip { state: 0, committed },
            (Some(state), Some(committed)) if committed == state => Start::Level(state),
            (Some(state), Some(committed)) if committed > state => Start::Skip { state, committed },
            (Some(state), Some(committed)) => Start::Replay { state, committed },
        }
    }
}

/// What is to be read to bring a store to the targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Why the store is of no use, if so.
    wipe: Option<&'static str>,
    from: Ends,
}

impl Plan {
    fn make(positions: Option<Positions>, targets: Ends, lows: Ends, idle_ms: i64, idle_ms_max: i64) -> Plan {
        let Some(at) = positions else { return Plan { wipe: None, from: lows } };
        let behind = at.changelog < targets.changelog;
        let wipe = if at.changelog > targets.changelog || at.ids > targets.ids {
            Some("it is ahead of what was committed")
        } else if behind && at.changelog < lows.changelog {
            Some("the changelog no longer reaches back to it")
        } else if behind && idle_ms > idle_ms_max {
            Some(
                "it was last written before half of the changelog's delete.retention.ms, and may have missed deletions",
            )
        } else {
            None
        };
        // What is gone from the ids log was forgotten by the window: no harm.
        let from = if wipe.is_some() {
            lows
        } else {
            Ends { changelog: at.changelog, ids: at.ids.max(lows.ids.min(targets.ids)) }
        };
        Plan { wipe, from }
    }
}

/// A store on its way.
#[derive(Debug)]
pub struct Restore {
    partition: i32,
    stage: Stage,
    started: Instant,
    records: u64,
    waiting: Waiting,
}

#[derive(Debug)]
enum Stage {
    /// Another worker of this process may still have the store open.
    Open,
    /// Offsets that a transaction holds back are not known yet.
    Committed(Store),
    /// The log's last stable offset may lie before what is committed.
    Settle(Course),
    /// First the changelog, then the ids log.
    Read(Course, Positions, Option<Reader>),
    /// Handed over.
    Done,
}

/// A store, and where it is to be brought to.
#[derive(Debug)]
struct Course {
    store: Store,
    committed: Option<Committed>,
    targets: Ends,
}

#[derive(Debug, Default)]
struct Waiting {
    attempts: u32,
    since: Option<Instant>,
    warned: bool,
}

/// What a step came to.
#[derive(Debug)]
pub enum Progress {
    /// Something else has to happen first; the same step is to be tried again.
    Waiting,
    /// So many records are left to read, at most.
    Left(i64),
    /// The store is where it should be.
    Done(Box<Restored>),
}

/// A store that is where the log says, and where its input goes on.
#[derive(Debug)]
pub struct Restored {
    /// The store.
    pub store: Store,
    /// The input position.
    pub position: i64,
    /// The ends of changelog and ids log that belong to it.
    pub ends: Ends,
    /// The greatest Kafka timestamp read so far, in milliseconds; `i64::MIN` at first.
    pub stream_time_ms: i64,
}

/// Reads one partition of one log up to a target.
struct Reader {
    client: BaseConsumer<Logs>,
    log: Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    Changelog,
    Ids,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reader").field(&self.log).finish()
    }
}

impl Restore {
    /// Nothing is done yet.
    #[must_use]
    pub fn new(partition: i32) -> Restore {
        Restore {
            partition,
            stage: Stage::Open,
            started: Instant::now(),
            records: 0,
            waiting: Waiting::default(),
        }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Takes one step. `consumer` is the worker's, a member of the group.
    ///
    /// # Errors
    /// Where Kafka or the disk says what no further step can mend.
    pub fn step<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
    ) -> Result<Progress, Trouble> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Open => match setup.state.open(self.partition)? {
                Some(store) => self.go_on(Stage::Committed(store)),
                None => self.wait(Stage::Open, "its store is still open in another worker"),
            },
            Stage::Committed(store) => self.ask_committed(setup, consumer, store),
            Stage::Settle(course) => self.settle(setup, consumer, course),
            Stage::Read(course, positions, reader) => self.read(setup, consumer, course, positions, reader),
            Stage::Done => Err(Trouble::Stop(anyhow!("restore partition {} again", self.partition))),
        }
    }

    fn go_on(&mut self, stage: Stage) -> Result<Progress, Trouble> {
        self.waiting = Waiting::default();
        self.stage = stage;
        Ok(Progress::Left(0))
    }

    /// `why` says what is waited for; past the time in which a broker ends a
    /// transaction, it is said aloud.
    fn wait(&mut self, stage: Stage, why: &str) -> Result<Progress, Trouble> {
        self.stage = stage;
        self.waiting.attempts += 1;
        let since = *self.waiting.since.get_or_insert_with(Instant::now);
        if !self.waiting.warned && since.elapsed() > HANGING_AFTER {
            self.waiting.warned = true;
            tracing::warn!(
                partition = self.partition,
                why,
                "still waiting to restore: is there a hanging transaction? (kafka-transactions.sh find-hanging)"
            );
        }
        Ok(Progress::Waiting)
    }

    fn ask_committed<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        store: Store,
    ) -> Result<Progress, Trouble> {
        let timeout = COMMITTED_TIMEOUT_MIN * 2u32.saturating_pow(self.waiting.attempts.min(8));
        let topic = &setup.topology.source.topic;
        match committed(consumer, topic, self.partition, timeout.min(COMMITTED_TIMEOUT_MAX)) {
            Ok(committed) => {
                let targets = match committed.and_then(|committed| committed.ends) {
                    Some(ends) => ends,
                    None => self.true_ends(setup)?,
                };
                self.go_on(Stage::Settle(Course { store, committed, targets }))
            }
            Err(Trouble::Again(why)) => self.wait(Stage::Committed(store), &why),
            Err(trouble) => Err(trouble),
        }
    }

    /// Open transactions and all: a read_committed client's may lie before committed data.
    fn true_ends(&self, setup: &Setup) -> Result<Ends, Trouble> {
        let observer = create(&clients::observer(&setup.topology))?;
        Ok(Ends {
            changelog: watermarks(&observer, &setup.topology.changelog_topic, self.partition)?.1,
            ids: watermarks(&observer, &setup.topology.ids_topic, self.partition)?.1,
        })
    }

    fn settle<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        mut course: Course,
    ) -> Result<Progress, Trouble> {
        let targets = course.targets;
        let at = course.store.positions();
        if at.is_some_and(|at| at.changelog == targets.changelog && at.ids == targets.ids) {
            return self.finish(setup, consumer, course);
        }
        let topology = &setup.topology;
        let reader = create(&clients::log_reader(topology))?;
        let (changelog_low, changelog_stable) =
            watermarks(&reader, &topology.changelog_topic, self.partition)?;
        let (ids_low, ids_stable) = watermarks(&reader, &topology.ids_topic, self.partition)?;
        if changelog_stable < targets.changelog || ids_stable < targets.ids {
            let ends = self.true_ends(setup)?;
            if ends.changelog < targets.changelog || ends.ids < targets.ids {
                return Err(Trouble::Stop(anyhow!(
                    "restore partition {}: the committed offset belongs to {targets:?} of {} and {}, which end at {ends:?}: \
                     they have lost records. Restore the topics; or, to begin without state, delete both, run \
                     `ticket-pipeline topics apply` and reset the group's offsets",
                    self.partition,
                    topology.changelog_topic,
                    topology.ids_topic
                )));
            }
            return self.wait(Stage::Settle(course), "a transaction is not decided");
        }
        let lows = Ends { changelog: changelog_low, ids: ids_low };
        let plan = Plan::make(at, targets, lows, course.store.idle_ms(), setup.delete_retention_ms / 2);
        if let Some(why) = plan.wipe {
            tracing::warn!(partition = self.partition, why, "wiping the store: the changelog restores it");
            course.store = course.store.wipe()?;
        }
        let known = course.store.positions();
        let positions = Positions {
            changelog: plan.from.changelog,
            ids: plan.from.ids,
            input: known.map_or(Positions::NO_INPUT, |at| at.input),
            stream_time_ms: known.map_or(i64::MIN, |at| at.stream_time_ms),
        };
        tracing::info!(
            partition = self.partition,
            changelog_from = positions.changelog,
            changelog_to = targets.changelog,
            ids_from = positions.ids,
            ids_to = targets.ids,
            "restoring"
        );
        self.go_on(Stage::Read(course, positions, None))
    }

    fn read<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        mut course: Course,
        mut positions: Positions,
        reader: Option<Reader>,
    ) -> Result<Progress, Trouble> {
        let targets = course.targets;
        let reader = match reader {
            Some(reader) => Some(reader),
            None => Reader::open(setup, self.partition, &positions, targets)?,
        };
        let Some(reader) = reader else {
            // What the targets name may be gone (a compacted tombstone, a marker).
            if course.store.positions() != Some(positions) {
                course.store.write(Writes::default(), &positions)?;
            }
            return self.finish(setup, consumer, course);
        };
        let mut writes = Writes::default();
        let (records, ended) =
            reader.read(setup, self.partition, &mut writes, &mut positions).context("restore a store")?;
        self.records += records;
        let ended = match reader.log {
            Log::Changelog if ended || positions.changelog >= targets.changelog => {
                positions.changelog = targets.changelog;
                true
            }
            Log::Ids if ended || positions.ids >= targets.ids => {
                positions.ids = targets.ids;
                true
            }
            _ => false,
        };
        if records > 0 || ended {
            course.store.write(writes, &positions)?;
            course.store.flush_if_due(Instant::now())?;
        }
        let left = (targets.changelog - positions.changelog) + (targets.ids - positions.ids);
        let reader = (!ended).then_some(reader);
        self.stage = Stage::Read(course, positions, reader);
        Ok(Progress::Left(left))
    }

    fn finish<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        course: Course,
    ) -> Result<Progress, Trouble> {
        let Course { store, committed, targets: ends } = course;
        let at = store.positions();
        let state = at.map(|at| at.input).filter(|input| *input != Positions::NO_INPUT);
        if state.is_none() && (ends.changelog > 0) {
            return Err(Trouble::Stop(anyhow!(
                "restore partition {}: {} holds state, and {} does not say which input position it belongs to: it \
                 has lost its records. To begin without state, delete both topics and run `ticket-pipeline topics apply`",
                self.partition,
                setup.topology.changelog_topic,
                setup.topology.ids_topic
            )));
        }
        let start = Start::judge(state, committed.map(|committed| committed.position));
        let position = self.position(setup, consumer, start)?;
        tracing::info!(
            partition = self.partition,
            position,
            records = self.records,
            elapsed_ms = self.started.elapsed().as_millis() as u64,
            "restored"
        );
        let stream_time_ms = at.map_or(i64::MIN, |at| at.stream_time_ms);
        Ok(Progress::Done(Box::new(Restored { store, position, ends, stream_time_ms })))
    }

    fn position<C: ConsumerContext>(
        &self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        start: Start,
    ) -> Result<i64, Trouble> {
        let partition = self.partition;
        let topic = &setup.topology.source.topic;
        let (low, _) = watermarks(consumer, topic, partition)?;
        let position = match start {
            Start::Beginning => return Ok(low),
            Start::Level(position) => position,
            Start::Forgotten(position) => {
                tracing::warn!(
                    partition,
                    position,
                    "no committed offset: going on from the state's input position"
                );
                position
            }
            Start::Skip { state, committed } => {
                tracing::warn!(
                    partition,
                    state,
                    committed,
                    "SKIPPING: the committed offset is ahead of the state; what lies between is never read"
                );
                committed
            }
            Start::Replay { state, committed } => {
                return Err(Trouble::Stop(anyhow!(
                    "the committed offset {committed} of {topic} [{partition}] is behind the state's input position \
                     {state}, which asks for a replay; replay is not built yet. Reset the group's offset of this \
                     partition to {state} to go on"
                )));
            }
        };
        if position < low {
            return Err(Trouble::Stop(anyhow!(
                "the records of {topic} [{partition}] from {position} to {low} are gone before they were read: to skip \
                 them, reset the group's offset of this partition to {low}"
            )));
        }
        Ok(position)
    }
}

impl Reader {
    /// `None` where there is nothing left to read.
    fn open(
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
        let client = create(&clients::log_reader(topology))?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(position))
            .and_then(|()| client.assign(&list))
            .with_context(|| format!("read {topic} [{partition}] from {position}"))?;
        Ok(Some(Reader { client, log }))
    }

    /// A bounded number of records into `writes`; how many, and whether the log
    /// ends there.
    fn read(
        &self,
        setup: &Setup,
        partition: i32,
        writes: &mut Writes,
        positions: &mut Positions,
    ) -> Result<(u64, bool)> {
        let until = Instant::now() + STEP_TIME_MAX;
        let mut records = 0;
        while writes.size_bytes() < STEP_BYTES_MAX {
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            match self.client.poll(wait) {
                None => {}
                Some(Ok(record)) => {
                    records += 1;
                    self.take(setup, &record, writes, positions).with_context(|| {
                        format!("read {} [{partition}] at {}", record.topic(), record.offset())
                    })?;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok((records, true)),
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => return Err(error.into()),
            }
        }
        Ok((records, false))
    }

    fn take(
        &self,
        setup: &Setup,
        record: &impl Message,
        writes: &mut Writes,
        positions: &mut Positions,
    ) -> Result<()> {
        let next = record.offset() + 1;
        match self.log {
            Log::Changelog => {
                writes.entry(
                    record.key().context("a record of the changelog without a key")?,
                    record.payload(),
                );
                positions.changelog = next;
            }
            Log::Ids => {
                match IdsRecord::decode(record.payload().unwrap_or_default())? {
                    IdsRecord::Commit(commit) => {
                        positions.input = commit.input;
                        positions.stream_time_ms = commit.stream_time_ms;
                        let window_ms = setup.topology.policies.dedupe_window_ms;
                        let forgotten_before_ms = commit.stream_time_ms.saturating_sub(window_ms);
                        let ids =
                            commit.ids.iter().filter(|(_, seen)| seen.timestamp_ms >= forgotten_before_ms);
                        ids.for_each(|(id, seen)| writes.id(id, *seen));
                    }
                    IdsRecord::Rebuilding { from, to } => bail!(
                        "a replay from {from} to {to} was under way, and this program cannot finish it: run the newer one \
                         that began it"
                    ),
                }
                positions.ids = next;
            }
        }
        Ok(())
    }
}

/// What the group has committed; [`Trouble::Again`] while it cannot be known.
fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> Result<Option<Committed>, Trouble> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let judge = |error: KafkaError| {
        if is_passing(&error) {
            return Trouble::Again(format!("the committed offset cannot be known yet: {error}"));
        }
        Trouble::Stop(
            anyhow!(error).context(format!("ask for the committed offset of {topic} [{partition}]")),
        )
    };
    let list = consumer.committed_offsets(list, timeout).map_err(judge)?;
    let Some(found) = list.find_partition(topic, partition) else { return Ok(None) };
    found.error().map_err(judge)?;
    let Offset::Offset(position) = found.offset() else { return Ok(None) };
    let ends =
        Ends::of_metadata(found.metadata()).with_context(|| format!("go on with {topic} [{partition}]"))?;
    Ok(Some(Committed { position, ends }))
}

/// Whether waiting may help.
fn is_passing(error: &KafkaError) -> bool {
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

fn create(config: &rdkafka::ClientConfig) -> Result<BaseConsumer<Logs>, Trouble> {
    Ok(config.create_with_context(Logs).context("create a client")?)
}

fn watermarks<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64), Trouble> {
    client.fetch_watermarks(topic, partition, QUERY_TIMEOUT).map_err(|error| {
        let what = format!("ask where {topic} [{partition}] ends");
        if is_passing(&error) {
            return Trouble::Rebuild(format!("{what}: {error}"));
        }
        Trouble::Stop(anyhow!(error).context(what))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOWS: Ends = Ends { changelog: 0, ids: 5 };
    const TARGETS: Ends = Ends { changelog: 100, ids: 50 };

    fn at(changelog: i64, ids: i64) -> Option<Positions> {
        Some(Positions { changelog, ids, input: 7, stream_time_ms: 0 })
    }

    #[test]
    fn an_empty_store_reads_everything_there_is() {
        assert_eq!(Plan::make(None, TARGETS, LOWS, 0, 10), Plan { wipe: None, from: LOWS });
    }

    #[test]
    fn a_store_that_is_behind_reads_the_difference() {
        let plan = Plan::make(at(90, 45), TARGETS, LOWS, 10, 10);
        assert_eq!(plan, Plan { wipe: None, from: Ends { changelog: 90, ids: 45 } });
    }

    #[test]
    fn ids_that_the_log_has_forgotten_are_not_missed() {
        let plan = Plan::make(at(90, 2), TARGETS, LOWS, 10, 10);
        assert_eq!(plan, Plan { wipe: None, from: Ends { changelog: 90, ids: 5 } });
    }

    #[test]
    fn a_store_is_wiped_only_when_the_changelog_cannot_mend_it() {
        let low = Ends { changelog: 95, ids: 5 };
        for (positions, lows, idle_ms, why) in [
            (at(101, 50), LOWS, 0, "ahead"),
            (at(100, 51), LOWS, 0, "ahead"),
            (at(90, 50), low, 0, "no longer reaches"),
            (at(90, 50), LOWS, 11, "missed deletions"),
        ] {
            let plan = Plan::make(positions, TARGETS, lows, idle_ms, 10);
            assert!(plan.wipe.is_some_and(|reason| reason.contains(why)), "{plan:?}");
            assert_eq!(plan.from, lows);
        }
    }

    #[test]
    fn a_store_that_missed_nothing_may_be_old() {
        assert_eq!(Plan::make(at(100, 45), TARGETS, LOWS, 1_000, 10).wipe, None);
    }

    #[test]
    fn the_committed_offset_is_judged_against_the_state() {
        assert_eq!(Start::judge(None, None), Start::Beginning);
        assert_eq!(Start::judge(Some(9), None), Start::Forgotten(9));
        assert_eq!(Start::judge(Some(9), Some(9)), Start::Level(9));
        assert_eq!(Start::judge(Some(9), Some(12)), Start::Skip { state: 9, committed: 12 });
        assert_eq!(Start::judge(Some(9), Some(3)), Start::Replay { state: 9, committed: 3 });
        assert_eq!(Start::judge(None, Some(3)), Start::Skip { state: 0, committed: 3 });
    }
}
