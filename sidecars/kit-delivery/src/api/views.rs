//! The reading half of the API.

use std::sync::PoisonError;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_journal::engine::{Found, Page, Reader};
use kit_journal::{EventFilter, EventId, JournalError};

use super::query::{AuditQuery, LARGEST_IDS, ListQuery, Place, event_id};
use super::{
    ApiError, ApiState, AttemptView, AuditPage, DeliveryEntry, DeliveryPage, ErrorBody, EventDetail, EventPage,
    EventView, SinkView, StatisticsView,
};
use crate::dispatcher::SinkStatus;

/// Events, newest first.
#[utoipa::path(get, path = "/events", tag = "events", params(ListQuery), responses(
    (status = 200, body = EventPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn list_events(
    State(state): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Result<Json<EventPage>, ApiError> {
    let page = search(&state, &query).await?;
    Ok(Json(EventPage {
        events: page.found.into_iter().map(EventView::from).collect(),
        next_cursor: page.next.map(|seq| seq.to_string()),
        examined: page.examined,
    }))
}

/// One page of what is asked for.
async fn search(state: &ApiState, query: &ListQuery) -> Result<Page, ApiError> {
    let (limit, cursor, name) = (query.limit()?, query.cursor()?, query.name()?);
    let mut filter = query.filter()?;
    if let Some(sink) = filter.sink.clone() {
        // Of a misspelt one an empty page would say that all is well.
        state.journal.browse(move |reader| reader.sink(&sink)).await?;
    }
    if let Some((source, key)) = &name {
        // Newest first, and no more than a listing by ids may name.
        let known = state.journal.known(source, key).await?;
        filter.ids = known.into_iter().rev().take(LARGEST_IDS).map(|(id, _)| id).collect();
        if filter.ids.is_empty() {
            return Ok(Page { found: Vec::new(), next: None, examined: 0 });
        }
    }
    let mut page = state.search(filter, cursor, limit).await?;
    if let Some((source, key)) = &name {
        // Now and then another key's event is remembered under it.
        page.found.retain(|found| found.event.head.source == *source && found.event.head.key == *key);
    }
    Ok(page)
}

/// One event with its body and every attempt.
#[utoipa::path(get, path = "/events/{id}", tag = "events", params(("id" = String, Path, description = "event id"), Place),
    responses((status = 200, body = EventDetail), (status = 404, body = ErrorBody)))]
pub(super) async fn show_event(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(place): Query<Place>,
) -> Result<Json<EventDetail>, ApiError> {
    let id = event_id(&id)?;
    let found = state.journal.browse(move |reader| {
        let Some(found) = look_up(reader, id, place)? else { return Ok(None) };
        let attempts = reader.attempts(found.event.seq)?;
        Ok(Some((found, attempts)))
    });
    let (mut found, attempts) = found.await?.ok_or_else(|| ApiError::not_found("event"))?;
    state.tell_apart(&mut found);
    let body = std::str::from_utf8(&found.event.body).map(str::to_owned).ok();
    let body_base64 = body.is_none().then(|| STANDARD.encode(&found.event.body));
    let attempts = attempts.into_iter().map(AttemptView::from).collect();
    Ok(Json(EventDetail { event: found.into(), body, body_base64, attempts }))
}

/// One event's body, byte for byte.
#[utoipa::path(get, path = "/events/{id}/body", tag = "events",
    params(("id" = String, Path, description = "event id"), Place),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
pub(super) async fn event_body(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(place): Query<Place>,
) -> Result<Response, ApiError> {
    let id = event_id(&id)?;
    let found = state.journal.browse(move |reader| look_up(reader, id, place)).await?;
    let found = found.ok_or_else(|| ApiError::not_found("event"))?;
    // Never a type that a browser would run.
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, found.event.body).into_response())
}

fn look_up(reader: &mut dyn Reader, id: EventId, place: Place) -> Result<Option<Found>, JournalError> {
    if let Some(seq) = place.seq
        && let Some(found) = reader.found(seq)?
        && found.event.head.id == id
    {
        return Ok(Some(found));
    }
    match reader.find(id)? {
        Some(seq) => reader.found(seq),
        None => Ok(None),
    }
}

/// Deliveries: one entry for each event and sink.
#[utoipa::path(get, path = "/deliveries", tag = "deliveries", params(ListQuery), responses(
    (status = 200, body = DeliveryPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn list_deliveries(
    State(state): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Result<Json<DeliveryPage>, ApiError> {
    let EventFilter { sink, state: wanted, .. } = query.filter()?;
    let page = search(&state, &query).await?;
    let mut deliveries = Vec::new();
    for found in page.found {
        let event = EventView::from(found);
        for (name, delivery) in event.deliveries {
            let matches =
                sink.as_ref().is_none_or(|sink| *sink == name) && wanted.is_none_or(|wanted| wanted == delivery.state);
            if matches {
                deliveries.push(DeliveryEntry {
                    sink: name,
                    event_id: event.id.clone(),
                    seq: event.seq,
                    received_at: event.received_at,
                    event_type: event.event_type.clone(),
                    subject: event.subject.clone(),
                    tenant: event.tenant.clone(),
                    delivery,
                });
            }
        }
    }
    let next_cursor = page.next.map(|seq| seq.to_string());
    Ok(Json(DeliveryPage { deliveries, next_cursor, examined: page.examined }))
}

/// Every sink, its counters and what it is doing.
#[utoipa::path(get, path = "/sinks", tag = "sinks", responses((status = 200, body = Vec<SinkView>)))]
pub(super) async fn list_sinks(State(state): State<ApiState>) -> Result<Json<Vec<SinkView>>, ApiError> {
    Ok(Json(read_statistics(&state).await?.sinks))
}

/// Totals of the journal and of every sink.
#[utoipa::path(get, path = "/statistics", tag = "events", responses((status = 200, body = StatisticsView)))]
pub(super) async fn statistics(State(state): State<ApiState>) -> Result<Json<StatisticsView>, ApiError> {
    read_statistics(&state).await.map(Json)
}

async fn read_statistics(state: &ApiState) -> Result<StatisticsView, ApiError> {
    let totals = state.journal.browse(|reader| reader.statistics()).await?;
    let last_seq = i64::try_from(totals.accepted).unwrap_or(i64::MAX);
    let status = |name: &str| -> Option<SinkStatus> {
        state.sinks.get(name).map(|status| status.lock().unwrap_or_else(PoisonError::into_inner).clone())
    };
    let sinks = totals.sinks.into_iter().map(|row| {
        let status = status(&row.name);
        SinkView::new(row, last_seq, status)
    });
    Ok(StatisticsView {
        accepted: totals.accepted,
        journal_bytes: totals.used_bytes,
        oldest_seq: totals.oldest_seq,
        oldest_at: totals.oldest_at,
        sinks: sinks.collect(),
    })
}

/// Who asked for what, newest first.
#[utoipa::path(get, path = "/audit", tag = "audit", params(AuditQuery), responses((status = 200, body = AuditPage)))]
pub(super) async fn audit(
    State(state): State<ApiState>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    let query = query.into_list();
    let (limit, cursor) = (query.limit()?, query.cursor()?);
    let records = state.journal.browse(move |reader| reader.audit(cursor, limit)).await?;
    let next_cursor = (records.len() == limit as usize).then(|| records.last().map(|(id, _)| id.to_string())).flatten();
    Ok(Json(AuditPage { records: records.into_iter().map(|(_, record)| record.into()).collect(), next_cursor }))
}
