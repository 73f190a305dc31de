//! Notices that a transaction hangs in what is written, logs and outputs alike:
//! readers of committed records stand still at it for ever.
//!
//! A broker may lose a transaction's commit markers, and a coordinator forget it
//! (ARCHITECTURE.md says when). A restart looks at the logs and the offsets that it
//! needs; here the rest is seen, and while all else goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rdkafka::TopicPartitionList;

use super::Every;
use crate::clients::{self, Asker};
use crate::restore::{ends_of, every_partition, how_to_mend};
use crate::stage::Stage;
use crate::topology::Topology;
use crate::worker::Status;

const LOOK: Duration = Duration::from_secs(10);

pub(super) struct Hanging {
    topology: Arc<Topology>,
    /// It is told the true ends.
    observer: Asker,
    /// It is told the last stable offsets.
    reader: Asker,
    written: TopicPartitionList,
    /// From where on partitions are not decided, and since when from there on.
    undecided: HashMap<(String, i32), (i64, Instant)>,
    /// What was committed by this process, as of the last look.
    commits: u64,
    look: Every,
}

impl Hanging {
    /// Connects; every topic that is written to has so many partitions.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub(super) fn connect(topology: &Arc<Topology>, partitions: i32) -> Result<Hanging> {
        let logs = [topology.changelog_topic.as_str(), topology.ids_topic.as_str()];
        let rekeyed = Stage::all(topology).contains(&Stage::Rekey).then_some(topology.rekeyed_topic.as_str());
        let written = every_partition(topology.output_topics().chain(logs).chain(rekeyed), partitions)?;
        Ok(Hanging {
            topology: Arc::clone(topology),
            observer: Asker::new(&clients::observer(topology))?,
            reader: Asker::new(&clients::log_reader(topology))?,
            written,
            undecided: HashMap::new(),
            commits: 0,
            look: Every::new(LOOK),
        })
    }

    /// Looks, every so often.
    ///
    /// # Errors
    /// Where what is written cannot be read for longer than a transaction can live,
    /// though others are committed. Where none is, the coordinator may be what is away.
    pub(super) fn tick(&mut self, statuses: &[Arc<Status>]) -> Result<()> {
        if !self.look.is_due() {
            return Ok(());
        }
        let commits = statuses.iter().map(|status| status.commits).sum();
        let goes_on = commits > std::mem::replace(&mut self.commits, commits);
        // In this order: what lies between was there before, and is not decided.
        let ends = ends_of(self.observer.client(), &self.written);
        let Some((ends, stable)) =
            ends.and_then(|ends| Some((ends, ends_of(self.reader.client(), &self.written)?)))
        else {
            // A broker that does not answer is the workers' to wait for.
            self.undecided.clear();
            return Ok(());
        };
        let now = Instant::now();
        let before = std::mem::take(&mut self.undecided);
        for (place, stable) in stable {
            if ends.get(&place).is_some_and(|end| *end > stable) {
                let same = before.get(&place).filter(|(from, _)| *from == stable);
                let since = same.map_or(now, |(_, since)| *since);
                self.undecided.insert(place, (stable, since));
            }
        }
        let time_max = clients::decided_within(&self.topology);
        let hanging = self.undecided.iter().filter(|(_, (_, since))| now.duration_since(*since) > time_max);
        // The first by name, so that it is told alike each time.
        match hanging.min_by_key(|(place, _)| *place) {
            Some(((topic, partition), (stable, _))) if goes_on => bail!(
                "hanging transaction: {topic} [{partition}] is not readable from offset {stable} on, for longer than a \
                 transaction can live: Kafka has lost the commit markers of one, or its coordinator has forgotten it. {}",
                self.remedy(topic)
            ),
            _ => Ok(()),
        }
    }

    fn remedy(&self, topic: &str) -> String {
        if topic == self.topology.rekeyed_topic {
            return format!(
                "Stop every process of the pipeline, abort what `kafka-transactions.sh find-hanging` lists of it, and start \
                 it again; `ticket-pipeline audit` then names raw records that were not re-keyed: send those to {} again",
                self.topology.source.topic
            );
        }
        format!(
            "{}; then `ticket-pipeline audit` says whether outputs are missing, and `ticket-pipeline replay` emits them again",
            how_to_mend(&self.topology, Stage::Tickets)
        )
    }
}
