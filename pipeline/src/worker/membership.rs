//! Whether a worker's consumer has its place in the group.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::assignment::Assignment;
use super::status::{Status, WorkerState};
use crate::transaction::has_joined;

/// A member that was given nothing is not always told so: past this it counts as told.
const JOIN_TIME: Duration = Duration::from_secs(3);

/// What this life's consumer knows of its group.
#[derive(Debug, Default)]
pub(super) struct Membership {
    rebalances: u64,
    joined_at: Option<Instant>,
}

impl Membership {
    /// Follows what the group has told; whether that changes the status.
    pub(super) fn look(&mut self, consumer: &BaseConsumer<Assignment>, status: &mut Status) -> bool {
        let rebalances = consumer.context().rebalances();
        let news = rebalances - self.rebalances;
        self.rebalances = rebalances;
        status.rebalances += news;
        let mut changed = news > 0;
        if status.state == WorkerState::Joining {
            if news == 0 && self.joined_at.is_none() && has_joined(consumer) {
                self.joined_at = Some(Instant::now());
            }
            if news > 0 || self.joined_at.is_some_and(|at| at.elapsed() > JOIN_TIME) {
                status.state = WorkerState::Working;
                changed = true;
            }
        }
        changed
    }
}
