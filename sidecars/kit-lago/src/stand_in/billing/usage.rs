//! `current_usage` and `past_usage`: what the books add up to in the present billing period, and on
//! the invoices of past ones. Units only: the stand-in's plans charge nothing, so all amounts are 0, and there are no filters or groups.
//!
//! Source: getlago/lago-api `app/services/invoices/customer_usage_service.rb`,
//! `app/serializers/v1/customers/usage_serializer.rb`, `charge_usage_serializer.rb` and
//! `app/services/events/stores/postgres_store.rb` at v1.16.0.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::catalogue::{AggregationType, Catalogue, Invoice, Metric, Subscription};
use super::decimal::Decimal;
use super::ledger::{Ledger, LedgerEntry};
use super::period;
use super::profile::Profile;
use super::timestamp::{iso_date, iso_seconds};

/// The currency of every plan.
pub(super) const CURRENCY: &str = "EUR";

/// What usage is computed from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Books<'a> {
    pub(super) profile: Profile,
    pub(super) catalogue: &'a Catalogue,
    pub(super) ledger: &'a Ledger,
    pub(super) now_micros: i64,
    /// Events stored later than this have not been processed yet.
    pub(super) processed_until_micros: i64,
}

/// The body of the answer.
pub(super) fn current(books: Books<'_>, subscription: &Subscription) -> Value {
    let period = period::current(subscription, books.now_micros);
    let mut metrics: Vec<_> = books.catalogue.metrics.iter().collect();
    metrics.sort_by_cached_key(|metric| metric.name.to_lowercase());
    let charges: Vec<_> = metrics.into_iter().map(|metric| charge(books, subscription, metric, period)).collect();
    json!({ "customer_usage": {
        "from_datetime": iso_seconds(period.0),
        "to_datetime": iso_seconds(period.1),
        "issuing_date": iso_date(period.1),
        "currency": CURRENCY,
        "amount_cents": 0,
        "taxes_amount_cents": 0,
        "total_amount_cents": 0,
        "lago_invoice_id": null,
        "charges_usage": charges,
    }})
}

/// One entry of `usage_periods`. Charges that have counted nothing have no fee, and are not there; nor are those that are
/// paid in advance.
///
/// Source: getlago/lago-api `app/serializers/v1/customers/past_usage_serializer.rb` at 20277d9d.
pub(super) fn past(books: Books<'_>, subscription: &Subscription, invoice: &Invoice, code: Option<&str>) -> Value {
    let period = (invoice.charges_from.as_microsecond(), invoice.charges_to.as_microsecond());
    let until = invoice.finalized_at.map_or(i64::MAX, Timestamp::as_microsecond).min(books.processed_until_micros);
    let books = Books { processed_until_micros: until, ..books };
    let mut metrics: Vec<_> = books.catalogue.metrics.iter().collect();
    metrics.retain(|metric| !metric.pay_in_advance && code.is_none_or(|code| metric.code == code));
    let charges = metrics.into_iter().map(|metric| charge(books, subscription, metric, period));
    let charges: Vec<_> = charges.filter(|charge| charge["events_count"] != 0).collect();
    json!({
        "from_datetime": iso_seconds(period.0),
        "to_datetime": iso_seconds(period.1),
        "issuing_date": iso_date(period.1),
        "currency": CURRENCY,
        "amount_cents": 0,
        "total_amount_cents": 0,
        "taxes_amount_cents": 0,
        "lago_invoice_id": invoice.lago_id,
        "charges_usage": charges,
    })
}

fn charge(books: Books<'_>, subscription: &Subscription, metric: &Metric, period: (i64, i64)) -> Value {
    // Recurring metrics count from the beginning of the subscription.
    let from = match (metric.recurring, subscription.started_at) {
        (true, Some(started_at)) => started_at.as_microsecond(),
        _ => period.0,
    };
    let entries = books.ledger.entries_of(&metric.code, &subscription.external_id).filter(|entry| {
        (from..=period.1).contains(&entry.timestamp_micros) && entry.stored_micros <= books.processed_until_micros
    });
    let (units, events_count) = aggregate(metric, entries);
    let mut charge = json!({ "lago_id": metric.lago_id, "charge_model": "standard", "invoice_display_name": null });
    if books.profile == Profile::ClickHouse {
        charge["code"] = json!(metric.code);
    }
    json!({
        "units": units.to_string(),
        "events_count": events_count,
        "amount_cents": 0,
        "amount_currency": CURRENCY,
        "charge": charge,
        "billable_metric": {
            "lago_id": metric.lago_id,
            "name": metric.name,
            "code": metric.code,
            "aggregation_type": metric.aggregation_type.as_str(),
        },
        "filters": [],
        "grouped_usage": [],
    })
}

