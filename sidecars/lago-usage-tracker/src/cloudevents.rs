//! CloudEvents 1.0 as usage: structured, batched and binary. Decisions over values, without I/O. How one is read:
//! `kit_delivery::cloudevents`.
//!
//! `type` is the metric's code, `subject` the subscription (or `subscription/<id>`, `customer/<id>`), `data` the
//! properties, `time` the time. `source` and `id` together name an event for ever (CloudEvents 1.0 section 3.1.1), so
//! that the transaction id is made of them.
//!
//! Source: cloudevents/spec `cloudevents/spec.md`, `bindings/http-protocol-binding.md` at v1.0.2.

use std::borrow::Cow;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_delivery::cloudevents::{CloudEvent, NotCloudEvents, attributes, binary, media_type, parse};
use kit_lago::usage::{BadBody, elements};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// The events of a request, at most so many, as a producer would write them for Lago.
///
/// # Errors
/// [`NotCloudEvents`]. What an event itself lacks is found when it is read as usage.
pub(crate) fn usage_events(
    headers: &HeaderMap,
    body: &[u8],
    most: usize,
) -> Result<Vec<Box<RawValue>>, NotCloudEvents> {
    Ok(match media_type(headers).as_str() {
        "application/cloudevents+json" => vec![structured(parse(body)?)?],
        "application/cloudevents-batch+json" => {
            let batch: &RawValue = parse(body)?;
            let events = elements(batch, most).map_err(|error| match error {
                BadBody::TooMany => NotCloudEvents::TooMany,
                _ if batch.get().starts_with('[') => NotCloudEvents::Empty,
                _ => NotCloudEvents::Body,
            })?;
            events.into_iter().map(structured).collect::<Result<_, _>>()?
        }
        _ if headers.contains_key("ce-id") => vec![usage(&binary(headers, body)?)?],
        _ => return Err(NotCloudEvents::Type),
    })
}

/// An event in the structured mode, whose data may be written as bytes.
fn structured(raw: &RawValue) -> Result<Box<RawValue>, NotCloudEvents> {
    let event = attributes(raw)?;
    if !raw.get().contains("\"data_base64\"") {
        return usage(&event);
    }
    let Bytes { data_base64 } = parse(raw.get().as_bytes())?;
    let Some(written) = data_base64 else { return usage(&event) };
    // One of the two at most, says CloudEvents' JSON format, section 3.1.1.
    let bytes = STANDARD.decode(&*written).ok().filter(|_| event.data.is_none()).ok_or(NotCloudEvents::Body)?;
    usage(&CloudEvent { data: Some(parse(&bytes)?), ..event })
}

/// Data that a library keeps as bytes.
#[derive(Deserialize)]
struct Bytes<'a> {
    #[serde(borrow, default)]
    data_base64: Option<Cow<'a, str>>,
}

fn usage(event: &CloudEvent<'_>) -> Result<Box<RawValue>, NotCloudEvents> {
    if !event.is_named() {
        return Err(NotCloudEvents::Unnamed);
    }
    let (mut subscription, mut customer) = (None, None);
    match event.subject.as_deref().unwrap_or_default().split_once('/') {
        Some(("subscription", id)) => subscription = Some(id),
        Some(("customer", id)) => customer = Some(id),
        _ => subscription = event.subject.as_deref(),
    }
    let usage = Usage {
        transaction_id: transaction_id(&event.source, &event.id),
        external_subscription_id: subscription,
        external_customer_id: customer,
        code: &event.event_type,
        timestamp: event.time.as_deref(),
        properties: event.data,
    };
    serde_json::value::to_raw_value(&usage).map_err(|_| NotCloudEvents::Body)
}

/// As a producer would write it for Lago.
#[derive(Serialize)]
pub(crate) struct Usage<'a> {
    pub(crate) transaction_id: String,
    pub(crate) external_subscription_id: Option<&'a str>,
    pub(crate) external_customer_id: Option<&'a str>,
    pub(crate) code: &'a str,
    pub(crate) timestamp: Option<&'a str>,
    pub(crate) properties: Option<&'a RawValue>,
}

/// The transaction id of an event that has another name: the same for ever, on every host.
pub(crate) fn transaction_id(source: &str, id: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [source, id] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex("ce-", hasher)
}

/// The transaction id of an event without a name, by the name of its request and its place in it. Producers with names
/// of their own do not get in each other's way.
pub(crate) fn place_in_request(producer: &str, idempotency_key: &str, place: usize) -> String {
    let mut hasher = Sha256::new();
    hasher.update(b"outrigger/idempotency-key");
    for part in [producer, idempotency_key, &place.to_string()] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex("ik-", hasher)
}

