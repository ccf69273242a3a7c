//! What became of damaged journals, and the panics meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_tests::picture::Picture;

use super::stores::Stores;

/// What became of damaged journals.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Not opened.
    pub(super) refused: u64,
    /// Opened, and something is said to be damaged or missing.
    pub(super) told: u64,
    /// Nothing is different: the damage is where nothing lies.
    pub(super) same: u64,
    /// The last commits are not there, and everything before them is: the log ends where it is damaged.
    pub(super) cut: u64,
    /// Something is different and nothing was said: counters and states have no checksum of their own.
    pub(super) untold: u64,
    /// What that was, and how often.
    kinds: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn add(&mut self, picture: &Picture, stores: &Stores) {
        let (whole, history) = (&stores.picture, &stores.history);
        if !picture.complaints.is_empty() {
            self.told += 1;
            return;
        }
        let mut different = Vec::new();
        let mut compare = |name, same: bool| {
            if !same {
                different.push(name);
            }
        };
        compare("events", picture.events == whole.events);
        compare("deliveries", picture.delivered == whole.delivered);
        compare("states", picture.states == whole.states);
        compare("sinks", (picture.accepted, &picture.sinks) == (whole.accepted, &whole.sinks));
        compare("attempts", picture.attempts == whole.attempts);
        compare("audit", picture.audit == whole.audit);
        compare("keys", picture.unknown == whole.unknown);
        compare("values", picture.values == whole.values);
        if different.is_empty() {
            self.same += 1;
            return;
        }
        if history.contains(picture) {
            self.cut += 1;
            return;
        }
        self.untold += 1;
        for name in different {
            *self.kinds.entry(name).or_default() += 1;
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.refused += other.refused;
        self.told += other.told;
        self.same += other.same;
        self.cut += other.cut;
        self.untold += other.untold;
        for (name, count) in &other.kinds {
            *self.kinds.entry(name).or_default() += count;
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { refused, told, same, cut, untold, kinds } = self;
        write!(f, "{refused} refused, {told} told, {same} without effect, ")?;
        write!(f, "{cut} without the last commits, {untold} untold {kinds:?}")
    }
}

/// Counts the panics of all threads while it lives, and lets the usual report be printed.
pub(super) struct PanicCounter {
    count: Arc<AtomicU64>,
}

impl PanicCounter {
    pub(super) fn start() -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let (counting, usual) = (Arc::clone(&count), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            counting.fetch_add(1, Ordering::Relaxed);
            usual(panic);
        }));
        Self { count }
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for PanicCounter {
    fn drop(&mut self) {
        // The usual one; a thread that is panicking must not touch it.
        if !std::thread::panicking() {
            drop(std::panic::take_hook());
        }
    }
}
