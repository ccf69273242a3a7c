//! What operators ask for: replay, drop, pause, and the audit record of it. All idempotent.

use rusqlite::{Connection, params};

use crate::commit::nth_due;
use crate::engine::{Action, ActionOutcome, AuditRecord, ExceptionRow, ExceptionState, Forgotten};
use crate::error::JournalError;
use crate::event::Seq;
use crate::forgetting::Forgetting;
use crate::packed::state_of;
use kit::clock::Timestamp;

use super::records;
use super::settle::{Deltas, Sinks, numbers, put_row, remove_row, row_state};

impl Sinks {
    pub(super) fn act(
        &mut self,
        conn: &Connection,
        action: &Action,
        last_seq: Seq,
    ) -> Result<ActionOutcome, JournalError> {
        // An operator's typing error must not fail the commit that others share.
        if let Action::Replay { sink, .. }
        | Action::Drop { sink, .. }
        | Action::Park { sink, .. }
        | Action::Revive { sink, .. }
        | Action::Reconsider { sink, .. }
        | Action::Forget { sink, .. }
        | Action::Pause { sink, .. } = action
            && self.id(sink).is_err()
        {
            return Ok(ActionOutcome { unavailable: 1, ..ActionOutcome::default() });
        }
        match action {
            Action::Replay { sink, seqs, from, spacing_ms } => {
                let sink = self.id(sink)?;
                self.change(conn, sink, seqs, last_seq, |change, nth| change.replay(nth_due(*from, *spacing_ms, nth)))
            }
            Action::Revive { sink, seqs, from, spacing_ms } => {
                let sink = self.id(sink)?;
                self.change(conn, sink, seqs, last_seq, |change, nth| match change.previous {
                    Some(_) => change.replay(nth_due(*from, *spacing_ms, nth)),
                    None => Ok(Changed::No),
                })
            }
            Action::Drop { sink, seqs, reason } => {
                let sink = self.id(sink)?;
                self.change(conn, sink, seqs, last_seq, |change, _| change.give_up(reason))
            }
            Action::Reconsider { sink, seqs, from } => {
                let sink = self.id(sink)?;
                self.change(conn, sink, seqs, last_seq, |change, _| match change.previous {
                    Some(ExceptionState::Parked) => change.replay(*from),
                    _ => Ok(Changed::No),
                })
            }
            Action::Park { sink, seqs, reason } => {
                let sink = self.id(sink)?;
                self.change(conn, sink, seqs, last_seq, |change, _| change.park(reason))
            }
            Action::Pause { sink, paused } => {
                let sink = self.id(sink)?;
                let changed =
                    conn.execute("UPDATE sinks SET paused = ?1 WHERE id = ?2 AND paused <> ?1", params![paused, sink])?;
                Ok(ActionOutcome::of_one(changed > 0))
            }
            Action::Register { sink } => self.register(conn, sink, last_seq).map(ActionOutcome::of_one),
            Action::Forget { sink, rows, .. } => self.forget(conn, sink, *rows, last_seq).map(ActionOutcome::of_step),
            Action::Remember { name, value } => {
                records::put_value(conn, name, value)?;
                Ok(ActionOutcome::of_one(true))
            }
            Action::Audit(record) => {
                audit(conn, record)?;
                Ok(ActionOutcome::of_one(true))
            }
        }
    }

