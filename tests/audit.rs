//! The audit says that all is well where it is, beside a pipeline that runs too,
//! and finds every kind of fault where it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use ticket_pipeline::store::Writes;
use ticket_pipeline::topology::Topology;

use crate::crash::{Kills, smallest_transactions};
use crate::datasets::{self, HISTORIES, NASTY};
use crate::lost_logs::{forget_offsets, hang_in};
use crate::pipeline::{Pipeline, Settings};
use crate::random::Random;
use crate::story::{in_every_partition, moved, opened};
use crate::tasks::{PARTITIONS, state_directory};
use crate::{broker, wait};

/// What an audit said, and its exit code.
struct Audited {
    code: Option<i32>,
    text: String,
}

impl Audited {
    fn of(output: Output) -> Audited {
        let text = [output.stdout, output.stderr].concat();
        Audited { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    fn assert_clean(&self) {
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert!(
            self.text.contains(": nothing is missing, doubled, out of order or different"),
            "{}",
            self.text
        );
    }

    /// The lines that tell of a fault.
    fn faults(&self) -> Vec<&str> {
        let words =
            ["missing: ", "doubled: ", "out of order: ", "different: ", "unexpected: ", "state: partition "];
        self.text.lines().filter(|line| words.iter().any(|word| line.starts_with(word))).collect()
    }

    /// Exactly one fault, that says all of this, with exit code 1.
    fn assert_one_fault(&self, says: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.text);
        let faults = self.faults();
        let is_it = |fault: &&&str| says.iter().all(|word| fault.contains(word));
        assert_eq!(faults.len(), 1, "{}", self.text);
        assert!(faults.iter().any(|fault| is_it(&fault)), "{says:?} in:\n{}", self.text);
    }

    /// How many raw records were audited.
    fn raw_records(&self) -> i64 {
        let (_, rest) = self.text.split_once("audited ").unwrap_or_else(|| panic!("{}", self.text));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }
}

fn audit(pipeline: &Pipeline, arguments: &[&str]) -> Audited {
    Audited::of(pipeline.command(&[&["audit"], arguments].concat()))
}

// --- All is well ------------------------------------------------------------

#[test]
fn what_every_data_set_has_become_is_proven_and_so_is_the_state() {
    for set in datasets::all() {
        let pipeline = Pipeline::new("audited", &Settings::of(&set));
        pipeline.feed(&set);
        pipeline.run_until_caught_up();
        let audited = audit(&pipeline, &["--state"]);
        audited.assert_clean();
        assert_eq!(audited.raw_records(), pipeline.end(), "{}", audited.text);
        assert!(
            audited.text.contains("stores on disk, 0 of their tickets still to be restored"),
            "{}",
            audited.text
        );
    }
}

#[test]
fn an_empty_pipeline_is_as_it_must_be() {
    let pipeline = Pipeline::new("audited-empty", &Settings::default());
    audit(&pipeline, &["--state"]).assert_clean();
}

#[test]
fn what_a_first_transaction_wrote_that_was_aborted_is_no_state() {
    let pipeline = Pipeline::new("audited-aborted", &Settings::default());
    pipeline.set_shortest_session();
    let hanging = hang_in(&pipeline, pipeline.logs()[1]);
    hanging.abort_transaction(wait::PATIENCE).expect("it is aborted");
    audit(&pipeline, &["--state"]).assert_clean();

    pipeline.append(in_every_partition("T").iter().map(|uid| opened(uid)));
    pipeline.run_until_caught_up();
    audit(&pipeline, &["--state"]).assert_clean();
    forget_offsets(&pipeline);
    let audited = audit(&pipeline, &["--state"]);
    assert_eq!(audited.code, Some(1), "{}", audited.text);
    assert!(audited.text.contains("Kafka has forgotten it"), "{}", audited.text);
}

#[test]
fn beside_a_pipeline_at_work_the_audit_sees_a_consistent_cut() {
    let pipeline = Pipeline::new("audited-live", &smallest_transactions());
    pipeline.feed(&HISTORIES);
    let process = pipeline.start("a");
    // It is at work, and has its state directory, once it has committed something.
    pipeline.wait_until_committed(1);
    let mut in_the_middle = 0;
    let mut turns = 0;
    while in_the_middle < 3 {
        // Work for the pipeline, as long as it takes.
        turns += 1;
        assert!(turns < 200, "the pipeline was never at work while it was audited");
        let uids: Vec<String> = (0..400).map(|number| format!("live-{turns}-{number}")).collect();
        pipeline.append(uids.iter().flat_map(|uid| [opened(uid), moved(uid, "closed"), moved(uid, "open")]));
        let before = pipeline.committed();
        let audited = audit(&pipeline, &["--state"]);
        audited.assert_clean();
        assert!(audited.text.contains("in use by process"), "{}", audited.text);
        in_the_middle +=
            i32::from(before < audited.raw_records() && audited.raw_records() < pipeline.committed());
    }
    pipeline.wait_until_caught_up();
    process.end_well();
    audit(&pipeline, &["--state"]).assert_clean();
}

#[test]
fn a_pipeline_that_was_killed_has_lost_and_doubled_nothing() {
    let mut random = Random::new();
    let pipeline = Pipeline::new("audited-killed", &smallest_transactions());
    pipeline.feed(&NASTY);
    let mut kills = Kills::of(&pipeline, 3, Pipeline::committed);
    while let Some(wanted) = kills.next(&mut random) {
        let process = pipeline.start("a");
        pipeline.wait_until_committed(wanted);
        process.kill();
        kills.happened(|| NASTY.raw());
        // What it left open is ended by the broker, or by its successor.
        audit(&pipeline, &["--state"]).assert_clean();
    }
    kills.assert_that_most_came_midway();
    pipeline.run_until_caught_up();
    let audited = audit(&pipeline, &["--state"]);
    audited.assert_clean();
    assert_eq!(audited.raw_records(), pipeline.end());
}

#[test]
fn a_replay_is_known_when_the_ids_log_no_longer_tells_of_it() {
    let settings = Settings { workers: 1, ..Settings::default() };
    let pipeline = Pipeline::new("audited-replay", &settings);
    pipeline.set_shortest_session();
    pipeline.feed(&HISTORIES);
    pipeline.run_until_caught_up();
    for back in ["-300", "-100"] {
        pipeline.replay(&["--shift-by", back, "--execute"]);
        let log = pipeline.run_until_caught_up();
        assert_eq!(log.lines("rebuilt").len(), 4, "{}", log.0);
        audit(&pipeline, &["--state"]).assert_clean();
    }
    let [_, ids] = pipeline.logs();
    pipeline.append(in_every_partition("T").iter().map(|uid| opened(uid)));
    pipeline.run_until_caught_up();
    // As the window does in time: only the last commit of each partition is left.
    delete_before(ids, |partition| pipeline.true_end(ids, partition) - 2);
    audit(&pipeline, &[]).assert_clean();
    audit(&pipeline, &["--state"]).assert_clean();
    // The disk is not what knows of it.
    pipeline.lose_disk("a");
    pipeline.append(in_every_partition("U").iter().map(|uid| opened(uid)));
    pipeline.run_until_caught_up();
    audit(&pipeline, &["--state"]).assert_clean();
}

#[test]
fn where_the_raw_topics_head_is_gone_the_audit_says_so_and_proves_the_rest() {
    let pipeline = Pipeline::new("audited-head", &Settings::default());
    let [old, new] = ["old", "new"].map(in_every_partition);
    pipeline.append(old.iter().flat_map(|uid| [opened(uid), moved(uid, "closed")]));
    pipeline.append(new.iter().flat_map(|uid| [opened(uid), moved(uid, "closed")]));
    pipeline.append(old.iter().chain(&new).map(|uid| moved(uid, "open")));
    pipeline.run_until_caught_up();
    delete_before(&pipeline.topic("ticket.raw"), |_| 1);

    let audited = audit(&pipeline, &["--state"]);
    audited.assert_clean();
    for partition in 0..PARTITIONS {
        let said = format!("[{partition}] begins at offset 1");
        assert!(audited.text.contains(&said), "{said} in:\n{}", audited.text);
    }
    assert!(
        audited.text.contains("output records come from before the raw topic's first record"),
        "{}",
        audited.text
    );
    assert!(audited.text.contains("state: 8 tickets"), "{}", audited.text);
    assert!(audited.text.contains("4 not provable; 0 faults"), "{}", audited.text);

    // Of a ticket whose whole past is there, a repetition is a fault as ever.
    let closed = pipeline.topic("ticket.status.changed");
    let changes = read([closed.as_str()].into_iter());
    let doubled = changes[&closed].iter().rfind(|record| record.key.as_deref() == Some(new[0].as_bytes()));
    send([(closed.clone(), doubled.expect("the ticket's status has changed"))].into_iter());
    audit(&pipeline, &[]).assert_one_fault(&["doubled: ", &closed]);
}

// --- Faults -----------------------------------------------------------------

/// A record of a topic, as it is.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp_ms: i64,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

/// The outputs of a sound pipeline, in topics where they can be tampered with.
struct Copied {
    original: Pipeline,
    outputs: BTreeMap<String, Vec<Record>>,
    changelog: Vec<Record>,
}

impl Copied {
    fn new() -> Copied {
        let original = Pipeline::new("original", &Settings::default());
        original.feed(&HISTORIES);
        original.run_until_caught_up();
        let topology = Topology::load(&original.topology_file()).unwrap();
        let group = format!("{}.", topology.group);
        let mut all = read(topology.output_topics().chain([topology.changelog_topic.as_str()]));
        let changelog = all.remove(&topology.changelog_topic).unwrap();
        let outputs = all.into_iter();
        let outputs = outputs.map(|(topic, records)| (topic.trim_start_matches(&group).to_owned(), records));
        Copied { changelog, outputs: outputs.collect(), original }
    }

