//! A producer's request and its answer, in Lago's words and statuses: a producer changes its base URL and nothing else.
//!
//! Source: getlago/lago-api `app/controllers/api/v1/events_controller.rb` and `app/controllers/concerns/api_errors.rb`,
//! at v1.16.0 and at the head of 2026-08-21.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::try_join_all;
use kit::clock::{SharedClock, Timestamp};
use kit_delivery::receive::{body_within, plain_body};
use kit_journal::{AppendError, Appended, EventId, Journal, JournalError, NewEvent, StoredEvent};
use kit_lago::usage::answer::{ALREADY_EXISTS, EventAnswer, TRANSACTION_ID};
use kit_lago::usage::{FieldErrors, Requested, requested};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::admit::{self, Stored, UNRESOLVED};
use crate::catalogue::{Known, Seen};
use crate::check::{Finding, Kind, Policy, check};
use crate::cloudevents;
use crate::config::ChecksSection;
use crate::metrics::{Taken, UsageMetrics};
use crate::producers::{Producer, Producers};
use crate::proxy::{self, Proxy};
use crate::reconcile::Books;
use crate::refusal::{Refusal, json, plain};
use crate::rollup;
use crate::show;
use crate::webhooks::{self, Webhooks};

/// How long a producer waits for what Lago knows now.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Events that are taken at a time, of all requests: each has about a kilobyte while it is.
pub(crate) const EVENTS_AT_ONCE: usize = 50_000;
/// Events looked up in the journal at a time, of one request.
const LOOKED_UP_AT_ONCE: usize = 200;
/// How long a request waits for others to be done; the journal's own wait comes after it.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(30);

/// What the intake needs.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) producers: Producers,
    pub(crate) journal: Journal,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: UsageMetrics,
    pub(crate) body_limit: usize,
    pub(crate) batch_limit: usize,
    pub(crate) checks: ChecksSection,
    /// Metrics whose events are added up before they are sent.
    pub(crate) rollup: BTreeSet<String>,
    pub(crate) known: Known,
    pub(crate) books: Arc<Books>,
    /// For Lago's other paths, where that is wanted.
    pub(crate) proxy: Option<Proxy>,
    pub(crate) webhooks: Option<Webhooks>,
    /// One permit an event, of [`EVENTS_AT_ONCE`].
    pub(crate) room: Semaphore,
}

/// The public listener's routes.
pub(crate) fn router(intake: Arc<Intake>) -> Router {
    Router::new()
        .route("/api/v1/events", post(one))
        .route("/api/v1/events/batch", post(batch))
        .route("/api/v1/cloudevents", post(cloudevents))
        .route("/api/v1/events/{transaction_id}", get(shown))
        .route("/webhooks/events", post(webhooks::take))
        .fallback(other)
        .method_not_allowed_fallback(other)
        .with_state(intake)
}

/// Lago's other paths.
async fn other(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    let unknown = if intake.proxy.is_none() && request.uri().path().starts_with("/api/v1/") {
        "Not Found: only usage events are taken here, unless SIDECAR_USAGE__PROXY=true"
    } else {
        "Not Found"
    };
    match spelled(request.method(), request.uri().path()) {
        Some(Spelled::Take(shape)) => return answered(&intake, take(&intake, request, shape).await),
        Some(Spelled::Show(id)) => return answered(&intake, show::find(&intake, request.headers(), &id).await),
        None => {}
    }
    let Some(proxy) = &intake.proxy else {
        return plain(StatusCode::NOT_FOUND, unknown, Some("resource_not_found"));
    };
    // Whatever else Rails might take for it: usage that went there would not be kept here.
    if request.method() == Method::POST && is_intake(request.uri().path()) {
        return no_such_path();
    }
    let (parts, body) = request.into_parts();
    let body = match body_within(&parts, body, proxy::REQUEST_BYTES).await {
        Ok(body) => body,
        Err(error) => return answered(&intake, Err(Refusal::Body(error))),
    };
    let passed_on = proxy.pass_on(parts.method, &parts.uri, &parts.headers, body).await;
    passed_on.unwrap_or_else(|error| {
        let (status, text) = error.answer();
        plain(status, text, None)
    })
}

/// What another spelling of a path of ours asks for.
enum Spelled {
    Take(Shape),
    Show(String),
}

