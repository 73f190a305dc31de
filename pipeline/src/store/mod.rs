//! One partition's state: what is committed, on disk, under what is not yet,
//! in memory.
//!
//! The store trails the log. Writes stay in the overlay until Kafka has
//! committed the transaction that holds them, and a little longer in memory:
//! a ticket that changes often is written once. Then they enter the disk in one
//! write, together with the positions that they belong to. A store is thus
//! behind its changelog or level with it, never ahead.
//!
//! It does not know Kafka, nor what the bytes of an entry mean beyond when the
//! entry was last of use.

mod directory;
mod disk;
mod held;
mod keys;
mod opening;
mod overlay;
mod positions;
mod table;

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Instant;

use anyhow::{Context, Result};

pub use directory::{SharedMemory, StateDirectory, StoreSettings};
pub use disk::Writes;
use disk::{Disk, IdleKey};
pub use held::Damaged;
use overlay::Overlay;
pub use positions::{Begun, Positions, Reset};

use crate::crash::{self, Step};

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
///
/// ```text
///  open ── seal ──► sealed ── apply ──► recent ── write out ──► disk
///  the open         a commit whose      committed,              committed,
///  transaction's    outcome is          not written yet         and the last of
///                   still to come                               it in memory
/// ```
///
/// Reads look at each in this order.
#[derive(Debug, Default)]
pub struct Store {
    open: Overlay,
    sealed: Overlay,
    recent: Overlay,
    /// What `recent` brings the disk's positions to.
    recent_positions: Option<Positions>,
    /// What was written out last, to be read from memory.
    written: Overlay,
    disk: Option<Disk>,
    /// Keys of the idle index that no longer describe their entry, found while
    /// reading and removed by the next write.
    stale: RefCell<Vec<IdleKey>>,
    /// Up to where the disk's idle index was looked through since it was last written.
    idle_up_to: RefCell<Option<IdleKey>>,
}

impl Store {
    /// A store without a disk, for `derive` and for tests: the overlay is all there is.
    #[must_use]
    pub fn in_memory() -> Store {
        Store::default()
    }

    fn on_disk(disk: Disk) -> Store {
        Store { disk: Some(disk), ..Store::default() }
    }

    /// The bytes of a ticket's entry as the task sees it: the overlay's, else the disk's.
    ///
    /// # Errors
    /// Where the disk cannot be read.
    pub fn entry(&self, uid: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        for layer in [&self.open, &self.sealed, &self.recent, &self.written] {
            if let Some(entry) = layer.entry(uid) {
                return Ok(entry.map(Cow::Borrowed));
            }
        }
        self.disk.as_ref().map_or(Ok(None), |disk| Ok(disk.entry(uid)?.map(Cow::Owned)))
    }

    /// Writes a ticket's entry to the overlay; `None` is a tombstone.
    pub fn put_entry(&mut self, uid: &[u8], entry: Option<Vec<u8>>) {
        self.open.put_entry(uid, entry);
    }

    /// Where and when an event id was seen last, whether or not the window has
    /// forgotten it (the disk may have dropped what is older than the window).
    ///
    /// # Errors
    /// Where the disk cannot be read.
    pub fn seen(&self, id: &EventHash) -> Result<Option<Seen>> {
        let layers = [&self.open, &self.sealed, &self.recent, &self.written];
        if let Some(seen) = layers.into_iter().find_map(|layer| layer.seen(id)) {
            return Ok(Some(seen));
        }
        self.disk.as_ref().map_or(Ok(None), |disk| disk.seen(id))
    }

    /// Notes an event id in the overlay, in place of what was known of it.
    pub fn see(&mut self, id: EventHash, seen: Seen) {
        self.open.see(id, seen);
    }

    /// The uids of at most `limit` entries without a snapshot that were last of
    /// use before `before_ms` ([`crate::entry::idle_since`]), oldest first. Each
    /// call goes on behind what the one before it found on the disk, until that
    /// is written or the overlay is dropped.
    ///
    /// # Errors
    /// Where the disk cannot be read.
    pub fn idle_before(&self, before_ms: i64, limit: usize) -> Result<Vec<Vec<u8>>> {
        // What a layer knows of an entry is newer than what those under it say.
        let layers = [&self.open, &self.sealed, &self.recent];
        let hidden =
            |depth: usize, uid: &[u8]| layers.iter().take(depth).any(|layer| layer.entry(uid).is_some());
        let mut idle = Vec::new();
        for (depth, layer) in layers.iter().enumerate() {
            idle.extend(layer.idle_before(before_ms).filter(|(_, uid)| !hidden(depth, uid)).cloned());
        }
        if let Some(disk) = &self.disk {
            let mut up_to = self.idle_up_to.borrow_mut();
            let found = disk.idle_before(before_ms, up_to.as_ref(), limit)?;
            let last = [found.idle.last(), found.stale.last()].into_iter().flatten().max();
            *up_to = last.cloned().or_else(|| up_to.take());
            self.stale.borrow_mut().extend(found.stale);
            idle.extend(found.idle.into_iter().filter(|(_, uid)| !hidden(layers.len(), uid)));
        }
        idle.sort();
        idle.truncate(limit);
        Ok(idle.into_iter().map(|(_, uid)| uid).collect())
    }

