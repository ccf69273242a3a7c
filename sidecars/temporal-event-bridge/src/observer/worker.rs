//! Observing one namespace: looks at what has closed, at tracked runs and at runs that somebody says have closed, and has
//! every end in the journal.

use std::sync::Arc;
use std::time::Duration;

use kit::admin::Part;
use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use kit_journal::{Journal, NewEvent};
use kit_temporal::{ErrorClass, Retention, Temporal, TemporalError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::config::ObserverSection;
use super::event::{Run, Teller, id, key, source};
use super::gap::Gap;
use super::listing::Listing;
use super::metrics::ObserverMetrics;
use super::outcome::{Ended, Kind};
use super::sweep::{Position, ServerTime, Sweep, backoff};
use super::tracked::{Tracker, forget, prefix, remember};
use super::wanted::{Seen, Troubled, Wanted};

/// Somebody says that a run has closed.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) workflow_id: String,
    /// Empty: the newest run.
    pub(crate) run_id: String,
    /// Told whether its end is in the journal, or there is nothing to wait for.
    pub(crate) answer: oneshot::Sender<bool>,
}

/// Why a look was broken off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Temporal(#[from] TemporalError),
    #[error("the journal does not take what was found")]
    Append(#[from] kit_journal::AppendError),
    #[error("the journal cannot be asked")]
    Journal(#[from] kit_journal::JournalError),
    #[error(
        "how far ends were found cannot be understood (value {0} of the journal): another version has written it, or it is \
         damaged; run the version that wrote it, or restore the journal from a backup"
    )]
    BadPosition(String),
}

