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
mod sending;
mod status;
mod tasks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use rdkafka::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;

use crate::clients::{self, Member};
use crate::crash::{self, Step};
use crate::record::{Outbox, RawRecord};
use crate::restore::Setup;
use crate::stage::Stage;
use crate::telemetry::{self, Instruments, Outcome, Traces};
use crate::topology::TRANSACTION_TIMEOUT_MS;
use crate::transaction::{Moved, Producer, Transaction, Trouble, read_headers};
use assignment::Assignment;
use batch::Batch;
pub use counts::{Counts, OfType};
use membership::Membership;
use sending::{process, send_task};
pub use status::{LastTrouble, Place, Published, Status, StoreSize, TaskState, TaskStatus, WorkerState};
use tasks::Tasks;

/// An idle poll takes so long: the time in which a stop is noticed.
const IDLE_POLL: Duration = Duration::from_millis(100);

/// While all restores wait for something, the worker looks again after so long.
const RESTORE_POLL: Duration = Duration::from_millis(10);

const FENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// A transaction takes in no more records when it has sent so much, what is to be
/// remembered included, or has processed for so long: a few raw records can make
/// gigabytes, and Kafka aborts what lasts too long.
const TRANSACTION_BYTES_MAX: usize = 64 * 1024 * 1024;
const PROCESSING_TIME_MAX: Duration = Duration::from_millis(TRANSACTION_TIMEOUT_MS / 3);

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

