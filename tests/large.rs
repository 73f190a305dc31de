//! One record may make gigabytes, for each of its derived events repeats the
//! ticket: what is emitted is the same in whatever parts, and memory is bounded.

use serde_json::{Map, Value, json};
use ticket_pipeline::lines::{self, RawLine};
use ticket_pipeline::record::Outbox;
use ticket_pipeline::store::Store;
use ticket_pipeline::task::{Fate, Outcome, Task};

use crate::pipeline::{Pipeline, Settings};
use crate::story::{envelope, in_one_partition, record};
use crate::tasks::{PARTITIONS, topology};

/// An update that changes so many custom fields, each with a value of so many bytes.
fn update(uid: &str, fields: usize, value_bytes: usize) -> RawLine {
    let ticket = |letter: char| {
        let value = letter.to_string().repeat(value_bytes);
        let of = |number| (format!("field-{number:05}"), Value::from(value.as_str()));
        let fields: Map<String, Value> = (0..fields).map(of).collect();
        json!({"id": uid, "customFields": fields})
    };
    let mut event = envelope(&format!("{uid} all"), "ticket:updated", 1_767_571_200_000, ticket('b'));
    event["payload"]["previousTicket"] = ticket('a');
    record(uid, event.to_string().as_bytes())
}

/// What a record emits, in parts of so many bytes; how many were handed over before the last.
fn emitted(raw: &RawLine, part_bytes_max: usize) -> (Outcome, Vec<String>, usize) {
    let topology = topology("");
    let mut task = Task::new(topology.clone(), PARTITIONS, Store::in_memory(), i64::MIN);
    let line = |record: ticket_pipeline::record::OutgoingRecord<'_>| {
        lines::outgoing_line(record.destination.topic(&topology), &record)
    };
    let (mut all, mut parts, mut largest) = (Vec::new(), 0, 0);
    let mut out = Outbox::default();
    let mut part = |out: &Outbox| {
        parts += 1;
        largest = out.size_bytes().max(largest);
        all.extend(out.records().map(line));
    };
    let outcome = raw
        .with_record(|record| task.process_in_parts(record, &mut out, part_bytes_max, &mut part))
        .expect("there is no disk to be read");
    // One record more than the part may hold is the most.
    assert!(largest < part_bytes_max.saturating_add(300_000), "{largest}");
    all.extend(out.records().map(line));
    (outcome, all, parts)
}

#[test]
fn a_record_emits_the_same_in_whatever_parts() {
    let raw = update("T-1", 40, 500);
    let (outcome, whole, parts) = emitted(&raw, usize::MAX);
    assert_eq!((outcome.derived, whole.len(), parts), (40, 41, 0));
    for part_bytes_max in [1, 50_000, 200_000, 10_000_000] {
        let (in_parts, lines, parts) = emitted(&raw, part_bytes_max);
        assert_eq!((in_parts, &lines), (outcome, &whole));
        assert_eq!(parts > 0, part_bytes_max < 1_000_000, "{parts} parts of {part_bytes_max}");
    }
}

#[test]
fn of_a_record_whose_last_event_cannot_be_made_to_fit_no_part_is_handed_over() {
    // The names and the keys of a ticket are kept, so nothing that is large can be cut.
    let mut raw = update("T-1", 30, 20);
    let mut event: Value = serde_json::from_slice(raw.value.as_deref().unwrap()).unwrap();
    for side in ["ticket", "previousTicket"] {
        event["payload"][side]["requesterName"] = "n".repeat(128_300).into();
    }
    // The last in the order of the table.
    event["payload"]["previousTicket"]["team"] = json!({"id": "one"});
    event["payload"]["ticket"]["team"] = json!({"id": "two", "name": "t".repeat(2_000)});
    raw.value = Some(event.to_string().into_bytes());
    let (outcome, lines, parts) = emitted(&raw, 300_000);
    assert!(matches!(outcome.fate, Fate::DeadLetter(_)), "{outcome:?}");
    assert_eq!((lines.len(), parts), (1, 0));
}

/// One worker: no other that joins the group ends a transaction, which would count.
fn alone() -> Settings {
    Settings { workers: 1, ..Settings::default() }
}

#[test]
fn a_record_that_makes_hundreds_of_megabytes_stays_within_the_memory_that_there_is() {
    const FIELDS: usize = 1_500;
    let pipeline = Pipeline::new("gigabytes", &alone());
    pipeline.append([update("T-1", FIELDS, 50)]);
    let process = pipeline.start("a");
    pipeline.wait_until_caught_up();
    let peak_mb = process.peak_memory_mb();
    let log = process.end_well();
    assert_eq!(log.total("events"), 1 + FIELDS as i64, "{}", log.0);
    let changed = pipeline.topic("ticket.custom-field-value.changed");
    let ends: i64 = (0..PARTITIONS).map(|partition| pipeline.true_end(&changed, partition)).sum();
    // And the marker of the one transaction.
    assert_eq!(ends, FIELDS as i64 + 1);
    println!("{FIELDS} events of {} bytes each: {peak_mb} MB at most", 2 * FIELDS * 70);
    assert!(peak_mb < 256, "{peak_mb} MB; the limit says 256");
}

#[test]
fn a_batch_that_makes_gigabytes_is_committed_in_several_transactions() {
    const FIELDS: usize = 800;
    let pipeline = Pipeline::new("batches", &alone());
    pipeline.append(in_one_partition("T").take(6).map(|uid| update(&uid, FIELDS, 50)));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("events"), 6 * (1 + FIELDS as i64), "{}", log.0);
    let changed = pipeline.topic("ticket.custom-field-value.changed");
    // Each record makes more than a transaction takes in, and each transaction ends with a marker.
    assert_eq!(pipeline.true_end(&changed, 0), 6 * FIELDS as i64 + 6);
}
