//! What a store must do to be a journal: one commit that takes appends, settlements and everything else at once,
//! and readers that never block it. The embedded engine is SQLite; another one must pass the same tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use kit::clock::{SharedClock, Timestamp};
use serde::Serialize;

use crate::config::{EngineKind, JournalSection};
use crate::error::{JournalError, OpenError};
use crate::event::{EventId, Seq, StoredEvent};
use crate::filter::{DeliveryState, EventFilter};
use crate::journal::OpenReader;
use crate::postgres::{PostgresEngine, PostgresReader};
use crate::sqlite::{SqliteEngine, SqliteReader};

pub use crate::commit::{
    Account, Action, ActionOutcome, Append, Attempt, AuditRecord, Commit, Committed, ExceptionRow, ExceptionState,
    Forgotten, Lease, News, Purge, Purged, Settlement, Verdict,
};
pub use crate::sqlite::{DedupeBounds, open, open_reader};

/// A store that a section of the configuration names.
pub struct Opened {
    /// Its writing side.
    pub engine: Box<dyn Engine>,
    /// Makes one more reader of it.
    pub open_reader: OpenReader,
    /// The clock that whatever is stored in it is told by.
    pub clock: SharedClock,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// Opens or creates the store of a section, without a writing thread: every commit is the caller's. `clock` is the
/// host's.
///
/// # Errors
/// As [`Journal::open`](crate::Journal::open).
pub fn open_section(section: &JournalSection, clock: SharedClock) -> Result<Opened, OpenError> {
    match section.engine {
        EngineKind::Sqlite => {
            let engine = Box::new(SqliteEngine::open(&section.path)?);
            let path = section.path.clone();
            Ok(Opened { engine, open_reader: Box::new(move || Ok(Box::new(SqliteReader::ready(&path)?))), clock })
        }
        EngineKind::Postgres => {
            let refused = |(_, what)| OpenError::Database { database: section.name(), what };
            let address = section.address().map_err(refused)?;
            let engine = PostgresEngine::open(&address, &section.name(), section.allow_shared_database, clock)?;
            let clock = engine.clock();
            let open_reader: OpenReader = Box::new(move || Ok(Box::new(PostgresReader::new(Arc::clone(&address))?)));
            Ok(Opened { engine: Box::new(engine), open_reader, clock })
        }
    }
}

/// A sink's row: cursor and counters that survive purging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SinkRow {
    /// The sink's name.
    pub name: String,
    /// Position after which its events begin.
    pub start: Seq,
    /// Everything up to here is settled or has an exception row.
    pub cursor: Seq,
    /// Delivered.
    pub delivered: u64,
    /// Retrying, waiting behind a subject, or replaying.
    pub open: u64,
    /// Dead letters.
    pub parked: u64,
    /// Dropped by an operator or by a route.
    pub dropped: u64,
    /// Not wanted by the sink's rules.
    pub filtered: u64,
    /// Rows ahead of the cursor (dropped or asked for again before their turn came); they are
    /// counted in `dropped` and `open` too.
    #[serde(skip)]
    pub ahead: u64,
    /// Deliveries are paused by an operator.
    pub paused: bool,
}

impl SinkRow {
    /// Events this sink is responsible for.
    pub fn accepted(&self, last_seq: Seq) -> u64 {
        u64::try_from(last_seq - self.start).unwrap_or(0)
    }

    /// Events still to be delivered, whether tried before or not.
    pub fn pending(&self, last_seq: Seq) -> u64 {
        let beyond = u64::try_from(last_seq - self.cursor).unwrap_or(0);
        (beyond + self.open).saturating_sub(self.ahead)
    }
}

/// Totals of the journal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Events ever accepted: the last position.
    pub accepted: u64,
    /// Bytes in use within the file.
    pub used_bytes: u64,
    /// Position of the oldest event whose body is still stored.
    pub oldest_seq: Option<Seq>,
    /// Its receipt time.
    pub oldest_at: Option<Timestamp>,
    /// One row a sink.
    pub sinks: Vec<SinkRow>,
}

/// One event in a search result: its head and its state at each sink.
#[derive(Clone, Debug)]
pub struct Found {
    /// The event, without its body.
    pub event: StoredEvent,
    /// Body length in bytes.
    pub body_bytes: u64,
    /// State and exception row by sink name.
    pub deliveries: BTreeMap<String, FoundDelivery>,
}

/// State of one event at one sink.
#[derive(Clone, Debug)]
pub struct FoundDelivery {
    /// The state, as the API names it.
    pub state: DeliveryState,
    /// The exception row, if there is one.
    pub row: Option<ExceptionRow>,
}

