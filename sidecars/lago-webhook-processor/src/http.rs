//! One webhook from request to answer.
//!
//! The order is the defence: framing and size (the listener), organisation, key, body, signature,
//! and only then parsing and storing. Whatever cannot be proven gets the same 401.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use kit::serve::BodyRules;
use kit::trace::{Kind, Span};
use kit_delivery::receive::{body_by, is_plain};
use kit_journal::{Appended, BodyDigest, EventId, Journal};
use kit_lago::signature::{Algorithm, Rejected, SIGNATURE_HEADER};
use tokio::sync::Semaphore;

use crate::admit::{self, RecentBodies};
use crate::config::INTAKE_PATH;
use crate::metrics::{IntakeMetrics, Taken};
use crate::organizations::{Organization, Organizations};

/// Tokens verified at the same time: as many as a small host has cores, so that forged ones cannot
/// take more than that, and decoded copies of large bodies do not add up.
const VERIFYING: usize = 2;
/// Tokens from this size on are verified off the async workers.
const LARGE_TOKEN: usize = 256 * 1024;

/// What the intake needs.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) organizations: Arc<Organizations>,
    pub(crate) journal: Journal,
    pub(crate) metrics: IntakeMetrics,
    pub(crate) body_limit: usize,
    /// Some sink wants the original headers, a JWT included.
    pub(crate) keep_tokens: bool,
    verifying: Semaphore,
    recent: Mutex<RecentBodies>,
}

impl Intake {
    pub(crate) fn new(
        organizations: Arc<Organizations>,
        journal: Journal,
        metrics: IntakeMetrics,
        body_limit: usize,
        keep_tokens: bool,
    ) -> Self {
        let (verifying, recent) = (Semaphore::new(VERIFYING), Mutex::default());
        Self { organizations, journal, metrics, body_limit, keep_tokens, verifying, recent }
    }
}

/// The public listener's routes.
pub(crate) fn router(intake: Arc<Intake>) -> Router {
    Router::new()
        .route(INTAKE_PATH, post(unnamed))
        .route(&format!("{INTAKE_PATH}/{{organization}}"), post(named))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .with_state(intake)
}

async fn unnamed(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    receive(&intake, None, request).await
}

async fn named(State(intake): State<Arc<Intake>>, Path(name): Path<String>, request: Request) -> Response {
    receive(&intake, Some(&name), request).await
}

async fn receive(intake: &Intake, name: Option<&str>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let mut span = Span::begin("lago.webhook", Kind::Server, admit::traceparent(&parts.headers));
    match take(intake, name, &parts.headers, body, parts.extensions.get(), &span).await {
        Ok(appended) => {
            span.set_with("event.id", || appended.id.to_string());
            accepted(appended)
        }
        Err(refusal) => {
            span.fail(refusal.reason());
            intake.metrics.refused(refusal.reason());
            refusal.into_response()
        }
    }
}

/// Why a request is not taken.
#[derive(Debug)]
enum Refusal {
    /// Compressed bodies: Lago sends none, and unpacking is work an attacker chooses.
    Encoded,
    UnknownOrganization,
    OtherOrganization,
    Signature(Rejected),
    Body(kit::serve::BodyError),
    Journal,
}

