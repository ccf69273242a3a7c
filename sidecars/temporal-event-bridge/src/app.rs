//! How the parts are put together.

use std::collections::BTreeMap;
use std::sync::Arc;

use kit::admin::Readiness;
use kit::clock::{SharedClock, SystemClock};
use kit::config::{Problems, WellKnown};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_delivery::DeliveryMetrics;
use kit_delivery::api::{ApiState, Choosy, Wants};
use kit_delivery::receive::{Receiver, ReceiverSettings};
use kit_delivery::start::{self, Served, configuration};
use kit_routes::jq::{Jq, JqLimits};
use kit_temporal::Temporal;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;

use crate::config::{Config, well_known};
use crate::http::{self, Intake};
use crate::metrics::{CallMetrics, IntakeMetrics};
use crate::queue;
use crate::rules::{Rule, Rules};
use crate::sink::{self, SINK, TemporalSink};

/// Largest request head: signatures, and attributes of an event as headers.
const PUBLIC_HEAD: usize = 64 << 10;

/// The daemon.
#[derive(Debug)]
pub struct TemporalEventBridge;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "temporal-event-bridge",
    description = "Events on their way to Temporal, and outcomes of workflows on their way out. Every path needs the bearer token of SIDECAR_ADMIN__TOKEN_FILE."
))]
struct ApiDescription;

impl Daemon for TemporalEventBridge {
    const NAME: &'static str = "temporal-event-bridge";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str =
        "Events start and signal Temporal workflows, each once; every workflow's outcome becomes an event.";
    type Config = Config;

    fn well_known() -> Vec<WellKnown> {
        well_known()
    }

    fn check(config: &Config, problems: &mut Problems) {
        config.journal.check("journal", problems);
        if let Err((field, message)) = config.admin.resolve() {
            problems.add(&format!("admin.{field}"), &message);
        }
        kit_temporal::client::check("temporal", &config.temporal, problems);
        receiver(config, problems);
        queue::check(&config.amqp_source, problems);
        for mistake in Rules::program_mistakes(&config.rule, JqLimits::from(&config.jq)) {
            problems.add("rule", &mistake);
        }
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let clock: SharedClock = Arc::new(SystemClock);
        let (journal, task) = start::open_journal(&config.journal, &clock, &metrics).await?;
        let clock = journal.clock();
        let readiness = Readiness::default();
        shell.at_end(move || task.close());
        start::watch_journal(shell, &journal, &readiness);

        let mut problems = Problems::default();
        let receiver = receiver(&config, &mut problems);
        if !problems.is_empty() {
            return Err(configuration(problems.lines(&well_known()).join("; ")));
        }
        let temporal = Temporal::new("temporal", &config.temporal, Self::VERSION).map_err(|errors| {
            configuration(errors.iter().map(|error| format!("temporal.{error}")).collect::<Vec<_>>().join("; "))
        })?;
        let delivery = metrics.with_registry(DeliveryMetrics::register);
        // Before anything is taken: a sink that is new to a journal begins with the next event.
        start::register(&journal, &[SINK]).await?;
        let sink = inbound(&config, temporal, &metrics)?;
        let status = start::deliver(shell, Arc::new(sink), &journal, &clock, config.calls.settings(), &delivery);

        let intake = Arc::new(Intake {
            receiver,
            journal: journal.clone(),
            clock: Arc::clone(&clock),
            metrics: metrics.with_registry(IntakeMetrics::register),
            body_limit: config.webhooks.body_limit_bytes,
        });
        queue::start(shell, &config.amqp_source, &metrics, &intake, &clock)?;
        let limits = Limits::new(&config.listen, &config.stop, PUBLIC_HEAD);
        let sinks = Arc::new(BTreeMap::from([(SINK.to_owned(), status)]));
        let api = ApiState { journal, clock, sinks, at_work: Arc::default(), choosy: choosy() };
        let served = Served {
            business: http::router(intake),
            limits,
            description: ApiDescription::openapi(),
            api,
            more: OpenApiRouter::new(),
            metrics,
            readiness,
        };
        start::serve(shell, &config, &config.admin, served).await
    }
}

/// What every event is for.
fn choosy() -> Choosy {
    let sinks: [(_, Wants); 1] = [(SINK, sink::wants)];
    Arc::new(BTreeMap::from(sinks))
}

fn receiver(config: &Config, problems: &mut Problems) -> Option<Receiver> {
    let section = &config.webhooks;
    let settings = ReceiverSettings {
        variable: "BRIDGE_WEBHOOK_SECRET",
        path: "webhooks.secret_file",
        secret: section.secret.as_ref(),
        secret_file: section.secret_file.as_deref(),
        tolerance_seconds: section.tolerance_seconds,
    };
    Receiver::load(settings, problems)
}

/// What brings events to Temporal.
fn inbound(config: &Config, temporal: Temporal, metrics: &Metrics) -> Result<TemporalSink, StartError> {
    let rules = Rules::compile(&config.rule).map_err(|mistakes| configuration(mistakes.join("; ")))?;
    let names = rules.all().iter().map(Rule::name);
    let calls = metrics.with_registry(|registry| CallMetrics::register(registry, names));
    Ok(TemporalSink::new(temporal, rules, Jq::new(JqLimits::from(&config.jq)), calls))
}
