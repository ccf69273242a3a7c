//! What settlements and operators change, worked out in memory: the rows they touch are read under the lock in one
//! question and written in one statement a table. The rules are those of [`crate::account`], as for the other engine, and the
//! tests of both engines are the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kit::clock::Timestamp;
use tokio_postgres::Row;

use crate::account::{Changes, Deltas, Rows};
use crate::copy::storable;
use crate::engine::{Action, ActionOutcome, Commit, ExceptionRow, ExceptionState, Settlement};
use crate::error::JournalError;
use crate::event::Seq;
use crate::forgetting::{Forgetting, Numbers};
use crate::packed;

/// Columns that [`exception_row`] reads, from the first.
pub(super) const ROW: &str = "seq, state, lane, attempts, first_at, next_at, reason";
/// Columns that [`Books::open`] reads.
pub(super) const SINKS: &str = "s.id, s.name, s.start, s.cursor, s.delivered, s.open, s.parked, s.dropped, s.filtered, \
     s.ahead, s.paused, coalesce(l.epoch, 0)";

pub(super) fn exception_row(row: &Row, from: usize) -> Result<ExceptionRow, JournalError> {
    let seq: Seq = row.get(from);
    let code: i16 = row.get(from + 1);
    let state =
        packed::state_of(i64::from(code)).ok_or(JournalError::Damaged { seq, what: "delivery state is unknown" })?;
    Ok(ExceptionRow {
        seq,
        state,
        lane: row.get(from + 2),
        attempts: u32::try_from(row.get::<_, i64>(from + 3)).unwrap_or(u32::MAX),
        first_at: row.get::<_, Option<i64>>(from + 4).map(Timestamp::from_millis),
        next_at: row.get::<_, Option<i64>>(from + 5).map(Timestamp::from_millis),
        reason: row.get(from + 6),
    })
}

/// One sink's account.
pub(super) struct Book {
    pub(super) id: i32,
    pub(super) start: Seq,
    pub(super) cursor: Seq,
    pub(super) delivered: i64,
    pub(super) open: i64,
    pub(super) parked: i64,
    pub(super) dropped: i64,
    pub(super) filtered: i64,
    pub(super) ahead: i64,
    pub(super) paused: bool,
    /// Of the lease under which settlements are taken.
    pub(super) epoch: i64,
    /// Rows as they are, of all positions that were asked for.
    pub(super) rows: BTreeMap<Seq, ExceptionRow>,
    /// Positions whose row differs from the stored one.
    pub(super) changed: BTreeSet<Seq>,
    pub(super) is_new: bool,
    pub(super) is_changed: bool,
}

/// The accounts of all sinks during one commit.
pub(super) struct Books {
    pub(super) sinks: HashMap<String, Book>,
    pub(super) settled: Option<Seq>,
    /// Sinks that are forgotten with this commit, by name.
    pub(super) forgotten: Vec<(String, Book)>,
    /// Of the sinks that were forgotten; read where they are asked for.
    pub(super) numbers: Numbers,
    /// Positions that operators ask about and whose event is there.
    pub(super) stored: BTreeSet<Seq>,
    pub(super) attempts: Vec<(i32, i64, Seq, Seq, String)>,
    pub(super) values: BTreeMap<String, Vec<u8>>,
    pub(super) audit: Vec<(i64, String, String, String)>,
}

/// The rows that a commit asks for.
#[derive(Default)]
pub(super) struct Wanted {
    /// Sink and position.
    pub(super) rows: Vec<(String, Seq)>,
    /// Everything from the sink's cursor to here.
    pub(super) up_to: Vec<(String, Seq)>,
    /// Positions whose event operators ask about.
    pub(super) events: Vec<Seq>,
    /// So many rows of a sink that is to be forgotten.
    pub(super) first: Vec<(String, i64)>,
    /// The numbers of the sinks that were forgotten.
    pub(super) numbers: bool,
}

impl Wanted {
    pub(super) fn of(commit: &Commit) -> Self {
        let mut wanted = Self::default();
        for settlement in &commit.settlements {
            let set = settlement.set.iter().map(|row| row.seq);
            let seqs = set.chain(settlement.delivered.iter().chain(&settlement.once).copied());
            wanted.rows.extend(seqs.map(|seq| (settlement.sink.clone(), seq)));
            wanted.up_to.push((settlement.sink.clone(), settlement.cursor));
        }
        for action in &commit.actions {
            if let Some((sink, seqs)) = subject_of(action) {
                wanted.rows.extend(seqs.iter().map(|seq| (sink.to_owned(), *seq)));
                wanted.events.extend(seqs);
            }
            match action {
                Action::Forget { sink, rows, .. } => {
                    wanted.first.push((sink.clone(), i64::from(*rows)));
                    wanted.numbers = true;
                }
                Action::Register { .. } => wanted.numbers = true,
                _ => {}
            }
        }
        wanted
    }
}

