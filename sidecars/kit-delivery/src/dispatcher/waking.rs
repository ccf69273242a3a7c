//! When the dispatcher's loop looks again: what the gauges are told, and how long it may rest.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::work::{ROOM_FOR_REPLAYS, Work};
use crate::circuit::Permit;
use crate::metrics::{OwnGauges, SinkGauges};

/// How often the gauges are read from the journal while there is something to deliver …
const OBSERVE_EVERY: Duration = Duration::from_secs(2);
/// … and while there is nothing.
const OBSERVE_IDLE: Duration = Duration::from_secs(60);

impl Work {
    pub(super) async fn observe(&mut self) {
        {
            let mut status = self.shell.status.lock().unwrap_or_else(PoisonError::into_inner);
            status.in_flight = self.in_flight.len();
            status.circuit = match self.circuit.permit(Instant::now()) {
                Permit::Go => "closed",
                Permit::Probe | Permit::WaitUntil(_) => "open",
                Permit::WaitForProbe => "probing",
            };
        }
        if self.next_observation > Instant::now() {
            return;
        }
        self.next_observation = Instant::now() + OBSERVE_EVERY;
        let own = OwnGauges {
            circuit_open: !self.circuit.is_closed(),
            paused: self.paused,
            stalled: self.stall.has_begun(),
            leading: self.lease.is_held(),
        };
        self.shell.metrics.set_own(&self.name, own);
        let name = self.name.clone();
        let read = self.shell.journal.read(move |reader| Ok((reader.sink(&name)?, reader.oldest_pending(&name)?)));
        let Ok((sink, oldest)) = read.await else {
            self.show_what_is_known();
            return;
        };
        // An action that this look has missed is followed by a sync before anything is loaded.
        self.rows_ahead = sink.ahead > 0;
        let tail = *self.tail.borrow();
        let now = self.shell.clock.now();
        let gauges = SinkGauges {
            accepted: sink.accepted(tail),
            delivered: sink.delivered,
            pending: sink.pending(tail),
            parked: sink.parked,
            dropped: sink.dropped,
            filtered: sink.filtered,
            oldest_seconds: oldest.map_or(0, |at| now.since(at).as_secs()),
        };
        self.oldest_pending = oldest;
        self.shell.metrics.set(&self.name, &gauges);
        self.quiet = gauges.pending == 0;
        if self.quiet {
            self.next_observation = Instant::now() + OBSERVE_IDLE;
        }
    }

    /// While the journal cannot be asked, what waits goes on waiting: with what it said last, and what came since.
    fn show_what_is_known(&self) {
        let beyond = usize::try_from(*self.tail.borrow() - self.window.cursor()).unwrap_or(0);
        let pending = (beyond + self.window.open_rows()) as u64;
        let oldest = self.oldest_pending.map(|at| self.shell.clock.now().since(at).as_secs());
        self.shell.metrics.wait_on(&self.name, pending, oldest);
    }

    /// Something happened after a quiet time: the gauges are worth reading again.
    pub(super) fn noticed(&mut self) {
        if std::mem::take(&mut self.quiet) {
            self.next_observation = Instant::now() + OBSERVE_EVERY;
        }
    }

    /// When to look again, if nothing happens. `looked` is when the last look for what may start began: what has fallen
    /// due since then was not seen.
    pub(super) fn next_wake(&self, looked: Instant) -> Instant {
        let now = Instant::now();
        let mut wake = self.next_observation.max(now + Duration::from_millis(50));
        let mut sooner = |at: Option<Instant>| {
            if let Some(at) = at {
                wake = wake.min(at);
            }
        };
        sooner(self.settle_again.as_ref().map(|(due, _)| *due));
        sooner(self.unread.looked(now));
        sooner(self.parking.due());
        sooner(self.next_replay.filter(|_| self.window.has_room_for_replays(now, ROOM_FOR_REPLAYS)));
        if let Some(until) = self.unread.held_off(now) {
            sooner(Some(until));
        } else if !self.paused && self.in_flight.len() < self.ramp.allowed() {
            let when_the_rate_allows = || {
                let second = f64::from(self.shell.settings.rate_per_second.max(1));
                self.limiter.as_ref().map(|_| now + Duration::from_secs_f64(1.0 / second))
            };
            match self.circuit.permit(looked) {
                Permit::Go => {
                    // What was due before that is started, or waits for something that wakes us.
                    sooner(self.window.next_due().filter(|due| *due > looked));
                    sooner(self.lingers_since.map(|since| since + self.batching.linger).filter(|due| *due > looked));
                    sooner(when_the_rate_allows().filter(|_| self.window.has_ready(now)));
                }
                Permit::WaitUntil(at) => sooner(Some(at)),
                Permit::Probe => {
                    let waits = self.window.has_ready(now) || self.window.next_due().is_some();
                    sooner(when_the_rate_allows().filter(|_| waits));
                    // The sink may have asked to be left alone with all that there is.
                    sooner(self.window.next_due().filter(|due| *due > looked));
                }
                Permit::WaitForProbe => {}
            }
        }
        // Never a busy loop, whatever the arithmetic above says.
        wake.max(now + Duration::from_millis(1))
    }
}
