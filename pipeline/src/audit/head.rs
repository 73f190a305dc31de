//! What is known of the time before the raw topic's first record, where
//! retention has cut its head, and so what can be proven behind it.
//!
//! Entries that were written first behind the cut can be recomputed; the others'
//! past is gone. It does not compare anything.

use std::collections::HashSet;

use anyhow::{Context, Result};
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;

use super::cut::Input;
use super::reading::{self, Progress, Range};
use crate::clients::{self, Logs};
use crate::commit_record::IdsRecord;
use crate::entry;
use crate::store::{Positions, Store, Writes};
use crate::topics;
use crate::topology::Topology;

/// One write to a scratch store is at most so large.
const WRITE_BYTES_MAX: usize = 1024 * 1024;

/// What the changelog remembers of a partition, at the cut.
#[derive(Debug)]
pub(super) struct Changelog {
    /// The last entry of each ticket before the cut that compaction has left.
    pub(super) store: Store,
    /// Tickets that were written behind the cut: compaction may have taken what they were at the cut.
    pub(super) moved_on: HashSet<Vec<u8>>,
    /// Tickets that were written behind the position of the store on disk.
    pub(super) behind_store: HashSet<Vec<u8>>,
}

impl Changelog {
    /// Reads it into a scratch store; `store_at` is the position of the store on disk.
    ///
    /// # Errors
    /// Where it cannot be read, or the disk not be written.
    pub(super) fn read(
        topology: &Topology,
        input: &Input,
        mut store: Store,
        store_at: Option<i64>,
        progress: &Progress,
    ) -> Result<Changelog> {
        let topic = &topology.changelog_topic;
        let (from, stable) = bounds(topology, topic, input.partition)?;
        let end = input.ends.map_or(0, |ends| ends.changelog);
        let (mut moved_on, mut behind_store) = (HashSet::new(), HashSet::new());
        let (mut writes, mut written) = (Writes::default(), 0);
        let range = Range { partition: input.partition, from, to: stable };
        reading::read(topology, topic, &[range], progress, |record| {
            let uid = record.key().context("a record of the changelog without a key")?;
            if record.offset() >= end {
                moved_on.insert(uid.to_vec());
                return Ok(());
            }
            if store_at.is_some_and(|at| record.offset() >= at) {
                behind_store.insert(uid.to_vec());
            }
            writes.entry(uid, record.payload());
            if writes.size_bytes() >= WRITE_BYTES_MAX {
                written += 1;
                store.write(std::mem::take(&mut writes), &scratch_positions(written, i64::MIN), true)?;
            }
            Ok(())
        })?;
        store.write(writes, &scratch_positions(written + 1, i64::MIN), true)?;
        Ok(Changelog { store, moved_on, behind_store })
    }
}

/// A scratch store follows no log; what it is asked for is the window alone.
pub(super) fn scratch_positions(written: i64, stream_time_ms: i64) -> Positions {
    Positions { changelog: written, ids: written, input: written, stream_time_ms, rebuilding: None }
}

/// What can be proven behind the cut of the raw topic's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    low: i64,
    /// The greatest Kafka timestamp before the first record, as far as it is known.
    pub(super) stream_time_ms: i64,
    /// From this stream time on, no duplicate of what is gone can be within the window.
    duplicates_until_ms: i64,
}

impl Head {
    /// `None` where nothing of what the pipeline read is gone. The ids from before
    /// the first record that are still known enter the store.
    ///
    /// # Errors
    /// Where the ids log cannot be read, or the disk not be written.
    pub(super) fn look(
        topology: &Topology,
        input: &Input,
        store: &mut Store,
        progress: &Progress,
    ) -> Result<Option<Head>> {
        let (low, Some(ends)) = (input.low, input.ends) else { return Ok(None) };
        if low == 0 {
            return Ok(None);
        }
        let topic = &topology.ids_topic;
        let (from, _) = bounds(topology, topic, input.partition)?;
        let mut before = i64::MIN;
        let mut was_read_before = false;
        let mut first_known_ms = None;
        let mut writes = Writes::default();
        let range = Range { partition: input.partition, from, to: ends.ids };
        reading::read(topology, topic, &[range], progress, |record| {
            let IdsRecord::Commit(commit) = IdsRecord::decode(record.payload().unwrap_or_default())? else {
                return Ok(());
            };
            first_known_ms.get_or_insert(commit.stream_time_ms);
            if commit.input <= low {
                was_read_before = true;
                before = before.max(commit.stream_time_ms);
            }
            for (id, seen) in commit.ids.iter().filter(|(_, seen)| seen.offset < low) {
                was_read_before = true;
                before = before.max(seen.timestamp_ms);
                writes.id(id, *seen);
            }
            if writes.size_bytes() >= WRITE_BYTES_MAX {
                store.write(std::mem::take(&mut writes), &scratch_positions(0, i64::MIN), true)?;
            }
            Ok(())
        })?;
        store.write(writes, &scratch_positions(0, i64::MIN), true)?;
        let is_log_whole = from == 0;
        if is_log_whole && !was_read_before {
            return Ok(None);
        }
        let window_ms = topology.policies.dedupe_window_ms;
        let known_ms = first_known_ms.unwrap_or(i64::MAX);
        let reaches_back = is_log_whole || known_ms < before.saturating_sub(window_ms);
        let duplicates_until_ms =
            if reaches_back { i64::MIN } else { known_ms.max(before).saturating_add(window_ms) };
        Ok(Some(Head { low, stream_time_ms: before, duplicates_until_ms }))
    }

    /// Whether what a record emits can be proven; `entry` is its ticket's at the cut.
    pub(super) fn proves(&self, offset: i64, stream_time_ms: i64, entry: Option<&[u8]>) -> bool {
        let first = entry.and_then(entry::first_offset);
        stream_time_ms > self.duplicates_until_ms
            && first.is_some_and(|first| first >= self.low && offset >= first)
    }

    /// Whether the state of a ticket can be recomputed.
    pub(super) fn proves_state(&self, entry: Option<&[u8]>) -> bool {
        entry.and_then(entry::first_offset).is_some_and(|first| first >= self.low)
    }
}

pub(super) fn bounds(topology: &Topology, topic: &str, partition: i32) -> Result<(i64, i64)> {
    let reader: BaseConsumer<Logs> =
        clients::log_reader(topology).create_with_context(Logs).context("create a client")?;
    topics::bounds(&reader, topic, partition)
}
