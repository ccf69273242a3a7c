//! What Lago knows: metrics and subscriptions, at hand also while Lago is away and after a restart.
//!
//! A look reads all of it. It is made on a timer, and sooner for an event that does not fit what was seen before the event
//! came (a *doubt*): the more such looks have shown nothing new, the further they are apart. Usage that names only a customer
//! fits whatever was seen, and may be another subscription's since: a look that begins after it came confirms it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_journal::Journal;
use kit_lago::api::{Aggregation, ApiError, BillableMetric, LagoApi, Subscription};
use kit_lago::usage::Quantity;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admit::Stored;
use crate::metrics::UsageMetrics;

/// Name of the value in the journal.
const NAME: &str = "catalogue";
/// Subscriptions that ended longer ago are forgotten.
const ENDED_MILLIS: i64 = 90 * 86_400_000;
/// Ended ones that are kept where Lago has too many to tell them again: those that ended last.
const ENDED: usize = 100_000;
/// At least this long between two looks, whatever producers send.
const AT_LEAST: Duration = Duration::from_secs(2);
/// At most this long between two looks where there are doubts, unless looks take long …
const AT_MOST: Duration = Duration::from_secs(60);
/// … because of which Lago is left alone for so many times as long as it took.
const REST: u32 = 10;
/// Who waits for a look comes back so much after it should have ended.
const A_LITTLE_LATER: Duration = Duration::from_millis(200);
/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Metrics by code and subscriptions by id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Catalogue {
    metrics: BTreeMap<String, BillableMetric>,
    /// By external id: an upgrade ends one and begins another.
    subscriptions: BTreeMap<String, Vec<Subscription>>,
    /// The external ids of each customer's subscriptions; made of the above.
    #[serde(skip)]
    customers: BTreeMap<String, BTreeSet<String>>,
    /// When Lago was asked.
    asked_at: Timestamp,
}

impl Catalogue {
    pub(crate) fn new(metrics: Vec<BillableMetric>, subscriptions: Vec<Subscription>, asked_at: Timestamp) -> Self {
        let mut by_id: BTreeMap<String, Vec<Subscription>> = BTreeMap::new();
        let forgotten = asked_at.plus_millis(-ENDED_MILLIS);
        for subscription in subscriptions {
            if subscription.terminated_at.is_none_or(|ended| ended >= forgotten) {
                by_id.entry(subscription.external_id.clone()).or_default().push(subscription);
            }
        }
        let metrics = metrics.into_iter().map(|metric| (metric.code.clone(), metric)).collect();
        Self { metrics, subscriptions: by_id, customers: BTreeMap::new(), asked_at }.with_customers()
    }

    /// Of a Lago that has too many subscriptions to tell them all: these are the active ones. Those that have ended are known
    /// as far as they were told before; of those that were active then and are not now, they ended at the latest now.
    fn of_active(
        metrics: Vec<BillableMetric>,
        active: Vec<Subscription>,
        before: Option<&Self>,
        asked_at: Timestamp,
    ) -> Self {
        let is_active: HashSet<(&str, Option<Timestamp>)> =
            active.iter().map(|own| (own.external_id.as_str(), own.started_at)).collect();
        let known = before.into_iter().flat_map(|before| before.subscriptions.values().flatten());
        let gone = known.filter(|own| !is_active.contains(&(own.external_id.as_str(), own.started_at)));
        let mut ended: Vec<Subscription> = gone
            .map(|own| Subscription { terminated_at: own.terminated_at.or(Some(asked_at)), ..own.clone() })
            .collect();
        ended.sort_unstable_by_key(|own| std::cmp::Reverse(own.terminated_at));
        ended.truncate(ENDED);
        Self::new(metrics, ended.into_iter().chain(active).collect(), asked_at)
    }

    fn with_customers(mut self) -> Self {
        for own in self.subscriptions.values().flatten() {
            let ids = self.customers.entry(own.external_customer_id.clone()).or_default();
            ids.insert(own.external_id.clone());
        }
        self
    }

    pub(crate) fn metric(&self, code: &str) -> Option<&BillableMetric> {
        self.metrics.get(code)
    }

    /// Those with this id, active and ended.
    pub(crate) fn subscriptions(&self, external_id: &str) -> &[Subscription] {
        self.subscriptions.get(external_id).map_or(&[], Vec::as_slice)
    }

    /// Those of this customer, active and ended.
    pub(crate) fn subscriptions_of<'a>(&'a self, customer: &'a str) -> impl Iterator<Item = &'a Subscription> {
        let ids = self.customers.get(customer).into_iter().flatten();
        ids.flat_map(|id| self.subscriptions(id)).filter(move |own| own.external_customer_id == customer)
    }

