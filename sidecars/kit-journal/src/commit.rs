//! What one durable commit holds, and what came of it.

use kit::clock::Timestamp;
use serde::{Deserialize, Serialize};

pub use crate::forgetting::{Account, Forgotten};

use crate::event::{BodyDigest, Dedupe, EventHead, EventId, KeyHash, NewEvent, Seq};

/// Everything that one durable commit holds.
#[derive(Debug, Default)]
pub struct Commit {
    /// When the commit is made; the receipt time of its events.
    pub at: Timestamp,
    /// The same in the journal's own time, by which what it holds grows old.
    pub age: Timestamp,
    /// Events to append, in order.
    pub appends: Vec<Append>,
    /// Ranges of `appends` that are stored together or not at all: none of them, where the key of one is known with
    /// other content ([`Dedupe::Key`]). In order, without overlaps.
    pub together: Vec<std::ops::Range<usize>>,
    /// Results of deliveries.
    pub settlements: Vec<Settlement>,
    /// Ranges of `appends` that take the place of what the settlement at this place settles: where that one is refused
    /// ([`Committed::refused`]), none of them is stored. In order, without overlaps.
    pub instead: Vec<(std::ops::Range<usize>, usize)>,
    /// What an operator asked for.
    pub actions: Vec<Action>,
    /// Small values to remember, by name; an empty one is forgotten.
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
    pub(crate) head: EventHead,
    /// `head` as JSON: made by whoever appends, so that the one thread that writes need not. The engine makes it
    /// anew where it sets a flag.
    pub(crate) json: String,
    pub(crate) body: Vec<u8>,
    /// SHA-256 of `body`.
    pub(crate) digest: BodyDigest,
    /// Of the key within its scope; made by whoever appends, like `json`.
    pub(crate) key: KeyHash,
    /// How a second arrival is judged.
    pub(crate) dedupe: Dedupe,
}

impl Append {
    /// `event` with the digest of its body.
    pub fn new(event: NewEvent, digest: BodyDigest) -> Self {
        let NewEvent { head, body, dedupe } = event;
        let key = KeyHash::within(&head.source, &head.key, head.scope.as_deref());
        Self { json: head.to_json(), head, body, digest, key, dedupe }
    }

    /// `event`, hashed here.
    pub(crate) fn hashed(event: NewEvent) -> Self {
        let digest = BodyDigest::of(&event.body);
        Self::new(event, digest)
    }

    /// Everything but the body.
    pub fn head(&self) -> &EventHead {
        &self.head
    }

    /// Body as received.
    pub fn body(&self) -> &[u8] {
        &self.body
    }
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
    /// Nothing was stored, because of another one that it is to be stored together with. `seq` says nothing.
    pub withheld: bool,
}

impl Verdict {
    /// A new event came of it.
    pub fn is_stored(&self) -> bool {
        !self.duplicate && !self.withheld
    }
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
    /// Another replica has changed deliveries on an operator's word since this one last looked.
    pub acted_elsewhere: bool,
    /// Whether anything was written and synced.
    pub synced: bool,
    /// Settlements, by their place in the commit, that rest on something damaged or unknown: nothing of them was
    /// recorded, and why.
    pub refused: Vec<(usize, String)>,
    /// Why the step of purging was left out.
    pub not_purged: Option<String>,
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
    /// Epoch of the lease under which this was done ([`Lease::epoch`]); a store that has given the sink to another
    /// replica since refuses it.
    pub lease: u64,
    /// The new cursor; never less than the old one.
    pub cursor: Seq,
    /// Positions in the moved-over range that the sink's rules do not want and that have no row.
    pub filtered: u64,
    /// Exception rows to write: new ones, or changes of existing ones.
    pub set: Vec<ExceptionRow>,
    /// Positions with an open exception row that are now delivered.
    pub delivered: Vec<Seq>,
    /// Positions that are now delivered, with a row or without, and are not to be delivered again: what an operator has
    /// done to them while they were on their way came too late. For sinks to which nothing is to be delivered twice.
    pub once: Vec<Seq>,
    /// What was tried, for the delivery log.
    pub attempts: Vec<Attempt>,
    /// Small values that change with these results, by name; an empty one is forgotten. The same settlement may come
    /// twice: they are what is true after it, not what it changes.
    pub values: Vec<(String, Vec<u8>)>,
}

