//! From a tree of values to the types, past every mistake in it.

use figment::error::Kind;
use figment::value::{Dict, Value};

use super::reading::from_values;
use super::{Groups, Section, Source, looks_secret, variable};

/// Extracts, and on an error takes the offending value out and extracts again, until it works.
pub(super) fn extract<T: Section>(
    tree: &mut Dict,
    source: &Source,
    (known, groups): (&Value, &Groups),
    lines: &mut Vec<String>,
) -> T {
    // Every round removes one value; a tree has far fewer.
    for _ in 0..10_000 {
        let error = match from_values::<T>(&Value::from(groups.close(tree))) {
            Ok(config) => return config,
            Err(error) => error,
        };
        let mut place = groups.place(&error.path).to_vec();
        if let Some((list, message)) = mend_element(tree, &place, &error.kind) {
            lines.push(format!("{}: {message}", variable(&list.join("."), &source.well_known)));
            continue;
        }
        // A value of a list is mended where the list is.
        place.truncate(names(&place));
        if let Kind::UnknownField(name, _) = &error.kind
            && place.last() != Some(name)
        {
            place.push(name.clone());
        }
        let message = match &error.kind {
            Kind::UnknownField(..) => unknown(&place, known),
            kind => wrong(kind, &place),
        };
        lines.push(format!("{}: {message}", variable(&place.join("."), &source.well_known)));
        if place.is_empty() || !remove(tree, &place) {
            // Nothing to take out: the rest cannot be looked at.
            return T::default();
        }
    }
    T::default()
}

/// How much of a place is names of settings, before the first position in a list.
fn names(place: &[String]) -> usize {
    place.iter().take_while(|part| part.parse::<usize>().is_err()).count()
}

/// Takes a wrong setting out of an element of a list of sections, so that its other settings and the other elements are
/// looked at as well. Where the list is, and what to say; `None` where the mistake is no setting of an element.
fn mend_element(tree: &mut Dict, place: &[String], kind: &Kind) -> Option<(Vec<String>, String)> {
    let (list, rest) = place.split_at(names(place));
    let (number, within) = rest.split_first()?;
    let number: usize = number.parse().ok()?;
    let element = element(tree, list, number)?;
    let name = element.get("name").and_then(Value::as_str).map(|name| format!(" ({name})")).unwrap_or_default();
    // One of `rules` is a rule.
    let label = format!("{} {}{name}", list.last()?.trim_end_matches('s'), number + 1);
    let mut within = within[..names(within)].to_vec();
    let message = match kind {
        Kind::UnknownField(field, expected) => {
            if within.last() != Some(field) {
                within.push(field.clone());
            }
            let shown = within.join(".");
            match nearest(expected.iter().copied(), field) {
                Some(near) => format!("{label}: {shown} is not a setting, did you mean {near}?"),
                None => format!("{label}: {shown} is not a setting"),
            }
        }
        kind => format!("{label}: {}: {}", within.join("."), wrong(kind, &within)),
    };
    (!within.is_empty() && remove(element, &within)).then(|| (list.to_vec(), message))
}

/// The section that is element `number` of a list.
fn element<'a>(tree: &'a mut Dict, list: &[String], number: usize) -> Option<&'a mut Dict> {
    let (last, parents) = list.split_last()?;
    let mut tree = tree;
    for parent in parents {
        let Value::Dict(_, inner) = tree.get_mut(parent)? else { return None };
        tree = inner;
    }
    let Value::Array(_, elements) = tree.get_mut(last)? else { return None };
    match elements.get_mut(number)? {
        Value::Dict(_, element) => Some(element),
        _ => None,
    }
}

/// What is wrong with a value.
fn wrong(kind: &Kind, path: &[String]) -> String {
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) if looks_secret(path) => {
            format!("must be {expected}")
        }
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("found {found}, must be {expected}")
        }
        Kind::UnknownVariant(found, expected) => format!("{found:?} is not one of {}", expected.join(", ")),
        kind => kind.to_string(),
    }
}

/// Takes the value at `path` out; where the path leads into an array, the array.
fn remove(tree: &mut Dict, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return tree.remove(first).is_some();
    }
    match tree.get_mut(first) {
        Some(Value::Dict(_, inner)) => remove(inner, rest) || tree.remove(first).is_some(),
        Some(_) => tree.remove(first).is_some(),
        None => false,
    }
}

fn unknown(path: &[String], known: &Value) -> String {
    let (Some(name), parents) = (path.last(), &path[..path.len() - 1]) else { return "is not a setting".to_owned() };
    let mut siblings = known;
    for parent in parents {
        match siblings.as_dict().and_then(|dict| dict.get(parent)) {
            Some(value) => siblings = value,
            None => return "is not a setting".to_owned(),
        }
    }
    let keys = siblings.as_dict().into_iter().flat_map(Dict::keys);
    match nearest(keys.map(String::as_str), name) {
        Some(key) => {
            let mut path = parents.to_vec();
            path.push(key.to_owned());
            format!("is not a setting, did you mean {}?", variable(&path.join("."), &[]))
        }
        None => "is not a setting".to_owned(),
    }
}

/// The one of these that a name was most likely meant to be.
fn nearest<'a>(known: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    let (distance, nearest) = known.map(|known| (distance(known, name), known)).min()?;
    (distance * 2 < nearest.len()).then_some(nearest)
}

/// Levenshtein distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(0)
}
