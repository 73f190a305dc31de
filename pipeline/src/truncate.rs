//! The size limit: strings inside `payload` are replaced by the truncation
//! mark, largest first, until the record fits with its list of cuts (§7).
//!
//! It knows an envelope's `payload` and `metadata`, and nothing else of it.

use std::cmp::Reverse;

use crate::json::{Kind, Tape, Value, write_string};
use crate::ticket::TRUNCATION_MARK;

/// The mark as JSON text: with its quotes.
const MARK_TEXT_LEN: usize = TRUNCATION_MARK.len() + 2;

/// A record that fits, and what it cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The record's value, its list of cuts included.
    pub value: Vec<u8>,
    /// JSON pointers from the value's root, in the order of cutting.
    pub pointers: Vec<String>,
}

/// Whether strings of a derived event's own `change` are there to be spared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// `payload.change` is cut after all else.
    Change,
    /// Nothing is: a forwarded event's `change` is not ours.
    Nothing,
}

/// Cuts an envelope of more than `limit` bytes until it fits; `None` where it cannot.
#[must_use]
pub fn cut(text: &[u8], limit: usize, spare: Spare) -> Option<Cut> {
    let mut tape = Tape::default();
    let root = tape.parse(text).ok()?;
    let mut strings = Vec::new();
    collect(root.get("payload")?, "/payload", false, spare == Spare::Change, &mut strings);
    strings.sort_by(|one, other| one.order().cmp(&other.order()));

    let list = List::of(root);
    let mut bytes = text.len();
    let mut list_bytes = "[]".len();
    // A list of cuts that came along and makes way may be all that was too much.
    let mut count = 0;
    while bytes + list.added(list_bytes) > limit + list.removed() {
        let string = strings.get(count)?;
        bytes -= string.len - MARK_TEXT_LEN;
        list_bytes += string.pointer_text().len() + usize::from(count > 0);
        count += 1;
    }
    let cuts = strings.get(..count)?;
    Some(Cut {
        value: rewrite(text, cuts, &list),
        pointers: cuts.iter().map(|cut| cut.pointer.clone()).collect(),
    })
}

/// A string that may be cut.
struct Candidate {
    spared: bool,
    /// Of its JSON text, in bytes.
    len: usize,
    pointer: String,
    start: usize,
}

impl Candidate {
    fn order(&self) -> (bool, Reverse<usize>, &[u8], usize) {
        (self.spared, Reverse(self.len), self.pointer.as_bytes(), self.start)
    }

    fn pointer_text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.pointer.len() + 2);
        write_string(&mut text, &self.pointer);
        text
    }
}

/// All strings below `value` that may be cut; `spared` once inside `payload.change`.
fn collect(value: Value<'_>, pointer: &str, spared: bool, spare_change: bool, found: &mut Vec<Candidate>) {
    match value.kind() {
        Kind::String if value.raw().len() > MARK_TEXT_LEN => {
            found.push(Candidate {
                spared,
                len: value.raw().len(),
                pointer: pointer.to_owned(),
                start: value.start(),
            });
        }
        Kind::Object => {
            for (name, value) in value.members() {
                let name = name.string().unwrap_or_default();
                if names_something(&name) {
                    continue;
                }
                let spared = spared || (spare_change && name == "change");
                let step = name.replace('~', "~0").replace('/', "~1");
                collect(value, &format!("{pointer}/{step}"), spared, false, found);
            }
        }
        Kind::Array => {
            for (index, value) in value.elements().enumerate() {
                collect(value, &format!("{pointer}/{index}"), spared, false, found);
            }
        }
        _ => {}
    }
}

/// What stands below such a member tells who or what is meant: never cut.
fn names_something(member: &str) -> bool {
    matches!(member, "uid" | "id" | "name" | "displayName" | "email")
        || member.ends_with("Id")
        || member.ends_with("Name")
}

/// Where the list of cuts goes: these bytes make way for it, and what stands around it.
struct List {
    start: usize,
    end: usize,
    before: &'static str,
    after: &'static str,
}

impl List {
    fn of(root: Value<'_>) -> List {
        let Some(metadata) = root.get("metadata") else {
            let end = last_member_end(root);
            return List { start: end, end, before: ",\"metadata\":{\"truncatedFields\":", after: "}" };
        };
        if metadata.kind() != Kind::Object {
            let (start, end) = (metadata.start(), metadata.end());
            return List { start, end, before: "{\"truncatedFields\":", after: "}" };
        }
        if let Some(list) = metadata.get("truncatedFields") {
            return List { start: list.start(), end: list.end(), before: "", after: "" };
        }
        let end = last_member_end(metadata);
        let before = if metadata.is_empty() { "\"truncatedFields\":" } else { ",\"truncatedFields\":" };
        List { start: end, end, before, after: "" }
    }

    fn added(&self, list_bytes: usize) -> usize {
        self.before.len() + list_bytes + self.after.len()
    }