/// The transaction id of what a rule makes of an event: each metric's is another one.
pub(crate) fn counted_as(source: &str, id: &str, code: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(b"outrigger/webhook-rule");
    for part in [source, id, code] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex("ev-", hasher)
}

fn hex(prefix: &str, hasher: Sha256) -> String {
    hasher.finalize().iter().take(16).fold(prefix.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::http::HeaderValue;

    use super::*;

    const EVENT: &str = r#"{"specversion":"1.0","id":"e-1","source":"/apps/a","type":"api_calls","subject":"s-1",
        "time":"2026-11-21T12:00:00Z","data":{"calls": 0.10000000000000000001}}"#;

    fn events(headers: &[(&'static str, &str)], body: &str) -> Result<Vec<String>, NotCloudEvents> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        usage_events(&map, body.as_bytes(), 2).map(|events| events.iter().map(|event| event.get().to_owned()).collect())
    }

    #[test]
    fn every_mode_says_the_same_of_an_event() {
        let structured = events(&[("content-type", "application/cloudevents+json; charset=utf-8")], EVENT).unwrap();
        let batched = events(&[("content-type", "application/cloudevents-batch+json")], &format!("[{EVENT}]")).unwrap();
        let binary = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "e-1"),
            ("ce-source", "/apps/a"),
            ("ce-type", "api_calls"),
            ("ce-subject", "s%2D1"),
            ("ce-time", "2026-11-21T12:00:00Z"),
        ];
        let binary = events(&binary, r#"{"calls": 0.10000000000000000001}"#).unwrap();

        assert_eq!(structured, batched);
        assert_eq!(structured, binary);
        let id = transaction_id("/apps/a", "e-1");
        assert!(structured[0].contains(&format!(r#""transaction_id":"{id}""#)), "{structured:?}");
        assert!(structured[0].contains(r#""external_subscription_id":"s-1""#));
        assert!(structured[0].contains("0.10000000000000000001"), "every digit: {structured:?}");
    }

    #[test]
    fn a_subject_may_say_what_it_is() {
        for (subject, expected) in [
            ("subscription/s/1", r#""external_subscription_id":"s/1""#),
            ("customer/c-1", r#""external_customer_id":"c-1""#),
            ("team/x", r#""external_subscription_id":"team/x""#),
        ] {
            let event = EVENT.replace("\"s-1\"", &format!("{subject:?}"));
            let usage = events(&[("content-type", "application/cloudevents+json")], &event).unwrap();
            assert!(usage[0].contains(expected), "{usage:?}");
        }
    }

    /// Producers' retries must find the event that was taken: the name is made in the same way for ever.
    #[test]
    fn the_transaction_id_is_pinned() {
        assert_eq!(transaction_id("/apps/a", "e-1"), "ce-d61a024015861efdfc48ebd07d24ee73");
        assert_ne!(transaction_id("/apps/a", "e-1"), transaction_id("/apps/", "ae-1"));
        assert_eq!(transaction_id("s", "i").len(), 35);
        assert_eq!(counted_as("lago/default", "e-1", "invoices_issued"), "ev-a0490511462dcec0f05eba6efaed67c5");
        assert_ne!(counted_as("s", "i", "ab"), counted_as("s", "ia", "b"));
    }

    #[test]
    fn what_is_no_cloudevent_is_refused() {
        let structured = [("content-type", "application/cloudevents+json")];
        for (headers, body, expected) in [
            (&[("content-type", "application/json")][..], EVENT, NotCloudEvents::Type),
            (&structured, "", NotCloudEvents::Body),
            (&structured, r#"{"specversion":"1.0","source":"a","type":"t"}"#, NotCloudEvents::Unnamed),
            (&structured, r#"{"specversion":"0.3","id":"1","source":"a","type":"t"}"#, NotCloudEvents::Unnamed),
            (&[("content-type", "application/cloudevents-batch+json")], "[]", NotCloudEvents::Empty),
            (&[("content-type", "application/cloudevents-batch+json")], EVENT, NotCloudEvents::Body),
            (&[("content-type", "application/cloudevents-batch+json")], "[{},{},{}]", NotCloudEvents::TooMany),
            (&[("ce-id", "1"), ("ce-source", "a"), ("ce-specversion", "1.0")], "{", NotCloudEvents::Body),
        ] {
            assert_eq!(events(headers, body), Err(expected), "{headers:?} {body}");
        }
    }
}
