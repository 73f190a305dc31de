//! Numbers exactly: a JSON number as its digits and its power of ten.
//!
//! No floating point anywhere: 9007199254740993 is not 9007199254740992.

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
    pub magnitude: i128,
}

impl Decimal {
    /// Reads a text that follows JSON's grammar of numbers; `None` where it does not.
    ///
    /// An exponent beyond ±10^36 counts as 10^36: no two numbers that anybody
    /// could tell apart by counting digits meet there.
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
        let exponent = exponent.map_or(Some(0), parse_exponent)?;
        let all: Vec<u8> = whole.bytes().chain(fraction.unwrap_or_default().bytes()).collect();
        let Some(first) = all.iter().position(|&digit| digit != b'0') else {
            return Some(Decimal { negative: false, digits: Vec::new(), magnitude: 0 });
        };
        let last = all.iter().rposition(|&digit| digit != b'0').unwrap_or(first);
        Some(Decimal {
            negative,
            digits: all.get(first..=last).unwrap_or_default().to_vec(),
            magnitude: exponent + whole.len() as i128 - first as i128,
        })
    }

    /// The number times a thousand, rounded down; `None` beyond ±10^18.
    #[must_use]
    pub fn thousandfold_floor(&self) -> Option<i64> {
        let magnitude = self.magnitude + 3;
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
        self.negative || self.digits.is_empty() || self.magnitude <= power
    }
}

fn parse_exponent(text: &str) -> Option<i128> {
    const EXPONENT_DIGITS_MAX: usize = 36;
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    let exponent = if significant.len() > EXPONENT_DIGITS_MAX {
        10i128.pow(EXPONENT_DIGITS_MAX as u32)
    } else {
        significant.bytes().fold(0, |exponent, digit| exponent * 10 + i128::from(digit - b'0'))
    };
    Some(if negative { -exponent } else { exponent })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_numbers_have_equal_decimals() {
        for (one, other) in
            [("1", "1.0"), ("1", "10e-1"), ("0", "-0.00e7"), ("1200", "1.2E+3"), ("0.012", "12e-3")]
        {
            assert_eq!(Decimal::parse(one), Decimal::parse(other), "{one} {other}");
        }
        for (one, other) in [
            ("9007199254740993", "9007199254740992"),
            ("1", "-1"),
            ("1", "10"),
            ("1e400", "1e401"),
            ("0.1", "0.01"),
        ] {
            assert_ne!(Decimal::parse(one), Decimal::parse(other), "{one} {other}");
        }
    }

    #[test]
    fn what_is_no_json_number_is_refused() {
        for text in
            ["", "-", "01", "1.", ".1", "1e", "1e+", "+1", " 1", "1 ", "0x1", "1_0", "٣", "--1", "1e1.5"]
        {
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
            assert_eq!(Decimal::parse(text).unwrap().thousandfold_floor(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_survive(number in -1_000_000_000_000i64..1_000_000_000_000) {
            let decimal = Decimal::parse(&number.to_string()).unwrap();
            prop_assert_eq!(decimal.thousandfold_floor(), Some(number * 1000));
            prop_assert_eq!(decimal.below_power_of_ten(11), number < 100_000_000_000);
        }
    }
}
