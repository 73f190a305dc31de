//! What one ticket event does to its ticket's entry, and what it derives.
//!
//! Entry and envelope in, entry and derived events out (contract §3, §4, §5).
//! It does not know bytes that go out, the store, or the window of event ids.

use crate::announcement::{self, Announcer, Direction, Reception};
use crate::derive::{self, Change, Finding, PreviousFrom, Verdict};
use crate::entry::{DeletionMark, Entry, Snapshot};
use crate::envelope::Envelope;
use crate::json::{Tape, Value};
use crate::known::Known;
use crate::ticket::{self, Field, Reader};
use crate::topology::{EventTypeIndex, Kind, NativeSpecifics, Ordering, RuleEvents, Topology};

/// What an event type means to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `ticket:created`.
    Created,
    /// `ticket:updated`.
    Updated,
    /// `ticket:deleted`.
    Deleted,
    /// A specific event that a rule derives, too.
    Specific {
        /// The rule.
        rule: usize,
        /// Whether it says that a map's key lost its value.
        direction: Direction,
    },
    /// Only forwarded.
    Other,
}

/// The role of each of the topology's event types.
#[must_use]
pub fn roles(topology: &Topology) -> Vec<Role> {
    let mut roles: Vec<Role> = topology
        .event_types
        .iter()
        .map(|event_type| match event_type.name.as_str() {
            "ticket:created" => Role::Created,
            "ticket:updated" => Role::Updated,
            "ticket:deleted" => Role::Deleted,
            _ => Role::Other,
        })
        .collect();
    for (rule, events) in topology.rules.iter().map(|rule| rule.events).enumerate() {
        let mut specific = |event_type: Option<EventTypeIndex>, direction| {
            if let Some(role) = event_type.and_then(|event_type| roles.get_mut(event_type)) {
                *role = Role::Specific { rule, direction };
            }
        };
        match events {
            RuleEvents::One(event_type) => specific(Some(event_type), Direction::Value),
            RuleEvents::OnOff { on, off } => {
                specific(on, Direction::Value);
                specific(off, Direction::Value);
            }
            RuleEvents::AddedRemovedChanged { added, removed, changed } => {
                specific(added, Direction::Value);
                specific(removed, Direction::Removed);
                specific(changed, Direction::Value);
            }
        }
    }
    roles
}

/// Whether a rule's changes announce: at least one of its types is among the 25.
fn announces(topology: &Topology, events: RuleEvents) -> bool {
    let types = match events {
        RuleEvents::One(event_type) => [Some(event_type), None, None],
        RuleEvents::OnOff { on, off } => [on, off, None],
        RuleEvents::AddedRemovedChanged { added, removed, changed } => [added, removed, changed],
    };
    types.into_iter().flatten().any(|index| topology.event_types.get(index).is_some_and(|one| one.native))
}

/// What became of a ticket event.
#[derive(Debug, Default)]
pub struct Transition<'a> {
    /// It was late: its forwarded record is copied.
    pub late: bool,
    /// A native specific that met its twin, or that the policy drops: it is not forwarded.
    pub dropped: bool,
    /// The derived events that are emitted, in order.
    pub derived: Vec<DerivedEvent<'a>>,
    /// How many derived events met their twin.
    pub twins_dropped: u32,
    /// Whether the entry is another one now.
    pub entry_changed: bool,
    /// The snapshot that was there before, as its text.
    pub previous_snapshot: Option<&'a str>,
}

/// A derived event that is emitted.
#[derive(Debug)]
pub struct DerivedEvent<'a> {
    /// The rule that found it.
    pub rule: usize,
    /// Its type.
    pub event_type: EventTypeIndex,
    /// What changed.
    pub change: Change<'a>,
    /// Where the previous value came from.
    pub previous_from: PreviousFrom,
}

/// Lets one ticket event happen to its ticket's entry, of which the window has
/// forgotten what it had to. `record_ms` is the record's Kafka timestamp; `tape`
/// is for what must be read of the snapshot. `None`: the entry is damaged.
pub fn happen<'a>(
    topology: &Topology,
    reader: &'a Reader,
    role: Role,
    envelope: &Envelope<'a>,
    record_ms: i64,
    entry: &mut Entry<'a>,
    tape: &'a mut Tape,
) -> Option<Transition<'a>> {
    let late = matches!(role, Role::Created | Role::Updated | Role::Deleted)
        && topology.policies.ordering == Ordering::Timestamp
        && entry.time_ms().is_some_and(|time_ms| envelope.time_ms < time_ms);
    let mut transition = Transition { late, ..Transition::default() };
    match role {
        Role::Created | Role::Updated => {
            let event = StateEvent { topology, reader, role, envelope, record_ms };
            event.happen(entry, tape, &mut transition)?;
        }
        Role::Deleted if !late => {
            entry.snapshot = None;
            entry.mark = Some(DeletionMark { time_ms: envelope.time_ms, since_ms: record_ms });
            entry.waiting.clear();
            transition.entry_changed = true;
        }
        Role::Specific { rule, direction } => match topology.policies.native_specifics {
            NativeSpecifics::Both => {}
            NativeSpecifics::Drop => transition.dropped = true,
            NativeSpecifics::Once => {
                if let Some(announcement) = native_announcement(topology, reader, rule, direction, envelope) {
                    let reception = entry.waiting.announce(announcement, Announcer::Native, record_ms);
                    transition.dropped = reception == Reception::Twin;
                    transition.entry_changed = true;
                }
            }
        },
        Role::Deleted | Role::Other => {}
    }
    Some(transition)
}

