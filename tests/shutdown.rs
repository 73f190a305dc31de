//! A clean end: the last transaction commits, the stores close, and the next
//! start has nothing to restore.

use std::collections::BTreeMap;

use crate::crash::smallest_transactions;
use crate::datasets::HISTORIES;
use crate::pipeline::{Pipeline, Settings};
use crate::wait;

fn a_clean_end(signal: &str) {
    let pipeline = Pipeline::new("ended", &smallest_transactions());
    let [begun, undone] = HISTORIES.parts();
    pipeline.append(begun);
    let process = pipeline.start("a");
    // Of a partition of which nothing is committed there is nothing on the disk, and all to restore.
    wait::until("something of each partition is committed", || {
        pipeline.committed_positions().values().all(|position| *position > 0).then_some(())
    });
    process.freeze();
    pipeline.append(undone);
    let ended = process.end(signal);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log.0);
    let committed = pipeline.committed();
    assert!(committed < pipeline.end(), "it came too late to interrupt anything");
    // Its own count is that of committed records.
    assert_eq!(ended.log.total("records"), committed);
    pipeline.assert_emitted_as_far_as_committed();

    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("restoring").len(), 0, "{}", log.0);
    let nothing = BTreeMap::from([(0, 0), (1, 0), (2, 0), (3, 0)]);
    assert_eq!(log.restored(), nothing, "{}", log.0);
    pipeline.assert_emitted(&HISTORIES);
}

#[test]
fn sigterm_commits_and_closes() {
    a_clean_end("TERM");
}

#[test]
fn sigint_commits_and_closes() {
    a_clean_end("INT");
}

#[test]
fn what_was_read_is_committed_however_long_the_interval() {
    let pipeline = Pipeline::new("long-interval", &Settings { commit_interval: "5s", ..Settings::default() });
    pipeline.feed(&HISTORIES);
    let process = pipeline.start("a");
    wait::until("all tasks run", || process.log().has_restored(4).then_some(()));
    let log = process.end_well();
    assert_eq!(log.total("records"), pipeline.committed());
    pipeline.assert_emitted_as_far_as_committed();
    pipeline.run_until_caught_up();
    pipeline.assert_emitted(&HISTORIES);
}
