//! What every daemon over a journal does alike when it starts.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use kit::admin::{self, AdminState, Readiness};
use kit::api::{Api, Title};
use kit::clock::{SharedClock, SystemClock};
use kit::config::ProcessSections;
use kit::lifecycle::{Shell, StopToken, exit};
use kit::run::StartError;
use kit::serve::{Limits, ServeMetrics, Server};
use kit::telemetry::Metrics;
use kit_journal::engine::Action;
use kit_journal::{Health, Journal, JournalSection, JournalTask, OpenError};
use prometheus_client::metrics::gauge::Gauge;

use crate::api::{self, ApiState};
use crate::metrics::{to_gauge, wait_for_nobody};
use crate::{DeliveryMetrics, Dispatcher, DispatcherSettings, Sink, SinkStatus, owner};

/// The admin listener's heads are small.
const ADMIN_HEAD: usize = 16 << 10;

/// How often a sink that is not configured any more is told of, while something waits for it.
const UNCONFIGURED_TOLD_EVERY: Duration = Duration::from_secs(3_600);
/// How often it is looked for one.
const UNCONFIGURED_LOOKED_EVERY: Duration = Duration::from_secs(60);

/// A configuration that cannot be started with: exit code 78.
pub fn configuration(message: impl Into<String>) -> StartError {
    StartError { code: exit::CONFIG, message: message.into() }
}

/// Opens the journal, off the async workers: loading the deduplication memory takes a while.
///
/// # Errors
/// Each kind of [`OpenError`] has its own exit code.
pub async fn open_journal(
    section: &JournalSection,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
) -> Result<(Journal, JournalTask), StartError> {
    let (section, clock, metrics) = (section.clone(), Arc::clone(clock), Arc::clone(metrics));
    let opened =
        tokio::task::spawn_blocking(move || metrics.with_registry(|registry| Journal::open(&section, clock, registry)));
    let opened = opened
        .await
        .map_err(|_| StartError { code: exit::DIED, message: "opening the journal panicked".to_owned() })?;
    opened.map_err(|error| StartError {
        code: match error {
            OpenError::Locked { .. } => exit::LOCKED,
            OpenError::Newer { .. } => exit::JOURNAL_NEWER,
            OpenError::Foreign { .. }
            | OpenError::Unfinished { .. }
            | OpenError::LogAlone { .. }
            | OpenError::Io { .. }
            | OpenError::Database { .. } => exit::CONFIG,
            OpenError::Store { .. } => exit::DIED,
        },
        message: kit::error::chain(&error),
    })
}

/// What a daemon over a journal goes on with.
#[derive(Debug)]
pub struct Begun {
    /// Where events are.
    pub journal: Journal,
    /// The journal's clock.
    pub clock: SharedClock,
    /// What `/readyz` shows; the journal is a part of it already.
    pub readiness: Readiness,
}

/// Opens the journal of `daemon`, shows whether it can be used, and has it closed at the end.
///
/// # Errors
/// As [`open_journal`]; it is another daemon's.
pub async fn begin(
    shell: &mut Shell,
    daemon: &str,
    section: &JournalSection,
    metrics: &Arc<Metrics>,
) -> Result<Begun, StartError> {
    let clock: SharedClock = Arc::new(SystemClock);
    let (journal, task) = open_journal(section, &clock, metrics).await?;
    if let Err(error) = owner::claim(&journal, daemon, &section.path.display().to_string()).await {
        // Closing waits for the writing thread.
        let _ = tokio::task::spawn_blocking(move || task.close()).await;
        return Err(error);
    }
    Ok(begin_over(shell, (journal, task)))
}

/// As [`begin`], over a journal that is open.
pub fn begin_over(shell: &mut Shell, (journal, task): (Journal, JournalTask)) -> Begun {
    let readiness = Readiness::default();
    shell.at_end(move || task.close());
    watch_journal(shell, &journal, &readiness);
    Begun { clock: journal.clock(), journal, readiness }
}

/// Mirrors in the readiness whether the journal takes events, and whether it can be read; its thread ending ends the
/// daemon, and so does a journal that is over for this process: what supervises it starts another one.
pub fn watch_journal(shell: &mut Shell, journal: &Journal, readiness: &Readiness) {
    let ready = readiness.part("journal");
    let (mut health, mut unreadable) = (journal.health(), journal.unreadable());
    let stop = shell.stop_token();
    shell.spawn("journal", async move {
        loop {
            let unread = unreadable.borrow_and_update().clone();
            match (&*health.borrow_and_update(), unread) {
                (Health::Failing(reason), _) => ready.set_not_ready(reason),
                (Health::Over(reason), _) => {
                    ready.set_not_ready(reason);
                    return Err(reason.clone());
                }
                (Health::Writable, Some(reason)) => ready.set_not_ready(&format!("it cannot be read: {reason}")),
                (Health::Writable, None) => ready.set_ready(),
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                Ok(()) = unreadable.changed() => {}
                changed = health.changed() => {
                    changed.map_err(|_| "the journal's thread has ended".to_owned())?;
                }
            }
        }
        #[expect(unreachable_code, reason = "names the error type")]
        Ok::<(), String>(())
    });
}

