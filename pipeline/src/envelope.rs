//! Bytes of a raw record to an envelope, or the reason why not.
//!
//! It unwraps, checks and names the envelope's parts (contract §1, §8). It does
//! not know what a ticket says ([`crate::ticket`]), nor what was seen before.

use std::borrow::Cow;
use std::fmt;

use crate::json::{Kind, Tape, Value};
use crate::record::RawRecord;
use crate::ticket::is_mark;
use crate::timestamp;
use crate::topology::{EventTypeIndex, KeyedBy, Topology};

/// A record that can be used.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    /// The bare envelope's bytes: what is forwarded.
    pub text: &'a str,
    /// `eventId`, not empty.
    pub event_id: Cow<'a, str>,
    /// `eventType` as it stands, the alias too.
    pub event_name: Cow<'a, str>,
    /// Its place in the topology.
    pub event_type: EventTypeIndex,
    /// `timestamp` as it stands.
    pub timestamp: Value<'a>,
    /// `timestamp` in milliseconds since the epoch.
    pub time_ms: i64,
    /// `orgId`, if there is one.
    pub org_id: Option<Value<'a>>,
    /// `actor`, if there is one.
    pub actor: Option<Value<'a>>,
    /// `payload`, an object.
    pub payload: Value<'a>,
    /// `payload.ticket`, if it is an object.
    pub ticket: Option<Value<'a>>,
    /// `payload.previousTicket`, if it is an object.
    pub previous_ticket: Option<Value<'a>>,
    /// The ticket uid; a number's is its JSON text.
    pub uid: Cow<'a, str>,
}

/// Why a record goes to the dead-letter topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The record has no value.
    NullValue,
    /// The value, or the `Message` in it, is no JSON.
    NotJson,
    /// No `eventId`, `eventType` or `payload` of the right kind.
    NotAnEnvelope,
    /// None of the 25 types, nor the alias.
    UnknownEventType,
    /// No timestamp that can be read.
    BadTimestamp,
    /// No path, nor the key, names the ticket.
    NoTicketUid,
    /// The key is another than the ticket uid.
    KeyMismatch,
    /// A record made from it could not be made to fit.
    PayloadTooLarge,
}

impl Code {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Code; 8] = [
        Code::NullValue,
        Code::NotJson,
        Code::NotAnEnvelope,
        Code::UnknownEventType,
        Code::BadTimestamp,
        Code::NoTicketUid,
        Code::KeyMismatch,
        Code::PayloadTooLarge,
    ];

    /// The code as it stands in the dead-letter record's header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Code::NullValue => "null_value",
            Code::NotJson => "not_json",
            Code::NotAnEnvelope => "not_an_envelope",
            Code::UnknownEventType => "unknown_event_type",
            Code::BadTimestamp => "bad_timestamp",
            Code::NoTicketUid => "no_ticket_uid",
            Code::KeyMismatch => "key_mismatch",
            Code::PayloadTooLarge => "payload_too_large",
        }
    }
}

/// Why a record cannot be used, with a word for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The code.
    pub code: Code,
    /// What was wrong, and where.
    pub why: String,
}

impl Unusable {
    fn new(code: Code, why: impl fmt::Display) -> Unusable {
        Unusable { code, why: why.to_string() }
    }
}

/// The memory that decoding needs, to be used again for the next record.
#[derive(Debug, Default)]
pub struct Decoder {
    outer: Tape,
    inner: Tape,
    message: String,
}

