//! What Lago knows: metrics and subscriptions, at hand also while Lago is away and after a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_journal::Journal;
use kit_lago::api::{ApiError, BillableMetric, LagoApi, Subscription};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Name of the value in the journal.
const NAME: &str = "catalogue";
/// Subscriptions that ended longer ago are forgotten.
const ENDED_MILLIS: i64 = 90 * 86_400_000;
/// At least this long between two looks, whatever producers send.
const AT_LEAST: Duration = Duration::from_secs(2);
/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Metrics by code and subscriptions by id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Catalogue {
    metrics: BTreeMap<String, BillableMetric>,
    /// By external id: an upgrade ends one and begins another.
    subscriptions: BTreeMap<String, Vec<Subscription>>,
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
        Self { metrics, subscriptions: by_id, asked_at }
    }

    pub(crate) fn metric(&self, code: &str) -> Option<&BillableMetric> {
        self.metrics.get(code)
    }

    /// Those with this id, active and ended.
    pub(crate) fn subscriptions(&self, external_id: &str) -> &[Subscription] {
        self.subscriptions.get(external_id).map_or(&[], Vec::as_slice)
    }

    /// Whether this customer has, or had, a subscription with this id.
    pub(crate) fn is_of(&self, external_id: &str, customer: &str) -> bool {
        self.subscriptions(external_id).iter().any(|own| own.external_customer_id == customer)
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
    doubts: Arc<Notify>,
}

impl Known {
    pub(crate) fn current(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// The next look that ends; `None` when there will be none.
    pub(crate) async fn changed(&mut self) -> Option<Seen> {
        self.seen.changed().await.ok()?;
        Some(self.seen.borrow_and_update().clone())
    }

    /// Asks for a look soon: somebody says that what Lago knows has changed.
    pub(crate) fn look_again(&self) {
        self.doubts.notify_one();
    }

    /// A look that began after `at`, if there is one within `patience`; the newest there is otherwise.
    pub(crate) async fn newer_than(&self, at: Timestamp, patience: Duration) -> Seen {
        let mut seen = self.seen.clone();
        if seen.borrow_and_update().looked_at <= at {
            self.doubts.notify_one();
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
    refresh: Duration,
    seen: watch::Sender<Seen>,
    doubts: Arc<Notify>,
}

impl CatalogueWorker {
    /// Begins with what is remembered.
    pub(crate) async fn new(api: LagoApi, journal: Journal, clock: SharedClock, refresh: Duration) -> (Self, Known) {
        let stored = journal.read(|reader| reader.value(NAME)).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "the remembered catalogue cannot be read, Lago is asked: {error}");
            None
        });
        let catalogue = stored.and_then(|stored| serde_json::from_slice(&stored).ok()).map(Arc::new);
        let (seen, receiver) = watch::channel(Seen { catalogue, ..Seen::default() });
        let doubts = Arc::new(Notify::new());
        let known = Known { seen: receiver, doubts: Arc::clone(&doubts) };
        (Self { api, journal, clock, refresh, seen, doubts }, known)
    }

    pub(crate) async fn run(self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        loop {
            let began = Instant::now();
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.look() => {}
            }
            let wait = if self.seen.borrow().failed.is_some() { AGAIN.min(self.refresh) } else { self.refresh };
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.doubts.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep_until(began + AT_LEAST) => {}
            }
        }
    }

    async fn look(&self) {
        let looked_at = self.clock.now();
        let asked = async {
            let metrics = self.api.billable_metrics().await?;
            Ok::<_, ApiError>(Catalogue::new(metrics, self.api.subscriptions().await?, looked_at))
        };
        let before = self.seen.borrow().clone();
        match asked.await {
            Ok(catalogue) => {
                let same = before.catalogue.as_ref().is_some_and(|before| before.says_the_same(&catalogue));
                if before.failed.is_some() || before.catalogue.is_none() {
                    tracing::info!(
                        metrics = catalogue.metrics.len(),
                        subscriptions = catalogue.subscriptions.len(),
                        "Lago has told its metrics and subscriptions"
                    );
                }
                if !same {
                    self.store(&catalogue).await;
                }
                self.seen.send_replace(Seen { catalogue: Some(Arc::new(catalogue)), looked_at, failed: None });
            }
            Err(error) => {
                let failed = match error {
                    ApiError::Unreachable(_)
                    | ApiError::TooSlow
                    | ApiError::NotLago
                    | ApiError::Status(408 | 429 | 500..) => Failed::Away,
                    _ => Failed::Refused,
                };
                if before.failed != Some(failed) {
                    let error = kit::error::chain(&error);
                    tracing::warn!(error = %error, "Lago does not tell its metrics and subscriptions, going by what was known: {error}");
                }
                self.seen.send_replace(Seen { looked_at, failed: Some(failed), ..before });
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
