//! Changelog, ids log, raw topic or the group's offsets are lost: the run is
//! refused, again and again, or goes on as it says. Nothing is derived from half
//! a state.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use ticket_pipeline::commit_record::{CommitRecord, IdsRecord, NOTHING_KEY};

use crate::datasets::HISTORIES;
use crate::pipeline::{Pipeline, Settings};
use crate::story::{again, in_every_partition, moved, moved_again, opened};
use crate::tasks::PARTITIONS;
use crate::{broker, wait, wire};

/// With one worker no partition is handed on: what is told of each is told once.
fn emitted(name: &str) -> (Pipeline, Vec<String>) {
    let pipeline = Pipeline::new(name, &Settings { workers: 1, ..Settings::default() });
    pipeline.set_shortest_session();
    pipeline.feed(&HISTORIES);
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    pipeline.run_until_caught_up();
    (pipeline, uids)
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", broker::address()).create().expect("a client")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// The broker says that a topic is deleted before it stops showing it.
fn delete(topics: &[&str]) {
    let deleted = block_on(admin().delete_topics(topics, &AdminOptions::new())).expect("the broker answers");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    for topic in topics {
        wait::until(&format!("{topic} is shown no more"), || {
            let described = broker::try_tool(&["topics", "--describe", "--topic", topic]);
            (!described.status.success()).then_some(())
        });
    }
}

/// Deletes topics and makes them again, empty.
fn make_anew(pipeline: &Pipeline, topics: &[&str]) {
    delete(topics);
    wait::until("the topics are made anew", || {
        pipeline.command(&["topics", "apply"]).status.success().then_some(())
    });
}

fn refused(pipeline: &Pipeline, what: &str) -> String {
    let ended = pipeline.start("a").wait();
    assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.log.0);
    ended.log.0
}

/// Refused the first time and the second, which may not take what the first has read for a state.
fn assert_refused_twice(pipeline: &Pipeline, what: &str) {
    let emitted = pipeline.emitted().len();
    for time in ["the first time", "the second time"] {
        let said = refused(pipeline, &format!("{what}, {time}"));
        assert!(said.contains("has lost records") && said.contains("topics apply"), "{what}, {time}: {said}");
    }
    assert_eq!(pipeline.emitted().len(), emitted, "{what}: nothing is emitted");
}

/// Kafka forgets the group.
pub(crate) fn forget_offsets(pipeline: &Pipeline) {
    wait::until("the group has no members, and is forgotten", || {
        let forgotten = block_on(admin().delete_groups(&[pipeline.group()], &AdminOptions::new()));
        forgotten.is_ok_and(|groups| groups.iter().all(Result::is_ok)).then_some(())
    });
}

#[test]
fn logs_that_were_made_anew_are_refused_with_the_disk_and_without() {
    for (name, topics) in [("changelog-lost", &[0][..]), ("ids-lost", &[1]), ("both-lost", &[0, 1])] {
        let (pipeline, _) = emitted(name);
        let logs = pipeline.logs();
        let topics: Vec<&str> = topics.iter().map(|number| logs[*number]).collect();
        make_anew(&pipeline, &topics);
        assert_refused_twice(&pipeline, "with the disk");
        pipeline.lose_disk("a");
        assert_refused_twice(&pipeline, "without the disk");
    }
}

#[test]
fn an_ids_log_that_was_lost_is_noticed_where_the_offsets_are_forgotten_too() {
    let (pipeline, _) = emitted("ids-and-offsets-lost");
    make_anew(&pipeline, &[pipeline.logs()[1]]);
    forget_offsets(&pipeline);
    assert_refused_twice(&pipeline, "with the disk");
    pipeline.lose_disk("a");
    assert_refused_twice(&pipeline, "without the disk");
}

#[test]
fn where_both_logs_and_the_offsets_are_lost_the_disk_still_tells_that_there_was_a_state() {
    let (pipeline, _) = emitted("all-but-disk-lost");
    make_anew(&pipeline, &pipeline.logs());
    forget_offsets(&pipeline);
    assert_refused_twice(&pipeline, "with the disk");
}

