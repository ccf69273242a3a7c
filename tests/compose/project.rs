//! The files of `compose/`, read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use outrigger_tests::binaries::repository;
use serde_json::{Map, Value};

/// The folder with the files.
pub(crate) fn folder() -> PathBuf {
    repository().join("compose")
}

/// A file of it.
pub(crate) fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("compose/{name}: {error}"))
}

/// The names of all compose files, in order.
pub(crate) fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|name| name.ends_with(".yml") && !name.starts_with('.')).collect();
    names.sort();
    names
}

/// A compose file.
#[derive(Debug)]
pub(crate) struct File {
    /// Its name in `compose/`.
    pub(crate) name: String,
    /// Its text, for what the parsed form no longer shows.
    pub(crate) text: String,
    /// What it says, anchors and merge keys resolved.
    pub(crate) value: Map<String, Value>,
}

impl File {
    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong with it as YAML, duplicate keys included.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, String> {
        let value = serde_saphyr::from_str(text).map_err(|error| format!("compose/{name}: {error}"))?;
        Ok(Self { name: name.to_owned(), text: text.to_owned(), value })
    }

    /// The entries of a mapping at the top, by name; a missing one is empty.
    pub(crate) fn section(&self, name: &str) -> BTreeMap<&str, &Value> {
        let section = self.value.get(name).and_then(Value::as_object);
        section.into_iter().flatten().map(|(name, value)| (name.as_str(), value)).collect()
    }
}

/// Variables that a text takes from the environment, with the default beside each: `${NAME}`, `${NAME:-default}`,
/// `${NAME:?message}` and the forms without a colon. `$$` is a dollar sign.
pub(crate) fn variables(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        for (at, _) in line.match_indices("${") {
            if line[..at].ends_with('$') {
                continue;
            }
            let inner = &line[at + 2..];
            let inner = &inner[..inner.find('}').unwrap_or(inner.len())];
            let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
            let (name, rest) = inner.split_at(end);
            let default = rest.strip_prefix(":-").or_else(|| rest.strip_prefix('-'));
            found.push((name, default));
        }
    }
    found
}

/// A text with every variable at its default; what has none is empty.
pub(crate) fn at_defaults(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, inner)) = rest.split_once("${") {
        result.push_str(before);
        let Some((inner, after)) = inner.split_once('}') else { break };
        result.push_str(variables(&format!("${{{inner}}}")).first().and_then(|(_, default)| *default).unwrap_or(""));
        rest = after;
    }
    result + rest
}

/// A variable of `.env.example`.
#[derive(Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
    /// A comment stands above it, or above the block of variables that it belongs to.
    pub(crate) explained: bool,
}

/// The variables of `.env.example`, in order.
pub(crate) fn example(text: &str) -> Vec<Variable<'_>> {
    let mut found = Vec::new();
    let mut explained = false;
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            explained = !comment.trim().is_empty() && !comment.starts_with(" ---");
        } else if let Some((name, value)) = line.split_once('=') {
            found.push(Variable { name, value, explained });
        } else {
            explained = false;
        }
    }
    found
}
