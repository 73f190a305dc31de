//! Numbers exactly: a JSON number as its digits and its power of ten.
//!
//! No floating point anywhere: 9007199254740993 is not 9007199254740992.

use std::borrow::Cow;

/// A number as sign, significant digits and magnitude: `0.d1d2d3… × 10^magnitude`.
///
/// The digits begin and end with another digit than 0, and zero has none, so
/// two numbers are equal exactly where their decimals are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    /// Whether it is below zero. Never for zero.
    pub negative: bool,
    /// The significant digits, in ASCII; none for zero.
    pub digits: Vec<u8>,
    /// Where the point stands, counted from before the first digit.
    pub magnitude: Magnitude,
}

/// A power of ten, of any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Magnitude {
    /// Of at most 36 decimal digits.
    Small(i128),
    /// Beyond that, in decimal digits behind a sign.
    Huge(String),
}

/// Powers of ten below this have at most 36 decimal digits.
const SMALL_BELOW: i128 = 10i128.pow(SMALL_DIGITS as u32);
const SMALL_DIGITS: usize = 36;

impl Magnitude {
    fn of(number: i128) -> Magnitude {
        if number.abs() < SMALL_BELOW {
            Magnitude::Small(number)
        } else {
            Magnitude::Huge(number.to_string())
        }
    }

    /// The text, which equal magnitudes share.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Magnitude::Small(number) => Cow::Owned(number.to_string()),
            Magnitude::Huge(text) => Cow::Borrowed(text),
        }
    }

    /// An exponent's text, moved by a number of digits; `None` where it is none.
    fn moved(exponent: &str, by: i128) -> Option<Magnitude> {
        let (is_negative, digits) = match exponent.as_bytes().first()? {
            b'-' => (true, exponent.get(1..)?),
            b'+' => (false, exponent.get(1..)?),
            _ => (false, exponent),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = digits.trim_start_matches('0');
        // Of a long one only the last digits are reckoned with, and a carry or borrow.
        let (high, low) = digits.split_at(digits.len().saturating_sub(SMALL_DIGITS));
        let low = low.bytes().fold(0, |number, digit| number * 10 + i128::from(digit - b'0'));
        let sum = if is_negative { low - by } else { low + by };
        let signed = |number: i128| Magnitude::of(if is_negative { -number } else { number });
        if high.is_empty() {
            return Some(signed(sum));
        }
        let high = match sum.div_euclid(SMALL_BELOW) {
            0 => high.to_owned(),
            carry => step(high, carry > 0),
        };
        let low = sum.rem_euclid(SMALL_BELOW);
        Some(match high.trim_start_matches('0') {
            "" => signed(low),
            high => Magnitude::Huge(format!("{}{high}{low:036}", if is_negative { "-" } else { "" })),
        })
    }

    fn at_most(&self, limit: i128) -> bool {
        match self {
            Magnitude::Small(number) => *number <= limit,
            Magnitude::Huge(text) => text.starts_with('-'),
        }
    }
}

/// The decimal digits of a number above zero, one up or one down.
fn step(digits: &str, up: bool) -> String {
    let (full, empty, by) = if up { (b'9', b'0', 1) } else { (b'0', b'9', u8::MAX) };
    let mut digits = digits.as_bytes().to_vec();
    for digit in digits.iter_mut().rev() {
        if *digit != full {
            *digit = digit.wrapping_add(by);
            return String::from_utf8(digits).unwrap_or_default();
        }
        *digit = empty;
    }
    format!("1{}", String::from_utf8(digits).unwrap_or_default())
}

impl Decimal {
    /// Reads a text that follows JSON's grammar of numbers; `None` where it does not.
    #[must_use]
    pub fn parse(text: &str) -> Option<Decimal> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (rest.get(..at)?, Some(rest.get(at + 1..)?)),
            None => (rest, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let leading_zero = whole.len() > 1 && whole.starts_with('0');
        if !digits(whole) || leading_zero || fraction.is_some_and(|fraction| !digits(fraction)) {
            return None;
        }
        let exponent = exponent.unwrap_or("0");
        let all: Vec<u8> = whole.bytes().chain(fraction.unwrap_or_default().bytes()).collect();
        let Some(first) = all.iter().position(|&digit| digit != b'0') else {
            Magnitude::moved(exponent, 0)?;
            return Some(Decimal { negative: false, digits: Vec::new(), magnitude: Magnitude::Small(0) });
        };
        let last = all.iter().rposition(|&digit| digit != b'0').unwrap_or(first);
        Some(Decimal {
            negative,
            digits: all.get(first..=last).unwrap_or_default().to_vec(),
            magnitude: Magnitude::moved(exponent, whole.len() as i128 - first as i128)?,
        })
    }

