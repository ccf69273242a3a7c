//! The rules of the configuration, compiled: all that is wrong with any of them is found here.

use std::collections::BTreeMap;
use std::time::Duration;

use kit_journal::StoredEvent;
use kit_routes::{Decision, RouteSection, Table, Walk};
use kit_temporal::config::namespace_mistake;

use super::section::{Action, Conflict, Input, OnConflict, OnMissing, Reuse, RuleSection, WorkflowRetrySection};
use crate::template::{ID_BYTES, Template};

/// The only sink that the table of the rules knows.
const TEMPORAL: &str = "temporal";
/// The id of a workflow that its event alone has.
const ONE_AN_EVENT: &str = "{type}:{id}";
/// Longest time that a workflow may be given; what is longer is a mistake of units.
const LONGEST: f64 = 10.0 * 365.0 * 86_400.0;
/// Memos and search attributes of one rule at most.
const FIELDS: usize = 100;

/// What a workflow or signal gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// A part of the event.
    Of(Input),
    /// What this program makes of it.
    Program(String),
}

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(super) name: String,
    pub(super) action: Action,
    pub(super) namespace: Option<String>,
    pub(super) workflow_id: Template,
    pub(super) workflow_type: Template,
    pub(super) task_queue: Template,
    pub(super) signal: Template,
    pub(super) reason: Template,
    pub(super) input: Argument,
    pub(super) signal_input: Argument,
    pub(super) memo: BTreeMap<String, Template>,
    pub(super) search_attributes: BTreeMap<String, Template>,
    pub(super) execution_timeout: Option<Duration>,
    pub(super) run_timeout: Option<Duration>,
    pub(super) task_timeout: Option<Duration>,
    pub(super) start_delay: Option<Duration>,
    pub(super) retry: Option<WorkflowRetrySection>,
    pub(super) reuse: Reuse,
    pub(super) conflict: Conflict,
    pub(super) on_conflict: OnConflict,
    pub(super) on_missing: OnMissing,
}

impl Rule {
    /// Its name in metrics and reasons.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What a workflow is started with, where this rule starts any.
    pub(crate) fn input(&self) -> Option<&Argument> {
        matches!(self.action, Action::Start | Action::SignalWithStart).then_some(&self.input)
    }

    /// What a signal brings, where this rule sends any.
    pub(crate) fn signal_input(&self) -> Option<&Argument> {
        let signals = matches!(self.action, Action::Signal | Action::SignalWithStart)
            || self.action == Action::Start && self.on_conflict == OnConflict::Signal;
        signals.then_some(&self.signal_input)
    }

    /// Every program of it, with what it is.
    fn programs(section: &RuleSection) -> impl Iterator<Item = (&'static str, &str)> {
        let named = [
            ("filter", &section.filter),
            ("transform", &section.transform),
            ("signal_transform", &section.signal_transform),
        ];
        named.into_iter().filter_map(|(name, program)| Some((name, program.as_deref()?)))
    }
}

/// The rules in their order: the first one that matches an event is the one that is applied.
#[derive(Debug)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    table: Table,
}

/// What the rules say about an event.
#[derive(Debug)]
pub(crate) enum Found<'r> {
    /// This rule is for it.
    Rule(&'r Rule),
    /// None is.
    None,
    /// The filter of the rule with this number has to be asked.
    Asks(usize),
}

impl Rules {
    /// Compiles the rules; programs are only measured.
    ///
    /// # Errors
    /// Every mistake, each naming its rule.
    pub(crate) fn compile(sections: &[RuleSection]) -> Result<Self, Vec<String>> {
        let routes: Vec<RouteSection> = sections
            .iter()
            .map(|section| RouteSection {
                name: section.name.clone(),
                types: section.types.clone(),
                when: section.when.clone(),
                filter: section.filter.clone(),
                to: vec![TEMPORAL.to_owned()],
                ..RouteSection::default()
            })
            .collect();
        let (table, mut mistakes) = match Table::compile(&routes, &[], &[TEMPORAL.to_owned()]) {
            Ok(table) => (Some(table), Vec::new()),
            Err(mistakes) => {
                let of_rule =
                    |mistake: &String| mistake.replacen("route", "rule", 1).replace("another route", "another rule");
                (None, mistakes.iter().map(of_rule).collect())
            }
        };
        let mut rules = Vec::with_capacity(sections.len());
        for (nth, section) in (1..).zip(sections) {
            let mut wrong = |text: String| mistakes.push(format!("rule {nth} ({}): {text}", section.name));
            rules.push(compile(section, &mut wrong));
        }
        match table {
            Some(table) if mistakes.is_empty() => Ok(Self { rules, table }),
            _ => Err(mistakes),
        }
    }

