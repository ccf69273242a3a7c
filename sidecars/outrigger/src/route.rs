//! `route test`: what the routes of a configuration make of an event, without a daemon and without sending anything.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use authentik_event_forwarder::AuthentikEventForwarder;
use clap::{Args, Subcommand, ValueEnum};
use kit::clock::{Clock as _, SharedClock, SystemClock};
use kit::config::{Section, Source, WellKnown, load};
use kit::run::Daemon as _;
use kit_amqp::AmqpMetrics;
use kit_journal::{BodyDigest, EventHead, EventId, StoredEvent};
use kit_routes::jq::{Jq, JqLimits};
use kit_routes::{Builder, BuiltSink, Outgoing, RouteSection, RoutesSection, Table};
use lago_webhook_processor::LagoWebhookProcessor;
use lago_webhook_processor::config::UNNAMED;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use temporal_event_bridge::TemporalEventBridge;

use crate::output::{self, safe, say};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show which routes match an event and what each sink would receive; sends nothing.
    Test(Arguments),
}

#[derive(Debug, Args)]
#[command(after_help = "Example: outrigger route test --event invoice.json --config lago-webhook-processor.toml")]
pub(crate) struct Arguments {
    /// The event: a CloudEvent in structured mode, or, for the webhook processor, a body as Lago sends it.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// The daemon whose routes they are.
    #[arg(long, value_enum, default_value_t)]
    daemon: Daemon,
    /// Configuration of the daemon; the environment wins over it, as for the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Use the routes of this file instead of those of the configuration.
    #[arg(long, value_name = "FILE")]
    routes: Option<PathBuf>,
    /// Name of the organisation that a Lago body comes from.
    #[arg(long, default_value = UNNAMED)]
    organization: String,
}

/// Daemons that have routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Daemon {
    /// Lago's webhooks.
    #[default]
    LagoWebhookProcessor,
    /// Authentik's events.
    AuthentikEventForwarder,
    /// Ends of Temporal's workflows.
    TemporalEventBridge,
}

/// The routes of a daemon, compiled, and where they lead.
struct Ready {
    table: Table,
    sinks: Vec<BuiltSink>,
    jq: Jq,
}

#[derive(Serialize)]
struct Told {
    event: ToldEvent,
    routes: Vec<ToldRoute>,
    sinks: Vec<ToldSink>,
}

#[derive(Serialize)]
struct ToldEvent {
    #[serde(rename = "type")]
    event_type: String,
    subject: String,
    tenantid: Option<String>,
}

#[derive(Serialize)]
struct ToldRoute {
    route: String,
    matches: bool,
    why_not: Option<String>,
}

#[derive(Serialize)]
struct ToldSink {
    sink: String,
    result: String,
    request: Option<ToldRequest>,
}

#[derive(Serialize)]
struct ToldRequest {
    target: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// A CloudEvent as far as routes look at it.
///
/// Source: cloudevents/spec `cloudevents/formats/json-format.md` (1.0.2).
#[derive(Deserialize)]
struct CloudEvent<'a> {
    #[serde(rename = "specversion")]
    _version: String,
    id: Option<String>,
    source: String,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(default)]
    subject: String,
    time: Option<String>,
    tenantid: Option<String>,
    typealias: Option<String>,
    traceparent: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

pub(crate) async fn run(verb: Verb, json: bool) -> anyhow::Result<ExitCode> {
    let Verb::Test(arguments) = verb;
    let body = std::fs::read(&arguments.event).with_context(|| format!("read {}", arguments.event.display()))?;
    let event = match cloud_event(&body) {
        Some(event) => event,
        None if arguments.daemon == Daemon::LagoWebhookProcessor => lago_event(&body, &arguments.organization),
        None => bail!("{} is no CloudEvent in structured mode (JSON)", arguments.event.display()),
    };

    let clock: SharedClock = Arc::new(SystemClock);
    let amqp = AmqpMetrics::default();
    let builder = |daemon| Builder { daemon, clock: &clock, amqp: &amqp };
    let (file, routes) = (arguments.config, arguments.routes);
    let Ready { table, sinks, jq } = match arguments.daemon {
        Daemon::LagoWebhookProcessor => {
            let mut config: lago_webhook_processor::config::Config =
                read(file, &lago_webhook_processor::config::well_known())?;
            replace(routes, &mut config.outgoing.route, &mut config.outgoing.routes);
            ready(&config.outgoing(), builder(LagoWebhookProcessor::NAME))?
        }
        Daemon::AuthentikEventForwarder => {
            let mut config: authentik_event_forwarder::config::Config =
                read(file, &authentik_event_forwarder::config::well_known())?;
            replace(routes, &mut config.outgoing.route, &mut config.outgoing.routes);
            ready(&config.outgoing(), builder(AuthentikEventForwarder::NAME))?
        }
        Daemon::TemporalEventBridge => {
            let mut config: temporal_event_bridge::config::Config =
                read(file, &temporal_event_bridge::config::well_known())?;
            replace(routes, &mut config.route, &mut config.routes);
            ready(&config.outgoing(), builder(TemporalEventBridge::NAME))?
        }
    };
    let (routes, reached) = kit_routes::explain(&table, &jq, &sinks, &event).await;
    let told = Told {
        event: ToldEvent {
            event_type: event.head.event_type.clone(),
            subject: event.head.subject.clone(),
            tenantid: event.head.tenant.clone(),
        },
        routes: routes
            .into_iter()
            .map(|route| ToldRoute { route: route.route, matches: route.why_not.is_none(), why_not: route.why_not })
            .collect(),
        sinks: reached
            .into_iter()
            .map(|reached| ToldSink {
                sink: reached.sink,
                result: reached.why,
                request: reached.request.map(|request| ToldRequest {
                    target: request.target,
                    headers: request.headers,
                    body: String::from_utf8_lossy(&request.body).into_owned(),
                }),
            })
            .collect(),
    };
    if json {
        output::json(&told)?
    } else {
        show(&told)?
    }
    Ok(ExitCode::SUCCESS)
}

