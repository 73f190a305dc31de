//! The table of rules: what is tracked, and which event types say so.
//!
//! Knows the kinds and directions and which of the contract's types a rule may
//! derive; how a field is read and compared it does not know.

use super::event_types::{ALIAS, EventTypes, NATIVE, TOPIC_NAME, is_topic_name, topic_of};
use super::mistakes::{Mistakes, did_you_mean, shown};
use super::section::{Section, read};
use super::yaml::{Node, Value};
use super::{Kind, Rule, RuleEvents};

/// Which change of a field an event type speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Any,
    On,
    Off,
    Added,
    Removed,
    Changed,
}

const KINDS: [(&str, Kind); 5] = [
    ("reference", Kind::Reference),
    ("flag", Kind::Flag),
    ("scalar", Kind::Scalar),
    ("set", Kind::Set),
    ("map", Kind::Map),
];

const FLAG_DIRECTIONS: [(&str, Direction); 2] = [("on", Direction::On), ("off", Direction::Off)];

const MAP_DIRECTIONS: [(&str, Direction); 3] =
    [("added", Direction::Added), ("removed", Direction::Removed), ("changed", Direction::Changed)];

/// Those of the contract's types that are derived, with what they speak of. The
/// platform publishes them too, so a rule that derived one for another kind of
/// change would never meet its twin.
const DERIVED: [(&str, Kind, Direction); 13] = [
    ("ticket:status:changed", Kind::Reference, Direction::Any),
    ("ticket:priority:changed", Kind::Reference, Direction::Any),
    ("ticket:assigned", Kind::Reference, Direction::Any),
    ("ticket:type:changed", Kind::Reference, Direction::Any),
    ("ticket:sentiment:changed", Kind::Reference, Direction::Any),
    ("ticket:escalated", Kind::Flag, Direction::On),
    ("ticket:custom_field_value:added", Kind::Map, Direction::Added),
    ("ticket:custom_field_value:removed", Kind::Map, Direction::Removed),
    ("ticket:custom_field_value:changed", Kind::Map, Direction::Changed),
    ("ticket:tag:updated", Kind::Set, Direction::Any),
    ("ticket:migrated", Kind::Reference, Direction::Any),
    ("ticket:archived", Kind::Flag, Direction::On),
    ("ticket:unarchived", Kind::Flag, Direction::Off),
];

/// A rule as the file writes it.
struct Written {
    line: usize,
    kind: Kind,
    field: String,
    paths: Vec<Vec<String>>,
    email: bool,
    enabled: bool,
    events: Vec<WrittenEvent>,
}

struct WrittenEvent {
    line: usize,
    direction: Direction,
    name: String,
}

/// Reads the enabled rules, and adds their event types to those known. Disabled
/// ones are checked too, and then left out.
pub(super) fn read_rules(
    root: &Section<'_>,
    event_types: &mut EventTypes<'_>,
    mistakes: &mut Mistakes,
) -> Vec<Rule> {
    if root.line("rules") != 0 && root.own("rules").is_none() {
        // Defaults behind an emptied table would surprise.
        let remedy = "write [] for no rules, or remove \"rules\" for the default ones";
        mistakes.note(root.line("rules"), "\"rules\" has no value", remedy);
    }
    let Some(node) = root.node("rules") else { return Vec::new() };
    let Value::List(items) = &node.value else {
        mistakes.note(node.line, "\"rules\" is no list", "begin each rule with \"- event_type: …\"");
        return Vec::new();
    };
    let written: Vec<Written> = items.iter().filter_map(|item| read_rule(item, mistakes)).collect();

    let mut rules: Vec<Rule> = Vec::new();
    let mut derived: Vec<(String, usize)> = Vec::new();
    for rule in written.iter().filter(|rule| rule.enabled) {
        for event in &rule.events {
            if let Some((_, line)) = derived.iter().find(|(name, of)| *name == event.name && *of != rule.line)
            {
                let what = format!("the rule on line {line} derives {} too", shown(&event.name));
                mistakes.note(event.line, what, "give each rule event types of its own");
            }
            derived.push((event.name.clone(), rule.line));
        }
        let new = assemble(rule, event_types, mistakes);
        if rules.iter().any(|rule| rule.store_key == new.store_key && !same_field(rule, &new)) {
            let what = "another rule's field has the same digest by chance";
            mistakes.note(rule.line, what, "put another path in front of its paths");
        }
        rules.push(new);
    }
    let disabled = written.iter().filter(|rule| !rule.enabled);
    let disabled: Vec<String> =
        disabled.flat_map(|rule| rule.events.iter().map(|event| event.name.clone())).collect();
    event_types.note_strangers(&disabled, mistakes);
    rules
}