/// One namespace's observer.
pub(crate) struct Observer {
    pub(crate) temporal: Temporal,
    pub(crate) journal: Journal,
    pub(crate) namespace: String,
    pub(crate) section: Arc<ObserverSection>,
    pub(crate) teller: Arc<Teller>,
    pub(crate) tracker: Arc<Tracker>,
    pub(crate) asked: mpsc::Receiver<Asked>,
    pub(crate) metrics: ObserverMetrics,
    pub(crate) ready: Part,
    pub(crate) wanted: Wanted,
    pub(crate) seen: Seen,
    pub(crate) troubled: Troubled,
    pub(crate) clock: SharedClock,
    /// By our clock: everything that closed before was found, as far as anybody could know.
    pub(crate) found_until: Option<ServerTime>,
    pub(crate) gap: Gap,
    /// What is known about how long the server remembers; asked for once at the start, to be told if nobody says.
    pub(crate) retention: Option<Retention>,
    /// By our clock: when a look began that was written down, the last one.
    pub(crate) written: ServerTime,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Observer {
    /// Observes until the daemon stops.
    pub(crate) async fn run(mut self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        tokio::select! {
            () = stop.stopped() => {}
            () = self.observe() => {}
        }
        Ok(())
    }

    /// Cut off anywhere: what is not committed is found again.
    async fn observe(&mut self) {
        // Whatever Temporal does, events are taken.
        self.ready.set_ready();
        let mut sweep = self.begin().await;
        self.recall().await;
        let mut next_sweep = Instant::now();
        let mut next_tracked = Instant::now();
        loop {
            let tracked_due = self.tracked_due(next_tracked);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next_sweep) => {
                    self.swept(&mut sweep).await;
                    self.show_age();
                    // Never sooner: the bound on what an idle server is asked counts on it.
                    let wait = sweep.wait(self.tracker.now());
                    next_sweep = Instant::now() + wait.mul_f64(1.0 + 0.05 * fastrand::f64());
                }
                Some(asked) = self.asked.recv() => self.answer(asked).await,
                () = tokio::time::sleep_until(tracked_due) => {
                    next_tracked = Instant::now() + self.look_after_one().await;
                }
            }
        }
    }

    /// The position that is remembered, or a new one; asked for until the server answers.
    async fn begin(&mut self) -> Sweep {
        let mut attempts = 0;
        let mut was_missing = false;
        let begin = self.tracker.now();
        loop {
            // Ends from while nobody could be asked are not missed.
            let unheard = if attempts > 0 { self.tracker.now().saturating_sub(begin) } else { Duration::ZERO };
            match self.try_to_begin(unheard, was_missing).await {
                Ok(sweep) => {
                    self.ask_retention().await;
                    self.say_ready();
                    return sweep;
                }
                Err(broken) => {
                    was_missing |= matches!(&broken, Broken::Temporal(error) if error.class == ErrorClass::NoNamespace);
                    attempts += 1;
                    self.say_broken(&broken, attempts);
                    self.show_age();
                }
            }
            tokio::time::sleep(backoff(attempts).mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        }
    }

    /// A new position is now, less the time `unheard` that was spent asking; all of the namespace is new where it was
    /// missing before.
    async fn try_to_begin(&mut self, unheard: Duration, was_missing: bool) -> Result<Sweep, Broken> {
        let name = position_name(&self.namespace);
        let stored = self.journal.read(move |reader| reader.value(&name)).await?;
        // Begun anew, it would pass by what has ended since.
        let read = |bytes: Vec<u8>| serde_json::from_slice::<Position>(&bytes).ok();
        let bad = || Broken::BadPosition(position_name(&self.namespace));
        let stored = stored.map(|bytes| read(bytes).ok_or_else(bad)).transpose()?;
        let wall = self.wall();
        let name = looked_name(&self.namespace);
        let looked = self.journal.read(move |reader| reader.value(&name)).await?;
        let looked = looked.and_then(|bytes| serde_json::from_slice::<ServerTime>(&bytes).ok());
        // Both say that everything before was found: where nothing ends for days the one is old, and while what is behind is
        // caught up with the other.
        let found = stored.map_or(wall, |position| looked.map_or(position.covered, |at| at.max(position.covered)));
        let found = found.min(wall);
        self.written = found;
        self.found_until = self.found_until.or(Some(found));
        self.gap.begin(found);
        let newest = self.listing(1).newest(&self.temporal).await?;
        let position = match stored {
            Some(position) => position,
            None => {
                // By the server's clock, which may differ from ours: what closed up to the newest end there is was before
                // us. Not beyond our own: a clock that is ahead may be set right.
                let now = match newest {
                    Some(newest) if !was_missing => newest.after().min(wall).minus(unheard),
                    _ => ServerTime(0),
                };
                if was_missing {
                    // Nothing can have ended in a namespace that was not there.
                    self.gap.caught_up(wall);
                }
                let since = self.section.since_time().ok().flatten();
                let position = Position::beginning(since.unwrap_or(now));
                let values = vec![position_value(&self.namespace, position), looked_value(&self.namespace, wall)];
                self.store(Vec::new(), values).await?;
                tracing::info!(namespace = %self.namespace, "observing workflows that end in namespace {} begins", self.namespace);
                position
            }
        };
        Ok(Sweep::new(self.section.pace(), position, newest, self.tracker.now()))
    }

    /// How long the server remembers what has ended; `None` where nothing can be asked now.
    pub(super) async fn ask_retention(&mut self) -> Option<Retention> {
        let retention = self.temporal.retention(&self.namespace).await.ok()?;
        if retention == Retention::Unknown && self.retention != Some(retention) {
            let namespace = &self.namespace;
            tracing::warn!(namespace = %namespace, "how long namespace {namespace} keeps what has ended may not be asked (DescribeNamespace is refused), an hour is assumed: set SIDECAR_TEMPORAL__RETENTION_SECONDS, or allow it");
        }
        self.retention = Some(retention);
        self.retention
    }

    /// All is well, but for what a person should know.
    pub(super) fn say_ready(&self) {
        match self.retention {
            Some(Retention::Unknown) => self.ready.set_ready_but(
                "how long ended workflows are kept may not be asked (DescribeNamespace is refused), an hour is assumed: a \
                 longer time without Temporal is told as lost ends. Set SIDECAR_TEMPORAL__RETENTION_SECONDS",
            ),
            _ => self.ready.set_ready(),
        }
    }

    /// What our own clock shows, in the server's measure.
    pub(super) fn wall(&self) -> ServerTime {
        ServerTime(self.clock.now().as_millis().saturating_mul(1_000))
    }

    /// Shows how old what was found is.
    fn show_age(&self) {
        let age = self.found_until.map_or(Duration::ZERO, |until| self.wall().since(until));
        self.metrics.behind(&self.namespace, age.as_secs_f64());
    }

    /// Runs that are remembered as tracked: from before the restart, or by another replica.
    pub(super) async fn recall(&self) {
        let prefix = prefix(&self.namespace);
        let (from, length) = (prefix.clone(), prefix.len());
        let stored = self.journal.read(move |reader| reader.values(&from)).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "tracked runs cannot be read, their ends are found by looking at what has closed: {error}");
            Vec::new()
        });
        let now = self.tracker.now();
        let Some(mut tracked) = self.tracker.of(&self.namespace) else { return };
        for (name, workflow_id) in stored {
            let workflow_id = String::from_utf8_lossy(&workflow_id);
            if !tracked.add(&workflow_id, &name[length..], now) {
                self.metrics.untracked(&self.namespace);
            }
        }
        self.metrics.tracked(&self.namespace, tracked.len());
    }

    /// Whether the end of a run is in the journal.
    pub(super) async fn is_told(&self, run_id: &str) -> Result<bool, Broken> {
        let known = self.journal.known(&source(&self.namespace), &key(&self.namespace, run_id)).await?;
        let own = id(&self.namespace, run_id);
        Ok(known.iter().any(|(known, _)| *known == own))
    }

    pub(super) async fn stop_tracking(&self, run_id: &str) -> Result<(), Broken> {
        let is_tracked = self.tracker.of(&self.namespace).is_some_and(|tracked| tracked.contains(run_id));
        if is_tracked {
            self.store(Vec::new(), vec![forget(&self.namespace, run_id)]).await?;
            self.tracker.of(&self.namespace).into_iter().for_each(|mut tracked| tracked.remove(run_id));
        }
        Ok(())
    }

    /// What follows from the end of a run.
    pub(super) fn add(&mut self, batch: &mut Batch, run: &Run, ended: &Ended) {
        self.troubled.read(&run.run_id, self.tracker.now());
        let is_tracked = self.tracker.of(&self.namespace).is_some_and(|tracked| tracked.contains(&run.run_id));
        if is_tracked {
            batch.values.push(forget(&self.namespace, &run.run_id));
            // The chain is looked after to its end.
            if let Some(next) = &ended.next_run_id {
                batch.values.push(remember(&self.namespace, &run.workflow_id, next));
                batch.next.push((run.workflow_id.clone(), next.clone()));
            }
        }
        batch.over.push(run.run_id.clone());
        if ended.kind != Kind::Continued || self.section.continued {
            let event = self.teller.event(&self.namespace, run, ended);
            batch.bytes += event.body.len();
            batch.kinds.push(ended.kind);
            batch.events.push(event);
        }
    }

    /// Has a batch in the journal; only then nothing more is done about its runs.
    pub(super) async fn commit(&mut self, batch: Batch) -> Result<(), Broken> {
        let Batch { events, values, kinds, over, next, .. } = batch;
        if events.is_empty() && values.is_empty() {
            over.iter().for_each(|run_id| self.seen.add(run_id));
            return Ok(());
        }
        let new = self.store(events, values).await?;
        for (kind, is_new) in kinds.into_iter().zip(new) {
            if is_new {
                self.metrics.outcome(&self.namespace, kind);
            }
        }
        let now = self.tracker.now();
        for run_id in &over {
            self.seen.add(run_id);
        }
        if let Some(mut tracked) = self.tracker.of(&self.namespace) {
            over.iter().for_each(|run_id| tracked.remove(run_id));
            for (workflow_id, run_id) in &next {
                if !tracked.add(workflow_id, run_id, now) {
                    self.metrics.untracked(&self.namespace);
                }
            }
            self.metrics.tracked(&self.namespace, tracked.len());
        }
        Ok(())
    }

    /// Which of the events are new.
    pub(super) async fn store(
        &self,
        events: Vec<NewEvent>,
        values: Vec<(String, Vec<u8>)>,
    ) -> Result<Vec<bool>, Broken> {
        let appended = self.journal.append_recording(events, values).await?;
        Ok(appended.into_iter().map(|appended| !appended.duplicate).collect())
    }

    pub(super) fn listing(&self, page: u32) -> Listing<'_> {
        Listing { namespace: &self.namespace, query: &self.section.query, page }
    }

    /// Says why nothing is found: what a person has to mend, at once and in the readiness, other things when they last.
    pub(super) fn say_broken(&self, broken: &Broken, times: u32) {
        let error = kit::error::chain(broken);
        let namespace = &self.namespace;
        let class = match broken {
            Broken::Temporal(error) => Some(&error.class),
            _ => None,
        };
        let is_bad = matches!(broken, Broken::BadPosition(_));
        if is_bad || matches!(class, Some(ErrorClass::NoNamespace | ErrorClass::Denied | ErrorClass::Invalid)) {
            self.ready.set_ready_but(&error);
        }
        // Once when it begins, and once in a while: a server that is away for hours must not fill the log. To be throttled
        // now and then is nothing to be told.
        let is_worth_it = class != Some(&ErrorClass::Exhausted) || times >= 4;
        if times.is_power_of_two() && is_worth_it {
            tracing::warn!(namespace = %namespace, attempts = times, error = %error, "ends of workflows in namespace {namespace} cannot be looked for now: {error}");
        }
    }
}

/// What one commit has about ends of runs.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(super) events: Vec<NewEvent>,
    pub(super) bytes: usize,
    /// How those end that the events are about.
    kinds: Vec<Kind>,
    pub(super) values: Vec<(String, Vec<u8>)>,
    /// Runs that nothing more is to be done about.
    over: Vec<String>,
    /// Runs that go on in their place.
    next: Vec<(String, String)>,
}

/// Name of the value that remembers how far a namespace was swept.
fn position_name(namespace: &str) -> String {
    format!("observer/position/{namespace}")
}

pub(super) fn position_value(namespace: &str, position: Position) -> (String, Vec<u8>) {
    // Two numbers: nothing in it can fail to be written.
    (position_name(namespace), serde_json::to_vec(&position).unwrap_or_default())
}

/// Name of the value that remembers when, by our own clock, everything was found.
fn looked_name(namespace: &str) -> String {
    format!("observer/looked/{namespace}")
}

pub(super) fn looked_value(namespace: &str, at: ServerTime) -> (String, Vec<u8>) {
    (looked_name(namespace), serde_json::to_vec(&at).unwrap_or_default())
}
