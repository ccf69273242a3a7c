//! One clock for all replicas: the database's. Hosts may disagree about the time by hours; what is stored, compared and
//! waited for by several of them must not.

use std::sync::atomic::{AtomicI64, Ordering};

use kit::clock::{Clock, SharedClock, Timestamp};

/// Clocks run apart all the time: less than that is no reason to move one.
const JITTER_MILLIS: i64 = 250;

/// The database's clock, told by the host's and how far that is off.
#[derive(Debug)]
pub(super) struct DatabaseClock {
    host: SharedClock,
    ahead: AtomicI64,
}

impl DatabaseClock {
    pub(super) fn new(host: SharedClock) -> Self {
        Self { host, ahead: AtomicI64::new(0) }
    }

    /// The host's time now: when a question about the database's begins.
    pub(super) fn host(&self) -> Timestamp {
        self.host.now()
    }

    /// The database has just said what time it is, and was asked at `asked` by the host's clock. It was that time at some
    /// moment between the two: an answer that was long on its way, or waited for a lock, sets no clock back.
    pub(super) fn heard(&self, database: Timestamp, asked: Timestamp) {
        let ahead = |host: Timestamp| database.as_millis().saturating_sub(host.as_millis());
        let (now, asked) = (ahead(self.host.now()), ahead(asked));
        // The host's own clock may have been set meanwhile.
        let (least, most) = (now.min(asked), now.max(asked));
        let known = self.ahead.load(Ordering::Relaxed);
        let nearest = known.clamp(least, most);
        if nearest.abs_diff(known) > JITTER_MILLIS.unsigned_abs() {
            self.ahead.store(nearest, Ordering::Relaxed);
        }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        self.host.now().plus_millis(self.ahead.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kit::clock::ManualClock;

    use super::*;

    #[test]
    fn a_host_that_is_hours_off_tells_the_databases_time() {
        let host = Arc::new(ManualClock::new(at(10_000_000)));
        let clock = DatabaseClock::new(host.clone());
        clock.heard(at(3_000_000), at(10_000_000));
        assert_eq!(clock.now(), at(3_000_000));

        clock.heard(at(3_000_200), at(10_000_000));
        assert_eq!(clock.now(), at(3_000_000), "clocks run apart");

        host.set(at(0));
        clock.heard(at(3_000_300), at(0));
        assert_eq!(clock.now(), at(3_000_300), "the host's clock was set back");
    }

    #[test]
    fn an_answer_that_takes_long_moves_no_clock() {
        let host = Arc::new(ManualClock::new(at(1_000_000)));
        let clock = DatabaseClock::new(host.clone());
        clock.heard(at(5_000_000), at(1_000_000));

        // Told at the beginning, and heard nine seconds later.
        host.set(at(1_009_000));
        clock.heard(at(5_000_000), at(1_000_000));
        assert_eq!(clock.now(), at(5_009_000));
        // Told at the end of such a wait.
        host.set(at(1_018_000));
        clock.heard(at(5_018_000), at(1_009_000));
        assert_eq!(clock.now(), at(5_018_000));
        // What cannot be is believed as far as it must be.
        host.set(at(1_020_000));
        clock.heard(at(5_015_000), at(1_018_000));
        assert_eq!(clock.now(), at(5_017_000));
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }
}
