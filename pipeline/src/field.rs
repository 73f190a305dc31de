//! What one JSON value says: of an identity, a set, a map (contract §1).
//!
//! A value of a kind that says nothing reads as `None`, one that says that
//! something is empty as an empty value. It knows neither rules nor where in a
//! ticket a value stands ([`crate::ticket`]).

use std::borrow::Cow;

use crate::json::{Kind as Json, Value};

/// What the platform puts in place of a string that was too large.
pub const TRUNCATION_MARK: &str = "Payload too large. Use API instead";

/// Whether a string is the truncation mark, white space around it aside.
#[must_use]
pub fn is_mark(content: &str) -> bool {
    content.len() >= TRUNCATION_MARK.len() && content.trim() == TRUNCATION_MARK
}

/// What a ticket says of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field<'a> {
    /// Something with an identity, or nothing.
    Reference(Option<Identity<'a>>),
    /// A boolean.
    Flag(bool),
    /// Any JSON value, as its text.
    Scalar(&'a str),
    /// Identities, sorted as bytes, each once.
    Set(Vec<Cow<'a, str>>),
    /// Entries, sorted by key as bytes, each key once.
    Map(Vec<Entry<'a>>),
}

/// What a reference points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The identity; a number's is its JSON text. Never empty.
    pub id: Cow<'a, str>,
    /// A name with content.
    pub name: Option<Cow<'a, str>>,
    /// An e-mail address with content, where the rule reads it.
    pub email: Option<Cow<'a, str>>,
}

/// One key of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The key, `""` included.
    pub key: Cow<'a, str>,
    /// A name with content.
    pub name: Option<Cow<'a, str>>,
    /// The value.
    pub value: EntryValue<'a>,
}

/// The value of a map's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryValue<'a> {
    /// `null`, `""`, `[]`: no value. So is a key that is missing from a map.
    None,
    /// The truncation mark stands in its place.
    Unknown,
    /// Any other JSON value, as its text.
    Known(&'a str),
}

/// What one path says of an identity.
pub(crate) enum Said<'a> {
    Identity(Cow<'a, str>),
    Empty,
    Nothing,
}

/// What a value says of an identity that it is.
pub(crate) fn said(value: Value<'_>) -> Said<'_> {
    match value.kind() {
        Json::Null => Said::Empty,
        Json::Number => Said::Identity(Cow::Borrowed(value.raw())),
        Json::String => match value.string() {
            Some(content) if content.is_empty() => Said::Empty,
            Some(content) if !is_mark(&content) => Said::Identity(content),
            _ => Said::Nothing,
        },
        _ => Said::Nothing,
    }
}

/// What an object says of whom or what it means, found in one pass; of
/// repeated members the last.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    uid: Option<Value<'a>>,
    id: Option<Value<'a>>,
    pub(crate) name: Option<Value<'a>>,
    pub(crate) display_name: Option<Value<'a>>,
    pub(crate) email: Option<Value<'a>>,
}

impl<'a> Parts<'a> {
    pub(crate) fn of(object: Value<'a>) -> Parts<'a> {
        let mut parts = Parts::default();
        for (name, value) in object.members() {
            let Some(name) = name.string() else { continue };
            let part = match &*name {
                "uid" => &mut parts.uid,
                "id" => &mut parts.id,
                "name" => &mut parts.name,
                "displayName" => &mut parts.display_name,
                "email" => &mut parts.email,
                _ => continue,
            };
            *part = Some(value);
        }
        parts
    }

    pub(crate) fn identity(&self) -> Option<Value<'a>> {
        self.uid.or(self.id).or(self.name)
    }
}

/// A string with content that is not the mark: what a name or an e-mail address must be.
pub(crate) fn word(value: Value<'_>) -> Option<Cow<'_, str>> {
    value.string().filter(|content| !content.is_empty() && !is_mark(content))
}

/// Whether a value is the mark, or a list that directly contains it.
pub(crate) fn carries_mark(value: Value<'_>) -> bool {
    let is_mark = |value: Value<'_>| value.string().is_some_and(|content| is_mark(&content));
    is_mark(value) || value.elements().any(is_mark)
}

/// `None` where the set is unknown: it is of another kind, or holds the mark.
pub(crate) fn read_set(value: Value<'_>) -> Option<Vec<Cow<'_, str>>> {
    match value.kind() {
        Json::Null => return Some(Vec::new()),
        Json::Object if value.is_empty() => return Some(Vec::new()),
        Json::Array => {}
        _ => return None,
    }
    let mut identities = Vec::new();
    for element in value.elements() {
        let identity =
            if element.kind() == Json::Object { Parts::of(element).identity() } else { Some(element) };
        let Some(identity) = identity else { continue };
        match said(identity) {
            Said::Identity(identity) => identities.push(identity),
            Said::Nothing if carries_mark(identity) && identity.kind() == Json::String => return None,
            Said::Nothing | Said::Empty => {}
        }
    }
    identities.sort_unstable();
    identities.dedup();
    Some(identities)
}

/// `None` where the map is unknown: it is of another kind, or a list in which
/// an element or a key is the mark.
pub(crate) fn read_map(value: Value<'_>) -> Option<Vec<Entry<'_>>> {
    let mut entries = match value.kind() {
        Json::Null => Vec::new(),
        Json::Object => value
            .members()
            .filter_map(|(key, value)| {
                Some(Entry { key: key.string()?, name: None, value: entry_value(value) })
            })
            .collect(),
        Json::Array => {
            let mut entries = Vec::new();
            for element in value.elements() {
                if element.string().is_some_and(|content| is_mark(&content)) {
                    return None;
                }
                let Some(custom_field) = element.get("customField") else { continue };
                let parts = Parts::of(custom_field);
                let Some(key) = parts.identity() else { continue };
                let key = match key.kind() {
                    Json::Number => Cow::Borrowed(key.raw()),
                    Json::String => key.string()?,
                    _ => continue,
                };
                if is_mark(&key) {
                    return None;
                }
                let value = element.get("value").or_else(|| element.get("data"));
                let value = value.map_or(EntryValue::None, entry_value);
                entries.push(Entry { key, name: parts.name.and_then(word), value });
            }
            entries
        }
        _ => return None,
    };
    keep_last_of_each_key(&mut entries);
    Some(entries)
}

fn keep_last_of_each_key(entries: &mut Vec<Entry<'_>>) {
    // The sort is stable and the text's order reversed, so the last stands first.
    entries.reverse();
    entries.sort_by(|one, other| one.key.cmp(&other.key));
    entries.dedup_by(|following, kept| following.key == kept.key);
}

fn entry_value(value: Value<'_>) -> EntryValue<'_> {
    match value.kind() {
        Json::Null => EntryValue::None,
        Json::Array if value.is_empty() => EntryValue::None,
        Json::String if value.string().is_some_and(|content| content.is_empty()) => EntryValue::None,
        _ if carries_mark(value) => EntryValue::Unknown,
        _ => EntryValue::Known(value.raw()),
    }
}

/// The key of a map rule that a native event names: `payload.customField` (a
/// string; of an object the first of `uid`, `id`, `name`), else
/// `payload.customFieldId`; a non-empty string or a number, not the mark.
#[must_use]
pub fn named_key(payload: Value<'_>) -> Option<Cow<'_, str>> {
    let custom_field = payload.get("customField").and_then(|field| match field.kind() {
        Json::String => usable(field),
        Json::Object => Parts::of(field).identity().and_then(usable),
        _ => None,
    });
    custom_field.or_else(|| payload.get("customFieldId").and_then(usable))
}

fn usable(value: Value<'_>) -> Option<Cow<'_, str>> {
    match said(value) {
        Said::Identity(identity) => Some(identity),
        Said::Empty | Said::Nothing => None,
    }
}
