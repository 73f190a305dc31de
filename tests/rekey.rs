//! A raw topic whose keys say nothing is re-keyed through the internal topic:
//! exactly once, in order for each raw partition, whatever dies when. What is
//! made of it names the raw topic's place.

use std::collections::BTreeMap;
use std::process::Output;

use ticket_pipeline::lines::RawLine;
use ticket_pipeline::partition;

use crate::crash::{KILLS, Kills, smallest_transactions};
use crate::datasets::{DataSet, HISTORIES, NASTY};
use crate::lines::Line;
use crate::pipeline::{Pipeline, Settings};
use crate::random::Random;
use crate::story::{again, envelope, in_every_partition, moved, opened, record};
use crate::tasks::PARTITIONS;
use crate::wait;

fn settings() -> Settings {
    Settings { rekeyed: true, ..Settings::default() }
}

/// Small transactions, so that nearly every moment is in the middle of one.
fn small_transactions() -> Settings {
    Settings { batch_records_max: 12, commit_interval: "5ms", ..settings() }
}

/// A data set whose records lie anywhere, under keys that name no ticket.
fn scattered(set: &DataSet, mut partition: impl FnMut(&RawLine) -> i32) -> Vec<RawLine> {
    let mut raw = set.raw();
    for (number, raw) in raw.iter_mut().enumerate() {
        raw.partition = partition(raw);
        raw.key = match number % 3 {
            0 => None,
            1 => Some(b"the same for many".to_vec()),
            _ => Some(number.to_string().into_bytes()),
        };
    }
    raw
}

/// In a partition of the raw topic that is not its ticket's.
fn elsewhere(uid: &str, mut raw: RawLine) -> RawLine {
    raw.partition = (partition::of(uid.as_bytes(), PARTITIONS) + 1) % PARTITIONS;
    raw.key = None;
    raw
}

fn audit_is_clean(pipeline: &Pipeline) {
    let Output { status, stdout, stderr } = pipeline.command(&["audit", "--state"]);
    let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    assert!(status.success() && text.contains("nothing is missing"), "{text}");
    assert!(text.contains("-rekeyed: "), "the internal topic was audited too:\n{text}");
}

// --- What comes out ---------------------------------------------------------

#[test]
fn every_change_of_the_histories_is_found_as_if_they_were_keyed() {
    let keyed = Pipeline::new("keyed", &Settings::default());
    keyed.feed(&HISTORIES);
    keyed.run_until_caught_up();

    let rekeyed = Pipeline::new("rekeyed", &settings());
    // Each ticket in a partition of its own, and in none that murmur2 says.
    let raw = HISTORIES.raw();
    let home = |raw: &RawLine| (raw.partition + 1) % PARTITIONS;
    rekeyed.append(scattered(&HISTORIES, home));
    let log = rekeyed.run_until_caught_up();
    assert_eq!(log.total("rekeyed"), raw.len() as i64, "{}", log.0);
    assert_eq!(log.total("records"), raw.len() as i64, "{}", log.0);
    // Topics are read side by side: of a ticket's changes no order between them is seen.
    let sorted = |pipeline: &Pipeline| {
        let mut changes = pipeline.changes();
        changes.values_mut().for_each(|changes| changes.sort());
        changes
    };
    assert_eq!(sorted(&rekeyed), sorted(&keyed));
    rekeyed.assert_rekeyed_and_emitted();
    audit_is_clean(&rekeyed);
}

#[test]
fn nasty_records_that_lie_anywhere_come_out_once_each_and_in_order() {
    let mut random = Random::new();
    let pipeline = Pipeline::new("rekeyed-nasty", &settings());
    pipeline.append(scattered(&NASTY, |_| random.below(PARTITIONS as u64) as i32));
    pipeline.run_until_caught_up();
    pipeline.assert_rekeyed_and_emitted();
    audit_is_clean(&pipeline);
}

