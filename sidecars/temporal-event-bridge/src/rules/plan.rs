//! What one event asks of Temporal, by its rule: the requests, but for what a program makes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kit_delivery::format;
use kit_journal::StoredEvent;
use kit_temporal::api::common::v1::{Memo, Payload, Payloads, RetryPolicy, SearchAttributes, WorkflowType};
use kit_temporal::api::enums::v1::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy};
use kit_temporal::api::taskqueue::v1::TaskQueue;
use kit_temporal::api::workflowservice::v1 as ws;
use kit_temporal::client::execution;
use kit_temporal::{payload, wkt};
use serde_json::json;

use super::compile::Rule;
use super::section::{Action, Conflict, Input, OnConflict, OnMissing, Reuse};
use crate::admit::subject;
use crate::template::{Purpose, Subject, Template};

/// What an event asks of Temporal.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'r> {
    /// The rule.
    pub(crate) rule: &'r Rule,
    /// The workflow's namespace.
    pub(crate) namespace: String,
    /// The workflow.
    pub(crate) workflow_id: String,
    /// No other event has this workflow.
    pub(crate) is_unique: bool,
    /// The same for every attempt with this event.
    pub(crate) request_id: String,
    /// Who asks; tells in a workflow's history which event has done something.
    pub(crate) identity: String,
    /// The request.
    pub(crate) call: Call,
}

/// A request to Temporal.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// `StartWorkflowExecution`, and the signal for where the id is taken.
    Start(Box<ws::StartWorkflowExecutionRequest>, Option<Box<ws::SignalWorkflowExecutionRequest>>),
    /// `SignalWorkflowExecution`.
    Signal(Box<ws::SignalWorkflowExecutionRequest>),
    /// `SignalWithStartWorkflowExecution`.
    SignalWithStart(Box<ws::SignalWithStartWorkflowExecutionRequest>),
    /// `RequestCancelWorkflowExecution`.
    Cancel(Box<ws::RequestCancelWorkflowExecutionRequest>),
    /// `TerminateWorkflowExecution`.
    Terminate(Box<ws::TerminateWorkflowExecutionRequest>),
}

/// Says in histories that it was us, and which event.
const IDENTITY: &str = "temporal-event-bridge/";

