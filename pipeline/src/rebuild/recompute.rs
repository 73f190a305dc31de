//! The state as it was at an earlier position, from the state as it is and the
//! raw records before that position.
//!
//! *Entries.* An entry that was last written before the position is as it was
//! there: forgetting writes only tombstones. All others are removed, and every
//! ticket that is then without an entry is recomputed by the real task, its
//! outgoing records thrown away. That a removed ticket had no entry there either
//! does no harm: recomputing it comes to nothing. A record at or before the
//! offset that last wrote its ticket's entry is in that entry and is skipped, so
//! a rebuild that was cut short is simply begun again: what it had recomputed is
//! true as far as it goes.
//!
//! *Ids.* Of each the store knows the last occurrence. For a record at offset o:
//!
//! | known at | then o was |
//! |---|---|
//! | o | processed |
//! | before o, within the window | a duplicate |
//! | before o, older | processed |
//! | behind o, before the position | processed or a duplicate: the records read so far say |
//! | at the position or behind | void, like not at all |
//! | not at all | forgotten since, or never seen: the records read so far say |
//!
//! So the ids of skipped records are noted too, save those that the state's own
//! window still holds: their last occurrence is the one that is known, for an
//! occurrence is replaced only when it is older than the window. Noted ids stay
//! in memory and are forgotten with the window; those left at the end enter the
//! store. An id that is known behind o is kept, for the task writes an earlier
//! occurrence in its place: it makes duplicates of records behind it, and is put
//! back at the end.
//!
//! Two things are not known of a skipped record: whether something else than what
//! it says by itself could not be made to fit (a derived event, its ticket's
//! entry, all that it would emit), so that it went to the dead-letter topic and
//! its id was not seen; and whether a native specific met its twin, so that it
//! did not need to fit. A skipped record counts as seen where what it says by
//! itself fits.
//!
//! It does not know Kafka, nor how what it writes is committed.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use foldhash::fast::RandomState;

use crate::entry;
use crate::record::{Outbox, RawRecord};
use crate::store::{EventHash, Seen, Store};
use crate::task::{Identity, Task};
use crate::topology::Topology;

/// One step reads at most so many entries.
const ENTRIES_STEP: usize = 500;

/// Of so many tickets it is kept in memory whether their records are skipped.
const TICKETS_MAX: usize = 4_000_000;

/// So many noted ids stay in memory; what is beyond enters the store.
const NOTED_MAX: usize = 4_000_000;
const NOTED_PRUNE_MIN: usize = 65_536;

/// So many noted ids enter the store at a time: what a transaction can take.
const NOTED_STEP: usize = 100_000;

/// What is emitted is thrown away, and in portions like this where it is much.
const OUTBOX_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries that were written at the position or behind it.
    pub removed: u64,
    /// Of those, the ones first written by a record that the raw topic no longer holds.
    pub past_gone: u64,
    /// Raw records that were read.
    pub records: u64,
    /// Of those, the ones processed anew.
    pub processed: u64,
}

/// A state on its way back to an earlier position.
#[derive(Debug)]
pub struct Recompute {
    task: Task,
    to: i64,
    /// No entry is half recomputed: one that is there is as it was.
    is_whole: bool,
    /// The window of the state as it is holds what is as new as this.
    window_from_ms: i64,
    removed_up_to: Option<Vec<u8>>,
    /// Up to which offset a ticket's records are skipped, by the hash of its uid.
    skip_until: HashMap<EventHash, i64, RandomState>,
    noted: HashMap<EventHash, Seen, RandomState>,
    noted_prune_at: usize,
    /// Noted ones of which the store knows a later occurrence, where memory must have room.
    aside: HashMap<EventHash, Seen, RandomState>,
    /// Known occurrences behind a record that is processed.
    later: HashMap<EventHash, Seen, RandomState>,
    outbox: Outbox,
    counts: Counts,
}