/// The right to deliver to a sink, which one replica at a time has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Grows whenever another replica gets the right: what was done under an earlier one is refused.
    pub epoch: u64,
    /// How long it lasts from when it was asked for, unless it is asked for again; `None`: as long as the store is open.
    pub lasts: Option<std::time::Duration>,
}

/// What other replicas have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// The last position.
    pub last_seq: Seq,
    /// Deliveries were changed on an operator's word since the last look.
    pub acted_elsewhere: bool,
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
    /// Dropped by an operator, or by a route.
    Dropped,
    /// Not for this sink, and listed as that. What a sink passes by without a list is only counted
    /// ([`Settlement::filtered`]).
    Filtered,
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

impl ExceptionRow {
    /// A dead letter that was never tried, in no subject's way.
    pub fn parked_untried(seq: Seq, reason: impl Into<String>) -> Self {
        Self::untried(seq, ExceptionState::Parked, reason)
    }

    /// A delivery that ends in this state without having been tried.
    pub fn untried(seq: Seq, state: ExceptionState, reason: impl Into<String>) -> Self {
        Self { seq, state, lane: 0, attempts: 0, first_at: None, next_at: None, reason: reason.into() }
    }
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
    /// Deliver those of these again that are not delivered: dead letters, dropped ones and those being retried. For
    /// sinks to which nothing is to be delivered twice.
    Revive {
        /// The sink.
        sink: String,
        /// Positions.
        seqs: Vec<Seq>,
        /// When the first is due.
        from: Timestamp,
        /// Milliseconds between one and the next.
        spacing_ms: f64,
    },
    /// Deliver those of these again that are dead letters; what an operator has dropped meanwhile stays dropped.
    Reconsider {
        /// The sink.
        sink: String,
        /// Positions.
        seqs: Vec<Seq>,
        /// When they are due.
        from: Timestamp,
    },
    /// Make dead letters of these, which were delivered or still wait for their turn: the receiver says later that
    /// it could not use them. What is being tried, parked or dropped stays as it is.
    Park {
        /// The sink.
        sink: String,
        /// Positions.
        seqs: Vec<Seq>,
        /// The receiver's reason.
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
    /// Forget a sink that nobody delivers to any more, a step at a time: what it has still to deliver and its dead letters
    /// are given up, and nothing waits for it from the step on that says so ([`Forgotten::account`]). A step that was
    /// made stays made. A sink that another replica may deliver to stays as it is, `unchanged`.
    Forget {
        /// The sink.
        sink: String,
        /// Epoch of the lease under which this is done, as of a settlement.
        lease: u64,
        /// Rows of a step at most, so that it holds up no commit.
        rows: u32,
    },
    /// Remember a small value, in the commit of the other actions. An empty one is forgotten.
    Remember {
        /// Its name.
        name: String,
        /// The value.
        value: Vec<u8>,
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
    /// What a step of forgetting a sink gave up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forgotten: Option<Forgotten>,
}

impl ActionOutcome {
    /// Of what is done to one thing.
    pub(crate) fn of_one(changed: bool) -> Self {
        Self { changed: u64::from(changed), unchanged: u64::from(!changed), ..Self::default() }
    }

    /// Of a step of forgetting a sink.
    pub(crate) fn of_step(forgotten: Forgotten) -> Self {
        Self { changed: forgotten.pending + forgotten.parked, forgotten: Some(forgotten), ..Self::default() }
    }
}

/// When the nth of several deliveries that were asked for is due.
pub(crate) fn nth_due(from: Timestamp, spacing_ms: f64, nth: usize) -> Timestamp {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "milliseconds of at most some days"
    )]
    from.plus_millis((spacing_ms * nth as f64) as i64)
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

impl Purge {
    /// After the end was come to this often, what was kept is looked at again: parked events may have been resolved.
    pub(crate) const ENDS_A_ROUND: u32 = 512;
}

/// What a purge step removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Delivered events.
    pub events: u64,
    /// Deduplication keys.
    pub keys: u64,
    /// The step was as large as it may be: there may be more to remove, and the next one may come at once.
    pub more: bool,
}
