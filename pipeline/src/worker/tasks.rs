//! The tasks that a worker owns, and where each is in its life.
//!
//! ```text
//!            assigned            opened             level
//!  (none) ───────────► Created ─────────► Restoring ─────► Running
//!                         │                   │  │            ▲ │
//!                         │            reset  │  └► Rebuilding┘ │
//!                         │                   │        │        │
//!                         └───────────────────┴────────┴────────┴──► Closed
//!                              revoked, lost, shut down
//! ```
//!
//! It does not know transactions: it is told when a task's writes are committed,
//! and when they must be forgotten.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::assignment::Change;
use super::status::{StoreSize, TaskState, TaskStatus};
use crate::clients::{self, Logs};
use crate::commit_record::Ends;
use crate::rebuild::{self, Rebuild};
use crate::restore::{self, Progress, Restore, Restored, Resume, Setup};
use crate::stage::{Stage, Work};
use crate::store::{Positions, Store};
use crate::transaction::{Producer, Trouble};

/// So many restores of a worker read the log at a time, each on a thread of its own.
const READINGS_MAX: usize = 2;

/// What a store takes is measured so often.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);

/// Where a task is in its life. A task that is closed is no longer among them.
#[derive(Debug)]
enum Life {
    /// Ours, and nothing done for it yet; it waits for its turn to be restored.
    Created,
    /// Its store follows the log, and has so many records left to read, at
    /// most; no record of it is processed.
    Restoring(i64),
    /// Its state is made what it was, for a replay; no record of it is processed.
    Rebuilding(Box<Rebuild>),
    /// It processes records.
    Running(Box<Running>),
}

/// A task that processes records.
#[derive(Debug)]
pub(super) struct Running {
    /// What it does with them, and the state that it has.
    pub(super) work: Work,
    /// The next input offset to process.
    pub(super) position: i64,
    /// What is committed.
    pub(super) committed: Commit,
    /// The group's offset says something else, or nothing.
    is_foreign: bool,
    /// What the store takes, and when that was measured.
    measured: Option<(Instant, StoreSize)>,
}

/// A task's place as of its last commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Commit {
    /// The input position.
    pub(super) position: i64,
    /// The ends of changelog and ids log.
    pub(super) ends: Ends,
    /// The greatest Kafka timestamp read so far, in milliseconds.
    pub(super) stream_time_ms: i64,
}

/// The tasks of a worker, by partition.
#[derive(Default)]
pub(super) struct Tasks {
    lives: BTreeMap<i32, Life>,
    /// What is being restored; so many at a time read the log.
    restores: VecDeque<Starting>,
    restored_records: u64,
    rebuilt_records: u64,
    /// Asks Kafka where the logs end; made when the first restore needs it.
    asker: Option<BaseConsumer<Logs>>,
}

/// What a task does before it processes records.
#[derive(Debug)]
enum Starting {
    /// Brings its state to where the log says.
    Restore(Box<Restore>),
    /// Has no state, and finds out where to go on.
    Resume(Resume),
}

impl Starting {
    fn new(stage: Stage, partition: i32) -> Starting {
        match stage {
            Stage::Rekey => Starting::Resume(Resume::new(partition)),
            Stage::Tickets => Starting::Restore(Box::new(Restore::new(partition))),
        }
    }

    fn partition(&self) -> i32 {
        match self {
            Starting::Restore(restore) => restore.partition(),
            Starting::Resume(resume) => resume.partition(),
        }
    }

    /// How many records it has read so far.
    fn records(&self) -> u64 {
        match self {
            Starting::Restore(restore) => restore.records(),
            Starting::Resume(_) => 0,
        }
    }

    fn is_reading(&self) -> bool {
        matches!(self, Starting::Restore(restore) if restore.is_reading())
    }

    fn step<C: ConsumerContext>(
        &mut self,
        setup: &Arc<Setup>,
        consumer: &BaseConsumer<C>,
        asker: &BaseConsumer<Logs>,
        may_read: bool,
    ) -> Result<Progress, Trouble> {
        match self {
            Starting::Restore(restore) => restore.step(setup, consumer, asker, may_read),
            Starting::Resume(resume) => resume.step(setup, consumer),
        }
    }
}

