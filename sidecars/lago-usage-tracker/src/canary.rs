//! One event at an interval that is known to be billable: when Lago stops counting it, it has stopped counting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_journal::Journal;
use kit_lago::api::{Aggregation, LagoApi};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::admit;
use crate::alerts::{Alerts, Told};
use crate::catalogue::Known;
use crate::config::CanarySection;
use crate::ledger::{Name, Period};
use crate::metrics::UsageMetrics;
use crate::reconcile::Books;

/// Name of the value in the journal, where it was told that Lago does not count.
const NAME: &str = "canary";
/// How often Lago is asked at least, while something is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Whether this replica is the one that looks is asked as often at least.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Sends the events and looks for them.
pub(crate) struct Canary {
    pub(crate) section: CanarySection,
    pub(crate) api: LagoApi,
    pub(crate) journal: Journal,
    pub(crate) clock: SharedClock,
    pub(crate) known: Known,
    pub(crate) books: Arc<Books>,
    pub(crate) metrics: UsageMetrics,
    pub(crate) alerts: Alerts,
    /// It was said that the metric is none for a canary.
    pub(crate) is_unsuited: AtomicBool,
}

/// What was told last, where that is not over: it outlives a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Late {
    name: Name,
    /// The billing period.
    period: Option<Timestamp>,
    /// Since when the oldest event waits.
    since: Timestamp,
    /// What it was told under.
    key: String,
}

/// Numbers of events that Lago has confirmed and not counted yet, with when each was reached.
#[derive(Debug, Default)]
struct Waiting {
    period: Option<Timestamp>,
    marks: VecDeque<(u64, Timestamp)>,
    /// What Lago has last said that it has counted.
    counted: u64,
    /// Of before the last start.
    before: Option<Late>,
}

impl Waiting {
    /// So many events of the period that began at `period` are confirmed.
    fn confirmed(&mut self, period: Option<Timestamp>, events: u64, now: Timestamp) {
        if self.period != period {
            *self = Self { period, before: self.before.take(), ..Self::default() };
        }
        if self.marks.back().is_none_or(|(known, _)| *known < events) && events > 0 {
            let before = self.before.take().filter(|before| before.period == period);
            self.marks.push_back((events, before.map_or(now, |before| before.since)));
        }
    }

    /// Lago has counted so many.
    fn counted(&mut self, events: u64) {
        self.counted = events;
        // The last one stays, so that it is not taken for a new one.
        while self.marks.len() > 1 && self.marks.front().is_some_and(|(mark, _)| *mark <= events) {
            self.marks.pop_front();
        }
    }

    /// How long the oldest that is not counted has been waiting.
    fn oldest_millis(&self, now: Timestamp) -> i64 {
        let oldest = self.marks.iter().find(|(mark, _)| *mark > self.counted);
        oldest.map_or(0, |(_, since)| now.as_millis() - since.as_millis()).max(0)
    }
}