impl Recompute {
    /// Begins with the state as it is, for the position `to`. `is_whole` says
    /// that no attempt before this one has changed it.
    #[must_use]
    pub fn begin(
        topology: &Arc<Topology>,
        partitions: i32,
        store: Store,
        to: i64,
        is_whole: bool,
    ) -> Recompute {
        let stream_time_ms = store.positions().map_or(i64::MIN, |at| at.stream_time_ms);
        let window_from_ms = stream_time_ms.saturating_sub(topology.policies.dedupe_window_ms);
        Recompute {
            // Stream time begins with the records that are read.
            task: Task::new(Arc::clone(topology), partitions, store, i64::MIN),
            to,
            is_whole,
            // What an attempt before this one wrote over is not known any more.
            window_from_ms: if is_whole { window_from_ms } else { i64::MAX },
            removed_up_to: None,
            skip_until: HashMap::default(),
            noted: HashMap::default(),
            noted_prune_at: NOTED_PRUNE_MIN,
            aside: HashMap::default(),
            later: HashMap::default(),
            outbox: Outbox::default(),
            counts: Counts::default(),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The state.
    #[must_use]
    pub fn store(&mut self) -> &mut Store {
        &mut self.task.store
    }

    /// The greatest Kafka timestamp so far, in milliseconds.
    #[must_use]
    pub fn stream_time_ms(&self) -> i64 {
        self.task.stream_time_ms()
    }

    /// Lets stream time go on: to where it was before the first record that is there.
    pub fn pass(&mut self, timestamp_ms: i64) {
        self.task.pass(timestamp_ms);
    }

    /// Removes some of the entries written at the position or behind it, before
    /// any record is read; `true` when none is left. `low` is where the raw
    /// topic begins.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn remove_some(&mut self, low: i64) -> Result<bool> {
        let places = self.task.store.entries_after(self.removed_up_to.as_deref(), ENTRIES_STEP)?;
        for (uid, entry) in &places {
            let (written_at, first_offset) = entry::written_and_first(entry)
                .with_context(|| format!("read the entry of ticket \"{}\"", uid.escape_ascii()))?;
            if written_at >= self.to {
                self.task.store.put_entry(uid, None);
                self.counts.removed += 1;
                self.counts.past_gone += u64::from(first_offset < low);
            }
        }
        let Some((last, _)) = places.into_iter().next_back() else { return Ok(true) };
        self.removed_up_to = Some(last);
        Ok(false)
    }

    /// Takes one raw record before the position, in the order of the log.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn take(&mut self, record: &RawRecord<'_>) -> Result<()> {
        self.counts.records += 1;
        // A re-keyed record's key is its ticket's too.
        if let Some(uid) = record.key
            && record.offset <= self.skip_until(uid)?
        {
            self.task.pass(record.timestamp_ms);
            // The fast way: neither parsed nor looked up.
            if record.timestamp_ms >= self.window_from_ms {
                return Ok(());
            }
            return match self.task.identify(record) {
                Some(Identity { id, fits: true, .. }) => self.note(id, record),
                _ => Ok(()),
            };
        }
        let Some(Identity { uid, id, fits }) = self.task.identify(record) else {
            self.task.pass(record.timestamp_ms);
            return Ok(());
        };
        let uid = uid.into_owned();
        if record.key.is_none() && record.offset <= self.skip_until(uid.as_bytes())? {
            self.task.pass(record.timestamp_ms);
            return if fits { self.note(id, record) } else { Ok(()) };
        }
        self.process(id, record)
    }

    fn process(&mut self, id: EventHash, record: &RawRecord<'_>) -> Result<()> {
        self.task.pass(record.timestamp_ms);
        if self.is_known_duplicate(&id, record) {
            return Ok(());
        }
        let known = self.task.store.seen(&id)?;
        if let Some(later) = known.filter(|known| known.offset > record.offset && known.offset < self.to) {
            self.later.insert(id, later);
        }
        self.counts.processed += 1;
        self.task.process_in_parts(record, &mut self.outbox, OUTBOX_BYTES_MAX, &mut |_| {})?;
        Ok(())
    }

