//! A load generator for webhooks: closed loop (so many connections, each as fast as it is
//! answered) and open loop (a fixed rate, whatever the answers do). Bodies are prepared and signed
//! beforehand, so that a run measures the daemon and not the generator.

mod histogram;
mod pool;
mod target;
mod webhooks;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::histogram::Histogram;
pub use self::pool::{Pool, PreparedWebhook};
pub use self::target::{Target, TargetError};
pub use self::webhooks::{LagoWebhooks, Signing};

use crate::ledger::SentRequest;

/// When the next request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pacing {
    /// As soon as the one before on the same connection is answered. Latency counts from sending.
    Closed,
    /// At a fixed rate over all connections. Latency counts from when a request was *due*, so that
    /// a stall is seen by every request it delayed, not only by the one that was out (coordinated
    /// omission). The timer's grain of about 1 ms is part of it.
    Open {
        /// Requests per second, above zero.
        per_second: f64,
    },
}

/// What to send and for how long.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where to.
    pub target: Target,
    /// Connections at once; default 8.
    pub connections: usize,
    /// Whether a connection is used again. Lago opens one per delivery: then `false`. Default true.
    pub keep_alive: bool,
    /// Default closed loop.
    pub pacing: Pacing,
    /// So many of a hundred requests repeat one of the last few thousand, key and body. Default 0.
    pub duplicates_percent: f64,
    /// Stop after so many requests, retries not counted. Default none.
    pub requests: Option<u64>,
    /// Stop after this time. Default none.
    pub duration: Option<Duration>,
    /// The longest a request may take, connecting included. Default 30 s, as Lago's.
    pub timeout: Duration,
    /// How often a request is sent until it is answered 2xx, with the same key; default 1.
    pub attempts: u32,
    /// The pause before each further attempt. Default 100 ms.
    pub retry_pause: Duration,
    /// Whether every request is returned for a ledger, about 200 bytes each. Default false.
    pub record: bool,
}

impl LoadOptions {
    /// The defaults, for this target. At least one of `requests`, `duration` and
    /// [`LoadControl::stop`] should end it.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            connections: 8,
            keep_alive: true,
            pacing: Pacing::Closed,
            duplicates_percent: 0.0,
            requests: None,
            duration: None,
            timeout: Duration::from_secs(30),
            attempts: 1,
            retry_pause: Duration::from_millis(100),
            record: false,
        }
    }
}

/// The options contradict themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No connection.
    #[error("a load needs at least one connection and one attempt")]
    NoConnections,
    /// A rate that is not above zero.
    #[error("the rate of an open loop must be above zero")]
    Rate,
    /// A percentage outside 0 to 100.
    #[error("the share of duplicates must be from 0 to 100 percent")]
    Duplicates,
    /// Nothing to send.
    #[error("the pool of webhooks is empty")]
    EmptyPool,
}

/// Watches and stops a load from outside.
#[derive(Clone, Debug, Default)]
pub struct LoadControl {
    stop: CancellationToken,
    progress: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    ok: AtomicU64,
}

impl LoadControl {
    /// A control for one run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the run end: no new request is begun; those under way are waited for, but not retried.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Requests finished so far, retries not counted.
    pub fn requests(&self) -> u64 {
        self.progress.requests.load(Ordering::Relaxed)
    }

    /// Requests answered 2xx so far.
    pub fn ok(&self) -> u64 {
        self.progress.ok.load(Ordering::Relaxed)
    }

    fn finished(&self, ok: bool) {
        self.progress.requests.fetch_add(1, Ordering::Relaxed);
        if ok {
            self.progress.ok.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Latency of the requests that were answered 2xx, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Half of the requests were faster.
    pub p50: f64,
    /// 90 of a hundred were faster.
    pub p90: f64,
    /// 99 of a hundred were faster.
    pub p99: f64,
    /// 999 of a thousand were faster.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// What a load run saw.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    /// `closed` or `open`.
    pub mode: &'static str,
    /// The rate of an open loop, per second.
    pub target_rps: Option<f64>,
    /// Connections.
    pub connections: usize,
    /// Whether connections were used again.
    pub keep_alive: bool,
    /// Requests, each counted once however often it was tried.
    pub requests: u64,
    /// Requests answered 2xx in the end.
    pub ok: u64,
    /// Further attempts that were made.
    pub retries: u64,
    /// Requests that repeated an earlier one on purpose.
    pub repeated: u64,
    /// 2xx answers that called the request a duplicate.
    pub duplicates_answered: u64,
    /// Attempts without a 2xx, by kind: `status 503`, `refused`, `reset`, `closed`, `timeout` …
    pub errors: BTreeMap<String, u64>,
    /// Bytes of the bodies sent.
    pub body_bytes: u64,
    /// How long the run took.
    pub seconds: f64,
    /// 2xx per second.
    pub rps: f64,
    /// Latency in milliseconds.
    pub latency_ms: Latency,
}

/// A run's report and, where wanted, every request of it.
#[derive(Clone, Debug)]
pub struct LoadOutcome {
    /// The figures.
    pub report: LoadReport,
    /// Every attempt, for [`Ledger::extend_sent`](crate::ledger::Ledger::extend_sent); empty
    /// unless [`LoadOptions::record`] was set.
    pub sent: Vec<SentRequest>,
}

/// Runs a load to its end.
///
/// # Errors
/// [`LoadError`] for options that make no sense. Failing requests are no error: they are counted.
pub async fn run(options: LoadOptions, pool: Arc<Pool>, control: &LoadControl) -> Result<LoadOutcome, LoadError> {
    validate(&options, &pool)?;
    let begin = Instant::now();
    let shared = Arc::new(worker::Shared::new(options.clone(), pool, control.clone(), begin));
    let workers: Vec<_> = (0..options.connections).map(|_| tokio::spawn(worker::run(Arc::clone(&shared)))).collect();
    let mut total = worker::Tally::default();
    for worker in workers {
        match worker.await {
            Ok(tally) => total.add(tally),
            Err(error) => {
                tracing::error!(%error, "a load worker has died");
                *total.errors.entry("worker".to_owned()).or_default() += 1;
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let (mode, target_rps) = match options.pacing {
        Pacing::Closed => ("closed", None),
        Pacing::Open { per_second } => ("open", Some(per_second)),
    };
    let report = LoadReport {
        mode,
        target_rps,
        connections: options.connections,
        keep_alive: options.keep_alive,
        requests: total.requests,
        ok: total.ok,
        retries: total.retries,
        repeated: total.repeated,
        duplicates_answered: total.duplicates_answered,
        errors: total.errors,
        body_bytes: total.body_bytes,
        seconds,
        rps: total.ok as f64 / seconds.max(f64::EPSILON),
        latency_ms: total.latency.summary_ms(),
    };
    Ok(LoadOutcome { report, sent: total.sent })
}

fn validate(options: &LoadOptions, pool: &Pool) -> Result<(), LoadError> {
    if options.connections == 0 || options.attempts == 0 {
        return Err(LoadError::NoConnections);
    }
    if let Pacing::Open { per_second } = options.pacing
        && !(per_second > 0.0 && per_second.is_finite())
    {
        return Err(LoadError::Rate);
    }
    if !(0.0..=100.0).contains(&options.duplicates_percent) {
        return Err(LoadError::Duplicates);
    }
    if pool.is_empty() {
        return Err(LoadError::EmptyPool);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
