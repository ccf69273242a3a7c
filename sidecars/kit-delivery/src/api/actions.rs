//! The writing half of the API: replay, drop, pause and resume. Every write leaves an audit record.
//!
//! A filter is worked through in bounded pages, each one commit; an action that is cut off in the
//! middle can be repeated, because every step is idempotent.

use axum::Json;
use axum::extract::{Path, State};
use kit::serve::ConnInfo;
use kit_journal::engine::{Action, ActionOutcome, AuditRecord};
use kit_journal::{DeliveryState, EventFilter, Seq};
use serde_json::{Value, json};

use super::query::{filter, within_bounds};
use super::unlisted::is_only_counted;
use super::{ActionResult, ApiError, ApiState, DropRequest, ErrorBody, ReplayRequest, Selection};

/// Deliveries changed in one commit.
const PAGE: u32 = 500;
/// Longest reason that is kept.
const REASON_CHARS: usize = 500;

/// Deliver again: dead letters, delivered events, or ones that are being retried. Where a second delivery would be wrong,
/// as with usage, delivered ones are left as they are.
#[utoipa::path(post, path = "/deliveries/replay", tag = "deliveries", request_body = ReplayRequest, responses(
    (status = 200, body = ActionResult), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn replay(
    State(state): State<ApiState>,
    peer: axum::Extension<ConnInfo>,
    Json(request): Json<ReplayRequest>,
) -> Result<Json<ActionResult>, ApiError> {
    let rate = request.rate_per_second;
    if !(rate.is_finite() && rate >= 0.0) {
        return Err(ApiError::bad_request("rate_per_second must be 0 (no limit) or more"));
    }
    let spacing_ms = if rate > 0.0 { 1000.0 / rate } else { 0.0 };
    let asked = json!(request);
    let from = state.clock.now();
    let result = change(&state, request.select, request.dry_run, |sink, seqs, already| {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "milliseconds of at most some days"
        )]
        let from = from.plus_millis((already as f64 * spacing_ms) as i64);
        let sink = sink.to_owned();
        if state.repeats(&sink) {
            Action::Replay { sink, seqs, from, spacing_ms }
        } else {
            Action::Revive { sink, seqs, from, spacing_ms }
        }
    });
    let result = result.await?;
    record(&state, &peer, "deliveries.replay", &asked, &result).await?;
    Ok(Json(result))
}

/// Give up for good; the deliveries stay listed as dropped, with the reason.
#[utoipa::path(post, path = "/deliveries/drop", tag = "deliveries", request_body = DropRequest, responses(
    (status = 200, body = ActionResult), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn drop_deliveries(
    State(state): State<ApiState>,
    peer: axum::Extension<ConnInfo>,
    Json(mut request): Json<DropRequest>,
) -> Result<Json<ActionResult>, ApiError> {
    request.reason = kept_reason(&request.reason, "dropped by an operator");
    // With the reason as it is kept: the trail has room for that one.
    let (asked, reason) = (json!(request), request.reason);
    let result = change(&state, request.select, request.dry_run, |sink, seqs, _| Action::Drop {
        sink: sink.to_owned(),
        seqs,
        reason: reason.clone(),
    });
    let result = result.await?;
    record(&state, &peer, "deliveries.drop", &asked, &result).await?;
    Ok(Json(result))
}

/// A reason as it is kept.
pub(super) fn kept_reason(given: &str, otherwise: &str) -> String {
    match given.trim() {
        "" => otherwise.to_owned(),
        reason => reason.chars().take(REASON_CHARS).collect(),
    }
}

/// Stop deliveries of a sink; events go on being accepted.
#[utoipa::path(post, path = "/sinks/{name}/pause", tag = "sinks", params(("name" = String, Path, description = "sink")),
    responses((status = 200), (status = 404, body = ErrorBody)))]
pub(super) async fn pause(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    peer: axum::Extension<ConnInfo>,
) -> Result<Json<Value>, ApiError> {
    set_paused(&state, &peer, name, true).await
}

/// Go on with deliveries of a sink.
#[utoipa::path(post, path = "/sinks/{name}/resume", tag = "sinks", params(("name" = String, Path, description = "sink")),
    responses((status = 200), (status = 404, body = ErrorBody)))]
pub(super) async fn resume(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    peer: axum::Extension<ConnInfo>,
) -> Result<Json<Value>, ApiError> {
    set_paused(&state, &peer, name, false).await
}

