//! Records that were polled and wait for their transaction.

use std::time::{Duration, Instant};

use rdkafka::message::BorrowedMessage;

use crate::topology::Limits;

/// Where a transaction took longer than the interval, the consumer still has this share of it
/// to bring what makes the next one worth its price.
const REST_SHARE: u32 = 4;

/// They stay in the consumer's memory until the transaction is committed, so
/// that an aborted one can be made again.
pub(super) struct Batch<'c> {
    pub(super) records: Vec<BorrowedMessage<'c>>,
    bytes: usize,
    pace: Pace,
}

impl<'c> Batch<'c> {
    pub(super) fn new(interval: Duration) -> Batch<'c> {
        Batch { records: Vec::new(), bytes: 0, pace: Pace::new(interval, Instant::now()) }
    }

    pub(super) fn push(&mut self, record: BorrowedMessage<'c>) {
        self.bytes += bytes(&record);
        self.records.push(record);
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
    }

    /// So many records are dealt with, by a transaction that began then. What is left is as due as
    /// it was.
    pub(super) fn drop_first(&mut self, records: usize, began: Instant) {
        self.bytes -= self.bytes_of_first(records);
        self.records.drain(..records.min(self.records.len()));
        if self.records.is_empty() {
            self.clear();
            self.pace.ended(began, Instant::now());
        }
    }

    pub(super) fn bytes_of_first(&self, records: usize) -> usize {
        self.records.iter().take(records).map(bytes).sum()
    }

    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.records.len() >= limits.batch_records_max || self.bytes >= limits.batch_bytes_max
    }

    /// How long the batch may wait for more; `None` where it is empty.
    pub(super) fn wait(&self) -> Option<Duration> {
        (!self.records.is_empty()).then(|| self.pace.wait(Instant::now()))
    }
}

fn bytes(record: &BorrowedMessage<'_>) -> usize {
    record.payload_len() + record.key_len()
}

/// When the next transaction is due. Transactions *begin* an interval apart: would it be
/// counted from the end of one, or from a batch's first record, a record would wait for its
/// own transaction's time and for that of the one before, too.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    due_at: Instant,
}

impl Pace {
    fn new(interval: Duration, now: Instant) -> Pace {
        Pace { interval, due_at: now }
    }

    fn ended(&mut self, began: Instant, now: Instant) {
        self.due_at = (began + self.interval).max(now + self.interval / REST_SHARE);
    }

    fn wait(&self, now: Instant) -> Duration {
        self.due_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn transactions_begin_an_interval_apart_and_after_a_rest_where_one_took_longer() {
        let start = Instant::now();
        let mut pace = Pace::new(ms(100), start);
        assert_eq!(pace.wait(start), Duration::ZERO, "the first is due at once");
        pace.ended(start, start + ms(40));
        assert_eq!(pace.wait(start + ms(40)), ms(60));
        assert_eq!(pace.wait(start + ms(500)), Duration::ZERO, "as is one after a silence");
        pace.ended(start + ms(500), start + ms(700));
        assert_eq!(pace.wait(start + ms(700)), ms(25));
    }
}
