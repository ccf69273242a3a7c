//! Which closed runs are asked for next, and how far that has come. Values in, decisions out: no clock, no I/O.
//!
//! Rows of closed runs do not appear in the order of their close times, so every sweep looks back over an overlap, and now
//! and then over a wide one. Only the server's own times are compared with each other; ours says nothing but how much time
//! has passed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A time by the server's clock: microseconds since 1970, as its visibility store keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ServerTime(pub(crate) i64);

impl ServerTime {
    fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    pub(crate) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The next time that there is.
    pub(crate) fn after(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// How long after `earlier` this is; nothing where it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// How sweeps are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two sweeps while nothing closes.
    pub(crate) idle: Duration,
    /// Between two sweeps after something has closed.
    pub(crate) busy: Duration,
    /// How far every sweep looks back.
    pub(crate) overlap: Duration,
    /// How far a wide sweep looks back.
    pub(crate) wide_overlap: Duration,
    /// Between two wide sweeps.
    pub(crate) wide: Duration,
    /// A longer time that is behind is swept in slices of this length, so that the position moves on. Each slice in which
    /// nothing has closed doubles the next.
    pub(crate) slice: Duration,
}

/// How long to wait after so many failures in a row, before jitter.
pub(crate) fn backoff(failures: u32) -> Duration {
    (FIRST_BACKOFF * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(LONGEST_BACKOFF)
}

/// After how much quiet the pace is the idle one again.
const STAYS_BUSY: Duration = Duration::from_secs(30);
/// Wait after a failed sweep: the first, and the longest.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// Between two slices of a time that is behind: visibility is limited to 10 questions a second and namespace.
const BETWEEN_SLICES: Duration = Duration::from_millis(200);

/// What is remembered across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// What closed before is nobody's business: observing began here.
    pub(crate) floor: ServerTime,
    /// Everything that closed up to here was swept once; what became visible late is in the overlap.
    pub(crate) covered: ServerTime,
}

impl Position {
    /// Observing begins here.
    pub(crate) fn beginning(at: ServerTime) -> Self {
        Self { floor: at, covered: at }
    }
}

/// One sweep: closed runs from `earliest` up to `latest`, or up to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) earliest: ServerTime,
    pub(crate) latest: Option<ServerTime>,
    pub(crate) is_wide: bool,
    /// The server's time when it begins, at least.
    begins: ServerTime,
}

/// The sweeps of one namespace.
#[derive(Debug)]
pub(crate) struct Sweep {
    pace: Pace,
    position: Position,
    /// A time that the server's clock has passed, and when that was known, by ours.
    known: (ServerTime, Duration),
    /// When the next wide sweep is due, by our clock.
    next_wide: Duration,
    last_activity: Option<Duration>,
    failures: u32,
    /// Slices in a row in which nothing has closed.
    empty_slices: u32,
    /// What our own clock shows. Nothing beyond it is believed: a server's clock that was ahead and is set right would
    /// leave out whatever closes until it has come there again.
    wall: ServerTime,
}

impl Sweep {
    /// Begins at a position; `newest` is the close time of the newest closed run, if there is one. The first sweep is
    /// a wide one. `now` is time since some fixed moment, by a clock that never jumps.
    pub(crate) fn new(pace: Pace, position: Position, newest: Option<ServerTime>, now: Duration) -> Self {
        let known = newest.map_or(position.covered, |newest| newest.max(position.covered));
        Self {
            pace,
            position,
            known: (known, now),
            next_wide: now,
            last_activity: None,
            failures: 0,
            empty_slices: 0,
            wall: ServerTime(i64::MAX),
        }
    }

    /// Our own clock shows this; called before every look.
    pub(crate) fn set_wall(&mut self, wall: ServerTime) {
        self.wall = wall;
    }

    /// How far it has come, as far as that can be.
    fn reached(&self) -> Position {
        let Position { floor, covered } = self.position;
        Position { floor: floor.min(self.wall), covered: covered.min(self.wall) }
    }

    /// How far it has come.
    #[cfg(test)]
    fn position(&self) -> Position {
        self.position
    }

    fn slice(&self) -> Duration {
        self.pace.slice.saturating_mul(2_u32.saturating_pow(self.empty_slices))
    }

    /// What the server's clock shows, at least.
    fn server_now(&self, now: Duration) -> ServerTime {
        self.known.0.plus(now.saturating_sub(self.known.1)).min(self.wall)
    }

    /// A run closed at this time, so the server's clock has passed it. How far that is ahead of ours.
    pub(crate) fn seen(&mut self, closed: ServerTime, now: Duration) -> Duration {
        let ahead = closed.since(self.wall);
        let closed = closed.min(self.wall);
        if closed > self.server_now(now) {
            self.known = (closed, now);
        }
        ahead
    }

