//! Whether an event has reached its workflow already: asked where an attempt may have, and nothing says so.
//!
//! Temporal forgets a `request_id` with the run that knew it. Where another run may follow, our own mark in the histories
//! is what tells ([ADR 0025](../../../docs/adr/0025-once-in-temporal.md)).

use std::collections::{HashMap, HashSet};
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
/// Events of a history in one answer, at first: fewer where they are so large that the answer cannot be read.
const PAGE: i32 = 32;
/// Answers of one history that are read. A history has at most 51,200 events and 50 MiB.
///
/// Source: temporalio/temporal `limit.historyCount.error`, `limit.historySize.error`.
const PAGES: usize = 4_000;
/// Runs that followed each other in a chain.
const CHAIN: usize = 100;
/// Runs of one workflow that are looked at.
const RUNS: usize = 200;
/// Rows of Temporal's index in one answer.
const ROWS: i32 = 100;
/// Events of this process that are remembered one by one.
const REMEMBERED: usize = 100_000;

/// Which events may have reached Temporal with nothing recorded.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Everything up to here may have, before this replica began to deliver.
    up_to: Seq,
    /// Attempts of this replica whose answer was lost, with the time of the first one.
    lost: HashMap<Seq, Timestamp>,
}

/// How much is in doubt about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Nothing: it has not been sent.
    None,
    /// Whoever delivered before may have sent it.
    Before,
    /// It was sent at this time, and the answer was lost.
    Lost(Timestamp),
}

