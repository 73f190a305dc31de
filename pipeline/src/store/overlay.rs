//! State in memory: the writes of one transaction, or of several, in their order.
//!
//! It knows neither the disk under it nor whether a transaction will commit.

use std::collections::BTreeSet;

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::{EventHash, Seen};
use crate::entry;

/// The writes of one transaction, or of several.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// In the order of their first write, which is the changelog's.
    entries: IndexMap<Vec<u8>, Option<Vec<u8>>, RandomState>,
    /// When the entries above that hold no snapshot were last of use.
    idle: BTreeSet<(i64, Vec<u8>)>,
    ids: IndexMap<EventHash, Seen, RandomState>,
    entries_bytes: usize,
}

/// What an entry or an event id costs beside its own bytes, about.
const SLOT_BYTES: usize = 96;

impl Overlay {
    /// The outer `None`: not written here. The inner: a tombstone.
    pub(super) fn entry(&self, uid: &[u8]) -> Option<Option<&[u8]>> {
        self.entries.get(uid).map(Option::as_deref)
    }

    pub(super) fn put_entry(&mut self, uid: &[u8], entry: Option<Vec<u8>>) {
        match self.entries.get_index_of(uid) {
            Some(at) => self.replace(at, entry),
            None => self.insert(uid.to_vec(), entry),
        }
    }

    fn insert(&mut self, uid: Vec<u8>, entry: Option<Vec<u8>>) {
        self.entries_bytes += uid.len() + bytes(&entry);
        if let Some(since_ms) = idle_since(&entry) {
            self.idle.insert((since_ms, uid.clone()));
        }
        self.entries.insert(uid, entry);
    }

    fn replace(&mut self, at: usize, entry: Option<Vec<u8>>) {
        let Some((uid, place)) = self.entries.get_index_mut(at) else { return };
        let previous = std::mem::replace(place, entry);
        self.entries_bytes = self.entries_bytes + bytes(place) - bytes(&previous);
        if let Some(since_ms) = idle_since(&previous) {
            self.idle.remove(&(since_ms, uid.clone()));
        }
        if let Some(since_ms) = idle_since(place) {
            self.idle.insert((since_ms, uid.clone()));
        }
    }

    pub(super) fn seen(&self, id: &EventHash) -> Option<Seen> {
        self.ids.get(id).copied()
    }

    pub(super) fn see(&mut self, id: EventHash, seen: Seen) {
        self.ids.insert(id, seen);
    }

    pub(super) fn entries(&self) -> impl ExactSizeIterator<Item = (&[u8], Option<&[u8]>)> {
        self.entries.iter().map(|(uid, entry)| (uid.as_slice(), entry.as_deref()))
    }

    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = (EventHash, Seen)> {
        self.ids.iter().map(|(id, seen)| (*id, *seen))
    }

    pub(super) fn idle_before(&self, before_ms: i64) -> impl Iterator<Item = &(i64, Vec<u8>)> {
        self.idle.range(..(before_ms, Vec::new()))
    }

    /// Adds later writes to these.
    pub(super) fn absorb(&mut self, later: Overlay) {
        if self.is_empty() {
            *self = later;
            return;
        }
        for (uid, entry) in later.entries {
            match self.entries.get_index_of(&uid) {
                Some(at) => self.replace(at, entry),
                None => self.insert(uid, entry),
            }
        }
        self.ids.extend(later.ids);
    }

    /// How much memory it takes, about.
    pub(super) fn size_bytes(&self) -> usize {
        self.entries_bytes + SLOT_BYTES * (self.entries.len() + self.ids.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.ids.is_empty()
    }
}

fn bytes(entry: &Option<Vec<u8>>) -> usize {
    entry.as_ref().map_or(0, Vec::len)
}

fn idle_since(entry: &Option<Vec<u8>>) -> Option<i64> {
    entry.as_deref().and_then(entry::idle_since)
}