    /// Compiles every program in a process of its own.
    pub(crate) fn program_mistakes(sections: &[RuleSection], limits: kit_routes::jq::JqLimits) -> Vec<String> {
        let programs: Vec<(String, &str)> = (1..)
            .zip(sections)
            .flat_map(|(nth, section)| {
                let name = &section.name;
                Rule::programs(section).map(move |(what, program)| (format!("rule {nth} ({name}): {what}"), program))
            })
            .collect();
        let codes: Vec<&str> = programs.iter().map(|(_, program)| *program).collect();
        let checked = kit_routes::jq::check_programs(limits, &codes);
        let wrong = programs.iter().zip(checked).filter_map(|((what, _), checked)| Some((what, checked.err()?)));
        wrong.map(|(what, mistake)| format!("{what}: jq: {mistake}")).collect()
    }

    /// The rule for an event. `answer` tells what the filter of the rule with this number says, where that is known.
    pub(crate) fn find(&self, event: &StoredEvent, answer: impl Fn(usize) -> Option<bool>) -> Found<'_> {
        match self.table.walk(0, event, answer) {
            Walk::Asks(nth) => Found::Asks(nth),
            Walk::Done(Decision::Deliver { route: Some(nth), .. }) => {
                self.rules.get(nth).map_or(Found::None, Found::Rule)
            }
            Walk::Done(_) => Found::None,
        }
    }

    /// Why the rule with this number is not for an event, its filter aside; `None` where it is.
    pub(crate) fn why_not(&self, nth: usize, event: &StoredEvent) -> Option<String> {
        self.table.why_not(nth, event)
    }

    /// Whether the rule with this number has a filter.
    pub(crate) fn has_filter(&self, nth: usize) -> bool {
        self.table.filter(nth).is_some()
    }

    /// The filter of the rule with this number, and the rule's name.
    pub(crate) fn filter(&self, nth: usize) -> (std::sync::Arc<str>, &str) {
        (self.table.filter(nth).unwrap_or_default(), self.table.name(Some(nth)))
    }

    /// Task queues that are the same for every event: those that somebody has to poll. Each with its namespace, `own` where
    /// its rule names none.
    pub(crate) fn task_queues(&self, own: &str) -> Vec<(String, String)> {
        let starting = self.rules.iter().filter(|rule| rule.input().is_some());
        let named = starting.filter_map(|rule| Some((rule.namespace.as_deref(), rule.task_queue.constant()?)));
        named.map(|(namespace, queue)| (namespace.unwrap_or(own).to_owned(), queue)).collect()
    }

    /// The rules in their order.
    pub(crate) fn all(&self) -> &[Rule] {
        &self.rules
    }
}

