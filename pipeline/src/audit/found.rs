//! What is there: the outputs, as readers of committed records see them.

use anyhow::{Context, Result};
use rdkafka::message::Message;

use super::cut::Output;
use super::reading::{self, Progress, Range};
use super::rows::{Digests, Proof, Row, Spool};
use crate::topology::Topology;
use crate::transaction::read_headers;

/// Spools a row for every record of an output topic below the cut; how many.
///
/// # Errors
/// Where they cannot be read, or the disk not be written.
pub(super) fn spool(
    topology: &Topology,
    topic: u16,
    output: &Output,
    progress: &Progress,
    spool: &mut Spool,
) -> Result<u64> {
    let mut records = 0;
    reading::read(topology, &output.topic, &output.ranges, progress, |record| {
        records += 1;
        let mut headers = Vec::new();
        read_headers(record, &mut headers);
        let timestamp_ms = reading::timestamp_ms(record);
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
    Ok(records)
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
            timestamp_ms: reading::timestamp_ms(record),
        });
        Ok(())
    })?;
    whole.with_context(|| format!("{topic} [{partition}] offset {offset} is gone"))
}