    /// Up to which offset a ticket's records are in its entry already.
    fn skip_until(&mut self, uid: &[u8]) -> Result<i64> {
        let ticket = *blake3::hash(uid).as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes");
        if let Some(offset) = self.skip_until.get(&ticket) {
            return Ok(*offset);
        }
        if self.skip_until.len() >= TICKETS_MAX {
            // Which entries are recomputed ones is forgotten with it.
            self.skip_until.clear();
            self.is_whole = false;
        }
        let written_at = self.task.store.entry(uid)?.and_then(|entry| crate::entry::written_at(&entry));
        let offset = written_at.map_or(-1, |written_at| if self.is_whole { self.to - 1 } else { written_at });
        self.skip_until.insert(ticket, offset);
        Ok(offset)
    }

    /// Whether an occurrence that the store does not hold makes a record a duplicate.
    fn is_known_duplicate(&self, id: &EventHash, record: &RawRecord<'_>) -> bool {
        let known = [&self.noted, &self.aside, &self.later];
        known.into_iter().any(|known| self.is_within(known.get(id).copied(), record))
    }

    /// Whether an occurrence makes a record a duplicate.
    fn is_within(&self, seen: Option<Seen>, record: &RawRecord<'_>) -> bool {
        let forgotten_before_ms = self.task.forgotten_before_ms();
        seen.is_some_and(|seen| seen.offset < record.offset && seen.timestamp_ms >= forgotten_before_ms)
    }

    /// Notes the id of a record that is not processed, unless it was a duplicate.
    fn note(&mut self, id: EventHash, record: &RawRecord<'_>) -> Result<()> {
        if self.is_known_duplicate(&id, record) || self.is_within(self.task.store.seen(&id)?, record) {
            return Ok(());
        }
        self.noted.insert(id, Seen { offset: record.offset, timestamp_ms: record.timestamp_ms });
        if self.noted.len() >= self.noted_prune_at {
            let forgotten_before_ms = self.task.forgotten_before_ms();
            self.noted.retain(|_, seen| seen.timestamp_ms >= forgotten_before_ms);
            self.aside.retain(|_, seen| seen.timestamp_ms >= forgotten_before_ms);
            if self.noted.len() >= NOTED_MAX {
                self.store_some_noted()?;
            }
            self.noted_prune_at = (2 * self.noted.len()).clamp(NOTED_PRUNE_MIN, NOTED_MAX);
        }
        Ok(())
    }

    /// Lets some of the noted ids enter the store, save where it knows a later
    /// occurrence that is not void: those are set aside.
    fn store_some_noted(&mut self) -> Result<()> {
        let forgotten_before_ms = self.task.forgotten_before_ms();
        let some: Vec<EventHash> = self.noted.keys().take(NOTED_STEP).copied().collect();
        for id in some {
            let Some(seen) = self.noted.remove(&id) else { continue };
            let known = self.task.store.seen(&id)?;
            if known.is_some_and(|known| known.offset > seen.offset && known.offset < self.to) {
                self.aside.insert(id, seen);
            } else if seen.timestamp_ms >= forgotten_before_ms {
                self.task.store.see(id, seen);
            }
        }
        Ok(())
    }

    /// All records before the position are taken: brings the ids to where they
    /// were, so many a step that a transaction can take them; `true` when all are.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn finish_some(&mut self) -> Result<bool> {
        if !self.noted.is_empty() {
            self.store_some_noted()?;
            return Ok(false);
        }
        for (id, later) in self.later.drain() {
            let known = self.task.store.seen(&id)?;
            if known.is_none_or(|known| known.offset < later.offset || known.offset >= self.to) {
                self.task.store.see(id, later);
            }
        }
        Ok(true)
    }

    /// The state, when it is what it was.
    #[must_use]
    pub fn into_store(self) -> Store {
        self.task.store
    }
}
