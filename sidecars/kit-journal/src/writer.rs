//! The one thread that writes.
//!
//! It takes whatever has queued up during the last sync and commits it in one go: group commit
//! (`pace.rs` says when it waits a moment for more). After a failed commit the store counts as poisoned: everything is refused until
//! it has been reopened and what it shows is known to be on the disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use kit::clock::{SharedClock, Timestamp};
use tokio::sync::{mpsc, watch};

use crate::age::Age;
use crate::config::JournalSection;
use crate::engine::{Commit, Engine, Purge, Verdict};
use crate::error::JournalError;
use crate::event::{Seq, StoredEvent};
use crate::journal::{Health, READERS, Shared};
use crate::pace::Pace;
use crate::request::Request;
use crate::waiting::{Waiting, WaitingAppends};

/// At most this many requests in one commit …
const GROUP_REQUESTS: usize = 512;
/// … and about this many bytes of bodies.
const GROUP_BYTES: usize = 8 << 20;
/// Between two attempts to reopen a failed store.
const REOPEN_EVERY: Duration = Duration::from_millis(250);
/// How often a step of purging joins a commit or makes one of its own.
const PURGE_EVERY: Duration = Duration::from_secs(5);
/// The same while the journal refuses events: it is to notice soon that it need not.
const PURGE_WHILE_FAILING: Duration = Duration::from_secs(1);
/// The same after a step that met something damaged.
const PURGE_PAST_DAMAGE: Duration = Duration::from_secs(60);
/// Name and size of the value that probes a failing store: about what a webhook takes.
const PROBE: (&str, usize) = ("probe", 64 * 1024);
/// Rows one purge step removes at most.
const PURGE_ROWS: u32 = 512;

/// The writing thread's state.
pub(crate) struct Writer {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) section: JournalSection,
    pub(crate) clock: SharedClock,
    pub(crate) age: Age,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) tail: watch::Sender<Seq>,
    pub(crate) actions: watch::Sender<u64>,
    pub(crate) pace: Pace,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) shared: Arc<Shared>,
    /// Set while the store is poisoned.
    pub(crate) next_reopen: Option<Instant>,
    pub(crate) next_purge: Instant,
    /// When other replicas are looked after, where there may be any.
    pub(crate) next_look: Option<Instant>,
}

impl Writer {
    pub(crate) fn run(mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(runtime) = runtime else {
            self.refuses("no timer for the journal's thread".to_owned());
            return;
        };
        loop {
            let mut wait = self.next_reopen.unwrap_or(self.next_purge).saturating_duration_since(Instant::now());
            if let Some(look) = self.next_look {
                wait = wait.min(look.saturating_duration_since(Instant::now()));
            }
            // Whatever is there already is taken without touching the timer.
            let first = match self.requests.try_recv() {
                Ok(request) => Some(Some(request)),
                Err(mpsc::error::TryRecvError::Disconnected) => Some(None),
                Err(mpsc::error::TryRecvError::Empty) => {
                    runtime.block_on(async { tokio::time::timeout(wait, self.requests.recv()).await.ok() })
                }
            };
            let closing = match first {
                Some(None) => true,
                Some(Some(request)) => self.take_group(Some(request)),
                None => self.take_group(None),
            };
            if closing {
                break;
            }
            self.reopen_if_due();
            self.look_if_due();
        }
        // The last connection to close copies the write-ahead log back; readers would keep it from that.
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.engine.close();
    }

