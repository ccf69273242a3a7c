//! One look at what has closed in a namespace: page by page, from what is listed to what is in the journal.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use kit_temporal::{ErrorClass, Retention, TemporalError};
use tokio::time::sleep;

use super::event::{Run, rfc3339};
use super::gap::Missed;
use super::listing::{Looked, look};
use super::outcome::Ended;
use super::sweep::{ServerTime, Sweep, Window, backoff};
use super::worker::{Batch, Broken, Observer, looked_value, position_value};

/// Ends in one commit: enough that a burst is few commits, little enough that nobody waits behind it.
const EVENTS: usize = 100;
/// Bytes of bodies in one commit.
const BYTES: usize = 1 << 20;
/// Between two pages: visibility is limited to 10 questions a second and namespace.
const BETWEEN_PAGES: Duration = Duration::from_millis(120);
/// How often a page is asked for again before the whole look is: together some minutes.
const AGAIN: u32 = 10;
/// gRPC code of an answer that is larger than is read.
const OUT_OF_RANGE: i32 = 11;
/// What is written down of the looks is no older, however quiet it is: a restart takes what is older for time away.
const OLDEST_WRITTEN: Duration = Duration::from_secs(3600);
/// A close time that is so far ahead of our clock is told.
const AHEAD: Duration = Duration::from_secs(120);

/// Where a look has come to.
struct Progress {
    window: Window,
    /// What our own clock showed when it began.
    begins: ServerTime,
    newest: Option<ServerTime>,
    found_any: bool,
    /// Every run could be read.
    is_whole: bool,
}

impl Observer {
    /// One look at what has closed.
    pub(super) async fn swept(&mut self, sweep: &mut Sweep) {
        sweep.set_wall(self.wall());
        let window = sweep.plan(self.tracker.now());
        let begins = self.wall();
        self.look_for_a_gap().await;
        match self.sweep(sweep, window, begins).await {
            Ok(true) => {
                self.say_ready();
                self.metrics.swept(&self.namespace, "done");
                // A slice of what is behind is not all.
                self.found_until = Some(window.latest.unwrap_or(begins).min(begins));
                if window.latest.is_none() {
                    self.gap.caught_up(begins);
                }
                if window.is_wide {
                    if !matches!(self.retention, Some(Retention::Told(_))) {
                        self.ask_retention().await;
                    }
                    self.recall().await;
                }
            }
            // One run holds the position; the others are told, and looked for as quickly as ever.
            Ok(false) => self.metrics.swept(&self.namespace, "failed"),
            Err(broken) => {
                self.say_broken(&broken, sweep.failures() + 1);
                self.metrics.swept(&self.namespace, if is_throttled(&broken) { "throttled" } else { "failed" });
                sweep.failed();
            }
        }
    }

    /// Says that ends may be lost, where nothing was looked for, for longer than the namespace keeps them.
    async fn look_for_a_gap(&mut self) {
        let (wall, now) = (self.wall(), self.tracker.now());
        if self.gap.is_over(now) {
            self.metrics.missed(&self.namespace, 0.0);
        }
        if self.gap.asks(wall, now) {
            // Nothing will be found either: it is asked for again with the next look.
            let Some(retention) = self.ask_retention().await else { return };
            self.gap.answered(retention.at_least(), now);
        }
        let Some(Missed { from, until }) = self.gap.missed(wall, now) else { return };
        let namespace = &self.namespace;
        let lost = until.since(from).as_secs();
        self.metrics.missed(namespace, until.since(from).as_secs_f64());
        let text = |at| rfc3339(at).unwrap_or_default();
        let (from, until) = (text(from), text(until));
        tracing::error!(namespace = %namespace, seconds = lost, "what ended in namespace {namespace} between {from} and {until} may be lost: nothing was looked for, for longer than its retention; what this daemon has started is told as temporal.workflow.unknown, see docs/runbooks/temporal-was-away.md");
    }

    async fn sweep(&mut self, sweep: &mut Sweep, window: Window, begins: ServerTime) -> Result<bool, Broken> {
        let mut progress = Progress { window, begins, newest: None, found_any: false, is_whole: true };
        let mut page_size = self.section.page_size;
        let mut token = Vec::new();
        loop {
            let (rows, next) = self.page(window, token, &mut page_size).await?;
            self.take(sweep, rows, next.is_empty(), &mut progress).await?;
            if next.is_empty() {
                break;
            }
            token = next;
            sleep(BETWEEN_PAGES).await;
        }
        let Progress { newest, is_whole, .. } = progress;
        if is_whole {
            sweep.done(window, newest, self.tracker.now());
        }
        Ok(is_whole)
    }

