//! Whether an event has reached its workflow already: asked where an attempt may have, and nothing says so.
//!
//! Temporal forgets a `request_id` with the run that knew it. Where another run may follow, our own mark in the histories
//! is what tells ([ADR 0025](../../../docs/adr/0025-once-in-temporal.md)).

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use kit::clock::Timestamp;
use kit_journal::Seq;
use kit_temporal::api::enums::v1::WorkflowExecutionStatus;
use kit_temporal::api::history::v1::HistoryEvent;
use kit_temporal::api::history::v1::history_event::Attributes;
use kit_temporal::api::workflow::v1::WorkflowExecutionInfo;
use kit_temporal::api::workflowservice::v1 as ws;
use kit_temporal::client::execution;
use kit_temporal::{ErrorClass, Temporal, TemporalError, wkt};

/// Clocks of ours and of Temporal's may differ by so much.
const CLOCKS_DIFFER: i64 = 5 * 60 * 1000;
/// Events of a history in one answer.
const PAGE: i32 = 500;
/// Pages of one history that are read; a history has at most 51,200 events.
///
/// Source: temporalio/temporal `limit.historyCount.error`.
const PAGES: usize = 110;
/// Runs of one workflow that are looked at.
const RUNS: usize = 50;
/// Events of this process that are remembered one by one.
const REMEMBERED: usize = 100_000;

/// Which events may have reached Temporal with nothing recorded.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Everything up to here, and not beyond [`Self::recorded`] of it.
    up_to: Seq,
    /// Of this process.
    since: HashSet<Seq>,
}

impl Doubts {
    /// Somebody else may have delivered up to here.
    pub(crate) fn begin(&self, up_to: Seq) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.up_to = known.up_to.max(up_to);
        known.since.retain(|seq| *seq > up_to);
    }

    /// An attempt has ended without a certain answer.
    pub(crate) fn add(&self, seq: Seq) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seq > known.up_to {
            known.since.insert(seq);
        }
        if known.since.len() > REMEMBERED {
            // To ask once too often is only slow.
            known.up_to = known.since.drain().max().unwrap_or(known.up_to);
        }
    }

    /// These are recorded.
    pub(crate) fn settle(&self, seqs: &[Seq]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for seq in seqs {
            known.since.remove(seq);
        }
    }

    pub(crate) fn is_in_doubt(&self, seq: Seq) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seq <= known.up_to || known.since.contains(&seq)
    }
}

/// What was found of an event in the runs of its workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// It has reached this run.
    Found(String),
    /// It has not, and this run is open.
    Running(String),
    /// It has not, and no run is open.
    Absent,
}

/// Looks for what an event has done to a workflow, since it was received.
pub(crate) async fn find(
    temporal: &Temporal,
    (namespace, workflow_id): (&str, &str),
    identity: &str,
    received: Timestamp,
) -> Result<Trace, TemporalError> {
    let since = received.plus_millis(-CLOCKS_DIFFER);
    let newest = match temporal.describe(namespace, workflow_id, None).await {
        Ok(description) => description.workflow_execution_info.unwrap_or_default(),
        Err(error) if error.class == ErrorClass::NoWorkflow => return Ok(Trace::Absent),
        Err(error) => return Err(error),
    };
    let newest_run = run_id(&newest).to_owned();
    if holds(temporal, (namespace, workflow_id, &newest_run), identity, since).await? {
        return Ok(Trace::Found(newest_run));
    }
    // What was here before the event came was all that it could have reached.
    if millis(newest.start_time.as_ref()) >= since.as_millis() {
        for run in earlier(temporal, (namespace, workflow_id), since).await? {
            if run != newest_run && holds(temporal, (namespace, workflow_id, &run), identity, since).await? {
                return Ok(Trace::Found(run));
            }
        }
    }
    let is_open = matches!(newest.status(), WorkflowExecutionStatus::Running | WorkflowExecutionStatus::Paused);
    Ok(if is_open { Trace::Running(newest_run) } else { Trace::Absent })
}

