//! What a stand-in for Lago knows and how it behaves, apart from its port: it outlives the port, so
//! that Lago can go away for a while and come back with its books.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use kit::secret::Secret;
use serde::Serialize;
use serde_json::Value;
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, watch};

use super::arrivals::{Arrivals, DifferingRetry};
use super::catalogue::{Catalogue, Invoice, Metric, Subscription};
use super::faults::{Asked, Drawn, Faults, InForce};
use super::ledger::{Ledger, LedgerEntry, LedgerEvent, Uniqueness};
use super::management::Managed;
use super::profile::Profile;
use crate::sender::Signing;

/// How much a stand-in has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests read completely, whatever became of them.
    pub requests: u64,
    /// Of these, posts of single events.
    pub single_posts: u64,
    /// Of these, posts of batches.
    pub batches: u64,
    /// Events in the largest batch.
    pub largest_batch: u64,
    /// Events in all posts, repeated ones each time.
    pub events_received: u64,
    /// Different events in all posts, by subscription and transaction id.
    pub distinct_events: u64,
    /// Events that their own batch already held.
    pub in_batch_duplicates: u64,
    /// Arrivals of a known event with other bytes than it had the first time.
    pub differing_retries: u64,
    /// Events on the books.
    pub stored: u64,
    /// Posts answered 422.
    pub refused_posts: u64,
    /// Requests that created, changed or deleted something of the catalogue, those that were refused apart.
    pub managed_writes: u64,
    /// Requests that met a fault, latency apart.
    pub faults: u64,
    /// Requests in progress now, those waiting for a thread included.
    pub in_progress: u64,
    /// The most there were at a time.
    pub most_in_progress: u64,
    /// Posts of events in progress now, of those that are looked at.
    pub posts_in_progress: u64,
    /// The most there were at a time.
    pub most_posts_in_progress: u64,
    /// Posts of events that came while more others were in progress than had been answered since the faults were set, one
    /// aside that its client may have given up: Lago has just come back and is rushed at.
    pub rushed_posts: u64,
}

/// The deadline of a wait passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waited {waited:?} at the stand-in for Lago and saw {seen:?}")]
pub struct WaitError {
    /// How long was waited.
    pub waited: Duration,
    /// What there was in the end.
    pub seen: Counts,
}

/// Books, catalogue and faults of a stand-in.
pub struct LagoState {
    profile: Profile,
    api_key: Secret,
    books: Mutex<Books>,
    behaviour: Mutex<Behaviour>,
    counts: watch::Sender<Counts>,
}

#[derive(Debug)]
pub(super) struct Books {
    pub(super) catalogue: Catalogue,
    pub(super) managed: Managed,
    pub(super) ledger: Ledger,
    pub(super) arrivals: Arrivals,
    pub(super) counts: Counts,
    /// Posts of events answered, and not with a fault, since the faults were set.
    pub(super) answered_posts: u64,
    pub(super) public_pem: Option<String>,
    pub(super) signing: Option<Signing>,
}

#[derive(Debug)]
struct Behaviour {
    in_force: InForce,
    /// Answers by method and path, with or without the query.
    instead: BTreeMap<(Method, String), (u16, Value)>,
    /// One permit a thread.
    threads: Arc<Semaphore>,
}

impl LagoState {
    /// Empty books and good health.
    pub fn new(profile: Profile, api_key: Secret) -> Arc<Self> {
        let uniqueness = if profile.is_clickhouse() { Uniqueness::ClickHouse } else { Uniqueness::Postgres };
        Arc::new(Self {
            profile,
            api_key,
            books: Mutex::new(Books {
                catalogue: Catalogue::default(),
                managed: Managed::default(),
                ledger: Ledger::new(uniqueness),
                arrivals: Arrivals::default(),
                counts: Counts::default(),
                answered_posts: 0,
                public_pem: None,
                signing: None,
            }),
            behaviour: Mutex::new(Behaviour {
                in_force: InForce::new(Faults::default()),
                instead: BTreeMap::new(),
                threads: Arc::new(Semaphore::new(profile.threads())),
            }),
            counts: watch::Sender::new(Counts::default()),
        })
    }

