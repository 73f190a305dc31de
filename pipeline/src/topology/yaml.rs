//! YAML to a tree that knows its lines.
//!
//! Knows nothing of topologies. What YAML allows and a topology has no use for
//! (anchors, tags, several documents, keys that are no text) is a mistake here,
//! and so is a repeated key. Nothing in here is printable: a value may be a secret.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::environment;
use super::mistakes::{Mistakes, shown};

/// A node and the line on which it begins.
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

/// What a node can be.
pub(super) enum Value {
    /// `null`, `~` or nothing at all.
    Nothing,
    /// A text, a number, a boolean: what it is, its reader decides.
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file; no key twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
pub(super) struct Key {
    pub(super) line: usize,
    pub(super) text: String,
}

/// A value with its variables filled in.
pub(super) struct Scalar {
    pub(super) text: String,
    /// It may be a number or a boolean: it stands without quotes, or comes from
    /// the environment.
    pub(super) untyped: bool,
    /// The variables that were not set and had no default.
    pub(super) unset: Vec<String>,
}

impl Node {
    /// Takes the lines away: defaults are on no line of the user's file.
    pub(super) fn without_lines(mut self) -> Node {
        self.line = 0;
        self.value = match self.value {
            Value::List(items) => Value::List(items.into_iter().map(Node::without_lines).collect()),
            Value::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, node)| (Key { line: 0, ..key }, node.without_lines()))
                    .collect(),
            ),
            value => value,
        };
        self
    }
}

/// A file is a few kilobytes; what is larger is another file.
const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// A topology goes five deep.
const DEPTH_MAX: usize = 16;

/// Reads one document; `None` where there is none, or none that can be read.
pub(super) fn read(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    mistakes: &mut Mistakes,
) -> Option<Node> {
    if text.len() > TEXT_BYTES_MAX {
        mistakes.note(0, "the file is larger than 1 MiB", "give the path of a topology with --topology");
        return None;
    }
    let mut builder = Builder { open: Vec::new(), root: None, environment, mistakes };
    let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let remedy = "mind indentation, colons and quotes there and on the line before";
                let what = format!("this is not YAML: {}", error.info());
                builder.mistakes.note(error.marker().line(), what, remedy);
                return None;
            }
        };
        if !builder.take(event, span) {
            return None;
        }
    }
    builder.root
}

/// A list or map whose end has not come yet.
enum Open {
    List { line: usize, items: Vec<Node> },
    Map { line: usize, entries: Vec<(Key, Node)>, at: At },
}

/// What comes next in a map.
enum At {
    Key,
    /// The value of this key; `None` where the key was a mistake.
    Value(Option<Key>),
}

struct Builder<'a> {
    /// From the root to what is being read. No recursion: the depth is the file's.
    open: Vec<Open>,
    root: Option<Node>,
    environment: &'a dyn Fn(&str) -> Option<String>,
    mistakes: &'a mut Mistakes,
}

impl Builder<'_> {
    /// Takes one event; says whether to go on.
    fn take(&mut self, event: Event<'_>, span: Span) -> bool {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_decorations(line, anchor, tag.is_some());
                self.scalar(line, &text, style);
            }
            Event::Alias(_) => {
                self.mistakes.note(line, "aliases are not read here", "write the value out");
                self.put(Node { line, value: Value::Nothing });
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_decorations(line, anchor, tag.is_some());
                self.open.push(Open::List { line, items: Vec::new() });
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_decorations(line, anchor, tag.is_some());
                self.open.push(Open::Map { line, entries: Vec::new(), at: At::Key });
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { line, items }) => self.put(Node { line, value: Value::List(items) }),
                Some(Open::Map { line, entries, .. }) => {
                    self.put(Node { line, value: Value::Map(entries) });
                }
                None => {}
            },
            Event::DocumentStart(_) if self.root.is_some() => {
                self.mistakes.note(line, "a second document begins here", "keep one document in the file");
                return false;
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        if self.open.len() > DEPTH_MAX {
            self.mistakes.note(line, "lists and maps are nested too deep", "a topology goes five deep");
            return false;
        }
        true
    }

    fn refuse_decorations(&mut self, line: usize, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.mistakes.note(line, "anchors are not read here", "remove the & and write values out");
        }
        if tagged {
            self.mistakes.note(line, "tags are not read here", "remove the ! and its name");
        }
    }

    fn scalar(&mut self, line: usize, text: &str, style: ScalarStyle) {
        if let Some(Open::Map { entries, at: at @ At::Key, .. }) = self.open.last_mut() {
            let first = entries.iter().find(|(key, _)| key.text == text);
            if let Some((first, _)) = first {
                let what = format!("the key {} is there twice, first on line {}", shown(text), first.line);
                self.mistakes.note(line, what, "keep one of them");
                *at = At::Value(None);
            } else {
                *at = At::Value(Some(Key { line, text: text.to_owned() }));
            }
            return;
        }
        let plain = style == ScalarStyle::Plain;
        let value = if plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
            Value::Nothing
        } else {
            match environment::fill(text, self.environment) {
                Ok(filled) => Value::Scalar(Scalar {
                    text: filled.text,
                    untyped: plain || filled.substituted,
                    unset: filled.unset,
                }),
                Err((what, remedy)) => {
                    self.mistakes.note(line, what, remedy);
                    Value::Nothing
                }
            }
        };
        self.put(Node { line, value });
    }

    /// A node is complete.
    fn put(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, at, .. }) => match std::mem::replace(at, At::Key) {
                At::Value(Some(key)) => entries.push((key, node)),
                At::Value(None) => {}
                At::Key => {
                    self.mistakes.note(node.line, "a key is no text", "write one word before the colon");
                    *at = At::Value(None);
                }
            },
        }
    }
}
