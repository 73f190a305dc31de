//! A group that was reset emits again, byte for byte, what came from there on:
//! by Kafka's tool or our own command, with the disk or without, and with the
//! rebuild killed. Nothing is emitted from half a state.

use std::collections::BTreeMap;

use crate::datasets::{DataSet, HISTORIES, NASTY};
use crate::pipeline::{Pipeline, Run, Settings};
use crate::process::Log;
use crate::story::{in_every_partition, in_one_partition, moved, opened, padded};
use crate::wait;

/// However fast the machine is, the broker keeps whoever reads waiting: a rebuild is met under way.
const AT_ONCE: &str = "  consumer:\n";
const SLOWLY: &str = "  consumer:\n    fetch.min.bytes: 100000000\n    fetch.wait.max.ms: 2000\n";

/// All of a data set is emitted, and the group can be reset soon after a run.
fn emitted(name: &str, set: &DataSet) -> Pipeline {
    let pipeline = empty(name);
    pipeline.feed(set);
    pipeline.run_until_caught_up();
    pipeline
}

fn empty(name: &str) -> Pipeline {
    let pipeline =
        Pipeline::new(name, &Settings { workers: 1, batch_records_max: 50, ..Settings::default() });
    pipeline.set_shortest_session();
    pipeline
}

#[test]
fn the_histories_replayed_from_the_beginning_are_the_same_bytes_again() {
    let pipeline = emitted("replay-all", &HISTORIES);
    let dry = pipeline.replay(&["--to-earliest"]);
    assert!(dry.contains("nothing is altered") && dry.contains("same event ids"), "{dry}");
    let log = pipeline.run_until_caught_up();
    assert!(log.lines("REPLAYING").is_empty(), "a dry run resets nothing:\n{}", log.0);

    let plan = pipeline.replay(&["--to-earliest", "--execute"]);
    assert!(plan.contains("the offsets are set"), "{plan}");
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("rebuilt").len(), 4, "{}", log.0);
    assert_eq!(log.total("records"), pipeline.end(), "{}", log.0);
    pipeline.assert_emitted_again_from(&[pipeline.everywhere(|_| 0)]);
}

/// Two thirds of the histories, a window at their end again, and then the last third.
fn a_window(name: &str, reset: fn(&Pipeline, &[&str])) {
    let pipeline = empty(name);
    let [first, second, last] = HISTORIES.parts();
    pipeline.append(first);
    pipeline.append(second);
    pipeline.run_until_caught_up();
    let (beginning, to) = (pipeline.everywhere(|_| 0), pipeline.everywhere(|end| end));
    let from = pipeline.everywhere(|end| end - 200);
    assert!(from.values().all(|from| *from > 0), "the window has a beginning of its own: {from:?}");
    reset(&pipeline, &["--shift-by", "-200"]);
    pipeline.append(last);
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("rebuilt").len(), 4, "{}", log.0);
    let end = pipeline.everywhere(|end| end);
    let run = |from: &BTreeMap<i32, i64>, to: &BTreeMap<i32, i64>| Run {
        low: beginning.clone(),
        from: from.clone(),
        to: to.clone(),
    };
    pipeline.assert_emitted_in(&[run(&beginning, &to), run(&from, &to), run(&to, &end)]);
}

#[test]
fn a_window_in_the_middle_of_the_histories_replayed_by_our_command_is_the_same_bytes_again() {
    a_window("replay-window", |pipeline, by| {
        pipeline.replay(&[by, &["--execute"]].concat());
    });
}

#[test]
fn a_window_in_the_middle_of_the_histories_replayed_by_kafkas_tool_is_the_same_bytes_again() {
    a_window("replay-window-tool", Pipeline::reset_by_tool);
}

#[test]
fn the_histories_replayed_with_their_head_cut_are_the_bytes_of_tickets_first_seen_where_they_now_begin() {
    let pipeline = emitted("replay-cut", &HISTORIES);
    let (beginning, end) = (pipeline.everywhere(|_| 0), pipeline.everywhere(|end| end));
    let again = Run {
        low: pipeline.everywhere(|end| end / 3),
        from: pipeline.everywhere(|end| end / 2),
        to: end.clone(),
    };
    assert!(pipeline.depends_on_the_head(&again), "no ticket of the replay begins in what is cut");
    pipeline.delete_records_before(&again.low);
    for (partition, from) in &again.from {
        let (from, partition) = (from.to_string(), partition.to_string());
        pipeline.replay(&["--to-offset", &from, "--partition", &partition, "--execute"]);
    }
    let log = pipeline.run_until_caught_up();
    let gone: i64 = log.numbers("rebuilt", "tickets_whose_past_is_gone").iter().sum();
    assert!(gone > 0, "{}", log.0);
    pipeline.assert_emitted_in(&[Run { low: beginning.clone(), from: beginning, to: end }, again]);
}

