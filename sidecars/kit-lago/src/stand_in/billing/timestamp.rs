//! Event timestamps as Ruby reads and writes them, each version of Lago by its own rule.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::value::RawValue;

use super::decimal::Decimal;
use super::profile::TimestampRule;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// Postgres keeps times from 4713 BC to 294276 AD; an INSERT beyond fails.
///
/// Source: PostgreSQL documentation, table "Date/Time Types".
const STORABLE_SECONDS: std::ops::RangeInclusive<i64> = -210_866_803_200..=9_224_318_015_999;

/// Why a timestamp is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Refused as `invalid_format`.
    Format,
    /// Nothing in Lago catches it: a 500.
    Crash,
}

/// A time in microseconds since 1970, from the `timestamp` of an event. Ruby holds `null` and
/// `false` for absent, and lists and objects are dropped before it looks.
pub(super) fn read(raw: Option<&RawValue>, rule: TimestampRule, now_micros: i64) -> Result<i64, Unusable> {
    let Some(raw) = raw.map(RawValue::get) else {
        return Ok(now_micros);
    };
    match raw.as_bytes().first() {
        Some(b'"') => {
            let text: String = serde_json::from_str(raw).map_err(|_| Unusable::Crash)?;
            read_text(&text, rule)
        }
        Some(b'-' | b'0'..=b'9') => read_number(raw, rule),
        // Neither `to_f` nor `Float()` takes a boolean, and nobody expects that.
        Some(b't') => Err(Unusable::Crash),
        _ => Ok(now_micros),
    }
}

fn read_text(text: &str, rule: TimestampRule) -> Result<i64, Unusable> {
    let text = text.trim();
    let (number, length) = scan(text);
    if rule == TimestampRule::Lenient {
        let number = if number.is_empty() { "0" } else { &number };
        return read_number(number, rule);
    }
    if number.is_empty() || length != text.len() {
        return Err(Unusable::Format);
    }
    read_number(&number, rule)
}

fn read_number(number: &str, rule: TimestampRule) -> Result<i64, Unusable> {
    let micros = if rule == TimestampRule::Exact {
        let exact = Decimal::parse(number).and_then(Decimal::seconds_to_micros);
        exact.ok_or(Unusable::Crash)?
    } else {
        let seconds: f64 = number.parse().map_err(|_| Unusable::Crash)?;
        let whole = seconds.floor();
        // Also refuses infinity. The exact bound is below.
        if !(-1e12..1e13).contains(&whole) {
            return Err(Unusable::Crash);
        }
        let fraction = ((seconds - whole) * MICROS_PER_SECOND as f64).floor();
        whole as i64 * MICROS_PER_SECOND + fraction as i64
    };
    if STORABLE_SECONDS.contains(&micros.div_euclid(MICROS_PER_SECOND)) { Ok(micros) } else { Err(Unusable::Crash) }
}

/// The longest beginning that is a number for Ruby, without its underscores, and how long it was.
fn scan(text: &str) -> (String, usize) {
    let bytes = text.as_bytes();
    let mut number = String::new();
    let mut at = 0;
    if let Some(sign @ (b'+' | b'-')) = bytes.first() {
        number.push(char::from(*sign));
        at += 1;
    }
    let before = number.len();
    at = scan_digits(bytes, at, &mut number);
    let mut has_digits = number.len() > before;
    if bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
        number.push('.');
        at = scan_digits(bytes, at + 1, &mut number);
        has_digits = true;
    }
    if !has_digits {
        return (String::new(), 0);
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
        let digits_at = at + 1 + usize::from(signed);
        if bytes.get(digits_at).is_some_and(u8::is_ascii_digit) {
            number.push_str(&text[at..digits_at]);
            at = scan_digits(bytes, digits_at, &mut number);
        }
    }
    (number, at)
}

/// Digits, with single underscores between them.
fn scan_digits(bytes: &[u8], mut at: usize, number: &mut String) -> usize {
    while let Some(byte) = bytes.get(at) {
        let between = *byte == b'_' && at > 0 && bytes[at - 1].is_ascii_digit();
        if byte.is_ascii_digit() {
            number.push(char::from(*byte));
        } else if !(between && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) {
            break;
        }
        at += 1;
    }
    at
}

