//! The section `[[rule]]`: what an event does to a workflow.

use std::collections::BTreeMap;

use kit_routes::WhenSection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one kind of event does to a workflow, `[[rule]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleSection {
    /// Its name in metrics and reasons: 1 to 64 of a-z, 0-9, - and _.
    pub name: String,
    /// Event types it is about, as globs with `*` and `?`; matched against the type and its alias. All, when empty.
    pub types: Vec<String>,
    /// Conditions on the event; all must hold. As those of routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<WhenSection>,
    /// jq program over the CloudEvent (the body is `.data`) that must give `true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// `start`, `signal`, `signal_with_start`, `cancel`, `terminate` or `ignore`.
    pub action: Action,
    /// Namespace of the workflow; `temporal.namespace` when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Template of the workflow's id. With `{id}` in it there is one workflow an event; `start` has `{type}:{id}` when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    /// Template of the workflow's type, for `start` and `signal_with_start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_type: Option<String>,
    /// Template of the task queue, for the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_queue: Option<String>,
    /// Template of the signal's name, for `signal` and `signal_with_start`, and for `on_conflict = "signal"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// What the workflow is started with: `event` (the CloudEvent), `data` (its data alone) or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Input>,
    /// jq program over the CloudEvent whose one value the workflow is started with, in place of `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<String>,
    /// What the signal brings, as `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal_input: Option<Input>,
    /// jq program whose one value the signal brings, as `transform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal_transform: Option<String>,
    /// Templates of the workflow's memo by name. One that is nothing but `{data.<path>}` keeps the value's type.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub memo: BTreeMap<String, String>,
    /// Templates of its search attributes, alike. Each must be known to the namespace.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub search_attributes: BTreeMap<String, String>,
    /// Seconds that the workflow may take with all that follows it (retries, continued runs).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_timeout_seconds: Option<f64>,
    /// Seconds that one run may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_timeout_seconds: Option<f64>,
    /// Seconds that a worker may take for one workflow task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_timeout_seconds: Option<f64>,
    /// Seconds that the workflow waits before its first task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_delay_seconds: Option<f64>,
    /// When Temporal runs the workflow again after it has failed; never, when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<WorkflowRetrySection>,
    /// Whether an id may be used again after its workflow has ended: `reject_duplicate` (never while it is retained; the
    /// default), `allow_duplicate_failed_only` or `allow_duplicate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    /// What `start` does where the workflow is running: `fail` (the default; then `on_conflict`), `use_existing` (nothing,
    /// and the event is done) or `terminate_existing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Conflict>,
    /// What becomes of an event whose workflow's id is taken by another event's: `park` (the default), `signal` or
    /// `ignore`. One whose workflow's id has `{id}` in it is done: the id is its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_conflict: Option<OnConflict>,
    /// What becomes of an event whose workflow is not running (`signal`, `cancel`, `terminate`): `park` (the default),
    /// `retry` (by `calls.retry_schedule_seconds`; it may have to be started yet) or `ignore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_missing: Option<OnMissing>,
    /// Template of the reason that Temporal shows, for `cancel` and `terminate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A workflow is started.
    #[default]
    Start,
    /// A running workflow is signalled.
    Signal,
    /// A workflow is signalled, and started before where it is not running.
    SignalWithStart,
    /// A workflow is asked to end.
    Cancel,
    /// A workflow is ended.
    Terminate,
    /// Nothing: the rules after this one are not for such an event.
    Ignore,
}

/// What a workflow or signal gets of the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The whole CloudEvent, its body under `data`.
    #[default]
    Event,
    /// The body alone.
    Data,
    /// No argument.
    None,
}

/// Whether an id may be used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reuse {
    /// Never, while the workflow that had it is retained.
    #[default]
    RejectDuplicate,
    /// Where that one has not completed.
    AllowDuplicateFailedOnly,
    /// Always.
    AllowDuplicate,
}

/// What a start does where the workflow is running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// It is a conflict.
    #[default]
    Fail,
    /// It is fine: the workflow is there.
    UseExisting,
    /// That one is ended, and another one started.
    TerminateExisting,
}

/// What becomes of an event whose workflow's id is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// It is a dead letter.
    #[default]
    Park,
    /// The workflow that has the id is signalled.
    Signal,
    /// It is listed as filtered.
    Ignore,
}

/// What becomes of an event whose workflow is not running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    /// It is a dead letter.
    #[default]
    Park,
    /// It is tried again by the schedule.
    Retry,
    /// It is listed as filtered.
    Ignore,
}

/// When Temporal runs a workflow again after it has failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkflowRetrySection {
    /// Seconds before the first repetition.
    pub initial_seconds: f64,
    /// By how much each wait is longer than the one before.
    pub backoff: f64,
    /// Longest wait in seconds; a hundred times the first one when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<f64>,
    /// Runs at most; 0 means no limit.
    pub max_attempts: u32,
    /// Types of failures that are not tried again.
    pub not_retried: Vec<String>,
}

impl Default for WorkflowRetrySection {
    fn default() -> Self {
        Self { initial_seconds: 1.0, backoff: 2.0, max_seconds: None, max_attempts: 0, not_retried: Vec::new() }
    }
}
