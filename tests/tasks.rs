//! The real tasks with no broker: records in, records out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ticket_pipeline::lines::{self, RawLine};
use ticket_pipeline::record::Outbox;
use ticket_pipeline::store::{Positions, StateDirectory, Store, StoreSettings};
use ticket_pipeline::task::{Outcome, Task};
use ticket_pipeline::topology::Topology;

use crate::lines::Line;

pub(crate) const PARTITIONS: i32 = 4;

/// A topology with these settings, and all else as shipped.
pub(crate) fn topology(settings: &str) -> Arc<Topology> {
    let topology = Topology::parse("topology.yaml", settings, &|_| None);
    Arc::new(topology.unwrap_or_else(|mistakes| panic!("{mistakes}")))
}

/// The tasks of a raw topic's partitions.
pub(crate) struct Tasks {
    topology: Arc<Topology>,
    tasks: BTreeMap<i32, Task>,
    outbox: Outbox,
}

impl Tasks {
    /// Over stores without a disk.
    pub(crate) fn in_memory(topology: &Arc<Topology>) -> Tasks {
        Tasks::over(topology, |_| (Store::in_memory(), i64::MIN))
    }

    /// Over the stores of a directory, which go on from where they were.
    pub(crate) fn on_disk(topology: &Arc<Topology>, state: &StateDirectory) -> Tasks {
        Tasks::over(topology, |partition| {
            let store = state.open(partition).expect("the store can be opened").expect("nobody else has it");
            let stream_time_ms = store.positions().map_or(i64::MIN, |positions| positions.stream_time_ms);
            (store, stream_time_ms)
        })
    }

    fn over(topology: &Arc<Topology>, mut store: impl FnMut(i32) -> (Store, i64)) -> Tasks {
        let task = |partition| {
            let (store, stream_time_ms) = store(partition);
            (partition, Task::new(Arc::clone(topology), PARTITIONS, store, stream_time_ms))
        };
        Tasks {
            topology: Arc::clone(topology),
            tasks: (0..PARTITIONS).map(task).collect(),
            outbox: Outbox::default(),
        }
    }

    /// One record in: what became of it, and what is emitted.
    pub(crate) fn process(&mut self, raw: &RawLine) -> (Outcome, Vec<Line>) {
        let task = self.tasks.get_mut(&raw.partition).expect("the record is of one of the partitions");
        let outcome = raw
            .with_record(|record| task.process(record, &mut self.outbox))
            .unwrap_or_else(|error| panic!("partition {} offset {}: {error:#}", raw.partition, raw.offset));
        let emitted = self.outbox.records().map(|record| {
            Line::parse(&lines::outgoing_line(record.destination.topic(&self.topology), &record))
        });
        (outcome, emitted.collect())
    }

    /// All records in: all that is emitted.
    pub(crate) fn process_all(&mut self, raw: &[RawLine]) -> Vec<Line> {
        raw.iter().flat_map(|raw| self.process(raw).1).collect()
    }

    /// As after a commit: the window forgets, and the stores follow.
    pub(crate) fn apply(&mut self, input: &BTreeMap<i32, i64>) {
        for (partition, task) in &mut self.tasks {
            let Some(position) = input.get(partition) else { continue };
            task.sweep(1_000).expect("the store can be read");
            task.store.seal();
            let positions = Positions {
                changelog: *position,
                ids: *position,
                input: *position,
                stream_time_ms: task.stream_time_ms(),
                rebuilding: None,
            };
            task.store.apply(&positions).expect("the store can be written");
        }
    }

    /// Closes the stores; what was not applied is gone.
    pub(crate) fn close(self) {
        for task in self.tasks.into_values() {
            task.store.close().expect("the store can be closed");
        }
    }
}

/// A state directory of its own, for the stores of a topology.
pub(crate) fn state_directory(path: &Path, topology: &Topology) -> StateDirectory {
    let settings = StoreSettings {
        group: topology.group.clone(),
        topic: topology.source.topic.clone(),
        flush_records_max: 100,
        flush_interval_ms: 1_000,
        dedupe_window_ms: topology.policies.dedupe_window_ms,
        memory_bytes: 16 * 1024 * 1024,
    };
    StateDirectory::lock(path, settings).expect("the directory is nobody else's")
}
