//! Named steps of a transaction at which a test lets the process die.
//!
//! Without the feature `crash-points` it is nothing at all.

/// The gaps in the order of commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A part of what a store lacks is read, and not written.
    Restore,
    /// All that an empty store lacked is in its files, and not the positions that make it count.
    Load,
    /// A part of a replay's state is recomputed, nothing of it is sent.
    Rebuild,
    /// Records are polled, no transaction is open.
    Begin,
    /// A transaction is open, nothing is sent.
    Process,
    /// Some records are sent, of however many.
    Send,
    /// Outputs are sent, the changelog is not.
    Changelog,
    /// All is sent, perhaps not delivered.
    Flush,
    /// All is delivered, the offsets are not sent.
    SendOffsets,
    /// The offsets are sent, nothing is committed.
    Commit,
    /// Kafka has committed, the store has not followed.
    Apply,
    /// The store is in memory ahead of its disk, which is about to be written.
    Write,
    /// The disk is written, and not flushed yet.
    StoreFlush,
}

/// Dies here if `CRASH_AT` names this step; with `<step>:<n>` at its n-th time.
#[cfg(feature = "crash-points")]
pub fn at(step: Step) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("CRASH_AT") else { return };
    let (name, time) = wanted.split_once(':').unwrap_or((wanted.as_str(), "1"));
    if format!("{step:?}") == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == time.parse().unwrap_or(1) {
        std::process::abort();
    }
}

/// Nothing: this program has no crash points.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn at(_step: Step) {}