    /// Which Lago this is.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Sends `customer.created` to the organisation's webhook endpoints from now on, signed with this.
    pub fn put_signing(&self, signing: Signing) {
        self.books().signing = Some(signing);
    }

    pub(super) fn signing(&self) -> Option<Signing> {
        self.books().signing.clone()
    }

    /// Adds a metric, or replaces the one with this code.
    pub fn put_metric(&self, metric: Metric) {
        self.books().catalogue.put_metric(metric);
    }

    /// Takes a metric away, and with it what plans charge for it.
    pub fn remove_metric(&self, code: &str) {
        self.books().catalogue.remove_metric(code);
    }

    /// Adds the invoice of a period that has ended, or replaces the one with this Lago id. None is made by itself.
    pub fn put_invoice(&self, invoice: Invoice) {
        self.books().catalogue.put_invoice(invoice);
    }

    /// Adds a subscription, and its customer with it, or replaces the one with this Lago id.
    pub fn put_subscription(&self, subscription: Subscription) {
        self.books().catalogue.put_subscription(subscription);
    }

    /// Adds a customer without subscription. Does nothing when there is one with this id.
    pub fn put_customer(&self, external_id: &str) {
        self.books().catalogue.put_customer(external_id);
    }

    /// Ends the active subscription with this external id; false when there is none.
    pub fn end_subscription(&self, external_id: &str, at: Timestamp) -> bool {
        self.books().catalogue.end_subscription(external_id, at)
    }

    /// A customer has the coupon with this code from now on: most of it can no longer be changed.
    pub fn note_coupon_applied(&self, code: &str) {
        self.books().managed.note_coupon_applied(code);
    }

    /// Changes what goes wrong from now on. Countdowns and chances begin anew; requests in progress
    /// keep what was drawn for them, and the thread they have.
    pub fn set_faults(&self, faults: Faults) {
        let threads = faults.threads.unwrap_or(self.profile.threads());
        let threads = Arc::new(Semaphore::new(threads.min(Semaphore::MAX_PERMITS)));
        self.books().answered_posts = 0;
        let mut behaviour = self.behaviour();
        behaviour.in_force = InForce::new(faults);
        behaviour.threads = threads;
    }

    /// Answers so from now on where this path is asked for, with its query or with any, and with whatever key: what a version
    /// may look like that nobody has read. Nothing is done.
    pub fn answer_instead(&self, method: Method, path: &str, status: u16, body: Value) {
        self.behaviour().instead.insert((method, path.to_owned()), (status, body));
    }

    /// Takes back every [`LagoState::answer_instead`].
    pub fn answer_as_usual(&self) {
        self.behaviour().instead.clear();
    }

    /// The public half of the key that webhooks are signed with, as a PEM. Without it there is none to be had.
    pub fn put_public_key(&self, pem: &str) {
        self.books().public_pem = Some(pem.to_owned());
    }

    /// What would be billed: every stored event, in order of storing.
    pub fn ledger(&self) -> Vec<LedgerEvent> {
        self.books().ledger.entries().map(|entry| entry.to_owned()).collect()
    }