/// Makes sinks known to the journal, the first one first: it begins with the journal's first event, any other one that
/// is new with the next event. Where there are several, this comes before anything is taken.
///
/// # Errors
/// The journal cannot write it down.
pub async fn register(journal: &Journal, sinks: &[&str]) -> Result<(), StartError> {
    let actions = sinks.iter().map(|sink| Action::Register { sink: (*sink).to_owned() }).collect();
    let registered = journal.act(actions).await;
    registered.map(drop).map_err(|error| StartError { code: exit::DIED, message: kit::error::chain(&error) })
}

/// Starts delivering to a sink, and says what it is doing.
pub fn deliver(
    shell: &mut Shell,
    sink: Arc<dyn Sink>,
    journal: &Journal,
    clock: &SharedClock,
    settings: DispatcherSettings,
    metrics: &DeliveryMetrics,
) -> Arc<Mutex<SinkStatus>> {
    let name = format!("delivery to {}", sink.name());
    let dispatcher = Dispatcher::new(sink, journal.clone(), Arc::clone(clock), settings, metrics.clone());
    let status = dispatcher.status();
    let stop = shell.stop_token();
    shell.spawn_in_background(
        &name,
        async move { dispatcher.run(stop).await.map_err(|error| kit::error::chain(&error)) },
    );
    status
}

/// What a daemon shows on its two listeners.
pub struct Served {
    /// What it is for.
    pub business: Router,
    /// How the listener for that is limited.
    pub limits: Limits,
    /// What the admin API's description says of the whole.
    pub title: Title,
    /// What the admin API works on.
    pub api: ApiState,
    /// What only this daemon's admin API has.
    pub more: Api,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` shows.
    pub readiness: Readiness,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Binds both listeners and serves until the daemon stops: business on one; health, metrics and the admin API on the
/// other.
///
/// # Errors
/// An address is not ours to listen on, or the admin API's token cannot be had.
pub async fn serve(shell: &mut Shell, sections: &ProcessSections, served: Served) -> Result<(), StartError> {
    let Served { business, limits, title, api, more, metrics, readiness } = served;
    let serve_metrics = metrics.with_registry(ServeMetrics::register);
    let (listen, stop) = (&sections.listen, shell.stop_token());
    let public = bind(&listen.public, "public", limits, &serve_metrics, &stop).await?;
    let limits = Limits::new(listen, &sections.stop, ADMIN_HEAD);
    let admin = bind(&listen.admin, "admin", limits, &serve_metrics, &stop).await?;
    watch_what_waits_for_nobody(shell, &api, metrics.with_registry(wait_for_nobody));
    let token = sections.admin.resolve().map_err(|(_, message)| configuration(message))?;
    let state = AdminState { metrics, readiness: readiness.clone(), token, api: api::api(api).merge(more), title };
    shell.spawn("public listener", public.run(business));
    shell.spawn("admin listener", admin.run(admin::router(state)));
    say_when_stopping(shell, &readiness);
    Ok(())
}

async fn bind(
    address: &str,
    name: &'static str,
    limits: Limits,
    metrics: &ServeMetrics,
    stop: &StopToken,
) -> Result<Server, StartError> {
    let bound = Server::bind(address, name, limits, metrics.clone(), stop.clone()).await;
    bound.map_err(|error| {
        configuration(format!("SIDECAR_LISTEN__{}: cannot listen on {address}: {error}", name.to_uppercase()))
    })
}

/// Tells of sinks that the journal keeps events for and that are not configured: what waits for them is never removed, and
/// every new event waits for them too.
fn watch_what_waits_for_nobody(shell: &mut Shell, api: &ApiState, gauge: Gauge) {
    let (api, stop) = (api.clone(), shell.stop_token());
    shell.spawn("sinks that are not configured", async move {
        let mut told: Option<Instant> = None;
        loop {
            // While the journal cannot be asked, it is as it was.
            if let Some(waiting) = api.unconfigured().await {
                gauge.set(waiting.iter().map(|(_, pending)| to_gauge(*pending)).sum());
                if told.is_none_or(|told| told.elapsed() >= UNCONFIGURED_TOLD_EVERY) {
                    told = (!waiting.is_empty()).then(Instant::now);
                    waiting.iter().for_each(tell_of_unconfigured);
                }
            }
            tokio::select! {
                () = stop.stopped() => return Ok::<(), std::convert::Infallible>(()),
                () = tokio::time::sleep(UNCONFIGURED_LOOKED_EVERY) => {}
            }
        }
    });
}

fn tell_of_unconfigured((sink, pending): &(String, u64)) {
    tracing::warn!(
        sink = %sink,
        pending,
        "{pending} events wait for sink {sink}, which is not configured any more, and every new one does: configure it again, \
         or give up what is kept for it with outrigger sinks forget {sink}"
    );
}

/// Says in the readiness when the daemon begins to stop.
fn say_when_stopping(shell: &mut Shell, readiness: &Readiness) {
    let running = readiness.part("running");
    running.set_ready();
    let stop = shell.stop_token();
    shell.spawn("readiness", async move {
        stop.stopped().await;
        running.set_not_ready("stopping");
        Ok::<(), std::convert::Infallible>(())
    });
}