impl Decoder {
    /// Decodes a record's value.
    ///
    /// # Errors
    /// The first of the contract's codes that applies, up to `key_mismatch`.
    pub fn decode<'a>(
        &'a mut self,
        record: &RawRecord<'a>,
        topology: &Topology,
    ) -> Result<Envelope<'a>, Unusable> {
        let value = record.value.ok_or_else(|| Unusable::new(Code::NullValue, "the record has no value"))?;
        let (root, text) = self.unwrap(value)?;
        read(root, text, record, topology)
    }

    /// The bare envelope and its bytes, whatever it was wrapped in.
    fn unwrap<'a>(&'a mut self, value: &'a [u8]) -> Result<(Value<'a>, &'a str), Unusable> {
        let Decoder { outer, inner, message } = self;
        let not_json = |error| Unusable::new(Code::NotJson, format!("the value is no JSON: {error}"));
        let mut root = outer.parse(value).map_err(not_json)?;
        let mut text = root.document();
        if !is_bare(root) {
            if let Some(notification) = notification(root) {
                message.clear();
                message.push_str(&notification);
                text = message;
                root = inner.parse(text.as_bytes()).map_err(|error| {
                    Unusable::new(Code::NotJson, format!("the notification's Message is no JSON: {error}"))
                })?;
            }
            if !is_bare(root)
                && let Some(wrapped) = root.get("message").filter(|wrapped| wrapped.kind() == Kind::Object)
            {
                root = wrapped;
                text = wrapped.raw();
            }
        }
        Ok((root, text))
    }
}

/// The time of a line that is a ticket event by itself, bare or wrapped, in
/// milliseconds (0 where its timestamp cannot be read); `None` where it is none.
#[must_use]
pub fn ticket_event_time_ms(line: &[u8]) -> Option<i64> {
    let is_wrapper = |root: Value<'_>| {
        notification(root).is_some() || root.get("message").is_some_and(|inner| inner.kind() == Kind::Object)
    };
    let mut tape = Tape::default();
    let root = tape.parse(line).ok()?;
    if !is_bare(root) && !is_wrapper(root) {
        return None;
    }
    let mut decoder = Decoder::default();
    let time_ms = decoder.unwrap(line).ok().and_then(|(root, _)| timestamp::parse(root.get("timestamp")?));
    Some(time_ms.unwrap_or(0))
}

fn is_bare(root: Value<'_>) -> bool {
    root.members().any(|(name, _)| ["eventId", "eventType", "payload"].iter().any(|own| name.is_string(own)))
}

fn notification(root: Value<'_>) -> Option<Cow<'_, str>> {
    root.get("Type").filter(|kind| kind.is_string("Notification"))?;
    root.get("Message")?.string()
}

fn read<'a>(
    root: Value<'a>,
    text: &'a str,
    record: &RawRecord<'a>,
    topology: &Topology,
) -> Result<Envelope<'a>, Unusable> {
    let Members { event_id, event_type, timestamp, org_id, actor, payload } = Members::of(root);
    let not_an_envelope = |what: &str| Unusable::new(Code::NotAnEnvelope, what);
    let identifier = |value: Option<Value<'a>>| value?.string().filter(|content| !content.is_empty());
    let event_id = identifier(event_id)
        .ok_or_else(|| not_an_envelope("the envelope has no \"eventId\" that is a string with content"))?;
    let event_name = identifier(event_type)
        .ok_or_else(|| not_an_envelope("the envelope has no \"eventType\" that is a string with content"))?;
    let payload = payload
        .filter(|payload| payload.kind() == Kind::Object)
        .ok_or_else(|| not_an_envelope("the envelope has no \"payload\" that is an object"))?;
    let event_type = topology
        .event_type(&event_name)
        .filter(|&index| topology.event_types.get(index).is_some_and(|event_type| event_type.native))
        .ok_or_else(|| {
            let why = format!("\"{event_name}\" is none of the event types that are forwarded");
            Unusable::new(Code::UnknownEventType, why)
        })?;
    let timestamp =
        timestamp.ok_or_else(|| Unusable::new(Code::BadTimestamp, "the envelope has no \"timestamp\""))?;
    let time_ms = timestamp::parse(timestamp).ok_or_else(|| {
        let why = format!(
            "the timestamp {} is neither RFC 3339 with an offset nor an epoch number",
            timestamp.raw()
        );
        Unusable::new(Code::BadTimestamp, why)
    })?;
    let parts = Parts::of(payload);
    let uid = uid(&parts, record.key, topology.source.keyed_by)?;
    let Parts { ticket, previous_ticket, .. } = parts;
    Ok(Envelope {
        text,
        event_id,
        event_name,
        event_type,
        timestamp,
        time_ms,
        org_id,
        actor,
        payload,
        ticket,
        previous_ticket,
        uid,
    })
}

