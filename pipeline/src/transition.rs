//! What one ticket event does to its ticket's entry, and what it derives.
//!
//! Entry and envelope in, entry and derived events out (contract §3, §4, §5).
//! It does not know bytes that go out, the store, or the window of event ids.

use crate::announcement::{self, Announcer, Direction, Reception, Waiting};
use crate::derive::{self, Change, Finding, PreviousFrom, Verdict};
use crate::entry::{DeletionMark, Entry, Snapshot};
use crate::envelope::Envelope;
use crate::json::Value;
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
/// forgotten what it had to. `record_ms` is the record's Kafka timestamp.
pub fn happen<'a>(
    topology: &Topology,
    reader: &'a Reader,
    role: Role,
    envelope: &Envelope<'a>,
    record_ms: i64,
    entry: &mut Entry<'a>,
) -> Transition<'a> {
    let late = matches!(role, Role::Created | Role::Updated | Role::Deleted)
        && topology.policies.ordering == Ordering::Timestamp
        && entry.time_ms().is_some_and(|time_ms| envelope.time_ms < time_ms);
    let mut transition = Transition { late, ..Transition::default() };
    match role {
        Role::Created | Role::Updated => {
            state(topology, reader, role, envelope, record_ms, entry, &mut transition)
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
                    let new = Waiting { announcement, by: Announcer::Native, since_ms: record_ms };
                    transition.dropped = announcement::announce(&mut entry.waiting, new) == Reception::Twin;
                    transition.entry_changed = true;
                }
            }
        },
        Role::Deleted | Role::Other => {}
    }
    transition
}

/// A `ticket:created` or `ticket:updated`.
fn state<'a>(
    topology: &Topology,
    reader: &'a Reader,
    role: Role,
    envelope: &Envelope<'a>,
    record_ms: i64,
    entry: &mut Entry<'a>,
    transition: &mut Transition<'a>,
) {
    // Without a ticket there is nothing to remember, and nothing to compare.
    let Some(ticket) = envelope.ticket else { return };
    let late = transition.late;
    if late && role == Role::Created {
        return;
    }
    let current = reader.ticket(ticket).fields();
    let before = if late { None } else { entry.snapshot.take() };
    transition.previous_snapshot = before.as_ref().map(|snapshot| snapshot.text);
    let known = before.map(|snapshot| snapshot.known).unwrap_or_default();
    let first_sight = transition.previous_snapshot.is_none() && envelope.previous_ticket.is_none();
    if !late && (role == Role::Created || first_sight) {
        entry.waiting.clear();
    }
    if role == Role::Updated {
        let mut verdicts = Vec::with_capacity(topology.rules.len());
        let previous_ticket = envelope.previous_ticket.map(|ticket| reader.ticket(ticket));
        derive::derive(&current, previous_ticket.as_ref(), &known, &mut verdicts);
        emit(topology, verdicts, record_ms, entry, transition);
    }
    if !late {
        let mut known = known.into_iter();
        let known = current.into_iter().map(|said| derive::learn(known.next().flatten(), said)).collect();
        entry.snapshot = Some(Snapshot { time_ms: envelope.time_ms, text: ticket.raw(), known });
        entry.mark = None;
        transition.entry_changed = true;
    }
}

/// Verdicts to emitted events: the rules' event types, and the twins.
fn emit<'a>(
    topology: &Topology,
    verdicts: Vec<Verdict<'a>>,
    record_ms: i64,
    entry: &mut Entry<'a>,
    transition: &mut Transition<'a>,
) {
    for verdict in verdicts {
        let Finding::Changed(change, previous_from) = verdict.finding else { continue };
        let Some(rule) = topology.rules.get(verdict.rule) else { continue };
        let once =
            topology.policies.native_specifics == NativeSpecifics::Once && announces(topology, rule.events);
        let event_type = change.event_type(rule.events);
        let Some((index, event_type)) =
            event_type.and_then(|index| Some((index, topology.event_types.get(index)?)))
        else {
            if once {
                announcement::end(&mut entry.waiting, rule.store_key, change.subject());
                transition.entry_changed = true;
            }
            continue;
        };
        if once {
            let announcement = announcement::of_change(rule, &event_type.name, &change);
            let new = Waiting { announcement, by: Announcer::Derived, since_ms: record_ms };
            transition.entry_changed = true;
            if announcement::announce(&mut entry.waiting, new) == Reception::Twin {
                transition.twins_dropped += 1;
                continue;
            }
        }
        transition.derived.push(DerivedEvent {
            rule: verdict.rule,
            event_type: index,
            change,
            previous_from,
        });
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
