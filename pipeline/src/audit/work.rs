//! The reading: every input partition recomputed and every output topic read,
//! side by side on a few threads, into sorted rows.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::Message;

use super::cut::{Input, Output};
use super::expected::{Emitted, Recomputation};
use super::head::Changelog;
use super::reading::Range;
use super::rekeyed::Rekeying;
use super::rows::{Digests, Proof, Row, Spool};
use super::runs::{Replays, Run};
use super::state::{StateReport, States};
use super::{Audit, head, reading};
use crate::commit_record::{IdsRecord, REPLAYS_KEY, Rebuilding, read_replays};
use crate::stage::Stage;
use crate::store::Store;
use crate::topology::{KeyedBy, Topology};

/// Compaction may have taken what was there at the cut.
const REPLAYED_MEANWHILE: &str = "a replay came to its end while this audit ran: run it again";

/// What the reading came to.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Sorted files of expected rows.
    pub(super) expected: Vec<PathBuf>,
    /// Sorted files of found rows.
    pub(super) found: Vec<PathBuf>,
    pub(super) raw_records: u64,
    /// Output records, by topic.
    pub(super) found_records: HashMap<u16, u64>,
    /// Of those, what was re-keyed of raw records that are gone.
    pub(super) before_head: u64,
    /// Input partitions whose head is gone, with where they begin.
    pub(super) cut_inputs: BTreeMap<i32, i64>,
    pub(super) state: StateReport,
}

#[derive(Debug, Clone, Copy)]
enum Job<'a> {
    Input(&'a Input),
    Output(u16, &'a Output),
}

impl Audit<'_> {
    /// Does all of it.
    ///
    /// # Errors
    /// The first that a thread came to.
    pub(super) fn work(&self) -> Result<Work> {
        // The inputs first, for they take longest.
        let inputs = self.cut.inputs.iter().map(Job::Input);
        let outputs = (0..).zip(&self.cut.outputs).map(|(topic, output)| Job::Output(topic, output));
        let jobs: Mutex<VecDeque<Job<'_>>> = Mutex::new(inputs.chain(outputs).collect());
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let parts: Vec<Result<Work>> = std::thread::scope(|scope| {
            let jobs = &jobs;
            let threads: Vec<_> =
                (0..threads).map(|number| scope.spawn(move || self.jobs(number, jobs))).collect();
            let ends = threads.into_iter().map(|thread| thread.join());
            ends.map(|end| end.unwrap_or_else(|_| Err(anyhow!("a thread of the audit panicked")))).collect()
        });
        let mut all = Work::default();
        for part in parts {
            let part = part?;
            all.expected.extend(part.expected);
            all.found.extend(part.found);
            all.raw_records += part.raw_records;
            all.found_records.extend(part.found_records);
            all.before_head += part.before_head;
            all.cut_inputs.extend(part.cut_inputs);
            all.state.add(part.state);
        }
        Ok(all)
    }

    fn jobs(&self, number: usize, jobs: &Mutex<VecDeque<Job<'_>>>) -> Result<Work> {
        let mut work = Work::default();
        let mut expected = Spool::new(self.folder, &format!("expected-{number}"));
        let mut found = Spool::new(self.folder, &format!("found-{number}"));
        let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some(job) = next() {
            let done = match job {
                Job::Input(input) => match input.stage {
                    Stage::Tickets => self.input(input, &mut expected, &mut work),
                    Stage::Rekey => self.raw_input(input, &mut expected, &mut work),
                },
                Job::Output(topic, output) => self.spool(topic, output, &mut found).map(|counts| {
                    work.found_records.insert(topic, counts.records);
                    work.before_head += counts.before_head;
                }),
            };
            if done.is_err() {
                // The others have nothing more to do for.
                jobs.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            done?;
        }
        work.expected = expected.finish()?;
        work.found = found.finish()?;
        Ok(work)
    }

    fn input(&self, input: &Input, spool: &mut Spool, work: &mut Work) -> Result<()> {
        let store = self.store_on_disk(input.partition)?;
        let changelog = self.changelog(input, store.as_ref())?;
        let runs = self.replays(input, changelog.as_ref())?.runs(input.low, input.committed);
        let topics = Topics::new(&self.topology, &self.cut.outputs);
        let recomputation = self.recomputation(input, changelog.as_ref());
        let recomputed = recomputation.run(
            until(input, &runs),
            |emitted| topics.spool(emitted, input, &runs, spool),
            |task, head| {
                let Some(changelog) = changelog.as_ref().filter(|_| self.with_state) else { return Ok(()) };
                let states = States { topology: &self.topology, input, changelog, store: store.as_ref() };
                work.state.add(states.compare(task, head)?);
                Ok(())
            },
        );
        let recomputed =
            recomputed.with_context(|| format!("recompute input partition {}", input.partition))?;
        if self.topology.source.keyed_by == KeyedBy::TicketUid {
            work.raw_records += recomputed.records;
        }
        if recomputed.head.is_some() {
            work.cut_inputs.insert(input.partition, input.low);
        }
        changelog.map_or(Ok(()), |changelog| changelog.store.wipe().map(drop))
    }

    /// A raw partition that is re-keyed.
    fn raw_input(&self, input: &Input, spool: &mut Spool, work: &mut Work) -> Result<()> {
        let runs = Replays::default().runs(input.low, input.committed);
        let topics = Topics::new(&self.topology, &self.cut.outputs);
        let records = self
            .rekeying(input)
            .run(until(input, &runs), |emitted| topics.spool(emitted, input, &runs, spool))
            .with_context(|| format!("re-key raw partition {} again", input.partition))?;
        work.raw_records += records;
        Ok(())
    }

    pub(super) fn rekeying<'r>(&'r self, input: &'r Input) -> Rekeying<'r> {
        Rekeying { topology: &self.topology, cut: &self.cut, input, progress: self.progress }
    }

    /// What the ids log tells of replays, or the changelog where that log is cut.
    fn replays(&self, input: &Input, changelog: Option<&Changelog>) -> Result<Replays> {
        let mut replays = Replays::default();
        let Some(ends) = input.ends else { return Ok(replays) };
        let (partition, topic) = (input.partition, &self.topology.ids_topic);
        let (from, _) = head::bounds(&self.topology, topic, partition)?;
        if from > 0 {
            return self.replays_of_changelog(partition, ends.changelog, changelog).map(Replays::done);
        }
        let range = Range { partition, from, to: ends.ids };
        reading::read(&self.topology, topic, &[range], self.progress, |record| {
            replays.take(IdsRecord::decode(record.payload().unwrap_or_default())?);
            Ok(())
        })?;
        Ok(replays)
    }

    fn replays_of_changelog(
        &self,
        partition: i32,
        end: i64,
        changelog: Option<&Changelog>,
    ) -> Result<Vec<Rebuilding>> {
        let mut found = None;
        if let Some(changelog) = changelog {
            found = changelog.store.entry(REPLAYS_KEY)?.map(Cow::into_owned);
            ensure!(!changelog.moved_on.contains(REPLAYS_KEY), REPLAYED_MEANWHILE);
        } else {
            let topic = &self.topology.changelog_topic;
            let (from, stable) = head::bounds(&self.topology, topic, partition)?;
            let range = Range { partition, from, to: stable };
            reading::read(&self.topology, topic, &[range], self.progress, |record| {
                if record.key() == Some(REPLAYS_KEY) {
                    ensure!(record.offset() < end, REPLAYED_MEANWHILE);
                    found = record.payload().map(<[u8]>::to_vec);
                }
                Ok(())
            })?;
        }
        found.map_or(Ok(Vec::new()), |bytes| read_replays(&bytes))
    }

    pub(super) fn recomputation<'r>(
        &'r self,
        input: &'r Input,
        changelog: Option<&'r Changelog>,
    ) -> Recomputation<'r> {
        Recomputation {
            topology: &self.topology,
            scratch: &self.scratch,
            input,
            partitions: self.cut.partitions,
            changelog,
            progress: self.progress,
        }
    }

    /// What the changelog says, where it is asked.
    fn changelog(&self, input: &Input, store: Option<&Store>) -> Result<Option<Changelog>> {
        if !self.with_state && input.low == 0 {
            return Ok(None);
        }
        let scratch = self.scratch.changelog(input.partition)?;
        let store_at = store.and_then(Store::positions).map(|at| at.changelog);
        Changelog::read(&self.topology, input, scratch, store_at, self.progress).map(Some)
    }

    fn store_on_disk(&self, partition: i32) -> Result<Option<Store>> {
        let Some(state) = &self.state else { return Ok(None) };
        // Opening makes a store where there is none.
        let path = self.topology.state.dir.join("stores").join(partition.to_string());
        if path.is_dir() { state.open_to_look(partition) } else { Ok(None) }
    }
}

