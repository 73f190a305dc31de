//! One input partition: a record in; outgoing records and overlay out.

use std::sync::Arc;

use anyhow::Result;

use crate::record::{Destination, Draft, Origin, Outbox, RawRecord};
use crate::store::Store;
use crate::topology::Topology;

/// One input partition with its store.
#[derive(Debug)]
pub struct Task {
    topology: Arc<Topology>,
    partitions: i32,
    stream_time_ms: i64,
    /// The partition's state. The worker seals, applies and discards its overlay.
    pub store: Store,
}

/// What became of a raw record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The fate.
    pub fate: Fate,
    /// How many derived events were emitted.
    pub derived: u32,
    /// How many derived events met their twin and were dropped.
    pub twins_dropped: u32,
    /// Whether the event was late.
    pub late: bool,
    /// How many outgoing records were cut to the size limit.
    pub truncated: u32,
}

/// Every record ends in exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Forwarded, perhaps with derived events behind it.
    Emitted,
    /// Seen before, within the window.
    Duplicate,
    /// A native specific that met its twin, or that the policy drops.
    Dropped,
    /// In the dead-letter topic.
    DeadLetter,
}

impl Task {
    /// A task over a store; `partitions` is how many every output topic has,
    /// `stream_time_ms` the greatest Kafka timestamp read so far (`i64::MIN` at first).
    #[must_use]
    pub fn new(topology: Arc<Topology>, partitions: i32, store: Store, stream_time_ms: i64) -> Task {
        Task { topology, partitions, stream_time_ms, store }
    }

    /// Processes one record: what is to be emitted goes to `out` (cleared
    /// first), what is to be remembered to the store's overlay.
    ///
    /// # Errors
    /// Only where the store cannot be read; bad input is an outcome.
    pub fn process(&mut self, record: &RawRecord<'_>, out: &mut Outbox) -> Result<Outcome> {
        out.clear();
        self.stream_time_ms = self.stream_time_ms.max(record.timestamp_ms);
        // A stand-in until the core arrives: forward to the first event type and remember the value.
        let _ = (&self.topology, self.partitions);
        out.push(&Draft {
            destination: Destination::Event(0),
            partition: record.partition,
            key: record.key,
            value: record.value,
            timestamp_ms: record.timestamp_ms,
            origin: Origin::Forwarded,
        });
        if let Some(key) = record.key {
            self.store.put_entry(key, record.value.map(<[u8]>::to_vec));
        }
        Ok(Outcome { fate: Fate::Emitted, derived: 0, twins_dropped: 0, late: false, truncated: 0 })
    }

    /// Forgets at most `limit` entries that the window has forgotten; called
    /// once for each transaction, before its changelog records are sent.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn sweep(&mut self, _limit: usize) -> Result<usize> {
        Ok(0)
    }

    /// The greatest Kafka timestamp read so far.
    #[must_use]
    pub fn stream_time_ms(&self) -> i64 {
        self.stream_time_ms
    }
}
