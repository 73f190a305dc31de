//! What a ticket says of each tracked field (contract §1).
//!
//! Absent is not null: a field of which a ticket says nothing reads as `None`,
//! one that it says is empty as an empty value. This module reads one ticket;
//! it does not know what was known before ([`crate::derive`]).

pub use crate::field::{Entry, EntryValue, Field, Identity, TRUNCATION_MARK, is_mark, named_key};
use crate::field::{Parts, Said, carries_mark, read_map, read_set, said, word};
use crate::json::{Kind as Json, Tape, Value};
use crate::topology::{Kind, Rule};

/// The rules' paths, made ready to read a ticket in one pass over its members.
#[derive(Debug)]
pub struct Reader {
    names: Names,
    rules: Vec<Readable>,
}

/// A rule as the reader sees it.
#[derive(Debug)]
struct Readable {
    kind: Kind,
    email: bool,
    paths: Vec<Path>,
    /// The ticket's members that it looks at: what a ticket says of its field
    /// hangs on their texts alone.
    slots: Vec<Slot>,
}

/// A path below the ticket.
#[derive(Debug)]
struct Path {
    first: Slot,
    rest: Vec<String>,
    /// `<last name>Id` and `<last name>Name`, beside the last name: a reference's.
    id: Beside,
    name: Beside,
}

/// A member beside the last one of a path.
#[derive(Debug)]
enum Beside {
    /// Of the ticket itself.
    Slot(Slot),
    /// Of an object within it.
    Member(String),
}

/// A member's place in a [`Ticket`].
type Slot = usize;

/// A member that a ticket does not have.
const ABSENT: u32 = u32::MAX;

/// Where a member's value begins and ends in the ticket's text.
pub type Place = (u32, u32);

/// The member names that any path begins with, by their length.
#[derive(Debug, Default)]
struct Names {
    by_length: Vec<Vec<(String, Slot)>>,
    count: usize,
}

impl Names {
    fn slot(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.find(name.as_bytes()) {
            return slot;
        }
        if self.by_length.len() <= name.len() {
            self.by_length.resize_with(name.len() + 1, Vec::new);
        }
        if let Some(names) = self.by_length.get_mut(name.len()) {
            names.push((name.to_owned(), self.count));
        }
        self.count += 1;
        self.count - 1
    }

    fn find(&self, name: &[u8]) -> Option<Slot> {
        let names = self.by_length.get(name.len())?;
        names.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, slot)| *slot)
    }
}

impl Reader {
    /// A reader for a topology's rules.
    #[must_use]
    pub fn new(rules: &[Rule]) -> Reader {
        let mut names = Names::default();
        let readable = |rule: &Rule| {
            let paths: Vec<Path> =
                rule.paths.iter().filter_map(|path| Path::new(path, rule.kind, &mut names)).collect();
            let slots = paths.iter().flat_map(Path::slots).collect();
            Readable { kind: rule.kind, email: rule.email, paths, slots }
        };
        let rules = rules.iter().map(readable).collect();
        Reader { names, rules }
    }

    /// How many rules there are.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// How many members the rules ask for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.names.count
    }

    /// A ticket, an object, with the members that the rules ask for.
    #[must_use]
    pub fn ticket<'a>(&'a self, object: Value<'a>) -> Ticket<'a> {
        let mut members = vec![ABSENT; self.names.count];
        for name in object.names() {
            let slot = match object.at(name).plain_bytes() {
                Some(name) => self.names.find(name),
                None => object.at(name).string().and_then(|name| self.names.find(name.as_bytes())),
            };
            // Of repeated members the last one counts.
            if let Some(member) = slot.and_then(|slot| members.get_mut(slot)) {
                *member = name + 1;
            }
        }
        Ticket { reader: self, root: object, members }
    }

    /// A ticket of which only what an event says in other words is read, from its
    /// text and where the members stand in it; `None` where they do not.
    ///
    /// Of a rule that is `untouched` nothing can be asked.
    #[must_use]
    pub fn ticket_beside<'a>(
        &'a self,
        text: &'a str,
        places: &[Place],
        untouched: &[bool],
        tape: &'a mut Tape,
    ) -> Option<Ticket<'a>> {
        let mut members = vec![ABSENT; self.names.count];
        tape.clear();
        for (rule, _) in self.rules.iter().zip(untouched).filter(|(_, untouched)| !**untouched) {
            for &slot in &rule.slots {
                let (&(start, end), member) = (places.get(slot)?, members.get_mut(slot)?);
                if end > start && *member == ABSENT {
                    *member = tape.read(text, start as usize, end as usize).ok()?;
                }
            }
        }
        Some(Ticket { reader: self, root: tape.value(text, 0), members })
    }
}

