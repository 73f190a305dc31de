//! Brings a store to where the log says that it should be, and says where the
//! input goes on.
//!
//! The committed offset's metadata names the ends of changelog and ids log that
//! belong to it; the difference between them and the store's positions is read.
//! It advances in bounded steps, and reads on a thread of its own, so that its
//! worker keeps polling. Where the
//! committed offset was moved back it says so; how a state is made anew is
//! [`crate::rebuild`]'s to know. It does not know tasks, nor what an entry means.

mod losses;
mod marks;
mod offsets;
mod plan;
mod position;
mod reader;
mod reading;
mod rekeying;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};

use crate::clients::{self, Logs};
use crate::commit_record::Ends;
use crate::store::{Positions, Reset, StateDirectory, Store};
use crate::topology::Topology;
use crate::transaction::{Trouble, Unmarked};
pub(crate) use losses::how_to_mend;
use marks::Marks;
pub(crate) use marks::{ends_of, every_partition};
use offsets::{Committed, Question};
use plan::{Plan, Start};
pub(crate) use reader::{create, is_passing, watermarks};
use reading::{Read, Reading};
pub use rekeying::Resume;

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
    Committed(Store, Question),
    /// The log's last stable offset may lie before what is committed.
    Settle(Course),
    /// What is to be read is known, and by whom is not.
    Ready(Course, Positions),
    /// A thread reads it.
    Read(Reading),
    /// Handed over.
    Done,
}

/// A store, and where it is to be brought to.
#[derive(Debug)]
struct Course {
    store: Store,
    committed: Option<Committed>,
    targets: Ends,
    /// Where the ids log begins.
    ids_low: i64,
    /// The ids log begins behind what the store has of it.
    ids_begin_late: bool,
    marks: Marks,
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
    fn note(&mut self, setup: &Setup, partition: i32, why: &str) {
        self.attempts += 1;
        if !self.warned && self.is_long(setup) {
            self.warned = true;
            tracing::warn!(partition, why, "still waiting to restore: is Kafka whole?");
        }
    }

    /// Whether every transaction of when it began would be decided by now.
    fn is_long(&mut self, setup: &Setup) -> bool {
        self.lasts() > clients::decided_within(&setup.topology)
    }

    fn lasts(&mut self) -> Duration {
        self.since.get_or_insert_with(Instant::now).elapsed()
    }
}

/// What a step came to.
#[derive(Debug)]
pub enum Progress {
    /// Something else has to happen first; the same step is to be tried again.
    Waiting,
    /// The next step can be taken at once; so many records are left to read, at most.
    Left(i64),
    /// A thread reads, or will; the step is to be tried again. So many records are left, at most.
    Reading(i64),
    /// A transaction was committed, and the ids log lacks its marker: it is to be given
    /// another, and the same step is to be tried again.
    Unmarked(Unmarked),
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
    /// The state is as it was at `reset.from`: no earlier attempt has changed it.
    pub is_whole: bool,
    /// Where the raw topic begins now.
    pub low: i64,
}

impl Course {
    /// The offset is as this program has committed it.
    fn is_ours(&self) -> bool {
        self.committed.is_some_and(|committed| committed.ends.is_some())
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

    /// How many records it has read so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Whether a thread of its own is reading.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Read(_))
    }

