//! What is remembered of one ticket, and its encoding in store and changelog.
//!
//! Beside the snapshot stands where in it the members are that the rules ask for,
//! so that an event is compared with it word by word and little of it is parsed
//! again. The known values that the snapshot does not say itself are written whole.
//!
//! ```text
//! version  flags  written_at  first_offset  [mark time, mark since]  [idle since]
//! waiting*  [snapshot time  rules  places*  carried*  snapshot's bytes]
//! ```
//!
//! Version 1, which is read still, had all known values in the place of both.

use std::borrow::Cow;

use crate::announcement::Waiting;
use crate::codec::{Reader, put_bytes, put_signed, put_varint};
use crate::json::{Kind as Json, Tape};
use crate::ticket::{Entry as MapEntry, EntryValue, Field, Identity, Place, Reader as TicketReader};
use crate::topology::Rule;

const VERSION: u8 = 2;
/// With all known values written out, and no places.
const VERSION_1: u8 = 1;
const HAS_SNAPSHOT: u8 = 1;
const HAS_MARK: u8 = 2;
const HAS_PLACES: u8 = 4;

/// What is remembered of one ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The raw offset that last wrote it: a replay keeps what was written before.
    pub written_at: i64,
    /// The raw offset that wrote it first.
    pub first_offset: i64,
    /// The ticket as last seen; never together with a deletion mark.
    pub snapshot: Option<Snapshot<'a>>,
    /// That the ticket was deleted.
    pub mark: Option<DeletionMark>,
    /// Announcements that wait for their twin.
    pub waiting: Waiting<'a>,
}

/// A ticket as last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<'a> {
    /// The envelope's timestamp, in milliseconds.
    pub time_ms: i64,
    /// The ticket's bytes as they came.
    pub text: &'a str,
    /// Where in it the members stand that the rules ask for, by the reader's
    /// slots; `None` where other rules wrote the entry.
    pub places: Option<Vec<Place>>,
    /// Known values that it does not say itself, by rule. Where there are no
    /// places, some of them it may say.
    pub carried: Vec<(usize, Field<'a>)>,
}

impl<'a> Snapshot<'a> {
    /// The last value that was said of each field, in the order of the rules;
    /// `None` where the snapshot is no ticket.
    pub fn known(&self, reader: &'a TicketReader, tape: &'a mut Tape) -> Option<Vec<Option<Field<'a>>>> {
        let ticket = tape.parse(self.text.as_bytes()).ok().filter(|value| value.kind() == Json::Object)?;
        let ticket = reader.ticket(ticket);
        let carried = |rule| self.carried.iter().find(|(of, _)| *of == rule).map(|(_, field)| field.clone());
        Some((0..reader.rules()).map(|rule| carried(rule).or_else(|| ticket.field(rule))).collect())
    }
}

/// That a ticket was deleted, so that a straggler cannot bring it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletionMark {
    /// The deletion's timestamp, in milliseconds.
    pub time_ms: i64,
    /// The Kafka timestamp of the record that made it, in milliseconds.
    pub since_ms: i64,
}

