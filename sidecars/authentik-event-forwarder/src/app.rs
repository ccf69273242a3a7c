//! How the parts are put together.

use std::sync::Arc;
use std::time::Duration;

use kit::admin::Part;
use kit::api::Title;
use kit::client::{ClientOptions, http_client};
use kit::clock::SharedClock;
use kit::config::{Problems, WellKnown, variable};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::secret;
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_authentik::api::AuthentikApi;
use kit_delivery::api::{ApiState, Choosy};
use kit_delivery::start::{self, Begun, Served, configuration};
use kit_journal::Journal;
use kit_routes::{Base, Intended};

use crate::admit::{self, Admission};
use crate::authentication::Authenticator;
use crate::config::{AuthentikSection, Config, well_known};
use crate::exclude::Rules;
use crate::http::{self, Intake, Said};
use crate::metrics::IntakeMetrics;
use crate::names::Aliases;
use crate::people::People;
use crate::poll::{Around, PollSettings, Poller};
use crate::seen::Seen;

/// Authentik's heads are small.
const HEAD_BYTES: usize = 64 << 10;

/// The daemon.
#[derive(Debug)]
pub struct AuthentikEventForwarder;

/// What the admin API is.
const TITLE: Title = Title {
    name: "authentik-event-forwarder",
    version: env!("CARGO_PKG_VERSION"),
    text: "Events and deliveries of the event forwarder. Every path needs the bearer token of SIDECAR_ADMIN__TOKEN_FILE.",
};

impl Daemon for AuthentikEventForwarder {
    const NAME: &'static str = "authentik-event-forwarder";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const REFERENCE: &'static str = include_str!("../../../docs/reference/authentik-event-forwarder.md");
    const ABOUT: &'static str =
        "Takes Authentik's events by webhook and from its API, has each on disk once, and brings it to the gateway.";
    const OUTLIVES_HANGUP: bool = true;
    type Config = Config;

    fn well_known() -> Vec<WellKnown> {
        well_known()
    }

    fn check(config: &Config, problems: &mut Problems) {
        Authenticator::load(&config.authentik, problems);
        if let Err((field, message)) = api(&config.authentik) {
            problems.add(&format!("authentik.{field}"), &message);
        }
        config.journal.check("journal", problems);
        config.process.check(problems);
        config.outgoing().check(Self::NAME, problems);
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let Begun { journal, clock, readiness } = start::begin(shell, Self::NAME, &config.journal, &metrics).await?;
        let mut problems = Problems::default();
        let authenticator = Authenticator::load(&config.authentik, &mut problems);
        let Some(authenticator) = authenticator.filter(|_| problems.is_empty()) else {
            return Err(configuration(problems.lines(&well_known()).join("; ")));
        };
        let base = Base { journal: &journal, clock: &clock, metrics: &metrics, readiness: &readiness };
        let routed = config
            .outgoing()
            .start(shell, Self::NAME, base, Intended { parks: admit::parked, ..Intended::ALL })
            .await?;
        let intake = Intake {
            authenticator,
            admission: Arc::new(admission(&config)),
            journal: journal.clone(),
            metrics: metrics.with_registry(IntakeMetrics::register),
            people: People::new(&config.enrichment),
            seen: Arc::new(Seen::default()),
            body_limit: config.authentik.body_limit_bytes,
            reads_api: config.authentik.url.is_some(),
            said: Said::default(),
        };
        start_reading(shell, &config, &intake, &clock, readiness.part("authentik"))?;
        let limits = Limits::new(&config.process.listen, &config.process.stop, HEAD_BYTES);
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

fn admission(config: &Config) -> Admission {
    Admission {
        source: config.authentik.source(),
        rules: Rules::new(&config.events),
        aliases: Aliases::new(&config.events),
        keep_headers: config.outgoing().sends_raw(),
    }
}

/// Starts reading events and users from Authentik's API, where it is configured. Webhooks wait for none of it.
fn start_reading(
    shell: &mut Shell,
    config: &Config,
    intake: &Intake,
    clock: &SharedClock,
    ready: Part,
) -> Result<(), StartError> {
    let api = api(&config.authentik).map_err(|(_, message)| configuration(message))?;
    let Some(api) = api else {
        ready.set_ready_but("events are only taken from webhooks: AUTHENTIK_URL is not set");
        return Ok(());
    };
    ready.set_ready_but("Authentik has not been asked yet");
    if intake.people.is_on() {
        let (people, metrics) = (intake.people.clone(), intake.metrics.polls.clone());
        shell.spawn("users", people.run(api.clone(), metrics, shell.stop_token()));
    }
    let poller = Poller {
        api,
        settings: poll_settings(config),
        journal: Journal::clone(&intake.journal),
        clock: Arc::clone(clock),
        admission: Arc::clone(&intake.admission),
        people: intake.people.clone(),
        seen: Arc::clone(&intake.seen),
        metrics: intake.metrics.clone(),
        ready,
        covered: None,
        clock_said: false,
        around: Around::default(),
    };
    shell.spawn("poller", poller.run(shell.stop_token()));
    Ok(())
}

fn poll_settings(config: &Config) -> PollSettings {
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(20));
    let is_glob = |action: &String| action.contains(['*', '?']);
    let named = !config.events.include.iter().any(is_glob);
    PollSettings {
        name: config.authentik.name.clone(),
        interval: seconds(config.poll.interval_seconds),
        overlap: seconds(config.poll.overlap_seconds),
        since: config.poll.since(),
        page_size: config.poll.page_size,
        actions: if named { config.events.include.clone() } else { Vec::new() },
    }
}

/// The API, where it is configured; else the field that is wrong and why.
fn api(section: &AuthentikSection) -> Result<Option<AuthentikApi>, (&'static str, String)> {
    let Some(url) = &section.url else { return Ok(None) };
    let name = |field: &str| variable(&format!("authentik.{field}"), &well_known());
    let (value, file) = (name("token"), name("token_file"));
    let at = if section.token.is_some() { "token" } else { "token_file" };
    let token = secret::resolve(&value, section.token.as_ref(), &file, section.token_file.as_deref());
    let Some(token) = token.map_err(|error| (at, error.to_string()))? else {
        // `validate` has said that it is missing.
        return Ok(None);
    };
    let client = http_client(&client_options(section)).map_err(|error| ("ca_file", kit::error::chain(&error)))?;
    let api = AuthentikApi::new(client, url, &token).map(|api| Some(api.within(section.timeout())));
    api.map_err(|error| {
        let field = if error == kit_authentik::api::SetupError::BadToken { at } else { "url" };
        (field, error.to_string())
    })
}

/// Authentik may be silent for as long as an answer may take at all: a page of a large table is.
fn client_options(section: &AuthentikSection) -> ClientOptions {
    let timeout = section.timeout();
    let ca_file = section.ca_file.clone();
    ClientOptions { ca_file, read_timeout: timeout, total_timeout: timeout, ..ClientOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authentik_may_be_silent_as_long_as_an_answer_may_take() {
        let section = AuthentikSection { timeout_seconds: 90.0, ..AuthentikSection::default() };
        let options = client_options(&section);
        assert!(options.read_timeout >= section.timeout() && options.total_timeout >= section.timeout());
    }
}