/// Up to where the outputs may reach.
pub(super) fn until(input: &Input, runs: &[Run]) -> i64 {
    runs.iter().map(|run| run.to).max().unwrap_or(input.low).max(input.reached)
}

/// The cut's output topics, by name.
struct Topics<'a> {
    topology: &'a Topology,
    indexes: HashMap<&'a str, u16>,
}

impl<'a> Topics<'a> {
    fn new(topology: &'a Topology, outputs: &'a [Output]) -> Topics<'a> {
        let indexes = (0..).zip(outputs).map(|(index, output)| (output.topic.as_str(), index)).collect();
        Topics { topology, indexes }
    }

    /// A row for every run that emitted the record.
    fn spool(&self, emitted: &Emitted<'_>, input: &Input, runs: &[Run], spool: &mut Spool) -> Result<()> {
        let Emitted { raw, position, record, is_proven } = emitted;
        let topic = record.destination.topic(self.topology);
        let topic = *self.indexes.get(topic).with_context(|| format!("{topic} is no output topic"))?;
        let digests = Digests::of(record.key, record.value, record.timestamp_ms, record.headers());
        let Digests { ticket, identity, digest } = digests;
        let mut row = Row {
            topic,
            partition: record.partition,
            ticket,
            input: input.number(),
            run: 0,
            offset: raw.offset,
            position: *position,
            identity,
            digest,
            proof: if *is_proven { Proof::Required } else { Proof::Unprovable },
        };
        let covers = |(_, run): &(u16, &Run)| (run.from..run.to).contains(&raw.offset);
        for (number, _) in (0..).zip(runs).filter(covers) {
            row.run = number;
            spool.push(row.clone())?;
        }
        if (input.committed..input.reached).contains(&raw.offset) {
            row.run = u16::try_from(runs.len()).unwrap_or(u16::MAX);
            row.proof = row.proof.max(Proof::BeyondCut);
            spool.push(row)?;
        }
        Ok(())
    }
}
