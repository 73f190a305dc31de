//! Re-keying: a raw record whose key says nothing goes to its ticket's
//! partition of the internal topic, with the ticket uid as its key.
//!
//! The record that arrives there tells where it came from, so that what is made
//! of it still names the raw topic's partition and offset, and its key and
//! headers can be handed on as they were. Pure, and without memory: a record
//! comes in, one goes out.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::envelope::Decoder;
use crate::outgoing;
use crate::partition;
use crate::record::{Destination, Draft, Header, Origin, Outbox, RawRecord};
use crate::task::{Fate, Outcome};
use crate::topology::Topology;

/// The raw partition, in decimal.
pub const PARTITION: &[u8] = b"__rekeyed.partition";
/// The raw offset, in decimal.
pub const OFFSET: &[u8] = b"__rekeyed.offset";
/// The raw key as it was; null where there was none.
const KEY: &[u8] = b"__rekeyed.key";

/// What is done with one raw partition.
#[derive(Debug)]
pub struct Rekey {
    topology: Arc<Topology>,
    partitions: i32,
    decoder: Decoder,
}

impl Rekey {
    /// `partitions` is how many the internal topic has.
    #[must_use]
    pub fn new(topology: Arc<Topology>, partitions: i32) -> Rekey {
        Rekey { topology, partitions, decoder: Decoder::default() }
    }

    /// Puts the re-keyed record into `out` (cleared first), or a dead letter
    /// where nothing says whose record it is.
    pub fn process(&mut self, record: &RawRecord<'_>, out: &mut Outbox) -> Outcome {
        out.clear();
        let envelope = match self.decoder.decode(record, &self.topology) {
            Ok(envelope) => envelope,
            Err(unusable) => {
                outgoing::push_dead_letter(out, &self.topology.source.topic, record, &unusable);
                return Outcome::of(Fate::DeadLetter(unusable.code), None);
            }
        };
        let uid = envelope.uid.as_bytes();
        out.push(&Draft {
            destination: Destination::Rekeyed,
            partition: partition::of(uid, self.partitions),
            key: Some(uid),
            value: record.value,
            timestamp_ms: record.timestamp_ms,
            origin: Origin::Rekeyed,
        });
        for (name, value) in record.headers {
            out.header(name, *value);
        }
        // Behind the record's own, whatever those are called.
        out.header(PARTITION, Some(record.partition.to_string().as_bytes()));
        out.header(OFFSET, Some(record.offset.to_string().as_bytes()));
        out.header(KEY, record.key);
        Outcome::of(Fate::Rekeyed, Some(envelope.event_type))
    }
}

/// A record of the internal topic as it was in the raw topic.
///
/// # Errors
/// Where it does not say so: somebody else has written to the internal topic.
pub fn raw<'a>(record: &RawRecord<'a>) -> Result<RawRecord<'a>> {
    let (headers, partition, offset, key) = record
        .headers
        .split_last_chunk()
        .and_then(|(headers, [partition, offset, key])| {
            let key = (key.0 == KEY).then_some(key.1)?;
            let partition = number(partition, PARTITION)?.try_into().ok()?;
            Some((headers, partition, number(offset, OFFSET)?, key))
        })
        .context(
            "it does not say which raw record it is: only the pipeline itself may write to the topic of re-keyed \
             records",
        )?;
    Ok(RawRecord { partition, offset, key, headers, ..*record })
}

fn number(header: &Header<'_>, name: &[u8]) -> Option<i64> {
    let (found, value) = *header;
    let text = std::str::from_utf8(value.filter(|_| found == name)?).ok()?;
    text.parse().ok().filter(|number| *number >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Code;

    fn topology() -> Arc<Topology> {
        let text = "source: { keyed_by: nothing }";
        Arc::new(Topology::parse("topology.yaml", text, &|_| None).unwrap())
    }

    fn value(uid: &str) -> Vec<u8> {
        format!(
            r#"{{"eventId":"e","eventType":"ticket:updated","timestamp":1,"payload":{{"ticket":{{"id":"{uid}"}}}}}}"#
        )
        .into_bytes()
    }

    fn record<'a>(
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
        headers: &'a [Header<'a>],
    ) -> RawRecord<'a> {
        RawRecord { partition: 3, offset: 812, timestamp_ms: 7, key, value, headers }
    }

    #[test]
    fn a_rekeyed_record_is_keyed_by_its_ticket_and_comes_back_as_it_was() {
        let value = value("T-1");
        let own: [Header<'_>; 3] = [(b"a", None), (OFFSET, Some(b"9")), (KEY, Some(b"mine"))];
        for key in [None, Some(b"".as_slice()), Some(b"T-9"), Some(b"\xff")] {
            let raw_record = record(key, Some(&value), &own);
            let mut out = Outbox::default();
            let outcome = Rekey::new(topology(), 4).process(&raw_record, &mut out);
            assert_eq!(outcome.fate, Fate::Rekeyed);
            let [rekeyed] = out.records().collect::<Vec<_>>().try_into().unwrap();
            assert_eq!((rekeyed.key, rekeyed.value), (Some(b"T-1".as_slice()), Some(value.as_slice())));
            assert_eq!((rekeyed.partition, rekeyed.timestamp_ms), (partition::of(b"T-1", 4), 7));
            let headers: Vec<Header<'_>> = rekeyed.headers().collect();
            let there = RawRecord {
                partition: rekeyed.partition,
                offset: 5,
                timestamp_ms: rekeyed.timestamp_ms,
                key: rekeyed.key,
                value: rekeyed.value,
                headers: &headers,
            };
            let back = raw(&there).unwrap();
            assert_eq!((back.partition, back.offset, back.key), (3, 812, key));
            assert_eq!((back.headers, back.value), (raw_record.headers, raw_record.value));
        }
    }

    #[test]
    fn a_record_of_nobodys_is_a_dead_letter_and_its_key_names_no_ticket() {
        let nobodys = br#"{"eventId":"e","eventType":"ticket:updated","timestamp":1,"payload":{}}"#;
        let values: [(Option<&[u8]>, Code); 3] =
            [(None, Code::NullValue), (Some(b"{"), Code::NotJson), (Some(nobodys), Code::NoTicketUid)];
        for (value, code) in values {
            let mut out = Outbox::default();
            let outcome = Rekey::new(topology(), 4).process(&record(Some(b"T-1"), value, &[]), &mut out);
            assert_eq!(outcome.fate, Fate::DeadLetter(code));
            let [dead] = out.records().collect::<Vec<_>>().try_into().unwrap();
            assert_eq!((dead.destination, dead.partition), (Destination::DeadLetter, 3));
            assert_eq!((dead.key, dead.value), (Some(b"T-1".as_slice()), value));
        }
    }

    #[test]
    fn a_stranger_in_the_internal_topic_is_refused() {
        let whole: [Header<'_>; 3] = [(PARTITION, Some(b"3")), (OFFSET, Some(b"1")), (KEY, None)];
        assert!(raw(&record(None, None, &whole)).is_ok());
        let strangers: [&[Header<'_>]; 4] = [
            &[],
            &[(PARTITION, Some(b"3")), (OFFSET, Some(b"1"))],
            &[(PARTITION, Some(b"3")), (OFFSET, Some(b"-1")), (KEY, None)],
            &[(OFFSET, Some(b"1")), (PARTITION, Some(b"3")), (KEY, None)],
        ];
        for headers in strangers {
            let refusal = raw(&record(None, None, headers)).unwrap_err().to_string();
            assert!(refusal.contains("only the pipeline itself"), "{refusal}");
        }
    }
}
