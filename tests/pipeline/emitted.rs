//! What a pipeline has emitted, as a consumer of committed records reads it, held
//! against what had to come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use ticket_pipeline::lines::{self, RawLine};
use ticket_pipeline::record::{Destination, Outbox, RawRecord};
use ticket_pipeline::rekey::{self, Rekey};

use super::{Pipeline, RAW_TOPIC, client};
use crate::datasets::DataSet;
use crate::lines::{Line, Sourced, assert_same_by_source, with_sources};
use crate::tasks::{PARTITIONS, Tasks};
use crate::wait;

/// The records of each partition from one position to another, with a state of
/// what came from `low` on.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) low: BTreeMap<i32, i64>,
    pub(crate) from: BTreeMap<i32, i64>,
    pub(crate) to: BTreeMap<i32, i64>,
}

impl Pipeline {
    /// All that was emitted, in the order of each partition, topics by the names of the contract.
    ///
    /// # Panics
    /// Where a transaction was left open: what lies behind it cannot be read.
    pub(crate) fn emitted(&self) -> Vec<Line> {
        let topics: Vec<String> = self.topology.output_topics().map(str::to_owned).collect();
        let mut emitted = Vec::new();
        self.read(&topics, |record| emitted.push(self.line(record)));
        emitted
    }

    /// The records of the internal topic as they lie there, those of a partition in their order.
    pub(crate) fn internal(&self) -> Vec<RawLine> {
        let mut internal = Vec::new();
        self.read(std::slice::from_ref(&self.topology.rekeyed_topic), |record| {
            internal.push(raw_line(record))
        });
        internal
    }

    fn read(&self, topics: &[String], mut take: impl FnMut(&BorrowedMessage<'_>)) {
        let reader: BaseConsumer = client("group.id", "nobody")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "10")
            .create()
            .expect("a consumer");
        let mut open = BTreeSet::new();
        let mut list = TopicPartitionList::new();
        for topic in topics {
            for partition in 0..PARTITIONS {
                list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
                open.insert((topic.to_owned(), partition));
            }
        }
        reader.assign(&list).expect("the topics can be read");
        let mut partitions_ended = 0;
        while partitions_ended < open.len() {
            match reader.poll(wait::PATIENCE) {
                Some(Ok(record)) => take(&record),
                Some(Err(KafkaError::PartitionEOF(_))) => partitions_ended += 1,
                Some(Err(error)) => panic!("read what was emitted: {error}"),
                None => panic!("{} of {} partitions ended", partitions_ended, open.len()),
            }
        }
        self.assert_nothing_is_open();
    }

    /// A reader of committed records is let up to the true end.
    fn assert_nothing_is_open(&self) {
        let stable: BaseConsumer = client("isolation.level", "read_committed").create().expect("a consumer");
        let true_end = self.asker();
        let dead_letters = self.topic("ticket.dlq");
        for topic in [&dead_letters, &self.topology.changelog_topic, &self.topology.ids_topic] {
            for partition in 0..PARTITIONS {
                let ends = [&stable, true_end].map(|client| {
                    client.fetch_watermarks(topic, partition, wait::PATIENCE).expect("the broker answers").1
                });
                assert_eq!(ends[0], ends[1], "{topic} [{partition}] is held back by an open transaction");
            }
        }
    }

