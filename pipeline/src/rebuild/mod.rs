//! Makes a partition's state what it was at an earlier input position, so that
//! the records from there on are emitted again, byte for byte.
//!
//! ```text
//!  Begin ─► Remove ─► Read ─► End
//!    │        │         │       └ the commit record at the position, and with it our metadata
//!    │        └─────────┴ entries, tombstones and ids, in transactions
//!    └ the ids log says that the state is about to belong to no position
//! ```
//!
//! All of it goes through changelog and ids log, so it survives the loss of the
//! disk, and each transaction commits the reset position, so it is fenced like
//! any other. Cut short anywhere, it is begun again at the next start, and
//! nothing is emitted before its end. What a record does to the state is the
//! task's to know ([`recompute`]); of changes, events and outputs it knows
//! nothing.

mod reading;
pub mod recompute;

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};

use crate::commit_record::{CommitRecord, Ends, IDS_MAX, IdsRecord, REPLAYS_KEY, Rebuilding, add_replay};
use crate::crash::{self, Step};
use crate::restore::{Replay, Restored, Setup};
use crate::store::{Begun, Positions, Reset};
use crate::transaction::{Moved, Producer, Transaction, Trouble};
use reading::{RawReader, StreamTimeReader, output_ends};
use recompute::Recompute;

/// One transaction holds about so much, and what one more record adds.
const TRANSACTION_BYTES_MAX: usize = 8 * 1024 * 1024;

const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// A rebuild under way.
#[derive(Debug)]
pub struct Rebuild {
    partition: i32,
    replay: Replay,
    /// Where the input goes on at the end.
    position: i64,
    recompute: Recompute,
    ends: Ends,
    stage: Stage,
    /// The next raw offset to read.
    read_up_to: i64,
    started: Instant,
    reading_since: Option<Instant>,
    told_at: Instant,
}

#[derive(Debug)]
enum Stage {
    /// The stream time before the raw topic's first record is looked for in the ids log.
    StreamTime(StreamTimeReader),
    /// Nothing is changed yet.
    Begin,
    /// Entries that did not exist yet are removed.
    Remove,
    /// The raw topic is read up to the position.
    Read(Option<RawReader>),
    /// The last transaction is to come.
    End,
    /// Committed.
    Done,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do: [`Rebuild::records_left`].
    UnderWay,
    /// The state is what it was.
    Done,
}

impl Rebuild {
    /// Begins with a store that follows the log to its end.
    #[must_use]
    pub fn new(setup: &Setup, partition: i32, restored: Restored, replay: Replay) -> Rebuild {
        let Restored { store, position, ends, .. } = restored;
        let Replay { reset, is_whole, .. } = replay;
        let recompute = Recompute::begin(&setup.topology, setup.partitions, store, reset.to, is_whole);
        tracing::warn!(
            partition,
            from = reset.from,
            to = position,
            raw_records = position - replay.low,
            "REPLAYING: the committed offset is behind the state, which is made anew; what lies between is emitted again"
        );
        let now = Instant::now();
        Rebuild {
            partition,
            replay,
            position,
            recompute,
            ends,
            stage: if replay.low > 0 { Stage::StreamTime(StreamTimeReader::new()) } else { Stage::Begin },
            read_up_to: replay.low,
            started: now,
            reading_since: None,
            told_at: now,
        }
    }