    /// Gathers what is queued, commits it and answers; true when asked to close.
    fn take_group(&mut self, first: Option<Request>) -> bool {
        let mut commit = Commit { at: self.clock.now(), age: self.age.now(), ..Commit::default() };
        let mut waiting = Waiting::default();
        let (mut bytes, mut requests, mut closing, mut lingered) = (0, 0, false, false);
        let mut leases = Vec::new();
        let mut next = first;
        while let Some(request) = next.take() {
            requests += 1;
            let own = request.bytes();
            self.shared.queued_bytes.fetch_sub(own, Ordering::Relaxed);
            bytes += own;
            match request {
                Request::Append(append, answer) => {
                    commit.appends.push(*append);
                    waiting.appends.push(WaitingAppends::One(answer));
                }
                Request::Together(appends, answer) => {
                    requests += appends.len().saturating_sub(1);
                    let first = commit.appends.len();
                    waiting.appends.push(WaitingAppends::Together(appends.len(), answer));
                    commit.appends.extend(appends);
                    commit.together.push(first..commit.appends.len());
                }
                Request::Recording(appends, values, answer) => {
                    requests += appends.len().saturating_sub(1);
                    waiting.appends.push(WaitingAppends::Recording(appends.len(), values, answer));
                    commit.appends.extend(appends);
                }
                Request::Instead(appends, settlement, answer) => {
                    requests += appends.len();
                    let place = commit.settlements.len();
                    let first = commit.appends.len();
                    waiting.appends.push(WaitingAppends::Instead(appends.len(), place, answer));
                    commit.appends.extend(appends);
                    commit.instead.push((first..commit.appends.len(), place));
                    commit.settlements.push(settlement);
                }
                Request::Known(source, key, answer) => {
                    let _ = answer.send(self.engine.known(&source, &key));
                }
                Request::Settle(settlements, answer) => {
                    let first = commit.settlements.len();
                    commit.settlements.extend(settlements);
                    waiting.settlements.push((first..commit.settlements.len(), answer));
                }
                Request::Act(actions, answer) => {
                    waiting.actions.push((actions.len(), answer));
                    commit.actions.extend(actions);
                }
                Request::Value(name, value, answer) => {
                    commit.values.push((name, value));
                    waiting.values.push(answer);
                }
                // After what was settled before: whoever gets it begins with that.
                request @ (Request::Lease(..) | Request::GiveBack(..)) => leases.push(request),
                Request::Close => {
                    closing = true;
                    break;
                }
            }
            if requests >= GROUP_REQUESTS || bytes >= GROUP_BYTES {
                break;
            }
            next = self.requests.try_recv().ok();
            if next.is_none()
                && !std::mem::replace(&mut lingered, true)
                && let Some(moment) = self.pace.linger(commit.appends.len())
            {
                std::thread::sleep(moment);
                next = self.requests.try_recv().ok();
            }
        }
        self.pace.gathered(commit.appends.len());
        self.shared.metrics.queued.set(i64::try_from(self.requests.len()).unwrap_or(i64::MAX));
        self.commit_group(commit, waiting);
        for request in leases {
            match request {
                Request::Lease(sink, answer) => drop(answer.send(self.engine.lease(&sink))),
                Request::GiveBack(sink, epoch, answer) => drop(answer.send(self.engine.give_back(&sink, epoch))),
                _ => {}
            }
        }
        closing
    }

    /// Commits what was gathered, unless the store is being reopened or is full.
    fn commit_group(&mut self, mut commit: Commit, mut waiting: Waiting) {
        if self.next_reopen.is_some() {
            let reason = match &*self.health.borrow() {
                Health::Failing(reason) | Health::Over(reason) => reason.clone(),
                Health::Writable => "it is being reopened".to_owned(),
            };
            waiting.refuse(&reason);
            return;
        }
        self.refuse_when_too_large(&mut commit, &mut waiting);
        commit.values.extend(waiting.recorded());
        self.add_purge(&mut commit);
        if commit.purge.is_some() && *self.health.borrow() != Health::Writable {
            // Nothing but a commit that succeeds shows that there is room again.
            commit.values.push((PROBE.0.to_owned(), vec![0; PROBE.1]));
        }
        if !commit.is_empty() {
            self.commit(commit, waiting);
        }
    }

