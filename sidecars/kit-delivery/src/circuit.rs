//! The circuit of one sink: closed while it works, open after consecutive failures, probed with one
//! event at growing distances until one gets through, and not before the time that the sink asks for.

use std::time::{Duration, Instant};

/// May a delivery start now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// Yes.
    Go,
    /// Yes, this one, alone.
    Probe,
    /// Not before then.
    WaitUntil(Instant),
    /// Not before the probe under way has ended.
    WaitForProbe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { probe_at: Instant, delay: Duration },
    Probing { delay: Duration },
}

#[derive(Debug)]
pub(crate) struct Circuit {
    state: State,
    threshold: u32,
    first_delay: Duration,
    longest_delay: Duration,
}

impl Circuit {
    pub(crate) fn new(threshold: u32, first_delay: Duration, longest_delay: Duration) -> Self {
        Self { state: State::Closed { failures: 0 }, threshold, first_delay, longest_delay }
    }

    pub(crate) fn permit(&self, now: Instant) -> Permit {
        match self.state {
            State::Closed { .. } => Permit::Go,
            State::Open { probe_at, .. } if probe_at <= now => Permit::Probe,
            State::Open { probe_at, .. } => Permit::WaitUntil(probe_at),
            State::Probing { .. } => Permit::WaitForProbe,
        }
    }

    /// A delivery was started on [`Permit::Probe`].
    pub(crate) fn probing(&mut self) {
        if let State::Open { delay, .. } = self.state {
            self.state = State::Probing { delay };
        }
    }

    /// The sink answered: it is there. True when this closed the circuit.
    pub(crate) fn alive(&mut self) -> bool {
        let closed = !self.is_closed();
        self.state = State::Closed { failures: 0 };
        closed
    }

    /// A failure that speaks for the sink being away, with the time for which the sink asks to be left alone. True when
    /// this opened the circuit.
    pub(crate) fn failed(&mut self, now: Instant, left_alone: Duration) -> bool {
        match self.state {
            State::Closed { failures } if failures + 1 < self.threshold => {
                self.state = State::Closed { failures: failures + 1 };
                false
            }
            State::Closed { .. } => {
                self.state = State::Open { probe_at: now + self.first_delay.max(left_alone), delay: self.first_delay };
                true
            }
            // A delivery that began before the circuit opened says nothing new.
            State::Open { .. } => false,
            State::Probing { delay } => {
                let delay = (delay * 2).min(self.longest_delay);
                self.state = State::Open { probe_at: now + delay.max(left_alone), delay };
                false
            }
        }
    }

    /// The sink wants nothing of us: no need to count failures. True when this opened the circuit.
    pub(crate) fn denied(&mut self, now: Instant, left_alone: Duration) -> bool {
        if let State::Closed { failures } = &mut self.state {
            *failures = self.threshold;
        }
        self.failed(now, left_alone)
    }

    /// The probe was of an event that no request could be made of: the next one may go at once.
    pub(crate) fn unspent(&mut self, now: Instant) {
        if let State::Probing { delay } = self.state {
            self.state = State::Open { probe_at: now, delay };
        }
    }

