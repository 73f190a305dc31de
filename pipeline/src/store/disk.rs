//! Committed state, on disk: one RocksDB for each input partition.
//!
//! There is no write-ahead log: the changelog is one. Data and positions share
//! a column family, so whatever survives a crash is a prefix of the writes,
//! with the positions that belong to it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use rocksdb::{DB, Direction, FlushOptions, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::directory::Shared;
use super::held::{Damaged, Held};
use super::keys::{
    ENTRY, ID, IDENTITY, IDLE, POSITIONS, idle_key, keyed, milestone_key, numbers, read_idle_key,
    read_numbers,
};
use super::opening::{FORMAT_VERSION, Found, table_options, wipe, wipe_damaged};
use super::positions::Positions;
use super::table::{self, Rows};
use super::{EventHash, Seen};
use crate::entry;

/// A window has so many milestones; the ids log is cut at one of them, so that
/// it holds at most this fraction more than the window.
const MILESTONES_PER_WINDOW: i64 = 64;

/// Of the stores' memory this part holds what is applied and not written yet,
/// and as much again what was written last.
const RECENT_SHARE: usize = 32;

/// So much is loaded at a time; more makes fewer and larger files.
const LOAD_BYTES_MIN: usize = 1024 * 1024;
const LOAD_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Entries may be large: of those that are read one after the other no more are held at a time.
pub(super) const ENTRIES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// RocksDB's properties that say how much its files hold: small values, and large ones.
const FILE_SIZES: [&str; 2] = ["rocksdb.live-sst-files-size", "rocksdb.live-blob-file-size"];

/// When an entry was last of use, and its uid.
pub(super) type IdleKey = (i64, Vec<u8>);

/// Writes that enter the disk together.
#[derive(Default)]
pub struct Writes {
    batch: WriteBatch,
    entries: u64,
}

impl std::fmt::Debug for Writes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writes").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Writes {
    /// With room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Writes {
        Writes { batch: WriteBatch::with_capacity_bytes(bytes), entries: 0 }
    }

    /// A ticket's entry; `None` is a tombstone.
    pub fn entry(&mut self, uid: &[u8], entry: Option<&[u8]>) {
        self.entries += 1;
        let key = keyed(ENTRY, uid);
        let Some(entry) = entry else { return self.batch.delete(key) };
        self.batch.put(key, entry);
        if let Some(since_ms) = entry::idle_since(entry) {
            self.batch.put(idle_key(since_ms, uid), []);
        }
    }

    /// An event id.
    pub fn id(&mut self, id: &EventHash, seen: Seen) {
        self.batch.put(keyed(ID, id), numbers([seen.offset, seen.timestamp_ms]));
    }

    /// How much it is by now, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.batch.size_in_bytes()
    }

    /// How many entries.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    pub(super) fn forget_idle(&mut self, (since_ms, uid): &IdleKey) {
        self.batch.delete(idle_key(*since_ms, uid));
    }
}

/// What [`Disk::idle_before`] found.
#[derive(Debug, Default)]
pub(super) struct Idle {
    pub(super) idle: Vec<IdleKey>,
    pub(super) stale: Vec<IdleKey>,
}

/// One partition's committed state.
pub(super) struct Disk {
    db: DB,
    path: PathBuf,
    shared: Arc<Shared>,
    held: Held,
    positions: Option<Positions>,
    applied_at_ms: i64,
    /// Ids older than this are dropped when RocksDB next rewrites them.
    ids_threshold_ms: Arc<AtomicI64>,
    /// (stream time, end of the ids log at that time), ascending.
    milestones: VecDeque<(i64, i64)>,
    /// Whether anything was taken in by [`Disk::load`].
    is_loaded: bool,
    records_unflushed: u64,
    flushed_at: Instant,
    dirty: bool,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("path", &self.path)
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens a store. What only the changelog can mend is wiped, and told.
    pub(super) fn open(path: PathBuf, shared: Arc<Shared>, held: Held) -> Result<Disk> {
        if let Some(why) = held.take_damage() {
            wipe_damaged(&path, &why)?;
        }
        match Found::read(&path, &shared, &held) {
            Err(error) if error.downcast_ref::<Damaged>().is_some() => {
                wipe_damaged(&path, &held.take_damage().unwrap_or_default())?;
            }
            Ok(found) if found.is_void => {
                tracing::warn!(
                    ?path,
                    "wiping a store that does not say what of the log it holds (it is of another version, or its \
                     restore was cut short): the changelog restores it"
                );
                drop(found);
                wipe(&path)?;
            }
            found => return Ok(Disk::new(found?, path, shared, held)),
        }
        Disk::open_as_it_is(path, shared, held)
    }

    /// Opens a store, and wipes nothing.
    pub(super) fn open_as_it_is(path: PathBuf, shared: Arc<Shared>, held: Held) -> Result<Disk> {
        Ok(Disk::new(Found::read(&path, &shared, &held)?, path, shared, held))
    }

