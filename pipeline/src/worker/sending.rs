//! What goes into a transaction: outgoing records, and what is remembered.

use anyhow::Context;

use super::counts::Counts;
use super::tasks::Running;
use crate::broken;
use crate::commit_record::{CommitRecord, IDS_MAX, IdsRecord};
use crate::record::{Outbox, RawRecord};
use crate::task::{self, Task};
use crate::transaction::{Transaction, Trouble};

/// What one raw record emits is sent in parts of about so much.
const PART_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One transaction forgets at most so many entries of each task.
const SWEEP_MAX: usize = 1_000;

/// The changelog and the commit records of one task.
pub(super) fn send_task(
    task: &mut Task,
    partition: i32,
    position: i64,
    transaction: &mut Transaction<'_>,
) -> Result<(), Trouble> {
    let stream_time_ms = task.stream_time_ms();
    task.sweep(SWEEP_MAX)?;
    for (uid, entry) in task.store.written_entries() {
        transaction.changelog(partition, uid, entry, stream_time_ms)?;
    }
    let ids: Vec<_> = task.store.noted_ids().collect();
    let mut chunks = ids.chunks(IDS_MAX);
    let mut next = Some(chunks.next().unwrap_or_default());
    while let Some(ids) = next {
        let commit = CommitRecord { input: position, stream_time_ms, ids: ids.to_vec() };
        transaction.ids(partition, &IdsRecord::Commit(commit), stream_time_ms)?;
        next = chunks.next();
    }
    task.store.seal();
    Ok(())
}

/// A record in; its outgoing records into the transaction. `None`: it was
/// processed before.
pub(super) fn process(
    running: &mut Running,
    raw: &RawRecord<'_>,
    outbox: &mut Outbox,
    transaction: &mut Transaction<'_>,
    counts: &mut Counts,
) -> Result<Option<task::Outcome>, Trouble> {
    // After an abort its records come again, perhaps with more, and with some of before a seek.
    if raw.offset < running.position {
        return Ok(None);
    }
    let mut trouble = None;
    let mut send = |part: &Outbox| {
        if trouble.is_none() {
            trouble = send(part, transaction, counts).err();
        }
    };
    let outcome = running
        .work
        .process_in_parts(raw, outbox, PART_BYTES_MAX, &mut send)
        .with_context(|| format!("process partition {} offset {}", raw.partition, raw.offset))?;
    running.position = raw.offset + 1; // A position is the next offset to read, hence the one.
    send(outbox);
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    counts.read(&outcome);
    Ok(Some(outcome))
}

fn send(outbox: &Outbox, transaction: &mut Transaction<'_>, counts: &mut Counts) -> Result<(), Trouble> {
    for record in outbox.records() {
        broken::spoil(&record, |record| transaction.send(record))?;
        counts.sent(record.destination, record.origin);
    }
    Ok(())
}