    /// Takes one step. `consumer` is the worker's, a member of the group; `asker`
    /// fetches nothing, so that no question waits behind a fetch; `may_read` says
    /// that one more thread may read now.
    ///
    /// # Errors
    /// Where Kafka or the disk says what no further step can mend.
    pub fn step<C: ConsumerContext>(
        &mut self,
        setup: &Arc<Setup>,
        consumer: &BaseConsumer<C>,
        asker: &BaseConsumer<Logs>,
        may_read: bool,
    ) -> Result<Progress, Trouble> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Open => match setup.state.open(self.partition)? {
                Some(store) => self.go_on(Stage::Committed(store, Question::new(self.partition))),
                None => self.wait(setup, Stage::Open, "its store is still open in another worker"),
            },
            Stage::Committed(store, question) => self.ask_committed(setup, consumer, store, question),
            Stage::Settle(course) => self.settle(setup, asker, course),
            Stage::Ready(course, positions) if !may_read => {
                self.stage = Stage::Ready(course, positions);
                Ok(Progress::Reading(0))
            }
            Stage::Ready(course, positions) => {
                self.stage = Stage::Read(Reading::begin(setup, self.partition, course, positions)?);
                Ok(Progress::Left(0))
            }
            Stage::Read(reading) => self.read(setup, asker, reading),
            Stage::Done => Err(Trouble::Stop(anyhow!("restore partition {} again", self.partition))),
        }
    }

    fn go_on(&mut self, stage: Stage) -> Result<Progress, Trouble> {
        self.waiting = Waiting::default();
        self.stage = stage;
        Ok(Progress::Left(0))
    }

    fn wait(&mut self, setup: &Setup, stage: Stage, why: &str) -> Result<Progress, Trouble> {
        self.stage = stage;
        self.waiting.note(setup, self.partition, why);
        Ok(Progress::Waiting)
    }

    fn ask_committed<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        store: Store,
        mut question: Question,
    ) -> Result<Progress, Trouble> {
        match question.ask(setup, consumer) {
            Ok(committed) => {
                let targets = match committed.and_then(|committed| committed.ends) {
                    Some(ends) => ends,
                    None => self.true_ends(setup)?,
                };
                let course = Course {
                    store,
                    committed,
                    targets,
                    ids_low: 0,
                    ids_begin_late: false,
                    marks: Marks::default(),
                };
                self.go_on(Stage::Settle(course))
            }
            Err(Trouble::Again(_)) => {
                self.stage = Stage::Committed(store, question);
                Ok(Progress::Waiting)
            }
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

    fn settle(
        &mut self,
        setup: &Setup,
        asker: &BaseConsumer<Logs>,
        mut course: Course,
    ) -> Result<Progress, Trouble> {
        let targets = course.targets;
        let at = course.store.positions();
        let topology = &setup.topology;
        let (changelog_low, changelog_stable) = watermarks(asker, &topology.changelog_topic, self.partition)?;
        let (ids_low, ids_stable) = watermarks(asker, &topology.ids_topic, self.partition)?;
        course.ids_low = ids_low;
        let stable = Ends { changelog: changelog_stable, ids: ids_stable };
        if stable.changelog < targets.changelog || stable.ids < targets.ids {
            let ends = self.true_ends(setup)?;
            if ends.changelog < targets.changelog || ends.ids < targets.ids {
                let what = format!("the committed offset belongs to {targets:?}, and they end at {ends:?}");
                return Err(self.lost_records(setup, &what));
            }
            if self.waiting.is_long(setup) {
                return Err(self.hanging(setup, targets, stable));
            }
            if let Some(unmarked) = self.unmarked(setup, asker, &mut course, (ends, stable))? {
                self.stage = Stage::Settle(course);
                return Ok(Progress::Unmarked(unmarked));
            }
            return self.wait(setup, Stage::Settle(course), "a transaction is not decided");
        }
        let lows = Ends { changelog: changelog_low, ids: ids_low };
        self.look_for_loss(setup, &course, lows)?;
        if at.is_some_and(|at| at.changelog == targets.changelog && at.ids == targets.ids) {
            return self.finish(setup, asker, course);
        }
        let plan = Plan::make(at, targets, lows, course.store.idle_ms(), setup.delete_retention_ms / 2);
        if lows.changelog > 0 && (at.is_none() || plan.wipe.is_some()) {
            let what = format!("{} begins at offset {}", topology.changelog_topic, lows.changelog);
            return Err(self.lost_records(setup, &what));
        }
        course.ids_begin_late = lows.ids > 0 && plan.from.ids == lows.ids;
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
        self.go_on(Stage::Ready(course, positions))
    }

    fn read(
        &mut self,
        setup: &Setup,
        asker: &BaseConsumer<Logs>,
        mut reading: Reading,
    ) -> Result<Progress, Trouble> {
        match reading.outcome() {
            None => {
                let left = reading.left();
                self.records = reading.records();
                self.stage = Stage::Read(reading);
                Ok(Progress::Reading(left))
            }
            Some(read) => {
                let Read { course, records } = read?;
                self.records = records;
                self.finish(setup, asker, course)
            }
        }
    }

    fn finish(
        &mut self,
        setup: &Setup,
        asker: &BaseConsumer<Logs>,
        course: Course,
    ) -> Result<Progress, Trouble> {
        let is_last_kept = course.is_ours() && course.ids_low < course.targets.ids;
        let Course { store, committed, targets: ends, .. } = course;
        let at = store.positions();
        let state = at.map(|at| at.input).filter(|input| *input != Positions::NO_INPUT);
        // An aborted transaction moves the logs' ends, and leaves nothing to read.
        if state.is_none() && (self.records > 0 || !store.entries_after(None, 1)?.is_empty()) {
            let what = format!(
                "there is state, and {} does not say which input position it belongs to",
                setup.topology.ids_topic
            );
            return Err(self.lost_records(setup, &what));
        }
        let rebuilding = at.and_then(|at| at.rebuilding);
        let start = Start::judge(state, rebuilding, committed.map(|committed| committed.position));
        if let (Start::Skip { state, committed }, true) = (start, is_last_kept) {
            return Err(self.taken_back(setup, state, committed));
        }
        let (position, replay) = self.position(setup, asker, start)?;
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
}