    /// The number times ten to the `power`, rounded down; `None` beyond ±10^18.
    #[must_use]
    pub fn scaled_floor(&self, power: i128) -> Option<i64> {
        let magnitude = match self.magnitude {
            Magnitude::Small(magnitude) => magnitude + power,
            Magnitude::Huge(_) if self.magnitude.at_most(0) => -1,
            Magnitude::Huge(_) => return None,
        };
        if magnitude > 18 {
            return None;
        }
        let whole_digits = usize::try_from(magnitude).unwrap_or(0);
        let whole = (0..whole_digits).fold(0i64, |whole, place| {
            whole * 10 + i64::from(self.digits.get(place).map_or(0, |digit| digit - b'0'))
        });
        let fraction = self.digits.len() > whole_digits || (magnitude < 0 && !self.digits.is_empty());
        Some(if self.negative { -whole - i64::from(fraction) } else { whole })
    }

    /// Whether the number is below ten to the `power`.
    #[must_use]
    pub fn below_power_of_ten(&self, power: i128) -> bool {
        self.negative || self.digits.is_empty() || self.magnitude.at_most(power)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_numbers_have_equal_decimals() {
        for (one, other) in [
            ("1", "1.0"),
            ("1", "10e-1"),
            ("0", "-0.00e7"),
            ("1200", "1.2E+3"),
            ("0.012", "12e-3"),
            ("1e10000000000000000000000000000000000001", "10e10000000000000000000000000000000000000"),
            ("100e-10000000000000000000000000000000000001", "1e-9999999999999999999999999999999999999"),
            ("10e999999999999999999999999999999999999999", "1e1000000000000000000000000000000000000000"),
            ("0.1e1000000000000000000000000000000000000000", "1e999999999999999999999999999999999999999"),
            ("10e999999999999999999999999999999999999", "1e1000000000000000000000000000000000000"),
        ] {
            assert_eq!(Decimal::parse(one), Decimal::parse(other), "{one} {other}");
        }
        for (one, other) in [
            ("9007199254740993", "9007199254740992"),
            ("1", "-1"),
            ("1", "10"),
            ("1e400", "1e401"),
            ("0.1", "0.01"),
            ("1e10000000000000000000000000000000000000", "1e20000000000000000000000000000000000000"),
        ] {
            assert_ne!(Decimal::parse(one), Decimal::parse(other), "{one} {other}");
        }
    }

    #[test]
    fn what_is_no_json_number_is_refused() {
        for text in [
            "", "-", "01", "1.", ".1", "1e", "1e+", "+1", " 1", "1 ", "0x1", "1_0", "٣", "--1", "1e1.5",
            "0e", "0e+",
        ] {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_thousandfold_is_rounded_down() {
        for (text, expected) in [
            ("1.5", Some(1500)),
            ("0.0009", Some(0)),
            ("-0.0009", Some(-1)),
            ("-1.5", Some(-1500)),
            ("1e-400", Some(0)),
            ("-1e-400", Some(-1)),
            ("0", Some(0)),
            ("1.23456", Some(1234)),
            ("-1.23456", Some(-1235)),
            ("1e400", None),
        ] {
            assert_eq!(Decimal::parse(text).unwrap().scaled_floor(3), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_survive(number in -1_000_000_000_000i64..1_000_000_000_000) {
            let decimal = Decimal::parse(&number.to_string()).unwrap();
            prop_assert_eq!(decimal.scaled_floor(3), Some(number * 1000));
            prop_assert_eq!(decimal.below_power_of_ten(11), number < 100_000_000_000);
        }
    }
}