#[test]
fn nasty_records_replayed_from_their_middle_by_kafkas_tool_without_the_disk_are_the_same_bytes_again() {
    let pipeline = emitted("replay-middle", &NASTY);
    let back = pipeline.everywhere(|end| (end - 60).max(0));
    pipeline.reset_by_tool(&["--shift-by", "-60"]);
    pipeline.lose_disk("a");
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("rebuilt").len(), 4, "{}", log.0);
    pipeline.assert_emitted_again_from(&[back]);

    // What comes then derives from the right state, and the log restores it.
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    pipeline.run_until_caught_up();
    pipeline.lose_disk("a");
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert!(log.lines("REPLAYING").is_empty(), "{}", log.0);
    for uid in &uids {
        assert_eq!(pipeline.changes()[uid], ["status: open -> closed"]);
    }
}

#[test]
fn a_rebuild_that_is_killed_begins_again_and_nothing_is_emitted_from_half_a_state() {
    let pipeline = emitted("replay-killed", &HISTORIES);
    let first = pipeline.everywhere(|end| end / 2);
    for (partition, position) in &first {
        pipeline.replay(&[
            "--to-offset",
            &position.to_string(),
            "--partition",
            &partition.to_string(),
            "--execute",
        ]);
    }
    pipeline.rewrite(|text| text.replace(AT_ONCE, SLOWLY));
    let mut unfinished = 0;
    for (text, count) in [("rebuild begun", 1), ("rebuild begun", 1), ("rebuilt", 1), ("rebuild begun", 2)] {
        let mut process = pipeline.start("a");
        wait::until("the rebuild has come so far, or all is done", || {
            let come = process.log().lines(text).len() >= count;
            (come || pipeline.committed() >= pipeline.end() || !process.is_running()).then_some(())
        });
        unfinished += process.log().lines("a replay did not come to its end").len();
        process.kill();
    }
    pipeline.rewrite(|text| text.replace(SLOWLY, AT_ONCE));
    pipeline.lose_disk("a");
    let log = pipeline.run_until_caught_up();
    unfinished += log.lines("a replay did not come to its end").len();
    assert!(unfinished > 0, "no rebuild was cut short");
    pipeline.assert_emitted_again_from(&[first]);
}

#[test]
fn a_rebuild_that_is_killed_before_it_has_written_anything_finds_the_state_whole() {
    let pipeline = emitted("replay-whole", &HISTORIES);
    let back = pipeline.everywhere(|end| end - 5);
    pipeline.replay(&["--shift-by", "-5", "--execute"]);
    pipeline.rewrite(|text| text.replace(AT_ONCE, SLOWLY));
    let again = |log: &Log| {
        let lines = log.lines("a replay did not come to its end");
        assert!(lines.iter().all(|line| line.contains("is_whole=true")), "{}", log.0);
        lines.len()
    };
    for begun_before in [0, 1] {
        let process = pipeline.start("a");
        wait::until("a rebuild has begun, or the one before it again", || {
            let log = process.log();
            (!log.lines("rebuild begun").is_empty() && again(&log) >= begun_before).then_some(())
        });
        process.kill();
    }
    pipeline.rewrite(|text| text.replace(SLOWLY, AT_ONCE));
    pipeline.lose_disk("a");
    let log = pipeline.run_until_caught_up();
    assert!(again(&log) > 0 && log.lines("rebuilt").len() == 4, "{}", log.0);
    pipeline.assert_emitted_again_from(&[back]);
}

