//! The runs of an input partition: a replay doubles by design, so what must be
//! in the outputs is what each run emitted, one run after the other.
//!
//! It does not know how a replay is made, only what it leaves behind: records in
//! the ids log, and behind the cut of that log a record in the changelog.

use std::collections::HashMap;

use crate::commit_record::{IdsRecord, Rebuilding};

/// A stretch of an input partition that was emitted in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The input position at which it began to emit.
    pub from: i64,
    /// The input position that it reached: where the next run left it, or what is committed.
    pub to: i64,
    /// Where each output topic's partition ended when this run ended, in offsets; of
    /// the last run nothing, for it still goes on.
    pub output_ends: HashMap<(String, i32), i64>,
}

/// The replays of an input partition, as its ids log tells them. A rebuild that
/// was begun again emitted nothing before: it takes the place of the one before it.
#[derive(Debug, Default)]
pub struct Replays {
    done: Vec<Rebuilding>,
    begun: Option<Rebuilding>,
}

impl Replays {
    /// Those that came to their end.
    #[must_use]
    pub fn done(done: Vec<Rebuilding>) -> Replays {
        Replays { done, begun: None }
    }

    /// Takes the log's next record.
    pub fn take(&mut self, record: IdsRecord) {
        match record {
            IdsRecord::Rebuilding(again) => {
                let from = self.begun.take().map_or(again.from, |before| before.from);
                self.begun = Some(Rebuilding { from, ..again });
            }
            // A commit record at the position ends the rebuild.
            IdsRecord::Commit(_) => self.done.extend(self.begun.take()),
            IdsRecord::Recomputed(_) | IdsRecord::Nothing => {}
        }
    }

    /// The runs, in their order. Without a replay it is one: from the raw topic's
    /// first record, `low`, to what is committed.
    #[must_use]
    pub fn runs(self, low: i64, committed: i64) -> Vec<Run> {
        let mut runs = Vec::with_capacity(self.done.len() + 1);
        let mut from = low;
        for replay in self.done {
            let ends = replay.output_ends.into_iter().flat_map(|(topic, ends)| {
                (0..).zip(ends).map(move |(partition, end)| ((topic.clone(), partition), end))
            });
            runs.push(Run { from, to: replay.from, output_ends: ends.collect() });
            from = replay.to.max(low);
        }
        runs.push(Run { from, to: committed, output_ends: HashMap::new() });
        runs
    }
}
