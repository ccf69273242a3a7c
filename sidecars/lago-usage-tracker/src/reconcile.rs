//! Whether Lago has counted what it has confirmed: the ledger beside `current_usage`, and beside the invoices of periods
//! that have ended (`past`). Subscriptions that ended long ago are forgotten (`forget`).
//!
//! Lago counts a while after it has taken events, and caches what it has counted. So what was booked a settling time ago
//! is compared, and whatever came since is left out.

mod books;
mod forget;
mod past;
mod round;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_journal::Journal;
use kit_lago::api::{Aggregation, ApiError, ChargeUsage, CurrentUsage, LagoApi};
use kit_lago::usage::Quantity;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::alerts::{Alerts, Told};
use crate::catalogue::{Catalogue, Known};
use crate::config::ReconcileSection;
use crate::ledger::{Booked, Name, Period, Sum};
use crate::metrics::UsageMetrics;
pub(crate) use books::{Books, Entry, entry};
use round::{GaveUpAt, Round, Unanswered};
pub(crate) use state::State;

/// Between two questions, so that Lago comes to other things.
const PAUSE: Duration = Duration::from_millis(50);
/// At least this long between two questions for billing periods.
const LEARN_EVERY: Duration = Duration::from_secs(2);
/// What was equal is looked at again after this long, changed or not.
const EQUAL_FOR_MILLIS: i64 = 3_600_000;
/// Drifts told anew in one comparison at most; the metric counts all.
const TOLD_AT_ONCE: usize = 100;

/// What the comparisons have found.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) pairs: BTreeMap<Name, Compared>,
    /// Of the last period of each that has ended.
    pub(crate) ended: BTreeMap<Name, past::Ended>,
    /// Events missing at the last one, and pairs of which something is, units alone among them.
    missing: (u64, usize),
    /// When the last comparison began that has gone through to its end.
    pub(crate) compared_at: Option<Timestamp>,
    /// What Lago has not answered in the last one.
    pub(crate) failed: Option<String>,
    /// Of current periods, and of those that have ended.
    gave_up_at: [GaveUpAt; 2],
}

/// One pair's comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    pub(crate) state: State,
    pub(crate) at: Timestamp,
    pub(crate) lago: Option<Counted>,
    pub(crate) missing_events: u64,
    pub(crate) surplus_events: u64,
}

/// What Lago has counted of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) events: u64,
    pub(crate) units: Quantity,
}

/// What was booked when a comparison began, and in which period.
type Then = (Option<Timestamp>, Sum);

/// What is to be compared.
struct Ours<'a> {
    /// Booked a settling time before Lago was asked.
    then: &'a Sum,
    /// Booked when Lago had answered.
    now: &'a Sum,
    /// Events that are not in these, and may be.
    unsure: u64,
    /// Lago may have more for good reasons: the metric goes on from period to period.
    carries_over: bool,
    /// Lago's units are ours, if the events are.
    exact_units: bool,
    /// Lago counts events. Of metrics that count different values it says the number of values in both places.
    counts_events: bool,
}

impl<'a> Ours<'a> {
    fn new((then, now): (&'a Sum, &'a Sum), unsure: u64, catalogue: Option<&Catalogue>, code: &str) -> Self {
        let metric = catalogue.and_then(|catalogue| catalogue.metric(code));
        Self {
            then,
            now,
            unsure,
            carries_over: metric.is_some_and(|metric| metric.recurring),
            exact_units: metric.is_some_and(|metric| !metric.recurring && metric.rounding_function.is_none()),
            counts_events: metric.is_none_or(|metric| metric.aggregation_type != Aggregation::UniqueCountAgg),
        }
    }
}

impl Compared {
    /// Without numbers of Lago's.
    fn of_state(state: State, at: Timestamp) -> Self {
        Self { state, at, lago: None, missing_events: 0, surplus_events: 0 }
    }
}

