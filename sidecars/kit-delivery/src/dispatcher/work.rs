//! The dispatcher's loop: load, start, judge, settle.

use std::cell::RefCell;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_journal::engine::{Attempt, ExceptionState, Settlement, SinkRow};
use kit_journal::{Held, JournalError, LeaseEnd, Seq, StoredEvent};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Dispatcher;
use super::parking::Parking;
use super::ramp::Ramp;
use super::reading::{NotAsked, Unread, read_event};
use super::settling::{RECORD_WITHIN, Refusals, SETTLE_AGAIN, Settling, settled};
use super::stall::Stall;
use crate::circuit::{Circuit, Permit};
use crate::outcome::{Batching, Failure, Interest, Outcome, Sink};
use crate::window::{Limits, MISSING, Start, Window};

/// Replays taken up at a time.
const REPLAYS: u32 = 64;
/// Replays that are on their way when more are taken up, and that wait in memory for another attempt, at most.
pub(super) const ROOM_FOR_REPLAYS: (usize, usize) = (REPLAYS as usize / 2, 10_000);
/// How long the wall clock is believed when it says that no replay is due.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What became of one delivery: what the sink said and the attempt, or why it was not asked.
pub(super) type Ended = Result<(Outcome, Attempt), NotAsked>;

/// One request that has ended.
pub(super) struct Finished {
    pub(super) deliveries: Vec<(Seq, Ended)>,
    pub(super) circuit_closed: bool,
}

/// The dispatcher at work.
pub(super) struct Work {
    pub(super) shell: Dispatcher,
    pub(super) name: String,
    /// Without it nothing is started, and nothing that was done is recorded.
    pub(super) lease: Held,
    pub(super) window: Window,
    pub(super) circuit: Circuit,
    pub(super) ramp: Ramp,
    pub(super) limiter: Option<DefaultDirectRateLimiter>,
    /// Deliveries whose results are not on the disk yet, at most: what a crash may make the sink see again. As many as the
    /// window has positions: what is delivered ahead of an event that is to come again never keeps it from that.
    most_unsettled: usize,
    pub(super) paused: bool,
    pub(super) stall: Stall,
    pub(super) parking: Parking,
    pub(super) in_flight: JoinSet<Finished>,
    pub(super) settling: Option<Settling>,
    /// A settlement that the journal refused, and when to offer it again.
    pub(super) settle_again: Option<(Instant, Settlement)>,
    pub(super) refusals: Refusals,
    pub(super) successes: u64,
    pub(super) unread: Unread,
    pub(super) batching: Batching,
    /// Since when something is ready and waits for others to go with.
    pub(super) lingers_since: Option<Instant>,
    pub(super) next_replay: Option<Instant>,
    pub(super) next_observation: Instant,
    /// When the oldest event that waits was taken, as of the last observation.
    pub(super) oldest_pending: Option<Timestamp>,
    /// Nothing was left to deliver at the last observation.
    pub(super) quiet: bool,
    pub(super) tail: watch::Receiver<Seq>,
    actions: watch::Receiver<u64>,
    /// The journal's rows may differ from the window's.
    pub(super) sync_due: bool,
    /// Something is under way that an operator has dropped: the rows are read again when it has come back.
    pub(super) in_vain: bool,
    /// Some row lies ahead of the cursor: only the journal knows which events it keeps back.
    pub(super) rows_ahead: bool,
}

impl Work {
    pub(super) fn new(shell: Dispatcher, row: &SinkRow, lease: Held) -> Self {
        let own = Limits::default();
        // As many again as are in flight gather meanwhile, and their results wait to be recorded.
        let slots = own.slots.max(4 * shell.settings.concurrency * shell.sink.batching().most);
        let limits = Limits { open_rows: shell.settings.open_rows, slots, ..own };
        Self {
            window: Window::new(row.cursor, shell.settings.ordered, limits),
            circuit: Circuit::new(shell.settings.circuit_failures, shell.settings.probe.0, shell.settings.probe.1),
            limiter: std::num::NonZeroU32::new(shell.settings.rate_per_second)
                .map(|rate| RateLimiter::direct(Quota::per_second(rate).allow_burst(std::num::NonZeroU32::MIN))),
            ramp: Ramp::new(shell.settings.concurrency, shell.settings.ramps),
            most_unsettled: slots,
            paused: row.paused,
            stall: Stall::default(),
            parking: Parking::default(),
            in_flight: JoinSet::new(),
            settling: None,
            settle_again: None,
            refusals: Refusals::default(),
            successes: 0,
            unread: Unread::default(),
            batching: shell.sink.batching(),
            lingers_since: None,
            next_replay: Some(Instant::now()),
            next_observation: Instant::now(),
            oldest_pending: None,
            quiet: false,
            tail: shell.journal.tail(),
            actions: shell.journal.actions(),
            sync_due: true,
            in_vain: false,
            rows_ahead: true,
            name: row.name.clone(),
            lease,
            shell,
        }
    }

