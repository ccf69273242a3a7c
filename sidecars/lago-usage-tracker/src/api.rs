//! The ledger in the admin API.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use kit::api::Api;
use kit::clock::SharedClock;
use kit::serve::ConnInfo;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::ledger::{Booked, Name, Pair};
use crate::reconcile::{Books, Compared, Results, State as Stands};

/// Rows of a page at most, and without a wish.
const MOST: usize = 1_000;
const USUAL: usize = 200;
/// Longest reason that is kept.
const REASON_CHARS: usize = 500;

/// What the routes work on.
#[derive(Clone, Debug)]
pub(crate) struct LedgerState {
    pub(crate) books: Arc<Books>,
    pub(crate) asked: Arc<Notify>,
    pub(crate) clock: SharedClock,
}

kit::api_routes! { LedgerState, "src/openapi.json":
    get "/usage/ledger" => show_ledger,
    post "/usage/reconcile" => reconcile,
    post "/usage/accept" => accept,
}

/// The routes below `/api/v1`, with their description.
pub(crate) fn api(state: LedgerState) -> Api {
    part(state)
}

/// Which rows.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LedgerQuery {
    /// Of this subscription only.
    subscription: Option<String>,
    /// Of this metric only.
    code: Option<String>,
    /// In this state only.
    state: Option<String>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Rows of the page, 200 without, 1000 at most.
    limit: Option<usize>,
}

/// What Lago has confirmed, beside what it has counted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct LedgerPage {
    rows: Vec<LedgerRow>,
    /// For the next page, where there is one.
    next: Option<String>,
    /// When the last comparison began that has gone through to its end.
    compared_at: Option<String>,
    /// What Lago has not answered in the last one. What was missing of that stays so.
    failed: Option<String>,
}

/// One subscription and metric in one billing period.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct LedgerRow {
    subscription: String,
    code: String,
    /// The billing period, where Lago has told it.
    from: Option<String>,
    /// Its last second.
    to: Option<String>,
    /// Events of the period that Lago has confirmed; of any time as long as the period is not known.
    events: u64,
    /// What they add up to, exactly; of metrics that count events or add up a property.
    units: Option<String>,
    /// What Lago has counted.
    lago: Option<LagoCounted>,
    /// Events that Lago has confirmed and not counted.
    missing_events: u64,
    /// Events that Lago has counted and did not get from here.
    surplus_events: u64,
    state: Stands,
}

/// What Lago has counted, and when it said so.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct LagoCounted {
    events: u64,
    units: String,
    at: String,
}

/// The rows of a pair: its current period, and the last one that has ended where that was compared. Of a subscription
/// that has ended both are the same one.
fn rows<'a>((name, pair): (&'a Name, &'a Pair), results: &'a Results) -> impl Iterator<Item = LedgerRow> + use<'a> {
    let ended = results.ended.get(name);
    let of_ended = ended.map(|ended| row(name, Some(&ended.booked), pair, Some(&ended.compared)));
    let current = pair.current.as_ref();
    let is_over = ended.is_some_and(|ended| current.is_some_and(|own| own.period.from == ended.booked.period.from));
    let of_current = (!is_over).then(|| row(name, current, pair, results.pairs.get(name)));
    of_current.into_iter().chain(of_ended)
}

fn row(name: &Name, booked: Option<&Booked>, pair: &Pair, compared: Option<&Compared>) -> LedgerRow {
    let sum = booked.map_or_else(|| pair.waiting(), |booked| booked.sum.clone());
    let period = booked.map(|booked| booked.period);
    let lago = compared.and_then(|compared| {
        let lago = compared.lago.as_ref()?;
        Some(LagoCounted { events: lago.events, units: lago.units.to_string(), at: compared.at.to_string() })
    });
    LedgerRow {
        subscription: name.0.clone(),
        code: name.1.clone(),
        from: period.map(|period| period.from.to_string()),
        to: period.map(|period| period.to.to_string()),
        events: sum.events,
        units: sum.units.as_ref().map(ToString::to_string),
        lago,
        missing_events: compared.map_or(0, |compared| compared.missing_events),
        surplus_events: compared.map_or(0, |compared| compared.surplus_events),
        state: compared.map_or(Stands::Unknown, |compared| compared.state),
    }
}

/// What Lago has confirmed in the current billing periods and in the last ones, and what it has counted.
#[utoipa::path(get, path = "/usage/ledger", tag = "usage", params(LedgerQuery),
    responses((status = 200, body = LedgerPage), (status = 400, description = "not a page"),
        (status = 503, description = "the journal cannot be read")))]
