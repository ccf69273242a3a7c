//! The embedded engine: SQLite with a write-ahead log and `synchronous=FULL`, one write connection.

mod actions;
mod checkpoint;
pub(crate) mod copy;
mod dedupe;
mod left_out;
mod purge;
mod reader;
mod records;
mod saving;
mod schema;
mod settle;
mod soundness;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};

use kit::clock::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

pub(crate) use reader::SqliteReader;

use crate::engine::{Append, Commit, Committed, Disk, Engine, Purge, Purged, Reader, Verdict};
use crate::error::{JournalError, OpenError};
use crate::event::{EventId, KeyHash, Seq};
use crate::judging;
use crate::lock::JournalLock;
use checkpoint::Checkpointer;
pub use dedupe::DedupeBounds;
use dedupe::DedupeIndex;
use left_out::LeftOut;
use settle::Sinks;

/// Page cache of the write connection. Appending needs the last pages only; what does not fit, a large group of
/// events say, is written to the log before its commit.
const WRITE_CACHE_KIB: i64 = 4_096;

/// Opens or creates the store at `path` without a writing thread: every commit is the caller's. For
/// tools and tests that look at a store by itself; daemons use [`Journal`](crate::Journal).
///
/// # Errors
/// As [`Journal::open`](crate::Journal::open).
pub fn open(path: &Path, memory: DedupeBounds) -> Result<Box<dyn Engine>, OpenError> {
    SqliteEngine::open_bounded(path, memory).map(|engine| Box::new(engine) as Box<dyn Engine>)
}

/// Opens a store for reading, beside its writer or without one.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn open_reader(path: &Path) -> Result<Box<dyn Reader>, JournalError> {
    SqliteReader::open(path).map(|reader| Box::new(reader) as Box<dyn Reader>)
}

/// The engine's writing side.
pub(crate) struct SqliteEngine {
    path: PathBuf,
    /// Before the connection: it ends first, so that the connection is the last one and copies the rest.
    checkpointer: Option<Checkpointer>,
    conn: Connection,
    dedupe: DedupeIndex,
    sinks: Sinks,
    last_seq: Seq,
    purge: purge::Progress,
    /// The outcome of the last commit is for the disk to tell.
    doubtful: bool,
    /// The failure was not just a full disk: what is visible may not be durable.
    suspect: bool,
    /// What has been copied from the log may not be in the main file.
    lost: bool,
    _lock: JournalLock,
}

