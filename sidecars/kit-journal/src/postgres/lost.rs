//! Whether the database still knows what it has said. A standby that takes over without the last commits, or a backup
//! that is restored, takes positions back; others may have filled them again before this process looks.

use std::sync::{Arc, OnceLock};

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Param, param};
use super::schema::VERSION;
use crate::engine::Commit;
use crate::error::JournalError;
use crate::event::{EventId, Seq};

/// What [`Told`] is read from: columns of one row of `@head h`, with the parameters of [`Seen::params`].
pub(super) const TOLD: &str = "h.last_seq, (SELECT commits FROM @replicas WHERE id = $1), \
     (SELECT id || '/' || age FROM @keys WHERE seq = h.last_seq), (SELECT id || '/' || age FROM @keys WHERE seq = $2), h.version";

/// Set once, for good: why nothing can be done any more.
pub(super) type Lost = Arc<OnceLock<String>>;

/// What the database says now.
pub(super) struct Told {
    pub(super) last_seq: Seq,
    /// Commits of this process; `None` where it is not in the list.
    pub(super) commits: Option<i64>,
    /// Stamp of the last event.
    pub(super) newest: Option<String>,
    /// Stamp of the event at the position that this process knows as the last one.
    known: Option<String>,
    /// Of the tables.
    version: i64,
}

impl Told {
    /// From a row that has the columns of [`TOLD`] from `at` on.
    pub(super) fn read(row: &Row, at: usize) -> Self {
        Self {
            last_seq: row.get(at),
            commits: row.get(at + 1),
            newest: row.get(at + 2),
            known: row.get(at + 3),
            version: row.get(at + 4),
        }
    }
}

/// What this process has seen, of its own commits and of all others'.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) replica: Uuid,
    /// Commits of this process.
    pub(super) commits: i64,
    pub(super) last_seq: Seq,
    /// Of the event there: its id and when it was stored, which another one in its place does not have.
    pub(super) stamp: Option<String>,
    pub(super) lost: Lost,
}

/// As the database makes it.
pub(super) fn stamp(id: EventId, age: kit::clock::Timestamp) -> String {
    format!("{}/{}", Uuid::from_bytes(*id.as_bytes()), age.as_millis())
}

impl Seen {
    pub(super) fn params(&self) -> [Param<'static>; 2] {
        [param(self.replica, Type::UUID), param(self.last_seq, Type::INT8)]
    }

    /// Fails for good where the database knows less than it has said: positions would be given twice, and what is in
    /// memory here is of other events.
    ///
    /// And where a newer version of the program has changed the tables: what is written by this one would not fit them.
    pub(super) fn check(&self, told: &Told) -> Result<(), JournalError> {
        if told.version > VERSION && self.lost.get().is_none() {
            let what = format!(
                "a newer version has brought the journal's tables to version {}, and this one knows {VERSION}: this process \
                 ends, start the newer version in its place",
                told.version
            );
            tracing::error!("{what}");
            let _ = self.lost.set(what);
        }
        if self.lost.get().is_none()
            && let Some(what) = self.contradiction(told)
        {
            let what = format!(
                "{what}: it was restored, or a standby took over that had not received everything (synchronous \
                 replication prevents that). This process ends; the next one goes on with what is there"
            );
            tracing::error!("{what}");
            let _ = self.lost.set(what);
        }
        self.is_usable()
    }

    /// What was delivered was read before: it cannot lie behind the last position that there is.
    pub(super) fn check_settled(&self, commit: &Commit, told: &Told) -> Result<(), JournalError> {
        if let Some(beyond) = commit.settlements.iter().map(|settlement| settlement.cursor).max()
            && beyond > told.last_seq
        {
            let what = format!("the database has lost the positions {} to {beyond}", told.last_seq + 1);
            tracing::error!("{what}: they were delivered here");
            let _ = self.lost.set(what);
        }
        self.is_usable()
    }

    /// Fails where something was found to be lost.
    pub(super) fn is_usable(&self) -> Result<(), JournalError> {
        self.lost.get().map_or(Ok(()), |what| Err(JournalError::Forgotten(what.clone())))
    }

    fn contradiction(&self, told: &Told) -> Option<String> {
        if told.last_seq < self.last_seq {
            return Some(format!("the database has lost the positions {} to {}", told.last_seq + 1, self.last_seq));
        }
        // Without an event there its key was forgotten after its time.
        if let (Some(seen), Some(known)) = (&self.stamp, &told.known)
            && seen != known
        {
            return Some(format!(
                "the database has lost the event at position {}, another one is there",
                self.last_seq
            ));
        }
        let commits = told.commits.unwrap_or(0);
        (commits < self.commits)
            .then(|| format!("the database knows {commits} of the {} commits of this replica", self.commits))
    }

    /// Takes over what was told.
    pub(super) fn learn(&mut self, told: Told) {
        (self.last_seq, self.stamp) = (told.last_seq, told.newest);
    }
}
