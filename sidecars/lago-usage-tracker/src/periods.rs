//! Which usage is late where Lago's list of subscriptions does not say (v1.16): by the periods that `current_usage` tells.
//!
//! Nothing is asked where late usage is sent anyway. Otherwise an event waits until its subscription's period is known; the
//! ledger knows those of which something was sent, and of others Lago is asked, one question at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_delivery::Outcome;
use kit_journal::StoredEvent;
use kit_lago::api::{ApiError, LagoApi};
use tokio::sync::Notify;

use crate::admit::Stored;
use crate::catalogue::{Catalogue, Known};
use crate::check::{Finding, began, late};
use crate::ledger::Period;
use crate::reconcile::Books;

/// Between two questions, so that Lago comes to other things.
const PAUSE: Duration = Duration::from_millis(50);
/// After one that Lago has not answered.
const AGAIN: Duration = Duration::from_secs(2);
/// Questions about one subscription that Lago does not answer, in a row, while it takes events: then it does not tell.
const IN_VAIN: u32 = 5;
/// What Lago does not tell is asked for again after that.
const UNTOLD_MILLIS: i64 = 3_600_000;
/// No billing period is shorter than a week; a day of that is for time zones and clocks.
const SHORTEST_MILLIS: i64 = 6 * 86_400_000;
/// Subscriptions whose periods are kept, and waited for: as many as Lago's list is read of.
const MOST: usize = 100_000;

/// What is known of when an event happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happened {
    /// In the current billing period.
    InIt,
    /// Before it; when it began, or the one before it ended.
    Before(Timestamp),
    /// Lago does not tell.
    Untold,
    /// Lago is being asked: the event is to come again after that.
    Asked(Duration),
}

/// When an event of `at` happened by the period that was the current one when Lago was asked last; `None` where it has to be
/// asked again.
fn happened(at: Timestamp, period: Period, now: Timestamp) -> Option<Happened> {
    // As of list entries: Lago's ends are whole seconds.
    let begin = |from: Timestamp| if at.plus_millis(1_000) <= from { Happened::Before(from) } else { Happened::InIt };
    let next = period.to.plus_millis(1_000);
    if now < next {
        return Some(begin(period.from));
    }
    match begin(next) {
        Happened::InIt if now >= next.plus_millis(SHORTEST_MILLIS) => None,
        known => Some(known),
    }
}

/// What Lago has said of a subscription.
#[derive(Clone, Copy, Debug)]
enum Told {
    Period(Period),
    /// Nothing, at that time.
    Nothing(Timestamp),
}

#[derive(Debug, Default)]
struct State {
    told: BTreeMap<String, Told>,
    wanted: BTreeSet<String>,
    /// Questions in a row without an answer.
    in_vain: BTreeMap<String, u32>,
}

/// The periods, as the sink asks for them. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Periods {
    books: Arc<Books>,
    state: Arc<Mutex<State>>,
    asked: Arc<Notify>,
}

impl Periods {
    pub(crate) fn new(books: Arc<Books>) -> Self {
        Self { books, state: Arc::default(), asked: Arc::default() }
    }

    /// Whether usage is late where the list of subscriptions does not tell it; or it waits until Lago has.
    pub(crate) fn late(
        &self,
        event: &StoredEvent,
        catalogue: &Catalogue,
        now: Timestamp,
    ) -> Option<Result<Finding, Outcome>> {
        let stored = Stored::read(&event.body)?;
        let (id, at) = (stored.external_subscription_id.as_deref()?, stored.time()?);
        let active = catalogue.subscriptions(id).iter().find(|own| own.terminated_at.is_none())?;
        if active.current_billing_period_started_at.is_some() || !began(active, at) {
            return None;
        }
        match self.when(id, at, now) {
            Happened::InIt | Happened::Untold => None,
            Happened::Before(begin) => Some(Ok(late(at, begin))),
            Happened::Asked(wait) => {
                Some(Err(Outcome::withheld("Lago is asked for the billing period before which it may be", wait)))
            }
        }
    }

    /// When an event of this active subscription happened.
    fn when(&self, subscription: &str, at: Timestamp, now: Timestamp) -> Happened {
        let of_ledger = {
            let ledger = self.books.ledger();
            let periods = ledger.of_subscription(subscription).filter_map(|(_, pair)| pair.current.as_ref());
            periods.map(|current| current.period).max_by_key(|period| period.from)
        };
        let mut state = self.state();
        let told = state.told.get(subscription).copied();
        let of_question = told.and_then(|told| if let Told::Period(period) = told { Some(period) } else { None });
        let newest = of_ledger.into_iter().chain(of_question).max_by_key(|period| period.from);
        if let Some(happened) = newest.and_then(|period| happened(at, period, now)) {
            return happened;
        }
        if matches!(told, Some(Told::Nothing(asked)) if asked.plus_millis(UNTOLD_MILLIS) > now && asked <= now) {
            return Happened::Untold;
        }
        if state.wanted.len() < MOST {
            state.wanted.insert(subscription.to_owned());
            self.asked.notify_one();
        }
        let waiting = u32::try_from(state.wanted.len()).unwrap_or(u32::MAX);
        Happened::Asked((PAUSE * 2 * waiting).clamp(Duration::from_millis(200), Duration::from_secs(60)))
    }

