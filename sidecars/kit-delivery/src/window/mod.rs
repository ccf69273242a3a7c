//! Which event may go next: a plain state machine over positions, subjects and times. No I/O.
//!
//! *Slots* are the positions after the cursor that have been loaded; the cursor moves over a slot
//! once its event is delivered or has a row of its own in the journal. *Items* are deliveries still
//! to be made: loaded events, and rows that are retried, wait behind their subject, or are replayed.
//! *Lanes* keep the order: only the first item of a lane may be in flight.
//!
//! A slow or failing event holds up its own subject only: when half the window waits behind it, it
//! gets a row and the cursor moves on.

mod loading;
mod rows;

pub(crate) use loading::MISSING;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::clock::Timestamp;
use kit_journal::engine::{Attempt, ExceptionRow, ExceptionState, Settlement};
use kit_journal::{Seq, StoredEvent};
use sha2::{Digest, Sha256};

/// How much may be held in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Loaded positions after the cursor.
    pub(crate) slots: usize,
    /// Bytes of loaded bodies.
    pub(crate) bytes: usize,
    /// Rows being retried or waiting; above it nothing new is loaded.
    pub(crate) open_rows: usize,
    /// How long the first event of a window that is filling up may take before it gets a row.
    pub(crate) spill_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { slots: 1024, bytes: 8 << 20, open_rows: 50_000, spill_after: Duration::from_secs(1) }
    }
}

/// So many are looked past for a batch when they do not go together with its first.
const LOOKED_PAST: usize = 256;

/// What keeps its order together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Lane {
    /// All events of a subject.
    Subject(i64),
    /// An event on its own: no order asked for, or a replay.
    Own(Seq),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Open {
        loaded: Instant,
    },
    /// Delivered.
    Done,
    /// It has a row, which is written when the cursor passes it.
    Row,
    /// It has had a row before its turn came.
    OwnRow,
    /// It is not for this sink.
    Unwanted,
}

#[derive(Debug)]
enum Source {
    Loaded(Arc<StoredEvent>),
    Row,
    Replay,
}

#[derive(Debug)]
struct Item {
    lane: Lane,
    subject_lane: i64,
    source: Source,
    attempts: u32,
    uncharged: u32,
    first_at: Option<Timestamp>,
    not_before: Option<Instant>,
    /// The sink asked not to be sent it before: no probe takes it earlier.
    asked_until: Option<Instant>,
    in_flight: bool,
    /// Its own time had come when it was started; a probe may start one early.
    was_due: bool,
    /// The sink's successes when this was last tried.
    successes_seen: u64,
}

/// A delivery that may start.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) seq: Seq,
    /// The event, unless its body has to be read from the journal.
    pub(crate) event: Option<Arc<StoredEvent>>,
}

/// What the journal is told, and what is new in it.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) settlement: Settlement,
    /// Positions that count as delivered from now on.
    pub(crate) delivered: Vec<Seq>,
}

/// What is known about a delivery when its outcome is judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History {
    /// Attempts that used up the schedule so far.
    pub(crate) attempts: u32,
    /// Failures in a row that did not.
    pub(crate) uncharged: u32,
    /// Its own time to be tried had come.
    pub(crate) was_due: bool,
    /// The sink's successes when this was last tried.
    pub(crate) successes_seen: u64,
}

/// What becomes of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    Delivered,
    Retry {
        charged: bool,
        delay: Duration,
        /// The sink asked to be left alone with it for so long, whatever else happens.
        left_alone: Duration,
        next_at: Timestamp,
        reason: String,
    },
    Park {
        reason: String,
    },
    /// It is over without having been delivered, in this state.
    PassBy {
        state: ExceptionState,
        reason: String,
    },
}

pub(crate) struct Window {
    ordered: bool,
    limits: Limits,
    cursor: Seq,
    slots: VecDeque<Slot>,
    bytes: usize,
    items: HashMap<Seq, Item>,
    lanes: HashMap<Lane, VecDeque<Seq>>,
    ready: VecDeque<Lane>,
    delayed: BTreeSet<(Instant, Lane)>,
    open_rows: usize,
    /// Rows of loaded positions, to be written when the cursor passes them.
    rows_ahead: BTreeMap<Seq, ExceptionRow>,
    rows_changed: Vec<ExceptionRow>,
    rows_delivered: Vec<Seq>,
    attempts: Vec<Attempt>,
}