impl Tasks {
    /// Follows what the group did with the partitions of a stage's topic.
    ///
    /// # Errors
    /// Where a store cannot be closed.
    pub(super) fn follow(&mut self, stage: Stage, changes: &[Change]) -> Result<()> {
        for change in changes {
            match *change {
                Change::Assigned(partition) => {
                    tracing::info!(partition, "assigned");
                    self.lives.insert(partition, Life::Created);
                    self.restores.push_back(Starting::new(stage, partition));
                }
                Change::Revoked(partition) => {
                    tracing::info!(partition, "revoked");
                    self.close(partition)?;
                }
                Change::Lost(partition) => {
                    tracing::warn!(
                        partition,
                        "lost: the group gave it to another; dropping what is not committed"
                    );
                    self.close(partition)?;
                }
            }
        }
        Ok(())
    }

    /// Takes one bounded step of every restore, with no transaction open. `true`: there is nothing to do at once.
    ///
    /// # Errors
    /// Where a restore cannot go on.
    pub(super) fn restore_step<C: ConsumerContext>(
        &mut self,
        setup: &Arc<Setup>,
        consumer: &BaseConsumer<C>,
        producer: &mut Producer,
    ) -> Result<bool, Trouble> {
        if self.restores.is_empty() {
            return Ok(true);
        }
        let asker = match self.asker.take() {
            Some(asker) => asker,
            None => restore::create(&clients::log_reader(&setup.topology))?,
        };
        let all_wait = self.step_restores(setup, (consumer, &asker), producer);
        // Where it could not be answered, it may be what is wrong.
        self.asker = all_wait.is_ok().then_some(asker);
        all_wait
    }

    fn step_restores<C: ConsumerContext>(
        &mut self,
        setup: &Arc<Setup>,
        (consumer, asker): (&BaseConsumer<C>, &BaseConsumer<Logs>),
        producer: &mut Producer,
    ) -> Result<bool, Trouble> {
        let mut all_wait = true;
        let mut readings = self.restores.iter().filter(|restore| restore.is_reading()).count();
        for mut restore in std::mem::take(&mut self.restores) {
            let partition = restore.partition();
            readings -= usize::from(restore.is_reading());
            let records = restore.records();
            let progress = restore.step(setup, consumer, asker, readings < READINGS_MAX)?;
            self.restored_records += restore.records() - records;
            readings += usize::from(restore.is_reading());
            match progress {
                Progress::Waiting => self.restores.push_back(restore),
                Progress::Unmarked(unmarked) => {
                    tracing::warn!(
                        partition,
                        "Kafka has committed a transaction and lost its markers: having it write them again"
                    );
                    producer.mark(partition, unmarked)?;
                    self.restores.push_back(restore);
                }
                Progress::Reading(records) => {
                    self.lives.insert(partition, Life::Restoring(records));
                    self.restores.push_back(restore);
                }
                Progress::Left(records) => {
                    all_wait = false;
                    self.lives.insert(partition, Life::Restoring(records));
                    self.restores.push_back(restore);
                }
                Progress::Done(restored) => {
                    all_wait = false;
                    let life = match restored.replay {
                        Some(replay) => {
                            Life::Rebuilding(Box::new(Rebuild::new(setup, partition, *restored, replay)))
                        }
                        None => run(setup, consumer, partition, *restored)?,
                    };
                    self.lives.insert(partition, life);
                }
            }
        }
        Ok(all_wait)
    }

