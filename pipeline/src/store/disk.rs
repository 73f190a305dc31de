//! Committed state, on disk: one RocksDB for each input partition.
//!
//! There is no write-ahead log: the changelog is one. Data and positions share
//! a column family, so whatever survives a crash is a prefix of the writes,
//! with the positions that belong to it.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use rocksdb::{
    BlockBasedOptions, CompactionDecision, DB, DBCompressionType, Direction, FlushOptions, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::directory::Shared;
use super::keys::{
    ENTRY, ID, IDENTITY, IDLE, MILESTONE, POSITIONS, idle_key, keyed, milestone_key, numbers, read_idle_key,
    read_numbers, time_of_bytes,
};
use super::{EventHash, Seen};
use crate::entry;

/// A store of another version is not read: it is wiped, and restored from the log.
const FORMAT_VERSION: u32 = 2;

/// A window has so many milestones; the ids log is cut at one of them, so that
/// it holds at most this fraction more than the window.
const MILESTONES_PER_WINDOW: i64 = 64;

/// Of the stores' memory this part holds what is applied and not written yet,
/// and as much again what was written last.
const RECENT_SHARE: usize = 8;

/// When an entry was last of use, and its uid.
pub(super) type IdleKey = (i64, Vec<u8>);

/// Which part of the log a store holds. All are positions: the next to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// In the changelog.
    pub changelog: i64,
    /// In the ids log.
    pub ids: i64,
    /// In the input partition; it and the stream time follow the ids log, whose
    /// commit records hold them. [`Positions::NO_INPUT`] before the first of them.
    pub input: i64,
    /// The greatest Kafka timestamp of the input records before that position.
    pub stream_time_ms: i64,
    /// A replay that has begun to make the state anew and has not ended: until
    /// then the state belongs to no input position.
    pub rebuilding: Option<Reset>,
}

/// What a replay asks for. Both are input positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// The state's, before.
    pub from: i64,
    /// The one that the state is to belong to.
    pub to: i64,
}

impl Positions {
    /// No commit record was read yet, so the input position is not known.
    pub const NO_INPUT: i64 = -1;

    fn to_bytes(self, applied_at_ms: i64) -> Vec<u8> {
        let Positions { changelog, ids, input, stream_time_ms, rebuilding } = self;
        let Reset { from, to } = rebuilding.unwrap_or(Reset { from: Self::NO_INPUT, to: Self::NO_INPUT });
        numbers([changelog, ids, input, stream_time_ms, applied_at_ms, from, to])
    }

    fn of_bytes(bytes: &[u8]) -> Option<(Positions, i64)> {
        let [changelog, ids, input, stream_time_ms, applied_at_ms, from, to] = read_numbers(bytes)?;
        let rebuilding = (to != Self::NO_INPUT).then_some(Reset { from, to });
        Some((Positions { changelog, ids, input, stream_time_ms, rebuilding }, applied_at_ms))
    }
}

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

/// Says that a partition's store is open in this process, as long as it lives.
#[derive(Debug)]
pub(super) struct Held {
    partition: i32,
    all: Arc<Mutex<HashSet<i32>>>,
}

impl Held {
    /// `None` where another worker of this process has the store open.
    pub(super) fn take(partition: i32, all: &Arc<Mutex<HashSet<i32>>>) -> Option<Held> {
        let taken = all.lock().unwrap_or_else(PoisonError::into_inner).insert(partition);
        taken.then(|| Held { partition, all: Arc::clone(all) })
    }
}

impl Held {
    /// How many stores are open in this process.
    fn count(&self) -> usize {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).len().max(1)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.partition);
    }
}

