//! Whether the store on disk, the changelog and a recomputation remember the
//! same of each ticket.
//!
//! What an entry means is compared, not its bytes: what the window has forgotten
//! and the sweep not yet is nothing.

use std::fmt;

use anyhow::{Context, Result};

use super::cut::Input;
use super::head::{Changelog, Head};
use crate::entry::{Entry, RuleSet};
use crate::json::Tape;
use crate::store::Store;
use crate::task::Task;
use crate::topology::Topology;

/// So many entries of each side are in memory at a time.
const PAGE: usize = 256;
/// So many findings of a partition are kept; all are counted.
const FINDINGS_MAX: usize = 1_000;

/// One ticket of which not all remember the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFinding {
    /// The input partition.
    pub partition: i32,
    /// The ticket uid; empty where it is the partition as a whole.
    pub uid: String,
    /// Who differs from whom, and in what.
    pub reason: String,
}

impl fmt::Display for StateFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state: partition {} ticket {:?}: {}", self.partition, self.uid, self.reason)
    }
}

/// What the comparison of states came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateReport {
    /// Tickets that were compared.
    pub tickets: u64,
    /// Of those, how many could not be recomputed, for their past is gone.
    pub unprovable: u64,
    /// Of those, how many were written again behind the cut.
    pub moved_on: u64,
    /// Of those, how many the store on disk will learn from the changelog at its next start.
    pub behind: u64,
    /// Stores on disk that were compared.
    pub stores: u64,
    /// How many faults there are.
    pub faults: u64,
    /// The first of them.
    pub findings: Vec<StateFinding>,
}

impl StateReport {
    /// Adds another partition's.
    pub(super) fn add(&mut self, other: StateReport) {
        self.tickets += other.tickets;
        self.unprovable += other.unprovable;
        self.moved_on += other.moved_on;
        self.behind += other.behind;
        self.stores += other.stores;
        self.faults += other.faults;
        self.findings.extend(other.findings);
    }
}

/// One partition's three states.
pub(super) struct States<'a> {
    pub(super) topology: &'a Topology,
    pub(super) input: &'a Input,
    pub(super) changelog: &'a Changelog,
    /// `None` where the pipeline is running on it, or it is not here.
    pub(super) store: Option<&'a Store>,
}

impl States<'_> {
    /// Compares them; `task` has processed all before the committed position.
    ///
    /// # Errors
    /// Where a disk cannot be read, or an entry not be decoded.
    pub(super) fn compare(&self, task: &Task, head: Option<&Head>) -> Result<StateReport> {
        let mut report = StateReport::default();
        self.compare_positions(task, &mut report);
        report.stores = u64::from(self.store.is_some_and(|store| store.positions().is_some()));
        let store = self.store.filter(|store| store.positions().is_some());
        let mut recomputed = Pages::new(Some(&task.store));
        let mut changelog = Pages::new(Some(&self.changelog.store));
        let mut on_disk = Pages::new(store);
        let rule_set = RuleSet::of(&self.topology.rules);
        let entries = Entries { rule_set, before_ms: task.forgotten_before_ms() };
        loop {
            let heads = [recomputed.uid()?, changelog.uid()?, on_disk.uid()?];
            let Some(uid) = heads.into_iter().flatten().min().map(<[u8]>::to_vec) else { break };
            let recomputed = recomputed.take(&uid);
            let remembered = changelog.take(&uid);
            let stored = on_disk.take(&uid);
            report.tickets += 1;
            if head.is_some_and(|head| !head.proves_state(remembered.as_deref())) {
                report.unprovable += 1;
            } else if let Some(reason) = entries.difference(&recomputed, &remembered)? {
                if remembered.is_none() && self.changelog.moved_on.contains(&uid) {
                    report.moved_on += 1;
                } else {
                    self.note(
                        &mut report,
                        &uid,
                        format!("the changelog differs from the recomputation: {reason}"),
                    );
                }
            }
            let Some(reason) = store.map_or(Ok(None), |_| entries.difference(&remembered, &stored))? else {
                continue;
            };
            if self.changelog.behind_store.contains(&uid) {
                report.behind += 1;
            } else if remembered.is_some() || !self.changelog.moved_on.contains(&uid) {
                self.note(
                    &mut report,
                    &uid,
                    format!("the store on disk differs from the changelog: {reason}"),
                );
            }
        }
        Ok(report)
    }

    fn compare_positions(&self, task: &Task, report: &mut StateReport) {
        let Some(at) = self.store.and_then(Store::positions) else { return };
        let Some(ends) = self.input.ends else { return };
        if at.changelog > ends.changelog || at.ids > ends.ids {
            let reason =
                format!("the store on disk is ahead of what was committed: {at:?}, committed {ends:?}");
            self.note(report, b"", reason);
        } else if at.changelog == ends.changelog && at.ids == ends.ids {
            let (input, time_ms) = (self.input.committed, task.stream_time_ms());
            if at.input != input || (at.stream_time_ms != time_ms && self.input.low == 0) {
                let reason = format!(
                    "the store on disk stands at input position {} and stream time {}, the recomputation at {input} and \
                     {time_ms}",
                    at.input, at.stream_time_ms
                );
                self.note(report, b"", reason);
            }
        }
    }

    fn note(&self, report: &mut StateReport, uid: &[u8], reason: String) {
        report.faults += 1;
        if report.findings.len() < FINDINGS_MAX {
            let uid = String::from_utf8_lossy(uid).into_owned();
            report.findings.push(StateFinding { partition: self.input.partition, uid, reason });
        }
    }
}