impl Entry<'_> {
    /// Nothing yet, at the raw offset of the event that may write it.
    #[must_use]
    pub fn new(offset: i64) -> Entry<'static> {
        Entry {
            written_at: offset,
            first_offset: offset,
            snapshot: None,
            mark: None,
            waiting: Waiting::default(),
        }
    }

    /// Whether there is nothing to remember: a tombstone in the changelog.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_none() && self.mark.is_none() && self.waiting.is_empty()
    }

    /// Forgets what the window has forgotten: marks and announcements that were
    /// made before `before_ms`. Says whether there was anything.
    pub fn forget(&mut self, before_ms: i64) -> bool {
        let (waiting, mark) = (self.waiting.len(), self.mark);
        self.waiting.forget(before_ms);
        self.mark = mark.filter(|mark| mark.since_ms >= before_ms);
        waiting != self.waiting.len() || mark != self.mark
    }

    /// The time before which an event is late, in milliseconds.
    #[must_use]
    pub fn time_ms(&self) -> Option<i64> {
        self.snapshot.as_ref().map(|snapshot| snapshot.time_ms).or(self.mark.map(|mark| mark.time_ms))
    }

    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self, rules: &RuleSet) -> Vec<u8> {
        let snapshot_len = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.text.len() + 80);
        let mut out = Vec::with_capacity(snapshot_len + 48 * (1 + self.waiting.len()));
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let has_places = self.snapshot.as_ref().is_some_and(|snapshot| snapshot.places.is_some());
        out.push(VERSION);
        out.push(
            flag(self.snapshot.is_some(), HAS_SNAPSHOT)
                | flag(self.mark.is_some(), HAS_MARK)
                | flag(has_places, HAS_PLACES),
        );
        put_signed(&mut out, self.written_at);
        put_signed(&mut out, self.first_offset);
        if let Some(mark) = self.mark {
            put_signed(&mut out, mark.time_ms);
            put_signed(&mut out, mark.since_ms);
        }
        if self.snapshot.is_none() {
            let newest = self.waiting.newest_ms().max(self.mark.map(|mark| mark.since_ms));
            put_signed(&mut out, newest.unwrap_or(i64::MIN));
        }
        self.waiting.encode(&mut out);
        if let Some(snapshot) = &self.snapshot {
            put_snapshot(&mut out, snapshot, rules);
        }
        out
    }

    /// Reads an entry's bytes; `None` where they are none of a version that we know.
    #[must_use]
    pub fn decode<'a>(bytes: &'a [u8], rules: &RuleSet) -> Option<Entry<'a>> {
        let (header, mut reader) = Header::read(bytes)?;
        let waiting = Waiting::decode(&mut reader)?;
        let snapshot =
            if header.has_snapshot { Some(read_snapshot(reader, header.has_places, rules)?) } else { None };
        Some(Entry {
            written_at: header.written_at,
            first_offset: header.first_offset,
            snapshot,
            mark: header.mark,
            waiting,
        })
    }
}

/// A topology's rules, as tickets are read and entries written with them.
#[derive(Debug)]
pub struct RuleSet {
    /// Reads tickets.
    pub reader: TicketReader,
    keys: Vec<[u8; 4]>,
    fingerprint: [u8; 4],
}

impl RuleSet {
    /// The set of a topology's rules.
    #[must_use]
    pub fn of(rules: &[Rule]) -> RuleSet {
        let keys: Vec<[u8; 4]> = rules.iter().map(|rule| rule.store_key).collect();
        // Places are known by the rules' order, so that counts too.
        let digest = blake3::hash(&keys.concat());
        let fingerprint = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        RuleSet { reader: TicketReader::new(rules), keys, fingerprint }
    }
}

struct Header {
    has_snapshot: bool,
    has_places: bool,
    written_at: i64,
    first_offset: i64,
    mark: Option<DeletionMark>,
    idle_since: Option<i64>,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<(Header, Reader<'_>)> {
        let mut reader = Reader::new(bytes);
        reader.byte().filter(|version| [VERSION, VERSION_1].contains(version))?;
        let flags = reader.byte()?;
        let (written_at, first_offset) = (reader.signed()?, reader.signed()?);
        let mark = if flags & HAS_MARK == 0 {
            None
        } else {
            Some(DeletionMark { time_ms: reader.signed()?, since_ms: reader.signed()? })
        };
        let (has_snapshot, has_places) = (flags & HAS_SNAPSHOT != 0, flags & HAS_PLACES != 0);
        let idle_since = if has_snapshot { None } else { Some(reader.signed()?) };
        Some((Header { has_snapshot, has_places, written_at, first_offset, mark, idle_since }, reader))
    }
}

/// When an entry that holds no snapshot was last of use, as a Kafka timestamp
/// in milliseconds: the newest of its deletion mark and waiting announcements.
/// `None` where there is a snapshot, which is kept for ever.
#[must_use]
pub fn idle_since(entry: &[u8]) -> Option<i64> {
    Header::read(entry)?.0.idle_since
}

/// The raw offset that last wrote this entry; `None` where the bytes are no entry.
#[must_use]
pub fn written_at(entry: &[u8]) -> Option<i64> {
    written_and_first(entry).map(|(written_at, _)| written_at)
}