/// One page of a search.
#[derive(Debug)]
pub struct Page {
    /// What matched, newest first.
    pub found: Vec<Found>,
    /// Where to go on: positions below this have not been looked at. `None` when all were.
    pub next: Option<Seq>,
    /// How many records were looked at.
    pub examined: u64,
}

/// The file system that a store lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that the store may still take.
    pub free_bytes: u64,
    /// Bytes in all.
    pub size_bytes: u64,
}

/// The writing side of a store. Owned by one thread.
pub trait Engine: Send {
    /// Makes everything in `commit` durable, or nothing of it.
    ///
    /// # Errors
    /// After an error [`Engine::reopen`] must succeed before the next commit.
    fn commit(&mut self, commit: &mut Commit) -> Result<Committed, JournalError>;

    /// Comes back after a failed commit: what the disk really holds is found out and made sure of. `alone` says
    /// that there is no reader; there must be none where the store may show what is not on the disk.
    ///
    /// # Errors
    /// The store is still failing, or there are readers and there must not be; call again later.
    fn reopen(&mut self, alone: bool) -> Result<(), JournalError>;

    /// Work that a commit leaves behind and nobody's answer has to wait for; called when they have been sent.
    ///
    /// # Errors
    /// As [`Engine::commit`]; what was committed before is not in doubt.
    fn answered(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    /// Work that makes later commits cheaper and can be done when nobody waits, at the journal's time `age`.
    ///
    /// # Errors
    /// As [`Engine::commit`].
    fn idle(&mut self, age: Timestamp) -> Result<(), JournalError>;

    /// The last position.
    fn last_seq(&self) -> Seq;

    /// The events that are remembered under this key, in any scope, in order of position; now and then another key's
    /// among them.
    ///
    /// # Errors
    /// Unreadable.
    fn known(&self, source: &str, key: &str) -> Result<Vec<(EventId, Seq)>, JournalError>;

    /// A remembered value, and when the newest deduplication key was first seen. Fails where they are unreadable.
    fn remembered(&self, name: &str) -> Result<(Option<Vec<u8>>, Option<Timestamp>), JournalError>;

    /// Bytes of memory held for deduplication, and how many keys are remembered.
    fn dedupe_memory(&self) -> (u64, u64);

    /// Bytes in use within the store.
    ///
    /// # Errors
    /// The store cannot say.
    fn used_bytes(&self) -> Result<u64, JournalError>;

    /// The file system that the store grows on; `None` where that is somebody else's, or cannot be asked.
    fn disk(&self) -> Option<Disk> {
        None
    }

    /// Asks for the right to deliver to a sink that is registered, or to keep it. `None`: another replica has it. A store
    /// that only one process can open gives it for good.
    ///
    /// # Errors
    /// The store cannot be asked; what was given before lasts for as long as it was given.
    fn lease(&mut self, _sink: &str) -> Result<Option<Lease>, JournalError> {
        Ok(Some(Lease { epoch: 0, lasts: None }))
    }

    /// What keeps leases beside the commits, so that a commit that takes long loses none. `None`: [`Engine::lease`] does.
    ///
    /// # Errors
    /// The process has no room for it.
    fn keeper(&self) -> Result<Option<Box<dyn LeaseKeeper>>, JournalError> {
        Ok(None)
    }

    /// Gives a lease of this epoch back, so that another replica need not wait for its end.
    ///
    /// # Errors
    /// The store cannot be told; the lease ends by itself.
    fn give_back(&mut self, _sink: &str, _epoch: u64) -> Result<(), JournalError> {
        Ok(())
    }

    /// How often [`Engine::look`] is to be called while nothing is committed; `None` where nobody else writes.
    fn look_every(&self) -> Option<std::time::Duration> {
        None
    }

    /// What other replicas have done since the last commit or look.
    ///
    /// # Errors
    /// The store cannot be asked.
    fn look(&mut self) -> Result<Option<News>, JournalError> {
        Ok(None)
    }

    /// Why nothing can be done any more, whatever is tried: this process has to end, and the next one goes on with what
    /// is there. `None` as long as there is a way.
    fn over(&self) -> Option<String> {
        None
    }

    /// Flushes and closes.
    fn close(self: Box<Self>);
}

/// Keeps leases that [`Engine::lease`] has given. Owned by a thread of its own.
pub trait LeaseKeeper: Send {
    /// Has these leases last on, sink and epoch each, with one question; what became of each, in their order.
    ///
    /// # Errors
    /// The store cannot be asked; what was given before lasts for as long as it was given.
    fn keep(&mut self, leases: &[(&str, u64)]) -> Result<Vec<Kept>, JournalError>;
}

/// What became of a lease that was to last on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It lasts for that long from now.
    For(Lease),
    /// It is over, another replica may have it.
    Over,
    /// Something holds it fast: it may be asked for again, and the others are not held up by it.
    NotNow,
}