/// The lane of a subject: the same on every host and in every version, because rows store it.
pub(crate) fn subject_lane(subject: &str) -> i64 {
    let hash = Sha256::digest(subject.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(first)
}

/// Milliseconds from `earlier` to `later`; negative when they are the other way round.
fn millis(later: Instant, earlier: Instant) -> i64 {
    let distance =
        |a: Instant, b: Instant| i64::try_from(a.saturating_duration_since(b).as_millis()).unwrap_or(i64::MAX);
    distance(later, earlier) - distance(earlier, later)
}

impl Window {
    pub(crate) fn new(cursor: Seq, ordered: bool, limits: Limits) -> Self {
        Self {
            ordered,
            limits,
            cursor,
            slots: VecDeque::new(),
            bytes: 0,
            items: HashMap::new(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeSet::new(),
            open_rows: 0,
            rows_ahead: BTreeMap::new(),
            rows_changed: Vec::new(),
            rows_delivered: Vec::new(),
            attempts: Vec::new(),
        }
    }

    /// Gives a loaded event that waits behind its subject a row of its own.
    fn wait_behind(&mut self, seq: Seq) {
        self.give_row(seq, ExceptionState::Waiting, None, "waits for an earlier event of its subject");
    }

    fn give_row(&mut self, seq: Seq, state: ExceptionState, next_at: Option<Timestamp>, reason: &str) {
        let nth = usize::try_from(seq - self.cursor - 1).unwrap_or(usize::MAX);
        let Some(item) = self.items.get_mut(&seq) else { return };
        let row = ExceptionRow {
            seq,
            state,
            lane: item.subject_lane,
            attempts: item.attempts,
            first_at: item.first_at,
            next_at,
            reason: reason.to_owned(),
        };
        if let Source::Loaded(event) = &item.source {
            self.bytes -= event.body.len();
            self.open_rows += 1;
            item.source = Source::Row;
            if let Some(slot) = self.slots.get_mut(nth) {
                *slot = Slot::Row;
            }
        }
        // A replay's row is in the journal, also where the cursor has not come by yet.
        if seq > self.cursor && !matches!(item.source, Source::Replay) {
            self.rows_ahead.insert(seq, row);
        } else {
            self.rows_changed.push(row);
        }
    }

    /// Everything of this lane that is loaded and not in flight waits behind its first item.
    fn lane_waits(&mut self, lane: Lane) {
        let waiting: Vec<Seq> = self.lanes.get(&lane).map_or_else(Vec::new, |queue| {
            queue.iter().skip(1).copied().filter(|seq| matches!(self.items[seq].source, Source::Loaded(_))).collect()
        });
        for seq in waiting {
            self.wait_behind(seq);
        }
    }

    /// The next deliveries that go together, marked as in flight; `most` says how many may, by the attempts made. A
    /// probe takes one, and may take one whose time has not come.
    pub(crate) fn start(&mut self, now: Instant, probe: bool, most: impl Fn(u32) -> usize) -> Vec<Start> {
        while let Some((due, lane)) = self.delayed.first().copied()
            && due <= now
        {
            self.delayed.remove(&(due, lane));
            self.ready.push_back(lane);
        }
        if probe && self.ready.is_empty() {
            let early = self.take_for_probe(now);
            self.ready.extend(early);
        }
        let (mut starts, mut room, mut others) = (Vec::new(), usize::MAX, Vec::new());
        while starts.len() < room && others.len() < LOOKED_PAST {
            let Some(lane) = self.ready.pop_front() else { break };
            let Some(item) = self.lanes.get(&lane).and_then(|queue| self.items.get(queue.front()?)) else { continue };
            let own_room = if probe { 1 } else { most(item.attempts).max(1) };
            if starts.is_empty() {
                room = own_room;
            } else if own_room != room {
                others.push(lane);
                continue;
            }
            starts.extend(self.begin(lane, now));
        }
        for lane in others.into_iter().rev() {
            self.ready.push_front(lane);
        }
        starts
    }

    fn begin(&mut self, lane: Lane, now: Instant) -> Option<Start> {
        let seq = *self.lanes.get(&lane)?.front()?;
        let item = self.items.get_mut(&seq)?;
        item.in_flight = true;
        item.was_due = item.not_before.is_none_or(|due| due <= now);
        let event = match &item.source {
            Source::Loaded(event) => Some(Arc::clone(event)),
            Source::Row | Source::Replay => None,
        };
        Some(Start { seq, event })
    }

    /// What is known about a delivery in flight.
    pub(crate) fn history(&self, seq: Seq) -> History {
        self.items.get(&seq).map_or(History { attempts: 0, uncharged: 0, was_due: true, successes_seen: 0 }, |item| {
            History {
                attempts: item.attempts,
                uncharged: item.uncharged,
                was_due: item.was_due,
                successes_seen: item.successes_seen,
            }
        })
    }

    /// Takes the outcome of a delivery in flight.
    pub(crate) fn complete(
        &mut self,
        seq: Seq,
        decision: &Decision,
        attempt: Option<Attempt>,
        successes: u64,
        now: Instant,
    ) {
        let started = attempt.as_ref().map(|attempt| attempt.at);
        self.attempts.extend(attempt);
        let Some(item) = self.items.get_mut(&seq) else { return };
        item.successes_seen = successes;
        item.first_at = item.first_at.or(started);
        let lane = item.lane;
        match decision {
            Decision::Delivered => self.finish(seq, None),
            Decision::Park { reason } => self.finish(seq, Some((ExceptionState::Parked, reason))),
            Decision::PassBy { state, reason } => self.finish(seq, Some((*state, reason))),
            Decision::Retry { charged, delay, left_alone, next_at, reason } => {
                item.in_flight = false;
                item.asked_until = (!left_alone.is_zero()).then(|| now + *left_alone);
                // A probe that came before the event's own time does not put that time off: otherwise
                // an event could be probed for ever and never be judged. What the sink asks for does.
                let kept = item.not_before.filter(|due| !charged && *due > now);
                let due = kept.map_or(now + *delay, |due| due.max(now + *left_alone));
                let next_at = next_at.plus_millis(-millis(now + *delay, due));
                item.not_before = Some(due);
                item.uncharged = if *charged { 0 } else { item.uncharged.saturating_add(1) };
                item.attempts += u32::from(*charged);
                // An event that was never answered keeps its place in the window: while the sink is
                // away nothing has to be written.
                if *charged || !matches!(item.source, Source::Loaded(_)) {
                    let state = match item.source {
                        Source::Replay => ExceptionState::Replaying,
                        Source::Loaded(_) | Source::Row => ExceptionState::Retrying,
                    };
                    let leaves = *charged && state == ExceptionState::Replaying;
                    self.give_row(seq, state, Some(next_at), reason);
                    if leaves {
                        // Its row brings it back when it is due: there may be many, and others are not to wait for them.
                        self.remove(seq);
                        return;
                    }
                    self.lane_waits(lane);
                }
                self.delayed.insert((due, lane));
            }
        }
    }

    /// A delivery is over: delivered, or in another state for a reason.
    fn finish(&mut self, seq: Seq, other: Option<(ExceptionState, &str)>) {
        let Some(item) = self.items.get(&seq) else { return };
        let row = other.map(|(state, reason)| ExceptionRow {
            seq,
            state,
            lane: item.subject_lane,
            attempts: item.attempts,
            first_at: item.first_at,
            next_at: None,
            reason: reason.to_owned(),
        });
        let in_journal = seq <= self.cursor || matches!(item.source, Source::Replay);
        self.remove(seq);
        if !in_journal {
            let nth = usize::try_from(seq - self.cursor - 1).unwrap_or(usize::MAX);
            self.rows_ahead.remove(&seq);
            if let Some(slot) = self.slots.get_mut(nth) {
                *slot = if row.is_some() { Slot::Row } else { Slot::Done };
            }
            if let Some(row) = row {
                self.rows_ahead.insert(seq, row);
            }
        } else if let Some(row) = row {
            self.rows_changed.push(row);
        } else {
            self.rows_delivered.push(seq);
        }
    }

    /// Takes a delivery out of its lane; the next one of the lane becomes ready.
    fn remove(&mut self, seq: Seq) {
        let Some(item) = self.items.remove(&seq) else { return };
        match &item.source {
            Source::Loaded(event) => self.bytes -= event.body.len(),
            Source::Row => self.open_rows -= 1,
            Source::Replay => {}
        }
        let Some(queue) = self.lanes.get_mut(&item.lane) else { return };
        let was_first = queue.front() == Some(&seq);
        queue.retain(|queued| *queued != seq);
        let empty = queue.is_empty();
        if empty {
            self.lanes.remove(&item.lane);
        }
        // A lane whose first item was in flight stands in no queue.
        if was_first && !item.in_flight {
            self.forget_lane(item.lane);
        }
        if was_first && !empty {
            self.make_ready(item.lane);
        }
    }

    /// Takes a lane out of the queues that [`Window::start`] looks at.
    fn forget_lane(&mut self, lane: Lane) {
        self.ready.retain(|queued| *queued != lane);
        self.delayed.retain(|(_, queued)| *queued != lane);
    }

    fn make_ready(&mut self, lane: Lane) {
        let Some(seq) = self.lanes.get(&lane).and_then(|queue| queue.front()) else { return };
        match self.items[seq].not_before {
            Some(due) => {
                self.delayed.insert((due, lane));
            }
            None => self.ready.push_back(lane),
        }
    }

    fn rebuild_ready(&mut self) {
        self.ready.clear();
        self.delayed.clear();
        let mut lanes: Vec<(Seq, Lane)> =
            self.lanes.iter().filter_map(|(lane, queue)| Some((*queue.front()?, *lane))).collect();
        lanes.sort_unstable();
        for (seq, lane) in lanes {
            if !self.items[&seq].in_flight {
                self.make_ready(lane);
            }
        }
    }

    /// What can be settled now; `None` when that is nothing.
    pub(crate) fn settlement(&mut self, sink: &str) -> Option<Settled> {
        let old = self.cursor;
        let (mut delivered, mut filtered) = (Vec::new(), 0);
        while let Some(slot) = self.slots.pop_front_if(|slot| !matches!(slot, Slot::Open { .. })) {
            self.cursor += 1;
            match slot {
                Slot::Done => delivered.push(self.cursor),
                Slot::Unwanted => filtered += 1,
                Slot::Open { .. } | Slot::Row | Slot::OwnRow => {}
            }
        }
        let ahead = self.rows_ahead.split_off(&(self.cursor + 1));
        let mut set: Vec<ExceptionRow> = std::mem::replace(&mut self.rows_ahead, ahead).into_values().collect();
        set.append(&mut self.rows_changed);
        let settlement = Settlement {
            sink: sink.to_owned(),
            cursor: self.cursor,
            filtered,
            set,
            delivered: std::mem::take(&mut self.rows_delivered),
            once: Vec::new(),
            attempts: std::mem::take(&mut self.attempts),
            ..Settlement::default()
        };
        let nothing = settlement.cursor == old
            && settlement.set.is_empty()
            && settlement.delivered.is_empty()
            && settlement.attempts.is_empty();
        delivered.extend(&settlement.delivered);
        (!nothing).then_some(Settled { settlement, delivered })
    }

    /// Deliveries whose results are not on their way to the journal: attempts made since the last
    /// settlement, and events delivered ahead of one that is still under way.
    pub(crate) fn unsettled(&self) -> usize {
        self.attempts.len() + self.slots.iter().filter(|slot| matches!(slot, Slot::Done)).count()
    }

    /// Delivered, and the journal is not told yet.
    pub(crate) fn is_to_be_settled(&self, seq: Seq) -> bool {
        let nth = usize::try_from(seq - self.cursor - 1).unwrap_or(usize::MAX);
        self.slots.get(nth) == Some(&Slot::Done) || self.rows_delivered.contains(&seq)
    }

    /// When the next delayed delivery is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(due, _)| *due)
    }

    /// Whether [`Window::start`] would find one now.
    pub(crate) fn has_ready(&self, now: Instant) -> bool {
        self.has_ready_of(1, now)
    }

    /// Whether so many could start now.
    pub(crate) fn has_ready_of(&self, count: usize, now: Instant) -> bool {
        let due = self.delayed.iter().take_while(|(due, _)| *due <= now);
        self.ready.len() >= count || self.ready.len() + due.take(count).count() >= count
    }

    /// Everything up to here is settled or about to be.
    pub(crate) fn cursor(&self) -> Seq {
        self.cursor
    }
}
