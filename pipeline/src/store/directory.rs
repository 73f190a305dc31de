//! The state directory: one process at a time, an instance id that survives
//! restarts, and the partitions' stores with the memory that they share.
//!
//! Processes that are all started alike, as replicas are, cannot each be told a
//! directory: `instance-*` lets each take the first that is free.

use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use rocksdb::{Cache, WriteBufferManager};

use super::Store;
use super::disk::{Disk, now_ms};
use super::held::{Held, Known};
use crate::topology::Topology;

/// Unwritten changes of all stores together take at most so much memory.
const WRITE_BUFFERS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The last part of a path that stands for `instance-1`, `instance-2` and so on.
const ANY_INSTANCE: &str = "instance-*";
/// More processes than a raw topic has partitions have nothing to do.
const INSTANCES_MAX: usize = 1024;

/// What stores need to know.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The consumer group that the stores belong to.
    pub group: String,
    /// The raw topic that they belong to.
    pub topic: String,
    /// A store is flushed after so many changelog records,
    pub flush_records_max: u64,
    /// or after so many milliseconds, whichever comes first.
    pub flush_interval_ms: u64,
    /// How long event ids are remembered, in milliseconds of stream time.
    pub dedupe_window_ms: i64,
    /// Memory for the block cache and write buffers of all stores together.
    pub memory_bytes: usize,
}

impl StoreSettings {
    /// What a topology says of its stores.
    #[must_use]
    pub fn of(topology: &Topology) -> StoreSettings {
        StoreSettings {
            group: topology.group.clone(),
            topic: topology.input_topic().to_owned(),
            flush_records_max: topology.state.flush_records_max,
            flush_interval_ms: topology.state.flush_interval_ms,
            dedupe_window_ms: topology.policies.dedupe_window_ms,
            // A quarter: what clients and transactions take stands at `Member::new`.
            memory_bytes: topology.limits.memory_mb.saturating_mul(1024 * 1024) / 4,
        }
    }
}

/// The state directory, locked by this process.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    /// It was taken as the first that was free: its name is the instance's.
    taken: bool,
    shared: Arc<Shared>,
    held: Arc<Mutex<Known>>,
    /// The lock is held as long as this file is open, whatever ends the process.
    _lock: File,
}

/// What the memory that all stores share is used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SharedMemory {
    /// The block cache, write buffers included, in bytes.
    pub cache_bytes: u64,
    /// What it is bounded by.
    pub cache_bytes_max: u64,
    /// Of the cache, what is written and not yet in a file.
    pub write_buffers_bytes: u64,
}

/// What all stores of a process share.
pub(super) struct Shared {
    pub(super) settings: StoreSettings,
    pub(super) cache: Cache,
    pub(super) write_buffers: WriteBufferManager,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn identity(&self, version: u32, partition: i32) -> String {
        format!(
            "version {version}\ngroup {}\ntopic {}\npartition {partition}",
            self.settings.group, self.settings.topic
        )
    }
}

impl StateDirectory {
    /// Makes the directory where it does not exist, and locks it. A path that ends
    /// in `instance-*` stands for the first of `instance-1`, `instance-2`, … that
    /// no other process has: after a restart it is the same one, where all others
    /// still hold theirs.
    ///
    /// # Errors
    /// Where another process has it, or it cannot be made.
    pub fn lock(path: &Path, settings: StoreSettings) -> Result<StateDirectory> {
        if path.file_name().is_some_and(|name| name == ANY_INSTANCE) {
            for number in 1..=INSTANCES_MAX {
                let candidate = path.with_file_name(format!("instance-{number}"));
                if let Some(lock) = make_and_lock(&candidate)? {
                    return Ok(StateDirectory::new(candidate, true, lock, settings));
                }
            }
            bail!("all of {INSTANCES_MAX} state directories {path:?} are in use");
        }
        let Some(lock) = make_and_lock(path)? else {
            let owner = std::fs::read_to_string(path.join("lock")).unwrap_or_default();
            bail!(
                "the state directory {path:?} is in use by process {}: stop it, or give this one a directory of its \
                 own (STATE_DIR)",
                owner.trim()
            );
        };
        Ok(StateDirectory::new(path.to_owned(), false, lock, settings))
    }

