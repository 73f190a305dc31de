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
use std::time::Instant;

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::assignment::Change;
use crate::clients::{self, Logs};
use crate::commit_record::Ends;
use crate::rebuild::{self, Rebuild};
use crate::restore::{self, Progress, Restore, Restored, Setup};
use crate::store::Positions;
use crate::task::Task;
use crate::transaction::{Producer, Trouble};

/// So many restores of a worker read the log at a time, each on a thread of its own.
const READINGS_MAX: usize = 2;

/// Where a task is in its life. A task that is closed is no longer among them.
#[derive(Debug)]
enum Life {
    /// Ours, and nothing done for it yet; it waits for its turn to be restored.
    Created,
    /// Its store follows the log; no record of it is processed.
    Restoring,
    /// Its state is made what it was, for a replay; no record of it is processed.
    Rebuilding(Box<Rebuild>),
    /// It processes records.
    Running(Box<Running>),
}

/// A task that processes records.
#[derive(Debug)]
pub(super) struct Running {
    /// The task.
    pub(super) task: Task,
    /// The next input offset to process.
    pub(super) position: i64,
    /// What is committed.
    pub(super) committed: Commit,
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
    restores: VecDeque<Restore>,
    records_left: i64,
    /// Asks Kafka where the logs end; made when the first restore needs it.
    asker: Option<BaseConsumer<Logs>>,
}

impl Tasks {
    /// Follows what the group did.
    ///
    /// # Errors
    /// Where a store cannot be closed.
    pub(super) fn follow(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            match *change {
                Change::Assigned(partition) => {
                    tracing::info!(partition, "assigned");
                    self.lives.insert(partition, Life::Created);
                    self.restores.push_back(Restore::new(partition));
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

    /// Takes one bounded step of every restore. `true`: there is nothing to do at once.
    ///
    /// # Errors
    /// Where a restore cannot go on.
    pub(super) fn restore_step<C: ConsumerContext>(
        &mut self,
        setup: &Arc<Setup>,
        consumer: &BaseConsumer<C>,
    ) -> Result<bool, Trouble> {
        if self.restores.is_empty() {
            return Ok(true);
        }
        let asker = match self.asker.take() {
            Some(asker) => asker,
            None => restore::create(&clients::log_reader(&setup.topology))?,
        };
        let all_wait = self.step_restores(setup, consumer, &asker);
        self.asker = Some(asker);
        all_wait
    }

    fn step_restores<C: ConsumerContext>(
        &mut self,
        setup: &Arc<Setup>,
        consumer: &BaseConsumer<C>,
        asker: &BaseConsumer<Logs>,
    ) -> Result<bool, Trouble> {
        let mut all_wait = true;
        let mut left = 0;
        let mut readings = self.restores.iter().filter(|restore| restore.is_reading()).count();
        for mut restore in std::mem::take(&mut self.restores) {
            let partition = restore.partition();
            readings -= usize::from(restore.is_reading());
            let progress = restore.step(setup, consumer, asker, readings < READINGS_MAX)?;
            readings += usize::from(restore.is_reading());
            match progress {
                Progress::Waiting => self.restores.push_back(restore),
                Progress::Reading(records) => {
                    left += records;
                    self.lives.insert(partition, Life::Restoring);
                    self.restores.push_back(restore);
                }
                Progress::Left(records) => {
                    left += records;
                    all_wait = false;
                    self.lives.insert(partition, Life::Restoring);
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
        self.records_left = left;
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
        match rebuild.step(setup, consumer, producer)? {
            rebuild::Progress::Left(records) => self.records_left = records,
            rebuild::Progress::Done => {
                self.records_left = 0;
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

    /// How many records the restore or rebuild under way has left to read, at most.
    #[must_use]
    pub(super) fn records_left(&self) -> i64 {
        self.records_left
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
            Life::Created | Life::Restoring | Life::Rebuilding(_) => None,
        })
    }

    /// Each partition, with the committed position where it runs.
    pub(super) fn positions(&self) -> impl Iterator<Item = (i32, Option<i64>)> {
        self.lives.iter().map(|(partition, life)| match life {
            Life::Running(running) => (*partition, Some(running.committed.position)),
            Life::Created | Life::Restoring | Life::Rebuilding(_) => (*partition, None),
        })
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
        self.all_running().try_for_each(|(_, running)| running.task.store.flush_if_due(now))
    }

    /// Closes every task and its store.
    ///
    /// # Errors
    /// Where a disk cannot be written.
    pub(super) fn close_all(&mut self) -> Result<()> {
        let partitions: Vec<i32> = self.lives.keys().copied().collect();
        partitions.into_iter().try_for_each(|partition| self.close(partition))
    }

    fn close(&mut self, partition: i32) -> Result<()> {
        self.restores.retain(|restore| restore.partition() != partition);
        match self.lives.remove(&partition) {
            Some(Life::Running(running)) => running
                .task
                .store
                .close()
                .with_context(|| format!("close the store of partition {partition}")),
            Some(Life::Rebuilding(rebuild)) => rebuild.close(),
            Some(Life::Created | Life::Restoring) | None => Ok(()),
        }
    }
}

impl Running {
    fn new(setup: &Setup, restored: Restored) -> Running {
        let Restored { store, position, ends, stream_time_ms, .. } = restored;
        let topology = Arc::clone(&setup.topology);
        Running {
            task: Task::new(topology, setup.partitions, store, stream_time_ms),
            position,
            committed: Commit { position, ends, stream_time_ms },
        }
    }

    /// Kafka has committed: the store follows.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub(super) fn apply(&mut self, ends: Ends) -> Result<()> {
        let stream_time_ms = self.task.stream_time_ms();
        self.committed = Commit { position: self.position, ends, stream_time_ms };
        let positions = Positions {
            changelog: ends.changelog,
            ids: ends.ids,
            input: self.position,
            stream_time_ms,
            rebuilding: None,
        };
        self.task.store.apply(&positions)?;
        self.task.store.flush_if_due(Instant::now())
    }

    fn discard(&mut self, setup: &Setup) {
        let mut store = std::mem::take(&mut self.task.store);
        store.discard();
        // The stream time is the task's own, and has run ahead too.
        let topology = Arc::clone(&setup.topology);
        self.task = Task::new(topology, setup.partitions, store, self.committed.stream_time_ms);
        self.position = self.committed.position;
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
    let topic = &setup.topology.source.topic;
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    consumer
        .seek(topic, partition, Offset::Offset(position), std::time::Duration::from_secs(10))
        .and_then(|()| consumer.resume(&list))
        .map_err(|error| {
            Trouble::Rebuild(format!("go on with {topic} [{partition}] from {position}: {error}"))
        })
}
