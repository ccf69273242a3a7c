//! How the parts are put together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kit::api::Title;
use kit::client::http_client;
use kit::clock::{SharedClock, SystemClock};
use kit::config::{Problems, WellKnown};
use kit::lifecycle::{Shell, exit};
use kit::run::{Daemon, StartError};
use kit::secret::Secret;
use kit::serve::Limits;
use kit::telemetry::Metrics;
use kit_delivery::api::{ApiState, Choosy, Wants};
use kit_delivery::config::GatewaySection;
use kit_delivery::start::{self, Begun, Served, configuration};
use kit_delivery::{DeliveryMetrics, DispatcherSettings, HttpSink, Sink, SinkStatus};
use kit_journal::Journal;
use kit_lago::api::{LagoApi, api_root};
use tokio::sync::{Notify, Semaphore};

use crate::alerts::{self, Alerts, Gateway};
use crate::api::{self, LedgerState};
use crate::canary::Canary;
use crate::catalogue::{CatalogueWorker, Known};
use crate::check::Policy;
use crate::config::{Config, LagoSection, well_known};
use crate::http::{self, Intake};
use crate::metrics::UsageMetrics;
use crate::producers::Producers;
use crate::proxy::Proxy;
use crate::queue;
use crate::reconcile::{Books, Reconciler};
use crate::redrive::Redrive;
use crate::resolve::{self, RESOLVE, Resolver};
use crate::rollup::{self, Rollup};
use crate::sender::{self, LagoSink, SINK};
use crate::webhooks::Webhooks;

/// Largest request head: a token and an id.
const PUBLIC_HEAD: usize = 16 << 10;

/// The daemon.
#[derive(Debug)]
pub struct LagoUsageTracker;

/// What the admin API is.
const TITLE: Title = Title {
    name: "lago-usage-tracker",
    version: env!("CARGO_PKG_VERSION"),
    text: "Usage events and their way to Lago. Every path needs the bearer token of SIDECAR_ADMIN__TOKEN_FILE.",
};

impl Daemon for LagoUsageTracker {
    const NAME: &'static str = "lago-usage-tracker";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const REFERENCE: &'static str = include_str!("../../../docs/reference/lago-usage-tracker.md");
    const ABOUT: &'static str = "Takes usage in Lago's own words, has it on disk before the answer, and brings each event to Lago exactly once.";
    type Config = Config;

    fn well_known() -> Vec<WellKnown> {
        well_known()
    }

