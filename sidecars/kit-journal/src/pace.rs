//! When a commit waits a moment for company.
//!
//! Where a sync takes long, group commit needs no timer: what comes meanwhile is the next group. A disk that syncs faster than
//! senders come again leaves groups small, and each commit costs the same few pages however few events are in it. There a
//! commit that would go with less than it could wait for is put off once, for a moment.

use std::time::Duration;

/// How long; the kernel's own slack makes it some 110 µs.
const LINGER: Duration = Duration::from_micros(60);
/// Senders that come so many at once come again.
const CROWD: usize = 4;
/// A group that large goes at once.
const ENOUGH: usize = 24;
/// Nor is waited where a commit takes so long that a group gathers meanwhile.
const SLOW: Duration = Duration::from_micros(500);

/// What the last commits were like.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Appends of the last groups, of older ones less.
    crowd: usize,
    took: Duration,
}

impl Pace {
    /// How long to wait before a commit with so many appends, if at all.
    pub(crate) fn linger(&self, appends: usize) -> Option<Duration> {
        (self.crowd >= CROWD && appends < ENOUGH && self.took < SLOW).then_some(LINGER)
    }

    /// A group is complete.
    pub(crate) fn gathered(&mut self, appends: usize) {
        self.crowd = appends.max(self.crowd / 2);
    }

    /// A durable commit took so long.
    pub(crate) fn committed(&mut self, took: Duration) {
        self.took = took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(appends: usize, took_us: u64) -> Pace {
        let mut pace = Pace::default();
        pace.gathered(appends);
        pace.committed(Duration::from_micros(took_us));
        pace
    }

    #[test]
    fn a_single_sender_is_never_kept_waiting() {
        assert_eq!(after(1, 50).linger(1), None);
        assert_eq!(Pace::default().linger(1), None);
    }

    #[test]
    fn crowds_wait_for_company_where_a_sync_is_quick() {
        assert!(after(8, 50).linger(3).is_some());
        assert_eq!(after(8, 50).linger(ENOUGH), None, "enough is enough");
        assert_eq!(after(8, 1_500).linger(3), None, "the next group gathers during a slow sync");
    }

    /// Groups of settlements lie between those of events; and senders that have gone are forgotten.
    #[test]
    fn a_crowd_is_remembered_for_a_few_commits() {
        let mut pace = after(16, 50);
        pace.gathered(0);
        assert!(pace.linger(0).is_some());
        for _ in 0..2 {
            pace.gathered(1);
        }
        assert_eq!(pace.linger(1), None);
    }
}
