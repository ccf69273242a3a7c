//! Grafana's dashboards: that they are what it provisions, that a person can read them, and what they ask.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::files::{self, missing_page};

/// The folder that Grafana reads at its start.
const FOLDER: &str = "config/grafana/provisioning/dashboards";
/// More is not read by anybody.
const PANELS_AT_MOST: usize = 16;

/// A query, with where it stands and the labels that its legend names.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) from: String,
    pub(crate) expr: String,
    pub(crate) labels: BTreeSet<String>,
}

fn dashboards() -> Vec<(String, Value)> {
    let read = |path: std::path::PathBuf| {
        let name = files::name(&path);
        let value = serde_json::from_str(&files::read(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, value)
    };
    files::in_folder(FOLDER, ".json").into_iter().map(read).collect()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().into_iter().flatten().filter(|panel| panel["type"] != "row")
}

/// The labels of `{{sink}}` and the like.
fn legend_labels(legend: &str) -> BTreeSet<String> {
    legend
        .split("{{")
        .skip(1)
        .filter_map(|rest| rest.split_once("}}"))
        .map(|(label, _)| label.trim().to_owned())
        .collect()
}

/// Everything that dashboards ask Prometheus, with Grafana's variables filled in.
pub(crate) fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for (name, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expr = target["expr"].as_str().unwrap_or_default();
                let expr =
                    expr.replace("$__rate_interval", "10s").replace("$__range", "1m").replace("$__interval", "10s");
                assert!(!expr.contains('$'), "{name}: {expr}: a variable that no test knows");
                let labels = legend_labels(target["legendFormat"].as_str().unwrap_or_default());
                let from = format!("{name}, panel '{}'", panel["title"].as_str().unwrap_or_default());
                queries.push(Query { from, expr, labels });
            }
        }
    }
    queries
}

#[test]
fn dashboards_are_what_grafana_provisions_and_people_read() {
    let sources = files::yaml("config/grafana/provisioning/datasources/outrigger.yml");
    let known: BTreeSet<&str> = sources["datasources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|source| source["uid"].as_str().expect("a uid"))
        .collect();
    let providers = files::yaml(&format!("{FOLDER}/outrigger.yml"));
    assert_eq!(providers["providers"][0]["options"]["path"], "/etc/grafana/provisioning/dashboards");
    assert_eq!(providers["providers"][0]["type"], "file");

    let all = dashboards();
    let mut uids = BTreeSet::new();
    let mut wrong = Vec::new();
    for (name, dashboard) in &all {
        let uid = dashboard["uid"].as_str().unwrap_or_default();
        if uid.is_empty() || uid.len() > 40 || !uids.insert(uid.to_owned()) {
            wrong.push(format!("{name}: the uid '{uid}' is missing, too long or taken"));
        }
        // Grafana numbers what it imports.
        if !dashboard["id"].is_null() || dashboard["title"].as_str().is_none_or(str::is_empty) {
            wrong.push(format!("{name}: id must be null, and there must be a title"));
        }
        let count = panels(dashboard).count();
        if count == 0 || count > PANELS_AT_MOST {
            wrong.push(format!("{name} has {count} panels"));
        }
        let mut ids = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap_or_default();
            let mut find = |message: &str| wrong.push(format!("{name}, panel '{title}': {message}"));
            if !ids.insert(panel["id"].as_u64()) {
                find("its id is missing or taken");
            }
            if panel["type"] == "row" {
                continue;
            }
            let place = &panel["gridPos"];
            if place["x"].as_u64().unwrap_or(99) + place["w"].as_u64().unwrap_or(99) > 24 {
                find("it does not fit in 24 columns");
            }
            if title.is_empty() {
                find("it has no title");
            }
            if panel["datasource"]["uid"].as_str().is_none_or(|uid| !known.contains(uid)) {
                find("its datasource is not provisioned");
            }
            if panel["targets"].as_array().is_none_or(Vec::is_empty) {
                find("it asks nothing");
            }
            if panel["type"] != "table" && panel["fieldConfig"]["defaults"]["unit"].as_str().is_none_or(str::is_empty) {
                find("it has no unit");
            }
            // What can be bad says from where on, and what to do then.
            let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().map_or(0, Vec::len);
            let description = panel["description"].as_str().unwrap_or_default();
            if panel["type"] == "stat" && steps < 2 {
                find("a figure without a threshold does not say whether anything is wrong");
            }
            let pages: Vec<&str> =
                description.split_whitespace().filter(|word| word.starts_with("docs/runbooks/")).collect();
            if steps > 1 && pages.is_empty() {
                find("it has a threshold and does not name the page that says what to do");
            }
            for page in pages {
                if let Some(message) = missing_page(page.trim_end_matches(['.', ',', ';'])) {
                    find(&message);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(uids.contains("outrigger-overview") && all.len() >= 5, "{uids:?}");
}
