//! Raw records that read like what happens to a ticket.

use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::{Value, json};
use ticket_pipeline::lines::RawLine;
use ticket_pipeline::partition;

use crate::tasks::PARTITIONS;

/// 2026-01-05T00:00:00Z.
const BEGIN_MS: i64 = 1_767_571_200_000;

/// All tests draw on it: however many records one makes, the window of another's does not pass.
static MILLISECONDS: AtomicI64 = AtomicI64::new(0);

/// A ticket is opened: a baseline, from which nothing is derived.
pub(crate) fn opened(uid: &str) -> RawLine {
    event(&format!("{uid} opened"), "ticket:created", uid, "open")
}

/// A ticket's status is now this one, with no word of what it was.
pub(crate) fn moved(uid: &str, status: &str) -> RawLine {
    event(&format!("{uid} moved to {status}"), "ticket:updated", uid, status)
}

/// The same where it has been in it before; the number tells the times apart.
pub(crate) fn moved_again(uid: &str, number: usize, status: &str) -> RawLine {
    event(&format!("{uid} moved to {status}, {number}"), "ticket:updated", uid, status)
}

/// The same event once more, as a platform that is not sure sends it.
pub(crate) fn again(raw: &RawLine) -> RawLine {
    raw.clone()
}

/// A record of this value where the ticket's records are.
pub(crate) fn record(uid: &str, value: &[u8]) -> RawLine {
    let timestamp_ms = BEGIN_MS + MILLISECONDS.fetch_add(1, Ordering::Relaxed);
    RawLine {
        partition: partition::of(uid.as_bytes(), PARTITIONS),
        offset: 0,
        timestamp_ms,
        key: Some(uid.into()),
        value: Some(value.into()),
        headers: vec![(b"x-request-id".to_vec(), Some(b"17".to_vec()))],
    }
}

/// The envelope of a ticket event.
pub(crate) fn envelope(event_id: &str, event_type: &str, time_ms: i64, ticket: Value) -> Value {
    json!({
        "eventId": event_id, "eventType": event_type, "timestamp": time_ms, "orgId": "org-1",
        "payload": {"ticket": ticket},
    })
}

fn event(event_id: &str, event_type: &str, uid: &str, status: &str) -> RawLine {
    let mut record = record(uid, b"");
    let ticket = json!({"id": uid, "status": {"id": status}});
    record.value = Some(envelope(event_id, event_type, record.timestamp_ms, ticket).to_string().into_bytes());
    record
}

/// The same event with a note of so many bytes in its ticket.
pub(crate) fn padded(mut raw: RawLine, bytes: usize) -> RawLine {
    let mut event: Value = serde_json::from_slice(raw.value.as_deref().unwrap_or_default()).expect("JSON");
    event["payload"]["ticket"]["notes"] = "n".repeat(bytes).into();
    raw.value = Some(event.to_string().into_bytes());
    raw
}

/// Tickets of the first partition, without end: those of this name with numbers behind it.
pub(crate) fn in_one_partition(name: &str) -> impl Iterator<Item = String> {
    let uids = (0..).map(move |number| format!("{name}-{number}"));
    uids.filter(|uid| partition::of(uid.as_bytes(), PARTITIONS) == 0)
}

/// Tickets for each partition: those of this name with a number behind it.
pub(crate) fn in_every_partition(name: &str) -> Vec<String> {
    let in_partition = |wanted: i32| {
        (0..)
            .map(|number| format!("{name}-{number}"))
            .find(|uid| partition::of(uid.as_bytes(), PARTITIONS) == wanted)
            .expect("numbers do not end")
    };
    (0..PARTITIONS).map(in_partition).collect()
}
