//! What findings stand for: the records themselves, read and recomputed a second
//! time, for rows hold digests only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use anyhow::Result;

use super::Audit;
use super::compare::{Fault, Finding};
use super::expected::Emitted;
use super::found::{self, Whole};
use super::head::Changelog;
use super::report::{Line, differences};
use super::rows::Row;
use crate::record::OutgoingRecord;
use crate::stage::Stage;

/// The input's number, offset, and place among what that raw record emits.
type Source = (i32, i64, u32);

fn source(row: &Row) -> Source {
    (row.input, row.offset, row.position)
}

impl Audit<'_> {
    /// The findings in words.
    ///
    /// # Errors
    /// Where the records cannot be read again.
    pub(super) fn lines<'f>(&self, findings: impl Iterator<Item = &'f Finding> + Clone) -> Result<Vec<Line>> {
        let wanted: BTreeSet<Source> =
            findings.clone().filter_map(|finding| finding.expected.as_ref()).map(source).collect();
        let expected = self.recompute(&wanted)?;
        findings.map(|finding| self.line(finding, &expected)).collect()
    }

    fn recompute(&self, wanted: &BTreeSet<Source>) -> Result<BTreeMap<Source, Whole>> {
        let mut all = BTreeMap::new();
        for input in &self.cut.inputs {
            let last = wanted.iter().rfind(|(number, ..)| *number == input.number());
            let Some((_, last, _)) = last else { continue };
            self.progress.is_second_pass.store(true, Ordering::Relaxed);
            let keep = |emitted: &Emitted<'_>| {
                let source = (input.number(), emitted.raw.offset, emitted.position);
                if wanted.contains(&source) {
                    all.insert(source, self.whole(&emitted.record));
                }
                Ok(())
            };
            // Nothing is judged here, so that the changelog is not asked what can be proven.
            let changelog: Option<&Changelog> = None;
            match input.stage {
                Stage::Rekey => {
                    self.rekeying(input).run(last + 1, keep)?;
                }
                Stage::Tickets => {
                    self.recomputation(input, changelog).run(last + 1, keep, |_, _| Ok(()))?;
                }
            }
        }
        Ok(all)
    }

    fn whole(&self, record: &OutgoingRecord<'_>) -> Whole {
        Whole {
            topic: record.destination.topic(&self.topology).to_owned(),
            partition: record.partition,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record
                .headers()
                .map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)))
                .collect(),
            timestamp_ms: record.timestamp_ms,
        }
    }

    /// The input that a row is of, in words.
    fn place(&self, row: &Row) -> String {
        let input = self.cut.inputs.iter().find(|input| input.number() == row.input);
        let partition = input.map_or(-1, |input| input.partition);
        let is_raw =
            input.is_none_or(|input| input.stage.topic(&self.topology) == self.topology.source.topic);
        let topic = if is_raw { "raw" } else { "re-keyed" };
        format!("{topic} partition {partition} offset {}", row.offset)
    }

    fn line(&self, finding: &Finding, all: &BTreeMap<Source, Whole>) -> Result<Line> {
        let Finding { fault, expected, found, first } = finding;
        let topic = |row: &Row| {
            let output = self.cut.outputs.get(usize::from(row.topic));
            output.map(|output| output.topic.clone()).unwrap_or_default()
        };
        let whole =
            found.as_ref().map(|row| found::fetch(&self.topology, &topic(row), row.partition, row.offset));
        let whole = whole.transpose()?;
        let wanted = expected.as_ref().and_then(|row| all.get(&source(row)));
        let reason = match (fault, wanted, &whole) {
            (Fault::Missing, ..) => "it must be there, and no record there is it".to_owned(),
            (Fault::Doubled, ..) => {
                format!("it stands at offset {} already", first.map_or_else(String::new, |at| at.to_string()))
            }
            (Fault::OutOfOrder, ..) => "it does not stand in its ticket's order".to_owned(),
            (Fault::Different, Some(wanted), Some(whole)) => differences(wanted, whole),
            (Fault::Different, ..) => "it is not as it must be".to_owned(),
            (Fault::Unexpected, ..) => "no raw record before the committed position explains it".to_owned(),
        };
        let place = found.as_ref().or(expected.as_ref());
        Ok(Line {
            fault: *fault,
            topic: place.map(topic).unwrap_or_default(),
            partition: place.map_or(-1, |row| row.partition),
            offset: found.as_ref().map(|row| row.offset),
            event_id: wanted.or(whole.as_ref()).and_then(Whole::event_id),
            source: expected.as_ref().map(|row| self.place(row)),
            reason,
        })
    }
}
