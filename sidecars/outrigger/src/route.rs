//! `route test`: what the routes of a configuration make of an event, without a daemon and without sending anything.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use kit::clock::{Clock as _, SharedClock, SystemClock};
use kit::config::{Source, load};
use kit::run::Daemon as _;
use kit_amqp::AmqpMetrics;
use kit_journal::{BodyDigest, EventHead, EventId, StoredEvent};
use kit_routes::Builder;
use kit_routes::jq::{Jq, JqLimits};
use lago_webhook_processor::LagoWebhookProcessor;
use lago_webhook_processor::config::{Config, UNNAMED, well_known};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::output::{self, safe, say};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show which routes match an event and what each sink would receive; sends nothing.
    Test(Arguments),
}

#[derive(Debug, Args)]
#[command(after_help = "Example: outrigger route test --event invoice.json --config lago-webhook-processor.toml")]
pub(crate) struct Arguments {
    /// The event: a CloudEvent in structured mode, or a body as Lago sends it.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// Configuration of the webhook processor; the environment wins over it, as for the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Use the routes of this file instead of those of the configuration.
    #[arg(long, value_name = "FILE")]
    routes: Option<PathBuf>,
    /// Name of the organisation that a Lago body comes from.
    #[arg(long, default_value = UNNAMED)]
    organization: String,
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
    let mut config: Config = load(&Source::of_process(arguments.config.clone(), &well_known()))
        .map_err(|errors| anyhow!("the configuration cannot be used: {}", errors.0.join("; ")))?;
    if let Some(file) = arguments.routes {
        config.route.clear();
        config.routes.default_route.clear();
        config.routes.file = Some(file);
    }
    let body = std::fs::read(&arguments.event).with_context(|| format!("read {}", arguments.event.display()))?;
    let event = event(&body, &arguments.organization);

    let clock: SharedClock = Arc::new(SystemClock);
    let routing = config.routing();
    let table = kit_routes::compile(routing)
        .map_err(|mistakes| anyhow!("the routes cannot be used: {}", mistakes.join("; ")))?;
    let builder = Builder { daemon: LagoWebhookProcessor::NAME, clock: &clock, amqp: &AmqpMetrics::default() };
    let mut sinks = Vec::new();
    for built in [lago_webhook_processor::own_sinks(&config, builder), kit_routes::build_sinks(routing, builder)] {
        let built = built.map_err(|mistakes| {
            anyhow!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        sinks.extend(built.into_iter().map(|(sink, _)| sink));
    }
    let jq = Jq::new(JqLimits::from(&config.routes.jq));
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

/// The event as the processor would store it.
fn event(body: &[u8], organization: &str) -> StoredEvent {
    let at = SystemClock.now();
    if let Ok(event) = serde_json::from_slice::<CloudEvent<'_>>(body) {
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
        return StoredEvent { seq: 1, at, head, body: data.into() };
    }
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
