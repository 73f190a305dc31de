//! What can come in: every dead-letter code in half of the traffic, mutated
//! records, sizes at the limits, times far away, one ticket with all events and
//! all events with a ticket each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use ticket_harness::stream::{Shape, Stream};
use ticket_harness::{broker, histories, random::Random};
use ticket_pipeline::clients;
use ticket_pipeline::lines::RawLine;
use ticket_pipeline::partition;
use ticket_pipeline::transaction::read_headers;

use crate::outcome::Outcome;
use crate::scene::{PARTITIONS, Scene, Settings, World};

/// Records of each kind.
const TIMES: u64 = 50_000;
/// 2026-01-05T00:00:00Z.
const BEGIN_MS: i64 = 1_767_571_200_000;
const DAY_MS: i64 = 86_400_000;
/// The contract's limit of a value, and what a broker takes by default.
const VALUE_BYTES_MAX: usize = 262_144;
const BROKER_BYTES_MAX: usize = 1_048_588;
const SETTLE: Duration = Duration::from_secs(120);
/// So many records are through by then.
const SOME: u64 = 10_000;

/// Every code but the two that need another record than a broken one.
const CODES: [&str; 8] = [
    "null_value",
    "not_json",
    "not_an_envelope",
    "unknown_event_type",
    "bad_timestamp",
    "no_ticket_uid",
    "key_mismatch",
    "payload_too_large",
];

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let mut random = Random::new(seed);
    let events = world.times.unwrap_or(TIMES);
    let codes = half_bad(world, events.min(40_000), &mut random);
    one(world, outcome, "half of it dead letters", codes, false)?;
    let mutated = mutated(world, events, &mut random)?;
    one(world, outcome, "mutated", mutated, false)?;
    one(world, outcome, "sizes at the limits", sizes(), true)?;
    one(world, outcome, "times far away", times(&mut random), true)?;
    one(world, outcome, "one ticket", generated(world, events, 1), false)?;
    one(world, outcome, "a ticket each", generated(world, events, events), false)
}

/// All of it in, and judged when all of it is through.
fn one(
    world: &World<'_>,
    outcome: &mut Outcome,
    what: &str,
    records: Vec<RawLine>,
    one_by_one: bool,
) -> Result<()> {
    eprintln!("{what}: {} records", records.len());
    let settings = Settings { with_histories: false, ..Settings::default() };
    let mut scene = Scene::new(world, "input", &settings)?;
    produce(&scene, &records, one_by_one).with_context(|| what.to_owned())?;
    outcome.fired(&format!("records: {what}"), records.len() as u64);
    scene.start("a")?;
    // However long all of it takes, there is always some more.
    let end = records.len() as u64;
    for some in (SOME..end).step_by(SOME as usize).chain([end]) {
        if !scene.wait_until_committed(some, SETTLE)? {
            break;
        }
    }
    let topology = scene.topology.clone();
    scene.judge_as_it_is(outcome)?;
    let mut codes: BTreeMap<String, u64> = BTreeMap::new();
    broker::read_all(&topology, std::slice::from_ref(&topology.dead_letter_topic), PARTITIONS, |record| {
        let mut headers = Vec::new();
        read_headers(record, &mut headers);
        let code = headers.iter().rev().find(|(name, _)| *name == b"__streams.errors.exception");
        let code = code.and_then(|(_, code)| *code).unwrap_or_default();
        *codes.entry(String::from_utf8_lossy(code).into_owned()).or_default() += 1;
        Ok(())
    })?;
    for (code, count) in codes {
        outcome.fired(&code, count);
    }
    Ok(())
}

/// What the broker does not take is a mistake of the suite.
#[derive(Default)]
struct Refused(Mutex<Option<String>>);

impl ClientContext for Refused {}

impl ProducerContext for Refused {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, record)) = result {
            let what = format!("a record of {} bytes: {error}", record.payload_len());
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        }
    }
}

