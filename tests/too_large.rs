//! What outgrows a limit is a dead letter, or goes through all the same; it never
//! stops the records around it, and it is decided alike wherever a record is read.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use ticket_pipeline::envelope::Code;
use ticket_pipeline::lines::RawLine;
use ticket_pipeline::task::Fate;

use crate::lines::Line;
use crate::pipeline::{Pipeline, Settings};
use crate::random::Random;
use crate::story::{envelope, in_every_partition, moved, opened, record};
use crate::tasks::{PARTITIONS, Tasks, topology};

const TIME_MS: i64 = 1_767_571_200_000;

const TOO_LARGE: Fate = Fate::DeadLetter(Code::PayloadTooLarge);

/// The platform says that a custom field is gone: that waits for its twin, under the field's key.
fn removed(uid: &str, key: &str) -> RawLine {
    let event_id = format!("{uid} {}", &key[..key.len().min(40)]);
    let ticket = json!({"id": uid, "customFields": {}});
    let mut event = envelope(&event_id, "ticket:custom_field_value:removed", TIME_MS, ticket);
    event["payload"]["customFieldId"] = key.into();
    record(uid, event.to_string().as_bytes())
}

/// We find out that it is gone.
fn without(uid: &str, key: &str) -> RawLine {
    let event_id = format!("{uid} without");
    let mut event = envelope(&event_id, "ticket:updated", TIME_MS, json!({"id": uid, "customFields": {}}));
    event["payload"]["previousTicket"] = json!({"id": uid, "customFields": {key: 1}});
    record(uid, event.to_string().as_bytes())
}

fn deleted(uid: &str) -> RawLine {
    let mut event = envelope(&format!("{uid} deleted"), "ticket:deleted", TIME_MS, Value::Null);
    event["payload"] = json!({"previousTicket": {"id": uid}});
    record(uid, event.to_string().as_bytes())
}

/// So many letters that do not compress.
fn noise(random: &mut Random, bytes: usize) -> String {
    const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    (0..bytes).map(|_| char::from(LETTERS[random.below(64) as usize])).collect()
}

/// Keys of 200,000 letters, more of them than the changelog takes at once.
fn long_keys(random: &mut Random) -> Vec<String> {
    (0..24).map(|number| format!("{number:02}{}", noise(random, 200_000))).collect()
}

fn dead_letters(emitted: &[Line]) -> Vec<&Line> {
    emitted.iter().filter(|line| line.topic == "ticket.dlq").collect()
}

fn assert_audit_is_clean(pipeline: &Pipeline) {
    let audited = pipeline.command(&["audit", "--state"]);
    let text = String::from_utf8_lossy(&[audited.stdout, audited.stderr].concat()).into_owned();
    assert!(audited.status.success() && text.contains("nothing is missing"), "{text}");
}

// --- What is remembered of a ticket -------------------------------------------

#[test]
fn announcements_that_would_outgrow_the_changelog_are_dead_letters_and_leave_no_trace() {
    let mut tasks = Tasks::in_memory(&topology(""));
    let keys = long_keys(&mut Random::new());
    let mut at = 0;
    let mut process = |mut raw: RawLine| {
        raw.offset = at;
        at += 1;
        tasks.process(&raw).0
    };
    let fates: Vec<Fate> = keys.iter().map(|key| process(removed("T-1", key)).fate).collect();
    // 4,096,000 bytes, each announcement with its digest and its time.
    let (fit, rest) = fates.split_at(20);
    assert!(fit.iter().all(|fate| *fate == Fate::Emitted), "{fates:?}");
    assert!(rest.iter().all(|fate| *fate == TOO_LARGE), "{fates:?}");

    // What waits, waits on, and what is smaller still finds room.
    assert_eq!(process(removed("T-1", "short")).fate, Fate::Emitted);
    let update = process(without("T-1", &keys[0]));
    assert_eq!((update.fate, update.derived, update.twins_dropped), (Fate::Emitted, 0, 1));
    // A dead letter announced nothing and was not seen: where there is room it is emitted.
    assert_eq!(process(deleted("T-1")).fate, Fate::Emitted);
    assert_eq!(process(removed("T-1", &keys[23])).fate, Fate::Emitted);
    assert_eq!(process(removed("T-1", &keys[23])).fate, Fate::Duplicate);
}

