//! What a store must do to be a journal: one commit that takes appends, settlements and everything else at once,
//! and readers that never block it. The embedded engine is SQLite; another one must pass the same tests.

use std::collections::BTreeMap;

use kit::clock::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::JournalError;
use crate::event::{Dedupe, EventHead, EventId, Seq, StoredEvent};
use crate::filter::{DeliveryState, EventFilter};

pub use crate::sqlite::{DedupeBounds, open, open_reader};

/// Everything that one durable commit holds.
#[derive(Debug, Default)]
pub struct Commit {
    /// When the commit is made; the receipt time of its events.
    pub at: Timestamp,
    /// The same in the journal's own time, by which what it holds grows old.
    pub age: Timestamp,
    /// Events to append, in order.
    pub appends: Vec<Append>,
    /// Results of deliveries.
    pub settlements: Vec<Settlement>,
    /// What an operator asked for.
    pub actions: Vec<Action>,
    /// Small values to remember, by name.
    pub values: Vec<(String, Vec<u8>)>,
    /// One step of removing what is no longer needed.
    pub purge: Option<Purge>,
}

impl Commit {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty()
            && self.settlements.is_empty()
            && self.actions.is_empty()
            && self.values.is_empty()
            && self.purge.is_none()
    }
}

/// One event to append.
#[derive(Debug)]
pub struct Append {
    /// Head, its flags still as the intake made them.
    pub head: EventHead,
    /// Body as received.
    pub body: Vec<u8>,
    /// SHA-256 of `body`.
    pub digest: crate::event::BodyDigest,
    /// How a second arrival is judged.
    pub dedupe: Dedupe,
}

/// What became of one append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The event's id: the first arrival's where this is a duplicate.
    pub id: EventId,
    /// Its position.
    pub seq: Seq,
    /// It was known already; nothing was stored.
    pub duplicate: bool,
    /// Its key was known with another body; it was stored as a new event.
    pub conflict: bool,
}

/// The results of one commit, in the order of what was asked.
#[derive(Debug, Default)]
pub struct Committed {
    /// One verdict an append.
    pub verdicts: Vec<Verdict>,
    /// One outcome an action.
    pub actions: Vec<ActionOutcome>,
    /// The last position in the journal.
    pub last_seq: Seq,
    /// What the purge step removed.
    pub purged: Purged,
    /// Whether anything was written and synced.
    pub synced: bool,
}

/// A sink's progress: its cursor moves over everything that is settled, and rows exist only for
/// what is not simply delivered.
///
/// Every position in (old cursor, new cursor] that gets no exception row in `set` and is not in
/// `filtered` counts as delivered.
#[derive(Clone, Debug, Default)]
pub struct Settlement {
    /// The sink's name.
    pub sink: String,
    /// The new cursor; never less than the old one.
    pub cursor: Seq,
    /// Positions in the moved-over range that the sink's rules do not want.
    pub filtered: u64,
    /// Exception rows to write: new ones, or changes of existing ones.
    pub set: Vec<ExceptionRow>,
    /// Positions with an open exception row that are now delivered.
    pub delivered: Vec<Seq>,
    /// What was tried, for the delivery log.
    pub attempts: Vec<Attempt>,
}

/// State of an exception row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExceptionState {
    /// Will be tried again at `next_at`; its subject waits for it.
    Retrying,
    /// Waits for an earlier event of its subject.
    Waiting,
    /// Asked for again by an operator; exempt from order.
    Replaying,
    /// Given up: a dead letter.
    Parked,
    /// Dropped by an operator.
    Dropped,
}

impl ExceptionState {
    /// Still to be delivered.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Retrying | Self::Waiting | Self::Replaying)
    }
}

/// One delivery that is not simply pending or delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct ExceptionRow {
    /// Position of the event.
    pub seq: Seq,
    /// What the delivery is waiting for.
    pub state: ExceptionState,
    /// Hash of the subject: the lane that keeps its order.
    pub lane: i64,
    /// Attempts that used up the schedule.
    pub attempts: u32,
    /// When the first attempt was made.
    pub first_at: Option<Timestamp>,
    /// Not before this time.
    pub next_at: Option<Timestamp>,
    /// Why it is in this state: the last error, the operator's word.
    pub reason: String,
}

