//! A record that cannot be used goes to the dead-letter topic as it came, with
//! a code and a reason; the good ones around it are not touched.

use serde_json::json;
use ticket_pipeline::lines::RawLine;

use crate::lines::Line;
use crate::pipeline::{Pipeline, Settings};
use crate::random::Random;
use crate::story::{envelope, in_every_partition, moved, opened, record};

/// Each code with records that deserve it.
fn bad_records(uid: &str) -> Vec<(&'static str, RawLine)> {
    let time_ms = 1_767_571_200_000;
    let ticket = json!({"id": uid, "status": "open"});
    let of = |value: serde_json::Value| record(uid, value.to_string().as_bytes());
    let without = |member: &str| {
        let mut envelope = envelope("bad", "ticket:updated", time_ms, ticket.clone());
        envelope.as_object_mut().expect("it is one").remove(member);
        of(envelope)
    };
    let mut null = record(uid, b"");
    null.value = None;
    let mut no_uid = of(envelope("bad", "ticket:updated", time_ms, json!({"title": "nobody's"})));
    no_uid.key = None;
    let mut other_key = of(envelope("bad", "ticket:updated", time_ms, ticket.clone()));
    other_key.key = Some(b"another".to_vec());
    let mut empty_key = other_key.clone();
    empty_key.key = Some(Vec::new());
    // Nothing in it may be cut: names are kept.
    let long = json!({"id": uid, "status": {"id": "s", "name": "x".repeat(300_000)}});
    vec![
        ("null_value", null),
        ("not_json", record(uid, b"")),
        ("not_json", record(uid, b"{\"eventId\":")),
        ("not_json", record(uid, b"\xff\xfe\x00")),
        ("not_json", of(json!({"Type": "Notification", "Message": "no JSON either"}))),
        ("not_an_envelope", record(uid, b"[1,2,3]")),
        ("not_an_envelope", without("eventId")),
        ("not_an_envelope", without("payload")),
        ("unknown_event_type", of(envelope("bad", "ticket:exploded", time_ms, ticket.clone()))),
        ("bad_timestamp", without("timestamp")),
        ("no_ticket_uid", no_uid),
        ("key_mismatch", other_key),
        ("key_mismatch", empty_key),
        ("payload_too_large", of(envelope("bad", "ticket:updated", time_ms, long))),
    ]
}

#[test]
fn bad_records_go_to_the_dead_letter_topic_and_good_traffic_goes_on() {
    let settings = Settings { batch_records_max: 5, ..Settings::default() };
    let pipeline = Pipeline::new("bad", &settings);
    let uids = in_every_partition("T");
    let mut bad = Vec::new();
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    for (step, _) in bad_records("").iter().enumerate() {
        for uid in &uids {
            let (code, record) = bad_records(uid).swap_remove(step);
            bad.push((code, record.clone()));
            pipeline.append([moved(uid, &format!("step-{step}")), record]);
        }
    }
    let steps = bad.len() / uids.len();
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("dead_letters"), bad.len() as i64);

    let emitted = pipeline.emitted();
    let mut dead: Vec<&Line> = emitted.iter().filter(|line| line.topic == "ticket.dlq").collect();
    assert_eq!(dead.len(), bad.len());
    for (code, record) in &bad {
        // To the partition that it came from, and in the order of it.
        let at = dead.iter().position(|line| line.partition == record.partition).expect("there are as many");
        let line = dead.remove(at);
        assert_eq!(
            (&line.key, &line.value, line.timestamp_ms),
            (&record.key, &record.value, record.timestamp_ms)
        );
        assert_eq!(line.headers[0], ("x-request-id".to_owned(), Some(b"17".to_vec())), "headers stay");
        let names: Vec<&str> = line.headers[1..].iter().map(|(name, _)| name.as_str()).collect();
        let ours = ["topic", "partition", "offset", "exception", "message"]
            .map(|name| format!("__streams.errors.{name}"));
        assert_eq!(names, ours);
        assert_eq!(line.header("__streams.errors.topic").as_deref(), Some("ticket.raw"));
        assert_eq!(line.header("__streams.errors.partition"), Some(record.partition.to_string()));
        assert_eq!(line.header("__streams.errors.exception").as_deref(), Some(*code));
        assert_ne!(line.header("__streams.errors.message").unwrap_or_default(), "");
    }
    let changes = pipeline.changes();
    for uid in &uids {
        let expected: Vec<String> = (0..steps)
            .map(|step| match step.checked_sub(1) {
                None => "status: open -> step-0".to_owned(),
                Some(before) => format!("status: step-{before} -> step-{step}"),
            })
            .collect();
        assert_eq!(changes[uid], expected);
    }
    pipeline.assert_emitted_as_expected();
}

/// The largest value that the broker takes into the raw topic as it is made, within a few bytes.
const VALUE_BYTES_MAX: usize = 1_048_400;

#[test]
fn a_bad_record_as_large_as_the_broker_takes_is_a_dead_letter_like_any_other() {
    let pipeline = Pipeline::new("bad-large", &Settings::default());
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let mut random = Random::new();
    let mut bad = Vec::new();
    for bytes in [262_143, 262_144, 262_145, VALUE_BYTES_MAX] {
        for uid in &uids {
            bad.extend(large_records(uid, bytes, &mut random));
        }
    }
    pipeline.append(bad.iter().map(|(_, record)| record.clone()));
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("dead_letters"), bad.len() as i64, "{}", log.0);
    let emitted = pipeline.emitted();
    for (code, record) in &bad {
        let is_it = |line: &&Line| line.topic == "ticket.dlq" && line.value == record.value;
        let line = emitted.iter().find(is_it).expect("it is in the dead-letter topic, untouched");
        assert_eq!(line.header("__streams.errors.exception").as_deref(), Some(*code));
    }
    let changes = pipeline.changes();
    for uid in &uids {
        assert_eq!(changes[uid], ["status: open -> closed"]);
    }
    pipeline.assert_emitted_as_expected();
}

/// Values of so many bytes, most of which the reason for the refusal could quote.
fn large_records(uid: &str, bytes: usize, random: &mut Random) -> Vec<(&'static str, RawLine)> {
    let time_ms = 1_767_571_200_000;
    // What does not compress, so that the topic's limit is met.
    let mut noise = |bytes: usize| -> String {
        (0..bytes)
            .map(|_| {
                char::from(
                    b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
                        [random.below(64) as usize],
                )
            })
            .collect()
    };
    let mut filled = |envelope: &dyn Fn(&str) -> serde_json::Value| {
        let without = envelope("").to_string().len();
        record(uid, envelope(&noise(bytes - without)).to_string().as_bytes())
    };
    let ticket = json!({"id": uid, "status": "open"});
    let event_type = filled(&|noise| envelope("bad", &format!("ticket:{noise}"), time_ms, ticket.clone()));
    let timestamp = filled(&|noise| {
        let mut envelope = envelope("bad", "ticket:updated", time_ms, ticket.clone());
        envelope["timestamp"] = noise.into();
        envelope
    });
    let uid_of_another =
        filled(&|noise| envelope("bad", "ticket:updated", time_ms, json!({"id": format!("{uid}{noise}")})));
    vec![
        ("unknown_event_type", event_type),
        ("bad_timestamp", timestamp),
        ("key_mismatch", uid_of_another),
        ("not_json", record(uid, noise(bytes).as_bytes())),
    ]
}
