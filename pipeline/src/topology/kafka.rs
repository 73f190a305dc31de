//! How Kafka is reached: librdkafka's own properties, save those that are the
//! pipeline's to set.
//!
//! Knows which properties hold up the guarantee, and asks librdkafka about all
//! others without connecting. Values may be secrets: a message shows one only
//! where librdkafka knows the property and nothing about it is secret.

use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::Kafka;
use super::mistakes::{Mistakes, did_you_mean, shown};
use super::properties::{ALIASES, COMMON, CONSUMER, PRODUCER, REFUSED};
use super::section::Section;
use super::yaml::{Key, Node, Value};

/// Kafka's default of `max.message.bytes`.
pub const KAFKA_RECORD_BYTES_MAX: u32 = 1_048_588;

/// A producer's `transaction.timeout.ms` where the topology does not say it: the
/// longest time that readers wait for a process that died and does not come back.
pub const TRANSACTION_TIMEOUT_MS: u64 = 15_000;

const TRANSACTION_MS_MIN: u64 = 10_000;

/// What brokers allow by their own default, `transaction.max.timeout.ms`.
const TRANSACTION_MS_MAX: u64 = 900_000;

/// Which clients a property is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clients {
    Every,
    Consumers,
    Producers,
}

impl Clients {
    fn key(self) -> &'static str {
        match self {
            Clients::Every => "properties",
            Clients::Consumers => "consumer",
            Clients::Producers => "producer",
        }
    }
}

/// A property as the file writes it.
struct Property {
    line: usize,
    clients: Clients,
    name: &'static str,
    value: String,
}

/// Reads the section; `commit_interval_ms` must fit into a transaction.
pub(super) fn read_kafka(
    section: &Section<'_>,
    commit_interval_ms: Option<u64>,
    mistakes: &mut Mistakes,
) -> Option<Kafka> {
    let remedy = "write host:port, several with commas between them";
    let brokers = section
        .read("brokers", remedy, mistakes, |scalar| brokers(&scalar.text).then(|| scalar.text.clone()));
    let mut properties: Vec<Property> = Vec::new();
    for clients in [Clients::Every, Clients::Consumers, Clients::Producers] {
        for (key, node) in section.free_map(clients.key(), mistakes) {
            let Some(property) = read_property(clients, key, node, mistakes) else { continue };
            let twin = properties
                .iter()
                .find(|other| other.name == property.name && other.clients == property.clients);
            if let Some(other) = twin {
                let what = format!("{} says the same as line {}", shown(&key.text), other.line);
                mistakes.note(key.line, what, "keep one of the two names");
            }
            properties.push(property);
        }
    }
    note_contradictions(&properties, commit_interval_ms, mistakes);
    let of = |clients: Clients| {
        let mine = properties.iter().filter(|property| property.clients == clients);
        mine.map(|property| (property.name.to_owned(), property.value.clone())).collect()
    };
    Some(Kafka {
        brokers: brokers?,
        properties: of(Clients::Every),
        consumer: of(Clients::Consumers),
        producer: of(Clients::Producers),
    })
}

/// `host`, `host:port`, `[::1]:port`, perhaps behind `protocol://`.
fn brokers(text: &str) -> bool {
    text.split(',').map(str::trim).all(|broker| {
        let address = broker.split_once("://").map_or(broker, |(_, address)| address);
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (address, None),
        };
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
    })
}

fn read_property(clients: Clients, key: &Key, node: &Node, mistakes: &mut Mistakes) -> Option<Property> {
    let name = key.text.as_str();
    let written = shown(name);
    if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        mistakes.note(
            key.line,
            format!("the property {written} is the pipeline's to set: {reason}"),
            "remove it",
        );
        return None;
    }
    let known = COMMON.iter().chain(CONSUMER).chain(PRODUCER).find(|known| **known == name);
    let Some(known) = known else {
        let all = COMMON.iter().chain(CONSUMER).chain(PRODUCER).copied();
        let guess = did_you_mean(name, all.chain(REFUSED.iter().map(|(refused, _)| *refused)));
        let remedy = format!("{guess}librdkafka's CONFIGURATION.md lists them");
        mistakes.note(key.line, format!("librdkafka has no property {written} that can be set here"), remedy);
        return None;
    };
    for (of, names, place) in
        [(Clients::Consumers, CONSUMER, "consumer"), (Clients::Producers, PRODUCER, "producer")]
    {
        if clients != of && names.contains(&name) {
            let what = format!("{written} is a {place}'s property");
            mistakes.note(key.line, what, format!("move it to \"kafka.{place}\""));
        }
    }
    let value = match &node.value {
        Value::Scalar(scalar) => scalar,
        Value::Nothing | Value::List(_) | Value::Map(_) => {
            let what = format!("the property {written} has no single value");
            mistakes.note(key.line, what, "write one, lists with commas in between, or remove it");
            return None;
        }
    };
    if value.text.is_empty() {
        // Left empty on purpose, by ${NAME:-}, it is left out.
        if let Some(unset) = value.unset.first() {
            let what = format!("the property {written} is empty, for {unset} is not set");
            mistakes.note(
                key.line,
                what,
                format!("set it, or write ${{{unset}:-}} where it may be left out"),
            );
        }
        return None;
    }
    note_refused_value(key.line, known, &value.text, mistakes);
    let name = ALIASES.iter().find(|(alias, _)| alias == known).map_or(*known, |(_, name)| *name);
    Some(Property { line: key.line, clients, name, value: value.text.clone() })
}

