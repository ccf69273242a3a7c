//! How an event looks on the wire. The body is embedded or sent byte for byte; it is never parsed
//! and written again.
//!
//! Sources: cloudevents/spec `cloudevents/spec.md` and `bindings/http-protocol-binding.md` (1.0.2).

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use kit_journal::{EventHead, StoredEvent};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Shape of an outgoing request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// CloudEvents 1.0, structured mode: one JSON object, the body under `data`.
    #[default]
    CloudeventsStructured,
    /// CloudEvents 1.0, binary mode: attributes as `ce-` headers, the body as it is.
    CloudeventsBinary,
    /// `{"eventType": …, "payload": …}`, the shape of the reference platform's event bus.
    Envelope,
    /// The sender's bytes and its original headers.
    Raw,
}

/// A request body with the headers that belong to it.
#[derive(Debug)]
pub struct Rendered {
    /// Headers of the format, `content-type` included.
    pub headers: HeaderMap,
    /// The body.
    pub body: bytes::Bytes,
}

/// Renders an event.
pub fn render(event: &StoredEvent, format: Format) -> Rendered {
    match format {
        Format::CloudeventsStructured => structured(event),
        Format::CloudeventsBinary => binary(event),
        Format::Envelope => envelope(event),
        Format::Raw => raw(event),
    }
}

/// The CloudEvents attributes of an event but its data, in a fixed order.
///
/// `sequence` is the journal's position; `keyconflict` and `unattributed` appear only when true.
pub fn attributes(event: &StoredEvent) -> Vec<(&'static str, serde_json::Value)> {
    let head = &event.head;
    let mut attributes = vec![
        ("specversion", json!("1.0")),
        ("id", json!(head.id)),
        ("source", json!(head.source)),
        ("type", json!(head.event_type)),
        ("subject", json!(head.subject)),
        ("time", json!(time_of(event))),
        ("datacontenttype", json!(content_type(head))),
    ];
    let optional = [
        ("tenantid", &head.tenant),
        ("typealias", &head.alias),
        ("traceparent", &head.traceparent),
        ("tracestate", &head.tracestate),
    ];
    attributes.extend(optional.into_iter().filter_map(|(name, value)| Some((name, json!(value.as_ref()?)))));
    attributes.push(("sequence", json!(event.seq.to_string())));
    let flags = [("keyconflict", head.conflict), ("unattributed", head.unattributed)];
    attributes.extend(flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| (name, json!(true))));
    attributes
}

fn time_of(event: &StoredEvent) -> String {
    event.head.time.clone().unwrap_or_else(|| event.at.to_string())
}

fn content_type(head: &EventHead) -> &'static str {
    if head.json { "application/json" } else { "application/octet-stream" }
}

fn structured(event: &StoredEvent) -> Rendered {
    let mut text = String::from("{");
    for (name, value) in attributes(event) {
        let _ = write!(text, "\"{name}\":{value},");
    }
    Rendered {
        headers: one_header("application/cloudevents+json"),
        body: with_payload(text, if event.head.json { "data" } else { "data_base64" }, event),
    }
}

fn envelope(event: &StoredEvent) -> Rendered {
    let head = &event.head;
    let mut text = String::from("{");
    let fields = [
        ("eventType", json!(head.event_type)),
        ("eventId", json!(head.id)),
        ("source", json!(head.source)),
        ("subject", json!(head.subject)),
        ("tenantId", json!(head.tenant)),
        ("timestamp", json!(time_of(event))),
    ];
    for (name, value) in fields {
        let _ = write!(text, "\"{name}\":{value},");
    }
    Rendered {
        headers: one_header("application/json"),
        body: with_payload(text, if event.head.json { "payload" } else { "payload_base64" }, event),
    }
}

/// Ends an object with the event's body as its last member, verbatim where it is JSON.
fn with_payload(mut text: String, name: &str, event: &StoredEvent) -> bytes::Bytes {
    let _ = write!(text, "\"{name}\":");
    let mut body = text.into_bytes();
    if event.head.json {
        body.extend_from_slice(&event.body);
    } else {
        let _ = write!(BodyWriter(&mut body), "\"{}\"", STANDARD.encode(&event.body));
    }
    body.push(b'}');
    body.into()
}

struct BodyWriter<'a>(&'a mut Vec<u8>);

impl std::fmt::Write for BodyWriter<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn binary(event: &StoredEvent) -> Rendered {
    let mut headers = one_header(content_type(&event.head));
    for (name, value) in attributes(event) {
        let name = match name {
            // In binary mode this attribute *is* the content type.
            "datacontenttype" => continue,
            // The distributed tracing extension maps to the W3C header itself as well.
            "traceparent" | "tracestate" => {
                insert(&mut headers, name, text_of(&value));
                format!("ce-{name}")
            }
            _ => format!("ce-{name}"),
        };
        insert(&mut headers, &name, &percent_encode(text_of(&value)));
    }
    Rendered { headers, body: event.body.clone() }
}

fn text_of(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or("true")
}