#[test]
fn outputs_and_dead_letters_name_the_raw_record_and_hand_its_key_and_headers_on() {
    let pipeline = Pipeline::new("rekeyed-places", &settings());
    let time_ms = 1_767_571_200_000;
    let keyed = |mut raw: RawLine| {
        raw.partition = 3;
        raw.key = Some(b"T-2".to_vec());
        raw
    };
    let nobodys = envelope("nobody's", "ticket:updated", time_ms, serde_json::json!({"title": "t"}));
    // Nothing in it may be cut: names are kept.
    let long = serde_json::json!({"id": "T-1", "status": {"id": "s", "name": "x".repeat(300_000)}});
    let long = envelope("long", "ticket:updated", time_ms, long);
    pipeline.append([
        keyed(opened("T-1")),
        keyed(record("T-1", nobodys.to_string().as_bytes())),
        keyed(record("T-1", b"{")),
        keyed(record("T-1", long.to_string().as_bytes())),
        keyed(moved("T-1", "closed")),
    ]);
    pipeline.run_until_caught_up();

    let emitted = pipeline.emitted();
    let dead: BTreeMap<String, &Line> = emitted
        .iter()
        .filter(|line| line.topic == "ticket.dlq")
        .map(|line| (line.header("__streams.errors.exception").expect("it has a code"), line))
        .collect();
    let codes: Vec<&str> = dead.keys().map(String::as_str).collect();
    assert_eq!(codes, ["no_ticket_uid", "not_json", "payload_too_large"]);
    for (code, offset) in [("no_ticket_uid", "1"), ("not_json", "2"), ("payload_too_large", "3")] {
        let line = dead[code];
        assert_eq!((line.partition, line.key.as_deref()), (3, Some(b"T-2".as_slice())), "{code}");
        let names: Vec<&str> = line.headers.iter().map(|(name, _)| name.as_str()).collect();
        let ours = ["topic", "partition", "offset", "exception", "message"];
        let ours = ours.map(|name| format!("__streams.errors.{name}"));
        assert_eq!(names[0], "x-request-id", "{code}");
        assert_eq!(names[1..], ours, "{code}");
        assert_eq!(line.header("__streams.errors.partition").as_deref(), Some("3"), "{code}");
        assert_eq!(line.header("__streams.errors.offset").as_deref(), Some(offset), "{code}");
    }
    let derived = emitted.iter().find(|line| line.topic == "ticket.status.changed").expect("it changed");
    let source = &derived.json()["metadata"]["source"];
    assert_eq!((&source["partition"], &source["offset"]), (&3.into(), &4.into()), "{source}");
    let forwarded: Vec<&Line> = emitted.iter().filter(|line| line.topic == "ticket.updated").collect();
    assert_eq!(forwarded.len(), 1);
    assert_eq!(forwarded[0].key.as_deref(), Some(b"T-1".as_slice()));
    assert!(!forwarded[0].headers.iter().any(|(name, _)| name.starts_with("__rekeyed")));
    audit_is_clean(&pipeline);
}

#[test]
fn a_duplicate_in_another_raw_partition_is_one() {
    let pipeline = Pipeline::new("rekeyed-twice", &settings());
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let events: Vec<RawLine> = uids.iter().map(|uid| moved(uid, "closed")).collect();
    pipeline.append(events.clone());
    pipeline.run_until_caught_up();
    pipeline.append(uids.iter().zip(&events).map(|(uid, event)| elsewhere(uid, again(event))));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("duplicates"), uids.len() as i64, "{}", log.0);
    pipeline.assert_rekeyed_and_emitted();
    for uid in &uids {
        assert_eq!(pipeline.changes()[uid], ["status: open -> closed"]);
    }
}

#[test]
fn derive_re_keys_with_no_kafka() {
    let pipeline = Pipeline::without_topics("rekeyed-derive", &settings());
    let checked = pipeline.command(&["config", "check"]);
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(text.contains("keyed by nothing") && text.contains("-rekey re-keys"), "{text}");
    let plan = pipeline.command(&["topics", "plan"]);
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(text.contains("-rekeyed") && text.contains("re-keyed"), "{text}");

    let raw = scattered(&HISTORIES, |raw| (raw.partition + 1) % PARTITIONS);
    let derived = pipeline.derive(&raw);
    let count = |lines: &[Line], topic: &str| lines.iter().filter(|line| line.topic == topic).count();
    let expected = HISTORIES.expected();
    for topic in ["ticket.status.changed", "ticket.updated", "ticket.assigned"] {
        assert_eq!(count(&derived, &pipeline.topic(topic)), count(&expected, topic), "{topic}");
    }
}

// --- What dies --------------------------------------------------------------

#[test]
fn killed_again_and_again_in_both_stages() {
    let mut random = Random::new();
    let pipeline = Pipeline::new("rekeyed-killed", &Settings { rekeyed: true, ..smallest_transactions() });
    let mut places = Random::new();
    let mut raw = || scattered(&NASTY, |_| places.below(PARTITIONS as u64) as i32);
    pipeline.append(raw());
    let mut kills = Kills::of(&pipeline, KILLS, Pipeline::rekeyed);
    while let Some(wanted) = kills.next(&mut random) {
        let process = pipeline.start("a");
        wait::until("more is re-keyed", || (pipeline.rekeyed() >= wanted).then_some(()));
        process.kill();
        kills.happened(&mut raw);
        if random.once_in(3) {
            pipeline.lose_disk("a");
        }
    }
    kills.assert_that_most_came_midway();
    pipeline.run_until_caught_up();
    pipeline.assert_rekeyed_and_emitted();
    audit_is_clean(&pipeline);
}

