//! A strict, borrowed JSON document: its values, read in one pass and without a tree.
//!
//! What is JSON at all is for [`crate::grammar`]. It knows nothing of tickets,
//! and it neither compares values ([`crate::canonical`]) nor reads numbers
//! ([`crate::number`]).

use std::borrow::Cow;
use std::fmt;

pub use crate::grammar::{Kind, NotJson};
use crate::grammar::{Marked, Node, document, hex4};
use crate::scan;

/// The memory of a document, to be used again for the next one.
#[derive(Debug, Default)]
pub struct Tape {
    nodes: Vec<Node>,
    marks: Vec<u64>,
}

impl Tape {
    /// Reads one JSON text.
    ///
    /// # Errors
    /// Where the bytes are not exactly one JSON text in UTF-8.
    pub fn parse<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Value<'a>, NotJson> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| NotJson { what: "bytes that are not UTF-8", at: error.valid_up_to() })?;
        self.clear();
        let index = self.read(text, 0, text.len())?;
        Ok(self.value(text, index))
    }

    /// Forgets what was read, and keeps the memory.
    pub fn clear(&mut self) {
        self.nodes.clear();
    }

    /// Reads the JSON text that stands between two places of a text, beside what
    /// was read of the same text already; where it is found again: [`Tape::value`].
    ///
    /// # Errors
    /// Where there is not exactly one JSON text between them.
    pub fn read(&mut self, text: &str, start: usize, end: usize) -> Result<u32, NotJson> {
        if u32::try_from(text.len()).is_err() {
            return Err(NotJson { what: "a text of more than 4 GiB", at: 0 });
        }
        // A value that began or ended within a character could not be handed out.
        let part = text.get(start..end).ok_or(NotJson { what: "no text between these places", at: start })?;
        scan::mark(part.as_bytes(), &mut self.marks);
        let index = self.nodes.len() as u32;
        let bytes = text.as_bytes().get(..end).unwrap_or_default();
        document(&Marked { bytes, start, marks: &self.marks }, &mut self.nodes)?;
        Ok(index)
    }

    /// A value of the text that was read.
    #[must_use]
    pub fn value<'a>(&'a self, text: &'a str, index: u32) -> Value<'a> {
        Value { text, nodes: &self.nodes, index }
    }
}

/// A value of a document, borrowed.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    text: &'a str,
    nodes: &'a [Node],
    index: u32,
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw())
    }
}

impl<'a> Value<'a> {
    fn node(self) -> Node {
        *self.nodes.get(self.index as usize).expect("a value's index is that of a node")
    }

    /// Another value of the same document, by its index.
    #[must_use]
    pub fn at(self, index: u32) -> Value<'a> {
        Value { index, ..self }
    }

    /// Its index in its document, for as long as its tape reads no other one.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// What it is.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.node().kind
    }

    /// Its bytes as they stand in the text.
    #[must_use]
    pub fn raw(self) -> &'a str {
        let node = self.node();
        self.text.get(node.start as usize..node.end as usize).expect("a node's ends are those of a value")
    }

    /// The whole text that was parsed, white space around it included.
    #[must_use]
    pub fn document(self) -> &'a str {
        self.text
    }

    /// Where it begins in the text that was parsed.
    #[must_use]
    pub fn start(self) -> usize {
        self.node().start as usize
    }

    /// Where it ends in the text that was parsed.
    #[must_use]
    pub fn end(self) -> usize {
        self.node().end as usize
    }

    /// The content of a string without escapes, which is its text; `None` for all else.
    #[must_use]
    pub fn plain(self) -> Option<&'a str> {
        let node = self.node();
        if node.kind != Kind::String || node.escaped {
            return None;
        }
        self.text.get(node.start as usize + 1..node.end as usize - 1)
    }

    /// The bytes of [`Value::raw`], which can be had for less.
    #[must_use]
    pub fn raw_bytes(self) -> &'a [u8] {
        let node = self.node();
        self.text.as_bytes().get(node.start as usize..node.end as usize).unwrap_or_default()
    }

    /// The bytes of [`Value::plain`], which can be had for less.
    #[must_use]
    pub fn plain_bytes(self) -> Option<&'a [u8]> {
        let node = self.node();
        let is_plain = node.kind == Kind::String && !node.escaped;
        is_plain.then(|| self.text.as_bytes().get(node.start as usize + 1..node.end as usize - 1))?
    }

    /// A string's content; `None` for all else.
    #[must_use]
    pub fn string(self) -> Option<Cow<'a, str>> {
        let node = self.node();
        if node.kind != Kind::String {
            return None;
        }
        let inner =
            self.text.get(node.start as usize + 1..node.end as usize - 1).expect("a string stands in quotes");
        Some(if node.escaped { Cow::Owned(unescape(inner)) } else { Cow::Borrowed(inner) })
    }

    /// Whether it is the string `text`.
    #[must_use]
    pub fn is_string(self, text: &str) -> bool {
        match self.plain_bytes() {
            Some(plain) => plain == text.as_bytes(),
            None => self.string().is_some_and(|string| string == text),
        }
    }

    /// An object's member of that name; where it is repeated, the last one.
    #[must_use]
    pub fn get(self, name: &str) -> Option<Value<'a>> {
        // Most names are told from others by their length alone.
        let length = name.len() as u32 + 2;
        let mut found = None;
        for index in self.names() {
            let node = self.at(index).node();
            if (node.escaped || node.end - node.start == length) && self.at(index).is_string(name) {
                found = Some(index + 1);
            }
        }
        found.map(|index| self.at(index))
    }

    /// The indices of an object's member names, of repeated ones too, in their
    /// order; of all else, none. A member's value has the next index.
    pub fn names(self) -> impl Iterator<Item = u32> + use<'a> {
        let nodes = self.nodes;
        let node = self.node();
        let end = if node.kind == Kind::Object { node.next } else { 0 };
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let name = (index < end).then_some(index)?;
            index = nodes.get(name as usize + 1)?.next;
            Some(name)
        })
    }

    /// Whether it is an object or array that holds nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        let node = self.node();
        matches!(node.kind, Kind::Array | Kind::Object) && node.next == self.index + 1
    }

    /// An object's members, repeated ones too, in their order; of all else, none.
    pub fn members(self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'a> {
        self.names().map(move |name| (self.at(name), self.at(name + 1)))
    }

    /// An array's elements; of all else, none.
    pub fn elements(self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let node = self.node();
        let end = if node.kind == Kind::Array { node.next } else { 0 };
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let element = (index < end).then(|| self.at(index))?;
            index = element.node().next;
            Some(element)
        })
    }
}

