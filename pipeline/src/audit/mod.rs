//! Proves on the topics themselves that nothing was lost, doubled or changed.
//!
//! What must be in the outputs is recomputed from the raw topic by the pipeline's
//! own task, what is there is read as every reader of committed records reads it,
//! and the two are compared by digests, ticket by ticket. It shares the pure
//! centre with the pipeline, so it proves its delivery and its state, not the
//! rules: those are held against expected files elsewhere.
//!
//! ```text
//!  cut ─► expected: raw topic ─► task ─► rows ─┐
//!    └──► found:    outputs ───────────► rows ─┴► compare ─► report
//! ```

mod compare;
mod cut;
mod details;
mod expected;
mod found;
mod head;
mod reading;
mod rekeyed;
mod report;
mod rows;
mod runs;
mod state;
mod work;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

pub use compare::Fault;
use compare::{Circumstances, Comparison, compare};
use cut::Cut;
use expected::{Scratch, store_settings};
pub use reading::Progress;
pub use report::{Line, Report};
use rows::Sorted;
pub use runs::{Replays, Run};
pub use state::{StateFinding, StateReport};
use work::Work;

use crate::stage::Stage;
use crate::store::StateDirectory;
use crate::topology::{KeyedBy, Topology};

/// How an audit goes.
#[derive(Debug, Clone)]
pub struct Options {
    /// A folder of the audit's own, for what does not fit into memory.
    pub scratch: PathBuf,
    /// Whether the states are compared too.
    pub state: bool,
    /// So many faults are told in full; all are counted.
    pub lines_max: usize,
}

/// One audit under way.
struct Audit<'a> {
    topology: Arc<Topology>,
    cut: Cut,
    scratch: Scratch,
    folder: &'a Path,
    with_state: bool,
    /// The pipeline's own, where it does not run on it.
    state: Option<StateDirectory>,
    progress: &'a Progress,
}

/// Audits.
///
/// # Errors
/// Where it cannot be done; what is found is no error.
pub fn audit(topology: Topology, options: &Options, progress: &Progress) -> Result<Report> {
    let topology = Arc::new(topology);
    let mut notes = Vec::new();
    // Locked before the cut is made, so that no store is ahead of it.
    let state = if options.state { lock_state(&topology, &mut notes) } else { None };
    let cut = Cut::make(&topology)?;
    let scratch = Scratch::new(&topology, &options.scratch)?;
    let with_state = options.state;
    let audit = Audit { topology, cut, scratch, folder: &options.scratch, with_state, state, progress };
    let work = audit.work()?;
    let expected = Sorted::open(&work.expected)?;
    let found = Sorted::open(&work.found)?;
    let comparison = compare(expected, found, &audit.circumstances(&work))?;
    audit.note(&comparison, &work, &mut notes);
    let lines = audit.lines(comparison.findings.iter().take(options.lines_max))?;
    let checked = (0..).zip(&audit.cut.outputs).map(|(topic, output)| {
        let count =
            |counts: &std::collections::HashMap<u16, u64>| counts.get(&topic).copied().unwrap_or_default();
        (output.topic.clone(), (count(&work.found_records), count(&comparison.matched)))
    });
    Ok(Report {
        lines,
        checked: checked.collect(),
        counts: comparison.counts.into_iter().filter(|(_, count)| *count > 0).collect(),
        raw_records: work.raw_records,
        notes,
        state: options.state.then_some(work.state),
    })
}

/// The state directory, where the pipeline does not run on it.
fn lock_state(topology: &Topology, notes: &mut Vec<String>) -> Option<StateDirectory> {
    let directory = &topology.state.dir;
    let alone = "the compacted changelog alone is held against the recomputation";
    if !directory.join("stores").is_dir() {
        notes.push(format!("there is no store in {directory:?}: {alone}"));
        return None;
    }
    match StateDirectory::lock(directory, store_settings(topology)) {
        Ok(state) => Some(state),
        Err(why) => {
            notes.push(format!("{why:#}. {alone}"));
            None
        }
    }
}

impl Audit<'_> {
    fn circumstances(&self, work: &Work) -> Circumstances {
        let outputs = (0..).zip(&self.cut.outputs);
        let expired = outputs.flat_map(|(topic, output)| {
            let expired = output.ranges.iter().filter(|range| range.from > 0);
            expired.map(move |range| (topic, range.partition))
        });
        let mut cut_inputs: HashSet<i32> = work.cut_inputs.keys().copied().collect();
        if !cut_inputs.is_empty() && self.topology.source.keyed_by == KeyedBy::Nothing {
            // A dead letter goes to its raw record's partition, whichever its ticket's is.
            cut_inputs.extend(0..self.cut.partitions);
        }
        Circumstances { cut_inputs, expired: expired.collect() }
    }

    fn note(&self, comparison: &Comparison, work: &Work, notes: &mut Vec<String>) {
        let source = self.topology.input_topic();
        for input in self.cut.inputs.iter().filter(|input| input.stage == Stage::Rekey && input.low > 0) {
            notes.push(format!(
                "{} [{}] begins at offset {}: what was re-keyed from before is taken as it is",
                self.topology.source.topic, input.partition, input.low
            ));
        }
        for (partition, low) in &work.cut_inputs {
            notes.push(format!(
                "{source} [{partition}] begins at offset {low}: what was before is gone, so that only what tickets \
                 first seen from there on have emitted can be proven"
            ));
        }
        let mut count = |count: u64, what: &str| {
            if count > 0 {
                notes.push(format!("{count} {what}"));
            }
        };
        count(comparison.unprovable, "expected records cannot be proven: their ticket's past is gone");
        count(
            comparison.before_head + work.before_head,
            "output records come from before the raw topic's first record, or depend on it",
        );
        count(comparison.expired, "expected records are gone from outputs whose head retention has taken");
    }
}
