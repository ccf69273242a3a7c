//! An event of another daemon, from request to answer: verified, then read, then on the disk, then 2xx.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use kit::clock::SharedClock;
use kit::serve::BodyError;
use kit::trace::{Kind, Span};
use kit_delivery::cloudevents::{self, CloudEvent, NotCloudEvents};
use kit_delivery::receive::{NotReceived, Receiver};
use kit_journal::{Appended, EventId, Journal};

use crate::admit::{NotAdmitted, admit};
use crate::metrics::{IntakeMetrics, Taken};

/// What the intake needs.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Who may send by HTTP; nobody without.
    pub(crate) receiver: Option<Receiver>,
    pub(crate) journal: Journal,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: IntakeMetrics,
    pub(crate) body_limit: usize,
}

/// The public listener's routes.
pub(crate) fn router(intake: Arc<Intake>) -> Router {
    Router::new().route("/webhooks/events", post(take)).fallback(|| async { no_such_path() }).with_state(intake)
}

async fn take(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    let Some(receiver) = &intake.receiver else { return no_such_path() };
    match receive(&intake, receiver, request).await {
        Ok(appended) => accepted(appended),
        Err(refusal) => {
            if let Refusal::NotReceived(NotReceived::Unsigned(why)) = &refusal {
                tracing::debug!(reason = %why, "event refused: {why}");
            }
            intake.metrics.refused(refusal.reason());
            refusal.into_response()
        }
    }
}

async fn receive(intake: &Intake, receiver: &Receiver, request: Request<Body>) -> Result<Appended, Refusal> {
    let (parts, body) = request.into_parts();
    let verified = receiver.verified(&parts, body, intake.body_limit, || intake.clock.now()).await;
    let (body, _) = verified.map_err(Refusal::NotReceived)?;
    let event = cloudevents::event(&parts.headers, &body).map_err(Refusal::NotCloudEvents)?;
    // In binary mode the attributes are headers, which nobody has signed: whoever saw a request could make another
    // workflow of it.
    if event.is_binary {
        return Err(Refusal::Binary);
    }
    append(intake, event, traceparent(&parts.headers)).await
}

/// Has the event on the disk, or says why not; whichever way it came.
pub(crate) async fn append(
    intake: &Intake,
    event: CloudEvent<'_>,
    traceparent: Option<&str>,
) -> Result<Appended, Refusal> {
    let mut event = admit(event).map_err(Refusal::NotAdmitted)?;
    let parent = event.head.traceparent.as_deref().or(traceparent);
    let mut span = Span::begin("bridge.event", Kind::Server, parent);
    span.set_with("event.id", || event.head.id.to_string());
    event.head.traceparent = span.traceparent().or_else(|| parent.map(str::to_owned));
    let appended = intake.journal.append(event).await.map_err(|error| {
        intake.metrics.taken(Taken::Unavailable);
        span.fail("journal");
        // The journal says why, once; this is the story of one request.
        tracing::debug!(error = %error, "event not taken: {error}");
        Refusal::Journal
    })?;
    intake.metrics.taken(if appended.duplicate { Taken::Duplicate } else { Taken::Accepted });
    Ok(appended)
}

/// W3C trace context of the request, where it is one.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    headers.get("traceparent")?.to_str().ok().filter(|text| text.len() == 55)
}

/// Why an event is not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    NotReceived(NotReceived),
    NotCloudEvents(NotCloudEvents),
    Binary,
    NotAdmitted(NotAdmitted),
    Journal,
}

impl Refusal {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotReceived(NotReceived::Encoded) => "content_encoding",
            Self::NotReceived(NotReceived::Unsigned(_)) => "signature",
            Self::NotReceived(NotReceived::Body(error)) => error.reason(),
            Self::NotCloudEvents(_) => "bad_request",
            Self::Binary => "binary_mode",
            Self::NotAdmitted(_) => "invalid",
            Self::Journal => "journal",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::NotReceived(NotReceived::Encoded) => {
                answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content encoding is not supported")
            }
            Self::NotReceived(NotReceived::Unsigned(_)) => answer(StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::NotReceived(NotReceived::Body(BodyError::Stopping)) => again("stopping"),
            Self::NotReceived(NotReceived::Body(error)) => answer(error.status(), "body refused"),
            Self::NotCloudEvents(NotCloudEvents::Type) => answer(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "one CloudEvent is taken: content-type must be application/cloudevents+json",
            ),
            Self::NotCloudEvents(why @ NotCloudEvents::Data) => answer(StatusCode::BAD_REQUEST, &why.to_string()),
            Self::NotCloudEvents(_) => answer(
                StatusCode::BAD_REQUEST,
                "the body is no CloudEvent 1.0 in JSON with specversion, id, source and type",
            ),
            Self::Binary => answer(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "binary mode is not taken, its attributes are not signed: send application/cloudevents+json",
            ),
            Self::NotAdmitted(why) => answer(StatusCode::BAD_REQUEST, &why.to_string()),
            Self::Journal => again("journal unavailable"),
        }
    }
}

fn no_such_path() -> Response {
    answer(StatusCode::NOT_FOUND, "not found")
}

fn accepted(appended: Appended) -> Response {
    let Appended { id, duplicate, .. } = appended;
    let mut buffer = EventId::buffer();
    let duplicate = if duplicate { "true" } else { "false" };
    let body = [r#"{"id":""#, id.text(&mut buffer), r#"","duplicate":"#, duplicate, "}"].concat();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// None of the texts has what JSON would have to escape.
fn answer(status: StatusCode, text: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!(r#"{{"error":"{text}"}}"#)).into_response()
}

/// 503 with the time after which it may work. The same event is safe to send again.
fn again(text: &str) -> Response {
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}