impl Canary {
    /// Sends one event at each interval, and looks whether Lago has counted them.
    pub(crate) async fn run(self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(LOOK_EVERY);
        let every = seconds(self.section.every_seconds);
        let look_every = every.min(LOOK_EVERY);
        let mut watch: Option<(Waiting, Option<Late>)> = None;
        let mut sent = None;
        loop {
            let millis = i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1);
            let slot = self.clock.now().as_millis().div_euclid(millis);
            if sent != Some(slot) && self.send(slot).await {
                sent = Some(slot);
            }
            // Only who sends to Lago knows what Lago has confirmed.
            if !self.books.leads() {
                if watch.take().is_some() {
                    self.metrics.canary_waits(0.0);
                }
                tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    () = tokio::time::sleep(look_every.min(ASK_AGAIN)) => continue,
                }
            }
            if watch.is_none() {
                watch = Some(self.begin().await);
            }
            if let Some((waiting, late)) = &mut watch {
                tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    () = self.look(waiting, late) => {}
                }
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep(look_every) => {}
            }
        }
    }

    /// What is waited for since before, by this replica or another one.
    async fn begin(&self) -> (Waiting, Option<Late>) {
        let late = self.late_before().await;
        if let Some(before) = &late {
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let seconds = (self.clock.now().as_millis() - before.since.as_millis()) as f64 / 1000.0;
            self.tell("usage.canary_unbilled", &before.key, seconds, 0).await;
        }
        (Waiting { before: late.clone(), ..Waiting::default() }, late)
    }

    fn name(&self) -> Option<Name> {
        Some((self.section.subscription.clone()?, self.section.code.clone()?))
    }

    /// The event of an interval: the same one when the daemon was started again within it, with the time of its first
    /// receipt. The interval may have begun before the subscription did. True when it is on disk.
    async fn send(&self, slot: i64) -> bool {
        let Some((subscription, code)) = self.name() else { return true };
        let now = self.clock.now();
        let event = serde_json::json!({
            "transaction_id": format!("canary-{slot}"),
            "external_subscription_id": subscription,
            "code": code,
            "properties": self.section.properties,
        });
        let Ok(event) = RawValue::from_string(event.to_string()) else { return true };
        let Ok(event) = admit::admit(&event, None, now) else { return true };
        match self.journal.append(event).await {
            Ok(appended) => {
                if !appended.duplicate {
                    self.metrics.canary_sent();
                }
                true
            }
            Err(error) => {
                tracing::debug!(error = %error, "the canary's event is not stored, trying again: {error}");
                false
            }
        }
    }

    async fn look(&self, waiting: &mut Waiting, late: &mut Option<Late>) {
        let Some(name) = self.name() else { return };
        if !self.suits(&name.1) {
            return;
        }
        let (period, events) = self.booked(&name);
        waiting.confirmed(period, events, self.clock.now());
        // A subscription that has ended is counted no more, and its last events wait for ever.
        let Some(customer) = self.customer(&name.0) else { return self.judge(waiting, late, false).await };
        let usage = match self.api.current_usage(&customer, &name.0).await {
            Ok(usage) => usage,
            Err(error) => {
                tracing::debug!(error = %error, "Lago does not say whether it has counted the canary: {error}");
                return self.judge(waiting, late, false).await;
            }
        };
        let period = Period { from: usage.from_datetime, to: usage.to_datetime };
        self.books.ledger().set_period(&name.0, period);
        let (period, events) = self.booked(&name);
        waiting.confirmed(period, events, self.clock.now());
        let of_code = usage.charges_usage.iter().filter(|charge| charge.billable_metric.code == name.1);
        let counted = of_code.map(|charge| charge.events_count).max().unwrap_or(0);
        waiting.counted(counted);
        self.judge(waiting, late, true).await;
    }

    /// Whether Lago says of the metric how many events it has counted in a period; said once where it does not.
    fn suits(&self, code: &str) -> bool {
        let catalogue = self.known.current().catalogue;
        let Some(metric) = catalogue.as_ref().and_then(|catalogue| catalogue.metric(code)) else { return true };
        let is_suited = metric.aggregation_type != Aggregation::UniqueCountAgg && !metric.recurring;
        if !is_suited {
            self.metrics.canary_waits(0.0);
        }
        if !is_suited && !self.is_unsuited.swap(true, Ordering::AcqRel) {
            tracing::error!(
                code,
                "the canary cannot tell whether Lago counts: {code} counts different values, or goes on from period to period. Set canary.code to another metric"
            );
        }
        is_suited
    }

    /// Nothing is said to be over that Lago has not `answered`.
    async fn judge(&self, waiting: &Waiting, late: &mut Option<Late>, answered: bool) {
        let millis = waiting.oldest_millis(self.clock.now());
        #[expect(clippy::cast_precision_loss, reason = "a metric")]
        let seconds = millis as f64 / 1000.0;
        self.metrics.canary_waits(seconds);
        let is_late = seconds >= self.section.alarm_seconds;
        match late {
            None if is_late => {
                let oldest = waiting.marks.iter().find(|(mark, _)| *mark > waiting.counted);
                let (mark, since) = oldest.copied().unwrap_or((waiting.counted, self.clock.now()));
                let Some(name) = self.name() else { return };
                let new = Late { name, period: waiting.period, since, key: format!("{mark}/{since}") };
                // Before it is told: what a start finds is told then if it was not, and nothing twice.
                self.remember(Some(&new)).await;
                if self.tell("usage.canary_unbilled", &new.key, seconds, waiting.counted).await {
                    *late = Some(new);
                }
            }
            Some(told) if !is_late && answered => {
                let is_told = self.tell("usage.canary_billed", &told.key, seconds, waiting.counted).await;
                if is_told {
                    *late = None;
                    self.remember(None).await;
                }
            }
            _ => {}
        }
    }

    /// Tells one of the two; false where it is to be told again.
    async fn tell(&self, kind: &str, key: &str, seconds: f64, lago_events: u64) -> bool {
        let data = serde_json::json!({
            "subscription": self.section.subscription,
            "code": self.section.code,
            "unbilled_seconds": seconds,
            "lago_events": lago_events,
        });
        let subject = format!("subscription/{}", self.section.subscription.as_deref().unwrap_or_default());
        tracing::warn!(seconds, "{kind}: the oldest of the canary's events waits for {seconds:.0} s to be counted");
        self.alerts.tell(kind, &subject, key, &data).await != Told::NotYet
    }

    /// What a start is to go on from.
    async fn remember(&self, late: Option<&Late>) {
        let value = late.and_then(|late| serde_json::to_vec(late).ok()).unwrap_or_default();
        if let Err(error) = self.journal.put_value(NAME, value).await {
            let error = kit::error::chain(&error);
            tracing::warn!(error = %error, "whether the canary is late is not remembered across a restart: {error}");
        }
    }

    async fn late_before(&self) -> Option<Late> {
        let stored = self.journal.read(|reader| reader.value(NAME)).await.unwrap_or_else(|error| {
            let error = kit::error::chain(&error);
            tracing::warn!(error = %error, "whether the canary was late cannot be read: {error}");
            None
        });
        let late: Option<Late> = stored.and_then(|stored| serde_json::from_slice(&stored).ok());
        late.filter(|late| self.name().as_ref() == Some(&late.name))
    }

    fn booked(&self, name: &Name) -> (Option<Timestamp>, u64) {
        let ledger = self.books.ledger();
        let current = ledger.pair(name).and_then(|pair| pair.current.as_ref());
        current.map_or((None, 0), |current| (Some(current.period.from), current.sum.events))
    }

    fn customer(&self, subscription: &str) -> Option<String> {
        let catalogue = self.known.current().catalogue?;
        let active = catalogue.subscriptions(subscription).iter().find(|own| own.terminated_at.is_none());
        active.map(|own| own.external_customer_id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn the_oldest_event_that_is_not_counted_says_how_long_it_takes() {
        let mut waiting = Waiting::default();
        let november = Some(at(1));
        waiting.confirmed(november, 1, at(100));
        waiting.confirmed(november, 1, at(130));
        assert_eq!(waiting.oldest_millis(at(160)), 60_000);
        waiting.confirmed(november, 2, at(200));
        waiting.counted(1);
        assert_eq!(waiting.oldest_millis(at(260)), 60_000);
        waiting.counted(2);
        waiting.confirmed(november, 2, at(300));
        // Also as long as Lago cannot be asked again.
        assert_eq!(waiting.oldest_millis(at(4_000)), 0);
        // In a new period both begin again.
        waiting.confirmed(Some(at(5_000)), 1, at(5_010));
        assert_eq!(waiting.oldest_millis(at(5_020)), 10_000);
        waiting.counted(1);
        assert_eq!(waiting.oldest_millis(at(5_020)), 0);
    }

    #[test]
    fn what_was_late_before_a_start_goes_on_waiting_within_its_period() {
        let name = ("s".to_owned(), "c".to_owned());
        for (period, expected) in [(Some(at(1)), 900_000), (Some(at(5_000)), 0)] {
            let before = Some(Late { name: name.clone(), period: Some(at(1)), since: at(100), key: String::new() });
            let mut waiting = Waiting { before, ..Waiting::default() };
            waiting.confirmed(None, 0, at(1_000));
            waiting.confirmed(period, 3, at(1_000));
            assert_eq!(waiting.oldest_millis(at(1_000)), expected);
            waiting.counted(3);
            waiting.confirmed(period, 4, at(1_000));
            assert_eq!(waiting.oldest_millis(at(1_010)), 10_000);
        }
    }
}
