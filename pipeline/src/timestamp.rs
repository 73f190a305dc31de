//! Envelope timestamps: RFC 3339 or epoch numbers, in whole milliseconds.

use crate::json::{Kind, Value};
use crate::number::Decimal;

/// The first millisecond of the year 1, UTC.
const YEAR_1_MS: i64 = -62_135_596_800_000;
/// The last millisecond of the year 9999, UTC.
const YEAR_9999_MS: i64 = 253_402_300_799_999;
/// Numbers below ten to this power are seconds, others milliseconds.
const SECONDS_BELOW_POWER_OF_TEN: i128 = 11;
const DAY_MS: i64 = 86_400_000;

/// Reads a timestamp as milliseconds since the epoch, rounded down; `None`
/// where it is none, or lies outside the years 1 to 9999.
#[must_use]
pub fn parse(value: Value<'_>) -> Option<i64> {
    let ms = match value.kind() {
        Kind::Number => epoch(value.raw()),
        Kind::String => {
            let text = value.string()?;
            rfc3339(text.as_bytes()).or_else(|| epoch(&text))
        }
        _ => None,
    }?;
    (YEAR_1_MS..=YEAR_9999_MS).contains(&ms).then_some(ms)
}

/// Writes milliseconds since the epoch as `YYYY-MM-DDTHH:MM:SS.mmmZ`.
#[must_use]
pub fn format_utc(ms: i64) -> String {
    let (year, month, day) = civil(ms.div_euclid(DAY_MS));
    let in_day = ms.rem_euclid(DAY_MS);
    let (hour, minute, second, milli) =
        (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

fn epoch(text: &str) -> Option<i64> {
    let number = Decimal::parse(text)?;
    number.scaled_floor(if number.below_power_of_ten(SECONDS_BELOW_POWER_OF_TEN) { 3 } else { 0 })
}

/// RFC 3339's `date-time`, the separator being `T` or `t`.
fn rfc3339(text: &[u8]) -> Option<i64> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let shape_holds = date_time.iter().zip(b"0000-00-00T00:00:00").all(|(&byte, &shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        b'T' => byte == b'T' || byte == b't',
        _ => byte == shape,
    });
    if !shape_holds {
        return None;
    }
    let number = |start: usize, end: usize| digits(date_time.get(start..end).unwrap_or_default());
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    let (hour, minute, second) = (number(11, 13), number(14, 16), number(17, 19));
    let date_exists = year >= 1 && (1..=12).contains(&month) && day >= 1 && day <= days_in_month(year, month);
    if !date_exists || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction_ms, rest) = fraction(rest)?;
    // Second 60 is second 0 of the next minute, which the sum gives by itself.
    let local =
        days(year, month, day) * DAY_MS + hour * 3_600_000 + minute * 60_000 + second * 1000 + fraction_ms;
    Some(local - offset_ms(rest)?)
}

/// The milliseconds of a fraction of a second, if there is one, and what is behind it.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(text) = text.strip_prefix(b".") else { return Some((0, text)) };
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = text.split_at(length);
    let ms =
        (0..3).fold(0, |ms, place| ms * 10 + fraction.get(place).map_or(0, |digit| i64::from(digit - b'0')));
    (length > 0).then_some((ms, rest))
}

fn offset_ms(text: &[u8]) -> Option<i64> {
    if matches!(text, b"Z" | b"z") {
        return Some(0);
    }
    let [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] = text else { return None };
    if ![h1, h2, m1, m2].into_iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (hours, minutes) = (digits(&[*h1, *h2]), digits(&[*m1, *m2]));
    let ms = (hours * 60 + minutes) * 60_000;
    (hours <= 23 && minutes <= 59).then_some(if *sign == b'-' { -ms } else { ms })
}

fn digits(text: &[u8]) -> i64 {
    text.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since the epoch of a date of the proleptic Gregorian calendar
/// (Howard Hinnant, *chrono-compatible low-level date algorithms*).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date of a day since the epoch: the inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::Tape;

    fn check(text: &str, expected: Option<&str>) {
        let mut tape = Tape::default();
        let ms = parse(tape.parse(text.as_bytes()).unwrap());
        assert_eq!(ms.map(format_utc).as_deref(), expected, "{text}");
    }

    #[test]
    fn what_is_a_timestamp() {
        check(r#""2016-02-29T01:23:00Z""#, Some("2016-02-29T01:23:00.000Z"));
        check(r#""2016-02-29t01:23:00.1239z""#, Some("2016-02-29T01:23:00.123Z"));
        check(r#""2016-02-29T01:23:00.5+01:30""#, Some("2016-02-28T23:53:00.500Z"));
        check(r#""2016-12-31T23:59:60Z""#, Some("2017-01-01T00:00:00.000Z"));
        check(r#""2016-12-31T12:00:60.25-00:00""#, Some("2016-12-31T12:01:00.250Z"));
        check(r#""1969-12-31T23:59:59.9999Z""#, Some("1969-12-31T23:59:59.999Z"));
        check("1456708980", Some("2016-02-29T01:23:00.000Z"));
        check("1456708980000", Some("2016-02-29T01:23:00.000Z"));
        check("1456708980.1239", Some("2016-02-29T01:23:00.123Z"));
        check("1456708980123.9", Some("2016-02-29T01:23:00.123Z"));
        check("\"14567089.8e2\"", Some("2016-02-29T01:23:00.000Z"));
        check("99999999999.9999", Some("5138-11-16T09:46:39.999Z"));
        check("1e11", Some("1973-03-03T09:46:40.000Z"));
        check("-0.0001", Some("1969-12-31T23:59:59.999Z"));
        check(r#""0001-01-01T00:00:00Z""#, Some("0001-01-01T00:00:00.000Z"));
        check(r#""9999-12-31T23:59:59.9999Z""#, Some("9999-12-31T23:59:59.999Z"));
    }

    #[test]
    fn what_is_none() {
        for text in [
            r#""2016-02-30T01:23:00Z""#,
            r#""2015-02-29T01:23:00Z""#,
            r#""2016-02-29 01:23:00Z""#,
            r#""2016-02-29T01:23:00""#,
            r#""2016-02-29T01:23Z""#,
            r#""2016-02-29T24:00:00Z""#,
            r#""2016-02-29T01:60:00Z""#,
            r#""2016-02-29T01:23:61Z""#,
            r#""2016-02-29T01:23:00.Z""#,
            r#""2016-02-29T01:23:00+24:00""#,
            r#""2016-02-29T01:23:00+0100""#,
            r#""2016-13-01T00:00:00Z""#,
            r#""0000-12-31T00:00:00Z""#,
            r#""0001-01-01T00:00:00+00:01""#,
            r#""9999-12-31T23:59:60Z""#,
            r#""9999-12-31T23:59:59-00:01""#,
            r#""""#,
            r#"" 1456708980""#,
            "null",
            "true",
            "[1]",
            "1e400",
            "-1e12",
            "-62135596800.001",
            "253402300800000",
            r#""2016-02-29T01:23:00Zx""#,
            r#""٢٠١٦-02-29T01:23:00Z""#,
        ] {
            check(text, None);
        }
    }

    proptest! {
        #[test]
        fn dates_survive(day in -719_162i64..2_932_896) {
            let (year, month, date) = civil(day);
            prop_assert_eq!(days(year, month, date), day);
            let text = format!("\"{}\"", format_utc(day * DAY_MS));
            let mut tape = Tape::default();
            prop_assert_eq!(parse(tape.parse(text.as_bytes()).unwrap()), Some(day * DAY_MS));
        }
    }
}
