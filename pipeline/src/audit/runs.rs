//! The runs of an input partition: a replay doubles by design, so what must be
//! in the outputs is what each run emitted, one run after the other.
//!
//! It does not know how a replay is made, only what it leaves behind.

use std::collections::HashMap;

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

/// The runs of an input partition, in their order. Without a replay it is one:
/// from the raw topic's first record to what is committed.
#[must_use]
pub fn runs(_partition: i32, low: i64, committed: i64) -> Vec<Run> {
    vec![Run { from: low, to: committed, output_ends: HashMap::new() }]
}