/// A store's entries by uid, a page at a time.
struct Pages<'a> {
    store: Option<&'a Store>,
    page: std::vec::IntoIter<(Vec<u8>, Vec<u8>)>,
    last: Option<Vec<u8>>,
}

impl<'a> Pages<'a> {
    fn new(store: Option<&'a Store>) -> Pages<'a> {
        Pages { store, page: Vec::new().into_iter(), last: None }
    }

    /// The next entry's uid.
    fn uid(&mut self) -> Result<Option<&[u8]>> {
        if self.page.as_slice().is_empty()
            && let Some(store) = self.store
        {
            let page = store.entries_after(self.last.as_deref(), PAGE)?;
            self.last = page.last().map(|(uid, _)| uid.clone());
            if page.is_empty() {
                self.store = None;
            }
            self.page = page.into_iter();
        }
        Ok(self.page.as_slice().first().map(|(uid, _)| uid.as_slice()))
    }

    /// The next entry's bytes, if it is this ticket's.
    fn take(&mut self, uid: &[u8]) -> Option<Vec<u8>> {
        if self.page.as_slice().first().is_none_or(|(next, _)| next != uid) {
            return None;
        }
        self.page.next().map(|(_, bytes)| bytes)
    }
}

/// How entries are read.
struct Entries {
    rule_set: RuleSet,
    before_ms: i64,
}

impl Entries {
    /// In what two entries differ, by what they mean now.
    fn difference(&self, one: &Option<Vec<u8>>, other: &Option<Vec<u8>>) -> Result<Option<String>> {
        if one == other {
            return Ok(None);
        }
        let (one, other) = (self.read(one.as_deref())?, self.read(other.as_deref())?);
        Ok(match (one, other) {
            (None, None) => None,
            (Some(_), None) => Some("it has no entry".into()),
            (None, Some(_)) => Some("it has an entry, and should have none".into()),
            (Some(one), Some(other)) => differing(&one, &other, &self.rule_set),
        })
    }

    fn read<'a>(&self, bytes: Option<&'a [u8]>) -> Result<Option<Entry<'a>>> {
        let Some(bytes) = bytes else { return Ok(None) };
        let mut entry = Entry::decode(bytes, &self.rule_set).context("decode an entry")?;
        entry.forget(self.before_ms);
        Ok(Some(entry).filter(|entry| !entry.is_empty()))
    }
}

fn differing(one: &Entry<'_>, other: &Entry<'_>, rules: &RuleSet) -> Option<String> {
    let mut parts = Vec::new();
    if one.written_at != other.written_at {
        parts.push(format!("written at {} and not at {}", other.written_at, one.written_at));
    }
    if one.first_offset != other.first_offset {
        parts.push(format!("first written at {} and not at {}", other.first_offset, one.first_offset));
    }
    let text = |entry: &Entry<'_>| entry.snapshot.as_ref().map(|snapshot| snapshot.text.to_owned());
    let time = |entry: &Entry<'_>| entry.snapshot.as_ref().map(|snapshot| snapshot.time_ms);
    if text(one) != text(other) {
        parts.push("another snapshot".into());
    } else if time(one) != time(other) {
        parts.push("another snapshot's time".into());
    } else if let (Some(one), Some(other)) = (&one.snapshot, &other.snapshot) {
        let (mut tape, mut other_tape) = (Tape::default(), Tape::default());
        if one.known(&rules.reader, &mut tape) != other.known(&rules.reader, &mut other_tape) {
            parts.push("other known values".to_owned());
        }
    }
    if one.mark != other.mark {
        parts.push("another deletion mark".into());
    }
    if one.waiting != other.waiting {
        parts.push("other waiting announcements".into());
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}
