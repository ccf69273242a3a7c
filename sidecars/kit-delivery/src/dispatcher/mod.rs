//! One task a sink: it loads, starts, judges and settles. All its state is in the window and the
//! circuit; everything durable is in the journal, so that it can be cut off at any moment.

mod judging;
mod parking;
mod ramp;
mod reading;
mod settling;
mod stall;
mod waking;
mod work;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use kit::retry::Schedule;
use kit_journal::engine::Action;
use kit_journal::{Held, Journal, JournalError, Seq};
use serde::Serialize;

use crate::config::{CircuitSection, GatewaySection, Order, RetrySection};
use crate::judge::LONGEST_FREE_WAIT;
use crate::metrics::DeliveryMetrics;
use crate::outcome::Sink;
use crate::window::Limits;
use work::Work;

/// How often a replica that stands by asks whether the sink is free.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How long a replica that can ask for a lease, and cannot read what there is to deliver, leaves the sink to those that can:
/// longer than a lease lasts (`kit-journal/src/postgres/lease.rs`), because it renews one that has run out.
const KEEP_AWAY: Duration = Duration::from_secs(6);

/// Waits, unless it is time to stop.
async fn pause(wait: Duration, stop: &StopToken) {
    tokio::select! {
        () = stop.stopped() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

/// How a dispatcher works.
#[derive(Clone, Debug)]
pub struct DispatcherSettings {
    /// Keep the order of every subject.
    pub ordered: bool,
    /// Requests in flight at most.
    pub concurrency: usize,
    /// Whether it begins with one request in flight, after a start and after each outage, and allows one more whenever as
    /// many have got through as are allowed by then: what has just come up is not met by all that waits at once.
    pub ramps: bool,
    /// Deliveries started per second at most; 0 means no limit.
    pub rate_per_second: u32,
    /// When to try again.
    pub schedule: Schedule,
    /// Longest time that the sink itself may ask to be left alone.
    pub retry_after_max: Duration,
    /// Consecutive failures that open the circuit.
    pub circuit_failures: u32,
    /// First and longest distance of probes.
    pub probe: (Duration, Duration),
    /// Deliveries that wait for another attempt, or behind one that does, at most; then nothing new is fetched.
    pub open_rows: usize,
}

impl DispatcherSettings {
    /// The longest that anything is put off. A stored time further away was written before the wall
    /// clock was turned back.
    pub(crate) fn longest_wait(&self) -> Duration {
        self.schedule.longest().max(self.retry_after_max).max(LONGEST_FREE_WAIT)
    }

    /// The same for a delivery with so many attempts that used up its schedule. Waits that cost it
    /// nothing begin anew with every start.
    pub(crate) fn longest_wait_after(&self, attempts: u32) -> Duration {
        self.schedule.delay_for(attempts, 1.0).unwrap_or_default().max(self.retry_after_max)
    }
}

impl From<&GatewaySection> for DispatcherSettings {
    fn from(section: &GatewaySection) -> Self {
        let concurrency = (section.concurrency, section.rate_per_second);
        Self {
            ordered: section.order == Order::Subject,
            ..Self::unordered(concurrency, &section.retry, &section.circuit)
        }
    }
}

impl DispatcherSettings {
    /// Without any order: `concurrency` requests in flight, and so many a second.
    pub fn unordered(
        (concurrency, rate_per_second): (usize, u32),
        retry: &RetrySection,
        circuit: &CircuitSection,
    ) -> Self {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(1));
        Self {
            ordered: false,
            concurrency,
            ramps: false,
            rate_per_second,
            schedule: Schedule::new(retry.schedule_seconds.iter().copied().map(seconds).collect()),
            retry_after_max: seconds(retry.retry_after_max_seconds),
            circuit_failures: circuit.failures,
            probe: (seconds(circuit.probe_seconds), seconds(circuit.probe_max_seconds)),
            open_rows: Limits::default().open_rows,
        }
    }
}

/// What a sink is doing now, for the API.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct SinkStatus {
    /// `closed`, `open` or `probing`.
    pub circuit: &'static str,
    /// Requests in flight.
    pub in_flight: usize,
    /// So many deliveries wait for another attempt that nothing new is fetched.
    pub stalled: bool,
    /// Another replica delivers to this sink, and this one stands by.
    pub standby: bool,
    /// What was delivered may be delivered again.
    #[serde(skip)]
    pub repeats: bool,
    /// The last failure in a sentence.
    pub last_error: Option<String>,
    /// When it happened.
    pub last_error_at: Option<String>,
}

