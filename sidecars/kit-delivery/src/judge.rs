//! What becomes of a delivery after an attempt: a decision over values.
//!
//! The schedule is used up only by answers about the event itself. A sink that is away – nothing
//! answers, or a proxy answers 502, 503 or 504 in its place while the circuit is open – costs an
//! event nothing, so that it may be away for weeks. But an event that gets no answer while others do
//! is charged: otherwise one that crashes the receiver would be sent for ever. An event that its sink withholds, so that
//! nobody was asked, costs nothing however often; neither does one for which its sink had no room, as for any other.

use std::time::Duration;

use kit::clock::Timestamp;
use kit::retry::Schedule;

use crate::outcome::{Failure, Outcome, Verdict};
use crate::window::{Decision, History};

/// What the judge knows beside the outcome.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances {
    pub(crate) history: History,
    /// The circuit was closed when the attempt was made.
    pub(crate) circuit_closed: bool,
    /// The sink's successes up to now.
    pub(crate) successes: u64,
    pub(crate) now: Timestamp,
    /// A random number from 0 to 1.
    pub(crate) random: f64,
}

/// Longest wait of an event that its sink had no room for: there is room again within moments, for some.
const LONGEST_THROTTLED_WAIT: Duration = Duration::from_secs(4);
/// Longest wait after a failure that costs the event nothing.
pub(crate) const LONGEST_FREE_WAIT: Duration = Duration::from_secs(60);

pub(crate) fn decide(outcome: &Outcome, schedule: &Schedule, c: &Circumstances) -> Decision {
    let error = outcome.error.as_deref().unwrap_or("no reason given");
    let failure = match outcome.verdict {
        Verdict::Delivered => return Decision::Delivered,
        Verdict::PassedBy(how) => return Decision::PassBy { state: how.state(), reason: error.to_owned() },
        Verdict::Failed(failure) => failure,
    };
    if !failure.may_retry() {
        return Decision::Park { reason: error.to_owned() };
    }
    let asked = outcome.retry_after.unwrap_or(Duration::ZERO);
    // What the sink itself wants to know first is nobody's wish to be left alone.
    let left_alone = if failure == Failure::Withheld { Duration::ZERO } else { asked };
    if !is_charged(failure, c) {
        let doubled = Duration::from_secs(1) * 2_u32.pow(c.history.uncharged.min(6));
        let longest = if failure == Failure::Throttled { LONGEST_THROTTLED_WAIT } else { LONGEST_FREE_WAIT };
        let delay = doubled.min(longest).mul_f64(0.8 + 0.4 * c.random).max(asked);
        return retry(false, delay, left_alone, c.now, error);
    }
    let attempts = c.history.attempts + 1;
    match schedule.delay_for(attempts, c.random) {
        Some(delay) => retry(true, delay.max(asked), left_alone, c.now, error),
        None => Decision::Park { reason: format!("gave up after {attempts} attempts: {error}") },
    }
}

fn is_charged(failure: Failure, c: &Circumstances) -> bool {
    let others_got_through = c.successes > c.history.successes_seen && c.history.uncharged > 0;
    match failure {
        Failure::Denied | Failure::Throttled | Failure::Withheld => false,
        Failure::Unreachable => others_got_through,
        Failure::Unavailable => c.circuit_closed || others_got_through,
        _ => c.circuit_closed || c.history.was_due,
    }
}

fn retry(charged: bool, delay: Duration, left_alone: Duration, now: Timestamp, error: &str) -> Decision {
    let next_at = now.plus_millis(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    Decision::Retry { charged, delay, left_alone, next_at, reason: error.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_732_000_000_000);

    /// The circumstances under which any other failure is charged.
    fn charging(uncharged: u32) -> Circumstances {
        let history = History { attempts: 0, uncharged, was_due: true, successes_seen: 0 };
        Circumstances { history, circuit_closed: true, successes: 7, now: NOW, random: 0.5 }
    }

    #[test]
    fn a_sink_that_takes_no_more_at_the_moment_costs_the_event_nothing() {
        let schedule = Schedule::new(vec![Duration::from_secs(1)]);
        for uncharged in [0, 3, 9] {
            let outcome = Outcome::failed(Failure::Throttled, "too many requests");
            let decision = decide(&outcome, &schedule, &charging(uncharged));
            let is_soon = |delay: Duration| delay <= LONGEST_THROTTLED_WAIT;
            let fits = matches!(decision, Decision::Retry { charged: false, delay, .. } if is_soon(delay));
            assert!(fits, "{uncharged}: {decision:?}");
        }
    }

    #[test]
    fn what_is_withheld_is_never_charged_and_waits_as_long_as_the_sink_says() {
        let schedule = Schedule::new(vec![Duration::from_secs(1)]);
        for (uncharged, asked, expected) in [(0, 0, 1), (0, 40, 40), (3, 5, 8), (3, 40, 40), (9, 1, 60)] {
            let outcome = Outcome::withheld("not known yet", Duration::from_secs(asked));
            let decision = decide(&outcome, &schedule, &charging(uncharged));
            let delay = Duration::from_secs(expected);
            let next_at = NOW.plus_millis(i64::try_from(expected).unwrap_or_default() * 1000);
            let reason = "not known yet".to_owned();
            let left_alone = Duration::ZERO;
            let expected = Decision::Retry { charged: false, delay, left_alone, next_at, reason };
            assert_eq!(decision, expected, "{uncharged} {asked}");
        }
        let unreachable = decide(&Outcome::failed(Failure::Unreachable, ""), &schedule, &charging(1));
        assert!(matches!(unreachable, Decision::Retry { charged: true, .. }), "{unreachable:?}");
    }
}