impl Rule {
    /// What the event asks for; `None` where the rule ignores it.
    ///
    /// # Errors
    /// What about the event does not fit the rule, naming the setting and not the value.
    pub(crate) fn plan(
        &self,
        namespace: &str,
        event: &StoredEvent,
        (input, signal_input): (Option<Payload>, Option<Payload>),
    ) -> Result<Option<Plan<'_>>, String> {
        let about = Subject::new(event);
        let render = |name: &str, template: &Template, purpose: Purpose| {
            template.render(&about, purpose).map_err(|why| format!("rule {}: {name}: {why}", self.name))
        };
        if self.action == Action::Ignore {
            return Ok(None);
        }
        let workflow_id = render("workflow_id", &self.workflow_id, Purpose::WorkflowId)?;
        let namespace = self.namespace.clone().unwrap_or_else(|| namespace.to_owned());
        let request_id = event.head.id.to_string();
        let identity = format!("{IDENTITY}{request_id}");
        let one = |input: Option<Payload>| -> Option<Payloads> { input.map(payload::one) };
        let signal = || -> Result<Box<ws::SignalWorkflowExecutionRequest>, String> {
            Ok(Box::new(ws::SignalWorkflowExecutionRequest {
                namespace: namespace.clone(),
                workflow_execution: Some(execution(&workflow_id, None)),
                signal_name: render("signal", &self.signal, Purpose::Name)?,
                input: one(signal_input.clone()),
                identity: identity.clone(),
                request_id: request_id.clone(),
                ..Default::default()
            }))
        };
        let call = match self.action {
            Action::Ignore => return Ok(None),
            Action::Start => {
                let request = ws::StartWorkflowExecutionRequest {
                    namespace: namespace.clone(),
                    workflow_id: workflow_id.clone(),
                    workflow_type: Some(WorkflowType {
                        name: render("workflow_type", &self.workflow_type, Purpose::Name)?,
                    }),
                    task_queue: Some(task_queue(render("task_queue", &self.task_queue, Purpose::Name)?)),
                    input: one(input),
                    workflow_execution_timeout: duration(self.execution_timeout),
                    workflow_run_timeout: duration(self.run_timeout),
                    workflow_task_timeout: duration(self.task_timeout),
                    identity: identity.clone(),
                    request_id: request_id.clone(),
                    workflow_id_reuse_policy: self.reuse_policy() as i32,
                    workflow_id_conflict_policy: self.conflict_policy() as i32,
                    retry_policy: self.retry_policy(),
                    memo: self.memo(&about)?,
                    search_attributes: self.search_attributes(&about)?,
                    workflow_start_delay: duration(self.start_delay),
                    ..Default::default()
                };
                let instead = (self.on_conflict == OnConflict::Signal).then(signal).transpose()?;
                Call::Start(Box::new(request), instead)
            }
            Action::Signal => Call::Signal(signal()?),
            Action::SignalWithStart => Call::SignalWithStart(Box::new(ws::SignalWithStartWorkflowExecutionRequest {
                namespace: namespace.clone(),
                workflow_id: workflow_id.clone(),
                workflow_type: Some(WorkflowType {
                    name: render("workflow_type", &self.workflow_type, Purpose::Name)?,
                }),
                task_queue: Some(task_queue(render("task_queue", &self.task_queue, Purpose::Name)?)),
                input: one(input),
                workflow_execution_timeout: duration(self.execution_timeout),
                workflow_run_timeout: duration(self.run_timeout),
                workflow_task_timeout: duration(self.task_timeout),
                identity: identity.clone(),
                request_id: request_id.clone(),
                workflow_id_reuse_policy: self.reuse_policy() as i32,
                signal_name: render("signal", &self.signal, Purpose::Name)?,
                signal_input: one(signal_input),
                retry_policy: self.retry_policy(),
                memo: self.memo(&about)?,
                search_attributes: self.search_attributes(&about)?,
                workflow_start_delay: duration(self.start_delay),
                ..Default::default()
            })),
            Action::Cancel => Call::Cancel(Box::new(ws::RequestCancelWorkflowExecutionRequest {
                namespace: namespace.clone(),
                workflow_execution: Some(execution(&workflow_id, None)),
                identity: identity.clone(),
                request_id: request_id.clone(),
                reason: render("reason", &self.reason, Purpose::Text)?,
                ..Default::default()
            })),
            Action::Terminate => Call::Terminate(Box::new(ws::TerminateWorkflowExecutionRequest {
                namespace: namespace.clone(),
                workflow_execution: Some(execution(&workflow_id, None)),
                identity: identity.clone(),
                reason: render("reason", &self.reason, Purpose::Text)?,
                ..Default::default()
            })),
        };
        let is_unique = self.workflow_id.is_unique();
        Ok(Some(Plan { rule: self, namespace, workflow_id, is_unique, request_id, identity, call }))
    }

    pub(crate) fn on_conflict(&self) -> OnConflict {
        self.on_conflict
    }

    pub(crate) fn on_missing(&self) -> OnMissing {
        self.on_missing
    }

    /// Whether an ended workflow keeps its id, so that Temporal itself tells a second start.
    pub(crate) fn keeps_ids(&self) -> bool {
        self.reuse == Reuse::RejectDuplicate
    }

    fn reuse_policy(&self) -> WorkflowIdReusePolicy {
        match self.reuse {
            Reuse::RejectDuplicate => WorkflowIdReusePolicy::RejectDuplicate,
            Reuse::AllowDuplicateFailedOnly => WorkflowIdReusePolicy::AllowDuplicateFailedOnly,
            Reuse::AllowDuplicate => WorkflowIdReusePolicy::AllowDuplicate,
        }
    }

    /// Servers before 1.24 do not know the field, and fail.
    fn conflict_policy(&self) -> WorkflowIdConflictPolicy {
        match self.conflict {
            Conflict::Fail => WorkflowIdConflictPolicy::Fail,
            Conflict::UseExisting => WorkflowIdConflictPolicy::UseExisting,
            Conflict::TerminateExisting => WorkflowIdConflictPolicy::TerminateExisting,
        }
    }

    /// Whether a workflow that is running is what the rule wants.
    pub(crate) fn uses_existing(&self) -> bool {
        self.conflict == Conflict::UseExisting
    }

    fn retry_policy(&self) -> Option<RetryPolicy> {
        let retry = self.retry.as_ref()?;
        let seconds = |value: f64| duration(Duration::try_from_secs_f64(value).ok());
        Some(RetryPolicy {
            initial_interval: seconds(retry.initial_seconds),
            backoff_coefficient: retry.backoff,
            maximum_interval: retry.max_seconds.and_then(seconds),
            maximum_attempts: i32::try_from(retry.max_attempts).unwrap_or(i32::MAX),
            non_retryable_error_types: retry.not_retried.clone(),
        })
    }

    fn memo(&self, about: &Subject<'_>) -> Result<Option<Memo>, String> {
        let fields = self.fields("memo", &self.memo, about)?;
        Ok((!fields.is_empty()).then_some(Memo { fields }))
    }

    fn search_attributes(&self, about: &Subject<'_>) -> Result<Option<SearchAttributes>, String> {
        let fields = self.fields("search_attributes", &self.search_attributes, about)?;
        Ok((!fields.is_empty()).then_some(SearchAttributes { indexed_fields: fields }))
    }

    fn fields(
        &self,
        name: &str,
        fields: &BTreeMap<String, Template>,
        about: &Subject<'_>,
    ) -> Result<HashMap<String, Payload>, String> {
        let value = |(field, template): (&String, &Template)| {
            let value = template.value(about).map_err(|why| format!("rule {}: {name}.{field}: {why}", self.name))?;
            Ok((field.clone(), payload::json(value)))
        };
        fields.iter().map(value).collect()
    }
}

