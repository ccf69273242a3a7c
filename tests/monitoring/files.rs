//! The files under test, read.

use std::path::{Path, PathBuf};

use outrigger_tests::binaries::repository;
use serde_json::Value;

/// A file of the repository.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A YAML file of the repository.
pub(crate) fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of a folder of the repository with this ending, in order.
pub(crate) fn in_folder(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(repository().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.to_string_lossy().ends_with(ending));
    found.sort();
    found
}

/// As the repository names it.
pub(crate) fn name(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

/// An alert rule.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) expr: String,
    pub(crate) hold: Option<String>,
    pub(crate) severity: Option<String>,
    pub(crate) summary: String,
    pub(crate) runbook: String,
}

/// All alert rules.
pub(crate) fn rules() -> Vec<Rule> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut rules = Vec::new();
    for path in in_folder("config/prometheus/rules", ".yml") {
        let file = yaml(&name(&path));
        for rule in file["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
            rules.push(Rule {
                name: text(&rule["alert"]),
                expr: text(&rule["expr"]),
                hold: rule["for"].as_str().map(str::to_owned),
                severity: rule["labels"]["severity"].as_str().map(str::to_owned),
                summary: text(&rule["annotations"]["summary"]),
                runbook: text(&rule["annotations"]["runbook"]),
            });
        }
    }
    rules
}

/// Why a page, or the section that is named after `#`, is not there.
pub(crate) fn missing_page(page: &str) -> Option<String> {
    let (path, section) = page.split_once('#').unwrap_or((page, ""));
    if !path.starts_with("docs/runbooks/") || !repository().join(path).is_file() {
        return Some(format!("there is no page {path}"));
    }
    // As forges make anchors of headings.
    let anchor = |heading: &str| -> String {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.trim().replace(' ', "-")
    };
    let text = read(path);
    let found = section.is_empty()
        || text
            .lines()
            .filter(|line| line.starts_with('#'))
            .any(|line| anchor(line.trim_start_matches('#')) == section);
    (!found).then(|| format!("{path} has no section {section}"))
}