/// The sink and the positions that an action is about.
fn subject_of(action: &Action) -> Option<(&str, &[Seq])> {
    match action {
        Action::Replay { sink, seqs, .. }
        | Action::Drop { sink, seqs, .. }
        | Action::Revive { sink, seqs, .. }
        | Action::Reconsider { sink, seqs, .. }
        | Action::Park { sink, seqs, .. } => Some((sink, seqs)),
        _ => None,
    }
}

impl Books {
    /// From rows of [`SINKS`], rows of a sink's id with [`ROW`], and the positions that are there.
    pub(super) fn open(sinks: &[Row], rows: &[Row], stored: &[Row]) -> Result<Self, JournalError> {
        let mut by_id: HashMap<i32, BTreeMap<Seq, ExceptionRow>> = HashMap::new();
        for row in rows {
            let exception = exception_row(row, 1)?;
            by_id.entry(row.get(0)).or_default().insert(exception.seq, exception);
        }
        let book = |row: &Row| {
            let id: i32 = row.get(0);
            let book = Book {
                id,
                start: row.get(2),
                cursor: row.get(3),
                delivered: row.get(4),
                open: row.get(5),
                parked: row.get(6),
                dropped: row.get(7),
                filtered: row.get(8),
                ahead: row.get(9),
                paused: row.get(10),
                epoch: row.get(11),
                rows: by_id.remove(&id).unwrap_or_default(),
                changed: BTreeSet::new(),
                is_new: false,
                is_changed: false,
            };
            (row.get(1), book)
        };
        let settled = sinks.iter().map(|row| row.get::<_, Seq>(3)).min();
        Ok(Self {
            sinks: sinks.iter().map(book).collect(),
            settled,
            forgotten: Vec::new(),
            numbers: Numbers::default(),
            stored: stored.iter().map(|row| row.get(0)).collect(),
            attempts: Vec::new(),
            values: BTreeMap::new(),
            audit: Vec::new(),
        })
    }

    /// The position that every sink had passed before this commit; `None` where there is no sink.
    pub(super) fn settled(&self) -> Option<Seq> {
        self.settled
    }

    /// Of the sinks that there are.
    pub(super) fn ids(&self) -> Vec<i32> {
        self.sinks.values().map(|book| book.id).collect()
    }

    /// Whether this commit changes the row of an event at any sink.
    pub(super) fn touch(&self, seq: Seq) -> bool {
        self.sinks.values().any(|book| book.changed.contains(&seq))
    }

    /// Why a settlement cannot be recorded: nobody knows its sink, or another replica delivers to it now.
    pub(super) fn refusal(&self, settlement: &Settlement) -> Option<String> {
        match self.sinks.get(&settlement.sink) {
            None => Some(kit::error::chain(&JournalError::UnknownSink(settlement.sink.clone()))),
            Some(book) if u64::try_from(book.epoch) != Ok(settlement.lease) => Some(format!(
                "another replica delivers to {} since this was done (lease {}, now {})",
                settlement.sink, settlement.lease, book.epoch
            )),
            Some(_) => None,
        }
    }

    pub(super) fn settle(&mut self, settlement: &Settlement, age: Timestamp) -> Result<(), JournalError> {
        let Some(book) = self.sinks.get_mut(&settlement.sink) else {
            return Err(JournalError::UnknownSink(settlement.sink.clone()));
        };
        let cursor = book.cursor;
        let mut changes = Changes::new(book, cursor);
        changes.settle(settlement)?;
        let (deltas, cursor) = changes.end();
        book.apply(deltas, cursor);
        if let Some((first, last, entries)) = packed::attempts(&settlement.attempts)? {
            self.attempts.push((book.id, age.as_millis(), first, last, entries));
        }
        self.values.extend(settlement.values.iter().cloned());
        Ok(())
    }

    pub(super) fn remember(&mut self, values: &[(String, Vec<u8>)]) {
        self.values.extend(values.iter().cloned());
    }

