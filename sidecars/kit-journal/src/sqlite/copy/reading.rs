//! Reading a journal file, record by record.

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::super::dedupe::{parse_block, parse_entries};
use super::super::last_seq;
use super::super::saving::{self, Key, Unsaved};
use crate::age::Age;
use crate::copy::{BATCH_BYTES, BATCH_KEYS, BATCH_ROWS, Position, Record, Store, Table};
use crate::error::JournalError;
use crate::event::Seq;
use crate::lock::JournalLock;

/// So many positions in a row are looked at one by one where a page cannot be read.
const PASSED_BY: Seq = 1_000;

/// A journal file that is open.
pub(super) struct SqliteStore {
    pub(super) conn: Connection,
    /// Keys that only their events tell, with the age that counts for them; none in an unfinished copy.
    unsaved: Vec<Key>,
    unsaved_age: i64,
    /// The run that was read last, in order of position.
    pub(super) run: Option<(i64, Vec<Key>)>,
    _lock: JournalLock,
}

impl SqliteStore {
    /// Over what is a journal.
    pub(super) fn open(conn: Connection, lock: JournalLock) -> Result<Self, JournalError> {
        let unsaved = Unsaved::load(&conn)?.iter().copied().collect();
        // They were first seen after everything that has a row, and about when the journal's time was last written.
        let time: Option<Vec<u8>> =
            conn.query_row("SELECT value FROM meta WHERE name = ?", [Age::NAME], |row| row.get(0)).optional()?;
        let newest: Option<i64> = conn.query_row(
            "SELECT ifnull((SELECT at FROM keys ORDER BY first_seq DESC LIMIT 1), (SELECT max(newest_at) FROM key_runs))",
            [],
            |row| row.get(0),
        )?;
        let received: Option<i64> =
            conn.query_row("SELECT at FROM events ORDER BY seq DESC LIMIT 1", [], |row| row.get(0)).optional()?;
        let time = time.as_deref().and_then(Age::stored).map(|at| at.as_millis());
        let unsaved_age = time.max(newest).or(received).unwrap_or(0);
        Ok(Self { conn, unsaved, unsaved_age, run: None, _lock: lock })
    }

    /// Over a copy that is not finished: all keys have rows.
    pub(super) fn unfinished(conn: Connection, lock: JournalLock) -> Self {
        Self { conn, unsaved: Vec::new(), unsaved_age: 0, run: None, _lock: lock }
    }

    /// Records of a query, up to a batch's size.
    fn batch(
        &self,
        sql: &str,
        after: impl rusqlite::Params,
        record: impl Fn(&Row<'_>) -> Result<Record, rusqlite::Error>,
    ) -> Result<Vec<Record>, JournalError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(after)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        while records.len() < BATCH_ROWS
            && bytes < BATCH_BYTES
            && let Some(row) = rows.next()?
        {
            let record = record(row)?;
            bytes += record.bytes();
            records.push(record);
        }
        Ok(records)
    }

