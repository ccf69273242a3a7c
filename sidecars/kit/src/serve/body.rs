//! Reading a request's body under limits of size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::FutureExt as _;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Limits;

/// Room made for a body before its first byte has come.
const FIRST_ROOM: usize = 64 * 1024;

/// The time rules of a listener's bodies; an extension of every request, as `Arc<BodyRules>`.
#[derive(Debug)]
pub struct BodyRules {
    grace: Duration,
    /// However fast: a place among the large requests is held for no longer.
    total: Duration,
    min_rate: u64,
    cut: CancellationToken,
}

impl BodyRules {
    pub(super) fn new(limits: &Limits, cut: CancellationToken) -> Self {
        Self { grace: limits.body_timeout, total: limits.body_total, min_rate: limits.body_min_rate.max(1), cut }
    }

    /// For handlers that are called without a listener, as in tests.
    pub fn unhurried() -> Arc<Self> {
        let (grace, total) = (Duration::from_secs(20), Duration::from_secs(60));
        Arc::new(Self { grace, total, min_rate: 1024, cut: CancellationToken::new() })
    }
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More than the limit.
    #[error("body is larger than {0} bytes")]
    TooLarge(usize),
    /// Too slow.
    #[error("body came too slowly")]
    TimedOut,
    /// The daemon stops.
    #[error("stopping")]
    Stopping,
    /// It ended before its announced length, or is not what its framing says.
    #[error("body broke off")]
    BrokenOff,
}

impl BodyError {
    /// The status that answers it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::BrokenOff => StatusCode::BAD_REQUEST,
        }
    }

    /// The word for it in metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooLarge(_) => "too_large",
            Self::TimedOut => "too_slow",
            Self::Stopping => "stopping",
            Self::BrokenOff => "broken_off",
        }
    }
}

/// Reads a whole body of at most `limit` bytes into memory of its own: hyper's frames keep the whole
/// read buffer alive.
///
/// An announced length beyond the limit is refused before anything is read, and nothing beyond the
/// limit is kept. The body has the listener's grace, and after that must have brought at least its
/// minimum rate for every further second; it never has more than the listener's total.
///
/// # Errors
/// [`BodyError`].
pub async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    rules: &BodyRules,
) -> Result<Vec<u8>, BodyError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(BodyError::TooLarge(limit));
    }
    let mut read = Vec::with_capacity(announced.unwrap_or(0).min(FIRST_ROOM));
    let started = Instant::now();
    while !body.is_end_stream() {
        let earned = Duration::from_secs_f64(read.len() as f64 / rules.min_rate as f64);
        let deadline = started + (rules.grace + earned).min(rules.total);
        // Mostly it came with the head, and nothing needs a timer. Not so without end: a body that goes on coming is looked
        // at by the clock as well.
        let here = if read.is_empty() { body.frame().now_or_never() } else { None };
        let frame = match here {
            Some(frame) => frame,
            None => tokio::select! {
                biased;
                frame = tokio::time::timeout_at(deadline, body.frame()) => frame.map_err(|_| BodyError::TimedOut)?,
                () = rules.cut.cancelled() => return Err(BodyError::Stopping),
            },
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| BodyError::BrokenOff)?;
        let Some(data) = frame.data_ref() else { continue };
        if data.len() > limit - read.len() {
            return Err(BodyError::TooLarge(limit));
        }
        // Past the first part the announced length is believed: room for it that is never written
        // to costs no memory, and doubling would leave a body with twice its size.
        if let Some(length) = announced.filter(|_| read.len() + data.len() > read.capacity()) {
            read.reserve_exact(length.saturating_sub(read.len()).max(data.len()));
        }
        read.extend_from_slice(data);
    }
    if announced.is_some_and(|length| length != read.len()) {
        return Err(BodyError::BrokenOff);
    }
    read.shrink_to_fit();
    Ok(read)
}
