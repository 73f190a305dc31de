//! Native specifics and their derived twins: a change reaches its topic once,
//! whichever came first (contract §4).
//!
//! No clock decides, only what was announced before. This module knows neither
//! tickets nor topics: an announcement is a field, a subject and a digest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use smallvec::{SmallVec, smallvec};

use crate::canonical;
use crate::codec::{Reader, put_bytes, put_signed, put_varint};
use crate::derive::Change;
use crate::ticket::{Entry, EntryValue, Field, Identity};
use crate::topology::Rule;

/// At most so many wait under one field and subject; the oldest go first.
const WAITING_MAX: usize = 16;

/// That a field took a value, as said by an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// The rule's field, by its key in the store.
    pub field: [u8; 4],
    /// A map's key, else empty.
    pub subject: Cow<'a, str>,
    /// A digest of event type, subject and value.
    pub digest: [u8; 16],
}

/// Who announced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcer {
    /// The platform, by a specific event of its own.
    Native,
    /// We, by a derived event.
    Derived,
}

/// What became of an announced event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    /// It is emitted, and waits for its twin.
    Emit,
    /// Its twin was emitted already: it is dropped.
    Twin,
}

/// One ticket's announcements that have not met their twin: by field and subject,
/// and there in the order in which they came.
///
/// One event may change tens of thousands of custom fields, so they are found, not
/// looked through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting<'a> {
    by_place: BTreeMap<Place<'a>, SmallVec<[Said; 1]>>,
}

/// Field, as a number that is quickly compared, and subject. Where none waits there is no place.
type Place<'a> = (u32, Cow<'a, str>);

/// What was announced, by whom, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    digest: [u8; 16],
    by: Announcer,
    since_ms: i64,
}

impl<'a> Waiting<'a> {
    /// Announces.
    pub fn announce(&mut self, new: Announcement<'a>, by: Announcer, since_ms: i64) -> Reception {
        let said = Said { digest: new.digest, by, since_ms };
        let mut beside = match self.by_place.entry(place(new.field, new.subject)) {
            Slot::Vacant(slot) => {
                slot.insert(smallvec![said]);
                return Reception::Emit;
            }
            Slot::Occupied(beside) => beside,
        };
        let all = beside.get_mut();
        if let Some(met) = all.iter().position(|other| other.by != by && other.digest == said.digest) {
            all.remove(met);
            if all.is_empty() {
                beside.remove();
            }
            return Reception::Twin;
        }
        // Those of the other origin missed their twin; of the others the oldest goes.
        all.retain(|other| other.by == by);
        all.drain(..(all.len() + 1).saturating_sub(WAITING_MAX));
        all.push(said);
        Reception::Emit
    }

    /// Ends the waiting of one field and subject.
    pub fn end(&mut self, field: [u8; 4], subject: Cow<'a, str>) {
        self.by_place.remove(&place(field, subject));
    }

    /// Ends all waiting.
    pub fn clear(&mut self) {
        self.by_place.clear();
    }

    /// Forgets those that were made before this Kafka timestamp.
    pub fn forget(&mut self, before_ms: i64) {
        if self.all().any(|said| said.since_ms < before_ms) {
            self.by_place.retain(|_, beside| {
                beside.retain(|said| said.since_ms >= before_ms);
                !beside.is_empty()
            });
        }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_place.values().map(SmallVec::len).sum()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }

    /// The Kafka timestamp of the newest, in milliseconds.
    #[must_use]
    pub fn newest_ms(&self) -> Option<i64> {
        self.all().map(|said| said.since_ms).max()
    }

    fn all(&self) -> impl Iterator<Item = &Said> {
        self.by_place.values().flatten()
    }

    /// Writes them all.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.len() as u64);
        for ((field, subject), beside) in &self.by_place {
            for said in beside {
                out.extend_from_slice(&field.to_be_bytes());
                out.push(u8::from(said.by == Announcer::Native));
                put_bytes(out, subject.as_bytes());
                out.extend_from_slice(&said.digest);
                put_signed(out, said.since_ms);
            }
        }
    }

    /// Reads what [`Waiting::encode`] wrote, in whatever order it stands.
    pub fn decode(reader: &mut Reader<'a>) -> Option<Waiting<'a>> {
        let mut waiting = Waiting::default();
        for _ in 0..reader.length()? {
            let field = reader.array()?;
            let by = if reader.byte()? == 1 { Announcer::Native } else { Announcer::Derived };
            let subject = Cow::Borrowed(std::str::from_utf8(reader.bytes()?).ok()?);
            let said = Said { digest: reader.array()?, by, since_ms: reader.signed()? };
            waiting.by_place.entry(place(field, subject)).or_default().push(said);
        }
        Some(waiting)
    }
}

