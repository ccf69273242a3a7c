//! What an answer that is none means.
//!
//! Source: temporalio/api `temporal/api/errordetails/v1/message.proto`; temporalio/temporal `common/rpc`, v1.29 to v1.32.

use std::time::Duration;

use prost::Message as _;
use temporalio_protos::google::rpc::Status as RpcStatus;
use temporalio_protos::temporal::api::enums::v1::ResourceExhaustedCause;
use temporalio_protos::temporal::api::errordetails::v1::{
    NamespaceNotFoundFailure, ResourceExhaustedFailure, WorkflowExecutionAlreadyStartedFailure,
};
use tonic::{Code, Status};

/// Longest message that is kept of Temporal's answer, in characters.
const MESSAGE_CHARS: usize = 300;

/// What is to be done about an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// There was no connection to ask over: nothing was done.
    NotSent,
    /// There was no answer: whether Temporal has done it is not known, and the same request with the same `request_id`
    /// tells.
    NoAnswer,
    /// Temporal or something before it is not able to at the moment. As with [`Self::NoAnswer`], it may have done it.
    Unavailable,
    /// Temporal wants nothing of us: no, expired or insufficient credentials, or it is not Temporal that answers there.
    Denied,
    /// Too many requests, of everybody or of this namespace: nothing was done, and nothing is wrong with this request.
    Exhausted,
    /// This workflow takes no more at the moment. Nothing was done.
    BusyWorkflow,
    /// There is no such namespace, or none yet.
    NoNamespace,
    /// There is no such workflow, or it has ended.
    NoWorkflow,
    /// The workflow's id is taken.
    AlreadyStarted {
        /// `request_id` of the start that took it; empty where the server does not say.
        request_id: String,
        /// The run that has it.
        run_id: String,
    },
    /// Temporal will never take this request.
    Invalid,
    /// The answer is larger than is read.
    TooLarge,
    /// Temporal has failed over this request and may not the next time.
    Failed,
}

/// A call that brought no answer, or one that is none.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TemporalError {
    /// What is to be done about it.
    pub class: ErrorClass,
    /// gRPC code; `None` where nothing answered.
    pub code: Option<i32>,
    /// What happened in a sentence, without secrets.
    pub message: String,
}

impl TemporalError {
    /// The server answered nothing within this time.
    pub(crate) fn timed_out(call: &str, after: Duration) -> Self {
        let message = format!("Temporal did not answer {call} within {} s", after.as_secs_f64());
        Self { class: ErrorClass::NoAnswer, code: None, message }
    }

    /// No credentials could be had to ask with.
    pub(crate) fn no_credentials(why: &str) -> Self {
        // The token endpoint is away, or refuses us: either way nothing was asked.
        Self { class: ErrorClass::Denied, code: None, message: format!("no access token for Temporal: {why}") }
    }

    /// The request is larger than Temporal takes, and is not sent.
    pub(crate) fn too_large(call: &str, bytes: usize, most: usize) -> Self {
        let message = format!("{call} would have {bytes} bytes, and Temporal takes {most}");
        Self { class: ErrorClass::Invalid, code: None, message }
    }

    /// The same error of a question that nobody asked for: what is wrong with the question says nothing about the event
    /// that it was asked for.
    #[must_use]
    pub fn of_a_question(self) -> Self {
        match self.class {
            ErrorClass::Invalid | ErrorClass::TooLarge | ErrorClass::NoWorkflow | ErrorClass::AlreadyStarted { .. } => {
                Self { class: ErrorClass::Failed, ..self }
            }
            _ => self,
        }
    }

    /// Temporal's index does not know yet, or not all of, what has happened.
    pub fn not_known_yet(what: &str) -> Self {
        Self { class: ErrorClass::Failed, code: None, message: what.to_owned() }
    }

