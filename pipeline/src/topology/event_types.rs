//! The event types and their topics: the contract's 25, the alias, and those of
//! user rules.
//!
//! Knows how an event type becomes a topic's name, and what names Kafka takes;
//! what is derived it does not know.

use super::mistakes::{Mistakes, did_you_mean, shown};
use super::section::read;
use super::yaml::{Key, Node};
use super::{EventType, EventTypeIndex};

/// The contract's 25 types, in its order.
pub(super) const NATIVE: [&str; 25] = [
    "ticket:created",
    "ticket:updated",
    "ticket:deleted",
    "ticket:archived",
    "ticket:unarchived",
    "ticket:status:changed",
    "ticket:priority:changed",
    "ticket:assigned",
    "ticket:type:changed",
    "ticket:sentiment:changed",
    "ticket:escalated",
    "ticket:custom_field_value:added",
    "ticket:custom_field_value:removed",
    "ticket:custom_field_value:changed",
    "ticket:tag:updated",
    "ticket:migrated",
    "ticket:comment:added",
    "ticket:comment:updated",
    "ticket:comment:deleted",
    "ticket:comment:reaction:added",
    "ticket:comment:reaction:removed",
    "ticket:csat:sent",
    "ticket:csat:received",
    "ticket:sla:breached",
    "ticket:sla:breach_warning",
];

/// Another name for an event type, whose topic it shares.
pub(super) const ALIAS: (&str, &str) = ("ticket:comment:created", "ticket:comment:added");

/// The remedy for a name that Kafka would refuse.
pub(super) const TOPIC_NAME: &str = "write 1 to 249 of the letters a-z A-Z, digits and . _ -";

/// Whether Kafka takes this name for a topic.
pub(super) fn is_topic_name(name: &str) -> bool {
    const NAME_BYTES_MAX: usize = 249;
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        // Kafka's own.
        && !matches!(
            name,
            "__consumer_offsets" | "__transaction_state" | "__share_group_state" | "__cluster_metadata"
        )
}

/// The topic of an event type by the contract's naming.
pub(super) fn topic_of(event_type: &str) -> String {
    event_type.replace(':', ".").replace('_', "-")
}

/// The event types known so far, with the line that names each topic.
pub(super) struct EventTypes<'a> {
    types: Vec<EventType>,
    lines: Vec<usize>,
    /// The topics that the file names itself.
    named: &'a [(Key, Node)],
}

impl<'a> EventTypes<'a> {
    /// The contract's types and the alias, in the topics that the file names,
    /// else in those of the contract's naming.
    pub(super) fn native(named: &'a [(Key, Node)], mistakes: &mut Mistakes) -> EventTypes<'a> {
        let mut event_types = EventTypes { types: Vec::new(), lines: Vec::new(), named };
        for name in NATIVE {
            event_types.add(name, 0, true, mistakes);
        }
        let (alias, original) = ALIAS;
        let original_type = event_types.types.iter().find(|event_type| event_type.name == original);
        let topic = original_type.map_or_else(|| topic_of(original), |of| of.topic.clone());
        event_types.types.push(EventType { name: alias.to_owned(), topic, native: true });
        event_types.lines.push(0);
        event_types
    }

    /// Adds an event type, whose topic is named on its line unless elsewhere.
    pub(super) fn add(
        &mut self,
        name: &str,
        line: usize,
        native: bool,
        mistakes: &mut Mistakes,
    ) -> EventTypeIndex {
        let named = self.named.iter().find(|(key, _)| key.text == name);
        let topic = named.and_then(|(_, node)| {
            let what = format!("the topic of {}", shown(name));
            read(&what, node, TOPIC_NAME, mistakes, |scalar| {
                Some(scalar.text.clone()).filter(|name| is_topic_name(name))
            })
        });
        self.types.push(EventType {
            name: name.to_owned(),
            topic: topic.unwrap_or_else(|| topic_of(name)),
            native,
        });
        self.lines.push(named.map_or(line, |(key, _)| key.line));
        self.types.len() - 1
    }

    /// The index of an event type.
    pub(super) fn index(&self, name: &str) -> Option<EventTypeIndex> {
        self.types.iter().position(|event_type| event_type.name == name)
    }

    /// Notes the topics that the file names for event types that there are not;
    /// `derived` has what disabled rules would derive.
    pub(super) fn note_strangers(&self, derived: &[String], mistakes: &mut Mistakes) {
        let known = || {
            self.types
                .iter()
                .map(|event_type| event_type.name.as_str())
                .chain(derived.iter().map(String::as_str))
        };
        for (key, _) in self.named {
            if key.text == ALIAS.0 {
                let what = format!("{} has no topic of its own", shown(&key.text));
                mistakes.note(key.line, what, format!("it shares that of \"{}\": name that one's", ALIAS.1));
            } else if !known().any(|name| name == key.text) {
                let what = format!("the event type {} is not known", shown(&key.text));
                let guess = did_you_mean(&key.text, known());
                mistakes.note(
                    key.line,
                    what,
                    format!("{guess}name one of the 25 or one that a rule derives"),
                );
            }
        }
    }

    /// Every event type's topic with whose it is and on which line; the alias
    /// has none.
    pub(super) fn topics(&self) -> impl Iterator<Item = (String, String, usize)> {
        self.types
            .iter()
            .zip(&self.lines)
            .filter(|(event_type, _)| event_type.name != ALIAS.0)
            .map(|(event_type, line)| (event_type.topic.clone(), shown(&event_type.name), *line))
    }

    /// The event types, in the order of their indexes.
    pub(super) fn into_types(self) -> Vec<EventType> {
        self.types
    }
}
