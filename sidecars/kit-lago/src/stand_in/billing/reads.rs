//! The reading half of the API: events, subscriptions, customers and current usage.
//!
//! Source: getlago/lago-api controllers of `app/controllers/api/v1/` and queries of `app/queries/`
//! at v1.16.0 and at the head of 2026-08-21.

use std::cmp::Reverse;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::answer::{Answer, Page};
use super::catalogue::{Invoice, Subscription, SubscriptionStatus};
use super::period;
use super::profile::Profile;
use super::state::Books;
use super::timestamp::micros_of;
use super::{usage, wire};

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Events,
    Event(String),
    Subscriptions,
    Subscription(String),
    Customer(String),
    CurrentUsage { external_customer_id: String },
    PastUsage { external_customer_id: String },
    Invoice(String),
    Invoices,
    AppliedCoupons,
    PublicKey,
}

/// What it is read from.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) profile: Profile,
    pub(super) books: &'a Books,
    pub(super) now_micros: i64,
    pub(super) usage_lag: Duration,
    pub(super) no_active_subscription: bool,
}

impl<'a> View<'a> {
    fn usage_books(&self) -> usage::Books<'a> {
        usage::Books {
            profile: self.profile,
            catalogue: &self.books.catalogue,
            ledger: &self.books.ledger,
            now_micros: self.now_micros,
            processed_until_micros: self.now_micros.saturating_sub(micros_of(self.usage_lag)),
        }
    }
}

/// The parameters of a request's query.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        Self(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The last value of a parameter, as Rails takes it; an empty one counts as absent.
    fn get(&self, name: &str) -> Option<&str> {
        let last = self.0.iter().rev().find(|(known, _)| known == name);
        last.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn page(&self) -> Page {
        Page::of(self.get("page"), self.get("per_page"))
    }
}

pub(super) fn answer(view: View<'_>, read: &Read, query: &Query) -> Answer {
    match read {
        Read::Events => events(&view, query),
        Read::Event(transaction_id) => event(&view, transaction_id),
        Read::Subscriptions => subscriptions(&view, query),
        Read::Subscription(external_id) => subscription(&view, external_id, query),
        Read::Customer(external_id) => {
            let customer = view.books.catalogue.customer(external_id);
            found("customer", customer.map(|customer| customer.to_json()))
        }
        Read::CurrentUsage { external_customer_id } => current_usage(&view, external_customer_id, query),
        Read::PastUsage { external_customer_id } => past_usage(&view, external_customer_id, query),
        Read::PublicKey => match &view.books.public_pem {
            Some(pem) => {
                let key = crate::stand_in::encode_public_key_answer(pem);
                Answer::json(200, &json!({ "webhook": { "public_key": key } }))
            }
            // The real one does not start without a key.
            None => Answer::bare(500),
        },
        // Of the filters only one: nothing here is paid for.
        Read::Invoices => {
            let all = view.books.catalogue.invoices.iter().map(Invoice::to_json);
            let status = query.get("status");
            let wanted = all.filter(|invoice| status.is_none_or(|status| invoice["status"] == status));
            list("invoices", wanted.collect(), query.page())
        }
        // v1.16.0 does not know the filter by code.
        Read::AppliedCoupons => {
            let code = query.get("coupon_code[]").filter(|_| view.profile != Profile::V1_16);
            let applied = view.books.managed.applied_coupons();
            let wanted = applied.filter(|applied| code.is_none_or(|code| applied["coupon_code"] == code));
            list("applied_coupons", wanted.collect(), query.page())
        }
        Read::Invoice(lago_id) => {
            let mut invoices = view.books.catalogue.invoices.iter();
            found("invoice", invoices.find(|known| known.lago_id.to_string() == *lago_id).map(Invoice::to_json))
        }
    }
}

/// Of several events with the same id, the first is shown.
fn event(view: &View<'_>, transaction_id: &str) -> Answer {
    match view.books.ledger.entries().find(|entry| entry.transaction_id == transaction_id) {
        Some(entry) => Answer::ok(wire::shown_event(&entry, view.profile)),
        None => Answer::not_found("event_not_found"),
    }
}

fn events(view: &View<'_>, query: &Query) -> Answer {
    let bound = |name: &str| match query.get(name) {
        None => Ok(None),
        Some(text) => match instant(text) {
            Some(micros) => Ok(Some(micros)),
            None => Err(Answer::invalid(json!({ name: ["invalid_date"] }))),
        },
    };
    let (from, to) = match (bound("timestamp_from"), bound("timestamp_to")) {
        (Ok(from), Ok(to)) => (from.unwrap_or(i64::MIN), to.unwrap_or(i64::MAX)),
        (Err(refusal), _) | (_, Err(refusal)) => return refusal,
    };
    let (code, subscription) = (query.get("code"), query.get("external_subscription_id"));
    let ledger = &view.books.ledger;
    let mut positions: Vec<usize> = Vec::new();
    for (position, entry) in ledger.entries().enumerate() {
        let matches = code.is_none_or(|code| entry.code == code)
            && subscription.is_none_or(|subscription| entry.external_subscription_id == Some(subscription))
            && (from..=to).contains(&entry.timestamp_micros);
        if matches {
            positions.push(position);
        }
    }
    match view.profile {
        Profile::V1_16 | Profile::ClickHouse => {
            positions.sort_by_key(|position| Reverse((ledger.entry(*position).stored_micros, *position)));
        }
        Profile::V1_39 => positions.sort_by_key(|position| {
            let entry = ledger.entry(*position);
            (Reverse(entry.timestamp_micros), entry.transaction_id)
        }),
    }
    let page = query.page();
    let entries: Vec<_> =
        positions[page.range(positions.len())].iter().map(|position| ledger.entry(*position)).collect();
    Answer::ok(wire::listed_events(&entries, &page.meta(positions.len()), view.profile))
}