    fn removed(&self) -> usize {
        self.end - self.start
    }
}

/// Directly behind the last member's value; in an empty object, behind its brace.
fn last_member_end(object: Value<'_>) -> usize {
    object.members().last().map_or(object.start() + 1, |(_, value)| value.end())
}

fn rewrite(text: &[u8], cuts: &[Candidate], list: &List) -> Vec<u8> {
    let mut replacement = list.before.as_bytes().to_vec();
    replacement.push(b'[');
    for (index, cut) in cuts.iter().enumerate() {
        if index > 0 {
            replacement.push(b',');
        }
        replacement.extend_from_slice(&cut.pointer_text());
    }
    replacement.push(b']');
    replacement.extend_from_slice(list.after.as_bytes());

    let mark = format!("\"{TRUNCATION_MARK}\"").into_bytes();
    let mut edits: Vec<(usize, usize, &[u8])> =
        cuts.iter().map(|cut| (cut.start, cut.start + cut.len, mark.as_slice())).collect();
    edits.push((list.start, list.end, &replacement));
    edits.sort_unstable_by_key(|edit| edit.0);

    let mut value = Vec::with_capacity(text.len());
    let mut copied = 0;
    for (start, end, bytes) in edits {
        value.extend_from_slice(text.get(copied..start).unwrap_or_default());
        value.extend_from_slice(bytes);
        copied = end;
    }
    value.extend_from_slice(text.get(copied..).unwrap_or_default());
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, limit: usize, spare: Spare, expected: Option<(&str, &[&str])>) {
        let cut = cut(text.as_bytes(), limit, spare);
        let cut = cut.as_ref().map(|cut| (std::str::from_utf8(&cut.value).unwrap(), cut.pointers.clone()));
        let expected =
            expected.map(|(value, pointers)| (value, pointers.iter().map(ToString::to_string).collect()));
        assert_eq!(cut, expected);
    }

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const MARK: &str = TRUNCATION_MARK;

    #[test]
    fn the_list_of_cuts_finds_its_place() {
        let list = r#"["/payload/a"]"#;
        for (metadata, expected) in [
            (String::new(), format!(r#","metadata":{{"truncatedFields":{list}}}"#)),
            (r#","metadata":{ }"#.into(), format!(r#","metadata":{{"truncatedFields":{list} }}"#)),
            (r#","metadata":{"b":1 }"#.into(), format!(r#","metadata":{{"b":1,"truncatedFields":{list} }}"#)),
            (r#","metadata":null"#.into(), format!(r#","metadata":{{"truncatedFields":{list}}}"#)),
            (
                r#","metadata":{"truncatedFields":[ ],"b":1}"#.into(),
                format!(r#","metadata":{{"truncatedFields":{list},"b":1}}"#),
            ),
        ] {
            let text = format!(r#"{{"payload":{{"a":"{A}"}}{metadata} }}"#);
            let cut = format!(r#"{{"payload":{{"a":"{MARK}"}}{expected} }}"#);
            check(&text, cut.len(), Spare::Nothing, Some((&cut, &["/payload/a"])));
            check(&text, cut.len() - 1, Spare::Nothing, None);
        }
    }

    #[test]
    fn the_largest_goes_first_and_the_change_last() {
        let text = format!(
            r#"{{"payload":{{"change":{{"to":"{A}{A}"}},"b/~":"{A}","a":["{A}"],"userId":"{A}{A}{A}"}}}}"#
        );
        let first = cut(text.as_bytes(), text.len() - 1, Spare::Change).unwrap();
        assert_eq!(first.pointers, ["/payload/a/0"]);
        let all = cut(text.as_bytes(), text.len() - 180, Spare::Change).unwrap();
        assert_eq!(all.pointers, ["/payload/a/0", "/payload/b~1~0", "/payload/change/to"]);
        let first = cut(text.as_bytes(), text.len() - 1, Spare::Nothing).unwrap();
        assert_eq!(first.pointers, ["/payload/change/to"]);
    }

    proptest! {
        #[test]
        fn what_is_cut_fits_and_is_json(lengths in proptest::collection::vec(0usize..300, 1..8), limit in 100usize..1200) {
            let members: Vec<String> =
                lengths.iter().enumerate().map(|(i, len)| format!("\"m{i}\":\"{}\"", "x".repeat(*len))).collect();
            let text = format!(r#"{{"payload":{{{}}},"metadata":{{}}}}"#, members.join(","));
            prop_assume!(text.len() > limit);
            if let Some(cut) = cut(text.as_bytes(), limit, Spare::Nothing) {
                prop_assert!(cut.value.len() <= limit);
                let json: serde_json::Value = serde_json::from_slice(&cut.value).unwrap();
                for pointer in &cut.pointers {
                    prop_assert_eq!(json.pointer(pointer).unwrap(), MARK);
                }
                prop_assert_eq!(&json["metadata"]["truncatedFields"], &serde_json::json!(cut.pointers));
            }
        }
    }
}
