//! From a request to what happens to it: route, faults, key, and the service that answers.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::answer::Answer;
use super::event::{Malformed, Root, Sent};
use super::faults::{Asked, Drawn, Effect};
use super::ingest::{self, Rules};
use super::management::{self, Call, Desk};
use super::people::{self, Wish};
use super::profile::Profile;
use super::reads::{self, Query};
use super::state::LagoState;
use super::timestamp::now_micros;

/// A request that was read completely.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// As sent, escapes and all: what an escaped dot or slash means depends on it.
    pub(super) path: String,
    pub(super) query: String,
    pub(super) authorization: Option<Vec<u8>>,
    /// Whether the body was announced as JSON; Rails does not look into others.
    pub(super) is_json: bool,
    pub(super) body: Bytes,
}

/// How a request ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Answer(Answer),
    /// The connection is reset.
    Reset,
    /// The connection is closed.
    Close,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Health,
    CreateEvent,
    CreateBatch,
    Read(reads::Read),
    Manage(Call),
    People(Wish),
    Unknown,
}

/// Decides about a request, and does what it asks for.
pub(super) async fn handle(state: &LagoState, request: Request) -> Ending {
    let (number, _in_progress) = state.begin_request();
    if let Some((status, body)) = state.instead_of(&request.method, &request.path, &request.query) {
        return Ending::Answer(Answer::json(status, &body));
    }
    let route = Route::of(&request.method, &request.path, state.profile());
    if route == Route::Health {
        return Ending::Answer(health(state));
    }
    let sent = read_events(&route, &request);
    note_arrivals(state, number, &route, &sent);
    let asked = match &route {
        Route::CreateEvent | Route::CreateBatch => Asked::Ingestion,
        Route::Manage(call) if call.is_writing() => Asked::Managing,
        Route::People(_) => Asked::Managing,
        Route::Health | Route::Read(_) | Route::Manage(_) | Route::Unknown => Asked::Reading,
    };
    let silent = state.silent_for();
    if silent > Duration::ZERO {
        tokio::time::sleep(silent).await;
    }
    let _posting = (asked == Asked::Ingestion).then(|| state.begin_post());
    let (Drawn { pause, effect }, threads) = state.draw(asked);
    // The semaphore is never closed.
    let _thread = threads.acquire_owned().await;
    // A sleep of no length still takes a tick of the timer.
    if pause > Duration::ZERO {
        tokio::time::sleep(pause).await;
    }

    if let Some(ending) = effect.and_then(|effect| instead(effect, &request.method, &route, state.profile())) {
        state.change(|books| books.counts.faults += 1);
        return ending;
    }
    if is_poisoned(state, &sent) {
        state.change(|books| books.counts.faults += 1);
        return Ending::Answer(Answer::bare(500));
    }
    let answer = answer(state, &route, &request, &sent);
    if asked == Asked::Ingestion {
        state.change(|books| books.answered_posts += 1);
    }
    let Some(effect) = effect else {
        return Ending::Answer(answer);
    };
    state.change(|books| books.counts.faults += 1);
    match effect {
        Effect::DoneThenAnswer(status) => Ending::Answer(refusal(status, &request.method, &route, state.profile())),
        Effect::DoneThenClosed => Ending::Close,
        // The thread is kept until the client gives up, and with it whoever waits for one.
        Effect::DoneThenSilent => std::future::pending().await,
        Effect::Shifted => Ending::Answer(answer.without_entries()),
        // Decided before anything was done.
        Effect::Answer(_) | Effect::Page(_) | Effect::TooManyRequests { .. } | Effect::Reset => Ending::Answer(answer),
    }
}

/// The ending of a request that is not looked into.
fn instead(effect: Effect, method: &Method, route: &Route, profile: Profile) -> Option<Ending> {
    match effect {
        Effect::Answer(status) => Some(Ending::Answer(refusal(status, method, route, profile))),
        Effect::Page(status) => Some(Ending::Answer(Answer::page(status, "of somebody else"))),
        Effect::TooManyRequests { limit, reset_seconds } => {
            Some(Ending::Answer(Answer::too_many_requests(limit, reset_seconds)))
        }
        Effect::Reset => Some(Ending::Reset),
        Effect::DoneThenClosed | Effect::DoneThenAnswer(_) | Effect::DoneThenSilent | Effect::Shifted => None,
    }
}