    /// Whether a subscription with this id was this customer's at that time: an id may be another customer's after it
    /// has ended. Where nobody had it, it is of who had it last before, or first after.
    pub(crate) fn is_of(&self, external_id: &str, customer: &str, at: Timestamp) -> bool {
        let all = self.subscriptions(external_id).iter();
        let begun = all.clone().filter(|own| own.started_at.is_none_or(|started| started <= at));
        let held = begun.clone().filter(|own| own.terminated_at.is_none_or(|ended| at < ended));
        // Of several Lago takes the one that began last.
        let holder = held.max_by_key(|own| own.started_at).or_else(|| begun.max_by_key(|own| own.started_at));
        let holder = holder.or_else(|| all.min_by_key(|own| own.started_at));
        holder.is_some_and(|own| own.external_customer_id == customer)
    }

    /// How much of its metric an event is: of metrics that count events or add up a property.
    pub(crate) fn units(&self, event: &Stored<'_>) -> Option<Quantity> {
        let metric = self.metric(&event.code)?;
        match metric.aggregation_type {
            Aggregation::CountAgg => Some(Quantity::whole(1)),
            Aggregation::SumAgg => Quantity::of_json(event.property(metric.counted_field()?)?).ok(),
            _ => None,
        }
    }

    pub(crate) fn asked_at(&self) -> Timestamp {
        self.asked_at
    }

    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        self.metrics == other.metrics && self.subscriptions == other.subscriptions
    }
}

/// The last look at Lago.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// None has ever succeeded where there is none.
    pub(crate) catalogue: Option<Arc<Catalogue>>,
    /// When the last look began, and why it failed if it did.
    pub(crate) looked_at: Timestamp,
    pub(crate) failed: Option<Failed>,
    /// Of subscriptions only the active ones were told.
    partial: bool,
    /// Before then no doubt leads to another look, and nothing that is to be confirmed.
    next_look: Option<Instant>,
    next_confirming_look: Option<Instant>,
    /// How long the last one took.
    took: Duration,
}

impl Seen {
    /// Whether Lago has told nothing since `at`.
    pub(crate) fn is_behind(&self, at: Timestamp) -> bool {
        self.catalogue.as_ref().is_none_or(|catalogue| catalogue.asked_at <= at)
    }

    /// Whether the first look of all is still under way.
    pub(crate) fn is_first_look(&self) -> bool {
        self.catalogue.is_none() && self.failed.is_none()
    }

    /// Whether Lago may tell more when it is asked again.
    pub(crate) fn may_tell(&self) -> bool {
        self.failed != Some(Failed::Refused)
    }

    /// Whether Lago has told nothing since `at`, and may tell more.
    pub(crate) fn is_older_than(&self, at: Timestamp) -> bool {
        self.is_behind(at) && self.may_tell()
    }

    /// Whether Lago has told nothing since `at`, and is likely to do so soon.
    pub(crate) fn can_confirm(&self, at: Timestamp) -> bool {
        self.is_behind(at) && self.failed.is_none()
    }

    fn likely_ended(&self, next_look: Option<Instant>) -> Duration {
        let wait = next_look.map_or(AT_LEAST, |next| next.saturating_duration_since(Instant::now()));
        wait + self.took + A_LITTLE_LATER
    }

    /// Why what would be said of such an event is not said yet.
    pub(crate) fn why_wait(&self) -> &'static str {
        match self.failed {
            Some(Failed::Away) => "Lago cannot be asked about it now",
            _ => "does not fit what Lago knew before it came, Lago is asked again",
        }
    }
}

/// Why a look failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Lago is away: it will say more when it is back.
    Away,
    /// Lago does not tell us: its key lacks a permission, say.
    Refused,
}

/// The catalogue as everybody uses it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    seen: watch::Receiver<Seen>,
    /// When the last events came that newer looks are wanted for.
    wanted: Arc<watch::Sender<Wanted>>,
}

/// When the last events came that newer looks are wanted for.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    /// One that does not fit.
    doubted: Timestamp,
    /// One that fits, if nothing has changed.
    to_confirm: Timestamp,
}

impl Known {
    /// What a test says that Lago knows.
    #[cfg(test)]
    pub(crate) fn told(catalogue: Option<Catalogue>, failed: Option<Failed>) -> (watch::Sender<Seen>, Self) {
        let (sender, seen) = watch::channel(Seen { catalogue: catalogue.map(Arc::new), failed, ..Seen::default() });
        (sender, Self { seen, wanted: Arc::new(watch::channel(Wanted::default()).0) })
    }