    fn events(&self, after: Seq) -> Result<Vec<Record>, JournalError> {
        let mut statement =
            self.conn.prepare_cached("SELECT seq, at, head, sum, body FROM events WHERE seq > ? ORDER BY seq")?;
        let mut rows = statement.query([after])?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        while records.len() < BATCH_ROWS && bytes < BATCH_BYTES {
            match rows.next().map_err(JournalError::from) {
                Ok(Some(row)) => {
                    let record = event(row)?;
                    bytes += record.bytes();
                    records.push(record);
                }
                Ok(None) => break,
                // What comes before is good.
                Err(error) if error.is_damage() && !records.is_empty() => break,
                Err(error) if error.is_damage() => return self.past_damage(after),
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Events after `after` where a page cannot be read: one position after the other, up to the first that can. What
    /// cannot be read is an event without anything, which matches no checksum.
    fn past_damage(&self, after: Seq) -> Result<Vec<Record>, JournalError> {
        let mut one = self.conn.prepare_cached("SELECT seq, at, head, sum, body FROM events WHERE seq = ?")?;
        let last = last_seq(&self.conn)?;
        let mut records = Vec::new();
        for seq in after + 1..=last.min(after + PASSED_BY) {
            match one.query_row([seq], event).optional().map_err(JournalError::from) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    records.push(record);
                    return Ok(records);
                }
                Err(error) if error.is_damage() => {
                    let (head, sum, body) = (String::new(), Vec::new(), Vec::new());
                    records.push(Record::Event { seq, at: 0, head, sum, body });
                }
                Err(error) => return Err(error),
            }
        }
        if last > after + PASSED_BY {
            let what = format!("events {} to {} cannot be read", after + 1, after + PASSED_BY);
            return Err(JournalError::Inconsistent(what));
        }
        Ok(records)
    }

    /// Runs, which are sorted by key, then rows, then what only events tell: each is newer than the one before.
    fn keys(&mut self, after: Seq) -> Result<Vec<Record>, JournalError> {
        let next: Option<(i64, i64)> = self
            .conn
            .prepare_cached("SELECT run, newest_at FROM key_runs WHERE last_seq > ? ORDER BY run LIMIT 1")?
            .query_row([after], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((run, age)) = next {
            if self.run.as_ref().is_none_or(|(known, _)| *known != run) {
                self.run = Some((run, self.load_run(run)?));
            }
            let keys = self.run.as_ref().map_or(&[][..], |(_, keys)| keys);
            let from = keys.partition_point(|(_, _, seq)| *seq <= after);
            return Ok(keys[from..].iter().take(BATCH_KEYS).map(|key| key_record(key, age)).collect());
        }
        self.run = None;
        let mut statement = self.conn.prepare_cached(
            "SELECT first_seq, at, entries FROM keys
             WHERE first_seq >= ifnull((SELECT max(first_seq) FROM keys WHERE first_seq <= ?1 + 1), 0) ORDER BY first_seq",
        )?;
        let mut rows = statement.query([after])?;
        let mut records = Vec::new();
        while records.len() < BATCH_KEYS
            && let Some(row) = rows.next()?
        {
            let (first, age): (Seq, i64) = (row.get(0)?, row.get(1)?);
            let entries = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            let keys = (first..).zip(parse_entries(entries)).filter(|(seq, _)| *seq > after);
            records.extend(keys.map(|(seq, (key, id))| key_record(&(key, id, seq), age)));
        }
        if records.is_empty() {
            let newer = self.unsaved.iter().filter(|(_, _, seq)| *seq > after).take(BATCH_KEYS);
            records.extend(newer.map(|key| key_record(key, self.unsaved_age)));
        }
        Ok(records)
    }

    fn load_run(&self, run: i64) -> Result<Vec<Key>, JournalError> {
        let mut statement = self.conn.prepare_cached("SELECT entries FROM key_blocks WHERE run = ?")?;
        let mut rows = statement.query([run])?;
        let mut keys = Vec::new();
        while let Some(row) = rows.next()? {
            keys.extend(parse_block(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?));
        }
        keys.sort_unstable_by_key(|(_, _, seq)| *seq);
        Ok(keys)
    }

    fn number(&self, sql: &str) -> Result<i64, JournalError> {
        Ok(self.conn.query_row(sql, [], |row| row.get(0))?)
    }
}

fn key_record((key, id, seq): &Key, age: i64) -> Record {
    Record::Key { seq: *seq, age, key: key.0, id: *id.as_bytes() }
}

/// An event as far as it can be read; what cannot be matches no checksum.
fn event(row: &Row<'_>) -> Result<Record, rusqlite::Error> {
    let head = row.get_ref(2)?.as_str().ok().filter(|head| !head.contains('\0'));
    Ok(Record::Event {
        seq: row.get(0)?,
        at: row.get(1).unwrap_or(0),
        head: head.unwrap_or_default().to_owned(),
        sum: row.get_ref(3)?.as_blob().unwrap_or_default().to_vec(),
        body: row.get_ref(4)?.as_blob().unwrap_or_default().to_vec(),
    })
}

impl Store for SqliteStore {
    fn read(&mut self, table: Table, after: &Position) -> Result<Vec<Record>, JournalError> {
        match table {
            Table::Events => self.events(after.first()),
            Table::Keys => self.keys(after.first()),
            Table::Sinks => self.batch(
                "SELECT id, name, start, cursor, delivered, open, parked, dropped, filtered, ahead, paused FROM sinks
                 WHERE id > ? ORDER BY id",
                [after.first()],
                |row| {
                    let mut numbers = [0; 8];
                    for (at, number) in numbers.iter_mut().enumerate() {
                        *number = row.get(at + 2)?;
                    }
                    Ok(Record::Sink { id: row.get(0)?, name: row.get(1)?, numbers, paused: row.get(10)? })
                },
            ),
            Table::Deliveries => self.batch(
                "SELECT sink, seq, state, lane, attempts, first_at, next_at, reason FROM exceptions
                 WHERE (sink, seq) > (?, ?) ORDER BY sink, seq",
                [after.first(), after.second()],
                |row| {
                    Ok(Record::Delivery {
                        sink: row.get(0)?,
                        seq: row.get(1)?,
                        state: row.get(2)?,
                        lane: row.get(3)?,
                        attempts: row.get(4)?,
                        first_at: row.get(5)?,
                        next_at: row.get(6)?,
                        reason: row.get(7)?,
                    })
                },
            ),
            Table::Attempts => self.batch(
                "SELECT id, sink, at, min_seq, max_seq, entries FROM attempts WHERE id > ? ORDER BY id",
                [after.first()],
                |row| {
                    Ok(Record::Attempts {
                        id: row.get(0)?,
                        sink: row.get(1)?,
                        at: row.get(2)?,
                        first: row.get(3)?,
                        last: row.get(4)?,
                        entries: row.get(5)?,
                    })
                },
            ),
            Table::Audit => self.batch(
                "SELECT id, at, actor, action, detail FROM audit WHERE id > ? ORDER BY id",
                [after.first()],
                |row| {
                    let (actor, action, detail) = (row.get(2)?, row.get(3)?, row.get(4)?);
                    Ok(Record::Audit { id: row.get(0)?, at: row.get(1)?, actor, action, detail })
                },
            ),
            Table::Values => self.batch(
                "SELECT name, value FROM meta WHERE name > ? AND name <> ? ORDER BY name",
                [after.name(), saving::THROUGH],
                |row| Ok(Record::Value { name: row.get(0)?, value: row.get(1)? }),
            ),
        }
    }

    fn last_seq(&mut self) -> Result<Seq, JournalError> {
        last_seq(&self.conn)
    }

    fn estimate(&mut self, table: Table) -> Result<u64, JournalError> {
        let span = |column: &str, table: &str| {
            format!("SELECT ifnull((SELECT max({column}) FROM {table}) - (SELECT min({column}) FROM {table}) + 1, 0)")
        };
        let count = match table {
            Table::Events => self.number(&span("seq", "events"))?,
            Table::Keys => {
                let in_runs = self.number("SELECT ifnull(sum(count), 0) FROM key_runs")?;
                let unsaved = i64::try_from(self.unsaved.len()).unwrap_or(0);
                let rows = "SELECT ifnull((SELECT max(first_seq + length(entries) / 32) FROM keys)
                    - (SELECT min(first_seq) FROM keys), 0)";
                in_runs + self.number(rows)? + unsaved
            }
            Table::Sinks => self.number("SELECT count(*) FROM sinks")?,
            Table::Deliveries => self.number("SELECT count(*) FROM exceptions")?,
            Table::Attempts => self.number(&span("id", "attempts"))?,
            Table::Audit => self.number(&span("id", "audit"))?,
            Table::Values => self.number("SELECT count(*) FROM meta")?,
        };
        Ok(u64::try_from(count).unwrap_or(0))
    }

    fn ends(&mut self) -> Result<[i64; 5], JournalError> {
        Ok([
            self.number("SELECT ifnull(min(seq), 0) FROM events")?,
            self.number("SELECT ifnull(max(seq), 0) FROM events")?,
            self.number("SELECT ifnull(max(id), 0) FROM attempts")?,
            self.number("SELECT ifnull(max(id), 0) FROM audit")?,
            self.number("SELECT count(*) FROM exceptions")?,
        ])
    }
}
