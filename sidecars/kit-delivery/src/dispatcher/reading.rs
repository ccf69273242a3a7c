//! Reading the event of a row before it is sent. What the journal cannot read says nothing about the sink: it
//! moves no circuit and uses up no schedule.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kit_journal::{Journal, JournalError, Seq, StoredEvent};

use super::work::Work;
use crate::window::{Decision, MISSING};

/// How long an event waits that the journal could not read.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// So many in a row that could not be read, without a delivery between them, are the journal's trouble and not
/// theirs …
const UNREAD_IN_A_ROW: u32 = 16;
/// … and everything waits a moment: all rows there are would be asked for in turn.
const HOLD_OFF: Duration = Duration::from_millis(500);

/// So long nothing can be read, and nothing is delivered from memory either, before another replica gets its turn: it may be
/// able to.
const LEFT_TO_OTHERS_AFTER: Duration = Duration::from_secs(10);

/// Why the sink was not asked.
#[derive(Debug)]
pub(super) enum NotAsked {
    /// The record is gone or damaged, for good.
    Lost(String),
    /// The journal cannot be read now.
    Unread(String),
}

/// What could not be read since the last delivery.
#[derive(Debug, Default)]
pub(super) struct Unread {
    in_a_row: u32,
    hold_off: Option<Instant>,
    /// Until when nothing is looked for: the last look failed.
    look_again: Option<Instant>,
    /// Since when every look has failed, and nothing was delivered.
    in_vain_since: Option<Instant>,
}

impl Unread {
    /// Until when nothing is started.
    pub(super) fn held_off(&self, now: Instant) -> Option<Instant> {
        self.hold_off.filter(|until| *until > now)
    }

    pub(super) fn delivered(&mut self) {
        (self.in_a_row, self.hold_off, self.in_vain_since) = (0, None, None);
    }

    /// Until when nothing is looked for.
    pub(super) fn looked(&self, now: Instant) -> Option<Instant> {
        self.look_again.filter(|until| *until > now)
    }

    /// A look succeeded.
    pub(super) fn found(&mut self) {
        (self.look_again, self.in_vain_since) = (None, None);
    }

    /// Whether it has been in vain for long.
    fn is_for_others(&self, now: Instant) -> bool {
        self.in_vain_since.is_some_and(|since| now.duration_since(since) >= LEFT_TO_OTHERS_AFTER)
    }

    /// A look failed; true for the first in a row.
    fn not_found(&mut self, now: Instant) -> bool {
        self.in_vain_since.get_or_insert(now);
        self.look_again.replace(now + HOLD_OFF).is_none()
    }

    /// One more; true for the first in a row.
    fn another(&mut self, now: Instant) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row >= UNREAD_IN_A_ROW {
            self.hold_off = Some(now + HOLD_OFF);
        }
        self.in_a_row == 1
    }
}

impl Work {
    /// The journal cannot say what there is to deliver. Every commit would have it asked again, so that it is left
    /// alone for a moment.
    pub(super) fn unreadable(&mut self, error: &JournalError) {
        let error = kit::error::chain(error);
        if self.unread.not_found(Instant::now()) {
            tracing::warn!(sink = %self.name, error = %error, "journal cannot be read for deliveries: {error}");
        }
        self.note(error);
        self.settle_pause();
    }

    /// Whether another replica is to deliver, because this one cannot read what there is.
    pub(super) fn leaves_to_others(&self) -> bool {
        !self.lease.is_for_good() && self.unread.is_for_others(Instant::now())
    }

    /// A delivery ended before the sink was asked. `probe`: the circuit waits for it.
    pub(super) fn not_asked(&mut self, seq: Seq, why: NotAsked, probe: bool) {
        let now = Instant::now();
        if probe {
            self.circuit.inconclusive(now);
        }
        match why {
            NotAsked::Lost(reason) => {
                self.say_parked(seq, &reason);
                self.note(reason.clone());
                self.window.complete(seq, &Decision::Park { reason }, None, self.successes, now);
            }
            NotAsked::Unread(error) => {
                if self.unread.another(now) {
                    tracing::warn!(seq, sink = %self.name, error = %error, "event {seq} cannot be read to be delivered: {error}");
                }
                self.note(error);
                self.window.put_off(seq, now + READ_AGAIN);
            }
        }
    }
}

/// The event of a row.
pub(super) async fn read_event(journal: &Journal, seq: Seq) -> Result<Arc<StoredEvent>, NotAsked> {
    match journal.read(move |reader| reader.event(seq)).await {
        Ok(Some(event)) => Ok(Arc::new(event)),
        Ok(None) => Err(NotAsked::Lost(MISSING.to_owned())),
        Err(JournalError::Damaged { what, .. }) => Err(NotAsked::Lost(format!("record is damaged: {what}"))),
        Err(error) => Err(NotAsked::Unread(kit::error::chain(&error))),
    }
}
