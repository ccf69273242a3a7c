//! A sink's row and its exceptions' rows, for [`crate::account`] to change.

use std::collections::HashMap;

use kit::clock::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::records;
use crate::account::{Changes, Deltas, Rows};
use crate::engine::{Attempt, ExceptionRow, ExceptionState, Settlement};
use crate::error::JournalError;
use crate::event::Seq;
use crate::forgetting::Numbers;
use crate::packed::{self, state_code, state_of};

/// Sink ids by name; everything else about a sink is read from and written to its row.
pub(super) struct Sinks {
    ids: HashMap<String, i64>,
}

/// A sink's rows.
pub(super) struct SinkRows<'a> {
    pub(super) conn: &'a Connection,
    pub(super) sink: i64,
}

impl Rows for SinkRows<'_> {
    fn state(&mut self, seq: Seq) -> Result<Option<ExceptionState>, JournalError> {
        row_state(self.conn, self.sink, seq)
    }

    fn between(&mut self, after: Seq, up_to: Seq) -> Result<i64, JournalError> {
        let count = self
            .conn
            .prepare_cached("SELECT count(*) FROM exceptions WHERE sink = ? AND seq > ? AND seq <= ?")?
            .query_row(params![self.sink, after, up_to], |row| row.get(0))?;
        Ok(count)
    }

    fn put(&mut self, row: &ExceptionRow) -> Result<(), JournalError> {
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO exceptions (sink, seq, state, lane, attempts, first_at, next_at, reason)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                self.sink,
                row.seq,
                state_code(row.state),
                row.lane,
                row.attempts,
                row.first_at.map(|at| at.as_millis()),
                row.next_at.map(|at| at.as_millis()),
                row.reason
            ])?;
        Ok(())
    }

    fn set_due(&mut self, seq: Seq, due: Timestamp) -> Result<(), JournalError> {
        self.conn.prepare_cached("UPDATE exceptions SET next_at = ? WHERE sink = ? AND seq = ?")?.execute(params![
            due.as_millis(),
            self.sink,
            seq
        ])?;
        Ok(())
    }

    fn remove(&mut self, seq: Seq) -> Result<(), JournalError> {
        self.conn
            .prepare_cached("DELETE FROM exceptions WHERE sink = ? AND seq = ?")?
            .execute(params![self.sink, seq])?;
        Ok(())
    }
}

impl SinkRows<'_> {
    /// Applies changes of the sink's counters, in one update.
    pub(super) fn apply(&self, deltas: Deltas, cursor: Seq) -> Result<(), JournalError> {
        self.conn
            .prepare_cached(
                "UPDATE sinks SET delivered = delivered + ?, open = open + ?, parked = parked + ?, dropped = dropped + ?,
                    filtered = filtered + ?, ahead = ahead + ?, cursor = max(cursor, ?) WHERE id = ?",
            )?
            .execute(params![
                deltas.delivered,
                deltas.open,
                deltas.parked,
                deltas.dropped,
                deltas.filtered,
                deltas.ahead,
                cursor,
                self.sink
            ])?;
        Ok(())
    }
}

impl Sinks {
    pub(super) fn load(conn: &Connection) -> Result<Self, JournalError> {
        let mut query = conn.prepare("SELECT name, id FROM sinks")?;
        let ids = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(Self { ids })
    }

    pub(super) fn id(&self, name: &str) -> Result<i64, JournalError> {
        self.ids.get(name).copied().ok_or_else(|| JournalError::UnknownSink(name.to_owned()))
    }

    /// Makes a sink known; the first one that a journal ever had gets everything that is in it.
    pub(super) fn register(&mut self, conn: &Connection, name: &str, last_seq: Seq) -> Result<bool, JournalError> {
        if self.ids.contains_key(name) {
            return Ok(false);
        }
        let (id, is_first) = numbers(conn)?.next(name, self.ids.values().copied());
        let start = if is_first { 0 } else { last_seq };
        conn.execute(
            "INSERT INTO sinks (id, name, start, cursor) VALUES (?, ?, ?, ?)",
            params![id, name, start, start],
        )?;
        // Forgotten again by the reload that follows a failed commit.
        self.ids.insert(name.to_owned(), id);
        Ok(true)
    }

    /// As it is after the sink's row is gone.
    pub(super) fn remove(&mut self, name: &str) {
        self.ids.remove(name);
    }

    pub(super) fn settle(
        &self,
        conn: &Connection,
        settlement: &Settlement,
        age: Timestamp,
    ) -> Result<(), JournalError> {
        let sink = self.id(&settlement.sink)?;
        let old: Seq =
            conn.prepare_cached("SELECT cursor FROM sinks WHERE id = ?")?.query_row([sink], |row| row.get(0))?;
        let mut rows = SinkRows { conn, sink };
        let mut changes = Changes::new(&mut rows, old);
        changes.settle(settlement)?;
        let (deltas, cursor) = changes.end();
        record_attempts(conn, sink, age, &settlement.attempts)?;
        for (name, value) in &settlement.values {
            records::put_value(conn, name, value)?;
        }
        rows.apply(deltas, cursor)
    }
}

/// Of the sinks that were forgotten.
pub(super) fn numbers(conn: &Connection) -> Result<Numbers, JournalError> {
    let mut values = conn.prepare_cached("SELECT name, value FROM meta WHERE substr(name, 1, length(?1)) = ?1")?;
    let values = values.query_map([Numbers::PREFIX], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let values: Vec<(String, Vec<u8>)> = values.collect::<Result<_, _>>()?;
    Ok(Numbers::read(values.iter().map(|(name, value)| (name.clone(), &value[..]))))
}

pub(super) fn row_state(conn: &Connection, sink: i64, seq: Seq) -> Result<Option<ExceptionState>, JournalError> {
    let code: Option<i64> = conn
        .prepare_cached("SELECT state FROM exceptions WHERE sink = ? AND seq = ?")?
        .query_row(params![sink, seq], |row| row.get(0))
        .optional()?;
    match code {
        None => Ok(None),
        Some(code) => state_of(code).map(Some).ok_or(JournalError::Damaged { seq, what: "delivery state is unknown" }),
    }
}

fn record_attempts(conn: &Connection, sink: i64, age: Timestamp, attempts: &[Attempt]) -> Result<(), JournalError> {
    if let Some((min, max, entries)) = packed::attempts(attempts)? {
        conn.prepare_cached("INSERT INTO attempts (sink, at, min_seq, max_seq, entries) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![sink, age.as_millis(), min, max, entries])?;
    }
    Ok(())
}
