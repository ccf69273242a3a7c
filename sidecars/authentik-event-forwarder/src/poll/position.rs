//! How far Authentik's events have been read, as the journal remembers it: recorded in the commit that stores what was read.

use std::time::Duration;

use kit::clock::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Clocks of several servers of one Authentik differ by so much, and nothing is wrong.
const SKEW_MILLIS: i64 = 10_000;
/// How far is read again when a clock was ahead, and this process does not know until when all has been read.
const DOUBT_MILLIS: i64 = 24 * 60 * 60 * 1000;

/// What the journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Progress {
    /// Events have been read.
    Read(Position),
    /// None has been yet: Authentik has not answered since this.
    Started {
        /// When the daemon was first started, by its own clock.
        started: Timestamp,
    },
}

impl Progress {
    pub(super) fn read(stored: &[u8]) -> Option<Self> {
        serde_json::from_slice(stored).ok()
    }

    pub(super) fn to_stored(self) -> Vec<u8> {
        serde_json::to_vec(&self).unwrap_or_default()
    }
}

/// How far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Every event up to here that could be seen has been taken.
    pub(super) watermark: Timestamp,
    /// Nothing before this is ever taken: it happened before the first start.
    pub(super) origin: Timestamp,
}

/// A position that is not in the future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timely {
    pub(super) position: Position,
    /// It was in the future, by more than clocks differ.
    pub(super) is_corrected: bool,
}

impl Position {
    /// Name of the value in the journal.
    pub(super) fn name(authentik: &str) -> String {
        format!("authentik.poll.{authentik}")
    }

    /// From there on.
    pub(super) fn since(time: Timestamp) -> Self {
        Self { watermark: time, origin: time }
    }

    /// From the first start on, however long after it Authentik first answers: after the `newest` event that there is
    /// then, or from an `overlap` before the start, whichever is earlier. The clocks of both need not agree to the second.
    pub(super) fn from_now_on(started: Timestamp, newest: Option<Timestamp>, overlap: Duration) -> Self {
        // Where there is nothing yet, everything is to come.
        newest.map_or(Self::since(Timestamp::default()), |newest| {
            Self::since(newest.plus_millis(1).min(started.plus_millis(-millis(overlap))))
        })
    }

    /// Further on, up to `newest`. A time that has not come there yet – another server's clock is ahead – would have events
    /// of the time between passed by.
    pub(super) fn advanced(self, newest: Timestamp, now: Timestamp) -> Self {
        Self { watermark: self.watermark.max(newest.min(now)), ..self }
    }

    /// The position as it may be at `latest`. One that lies after it was taken from a clock that was ahead, and events since
    /// then lie before it: it goes back to what is `covered` for certain.
    pub(super) fn timely(self, latest: Timestamp, covered: Option<Timestamp>) -> Timely {
        let ahead = self.watermark.max(self.origin);
        if ahead <= latest.plus_millis(SKEW_MILLIS) {
            return Timely { position: Self { watermark: self.watermark.min(latest), ..self }, is_corrected: false };
        }
        let back = covered.unwrap_or(latest.plus_millis(-DOUBT_MILLIS)).min(latest);
        let position = Self { watermark: self.watermark.min(back), origin: self.origin.min(back) };
        Timely { position, is_corrected: true }
    }

    /// What happened before this need not be read again: an `overlap` before that up to which all has been read, be that by
    /// the newest event or because a look found no newer one.
    pub(super) fn floor(self, covered: Option<Timestamp>, overlap: Duration) -> Timestamp {
        let complete = covered.map_or(self.watermark, |covered| self.watermark.max(covered));
        complete.plus_millis(-millis(overlap)).max(self.origin)
    }
}

/// That a look has read everything there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Covered {
    /// The time at Authentik then.
    pub(super) time: Timestamp,
    /// When that was, whatever has become of clocks since.
    pub(super) at: Instant,
}

impl Covered {
    /// Up to which time that is, at a moment when it is `now` at Authentik. A clock that was put back gave later times to
    /// what was read, one that was put forward gives later times to what was not: the earlier one holds for both.
    pub(super) fn by(self, now: Timestamp, moment: Instant) -> Timestamp {
        self.time.min(now.plus_millis(-millis(moment.saturating_duration_since(self.at))))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OVERLAP: Duration = Duration::from_secs(300);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn it_survives_its_text_and_nothing_else_does() {
        let position = Position { watermark: at(1_700_000_000), origin: at(1_600_000_000) };
        for progress in [Progress::Read(position), Progress::Started { started: at(1_700_000_000) }] {
            assert_eq!(Progress::read(&progress.to_stored()).unwrap(), progress);
        }
        assert!(Progress::read(b"").is_none() && Progress::read(b"{}").is_none());
    }

    #[test]
    fn it_goes_on_only_and_never_into_the_future() {
        let position = Position::since(at(100));
        assert_eq!(position.advanced(at(90), at(200)).watermark, at(100));
        assert_eq!(position.advanced(at(150), at(200)).watermark, at(150));
        assert_eq!(position.advanced(at(3_700), at(200)), Position { watermark: at(200), origin: at(100) });
    }

    #[test]
    fn what_a_clock_that_was_ahead_has_left_is_taken_back() {
        let check = |watermark, latest, covered: Option<i64>, expected, is_corrected| {
            let position = Position { watermark: at(watermark), origin: at(100) };
            let timely = position.timely(at(latest), covered.map(at));
            assert_eq!(
                timely,
                Timely { position: Position { watermark: at(expected), origin: at(100) }, is_corrected }
            );
        };
        check(500_000, 500_000, None, 500_000, false);
        // Another server of the same Authentik.
        check(500_009, 500_000, Some(400_000), 500_000, false);
        // The last look was a minute ago, whatever the clock says.
        check(503_600, 500_000, Some(499_940), 499_940, true);
        check(503_600, 500_000, None, 500_000 - 86_400, true);
        let position = Position::since(at(503_600));
        assert_eq!(position.timely(at(500_000), Some(at(499_940))).position, Position::since(at(499_940)));
    }

    #[test]
    fn now_is_the_first_start_and_not_the_first_answer() {
        let origin = |newest: Option<i64>| Position::from_now_on(at(10_000), newest.map(at), OVERLAP).origin;
        assert_eq!(origin(Some(5)), at(5).plus_millis(1));
        assert_eq!(origin(Some(9_900)), at(9_700));
        assert_eq!(origin(Some(13_600)), at(9_700), "Authentik answered an hour after the start");
        assert_eq!(origin(None), at(0));
    }

    #[test]
    fn what_an_idle_look_has_covered_is_not_read_again() {
        let position = Position { watermark: at(10_000), origin: at(0) };
        assert_eq!(position.floor(None, OVERLAP), at(9_700));
        assert_eq!(position.floor(Some(at(9_000)), OVERLAP), at(9_700));
        assert_eq!(position.floor(Some(at(10_200)), OVERLAP), at(9_900));
        assert_eq!(Position::since(at(10_000)).floor(None, OVERLAP), at(10_000));
    }

    #[test]
    fn what_was_covered_holds_whichever_way_the_clock_is_put() {
        let begun = Instant::now();
        let covered = Covered { time: at(10_000), at: begun };
        let by = |now| covered.by(at(now), begun + Duration::from_secs(20));
        assert_eq!(by(10_020), at(10_000));
        assert_eq!(by(13_620), at(10_000), "put forward");
        assert_eq!(by(6_420), at(6_400), "put back");
    }
}
