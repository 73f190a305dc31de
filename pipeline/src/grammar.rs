//! The grammar: bytes to the places of all values in them, or why they are not JSON.
//!
//! RFC 8259 to the letter, and the two limits of the contract (§1): no unpaired
//! surrogate escape, no nesting deeper than 127. serde_json checks neither on
//! the paths that keep slices, hence a scanner of our own. What a value says is
//! for [`crate::json`].

use std::fmt;

use crate::scan;

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
pub(crate) struct Node {
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// The index behind this value and all that is inside it.
    pub(crate) next: u32,
    pub(crate) kind: Kind,
    /// A string with at least one escape: its content is not its text.
    pub(crate) escaped: bool,
}

/// Bytes of which those from `start` on are marked where a string must look.
pub(crate) struct Marked<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) start: usize,
    pub(crate) marks: &'a [u64],
}

impl Marked<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }
}

/// Reads the value that begins at the start and ends with the bytes. Where it stands
/// is handed from call to call, for it is looked at with every byte.
pub(crate) fn document(text: &Marked<'_>, nodes: &mut Vec<Node>) -> Result<(), NotJson> {
    // Containers that are still open, as indices of their nodes.
    let mut open = [0u32; DEPTH_MAX];
    let mut depth = 0;
    let mut at = white_space(text, text.start);
    'value: loop {
        if let Some(opening @ (b'{' | b'[')) = text.byte(at) {
            let (kind, closing) = if opening == b'{' { (Kind::Object, b'}') } else { (Kind::Array, b']') };
            let Some(place) = open.get_mut(depth) else {
                return Err(NotJson { what: "nesting deeper than 127", at: white_space(text, at + 1) });
            };
            *place = nodes.len() as u32;
            let start = at;
            at = white_space(text, at + 1);
            push(nodes, start, at + 1, kind, false);
            if text.byte(at) != Some(closing) {
                depth += 1;
                if kind == Kind::Object {
                    at = member_name(text, at, nodes)?;
                }
                continue 'value;
            }
            at += 1;
        } else {
            let (kind, end, escaped) = scalar(text, at)?;
            push(nodes, at, end, kind, escaped);
            at = end;
        }
        // A value has ended: its containers may end with it.
        loop {
            at = white_space(text, at);
            let Some(&parent) = depth.checked_sub(1).and_then(|top| open.get(top)) else {
                let is_end = at == text.bytes.len();
                return if is_end { Ok(()) } else { Err(NotJson { what: "more than one value", at }) };
            };
            let next = nodes.len() as u32;
            let Some(container) = nodes.get_mut(parent as usize) else { return Ok(()) };
            let is_object = container.kind == Kind::Object;
            match text.byte(at) {
                Some(b',') => {
                    at = white_space(text, at + 1);
                    if is_object {
                        at = member_name(text, at, nodes)?;
                    }
                    continue 'value;
                }
                Some(b'}') if is_object => {}
                Some(b']') if !is_object => {}
                _ if is_object => return Err(NotJson { what: "no comma or closing brace", at }),
                _ => return Err(NotJson { what: "no comma or closing bracket", at }),
            }
            at += 1;
            (container.end, container.next) = (at as u32, next);
            depth -= 1;
        }
    }
}

#[inline]
fn push(nodes: &mut Vec<Node>, start: usize, end: usize, kind: Kind, escaped: bool) {
    let next = nodes.len() as u32 + 1;
    nodes.push(Node { start: start as u32, end: end as u32, next, kind, escaped });
}

/// Says where the member's value begins.
#[inline]
fn member_name(text: &Marked<'_>, start: usize, nodes: &mut Vec<Node>) -> Result<usize, NotJson> {
    if text.byte(start) != Some(b'"') {
        return Err(NotJson { what: "no member name", at: start });
    }
    let (end, escaped) = string(text, start)?;
    push(nodes, start, end, Kind::String, escaped);
    let at = white_space(text, end);
    if text.byte(at) != Some(b':') {
        return Err(NotJson { what: "no colon behind a member name", at });
    }
    Ok(white_space(text, at + 1))
}

