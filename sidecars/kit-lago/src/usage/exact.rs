//! Numbers on their way through Lago: Rails reads a JSON number with a fraction or an exponent as floating point, and what
//! does not survive that is billed with other digits. A text arrives as it is, and is counted as a number all the same.
//!
//! Source: rails/rails `activesupport/lib/active_support/json/decoding.rb` at 7.1: `JSON.parse`, which makes a `Float`;
//! integers of any size stay what they are.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::event::read_properties;
use super::quantity::{LONGEST, Quantity};

/// So many digits survive in any decimal.
const SURE_DIGITS: usize = 15;

/// The object with such numbers as texts in plain digits, and every other byte as it was; `None` where there are none. Only
/// of its own values: nothing deeper is counted.
pub(super) fn exact(object: &RawValue) -> Option<Box<RawValue>> {
    let json = object.get();
    if !may_hold_one(json) {
        return None;
    }
    let begin = json.as_ptr().addr();
    // The values are parts of the object's own text.
    let place = |value: &RawValue| value.get().as_ptr().addr().checked_sub(begin);
    let values = read_properties(object)?;
    let texts: BTreeMap<usize, (usize, String)> =
        values.values().filter_map(|value| Some((place(value)?, (value.get().len(), text_of(value.get())?)))).collect();
    let (mut all, mut written) = (String::with_capacity(json.len() + 2 * texts.len()), 0);
    for (place, (length, text)) in &texts {
        all.push_str(json.get(written..*place)?);
        all.push('"');
        all.push_str(text);
        all.push('"');
        written = place + length;
    }
    all.push_str(json.get(written..)?);
    if texts.is_empty() { None } else { RawValue::from_string(all).ok() }
}

/// Whether it is worth while to look: a run of so many digits, or an exponent.
fn may_hold_one(json: &str) -> bool {
    let mut digits = 0;
    json.bytes().any(|byte| {
        let had_digits = digits > 0;
        match byte {
            b'0'..=b'9' => digits += 1,
            b'.' => {}
            _ => digits = 0,
        }
        digits > SURE_DIGITS || (had_digits && matches!(byte, b'e' | b'E'))
    })
}

/// The digits of a number that floating point would change; `None` for every other value, and for one that no metric could
/// count.
fn text_of(value: &str) -> Option<String> {
    let is_decimal = value.starts_with(|c: char| c == '-' || c.is_ascii_digit()) && value.contains(['.', 'e', 'E']);
    let exact: Quantity = value.parse().ok().filter(|_| is_decimal)?;
    let float: f64 = value.parse().ok()?;
    // The shortest digits that are this float, as Ruby writes it too.
    let survives = float.is_finite() && format!("{float}").parse() == Ok(exact.clone());
    let text = exact.to_string();
    (!survives && text.len() <= LONGEST).then_some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn exact_of(json: &str) -> Option<String> {
        exact(serde_json::from_str(json).unwrap()).map(|object| object.get().to_owned())
    }

    #[test]
    fn decimals_that_floating_point_would_change_become_texts_and_nothing_else_changes() {
        for (json, expected) in [
            (r#"{"gb": 0.10000000000000000001 , "n":1}"#, r#"{"gb": "0.10000000000000000001" , "n":1}"#),
            (r#"{"a":1.5,"gb":-12345678901234567.25}"#, r#"{"a":1.5,"gb":"-12345678901234567.25"}"#),
            (r#"{"b":1e-7,"a":1.23456789012345678901e3}"#, r#"{"b":1e-7,"a":"1234.56789012345678901"}"#),
            (r#"{"a":9007199254740993.0}"#, r#"{"a":"9007199254740993"}"#),
            (
                r#"{"a":0.30000000000000004441,"b":0.30000000000000004}"#,
                r#"{"a":"0.30000000000000004441","b":0.30000000000000004}"#,
            ),
        ] {
            assert_eq!(exact_of(json).as_deref(), Some(expected), "{json}");
            assert_eq!(exact_of(expected), None, "it stays so");
        }
    }

    #[test]
    fn what_survives_or_is_no_counted_number_stays_as_it_is() {
        for json in [
            "{}",
            r#"{"gb":0.1,"n":123456789012345678901234567890,"m":1e22,"z":0.0e5,"k":-0.00}"#,
            r#"{"gb":"0.10000000000000000001","deep":{"gb":0.10000000000000000001},"list":[0.10000000000000000001]}"#,
            r#"{"a":1234567890.12345,"b":1e300,"c":1e-300,"id":"1e3-4f5e-6789012345678901"}"#,
            r#"{"a":1e-90,"b":1.00000000000000000001e-90}"#,
        ] {
            assert_eq!(exact_of(json), None, "{json}");
        }
    }
}
