//! CloudEvents 1.0 as usage: structured, batched and binary. Decisions over values, without I/O.
//!
//! `type` is the metric's code, `subject` the subscription (or `subscription/<id>`, `customer/<id>`), `data` the
//! properties, `time` the time. `source` and `id` together name an event for ever (CloudEvents 1.0 section 3.1.1), so
//! that the transaction id is made of them.
//!
//! Source: cloudevents/spec `cloudevents/spec.md`, `bindings/http-protocol-binding.md` at v1.0.2.

use axum::http::{HeaderMap, header};
use kit_lago::usage::{BadBody, elements};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Why a request holds no CloudEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotCloudEvents {
    #[error("the content type is none of CloudEvents, and there are no ce- headers")]
    Type,
    #[error("the body is not JSON of that content type")]
    Body,
    #[error("there are no events")]
    Empty,
    #[error("there are too many events")]
    TooMany,
}

/// One CloudEvent, as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct CloudEvent<'a> {
    #[serde(default)]
    pub(crate) specversion: String,
    #[serde(default)]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) source: String,
    #[serde(rename = "type", default)]
    pub(crate) event_type: String,
    /// Extension of our own daemons: a second name of the type.
    #[serde(rename = "typealias", default)]
    pub(crate) type_alias: Option<String>,
    #[serde(default)]
    pub(crate) subject: Option<String>,
    #[serde(default)]
    pub(crate) time: Option<String>,
    /// JSON only.
    #[serde(borrow, default)]
    pub(crate) data: Option<&'a RawValue>,
    /// The attributes came as headers.
    #[serde(skip)]
    pub(crate) is_binary: bool,
}

impl CloudEvent<'_> {
    /// Has what every event has: version 1, and the two that name it for ever.
    fn is_named(&self) -> bool {
        self.specversion.starts_with("1.") && !self.id.is_empty() && !self.source.is_empty()
    }
}

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
        "application/cloudevents+json" => vec![usage(&attributes(parse(body)?)?)?],
        "application/cloudevents-batch+json" => {
            let batch: &RawValue = parse(body)?;
            let events = elements(batch, most).map_err(|error| match error {
                BadBody::TooMany => NotCloudEvents::TooMany,
                _ if batch.get().starts_with('[') => NotCloudEvents::Empty,
                _ => NotCloudEvents::Body,
            })?;
            events.into_iter().map(|event| usage(&attributes(event)?)).collect::<Result<_, _>>()?
        }
        _ if headers.contains_key("ce-id") => vec![usage(&binary(headers, body)?)?],
        _ => return Err(NotCloudEvents::Type),
    })
}

/// The one event of a request, structured or binary. Data that is not JSON is left out.
///
/// # Errors
/// [`NotCloudEvents`].
pub(crate) fn event<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<CloudEvent<'a>, NotCloudEvents> {
    let event = match media_type(headers).as_str() {
        "application/cloudevents+json" => attributes(parse(body)?)?,
        media_type if headers.contains_key("ce-id") => {
            binary(headers, if media_type.ends_with("json") { body } else { b"" })?
        }
        _ => return Err(NotCloudEvents::Type),
    };
    if event.is_named() { Ok(event) } else { Err(NotCloudEvents::Body) }
}

fn media_type(headers: &HeaderMap) -> String {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, NotCloudEvents> {
    serde_json::from_slice(body).map_err(|_| NotCloudEvents::Body)
}

fn attributes(event: &RawValue) -> Result<CloudEvent<'_>, NotCloudEvents> {
    // An array would be taken for the attributes in their order.
    if event.get().starts_with('{') { parse(event.get().as_bytes()) } else { Err(NotCloudEvents::Body) }
}

fn binary<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<CloudEvent<'a>, NotCloudEvents> {
    let text = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(percent_decode_str(value).decode_utf8().ok()?.into_owned())
    };
    let data = if body.trim_ascii().is_empty() { None } else { Some(parse(body)?) };
    Ok(CloudEvent {
        specversion: text("ce-specversion").unwrap_or_default(),
        id: text("ce-id").unwrap_or_default(),
        source: text("ce-source").unwrap_or_default(),
        event_type: text("ce-type").unwrap_or_default(),
        type_alias: text("ce-typealias"),
        subject: text("ce-subject"),
        time: text("ce-time"),
        data,
        is_binary: true,
    })
}

fn usage(event: &CloudEvent<'_>) -> Result<Box<RawValue>, NotCloudEvents> {
    if !event.is_named() {
        return Err(NotCloudEvents::Body);
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

    /// A webhook's data may be anything; whether it is needed is the rules' matter.
    #[test]
    fn one_event_is_read_in_both_modes_and_data_that_is_not_json_is_left_out() {
        let headers = |list: &[(&'static str, &str)]| -> HeaderMap {
            list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        let structured = headers(&[("content-type", "application/cloudevents+json")]);
        let read = event(&structured, EVENT.as_bytes()).unwrap();
        assert_eq!((read.id.as_str(), read.event_type.as_str()), ("e-1", "api_calls"));
        assert_eq!(read.data.unwrap().get(), r#"{"calls": 0.10000000000000000001}"#);

        let named = [("ce-specversion", "1.0"), ("ce-id", "e%201"), ("ce-source", "a"), ("ce-typealias", "b")];
        for (content_type, body, data) in [
            ("application/json", "{}", Ok(Some("{}"))),
            ("application/vnd.x+json; charset=utf-8", "[1]", Ok(Some("[1]"))),
            ("application/octet-stream", "\u{0}", Ok(None)),
            ("application/json", "{", Err(NotCloudEvents::Body)),
        ] {
            let headers = headers(&[&named[..], &[("content-type", content_type)]].concat());
            let read = event(&headers, body.as_bytes());
            assert_eq!(
                read.as_ref().map(|event| event.data.map(RawValue::get)).map_err(|error| *error),
                data,
                "{body}"
            );
            assert!(read.is_err() || read.is_ok_and(|event| event.id == "e 1" && event.type_alias.unwrap() == "b"));
        }
        let batch = headers(&[("content-type", "application/cloudevents-batch+json")]);
        assert_eq!(event(&batch, format!("[{EVENT}]").as_bytes()).unwrap_err(), NotCloudEvents::Type);
        assert_eq!(event(&structured, b"{}").unwrap_err(), NotCloudEvents::Body);
    }

    #[test]
    fn what_is_no_cloudevent_is_refused() {
        let structured = [("content-type", "application/cloudevents+json")];
        for (headers, body, expected) in [
            (&[("content-type", "application/json")][..], EVENT, NotCloudEvents::Type),
            (&structured, "", NotCloudEvents::Body),
            (&structured, r#"{"specversion":"1.0","source":"a","type":"t"}"#, NotCloudEvents::Body),
            (&structured, r#"{"specversion":"0.3","id":"1","source":"a","type":"t"}"#, NotCloudEvents::Body),
            (&[("content-type", "application/cloudevents-batch+json")], "[]", NotCloudEvents::Empty),
            (&[("content-type", "application/cloudevents-batch+json")], EVENT, NotCloudEvents::Body),
            (&[("content-type", "application/cloudevents-batch+json")], "[{},{},{}]", NotCloudEvents::TooMany),
            (&[("ce-id", "1"), ("ce-source", "a"), ("ce-specversion", "1.0")], "{", NotCloudEvents::Body),
        ] {
            assert_eq!(events(headers, body), Err(expected), "{headers:?} {body}");
        }
    }
}
