//! What a worker tells of itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::counts::Counts;
use crate::stage::Stage;

/// What a worker is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkerState {
    /// Its producer is being made: whatever a predecessor left open is ended first.
    #[default]
    Connecting,
    /// It waits for the group to say which partitions are its own.
    Joining,
    /// It has its partitions, if only none at all.
    Working,
    /// All is committed and its stores are closed.
    Ended,
}

/// Where a task is in its life, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// It waits for its turn to be restored.
    Created,
    /// Its store follows the log.
    Restoring,
    /// Its state is made what it was, for a replay.
    Rebuilding,
    /// It processes records.
    Running,
}

impl WorkerState {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Connecting => "connecting",
            WorkerState::Joining => "joining",
            WorkerState::Working => "working",
            WorkerState::Ended => "ended",
        }
    }
}

impl TaskState {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Created => "created",
            TaskState::Restoring => "restoring",
            TaskState::Rebuilding => "rebuilding",
            TaskState::Running => "running",
        }
    }
}

/// What a task has come to, as of its worker's last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStatus {
    /// Its input partition.
    pub partition: i32,
    /// Where it is in its life.
    pub state: TaskState,
    /// The committed input position; `None` before it runs.
    pub position: Option<i64>,
    /// How many records its restore or rebuild has left to read, at most; 0 where it waits.
    pub records_left: i64,
    /// Where in the ids log its window begins, at the latest.
    pub ids_forgotten_before: Option<i64>,
    /// What its store takes.
    pub store: StoreSize,
}

/// What a store takes; measured now and then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreSize {
    /// On the disk, in bytes.
    pub disk_bytes: u64,
    /// In memory of its own, beside the caches that all stores share, in bytes.
    pub memory_bytes: u64,
}

/// Something that went wrong and was overcome, or was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastTrouble {
    /// When.
    pub at: SystemTime,
    /// What.
    pub what: String,
}

/// What a worker has done, as of its last commit.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// What it is for.
    pub stage: Stage,
    /// What it is doing.
    pub state: WorkerState,
    /// What became of the records.
    pub counts: Counts,
    /// Commits.
    pub commits: u64,
    /// How often the group has given or taken partitions, or has told that nothing changes.
    pub rebalances: u64,
    /// Records that restores have read.
    pub restored_records: u64,
    /// Raw records that rebuilds have read.
    pub rebuilt_records: u64,
    /// Its tasks, by partition.
    pub tasks: Vec<TaskStatus>,
    /// When it last committed.
    pub last_commit: Option<SystemTime>,
    /// What went wrong last.
    pub last_trouble: Option<LastTrouble>,
}

/// A partition of the topic that a stage reads.
pub type Place = (Stage, i32);

impl Status {
    /// Where one of its tasks reads.
    #[must_use]
    pub fn place(&self, task: &TaskStatus) -> Place {
        (self.stage, task.partition)
    }
}

/// Where a worker publishes its status; nobody asks into its loop.
#[derive(Debug)]
pub struct Published {
    status: Mutex<Arc<Status>>,
    began: Instant,
    turned_ms: AtomicU64,
}

impl Default for Published {
    fn default() -> Published {
        Published { status: Mutex::default(), began: Instant::now(), turned_ms: AtomicU64::new(0) }
    }
}

impl Published {
    /// What the worker has published last.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long ago the worker's loop last turned.
    #[must_use]
    pub fn turned_ago(&self) -> Duration {
        let turned = Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(turned)
    }

    /// Puts a status in place of the one before.
    pub fn publish(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(status);
    }

    /// Says that the loop has turned.
    pub fn turn(&self) {
        let since_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(since_ms, Ordering::Relaxed);
    }
}