#[test]
fn what_the_refusal_advises_begins_without_state() {
    let (pipeline, _) = emitted("begun-anew");
    make_anew(&pipeline, &pipeline.logs());
    let said = refused(&pipeline, "both lost");
    assert!(said.contains("reset the group's offsets"), "{said}");
    let before = pipeline.emitted().len();
    pipeline.lose_disk("a");
    wait::until("the group can be reset", || {
        let arguments = [
            "consumer-groups",
            "--reset-offsets",
            "--group",
            pipeline.group(),
            "--topic",
            &pipeline.topic("ticket.raw"),
            "--to-earliest",
            "--execute",
        ];
        broker::tool(&arguments);
        (pipeline.committed() == 0).then_some(())
    });
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("records"), pipeline.end(), "{}", log.0);
    assert_eq!(pipeline.emitted().len(), 2 * before);
}

#[test]
fn forgotten_offsets_are_the_states_with_the_disk_and_without() {
    let (pipeline, uids) = emitted("offsets-lost");
    forget_offsets(&pipeline);
    pipeline.append(uids.iter().map(|uid| moved(uid, "waiting")));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("no committed offset").len(), 4, "{}", log.0);
    forget_offsets(&pipeline);
    pipeline.lose_disk("a");
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("no committed offset").len(), 4, "{}", log.0);
    let changes = pipeline.changes();
    for uid in &uids {
        assert_eq!(changes[uid], ["status: open -> waiting", "status: waiting -> closed"]);
    }
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_changelog_that_is_deleted_under_a_run_ends_it_in_plain_words() {
    let (pipeline, uids) = emitted("deleted-under-a-run");
    let mut process = pipeline.start("a");
    wait::until("all are restored", || process.log().has_restored(4).then_some(()));
    delete(&[pipeline.logs()[0]]);
    wait::until("the topics are made anew", || {
        pipeline.command(&["topics", "apply"]).status.success().then_some(())
    });
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    wait::until("the run has ended", || (!process.is_running()).then_some(()));
    let ended = process.wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log.0);
    assert!(
        ended.log.0.contains("deleted and made anew") || ended.log.0.contains("topics apply"),
        "{}",
        ended.log.0
    );
    let said = refused(&pipeline, "at the next start");
    assert!(said.contains("has lost records"), "{said}");
}

#[test]
fn an_ids_log_that_is_cut_within_the_window_is_told_where_it_is_needed() {
    let (pipeline, uids) = emitted("ids-cut");
    let first: Vec<_> = uids.iter().map(|uid| moved(uid, "waiting")).collect();
    pipeline.append(first.clone());
    pipeline.run_until_caught_up();
    let log = pipeline.run_until_caught_up();
    assert!(log.lines("the ids log begins within the window").is_empty(), "{}", log.0);
    // All but what holds the last commit of each partition.
    let ids = pipeline.logs()[1];
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let last = pipeline.true_end(ids, partition) - 2;
        list.add_partition_offset(ids, partition, Offset::Offset(last)).expect("an offset");
    }
    block_on(admin().delete_records(&list, &AdminOptions::new())).expect("the broker answers");
    let log = pipeline.run_until_caught_up();
    assert!(log.lines("the ids log begins within the window").is_empty(), "the disk has it: {}", log.0);
    pipeline.lose_disk("a");
    // What the last commit saw is still known.
    pipeline.append(first.iter().map(again));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("the ids log begins within the window").len(), 4, "{}", log.0);
    assert_eq!(log.total("duplicates"), 4, "{}", log.0);
    pipeline.assert_emitted_as_expected();
}

/// A transaction that nobody ends while the test runs.
fn open_transaction(pipeline: &Pipeline) -> ThreadedProducer<DefaultProducerContext> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker::address())
        .set("transactional.id", format!("{}-hanging", pipeline.group()))
        .set("transaction.timeout.ms", "300000");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    producer.init_transactions(wait::PATIENCE).expect("transactions");
    producer.begin_transaction().expect("a transaction");
    producer
}

/// A client of the group that is no member.
fn outsider(pipeline: &Pipeline) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker::address()).set("group.id", pipeline.group());
    config.create().expect("a client")
}

/// The offset behind all of partition 0, with the logs' true ends.
fn end_of_all(pipeline: &Pipeline) -> TopicPartitionList {
    let [changelog, ids] = pipeline.logs();
    let mut list = TopicPartitionList::new();
    let mut place = list.add_partition(&pipeline.topic("ticket.raw"), 0);
    place.set_offset(Offset::Offset(pipeline.end_of(0))).expect("an offset");
    place.set_metadata(format!("1 {} {}", pipeline.true_end(changelog, 0), pipeline.true_end(ids, 0)));
    list
}