/// The content of a string whose escapes have been checked.
fn unescape(inner: &str) -> String {
    let mut content = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        content.push_str(plain);
        let unit = |at: usize| escape.as_bytes().get(at..at + 4).and_then(hex4).unwrap_or_default();
        let (character, length) = match escape.as_bytes().get(1) {
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(b'n') => ('\n', 2),
            Some(b'r') => ('\r', 2),
            Some(b't') => ('\t', 2),
            Some(b'u') => match unit(2) {
                high @ 0xd800..=0xdbff => {
                    let code = 0x1_0000 + ((high - 0xd800) << 10) + unit(8).saturating_sub(0xdc00);
                    (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
                }
                code => (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 6),
            },
            other => (char::from(other.copied().unwrap_or_default()), 2),
        };
        content.push(character);
        rest = escape.get(length..).unwrap_or_default();
    }
    content.push_str(rest);
    content
}

/// Writes a string with the shortest escaping: the quote, the backslash, and
/// control characters as `\b \t \n \f \r`, else `\u00xx`.
pub fn write_string(out: &mut Vec<u8>, content: &str) {
    out.push(b'"');
    let mut rest = content.as_bytes();
    loop {
        let at = scan::plain(rest);
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((&byte, tail)) = tail.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            control => {
                let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
                out.extend_from_slice(b"\\u00");
                out.push(digit(control >> 4));
                out.push(digit(control & 15));
            }
        }
        rest = tail;
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(text: &str) -> bool {
        Tape::default().parse(text.as_bytes()).is_ok()
    }

    #[test]
    fn what_rfc_8259_allows_is_json() {
        for text in [
            "null",
            " true ",
            "\t\r\nfalse",
            "0",
            "-0",
            "-0.0e+00",
            "1E9",
            "12.5",
            "\"\"",
            "\"\\u0000\\/\"",
            "\"\\ud83d\\ude00\"",
            "[]",
            "[ ]",
            "{}",
            "{ }",
            "[1,[2],{\"a\":[]}]",
            "{\"a\":1,\"a\":2}",
            "\"\u{7f}\"",
        ] {
            assert!(accepts(text), "{text}");
        }
    }

    #[test]
    fn what_rfc_8259_does_not_allow_is_not() {
        for text in [
            "",
            " ",
            "\u{feff}1",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "NaN",
            "nul",
            "truex",
            "'a'",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\n\"",
            "\"\\ud800\\ud800\"",
            "\"\t\"",
            "[",
            "]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:1}",
            "[}",
            "{]",
            "1 2",
            "[1]]",
            "\"a\nb\"",
            "\"aaaaaaaaaaaa\u{1}\"",
        ] {
            assert!(!accepts(text), "{text}");
        }
        assert!(Tape::default().parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn nesting_ends_at_127() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(accepts(&nested(127)));
        assert!(!accepts(&nested(128)));
        assert!(accepts(&format!("{}1{}", "{\"a\":".repeat(127), "}".repeat(127))));
        assert!(!accepts(&format!("{}1{}", "{\"a\":".repeat(128), "}".repeat(128))));
    }

    #[test]
    fn the_last_of_repeated_members_counts() {
        let mut tape = Tape::default();
        let value = tape.parse(br#"{"a":1,"b":{"a":3},"\u0061":2}"#).unwrap();
        assert_eq!(value.get("a").unwrap().raw(), "2");
        assert_eq!(value.get("b").unwrap().get("a").unwrap().raw(), "3");
        assert!(value.get("c").is_none());
    }

    proptest! {
        /// serde_json is the judge wherever the contract is not stricter.
        #[test]
        fn we_agree_with_serde_json(text in r#"[\[\]{}:,"\\u0-9a-fnrtlse+\-. ]{0,24}"#) {
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            // serde_json refuses numbers beyond the range of f64; the grammar does not.
            let out_of_range = theirs.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
            prop_assert!(out_of_range || accepts(&text) == theirs.is_ok(), "{text}");
        }

        #[test]
        fn strings_survive_writing_and_reading(content in any::<String>()) {
            let mut text = Vec::new();
            write_string(&mut text, &content);
            let mut tape = Tape::default();
            prop_assert_eq!(tape.parse(&text).unwrap().string().unwrap(), content.as_str());
            let theirs = serde_json::to_string(&content).unwrap();
            prop_assert_eq!(std::str::from_utf8(&text).unwrap(), theirs);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut tape = Tape::default();
            let _ = tape.parse(&bytes);
        }
    }
}
