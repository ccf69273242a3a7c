//! What the fuzz targets reach of the decisions inside: from a request to events for the journal, without I/O. Nothing
//! else uses it, and nobody is promised anything of it.

use axum::http::HeaderMap;
use kit::clock::Timestamp;
use kit_journal::NewEvent;
use kit_lago::usage::{Requested, requested};
use serde_json::value::RawValue;

use crate::admit::{Stored, admit};
use crate::cloudevents;
use crate::config::RuleSection;
use crate::rules::Rules;

/// Events of a request at most, as by default.
const MOST: usize = 10_000;

/// An event that was admitted, and what its producer is answered once it is stored.
#[derive(Debug)]
pub struct Admitted {
    /// As it goes into the journal.
    pub event: NewEvent,
    /// The stored event as Lago would show it; `None` where it cannot be read back.
    pub answer: Option<String>,
}

/// The events of a body of `POST /api/v1/events`, or with `batch` of `POST /api/v1/events/batch`. `key` is the request's
/// `Idempotency-Key`.
pub fn of_body(body: &[u8], batch: bool, key: Option<&str>, now: Timestamp) -> Vec<Admitted> {
    let events = match requested(body, batch, MOST) {
        Ok(Requested::One(event)) => vec![event],
        Ok(Requested::Batch(events)) => events,
        Err(_) => Vec::new(),
    };
    let name = |place| key.map(|key| cloudevents::place_in_request("", key, place));
    events.into_iter().enumerate().filter_map(|(place, event)| admitted(event, name(place), now)).collect()
}

/// The events of a request of `POST /api/v1/cloudevents`.
pub fn of_cloudevents(headers: &HeaderMap, body: &[u8], now: Timestamp) -> Vec<Admitted> {
    let events = cloudevents::usage_events(headers, body, MOST).unwrap_or_default();
    events.iter().filter_map(|event| admitted(event, None, now)).collect()
}

/// What a rule makes of a request of `POST /webhooks/events` whose signature has been verified.
pub fn of_webhook(rule: &RuleSection, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Vec<Admitted> {
    let (Ok(rules), Ok(event)) =
        (Rules::read(std::slice::from_ref(rule)), kit_delivery::cloudevents::event(headers, body))
    else {
        return Vec::new();
    };
    let counted = rules.apply(&event).into_iter();
    counted.filter_map(|counted| admitted(&counted.ok()?.usage, None, now)).collect()
}

fn admitted(event: &RawValue, name: Option<String>, now: Timestamp) -> Option<Admitted> {
    let event = admit(event, name, now).ok()?;
    let id = event.head.id.to_string();
    let stored = Stored::read(&event.body);
    let answer = stored.and_then(|stored| serde_json::to_string(&stored.answer(&id, Some(now))).ok());
    Some(Admitted { answer, event })
}