fn read_rule(node: &Node, mistakes: &mut Mistakes) -> Option<Written> {
    let section = Section::open("rules", Some(node), None, mistakes);
    if !matches!(node.value, Value::Map(_)) {
        if matches!(node.value, Value::Nothing) {
            mistakes.note(node.line, "a rule has no value", "write its event_type, kind and path");
        }
        return None;
    }
    for key in ["event_type", "kind"] {
        if section.own(key).is_none() {
            mistakes.note(node.line, format!("the rule that begins here has no \"{key}\""), "add it");
        }
    }
    let kind = section.choice("kind", &KINDS, mistakes);
    let enabled = section.own("enabled").is_none_or(|_| section.flag("enabled", mistakes).unwrap_or(true));
    let email = section.own("email").is_some_and(|_| section.flag("email", mistakes).unwrap_or(false));
    if email && kind.is_some_and(|kind| kind != Kind::Reference) {
        let remedy = "remove it, or write kind: reference";
        mistakes.note(section.line("email"), "only a reference has an \"email\"", remedy);
    }
    let paths = read_paths(node.line, &section, mistakes);
    let field = section.text("field", "write the name that change.field shall have", mistakes);
    let events = read_events(&section, kind, mistakes);
    // Only now may what is missing end the reading: every mistake is to be told.
    let paths = paths?;
    let field = field.or_else(|| paths.first().map(|path| path.join(".")))?;
    Some(Written { line: node.line, kind: kind?, field, paths, email, enabled, events: events? })
}

fn read_paths(line: usize, section: &Section<'_>, mistakes: &mut Mistakes) -> Option<Vec<Vec<String>>> {
    let nodes: Vec<&Node> = match (section.own("path"), section.own("paths")) {
        (Some(_), Some(_)) => {
            let remedy = "keep \"path\" for one, \"paths\" for several of which the first present decides";
            mistakes.note(section.line("paths"), "the rule has both \"path\" and \"paths\"", remedy);
            return None;
        }
        (None, None) => {
            let remedy = "add the field's path below the ticket, such as path: ticket.dueDate";
            mistakes.note(line, "the rule that begins here has no \"path\"", remedy);
            return None;
        }
        (Some(path), None) => vec![path],
        (None, Some(paths)) => match &paths.value {
            Value::List(items) if !items.is_empty() => items.iter().collect(),
            _ => {
                let remedy = "write at least one, such as [ticket.dueDate]";
                mistakes.note(paths.line, "\"rules.paths\" is no list of paths", remedy);
                return None;
            }
        },
    };
    let remedy = "write ticket. and member names with dots between them, such as ticket.dueDate";
    let paths: Vec<Vec<String>> = nodes
        .iter()
        .filter_map(|node| read("the path", node, remedy, mistakes, |scalar| path(&scalar.text)))
        .collect();
    (paths.len() == nodes.len()).then_some(paths)
}

fn path(text: &str) -> Option<Vec<String>> {
    let members: Vec<String> = text.strip_prefix("ticket.")?.split('.').map(str::to_owned).collect();
    let sound = |member: &String| !member.is_empty() && member.trim() == member;
    members.iter().all(sound).then_some(members)
}

/// The event types of a rule, each with its direction; a kind that could not be
/// read has been noted, and leaves less to check.
fn read_events(
    section: &Section<'_>,
    kind: Option<Kind>,
    mistakes: &mut Mistakes,
) -> Option<Vec<WrittenEvent>> {
    let node = section.own("event_type")?;
    if matches!(node.value, Value::Scalar(_)) {
        return Some(vec![read_event(node, kind, Direction::Any, mistakes)?]);
    }
    let (name, directions): (&str, &[(&str, Direction)]) = match kind? {
        Kind::Flag => ("event_type of a flag", &FLAG_DIRECTIONS),
        Kind::Map => ("event_type of a map", &MAP_DIRECTIONS),
        Kind::Reference | Kind::Scalar | Kind::Set => {
            let remedy =
                "write one event type; only a flag (on, off) and a map (added, removed, changed) have more";
            mistakes.note(node.line, "\"rules.event_type\" is no text", remedy);
            return None;
        }
    };
    let map = Section::open(name, Some(node), None, mistakes);
    let given: Vec<(&Node, Direction)> =
        directions.iter().filter_map(|(key, direction)| Some((map.own(key)?, *direction))).collect();
    if given.is_empty() {
        let words: Vec<&str> = directions.iter().map(|(word, _)| *word).collect();
        let remedy = format!("name an event type for at least one of {}", words.join(", "));
        mistakes.note(node.line, "the rule derives nothing", remedy);
    }
    Some(
        given
            .into_iter()
            .filter_map(|(node, direction)| read_event(node, kind, direction, mistakes))
            .collect(),
    )
}