    /// Asks Lago for what is wanted.
    pub(crate) async fn run(
        self,
        (api, known, clock): (LagoApi, Known, SharedClock),
        stop: StopToken,
    ) -> Result<(), std::convert::Infallible> {
        let mut last = String::new();
        loop {
            // In turn: one that Lago does not answer about keeps no other one waiting.
            let next = {
                let state = self.state();
                let wanted = &state.wanted;
                let after = wanted.range::<str, _>((Bound::Excluded(last.as_str()), Bound::Unbounded)).next();
                after.or_else(|| wanted.first()).cloned()
            };
            let Some(subscription) = next else {
                tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    () = self.asked.notified() => continue,
                }
            };
            let pause = tokio::select! {
                () = stop.stopped() => return Ok(()),
                pause = self.ask(&api, &known, &clock, &subscription) => pause,
            };
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            last = subscription;
        }
    }

    /// One question; how long until the next one.
    async fn ask(&self, api: &LagoApi, known: &Known, clock: &SharedClock, subscription: &str) -> Duration {
        let customer = known.current().catalogue.and_then(|catalogue| {
            let active = catalogue.subscriptions(subscription).iter().find(|own| own.terminated_at.is_none());
            active.map(|own| own.external_customer_id.clone())
        });
        let answer = match &customer {
            Some(customer) => api.current_usage(customer, subscription).await,
            None => Err(ApiError::NotFound),
        };
        let now = clock.now();
        let mut state = self.state();
        let told = match answer {
            Ok(usage) => Told::Period(Period { from: usage.from_datetime, to: usage.to_datetime }),
            // The subscription has just ended; v1.16 does not find customers whose id holds a dot; the key has no right.
            Err(ApiError::NotAllowed | ApiError::NotFound | ApiError::Denied(403)) => Told::Nothing(now),
            Err(error) => {
                let in_vain = state.in_vain.entry(subscription.to_owned()).or_default();
                *in_vain += 1;
                // Lago is away, for all of them.
                if matches!(error, ApiError::Unreachable(_) | ApiError::Denied(_)) || *in_vain < IN_VAIN {
                    return AGAIN;
                }
                Told::Nothing(now)
            }
        };
        if let Told::Nothing(_) = told {
            tracing::warn!(
                subscription = %subscription,
                "Lago does not tell the billing period of {subscription:?}: its usage is sent, late or not"
            );
        }
        state.wanted.remove(subscription);
        state.in_vain.remove(subscription);
        if state.told.len() >= MOST && !state.told.contains_key(subscription) {
            // Whichever: it is asked for again when it is wanted.
            state.told.pop_first();
        }
        state.told.insert(subscription.to_owned(), told);
        PAUSE
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_of_before_the_current_period_is_late_and_an_ended_one_says_so_for_a_week() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let period = Period { from: time("2026-10-01T00:00:00Z"), to: time("2026-10-31T23:59:59Z") };
        let (begin, end) = (period.from, time("2026-11-01T00:00:00Z"));
        let during = "2026-10-20T12:00:00Z";
        let after = "2026-11-02T12:00:00Z";
        let weeks_after = "2026-11-20T12:00:00Z";
        for (at, now, expected) in [
            ("2026-10-02T00:00:00Z", during, Some(Happened::InIt)),
            ("2026-10-01T00:00:00Z", during, Some(Happened::InIt)),
            ("2026-09-30T23:59:59.500Z", during, Some(Happened::InIt)),
            ("2026-09-30T23:59:59Z", during, Some(Happened::Before(begin))),
            ("2026-01-01T00:00:00Z", during, Some(Happened::Before(begin))),
            ("2026-10-20T00:00:00Z", after, Some(Happened::Before(end))),
            ("2026-11-01T00:00:00Z", after, Some(Happened::InIt)),
            ("2026-11-19T00:00:00Z", weeks_after, None),
            ("2026-10-20T00:00:00Z", weeks_after, Some(Happened::Before(end))),
        ] {
            assert_eq!(happened(time(at), period, time(now)), expected, "{at} at {now}");
        }
    }
}