/// Source: getlago/lago-api `app/controllers/concerns/api_errors.rb` at v1.16.0; the code of a key
/// without permission from v1.17.1 on.
fn refusal(status: u16, method: &Method, route: &Route, profile: Profile) -> Answer {
    if status != 403 {
        return Answer::bare(status);
    }
    let resource = match route {
        Route::Manage(call) => call.kind().root(),
        _ => "event",
    };
    let code = match profile {
        Profile::V1_16 => "feature_unavailable".to_owned(),
        _ if method == Method::GET => format!("read_action_not_allowed_for_{resource}"),
        _ => format!("write_action_not_allowed_for_{resource}"),
    };
    Answer::json(403, &json!({ "status": 403, "error": "Forbidden", "code": code }))
}

/// Source: getlago/lago-api `app/controllers/application_controller.rb` at v1.16.0.
fn health(state: &LagoState) -> Answer {
    let version = state.profile().version();
    let github_url = format!("https://github.com/getlago/lago-api/tree/{version}");
    if state.with_faults(|faults| faults.unhealthy) {
        let details = "connection to the database is lost";
        let body = json!({ "version": version, "github_url": github_url, "message": "Unhealthy", "details": details });
        return Answer::json(500, &body);
    }
    Answer::json(200, &json!({ "version": version, "github_url": github_url, "message": "Success" }))
}

/// The events of a post; nothing for other requests.
fn read_events<'a>(route: &Route, request: &'a Request) -> Result<Sent<'a>, Malformed> {
    let body: &[u8] = if request.is_json { &request.body } else { &[] };
    match route {
        Route::CreateEvent => Ok(Root::read(body)?.single()),
        Route::CreateBatch => Ok(Root::read(body)?.batch()),
        Route::Health | Route::Read(_) | Route::Manage(_) | Route::People(_) | Route::Unknown => Ok(Sent::Nothing),
    }
}

/// Notes what arrived before anything can go wrong: a producer's retry is judged by it.
fn note_arrivals(state: &LagoState, number: u64, route: &Route, sent: &Result<Sent<'_>, Malformed>) {
    let events = match sent {
        Ok(Sent::Events(events)) => events.as_slice(),
        _ => &[],
    };
    state.change(|books| {
        let again = events.iter().filter(|event| books.arrivals.note(event, number)).count();
        books.counts.events_received += events.len() as u64;
        books.counts.in_batch_duplicates += again as u64;
        match route {
            Route::CreateEvent => books.counts.single_posts += 1,
            Route::CreateBatch => {
                books.counts.batches += 1;
                books.counts.largest_batch = books.counts.largest_batch.max(events.len() as u64);
            }
            Route::Health | Route::Read(_) | Route::Manage(_) | Route::People(_) | Route::Unknown => {}
        }
    });
}

fn is_poisoned(state: &LagoState, sent: &Result<Sent<'_>, Malformed>) -> bool {
    let Ok(Sent::Events(events)) = sent else {
        return false;
    };
    state.with_faults(|faults| {
        let poisoned = &faults.poisoned_transaction_ids;
        let mut ids = events.iter().filter_map(|event| event.transaction_id.as_deref());
        !poisoned.is_empty() && ids.any(|id| poisoned.contains(id))
    })
}

