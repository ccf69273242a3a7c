//! The time of a usage event: what producers write, and what every version of Lago understands.

use bigdecimal::BigDecimal;
use kit::clock::Timestamp;
use serde_json::value::RawValue;
use std::str::FromStr as _;

/// From here on a whole number cannot be seconds of this age (it is the year 5138) and is milliseconds.
const FIRST_MILLISECONDS: i64 = 100_000_000_000;
/// From here on it cannot be milliseconds either.
const FIRST_NONSENSE: i64 = 100_000_000_000_000;
/// More decimals of a second than this are nobody's clock.
const MOST_DECIMALS: usize = 12;
/// Most digits of whole seconds, [`FIRST_MILLISECONDS`] being one more.
const SECONDS_DIGITS: usize = 11;
/// Longest text that is a time.
const LONGEST: usize = 40;

/// Seconds since 1970 as a decimal, exactly as many digits as the producer gave.
///
/// Lago takes Unix seconds, with decimals for milliseconds. v1.16.0 reads any text as far as it is a number, so that
/// an ISO-8601 time becomes its year, in 1970; later versions refuse it. Milliseconds are taken as seconds by all.
///
/// Source: getlago/lago-api `app/services/events/create_service.rb` at v1.16.0, `app/validators` at v1.48.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochSeconds(String);

/// A text that is not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not Unix seconds, milliseconds or an ISO-8601 time with its offset")]
pub struct NotATime;

impl EpochSeconds {
    /// Reads seconds or milliseconds, as a number or as a text that holds one, or an ISO-8601 time.
    ///
    /// # Errors
    /// [`NotATime`]; a time of day without an offset is one of no particular instant.
    pub fn of_json(value: &RawValue) -> Result<Self, NotATime> {
        let json = value.get();
        if json.starts_with('"') {
            let text: String = serde_json::from_str(json).map_err(|_| NotATime)?;
            return Self::of_text(text.trim());
        }
        Self::of_number(json)
    }

    /// As [`EpochSeconds::of_json`], for a text.
    ///
    /// # Errors
    /// [`NotATime`].
    pub fn of_text(text: &str) -> Result<Self, NotATime> {
        Self::of_number(text).or_else(|_| {
            let time = text.parse::<Timestamp>().map_err(|_| NotATime)?;
            // Its seconds would be taken for milliseconds wherever they are read.
            Some(time).filter(|time| time.as_millis().abs() < FIRST_NONSENSE).map(Self::from).ok_or(NotATime)
        })
    }

    fn of_number(text: &str) -> Result<Self, NotATime> {
        if text.len() > LONGEST || !text.bytes().all(|b| b.is_ascii_digit() || b".-+eE".contains(&b)) {
            return Err(NotATime);
        }
        plain_seconds(text).map_or_else(|| Self::of_decimal(text), |seconds| Ok(Self(seconds)))
    }

    fn of_decimal(text: &str) -> Result<Self, NotATime> {
        let number = BigDecimal::from_str(text).map_err(|_| NotATime)?;
        let size = number.abs();
        if size >= FIRST_NONSENSE {
            return Err(NotATime);
        }
        let seconds = if size >= FIRST_MILLISECONDS { number * BigDecimal::new(1.into(), 3) } else { number };
        // Of the seconds, which are read once more when they are stored.
        if usize::try_from(seconds.fractional_digit_count()).is_ok_and(|decimals| decimals > MOST_DECIMALS) {
            return Err(NotATime);
        }
        Ok(Self(seconds.normalized().to_plain_string()))
    }

    /// The decimal text, as it stands in JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The instant, to the millisecond.
    pub fn to_timestamp(&self) -> Timestamp {
        // Plain digits, as they are written here: `-12.05` is 12 s and 50 ms before 1970.
        let (negative, digits) = self.0.strip_prefix('-').map_or((false, &*self.0), |digits| (true, digits));
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let first_three = decimals.bytes().map(|digit| i64::from(digit - b'0')).chain([0, 0, 0]).take(3);
        let decimals = first_three.fold(0, |millis, digit| millis * 10 + digit);
        let millis = whole.parse::<i64>().ok().and_then(|whole| whole.checked_mul(1_000)?.checked_add(decimals));
        let millis = millis.unwrap_or(i64::MAX);
        Timestamp::from_millis(if negative { -millis } else { millis })
    }
}

