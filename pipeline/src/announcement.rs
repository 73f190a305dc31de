//! Native specifics and their derived twins: a change reaches its topic once,
//! whichever came first (contract §4).
//!
//! No clock decides, only what was announced before. This module knows neither
//! tickets nor topics: an announcement is a field, a subject and a digest.

use std::borrow::Cow;

use crate::canonical;
use crate::derive::Change;
use crate::ticket::{Entry, EntryValue, Field};
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

/// An announcement that has not met its twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// What was announced.
    pub announcement: Announcement<'a>,
    /// Who announced it.
    pub by: Announcer,
    /// The Kafka timestamp of the record that made it, in milliseconds.
    pub since_ms: i64,
}

/// What becomes of an announced event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    /// It is emitted, and waits for its twin.
    Emit,
    /// Its twin was emitted already: it is dropped.
    Twin,
}

/// Announces; `waiting` holds one ticket's, in the order in which they came.
pub fn announce<'a>(waiting: &mut Vec<Waiting<'a>>, new: Waiting<'a>) -> Reception {
    let other = |one: &Waiting<'_>| one.by != new.by;
    if let Some(twin) = waiting.iter().position(|one| other(one) && one.announcement == new.announcement) {
        waiting.remove(twin);
        return Reception::Twin;
    }
    let beside = |one: &Waiting<'_>| {
        one.announcement.field == new.announcement.field
            && one.announcement.subject == new.announcement.subject
    };
    // Those of the other origin missed their twin.
    waiting.retain(|one| !(beside(one) && other(one)));
    if waiting.iter().filter(|one| beside(one)).count() >= WAITING_MAX
        && let Some(oldest) = waiting.iter().position(beside)
    {
        waiting.remove(oldest);
    }
    waiting.push(new);
    Reception::Emit
}

/// Ends the waiting of one field and subject.
pub fn end(waiting: &mut Vec<Waiting<'_>>, field: [u8; 4], subject: &str) {
    waiting.retain(|one| one.announcement.field != field || one.announcement.subject != subject);
}

/// The announcement of a change that was derived.
#[must_use]
pub fn of_change<'a>(rule: &Rule, event_name: &str, change: &Change<'a>) -> Announcement<'a> {
    let value = match change {
        Change::Reference { to, .. } => reference(to.as_ref().map(|identity| &*identity.id)),
        Change::Flag { to } => flag(*to),
        Change::Scalar { to, .. } => canonical::form(to),
        Change::Set { to, .. } => set(to),
        Change::Key { to, .. } => to.map_or_else(Vec::new, canonical::form),
    };
    let subject = match change {
        Change::Key { key, .. } => key.clone(),
        _ => Cow::Borrowed(""),
    };
    announcement(rule, event_name, subject, &value)
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
    let value = match said {
        Some(Field::Reference(identity)) => reference(identity.as_ref().map(|identity| &*identity.id)),
        Some(Field::Flag(value)) => flag(*value),
        Some(Field::Scalar(text)) => canonical::form(text),
        Some(Field::Set(identities)) => set(identities),
        Some(Field::Map(_)) | None if direction == Direction::Removed => {
            return Some(announcement(rule, event_name, key?, &[]));
        }
        Some(Field::Map(entries)) => {
            let key = key?;
            let entry = find(entries, &key)?;
            let EntryValue::Known(text) = entry.value else { return None };
            return Some(announcement(rule, event_name, key, &canonical::form(text)));
        }
        None => return None,
    };
    Some(announcement(rule, event_name, Cow::Borrowed(""), &value))
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

fn announcement<'a>(rule: &Rule, event_name: &str, subject: Cow<'a, str>, value: &[u8]) -> Announcement<'a> {
    let mut hasher = blake3::Hasher::new();
    // Each part behind its length, so that no two triples run together.
    for part in [event_name.as_bytes(), subject.as_bytes(), value] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut digest = [0; 16];
    hasher.finalize_xof().fill(&mut digest);
    Announcement { field: rule.store_key, subject, digest }
}

fn reference(id: Option<&str>) -> Vec<u8> {
    id.map_or_else(Vec::new, |id| id.as_bytes().to_vec())
}

fn flag(value: bool) -> Vec<u8> {
    vec![u8::from(value)]
}

fn set(identities: &[Cow<'_, str>]) -> Vec<u8> {
    let mut form = Vec::new();
    for identity in identities {
        crate::codec::put_bytes(&mut form, identity.as_bytes());
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<'a>(by: Announcer, subject: &'a str, digest: u8) -> Waiting<'a> {
        let announcement = Announcement { field: [1; 4], subject: subject.into(), digest: [digest; 16] };
        Waiting { announcement, by, since_ms: 0 }
    }

    #[test]
    fn a_twin_of_the_other_origin_is_dropped_and_the_first_goes() {
        let mut waiting = Vec::new();
        assert_eq!(announce(&mut waiting, said(Announcer::Native, "", 1)), Reception::Emit);
        assert_eq!(announce(&mut waiting, said(Announcer::Native, "", 1)), Reception::Emit);
        assert_eq!(announce(&mut waiting, said(Announcer::Derived, "", 1)), Reception::Twin);
        assert_eq!(waiting.len(), 1);
        assert_eq!(announce(&mut waiting, said(Announcer::Derived, "", 1)), Reception::Twin);
        assert_eq!(waiting, []);
        assert_eq!(announce(&mut waiting, said(Announcer::Derived, "", 1)), Reception::Emit);
    }

    #[test]
    fn another_value_ends_the_waiting_of_the_other_origin_beside_it() {
        let mut waiting = vec![said(Announcer::Native, "", 1), said(Announcer::Native, "k", 1)];
        assert_eq!(announce(&mut waiting, said(Announcer::Derived, "", 2)), Reception::Emit);
        assert_eq!(waiting, [said(Announcer::Native, "k", 1), said(Announcer::Derived, "", 2)]);
        end(&mut waiting, [1; 4], "k");
        end(&mut waiting, [2; 4], "");
        assert_eq!(waiting, [said(Announcer::Derived, "", 2)]);
    }

    #[test]
    fn of_more_than_sixteen_the_oldest_goes() {
        let mut waiting = vec![said(Announcer::Derived, "k", 0)];
        for digest in 0..17 {
            announce(&mut waiting, said(Announcer::Native, "", digest));
        }
        assert_eq!(waiting.len(), 17);
        assert_eq!(announce(&mut waiting, said(Announcer::Derived, "", 1)), Reception::Twin);
        assert_eq!(announce(&mut waiting, said(Announcer::Derived, "", 0)), Reception::Emit);
    }
}