/// Words of [`Refusal::reason`] beside those of [`Rejected::REASONS`].
pub(crate) const REASONS: [&str; 8] = [
    "content_encoding",
    "unknown_organization",
    "other_organization",
    "too_large",
    "too_slow",
    "stopping",
    "broken_off",
    "journal",
];

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::Encoded => "content_encoding",
            Self::UnknownOrganization => "unknown_organization",
            Self::OtherOrganization => "other_organization",
            Self::Signature(rejected) => rejected.reason(),
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
            // Not a forgery but our own ignorance: Lago is to come again.
            Self::Signature(Rejected::NoKey) => again(r#"{"error":"no key to verify with yet"}"#),
            Self::UnknownOrganization | Self::OtherOrganization | Self::Signature(_) => {
                answer(StatusCode::UNAUTHORIZED, r#"{"error":"unauthorized"}"#)
            }
            Self::Body(kit::serve::BodyError::Stopping) => again(r#"{"error":"stopping"}"#),
            Self::Body(error) => answer(error.status(), r#"{"error":"body refused"}"#),
            Self::Journal => again(r#"{"error":"journal unavailable"}"#),
        }
    }
}

async fn take(
    intake: &Intake,
    name: Option<&str>,
    headers: &HeaderMap,
    body: Body,
    rules: Option<&Arc<BodyRules>>,
    span: &Span,
) -> Result<Appended, Refusal> {
    if !is_plain(headers) {
        return Err(Refusal::Encoded);
    }
    let organization = intake.organizations.get(name);
    if organization.is_some_and(|organization| !organization.proof.is_ready()) {
        return Err(Refusal::Signature(Rejected::NoKey));
    }
    let body = body_by(rules, headers, body, intake.body_limit).await.map_err(Refusal::Body)?;
    let organization = match organization {
        Some(organization) => {
            verify(intake, organization, headers, &body).await?;
            organization
        }
        None => {
            // As much work as for a known one, so that names cannot be found out by the clock.
            if let Some(any) = intake.organizations.all().next() {
                let _ = verify(intake, any, headers, &body).await;
            }
            return Err(Refusal::UnknownOrganization);
        }
    };

    let digest = BodyDigest::of(&body);
    let key = admit::dedupe_key(headers, &digest);
    let description = kit_lago::describe(&body, &organization.name, &key);
    if !admit::is_own(&description, organization.organization_id.as_deref()) {
        return Err(Refusal::OtherOrganization);
    }
    let keep_signature = intake.keep_tokens || organization.proof.algorithm() == Algorithm::Hmac;
    let webhook_type = description.webhook_type.clone();
    let business = description.business;
    let mut event = admit::event(description, key, headers, body, &digest, keep_signature);
    // The delivery continues our own span where there is one, and the sender's otherwise.
    event.head.traceparent = span.traceparent().or(event.head.traceparent);
    let appended = intake.journal.append_digested(event, digest).await.map_err(|error| {
        intake.metrics.taken(&organization.name, Taken::Unavailable);
        // The journal says why, once; this is the story of one request.
        tracing::debug!(organization = %organization.name, error = %error, "webhook not taken: {error}");
        Refusal::Journal
    })?;

    count(intake, &organization.name, appended, &digest);
    if !appended.duplicate {
        intake.metrics.accepted(webhook_type.as_deref(), business);
    }
    Ok(appended)
}

fn count(intake: &Intake, organization: &str, appended: Appended, digest: &BodyDigest) {
    let taken = match appended {
        Appended { duplicate: true, .. } => Taken::Duplicate,
        Appended { conflict: true, .. } => Taken::Conflict,
        _ => Taken::Accepted,
    };
    intake.metrics.taken(organization, taken);
    if taken == Taken::Conflict {
        tracing::warn!(event.id = %appended.id, organization, "a known key came with another body: accepted as a new event {}", appended.id);
    }
    let repeated = intake.recent.lock().unwrap_or_else(PoisonError::into_inner).seen_before(organization, digest);
    if repeated && taken == Taken::Accepted {
        intake.metrics.repeated_body(organization);
    }
}

async fn verify(intake: &Intake, organization: &Organization, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let mut signatures = headers.get_all(SIGNATURE_HEADER).iter();
    let signature = match (signatures.next(), signatures.next()) {
        (first, None) => first.map(HeaderValue::as_bytes),
        // Two signatures are none: nobody can say which one somebody else looked at.
        (_, Some(_)) => None,
    };
    let result = match organization.proof.algorithm() {
        Algorithm::Hmac => organization.proof.verify(signature, body),
        Algorithm::Jwt => {
            let _permit = intake.verifying.acquire().await;
            if signature.is_some_and(|signature| signature.len() > LARGE_TOKEN) {
                tokio::task::block_in_place(|| organization.proof.verify(signature, body))
            } else {
                organization.proof.verify(signature, body)
            }
        }
    };
    result.map_err(|rejected| {
        tracing::debug!(organization = %organization.name, reason = rejected.reason(), "webhook refused: {rejected}");
        Refusal::Signature(rejected)
    })
}

fn accepted(appended: Appended) -> Response {
    let Appended { id, duplicate, .. } = appended;
    let mut buffer = EventId::buffer();
    let duplicate = if duplicate { "true" } else { "false" };
    let body = [r#"{"id":""#, id.text(&mut buffer), r#"","duplicate":"#, duplicate, "}"].concat();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

fn answer(status: StatusCode, body: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// 503 with the time after which it may work. Lago has its own schedule; others look at it.
fn again(body: &'static str) -> Response {
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, body);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response
}
