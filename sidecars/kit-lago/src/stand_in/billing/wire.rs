//! Events as Lago writes them.
//!
//! Source: getlago/lago-api `app/serializers/v1/event_serializer.rb` at v1.16.0,
//! `app/models/clickhouse/events_raw.rb` at the head of 2026-08-21.

use std::fmt::Write as _;

use serde_json::Value;

use super::decimal::Decimal;
use super::event::is_blank;
use super::ledger::{Ledger, LedgerEntry};
use super::profile::Profile;
use super::timestamp::{iso_millis, iso_seconds};

/// The organisation that ClickHouse rows name in their ids.
const ORGANIZATION_ID: &str = "1a901a90-1a90-1a90-1a90-1a901a901a90";

/// `{"event": …}` for an event that was just stored.
pub(super) fn created_event(ledger: &Ledger, profile: Profile, index: usize) -> String {
    let mut body = String::from(r#"{"event":"#);
    write_event(&mut body, &ledger.entry(index), ids_when_created(profile));
    body.push('}');
    body
}

/// `{"events": […]}` for events that were just stored, in the order of the request.
pub(super) fn created_events(ledger: &Ledger, profile: Profile, indexes: &[usize]) -> String {
    let entries = indexes.iter().map(|index| ledger.entry(*index));
    let mut body = String::from(r#"{"events":"#);
    write_list(&mut body, entries, ids_when_created(profile));
    body.push('}');
    body
}

/// `{"event": …}` for an event that was looked up.
pub(super) fn shown_event(entry: &LedgerEntry<'_>, profile: Profile) -> String {
    let mut body = String::from(r#"{"event":"#);
    write_event(&mut body, entry, ids_when_read(profile));
    body.push('}');
    body
}

/// `{"events": […], "meta": …}` for a page of events.
pub(super) fn listed_events(entries: &[LedgerEntry<'_>], meta: &Value, profile: Profile) -> String {
    let mut body = String::from(r#"{"events":"#);
    write_list(&mut body, entries.iter().copied(), ids_when_read(profile));
    push(&mut body, format_args!(r#","meta":{meta}}}"#));
    body
}

/// What is said about the identity of an event in Lago's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ids {
    Postgres,
    /// Nothing has been stored yet when the answer is written.
    ClickHouseCreated,
    /// Made up from the row.
    ClickHouseRead,
}

fn ids_when_created(profile: Profile) -> Ids {
    if profile.is_clickhouse() { Ids::ClickHouseCreated } else { Ids::Postgres }
}

fn ids_when_read(profile: Profile) -> Ids {
    if profile.is_clickhouse() { Ids::ClickHouseRead } else { Ids::Postgres }
}

fn write_list<'a>(body: &mut String, entries: impl Iterator<Item = LedgerEntry<'a>>, ids: Ids) {
    body.push('[');
    for (index, entry) in entries.enumerate() {
        if index > 0 {
            body.push(',');
        }
        write_event(body, &entry, ids);
    }
    body.push(']');
}

fn write_event(body: &mut String, entry: &LedgerEntry<'_>, ids: Ids) {
    let subscription = entry.external_subscription_id;
    let lago_id = match ids {
        Ids::Postgres => Some(entry.lago_id.to_string()),
        Ids::ClickHouseCreated => None,
        Ids::ClickHouseRead => {
            let subscription = subscription.unwrap_or_default();
            let stored_seconds = entry.stored_micros / 1_000_000;
            Some(format!("{ORGANIZATION_ID}-{subscription}-{}-{stored_seconds}", entry.transaction_id))
        }
    };
    let created_at = (ids != Ids::ClickHouseCreated).then(|| iso_seconds(entry.stored_micros));
    let amount = entry.precise_total_amount_cents.filter(|amount| !is_blank(Some(amount)));
    // What is no number is 0 for Rails' decimal columns.
    let amount = amount.map(|amount| Decimal::parse(amount).unwrap_or(Decimal::ZERO).to_string());

    push(body, format_args!(r#"{{"lago_id":{}"#, text(lago_id.as_deref())));
    push(body, format_args!(r#","transaction_id":{}"#, text(Some(entry.transaction_id))));
    body.push_str(r#","lago_customer_id":null"#);
    push(body, format_args!(r#","code":{}"#, text(Some(entry.code))));
    push(body, format_args!(r#","timestamp":"{}""#, iso_millis(entry.timestamp_micros)));
    push(body, format_args!(r#","precise_total_amount_cents":{}"#, text(amount.as_deref())));
    push(body, format_args!(r#","properties":{}"#, entry.properties));
    body.push_str(r#","lago_subscription_id":null"#);
    push(body, format_args!(r#","external_subscription_id":{}"#, text(subscription)));
    push(body, format_args!(r#","created_at":{}}}"#, text(created_at.as_deref())));
}

/// A text as JSON, `null` where there is none.
fn text(value: Option<&str>) -> Value {
    value.into()
}

fn push(body: &mut String, piece: std::fmt::Arguments<'_>) {
    // Writing into a string fails only where a `Display` does, and none of these can.
    let _written = body.write_fmt(piece);
}
