//! One received request, read back into the event it carries.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Digest, Moment};

/// How an event was put into the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// CloudEvents structured mode: one JSON document, media type `application/cloudevents+json`.
    CloudeventsStructured,
    /// CloudEvents binary mode: attributes in `ce-` headers, the sender's bytes as body.
    CloudeventsBinary,
    /// `{"eventType": …, "payload": …}`, or `payload_base64` for what is not JSON.
    Envelope,
    /// The sender's bytes and nothing else.
    Raw,
    /// Announced as CloudEvents structured mode, but not readable as such.
    Malformed,
}

/// What a behaviour may decide by: the request and the event read from it.
#[derive(Clone, Debug)]
pub struct ReceivedHead {
    /// Number of this request since the gateway was started, from 1.
    pub number: u64,
    /// HTTP method.
    pub method: String,
    /// Path and query as received.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The event's id: CloudEvents `id`, else the `webhook-id` header.
    pub event_id: Option<String>,
    /// CloudEvents `type`, or the envelope's `eventType`.
    pub event_type: Option<String>,
    /// CloudEvents `subject`.
    pub subject: Option<String>,
    /// Which arrival of this event id this is, from 1; 1 also where there is no id.
    pub attempt: u32,
}

/// One request that was read completely.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Received {
    /// Number since the gateway was started, from 1.
    pub number: u64,
    /// When its last byte had been read.
    pub at: Moment,
    /// HTTP method.
    pub method: String,
    /// Path and query as received.
    pub path: String,
    /// Headers in order of arrival; empty when
    /// [`keep_headers`](super::GatewayOptions::keep_headers) is off.
    pub headers: Vec<(String, String)>,
    /// How the event was packed.
    pub format: Format,
    /// The event's id: CloudEvents `id`, else the `webhook-id` header.
    pub event_id: Option<String>,
    /// CloudEvents `type`, or the envelope's `eventType`.
    pub event_type: Option<String>,
    /// CloudEvents `subject`.
    pub subject: Option<String>,
    /// CloudEvents `source`.
    pub source: Option<String>,
    /// CloudEvents extension `tenantid`.
    pub tenant: Option<String>,
    /// Header `x-lago-unique-key`, which raw deliveries keep.
    pub unique_key: Option<String>,
    /// SHA-256 of the sender's own bytes, unpacked from whatever the format wraps around them.
    ///
    /// Blanks around a JSON document are not part of it once it sits inside another one, so they do
    /// not count in the structured and envelope formats.
    pub data_sha256: Digest,
    /// Size of the request's body in bytes, packing included.
    pub body_len: usize,
    /// Standard Webhooks signature: `None` where the gateway was given no secret.
    pub signature_ok: Option<bool>,
    /// The status answered; 0 while there is no answer, and for ever where none is given.
    pub answered: u16,
    /// When the answer was handed to the connection.
    pub answered_at: Option<Moment>,
    /// Whether the gateway took the event over. A 2xx does, except [`Behaviour::Ignored`] and
    /// answers that break off.
    ///
    /// [`Behaviour::Ignored`]: super::Behaviour::Ignored
    pub taken: bool,
    /// The request's body, where [`keep_bodies`](super::GatewayOptions::keep_bodies) is on.
    #[serde(skip)]
    pub body: Option<Bytes>,
}

impl Received {
    /// The first header with this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The event inside a request.
pub(super) struct Unpacked {
    pub(super) format: Format,
    pub(super) event_id: Option<String>,
    pub(super) event_type: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) source: Option<String>,
    pub(super) tenant: Option<String>,
    pub(super) data_sha256: Digest,
}

#[derive(Deserialize)]
struct Structured<'a> {
    specversion: String,
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    source: String,
    subject: Option<String>,
    tenantid: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

/// A `data` that is there, `null` included: the sender's document may be just that.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "eventType")]
    event_type: String,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    payload_base64: Option<String>,
}

/// Reads the event out of a request, by media type and headers alone: nothing is configured, so
/// that a daemon set to the wrong format is noticed.
pub(super) fn unpack(headers: &HeaderMap, body: &[u8]) -> Unpacked {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let webhook_id = text("webhook-id");
    let media_type = text("content-type").unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();

    if media_type.eq_ignore_ascii_case("application/cloudevents+json") {
        if let Some(unpacked) = structured(body) {
            return unpacked;
        }
        return Unpacked { event_id: webhook_id, ..bare(Format::Malformed, body) };
    }
    if headers.contains_key("ce-specversion") || headers.contains_key("ce-id") {
        return Unpacked {
            event_id: text("ce-id").or(webhook_id),
            event_type: text("ce-type"),
            // Header values are percent-encoded where they hold blanks or non-ASCII.
            // Source: cloudevents/spec `bindings/http-protocol-binding.md` §3.1.3.2.
            subject: text("ce-subject").map(|value| percent_decoded(&value)),
            source: text("ce-source").map(|value| percent_decoded(&value)),
            tenant: text("ce-tenantid").map(|value| percent_decoded(&value)),
            ..bare(Format::CloudeventsBinary, body)
        };
    }
    if let Ok(Envelope { event_type, payload, payload_base64 }) = serde_json::from_slice(body) {
        let decoded = payload_base64.and_then(|text| STANDARD.decode(text).ok());
        let data = match (payload, &decoded) {
            (Some(payload), None) => Some(payload.get().as_bytes()),
            (None, Some(decoded)) => Some(decoded.as_slice()),
            _ => None,
        };
        if let Some(data) = data {
            return Unpacked { event_id: webhook_id, event_type: Some(event_type), ..bare(Format::Envelope, data) };
        }
    }
    Unpacked { event_id: webhook_id, ..bare(Format::Raw, body) }
}

fn structured(body: &[u8]) -> Option<Unpacked> {
    let event: Structured<'_> = serde_json::from_slice(body).ok()?;
    if event.specversion != "1.0" {
        return None;
    }
    let data_sha256 = match (event.data, event.data_base64) {
        (Some(data), None) => Digest::of(data.get().as_bytes()),
        (None, Some(data)) => Digest::of(&STANDARD.decode(data).ok()?),
        (None, None) => Digest::of(b""),
        // The specification allows one of them only.
        (Some(_), Some(_)) => return None,
    };
    Some(Unpacked {
        format: Format::CloudeventsStructured,
        event_id: Some(event.id),
        event_type: Some(event.event_type),
        subject: event.subject,
        source: Some(event.source),
        tenant: event.tenantid,
        data_sha256,
    })
}

fn bare(format: Format, data: &[u8]) -> Unpacked {
    Unpacked {
        format,
        event_id: None,
        event_type: None,
        subject: None,
        source: None,
        tenant: None,
        data_sha256: Digest::of(data),
    }
}

fn percent_decoded(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut position = 0;
    while let Some(byte) = bytes.get(position) {
        let pair = (hex(bytes.get(position + 1)), hex(bytes.get(position + 2)));
        match (byte, pair) {
            (b'%', (Some(high), Some(low))) => {
                decoded.push((high * 16 + low) as u8);
                position += 3;
            }
            _ => {
                decoded.push(*byte);
                position += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
