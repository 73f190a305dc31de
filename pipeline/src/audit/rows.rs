//! Rows that say what a record must be, or is, in a few bytes, sorted on disk
//! so that memory stays bounded whatever the topics hold.
//!
//! A row stands for a record by digests. It does not know what is compared with
//! what.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::record::Header;
use crate::rekey;

/// So many rows are sorted in memory: about 40 MiB.
const BUFFER_ROWS_MAX: usize = 500_000;
/// So many sorted files are merged at a time, for each is held open.
const FILES_MAX: usize = 128;
const FILE_BUFFER_BYTES: usize = 64 * 1024;
const ROW_BYTES: usize = 66;

/// What can be said of an expected record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Proof {
    /// It must be there.
    Required,
    /// It comes from beyond the cut: it may be there by now.
    BeyondCut,
    /// What it depends on is gone from the raw topic.
    Unprovable,
}

/// A record that is expected, or that was found; sorted by output partition,
/// then by ticket, then in the order that is promised.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    /// The output topic, by its index in the cut.
    pub(super) topic: u16,
    /// The output partition.
    pub(super) partition: i32,
    /// A digest of the key.
    pub(super) ticket: [u8; 16],
    /// The input partition; 0 of a found one.
    pub(super) input: i32,
    /// The run that emitted it; 0 of a found one.
    pub(super) run: u16,
    /// The offset in the input partition, or in the output partition of a found one.
    pub(super) offset: i64,
    /// Its place among what its raw record emits, from 0.
    pub(super) position: u32,
    /// A digest of its event id; 0 where it has none.
    pub(super) identity: u64,
    /// A digest of all that must be equal.
    pub(super) digest: [u8; 16],
    /// What can be said of it.
    pub(super) proof: Proof,
}

/// A record's digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digests {
    pub(super) ticket: [u8; 16],
    pub(super) identity: u64,
    pub(super) digest: [u8; 16],
}

/// Says where a dead letter came from.
const ERROR_PARTITION: &[u8] = b"__streams.errors.partition";
const ERROR_OFFSET: &[u8] = b"__streams.errors.offset";
/// Its text is for people, and may change from version to version.
const ERROR_MESSAGE: &[u8] = b"__streams.errors.message";

impl Digests {
    /// Of a record as it must be, or as it was found.
    pub(super) fn of<'h>(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_ms: i64,
        headers: impl Iterator<Item = Header<'h>>,
    ) -> Digests {
        let mut hasher = blake3::Hasher::new();
        put(&mut hasher, key);
        put(&mut hasher, value);
        // librdkafka takes 0 for "now", so that 1 is sent in its place.
        hasher.update(&if timestamp_ms == 0 { 1 } else { timestamp_ms }.to_le_bytes());
        let (mut event_id, mut source) = (None, [None, None]);
        for (name, value) in headers {
            put(&mut hasher, Some(name));
            if name == ERROR_MESSAGE {
                hasher.update(&[u8::from(value.is_some_and(|text| !text.is_empty()))]);
                continue;
            }
            put(&mut hasher, value);
            match name {
                b"event_id" if event_id.is_none() => event_id = value,
                // Of a re-keyed record they stand behind its own, whatever those are called.
                ERROR_PARTITION | rekey::PARTITION => source[0] = value,
                ERROR_OFFSET | rekey::OFFSET => source[1] = value,
                _ => {}
            }
        }
        let identity = match (source, event_id) {
            ([Some(partition), Some(offset)], _) => {
                head(&[b"dead letter ", partition, b" ", offset].concat())
            }
            (_, Some(event_id)) => head(event_id),
            _ => 0,
        };
        let mut ticket = blake3::Hasher::new();
        put(&mut ticket, key);
        Digests { ticket: truncated(&ticket), identity, digest: truncated(&hasher) }
    }
}

/// Behind its length, so that no two rows of parts run together.
fn put(hasher: &mut blake3::Hasher, bytes: Option<&[u8]>) {
    let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
    hasher.update(&length.to_le_bytes());
    hasher.update(bytes.unwrap_or_default());
}

fn truncated(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut digest = [0; 16];
    hasher.finalize_xof().fill(&mut digest);
    digest
}

fn head(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")).max(1)
}

impl Row {
    fn encode(&self) -> [u8; ROW_BYTES] {
        let mut bytes = [0; ROW_BYTES];
        let mut rest = bytes.as_mut_slice();
        let mut put = |part: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        };
        put(&self.topic.to_le_bytes());
        put(&self.partition.to_le_bytes());
        put(&self.ticket);
        put(&self.input.to_le_bytes());
        put(&self.run.to_le_bytes());
        put(&self.offset.to_le_bytes());
        put(&self.position.to_le_bytes());
        put(&self.identity.to_le_bytes());
        put(&self.digest);
        put(&[match self.proof {
            Proof::Required => 0,
            Proof::BeyondCut => 1,
            Proof::Unprovable => 2,
        }]);
        bytes
    }

    fn decode(bytes: &[u8; ROW_BYTES]) -> Row {
        let mut rest = bytes.as_slice();
        Row {
            topic: u16::from_le_bytes(take(&mut rest)),
            partition: i32::from_le_bytes(take(&mut rest)),
            ticket: take(&mut rest),
            input: i32::from_le_bytes(take(&mut rest)),
            run: u16::from_le_bytes(take(&mut rest)),
            offset: i64::from_le_bytes(take(&mut rest)),
            position: u32::from_le_bytes(take(&mut rest)),
            identity: u64::from_le_bytes(take(&mut rest)),
            digest: take(&mut rest),
            proof: match take::<1>(&mut rest) {
                [0] => Proof::Required,
                [1] => Proof::BeyondCut,
                _ => Proof::Unprovable,
            },
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (head, tail) = rest.split_first_chunk().expect("a row's parts together have its length");
    *rest = tail;
    *head
}

/// Rows on their way to being sorted.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    name: String,
    rows: Vec<Row>,
    files: Vec<PathBuf>,
    made: usize,
}

