//! The records of the ids log, and the metadata of committed offsets.
//!
//! Every transaction writes a commit record for each input partition that it
//! moved: where that partition then stood, and the event ids that it saw. The
//! committed offset's metadata names the ends of changelog and ids log, so it
//! says exactly what a store must hold. It does not know how either is sent.

use anyhow::{Context, Result, bail, ensure};

use crate::store::{EventHash, Seen};

const VERSION: u8 = 1;
const KIND_COMMIT: u8 = 0;
const KIND_REBUILDING: u8 = 1;
const KIND_RECOMPUTED: u8 = 2;
const KIND_NOTHING: u8 = 3;

/// An id takes at most 36 bytes, so that a record stays below 512 KiB; a
/// transaction with more of them writes several records.
pub const IDS_MAX: usize = 14_000;

/// Under this key the changelog holds the replays of a partition that came to
/// their end: the ids log is cut, and a compacted topic is not. It is no ticket's,
/// whose uid is UTF-8; the store keeps it like an entry.
pub const REPLAYS_KEY: &[u8] = b"\xffreplays";

/// It is told from an entry by its first byte.
const REPLAYS_VERSION: u8 = 0x81;

/// Of more replays the oldest are forgotten, so that the record stays below 1 MiB.
const REPLAYS_MAX: usize = 200;

/// Under this key the changelog is given tombstones of nothing, for their transaction's marker.
pub const NOTHING_KEY: &[u8] = b"\xffnothing";

/// A record of the ids log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdsRecord {
    /// What a transaction did to an input partition.
    Commit(CommitRecord),
    /// A replay makes the state anew: from the first [`IdsRecord::Recomputed`] to the
    /// next commit record it belongs to no input position.
    Rebuilding(Rebuilding),
    /// What a replay recomputed so far: of a commit record all but that the
    /// state belongs to its input position.
    Recomputed(CommitRecord),
    /// Written for the marker that ends its transaction, and for nothing else.
    Nothing,
}

/// How a replay begins. The ids of what lies at `to` or beyond are void: they
/// are noted again as their records are processed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilding {
    /// The input position that the state belonged to.
    pub from: i64,
    /// The input position from which it emits again.
    pub to: i64,
    /// Each output topic with where its partitions ended then: what lies before
    /// is the earlier runs'.
    pub output_ends: Vec<(String, Vec<i64>)>,
}

/// Where an input partition stood after a transaction, and the ids it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRecord {
    /// The input position.
    pub input: i64,
    /// The greatest Kafka timestamp before that position, in milliseconds.
    pub stream_time_ms: i64,
    /// The new event ids, in their order.
    pub ids: Vec<(EventHash, Seen)>,
}

impl IdsRecord {
    /// The record's bytes: version, kind, then numbers of variable length;
    /// offsets and timestamps as differences to the ones before.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        match self {
            IdsRecord::Commit(commit) | IdsRecord::Recomputed(commit) => {
                let is_commit = matches!(self, IdsRecord::Commit(_));
                bytes.push(if is_commit { KIND_COMMIT } else { KIND_RECOMPUTED });
                write_number(&mut bytes, commit.input);
                write_number(&mut bytes, commit.stream_time_ms);
                let mut before = Seen { offset: commit.input, timestamp_ms: commit.stream_time_ms };
                for (id, seen) in &commit.ids {
                    bytes.extend_from_slice(id);
                    // Wrapping there and back again is exact for whatever numbers.
                    write_number(&mut bytes, seen.offset.wrapping_sub(before.offset));
                    write_number(&mut bytes, seen.timestamp_ms.wrapping_sub(before.timestamp_ms));
                    before = *seen;
                }
            }
            IdsRecord::Rebuilding(rebuilding) => {
                bytes.push(KIND_REBUILDING);
                write_rebuilding(&mut bytes, rebuilding);
            }
            IdsRecord::Nothing => bytes.push(KIND_NOTHING),
        }
        bytes
    }

    /// Reads a record's bytes.
    ///
    /// # Errors
    /// Where they are of another version or kind, or damaged; whatever they are,
    /// it does not panic.
    pub fn decode(bytes: &[u8]) -> Result<IdsRecord> {
        let Some(([version, kind], rest)) = bytes.split_first_chunk() else {
            bail!("the record of the ids log is too short");
        };
        ensure!(
            *version == VERSION,
            "the record of the ids log is of version {version}, and this program reads version {VERSION}: run the \
             newer program that wrote it"
        );
        match *kind {
            KIND_COMMIT => decode_commit(rest).map(IdsRecord::Commit),
            KIND_REBUILDING => decode_rebuilding(rest).map(IdsRecord::Rebuilding),
            KIND_RECOMPUTED => decode_commit(rest).map(IdsRecord::Recomputed),
            KIND_NOTHING => Ok(IdsRecord::Nothing),
            kind => bail!(
                "the record of the ids log is of kind {kind}, which this program does not know: run the newer program \
                 that wrote it"
            ),
        }
    }
}

