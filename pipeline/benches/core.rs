//! The pure core on the real histories: decode, derive, encode, and a task's
//! whole work, in time, bytes and allocations.

#![allow(clippy::indexing_slicing, reason = "all lists are as long as the list of records")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ticket_pipeline::derive::PreviousFrom;
use ticket_pipeline::entry::{Entry, RuleSet};
use ticket_pipeline::envelope::{Decoder, Envelope};
use ticket_pipeline::json::Tape;
use ticket_pipeline::lines::RawLine;
use ticket_pipeline::outgoing::{self, Derived};
use ticket_pipeline::record::{Outbox, RawRecord};
use ticket_pipeline::store::Store;
use ticket_pipeline::task::Task;
use ticket_pipeline::topology::Topology;
use ticket_pipeline::transition::{self, Transition};

/// Counts what is asked of the system's allocator.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    ALLOCATED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

// SAFETY: every call is the system allocator's own, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, bytes) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The real histories, with the entry that each record finds.
struct Histories {
    topology: Arc<Topology>,
    rule_set: RuleSet,
    roles: Vec<transition::Role>,
    lines: Vec<RawLine>,
    entries: Vec<Option<Vec<u8>>>,
}

impl Histories {
    fn read() -> Histories {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/histories.raw.ndjson.zst");
        let mut file = zstd::Decoder::new(File::open(path).expect("the data are there")).expect("it is zstd");
        file.window_log_max(27).expect("a window that zstd knows");
        let lines = BufReader::new(file).lines().map(|line| line.expect("the file can be read"));
        let lines: Vec<RawLine> =
            lines.map(|line| RawLine::parse(&line).expect("it holds raw lines")).collect();
        let topology = Arc::new(Topology::shipped());
        let mut task = Task::new(Arc::clone(&topology), 4, Store::in_memory(), i64::MIN);
        let mut outbox = Outbox::default();
        let entries = lines.iter().map(|line| {
            let before = task.store.entry(line.key.as_deref().unwrap_or_default());
            let before = before.expect("nothing is read from a disk").map(Cow::into_owned);
            line.with_record(|record| task.process(record, &mut outbox))
                .expect("nothing is read from a disk");
            before
        });
        let entries = entries.collect();
        let (rule_set, roles) = (RuleSet::of(&topology.rules), transition::roles(&topology));
        Histories { topology, rule_set, roles, lines, entries }
    }

    fn record<'a>(line: &'a RawLine) -> RawRecord<'a> {
        RawRecord {
            partition: line.partition,
            offset: line.offset,
            timestamp_ms: line.timestamp_ms,
            key: line.key.as_deref(),
            value: line.value.as_deref(),
            headers: &[],
        }
    }

    fn bytes(&self) -> u64 {
        self.lines.iter().map(|line| line.value.as_ref().map_or(0, Vec::len) as u64).sum()
    }

    fn entry(&self, index: usize) -> Entry<'_> {
        match &self.entries[index] {
            Some(bytes) => {
                Entry::decode(bytes, &self.rule_set).expect("an entry that was encoded can be decoded")
            }
            None => Entry::new(0),
        }
    }

    fn happen<'a>(
        &'a self,
        envelope: &Envelope<'a>,
        record_ms: i64,
        entry: &mut Entry<'a>,
        tape: &'a mut Tape,
    ) -> Transition<'a> {
        let transition = transition::happen(
            &self.topology,
            &self.rule_set.reader,
            self.roles[envelope.event_type],
            envelope,
            record_ms,
            entry,
            tape,
        );
        transition.expect("an entry that was encoded is whole")
    }
}

