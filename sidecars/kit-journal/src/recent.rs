//! The last events, still in memory: a sink that keeps up gets them without reading them back.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::{Seq, StoredEvent};

/// About this many bytes of bodies are kept …
const BYTES: usize = 4 << 20;
/// … of at most this many events.
const EVENTS: usize = 4_096;
/// What an event takes beside its body, roughly.
const HEAD_BYTES: usize = 512;

/// Committed events without a gap, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    events: VecDeque<Arc<StoredEvent>>,
    bytes: usize,
    added: bool,
}

impl Recent {
    /// Takes an event that is on the disk. A gap to the one before forgets what was there.
    pub(crate) fn add(&mut self, event: StoredEvent) {
        if self.events.back().is_some_and(|last| last.seq + 1 != event.seq) {
            self.clear();
        }
        self.added = true;
        self.bytes += event.body.len() + HEAD_BYTES;
        self.events.push_back(Arc::new(event));
        while self.bytes > BYTES || self.events.len() > EVENTS {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.body.len() + HEAD_BYTES;
        }
    }

    /// Events after `after`, in order, at most `limit` and about `max_bytes` (but always one); `None`
    /// when the next one is not among them.
    pub(crate) fn after(&self, after: Seq, limit: u32, max_bytes: u64) -> Option<Vec<Arc<StoredEvent>>> {
        let first = self.events.front()?.seq;
        let skip = usize::try_from(after + 1 - first).ok().filter(|skip| *skip < self.events.len())?;
        let mut left = max_bytes;
        let mut found = Vec::new();
        for event in self.events.range(skip..).take(limit as usize) {
            let bytes = event.body.len() as u64;
            if bytes > left && !found.is_empty() {
                break;
            }
            left = left.saturating_sub(bytes);
            found.push(Arc::clone(event));
        }
        Some(found)
    }

    /// Lets go of everything when nothing was added since the last call: a quiet daemon is a small one.
    pub(crate) fn settle_down(&mut self) {
        if !std::mem::take(&mut self.added) {
            self.clear();
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.events = VecDeque::new();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::event::{EventHead, EventId};

    fn event(seq: Seq, bytes: usize) -> StoredEvent {
        let head = EventHead::new(EventId::derive("s", &seq.to_string(), None), "s", "t", "", "k");
        StoredEvent { seq, at: kit::clock::Timestamp::default(), head, body: vec![0; bytes].into() }
    }

    fn seqs(recent: &Recent, after: Seq, limit: u32, bytes: u64) -> Option<Vec<Seq>> {
        recent.after(after, limit, bytes).map(|events| events.iter().map(|event| event.seq).collect())
    }

    #[test]
    fn what_is_there_comes_in_order_and_within_the_bounds_asked_for() {
        let mut recent = Recent::default();
        assert_eq!(seqs(&recent, 0, 10, 100), None);
        for seq in 5..=9 {
            recent.add(event(seq, 40));
        }
        assert_eq!(seqs(&recent, 3, 10, 1_000), None, "4 is not there");
        assert_eq!(seqs(&recent, 4, 10, 1_000), Some(vec![5, 6, 7, 8, 9]));
        assert_eq!(seqs(&recent, 6, 2, 1_000), Some(vec![7, 8]));
        assert_eq!(seqs(&recent, 6, 10, 80), Some(vec![7, 8]));
        assert_eq!(seqs(&recent, 6, 10, 1), Some(vec![7]), "always one");
        assert_eq!(seqs(&recent, 9, 10, 1_000), None, "nothing after the last");
    }

    #[test]
    fn a_gap_forgets_what_was_before_it() {
        let mut recent = Recent::default();
        recent.add(event(1, 1));
        recent.add(event(3, 1));
        assert_eq!(seqs(&recent, 0, 10, 100), None);
        assert_eq!(seqs(&recent, 2, 10, 100), Some(vec![3]));
    }

    #[test]
    fn memory_is_bounded_and_given_back_when_it_is_quiet() {
        let mut recent = Recent::default();
        for seq in 1..=20 {
            recent.add(event(seq, 1 << 20));
        }
        assert!(recent.bytes <= BYTES && recent.events.len() == 3, "{}", recent.events.len());
        for seq in 21..=10_000 {
            recent.add(event(seq, 1));
        }
        assert!(recent.events.len() <= EVENTS);
        recent.settle_down();
        assert!(!recent.events.is_empty());
        recent.settle_down();
        assert_eq!((recent.events.len(), recent.bytes), (0, 0));
    }
}
