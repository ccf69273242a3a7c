//! An event as an AMQP message.
//!
//! Source: cloudevents/spec `cloudevents/bindings/amqp-protocol-binding.md` at v1.0.2 for the names; it is written for
//! AMQP 1.0, and RabbitMQ turns headers of 0-9-1 into its application properties.

use bytes::Bytes;
use kit_delivery::format::{Format, attributes, render};
use kit_journal::StoredEvent;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::config::NAME_BYTES;

/// Prefix of CloudEvents attributes among the headers.
pub(crate) const ATTRIBUTE: &str = "cloudEvents:";
/// Kept on the disk where the queue is durable.
const PERSISTENT: u8 = 2;
/// Bytes of a content header that are not values of ours, with much to spare.
const HEADER_OVERHEAD: usize = 512;

/// A message ready to be published.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// What returns are matched by.
    pub(crate) id: String,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

impl Outgoing {
    /// Properties and headers by their names, for people.
    pub(crate) fn listed(&self) -> Vec<(String, String)> {
        let Self { properties, .. } = self;
        let texts = [
            ("message_id", properties.message_id()),
            ("content_type", properties.content_type()),
            ("type", properties.kind()),
            ("app_id", properties.app_id()),
        ];
        let numbers =
            [("delivery_mode", properties.delivery_mode().map(u64::from)), ("timestamp", *properties.timestamp())];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.as_ref()?.to_string())));
        let numbers = numbers.into_iter().filter_map(|(name, number)| Some((name.to_owned(), number?.to_string())));
        let headers = properties.headers().iter().flat_map(|headers| headers.inner());
        let headers = headers.map(|(name, value)| match value {
            AMQPValue::LongString(text) => (format!("header {name}"), text.to_string()),
            other => (format!("header {name}"), format!("{other:?}")),
        });
        texts.chain(numbers).chain(headers).collect()
    }
}

/// How events become messages.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) format: Format,
    pub(crate) routing_key: String,
    pub(crate) app_id: String,
    pub(crate) message_limit: usize,
}

impl Shape {
    /// The message of an event, over a connection on which a frame has at most `frame_max` bytes: a larger one would end it,
    /// for all messages that are under way.
    ///
    /// # Errors
    /// Why there cannot be one.
    pub(crate) fn message(&self, event: &StoredEvent, frame_max: usize) -> Result<Outgoing, String> {
        let (head, id) = (&event.head, event.head.id.to_string());
        let routing_key = self.routing_key(event);
        let bytes = routing_key.len();
        let routing_key = ShortString::try_new(routing_key)
            .map_err(|_| format!("its routing key has {bytes} bytes, AMQP takes {NAME_BYTES}"))?;
        let rendered = render(event, self.format);
        let content_type = rendered.headers.get("content-type").and_then(|value| value.to_str().ok());
        let mut headers = FieldTable::default();
        let mut in_headers = 0;
        let mut add = |name: &str, value: &str| {
            if let Ok(key) = ShortString::try_new(name) {
                in_headers += name.len() + value.len() + 8;
                headers.insert(key, AMQPValue::LongString(value.into()));
            }
        };
        match self.format {
            Format::CloudeventsBinary => {
                // Of binary mode's HTTP headers these are the encoded form; AMQP takes the text as it is.
                for (name, value) in attributes(event).iter().filter(|(name, _)| *name != "datacontenttype") {
                    add(&format!("{ATTRIBUTE}{name}"), value.as_str().unwrap_or("true"));
                }
            }
            Format::Raw => {
                for (name, value) in rendered.headers.iter().filter(|(name, _)| *name != "content-type") {
                    add(name.as_str(), value.to_str().unwrap_or_default());
                }
            }
            Format::CloudeventsStructured | Format::Envelope => {}
        }
        for (name, value) in [("traceparent", &head.traceparent), ("tracestate", &head.tracestate)] {
            if let Some(value) = value {
                add(name, value);
            }
        }
        if in_headers > frame_max.saturating_sub(HEADER_OVERHEAD + 3 * NAME_BYTES) {
            return Err(format!(
                "its headers have {in_headers} bytes, more than a frame takes that was agreed with the broker \
                 ({frame_max}); the format cloudevents-structured has them in the body"
            ));
        }
        if rendered.body.len() > self.message_limit {
            return Err(format!(
                "its message has {} bytes, message_limit_bytes is {}",
                rendered.body.len(),
                self.message_limit
            ));
        }
        let mut properties = BasicProperties::default()
            .with_message_id(short(&id)?)
            .with_content_type(short(content_type.unwrap_or("application/octet-stream"))?)
            .with_delivery_mode(PERSISTENT)
            .with_timestamp(u64::try_from(event.at.as_millis() / 1000).unwrap_or(0))
            .with_app_id(short(&self.app_id)?);
        if let Ok(kind) = ShortString::try_new(head.event_type.as_str()) {
            properties = properties.with_type(kind);
        }
        if !headers.inner().is_empty() {
            properties = properties.with_headers(headers);
        }
        Ok(Outgoing { id, routing_key, properties, body: rendered.body })
    }

    fn routing_key(&self, event: &StoredEvent) -> String {
        let head = &event.head;
        let mut key = String::new();
        let mut rest = self.routing_key.as_str();
        // What is put in is not looked at again: a tenant may be named {type}.
        while let Some((before, after)) = rest.split_once('{') {
            key.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            match name {
                "type" => key.push_str(&head.event_type),
                "source" => key.push_str(&word(&head.source)),
                "tenant" => key.push_str(&head.tenant.as_deref().map_or_else(|| "-".to_owned(), word)),
                _ => {}
            }
            rest = after;
        }
        key + rest
    }
}

