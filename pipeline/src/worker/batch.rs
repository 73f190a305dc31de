//! Records that were polled and wait for their transaction, partition by partition.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rdkafka::message::Message;

use crate::clients::Member;
use crate::topology::Topology;

/// The coordinator writes a transaction's markers after it has acknowledged it, and refuses the
/// next one until then; librdkafka asks again only after 20 ms. So the next one leaves it this time.
const REST: Duration = Duration::from_millis(10);

/// So many transactions a worker begins in an interval, each for its share of the partitions. A
/// flush makes a request for each partition of each topic, one after the other: the fewer of them, the
/// sooner it is done.
const PHASES_MAX: usize = 2;

/// Whence the beats of all workers are counted.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// They stay in the consumer's memory until the transaction is committed, so
/// that an aborted one can be made again.
pub(super) struct Batch<M> {
    queues: BTreeMap<i32, Queue<M>>,
    records: usize,
    bytes: usize,
    records_max: usize,
    bytes_max: usize,
    pace: Pace,
    /// When the first of its queues is due; `None` where it is empty.
    due_at: Option<Instant>,
    rest_until: Instant,
}

/// Those of one partition, in order.
struct Queue<M> {
    records: Vec<M>,
    due_at: Instant,
}

impl<M: Message> Batch<M> {
    /// Each partition's transactions are due at an interval.
    pub(super) fn new(topology: &Topology, member: &Member) -> Batch<M> {
        let interval = Duration::from_millis(topology.runtime.commit_interval_ms);
        Batch {
            queues: BTreeMap::new(),
            records: 0,
            bytes: 0,
            records_max: topology.limits.batch_records_max,
            bytes_max: member.batch_bytes_max,
            pace: Pace { interval, epoch: *EPOCH, offset: member.offset },
            due_at: None,
            rest_until: *EPOCH,
        }
    }

    pub(super) fn push(&mut self, record: M) {
        self.records += 1;
        self.bytes += bytes(&record);
        let at_once = self.pace.epoch;
        let new = || Queue { records: Vec::new(), due_at: at_once };
        let queue = self.queues.entry(record.partition()).or_insert_with(new);
        if queue.records.is_empty() {
            self.due_at = Some(self.due_at.map_or(queue.due_at, |due_at| due_at.min(queue.due_at)));
        }
        queue.records.push(record);
    }

    /// Forgets the records of the other partitions.
    pub(super) fn retain(&mut self, mut is_ours: impl FnMut(i32) -> bool) {
        self.queues.retain(|partition, _| is_ours(*partition));
        self.count();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.records >= self.records_max || self.bytes >= self.bytes_max
    }

    /// How long the batch may wait for more, until the next transaction is due; `None` where it is empty.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let due_at = self.due_at?.max(self.rest_until);
        Some(due_at.saturating_duration_since(now))
    }

    /// The partitions whose records are due, or all that have any; the longest due first, for a
    /// transaction may take in less.
    pub(super) fn due(&self, all: bool, now: Instant) -> Vec<i32> {
        let waiting = self.queues.iter().filter(|(_, queue)| !queue.records.is_empty());
        let mut due: Vec<_> = waiting
            .filter(|(_, queue)| all || queue.due_at <= now)
            .map(|(partition, queue)| (queue.due_at, *partition))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, partition)| partition).collect()
    }

    /// The records of these partitions, one partition after the other.
    pub(super) fn of<'b>(&'b self, partitions: &'b [i32]) -> impl Iterator<Item = &'b M> {
        partitions.iter().filter_map(|partition| self.queues.get(partition)).flat_map(|queue| &queue.records)
    }

    /// So many of the records of these partitions are dealt with, by a transaction that began and ended
    /// then. What it left of a partition is due behind those that it left altogether.
    pub(super) fn drop_first(
        &mut self,
        partitions: &[i32],
        records: usize,
        (began, ended): (Instant, Instant),
    ) {
        let mut records = records;
        for partition in partitions {
            let rank = (self.queues.range(..partition).count(), self.queues.len());
            let Some(queue) = self.queues.get_mut(partition) else { continue };
            let taken = records.min(queue.records.len());
            records -= taken;
            queue.records.drain(..taken);
            if queue.records.is_empty() {
                queue.due_at = self.pace.due_after(began, rank);
            } else if taken > 0 {
                queue.due_at = began;
            }
        }
        self.rest_until = ended + REST;
        self.count();
    }

    fn count(&mut self) {
        let waiting = || self.queues.values().filter(|queue| !queue.records.is_empty());
        self.records = waiting().map(|queue| queue.records.len()).sum();
        self.bytes = waiting().flat_map(|queue| &queue.records).map(bytes).sum();
        self.due_at = waiting().map(|queue| queue.due_at).min();
    }
}