/// One attempt to deliver one event, for the delivery log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Position of the event.
    pub seq: Seq,
    /// When it began.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub ms: u32,
    /// HTTP status where there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `delivered`, or why not: a bounded set of words.
    pub outcome: String,
    /// The error in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// First bytes of the response, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
}

/// What an operator asks of the journal. Each is idempotent and leaves an audit record.
#[derive(Clone, Debug)]
pub enum Action {
    /// Deliver these again, whatever became of them.
    Replay {
        /// The sink.
        sink: String,
        /// Positions.
        seqs: Vec<Seq>,
        /// When the first is due.
        from: Timestamp,
        /// Milliseconds between one and the next.
        spacing_ms: f64,
    },
    /// Give these up for good.
    Drop {
        /// The sink.
        sink: String,
        /// Positions.
        seqs: Vec<Seq>,
        /// The operator's reason.
        reason: String,
    },
    /// Stop or resume deliveries of a sink.
    Pause {
        /// The sink.
        sink: String,
        /// True to pause.
        paused: bool,
    },
    /// Make a sink known. The first sink of a journal begins with its first event, a later one
    /// with the next event.
    Register {
        /// The sink.
        sink: String,
    },
    /// Record who did what.
    Audit(AuditRecord),
}

/// What an action changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ActionOutcome {
    /// Deliveries changed.
    pub changed: u64,
    /// Deliveries that were already as asked.
    pub unchanged: u64,
    /// Events whose body is gone, or that do not exist.
    pub unavailable: u64,
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When.
    pub at: Timestamp,
    /// From where the request came.
    pub actor: String,
    /// What was asked, for example `deliveries.replay`.
    pub action: String,
    /// The request and its result as JSON.
    pub detail: serde_json::Value,
}

/// One step of removing what is no longer needed; bounded, so that it never holds up a commit.
#[derive(Clone, Copy, Debug)]
pub struct Purge {
    /// Delivered events accepted before this, in the journal's own time, go, and so do attempts.
    pub delivered_before: Timestamp,
    /// Delivered events go oldest first while the journal holds more bytes than this.
    pub max_bytes: u64,
    /// Deduplication keys first seen before this, in the journal's own time, go.
    pub keys_before: Timestamp,
    /// Audit records made before this, by the wall clock, go.
    pub audit_before: Timestamp,
    /// At most this many rows.
    pub limit: u32,
}

/// What a purge step removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Delivered events.
    pub events: u64,
    /// Deduplication keys.
    pub keys: u64,
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
    /// Dropped by an operator.
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

/// The writing side of a store. Owned by one thread.
pub trait Engine: Send {
    /// Makes everything in `commit` durable, or nothing of it.
    ///
    /// # Errors
    /// After an error [`Engine::reopen`] must succeed before the next commit.
    fn commit(&mut self, commit: &mut Commit) -> Result<Committed, JournalError>;

    /// Comes back after a failed commit: what the disk really holds is found out and made sure of.
    ///
    /// # Errors
    /// The store is still failing; call again later.
    fn reopen(&mut self) -> Result<(), JournalError>;

    /// Work that a commit leaves behind and nobody's answer has to wait for; called when they have been sent.
    fn answered(&mut self) {}

    /// Work that makes later commits cheaper and can be done when nobody waits.
    ///
    /// # Errors
    /// As [`Engine::commit`].
    fn idle(&mut self) -> Result<(), JournalError>;

    /// The last position.
    fn last_seq(&self) -> Seq;

    /// A remembered value, and when the newest deduplication key was first seen. Fails where they are unreadable.
    fn remembered(&self, name: &str) -> Result<(Option<Vec<u8>>, Option<Timestamp>), JournalError>;

    /// Bytes of memory held for deduplication, and how many keys are remembered.
    fn dedupe_memory(&self) -> (u64, u64);

    /// Bytes in use within the store.
    ///
    /// # Errors
    /// The store cannot say.
    fn used_bytes(&self) -> Result<u64, JournalError>;

    /// Flushes and closes.
    fn close(self: Box<Self>);
}

/// The reading side of a store. Many may exist; none blocks the writer.
pub trait Reader: Send {
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