fn subscriptions(view: &View<'_>, query: &Query) -> Answer {
    let wanted: Option<Vec<_>> = {
        let names: Vec<_> = query.0.iter().filter(|(name, _)| name == "status[]").collect();
        // One unknown status, and the filter counts for nothing.
        let statuses = names.iter().map(|(_, status)| SubscriptionStatus::of(status)).collect();
        if names.is_empty() { None } else { statuses }
    };
    let wanted = wanted.unwrap_or_else(|| vec![SubscriptionStatus::Active]);
    let (customer, plan) = (query.get("external_customer_id"), query.get("plan_code"));
    let mut found: Vec<_> = view
        .books
        .catalogue
        .subscriptions
        .iter()
        .filter(|known| wanted.contains(&known.status))
        .filter(|known| customer.is_none_or(|customer| known.external_customer_id == customer))
        .filter(|known| plan.is_none_or(|plan| known.plan_code == plan))
        .collect();
    match view.profile {
        Profile::V1_16 => found.sort_by_key(|known| (known.started_at.is_none(), known.started_at)),
        Profile::V1_39 | Profile::ClickHouse => found.sort_by_key(|known| Reverse(known.subscription_at)),
    }
    let found = found.into_iter().filter_map(|known| subscription_json(view, known)).collect();
    list("subscriptions", found, query.page())
}

fn subscription(view: &View<'_>, external_id: &str, query: &Query) -> Answer {
    let status = query.get("status").and_then(SubscriptionStatus::of).unwrap_or_default();
    let mut known = view.books.catalogue.subscriptions.iter();
    let subscription = known.find(|known| known.external_id == external_id && known.status == status);
    found("subscription", subscription.and_then(|subscription| subscription_json(view, subscription)))
}

fn subscription_json(view: &View<'_>, subscription: &Subscription) -> Option<Value> {
    let customer = view.books.catalogue.customer(&subscription.external_customer_id)?;
    let period = period::current(subscription, view.now_micros);
    Some(subscription.to_json(view.profile, customer, period))
}

fn current_usage(view: &View<'_>, external_customer_id: &str, query: &Query) -> Answer {
    if view.books.catalogue.customer(external_customer_id).is_none() {
        return Answer::not_found("resource_not_found");
    }
    let external_id = query.get("external_subscription_id").unwrap_or_default();
    let mut known = view.books.catalogue.subscriptions.iter();
    let active = known.find(|known| {
        known.external_id == external_id
            && known.external_customer_id == external_customer_id
            && known.status == SubscriptionStatus::Active
    });
    let Some(subscription) = active.filter(|_| !view.no_active_subscription) else {
        return Answer::not_allowed("no_active_subscription");
    };
    Answer::json(200, &usage::current(view.usage_books(), subscription))
}

/// The invoices of a subscription, the newest period first, drafts among them. Nobody is asked whether there is such a
/// customer.
///
/// Source: getlago/lago-api `app/queries/past_usage_query.rb` at 09e56935.
fn past_usage(view: &View<'_>, external_customer_id: &str, query: &Query) -> Answer {
    let Some(external_id) = query.get("external_subscription_id") else {
        return Answer::invalid(json!({ "external_subscription_id": ["value_is_mandatory"] }));
    };
    let catalogue = &view.books.catalogue;
    let code = query.get("billable_metric_code");
    if code.is_some_and(|code| catalogue.metrics.iter().all(|metric| metric.code != code)) {
        return Answer::not_found("billable_metric_not_found");
    }
    let is_own =
        |known: &&Subscription| known.external_id == external_id && known.external_customer_id == external_customer_id;
    let subscription = catalogue.subscriptions.iter().rfind(is_own);
    let mut invoices: Vec<&Invoice> = catalogue.invoices.iter().collect();
    invoices.retain(|invoice| subscription.is_some() && invoice.external_subscription_id == external_id);
    invoices.sort_by_key(|invoice| Reverse(invoice.charges_from));
    let most = query.get("periods_count").and_then(|count| count.parse().ok()).unwrap_or(usize::MAX);
    invoices.truncate(most);
    let books = view.usage_books();
    let periods =
        subscription.map(|own| invoices.iter().map(|invoice| usage::past(books, own, invoice, code)).collect());
    list("usage_periods", periods.unwrap_or_default(), query.page())
}

fn list(name: &str, items: Vec<Value>, page: Page) -> Answer {
    let meta = page.meta(items.len());
    Answer::json(200, &json!({ name: items[page.range(items.len())], "meta": meta }))
}

/// `{"<name>": …}`, or a 404 that says what was not found.
fn found(name: &str, object: Option<Value>) -> Answer {
    match object {
        Some(object) => Answer::json(200, &json!({ name: object })),
        None => Answer::not_found(&format!("{name}_not_found")),
    }
}

/// An ISO-8601 time or date; without offset in UTC.
fn instant(text: &str) -> Option<i64> {
    let zoned = text.parse::<Timestamp>().ok();
    let local = || text.parse::<DateTime>().ok().or_else(|| Some(text.parse::<Date>().ok()?.into()));
    zoned.or_else(|| TimeZone::UTC.to_timestamp(local()?).ok()).map(Timestamp::as_microsecond)
}