fn compile(section: &RuleSection, wrong: &mut impl FnMut(String)) -> Rule {
    let action = section.action;
    let (starts, signals) = (
        matches!(action, Action::Start | Action::SignalWithStart),
        matches!(action, Action::Signal | Action::SignalWithStart),
    );
    let ends = matches!(action, Action::Cancel | Action::Terminate);
    let signals_on_conflict = action == Action::Start && section.on_conflict == Some(OnConflict::Signal);
    // Whoever sets something takes it for working.
    let settings: [(&str, bool, bool, &str); 20] = [
        ("namespace", section.namespace.is_some(), action != Action::Ignore, "everything but ignore"),
        ("workflow_id", section.workflow_id.is_some(), action != Action::Ignore, "everything but ignore"),
        ("workflow_type", section.workflow_type.is_some(), starts, "start and signal_with_start"),
        ("task_queue", section.task_queue.is_some(), starts, "start and signal_with_start"),
        ("input", section.input.is_some(), starts, "start and signal_with_start"),
        ("transform", section.transform.is_some(), starts, "start and signal_with_start"),
        ("memo", !section.memo.is_empty(), starts, "start and signal_with_start"),
        ("search_attributes", !section.search_attributes.is_empty(), starts, "start and signal_with_start"),
        (
            "execution_timeout_seconds",
            section.execution_timeout_seconds.is_some(),
            starts,
            "start and signal_with_start",
        ),
        ("run_timeout_seconds", section.run_timeout_seconds.is_some(), starts, "start and signal_with_start"),
        ("task_timeout_seconds", section.task_timeout_seconds.is_some(), starts, "start and signal_with_start"),
        ("start_delay_seconds", section.start_delay_seconds.is_some(), starts, "start and signal_with_start"),
        ("retry", section.retry.is_some(), starts, "start and signal_with_start"),
        ("reuse", section.reuse.is_some(), starts, "start and signal_with_start"),
        ("conflict", section.conflict.is_some(), action == Action::Start, "start"),
        ("on_conflict", section.on_conflict.is_some(), starts, "start and signal_with_start"),
        ("on_missing", section.on_missing.is_some(), action == Action::Signal || ends, "signal, cancel and terminate"),
        ("reason", section.reason.is_some(), ends, "cancel and terminate"),
        ("signal", section.signal.is_some(), signals || signals_on_conflict, "signal and signal_with_start"),
        (
            "signal_input",
            section.signal_input.is_some() || section.signal_transform.is_some(),
            signals || signals_on_conflict,
            "signal and signal_with_start",
        ),
    ];
    for (name, _, _, whom) in settings.iter().filter(|(_, set, applies, _)| *set && !applies) {
        wrong(format!("{name} is for {whom}"));
    }
    if let Some(text) = section.namespace.as_deref().and_then(namespace_mistake) {
        wrong(format!("namespace {text}"));
    }
    let mut template = |name: &str, text: Option<&str>, needed: bool, most: usize| {
        let text = text.unwrap_or_default();
        if text.is_empty() && needed {
            wrong(format!("{name} must be set for {}", word(action)));
        }
        let template = Template::read(text).unwrap_or_else(|mistake| {
            wrong(format!("{name} {mistake}"));
            Template::default()
        });
        if template.fixed().map(str::len).sum::<usize>() > most {
            wrong(format!("{name} is longer than {most} bytes whatever the event says"));
        }
        template
    };
    let by_default = (action == Action::Start).then_some(ONE_AN_EVENT);
    let id = section.workflow_id.as_deref().or(by_default);
    let workflow_id = template("workflow_id", id, action != Action::Ignore, ID_BYTES);
    let workflow_type = template("workflow_type", section.workflow_type.as_deref(), starts, ID_BYTES);
    let task_queue = template("task_queue", section.task_queue.as_deref(), starts, ID_BYTES);
    let signal = template("signal", section.signal.as_deref(), signals || signals_on_conflict, ID_BYTES);
    let reason = template("reason", section.reason.as_deref(), false, usize::MAX);
    let mut fields = |name: &str, fields: &BTreeMap<String, String>| -> BTreeMap<String, Template> {
        let read = |(field, text): (&String, &String)| {
            let path = format!("{name}.{field}");
            (field.clone(), template(&path, Some(text.as_str()), true, usize::MAX))
        };
        fields.iter().take(FIELDS).map(read).collect()
    };
    let (memo, search_attributes) =
        (fields("memo", &section.memo), fields("search_attributes", &section.search_attributes));
    for (name, fields) in [("memo", &section.memo), ("search_attributes", &section.search_attributes)] {
        if fields.len() > FIELDS {
            wrong(format!("{name} must have at most {FIELDS} fields"));
        }
    }
    if workflow_id.fixed().any(|text| text.contains(|c: char| c == '/' || c.is_control())) {
        wrong(
            "workflow_id must not hold a slash or control character: Temporal's HTTP API could not name it".to_owned(),
        );
    }
    if let Some(text) = workflow_id.ambiguity() {
        wrong(format!("workflow_id {text}"));
    }
    if section.conflict == Some(Conflict::TerminateExisting)
        && section.reuse.unwrap_or_default() == Reuse::RejectDuplicate
    {
        let text = "conflict = \"terminate_existing\" needs reuse = \"allow_duplicate\" or \"allow_duplicate_failed_only\": Temporal \
                    refuses it where ids are kept";
        wrong(text.to_owned());
    }
    if matches!(action, Action::Signal | Action::Cancel | Action::Terminate) && workflow_id.is_unique() {
        wrong(format!(
            "workflow_id has {{id}}, which no workflow has had before: {} is for one that runs",
            word(action)
        ));
    }
    if action == Action::SignalWithStart && section.on_conflict == Some(OnConflict::Signal) {
        wrong("on_conflict = \"signal\" is for start: signal_with_start has signalled what runs".to_owned());
    }
    if section.on_conflict.is_some() && workflow_id.is_unique() {
        wrong("on_conflict is for ids that several events may have, and workflow_id has {id}".to_owned());
    }
    if workflow_id.is_unique() && section.reuse.is_some_and(|reuse| reuse != Reuse::RejectDuplicate) {
        wrong(
            "reuse must be reject_duplicate: workflow_id has {id}, and the same event is to start nothing twice"
                .to_owned(),
        );
    }
    for (name, input, program) in [
        ("transform", section.input, &section.transform),
        ("signal_transform", section.signal_input, &section.signal_transform),
    ] {
        if input.is_some() && program.is_some() {
            let input = if name == "transform" { "input" } else { "signal_input" };
            wrong(format!("{input} and {name} are both set: keep one"));
        }
        if program.as_ref().is_some_and(|program| program.len() > kit_routes::jq::PROGRAM_BYTES) {
            wrong(format!("{name} is longer than {} bytes", kit_routes::jq::PROGRAM_BYTES));
        }
    }
    let mut seconds = |name: &str, value: Option<f64>| {
        let value = value?;
        if !(value > 0.0 && value <= LONGEST) {
            wrong(format!("{name} must be a number of seconds above 0 and at most ten years"));
        }
        Duration::try_from_secs_f64(value).ok()
    };
    let execution_timeout = seconds("execution_timeout_seconds", section.execution_timeout_seconds);
    let run_timeout = seconds("run_timeout_seconds", section.run_timeout_seconds);
    let task_timeout = seconds("task_timeout_seconds", section.task_timeout_seconds);
    let start_delay = seconds("start_delay_seconds", section.start_delay_seconds);
    if let Some(retry) = &section.retry {
        seconds("retry.initial_seconds", Some(retry.initial_seconds));
        seconds("retry.max_seconds", retry.max_seconds);
        if !(1.0..=1_000.0).contains(&retry.backoff) {
            wrong("retry.backoff must be a number from 1 to 1000".to_owned());
        }
        if i32::try_from(retry.max_attempts).is_err() {
            wrong("retry.max_attempts must be at most 2147483647".to_owned());
        }
    }
    let argument = |input: Option<Input>, program: &Option<String>| match program {
        Some(program) => Argument::Program(program.clone()),
        None => Argument::Of(input.unwrap_or_default()),
    };
    Rule {
        name: section.name.clone(),
        action,
        namespace: section.namespace.clone(),
        workflow_id,
        workflow_type,
        task_queue,
        signal,
        reason,
        input: argument(section.input, &section.transform),
        signal_input: argument(section.signal_input, &section.signal_transform),
        memo,
        search_attributes,
        execution_timeout,
        run_timeout,
        task_timeout,
        start_delay,
        retry: section.retry.clone(),
        reuse: section.reuse.unwrap_or_default(),
        conflict: section.conflict.unwrap_or_default(),
        on_conflict: section.on_conflict.unwrap_or_default(),
        on_missing: section.on_missing.unwrap_or_default(),
    }
}

pub(super) fn word(action: Action) -> &'static str {
    match action {
        Action::Start => "start",
        Action::Signal => "signal",
        Action::SignalWithStart => "signal_with_start",
        Action::Cancel => "cancel",
        Action::Terminate => "terminate",
        Action::Ignore => "ignore",
    }
}

#[cfg(test)]
mod tests;