    /// Something was found that was not known.
    pub(crate) fn found(&mut self, now: Duration) {
        self.last_activity = Some(now);
    }

    /// The next sweep.
    pub(crate) fn plan(&self, now: Duration) -> Window {
        let is_wide = now >= self.next_wide;
        let begins = self.server_now(now);
        let Position { floor, covered } = self.reached();
        let overlap = if is_wide { self.pace.wide_overlap.max(self.pace.overlap) } else { self.pace.overlap };
        let slice = self.slice();
        // Only up to what the server's clock has passed for certain: later runs would be left out.
        let latest = (begins.since(covered) > slice).then(|| covered.plus(slice));
        Window { earliest: floor.max(covered.minus(overlap)), latest, is_wide, begins }
    }

    /// Everything in the window is in the journal, and `newest` is the newest close time in it. Returns the position to
    /// remember.
    pub(crate) fn done(&mut self, window: Window, newest: Option<ServerTime>, now: Duration) -> Position {
        self.failures = 0;
        self.position = self.after(window, newest);
        self.empty_slices = match (window.latest, newest) {
            (Some(_), None) => self.empty_slices.saturating_add(1),
            _ => 0,
        };
        if window.is_wide {
            // What is behind is swept whole, slice by slice; the overlap was part of the first.
            self.next_wide = now + self.pace.wide;
        }
        self.position
    }

    /// The position that [`Self::done`] would come to.
    pub(crate) fn after(&self, window: Window, newest: Option<ServerTime>) -> Position {
        let swept = window.latest.unwrap_or_else(|| newest.map_or(window.begins, |newest| newest.max(window.begins)));
        let Position { floor, covered } = self.reached();
        Position { floor, covered: covered.max(swept.min(self.wall)) }
    }

    /// The sweep failed; the next one is the same again.
    pub(crate) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How long to wait until the next sweep, at least.
    pub(crate) fn wait(&self, now: Duration) -> Duration {
        if self.failures > 0 {
            return backoff(self.failures);
        }
        if self.server_now(now).since(self.reached().covered) > self.pace.slice {
            return BETWEEN_SLICES;
        }
        let busy = self.last_activity.is_some_and(|at| now.saturating_sub(at) < STAYS_BUSY);
        if busy { self.pace.busy } else { self.pace.idle }
    }