fn answer(state: &LagoState, route: &Route, request: &Request, sent: &Result<Sent<'_>, Malformed>) -> Answer {
    // What no route knows is answered before any key is looked at.
    if *route == Route::Unknown {
        return Answer::not_found("resource_not_found");
    }
    if !state.is_authorized(request.authorization.as_deref()) {
        return Answer::unauthorized();
    }
    let Ok(sent) = sent else {
        return Answer::bare(400);
    };
    let profile = state.profile();
    if let Route::People(wish) = route {
        let (answer, told) = state.change(|books| people::answer(books, profile, wish, &request.body));
        if let Some(customer) = told {
            people::tell(state, customer);
        }
        return answer;
    }
    let (torn_batch_status, usage_lag, no_active_subscription) =
        state.with_faults(|faults| (faults.torn_batch_status, faults.usage_lag, faults.no_active_subscription));
    state.change(|books| {
        let now_micros = now_micros();
        let rules = Rules { profile, now_micros, torn_batch_status };
        let answer = match route {
            Route::CreateEvent => ingest::create(&mut books.ledger, rules, sent),
            Route::CreateBatch => ingest::create_batch(&mut books.ledger, rules, sent),
            Route::Read(read) => {
                let query = Query::parse(&request.query);
                let view = reads::View { profile, books, now_micros, usage_lag, no_active_subscription };
                return reads::answer(view, read, &query);
            }
            Route::Manage(call) => {
                let page = Query::parse(&request.query).page();
                let body: &[u8] = if request.is_json { &request.body } else { &[] };
                let desk = Desk { profile, catalogue: &mut books.catalogue, managed: &mut books.managed };
                let answer = management::answer(desk, call, body, page);
                books.counts.managed_writes += u64::from(call.is_writing() && answer.status == 200);
                return answer;
            }
            Route::Health | Route::People(_) | Route::Unknown => Answer::not_found("resource_not_found"),
        };
        books.counts.refused_posts += u64::from(answer.status == 422);
        answer
    })
}

impl Route {
    /// Rails looks at the path as sent and takes a slash at the end for nothing.
    fn of(method: &Method, path: &str, profile: Profile) -> Self {
        let path = path.strip_suffix('/').unwrap_or(path);
        if *method == Method::GET && path == "/health" {
            return Self::Health;
        }
        let Some(path) = path.strip_prefix("/api/v1/") else {
            return Self::Unknown;
        };
        let segments: Vec<_> = path.split('/').collect();
        let decoded_segments: Vec<String> = segments.iter().map(|segment| decoded(segment)).collect();
        let decoded_segments: Vec<&str> = decoded_segments.iter().map(String::as_str).collect();
        if let Some(call) = Call::of(method, &decoded_segments, profile) {
            return Self::Manage(call);
        }
        if let Some(wish) = Wish::of(method, &decoded_segments) {
            return Self::People(wish);
        }
        if *method == Method::POST {
            return match segments.as_slice() {
                ["events"] => Self::CreateEvent,
                ["events", "batch"] => Self::CreateBatch,
                _ => Self::Unknown,
            };
        }
        if *method != Method::GET {
            return Self::Unknown;
        }
        let id_before_format = |segment| if profile.routes_dots() { Some(segment) } else { before_format(segment) };
        let read = match segments.as_slice() {
            ["events"] => Some(reads::Read::Events),
            ["events", id] => id_before_format(*id).map(|id| reads::Read::Event(decoded(id))),
            ["subscriptions"] => Some(reads::Read::Subscriptions),
            ["subscriptions", id] => id_before_format(*id).map(|id| reads::Read::Subscription(decoded(id))),
            ["customers", id] => before_format(id).map(|id| reads::Read::Customer(decoded(id))),
            // In the middle of a path there is no format that a dot could begin.
            ["customers", id, "current_usage"] if !id.contains('.') => {
                Some(reads::Read::CurrentUsage { external_customer_id: decoded(id) })
            }
            ["customers", id, "past_usage"] if !id.contains('.') => {
                Some(reads::Read::PastUsage { external_customer_id: decoded(id) })
            }
            ["invoices"] => Some(reads::Read::Invoices),
            ["applied_coupons"] => Some(reads::Read::AppliedCoupons),
            ["webhooks", "json_public_key"] => Some(reads::Read::PublicKey),
            ["invoices", id] => before_format(id).map(|id| reads::Read::Invoice(decoded(id))),
            _ => None,
        };
        read.map_or(Self::Unknown, Self::Read)
    }
}

/// An id as Rails cuts it out of the last part of a path: what follows a dot is a format, and there
/// is only one.
///
/// Source: rails/rails, guide "Rails Routing from the Outside In", dynamic segments, at 7.1.
fn before_format(segment: &str) -> Option<&str> {
    match segment.split_once('.') {
        None => Some(segment),
        Some((id, format)) => (!id.is_empty() && !format.is_empty() && !format.contains('.')).then_some(id),
    }
}

fn decoded(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}