impl Disk {
    pub(super) fn open(path: PathBuf, shared: Arc<Shared>, held: Held) -> Result<Disk> {
        let ids_threshold_ms = Arc::new(AtomicI64::new(i64::MIN));
        let identity = shared.identity(FORMAT_VERSION, held.partition);
        let mut db = open_db(&path, &shared, &ids_threshold_ms)?;
        if let Some(found) = db.get(IDENTITY).context("read what the store belongs to")? {
            let found = String::from_utf8_lossy(&found).into_owned();
            if version(&found) == version(&identity) {
                ensure!(
                    found == identity,
                    "the store {path:?} belongs to {found:?} and not to {identity:?}: give each group and raw \
                     topic a state directory of its own"
                );
            } else {
                tracing::info!(?path, found, "wiping a store of another version: the changelog restores it");
                drop(db);
                destroy(&path)?;
                db = open_db(&path, &shared, &ids_threshold_ms)?;
            }
        }
        let (positions, applied_at_ms) = match db.get(POSITIONS).context("read the store's positions")? {
            Some(bytes) => {
                let Some((positions, applied_at_ms)) = Positions::of_bytes(&bytes) else {
                    bail!("the store {path:?} is damaged: remove it, and the changelog restores it");
                };
                (Some(positions), applied_at_ms)
            }
            None => (None, i64::MIN),
        };
        let milestones = read_milestones(&db)?;
        let disk = Disk {
            db,
            path,
            shared,
            held,
            positions,
            applied_at_ms,
            ids_threshold_ms,
            milestones,
            records_unflushed: 0,
            flushed_at: Instant::now(),
            dirty: false,
        };
        disk.raise_ids_threshold();
        Ok(disk)
    }

    pub(super) fn entry(&self, uid: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db.get(keyed(ENTRY, uid)).context("read an entry")
    }

    pub(super) fn seen(&self, id: &EventHash) -> Result<Option<Seen>> {
        let bytes = self.db.get_pinned(keyed(ID, id)).context("read an event id")?;
        Ok(bytes
            .and_then(|bytes| read_numbers(&bytes))
            .map(|[offset, timestamp_ms]| Seen { offset, timestamp_ms }))
    }

    pub(super) fn entries_after(&self, uid: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound([ENTRY + 1]);
        // Each is read once, and those that are read often are to stay in the cache.
        options.fill_cache(false);
        // The least key behind the given one's is that one with a zero at its end.
        let start = uid.map_or_else(|| vec![ENTRY], |uid| [&keyed(ENTRY, uid), &[0][..]].concat());
        let rows = self.db.iterator_opt(IteratorMode::From(&start, Direction::Forward), options);
        rows.take(limit)
            .map(|row| {
                let (key, entry) = row.context("read the entries")?;
                Ok((key.get(1..).unwrap_or_default().to_vec(), entry.into_vec()))
            })
            .collect()
    }