    fn new(found: Found, path: PathBuf, shared: Arc<Shared>, held: Held) -> Disk {
        let Found { db, ids_threshold_ms, positions, applied_at_ms, milestones, .. } = found;
        let disk = Disk {
            db,
            path,
            shared,
            held,
            positions,
            applied_at_ms,
            ids_threshold_ms,
            milestones,
            is_loaded: false,
            records_unflushed: 0,
            flushed_at: Instant::now(),
            dirty: false,
        };
        disk.raise_ids_threshold();
        disk
    }

    fn judge(&self, what: &'static str) -> impl Fn(rocksdb::Error) -> anyhow::Error {
        move |error| self.held.judge(error).context(what)
    }

    pub(super) fn entry(&self, uid: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db.get(keyed(ENTRY, uid)).map_err(self.judge("read an entry"))
    }

    pub(super) fn seen(&self, id: &EventHash) -> Result<Option<Seen>> {
        let bytes = self.db.get_pinned(keyed(ID, id)).map_err(self.judge("read an event id"))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let [offset, timestamp_ms] =
            read_numbers(&bytes).ok_or_else(|| self.held.damaged("an event id cannot be read".into()))?;
        Ok(Some(Seen { offset, timestamp_ms }))
    }

    pub(super) fn entries_after(&self, uid: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut options = ReadOptions::default();
        // Uids are UTF-8; a key from here on is not a ticket's.
        options.set_iterate_upper_bound([ENTRY, 0xff]);
        // Each is read once, and those that are read often are to stay in the cache.
        options.fill_cache(false);
        // The least key behind the given one's is that one with a zero at its end.
        let start = uid.map_or_else(|| vec![ENTRY], |uid| [&keyed(ENTRY, uid), &[0][..]].concat());
        let rows = self.db.iterator_opt(IteratorMode::From(&start, Direction::Forward), options);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in rows.take(limit) {
            let (key, entry) = row.map_err(self.judge("read the entries"))?;
            bytes += entry.len();
            entries.push((key.get(1..).unwrap_or_default().to_vec(), entry.into_vec()));
            if bytes >= ENTRIES_BYTES_MAX {
                break;
            }
        }
        Ok(entries)
    }

    /// Index keys may outlive what they say of their entry, so each is held
    /// against the entry itself. `after` is where the last look ended.
    pub(super) fn idle_before(&self, before_ms: i64, after: Option<&IdleKey>, limit: usize) -> Result<Idle> {
        let mut found = Idle::default();
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(idle_key(before_ms, &[]));
        // The least key behind a given one is that one with a zero at its end.
        let start = after
            .map_or_else(|| vec![IDLE], |(since_ms, uid)| [&idle_key(*since_ms, uid)[..], &[0][..]].concat());
        for row in self.db.iterator_opt(IteratorMode::From(&start, Direction::Forward), options) {
            if found.idle.len() >= limit || found.stale.len() >= limit {
                break;
            }
            let (key, _) = row.map_err(self.judge("read the idle index"))?;
            let Some((since_ms, uid)) = read_idle_key(&key) else { continue };
            let entry = self.db.get_pinned(keyed(ENTRY, uid)).map_err(self.judge("read an entry"))?;
            let holds = entry.is_some_and(|entry| entry::idle_since(&entry) == Some(since_ms));
            if holds { &mut found.idle } else { &mut found.stale }.push((since_ms, uid.to_vec()));
        }
        Ok(found)
    }

    pub(super) fn write(&mut self, mut writes: Writes, positions: &Positions, is_level: bool) -> Result<()> {
        // On the way to the log's end the store is as old as it was: what lies
        // ahead may hold deletions from back then.
        let is_new = self.positions.is_none();
        let applied_at_ms = if is_level || is_new { now_ms() } else { self.applied_at_ms };
        if is_new {
            let identity = self.shared.identity(FORMAT_VERSION, self.held.partition);
            writes.batch.put(IDENTITY, identity);
        }
        writes.batch.put(POSITIONS, positions.to_bytes(applied_at_ms));
        let milestone = self.milestone_due(positions);
        if let Some((stream_time_ms, ids)) = milestone {
            writes.batch.put(milestone_key(stream_time_ms), numbers([ids]));
        }
        let forgotten = self.milestones_forgotten(positions);
        for (stream_time_ms, _) in self.milestones.iter().take(forgotten) {
            writes.batch.delete(milestone_key(*stream_time_ms));
        }
        // A rebuild writes ids that are older than what was forgotten before it.
        self.ids_threshold_ms.fetch_min(self.ids_threshold_ms_at(positions), Ordering::Relaxed);
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db
            .write_opt(writes.batch, &options)
            .map_err(|error| self.held.judge(error).context(format!("write to {:?}", self.path)))?;

        self.milestones.drain(..forgotten);
        self.milestones.extend(milestone);
        self.positions = Some(*positions);
        self.applied_at_ms = applied_at_ms;
        self.dirty = true;
        self.raise_ids_threshold();
        Ok(())
    }

