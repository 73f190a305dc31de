//! kill -9 at random moments: nothing is lost, nothing doubled, and the state
//! is what it would have been.

use std::time::{Duration, Instant};

use crate::datasets::{DataSet, HISTORIES, NASTY};
use crate::pipeline::{Pipeline, Settings};
use crate::process::Process;
use crate::random::Random;
use crate::story::{in_every_partition, moved, opened};
use crate::wait;

const KILLS: usize = 8;

/// A process that is killed while it starts lives for so long at most.
const START_MS_MAX: u64 = 500;

#[test]
fn killed_again_and_again_on_the_same_disk() {
    killed_again_and_again("killed", &HISTORIES, |_| false);
}

#[test]
fn killed_again_and_again_and_the_disk_is_lost_each_time() {
    killed_again_and_again("disk-lost", &HISTORIES, |_| true);
}

#[test]
fn killed_among_nasty_records_with_the_disk_lost_now_and_then() {
    killed_again_and_again("nasty-killed", &NASTY, |random| random.once_in(2));
}

fn killed_again_and_again(name: &str, set: &DataSet, mut loses_disk: impl FnMut(&mut Random) -> bool) {
    let mut random = Random::new();
    // Small transactions, so that nearly every moment is in the middle of one.
    let settings = Settings { batch_records_max: 12, commit_interval: "5ms", ..Settings::default() };
    let pipeline = Pipeline::new(name, &settings);
    pipeline.feed(set);
    let (uids, end) = (in_every_partition("after"), pipeline.end() as u64);
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let share = end / (KILLS as u64 + 1);
    let mut interrupted = 0;
    for _ in 0..KILLS {
        let before = pipeline.committed();
        let process = pipeline.start("a");
        if random.once_in(4) {
            live_for(Duration::from_millis(random.below(START_MS_MAX)));
        } else {
            pipeline.wait_until_committed(before + 1 + random.below(share) as i64);
        }
        process.kill();
        interrupted += usize::from(pipeline.committed() < pipeline.end());
        if loses_disk(&mut random) {
            pipeline.lose_disk("a");
        }
    }
    // The fault happened: it was killed before it was done, most times with a part of it done.
    assert!(interrupted >= KILLS / 2, "{interrupted} of {KILLS} kills came before the end");

    // What only the state knows.
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.run_until_caught_up();
    pipeline.assert_emitted_as_expected();
    let changes = pipeline.changes();
    for uid in &uids {
        assert_eq!(changes[uid], ["status: open -> closed"]);
    }
}

fn live_for(time: Duration) {
    let end = Instant::now() + time;
    wait::until("a moment has passed", || (Instant::now() >= end).then_some(()));
}

#[test]
fn of_two_processes_one_is_killed_and_the_other_goes_on_until_it_is_back() {
    let settings =
        Settings { workers: 1, batch_records_max: 4, commit_interval: "5ms", ..Settings::default() };
    let pipeline = Pipeline::new("one-of-two", &settings);
    // Records of every partition for each of the three stages: whoever joins late, all have work.
    let [before, meanwhile, after] = [0, 1, 2].map(|third| HISTORIES.third(third));
    pipeline.append(before);
    let survivor = pipeline.start("a");
    let victim = pipeline.start("b");
    wait::until("both take part", || [&survivor, &victim].iter().all(|one| owns_two(one)).then_some(()));
    pipeline.wait_until_caught_up();
    let caught_up = pipeline.end();
    pipeline.append(meanwhile);
    pipeline.wait_until_committed(caught_up + 1);
    victim.kill();
    assert!(pipeline.committed() < pipeline.end(), "the kill came too late");
    pipeline.lose_disk("b");
    let back = pipeline.start("b");
    wait::until("it is back", || owns_two(&back).then_some(()));
    pipeline.append(after);
    pipeline.wait_until_caught_up();
    let (survivor, back) = (survivor.end_well(), back.end_well());
    for log in [&survivor, &back] {
        assert!(log.total("records") > 0, "both took part:\n{}\nand\n{}", survivor.0, back.0);
    }
    pipeline.assert_emitted(&HISTORIES);
}

/// Of four partitions in two processes each ends up with two.
fn owns_two(process: &Process) -> bool {
    process.log().lines("restored").len() >= 2
}
