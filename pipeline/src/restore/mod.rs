//! Brings a store to where the log says that it should be, and says where the
//! input goes on.
//!
//! The committed offset's metadata names the ends of changelog and ids log that
//! belong to it; the difference between them and the store's positions is read.
//! It advances in bounded steps, so that its worker keeps polling. Where the
//! committed offset was moved back it says so; how a state is made anew is
//! [`crate::rebuild`]'s to know. It does not know tasks, nor what an entry means.

mod plan;
mod reader;
mod rekeying;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};

use crate::clients;
use crate::commit_record::Ends;
use crate::crash::{self, Step};
use crate::store::{Positions, Reset, StateDirectory, Store, Writes};
use crate::topology::TRANSACTION_TIMEOUT_MS;
use crate::topology::Topology;
use crate::transaction::Trouble;
use plan::{Plan, Start};
use reader::{Committed, Log, Reader, committed};
pub(crate) use reader::{create, is_passing, watermarks};
pub use rekeying::Resume;

/// While a transaction holds offsets back, asking for them blocks; the worker
/// has others to serve meanwhile. A slow broker is given more time by and by.
const COMMITTED_TIMEOUT_MIN: Duration = Duration::from_millis(250);
const COMMITTED_TIMEOUT_MAX: Duration = Duration::from_secs(4);

/// A broker ends a transaction that is older than its timeout within ten seconds.
const HANGING_AFTER: Duration = Duration::from_millis(TRANSACTION_TIMEOUT_MS + 10_000);

/// What a process knows when its workers start.
#[derive(Debug)]
pub struct Setup {
    /// The topology.
    pub topology: Arc<Topology>,
    /// What they are for.
    pub stage: crate::stage::Stage,
    /// Where the stores are.
    pub state: Arc<StateDirectory>,
    /// How many partitions the raw topic has, and every other.
    pub partitions: i32,
    /// The changelog's `delete.retention.ms`.
    pub delete_retention_ms: i64,
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

impl Waiting {
    /// `why` says what is waited for; past the time in which a broker ends a
    /// transaction, it is said aloud.
    fn note(&mut self, partition: i32, why: &str) {
        self.attempts += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.warned && since.elapsed() > HANGING_AFTER {
            self.warned = true;
            tracing::warn!(
                partition,
                why,
                "still waiting to restore: is there a hanging transaction? (kafka-transactions.sh find-hanging)"
            );
        }
    }
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
    /// The state does not belong to that position yet: it is to be made anew.
    pub replay: Option<Replay>,
    /// The group's offset is not this program's: Kafka has forgotten ours, or it
    /// was set from outside. It is to be committed even if nothing new comes.
    pub is_foreign: bool,
}

/// What a replay asks for, and what it finds.
#[derive(Debug, Clone, Copy)]
pub struct Replay {
    /// From where to where.
    pub reset: Reset,
    /// The log has it already: it began before, and did not end.
    pub is_logged: bool,
    /// Up to which position the state is whole; `None` where an earlier attempt
    /// has begun to change it.
    pub whole_at: Option<i64>,
    /// Where the raw topic begins now.
    pub low: i64,
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

    fn wait(&mut self, stage: Stage, why: &str) -> Result<Progress, Trouble> {
        self.stage = stage;
        self.waiting.note(self.partition, why);
        Ok(Progress::Waiting)
    }