/// Runs that ended after the event came, as far as Temporal's index knows them.
async fn earlier(
    temporal: &Temporal,
    (namespace, workflow_id): (&str, &str),
    since: Timestamp,
) -> Result<Vec<String>, TemporalError> {
    let mut runs = Vec::new();
    let mut token = Vec::new();
    loop {
        let request = ws::ListWorkflowExecutionsRequest {
            namespace: namespace.to_owned(),
            page_size: RUNS as i32,
            next_page_token: std::mem::take(&mut token),
            // The other filters are not known to every store.
            query: format!("WorkflowId = '{}'", workflow_id.replace('\\', "\\\\").replace('\'', "\\'")),
        };
        let answer = temporal.list(request).await?;
        let is_late = |run: &&WorkflowExecutionInfo| {
            run.close_time.is_none() || millis(run.close_time.as_ref()) >= since.as_millis()
        };
        runs.extend(answer.executions.iter().filter(is_late).map(|run| run_id(run).to_owned()));
        token = answer.next_page_token;
        // Newest first.
        if token.is_empty() || runs.len() >= RUNS || !answer.executions.iter().any(|run| is_late(&run)) {
            return Ok(runs);
        }
    }
}

/// Whether a run's history has our mark.
async fn holds(
    temporal: &Temporal,
    (namespace, workflow_id, run): (&str, &str, &str),
    identity: &str,
    since: Timestamp,
) -> Result<bool, TemporalError> {
    let mut token = Vec::new();
    for _ in 0..PAGES {
        let request = ws::GetWorkflowExecutionHistoryReverseRequest {
            namespace: namespace.to_owned(),
            execution: Some(execution(workflow_id, Some(run))),
            maximum_page_size: PAGE,
            next_page_token: std::mem::take(&mut token),
        };
        let answer = match temporal.history_backwards(request).await {
            Ok(answer) => answer,
            // Removed meanwhile: its time is over.
            Err(error) if error.class == ErrorClass::NoWorkflow => return Ok(false),
            Err(error) => return Err(error),
        };
        let events = answer.history.unwrap_or_default().events;
        if events.iter().any(|event| is_marked(event, identity)) {
            return Ok(true);
        }
        let is_past = events.last().is_none_or(|event| millis(event.event_time.as_ref()) < since.as_millis());
        token = answer.next_page_token;
        if is_past || token.is_empty() {
            return Ok(false);
        }
    }
    Ok(false)
}

fn is_marked(event: &HistoryEvent, identity: &str) -> bool {
    let by = match &event.attributes {
        Some(Attributes::WorkflowExecutionStartedEventAttributes(started)) => &started.identity,
        Some(Attributes::WorkflowExecutionSignaledEventAttributes(signaled)) => &signaled.identity,
        Some(Attributes::WorkflowExecutionCancelRequestedEventAttributes(requested)) => &requested.identity,
        Some(Attributes::WorkflowExecutionTerminatedEventAttributes(terminated)) => &terminated.identity,
        _ => return false,
    };
    by == identity
}

fn run_id(info: &WorkflowExecutionInfo) -> &str {
    info.execution.as_ref().map(|execution| execution.run_id.as_str()).unwrap_or_default()
}

fn millis(time: Option<&wkt::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds.saturating_mul(1000) + i64::from(time.nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_and_what_had_no_answer_is_in_doubt() {
        let doubts = Doubts::default();
        doubts.begin(7);
        doubts.add(9);

        let found: Vec<Seq> = (6..=10).filter(|seq| doubts.is_in_doubt(*seq)).collect();
        assert_eq!(found, [6, 7, 9]);
        doubts.settle(&[9]);
        assert!(!doubts.is_in_doubt(9) && doubts.is_in_doubt(7));
        doubts.begin(10);
        assert!(doubts.is_in_doubt(9));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_is_forgotten() {
        let doubts = Doubts::default();
        let most = Seq::try_from(REMEMBERED).unwrap_or(Seq::MAX);
        for seq in 1..=most + 1 {
            doubts.add(seq * 2);
        }
        assert!(doubts.0.lock().unwrap_or_else(PoisonError::into_inner).since.is_empty());
        assert!(doubts.is_in_doubt(2) && doubts.is_in_doubt(2 * (most + 1)) && !doubts.is_in_doubt(2 * most + 3));
    }
}
