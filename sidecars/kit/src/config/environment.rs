//! Variables into a tree. The *type of the default* at a path decides how a text is read, so that a
//! key of digits stays a text and a number with a typing error is reported as one.

use figment::value::{Dict, Num, Value};

use super::{PREFIX, Source};

/// Variables with our prefix that belong to the compose files.
const NOT_OURS: [&str; 2] = ["SIDECAR_REGISTRY", "SIDECAR_TAG"];
/// Variables that steer the start itself.
const ARGUMENTS: [&str; 1] = ["SIDECAR_CONFIG"];

pub(super) fn read(source: &Source, known: &Value, lines: &mut Vec<String>) -> Dict {
    let mut tree = Dict::new();
    let mut named: Vec<(String, String, String)> = Vec::new();
    for (name, value) in &source.env {
        // An empty variable is what compose makes of an unset one.
        if value.is_empty() || NOT_OURS.contains(&name.as_str()) || ARGUMENTS.contains(&name.as_str()) {
            continue;
        }
        let path = match source.well_known.iter().find_map(|known| known.path_of(name)) {
            Some(path) => path,
            None => match name.strip_prefix(PREFIX) {
                Some(rest) if !rest.is_empty() => rest.to_lowercase().replace("__", "."),
                _ => continue,
            },
        };
        named.push((path, name.clone(), value.clone()));
    }
    // A stable order: what wins must not depend on the operating system.
    named.sort();
    for (at, (path, name, value)) in named.iter().enumerate() {
        if let Some((_, other, _)) = named[..at].iter().find(|(p, _, v)| p == path && v != value) {
            lines.push(format!("{name}: is set differently from {other}, which means the same; keep one"));
            continue;
        }
        let parts: Vec<&str> = path.split('.').collect();
        if parts.iter().any(|part| part.is_empty()) {
            lines.push(format!("{name}: is not a setting"));
            continue;
        }
        let default = parts.iter().try_fold(known, |value, part| value.as_dict()?.get(*part));
        if matches!(default, Some(Value::Dict(..))) {
            lines.push(format!("{name}: is a section and not a setting; its settings are {name}__…"));
            continue;
        }
        insert(&mut tree, &parts, typed(value, default));
    }
    tree
}

fn insert(tree: &mut Dict, path: &[&str], value: Value) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        tree.insert((*first).to_owned(), value);
        return;
    }
    let inner = tree.entry((*first).to_owned()).or_insert_with(|| Value::from(Dict::new()));
    if !matches!(inner, Value::Dict(..)) {
        *inner = Value::from(Dict::new());
    }
    if let Value::Dict(_, inner) = inner {
        insert(inner, rest, value);
    }
}

fn typed(text: &str, default: Option<&Value>) -> Value {
    let trimmed = text.trim();
    match default {
        Some(Value::Num(_, number)) => parse_number(trimmed, number).unwrap_or_else(|| Value::from(text)),
        Some(Value::Bool(..)) => match trimmed.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Value::from(true),
            "false" | "0" | "no" | "off" => Value::from(false),
            _ => Value::from(text),
        },
        Some(Value::Array(_, elements)) => list(trimmed, elements.first()),
        _ => Value::from(text),
    }
}

/// A list as a variable has it, a TOML array or values separated by commas, which are read as `element` is. What begins as
/// an array and is none stays the text that it is.
pub fn list(text: &str, element: Option<&Value>) -> Value {
    let text = text.trim();
    if text.starts_with('[') {
        #[derive(serde::Deserialize)]
        struct Holder {
            value: Value,
        }
        return match toml::from_str::<Holder>(&format!("value = {text}")) {
            Ok(holder) => holder.value,
            Err(_) => Value::from(text),
        };
    }
    let values: Vec<Value> = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| match element {
            Some(Value::Num(_, number)) => parse_number(part, number).unwrap_or_else(|| Value::from(part)),
            _ => Value::from(part),
        })
        .collect();
    Value::from(values)
}

/// A list of texts, as [`list`] reads it; none where it is no array, or has something else in it.
pub fn texts(text: &str) -> Option<Vec<String>> {
    list(text, None).as_array()?.iter().map(|element| element.as_str().map(str::to_owned)).collect()
}

fn parse_number(text: &str, like: &Num) -> Option<Value> {
    let float = matches!(like, Num::F32(_) | Num::F64(_));
    if !float && let Ok(number) = text.parse::<u64>() {
        return Some(Value::from(number));
    }
    if !float && let Ok(number) = text.parse::<i64>() {
        return Some(Value::from(number));
    }
    text.parse::<f64>().ok().map(Value::from)
}