    pub(super) async fn run(&mut self, stop: StopToken) {
        let mut end = self.lease.end();
        // Whatever a turn waits for – a database may take its time to answer – it is left in time: nothing of it is
        // lost where it waits.
        while !self.leaves_to_others() {
            tokio::select! {
                biased;
                () = stop.stopped() => break,
                () = end.lost() => break,
                () = self.turn() => {}
            }
        }
        if self.lease.is_held() {
            self.drain().await;
            if self.leaves_to_others() {
                tracing::warn!(
                    sink = %self.name,
                    "this replica cannot read what there is to deliver to {}: another one may take it up",
                    self.name
                );
                self.stand_down();
            }
        } else {
            self.leave().await;
        }
    }

    /// Does what is to be done now, and waits until there may be more.
    async fn turn(&mut self) {
        if self.unread.looked(Instant::now()).is_none() {
            if self.sync_due && self.settling.is_none() && self.settle_again.is_none() {
                self.sync().await;
            }
            self.load().await;
        }
        self.watch_stall();
        self.say_how_many_parked(false);
        let looked = Instant::now();
        self.start_what_may_start();
        self.settle();
        self.observe().await;
        let wake = self.next_wake(looked);
        tokio::select! {
            Some(finished) = self.in_flight.join_next() => self.finished(finished),
            result = settled(&mut self.settling) => self.settled(result),
            Ok(()) = self.tail.changed() => self.noticed(),
            Ok(()) = self.actions.changed() => {
                self.sync_due = true;
                self.noticed();
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
        // Whatever else has ended meanwhile goes into the same settlement.
        while let Some(finished) = self.in_flight.try_join_next() {
            self.finished(finished);
        }
    }

    /// Another replica goes on from here.
    pub(super) async fn end(self) -> Dispatcher {
        let Self { shell, lease, name, .. } = self;
        match tokio::time::timeout(RECORD_WITHIN, lease.give_back()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(sink = %name, error = %error, "the lease of {name} cannot be given back, and runs out");
            }
            Err(_) => tracing::debug!(sink = %name, "the lease of {name} is not given back in time, and runs out"),
        }
        shell
    }

    /// Reads the rows that operators may have changed. Results that are not settled yet come first:
    /// the journal's rows then are the newest.
    async fn sync(&mut self) {
        // What is asked for from now on is for the next one.
        self.actions.mark_unchanged();
        if let Some(settlement) = self.settlement() {
            // Kept until the journal has it, also where nobody waits for that any more.
            self.settle_again = Some((Instant::now(), settlement.clone()));
            if let Err(error) = self.shell.journal.settle(vec![settlement.clone()]).await {
                self.refused(settlement, &error);
                return;
            }
            self.settle_again = None;
            self.taken();
        }
        let name = self.name.clone();
        let (after, limit) = (self.window.cursor(), self.window.loaded_to());
        let taken_up = self.window.taken_up_replays();
        let read = self.shell.journal.read(move |reader| {
            let sink = reader.sink(&name)?;
            let rows = reader.blocked(&name, 60_000)?;
            let ahead = if limit > after { reader.rows_between(&name, after, limit)? } else { Vec::new() };
            let withdrawn = reader.not_in_state(&name, &taken_up, ExceptionState::Replaying)?;
            Ok((sink, rows, ahead, withdrawn))
        });
        match read.await {
            Ok((sink, rows, ahead, withdrawn)) => {
                self.paused = sink.paused;
                self.rows_ahead = sink.ahead > 0;
                let longest = |attempts| self.shell.settings.longest_wait_after(attempts);
                self.window.sync_rows(&rows, self.shell.clock.now(), Instant::now(), longest);
                self.window.leave_to_rows(&ahead);
                self.window.withdraw(&withdrawn);
                self.in_vain = self.window.is_under_way_in_vain(&rows, &ahead, &withdrawn);
                self.next_replay = Some(Instant::now());
                self.sync_due = false;
                self.unread.found();
            }
            Err(error) => self.unreadable(&error),
        }
    }

    async fn load(&mut self) {
        let now = Instant::now();
        if self.next_replay.is_some_and(|due| due <= now) && self.window.has_room_for_replays(now, ROOM_FOR_REPLAYS) {
            self.load_replays().await;
        }
        let tail = *self.tail.borrow_and_update();
        // An operator's action that came with the tail is seen before the tail is used.
        self.sync_due |= self.actions.has_changed().unwrap_or(false);
        if self.window.loaded_to() < tail {
            // It may have grown during what was waited for before this, which the wait of the turn does not see.
            self.noticed();
        }
        if self.window.loaded_to() >= tail || self.sync_due || self.paused {
            return;
        }
        let Some((after, limit, bytes)) = self.window.room() else {
            // Behind a sink that takes nothing all events wait alike: rows would only be work.
            if self.circuit.is_closed() {
                self.window.spill(self.shell.clock.now(), Instant::now());
            }
            return;
        };
        // Nothing behind the tail, though another replica may have put it there: what is known to be there is what is
        // noticed when a database loses it.
        let limit = limit.min(u32::try_from(tail - after).unwrap_or(u32::MAX));
        if !self.rows_ahead
            && let Some(events) = self.shell.journal.recent(after, limit, bytes)
        {
            self.take_in(events, &[]);
            return;
        }
        let name = self.name.clone();
        let read = self.shell.journal.read(move |reader| reader.events_after(&name, after, limit, bytes));
        match read.await {
            Ok((events, own)) if events.is_empty() && own.is_empty() => {
                // The journal's end lies beyond what is there: records are missing.
                self.window.pass_over(tail, MISSING);
            }
            Ok((events, own)) => {
                self.unread.found();
                self.take_in(events.into_iter().map(Arc::new).collect(), &own);
            }
            Err(JournalError::Damaged { seq, what }) => {
                let reason = format!("record is damaged: {what}");
                // What is missing before it comes first, and may take more than this turn.
                if self.window.pass_over(seq - 1, MISSING) && self.window.pass_over(seq, &reason) {
                    tracing::error!(seq, sink = %self.name, "event {seq} is damaged and cannot be delivered: {what}");
                }
            }
            Err(error) => self.unreadable(&error),
        }
    }

    /// Puts what was read into the window, with what the sink says of each.
    fn take_in(&mut self, events: Vec<Arc<StoredEvent>>, own: &[Seq]) {
        let (sink, parked) = (&self.shell.sink, RefCell::new(Vec::new()));
        self.window.load(events, own, Instant::now(), |event| {
            let interest = sink.interest(event);
            if let Interest::Parked(reason) = &interest {
                parked.borrow_mut().push((event.seq, reason.clone()));
            }
            interest
        });
        for (seq, reason) in parked.into_inner() {
            self.say_parked(seq, &reason);
        }
    }

    async fn load_replays(&mut self) {
        let name = self.name.clone();
        let now = self.shell.clock.now();
        let longest = self.shell.settings.longest_wait();
        let read = self.shell.journal.read(move |reader| match reader.replays(&name, now, REPLAYS)? {
            // Nothing is put off for so long: the clock was turned back since.
            (due, Some(next)) if due.is_empty() && next.since(now) > longest => reader.replays(&name, next, REPLAYS),
            found => Ok(found),
        });
        match read.await {
            Ok((mut rows, next)) => {
                let full = rows.len() >= REPLAYS as usize;
                let before = rows.len();
                // Asked for while it was on its way: once the journal knows that it is delivered, the row may be gone. One
                // that was put off is not due once the journal knows that.
                rows.retain(|row| !self.is_settling(row.seq));
                self.window.add_replays(&rows);
                self.next_replay = match next {
                    _ if full || rows.len() < before => Some(Instant::now() + Duration::from_millis(20)),
                    Some(due) => Some(Instant::now() + due.since(now).clamp(Duration::from_millis(5), LOOK_AGAIN)),
                    None => None,
                };
            }
            Err(error) => self.unreadable(&error),
        }
    }

    /// Keeps a failing journal from being asked in a tight loop.
    pub(super) fn settle_pause(&mut self) {
        self.next_replay = Some(Instant::now() + SETTLE_AGAIN);
    }

    fn start_what_may_start(&mut self) {
        while !self.paused
            && !self.sync_due
            && self.lease.is_held()
            && self.in_flight.len() < self.ramp.allowed()
            && self.unsettled() < self.most_unsettled
        {
            let now = Instant::now();
            if self.unread.held_off(now).is_some() {
                break;
            }
            let permit = self.circuit.permit(now);
            if !matches!(permit, Permit::Go | Permit::Probe) {
                break;
            }
            if !(self.window.has_ready(now) || permit == Permit::Probe && self.window.next_due().is_some()) {
                self.lingers_since = None;
                break;
            }
            if permit == Permit::Go && self.lingers(now) {
                break;
            }
            if self.limiter.as_ref().is_some_and(|limiter| limiter.check().is_err()) {
                break;
            }
            let batching = self.batching;
            let starts = self.window.start(now, permit == Permit::Probe, |attempts| batching.most_after(attempts));
            if starts.is_empty() {
                break;
            }
            self.lingers_since = None;
            if permit == Permit::Probe {
                self.circuit.probing();
            }
            self.spawn(starts, permit == Permit::Go);
        }
    }

    /// Whether what is ready should wait for more to go with it.
    fn lingers(&mut self, now: Instant) -> bool {
        let Batching { most, linger, .. } = self.batching;
        if linger.is_zero() || self.window.has_ready_of(most, now) {
            return false;
        }
        now < *self.lingers_since.get_or_insert(now) + linger
    }

    fn spawn(&mut self, starts: Vec<Start>, circuit_closed: bool) {
        let sink = Arc::clone(&self.shell.sink);
        let journal = self.shell.journal.clone();
        let clock = Arc::clone(&self.shell.clock);
        let bytes = self.batching.bytes;
        let lease = self.lease.end();
        self.in_flight.spawn(async move {
            let mut deliveries = Vec::with_capacity(starts.len());
            // Rows are read as they come, and sent before there are too many bytes of them.
            let (mut events, mut held) = (Vec::new(), 0);
            for Start { seq, event } in starts {
                let read = match event {
                    Some(event) => Ok(event),
                    None => read_event(&journal, seq).await,
                };
                match read {
                    Ok(event) => {
                        if !events.is_empty() && event.body.len() > bytes.saturating_sub(held) {
                            deliveries.extend(ask(&*sink, &clock, &lease, &std::mem::take(&mut events)).await);
                            held = 0;
                        }
                        held += event.body.len();
                        events.push(event);
                    }
                    Err(why) => deliveries.push((seq, Err(why))),
                }
            }
            deliveries.extend(ask(&*sink, &clock, &lease, &events).await);
            Finished { deliveries, circuit_closed }
        });
    }

    pub(super) fn note(&self, error: String) {
        let mut status = self.shell.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.last_error = Some(error);
        status.last_error_at = Some(self.shell.clock.now().to_string());
    }
}

/// One request with these events, if this replica still delivers: reading them may have taken long.
async fn ask(sink: &dyn Sink, clock: &SharedClock, lease: &LeaseEnd, events: &[Arc<StoredEvent>]) -> Vec<(Seq, Ended)> {
    if events.is_empty() {
        return Vec::new();
    }
    if !lease.is_held() {
        let late = || NotAsked::Unread("another replica may deliver it by now".to_owned());
        return events.iter().map(|event| (event.seq, Err(late()))).collect();
    }
    let (at, started) = (clock.now(), Instant::now());
    let mut outcomes = match events {
        [event] => vec![sink.deliver(event).await],
        events => sink.deliver_all(events).await,
    };
    // An event without an outcome would be in flight for ever.
    outcomes.resize_with(events.len(), || Outcome::failed(Failure::Unreachable, "the sink said nothing of it"));
    let ms = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
    let ended = |(event, outcome): (&Arc<StoredEvent>, Outcome)| {
        let attempt = Attempt {
            seq: event.seq,
            at,
            ms,
            status: outcome.status,
            outcome: outcome.word().to_owned(),
            error: outcome.error.clone(),
            response: outcome.response.clone(),
        };
        (event.seq, Ok((outcome, attempt)))
    };
    events.iter().zip(outcomes).map(ended).collect()
}

#[cfg(test)]
mod tests;