impl SqliteEngine {
    /// Opens or creates the journal at `path`; takes its lock first.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_bounded(path, DedupeBounds::default())
    }

    fn open_bounded(path: &Path, bounds: DedupeBounds) -> Result<Self, OpenError> {
        let lock = JournalLock::take(path)?;
        schema::check_writable(path)?;
        schema::check_header(path)?;
        let store = |source: JournalError| OpenError::Store { path: path.to_owned(), source };
        let mut conn = connect(path).map_err(store)?;
        schema::migrate(path, &conn)?;
        sync_directory(path)?;
        let last_seq = last_seq(&conn).map_err(store)?;
        // First: what is read next believes what it says.
        soundness::check(&conn, last_seq).map_err(store)?;
        let dedupe = DedupeIndex::load(&conn, bounds).map_err(store)?;
        let sinks = Sinks::load(&conn).map_err(store)?;
        let checkpointer = Some(Checkpointer::start(path, &mut conn).map_err(store)?);
        Ok(Self {
            path: path.to_owned(),
            checkpointer,
            conn,
            dedupe,
            sinks,
            last_seq,
            purge: purge::Progress::default(),
            doubtful: false,
            suspect: false,
            lost: false,
            _lock: lock,
        })
    }

    fn try_commit(&mut self, commit: &mut Commit, left_out: &mut LeftOut) -> Result<Committed, JournalError> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let before = self.conn.total_changes();
        let mut committed = Committed { last_seq: self.last_seq, ..Committed::default() };
        self.append_all(commit, &mut committed, left_out)?;
        // A step of purging may remove events, which are all that tells a key without a row.
        if commit.purge.is_some() || self.dedupe.wants_saving() {
            self.dedupe.save(&self.conn, commit.age)?;
        }
        for (place, settlement) in commit.settlements.iter().enumerate() {
            if !left_out.settlements.contains_key(&place) {
                let settled = self.sinks.settle(&self.conn, settlement, commit.age);
                settled.inspect_err(|error| left_out.settlement(place, error))?;
            }
        }
        for action in &commit.actions {
            committed.actions.push(self.sinks.act(&self.conn, action, committed.last_seq)?);
        }
        for (name, value) in &commit.values {
            records::put_value(&self.conn, name, value)?;
        }
        let mut forgotten = dedupe::Forgotten::default();
        if let Some(plan) = commit.purge.filter(|_| left_out.purge.is_none()) {
            (committed.purged, forgotten) = self.purge(&plan).inspect_err(|error| left_out.purge(error))?;
        }
        let run = if self.dedupe.wants_run(true) { self.dedupe.write_run(&self.conn)? } else { None };
        if self.conn.total_changes() == before {
            // Only duplicates, say: they rest on an earlier commit and need none of their own.
            self.conn.prepare_cached("ROLLBACK")?.execute([])?;
            return Ok(committed);
        }
        self.doubtful = true;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.doubtful = false;
        committed.synced = true;
        self.last_seq = committed.last_seq;
        self.dedupe.commit_staged();
        self.dedupe.forget(forgotten);
        if let Some(run) = run {
            self.dedupe.adopt_run(run);
        }
        Ok(committed)
    }

    fn append_all(
        &mut self,
        commit: &mut Commit,
        committed: &mut Committed,
        left_out: &mut LeftOut,
    ) -> Result<(), JournalError> {
        let mut together = commit.together.iter().peekable();
        for place in 0..commit.appends.len() {
            if let Some(range) = together.next_if(|range| range.start == place) {
                let withheld = self.holds_a_contradiction(&commit.appends[range.clone()], place, left_out)?;
                committed.verdicts.extend(withheld.into_iter().flatten());
            }
            // A group that is withheld has its verdicts already.
            if committed.verdicts.len() > place {
                continue;
            }
            let replaced = commit.instead.iter().find(|(range, _)| range.contains(&place));
            if replaced.is_some_and(|(_, settlement)| left_out.settlements.contains_key(settlement)) {
                // What it would take the place of stays, and both would be counted.
                let id = commit.appends[place].head.id;
                committed.verdicts.push(Verdict { id, seq: 0, duplicate: false, conflict: false, withheld: true });
                continue;
            }
            let append = &mut commit.appends[place];
            let verdict = self.append(append, place, commit.at, &mut committed.last_seq, left_out)?;
            committed.verdicts.push(verdict);
        }
        Ok(())
    }

    /// Verdicts for all of a group, where one of it has a key that is known with other content, in the journal or
    /// within the group; `None` where the group can be stored.
    fn holds_a_contradiction(
        &self,
        group: &[Append],
        first_place: usize,
        left_out: &mut LeftOut,
    ) -> Result<Option<Vec<Verdict>>, JournalError> {
        judging::contradiction(group, |key, nth| self.look_up(key, first_place + nth, left_out))
    }

    fn look_up(&self, key: KeyHash, place: usize, left_out: &mut LeftOut) -> Result<Vec<(EventId, Seq)>, JournalError> {
        if left_out.lookups.contains(&place) {
            // Its id is made of the key and the body: if it was here before, receivers still know it.
            return Ok(Vec::new());
        }
        self.dedupe.lookup(&self.conn, key).inspect_err(|error| left_out.lookup(place, error))
    }

    fn append(
        &mut self,
        append: &mut Append,
        place: usize,
        at: Timestamp,
        last: &mut Seq,
        left_out: &mut LeftOut,
    ) -> Result<Verdict, JournalError> {
        let key = append.key;
        let known = self.look_up(key, place, left_out)?;
        if let Some(verdict) = judging::judge(append, &known) {
            return Ok(verdict);
        }
        let id = append.head.id;
        let seq = *last + 1;
        records::insert(&self.conn, seq, at, append)?;
        self.dedupe.stage(key, id, seq);
        *last = seq;
        Ok(Verdict { id, seq, duplicate: false, conflict: append.head.conflict, withheld: false })
    }
}