    /// A page of the listing. One in the middle is asked for again, and not everything from the beginning: a long list
    /// would have no end beside a server that throttles.
    async fn page(
        &self,
        window: Window,
        token: Vec<u8>,
        page_size: &mut u32,
    ) -> Result<(Vec<Run>, Vec<u8>), TemporalError> {
        let mut attempts = 0;
        loop {
            let error = match self.listing(*page_size).of(&self.temporal, window, token.clone()).await {
                Ok(page) => return Ok(page),
                Err(error) => error,
            };
            if error.code == Some(OUT_OF_RANGE) && *page_size > 1 {
                *page_size /= 2;
                continue;
            }
            let is_passing =
                matches!(error.class, ErrorClass::Exhausted | ErrorClass::Unavailable | ErrorClass::NoAnswer);
            if token.is_empty() || !is_passing || attempts >= AGAIN {
                return Err(error);
            }
            if error.class == ErrorClass::Exhausted {
                self.metrics.swept(&self.namespace, "throttled");
            }
            attempts += 1;
            sleep(backoff(attempts)).await;
        }
    }

    /// Has the ends of a page in the journal, and with the last page how far that is.
    async fn take(
        &mut self,
        sweep: &mut Sweep,
        rows: Vec<Run>,
        is_last: bool,
        progress: &mut Progress,
    ) -> Result<(), Broken> {
        for row in &rows {
            let Some(closed) = row.closed else { continue };
            progress.newest = progress.newest.max(Some(closed));
            let ahead = sweep.seen(closed, self.tracker.now());
            if ahead > AHEAD && !self.seen.contains(&row.run_id) {
                let (workflow, seconds) = (&row.workflow_id, ahead.as_secs());
                tracing::warn!(workflow.id = %workflow, seconds, "workflow {workflow} has closed {seconds} s from now: the clocks of Temporal and of this host differ");
            }
        }
        let mut attempts = 0;
        loop {
            let mut fresh = Vec::new();
            for row in rows.iter().filter(|row| row.closed.is_some()) {
                if self.is_news(row).await? {
                    fresh.push(row.clone());
                }
            }
            if !fresh.is_empty() {
                sweep.found(self.tracker.now());
                progress.found_any = true;
            }
            // The oldest first: the store gives the newest first.
            fresh.sort_by(|a, b| a.closed.cmp(&b.closed).then_with(|| a.run_id.cmp(&b.run_id)));
            // Quiet is not written down: after a restart it is looked at again.
            let Progress { window, begins, newest, found_any, is_whole } = *progress;
            let is_old = begins.since(self.written) >= OLDEST_WRITTEN;
            let is_worth_it = found_any || window.is_wide || window.latest.is_some() || is_old;
            let is_written = is_last && is_whole && is_worth_it;
            let mut position = Vec::new();
            if is_written {
                position.push(position_value(&self.namespace, sweep.after(window, newest)));
                // A slice of what is behind is not all.
                position.extend(window.latest.is_none().then(|| looked_value(&self.namespace, begins)));
            }
            match self.tell_all(fresh, position).await {
                Ok(is_whole) => {
                    if is_whole && is_written && window.latest.is_none() {
                        self.written = begins;
                    }
                    progress.is_whole &= is_whole;
                    return Ok(());
                }
                // What was told by then is not told again.
                Err(broken) if is_throttled(&broken) && attempts < AGAIN => {
                    self.metrics.swept(&self.namespace, "throttled");
                    attempts += 1;
                    sleep(backoff(attempts)).await;
                }
                Err(broken) => return Err(broken),
            }
        }
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

    /// Reads how these runs ended and has it in the journal, `last` with the last of them; false when one could not be
    /// read, and then without `last`.
    async fn tell_all(&mut self, runs: Vec<Run>, last: Vec<(String, Vec<u8>)>) -> Result<bool, Broken> {
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
                Looked::Troubled(troubled) => {
                    let (run, error) = *troubled;
                    if self.is_given_up(&run, &error) {
                        self.add(&mut batch, &run, &Ended::by_status(run.status));
                    } else {
                        is_whole = false;
                    }
                }
            }
            if batch.events.len() >= EVENTS || batch.bytes >= BYTES {
                self.commit(std::mem::take(&mut batch)).await?;
            }
        }
        if is_whole {
            batch.values.extend(last);
        }
        self.commit(batch).await?;
        Ok(is_whole)
    }

    fn is_given_up(&mut self, run: &Run, error: &TemporalError) -> bool {
        let is_first = !self.troubled.contains(&run.run_id);
        let is_over = self.troubled.is_given_up(&run.run_id, self.section.unknown_after(), self.tracker.now());
        let workflow = &run.workflow_id;
        if is_over {
            tracing::error!(workflow.id = %workflow, run.id = %run.run_id, error = %error, "how workflow {workflow} ended cannot be read, and only its status is told: {error}");
        } else if is_first {
            tracing::warn!(workflow.id = %workflow, run.id = %run.run_id, error = %error, "how workflow {workflow} ended cannot be read yet: {error}");
        }
        is_over
    }
}

fn is_throttled(broken: &Broken) -> bool {
    matches!(broken, Broken::Temporal(error) if error.class == ErrorClass::Exhausted)
}
