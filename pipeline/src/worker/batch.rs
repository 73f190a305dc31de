//! Records that were polled and wait for their transaction.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rdkafka::message::BorrowedMessage;

use crate::clients::Member;
use crate::topology::Topology;

/// The coordinator writes a transaction's markers after it has acknowledged it, and refuses the
/// next one until then; librdkafka asks again only after 20 ms. So the next one leaves it this time.
const REST: Duration = Duration::from_millis(10);

/// Whence the beats of all workers are counted.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// They stay in the consumer's memory until the transaction is committed, so
/// that an aborted one can be made again.
pub(super) struct Batch<'c> {
    pub(super) records: Vec<BorrowedMessage<'c>>,
    bytes: usize,
    records_max: usize,
    bytes_max: usize,
    pace: Pace,
}

impl<'c> Batch<'c> {
    /// Transactions are due at an interval, and so long after the first worker's.
    pub(super) fn new(topology: &Topology, member: &Member) -> Batch<'c> {
        let interval = Duration::from_millis(topology.runtime.commit_interval_ms);
        Batch {
            records: Vec::new(),
            bytes: 0,
            records_max: topology.limits.batch_records_max,
            bytes_max: member.batch_bytes_max,
            pace: Pace { interval, beat: *EPOCH + member.offset, due_at: Instant::now() },
        }
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

    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= self.records_max || self.bytes >= self.bytes_max
    }

    /// How long the batch may wait for more; `None` where it is empty.
    pub(super) fn wait(&self) -> Option<Duration> {
        (!self.records.is_empty()).then(|| self.pace.wait(Instant::now()))
    }
}

fn bytes(record: &BorrowedMessage<'_>) -> usize {
    record.payload_len() + record.key_len()
}

/// When the next transaction is due: transactions *begin* an interval apart. Would it be counted
/// from the end of one, or from a batch's first record, a record would wait for its own transaction's
/// time and for that of the one before, too. Each worker has beats of its own, between those of the
/// others: transactions at the same time wait for each other's processors, and for the broker's.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    /// The first of its beats.
    beat: Instant,
    due_at: Instant,
}

impl Pace {
    /// The next one is due at the first beat after the beginning of this one.
    fn ended(&mut self, began: Instant, now: Instant) {
        let since_first = began.saturating_duration_since(self.beat).as_nanos();
        let since_last = since_first % self.interval.as_nanos().max(1);
        let since_last = Duration::from_nanos(u64::try_from(since_last).unwrap_or(0));
        self.due_at = (began + self.interval - since_last).max(now + REST);
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
    fn transactions_begin_on_the_beat_and_after_a_rest_where_one_took_longer() {
        let start = Instant::now();
        let mut pace = Pace { interval: ms(100), beat: start + ms(50), due_at: start };
        assert_eq!(pace.wait(start), Duration::ZERO, "the first is due at once");
        pace.ended(start + ms(51), start + ms(80));
        assert_eq!(pace.wait(start + ms(80)), ms(70));
        assert_eq!(pace.wait(start + ms(500)), Duration::ZERO, "as is one after a silence");
        pace.ended(start + ms(500), start + ms(520));
        assert_eq!(pace.wait(start + ms(520)), ms(30), "which the beat follows");
        pace.ended(start + ms(550), start + ms(700));
        assert_eq!(pace.wait(start + ms(700)), REST);
    }
}