    /// Takes in writes that are sorted first, much faster than [`Disk::write`]: as
    /// long as the store has no positions, which are written when all is there.
    /// Where that does not come to pass, the next opening wipes the store.
    pub(super) fn load(&mut self, mut writes: Writes, positions: &Positions) -> Result<()> {
        ensure!(self.positions.is_none(), "load into the store {:?}, which is not empty", self.path);
        let milestone = self.milestone_due(positions);
        if let Some((stream_time_ms, ids)) = milestone {
            writes.batch.put(milestone_key(stream_time_ms), numbers([ids]));
        }
        let table = self.path.join("load");
        let rows = Rows::of(&writes.batch)?;
        table::take_in(&self.db, &table_options(&self.shared), &table, &rows, !self.is_loaded)
            .map_err(|error| self.held.judge(error).context(format!("load into {:?}", self.path)))?;
        self.milestones.extend(milestone);
        self.is_loaded = true;
        Ok(())
    }

    /// How much is loaded at a time: where its rows stand takes memory too, and the other
    /// stores may be loaded as well.
    pub(super) fn load_bytes_max(&self) -> usize {
        (self.shared.settings.memory_bytes / 2 / self.held.count()).clamp(LOAD_BYTES_MIN, LOAD_BYTES_MAX)
    }

    pub(super) fn positions(&self) -> Option<Positions> {
        self.positions
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.held.is_damaged()
    }

    /// The wall clock's time when the store was last level with the log, in milliseconds since the epoch.
    pub(super) fn applied_at_ms(&self) -> i64 {
        self.applied_at_ms
    }

    pub(super) fn ids_forgotten_before(&self) -> Option<i64> {
        let positions = self.positions?;
        let threshold_ms = self.ids_threshold_ms_at(&positions);
        self.milestones
            .iter()
            .take_while(|(stream_time_ms, _)| *stream_time_ms < threshold_ms)
            .filter(|(_, ids)| *ids < positions.ids)
            // The commit record of that time stays: where the log begins with a
            // forgotten one, it is known that nothing of the window is missing.
            .map(|(_, ids)| ids - 1)
            .filter(|ids| *ids > 0)
            .last()
    }

    /// How much its files hold, in bytes; what RocksDB does not tell counts as nothing.
    pub(super) fn size_bytes(&self) -> u64 {
        FILE_SIZES.iter().filter_map(|name| self.db.property_int_value(*name).ok().flatten()).sum()
    }

    /// Counts changelog records that a crash would make a restart read again.
    pub(super) fn count(&mut self, records: u64) {
        self.records_unflushed += records;
    }

    pub(super) fn is_flush_due(&self, now: Instant) -> bool {
        let settings = &self.shared.settings;
        let interval = Duration::from_millis(settings.flush_interval_ms);
        self.records_unflushed >= settings.flush_records_max
            || now.saturating_duration_since(self.flushed_at) >= interval
    }

    /// How much may be applied before it is written; all stores together stay
    /// within their share of the memory.
    pub(super) fn recent_bytes_max(&self) -> usize {
        self.shared.settings.memory_bytes / RECENT_SHARE / self.held.count()
    }

    pub(super) fn close(mut self) -> Result<()> {
        self.flush(true)?;
        self.db.cancel_all_background_work(true);
        Ok(())
    }

    /// Removes everything and starts with an empty store.
    pub(super) fn wipe(self) -> Result<Disk> {
        let Disk { db, path, shared, held, .. } = self;
        drop(db);
        wipe(&path)?;
        Disk::open(path, shared, held)
    }

    /// Flushes and compacts, so that tests see what a compaction does.
    #[cfg(test)]
    pub(super) fn rewrite(&mut self) -> Result<()> {
        self.flush(true)?;
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }

    /// Makes what was written survive a crash; `wait` for its end, or only start it.
    pub(super) fn flush(&mut self, wait: bool) -> Result<()> {
        self.flushed_at = Instant::now();
        if !self.dirty {
            return Ok(());
        }
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        self.db
            .flush_opt(&options)
            .map_err(|error| self.held.judge(error).context(format!("flush {:?}", self.path)))?;
        self.records_unflushed = 0;
        self.dirty = false;
        Ok(())
    }

    fn raise_ids_threshold(&self) {
        if let Some(positions) = self.positions {
            self.ids_threshold_ms.store(self.ids_threshold_ms_at(&positions), Ordering::Relaxed);
        }
    }

    fn ids_threshold_ms_at(&self, positions: &Positions) -> i64 {
        positions.stream_time_ms.saturating_sub(self.shared.settings.dedupe_window_ms)
    }

    fn milestone_due(&self, positions: &Positions) -> Option<(i64, i64)> {
        let step_ms = (self.shared.settings.dedupe_window_ms / MILESTONES_PER_WINDOW).max(1);
        let due = match self.milestones.back() {
            None => true,
            Some((last_ms, _)) => positions.stream_time_ms >= last_ms.saturating_add(step_ms),
        };
        due.then_some((positions.stream_time_ms, positions.ids))
    }

    /// How many of the first milestones are of no more use: all that a later
    /// one, itself forgotten, makes superfluous.
    fn milestones_forgotten(&self, positions: &Positions) -> usize {
        let threshold_ms = self.ids_threshold_ms_at(positions);
        let forgotten =
            self.milestones.iter().take_while(|(stream_time_ms, _)| *stream_time_ms < threshold_ms).count();
        forgotten.saturating_sub(1)
    }
}

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
