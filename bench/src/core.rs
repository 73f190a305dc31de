//! The pure core alone: tasks over real stores, with no Kafka at all.
//!
//! It is what a profiler is run on; it does what a worker does between polling
//! and sending, transaction by transaction.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use ticket_pipeline::commit_record::{CommitRecord, IdsRecord};
use ticket_pipeline::health::Health;
use ticket_pipeline::record::{Outbox, RawRecord};
use ticket_pipeline::store::{Positions, StateDirectory, StoreSettings};
use ticket_pipeline::task::{Outcome, Task};
use ticket_pipeline::telemetry::{self, Instruments, Telemetry};
use ticket_pipeline::topology::Topology;
use ticket_pipeline::worker::{Counts, Published, Status};

use ticket_harness::histories::Histories;
use ticket_harness::stream::{Shape, Stream};

/// As the worker's: [`ticket_pipeline::worker`].
const SWEEP_MAX: usize = 1_000;

/// Runs so many events through one task for each partition.
pub(crate) fn run(
    topology: Topology,
    histories: &Histories,
    shape: Shape,
    events: u64,
    batch: u64,
    state: &Path,
    with_metrics: bool,
) -> Result<()> {
    let topology = Arc::new(topology);
    let mut metrics = if with_metrics { Some(Metrics::start(&topology)?) } else { None };
    let directory = StateDirectory::lock(state, store_settings(&topology))?;
    let mut tasks = Vec::new();
    for partition in 0..shape.partitions {
        let store = directory.open(partition)?.context("a store of its own")?;
        tasks.push((Task::new(Arc::clone(&topology), shape.partitions, store, i64::MIN), 0_i64));
    }
    let mut stream = Stream::new(histories, shape);
    let mut outbox = Outbox::default();
    let (mut sent, mut sent_bytes, mut changelog, mut changelog_bytes) = (0_u64, 0_usize, 0_u64, 0_usize);
    let began = Instant::now();
    let mut processed = 0;
    while processed < events {
        let until = (processed + batch).min(events);
        let transaction_began = Instant::now();
        while processed < until {
            let event = stream.next_event();
            let place = usize::try_from(event.partition)?;
            let (task, position) = tasks.get_mut(place).context("a task for each partition")?;
            let record = RawRecord {
                partition: event.partition,
                offset: *position,
                timestamp_ms: event.timestamp_ms,
                key: Some(&event.uid),
                value: Some(event.value),
                headers: &[],
            };
            let outcome = task.process(&record, &mut outbox)?;
            *position += 1;
            for record in outbox.records() {
                sent += 1;
                sent_bytes += record.value.map_or(0, <[u8]>::len);
            }
            if let Some(metrics) = &mut metrics {
                metrics.process(&outcome, &outbox, event.timestamp_ms);
            }
            processed += 1;
        }
        for (task, position) in &mut tasks {
            task.sweep(SWEEP_MAX)?;
            for (_, entry) in task.store.written_entries() {
                changelog += 1;
                changelog_bytes += entry.map_or(0, <[u8]>::len);
            }
            let ids = task.store.noted_ids().collect();
            let stream_time_ms = task.stream_time_ms();
            let commit = CommitRecord { input: *position, stream_time_ms, ids };
            std::hint::black_box(IdsRecord::Commit(commit).encode());
            task.store.seal();
            let (end, input) = (i64::try_from(changelog)?, *position);
            task.store.apply(&positions(end, input, stream_time_ms))?;
            task.store.flush_if_due(Instant::now())?;
        }
        if let Some(metrics) = &mut metrics {
            metrics.commit(transaction_began);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{events} events in {seconds:.2} s ({:.1} µs each); {sent} records of {:.0} bytes out, {changelog} changelog \
         records of {:.0} bytes; {} derived, {} must be",
        seconds * 1e6 / events.max(1) as f64,
        sent_bytes as f64 / sent.max(1) as f64,
        changelog_bytes as f64 / changelog.max(1) as f64,
        sent - events,
        stream.expectation.derived(),
    );
    anyhow::ensure!(sent - events == stream.expectation.derived(), "the numbers of derived events differ");
    Ok(())
}

fn store_settings(topology: &Topology) -> StoreSettings {
    StoreSettings {
        group: topology.group.clone(),
        topic: topology.source.topic.clone(),
        flush_records_max: topology.state.flush_records_max,
        flush_interval_ms: topology.state.flush_interval_ms,
        dedupe_window_ms: topology.policies.dedupe_window_ms,
        memory_bytes: topology.limits.memory_mb * 1024 * 1024 / 4,
    }
}

/// What a worker does for whoever watches.
struct Metrics {
    /// Without it nobody would read what is measured, and measuring would cost nothing.
    _telemetry: Telemetry,
    instruments: Instruments,
    published: Arc<Published>,
    counts: Counts,
    times_ms: Vec<i64>,
}

impl Metrics {
    fn start(topology: &Arc<Topology>) -> Result<Metrics> {
        let health = Arc::new(Health::new(Arc::clone(topology)));
        let telemetry = Telemetry::start(&health, true)?;
        let published = Arc::new(Published::default());
        health.add_worker(0, Arc::clone(&published));
        Ok(Metrics {
            instruments: telemetry.instruments(),
            _telemetry: telemetry,
            published,
            counts: Counts::new(topology.event_types.len()),
            times_ms: Vec::new(),
        })
    }

    fn process(&mut self, outcome: &Outcome, outbox: &Outbox, timestamp_ms: i64) {
        outbox.records().for_each(|record| self.counts.sent(record.destination, record.origin));
        self.counts.read(outcome);
        self.times_ms.push(timestamp_ms);
    }

    fn commit(&mut self, began: Instant) {
        self.published.turn();
        self.published.publish(Status { counts: self.counts.clone(), ..Status::default() });
        self.instruments.transaction(telemetry::Outcome::Committed, began.elapsed());
        self.instruments.committed(self.times_ms.len(), 0, self.times_ms.drain(..));
    }
}

/// Where a store stands whose logs are not real ones.
fn positions(end: i64, input: i64, stream_time_ms: i64) -> Positions {
    Positions { changelog: end, ids: end, input, stream_time_ms, rebuilding: None }
}
