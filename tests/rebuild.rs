//! A state made what it was at an earlier position lets the tasks emit the same
//! bytes again: at any position, from any later state, with the work cut short
//! or not. With no broker.

use std::sync::Arc;

use ticket_pipeline::lines::{self, RawLine};
use ticket_pipeline::rebuild::recompute::Recompute;
use ticket_pipeline::record::Outbox;
use ticket_pipeline::store::{Begun, Positions, Reset, Store};
use ticket_pipeline::task::Task;
use ticket_pipeline::topology::Topology;

use crate::datasets;
use crate::random::Random;
use crate::story;
use crate::tasks::{PARTITIONS, state_directory, topology};

/// One partition's records, and what each makes the task emit.
struct Partition {
    topology: Arc<Topology>,
    raw: Vec<RawLine>,
    emitted: Vec<Vec<String>>,
}

/// What a rebuild was asked for, where it was left, and after how many records it had written
/// something each time.
#[derive(Debug, Clone, Copy)]
struct Cut {
    to: usize,
    at: usize,
    writes_each: usize,
}

impl Partition {
    fn new(topology: &Arc<Topology>, raw: Vec<RawLine>) -> Partition {
        let mut partition = Partition { topology: Arc::clone(topology), raw, emitted: Vec::new() };
        let mut task = partition.task(Store::in_memory(), i64::MIN);
        partition.emitted = partition.raw.iter().map(|raw| partition.process(&mut task, raw)).collect();
        partition
    }

    fn task(&self, store: Store, stream_time_ms: i64) -> Task {
        Task::new(Arc::clone(&self.topology), PARTITIONS, store, stream_time_ms)
    }

    fn process(&self, task: &mut Task, raw: &RawLine) -> Vec<String> {
        let mut outbox = Outbox::default();
        raw.with_record(|record| task.process(record, &mut outbox)).expect("the store can be read");
        let line = |record: ticket_pipeline::record::OutgoingRecord<'_>| {
            lines::outgoing_line(record.destination.topic(&self.topology), &record)
        };
        outbox.records().map(line).collect()
    }

    /// Processes the records from one position to another as a worker does, and
    /// holds what is emitted against the first time.
    fn run(&self, store: Store, stream_time_ms: i64, from: usize, to: usize) -> Store {
        let mut task = self.task(store, stream_time_ms);
        for (offset, (raw, first_time)) in self.raw.iter().zip(&self.emitted).enumerate().take(to).skip(from)
        {
            let emitted = self.process(&mut task, raw);
            assert!(
                emitted == *first_time,
                "offset {offset}:\n{emitted:#?}\nand the first time\n{first_time:#?}"
            );
            if offset % 7 == 0 || offset + 1 == to {
                task.sweep(1_000).expect("the store can be read");
                let stream_time_ms = task.stream_time_ms();
                apply(&mut task.store, offset as i64 + 1, stream_time_ms, None);
            }
        }
        task.store
    }

    /// As a rebuild does it: that it begins is written first, then what it does, each
    /// so many records.
    fn recompute(&self, mut store: Store, to: usize, cut: Option<Cut>) -> (Store, i64) {
        let at = store.positions().expect("the store has a position");
        let is_whole = at.rebuilding.is_none_or(|begun| !begun.has_written);
        let opening = Begun::after(at.rebuilding, Reset { from: at.input, to: to as i64 });
        apply(&mut store, at.input, at.stream_time_ms, Some(opening));
        let reset = opening.reset;
        let begun = Some(Begun { reset, has_written: true });
        let mut recompute = Recompute::begin(&self.topology, PARTITIONS, store, reset.to, is_whole);
        while !recompute.remove_some(0).expect("the store can be read") {}
        let writes_each = cut.map_or(11, |cut| cut.writes_each);
        for (offset, raw) in self.raw.iter().enumerate().take(cut.map_or(to, |cut| cut.at)) {
            raw.with_record(|record| recompute.take(record)).expect("the store can be read");
            if offset % writes_each == writes_each - 1 {
                let stream_time_ms = recompute.stream_time_ms();
                apply(recompute.store(), offset as i64, stream_time_ms, begun);
            }
        }
        let stream_time_ms = recompute.stream_time_ms();
        if cut.is_none() {
            while !recompute.finish_some().expect("the store can be read") {}
            apply(recompute.store(), to as i64, stream_time_ms, None);
        }
        let mut store = recompute.into_store();
        store.discard();
        (store, stream_time_ms)
    }

    /// A run to `state`, a replay from `to`, perhaps with the rebuild cut short.
    fn replay(&self, state: usize, to: usize, cut: Option<Cut>) {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let directory = state_directory(folder.path(), &self.topology);
        let open = || directory.open(0).expect("the store can be opened").expect("nobody else has it");
        self.run(open(), i64::MIN, 0, state).close().expect("the store can be closed");
        if let Some(cut) = cut {
            self.recompute(open(), cut.to, Some(cut)).0.close().expect("the store can be closed");
        }
        let (store, stream_time_ms) = self.recompute(open(), to, None);
        self.run(store, stream_time_ms, to, self.raw.len());
    }
}

