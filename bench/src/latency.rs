//! How long an event takes, open loop: from the moment it was due to its
//! forwarded record in the hands of a reader of committed records.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use ticket_pipeline::clients;

use crate::contestant::{Contestant, Kind, Settings};
use crate::report::{self, Column, Row};
use ticket_harness::histories::Histories;
use ticket_harness::load;
use ticket_harness::process::Meter;
use ticket_harness::stream::{self, Shape, Stream};

/// Events before those that count: the group has formed, connections stand.
const FIRST_EVENTS: u64 = 1_000;
const WARM_UP_S: u64 = 2;

const LOOK_EVERY: Duration = Duration::from_millis(50);
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// The last record may come so long after it was due.
const LATE_MAX: Duration = Duration::from_secs(60);

const COLUMNS: [Column; 6] = [
    Column { name: "p50 ms", decimals: 1 },
    Column { name: "p99 ms", decimals: 1 },
    Column { name: "p99.9 ms", decimals: 1 },
    Column { name: "max ms", decimals: 1 },
    Column { name: "CPU-s/M", decimals: 1 },
    Column { name: "cores used by others", decimals: 2 },
];

/// Both in turn at each rate.
pub(crate) fn run(
    settings: &Settings,
    histories: &Histories,
    rates: &[u32],
    seconds: u64,
    rounds: usize,
) -> Result<Value> {
    let mut result = json!({ "seconds": seconds, "commit_interval_ms": settings.commit_interval_ms });
    let kinds = [Kind::Pipeline, Kind::Limit];
    for rate in rates {
        let mut rows =
            kinds.map(|kind| Row { name: format!("{} at {rate}/s", kind.name()), rounds: Vec::new() });
        for round in 0..rounds {
            for (kind, row) in kinds.into_iter().zip(&mut rows) {
                let name = format!("bench-{}-{rate}-{round}-{}", std::process::id(), kind.name());
                let figures = one(kind, &name, settings, histories, *rate, seconds)
                    .with_context(|| format!("{} at {rate}/s", kind.name()))?;
                let [p50_ms, p99_ms, ..] = figures;
                eprintln!("{} at {rate}/s: p50 {p50_ms:.1}, p99 {p99_ms:.1} ms", kind.name());
                row.rounds.push(figures.to_vec());
            }
        }
        println!("{}\n", report::table(&COLUMNS, &rows));
        if let Some(result) = result.as_object_mut() {
            result.insert(rate.to_string(), report::json(&COLUMNS, &rows));
        }
    }
    Ok(result)
}

fn one(
    kind: Kind,
    name: &str,
    settings: &Settings,
    histories: &Histories,
    rate: u32,
    seconds: u64,
) -> Result<[f64; COLUMNS.len()]> {
    let source = format!("{name}-raw");
    let mut contestant = Contestant::prepare(kind, name, &source, settings)?;
    let topology = contestant.topology.clone();
    let events = u64::from(rate) * (seconds + WARM_UP_S);
    let shape = Shape::of((FIRST_EVENTS + events).div_ceil(4), settings.partitions);
    let mut stream = Stream::new(histories, shape);
    load::backlog(&topology, &mut stream, FIRST_EVENTS)?;
    let watch = contestant.watch()?;
    let pids = contestant.start()?;
    watch.reach(FIRST_EVENTS, LOOK_EVERY, START_TIME_MAX, || contestant.must_run())?;
    let reader = reader(&contestant, histories, settings)?;
    let meter = Meter::begin(&pids, settings.broker.pid)?;
    let began = Instant::now() + Duration::from_millis(200);
    let mut latencies_us: Vec<u64> = std::thread::scope(|scope| {
        let stream = &mut stream;
        let topology = &topology;
        let load = scope
            .spawn(move || load::open_loop(topology, stream, began, rate, events, &AtomicBool::new(false)));
        let latencies = read(&reader, began, rate, events);
        let sent = load.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))??;
        ensure!(sent == events, "{sent} of {events} events were written");
        latencies
    })?;
    let used = meter.used()?;
    watch.reach(FIRST_EVENTS + events, LOOK_EVERY, LATE_MAX, || contestant.must_run())?;
    drop(reader);
    contestant.stop()?;
    contestant.audit(&stream.expectation)?;
    contestant.remove_with_source()?;
    latencies_us.sort_unstable();
    let at = |share: f64| {
        let index = (latencies_us.len() as f64 * share).ceil() as usize;
        latencies_us.get(index.clamp(1, latencies_us.len()) - 1).copied().unwrap_or(0) as f64 / 1e3
    };
    Ok([
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        used.cpu_s * 1e6 / events as f64,
        used.others_cpu_s / used.seconds,
    ])
}

/// A reader of committed records, from where the forwarded topics end now.
fn reader(contestant: &Contestant, histories: &Histories, settings: &Settings) -> Result<BaseConsumer> {
    let reader = clients::reader(&contestant.topology.kafka)?;
    let mut list = TopicPartitionList::new();
    for topic in contestant.forwarded_topics(histories) {
        for partition in 0..settings.partitions {
            list.add_partition_offset(&topic, partition, Offset::Beginning)?;
        }
    }
    reader.assign(&list)?;
    Ok(reader)
}

/// Reads every event's forwarded record; says how late those after the warm-up were, in µs.
fn read(reader: &BaseConsumer, began: Instant, rate: u32, events: u64) -> Result<Vec<u64>> {
    let warm = u64::from(rate) * WARM_UP_S;
    let mut latencies_us = Vec::with_capacity(usize::try_from(events - warm)?);
    let mut seen = 0;
    let deadline = began + load::due(events, rate) + LATE_MAX;
    while seen < events {
        ensure!(Instant::now() < deadline, "{seen} of {events} events came through");
        let record = match reader.poll(Duration::from_millis(100)) {
            None | Some(Err(KafkaError::PartitionEOF(_))) => continue,
            Some(record) => record.context("read a forwarded record")?,
        };
        let now = Instant::now();
        let number = record.payload().and_then(stream::number_of).context("a forwarded record is whole")?;
        let Some(index) = number.checked_sub(FIRST_EVENTS) else { continue };
        seen += 1;
        if index >= warm {
            let due = began + load::due(index, rate);
            latencies_us.push(u64::try_from(now.saturating_duration_since(due).as_micros())?);
        }
    }
    Ok(latencies_us)
}