fn read<T: Section>(file: Option<PathBuf>, well_known: &[WellKnown]) -> anyhow::Result<T> {
    load(&Source::of_process(file, well_known))
        .map_err(|errors| anyhow!("the configuration cannot be used: {}", errors.0.join("; ")))
}

/// Puts the routes of a file in the place of those of the configuration.
fn replace(file: Option<PathBuf>, route: &mut Vec<RouteSection>, routes: &mut RoutesSection) {
    if let Some(file) = file {
        route.clear();
        routes.default_route.clear();
        routes.file = Some(file);
    }
}

fn ready(outgoing: &Outgoing<'_>, builder: Builder<'_>) -> anyhow::Result<Ready> {
    let routing = outgoing.routing();
    let table = kit_routes::compile(routing)
        .map_err(|mistakes| anyhow!("the routes cannot be used: {}", mistakes.join("; ")))?;
    let mut sinks = Vec::new();
    for built in [outgoing.own_sinks(builder), kit_routes::build_sinks(routing, builder)] {
        let built = built.map_err(|mistakes| {
            anyhow!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        sinks.extend(built.into_iter().map(|(sink, _)| sink));
    }
    Ok(Ready { table, sinks, jq: Jq::new(JqLimits::from(&routing.routes.jq)) })
}

fn show(told: &Told) -> anyhow::Result<()> {
    say!("event {} {}", safe(&told.event.event_type), safe(&told.event.subject));
    for route in &told.routes {
        let result = route.why_not.as_deref().map_or("matches".to_owned(), |why| format!("no: {}", safe(why)));
        say!("route {}: {result}", route.route);
    }
    for sink in &told.sinks {
        say!("sink {}: {}", sink.sink, safe(&sink.result));
        if let Some(request) = &sink.request {
            say!("  {}", safe(&request.target));
            for (name, value) in &request.headers {
                say!("  {name}: {}", safe(value));
            }
            say!("  {}", safe(&request.body));
        }
    }
    Ok(())
}

/// A CloudEvent as a daemon would store it; `None` where it is none.
fn cloud_event(body: &[u8]) -> Option<StoredEvent> {
    let event = serde_json::from_slice::<CloudEvent<'_>>(body).ok()?;
    let key = event.id.unwrap_or_else(|| "test".to_owned());
    let id = key.parse().unwrap_or_else(|_| EventId::derive(&event.source, &key, None));
    let head = EventHead {
        tenant: event.tenantid,
        time: event.time,
        alias: event.typealias,
        traceparent: event.traceparent,
        json: true,
        ..EventHead::new(id, event.source, event.event_type, event.subject, key)
    };
    let data = event.data.map_or("null", RawValue::get).as_bytes().to_vec();
    Some(StoredEvent { seq: 1, at: SystemClock.now(), head, body: data.into() })
}

/// Lago's body as the webhook processor would store it.
fn lago_event(body: &[u8], organization: &str) -> StoredEvent {
    let at = SystemClock.now();
    let key = "00000000-0000-4000-8000-000000000000";
    let description = kit_lago::describe(body, organization, key);
    let id = EventId::derive(&description.source, key, Some(&BodyDigest::of(body)));
    let head = EventHead {
        tenant: description.tenant,
        unattributed: description.tenant_unattributed,
        time: description.time,
        alias: description.type_alias,
        json: description.is_json,
        ..EventHead::new(id, description.source, description.event_type, description.subject, key)
    };
    StoredEvent { seq: 1, at, head, body: body.to_vec().into() }
}