    pub(super) fn act(&mut self, action: &Action, last_seq: Seq) -> Result<ActionOutcome, JournalError> {
        match action {
            Action::Register { sink } => return Ok(ActionOutcome::of_one(self.register(sink, last_seq))),
            Action::Remember { name, value } => {
                self.values.insert(name.clone(), value.clone());
                return Ok(ActionOutcome::of_one(true));
            }
            Action::Audit(record) => {
                let detail = storable(&record.detail.to_string());
                self.audit.push((record.at.as_millis(), storable(&record.actor), storable(&record.action), detail));
                return Ok(ActionOutcome::of_one(true));
            }
            Action::Pause { sink, paused } => {
                let Some(book) = self.sinks.get_mut(sink) else { return Ok(unavailable()) };
                let changes = book.paused != *paused;
                (book.paused, book.is_changed) = (*paused, book.is_changed || changes);
                return Ok(ActionOutcome::of_one(changes));
            }
            Action::Forget { sink, lease, rows } => return Ok(self.forget(sink, *lease, *rows, last_seq)),
            _ => {}
        }
        let Some((sink, seqs)) = subject_of(action) else { return Ok(unavailable()) };
        // An operator's typing error must not fail the commit that others share.
        let Some(book) = self.sinks.get_mut(sink) else { return Ok(unavailable()) };
        let mut total = ActionOutcome::default();
        let (start, cursor) = (book.start, book.cursor);
        let mut changes = Changes::new(book, cursor);
        for seq in seqs {
            if !self.stored.contains(seq) || *seq <= start || *seq > last_seq {
                total.unavailable += 1;
            } else if changes.act(action, *seq, usize::try_from(total.changed).unwrap_or(usize::MAX))? {
                total.changed += 1;
            } else {
                total.unchanged += 1;
            }
        }
        let (deltas, cursor) = changes.end();
        book.apply(deltas, cursor);
        Ok(total)
    }

    /// A step; the last one takes the sink itself.
    fn forget(&mut self, name: &str, lease: u64, rows: u32, last_seq: Seq) -> ActionOutcome {
        let Some(book) = self.sinks.get_mut(name) else { return unavailable() };
        if u64::try_from(book.epoch) != Ok(lease) {
            return ActionOutcome::of_one(false);
        }
        // All that are there, where they are fewer than were asked for.
        let is_last = book.rows.len() < rows as usize;
        let mut counters = Forgetting {
            start: book.start,
            cursor: book.cursor,
            delivered: book.delivered,
            open: book.open,
            parked: book.parked,
            dropped: book.dropped,
            filtered: book.filtered,
            ahead: book.ahead,
        };
        let rows = std::mem::take(&mut book.rows);
        let forgotten = counters.step(rows.values().map(|row| row.state), last_seq, is_last);
        book.changed.extend(rows.into_keys());
        (book.cursor, book.open, book.parked) = (counters.cursor, counters.open, counters.parked);
        (book.dropped, book.ahead, book.is_changed) = (counters.dropped, counters.ahead, true);
        if is_last && let Some(book) = self.sinks.remove(name) {
            self.values.extend([self.numbers.add(name, i64::from(book.id))]);
            self.forgotten.push((name.to_owned(), book));
        }
        ActionOutcome::of_step(forgotten)
    }

    /// Makes a sink known; the first one that a journal ever had gets everything that is in it.
    fn register(&mut self, name: &str, last_seq: Seq) -> bool {
        if self.sinks.contains_key(name) {
            return false;
        }
        let (id, is_first) = self.numbers.next(name, self.sinks.values().map(|book| i64::from(book.id)));
        let Ok(id) = i32::try_from(id) else { return false };
        let start = if is_first { 0 } else { last_seq };
        let book = Book {
            id,
            start,
            cursor: start,
            delivered: 0,
            open: 0,
            parked: 0,
            dropped: 0,
            filtered: 0,
            ahead: 0,
            paused: false,
            epoch: 0,
            rows: BTreeMap::new(),
            changed: BTreeSet::new(),
            is_new: true,
            is_changed: true,
        };
        self.sinks.insert(name.to_owned(), book);
        true
    }
}

impl Book {
    fn apply(&mut self, deltas: Deltas, cursor: Seq) {
        self.is_changed |= deltas != Deltas::default() || cursor != self.cursor;
        self.cursor = cursor;
        self.delivered += deltas.delivered;
        self.open += deltas.open;
        self.parked += deltas.parked;
        self.dropped += deltas.dropped;
        self.filtered += deltas.filtered;
        self.ahead += deltas.ahead;
    }
}

/// Written with the others of the commit.
impl Rows for Book {
    fn state(&mut self, seq: Seq) -> Result<Option<ExceptionState>, JournalError> {
        Ok(self.rows.get(&seq).map(|row| row.state))
    }

    fn between(&mut self, after: Seq, up_to: Seq) -> Result<i64, JournalError> {
        Ok(i64::try_from(self.rows.range(after + 1..=up_to).count()).unwrap_or(i64::MAX))
    }

    fn put(&mut self, row: &ExceptionRow) -> Result<(), JournalError> {
        self.changed.insert(row.seq);
        self.rows.insert(row.seq, row.clone());
        Ok(())
    }

    fn set_due(&mut self, seq: Seq, due: Timestamp) -> Result<(), JournalError> {
        if let Some(row) = self.rows.get_mut(&seq) {
            row.next_at = Some(due);
            self.changed.insert(seq);
        }
        Ok(())
    }

    fn remove(&mut self, seq: Seq) -> Result<(), JournalError> {
        if self.rows.remove(&seq).is_some() {
            self.changed.insert(seq);
        }
        Ok(())
    }
}

fn unavailable() -> ActionOutcome {
    ActionOutcome { unavailable: 1, ..ActionOutcome::default() }
}
