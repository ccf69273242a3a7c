//! What the delivery engine tells about each sink.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::outcome::Failure;

/// Label of everything that is counted per sink; its values come from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SinkLabels {
    sink: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    sink: String,
    outcome: &'static str,
}

/// Metrics of all sinks of a daemon.
#[derive(Clone, Debug)]
pub struct DeliveryMetrics {
    attempts: Family<AttemptLabels, Counter>,
    seconds: Family<SinkLabels, Histogram, fn() -> Histogram>,
    gauges: Vec<(&'static str, Family<SinkLabels, Gauge>)>,
}

/// The gauges, in the order of [`SinkGauges`] and then of [`OwnGauges`].
const GAUGES: [(&str, &str); 11] = [
    ("delivery_accepted", "Events this sink is responsible for"),
    ("delivery_delivered", "Events delivered"),
    ("delivery_pending", "Events still to be delivered, tried or not"),
    ("delivery_parked", "Dead letters"),
    ("delivery_dropped", "Events dropped by an operator or by a route"),
    ("delivery_filtered", "Events the sink's rules do not want"),
    ("delivery_oldest_pending_seconds", "Age of the oldest event still to be delivered"),
    ("delivery_circuit_open", "1 while the circuit of the sink is open"),
    ("delivery_paused", "1 while deliveries are paused by an operator"),
    ("delivery_stalled", "1 while so many deliveries wait for another attempt that nothing new is fetched"),
    ("delivery_leading", "1 while this process delivers to the sink; of several on one journal one does"),
];

/// Places in [`GAUGES`].
const PENDING: usize = 2;
const OLDEST: usize = 6;
const OWN: usize = 7;

pub(crate) fn to_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Values of one sink's gauges; they close: accepted = delivered + pending + parked + dropped + filtered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SinkGauges {
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    pub(crate) pending: u64,
    pub(crate) parked: u64,
    pub(crate) dropped: u64,
    pub(crate) filtered: u64,
    pub(crate) oldest_seconds: u64,
}

/// What the process knows of a sink by itself, whether the journal can be read or not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnGauges {
    pub(crate) circuit_open: bool,
    pub(crate) paused: bool,
    pub(crate) stalled: bool,
    pub(crate) leading: bool,
}

/// Registers what no sink's own gauges can tell.
pub(crate) fn wait_for_nobody(registry: &mut Registry) -> Gauge {
    let gauge = Gauge::default();
    registry.register(
        "delivery_unconfigured_pending",
        "Events that wait for sinks that are not configured any more",
        gauge.clone(),
    );
    gauge
}

fn latency_buckets() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl DeliveryMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            attempts: Family::default(),
            seconds: Family::new_with_constructor(latency_buckets),
            gauges: GAUGES.iter().map(|(name, _)| (*name, Family::default())).collect(),
        };
        registry.register("delivery_attempts", "Attempts to deliver, by outcome", metrics.attempts.clone());
        registry.register_with_unit(
            "delivery_attempt",
            "Duration of an attempt to deliver",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        for ((name, help), (_, family)) in GAUGES.iter().zip(&metrics.gauges) {
            registry.register(*name, *help, family.clone());
        }
        metrics
    }

    /// Makes every series of a sink exist from the start.
    pub(crate) fn prepare(&self, sink: &str) {
        for outcome in ["delivered", "filtered", "dropped"].into_iter().chain(Failure::ALL.map(Failure::word)) {
            drop(self.attempts.get_or_create(&AttemptLabels { sink: sink.to_owned(), outcome }));
        }
        self.set(sink, &SinkGauges::default());
        self.set_own(sink, OwnGauges::default());
    }

    pub(crate) fn attempted(&self, sink: &str, outcome: &'static str, seconds: f64) {
        self.attempts.get_or_create(&AttemptLabels { sink: sink.to_owned(), outcome }).inc();
        self.seconds.get_or_create(&SinkLabels { sink: sink.to_owned() }).observe(seconds);
    }

    pub(crate) fn set(&self, sink: &str, gauges: &SinkGauges) {
        let values = [
            gauges.accepted,
            gauges.delivered,
            gauges.pending,
            gauges.parked,
            gauges.dropped,
            gauges.filtered,
            gauges.oldest_seconds,
        ];
        self.show(sink, 0, values);
    }

    pub(crate) fn set_own(&self, sink: &str, own: OwnGauges) {
        self.show(sink, OWN, [own.circuit_open, own.paused, own.stalled, own.leading].map(u64::from));
    }

    /// What waits without the journal being asked: at least so many, and the oldest for so long.
    pub(crate) fn wait_on(&self, sink: &str, pending: u64, oldest_seconds: Option<u64>) {
        let label = SinkLabels { sink: sink.to_owned() };
        let shown = |at: usize| self.gauges.get(at).map(|(_, family)| family.get_or_create_owned(&label));
        let (pending, oldest) = (to_gauge(pending), oldest_seconds.map(to_gauge));
        shown(PENDING).filter(|gauge| gauge.get() < pending).map(|gauge| gauge.set(pending));
        shown(OLDEST).zip(oldest).map(|(gauge, oldest)| gauge.set(oldest));
    }

    fn show(&self, sink: &str, from: usize, values: impl IntoIterator<Item = u64>) {
        for ((_, family), value) in self.gauges.iter().skip(from).zip(values) {
            family.get_or_create(&SinkLabels { sink: sink.to_owned() }).set(to_gauge(value));
        }
    }
}
