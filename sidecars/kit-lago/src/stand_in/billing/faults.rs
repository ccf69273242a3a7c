//! What goes wrong, and when: set by the test at any time, drawn from a seed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// Everything that is out of order with the stand-in. The default is a Lago in good health.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// What chances and latencies are drawn from.
    pub seed: u64,
    /// How long each request keeps a thread before anything else happens.
    pub latency: Latency,
    /// It is just coming up, from the moment these faults are set. What goes wrong beside that begins with the first
    /// request it answers.
    pub slow_start: Option<SlowStart>,
    /// Looked at in turn for each request; the first that applies decides.
    pub rules: Vec<Fault>,
    /// Every request with an event of one of these transaction ids is a 500 that does nothing.
    pub poisoned_transaction_ids: BTreeSet<String>,
    /// `current_usage` is refused with 405, as if the subscription had just ended.
    pub no_active_subscription: bool,
    /// `GET /health` answers 500, as it does without database.
    pub unhealthy: bool,
    /// How long stored events take to show in `current_usage`: post-processing is asynchronous.
    pub usage_lag: Duration,
    /// Requests answered at the same time, the others wait; `None` is what the version does.
    pub threads: Option<usize>,
    /// What v1.16.0 answers to a batch it stored in part, 422 or 500: neither has `error_details`.
    pub torn_batch_status: u16,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            seed: 0,
            latency: Latency::None,
            slow_start: None,
            rules: Vec::new(),
            poisoned_transaction_ids: BTreeSet::new(),
            no_active_subscription: false,
            unhealthy: false,
            usage_lag: Duration::ZERO,
            threads: None,
            torn_batch_status: 422,
        }
    }
}

impl Faults {
    /// Nothing but this fault, at the event endpoints.
    pub fn just(effect: Effect, when: When) -> Self {
        Self { rules: vec![Fault::new(effect, when)], ..Self::default() }
    }
}

/// How a Lago comes up that was started a moment ago: Rails boots while its port is open, the proxy answers in its place,
/// and its first answers wait for connections and caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// For so long requests are taken and not answered; what the client has not given up by then goes on as if it came then.
    pub silent: Duration,
    /// After that, for so long …
    pub refusing: Duration,
    /// … this is the answer, as a proxy gives it: 502 or 503.
    pub status: u16,
    /// So many requests after that are answered slowly …
    pub slow_requests: u64,
    /// … the first one after so long, the further ones sooner and sooner.
    pub slowest: Duration,
}

/// How long a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Latency {
    /// As long as it takes.
    #[default]
    None,
    /// That long in addition.
    Fixed(Duration),
    /// Anything from the first to the second in addition.
    Between(Duration, Duration),
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// What.
    pub effect: Effect,
    /// When.
    pub when: When,
    /// Where.
    pub on: On,
}

impl Fault {
    /// A fault of the event endpoints.
    pub fn new(effect: Effect, when: When) -> Self {
        Self { effect, when, on: On::Ingestion }
    }

    /// The same fault elsewhere.
    pub fn on(self, on: On) -> Self {
        Self { on, ..self }
    }
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// This status, and nothing is done: 401 and 403 in Lago's shape, 500 in Rails', 502 to 504 as
    /// a proxy's page.
    Answer(u16),
    /// This status with a page of HTML, as of a proxy or of a port that is not Lago's, and nothing is done.
    Page(u16),
    /// 429 with the headers of Lago Cloud, and nothing is done.
    TooManyRequests {
        /// `X-RateLimit-Limit`.
        limit: u32,
        /// `X-RateLimit-Reset`, seconds left.
        reset_seconds: u32,
    },
    /// The connection is reset, and nothing is done.
    Reset,
    /// It is done, and the connection is closed without an answer.
    DoneThenClosed,
    /// It is done, and the answer is this status.
    DoneThenAnswer(u16),
    /// It is done, and no answer comes until the client gives up.
    DoneThenSilent,
    /// Entries of a list are on another page by now: this one has none of them, and says how many there are.
    Shifted,
}

/// To which requests a fault happens, of those it concerns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// All.
    Always,
    /// Each with this probability, from 0 to 1.
    Chance(f64),
    /// So many, from now on.
    Next(u64),
    /// Only this one, counted from 1 and from now on.
    Nth(u64),
}

/// Which requests a fault concerns. `GET /health` is outside of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum On {
    /// `POST` of events, single or in batches.
    #[default]
    Ingestion,
    /// `POST`, `PUT`, `PATCH` and `DELETE` of the catalogue: metrics, plans and the like.
    Managing,
    /// Everything else under `/api/v1`.
    Reading,
    /// All of `/api/v1`.
    Everything,
}