fn apply(store: &mut Store, position: i64, stream_time_ms: i64, rebuilding: Option<Begun>) {
    store.seal();
    let positions =
        Positions { changelog: position, ids: position, input: position, stream_time_ms, rebuilding };
    store.apply(&positions).expect("the store can be written");
}

fn replay_everywhere(name: &str, partition: &Partition, random: &mut Random, times: u64) {
    let length = partition.raw.len() as u64;
    if length == 0 {
        return;
    }
    for _ in 0..times {
        let state = random.below(length) + 1;
        let to = if random.once_in(5) { 0 } else { random.below(state) };
        // It may have been asked for less before.
        let before = if random.once_in(2) { to } else { to + random.below(state - to) };
        let cut = random.once_in(2).then(|| Cut {
            to: before as usize,
            at: random.below(before + 1) as usize,
            writes_each: if random.once_in(2) { usize::MAX } else { 11 },
        });
        println!("{name}: state at {state}, replay from {to}, {cut:?}");
        partition.replay(state as usize, to as usize, cut);
    }
}

#[test]
fn every_data_set_replays_to_the_same_bytes_from_any_position() {
    let mut random = Random::new();
    for set in datasets::all() {
        let topology = topology(&set.settings());
        let raw = set.raw();
        for partition in 0..PARTITIONS {
            let mut raw: Vec<RawLine> =
                raw.iter().filter(|raw| raw.partition == partition).cloned().collect();
            raw.sort_by_key(|raw| raw.offset);
            assert!(raw.iter().enumerate().all(|(offset, raw)| raw.offset == offset as i64), "{}", set.name);
            replay_everywhere(set.name, &Partition::new(&topology, raw), &mut random, 6);
        }
    }
}

#[test]
fn a_native_event_that_would_not_fit_still_meets_its_twin_in_a_rebuild() {
    let topology = topology("");
    let event = |offset: i64, event_type, status, notes: usize| {
        let ticket = serde_json::json!({"id": "T-1", "status": {"id": status}});
        let mut envelope =
            story::envelope(&format!("event-{offset}"), event_type, 1_767_571_200_000 + offset, ticket);
        // Many strings, none of which is worth cutting.
        envelope["payload"]["notes"] = vec!["a note of four and thirty letters."; notes].into();
        let mut raw = story::record("T-1", envelope.to_string().as_bytes());
        (raw.partition, raw.offset) = (0, offset);
        raw
    };
    let partition = Partition::new(
        &topology,
        vec![
            event(0, "ticket:created", "open", 0),
            event(1, "ticket:updated", "closed", 0),
            event(2, "ticket:status:changed", "closed", 9_000),
            event(3, "ticket:status:changed", "closed", 0),
        ],
    );
    let emitted: Vec<usize> = partition.emitted.iter().map(Vec::len).collect();
    assert_eq!(emitted, [1, 2, 0, 1], "the second announcement meets the first, so the third is news");
    partition.replay(4, 3, None);
}

/// Records of few tickets and few event ids, over many windows.
fn with_returning_ids(random: &mut Random) -> Vec<RawLine> {
    let mut time_ms = 1_767_571_200_000;
    (0..120)
        .map(|offset| {
            // Half a window or less, now and then backwards: many ids are just within it.
            time_ms += random.below(6 * 3_600_000) as i64;
            let timestamp_ms =
                time_ms - if random.once_in(4) { random.below(30 * 3_600_000) as i64 } else { 0 };
            let uid = format!("T-{}", random.below(8));
            let status = ["open", "closed", "waiting"][random.below(3) as usize];
            let event_type = match random.below(9) {
                0 => "ticket:created",
                1 => "ticket:deleted",
                2 => "ticket:comment:added",
                3 | 4 => "ticket:status:changed",
                _ => "ticket:updated",
            };
            let id = format!("event-{}", random.below(30));
            let ticket = serde_json::json!({"id": uid, "status": {"id": status}});
            let time = timestamp_ms - random.below(3) as i64 * 3_600_000;
            let mut envelope = story::envelope(&id, event_type, time, ticket.clone());
            if event_type == "ticket:deleted" {
                envelope["payload"] = serde_json::json!({ "previousTicket": ticket });
            }
            let key = (!random.once_in(6)).then(|| uid.into_bytes());
            let value = (!random.once_in(20)).then(|| envelope.to_string().into_bytes());
            RawLine { partition: 0, offset, timestamp_ms, key, value, headers: Vec::new() }
        })
        .collect()
}

#[test]
fn event_ids_that_return_across_tickets_and_windows_are_judged_as_the_first_time() {
    let mut random = Random::new();
    let topology = topology("policies: { dedupe_window: 24h }");
    for round in 0..40 {
        // Now and then chance makes too little happen: then it has another try.
        let partition = (0..10)
            .map(|_| Partition::new(&topology, with_returning_ids(&mut random)))
            .find(|partition| {
                let lines = partition.emitted.iter().flatten();
                let derived = lines.filter(|line| line.contains("\"derived\"")).count();
                let silent = partition.emitted.iter().filter(|lines| lines.is_empty()).count();
                derived > 5 && silent > 5
            })
            .expect("much is derived, and there are duplicates and twins");
        replay_everywhere(&format!("round {round}"), &partition, &mut random, 4);
    }
}
