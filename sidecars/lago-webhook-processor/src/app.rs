//! How the parts are put together.

use std::sync::Arc;
use std::time::Duration;

use kit::admin::Readiness;
use kit::api::Title;
use kit::client::{ClientOptions, http_client};
use kit::clock::SharedClock;
use kit::config::{Problems, WellKnown};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::secret::Secret;
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_delivery::api::{ApiState, Choosy};
use kit_delivery::start::{self, Begun, Served, configuration};
use kit_journal::Journal;
use kit_routes::{Base, Intended};

use crate::config::{Config, LagoSection, well_known};
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

/// What the admin API is.
const TITLE: Title = Title {
    name: "lago-webhook-processor",
    version: env!("CARGO_PKG_VERSION"),
    text: "Events and deliveries of the webhook processor. Every path needs the bearer token of SIDECAR_ADMIN__TOKEN_FILE.",
};

impl Daemon for LagoWebhookProcessor {
    const NAME: &'static str = "lago-webhook-processor";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const REFERENCE: &'static str = include_str!("../../../docs/reference/lago-webhook-processor.md");
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
        let options = ClientOptions { ca_file: config.lago.ca_file.clone(), ..ClientOptions::default() };
        if options.ca_file.is_some()
            && let Err(error) = http_client(&options)
        {
            problems.add("lago.ca_file", &kit::error::chain(&error));
        }
        let (head, body) = (head_limit(&config.lago, &organizations), config.lago.body_limit_bytes);
        // What is out of its own range has been told already.
        let are_usable = config.process.listen.memory_budget_bytes >= 1 << 20 && body <= 64 << 20 && head <= 128 << 20;
        if are_usable && head.saturating_add(body) > config.process.listen.largest_request_bytes() {
            problems.add(
                "listen.memory_budget_bytes",
                &format!(
                    "must be at least {}: of it one request gets three quarters, and by lago.body_limit_bytes ({body}) and \
                     lago.head_limit_bytes (0 means {HMAC_HEAD}, or {JWT_HEAD} where jwt is used; here {head}) it may have {}",
                    head.saturating_add(body).div_ceil(3).saturating_mul(4),
                    head.saturating_add(body),
                ),
            );
        }
        config.journal.check("journal", problems);
        config.process.check(problems);
        config.outgoing().check(Self::NAME, problems);
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let begun = start::begin(shell, Self::NAME, &config.journal, &metrics).await?;
        Self::start_over(begun, config, metrics, shell).await
    }
}

impl LagoWebhookProcessor {
    /// Starts everything over a journal that is open already: a comparison with another engine.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start_over(
        Begun { journal, clock, readiness }: Begun,
        config: Config,
        metrics: Arc<Metrics>,
        shell: &mut Shell,
    ) -> Result<(), StartError> {
        let mut problems = Problems::default();
        let organizations = Arc::new(Organizations::load(&config.lago, &mut problems));
        refuse(&problems)?;
        start_keys(shell, &config.lago, &organizations, &journal, &clock, &readiness).await?;

        let base = Base { journal: &journal, clock: &clock, metrics: &metrics, readiness: &readiness };
        let routed = config.outgoing().start(shell, Self::NAME, base, Intended::ALL).await?;
        let names = organizations.all().map(|organization| organization.name.as_str());
        let intake_metrics = metrics.with_registry(|registry| IntakeMetrics::register(registry, names));
        let head = head_limit(&config.lago, &organizations);
        let keep_tokens = config.outgoing().sends_raw();
        let intake = Intake::new(
            Arc::clone(&organizations),
            journal.clone(),
            intake_metrics,
            config.lago.body_limit_bytes,
            keep_tokens,
        );
        let limits = Limits::new(&config.process.listen, &config.process.stop, head);
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
            title: TITLE,
            api: api_state,
            more: routed.api,
            metrics,
            readiness,
        };
        start::serve(shell, &config.process, served).await
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
        ca_file: section.ca_file.clone(),
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
