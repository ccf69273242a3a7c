//! What is told about each connection to a broker.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label of everything that is told per connection; its values come from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    connection: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabels {
    connection: String,
    result: &'static str,
}

/// Words for what became of a consumed message.
const CONSUMED: [&str; 3] = ["accepted", "rejected", "later"];

/// Metrics of all connections to brokers of a daemon.
#[derive(Clone, Debug, Default)]
pub struct AmqpMetrics {
    connected: Family<Labels, Gauge>,
    blocked: Family<Labels, Gauge>,
    connects: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    returned: Family<Labels, Counter>,
    nacked: Family<Labels, Counter>,
    consumed: Family<MessageLabels, Counter>,
}

impl AmqpMetrics {
    /// Registers the metrics. A daemon does it once, whatever it has of connections.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("amqp_connected", "1 while there is a connection to the broker", metrics.connected.clone());
        registry.register("amqp_blocked", "1 while the broker blocks what is published", metrics.blocked.clone());
        registry.register("amqp_connects", "Connections made", metrics.connects.clone());
        registry.register("amqp_connect_failures", "Connections that could not be made", metrics.failures.clone());
        registry.register("amqp_returned", "Messages that the broker returned as unroutable", metrics.returned.clone());
        registry.register("amqp_nacked", "Messages that the broker refused to keep (nack)", metrics.nacked.clone());
        registry.register("amqp_consumed", "Messages taken from a queue, by result", metrics.consumed.clone());
        metrics
    }

    /// The part of one connection; all its series exist from here on.
    pub(crate) fn of(&self, connection: &str) -> ConnectionMetrics {
        let labels = Labels { connection: connection.to_owned() };
        ConnectionMetrics {
            connected: self.connected.get_or_create_owned(&labels),
            blocked: self.blocked.get_or_create_owned(&labels),
            connects: self.connects.get_or_create_owned(&labels),
            failures: self.failures.get_or_create_owned(&labels),
            returned: self.returned.get_or_create_owned(&labels),
            nacked: self.nacked.get_or_create_owned(&labels),
        }
    }

    /// The part of what is consumed on one connection.
    pub(crate) fn consumer(&self, connection: &str) -> ConsumerMetrics {
        ConsumerMetrics(CONSUMED.map(|result| {
            self.consumed.get_or_create_owned(&MessageLabels { connection: connection.to_owned(), result })
        }))
    }
}

/// Metrics of one connection.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionMetrics {
    pub(crate) connected: Gauge,
    pub(crate) blocked: Gauge,
    pub(crate) connects: Counter,
    pub(crate) failures: Counter,
    pub(crate) returned: Counter,
    pub(crate) nacked: Counter,
}

/// Metrics of what is consumed, in the order of [`CONSUMED`].
#[derive(Clone, Debug)]
pub(crate) struct ConsumerMetrics([Counter; 3]);

impl ConsumerMetrics {
    pub(crate) fn accepted(&self) {
        self.0[0].inc();
    }

    pub(crate) fn rejected(&self) {
        self.0[1].inc();
    }

    pub(crate) fn later(&self) {
        self.0[2].inc();
    }
}
