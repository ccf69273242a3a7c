//! JSON as Python's `json.dumps` writes it where nothing else is said, which is how `requests` sends it: a space after each
//! comma and colon, everything beyond ASCII escaped. And the sanitiser that a mapping's result goes through before.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// The text of a value.
pub(super) fn dumps(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value);
    text
}

fn write_value(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => write_number(text, number),
        Value::String(string) => write_string(text, string),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_value(text, item);
            }
            text.push(']');
        }
        Value::Object(members) => {
            let texts = stored_order(members).into_iter().map(|(name, member)| (name.as_str(), dumps(member)));
            text.push_str(&object(texts));
        }
    }
}

/// An object whose members are texts already, in this order.
pub(super) fn object<'a>(members: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut text = String::from("{");
    for (index, (name, member)) in members.into_iter().enumerate() {
        text.push_str(if index > 0 { ", " } else { "" });
        write_string(&mut text, name);
        text.push_str(": ");
        text.push_str(&member);
    }
    text.push('}');
    text
}

/// A text.
pub(super) fn text(string: &str) -> String {
    let mut text = String::new();
    write_string(&mut text, string);
    text
}

/// The order in which PostgreSQL's `jsonb` gives the members of an object back: shorter names first.
fn stored_order(members: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by_key(|(name, _)| (name.len(), *name));
    members
}

/// `repr` of a float has a sign and two digits in its exponent at least.
fn write_number(text: &mut String, number: &Number) {
    let plain = number.as_f64().filter(|_| number.is_f64()).map(|float| format!("{float:?}"));
    let plain = plain.unwrap_or_else(|| number.to_string());
    match plain.split_once('e') {
        None => text.push_str(&plain),
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            let _ = write!(text, "{digits}e{sign}{exponent:0>2}");
        }
    }
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text.push('"');
}

/// What the sanitiser makes of a value: items of lists that Python takes for false are dropped.
///
/// Source: goauthentik/authentik `authentik/events/utils.py` (`sanitize_item`) at 2026.2.2.
pub(super) fn sanitised(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(sanitised).filter(is_true).collect()),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(name, member)| (name.clone(), sanitised(member))).collect())
        }
        other => other.clone(),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(string) => !string.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// `repr` of what JSON can say, as the default text of a notification has it.
pub(super) fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(_) => dumps(value),
        Value::String(string) => {
            let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
            let mut text = String::from(quote);
            for character in string.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '\n' => text.push_str("\\n"),
                    '\r' => text.push_str("\\r"),
                    '\t' => text.push_str("\\t"),
                    _ if character == quote => {
                        text.push('\\');
                        text.push(character);
                    }
                    '\0'..='\u{1f}' | '\u{7f}'..='\u{a0}' => {
                        let _ = write!(text, "\\x{:02x}", u32::from(character));
                    }
                    _ => text.push(character),
                }
            }
            text.push(quote);
            text
        }
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let pair =
                |(name, member): (&String, &Value)| format!("{}: {}", repr(&Value::String(name.clone())), repr(member));
            format!("{{{}}}", stored_order(members).into_iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}