/// What became of a batch.
struct Done {
    /// So many of its records are dealt with, from the first on.
    records: usize,
    committed: bool,
    /// The commit took so long that a stray of it may come late.
    slow: bool,
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
        let mut batch = Batch::new(Duration::from_millis(self.setup.topology.runtime.commit_interval_ms));
        let mut troubles = 0;
        let mut restores_wait = false;
        let mut membership = Membership::default();
        loop {
            self.published.turn();
            producer.check_coordinator()?;
            // What was polled is committed; what was not is the next run's.
            if self.is_stopping() && batch.records.is_empty() {
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
                restores_wait = self.tasks.restore_step(&self.setup, consumer)?;
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
            let is_due = (due || self.is_stopping()) && !batch.records.is_empty();
            if is_due || self.tasks.are_foreign() {
                let began = Instant::now();
                match self.turn(consumer, producer, &batch) {
                    Ok(done) => {
                        batch.drop_first(done.records, began);
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

    /// Polls until the batch is due and holds all that comes at once, or nothing
    /// more comes at once while there is a restore to advance. Rebalances land
    /// here, with no transaction open. After a trouble it polls at least for that
    /// long, whatever the batch.
    fn poll<'c>(
        &mut self,
        consumer: &'c BaseConsumer<Assignment>,
        batch: &mut Batch<'c>,
        restores_wait: bool,
        pause: Duration,
    ) -> Result<bool, Trouble> {
        let topology = Arc::clone(&self.setup.topology);
        let not_before = (!pause.is_zero()).then(|| Instant::now() + pause);
        loop {
            let pausing =
                not_before.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            let mut wait = batch.wait().unwrap_or(IDLE_POLL).max(pausing).min(IDLE_POLL);
            let at_once = self.tasks.are_restoring() || self.tasks.are_rebuilding();
            if at_once && pausing.is_zero() {
                wait = wait.min(if restores_wait { RESTORE_POLL } else { Duration::ZERO });
            }
            if !pausing.is_zero() && batch.is_full(&topology.limits) {
                // A pause is no reason to take in ever more; rebalances land here all the same.
                std::thread::sleep(wait);
                wait = Duration::ZERO;
            }
            let polled = consumer.poll(wait);
            let came = polled.is_some();
            let changes = consumer
                .context()
                .take_changes()
                .map_err(|error| Trouble::Rebuild(format!("follow a rebalance: {error}")))?;
            if !changes.is_empty() {
                self.tasks.follow(self.setup.stage, &changes)?;
                let tasks = &mut self.tasks;
                batch.records.retain(|record| tasks.running(record.partition()).is_some());
                if batch.records.is_empty() {
                    batch.clear();
                }
                self.publish();
            }
            match polled {
                Some(Ok(record)) => {
                    // What is read before its task runs, or was read before, is not ours to process.
                    let position = self.tasks.running(record.partition()).map(|running| running.position);
                    if position.is_some_and(|position| record.offset() >= position) && !self.is_stopping() {
                        batch.push(record);
                    }
                }
                Some(Err(error)) => self.judge(&error)?,
                None => {}
            }
            let is_waiting = came || batch.wait().is_none_or(|wait| !wait.is_zero());
            let due = batch.is_full(&topology.limits) || !is_waiting;
            let pausing = not_before.is_some_and(|until| Instant::now() < until);
            if self.is_stopping() || (!pausing && (due || !came)) {
                return Ok(due && !pausing);
            }
        }
    }

    /// A batch in, one transaction out.
    fn turn(
        &mut self,
        consumer: &BaseConsumer<Assignment>,
        producer: &mut Producer,
        batch: &Batch<'_>,
    ) -> Result<Done, Trouble> {
        let began = Instant::now();
        let (traces, topology) = (self.traces.clone(), Arc::clone(&self.setup.topology));
        let mut trace = traces.transaction(&topology, self.setup.stage);
        let result = self.transact(consumer, producer, batch, &mut trace);
        let outcome = match &result {
            Ok(Done { committed: true, .. }) => Outcome::Committed,
            Ok(_) | Err(Trouble::Again(_)) => Outcome::Aborted,
            Err(_) => Outcome::Unknown,
        };
        self.instruments.transaction(outcome, began.elapsed());
        trace.end(outcome, result.as_ref().map_or(batch.records.len(), |done| done.records));
        result
    }

    /// The transaction itself, which is aborted where nothing of the batch is ours any more.
    ///
    /// The order is the guarantee: Kafka commits, then the stores follow.
    fn transact(
        &mut self,
        consumer: &BaseConsumer<Assignment>,
        producer: &mut Producer,
        batch: &Batch<'_>,
        trace: &mut telemetry::Transaction<'_>,
    ) -> Result<Done, Trouble> {
        if consumer.assignment_lost() {
            return Err(Trouble::Again("the assignment is lost".into()));
        }
        let mut counts = self.status.counts.clone();
        crash::at(Step::Begin);
        let mut transaction = producer.begin()?;
        crash::at(Step::Process);
        let mut headers = Vec::new();
        let (began, mut records, mut remembered_bytes) = (Instant::now(), 0, 0);
        for record in &batch.records {
            let bytes = transaction.sent_bytes() + remembered_bytes;
            if bytes >= TRANSACTION_BYTES_MAX || began.elapsed() >= PROCESSING_TIME_MAX {
                break;
            }
            records += 1;
            // A partition revoked since the poll has no task: its records are not ours.
            let Some(running) = self.tasks.running(record.partition()) else { continue };
            read_headers(record, &mut headers);
            let raw = RawRecord {
                partition: record.partition(),
                offset: record.offset(),
                timestamp_ms: timestamp_ms(record.timestamp()),
                key: record.key(),
                value: record.payload(),
                headers: &headers,
            };
            let (begun, open_bytes) = (trace.begin(&raw), running.open_bytes());
            let outcome = process(running, &raw, &mut self.outbox, &mut transaction, &mut counts)?;
            if let (Some(begun), Some(outcome)) = (begun, outcome) {
                trace.processed(&raw, begun, &outcome);
            }
            remembered_bytes += running.open_bytes().saturating_sub(open_bytes);
        }
        crash::at(Step::Changelog);
        let moved = self.send_state(&mut transaction)?;
        crash::at(Step::Flush);
        if moved.is_empty() {
            transaction.abort()?;
            return Ok(Done { records, committed: false, slow: false });
        }
        let receipt = transaction.commit(&moved, consumer)?;
        for (moved, ends) in moved.iter().zip(&receipt.ends) {
            if let Some(running) = self.tasks.running(moved.partition) {
                running.apply(*ends)?;
            }
        }
        self.status.counts = counts;
        self.status.commits += 1;
        self.status.last_commit = Some(SystemTime::now());
        self.publish();
        let is_end = self.setup.stage == Stage::Tickets;
        let times = batch
            .records
            .iter()
            .take(records)
            .map(|record| if is_end { record.timestamp() } else { Timestamp::NotAvailable });
        let times_ms = times.map(timestamp_ms);
        self.instruments.committed(batch.bytes_of_first(records), times_ms);
        Ok(Done { records, committed: true, slow: receipt.slow })
    }

    /// The changelog and the commit records of every task that moved.
    fn send_state(&mut self, transaction: &mut Transaction<'_>) -> Result<Vec<Moved>, Trouble> {
        let mut all_moved = Vec::new();
        for (partition, running) in self.tasks.all_running() {
            if !running.has_moved() {
                continue;
            }
            let position = running.position;
            if let Some(task) = running.work.task() {
                send_task(task, partition, position, transaction)?;
            }
            all_moved.push(Moved { partition, position, ends: running.committed.ends, is_rebuilding: false });
        }
        Ok(all_moved)
    }

    fn judge(&self, error: &KafkaError) -> Result<(), Trouble> {
        use RDKafkaErrorCode as Code;
        let topology = &self.setup.topology;
        let stage = self.setup.stage;
        let topic = stage.topic(topology);
        let code = error.rdkafka_error_code();
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match code {
            Some(Code::FencedInstanceId) if fatal => Err(Trouble::Stop(anyhow!(
                "another process runs as {:?}: give each its own runtime.instance (INSTANCE_ID)",
                self.member.id
            ))),
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => Err(Trouble::Stop(anyhow!(
                "{topic} no longer holds the record to go on from: to skip what is gone, reset the group's offsets \
                 ({error})"
            ))),
            Some(Code::TopicAuthorizationFailed) => Err(Trouble::Stop(anyhow!(
                "read {topic}: {error}; allow the pipeline's user Read on topic {topic} in Kafka's ACLs"
            ))),
            Some(Code::GroupAuthorizationFailed) => {
                let group = stage.group(topology);
                Err(Trouble::Stop(anyhow!(
                    "read {topic} as group {group}: {error}; allow the pipeline's user Read on group {group} in Kafka's ACLs"
                )))
            }
            // librdkafka would try the same batch again for ever.
            Some(Code::BadCompression) => Err(Trouble::Stop(anyhow!(
                "read {topic}: {error}; where a batch is larger than receive.message.max.bytes once it is decompressed, \
                 raise that in kafka.consumer; a damaged one has to be skipped by resetting the group's offsets"
            ))),
            _ if fatal => Err(Trouble::Rebuild(format!("read {topic}: {error}"))),
            // librdkafka goes on by itself, and has said so in the log.
            _ => Ok(()),
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

fn timestamp_ms(timestamp: Timestamp) -> i64 {
    match timestamp {
        Timestamp::NotAvailable => -1,
        Timestamp::CreateTime(time_ms) | Timestamp::LogAppendTime(time_ms) => time_ms,
    }
}

fn backoff(troubles: u32) -> Duration {
    match troubles {
        0 => Duration::ZERO,
        n => BACKOFF_MIN.saturating_mul(2u32.saturating_pow(n.min(16))).min(BACKOFF_MAX),
    }
}
