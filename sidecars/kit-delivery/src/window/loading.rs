//! Filling the window from the journal, as far as there is room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use kit_journal::engine::{ExceptionRow, ExceptionState};
use kit_journal::{Seq, StoredEvent};

use super::{Item, Lane, Slot, Source, Window, subject_lane};
use crate::outcome::Interest;

/// Why a position is parked that has no record.
pub(crate) const MISSING: &str = "record is missing from the journal";

impl Window {
    /// The position to load after, how many and how many bytes, if there is room.
    pub(crate) fn room(&self) -> Option<(Seq, u32, u64)> {
        let slots = self.limits.slots.saturating_sub(self.slots.len());
        let bytes = self.limits.bytes.saturating_sub(self.bytes);
        if slots * 2 < self.limits.slots || bytes == 0 || self.open_rows >= self.limits.open_rows {
            return None;
        }
        Some((self.loaded_to(), u32::try_from(slots).unwrap_or(u32::MAX), bytes as u64))
    }

    /// The last loaded position.
    pub(crate) fn loaded_to(&self) -> Seq {
        self.cursor + Seq::try_from(self.slots.len()).unwrap_or(Seq::MAX)
    }

    /// Takes loaded events; `own` are positions that have a row ahead of the cursor. Positions that
    /// are neither are missing from the journal: they are parked, so that they are listed somewhere.
    /// What a gap leaves no room for is read again in a later turn.
    pub(crate) fn load(
        &mut self,
        events: Vec<Arc<StoredEvent>>,
        own: &[Seq],
        now: Instant,
        interest: impl Fn(&StoredEvent) -> Interest,
    ) {
        let own: BTreeSet<Seq> = own.iter().copied().collect();
        let last = events.last().map(|event| event.seq).max(own.last().copied());
        let mut events = events.into_iter().peekable();
        let Some(last) = last else { return };
        while self.loaded_to() < last && self.has_slot() {
            let seq = self.loaded_to() + 1;
            if own.contains(&seq) {
                self.slots.push_back(Slot::OwnRow);
            } else if let Some(event) = events.next_if(|event| event.seq == seq) {
                match interest(&event) {
                    Interest::Wanted => self.load_one(event, now),
                    Interest::Unwanted => self.slots.push_back(Slot::Unwanted),
                    Interest::PassedBy(how, reason) => self.ended_untried(seq, how.state(), &reason),
                    Interest::Parked(reason) => self.ended_untried(seq, ExceptionState::Parked, &reason),
                }
            } else {
                self.unreadable(MISSING);
            }
        }
    }

    /// No position up to `last` can be read: they are parked and passed, as far as there is room. True when
    /// that was far enough.
    pub(crate) fn pass_over(&mut self, last: Seq, reason: &str) -> bool {
        while self.loaded_to() < last && self.has_slot() {
            self.unreadable(reason);
        }
        self.loaded_to() >= last
    }

    /// A gap of millions of positions must not become as many slots and rows at once.
    fn has_slot(&self) -> bool {
        self.slots.len() < self.limits.slots
    }

    fn unreadable(&mut self, reason: &str) {
        self.ended_untried(self.loaded_to() + 1, ExceptionState::Parked, reason);
    }

    fn ended_untried(&mut self, seq: Seq, state: ExceptionState, reason: &str) {
        self.slots.push_back(Slot::Row);
        self.rows_ahead.insert(seq, ExceptionRow::untried(seq, state, reason));
    }

    fn load_one(&mut self, event: Arc<StoredEvent>, now: Instant) {
        let seq = event.seq;
        let subject_lane = subject_lane(&event.head.subject);
        let lane = if self.ordered { Lane::Subject(subject_lane) } else { Lane::Own(seq) };
        self.bytes += event.body.len();
        let item = Item {
            lane,
            subject_lane,
            source: Source::Loaded(event),
            attempts: 0,
            uncharged: 0,
            first_at: None,
            not_before: None,
            asked_until: None,
            in_flight: false,
            was_due: true,
            successes_seen: 0,
        };
        self.items.insert(seq, item);
        self.slots.push_back(Slot::Open { loaded: now });
        let queue = self.lanes.entry(lane).or_default();
        queue.push_back(seq);
        let first = queue.len() == 1;
        let behind_row =
            queue.front().is_some_and(|head| *head != seq && matches!(self.items[head].source, Source::Row));
        if first {
            self.make_ready(lane);
        } else if behind_row {
            self.wait_behind(seq);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kit::clock::Timestamp;
    use kit_journal::{EventHead, EventId};

    use super::super::{Limits, Settled};
    use super::*;

    fn window() -> Window {
        Window::new(0, true, Limits { slots: 8, ..Limits::default() })
    }

    fn event(seq: Seq) -> Arc<StoredEvent> {
        let key = seq.to_string();
        let head = EventHead {
            json: true,
            ..EventHead::new(EventId::derive("test", &key, None), "test", "test.happened", format!("a/{seq}"), key)
        };
        Arc::new(StoredEvent { seq, at: Timestamp::from_millis(0), head, body: bytes::Bytes::from_static(b"{}") })
    }

    #[test]
    fn a_gap_of_millions_is_parked_a_window_at_a_time() {
        let mut window = window();

        assert!(!window.pass_over(5_000_000, "gone"));

        assert_eq!((window.slots.len(), window.room()), (8, None));
        let settlement = window.settlement("sink").unwrap().settlement;
        assert_eq!((settlement.cursor, settlement.set.len()), (8, 8));
        assert!(!window.pass_over(5_000_000, "gone"));
        assert_eq!(window.loaded_to(), 16, "the next turn goes on where this one ended");
        window.settlement("sink").unwrap();
        assert!(window.pass_over(20, "gone"), "and ends");
        assert_eq!(window.settlement("sink").unwrap().settlement.set.last().map(|row| row.seq), Some(20));
    }

    #[test]
    fn an_event_behind_a_gap_is_loaded_when_the_gap_is_passed() {
        let mut window = window();
        let mut parked = Vec::new();
        for turn in 0.. {
            assert!(turn < 4, "it is never loaded");
            let (after, ..) = window.room().unwrap();
            // As the journal reads it: the same events again, whatever was left out.
            window.load(vec![event(20), event(21)], &[], Instant::now(), |_| Interest::Wanted);
            assert!(window.slots.len() <= 8, "more slots than the window has");
            let Some(Settled { settlement, .. }) = window.settlement("sink") else { break };
            assert_eq!(settlement.cursor, after + i64::try_from(settlement.set.len()).unwrap());
            parked.extend(settlement.set.into_iter().map(|row| row.seq));
            if window.loaded_to() == 21 {
                break;
            }
        }

        assert_eq!(parked, (1..20).collect::<Vec<Seq>>());
        let started = window.start(Instant::now(), false, |_| 1);
        assert_eq!(started.iter().map(|start| start.seq).collect::<Vec<_>>(), [20]);
    }
}