#[test]
fn a_rebuild_that_is_killed_when_it_has_written_something_begins_again_from_half_a_state() {
    let pipeline = empty("replay-half");
    let uids: Vec<String> = in_one_partition("T").take(100).collect();
    // More than one transaction of a rebuild takes in.
    pipeline.append(uids.iter().map(|uid| padded(opened(uid), 150_000)));
    let back = pipeline.everywhere(|end| end);
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.run_until_caught_up();
    let to = back[&0].to_string();
    pipeline.replay(&["--to-offset", &to, "--partition", "0", "--execute"]);
    let slowly = SLOWLY.replace("2000", "500");
    pipeline.rewrite(|text| text.replace(AT_ONCE, &slowly));
    let [_, ids] = pipeline.logs();
    let before = pipeline.true_end(ids, 0);
    let half = |log: &Log| {
        log.lines("a replay did not come to its end").iter().any(|line| line.contains("is_whole=false"))
    };
    for is_half in [false, true] {
        let process = pipeline.start("a");
        // A record and a marker of its beginning, and the same of what it writes.
        wait::until("something is written, or the rebuild before it begins again", || {
            (pipeline.true_end(ids, 0) >= before + 4 && half(&process.log()) == is_half).then_some(())
        });
        process.kill();
    }
    pipeline.rewrite(|text| text.replace(&slowly, AT_ONCE));
    pipeline.lose_disk("a");
    let log = pipeline.run_until_caught_up();
    assert!(half(&log) && log.lines("rebuilt").len() == 1, "{}", log.0);
    pipeline.assert_emitted_again_from(&[back]);
}

#[test]
fn where_the_beginning_is_gone_tickets_whose_past_it_was_are_counted_and_the_others_replay() {
    let pipeline = emitted("replay-headless", &NASTY);
    let uids = in_every_partition("T");
    // Kept: last written before the position. Gone: written behind it, and first seen in what is cut.
    let gone = in_every_partition("G");
    pipeline.append(uids.iter().chain(&gone).map(|uid| opened(uid)));
    let low = pipeline.everywhere(|end| end);
    pipeline.append(gone.iter().map(|uid| moved(uid, "waiting")));
    let to = pipeline.everywhere(|end| end);
    pipeline.append(gone.iter().map(|uid| moved(uid, "closed")));
    pipeline.append(gone.iter().map(|uid| moved(uid, "open")));
    pipeline.run_until_caught_up();
    pipeline.delete_records_before(&low);

    let plan = pipeline.replay(&["--to-offset", "0", "--partition", "0"]);
    assert!(plan.contains("is gone"), "{plan}");
    for (partition, position) in &to {
        pipeline.replay(&[
            "--to-offset",
            &position.to_string(),
            "--partition",
            &partition.to_string(),
            "--execute",
        ]);
    }
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.numbers("rebuilt", "tickets_whose_past_is_gone"), [1, 1, 1, 1], "{}", log.0);
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.run_until_caught_up();
    let all_changes = pipeline.changes();
    for uid in &uids {
        // Had its entry not been kept as it was, this would be a first sight.
        assert_eq!(all_changes[uid], ["status: open -> closed"]);
    }
    for uid in &gone {
        let changes = &all_changes[uid];
        let first = ["status: open -> waiting", "status: waiting -> closed", "status: closed -> open"];
        // It begins at what the raw topic still holds: "waiting" is first sight there.
        assert_eq!(*changes, [&first[..], &first[1..]].concat());
    }
}

#[test]
fn a_replay_is_refused_in_plain_words_where_it_cannot_be() {
    let pipeline = Pipeline::new("replay-refused", &Settings::default());
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let never_run = pipeline.replay(&["--to-earliest"]);
    assert!(never_run.contains("there is no state"), "{never_run}");

    let process = pipeline.start("a");
    pipeline.wait_until_caught_up();
    let refusal = pipeline.command(&["replay", "--to-earliest", "--execute"]);
    let words = String::from_utf8_lossy(&refusal.stderr).into_owned();
    assert!(refusal.status.code() == Some(1) && words.contains("is active"), "{words}");
    process.end_well();

    let refusal = pipeline.refused_replay(&["--to-offset", "7"]);
    assert!(refusal.contains("is ahead of"), "{refusal}");
    let refusal = pipeline.refused_replay(&["--to-earliest", "--partition", "9"]);
    assert!(refusal.contains("no partition 9"), "{refusal}");
    let usage = pipeline.command(&["replay"]);
    assert_eq!(usage.status.code(), Some(2));
}
