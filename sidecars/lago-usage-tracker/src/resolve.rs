//! Usage that names only a customer: the sink that finds the subscription and puts the event that Lago is sent into the
//! journal, with all its bytes fixed. Nothing is sent from here.
//!
//! A crash may come between that commit and the one that says it is done, and the catalogue may name another
//! subscription by then. So what may have been resolved before is looked for first.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use kit::error::chain;
use kit_delivery::{Batching, Failure, Outcome, Sink, Verdict};
use kit_journal::{Appended, EventHead, EventId, Journal, JournalError, NewEvent, Seq, StoredEvent};

use crate::admit::{self, SOURCE, Stored, UNRESOLVED};
use crate::catalogue::{Catalogue, Known, Seen};
use crate::check::{Finding, Policy, whose};
use crate::metrics::UsageMetrics;
use crate::rollup;
use crate::withheld::{TOO_MANY, Withheld};

/// Name of the sink in the journal, metrics and the API.
pub(crate) const RESOLVE: &str = "resolve";
/// Batches at a time: nobody outside is asked, and the journal commits them together.
pub(crate) const CONCURRENCY: usize = 2;
/// Hundreds share a commit, after waiting a moment for each other.
const BATCHING: Batching = Batching { most: 500, bytes: 4 << 20, linger: Duration::from_millis(50) };
/// After the journal could not be asked.
const AGAIN: Duration = Duration::from_secs(1);
/// Events with one transaction id that are looked at to find the one that was made of this.
const LOOKED_AT: usize = 200;
/// What happened so long before Lago was asked is of before that by everybody's clock.
const OF_BEFORE_MILLIS: i64 = 60_000;
/// Times that a batch is appended: all of it, then without what contradicts.
const ROUNDS: usize = 3;

/// Finds the subscriptions of customers' usage.
pub(crate) struct Resolver {
    journal: Journal,
    known: Known,
    metrics: UsageMetrics,
    /// Metrics that are rolled up.
    rollup: BTreeSet<String>,
    /// No event after this one was resolved before: none was there when this replica began to resolve, and none was tried since.
    tried: AtomicI64,
    /// Those that fit nothing yet.
    withheld: Mutex<Withheld>,
}

/// An event on its way: its place in its batch, and the subscription that was found.
struct Found<'a> {
    place: usize,
    event: &'a StoredEvent,
    subscription: String,
}

impl Resolver {
    /// To be made before anything is taken.
    pub(crate) fn new(journal: Journal, known: Known, metrics: UsageMetrics, rollup: BTreeSet<String>) -> Self {
        let tried = AtomicI64::new(*journal.tail().borrow());
        Self { journal, known, metrics, rollup, tried, withheld: Mutex::default() }
    }

