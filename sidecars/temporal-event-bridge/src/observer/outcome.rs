//! What the close event of a run says: the end of the workflow, or that another run goes on.

use kit_temporal::api::common::v1::Payloads;
use kit_temporal::api::enums::v1::{ContinueAsNewInitiator, RetryState, WorkflowExecutionStatus};
use kit_temporal::api::failure::v1::Failure;
use kit_temporal::api::history::v1::HistoryEvent;
use kit_temporal::api::history::v1::history_event::Attributes;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Completed,
    Failed,
    Canceled,
    Terminated,
    TimedOut,
    /// Another run of the same workflow goes on.
    Continued,
    /// Nobody knows: the server has forgotten it.
    Unknown,
}

impl Kind {
    /// Every one there is, for metrics that exist from the start.
    pub(crate) const ALL: [Self; 7] = [
        Self::Completed,
        Self::Failed,
        Self::Canceled,
        Self::Terminated,
        Self::TimedOut,
        Self::Continued,
        Self::Unknown,
    ];

    /// The last word of the event's type.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Terminated => "terminated",
            Self::TimedOut => "timed_out",
            Self::Continued => "continued",
            Self::Unknown => "unknown",
        }
    }

    /// Of a status that the visibility store or a description shows; `None` while it is open.
    pub(crate) fn of_status(status: WorkflowExecutionStatus) -> Option<Self> {
        match status {
            WorkflowExecutionStatus::Completed => Some(Self::Completed),
            WorkflowExecutionStatus::Failed => Some(Self::Failed),
            WorkflowExecutionStatus::Canceled => Some(Self::Canceled),
            WorkflowExecutionStatus::Terminated => Some(Self::Terminated),
            WorkflowExecutionStatus::TimedOut => Some(Self::TimedOut),
            WorkflowExecutionStatus::ContinuedAsNew => Some(Self::Continued),
            WorkflowExecutionStatus::Running
            | WorkflowExecutionStatus::Paused
            | WorkflowExecutionStatus::Unspecified => None,
        }
    }
}

/// What a close event says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) kind: Kind,
    /// The status that the run itself has, where another run goes on: a retried run has failed all the same.
    pub(crate) run_status: Kind,
    /// The run that goes on.
    pub(crate) next_run_id: Option<String>,
    /// What it returned, or what came with its cancellation or termination.
    pub(crate) result: Option<Payloads>,
    pub(crate) failure: Option<Failure>,
    /// Whether it would have been retried, in the server's word.
    pub(crate) retry_state: Option<&'static str>,
    /// Why another run goes on, in the server's word.
    pub(crate) initiator: Option<&'static str>,
    /// Why it was terminated.
    pub(crate) reason: Option<String>,
    /// Who terminated it.
    pub(crate) identity: Option<String>,
}