/// Rails takes slashes twice or at the end, and `.json`; Lago's Go client makes `//api/v1/` of a base URL that ends with a
/// slash.
///
/// Source: getlago/lago-go-client `lago.go` (`SetBaseURL`), rails/rails `actionpack/lib/action_dispatch/journey/router/utils.rb`.
fn spelled(method: &Method, path: &str) -> Option<Spelled> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let plain = |segment: &'static str, found: &str| found.strip_suffix(".json").unwrap_or(found) == segment;
    match segments.as_slice() {
        ["api", "v1", one] if method == Method::POST && plain("events", one) => Some(Spelled::Take(Shape::One)),
        ["api", "v1", "events", batch] if method == Method::POST && plain("batch", batch) => {
            Some(Spelled::Take(Shape::Batch))
        }
        ["api", "v1", "cloudevents"] if method == Method::POST => Some(Spelled::Take(Shape::CloudEvents)),
        ["api", "v1", "events", id] if method == Method::GET => {
            Some(Spelled::Show(percent_encoding::percent_decode_str(id).decode_utf8().ok()?.into_owned()))
        }
        _ => None,
    }
}

async fn one(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    answered(&intake, take(&intake, request, Shape::One).await)
}

async fn batch(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    answered(&intake, take(&intake, request, Shape::Batch).await)
}

async fn cloudevents(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    answered(&intake, take(&intake, request, Shape::CloudEvents).await)
}

/// What a request's body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    One,
    Batch,
    CloudEvents,
}

async fn shown(State(intake): State<Arc<Intake>>, Path(transaction_id): Path<String>, headers: HeaderMap) -> Response {
    answered(&intake, show::find(&intake, &headers, &transaction_id).await)
}

/// The answer, a refusal counted.
pub(crate) fn answered(intake: &Intake, result: Result<Response, Refusal>) -> Response {
    result.unwrap_or_else(|refusal| {
        if let Refusal::Unsigned(why) = &refusal {
            tracing::debug!(reason = %why, "webhook refused: {why}");
        }
        intake.metrics.refused(refusal.reason());
        refusal.into_response()
    })
}

/// Takes one event, or all of a batch, or none of it.
async fn take(intake: &Intake, request: Request<Body>, shape: Shape) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    // Before the body is read: who has no token costs nothing.
    let producer = holder(intake, &parts.headers)?;
    let body = plain_body(&parts, body, intake.body_limit).await?;
    take_body(intake, producer, &parts.headers, body, shape).await
}

/// The same of a body that is here, whichever way it came.
pub(crate) async fn take_body(
    intake: &Intake,
    producer: &Producer,
    headers: &HeaderMap,
    body: Vec<u8>,
    shape: Shape,
) -> Result<Response, Refusal> {
    let now = intake.clock.now();
    let Admitted { _room, events, answers } = admitted(intake, producer, headers, body, shape, now).await?;
    let is_batch = shape != Shape::One;
    may_report(intake, producer, &events, now).await?;
    let rejected = reject(intake, &events, now).await?;
    if !rejected.is_empty() {
        intake.metrics.taken(Taken::Invalid, rejected.len() as u64);
        return Err(told(rejected, is_batch));
    }
    append(intake, events, &answers, is_batch).await
}

/// The events of a body.
struct Admitted<'a> {
    /// Their room in memory.
    _room: SemaphorePermit<'a>,
    /// As they will be in the journal.
    events: Vec<NewEvent>,
    /// What each is answered with, but for the time of its receipt.
    answers: Vec<String>,
}

