//! Bytes to a strict, borrowed JSON document, in one pass and without a tree.
//!
//! RFC 8259 to the letter, and the two limits of the contract (§1): no unpaired
//! surrogate escape, no nesting deeper than 127. serde_json checks neither on
//! the paths that keep slices, hence a scanner of our own. It knows nothing of
//! tickets, and it neither compares values ([`crate::canonical`]) nor reads
//! numbers ([`crate::number`]).

use std::borrow::Cow;
use std::fmt;

/// Objects and arrays nested deeper than this are not JSON.
pub const DEPTH_MAX: usize = 127;

/// Why some bytes are not JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotJson {
    /// What was wrong, for a person.
    pub what: &'static str,
    /// At which byte.
    pub at: usize,
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`.
    Null,
    /// `true`.
    True,
    /// `false`.
    False,
    /// A number, in any notation.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// One value, or one member's name, in the order of the text.
#[derive(Debug, Clone, Copy)]
struct Node {
    start: u32,
    end: u32,
    /// The index behind this value and all that is inside it.
    next: u32,
    kind: Kind,
    /// A string with at least one escape: its content is not its text.
    escaped: bool,
}

/// The memory of a document, to be used again for the next one.
#[derive(Debug, Default)]
pub struct Tape {
    nodes: Vec<Node>,
}

impl Tape {
    /// Reads one JSON text.
    ///
    /// # Errors
    /// Where the bytes are not exactly one JSON text in UTF-8.
    pub fn parse<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Value<'a>, NotJson> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| NotJson { what: "bytes that are not UTF-8", at: error.valid_up_to() })?;
        if u32::try_from(bytes.len()).is_err() {
            return Err(NotJson { what: "a text of more than 4 GiB", at: 0 });
        }
        self.nodes.clear();
        Scanner { bytes, at: 0, nodes: &mut self.nodes }.document()?;
        Ok(Value { text, nodes: &self.nodes, index: 0 })
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: &'a mut Vec<Node>,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), NotJson> {
        self.white_space();
        // Containers that are still open, as indices of their nodes.
        let mut open = [0u32; DEPTH_MAX];
        let mut depth = 0;
        'value: loop {
            let node = self.nodes.len();
            let kind = self.value_start()?;
            let container = matches!(kind, Kind::Array | Kind::Object);
            if container {
                let empty = self.opens_empty(kind)?;
                if depth == DEPTH_MAX {
                    return Err(NotJson { what: "nesting deeper than 127", at: self.at });
                }
                if !empty {
                    *open.get_mut(depth).expect("depth is below the maximum") =
                        u32::try_from(node).expect("a text below 4 GiB has fewer values than bytes");
                    depth += 1;
                    continue 'value;
                }
                self.close(node);
            }
            // A value has ended: its containers may end with it.
            loop {
                self.white_space();
                let Some(parent) = depth.checked_sub(1).and_then(|top| open.get(top)) else {
                    return if self.at == self.bytes.len() {
                        Ok(())
                    } else {
                        Err(self.wrong("more than one value"))
                    };
                };
                let parent = *parent as usize;
                let object = self.nodes.get(parent).is_some_and(|node| node.kind == Kind::Object);
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.white_space();
                        if object {
                            self.member_name()?;
                        }
                        continue 'value;
                    }
                    Some(b'}') if object => self.at += 1,
                    Some(b']') if !object => self.at += 1,
                    _ if object => return Err(self.wrong("no comma or closing brace")),
                    _ => return Err(self.wrong("no comma or closing bracket")),
                }
                self.close(parent);
                depth -= 1;
            }
        }
    }

    /// Consumes the opening byte and, if the container holds nothing, the
    /// closing one; in an object that holds something also the first name.
    fn opens_empty(&mut self, kind: Kind) -> Result<bool, NotJson> {
        self.at += 1;
        self.white_space();
        let closing = if kind == Kind::Object { b'}' } else { b']' };
        if self.peek() == Some(closing) {
            self.at += 1;
            return Ok(true);
        }
        if kind == Kind::Object {
            self.member_name()?;
        }
        Ok(false)
    }

    fn close(&mut self, node: usize) {
        let next = self.nodes.len();
        if let Some(node) = self.nodes.get_mut(node) {
            node.end = self.at as u32;
            node.next = next as u32;
        }
    }

    /// Scans a scalar whole; of a container only notes where it begins.
    fn value_start(&mut self) -> Result<Kind, NotJson> {
        let start = self.at;
        let (kind, escaped) = match self.peek() {
            Some(b'"') => (Kind::String, self.string()?),
            Some(b'{') => (Kind::Object, false),
            Some(b'[') => (Kind::Array, false),
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                (Kind::Number, false)
            }
            Some(b't') => (self.literal(b"true", Kind::True)?, false),
            Some(b'f') => (self.literal(b"false", Kind::False)?, false),
            Some(b'n') => (self.literal(b"null", Kind::Null)?, false),
            Some(_) => return Err(self.wrong("no value")),
            None => return Err(self.wrong("the end in place of a value")),
        };
        self.push(start, kind, escaped);
        Ok(kind)
    }

    fn push(&mut self, start: usize, kind: Kind, escaped: bool) {
        let next = self.nodes.len() as u32 + 1;
        self.nodes.push(Node { start: start as u32, end: self.at as u32, next, kind, escaped });
    }

    fn member_name(&mut self) -> Result<(), NotJson> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("no member name"));
        }
        let start = self.at;
        let escaped = self.string()?;
        self.push(start, Kind::String, escaped);
        self.white_space();
        if self.peek() != Some(b':') {
            return Err(self.wrong("no colon behind a member name"));
        }
        self.at += 1;
        self.white_space();
        Ok(())
    }

    fn literal(&mut self, word: &'static [u8], kind: Kind) -> Result<Kind, NotJson> {
        if self.bytes.get(self.at..self.at + word.len()) != Some(word) {
            return Err(self.wrong("no value"));
        }
        self.at += word.len();
        Ok(kind)
    }

    /// Returns whether the string has an escape.
    fn string(&mut self) -> Result<bool, NotJson> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.skip_plain();
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(0..=0x1f) => return Err(self.wrong("a control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.wrong("the end within a string")),
            }
        }
    }

    /// Moves on to the next byte that a string must look at, eight at a time.
    fn skip_plain(&mut self) {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x8080_8080_8080_8080;
        while let Some(eight) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<8>) {
            let word = u64::from_le_bytes(*eight);
            let quote = word ^ (ONES * u64::from(b'"'));
            let backslash = word ^ (ONES * u64::from(b'\\'));
            let found = (quote.wrapping_sub(ONES) & !quote)
                | (backslash.wrapping_sub(ONES) & !backslash)
                | (word.wrapping_sub(ONES * 0x20) & !word);
            let found = found & HIGH;
            if found != 0 {
                // A borrow can mark bytes above the first hit, never below it.
                self.at += (found.trailing_zeros() / 8) as usize;
                return;
            }
            self.at += 8;
        }
    }

    fn escape(&mut self) -> Result<(), NotJson> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => {
                let unit = self.hex(self.at + 2)?;
                match unit {
                    0xd800..=0xdbff => {
                        let low = self.bytes.get(self.at + 6..self.at + 8) == Some(b"\\u")
                            && matches!(self.hex(self.at + 8)?, 0xdc00..=0xdfff);
                        if !low {
                            return Err(self.wrong("an unpaired surrogate escape"));
                        }
                        self.at += 12;
                    }
                    0xdc00..=0xdfff => return Err(self.wrong("an unpaired surrogate escape")),
                    _ => self.at += 6,
                }
                Ok(())
            }
            _ => Err(self.wrong("an unknown escape")),
        }
    }

    fn hex(&self, at: usize) -> Result<u32, NotJson> {
        self.bytes
            .get(at..at + 4)
            .and_then(hex4)
            .ok_or(NotJson { what: "an escape without four hexadecimal digits", at: self.at })
    }

    fn number(&mut self) -> Result<(), NotJson> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.wrong("a number without digits")),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits("a number without digits behind the point")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits("a number without digits in the exponent")?;
        }
        Ok(())
    }

    fn some_digits(&mut self, otherwise: &'static str) -> Result<(), NotJson> {
        let start = self.at;
        self.digits();
        if self.at == start { Err(self.wrong(otherwise)) } else { Ok(()) }
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn wrong(&self, what: &'static str) -> NotJson {
        NotJson { what, at: self.at }
    }
}

fn hex4(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |unit, &digit| Some(unit * 16 + char::from(digit).to_digit(16)?))
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

    fn at(self, index: u32) -> Value<'a> {
        Value { index, ..self }
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
        match self.plain() {
            Some(plain) => plain == text,
            None => self.string().is_some_and(|string| string == text),
        }
    }

    /// An object's member of that name; where it is repeated, the last one.
    #[must_use]
    pub fn get(self, name: &str) -> Option<Value<'a>> {
        self.members().filter(|(key, _)| key.is_string(name)).last().map(|(_, value)| value)
    }

    /// Whether it is an object or array that holds nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        let node = self.node();
        matches!(node.kind, Kind::Array | Kind::Object) && node.next == self.index + 1
    }

    /// An object's members, repeated ones too, in their order; of all else, none.
    pub fn members(self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'a> {
        let mut children = self.children(Kind::Object);
        std::iter::from_fn(move || Some((children.next()?, children.next()?)))
    }

    /// An array's elements; of all else, none.
    pub fn elements(self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        self.children(Kind::Array)
    }

    fn children(self, kind: Kind) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let node = self.node();
        let end = if node.kind == kind { node.next } else { 0 };
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let child = (index < end).then(|| self.at(index))?;
            index = child.node().next;
            Some(child)
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
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
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
    out.extend_from_slice(rest);
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