    /// Reads what a call ended with.
    pub(crate) fn of(call: &str, status: &Status) -> Self {
        // tonic makes statuses of its own where the connection fails; only those have a cause.
        if let Some(cause) = std::error::Error::source(status) {
            let class = if never_connected(cause) { ErrorClass::NotSent } else { ErrorClass::NoAnswer };
            let message = format!("Temporal cannot be reached: {}", shown(&deepest(cause)));
            return Self { class, code: None, message };
        }
        let class = classify(status);
        let message = format!("Temporal answered {call} with {:?}: {}", status.code(), shown(status.message()));
        Self { class, code: Some(status.code() as i32), message }
    }

    /// Whether this call is refused, and not the credentials: others may be allowed. What is not implemented was refused by
    /// something before Temporal.
    pub fn may_not_be_asked(&self) -> bool {
        const REFUSED: [i32; 2] = [Code::PermissionDenied as i32, Code::Unimplemented as i32];
        self.code.is_some_and(|code| REFUSED.contains(&code))
    }

    /// Whether Temporal may have done what it was asked, though nothing says so.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.class, ErrorClass::NoAnswer | ErrorClass::Unavailable | ErrorClass::Failed)
    }
}

fn classify(status: &Status) -> ErrorClass {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => ErrorClass::Denied,
        Code::ResourceExhausted => match detail::<ResourceExhaustedFailure>(status).map(|failure| failure.cause()) {
            Some(ResourceExhaustedCause::BusyWorkflow) => ErrorClass::BusyWorkflow,
            // Not Temporal but gRPC itself: it will be as large the next time.
            None if status.message().contains("larger than max") => ErrorClass::Invalid,
            _ => ErrorClass::Exhausted,
        },
        Code::NotFound if is_about_the_namespace(status) => ErrorClass::NoNamespace,
        Code::NotFound => ErrorClass::NoWorkflow,
        Code::AlreadyExists => {
            let failure = detail::<WorkflowExecutionAlreadyStartedFailure>(status).unwrap_or_default();
            ErrorClass::AlreadyStarted { request_id: failure.start_request_id, run_id: failure.run_id }
        }
        // What answers 404 without being gRPC is this as well: a proxy, or another server's port.
        Code::Unimplemented => ErrorClass::Denied,
        Code::InvalidArgument => ErrorClass::Invalid,
        // Only tonic says so, of what it has read.
        Code::OutOfRange => ErrorClass::TooLarge,
        Code::Unavailable => ErrorClass::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => ErrorClass::NoAnswer,
        // A namespace that is being moved to another cluster, for example.
        Code::FailedPrecondition => ErrorClass::Failed,
        Code::Ok | Code::Unknown | Code::Aborted | Code::Internal | Code::DataLoss => ErrorClass::Failed,
    }
}

fn is_about_the_namespace(status: &Status) -> bool {
    // The detail is there since server 1.19; before it there is only the text.
    detail::<NamespaceNotFoundFailure>(status).is_some() || status.message().starts_with("Namespace ")
}

/// The detail of this type, which travels as `google.rpc.Status` in `grpc-status-details-bin`.
fn detail<T: prost::Message + prost::Name + Default>(status: &Status) -> Option<T> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let found = details.iter().find(|any| any.type_url.rsplit('/').next() == Some(T::full_name().as_str()))?;
    T::decode(&*found.value).ok()
}

