//! A cluster's topics as they are, and how they are altered.
//!
//! It does not know what the topics should be like. Every wait has a bound.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, OwnedResourceSpecifier,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::{Builder, Runtime};

use super::compare::{Found, FoundSetting};
use super::native::{self, Seen};
use super::rights::{self, Needed};
use super::wanted::Wanted;
use crate::clients;
use crate::topology::Kafka;

/// How long a broker may take to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker may take to make or alter topics.
const ALTERATION_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before a question is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A connection for questions about topics, and for altering them.
pub(super) struct Cluster {
    kafka: Kafka,
    client: AdminClient<DefaultClientContext>,
    runtime: Runtime,
}

impl Cluster {
    pub(super) fn connect(kafka: &Kafka) -> Result<Cluster> {
        let client = clients::admin(kafka)?;
        // librdkafka has threads of its own; this one only waits for their answers.
        let runtime =
            Builder::new_current_thread().build().context("start a runtime for the admin client")?;
        Ok(Cluster { kafka: kafka.clone(), client, runtime })
    }

    /// What of that the user must be allowed to do and is not, in words.
    pub(super) fn lacking(&self, wanted: &[Wanted], needed: Needed) -> KafkaResult<Option<String>> {
        Ok(rights::lacking(wanted, &self.see(wanted)?, needed))
    }

    fn see(&self, wanted: &[Wanted]) -> KafkaResult<BTreeMap<String, Seen>> {
        let names: Vec<&str> = wanted.iter().map(|wanted| wanted.name.as_str()).collect();
        native::describe(self.client.inner(), &names, ANSWER_TIMEOUT)
    }

    /// Those topics that exist.
    ///
    /// # Errors
    /// Where the user is not allowed what is needed, or no broker answers.
    pub(super) fn find(&self, wanted: &[Wanted], needed: Needed) -> Result<BTreeMap<String, Found>> {
        let seen = self.see(wanted).map_err(|error| no_answer(&self.kafka, &error))?;
        if let Some(lacking) = rights::lacking(wanted, &seen, needed) {
            bail!(lacking);
        }
        let partitions: BTreeMap<&str, i32> = seen
            .iter()
            .filter_map(|(name, seen)| match seen {
                // A topic that was made this moment may not have its partitions yet.
                Seen::There { partitions, .. } if *partitions > 0 => Some((name.as_str(), *partitions)),
                _ => None,
            })
            .collect();
        let there: Vec<ResourceSpecifier<'_>> =
            partitions.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
        if there.is_empty() {
            return Ok(BTreeMap::new());
        }
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let described = self
            .runtime
            .block_on(self.client.describe_configs(&there, &options))
            .map_err(|error| no_answer(&self.kafka, &error))?;
        let mut all = BTreeMap::new();
        for resource in described {
            let resource = resource.map_err(|code| anyhow!("describe a topic's settings: {code}"))?;
            let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
            // The binding keeps a single topic's error to itself: no settings are all that is seen of it.
            ensure!(
                !resource.entries.is_empty(),
                "describe the settings of topic {name}: the broker shows none; this user may lack \
                 DescribeConfigs on it, or it is being deleted"
            );
            let settings = resource
                .entries
                .into_iter()
                .map(|entry| {
                    let overridden = entry.source == ConfigSource::DynamicTopic;
                    (entry.name, FoundSetting { value: entry.value.unwrap_or_default(), overridden })
                })
                .collect();
            let count = partitions.get(name.as_str()).copied().unwrap_or_default();
            all.insert(name, Found { partitions: count, settings });
        }
        Ok(all)
    }

