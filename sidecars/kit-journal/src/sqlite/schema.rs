//! The tables, their versions, and what makes a file ours.
//!
//! The shape is append-friendly: few narrow tables, no index on random values, no update of a wide
//! row. The happy path of an event is one insert here and its share of one small update a batch.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rusqlite::Connection;

use crate::error::{JournalError, OpenError};

/// `application_id` in the file header: "OUTR".
const APPLICATION_ID: i64 = 0x4f55_5452;
/// The same of a copy that is not finished: "OUTC". Versions that know of no copies take it for another program's.
const UNFINISHED_ID: i64 = 0x4f55_5443;

/// The newest schema version; `MIGRATIONS[n]` leads from version n to n + 1.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

const MIGRATIONS: [&str; 3] = [
    // `sum` is SHA-256 over seq, at, head and SHA-256(body): a record is served only if it matches.
    // `keys.entries` holds 32 bytes an event – key hash, event id – for consecutive positions from
    // `first_seq`. `key_blocks` holds older keys sorted, 40 bytes each, 256 a block.
    // `exceptions` has a row only for what is neither simply pending nor simply delivered.
    "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, head TEXT NOT NULL, sum BLOB NOT NULL, body BLOB NOT NULL
    );
    CREATE TABLE keys (first_seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, entries BLOB NOT NULL);
    CREATE TABLE key_runs (
        run INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, newest_at INTEGER NOT NULL,
        count INTEGER NOT NULL, filter BLOB NOT NULL
    );
    CREATE TABLE key_blocks (
        run INTEGER NOT NULL, first_key BLOB NOT NULL, entries BLOB NOT NULL, PRIMARY KEY (run, first_key)
    ) WITHOUT ROWID;
    CREATE TABLE sinks (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, start INTEGER NOT NULL, cursor INTEGER NOT NULL,
        delivered INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL DEFAULT 0, parked INTEGER NOT NULL DEFAULT 0,
        dropped INTEGER NOT NULL DEFAULT 0, filtered INTEGER NOT NULL DEFAULT 0, ahead INTEGER NOT NULL DEFAULT 0,
        paused INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE exceptions (
        sink INTEGER NOT NULL, seq INTEGER NOT NULL, state INTEGER NOT NULL, lane INTEGER NOT NULL,
        attempts INTEGER NOT NULL, first_at INTEGER, next_at INTEGER, reason TEXT NOT NULL,
        PRIMARY KEY (sink, seq)
    ) WITHOUT ROWID;
    CREATE INDEX exceptions_by_state ON exceptions (sink, state, seq);
    CREATE INDEX exceptions_by_due ON exceptions (sink, state, next_at);
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY, sink INTEGER NOT NULL, at INTEGER NOT NULL, min_seq INTEGER NOT NULL,
        max_seq INTEGER NOT NULL, entries TEXT NOT NULL
    );
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL
    );
    ",
    // From here on the newest events may have no row in `keys`: see `saving`. Before, all had, or had had.
    "
    INSERT INTO meta (name, value) SELECT 'keys.through', max(
        ifnull((SELECT first_seq - 1 + length(entries) / 32 FROM keys ORDER BY first_seq DESC LIMIT 1), 0),
        ifnull((SELECT max(last_seq) FROM key_runs), 0),
        ifnull((SELECT max(seq) FROM events), 0),
        ifnull((SELECT max(cursor) FROM sinks), 0));
    ",
    // From here on `exceptions.state` may be 6, filtered, which an earlier version takes for damage.
    "",
];

/// Refuses, without opening it as a database, a file that is another program's or a newer version's.
///
/// The header of the main file is enough: a migration ends with a checkpoint. An empty file (a first
/// start that was cut off) is judged again after opening. Call with the lock held: another process may
/// be in its first start.
pub(super) fn check_header(path: &Path) -> Result<(), OpenError> {
    let mut header = [0_u8; 108];
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return check_log(path),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    let length = file.metadata().map_err(|source| OpenError::Io { path: path.to_owned(), source })?.len();
    if length == 0 {
        return check_log(path);
    }
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"SQLite format 3\0") {
        if is_creation_cut_off(path) {
            return Ok(());
        }
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let word = |at: usize| i64::from(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    // A first start that was cut off leaves a file of ours that does not say so yet: its first page,
    // the schema, has no entries (bytes 103 and 104).
    let empty = header[103] == 0 && header[104] == 0;
    judge(path, word(68), word(60), empty)
}

/// Refuses a write-ahead log whose main file is not there, or is empty: SQLite removes it in that case, with all that was
/// accepted and not copied back. No first start leaves one, because the switch to a log is written to the main file first.
pub(super) fn check_log(path: &Path) -> Result<(), OpenError> {
    /// One that has no more than its header holds nothing.
    const HEADER: u64 = 32;
    let length = |path: &Path| match std::fs::metadata(path) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(source) => Err(OpenError::Io { path: path.to_owned(), source }),
    };
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if length(path)? == 0 && length(Path::new(&log))? > HEADER {
        return Err(OpenError::LogAlone { path: path.to_owned() });
    }
    Ok(())
}

/// Refuses files that this user may not write. SQLite opens them for reading then, and says so at the first commit only.
///
/// Asked of the system and not tried: a file that is opened and closed again takes this process's locks on it along.
pub(super) fn check_writable(path: &Path) -> Result<(), OpenError> {
    use rustix::fs::Access;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match rustix::fs::access(&name, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(OpenError::Io { path: name.into(), source: error.into() }),
        }
    }
    Ok(())
}