impl Doubts {
    /// Somebody else may have delivered up to here.
    pub(crate) fn begin(&self, up_to: Seq) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.up_to = known.up_to.max(up_to);
    }

    /// An attempt at this time has ended without a certain answer.
    pub(crate) fn add(&self, seq: Seq, at: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.lost.entry(seq).or_insert(at);
        if known.lost.len() > REMEMBERED {
            // To ask once too often is only slow.
            let last = known.lost.drain().map(|(seq, _)| seq).max();
            known.up_to = known.up_to.max(last.unwrap_or_default());
        }
    }

    /// These are recorded, or a person decides about them.
    pub(crate) fn settle(&self, seqs: &[Seq]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for seq in seqs {
            known.lost.remove(seq);
        }
    }

    pub(crate) fn of(&self, seq: Seq) -> Doubt {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.lost.get(&seq) {
            Some(at) => Doubt::Lost(*at),
            None if seq <= known.up_to => Doubt::Before,
            None => Doubt::None,
        }
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
    let mut looked = HashSet::new();
    let mut history = History { temporal, namespace, workflow_id, identity, since };
    if let Some(run) = history.chain(&newest_run, &mut looked).await? {
        return Ok(Trace::Found(run));
    }
    // What was here before the event came was all that it could have reached.
    if millis(newest.start_time.as_ref()) >= since.as_millis() {
        for run in earlier(temporal, (namespace, workflow_id), &newest_run, since).await? {
            if let Some(run) = history.chain(&run, &mut looked).await? {
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
    newest: &str,
    since: Timestamp,
) -> Result<Vec<String>, TemporalError> {
    let (mut runs, mut knows_newest) = (Vec::new(), false);
    let mut token = Vec::new();
    loop {
        let request = ws::ListWorkflowExecutionsRequest {
            namespace: namespace.to_owned(),
            page_size: ROWS,
            next_page_token: std::mem::take(&mut token),
            // The other filters are not known to every store.
            query: format!("WorkflowId = '{}'", workflow_id.replace('\\', "\\\\").replace('\'', "\\'")),
        };
        let answer = temporal.list(request).await?;
        let is_late = |run: &&WorkflowExecutionInfo| {
            run.close_time.is_none() || millis(run.close_time.as_ref()) >= since.as_millis()
        };
        knows_newest |= answer.executions.iter().any(|run| run_id(run) == newest);
        runs.extend(answer.executions.iter().filter(is_late).map(|run| run_id(run).to_owned()));
        if runs.len() > RUNS {
            let text = format!("workflow {workflow_id} has had more than {RUNS} runs since the event came");
            return Err(TemporalError::not_known_yet(&text));
        }
        token = answer.next_page_token;
        // Newest first.
        if token.is_empty() || !answer.executions.iter().any(|run| is_late(&run)) {
            break;
        }
    }
    // Where it does not know the newest run, it may not know others.
    if knows_newest { Ok(runs) } else { Err(TemporalError::not_known_yet("Temporal's index is behind")) }
}

/// Histories in which our mark is looked for.
struct History<'a> {
    temporal: &'a Temporal,
    namespace: &'a str,
    workflow_id: &'a str,
    identity: &'a str,
    since: Timestamp,
}

/// What a history says.
enum Says {
    Marked,
    /// The run it has continued, which may be marked.
    Follows(String),
    Nothing,
}

impl History<'_> {
    /// The run with our mark, of this one and those that it has continued since.
    async fn chain(&mut self, run: &str, looked: &mut HashSet<String>) -> Result<Option<String>, TemporalError> {
        let mut run = run.to_owned();
        for _ in 0..CHAIN {
            if !looked.insert(run.clone()) {
                return Ok(None);
            }
            match self.read(&run).await? {
                Says::Marked => return Ok(Some(run)),
                Says::Nothing => return Ok(None),
                Says::Follows(before) => run = before,
            }
        }
        Err(TemporalError::not_known_yet("a chain of more runs than are read"))
    }

    async fn read(&self, run: &str) -> Result<Says, TemporalError> {
        let (mut token, mut page) = (Vec::new(), PAGE);
        for _ in 0..PAGES {
            let request = ws::GetWorkflowExecutionHistoryReverseRequest {
                namespace: self.namespace.to_owned(),
                execution: Some(execution(self.workflow_id, Some(run))),
                maximum_page_size: page,
                next_page_token: token.clone(),
            };
            let answer = match self.temporal.history_backwards(request).await {
                Ok(answer) => answer,
                // Removed meanwhile: its time is over.
                Err(error) if error.class == ErrorClass::NoWorkflow => return Ok(Says::Nothing),
                Err(error) if error.class == ErrorClass::TooLarge && page > 1 => {
                    page /= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let events = answer.history.unwrap_or_default().events;
            if events.iter().any(|event| is_marked(event, self.identity)) {
                return Ok(Says::Marked);
            }
            let Some(oldest) = events.last() else { return Ok(Says::Nothing) };
            if millis(oldest.event_time.as_ref()) < self.since.as_millis() {
                return Ok(Says::Nothing);
            }
            if let Some(Attributes::WorkflowExecutionStartedEventAttributes(started)) = &oldest.attributes {
                let before = started.continued_execution_run_id.clone();
                return Ok(if before.is_empty() { Says::Nothing } else { Says::Follows(before) });
            }
            if answer.next_page_token.is_empty() {
                return Ok(Says::Nothing);
            }
            token = answer.next_page_token;
        }
        Err(TemporalError::not_known_yet("a history of more events than are read"))
    }
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

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn what_was_there_before_and_what_had_no_answer_is_in_doubt() {
        let doubts = Doubts::default();
        doubts.begin(7);
        doubts.add(9, NOW);
        doubts.add(9, NOW.plus_millis(5));

        let found: Vec<Doubt> = (7..=10).map(|seq| doubts.of(seq)).collect();
        assert_eq!(found, [Doubt::Before, Doubt::None, Doubt::Lost(NOW), Doubt::None]);
        doubts.settle(&[9]);
        assert_eq!((doubts.of(9), doubts.of(7)), (Doubt::None, Doubt::Before));
        doubts.begin(10);
        assert_eq!(doubts.of(9), Doubt::Before);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_is_forgotten() {
        let doubts = Doubts::default();
        let most = Seq::try_from(REMEMBERED).unwrap_or(Seq::MAX);
        for seq in 1..=most + 1 {
            doubts.add(seq * 2, NOW);
        }
        assert!(doubts.0.lock().unwrap_or_else(PoisonError::into_inner).lost.is_empty());
        assert_eq!((doubts.of(2), doubts.of(2 * (most + 1))), (Doubt::Before, Doubt::Before));
        assert_eq!(doubts.of(2 * most + 3), Doubt::None);
    }
}
