//! What is asked of Kafka for whoever watches: where the partitions end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::Every;
use crate::clients::{self, Logs};
use crate::health::Health;
use crate::store::StateDirectory;
use crate::topology::Topology;

const LOOK: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks after what no worker knows.
pub(super) struct Observing {
    topology: Arc<Topology>,
    state: Arc<StateDirectory>,
    health: Arc<Health>,
    observer: BaseConsumer<Logs>,
    look: Every,
}

impl Observing {
    /// Connects.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub(super) fn connect(
        topology: &Arc<Topology>,
        state: &Arc<StateDirectory>,
        health: &Arc<Health>,
    ) -> Result<Observing> {
        Ok(Observing {
            topology: Arc::clone(topology),
            state: Arc::clone(state),
            health: Arc::clone(health),
            observer: clients::observer(topology).create_with_context(Logs).context("create a client")?,
            look: Every::new(LOOK),
        })
    }

    /// Looks, every so often, at the partitions that run here.
    pub(super) fn tick(&mut self) {
        if !self.look.is_due() {
            return;
        }
        self.health.note_memory(self.state.memory());
        let mut ends = Vec::new();
        for status in self.health.statuses() {
            let topic = status.stage.topic(&self.topology);
            // Of what re-keying has written, the last is the marker of a transaction, and no record.
            let is_rekeyed = *topic == self.topology.rekeyed_topic;
            for task in &status.tasks {
                let Some(position) = task.position else { continue };
                // A broker that does not answer is the workers' to wait for; what was known ages meanwhile.
                let Ok((_, end)) = self.observer.fetch_watermarks(topic, task.partition, ANSWER_TIMEOUT)
                else {
                    return;
                };
                let end = (end - i64::from(is_rekeyed)).max(0);
                ends.push((status.place(task), end, position));
            }
        }
        self.health.note_ends(&ends, Instant::now());
    }
}
