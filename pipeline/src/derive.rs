//! What changed: the contract's §4 as pure functions.
//!
//! One verdict for each rule (for a map: for each key), whether or not anything
//! is emitted for it, so that what explains a ticket later is the same code.
//! It does not know bytes that go out, announcements or lateness.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::canonical;
use crate::known::Known;
use crate::ticket::{Entry, EntryValue, Field, Identity, Ticket};
use crate::topology::{EventTypeIndex, RuleEvents};

/// What one tracked field, or one key of a map, did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// The identity differs.
    Reference {
        /// What it was; `None` where it was empty.
        from: Option<Identity<'a>>,
        /// What it is.
        to: Option<Identity<'a>>,
    },
    /// The boolean differs; it was the opposite.
    Flag {
        /// What it is.
        to: bool,
    },
    /// The JSON value differs.
    Scalar {
        /// What it was, as its text.
        from: &'a str,
        /// What it is, as its text.
        to: &'a str,
    },
    /// The set differs.
    Set {
        /// Identities that were not there, sorted as bytes.
        added: Vec<Cow<'a, str>>,
        /// Identities that are gone, sorted as bytes.
        removed: Vec<Cow<'a, str>>,
        /// The whole set as it is now, sorted as bytes.
        to: Vec<Cow<'a, str>>,
    },
    /// A key of a map was added, removed or changed.
    Key {
        /// The key.
        key: Cow<'a, str>,
        /// Its name: the current side's, else the previous one's.
        name: Option<Cow<'a, str>>,
        /// What it was, as its text; `None` where it had no value.
        from: Option<&'a str>,
        /// What it is.
        to: Option<&'a str>,
    },
}

impl<'a> Change<'a> {
    /// What tells two changes of one field apart: a map's key, else nothing.
    #[must_use]
    pub fn subject(&self) -> Cow<'a, str> {
        match self {
            Change::Key { key, .. } => key.clone(),
            _ => Cow::Borrowed(""),
        }
    }

    /// The event type that the rule has for this direction, if it has one.
    #[must_use]
    pub fn event_type(&self, events: RuleEvents) -> Option<EventTypeIndex> {
        match (events, self) {
            (RuleEvents::One(event_type), _) => Some(event_type),
            (RuleEvents::OnOff { on, .. }, Change::Flag { to: true }) => on,
            (RuleEvents::OnOff { off, .. }, Change::Flag { to: false }) => off,
            (RuleEvents::AddedRemovedChanged { added, .. }, Change::Key { from: None, .. }) => added,
            (RuleEvents::AddedRemovedChanged { removed, .. }, Change::Key { to: None, .. }) => removed,
            (RuleEvents::AddedRemovedChanged { changed, .. }, Change::Key { .. }) => changed,
            // A rule's events are of its kind: the topology's validation sees to it.
            (RuleEvents::OnOff { .. } | RuleEvents::AddedRemovedChanged { .. }, _) => None,
        }
    }
}

/// Where a field's previous value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreviousFrom {
    /// The event's own `previousTicket`.
    Event,
    /// The known value in the store.
    Store,
}