#[test]
fn announcements_that_would_outgrow_the_changelog_stop_nothing() {
    let settings = Settings { workers: 1, ..Settings::default() };
    let pipeline = Pipeline::new("announced", &settings);
    pipeline.set_shortest_session();
    let uids = in_every_partition("T");
    let keys = long_keys(&mut Random::new());
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    pipeline.append(keys.iter().map(|key| removed(&uids[0], key)));
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    // The snapshot has its place too.
    assert_eq!(log.total("dead_letters"), 4, "{}", log.0);
    for uid in &uids {
        assert_eq!(pipeline.changes()[uid], ["status: open -> closed"]);
    }
    pipeline.assert_emitted_as_expected();
    assert_audit_is_clean(&pipeline);

    pipeline.replay(&["--to-earliest", "--execute"]);
    pipeline.lose_disk("a");
    pipeline.run_until_caught_up();
    let everywhere: BTreeMap<i32, i64> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
    pipeline.assert_emitted_again_from(&[everywhere]);
    assert_audit_is_clean(&pipeline);
}

// --- What came compressed -----------------------------------------------------

/// What zstd makes small and lz4 does not: the same again, farther back than lz4 looks.
fn repeated(random: &mut Random, bytes: usize) -> String {
    noise(random, 200_000).repeat(bytes / 200_000)
}

/// Records that the raw topic takes only because they are compressed well, with what becomes of them.
fn compressed(uid: &str, random: &mut Random) -> Vec<(Fate, RawLine)> {
    let titled = |name: &str, title: &str| {
        let mut raw = record(uid, b"");
        let ticket = json!({"id": uid, "title": title, "status": {"id": "open"}});
        let event = envelope(&format!("{uid} {name}"), "ticket:updated", raw.timestamp_ms, ticket);
        raw.value = Some(event.to_string().into_bytes());
        raw
    };
    let with_header = |header: String| {
        let mut raw = titled("header", "short");
        raw.headers.push((b"x-trace".to_vec(), Some(header.into_bytes())));
        raw
    };
    vec![
        (Fate::DeadLetter(Code::NotJson), record(uid, repeated(random, 6_000_000).as_bytes())),
        // It is cut, and remembered whole.
        (Fate::Emitted, titled("title", &repeated(random, 3_000_000))),
        (TOO_LARGE, titled("long title", &repeated(random, 6_000_000))),
        (TOO_LARGE, with_header(repeated(random, 4_000_000))),
    ]
}

fn compressed_records_go_through(pipeline: &Pipeline) {
    let uids = in_every_partition("T");
    let mut random = Random::new();
    let uid = &uids[1];
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let records = compressed(uid, &mut random);
    pipeline.append_compressed(3, records.iter().map(|(_, raw)| raw.clone()));
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    let dead: Vec<&(Fate, RawLine)> = records.iter().filter(|(fate, _)| *fate != Fate::Emitted).collect();
    assert_eq!(log.total("dead_letters"), dead.len() as i64, "{}", log.0);
    let emitted = pipeline.emitted();
    let letters = dead_letters(&emitted);
    for (fate, raw) in dead {
        let Fate::DeadLetter(code) = fate else { panic!("{fate:?} is no dead letter") };
        let letter = letters.iter().find(|letter| letter.value == raw.value).expect("it is there, untouched");
        assert_eq!(letter.header("__streams.errors.exception").as_deref(), Some(code.as_str()));
        assert_eq!((&letter.key, &letter.headers[0].1), (&raw.key, &raw.headers[0].1));
    }
    for uid in &uids {
        assert_eq!(pipeline.changes()[uid], ["status: open -> closed"]);
    }
}

