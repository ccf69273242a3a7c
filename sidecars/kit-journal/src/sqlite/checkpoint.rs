//! Copying the write-ahead log back into the main file, beside the commits and not within them.
//!
//! SQLite would do it in the commit that fills the log, and every webhook of that moment would wait for
//! some hundred page writes and a sync. Here a thread of its own copies while commits go on; what has
//! come in the meantime is little, and the writing thread copies that itself, so that the log begins anew.
//!
//! A pass that fails costs nothing but room: what was committed is in the log until it has been copied
//! and synced. The next pass copies it again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};

use crate::error::JournalError;

/// Pages in the log, 8 MiB of 16 KiB pages, from which it is copied back.
const FULL: i64 = 500;
/// So few pages the writing thread copies itself.
const FEW: i64 = 100;
/// Between two passes while the log does not get shorter: somebody reads what is in it, or the disk fails.
const STEP: i64 = 100;
/// From here on commits wait for the copy: the disk does not keep up.
const LIMIT: i64 = 8 * FULL;

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
    /// A pass is asked for or under way.
    busy: AtomicBool,
    /// Pages that the last pass found copied.
    copied: Mutex<Option<i64>>,
}

impl Checkpointer {
    /// Starts the thread and watches the commits of `writer`.
    pub(super) fn start(path: &Path, writer: &mut Connection) -> Result<Self, JournalError> {
        let conn = connect(path)?;
        let shared = Arc::new(Shared::default());
        let counted = Arc::clone(&shared);
        writer.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
            counted.pages.store(i64::from(pages), Ordering::Relaxed);
            Ok(())
        }))?;
        let (passes, asked) = channel();
        let (path, own) = (path.to_owned(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("journal-copy".to_owned())
            .spawn(move || run(&path, conn, &asked, &own))
            .map_err(|error| JournalError::Unavailable(format!("no thread to copy the log: {error}")))?;
        Ok(Self { passes: Some(passes), thread: Some(thread), shared, next: FULL, copied: 0 })
    }

    /// Looks after a commit whether the log is to be copied.
    pub(super) fn after_commit(&mut self, writer: &Connection) {
        let pages = self.shared.pages.load(Ordering::Relaxed);
        if pages < FULL {
            // It has begun anew.
            (self.next, self.copied) = (FULL, 0);
            return;
        }
        if self.shared.busy.load(Ordering::Acquire) {
            return;
        }
        let copied = self.shared.copied.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(0);
        let on_its_way = copied > self.copied;
        self.copied = self.copied.max(copied);
        let nearly_done = on_its_way && pages - copied <= FEW;
        if !on_its_way && pages < self.next {
            return;
        }
        self.next = pages + STEP;
        if nearly_done || pages >= LIMIT {
            // Whether it succeeds shows in the next commit, which begins the log anew or finds it longer.
            if let Err(error) = pass(writer) {
                tracing::debug!(error = %error, "the journal's log was not copied: {error}");
            }
        } else {
            self.ask();
        }
    }

    fn ask(&self) {
        self.shared.busy.store(true, Ordering::Release);
        if self.passes.as_ref().is_none_or(|passes| passes.send(()).is_err()) {
            // Without the thread the writing thread does it at the limit.
            self.shared.busy.store(false, Ordering::Release);
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.passes.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's copying thread panicked");
        }
    }
}

fn run(path: &Path, conn: Connection, asked: &Receiver<()>, shared: &Shared) {
    let mut conn = Some(conn);
    let mut failing = false;
    while asked.recv().is_ok() {
        let result = match conn.take() {
            Some(conn) => Ok(conn),
            None => connect(path),
        };
        let result = result.and_then(|open| {
            let copied = pass(&open)?;
            conn = Some(open);
            Ok(copied)
        });
        match result {
            Ok(copied) => {
                failing = false;
                *shared.copied.lock().unwrap_or_else(PoisonError::into_inner) = Some(copied);
            }
            Err(error) => {
                // Once an outage, like the commits.
                if !std::mem::replace(&mut failing, true) {
                    let reason = kit::error::chain(&error);
                    tracing::error!(reason = %reason, "the journal's log cannot be copied back, trying again: {reason}");
                }
            }
        }
        shared.busy.store(false, Ordering::Release);
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