    /// Another group that seems to have emitted and remembered this.
    fn audit(&self, tamper: impl FnOnce(&mut BTreeMap<String, Vec<Record>>, &mut Vec<Record>)) -> Audited {
        let copy = self.original.beside("copy", &Settings::default());
        let (mut outputs, mut changelog) = (self.outputs.clone(), self.changelog.clone());
        tamper(&mut outputs, &mut changelog);
        let topology = Topology::load(&copy.topology_file()).unwrap();
        let entries = changelog.iter().map(|record| (topology.changelog_topic.clone(), record));
        let emitted = outputs.iter().flat_map(|(topic, records)| {
            let topic = copy.topic(topic);
            records.iter().map(move |record| (topic.clone(), record))
        });
        send(emitted.chain(entries));
        commit(&topology, &changelog);
        audit(&copy, &["--state"])
    }
}

const STATUS: &str = "ticket.status.changed";

#[test]
fn every_kind_of_fault_is_found_and_named() {
    let copied = Copied::new();
    copied.audit(|_, _| ()).assert_clean();
    let places = in_the_middle_of_tickets(&copied.outputs[STATUS]);
    // From the last on, so that the places before keep theirs.
    let all = CHANGES.iter().zip(places.iter().rev());
    let event_ids: Vec<String> = all.clone().map(|(_, at)| event_id(&copied.outputs[STATUS][*at])).collect();
    let audited = copied.audit(|outputs, _| {
        let status = outputs.get_mut(STATUS).unwrap();
        all.for_each(|((_, change), at)| change(status, *at));
    });
    assert_eq!(audited.code, Some(1), "{}", audited.text);
    let faults = audited.faults();
    assert_eq!(faults.len(), CHANGES.len(), "{}", audited.text);
    for ((says, _), event_id) in CHANGES.iter().zip(&event_ids) {
        let is_it = |fault: &&&str| fault.contains(event_id) && says.iter().all(|word| fault.contains(word));
        assert!(
            faults.iter().any(|fault| is_it(&fault)),
            "{says:?} of event {event_id} in:\n{}",
            audited.text
        );
    }
}

type Change = (&'static [&'static str], fn(&mut Vec<Record>, usize));

