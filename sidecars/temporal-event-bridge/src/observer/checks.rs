//! Looking at one run: because it is tracked, or because somebody says that it has ended.

use std::time::Duration;

use kit_temporal::ErrorClass;
use tokio::time::Instant;

use super::event::Run;
use super::listing::{Looked, look_closely};
use super::outcome::{Ended, Kind};
use super::worker::{Asked, Batch, Broken, Observer};

/// Between two questions about tracked runs.
const TRACKED_EVERY: Duration = Duration::from_millis(500);
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
            Ok(_) => TRACKED_EVERY,
            Err(broken) => {
                let error = kit::error::chain(&broken);
                tracing::debug!(workflow.id = %workflow_id, error = %error, "workflow {workflow_id} cannot be looked after now: {error}");
                AGAIN
            }
        }
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
                let run = Run { workflow_id: workflow_id.to_owned(), run_id: run_id.to_owned(), ..Run::default() };
                Looked::Ended(Box::new((run, Ended::unknown())))
            }
            Err(error) if error.class == ErrorClass::NoWorkflow => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        match looked {
            Looked::Ended(ended) => {
                let (run, ended) = *ended;
                // A query is only answered by the visibility store, and what is forgotten has no type.
                let fits = ended.kind == Kind::Unknown || self.wanted.fits(&run);
                if !fits {
                    self.stop_tracking(&run.run_id).await?;
                    return Ok(true);
                }
                if !self.section.query.is_empty() {
                    return Ok(true);
                }
                let mut batch = Batch::default();
                self.add(&mut batch, &run, &ended);
                self.commit(batch).await?;
                Ok(true)
            }
            Looked::Open => Ok(false),
            Looked::Troubled(_, error) => Err(error.into()),
        }
    }
}