/// The events of a body, which is gone by then.
async fn admitted<'a>(
    intake: &'a Intake,
    producer: &Producer,
    headers: &HeaderMap,
    body: Vec<u8>,
    shape: Shape,
    now: Timestamp,
) -> Result<Admitted<'a>, Refusal> {
    let (own, from_body);
    let events: Vec<&RawValue> = if shape == Shape::CloudEvents {
        own = cloudevents::usage_events(headers, &body, intake.batch_limit).map_err(Refusal::NotCloudEvents)?;
        own.iter().map(AsRef::as_ref).collect()
    } else {
        from_body = requested(&body, shape == Shape::Batch, intake.batch_limit).map_err(Refusal::Bad)?;
        match from_body {
            Requested::One(event) => vec![event],
            Requested::Batch(events) => events,
        }
    };
    // More than there is room for has all of it.
    let room = u32::try_from(events.len().min(EVENTS_AT_ONCE)).unwrap_or(u32::MAX);
    let room = match intake.room.try_acquire_many(room) {
        Ok(room) => room,
        Err(_) => {
            let room = tokio::time::timeout(WAIT_FOR_ROOM, intake.room.acquire_many(room)).await;
            room.ok().and_then(Result::ok).ok_or(Refusal::Busy)?
        }
    };
    let request_key = idempotency_key(headers);
    let mut admitted =
        Admitted { _room: room, events: Vec::with_capacity(events.len()), answers: Vec::with_capacity(events.len()) };
    let mut errors = BTreeMap::new();
    for (place, event) in events.into_iter().enumerate() {
        let name = request_key.as_deref().map(|key| cloudevents::place_in_request(producer.name(), key, place));
        match admit::admit_answered(event, name, now) {
            Ok((event, answer)) => {
                admitted.events.push(rollup::route(&intake.rollup, event));
                admitted.answers.push(answer);
            }
            Err(wrong) => drop(errors.insert(place, wrong)),
        }
    }
    if !errors.is_empty() {
        intake.metrics.taken(Taken::Invalid, errors.len() as u64);
        return Err(told(errors, shape != Shape::One));
    }
    Ok(admitted)
}

/// Whether Lago would take usage at a path.
fn is_intake(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix(".json").unwrap_or(path);
    path.starts_with("/api/v1") && (path.ends_with("/events") || path.ends_with("/batch"))
}

/// Whether a producer may report all of this. A token for a customer is good for the subscriptions that Lago says are
/// the customer's, and for what names only the customer.
async fn may_report(intake: &Intake, producer: &Producer, events: &[NewEvent], now: Timestamp) -> Result<(), Refusal> {
    if !events.iter().all(|event| producer.may_name(event.head.tenant.as_deref())) {
        return Err(Refusal::Forbidden);
    }
    let allows = |seen: &Seen| {
        let mut named = events.iter().filter(|event| event.head.event_type != UNRESOLVED);
        named.all(|event| {
            let is_of = |subscription: &str, customer: &str| {
                let at = Stored::read(&event.body).and_then(|stored| stored.time()).unwrap_or(now);
                seen.catalogue.as_ref().is_some_and(|catalogue| catalogue.is_of(subscription, customer, at))
            };
            producer.may_report(event.head.scope.as_deref(), is_of)
        })
    };
    if allows(&intake.known.current()) {
        return Ok(());
    }
    if !producer.is_bound_to_customers() {
        return Err(Refusal::Forbidden);
    }
    let seen = intake.known.newer_than(now, LOOK_AGAIN).await;
    match allows(&seen) {
        true => Ok(()),
        // A no is for ever: the subscription may be a minute old, and Lago's key just being replaced.
        false if seen.is_behind(now) => Err(Refusal::Undecided),
        false => Err(Refusal::Forbidden),
    }
}

/// Events that do not pass a check whose policy is to refuse them, as far as it is known what Lago knows.
async fn reject(intake: &Intake, events: &[NewEvent], now: Timestamp) -> Result<BTreeMap<usize, FieldErrors>, Refusal> {
    let rejects = |kind: &Kind| kind.policy(&intake.checks) == Policy::Reject;
    if !Kind::ALL.iter().any(rejects) {
        return Ok(BTreeMap::new());
    }
    let find = |seen: &Seen| -> BTreeMap<usize, Finding> {
        let Some(catalogue) = &seen.catalogue else { return BTreeMap::new() };
        let find = |event: &NewEvent| check(&Stored::read(&event.body)?, catalogue, &intake.checks, now);
        let found = events.iter().enumerate().filter_map(|(place, event)| Some((place, find(event)?)));
        found.filter(|(_, finding)| rejects(&finding.kind)).collect()
    };
    let mut found = find(&intake.known.current());
    if found.is_empty() {
        return Ok(BTreeMap::new());
    }
    // What was taken stays taken: its producer may not have had the answer, and time or Lago may have moved on since.
    let taken = taken_before(intake, events, found.keys().copied().collect()).await?;
    found.retain(|place, _| !taken.contains(place));
    if found.values().any(|finding| finding.kind.may_change()) {
        let seen = intake.known.newer_than(now, LOOK_AGAIN).await;
        found = find(&seen);
        let taken = taken_before(intake, events, found.keys().copied().collect()).await?;
        found.retain(|place, _| !taken.contains(place));
        if seen.looked_at <= now || seen.failed.is_some() {
            // What Lago knows now is not known: they are taken, and looked at again before they are sent.
            found.retain(|_, finding| !finding.kind.may_change());
        }
    }
    for finding in found.values() {
        intake.metrics.found(finding.kind, Policy::Reject);
    }
    let told = |(place, finding): (usize, Finding)| (place, FieldErrors::from([(finding.field, vec![finding.code])]));
    Ok(found.into_iter().map(told).collect())
}

