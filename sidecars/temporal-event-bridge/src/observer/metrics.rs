//! What observing counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::outcome::Kind;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Namespace {
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    namespace: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sweeps {
    namespace: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Queue {
    namespace: String,
    task_queue: String,
}

/// How a look at what has closed ended.
pub(crate) const SWEPT: [&str; 3] = ["done", "throttled", "failed"];

type SecondsGauge = Gauge<f64, AtomicU64>;

/// The metrics of all namespaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObserverMetrics {
    outcomes: Family<Outcome, Counter>,
    sweeps: Family<Sweeps, Counter>,
    behind: Family<Namespace, SecondsGauge>,
    tracked: Family<Namespace, Gauge>,
    untracked: Family<Namespace, Counter>,
    callbacks: Family<Namespace, Counter>,
    callbacks_refused: Counter,
    missed: Family<Namespace, SecondsGauge>,
    stalled: Family<Queue, Gauge>,
    backlog: Family<Queue, Gauge>,
}

impl ObserverMetrics {
    /// Every series exists from the start, so that alert rules on rates have a beginning.
    pub(crate) fn register(registry: &mut Registry, namespaces: &[String]) -> Self {
        let metrics = Self::default();
        let registered = &metrics;
        registry.register("workflow_outcomes", "Ends of runs that became events", registered.outcomes.clone());
        registry.register("observer_sweeps", "Looks at what has closed, by result", registered.sweeps.clone());
        registry.register(
            "observer_behind_seconds",
            "Time since the last look that found everything",
            registered.behind.clone(),
        );
        registry.register(
            "observer_missed_seconds",
            "How long Temporal had forgotten what ended before anybody looked",
            registered.missed.clone(),
        );
        registry.register("observer_tracked_runs", "Runs that are looked after", registered.tracked.clone());
        registry.register(
            "observer_untracked_runs",
            "Runs that are not looked after because there are too many",
            registered.untracked.clone(),
        );
        registry.register("observer_callbacks", "Completion callbacks taken", registered.callbacks.clone());
        registry.register(
            "observer_callbacks_refused",
            "Completion callbacks without the right token, answered 503",
            registered.callbacks_refused.clone(),
        );
        registry.register(
            "task_queue_stalled",
            "1 while a task queue has work and no worker",
            registered.stalled.clone(),
        );
        registry.register("task_queue_backlog", "Tasks that wait in a task queue", registered.backlog.clone());
        for namespace in namespaces {
            let name = || namespace.clone();
            for kind in Kind::ALL {
                drop(metrics.outcomes.get_or_create(&Outcome { namespace: name(), outcome: kind.word() }));
            }
            for result in SWEPT {
                drop(metrics.sweeps.get_or_create(&Sweeps { namespace: name(), result }));
            }
            let namespace = Namespace { namespace: name() };
            drop(metrics.behind.get_or_create(&namespace));
            drop(metrics.missed.get_or_create(&namespace));
            drop(metrics.tracked.get_or_create(&namespace));
            drop(metrics.untracked.get_or_create(&namespace));
            drop(metrics.callbacks.get_or_create(&namespace));
        }
        metrics
    }

    pub(crate) fn outcome(&self, namespace: &str, kind: Kind) {
        self.outcomes.get_or_create(&Outcome { namespace: namespace.to_owned(), outcome: kind.word() }).inc();
    }

    pub(crate) fn swept(&self, namespace: &str, result: &'static str) {
        self.sweeps.get_or_create(&Sweeps { namespace: namespace.to_owned(), result }).inc();
    }

    pub(crate) fn behind(&self, namespace: &str, seconds: f64) {
        self.behind.get_or_create(&Namespace { namespace: namespace.to_owned() }).set(seconds);
    }

    pub(crate) fn missed(&self, namespace: &str, seconds: f64) {
        self.missed.get_or_create(&Namespace { namespace: namespace.to_owned() }).set(seconds);
    }

    pub(crate) fn tracked(&self, namespace: &str, runs: usize) {
        let runs = i64::try_from(runs).unwrap_or(i64::MAX);
        self.tracked.get_or_create(&Namespace { namespace: namespace.to_owned() }).set(runs);
    }

    pub(crate) fn untracked(&self, namespace: &str) {
        self.untracked.get_or_create(&Namespace { namespace: namespace.to_owned() }).inc();
    }

    pub(crate) fn callback(&self, namespace: &str) {
        self.callbacks.get_or_create(&Namespace { namespace: namespace.to_owned() }).inc();
    }

    pub(crate) fn callback_refused(&self) {
        self.callbacks_refused.inc();
    }

    pub(crate) fn queue(&self, namespace: &str, task_queue: &str, backlog: i64, is_stalled: bool) {
        let queue = Queue { namespace: namespace.to_owned(), task_queue: task_queue.to_owned() };
        self.backlog.get_or_create(&queue).set(backlog);
        self.stalled.get_or_create(&queue).set(i64::from(is_stalled));
    }
}