/// The reading side of a store. Many may exist; none blocks the writer.
pub trait Reader: Send {
    /// The store is known to have come as far as this: what answers from less far is not it, and says nothing of what is
    /// not there.
    fn expects(&mut self, _last_seq: Seq) {}

    /// Events after `after`, in order, at most `limit` and at most about `max_bytes` of bodies (but always one).
    /// Positions that have a row of their own already – dropped or asked for again ahead of the cursor – come
    /// back in the second list.
    ///
    /// # Errors
    /// A damaged record is an error of its own position: the batch ends before it, and one that would begin with
    /// it is [`JournalError::Damaged`].
    fn events_after(
        &mut self,
        sink: &str,
        after: Seq,
        limit: u32,
        max_bytes: u64,
    ) -> Result<(Vec<StoredEvent>, Vec<Seq>), JournalError>;

    /// One event with its body.
    ///
    /// # Errors
    /// Damaged or unreadable.
    fn event(&mut self, seq: Seq) -> Result<Option<StoredEvent>, JournalError>;

    /// The position of an event by its id. A scan: nothing on the hot path asks this.
    ///
    /// # Errors
    /// Unreadable.
    fn find(&mut self, id: EventId) -> Result<Option<Seq>, JournalError>;

    /// Retrying and waiting rows of a sink in order of position.
    ///
    /// # Errors
    /// Unreadable.
    fn blocked(&mut self, sink: &str, limit: u32) -> Result<Vec<ExceptionRow>, JournalError>;

    /// Positions in (after, to] that have a row of their own at this sink.
    ///
    /// # Errors
    /// Unreadable.
    fn rows_between(&mut self, sink: &str, after: Seq, to: Seq) -> Result<Vec<Seq>, JournalError>;

    /// Those of `seqs` whose row at this sink is not in `state`, or is not there.
    ///
    /// # Errors
    /// Unreadable.
    fn not_in_state(&mut self, sink: &str, seqs: &[Seq], state: ExceptionState) -> Result<Vec<Seq>, JournalError>;

    /// Replaying rows due at `now` in order of due time, and the time the next one is due.
    ///
    /// # Errors
    /// Unreadable.
    fn replays(
        &mut self,
        sink: &str,
        now: Timestamp,
        limit: u32,
    ) -> Result<(Vec<ExceptionRow>, Option<Timestamp>), JournalError>;

    /// One sink's row.
    ///
    /// # Errors
    /// [`JournalError::UnknownSink`].
    fn sink(&mut self, name: &str) -> Result<SinkRow, JournalError>;

    /// Searches newest first from `before` downwards, looking at no more than `examine` records.
    ///
    /// # Errors
    /// Unreadable.
    fn search(
        &mut self,
        filter: &EventFilter,
        before: Option<Seq>,
        limit: u32,
        examine: u64,
    ) -> Result<Page, JournalError>;

    /// One event as a search would show it.
    ///
    /// # Errors
    /// Unreadable or damaged.
    fn found(&mut self, seq: Seq) -> Result<Option<Found>, JournalError>;

    /// Every recorded attempt for one event, oldest first, by sink.
    ///
    /// # Errors
    /// Unreadable.
    fn attempts(&mut self, seq: Seq) -> Result<Vec<(String, Attempt)>, JournalError>;

    /// The audit trail, newest first, below `before`; each with its number.
    ///
    /// # Errors
    /// Unreadable.
    fn audit(&mut self, before: Option<i64>, limit: u32) -> Result<Vec<(i64, AuditRecord)>, JournalError>;

    /// A remembered value.
    ///
    /// # Errors
    /// Unreadable.
    fn value(&mut self, name: &str) -> Result<Option<Vec<u8>>, JournalError>;

    /// Every remembered value whose name begins with `prefix`, in order of the names.
    ///
    /// # Errors
    /// Unreadable.
    fn values(&mut self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError>;

    /// Totals.
    ///
    /// # Errors
    /// Unreadable.
    fn statistics(&mut self) -> Result<Statistics, JournalError>;

    /// Receipt time of the oldest event that `sink` still has to deliver.
    ///
    /// # Errors
    /// Unreadable.
    fn oldest_pending(&mut self, sink: &str) -> Result<Option<Timestamp>, JournalError>;
}
