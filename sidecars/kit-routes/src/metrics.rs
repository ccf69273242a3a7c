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
    /// Series of routes that exist now: what they match, and what they drop.
    known: Arc<Mutex<[Vec<RouteLabels>; 2]>>,
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
        let mut all = Vec::new();
        for sink in table.sinks() {
            drop(self.failed.get_or_create(&SinkLabels { sink: sink.clone() }));
            let routes = table.names().chain([DEFAULT]);
            all.extend(routes.map(|route| RouteLabels { route: route.to_owned(), sink: sink.clone() }));
        }
        let (matched, dropped): (Vec<_>, Vec<_>) = (
            all.iter().filter(|labels| table.leads(&labels.route, &labels.sink)).cloned().collect(),
            all.iter().filter(|labels| table.drops(&labels.route)).cloned().collect(),
        );
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, known, now) in [(&self.matched, &known[0], &matched), (&self.dropped, &known[1], &dropped)] {
            for gone in known.iter().filter(|labels| !now.contains(labels)) {
                family.remove(gone);
            }
            for labels in now {
                drop(family.get_or_create(labels));
            }
        }
        *known = [matched, dropped];
    }

    /// Counts, unless the route is gone: an event that was decided by the table before would have it for ever.
    pub(crate) fn matched(&self, route: &str, sink: &str) {
        if let Some(matched) = self.matched.get(&RouteLabels { route: route.to_owned(), sink: sink.to_owned() }) {
            matched.inc();
        }
    }

    /// As [`Self::matched`].
    pub(crate) fn dropped(&self, route: &str, sink: &str) {
        if let Some(dropped) = self.dropped.get(&RouteLabels { route: route.to_owned(), sink: sink.to_owned() }) {
            dropped.inc();
        }
    }

    pub(crate) fn failed(&self, sink: &str) {
        self.failed.get_or_create(&SinkLabels { sink: sink.to_owned() }).inc();
    }

    pub(crate) fn reloaded(&self, taken: bool) {
        self.reloads.get_or_create(&ReloadLabels { result: if taken { "taken" } else { "refused" } }).inc();
        self.wrong.set(i64::from(!taken));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::RouteSection;

    fn table(routes: &[(&str, &str)]) -> Table {
        let route = |(name, to): &(&str, &str)| RouteSection {
            name: (*name).to_owned(),
            to: [*to].into_iter().filter(|to| !to.is_empty()).map(str::to_owned).collect(),
            drop: to.is_empty(),
            ..RouteSection::default()
        };
        let routes: Vec<RouteSection> = routes.iter().map(route).collect();
        Table::compile(&routes, &[], &["a".to_owned(), "b".to_owned()]).unwrap()
    }

    fn series(registry: &Registry) -> Vec<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text.lines().filter(|line| line.contains("route=") && !line.contains(DEFAULT)).map(str::to_owned).collect()
    }

    #[test]
    fn series_of_routes_that_are_gone_or_lead_elsewhere_are_gone() {
        let mut registry = Registry::default();
        let metrics = RouteMetrics::register(&mut registry);
        metrics.prepare(&table(&[("old", "a"), ("moves", "a"), ("noise", "")]));
        metrics.matched("moves", "a");
        assert_eq!(series(&registry).len(), 4, "{:?}", series(&registry));

        metrics.prepare(&table(&[("moves", "b")]));
        // What was decided by the table before is counted now.
        metrics.matched("old", "a");
        metrics.dropped("noise", "b");
        metrics.matched("moves", "b");
        assert_eq!(series(&registry), ["routes_matched_total{route=\"moves\",sink=\"b\"} 1"]);
    }
}