#[test]
fn of_two_processes_one_is_killed_and_the_other_goes_on() {
    let pipeline = Pipeline::new("rekeyed-two", &Settings { workers: 1, ..small_transactions() });
    let mut random = Random::new();
    let mut raw = scattered(&HISTORIES, |_| random.below(PARTITIONS as u64) as i32);
    let rest = raw.split_off(raw.len() / 2);
    let survivor = pipeline.start("a");
    let victim = pipeline.start("b");
    // Of four partitions of each stage in two processes each ends up with two of either.
    let takes_part = |process: &crate::process::Process| {
        let log = process.log();
        log.lines("restored").len() >= 2 && log.lines("re-keying goes on").len() >= 2
    };
    wait::until("both take part", || (takes_part(&survivor) && takes_part(&victim)).then_some(()));
    pipeline.append(raw);
    wait::until("some is re-keyed", || (pipeline.rekeyed() > 0).then_some(()));
    victim.kill();
    pipeline.append(rest);
    let back = pipeline.start("b");
    wait::until("all is re-keyed", || (pipeline.rekeyed() >= pipeline.end()).then_some(()));
    survivor.end_well();
    back.end_well();
    pipeline.run_until_caught_up();
    pipeline.assert_rekeyed_and_emitted();
    audit_is_clean(&pipeline);
}

// --- Offsets ----------------------------------------------------------------

/// All is emitted, and the group can be reset soon after a run.
fn emitted(name: &str) -> Pipeline {
    let pipeline = Pipeline::new(name, &Settings { workers: 1, ..settings() });
    pipeline.set_shortest_session();
    let mut random = Random::new();
    pipeline.append(scattered(&NASTY, |_| random.below(PARTITIONS as u64) as i32));
    pipeline.run_until_caught_up();
    pipeline
}

#[test]
fn a_replay_goes_back_in_the_internal_topic_and_emits_the_same_bytes_again() {
    let in_place = |pipeline: &Pipeline| {
        let mut internal = pipeline.internal();
        internal.sort_by_key(|record| (record.partition, record.offset));
        internal
    };
    let pipeline = emitted("rekeyed-replay");
    let internal = in_place(&pipeline);
    let plan = pipeline.replay(&["--to-earliest", "--execute"]);
    assert!(plan.contains("the offsets are set"), "{plan}");
    pipeline.lose_disk("a");
    let log = pipeline.run_until_caught_up();
    // Not in a partition to which no ticket belongs.
    assert!(log.lines("REPLAYING").len() >= 3, "{}", log.0);
    assert_eq!(log.total("rekeyed"), 0, "{}", log.0);
    assert!(in_place(&pipeline) == internal, "nothing was re-keyed again");
    pipeline.assert_rekeyed_and_emitted_times(2);
    audit_is_clean(&pipeline);
}

#[test]
fn re_keying_is_never_reset() {
    let pipeline = emitted("rekeyed-reset");
    let written = pipeline.rekeyed();
    let reset = |to: &str| {
        wait::until("the group has no members", || pipeline.reset_re_keying(to).then_some(()));
    };
    reset("--to-earliest");
    let ended = pipeline.start_with("a", &["--until-caught-up"]).wait();
    let said = &ended.log.0;
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("re-keying is never reset") && said.contains("Set it to"), "{said}");

    // Set right, it goes on; so it does where Kafka has forgotten all of it.
    reset("--to-latest");
    assert_eq!(pipeline.rekeyed(), written);
    pipeline.append([opened("T-1")]);
    pipeline.run_until_caught_up();
    wait::until("the offsets are deleted", || pipeline.forget_re_keying().then_some(()));
    pipeline.append([moved("T-1", "closed")]);
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("no committed offset: re-keying goes on").len(), 4, "{}", log.0);
    assert_eq!(log.total("rekeyed"), 1, "{}", log.0);
    pipeline.assert_rekeyed_and_emitted();
    audit_is_clean(&pipeline);
}

#[test]
fn a_record_that_is_re_keyed_twice_is_found_by_the_audit() {
    let pipeline = emitted("rekeyed-doubled");
    let internal = pipeline.internal();
    let doubled = internal.last().expect("there are records");
    pipeline.tamper(doubled);
    let Output { status, stdout, .. } = pipeline.command(&["audit"]);
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.lines().any(|line| line.starts_with("doubled: ") && line.contains("-rekeyed [")), "{text}");
}
