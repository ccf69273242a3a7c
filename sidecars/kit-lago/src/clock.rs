//! Lago's clock has no answer of its own in any version: what can be seen through the API is what it has done, and what it
//! should have done by now and has not. Its jobs run in the worker, so either of the two may be what stands still.
//!
//! Source: getlago/lago-api `clock.rb`, `app/services/subscriptions/activate_all_pending_service.rb`,
//! `app/jobs/clock/mark_invoices_as_payment_overdue_job.rb` and `app/models/invoice.rb` (`ready_to_be_finalized`), read at
//! v1.16.0 and at the head of 2026-08-21.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use kit::clock::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use crate::api::{ApiError, LagoApi};
use crate::management::Object;

/// Subscriptions are activated every five minutes; a worker may be behind.
const ACTIVATED_WITHIN: Duration = Duration::from_secs(3_600);
/// Invoices are finalised and marked overdue every hour, by the date of the customer's time zone.
const DATED_WITHIN: Duration = Duration::from_secs(3 * 86_400);
/// Subscriptions whose last billing is looked for: each is a question.
const SAMPLE: usize = 3;

/// Something that only the clock does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// When it was done, or was to be done.
    pub at: Timestamp,
    /// What, for people.
    pub what: String,
}

/// What can be seen of the clock.
#[derive(Debug, Default)]
pub struct ClockTraces {
    /// The latest that it has done: it was alive after that moment.
    pub done: Option<Trace>,
    /// What it should have done long ago, the oldest first.
    pub undone: Vec<Trace>,
    /// What could not be looked at, and why; nothing where the time was over.
    pub unseen: Vec<(&'static str, Option<ApiError>)>,
}

impl LagoApi {
    /// Looks for what the clock has done and has not: eight questions at most, all within this time. Sees nothing where nothing
    /// was to be done, as in an organisation without subscriptions; and what one question does not tell costs nothing of what the
    /// others do.
    pub async fn clock_traces(&self, now: Timestamp, within: Duration) -> ClockTraces {
        let until = Instant::now() + within;
        let list = async |list: &str| soon(until, self.first_page(list)).await;
        let mut traces = ClockTraces::default();
        match list("subscriptions?status[]=pending&per_page=100").await {
            Ok(all) => traces.undone.extend(all.iter().filter_map(|one| pending(one, now))),
            Err(error) => traces.unseen.push(("pending subscriptions", error)),
        }
        match list("invoices?status=draft&per_page=100").await {
            Ok(all) => traces.undone.extend(all.iter().filter_map(|one| draft(one, now))),
            Err(error) => traces.unseen.push(("drafts of invoices", error)),
        }
        // By themselves: where nobody pays through Lago, the overdue ones fill the first page.
        for is_overdue in [false, true] {
            let query = "invoices?status=finalized&payment_status=pending&per_page=100&payment_overdue=";
            match list(&format!("{query}{is_overdue}")).await {
                Ok(all) => all.iter().filter_map(|one| unpaid(one, now)).for_each(|(trace, is_done)| {
                    if is_done {
                        traces.see(trace)
                    } else if !traces.undone.contains(&trace) {
                        traces.undone.push(trace)
                    }
                }),
                Err(error) => traces.unseen.push(("unpaid invoices", error)),
            }
        }
        let subscriptions = match list("subscriptions?per_page=100").await {
            Ok(subscriptions) => subscriptions,
            Err(error) => {
                traces.unseen.push(("subscriptions", error));
                Vec::new()
            }
        };
        for subscription in subscriptions.iter().take(SAMPLE) {
            let ids = (text(subscription, "external_customer_id"), text(subscription, "external_id"));
            let (Some(customer), Some(id)) = ids else { continue };
            let periods = match soon(until, self.past_usage(customer, id)).await {
                Ok(periods) => periods,
                // Versions before it, and ids with a dot.
                Err(Some(ApiError::NotFound | ApiError::NotAllowed)) => continue,
                Err(error) => {
                    traces.unseen.push(("invoices of past periods", error));
                    break;
                }
            };
            if let Some(period) =
                periods.iter().filter(|period| period.to_datetime <= now).max_by_key(|p| p.to_datetime)
            {
                let what = format!("an invoice for the period of subscription {id} that ended then");
                traces.see(Trace { at: period.to_datetime, what });
            }
        }
        traces.undone.sort_by_key(|trace| trace.at);
        traces
    }
}

/// An answer by then, or none.
async fn soon<T>(until: Instant, question: impl Future<Output = Result<T, ApiError>>) -> Result<T, Option<ApiError>> {
    tokio::time::timeout_at(until, question).await.map_err(|_| None)?.map_err(Some)
}

impl ClockTraces {
    fn see(&mut self, trace: Trace) {
        if self.done.as_ref().is_none_or(|known| known.at < trace.at) {
            self.done = Some(trace);
        }
    }
}

/// A subscription that should have been activated. One that waits for the end of another is not: it has a plan before it.
fn pending(subscription: &Object, now: Timestamp) -> Option<Trace> {
    if text(subscription, "previous_plan_code").is_some() {
        return None;
    }
    let at: Timestamp = text(subscription, "subscription_at")?.parse().ok()?;
    let name = text(subscription, "external_id").unwrap_or("without a name");
    late(at, ACTIVATED_WITHIN, now, || format!("subscription {name} is pending and was to begin then"))
}

/// A draft whose day has come.
fn draft(invoice: &Object, now: Timestamp) -> Option<Trace> {
    let day = text(invoice, "expected_finalization_date").or_else(|| text(invoice, "issuing_date"))?;
    late(day_of(day)?, DATED_WITHIN, now, || format!("invoice {} is still a draft", number(invoice)))
}

/// An invoice that was to be paid: marked as overdue by the clock, or left.
fn unpaid(invoice: &Object, now: Timestamp) -> Option<(Trace, bool)> {
    let at = day_of(text(invoice, "payment_due_date")?)?;
    if invoice.get("payment_overdue").and_then(Value::as_bool)? {
        // The mark was set after that day, nobody knows how long after it.
        return Some((Trace { at, what: format!("invoice {} marked as overdue", number(invoice)) }, true));
    }
    if text(invoice, "payment_dispute_lost_at").is_some() {
        return None;
    }
    let what = || format!("invoice {} was to be paid then and is not marked as overdue", number(invoice));
    late(at, DATED_WITHIN, now, what).map(|trace| (trace, false))
}

fn late(at: Timestamp, within: Duration, now: Timestamp, what: impl FnOnce() -> String) -> Option<Trace> {
    (now.since(at) > within).then(|| Trace { at, what: what() })
}

fn number(invoice: &Object) -> &str {
    text(invoice, "number").or_else(|| text(invoice, "lago_id")).unwrap_or("without a number")
}

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The beginning of a day, in UTC.
fn day_of(text: &str) -> Option<Timestamp> {
    let day: Date = text.parse().ok()?;
    let begins = day.to_zoned(TimeZone::UTC).ok()?;
    Some(Timestamp::from_millis(begins.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn only_what_the_clock_should_have_done_long_ago_counts_against_it() {
        let subscription = |at: &str, before: Value| {
            let known = json!({ "external_id": "s", "subscription_at": at, "previous_plan_code": before });
            pending(&object(known), now()).is_some()
        };
        assert!(subscription("2026-11-22T10:00:00Z", Value::Null));
        assert!(!subscription("2026-11-22T11:30:00Z", Value::Null), "it may be activated any minute");
        assert!(!subscription("2027-01-01T00:00:00Z", Value::Null));
        assert!(!subscription("2026-01-01T00:00:00Z", json!("growth")), "a downgrade waits for its day");

        let is_late = |invoice: Value| draft(&object(invoice), now()).is_some();
        assert!(is_late(json!({ "issuing_date": "2026-11-10" })));
        assert!(!is_late(json!({ "issuing_date": "2026-11-20" })));
        assert!(!is_late(json!({ "issuing_date": "2026-11-01", "expected_finalization_date": "2026-12-01" })));

        let overdue = |invoice: Value| unpaid(&object(invoice), now()).map(|(_, is_done)| is_done);
        assert_eq!(overdue(json!({ "payment_due_date": "2026-11-10", "payment_overdue": false })), Some(false));
        assert_eq!(overdue(json!({ "payment_due_date": "2026-11-10", "payment_overdue": true })), Some(true));
        assert_eq!(overdue(json!({ "payment_due_date": "2026-11-21", "payment_overdue": false })), None);
        let lost = json!({ "payment_due_date": "2026-11-10", "payment_overdue": false, "payment_dispute_lost_at": "2026-11-12T00:00:00Z" });
        assert_eq!(overdue(lost), None);
    }
}
