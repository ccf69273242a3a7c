//! CloudEvents 1.0 as they are received: structured and binary. Decisions over values, without I/O. The way out is
//! `format`.
//!
//! Source: cloudevents/spec `cloudevents/spec.md`, `bindings/http-protocol-binding.md` at v1.0.2.

use std::collections::HashMap;

use http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Why a request holds no CloudEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCloudEvents {
    /// Nothing says that it holds any.
    #[error(
        "the content type is not one of CloudEvents (application/cloudevents+json), and there is no header ce-id (in a \
         message cloudEvents:id, a text)"
    )]
    Type,
    /// The body is not what the content type says.
    #[error("the body is not JSON of that content type")]
    Body,
    /// It lacks what every event has.
    #[error("specversion (1.0), id or source is missing or empty")]
    Unnamed,
    /// CloudEvents' JSON format, section 3.1.1: one of the two at most, and bytes are a text.
    #[error("data and data_base64 are both there, or data_base64 is no text")]
    Data,
    /// A batch of none.
    #[error("there are no events")]
    Empty,
    /// A batch of more than are taken.
    #[error("there are too many events")]
    TooMany,
}

/// One CloudEvent, as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
pub struct CloudEvent<'a> {
    /// Version of the specification.
    #[serde(default)]
    pub specversion: String,
    /// Unique within the source.
    #[serde(default)]
    pub id: String,
    /// Who has sent it.
    #[serde(default)]
    pub source: String,
    /// What has happened.
    #[serde(rename = "type", default)]
    pub event_type: String,
    /// Extension of our own daemons: a second name of the type.
    #[serde(rename = "typealias", default)]
    pub type_alias: Option<String>,
    /// What it is about.
    #[serde(default)]
    pub subject: Option<String>,
    /// When it happened.
    #[serde(default)]
    pub time: Option<String>,
    /// Extension of our own daemons: whose it is. This and the next four are what not everybody reads: whatever stands
    /// there, the event is one, and only a text is taken.
    #[serde(skip)]
    pub tenant: Option<String>,
    /// W3C trace context.
    #[serde(skip)]
    pub traceparent: Option<String>,
    /// W3C trace state.
    #[serde(skip)]
    pub tracestate: Option<String>,
    /// JSON only.
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
    /// Data that is bytes, in structured mode.
    #[serde(skip)]
    pub data_base64: Option<String>,
    /// The media type of the data says JSON, in structured mode.
    #[serde(skip)]
    pub says_json: bool,
    /// The same in binary mode: the body.
    #[serde(skip)]
    pub bytes: Option<&'a [u8]>,
    /// The attributes came as headers.
    #[serde(skip)]
    pub is_binary: bool,
}

impl CloudEvent<'_> {
    /// Has what every event has: version 1, and the two that name it for ever.
    pub fn is_named(&self) -> bool {
        self.specversion.starts_with("1.") && !self.id.is_empty() && !self.source.is_empty()
    }
}

/// The one event of a request, structured or binary.
///
/// # Errors
/// [`NotCloudEvents`].
pub fn event<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<CloudEvent<'a>, NotCloudEvents> {
    let event = match media_type(headers).as_str() {
        "application/cloudevents+json" => {
            let raw: &RawValue = parse(body)?;
            let event = attributes(raw)?;
            // Of two of the same name the last one counts: they are read by nobody who decides.
            let all: HashMap<String, &RawValue> = parse(raw.get().as_bytes())?;
            let text = |name: &str| serde_json::from_str::<String>(all.get(name)?.get()).ok();
            let has_bytes = all.get("data_base64").is_some_and(|bytes| bytes.get() != "null");
            if has_bytes && (event.data.is_some() || text("data_base64").is_none()) {
                return Err(NotCloudEvents::Data);
            }
            CloudEvent {
                says_json: text("datacontenttype").is_some_and(|kind| is_json(&essence(&kind))),
                tenant: text("tenantid"),
                traceparent: text("traceparent"),
                tracestate: text("tracestate"),
                data_base64: text("data_base64"),
                ..event
            }
        }
        media_type if headers.contains_key("ce-id") => {
            let is_json = is_json(media_type);
            let event = binary(headers, if is_json { body } else { b"" })?;
            CloudEvent { bytes: (!is_json && !body.is_empty()).then_some(body), ..event }
        }
        _ => return Err(NotCloudEvents::Type),
    };
    if event.is_named() { Ok(event) } else { Err(NotCloudEvents::Unnamed) }
}

/// The content type without its parameters, in small letters.
pub fn media_type(headers: &HeaderMap) -> String {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    essence(content_type)
}

fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_json(media_type: &str) -> bool {
    media_type.ends_with("json")
}

/// Reads JSON.
///
/// # Errors
/// [`NotCloudEvents::Body`].
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, NotCloudEvents> {
    serde_json::from_slice(body).map_err(|_| NotCloudEvents::Body)
}

/// The event that a JSON object is in structured mode.
///
/// # Errors
/// [`NotCloudEvents::Body`].
pub fn attributes(event: &RawValue) -> Result<CloudEvent<'_>, NotCloudEvents> {
    // An array would be taken for the attributes in their order.
    if event.get().starts_with('{') { parse(event.get().as_bytes()) } else { Err(NotCloudEvents::Body) }
}

/// The event whose attributes are headers and whose data is this JSON, where it is any.
///
/// # Errors
/// [`NotCloudEvents::Body`].
pub fn binary<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<CloudEvent<'a>, NotCloudEvents> {
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
        tenant: text("ce-tenantid"),
        traceparent: text("ce-traceparent"),
        tracestate: text("ce-tracestate"),
        data,
        data_base64: None,
        says_json: false,
        bytes: None,
        is_binary: true,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EVENT: &str = r#"{"specversion":"1.0","id":"e-1","source":"/apps/a","type":"api_calls","subject":"s-1",
        "time":"2026-11-21T12:00:00Z","data":{"calls": 0.10000000000000000001}}"#;

    /// A webhook's data may be anything; whether it is needed is the receiver's matter.
    #[test]
    fn one_event_is_read_in_both_modes_and_data_that_is_not_json_is_no_data() {
        let headers = |list: &[(&'static str, &str)]| -> HeaderMap {
            list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        let structured = headers(&[("content-type", "application/cloudevents+json")]);
        let read = event(&structured, EVENT.as_bytes()).unwrap();
        assert_eq!((read.id.as_str(), read.event_type.as_str()), ("e-1", "api_calls"));
        assert_eq!(read.data.unwrap().get(), r#"{"calls": 0.10000000000000000001}"#);

        let odd = EVENT.replacen(
            '{',
            r#"{"tenantid":42,"traceparent":{},"tracestate":"a","tracestate":"b","data_base64":null,"#,
            1,
        );
        let read = event(&structured, odd.as_bytes()).unwrap();
        assert_eq!((read.tenant, read.traceparent, read.tracestate), (None, None, Some("b".to_owned())));
        let named = [("ce-specversion", "1.0"), ("ce-id", "e%201"), ("ce-source", "a"), ("ce-typealias", "b")];
        for (content_type, body, data) in [
            ("application/json", "{}", Ok((Some("{}"), None))),
            ("application/vnd.x+json; charset=utf-8", "[1]", Ok((Some("[1]"), None))),
            ("application/octet-stream", "\u{0}", Ok((None, Some(&b"\0"[..])))),
            ("application/octet-stream", "", Ok((None, None))),
            ("application/json", "{", Err(NotCloudEvents::Body)),
        ] {
            let headers = headers(&[&named[..], &[("content-type", content_type)]].concat());
            let read = event(&headers, body.as_bytes());
            let found = read.as_ref().map(|event| (event.data.map(RawValue::get), event.bytes));
            assert_eq!(found.map_err(|error| *error), data, "{body}");
            assert!(read.is_err() || read.is_ok_and(|event| event.id == "e 1" && event.type_alias.unwrap() == "b"));
        }
        let batch = headers(&[("content-type", "application/cloudevents-batch+json")]);
        assert_eq!(event(&batch, format!("[{EVENT}]").as_bytes()).unwrap_err(), NotCloudEvents::Type);
        assert_eq!(event(&structured, b"{}").unwrap_err(), NotCloudEvents::Unnamed);
        for lacking in [&named[1..], &[("ce-specversion", "1.0"), ("ce-id", ""), ("ce-source", "a")]] {
            assert_eq!(event(&headers(lacking), b"").unwrap_err(), NotCloudEvents::Unnamed, "{lacking:?}");
        }
        for more in [r#""data_base64":"AA==","#, r#""data_base64":5,"#] {
            let odd = EVENT.replacen('{', &format!("{{{more}"), 1);
            assert_eq!(event(&structured, odd.as_bytes()).unwrap_err(), NotCloudEvents::Data, "{more}");
        }
        let odd = EVENT.replacen("\"data\":{\"calls\": 0.10000000000000000001}", "\"data_base64\":5", 1);
        assert_eq!(event(&structured, odd.as_bytes()).unwrap_err(), NotCloudEvents::Data);
    }
}