async fn set_paused(state: &ApiState, peer: &ConnInfo, sink: String, paused: bool) -> Result<Json<Value>, ApiError> {
    let action = if paused { "sinks.pause" } else { "sinks.resume" };
    let sink = one_sink(state, Some(sink)).await?;
    let outcomes = state.journal.act(vec![Action::Pause { sink: sink.clone(), paused }]).await?;
    let changed = outcomes.first().map_or(0, |outcome| outcome.changed);
    let result = json!({"sink": sink, "paused": paused, "changed": changed > 0});
    let record = audit_record(state, peer, action, &json!({ "sink": sink }), &result);
    tracing::info!(action, actor = %record.actor, sink = %sink, changed, "admin action {action} by {}", record.actor);
    state.journal.act(vec![Action::Audit(record)]).await?;
    Ok(Json(result))
}

/// Finds what is selected and applies `action` to it, a page at a time.
async fn change(
    state: &ApiState,
    mut select: Selection,
    dry_run: bool,
    action: impl Fn(&str, Vec<Seq>, u64) -> Action,
) -> Result<ActionResult, ApiError> {
    within_bounds(&select)?;
    let sink = one_sink(state, select.sink.take()).await?;
    let by_filter = select.ids.is_empty();
    if by_filter && is_empty(&select) {
        return Err(ApiError::bad_request(
            "select nothing in particular: give ids or a filter, for example {\"state\":\"parked\"}",
        ));
    }
    select.sink = Some(sink.clone());
    let mut filter = filter(select)?;
    if by_filter && filter.state.is_none() {
        filter.state = Some(DeliveryState::Parked);
    }
    let mut result = ActionResult { sink: sink.clone(), dry_run, ..ActionResult::default() };
    let mut before = None;
    loop {
        let page = read_page(state, filter.clone(), before).await?;
        before = page.next;
        // What a sink has only counted as filtered is not for it, and to the journal it looks delivered.
        let (counted, there): (Vec<_>, Vec<_>) = page.found.iter().partition(|found| is_only_counted(found, &sink));
        let seqs: Vec<Seq> = there.into_iter().map(|found| found.event.seq).collect();
        result.matched += page.found.len() as u64;
        if !dry_run {
            result.unchanged += counted.len() as u64;
        }
        if !dry_run && !seqs.is_empty() {
            let outcomes = state.journal.act(vec![action(&sink, seqs, result.changed)]).await?;
            for ActionOutcome { changed, unchanged, unavailable, .. } in outcomes {
                result.changed += changed;
                result.unchanged += unchanged;
                result.unavailable += unavailable;
            }
        }
        if before.is_none() {
            if !by_filter {
                result.unavailable += (filter.ids.len() as u64).saturating_sub(result.matched);
            }
            return Ok(result);
        }
    }
}

async fn read_page(
    state: &ApiState,
    filter: EventFilter,
    before: Option<Seq>,
) -> Result<kit_journal::engine::Page, ApiError> {
    // Ids come in one page: looking them up again for a second one would cost as much as the first.
    let limit = if filter.ids.is_empty() { PAGE } else { u32::MAX };
    Ok(state.search(filter, before, limit).await?)
}

fn is_empty(select: &Selection) -> bool {
    let texts = [&select.event_type, &select.subject, &select.tenant, &select.state, &select.since, &select.until];
    texts.into_iter().all(Option::is_none)
}

/// The sink that is meant: the named one, or the only one there is.
async fn one_sink(state: &ApiState, named: Option<String>) -> Result<String, ApiError> {
    let mut known: Vec<String> = state.sinks.keys().cloned().collect();
    match named {
        Some(name) if known.contains(&name) => Ok(name),
        Some(name) => Err(ApiError::not_found(&format!("sink {name:?}"))),
        None if known.len() == 1 => Ok(known.remove(0)),
        None => Err(ApiError::bad_request(format!(
            "there are several sinks: say which with sink (--sink): {}",
            known.join(", ")
        ))),
    }
}

/// Leaves the audit record of a write. The log gets its counts only: what was asked for may be long.
async fn record(
    state: &ApiState,
    peer: &ConnInfo,
    action: &str,
    request: &Value,
    result: &ActionResult,
) -> Result<(), ApiError> {
    let record = audit_record(state, peer, action, request, &json!(result));
    tracing::info!(
        action,
        actor = %record.actor,
        sink = %result.sink,
        dry_run = result.dry_run,
        matched = result.matched,
        changed = result.changed,
        "admin action {action} by {}",
        record.actor
    );
    state.journal.act(vec![Action::Audit(record)]).await?;
    Ok(())
}

pub(super) fn audit_record(
    state: &ApiState,
    peer: &ConnInfo,
    action: &str,
    request: &Value,
    result: &Value,
) -> AuditRecord {
    AuditRecord {
        at: state.clock.now(),
        actor: peer.peer.ip().to_string(),
        action: action.to_owned(),
        detail: json!({ "request": request, "result": result }),
    }
}
