//! An event of another daemon, from request to answer.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use kit_journal::Journal;

use crate::metrics::IntakeMetrics;

/// What the intake needs.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) journal: Journal,
    pub(crate) metrics: IntakeMetrics,
}

/// The public listener's routes.
pub(crate) fn router(intake: Arc<Intake>) -> Router {
    Router::new().fallback(|| async { StatusCode::NOT_FOUND }).with_state(intake)
}