/// Which of the events at these places the journal has with the same content.
async fn taken_before(intake: &Intake, events: &[NewEvent], places: Vec<usize>) -> Result<BTreeSet<usize>, Refusal> {
    let is_known = async |place: usize| {
        let head = &events[place].head;
        let known = intake.journal.known(&head.source, &head.key).await?;
        Ok::<_, JournalError>(known.iter().any(|(id, _)| *id == head.id).then_some(place))
    };
    let mut taken = BTreeSet::new();
    for places in places.chunks(LOOKED_UP_AT_ONCE) {
        let known = try_join_all(places.iter().map(|place| is_known(*place))).await;
        let known = known.map_err(|error| {
            tracing::debug!(error = %error, "whether usage was taken before cannot be read: {error}");
            Refusal::Journal
        })?;
        taken.extend(known.into_iter().flatten());
    }
    Ok(taken)
}

/// A name of the whole request, for producers whose events have none: the same request has the same one.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let (Some(key), None) = (keys.next(), keys.next()) else { return None };
    let key = match std::str::from_utf8(key.as_bytes()) {
        Ok(key) => Cow::Borrowed(key.trim()),
        // Letters of the older kind, each a byte.
        Err(_) => Cow::Owned(key.as_bytes().iter().map(|byte| char::from(*byte)).collect()),
    };
    (!key.is_empty()).then_some(key)
}

/// Lago's errors: of a single event by field, of a batch by place and field.
fn told(errors: BTreeMap<usize, FieldErrors>, is_batch: bool) -> Refusal {
    if is_batch {
        return Refusal::InvalidBatch(errors.into_iter().map(|(place, errors)| (place.to_string(), errors)).collect());
    }
    Refusal::Invalid(errors.into_values().next().unwrap_or_default())
}

async fn append(
    intake: &Intake,
    events: Vec<NewEvent>,
    answers: &[String],
    is_batch: bool,
) -> Result<Response, Refusal> {
    let own: Vec<EventId> = events.iter().map(|event| event.head.id).collect();
    let appended = intake.journal.append_together(events).await.map_err(|error: AppendError| {
        intake.metrics.taken(Taken::Unavailable, own.len() as u64);
        tracing::debug!(error = %error, "usage not taken: {error}");
        Refusal::Journal
    })?;
    let contradicting: Vec<usize> =
        (0..own.len()).filter(|place| appended[*place].duplicate && appended[*place].id != own[*place]).collect();
    if !contradicting.is_empty() {
        intake.metrics.taken(Taken::Contradiction, contradicting.len() as u64);
        intake.metrics.taken(Taken::Withheld, (own.len() - contradicting.len()) as u64);
        let error = || FieldErrors::from([(TRANSACTION_ID, vec![ALREADY_EXISTS])]);
        return Err(told(contradicting.into_iter().map(|place| (place, error())).collect(), is_batch));
    }
    let duplicates = appended.iter().filter(|appended| appended.duplicate).count();
    intake.metrics.taken(Taken::Duplicate, duplicates as u64);
    intake.metrics.taken(Taken::Accepted, (own.len() - duplicates) as u64);
    let first = if duplicates == 0 { BTreeMap::new() } else { first_ones(intake, &appended).await? };
    let (begin, end) = if is_batch { ("{\"events\":[", "]}") } else { ("{\"event\":", "}") };
    let mut body = String::with_capacity(answers.iter().map(|answer| answer.len() + 48).sum::<usize>() + 16);
    body.push_str(begin);
    for ((id, answer), appended) in own.iter().zip(answers).zip(&appended) {
        if !body.ends_with(begin) {
            body.push(',');
        }
        match first.get(&appended.seq).filter(|_| appended.duplicate) {
            Some(stored) => {
                let text = unfinished(id, &stored.body).ok_or(Refusal::Journal)?;
                EventAnswer::finish(&text, stored.at, &mut body);
            }
            None => EventAnswer::finish(answer, appended.at, &mut body),
        }
    }
    body.push_str(end);
    Ok(json(StatusCode::OK, body))
}

