//! Exact decimals: a sum of usage must be the sum of what was sent, to the last digit.

use std::fmt;
use std::str::FromStr;

use bigdecimal::num_bigint::{BigInt, Sign};
use bigdecimal::{BigDecimal, Zero};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Longest text that is a quantity: 10^1000000000 is a short text and a large number.
pub(super) const LONGEST: usize = 100;
/// Largest exponent either way.
const LARGEST_EXPONENT: u64 = 100;
/// Longest text of a sum: of numbers as long as both limits allow.
const LONGEST_SUM: usize = 1_000;

/// A decimal number, exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(BigDecimal);

/// A text that is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a decimal number")]
pub struct NotANumber;

impl Quantity {
    /// The number that a JSON value is: a number, or a string that holds one in plain digits. Lago leaves events out,
    /// without a word, whose string is `1e3`, `+5`, `.5`, `5.` or has white space around it.
    ///
    /// # Errors
    /// [`NotANumber`].
    ///
    /// Source: getlago/lago-api `app/services/events/stores/postgres_store.rb`, `numeric_condition`, at 0004d985:
    /// `properties->>field` is `^-?\d+(\.\d+)?$`. A number in JSON is plain digits by then.
    pub fn of_json(value: &RawValue) -> Result<Self, NotANumber> {
        let text = value.get();
        if text.starts_with('"') {
            let text: String = serde_json::from_str(text).map_err(|_| NotANumber)?;
            return if is_plain(&text) { text.parse() } else { Err(NotANumber) };
        }
        text.parse()
    }

    /// Zero.
    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    /// Below zero.
    pub fn is_negative(&self) -> bool {
        self.0.sign() == Sign::Minus
    }

    /// One for every event.
    pub fn whole(count: u64) -> Self {
        Self(BigDecimal::from(BigInt::from(count)))
    }

    /// How far the two are apart.
    #[must_use]
    pub fn distance(&self, other: &Self) -> Self {
        Self((&self.0 - &other.0).abs())
    }

    /// As a floating-point number, for metrics only.
    pub fn to_f64(&self) -> f64 {
        use bigdecimal::ToPrimitive as _;
        self.0.to_f64().unwrap_or(f64::NAN)
    }
}

/// Whether a text is `-?\d+(\.\d+)?`.
fn is_plain(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    text.split_once('.').map_or_else(|| digits(text), |(whole, fraction)| digits(whole) && digits(fraction))
}

impl std::ops::AddAssign<&Self> for Quantity {
    fn add_assign(&mut self, other: &Self) {
        self.0 += &other.0;
    }
}

impl std::ops::SubAssign<&Self> for Quantity {
    fn sub_assign(&mut self, other: &Self) {
        self.0 -= &other.0;
    }
}

impl FromStr for Quantity {
    type Err = NotANumber;

    fn from_str(text: &str) -> Result<Self, NotANumber> {
        let digits = text.bytes().any(|b| b.is_ascii_digit());
        let fits = text.len() <= LONGEST
            && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
        if !digits || !fits {
            return Err(NotANumber);
        }
        let number = BigDecimal::from_str(text).map_err(|_| NotANumber)?;
        if number.fractional_digit_count().unsigned_abs() > LARGEST_EXPONENT {
            return Err(NotANumber);
        }
        Ok(Self(number))
    }
}

/// As a text, in plain digits: a JSON number would be cut off by whoever reads it as floating point.
impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What was serialized: sums may have more digits than what a producer may send.
impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = Some(&text).filter(|text| text.len() <= LONGEST_SUM && !text.contains(['e', 'E']));
        let number = number.and_then(|text| BigDecimal::from_str(text).ok());
        number.map(Self).ok_or_else(|| serde::de::Error::custom(NotANumber))
    }
}

/// In plain digits, without zeros at the end of a fraction.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.normalized().to_plain_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn json(text: &str) -> Result<String, NotANumber> {
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        Quantity::of_json(raw).map(|quantity| quantity.to_string())
    }

    #[test]
    fn numbers_and_texts_that_hold_one_are_quantities() {
        for (text, expected) in [
            ("1", "1"),
            ("-0.50", "-0.5"),
            ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
            ("1e3", "1000"),
            ("12.5E-3", "0.0125"),
            ("\"7.25\"", "7.25"),
            ("\"-007.0\"", "-7"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("0", "0"),
            ("100", "100"),
        ] {
            assert_eq!(json(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_number_or_too_large_to_add_is_refused() {
        for text in
            ["\"\"", "\"a\"", "null", "true", "{}", "[]", "\"1,5\"", "\"1_000\"", "\"NaN\"", "\"e\"", "\"0x10\""]
        {
            assert_eq!(json(text), Err(NotANumber), "{text}");
        }
        // Lago reads them as numbers and leaves their events out all the same.
        for text in ["1e3", "+5", ".5", "5.", " 5 ", "5\\n", "-", "-.5", "1.2.3", "--1", "1E0", "٣"] {
            assert_eq!(json(&format!("\"{text}\"")), Err(NotANumber), "{text}");
        }
        for text in
            ["1e101", "1e-101", "1e999999999", "1e-999999999", "1e9223372036854775808", "1e-9223372036854775807"]
        {
            assert_eq!(json(text), Err(NotANumber), "{text}");
        }
        assert_eq!("1".repeat(101).parse::<Quantity>(), Err(NotANumber));
    }

    #[test]
    fn a_sum_is_kept_with_more_digits_than_a_producer_may_send() {
        let mut sum: Quantity = "1e99".parse().unwrap();
        sum += &"1e-99".parse().unwrap();
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Quantity>(&text).unwrap(), sum);
        for wrong in ["\"1e5\"", "\"x\"", "1", "\"\""] {
            assert!(serde_json::from_str::<Quantity>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sums_are_exact() {
        let mut sum = Quantity::default();
        for _ in 0..10 {
            sum += &"0.1".parse().unwrap();
        }
        assert_eq!(sum, Quantity::whole(1));
        sum += &"1e20".parse().unwrap();
        sum += &"0.000000000000000001".parse().unwrap();
        assert_eq!(sum.to_string(), "100000000000000000001.000000000000000001");
        sum -= &"1e20".parse().unwrap();
        assert_eq!(sum.distance(&Quantity::whole(2)).to_string(), "0.999999999999999999");
    }
}
