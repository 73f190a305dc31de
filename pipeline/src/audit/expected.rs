//! What must be there: the raw topic through the pipeline's own task, over a
//! scratch store.
//!
//! It does not know what is in the outputs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rdkafka::message::Message;

use super::cut::Input;
use super::head::{Changelog, Head, scratch_positions};
use super::reading::{self, Progress, Range};
use crate::consumed::raw_record;
use crate::envelope::Code;
use crate::record::{Outbox, OutgoingRecord, RawRecord};
use crate::store::{StateDirectory, Store, StoreSettings};
use crate::task::{Fate, Task};
use crate::topology::Topology;

/// The overlay is applied after so many records.
const APPLY_RECORDS: usize = 4_096;
/// So many entries that the window has forgotten go with it at most.
const SWEEP_MAX: usize = 4_096;

/// Scratch stores, by their purpose, in one folder.
#[derive(Debug)]
pub(super) struct Scratch {
    expected: StateDirectory,
    changelog: StateDirectory,
}

impl Scratch {
    /// Makes the folder.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub(super) fn new(topology: &Topology, folder: &Path) -> Result<Scratch> {
        let settings = || StoreSettings {
            // RocksDB flushes when its memory is full; nothing here must outlive the process.
            flush_records_max: u64::MAX,
            flush_interval_ms: u64::MAX,
            ..store_settings(topology)
        };
        Ok(Scratch {
            expected: StateDirectory::lock(&folder.join("expected"), settings())?,
            changelog: StateDirectory::lock(&folder.join("changelog"), settings())?,
        })
    }

    /// An empty store for what the changelog says.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub(super) fn changelog(&self, partition: i32) -> Result<Store> {
        fresh(&self.changelog, partition)
    }
}

fn fresh(directory: &StateDirectory, partition: i32) -> Result<Store> {
    let store = directory.open(partition)?.context("open a scratch store that is open already")?;
    if store.positions().is_some() { store.wipe() } else { Ok(store) }
}

/// What stores of this topology need to know; two of each are open here.
pub(super) fn store_settings(topology: &Topology) -> StoreSettings {
    let settings = StoreSettings::of(topology);
    StoreSettings { memory_bytes: settings.memory_bytes / 2, ..settings }
}

/// An expected record, as it leaves the task.
#[derive(Debug)]
pub(super) struct Emitted<'a> {
    pub(super) raw: &'a RawRecord<'a>,
    /// Its place among what the raw record emits, from 0.
    pub(super) position: u32,
    pub(super) record: OutgoingRecord<'a>,
    /// Whether everything that it depends on was still there.
    pub(super) is_proven: bool,
}

/// What a recomputation came to.
#[derive(Debug)]
pub(super) struct Recomputed {
    /// Where the head of the raw topic is gone.
    pub(super) head: Option<Head>,
    /// Raw records that were read.
    pub(super) records: u64,
}

/// One input partition, to be recomputed.
pub(super) struct Recomputation<'a> {
    pub(super) topology: &'a Arc<Topology>,
    pub(super) scratch: &'a Scratch,
    pub(super) input: &'a Input,
    pub(super) partitions: i32,
    /// What the changelog says, where the raw topic's head is gone.
    pub(super) changelog: Option<&'a Changelog>,
    pub(super) progress: &'a Progress,
}

impl Recomputation<'_> {
    /// Hands every expected record before `until` to `emitted`, and the state at
    /// the committed position to `at_cut`.
    ///
    /// # Errors
    /// Where the raw topic cannot be read or the disk not be written, and those of
    /// the two.
    pub(super) fn run(
        &self,
        until: i64,
        mut emitted: impl FnMut(&Emitted<'_>) -> Result<()>,
        mut at_cut: impl FnMut(&Task, Option<&Head>) -> Result<()>,
    ) -> Result<Recomputed> {
        let Input { partition, low, committed, .. } = *self.input;
        let mut store = fresh(&self.scratch.expected, partition)?;
        let head = Head::look(self.topology, self.input, &mut store, self.progress)?;
        let stream_time_ms = head.map_or(i64::MIN, |head| head.stream_time_ms);
        let mut task = Task::new(Arc::clone(self.topology), self.partitions, store, stream_time_ms);
        let mut out = Outbox::default();
        let (mut unapplied, mut applied, mut is_past_cut) = (0, 0, false);
        let mut records = 0;
        let range = Range { partition, from: low, to: until };
        let source = self.topology.input_topic();
        reading::read(self.topology, source, &[range], self.progress, |message| {
            let is_cut = message.offset() >= committed && !is_past_cut;
            if is_cut || unapplied >= APPLY_RECORDS {
                applied += 1;
                apply(&mut task, applied)?;
                unapplied = 0;
            }
            if is_cut {
                is_past_cut = true;
                task.store.write_out()?;
                at_cut(&task, head.as_ref())?;
            }
            unapplied += 1;
            records += 1;
            let mut headers = Vec::new();
            let raw = raw_record(message, &mut headers);
            let outcome = task.process(&raw, &mut out)?;
            for (position, record) in (0..).zip(out.records()) {
                let is_proven = self.is_proven(head.as_ref(), &task, &raw, outcome.fate, &record)?;
                emitted(&Emitted { raw: &raw, position, record, is_proven })?;
            }
            Ok(())
        })?;
        if !is_past_cut {
            apply(&mut task, applied + 1)?;
            task.store.write_out()?;
            at_cut(&task, head.as_ref())?;
        }
        // The disk is given back at once; the next partition needs its own.
        task.store.wipe()?;
        Ok(Recomputed { head, records })
    }

    fn is_proven(
        &self,
        head: Option<&Head>,
        task: &Task,
        raw: &RawRecord<'_>,
        fate: Fate,
        record: &OutgoingRecord<'_>,
    ) -> Result<bool> {
        let (Some(head), Some(changelog)) = (head, self.changelog) else { return Ok(true) };
        match fate {
            Fate::DeadLetter(Code::PayloadTooLarge) => Ok(false),
            Fate::DeadLetter(_) => Ok(true),
            _ => {
                let entry = changelog.store.entry(record.key.unwrap_or_default())?;
                Ok(head.proves(raw.offset, task.stream_time_ms(), entry.as_deref()))
            }
        }
    }
}

fn apply(task: &mut Task, applied: i64) -> Result<()> {
    task.sweep(SWEEP_MAX)?;
    task.store.seal();
    let positions = scratch_positions(applied, task.stream_time_ms());
    task.store.apply(&positions)
}
