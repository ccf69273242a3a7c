//! How the parts are put together.

use std::sync::Arc;
use std::time::Duration;

use kit::admin::Readiness;
use kit::clock::{SharedClock, SystemClock};
use kit::config::{Problems, WellKnown};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::secret::Secret;
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_amqp::AmqpMetrics;
use kit_delivery::DispatcherSettings;
use kit_delivery::api::{ApiState, Choosy};
use kit_delivery::start::{self, Served, configuration};
use kit_journal::{Journal, JournalTask};
use kit_routes::{Base, Builder, BuiltSink, Routed, SinkError};
use utoipa::OpenApi as _;

use crate::config::{Config, GATEWAY, LagoSection, RABBITMQ, well_known};
use crate::http::{self, Intake};
use crate::metrics::IntakeMetrics;
use crate::organizations::Organizations;
use crate::worker::{KeySettings, KeyWorker};

/// Head limits where none is configured.
const HMAC_HEAD: usize = 64 << 10;
const JWT_HEAD: usize = 8 << 20;

/// The daemon.
#[derive(Debug)]
pub struct LagoWebhookProcessor;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "lago-webhook-processor",
    description = "Events and deliveries of the webhook processor. Every path needs the bearer token of SIDECAR_ADMIN__TOKEN_FILE."
))]
struct ApiDescription;

impl Daemon for LagoWebhookProcessor {
    const NAME: &'static str = "lago-webhook-processor";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str =
        "Takes every Lago webhook, proves it, has it on disk before the answer, and brings it to the gateway.";
    const OUTLIVES_HANGUP: bool = true;
    type Config = Config;

    fn well_known() -> Vec<WellKnown> {
        well_known()
    }

    fn check(config: &Config, problems: &mut Problems) {
        let organizations = Organizations::load(&config.lago, problems);
        if organizations.fetched.is_some()
            && let Err(message) = api_key(&config.lago)
        {
            problems.add("lago.api_key_file", &message);
        }
        if let Some(url) = &config.lago.api_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            problems.add("lago.api_url", "must begin with http:// or https://");
        }
        config.journal.check("journal", problems);
        if let Err((field, message)) = config.admin.resolve() {
            problems.add(&format!("admin.{field}"), &message);
        }
        let clock: SharedClock = Arc::new(SystemClock);
        let builder = Builder { daemon: Self::NAME, clock: &clock, amqp: &AmqpMetrics::default() };
        for error in own_sinks(config, builder).err().into_iter().flatten() {
            problems.add(&error.path, &error.message);
        }
        kit_routes::check(config.routing(), builder, problems);
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let opened = start::open_journal(&config.journal, &(Arc::new(SystemClock) as SharedClock), &metrics).await?;
        let clock = opened.0.clock();
        Self::start_over(opened, clock, config, metrics, shell).await
    }
}

impl LagoWebhookProcessor {
    /// Starts everything over a journal that is open already: a comparison with another engine.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start_over(
        (journal, task): (Journal, JournalTask),
        clock: SharedClock,
        config: Config,
        metrics: Arc<Metrics>,
        shell: &mut Shell,
    ) -> Result<(), StartError> {
        let readiness = Readiness::default();
        shell.at_end(move || task.close());
        start::watch_journal(shell, &journal, &readiness);

        let mut problems = Problems::default();
        let organizations = Arc::new(Organizations::load(&config.lago, &mut problems));
        refuse(&problems)?;
        start_keys(shell, &config.lago, &organizations, &journal, &clock, &readiness).await?;

        let base = Base { journal: &journal, clock: &clock, metrics: &metrics, readiness: &readiness };
        let routed = start_delivery(shell, &config, base).await?;
        let names = organizations.all().map(|organization| organization.name.as_str());
        let intake_metrics = metrics.with_registry(|registry| IntakeMetrics::register(registry, names));
        let head = head_limit(&config.lago, &organizations);
        let keep_tokens = config.sends_raw();
        let intake = Intake::new(
            Arc::clone(&organizations),
            journal.clone(),
            intake_metrics,
            config.lago.body_limit_bytes,
            keep_tokens,
        );
        let limits = Limits::new(&config.listen, &config.stop, head);
        let api_state = ApiState {
            journal,
            clock,
            sinks: Arc::new(routed.sinks),
            at_work: Arc::default(),
            choosy: Choosy::default(),
        };
        let served = Served {
            business: http::router(Arc::new(intake)),
            limits,
            description: ApiDescription::openapi(),
            api: api_state,
            more: routed.api,
            metrics,
            readiness,
        };
        start::serve(shell, &config, &config.admin, served).await
    }
}

