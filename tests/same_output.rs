//! However many workers, processes and commits: what comes out is what the
//! expected files say, and the same bytes each time.

use crate::crash::{owns_two, smallest_transactions};
use crate::datasets::{self, HISTORIES, NASTY};
use crate::pipeline::{Pipeline, Settings};
use crate::wait;

#[test]
fn the_histories_come_out_as_expected_with_any_number_of_workers() {
    for workers in [1, 2, 4] {
        let pipeline = Pipeline::new("histories", &Settings { workers, ..Settings::default() });
        pipeline.feed(&HISTORIES);
        let log = pipeline.run_until_caught_up();
        assert_eq!(log.numbers("starting", "workers"), [workers as i64]);
        pipeline.assert_emitted(&HISTORIES);
    }
}

#[test]
fn the_nasty_records_come_out_as_expected_at_any_commit_interval() {
    for commit_interval in ["5ms", "100ms", "2s"] {
        let pipeline = Pipeline::new("nasty", &Settings { commit_interval, ..Settings::default() });
        pipeline.feed(&NASTY);
        pipeline.run_until_caught_up();
        pipeline.assert_emitted(&NASTY);
    }
}

#[test]
fn every_variant_comes_out_as_expected() {
    for set in datasets::VARIANTS {
        let pipeline = Pipeline::new("variant", &Settings::of(&set));
        pipeline.feed(&set);
        pipeline.run_until_caught_up();
        pipeline.assert_emitted(&set);
    }
}

#[test]
fn a_process_that_joins_in_the_middle_takes_its_share_and_changes_nothing() {
    let pipeline = Pipeline::new("two-processes", &Settings { workers: 1, ..smallest_transactions() });
    let [before, after] = HISTORIES.parts();
    pipeline.append(before);
    let first = pipeline.start("a");
    pipeline.wait_until_committed(1);
    let second = pipeline.start("b");
    wait::until("the second has its share", || owns_two(&second).then_some(()));
    pipeline.append(after);
    pipeline.wait_until_caught_up();
    let (first, second) = (first.end_well(), second.end_well());
    assert!(first.total("records") > 0 && second.total("records") > 0, "both took part:\n{}", second.0);
    assert_eq!(first.total("records") + second.total("records"), pipeline.end());
    assert!(!first.lines("revoked").is_empty(), "the first gave partitions away:\n{}", first.0);
    pipeline.assert_emitted(&HISTORIES);
}

#[test]
fn two_groups_make_the_same_bytes_of_the_same_records() {
    let one = Pipeline::new(
        "one",
        &Settings { workers: 1, commit_interval: "2s", batch_records_max: 1_000, ..Settings::default() },
    );
    one.feed(&NASTY);
    let other = one.beside(
        "other",
        &Settings { workers: 4, commit_interval: "5ms", batch_records_max: 3, ..Settings::default() },
    );
    one.run_until_caught_up();
    other.run_until_caught_up();
    one.assert_emitted(&NASTY);
    let sorted = |pipeline: &Pipeline| {
        let mut emitted = pipeline.emitted();
        emitted.sort();
        emitted
    };
    assert!(sorted(&one) == sorted(&other), "the other group emitted other bytes");
    other.assert_emitted(&NASTY);
}
