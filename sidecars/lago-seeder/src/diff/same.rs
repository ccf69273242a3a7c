//! When two values of Lago's API mean the same.

use std::collections::BTreeSet;

use kit_lago::management::Object;
use serde_json::Value;

/// Fields that are numbers, whether they come as such or as texts.
const NUMBERS: [&str; 6] =
    ["rate", "percentage_rate", "trial_period", "amount_cents", "rounding_precision", "frequency_duration"];

/// Whether a field is as it is wanted. Nothing and an empty text are the same; numbers are compared as numbers, times as
/// times.
pub(super) fn same(name: &str, wanted: &Value, actual: &Value) -> bool {
    match name {
        "properties" => same_properties(wanted, actual),
        "tax_codes" | "event_types" | "plan_codes" | "billable_metric_codes" | "select_options" => {
            texts(wanted) == texts(actual)
        }
        "filters" => same_filters(wanted, actual),
        "applies_to" => {
            let (wanted, actual) = (fields(wanted), fields(actual));
            wanted.iter().all(|(name, value)| same(name, value, actual.get(name).unwrap_or(&Value::Null)))
        }
        "expiration_at" => {
            let time = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            wanted == actual || (time(wanted).is_some() && time(wanted) == time(actual))
        }
        _ if NUMBERS.contains(&name) => same_number(wanted, actual),
        _ => blank(wanted) == blank(actual),
    }
}

/// An empty text is nothing.
fn blank(value: &Value) -> &Value {
    if value.as_str().is_some_and(str::is_empty) { &Value::Null } else { value }
}

fn fields(value: &Value) -> Object {
    value.as_object().cloned().unwrap_or_default()
}

fn texts(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Properties of a charge: decimals are texts that Lago may write otherwise.
fn same_properties(wanted: &Value, actual: &Value) -> bool {
    match (wanted, actual) {
        (Value::Object(wanted), Value::Object(actual)) => {
            let names: BTreeSet<&String> = wanted.keys().chain(actual.keys()).collect();
            names.into_iter().all(|name| {
                let value = |of: &Object| of.get(name).cloned().unwrap_or_default();
                // Newer versions show each of these two where the other one is set.
                let mirror = match name.as_str() {
                    "grouped_by" => "pricing_group_keys",
                    "pricing_group_keys" => "grouped_by",
                    _ => "",
                };
                let is_mirrored = wanted.contains_key(mirror) && !wanted.contains_key(name);
                is_mirrored || same_properties(&value(wanted), &value(actual))
            })
        }
        (Value::Array(wanted), Value::Array(actual)) => {
            wanted.len() == actual.len() && wanted.iter().zip(actual).all(|(one, other)| same_properties(one, other))
        }
        _ => wanted == actual || same_number(wanted, actual),
    }
}

/// Filters of a metric or of a charge, in any order.
fn same_filters(wanted: &Value, actual: &Value) -> bool {
    let (Some(wanted), Some(actual)) = (wanted.as_array(), actual.as_array()) else { return false };
    let is_same = |one: &Value, other: &Value| {
        let of = |value: &Value, name: &str| value.get(name).cloned().unwrap_or_default();
        let values = |value: &Value| match of(value, "values") {
            Value::Array(list) => {
                vec![(String::new(), texts(&Value::Array(list)).into_iter().map(str::to_owned).collect())]
            }
            Value::Object(by_key) => by_key
                .iter()
                .map(|(key, list)| (key.clone(), texts(list).into_iter().map(str::to_owned).collect()))
                .collect(),
            _ => Vec::<(String, BTreeSet<String>)>::new(),
        };
        let name = "invoice_display_name";
        of(one, "key") == of(other, "key")
            && values(one) == values(other)
            && same_properties(&of(one, "properties"), &of(other, "properties"))
            && (one.get(name).is_none() || of(one, name) == of(other, name))
    };
    wanted.len() == actual.len() && wanted.iter().all(|one| actual.iter().any(|other| is_same(one, other)))
}

fn same_number(wanted: &Value, actual: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.trim().to_owned()),
        _ => None,
    };
    let (Some(wanted_text), Some(actual_text)) = (text(wanted), text(actual)) else { return wanted == actual };
    match (digits(&wanted_text), digits(&actual_text)) {
        (Some(wanted), Some(actual)) => wanted == actual,
        // What has an exponent is no text that anybody wrote.
        _ => wanted_text.parse::<f64>().is_ok_and(|wanted| actual_text.parse() == Ok(wanted)),
    }
}

