//! Filling the window from the journal, as far as there is room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use kit_journal::engine::{ExceptionRow, ExceptionState};
use kit_journal::{Seq, StoredEvent};

use super::{Item, Lane, Slot, Source, Window, subject_lane};

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
    pub(crate) fn load(&mut self, events: Vec<Arc<StoredEvent>>, own: &[Seq], now: Instant) {
        let own: BTreeSet<Seq> = own.iter().copied().collect();
        let last = events.last().map(|event| event.seq).max(own.last().copied());
        let mut events = events.into_iter().peekable();
        let Some(last) = last else { return };
        while self.loaded_to() < last {
            let seq = self.loaded_to() + 1;
            if own.contains(&seq) {
                self.slots.push_back(Slot::Done);
            } else if let Some(event) = events.next_if(|event| event.seq == seq) {
                self.load_one(event, now);
            } else {
                self.unreadable("record is missing from the journal");
            }
        }
    }

    /// The next position cannot be read: it is parked and passed.
    pub(crate) fn unreadable(&mut self, reason: &str) {
        let seq = self.loaded_to() + 1;
        self.slots.push_back(Slot::Row);
        self.rows_ahead.insert(
            seq,
            ExceptionRow {
                seq,
                state: ExceptionState::Parked,
                lane: 0,
                attempts: 0,
                first_at: None,
                next_at: None,
                reason: reason.to_owned(),
            },
        );
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
