//! Records as rows of the tables, and back.

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::link::{Param, Speaker, Statement, param};
use crate::copy::{BATCH_BYTES, BATCH_KEYS, BATCH_ROWS, Position, Record, Table, storable};
use crate::error::JournalError;

/// Rows of a table after a position, in order: no more than so many, and no more bytes than so many but always one.
struct Reading {
    columns: &'static str,
    table: &'static str,
    after: &'static str,
    order: &'static str,
    /// What says how large a row is, where rows may be large.
    size: &'static str,
}

fn reading(table: Table) -> Reading {
    let by_id = |columns, table, size| Reading { columns, table, after: "id > $1", order: "id", size };
    match table {
        Table::Sinks => {
            let columns = "id, name, start, cursor, delivered, open, parked, dropped, filtered, ahead, paused";
            by_id(columns, "sinks", "0")
        }
        Table::Events => Reading {
            columns: "seq, at, head, sum, body",
            table: "events",
            after: "seq > $1",
            order: "seq",
            size: "octet_length(head) + octet_length(body)",
        },
        Table::Keys => {
            Reading { columns: "seq, age, key, id", table: "keys", after: "seq > $1", order: "seq", size: "0" }
        }
        Table::Deliveries => Reading {
            columns: "sink, seq, state, lane, attempts, first_at, next_at, reason",
            table: "exceptions",
            after: "(sink, seq) > ($1, $4)",
            order: "sink, seq",
            size: "octet_length(reason)",
        },
        Table::Attempts => by_id("id, sink, at, min_seq, max_seq, entries", "attempts", "octet_length(entries)"),
        Table::Audit => by_id("id, at, actor, action, detail", "audit", "octet_length(detail)"),
        Table::Values => Reading {
            columns: "name, value",
            table: "meta",
            after: "name COLLATE \"C\" > $1",
            order: "name COLLATE \"C\"",
            size: "octet_length(value)",
        },
    }
}

/// Records after a position, a batch.
pub(super) async fn read(speaker: &Speaker<'_>, table: Table, after: &Position) -> Result<Vec<Record>, JournalError> {
    let Reading { columns, table: name, after: condition, order, size } = reading(table);
    let sql = format!(
        "SELECT {columns} FROM (
            SELECT *, sum({size}) OVER (ORDER BY {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (SELECT * FROM @{name} WHERE {condition} ORDER BY {order} LIMIT $2) o) t
         WHERE coalesce(before, 0) < $3 ORDER BY {order}"
    );
    let small = |number: i64| i32::try_from(number.max(i64::from(i32::MIN))).unwrap_or(i32::MAX);
    let limit = i64::try_from(if table == Table::Keys { BATCH_KEYS } else { BATCH_ROWS }).unwrap_or(1);
    let first: Param<'_> = match table {
        Table::Values => param(after.name(), Type::TEXT),
        Table::Sinks | Table::Deliveries => param(small(after.first()), Type::INT4),
        _ => param(after.first(), Type::INT8),
    };
    let bytes = i64::try_from(BATCH_BYTES).unwrap_or(i64::MAX);
    let mut params = vec![first, param(limit, Type::INT8), param(bytes, Type::INT8)];
    if table == Table::Deliveries {
        params.push(param(after.second(), Type::INT8));
    }
    let rows = speaker.query(&sql, &params).await?;
    Ok(rows.iter().map(|row| record(table, row)).collect())
}

fn record(table: Table, row: &Row) -> Record {
    let number = |at: usize| row.get::<_, i64>(at);
    let text = |at: usize| row.get::<_, String>(at);
    match table {
        Table::Sinks => Record::Sink {
            id: i64::from(row.get::<_, i32>(0)),
            name: text(1),
            numbers: std::array::from_fn(|at| number(at + 2)),
            paused: row.get(10),
        },
        Table::Events => {
            Record::Event { seq: number(0), at: number(1), head: text(2), sum: row.get(3), body: row.get(4) }
        }
        Table::Keys => {
            let bytes = |at: usize| row.get::<_, Uuid>(at).into_bytes();
            Record::Key { seq: number(0), age: number(1), key: bytes(2), id: bytes(3) }
        }
        Table::Deliveries => Record::Delivery {
            sink: i64::from(row.get::<_, i32>(0)),
            seq: number(1),
            state: i64::from(row.get::<_, i16>(2)),
            lane: number(3),
            attempts: number(4),
            first_at: row.get(5),
            next_at: row.get(6),
            reason: text(7),
        },
        Table::Attempts => Record::Attempts {
            id: number(0),
            sink: i64::from(row.get::<_, i32>(1)),
            at: number(2),
            first: number(3),
            last: number(4),
            entries: text(5),
        },
        Table::Audit => {
            Record::Audit { id: number(0), at: number(1), actor: text(2), action: text(3), detail: text(4) }
        }
        Table::Values => Record::Value { name: text(0), value: row.get(1) },
    }
}

