//! Moving a sink's cursor and its counters. The counters close by construction: what the cursor
//! passes and nothing else accounts for was delivered.

use std::collections::HashMap;

use kit::clock::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::records;
use crate::engine::{Attempt, ExceptionRow, ExceptionState, Settlement};
use crate::error::JournalError;
use crate::event::Seq;
use crate::forgetting::Numbers;
use crate::packed::{self, state_code, state_of};

/// Sink ids by name; everything else about a sink is read from and written to its row.
pub(super) struct Sinks {
    ids: HashMap<String, i64>,
}

/// Changes of a sink's counters, applied in one update.
#[derive(Default)]
pub(super) struct Deltas {
    pub(super) delivered: i64,
    pub(super) open: i64,
    pub(super) parked: i64,
    pub(super) dropped: i64,
    pub(super) filtered: i64,
    pub(super) ahead: i64,
}

impl Deltas {
    pub(super) fn count(&mut self, state: ExceptionState, by: i64) {
        match state {
            ExceptionState::Parked => self.parked += by,
            ExceptionState::Dropped => self.dropped += by,
            ExceptionState::Filtered => self.filtered += by,
            ExceptionState::Retrying | ExceptionState::Waiting | ExceptionState::Replaying => self.open += by,
        }
    }

    pub(super) fn apply(&self, conn: &Connection, sink: i64, cursor: Option<Seq>) -> Result<(), JournalError> {
        conn.prepare_cached(
            "UPDATE sinks SET delivered = delivered + ?, open = open + ?, parked = parked + ?, dropped = dropped + ?,
                filtered = filtered + ?, ahead = ahead + ?, cursor = max(cursor, ifnull(?, cursor)) WHERE id = ?",
        )?
        .execute(params![
            self.delivered,
            self.open,
            self.parked,
            self.dropped,
            self.filtered,
            self.ahead,
            cursor,
            sink
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
        let new = settlement.cursor.max(old);
        let mut deltas = Deltas::default();
        // A settlement whose commit was in doubt comes again: the second time it must change nothing.
        if new > old {
            let filtered = i64::try_from(settlement.filtered).unwrap_or(i64::MAX);
            deltas.filtered = filtered;
            let ahead: i64 = conn
                .prepare_cached("SELECT count(*) FROM exceptions WHERE sink = ? AND seq > ? AND seq <= ?")?
                .query_row(params![sink, old, new], |row| row.get(0))?;
            deltas.ahead -= ahead;
            deltas.delivered += new - old - ahead - filtered;
            if ahead > 0 {
                for seq in settlement.once.iter().filter(|seq| (old + 1..=new).contains(*seq)) {
                    too_late(conn, sink, *seq, true, &mut deltas)?;
                }
            }
        }
        for row in &settlement.set {
            match row_state(conn, sink, row.seq)? {
                // An operator dropped it meanwhile: that word stands.
                Some(ExceptionState::Dropped) => continue,
                Some(previous) => deltas.count(previous, -1),
                None => deltas.delivered -= 1,
            }
            deltas.count(row.state, 1);
            put_row(conn, sink, row)?;
        }
        for seq in &settlement.delivered {
            if let Some(previous) = row_state(conn, sink, *seq)?.filter(|state| state.is_open()) {
                remove_row(conn, sink, *seq)?;
                deltas.count(previous, -1);
                if *seq <= new {
                    deltas.delivered += 1;
                } else {
                    // The cursor counts it when it comes by.
                    deltas.ahead -= 1;
                }
            } else if settlement.once.contains(seq) {
                too_late(conn, sink, *seq, *seq <= new, &mut deltas)?;
            }
        }
        record_attempts(conn, sink, age, &settlement.attempts)?;
        for (name, value) in &settlement.values {
            records::put_value(conn, name, value)?;
        }
        deltas.apply(conn, sink, Some(new))
    }
}

/// Of the sinks that were forgotten.
pub(super) fn numbers(conn: &Connection) -> Result<Numbers, JournalError> {
    let mut values = conn.prepare_cached("SELECT name, value FROM meta WHERE substr(name, 1, length(?1)) = ?1")?;
    let values = values.query_map([Numbers::PREFIX], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let values: Vec<(String, Vec<u8>)> = values.collect::<Result<_, _>>()?;
    Ok(Numbers::read(values.iter().map(|(name, value)| (name.clone(), &value[..]))))
}

/// A delivery that an operator has dropped, or asked for again, when it was on its way: it has been made, and counts.
/// What is parked stays so: that is the receiver's word.
fn too_late(conn: &Connection, sink: i64, seq: Seq, passed: bool, deltas: &mut Deltas) -> Result<(), JournalError> {
    let ended = |state: &ExceptionState| *state != ExceptionState::Parked;
    if let Some(previous) = row_state(conn, sink, seq)?.filter(ended) {
        remove_row(conn, sink, seq)?;
        deltas.count(previous, -1);
        if passed {
            deltas.delivered += 1;
        } else {
            deltas.ahead -= 1;
        }
    }
    Ok(())
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

pub(super) fn put_row(conn: &Connection, sink: i64, row: &ExceptionRow) -> Result<(), JournalError> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO exceptions (sink, seq, state, lane, attempts, first_at, next_at, reason)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        sink,
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

pub(super) fn remove_row(conn: &Connection, sink: i64, seq: Seq) -> Result<(), JournalError> {
    conn.prepare_cached("DELETE FROM exceptions WHERE sink = ? AND seq = ?")?.execute(params![sink, seq])?;
    Ok(())
}

fn record_attempts(conn: &Connection, sink: i64, age: Timestamp, attempts: &[Attempt]) -> Result<(), JournalError> {
    if let Some((min, max, entries)) = packed::attempts(attempts)? {
        conn.prepare_cached("INSERT INTO attempts (sink, at, min_seq, max_seq, entries) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![sink, age.as_millis(), min, max, entries])?;
    }
    Ok(())
}