/// Works through the journal for one sink.
pub struct Dispatcher {
    sink: Arc<dyn Sink>,
    journal: Journal,
    clock: SharedClock,
    settings: DispatcherSettings,
    metrics: DeliveryMetrics,
    status: Arc<Mutex<SinkStatus>>,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// A dispatcher for `sink`, which must not have another one.
    pub fn new(
        sink: Arc<dyn Sink>,
        journal: Journal,
        clock: SharedClock,
        settings: DispatcherSettings,
        metrics: DeliveryMetrics,
    ) -> Self {
        metrics.prepare(sink.name());
        let status =
            Arc::new(Mutex::new(SinkStatus { circuit: "closed", repeats: sink.repeats(), ..SinkStatus::default() }));
        Self { sink, journal, clock, settings, metrics, status }
    }

    /// What the sink is doing now.
    pub fn status(&self) -> Arc<Mutex<SinkStatus>> {
        Arc::clone(&self.status)
    }

    /// Delivers until stopped. Deliveries in flight then get a little time; what is not settled is
    /// delivered again after the next start, with the same event id.
    ///
    /// # Errors
    /// The journal cannot be read at start.
    pub async fn run(self, stop: StopToken) -> Result<(), JournalError> {
        let name = self.sink.name().to_owned();
        self.journal.act(vec![Action::Register { sink: name.clone() }]).await?;
        let mut shell = self;
        let mut unreadable = false;
        loop {
            let Some(lease) = shell.lead(&name, &stop).await else { return Ok(()) };
            let row = shell.journal.read({
                let name = name.clone();
                move |reader| Ok((reader.sink(&name)?, reader.statistics()?.accepted))
            });
            // From here on nothing more is recorded by whoever led before.
            let row = match row.await {
                // Nothing behind it was there when anybody else delivered: the lease is ours by now.
                Ok((row, accepted)) => shell.sink.lead(Seq::try_from(accepted).unwrap_or(Seq::MAX)).await.map(|()| row),
                Err(error) => Err(error),
            };
            let row = match row {
                Ok(row) => row,
                Err(JournalError::UnknownSink(_)) => {
                    tracing::warn!(sink = %name, "sink {name} was forgotten since this replica began, and begins again with the next event");
                    // Where that fails it is found out again.
                    let _ = lease.give_back().await;
                    let _ = shell.journal.act(vec![Action::Register { sink: name.clone() }]).await;
                    pause(ASK_AGAIN, &stop).await;
                    continue;
                }
                // Where there are replicas the store is elsewhere, and may be away for a while.
                Err(error) if !lease.is_for_good() => {
                    let error = kit::error::chain(&error);
                    if !std::mem::replace(&mut unreadable, true) {
                        tracing::warn!(sink = %name, error = %error, "journal cannot be read for deliveries, another replica may deliver: {error}");
                    }
                    // Where it cannot be given back it runs out while this one keeps away.
                    let _ = lease.give_back().await;
                    shell.stand_by(true);
                    pause(KEEP_AWAY, &stop).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            unreadable = false;
            let mut work = Work::new(shell, &row, lease);
            work.run(stop.clone()).await;
            let keeps_away = work.leaves_to_others();
            shell = work.end().await;
            shell.sink.stand_by();
            if keeps_away {
                unreadable = true;
                shell.stand_by(true);
                pause(KEEP_AWAY, &stop).await;
            }
        }
    }

    /// Waits for the right to deliver, which one replica at a time has; `None` when it is time to stop.
    async fn lead(&self, name: &str, stop: &StopToken) -> Option<Held> {
        let mut failed = false;
        while !stop.is_stopped() {
            let asked = tokio::select! {
                () = stop.stopped() => break,
                asked = self.journal.lease(name) => asked,
            };
            match asked {
                Ok(Some(lease)) => {
                    self.stand_by(false);
                    if !lease.is_for_good() {
                        tracing::info!(sink = %name, lease = lease.epoch(), "this replica delivers to {name} now");
                    }
                    return Some(lease);
                }
                Ok(None) => self.stand_by(true),
                Err(error) if !std::mem::replace(&mut failed, true) => {
                    let error = kit::error::chain(&error);
                    tracing::warn!(sink = %name, error = %error, "who delivers to {name} cannot be found out: {error}");
                }
                Err(_) => {}
            }
            pause(ASK_AGAIN, stop).await;
        }
        None
    }

    fn stand_by(&self, standby: bool) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).standby = standby;
    }
}
