//! Usage as it comes in. The first line says how: `event`, `events` (the body follows), `cloudevents` (header lines, an
//! empty line, the body), `webhook` (a rule as JSON on a line, then the same), `complaint` (a webhook's type on a line, then
//! its body).
//!
//! Promises: what is admitted is one JSON object that says what its head says, can be read back and answered with, and
//! is the same bytes when it is reported once more; its name does not hang on when it came; a complaint's reason is
//! short and printable.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, HeaderName, HeaderValue};
use kit::clock::Timestamp;
use kit_lago::usage::complaints;
use lago_usage_tracker::config::RuleSection;
use lago_usage_tracker::fuzzing::{Admitted, of_body, of_cloudevents, of_webhook};
use serde_json::value::RawValue;

use crate::parts::first_line;
use crate::samples::THEN;

/// Reads the request.
///
/// # Panics
/// What is admitted is not what it must be.
pub fn target(data: &[u8]) {
    let (kind, rest) = first_line(data);
    match kind {
        b"event" | b"events" => {
            let batch = kind == b"events";
            check(|now| of_body(rest, batch, None, now), "");
            check(|now| of_body(rest, batch, Some("request"), now), "");
        }
        b"cloudevents" => {
            let (headers, body) = headers(rest);
            check(|now| of_cloudevents(&headers, body, now), "ce-");
        }
        b"webhook" => {
            let (rule, rest) = first_line(rest);
            let Ok(rule) = serde_json::from_slice::<RuleSection>(rule) else { return };
            let (headers, body) = headers(rest);
            let admitted = check(|now| of_webhook(&rule, &headers, body, now), "ev-");
            assert!(admitted.len() <= 1, "a rule counts an event once");
            for event in &admitted {
                assert_eq!(text(&object(&event.event.body), "code"), Some(rule.code.clone()));
            }
        }
        b"complaint" => complaint(rest),
        _ => {}
    }
}

/// The events, each of them looked at.
fn check(read: impl Fn(Timestamp) -> Vec<Admitted>, prefix: &str) -> Vec<Admitted> {
    let admitted = read(THEN);
    let later = read(THEN.plus_millis(86_400_000));
    assert_eq!(admitted.len(), later.len(), "reading has no clock");
    for (event, later) in admitted.iter().zip(&later) {
        assert_eq!(event.event.head, later.event.head, "its name is the same whenever it comes");
        one(event, prefix);
    }
    admitted
}

fn one(admitted: &Admitted, prefix: &str) {
    let head = &admitted.event.head;
    let event = object(&admitted.event.body);
    // What names only its customer is told apart, and waits for its subscription.
    let (source, event_type, owner) = match text(&event, "external_subscription_id") {
        Some(_) => ("usage", "usage.event", "external_subscription_id"),
        None => ("usage/customer", "usage.unresolved", "external_customer_id"),
    };
    assert_eq!((head.source.as_str(), head.event_type.as_str(), head.json), (source, event_type, true));
    assert!(!head.key.trim().is_empty() && head.key.len() <= 500 && head.key.starts_with(prefix), "{:?}", head.key);
    assert_eq!(text(&event, "transaction_id").as_ref(), Some(&head.key));
    assert_eq!(text(&event, owner), head.scope);
    assert!(text(&event, "code").is_some_and(|code| !code.trim().is_empty()));
    assert!(event["timestamp"].get().starts_with(|first: char| first == '-' || first.is_ascii_digit()));
    assert!(event.get("properties").is_none_or(|properties| properties.get().starts_with('{')));
    for member in event.keys() {
        assert!(MEMBERS.contains(&member.as_str()), "{member:?} is nothing that Lago knows");
    }

    let answer = object(admitted.answer.as_deref().expect("what is stored can be answered with").as_bytes());
    for member in ["transaction_id", "code"] {
        assert_eq!(text(&answer, member), text(&event, member));
    }
    assert_eq!(answer["properties"].get(), event.get("properties").map_or("{}", |properties| properties.get()));

    let again = [b"{\"event\":".as_slice(), &admitted.event.body, b"}"].concat();
    let again = of_body(&again, false, None, THEN);
    assert_eq!(again.len(), 1, "what Lago is sent is what a producer may send");
    assert_eq!(again[0].event.body, admitted.event.body, "byte for byte");
}

/// What an event for Lago may hold.
const MEMBERS: [&str; 7] = [
    "transaction_id",
    "external_subscription_id",
    "external_customer_id",
    "code",
    "timestamp",
    "precise_total_amount_cents",
    "properties",
];

/// The members as they are written: a number may be larger than any of ours.
fn object(json: &[u8]) -> BTreeMap<String, Box<RawValue>> {
    serde_json::from_slice(json).expect("a JSON object")
}

fn text(object: &BTreeMap<String, Box<RawValue>>, member: &str) -> Option<String> {
    serde_json::from_str(object.get(member)?.get()).expect("a text")
}

/// Header lines up to an empty one, and what follows.
fn headers(data: &[u8]) -> (HeaderMap, &[u8]) {
    let (mut headers, mut rest) = (HeaderMap::new(), data);
    while !rest.is_empty() {
        let (line, others) = first_line(rest);
        rest = others;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line[colon..].strip_prefix(b":").unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    (headers, rest)
}

fn complaint(data: &[u8]) {
    let (webhook_type, body) = first_line(data);
    let (Ok(webhook_type), Ok(body)) = (std::str::from_utf8(webhook_type), std::str::from_utf8(body)) else { return };
    let complaints = complaints(webhook_type, body);
    let ids: BTreeSet<&str> = complaints.iter().map(|complaint| complaint.transaction_id.as_str()).collect();
    assert_eq!(ids.len(), complaints.len(), "an event is named once");
    for reason in complaints.iter().filter_map(|complaint| complaint.reason.as_ref()) {
        assert!(reason.chars().count() <= 500 && !reason.contains(char::is_control), "{reason:?}");
    }
}
