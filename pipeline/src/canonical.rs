//! Which JSON values are equal, by the contract's rules (§1): lists as sets,
//! objects whatever the order of their members, numbers exactly and by value,
//! at every depth.

use crate::json::{Kind, Tape, Value};
use crate::number::Decimal;

/// Whether two JSON texts, each one valid value, are equal.
#[must_use]
pub fn equal(one: &str, other: &str) -> bool {
    if one == other {
        return true;
    }
    let kind = |text: &str| match text.as_bytes().first() {
        Some(b'0'..=b'9' | b'-') => b'0',
        first => first.copied().unwrap_or_default(),
    };
    if kind(one) != kind(other) {
        return false;
    }
    match kind(one) {
        b'0' => Decimal::parse(one) == Decimal::parse(other),
        b'"' if !one.contains('\\') && !other.contains('\\') => false,
        b'"' | b'[' | b'{' => form(one) == form(other),
        _ => false,
    }
}

/// The canonical form of a JSON text: the same bytes for equal values, other
/// bytes for others.
#[must_use]
pub fn form(text: &str) -> Vec<u8> {
    let mut form = Vec::with_capacity(text.len() + 16);
    put_form(&mut form, text);
    form
}

/// Appends the canonical form of a JSON text.
pub fn put_form(form: &mut Vec<u8>, text: &str) {
    // The common case needs no reading.
    let plain = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    if let Some(content) = plain.filter(|content| !content.contains(['\\', '"'])) {
        return write_string(form, content);
    }
    // What is no JSON text has no equal but itself, as no texts of ours are.
    match Tape::default().parse(text.as_bytes()) {
        Ok(value) => write(form, value),
        Err(_) => form.extend_from_slice(text.as_bytes()),
    }
}

/// Every form tells its own length, so that one behind another is unambiguous.
fn write(form: &mut Vec<u8>, value: Value<'_>) {
    match value.kind() {
        Kind::Null => form.push(b'n'),
        Kind::True => form.push(b't'),
        Kind::False => form.push(b'f'),
        Kind::Number => write_number(form, value.raw()),
        Kind::String => write_string(form, &value.string().unwrap_or_default()),
        Kind::Array => {
            let mut elements: Vec<Vec<u8>> = value.elements().map(of).collect();
            elements.sort_unstable();
            elements.dedup();
            write_all(form, b'[', &elements);
        }
        Kind::Object => {
            let mut members: Vec<(Vec<u8>, usize, Value<'_>)> = Vec::new();
            for (position, (name, value)) in value.members().enumerate() {
                members.push((of(name), position, value));
            }
            members.sort_unstable_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
            let last_of_each = members.iter().enumerate().filter(|(index, member)| {
                members.get(index + 1).is_none_or(|following| following.0 != member.0)
            });
            let members: Vec<Vec<u8>> =
                last_of_each.map(|(_, (name, _, value))| [name.clone(), of(*value)].concat()).collect();
            write_all(form, b'{', &members);
        }
    }
}

fn of(value: Value<'_>) -> Vec<u8> {
    let mut form = Vec::new();
    write(&mut form, value);
    form
}

fn write_all(form: &mut Vec<u8>, kind: u8, parts: &[Vec<u8>]) {
    form.push(kind);
    form.extend_from_slice(&(parts.len() as u64).to_be_bytes());
    for part in parts {
        form.extend_from_slice(part);
    }
}

fn write_string(form: &mut Vec<u8>, content: &str) {
    form.push(b'"');
    form.extend_from_slice(&(content.len() as u64).to_be_bytes());
    form.extend_from_slice(content.as_bytes());
}

fn write_number(form: &mut Vec<u8>, text: &str) {
    let number = Decimal::parse(text).expect("a number of a parsed document follows the grammar");
    form.push(if number.negative { b'-' } else { b'+' });
    let magnitude = number.magnitude.text();
    form.extend_from_slice(&(magnitude.len() as u64).to_be_bytes());
    form.extend_from_slice(magnitude.as_bytes());
    form.extend_from_slice(&(number.digits.len() as u64).to_be_bytes());
    form.extend_from_slice(&number.digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal() {
        for (one, other) in [
            ("1", "1.0"),
            (r#""a""#, r#""\u0061""#),
            ("[1,2,2]", "[2, 1.0]"),
            (r#"{"a":1,"b":[1,{"c":2}]}"#, r#"{ "b" : [{"c":20e-1},1], "a":1 }"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("[[1,2],[2,1]]", "[[1,2]]"),
        ] {
            assert!(equal(one, other), "{one} {other}");
            assert_eq!(form(one), form(other), "{one} {other}");
        }
    }

    #[test]
    fn what_is_not() {
        for (one, other) in [
            ("9007199254740993", "9007199254740992"),
            ("1", r#""1""#),
            ("1", "true"),
            ("null", "false"),
            ("true", "false"),
            ("0", "null"),
            (r#""""#, "null"),
            ("[]", "{}"),
            (r#""a""#, r#""b""#),
            ("[1]", "[1,2]"),
            ("[[]]", "[]"),
            (r#"{"a":1}"#, r#"{"a":null}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":1}"#),
        ] {
            assert!(!equal(one, other), "{one} {other}");
            assert_ne!(form(one), form(other), "{one} {other}");
        }
    }
}