    pub(crate) fn current(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// The next look that ends; `None` when there will be none.
    pub(crate) async fn changed(&mut self) -> Option<Seen> {
        self.seen.changed().await.ok()?;
        Some(self.seen.borrow_and_update().clone())
    }

    /// Asks for a look that begins after `at`, and says in how long one will likely have ended.
    pub(crate) fn doubt(&self, at: Timestamp) -> Duration {
        self.want(at, |wanted| &mut wanted.doubted);
        let seen = self.seen.borrow();
        seen.likely_ended(seen.next_look)
    }

    /// The same for what fits: such looks are never further apart for having shown nothing new, only as far as Lago takes.
    pub(crate) fn confirm(&self, at: Timestamp) -> Duration {
        self.want(at, |wanted| &mut wanted.to_confirm);
        let seen = self.seen.borrow();
        seen.likely_ended(seen.next_confirming_look)
    }

    fn want(&self, at: Timestamp, which: impl Fn(&mut Wanted) -> &mut Timestamp) {
        self.wanted.send_if_modified(|wanted| {
            let newest = which(wanted);
            let is_newer = at > *newest;
            *newest = at.max(*newest);
            is_newer
        });
    }

    /// Asks for a look soon: somebody says at this time that what Lago knows has changed.
    pub(crate) fn look_again(&self, at: Timestamp) {
        self.doubt(at);
    }

    /// A look that began after `at`, if there is one within `patience`; the newest there is otherwise.
    pub(crate) async fn newer_than(&self, at: Timestamp, patience: Duration) -> Seen {
        let mut seen = self.seen.clone();
        if seen.borrow_and_update().looked_at <= at {
            self.doubt(at);
            let _ = tokio::time::timeout(patience, seen.wait_for(|seen| seen.looked_at > at)).await;
        }
        seen.borrow().clone()
    }
}

/// Asks Lago again and again.
pub(crate) struct CatalogueWorker {
    api: LagoApi,
    journal: Journal,
    clock: SharedClock,
    metrics: UsageMetrics,
    refresh: Duration,
    seen: watch::Sender<Seen>,
    wanted: watch::Receiver<Wanted>,
}

impl CatalogueWorker {
    /// Begins with what is remembered.
    pub(crate) async fn new(
        api: LagoApi,
        journal: Journal,
        clock: SharedClock,
        refresh: Duration,
        metrics: UsageMetrics,
    ) -> (Self, Known) {
        let stored = journal.read(|reader| reader.value(NAME)).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "the remembered catalogue cannot be read, Lago is asked: {error}");
            None
        });
        let catalogue: Option<Catalogue> = stored.and_then(|stored| serde_json::from_slice(&stored).ok());
        let catalogue = catalogue.map(|catalogue| Arc::new(catalogue.with_customers()));
        if let Some(catalogue) = &catalogue {
            metrics.catalogue(catalogue.asked_at, catalogue.subscriptions.len(), false);
        }
        let (seen, receiver) = watch::channel(Seen { catalogue, ..Seen::default() });
        let (want, wanted) = watch::channel(Wanted::default());
        let known = Known { seen: receiver, wanted: Arc::new(want) };
        (Self { api, journal, clock, metrics, refresh, seen, wanted }, known)
    }

    pub(crate) async fn run(self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let mut spacing = Spacing::default();
        loop {
            let is_doubted = self.is_doubted();
            let began = Instant::now();
            let told_new = tokio::select! {
                () = stop.stopped() => return Ok(()),
                told_new = self.look() => told_new,
            };
            let took = began.elapsed();
            let next_look = Instant::now() + spacing.after(is_doubted, told_new, took);
            let next_confirming_look = (Instant::now() + took * REST).max(began + AT_LEAST).min(next_look);
            self.seen.send_modify(|seen| {
                (seen.next_look, seen.next_confirming_look, seen.took) =
                    (Some(next_look), Some(next_confirming_look), took);
            });
            let wait = if self.seen.borrow().failed.is_some() { AGAIN.min(self.refresh) } else { self.refresh };
            let looked_at = self.seen.borrow().looked_at;
            let doubted = self.wanted_since(next_look, move |wanted| wanted.doubted >= looked_at);
            let to_confirm = self.wanted_since(next_confirming_look, move |wanted| wanted.to_confirm >= looked_at);
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = doubted => {}
                () = to_confirm => {}
                () = tokio::time::sleep(wait) => {}
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep_until(began + AT_LEAST) => {}
            }
        }
    }

    /// Whether an event came after the last look that a newer one is wanted for.
    fn is_doubted(&self) -> bool {
        self.wanted.borrow().doubted >= self.seen.borrow().looked_at
    }

    /// Ends when a look is wanted, and not before `next_look`.
    async fn wanted_since(&self, next_look: Instant, is_wanted: impl Fn(&Wanted) -> bool) {
        // Fails when nobody is left who could want one: then the timer is enough.
        if self.wanted.clone().wait_for(|wanted| is_wanted(wanted)).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(next_look).await;
    }

    /// Reads everything; true where it differs from what was known.
    async fn look(&self) -> bool {
        let looked_at = self.clock.now();
        let before = self.seen.borrow().clone();
        let asked = async {
            let metrics = self.api.billable_metrics().await?;
            match self.api.subscriptions().await {
                Ok(all) => Ok((Catalogue::new(metrics, all, looked_at), false)),
                Err(ApiError::TooMany) => {
                    let active = self.api.active_subscriptions().await?;
                    Ok((Catalogue::of_active(metrics, active, before.catalogue.as_deref(), looked_at), true))
                }
                Err(error) => Err(error),
            }
        };
        match asked.await {
            Ok((catalogue, partial)) => {
                self.metrics.catalogue(looked_at, catalogue.subscriptions.len(), partial);
                if partial && !before.partial {
                    tracing::warn!(
                        "Lago has more than 100,000 subscriptions with those that have ended: only the active ones are read, \
                         ended ones are known as far as they were seen before"
                    );
                }
                let same = before.catalogue.as_ref().is_some_and(|before| before.says_the_same(&catalogue));
                if !same {
                    self.store(&catalogue).await;
                }
                let news = before.failed.is_some() || before.catalogue.is_none();
                let catalogue = Arc::new(catalogue);
                let seen = Some(Arc::clone(&catalogue));
                self.seen.send_replace(Seen { catalogue: seen, looked_at, failed: None, partial, ..before });
                // It is true from here on: what comes now is checked against it.
                if news {
                    tracing::info!(
                        metrics = catalogue.metrics.len(),
                        subscriptions = catalogue.subscriptions.len(),
                        "Lago has told its metrics and subscriptions"
                    );
                }
                !same
            }
            Err(error) => {
                let failed = match error {
                    // A key that may not read, unless it did before: then it is being replaced.
                    ApiError::Denied(_) if before.catalogue.is_none() => Failed::Refused,
                    ApiError::TooMany | ApiError::TooLarge(_) => Failed::Refused,
                    // Also 404 and the like: a proxy without its backend, or a wrong address.
                    _ => Failed::Away,
                };
                if before.failed != Some(failed) {
                    let error = kit::error::chain(&error);
                    tracing::warn!(error = %error, "Lago does not tell its metrics and subscriptions, going by what was known: {error}");
                }
                self.seen.send_replace(Seen { looked_at, failed: Some(failed), ..before });
                false
            }
        }
    }

    async fn store(&self, catalogue: &Catalogue) {
        let Ok(value) = serde_json::to_vec(catalogue) else { return };
        if let Err(error) = self.journal.put_value(NAME, value).await {
            tracing::warn!(error = %error, "the catalogue is not remembered, a restart asks Lago again: {error}");
        }
    }
}

