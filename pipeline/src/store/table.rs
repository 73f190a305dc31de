//! Writes for an empty store, sorted into a file that RocksDB takes in as it is:
//! half the work of its memory tables and of what follows from them.

use std::ops::Range;
use std::path::Path;

use rocksdb::{DB, IngestExternalFileOptions, Options, SstFileWriter, WriteBatch, WriteBatchIterator};

/// A batch's rows, to be sorted.
#[derive(Default)]
struct Rows {
    bytes: Vec<u8>,
    rows: Vec<(Range<usize>, Option<Range<usize>>)>,
}

impl Rows {
    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }
}

impl WriteBatchIterator for Rows {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        let (key, value) = (self.copy(key), self.copy(value));
        self.rows.push((key, Some(value)));
    }

    fn delete(&mut self, key: &[u8]) {
        let key = self.copy(key);
        self.rows.push((key, None));
    }
}

/// Hands what a batch writes to the database as one file at `path`, which must
/// be on its disk. `is_first` says that there is nothing in it to be deleted.
pub(super) fn take_in(
    db: &DB,
    options: &Options,
    path: &Path,
    batch: &WriteBatch,
    is_first: bool,
) -> Result<(), rocksdb::Error> {
    let mut all = Rows { bytes: Vec::with_capacity(batch.size_in_bytes()), rows: Vec::new() };
    batch.iterate(&mut all);
    let Rows { bytes, mut rows } = all;
    let bytes_of = |range: &Range<usize>| bytes.get(range.clone()).unwrap_or_default();
    // Stable, so that of equal keys the last written comes last.
    rows.sort_by(|(one, _), (other, _)| bytes_of(one).cmp(bytes_of(other)));
    let mut writer = SstFileWriter::create(options);
    writer.open(path)?;
    let mut is_empty = true;
    let mut rows = rows.iter().peekable();
    while let Some((key, value)) = rows.next() {
        let key = bytes_of(key);
        if rows.peek().is_some_and(|(next, _)| bytes_of(next) == key) {
            continue;
        }
        match value {
            Some(value) => writer.put(key, bytes_of(value))?,
            None if is_first => continue,
            None => writer.delete(key)?,
        }
        is_empty = false;
    }
    if is_empty {
        return Ok(()); // A file without rows is refused.
    }
    writer.finish()?;
    let mut ingest = IngestExternalFileOptions::default();
    ingest.set_move_files(true);
    db.ingest_external_file_opts(&ingest, vec![path])
}
