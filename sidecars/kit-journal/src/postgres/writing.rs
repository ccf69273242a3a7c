//! Writing what the books have come to: one statement a table.

use kit::clock::Timestamp;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::books::{Book, Books};
use super::link::{Statement, param};
use crate::copy::storable;
use crate::engine::ExceptionRow;
use crate::event::Seq;
use crate::packed;

impl Books {
    /// What there is to write.
    pub(super) fn statements(&self) -> Vec<Statement<'_>> {
        let mut statements = Vec::new();
        for (name, book) in self.sinks.iter().filter(|(_, book)| book.is_changed) {
            statements.push(book.write(name));
        }
        // One that was made in this commit has no row to take away.
        for (name, book) in self.forgotten.iter().filter(|(_, book)| !book.is_new) {
            statements.extend(book.forget(name));
        }
        let (mut sinks, mut gone) = (Vec::new(), (Vec::new(), Vec::new()));
        let mut rows: Vec<&ExceptionRow> = Vec::new();
        for book in self.sinks.values().chain(self.forgotten.iter().map(|(_, book)| book)) {
            for seq in &book.changed {
                if let Some(row) = book.rows.get(seq) {
                    sinks.push(book.id);
                    rows.push(row);
                } else {
                    gone.0.push(book.id);
                    gone.1.push(*seq);
                }
            }
        }
        if !gone.0.is_empty() {
            statements.push(Statement {
                sql: "DELETE FROM @exceptions e USING unnest($1::int[], $2::bigint[]) AS gone (sink, seq)
                      WHERE e.sink = gone.sink AND e.seq = gone.seq"
                    .to_owned(),
                params: vec![param(gone.0, Type::INT4_ARRAY), param(gone.1, Type::INT8_ARRAY)],
            });
        }
        if !rows.is_empty() {
            statements.push(write_rows(sinks, &rows));
        }
        if !self.attempts.is_empty() {
            let of =
                |pick: fn(&(i32, i64, Seq, Seq, String)) -> i64| self.attempts.iter().map(pick).collect::<Vec<_>>();
            let sinks: Vec<i32> = self.attempts.iter().map(|attempt| attempt.0).collect();
            let entries: Vec<&str> = self.attempts.iter().map(|attempt| &*attempt.4).collect();
            statements.push(Statement {
                sql: "INSERT INTO @attempts (sink, at, min_seq, max_seq, entries)
                      SELECT * FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])"
                    .to_owned(),
                params: vec![
                    param(sinks, Type::INT4_ARRAY),
                    param(of(|attempt| attempt.1), Type::INT8_ARRAY),
                    param(of(|attempt| attempt.2), Type::INT8_ARRAY),
                    param(of(|attempt| attempt.3), Type::INT8_ARRAY),
                    param(entries, Type::TEXT_ARRAY),
                ],
            });
        }
        let (forgotten, kept): (Vec<_>, Vec<_>) = self.values.iter().partition(|(_, value)| value.is_empty());
        if !forgotten.is_empty() {
            let names: Vec<&str> = forgotten.into_iter().map(|(name, _)| name.as_str()).collect();
            let sql = "DELETE FROM @meta WHERE name = ANY($1)".to_owned();
            statements.push(Statement { sql, params: vec![param(names, Type::TEXT_ARRAY)] });
        }
        if !kept.is_empty() {
            let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
            let values: Vec<&[u8]> = kept.iter().map(|(_, value)| value.as_slice()).collect();
            statements.push(Statement {
                sql: "INSERT INTO @meta (name, value) SELECT * FROM unnest($1::text[], $2::bytea[])
                      ON CONFLICT (name) DO UPDATE SET value = excluded.value"
                    .to_owned(),
                params: vec![param(names, Type::TEXT_ARRAY), param(values, Type::BYTEA_ARRAY)],
            });
        }
        for (at, actor, action, detail) in &self.audit {
            statements.push(Statement {
                sql: "INSERT INTO @audit (at, actor, action, detail) VALUES ($1, $2, $3, $4)".to_owned(),
                params: vec![
                    param(*at, Type::INT8),
                    param(actor, Type::TEXT),
                    param(action, Type::TEXT),
                    param(detail, Type::TEXT),
                ],
            });
        }
        statements
    }
}

impl Book {
    /// Its lease stays, with another epoch: whoever delivered under it and comes back late records nothing at a sink that
    /// gets the name again.
    fn forget(&self, name: &str) -> [Statement<'static>; 2] {
        let sink =
            Statement { sql: "DELETE FROM @sinks WHERE id = $1".to_owned(), params: vec![param(self.id, Type::INT4)] };
        let lease = Statement {
            sql: "UPDATE @leases SET epoch = epoch + 1, holder = $2, until = clock_timestamp() WHERE sink = $1"
                .to_owned(),
            params: vec![param(name.to_owned(), Type::TEXT), param(Uuid::nil(), Type::UUID)],
        };
        [sink, lease]
    }

    fn write(&self, name: &str) -> Statement<'static> {
        let counters =
            [self.start, self.cursor, self.delivered, self.open, self.parked, self.dropped, self.filtered, self.ahead];
        let mut params = vec![param(self.id, Type::INT4)];
        params.extend(counters.map(|counter| param(counter, Type::INT8)));
        params.push(param(self.paused, Type::BOOL));
        let sql = if self.is_new {
            params.push(param(name.to_owned(), Type::TEXT));
            "INSERT INTO @sinks (id, start, cursor, delivered, open, parked, dropped, filtered, ahead, paused, name)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        } else {
            "UPDATE @sinks SET start = $2, cursor = $3, delivered = $4, open = $5, parked = $6, dropped = $7,
                filtered = $8, ahead = $9, paused = $10 WHERE id = $1"
        };
        Statement { sql: sql.to_owned(), params }
    }
}

fn write_rows<'a>(sinks: Vec<i32>, rows: &[&ExceptionRow]) -> Statement<'a> {
    let of = |pick: fn(&ExceptionRow) -> i64| rows.iter().map(|row| pick(row)).collect::<Vec<_>>();
    let times = |pick: fn(&ExceptionRow) -> Option<Timestamp>| {
        rows.iter().map(|row| pick(row).map(Timestamp::as_millis)).collect::<Vec<_>>()
    };
    #[expect(clippy::cast_possible_truncation, reason = "one of five small numbers")]
    let states: Vec<i16> = rows.iter().map(|row| packed::state_code(row.state) as i16).collect();
    let reasons: Vec<String> = rows.iter().map(|row| storable(&row.reason)).collect();
    Statement {
        sql: "INSERT INTO @exceptions (sink, seq, state, lane, attempts, first_at, next_at, reason)
              SELECT * FROM unnest($1::int[], $2::bigint[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[],
                $7::bigint[], $8::text[])
              ON CONFLICT (sink, seq) DO UPDATE SET state = excluded.state, lane = excluded.lane,
                attempts = excluded.attempts, first_at = excluded.first_at, next_at = excluded.next_at,
                reason = excluded.reason"
            .to_owned(),
        params: vec![
            param(sinks, Type::INT4_ARRAY),
            param(of(|row| row.seq), Type::INT8_ARRAY),
            param(states, Type::INT2_ARRAY),
            param(of(|row| row.lane), Type::INT8_ARRAY),
            param(of(|row| i64::from(row.attempts)), Type::INT8_ARRAY),
            param(times(|row| row.first_at), Type::INT8_ARRAY),
            param(times(|row| row.next_at), Type::INT8_ARRAY),
            param(reasons, Type::TEXT_ARRAY),
        ],
    }
}