/// The raw offsets that wrote this entry last and first; `None` where the bytes are no entry.
#[must_use]
pub fn written_and_first(entry: &[u8]) -> Option<(i64, i64)> {
    let header = Header::read(entry)?.0;
    Some((header.written_at, header.first_offset))
}

/// The raw offset that wrote this entry first; `None` where the bytes are no entry.
#[must_use]
pub fn first_offset(entry: &[u8]) -> Option<i64> {
    Some(Header::read(entry)?.0.first_offset)
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot<'_>, rules: &RuleSet) {
    put_signed(out, snapshot.time_ms);
    out.extend_from_slice(&rules.fingerprint);
    if let Some(places) = &snapshot.places {
        let present = || places.iter().enumerate().filter(|(_, (start, end))| end > start);
        put_varint(out, present().count() as u64);
        for (slot, (start, end)) in present() {
            put_varint(out, slot as u64);
            put_varint(out, u64::from(*start));
            put_varint(out, u64::from(end - start));
        }
    }
    let mut carried = Vec::new();
    for (rule, field) in &snapshot.carried {
        carried.extend_from_slice(&rules.keys.get(*rule).copied().unwrap_or_default());
        put_field(&mut carried, field, snapshot.text);
    }
    put_bytes(out, &carried);
    out.extend_from_slice(snapshot.text.as_bytes());
}

fn put_field(out: &mut Vec<u8>, field: &Field<'_>, within: &str) {
    match field {
        Field::Reference(None) => out.push(0),
        Field::Reference(Some(identity)) => {
            out.push(1);
            put_text(out, &identity.id, within);
            put_optional(out, identity.name.as_deref(), within);
            put_optional(out, identity.email.as_deref(), within);
        }
        Field::Flag(value) => out.push(2 + u8::from(*value)),
        Field::Scalar(text) => {
            out.push(4);
            put_text(out, text, within);
        }
        Field::Set(identities) => {
            out.push(5);
            put_varint(out, identities.len() as u64);
            for identity in identities {
                put_text(out, identity, within);
            }
        }
        Field::Map(entries) => {
            out.push(6);
            put_varint(out, entries.len() as u64);
            for entry in entries {
                put_text(out, &entry.key, within);
                put_optional(out, entry.name.as_deref(), within);
                match entry.value {
                    EntryValue::None => out.push(0),
                    EntryValue::Unknown => out.push(1),
                    EntryValue::Known(text) => {
                        out.push(2);
                        put_text(out, text, within);
                    }
                }
            }
        }
    }
}

fn read_field<'a>(reader: &mut Reader<'a>, snapshot: &'a str) -> Option<Field<'a>> {
    Some(match reader.byte()? {
        0 => Field::Reference(None),
        1 => Field::Reference(Some(Identity {
            id: Cow::Borrowed(read_text(reader, snapshot)?),
            name: read_optional(reader, snapshot)?,
            email: read_optional(reader, snapshot)?,
        })),
        2 => Field::Flag(false),
        3 => Field::Flag(true),
        4 => Field::Scalar(read_text(reader, snapshot)?),
        5 => {
            let count = reader.length()?;
            let identities = (0..count).map(|_| read_text(reader, snapshot).map(Cow::Borrowed));
            Field::Set(identities.collect::<Option<_>>()?)
        }
        6 => {
            let count = reader.length()?;
            let mut entries = Vec::with_capacity(count);
            for _ in 0..count {
                let key = Cow::Borrowed(read_text(reader, snapshot)?);
                let name = read_optional(reader, snapshot)?;
                let value = match reader.byte()? {
                    0 => EntryValue::None,
                    1 => EntryValue::Unknown,
                    _ => EntryValue::Known(read_text(reader, snapshot)?),
                };
                entries.push(MapEntry { key, name, value });
            }
            Field::Map(entries)
        }
        _ => return None,
    })
}