    fn ask_committed<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        store: Store,
    ) -> Result<Progress, Trouble> {
        let timeout = COMMITTED_TIMEOUT_MIN * 2u32.saturating_pow(self.waiting.attempts.min(8));
        let topic = setup.topology.input_topic();
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
            rebuilding: known.and_then(|at| at.rebuilding),
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
            course.store.write(Writes::default(), &positions, true)?;
            return self.finish(setup, consumer, course);
        };
        let mut writes = Writes::default();
        let (records, ended) =
            reader.read(setup, self.partition, &mut writes, &mut positions).context("restore a store")?;
        self.records += records;
        let ended = match reader.log {
            // What the target names may be gone (a compacted tombstone, a marker): the log's end will do.
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
            course.store.write(writes, &positions, false)?;
            crash::at(Step::Restore);
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
        // An aborted transaction moves the logs' ends, and leaves nothing to read.
        if state.is_none() && self.records > 0 {
            return Err(Trouble::Stop(anyhow!(
                "restore partition {}: {} holds state, and {} does not say which input position it belongs to: it \
                 has lost its records. To begin without state, delete both topics and run `ticket-pipeline topics apply`",
                self.partition,
                setup.topology.changelog_topic,
                setup.topology.ids_topic
            )));
        }
        let rebuilding = at.and_then(|at| at.rebuilding);
        let start = Start::judge(state, rebuilding, committed.map(|committed| committed.position));
        let (position, replay) = self.position(setup, consumer, start)?;
        tracing::info!(
            partition = self.partition,
            position,
            records = self.records,
            elapsed_ms = self.started.elapsed().as_millis() as u64,
            "restored"
        );
        let stream_time_ms = at.map_or(i64::MIN, |at| at.stream_time_ms);
        let is_foreign = state.is_some() && committed.is_none_or(|committed| committed.ends.is_none());
        let restored = Restored { store, position, ends, stream_time_ms, replay, is_foreign };
        Ok(Progress::Done(Box::new(restored)))
    }

    /// Where the input goes on, and what has to be made anew before it does.
    fn position<C: ConsumerContext>(
        &self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        start: Start,
    ) -> Result<(i64, Option<Replay>), Trouble> {
        let partition = self.partition;
        let topic = setup.topology.input_topic();
        let (low, end) = watermarks(consumer, topic, partition)?;
        let (position, reset) = match start {
            Start::Beginning => return Ok((low, None)),
            Start::Level(position) => (position, None),
            Start::Forgotten(position) => {
                tracing::warn!(
                    partition,
                    position,
                    "no committed offset: going on from the state's input position"
                );
                (position, None)
            }
            Start::Skip { state, committed } => {
                tracing::warn!(
                    partition,
                    state,
                    committed,
                    "SKIPPING: the committed offset is ahead of the state; what lies between is never read"
                );
                (committed, None)
            }
            Start::Replay(reset) => (reset.from, Some((reset, false))),
            Start::BeginAgain { reset, logged_to } => {
                tracing::warn!(
                    partition,
                    position = reset.to,
                    "a replay did not come to its end: beginning it again"
                );
                (reset.from, Some((reset, reset.to == logged_to)))
            }
        };
        // Of a replay this is the position behind what was ever read.
        if position < low {
            return Err(Trouble::Stop(anyhow!(
                "the records of {topic} [{partition}] from {position} to {low} are gone before they were read: to skip \
                 them, reset the group's offset of this partition to {low}"
            )));
        }
        if position > end {
            return Err(Trouble::Stop(anyhow!(
                "{topic} [{partition}] ends at {end}, before the position {position} up to which it was read: was it \
                 deleted and made anew? Its state belongs to records that are gone. To begin anew, name another group \
                 in the topology, or delete {} and {} too, run `ticket-pipeline topics apply` and reset the group's \
                 offsets to the beginning",
                setup.topology.changelog_topic,
                setup.topology.ids_topic
            )));
        }
        let Some((mut reset, is_logged)) = reset else { return Ok((position, None)) };
        let is_begun = matches!(start, Start::BeginAgain { .. });
        if reset.to < low {
            tracing::warn!(
                partition,
                asked_for = reset.to,
                beginning = low,
                "the raw topic begins behind the position to replay from: replaying from its beginning"
            );
            // What an attempt before this one has removed was judged by the
            // position that it was asked for.
            reset.to = if is_begun { reset.to } else { low };
        }
        let whole_at = (!is_begun).then_some(reset.from);
        Ok((reset.to.max(low), Some(Replay { reset, is_logged, whole_at, low })))
    }
}
