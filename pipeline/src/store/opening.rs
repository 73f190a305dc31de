//! Opening a store: what is found in its folder, and how its RocksDB is set up.
//!
//! It wipes what it is told to, and does not decide what must be.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use rocksdb::{
    BlockBasedOptions, CompactionDecision, DB, DBCompressionType, Direction, IteratorMode, Options,
    ReadOptions,
};

use super::directory::Shared;
use super::held::Held;
use super::keys::{ID, IDENTITY, MILESTONE, POSITIONS, read_numbers, time_of_bytes};
use super::positions::Positions;

/// A store of another version is not read: it is wiped, and restored from the log.
pub(super) const FORMAT_VERSION: u32 = 3;

/// A store's folder as it was found.
pub(super) struct Found {
    pub(super) db: DB,
    pub(super) ids_threshold_ms: Arc<AtomicI64>,
    pub(super) positions: Option<Positions>,
    pub(super) applied_at_ms: i64,
    pub(super) milestones: VecDeque<(i64, i64)>,
    /// There is something in it, and it belongs to no position.
    pub(super) is_void: bool,
}

impl Found {
    pub(super) fn read(path: &Path, shared: &Shared, held: &Held) -> Result<Found> {
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

pub(super) fn wipe(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow!(error).context(format!("wipe store {path:?}")))
        }
        _ => Ok(()),
    }
}

pub(super) fn wipe_damaged(path: &Path, why: &str) -> Result<()> {
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

pub(super) fn table_options(shared: &Shared) -> Options {
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
    // What is flushed is soon merged with more, and compressed then.
    options.set_compression_per_level(&[DBCompressionType::None, DBCompressionType::Lz4]);
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