fn compare(ours: &Ours<'_>, lago: Option<Counted>, at: Timestamp) -> Compared {
    let Some(lago) = lago else { return Compared::of_state(State::NotCharged, at) };
    if !ours.counts_events {
        return Compared { state: State::Unknown, at, lago: Some(lago), missing_events: 0, surplus_events: 0 };
    }
    // Some may have been taken back meanwhile.
    let missing_events = ours.then.events.min(ours.now.events).saturating_sub(lago.events);
    let is_quiet = ours.then == ours.now;
    let surplus_events = if ours.carries_over { 0 } else { lago.events.saturating_sub(ours.now.events) };
    let units = ours.now.units.as_ref().filter(|_| ours.exact_units && lago.events == ours.now.events);
    let state = if missing_events > 0 {
        State::Missing
    } else if !is_quiet {
        State::Settling
    } else if surplus_events > 0 {
        if surplus_events <= ours.unsure { State::Uncertain } else { State::Surplus }
    } else {
        // Of charges that are paid in advance Lago tells a sum below zero as zero (getlago/lago-api,
        // `billable_metrics/aggregations/base_service.rb`, `handle_in_advance_current_usage`).
        let is_told = |units: &&Quantity| !(units.is_negative() && lago.units.is_zero());
        match units.filter(is_told).map(|units| units.cmp(&lago.units)) {
            Some(std::cmp::Ordering::Greater) => State::Missing,
            Some(std::cmp::Ordering::Less) => State::Surplus,
            _ => State::Equal,
        }
    };
    let surplus_events = if is_quiet { surplus_events } else { 0 };
    Compared { state, at, lago: Some(lago), missing_events, surplus_events }
}

fn period(usage: &CurrentUsage) -> Period {
    Period { from: usage.from_datetime, to: usage.to_datetime }
}

/// What Lago has counted of a metric: of several charges of it the one that has counted most, because a charge may leave
/// events out.
fn counted<'a>(charges: impl IntoIterator<Item = &'a ChargeUsage>, code: &str) -> Option<Counted> {
    let of_code = charges.into_iter().filter(|charge| charge.billable_metric.code == code);
    let most = of_code.max_by_key(|charge| charge.events_count)?;
    Some(Counted { events: most.events_count, units: most.units.clone() })
}

/// Compares again and again.
pub(crate) struct Reconciler {
    pub(crate) api: LagoApi,
    pub(crate) journal: Journal,
    pub(crate) clock: SharedClock,
    pub(crate) known: Known,
    pub(crate) books: Arc<Books>,
    pub(crate) section: ReconcileSection,
    pub(crate) metrics: UsageMetrics,
    pub(crate) alerts: Alerts,
    /// Somebody wants it now.
    pub(crate) asked: Arc<Notify>,
    /// Subscriptions whose period Lago has not told since the last comparison.
    pub(crate) in_vain: Mutex<BTreeSet<String>>,
    /// When it was last looked for what may be forgotten.
    pub(crate) looked_to_forget: Mutex<Option<Instant>>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Compare everything.
    All,
    /// Compare what may have changed.
    WhatChanged,
    /// Ask for billing periods that are not known.
    Periods,
}

