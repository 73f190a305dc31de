//! Knows when everything that was in the raw topic at the start is committed,
//! by this process or by others of the group; where it is re-keyed first, also
//! what has become of it in the internal topic.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::Every;
use super::tail::end_of_records;
use crate::clients::{self, Asker, Logs};
use crate::stage::Stage;
use crate::topics;
use crate::topology::Topology;

const LOOK: Duration = Duration::from_millis(200);
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct CaughtUp {
    topology: Arc<Topology>,
    partitions: i32,
    stages: &'static [Stage],
    /// The first of the stages that are left.
    waiting: Option<Waiting>,
    look: Every,
}

/// A stage that is behind.
struct Waiting {
    stage: Stage,
    observer: Asker,
    /// Where its topic ended: open transactions there must be decided first.
    undecided: Vec<(i32, i64)>,
    /// Partitions that are still behind, with the position that they must reach.
    targets: Vec<(i32, i64)>,
}

impl CaughtUp {
    /// Notes where the raw topic ends now.
    ///
    /// # Errors
    /// Where that cannot be known.
    pub(super) fn begin(topology: &Arc<Topology>, partitions: i32) -> Result<CaughtUp> {
        let mut caught_up = CaughtUp {
            topology: Arc::clone(topology),
            partitions,
            stages: Stage::all(topology),
            waiting: None,
            look: Every::new(LOOK),
        };
        caught_up.begin_stage()?;
        Ok(caught_up)
    }

    /// The next stage's topic is to be read up to where it ends now.
    fn begin_stage(&mut self) -> Result<()> {
        self.waiting = None;
        let Some((stage, rest)) = self.stages.split_first() else { return Ok(()) };
        let (stage, topology) = (*stage, &self.topology);
        let observer = Asker::new(&clients::observer_of(topology, stage))?;
        let topic = stage.topic(topology);
        let mut waiting = Waiting { stage, observer, undecided: Vec::new(), targets: Vec::new() };
        for partition in 0..self.partitions {
            if topic == topology.source.topic {
                // Others may have transactions open in it: what is not committed there is not there.
                waiting.targets.extend(Some(partition).zip(end_of_records(
                    topology,
                    topic,
                    partition,
                    None,
                    READ_TIMEOUT,
                )?));
            } else {
                let (_, end) = topics::bounds(waiting.observer.client(), topic, partition)?;
                waiting.undecided.push((partition, end));
            }
        }
        tracing::info!(topic, targets = ?waiting.targets, "running until caught up");
        self.waiting = Some(waiting);
        self.stages = rest;
        Ok(())
    }

    /// Looks, every so often; `true` when nothing is behind any more.
    pub(super) fn tick(&mut self) -> bool {
        if !self.look.is_due() {
            return false;
        }
        // Where Kafka does not answer, the workers say so; the next look may succeed.
        if self.waiting.as_mut().is_none_or(|waiting| waiting.look(&self.topology).unwrap_or(false)) {
            return self.begin_stage().is_ok() && self.waiting.is_none();
        }
        false
    }
}

impl Waiting {
    /// `true` when its stage is not behind any more.
    fn look(&mut self, topology: &Topology) -> Result<bool> {
        let topic = self.stage.topic(topology);
        if !self.undecided.is_empty() {
            let reader: BaseConsumer<Logs> =
                clients::log_reader(topology).create_with_context(Logs).context("create a client")?;
            for (partition, end) in &self.undecided {
                if topics::bounds(&reader, topic, *partition)?.1 < *end {
                    return Ok(false);
                }
            }
            let mut targets = Vec::new();
            for (partition, end) in &self.undecided {
                let target = end_of_records(topology, topic, *partition, Some(*end), READ_TIMEOUT)?;
                targets.extend(Some(*partition).zip(target));
            }
            (self.targets, self.undecided) = (targets, Vec::new());
        }
        let mut list = TopicPartitionList::new();
        for (partition, _) in &self.targets {
            list.add_partition(topic, *partition);
        }
        if list.count() == 0 {
            return Ok(true);
        }
        let committed = self.observer.client().committed_offsets(list, QUERY_TIMEOUT)?;
        self.targets.retain(|(partition, target)| {
            let found = committed.find_partition(topic, *partition).map(|found| found.offset());
            !matches!(found, Some(Offset::Offset(position)) if position >= *target)
        });
        Ok(self.targets.is_empty())
    }
}
