//! How the parts are put together.

use std::sync::Arc;

use kit::api::Title;
use kit::clock::SharedClock;
use kit::config::{Problems, WellKnown};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_delivery::DeliveryMetrics;
use kit_delivery::api::{ApiState, Wants};
use kit_delivery::receive::{Receiver, ReceiverSettings};
use kit_delivery::start::{self, Begun, Served, configuration};
use kit_routes::Base;
use kit_routes::jq::{Jq, JqLimits};
use kit_temporal::Temporal;

use crate::config::{Config, Idle, well_known};
use crate::http::{self, Intake};
use crate::metrics::{CallMetrics, IntakeMetrics};
use crate::observer::{self, Observed};
use crate::outgoing::Outcomes;
use crate::planner::Planner;
use crate::queue;
use crate::rules::{Rule, Rules};
use crate::sink::{self, SINK, TemporalSink};

/// Largest request head: signatures, and attributes of an event as headers.
const PUBLIC_HEAD: usize = 64 << 10;

/// The daemon.
#[derive(Debug)]
pub struct TemporalEventBridge;

/// What the admin API is.
const TITLE: Title = Title {
    name: "temporal-event-bridge",
    version: env!("CARGO_PKG_VERSION"),
    text: "Events on their way to Temporal, and outcomes of workflows on their way out. Every path needs the bearer token of SIDECAR_ADMIN__TOKEN_FILE.",
};

impl Daemon for TemporalEventBridge {
    const NAME: &'static str = "temporal-event-bridge";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const REFERENCE: &'static str = include_str!("../../../docs/reference/temporal-event-bridge.md");
    const ABOUT: &'static str =
        "Events start and signal Temporal workflows, each once; every workflow's outcome becomes an event.";
    const OUTLIVES_HANGUP: bool = true;
    type Config = Config;

    fn well_known() -> Vec<WellKnown> {
        well_known()
    }

    fn check(config: &Config, problems: &mut Problems) {
        config.journal.check("journal", problems);
        config.process.check(problems);
        kit_temporal::client::check("temporal", &config.temporal, problems);
        receiver(config, problems);
        queue::inbox(&config.amqp_source).check(problems);
        for mistake in Rules::program_mistakes(&config.rule, JqLimits::from(&config.routes.jq)) {
            problems.add("rule", &mistake);
        }
        config.outgoing().check(Self::NAME, problems);
        observer::check(&config.observer, problems);
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let Begun { journal, clock, readiness } = start::begin(shell, Self::NAME, &config.journal, &metrics).await?;
        let mut problems = Problems::default();
        let receiver = receiver(&config, &mut problems);
        if !problems.is_empty() {
            return Err(configuration(problems.lines(&well_known()).join("; ")));
        }
        let temporal = Temporal::new("temporal", &config.temporal, Self::VERSION).map_err(|errors| {
            configuration(errors.iter().map(|error| format!("temporal.{error}")).collect::<Vec<_>>().join("; "))
        })?;
        let rules = Rules::compile(&config.rule).map_err(|mistakes| configuration(mistakes.join("; ")))?;
        let base = Base { journal: &journal, clock: &clock, metrics: &metrics, readiness: &readiness };
        let queues = rules.task_queues(temporal.namespace());
        let outcomes = Outcomes::start(shell, &config, Self::NAME, &temporal, base, queues).await?;
        let (mut sinks, mut choosy) = (outcomes.sinks, outcomes.choosy);
        // Before anything is taken: a sink that is new to a journal begins with the next event.
        start::register(&journal, &[SINK]).await?;
        let sink = inbound(&config, temporal, rules, &outcomes.observed, (&clock, &metrics));
        let delivery = metrics.shared(DeliveryMetrics::register);
        let status = start::deliver(shell, Arc::new(sink), &journal, &clock, config.calls.settings(), &delivery);
        sinks.insert(SINK.to_owned(), status);
        choosy.insert(SINK.to_owned(), sink::wants as Wants);

        let intake = Arc::new(Intake {
            receiver,
            journal: journal.clone(),
            clock: Arc::clone(&clock),
            metrics: metrics.with_registry(IntakeMetrics::register),
            body_limit: config.webhooks.body_limit_bytes,
        });
        if let Some(idle) = config.idle() {
            tracing::warn!("{}", idle.shown());
            if idle == Idle::NoWayIn {
                readiness.part("events").set_ready_but(idle.shown());
            }
        }
        queue::inbox(&config.amqp_source).start(shell, &metrics, &intake.journal, queue::taker(&intake))?;
        let limits = Limits::new(&config.process.listen, &config.process.stop, PUBLIC_HEAD);
        let (sinks, choosy) = (Arc::new(sinks), Arc::new(choosy));
        let api = ApiState { journal, clock, sinks, at_work: Arc::default(), choosy };
        let served = Served {
            business: outcomes.observed.router.merge(http::router(intake)),
            limits,
            title: TITLE,
            api,
            more: outcomes.api,
            metrics,
            readiness,
        };
        start::serve(shell, &config.process, served).await
    }
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
fn inbound(
    config: &Config,
    temporal: Temporal,
    rules: Rules,
    observed: &Observed,
    (clock, metrics): (&SharedClock, &Metrics),
) -> TemporalSink {
    let names = rules.all().iter().map(Rule::name);
    let calls = metrics.with_registry(|registry| CallMetrics::register(registry, names));
    let jq = Jq::new(JqLimits::from(&config.routes.jq));
    let namespace = temporal.namespace().to_owned();
    TemporalSink::new(
        temporal,
        Planner { rules, jq, namespace },
        Arc::clone(&observed.tracker),
        observed.attached.clone(),
        Arc::clone(clock),
        calls,
    )
}
