//! How a run begins and ends by itself, and what it refuses, in plain words.

use std::process::Output;

use crate::datasets::HISTORIES;
use crate::pipeline::{Pipeline, Settings};
use crate::story::{in_every_partition, moved, opened};
use crate::wait;

/// Longer than a test waits for anything, as a member would that is not known again.
const SESSION_MS: u32 = 600_000;

#[test]
fn caught_up_ends_the_run_also_where_there_is_nothing_to_read() {
    let pipeline = Pipeline::new("empty", &Settings::default());
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("records"), 0);
    pipeline.append([opened("T-1")]);
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("records"), 1);
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.total("records"), 0);
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_restart_within_the_session_has_its_partitions_back_at_once() {
    let pipeline = Pipeline::new("static", &Settings::default());
    pipeline.set_session(SESSION_MS);
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let process = pipeline.start("a");
    pipeline.wait_until_caught_up();
    process.kill();
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));

    let process = pipeline.start("a");
    pipeline.wait_until_caught_up();
    process.end_well();
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_second_process_on_the_same_state_directory_is_refused() {
    let pipeline = Pipeline::new("locked", &Settings::default());
    let mut first = pipeline.start("a");
    wait::until("the first runs", || first.log().has_restored(4).then_some(()));
    let second = pipeline.start("a").wait();
    assert_eq!(second.status.code(), Some(1));
    let said = &second.log.0;
    assert!(said.contains("is in use by process") && said.contains("STATE_DIR"), "{said}");
    assert!(first.is_running(), "the first goes on");
    pipeline.append([opened("T-1")]);
    pipeline.wait_until_caught_up();
    first.end_well();
}

#[test]
fn a_topology_with_mistakes_ends_the_run_before_it_connects() {
    let pipeline = Pipeline::without_topics("mistaken", &Settings::default());
    // Nobody listens there: who connects would wait, and speak of it.
    pipeline.rewrite(|text| {
        let text = text
            .replace("workers: 2", "wrokers: 2")
            .replace("batch_records_max: 5000", "batch_records_max: 0");
        text.replace(crate::broker::address(), "127.0.0.1:1")
    });
    let ended = pipeline.start("a").wait();
    assert_eq!(ended.status.code(), Some(1));
    let said = &ended.log.0;
    let file = pipeline.topology_file().display().to_string();
    for (line, what) in [(8, "did you mean"), (11, "batch_records_max")] {
        let place = format!("{file}:{line}");
        let found = said.lines().any(|said| said.contains(&place) && said.contains(what));
        assert!(found, "{place} with {what:?} in:\n{said}");
    }
    assert!(!said.contains("127.0.0.1:1"), "{said}");
}

#[test]
fn topics_that_would_break_the_contract_are_refused_with_setting_and_remedy() {
    let pipeline = Pipeline::without_topics("refused", &Settings::default());
    let refused = |what: &str| {
        let ended = pipeline.start("a").wait();
        assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.log.0);
        ended.log.0
    };
    let said = refused("no topics");
    assert!(said.contains(&pipeline.topic("ticket.raw")) && said.contains("topics apply"), "{said}");

    apply(&pipeline);
    for (topic, setting, value) in [
        ("ticket.status.changed", "cleanup.policy", "compact"),
        ("ticket.created", "message.timestamp.type", "LogAppendTime"),
        ("ticket.dlq", "max.message.bytes", "1000"),
    ] {
        let topic = pipeline.topic(topic);
        pipeline.alter(&topic, setting, value);
        let said = refused(setting);
        let named =
            said.lines().any(|line| line.contains(&topic) && line.contains(setting) && line.contains(value));
        assert!(named && said.contains("`ticket-pipeline topics apply`"), "{said}");
        apply(&pipeline);
    }
    let topic = pipeline.topic("ticket.late");
    pipeline.add_partitions(&topic, 5);
    let said = refused("partitions");
    assert!(said.contains(&format!("{topic}: partitions is 5, must be 4")), "{said}");
}

#[test]
fn mended_topics_are_taken() {
    let pipeline = Pipeline::new("mended", &Settings::default());
    pipeline.alter(&pipeline.topic("ticket.updated"), "message.timestamp.type", "LogAppendTime");
    apply(&pipeline);
    pipeline.feed(&HISTORIES);
    pipeline.run_until_caught_up();
    pipeline.assert_emitted(&HISTORIES);
}

fn apply(pipeline: &Pipeline) {
    let Output { status, stderr, .. } = pipeline.command(&["topics", "apply"]);
    assert!(status.success(), "topics apply: {}", String::from_utf8_lossy(&stderr));
}
