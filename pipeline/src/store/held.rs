//! Which stores are open in this process, and which are known to be damaged.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::anyhow;
use rocksdb::ErrorKind;

/// A store whose bytes are not those that were written. Only the changelog can
/// mend it: the store is to be closed, and is wiped when it is opened next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The partition.
    pub partition: i32,
    /// What was found.
    pub why: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store of partition {} is damaged: {}", self.partition, self.why)
    }
}

impl std::error::Error for Damaged {}

/// What a process knows of its stores.
#[derive(Debug, Default)]
pub(super) struct Known {
    open: HashSet<i32>,
    damaged: HashMap<i32, String>,
}

/// Says that a partition's store is open in this process, as long as it lives.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) partition: i32,
    all: Arc<Mutex<Known>>,
}

impl Held {
    /// `None` where another worker of this process has the store open.
    pub(super) fn take(partition: i32, all: &Arc<Mutex<Known>>) -> Option<Held> {
        let taken = all.lock().unwrap_or_else(PoisonError::into_inner).open.insert(partition);
        taken.then(|| Held { partition, all: Arc::clone(all) })
    }

    /// How many stores are open in this process.
    pub(super) fn count(&self) -> usize {
        self.known().open.len().max(1)
    }

    /// What damage was found while the store was open, if any; it is forgotten.
    pub(super) fn take_damage(&self) -> Option<String> {
        self.known().damaged.remove(&self.partition)
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.known().damaged.contains_key(&self.partition)
    }

    /// Notes what was found.
    pub(super) fn damaged(&self, why: String) -> anyhow::Error {
        self.known().damaged.entry(self.partition).or_insert_with(|| why.clone());
        Damaged { partition: self.partition, why }.into()
    }

    /// What RocksDB's error asks for. A checksum that does not fit, or a file
    /// that is gone under it, is damage; a disk that is full or cannot be written
    /// is not, and a person has to mend it.
    pub(super) fn judge(&self, error: rocksdb::Error) -> anyhow::Error {
        let kind = error.kind();
        let text = error.into_string();
        if kind == ErrorKind::Corruption || text.contains("No such file or directory") {
            return self.damaged(text);
        }
        if text.contains("No space left on device") {
            return anyhow!(text).context(
                "the disk is full: make room and start again (nothing is lost, for the store trails the log)",
            );
        }
        anyhow!(text)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.known().open.remove(&self.partition);
    }
}
