//! The loop of one thread: poll, process, commit, apply.
//!
//! A worker owns a consumer, a transactional producer and the tasks of its
//! partitions. Kafka commits first and the stores follow, so a crash between the
//! two leaves a store behind its changelog, never ahead. It does not know what a
//! task does with a record.

mod assignment;
mod batch;
mod counts;
mod membership;
mod polling;
mod sending;
mod status;
mod tasks;
mod turn;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::clients::{self, Member, Sight};
use crate::record::Outbox;
use crate::restore::Setup;
use crate::stage::Stage;
use crate::telemetry::{Instruments, Traces};
use crate::transaction::{Producer, Trouble};
use assignment::Assignment;
use batch::Batch;
pub use counts::{Counts, OfType};
use membership::Membership;
pub use status::{LastTrouble, Place, Published, Status, StoreSize, TaskState, TaskStatus, WorkerState};
use tasks::Tasks;

const FENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// After the n-th trouble in a row the worker waits 2^n times the least of these, up to the most.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the process asks of its workers.
#[derive(Debug, Default)]
pub struct Orders {
    /// Of all: commit what is in hand, and end.
    pub stop: AtomicBool,
    rejoin_tickets: AtomicBool,
    rejoin_rekey: AtomicBool,
}

impl Orders {
    /// Of whichever worker of a stage sees it first: leave the group and join it again.
    #[must_use]
    pub fn rejoin(&self, stage: Stage) -> &AtomicBool {
        match stage {
            Stage::Tickets => &self.rejoin_tickets,
            Stage::Rekey => &self.rejoin_rekey,
        }
    }
}

/// One thread's work.
pub struct Worker {
    setup: Arc<Setup>,
    member: Member,
    tasks: Tasks,
    status: Status,
    published: Arc<Published>,
    instruments: Instruments,
    traces: Traces,
    orders: Arc<Orders>,
    outbox: Outbox,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("member", &self.member).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker that has done nothing yet.
    #[must_use]
    pub fn new(
        setup: Arc<Setup>,
        member: Member,
        published: Arc<Published>,
        (instruments, traces): (Instruments, Traces),
        orders: Arc<Orders>,
    ) -> Worker {
        let (stage, counts) = (setup.stage, Counts::new(setup.topology.event_types.len()));
        Worker {
            setup,
            member,
            tasks: Tasks::default(),
            status: Status { stage, counts, ..Status::default() },
            published,
            instruments,
            traces,
            orders,
            outbox: Outbox::default(),
        }
    }

    /// Works until told to stop: the last batch is committed and the stores are closed.
    ///
    /// # Errors
    /// What no retry can help.
    pub fn run(mut self) -> Result<()> {
        self.publish();
        let outcome = self.lives();
        self.enter(WorkerState::Ended);
        outcome
    }

    fn lives(&mut self) -> Result<()> {
        let mut rebuilds = 0;
        loop {
            let commits = self.status.commits;
            match self.life() {
                Ok(()) => return Ok(()),
                Err(Trouble::Stop(error)) => {
                    self.note_trouble(&format!("{error:#}"));
                    return Err(error);
                }
                Err(Trouble::Again(why) | Trouble::Rebuild(why)) => {
                    self.note_trouble(&why);
                    self.enter(WorkerState::Connecting);
                    tracing::warn!(why, "building the clients anew");
                    rebuilds = if self.status.commits > commits { 0 } else { rebuilds + 1 };
                    self.pause(backoff(rebuilds));
                }
            }
            if self.is_stopping() {
                return Ok(());
            }
        }
    }

    fn enter(&mut self, state: WorkerState) {
        self.status.state = state;
        self.publish();
    }

    fn note_trouble(&mut self, what: &str) {
        self.status.last_trouble = Some(LastTrouble { at: SystemTime::now(), what: what.to_owned() });
    }

    /// One life of a pair of clients.
    fn life(&mut self) -> Result<(), Trouble> {
        let topology = Arc::clone(&self.setup.topology);
        let stage = self.setup.stage;
        // The consumer is dropped first: its drop revokes, and a transaction is closed by then.
        let mut producer = Producer::connect(
            &topology,
            stage,
            &clients::producer(&topology, &self.member),
            self.setup.partitions,
        )?;
        // Before the group knows us, what a predecessor left open is ended.
        while !producer.fence(FENCE_TIMEOUT)? {
            self.published.turn();
            if self.is_stopping() {
                return Ok(());
            }
            self.note_trouble("the producer cannot begin yet");
            self.publish();
            tracing::warn!("the producer cannot begin yet: is Kafka up?");
        }
        self.enter(WorkerState::Joining);
        let consumer: BaseConsumer<Assignment> = clients::consumer(&topology, &self.member)
            .create_with_context(Assignment::default())
            .context("create the consumer")?;
        self.subscribe(&consumer)?;
        let outcome = self.turns(&consumer, &mut producer);
        let closed = self.tasks.close_all();
        if self.is_stopping() && outcome.is_ok() && closed.is_ok() {
            // Only the client's leave is left to come.
            self.enter(WorkerState::Ended);
        }
        drop(consumer);
        outcome.and(closed.map_err(Trouble::from))
    }