    fn line(&self, record: &impl Message) -> Line {
        let headers = record.headers().map_or_else(Vec::new, |headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        let prefix = format!("{}.", self.group);
        let topic = record.topic().strip_prefix(&prefix).expect("our topics begin with the group's name");
        let line = Line {
            topic: topic.to_owned(),
            partition: record.partition(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(|value| with_contract_name(value, &self.raw_topic)),
            headers,
            timestamp_ms: record.timestamp().to_millis().expect("output records have timestamps"),
            origin: None,
        };
        let mut line = line.with_free_message();
        for (name, value) in &mut line.headers {
            if name == "__streams.errors.topic" && value.as_deref() == Some(self.raw_topic.as_bytes()) {
                *value = Some(RAW_TOPIC.into());
            }
        }
        line
    }

    /// What the tasks make of records: the tasks are held against the expected files elsewhere.
    fn expected_of(&self, raw: &[RawLine]) -> Vec<Sourced> {
        self.expected_where(raw, |_| true)
    }

    /// The same of some records, behind all the others before them.
    fn expected_where(&self, raw: &[RawLine], is_wanted: impl Fn(&RawLine) -> bool) -> Vec<Sourced> {
        let topology = Arc::new(self.topology.clone());
        let mut tasks = Tasks::in_memory(&topology);
        let emitted = raw.iter().flat_map(|raw| {
            let lines = tasks.process(raw).1;
            lines.into_iter().filter(|_| is_wanted(raw)).map(|line| (raw.partition, line)).collect::<Vec<_>>()
        });
        emitted.map(|(source, line)| (source, self.by_contract(line))).collect()
    }

    /// What a task has emitted, as it is read: topics by the names of the contract.
    pub(crate) fn by_contract(&self, mut line: Line) -> Line {
        line.topic = line.topic.trim_start_matches(&format!("{}.", self.group)).to_owned();
        line.value = line.value.map(|value| with_contract_name(&value, &self.raw_topic));
        for (name, value) in &mut line.headers {
            if name == "__streams.errors.topic" {
                *value = Some(RAW_TOPIC.into());
            }
        }
        line.without_origin()
    }

    /// All that was fed, re-keyed in whatever order between raw partitions, and what was made of that.
    pub(crate) fn assert_rekeyed_and_emitted(&self) {
        self.assert_rekeyed_and_emitted_times(1);
    }

    /// The same where what was re-keyed was replayed from its beginning.
    pub(crate) fn assert_rekeyed_and_emitted_times(&self, runs: usize) {
        let fed = self.fed.borrow();
        let internal = self.internal();
        let mut left: BTreeMap<(i32, i64), &RawLine> =
            fed.iter().map(|raw| ((raw.partition, raw.offset), raw)).collect();
        let mut last: BTreeMap<(i32, i32), i64> = BTreeMap::new();
        for rekeyed in &internal {
            let raw =
                rekeyed.with_record(|record| owned(&rekey::raw(record).expect("it says where it is from")));
            let place = (raw.partition, raw.offset);
            let original =
                left.remove(&place).unwrap_or_else(|| panic!("{place:?} is there twice, or never was"));
            assert_eq!(&raw, original);
            let before = last.insert((rekeyed.partition, raw.partition), raw.offset);
            assert!(before < Some(raw.offset), "{place:?} stands behind offset {before:?}");
        }
        let topology = Arc::new(self.topology.clone());
        let once = self.expected_of(&internal);
        let mut expected: Vec<Sourced> = (0..runs).flat_map(|_| once.clone()).collect();
        let mut outbox = Outbox::default();
        for raw in left.into_values() {
            let mut rekey = Rekey::new(Arc::clone(&topology), PARTITIONS);
            raw.with_record(|record| rekey.process(record, &mut outbox));
            for record in outbox.records() {
                assert_eq!(record.destination, Destination::DeadLetter, "{raw:?} is lost");
                let topic = record.destination.topic(&topology);
                let line = Line::parse(&lines::outgoing_line(topic, &record));
                // Behind the numbers of the internal partitions.
                expected.push((PARTITIONS + raw.partition, self.by_contract(line)));
            }
        }
        assert_same_by_source(&self.group, &expected, &self.emitted());
    }

    /// Nothing lost, nothing doubled, every byte as it must be: for all that was fed.
    pub(crate) fn assert_emitted_as_expected(&self) {
        assert_same_by_source(&self.group, &self.expected_of(&self.fed.borrow()), &self.emitted());
    }

    /// The same, and after it once more what came from those positions on, for each replay.
    pub(crate) fn assert_emitted_again_from(&self, replays: &[BTreeMap<i32, i64>]) {
        let end = self.everywhere(|end| end);
        let beginning = self.everywhere(|_| 0);
        let run =
            |from: &BTreeMap<i32, i64>| Run { low: beginning.clone(), from: from.clone(), to: end.clone() };
        let runs: Vec<Run> = [&beginning].into_iter().chain(replays).map(run).collect();
        self.assert_emitted_in(&runs);
    }

    /// What these runs emit, one behind the other, and nothing else.
    pub(crate) fn assert_emitted_in(&self, runs: &[Run]) {
        let fed = self.fed.borrow();
        let expected: Vec<Sourced> = runs.iter().flat_map(|run| self.expected_in(&fed, run)).collect();
        assert_same_by_source(&self.group, &expected, &self.emitted());
    }

    /// What a run emits of records.
    fn expected_in(&self, fed: &[RawLine], run: &Run) -> Vec<Sourced> {
        let at = |positions: &BTreeMap<i32, i64>, raw: &RawLine| positions[&raw.partition];
        let known: Vec<RawLine> = fed.iter().filter(|raw| raw.offset >= at(&run.low, raw)).cloned().collect();
        self.expected_where(&known, |raw| (at(&run.from, raw)..at(&run.to, raw)).contains(&raw.offset))
    }

    /// Whether a run emits other bytes than the same one that knows all that was before it.
    pub(crate) fn depends_on_the_head(&self, run: &Run) -> bool {
        let fed = self.fed.borrow();
        let whole = Run { low: self.everywhere(|_| 0), ..run.clone() };
        self.expected_in(&fed, run) != self.expected_in(&fed, &whole)
    }

    /// A position in each partition, from where that ends.
    pub(crate) fn everywhere(&self, position: impl Fn(i64) -> i64) -> BTreeMap<i32, i64> {
        (0..PARTITIONS).map(|partition| (partition, position(self.end_of(partition)))).collect()
    }

    /// The same for what is committed so far, and nothing beyond it.
    pub(crate) fn assert_emitted_as_far_as_committed(&self) {
        let positions = self.committed_positions();
        let fed = self.fed.borrow();
        let read: Vec<RawLine> =
            fed.iter().filter(|raw| raw.offset < positions[&raw.partition]).cloned().collect();
        assert_same_by_source(&self.group, &self.expected_of(&read), &self.emitted());
    }

    /// As the data set's expected file says.
    pub(crate) fn assert_emitted(&self, set: &DataSet) {
        let expected = set.expected().into_iter().map(Line::without_origin).collect();
        let expected = with_sources(expected, self.expected_of(&set.raw()));
        assert_same_by_source(&format!("{} of {}", self.group, set.name), &expected, &self.emitted());
    }

    /// The changes of each ticket, as `field: from -> to` by identity.
    pub(crate) fn changes(&self) -> BTreeMap<String, Vec<String>> {
        let mut changes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.emitted() {
            let event = line.json();
            if event["metadata"]["origin"] == "derived" {
                let uid = line.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                changes.entry(uid.into_owned()).or_default().push(told(&event["payload"]["change"]));
            }
        }
        changes
    }
}

fn raw_line(record: &BorrowedMessage<'_>) -> RawLine {
    let headers = record.headers().map_or_else(Vec::new, |headers| {
        headers.iter().map(|header| (header.key.into(), header.value.map(<[u8]>::to_vec))).collect()
    });
    RawLine {
        partition: record.partition(),
        offset: record.offset(),
        timestamp_ms: record.timestamp().to_millis().expect("the record has a timestamp"),
        key: record.key().map(<[u8]>::to_vec),
        value: record.payload().map(<[u8]>::to_vec),
        headers,
    }
}

fn owned(record: &RawRecord<'_>) -> RawLine {
    let headers = record.headers.iter().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)));
    RawLine {
        partition: record.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        key: record.key.map(<[u8]>::to_vec),
        value: record.value.map(<[u8]>::to_vec),
        headers: headers.collect(),
    }
}

fn told(change: &Value) -> String {
    let id = |side: &Value| side["id"].as_str().unwrap_or("null").to_owned();
    format!("{}: {} -> {}", change["field"].as_str().unwrap_or("?"), id(&change["from"]), id(&change["to"]))
}

/// A derived event names the raw topic; the expected files do by the contract's name.
fn with_contract_name(value: &[u8], raw_topic: &str) -> Vec<u8> {
    let named = format!("\"topic\":\"{raw_topic}\",\"partition\":");
    let at = value.windows(named.len()).rposition(|window| window == named.as_bytes());
    let mut value = value.to_vec();
    if let Some(at) = at {
        let by_contract = format!("\"topic\":\"{RAW_TOPIC}\",\"partition\":");
        value.splice(at..at + named.len(), by_contract.into_bytes());
    }
    value
}