/// The bytes of a record that count.
pub(super) fn bytes(record: &impl Message) -> usize {
    [record.payload(), record.key()].into_iter().flatten().map(<[u8]>::len).sum()
}

/// When a partition's next transaction is due: transactions *begin* an interval apart. Would it be
/// counted from the end of one, or from a batch's first record, a record would wait for its own
/// transaction's time and for that of the one before, too. Each worker has beats of its own, and each
/// half of its partitions; where workers have equally many, none is at the same time as another:
/// transactions at the same time wait for each other's processors, and for the broker's.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    epoch: Instant,
    /// How far into the interval the first beat of this worker is.
    offset: Duration,
}

impl Pace {
    /// The first beat after a beginning, for the partition of this rank among so many of its worker.
    fn due_after(&self, began: Instant, (rank, partitions): (usize, usize)) -> Instant {
        let phases = partitions.clamp(1, PHASES_MAX) as u32;
        let phase = rank as u32 % phases;
        let first = (self.offset + self.interval * phase) / phases;
        let since_a_beat = began.saturating_duration_since(self.epoch) + self.interval - first;
        let since_last = since_a_beat.as_nanos() % self.interval.as_nanos().max(1);
        began + self.interval - Duration::from_nanos(u64::try_from(since_last).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn batch(records_max: usize) -> Batch<OwnedMessage> {
        let text = format!("limits: {{batch_records_max: {records_max}}}\n");
        let topology = Topology::parse("topology.yaml", &text, &|_| None).unwrap();
        assert_eq!(topology.runtime.commit_interval_ms, 100);
        Batch::new(&topology, &Member::new(&topology, crate::stage::Stage::Tickets, "one", 0, 1))
    }

    fn epoch() -> Instant {
        *EPOCH
    }

    fn record(partition: i32, offset: i64) -> OwnedMessage {
        let topic = "ticket.raw".to_owned();
        OwnedMessage::new(
            Some(vec![0; 90]),
            Some(vec![0; 10]),
            topic,
            Timestamp::NotAvailable,
            partition,
            offset,
            None,
        )
    }

    fn places(batch: &Batch<OwnedMessage>, partitions: &[i32]) -> Vec<(i32, i64)> {
        batch.of(partitions).map(|record| (record.partition(), record.offset())).collect()
    }

    #[test]
    fn transactions_begin_on_the_beat_of_their_half_of_the_workers_partitions() {
        let epoch = Instant::now();
        let pace = Pace { interval: INTERVAL, epoch, offset: ms(50) };
        let after = |began, rank| pace.due_after(epoch + ms(began), rank) - epoch;
        assert_eq!(after(151, (0, 1)), ms(250), "alone, on the worker's own beat");
        assert_eq!(after(150, (0, 1)), ms(250));
        assert_eq!(after(149, (0, 1)), ms(150), "the first beat after it began, however late it ended");
        assert_eq!(after(126, (0, 2)), ms(225), "of two, a quarter into the interval");
        assert_eq!(after(126, (1, 2)), ms(175), "and half an interval later");
        assert_eq!([2, 3].map(|rank| after(126, (rank, 4))), [ms(225), ms(175)]);
        assert_eq!([10, 76].map(|began| after(began, (1, 2))), [ms(75), ms(175)]);
    }

    #[test]
    fn a_partitions_records_are_due_in_their_order_and_without_the_others() {
        let mut batch = batch(100);
        let at = |time| epoch() + ms(time);
        assert_eq!((batch.wait(at(0)), batch.due(true, at(0))), (None, vec![]));
        for (partition, offset) in [(0, 5), (3, 7), (0, 6), (3, 9)] {
            batch.push(record(partition, offset));
        }
        assert_eq!(batch.wait(at(0)), Some(ms(0)), "what comes first is due at once");
        assert_eq!(batch.due(false, at(0)), [0, 3]);
        batch.drop_first(&[0], 2, (at(0), at(5)));
        batch.push(record(0, 8));
        assert_eq!(batch.wait(at(6)), Some(ms(9)), "what is due rests all the same");
        assert_eq!(batch.due(false, at(15)), [3]);
        assert_eq!(places(&batch, &[3]), [(3, 7), (3, 9)]);
        batch.drop_first(&[3], 2, (at(15), at(25)));
        assert_eq!(batch.wait(at(35)), Some(ms(65)), "what came behind what is done waits for a beat");
        assert_eq!((batch.due(false, at(99)), batch.due(true, at(99))), (vec![], vec![0]));
        batch.push(record(3, 10));
        assert_eq!((batch.wait(at(40)), batch.due(false, at(50))), (Some(ms(10)), vec![3]));
        assert_eq!(batch.due(false, at(100)), [3, 0], "the longest due first");
        batch.drop_first(&[3, 0], 2, (at(100), at(110)));
        assert!(batch.is_empty() && batch.bytes == 0 && batch.wait(at(500)).is_none());
        batch.push(record(0, 9));
        assert_eq!(batch.wait(at(500)), Some(ms(0)), "as is what comes after a silence");
    }

    #[test]
    fn a_partition_that_is_never_done_keeps_none_waiting() {
        let mut batch = batch(5);
        let at = |time| epoch() + ms(time);
        for (partition, offset) in [(0, 1), (1, 1), (0, 2), (2, 1)] {
            batch.push(record(partition, offset));
        }
        assert!(!batch.is_full());
        batch.push(record(1, 2));
        assert!(batch.is_full());
        let all = batch.due(true, at(0));
        assert_eq!(places(&batch, &all), [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]);
        batch.drop_first(&all, 1, (at(1), at(10)));
        assert_eq!((batch.records, batch.bytes), (4, 400));
        assert_eq!(batch.due(false, at(20)), [1, 2, 0], "it had its turn");
        batch.push(record(0, 3));
        let all = batch.due(true, at(20));
        assert_eq!(places(&batch, &all), [(1, 1), (1, 2), (2, 1), (0, 2), (0, 3)]);
        batch.drop_first(&all, 4, (at(20), at(30)));
        batch.push(record(1, 3));
        assert_eq!(
            batch.due(false, at(40)),
            [0],
            "what is left is due at once, what is done waits for its beat"
        );
        assert_eq!(places(&batch, &batch.due(true, at(40))), [(0, 3), (1, 3)]);
    }

    #[test]
    fn a_partition_that_is_anothers_leaves_nothing() {
        let mut batch = batch(100);
        for (partition, offset) in [(0, 1), (1, 1), (1, 2)] {
            batch.push(record(partition, offset));
        }
        batch.retain(|partition| partition == 0);
        assert_eq!((batch.records, batch.bytes), (1, 100));
        assert_eq!(batch.due(true, epoch()), [0]);
        batch.retain(|_| false);
        assert!(batch.is_empty() && batch.wait(epoch()).is_none());
    }
}
