//! The Kafka clients' configuration: the topology's properties under ours.

use rdkafka::ClientConfig;

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