/// A text that lies in the snapshot is written as its place there, another one
/// whole: `length << 1 | 1` and the place, or `length << 1` and the bytes.
fn put_text(out: &mut Vec<u8>, text: &str, within: &str) {
    let length = (text.len() as u64) << 1;
    let place = (text.as_ptr() as usize).wrapping_sub(within.as_ptr() as usize);
    // The slice is looked at, not only its address: an empty text has any.
    if within.get(place..place.saturating_add(text.len())) == Some(text) {
        put_varint(out, length | 1);
        put_varint(out, place as u64);
    } else {
        put_varint(out, length);
        out.extend_from_slice(text.as_bytes());
    }
}

fn put_optional(out: &mut Vec<u8>, text: Option<&str>, within: &str) {
    out.push(u8::from(text.is_some()));
    if let Some(text) = text {
        put_text(out, text, within);
    }
}

fn read_text<'a>(reader: &mut Reader<'a>, snapshot: &'a str) -> Option<&'a str> {
    let length_and_kind = reader.varint()?;
    let length = usize::try_from(length_and_kind >> 1).ok()?;
    if length_and_kind & 1 == 0 {
        return std::str::from_utf8(reader.take(length)?).ok();
    }
    let place = usize::try_from(reader.varint()?).ok()?;
    snapshot.get(place..place.checked_add(length)?)
}

fn read_optional<'a>(reader: &mut Reader<'a>, snapshot: &'a str) -> Option<Option<Cow<'a, str>>> {
    match reader.byte()? {
        0 => Some(None),
        _ => read_text(reader, snapshot).map(|text| Some(Cow::Borrowed(text))),
    }
}

fn read_snapshot<'a>(mut reader: Reader<'a>, has_places: bool, rules: &RuleSet) -> Option<Snapshot<'a>> {
    let time_ms = reader.signed()?;
    let fingerprint: [u8; 4] = reader.array()?;
    let places = if has_places { Some(read_places(&mut reader, rules)?) } else { None };
    let mut values = Reader::new(reader.bytes()?);
    let text = std::str::from_utf8(reader.rest()).ok()?;
    let mut carried = Vec::new();
    while !values.rest().is_empty() {
        let key: [u8; 4] = values.array()?;
        let field = read_field(&mut values, text)?;
        let named = rules.keys.iter().enumerate().filter(|(_, own)| **own == key);
        carried.extend(named.map(|(rule, _)| (rule, field.clone())));
    }
    let places = places.filter(|_| fingerprint == rules.fingerprint);
    Some(Snapshot { time_ms, text, places, carried })
}