/// The record under [`REPLAYS_KEY`]: what it was, if it was, and one replay more.
///
/// # Errors
/// Where what it was cannot be read.
pub fn add_replay(before: Option<&[u8]>, replay: Rebuilding) -> Result<Vec<u8>> {
    let mut replays = before.map_or(Ok(Vec::new()), read_replays)?;
    replays.push(replay);
    let mut bytes = vec![REPLAYS_VERSION];
    for replay in replays.iter().skip(replays.len().saturating_sub(REPLAYS_MAX)) {
        let mut one = Vec::new();
        write_rebuilding(&mut one, replay);
        write_length(&mut bytes, one.len());
        bytes.append(&mut one);
    }
    Ok(bytes)
}

/// The replays of a record under [`REPLAYS_KEY`], in their order.
///
/// # Errors
/// Where it cannot be read.
pub fn read_replays(bytes: &[u8]) -> Result<Vec<Rebuilding>> {
    let (version, mut bytes) = bytes.split_first().context("the record of replays is empty")?;
    ensure!(
        *version == REPLAYS_VERSION,
        "the record of replays is of version {version}, and this program reads version {REPLAYS_VERSION}: run the newer \
         program that wrote it"
    );
    let mut replays = Vec::new();
    while !bytes.is_empty() {
        let length = read_length(&mut bytes)?;
        let (one, rest) =
            bytes.split_at_checked(length).context("the record of replays ends within a replay")?;
        bytes = rest;
        replays.push(decode_rebuilding(one)?);
    }
    Ok(replays)
}

fn write_rebuilding(bytes: &mut Vec<u8>, Rebuilding { from, to, output_ends }: &Rebuilding) {
    write_number(bytes, *from);
    write_number(bytes, *to);
    for (topic, ends) in output_ends {
        write_length(bytes, topic.len());
        bytes.extend_from_slice(topic.as_bytes());
        write_length(bytes, ends.len());
        ends.iter().for_each(|end| write_number(bytes, *end));
    }
}

fn decode_commit(mut bytes: &[u8]) -> Result<CommitRecord> {
    let input = read_number(&mut bytes)?;
    let stream_time_ms = read_number(&mut bytes)?;
    let mut ids = Vec::with_capacity(bytes.len() / 18);
    let mut before = Seen { offset: input, timestamp_ms: stream_time_ms };
    while !bytes.is_empty() {
        let (id, rest) = bytes.split_first_chunk().context("the record of the ids log ends within an id")?;
        bytes = rest;
        before = Seen {
            offset: before.offset.wrapping_add(read_number(&mut bytes)?),
            timestamp_ms: before.timestamp_ms.wrapping_add(read_number(&mut bytes)?),
        };
        ids.push((*id, before));
    }
    Ok(CommitRecord { input, stream_time_ms, ids })
}

fn decode_rebuilding(mut bytes: &[u8]) -> Result<Rebuilding> {
    let from = read_number(&mut bytes)?;
    let to = read_number(&mut bytes)?;
    let mut output_ends = Vec::new();
    while !bytes.is_empty() {
        let length = read_length(&mut bytes)?;
        let (topic, rest) =
            bytes.split_at_checked(length).context("the record of the ids log ends within a topic")?;
        bytes = rest;
        let topic = std::str::from_utf8(topic).context("the record of the ids log names no topic")?;
        let partitions = read_length(&mut bytes)?;
        let ends = (0..partitions).map(|_| read_number(&mut bytes)).collect::<Result<_>>()?;
        output_ends.push((topic.to_owned(), ends));
    }
    Ok(Rebuilding { from, to, output_ends })
}

fn write_length(bytes: &mut Vec<u8>, length: usize) {
    write_number(bytes, i64::try_from(length).unwrap_or(i64::MAX));
}

/// Each of what is counted takes a byte at least.
fn read_length(bytes: &mut &[u8]) -> Result<usize> {
    let length = usize::try_from(read_number(bytes)?).ok().filter(|length| *length <= bytes.len());
    length.context("the record of the ids log is shorter than it says")
}

/// Seven bits a byte, the sign in the lowest bit, so that small differences are short.
fn write_number(bytes: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while rest >= 0x80 {
        bytes.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    bytes.push(rest.to_le_bytes()[0]);
}

fn read_number(bytes: &mut &[u8]) -> Result<i64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().context("the record of the ids log ends within a number")?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    bail!("the record of the ids log holds a number that is too long")
}

/// The ends of changelog and ids log that belong to a committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The changelog's.
    pub changelog: i64,
    /// The ids log's.
    pub ids: i64,
}

impl Ends {
    /// As the committed offset's metadata: ASCII, as Kafka's tools show it.
    #[must_use]
    pub fn to_metadata(self) -> String {
        format!("1 {} {}", self.changelog, self.ids)
    }

