//! Forwarded, derived and dead-letter records: their bytes and their headers
//! (contract §6, §8).
//!
//! It does not decide what is emitted; it holds no clock, and nothing here
//! differs between two runs.

use std::borrow::Cow;

use uuid::Uuid;

use crate::derive::{Change, PreviousFrom};
use crate::envelope::{Envelope, Unusable, content};
use crate::json::write_string;
use crate::record::{Destination, Draft, Header, Origin, Outbox, RawRecord};
use crate::ticket::Identity;
use crate::timestamp;

/// The namespace of derived events' ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x8f5c_2d2e_3c0b_5a57_9a39_0f6f_0a1d_7c11);

/// Headers that we write ourselves, and that are never carried on from a source.
const OWN_HEADERS: [&[u8]; 17] = [
    b"event_name",
    b"event_id",
    b"event_timestamp",
    b"context_user_id",
    b"context_user_type",
    b"context_organization_id",
    b"content-type",
    b"ce_specversion",
    b"ce_id",
    b"ce_source",
    b"ce_type",
    b"ce_subject",
    b"ce_time",
    b"ce_causationid",
    b"traceparent",
    b"tracestate",
    b"truncated_fields",
];
const ERROR_HEADERS_PREFIX: &[u8] = b"__streams.errors.";
const ERROR_TOPIC: &str = "__streams.errors.topic";
const ERROR_PARTITION: &str = "__streams.errors.partition";
const ERROR_OFFSET: &str = "__streams.errors.offset";

/// What was wrong may quote the record, and a quoted record must not outgrow
/// the dead-letter topic: it has 64 KiB more than the raw topic for these headers.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// A derived event, but for its source.
#[derive(Debug)]
pub struct Derived<'a> {
    /// Its event type's name.
    pub name: &'a str,
    /// Its id, by [`derived_id`].
    pub id: &'a str,
    /// `change.field`.
    pub field: &'a str,
    /// What changed.
    pub change: &'a Change<'a>,
    /// Where the previous value came from.
    pub previous_from: PreviousFrom,
    /// The ticket that the previous value came from, as its text.
    pub previous_ticket: &'a str,
    /// Its place among the emitted events of its source, from 1.
    pub position: usize,
    /// How many those are.
    pub total: usize,
}

/// The id of a derived event: the same for the same source and change.
#[must_use]
pub fn derived_id(envelope: &Envelope<'_>, event_name: &str, subject: &str) -> String {
    let org_id = envelope.org_id.and_then(content).unwrap_or(Cow::Borrowed(""));
    let name = [&*org_id, &envelope.event_id, event_name, subject].join("|");
    let mut text = Uuid::encode_buffer();
    Uuid::new_v5(&NAMESPACE, name.as_bytes()).hyphenated().encode_lower(&mut text).to_owned()
}

/// Writes a derived event's value.
pub fn write_derived(
    out: &mut Vec<u8>,
    envelope: &Envelope<'_>,
    source_topic: &str,
    record: &RawRecord<'_>,
    derived: &Derived<'_>,
) {
    let mut text = |text: &str| out.extend_from_slice(text.as_bytes());
    text("{\"eventId\":\"");
    text(derived.id);
    text("\",\"eventType\":");
    write_string(out, derived.name);
    let mut slice = |member: &str, slice: &str| {
        out.extend_from_slice(member.as_bytes());
        out.extend_from_slice(slice.as_bytes());
    };
    slice(",\"timestamp\":", envelope.timestamp.raw());
    if let Some(org_id) = envelope.org_id {
        slice(",\"orgId\":", org_id.raw());
    }
    if let Some(actor) = envelope.actor {
        slice(",\"actor\":", actor.raw());
    }
    slice(",\"payload\":{\"ticket\":", envelope.ticket.map_or("null", |ticket| ticket.raw()));
    slice(",\"previousTicket\":", derived.previous_ticket);
    slice(",\"change\":", "");
    write_change(out, derived.field, derived.change);
    let previous_from = match derived.previous_from {
        PreviousFrom::Event => "event",
        PreviousFrom::Store => "store",
    };
    let mut text = |text: &str| out.extend_from_slice(text.as_bytes());
    text("},\"metadata\":{\"schemaVersion\":\"1\",\"origin\":\"derived\",\"previousFrom\":\"");
    text(previous_from);
    text("\",\"source\":{\"eventId\":");
    write_string(out, &envelope.event_id);
    out.extend_from_slice(b",\"eventType\":");
    write_string(out, &envelope.event_name);
    out.extend_from_slice(b",\"topic\":");
    write_string(out, source_topic);
    for (before, number) in [
        (",\"partition\":", i64::from(record.partition)),
        (",\"offset\":", record.offset),
        ("},\"sequence\":{\"position\":", derived.position as i64),
        (",\"total\":", derived.total as i64),
    ] {
        out.extend_from_slice(before.as_bytes());
        write_number(out, number);
    }
    out.extend_from_slice(b"},\"truncatedFields\":[]}}");
}

