//! Copying the write-ahead log back into the main file, beside the commits and not within them.
//!
//! SQLite would do it in the commit that fills the log, and every webhook of that moment would wait for
//! some hundred page writes and a sync. Here a thread of its own copies while commits go on; what has
//! come in the meantime is little, and the writing thread copies that itself, so that the log begins anew.
//!
//! SQLite syncs the main file only after a pass that has come to the end of the log, and counts what an earlier
//! one has copied as copied. A disk that then fails to write one of those pages says so once, and the log would
//! be begun anew all the same. So every pass is followed by a sync here, and after one that fails the store is
//! reopened such that the whole log is copied again.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::error::JournalError;

/// Pages in the log, 8 MiB of 16 KiB pages, from which it is copied back.
const FULL: i64 = 500;
/// So few pages the writing thread copies itself.
const FEW: i64 = 100;
/// Between two passes while the log does not get shorter: somebody reads what is in it, or the disk fails.
const STEP: i64 = 100;
/// From here on commits wait for the copy: the disk does not keep up …
const LIMIT: i64 = 8 * FULL;
/// … each for a pass under way so long.
const WAIT: Duration = Duration::from_secs(1);

/// The thread, and what the writing thread knows of it.
pub(super) struct Checkpointer {
    passes: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// No pass before the log has so many pages, unless the last one has come further.
    next: i64,
    /// Pages of the log that are copied, as far as is known.
    copied: i64,
}

#[derive(Default)]
struct Shared {
    /// Pages in the log, as of the last commit.
    pages: AtomicI64,
    /// What was copied may not be on the disk.
    failed: AtomicBool,
    turn: Mutex<Turn>,
    done: Condvar,
}

#[derive(Default)]
struct Turn {
    /// A pass is asked for or under way.
    busy: bool,
    /// Pages that the last pass found copied.
    copied: Option<i64>,
}

impl Shared {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what came of a pass. Without a sync it has only copied less, and what it has not copied counts as such.
    fn take<T>(&self, result: Result<T, JournalError>) -> Result<T, JournalError> {
        if result.as_ref().is_err_and(JournalError::is_failed_sync) {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

impl Checkpointer {
    /// Starts the thread and watches the commits of `writer`.
    pub(super) fn start(path: &Path, writer: &mut Connection) -> Result<Self, JournalError> {
        let conn = connect(path)?;
        let main = File::open(path).map_err(|error| JournalError::Unavailable(format!("open it to sync: {error}")))?;
        let shared = Arc::new(Shared::default());
        let counted = Arc::clone(&shared);
        writer.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
            counted.pages.store(i64::from(pages), Ordering::Relaxed);
            Ok(())
        }))?;
        let (passes, asked) = channel();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("journal-copy".to_owned())
            .spawn(move || run(&conn, &main, &asked, &own))
            .map_err(|error| JournalError::Unavailable(format!("no thread to copy the log: {error}")))?;
        Ok(Self { passes: Some(passes), thread: Some(thread), shared, next: FULL, copied: 0 })
    }

    /// Looks after a commit whether the log is to be copied.
    ///
    /// # Errors
    /// What was copied may not be on the disk: the store has to be reopened.
    pub(super) fn after_commit(&mut self, writer: &Connection) -> Result<(), JournalError> {
        if self.has_failed() {
            return Err(JournalError::Unavailable("its log could not be copied back".to_owned()));
        }
        let pages = self.shared.pages.load(Ordering::Relaxed);
        let mut turn = self.shared.turn();
        if turn.busy {
            if pages >= LIMIT {
                drop(self.shared.done.wait_timeout_while(turn, WAIT, |turn| turn.busy));
            }
            return Ok(());
        }
        let copied = turn.copied.take().unwrap_or(0);
        if pages < FULL {
            // It has begun anew.
            (self.next, self.copied) = (FULL, 0);
            return Ok(());
        }
        let on_its_way = copied > self.copied;
        self.copied = self.copied.max(copied);
        let nearly_done = on_its_way && pages - copied <= FEW;
        if !on_its_way && pages < self.next {
            return Ok(());
        }
        self.next = pages + STEP;
        if nearly_done || pages >= LIMIT {
            drop(turn);
            // Comes to the end of the log, so that SQLite syncs; the next commit begins the log anew. Where a reader
            // keeps it from the end, the next pass that comes there is told what failed.
            if let Err(error) = self.shared.take(pass(writer)) {
                tracing::debug!(error = %error, "the journal's log was not copied: {error}");
            }
            return Ok(());
        }
        // Without the thread the writing thread does it at the limit.
        turn.busy = self.passes.as_ref().is_some_and(|passes| passes.send(()).is_ok());
        Ok(())
    }

    /// Whether what was copied may not be on the disk.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Ends the thread, after the pass it is in; says whether what was copied is on the disk.
    pub(super) fn end(mut self) -> bool {
        self.join();
        !self.has_failed()
    }

    fn join(&mut self) {
        drop(self.passes.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared.failed.store(true, Ordering::Release);
            tracing::error!("the journal's copying thread panicked");
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.join();
    }
}

/// Nobody waits for a pass that has ended, however it did.
struct Done<'a>(&'a Shared);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.turn().busy = false;
        self.0.done.notify_all();
    }
}

fn run(conn: &Connection, main: &File, asked: &Receiver<()>, shared: &Shared) {
    let mut failing = false;
    while asked.recv().is_ok() {
        let _done = Done(shared);
        let result = pass(conn).and_then(|copied| {
            main.sync_data().map_err(JournalError::Sync)?;
            Ok(copied)
        });
        match shared.take(result) {
            Ok(copied) => {
                failing = false;
                shared.turn().copied = Some(copied);
            }
            Err(error) => {
                // Once an outage, like the commits.
                if !std::mem::replace(&mut failing, true) {
                    let reason = kit::error::chain(&error);
                    tracing::error!(reason = %reason, "the journal's log cannot be copied back, trying again: {reason}");
                }
            }
        }
    }
}

fn connect(path: &Path) -> Result<Connection, JournalError> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -64; PRAGMA mmap_size = 0;",
    )?;
    Ok(conn)
}

/// Copies what nobody reads any more, without waiting for anybody; says how many pages are copied now.
fn pass(conn: &Connection) -> Result<i64, JournalError> {
    Ok(conn.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |row| row.get(2))?)
}
