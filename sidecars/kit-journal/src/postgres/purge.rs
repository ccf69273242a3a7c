//! Removing what has been delivered long enough ago, a bounded step at a time.

use tokio_postgres::types::Type;

use super::append::OVERHEAD;
use super::books::Books;
use super::link::{Speaker, Statement, param};
use crate::engine::{Purge, Purged};
use crate::error::JournalError;
use crate::event::Seq;

/// How far the purge has come, so that events it had to keep are not looked at every time.
#[derive(Default)]
pub(super) struct Progress {
    floor: Seq,
    /// Steps that have found nothing behind what they looked at.
    ends: u32,
}

/// One step.
pub(super) struct Step {
    /// Positions of events that go, with their rows.
    events: Vec<Seq>,
    /// Positions whose keys go.
    keys: Vec<Seq>,
    bytes: i64,
    ids: [Vec<i64>; 2],
    /// It is as large as it may be.
    full: bool,
}

impl Step {
    /// What goes. An event goes only when every sink is past it and none has it open or parked.
    pub(super) async fn find(
        speaker: &Speaker<'_>,
        plan: &Purge,
        progress: &mut Progress,
        books: &Books,
        used_bytes: u64,
    ) -> Result<Self, JournalError> {
        if progress.ends >= Purge::ENDS_A_ROUND {
            *progress = Progress::default();
        }
        let limit = i64::from(plan.limit);
        let mut step =
            Self { events: Vec::new(), keys: Vec::new(), bytes: 0, ids: [Vec::new(), Vec::new()], full: false };
        if let Some(settled) = books.settled() {
            // A key tells how old an event is; what has none any more is older than any that has.
            let due = speaker
                .query(
                    "SELECT e.seq, k.age, octet_length(e.head) + octet_length(e.body),
                        EXISTS (SELECT 1 FROM @sinks s JOIN @exceptions x ON x.sink = s.id AND x.seq = e.seq
                            WHERE x.state NOT IN (5, 6))
                     FROM (SELECT * FROM @events WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3) e
                        LEFT JOIN @keys k ON k.seq = e.seq
                     ORDER BY e.seq",
                    &[param(progress.floor, Type::INT8), param(settled, Type::INT8), param(limit, Type::INT8)],
                )
                .await?;
            let mut is_end = due.len() < plan.limit as usize;
            for row in due {
                let is_old = row.get::<_, Option<i64>>(1).is_none_or(|age| age < plan.delivered_before.as_millis());
                if !is_old && used_bytes <= plan.max_bytes {
                    is_end = true;
                    break;
                }
                progress.floor = row.get(0);
                if !row.get::<_, bool>(3) && !books.touch(row.get(0)) {
                    step.events.push(row.get(0));
                    step.bytes += i64::from(row.get::<_, i32>(2)) + OVERHEAD;
                }
            }
            progress.ends += u32::from(is_end);
            step.full = !is_end;
        }
        let oldest = speaker
            .query(
                "SELECT seq FROM (SELECT seq, age FROM @keys ORDER BY seq LIMIT $2) k WHERE age < $1",
                &[param(plan.keys_before.as_millis(), Type::INT8), param(limit, Type::INT8)],
            )
            .await?;
        step.keys = oldest.iter().map(|row| row.get(0)).collect();
        for (ids, (table, before)) in
            step.ids.iter_mut().zip([("attempts", plan.delivered_before), ("audit", plan.audit_before)])
        {
            let sql = format!("SELECT id FROM (SELECT id, at FROM @{table} ORDER BY id LIMIT $2) o WHERE at < $1");
            let params = [param(before.as_millis(), Type::INT8), param(limit, Type::INT8)];
            *ids = speaker.query(&sql, &params).await?.iter().map(|row| row.get(0)).collect();
        }
        step.full |= [&step.keys, &step.ids[0], &step.ids[1]].iter().any(|went| went.len() >= plan.limit as usize);
        Ok(step)
    }

    pub(super) fn purged(&self) -> Purged {
        Purged { events: self.events.len() as u64, keys: self.keys.len() as u64, more: self.full }
    }

    pub(super) fn bytes(&self) -> i64 {
        self.bytes
    }

    pub(super) fn statements(&self, _plan: &Purge) -> Vec<Statement<'static>> {
        let mut statements = Vec::new();
        let mut remove = |sql: &str, seqs: &[i64]| {
            if !seqs.is_empty() {
                let params = vec![param(seqs.to_vec(), Type::INT8_ARRAY)];
                statements.push(Statement { sql: sql.to_owned(), params });
            }
        };
        remove("DELETE FROM @events WHERE seq = ANY($1)", &self.events);
        remove("DELETE FROM @exceptions WHERE sink IN (SELECT id FROM @sinks) AND seq = ANY($1)", &self.events);
        remove("DELETE FROM @keys WHERE seq = ANY($1)", &self.keys);
        remove("DELETE FROM @attempts WHERE id = ANY($1)", &self.ids[0]);
        remove("DELETE FROM @audit WHERE id = ANY($1)", &self.ids[1]);
        statements
    }
}