    /// Takes one bounded step of one rebuild, with no transaction open.
    ///
    /// # Errors
    /// After [`Trouble::Again`] the same step may be tried again.
    pub(super) fn rebuild_step<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        producer: &mut Producer,
    ) -> Result<(), Trouble> {
        let under_way = self.lives.iter_mut().find_map(|(partition, life)| match life {
            Life::Rebuilding(rebuild) => Some((*partition, rebuild)),
            _ => None,
        });
        let Some((partition, rebuild)) = under_way else { return Ok(()) };
        let records = rebuild.records();
        let progress = rebuild.step(setup, consumer, producer);
        self.rebuilt_records += rebuild.records() - records;
        match progress? {
            rebuild::Progress::UnderWay => {}
            rebuild::Progress::Done => {
                if let Some(Life::Rebuilding(rebuild)) = self.lives.remove(&partition) {
                    let life = run(setup, consumer, partition, rebuild.into_restored())?;
                    self.lives.insert(partition, life);
                }
            }
        }
        Ok(())
    }

    /// Whether any store is still to be restored.
    #[must_use]
    pub(super) fn are_restoring(&self) -> bool {
        !self.restores.is_empty()
    }

    /// Whether any state is still to be made anew.
    #[must_use]
    pub(super) fn are_rebuilding(&self) -> bool {
        self.lives.values().any(|life| matches!(life, Life::Rebuilding(_)))
    }

    /// How many records restores have read so far.
    #[must_use]
    pub(super) fn restored_records(&self) -> u64 {
        self.restored_records
    }

    /// How many raw records rebuilds have read so far.
    #[must_use]
    pub(super) fn rebuilt_records(&self) -> u64 {
        self.rebuilt_records
    }

    /// Whether the group's offset of any is still to be made ours.
    pub(super) fn are_foreign(&mut self) -> bool {
        self.all_running().any(|(_, running)| running.is_foreign)
    }

    /// The running task of a partition.
    pub(super) fn running(&mut self, partition: i32) -> Option<&mut Running> {
        match self.lives.get_mut(&partition) {
            Some(Life::Running(running)) => Some(running),
            _ => None,
        }
    }

    /// All running tasks, by partition.
    pub(super) fn all_running(&mut self) -> impl Iterator<Item = (i32, &mut Running)> {
        self.lives.iter_mut().filter_map(|(partition, life)| match life {
            Life::Running(running) => Some((*partition, running.as_mut())),
            Life::Created | Life::Restoring(_) | Life::Rebuilding(_) => None,
        })
    }

    /// What each has come to, by partition.
    pub(super) fn statuses(&mut self) -> impl Iterator<Item = TaskStatus> {
        let now = Instant::now();
        self.lives.iter_mut().map(move |(partition, life)| life.status(*partition, now))
    }

    /// Forgets what is not committed: every task is as after its last commit.
    pub(super) fn discard(&mut self, setup: &Setup) {
        for (_, running) in self.all_running() {
            running.discard(setup);
        }
    }

    /// Flushes the stores that are due.
    ///
    /// # Errors
    /// Where a disk cannot be written.
    pub(super) fn flush_if_due(&mut self) -> Result<()> {
        let now = Instant::now();
        self.all_running().try_for_each(|(_, running)| {
            running.work.task().map_or(Ok(()), |task| task.store.flush_if_due(now))
        })
    }

    /// Closes every task and its store, those too behind one that cannot be closed.
    ///
    /// # Errors
    /// Where a disk cannot be written: the first such.
    pub(super) fn close_all(&mut self) -> Result<()> {
        let partitions: Vec<i32> = self.lives.keys().copied().collect();
        let mut outcome = Ok(());
        for partition in partitions {
            outcome = outcome.and(self.close(partition));
        }
        outcome
    }

    fn close(&mut self, partition: i32) -> Result<()> {
        self.restores.retain(|restore| restore.partition() != partition);
        match self.lives.remove(&partition) {
            Some(Life::Running(running)) => {
                running.close().with_context(|| format!("close the store of partition {partition}"))
            }
            Some(Life::Rebuilding(rebuild)) => rebuild.close(),
            Some(Life::Created | Life::Restoring(_)) | None => Ok(()),
        }
    }
}