/// The position of the last record.
pub(super) async fn end(speaker: &Speaker<'_>, table: Table) -> Result<Position, JournalError> {
    let sql = match table {
        Table::Sinks => "SELECT id::bigint FROM @sinks ORDER BY id DESC LIMIT 1",
        Table::Events => "SELECT seq FROM @events ORDER BY seq DESC LIMIT 1",
        Table::Keys => "SELECT seq FROM @keys ORDER BY seq DESC LIMIT 1",
        Table::Deliveries => "SELECT sink::bigint, seq FROM @exceptions ORDER BY sink DESC, seq DESC LIMIT 1",
        Table::Attempts => "SELECT id FROM @attempts ORDER BY id DESC LIMIT 1",
        Table::Audit => "SELECT id FROM @audit ORDER BY id DESC LIMIT 1",
        Table::Values => "SELECT name FROM @meta ORDER BY name COLLATE \"C\" DESC LIMIT 1",
    };
    let row = speaker.query_opt(sql, &[]).await?;
    Ok(row.map_or_else(
        || table.start(),
        |row| match table {
            Table::Values => Position::Name(row.get(0)),
            Table::Deliveries => Position::Numbers(row.get(0), row.get(1)),
            _ => Position::Numbers(row.get(0), i64::MIN),
        },
    ))
}

/// A question for about how many records there are, without walking through events or keys.
pub(super) fn estimate(table: Table) -> String {
    let span = |column: &str, table: &str| {
        format!("SELECT coalesce((SELECT max({column}) FROM @{table}) - (SELECT min({column}) FROM @{table}) + 1, 0)")
    };
    match table {
        Table::Sinks => "SELECT count(*) FROM @sinks".to_owned(),
        Table::Events => span("seq", "events"),
        Table::Keys => span("seq", "keys"),
        Table::Deliveries => "SELECT count(*) FROM @exceptions".to_owned(),
        Table::Attempts => span("id", "attempts"),
        Table::Audit => span("id", "audit"),
        Table::Values => "SELECT count(*) FROM @meta".to_owned(),
    }
}

/// Adds records of one table.
pub(super) fn write(table: Table, records: &[Record]) -> Result<Statement<'_>, JournalError> {
    let too_large = || JournalError::Inconsistent(format!("a number among the {} is too large", table.name()));
    let small = |number: i64| i32::try_from(number).map_err(|_| too_large());
    let mut columns = Columns::default();
    for record in records {
        match record {
            Record::Sink { id, name, numbers, paused } => {
                columns.integers[0].push(small(*id)?);
                columns.texts[0].push(name.clone());
                for (column, number) in columns.numbers.iter_mut().zip(numbers) {
                    column.push(Some(*number));
                }
                columns.flags.push(*paused);
            }
            Record::Event { seq, at, head, sum, body } => {
                columns.number([*seq, *at].map(Some));
                columns.texts[0].push(head.clone());
                columns.bytes[0].push(sum);
                columns.bytes[1].push(body);
            }
            Record::Key { seq, age, key, id } => {
                columns.number([*seq, *age].map(Some));
                columns.uuids[0].push(Uuid::from_bytes(*key));
                columns.uuids[1].push(Uuid::from_bytes(*id));
            }
            Record::Delivery { sink, seq, state, lane, attempts, first_at, next_at, reason } => {
                columns.integers[0].push(small(*sink)?);
                columns.states.push(i16::try_from(*state).map_err(|_| too_large())?);
                columns.number([Some(*seq), Some(*lane), Some(*attempts), *first_at, *next_at]);
                columns.texts[0].push(storable(reason));
            }
            Record::Attempts { id, sink, at, first, last, entries } => {
                columns.integers[0].push(small(*sink)?);
                columns.number([*id, *at, *first, *last].map(Some));
                columns.texts[0].push(storable(entries));
            }
            Record::Audit { id, at, actor, action, detail } => {
                columns.number([*id, *at].map(Some));
                for (column, text) in columns.texts.iter_mut().zip([actor, action, detail]) {
                    column.push(storable(text));
                }
            }
            Record::Value { name, value } => {
                columns.texts[0].push(name.clone());
                columns.bytes[0].push(value);
            }
        }
    }
    Ok(columns.statement(table))
}