fn short(text: &str) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|_| format!("a property has {} bytes, AMQP takes {NAME_BYTES}", text.len()))
}

/// A value that stays one word of a routing key, and means nothing in a binding.
fn word(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut word, c| {
        match c {
            '.' | '*' | '#' | '%' => word.push_str(&format!("%{:02X}", u32::from(c))),
            c if c.is_control() => word.push('_'),
            c => word.push(c),
        }
        word
    })
}

/// The first placeholder of a template that there is not.
pub(crate) fn unknown_placeholder(template: &str) -> Option<&str> {
    template
        .split('{')
        .skip(1)
        .map(|rest| rest.split('}').next().unwrap_or(rest))
        .find(|name| !matches!(*name, "source" | "type" | "tenant"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit::clock::Timestamp;
    use kit_journal::{EventHead, EventId};

    use super::*;

    pub(crate) fn event(event_type: &str, body: &[u8]) -> StoredEvent {
        let id = EventId::derive("lago/acme", "k", None);
        StoredEvent {
            seq: 7,
            at: Timestamp::from_millis(1_700_000_000_123),
            head: EventHead {
                tenant: Some("a.b{type}#".to_owned()),
                json: true,
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
                ..EventHead::new(id, "lago/acme", event_type, "invoice/Zoë".to_owned(), "k")
            },
            body: Bytes::copy_from_slice(body),
        }
    }

    fn shape(format: Format, routing_key: &str) -> Shape {
        let (routing_key, app_id) = (routing_key.to_owned(), "daemon".to_owned());
        Shape { format, routing_key, app_id, message_limit: 1000 }
    }

    /// The smallest that there is.
    const FRAME: usize = 4096;
    const TYPE: &str = "lago.invoice.created";

    #[test]
    fn a_structured_message_carries_the_body_verbatim_and_is_persistent() {
        let message =
            shape(Format::CloudeventsStructured, "{type}").message(&event(TYPE, b"{\"a\": 1.10}"), FRAME).unwrap();
        let properties = &message.properties;

        assert_eq!(message.routing_key.as_str(), TYPE);
        assert!(message.body.windows(11).any(|window| window == b"{\"a\": 1.10}"));
        assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), message.id);
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(*properties.timestamp(), Some(1_700_000_000));
        assert!(properties.headers().as_ref().unwrap().contains_key("traceparent"));
    }

    #[test]
    fn a_binary_message_has_the_attributes_as_prefixed_headers() {
        let message = shape(Format::CloudeventsBinary, "{type}").message(&event(TYPE, b"{}"), FRAME).unwrap();
        let listed = message.listed();
        let text = |wanted: &str| listed.iter().find(|(name, _)| name == wanted).map(|(_, text)| text.as_str());
        assert_eq!((text("delivery_mode"), text("timestamp")), (Some("2"), Some("1700000000")));
        assert_eq!(text("message_id"), Some(message.id.as_str()));
        assert_eq!(text("header cloudEvents:specversion"), Some("1.0"));
        let headers = message.properties.headers().as_ref().unwrap();
        let text = |name: &str| match &headers.inner()[name] {
            AMQPValue::LongString(text) => text.to_string(),
            other => format!("{other:?}"),
        };

        assert_eq!(message.body, "{}");
        assert_eq!(text("cloudEvents:id"), message.id);
        assert_eq!(text("cloudEvents:specversion"), "1.0");
        assert_eq!(text("cloudEvents:subject"), "invoice/Zoë");
        assert!(!headers.contains_key("cloudEvents:datacontenttype"));
        assert_eq!(message.properties.content_type().as_ref().unwrap().as_str(), "application/json");
    }

    #[test]
    fn a_routing_key_keeps_its_words() {
        let check = |template: &str, expected: &str| {
            let message = shape(Format::Raw, template).message(&event(TYPE, b"{}"), FRAME).unwrap();
            assert_eq!(message.routing_key.as_str(), expected);
        };
        check("{type}", TYPE);
        check("x.{tenant}.{type}", "x.a%2Eb{type}%23.lago.invoice.created");
        check("{source}", "lago/acme");
        assert_eq!(unknown_placeholder("{type}.{tenant}"), None);
        assert_eq!(unknown_placeholder("{type}.{x}"), Some("x"));
    }

    #[test]
    fn what_amqp_cannot_carry_is_said_of_that_event_alone() {
        let check = |format: Format, event: &StoredEvent, expected: &str| {
            let error = shape(format, "{type}").message(event, FRAME).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(Format::CloudeventsStructured, &event(&"t".repeat(256), b"{}"), "routing key has 256 bytes");
        check(Format::CloudeventsStructured, &event(TYPE, &[b' '; 1001]), "message_limit_bytes is 1000");
        let mut wide = event(TYPE, b"{}");
        wide.head.subject = "s".repeat(4000);
        check(Format::CloudeventsBinary, &wide, "more than a frame");
        let long = event(&"t".repeat(256), b"{}");
        assert!(
            shape(Format::CloudeventsStructured, "fixed").message(&long, FRAME).unwrap().properties.kind().is_none()
        );
    }
}