/// What is done to a record, and what the audit must say of it.
const CHANGES: [Change; 11] = [
    (&["missing: ", "of raw partition"], |all, at| drop(all.remove(at))),
    (&["doubled: ", "it stands at offset"], |all, at| all.insert(at + 1, all[at].clone())),
    (&["doubled: "], |all, at| all.push(all[at].clone())),
    (&["different: ", "its value of"], |all, at| all[at].value.as_mut().unwrap().push(b' ')),
    (&["different: ", "its value is null"], |all, at| all[at].value = None),
    (&["different: ", "its timestamp is"], |all, at| all[at].timestamp_ms += 1),
    (&["different: ", "header \"event_name\""], |all, at| all[at].headers[0].1 = Some(b"other".into())),
    (&["different: ", "headers and must have"], |all, at| drop(all[at].headers.pop())),
    (&["different: ", "its key is"], |all, at| all[at].key = Some(b"somebody else".into())),
    (&["different: ", "in partition"], |all, at| all[at].partition = (all[at].partition + 1) % PARTITIONS),
    // Behind the two that follow it, so that there is no doubt which of them is misplaced.
    (&["out of order: "], |all, at| {
        let ticket = of_ticket(all, all[at].key.clone());
        let mut three = ticket.into_iter().filter(|place| *place >= at);
        let [first, second, third] = [(); 3].map(|()| three.next().unwrap());
        all.swap(first, second);
        all.swap(second, third);
    }),
];

