//! Temporal as a sink of the delivery engine: what an event's rule asks for, asked once, and what an answer means for the
//! event.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::clock::SharedClock;
use kit_delivery::{Failure, Interest, Outcome, PassedBy, Sink};
use kit_journal::{EventHead, JournalError, Seq, StoredEvent};
use kit_temporal::api::workflowservice::v1 as ws;
use kit_temporal::client::execution;
use kit_temporal::{ErrorClass, LEAST_RETENTION, Retention, Temporal, TemporalError};

use crate::direction::is_for_temporal;
use crate::metrics::{CallMetrics, Done};
use crate::observer::{Attached, Tracker};
use crate::planner::Planner;
use crate::rules::{Call, Found, OnConflict, OnMissing, Plan};
use crate::trace::{self, Doubt, Doubts, Trace};

/// Name of the sink in the journal, metrics and the API.
pub(crate) const SINK: &str = "temporal";
/// How often an event that is in doubt finds its workflow running and ended by the time it is signalled.
const CHASES: usize = 3;

/// The code of gRPC.
const PERMISSION_DENIED: i32 = 7;

/// Brings events to Temporal.
#[derive(Debug)]
pub(crate) struct TemporalSink {
    temporal: Temporal,
    planner: Planner,
    doubts: Doubts,
    /// Namespaces that have been there since the start.
    seen: Mutex<HashSet<String>>,
    /// Is told which runs have an event to thank for.
    tracker: Arc<Tracker>,
    /// What every workflow is started with, so that its end is known at once.
    attached: Option<Attached>,
    clock: SharedClock,
    metrics: CallMetrics,
}

/// How a request has ended that Temporal has answered.
enum Answered {
    /// It has done it, now or before; what, and to which run where it says so.
    Done(Done, Option<String>),
    /// The workflow's id is taken.
    Taken,
    /// There is no such workflow that is running.
    Missing,
}

impl TemporalSink {
    pub(crate) fn new(
        temporal: Temporal,
        planner: Planner,
        tracker: Arc<Tracker>,
        attached: Option<Attached>,
        clock: SharedClock,
        metrics: CallMetrics,
    ) -> Self {
        Self { temporal, planner, doubts: Doubts::default(), seen: Mutex::default(), tracker, attached, clock, metrics }
    }

    async fn perform(&self, plan: &Plan<'_>, event: &StoredEvent) -> Outcome {
        let doubt = self.doubts.of(event.seq);
        match self.is_too_late(plan, doubt).await {
            Ok(None) => {}
            Ok(Some(reason)) => {
                // Whoever replays it has decided.
                self.doubts.settle(&[event.seq]);
                return Outcome::failed(Failure::Refused, reason);
            }
            Err(error) => return self.failed(plan, &error),
        }
        let answered = match self.ask(plan, event, doubt != Doubt::None).await {
            Ok(answered) => answered,
            Err(error) => {
                if error.is_in_doubt() {
                    self.doubts.add(event.seq, self.clock.now());
                }
                return self.failed(plan, &error);
            }
        };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(plan.namespace.clone());
        let rule = plan.rule.name();
        let workflow = &plan.workflow_id;
        match answered {
            Answered::Done(done, run) => {
                self.metrics.done(rule, done);
                let mut said = format!("{} {workflow}", done.word());
                if let Some(run) = run {
                    self.tracker.started(event.seq, &plan.namespace, workflow, &run);
                    said = format!("{said} run {run}");
                }
                Outcome { response: Some(said), ..Outcome::taken() }
            }
            Answered::Taken => {
                self.metrics.done(rule, Done::Conflict);
                let reason = format!("rule {rule}: another event has started workflow {workflow}");
                match plan.rule.on_conflict() {
                    OnConflict::Ignore => Outcome::passed_by(PassedBy::Filtered, reason),
                    // A signal was tried instead where that is wanted.
                    OnConflict::Park | OnConflict::Signal => Outcome::failed(Failure::Refused, reason),
                }
            }
            Answered::Missing => {
                self.metrics.done(rule, Done::Missing);
                let reason = format!("rule {rule}: no workflow {workflow} is running");
                match plan.rule.on_missing() {
                    OnMissing::Ignore => Outcome::passed_by(PassedBy::Filtered, reason),
                    OnMissing::Retry => Outcome::failed(Failure::Unroutable, reason),
                    OnMissing::Park => Outcome::failed(Failure::Refused, reason),
                }
            }
        }
    }

