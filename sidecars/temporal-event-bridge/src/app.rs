//! How the parts are put together.

use std::sync::Arc;

use kit::admin::Readiness;
use kit::clock::{SharedClock, SystemClock};
use kit::config::{Problems, WellKnown};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_delivery::api::ApiState;
use kit_delivery::start::{self, Served, configuration};
use kit_routes::Base;
use kit_temporal::Temporal;
use utoipa::OpenApi as _;

use crate::config::{Config, well_known};
use crate::http::{self, Intake};
use crate::metrics::IntakeMetrics;
use crate::outgoing::{self, Outcomes};

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
    const OUTLIVES_HANGUP: bool = true;
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
        outgoing::check(config, Self::NAME, problems);
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let clock: SharedClock = Arc::new(SystemClock);
        let (journal, task) = start::open_journal(&config.journal, &clock, &metrics).await?;
        let clock = journal.clock();
        let readiness = Readiness::default();
        shell.at_end(move || task.close());
        start::watch_journal(shell, &journal, &readiness);

        let temporal = Temporal::new("temporal", &config.temporal, Self::VERSION).map_err(|errors| {
            configuration(errors.iter().map(|error| format!("temporal.{error}")).collect::<Vec<_>>().join("; "))
        })?;
        let intake = Intake { journal: journal.clone(), metrics: metrics.with_registry(IntakeMetrics::register) };
        let base = Base { journal: &journal, clock: &clock, metrics: &metrics, readiness: &readiness };
        let outcomes = Outcomes::start(shell, &config, Self::NAME, &temporal, base).await?;
        let limits = Limits::new(&config.listen, &config.stop, PUBLIC_HEAD);
        let api = ApiState {
            journal,
            clock,
            sinks: Arc::new(outcomes.sinks),
            at_work: Arc::default(),
            choosy: Arc::new(outcomes.choosy),
        };
        let served = Served {
            business: outcomes.observed.router.merge(http::router(Arc::new(intake))),
            limits,
            description: ApiDescription::openapi(),
            api,
            more: outcomes.api,
            metrics,
            readiness,
        };
        start::serve(shell, &config, &config.admin, served).await
    }
}