/// What a request asks for, as far as faults tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Ingestion,
    Managing,
    Reading,
}

/// The faults in force, with what was used up of them.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) faults: Faults,
    rng: Rng,
    since: Instant,
    /// Requests answered since it refuses none any more.
    answered: u64,
    /// How many requests each rule has concerned.
    concerned: Vec<u64>,
}

/// What was drawn for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drawn {
    pub(super) pause: Duration,
    pub(super) effect: Option<Effect>,
}

impl InForce {
    pub(super) fn new(faults: Faults) -> Self {
        let rng = Rng::with_seed(faults.seed);
        let concerned = vec![0; faults.rules.len()];
        Self { faults, rng, since: Instant::now(), answered: 0, concerned }
    }

    /// How long a request that came just now is left without any answer, because Lago is only coming up.
    pub(super) fn silent_for(&self) -> Duration {
        let silent = self.faults.slow_start.map_or(Duration::ZERO, |start| start.silent);
        silent.saturating_sub(self.since.elapsed())
    }

    /// Decides about one request.
    pub(super) fn draw(&mut self, what: Asked) -> Drawn {
        let mut warming = Duration::ZERO;
        if let Some(start) = self.faults.slow_start {
            if self.since.elapsed() < start.silent + start.refusing {
                return Drawn { pause: Duration::ZERO, effect: Some(Effect::Answer(start.status)) };
            }
            let left = start.slow_requests.saturating_sub(self.answered);
            self.answered += 1;
            if left > 0 {
                let share = |of: u64| u32::try_from(of).unwrap_or(u32::MAX);
                warming = start.slowest * share(left) / share(start.slow_requests);
            }
        }
        let latency = match self.faults.latency {
            Latency::None => Duration::ZERO,
            Latency::Fixed(pause) => pause,
            Latency::Between(least, most) => least + most.saturating_sub(least).mul_f64(self.rng.f64()),
        };
        let pause = warming + latency;
        for (rule, concerned) in self.faults.rules.iter().zip(&mut self.concerned) {
            let concerns = match rule.on {
                On::Ingestion => what == Asked::Ingestion,
                On::Managing => what == Asked::Managing,
                On::Reading => what == Asked::Reading,
                On::Everything => true,
            };
            if !concerns {
                continue;
            }
            *concerned += 1;
            let happens = match rule.when {
                When::Always => true,
                When::Chance(probability) => self.rng.f64() < probability,
                When::Next(count) => *concerned <= count,
                When::Nth(number) => *concerned == number,
            };
            if happens {
                return Drawn { pause, effect: Some(rule.effect) };
            }
        }
        Drawn { pause, effect: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(faults: Faults, count: usize) -> Vec<bool> {
        let mut in_force = InForce::new(faults);
        (0..count).map(|_| in_force.draw(Asked::Ingestion).effect.is_some()).collect()
    }

    #[test]
    fn countdowns_are_exact_and_chances_repeat_with_their_seed() {
        let effect = Effect::Answer(500);

        assert_eq!(draws(Faults::just(effect, When::Next(2)), 4), [true, true, false, false]);
        assert_eq!(draws(Faults::just(effect, When::Nth(3)), 4), [false, false, true, false]);
        let chance = |seed| draws(Faults { seed, ..Faults::just(effect, When::Chance(0.5)) }, 200);
        assert_eq!(chance(7), chance(7));
        assert_ne!(chance(7), chance(8));
        let hits = chance(7).into_iter().filter(|hit| *hit).count();
        assert!((60..140).contains(&hits), "{hits}");
    }

    #[test]
    fn a_fault_concerns_its_own_requests_and_the_first_of_several_decides() {
        let rules = vec![
            Fault::new(Effect::Answer(503), When::Next(1)).on(On::Reading),
            Fault::new(Effect::Reset, When::Next(1)).on(On::Everything),
        ];
        let mut in_force = InForce::new(Faults { rules, ..Faults::default() });

        assert_eq!(in_force.draw(Asked::Reading).effect, Some(Effect::Answer(503)));
        assert_eq!(in_force.draw(Asked::Ingestion).effect, Some(Effect::Reset));
        assert_eq!(in_force.draw(Asked::Reading).effect, None);
    }

    #[test]
    fn latency_stays_within_its_bounds() {
        let (least, most) = (Duration::from_millis(5), Duration::from_millis(9));
        let mut in_force = InForce::new(Faults { latency: Latency::Between(least, most), ..Faults::default() });

        assert!((0..100).all(|_| (least..=most).contains(&in_force.draw(Asked::Ingestion).pause)));
    }
}
