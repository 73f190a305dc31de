//! What is asked of Kafka for whoever watches: where the partitions end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::consumer::Consumer;

use super::Every;
use super::tail::end_of_records;
use crate::clients::{self, Asker};
use crate::health::Health;
use crate::store::StateDirectory;
use crate::topology::Topology;
use crate::worker::Place;

const LOOK: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks after what no worker knows.
pub(super) struct Observing {
    topology: Arc<Topology>,
    state: Arc<StateDirectory>,
    health: Arc<Health>,
    observer: Asker,
    tails: HashMap<Place, Tail>,
    look: Every,
}

/// A partition's end as of the last look.
struct Tail {
    end: i64,
    /// Where its records end, as soon as that was looked for.
    records: Option<i64>,
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
            observer: Asker::new(&clients::observer(topology))?,
            tails: HashMap::new(),
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
        let topology = Arc::clone(&self.topology);
        for status in self.health.statuses() {
            let topic = status.stage.topic(&topology);
            for task in &status.tasks {
                let Some(position) = task.position else { continue };
                // A broker that does not answer is the workers' to wait for; what was known ages meanwhile.
                let asked = self.observer.client().fetch_watermarks(topic, task.partition, ANSWER_TIMEOUT);
                let Ok((_, end)) = asked else { return };
                let place = status.place(task);
                let end = if position < end { self.end_of_records(place, end, position) } else { end };
                ends.push((place, end, position));
            }
        }
        self.health.note_ends(&ends, Instant::now());
    }

    /// Where the records of a partition end. As long as it grows that is taken to
    /// be its end; in one that stands still it is looked for, once.
    fn end_of_records(&mut self, place: Place, end: i64, position: i64) -> i64 {
        let Some(tail) = self.tails.get(&place).filter(|tail| tail.end == end) else {
            self.tails.insert(place, Tail { end, records: None });
            return end;
        };
        if let Some(records) = tail.records {
            return records;
        }
        let (stage, partition) = place;
        let topic = stage.topic(&self.topology);
        // What is not decided waits like a record. Where Kafka does not answer, the next look may be answered.
        let Ok(found) = end_of_records(&self.topology, topic, partition, Some(end), ANSWER_TIMEOUT) else {
            return end;
        };
        let records = found.unwrap_or(position);
        self.tails.insert(place, Tail { end, records: Some(records) });
        records
    }
}
