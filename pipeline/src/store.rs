//! One partition's state: what is committed, on disk, under what is not yet,
//! in memory.

use anyhow::Result;

/// A 128-bit digest of an event id.
pub type EventHash = [u8; 16];

/// Where and when an event id was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The offset in the input partition.
    pub offset: i64,
    /// The Kafka timestamp of that record, in milliseconds.
    pub timestamp_ms: i64,
}

/// One partition's state.
#[derive(Debug, Default)]
pub struct Store {}

impl Store {
    /// A store without a disk, for `derive` and for tests: the overlay is all there is.
    #[must_use]
    pub fn in_memory() -> Store {
        Store::default()
    }

    /// The bytes of a ticket's entry as the task sees it: the overlay's, else the disk's.
    pub fn entry(&self, _uid: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Writes a ticket's entry to the overlay; `None` is a tombstone.
    pub fn put_entry(&mut self, _uid: &[u8], _entry: Option<Vec<u8>>) {}

    /// Where and when an event id was seen last, whether or not the window has
    /// forgotten it (the disk may have dropped what is older than the window).
    pub fn seen(&self, _id: &EventHash) -> Result<Option<Seen>> {
        Ok(None)
    }

    /// Notes an event id in the overlay, in place of what was known of it.
    pub fn see(&mut self, _id: EventHash, _seen: Seen) {}

    /// The uids of at most `limit` entries without a snapshot that were last of
    /// use before `before_ms` ([`crate::entry::idle_since`]), oldest first.
    pub fn idle_before(&self, _before_ms: i64, _limit: usize) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
}