    fn check(config: &Config, problems: &mut Problems) {
        Producers::load(&config.usage, problems);
        Webhooks::load(&config.webhooks, problems);
        if let Err(message) = api_key(&config.lago) {
            problems.add("lago.api_key_file", &message);
        }
        config.journal.check("journal", problems);
        config.process.check(problems);
        if config.gateway.url.is_some()
            && let Err(errors) = HttpSink::new(alerts::SINK, &config.gateway, Arc::new(SystemClock))
        {
            for error in errors {
                problems.add(&format!("gateway.{}", error.path), &error.message);
            }
        }
        queue::inbox(&config.amqp_source).check(problems);
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let Begun { journal, clock, readiness } = start::begin(shell, Self::NAME, &config.journal, &metrics).await?;
        let mut problems = Problems::default();
        let producers = Producers::load(&config.usage, &mut problems);
        let webhooks = Webhooks::load(&config.webhooks, &mut problems);
        if !problems.is_empty() {
            return Err(configuration(problems.lines(&well_known()).join("; ")));
        }
        let usage_metrics = metrics.with_registry(UsageMetrics::register);
        let delivery_metrics = metrics.with_registry(DeliveryMetrics::register);
        let parts = Parts { journal, clock, usage: usage_metrics, delivery: delivery_metrics };
        let books = Arc::new(Books::new(parts.journal.clone()));
        let (alerts, mut sinks) = parts.start_gateway(shell, &config.gateway)?;
        let lago = &config.lago;
        let key = api_key(lago).map_err(configuration)?;
        let client = http_client(&lago.client()).map_err(|error| configuration(kit::error::chain(&error)))?;
        let api = LagoApi::new(client.clone(), lago.api_url.as_deref().unwrap_or_default(), &key)
            .map_err(|error| configuration(error.to_string()))?;
        let root = api_root(lago.api_url.as_deref().unwrap_or_default());
        let root = root.map_err(|error| configuration(error.to_string()))?;
        let proxy = config.usage.proxy.then(|| Proxy::new(client.clone(), root));
        let known = parts.start_catalogue(shell, api.clone(), &config).await;
        let sections = (lago, &config.checks);
        let sink = LagoSink::new(
            sections,
            client,
            &key,
            known.clone(),
            Arc::clone(&parts.clock),
            parts.usage.clone(),
            Arc::clone(&books),
        )
        .map_err(|error| configuration(error.to_string()))?;
        if config.checks.late != Policy::Pass {
            let asks = (api.clone(), known.clone(), Arc::clone(&parts.clock));
            let stop = shell.stop_token();
            shell.spawn("billing periods", sink.periods().run(asks, stop));
        }
        let settings =
            DispatcherSettings::unordered((lago.concurrency, lago.rate_per_second), &lago.retry(), &lago.circuit);
        let settings = DispatcherSettings { ramps: true, ..settings };
        // All before anything is taken: a sink that is new to a journal begins with the next event.
        let names: Vec<&str> = [SINK, RESOLVE].into_iter().chain(sinks.keys().map(String::as_str)).collect();
        start::register(&parts.journal, &names).await?;
        let prepared = Rollup::prepare(&parts.journal, &config.rollup).await;
        let rolls_up = prepared.map_err(|error| StartError { code: exit::DIED, message: kit::error::chain(&error) })?;
        sinks.insert(SINK.to_owned(), parts.deliver(shell, Arc::new(sink), settings));
        let codes = config.rollup.codes.clone();
        let resolver = Resolver::new(parts.journal.clone(), known.clone(), parts.usage.clone(), codes);
        let settings = DispatcherSettings::unordered((resolve::CONCURRENCY, 0), &lago.retry(), &lago.circuit);
        sinks.insert(RESOLVE.to_owned(), parts.deliver(shell, Arc::new(resolver), settings));
        let at_work: BTreeSet<String> = rolls_up.then(|| rollup::SINK.to_owned()).into_iter().collect();
        if rolls_up {
            parts.start_rollup(shell, &config, &known);
        }
        let asked = parts.start_proof(shell, &config, &api, &known, &books, &alerts);
        let Parts { journal, clock, usage: usage_metrics, .. } = parts;

        let intake = Intake {
            producers,
            journal: journal.clone(),
            clock: Arc::clone(&clock),
            metrics: usage_metrics,
            body_limit: config.usage.body_limit_bytes,
            batch_limit: config.usage.batch_limit,
            checks: config.checks.clone(),
            rollup: config.rollup.codes.clone(),
            known,
            books: Arc::clone(&books),
            proxy,
            webhooks,
            room: Semaphore::new(http::EVENTS_AT_ONCE),
        };
        let intake = Arc::new(intake);
        queue::inbox(&config.amqp_source).start(shell, &metrics, &intake.journal, queue::taker(&intake))?;
        let more = api::api(LedgerState { books, asked, clock: Arc::clone(&clock) });
        let limits = Limits::new(&config.process.listen, &config.process.stop, PUBLIC_HEAD);
        // Producers choose transaction ids, and ask for them in the path.
        let limits = Limits { any_path: true, ..limits };
        let api_state =
            ApiState { journal, clock, sinks: Arc::new(sinks), at_work: Arc::new(at_work), choosy: choosy() };
        let served =
            Served { business: http::router(intake), limits, title: TITLE, api: api_state, more, metrics, readiness };
        start::serve(shell, &config.process, served).await
    }
}

/// Every sink takes one kind of event and counts the others.
fn choosy() -> Choosy {
    let sinks: [(_, Wants); 4] = [
        (SINK, sender::wants),
        (RESOLVE, resolve::wants),
        (rollup::SINK, rollup::wants),
        (alerts::SINK, alerts::wants),
    ];
    Arc::new(sinks.into_iter().map(|(name, wants)| (name.to_owned(), wants)).collect())
}

/// What every part of the daemon is made with.
struct Parts {
    journal: Journal,
    clock: SharedClock,
    usage: UsageMetrics,
    delivery: DeliveryMetrics,
}

