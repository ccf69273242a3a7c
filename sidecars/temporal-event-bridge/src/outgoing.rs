//! Where ends of workflows go: the gateway, a RabbitMQ exchange and further sinks, as the routes say. What comes in for
//! Temporal never goes there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kit::clock::{SharedClock, SystemClock};
use kit::config::Problems;
use kit::lifecycle::Shell;
use kit::run::StartError;
use kit_amqp::AmqpMetrics;
use kit_delivery::api::Wants;
use kit_delivery::start::configuration;
use kit_delivery::{DispatcherSettings, SinkStatus};
use kit_routes::{Base, Builder, BuiltSink, Routed, Routing, SinkError};
use kit_temporal::Temporal;
use utoipa_axum::router::OpenApiRouter;

use crate::config::Config;
use crate::direction::is_outcome;
use crate::observer::{self, Observed};

/// The sink of `[gateway]`, by its name in the journal, metrics and the API.
pub const GATEWAY: &str = "gateway";
/// Name of the sink of `[amqp]`.
pub const RABBITMQ: &str = "rabbitmq";

impl Config {
    /// Whether ends of workflows go anywhere.
    pub fn has_sinks(&self) -> bool {
        self.gateway.url.is_some() || self.amqp.is_set() || !self.sinks.is_empty()
    }

    /// What is said about routing.
    pub fn routing(&self) -> Routing<'_> {
        let own: &[&str] = match (self.gateway.url.is_some(), self.amqp.is_set()) {
            (true, true) => &[GATEWAY, RABBITMQ],
            (true, false) => &[GATEWAY],
            (false, true) => &[RABBITMQ],
            (false, false) => &[],
        };
        Routing { own, sinks: &self.sinks, route: &self.route, routes: &self.routes }
    }

    /// Checks the values that no file is needed for.
    pub(crate) fn validate_outgoing(&self, problems: &mut Problems) {
        if self.gateway.url.is_some() {
            self.gateway.validate("gateway", problems);
        }
        if self.amqp.is_set() {
            self.amqp.validate("amqp", problems);
        }
        self.amqp.validate_unset("amqp", problems);
        self.routing().validate(problems);
        self.observer.validate("observer", problems);
    }
}

/// Checks what only reading files and compiling tells.
pub(crate) fn check(config: &Config, daemon: &'static str, problems: &mut Problems) {
    let clock: SharedClock = Arc::new(SystemClock);
    let builder = Builder { daemon, clock: &clock, amqp: &AmqpMetrics::default() };
    for error in own_sinks(config, builder).err().into_iter().flatten() {
        problems.add(&error.path, &error.message);
    }
    kit_routes::check(config.routing(), builder, problems);
    observer::check(&config.observer, problems);
}

fn own_sinks(config: &Config, builder: Builder<'_>) -> Result<Vec<(BuiltSink, DispatcherSettings)>, Vec<SinkError>> {
    let mut errors = Vec::new();
    let mut sinks = Vec::new();
    if config.gateway.url.is_some() {
        match builder.http("gateway", GATEWAY, &config.gateway) {
            Ok(sink) => sinks.push((BuiltSink::Http(Box::new(sink)), DispatcherSettings::from(&config.gateway))),
            Err(more) => errors.extend(more),
        }
    }
    if config.amqp.is_set() {
        match builder.amqp("amqp", RABBITMQ, &config.amqp) {
            Ok(sink) => sinks.push((sink, DispatcherSettings::from(&config.amqp))),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() { Ok(sinks) } else { Err(errors) }
}

/// What the rest of the daemon goes on with.
pub(crate) struct Outcomes {
    /// What each sink is doing, by name.
    pub(crate) sinks: BTreeMap<String, Arc<Mutex<SinkStatus>>>,
    /// What the admin API must know: none of these sinks is sent what comes in.
    pub(crate) choosy: BTreeMap<String, Wants>,
    /// Routes of the admin API.
    pub(crate) api: OpenApiRouter,
    pub(crate) observed: Observed,
}

impl Outcomes {
    /// Starts observing and delivering, where there is anybody to tell.
    pub(crate) async fn start(
        shell: &mut Shell,
        config: &Config,
        daemon: &'static str,
        temporal: &Temporal,
        base: Base<'_>,
        task_queues: Vec<(String, String)>,
    ) -> Result<Self, StartError> {
        if !config.has_sinks() {
            let (sinks, choosy) = (BTreeMap::new(), BTreeMap::new());
            return Ok(Self { sinks, choosy, api: OpenApiRouter::new(), observed: Observed::nothing() });
        }
        let Base { journal, clock, metrics, readiness } = base;
        let amqp = metrics.shared(AmqpMetrics::register);
        let builder = Builder { daemon, clock, amqp: &amqp };
        let own = own_sinks(config, builder)
            .map_err(|errors| configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        let Routed { sinks, api } =
            kit_routes::start_for(shell, base, builder, config.routing(), own, is_outcome).await?;
        let observed = if config.observer.enabled {
            let base = observer::Base { temporal, journal, clock, metrics, readiness, task_queues };
            observer::start(shell, base, &config.observer).map_err(|error| configuration(error.to_string()))?
        } else {
            Observed::nothing()
        };
        let choosy = sinks.keys().map(|name| (name.clone(), is_outcome as Wants)).collect();
        Ok(Self { sinks, choosy, api, observed })
    }
}
