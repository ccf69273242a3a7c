//! One webhook from request to answer.
//!
//! The order is the defence: framing and size (the listener), body, proof, and only then parsing and storing. Whatever
//! cannot be proven gets the same 401. A proof that stands in the body (Authentik 2024.10 can send no other) makes that
//! the envelope has to be read before: its members and nothing in them.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use kit::serve::BodyRules;
use kit::telemetry::Seldom;
use kit::trace::{Kind, Span};
use kit_authentik::envelope::{BLUEPRINT, Envelope, NotAnEnvelope, is_unmapped};
use kit_authentik::signature::Rejected;
use kit_delivery::receive::{body_by, is_plain};
use kit_journal::{AppendError, Appended, EventId, Journal};

use crate::admit::Admission;
use crate::authentication::Authenticator;
use crate::exclude::Excluded;
use crate::metrics::{By, IntakeMetrics, Taken};
use crate::people::People;
use crate::seen::Seen;

/// What the intake needs.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) authenticator: Authenticator,
    pub(crate) admission: Arc<Admission>,
    pub(crate) journal: Journal,
    pub(crate) metrics: IntakeMetrics,
    pub(crate) people: People,
    pub(crate) seen: Arc<Seen>,
    pub(crate) body_limit: usize,
    /// Every event comes from the API too.
    pub(crate) reads_api: bool,
    pub(crate) said: Said,
}

/// What was said lately.
#[derive(Debug, Default)]
pub(crate) struct Said {
    unmapped: Seldom,
    unreadable: Seldom,
    refused: Seldom,
}

/// The public listener's routes. Authentik follows redirects and then counts a POST that became a GET as delivered: no
/// form of the path is ever redirected.
///
/// Source: goauthentik/authentik `authentik/lib/utils/http.py` (a `requests` session) at 2024.10.1 and 2026.2.2.
pub(crate) fn router(intake: Arc<Intake>) -> Router {
    Router::new()
        .route("/webhooks/authentik", post(receive))
        .route("/webhooks/authentik/", post(receive))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .with_state(intake)
}

