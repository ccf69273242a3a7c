//! Alert rules: what each has to say, and that it fires when it must.

use std::collections::BTreeSet;

use crate::files::{self, Rule, missing_page, rules};
use crate::tools::run;

/// What is missing in a rule.
fn wrong(rule: &Rule) -> Vec<String> {
    let mut wrong = Vec::new();
    if rule.hold.is_none() {
        wrong.push("add for: what comes and goes within a moment is no alert".to_owned());
    }
    if !matches!(rule.severity.as_deref(), Some("critical" | "warning")) {
        wrong.push("severity must be critical or warning".to_owned());
    }
    if !rule.summary.contains("$value") {
        wrong.push("its summary does not say the value".to_owned());
    }
    wrong.extend(missing_page(&rule.runbook));
    wrong.iter().map(|message| format!("{}: {message}", rule.name)).collect()
}

#[test]
fn every_alert_says_how_bad_how_long_how_much_and_what_to_do() {
    let rules = rules();

    let found: Vec<String> = rules.iter().flat_map(wrong).collect();

    assert!(rules.len() > 25, "only {} rules were read", rules.len());
    assert!(found.is_empty(), "{}", found.join("\n"));
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names.len(), rules.len(), "two alerts have one name");

    let bare = Rule {
        name: "Bare".to_owned(),
        expr: "up == 0".to_owned(),
        hold: None,
        severity: None,
        summary: "it is down".to_owned(),
        runbook: "docs/runbooks/disk-full.md#nothing-of-the-kind".to_owned(),
    };
    assert_eq!(wrong(&bare).len(), 4, "{:?}", wrong(&bare));
}

/// Who looks for an alert finds it on the page that says what is watched.
#[test]
fn every_alert_is_explained_in_the_page_about_monitoring() {
    let page = files::read("docs/monitoring.md");

    let missing: Vec<String> =
        rules().into_iter().map(|rule| rule.name).filter(|name| !page.contains(&format!("| `{name}` |"))).collect();

    assert!(missing.is_empty(), "docs/monitoring.md does not have {missing:?}");
}

#[test]
fn promtool_takes_rules_and_configuration() {
    for path in files::in_folder("config/prometheus/rules", ".yml") {
        let (ok, said) = run("promtool", &["check", "rules", &files::name(&path)]);
        assert!(ok, "{said}");
    }
    let (ok, said) = run("promtool", &["check", "config", "--syntax-only", "config/prometheus/prometheus.yml"]);
    assert!(ok, "{said}");
}

/// The unit tests in `rules/`: for each alert a moment at which it fires and one at which it does not.
#[test]
fn every_alert_fires_when_it_must_and_is_silent_when_not() {
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for path in files::in_folder("tests/monitoring/rules", ".yml") {
        let name = files::name(&path);
        let (ok, said) = run("promtool", &["test", "rules", &name]);
        assert!(ok, "{name}: {said}");
        let file = files::yaml(&name);
        let tests = file["tests"].as_array().unwrap().iter();
        for test in tests.flat_map(|test| test["alert_rule_test"].as_array().unwrap()) {
            let alert = test["alertname"].as_str().unwrap().to_owned();
            let expected = test["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
            if expected {
                fires.insert(alert)
            } else {
                silent.insert(alert)
            };
        }
    }
    let all: BTreeSet<String> = rules().into_iter().map(|rule| rule.name).collect();
    assert_eq!(all.difference(&fires).collect::<Vec<_>>(), Vec::<&String>::new(), "never shown to fire");
    assert_eq!(all.difference(&silent).collect::<Vec<_>>(), Vec::<&String>::new(), "never shown to be silent");
    assert_eq!(fires.difference(&all).collect::<Vec<_>>(), Vec::<&String>::new(), "no such alert");
}
