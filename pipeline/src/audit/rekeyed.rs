//! What must be in the topic of re-keyed records, and which dead letters:
//! the raw topic through the pipeline's own re-keying.
//!
//! It does not know what is there.

use std::sync::Arc;

use anyhow::Result;

use super::cut::{Cut, Input};
use super::expected::Emitted;
use super::reading::{self, Progress, Range};
use crate::consumed::raw_record;
use crate::envelope::Code;
use crate::outgoing;
use crate::record::{Destination, Header, Outbox, RawRecord};
use crate::rekey::{self, Rekey};
use crate::stage::Stage;
use crate::topology::Topology;

/// One raw partition, to be re-keyed again.
pub(super) struct Rekeying<'a> {
    pub(super) topology: &'a Arc<Topology>,
    pub(super) cut: &'a Cut,
    pub(super) input: &'a Input,
    pub(super) progress: &'a Progress,
}

impl Rekeying<'_> {
    /// Hands every expected record before `until` to `emitted`; how many raw records there are.
    ///
    /// # Errors
    /// Where the raw topic cannot be read, and those of `emitted`.
    pub(super) fn run(&self, until: i64, mut emitted: impl FnMut(&Emitted<'_>) -> Result<()>) -> Result<u64> {
        let Input { partition, low, .. } = *self.input;
        let mut rekey = Rekey::new(Arc::clone(self.topology), self.cut.partitions);
        let mut out = Outbox::default();
        let mut records = 0;
        let range = Range { partition, from: low, to: until };
        reading::read(self.topology, &self.topology.source.topic, &[range], self.progress, |message| {
            records += 1;
            let mut headers = Vec::new();
            let raw = raw_record(message, &mut headers);
            rekey.process(&raw, &mut out);
            for (position, record) in (0..).zip(out.records()) {
                // Where retention has taken the head, nothing says which of them went with it.
                let is_proven = record.destination != Destination::Rekeyed
                    || !self.cut.is_head_gone(&self.topology.rekeyed_topic, record.partition);
                emitted(&Emitted { raw: &raw, position, record, is_proven })?;
            }
            Ok(())
        })?;
        Ok(records)
    }
}

/// Whether a record was made by re-keying, of a raw record that is gone.
pub(super) fn is_of_gone(topology: &Topology, cut: &Cut, topic: &str, headers: &[Header<'_>]) -> bool {
    let place = if topic == topology.rekeyed_topic {
        let there = RawRecord { partition: 0, offset: 0, timestamp_ms: 0, key: None, value: None, headers };
        rekey::raw(&there).ok().map(|raw| (raw.partition, raw.offset))
    } else if topic == topology.dead_letter_topic && !is_too_large(headers) {
        outgoing::dead_letter_place(headers, &topology.source.topic)
    } else {
        None
    };
    let is_gone = |(partition, offset): (i32, i64)| {
        let inputs = cut.inputs.iter().filter(|input| input.stage == Stage::Rekey);
        inputs.into_iter().any(|input| input.partition == partition && offset < input.low)
    };
    place.is_some_and(is_gone)
}

/// Only what is made of a re-keyed record can be.
fn is_too_large(headers: &[Header<'_>]) -> bool {
    let code = headers.iter().rev().find(|(name, _)| *name == b"__streams.errors.exception");
    code.is_some_and(|(_, code)| *code == Some(Code::PayloadTooLarge.as_str().as_bytes()))
}