impl Path {
    fn new(path: &[String], kind: Kind, names: &mut Names) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        let last = path.last()?;
        // Only a reference looks beside its path.
        let of_ticket = rest.is_empty() && kind == Kind::Reference;
        let mut beside = |suffix: &str| {
            let name = format!("{last}{suffix}");
            if of_ticket { Beside::Slot(names.slot(&name)) } else { Beside::Member(name) }
        };
        let (id, name) = (beside("Id"), beside("Name"));
        Some(Path { first: names.slot(first), rest: rest.to_vec(), id, name })
    }

    fn slots(&self) -> impl Iterator<Item = Slot> {
        let beside = [&self.id, &self.name].into_iter().filter_map(|beside| match beside {
            Beside::Slot(slot) => Some(*slot),
            Beside::Member(_) => None,
        });
        std::iter::once(self.first).chain(beside)
    }
}

/// A ticket with the members that the rules ask for.
#[derive(Debug)]
pub struct Ticket<'a> {
    reader: &'a Reader,
    /// Any value of the ticket's document.
    root: Value<'a>,
    /// The members' indices in it, or [`ABSENT`].
    members: Vec<u32>,
}

impl<'a> Ticket<'a> {
    /// Where the members that the rules ask for stand in the ticket's text, which
    /// begins at `start` in the document's; (0, 0) of those that are absent.
    pub fn places(&self, start: usize) -> impl Iterator<Item = Place> {
        self.members.iter().map(move |&member| match member {
            ABSENT => (0, 0),
            member => {
                let value = self.root.at(member);
                ((value.start() - start) as u32, (value.end() - start) as u32)
            }
        })
    }

    /// Whether two tickets say the same of a rule's field, in the same words or
    /// not at all: then nothing has happened to it. `false` says nothing.
    #[must_use]
    pub fn says_as(&self, other: &Ticket<'_>, rule: usize) -> bool {
        self.slots(rule)
            .iter()
            .all(|&slot| self.member(slot).map(Value::raw_bytes) == other.member(slot).map(Value::raw_bytes))
    }

    /// The same of a ticket of which only the text is there, and its members' places.
    #[must_use]
    pub fn says_as_text(&self, text: &str, places: &[Place], rule: usize) -> bool {
        self.slots(rule).iter().all(|&slot| {
            let other = places.get(slot).filter(|(start, end)| end > start);
            match (self.member(slot), other) {
                (None, None) => true,
                (Some(value), Some(&(start, end))) => {
                    Some(value.raw_bytes()) == text.as_bytes().get(start as usize..end as usize)
                }
                _ => false,
            }
        })
    }

    /// Whether it has any of the members that a rule looks at.
    #[must_use]
    pub fn speaks_of(&self, rule: usize) -> bool {
        self.slots(rule).iter().any(|&slot| self.member(slot).is_some())
    }

    fn slots(&self, rule: usize) -> &[Slot] {
        self.reader.rules.get(rule).map_or(&[], |rule| rule.slots.as_slice())
    }

