//! What the rules of a configuration make of an event, without a daemon and without sending anything.

use http::{HeaderMap, HeaderValue, header};
use kit::clock::{Clock as _, SystemClock};
use kit_delivery::cloudevents;
use kit_delivery::{Outcome, Verdict};
use kit_journal::StoredEvent;
use kit_routes::jq::{Jq, JqLimits, Question};
use kit_temporal::api::common::v1::{Payload, Payloads};
use kit_temporal::api::enums::v1::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy};
use kit_temporal::{payload, wkt};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::admit::{admit, subject};
use crate::config::Config;
use crate::planner::Planner;
use crate::rules::{Call, Plan, Rule, Rules, as_event};

/// Media type of a CloudEvent in structured mode.
const STRUCTURED: HeaderValue = HeaderValue::from_static("application/cloudevents+json");

/// What would become of an event.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// CloudEvents `type`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// CloudEvents `subject`, where it has one.
    pub subject: Option<String>,
    /// The id that the bridge gives it: `{id}` in templates.
    pub id: String,
    /// The rules in their order. Which is applied is the first that matches.
    pub rules: Vec<Tried>,
    /// What becomes of it: `asked of Temporal by rule …`, `filtered: …` or `parked: …`.
    pub result: String,
    /// The request that would be sent.
    pub request: Option<Request>,
}

/// Whether a rule is for the event.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// Its name.
    pub rule: String,
    /// Whether it matches.
    pub matches: bool,
    /// Why not.
    pub why_not: Option<String>,
}

/// A request to Temporal.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// The call, as gRPC names it.
    pub call: &'static str,
    /// What it says, by Temporal's names; values as workers get them.
    pub fields: Map<String, Value>,
    /// The signal that is sent where the workflow's id is taken.
    pub signal_on_conflict: Option<Map<String, Value>>,
}

/// Tries the configuration's rules on one CloudEvent in structured mode.
///
/// # Errors
/// The file is no such event, or the rules cannot be used; in sentences.
pub async fn preview(config: &Config, event: &[u8]) -> Result<Preview, Vec<String>> {
    let rules = Rules::compile(&config.rule)?;
    let limits = JqLimits::from(&config.routes.jq);
    // Processes, which are waited for.
    let sections = config.rule.clone();
    let wrong = tokio::task::spawn_blocking(move || Rules::program_mistakes(&sections, limits)).await;
    let wrong = wrong.map_err(|error| vec![error.to_string()])?;
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let event = stored(event).map_err(|mistake| vec![mistake])?;
    let planner = Planner { rules, jq: Jq::new(limits), namespace: config.temporal.namespace.clone() };
    let tried = tried(&planner, &event).await;
    let (result, request) = match planner.plan(&event).await {
        Ok(plan) => (format!("asked of Temporal by rule {}", plan.rule.name()), Some(request(&plan))),
        Err(outcome) => (said(&outcome), None),
    };
    Ok(Preview {
        event_type: event.head.event_type.clone(),
        subject: subject(&event.head).map(str::to_owned),
        id: event.head.id.to_string(),
        rules: tried,
        result,
        request,
    })
}

/// The event as the journal would have it.
fn stored(body: &[u8]) -> Result<StoredEvent, String> {
    let headers: HeaderMap = [(header::CONTENT_TYPE, STRUCTURED)].into_iter().collect();
    let event = cloudevents::event(&headers, body)
        .map_err(|_| "it is no CloudEvent 1.0 in JSON with specversion, id, source and type".to_owned())?;
    let event = admit(event).map_err(|why| why.to_string())?;
    Ok(StoredEvent { seq: 1, at: SystemClock.now(), head: event.head, body: event.body.into() })
}

async fn tried(planner: &Planner, event: &StoredEvent) -> Vec<Tried> {
    let mut tried = Vec::new();
    for (nth, rule) in planner.rules.all().iter().enumerate() {
        let mut why_not = planner.rules.why_not(nth, event);
        if why_not.is_none() && planner.rules.has_filter(nth) {
            let (program, _) = planner.rules.filter(nth);
            why_not = match planner.jq.ask(Question::Holds, &program, &as_event(event)).await {
                Ok(answer) if answer == b"true" => None,
                Ok(_) => Some("its filter does not give true".to_owned()),
                Err(error) => Some(format!("its filter fails: {error}")),
            };
        }
        tried.push(Tried { rule: Rule::name(rule).to_owned(), matches: why_not.is_none(), why_not });
    }
    tried
}

