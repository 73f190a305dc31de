//! Reads typed values from a section of the file; what is left out is as in the
//! shipped topology.
//!
//! Knows the names of all sections and keys, so that it can say where a stray
//! one belongs, and how values are written. What they mean it does not know.

use std::ops::RangeInclusive;

use super::mistakes::{Mistakes, did_you_mean, shown};
use super::yaml::{Key, Node, Scalar, Value};

/// Every section with its keys; the root has no name.
const SECTIONS: [(&str, &[&str]); 13] = [
    (
        "",
        &[
            "group", "source", "outputs", "topics", "rules", "policies", "state", "runtime", "limits",
            "http", "kafka",
        ],
    ),
    ("source", &["topic", "partitions", "keyed_by"]),
    ("outputs", &["late", "dead_letter", "events"]),
    ("topics", &["retention", "replication_factor"]),
    ("rules", &["event_type", "kind", "path", "paths", "field", "email", "enabled"]),
    ("event_type of a flag", &["on", "off"]),
    ("event_type of a map", &["added", "removed", "changed"]),
    ("policies", &["ordering", "native_specifics", "dedupe_window", "cloudevents"]),
    ("state", &["dir", "flush_records", "flush_interval"]),
    ("runtime", &["workers", "instance", "commit_interval"]),
    (
        "limits",
        &[
            "record_size_max",
            "emitted_size_max",
            "entry_size_max",
            "batch_records_max",
            "batch_size_max",
            "memory_mb",
        ],
    ),
    ("http", &["listen"]),
    ("kafka", &["brokers", "properties", "consumer", "producer"]),
];