impl Ended {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            run_status: kind,
            next_run_id: None,
            result: None,
            failure: None,
            retry_state: None,
            initiator: None,
            reason: None,
            identity: None,
        }
    }

    /// Nobody knows how it ended.
    pub(crate) fn unknown() -> Self {
        Self::new(Kind::Unknown)
    }

    /// The run has this status, and nothing more is known. A failed or timed-out run may have been retried, so that says
    /// nothing about the workflow.
    pub(crate) fn by_status(status: Option<Kind>) -> Self {
        let Some(status) = status else { return Self::unknown() };
        let kind = match status {
            Kind::Completed | Kind::Canceled | Kind::Terminated => status,
            Kind::Failed | Kind::TimedOut | Kind::Continued | Kind::Unknown => Kind::Unknown,
        };
        Self { run_status: status, ..Self::new(kind) }
    }

    /// Reads a close event. `None`: it is none, the run is still open.
    ///
    /// Asked for with `follows-next-run-id`, an event that names a next run is not the end of the workflow: it was
    /// retried, continued or is due again by its cron schedule. Without, or of servers that do not know the word, such an event
    /// is shown as continued: not the end either.
    pub(crate) fn read(event: HistoryEvent) -> Option<Self> {
        let mut ended = match event.attributes? {
            Attributes::WorkflowExecutionCompletedEventAttributes(close) => {
                let next_run_id = some(close.new_execution_run_id);
                Self { result: close.result, next_run_id, ..Self::new(Kind::Completed) }
            }
            Attributes::WorkflowExecutionFailedEventAttributes(close) => {
                let retry_state = retry_state(close.retry_state);
                let next_run_id = some(close.new_execution_run_id);
                Self { failure: close.failure, retry_state, next_run_id, ..Self::new(Kind::Failed) }
            }
            Attributes::WorkflowExecutionTimedOutEventAttributes(close) => {
                let retry_state = retry_state(close.retry_state);
                Self { retry_state, next_run_id: some(close.new_execution_run_id), ..Self::new(Kind::TimedOut) }
            }
            Attributes::WorkflowExecutionCanceledEventAttributes(close) => {
                Self { result: close.details, ..Self::new(Kind::Canceled) }
            }
            Attributes::WorkflowExecutionTerminatedEventAttributes(close) => Self {
                result: close.details,
                reason: some(close.reason),
                identity: some(close.identity),
                ..Self::new(Kind::Terminated)
            },
            Attributes::WorkflowExecutionContinuedAsNewEventAttributes(close) => Self {
                next_run_id: some(close.new_execution_run_id),
                initiator: ContinueAsNewInitiator::try_from(close.initiator).ok().map(|initiator| match initiator {
                    // What workers leave out.
                    ContinueAsNewInitiator::Workflow | ContinueAsNewInitiator::Unspecified => "workflow",
                    ContinueAsNewInitiator::Retry => "retry",
                    ContinueAsNewInitiator::CronSchedule => "cron_schedule",
                }),
                ..Self::new(Kind::Continued)
            },
            _ => return None,
        };
        if ended.next_run_id.is_some() {
            ended.initiator = ended.initiator.or(match ended.run_status {
                Kind::Completed => Some("cron_schedule"),
                Kind::Failed | Kind::TimedOut => Some("retry"),
                _ => None,
            });
            ended.kind = Kind::Continued;
        }
        Some(ended)
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn retry_state(value: i32) -> Option<&'static str> {
    Some(match RetryState::try_from(value).ok()? {
        RetryState::Unspecified => return None,
        RetryState::InProgress => "in_progress",
        RetryState::NonRetryableFailure => "non_retryable_failure",
        RetryState::Timeout => "timeout",
        RetryState::MaximumAttemptsReached => "maximum_attempts_reached",
        RetryState::RetryPolicyNotSet => "retry_policy_not_set",
        RetryState::InternalServerError => "internal_server_error",
        RetryState::CancelRequested => "cancel_requested",
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit_temporal::api::history::v1 as history;

    use super::*;

    fn read(attributes: Attributes) -> Option<Ended> {
        Ended::read(HistoryEvent { attributes: Some(attributes), ..HistoryEvent::default() })
    }

    fn failed(next: &str) -> Attributes {
        Attributes::WorkflowExecutionFailedEventAttributes(history::WorkflowExecutionFailedEventAttributes {
            failure: Some(Failure { message: "m".to_owned(), ..Failure::default() }),
            retry_state: RetryState::InProgress as i32,
            new_execution_run_id: next.to_owned(),
            ..Default::default()
        })
    }

    #[test]
    fn a_run_that_another_one_follows_is_not_the_end() {
        let end = read(failed("")).unwrap();
        assert_eq!((end.kind, end.next_run_id.as_deref(), end.initiator), (Kind::Failed, None, None));

        let retried = read(failed("next")).unwrap();
        assert_eq!((retried.kind, retried.run_status), (Kind::Continued, Kind::Failed));
        assert_eq!((retried.next_run_id.as_deref(), retried.initiator), (Some("next"), Some("retry")));
        assert_eq!((retried.retry_state, retried.failure.unwrap().message), (Some("in_progress"), "m".to_owned()));

        let cron = history::WorkflowExecutionCompletedEventAttributes {
            new_execution_run_id: "next".to_owned(),
            ..Default::default()
        };
        let cron = read(Attributes::WorkflowExecutionCompletedEventAttributes(cron)).unwrap();
        assert_eq!((cron.kind, cron.initiator), (Kind::Continued, Some("cron_schedule")));
    }

    #[test]
    fn a_status_alone_says_how_a_workflow_ended_where_no_retry_can_follow() {
        let by = |status| Ended::by_status(status).kind;
        for status in [Kind::Completed, Kind::Canceled, Kind::Terminated] {
            assert_eq!(by(Some(status)), status);
        }
        for status in [Some(Kind::Failed), Some(Kind::TimedOut), None] {
            assert_eq!(by(status), Kind::Unknown);
        }
        assert_eq!(Ended::by_status(Some(Kind::Failed)).run_status, Kind::Failed);
    }

    #[test]
    fn what_does_not_close_a_run_is_no_end() {
        let signaled = Attributes::WorkflowExecutionSignaledEventAttributes(Default::default());
        assert_eq!(read(signaled), None);
        assert_eq!(Ended::read(HistoryEvent::default()), None);
    }

    #[test]
    fn a_termination_tells_who_and_why() {
        let closed = history::WorkflowExecutionTerminatedEventAttributes {
            reason: "r".to_owned(),
            identity: "i".to_owned(),
            ..Default::default()
        };
        let end = read(Attributes::WorkflowExecutionTerminatedEventAttributes(closed)).unwrap();
        assert_eq!(
            (end.kind, end.reason.as_deref(), end.identity.as_deref()),
            (Kind::Terminated, Some("r"), Some("i"))
        );
    }
}