    /// From the committed offset's metadata; `None` where there is none, as
    /// after a reset by Kafka's tools.
    ///
    /// # Errors
    /// Where the metadata is not ours.
    pub fn of_metadata(metadata: &str) -> Result<Option<Ends>> {
        if metadata.is_empty() {
            return Ok(None);
        }
        let mut words = metadata.split(' ');
        let ends = (words.next() == Some("1"))
            .then(|| Some(Ends { changelog: words.next()?.parse().ok()?, ids: words.next()?.parse().ok()? }))
            .flatten()
            .filter(|ends| words.next().is_none() && ends.changelog >= 0 && ends.ids >= 0);
        ends.map(Some).with_context(|| {
            format!("the committed offset's metadata {metadata:?} is not this program's: did a newer one write it?")
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_seen()(offset in any::<i64>(), timestamp_ms in any::<i64>()) -> Seen { Seen { offset, timestamp_ms } }
    }

    proptest! {
        #[test]
        fn a_commit_record_reads_as_it_was_written(
            input in any::<i64>(),
            stream_time_ms in any::<i64>(),
            ids in prop::collection::vec((any::<EventHash>(), any_seen()), 0..40),
        ) {
            let commit = CommitRecord { input, stream_time_ms, ids };
            for record in [IdsRecord::Commit(commit.clone()), IdsRecord::Recomputed(commit)] {
                prop_assert_eq!(IdsRecord::decode(&record.encode()).unwrap(), record);
            }
        }

        #[test]
        fn a_rebuilding_record_reads_as_it_was_written(
            from in any::<i64>(),
            to in any::<i64>(),
            output_ends in prop::collection::vec(("[a-z.]{0,9}", prop::collection::vec(any::<i64>(), 0..9)), 0..5),
        ) {
            let record = IdsRecord::Rebuilding(Rebuilding { from, to, output_ends });
            prop_assert_eq!(IdsRecord::decode(&record.encode()).unwrap(), record);
        }

        #[test]
        fn the_last_replays_are_kept_in_their_order(count in 0..300i64) {
            let replay = |from| Rebuilding { from, to: from / 2, output_ends: vec![("t".into(), vec![from])] };
            let mut bytes = None;
            for from in 0..count {
                bytes = Some(add_replay(bytes.as_deref(), replay(from)).unwrap());
            }
            let kept = bytes.map_or(Vec::new(), |bytes| read_replays(&bytes).unwrap());
            let first = (count - 200).max(0);
            prop_assert_eq!(kept, (first..count).map(replay).collect::<Vec<_>>());
        }

        #[test]
        fn whatever_bytes_come_nothing_panics(head in 0u8..3, kind in 0u8..5, bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = IdsRecord::decode(&bytes);
            let _ = read_replays(&bytes);
            let _ = read_replays(&[&[REPLAYS_VERSION], bytes.as_slice()].concat());
            let _ = IdsRecord::decode(&[&[head, kind], bytes.as_slice()].concat());
        }

        #[test]
        fn metadata_reads_as_it_was_written(changelog in 0..i64::MAX, ids in 0..i64::MAX) {
            let ends = Ends { changelog, ids };
            prop_assert!(ends.to_metadata().is_ascii());
            prop_assert_eq!(Ends::of_metadata(&ends.to_metadata()).unwrap(), Some(ends));
        }
    }

    #[test]
    fn an_id_of_ordinary_traffic_takes_twenty_bytes_at_most() {
        let ids = (0..1_000)
            .map(|n: i64| ([7; 16], Seen { offset: n, timestamp_ms: 1_700_000_000_000 + 40 * n }))
            .collect();
        let record =
            IdsRecord::Commit(CommitRecord { input: 1_000, stream_time_ms: 1_700_000_040_000, ids }).encode();
        assert!(record.len() <= 20_000, "{}", record.len());
    }

    #[test]
    fn a_record_with_the_most_ids_stays_below_half_a_mebibyte() {
        let far = [i64::MAX, i64::MIN];
        let ids = far
            .iter()
            .cycle()
            .take(IDS_MAX)
            .map(|far| ([7; 16], Seen { offset: *far / 2, timestamp_ms: *far / 2 }))
            .collect();
        let record = IdsRecord::Commit(CommitRecord { input: 0, stream_time_ms: 0, ids }).encode();
        assert!(record.len() < 512 * 1024, "{}", record.len());
    }

    #[test]
    fn nothing_reads_as_it_was_written() {
        assert_eq!(IdsRecord::decode(&IdsRecord::Nothing.encode()).unwrap(), IdsRecord::Nothing);
    }

    #[test]
    fn an_unknown_version_or_kind_is_refused_in_plain_words() {
        for bytes in [&[2, 0][..], &[1, 9]] {
            let refusal = IdsRecord::decode(bytes).unwrap_err().to_string();
            assert!(refusal.contains("newer program"), "{refusal}");
        }
    }

    #[test]
    fn foreign_metadata_is_refused() {
        assert_eq!(Ends::of_metadata("").unwrap(), None);
        for metadata in ["2 1 1", "1 1", "1 1 1 1", "1 -1 0", "hello", "1  1"] {
            assert!(Ends::of_metadata(metadata).is_err(), "{metadata}");
        }
    }
}