impl Engine for SqliteEngine {
    fn commit(&mut self, commit: &mut Commit) -> Result<Committed, JournalError> {
        let mut left_out = LeftOut::default();
        loop {
            let before = left_out.len();
            let error = match self.try_commit(commit, &mut left_out) {
                Ok(committed) => return Ok(left_out.told(committed)),
                Err(error) => error,
            };
            self.dedupe.discard_staged();
            if left_out.len() == before || self.begin_again().is_err() {
                self.suspect |= !error.is_full();
                return Err(error);
            }
        }
    }

    fn reopen(&mut self, alone: bool) -> Result<(), JournalError> {
        // Its connection is as old as the failed one.
        self.lost |= self.checkpointer.take().is_some_and(|checkpointer| !checkpointer.end());
        if self.lost {
            self.let_go(alone)?;
        }
        schema::check_log(&self.path).map_err(|error| JournalError::Unavailable(error.to_string()))?;
        // Otherwise the old connection is dropped by the assignment only after the new one exists.
        self.conn = connect(&self.path)?;
        if self.lost {
            schema::copy_whole_log(&self.conn)?;
        } else if self.suspect {
            schema::checkpoint(&self.conn)?;
        }
        // What a doubtful commit may have held – events, rows of keys, runs, sinks – is read back.
        self.sinks = Sinks::load(&self.conn)?;
        if self.suspect || self.lost || self.doubtful {
            self.dedupe = DedupeIndex::load(&self.conn, self.dedupe.bounds())?;
            self.last_seq = last_seq(&self.conn)?;
        }
        self.dedupe.discard_staged();
        self.purge = purge::Progress::default();
        self.checkpointer = Some(Checkpointer::start(&self.path, &mut self.conn)?);
        (self.suspect, self.lost, self.doubtful) = (false, false, false);
        Ok(())
    }

    fn answered(&mut self) -> Result<(), JournalError> {
        match &mut self.checkpointer {
            Some(checkpointer) => checkpointer.after_commit(&self.conn),
            None => Ok(()),
        }
    }

    fn idle(&mut self, age: Timestamp) -> Result<(), JournalError> {
        if self.dedupe.wants_run(false) {
            self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.dedupe.save(&self.conn, age).inspect_err(|_| self.suspect = true)?;
            let run = self.dedupe.write_run(&self.conn).inspect_err(|_| self.suspect = true)?;
            self.conn.prepare_cached("COMMIT")?.execute([]).inspect_err(|_| self.suspect = true)?;
            self.dedupe.commit_staged();
            if let Some(run) = run {
                self.dedupe.adopt_run(run);
            }
        }
        Ok(())
    }

    fn last_seq(&self) -> Seq {
        self.last_seq
    }

    fn known(&self, source: &str, key: &str) -> Result<Vec<(EventId, Seq)>, JournalError> {
        self.dedupe.in_any_scope(&self.conn, KeyHash::of(source, key))
    }

    fn remembered(&self, name: &str) -> Result<(Option<Vec<u8>>, Option<Timestamp>), JournalError> {
        let value =
            self.conn.query_row("SELECT value FROM meta WHERE name = ?", [name], |row| row.get(0)).optional()?;
        let newest: Option<i64> = self.conn.query_row(
            "SELECT ifnull((SELECT at FROM keys ORDER BY first_seq DESC LIMIT 1), (SELECT max(newest_at) FROM key_runs))",
            [],
            |row| row.get(0),
        )?;
        Ok((value, newest.map(Timestamp::from_millis)))
    }

    fn dedupe_memory(&self) -> (u64, u64) {
        self.dedupe.memory()
    }

    fn used_bytes(&self) -> Result<u64, JournalError> {
        used_bytes(&self.conn)
    }