    /// How many raw records it has read so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.recompute.counts().records
    }

    /// How many records it has left to read, at most.
    #[must_use]
    pub fn records_left(&self) -> i64 {
        self.position - self.read_up_to
    }

    /// Takes one bounded step. `consumer` is the worker's, a member of the
    /// group; `producer` has no transaction open.
    ///
    /// # Errors
    /// After [`Trouble::Again`] the same step may be tried again.
    pub fn step<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        producer: &mut Producer,
    ) -> Result<Progress, Trouble> {
        self.advance(setup, consumer, producer)?;
        if self.told_at.elapsed() > TELL_INTERVAL {
            self.told_at = Instant::now();
            self.tell("rebuilding");
        }
        Ok(match self.stage {
            Stage::Done => Progress::Done,
            _ => Progress::UnderWay,
        })
    }

    fn advance<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
        producer: &mut Producer,
    ) -> Result<(), Trouble> {
        match &mut self.stage {
            Stage::StreamTime(reader) => {
                if let Some(stream_time_ms) = reader.read(setup, self.partition, self.replay.low)? {
                    self.recompute.pass(stream_time_ms);
                    self.stage = Stage::Begin;
                }
            }
            Stage::Begin => {
                if !self.replay.is_logged {
                    let Reset { from, to } = self.replay.reset;
                    let opening = Rebuilding { from, to, output_ends: output_ends(setup)? };
                    self.commit(Some(opening), consumer, producer)?;
                }
                self.stage = Stage::Remove;
                tracing::info!(
                    partition = self.partition,
                    "rebuild begun: from its first record on the state belongs to no position"
                );
            }
            Stage::Remove => {
                // What a transaction before this one could not commit comes first.
                if self.is_full() {
                    return self.commit(None, consumer, producer);
                }
                if self.recompute.remove_some(self.replay.low)? {
                    self.stage = Stage::Read(None);
                    self.reading_since = Some(Instant::now());
                }
            }
            Stage::Read(reader) => {
                if self.recompute.store().open_bytes() >= TRANSACTION_BYTES_MAX {
                    return self.commit(None, consumer, producer);
                }
                if self.read_up_to >= self.position {
                    if !self.recompute.finish_some()? {
                        return Ok(());
                    }
                    self.note_replay(setup)?;
                    self.stage = Stage::End;
                    return Ok(());
                }
                let reader = match reader {
                    Some(reader) => reader,
                    None => reader.insert(RawReader::open(setup, self.partition, self.read_up_to)?),
                };
                let recompute = &mut self.recompute;
                self.read_up_to = reader
                    .read(self.position, |record| {
                        recompute.take(record)?;
                        Ok(recompute.store().open_bytes() < TRANSACTION_BYTES_MAX)
                    })
                    .map_err(|trouble| in_context(trouble, self.partition))?
                    .max(self.read_up_to);
            }
            Stage::End => {
                self.commit(None, consumer, producer)?;
                self.stage = Stage::Done;
                self.tell("rebuilt");
            }
            Stage::Done => {
                return Err(Trouble::Stop(anyhow!("rebuild partition {} again", self.partition)));
            }
        }
        Ok(())
    }

    /// The ids log tells of the replay until it is cut; who audits later must know of it too.
    /// Since its beginning nothing of the partition was emitted, so the outputs end where they did.
    fn note_replay(&mut self, setup: &Setup) -> Result<(), Trouble> {
        let Reset { from, to } = self.replay.reset;
        let replay = Rebuilding { from, to, output_ends: output_ends(setup)? };
        let store = self.recompute.store();
        let replays = add_replay(store.entry(REPLAYS_KEY)?.as_deref(), replay)?;
        store.put_entry(REPLAYS_KEY, Some(replays));
        Ok(())
    }

    fn is_full(&mut self) -> bool {
        self.recompute.store().open_bytes() >= TRANSACTION_BYTES_MAX
    }

    /// Commits what was written since the last commit, or, before anything is, that
    /// the replay begins. Nothing is handed over before Kafka has it, so that after an
    /// abort the same can be sent again.
    fn commit<C: ConsumerContext>(
        &mut self,
        opening: Option<Rebuilding>,
        consumer: &BaseConsumer<C>,
        producer: &mut Producer,
    ) -> Result<(), Trouble> {
        let is_end = matches!(self.stage, Stage::End);
        let (partition, position) = (self.partition, self.position);
        let stream_time_ms = self.recompute.stream_time_ms();
        let mut transaction = producer.begin()?;
        crash::at(Step::Rebuild);
        let is_opening = opening.is_some();
        match opening {
            Some(opening) => {
                transaction.ids(partition, &IdsRecord::Rebuilding(opening), stream_time_ms)?;
            }
            None => self.send_written(&mut transaction, is_end)?,
        }
        let moved = Moved { partition, position, ends: self.ends, is_rebuilding: !is_end };
        let receipt = transaction.commit(&[moved], consumer)?;
        self.ends = receipt.ends.first().copied().unwrap_or(self.ends);
        let Replay { reset, is_whole, .. } = self.replay;
        // Until something is written, the window of ids is that of the state as it was.
        let store = self.recompute.store();
        let whole_time_ms = store.positions().map_or(i64::MIN, |at| at.stream_time_ms);
        store.seal();
        store.apply(&Positions {
            changelog: self.ends.changelog,
            ids: self.ends.ids,
            input: if is_end { position } else { reset.from },
            stream_time_ms: if is_opening { whole_time_ms } else { stream_time_ms },
            rebuilding: (!is_end).then_some(Begun { reset, has_written: !(is_opening && is_whole) }),
        })?;
        store.flush_if_due(Instant::now())?;
        if receipt.slow {
            return Err(Trouble::Rebuild("a commit took very long".into()));
        }
        Ok(())
    }

    /// Entries, tombstones and ids; at least one record of the ids log.
    fn send_written(&mut self, transaction: &mut Transaction<'_>, is_end: bool) -> Result<(), Trouble> {
        let input = if is_end { self.position } else { self.read_up_to };
        let (partition, stream_time_ms) = (self.partition, self.recompute.stream_time_ms());
        let store = self.recompute.store();
        for (uid, entry) in store.written_entries() {
            transaction.changelog(partition, uid, entry, stream_time_ms)?;
        }
        let ids: Vec<_> = store.noted_ids().collect();
        let mut chunks = ids.chunks(IDS_MAX);
        let mut next = Some(chunks.next().unwrap_or_default());
        while let Some(ids) = next {
            let commit = CommitRecord { input, stream_time_ms, ids: ids.to_vec() };
            let record = if is_end { IdsRecord::Commit(commit) } else { IdsRecord::Recomputed(commit) };
            transaction.ids(partition, &record, stream_time_ms)?;
            next = chunks.next();
        }
        Ok(())
    }

    fn tell(&self, what: &'static str) {
        let counts = self.recompute.counts();
        let reading_s = self.reading_since.map_or(0.0, |since| since.elapsed().as_secs_f64()).max(0.001);
        tracing::info!(
            partition = self.partition,
            to = self.position,
            entries_removed = counts.removed,
            tickets_whose_past_is_gone = counts.past_gone,
            raw_records = counts.records,
            raw_records_left = self.position - self.read_up_to,
            raw_records_processed = counts.processed,
            raw_records_per_second = (counts.records as f64 / reading_s).round(),
            elapsed_ms = self.started.elapsed().as_millis() as u64,
            "{what}"
        );
    }

    /// The store, where its input goes on. To be called when the rebuild is done.
    #[must_use]
    pub fn into_restored(self) -> Restored {
        let stream_time_ms = self.recompute.stream_time_ms();
        Restored {
            store: self.recompute.into_store(),
            position: self.position,
            ends: self.ends,
            stream_time_ms,
            replay: None,
            is_foreign: false,
        }
    }

    /// Closes the store: it holds what is committed.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn close(self) -> anyhow::Result<()> {
        let partition = self.partition;
        let mut store = self.recompute.into_store();
        store.discard();
        store.close().with_context(|| format!("close the store of partition {partition}"))
    }
}

fn in_context(trouble: Trouble, partition: i32) -> Trouble {
    match trouble {
        Trouble::Stop(error) => Trouble::Stop(error.context(format!("rebuild partition {partition}"))),
        trouble => trouble,
    }
}
