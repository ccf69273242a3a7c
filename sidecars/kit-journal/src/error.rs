//! What can go wrong with the journal, by what the caller can do about it.

use std::path::PathBuf;

/// Why a journal could not be opened. Each kind has its own exit code.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the file (exit 75).
    #[error("journal {path} is in use by another process", path = path.display())]
    Locked {
        /// The journal file.
        path: PathBuf,
    },
    /// Written by a newer version; the file was not touched (exit 76).
    #[error(
        "journal {path} has schema version {found} and this binary knows {known}: start the newer version again",
        path = path.display()
    )]
    Newer {
        /// The journal file.
        path: PathBuf,
        /// Version found in the file.
        found: i64,
        /// Newest version this binary knows.
        known: i64,
    },
    /// Not one of our files; it was not touched (exit 78).
    #[error("{path} is a database of another program: set SIDECAR_JOURNAL__PATH to a file of our own", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// What is there is a copy of a journal that was not finished; it was not touched (exit 78).
    #[error(
        "{journal} is an unfinished copy of a journal: finish it with the same `outrigger journal copy` that began it, or \
         remove it"
    )]
    Unfinished {
        /// The file, or host, database and schema.
        journal: String,
    },
    /// The database is not one to keep a journal in; it was not changed (exit 78).
    #[error("journal database {database} (DATABASE_URL): {what}")]
    Database {
        /// Host, database and schema.
        database: String,
        /// What is wrong, and what would mend it.
        what: String,
    },
    /// The directory is missing or not writable, or the file cannot be read (exit 78).
    #[error("open journal {path} (SIDECAR_JOURNAL__PATH)", path = path.display())]
    Io {
        /// The journal file or its directory.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The main file is not there, or is empty, and the write-ahead log beside it is not: SQLite would remove that. Nothing
    /// was touched (exit 78).
    #[error(
        "journal {path} (SIDECAR_JOURNAL__PATH) is missing or empty, and {path}-wal beside it holds what was accepted: put the \
         file that belongs to it back, or move {path}-wal away",
        path = path.display()
    )]
    LogAlone {
        /// The journal file.
        path: PathBuf,
    },
    /// The store refused (exit 1).
    #[error("open journal {path}", path = path.display())]
    Store {
        /// The journal file.
        path: PathBuf,
        /// The store's word.
        source: JournalError,
    },
}

/// Why a read or a write of the journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store's own error.
    #[error("store: {0}")]
    Store(#[from] rusqlite::Error),
    /// The database's own error, or the connection's.
    #[error("database")]
    Database(#[from] tokio_postgres::Error),
    /// The database was asked and says nothing.
    #[error("the database does not answer")]
    NoAnswer,
    /// What answers reads is not where commits go.
    #[error(
        "what answers reads has come to position {last_seq}, and {known} is committed: it is a standby that lags, or a \
         server that was replaced; name one that takes writes, for all transactions"
    )]
    Behind {
        /// Where it is.
        last_seq: i64,
        /// Where the journal is.
        known: i64,
    },
    /// The database was asked to look for something, and takes too long.
    #[error(
        "the database takes longer than {seconds} s to look for this: ask for less, or for a shorter time, or by \
         source and key"
    )]
    TooLong {
        /// How long it may take.
        seconds: u64,
    },
    /// A record that does not match its checksum: it is never served.
    #[error("record {seq} is damaged: {what}")]
    Damaged {
        /// Position of the record.
        seq: i64,
        /// Which check failed.
        what: &'static str,
    },
    /// Cursors, counters and rows contradict each other: the file has been damaged, and whatever it said
    /// would be a guess.
    #[error("journal is damaged: {0}")]
    Inconsistent(String),
    /// The database knows less than it has said.
    #[error("{0}")]
    Forgotten(String),
    /// The journal has stopped or is being reopened after a failure.
    #[error("journal unavailable: {0}")]
    Unavailable(String),
    /// The configured maximum size is reached with undelivered events.
    #[error("journal has reached its maximum of {max_bytes} bytes (SIDECAR_JOURNAL__MAX_BYTES)")]
    TooLarge {
        /// The configured maximum.
        max_bytes: u64,
    },
    /// The main file could not be synced.
    #[error("sync: {0}")]
    Sync(#[source] std::io::Error),
    /// A sink that the journal does not know.
    #[error("no sink is called {0}")]
    UnknownSink(String),
}