    fn new(path: PathBuf, taken: bool, lock: File, settings: StoreSettings) -> StateDirectory {
        let write_buffers_bytes = (settings.memory_bytes / 2).min(WRITE_BUFFERS_BYTES_MAX);
        let cache = Cache::new_lru_cache(settings.memory_bytes);
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            write_buffers_bytes,
            false,
            cache.clone(),
        );
        StateDirectory {
            path,
            taken,
            shared: Arc::new(Shared { settings, cache, write_buffers }),
            held: Arc::default(),
            _lock: lock,
        }
    }

    /// The instance's id: the configured one, else the name of a directory that was
    /// taken, else one that is kept in the directory and made at its first use.
    ///
    /// # Errors
    /// Where it cannot be read or written, or all who take directories would have the same.
    pub fn instance(&self, configured: Option<&str>) -> Result<String> {
        match configured {
            Some(instance) if self.taken => bail!(
                "a state directory {ANY_INSTANCE} is for processes that are started alike, and all of them would be \
                 instance {instance:?}: leave runtime.instance empty (INSTANCE_ID), each is then named by its directory"
            ),
            Some(instance) => Ok(instance.to_owned()),
            None if self.taken => {
                Ok(self.path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            }
            None => self.kept_instance(),
        }
    }

    fn kept_instance(&self) -> Result<String> {
        let path = self.path.join("instance");
        match std::fs::read_to_string(&path) {
            Ok(instance) if !instance.trim().is_empty() => return Ok(instance.trim().to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read the state directory's {path:?}")),
        }
        // The hasher's keys come from the system's random numbers.
        let number = RandomState::new().hash_one((std::process::id(), now_ms()));
        let instance = format!("{number:016x}");
        std::fs::write(&path, &instance).with_context(|| format!("write the state directory's {path:?}"))?;
        Ok(instance)
    }

    /// What the memory that all stores share is used for.
    #[must_use]
    pub fn memory(&self) -> SharedMemory {
        SharedMemory {
            cache_bytes: self.shared.cache.get_usage() as u64,
            cache_bytes_max: self.shared.settings.memory_bytes as u64,
            write_buffers_bytes: self.shared.write_buffers.get_usage() as u64,
        }
    }

    /// Opens a partition's store, or makes one; `None` where another worker of
    /// this process has it open still. One that is damaged is wiped.
    ///
    /// # Errors
    /// Where it cannot be opened, or belongs to another group or topic.
    pub fn open(&self, partition: i32) -> Result<Option<Store>> {
        let Some(held) = Held::take(partition, &self.held) else { return Ok(None) };
        let path = self.path.join("stores").join(partition.to_string());
        Disk::open(path, Arc::clone(&self.shared), held).map(|disk| Some(Store::on_disk(disk)))
    }
}

impl StateDirectory {
    /// The same for somebody who only looks: a store that is damaged stays as it is.
    ///
    /// # Errors
    /// Where it is damaged too.
    pub fn open_to_look(&self, partition: i32) -> Result<Option<Store>> {
        let Some(held) = Held::take(partition, &self.held) else { return Ok(None) };
        let path = self.path.join("stores").join(partition.to_string());
        Disk::open_as_it_is(path, Arc::clone(&self.shared), held).map(|disk| Some(Store::on_disk(disk)))
    }
}

impl Store {
    /// Removes everything and starts with an empty store.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn wipe(self) -> Result<Store> {
        self.disk.map_or_else(|| Ok(Store::in_memory()), |disk| disk.wipe().map(Store::on_disk))
    }

    /// How long ago the store was level with the log, by the wall clock, in milliseconds.
    #[must_use]
    pub fn idle_ms(&self) -> i64 {
        self.disk.as_ref().map_or(0, |disk| now_ms().saturating_sub(disk.applied_at_ms()).max(0))
    }
}

/// `None` where another process has it.
fn make_and_lock(directory: &Path) -> Result<Option<File>> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("create the state directory {directory:?}"))?;
    let what = |verb: &str| format!("{verb} the lock of the state directory {directory:?}");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join("lock"))
        .with_context(|| what("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| what("take")),
    }
    file.set_len(0).with_context(|| what("write"))?;
    writeln!(file, "{}", std::process::id()).with_context(|| what("write"))?;
    Ok(Some(file))
}