/// The envelope's members, found in one pass; of repeated ones the last.
#[derive(Default)]
struct Members<'a> {
    event_id: Option<Value<'a>>,
    event_type: Option<Value<'a>>,
    timestamp: Option<Value<'a>>,
    org_id: Option<Value<'a>>,
    actor: Option<Value<'a>>,
    payload: Option<Value<'a>>,
}

impl<'a> Members<'a> {
    fn of(root: Value<'a>) -> Members<'a> {
        let mut members = Members::default();
        for (name, value) in root.members() {
            let Some(name) = name.string() else { continue };
            let member = match &*name {
                "eventId" => &mut members.event_id,
                "eventType" => &mut members.event_type,
                "timestamp" => &mut members.timestamp,
                "orgId" => &mut members.org_id,
                "actor" => &mut members.actor,
                "payload" => &mut members.payload,
                _ => continue,
            };
            *member = Some(value);
        }
        members
    }
}

/// The payload's members that are of use, found in one pass; of repeated ones the last.
#[derive(Default)]
struct Parts<'a> {
    /// An object.
    ticket: Option<Value<'a>>,
    /// An object.
    previous_ticket: Option<Value<'a>>,
    ticket_uid: Option<Value<'a>>,
    ticket_id: Option<Value<'a>>,
    comment: Option<Value<'a>>,
}

impl<'a> Parts<'a> {
    fn of(payload: Value<'a>) -> Parts<'a> {
        let mut parts = Parts::default();
        for (name, value) in payload.members() {
            let Some(name) = name.string() else { continue };
            let part = match &*name {
                "ticket" => &mut parts.ticket,
                "previousTicket" => &mut parts.previous_ticket,
                "ticketUid" => &mut parts.ticket_uid,
                "ticketId" => &mut parts.ticket_id,
                "comment" => &mut parts.comment,
                _ => continue,
            };
            *part = Some(value);
        }
        let is_object = |value: &Value<'a>| value.kind() == Kind::Object;
        parts.ticket = parts.ticket.filter(is_object);
        parts.previous_ticket = parts.previous_ticket.filter(is_object);
        parts
    }
}

/// The ticket uid: the first of its paths that is present, then the key.
fn uid<'a>(parts: &Parts<'a>, key: Option<&'a [u8]>, keyed_by: KeyedBy) -> Result<Cow<'a, str>, Unusable> {
    let of = |object: Option<Value<'a>>, name: &str| identity(object?.get(name)?);
    let named = of(parts.ticket, "uid")
        .or_else(|| of(parts.ticket, "id"))
        .or_else(|| of(parts.previous_ticket, "uid"))
        .or_else(|| of(parts.previous_ticket, "id"))
        .or_else(|| identity(parts.ticket_uid?))
        .or_else(|| identity(parts.ticket_id?))
        .or_else(|| of(parts.comment, "ticketId"));
    let key = key.filter(|_| keyed_by == KeyedBy::TicketUid);
    let usable_key = || {
        let key = std::str::from_utf8(key?).ok()?;
        (!key.is_empty() && !is_mark(key)).then_some(Cow::Borrowed(key))
    };
    let Some(uid) = named else {
        return usable_key().ok_or_else(|| {
            let why = "neither the payload nor the record's key names the ticket (ticket.uid, ticket.id, \
                       previousTicket.uid, previousTicket.id, ticketUid, ticketId, comment.ticketId)";
            Unusable::new(Code::NoTicketUid, why)
        });
    };
    match key {
        Some(key) if key != uid.as_bytes() => {
            let why = format!("the record's key \"{}\" is not its ticket \"{uid}\"", key.escape_ascii());
            Err(Unusable::new(Code::KeyMismatch, why))
        }
        _ => Ok(uid),
    }
}

/// A non-empty string that is not the mark, or a number's text.
fn identity(value: Value<'_>) -> Option<Cow<'_, str>> {
    match value.kind() {
        Kind::Number => Some(Cow::Borrowed(value.raw())),
        Kind::String => value.string().filter(|content| !content.is_empty() && !is_mark(content)),
        _ => None,
    }
}

/// A string's content or a number's text; `None` for all else.
#[must_use]
pub fn content(value: Value<'_>) -> Option<Cow<'_, str>> {
    if value.kind() == Kind::Number { Some(Cow::Borrowed(value.raw())) } else { value.string() }
}
