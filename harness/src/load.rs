//! Events into the raw topic: as fast as the broker takes them, or each when it is due.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use ticket_pipeline::clients::{self, Sight};
use ticket_pipeline::topology::Topology;

use crate::stream::{Event, Stream};

const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);
const SETTLE_STEP: Duration = Duration::from_secs(1);

/// Whether the producer knows a broker is looked at once for so many events of an open loop.
const EVENTS_PER_LOOK: u64 = 256;

#[derive(Default)]
struct Deliveries {
    failed: AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes so many events, as fast as the broker takes them.
pub fn backlog(topology: &Topology, stream: &mut Stream<'_>, events: u64) -> Result<()> {
    let mut config = producer(topology);
    config.set("linger.ms", "50");
    let producer =
        BaseProducer::from_config_and_context(&config, Deliveries::default()).context("make a producer")?;
    for number in 0..events {
        let event = stream.next_event();
        while !send(
            &|record| producer.send(record).map_err(|(error, _)| error),
            &topology.source.topic,
            &event,
        )? {
            producer.poll(Duration::from_millis(10));
        }
        if number.is_multiple_of(1_000) {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(SETTLE_TIME_MAX).context("write the backlog")?;
    ensure!(producer.context().failed.load(Ordering::Relaxed) == 0, "events of the backlog were not written");
    Ok(())
}

/// When event `index` of an open loop is due, after its start.
pub fn due(index: u64, per_second: u32) -> Duration {
    Duration::from_nanos(index * 1_000_000_000 / u64::from(per_second))
}

/// Writes each event when it is due, however long the others take, until told
/// to stop or so many are written; says how many.
pub fn open_loop(
    topology: &Topology,
    stream: &mut Stream<'_>,
    began: Instant,
    per_second: u32,
    events_max: u64,
    stop: &AtomicBool,
) -> Result<u64> {
    let mut config = producer(topology);
    config.set("linger.ms", "1");
    let producer = ThreadedProducer::from_config_and_context(&config, Deliveries::default())
        .context("make a producer")?;
    let mut sight = Sight::new(&config);
    let mut sent = 0;
    while sent < events_max && !stop.load(Ordering::Relaxed) {
        if sent.is_multiple_of(EVENTS_PER_LOOK) {
            sight.keep(producer.client());
        }
        let wait = due(sent, per_second).saturating_sub(began.elapsed());
        if !wait.is_zero() {
            std::thread::sleep(wait);
            continue;
        }
        let event = stream.next_event();
        ensure!(
            send(
                &|record| producer.send(record).map_err(|(error, _)| error),
                &topology.source.topic,
                &event
            )?,
            "the queue of an open loop is full: the broker cannot keep up"
        );
        sent += 1;
    }
    let settling = Instant::now();
    while let Err(error) = producer.flush(SETTLE_STEP) {
        ensure!(settling.elapsed() < SETTLE_TIME_MAX, "write the last events: {error}");
        sight.keep(producer.client());
    }
    ensure!(producer.context().failed.load(Ordering::Relaxed) == 0, "events were not written");
    Ok(sent)
}

fn producer(topology: &Topology) -> ClientConfig {
    let mut config = clients::idempotent_producer(&topology.kafka);
    config.set("queue.buffering.max.messages", "1000000");
    config
}

type Record<'a> = BaseRecord<'a, [u8], [u8]>;

/// `false`: the queue is full.
fn send<'a>(
    send: &dyn Fn(Record<'a>) -> Result<(), KafkaError>,
    topic: &'a str,
    event: &'a Event<'a>,
) -> Result<bool> {
    let record = BaseRecord::to(topic)
        .key(event.uid.as_slice())
        .payload(event.value)
        .partition(event.partition)
        .timestamp(event.timestamp_ms);
    match send(record) {
        Ok(()) => Ok(true),
        Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => Ok(false),
        Err(error) => bail!("write an event: {error}"),
    }
}