    /// Looks at every stored event without copying it. The stand-in stands still meanwhile.
    pub fn visit_ledger(&self, look: impl FnMut(LedgerEntry<'_>)) {
        self.books().ledger.entries().for_each(look);
    }

    /// How often an event arrived with other bytes than the first time. A retry that is not the very
    /// same event may be billed differently.
    pub fn differing_retries(&self) -> u64 {
        self.books().arrivals.differing()
    }

    /// The first few of them, for the report of a failed test.
    pub fn differing_examples(&self) -> Vec<DifferingRetry> {
        self.books().arrivals.examples().to_vec()
    }

    /// How much it has seen.
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Waits until the counts are as wanted, and returns them.
    ///
    /// # Errors
    /// [`WaitError`] at the deadline.
    pub async fn wait_until(
        &self,
        deadline: Duration,
        mut wanted: impl FnMut(&Counts) -> bool,
    ) -> Result<Counts, WaitError> {
        let mut counts = self.counts.subscribe();
        let reached = counts.wait_for(|counts| wanted(counts));
        match tokio::time::timeout(deadline, reached).await {
            Ok(Ok(counts)) => Ok(*counts),
            // The sender lives in `self`, so only the deadline gets here.
            _ => Err(WaitError { waited: deadline, seen: self.counts() }),
        }
    }

    /// Whether an `Authorization` header opens the API: its second word counts, whatever the first.
    ///
    /// Source: getlago/lago-api `app/controllers/api/base_controller.rb` at v1.16.0.
    pub(super) fn is_authorized(&self, header: Option<&[u8]>) -> bool {
        let mut words = header.unwrap_or_default().split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let key = words.nth(1).unwrap_or_default();
        bool::from(key.ct_eq(self.api_key.expose().as_bytes()))
    }

    /// What is answered in the place of the usual.
    pub(super) fn instead_of(&self, method: &Method, path: &str, query: &str) -> Option<(u16, Value)> {
        let behaviour = self.behaviour();
        let of = |path: String| behaviour.instead.get(&(method.clone(), path)).cloned();
        of(format!("{path}?{query}")).or_else(|| of(path.to_owned()))
    }

    /// Draws what happens to a request, and tells which threads it has to wait for.
    pub(super) fn draw(&self, what: Asked) -> (Drawn, Arc<Semaphore>) {
        let mut behaviour = self.behaviour();
        (behaviour.in_force.draw(what), Arc::clone(&behaviour.threads))
    }

    /// How long requests are left without any answer from now on.
    pub(super) fn silent_for(&self) -> Duration {
        self.behaviour().in_force.silent_for()
    }

    /// Looks at the faults that do not depend on chance.
    pub(super) fn with_faults<T>(&self, look: impl FnOnce(&Faults) -> T) -> T {
        look(&self.behaviour().in_force.faults)
    }

    /// Changes the books and tells whoever waits for their counts.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Books) -> T) -> T {
        let mut books = self.books();
        let result = change(&mut books);
        books.counts.stored = books.ledger.len() as u64;
        books.counts.distinct_events = books.arrivals.distinct();
        books.counts.differing_retries = books.arrivals.differing();
        self.counts.send_replace(books.counts);
        result
    }

    /// Notes a request that was read completely; it is in progress until the guard is dropped.
    pub(super) fn begin_request(&self) -> (u64, InProgress<'_>) {
        let number = self.change(|books| {
            books.counts.requests += 1;
            books.counts.in_progress += 1;
            books.counts.most_in_progress = books.counts.most_in_progress.max(books.counts.in_progress);
            books.counts.requests
        });
        (number, InProgress(self))
    }

    /// Notes a post of events; it is in progress until the guard is dropped.
    pub(super) fn begin_post(&self) -> Posting<'_> {
        self.change(|books| {
            let counts = &mut books.counts;
            counts.rushed_posts += u64::from(counts.posts_in_progress > books.answered_posts + 1);
            counts.posts_in_progress += 1;
            counts.most_posts_in_progress = counts.most_posts_in_progress.max(counts.posts_in_progress);
        });
        Posting(self)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        lock(&self.behaviour)
    }
}

impl fmt::Debug for LagoState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (profile, counts) = (self.profile, self.counts());
        f.debug_struct("LagoState").field("profile", &profile).field("counts", &counts).finish_non_exhaustive()
    }
}

/// A request in progress.
pub(super) struct InProgress<'a>(&'a LagoState);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.change(|books| books.counts.in_progress -= 1);
    }
}

/// A post of events in progress.
pub(super) struct Posting<'a>(&'a LagoState);

impl Drop for Posting<'_> {
    fn drop(&mut self) {
        self.0.change(|books| books.counts.posts_in_progress -= 1);
    }
}

/// A panic elsewhere must not hide what is on the books.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
