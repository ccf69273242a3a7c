//! The journal's own time, by which keys are forgotten and delivered bodies go.
//!
//! It runs as fast as the monotonic clock while the journal is open, and for the time that it was
//! closed takes the wall clock's word for a day at most. A wall clock that jumps for years can so
//! make nothing look old; see `docs/adr/0010-journal-time.md`.

use std::time::{Duration, Instant};

use kit::clock::Timestamp;

/// The most that the time between two openings counts.
const CLOSED_MILLIS: i64 = 86_400_000;
/// A crash loses at most this much of the journal's time, and an idle journal is written this often.
const SAVE_EVERY: Duration = Duration::from_secs(600);

/// The journal's own time while it is open.
#[derive(Debug)]
pub(crate) struct Age {
    at_open: Timestamp,
    opened: Instant,
    saved: Option<Timestamp>,
}

impl Age {
    /// Name of the value in the journal.
    pub(crate) const NAME: &'static str = "journal.time";

    /// Goes on from what is `stored`: the journal's time and the wall clock when that was saved. Without
    /// it from the newest key's stamp, and where there is no key from the wall clock.
    pub(crate) fn restore(stored: Option<&[u8]>, newest_key: Option<Timestamp>, wall: Timestamp) -> Self {
        let at_open = match stored.and_then(parse) {
            Some((age, wall_then)) => {
                // Keys are stamped more often than the time is saved: until then it was open, by this process or by
                // another replica, and that time is not counted a second time.
                let newest = age.max(newest_key.unwrap_or(age));
                let open = newest.as_millis().saturating_sub(age.as_millis());
                let since = wall.as_millis().saturating_sub(wall_then.as_millis());
                newest.plus_millis(since.saturating_sub(open).clamp(0, CLOSED_MILLIS))
            }
            None => newest_key.unwrap_or(wall),
        };
        Self { at_open, opened: Instant::now(), saved: None }
    }

    /// The journal's time in what is stored.
    pub(crate) fn stored(stored: &[u8]) -> Option<Timestamp> {
        parse(stored).map(|(age, _)| age)
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        self.after(self.opened.elapsed())
    }

    fn after(&self, open: Duration) -> Timestamp {
        self.at_open.plus_millis(i64::try_from(open.as_millis()).unwrap_or(i64::MAX))
    }

    /// What to store with the next commit, if it is time to.
    ///
    /// The first commit of all stores it: what was counted for the time before must not be counted
    /// again.
    pub(crate) fn due(&self, now: Timestamp, wall: Timestamp) -> Option<Vec<u8>> {
        let due = self.saved.is_none_or(|saved| now.since(saved) >= SAVE_EVERY);
        due.then(|| [now.as_millis().to_le_bytes(), wall.as_millis().to_le_bytes()].concat())
    }

    /// It was stored.
    pub(crate) fn saved(&mut self, now: Timestamp) {
        self.saved = Some(now);
    }
}

fn parse(stored: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (age, wall) = stored.split_first_chunk::<8>()?;
    let wall: [u8; 8] = wall.try_into().ok()?;
    Some((Timestamp::from_millis(i64::from_le_bytes(*age)), Timestamp::from_millis(i64::from_le_bytes(wall))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DAY: i64 = 86_400_000;
    const YEAR: i64 = 365 * DAY;
    const NOW: i64 = 1_790_000_000_000;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn the_time_between_two_openings_counts_for_a_day_at_most() {
        let before = Age::restore(None, None, at(NOW));
        let stored = before.due(at(NOW), at(NOW)).unwrap();
        let check = |wall: i64, expected: i64| {
            let age = Age::restore(Some(&stored), None, at(wall));
            assert_eq!(age.at_open, at(NOW + expected), "{wall}");
        };
        check(NOW, 0);
        check(NOW + DAY / 2, DAY / 2);
        check(NOW + 30 * DAY, DAY);
        check(NOW + 10 * YEAR, DAY);
        check(NOW - 1, 0);
        check(NOW - 10 * YEAR, 0);
        check(0, 0);
        check(i64::MIN, 0);
        check(i64::MAX, DAY);
    }

    #[test]
    fn a_jump_counts_once_and_not_at_every_start() {
        let mut stored = None;
        let mut ages = Vec::new();
        // Started again and again after a jump.
        for wall in [NOW, NOW + 10 * YEAR, NOW + 10 * YEAR, NOW + 10 * YEAR] {
            let age = Age::restore(stored.as_deref(), None, at(wall));
            ages.push(age.at_open.as_millis() - NOW);
            stored = age.due(age.at_open, at(wall));
        }
        assert_eq!(ages, [0, DAY, DAY, DAY]);
    }

    #[test]
    fn it_never_goes_behind_a_key() {
        let stored = Age::restore(None, None, at(NOW)).due(at(NOW), at(NOW)).unwrap();
        for (stored, newest, wall, expected) in [
            (Some(stored.as_slice()), Some(NOW + 500), NOW + 500, NOW + 500),
            (Some(&stored), Some(NOW + 500), NOW + 700, NOW + 700),
            // Stamped by a clock that has been set back since.
            (Some(&stored), Some(NOW + 500), NOW + 100, NOW + 500),
            (Some(&stored), Some(NOW - 500), NOW, NOW),
            (Some(b"garbage"), Some(NOW - 500), NOW + YEAR, NOW - 500),
            (None, Some(NOW), NOW - YEAR, NOW),
            (None, None, 0, 0),
        ] {
            let age = Age::restore(stored, newest.map(at), at(wall));
            assert_eq!(age.at_open, at(expected), "{newest:?} {wall}");
        }
    }

    /// As replicas do that share a journal and a clock: the time that one of them has stamped is not counted again by
    /// each that starts.
    #[test]
    fn starting_beside_a_replica_that_runs_costs_no_time() {
        let running = Age::restore(None, None, at(NOW));
        let mut stored = running.due(at(NOW), at(NOW));
        let mut newest = at(NOW);
        for minute in 1..=200 {
            let wall = at(NOW + minute * 60_000);
            // Keys of the one that runs, then another one starts, stamps one and saves its time at times.
            newest = newest.max(running.after(wall.since(at(NOW))));
            let started = Age::restore(stored.as_deref(), Some(newest), wall);
            newest = newest.max(started.at_open);
            if minute % 7 == 0 {
                stored = started.due(started.at_open, wall);
            }
            assert_eq!(started.at_open, wall, "after {minute} minutes");
        }
    }

    #[test]
    fn it_runs_with_the_monotonic_clock_and_is_stored_now_and_then() {
        let mut age = Age::restore(None, None, at(NOW));
        assert_eq!(age.after(Duration::from_secs(90)), at(NOW + 90_000));
        assert!(age.due(at(NOW), at(NOW)).is_some(), "at once");
        age.saved(at(NOW));
        let later = |millis: i64| age.due(at(NOW + millis), at(i64::MAX)).is_some();
        assert!(!later(599_999) && later(600_000));
    }
}