/// Of as many tickets as there are changes, a record with one of the same ticket
/// before it and two behind it.
fn in_the_middle_of_tickets(records: &[Record]) -> Vec<usize> {
    let tickets: BTreeSet<_> = records.iter().map(|record| record.key.clone()).collect();
    let all = tickets.into_iter().map(|ticket| of_ticket(records, ticket)).filter(|places| places.len() >= 4);
    let mut places: Vec<usize> = all.map(|places| places[1]).take(CHANGES.len()).collect();
    assert_eq!(places.len(), CHANGES.len(), "too few tickets whose status changes four times");
    places.sort_unstable();
    places
}

/// Where the records of a ticket are.
fn of_ticket(records: &[Record], key: Option<Vec<u8>>) -> Vec<usize> {
    (0..records.len()).filter(|at| records[*at].key == key).collect()
}

fn event_id(record: &Record) -> String {
    let (_, id) = record.headers.iter().find(|(name, _)| name == "event_id").unwrap();
    String::from_utf8(id.clone().unwrap()).unwrap()
}

#[test]
fn a_record_of_nowhere_and_one_in_another_topic_are_found() {
    let copied = Copied::new();
    let nowhere = copied.audit(|outputs, _| {
        let mut record = outputs[STATUS][0].clone();
        record
            .headers
            .iter_mut()
            .filter(|(name, _)| name == "event_id")
            .for_each(|(_, id)| *id = Some(b"x".into()));
        outputs.get_mut(STATUS).unwrap().push(record);
    });
    nowhere.assert_one_fault(&["unexpected: ", STATUS, "event x", "no raw record"]);
    let moved = copied.audit(|outputs, _| {
        let record = outputs.get_mut(STATUS).unwrap().remove(0);
        outputs.get_mut("ticket.assigned").unwrap().push(record);
    });
    moved.assert_one_fault(&["different: ", "ticket.assigned", "it must be in", STATUS]);
}

#[test]
fn a_changelog_or_a_store_that_remembers_something_else_is_found() {
    let copied = Copied::new();
    let lost = copied.audit(|_, changelog| {
        let uid = changelog[0].key.clone();
        changelog.retain(|record| record.key != uid);
    });
    lost.assert_one_fault(&[
        "state: partition 0",
        "the changelog differs from the recomputation: it has no entry",
    ]);
    let other = copied.audit(|_, changelog| changelog[0].value = changelog[1].value.clone());
    other.assert_one_fault(&[
        "state: partition 0",
        "the changelog differs from the recomputation: written at",
    ]);

    let pipeline = &copied.original;
    let topology = Topology::load(&pipeline.topology_file()).unwrap();
    let directory = pipeline.state("a");
    let uid = copied.changelog[0].key.clone().unwrap();
    {
        let state = state_directory(&directory, &topology);
        let mut store = state.open(copied.changelog[0].partition).unwrap().unwrap();
        let positions = store.positions().unwrap();
        let mut writes = Writes::default();
        writes.entry(&uid, None);
        store.write(writes, &positions, true).unwrap();
        store.close().unwrap();
    }
    audit(pipeline, &["--state"]).assert_one_fault(&[
        "state: partition 0",
        &String::from_utf8(uid).unwrap(),
        "the store on disk differs from the changelog: it has no entry",
    ]);
}