    /// A step; the last one takes the sink itself.
    fn forget(&mut self, conn: &Connection, name: &str, rows: u32, last_seq: Seq) -> Result<Forgotten, JournalError> {
        let sink = self.id(name)?;
        let mut counters = conn
            .prepare_cached(
                "SELECT start, cursor, delivered, open, parked, dropped, filtered, ahead FROM sinks WHERE id = ?",
            )?
            .query_row([sink], |row| {
                Ok(Forgetting {
                    start: row.get(0)?,
                    cursor: row.get(1)?,
                    delivered: row.get(2)?,
                    open: row.get(3)?,
                    parked: row.get(4)?,
                    dropped: row.get(5)?,
                    filtered: row.get(6)?,
                    ahead: row.get(7)?,
                })
            })?;
        let found: Vec<(Seq, i64)> = conn
            .prepare_cached("SELECT seq, state FROM exceptions WHERE sink = ? ORDER BY seq LIMIT ?")?
            .query_map(params![sink, rows], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let is_last = found.len() < rows as usize;
        for (seq, _) in &found {
            remove_row(conn, sink, *seq)?;
        }
        let forgotten = counters.step(found.iter().filter_map(|(_, state)| state_of(*state)), last_seq, is_last);
        if !is_last {
            let Forgetting { cursor, open, parked, dropped, ahead, .. } = counters;
            conn.execute(
                "UPDATE sinks SET cursor = ?, open = ?, parked = ?, dropped = ?, ahead = ? WHERE id = ?",
                params![cursor, open, parked, dropped, ahead, sink],
            )?;
            return Ok(forgotten);
        }
        conn.execute("DELETE FROM sinks WHERE id = ?", [sink])?;
        let (value, number) = numbers(conn)?.add(name, sink);
        records::put_value(conn, &value, &number)?;
        self.remove(name);
        Ok(forgotten)
    }

    fn change(
        &self,
        conn: &Connection,
        sink: i64,
        seqs: &[Seq],
        last_seq: Seq,
        mut rule: impl FnMut(&mut Change<'_>, usize) -> Result<Changed, JournalError>,
    ) -> Result<ActionOutcome, JournalError> {
        let mut total = ActionOutcome::default();
        let mut deltas = Deltas::default();
        let (start, cursor): (Seq, Seq) = conn
            .prepare_cached("SELECT start, cursor FROM sinks WHERE id = ?")?
            .query_row([sink], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for seq in seqs {
            let stored: bool = conn
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM events WHERE seq = ?)")?
                .query_row([seq], |row| row.get(0))?;
            if !stored || *seq <= start || *seq > last_seq {
                total.unavailable += 1;
                continue;
            }
            let previous = row_state(conn, sink, *seq)?;
            let nth = usize::try_from(total.changed).unwrap_or(usize::MAX);
            let mut change = Change { conn, sink, seq: *seq, previous, ahead: *seq > cursor, deltas: &mut deltas };
            match rule(&mut change, nth)? {
                Changed::Yes => total.changed += 1,
                Changed::No => total.unchanged += 1,
            }
        }
        deltas.apply(conn, sink, None)?;
        Ok(total)
    }
}

enum Changed {
    Yes,
    No,
}

/// One delivery about to be changed.
struct Change<'a> {
    conn: &'a Connection,
    sink: i64,
    seq: Seq,
    previous: Option<ExceptionState>,
    /// Its turn has not come yet.
    ahead: bool,
    deltas: &'a mut Deltas,
}

impl Change<'_> {
    fn replay(&mut self, due: Timestamp) -> Result<Changed, JournalError> {
        match self.previous {
            // Its turn comes anyway.
            None if self.ahead => Ok(Changed::No),
            Some(ExceptionState::Waiting | ExceptionState::Replaying) => Ok(Changed::No),
            // Keeps its place and its count of attempts, only sooner.
            Some(ExceptionState::Retrying) => {
                self.conn
                    .prepare_cached("UPDATE exceptions SET next_at = ? WHERE sink = ? AND seq = ?")?
                    .execute(params![due.as_millis(), self.sink, self.seq])?;
                Ok(Changed::Yes)
            }
            None | Some(ExceptionState::Parked | ExceptionState::Dropped | ExceptionState::Filtered) => {
                self.write(ExceptionState::Replaying, Some(due), "replay asked for")
            }
        }
    }

    fn give_up(&mut self, reason: &str) -> Result<Changed, JournalError> {
        match self.previous {
            // There is nothing to give up where it is not for this sink.
            Some(ExceptionState::Dropped | ExceptionState::Filtered) => Ok(Changed::No),
            // Delivered already.
            None if !self.ahead => Ok(Changed::No),
            _ => self.write(ExceptionState::Dropped, None, reason),
        }
    }

    fn park(&mut self, reason: &str) -> Result<Changed, JournalError> {
        match self.previous {
            None => self.write(ExceptionState::Parked, None, reason),
            Some(_) => Ok(Changed::No),
        }
    }

    fn write(
        &mut self,
        state: ExceptionState,
        next_at: Option<Timestamp>,
        reason: &str,
    ) -> Result<Changed, JournalError> {
        match self.previous {
            Some(previous) => self.deltas.count(previous, -1),
            None if self.ahead => self.deltas.ahead += 1,
            None => self.deltas.delivered -= 1,
        }
        self.deltas.count(state, 1);
        let row = ExceptionRow {
            seq: self.seq,
            state,
            lane: 0,
            attempts: 0,
            first_at: None,
            next_at,
            reason: reason.to_owned(),
        };
        put_row(self.conn, self.sink, &row)?;
        Ok(Changed::Yes)
    }
}

fn audit(conn: &Connection, record: &AuditRecord) -> Result<(), JournalError> {
    conn.prepare_cached("INSERT INTO audit (at, actor, action, detail) VALUES (?, ?, ?, ?)")?.execute(params![
        record.at.as_millis(),
        record.actor,
        record.action,
        record.detail.to_string()
    ])?;
    Ok(())
}
