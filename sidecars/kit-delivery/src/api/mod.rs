//! The admin API over events and deliveries, the same for every daemon. The caller mounts it behind
//! the bearer token; nothing here is reachable without it.

mod actions;
mod forget;
mod model;
mod query;
mod unlisted;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kit::api::Api;
use kit::clock::SharedClock;
use kit_journal::{Journal, JournalError};

use crate::dispatcher::SinkStatus;
pub use model::*;
pub use unlisted::{Choosy, Wants};

/// What the API works on.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// The journal.
    pub journal: Journal,
    /// The clock of audit records and replays.
    pub clock: SharedClock,
    /// What each sink is doing, by name.
    pub sinks: Arc<BTreeMap<String, Arc<Mutex<SinkStatus>>>>,
    /// Sinks that this daemon works on otherwise than by delivering to them.
    pub at_work: Arc<BTreeSet<String>>,
    /// Sinks that only count what they pass by, and which events they want.
    pub choosy: Choosy,
}

impl ApiState {
    /// Whether what was delivered to a sink may be delivered again.
    fn repeats(&self, sink: &str) -> bool {
        self.sinks.get(sink).is_none_or(|status| status.lock().unwrap_or_else(PoisonError::into_inner).repeats)
    }

    /// Whether this daemon delivers to a sink, or works on it otherwise.
    fn is_configured(&self, sink: &str) -> bool {
        self.sinks.contains_key(sink) || self.at_work.contains(sink)
    }

    /// The sinks that events wait for and nobody delivers to, with how many; nothing while the journal cannot be asked.
    pub(crate) async fn unconfigured(&self) -> Option<Vec<(String, u64)>> {
        let totals = self.journal.browse(|reader| reader.statistics()).await.ok()?;
        let last = i64::try_from(totals.accepted).unwrap_or(i64::MAX);
        let waiting = totals.sinks.iter().map(|row| (row.name.clone(), row.pending(last)));
        Some(waiting.filter(|(name, pending)| *pending > 0 && !self.is_configured(name)).collect())
    }
}

kit::api_routes! { ApiState, "src/api/openapi.json":
    get "/events" => views::list_events,
    get "/events/{id}" => views::show_event,
    get "/events/{id}/body" => views::event_body,
    get "/deliveries" => views::list_deliveries,
    post "/deliveries/replay" => actions::replay,
    post "/deliveries/drop" => actions::drop_deliveries,
    get "/sinks" => views::list_sinks,
    post "/sinks/{name}/pause" => actions::pause,
    post "/sinks/{name}/resume" => actions::resume,
    post "/sinks/{name}/forget" => forget::forget,
    get "/statistics" => views::statistics,
    get "/audit" => views::audit,
}

/// The routes below `/api/v1`, with their description.
pub fn api(state: ApiState) -> Api {
    part(state)
}

/// A request that could not be served, as the API answers it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    fn conflict(message: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, message: message.into() }
    }

    fn not_found(what: &str) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: format!("{what} not found") }
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::UnknownSink(name) => Self::not_found(&format!("sink {name:?}")),
            error => {
                let message = kit::error::chain(&error);
                tracing::warn!(error = %message, "admin request failed: {message}");
                Self { status: StatusCode::SERVICE_UNAVAILABLE, message }
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.message })).into_response()
    }
}
