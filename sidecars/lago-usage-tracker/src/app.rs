//! How the parts are put together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kit::admin::Readiness;
use kit::client::http_client;
use kit::clock::{SharedClock, SystemClock};
use kit::config::{Problems, WellKnown};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::secret::Secret;
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_delivery::api::ApiState;
use kit_delivery::start::{self, Served, configuration};
use kit_delivery::{DeliveryMetrics, DispatcherSettings};
use kit_lago::api::LagoApi;
use tokio::sync::Semaphore;
use utoipa::OpenApi as _;

use crate::catalogue::CatalogueWorker;
use crate::config::{Config, LagoSection, well_known};
use crate::http::{self, Intake};
use crate::metrics::UsageMetrics;
use crate::producers::Producers;
use crate::redrive::Redrive;
use crate::resolve::{self, RESOLVE, Resolver};
use crate::sender::{LagoSink, SINK};

/// Largest request head: a token and an id.
const PUBLIC_HEAD: usize = 16 << 10;

/// The daemon.
#[derive(Debug)]
pub struct LagoUsageTracker;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "lago-usage-tracker",
    description = "Usage events and their way to Lago. Every path needs the bearer token of SIDECAR_ADMIN__TOKEN_FILE."
))]
struct ApiDescription;

impl Daemon for LagoUsageTracker {
    const NAME: &'static str = "lago-usage-tracker";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str = "Takes usage in Lago's own words, has it on disk before the answer, and brings each event to Lago exactly once.";
    type Config = Config;

    fn well_known() -> Vec<WellKnown> {
        well_known()
    }

    fn check(config: &Config, problems: &mut Problems) {
        Producers::load(&config.usage, problems);
        if let Err(message) = api_key(&config.lago) {
            problems.add("lago.api_key_file", &message);
        }
        if let Err((field, message)) = config.admin.resolve() {
            problems.add(&format!("admin.{field}"), &message);
        }
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let clock: SharedClock = Arc::new(SystemClock);
        let (journal, task) = start::open_journal(&config.journal, &clock, &metrics).await?;
        let readiness = Readiness::default();
        shell.at_end(move || task.close());
        start::watch_journal(shell, &journal, &readiness);

        let mut problems = Problems::default();
        let producers = Producers::load(&config.usage, &mut problems);
        if !problems.is_empty() {
            return Err(configuration(problems.lines(&well_known()).join("; ")));
        }
        let usage_metrics = metrics.with_registry(UsageMetrics::register);
        let lago = &config.lago;
        let key = api_key(lago).map_err(configuration)?;
        let client = http_client(&lago.client()).map_err(|error| configuration(kit::error::chain(&error)))?;
        let api = LagoApi::new(client.clone(), lago.api_url.as_deref().unwrap_or_default(), &key)
            .map_err(|error| configuration(error.to_string()))?;
        let refresh = Duration::try_from_secs_f64(config.checks.refresh_seconds).unwrap_or(Duration::from_secs(300));
        let (worker, known) = CatalogueWorker::new(api, journal.clone(), Arc::clone(&clock), refresh).await;
        let stop = shell.stop_token();
        shell.spawn("catalogue", worker.run(stop));
        let sections = (lago, &config.checks);
        let sink = LagoSink::new(sections, client, &key, known.clone(), Arc::clone(&clock), usage_metrics.clone())
            .map_err(|error| configuration(error.to_string()))?;
        let settings =
            DispatcherSettings::unordered((lago.concurrency, lago.rate_per_second), &lago.retry(), &lago.circuit);
        let redrive = Redrive {
            journal: journal.clone(),
            known: known.clone(),
            clock: Arc::clone(&clock),
            checks: config.checks.clone(),
        };
        let stop = shell.stop_token();
        shell.spawn("parked events", redrive.run(stop));
        let delivery_metrics = metrics.with_registry(DeliveryMetrics::register);
        // Both before anything is taken: a sink that is new to a journal begins with the next event.
        start::register(&journal, &[SINK, RESOLVE]).await?;
        let status = start::deliver(shell, Arc::new(sink), &journal, &clock, settings, &delivery_metrics);
        let resolver = Resolver::new(journal.clone(), known.clone(), usage_metrics.clone());
        let settings = DispatcherSettings::unordered((resolve::CONCURRENCY, 0), &lago.retry(), &lago.circuit);
        let resolving = start::deliver(shell, Arc::new(resolver), &journal, &clock, settings, &delivery_metrics);

        let intake = Intake {
            producers,
            journal: journal.clone(),
            clock: Arc::clone(&clock),
            metrics: usage_metrics,
            body_limit: config.usage.body_limit_bytes,
            batch_limit: config.usage.batch_limit,
            checks: config.checks.clone(),
            known,
            room: Semaphore::new(http::EVENTS_AT_ONCE),
        };
        let limits = Limits::new(&config.listen, &config.stop, PUBLIC_HEAD);
        // Producers choose transaction ids, and ask for them in the path.
        let limits = Limits { any_path: true, ..limits };
        let sinks = BTreeMap::from([(SINK.to_owned(), status), (RESOLVE.to_owned(), resolving)]);
        let api_state = ApiState { journal, clock, sinks: Arc::new(sinks) };
        let served = Served {
            business: http::router(Arc::new(intake)),
            limits,
            description: ApiDescription::openapi(),
            api: api_state,
            metrics,
            readiness,
        };
        start::serve(shell, &config, &config.admin, served).await
    }
}

fn api_key(section: &LagoSection) -> Result<Secret, String> {
    kit_lago::api::api_key(section.api_key.as_ref(), section.api_key_file.as_deref())
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "must be set: Lago takes no usage without".to_owned())
}