impl Life {
    fn status(&mut self, partition: i32, now: Instant) -> TaskStatus {
        let mut status = TaskStatus {
            partition,
            state: TaskState::Created,
            position: None,
            records_left: 0,
            ids_forgotten_before: None,
            store: StoreSize::default(),
        };
        match self {
            Life::Created => {}
            Life::Restoring(records_left) => {
                status.state = TaskState::Restoring;
                status.records_left = *records_left;
            }
            Life::Rebuilding(rebuild) => {
                status.state = TaskState::Rebuilding;
                status.records_left = rebuild.records_left();
            }
            Life::Running(running) => {
                status.state = TaskState::Running;
                status.position = Some(running.committed.position);
                status.ids_forgotten_before =
                    running.work.task().and_then(|task| task.store.ids_forgotten_before());
                status.store = running.store_size(now);
            }
        }
        status
    }
}

impl Running {
    fn new(setup: &Setup, restored: Restored) -> Running {
        let Restored { store, position, ends, stream_time_ms, is_foreign, .. } = restored;
        Running {
            is_foreign,
            work: Work::new(setup.stage, &setup.topology, setup.partitions, store, stream_time_ms),
            position,
            committed: Commit { position, ends, stream_time_ms },
            measured: None,
        }
    }

    fn store_size(&mut self, now: Instant) -> StoreSize {
        match self.measured {
            Some((at, size)) if now.saturating_duration_since(at) < MEASURE_INTERVAL => size,
            _ => {
                let size = self.work.task().map_or(StoreSize::default(), |task| StoreSize {
                    disk_bytes: task.store.disk_bytes(),
                    memory_bytes: task.store.memory_bytes() as u64,
                });
                self.measured = Some((now, size));
                size
            }
        }
    }

    /// Kafka has committed: the store follows.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub(super) fn apply(&mut self, ends: Ends) -> Result<()> {
        let stream_time_ms = self.work.task().map_or(i64::MIN, |task| task.stream_time_ms());
        self.committed = Commit { position: self.position, ends, stream_time_ms };
        self.is_foreign = false;
        let Some(task) = self.work.task() else { return Ok(()) };
        let positions = Positions {
            changelog: ends.changelog,
            ids: ends.ids,
            input: self.position,
            stream_time_ms,
            rebuilding: None,
        };
        task.store.apply(&positions)?;
        task.store.flush_if_due(Instant::now())
    }

    /// How much the open transaction has to remember, about.
    pub(super) fn open_bytes(&mut self) -> usize {
        self.work.task().map_or(0, |task| task.store.open_bytes())
    }

    /// Whether there is something to commit.
    pub(super) fn has_moved(&self) -> bool {
        self.is_foreign || self.position != self.committed.position
    }

    fn close(mut self) -> Result<()> {
        let store = self.work.task().map(|task| std::mem::take(&mut task.store));
        store.map_or(Ok(()), Store::close)
    }

    fn discard(&mut self, setup: &Setup) {
        self.position = self.committed.position;
        let Some(task) = self.work.task() else { return };
        let mut store = std::mem::take(&mut task.store);
        store.discard();
        // The stream time is the task's own, and has run ahead too.
        let stream_time_ms = self.committed.stream_time_ms;
        self.work = Work::new(setup.stage, &setup.topology, setup.partitions, store, stream_time_ms);
    }
}

/// The task processes records from there on.
fn run<C: ConsumerContext>(
    setup: &Setup,
    consumer: &BaseConsumer<C>,
    partition: i32,
    restored: Restored,
) -> Result<Life, Trouble> {
    go_on(setup, consumer, partition, restored.position)?;
    Ok(Life::Running(Box::new(Running::new(setup, restored))))
}

/// The consumer reads on from there.
fn go_on<C: ConsumerContext>(
    setup: &Setup,
    consumer: &BaseConsumer<C>,
    partition: i32,
    position: i64,
) -> Result<(), Trouble> {
    let topic = setup.stage.topic(&setup.topology);
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    consumer
        .seek(topic, partition, Offset::Offset(position), std::time::Duration::from_secs(10))
        .and_then(|()| consumer.resume(&list))
        .map_err(|error| {
            Trouble::Rebuild(format!("go on with {topic} [{partition}] from {position}: {error}"))
        })
}