/// Seconds that are written plainly, as nearly all are, without what is nothing to them. `None` for any other text, right
/// or wrong.
fn plain_seconds(text: &str) -> Option<String> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(whole) || !are_digits(decimals) || whole.len() > SECONDS_DIGITS || whole.starts_with('0') {
        return None;
    }
    let significant = decimals.trim_end_matches('0');
    let written = || if significant.is_empty() { whole.to_owned() } else { format!("{whole}.{significant}") };
    (decimals.len() <= MOST_DECIMALS).then(written)
}

impl From<Timestamp> for EpochSeconds {
    fn from(at: Timestamp) -> Self {
        let (whole, decimals) = (at.as_millis() / 1_000, at.as_millis() % 1_000);
        plain_seconds(&format!("{whole}.{decimals:03}"))
            .map_or_else(|| Self(BigDecimal::new(at.as_millis().into(), 3).normalized().to_plain_string()), Self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> Result<String, NotATime> {
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        EpochSeconds::of_json(raw).map(|seconds| seconds.0)
    }

    #[test]
    fn seconds_milliseconds_and_iso_times_are_seconds() {
        for (text, expected) in [
            ("1732000000", "1732000000"),
            ("1732000000.5", "1732000000.5"),
            ("1732000000.123456", "1732000000.123456"),
            ("\"1732000000.120\"", "1732000000.12"),
            ("1732000000123", "1732000000.123"),
            ("\"1732000000000\"", "1732000000"),
            ("1.732e9", "1732000000"),
            ("0", "0"),
            ("-5", "-5"),
            ("\"2024-11-19T07:06:40Z\"", "1732000000"),
            ("\"2024-11-19T08:06:40.250+01:00\"", "1732000000.25"),
        ] {
            assert_eq!(json(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_time() {
        for text in [
            "\"\"",
            "\"yesterday\"",
            "\"2024-11-19\"",
            "\"2024-11-19T07:06:40\"",
            "true",
            "[1732000000]",
            "1732000000123456",
            "\"0x1\"",
            "1e300",
            "1e-300",
            // Could not be read back as what it was.
            "1732000000250.1234567891",
            "\"5138-11-16T09:46:40Z\"",
        ] {
            assert_eq!(json(text), Err(NotATime), "{text}");
        }
    }

    proptest! {
        #[test]
        fn plainly_written_seconds_are_what_their_decimal_is(text in "[0-9]{1,13}(\\.[0-9]{0,14})?") {
            if let Some(plain) = plain_seconds(&text) {
                prop_assert_eq!(Ok(EpochSeconds(plain)), EpochSeconds::of_decimal(&text));
            }
        }

        #[test]
        fn an_instant_is_its_decimal_to_the_millisecond(text in "-?[0-9]{1,11}(\\.[0-9]{1,12})?") {
            use bigdecimal::ToPrimitive as _;
            let seconds = EpochSeconds::of_text(&text).unwrap();
            let millis = (BigDecimal::from_str(&text).unwrap() * BigDecimal::from(1_000)).to_i64().unwrap();
            prop_assert_eq!(seconds.to_timestamp().as_millis(), millis);
        }
    }

    #[test]
    fn the_instant_is_told_to_the_millisecond() {
        for (text, millis) in
            [("1732000000", 1_732_000_000_000), ("1732000000.123456", 1_732_000_000_123), ("-0.5", -500)]
        {
            assert_eq!(EpochSeconds::of_text(text).unwrap().to_timestamp(), Timestamp::from_millis(millis), "{text}");
        }
        let at = Timestamp::from_millis(1_732_000_000_120);
        assert_eq!(EpochSeconds::from(at).as_str(), "1732000000.12");
        assert_eq!(EpochSeconds::from(at).to_timestamp(), at);
    }
}
