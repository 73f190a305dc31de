//! One transaction: the records that are due are processed, what came of them is
//! sent, Kafka commits, and the stores follow.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};

use super::Worker;
use super::assignment::Assignment;
use super::batch::{Batch, bytes};
use super::sending::{process, send_task};
use crate::consumed::{raw_record, timestamp_ms};
use crate::crash::{self, Step};
use crate::stage::Stage;
use crate::telemetry::{self, Outcome};
use crate::topology::TRANSACTION_TIMEOUT_MS;
use crate::transaction::{Moved, Producer, Transaction, Trouble};

/// A transaction takes in no more records when it has processed for so long: Kafka aborts
/// what lasts too long.
const PROCESSING_TIME_MAX: Duration = Duration::from_millis(TRANSACTION_TIMEOUT_MS / 3);

/// What became of the records that were due.
pub(super) struct Done {
    /// So many of them are dealt with, from the first on.
    pub(super) records: usize,
    committed: bool,
    /// The commit took so long that a stray of it may come late.
    pub(super) slow: bool,
}

impl Worker {
    /// The batch's records of these partitions in, one transaction out.
    pub(super) fn turn(
        &mut self,
        consumer: &BaseConsumer<Assignment>,
        producer: &mut Producer,
        (batch, partitions): (&Batch<BorrowedMessage<'_>>, &[i32]),
    ) -> Result<Done, Trouble> {
        let began = Instant::now();
        let (traces, topology) = (self.traces.clone(), Arc::clone(&self.setup.topology));
        let mut trace = traces.transaction(&topology, self.setup.stage);
        let result = self.transact(consumer, producer, (batch, partitions), &mut trace);
        let outcome = match &result {
            Ok(Done { committed: true, .. }) => Outcome::Committed,
            Ok(_) | Err(Trouble::Again(_)) => Outcome::Aborted,
            Err(_) => Outcome::Unknown,
        };
        self.instruments.transaction(outcome, began.elapsed());
        trace
            .end(outcome, result.as_ref().map_or_else(|_| batch.of(partitions).count(), |done| done.records));
        result
    }

    /// The transaction itself, which is aborted where nothing of that is ours any more.
    ///
    /// The order is the guarantee: Kafka commits, then the stores follow.
    fn transact(
        &mut self,
        consumer: &BaseConsumer<Assignment>,
        producer: &mut Producer,
        (batch, partitions): (&Batch<BorrowedMessage<'_>>, &[i32]),
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
        for record in batch.of(partitions) {
            let so_far = transaction.sent_bytes() + remembered_bytes;
            if so_far >= self.member.transaction_bytes_max || began.elapsed() >= PROCESSING_TIME_MAX {
                break;
            }
            records += 1;
            // A partition revoked since the poll has no task: its records are not ours.
            let Some(running) = self.tasks.running(record.partition()) else { continue };
            let raw = raw_record(record, &mut headers);
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
        let done = || batch.of(partitions).take(records);
        let times_ms = done().map(|record| if is_end { timestamp_ms(record) } else { -1 });
        self.instruments.committed(records, done().map(bytes).sum(), times_ms);
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
}