    fn commit(&mut self, mut commit: Commit, waiting: Waiting) {
        let started = Instant::now();
        let appends = commit.appends.len();
        let purging = commit.purge.is_some();
        // A small settlement may still fit where no webhook does.
        let age = commit.values.iter().any(|(name, _)| name == Age::NAME).then_some(commit.age);
        let shows_room = appends > 0 || commit.values.iter().any(|(name, _)| name == PROBE.0);
        match self.engine.commit(&mut commit) {
            Ok(committed) => {
                let took = started.elapsed();
                self.look_later();
                age.into_iter().for_each(|age| self.age.saved(age));
                if committed.synced {
                    self.pace.committed(took);
                    self.shared.metrics.committed(took, appends);
                    if shows_room {
                        self.works_again();
                    }
                }
                self.shared.metrics.purged.inc_by(committed.purged.events);
                if let Some(reason) = &committed.not_purged {
                    tracing::error!(reason = %reason, "a step of purging meets something damaged, going on after it: {reason}");
                    self.next_purge = Instant::now() + PURGE_PAST_DAMAGE;
                }
                if purging {
                    self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner).settle_down();
                    self.observe();
                    // As long as there is more to purge, go on at once between commits.
                    if committed.purged.more {
                        self.next_purge = Instant::now();
                    }
                }
                // First of all: who settles or takes events from memory must know that rows may have changed.
                if !committed.actions.is_empty() || committed.acted_elsewhere {
                    self.actions.send_modify(|n| *n += 1);
                }
                waiting.answer(&committed, commit.at);
                self.remember(commit, &committed.verdicts);
                self.tail.send_if_modified(|tail| {
                    let grown = committed.last_seq > *tail;
                    *tail = committed.last_seq;
                    grown
                });
                let mut after = self.engine.answered();
                if after.is_ok() && self.requests.is_empty() {
                    after = self.engine.idle(self.age.now());
                }
                if let Err(error) = after {
                    self.poisoned(&error);
                }
            }
            Err(error) => {
                let reason = self.poisoned(&error);
                waiting.refuse(&reason);
            }
        }
    }

    /// Keeps what was appended at hand for the sinks that keep up.
    fn remember(&self, commit: Commit, verdicts: &[Verdict]) {
        let mut recent = self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for (append, verdict) in commit.appends.into_iter().zip(verdicts) {
            if verdict.is_stored() {
                let (seq, at) = (verdict.seq, commit.at);
                recent.add(StoredEvent { seq, at, head: append.head, body: append.body.into() });
            }
        }
    }

    /// A commit went through: an end to refusing, unless it is the size that refuses.
    fn works_again(&mut self) {
        if *self.health.borrow() != Health::Writable && !self.is_too_large() {
            self.health.send_replace(Health::Writable);
            self.shared.metrics.writable.set(1);
            tracing::info!("journal takes events again");
        }
    }

    /// Events are refused from now on, for this reason: until something works again, or for good.
    fn refuses(&self, reason: String) {
        self.shared.metrics.writable.set(0);
        let health = self.engine.over().map_or(Health::Failing(reason), Health::Over);
        self.health.send_if_modified(|known| {
            let is_news = *known != health;
            *known = health;
            is_news
        });
    }

    fn poisoned(&mut self, error: &JournalError) -> String {
        let reason = kit::error::chain(error);
        self.shared.metrics.failures.inc();
        // Once an outage: a sender that keeps trying must not fill the log.
        if *self.health.borrow() == Health::Writable {
            tracing::error!(reason = %reason, "journal commit failed, refusing events until one succeeds: {reason}");
        }
        self.refuses(reason.clone());
        self.next_purge = self.next_purge.min(Instant::now() + PURGE_WHILE_FAILING);
        self.next_reopen = Some(Instant::now());
        reason
    }

    fn reopen_if_due(&mut self) {
        if self.next_reopen.is_none_or(|due| due > Instant::now()) {
            return;
        }
        // Readers of the failed store let go, and nobody makes a new one while it is opened.
        let gate = self.shared.reader_permits.try_acquire_many(READERS);
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        match self.engine.reopen(gate.is_ok()) {
            Ok(()) => {
                self.next_reopen = None;
                let last = self.engine.last_seq();
                self.tail.send_if_modified(|tail| std::mem::replace(tail, last) < last);
                // Whatever an operator asked for meanwhile at another replica is to be seen. A store of our own has nothing
                // new, and what is under way goes on from memory while it cannot be written.
                if self.engine.look_every().is_some() {
                    self.actions.send_modify(|changes| *changes += 1);
                    // Whatever is delivered from now on is what the database has.
                    self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                tracing::debug!("journal reopened");
            }
            Err(error) => {
                let reason = kit::error::chain(&error);
                tracing::debug!(reason = %reason, "journal still failing: {reason}");
                self.refuses(reason);
                self.next_reopen = Some(Instant::now() + REOPEN_EVERY);
            }
        }
    }

    /// Learns what other replicas have done, where there may be any.
    fn look_if_due(&mut self) {
        if self.next_reopen.is_some() || self.next_look.is_none_or(|due| due > Instant::now()) {
            return;
        }
        match self.engine.look() {
            Ok(Some(news)) => {
                if news.acted_elsewhere {
                    self.actions.send_modify(|n| *n += 1);
                }
                self.tail.send_if_modified(|tail| std::mem::replace(tail, news.last_seq.max(*tail)) < news.last_seq);
            }
            Ok(None) => {}
            Err(error) => drop(self.poisoned(&error)),
        }
        self.look_later();
    }

    fn look_later(&mut self) {
        self.next_look = self.engine.look_every().map(|every| Instant::now() + every);
    }

    fn is_too_large(&self) -> bool {
        let max_bytes = self.section.max_bytes;
        max_bytes != 0 && self.engine.used_bytes().unwrap_or(0) >= max_bytes
    }

    fn refuse_when_too_large(&mut self, commit: &mut Commit, waiting: &mut Waiting) {
        if commit.appends.is_empty() || !self.is_too_large() {
            return;
        }
        let reason = kit::error::chain(&JournalError::TooLarge { max_bytes: self.section.max_bytes });
        if *self.health.borrow() == Health::Writable {
            tracing::error!(reason = %reason, "refusing events: {reason}");
        }
        self.refuses(reason.clone());
        self.next_purge = self.next_purge.min(Instant::now() + PURGE_WHILE_FAILING);
        // What takes the place of other events makes room.
        let mut appends = std::mem::take(&mut commit.appends).into_iter();
        commit.together.clear();
        commit.instead.clear();
        for waits in std::mem::take(&mut waiting.appends) {
            let own = appends.by_ref().take(waits.count());
            if let WaitingAppends::Instead(_, place, _) = waits {
                let first = commit.appends.len();
                commit.appends.extend(own);
                commit.instead.push((first..commit.appends.len(), place));
                waiting.appends.push(waits);
            } else {
                own.for_each(drop);
                waits.refuse(&reason);
            }
        }
    }

    fn add_purge(&mut self, commit: &mut Commit) {
        if Instant::now() < self.next_purge {
            return;
        }
        let failing = *self.health.borrow() != Health::Writable;
        self.next_purge = Instant::now() + if failing { PURGE_WHILE_FAILING } else { PURGE_EVERY };
        commit.purge = Some(purge(&self.section, commit.age, commit.at));
        commit.values.extend(self.age.due(commit.age, commit.at).map(|value| (Age::NAME.to_owned(), value)));
    }

    fn observe(&self) {
        if let Ok(bytes) = self.engine.used_bytes() {
            self.shared.used_bytes.store(bytes, Ordering::Relaxed);
            self.shared.metrics.used_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        if let Some(disk) = self.engine.disk() {
            self.shared.metrics.disk(disk);
        }
        let (bytes, keys) = self.engine.dedupe_memory();
        self.shared.metrics.dedupe_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.shared.metrics.dedupe_keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}

/// What may go by now.
fn purge(section: &JournalSection, age: Timestamp, at: Timestamp) -> Purge {
    let delivered = days_in_millis(section.retention.days);
    // Keys tell how old events are, and what was done to an event is told as long as it is there: they stay at least as long.
    let keys = days_in_millis(section.dedupe_days).max(delivered);
    Purge {
        delivered_before: age.plus_millis(-delivered),
        max_bytes: section.bytes_to_keep(),
        keys_before: age.plus_millis(-keys),
        audit_before: age.min(at).plus_millis(-keys),
        limit: PURGE_ROWS,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "validated to at most 36,500 days")]
fn days_in_millis(days: f64) -> i64 {
    (days * 86_400_000.0) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RetentionSection;

    #[test]
    fn keys_and_audit_records_stay_as_long_as_the_events_they_tell_of() {
        let day = 86_400_000;
        let (age, at) = (Timestamp::from_millis(100 * day), Timestamp::from_millis(90 * day));
        for (dedupe_days, longest) in [(30.0, 30), (1.0, 7)] {
            let retention = RetentionSection { days: 7.0, ..RetentionSection::default() };
            let section = JournalSection { dedupe_days, retention, ..JournalSection::default() };
            let purge = purge(&section, age, at);
            assert_eq!(purge.delivered_before, age.plus_millis(-7 * day));
            assert_eq!(purge.keys_before, age.plus_millis(-longest * day));
            assert_eq!(purge.audit_before, at.plus_millis(-longest * day));
        }
    }
}