/// A `ticket:created` or `ticket:updated`.
struct StateEvent<'e, 'a> {
    topology: &'e Topology,
    reader: &'a Reader,
    role: Role,
    envelope: &'e Envelope<'a>,
    record_ms: i64,
}

impl<'a> StateEvent<'_, 'a> {
    fn happen(
        &self,
        entry: &mut Entry<'a>,
        tape: &'a mut Tape,
        transition: &mut Transition<'a>,
    ) -> Option<()> {
        // Without a ticket there is nothing to remember, and nothing to compare.
        let Some(ticket) = self.envelope.ticket else { return Some(()) };
        let (late, rules) = (transition.late, self.reader.rules());
        if late && self.role == Role::Created {
            return Some(());
        }
        let current = self.reader.ticket(ticket);
        let before = if late { None } else { entry.snapshot.take() };
        transition.previous_snapshot = before.as_ref().map(|snapshot| snapshot.text);
        let known = match before {
            Some(snapshot) => Known::of(snapshot, self.reader, &current, tape)?,
            None => Known::default(),
        };
        let first_sight = known.is_nothing() && self.envelope.previous_ticket.is_none();
        if !late && (self.role == Role::Created || first_sight) {
            entry.waiting.clear();
        }
        if self.role == Role::Updated && !first_sight {
            let previous_ticket = self.envelope.previous_ticket.map(|ticket| self.reader.ticket(ticket));
            derive::derive(rules, &current, previous_ticket.as_ref(), &known, |verdict| {
                self.emit(verdict, entry, transition);
            });
        }
        if !late {
            entry.snapshot = Some(Snapshot {
                time_ms: self.envelope.time_ms,
                text: ticket.raw(),
                places: Some(current.places(ticket.start()).collect()),
                carried: known.learn(&current, rules),
            });
            entry.mark = None;
            transition.entry_changed = true;
        }
        Some(())
    }

    /// A verdict to an emitted event: the rule's event types, and the twins.
    fn emit(&self, verdict: Verdict<'a>, entry: &mut Entry<'a>, transition: &mut Transition<'a>) {
        let topology = self.topology;
        let Finding::Changed(change, previous_from) = verdict.finding else { return };
        let Some(rule) = topology.rules.get(verdict.rule) else { return };
        let once =
            topology.policies.native_specifics == NativeSpecifics::Once && announces(topology, rule.events);
        let event_type = change.event_type(rule.events);
        let Some((index, event_type)) =
            event_type.and_then(|index| Some((index, topology.event_types.get(index)?)))
        else {
            if once {
                entry.waiting.end(rule.store_key, change.subject());
                transition.entry_changed = true;
            }
            return;
        };
        if once {
            let announcement = announcement::of_change(rule, &event_type.name, &change);
            transition.entry_changed = true;
            if entry.waiting.announce(announcement, Announcer::Derived, self.record_ms) == Reception::Twin {
                transition.twins_dropped += 1;
                return;
            }
        }
        let derived = DerivedEvent { rule: verdict.rule, event_type: index, change, previous_from };
        transition.derived.push(derived);
    }
}

/// What a native specific announces, read from its own ticket.
fn native_announcement<'a>(
    topology: &Topology,
    reader: &'a Reader,
    rule: usize,
    direction: Direction,
    envelope: &Envelope<'a>,
) -> Option<announcement::Announcement<'a>> {
    let said = |ticket: Option<Value<'a>>| ticket.and_then(|ticket| reader.ticket(ticket).field(rule));
    let now = said(envelope.ticket);
    let rule = topology.rules.get(rule)?;
    let key = match rule.kind {
        Kind::Map => {
            ticket::named_key(envelope.payload).or_else(|| match (&now, said(envelope.previous_ticket)) {
                (Some(Field::Map(now)), Some(Field::Map(before))) => {
                    announcement::only_differing_key(&before, now)
                }
                _ => None,
            })
        }
        _ => None,
    };
    announcement::of_native(rule, &envelope.event_name, now.as_ref(), key, direction)
}