    fn subscribe(&self, consumer: &BaseConsumer<Assignment>) -> Result<()> {
        let topic = self.setup.stage.topic(&self.setup.topology);
        consumer.subscribe(&[topic]).with_context(|| format!("subscribe to {topic}"))
    }

    /// Unlike the end of a client, an unsubscription leaves the group for a static
    /// member too (librdkafka's `rd_kafka_cgrp_leave_maybe`), so that a rebalance
    /// follows. What is in hand is revoked in the next polls and read again.
    fn rejoin(&self, consumer: &BaseConsumer<Assignment>) -> Result<()> {
        consumer.unsubscribe();
        self.subscribe(consumer)
    }

    fn turns(&mut self, consumer: &BaseConsumer<Assignment>, producer: &mut Producer) -> Result<(), Trouble> {
        let mut batch = Batch::new(&self.setup.topology, &self.member);
        let mut troubles = 0;
        let mut restores_wait = false;
        let mut membership = Membership::default();
        let mut sight = Sight::new(&clients::base(&self.setup.topology.kafka));
        loop {
            self.published.turn();
            producer.check_coordinator()?;
            sight.keep(consumer.client());
            // What was polled is committed; what was not is the next run's.
            if self.is_stopping() && batch.is_empty() {
                return Ok(());
            }
            if self.orders.rejoin(self.setup.stage).swap(false, Ordering::Relaxed) {
                self.rejoin(consumer)?;
            }
            let due = self.poll(consumer, &mut batch, restores_wait, backoff(troubles))?;
            if membership.look(consumer, &mut self.status) {
                self.publish();
            }
            if self.tasks.are_restoring() {
                restores_wait = self.tasks.restore_step(&self.setup, consumer, producer)?;
                self.publish();
            }
            if self.tasks.are_rebuilding() {
                restores_wait = false;
                match self.tasks.rebuild_step(&self.setup, consumer, producer) {
                    Ok(()) => troubles = 0,
                    Err(Trouble::Again(why)) => {
                        self.note_trouble(&why);
                        tracing::warn!(why, "transaction of a rebuild aborted: sending it again");
                        troubles += 1;
                    }
                    Err(trouble) => return Err(trouble),
                }
                self.publish();
            }
            let is_due = (due || self.is_stopping()) && !batch.is_empty();
            if is_due || self.tasks.are_foreign() {
                let began = Instant::now();
                let partitions = batch.due(batch.is_full() || self.is_stopping(), began);
                match self.turn(consumer, producer, (&batch, &partitions)) {
                    Ok(done) => {
                        batch.drop_first(&partitions, done.records, (began, Instant::now()));
                        troubles = 0;
                        if done.slow {
                            return Err(Trouble::Rebuild("a commit took very long".into()));
                        }
                    }
                    Err(Trouble::Again(why)) => {
                        self.note_trouble(&why);
                        tracing::warn!(why, "transaction aborted: processing its records again");
                        self.tasks.discard(&self.setup);
                        self.publish();
                        troubles += 1;
                    }
                    Err(trouble) => {
                        self.tasks.discard(&self.setup);
                        return Err(trouble);
                    }
                }
            }
            self.tasks.flush_if_due()?;
        }
    }

    fn is_stopping(&self) -> bool {
        self.orders.stop.load(Ordering::Relaxed)
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_stopping() && Instant::now() < until {
            self.published.turn();
            std::thread::sleep(BACKOFF_MIN);
        }
    }

    fn publish(&mut self) {
        self.status.tasks.clear();
        self.status.tasks.extend(self.tasks.statuses());
        self.status.restored_records = self.tasks.restored_records();
        self.status.rebuilt_records = self.tasks.rebuilt_records();
        self.published.publish(self.status.clone());
    }
}

fn backoff(troubles: u32) -> Duration {
    match troubles {
        0 => Duration::ZERO,
        n => BACKOFF_MIN.saturating_mul(2u32.saturating_pow(n.min(16))).min(BACKOFF_MAX),
    }
}
