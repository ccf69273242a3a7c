//! What operators, restarts and slow events do to the window.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kit::clock::Timestamp;
use kit_journal::Seq;
use kit_journal::engine::{ExceptionRow, ExceptionState};

use super::{Item, Lane, Slot, Source, Window};

/// Events that get a row in one turn at most, where many are put off.
const SPILLED_AT_ONCE: usize = 256;

impl Window {
    /// Takes up rows that the journal holds: at start, and after an operator's action.
    ///
    /// Rows that are not held there any more and are not on their way there are dropped from memory;
    /// known ones may have become due earlier. `longest`, by attempts made, bounds a stored time that
    /// a jump of the clock has put far away.
    pub(crate) fn sync_rows(
        &mut self,
        rows: &[ExceptionRow],
        clock: Timestamp,
        now: Instant,
        longest: impl Fn(u32) -> Duration,
    ) {
        let listed: BTreeSet<Seq> = rows.iter().map(|row| row.seq).collect();
        let gone: Vec<Seq> = self
            .items
            .iter()
            .filter(|(seq, item)| {
                matches!(item.source, Source::Row)
                    && !item.in_flight
                    && !listed.contains(seq)
                    && !self.rows_ahead.contains_key(seq)
            })
            .map(|(seq, _)| *seq)
            .collect();
        for seq in gone {
            self.remove(seq);
        }
        for row in rows {
            let not_before = row.next_at.and_then(|due| {
                let wait = due.since(clock).min(longest(row.attempts));
                (!wait.is_zero()).then(|| now + wait)
            });
            match self.items.get_mut(&row.seq) {
                Some(item) if matches!(item.source, Source::Row) && !item.in_flight => {
                    if row.state == ExceptionState::Retrying {
                        item.not_before = not_before;
                    }
                }
                Some(_) => {}
                None => self.add_row(row, Source::Row, not_before),
            }
        }
        self.rebuild_ready();
    }

    /// Takes up rows that an operator asked to be delivered again.
    pub(crate) fn add_replays(&mut self, rows: &[ExceptionRow]) {
        for row in rows {
            if !self.items.contains_key(&row.seq) {
                self.add_row(row, Source::Replay, None);
                self.make_ready(Lane::Own(row.seq));
            }
        }
    }

    /// Deliveries that are tried again, or wait behind one that is.
    pub(crate) fn open_rows(&self) -> usize {
        self.open_rows
    }

    /// Whether more replays may be taken up, where so many may be on their way, and so many wait for another attempt.
    pub(crate) fn has_room_for_replays(&self, now: Instant, (on_their_way, waiting): (usize, usize)) -> bool {
        let replays = self.items.values().filter(|item| matches!(item.source, Source::Replay));
        let (late, at_work): (Vec<_>, Vec<_>) =
            replays.partition(|item| !item.in_flight && item.not_before.is_some_and(|due| due > now));
        at_work.len() < on_their_way && late.len() < waiting
    }

    /// Whether this one is a replay that is taken up.
    pub(crate) fn is_replay(&self, seq: Seq) -> bool {
        self.items.get(&seq).is_some_and(|item| matches!(item.source, Source::Replay))
    }

    /// Whether this one's row is not on its way to the journal yet.
    pub(crate) fn has_row_to_settle(&self, seq: Seq) -> bool {
        self.rows_changed.iter().any(|row| row.seq == seq)
    }

    fn add_row(&mut self, row: &ExceptionRow, source: Source, not_before: Option<Instant>) {
        let replay = matches!(source, Source::Replay);
        let lane = if replay || !self.ordered { Lane::Own(row.seq) } else { Lane::Subject(row.lane) };
        let item = Item {
            lane,
            subject_lane: row.lane,
            source,
            attempts: row.attempts,
            uncharged: 0,
            first_at: row.first_at,
            not_before,
            asked_until: None,
            in_flight: false,
            was_due: true,
            successes_seen: 0,
        };
        self.items.insert(row.seq, item);
        let queue = self.lanes.entry(lane).or_default();
        let at = queue.partition_point(|seq| *seq < row.seq);
        queue.insert(at, row.seq);
        if !replay {
            self.open_rows += 1;
        }
    }

    /// Replays that are taken up.
    pub(crate) fn taken_up_replays(&self) -> Vec<Seq> {
        let is_replay = |item: &Item| matches!(item.source, Source::Replay);
        self.items.iter().filter(|(_, item)| is_replay(item)).map(|(seq, _)| *seq).collect()
    }

    /// An operator does not want these replays any more.
    pub(crate) fn withdraw(&mut self, seqs: &[Seq]) {
        for seq in seqs {
            if self.items.get(seq).is_some_and(|item| matches!(item.source, Source::Replay) && !item.in_flight) {
                self.remove(*seq);
            }
        }
    }

