//! kill -9 at random moments: nothing is lost, nothing doubled, and the state
//! is what it would have been.

use std::time::{Duration, Instant};

use ticket_pipeline::lines::RawLine;

use crate::datasets::{DataSet, HISTORIES, NASTY};
use crate::pipeline::{Pipeline, Settings};
use crate::process::Process;
use crate::random::Random;
use crate::story::{in_every_partition, moved, opened};
use crate::wait;

pub(crate) const KILLS: i64 = 8;

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
    let pipeline = Pipeline::new(name, &smallest_transactions());
    pipeline.feed(set);
    let uids = in_every_partition("after");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let mut kills = Kills::of(&pipeline, KILLS, Pipeline::committed);
    while let Some(wanted) = kills.next(&mut random) {
        let process = pipeline.start("a");
        if random.once_in(4) {
            live_for(Duration::from_millis(random.below(START_MS_MAX)));
        } else {
            pipeline.wait_until_committed(wanted);
        }
        process.kill();
        kills.happened(|| set.raw());
        // One that was killed early has made none.
        if loses_disk(&mut random) && pipeline.state("a").exists() {
            pipeline.lose_disk("a");
        }
    }
    kills.assert_that_most_came_midway();

    // What only the state knows.
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.run_until_caught_up();
    pipeline.assert_emitted_as_expected();
    let changes = pipeline.changes();
    for uid in &uids {
        assert_eq!(changes[uid], ["status: open -> closed"]);
    }
}

/// So that nearly every moment is in the middle of one, and there are more of them than can be
/// committed while somebody asks what is.
pub(crate) fn smallest_transactions() -> Settings {
    Settings { batch_records_max: 2, commit_interval: "5ms", ..Settings::default() }
}

/// When a process is killed again and again: each time with some more done of what is left.
pub(crate) struct Kills<'a> {
    pipeline: &'a Pipeline,
    /// How many records are done.
    done: fn(&Pipeline) -> i64,
    all: i64,
    kills: i64,
    midway: i64,
}

impl<'a> Kills<'a> {
    pub(crate) fn of(pipeline: &'a Pipeline, all: i64, done: fn(&Pipeline) -> i64) -> Kills<'a> {
        Kills { pipeline, done, all, kills: 0, midway: 0 }
    }

    /// How many records are to be done when the next kill comes; `None` after the last.
    pub(crate) fn next(&self, random: &mut Random) -> Option<i64> {
        let done = (self.done)(self.pipeline);
        // An equal share of what is left for each kill to come, and one for the run after them.
        let shares = self.all - self.kills + 1;
        let share = ((self.pipeline.end() - done) / shares).max(1);
        (self.kills < self.all).then(|| done + 1 + random.below(share as u64) as i64)
    }

    /// The process is dead; where it had done all, the next is given `more`.
    pub(crate) fn happened(&mut self, more: impl FnOnce() -> Vec<RawLine>) {
        self.kills += 1;
        if (self.done)(self.pipeline) < self.pipeline.end() {
            self.midway += 1;
        } else {
            self.pipeline.append(more());
        }
    }

    /// Each kill that came too late was preceded by a look that lasted as long as a data set.
    pub(crate) fn assert_that_most_came_midway(&self) {
        let Kills { all, midway, .. } = self;
        assert!(*midway > all / 2, "{midway} of {all} kills came before the end");
    }
}

fn live_for(time: Duration) {
    let end = Instant::now() + time;
    wait::until("a moment has passed", || (Instant::now() >= end).then_some(()));
}

#[test]
fn of_two_processes_one_is_killed_and_the_other_goes_on_until_it_is_back() {
    let pipeline = Pipeline::new("one-of-two", &Settings { workers: 1, ..smallest_transactions() });
    // Records of every partition for each of the stages: whoever joins late, all have work.
    let [before, meanwhile, undone, after] = HISTORIES.parts();
    pipeline.append(before);
    let survivor = pipeline.start("a");
    let victim = pipeline.start("b");
    wait::until("both take part", || [&survivor, &victim].iter().all(|one| owns_two(one)).then_some(()));
    pipeline.wait_until_caught_up();
    let caught_up = pipeline.end();
    pipeline.append(meanwhile);
    pipeline.wait_until_committed(caught_up + 1);
    victim.freeze();
    pipeline.append(undone);
    victim.kill();
    assert!(pipeline.committed() < pipeline.end(), "what waits for the victim is done by nobody else");
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
pub(crate) fn owns_two(process: &Process) -> bool {
    process.log().restored().len() >= 2
}