fn place(field: [u8; 4], subject: Cow<'_, str>) -> Place<'_> {
    (u32::from_be_bytes(field), subject)
}

/// The announcement of a change that was derived.
#[must_use]
pub fn of_change<'a>(rule: &Rule, event_name: &str, change: &Change<'a>) -> Announcement<'a> {
    announcement(rule, event_name, change.subject(), |out| match change {
        Change::Reference { to, .. } => put_reference(out, to.as_ref()),
        Change::Flag { to } => out.push(u8::from(*to)),
        Change::Scalar { to, .. } => canonical::put_form(out, to),
        Change::Set { to, .. } => put_set(out, to),
        Change::Key { to, .. } => to.iter().for_each(|to| canonical::put_form(out, to)),
    })
}

/// What a native event of a map rule's type announces of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The key's value, which must be there.
    Value,
    /// That it has none.
    Removed,
}

/// The announcement of a native event, read from what its own ticket says;
/// `None` where it cannot be read.
#[must_use]
pub fn of_native<'a>(
    rule: &Rule,
    event_name: &str,
    said: Option<&Field<'a>>,
    key: Option<Cow<'a, str>>,
    direction: Direction,
) -> Option<Announcement<'a>> {
    let key = match said {
        Some(Field::Map(_)) | None if direction == Direction::Removed => {
            return Some(announcement(rule, event_name, key?, |_| {}));
        }
        Some(Field::Map(_)) => key?,
        Some(_) => Cow::Borrowed(""),
        None => return None,
    };
    if let Some(Field::Map(entries)) = said {
        let EntryValue::Known(text) = find(entries, &key)?.value else { return None };
        return Some(announcement(rule, event_name, key, |out| canonical::put_form(out, text)));
    }
    Some(announcement(rule, event_name, key, |out| match said {
        Some(Field::Reference(identity)) => put_reference(out, identity.as_ref()),
        Some(Field::Flag(value)) => out.push(u8::from(*value)),
        Some(Field::Scalar(text)) => canonical::put_form(out, text),
        Some(Field::Set(identities)) => put_set(out, identities),
        Some(Field::Map(_)) | None => {}
    }))
}

/// The only key whose value differs between two maps, unknown sides apart;
/// both are sorted by key.
#[must_use]
pub fn only_differing_key<'a>(one: &[Entry<'a>], other: &[Entry<'a>]) -> Option<Cow<'a, str>> {
    let in_one = one.iter().map(|entry| &entry.key);
    let only_in_other = other.iter().map(|entry| &entry.key).filter(|key| find(one, key).is_none());
    let mut differing =
        in_one.chain(only_in_other).filter(|key| match (value(find(one, key)), value(find(other, key))) {
            (EntryValue::Unknown, _) | (_, EntryValue::Unknown) => false,
            (EntryValue::Known(one), EntryValue::Known(other)) => !canonical::equal(one, other),
            (one, other) => one != other,
        });
    let key = differing.next()?;
    differing.next().is_none().then(|| key.clone())
}

fn find<'b, 'a>(entries: &'b [Entry<'a>], key: &str) -> Option<&'b Entry<'a>> {
    entries.binary_search_by(|entry| (*entry.key).cmp(key)).ok().and_then(|index| entries.get(index))
}

fn value<'a>(entry: Option<&Entry<'a>>) -> EntryValue<'a> {
    entry.map_or(EntryValue::None, |entry| entry.value)
}

fn announcement<'a>(
    rule: &Rule,
    event_name: &str,
    subject: Cow<'a, str>,
    put_value: impl FnOnce(&mut Vec<u8>),
) -> Announcement<'a> {
    let mut bytes = Vec::with_capacity(256);
    // Each part behind its length, so that no two triples run together.
    for part in [event_name, &subject] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    let start = bytes.len() + size_of::<u64>();
    bytes.extend_from_slice(&[0; size_of::<u64>()]);
    put_value(&mut bytes);
    let length = (bytes.len() - start) as u64;
    if let Some(place) = bytes.get_mut(start - size_of::<u64>()..start) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    let digest = *blake3::hash(&bytes).as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes");
    Announcement { field: rule.store_key, subject, digest }
}

