//! Committed state, on disk: one RocksDB for each input partition.
//!
//! There is no write-ahead log: the changelog is one. Data and positions share
//! a column family, so whatever survives a crash is a prefix of the writes,
//! with the positions that belong to it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use rocksdb::{
    BlockBasedOptions, CompactionDecision, DB, DBCompressionType, Direction, FlushOptions, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::directory::Shared;
use super::held::{Damaged, Held};
use super::keys::{
    ENTRY, ID, IDENTITY, IDLE, MILESTONE, POSITIONS, idle_key, keyed, milestone_key, numbers, read_idle_key,
    read_numbers, time_of_bytes,
};
use super::positions::Positions;
use super::{EventHash, Seen, table};
use crate::entry;

/// A store of another version is not read: it is wiped, and restored from the log.
const FORMAT_VERSION: u32 = 2;

/// A window has so many milestones; the ids log is cut at one of them, so that
/// it holds at most this fraction more than the window.
const MILESTONES_PER_WINDOW: i64 = 64;

/// Of the stores' memory this part holds what is applied and not written yet,
/// and as much again what was written last.
const RECENT_SHARE: usize = 32;

/// So much is loaded at a time; more makes fewer and larger files.
const LOAD_BYTES_MIN: usize = 1024 * 1024;
const LOAD_BYTES_MAX: usize = 32 * 1024 * 1024;

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

/// A store's folder as it was found.
struct Found {
    db: DB,
    ids_threshold_ms: Arc<AtomicI64>,
    positions: Option<Positions>,
    applied_at_ms: i64,
    milestones: VecDeque<(i64, i64)>,
    /// There is something in it, and it belongs to no position.
    is_void: bool,
}

impl Found {
    fn read(path: &Path, shared: &Shared, held: &Held) -> Result<Found> {
        let has_tables = has_tables(path);
        if has_tables && !path.join("CURRENT").exists() {
            return Err(held.damaged("its file CURRENT is gone".into()));
        }
        let ids_threshold_ms = Arc::new(AtomicI64::new(i64::MIN));
        let db = open_db(path, shared, held, &ids_threshold_ms)?;
        let get = |key| db.get(key).map_err(|error| held.judge(error));
        let identity = get(IDENTITY)?.map(|found| String::from_utf8_lossy(&found).into_owned());
        let is_known = identity.as_deref().and_then(version) == version(&shared.identity(FORMAT_VERSION, 0));
        // The version says how the positions are to be read.
        let positions = match get(POSITIONS)?.filter(|_| is_known) {
            Some(bytes) => Some(
                Positions::of_bytes(&bytes)
                    .ok_or_else(|| held.damaged("its positions cannot be read".into()))?,
            ),
            None => None,
        };
        if positions.is_some() {
            let (found, wanted) =
                (identity.unwrap_or_default(), shared.identity(FORMAT_VERSION, held.partition));
            ensure!(
                found == wanted,
                "the store {path:?} belongs to {found:?} and not to {wanted:?}: give each group and raw topic a state \
                 directory of its own, and each partition its own store; or remove it, and the changelog restores it"
            );
        }
        let is_void = positions.is_none() && (has_tables || !is_empty(&db, held)?);
        let milestones = read_milestones(&db, held)?;
        let (positions, applied_at_ms) = positions.unzip();
        let applied_at_ms = applied_at_ms.unwrap_or(i64::MIN);
        Ok(Found { db, ids_threshold_ms, positions, applied_at_ms, milestones, is_void })
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
        rows.take(limit)
            .map(|row| {
                let (key, entry) = row.map_err(self.judge("read the entries"))?;
                Ok((key.get(1..).unwrap_or_default().to_vec(), entry.into_vec()))
            })
            .collect()
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
        table::take_in(&self.db, &table_options(&self.shared), &table, &writes.batch, !self.is_loaded)
            .map_err(|error| self.held.judge(error).context(format!("load into {:?}", self.path)))?;
        self.milestones.extend(milestone);
        self.is_loaded = true;
        Ok(())
    }

    /// How much is loaded at a time: it is in memory twice while it is sorted, and
    /// the other stores may be loaded too.
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
        let threshold_ms = positions.stream_time_ms.saturating_sub(self.shared.settings.dedupe_window_ms);
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

fn open_db(path: &Path, shared: &Shared, held: &Held, ids_threshold_ms: &Arc<AtomicI64>) -> Result<DB> {
    std::fs::create_dir_all(path).with_context(|| format!("create {path:?}"))?;
    DB::open(&options(shared, Arc::clone(ids_threshold_ms)), path)
        .map_err(|error| held.judge(error).context(format!("open store {path:?}")))
}

fn is_empty(db: &DB, held: &Held) -> Result<bool> {
    let first = db.iterator(IteratorMode::Start).next().transpose();
    first.map(|first| first.is_none()).map_err(|error| held.judge(error).context("read the first row"))
}

/// Whether there are files with rows.
fn has_tables(path: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(path) else { return false };
    files.flatten().any(|file| {
        let name = file.file_name();
        [".sst", ".blob"].iter().any(|end| name.to_string_lossy().ends_with(end))
    })
}

fn wipe(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow!(error).context(format!("wipe store {path:?}")))
        }
        _ => Ok(()),
    }
}

fn wipe_damaged(path: &Path, why: &str) -> Result<()> {
    tracing::warn!(?path, why, "WIPING a damaged store: the changelog restores it");
    wipe(path)
}

fn options(shared: &Shared, ids_threshold_ms: Arc<AtomicI64>) -> Options {
    let mut options = table_options(shared);
    options.set_compaction_filter("forgotten event ids", move |_level, key, value| {
        let forgotten = key.first() == Some(&ID)
            && read_numbers::<2>(value)
                .is_some_and(|[_, timestamp_ms]| timestamp_ms < ids_threshold_ms.load(Ordering::Relaxed));
        if forgotten { CompactionDecision::Remove } else { CompactionDecision::Keep }
    });
    options
}

fn table_options(shared: &Shared) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&shared.cache);
    // An entry is read alone: what is read beside it takes memory from others.
    table.set_block_size(4 * 1024);
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
    options
}

fn read_milestones(db: &DB, held: &Held) -> Result<VecDeque<(i64, i64)>> {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound([MILESTONE + 1]);
    let mut milestones = VecDeque::new();
    for row in db.iterator_opt(IteratorMode::From(&[MILESTONE], Direction::Forward), options) {
        let (key, value) = row.map_err(|error| held.judge(error).context("read the milestones"))?;
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