    /// The probe ended without the sink having been asked: the next one comes after the same time again.
    pub(crate) fn inconclusive(&mut self, now: Instant) {
        if let State::Probing { delay } = self.state {
            self.state = State::Open { probe_at: now + delay, delay };
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING_ASKED: Duration = Duration::ZERO;

    fn circuit() -> Circuit {
        Circuit::new(3, Duration::from_secs(1), Duration::from_secs(60))
    }

    #[test]
    fn it_opens_on_consecutive_failures_only() {
        let now = Instant::now();
        let mut circuit = circuit();

        assert!(!circuit.failed(now, NOTHING_ASKED) && !circuit.failed(now, NOTHING_ASKED));
        assert!(!circuit.alive());
        assert!(!circuit.failed(now, NOTHING_ASKED) && !circuit.failed(now, NOTHING_ASKED));
        assert!(circuit.failed(now, NOTHING_ASKED), "the third in a row opens it");

        assert_eq!(circuit.permit(now), Permit::WaitUntil(now + Duration::from_secs(1)));
    }

    #[test]
    fn who_wants_nothing_of_us_is_asked_no_further_and_is_said_so_once() {
        let mut now = Instant::now();
        let mut circuit = circuit();
        assert!(!circuit.failed(now, NOTHING_ASKED));

        assert!(circuit.denied(now, NOTHING_ASKED), "the first refusal opens it");

        assert_eq!(circuit.permit(now), Permit::WaitUntil(now + Duration::from_secs(1)));
        assert!(!circuit.denied(now, NOTHING_ASKED), "it is open");
        now += Duration::from_secs(1);
        circuit.probing();
        assert!(!circuit.denied(now, NOTHING_ASKED), "a probe opens nothing");
        assert_eq!(circuit.permit(now), Permit::WaitUntil(now + Duration::from_secs(2)));
    }

    #[test]
    fn probes_go_alone_and_their_distance_doubles_up_to_the_longest() {
        let mut now = Instant::now();
        let mut circuit = circuit();
        for _ in 0..3 {
            circuit.failed(now, NOTHING_ASKED);
        }

        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(circuit.permit(now), Permit::WaitUntil(now + Duration::from_secs(expected)));
            now += Duration::from_secs(expected);
            assert_eq!(circuit.permit(now), Permit::Probe);
            circuit.probing();
            assert_eq!(circuit.permit(now), Permit::WaitForProbe);
            circuit.failed(now, NOTHING_ASKED);
        }
        now += Duration::from_secs(60);
        circuit.probing();
        assert!(circuit.alive());
        assert_eq!(circuit.permit(now), Permit::Go);
    }

    #[test]
    fn a_probe_that_asked_nobody_is_made_again_after_the_same_time() {
        let mut now = Instant::now();
        let mut circuit = circuit();
        circuit.failed(now, NOTHING_ASKED);
        circuit.inconclusive(now);
        assert!(
            !circuit.failed(now, NOTHING_ASKED) && circuit.failed(now, NOTHING_ASKED),
            "nothing is forgotten and nothing is added"
        );
        circuit.inconclusive(now);
        assert_eq!(circuit.permit(now), Permit::WaitUntil(now + Duration::from_secs(1)), "only a probe is made again");

        for _ in 0..3 {
            now += Duration::from_secs(1);
            circuit.probing();
            circuit.inconclusive(now);
            assert_eq!(circuit.permit(now), Permit::WaitUntil(now + Duration::from_secs(1)));
        }
    }

    #[test]
    fn a_probe_of_what_cannot_be_sent_costs_no_time() {
        let mut now = Instant::now();
        let mut circuit = circuit();
        for _ in 0..3 {
            circuit.failed(now, NOTHING_ASKED);
        }
        now += Duration::from_secs(1);
        circuit.probing();
        circuit.unspent(now);
        assert_eq!(circuit.permit(now), Permit::Probe);
        circuit.probing();
        circuit.failed(now, NOTHING_ASKED);
        assert_eq!(
            circuit.permit(now),
            Permit::WaitUntil(now + Duration::from_secs(2)),
            "the distance goes on growing"
        );
    }

    #[test]
    fn no_probe_comes_before_the_time_that_the_sink_asks_for() {
        let mut now = Instant::now();
        let mut circuit = circuit();
        let asked = Duration::from_secs(100);
        assert!(!circuit.failed(now, asked) && !circuit.failed(now, asked) && circuit.failed(now, asked));

        for asked_next in [90, 2, 0, 0] {
            let expected = if let Permit::WaitUntil(at) = circuit.permit(now) { at } else { now };
            assert_eq!(circuit.permit(expected), Permit::Probe);
            now = expected;
            circuit.probing();
            circuit.failed(now, Duration::from_secs(asked_next));
            let Permit::WaitUntil(next) = circuit.permit(now) else { panic!("{:?}", circuit.permit(now)) };
            assert!(next.duration_since(now) >= Duration::from_secs(asked_next), "{asked_next}");
        }
        assert_eq!(
            circuit.permit(now),
            Permit::WaitUntil(now + Duration::from_secs(16)),
            "its own distance has grown on"
        );
    }

    #[test]
    fn a_late_failure_does_not_move_the_probe() {
        let now = Instant::now();
        let mut circuit = circuit();
        for _ in 0..3 {
            circuit.failed(now, NOTHING_ASKED);
        }
        let before = circuit.permit(now);

        circuit.failed(now + Duration::from_millis(900), NOTHING_ASKED);

        assert_eq!(circuit.permit(now), before);
    }
}