/// Units, and the number of events they come from.
fn aggregate<'a>(metric: &Metric, entries: impl Iterator<Item = LedgerEntry<'a>>) -> (Decimal, u64) {
    let field = metric.field_name.as_deref().unwrap_or_default();
    match metric.aggregation_type {
        AggregationType::Count => {
            let count = entries.count() as u64;
            (Decimal::from_count(count), count)
        }
        AggregationType::Sum => {
            let numbers = entries.filter_map(|entry| number(&entry, field));
            let add = |sum: Decimal, number| sum.checked_add(number).unwrap_or(sum);
            counted(numbers, |sum, number| Some(add(sum.unwrap_or(Decimal::ZERO), number)))
        }
        AggregationType::Max => {
            let numbers = entries.filter_map(|entry| number(&entry, field));
            counted(numbers, |max, number| max.max(Some(number)))
        }
        AggregationType::Latest => {
            let numbers = entries.filter_map(|entry| Some((entry.timestamp_micros, number(&entry, field)?)));
            let mut last_micros = i64::MIN;
            counted(numbers, |latest, (micros, number)| {
                // Of two at the same time, the one stored later counts.
                if micros < last_micros {
                    return latest;
                }
                last_micros = micros;
                Some(number)
            })
        }
        AggregationType::UniqueCount => unique_count(entries, field),
        AggregationType::WeightedSum | AggregationType::Custom => (Decimal::ZERO, entries.count() as u64),
    }
}

/// Folds items and counts them; 0 where there is none.
fn counted<T>(
    items: impl Iterator<Item = T>,
    mut fold: impl FnMut(Option<Decimal>, T) -> Option<Decimal>,
) -> (Decimal, u64) {
    let mut count = 0;
    let units = items.fold(None, |units, item| {
        count += 1;
        fold(units, item)
    });
    (units.unwrap_or(Decimal::ZERO), count)
}

/// Different values that were added and not removed since: an event's `operation_type` says which. Lago gives their number
/// in the place of the number of events too.
///
/// Source: getlago/lago-api `app/services/billable_metrics/aggregations/unique_count_service.rb` (`result.count`).
fn unique_count<'a>(entries: impl Iterator<Item = LedgerEntry<'a>>, field: &str) -> (Decimal, u64) {
    let mut last: HashMap<Cow<'a, str>, (i64, bool)> = HashMap::new();
    for entry in entries {
        let Some(value) = property(entry.properties, field).and_then(scalar) else {
            continue;
        };
        let removes =
            property(entry.properties, "operation_type").and_then(scalar).is_some_and(|text| text == "remove");
        let known = last.entry(value).or_insert((i64::MIN, true));
        if entry.timestamp_micros >= known.0 {
            *known = (entry.timestamp_micros, !removes);
        }
    }
    let present = last.values().filter(|(_, present)| *present).count() as u64;
    (Decimal::from_count(present), present)
}

/// A property as a number. Numbers in texts count when they are written plainly; anything else does
/// not take part in the aggregation.
fn number(entry: &LedgerEntry<'_>, field: &str) -> Option<Decimal> {
    let raw = property(entry.properties, field)?.get();
    if !raw.starts_with('"') {
        // Ruby reads a number with a fraction or an exponent as floating point.
        let is_float = raw.contains(['.', 'e', 'E']);
        return if is_float { Decimal::parse(&raw.parse::<f64>().ok()?.to_string()) } else { Decimal::parse(raw) };
    }
    let text: String = serde_json::from_str(raw).ok()?;
    let digits = text.strip_prefix('-').unwrap_or(&text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if plain(whole) && plain(fraction) { Decimal::parse(&text) } else { None }
}

/// A scalar property as text; `null` counts as absent.
fn scalar(raw: &RawValue) -> Option<Cow<'_, str>> {
    let raw = raw.get();
    match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str(raw).ok().map(Cow::Owned),
        Some(b'n' | b'{' | b'[') | None => None,
        Some(_) => Some(Cow::Borrowed(raw)),
    }
}

/// The value of one key; of several, the last.
fn property<'a>(properties: &'a str, field: &str) -> Option<&'a RawValue> {
    struct Find<'f>(&'f str);
    impl<'de> Visitor<'de> for Find<'_> {
        type Value = Option<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(Key(key)) = map.next_key()? {
                if key == self.0 {
                    found = Some(map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(properties).deserialize_map(Find(field)).ok().flatten()
}

/// A key that is borrowed where it is written without escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