    /// Why nobody can tell any more what a lost answer said: Temporal has removed what ended since, or may have.
    async fn is_too_late(&self, plan: &Plan<'_>, doubt: Doubt) -> Result<Option<String>, TemporalError> {
        let Doubt::Lost(at) = doubt else { return Ok(None) };
        let age = self.clock.now().since(at);
        if age < LEAST_RETENTION {
            return Ok(None);
        }
        let retention = self.temporal.retention(&plan.namespace).await.map_err(TemporalError::of_a_question)?;
        Ok((age >= retention.at_least()).then(|| {
            let (rule, workflow) = (plan.rule.name(), &plan.workflow_id);
            let hours = age.as_secs() / 3600;
            let forgotten = match retention {
                Retention::Unknown => "may have forgotten (we may not ask for how long it remembers)",
                Retention::Told(_) | Retention::Configured(_) => "has forgotten",
            };
            format!(
                "rule {rule}: an answer about workflow {workflow} was lost {hours} h ago, and Temporal {forgotten} by now what \
                 ended since: look whether it has run, and replay or drop the event"
            )
        }))
    }

    async fn ask(&self, plan: &Plan<'_>, event: &StoredEvent, is_in_doubt: bool) -> Result<Answered, TemporalError> {
        match &plan.call {
            Call::Start(request, instead) => self.start(plan, event, request, instead.as_deref(), is_in_doubt).await,
            Call::Signal(request) => self.once(plan, event, is_in_doubt, || self.signal((**request).clone())).await,
            Call::SignalWithStart(request) => self.signal_with_start(plan, event, request, is_in_doubt).await,
            Call::Cancel(request) => {
                let cancel = || async { answered(Done::Cancelled, self.temporal.cancel((**request).clone()).await) };
                self.once(plan, event, is_in_doubt, cancel).await
            }
            Call::Terminate(request) => {
                let end = || async { answered(Done::Terminated, self.temporal.terminate((**request).clone()).await) };
                self.once(plan, event, is_in_doubt, end).await
            }
        }
    }

    async fn start(
        &self,
        plan: &Plan<'_>,
        event: &StoredEvent,
        request: &ws::StartWorkflowExecutionRequest,
        instead: Option<&ws::SignalWorkflowExecutionRequest>,
        is_in_doubt: bool,
    ) -> Result<Answered, TemporalError> {
        // Where an ended workflow keeps its id Temporal tells itself.
        if is_in_doubt
            && !plan.rule.keeps_ids()
            && let Trace::Found(run) = self.trace(plan, event).await?
        {
            return Ok(Answered::Done(Done::Known, Some(run)));
        }
        let error = match self.start_attached(plan, request).await {
            Ok(answer) if plan.rule.uses_existing() && !answer.started => {
                return Ok(Answered::Done(Done::Existing, Some(answer.run_id)));
            }
            Ok(answer) => return Ok(Answered::Done(Done::Started, Some(answer.run_id))),
            Err(error) => error,
        };
        let ErrorClass::AlreadyStarted { request_id, run_id } = &error.class else { return Err(error) };
        if plan.is_unique || *request_id == plan.request_id {
            return Ok(Answered::Done(Done::Known, Some(run_id.clone())));
        }
        // The run that has the id now may have followed the one that this event has started.
        if is_in_doubt && let Trace::Found(run) = self.trace(plan, event).await? {
            return Ok(Answered::Done(Done::Known, Some(run)));
        }
        match instead {
            Some(signal) => match self.signal(signal.clone()).await? {
                // It has ended.
                Answered::Missing => Ok(Answered::Taken),
                signalled => Ok(signalled),
            },
            None => Ok(Answered::Taken),
        }
    }