impl JournalError {
    /// The disk has no room (`ENOSPC`, quota, file-size limit): nothing was committed and nothing
    /// is in doubt, the next commit may simply succeed.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Store(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Self::TooLarge { .. } => true,
            _ => false,
        }
    }

    /// The connection to the database is of no use any more. What was asked may have been done.
    pub(crate) fn is_connection_lost(&self) -> bool {
        match self {
            Self::NoAnswer => true,
            // Without a code it is not the database that speaks. Of those with one: the session ends (class 08 and
            // 57P), it was idle within a transaction for too long, or this server does not take writes any more.
            Self::Database(error) => error.code().is_none_or(|code| {
                let code = code.code();
                code.starts_with("08") || code.starts_with("57P") || matches!(code, "25P03" | "25006")
            }),
            _ => false,
        }
    }

    /// The database cannot be asked, or says that it cannot do it: not that there is something wrong with what it holds.
    pub(crate) fn is_of_the_database(&self) -> bool {
        matches!(self, Self::NoAnswer | Self::Database(_) | Self::Behind { .. })
    }

    /// The server has no room for another session now (class 53).
    pub(crate) fn is_crowded_out(&self) -> bool {
        matches!(self, Self::Database(error) if error.code().is_some_and(|said| said.code().starts_with("53")))
    }

    /// What pgbouncer in statement mode says to a transaction. It has the same code for whatever else keeps it from going
    /// on, and so only the text tells.
    pub(crate) fn is_refused_transaction(&self) -> bool {
        let says = |error: &tokio_postgres::error::DbError| error.message().contains("statement pooling");
        matches!(self, Self::Database(error) if error.as_db_error().is_some_and(says))
    }

    /// What the database says where its user lacks a right.
    pub(crate) fn missing_right(&self) -> Option<&str> {
        let Self::Database(error) = self else { return None };
        let said = error.as_db_error().filter(|said| said.code().code() == "42501");
        said.map(tokio_postgres::error::DbError::message)
    }

    /// A statement was stopped, because it took longer than it may.
    pub(crate) fn is_stopped_statement(&self) -> bool {
        matches!(self, Self::Database(error) if error.code().is_some_and(|said| said.code() == "57014"))
    }

    /// Something that is stored cannot be read, or is not what it should be: it will be the same the next time,
    /// and what rests on other parts of the store works meanwhile.
    pub(crate) fn is_damage(&self) -> bool {
        use rusqlite::ffi;
        /// Of the many errors of I/O those of reading.
        const READING: [i32; 4] =
            [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_DATA, ffi::SQLITE_IOERR_CORRUPTFS];
        match self {
            Self::Damaged { .. } | Self::Inconsistent(_) => true,
            Self::Store(error) => {
                self.is_corrupt() || error.sqlite_error().is_some_and(|error| READING.contains(&error.extended_code))
            }
            _ => false,
        }
    }

    /// A sync failed: the kernel says so once, and then shows what was written as if it were on the disk.
    pub(crate) fn is_failed_sync(&self) -> bool {
        use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
        match self {
            Self::Sync(_) => true,
            Self::Store(error) => error
                .sqlite_error()
                .is_some_and(|error| [SQLITE_IOERR_FSYNC, SQLITE_IOERR_DIR_FSYNC].contains(&error.extended_code)),
            _ => false,
        }
    }

    /// A page of the store was read and is none.
    pub(crate) fn is_corrupt(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        matches!(self, Self::Store(error) if matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)))
    }
}

/// Why an event was not accepted. The sender is told to come again; nothing was stored, or if a
/// failing disk stored it all the same, the repetition is recognised as a duplicate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// More appends, or more bytes of them, wait for the disk than may.
    #[error("too many events wait for the disk")]
    Busy,
    /// The disk has not answered for as long as the sender may be kept waiting.
    #[error("the disk takes too long")]
    Late,
    /// The commit failed or the journal is being reopened.
    #[error("journal unavailable: {0}")]
    Unavailable(String),
}