    /// What the ticket says of the field of a rule, by its place among the
    /// reader's; `None` where it says nothing.
    #[must_use]
    pub fn field(&self, rule: usize) -> Option<Field<'a>> {
        let rule = self.reader.rules.get(rule)?;
        if rule.kind == Kind::Reference {
            return self.reference(rule).map(Field::Reference);
        }
        let value = rule.paths.iter().find_map(|path| self.at(path))?;
        match rule.kind {
            Kind::Reference => None,
            Kind::Flag => match value.kind() {
                Json::True => Some(Field::Flag(true)),
                Json::False => Some(Field::Flag(false)),
                _ => None,
            },
            Kind::Scalar => (!carries_mark(value)).then(|| Field::Scalar(value.raw())),
            Kind::Set => read_set(value).map(Field::Set),
            Kind::Map => read_map(value).map(Field::Map),
        }
    }

    /// What the ticket says of every rule's field.
    #[must_use]
    pub fn fields(&self) -> Vec<Option<Field<'a>>> {
        (0..self.reader.rules.len()).map(|rule| self.field(rule)).collect()
    }

    fn member(&self, slot: Slot) -> Option<Value<'a>> {
        let member = self.members.get(slot).copied().filter(|member| *member != ABSENT)?;
        Some(self.root.at(member))
    }

    fn at(&self, path: &Path) -> Option<Value<'a>> {
        path.rest.iter().try_fold(self.member(path.first)?, |value, name| value.get(name))
    }

    /// `path` is one of several members: `statusId` beside `status`.
    fn beside(&self, path: &Path, beside: &Beside) -> Option<Value<'a>> {
        match beside {
            Beside::Slot(slot) => self.member(*slot),
            Beside::Member(name) => {
                let (_, parents) = path.rest.split_last()?;
                parents.iter().try_fold(self.member(path.first)?, |value, name| value.get(name))?.get(name)
            }
        }
    }

    /// `Some(None)` is a reference that is said to be empty.
    fn reference(&self, rule: &Readable) -> Option<Option<Identity<'a>>> {
        for path in &rule.paths {
            let mut parts = Parts::default();
            let said = match self.at(path) {
                None => match self.beside(path, &path.id).or_else(|| self.beside(path, &path.name)) {
                    Some(value) => said(value),
                    None => continue,
                },
                Some(object) if object.kind() == Json::Object => {
                    if object.is_empty() {
                        return Some(None);
                    }
                    parts = Parts::of(object);
                    // An object that does not say whom it means is passed over.
                    let Some(identity) = parts.identity() else { continue };
                    said(identity)
                }
                // A number is no reference by itself: only a string is.
                Some(value) if value.kind() == Json::Number => return None,
                Some(value) => said(value),
            };
            let id = match said {
                Said::Nothing => return None,
                Said::Empty => return Some(None),
                Said::Identity(id) => id,
            };
            let name = parts.name.or(parts.display_name).or_else(|| self.beside(path, &path.name));
            let (name, email) = (name.and_then(word), parts.email.filter(|_| rule.email).and_then(word));
            return Some(Some(Identity { id, name, email }));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::json::Tape;
    use crate::topology::Topology;

    /// What a ticket says of the shipped topology's rule for `field`, as a person would write it.
    fn check(field: &str, ticket: &str, expected: &str) {
        let topology = Topology::shipped();
        let rule = topology.rules.iter().position(|rule| rule.field == field).unwrap();
        let (reader, mut tape) = (Reader::new(&topology.rules), Tape::default());
        let said = reader.ticket(tape.parse(ticket.as_bytes()).unwrap()).field(rule);
        assert_eq!(said.as_ref().map_or("nothing".into(), words), expected, "{ticket}");
    }

    fn words(field: &Field<'_>) -> String {
        let name =
            |name: &Option<Cow<'_, str>>| name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        match field {
            Field::Reference(None) => "empty".into(),
            Field::Reference(Some(identity)) => {
                let email = identity.email.as_ref().map_or(String::new(), |email| format!(" <{email}>"));
                format!("{}{}{email}", identity.id, name(&identity.name))
            }
            Field::Flag(value) => value.to_string(),
            Field::Scalar(text) => (*text).into(),
            Field::Set(identities) => format!("{{{}}}", identities.join(" ")),
            Field::Map(entries) => {
                let entry = |entry: &Entry<'_>| {
                    let value = match entry.value {
                        EntryValue::None => "none",
                        EntryValue::Unknown => "unknown",
                        EntryValue::Known(text) => text,
                    };
                    format!("{}{}={value}", entry.key, name(&entry.name))
                };
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
            }
        }
    }

    const MARK: &str = "\\u00a0Payload too large. Use API instead ";

    #[test]
    fn the_first_present_path_of_a_reference_decides() {
        for (ticket, expected) in [
            (r#"{}"#, "nothing"),
            (r#"{"status":null,"statusId":"a"}"#, "empty"),
            (r#"{"status":""}"#, "empty"),
            (r#"{"status":{}}"#, "empty"),
            (r#"{"status":"open"}"#, "open"),
            (r#"{"status":"open","statusName":"Open"}"#, "open (Open)"),
            (r#"{"status":{"uid":"a","id":"b","name":"N"}}"#, "a (N)"),
            (r#"{"status":{"id":7,"displayName":"D"}}"#, "7 (D)"),
            (r#"{"status":{"id":7,"name":null,"displayName":"D"}}"#, "7"),
            (r#"{"status":{"name":"N"}}"#, "N (N)"),
            (r#"{"status":{"uid":null,"id":"b"}}"#, "empty"),
            (r#"{"status":{"uid":"","id":"b"}}"#, "empty"),
            (r#"{"status":{"uid":true,"id":"b"}}"#, "nothing"),
            (r#"{"status":{"color":"red"},"statusId":"a"}"#, "nothing"),
            (r#"{"status":7,"statusId":"a"}"#, "nothing"),
            (r#"{"status":["a"]}"#, "nothing"),
            (r#"{"statusId":"a","statusName":"A"}"#, "a (A)"),
            (r#"{"statusName":"A"}"#, "A (A)"),
            (r#"{"statusId":null,"statusName":"A"}"#, "empty"),
            (r#"{"st\u0061tus":"escaped"}"#, "escaped"),
        ] {
            check("status", ticket, expected);
        }
        check("status", &format!(r#"{{"status":"{MARK}","statusId":"a"}}"#), "nothing");
        check("status", &format!(r#"{{"status":{{"uid":"a","name":"{MARK}"}}}}"#), "a");
    }

    #[test]
    fn an_agent_that_does_not_say_whom_it_means_is_passed_over() {
        for (ticket, expected) in [
            (
                r#"{"assignedAgent":{"email":"a@b"},"assignedAgentId":"x","assignedTo":{"uid":"u","email":"e"}}"#,
                "u <e>",
            ),
            (r#"{"assignedAgent":null,"assignedTo":"u"}"#, "empty"),
            (r#"{"assignedAgentId":"x","assignedTo":"u"}"#, "x"),
            (r#"{"assignedTo":{"uid":"u","email":""}}"#, "u"),
        ] {
            check("assignedAgent", ticket, expected);
        }
    }

    #[test]
    fn a_flag_is_a_boolean_and_nothing_else() {
        check("isEscalated", r#"{"isEscalated":true}"#, "true");
        check("isEscalated", r#"{"isEscalated":"true"}"#, "nothing");
        check("isEscalated", r#"{"isEscalated":null}"#, "nothing");
    }

    #[test]
    fn tags_are_a_set_of_identities() {
        for (ticket, expected) in [
            (r#"{"tags":null}"#, "{}"),
            (r#"{"tags":[]}"#, "{}"),
            (r#"{"tags":{}}"#, "{}"),
            (r#"{"tags":{"a":1}}"#, "nothing"),
            (r#"{"tags":"a"}"#, "nothing"),
            (
                r#"{"tags":["b","a",7,"b","",null,true,{"uid":"u","id":"i"},{"uid":null,"id":"i"},["x"]]}"#,
                "{7 a b u}",
            ),
        ] {
            check("tags", ticket, expected);
        }
        check("tags", &format!(r#"{{"tags":["a","{MARK}"]}}"#), "nothing");
        check("tags", &format!(r#"{{"tags":["a",{{"id":"{MARK}"}}]}}"#), "nothing");
    }

    #[test]
    fn custom_fields_are_a_map_in_either_form() {
        for (ticket, expected) in [
            (r#"{"customFields":null,"customFieldValues":{"a":1}}"#, "{}"),
            (r#"{"customFields":"x","customFieldValues":{"a":1}}"#, "nothing"),
            (r#"{"customFieldValues":{"b":[],"a":{"x":1},"c":"","":0}}"#, "{=0 a={\"x\":1} b=none c=none}"),
            (r#"{"customFields":{"a":1,"\u0061":2}}"#, "{a=2}"),
            (
                r#"{"customFields":[{"customField":{"id":7,"name":"N"},"data":1},{"customField":{"uid":""},"value":2},
                   {"customField":{},"value":3},{"value":4},5,{"customField":{"uid":"7"},"value":null,"data":6}]}"#,
                "{=2 7=none}",
            ),
        ] {
            check("customField", ticket, expected);
        }
        check(
            "customField",
            &format!(r#"{{"customFields":{{"a":"{MARK}","b":[1,"{MARK}"],"c":[["{MARK}"]]}}}}"#),
            &format!("{{a=unknown b=unknown c=[[\"{MARK}\"]]}}"),
        );
        check(
            "customField",
            &format!(r#"{{"customFields":[{{"customField":{{"uid":"{MARK}"}},"value":1}}]}}"#),
            "nothing",
        );
        check("customField", &format!(r#"{{"customFields":[1,"{MARK}"]}}"#), "nothing");
    }
}