    /// Starts with the callback, or without it where Temporal takes none: ends are found anyway.
    async fn start_attached(
        &self,
        plan: &Plan<'_>,
        request: &ws::StartWorkflowExecutionRequest,
    ) -> Result<ws::StartWorkflowExecutionResponse, TemporalError> {
        let attached = self.attached.as_ref().filter(|attached| attached.is_wanted());
        let Some(attached) = attached else { return self.temporal.start(request.clone()).await };
        let mut with = request.clone();
        with.completion_callbacks = vec![attached.to(&plan.namespace, &plan.workflow_id)];
        match self.temporal.start(with).await {
            Err(refused) if refused.class == ErrorClass::Invalid => {
                let without = self.temporal.start(request.clone()).await;
                if without.is_ok() {
                    attached.refused();
                    tracing::warn!(
                        error = %refused,
                        "Temporal takes no callback to SIDECAR_OBSERVER__CALLBACKS__URL, workflows are started without one \
                         and their ends found by looking; allow the address in callback.allowedAddresses and \
                         component.callbacks.allowedAddresses: {refused}"
                    );
                }
                without
            }
            answer => answer,
        }
    }

    /// A signal to a workflow that has ended is lost with the run that knew it, and starts the next run a second time; up
    /// to 1.32.0 the server does not tell.
    async fn signal_with_start(
        &self,
        plan: &Plan<'_>,
        event: &StoredEvent,
        request: &ws::SignalWithStartWorkflowExecutionRequest,
        is_in_doubt: bool,
    ) -> Result<Answered, TemporalError> {
        let mut chases = if is_in_doubt { CHASES } else { 0 };
        while chases > 0 {
            chases -= 1;
            match self.trace(plan, event).await? {
                Trace::Found(run) => return Ok(Answered::Done(Done::Known, Some(run))),
                Trace::Absent => break,
                // It may be among what the run has not written down yet. The run itself tells, as long as it is this one.
                Trace::Running(run) => match self.signal(pinned(request, &run)).await? {
                    Answered::Missing => {}
                    signalled => return Ok(signalled),
                },
            }
        }
        match self.temporal.signal_with_start(request.clone()).await {
            Ok(answer) => {
                let done = if answer.started { Done::Started } else { Done::Signalled };
                Ok(Answered::Done(done, Some(answer.run_id)))
            }
            Err(TemporalError { class: ErrorClass::AlreadyStarted { .. }, .. }) => Ok(Answered::Taken),
            Err(error) => Err(error),
        }
    }

    /// What is done to a workflow that runs, unless it was done before.
    async fn once<F, A>(
        &self,
        plan: &Plan<'_>,
        event: &StoredEvent,
        is_in_doubt: bool,
        act: F,
    ) -> Result<Answered, TemporalError>
    where
        F: Fn() -> A,
        A: Future<Output = Result<Answered, TemporalError>>,
    {
        if is_in_doubt && let Trace::Found(run) = self.trace(plan, event).await? {
            return Ok(Answered::Done(Done::Known, Some(run)));
        }
        let answered = act().await?;
        // It may have ended in between, and written down what it had not before.
        if is_in_doubt
            && matches!(answered, Answered::Missing)
            && let Trace::Found(run) = self.trace(plan, event).await?
        {
            return Ok(Answered::Done(Done::Known, Some(run)));
        }
        Ok(answered)
    }

    async fn signal(&self, request: ws::SignalWorkflowExecutionRequest) -> Result<Answered, TemporalError> {
        answered(Done::Signalled, self.temporal.signal(request).await)
    }

    async fn trace(&self, plan: &Plan<'_>, event: &StoredEvent) -> Result<Trace, TemporalError> {
        let workflow = (plan.namespace.as_str(), plan.workflow_id.as_str());
        let found = trace::find(&self.temporal, workflow, &plan.identity, event.at).await;
        found.map_err(TemporalError::of_a_question)
    }