/// The build that is broken on purpose: `cargo test --features broken`.
#[cfg(feature = "broken")]
#[test]
fn a_build_that_drops_doubles_or_alters_one_record_is_found_out() {
    for (what, fault) in
        [("drop:2000", "missing: "), ("double:2000", "doubled: "), ("alter:2000", "different: ")]
    {
        let pipeline = Pipeline::new("broken", &Settings { workers: 1, ..Settings::default() });
        pipeline.feed(&HISTORIES);
        let ended = pipeline.start_broken(what).wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log.0);
        audit(&pipeline, &["--state"]).assert_one_fault(&[fault]);
        let suite =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pipeline.assert_emitted(&HISTORIES)));
        assert!(suite.is_err(), "the expected file does not tell that the build is broken: {what}");
    }
}

// --- Kafka ------------------------------------------------------------------

fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker::address()).set("group.id", "nobody");
    config
}

/// All committed records of topics, by topic, in the order of their partitions and offsets.
fn read<'t>(topics: impl Iterator<Item = &'t str>) -> BTreeMap<String, Vec<Record>> {
    let reader: BaseConsumer =
        client().set("enable.partition.eof", "true").set("enable.auto.commit", "false").create().unwrap();
    let mut list = TopicPartitionList::new();
    let mut all: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for topic in topics {
        all.insert(topic.to_owned(), Vec::new());
        for partition in 0..PARTITIONS {
            list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
    }
    reader.assign(&list).unwrap();
    let mut open = list.count();
    while open > 0 {
        match reader.poll(wait::PATIENCE).expect("the broker answers") {
            Ok(record) => all.get_mut(record.topic()).unwrap().push(Record {
                partition: record.partition(),
                key: record.key().map(<[u8]>::to_vec),
                value: record.payload().map(<[u8]>::to_vec),
                timestamp_ms: record.timestamp().to_millis().unwrap(),
                headers: record.headers().map_or_else(Vec::new, |headers| {
                    headers.iter().map(|one| (one.key.to_owned(), one.value.map(<[u8]>::to_vec))).collect()
                }),
            }),
            Err(KafkaError::PartitionEOF(_)) => open -= 1,
            Err(error) => panic!("read what was emitted: {error}"),
        }
    }
    all.values_mut().for_each(|records| records.sort_by_key(|record| record.partition));
    all
}

fn send<'r>(records: impl Iterator<Item = (String, &'r Record)>) {
    // To a topic that was made this moment, only this keeps the order.
    let producer: BaseProducer = client().set("enable.idempotence", "true").create().unwrap();
    for (topic, record) in records {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: value.as_ref() });
        }
        let mut new = BaseRecord::<[u8], [u8]>::to(&topic)
            .partition(record.partition)
            .timestamp(record.timestamp_ms)
            .headers(headers);
        new.key = record.key.as_deref();
        new.payload = record.value.as_deref();
        producer.send(new).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(wait::PATIENCE).unwrap();
}

/// Commits the raw topic's ends as the pipeline does, with the changelog's.
fn commit(topology: &Topology, changelog: &[Record]) {
    let committer: BaseConsumer = client().set("group.id", &topology.group).create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let (_, end) = committer.fetch_watermarks(&topology.source.topic, partition, wait::PATIENCE).unwrap();
        let entries = changelog.iter().filter(|record| record.partition == partition).count();
        let mut offset = list.add_partition(&topology.source.topic, partition);
        offset.set_offset(Offset::Offset(end)).unwrap();
        offset.set_metadata(format!("1 {entries} 0"));
    }
    committer.commit(&list, CommitMode::Sync).unwrap();
}

/// Has retention take what is before an offset, in every partition.
fn delete_before(topic: &str, offset: impl Fn(i32) -> i64) {
    let admin: AdminClient<DefaultClientContext> = client().create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Offset(offset(partition))).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(admin.delete_records(&list, &AdminOptions::new())).unwrap();
}
