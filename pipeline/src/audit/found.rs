//! What is there: the outputs, as readers of committed records see them.

use anyhow::{Context, Result};
use rdkafka::message::Message;

use super::cut::Output;
use super::reading::{self, Progress, Range};
use super::rows::{Digests, Proof, Row, Spool};
use super::{Audit, rekeyed};
use crate::consumed::timestamp_ms;
use crate::topology::{KeyedBy, Topology};
use crate::transaction::read_headers;

/// How many records an output topic holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) records: u64,
    /// Of those, what was re-keyed of raw records that are gone.
    pub(super) before_head: u64,
}

impl Audit<'_> {
    /// Spools a row for every record of an output topic below the cut.
    ///
    /// # Errors
    /// Where they cannot be read, or the disk not be written.
    pub(super) fn spool(&self, topic: u16, output: &Output, spool: &mut Spool) -> Result<Counts> {
        let topology = &self.topology;
        let is_rekeyed = topology.source.keyed_by == KeyedBy::Nothing;
        let mut counts = Counts::default();
        reading::read(topology, &output.topic, &output.ranges, self.progress, |record| {
            counts.records += 1;
            let mut headers = Vec::new();
            read_headers(record, &mut headers);
            if is_rekeyed && rekeyed::is_of_gone(topology, &self.cut, &output.topic, &headers) {
                counts.before_head += 1;
                return Ok(());
            }
            let timestamp_ms = timestamp_ms(record);
            let digests = Digests::of(record.key(), record.payload(), timestamp_ms, headers.iter().copied());
            let Digests { ticket, identity, digest } = digests;
            spool.push(Row {
                topic,
                partition: record.partition(),
                ticket,
                input: 0,
                run: 0,
                offset: record.offset(),
                position: 0,
                identity,
                digest,
                proof: Proof::Required,
            })
        })?;
        Ok(counts)
    }
}

/// A record as it is, for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub(super) timestamp_ms: i64,
}

/// Reads one record again.
///
/// # Errors
/// Where it cannot be read.
pub(super) fn fetch(topology: &Topology, topic: &str, partition: i32, offset: i64) -> Result<Whole> {
    let mut whole = None;
    let range = Range { partition, from: offset, to: offset + 1 };
    reading::read(topology, topic, &[range], &Progress::default(), |record| {
        let mut headers = Vec::new();
        read_headers(record, &mut headers);
        whole = Some(Whole {
            topic: topic.to_owned(),
            partition,
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            headers: headers.iter().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
            timestamp_ms: timestamp_ms(record),
        });
        Ok(())
    })?;
    whole.with_context(|| format!("{topic} [{partition}] offset {offset} is gone"))
}
