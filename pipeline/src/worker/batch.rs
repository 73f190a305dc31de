//! Records that were polled and wait for their transaction.

use std::time::{Duration, Instant};

use rdkafka::message::BorrowedMessage;

use crate::topology::Limits;

/// They stay in the consumer's memory until the transaction is committed, so
/// that an aborted one can be made again.
pub(super) struct Batch<'c> {
    pub(super) records: Vec<BorrowedMessage<'c>>,
    bytes: usize,
    first_at: Option<Instant>,
}

impl<'c> Batch<'c> {
    pub(super) fn new() -> Batch<'c> {
        Batch { records: Vec::new(), bytes: 0, first_at: None }
    }

    pub(super) fn push(&mut self, record: BorrowedMessage<'c>) {
        self.bytes += bytes(&record);
        self.first_at.get_or_insert_with(Instant::now);
        self.records.push(record);
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
        self.first_at = None;
    }

    /// What is left is due at once.
    pub(super) fn drop_first(&mut self, records: usize) {
        self.bytes -= self.bytes_of_first(records);
        self.records.drain(..records.min(self.records.len()));
        if self.records.is_empty() {
            self.clear();
        }
    }

    pub(super) fn bytes_of_first(&self, records: usize) -> usize {
        self.records.iter().take(records).map(bytes).sum()
    }

    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.records.len() >= limits.batch_records_max || self.bytes >= limits.batch_bytes_max
    }

    /// How long the batch may wait for more; `None` where it is empty.
    pub(super) fn wait(&self, interval: Duration) -> Option<Duration> {
        self.first_at.map(|first_at| (first_at + interval).saturating_duration_since(Instant::now()))
    }
}

fn bytes(record: &BorrowedMessage<'_>) -> usize {
    record.payload_len() + record.key_len()
}
