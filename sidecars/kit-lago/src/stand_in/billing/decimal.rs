//! Exact decimal numbers: enough to add up usage the way Postgres' `numeric` does, without the
//! rounding of floating point. Not a general number type.

use std::cmp::Ordering;
use std::fmt;

/// More digits after the point than this do not occur in usage.
const SCALE_LIMIT: u32 = 36;

/// `mantissa` / 10^`scale`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal {
    mantissa: i128,
    scale: u32,
}

impl Decimal {
    pub(super) const ZERO: Self = Self { mantissa: 0, scale: 0 };

    pub(super) fn from_count(count: u64) -> Self {
        Self { mantissa: i128::from(count), scale: 0 }
    }

    /// Reads `-12.5`, `.5` or `1e3`. Nothing for other texts and for numbers beyond 38 digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (number, exponent) = match text.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (negative, digits) = match number.strip_prefix(['-', '+']) {
            Some(digits) => (number.starts_with('-'), digits),
            None => (false, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let mut mantissa: i128 = 0;
        for digit in whole.chars().chain(fraction.chars()) {
            mantissa = mantissa.checked_mul(10)?.checked_add(i128::from(digit.to_digit(10)?))?;
        }
        let scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
        if negative {
            mantissa = -mantissa;
        }
        Self::scaled(mantissa, scale)
    }

    pub(super) fn checked_add(self, other: Self) -> Option<Self> {
        let scale = self.scale.max(other.scale);
        let sum = self.mantissa_at(scale)?.checked_add(other.mantissa_at(scale)?)?;
        Some(Self { mantissa: sum, scale }.without_trailing_zeros())
    }

    /// This many seconds in microseconds, cut off towards the past.
    pub(super) fn seconds_to_micros(self) -> Option<i64> {
        let divisor = 10_i128.checked_pow(self.scale)?;
        let micros = self.mantissa.checked_mul(1_000_000)?.div_euclid(divisor);
        i64::try_from(micros).ok()
    }

    fn scaled(mantissa: i128, scale: i32) -> Option<Self> {
        if mantissa == 0 {
            return Some(Self::ZERO);
        }
        let decimal = match u32::try_from(scale) {
            Ok(scale) => Self { mantissa, scale }.without_trailing_zeros(),
            Err(_) => {
                let mantissa = mantissa.checked_mul(10_i128.checked_pow(scale.unsigned_abs())?)?;
                Self { mantissa, scale: 0 }
            }
        };
        (decimal.scale <= SCALE_LIMIT).then_some(decimal)
    }

    fn without_trailing_zeros(mut self) -> Self {
        while self.scale > 0 && self.mantissa % 10 == 0 {
            self.mantissa /= 10;
            self.scale -= 1;
        }
        self
    }

    /// The mantissa of the same number with `scale` digits after the point.
    fn mantissa_at(self, scale: u32) -> Option<i128> {
        let more = scale.checked_sub(self.scale)?;
        self.mantissa.checked_mul(10_i128.checked_pow(more)?)
    }
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal {}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let scale = self.scale.max(other.scale);
        match (self.mantissa_at(scale), other.mantissa_at(scale)) {
            (Some(left), Some(right)) => left.cmp(&right),
            // What does not fit at the finer scale is the larger one in size: its sign decides.
            (None, _) => self.mantissa.cmp(&0),
            (_, None) => 0.cmp(&other.mantissa),
        }
    }
}

/// As Ruby's `BigDecimal#to_s('F')`: at least one digit after the point.
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let scale = self.scale as usize;
        let digits = format!("{:0>width$}", self.mantissa.unsigned_abs(), width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let fraction = if fraction.is_empty() { "0" } else { fraction };
        write!(f, "{sign}{whole}.{fraction}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sum(numbers: &[&str]) -> String {
        let parsed = numbers.iter().map(|text| Decimal::parse(text).unwrap());
        parsed.fold(Decimal::ZERO, |sum, number| sum.checked_add(number).unwrap()).to_string()
    }

    #[test]
    fn tenths_add_up_exactly() {
        assert_eq!(sum(&["0.1"; 10]), "1.0");
        assert_eq!(sum(&["0.1", "0.2"]), "0.3");
        assert_eq!(sum(&["12345678901234567890.123456789", "-0.000000001"]), "12345678901234567890.123456788");
        assert_eq!(sum(&["1e3", "2.50E-1", "-.5", "+1"]), "1000.75");
        assert_eq!(sum(&["0.00", "-0"]), "0.0");
        assert_eq!(sum(&["-0.05"]), "-0.05");
    }

    #[test]
    fn what_is_not_a_number_or_too_long_is_not_read() {
        for text in ["", "-", ".", "1_0", "0x1", "1e", "e1", "1.2.3", "Infinity", "1e99", "1e-99", &"9".repeat(40)] {
            assert!(Decimal::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn order_does_not_depend_on_the_way_of_writing() {
        let decimal = |text| Decimal::parse(text).unwrap();

        assert_eq!(decimal("1.50"), decimal("15e-1"));
        assert!(decimal("-2") < decimal("-1.99"));
        assert!(decimal("99999999999999999999999999999999999999") > decimal("0.000000001"));
        assert!(decimal("-99999999999999999999999999999999999999") < decimal("0.000000001"));
        assert!(decimal("0.000000001") < decimal("99999999999999999999999999999999999999"));
    }

    #[test]
    fn seconds_are_cut_off_at_the_microsecond() {
        let micros = |text| Decimal::parse(text).unwrap().seconds_to_micros();

        assert_eq!(micros("1700000000.123"), Some(1_700_000_000_123_000));
        assert_eq!(micros("1.9999999"), Some(1_999_999));
        assert_eq!(micros("-0.0000001"), Some(-1));
        assert_eq!(micros("1e30"), None);
    }
}
