//! Where ends of workflows go: the gateway, a RabbitMQ exchange and further sinks, as the routes say. What comes in for
//! Temporal never goes there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kit::api::Api;
use kit::lifecycle::Shell;
use kit::run::StartError;
use kit_delivery::SinkStatus;
use kit_delivery::api::Wants;
use kit_delivery::start::configuration;
use kit_routes::{Base, Intended, Outgoing, Routed};
use kit_temporal::Temporal;

use crate::config::Config;
use crate::direction::is_outcome;
use crate::observer::{self, Observed};

impl Config {
    /// What is said about where events go.
    pub fn outgoing(&self) -> Outgoing<'_> {
        let Self { gateway, amqp, sinks, route, routes, .. } = self;
        let gateway = gateway.url.is_some().then_some(gateway);
        Outgoing { gateway, amqp, sinks, route, routes, paths: BTreeMap::new() }
    }
}

/// What the rest of the daemon goes on with.
pub(crate) struct Outcomes {
    /// What each sink is doing, by name.
    pub(crate) sinks: BTreeMap<String, Arc<Mutex<SinkStatus>>>,
    /// What the admin API must know: none of these sinks is sent what comes in.
    pub(crate) choosy: BTreeMap<String, Wants>,
    /// What the admin API shows of them.
    pub(crate) api: Api,
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
        let outgoing = config.outgoing();
        if !outgoing.is_any() {
            let (sinks, choosy) = (BTreeMap::new(), BTreeMap::new());
            return Ok(Self { sinks, choosy, api: Api::default(), observed: Observed::nothing() });
        }
        let Routed { sinks, api } =
            outgoing.start(shell, daemon, base, Intended { wants: is_outcome, ..Intended::ALL }).await?;
        let Base { journal, clock, metrics, readiness } = base;
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
