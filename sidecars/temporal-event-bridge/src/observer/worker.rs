//! Observing one namespace: looks at what has closed, at tracked runs and at runs that somebody says have closed, and has
//! every end in the journal.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use kit::admin::Part;
use kit::lifecycle::StopToken;
use kit_journal::{Journal, NewEvent};
use kit_temporal::{ErrorClass, Temporal, TemporalError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::config::ObserverSection;
use super::event::{Run, Teller, id, key, source};
use super::listing::{Listing, Looked, look};
use super::metrics::ObserverMetrics;
use super::outcome::{Ended, Kind};
use super::sweep::{Position, ServerTime, Sweep, Window, backoff};
use super::tracked::{Tracker, forget, prefix, remember};
use super::wanted::{Seen, Wanted};

/// Ends in one commit: enough that a burst is few commits, little enough that nobody waits behind it.
const EVENTS: usize = 100;
/// Bytes of bodies in one commit.
const BYTES: usize = 1 << 20;
/// Runs that could not be read, remembered until they can.
const TROUBLED: usize = 1_000;
/// After so many attempts to read how a run ended, its end is told as unknown.
const ATTEMPTS: u32 = 10;

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
    pub(crate) troubled: HashMap<String, u32>,
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
        let mut last_done = Instant::now();
        loop {
            let tracked_due = self.tracked_due(next_tracked);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next_sweep) => {
                    if self.swept(&mut sweep).await {
                        last_done = Instant::now();
                    }
                    self.metrics.behind(&self.namespace, last_done.elapsed().as_secs_f64());
                    let wait = sweep.wait(self.tracker.now());
                    next_sweep = Instant::now() + wait.mul_f64(0.9 + 0.1 * fastrand::f64());
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
        loop {
            match self.try_to_begin().await {
                Ok(sweep) => {
                    self.ready.set_ready();
                    return sweep;
                }
                Err(broken) => {
                    attempts += 1;
                    self.say_broken(&broken, attempts);
                }
            }
            tokio::time::sleep(backoff(attempts).mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        }
    }

    async fn try_to_begin(&self) -> Result<Sweep, Broken> {
        let name = position_name(&self.namespace);
        let stored = self.journal.read(move |reader| reader.value(&name)).await?;
        let stored = stored.and_then(|bytes| serde_json::from_slice::<Position>(&bytes).ok());
        let newest = self.listing().newest(&self.temporal).await?;
        let position = match stored {
            Some(position) => position,
            None => {
                // By the server's clock, which may differ from ours: what closed up to the newest end there is was before us.
                let now = newest.map_or(ServerTime(0), |newest| ServerTime(newest.0 + 1));
                let since = self.section.since_time().ok().flatten();
                let position = Position::beginning(since.unwrap_or(now));
                self.store(Vec::new(), vec![position_value(&self.namespace, position)]).await?;
                tracing::info!(namespace = %self.namespace, "observing workflows that end in namespace {} begins", self.namespace);
                position
            }
        };
        Ok(Sweep::new(self.section.pace(), position, newest, self.tracker.now()))
    }

    /// Runs that were tracked before the restart.
    async fn recall(&self) {
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

    /// One look at what has closed; true when it found everything.
    async fn swept(&mut self, sweep: &mut Sweep) -> bool {
        let window = sweep.plan(self.tracker.now());
        match self.sweep(sweep, window).await {
            Ok(true) => {
                self.ready.set_ready();
                self.metrics.swept(&self.namespace, "done");
                return true;
            }
            Ok(false) => self.metrics.swept(&self.namespace, "failed"),
            Err(broken) => {
                self.say_broken(&broken, sweep.failures() + 1);
                let throttled = matches!(&broken, Broken::Temporal(error) if error.class == ErrorClass::Exhausted);
                self.metrics.swept(&self.namespace, if throttled { "throttled" } else { "failed" });
            }
        }
        sweep.failed();
        false
    }

    async fn sweep(&mut self, sweep: &mut Sweep, window: Window) -> Result<bool, Broken> {
        let mut newest = None;
        let mut token = Vec::new();
        let mut found_any = false;
        let mut is_whole = true;
        loop {
            let (rows, next) = self.listing().of(&self.temporal, window, token).await?;
            let mut fresh = Vec::new();
            for row in rows {
                let Some(closed) = row.closed else { continue };
                newest = newest.max(Some(closed));
                sweep.seen(closed, self.tracker.now());
                if self.is_news(&row).await? {
                    fresh.push(row);
                }
            }
            if !fresh.is_empty() {
                sweep.found(self.tracker.now());
                found_any = true;
                // The oldest first: the store gives the newest first.
                fresh.sort_by(|a, b| a.closed.cmp(&b.closed).then_with(|| a.run_id.cmp(&b.run_id)));
                is_whole &= self.tell_all(fresh).await?;
            }
            token = next;
            if token.is_empty() {
                break;
            }
        }
        if !is_whole {
            return Ok(false);
        }
        // Quiet is not written down: after a restart it is looked at again.
        if found_any || window.is_wide || window.latest.is_some() {
            let value = position_value(&self.namespace, sweep.after(window, newest));
            self.store(Vec::new(), vec![value]).await?;
        }
        sweep.done(window, newest, self.tracker.now());
        Ok(true)
    }

    /// Whether anything is to be done about a run that has closed.
    async fn is_news(&mut self, run: &Run) -> Result<bool, Broken> {
        if self.seen.contains(&run.run_id) {
            return Ok(false);
        }
        let is_wanted = self.wanted.fits(run);
        if !is_wanted || self.is_told(&run.run_id).await? {
            self.seen.add(&run.run_id);
            self.stop_tracking(&run.run_id).await?;
            return Ok(false);
        }
        Ok(true)
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

    /// Reads how these runs ended and has it in the journal; false when one could not be read.
    async fn tell_all(&mut self, runs: Vec<Run>) -> Result<bool, Broken> {
        let mut is_whole = true;
        let mut batch = Batch::default();
        let (temporal, namespace) = (self.temporal.clone(), self.namespace.clone());
        let looks = runs.into_iter().map(|run| look(&temporal, &namespace, run));
        let mut looks = stream::iter(looks).buffered(self.section.concurrency);
        while let Some(looked) = looks.next().await {
            let looked = match looked {
                Ok(looked) => looked,
                // What was read by then need not be read again.
                Err(error) => return self.commit(batch).await.and(Err(error.into())),
            };
            match looked {
                Looked::Ended(ended) => self.add(&mut batch, &ended.0, &ended.1),
                // Closed to the visibility store and open to the one that decides: it is looked at again.
                Looked::Open => {}
                Looked::Troubled(run, error) => {
                    if self.is_given_up(&run, &error) {
                        self.add(&mut batch, &run, &Ended::unknown());
                    } else {
                        is_whole = false;
                    }
                }
            }
            if batch.events.len() >= EVENTS || batch.bytes >= BYTES {
                self.commit(std::mem::take(&mut batch)).await?;
            }
        }
        self.commit(batch).await?;
        Ok(is_whole)
    }

    /// A run that cannot be read keeps the position where it is, but not for ever.
    fn is_given_up(&mut self, run: &Run, error: &TemporalError) -> bool {
        if self.troubled.len() >= TROUBLED {
            self.troubled.clear();
        }
        let attempts = self.troubled.entry(run.run_id.clone()).or_default();
        *attempts += 1;
        let (workflow, attempts) = (&run.workflow_id, *attempts);
        if attempts >= ATTEMPTS {
            tracing::error!(workflow.id = %workflow, run.id = %run.run_id, error = %error, "how workflow {workflow} ended cannot be read and is told as unknown: {error}");
            return true;
        }
        tracing::warn!(workflow.id = %workflow, run.id = %run.run_id, attempts, error = %error, "how workflow {workflow} ended cannot be read yet: {error}");
        false
    }

    /// What follows from the end of a run.
    pub(super) fn add(&mut self, batch: &mut Batch, run: &Run, ended: &Ended) {
        self.troubled.remove(&run.run_id);
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
    async fn store(&self, events: Vec<NewEvent>, values: Vec<(String, Vec<u8>)>) -> Result<Vec<bool>, Broken> {
        let appended = self.journal.append_recording(events, values).await?;
        Ok(appended.into_iter().map(|appended| !appended.duplicate).collect())
    }

    fn listing(&self) -> Listing<'_> {
        Listing { namespace: &self.namespace, query: &self.section.query, page: self.section.page_size }
    }

    /// Says why nothing is found: what a person has to mend, at once and in the readiness, other things when they last.
    fn say_broken(&self, broken: &Broken, times: u32) {
        let error = kit::error::chain(broken);
        let namespace = &self.namespace;
        let class = match broken {
            Broken::Temporal(error) => Some(&error.class),
            _ => None,
        };
        if matches!(class, Some(ErrorClass::NoNamespace | ErrorClass::Denied | ErrorClass::Invalid)) {
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
    events: Vec<NewEvent>,
    bytes: usize,
    /// How those end that the events are about.
    kinds: Vec<Kind>,
    values: Vec<(String, Vec<u8>)>,
    /// Runs that nothing more is to be done about.
    over: Vec<String>,
    /// Runs that go on in their place.
    next: Vec<(String, String)>,
}

/// Name of the value that remembers how far a namespace was swept.
fn position_name(namespace: &str) -> String {
    format!("observer/position/{namespace}")
}

fn position_value(namespace: &str, position: Position) -> (String, Vec<u8>) {
    // Two numbers: nothing in it can fail to be written.
    (position_name(namespace), serde_json::to_vec(&position).unwrap_or_default())
}
