//! What a worker tells of itself.

use std::sync::{Arc, Mutex};

/// What a worker has done, as of its last commit.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Committed input records.
    pub records: u64,
    /// Committed events: forwarded and derived.
    pub events: u64,
    /// Raw records on their way to their tickets' partitions; they count above
    /// only once they are there.
    pub rekeyed: u64,
    /// Records that were duplicates.
    pub duplicates: u64,
    /// Records that policy or their twin dropped.
    pub dropped: u64,
    /// Records in the dead-letter topic.
    pub dead_letters: u64,
    /// Late records.
    pub late: u64,
    /// Outgoing records that were cut to the size limit.
    pub truncated: u64,
    /// Commits.
    pub commits: u64,
    /// The topic that it reads.
    pub topic: String,
    /// Its partitions, with the committed position of those that run.
    pub positions: Vec<(i32, Option<i64>)>,
    /// Where in the ids log a partition's window begins, at the latest.
    pub ids_forgotten_before: Vec<(i32, i64)>,
    /// How many records the restore under way has left to read, at most.
    pub restore_records_left: i64,
}

/// Where a worker publishes its status; nobody asks into its loop.
pub type Published = Mutex<Arc<Status>>;