fn produce(scene: &Scene<'_>, records: &[RawLine], one_by_one: bool) -> Result<()> {
    let mut config = clients::idempotent_producer(&scene.topology.kafka);
    if one_by_one {
        // The broker measures batches: a record at its limit stands in one of its own, as it is.
        config.set("compression.type", "none").set("batch.num.messages", "1");
    }
    let producer = BaseProducer::from_config_and_context(&config, Refused::default())?;
    for (number, raw) in records.iter().enumerate() {
        loop {
            let mut headers = OwnedHeaders::new();
            for (name, value) in &raw.headers {
                headers = headers.insert(Header { key: std::str::from_utf8(name)?, value: value.as_ref() });
            }
            let mut record = BaseRecord::<[u8], [u8]>::to(&scene.topology.source.topic)
                .partition(raw.partition)
                .timestamp(raw.timestamp_ms)
                .headers(headers);
            record.key = raw.key.as_deref();
            record.payload = raw.value.as_deref();
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => bail!("produce record {number}: {error}"),
            }
        }
        if number.is_multiple_of(1_000) {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(SETTLE)?;
    if let Some(what) = &*producer.context().0.lock().unwrap_or_else(PoisonError::into_inner) {
        bail!("the broker does not take {what}");
    }
    let end = scene.watch.end()?;
    ensure!(end == records.len() as u64, "the broker took {end} of {} records", records.len());
    Ok(())
}

fn raw(uid: &str, timestamp_ms: i64, value: Vec<u8>) -> RawLine {
    RawLine {
        partition: partition::of(uid.as_bytes(), PARTITIONS),
        offset: 0,
        timestamp_ms,
        key: Some(uid.as_bytes().to_vec()),
        value: Some(value),
        headers: Vec::new(),
    }
}

fn generated(world: &World<'_>, events: u64, tickets: u64) -> Vec<RawLine> {
    let shape = Shape {
        tickets,
        under_way_max: 200,
        history_events_max: if tickets == events { 1 } else { usize::MAX },
        first_event: 0,
        partitions: PARTITIONS,
    };
    let mut stream = Stream::new(world.histories, shape);
    let mut records = Vec::new();
    for _ in 0..events {
        let event = stream.next_event();
        records.push(RawLine {
            partition: event.partition,
            offset: 0,
            timestamp_ms: event.timestamp_ms,
            key: Some(event.uid.to_vec()),
            value: Some(event.value.to_vec()),
            headers: Vec::new(),
        });
    }
    records
}

/// Every second record is spoiled, each code in turn.
fn half_bad(world: &World<'_>, events: u64, random: &mut Random) -> Vec<RawLine> {
    let mut records = generated(world, events, 1_000);
    let mut codes = CODES.iter().cycle();
    for record in records.iter_mut().skip(1).step_by(2) {
        let Some(code) = codes.next() else { break };
        spoil(record, code, random);
    }
    records
}

fn spoil(record: &mut RawLine, code: &str, random: &mut Random) {
    let text =
        record.value.as_deref().map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
    let uid = record.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
    let value = match code {
        "null_value" => None,
        "not_json" => text.get(..1 + random.below(text.len() as u64 / 2) as usize).map(str::to_owned),
        "not_an_envelope" => Some(text.replacen("\"eventId\"", "\"eventIdentity\"", 1)),
        "unknown_event_type" => Some(text.replacen("\"ticket:", "\"ticket:very:", 1)),
        "bad_timestamp" => Some(text.replacen("\"timestamp\":\"", "\"timestamp\":\"~", 1)),
        "no_ticket_uid" => {
            record.key = None;
            Some(event("nobody's", BEGIN_MS, serde_json::json!({"title": "nobody's"})))
        }
        "key_mismatch" => {
            record.key = Some(b"somebody else".to_vec());
            Some(text)
        }
        // Nothing in it may be cut, for names are kept. Large, so not in each round.
        _ if random.once_in(20) => {
            let name = "x".repeat(VALUE_BYTES_MAX + 1);
            Some(event(
                "large",
                BEGIN_MS,
                serde_json::json!({"uid": uid, "status": {"id": "s", "name": name}}),
            ))
        }
        _ => Some("[]".to_owned()),
    };
    record.value = value.map(String::into_bytes);
}

fn event(id: &str, time_ms: i64, ticket: serde_json::Value) -> String {
    let event = serde_json::json!({
        "eventId": id, "eventType": "ticket:updated", "timestamp": time_ms, "orgId": "o", "payload": {"ticket": ticket},
    });
    event.to_string()
}

/// Real and made-up records with bytes changed, left out, doubled and swapped.
fn mutated(world: &World<'_>, events: u64, random: &mut Random) -> Result<Vec<RawLine>> {
    let data = world.project.join("tests/data");
    let read = |name: &str| histories::raw_lines(&data.join(Path::new(name)));
    let mut originals = read("nasty.raw.ndjson.zst")?;
    originals.extend(read("histories.raw.ndjson.zst")?);
    originals.retain(|raw| raw.value.as_ref().is_some_and(|value| value.len() < 20_000));
    let mut time_ms = BEGIN_MS;
    let mut records = Vec::new();
    for _ in 0..events {
        let at = random.below(originals.len() as u64) as usize;
        let mut record = originals.get(at).context("there are originals")?.clone();
        time_ms += random.below(60_000) as i64;
        record.timestamp_ms = time_ms;
        if let Some(value) = &mut record.value {
            for _ in 0..random.below(4) {
                mutate(value, random);
            }
        }
        if random.once_in(30) {
            record.key.iter_mut().for_each(|key| mutate(key, random));
        }
        records.push(record);
    }
    Ok(records)
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const WORDS: [&[u8]; 8] = [
        b"null",
        b"{}",
        b"[]",
        b"\"\"",
        b"1e999",
        b"\\ud800",
        b"-0",
        b"\"Payload too large. Use API instead\"",
    ];
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len() as u64;
    let at = random.below(length) as usize;
    let until = (at + 1 + random.below(40) as usize).min(bytes.len());
    match random.below(5) {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
        1 => drop(bytes.drain(at..until)),
        2 => {
            let piece: Vec<u8> = bytes.get(at..until).unwrap_or_default().to_vec();
            let to = random.below(length) as usize;
            bytes.splice(to..to, piece);
        }
        3 => {
            let word = WORDS.get(random.below(WORDS.len() as u64) as usize).copied().unwrap_or_default();
            bytes.splice(at..until, word.iter().copied());
        }
        _ => bytes.swap(at, until - 1),
    }
}

/// Around the contract's limit and the broker's, of text that may be cut, and of a name that may not.
fn sizes() -> Vec<RawLine> {
    let mut records = Vec::new();
    // A record's batch, its key and its length take so much besides.
    let at_broker = BROKER_BYTES_MAX - 200;
    for bytes in [VALUE_BYTES_MAX, 2 * VALUE_BYTES_MAX, 4 * VALUE_BYTES_MAX - 1_000, at_broker] {
        for near in [bytes - 1, bytes, bytes + 1] {
            for member in ["description", "title_name"] {
                let number = records.len();
                let uid = format!("size-{number}");
                let ticket = |text: &str| match member {
                    "description" => serde_json::json!({"uid": uid, "status": "open", "description": text}),
                    _ => serde_json::json!({"uid": uid, "status": {"id": "open", "name": text}}),
                };
                let id = format!("size {number}");
                let frame = event(&id, BEGIN_MS, ticket("")).len();
                let text = "y".repeat(near - frame);
                let time_ms = BEGIN_MS + number as i64;
                records.push(raw(&uid, time_ms, event(&id, BEGIN_MS, ticket(&text)).into_bytes()));
            }
        }
    }
    records
}

/// Kafka's and the envelope's times, far in the past and in the future, one behind the other.
fn times(random: &mut Random) -> Vec<RawLine> {
    let far = [1, 1_000, BEGIN_MS - 10_000 * DAY_MS, BEGIN_MS, BEGIN_MS + 2 * DAY_MS, 253_402_300_799_000];
    let mut at = || far.get(random.below(far.len() as u64) as usize).copied().unwrap_or(BEGIN_MS);
    let mut records = Vec::new();
    for number in 0..2_000 {
        let uid = format!("time-{}", number % 50);
        let ticket =
            serde_json::json!({"uid": uid, "status": if number % 3 == 0 { "open" } else { "closed" }});
        // Ids return, within the window and beyond it.
        let id = format!("time {}", number % 700);
        records.push(raw(&uid, at(), event(&id, at(), ticket).into_bytes()));
    }
    records
}
