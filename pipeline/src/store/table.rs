//! Writes for an empty store, sorted into a file that RocksDB takes in as it is:
//! half the work of its memory tables and of what follows from them.

use std::ops::Range;
use std::path::Path;

use rocksdb::{DB, IngestExternalFileOptions, Options, SstFileWriter, WriteBatch, WriteBatchIterator};

/// Where a batch's rows stand in its bytes, to be sorted: a copy would take as much memory again.
struct Rows<'b> {
    bytes: &'b [u8],
    rows: Vec<(Range<usize>, Option<Range<usize>>)>,
}

impl Rows<'_> {
    /// RocksDB hands out parts of the batch's own bytes (`WriteBatchInternal::Iterate`).
    fn place(&self, part: &[u8]) -> Range<usize> {
        let start = part.as_ptr().addr().wrapping_sub(self.bytes.as_ptr().addr());
        let place = start..start.saturating_add(part.len());
        debug_assert_eq!(self.bytes.get(place.clone()), Some(part));
        place
    }
}

impl WriteBatchIterator for Rows<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.rows.push((self.place(key), Some(self.place(value))));
    }

    fn delete(&mut self, key: &[u8]) {
        self.rows.push((self.place(key), None));
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
    let mut all = Rows { bytes: batch.data(), rows: Vec::with_capacity(batch.len()) };
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