/// The answer to an event that was stored before, but for the time at which it was received.
fn unfinished(id: &EventId, body: &[u8]) -> Option<String> {
    let stored = Stored::read(body)?;
    serde_json::to_string(&stored.answer(&id.to_string(), None)).ok()
}

/// What was stored when duplicates came the first time, as far as it is still there.
async fn first_ones(intake: &Intake, appended: &[Appended]) -> Result<BTreeMap<i64, StoredEvent>, Refusal> {
    let seqs: Vec<i64> = appended.iter().filter(|appended| appended.duplicate).map(|appended| appended.seq).collect();
    let read = intake.journal.browse(move |reader| {
        let mut found = BTreeMap::new();
        for seq in seqs {
            if let Ok(Some(event)) = reader.event(seq) {
                found.insert(seq, event);
            }
        }
        Ok(found)
    });
    read.await.map_err(|_| Refusal::Journal)
}

/// Whose token the request shows. Like Lago: the second word of `Authorization`, whatever the first is.
pub(crate) fn holder<'a>(intake: &'a Intake, headers: &HeaderMap) -> Result<&'a Producer, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::Unauthorized) };
    let token = value.to_str().ok().and_then(|value| value.split_ascii_whitespace().nth(1));
    token.and_then(|token| intake.producers.holder_of(token.as_bytes())).ok_or(Refusal::Unauthorized)
}

/// As Lago answers where it has nothing.
pub(crate) fn no_such_path() -> Response {
    plain(StatusCode::NOT_FOUND, "Not Found", Some("resource_not_found"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt as _;
    use kit::clock::SystemClock;
    use kit::config::Problems;
    use kit::secret::Secret;
    use kit_journal::JournalSection;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::config::UsageSection;

    const TOKEN: &str = "0123456789abcdef";

    #[tokio::test]
    async fn requests_wait_for_room_for_their_events() {
        let directory = tempfile::TempDir::new().unwrap();
        let section = JournalSection { path: directory.path().join("j.db"), ..JournalSection::default() };
        let (journal, _task) = Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        let section = UsageSection { producer_token: Some(Secret::from(TOKEN.to_owned())), ..UsageSection::default() };
        let intake = Intake {
            producers: Producers::load(&section, &mut Problems::default()),
            books: Arc::new(Books::new(journal.clone())),
            journal,
            clock: Arc::new(SystemClock),
            metrics: UsageMetrics::default(),
            body_limit: section.body_limit_bytes,
            batch_limit: section.batch_limit,
            checks: ChecksSection::default(),
            rollup: BTreeSet::new(),
            known: Known::told(None, None).1,
            proxy: None,
            webhooks: None,
            room: Semaphore::new(5),
        };
        let producer = intake.producers.holder_of(TOKEN.as_bytes()).unwrap();
        let take = |events: usize| {
            let event = r#"{"transaction_id":"t","external_subscription_id":"s","code":"c"}"#;
            let body = format!(r#"{{"events":[{}]}}"#, vec![event; events].join(",")).into_bytes();
            let (intake, now) = (&intake, intake.clock.now());
            async move { admitted(intake, producer, &HeaderMap::new(), body, Shape::Batch, now).await }
        };

        let first = take(3).await.unwrap();
        let mut second = Box::pin(take(3));
        assert!(second.as_mut().now_or_never().is_none(), "there is room for two more");
        drop(first);
        let second = second.await.unwrap();

        assert_eq!(second.events.len(), 3);
        assert_eq!(take(2).await.unwrap().events.len(), 2);
    }
}