    async fn resolve(&self, events: &[&StoredEvent]) -> Vec<Outcome> {
        let seen = self.known.current();
        let newest = events.iter().map(|event| event.seq).max().unwrap_or_default();
        let tried = self.tried.fetch_max(newest, Ordering::AcqRel);
        let catalogue = seen.catalogue.as_deref();
        let before = join_all(events.iter().map(async |event| match event.seq <= tried {
            true => self.is_there(event, catalogue).await,
            false => Ok(false),
        }));
        let (mut outcomes, mut found) = (vec![None; events.len()], Vec::new());
        for (place, (event, before)) in events.iter().zip(before.await).enumerate() {
            let looked = match before {
                Ok(true) => Err(done()),
                Ok(false) => self.look(event, &seen),
                Err(error) => Err(unavailable(&error)),
            };
            match looked {
                Ok(subscription) => found.push(Found { place, event, subscription }),
                Err(outcome) => outcomes[place] = Some(outcome),
            }
        }
        self.append(found, &mut outcomes).await;
        let left = || Outcome::failed(Failure::Busy, "others of its batch contradict what is known again and again");
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(left)).collect()
    }

    /// The event's subscription, or what becomes of it without one.
    fn look(&self, event: &StoredEvent, seen: &Seen) -> Result<String, Outcome> {
        let customer = event.head.tenant.as_deref().unwrap_or_default();
        let at = Stored::read(&event.body).and_then(|stored| stored.time()).unwrap_or(event.at);
        let Some(catalogue) = &seen.catalogue else {
            if seen.may_tell() {
                return Err(Outcome::withheld("Lago has not told its subscriptions yet", self.known.doubt(event.at)));
            }
            return Err(self.park(&Finding::untold(customer), ""));
        };
        match whose(customer, at, catalogue) {
            // Its subscription may have ended since, and another one begun.
            Ok(_) if seen.can_confirm(event.at) && at.plus_millis(OF_BEFORE_MILLIS) >= catalogue.asked_at() => {
                let why = "Lago is asked again whose its customer's usage is now";
                Err(Outcome::withheld(why, self.known.confirm(event.at)))
            }
            Ok(subscription) => Ok(subscription.to_owned()),
            Err(finding) if seen.is_older_than(event.at) => {
                let wait = self.known.doubt(event.at);
                let mut withheld = self.withheld.lock().unwrap_or_else(PoisonError::into_inner);
                if withheld.has_room(event.seq, Some(catalogue.asked_at())) {
                    return Err(Outcome::withheld(seen.why_wait(), wait));
                }
                Err(self.park(&finding, TOO_MANY))
            }
            Err(finding) => Err(self.park(&finding, "")),
        }
    }

    fn park(&self, finding: &Finding, note: &str) -> Outcome {
        self.metrics.found(finding.kind, Policy::Park);
        Outcome::failed(Failure::Unsendable, format!("{finding}{note}"))
    }

    /// Whether this event was resolved before, or reported with a subscription of the customer too.
    async fn is_there(&self, event: &StoredEvent, catalogue: Option<&Catalogue>) -> Result<bool, JournalError> {
        let customer = event.head.tenant.as_deref().unwrap_or_default();
        let id_of = |subscription: &str| admit::resolved(event, subscription).map(|event| event.head.id);
        let known = self.journal.known(SOURCE, &event.head.key).await?;
        if known.is_empty() {
            return Ok(false);
        }
        let of_customer = catalogue.into_iter().flat_map(|catalogue| catalogue.subscriptions_of(customer));
        let ids: Vec<EventId> = of_customer.filter_map(|own| id_of(&own.external_id)).collect();
        if known.iter().any(|(id, _)| ids.contains(id)) {
            return Ok(true);
        }
        // The catalogue may have forgotten the subscription that it was resolved to.
        for (id, seq) in known.into_iter().take(LOOKED_AT) {
            let head = self.journal.read(move |reader| Ok(reader.event(seq)?.map(|event| event.head))).await?;
            let Some(head) = head else { continue };
            let is_of_customer = head.event_type != UNRESOLVED && head.tenant.as_deref() == Some(customer);
            if is_of_customer && head.scope.as_deref().and_then(id_of) == Some(id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Appends all of these, but for those that contradict what is known under their transaction ids.
    async fn append(&self, mut open: Vec<Found<'_>>, outcomes: &mut [Option<Outcome>]) {
        for _ in 0..ROUNDS {
            let (mut events, mut places) = (Vec::<NewEvent>::new(), Vec::new());
            for found in &open {
                match admit::resolved(found.event, &found.subscription) {
                    Some(event) => {
                        places.push((found.place, event.head.id));
                        events.push(rollup::route(&self.rollup, event));
                    }
                    None => outcomes[found.place] = Some(Outcome::failed(Failure::Unsendable, "it cannot be read")),
                }
            }
            match self.journal.append_together(events).await {
                Ok(appended) => {
                    for ((place, id), appended) in places.iter().zip(&appended) {
                        outcomes[*place] = outcome(*id, appended);
                    }
                }
                Err(error) => places.iter().for_each(|(place, _)| outcomes[*place] = Some(unavailable(&error))),
            }
            open.retain(|found| outcomes[found.place].is_none());
            if open.is_empty() {
                return;
            }
        }
    }
}

/// `None` where it was not stored because of another one.
fn outcome(own: EventId, appended: &Appended) -> Option<Outcome> {
    if appended.duplicate && appended.id != own {
        let text = "contradiction: its customer's subscription has another event with this transaction id";
        return Some(Outcome::failed(Failure::Unsendable, text));
    }
    (!appended.withheld).then(done)
}

fn done() -> Outcome {
    Outcome { verdict: Verdict::Delivered, status: None, error: None, response: None, retry_after: None }
}

fn unavailable(error: &dyn std::error::Error) -> Outcome {
    Outcome::withheld(format!("the journal cannot be asked now: {}", chain(error)), AGAIN)
}

/// Whether an event names only its customer.
pub(crate) fn wants(head: &EventHead) -> bool {
    head.event_type == UNRESOLVED
}

impl Sink for Resolver {
    fn name(&self) -> &str {
        RESOLVE
    }

    fn wants(&self, head: &EventHead) -> bool {
        wants(head)
    }

    fn batching(&self) -> Batching {
        BATCHING
    }

    fn lead(&self, accepted: Seq) -> BoxFuture<'_, Result<(), JournalError>> {
        // Another replica may have resolved any of these, and died before that was recorded.
        self.tried.fetch_max(accepted, Ordering::AcqRel);
        std::future::ready(Ok(())).boxed()
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        async move { self.resolve(&[event]).await.pop().unwrap_or_else(done) }.boxed()
    }

    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        async move { self.resolve(&events.iter().map(|event| &**event).collect::<Vec<_>>()).await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit::clock::{SystemClock, Timestamp};
    use kit_journal::{JournalSection, JournalTask};
    use kit_lago::api::Subscription;
    use prometheus_client::registry::Registry;
    use tempfile::TempDir;
    use tokio::sync::watch;

    use super::*;
    use crate::admit::READY;
    use crate::catalogue::Failed;

    struct Bench {
        _directory: TempDir,
        journal: Journal,
        _task: JournalTask,
    }

    impl Bench {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let section = JournalSection { path: directory.path().join("j.db"), ..JournalSection::default() };
            let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
            Self { _directory: directory, journal, _task: task }
        }

        /// A sink as it is after a start.
        fn resolver(&self, subscriptions: &[(&str, &str)]) -> Resolver {
            let of = |(id, customer): &(&str, &str)| Subscription {
                external_id: (*id).to_owned(),
                external_customer_id: (*customer).to_owned(),
                plan_code: None,
                started_at: None,
                terminated_at: None,
                current_billing_period_started_at: None,
                current_billing_period_ending_at: None,
            };
            let told = Timestamp::from_millis(i64::MAX / 2);
            let catalogue = Catalogue::new(vec![], subscriptions.iter().map(of).collect(), told);
            self.resolver_of(catalogue, None).1
        }

        fn resolver_of(&self, catalogue: Catalogue, failed: Option<Failed>) -> (watch::Sender<Seen>, Resolver) {
            let (seen, known) = Known::told(Some(catalogue), failed);
            (seen, Resolver::new(self.journal.clone(), known, UsageMetrics::default(), BTreeSet::new()))
        }

        async fn append(&self, json: &str) -> Appended {
            let event = admit::admit(serde_json::from_str(json).unwrap(), None, Timestamp::from_millis(5_000)).unwrap();
            self.journal.append_together(vec![event]).await.unwrap().remove(0)
        }

        async fn event(&self, seq: i64) -> StoredEvent {
            self.journal.read(move |reader| reader.event(seq)).await.unwrap().unwrap()
        }

        async fn events(&self) -> i64 {
            // The tail grows after the answer; this is answered after both.
            self.journal.known(SOURCE, "").await.unwrap();
            *self.journal.tail().borrow()
        }
    }

    /// The commit that says that it is done did not come about.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_resolved_before_a_crash_is_not_resolved_again_whatever_lago_says_by_then() {
        let bench = Bench::new();
        let first = bench.resolver(&[("s-1", "c")]);
        let seq = bench.append(r#"{"transaction_id":"t","external_customer_id":"c","code":"x"}"#).await.seq;
        let event = bench.event(seq).await;
        assert_eq!(first.deliver(&event).await, done());
        let made = bench.event(2).await;
        assert_eq!((made.head.scope.as_deref(), made.head.event_type.as_str()), (Some("s-1"), READY));
        assert_eq!(made.body, r#"{"transaction_id":"t","external_subscription_id":"s-1","code":"x","timestamp":5}"#);

        for now in [&[("s-1", "c")][..], &[("s-2", "c")], &[("s-1", "c"), ("s-2", "c")], &[("s-1", "d")], &[]] {
            assert_eq!(bench.resolver(now).deliver(&event).await, done(), "{now:?}");
        }
        assert_eq!(first.deliver(&event).await, done());
        assert_eq!(bench.events().await, 2);
    }

    /// It had started with an empty journal, and the one that resolved died before it was recorded.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_another_replica_has_resolved_is_looked_for_by_the_one_that_takes_over() {
        let bench = Bench::new();
        let second = bench.resolver(&[("s-2", "c")]);
        let seq = bench.append(r#"{"transaction_id":"t","external_customer_id":"c","code":"x"}"#).await.seq;
        let event = bench.event(seq).await;
        assert_eq!(bench.resolver(&[("s-1", "c")]).deliver(&event).await, done());
        assert_eq!(bench.events().await, 2);

        second.lead(2).await.unwrap();

        assert_eq!(second.deliver(&event).await, done());
        assert_eq!(bench.events().await, 2, "it is resolved already");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn usage_reported_with_the_subscription_too_is_one_event() {
        for customer in ["", r#","external_customer_id":"c""#] {
            let bench = Bench::new();
            let direct = format!(r#"{{"transaction_id":"t","external_subscription_id":"s-1","code":"x"{customer}}}"#);
            let by_customer = r#"{"transaction_id":"t","external_customer_id":"c","code":"x"}"#;
            let resolver = bench.resolver(&[("s-1", "c")]);
            bench.append(&direct).await;
            let seq = bench.append(by_customer).await.seq;
            assert_eq!(resolver.deliver(&bench.event(seq).await).await, done());
            assert_eq!(bench.events().await, 2, "there is one already");

            let seq = bench.append(&by_customer.replace("\"t\"", "\"u\"")).await.seq;
            assert_eq!(resolver.deliver(&bench.event(seq).await).await, done());
            assert_eq!(bench.events().await, 4);
            assert!(bench.append(&direct.replace("\"t\"", "\"u\"")).await.duplicate);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_event_under_its_transaction_id_parks_it_and_nobody_else() {
        let bench = Bench::new();
        let resolver = bench.resolver(&[("s-1", "c"), ("s-2", "d")]);
        bench.append(r#"{"transaction_id":"t-7","external_subscription_id":"s-1","code":"other"}"#).await;
        let mut events = Vec::new();
        for n in 0..300 {
            let customer = if n % 2 == 0 { "d" } else { "c" };
            let json = format!(r#"{{"transaction_id":"t-{n}","external_customer_id":"{customer}","code":"x"}}"#);
            events.push(Arc::new(bench.event(bench.append(&json).await.seq).await));
        }

        let outcomes = resolver.deliver_all(&events).await;

        for (n, outcome) in outcomes.iter().enumerate() {
            let reason = outcome.error.as_deref().unwrap_or_default();
            assert_eq!(
                (n == 7, n == 7),
                (*outcome != done(), reason.starts_with("contradiction: ")),
                "{n} {outcome:?}"
            );
        }
        assert_eq!(bench.events().await, 301 + 299);
    }

    fn of_customer(id: &str, started: i64, ended: Option<i64>) -> Subscription {
        Subscription {
            external_id: id.to_owned(),
            external_customer_id: "c".to_owned(),
            plan_code: None,
            started_at: Some(Timestamp::from_millis(started * 1_000)),
            terminated_at: ended.map(|ended| Timestamp::from_millis(ended * 1_000)),
            current_billing_period_started_at: None,
            current_billing_period_ending_at: None,
        }
    }

    fn received(seq: i64, customer: &str, time: i64, at: i64) -> StoredEvent {
        let json = format!(
            r#"{{"transaction_id":"t-{seq}","external_customer_id":"{customer}","code":"x","timestamp":{time}}}"#
        );
        let at = Timestamp::from_millis(at * 1_000);
        let event = admit::admit(serde_json::from_str(&json).unwrap(), None, at).unwrap();
        StoredEvent { seq, at, head: event.head, body: event.body.into() }
    }

    /// One subscription has ended and the next one has begun since Lago was asked.
    #[tokio::test(flavor = "multi_thread")]
    async fn usage_of_after_what_lago_has_told_waits_until_it_is_asked_again() {
        let bench = Bench::new();
        let before = Catalogue::new(vec![], vec![of_customer("a", 0, None)], Timestamp::from_millis(100_000_000));
        let (told, resolver) = bench.resolver_of(before.clone(), None);
        let (recent, old) = (received(1, "c", 100_010, 100_010), received(2, "c", 99_900, 100_010));

        assert!(matches!(resolver.deliver(&recent).await.verdict, Verdict::Failed(Failure::Withheld)));
        assert_eq!(resolver.deliver(&old).await, done(), "what Lago has told is of after it");
        let after = vec![of_customer("a", 0, Some(100_000)), of_customer("b", 100_000, None)];
        let after = Catalogue::new(vec![], after, Timestamp::from_millis(100_011_000));
        told.send_modify(|seen| seen.catalogue = Some(Arc::new(after)));
        assert_eq!(resolver.deliver(&recent).await, done());
        let scopes = [bench.event(1).await.head.scope, bench.event(2).await.head.scope];
        assert_eq!(scopes.map(Option::unwrap), ["a", "b"]);

        // Where Lago is away, what it has told is all there is.
        let (_told, resolver) = bench.resolver_of(before, Some(Failed::Away));
        assert_eq!(resolver.deliver(&received(3, "c", 100_010, 100_010)).await, done());
        assert_eq!(bench.event(3).await.head.scope.as_deref(), Some("a"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn events_of_nobody_who_is_known_hold_up_no_others_while_lago_is_away() {
        let bench = Bench::new();
        let catalogue = Catalogue::new(vec![], vec![of_customer("a", 0, None)], Timestamp::from_millis(100_000_000));
        let (_told, resolver) = bench.resolver_of(catalogue, Some(Failed::Away));
        let events: Vec<Arc<StoredEvent>> =
            (1..=10_002).map(|seq| Arc::new(received(seq, "nobody", 100_010, 100_010))).collect();

        let outcomes = resolver.deliver_all(&events).await;

        let withheld = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Failed(Failure::Withheld));
        assert_eq!(withheld.count(), 10_000);
        let last = outcomes.last().unwrap();
        assert_eq!(last.verdict, Verdict::Failed(Failure::Unsendable));
        assert!(last.error.as_deref().unwrap().contains("many events wait until Lago can be asked"), "{last:?}");
        assert_eq!(resolver.deliver(&received(10_003, "c", 100_010, 100_010)).await, done());
    }
}