/// What is to be said of one rule, or of one key of a map rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The rule's place in the topology.
    pub rule: usize,
    /// What was found.
    pub finding: Finding<'a>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding<'a> {
    /// The two sides differ.
    Changed(Change<'a>, PreviousFrom),
    /// They do not.
    Same(PreviousFrom),
    /// Both sides say it in the same words, or neither says it: it was not read.
    Untouched,
    /// The event's ticket says nothing of it.
    CurrentUnknown,
    /// Neither `previousTicket` nor the store knows what it was.
    PreviousUnknown,
}

/// One verdict for each rule, in the order of emission.
///
/// `current` is the event's ticket; `known` what the store knows (nothing for a
/// late event).
pub fn derive<'a>(
    rules: usize,
    current: &Ticket<'a>,
    previous_ticket: Option<&Ticket<'a>>,
    known: &Known<'a>,
    mut verdict: impl FnMut(Verdict<'a>),
) {
    for rule in 0..rules {
        let mut found = |finding| verdict(Verdict { rule, finding });
        // What `previousTicket` lacks altogether is asked of the store.
        let previous_ticket = previous_ticket.filter(|ticket| ticket.speaks_of(rule));
        let untouched = match previous_ticket {
            Some(previous) => previous.says_as(current, rule),
            None => known.is_untouched(rule),
        };
        if untouched {
            found(Finding::Untouched);
            continue;
        }
        if previous_ticket.is_none() && known.is_nothing() {
            found(Finding::PreviousUnknown);
            continue;
        }
        let Some(now) = current.field(rule) else {
            found(Finding::CurrentUnknown);
            continue;
        };
        match previous_ticket.and_then(|ticket| ticket.field(rule)) {
            Some(Field::Map(previous)) => {
                let known = known.field(current, rule);
                let fallback =
                    if let Some(Field::Map(known)) = &known { Some(known.as_slice()) } else { None };
                compare_maps(&previous, PreviousFrom::Event, fallback, &now, found);
            }
            Some(previous) => found(compare(previous, now, PreviousFrom::Event)),
            None => match known.field(current, rule) {
                Some(Field::Map(known)) => compare_maps(&known, PreviousFrom::Store, None, &now, found),
                Some(known) => found(compare(known, now, PreviousFrom::Store)),
                None => found(Finding::PreviousUnknown),
            },
        }
    }
}

fn compare<'a>(previous: Field<'a>, current: Field<'a>, from: PreviousFrom) -> Finding<'a> {
    let change = match (previous, current) {
        (Field::Reference(previous), Field::Reference(current)) => {
            let differ = previous.as_ref().map(|identity| &identity.id)
                != current.as_ref().map(|identity| &identity.id);
            differ.then_some(Change::Reference { from: previous, to: current })
        }
        (Field::Flag(previous), Field::Flag(current)) => {
            (previous != current).then_some(Change::Flag { to: current })
        }
        (Field::Scalar(previous), Field::Scalar(current)) => {
            (!canonical::equal(previous, current)).then_some(Change::Scalar { from: previous, to: current })
        }
        (Field::Set(previous), Field::Set(current)) => (previous != current).then(|| Change::Set {
            added: without(&current, &previous),
            removed: without(&previous, &current),
            to: current,
        }),
        // A known value of another kind belongs to a rule that is no more.
        _ => return Finding::PreviousUnknown,
    };
    change.map_or(Finding::Same(from), |change| Finding::Changed(change, from))
}

fn without<'a>(set: &[Cow<'a, str>], other: &[Cow<'a, str>]) -> Vec<Cow<'a, str>> {
    set.iter().filter(|identity| other.binary_search(identity).is_err()).cloned().collect()
}

/// A verdict for each key that either side has; both sides are sorted by key.
/// A key that `previous` carries marked falls back to `fallback`.
fn compare_maps<'a>(
    previous: &[Entry<'a>],
    from: PreviousFrom,
    fallback: Option<&[Entry<'a>]>,
    current: &Field<'a>,
    mut found: impl FnMut(Finding<'a>),
) {
    let Field::Map(current) = current else { return found(Finding::CurrentUnknown) };
    let (mut before, mut now) = (previous.iter().peekable(), current.iter().peekable());
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(before), Some(now)) => before.key.cmp(&now.key),
        };
        let before = before.next_if(|_| order != Ordering::Greater);
        let now = now.next_if(|_| order != Ordering::Less);
        found(compare_entries(before, from, fallback, now));
    }
}

fn compare_entries<'a>(
    before: Option<&Entry<'a>>,
    from: PreviousFrom,
    fallback: Option<&[Entry<'a>]>,
    now: Option<&Entry<'a>>,
) -> Finding<'a> {
    let (before, from) = match before {
        Some(marked) if marked.value == EntryValue::Unknown && from == PreviousFrom::Event => {
            let Some(known) = fallback else { return Finding::PreviousUnknown };
            let entry = known.binary_search_by(|entry| entry.key.cmp(&marked.key)).ok();
            (entry.and_then(|index| known.get(index)), PreviousFrom::Store)
        }
        before => (before, from),
    };
    let side = |entry: Option<&Entry<'a>>| match entry.map(|entry| entry.value) {
        None | Some(EntryValue::None) => Ok(None),
        Some(EntryValue::Known(text)) => Ok(Some(text)),
        Some(EntryValue::Unknown) => Err(()),
    };
    let Ok(new) = side(now) else { return Finding::CurrentUnknown };
    let Ok(old) = side(before) else { return Finding::PreviousUnknown };
    let same = match (old, new) {
        (None, None) => true,
        (Some(old), Some(new)) => canonical::equal(old, new),
        _ => false,
    };
    let Some(some_side) = now.or(before).filter(|_| !same) else { return Finding::Same(from) };
    let name = |entry: Option<&Entry<'a>>| entry.and_then(|entry| entry.name.clone());
    Finding::Changed(
        Change::Key {
            key: some_side.key.clone(),
            name: name(now).or_else(|| name(before)),
            from: old,
            to: new,
        },
        from,
    )
}
