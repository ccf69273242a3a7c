//! Outgoing requests: the first line is an event's head as the journal keeps it, the rest its body.
//! Every text in the head is a sender's.
//!
//! Promises: one JSON object that holds the body verbatim, headers that say nothing else than the
//! attributes, and a path that cannot be broken out of.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};
use kit::clock::{SystemClock, Timestamp};
use kit_delivery::format::{Format, attributes, render};
use kit_delivery::{GatewaySection, HttpSink};
use kit_journal::{EventHead, StoredEvent};
use serde_json::value::RawValue;

use crate::parts::first_line;

static SINK: LazyLock<HttpSink> = LazyLock::new(|| {
    let section = GatewaySection {
        url: Some("http://gateway:8000/base".to_owned()),
        path: "/in/{type}/{tenant}/{source}/end".to_owned(),
        ..GatewaySection::default()
    };
    HttpSink::new("gateway", &section, Arc::new(SystemClock)).expect("the section is right")
});

/// Renders the event in every format.
///
/// # Panics
/// A request is not what it should be.
pub fn target(data: &[u8]) {
    let (head, body) = first_line(data);
    let Ok(mut head) = serde_json::from_slice::<EventHead>(head) else { return };
    // As the intake judges it.
    head.json = std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<&RawValue>(text).is_ok());
    let event = StoredEvent {
        seq: 7,
        at: Timestamp::from_millis(1_700_000_000_123),
        head,
        body: bytes::Bytes::copy_from_slice(body),
    };
    embedded(&event, Format::CloudeventsStructured, "data");
    embedded(&event, Format::Envelope, "payload");
    binary(&event);
    raw(&event);
    path(&event);
}

fn embedded(event: &StoredEvent, format: Format, name: &str) {
    let rendered = render(event, format);
    let object: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&rendered.body).expect("an object");
    let others = match format {
        Format::Envelope => 6,
        _ => attributes(event).len(),
    };
    assert_eq!(object.len(), others + 1, "no name occurs twice");
    if event.head.json {
        // What surrounds a JSON text is no part of it.
        let body = event.body.trim_ascii();
        assert_eq!(object[name].get().as_bytes(), body, "the body is verbatim");
    } else {
        let encoded: String = serde_json::from_str(object[&format!("{name}_base64")].get()).expect("a text");
        assert_eq!(STANDARD.decode(encoded).ok().as_deref(), Some(&*event.body));
    }
    let subject: String = serde_json::from_str(object["subject"].get()).expect("a text");
    assert_eq!(subject, event.head.subject);
}

fn binary(event: &StoredEvent) {
    let rendered = render(event, Format::CloudeventsBinary);
    assert_eq!(rendered.body, event.body);
    for (name, value) in attributes(event) {
        let Some(header) = rendered.headers.get(format!("ce-{name}")) else {
            assert_eq!(name, "datacontenttype", "{name} is missing");
            continue;
        };
        assert!(header.as_bytes().iter().all(u8::is_ascii_graphic), "{name}: {header:?}");
        let text = value.as_str().unwrap_or("true");
        assert_eq!(decoded(header.as_bytes()), text.as_bytes(), "{name}");
    }
    let known = |name: &HeaderName| {
        name.as_str().starts_with("ce-") || ["content-type", "traceparent", "tracestate"].contains(&name.as_str())
    };
    assert!(rendered.headers.keys().all(known), "{:?}", rendered.headers);
}

fn decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|digit| char::from(*digit).to_digit(16)).expect("two digits follow");
        decoded.push(if *byte == b'%' { u8::try_from(digit() * 16 + digit()).expect("two digits") } else { *byte });
    }
    decoded
}

fn raw(event: &StoredEvent) {
    let rendered = render(event, Format::Raw);
    assert_eq!(rendered.body, event.body);
    let given = |headers: &HeaderMap| {
        headers.iter().all(|(name, value)| {
            name == http::header::CONTENT_TYPE
                || event
                    .head
                    .headers
                    .iter()
                    .any(|(n, v)| n.eq_ignore_ascii_case(name.as_str()) && v.as_bytes() == value.as_bytes())
        })
    };
    assert!(given(&rendered.headers), "a header that nobody sent: {:?}", rendered.headers);
}

/// As the client will understand the address.
fn path(event: &StoredEvent) {
    let url = url::Url::parse(&SINK.url_for(event)).expect("a URL");
    assert_eq!((url.host_str(), url.port(), url.query(), url.fragment()), (Some("gateway"), Some(8000), None, None));
    let segments: Vec<&str> = url.path().split('/').collect();
    let [_, "base", "in", event_type, tenant, source, "end"] = segments[..] else {
        panic!("the path is another one: {url}");
    };
    // No spelling of a dot segment stays where it is.
    let said = |given: &str, segment: &str| match given {
        "." | ".." => segment == "-",
        _ => decoded(segment.as_bytes()) == given.as_bytes(),
    };
    let head = &event.head;
    assert!(said(&head.event_type, event_type) && said(&head.source, source), "{url}");
    assert!(said(head.tenant.as_deref().unwrap_or("-"), tenant), "{url}");
}
