#![allow(clippy::unwrap_used)]
use kit::clock::Timestamp;
use kit_journal::{EventHead, EventId};
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Holder {
    rule: Vec<RuleSection>,
}

fn sections(text: &str) -> Vec<RuleSection> {
    toml::from_str::<Holder>(&format!("rule = [{{ {text} }}]")).unwrap().rule
}

const START: &str = r#"name="a", workflow_type="W", task_queue="q""#;

#[test]
fn a_rule_says_what_its_action_needs_and_nothing_else() {
    let check = |text: &str, expected: &str| {
        let mistakes = Rules::compile(&sections(text)).map(drop).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
        assert!(mistakes[0].starts_with("rule 1 (a): ") && mistakes[0].contains(expected), "{mistakes:?}");
    };
    check(r#"name="a", workflow_type="W""#, "task_queue must be set for start");
    check(r#"name="a", action="signal", signal="s""#, "workflow_id must be set for signal");
    check(r#"name="a", action="signal", workflow_id="w""#, "signal must be set for signal");
    check(
        r#"name="a", action="cancel", workflow_id="w", task_queue="q""#,
        "task_queue is for start and signal_with_start",
    );
    check(r#"name="a", action="ignore", workflow_id="w""#, "workflow_id is for everything but ignore");
    check(&format!(r#"{START}, signal="s""#), "signal is for signal and signal_with_start");
    check(&format!(r#"{START}, on_missing="retry""#), "on_missing is for signal, cancel and terminate");
    check(r#"name="a", action="terminate", workflow_id="x-{id}""#, "which no workflow has had before");
    check(&format!(r#"{START}, workflow_id="a/b""#), "must not hold a slash");
    check(&format!(r#"{START}, workflow_id="{{nothing}}""#), "{nothing} is not one of {id}");
    check(&format!(r#"{START}, workflow_id="{}""#, "x".repeat(256)), "longer than 255 bytes");
    check(&format!(r#"{START}, workflow_id="{{tenant}}{{key}}""#), "must have a separator");
    check(&format!(r#"{START}, reuse="allow_duplicate""#), "reuse must be reject_duplicate: workflow_id has {id}");
    check(&format!(r#"{START}, on_conflict="ignore""#), "on_conflict is for ids that several events may have");
    check(&format!(r#"{START}, workflow_id="w", conflict="terminate_existing""#), "needs reuse = \"allow_duplicate\"");
    check(&format!(r#"{START}, input="data", transform=".data""#), "input and transform are both set");
    check(&format!("{START}, run_timeout_seconds=0"), "run_timeout_seconds must be a number of seconds above 0");
    check(&format!("{START}, retry={{ backoff=0.5 }}"), "retry.backoff must be");
    check(&format!(r#"{START}, memo={{ m="{{" }}"#), "memo.m has a { without its }");
    check(&format!(r#"{START}, namespace="a b""#), "namespace must be the name of a namespace");
    let swallow =
        r#"name="a", action="signal_with_start", workflow_id="w", workflow_type="W", task_queue="q", signal="s""#;
    check(&format!(r#"{swallow}, on_conflict="signal""#), "has signalled what runs");
    check(&format!(r#"{swallow}, conflict="use_existing""#), "conflict is for start");
}

#[test]
fn every_mistake_of_every_rule_is_told_at_once() {
    let wrong: Vec<RuleSection> = ["", r#"name="b", types=["[x]"], workflow_type="{", task_queue="q""#]
        .iter()
        .flat_map(|text| sections(text))
        .collect();

    let mistakes = Rules::compile(&wrong).map(drop).unwrap_err();

    for expected in
        ["rule 1 (): name must be", "rule 1 (): workflow_type", "rule 2 (b): type", "rule 2 (b): workflow_type has"]
    {
        assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{expected}: {mistakes:?}");
    }
}

#[test]
fn good_rules_are_no_mistake() {
    for good in [
        START.to_owned(),
        format!(r#"{START}, workflow_id="w-{{key}}", on_conflict="signal", signal="s", signal_input="none""#),
        format!(r#"{START}, workflow_id="w", reuse="allow_duplicate", conflict="terminate_existing""#),
        r#"name="a", action="ignore""#.to_owned(),
        r#"name="a", action="cancel", workflow_id="w-{data.a}", on_missing="ignore", reason="{type}""#.to_owned(),
    ] {
        assert!(Rules::compile(&sections(&good)).is_ok(), "{good}");
    }
}

#[test]
fn the_first_rule_that_matches_is_applied() {
    let mut rules = sections(r#"name="ignored", types=["a.test"], action="ignore""#);
    rules.extend(sections(&format!(r#"{START}, types=["a.*"], when=[{{ field="data.n", equals=1 }}]"#)));
    rules.extend(sections(r#"name="rest", types=["a.*"], workflow_type="W", task_queue="other""#));
    let rules = Rules::compile(&rules).unwrap();
    let name = |kind: &str, body: &str| {
        let head = EventHead { json: true, ..EventHead::new(EventId::derive("s", "k", None), "s", kind, "x", "k") };
        let event = StoredEvent { seq: 1, at: Timestamp::default(), head, body: body.as_bytes().to_vec().into() };
        match rules.find(&event, |_| None) {
            Found::Rule(rule) => rule.name().to_owned(),
            other => format!("{other:?}"),
        }
    };

    assert_eq!(name("a.test", "{}"), "ignored");
    assert_eq!(name("a.b", r#"{"n":1}"#), "a");
    assert_eq!(name("a.b", r#"{"n":2}"#), "rest");
    assert_eq!(name("b", "{}"), "None");
    let queues = ["q", "other"].map(|queue| ("own".to_owned(), queue.to_owned()));
    assert_eq!(rules.task_queues("own"), queues);
}

#[test]
fn the_cookbook_holds_good_rules() {
    let page = include_str!("../../../../../docs/sidecars/temporal-event-bridge.md");
    let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let recipes: Vec<&str> = blocks.filter(|block| block.contains("[[rule]]")).collect();

    assert!(recipes.len() >= 4, "{recipes:?}");
    for recipe in recipes {
        let rules = toml::from_str::<Holder>(recipe).unwrap().rule;
        assert!(Rules::compile(&rules).is_ok(), "{:?}\n{recipe}", Rules::compile(&rules).map(drop));
    }
}

/// A queue of another namespace is watched there, and nobody else's is in its place.
#[test]
fn task_queues_are_told_with_their_namespace() {
    let rule = |name: &str, namespace: Option<&str>, queue: &str| RuleSection {
        name: name.to_owned(),
        namespace: namespace.map(str::to_owned),
        workflow_type: Some("W".to_owned()),
        task_queue: Some(queue.to_owned()),
        ..RuleSection::default()
    };
    let sections = [rule("a", None, "here"), rule("b", Some("other"), "there"), rule("c", None, "for-{type}")];

    let queues = Rules::compile(&sections).unwrap().task_queues("own");

    let pair = |namespace: &str, queue: &str| (namespace.to_owned(), queue.to_owned());
    assert_eq!(queues, [pair("own", "here"), pair("other", "there")]);
}

#[test]
fn two_rules_of_one_name_are_told_as_rules() {
    let one = sections(START).remove(0);
    let mistakes = Rules::compile(&[one.clone(), one]).map(drop).unwrap_err();
    assert_eq!(mistakes, ["rule 2 (a): has the name of another rule"]);
}