/// Now, in microseconds since 1970.
pub(super) fn now_micros() -> i64 {
    micros_of(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A duration in microseconds; the longest one there is where it does not fit.
pub(super) fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// `2026-08-01T00:00:00Z`. Years beyond 9999 are written as they are, as Ruby does: millisecond
/// timestamps land there.
pub(super) fn iso_seconds(micros: i64) -> String {
    format!("{}Z", up_to_seconds(micros))
}

/// `2026-08-01T00:00:00.123Z`, cut off and not rounded.
pub(super) fn iso_millis(micros: i64) -> String {
    let millis = micros.rem_euclid(MICROS_PER_SECOND) / 1_000;
    format!("{}.{millis:03}Z", up_to_seconds(micros))
}

/// `2026-08-01`.
pub(super) fn iso_date(micros: i64) -> String {
    let mut text = up_to_seconds(micros);
    text.truncate(text.find('T').unwrap_or(text.len()));
    text
}

fn up_to_seconds(micros: i64) -> String {
    let seconds = micros.div_euclid(MICROS_PER_SECOND);
    let (year, month, day) = civil_date(seconds.div_euclid(SECONDS_PER_DAY));
    let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// The Gregorian date of a day counted from 1970-01-01. The calendar of `jiff` ends with year 9999.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_date(day: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    // Years begin in March here, so that the leap day is the last one.
    let day = day + 719_468;
    let era = day.div_euclid(DAYS_PER_ERA);
    let of_era = day.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(json: &str, rule: TimestampRule, expected: Result<&str, Unusable>) {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        let time = read(Some(raw), rule, 0).map(iso_millis);
        assert_eq!(time.as_deref().map_err(|error| *error), expected, "{json} {rule:?}");
    }

    #[test]
    fn the_old_version_takes_anything_for_a_number() {
        let lenient = |json, expected| check(json, TimestampRule::Lenient, Ok(expected));

        lenient("1732010400", "2024-11-19T10:00:00.000Z");
        lenient(r#"" 1732010400.5 ""#, "2024-11-19T10:00:00.500Z");
        lenient(r#""2024-11-19T10:00:00Z""#, "1970-01-01T00:33:44.000Z");
        lenient(r#""yesterday""#, "1970-01-01T00:00:00.000Z");
        lenient(r#""""#, "1970-01-01T00:00:00.000Z");
        lenient(r#""1_000.5e1x""#, "1970-01-01T02:46:45.000Z");
        lenient("0", "1970-01-01T00:00:00.000Z");
        lenient("-0.5", "1969-12-31T23:59:59.500Z");
        lenient("1732010400000", "56855-03-23T16:00:00.000Z");
    }

    #[test]
    fn later_versions_refuse_what_is_not_a_number() {
        for rule in [TimestampRule::Strict, TimestampRule::Exact] {
            for json in [r#""2024-11-19T10:00:00Z""#, r#""yesterday""#, r#""""#, r#""1__0""#, r#""1_""#, r#""1e""#] {
                check(json, rule, Err(Unusable::Format));
            }
            check(r#"" 1_732_010_400 ""#, rule, Ok("2024-11-19T10:00:00.000Z"));
        }
    }

    #[test]
    fn binary_fractions_lose_a_millisecond_that_exact_ones_keep() {
        check("1700000000.123", TimestampRule::Strict, Ok("2023-11-14T22:13:20.122Z"));
        check("1700000000.123", TimestampRule::Exact, Ok("2023-11-14T22:13:20.123Z"));
        check(r#""1700000000.123""#, TimestampRule::Exact, Ok("2023-11-14T22:13:20.123Z"));
    }

    #[test]
    fn what_counts_as_absent_is_now_and_what_no_store_holds_is_a_crash() {
        for rule in [TimestampRule::Lenient, TimestampRule::Strict, TimestampRule::Exact] {
            for json in ["null", "false", "[]", "{}"] {
                check(json, rule, Ok("1970-01-01T00:00:00.000Z"));
            }
            for json in ["true", "1e13", "-1e12", "1e400"] {
                check(json, rule, Err(Unusable::Crash));
            }
            assert_eq!(read(None, rule, 7), Ok(7));
        }
    }

    #[test]
    fn dates_are_right_around_leap_days_and_eras() {
        let day = |days: i64| iso_date(days * SECONDS_PER_DAY * MICROS_PER_SECOND);

        assert_eq!(day(-1), "1969-12-31");
        assert_eq!(day(11_016), "2000-02-29");
        assert_eq!(day(11_017), "2000-03-01");
        assert_eq!(day(47_540), "2100-02-28");
        assert_eq!(day(47_541), "2100-03-01");
        assert_eq!(iso_seconds(1_999_999), "1970-01-01T00:00:01Z");
    }
}