fn never_connected(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<tonic::ConnectError>())
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Wrappers repeat what they wrap.
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn shown(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T: prost::Message + prost::Name>(code: Code, message: &str, detail: &T) -> Status {
        let any = prost_wkt_types::Any {
            type_url: format!("type.googleapis.com/{}", T::full_name()),
            value: detail.encode_to_vec(),
        };
        let details = RpcStatus { code: code as i32, message: message.to_owned(), details: vec![any] }.encode_to_vec();
        Status::with_details(code, message, details.into())
    }

    fn class(status: &Status) -> ErrorClass {
        TemporalError::of("StartWorkflowExecution", status).class
    }

    #[test]
    fn every_code_has_its_class() {
        for (code, expected) in [
            (Code::InvalidArgument, ErrorClass::Invalid),
            (Code::Unimplemented, ErrorClass::Denied),
            (Code::FailedPrecondition, ErrorClass::Failed),
            (Code::OutOfRange, ErrorClass::TooLarge),
            (Code::Unauthenticated, ErrorClass::Denied),
            (Code::PermissionDenied, ErrorClass::Denied),
            (Code::NotFound, ErrorClass::NoWorkflow),
            (Code::ResourceExhausted, ErrorClass::Exhausted),
            (Code::Unavailable, ErrorClass::Unavailable),
            (Code::DeadlineExceeded, ErrorClass::NoAnswer),
            (Code::Internal, ErrorClass::Failed),
            (Code::Aborted, ErrorClass::Failed),
            (Code::Unknown, ErrorClass::Failed),
            (Code::AlreadyExists, ErrorClass::AlreadyStarted { request_id: String::new(), run_id: String::new() }),
        ] {
            assert_eq!(class(&Status::new(code, "text")), expected, "{code:?}");
        }
    }

    #[test]
    fn details_say_more_than_codes() {
        let taken = WorkflowExecutionAlreadyStartedFailure {
            start_request_id: "r-1".to_owned(),
            run_id: "run".to_owned(),
            ..Default::default()
        };
        let expected = ErrorClass::AlreadyStarted { request_id: "r-1".to_owned(), run_id: "run".to_owned() };
        assert_eq!(class(&with(Code::AlreadyExists, "started", &taken)), expected);
        let missing = NamespaceNotFoundFailure { namespace: "n".to_owned() };
        assert_eq!(class(&with(Code::NotFound, "no n", &missing)), ErrorClass::NoNamespace);
        assert_eq!(class(&Status::not_found("Namespace n is not found.")), ErrorClass::NoNamespace);
        let busy = ResourceExhaustedFailure { cause: ResourceExhaustedCause::BusyWorkflow as i32, scope: 0 };
        assert_eq!(class(&with(Code::ResourceExhausted, "busy", &busy)), ErrorClass::BusyWorkflow);
        let large = Status::resource_exhausted("grpc: received message larger than max (4194999 vs. 4194304)");
        assert_eq!(class(&large), ErrorClass::Invalid);
        let limited = ResourceExhaustedFailure { cause: ResourceExhaustedCause::RpsLimit as i32, scope: 0 };
        assert_eq!(class(&with(Code::ResourceExhausted, "limit", &limited)), ErrorClass::Exhausted);
    }

    #[tokio::test]
    async fn without_a_connection_nothing_can_have_been_done() {
        let section = crate::TemporalSection { address: Some("127.0.0.1:1".to_owned()), ..Default::default() };
        let temporal = crate::Temporal::new("temporal", &section, "0").expect("the section is fine");

        let error = temporal.describe("default", "w", None).await.expect_err("nobody listens there");

        assert_eq!((error.class.clone(), error.is_in_doubt()), (ErrorClass::NotSent, false), "{error}");
    }

    #[test]
    fn a_question_that_fails_says_nothing_about_its_event() {
        let of = |code| TemporalError::of("ListWorkflowExecutions", &Status::new(code, "x")).of_a_question().class;
        assert_eq!((of(Code::InvalidArgument), of(Code::OutOfRange)), (ErrorClass::Failed, ErrorClass::Failed));
        assert_eq!(of(Code::ResourceExhausted), ErrorClass::Exhausted);
    }

    #[test]
    fn what_is_said_is_short_and_fit_for_a_terminal() {
        let error =
            TemporalError::of("SignalWorkflowExecution", &Status::internal(format!("a\u{1b}[2J{}", "x".repeat(1000))));
        assert!(error.message.len() < 400 && !error.message.contains('\u{1b}'), "{}", error.message);
        assert_eq!((error.code, error.is_in_doubt()), (Some(13), true));
    }
}
