//! The reading of what a store lacks, on a thread of its own: it keeps a core
//! busy, and the worker has a group to stay in and other stores to restore.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::reader::{Log, Reader};
use super::{Course, Setup};
use crate::crash::{self, Step};
use crate::store::{Positions, Writes};
use crate::transaction::Trouble;

/// A store that holds something already is written in steps of this size.
const STEP_BYTES_MAX: usize = 1024 * 1024;

/// A reading under way. Dropped, it ends at once, and its store is closed.
#[derive(Debug)]
pub(super) struct Reading {
    watched: Arc<Watched>,
    thread: Option<JoinHandle<Result<Read, Trouble>>>,
}

/// What the thread and its owner tell each other.
#[derive(Debug, Default)]
struct Watched {
    stop: AtomicBool,
    left: AtomicI64,
    records: AtomicU64,
}

/// A store that has been brought to its targets.
pub(super) struct Read {
    pub(super) course: Course,
    /// How many records it took.
    pub(super) records: u64,
}

impl Reading {
    pub(super) fn begin(
        setup: &Arc<Setup>,
        partition: i32,
        course: Course,
        positions: Positions,
    ) -> Result<Reading> {
        let watched = Arc::new(Watched::default());
        let (setup, shared) = (Arc::clone(setup), Arc::clone(&watched));
        let thread = std::thread::Builder::new()
            .name(format!("restore-{partition}"))
            .spawn(move || read(&setup, partition, course, positions, &shared))
            .context("start a thread that restores")?;
        Ok(Reading { watched, thread: Some(thread) })
    }

    /// How many records are left to read, at most.
    pub(super) fn left(&self) -> i64 {
        self.watched.left.load(Ordering::Relaxed)
    }

    /// How many records it has read so far.
    pub(super) fn records(&self) -> u64 {
        self.watched.records.load(Ordering::Relaxed)
    }

    /// What it came to; `None` while it goes on.
    pub(super) fn outcome(&mut self) -> Option<Result<Read, Trouble>> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        Some(thread.join().unwrap_or_else(|_| Err(Trouble::Stop(anyhow!("a thread that restores panicked")))))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.watched.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Until then the store is open, and nobody else can have it.
            drop(thread.join());
        }
    }
}

/// First the changelog, then the ids log. What comes to an empty store is sorted
/// first, so its positions are written when all is there.
fn read(
    setup: &Setup,
    partition: i32,
    mut course: Course,
    mut positions: Positions,
    watched: &Watched,
) -> Result<Read, Trouble> {
    let targets = course.targets;
    let is_load = course.store.positions().is_none();
    let load_bytes_max = course.store.load_bytes_max();
    let bytes_max = if is_load { load_bytes_max } else { STEP_BYTES_MAX };
    // What is loaded grows large: without room it would be copied whenever it outgrows its memory.
    let empty = || if is_load { Writes::with_capacity(bytes_max + bytes_max / 8) } else { Writes::default() };
    let mut writes = empty();
    let mut records = 0;
    let mut first_time_ms = None;
    while let Some(mut reader) = Reader::open(setup, partition, &positions, targets)? {
        let mut ended = false;
        while !ended {
            if watched.stop.load(Ordering::Relaxed) {
                return Err(Trouble::Again("the restore was stopped".into()));
            }
            let read = reader
                .read(setup, partition, &mut writes, bytes_max, &mut positions)
                .with_context(|| format!("restore a store from {}", reader.topic(setup)))?;
            records += read.records;
            watched.records.store(records, Ordering::Relaxed);
            first_time_ms = first_time_ms.or(read.first_time_ms);
            // What the target names may be gone (a compacted tombstone, a marker): the log's end will do.
            ended = match reader.log {
                Log::Changelog if read.is_end || positions.changelog >= targets.changelog => {
                    positions.changelog = targets.changelog;
                    true
                }
                Log::Ids if read.is_end || positions.ids >= targets.ids => {
                    positions.ids = targets.ids;
                    true
                }
                _ => false,
            };
            if read.records > 0 {
                crash::at(Step::Restore);
            }
            if is_load && writes.size_bytes() >= bytes_max {
                course.store.load(std::mem::replace(&mut writes, empty()), &positions)?;
            } else if !is_load && (read.records > 0 || ended) {
                course.store.write(std::mem::take(&mut writes), &positions, false)?;
                course.store.flush_if_due(Instant::now())?;
            }
            let left = (targets.changelog - positions.changelog) + (targets.ids - positions.ids);
            watched.left.store(left, Ordering::Relaxed);
        }
    }
    let forgotten_before_ms =
        positions.stream_time_ms.saturating_sub(setup.topology.policies.dedupe_window_ms);
    // It is cut where what follows is forgotten already: see `Store::ids_forgotten_before`.
    if course.ids_begin_late && first_time_ms.is_some_and(|first_ms| first_ms >= forgotten_before_ms) {
        tracing::warn!(
            partition,
            topic = setup.topology.ids_topic,
            "the ids log begins within the window: events that were delivered before it begins are not known any more, \
             should they be delivered again"
        );
    }
    // Entries without an input position are worth nothing: without positions the store is wiped.
    if is_load && records > 0 && positions.input == Positions::NO_INPUT {
        return Ok(Read { course, records });
    }
    if is_load {
        course.store.load(writes, &positions)?;
        crash::at(Step::Load);
    }
    course.store.write(Writes::default(), &positions, true)?;
    if is_load {
        // Or a crash would make the next start begin at the beginning.
        course.store.flush()?;
    }
    Ok(Read { course, records })
}
