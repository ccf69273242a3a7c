//! Removing what has been delivered long enough ago, a bounded step at a time.

use tokio_postgres::types::Type;

use super::append::OVERHEAD;
use super::books::Books;
use super::link::{Speaker, Statement, param};
use crate::engine::{Purge, Purged};
use crate::error::JournalError;
use crate::event::Seq;

/// How far the purge has come, so that events it had to keep are not looked at every time; nor what it has removed, which lies
/// at the head of each index for as long as somebody's snapshot may still see it.
#[derive(Default)]
pub(super) struct Progress {
    floor: Seq,
    keys: Seq,
    /// Of attempts and of the audit trail.
    ids: [i64; 2],
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
    /// Ids of the sinks whose rows about these events go with them.
    sinks: Vec<i32>,
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
        let mut step = Self {
            sinks: books.ids(),
            events: Vec::new(),
            keys: Vec::new(),
            bytes: 0,
            ids: Default::default(),
            full: false,
        };
        if let Some(settled) = books.settled() {
            // A key tells how old an event is; what has none any more is older than any that has. Not by a join: a planner that
            // merges the two goes through the index of keys from its first entry on. And with one bound in the innermost question:
            // two look so narrow to a server that has not analysed the table that it reads, and sorts, all there is between them;
            // a count of rows of named sinks, because an `EXISTS` over both tables went through all rows of a state, for each event.
            let due = speaker
                .query(
                    "SELECT e.seq, (SELECT age FROM @keys k WHERE k.seq = e.seq),
                        octet_length(e.head) + octet_length(e.body),
                        (SELECT count(*) FROM @exceptions x
                            WHERE x.sink = ANY($4) AND x.seq = e.seq AND x.state NOT IN (5, 6)) > 0
                     FROM (SELECT * FROM @events WHERE seq > $1 ORDER BY seq LIMIT $3) e
                     WHERE e.seq <= $2 ORDER BY e.seq",
                    &[
                        param(progress.floor, Type::INT8),
                        param(settled, Type::INT8),
                        param(limit, Type::INT8),
                        param(step.sinks.clone(), Type::INT4_ARRAY),
                    ],
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
                "SELECT seq FROM (SELECT seq, age FROM @keys WHERE seq > $3 ORDER BY seq LIMIT $2) k WHERE age < $1",
                &[
                    param(plan.keys_before.as_millis(), Type::INT8),
                    param(limit, Type::INT8),
                    param(progress.keys, Type::INT8),
                ],
            )
            .await?;
        step.keys = oldest.iter().map(|row| row.get(0)).collect();
        progress.keys = step.keys.iter().copied().fold(progress.keys, Seq::max);
        let old = [("attempts", plan.delivered_before), ("audit", plan.audit_before)];
        for ((ids, floor), (table, before)) in step.ids.iter_mut().zip(&mut progress.ids).zip(old) {
            let sql = format!(
                "SELECT id FROM (SELECT id, at FROM @{table} WHERE id > $3 ORDER BY id LIMIT $2) o WHERE at < $1"
            );
            let params = [param(before.as_millis(), Type::INT8), param(limit, Type::INT8), param(*floor, Type::INT8)];
            *ids = speaker.query(&sql, &params).await?.iter().map(|row| row.get(0)).collect();
            *floor = ids.iter().copied().fold(*floor, i64::max);
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
        if !self.events.is_empty() {
            // Row by row of its key: asked for hundreds at once the server reads all rows of the table instead. No row moves
            // between look-up and removal, whoever writes one holds the lock that this commit holds.
            let sql = "DELETE FROM @exceptions WHERE ctid = ANY (ARRAY(
                    SELECT x.ctid FROM unnest($1::bigint[]) AS gone (seq) CROSS JOIN LATERAL (
                        SELECT o.ctid FROM @exceptions o WHERE o.sink = ANY($2) AND o.seq = gone.seq OFFSET 0) x))";
            let params =
                vec![param(self.events.clone(), Type::INT8_ARRAY), param(self.sinks.clone(), Type::INT4_ARRAY)];
            statements.push(Statement { sql: sql.to_owned(), params });
        }
        let mut remove = |sql: &str, seqs: &[i64]| {
            if !seqs.is_empty() {
                let params = vec![param(seqs.to_vec(), Type::INT8_ARRAY)];
                statements.push(Statement { sql: sql.to_owned(), params });
            }
        };
        remove("DELETE FROM @events WHERE seq = ANY($1)", &self.events);
        remove("DELETE FROM @keys WHERE seq = ANY($1)", &self.keys);
        remove("DELETE FROM @attempts WHERE id = ANY($1)", &self.ids[0]);
        remove("DELETE FROM @audit WHERE id = ANY($1)", &self.ids[1]);
        statements
    }
}