/// A benchmark over all records at once, and its allocations for each.
fn measure(criterion: &mut Criterion, name: &str, records: usize, bytes: u64, mut once: impl FnMut()) {
    once(); // Buffers that are used again have their size by now.
    let (allocations, allocated) =
        (ALLOCATIONS.load(Ordering::Relaxed), ALLOCATED_BYTES.load(Ordering::Relaxed));
    once();
    let for_each = |counter: &AtomicU64, before: u64| {
        (counter.load(Ordering::Relaxed) - before) as f64 / records.max(1) as f64
    };
    println!(
        "{name}: {:.1} allocations and {:.0} bytes allocated for each of {records}",
        for_each(&ALLOCATIONS, allocations),
        for_each(&ALLOCATED_BYTES, allocated)
    );
    let throughput = Throughput::ElementsAndBytes { elements: records as u64, bytes };
    let mut group = criterion.benchmark_group("core");
    group.sample_size(20).throughput(throughput).bench_function(name, |bencher| bencher.iter(&mut once));
    group.finish();
}

fn core(criterion: &mut Criterion) {
    let histories = Histories::read();
    let (records, bytes) = (histories.lines.len(), histories.bytes());

    let mut decoder = Decoder::default();
    measure(criterion, "decode", records, bytes, || {
        for line in &histories.lines {
            let _ = black_box(decoder.decode(&Histories::record(line), &histories.topology));
        }
    });

    let mut decoders: Vec<Decoder> = histories.lines.iter().map(|_| Decoder::default()).collect();
    let envelopes: Vec<Envelope<'_>> = histories
        .lines
        .iter()
        .zip(&mut decoders)
        .map(|(line, decoder)| {
            decoder.decode(&Histories::record(line), &histories.topology).expect("the histories are sound")
        })
        .collect();
    let mut tape = Tape::default();
    measure(criterion, "derive", records, bytes, || {
        for (index, envelope) in envelopes.iter().enumerate() {
            let mut entry = histories.entry(index);
            black_box(histories.happen(envelope, histories.lines[index].timestamp_ms, &mut entry, &mut tape));
            black_box(entry.encode(&histories.rule_set));
        }
    });

    encode(criterion, &histories, &envelopes);

    let mut outbox = Outbox::default();
    measure(criterion, "task", records, bytes, || {
        let mut task = Task::new(Arc::clone(&histories.topology), 4, Store::in_memory(), i64::MIN);
        for line in &histories.lines {
            let _ = black_box(task.process(&Histories::record(line), &mut outbox));
        }
    });
}

/// The derived events' ids and values.
fn encode(criterion: &mut Criterion, histories: &Histories, envelopes: &[Envelope<'_>]) {
    let mut tapes: Vec<Tape> = envelopes.iter().map(|_| Tape::default()).collect();
    let transitions: Vec<Transition<'_>> = envelopes
        .iter()
        .zip(&mut tapes)
        .enumerate()
        .map(|(index, (envelope, tape))| {
            let mut entry = histories.entry(index);
            histories.happen(envelope, histories.lines[index].timestamp_ms, &mut entry, tape)
        })
        .collect();
    let write = |value: &mut Vec<u8>| {
        let (mut count, mut bytes) = (0, 0);
        for (index, transition) in transitions.iter().enumerate() {
            let (envelope, record) = (&envelopes[index], Histories::record(&histories.lines[index]));
            for (position, event) in transition.derived.iter().enumerate() {
                let name = &histories.topology.event_types[event.event_type].name;
                let id = outgoing::derived_id(envelope, name, &event.change.subject());
                let previous = match event.previous_from {
                    PreviousFrom::Event => envelope.previous_ticket.map(|ticket| ticket.raw()),
                    PreviousFrom::Store => transition.previous_snapshot,
                };
                let derived = Derived {
                    name,
                    id: &id,
                    field: &histories.topology.rules[event.rule].field,
                    change: &event.change,
                    previous_from: event.previous_from,
                    previous_ticket: previous.unwrap_or("null"),
                    position: position + 1,
                    total: transition.derived.len(),
                };
                value.clear();
                outgoing::write_derived(value, envelope, "ticket.raw", &record, &derived);
                count += 1;
                bytes += value.len();
            }
        }
        (count, bytes)
    };
    let mut value = Vec::new();
    let (count, bytes) = write(&mut value);
    measure(criterion, "encode", count, bytes as u64, || {
        black_box(write(&mut value));
    });
}

criterion_group!(benches, core);
criterion_main!(benches);
