//! What the outcomes of a request mean: for each event in it, and for the sink.

use std::time::{Duration, Instant};

use kit_journal::Seq;
use kit_journal::engine::Attempt;

use super::ramp::Ramp;
use super::work::{Finished, Work};
use crate::circuit::Circuit;
use crate::judge::{self, Circumstances};
use crate::outcome::{Failure, Outcome, Verdict};
use crate::window::Decision;

/// What the outcomes of one request say about the sink: it is there if it said anything about any of the events.
#[derive(Debug, Default)]
struct Says {
    alive: bool,
    denied: bool,
    nobody_asked: bool,
    withheld: bool,
    failed: Option<String>,
    /// How long the sink asks to be left alone.
    left_alone: Duration,
}

impl Says {
    fn hear(&mut self, outcome: &Outcome) {
        match outcome.verdict {
            Verdict::Delivered => self.alive = true,
            Verdict::PassedBy(_) | Verdict::Failed(Failure::Unsendable) => self.nobody_asked = true,
            Verdict::Failed(Failure::Withheld) => self.withheld = true,
            Verdict::Failed(Failure::Unroutable) => self.alive = true,
            Verdict::Failed(failure) if !failure.may_retry() => self.alive = true,
            Verdict::Failed(failure) => {
                self.denied |= failure == Failure::Denied;
                self.left_alone = self.left_alone.max(outcome.retry_after.unwrap_or_default());
                self.failed = self.failed.take().or_else(|| Some(outcome.error.clone().unwrap_or_default()));
            }
        }
    }
}

impl Work {
    pub(super) fn finished(&mut self, finished: Result<Finished, tokio::task::JoinError>) {
        let finished = match finished {
            Ok(finished) => finished,
            Err(error) => {
                // A delivery that panicked leaves its event in flight in the window: only a restart
                // of the dispatcher clears that, so the process is told.
                tracing::error!(sink = %self.name, error = %error, "a delivery panicked");
                std::panic::resume_unwind(Box::new("a delivery panicked"));
            }
        };
        let Finished { deliveries, circuit_closed } = finished;
        let mut says = Says::default();
        for (seq, ended) in deliveries {
            match ended {
                Ok((outcome, attempt)) => {
                    says.hear(&outcome);
                    self.judge(seq, &outcome, attempt, circuit_closed);
                }
                Err(why) => self.not_asked(seq, why, !circuit_closed),
            }
        }
        self.sync_due |= std::mem::take(&mut self.in_vain);
        self.move_circuit(&says, circuit_closed);
    }

    fn judge(&mut self, seq: Seq, outcome: &Outcome, attempt: Attempt, circuit_closed: bool) {
        self.unread.delivered();
        self.shell.metrics.attempted(&self.name, outcome.word(), f64::from(attempt.ms) / 1000.0);
        let decision = judge::decide(
            outcome,
            &self.shell.settings.schedule,
            &Circumstances {
                history: self.window.history(seq),
                circuit_closed,
                successes: self.successes,
                now: self.shell.clock.now(),
                random: fastrand::f64(),
            },
        );
        if outcome.verdict == Verdict::Delivered {
            self.successes += 1;
        }
        if let (Some(error), Verdict::Failed(_)) = (&outcome.error, outcome.verdict) {
            self.note(error.clone());
        }
        if let Decision::Park { reason } = &decision {
            self.say_parked(seq, reason);
        }
        let (now, was_replay) = (Instant::now(), self.window.is_replay(seq));
        self.window.complete(seq, &decision, Some(attempt), self.successes, now);
        if let Decision::Retry { delay, .. } = decision
            && was_replay
        {
            // Its row brings it back.
            self.next_replay = Some(self.next_replay.map_or(now + delay, |due| due.min(now + delay)));
        }
    }

    /// What a request's outcomes say about the sink itself.
    fn move_circuit(&mut self, says: &Says, circuit_closed: bool) {
        let now = Instant::now();
        if says.alive {
            if self.circuit.alive() {
                tracing::info!(sink = %self.name, "{} takes events again", self.name);
                self.window.sink_is_back();
                self.ramp = Ramp::new(self.shell.settings.concurrency, self.shell.settings.ramps);
            } else {
                self.ramp.got_through();
            }
        } else if circuit_closed && !self.circuit.is_closed() {
            // It began before the circuit opened and says nothing of the probe that may be under way.
        } else if let Some(error) = &says.failed {
            let failed = if says.denied { Circuit::denied } else { Circuit::failed };
            let opened = failed(&mut self.circuit, now, says.left_alone);
            if opened && says.denied {
                tracing::error!(sink = %self.name, error = %error, "{} refuses us, nothing is delivered until that is mended: {error}", self.name);
            } else if opened {
                tracing::warn!(sink = %self.name, error = %error, "{} does not take events, waiting and probing: {error}", self.name);
            }
        } else if says.withheld && !circuit_closed {
            // Nobody was asked, and this one is still there: asking at once would come to it again.
            self.circuit.inconclusive(now);
        } else if says.nobody_asked && !circuit_closed {
            // No request could be made: nobody was asked, and somebody else is.
            self.circuit.unspent(now);
        }
    }
}