fn said(outcome: &Outcome) -> String {
    let why = outcome.error.as_deref().unwrap_or("no reason given");
    match outcome.verdict {
        Verdict::PassedBy(_) => format!("filtered: {why}"),
        _ => format!("parked: {why}"),
    }
}

/// What the two requests that start a workflow have in common: they are messages of their own.
macro_rules! starting {
    ($put:ident, $start:ident) => {
        $put("workflow_type", json!($start.workflow_type.as_ref().map(|kind| &kind.name)));
        $put("task_queue", json!($start.task_queue.as_ref().map(|queue| &queue.name)));
        $put("input", arguments($start.input.as_ref()));
        $put("workflow_execution_timeout", seconds($start.workflow_execution_timeout.as_ref()));
        $put("workflow_run_timeout", seconds($start.workflow_run_timeout.as_ref()));
        $put("workflow_task_timeout", seconds($start.workflow_task_timeout.as_ref()));
        $put("workflow_start_delay", seconds($start.workflow_start_delay.as_ref()));
        let reuse = WorkflowIdReusePolicy::try_from($start.workflow_id_reuse_policy).unwrap_or_default();
        $put("workflow_id_reuse_policy", json!(reuse.as_str_name()));
        $put("retry_policy", json!($start.retry_policy.as_ref().map(retry)));
        $put("memo", fields_of($start.memo.as_ref().map(|memo| &memo.fields)));
        let attributes = $start.search_attributes.as_ref();
        $put("search_attributes", fields_of(attributes.map(|attributes| &attributes.indexed_fields)));
    };
}

/// The request by the names of Temporal's own messages.
fn request(plan: &Plan<'_>) -> Request {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    put("namespace", json!(plan.namespace));
    put("workflow_id", json!(plan.workflow_id));
    put("request_id", json!(plan.request_id));
    put("identity", json!(plan.identity));
    let mut signal_on_conflict = None;
    let call = match &plan.call {
        Call::Start(start, instead) => {
            starting!(put, start);
            let conflict = WorkflowIdConflictPolicy::try_from(start.workflow_id_conflict_policy);
            put("workflow_id_conflict_policy", json!(conflict.unwrap_or_default().as_str_name()));
            signal_on_conflict = instead.as_ref().map(|signal| {
                let mut fields = Map::new();
                fields.insert("signal_name".to_owned(), json!(signal.signal_name));
                fields.insert("input".to_owned(), arguments(signal.input.as_ref()));
                fields
            });
            "StartWorkflowExecution"
        }
        Call::Signal(signal) => {
            put("signal_name", json!(signal.signal_name));
            put("input", arguments(signal.input.as_ref()));
            "SignalWorkflowExecution"
        }
        Call::SignalWithStart(start) => {
            starting!(put, start);
            put("signal_name", json!(start.signal_name));
            put("signal_input", arguments(start.signal_input.as_ref()));
            "SignalWithStartWorkflowExecution"
        }
        Call::Cancel(cancel) => {
            put("reason", json!(cancel.reason));
            "RequestCancelWorkflowExecution"
        }
        Call::Terminate(terminate) => {
            put("reason", json!(terminate.reason));
            "TerminateWorkflowExecution"
        }
    };
    Request { call, fields, signal_on_conflict }
}

fn seconds(duration: Option<&wkt::Duration>) -> Value {
    duration.map_or(Value::Null, |duration| json!(duration.seconds as f64 + f64::from(duration.nanos) / 1e9))
}

fn retry(policy: &kit_temporal::api::common::v1::RetryPolicy) -> Value {
    json!({
        "initial_interval": seconds(policy.initial_interval.as_ref()), "backoff_coefficient": policy.backoff_coefficient,
        "maximum_interval": seconds(policy.maximum_interval.as_ref()), "maximum_attempts": policy.maximum_attempts,
        "non_retryable_error_types": policy.non_retryable_error_types,
    })
}

fn fields_of(fields: Option<&std::collections::HashMap<String, Payload>>) -> Value {
    // In the order of their names, so that two tries look the same.
    let sorted: Option<std::collections::BTreeMap<&String, Value>> =
        fields.map(|fields| fields.iter().map(|(name, payload)| (name, value(payload))).collect());
    json!(sorted)
}

fn arguments(payloads: Option<&Payloads>) -> Value {
    payloads.map_or(Value::Null, |payloads| payloads.payloads.iter().map(value).collect())
}

/// As a worker gets it; bytes by their number.
fn value(payload: &Payload) -> Value {
    let json = payload::as_json(payload).and_then(|text| serde_json::from_str(text).ok());
    json.unwrap_or_else(|| json!({ "bytes": payload.data.len() }))
}