    /// How much memory the open transaction's writes take, about.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open.size_bytes()
    }

    /// How much memory all that is not on the disk yet takes, and what was written out last, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        [&self.open, &self.sealed, &self.recent, &self.written].into_iter().map(Overlay::size_bytes).sum()
    }

    /// How much the disk holds, in bytes.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::size_bytes)
    }

    /// The entries that the open transaction wrote, in the order in which they
    /// were first written; `None` is a tombstone.
    pub fn written_entries(&self) -> impl ExactSizeIterator<Item = (&[u8], Option<&[u8]>)> {
        self.open.entries()
    }

    /// The event ids that the open transaction noted, in their order.
    pub fn noted_ids(&self) -> impl ExactSizeIterator<Item = (EventHash, Seen)> {
        self.open.ids()
    }

    /// Hands what the open transaction wrote over to its commit, and starts afresh.
    ///
    /// One commit is in flight at most: what was sealed before must have been
    /// applied or discarded.
    pub fn seal(&mut self) {
        debug_assert!(self.sealed.is_empty(), "a commit is still in flight");
        self.sealed = std::mem::take(&mut self.open);
    }

    /// Takes over what was sealed, and the positions that it brings the store
    /// to. To be called only when Kafka has committed it.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn apply(&mut self, positions: &Positions) -> Result<()> {
        let sealed = std::mem::take(&mut self.sealed);
        if let Some(disk) = &mut self.disk {
            disk.count(sealed.entries().len() as u64);
        }
        self.recent.absorb(sealed);
        self.recent_positions = Some(*positions);
        let recent_bytes_max = self.disk.as_ref().map_or(usize::MAX, Disk::recent_bytes_max);
        if self.recent.size_bytes() >= recent_bytes_max {
            self.write_out()?;
        }
        Ok(())
    }

    /// Brings the disk level with what is applied, in one write.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn write_out(&mut self) -> Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        let Some(positions) = self.recent_positions.take() else { return Ok(()) };
        self.idle_up_to.take();
        let mut writes = Writes::default();
        for key in self.stale.take() {
            writes.forget_idle(&key);
        }
        for (uid, entry) in self.recent.entries() {
            writes.entry(uid, entry);
        }
        let mut ids: Vec<_> = self.recent.ids().collect();
        ids.sort_unstable_by_key(|(id, _)| u128::from_be_bytes(*id));
        for (id, seen) in ids {
            writes.id(&id, seen);
        }
        crash::at(Step::Write);
        disk.write(writes, &positions, true).context("write to the store")?;
        self.written = std::mem::take(&mut self.recent);
        Ok(())
    }

    /// Drops everything that is not committed, sealed or not.
    pub fn discard(&mut self) {
        self.open = Overlay::default();
        self.sealed = Overlay::default();
        self.idle_up_to.take();
    }

    /// Writes to the disk, past all layers: for what is committed already, as
    /// long as nothing was applied.
    /// `is_level` says that nothing more is committed than the store then holds.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn write(&mut self, mut writes: Writes, positions: &Positions, is_level: bool) -> Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        self.idle_up_to.take();
        for key in self.stale.take() {
            writes.forget_idle(&key);
        }
        disk.count(writes.entries());
        disk.write(writes, positions, is_level).context("write to the store")
    }

    /// Writes to an empty disk, sorted first, which is much faster. They are worth
    /// nothing until [`Store::write`] has said which positions they come to.
    ///
    /// # Errors
    /// Where the disk cannot be written, or is not empty.
    pub fn load(&mut self, writes: Writes, positions: &Positions) -> Result<()> {
        self.disk.as_mut().map_or(Ok(()), |disk| disk.load(writes, positions))
    }

    /// How much is loaded at a time, in bytes.
    #[must_use]
    pub fn load_bytes_max(&self) -> usize {
        self.disk.as_ref().map_or(usize::MAX, Disk::load_bytes_max)
    }

    /// Entries on the disk, by uid as bytes, from behind this uid, or from the first: at most
    /// `limit`, fewer where they are large, none at the end alone. What is not written out is
    /// not among them.
    ///
    /// # Errors
    /// Where the disk cannot be read.
    pub fn entries_after(&self, uid: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.disk.as_ref().map_or(Ok(Vec::new()), |disk| disk.entries_after(uid, limit))
    }

    /// The positions of what was applied last; `None` where nothing ever was.
    #[must_use]
    pub fn positions(&self) -> Option<Positions> {
        self.recent_positions.or_else(|| self.disk.as_ref().and_then(Disk::positions))
    }

    /// An offset of the ids log before which the window has forgotten
    /// everything. Never beyond the last commit record.
    #[must_use]
    pub fn ids_forgotten_before(&self) -> Option<i64> {
        self.disk.as_ref().and_then(Disk::ids_forgotten_before)
    }

    /// Starts a flush if so many records were applied, or so much time has
    /// passed, since the last one. It does not wait for its end.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn flush_if_due(&mut self, now: Instant) -> Result<()> {
        if !self.disk.as_ref().is_some_and(|disk| disk.is_flush_due(now)) {
            return Ok(());
        }
        self.write_out()?;
        crash::at(Step::StoreFlush);
        self.disk.as_mut().map_or(Ok(()), |disk| disk.flush(false))
    }

    /// Starts a flush of what is written. It does not wait for its end.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.disk.as_mut().map_or(Ok(()), |disk| disk.flush(false))
    }

    /// Drops what is not committed, flushes the rest and closes the store. A
    /// store that is dropped without it is merely further behind its changelog.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn close(mut self) -> Result<()> {
        if self.disk.as_ref().is_some_and(Disk::is_damaged) {
            return Ok(()); // It is wiped when it is opened next.
        }
        self.write_out()?;
        self.disk.map_or(Ok(()), Disk::close)
    }
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
