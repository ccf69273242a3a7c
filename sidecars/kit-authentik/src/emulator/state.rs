//! What the stand-in knows: events, users, tokens, objects; and what tests do to them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use kit::secret::Secret;
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use super::configuration::Configuration;
use super::event::{NewEvent, Row, User};
use super::generation::Generation;
use super::notifier::Queue;
use crate::event::EventPk;

/// Something that goes wrong with a request, instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, with a body that is no JSON.
    Answer(u16),
    /// 429 with this many seconds of `Retry-After`.
    TooMany(u32),
    /// The connection is closed.
    Close,
    /// Nothing for this long, then the answer.
    Wait(Duration),
    /// An answer that ends in the middle.
    Cut,
}

/// How long a list of events takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slow {
    /// Whatever is on it.
    pub list: Duration,
    /// For each event on it.
    pub row: Duration,
}

/// What was asked so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests of any kind.
    pub requests: u64,
    /// Pages of events that were given out.
    pub event_pages: u64,
    /// Lists of events that take for ever.
    pub endless: u64,
    /// Requests that were answered 401 or 403.
    pub refused: u64,
    /// Events that are there.
    pub events: u64,
    /// Events that are made and not to be seen yet.
    pub uncommitted: u64,
    /// Events that have been deleted.
    pub deleted: u64,
    /// Notifications that came before the commit of their event, found nothing, and were dropped.
    pub too_early: u64,
}

#[derive(Debug, Default)]
struct Inner {
    /// By time, and by arrival where that is the same.
    rows: Vec<Row>,
    uncommitted: HashMap<EventPk, Row>,
    configuration: Configuration,
    webhook_secret: Option<Secret>,
    starting: bool,
    faults: VecDeque<Fault>,
    forbidden: HashSet<String>,
    spoiled: HashSet<EventPk>,
    endless: HashSet<EventPk>,
    slow: Slow,
    events_failing: bool,
    counts: Counts,
    notifiers: Vec<Queue>,
    last_created: i64,
}

impl Inner {
    fn row(&mut self, new: NewEvent) -> Row {
        let pk = new.pk.unwrap_or_else(|| EventPk::from_u128(Uuid::new_v4().as_u128()));
        // What happens one after the other does so in its times.
        let now = jiff::Timestamp::now().as_microsecond().max(self.last_created + 1);
        let created = new.created.unwrap_or(now);
        self.last_created = self.last_created.max(created);
        Row { pk, created, new }
    }

    fn insert(&mut self, row: Row) {
        let at = self.rows.partition_point(|other| other.created <= row.created);
        self.rows.insert(at, row);
    }
}

/// The stand-in without its port.
#[derive(Debug)]
pub struct AuthentikState {
    generation: watch::Sender<Generation>,
    inner: Mutex<Inner>,
}

