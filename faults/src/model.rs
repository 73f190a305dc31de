//! What must be in the outputs: the raw topic through real tasks in memory, in
//! one go, with no broker and no fault; and what is there against it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use anyhow::{Context, Result};
use rdkafka::Message;
use ticket_harness::broker;
use ticket_pipeline::record::{Header, Outbox, RawRecord};
use ticket_pipeline::store::Store;
use ticket_pipeline::task::Task;
use ticket_pipeline::topology::Topology;
use ticket_pipeline::transaction::read_headers;

/// Of all that must be equal in a record.
pub(crate) type Digest = [u8; 16];
/// A topic and a partition of it.
pub(crate) type Place = (String, i32);
/// Offsets and digests, in the order of the log.
pub(crate) type Found = BTreeMap<Place, Vec<(i64, Digest)>>;
/// By place and raw partition: raw offsets and digests, in the order of emission.
pub(crate) type Expected = BTreeMap<Place, BTreeMap<i32, VecDeque<(i64, Digest)>>>;

/// Its text is for people, and may be another.
const FREE_HEADER: &[u8] = b"__streams.errors.message";

/// The digest of a record.
pub(crate) fn digest<'h>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    timestamp_ms: i64,
    headers: impl Iterator<Item = Header<'h>>,
) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: Option<&[u8]>| {
        hasher.update(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    put(key);
    put(value);
    put(Some(&timestamp_ms.to_le_bytes()));
    for (name, value) in headers {
        put(Some(name));
        put(value.filter(|_| name != FREE_HEADER));
    }
    let mut digest = [0; 16];
    hasher.finalize_xof().fill(&mut digest);
    digest
}

/// The digest of a record that was read.
pub(crate) fn digest_of(record: &rdkafka::message::BorrowedMessage<'_>) -> Digest {
    let mut headers = Vec::new();
    read_headers(record, &mut headers);
    let timestamp_ms = record.timestamp().to_millis().unwrap_or(-1);
    digest(record.key(), record.payload(), timestamp_ms, headers.into_iter())
}

/// All that must come of the raw records before these positions, and how many those are.
pub(crate) fn expected(topology: &Arc<Topology>, positions: &[u64]) -> Result<(u64, Expected)> {
    let partitions = i32::try_from(positions.len())?;
    let task = || Task::new(Arc::clone(topology), partitions, Store::in_memory(), i64::MIN);
    let mut tasks: Vec<Task> = positions.iter().map(|_| task()).collect();
    let mut outbox = Outbox::default();
    let mut expected = Expected::new();
    let mut records = 0;
    let source = std::slice::from_ref(&topology.source.topic);
    broker::read_all(topology, source, partitions, |record| {
        let index = usize::try_from(record.partition())?;
        let position = positions.get(index).copied().unwrap_or(0);
        if u64::try_from(record.offset())? >= position {
            return Ok(());
        }
        records += 1;
        let mut headers = Vec::new();
        read_headers(record, &mut headers);
        let raw = RawRecord {
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp().to_millis().unwrap_or(-1),
            key: record.key(),
            value: record.payload(),
            headers: &headers,
        };
        let task = tasks.get_mut(index).context("a task for each partition")?;
        task.process(&raw, &mut outbox)?;
        for out in outbox.records() {
            let place = (out.destination.topic(topology).to_owned(), out.partition);
            // A timestamp of 0 cannot be produced.
            let timestamp_ms = if out.timestamp_ms == 0 { 1 } else { out.timestamp_ms };
            let digest = digest(out.key, out.value, timestamp_ms, out.headers());
            let sources = expected.entry(place).or_default();
            sources.entry(raw.partition).or_default().push_back((raw.offset, digest));
        }
        Ok(())
    })?;
    Ok((records, expected))
}

/// All that readers of committed records find in the outputs.
pub(crate) fn found(topology: &Topology, partitions: i32) -> Result<Found> {
    let topics: Vec<String> = topology.output_topics().map(str::to_owned).collect();
    let mut found = Found::new();
    broker::read_all(topology, &topics, partitions, |record| {
        let place = (record.topic().to_owned(), record.partition());
        found.entry(place).or_default().push((record.offset(), digest_of(record)));
        Ok(())
    })?;
    Ok(found)
}

/// Record by record, for each partition: where its records come of several raw
/// partitions, in the order of each. How many were compared, and what is wrong.
pub(crate) fn compare(mut expected: Expected, found: &Found) -> (u64, Vec<String>) {
    let mut compared = 0;
    let mut wrong = Vec::new();
    for (place, records) in found {
        let mut sources = expected.remove(place).unwrap_or_default();
        for (index, (offset, digest)) in records.iter().enumerate() {
            let next = sources.values_mut().find(|left| left.front().is_some_and(|(_, next)| next == digest));
            if let Some(next) = next {
                next.pop_front();
                compared += 1;
                continue;
            }
            let rest = records.get(index..).unwrap_or_default();
            wrong.push(format!(
                "{} [{}] from offset {offset} on: {}",
                place.0,
                place.1,
                differences(&sources, rest)
            ));
            sources.clear();
            break;
        }
        expected.insert(place.clone(), sources);
    }
    for (place, sources) in &expected {
        for (source, left) in sources {
            if let Some((offset, _)) = left.front() {
                let count = left.len();
                wrong.push(format!(
                    "{} [{}]: {count} records are missing at its end, of raw partition {source} from offset {offset} on",
                    place.0, place.1
                ));
            }
        }
    }
    (compared, wrong)
}

/// In what the rest of a partition differs.
fn differences(sources: &BTreeMap<i32, VecDeque<(i64, Digest)>>, found: &[(i64, Digest)]) -> String {
    let mut left: HashMap<Digest, i64> = HashMap::new();
    for (_, digest) in sources.values().flatten() {
        *left.entry(*digest).or_default() += 1;
    }
    for (_, digest) in found {
        *left.entry(*digest).or_default() -= 1;
    }
    let missing: i64 = left.values().filter(|count| **count > 0).sum();
    let more: i64 = left.values().filter(|count| **count < 0).sum();
    let heads: Vec<String> = sources
        .iter()
        .filter_map(|(source, left)| Some(format!("raw partition {source} offset {}", left.front()?.0)))
        .collect();
    let order = if missing == 0 && more == 0 { ", all there in another order" } else { "" };
    format!("{missing} missing, {} too many{order}; what must come is of {}", -more, heads.join(" or "))
}
