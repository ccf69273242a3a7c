//! From an event to what it asks of Temporal: its rule, with jq asked where the rule has programs.

use std::collections::HashMap;
use std::time::Duration;

use kit_delivery::{Failure, Outcome, PassedBy};
use kit_journal::StoredEvent;
use kit_routes::jq::{Jq, JqError, Question};
use kit_temporal::api::common::v1::Payload;
use kit_temporal::payload;

use crate::rules::{Argument, Found, Plan, Rule, Rules, as_event, part};

/// How long an event waits when no process for jq can be started.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Rules, and what they are asked with.
#[derive(Debug)]
pub(crate) struct Planner {
    pub(crate) rules: Rules,
    pub(crate) jq: Jq,
    /// Where a rule names none.
    pub(crate) namespace: String,
}

impl Planner {
    /// The event's rule, its filters asked.
    async fn rule(&self, event: &StoredEvent) -> Result<Option<&Rule>, JqError> {
        let mut answers: HashMap<usize, bool> = HashMap::new();
        let mut input = None;
        loop {
            match self.rules.find(event, |nth| answers.get(&nth).copied()) {
                Found::Rule(rule) => return Ok(Some(rule)),
                Found::None => return Ok(None),
                Found::Asks(nth) => {
                    let input = input.get_or_insert_with(|| as_event(event));
                    let (program, name) = self.rules.filter(nth);
                    let answer = self.jq.ask(Question::Holds, &program, input).await;
                    let answer = answer.map_err(|error| told(error, &format!("filter of rule {name}")))?;
                    answers.insert(nth, answer == b"true");
                }
            }
        }
    }

    async fn argument(
        &self,
        rule: &Rule,
        (name, argument): (&str, Option<&Argument>),
        event: &StoredEvent,
    ) -> Result<Option<Payload>, JqError> {
        match argument {
            None => Ok(None),
            Some(Argument::Of(input)) => Ok(part(event, *input)),
            Some(Argument::Program(program)) => {
                let about = format!("{name} of rule {}", rule.name());
                let made = self.jq.ask(Question::Value, program, &as_event(event)).await;
                let made = made.map_err(|error| told(error, &about))?;
                // jq writes more than JSON knows: bytes, infinity, keys that are no texts.
                if serde_json::from_slice::<&serde_json::value::RawValue>(&made).is_err() {
                    return Err(JqError::Failed(format!("{about}: gives something that is not JSON")));
                }
                Ok(Some(payload::json(made)))
            }
        }
    }

    /// What the event asks of Temporal; otherwise what becomes of it.
    pub(crate) async fn plan(&self, event: &StoredEvent) -> Result<Plan<'_>, Outcome> {
        let gone_wrong = |error| match error {
            JqError::Failed(why) => Outcome::failed(Failure::Unsendable, format!("jq: {why}")),
            JqError::Away(why) => Outcome::withheld(format!("jq cannot be run: {why}"), ASK_AGAIN),
        };
        let rule = self.rule(event).await.map_err(gone_wrong)?;
        let rule = rule.ok_or_else(|| Outcome::passed_by(PassedBy::Filtered, "no rule is for it"))?;
        let input = self.argument(rule, ("transform", rule.input()), event).await.map_err(gone_wrong)?;
        let signal = ("signal_transform", rule.signal_input());
        let signal_input = self.argument(rule, signal, event).await.map_err(gone_wrong)?;
        let plan = rule.plan(&self.namespace, event, (input, signal_input));
        let plan = plan.map_err(|why| Outcome::failed(Failure::Unsendable, why))?;
        plan.ok_or_else(|| Outcome::passed_by(PassedBy::Filtered, format!("rule {} ignores it", rule.name())))
    }
}

fn told(error: JqError, about: &str) -> JqError {
    match error {
        JqError::Failed(why) => JqError::Failed(format!("{about}: {why}")),
        away => away,
    }
}
