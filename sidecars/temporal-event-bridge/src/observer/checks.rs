//! Looking at one run: because it is tracked, or because somebody says that it has ended.

use std::time::Duration;

use kit_temporal::ErrorClass;
use tokio::time::Instant;

use super::event::Run;
use super::listing::{Looked, look_closely};
use super::outcome::{Ended, Kind};
use super::worker::{Asked, Batch, Broken, Observer};

/// Between two questions about tracked runs, however many there are.
const QUICKEST: Duration = Duration::from_millis(500);
/// And however few: an idle server is not asked more than it need be.
const SLOWEST: Duration = Duration::from_secs(25);
/// In which time all are asked about once, as long as that is no quicker than the quickest.
const ROUND: Duration = Duration::from_secs(3600);
/// How often it is looked whether there is a tracked run at all.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// How long the next question waits after a server that gave no answer.
const AGAIN: Duration = Duration::from_secs(5);

impl Observer {
    /// When a tracked run is to be looked at, not before `earliest`.
    pub(super) fn tracked_due(&self, earliest: Instant) -> Instant {
        let due = self.tracker.of(&self.namespace).and_then(|tracked| tracked.next_due());
        // Nothing yet: what is started meanwhile is due later than that.
        let wait = due.map_or(IDLE_LOOK, |due| due.saturating_sub(self.tracker.now()));
        (Instant::now() + wait.min(IDLE_LOOK)).max(earliest)
    }

    /// Looks at the tracked run that is due; how long to wait until the next one.
    pub(super) async fn look_after_one(&mut self) -> Duration {
        let now = self.tracker.now();
        let due = self.tracker.of(&self.namespace).and_then(|mut tracked| {
            self.metrics.tracked(&self.namespace, tracked.len());
            tracked.take_due(now)
        });
        let Some((workflow_id, run_id)) = due else { return Duration::ZERO };
        match self.check(&workflow_id, &run_id, true).await {
            Ok(_) => self.between_checks(),
            Err(broken) => {
                let error = kit::error::chain(&broken);
                tracing::debug!(workflow.id = %workflow_id, error = %error, "workflow {workflow_id} cannot be looked after now: {error}");
                AGAIN
            }
        }
    }

    fn between_checks(&self) -> Duration {
        let runs = self.tracker.of(&self.namespace).map_or(1, |tracked| tracked.len().max(1));
        let slowest = SLOWEST.min(self.section.tracked_first().div_f64(2.0)).max(QUICKEST);
        (ROUND / u32::try_from(runs).unwrap_or(u32::MAX)).clamp(QUICKEST, slowest)
    }

    /// Somebody says that a run has closed.
    pub(super) async fn answer(&mut self, asked: Asked) {
        let Asked { workflow_id, run_id, answer } = asked;
        let told = self.check(&workflow_id, &run_id, false).await.unwrap_or_else(|broken| {
            let error = kit::error::chain(&broken);
            tracing::warn!(workflow.id = %workflow_id, error = %error, "the end of workflow {workflow_id} cannot be read now: {error}");
            false
        });
        // Whoever asked may have gone.
        let _ = answer.send(told);
    }

    fn is_missing(&self, run_id: &str) -> bool {
        let (lasts, now) = (self.section.unknown_after(), self.tracker.now());
        self.tracker.of(&self.namespace).is_some_and(|mut tracked| tracked.is_missing(run_id, lasts, now))
    }

    /// Has the end of a run in the journal, if it has ended; true when there is nothing more to do about it.
    async fn check(&mut self, workflow_id: &str, run_id: &str, was_started_here: bool) -> Result<bool, Broken> {
        if !run_id.is_empty() && (self.seen.contains(run_id) || self.is_told(run_id).await?) {
            self.stop_tracking(run_id).await?;
            return Ok(true);
        }
        let looked = match look_closely(&self.temporal, &self.namespace, workflow_id, run_id).await {
            Ok(looked) => looked,
            // It was there when we started it: the server has forgotten it, and how it ended.
            Err(error) if error.class == ErrorClass::NoWorkflow && was_started_here => {
                if !self.is_missing(run_id) {
                    return Ok(false);
                }
                let run = Run { workflow_id: workflow_id.to_owned(), run_id: run_id.to_owned(), ..Run::default() };
                Looked::Ended(Box::new((run, Ended::unknown())))
            }
            Err(error) if error.class == ErrorClass::NoWorkflow => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        match looked {
            Looked::Ended(ended) => {
                let (run, ended) = *ended;
                // What is forgotten has no type. A query is only answered by the visibility store: what it does not find is
                // not wanted.
                let fits = ended.kind == Kind::Unknown || self.wanted.fits(&run);
                if !fits || !self.section.query.is_empty() {
                    self.stop_tracking(&run.run_id).await?;
                    return Ok(true);
                }
                let mut batch = Batch::default();
                self.add(&mut batch, &run, &ended);
                self.commit(batch).await?;
                Ok(true)
            }
            Looked::Open => {
                self.tracker.of(&self.namespace).into_iter().for_each(|mut tracked| tracked.is_there(run_id));
                Ok(false)
            }
            Looked::Troubled(troubled) => Err(troubled.1.into()),
        }
    }
}
