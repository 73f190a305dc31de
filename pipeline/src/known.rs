//! What the store knows of each tracked field, read only as far as an event
//! says something else.
//!
//! An event repeats most of its ticket in the same words, and what is said in the
//! same words is neither parsed nor compared. This module knows what was said
//! last; what changed it does not ([`crate::derive`]).

use crate::entry::Snapshot;
use crate::json::{Kind as Json, Tape};
use crate::ticket::{Entry, EntryValue, Field, Reader, Ticket};

/// What is known, beside what an event's own ticket says.
#[derive(Debug, Default)]
pub struct Known<'a> {
    last: Option<Last<'a>>,
}

/// The ticket as last seen.
#[derive(Debug)]
struct Last<'a> {
    /// Of the fields of which the event says the same it cannot be asked.
    ticket: Ticket<'a>,
    /// By rule, whether the event says the same.
    untouched: Vec<bool>,
    /// The known values that it does not say itself, by rule.
    carried: Vec<(usize, Field<'a>)>,
}

impl<'a> Known<'a> {
    /// What a snapshot knows, for an event whose ticket is `current`; `None`
    /// where the snapshot is no ticket, or its members do not stand where it says.
    pub fn of(
        snapshot: Snapshot<'a>,
        reader: &'a Reader,
        current: &Ticket<'_>,
        tape: &'a mut Tape,
    ) -> Option<Known<'a>> {
        let Snapshot { text, places, mut carried, .. } = snapshot;
        let rules = 0..reader.rules();
        let (ticket, untouched) = if let Some(places) = places {
            let untouched: Vec<bool> = rules.map(|rule| current.says_as_text(text, &places, rule)).collect();
            (reader.ticket_beside(text, &places, &untouched, tape)?, untouched)
        } else {
            let ticket = tape.parse(text.as_bytes()).ok().filter(|value| value.kind() == Json::Object)?;
            let ticket = reader.ticket(ticket);
            carried.retain(|(rule, field)| ticket.field(*rule).as_ref() != Some(field));
            let untouched = rules.map(|rule| current.says_as(&ticket, rule)).collect();
            (ticket, untouched)
        };
        Some(Known { last: Some(Last { ticket, untouched, carried }) })
    }

    /// Whether nothing is known of any field.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.last.is_none()
    }

    /// Whether the event says of a rule's field what was said last, in the same
    /// words or not at all. `false` says nothing.
    #[must_use]
    pub fn is_untouched(&self, rule: usize) -> bool {
        self.last.as_ref().is_some_and(|last| last.untouched.get(rule) == Some(&true))
    }

    /// What is known of a rule's field; `current` is the event's ticket.
    #[must_use]
    pub fn field(&self, current: &Ticket<'a>, rule: usize) -> Option<Field<'a>> {
        let last = self.last.as_ref()?;
        self.carried(rule)
            .or_else(|| if self.is_untouched(rule) { current.field(rule) } else { last.ticket.field(rule) })
    }

    /// What is known once an event that is not late has said `current`, as far as
    /// that does not say it itself, by rule.
    ///
    /// A field of which it says nothing keeps what is known. A map is taken whole,
    /// save that a key whose value carries the mark keeps the value, and its name,
    /// known before, and is unknown where there was none.
    #[must_use]
    pub fn learn(self, current: &Ticket<'a>, rules: usize) -> Vec<(usize, Field<'a>)> {
        let mut carried = Vec::new();
        if self.is_nothing() {
            return carried;
        }
        for rule in 0..rules {
            let known = if self.is_untouched(rule) {
                self.carried(rule)
            } else {
                match current.field(rule) {
                    None => self.field(current, rule),
                    Some(Field::Map(said)) if said.iter().any(|entry| entry.value == EntryValue::Unknown) => {
                        merged(self.field(current, rule), said)
                    }
                    Some(_) => None,
                }
            };
            carried.extend(known.map(|field| (rule, field)));
        }
        carried
    }

    fn carried(&self, rule: usize) -> Option<Field<'a>> {
        let carried = self.last.as_ref().map(|last| last.carried.as_slice()).unwrap_or_default();
        carried.iter().find(|(of, _)| *of == rule).map(|(_, field)| field.clone())
    }
}

/// A map whose marked keys keep what is known; `None` where nothing is known of them.
fn merged<'a>(known: Option<Field<'a>>, mut said: Vec<Entry<'a>>) -> Option<Field<'a>> {
    let Some(Field::Map(known)) = known else { return None };
    let mut keeps = false;
    for entry in said.iter_mut().filter(|entry| entry.value == EntryValue::Unknown) {
        let before = known.binary_search_by(|before| before.key.cmp(&entry.key)).ok();
        let before = before.and_then(|index| known.get(index));
        if let Some(before) = before.filter(|before| matches!(before.value, EntryValue::Known(_))) {
            entry.name.clone_from(&before.name);
            entry.value = before.value;
            keeps = true;
        }
    }
    keeps.then_some(Field::Map(said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    const MARK: &str = "Payload too large. Use API instead";

    /// What is known by rule's field behind each of these tickets, one after the other,
    /// as far as the last one does not say it itself.
    fn carried(tickets: &[&str]) -> Vec<String> {
        let topology = Topology::shipped();
        let reader = Reader::new(&topology.rules);
        let mut tapes: Vec<(Tape, Tape)> = tickets.iter().map(|_| Default::default()).collect();
        let mut snapshot: Option<Snapshot<'_>> = None;
        for (&text, (tape, other)) in tickets.iter().zip(&mut tapes) {
            let current = reader.ticket(tape.parse(text.as_bytes()).unwrap());
            let known = snapshot.map_or_else(Known::default, |snapshot| {
                Known::of(snapshot, &reader, &current, other).unwrap()
            });
            let places = Some(current.places(0).collect());
            let carried = known.learn(&current, topology.rules.len());
            snapshot = Some(Snapshot { time_ms: 0, text, places, carried });
        }
        let carried = snapshot.unwrap().carried;
        let field = |rule: usize| topology.rules.get(rule).unwrap().field.clone();
        carried.into_iter().map(|(rule, value)| format!("{}: {value:?}", field(rule))).collect()
    }

    #[test]
    fn what_a_ticket_does_not_say_any_more_is_carried_until_it_does() {
        let whole = r#"{"status":"open","customFields":{"a":1,"b":2},"isEscalated":true}"#;
        let marked = format!(r#"{{"status":"{MARK}","customFields":{{"a":"{MARK}","c":3}}}}"#);
        assert_eq!(carried(&[whole]), [""; 0]);
        let once = carried(&[whole, &marked]);
        assert_eq!(once.len(), 3, "{once:?}");
        assert!(once.iter().any(|field| field.starts_with("status") && field.contains("open")), "{once:?}");
        assert!(
            once.iter().any(|field| field.contains("Known(\"1\")") && field.contains("Known(\"3\")")),
            "{once:?}"
        );
        assert_eq!(carried(&[whole, &marked, &marked]), once);
        assert_eq!(carried(&[whole, &marked, whole]), [""; 0]);
        // What was never known is carried by nobody.
        assert_eq!(carried(&[&marked, &marked]), [""; 0]);
    }
}
