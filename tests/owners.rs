//! Every partition is read, whenever members of the group have died.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};

use crate::pipeline::{Pipeline, Settings};
use crate::story::{in_every_partition, moved, opened};
use crate::tasks::PARTITIONS;
use crate::wait;

const POLL: Duration = Duration::from_millis(10);

/// Knows whether a round of a rebalance is over.
#[derive(Default)]
struct Member {
    has_synced: AtomicBool,
}

impl ClientContext for Member {}

impl ConsumerContext for Member {
    fn post_rebalance(&self, _consumer: &BaseConsumer<Self>, _rebalance: &Rebalance<'_>) {
        self.has_synced.store(true, Ordering::Relaxed);
    }
}

#[test]
fn members_that_died_between_the_two_rounds_of_a_rebalance_leave_no_partition_unread() {
    let pipeline = Pipeline::new("between-rounds", &Settings::default());
    let uids = in_every_partition("unread");
    pipeline.append(uids.iter().flat_map(|uid| [opened(uid), moved(uid, "closed")]));
    die_between_the_rounds(&pipeline);

    let log = pipeline.run_until_caught_up();
    assert!(!log.lines("partitions have no owner").is_empty(), "the fault did not happen:\n{}", log.0);
    pipeline.assert_emitted_as_expected();
}

/// The first worker owned all. In the first round, which the second brought about, half is taken
/// from it; it dies before it can ask for the round that gives that half to the second.
fn die_between_the_rounds(pipeline: &Pipeline) {
    let first = pipeline.member("a", 0, Member::default());
    wait::until("the first owns all", || {
        // What is told of the broker is no error for who goes on asking.
        drop(first.poll(POLL));
        (first.assignment().unwrap().count() == PARTITIONS as usize).then_some(())
    });
    let second = pipeline.member("a", 1, Member::default());
    wait::until("the first round is over", || {
        assert!(!matches!(second.poll(POLL), Some(Ok(_))), "it owns nothing yet");
        second.context().has_synced.load(Ordering::Relaxed).then_some(())
    });
    drop(first);
    drop(second);
}
