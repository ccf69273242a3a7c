//! Reading a journal file, record by record.

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::super::dedupe::{parse_block, parse_entries};
use super::super::last_seq;
use super::super::saving::{self, Key, Unsaved};
use crate::age::Age;
use crate::copy::{BATCH_BYTES, BATCH_KEYS, BATCH_ROWS, Passed, Position, Record, Store, Table};
use crate::error::JournalError;
use crate::event::Seq;
use crate::lock::JournalLock;

/// A journal file that is open.
pub(super) struct SqliteStore {
    pub(super) conn: Connection,
    /// Keys that only their events tell, with the age that counts for them; none in an unfinished copy.
    unsaved: Vec<Key>,
    unsaved_age: i64,
    /// The run that was read last, in order of position.
    pub(super) run: Option<(i64, Vec<Key>)>,
    /// What is known of events that cannot be read; found out when the first one is met.
    lost: Option<Lost>,
    /// Positions that cannot be read and may hold nothing.
    passed: Option<Passed>,
    _lock: JournalLock,
}

/// Which positions that cannot be read hold an event for certain.
#[derive(Clone, Copy)]
struct Lost {
    last: Seq,
    /// Behind it nothing is purged: some sink has not passed it yet.
    settled: Seq,
    /// The first event that a purge would take: none behind it has gone yet.
    oldest: Seq,
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
        Ok(Self { conn, unsaved, unsaved_age, run: None, lost: None, passed: None, _lock: lock })
    }

    /// Over a copy that is not finished: all keys have rows.
    pub(super) fn unfinished(conn: Connection, lock: JournalLock) -> Self {
        Self { conn, unsaved: Vec::new(), unsaved_age: 0, run: None, lost: None, passed: None, _lock: lock }
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

    /// Events after `after`. Where a page cannot be read it is gone on with position by position, up to the first that can
    /// be looked up. What cannot be is an event without anything, which matches no checksum – or nothing, where it may
    /// have been purged: then it is counted.
    fn events(&mut self, after: Seq) -> Result<Vec<Record>, JournalError> {
        let mut from = after.max(0) + 1;
        if from == 1 {
            self.passed = None;
        }
        loop {
            if let Some(records) = self.stretch(from)? {
                return Ok(records);
            }
            let lost = self.lost()?;
            let mut records = Vec::new();
            while from <= lost.last && records.len() < BATCH_ROWS && self.is_there(from)?.is_none() {
                if from > lost.settled || from > lost.oldest || self.is_kept(from)? {
                    let (head, sum, body) = (String::new(), Vec::new(), Vec::new());
                    records.push(Record::Event { seq: from, at: 0, head, sum, body });
                } else {
                    let passed = self.passed.get_or_insert(Passed { first: from, last: from, positions: 0 });
                    passed.last = from;
                    passed.positions += 1;
                }
                from += 1;
            }
            if !records.is_empty() || from > lost.last {
                return Ok(records);
            }
            // Nothing is there, and that can be told; what comes next, too, unless it is on the next page.
            if self.is_there(from)? == Some(false) {
                let next =
                    self.conn.query_row("SELECT seq FROM events WHERE seq > ? ORDER BY seq LIMIT 1", [from], |row| {
                        row.get(0)
                    });
                match next.optional().map_err(JournalError::from) {
                    Ok(Some(next)) => from = next,
                    Ok(None) => return Ok(records),
                    Err(error) if error.is_damage() => from += 1,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Events from `from` on, up to what cannot be read; `None` where that is the first of them.
    fn stretch(&self, from: Seq) -> Result<Option<Vec<Record>>, JournalError> {
        let mut statement =
            self.conn.prepare_cached("SELECT seq, at, head, sum, body FROM events WHERE seq >= ? ORDER BY seq")?;
        let mut rows = statement.query([from])?;
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
                Err(error) if error.is_damage() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(records))
    }

    /// Whether there is an event at this position; `None` where that cannot be read.
    fn is_there(&self, seq: Seq) -> Result<Option<bool>, JournalError> {
        let mut one = self.conn.prepare_cached("SELECT seq, at, head, sum, body FROM events WHERE seq = ?")?;
        match one.query_row([seq], |_| Ok(())).optional().map_err(JournalError::from) {
            Ok(found) => Ok(Some(found.is_some())),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a sink has still to do with the event at this position, so that no purge takes it.
    fn is_kept(&self, seq: Seq) -> Result<bool, JournalError> {
        let kept = "SELECT EXISTS (SELECT 1 FROM sinks JOIN exceptions ON exceptions.sink = sinks.id
            WHERE exceptions.seq = ? AND exceptions.state NOT IN (5, 6))";
        Ok(self.conn.prepare_cached(kept)?.query_row([seq], |row| row.get(0))?)
    }

    fn lost(&mut self) -> Result<Lost, JournalError> {
        if let Some(lost) = self.lost {
            return Ok(lost);
        }
        let settled: Option<Seq> = self.conn.query_row("SELECT min(cursor) FROM sinks", [], |row| row.get(0))?;
        let last = last_seq(&self.conn)?;
        let lost = Lost { last, settled: settled.unwrap_or(0), oldest: self.oldest(last)? };
        self.lost = Some(lost);
        Ok(lost)
    }

    /// The first event that can be read and that no sink has to do with any more. A purge goes by position, and takes
    /// all of these.
    fn oldest(&self, last: Seq) -> Result<Seq, JournalError> {
        let mut from = 1;
        while from <= last {
            let mut seqs = self.conn.prepare_cached("SELECT seq FROM events WHERE seq >= ? ORDER BY seq")?;
            let mut rows = seqs.query([from])?;
            loop {
                match rows.next().map_err(JournalError::from) {
                    Ok(Some(row)) => {
                        let seq = row.get(0)?;
                        if !self.is_kept(seq)? {
                            return Ok(seq);
                        }
                        from = seq + 1;
                    }
                    Ok(None) => return Ok(Seq::MAX),
                    Err(error) if error.is_damage() => break,
                    Err(error) => return Err(error),
                }
            }
            from += 1;
            while from <= last && self.is_there(from)?.is_none() {
                from += 1;
            }
        }
        Ok(Seq::MAX)
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
            Table::Events => match self.number(&span("seq", "events")) {
                Err(error) if error.is_damage() => last_seq(&self.conn)?,
                number => number?,
            },
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

    fn passed(&self) -> Option<Passed> {
        self.passed
    }

    fn ends(&mut self) -> Result<[i64; 5], JournalError> {
        let first = match self.number("SELECT ifnull(min(seq), 0) FROM events") {
            // The first that is copied: of a copy that is finished the same is asked.
            Err(error) if error.is_damage() => match self.events(Seq::MIN)?.first() {
                Some(Record::Event { seq, .. }) => *seq,
                _ => 0,
            },
            number => number?,
        };
        Ok([
            first,
            self.number("SELECT ifnull(max(seq), 0) FROM events")?,
            self.number("SELECT ifnull(max(id), 0) FROM attempts")?,
            self.number("SELECT ifnull(max(id), 0) FROM audit")?,
            self.number("SELECT count(*) FROM exceptions")?,
        ])
    }
}