fn raw(event: &StoredEvent) -> Rendered {
    let mut headers = HeaderMap::new();
    for (name, value) in &event.head.headers {
        insert(&mut headers, name, value);
    }
    if !headers.contains_key(http::header::CONTENT_TYPE) {
        insert(&mut headers, "content-type", content_type(&event.head));
    }
    Rendered { headers, body: event.body.clone() }
}

fn one_header(content_type: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))])
}

/// Adds a header; one whose name or value HTTP does not allow is left out, never mangled into
/// something that could be read as another header.
fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
        headers.append(name, value);
    }
}

/// The encoding of attribute values in headers: everything but printable ASCII, and the space, the
/// double quote and the percent sign, as UTF-8 octets (HTTP binding 3.1.3.2).
fn percent_encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b' ' | b'"' | b'%' => {
                let _ = write!(encoded, "%{byte:02X}");
            }
            0x21..=0x7e => encoded.push(char::from(byte)),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kit::clock::Timestamp;
    use kit_journal::EventId;
    use serde_json::Value;
    use serde_json::value::RawValue;

    /// An event with everything set.
    pub(crate) fn event(body: &[u8], json: bool) -> StoredEvent {
        StoredEvent {
            seq: 7,
            at: Timestamp::from_millis(1_700_000_000_123),
            head: EventHead {
                id: EventId::derive("lago/acme", "k", None),
                source: "lago/acme".to_owned(),
                event_type: "lago.invoice.created".to_owned(),
                subject: "invoice/Zoë \"1\" 100%".to_owned(),
                key: "k".to_owned(),
                scope: None,
                tenant: Some("tenant-1".to_owned()),
                unattributed: false,
                time: None,
                alias: Some("lago.other".to_owned()),
                conflict: true,
                json,
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
                tracestate: None,
                headers: vec![
                    ("content-type".into(), "application/json".to_owned()),
                    ("x-lago-unique-key".into(), "k".to_owned()),
                    ("x-bad\r\nname".into(), "v".to_owned()),
                    ("x-bad-value".into(), "a\r\nb: c".to_owned()),
                ],
            },
            body: bytes::Bytes::copy_from_slice(body),
        }
    }

    const BODY: &[u8] = br#"{"a":1.10,"b":"\u0026","c":12345678901234567890.123,"a":2}"#;

    #[test]
    fn structured_mode_carries_the_body_verbatim() {
        #[derive(Deserialize)]
        struct Structured<'a> {
            #[serde(borrow)]
            data: &'a RawValue,
            id: String,
            sequence: String,
            keyconflict: bool,
            time: String,
        }
        let rendered = render(&event(BODY, true), Format::CloudeventsStructured);
        let parsed: Structured<'_> = serde_json::from_slice(&rendered.body).unwrap();

        assert_eq!(parsed.data.get().as_bytes(), BODY);
        assert_eq!(parsed.id, event(BODY, true).head.id.to_string());
        assert_eq!((parsed.sequence.as_str(), parsed.keyconflict), ("7", true));
        assert_eq!(parsed.time, "2023-11-14T22:13:20.123Z");
        assert_eq!(rendered.headers["content-type"], "application/cloudevents+json");
    }

    #[test]
    fn what_is_not_json_travels_as_base64() {
        let rendered = render(&event(b"\xff\x00", false), Format::CloudeventsStructured);
        let parsed: Value = serde_json::from_slice(&rendered.body).unwrap();
        assert_eq!(parsed["data_base64"], "/wA=");
        assert_eq!(parsed["datacontenttype"], "application/octet-stream");
        assert!(parsed.get("data").is_none());

        let parsed: Value = serde_json::from_slice(&render(&event(b"\xff", false), Format::Envelope).body).unwrap();
        assert_eq!(parsed["payload_base64"], "/w==");
    }

    #[test]
    fn binary_mode_encodes_what_headers_cannot_hold() {
        let rendered = render(&event(BODY, true), Format::CloudeventsBinary);
        assert_eq!(rendered.body, BODY);
        assert_eq!(rendered.headers["ce-subject"], "invoice/Zo%C3%AB%20%221%22%20100%25");
        assert_eq!(rendered.headers["ce-specversion"], "1.0");
        assert_eq!(rendered.headers["ce-keyconflict"], "true");
        assert_eq!(rendered.headers["content-type"], "application/json");
        assert!(rendered.headers.contains_key("traceparent"));
        assert!(!rendered.headers.contains_key("ce-datacontenttype"));
    }

    #[test]
    fn the_envelope_is_the_platforms_shape() {
        let rendered = render(&event(BODY, true), Format::Envelope);
        let parsed: Value = serde_json::from_slice(&rendered.body).unwrap();
        assert_eq!(parsed["eventType"], "lago.invoice.created");
        assert_eq!(parsed["tenantId"], "tenant-1");
        assert!(rendered.body.windows(BODY.len()).any(|window| window == BODY));
    }

    #[test]
    fn raw_passes_the_senders_headers_and_never_an_injected_one() {
        let rendered = render(&event(BODY, true), Format::Raw);
        assert_eq!(rendered.body, BODY);
        assert_eq!(rendered.headers["x-lago-unique-key"], "k");
        assert_eq!(rendered.headers.len(), 2, "{:?}", rendered.headers);
    }
}
