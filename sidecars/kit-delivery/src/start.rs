//! What every daemon over a journal does alike when it starts.

use std::sync::{Arc, Mutex};

use kit::admin::{Part, Readiness};
use kit::clock::SharedClock;
use kit::config::ListenSection;
use kit::lifecycle::{Shell, StopToken, exit};
use kit::run::StartError;
use kit::serve::{Limits, ServeMetrics, Server};
use kit::telemetry::Metrics;
use kit_journal::{Health, Journal, JournalSection, JournalTask, OpenError};

use crate::{DeliveryMetrics, Dispatcher, DispatcherSettings, Sink, SinkStatus};

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
            OpenError::Foreign { .. } | OpenError::Io { .. } => exit::CONFIG,
            OpenError::Store { .. } => exit::DIED,
        },
        message: kit::error::chain(&error),
    })
}

/// Mirrors the journal's health in the readiness; its thread ending ends the daemon.
pub fn watch_journal(shell: &mut Shell, journal: &Journal, readiness: &Readiness) {
    let ready = readiness.part("journal");
    let mut health = journal.health();
    let stop = shell.stop_token();
    shell.spawn("journal", async move {
        loop {
            match &*health.borrow_and_update() {
                Health::Writable => ready.set_ready(),
                Health::Failing(reason) => ready.set_not_ready(reason),
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                changed = health.changed() => {
                    changed.map_err(|_| "the journal's thread has ended")?;
                }
            }
        }
        #[expect(unreachable_code, reason = "names the error type")]
        Ok::<(), &'static str>(())
    });
}

/// Starts delivering to a sink, and says what it is doing.
pub fn deliver<S: Sink>(
    shell: &mut Shell,
    sink: Arc<S>,
    journal: &Journal,
    clock: &SharedClock,
    settings: DispatcherSettings,
    metrics: &DeliveryMetrics,
) -> Arc<Mutex<SinkStatus>> {
    let name = format!("delivery to {}", sink.name());
    let dispatcher = Dispatcher::new(sink, journal.clone(), Arc::clone(clock), settings, metrics.clone());
    let status = dispatcher.status();
    let stop = shell.stop_token();
    shell.spawn(&name, async move { dispatcher.run(stop).await.map_err(|error| kit::error::chain(&error)) });
    status
}

/// Binds one of the two listeners with these limits.
///
/// # Errors
/// The address is not ours to listen on.
pub async fn bind(
    listen: &ListenSection,
    name: &'static str,
    limits: Limits,
    metrics: &ServeMetrics,
    token: &StopToken,
) -> Result<Server, StartError> {
    let address = if name == ADMIN { &listen.admin } else { &listen.public };
    let bound = Server::bind(address, name, limits, metrics.clone(), token.clone()).await;
    bound.map_err(|error| {
        configuration(format!("SIDECAR_LISTEN__{}: cannot listen on {address}: {error}", name.to_uppercase()))
    })
}

/// The listener for business.
pub const PUBLIC: &str = "public";
/// The listener for health, metrics and the admin API.
pub const ADMIN: &str = "admin";
/// The admin listener's heads are small.
pub const ADMIN_HEAD: usize = 16 << 10;

/// Says in the readiness when the daemon begins to stop.
pub fn say_when_stopping(shell: &mut Shell, readiness: &Readiness) {
    let running: Part = readiness.part("running");
    running.set_ready();
    let stop = shell.stop_token();
    shell.spawn("readiness", async move {
        stop.stopped().await;
        running.set_not_ready("stopping");
        Ok::<(), std::convert::Infallible>(())
    });
}
