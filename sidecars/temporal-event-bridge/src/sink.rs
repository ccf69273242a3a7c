//! Temporal as a sink of the delivery engine: what an event's rule asks for, asked once, and what an answer means for the
//! event.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::clock::SharedClock;
use kit_delivery::{Failure, Interest, Outcome, PassedBy, Sink};
use kit_journal::{EventHead, JournalError, Seq, StoredEvent};
use kit_routes::jq::{Jq, JqError, Question};
use kit_temporal::api::common::v1::Payload;
use kit_temporal::api::workflowservice::v1 as ws;
use kit_temporal::client::execution;
use kit_temporal::{ErrorClass, Temporal, TemporalError, payload};

use crate::direction::is_for_temporal;
use crate::metrics::{CallMetrics, Done};
use crate::observer::{Attached, Tracker};
use crate::rules::{Argument, Call, Found, OnConflict, OnMissing, Plan, Rule, Rules, as_event, part};
use crate::trace::{self, Doubt, Doubts, Trace};

/// Name of the sink in the journal, metrics and the API.
pub(crate) const SINK: &str = "temporal";
/// How long an event waits when no process for jq can be started.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How often an event that is in doubt finds its workflow running and ended by the time it is signalled.
const CHASES: usize = 3;

/// Temporal keeps ended workflows no shorter than this.
///
/// Source: temporalio/temporal `system.namespaceMinRetentionLocal`.
const LEAST_RETENTION: Duration = Duration::from_secs(3600);
/// The code of gRPC.
const PERMISSION_DENIED: i32 = 7;

/// Brings events to Temporal.
#[derive(Debug)]
pub(crate) struct TemporalSink {
    temporal: Temporal,
    rules: Rules,
    jq: Jq,
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
        rules: Rules,
        jq: Jq,
        tracker: Arc<Tracker>,
        attached: Option<Attached>,
        clock: SharedClock,
        metrics: CallMetrics,
    ) -> Self {
        Self {
            temporal,
            rules,
            jq,
            doubts: Doubts::default(),
            seen: Mutex::default(),
            tracker,
            attached,
            clock,
            metrics,
        }
    }

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

    async fn plan(&self, event: &StoredEvent) -> Result<Plan<'_>, Outcome> {
        let gone_wrong = |error| match error {
            JqError::Failed(why) => Outcome::failed(Failure::Unsendable, format!("jq: {why}")),
            JqError::Away(why) => Outcome::withheld(format!("jq cannot be run: {why}"), ASK_AGAIN),
        };
        let rule = self.rule(event).await.map_err(gone_wrong)?;
        let rule = rule.ok_or_else(|| Outcome::passed_by(PassedBy::Filtered, "no rule is for it"))?;
        let input = self.argument(rule, ("transform", rule.input()), event).await.map_err(gone_wrong)?;
        let signal = ("signal_transform", rule.signal_input());
        let signal_input = self.argument(rule, signal, event).await.map_err(gone_wrong)?;
        let plan = rule.plan(self.temporal.namespace(), event, (input, signal_input));
        let plan = plan.map_err(|why| Outcome::failed(Failure::Unsendable, why))?;
        plan.ok_or_else(|| Outcome::passed_by(PassedBy::Filtered, format!("rule {} ignores it", rule.name())))
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
        let namespace = self.temporal.describe_namespace(&plan.namespace).await?;
        let retention = namespace.config.and_then(|config| config.workflow_execution_retention_ttl);
        let retention = Duration::from_secs(retention.map_or(0, |ttl| u64::try_from(ttl.seconds).unwrap_or(0)));
        Ok((age >= retention).then(|| {
            let (rule, workflow) = (plan.rule.name(), &plan.workflow_id);
            let hours = age.as_secs() / 3600;
            format!(
                "rule {rule}: an answer about workflow {workflow} was lost {hours} h ago, and Temporal has forgotten by now what \
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

fn told(error: JqError, about: &str) -> JqError {
    match error {
        JqError::Failed(why) => JqError::Failed(format!("{about}: {why}")),
        away => away,
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
        match self.rules.find(event, |_| None) {
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
            match self.plan(event).await {
                Ok(plan) => self.perform(&plan, event).await,
                Err(outcome) => outcome,
            }
        }
        .boxed()
    }
}