/// A decimal in the one way to write it.
fn digits(text: &str) -> Option<(bool, String, String)> {
    let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !is_plain(whole) || !is_plain(fraction) {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0').to_owned(), fraction.trim_end_matches('0').to_owned());
    let is_zero = whole.is_empty() && fraction.is_empty();
    Some((is_negative && !is_zero, whole, fraction))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(name: &str, wanted: Value, actual: Value, expected: bool) {
        assert_eq!(same(name, &wanted, &actual), expected, "{name}: {wanted} and {actual}");
        if !matches!(name, "applies_to" | "filters") {
            assert_eq!(same(name, &actual, &wanted), expected, "the other way round: {name}: {wanted} and {actual}");
        }
    }

    #[test]
    fn values_are_compared_for_what_they_mean() {
        check("name", json!("1.0"), json!("1"), false);
        check("name", json!("a"), json!("a"), true);
        check("description", json!(""), json!(null), true);
        check("rate", json!(20), json!(20.0), true);
        check("percentage_rate", json!(12.5), json!("12.50"), true);
        check("percentage_rate", json!(12.5), json!("12.51"), false);
        check("amount_cents", json!(4900), json!(4900), true);
        check("amount_cents", json!(0), json!(null), false);
        check("tax_codes", json!(["a", "b"]), json!(["b", "a"]), true);
        check("tax_codes", json!(["a"]), json!([]), false);
        check("expiration_at", json!("2027-01-01T00:00:00Z"), json!("2027-01-01T01:00:00+01:00"), true);
        check("expiration_at", json!("2027-01-01T00:00:00Z"), json!(null), false);
        check("pay_in_advance", json!(false), json!(null), false);
    }

    #[test]
    fn properties_are_compared_to_the_last_digit_and_to_the_last_key() {
        let package = |amount: &str| json!({ "amount": amount, "free_units": 100, "package_size": 1 });
        check("properties", package("0"), package("0.00"), true);
        check("properties", package("0.1"), package("0.10000000000000000001"), false);
        check("properties", package("0"), json!({ "amount": "0", "free_units": "100", "package_size": 1 }), true);
        check("properties", json!({ "amount": "1" }), package("1"), false);
        check("properties", json!({ "amount": "1" }), json!({ "amount": "1", "free_units": null }), true);
        let grouped = json!({ "amount": "1", "pricing_group_keys": ["a"], "grouped_by": ["a"] });
        assert!(same("properties", &json!({ "amount": "1", "grouped_by": ["a"] }), &grouped));
        let ranges =
            |to: u64| json!({ "graduated_ranges": [{ "from_value": 0, "to_value": to, "per_unit_amount": "1" }] });
        check("properties", ranges(10), ranges(10), true);
        check("properties", ranges(10), ranges(11), false);
    }

    #[test]
    fn filters_are_compared_in_any_order() {
        let one = json!([{ "key": "region", "values": ["eu", "us"] }, { "key": "tier", "values": ["a"] }]);
        let other = json!([{ "key": "tier", "values": ["a"] }, { "key": "region", "values": ["us", "eu"] }]);
        check("filters", one.clone(), other, true);
        check("filters", one, json!([{ "key": "region", "values": ["eu"] }]), false);
        let price = |amount: &str| json!([{ "values": { "region": ["eu"] }, "properties": { "amount": amount } }]);
        check("filters", price("1"), price("1.0"), true);
        check("filters", price("1"), price("2"), false);
    }
}
