//! Notices that a transaction hangs in what is written: readers of committed
//! records stand still at it for ever, and nobody else would say so.
//!
//! A broker may lose a transaction's commit markers, and a coordinator forget it
//! (ARCHITECTURE.md says when). What is read at a restart is looked at there; the
//! outputs are read by others only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::Every;
use crate::clients::{self, Logs};
use crate::restore::{Setup, begin_behind_the_logs};
use crate::stage::Stage;
use crate::worker::{Status, WorkerState};

const LOOK: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A topic and a partition of it.
type Place = (String, i32);

pub(super) struct Hanging {
    setup: Arc<Setup>,
    /// It is told the last stable offsets.
    reader: BaseConsumer<Logs>,
    /// It is told the true ends.
    observer: BaseConsumer<Logs>,
    written: TopicPartitionList,
    /// Where partitions were not decided up to their ends, and since when from the same offset on.
    undecided: HashMap<Place, (i64, Instant)>,
    look: Every,
}

impl Hanging {
    /// Connects.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub(super) fn connect(setup: &Arc<Setup>) -> Result<Hanging> {
        let topology = &setup.topology;
        let topics: Vec<&str> = match setup.stage {
            Stage::Rekey => vec![&topology.rekeyed_topic],
            Stage::Tickets => {
                let logs = [topology.changelog_topic.as_str(), topology.ids_topic.as_str()];
                topology.output_topics().chain(logs).collect()
            }
        };
        let mut written = TopicPartitionList::new();
        for topic in topics {
            for partition in 0..setup.partitions {
                written.add_partition_offset(topic, partition, Offset::End)?;
            }
        }
        let connect =
            |config: rdkafka::ClientConfig| config.create_with_context(Logs).context("create a client");
        Ok(Hanging {
            setup: Arc::clone(setup),
            reader: connect(clients::log_reader(topology))?,
            observer: connect(clients::observer(topology))?,
            written,
            undecided: HashMap::new(),
            look: Every::new(LOOK),
        })
    }

    /// Looks, every so often.
    ///
    /// # Errors
    /// Where what is written cannot be read, for longer than a transaction can live.
    pub(super) fn tick(&mut self, statuses: &[Arc<Status>]) -> Result<()> {
        if !self.look.is_due() {
            return Ok(());
        }
        // Where workers wait for the coordinator, it may be what is away; it then decides late.
        let have_coordinator = statuses.iter().all(|status| status.state != WorkerState::Connecting);
        // A broker that does not answer is the workers' to wait for. Asked for in this order, an end that
        // lies behind was there with the transaction that is not decided.
        let stable = have_coordinator.then(|| self.ends(&self.reader)).flatten();
        let Some((stable, ends)) = stable.and_then(|stable| Some((stable, self.ends(&self.observer)?)))
        else {
            self.undecided.clear();
            return Ok(());
        };
        let now = Instant::now();
        let undecided = stable.into_iter().filter(|(place, stable)| ends.get(place) > Some(stable));
        let before = std::mem::take(&mut self.undecided);
        self.undecided = undecided
            .map(|(place, stable)| {
                let same = before.get(&place).filter(|(from, _)| *from == stable);
                let since = same.map_or(now, |(_, since)| *since);
                (place, (stable, since))
            })
            .collect();
        let time_max = clients::decided_within(&self.setup.topology);
        let hanging = self.undecided.iter().filter(|(_, (_, since))| now.duration_since(*since) > time_max);
        // The first by name, so that it is told alike each time.
        let Some(((topic, partition), (stable, _))) = hanging.min_by_key(|(place, _)| *place) else {
            return Ok(());
        };
        bail!(
            "hanging transaction: {topic} [{partition}] is not readable from offset {stable} on, for longer than a \
             transaction can live: Kafka has lost the commit markers of one, or its coordinator has forgotten it. \
             Stop every process of the pipeline, abort what `kafka-transactions.sh find-hanging` lists of \
             __consumer_offsets and of the pipeline's topics, {}; then `ticket-pipeline audit` says whether outputs \
             are missing, and `ticket-pipeline replay` emits them again",
            begin_behind_the_logs(&self.setup),
        )
    }

    /// Where each partition ends for a client, whose isolation level says up to where it is told; `None`
    /// where Kafka does not answer in time.
    fn ends(&self, client: &BaseConsumer<Logs>) -> Option<HashMap<Place, i64>> {
        // A time of -1 asks for the end (Kafka's `ListOffsetsRequest.json`), of all partitions at once.
        let answer = client.offsets_for_times(self.written.clone(), ANSWER_TIMEOUT).ok()?;
        let end = |found: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match found.offset() {
            Offset::Offset(end) if found.error().is_ok() => {
                Some(((found.topic().to_owned(), found.partition()), end))
            }
            _ => None,
        };
        Some(answer.elements().iter().filter_map(end).collect())
    }
}