/// Other rules' places make no sense, but they have to be passed over.
fn read_places(reader: &mut Reader<'_>, rules: &RuleSet) -> Option<Vec<Place>> {
    let mut places = vec![(0, 0); rules.reader.slots()];
    for _ in 0..reader.length()? {
        let slot = usize::try_from(reader.varint()?).ok()?;
        let start = u32::try_from(reader.varint()?).ok()?;
        let end = start.checked_add(u32::try_from(reader.varint()?).ok()?)?;
        if let Some(place) = places.get_mut(slot) {
            *place = (start, end);
        }
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announcement::{Announcement, Announcer};
    use crate::topology::{Kind, Topology};

    const TICKET: &str = r#"{"uid":"T","status":{"uid":"open","name":"O\u0070en"},"tags":["b","a"],
        "assignedAgent":{"id":7,"email":"e@x"},"isEscalated":false,"dueDate":"2026-01-01",
        "customFields":{"k":[1,2],"none":null,"marked":"Payload too large. Use API instead"}}"#;

    fn entry<'a>(rules: &RuleSet, text: &'a str) -> Entry<'a> {
        let mut tape = Tape::default();
        let value = tape.parse(text.as_bytes()).unwrap();
        let places = Some(rules.reader.ticket(value).places(0).collect());
        let snapshot = Snapshot { time_ms: -5, text, places, carried: Vec::new() };
        let announcement = Announcement { field: [7; 4], subject: "k".into(), digest: [9; 16] };
        let mut waiting = Waiting::default();
        waiting.announce(announcement, Announcer::Native, 12);
        Entry { written_at: 812, first_offset: 3, snapshot: Some(snapshot), mark: None, waiting }
    }

    fn known<'a>(entry: &Entry<'a>, rules: &'a RuleSet, tape: &'a mut Tape) -> Vec<Option<Field<'a>>> {
        entry.snapshot.as_ref().unwrap().known(&rules.reader, tape).unwrap()
    }

    #[test]
    fn an_entry_survives_encoding() {
        let rules = RuleSet::of(&Topology::shipped().rules);
        let mut entry = entry(&rules, TICKET);
        // A known value of an older snapshot lies elsewhere: it is written whole.
        entry.snapshot.as_mut().unwrap().carried = vec![(3, Field::Scalar("{\"from\":\"elsewhere\"}"))];
        let bytes = entry.encode(&rules);
        assert_eq!(Entry::decode(&bytes, &rules), Some(entry));
        assert_eq!((written_at(&bytes), idle_since(&bytes)), (Some(812), None));
    }

    #[test]
    fn an_entry_without_a_snapshot_says_since_when_it_is_idle() {
        let rules = RuleSet::of(&[]);
        let mark = Some(DeletionMark { time_ms: 5, since_ms: 11 });
        let mut entry = Entry { mark, snapshot: None, ..entry(&rules, "{}") };
        let bytes = entry.encode(&rules);
        assert_eq!(idle_since(&bytes), Some(12));
        assert_eq!(Entry::decode(&bytes, &rules), Some(entry.clone()));
        assert!(entry.forget(12), "the mark is older than the window");
        assert!(!entry.is_empty());
        assert!(entry.forget(13));
        assert!(entry.is_empty());
    }

    #[test]
    fn a_new_rule_reads_the_snapshot_and_a_known_value_outlives_it() {
        let rules = Topology::shipped().rules;
        let rule_set = RuleSet::of(&rules);
        let mut entry = entry(&rule_set, TICKET);
        entry.snapshot.as_mut().unwrap().carried = vec![(0, Field::Reference(None))];
        let bytes = entry.encode(&rule_set);

        let mut more = rules.clone();
        more.push(Rule {
            kind: Kind::Scalar,
            field: "dueDate".into(),
            paths: vec![vec!["dueDate".into()]],
            store_key: [1, 2, 3, 4],
            ..rules.first().unwrap().clone()
        });
        let (more, mut tape) = (RuleSet::of(&more), Tape::default());
        let decoded = Entry::decode(&bytes, &more).unwrap();
        assert_eq!(decoded.snapshot.as_ref().unwrap().places, None);
        let known = known(&decoded, &more, &mut tape);
        assert_eq!(known.first(), Some(&Some(Field::Reference(None))));
        assert_eq!(known.last(), Some(&Some(Field::Scalar("\"2026-01-01\""))));
    }

    /// As the program wrote it before there were places: all that is known stands in it.
    #[test]
    fn an_entry_of_version_1_is_read() {
        let rules = RuleSet::of(&Topology::shipped().rules);
        let mut bytes = vec![VERSION_1, HAS_SNAPSHOT];
        put_signed(&mut bytes, 812);
        put_signed(&mut bytes, 3);
        put_varint(&mut bytes, 0);
        put_signed(&mut bytes, -5);
        bytes.extend_from_slice(&[1, 2, 3, 4]);
        // Of the first rule: its key, and that the reference is empty.
        let mut values = rules.keys.first().unwrap().to_vec();
        values.push(0);
        put_bytes(&mut bytes, &values);
        bytes.extend_from_slice(TICKET.as_bytes());

        let entry = Entry::decode(&bytes, &rules).unwrap();
        assert_eq!((entry.written_at, entry.first_offset, entry.time_ms()), (812, 3, Some(-5)));
        let mut tape = Tape::default();
        let known_of_1 = known(&entry, &rules, &mut tape);
        assert_eq!(known_of_1.first(), Some(&Some(Field::Reference(None))));
        assert!(known_of_1.contains(&Some(Field::Flag(false))));
        // Written again it says the same.
        let bytes = entry.encode(&rules);
        let mut tape = Tape::default();
        assert_eq!(known(&Entry::decode(&bytes, &rules).unwrap(), &rules, &mut tape), known_of_1);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, version in 0u8..4) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            let rules = RuleSet::of(&Topology::shipped().rules);
            let _ = Entry::decode(&bytes, &rules);
            let _ = (idle_since(&bytes), written_at(&bytes));
        }
    }
}