/// The columns of a batch, each an array.
#[derive(Default)]
struct Columns<'a> {
    numbers: [Vec<Option<i64>>; 8],
    integers: [Vec<i32>; 1],
    states: Vec<i16>,
    flags: Vec<bool>,
    texts: [Vec<String>; 3],
    bytes: [Vec<&'a [u8]>; 2],
    uuids: [Vec<Uuid>; 2],
}

impl<'a> Columns<'a> {
    fn number<const N: usize>(&mut self, numbers: [Option<i64>; N]) {
        for (column, number) in self.numbers.iter_mut().zip(numbers) {
            column.push(number);
        }
    }

    fn statement(self, table: Table) -> Statement<'a> {
        let numbers = self.numbers.into_iter().map(|column| param(column, Type::INT8_ARRAY));
        let mut texts = self.texts.into_iter().map(|column| param(column, Type::TEXT_ARRAY));
        let [first_bytes, second_bytes] = self.bytes;
        let [first_uuid, second_uuid] = self.uuids;
        let [integers] = self.integers;
        let mut params: Vec<Param<'a>> = Vec::new();
        let mut text = |params: &mut Vec<Param<'a>>, count: usize| params.extend(texts.by_ref().take(count));
        let sql = match table {
            Table::Sinks => {
                params.push(param(integers, Type::INT4_ARRAY));
                text(&mut params, 1);
                params.extend(numbers);
                params.push(param(self.flags, Type::BOOL_ARRAY));
                "INSERT INTO @sinks (id, name, start, cursor, delivered, open, parked, dropped, filtered, ahead, paused)
                 SELECT * FROM unnest($1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                    $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bool[])"
            }
            Table::Events => {
                params.extend(numbers.take(2));
                text(&mut params, 1);
                params.extend([first_bytes, second_bytes].map(|column| param(column, Type::BYTEA_ARRAY)));
                "INSERT INTO @events (seq, at, head, sum, body)
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bytea[], $5::bytea[])"
            }
            Table::Keys => {
                params.extend(numbers.take(2));
                params.extend([first_uuid, second_uuid].map(|column| param(column, Type::UUID_ARRAY)));
                "INSERT INTO @keys (seq, age, key, id)
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::uuid[])"
            }
            Table::Deliveries => {
                params.push(param(integers, Type::INT4_ARRAY));
                params.push(param(self.states, Type::INT2_ARRAY));
                params.extend(numbers.take(5));
                text(&mut params, 1);
                "INSERT INTO @exceptions (sink, state, seq, lane, attempts, first_at, next_at, reason)
                 SELECT * FROM unnest($1::int[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                    $7::bigint[], $8::text[])"
            }
            Table::Attempts => {
                params.push(param(integers, Type::INT4_ARRAY));
                params.extend(numbers.take(4));
                text(&mut params, 1);
                "INSERT INTO @attempts (sink, id, at, min_seq, max_seq, entries) OVERRIDING SYSTEM VALUE
                 SELECT * FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])"
            }
            Table::Audit => {
                params.extend(numbers.take(2));
                text(&mut params, 3);
                "INSERT INTO @audit (id, at, actor, action, detail) OVERRIDING SYSTEM VALUE
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[])"
            }
            Table::Values => {
                text(&mut params, 1);
                params.push(param(first_bytes, Type::BYTEA_ARRAY));
                "INSERT INTO @meta (name, value) SELECT * FROM unnest($1::text[], $2::bytea[])"
            }
        };
        Statement { sql: sql.to_owned(), params }
    }
}