fn write_number(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number.unsigned_abs());
    while at > 0 {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

fn write_change(out: &mut Vec<u8>, field: &str, change: &Change<'_>) {
    out.extend_from_slice(b"{\"field\":");
    write_string(out, field);
    match change {
        Change::Reference { from, to } => {
            out.extend_from_slice(b",\"from\":");
            write_identity(out, from.as_ref());
            out.extend_from_slice(b",\"to\":");
            write_identity(out, to.as_ref());
        }
        Change::Flag { to } => {
            out.extend_from_slice(format!(",\"from\":{},\"to\":{to}", !to).as_bytes());
        }
        Change::Scalar { from, to } => {
            write_slice(out, b",\"from\":", from);
            write_slice(out, b",\"to\":", to);
        }
        Change::Set { added, removed, .. } => {
            out.extend_from_slice(b",\"added\":");
            write_identities(out, added);
            out.extend_from_slice(b",\"removed\":");
            write_identities(out, removed);
        }
        Change::Key { key, name, from, to } => {
            out.extend_from_slice(b",\"key\":");
            write_string(out, key);
            if let Some(name) = name {
                out.extend_from_slice(b",\"name\":");
                write_string(out, name);
            }
            if let Some(from) = from {
                write_slice(out, b",\"from\":", from);
            }
            if let Some(to) = to {
                write_slice(out, b",\"to\":", to);
            }
        }
    }
    out.push(b'}');
}

fn write_slice(out: &mut Vec<u8>, member: &[u8], slice: &str) {
    out.extend_from_slice(member);
    out.extend_from_slice(slice.as_bytes());
}

fn write_identity(out: &mut Vec<u8>, identity: Option<&Identity<'_>>) {
    let Some(identity) = identity else {
        out.extend_from_slice(b"null");
        return;
    };
    out.extend_from_slice(b"{\"id\":");
    write_string(out, &identity.id);
    if let Some(name) = &identity.name {
        out.extend_from_slice(b",\"name\":");
        write_string(out, name);
    }
    if let Some(email) = &identity.email {
        out.extend_from_slice(b",\"email\":");
        write_string(out, email);
    }
    out.push(b'}');
}

fn write_identities(out: &mut Vec<u8>, identities: &[Cow<'_, str>]) {
    out.push(b'[');
    for (index, identity) in identities.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(out, identity);
    }
    out.push(b']');
}

/// What the headers of an outgoing record are made of.
#[derive(Debug)]
pub struct Headers<'a> {
    /// The source.
    pub envelope: &'a Envelope<'a>,
    /// The source's record.
    pub record: &'a RawRecord<'a>,
    /// Whether CloudEvents headers are written.
    pub cloudevents: bool,
}