/// What kind of value begins at `at`, where it ends, and whether it has an escape.
#[inline]
fn scalar(text: &Marked<'_>, at: usize) -> Result<(Kind, usize, bool), NotJson> {
    match text.byte(at) {
        Some(b'"') => string(text, at).map(|(end, escaped)| (Kind::String, end, escaped)),
        Some(b'-' | b'0'..=b'9') => Ok((Kind::Number, number(text.bytes, at)?, false)),
        _ => literal(text.bytes, at).map(|(kind, end)| (kind, end, false)),
    }
}

fn literal(bytes: &[u8], at: usize) -> Result<(Kind, usize), NotJson> {
    let words = [(&b"true"[..], Kind::True), (b"false", Kind::False), (b"null", Kind::Null)];
    let rest = bytes.get(at..).unwrap_or_default();
    match words.into_iter().find(|(word, _)| rest.starts_with(word)) {
        Some((word, kind)) => Ok((kind, at + word.len())),
        None if rest.is_empty() => Err(NotJson { what: "the end in place of a value", at }),
        None => Err(NotJson { what: "no value", at }),
    }
}

/// Where the string that begins at `at` ends, and whether it has an escape.
#[inline]
fn string(text: &Marked<'_>, at: usize) -> Result<(usize, bool), NotJson> {
    let at = next_mark(text, at + 1);
    if text.byte(at) == Some(b'"') { Ok((at + 1, false)) } else { rest_of_string(text, at) }
}

/// The same from the first byte of it that is not plain.
#[cold]
fn rest_of_string(text: &Marked<'_>, mut at: usize) -> Result<(usize, bool), NotJson> {
    let mut escaped = false;
    loop {
        match text.byte(at) {
            Some(b'"') => return Ok((at + 1, escaped)),
            Some(b'\\') => {
                escaped = true;
                at = escape(text.bytes, at)?;
            }
            Some(_) => return Err(NotJson { what: "a control character in a string", at }),
            None => return Err(NotJson { what: "the end within a string", at }),
        }
        at = next_mark(text, at);
    }
}

#[inline]
fn next_mark(text: &Marked<'_>, at: usize) -> usize {
    text.start + scan::next(text.marks, at - text.start)
}

/// Where the escape that begins at `at` ends.
fn escape(bytes: &[u8], at: usize) -> Result<usize, NotJson> {
    let hex = |from: usize| {
        let what = "an escape without four hexadecimal digits";
        bytes.get(from..from + 4).and_then(hex4).ok_or(NotJson { what, at })
    };
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => {
            let unpaired = NotJson { what: "an unpaired surrogate escape", at };
            match hex(at + 2)? {
                0xd800..=0xdbff => {
                    let low =
                        bytes.get(at + 6..at + 8) == Some(b"\\u") && matches!(hex(at + 8)?, 0xdc00..=0xdfff);
                    if low { Ok(at + 12) } else { Err(unpaired) }
                }
                0xdc00..=0xdfff => Err(unpaired),
                _ => Ok(at + 6),
            }
        }
        _ => Err(NotJson { what: "an unknown escape", at }),
    }
}

/// Where the number that begins at `at` ends.
fn number(bytes: &[u8], mut at: usize) -> Result<usize, NotJson> {
    let some_digits = |at: usize, what: &'static str| {
        let end = digits(bytes, at);
        if end == at { Err(NotJson { what, at }) } else { Ok(end) }
    };
    if bytes.get(at) == Some(&b'-') {
        at += 1;
    }
    at = match bytes.get(at) {
        Some(b'0') => at + 1,
        _ => some_digits(at, "a number without digits")?,
    };
    if bytes.get(at) == Some(&b'.') {
        at = some_digits(at + 1, "a number without digits behind the point")?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        if matches!(bytes.get(at), Some(b'+' | b'-')) {
            at += 1;
        }
        at = some_digits(at, "a number without digits in the exponent")?;
    }
    Ok(at)
}

fn digits(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

#[inline]
fn white_space(text: &Marked<'_>, mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = text.byte(at) {
        at += 1;
    }
    at
}

/// The number that four hexadecimal digits say.
pub(crate) fn hex4(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |unit, &digit| Some(unit * 16 + char::from(digit).to_digit(16)?))
}