impl Spool {
    /// An empty one; its files are called by its name.
    pub(super) fn new(directory: &Path, name: &str) -> Spool {
        let (directory, name) = (directory.to_owned(), name.to_owned());
        Spool { directory, name, rows: Vec::new(), files: Vec::new(), made: 0 }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub(super) fn push(&mut self, row: Row) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() < BUFFER_ROWS_MAX {
            return Ok(());
        }
        self.spill()
    }

    /// Its sorted files.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub(super) fn finish(mut self) -> Result<Vec<PathBuf>> {
        self.spill()?;
        Ok(self.files)
    }

    fn spill(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        self.rows.sort_unstable();
        let file = self.next_file();
        write(&file, self.rows.drain(..).map(Ok))?;
        self.files.push(file);
        if self.files.len() >= FILES_MAX {
            let file = self.next_file();
            write(&file, Sorted::open(&self.files)?)?;
            for merged in std::mem::replace(&mut self.files, vec![file]) {
                std::fs::remove_file(&merged).with_context(|| format!("remove {merged:?}"))?;
            }
        }
        Ok(())
    }

    fn next_file(&mut self) -> PathBuf {
        self.made += 1;
        self.directory.join(format!("{}-{}", self.name, self.made))
    }
}

fn write(path: &Path, rows: impl Iterator<Item = Result<Row>>) -> Result<()> {
    let what = || format!("write {path:?}");
    let mut file = BufWriter::with_capacity(FILE_BUFFER_BYTES, File::create(path).with_context(what)?);
    for row in rows {
        file.write_all(&row?.encode()).with_context(what)?;
    }
    file.flush().with_context(what)
}

/// The rows of sorted files, in order.
#[derive(Debug)]
pub(super) struct Sorted {
    heads: BinaryHeap<Reverse<(Row, usize)>>,
    files: Vec<BufReader<File>>,
}

impl Sorted {
    /// Opens them.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Sorted> {
        let files = paths
            .iter()
            .map(|path| {
                let file = File::open(path).with_context(|| format!("open {path:?}"))?;
                Ok(BufReader::with_capacity(FILE_BUFFER_BYTES, file))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut sorted = Sorted { heads: BinaryHeap::new(), files };
        for file in 0..sorted.files.len() {
            sorted.refill(file)?;
        }
        Ok(sorted)
    }

    fn refill(&mut self, file: usize) -> Result<()> {
        let Some(reader) = self.files.get_mut(file) else { return Ok(()) };
        let mut bytes = [0; ROW_BYTES];
        match reader.read_exact(&mut bytes) {
            Ok(()) => self.heads.push(Reverse((Row::decode(&bytes), file))),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error).context("read sorted rows"),
        }
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        let Reverse((row, file)) = self.heads.pop()?;
        Some(self.refill(file).map(|()| row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ticket: u8, offset: i64) -> Row {
        Row {
            topic: 3,
            partition: 2,
            ticket: [ticket; 16],
            input: 1,
            run: 4,
            offset,
            position: 5,
            identity: 6,
            digest: [7; 16],
            proof: Proof::Unprovable,
        }
    }

    #[test]
    fn a_row_reads_as_it_was_written() {
        assert_eq!(Row::decode(&row(1, -2).encode()), row(1, -2));
    }

    #[test]
    fn rows_of_many_files_come_sorted() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(directory.path(), "rows");
        // Enough files that they are merged on the way.
        for offset in (0..FILES_MAX as i64 + 3).rev() {
            spool.push(row((offset % 3) as u8, offset)).unwrap();
            spool.spill().unwrap();
        }
        let rows: Vec<Row> = Sorted::open(&spool.finish().unwrap()).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), FILES_MAX + 3);
        assert!(rows.is_sorted());
    }

    #[test]
    fn whatever_must_be_equal_changes_the_digest() {
        let headers: [Header<'_>; 2] = [(b"event_id", Some(b"e")), (b"a", None)];
        let of = |key, value, time, headers: &[Header<'static>]| {
            Digests::of(key, value, time, headers.iter().copied())
        };
        let (k, v) = (Some(b"k".as_slice()), Some(b"v".as_slice()));
        let one = of(k, v, 7, &headers);
        assert_eq!(of(k, v, 7, &headers), one);
        for other in [
            of(None, v, 7, &headers),
            of(k, None, 7, &headers),
            of(k, Some(b"w"), 7, &headers),
            of(k, v, 8, &headers),
            of(k, v, 7, headers.get(..1).unwrap()),
            of(k, v, 7, &[(b"event_id", Some(b"e")), (b"a", Some(b""))]),
        ] {
            assert_ne!(other.digest, one.digest);
        }
        assert_eq!(of(k, v, 0, &headers).digest, of(k, v, 1, &headers).digest);
    }
}