async fn receive(State(intake): State<Arc<Intake>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let mut span = Span::begin("authentik.webhook", Kind::Server, None);
    match take(&intake, &parts.headers, body, parts.extensions.get(), &span).await {
        Ok(Answer::Appended(appended)) => {
            span.set_with("event.id", || appended.id.to_string());
            accepted(appended)
        }
        Ok(Answer::Excluded(excluded)) => json(StatusCode::OK, format!(r#"{{"excluded":"{}"}}"#, excluded.word())),
        Ok(Answer::NotStored(why)) => {
            json(StatusCode::OK, format!(r#"{{"stored":false,"error":"{why}: apply the blueprint {BLUEPRINT}"}}"#))
        }
        Err(refusal) => {
            span.fail(refusal.reason());
            intake.metrics.refused(refusal.reason());
            refusal.into_response()
        }
    }
}

/// What a request that is not refused gets.
#[derive(Debug)]
enum Answer {
    Appended(Appended),
    Excluded(Excluded),
    /// From this body nothing can be made, and asking for it again brings the same: Authentik 2024.10 writes an event about
    /// its failure, which a rule without a policy sends here again, and so on (ADR 0021). The text stands in JSON.
    NotStored(&'static str),
}

/// Why a request is not taken.
#[derive(Debug)]
enum Refusal {
    /// Compressed bodies: Authentik sends none, and unpacking is work an attacker chooses.
    Encoded,
    Proof(Rejected),
    Body(kit::serve::BodyError),
    Journal,
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::Encoded => "content_encoding",
            Self::Proof(rejected) => rejected.reason(),
            Self::Body(error) => error.reason(),
            Self::Journal => "journal",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Encoded => {
                answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, r#"{"error":"content encoding is not supported"}"#)
            }
            Self::Proof(_) => answer(StatusCode::UNAUTHORIZED, r#"{"error":"unauthorized"}"#),
            Self::Body(kit::serve::BodyError::Stopping) => again(r#"{"error":"stopping"}"#),
            Self::Body(error) => answer(error.status(), r#"{"error":"body refused"}"#),
            Self::Journal => again(r#"{"error":"journal unavailable"}"#),
        }
    }
}

async fn take(
    intake: &Intake,
    headers: &HeaderMap,
    body: Body,
    rules: Option<&Arc<BodyRules>>,
    span: &Span,
) -> Result<Answer, Refusal> {
    if !is_plain(headers) {
        return Err(Refusal::Encoded);
    }
    let body = body_by(rules, headers, body, intake.body_limit).await.map_err(Refusal::Body)?;
    let envelope = match proven(&intake.authenticator, headers, &body) {
        Ok(envelope) => envelope,
        Err(rejected) => {
            // Without a mapping Authentik cannot prove anything in the body. Nothing is stored, so that anybody may say it.
            if is_unmapped(&body) {
                return Ok(unmapped(intake));
            }
            // Anybody can make us say it; and with the wrong secret it is every webhook, which nobody else would tell.
            if intake.said.refused.may() {
                tracing::warn!(
                    reason = rejected.reason(),
                    "a webhook is refused with 401, this is said at most once a minute: {rejected}"
                );
            } else {
                tracing::debug!(reason = rejected.reason(), "webhook refused: {rejected}");
            }
            return Err(Refusal::Proof(rejected));
        }
    };
    let envelope = match envelope {
        Ok(envelope) => envelope,
        Err(NotAnEnvelope::Unmapped) => return Ok(unmapped(intake)),
        Err(error) => return unreadable(intake, error, body).await,
    };
    let event = &envelope.event;
    intake.people.notice(event);
    let known = intake.people.known(event);
    let mut new = match intake.admission.event(event, intake.people.own_pk(), known.as_deref()) {
        Ok(new) => new,
        Err(excluded) => {
            intake.metrics.excluded(By::Webhook, excluded);
            return Ok(Answer::Excluded(excluded));
        }
    };
    new.head.traceparent = span.traceparent();
    let (pk, action) = (event.pk, event.action.clone());
    let unenriched = known.is_none() && intake.people.wants(event);
    let appended = intake.journal.append(new).await.map_err(|error| refused(intake, &error))?;
    intake.seen.add(pk);
    if appended.duplicate {
        intake.metrics.taken(By::Webhook, Taken::Duplicate);
    } else {
        intake.metrics.accepted(By::Webhook, &action);
        if unenriched {
            intake.metrics.unenriched.inc();
        }
    }
    Ok(Answer::Appended(appended))
}

/// What the body says, if the request proves that it is Authentik's.
fn proven<'a>(
    authenticator: &Authenticator,
    headers: &HeaderMap,
    body: &'a [u8],
) -> Result<Result<Envelope<'a>, NotAnEnvelope>, Rejected> {
    let rejected = match authenticator.by_header(headers, body) {
        Ok(()) => return Ok(Envelope::read(body)),
        Err(rejected) => rejected,
    };
    if !authenticator.reads_body() {
        return Err(rejected);
    }
    let envelope = Envelope::read(body).map_err(|_| Rejected::NotAnEnvelope)?;
    authenticator.by_body(&envelope)?;
    Ok(Ok(envelope))
}

fn unmapped(intake: &Intake) -> Answer {
    intake.metrics.unmapped.inc();
    if intake.said.unmapped.may() {
        tracing::error!(
            blueprint = BLUEPRINT,
            "a webhook has Authentik's own body, from which no event can be made: its transport has no body mapping, apply the blueprint {BLUEPRINT}"
        );
    }
    Answer::NotStored("the transport has no body mapping")
}

/// Keeps a body that is Authentik's and that we do not understand, unless nothing is lost with it.
async fn unreadable(intake: &Intake, error: NotAnEnvelope, body: Vec<u8>) -> Result<Answer, Refusal> {
    if let Some(why) = not_worth_keeping(intake.reads_api, &body) {
        intake.metrics.taken(By::Webhook, Taken::Unreadable);
        if intake.said.unreadable.may() {
            tracing::error!(error = %error, "a webhook cannot be read and is not kept, {why}: {error}");
        }
        return Ok(Answer::NotStored(why));
    }
    let (new, digest) = intake.admission.unreadable(body);
    let id = new.head.id;
    let appended = intake.journal.append_digested(new, digest).await.map_err(|error| refused(intake, &error))?;
    let taken = if appended.duplicate { Taken::Duplicate } else { Taken::Unreadable };
    intake.metrics.taken(By::Webhook, taken);
    if taken == Taken::Unreadable && intake.said.unreadable.may() {
        tracing::error!(event.id = %id, error = %error, "a webhook cannot be read, kept as {id} and parked: {error}");
    }
    Ok(Answer::Appended(appended))
}

/// Why a body that cannot be read need not, or must not, be kept. The text stands in JSON.
fn not_worth_keeping(reads_api: bool, body: &[u8]) -> Option<&'static str> {
    if body.trim_ascii().is_empty() {
        return Some("the body is empty");
    }
    if carries_a_secret(body) {
        return Some("the body cannot be read, and holds the secret");
    }
    // Its nonce makes each of them a new one: the event would be there twice, once of no use.
    reads_api.then_some("the body cannot be read, and its event comes from the API")
}

/// Whether the shared secret may stand in the body: what is stored goes to sinks.
fn carries_a_secret(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Wire {
        secret: Option<serde::de::IgnoredAny>,
    }
    // What is no object has no members, and with a member that comes twice nobody knows.
    let name = br#""secret""#;
    serde_json::from_slice::<Wire>(body)
        .map_or_else(|_| body.windows(name.len()).any(|part| part == name), |wire| wire.secret.is_some())
}

fn refused(intake: &Intake, error: &AppendError) -> Refusal {
    intake.metrics.taken(By::Webhook, Taken::Unavailable);
    // The journal says why, once; this is the story of one request.
    tracing::debug!(error = %error, "webhook not taken: {error}");
    Refusal::Journal
}

fn accepted(appended: Appended) -> Response {
    let Appended { id, duplicate, .. } = appended;
    let mut buffer = EventId::buffer();
    let duplicate = if duplicate { "true" } else { "false" };
    json(StatusCode::OK, [r#"{"id":""#, id.text(&mut buffer), r#"","duplicate":"#, duplicate, "}"].concat())
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

fn answer(status: StatusCode, body: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// 503 with the time after which it may work. Authentik has its own schedule; others look at it.
fn again(body: &'static str) -> Response {
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, body);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}