    /// How many sweeps in a row have failed.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace() -> Pace {
        Pace {
            idle: Duration::from_millis(2500),
            busy: SECOND,
            overlap: 60 * SECOND,
            wide_overlap: 3600 * SECOND,
            wide: 3600 * SECOND,
            slice: 3600 * SECOND,
        }
    }

    fn at(seconds: i64) -> ServerTime {
        ServerTime(seconds * 1_000_000)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Begun at 100,000 s with one wide sweep behind it.
    fn begun() -> Sweep {
        let mut sweep = Sweep::new(pace(), Position::beginning(at(100_000)), Some(at(100_000)), secs(0));
        let first = sweep.plan(secs(0));
        assert!(first.is_wide && first.earliest == at(100_000), "{first:?}");
        sweep.done(first, None, secs(0));
        sweep
    }

    #[test]
    fn a_sweep_looks_back_over_what_may_appear_late_and_never_before_the_beginning() {
        let mut sweep = begun();
        assert_eq!(sweep.plan(secs(10)).earliest, at(100_000), "not before the beginning");

        let window = sweep.plan(secs(200));
        sweep.seen(at(100_500), secs(200));
        sweep.done(window, Some(at(100_500)), secs(200));

        assert_eq!(sweep.plan(secs(201)).earliest, at(100_440));
    }

    #[test]
    fn quiet_moves_the_window_on_by_the_time_that_has_passed() {
        let mut sweep = begun();
        for second in 1..=100 {
            let window = sweep.plan(secs(second * 10));
            sweep.done(window, None, secs(second * 10));
        }

        let window = sweep.plan(secs(1001));
        assert_eq!((window.earliest, window.latest), (at(100_940), None));
    }

    #[test]
    fn what_could_not_be_swept_is_swept_later() {
        let mut sweep = begun();
        for _ in 0..5 {
            sweep.failed();
        }

        assert_eq!(sweep.plan(secs(900)).earliest, at(100_000), "an outage moves nothing on");
        assert_eq!(sweep.wait(secs(900)), secs(16));
        sweep.done(sweep.plan(secs(900)), None, secs(900));
        assert_eq!((sweep.failures(), sweep.position().covered), (0, at(100_900)));
    }

    #[test]
    fn the_wide_sweep_comes_at_the_start_and_every_hour() {
        let mut sweep = Sweep::new(pace(), Position { floor: at(0), covered: at(100_000) }, None, secs(5));
        let first = sweep.plan(secs(5));
        assert_eq!((first.is_wide, first.earliest), (true, at(96_400)));
        sweep.done(first, None, secs(5));

        assert!(!sweep.plan(secs(3604)).is_wide);
        let second = sweep.plan(secs(3605));
        assert!(second.is_wide && second.earliest == at(96_400), "{second:?}");
    }

    #[test]
    fn a_long_time_away_is_swept_in_slices_that_each_move_the_position() {
        let mut sweep = Sweep::new(pace(), Position { floor: at(0), covered: at(100_000) }, Some(at(110_000)), secs(0));
        let mut windows = Vec::new();
        loop {
            let window = sweep.plan(secs(0));
            windows.push((window.earliest, window.latest));
            sweep.done(window, Some(window.latest.unwrap_or(at(110_000))), secs(0));
            if window.latest.is_none() {
                break;
            }
            assert!(windows.len() < 3, "{windows:?}");
        }

        let slices = [(at(96_400), Some(at(103_600))), (at(103_540), Some(at(107_200))), (at(107_140), None)];
        assert_eq!(windows, slices);
        assert_eq!(sweep.position().covered, at(110_000));
    }

    /// Six years without an end are two dozen questions.
    #[test]
    fn a_long_time_without_any_end_is_swept_in_ever_longer_slices() {
        let years = 6 * 366 * 86_400;
        let mut sweep = Sweep::new(pace(), Position::beginning(at(0)), Some(at(years)), secs(0));
        let mut covered = Vec::new();
        while covered.last() != Some(&at(years)) {
            let window = sweep.plan(secs(0));
            assert!(window.latest.is_none_or(|latest| latest < at(years)), "{window:?}");
            sweep.done(window, window.latest.is_none().then(|| at(years)), secs(0));
            covered.push(sweep.position().covered);
            assert!(covered.is_sorted() && covered.len() < 24, "{covered:?}");
        }
    }

    /// A clock of ours that is wrong by days changes nothing: only the server's times are compared.
    #[test]
    fn a_run_that_closes_after_a_long_quiet_is_no_reason_to_look_at_the_quiet_again() {
        let mut sweep = Sweep::new(pace(), Position::beginning(at(0)), Some(at(0)), secs(0));
        let window = sweep.plan(secs(1));
        // The server's clock is far ahead of what was known of it.
        sweep.seen(at(900_000), secs(1));
        sweep.done(window, Some(at(900_000)), secs(1));

        let next = sweep.plan(secs(2));
        assert_eq!((next.earliest, next.latest), (at(899_940), None));
    }

    /// A run that closed by a clock ten days ahead; then the clock is set right.
    #[test]
    fn a_clock_of_the_server_that_was_ahead_leaves_nothing_out() {
        let mut sweep = begun();
        sweep.set_wall(at(100_010));
        let window = sweep.plan(secs(10));
        assert_eq!(sweep.seen(at(964_000), secs(10)), secs(863_990));
        let position = sweep.done(window, Some(at(964_000)), secs(10));
        assert!(position.covered <= at(100_010), "{position:?}");
        sweep.set_wall(at(100_020));
        assert!(sweep.plan(secs(20)).earliest <= at(100_020));

        // Remembered by a version that believed it, or by a clock of ours that was wrong too.
        let remembered = Position { floor: at(964_000), covered: at(964_000) };
        let mut sweep = Sweep::new(pace(), remembered, Some(at(964_000)), secs(0));
        sweep.set_wall(at(200_000));
        let window = sweep.plan(secs(0));
        assert!(window.earliest <= at(200_000) && window.latest.is_none(), "{window:?}");
        sweep.done(window, None, secs(0));
        sweep.set_wall(at(200_100));
        assert_eq!(sweep.plan(secs(100)).earliest, at(200_000), "and after it, never before where it begins");
        assert!(sweep.position().covered <= at(200_000));
    }

    #[test]
    fn the_pace_is_quicker_while_runs_close() {
        let mut sweep = begun();
        assert_eq!(sweep.wait(secs(1)), pace().idle);
        sweep.found(secs(1));
        assert_eq!(sweep.wait(secs(20)), SECOND);
        assert_eq!(sweep.wait(secs(40)), pace().idle);
    }

    #[test]
    fn waiting_after_failures_has_an_end() {
        let mut sweep = begun();
        for _ in 0..200 {
            sweep.failed();
        }
        assert_eq!(sweep.wait(secs(1)), LONGEST_BACKOFF);
    }
}