/// A map of the file over the same map of the defaults.
pub(super) struct Section<'a> {
    name: &'static str,
    entries: &'a [(Key, Node)],
    defaults: &'a [(Key, Node)],
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(
        document: Option<&'a Node>,
        defaults: Option<&'a Node>,
        mistakes: &mut Mistakes,
    ) -> Section<'a> {
        Section::open("", document, defaults, mistakes)
    }

    /// A section, its unknown keys noted.
    pub(super) fn open(
        name: &'static str,
        node: Option<&'a Node>,
        defaults: Option<&'a Node>,
        mistakes: &mut Mistakes,
    ) -> Section<'a> {
        let entries = entries_of(&quoted(name), node, mistakes);
        let section = Section { name, entries, defaults: entries_of(&quoted(name), defaults, mistakes) };
        let known = SECTIONS.iter().find(|(section, _)| *section == name).map_or(&[][..], |(_, keys)| keys);
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
            section.note_unknown(key, known, mistakes);
        }
        section
    }

    /// The section of that name below the root.
    pub(super) fn section(&self, name: &'static str, mistakes: &mut Mistakes) -> Section<'a> {
        Section::open(name, self.own(name), find(self.defaults, name), mistakes)
    }

    /// A map below this section whose keys are names of the user's choice.
    pub(super) fn free_map(&self, key: &str, mistakes: &mut Mistakes) -> &'a [(Key, Node)] {
        entries_of(&self.name_of(key), self.own(key), mistakes)
    }

    /// What the file says at this key, be it a mistake; nothing is `None`.
    pub(super) fn own(&self, key: &str) -> Option<&'a Node> {
        find(self.entries, key)
    }

    /// What the file says at this key, else what the defaults say.
    pub(super) fn node(&self, key: &str) -> Option<&'a Node> {
        self.own(key).or_else(|| find(self.defaults, key))
    }

    /// The line of a key; 0 where the file does not say it.
    pub(super) fn line(&self, key: &str) -> usize {
        self.entries.iter().find(|(entry, _)| entry.text == key).map_or(0, |(entry, _)| entry.line)
    }

    /// The value at a key, the default's where the file leaves it out.
    ///
    /// `None`: a mistake has been noted, or there is neither value nor default.
    pub(super) fn read<T>(
        &self,
        key: &str,
        remedy: &str,
        mistakes: &mut Mistakes,
        parse: impl FnOnce(&Scalar) -> Option<T>,
    ) -> Option<T> {
        read(&self.name_of(key), self.node(key)?, remedy, mistakes, parse)
    }

    /// A text that is not empty.
    pub(super) fn text(&self, key: &str, remedy: &str, mistakes: &mut Mistakes) -> Option<String> {
        self.read(key, remedy, mistakes, |scalar| {
            Some(scalar.text.clone()).filter(|text| !text.trim().is_empty())
        })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
        mistakes: &mut Mistakes,
    ) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let written = match self.node(key).map(|node| &node.value) {
            Some(Value::Scalar(scalar)) => scalar.text.as_str(),
            _ => "",
        };
        let remedy = format!("{}write {}", did_you_mean(written, words.iter().copied()), words.join(" or "));
        self.read(key, &remedy, mistakes, |scalar| {
            choices.iter().find(|(word, _)| *word == scalar.text).map(|(_, choice)| *choice)
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str, mistakes: &mut Mistakes) -> Option<bool> {
        self.read(key, "write true or false, without quotes", mistakes, |scalar| {
            if !scalar.untyped {
                return None;
            }
            match scalar.text.as_str() {
                "true" | "True" | "TRUE" => Some(true),
                "false" | "False" | "FALSE" => Some(false),
                _ => None,
            }
        })
    }

    /// A whole number.
    pub(super) fn number(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<u64> {
        let remedy =
            format!("write a whole number from {} to {}, without quotes", range.start(), range.end());
        self.read(key, &remedy, mistakes, |scalar| number(scalar).filter(|number| range.contains(number)))
    }

    /// A duration, in milliseconds.
    pub(super) fn duration_ms(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<u64> {
        self.quantity(key, &DURATIONS, range, mistakes)
    }

    /// A size, in bytes.
    pub(super) fn size_bytes(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<u64> {
        self.quantity(key, &SIZES, range, mistakes)
    }

    fn quantity(
        &self,
        key: &str,
        units: &Units,
        range: RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<u64> {
        let remedy = format!(
            "write a whole number and a unit ({}), from {} to {}",
            unit_names(units),
            written(*range.start(), units),
            written(*range.end(), units),
        );
        self.read(key, &remedy, mistakes, |scalar| {
            with_unit(&scalar.text, units).filter(|quantity| range.contains(quantity))
        })
    }

    fn name_of(&self, key: &str) -> String {
        match self.name {
            "" => quoted(key),
            name => quoted(&format!("{name}.{key}")),
        }
    }

    fn note_unknown(&self, key: &Key, known: &[&str], mistakes: &mut Mistakes) {
        let elsewhere = SECTIONS
            .iter()
            .find(|(section, keys)| !section.contains(' ') && keys.contains(&key.text.as_str()))
            .map(|(section, _)| *section);
        let guess = did_you_mean(&key.text, known.iter().copied());
        let remedy = match elsewhere {
            Some("") if guess.is_empty() => "it stands at the left margin, in no section".to_owned(),
            Some(section) if guess.is_empty() => format!("it belongs to \"{section}\""),
            _ => format!("{guess}known here: {}", known.join(", ")),
        };
        let what = match self.name {
            "" => format!("the key {} is not known", shown(&key.text)),
            name => format!("the key {} is not known in \"{name}\"", shown(&key.text)),
        };
        mistakes.note(key.line, what, remedy);
    }
}

/// The value of a node by the name under which messages speak of it.
pub(super) fn read<T>(
    name: &str,
    node: &Node,
    remedy: &str,
    mistakes: &mut Mistakes,
    parse: impl FnOnce(&Scalar) -> Option<T>,
) -> Option<T> {
    let what = match &node.value {
        Value::Scalar(scalar) => match parse(scalar) {
            Some(value) => return Some(value),
            None => match (scalar.text.is_empty(), scalar.unset.first()) {
                (true, Some(unset)) => format!("{name} is empty, for {unset} is not set"),
                (true, None) => format!("{name} is empty"),
                (false, _) => format!("{name} is {}", shown(&scalar.text)),
            },
        },
        Value::Nothing => format!("{name} has no value"),
        Value::List(_) => format!("{name} is a list"),
        Value::Map(_) => format!("{name} is a map"),
    };
    mistakes.note(node.line, what, remedy);
    None
}

/// The entries of a node that should be a map; none where it is nothing.
fn entries_of<'a>(name: &str, node: Option<&'a Node>, mistakes: &mut Mistakes) -> &'a [(Key, Node)] {
    let what = match node.map(|node| &node.value) {
        None | Some(Value::Nothing) => return &[],
        Some(Value::Map(entries)) => return entries,
        Some(Value::List(_)) => "a list",
        Some(Value::Scalar(_)) => "a single value",
    };
    let line = node.map_or(0, |node| node.line);
    let what = if name == "\"\"" { format!("the file is {what}") } else { format!("{name} is {what}") };
    mistakes.note(line, what, "write keys and values, \"key: value\", a line each");
    &[]
}

fn find<'a>(entries: &'a [(Key, Node)], key: &str) -> Option<&'a Node> {
    entries
        .iter()
        .find(|(entry, node)| entry.text == key && !matches!(node.value, Value::Nothing))
        .map(|(_, node)| node)
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// A whole number without quotes.
pub(super) fn number(scalar: &Scalar) -> Option<u64> {
    // Digits only: Rust takes a sign, which no number here needs.
    let digits = scalar.text.bytes().all(|byte| byte.is_ascii_digit());
    if scalar.untyped && digits { scalar.text.parse().ok() } else { None }
}

/// Units with how many of the smallest they are, the smallest first.
type Units = [(&'static str, u64)];

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A duration as the file writes it, in milliseconds.
pub(super) fn duration_ms(text: &str) -> Option<u64> {
    with_unit(text, &DURATIONS)
}

/// A duration in the largest unit that holds it exactly.
#[must_use]
pub fn written_duration(duration_ms: u64) -> String {
    written(duration_ms, &DURATIONS)
}

/// A size in the largest unit that holds it exactly.
#[must_use]
pub fn written_size(size_bytes: u64) -> String {
    written(size_bytes, &SIZES)
}

fn with_unit(text: &str, units: &Units) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|other: char| !other.is_ascii_digit())?);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

fn written(amount: u64, units: &Units) -> String {
    let fits = |factor: u64| amount != 0 && amount.is_multiple_of(factor);
    // Hours are said of up to two days, as people do.
    let largest =
        units.iter().rev().find(|(name, factor)| fits(*factor) && !(*name == "d" && amount / factor <= 2));
    let (name, factor) = largest.or(units.first()).copied().unwrap_or(("", 1));
    format!("{}{name}", amount / factor)
}

fn unit_names(units: &Units) -> String {
    units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