    /// Index keys may outlive what they say of their entry, so each is held
    /// against the entry itself.
    pub(super) fn idle_before(&self, before_ms: i64, limit: usize) -> Result<Idle> {
        let mut found = Idle::default();
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(idle_key(before_ms, &[]));
        for row in self.db.iterator_opt(IteratorMode::From(&[IDLE], Direction::Forward), options) {
            if found.idle.len() >= limit || found.stale.len() >= limit {
                break;
            }
            let (key, _) = row.context("read the idle index")?;
            let Some((since_ms, uid)) = read_idle_key(&key) else { continue };
            let entry = self.db.get_pinned(keyed(ENTRY, uid)).context("read an entry")?;
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
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(writes.batch, &options).with_context(|| format!("write to {:?}", self.path))?;

        self.milestones.drain(..forgotten);
        self.milestones.extend(milestone);
        self.positions = Some(*positions);
        self.applied_at_ms = applied_at_ms;
        self.dirty = true;
        self.raise_ids_threshold();
        Ok(())
    }

    pub(super) fn positions(&self) -> Option<Positions> {
        self.positions
    }

    /// The wall clock's time when the store was last level with the log, in milliseconds since the epoch.
    pub(super) fn applied_at_ms(&self) -> i64 {
        self.applied_at_ms
    }

    pub(super) fn ids_forgotten_before(&self) -> Option<i64> {
        let positions = self.positions?;
        let threshold_ms = positions.stream_time_ms.saturating_sub(self.shared.settings.dedupe_window_ms);
        self.milestones
            .iter()
            .take_while(|(stream_time_ms, _)| *stream_time_ms < threshold_ms)
            .map(|(_, ids)| *ids)
            .filter(|ids| *ids < positions.ids)
            .last()
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
        destroy(&path)?;
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
        self.db.flush_opt(&options).with_context(|| format!("flush {:?}", self.path))?;
        self.records_unflushed = 0;
        self.dirty = false;
        Ok(())
    }

    fn raise_ids_threshold(&self) {
        if let Some(positions) = self.positions {
            let threshold_ms = positions.stream_time_ms.saturating_sub(self.shared.settings.dedupe_window_ms);
            self.ids_threshold_ms.store(threshold_ms, Ordering::Relaxed);
        }
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
        let threshold_ms = positions.stream_time_ms.saturating_sub(self.shared.settings.dedupe_window_ms);
        let forgotten =
            self.milestones.iter().take_while(|(stream_time_ms, _)| *stream_time_ms < threshold_ms).count();
        forgotten.saturating_sub(1)
    }
}

fn open_db(path: &Path, shared: &Shared, ids_threshold_ms: &Arc<AtomicI64>) -> Result<DB> {
    std::fs::create_dir_all(path).with_context(|| format!("create {path:?}"))?;
    DB::open(&options(shared, Arc::clone(ids_threshold_ms)), path).with_context(|| {
        format!("open store {path:?} (where it is damaged: remove it, and the changelog restores it)")
    })
}

fn destroy(path: &Path) -> Result<()> {
    std::fs::remove_dir_all(path).with_context(|| format!("wipe store {path:?}"))
}

fn options(shared: &Shared, ids_threshold_ms: Arc<AtomicI64>) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&shared.cache);
    table.set_block_size(16 * 1024);
    table.set_bloom_filter(10.0, false);
    table.set_format_version(5);
    // In the cache, so that the limit on memory holds for them too.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_manager(&shared.write_buffers);
    options.set_write_buffer_size(16 * 1024 * 1024);
    // Most event ids are new: without it each would be searched for in vain.
    options.set_memtable_prefix_bloom_ratio(0.05);
    options.set_memtable_whole_key_filtering(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(4 * 1024);
    options.set_blob_compression_type(DBCompressionType::Lz4);
    options.set_enable_blob_gc(true);
    options.set_max_open_files(256);
    options.set_max_log_file_size(1024 * 1024);
    options.set_keep_log_file_num(2);
    options.set_stats_dump_period_sec(0);
    options.set_compaction_filter("forgotten event ids", move |_level, key, value| {
        let forgotten = key.first() == Some(&ID)
            && read_numbers::<2>(value)
                .is_some_and(|[_, timestamp_ms]| timestamp_ms < ids_threshold_ms.load(Ordering::Relaxed));
        if forgotten { CompactionDecision::Remove } else { CompactionDecision::Keep }
    });
    options
}

fn read_milestones(db: &DB) -> Result<VecDeque<(i64, i64)>> {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound([MILESTONE + 1]);
    let mut milestones = VecDeque::new();
    for row in db.iterator_opt(IteratorMode::From(&[MILESTONE], Direction::Forward), options) {
        let (key, value) = row.context("read the milestones")?;
        let time = key.get(1..).and_then(|bytes| bytes.try_into().ok()).map(time_of_bytes);
        if let (Some(stream_time_ms), Some([ids])) = (time, read_numbers(&value)) {
            milestones.push_back((stream_time_ms, ids));
        }
    }
    Ok(milestones)
}

fn version(identity: &str) -> Option<&str> {
    identity.lines().next()
}

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