    /// Makes topics. One that somebody else makes at the same moment is no error.
    pub(super) fn create(&self, topics: &[&Wanted], replication_factor: i32) -> Result<()> {
        let values: Vec<Vec<(&str, String)>> = topics
            .iter()
            .map(|topic| topic.settings.iter().map(|setting| (setting.name, setting.must.value())).collect())
            .collect();
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .zip(&values)
            .map(|(topic, values)| {
                let replication = TopicReplication::Fixed(replication_factor);
                let new = NewTopic::new(&topic.name, topic.partitions, replication);
                values.iter().fold(new, |new, (name, value)| new.set(name, value))
            })
            .collect();
        let options = AdminOptions::new()
            .request_timeout(Some(ALTERATION_TIMEOUT))
            .operation_timeout(Some(ANSWER_TIMEOUT));
        let results = self
            .runtime
            .block_on(self.client.create_topics(&new, &options))
            .map_err(|error| no_answer(&self.kafka, &error))?;
        let refused: Vec<String> = results
            .into_iter()
            .filter_map(std::result::Result::err)
            .filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists)
            .map(|(name, code)| match code {
                RDKafkaErrorCode::TopicAuthorizationFailed => {
                    format!("{name}: {code}: the user needs Create on that topic")
                }
                _ => format!("{name}: {code}"),
            })
            .collect();
        ensure!(refused.is_empty(), "create topics:\n  {}", refused.join("\n  "));
        Ok(())
    }

    /// Alters settings of one topic.
    ///
    /// librdkafka's call replaces the topic's settings as a whole, so that all
    /// that were set for it before go along.
    pub(super) fn alter(&self, topic: &str, found: &Found, changes: &[(&str, &str)]) -> Result<()> {
        let mut config = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (name, setting) in found.settings.iter().filter(|(_, setting)| setting.overridden) {
            config = config.set(name, &setting.value);
        }
        for (name, value) in changes {
            config = config.set(name, value);
        }
        let options = AdminOptions::new().request_timeout(Some(ALTERATION_TIMEOUT));
        let results = self
            .runtime
            .block_on(self.client.alter_configs([&config], &options))
            .map_err(|error| no_answer(&self.kafka, &error))?;
        for result in results {
            if let Err((_, code)) = result {
                bail!("alter the settings of topic {topic}: {code}");
            }
        }
        Ok(())
    }

    /// The least Kafka timestamp among the first records of the topic's
    /// partitions, in milliseconds; `None` where it holds no record.
    pub(super) fn oldest_timestamp_ms(&self, topic: &str, partitions: i32) -> Result<Option<i64>> {
        let reader: BaseConsumer = clients::reader(&self.kafka)?;
        let mut waiting = Vec::new();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            let (low, high) = bounds(&reader, topic, partition)?;
            if low < high {
                assignment.add_partition_offset(topic, partition, Offset::Offset(low))?;
                waiting.push(partition);
            }
        }
        reader.assign(&assignment).with_context(|| format!("read {topic}"))?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut oldest = None;
        while !waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(record) = reader.poll(left.min(Duration::from_millis(500))) else {
                if left.is_zero() || oldest.is_some() {
                    break;
                }
                continue;
            };
            let record = match record {
                // No group is joined, so there is none to be allowed.
                Err(error)
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) =>
                {
                    continue;
                }
                // Nothing but markers of transactions is left in it: it has no oldest record.
                Err(KafkaError::PartitionEOF(partition)) => {
                    waiting.retain(|waiting| *waiting != partition);
                    continue;
                }
                record => record.with_context(|| format!("read {topic}"))?,
            };
            waiting.retain(|partition| *partition != record.partition());
            let timestamp_ms = record.timestamp().to_millis();
            oldest = oldest.into_iter().chain(timestamp_ms).min();
        }
        Ok(oldest)
    }
}

/// The partition's first offset and its end; to a reader of committed records
/// the end is where the oldest open transaction begins.
///
/// # Errors
/// Where no broker leads the partition and answers. A topic that was made this
/// moment has no leader yet, so that it is asked for until the time is over.
pub fn bounds<C: ConsumerContext>(
    reader: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64)> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        match reader.fetch_watermarks(topic, partition, ANSWER_TIMEOUT) {
            Ok(bounds) => return Ok(bounds),
            Err(error) if Instant::now() > deadline => {
                return Err(error)
                    .with_context(|| format!("ask for the end of {topic} partition {partition}"));
            }
            Err(_) => thread::sleep(ASK_AGAIN),
        }
    }
}

/// What a person can do about a cluster that does not answer. It is asked once
/// more, for a few seconds, to learn why.
pub fn no_answer(kafka: &Kafka, error: &KafkaError) -> anyhow::Error {
    let brokers = &kafka.brokers;
    let (code, why) = clients::why_unreachable(kafka).unwrap_or_else(|| {
        (error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown), error.to_string())
    });
    let remedy = match code {
        RDKafkaErrorCode::Authentication => {
            "has Kafka a user of that name, with that password, for that mechanism? (kafka.properties: sasl.username, \
             sasl.password, sasl.mechanism)"
        }
        RDKafkaErrorCode::SSL => {
            "does ssl.ca.location hold the certificate of the authority that signed the brokers', and do theirs name the \
             hosts of kafka.brokers? (docs/security.md)"
        }
        _ if why.contains("certificate") => {
            "does Kafka ask for a client's certificate? (kafka.properties: ssl.certificate.location, ssl.key.location)"
        }
        _ => "is Kafka up (scripts/kafka up), and are kafka.brokers and security.protocol right?",
    };
    anyhow!("no broker answers at {brokers}: {why}; {remedy}")
}
