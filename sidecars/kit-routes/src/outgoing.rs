//! Where a daemon's events go: the gateway, a RabbitMQ exchange, further sinks, and the routes between them. What is set
//! about that, and everything that follows from it before and at the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use kit::clock::{SharedClock, SystemClock};
use kit::config::Problems;
use kit::lifecycle::Shell;
use kit::run::StartError;
use kit_amqp::{AmqpMetrics, AmqpSection};
use kit_delivery::format::Format;
use kit_delivery::start::configuration;
use kit_delivery::{DispatcherSettings, GatewaySection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::built::{Builder, BuiltSink, SinkError};
use crate::config::{RouteSection, RoutesSection, Routing, SinkSection};
use crate::sink::Intended;
use crate::start::{self, Base, Routed};

/// The sink of `[gateway]`, by its name in the journal, metrics and the API.
pub const GATEWAY: &str = "gateway";
/// Name of the sink of `[amqp]`.
pub const RABBITMQ: &str = "rabbitmq";

/// The sections of a daemon that always has a gateway; in its configuration a group
/// ([`kit::config::Section::GROUPS`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutgoingSections {
    /// Where events go and how the answer is judged.
    pub gateway: GatewaySection,
    /// The RabbitMQ exchange that events are published to as well; none without a URL.
    pub amqp: AmqpSection,
    /// Further sinks by name (`a` to `z`, digits, `-` and `_`), each with a `type`; `type = "http"` has everything that
    /// `[gateway]` has, `type = "amqp"` everything that `[amqp]` has. In the environment `SIDECAR_SINKS__AUDIT__TYPE=http`, `SIDECAR_SINKS__AUDIT__URL` and so on.
    pub sinks: BTreeMap<String, SinkSection>,
    /// Which events go to which sinks: a list of `[[route]]`, see [Routes](routes.md).
    pub route: Vec<RouteSection>,
    /// Where routes come from, what gets no route, and what jq may use.
    pub routes: RoutesSection,
}

impl OutgoingSections {
    /// What is said here.
    pub fn outgoing(&self) -> Outgoing<'_> {
        let Self { gateway, amqp, sinks, route, routes } = self;
        Outgoing { gateway: Some(gateway), amqp, sinks, route, routes, paths: BTreeMap::new() }
    }
}

/// What a configuration says about where events go.
#[derive(Clone, Debug)]
pub struct Outgoing<'a> {
    /// `[gateway]`, where there is one.
    pub gateway: Option<&'a GatewaySection>,
    /// `[amqp]`; no exchange without a URL.
    pub amqp: &'a AmqpSection,
    /// `[sinks.<name>]`.
    pub sinks: &'a BTreeMap<String, SinkSection>,
    /// `[[route]]`.
    pub route: &'a [RouteSection],
    /// `[routes]`.
    pub routes: &'a RoutesSection,
    /// Path templates at the gateway that differ from its own, by CloudEvents source.
    pub paths: BTreeMap<String, String>,
}

impl<'a> Outgoing<'a> {
    /// Whether events go anywhere.
    pub fn is_any(&self) -> bool {
        self.gateway.is_some() || self.amqp.is_set() || !self.sinks.is_empty()
    }

    /// What is said about routing.
    pub fn routing(&self) -> Routing<'a> {
        let own: &[&str] = match (self.gateway.is_some(), self.amqp.is_set()) {
            (true, true) => &[GATEWAY, RABBITMQ],
            (true, false) => &[GATEWAY],
            (false, true) => &[RABBITMQ],
            (false, false) => &[],
        };
        Routing { own, sinks: self.sinks, route: self.route, routes: self.routes }
    }

    /// Whether a sink is sent what the sender sent, with its headers.
    pub fn sends_raw(&self) -> bool {
        let raw = |section: &GatewaySection| section.format == Format::Raw;
        self.gateway.is_some_and(raw)
            || self.amqp.is_set() && self.amqp.format == Format::Raw
            || self.sinks.values().any(|sink| match sink {
                SinkSection::Http(section) => raw(section),
                SinkSection::Amqp(section) => section.format == Format::Raw,
            })
    }

    /// Checks the values that no file is needed for.
    pub fn validate(&self, problems: &mut Problems) {
        if let Some(gateway) = self.gateway {
            gateway.validate("gateway", problems);
        }
        if self.amqp.is_set() {
            self.amqp.validate("amqp", problems);
        }
        self.amqp.validate_unset("amqp", problems);
        self.routing().validate(problems);
    }

    /// Checks what only reading files and compiling tells.
    pub fn check(&self, daemon: &'static str, problems: &mut Problems) {
        let clock: SharedClock = Arc::new(SystemClock);
        let builder = Builder { daemon, clock: &clock, amqp: &AmqpMetrics::default() };
        for error in self.own_sinks(builder).err().into_iter().flatten() {
            problems.add(&error.path, &error.message);
        }
        start::check(self.routing(), builder, problems);
    }

    /// The sinks of `[gateway]` and `[amqp]`, where they are configured, the gateway first: the first sink begins with the
    /// journal's first event.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn own_sinks(&self, builder: Builder<'_>) -> Result<Vec<(BuiltSink, DispatcherSettings)>, Vec<SinkError>> {
        let mut errors = Vec::new();
        let mut sinks = Vec::new();
        if let Some(gateway) = self.gateway {
            match builder.http("gateway", GATEWAY, gateway) {
                Ok(sink) => {
                    let sink = sink.with_paths(self.paths.clone());
                    sinks.push((BuiltSink::Http(Box::new(sink)), DispatcherSettings::from(gateway)));
                }
                Err(more) => errors.extend(more),
            }
        }
        if self.amqp.is_set() {
            match builder.amqp("amqp", RABBITMQ, self.amqp) {
                Ok(sink) => sinks.push((sink, DispatcherSettings::from(self.amqp))),
                Err(more) => errors.extend(more),
            }
        }
        if errors.is_empty() { Ok(sinks) } else { Err(errors) }
    }

    /// Starts delivering to all sinks, as the routes say; where these sinks are not to be
    /// sent all of the journal's events, `intended` says so. Tell the admin API which they do not want
    /// ([`kit_delivery::api::Choosy`]).
    ///
    /// # Errors
    /// The configuration cannot be used, or the journal cannot write the sinks down.
    pub async fn start(
        &self,
        shell: &mut Shell,
        daemon: &'static str,
        base: Base<'_>,
        intended: Intended,
    ) -> Result<Routed, StartError> {
        let amqp = base.metrics.shared(AmqpMetrics::register);
        let builder = Builder { daemon, clock: base.clock, amqp: &amqp };
        let own = self
            .own_sinks(builder)
            .map_err(|errors| configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        start::start(shell, base, builder, self.routing(), own, intended).await
    }
}