/// How far looks are apart that doubts lead to.
#[derive(Clone, Copy, Debug, Default)]
struct Spacing {
    /// Such looks in a row that have shown nothing new.
    in_vain: u32,
}

impl Spacing {
    /// How long after a look a doubt may lead to the next one. `is_doubted`: the look was for a doubt; where there was
    /// none for a whole turn of the timer, it begins anew.
    fn after(&mut self, is_doubted: bool, told_new: bool, took: Duration) -> Duration {
        self.in_vain = if is_doubted && !told_new { self.in_vain.saturating_add(1) } else { 0 };
        let doubled = AT_LEAST * 2_u32.pow(self.in_vain.saturating_sub(1).min(5));
        doubled.min(AT_MOST).max(took * REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(of: Duration) -> f64 {
        of.as_secs_f64()
    }

    #[test]
    fn looks_for_doubts_are_further_and_further_apart_until_one_shows_something_new() {
        let mut spacing = Spacing::default();
        let quick = Duration::from_millis(10);
        let apart: Vec<f64> = (0..8).map(|_| seconds(spacing.after(true, false, quick))).collect();
        assert_eq!(apart, [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);

        assert_eq!(seconds(spacing.after(true, true, quick)), 2.0, "it was worth while");
        spacing.after(true, false, quick);
        spacing.after(true, false, quick);
        assert_eq!(seconds(spacing.after(false, false, quick)), 2.0, "nobody had a doubt for a while");
        assert_eq!(seconds(spacing.after(true, false, quick)), 2.0);
    }

    #[test]
    fn a_lago_with_much_to_tell_is_left_alone_for_longer() {
        let mut spacing = Spacing::default();
        assert_eq!(seconds(spacing.after(true, true, Duration::from_secs(3))), 30.0);
        assert_eq!(seconds(spacing.after(true, false, Duration::from_secs(30))), 300.0);
    }
}
