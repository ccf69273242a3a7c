//! Forgetting a sink that is not configured any more: until then everything after its cursor is kept for it.
//!
//! Done in bounded steps under the sink's lease, so that no replica can deliver to it meanwhile. What was cut off is
//! simply asked for again.

use axum::Json;
use axum::extract::{Path, State};
use kit::serve::ConnInfo;
use kit_journal::Held;
use kit_journal::engine::{Account, Action, Forgotten, SinkRow};
use serde_json::json;

use super::actions::{audit_record, kept_reason};
use super::{ApiError, ApiState, ErrorBody, ForgetRequest, ForgetResult};

/// Rows given up in one commit.
const ROWS: u32 = 500;

/// Forget a sink that is not configured any more: what it has still to deliver and its dead letters are given up, and count as
/// dropped. Nothing is kept for it from then on. A sink that is configured, or that a replica delivers to, is refused.
#[utoipa::path(post, path = "/sinks/{name}/forget", tag = "sinks", params(("name" = String, Path, description = "sink")),
    request_body = ForgetRequest, responses((status = 200, body = ForgetResult), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn forget(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    peer: axum::Extension<ConnInfo>,
    Json(mut request): Json<ForgetRequest>,
) -> Result<Json<ForgetResult>, ApiError> {
    request.reason = kept_reason(&request.reason, "forgotten by an operator");
    if state.is_configured(&name) {
        return Err(ApiError::conflict(format!(
            "sink {name:?} is configured here: take it out of the configuration, start the daemon again, and then forget it"
        )));
    }
    let totals = state.journal.browse(|reader| reader.statistics()).await?;
    let last_seq = i64::try_from(totals.accepted).unwrap_or(i64::MAX);
    let Some(row) = totals.sinks.into_iter().find(|sink| sink.name == name) else {
        return Err(ApiError::not_found(&format!("sink {name:?}")));
    };
    let Some(held) = state.journal.lease(&name).await? else { return Err(in_use(&name)) };
    let done = if request.dry_run {
        Ok(foreseen(&row, last_seq))
    } else {
        by_steps(&state, &peer, &request, &name, &held).await
    };
    // Where it cannot be given back it runs out.
    let _ = held.give_back().await;
    let result = done?;
    record(&state, &peer, &request, &result, false).await?;
    Ok(Json(result))
}

fn in_use(name: &str) -> ApiError {
    ApiError::conflict(format!(
        "another replica delivers to sink {name:?}, or did until a few seconds ago: take it out of the configuration of every \
         replica, start them again, and then forget it"
    ))
}

/// What would go if it went now.
fn foreseen(row: &SinkRow, last_seq: i64) -> ForgetResult {
    let (pending, parked) = (row.pending(last_seq), row.parked);
    let dropped = row.dropped + pending + parked;
    let account =
        Account { accepted: row.accepted(last_seq), delivered: row.delivered, dropped, filtered: row.filtered };
    ForgetResult { sink: row.name.clone(), pending, parked, account: account.into(), dry_run: true }
}

async fn by_steps(
    state: &ApiState,
    peer: &ConnInfo,
    request: &ForgetRequest,
    name: &str,
    held: &Held,
) -> Result<ForgetResult, ApiError> {
    let mut result = ForgetResult { sink: name.to_owned(), ..ForgetResult::default() };
    let mut told = false;
    loop {
        let action = Action::Forget { sink: name.to_owned(), lease: held.epoch(), rows: ROWS };
        let outcome = state.journal.act(vec![action]).await?.into_iter().next().unwrap_or_default();
        let Some(Forgotten { pending, parked, account }) = outcome.forgotten else {
            // Between two steps it was forgotten by somebody else, or delivered to.
            return Err(if outcome.unavailable > 0 {
                ApiError::not_found(&format!("sink {name:?}"))
            } else {
                in_use(name)
            });
        };
        result.pending += pending;
        result.parked += parked;
        if let Some(account) = account {
            result.account = account.into();
            return Ok(result);
        }
        // Of a long one the trail has the beginning too: it may be cut off.
        if !std::mem::replace(&mut told, true) {
            record(state, peer, request, &result, true).await?;
        }
    }
}

/// Leaves the audit record of it.
async fn record(
    state: &ApiState,
    peer: &ConnInfo,
    request: &ForgetRequest,
    result: &ForgetResult,
    unfinished: bool,
) -> Result<(), ApiError> {
    let action = "sinks.forget";
    let mut said = json!(result);
    if unfinished {
        // There is no account yet.
        said["account"] = json!("unfinished");
    }
    let ForgetRequest { dry_run, reason } = request;
    let asked = json!({ "sink": result.sink, "dry_run": dry_run, "reason": reason });
    let record = audit_record(state, peer, action, &asked, &said);
    tracing::info!(
        action,
        actor = %record.actor,
        sink = %result.sink,
        dry_run = result.dry_run,
        pending = result.pending,
        parked = result.parked,
        "admin action {action} by {}",
        record.actor
    );
    state.journal.act(vec![Action::Audit(record)]).await?;
    Ok(())
}
