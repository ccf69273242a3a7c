//! What the listeners tell.

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::connection::Wait;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    listener: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimedOut {
    listener: &'static str,
    phase: &'static str,
}

/// Classes of statuses.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Metrics of all listeners of a daemon.
#[derive(Clone, Debug, Default)]
pub struct ServeMetrics {
    accepted: Family<Listener, Counter>,
    refused: Family<Listener, Counter>,
    open: Family<Listener, Gauge>,
    answered: Family<Answered, Counter>,
    timed_out: Family<TimedOut, Counter>,
    panicked: Family<Listener, Counter>,
}

impl ServeMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("http_connections_accepted", "Connections accepted", metrics.accepted.clone());
        registry.register(
            "http_connections_refused",
            "Connections over a limit, closed at once",
            metrics.refused.clone(),
        );
        registry.register("http_connections_open", "Connections open", metrics.open.clone());
        registry.register("http_requests", "Requests answered, by class of status", metrics.answered.clone());
        registry.register("http_timeouts", "Connections closed because they were too slow", metrics.timed_out.clone());
        registry.register("http_panics", "Handlers that panicked", metrics.panicked.clone());
        metrics
    }

    /// Makes every series of a listener exist: of one that begins with its first failure no rate tells that failure.
    pub(super) fn prepare(&self, listener: &'static str) {
        for family in [&self.accepted, &self.refused, &self.panicked] {
            drop(family.get_or_create(&Listener { listener }));
        }
        drop(self.open.get_or_create(&Listener { listener }));
        for status in CLASSES {
            drop(self.answered.get_or_create(&Answered { listener, status }));
        }
        for phase in ["idle", "head", "write"] {
            drop(self.timed_out.get_or_create(&TimedOut { listener, phase }));
        }
    }

    pub(super) fn accepted(&self, listener: &'static str) {
        self.accepted.get_or_create(&Listener { listener }).inc();
    }

    pub(super) fn refused(&self, listener: &'static str) {
        self.refused.get_or_create(&Listener { listener }).inc();
    }

    pub(super) fn opened(&self, listener: &'static str, by: i64) {
        self.open.get_or_create(&Listener { listener }).inc_by(by);
    }

    pub(super) fn answered(&self, listener: &'static str, status: StatusCode) {
        let status = match status.as_u16() {
            100..=199 => CLASSES[0],
            200..=299 => CLASSES[1],
            300..=399 => CLASSES[2],
            400..=499 => CLASSES[3],
            _ => CLASSES[4],
        };
        self.answered.get_or_create(&Answered { listener, status }).inc();
    }

    pub(super) fn timed_out(&self, listener: &'static str, wait: Wait) {
        let phase = match wait {
            Wait::Idle => "idle",
            Wait::Head => "head",
            Wait::Write => "write",
            // Neither is the other end's fault.
            Wait::Handler | Wait::Stop => return,
        };
        self.timed_out.get_or_create(&TimedOut { listener, phase }).inc();
    }

    pub(super) fn panicked(&self, listener: &'static str) {
        self.panicked.get_or_create(&Listener { listener }).inc();
    }
}
