//! A store that is behind is brought to where the log says: by the difference,
//! or by all of it where the disk is gone. The window of event ids comes along.

use std::collections::BTreeMap;

use crate::datasets::HISTORIES;
use crate::pipeline::{Pipeline, Settings};
use crate::story::{again, in_every_partition, moved, opened};
use crate::wait;

#[test]
fn a_crash_costs_the_difference_and_a_lost_disk_all() {
    // One worker: a store that is handed on is closed, and so flushed.
    let pipeline = Pipeline::new("difference", &Settings { workers: 1, ..Settings::default() });
    pipeline.rewrite(|text| format!("{text}state:\n  flush_interval: 1h\n"));
    pipeline.feed(&HISTORIES);
    pipeline.run_until_caught_up();
    // On close everything was flushed; what comes now is only in memory when the process dies.
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let process = pipeline.start("a");
    pipeline.wait_until_caught_up();
    process.kill();

    let process = pipeline.start("a");
    wait::until("all are restored", || process.log().has_restored(4).then_some(()));
    let log = process.end_well();
    // An entry and a commit record for each partition, where the histories left thousands.
    let read = log.restored();
    assert_eq!(read, BTreeMap::from([(0, 2), (1, 2), (2, 2), (3, 2)]), "{}", log.0);
    let from = log.numbers("restoring", "changelog_from");
    assert!(from.len() == 4 && from.iter().all(|from| *from > 0), "{from:?}");

    pipeline.lose_disk("a");
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.numbers("restoring", "changelog_from"), [0, 0, 0, 0], "{}", log.0);
    assert!(log.numbers("restored", "records").iter().sum::<i64>() > 500, "{}", log.0);
    let changes = pipeline.changes();
    for uid in &uids {
        assert_eq!(changes[uid], ["status: open -> closed"]);
    }
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_duplicate_is_known_after_a_crash_and_after_the_loss_of_the_disk() {
    let pipeline = Pipeline::new("window", &Settings::default());
    let uids = in_every_partition("T");
    let first: Vec<_> = uids.iter().map(|uid| opened(uid)).collect();
    pipeline.append(first.clone());
    let process = pipeline.start("a");
    pipeline.wait_until_caught_up();
    process.kill();

    pipeline.append(first.iter().map(again));
    let process = pipeline.start("a");
    pipeline.wait_until_caught_up();
    process.kill();

    pipeline.lose_disk("a");
    pipeline.append(first.iter().map(again));
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert_eq!((log.total("records"), log.total("duplicates")), (8, 4), "{}", log.0);
    let emitted = pipeline.emitted();
    assert_eq!(emitted.iter().filter(|line| line.topic == "ticket.created").count(), first.len());
    pipeline.assert_emitted_as_expected();
}

#[test]
fn a_duplicate_is_known_where_its_partition_went_to_another_process() {
    let pipeline = Pipeline::new("window-moved", &Settings { workers: 1, ..Settings::default() });
    let uids = in_every_partition("T");
    let first: Vec<_> = uids.iter().map(|uid| opened(uid)).collect();
    pipeline.append(first.clone());
    let one = pipeline.start("a");
    pipeline.wait_until_caught_up();
    let other = pipeline.start("b");
    wait::until("the other has taken partitions over", || other.log().has_restored(2).then_some(()));
    pipeline.append(first.iter().map(again));
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.wait_until_caught_up();
    let (one, other) = (one.end_well(), other.end_well());
    assert_eq!(other.total("duplicates"), 2, "{}", other.0);
    assert_eq!(one.total("duplicates"), 2, "{}", one.0);
    let changes = pipeline.changes();
    for uid in &uids {
        assert_eq!(changes[uid], ["status: open -> closed"]);
    }
    pipeline.assert_emitted_as_expected();
}
