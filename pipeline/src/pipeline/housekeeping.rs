//! What is done rarely and for all workers: cutting the ids log behind the
//! window, and noticing that the raw topic has changed under them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Runtime;

use super::Every;
use crate::clients::{self, Asker};
use crate::topology::Topology;
use crate::worker::Status;

const CUT: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Kafka's own default.
const DELETE_RETENTION_MS: i64 = 86_400_000;

pub(super) struct Housekeeping {
    topology: Arc<Topology>,
    partitions: i32,
    observer: Asker,
    runtime: Runtime,
    /// Where each partition of the ids log was cut.
    cut_at: HashMap<i32, i64>,
    cut: Every,
    look: Every,
}

impl Housekeeping {
    /// Connects.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub(super) fn connect(topology: &Arc<Topology>, partitions: i32) -> Result<Housekeeping> {
        Ok(Housekeeping {
            topology: Arc::clone(topology),
            partitions,
            observer: Asker::new(&clients::observer(topology))?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start a runtime")?,
            cut_at: HashMap::new(),
            cut: Every::new(CUT),
            look: Every::new(LOOK),
        })
    }

    /// How long the changelog keeps tombstones, in milliseconds.
    ///
    /// # Errors
    /// Where the broker does not say.
    pub(super) fn delete_retention_ms(&self) -> Result<i64> {
        let topic = &self.topology.changelog_topic;
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let admin = clients::admin(&self.topology.kafka)?;
        let resources = self
            .runtime
            .block_on(admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options))
            .with_context(|| format!("ask for the settings of {topic}"))?;
        let value = resources
            .iter()
            .flatten()
            .flat_map(|resource| &resource.entries)
            .find(|entry| entry.name == "delete.retention.ms")
            .and_then(|entry| entry.value.as_deref()?.parse().ok());
        Ok(value.unwrap_or(DELETE_RETENTION_MS))
    }

    /// Does what is due.
    ///
    /// # Errors
    /// Where the raw topic is not what the workers were started for.
    pub(super) fn tick(&mut self, statuses: &[Arc<Status>]) -> Result<()> {
        if self.cut.is_due() {
            // Space is not worth stopping for: the next time may succeed.
            if let Err(error) = self.cut_ids_log(statuses) {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the ids log could not be cut behind the window"
                );
            }
        }
        if self.look.is_due() {
            self.look_at_raw_topic()?;
        }
        Ok(())
    }

    fn cut_ids_log(&mut self, statuses: &[Arc<Status>]) -> Result<()> {
        let due: Vec<(i32, i64)> = statuses
            .iter()
            .flat_map(|status| &status.tasks)
            .filter_map(|task| Some((task.partition, task.ids_forgotten_before?)))
            .filter(|(partition, offset)| self.cut_at.get(partition).is_none_or(|cut_at| cut_at < offset))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let topic = &self.topology.ids_topic;
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in &due {
            offsets.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let admin = clients::admin(&self.topology.kafka)?;
        let outcome = self
            .runtime
            .block_on(admin.delete_records(&offsets, &options))
            .with_context(|| format!("delete records of {topic}"))?;
        for partition in outcome.elements() {
            partition
                .error()
                .with_context(|| format!("delete records of {topic} [{}]", partition.partition()))?;
        }
        tracing::debug!(?due, "cut the ids log behind the window");
        self.cut_at.extend(due);
        Ok(())
    }

    fn look_at_raw_topic(&self) -> Result<()> {
        let topic = &self.topology.source.topic;
        // A broker that does not answer is the workers' to wait for.
        let Ok(metadata) = self.observer.client().fetch_metadata(Some(topic), ANSWER_TIMEOUT) else {
            return Ok(());
        };
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(()) };
        let partitions = found.partitions().len();
        if partitions == 0 {
            if found.error() == Some(rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
            {
                bail!("{topic} does not exist any more: `ticket-pipeline topics apply` makes the topics");
            }
            return Ok(());
        }
        ensure!(
            i32::try_from(partitions).ok() == Some(self.partitions),
            "{topic} has {partitions} partitions and had {} when this run began: tickets have moved between partitions, \
             and their state has not. Begin anew with a new group and `ticket-pipeline topics apply`",
            self.partitions
        );
        Ok(())
    }
}
