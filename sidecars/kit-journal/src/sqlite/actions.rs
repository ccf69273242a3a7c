//! What operators ask for: replay, drop, pause, and the audit record of it. All idempotent.

use rusqlite::{Connection, params};

use crate::account::{Changes, Rows as _};
use crate::engine::{Action, ActionOutcome, AuditRecord, Forgotten};
use crate::error::JournalError;
use crate::event::Seq;
use crate::forgetting::Forgetting;
use crate::packed::state_of;

use super::records;
use super::settle::{SinkRows, Sinks, numbers};

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
            Action::Replay { sink, seqs, .. }
            | Action::Revive { sink, seqs, .. }
            | Action::Drop { sink, seqs, .. }
            | Action::Reconsider { sink, seqs, .. }
            | Action::Park { sink, seqs, .. } => self.change(conn, action, (sink, seqs), last_seq),
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
        let mut rows_of_sink = SinkRows { conn, sink };
        for (seq, _) in &found {
            rows_of_sink.remove(*seq)?;
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
        action: &Action,
        (sink, seqs): (&str, &[Seq]),
        last_seq: Seq,
    ) -> Result<ActionOutcome, JournalError> {
        let sink = self.id(sink)?;
        let mut total = ActionOutcome::default();
        let (start, cursor): (Seq, Seq) = conn
            .prepare_cached("SELECT start, cursor FROM sinks WHERE id = ?")?
            .query_row([sink], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mut rows = SinkRows { conn, sink };
        let mut changes = Changes::new(&mut rows, cursor);
        for seq in seqs {
            let stored: bool = conn
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM events WHERE seq = ?)")?
                .query_row([seq], |row| row.get(0))?;
            if !stored || *seq <= start || *seq > last_seq {
                total.unavailable += 1;
            } else if changes.act(action, *seq, usize::try_from(total.changed).unwrap_or(usize::MAX))? {
                total.changed += 1;
            } else {
                total.unchanged += 1;
            }
        }
        let (deltas, cursor) = changes.end();
        rows.apply(deltas, cursor)?;
        Ok(total)
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