type Status = Arc<Mutex<SinkStatus>>;

impl Parts {
    fn deliver(&self, shell: &mut Shell, sink: Arc<dyn Sink>, settings: DispatcherSettings) -> Status {
        start::deliver(shell, sink, &self.journal, &self.clock, settings, &self.delivery)
    }

    /// The gateway's sink, if there is a gateway.
    fn start_gateway(
        &self,
        shell: &mut Shell,
        section: &GatewaySection,
    ) -> Result<(Alerts, BTreeMap<String, Status>), StartError> {
        if section.url.is_none() {
            let (journal, stop) = (self.journal.clone(), shell.stop_token());
            shell.spawn("no gateway", alerts::pass_by(journal, stop));
            return Ok((Alerts::new(None, Arc::clone(&self.clock)), BTreeMap::new()));
        }
        let sink = HttpSink::new(alerts::SINK, section, Arc::clone(&self.clock))
            .map_err(|errors| configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        let status = self.deliver(shell, Arc::new(Gateway(sink)), DispatcherSettings::from(section));
        let sinks = BTreeMap::from([(alerts::SINK.to_owned(), status)]);
        Ok((Alerts::new(Some(self.journal.clone()), Arc::clone(&self.clock)), sinks))
    }

    /// What Lago knows, and what is sent after all because it knows more by now.
    async fn start_catalogue(&self, shell: &mut Shell, api: LagoApi, config: &Config) -> Known {
        let refresh = Duration::try_from_secs_f64(config.checks.refresh_seconds).unwrap_or(Duration::from_secs(300));
        let (journal, clock) = (self.journal.clone(), Arc::clone(&self.clock));
        let (worker, known) = CatalogueWorker::new(api, journal, clock, refresh, self.usage.clone()).await;
        let stop = shell.stop_token();
        shell.spawn("catalogue", worker.run(stop));
        let redrive = Redrive {
            journal: self.journal.clone(),
            known: known.clone(),
            clock: Arc::clone(&self.clock),
            checks: config.checks.clone(),
        };
        let stop = shell.stop_token();
        shell.spawn("parked events", redrive.run(stop));
        known
    }

    fn start_rollup(&self, shell: &mut Shell, config: &Config, known: &Known) {
        let rollup = Rollup {
            journal: self.journal.clone(),
            known: known.clone(),
            clock: Arc::clone(&self.clock),
            checks: config.checks.clone(),
            section: config.rollup.clone(),
            metrics: self.usage.clone(),
        };
        let stop = shell.stop_token();
        shell.spawn("roll-up", rollup.run(stop));
    }

    /// The comparison and the canary; what is given back asks for a comparison.
    fn start_proof(
        &self,
        shell: &mut Shell,
        config: &Config,
        api: &LagoApi,
        known: &Known,
        books: &Arc<Books>,
        alerts: &Alerts,
    ) -> Arc<Notify> {
        let asked = Arc::new(Notify::new());
        let reconciler = Reconciler {
            api: api.clone(),
            journal: self.journal.clone(),
            clock: Arc::clone(&self.clock),
            known: known.clone(),
            books: Arc::clone(books),
            section: config.reconcile.clone(),
            metrics: self.usage.clone(),
            alerts: alerts.clone(),
            asked: Arc::clone(&asked),
            in_vain: Mutex::default(),
            looked_to_forget: Mutex::default(),
        };
        let stop = shell.stop_token();
        shell.spawn("comparison", reconciler.run(stop));
        if config.canary.subscription.is_some() {
            let canary = Canary {
                section: config.canary.clone(),
                api: api.clone(),
                journal: self.journal.clone(),
                clock: Arc::clone(&self.clock),
                known: known.clone(),
                books: Arc::clone(books),
                metrics: self.usage.clone(),
                alerts: alerts.clone(),
                is_unsuited: AtomicBool::default(),
            };
            let stop = shell.stop_token();
            shell.spawn("canary", canary.run(stop));
        }
        asked
    }
}

fn api_key(section: &LagoSection) -> Result<Secret, String> {
    kit_lago::api::api_key(section.api_key.as_ref(), section.api_key_file.as_deref())
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "must be set: Lago takes no usage without".to_owned())
}