fn read_event(
    node: &Node,
    kind: Option<Kind>,
    direction: Direction,
    mistakes: &mut Mistakes,
) -> Option<WrittenEvent> {
    let remedy = format!("its topic, \":\" as \".\" and \"_\" as \"-\", must be a Kafka name: {TOPIC_NAME}");
    let name = read("the event type", node, &remedy, mistakes, |scalar| {
        Some(scalar.text.clone()).filter(|name| is_topic_name(&topic_of(name)))
    })?;
    if NATIVE.contains(&name.as_str()) || name == ALIAS.0 {
        note_misuse(node.line, &name, kind, direction, mistakes);
    }
    Some(WrittenEvent { line: node.line, direction, name })
}

/// One of the contract's types may be derived only for the change that it means.
fn note_misuse(line: usize, name: &str, kind: Option<Kind>, direction: Direction, mistakes: &mut Mistakes) {
    match DERIVED.iter().find(|(derived, ..)| *derived == name) {
        None => {
            let what = format!("{} is the platform's own and never derived", shown(name));
            let guess = did_you_mean(name, DERIVED.iter().map(|(derived, ..)| *derived));
            mistakes.note(line, what, format!("{guess}choose a name that is none of the 25"));
        }
        Some((_, meant, at)) if kind.is_some_and(|kind| (*meant, *at) != (kind, direction)) => {
            let kind = word(&KINDS, *meant);
            let at = match at {
                Direction::Any => String::new(),
                Direction::On | Direction::Off => format!(" {}", word(&FLAG_DIRECTIONS, *at)),
                Direction::Added | Direction::Removed | Direction::Changed => {
                    format!(" {}", word(&MAP_DIRECTIONS, *at))
                }
            };
            let what = format!("{} is derived of a {kind}{at} only", shown(name));
            mistakes.note(line, what, "write it there, or choose a name that is none of the 25");
        }
        Some(_) => {}
    }
}

fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], of: T) -> &'static str {
    words.iter().find(|(_, value)| *value == of).map_or("", |(word, _)| word)
}

fn assemble(rule: &Written, event_types: &mut EventTypes<'_>, mistakes: &mut Mistakes) -> Rule {
    let mut index = |direction: Direction| {
        let event = rule.events.iter().find(|event| event.direction == direction)?;
        Some(match event_types.index(&event.name) {
            Some(index) => index,
            None => event_types.add(&event.name, event.line, false, mistakes),
        })
    };
    let events = match (index(Direction::Any), rule.kind) {
        (Some(index), _) => RuleEvents::One(index),
        (None, Kind::Map) => RuleEvents::AddedRemovedChanged {
            added: index(Direction::Added),
            removed: index(Direction::Removed),
            changed: index(Direction::Changed),
        },
        // Of the other kinds only a flag has directions; without its one event
        // type, which is a mistake by now, a rule derives nothing either way.
        (None, _) => RuleEvents::OnOff { on: index(Direction::On), off: index(Direction::Off) },
    };
    Rule {
        kind: rule.kind,
        field: rule.field.clone(),
        paths: rule.paths.clone(),
        email: rule.email,
        events,
        store_key: store_key(rule.kind, &rule.paths, rule.email),
    }
}

fn same_field(one: &Rule, other: &Rule) -> bool {
    one.kind == other.kind && one.paths == other.paths && one.email == other.email
}

/// A digest of what a rule reads. Lengths stand before texts, so that no two
/// fields have the same bytes; stores hold these keys, so they never change.
fn store_key(kind: Kind, paths: &[Vec<String>], email: bool) -> [u8; 4] {
    let mut digest = blake3::Hasher::new();
    let mut text = |text: &str| {
        digest.update(&(text.len() as u64).to_le_bytes());
        digest.update(text.as_bytes());
    };
    text(word(&KINDS, kind));
    for path in paths {
        text(&path.len().to_string());
        path.iter().for_each(|member| text(member));
    }
    // What is known with an e-mail address is not what is known without.
    if email {
        text("email");
    }
    let mut key = [0; 4];
    key.iter_mut().zip(digest.finalize().as_bytes()).for_each(|(key, byte)| *key = *byte);
    key
}

impl Kind {
    /// The kind's word in the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        word(&KINDS, self)
    }
}