async fn show_ledger(
    State(state): State<LedgerState>,
    Query(query): Query<LedgerQuery>,
) -> Result<Json<LedgerPage>, (StatusCode, Json<serde_json::Value>)> {
    let wrong = |message: &str| (StatusCode::BAD_REQUEST, Json(serde_json::json!({ "error": message })));
    let after = match query.after.as_deref().map(serde_json::from_str::<Name>) {
        None => None,
        Some(Ok(name)) => Some(name),
        Some(Err(_)) => return Err(wrong("after: must be the `next` of a page")),
    };
    if query.state.as_deref().is_some_and(|word| Stands::ALL.iter().all(|state| state.word() != word)) {
        return Err(wrong(
            "state: must be equal, missing, surplus, uncertain, settling, not_charged, accepted or unknown",
        ));
    }
    let limit = query.limit.unwrap_or(USUAL).clamp(1, MOST);
    if let Err(error) = state.books.look().await {
        let message = format!("the ledger cannot be read: {}", kit::error::chain(&error));
        return Err((StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": message }))));
    }
    let ledger = state.books.ledger();
    let results = state.books.results();
    let wanted = |row: &LedgerRow| {
        query.subscription.as_ref().is_none_or(|wanted| *wanted == row.subscription)
            && query.code.as_ref().is_none_or(|wanted| *wanted == row.code)
            && query.state.as_ref().is_none_or(|wanted| wanted == row.state.word())
    };
    let mut pairs = ledger.pairs(after.as_ref()).map(|pair| rows(pair, &results).filter(wanted).collect::<Vec<_>>());
    let mut page: Vec<LedgerRow> = Vec::new();
    // The rows of a pair are on one page: the next one begins after it.
    while page.len() < limit
        && let Some(own) = pairs.next()
    {
        page.extend(own);
    }
    let more = pairs.any(|own| !own.is_empty());
    let next = page.last().filter(|_| more).map(|last| serde_json::json!([last.subscription, last.code]).to_string());
    Ok(Json(LedgerPage {
        rows: page,
        next,
        compared_at: results.compared_at.map(|at| at.to_string()),
        failed: results.failed.clone(),
    }))
}

/// A comparison that was asked for.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Started {
    /// Wait for a `compared_at` that is not before this.
    at: String,
}

/// Compares everything now. It takes the settling time, and then a question to Lago for each subscription.
#[utoipa::path(post, path = "/usage/reconcile", tag = "usage", responses((status = 202, body = Started)))]
async fn reconcile(State(state): State<LedgerState>) -> (StatusCode, Json<Started>) {
    let at = state.clock.now().to_string();
    state.asked.notify_one();
    (StatusCode::ACCEPTED, Json(Started { at }))
}

/// What is accepted.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct AcceptRequest {
    /// External id of the subscription.
    subscription: String,
    /// Only of this metric.
    code: Option<String>,
    /// Kept with it and in the audit trail: "billed by hand, invoice 123".
    reason: String,
}

/// What was missing and is accepted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct AcceptedRows {
    rows: Vec<AcceptedRow>,
}

/// One of these.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct AcceptedRow {
    subscription: String,
    code: String,
    /// Events; 0 where only units are missing.
    missing_events: u64,
}

/// Accepts that Lago never counts what is missing of a subscription's period that has ended, as usage that came after its
/// invoice was final. It is `missing` no more, unless more of it is.
#[utoipa::path(post, path = "/usage/accept", tag = "usage", request_body = AcceptRequest,
    responses((status = 200, body = AcceptedRows), (status = 400, description = "no reason"),
        (status = 404, description = "nothing is missing of a period that has ended"),
        (status = 503, description = "the journal takes nothing, or another replica compares")))]
async fn accept(
    State(state): State<LedgerState>,
    peer: Extension<ConnInfo>,
    Json(request): Json<AcceptRequest>,
) -> Result<Json<AcceptedRows>, (StatusCode, Json<serde_json::Value>)> {
    let error = |status, message: &str| (status, Json(serde_json::json!({ "error": message })));
    let reason: String = request.reason.trim().chars().take(REASON_CHARS).collect();
    if reason.is_empty() {
        return Err(error(StatusCode::BAD_REQUEST, "reason: must say why, such as \"billed by hand\""));
    }
    if !state.books.leads() {
        return Err(error(StatusCode::SERVICE_UNAVAILABLE, "another replica sends and compares: ask that one"));
    }
    let of = (request.subscription.as_str(), request.code.as_deref());
    let accepted = state.books.accept(of, (&reason, peer.peer.ip().to_string()), state.clock.now()).await;
    let accepted = accepted.map_err(|why| {
        error(StatusCode::SERVICE_UNAVAILABLE, &format!("the journal takes nothing: {}", kit::error::chain(&why)))
    })?;
    if accepted.is_empty() {
        return Err(error(
            StatusCode::NOT_FOUND,
            "nothing is missing of a period of it that has ended, by the last comparison",
        ));
    }
    tracing::info!(count = accepted.len(), subscription = %request.subscription, "what Lago misses is accepted: {reason}");
    let row = |((subscription, code), missing_events)| AcceptedRow { subscription, code, missing_events };
    Ok(Json(AcceptedRows { rows: accepted.into_iter().map(row).collect() }))
}
