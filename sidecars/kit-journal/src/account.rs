//! A sink's account: what settlements and operators change in its counters and rows. The same rules for every engine, over
//! the rows as the engine has them. The counters close by construction: what the cursor passes and nothing else accounts for
//! was delivered.

use kit::clock::Timestamp;

use crate::commit::nth_due;
use crate::engine::{Action, ExceptionRow, ExceptionState, Settlement};
use crate::error::JournalError;
use crate::event::Seq;

/// A sink's rows.
pub(crate) trait Rows {
    /// The state of this position's row, where it has one.
    fn state(&mut self, seq: Seq) -> Result<Option<ExceptionState>, JournalError>;
    /// How many there are after one position up to another.
    fn between(&mut self, after: Seq, up_to: Seq) -> Result<i64, JournalError>;
    /// Writes a row in the place of the one that is there.
    fn put(&mut self, row: &ExceptionRow) -> Result<(), JournalError>;
    /// Changes when a row that is there is due.
    fn set_due(&mut self, seq: Seq, due: Timestamp) -> Result<(), JournalError>;
    /// Takes a row away.
    fn remove(&mut self, seq: Seq) -> Result<(), JournalError>;
}

/// By how much a sink's counters change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deltas {
    pub(crate) delivered: i64,
    pub(crate) open: i64,
    pub(crate) parked: i64,
    pub(crate) dropped: i64,
    pub(crate) filtered: i64,
    /// Rows that the cursor has still to pass.
    pub(crate) ahead: i64,
}

impl Deltas {
    fn count(&mut self, state: ExceptionState, by: i64) {
        match state {
            ExceptionState::Parked => self.parked += by,
            ExceptionState::Dropped => self.dropped += by,
            ExceptionState::Filtered => self.filtered += by,
            ExceptionState::Retrying | ExceptionState::Waiting | ExceptionState::Replaying => self.open += by,
        }
    }
}

/// Changes of a sink's account, on their way.
pub(crate) struct Changes<'a, R> {
    rows: &'a mut R,
    cursor: Seq,
    deltas: Deltas,
}

impl<'a, R: Rows> Changes<'a, R> {
    /// Of a sink whose cursor is here.
    pub(crate) fn new(rows: &'a mut R, cursor: Seq) -> Self {
        Self { rows, cursor, deltas: Deltas::default() }
    }

    /// What has changed in the counters, and where the cursor is.
    pub(crate) fn end(self) -> (Deltas, Seq) {
        (self.deltas, self.cursor)
    }

    /// Records what deliveries came to.
    pub(crate) fn settle(&mut self, settlement: &Settlement) -> Result<(), JournalError> {
        let old = self.cursor;
        let new = settlement.cursor.max(old);
        // A settlement whose commit was in doubt comes again: the second time it must change nothing.
        if new > old {
            let filtered = i64::try_from(settlement.filtered).unwrap_or(i64::MAX);
            let ahead = self.rows.between(old, new)?;
            self.deltas.filtered += filtered;
            self.deltas.ahead -= ahead;
            self.deltas.delivered += new - old - ahead - filtered;
            self.cursor = new;
            if ahead > 0 {
                for seq in settlement.once.iter().filter(|seq| (old + 1..=new).contains(*seq)) {
                    self.too_late(*seq)?;
                }
            }
        }
        for row in &settlement.set {
            match self.rows.state(row.seq)? {
                // An operator dropped it meanwhile: that word stands.
                Some(ExceptionState::Dropped) => continue,
                Some(previous) => self.deltas.count(previous, -1),
                None => self.deltas.delivered -= 1,
            }
            self.deltas.count(row.state, 1);
            self.rows.put(row)?;
        }
        for seq in &settlement.delivered {
            if let Some(previous) = self.rows.state(*seq)?.filter(|state| state.is_open()) {
                self.over(*seq, previous)?;
            } else if settlement.once.contains(seq) {
                self.too_late(*seq)?;
            }
        }
        Ok(())
    }

    /// Takes away the row of a delivery that has been made.
    fn over(&mut self, seq: Seq, previous: ExceptionState) -> Result<(), JournalError> {
        self.rows.remove(seq)?;
        self.deltas.count(previous, -1);
        if seq <= self.cursor {
            self.deltas.delivered += 1;
        } else {
            // The cursor counts it when it comes by.
            self.deltas.ahead -= 1;
        }
        Ok(())
    }

    /// A delivery that an operator has dropped, or asked for again, when it was on its way: it has been made, and counts.
    /// What is parked stays so: that is the receiver's word.
    fn too_late(&mut self, seq: Seq) -> Result<(), JournalError> {
        match self.rows.state(seq)?.filter(|state| *state != ExceptionState::Parked) {
            Some(previous) => self.over(seq, previous),
            None => Ok(()),
        }
    }

    /// Does to one delivery what an operator asked for; whether that changed it. `nth` counts those that were changed.
    pub(crate) fn act(&mut self, action: &Action, seq: Seq, nth: usize) -> Result<bool, JournalError> {
        use ExceptionState::{Dropped, Filtered, Parked, Replaying, Retrying, Waiting};
        let previous = self.rows.state(seq)?;
        match action {
            Action::Revive { .. } if previous.is_none() => Ok(false),
            Action::Reconsider { .. } if previous != Some(Parked) => Ok(false),
            Action::Replay { from, spacing_ms, .. } | Action::Revive { from, spacing_ms, .. } => {
                self.replay(seq, previous, nth_due(*from, *spacing_ms, nth))
            }
            Action::Reconsider { from, .. } => self.replay(seq, previous, *from),
            Action::Drop { reason, .. } => match previous {
                // There is nothing to give up where it is not for this sink.
                Some(Dropped | Filtered) => Ok(false),
                // Delivered already.
                None if seq <= self.cursor => Ok(false),
                None | Some(Retrying | Waiting | Replaying | Parked) => {
                    self.write(seq, previous, Dropped, None, reason)
                }
            },
            Action::Park { reason, .. } => match previous {
                None => self.write(seq, previous, Parked, None, reason),
                Some(_) => Ok(false),
            },
            Action::Pause { .. }
            | Action::Register { .. }
            | Action::Forget { .. }
            | Action::Remember { .. }
            | Action::Audit(_) => Ok(false),
        }
    }

    fn replay(&mut self, seq: Seq, previous: Option<ExceptionState>, due: Timestamp) -> Result<bool, JournalError> {
        match previous {
            // Its turn comes anyway.
            None if seq > self.cursor => Ok(false),
            Some(ExceptionState::Waiting | ExceptionState::Replaying) => Ok(false),
            // Keeps its place and its count of attempts, only sooner.
            Some(ExceptionState::Retrying) => self.rows.set_due(seq, due).map(|()| true),
            None | Some(ExceptionState::Parked | ExceptionState::Dropped | ExceptionState::Filtered) => {
                self.write(seq, previous, ExceptionState::Replaying, Some(due), "replay asked for")
            }
        }
    }

    fn write(
        &mut self,
        seq: Seq,
        previous: Option<ExceptionState>,
        state: ExceptionState,
        next_at: Option<Timestamp>,
        reason: &str,
    ) -> Result<bool, JournalError> {
        match previous {
            Some(previous) => self.deltas.count(previous, -1),
            None if seq > self.cursor => self.deltas.ahead += 1,
            None => self.deltas.delivered -= 1,
        }
        self.deltas.count(state, 1);
        let reason = reason.to_owned();
        self.rows.put(&ExceptionRow { seq, state, lane: 0, attempts: 0, first_at: None, next_at, reason })?;
        Ok(true)
    }
}
