//! Writes for an empty store, sorted into a file that RocksDB takes in as it is:
//! half the work of its memory tables and of what follows from them.

use std::path::Path;

use anyhow::{Result, ensure};
use rocksdb::{DB, IngestExternalFileOptions, Options, SstFileWriter, WriteBatch, WriteBatchIterator};

/// A batch's rows, sorted by key, and those of one key by when they were written. They stand where they
/// were: a copy would take as much memory again.
pub(super) struct Rows<'b> {
    bytes: &'b [u8],
    rows: Vec<(Place, Option<Place>)>,
    are_found: bool,
}

/// Where bytes stand in a batch.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u32,
    length: u32,
}

impl<'b> Rows<'b> {
    /// # Errors
    /// Where RocksDB hands out anything else than parts of the batch's own bytes, all of them
    /// (`WriteBatch::Iterate` does).
    pub(super) fn of(batch: &'b WriteBatch) -> Result<Rows<'b>> {
        let rows = Vec::with_capacity(batch.len());
        let mut all = Rows { bytes: batch.data(), rows, are_found: true };
        batch.iterate(&mut all);
        let (found, wanted) = (all.rows.len(), batch.len());
        ensure!(all.are_found && found == wanted, "find a batch's {wanted} rows in its bytes: {found} came");
        let bytes = all.bytes;
        all.rows.sort_unstable_by(|(one, _), (other, _)| {
            one.of(bytes).cmp(other.of(bytes)).then(one.start.cmp(&other.start))
        });
        Ok(all)
    }

    fn place(&mut self, part: &[u8]) -> Place {
        let start = part.as_ptr().addr().wrapping_sub(self.bytes.as_ptr().addr());
        match (u32::try_from(start), u32::try_from(part.len())) {
            (Ok(start), Ok(length)) if Place { start, length }.of(self.bytes).len() == part.len() => {
                Place { start, length }
            }
            _ => {
                self.are_found = false;
                Place { start: 0, length: 0 }
            }
        }
    }
}

impl Place {
    fn of(self, bytes: &[u8]) -> &[u8] {
        let start = self.start as usize;
        bytes.get(start..start + self.length as usize).unwrap_or_default()
    }
}

impl WriteBatchIterator for Rows<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        let row = (self.place(key), Some(self.place(value)));
        self.rows.push(row);
    }

    fn delete(&mut self, key: &[u8]) {
        let row = (self.place(key), None);
        self.rows.push(row);
    }
}

/// Hands rows to the database as one file at `path`, which must be on its disk; of
/// each key the last. `is_first` says that there is nothing in it to be deleted.
pub(super) fn take_in(
    db: &DB,
    options: &Options,
    path: &Path,
    rows: &Rows<'_>,
    is_first: bool,
) -> Result<(), rocksdb::Error> {
    let mut writer = SstFileWriter::create(options);
    writer.open(path)?;
    let mut is_empty = true;
    let mut left = rows.rows.iter().peekable();
    while let Some((key, value)) = left.next() {
        let key = key.of(rows.bytes);
        if left.peek().is_some_and(|(next, _)| next.of(rows.bytes) == key) {
            continue;
        }
        match value {
            Some(value) => writer.put(key, value.of(rows.bytes))?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_key_the_last_write_is_taken_in() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.create_if_missing(true);
        let db = DB::open(&options, folder.path().join("db")).unwrap();
        let take_in = |batch: &WriteBatch, is_first| {
            let rows = Rows::of(batch).unwrap();
            take_in(&db, &options, &folder.path().join("load"), &rows, is_first).unwrap();
        };
        let found = || {
            let rows = db.iterator(rocksdb::IteratorMode::Start).map(Result::unwrap);
            rows.map(|(key, value)| format!("{}={}", key.escape_ascii(), value.escape_ascii()))
                .collect::<Vec<_>>()
        };
        let mut batch = WriteBatch::default();
        for (key, value) in [("m", "1"), ("b", "2"), ("m", "3"), ("gone", "4"), ("again", "5"), ("b", "")] {
            batch.put(key, value);
        }
        batch.delete("gone");
        batch.delete("again");
        batch.delete("never");
        batch.put("again", "6");
        batch.put("z", "the end");
        take_in(&batch, true);
        assert_eq!(found(), ["again=6", "b=", "m=3", "z=the end"]);
        let mut batch = WriteBatch::default();
        batch.delete("z");
        batch.put("a", "7");
        take_in(&batch, false);
        assert_eq!(found(), ["a=7", "again=6", "b=", "m=3"]);
        take_in(&WriteBatch::default(), false);
        assert_eq!(found().len(), 4);
    }
}