    /// Whether something is under way that an operator has dropped, by what the journal says: `rows` are tried again,
    /// `ahead` have a row of their own, `withdrawn` are no replays any more. When it comes back it is to be left.
    pub(crate) fn is_under_way_in_vain(&self, rows: &[ExceptionRow], ahead: &[Seq], withdrawn: &[Seq]) -> bool {
        // In order of position.
        let listed = |seq: &Seq| rows.binary_search_by_key(seq, |row| row.seq).is_ok();
        self.items.iter().filter(|(_, item)| item.in_flight).any(|(seq, item)| match item.source {
            Source::Loaded(_) => ahead.contains(seq),
            Source::Row => ahead.contains(seq) || !self.rows_ahead.contains_key(seq) && !listed(seq),
            Source::Replay => withdrawn.contains(seq),
        })
    }

    /// Positions ahead of the cursor that an operator dropped or asked for again meanwhile: loaded ones,
    /// and ones that were tried and wait for another time.
    pub(crate) fn leave_to_rows(&mut self, seqs: &[Seq]) {
        for seq in seqs {
            let ours = self
                .items
                .get(seq)
                .is_some_and(|item| matches!(item.source, Source::Loaded(_) | Source::Row) && !item.in_flight);
            if ours {
                self.remove(*seq);
                self.rows_ahead.remove(seq);
                let nth = usize::try_from(seq - self.cursor - 1).unwrap_or(usize::MAX);
                if let Some(slot) = self.slots.get_mut(nth) {
                    *slot = Slot::OwnRow;
                }
            } else if let Ok(nth) = usize::try_from(seq - self.cursor - 1)
                && let Some(slot @ Slot::Unwanted) = self.slots.get_mut(nth)
            {
                // It has a row of its own now, and counts by that.
                *slot = Slot::OwnRow;
            }
        }
    }

    /// When the window is filling up behind its first event, gives that event a row so that the
    /// cursor can move on, and with it those behind it that have been put off without being asked about. Call when there
    /// is something to load and no room for it.
    pub(crate) fn spill(&mut self, clock: Timestamp, now: Instant) {
        if self.slots.len() * 2 <= self.limits.slots && self.bytes * 2 <= self.limits.bytes {
            return;
        }
        let mut given = 0;
        for nth in 0..self.slots.len() {
            let Some(Slot::Open { loaded }) = self.slots.get(nth).copied() else { continue };
            if now.duration_since(loaded) < self.limits.spill_after || self.open_rows >= self.limits.open_rows {
                return;
            }
            let seq = self.cursor + 1 + Seq::try_from(nth).unwrap_or(0);
            let Some(item) = self.items.get(&seq) else { return };
            let is_put_off = item.uncharged > 0 && !item.in_flight;
            if given > 0 && (!is_put_off || given >= SPILLED_AT_ONCE) {
                return;
            }
            let (lane, first) = (item.lane, self.lanes[&item.lane].front() == Some(&seq));
            if first {
                self.give_row(seq, ExceptionState::Retrying, Some(clock), "took long, others go on");
                self.lane_waits(lane);
            } else {
                self.wait_behind(seq);
            }
            given += 1;
        }
    }

    /// The delayed delivery that a probe may take before its time: the first one that the sink did not ask to be left alone
    /// with.
    pub(super) fn take_for_probe(&mut self, now: Instant) -> Option<Lane> {
        let first = |lane: &Lane| self.items.get(self.lanes.get(lane)?.front()?);
        let may_go = |lane: &Lane| first(lane).is_none_or(|item| item.asked_until.is_none_or(|until| until <= now));
        let found = self.delayed.iter().find(|(_, lane)| may_go(lane)).copied()?;
        self.delayed.remove(&found);
        Some(found.1)
    }

    /// A delivery in flight whose event could not be read: nobody was asked, so that it keeps its history and its
    /// row, and goes on later.
    pub(crate) fn put_off(&mut self, seq: Seq, until: Instant) {
        let Some(item) = self.items.get_mut(&seq) else { return };
        item.in_flight = false;
        // A probe may have taken it before its own time.
        let due = item.not_before.map_or(until, |due| due.max(until));
        item.not_before = Some(due);
        self.delayed.insert((due, item.lane));
    }

    /// The sink answers again: what failed without being answered need not wait any longer than it asked for.
    pub(crate) fn sink_is_back(&mut self) {
        for item in self.items.values_mut().filter(|item| item.uncharged > 0 && !item.in_flight) {
            item.not_before = item.asked_until;
        }
        self.rebuild_ready();
    }

    /// Gives rows to the open events before the last one that is done, so that everything done can be
    /// settled: for an orderly stop.
    pub(crate) fn let_go(&mut self, clock: Timestamp) {
        let Some(last) = self.slots.iter().rposition(|slot| matches!(slot, Slot::Done)) else { return };
        for nth in 0..last {
            if !matches!(self.slots[nth], Slot::Open { .. }) {
                continue;
            }
            let seq = self.cursor + 1 + Seq::try_from(nth).unwrap_or(0);
            let Some(item) = self.items.get(&seq) else { continue };
            if self.lanes[&item.lane].front() == Some(&seq) {
                self.give_row(seq, ExceptionState::Retrying, Some(clock), "the daemon stopped before it was delivered");
            } else {
                self.wait_behind(seq);
            }
        }
    }
}