/// Whether the very first transaction, which makes the file, was cut off by a power cut: any part of its first
/// page may be there then, and beside it a rollback journal that says that the file was empty before. SQLite
/// empties it again.
///
/// The layout is of the SQLite file format, section 3: eight bytes that mark a journal, and the size of the
/// database before in pages as the fifth word.
fn is_creation_cut_off(path: &Path) -> bool {
    let mut journal = path.as_os_str().to_owned();
    journal.push("-journal");
    let mut header = [0_u8; 20];
    let read = File::open(Path::new(&journal)).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header.starts_with(&[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]) && header[16..] == [0; 4]
}

fn judge(path: &Path, application: i64, version: i64, empty: bool) -> Result<(), OpenError> {
    if application == UNFINISHED_ID {
        return Err(OpenError::Unfinished { journal: path.display().to_string() });
    }
    if application != APPLICATION_ID && !(empty && application == 0 && version == 0) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    if version > VERSION {
        return Err(OpenError::Newer { path: path.to_owned(), found: version, known: VERSION });
    }
    Ok(())
}

/// Brings the file to the current version, in one transaction.
pub(super) fn migrate(path: &Path, conn: &Connection) -> Result<(), OpenError> {
    let store = |source: rusqlite::Error| OpenError::Store { path: path.to_owned(), source: source.into() };
    let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).map_err(store);
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(store)?;
    let version = pragma("user_version")?;
    judge(path, pragma("application_id")?, version, tables == 0)?;
    if version == VERSION {
        return Ok(());
    }
    let steps: String = MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(0)).copied().collect();
    let sql = format!(
        "BEGIN IMMEDIATE; {steps} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;"
    );
    conn.execute_batch(&sql).map_err(store)?;
    checkpoint(conn).map_err(|source| OpenError::Store { path: path.to_owned(), source })
}

/// Judges a file that is open as [`check_header`] does one that is not; its version, 0 where it is empty.
pub(super) fn judge_open(path: &Path, conn: &Connection) -> Result<i64, OpenError> {
    let store = |source: rusqlite::Error| OpenError::Store { path: path.to_owned(), source: source.into() };
    let number = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(store);
    let version = number("PRAGMA user_version")?;
    let empty = number("SELECT count(*) FROM sqlite_schema")? == 0;
    judge(path, number("PRAGMA application_id")?, version, empty)?;
    Ok(version)
}

/// Makes an empty file an unfinished copy that says so with `marker`.
pub(super) fn begin(conn: &Connection, marker: &str) -> Result<(), JournalError> {
    let steps: String = MIGRATIONS.iter().copied().collect();
    let sql = format!(
        "BEGIN IMMEDIATE; {steps} DELETE FROM meta; CREATE TABLE copying (marker TEXT NOT NULL);
         PRAGMA application_id = {UNFINISHED_ID}; PRAGMA user_version = {VERSION};"
    );
    let begun = conn
        .execute_batch(&sql)
        .and_then(|()| conn.execute("INSERT INTO copying (marker) VALUES (?)", [marker]))
        .and_then(|_| conn.execute_batch("COMMIT"));
    if let Err(error) = begun {
        drop(conn.execute_batch("ROLLBACK"));
        return Err(error.into());
    }
    checkpoint(conn)
}

/// Version and marker of an unfinished copy; `None` where there is nothing yet.
pub(super) fn begun(conn: &Connection) -> Result<Option<(i64, String)>, JournalError> {
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(None);
    }
    let version = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(Some((version, conn.query_row("SELECT marker FROM copying", [], |row| row.get(0))?)))
}

/// Removes all that an unfinished copy holds, and gives it another marker.
pub(super) fn empty(conn: &Connection, marker: &str) -> Result<(), JournalError> {
    let emptied = conn
        .execute_batch(
            "BEGIN IMMEDIATE; DELETE FROM meta; DELETE FROM events; DELETE FROM keys; DELETE FROM key_runs;
             DELETE FROM key_blocks; DELETE FROM sinks; DELETE FROM exceptions; DELETE FROM attempts; DELETE FROM audit;",
        )
        .and_then(|()| conn.execute("UPDATE copying SET marker = ?", [marker]))
        .and_then(|_| conn.execute_batch("COMMIT"));
    if let Err(error) = emptied {
        drop(conn.execute_batch("ROLLBACK"));
        return Err(error.into());
    }
    checkpoint(conn)
}

/// Makes an unfinished copy a journal. Inside the caller's transaction.
pub(super) fn finish(conn: &Connection) -> Result<(), JournalError> {
    Ok(conn.execute_batch(&format!("DROP TABLE copying; PRAGMA application_id = {APPLICATION_ID};"))?)
}

/// Copies the whole write-ahead log into the main file and syncs it, also what counted as copied already. The
/// index of the log says how much that is; it was made anew, and says nothing yet, where nobody had the file open.
pub(super) fn copy_whole_log(conn: &Connection) -> Result<(), JournalError> {
    let copied: i64 = conn.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(2))?;
    if copied > 0 {
        return Err(JournalError::Unavailable("another program has it open".to_owned()));
    }
    checkpoint(conn)
}

/// Copies the rest of the write-ahead log into the main file, syncs it, and empties the log.
///
/// After a failed sync the kernel may have forgotten pages that it shows as written; this writes
/// them again and syncs a file that has not failed yet, so that what is visible is durable.
pub(super) fn checkpoint(conn: &Connection) -> Result<(), JournalError> {
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy != 0 {
        return Err(JournalError::Unavailable("readers hold the write-ahead log".to_owned()));
    }
    Ok(())
}
