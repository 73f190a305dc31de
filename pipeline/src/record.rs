//! Bytes at topic, partition, offset: what comes in, and what goes out.

use crate::topology::{EventTypeIndex, Topology};

/// A header: a name and perhaps a value.
pub type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// A record of the raw topic.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// The input partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// The Kafka timestamp, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// The key; an empty one is not an absent one.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// The headers, in their order.
    pub headers: &'a [Header<'a>],
}

/// Which of the topology's topics an outgoing record goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The topic of an event type, by its index in the topology.
    Event(EventTypeIndex),
    /// The topic of late copies.
    Late,
    /// The dead-letter topic.
    DeadLetter,
    /// The internal topic of re-keyed records.
    Rekeyed,
}

impl Destination {
    /// The topic's name; empty for an index that is none of the topology's.
    #[must_use]
    pub fn topic(self, topology: &Topology) -> &str {
        match self {
            Destination::Event(index) => {
                topology.event_types.get(index).map_or("", |event_type| &event_type.topic)
            }
            Destination::Late => &topology.late_topic,
            Destination::DeadLetter => &topology.dead_letter_topic,
            Destination::Rekeyed => &topology.rekeyed_topic,
        }
    }
}

/// Where an outgoing record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A raw record handed on.
    Forwarded,
    /// A change that was found.
    Derived,
    /// The copy of a late record.
    Late,
    /// A record that could not be used.
    DeadLetter,
    /// A raw record on its way to its ticket's partition.
    Rekeyed,
}

/// A record to be produced; it borrows from the [`Outbox`].
#[derive(Debug, Clone, Copy)]
pub struct OutgoingRecord<'a> {
    /// The topic.
    pub destination: Destination,
    /// The partition, chosen as Kafka's Java client would.
    pub partition: i32,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// The Kafka timestamp: the source record's.
    pub timestamp_ms: i64,
    /// Where it comes from.
    pub origin: Origin,
    headers: &'a [HeaderSpan],
    bytes: &'a [u8],
}

impl<'a> OutgoingRecord<'a> {
    /// The headers, in their order.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = Header<'a>> + use<'a> {
        let bytes = self.bytes;
        self.headers
            .iter()
            .map(move |header| (header.name.of(bytes), header.value.map(|value| value.of(bytes))))
    }
}

/// The outgoing records of one raw record, in the order of emission, in one
/// buffer that is used again for the next.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    headers: Vec<HeaderSpan>,
    records: Vec<RecordSpan>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.end).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
struct HeaderSpan {
    name: Span,
    value: Option<Span>,
}

#[derive(Debug)]
struct RecordSpan {
    destination: Destination,
    partition: i32,
    key: Option<Span>,
    value: Option<Span>,
    timestamp_ms: i64,
    origin: Origin,
    headers: (usize, usize),
}

/// What a new outgoing record is made of; the bytes are copied into the outbox.
#[derive(Debug)]
pub struct Draft<'a> {
    /// The topic.
    pub destination: Destination,
    /// The partition.
    pub partition: i32,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// The Kafka timestamp.
    pub timestamp_ms: i64,
    /// Where it comes from.
    pub origin: Origin,
}

impl Outbox {
    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.headers.clear();
        self.records.clear();
    }

    /// How large they are together.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The records, in the order of emission.
    pub fn records(&self) -> impl ExactSizeIterator<Item = OutgoingRecord<'_>> {
        self.records.iter().map(|record| OutgoingRecord {
            destination: record.destination,
            partition: record.partition,
            key: record.key.map(|span| span.of(&self.bytes)),
            value: record.value.map(|span| span.of(&self.bytes)),
            timestamp_ms: record.timestamp_ms,
            origin: record.origin,
            headers: self.headers.get(record.headers.0..record.headers.1).unwrap_or_default(),
            bytes: &self.bytes,
        })
    }

    /// Adds a record without headers; [`Outbox::header`] gives it some.
    pub fn push(&mut self, draft: &Draft<'_>) {
        let key = draft.key.map(|key| self.copy(key));
        let value = draft.value.map(|value| self.copy(value));
        let first = self.headers.len();
        self.records.push(RecordSpan {
            destination: draft.destination,
            partition: draft.partition,
            key,
            value,
            timestamp_ms: draft.timestamp_ms,
            origin: draft.origin,
            headers: (first, first),
        });
    }

    /// Adds a header to the record that was pushed last.
    pub fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        let name = self.copy(name);
        let value = value.map(|value| self.copy(value));
        self.headers.push(HeaderSpan { name, value });
        if let Some(record) = self.records.last_mut() {
            record.headers.1 = self.headers.len();
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Span { start, end: self.bytes.len() }
    }
}
