//! The clock that a run's records share.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time: microseconds since the Unix epoch.
///
/// Read once from the wall clock and then carried by the monotonic clock, so within one process two
/// moments are in the order in which they were taken even while a test plays with the wall clock.
/// Records of several processes are comparable only as well as their wall clocks agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(u64);

impl Moment {
    /// The present moment.
    pub fn now() -> Self {
        static ANCHOR: OnceLock<(u64, Instant)> = OnceLock::new();
        let (base, anchor) = ANCHOR.get_or_init(|| {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            (micros(since_epoch), Instant::now())
        });
        Self(base.saturating_add(micros(anchor.elapsed())))
    }

    /// A moment from its microseconds since the Unix epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The time passed from `earlier` to this moment; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Moment {
    /// RFC 3339 in UTC with microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp = i64::try_from(self.0).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
        match timestamp {
            Some(timestamp) => write!(f, "{timestamp:.6}"),
            None => write!(f, "{} µs after 1970", self.0),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_in_the_order_they_were_taken() {
        let moments: Vec<Moment> = (0..1000).map(|_| Moment::now()).collect();

        assert!(moments.is_sorted());
    }

    #[test]
    fn a_moment_prints_as_utc() {
        let moment = Moment::from_micros(1_795_236_024_123_456);

        assert_eq!(moment.to_string(), "2026-11-21T04:40:24.123456Z");
        assert_eq!(Moment::from_micros(u64::MAX).to_string(), format!("{} µs after 1970", u64::MAX));
    }
}
