//! The data sets come out as their expected files say, from the real tasks with
//! no broker: in memory, on disk, and through `derive`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::datasets::{self, DataSet, NASTY};
use crate::lines::{Line, assert_same};
use crate::tasks::{Tasks, state_directory, topology};

/// Records in one commit: few, so that every read of state crosses commits.
const COMMIT_RECORDS: usize = 7;

#[test]
fn every_data_set_comes_out_as_expected_from_tasks_in_memory() {
    for set in datasets::all() {
        let mut tasks = Tasks::in_memory(&topology(&set.settings()));
        assert_same(set.name, &set.expected(), &tasks.process_all(&set.raw()));
    }
}

#[test]
fn every_data_set_comes_out_as_expected_from_tasks_on_disk() {
    for set in datasets::all() {
        let topology = topology(&set.settings());
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let state = state_directory(folder.path(), &topology);
        let mut tasks = Tasks::on_disk(&topology, &state);
        let mut input = BTreeMap::new();
        let mut emitted = Vec::new();
        let raw = set.raw();
        for (index, batch) in raw.chunks(COMMIT_RECORDS).enumerate() {
            emitted.extend(tasks.process_all(batch));
            input.extend(batch.iter().map(|raw| (raw.partition, raw.offset + 1)));
            tasks.apply(&input);
            // A clean restart every so often.
            if index % 50 == 49 {
                tasks.close();
                tasks = Tasks::on_disk(&topology, &state);
            }
        }
        assert_same(set.name, &set.expected(), &emitted);
    }
}

#[test]
fn what_is_processed_again_after_an_abort_comes_out_the_same() {
    let topology = topology(&NASTY.settings());
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let state = state_directory(folder.path(), &topology);
    let mut tasks = Tasks::on_disk(&topology, &state);
    let mut input = BTreeMap::new();
    let mut emitted = Vec::new();
    for (index, batch) in NASTY.raw().chunks(COMMIT_RECORDS).enumerate() {
        if index % 20 == 10 {
            let aborted = tasks.process_all(batch);
            // Nothing was applied: what the stores hold is from before the batch.
            tasks.close();
            tasks = Tasks::on_disk(&topology, &state);
            let again = tasks.process_all(batch);
            assert_same("processed again", &aborted, &again);
            emitted.extend(again);
        } else {
            emitted.extend(tasks.process_all(batch));
        }
        input.extend(batch.iter().map(|raw| (raw.partition, raw.offset + 1)));
        tasks.apply(&input);
    }
    assert_same(NASTY.name, &NASTY.expected(), &emitted);
}

#[test]
fn derive_gives_every_data_set_as_expected_with_no_kafka() {
    for set in datasets::all() {
        let output = derive(&set, set.raw_text().as_bytes());
        // Dead letters are output, not a failure.
        assert_eq!(output.status.code(), Some(0), "{}: {}", set.name, said(&output));
        let emitted: Vec<Line> = text(&output.stdout).lines().map(Line::parse).collect();
        assert_same(set.name, &set.expected(), &emitted);
        // And in the order of input, of emission within a record.
        let expected = Tasks::in_memory(&topology(&set.settings())).process_all(&set.raw());
        assert!(emitted == expected, "{}: derive writes in another order than records come", set.name);
    }
}

#[test]
fn derive_takes_ticket_events_as_they_are() {
    let event = |id: &str, kind: &str, status: &str| {
        format!(
            r#"{{"eventId":"{id}","eventType":"{kind}","timestamp":"2026-01-05T00:00:00Z","payload":{{"ticket":{{"id":"T-1","status":"{status}"}}}}}}"#
        )
    };
    let wrapped = serde_json::json!({
        "Type": "Notification",
        "Message": event("2", "ticket:updated", "closed"),
    });
    let input = format!("{}\n{wrapped}\n", event("1", "ticket:created", "open"));
    let output = derive(&NASTY, input.as_bytes());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let emitted: Vec<Line> = text(&output.stdout).lines().map(Line::parse).collect();
    let topics: Vec<&str> = emitted.iter().map(|line| line.topic.as_str()).collect();
    assert_eq!(topics, ["ticket.created", "ticket.updated", "ticket.status.changed"]);
    let source = &emitted[2].json()["metadata"]["source"];
    assert_eq!((&source["partition"], &source["offset"]), (&0.into(), &1.into()), "{source}");
}

#[test]
fn derive_refuses_any_other_line_by_its_number() {
    let good = NASTY.raw_text().lines().next().expect("there are lines").to_owned();
    for bad in [
        "no JSON",
        r#"{"partition":0}"#,
        "[]",
        r#"{"partition":9,"offset":0,"timestamp":1,"key":null,"value":null,"headers":[]}"#,
    ] {
        let output = derive(&NASTY, format!("{good}\n{bad}\n{good}\n").as_bytes());
        assert_eq!(output.status.code(), Some(2), "{bad}: {}", said(&output));
        assert!(said(&output).contains("line 2"), "{bad}: {}", said(&output));
    }
}

fn derive(set: &DataSet, input: &[u8]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("topology.yaml");
    std::fs::write(&file, set.settings()).expect("the folder can be written to");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ticket-pipeline"))
        .arg("derive")
        .arg("--topology")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("derive can be started");
    let mut stdin = child.stdin.take().expect("its input is ours");
    std::thread::scope(|scope| {
        // It writes while it reads; a bad line ends it before it has read all.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("derive ends")
    })
}

fn said(output: &Output) -> String {
    text(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
