//! The Kafka clients' configuration: the topology's properties under ours.

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::BaseConsumer;

use crate::topology::Kafka;

/// What every client shares: brokers, then the pass-through properties.
#[must_use]
pub fn base(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &kafka.brokers);
    for (name, value) in &kafka.properties {
        config.set(name, value);
    }
    config
}

/// A client that creates, describes and alters topics.
///
/// # Errors
/// Where librdkafka refuses a property.
pub fn admin(kafka: &Kafka) -> Result<AdminClient<DefaultClientContext>> {
    base(kafka).create().context("make an admin client")
}

/// A consumer of committed records that belongs to no group: it is told what
/// to read, commits nothing, and is in nobody's way.
///
/// # Errors
/// Where librdkafka refuses a property.
pub fn reader(kafka: &Kafka) -> Result<BaseConsumer> {
    let mut config = base(kafka);
    for (name, value) in &kafka.consumer {
        config.set(name, value);
    }
    config
        // librdkafka hands out no record without a group's name, though no such group is ever joined.
        .set("group.id", "ticket-pipeline-reader")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .context("make a consumer without a group")
}

/// The configuration of a producer that keeps the order and writes each record
/// once. It uses no transactions, for their markers would take offsets.
#[must_use]
pub fn idempotent_producer(kafka: &Kafka) -> ClientConfig {
    let mut config = base(kafka);
    config
        .set("linger.ms", "5")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.kbytes", "65536")
        // The topic's limit is to decide, not the client's.
        .set("message.max.bytes", "1000000000");
    for (name, value) in &kafka.producer {
        config.set(name, value);
    }
    config.set("enable.idempotence", "true");
    config
}