/// As a broker leaves it that has lost a transaction's markers in a topic alone.
pub(crate) fn hang_in(pipeline: &Pipeline, topic: &str) -> ThreadedProducer<DefaultProducerContext> {
    let producer = open_transaction(pipeline);
    let record = BaseRecord::<(), [u8]>::to(topic).partition(0).payload(b"undecided");
    producer.send(record).map_err(|(error, _)| error).expect("a record");
    producer.flush(wait::PATIENCE).expect("it arrives");
    producer
}

/// As a broker leaves it that has lost a transaction's markers in the ids log:
/// the offset is committed, and the records that belong to it are not decided.
fn hang_in_the_ids_log(pipeline: &Pipeline) -> ThreadedProducer<DefaultProducerContext> {
    let producer = hang_in(pipeline, pipeline.logs()[1]);
    commit_end_of_all(pipeline);
    producer
}

fn commit_end_of_all(pipeline: &Pipeline) {
    let (group, offset) = (outsider(pipeline), end_of_all(pipeline));
    wait::until("the group has no members, and an offset can be committed for it", || {
        group.commit(&offset, CommitMode::Sync).ok()
    });
}

/// As it leaves it that has lost those in `__consumer_offsets` alone: all else is
/// decided, and the offset is not.
fn hang_in_the_offsets(pipeline: &Pipeline) -> ThreadedProducer<DefaultProducerContext> {
    let producer = open_transaction(pipeline);
    let metadata = outsider(pipeline).group_metadata().expect("a group");
    producer
        .send_offsets_to_transaction(&end_of_all(pipeline), &metadata, wait::PATIENCE)
        .expect("the offset is sent");
    producer
}

/// Waits for a transaction that hangs are as long as ours can live.
fn shorten_transactions(pipeline: &Pipeline) {
    pipeline.rewrite(|text| {
        text.replace("\n  brokers:", "\n  producer:\n    transaction.timeout.ms: 10000\n  brokers:")
    });
}

