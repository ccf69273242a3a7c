//! A journal file as the source or the target of a copy.
//!
//! An unfinished copy has another application id than a journal: no daemon, of whatever version, takes it for one.

mod reading;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::dedupe::{self, DedupeBounds, ENTRY};
use super::saving::{self, ROW_KEYS};
use super::{connect, last_seq, schema, soundness, sync_directory};
use crate::copy::{End, Ground, Marker, Position, Record, Source, Store, Table, Target};
use crate::error::{JournalError, OpenError};
use crate::event::Seq;
use crate::lock::JournalLock;
use reading::SqliteStore;

/// The file that is written.
struct SqliteTarget {
    path: PathBuf,
    store: Option<SqliteStore>,
    bounds: DedupeBounds,
    /// Keys that are not in a run yet.
    keys: usize,
}

/// Opens a journal to be copied. Takes its lock, and changes nothing.
pub(crate) fn open_source(path: &Path) -> Result<Source, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    // Opening would make one.
    std::fs::metadata(path).map_err(io)?;
    let lock = JournalLock::take(path)?;
    schema::check_header(path)?;
    let store = |source: JournalError| OpenError::Store { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(|error| store(error.into()))?;
    let version = schema::judge_open(path, &conn)?;
    if version != schema::VERSION {
        let what =
            format!("its schema version is {version}: start its daemon once, which brings it to {}", schema::VERSION);
        return Err(store(JournalError::Unavailable(what)));
    }
    // One moment for all that is read, whatever another program does to the file.
    conn.execute_batch("PRAGMA cache_size = -8192; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; BEGIN")
        .map_err(|error| store(error.into()))?;
    let last = last_seq(&conn).map_err(store)?;
    soundness::check(&conn, last).map_err(store)?;
    let opened = SqliteStore::open(conn, lock).map_err(store)?;
    let name = path.file_stem().map_or_else(|| "journal".to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(Source { store: Box::new(opened), name })
}

/// Opens or begins a copy.
pub(crate) fn open_target(
    path: &Path,
    bounds: DedupeBounds,
    marker: &Marker,
) -> Result<(Box<dyn Target>, Ground), OpenError> {
    let lock = JournalLock::take(path)?;
    match schema::check_header(path) {
        Ok(()) | Err(OpenError::Unfinished { .. }) => {}
        Err(error) => return Err(error),
    }
    let failed = |source: JournalError| OpenError::Store { path: path.to_owned(), source };
    let conn = connect(path).map_err(failed)?;
    let is_ours = match schema::judge_open(path, &conn) {
        Ok(version) => version > 0,
        Err(OpenError::Unfinished { .. }) => false,
        Err(error) => return Err(error),
    };
    if is_ours {
        // A copy that was cut off after its end: only its file's head does not say so yet.
        schema::checkpoint(&conn).map_err(failed)?;
        let version = schema::judge_open(path, &conn)?;
        if version != schema::VERSION {
            let what = format!("it holds a journal of schema version {version}: name another target");
            return Err(failed(JournalError::Unavailable(what)));
        }
        let store = SqliteStore::open(conn, lock).map_err(failed)?;
        let target = SqliteTarget { path: path.to_owned(), store: Some(store), bounds, keys: 0 };
        return Ok((Box::new(target), Ground::Journal(None)));
    }
    let found = schema::begun(&conn).map_err(failed)?;
    let ground = match found {
        None => {
            schema::begin(&conn, &encode(marker)?).map_err(failed)?;
            sync_directory(path)?;
            Ground::New
        }
        Some((version, _)) if version != schema::VERSION => {
            let what = format!("it is an unfinished copy made by another version ({version}): remove it first");
            return Err(failed(JournalError::Unavailable(what)));
        }
        Some((_, marker)) => Ground::Unfinished(serde_json::from_str(&marker).map_err(|_| {
            failed(JournalError::Inconsistent("the unfinished copy does not say of what: remove it first".to_owned()))
        })?),
    };
    let keys: i64 = conn
        .query_row("SELECT ifnull(sum(length(entries)), 0) FROM keys", [], |row| row.get(0))
        .map_err(|error| failed(error.into()))?;
    conn.execute_batch("PRAGMA wal_autocheckpoint = 1000").map_err(|error| failed(error.into()))?;
    let store = SqliteStore::unfinished(conn, lock);
    let keys = usize::try_from(keys).unwrap_or(0) / ENTRY;
    Ok((Box::new(SqliteTarget { path: path.to_owned(), store: Some(store), bounds, keys }), ground))
}

fn encode(marker: &Marker) -> Result<String, OpenError> {
    serde_json::to_string(marker)
        .map_err(|error| OpenError::Io { path: PathBuf::from(&marker.from), source: error.into() })
}

impl SqliteTarget {
    fn store(&mut self) -> Result<&mut SqliteStore, JournalError> {
        self.store.as_mut().ok_or_else(|| JournalError::Unavailable("the copy is closed".to_owned()))
    }

    /// Packs keys as the engine does, where they follow one another and are of one age.
    fn write_keys(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let conn = &self.store()?.conn;
        let mut row: Option<(Seq, i64, Vec<u8>)> = None;
        let put = |row: Option<(Seq, i64, Vec<u8>)>| -> Result<(), JournalError> {
            if let Some((first, age, entries)) = row {
                conn.prepare_cached("INSERT INTO keys (first_seq, at, entries) VALUES (?, ?, ?)")?
                    .execute(params![first, age, entries])?;
            }
            Ok(())
        };
        for record in records {
            let Record::Key { seq, age, key, id } = record else { continue };
            let fits = row.as_ref().is_some_and(|(first, at, entries)| {
                let keys = entries.len() / ENTRY;
                at == age && keys < ROW_KEYS && Seq::try_from(keys).is_ok_and(|keys| first + keys == *seq)
            });
            if !fits {
                put(row.replace((*seq, *age, Vec::new())))?;
            }
            if let Some((_, _, entries)) = &mut row {
                entries.extend_from_slice(key);
                entries.extend_from_slice(id);
            }
        }
        put(row)?;
        self.keys += records.len();
        // A daemon holds so many in memory, and no more.
        let most = self.bounds.recent_keys - self.bounds.recent_keys / 10;
        while self.keys >= most.max(1) {
            let run_keys = self.bounds.run_keys;
            let conn = &self.store()?.conn;
            let number: i64 = conn.query_row("SELECT ifnull(max(run), 0) + 1 FROM key_runs", [], |row| row.get(0))?;
            let Some(run) = dedupe::write_run(conn, number, run_keys)? else { break };
            self.keys = self.keys.saturating_sub(run.count());
        }
        Ok(())
    }

    fn write_records(&mut self, table: Table, records: &[Record]) -> Result<(), JournalError> {
        if table == Table::Keys {
            return self.write_keys(records);
        }
        let conn = &self.store()?.conn;
        for record in records {
            match record {
                Record::Sink { id, name, numbers: n, paused } => conn
                    .prepare_cached(
                        "INSERT INTO sinks (id, name, start, cursor, delivered, open, parked, dropped, filtered, ahead, paused)
                         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    )?
                    .execute(params![id, name, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], paused])?,
                Record::Event { seq, at, head, sum, body } => conn
                    .prepare_cached("INSERT INTO events (seq, at, head, sum, body) VALUES (?, ?, ?, ?, ?)")?
                    .execute(params![seq, at, head, sum, body])?,
                Record::Key { .. } => 0,
                Record::Delivery { sink, seq, state, lane, attempts, first_at, next_at, reason } => conn
                    .prepare_cached(
                        "INSERT INTO exceptions (sink, seq, state, lane, attempts, first_at, next_at, reason)
                         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    )?
                    .execute(params![sink, seq, state, lane, attempts, first_at, next_at, reason])?,
                Record::Attempts { id, sink, at, first, last, entries } => conn
                    .prepare_cached(
                        "INSERT INTO attempts (id, sink, at, min_seq, max_seq, entries) VALUES (?, ?, ?, ?, ?, ?)",
                    )?
                    .execute(params![id, sink, at, first, last, entries])?,
                Record::Audit { id, at, actor, action, detail } => conn
                    .prepare_cached("INSERT INTO audit (id, at, actor, action, detail) VALUES (?, ?, ?, ?, ?)")?
                    .execute(params![id, at, actor, action, detail])?,
                Record::Value { name, value } => conn
                    .prepare_cached("INSERT INTO meta (name, value) VALUES (?, ?)")?
                    .execute(params![name, value])?,
            };
        }
        Ok(())
    }
}