fn put_reference(out: &mut Vec<u8>, identity: Option<&Identity<'_>>) {
    out.extend_from_slice(identity.map_or(&[][..], |identity| identity.id.as_bytes()));
}

fn put_set(out: &mut Vec<u8>, identities: &[Cow<'_, str>]) {
    for identity in identities {
        put_bytes(out, identity.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELD: [u8; 4] = [1; 4];

    fn announce(
        waiting: &mut Waiting<'static>,
        by: Announcer,
        subject: &'static str,
        digest: u8,
    ) -> Reception {
        let announcement = Announcement { field: FIELD, subject: subject.into(), digest: [digest; 16] };
        waiting.announce(announcement, by, 0)
    }

    fn digests(waiting: &Waiting<'_>) -> Vec<u8> {
        waiting.all().map(|said| said.digest[0]).collect()
    }

    #[test]
    fn a_twin_of_the_other_origin_is_dropped_and_the_first_goes() {
        let mut waiting = Waiting::default();
        assert_eq!(announce(&mut waiting, Announcer::Native, "", 1), Reception::Emit);
        assert_eq!(announce(&mut waiting, Announcer::Native, "", 1), Reception::Emit);
        assert_eq!(announce(&mut waiting, Announcer::Derived, "", 1), Reception::Twin);
        assert_eq!(waiting.len(), 1);
        assert_eq!(announce(&mut waiting, Announcer::Derived, "", 1), Reception::Twin);
        assert!(waiting.is_empty());
        assert_eq!(announce(&mut waiting, Announcer::Derived, "", 1), Reception::Emit);
    }

    #[test]
    fn another_value_ends_the_waiting_of_the_other_origin_beside_it() {
        let mut waiting = Waiting::default();
        announce(&mut waiting, Announcer::Native, "", 1);
        announce(&mut waiting, Announcer::Native, "k", 2);
        assert_eq!(announce(&mut waiting, Announcer::Derived, "", 3), Reception::Emit);
        assert_eq!(digests(&waiting), [3, 2]);
        waiting.end(FIELD, "k".into());
        waiting.end([2; 4], "".into());
        assert_eq!(digests(&waiting), [3]);
    }

    #[test]
    fn of_more_than_sixteen_the_oldest_goes() {
        let mut waiting = Waiting::default();
        announce(&mut waiting, Announcer::Derived, "k", 0);
        for digest in 0..17 {
            announce(&mut waiting, Announcer::Native, "", digest);
        }
        assert_eq!(waiting.len(), 17);
        assert_eq!(announce(&mut waiting, Announcer::Derived, "", 1), Reception::Twin);
        assert_eq!(announce(&mut waiting, Announcer::Derived, "", 0), Reception::Emit);
    }

    #[test]
    fn what_waits_survives_encoding_in_its_order() {
        let mut waiting = Waiting::default();
        for (by, subject, digest) in [
            (Announcer::Native, "k", 3),
            (Announcer::Native, "", 2),
            (Announcer::Native, "k", 1),
            (Announcer::Native, "k", 1),
        ] {
            announce(&mut waiting, by, subject, digest);
        }
        announce(&mut waiting, Announcer::Derived, "k", 3);
        let mut bytes = Vec::new();
        waiting.encode(&mut bytes);
        let decoded = Waiting::decode(&mut Reader::new(&bytes));
        assert_eq!(decoded.as_ref().map(digests), Some(vec![2, 1, 1]));
        assert_eq!(decoded, Some(waiting));
    }

    /// Were each looked for among all, this would take minutes.
    #[test]
    fn a_hundred_thousand_subjects_are_announced_in_no_time() {
        let subjects: Vec<String> = (0..100_000).map(|number| number.to_string()).collect();
        let mut waiting = Waiting::default();
        for digest in 0..3 {
            for subject in &subjects {
                let announcement =
                    Announcement { field: FIELD, subject: subject.into(), digest: [digest; 16] };
                assert_eq!(waiting.announce(announcement, Announcer::Derived, 0), Reception::Emit);
            }
        }
        assert_eq!(waiting.len(), 300_000);
        subjects.iter().for_each(|subject| waiting.end(FIELD, subject.into()));
        assert!(waiting.is_empty());
    }
}