#[test]
fn a_record_that_only_its_compression_makes_small_enough_goes_through_or_is_a_dead_letter() {
    let pipeline = Pipeline::new("compressed", &Settings::default());
    compressed_records_go_through(&pipeline);
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_record_that_only_its_compression_makes_small_enough_is_rekeyed_like_any_other() {
    let pipeline = Pipeline::new("rekeyed-compressed", &Settings { rekeyed: true, ..Settings::default() });
    compressed_records_go_through(&pipeline);
    pipeline.assert_rekeyed_and_emitted();
}

/// Once it has failed, what is sent after it fails without a reason of its own.
#[test]
fn a_dead_letter_that_does_not_fit_even_so_ends_the_run_with_a_remedy() {
    let pipeline = Pipeline::new("beyond", &Settings::default());
    let uids = in_every_partition("T");
    let mut random = Random::new();
    // The same again farther back than our level of zstd looks, and not farther than the twelfth.
    let far = noise(&mut random, 600_000) + &" ".repeat(2_500_000);
    pipeline.append_compressed(12, [record(&uids[0], far.repeat(4).as_bytes())]);
    pipeline.append((0..500).map(|_| moved(&uids[0], "closed")));
    let ended = pipeline.start("a").wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log.0);
    let remedy = "raise that topic's max.message.bytes";
    let told = ended.log.0.lines().any(|line| line.contains(remedy) && line.contains("ticket.dlq [0]"));
    assert!(told, "{}", ended.log.0);
}

#[test]
fn a_batch_that_is_too_large_to_be_decompressed_ends_the_run_with_a_remedy() {
    let pipeline = Pipeline::new("bomb", &Settings::default());
    pipeline.rewrite(|text| {
        let consumer = "\n  consumer:\n    fetch.max.bytes: 1000000\n    receive.message.max.bytes: 2000000";
        text.replace("\n  brokers:", &format!("{consumer}\n  brokers:"))
    });
    let mut random = Random::new();
    pipeline.append_compressed(3, [record("T-1", repeated(&mut random, 4_000_000).as_bytes())]);
    let ended = pipeline.start("a").wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log.0);
    assert!(ended.log.0.contains("raise that in kafka.consumer"), "{}", ended.log.0);
}

// --- What one record emits ----------------------------------------------------

/// An update that changes so many custom fields, in as few bytes as that takes.
fn of_fields(uid: &str, fields: usize) -> RawLine {
    let ticket = |value: &str| {
        let fields: Map<String, Value> =
            (0..fields).map(|number| (format!("{number:05}"), value.into())).collect();
        json!({"id": uid, "customFields": fields})
    };
    let mut event = envelope(&format!("{uid} all"), "ticket:updated", TIME_MS, ticket("b"));
    event["payload"]["previousTicket"] = ticket("a");
    record(uid, event.to_string().as_bytes())
}

#[test]
fn a_record_that_would_emit_more_than_the_limit_is_a_dead_letter_and_leaves_no_trace() {
    // Seven hundred events of about 18 kB.
    let raw = of_fields("T-1", 700);
    let fates = |limit: &str| {
        let mut tasks = Tasks::in_memory(&topology(&format!("limits: {{emitted_size_max: {limit}}}")));
        let (outcome, emitted) = tasks.process(&raw);
        let again = tasks.process(&RawLine { offset: 1, ..raw.clone() }).0;
        (outcome.fate, emitted.len(), again.fate)
    };
    assert_eq!(fates("16MiB"), (Fate::Emitted, 701, Fate::Duplicate));
    assert_eq!(fates("8MiB"), (TOO_LARGE, 1, TOO_LARGE));
}

/// Where Kafka is slow, sending it takes longer than a transaction may last, again and again.
#[test]
fn a_record_that_would_emit_gigabytes_is_a_dead_letter_and_good_traffic_goes_on() {
    let pipeline = Pipeline::new("endless", &Settings::default());
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    // Two and a half: ten thousand events of a quarter of a megabyte each.
    pipeline.append([of_fields(&uids[2], 10_000)]);
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("dead_letters"), 1, "{}", log.0);
    let letters = pipeline.emitted();
    let code = dead_letters(&letters)[0].header("__streams.errors.exception");
    assert_eq!(code.as_deref(), Some("payload_too_large"));
    for uid in &uids {
        assert_eq!(pipeline.changes()[uid], ["status: open -> closed"]);
    }
}
