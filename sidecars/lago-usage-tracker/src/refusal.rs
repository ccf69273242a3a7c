//! Why a request is not taken, and the answer that says so, in Lago's words and statuses.
//!
//! Source: getlago/lago-api `app/controllers/concerns/api_errors.rb`, at v1.16.0 and at the head of 2026-08-21.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kit::serve::BodyError;
use kit_delivery::cloudevents::NotCloudEvents;
use kit_delivery::receive::NotReceived;
use kit_delivery::signature::Unverified;
use kit_lago::usage::answer::ErrorAnswer;
use kit_lago::usage::{BadBody, FieldErrors};
use serde::Serialize;

/// Why a request is not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    Encoded,
    Unauthorized,
    /// A webhook that nobody has signed whom we know.
    Unsigned(Unverified),
    /// The token's holder may not report for this subscription.
    Forbidden,
    /// Whether it may is not known before Lago tells more.
    Undecided,
    Body(BodyError),
    Bad(BadBody),
    NotCloudEvents(NotCloudEvents),
    /// There is no room for its events for too long.
    Busy,
    Invalid(FieldErrors),
    InvalidBatch(BTreeMap<String, FieldErrors>),
    NotFound,
    Journal,
}

/// Every word of [`Refusal::reason`].
pub(crate) const REASONS: [&str; 15] = [
    "content_encoding",
    "unauthorized",
    "signature",
    "forbidden",
    "undecided",
    "too_large",
    "too_slow",
    "stopping",
    "broken_off",
    "too_many_events",
    "bad_request",
    "invalid",
    "not_found",
    "busy",
    "journal",
];

impl Refusal {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Encoded => "content_encoding",
            Self::Unauthorized => "unauthorized",
            Self::Unsigned(_) => "signature",
            Self::Forbidden => "forbidden",
            Self::Undecided => "undecided",
            Self::Body(error) => error.reason(),
            Self::Bad(BadBody::TooMany) | Self::NotCloudEvents(NotCloudEvents::TooMany) => "too_many_events",
            Self::Bad(_) | Self::NotCloudEvents(_) => "bad_request",
            Self::Invalid(_) | Self::InvalidBatch(_) => "invalid",
            Self::NotFound => "not_found",
            Self::Busy => "busy",
            Self::Journal => "journal",
        }
    }
}

impl From<NotReceived> for Refusal {
    fn from(not: NotReceived) -> Self {
        match not {
            NotReceived::Encoded => Self::Encoded,
            NotReceived::Unsigned(why) => Self::Unsigned(why),
            NotReceived::Body(error) => Self::Body(error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Encoded => plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Media Type", None),
            Self::Unauthorized | Self::Unsigned(_) => plain(StatusCode::UNAUTHORIZED, "Unauthorized", None),
            Self::Forbidden => plain(StatusCode::FORBIDDEN, "Forbidden", Some("subscription_not_allowed")),
            Self::Body(BodyError::TooLarge(_)) => plain(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", None),
            Self::Body(BodyError::TimedOut) => plain(StatusCode::REQUEST_TIMEOUT, "Request Timeout", None),
            Self::Body(BodyError::BrokenOff) => plain(StatusCode::BAD_REQUEST, "BadRequest: the body broke off", None),
            Self::Body(BodyError::Stopping) | Self::Journal | Self::Busy | Self::Undecided => again(),
            Self::Bad(BadBody::NotAnObject) => {
                plain(StatusCode::BAD_REQUEST, "BadRequest: the body is not a JSON object", None)
            }
            Self::Bad(BadBody::NoEvent) => {
                plain(StatusCode::BAD_REQUEST, "BadRequest: param is missing or the value is empty: event", None)
            }
            Self::Bad(BadBody::TooMany) | Self::NotCloudEvents(NotCloudEvents::TooMany) => {
                invalid(BTreeMap::from([("events", ["too_many_events"])]))
            }
            Self::NotCloudEvents(NotCloudEvents::Type) => {
                plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Media Type: no CloudEvents", None)
            }
            Self::NotCloudEvents(_) => plain(StatusCode::BAD_REQUEST, "BadRequest: no CloudEvents 1.0", None),
            Self::Bad(BadBody::NoEvents) => invalid(BTreeMap::from([("events", ["no_events"])])),
            Self::Invalid(errors) => invalid(errors),
            Self::InvalidBatch(errors) => invalid(errors),
            Self::NotFound => plain(StatusCode::NOT_FOUND, "Not Found", Some("event_not_found")),
        }
    }
}

/// A refusal without details.
pub(crate) fn plain(status: StatusCode, error: &'static str, code: Option<&'static str>) -> Response {
    let answer = ErrorAnswer::plain(status.as_u16(), error, code);
    json(status, serde_json::to_string(&answer).unwrap_or_default())
}

fn invalid<D: Serialize>(details: D) -> Response {
    let answer = ErrorAnswer::invalid(details);
    json(StatusCode::UNPROCESSABLE_ENTITY, serde_json::to_string(&answer).unwrap_or_default())
}

/// 503 with the time after which it may work. The same event is safe to send again.
fn again() -> Response {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", None);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}

/// A JSON text.
pub(crate) fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}
