//! What routing tells. Labels are names of the configuration or of the routes file; those of routes that are gone go
//! with them.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::table::{DEFAULT, Table};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
    sink: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabels {
    sink: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

/// Metrics of the routes of a daemon.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    matched: Family<RouteLabels, Counter>,
    dropped: Family<RouteLabels, Counter>,
    failed: Family<SinkLabels, Counter>,
    reloads: Family<ReloadLabels, Counter>,
    wrong: Gauge,
    /// Series that exist now.
    known: Arc<Mutex<Vec<RouteLabels>>>,
}

impl RouteMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            matched: Family::default(),
            dropped: Family::default(),
            failed: Family::default(),
            reloads: Family::default(),
            wrong: Gauge::default(),
            known: Arc::default(),
        };
        registry.register("routes_matched", "Deliveries that a route has given to a sink", metrics.matched.clone());
        registry.register("routes_dropped", "Deliveries that a route has given up", metrics.dropped.clone());
        registry.register("routes_jq_failed", "Attempts that a jq program has failed", metrics.failed.clone());
        registry.register("routes_reloads", "Readings of a changed routes file", metrics.reloads.clone());
        registry.register(
            "routes_file_wrong",
            "1 while the routes file cannot be used and the routes before it are in force",
            metrics.wrong.clone(),
        );
        for result in ["taken", "refused"] {
            drop(metrics.reloads.get_or_create(&ReloadLabels { result }));
        }
        metrics
    }

    /// Makes every series of a table exist, and lets go of those that it does not have.
    pub(crate) fn prepare(&self, table: &Table) {
        let mut now = Vec::new();
        for sink in table.sinks() {
            drop(self.failed.get_or_create(&SinkLabels { sink: sink.clone() }));
            let routes = table.names().chain([DEFAULT]);
            now.extend(routes.map(|route| RouteLabels { route: route.to_owned(), sink: sink.clone() }));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.iter().filter(|labels| !now.contains(labels)) {
            self.matched.remove(gone);
            self.dropped.remove(gone);
        }
        for labels in &now {
            if table.leads(&labels.route, &labels.sink) {
                drop(self.matched.get_or_create(labels));
            }
            if table.drops(&labels.route) {
                drop(self.dropped.get_or_create(labels));
            }
        }
        *known = now;
    }

    pub(crate) fn matched(&self, route: &str, sink: &str) {
        self.matched.get_or_create(&RouteLabels { route: route.to_owned(), sink: sink.to_owned() }).inc();
    }

    pub(crate) fn dropped(&self, route: &str, sink: &str) {
        self.dropped.get_or_create(&RouteLabels { route: route.to_owned(), sink: sink.to_owned() }).inc();
    }

    pub(crate) fn failed(&self, sink: &str) {
        self.failed.get_or_create(&SinkLabels { sink: sink.to_owned() }).inc();
    }

    pub(crate) fn reloaded(&self, taken: bool) {
        self.reloads.get_or_create(&ReloadLabels { result: if taken { "taken" } else { "refused" } }).inc();
        self.wrong.set(i64::from(!taken));
    }
}
