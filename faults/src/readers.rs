//! Readers that are there all along, beside the faults: what they are given
//! must be what the log holds in the end.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use ticket_pipeline::clients::{self, Sight};
use ticket_pipeline::topology::Topology;

use crate::model::{Found, digest_of};
use crate::outcome::Outcome;

/// All that must come has come, and then nothing for so long: there is nothing more.
const SILENCE: Duration = Duration::from_secs(3);
/// Nothing came for so long, on the slowest machine: what is missing will not come.
const SILENCE_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// What a reader was given, in the order in which it came.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    records: Found,
    complaints: Vec<String>,
    /// How often the client had lost sight of its cluster, and was told of its brokers again.
    told: u64,
}

impl Seen {
    fn judge(&self, outcome: &mut Outcome) {
        outcome.wrong.extend(self.complaints.iter().cloned());
        outcome.fired("reader of the suite that had lost sight of its cluster told of it again", self.told);
    }

    /// Whether it has come to the end of what is there.
    fn reaches(&self, found: &Found) -> bool {
        let last = |all: &Found, place| all.get(place).and_then(|records| records.last()).map(|last| last.0);
        found.keys().all(|place| last(&self.records, place) >= last(found, place))
    }
}

/// Reads all outputs from their beginning until it is known what is there in the end.
pub(crate) fn follow(
    topology: &Topology,
    partitions: i32,
    isolation: &str,
    found: &OnceLock<Found>,
) -> Result<Seen> {
    let mut config = clients::log_reader(topology);
    config.set("isolation.level", isolation);
    config.set("group.id", "ticket-faults-reader");
    config.set("queued.max.messages.kbytes", "16384");
    let reader = begin(&config, topology, partitions)?;
    let mut sight = Sight::new(&config);
    let silence_max =
        |seen: &Seen| found.get().map(|found| if seen.reaches(found) { SILENCE } else { SILENCE_MAX });
    let mut seen = Seen::default();
    let mut heard = Instant::now();
    while silence_max(&seen).is_none_or(|silence_max| heard.elapsed() < silence_max) {
        if sight.keep(reader.client()) {
            heard = Instant::now();
            seen.told += 1;
        }
        match reader.poll(POLL) {
            Some(Ok(record)) => {
                heard = Instant::now();
                let place = (record.topic().to_owned(), record.partition());
                seen.records.entry(place).or_default().push((record.offset(), digest_of(&record)));
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            // A broker that is gone comes back; what its log has lost does not.
            Some(Err(error)) => {
                use RDKafkaErrorCode as Code;
                let code = error.rdkafka_error_code();
                if matches!(code, Some(Code::AutoOffsetReset | Code::OffsetOutOfRange)) {
                    seen.complaints.push(format!("the {isolation} reader: {error}"));
                }
            }
        }
    }
    Ok(seen)
}

/// A client that reads all outputs from their beginning.
fn begin(config: &ClientConfig, topology: &Topology, partitions: i32) -> Result<BaseConsumer> {
    let reader: BaseConsumer = config.create().context("make a reader")?;
    let mut list = TopicPartitionList::new();
    for topic in topology.output_topics() {
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Offset(0))?;
        }
    }
    reader.assign(&list)?;
    Ok(reader)
}

/// A reader of committed records saw exactly what is there in the end, in that order.
pub(crate) fn judge_committed(seen: &Seen, found: &Found, outcome: &mut Outcome) {
    seen.judge(outcome);
    for (place, records) in found {
        let own = seen.records.get(place).map(Vec::as_slice).unwrap_or_default();
        let differs = records.iter().zip(own).position(|(one, other)| one != other);
        outcome.expect(differs.is_none() && own.len() == records.len(), || {
            format!(
                "{} [{}]: the reader of committed records was given {} and the log holds {}; they differ from number {:?} on",
                place.0,
                place.1,
                own.len(),
                records.len(),
                differs
            )
        });
    }
    for place in seen.records.keys().filter(|place| !found.contains_key(*place)) {
        outcome.expect(false, || format!("{} [{}]: records were read that are not there", place.0, place.1));
    }
}

/// A reader of everything saw each committed record, and those of aborted transactions besides.
pub(crate) fn judge_uncommitted(seen: &Seen, found: &Found, outcome: &mut Outcome) {
    seen.judge(outcome);
    for (place, own) in &seen.records {
        let committed = found.get(place).map(Vec::as_slice).unwrap_or_default();
        let all: HashMap<i64, _> = own.iter().copied().collect();
        let lost = committed.iter().filter(|(offset, digest)| all.get(offset) != Some(digest)).count();
        outcome.expect(lost == 0, || {
            format!("{} [{}]: {lost} committed records were never seen before", place.0, place.1)
        });
        outcome.aborted += all.len().saturating_sub(committed.len()) as u64;
    }
}