impl Headers<'_> {
    /// Gives the outbox's last record, a forwarded one or its late copy, its headers.
    pub fn of_forwarded(&self, out: &mut Outbox, truncated: Option<&[String]>) {
        let Envelope { event_name, event_id, .. } = self.envelope;
        self.common(out, event_name, event_id, None, truncated);
        for (name, value) in self.record.headers {
            if !OWN_HEADERS.contains(name) && !name.starts_with(ERROR_HEADERS_PREFIX) {
                out.header(name, *value);
            }
        }
    }

    /// Gives the outbox's last record, a derived one, its headers.
    pub fn of_derived(&self, out: &mut Outbox, name: &str, id: &str, truncated: Option<&[String]>) {
        self.common(out, name, id, Some(&self.envelope.event_id), truncated);
    }

    fn common(
        &self,
        out: &mut Outbox,
        name: &str,
        id: &str,
        cause: Option<&str>,
        truncated: Option<&[String]>,
    ) {
        let mut put = |name: &str, value: &str| out.header(name.as_bytes(), Some(value.as_bytes()));
        let envelope = self.envelope;
        let org_id = envelope.org_id.and_then(content);
        let actor = |member: &str| envelope.actor.and_then(|actor| actor.get(member)).and_then(content);
        put("event_name", name);
        put("event_id", id);
        if let Some(timestamp) = content(envelope.timestamp) {
            put("event_timestamp", &timestamp);
        }
        if let Some(user) = actor("id") {
            put("context_user_id", &user);
        }
        if let Some(kind) = actor("type") {
            put("context_user_type", &kind);
        }
        if let Some(org_id) = &org_id {
            put("context_organization_id", org_id);
        }
        if self.cloudevents {
            put("content-type", "application/json");
            put("ce_specversion", "1.0");
            put("ce_id", id);
            put("ce_source", &format!("/tickets/{}", org_id.as_deref().unwrap_or_default()));
            put("ce_type", name);
            put("ce_subject", &envelope.uid);
            put("ce_time", &timestamp::format_utc(envelope.time_ms));
            if let Some(cause) = cause {
                put("ce_causationid", cause);
            }
        }
        for carried in [b"traceparent".as_slice(), b"tracestate"] {
            for (name, value) in self.record.headers.iter().filter(|(name, _)| *name == carried) {
                out.header(name, *value);
            }
        }
        if let Some(truncated) = truncated {
            out.header(b"truncated_fields", Some(truncated.join(",").as_bytes()));
        }
    }
}

/// Puts a raw record that cannot be used into the outbox, untouched but for
/// the headers that say where it came from and what was wrong.
pub fn push_dead_letter(out: &mut Outbox, source_topic: &str, record: &RawRecord<'_>, unusable: &Unusable) {
    out.push(&Draft {
        destination: Destination::DeadLetter,
        partition: record.partition,
        key: record.key,
        value: record.value,
        timestamp_ms: record.timestamp_ms,
        origin: Origin::DeadLetter,
    });
    for (name, value) in record.headers {
        out.header(name, *value);
    }
    let mut put = |name: &str, value: &str| out.header(name.as_bytes(), Some(value.as_bytes()));
    put(ERROR_TOPIC, source_topic);
    put(ERROR_PARTITION, &record.partition.to_string());
    put(ERROR_OFFSET, &record.offset.to_string());
    put("__streams.errors.exception", unusable.code.as_str());
    put("__streams.errors.message", beginning(&unusable.why));
}

/// As much of a text as fits into the header, in whole characters.
fn beginning(text: &str) -> &str {
    (0..=MESSAGE_BYTES_MAX.min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Partition and offset of the raw record that a dead letter of this topic is.
#[must_use]
pub fn dead_letter_place(headers: &[Header<'_>], source_topic: &str) -> Option<(i32, i64)> {
    // Ours stand behind those that it came with.
    let text = |wanted: &str| {
        let (_, value) = headers.iter().rev().find(|(name, _)| *name == wanted.as_bytes())?;
        std::str::from_utf8(value.as_ref()?).ok()
    };
    let is_of_topic = text(ERROR_TOPIC)? == source_topic;
    let place = (text(ERROR_PARTITION)?.parse().ok()?, text(ERROR_OFFSET)?.parse().ok()?);
    is_of_topic.then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Code;

    #[test]
    fn what_was_wrong_is_told_in_a_kibibyte_at_most_and_in_whole_characters() {
        let record =
            RawRecord { partition: 0, offset: 7, timestamp_ms: 1, key: None, value: None, headers: &[] };
        for (why, bytes) in [("short".to_owned(), 5), ("x".repeat(1_024), 1_024), ("€".repeat(90_000), 1_023)]
        {
            let mut out = Outbox::default();
            push_dead_letter(&mut out, "ticket.raw", &record, &Unusable { code: Code::KeyMismatch, why });
            let letter = out.records().next().unwrap();
            let (name, message) = letter.headers().last().unwrap();
            assert_eq!(name, b"__streams.errors.message");
            let message = std::str::from_utf8(message.unwrap()).unwrap();
            assert_eq!(message.len(), bytes);
        }
    }
}