    fn disk(&self) -> Option<Disk> {
        let system = rustix::fs::statvfs(&self.path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        // What is kept for root is nothing that the journal could have.
        Some(Disk { free_bytes: bytes(system.f_bavail), size_bytes: bytes(system.f_blocks) })
    }

    fn close(mut self: Box<Self>) {
        self.lost |= self.checkpointer.take().is_some_and(|checkpointer| !checkpointer.end());
        if self.lost {
            // The next start copies the whole log; closing would copy the end of it and remove it.
            let _ = self.keep_the_log();
        }
        // Closing the last connection checkpoints; after a failure there is nothing left to save.
        if let Err((_, error)) = self.conn.close() {
            tracing::warn!(error = %error, "journal did not close cleanly: {error}");
        }
    }
}

impl SqliteEngine {
    /// One step of removing what is no longer needed.
    fn purge(&mut self, plan: &Purge) -> Result<(Purged, dedupe::Forgotten), JournalError> {
        let used = self.used_bytes()?;
        let (events, more) = self.purge.step(&self.conn, plan, used)?;
        let keys = self.dedupe.expire(&self.conn, plan.keys_before, plan.limit)?;
        let count = keys.count as u64;
        Ok((Purged { events, keys: count, more: more || count >= u64::from(plan.limit) }, keys))
    }

    /// Undoes what there is of a commit.
    fn begin_again(&mut self) -> Result<(), JournalError> {
        // After some errors SQLite has done it already.
        if !self.conn.is_autocommit() {
            self.conn.prepare_cached("ROLLBACK")?.execute([])?;
        }
        self.sinks = Sinks::load(&self.conn)?;
        Ok(())
    }

    fn keep_the_log(&self) -> Result<(), JournalError> {
        Ok(self.conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map(|_| ())?)
    }

    /// Closes the connection and leaves the log as it is. Whoever opens the file next, when nobody else has it
    /// open, reads the log from its beginning.
    ///
    /// The lock file keeps other processes of ours out meanwhile.
    fn let_go(&mut self, alone: bool) -> Result<(), JournalError> {
        if !alone {
            return Err(JournalError::Unavailable("it waits for its readers to be opened anew".to_owned()));
        }
        self.keep_the_log()?;
        self.conn = Connection::open_in_memory()?;
        Ok(())
    }
}

/// Opens the write connection with everything that durability rests on.
fn connect(path: &Path) -> Result<Connection, JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.busy_timeout(std::time::Duration::from_secs(2))?;
    conn.execute_batch(&format!(
        "PRAGMA page_size = 16384;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = 67108864;
         PRAGMA cache_size = -{WRITE_CACHE_KIB};
         PRAGMA temp_store = MEMORY;
         PRAGMA trusted_schema = OFF;
         PRAGMA mmap_size = 0;"
    ))?;
    let mode: String = conn.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(JournalError::Unavailable(format!("the file system allows journal mode {mode} only, not wal")));
    }
    Ok(conn)
}

/// The last position ever given: events may have been purged, but then their keys, or the cursors
/// that passed them, remain.
fn last_seq(conn: &Connection) -> Result<Seq, JournalError> {
    let newest = "SELECT first_seq, length(entries) FROM keys ORDER BY first_seq DESC LIMIT 1";
    let from_keys: Option<(Seq, i64)> = conn.query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let from_keys = from_keys.map_or(0, |(first, bytes)| first - 1 + bytes / dedupe::ENTRY as i64);
    let others: Seq = conn.query_row(
        "SELECT max(
            ifnull((SELECT max(seq) FROM events), 0),
            ifnull((SELECT max(last_seq) FROM key_runs), 0),
            ifnull((SELECT max(cursor) FROM sinks), 0))",
        [],
        |row| row.get(0),
    )?;
    Ok(from_keys.max(others))
}

fn used_bytes(conn: &Connection) -> Result<u64, JournalError> {
    let pragma = |name: &str| -> Result<u64, rusqlite::Error> {
        let mut query = conn.prepare_cached(&format!("PRAGMA {name}"))?;
        query.query_row([], |row| row.get::<_, i64>(0)).map(|n| u64::try_from(n).unwrap_or(0))
    };
    Ok((pragma("page_count")?.saturating_sub(pragma("freelist_count")?)) * pragma("page_size")?)
}

/// Makes the file's name durable: a new file whose directory entry is lost is a lost journal.
fn sync_directory(path: &Path) -> Result<(), OpenError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| OpenError::Io { path: directory.to_owned(), source })
}