async fn start_keys(
    shell: &mut Shell,
    section: &LagoSection,
    organizations: &Organizations,
    journal: &Journal,
    clock: &SharedClock,
    readiness: &Readiness,
) -> Result<(), StartError> {
    let ready = readiness.part("key");
    let Some(keyring) = organizations.fetched.clone() else {
        ready.set_ready();
        return Ok(());
    };
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(60));
    let settings = KeySettings {
        api_url: section.api_url.clone().unwrap_or_default(),
        api_key: api_key(section).map_err(configuration)?,
        refresh: seconds(section.public_key_refresh_seconds),
        overlap: seconds(section.public_key_overlap_seconds),
    };
    let worker = KeyWorker::new(settings, keyring, journal.clone(), Arc::clone(clock), ready)
        .await
        .map_err(|error| configuration(kit::error::chain(&error)))?;
    let stop = shell.stop_token();
    shell.spawn("public key", worker.run(stop));
    Ok(())
}

async fn start_delivery(shell: &mut Shell, config: &Config, base: Base<'_>) -> Result<Routed, StartError> {
    let amqp = base.metrics.with_registry(AmqpMetrics::register);
    let builder = Builder { daemon: LagoWebhookProcessor::NAME, clock: base.clock, amqp: &amqp };
    let own = own_sinks(config, builder)
        .map_err(|errors| configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
    kit_routes::start(shell, base, builder, config.routing(), own).await
}

/// The sinks of `[gateway]` and, where it is configured, `[amqp]`, the gateway first: it begins with the journal's first
/// event.
///
/// # Errors
/// All settings that cannot be used.
pub fn own_sinks(
    config: &Config,
    builder: Builder<'_>,
) -> Result<Vec<(BuiltSink, DispatcherSettings)>, Vec<SinkError>> {
    let mut errors = Vec::new();
    let mut sinks = Vec::new();
    match builder.http("gateway", GATEWAY, &config.gateway) {
        Ok(sink) => {
            let sink = BuiltSink::Http(Box::new(sink.with_paths(config.lago.gateway_paths())));
            sinks.push((sink, DispatcherSettings::from(&config.gateway)));
        }
        Err(more) => errors.extend(more),
    }
    if config.amqp.is_set() {
        match builder.amqp("amqp", RABBITMQ, &config.amqp) {
            Ok(sink) => sinks.push((sink, DispatcherSettings::from(&config.amqp))),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() { Ok(sinks) } else { Err(errors) }
}

fn head_limit(section: &LagoSection, organizations: &Organizations) -> usize {
    match section.head_limit_bytes {
        0 if organizations.uses_jwt() => JWT_HEAD,
        0 => HMAC_HEAD,
        bytes => bytes,
    }
}

fn api_key(section: &LagoSection) -> Result<Secret, String> {
    kit_lago::api::api_key(section.api_key.as_ref(), section.api_key_file.as_deref())
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "must be set to fetch Lago's public key from LAGO_API_URL".to_owned())
}

fn refuse(problems: &Problems) -> Result<(), StartError> {
    if problems.is_empty() { Ok(()) } else { Err(configuration(problems.lines(&well_known()).join("; "))) }
}
