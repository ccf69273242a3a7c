//! Removing what has been delivered long enough ago, a bounded step at a time. An event goes only
//! when every sink is past it and none has it open or parked.

use rusqlite::{Connection, params};

use crate::engine::Purge;
use crate::error::JournalError;
use crate::event::Seq;

/// How far the purge has come, so that events it had to keep are not looked at every time.
#[derive(Default)]
pub(super) struct Progress {
    floor: Seq,
    steps: u32,
}

/// After this many steps the kept ones are looked at again: parked events may have been resolved.
const STEPS_A_ROUND: u32 = 512;

impl Progress {
    pub(super) fn step(&mut self, conn: &Connection, plan: &Purge, used_bytes: u64) -> Result<u64, JournalError> {
        self.steps += 1;
        if self.steps > STEPS_A_ROUND {
            *self = Self::default();
        }
        let settled: Option<Seq> = conn.query_row("SELECT min(cursor) FROM sinks", [], |row| row.get(0))?;
        let Some(settled) = settled else { return Ok(0) };
        let before = if used_bytes > plan.max_bytes { i64::MAX } else { plan.delivered_before.as_millis() };
        let due: Vec<(Seq, bool)> = conn
            .prepare_cached(
                "SELECT seq, EXISTS (
                    SELECT 1 FROM sinks JOIN exceptions ON exceptions.sink = sinks.id AND exceptions.seq = events.seq
                    WHERE exceptions.state <> 5)
                 FROM events WHERE seq > ? AND seq <= ? AND at < ? ORDER BY seq LIMIT ?",
            )?
            .query_map(params![self.floor, settled, before, plan.limit], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let mut removed = 0;
        for (seq, kept) in &due {
            if !kept {
                conn.prepare_cached("DELETE FROM events WHERE seq = ?")?.execute([seq])?;
                conn.prepare_cached("DELETE FROM exceptions WHERE seq = ? AND sink IN (SELECT id FROM sinks)")?
                    .execute([seq])?;
                removed += 1;
            }
            self.floor = *seq;
        }
        let before = plan.delivered_before.as_millis();
        conn.prepare_cached(
            "DELETE FROM attempts WHERE id IN (SELECT id FROM attempts WHERE at < ? ORDER BY id LIMIT ?)",
        )?
        .execute(params![before, plan.limit])?;
        conn.prepare_cached("DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ? ORDER BY id LIMIT ?)")?
            .execute(params![plan.keys_before.as_millis(), plan.limit])?;
        Ok(removed)
    }
}