    fn failed(&self, plan: &Plan<'_>, error: &TemporalError) -> Outcome {
        let is_own = plan.namespace == self.temporal.namespace();
        let failure = match &error.class {
            ErrorClass::NotSent | ErrorClass::NoAnswer => Failure::Unreachable,
            ErrorClass::Unavailable => Failure::Unavailable,
            // What we may not do in one rule's namespace keeps nobody from another one.
            ErrorClass::Denied if !is_own && error.code == Some(PERMISSION_DENIED) => Failure::Unroutable,
            ErrorClass::Denied => Failure::Denied,
            ErrorClass::Exhausted => Failure::Throttled,
            ErrorClass::BusyWorkflow | ErrorClass::Failed | ErrorClass::TooLarge => Failure::Busy,
            ErrorClass::NoNamespace => {
                let was_there = self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(&plan.namespace);
                // It may not have been made yet: then nothing can be brought anywhere, and nothing of it is the events'
                // fault. One that was there, or is a single rule's, is tried as long as the schedule says.
                if is_own && !was_there { Failure::Denied } else { Failure::Unroutable }
            }
            ErrorClass::Invalid | ErrorClass::NoWorkflow | ErrorClass::AlreadyStarted { .. } => Failure::Refused,
        };
        let error = format!("rule {}: {error}", plan.rule.name());
        Outcome::failed(failure, error)
    }
}

/// The answer to something that is done to a workflow that runs.
fn answered(done: Done, answer: Result<(), TemporalError>) -> Result<Answered, TemporalError> {
    match answer {
        Ok(()) => Ok(Answered::Done(done, None)),
        Err(error) => match &error.class {
            ErrorClass::NoWorkflow => Ok(Answered::Missing),
            // It was asked to end before.
            ErrorClass::AlreadyStarted { .. } if done == Done::Cancelled => Ok(Answered::Done(Done::Known, None)),
            _ => Err(error),
        },
    }
}

/// The signal alone, to this run and no other.
fn pinned(request: &ws::SignalWithStartWorkflowExecutionRequest, run: &str) -> ws::SignalWorkflowExecutionRequest {
    ws::SignalWorkflowExecutionRequest {
        namespace: request.namespace.clone(),
        workflow_execution: Some(execution(&request.workflow_id, Some(run))),
        signal_name: request.signal_name.clone(),
        input: request.signal_input.clone(),
        identity: request.identity.clone(),
        request_id: request.request_id.clone(),
        ..Default::default()
    }
}

/// Whether an event is for Temporal at all; which rule is for it is asked when it is loaded.
pub(crate) fn wants(head: &EventHead) -> bool {
    is_for_temporal(head)
}

impl Sink for TemporalSink {
    fn name(&self) -> &str {
        SINK
    }

    fn wants(&self, head: &EventHead) -> bool {
        wants(head)
    }

    fn interest(&self, event: &StoredEvent) -> Interest {
        if !wants(&event.head) {
            return Interest::Unwanted;
        }
        match self.planner.rules.find(event, |_| None) {
            Found::None => Interest::PassedBy(PassedBy::Filtered, "no rule is for it".to_owned()),
            Found::Rule(_) | Found::Asks(_) => Interest::Wanted,
        }
    }

    fn lead(&self, accepted: Seq) -> BoxFuture<'_, Result<(), JournalError>> {
        self.doubts.begin(accepted);
        std::future::ready(Ok(())).boxed()
    }

    fn recording(&self, delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        self.doubts.settle(delivered);
        self.tracker.recording(delivered)
    }

    /// A workflow that was started is there, and one that was signalled has the signal.
    fn repeats(&self) -> bool {
        false
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        async move {
            match self.planner.plan(event).await {
                Ok(plan) => self.perform(&plan, event).await,
                Err(outcome) => outcome,
            }
        }
        .boxed()
    }
}