impl Reconciler {
    pub(crate) async fn run(self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(300));
        let (every, settling) = (seconds(self.section.every_seconds), seconds(self.section.settling_seconds));
        let mut next = Instant::now() + every;
        loop {
            let wanted = tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.asked.notified() => Wanted::All,
                () = self.books.without_period.notified() => Wanted::Periods,
                () = tokio::time::sleep_until(next), if !every.is_zero() => Wanted::WhatChanged,
            };
            if self.books.leads() {
                tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    () = self.look(wanted, settling) => {}
                }
            } else {
                self.stand_by();
                // Who asked is answered when this replica compares: at a start, say.
                if wanted == Wanted::All {
                    tokio::time::sleep(PAUSE).await;
                    self.asked.notify_one();
                    continue;
                }
            }
            if wanted != Wanted::Periods {
                next = Instant::now() + every;
            }
        }
    }

    /// Another replica compares, and says what is missing.
    fn stand_by(&self) {
        *self.books.results() = Results::default();
        for state in State::ALL {
            self.metrics.compared(state, 0);
        }
        self.metrics.missing(0);
    }

    async fn look(&self, wanted: Wanted, settling: Duration) {
        if wanted != Wanted::Periods {
            self.in_vain().clear();
            return self.round(wanted == Wanted::All, settling).await;
        }
        // Before much has come that waits for it.
        self.learn(&mut Unanswered::default()).await;
        tokio::time::sleep(LEARN_EVERY).await;
    }

    fn in_vain(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One comparison: of everything where somebody `asked`, of what may have changed otherwise.
    async fn round(&self, asked: bool, settling: Duration) {
        let began = self.clock.now();
        let round = self.compare_all(asked, settling).await;
        self.finish(began, &round.unanswered);
        self.tell_all(&round.drifted).await;
        self.forget().await;
    }

    /// What Lago does not say of one subscription keeps the others out of nothing.
    async fn compare_all(&self, all: bool, settling: Duration) -> Round {
        let mut round = Round::default();
        // What waits for its period cannot be compared.
        self.learn(&mut round.unanswered).await;
        let then = self.snapshot(all, self.clock.now());
        let subscriptions: BTreeSet<&str> = then.keys().map(|(subscription, _)| subscription.as_str()).collect();
        if !subscriptions.is_empty() {
            tokio::time::sleep(settling).await;
        }
        let mut subscriptions: Vec<&str> = subscriptions.into_iter().collect();
        self.books.results().gave_up_at[0].order(&mut subscriptions, |own| own);
        round.unanswered.begin_anew();
        for subscription in subscriptions {
            let told = round.unanswered.note(self.ask(subscription).await);
            round.drifted.extend(self.compare_subscription(subscription, told.as_ref().map(Option::as_ref), &then));
            if round.unanswered.gives_up() {
                self.books.results().gave_up_at[0].note(subscription);
                break;
            }
        }
        self.compare_ended(all, settling, &mut round).await;
        round
    }

    /// Asks for the periods that are not known, once until the next comparison.
    async fn learn(&self, unanswered: &mut Unanswered) {
        for subscription in self.without_period() {
            let told = unanswered.note(self.ask(&subscription).await).flatten().map(|usage| period(&usage));
            let is_told = told.is_some_and(|period| {
                let mut ledger = self.books.ledger();
                ledger.set_period(&subscription, period);
                // Lago may not know yet that a period has ended.
                !ledger.of_subscription(&subscription).any(|(_, pair)| pair.lacks_a_period(self.clock.now()))
            });
            if !is_told {
                self.in_vain().insert(subscription);
            }
            if unanswered.gives_up() {
                break;
            }
        }
    }

    fn without_period(&self) -> BTreeSet<String> {
        let now = self.clock.now();
        let ledger = self.books.ledger();
        let in_vain = self.in_vain();
        let without = ledger.pairs(None).filter(|(_, pair)| pair.lacks_a_period(now));
        let subscriptions = without.map(|((subscription, _), _)| subscription);
        subscriptions.filter(|subscription| !in_vain.contains(*subscription)).cloned().collect()
    }

    /// What was booked before Lago is asked, of the pairs that are to be compared.
    fn snapshot(&self, all: bool, now: Timestamp) -> BTreeMap<Name, Then> {
        let ledger = self.books.ledger();
        let results = self.books.results();
        let is_due = |name: &Name, changed_at: Timestamp| {
            let Some(last) = results.pairs.get(name).filter(|_| !all) else { return true };
            last.state != State::Equal || changed_at >= last.at || last.at.plus_millis(EQUAL_FOR_MILLIS) <= now
        };
        let due = ledger.pairs(None).filter(|(name, pair)| is_due(name, pair.changed_at));
        let then = |current: &Booked| (Some(current.period.from), current.sum.clone());
        due.map(|(name, pair)| (name.clone(), pair.current.as_ref().map(then).unwrap_or_default())).collect()
    }

    /// What Lago says of a subscription; `None` where it has no active one of this name, or never tells.
    async fn ask(&self, subscription: &str) -> Result<Option<CurrentUsage>, ApiError> {
        let catalogue = self.known.current().catalogue;
        let customer = catalogue.as_ref().and_then(|catalogue| {
            let active = catalogue.subscriptions(subscription).iter().find(|own| own.terminated_at.is_none());
            active.map(|own| own.external_customer_id.clone())
        });
        let Some(customer) = customer else { return Ok(None) };
        tokio::time::sleep(PAUSE).await;
        match self.api.current_usage(&customer, subscription).await {
            Ok(usage) => Ok(Some(usage)),
            // v1.16 does not find customers whose id holds a dot.
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the pairs of which something is missing. `told` is what Lago says; without an answer what was missing stays
    /// so, because nothing says that it has been counted.
    fn compare_subscription(
        &self,
        subscription: &str,
        told: Option<Option<&CurrentUsage>>,
        then: &BTreeMap<Name, Then>,
    ) -> Vec<Drift> {
        let usage = told.flatten();
        let at = self.clock.now();
        let catalogue = self.known.current().catalogue;
        let mut ledger = self.books.ledger();
        let period = usage.map(period);
        if let Some(period) = period {
            ledger.set_period(subscription, period);
        }
        let mut missing = Vec::new();
        let mut results = self.books.results();
        for (name, pair) in ledger.of_subscription(subscription) {
            let Some((period_then, before)) = then.get(name) else { continue };
            if told.is_none() && results.pairs.get(name).is_some_and(|last| last.state == State::Missing) {
                continue;
            }
            // What was booked before is of the period that was the current one then.
            let is_of_another = *period_then != period.map(|period| period.from);
            let now = pair.current_sum().cloned().unwrap_or_default();
            let nothing = Sum::default();
            let then = if is_of_another { &nothing } else { before };
            let unsure = pair.current.as_ref().map_or(0, |current| current.unsure);
            let ours = Ours::new((then, &now), unsure, catalogue.as_deref(), &name.1);
            let compared = match usage {
                Some(usage) => compare(&ours, counted(&usage.charges_usage, &name.1), at),
                None => Compared::of_state(State::Unknown, at),
            };
            if let Some(current) = pair.current.as_ref().filter(|_| compared.state == State::Missing) {
                missing.push(Drift::new(name, current, &compared));
            }
            results.pairs.insert(name.clone(), compared);
        }
        missing
    }

    fn finish(&self, began: Timestamp, unanswered: &Unanswered) {
        let mut results = self.books.results();
        if unanswered.is_whole() {
            results.compared_at = Some(began);
        }
        let failed = unanswered.sentence();
        let failed_before = std::mem::replace(&mut results.failed, failed.clone());
        if let Some(error) = failed.filter(|_| failed_before.is_none()) {
            tracing::warn!(error = %error, "not everything that Lago has counted can be compared: {error}");
        }
        let ended = results.ended.values().map(|ended| &ended.compared);
        let all: Vec<&Compared> = results.pairs.values().chain(ended).collect();
        for state in State::ALL {
            self.metrics.compared(state, all.iter().filter(|compared| compared.state == state).count());
        }
        let unaccepted = all.iter().filter(|compared| compared.state != State::Accepted);
        let missing = unaccepted.map(|compared| compared.missing_events).sum();
        self.metrics.missing(missing);
        self.metrics.uninvoiced(past::uninvoiced(results.ended.values()).as_secs_f64());
        let pairs = all.iter().filter(|compared| compared.state == State::Missing).count();
        let before = std::mem::replace(&mut results.missing, (missing, pairs));
        if missing == 0 && pairs > before.1 {
            tracing::warn!(
                count = pairs,
                "of {pairs} subscriptions' metrics Lago has counted every event and fewer units than it has confirmed: see `outrigger usage reconcile`"
            );
        } else if missing > before.0 {
            tracing::warn!(
                count = missing,
                "{missing} events that Lago has confirmed are not in what it has counted: see `outrigger usage reconcile`"
            );
        } else if pairs == 0 && before.1 > 0 {
            tracing::info!("Lago has counted everything that it has confirmed");
        }
    }

    /// Tells of what has not been told yet. What is left is missing at the next comparison too.
    async fn tell_all(&self, drifted: &[Drift]) {
        let mut appended = 0;
        for drift in drifted {
            match self.tell(drift).await {
                Told::Before => {}
                Told::Now => appended += 1,
                // The journal takes nothing.
                Told::NotYet => return,
            }
            if appended == TOLD_AT_ONCE {
                return;
            }
        }
    }

    /// Tells of a pair of which something is missing, once for each amount.
    async fn tell(&self, Drift { name, booked, compared }: &Drift) -> Told {
        let (lago, period) = (compared.lago.as_ref(), booked.period);
        let data = serde_json::json!({
            "subscription": name.0,
            "code": name.1,
            "from": period.from,
            "to": period.to,
            "events": booked.sum.events,
            "units": booked.sum.units,
            "lago_events": lago.map(|lago| lago.events),
            "lago_units": lago.map(|lago| &lago.units),
            "missing_events": compared.missing_events,
        });
        // Lago's units go on changing; where only they say what is missing, they are the amount.
        let units = lago.filter(|_| compared.missing_events == 0).map(|lago| lago.units.to_string());
        let amount = (compared.missing_events, units);
        let key = serde_json::json!([name, period.from, amount]).to_string();
        self.alerts.tell("usage.drift", &format!("subscription/{}", name.0), &key, &data).await
    }
}

/// Something is missing.
struct Drift {
    name: Name,
    booked: Booked,
    compared: Compared,
}

impl Drift {
    fn new(name: &Name, booked: &Booked, compared: &Compared) -> Self {
        Self { name: name.clone(), booked: booked.clone(), compared: compared.clone() }
    }
}

#[cfg(test)]
mod over_tests;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sum(events: u64, units: Option<&str>) -> Sum {
        Sum { events, units: units.map(|units| units.parse().unwrap()) }
    }

    fn state(then: &Sum, now: &Sum, lago: Option<(u64, &str)>, carries_over: bool) -> (State, u64, u64) {
        let ours = Ours { then, now, unsure: 1, carries_over, exact_units: !carries_over, counts_events: true };
        let lago = lago.map(|(events, units)| Counted { events, units: units.parse().unwrap() });
        let compared = compare(&ours, lago, Timestamp::default());
        (compared.state, compared.missing_events, compared.surplus_events)
    }

    #[test]
    fn only_what_is_old_enough_can_be_missing() {
        let (ten, twelve) = (sum(10, Some("1.5")), sum(12, Some("1.8")));
        let less = sum(10, Some("-1"));
        for (then, now, lago, expected) in [
            (&ten, &ten, Some((10, "1.50")), (State::Equal, 0, 0)),
            (&ten, &ten, Some((9, "1.4")), (State::Missing, 1, 0)),
            (&ten, &ten, Some((11, "1.7")), (State::Uncertain, 0, 1)),
            (&ten, &ten, Some((12, "1.7")), (State::Surplus, 0, 2)),
            (&ten, &ten, Some((10, "1.4")), (State::Missing, 0, 0)),
            (&ten, &ten, Some((10, "1.6")), (State::Surplus, 0, 0)),
            (&ten, &ten, None, (State::NotCharged, 0, 0)),
            (&less, &less, Some((10, "0")), (State::Equal, 0, 0)),
            (&less, &less, Some((10, "-1")), (State::Equal, 0, 0)),
            (&less, &less, Some((10, "-2")), (State::Missing, 0, 0)),
            (&less, &less, Some((10, "0.5")), (State::Surplus, 0, 0)),
            // Lago has not counted the last two, or one of them, or both.
            (&ten, &twelve, Some((10, "1.5")), (State::Settling, 0, 0)),
            (&ten, &twelve, Some((12, "1.8")), (State::Settling, 0, 0)),
            (&ten, &twelve, Some((13, "1.8")), (State::Settling, 0, 0)),
            (&ten, &twelve, Some((8, "1")), (State::Missing, 2, 0)),
        ] {
            assert_eq!(state(then, now, lago, false), expected, "{lago:?}");
        }
    }

    #[test]
    fn a_metric_that_carries_over_has_more_and_units_that_are_not_known_are_not_compared() {
        let ten = sum(10, Some("1.5"));
        assert_eq!(state(&ten, &ten, Some((25, "9")), true), (State::Equal, 0, 0));
        assert_eq!(state(&ten, &ten, Some((9, "9")), true), (State::Missing, 1, 0));
        let unknown = sum(10, None);
        assert_eq!(state(&unknown, &unknown, Some((10, "7")), false), (State::Equal, 0, 0));
    }

    #[test]
    fn what_is_taken_back_meanwhile_is_not_missing_and_values_are_no_events() {
        let (ten, nine) = (sum(10, None), sum(9, None));
        assert_eq!(state(&ten, &nine, Some((9, "9")), false), (State::Settling, 0, 0));
        let ours =
            Ours { then: &ten, now: &ten, unsure: 0, carries_over: false, exact_units: true, counts_events: false };
        let lago = Some(Counted { events: 3, units: "3".parse().unwrap() });
        let compared = compare(&ours, lago, Timestamp::default());
        assert_eq!((compared.state, compared.missing_events), (State::Unknown, 0));
    }

    #[test]
    fn of_several_charges_the_one_that_counts_most_is_ours() {
        let usage: CurrentUsage = serde_json::from_value(serde_json::json!({
            "from_datetime": "2026-11-01T00:00:00Z", "to_datetime": "2026-11-30T23:59:59Z",
            "charges_usage": [
                { "units": "3.0", "events_count": 3, "billable_metric": { "code": "a" } },
                { "units": "5.0", "events_count": 5, "billable_metric": { "code": "a" } },
                { "units": "9.0", "events_count": 9, "billable_metric": { "code": "b" } },
            ],
        }))
        .unwrap();
        assert_eq!(counted(&usage.charges_usage, "a").unwrap().events, 5);
        assert_eq!(counted(&usage.charges_usage, "c"), None);
    }
}