impl AuthentikState {
    /// With nothing in it but what our blueprint makes.
    pub fn new(generation: Generation) -> Arc<Self> {
        let inner = Inner { configuration: Configuration::of_blueprint(generation), ..Inner::default() };
        Arc::new(Self { generation: watch::Sender::new(generation), inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that it behaves as.
    pub fn generation(&self) -> Generation {
        *self.generation.borrow()
    }

    /// An upgrade, with what its migrations do to objects; events stay. Going back changes no object.
    pub fn set_generation(&self, generation: Generation) {
        let before = self.generation.send_replace(generation);
        self.configure(|configuration| configuration.migrate(before, generation));
    }

    /// The blueprint is applied by hand: an upgrade is no occasion for Authentik to do it, since the file has not changed.
    pub fn apply_blueprint(&self) {
        let generation = self.generation();
        self.configure(|configuration| configuration.apply_blueprint(generation));
    }

    /// The token of the service account that the blueprint makes.
    pub fn token(&self) -> String {
        self.inner().configuration.service_token().to_owned()
    }

    /// The token of somebody who may do everything.
    pub fn admin_token(&self) -> String {
        self.inner().configuration.admin_token().to_owned()
    }

    /// Looks at objects and accounts, and changes them.
    pub fn configure<T>(&self, change: impl FnOnce(&mut Configuration) -> T) -> T {
        change(&mut self.inner().configuration)
    }

    /// Looks at objects and accounts.
    pub(super) fn with_configuration<T>(&self, look: impl FnOnce(&Configuration) -> T) -> T {
        look(&self.inner().configuration)
    }

    /// What the test of a transport signs with; the variable of worker and server.
    pub fn set_webhook_secret(&self, secret: Option<Secret>) {
        self.inner().webhook_secret = secret;
    }

    pub(super) fn webhook_secret(&self) -> Option<Secret> {
        self.inner().webhook_secret.clone()
    }

    /// Whether the router answers in the place of a server that is not up yet.
    pub fn set_starting(&self, starting: bool) {
        self.inner().starting = starting;
    }

    /// What is to go wrong with the next requests, one after the other.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner().faults.extend(faults);
    }

    /// Whether every list of events is 500, while all else works: its table cannot be read, say.
    pub fn set_events_failing(&self, failing: bool) {
        self.inner().events_failing = failing;
    }

    /// Paths below `/api/v3/` that answer 403 from now on, whoever asks; none forgets them.
    pub fn forbid(&self, paths: &[&str]) {
        self.inner().forbidden = paths.iter().map(|path| (*path).to_owned()).collect();
    }

    /// An event that cannot be put into an answer from now on: whatever is to hold it is 500, and each such answer makes
    /// an event itself (`authentik/events/middleware.py`, `process_exception`).
    pub fn spoil(&self, pk: EventPk) {
        self.inner().spoiled.insert(pk);
    }

    /// An event that takes for ever to put into a list from now on: its context is endless, say.
    pub fn make_endless(&self, pk: EventPk) {
        self.inner().endless.insert(pk);
    }

    /// It can be put into answers again.
    pub fn mend(&self, pk: EventPk) {
        let mut inner = self.inner();
        inner.spoiled.remove(&pk);
        inner.endless.remove(&pk);
    }

    /// How long lists of events take from now on.
    pub fn set_slow(&self, slow: Slow) {
        self.inner().slow = slow;
    }

    /// How long a list with these takes; `None` for ever.
    pub(super) fn time_for(&self, rows: &[Row]) -> Option<Duration> {
        let mut inner = self.inner();
        if rows.iter().any(|row| inner.endless.contains(&row.pk)) {
            inner.counts.endless += 1;
            return None;
        }
        let Slow { list, row } = inner.slow;
        Some(list + row.saturating_mul(u32::try_from(rows.len()).unwrap_or(u32::MAX)))
    }

    /// Whether one of these cannot be put into an answer; then there is an event about that.
    pub(super) fn fails_with(&self, rows: &[Row]) -> bool {
        let fails = {
            let inner = self.inner();
            if inner.events_failing {
                return true;
            }
            rows.iter().any(|row| inner.spoiled.contains(&row.pk))
        };
        if fails {
            let context = serde_json::json!({ "message": "Object of type X is not JSON serializable" });
            self.happen(NewEvent::of_system("system_exception", context).by_app("authentik.events.middleware"));
        }
        fails
    }

    /// What was asked so far, and what is there.
    pub fn counts(&self) -> Counts {
        let inner = self.inner();
        let (events, uncommitted) = (inner.rows.len() as u64, inner.uncommitted.len() as u64);
        Counts { events, uncommitted, ..inner.counts }
    }

    /// Keys of all events that can be seen, the oldest first.
    pub fn pks(&self) -> Vec<EventPk> {
        self.inner().rows.iter().map(|row| row.pk).collect()
    }

    /// An event happens: it is made, can be seen at once, and rules are told.
    pub fn happen(&self, event: NewEvent) -> EventPk {
        let mut inner = self.inner();
        let row = inner.row(event);
        let pk = row.pk;
        inner.insert(row.clone());
        let queues = inner.notifiers.clone();
        drop(inner);
        queues.iter().for_each(|queue| queue.fire(&row));
        pk
    }

    /// An event is made in a transaction that goes on: its time is taken, and nobody sees it yet. Up to 2025.6 the
    /// notification comes now, finds nothing, and is dropped; later ones are made with the commit.
    pub fn begin(&self, event: NewEvent) -> EventPk {
        let mut inner = self.inner();
        let row = inner.row(event);
        let pk = row.pk;
        inner.uncommitted.insert(pk, row);
        pk
    }

    /// The transaction ends, and the event can be seen.
    pub fn commit(&self, pk: EventPk) {
        let told = self.generation().notifies_after_commit();
        let mut inner = self.inner();
        let Some(row) = inner.uncommitted.remove(&pk) else { return };
        inner.insert(row.clone());
        let queues = if told { inner.notifiers.clone() } else { Vec::new() };
        inner.counts.too_early += u64::from(!told);
        drop(inner);
        queues.iter().for_each(|queue| queue.fire(&row));
    }

    /// An event is saved again, as a PUT does it: rules are told once more.
    pub fn save_again(&self, pk: EventPk) {
        let inner = self.inner();
        let Some(row) = inner.rows.iter().find(|row| row.pk == pk).cloned() else { return };
        let queues = inner.notifiers.clone();
        drop(inner);
        queues.iter().for_each(|queue| queue.fire(&row));
    }

    /// A user is deleted; where `gdpr_compliance` is on, which it is, so is everything it has caused. Says how much that was.
    pub fn delete_user(&self, pk: i64) -> usize {
        self.remove(|row| row.user_pk() == Some(pk))
    }

    /// What happened before is deleted, as retention does it. Says how much that was.
    pub fn expire_before(&self, micros: i64) -> usize {
        self.remove(|row| row.created < micros)
    }

    fn remove(&self, is_gone: impl Fn(&Row) -> bool) -> usize {
        let mut inner = self.inner();
        let before = inner.rows.len();
        inner.rows.retain(|row| !is_gone(row));
        let gone = before - inner.rows.len();
        inner.counts.deleted += gone as u64;
        gone
    }

    /// A user that the API knows.
    pub fn add_user(&self, user: &User, groups: &[&str], attributes: Value) {
        self.configure(|configuration| configuration.add_user(user, groups, attributes));
    }

    pub(super) fn attach(&self, queue: Queue) {
        self.inner().notifiers.push(queue);
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.inner().counts);
    }

    pub(super) fn is_starting(&self) -> bool {
        self.inner().starting
    }

    pub(super) fn next_fault(&self) -> Option<Fault> {
        self.inner().faults.pop_front()
    }

    pub(super) fn is_forbidden(&self, path: &str) -> bool {
        self.inner().forbidden.contains(path)
    }

    /// The event with this key.
    pub(super) fn find(&self, pk: EventPk) -> Option<Row> {
        self.inner().rows.iter().find(|row| row.pk == pk).cloned()
    }

    /// How many events there are of those wanted, and a page of them. Without a filter nothing is gone through.
    pub(super) fn page(
        &self,
        wanted: Option<&dyn Fn(&Row) -> bool>,
        newest_first: bool,
        skip: usize,
        take: usize,
    ) -> (usize, Vec<Row>) {
        let inner = self.inner();
        let rows = &inner.rows;
        let Some(wanted) = wanted else {
            let page: Vec<Row> = if newest_first {
                rows.iter().rev().skip(skip).take(take).cloned().collect()
            } else {
                rows.iter().skip(skip).take(take).cloned().collect()
            };
            return (rows.len(), page);
        };
        let mut found: Vec<&Row> = rows.iter().filter(|row| wanted(row)).collect();
        if newest_first {
            found.reverse();
        }
        (found.len(), found.iter().skip(skip).take(take).map(|row| (*row).clone()).collect())
    }
}
