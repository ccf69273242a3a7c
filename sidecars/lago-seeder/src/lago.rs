//! Lago, asked with patience: it may start late, restart in between, and say 500 to what it will do a second later.

use std::cell::Cell;
use std::time::{Duration, Instant};

use kit_lago::api::{ApiError, LagoApi};
use kit_lago::exchange::Place;
use kit_lago::management::ManagementError;
use reqwest::Method;

use crate::Notice;

/// Between two attempts: from the first to the last, doubled each time, ±20 %.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// It is said again that somebody waits.
const BETWEEN_WORDS: Duration = Duration::from_secs(15);

/// Why there was no end to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Lago did not come up, or went away for longer than is waited.
    #[error(
        "Lago was not there for {waited:?} ({reason}): start it, or set SIDECAR_WAIT__SECONDS (outrigger lago: --wait) higher"
    )]
    Away {
        /// How long it was waited for.
        waited: Duration,
        /// What it was the last time.
        reason: String,
    },
    /// The key is refused.
    #[error(
        "LAGO_API_KEY is refused by Lago (401): in Lago, Developers, API keys; Lago v1.16 to v1.19 wants LAGO_API_KEY beside LAGO_ORG_API_KEY when it seeds"
    )]
    Denied,
    /// Something that waiting does not mend.
    #[error("{0}")]
    Other(String),
}

/// How long Lago is waited for, in a row.
pub(crate) struct Patience<'a> {
    limit: Duration,
    /// Since when nothing has come of it.
    failing_since: Cell<Option<Instant>>,
    attempts: Cell<u32>,
    told: Cell<Option<Instant>>,
    notice: &'a (dyn Fn(Notice<'_>) + 'a),
}

impl<'a> Patience<'a> {
    pub(crate) fn new(limit: Duration, notice: &'a (dyn Fn(Notice<'_>) + 'a)) -> Self {
        Self { limit, failing_since: Cell::new(None), attempts: Cell::new(0), told: Cell::new(None), notice }
    }

    /// Lago has answered.
    pub(crate) fn answered(&self) {
        self.failing_since.set(None);
        self.attempts.set(0);
    }

    /// Waits a little before the next attempt, at least as long as was asked for.
    pub(crate) async fn pause(&self, reason: &str, asked: Option<Duration>) -> Result<(), RunError> {
        let now = Instant::now();
        let since = self.failing_since.get().unwrap_or(now);
        self.failing_since.set(Some(since));
        let waited = now.duration_since(since);
        if waited >= self.limit {
            return Err(RunError::Away { waited: self.limit, reason: reason.to_owned() });
        }
        if self.told.get().is_none_or(|told| now.duration_since(told) >= BETWEEN_WORDS) {
            self.told.set(Some(now));
            let left = self.limit.saturating_sub(waited);
            (self.notice)(Notice::Waiting { reason, left });
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.attempts.get().min(8)).min(LONGEST_PAUSE);
        self.attempts.set(self.attempts.get().saturating_add(1));
        // Two that wait for the same Lago should not come together.
        let pause = doubled.mul_f64(0.8 + 0.4 * fastrand::f64()).max(asked.unwrap_or_default());
        tokio::time::sleep(pause.min(self.limit.saturating_sub(waited).max(FIRST_PAUSE))).await;
        Ok(())
    }

    /// Asks until there is an answer; what only asks may be asked again.
    pub(crate) async fn ask<T>(
        &self,
        question: impl AsyncFn() -> Result<T, ApiError>,
    ) -> Result<Result<T, ApiError>, RunError> {
        loop {
            match question().await {
                Ok(answer) => {
                    self.answered();
                    return Ok(Ok(answer));
                }
                Err(ApiError::Denied(401)) => return Err(RunError::Denied),
                Err(error) => {
                    let error = ManagementError::Api(error);
                    if !error.is_passing() {
                        self.answered();
                        let ManagementError::Api(error) = error else { continue };
                        return Ok(Err(error));
                    }
                    self.pause(&kit::error::chain(&error), None).await?;
                }
            }
        }
    }

    /// Waits until Lago is up and has its database, and returns its version.
    pub(crate) async fn wait_for_lago(&self, api: &LagoApi) -> Result<String, RunError> {
        loop {
            match api.health().await {
                Ok(version) => {
                    self.answered();
                    return Ok(version);
                }
                // A proxy that lets only the API through: it is there all the same, and has its database.
                Err(ApiError::NotFound) if is_lagos_api(api).await => {
                    self.answered();
                    return Ok("of a version that nobody says (/health is hidden)".to_owned());
                }
                // What stands in front of it may answer in its own words until it is up.
                Err(error) => self.pause(&kit::error::chain(&error), None).await?,
            }
        }
    }
}

/// Whether the API answers in Lago's words that it knows no such thing.
async fn is_lagos_api(api: &LagoApi) -> bool {
    let answer = api.exchange(Method::GET, Place::Api("health"), None).await;
    answer.is_ok_and(|answer| answer.status == 404 && answer.body["code"] == "resource_not_found")
}