/// Asks librdkafka, which parses a value without connecting.
fn note_refused_value(line: usize, name: &str, value: &str, mistakes: &mut Mistakes) {
    let Err(error) = ClientConfig::new().set(name, value).create_native_config() else { return };
    let remedy = "librdkafka's CONFIGURATION.md has its range and meaning";
    let what = match error {
        KafkaError::ClientConfig(_, reason, ..) if reason.contains("not supported in this build") => {
            format!("this build of librdkafka does not support {}", shown(name))
        }
        _ if is_secret(name) => format!("librdkafka refuses the value of {}", shown(name)),
        KafkaError::ClientConfig(_, reason, ..) => {
            format!("{} is {}: {}", shown(name), shown(value), reason.trim())
        }
        _ => format!("{} is {}, which no property can be", shown(name), shown(value)),
    };
    mistakes.note(line, what, remedy);
}

/// What librdkafka finds only when it makes a client, or never.
fn note_contradictions(properties: &[Property], commit_interval_ms: Option<u64>, mistakes: &mut Mistakes) {
    let find = |name: &str, clients: Clients| {
        let given = |of: Clients| {
            properties.iter().find(move |property| property.name == name && property.clients == of)
        };
        given(clients).or_else(|| given(Clients::Every))
    };
    let number = |property: &Property| property.value.trim().parse::<u64>().ok();

    let transaction = find("transaction.timeout.ms", Clients::Producers);
    if let Some((property, timeout_ms)) = transaction.and_then(|it| Some((it, number(it)?))) {
        let least_ms = commit_interval_ms.map_or(0, |interval_ms| interval_ms * 3).max(TRANSACTION_MS_MIN);
        if !(least_ms..=TRANSACTION_MS_MAX).contains(&timeout_ms) {
            let what = format!("\"transaction.timeout.ms\" is {timeout_ms}");
            let remedy = format!(
                "write {least_ms} (10 s, and three commit intervals) to {TRANSACTION_MS_MAX} (what brokers allow)"
            );
            mistakes.note(property.line, what, remedy);
        }
    }
    let timeout_ms = transaction.and_then(number).unwrap_or(TRANSACTION_TIMEOUT_MS);
    if let Some(socket) = find("socket.timeout.ms", Clients::Producers)
        && number(socket).is_some_and(|socket_ms| socket_ms > timeout_ms)
    {
        let what = "\"socket.timeout.ms\" is longer than a producer's \"transaction.timeout.ms\"";
        mistakes.note(socket.line, what, format!("write at most {timeout_ms}, or lengthen the other"));
    }
    let session = find("session.timeout.ms", Clients::Consumers);
    if find("group.protocol", Clients::Consumers).is_some_and(|protocol| protocol.value == "consumer") {
        for name in ["session.timeout.ms", "heartbeat.interval.ms"] {
            if let Some(property) = find(name, Clients::Consumers) {
                let what = format!("with group.protocol \"consumer\" the broker decides \"{name}\"");
                mistakes.note(property.line, what, "remove it");
            }
        }
    } else if let (Some(session), Some(poll)) = (session, find("max.poll.interval.ms", Clients::Consumers))
        && number(poll).zip(number(session)).is_some_and(|(poll_ms, session_ms)| poll_ms < session_ms)
    {
        let what = "\"max.poll.interval.ms\" is shorter than \"session.timeout.ms\"";
        mistakes.note(poll.line, what, "make it at least as long");
    }
}

/// Whether a property's value is nobody's business. Too much rather than too little.
fn is_secret(name: &str) -> bool {
    ["password", "secret", "passphrase", "key", "pem", "username", "oauthbearer", "kinit"]
        .iter()
        .any(|part| name.contains(part))
}

/// What a property's value looks like in logs and summaries: secrets are masked.
pub(super) fn masked<'a>(name: &str, value: &'a str) -> &'a str {
    if is_secret(name) { "********" } else { value }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked = |properties: &[(String, String)]| -> Vec<(String, String)> {
            properties.iter().map(|(name, value)| (name.clone(), masked(name, value).to_owned())).collect()
        };
        formatter
            .debug_struct("Kafka")
            .field("brokers", &self.brokers)
            .field("properties", &masked(&self.properties))
            .field("consumer", &masked(&self.consumer))
            .field("producer", &masked(&self.producer))
            .finish()
    }
}
