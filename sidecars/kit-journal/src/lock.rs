//! One process a journal: a lock on a file beside it that the kernel releases with the process.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::OpenError;

/// How long a starting daemon waits for its predecessor: a container that is being replaced may
/// still be draining, but a second replica must be told soon.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Holds the journal for this process while it lives.
#[derive(Debug)]
pub(crate) struct JournalLock {
    _file: File,
}

impl JournalLock {
    /// Takes the lock on `<journal>.lock`.
    pub(crate) fn take(journal: &Path) -> Result<Self, OpenError> {
        let path = lock_path(journal);
        // Where there is no lock file yet it is the journal's folder that takes none.
        let named = if path.exists() { path.as_path() } else { journal };
        let io = |source| OpenError::Io { path: named.to_owned(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: journal.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
        }
    }
}

fn lock_path(journal: &Path) -> PathBuf {
    let mut name = journal.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}
