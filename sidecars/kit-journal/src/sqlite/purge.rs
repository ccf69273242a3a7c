//! Removing what has been delivered long enough ago, a bounded step at a time. An event goes only
//! when every sink is past it and none has it open or parked.

use kit::clock::Timestamp;
use rusqlite::{Connection, params};

use crate::engine::Purge;
use crate::error::JournalError;
use crate::event::Seq;

use super::dedupe::ENTRY;

/// How far the purge has come, so that events it had to keep are not looked at every time.
#[derive(Default)]
pub(super) struct Progress {
    floor: Seq,
    /// Steps that have found nothing behind what they looked at.
    ends: u32,
}

impl Progress {
    /// One step: events that went, and whether it was as large as it may be.
    pub(super) fn step(
        &mut self,
        conn: &Connection,
        plan: &Purge,
        used_bytes: u64,
    ) -> Result<(u64, bool), JournalError> {
        if self.ends >= Purge::ENDS_A_ROUND {
            *self = Self::default();
        }
        let settled: Option<Seq> = conn.query_row("SELECT min(cursor) FROM sinks", [], |row| row.get(0))?;
        let Some(settled) = settled else { return Ok((0, false)) };
        let old = if used_bytes > plan.max_bytes { Seq::MAX } else { accepted_before(conn, plan.delivered_before)? };
        let due: Vec<(Seq, bool)> = conn
            .prepare_cached(
                "SELECT seq, EXISTS (
                    SELECT 1 FROM sinks JOIN exceptions ON exceptions.sink = sinks.id AND exceptions.seq = events.seq
                    WHERE exceptions.state NOT IN (5, 6))
                 FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            )?
            .query_map(params![self.floor, settled.min(old), plan.limit], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let is_end = due.len() < plan.limit as usize;
        self.ends += u32::from(is_end);
        let mut removed = 0;
        for (seq, kept) in &due {
            // Before it is removed: one that is damaged is passed by in the next step.
            self.floor = *seq;
            if !kept {
                conn.prepare_cached("DELETE FROM events WHERE seq = ?")?.execute([seq])?;
                conn.prepare_cached("DELETE FROM exceptions WHERE seq = ? AND sink IN (SELECT id FROM sinks)")?
                    .execute([seq])?;
                removed += 1;
            }
        }
        let attempts = remove_older(conn, "attempts", plan.delivered_before, plan.limit)?;
        let audit = remove_older(conn, "audit", plan.audit_before, plan.limit)?;
        Ok((removed, !is_end || attempts || audit))
    }
}

/// Removes the oldest rows of a table in order of `id`, up to the first that is young enough to stay: what
/// stays is not looked at. Whether as many went as may.
fn remove_older(conn: &Connection, table: &str, before: Timestamp, limit: u32) -> Result<bool, JournalError> {
    let mut oldest = conn.prepare_cached(&format!("SELECT id, at FROM {table} ORDER BY id LIMIT ?"))?;
    let mut rows = oldest.query([limit])?;
    let (mut last, mut count) = (None::<i64>, 0);
    while let Some(row) = rows.next()?
        && row.get::<_, i64>(1)? < before.as_millis()
    {
        last = Some(row.get(0)?);
        count += 1;
    }
    if let Some(last) = last {
        conn.prepare_cached(&format!("DELETE FROM {table} WHERE id <= ?"))?.execute([last])?;
    }
    Ok(count == limit)
}

/// The last position accepted before `before` in the journal's own time. Receipt times would tell the
/// wall clock's, which may have jumped; keys are stamped with the journal's time, in order.
fn accepted_before(conn: &Connection, before: Timestamp) -> Result<Seq, JournalError> {
    let before = before.as_millis();
    let from_runs: Option<Seq> = conn
        .prepare_cached("SELECT max(last_seq) FROM key_runs WHERE newest_at < ?")?
        .query_row([before], |row| row.get(0))?;
    // What has no key any more is older than any key that there is – and than was asked for when its key was
    // forgotten, which is all that counts for it should events be kept for longer from now on.
    let (oldest_run, oldest_key, newest_key): (Option<Seq>, Option<Seq>, Option<Seq>) = conn
        .prepare_cached(
            "SELECT (SELECT min(last_seq - count + 1) FROM key_runs), (SELECT min(first_seq) FROM keys),
                (SELECT max(first_seq) FROM keys)",
        )?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let Some(oldest) = oldest_run.or(oldest_key) else { return Ok(Seq::MAX) };
    let known = from_runs.unwrap_or(0).max(oldest - 1);
    let (Some(mut low), Some(mut high)) = (oldest_key, newest_key) else { return Ok(known) };
    let mut row_of = conn.prepare_cached(
        "SELECT first_seq, at, length(entries) FROM keys WHERE first_seq <= ? ORDER BY first_seq DESC LIMIT 1",
    )?;
    let mut row_of = |seq: Seq| {
        row_of.query_row([seq], |row| Ok((row.get::<_, Seq>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
    };
    if row_of(low)?.1 >= before {
        return Ok(known);
    }
    // The row of `low` is old enough, all after the row of `high` are not.
    while low < high {
        let middle = high - (high - low) / 2;
        let (first, at, _) = row_of(middle)?;
        if at < before {
            low = middle;
        } else {
            high = first - 1;
        }
    }
    let (first, _, bytes) = row_of(low)?;
    Ok(known.max(first - 1 + bytes / ENTRY as i64))
}
