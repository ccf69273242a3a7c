//! Variables: what the files ask for and what `.env.example` explains.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Project};
use crate::project::{self, example};

/// Read by compose itself, not by the files.
const COMPOSE: &[&str] = &["COMPOSE_PROJECT_NAME", "COMPOSE_FILE", "COMPOSE_PROFILES"];

pub(crate) fn look(project: &Project<'_>, findings: &mut Vec<Finding>) {
    let mut find = |file: &str, rule, message: String| {
        findings.push(Finding { file: file.to_owned(), service: String::new(), rule, message });
    };
    let known = example(project.example);
    let mut used = BTreeSet::new();
    let mut defaults: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for file in project.files {
        for (name, default) in project::variables(&file.text) {
            used.insert(name);
            match known.iter().find(|variable| variable.name == name) {
                None => find(
                    &file.name,
                    "explained",
                    format!("${{{name}}} is not in .env.example: add it with what it does"),
                ),
                Some(variable) if !variable.explained => {
                    find(".env.example", "explained", format!("{name} has no comment above it: say what it does"));
                }
                Some(variable) if name.ends_with("_VERSION") && default != Some(variable.value) => {
                    let message =
                        format!("{name} is {} here and {} in .env.example", default.unwrap_or(""), variable.value);
                    find(&file.name, "one-default", message);
                }
                Some(_) => {}
            }
            if let Some(default) = default.filter(|_| name.ends_with("_VERSION")) {
                let (other, first) = *defaults.entry(name).or_insert((default, &file.name));
                if other != default {
                    find(&file.name, "one-default", format!("{name} is {default} here and {other} in {first}"));
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    for variable in known {
        if !names.insert(variable.name) {
            find(".env.example", "explained", format!("{} stands there twice: take one out", variable.name));
        }
        if !used.contains(variable.name) && !COMPOSE.contains(&variable.name) {
            find(".env.example", "used", format!("nothing reads {}: take it out", variable.name));
        }
    }
}
