//! One clock for all replicas: the database's. Hosts may disagree about the time by hours; what is stored, compared and
//! waited for by several of them must not.

use std::sync::atomic::{AtomicI64, Ordering};

use kit::clock::{Clock, SharedClock, Timestamp};

/// Less than that is how long an answer was on its way, and no reason to move the clock.
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

    /// The database has just said what time it is.
    pub(super) fn heard(&self, database: Timestamp) {
        let ahead = database.as_millis().saturating_sub(self.host.now().as_millis());
        if ahead.abs_diff(self.ahead.load(Ordering::Relaxed)) > JITTER_MILLIS.unsigned_abs() {
            self.ahead.store(ahead, Ordering::Relaxed);
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
        let host = Arc::new(ManualClock::new(Timestamp::from_millis(10_000_000)));
        let clock = DatabaseClock::new(host.clone());
        clock.heard(Timestamp::from_millis(3_000_000));
        assert_eq!(clock.now(), Timestamp::from_millis(3_000_000));

        clock.heard(Timestamp::from_millis(3_000_200));
        assert_eq!(clock.now(), Timestamp::from_millis(3_000_000), "an answer takes its time");

        host.set(Timestamp::from_millis(0));
        clock.heard(Timestamp::from_millis(3_000_300));
        assert_eq!(clock.now(), Timestamp::from_millis(3_000_300), "the host's clock was set back");
    }
}