impl Store for SqliteTarget {
    fn read(&mut self, table: Table, after: &Position) -> Result<Vec<Record>, JournalError> {
        self.store()?.read(table, after)
    }

    fn last_seq(&mut self) -> Result<Seq, JournalError> {
        self.store()?.last_seq()
    }

    fn estimate(&mut self, table: Table) -> Result<u64, JournalError> {
        self.store()?.estimate(table)
    }

    fn ends(&mut self) -> Result<[i64; 5], JournalError> {
        self.store()?.ends()
    }
}

impl Target for SqliteTarget {
    fn end(&mut self, table: Table) -> Result<Position, JournalError> {
        let conn = &self.store()?.conn;
        let number = |sql: &str| -> Result<Option<Position>, JournalError> {
            let last: Option<i64> = conn.query_row(sql, [], |row| row.get(0))?;
            Ok(last.map(|last| Position::Numbers(last, i64::MIN)))
        };
        let end = match table {
            Table::Sinks => number("SELECT max(id) FROM sinks")?,
            Table::Events => number("SELECT max(seq) FROM events")?,
            Table::Keys => number(
                "SELECT ifnull((SELECT first_seq - 1 + length(entries) / 32 FROM keys ORDER BY first_seq DESC LIMIT 1),
                    (SELECT max(last_seq) FROM key_runs))",
            )?,
            Table::Attempts => number("SELECT max(id) FROM attempts")?,
            Table::Audit => number("SELECT max(id) FROM audit")?,
            Table::Deliveries => conn
                .query_row("SELECT sink, seq FROM exceptions ORDER BY sink DESC, seq DESC LIMIT 1", [], |row| {
                    Ok(Position::Numbers(row.get(0)?, row.get(1)?))
                })
                .optional()?,
            Table::Values => conn
                .query_row("SELECT name FROM meta ORDER BY name DESC LIMIT 1", [], |row| row.get(0).map(Position::Name))
                .optional()?,
        };
        Ok(end.unwrap_or_else(|| table.start()))
    }

    fn write(&mut self, table: Table, records: &[Record]) -> Result<(), JournalError> {
        self.store()?.conn.execute_batch("BEGIN IMMEDIATE")?;
        let written = self.write_records(table, records);
        let conn = &self.store()?.conn;
        match written {
            Ok(()) => Ok(conn.execute_batch("COMMIT")?),
            Err(error) => {
                drop(conn.execute_batch("ROLLBACK"));
                Err(error)
            }
        }
    }

    fn shared_ages(&mut self) -> Result<Vec<(Seq, i64)>, JournalError> {
        let conn = &self.store()?.conn;
        let mut statement = conn.prepare("SELECT last_seq, newest_at FROM key_runs ORDER BY run")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn begin_again(&mut self, marker: &Marker) -> Result<(), JournalError> {
        self.keys = 0;
        let marker = serde_json::to_string(marker).unwrap_or_default();
        let store = self.store()?;
        store.run = None;
        schema::empty(&store.conn, &marker)
    }

    fn finish(&mut self, _marker: &Marker, end: &End) -> Result<(), JournalError> {
        let conn = &self.store()?.conn;
        conn.execute_batch("BEGIN IMMEDIATE")?;
        let finished = || -> Result<(), JournalError> {
            let keys: Option<Seq> = conn.query_row(
                "SELECT ifnull((SELECT first_seq - 1 + length(entries) / 32 FROM keys ORDER BY first_seq DESC LIMIT 1),
                    (SELECT max(last_seq) FROM key_runs))",
                [],
                |row| row.get(0),
            )?;
            conn.execute(
                "INSERT INTO meta (name, value) VALUES (?, ?)",
                params![saving::THROUGH, keys.unwrap_or(end.last_seq)],
            )?;
            let last = last_seq(conn)?;
            if last != end.last_seq {
                let what = format!("the copy ends with position {last}, and the journal with {}", end.last_seq);
                return Err(JournalError::Inconsistent(what));
            }
            soundness::check(conn, last)?;
            schema::finish(conn)
        };
        if let Err(error) = finished() {
            drop(conn.execute_batch("ROLLBACK"));
            return Err(error);
        }
        conn.execute_batch("COMMIT")?;
        schema::checkpoint(conn)?;
        // Closing removes the log.
        self.store = None;
        sync_directory(&self.path).map_err(|_| JournalError::Unavailable("its directory cannot be synced".to_owned()))
    }

    fn as_store(&mut self) -> &mut dyn Store {
        self
    }
}