/// A part of the event as an argument; `None` where it is to have none.
pub(crate) fn part(event: &StoredEvent, input: Input) -> Option<Payload> {
    match input {
        Input::Event => Some(payload::json(as_event(event))),
        Input::Data if event.head.json => Some(payload::json(event.body.to_vec())),
        Input::Data => Some(payload::binary(event.body.to_vec())),
        Input::None => None,
    }
}

/// The CloudEvent as it came: with its sender's id, and without a subject where it had none.
pub(crate) fn as_event(event: &StoredEvent) -> Vec<u8> {
    let head = &event.head;
    let mut text = b"{".to_vec();
    for (name, value) in format::attributes(event) {
        let value = match name {
            "id" => json!(head.key),
            "subject" if subject(head).is_none() => continue,
            // The position in our own journal says nothing to anybody else.
            "sequence" => continue,
            _ => value,
        };
        text.extend_from_slice(format!("\"{name}\":{value},").as_bytes());
    }
    if head.json {
        text.extend_from_slice(b"\"data\":");
        text.extend_from_slice(&event.body);
    } else if event.body.is_empty() {
        // An event without data has none; there are attributes before this comma.
        text.pop();
    } else {
        use base64::Engine as _;
        text.extend_from_slice(b"\"data_base64\":\"");
        text.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(&event.body).as_bytes());
        text.push(b'"');
    }
    text.push(b'}');
    text
}

fn task_queue(name: String) -> TaskQueue {
    TaskQueue { name, ..TaskQueue::default() }
}

fn duration(duration: Option<Duration>) -> Option<wkt::Duration> {
    let duration = duration?;
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // Below a billion.
    Some(wkt::Duration { seconds, nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0) })
}
