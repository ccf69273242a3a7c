//! Whether nothing was looked for, for longer than the server remembers what has ended. Values in, decisions out: no clock,
//! no I/O.
//!
//! What was missed cannot be found any more; all that is left is to say so. Only our own clock counts here: it is what has
//! passed while this daemon, or the way to the server, was not there.

use std::time::Duration;

use kit_temporal::LEAST_RETENTION;

use super::sweep::ServerTime;

/// How long an answer about the retention holds: it can be raised at any time.
const ANSWER_HOLDS: Duration = Duration::from_secs(600);
/// How long the metric shows what was missed: long enough that somebody sees it on the next day of work.
const SHOWN_FOR: Duration = Duration::from_secs(3 * 86_400);

/// Ends that nobody can tell of any more, if there were any: they ended between these times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    /// Everything that ended before was found.
    pub(crate) from: ServerTime,
    /// What ended after is still known to the server.
    pub(crate) until: ServerTime,
}

/// What is known about it in one namespace.
#[derive(Debug, Default)]
pub(crate) struct Gap {
    /// By our clock: all that had ended by then was found.
    caught_up: Option<ServerTime>,
    /// The retention, and when it was asked for.
    asked: Option<(Duration, Duration)>,
    /// It was told that something was missed, until everything is found again.
    told: bool,
    /// Until when the metric shows it.
    shown_until: Option<Duration>,
}

impl Gap {
    /// All that had ended by then was found, at the last start or by another replica. Known once.
    pub(crate) fn begin(&mut self, at: ServerTime) {
        self.caught_up.get_or_insert(at);
    }

    /// Everything up to now was found.
    pub(crate) fn caught_up(&mut self, wall: ServerTime) {
        self.caught_up = Some(wall);
        self.told = false;
    }

    /// Whether the server has to be asked for the namespace's retention; nobody forgets within a shorter time than the
    /// least.
    pub(crate) fn asks(&self, wall: ServerTime, now: Duration) -> bool {
        let is_long = self.caught_up.is_some_and(|at| wall.since(at) > LEAST_RETENTION);
        let is_known = self.asked.is_some_and(|(at, _)| now.saturating_sub(at) < ANSWER_HOLDS);
        is_long && !self.told && !is_known
    }

    /// So long at least is what has ended kept.
    pub(crate) fn answered(&mut self, retention: Duration, now: Duration) {
        self.asked = Some((now, retention));
    }

    /// What was missed, told once.
    pub(crate) fn missed(&mut self, wall: ServerTime, now: Duration) -> Option<Missed> {
        let (_, retention) = self.asked?;
        let missed = Missed { from: self.caught_up?, until: wall.minus(retention) };
        if self.told || missed.until <= missed.from {
            return None;
        }
        self.told = true;
        self.shown_until = Some(now + SHOWN_FOR);
        Some(missed)
    }

    /// Whether what was missed need not be shown any more.
    pub(crate) fn is_over(&mut self, now: Duration) -> bool {
        self.shown_until.take_if(|until| now >= *until).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: i64) -> ServerTime {
        ServerTime(hours * 3_600_000_000)
    }

    /// Asked and answered at once, as it is done.
    fn missed(gap: &mut Gap, wall: ServerTime, retention: Duration, now: Duration) -> Option<Missed> {
        if gap.asks(wall, now) {
            gap.answered(retention, now);
        }
        gap.missed(wall, now)
    }

    #[test]
    fn away_for_longer_than_the_retention_is_told_once_until_all_is_found_again() {
        let mut gap = Gap::default();
        gap.begin(at(100));

        assert!(!gap.asks(at(101), HOUR), "nobody forgets within an hour");
        assert_eq!(missed(&mut gap, at(123), 24 * HOUR, HOUR), None, "it is still known");
        assert_eq!(missed(&mut gap, at(124), 24 * HOUR, 2 * HOUR), None, "it is still known");
        let expected = Missed { from: at(100), until: at(106) };
        assert_eq!(missed(&mut gap, at(130), 24 * HOUR, 3 * HOUR), Some(expected));
        assert_eq!(missed(&mut gap, at(131), 24 * HOUR, 4 * HOUR), None, "it was told");
        assert!(!gap.asks(at(131), 5 * HOUR));

        gap.caught_up(at(131));
        assert_eq!(missed(&mut gap, at(154), 24 * HOUR, 6 * HOUR), None);
        let expected = Missed { from: at(131), until: at(132) };
        assert_eq!(missed(&mut gap, at(156), 24 * HOUR, 7 * HOUR), Some(expected), "away once more");
    }

    #[test]
    fn a_retention_is_asked_for_again() {
        let mut gap = Gap::default();
        gap.begin(at(0));
        gap.begin(at(50));
        gap.answered(100 * HOUR, Duration::ZERO);
        assert!(!gap.asks(at(60), ANSWER_HOLDS / 2) && gap.asks(at(60), ANSWER_HOLDS));

        gap.answered(LEAST_RETENTION, ANSWER_HOLDS);
        assert_eq!(gap.missed(at(60), ANSWER_HOLDS), Some(Missed { from: at(0), until: at(59) }));
    }

    #[test]
    fn what_was_missed_is_shown_for_days_and_not_for_ever() {
        let mut gap = Gap::default();
        gap.begin(at(0));
        assert!(!gap.is_over(1000 * HOUR));
        assert!(missed(&mut gap, at(60), HOUR, HOUR).is_some());
        assert!(!gap.is_over(72 * HOUR) && gap.is_over(73 * HOUR) && !gap.is_over(74 * HOUR));
    }
}