/// The run says in plain words that a transaction hangs, and does nothing; what the words advise mends it.
fn assert_told_and_mended(
    name: &str,
    words: &str,
    hang: fn(&Pipeline) -> ThreadedProducer<DefaultProducerContext>,
) {
    let (pipeline, uids) = emitted(name);
    shorten_transactions(&pipeline);
    let hanging = hang(&pipeline);
    pipeline.append(uids.iter().map(|uid| moved(uid, "waiting")));
    let said = refused(&pipeline, "a transaction hangs");
    let told = said.contains("hanging transaction: ") && said.contains(words);
    assert!(told && said.contains("--delete-offsets"), "{said}");

    hanging.abort_transaction(wait::PATIENCE).expect("it is aborted");
    assert!(!pipeline.changes().contains_key(&uids[0]), "nothing of the partition was emitted");
    pipeline.lose_disk("a");
    forget_offsets(&pipeline);
    pipeline.run_until_caught_up();
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_hanging_transaction_ends_the_run_in_plain_words_and_what_they_advise_mends_it() {
    assert_told_and_mended("hanging", "-ids [0] is committed up to", hang_in_the_ids_log);
}

/// As a broker leaves it that has lost a transaction's markers in both logs, and in an output
/// if there is one, and knows its producer: a transaction that has read one record.
fn commit_without_markers(pipeline: &Pipeline, stream_time_ms: i64, output: Option<&str>) {
    let commit = CommitRecord { input: pipeline.end_of(0), stream_time_ms, ids: Vec::new() };
    let _unverified = Unverified::begin();
    let mut producer = wire::Producer::of(&format!("{}-a-0", pipeline.group()));
    let [changelog, ids] = pipeline.logs();
    producer.write(changelog, 0, Some(NOTHING_KEY), None);
    producer.write(ids, 0, None, Some(&IdsRecord::Commit(commit).encode()));
    output.iter().for_each(|output| producer.write(output, 0, None, Some(b"undecided")));
    commit_end_of_all(pipeline);
}

/// As long as it lives the broker asks no coordinator whether a transaction was begun. One at a time.
struct Unverified(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

impl Unverified {
    const SETTING: &str = "transaction.partition.verification.enable";

    fn begin() -> Unverified {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Unverified::alter(&["--add-config", &format!("{}=false", Unverified::SETTING)]);
        Unverified(one)
    }

    fn alter(how: &[&str]) {
        let broker = ["configs", "--alter", "--entity-type", "brokers", "--entity-name", "1"];
        broker::tool(&[&broker, how].concat());
    }
}

impl Drop for Unverified {
    fn drop(&mut self) {
        Unverified::alter(&["--delete-config", Unverified::SETTING]);
    }
}

#[test]
fn a_commit_that_kafka_has_lost_the_markers_of_is_given_others() {
    let (pipeline, uids) = emitted("unmarked");
    let duplicate = opened(&uids[0]);
    let stream_time_ms = duplicate.timestamp_ms;
    pipeline.append([duplicate]);
    commit_without_markers(&pipeline, stream_time_ms, None);
    pipeline.append(uids.iter().map(|uid| moved(uid, "waiting")));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.0.matches("lost its markers").count(), 1, "{}", log.0);
    assert_eq!(log.total("duplicates"), 0, "what is committed is not read again: {}", log.0);
    pipeline.assert_emitted_as_expected();
    pipeline.lose_disk("a");
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.run_until_caught_up();
    pipeline.assert_emitted_as_expected();
}

/// The next transaction would decide the output, and might be aborted.
#[test]
fn a_commit_that_kafka_has_lost_the_markers_of_in_an_output_too_is_given_none() {
    let (pipeline, uids) = emitted("unmarked-output");
    shorten_transactions(&pipeline);
    let moved = moved(&uids[0], "waiting");
    let stream_time_ms = moved.timestamp_ms;
    pipeline.append([moved]);
    let output = pipeline.topic("ticket.status.changed");
    commit_without_markers(&pipeline, stream_time_ms, Some(&output));
    let said = refused(&pipeline, "an output hangs too");
    assert!(said.contains("] is committed up to") && !said.contains("lost its markers"), "{said}");
}

#[test]
fn what_was_aborted_after_it_had_been_committed_is_told_and_what_is_advised_mends_it() {
    let (pipeline, uids) = emitted("taken-back");
    pipeline.append(uids.iter().map(|uid| moved(uid, "waiting")));
    hang_in_the_ids_log(&pipeline).abort_transaction(wait::PATIENCE).expect("it is aborted");
    for time in ["the first time", "the second time"] {
        let said = refused(&pipeline, &format!("what was committed was aborted, {time}"));
        let told =
            said.contains("was aborted after it had been committed") && said.contains("--delete-offsets");
        assert!(told, "{time}: {said}");
    }

    assert!(!pipeline.changes().contains_key(&uids[0]), "nothing of the partition was emitted");
    pipeline.lose_disk("a");
    forget_offsets(&pipeline);
    pipeline.run_until_caught_up();
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_transaction_that_hangs_in_the_groups_offsets_does_so_too() {
    assert_told_and_mended("hanging-offsets", "of one in __consumer_offsets", hang_in_the_offsets);
}

#[test]
fn a_transaction_that_hangs_in_an_output_ends_the_run_though_it_can_go_on() {
    let (pipeline, uids) = emitted("hanging-output");
    shorten_transactions(&pipeline);
    let mut process = pipeline.start("a");
    let output = pipeline.topic("ticket.status.changed");
    let hanging = hang_in(&pipeline, &output);
    // One after the other, for only while others are committed it is known that Kafka could have decided it.
    let mut statuses = ["waiting", "open"].into_iter().cycle().enumerate();
    wait::until("the run has ended", || {
        if pipeline.committed() == pipeline.end() {
            let (number, status) = statuses.next().expect("they do not end");
            pipeline.append(uids.iter().map(|uid| moved_again(uid, number, status)));
        }
        (!process.is_running()).then_some(())
    });
    let ended = process.wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log.0);
    let told =
        ended.log.0.contains(&format!("hanging transaction: {output} [0] is not readable from offset"));
    assert!(told, "{}", ended.log.0);

    hanging.abort_transaction(wait::PATIENCE).expect("it is aborted");
    pipeline.run_until_caught_up();
    pipeline.assert_emitted_as_expected();
}
