//! Usage from a RabbitMQ queue, by the same rules as usage by HTTP (`http.rs`): a message is acknowledged once its events
//! are in the journal, and goes to the queue of dead letters where a producer would get a 4xx.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit_amqp::{AmqpSourceSection, Inbox, Message, Taken};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::http::{Intake, Shape, take_body};
use crate::producers::Producer;
use crate::refusal::Refusal;

/// The queue, if there is one to take messages from.
pub(crate) fn inbox(section: &AmqpSourceSection) -> Inbox<'_> {
    Inbox { daemon: "lago-usage-tracker", name: "usage", section }
}

/// What takes its messages.
pub(crate) fn taker(intake: &Arc<Intake>) -> impl Fn(Arc<Message>) -> BoxFuture<'static, Taken> + use<> {
    let (intake, producer) = (Arc::clone(intake), Arc::new(Producer::of_queue()));
    move |message| {
        let (intake, producer) = (Arc::clone(&intake), Arc::clone(&producer));
        async move { take(&intake, &producer, &message).await }.boxed()
    }
}

async fn take(intake: &Intake, producer: &Producer, message: &Message) -> Taken {
    let (headers, body, shape) = as_request(message);
    match take_body(intake, producer, &headers, body, shape).await {
        Ok(_) => Taken::Accepted,
        Err(refusal) => {
            intake.metrics.refused(refusal.reason());
            match refusal {
                Refusal::Journal | Refusal::Busy | Refusal::Undecided => Taken::TryLater(refusal.reason().to_owned()),
                Refusal::Invalid(errors) => Taken::Rejected(in_words(&errors)),
                Refusal::InvalidBatch(errors) => Taken::Rejected(in_words(&errors)),
                Refusal::Bad(bad) => Taken::Rejected(format!("not usage in Lago's shape: {bad}")),
                Refusal::NotCloudEvents(not) => Taken::Rejected(not.to_string()),
                other => Taken::Rejected(other.reason().to_owned()),
            }
        }
    }
}

fn in_words(errors: &impl serde::Serialize) -> String {
    format!("invalid usage: {}", serde_json::to_string(errors).unwrap_or_default())
}

/// The message as a producer would have sent it by HTTP.
fn as_request(message: &Message) -> (HeaderMap, Vec<u8>, Shape) {
    let mut headers = message.request_headers();
    if let Some(id) = message.message_id.as_deref().and_then(|id| HeaderValue::try_from(id).ok()) {
        headers.insert("idempotency-key", id);
    }
    let media_type = message.content_type.as_deref().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type.starts_with("application/cloudevents") || headers.contains_key("ce-id") {
        return (headers, message.body.clone(), Shape::CloudEvents);
    }
    match serde_json::from_slice::<Keys>(&message.body) {
        Ok(keys) if keys.events.is_some() => (headers, message.body.clone(), Shape::Batch),
        // An event without Lago's wrapping.
        Ok(keys) if keys.event.is_none() && keys.code.is_some() => {
            (headers, [b"{\"event\":", message.body.as_slice(), b"}"].concat(), Shape::One)
        }
        _ => (headers, message.body.clone(), Shape::One),
    }
}

/// What tells the shapes apart.
#[derive(Deserialize)]
struct Keys {
    event: Option<IgnoredAny>,
    events: Option<IgnoredAny>,
    code: Option<IgnoredAny>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cloudevents;

    fn message(content_type: &str, headers: &[(&str, &str)], body: &str) -> Message {
        Message {
            body: body.as_bytes().to_vec(),
            content_type: Some(content_type.to_owned()),
            message_id: Some("m-1".to_owned()),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Message::default()
        }
    }

    #[test]
    fn the_shape_is_told_by_type_and_content() {
        let check = |content_type: &str, body: &str, shape: Shape, expected: &str| {
            let (headers, body, found) = as_request(&message(content_type, &[], body));
            assert_eq!((found, String::from_utf8(body).unwrap().as_str()), (shape, expected));
            assert_eq!(headers["idempotency-key"], "m-1");
        };
        check("application/json", r#"{"event":{"code":"c"}}"#, Shape::One, r#"{"event":{"code":"c"}}"#);
        check("application/json", r#"{"events":[]}"#, Shape::Batch, r#"{"events":[]}"#);
        check("text/plain", r#"{"code":"c"}"#, Shape::One, r#"{"event":{"code":"c"}}"#);
        check("application/json", "no json", Shape::One, "no json");
        check("application/cloudevents+json", "{}", Shape::CloudEvents, "{}");
        check("application/cloudevents-batch+json; charset=utf-8", "[]", Shape::CloudEvents, "[]");
    }

    /// Two messages whose ids differ in other letters are two.
    #[test]
    fn a_message_id_names_its_events_in_whatever_letters() {
        let key = |id: &str| {
            let message = Message { message_id: Some(id.to_owned()), ..message("application/json", &[], "{}") };
            let (headers, ..) = as_request(&message);
            crate::http::idempotency_key(&headers).map(std::borrow::Cow::into_owned)
        };
        assert_eq!(key("m-1").as_deref(), Some("m-1"));
        assert!(key("b\u{e9}-1").is_some());
        assert_ne!(key("b\u{e9}-1"), key("b\u{e8}-1"));
        assert_eq!(key("\u{e9}\n"), None, "nor is that a header");
    }

    #[test]
    fn attributes_of_binary_mode_are_read_whatever_they_hold() {
        let headers = [
            ("cloudEvents:id", "e 1"),
            ("cloudEvents:source", "/apps/ä"),
            ("cloudEvents:specversion", "1.0"),
            ("cloudEvents_type", "api_calls"),
            ("cloudEvents:subject", "s-1"),
            ("x-other", "x"),
        ];
        let (headers, body, shape) = as_request(&message("application/json", &headers, r#"{"calls":1}"#));
        assert_eq!(shape, Shape::CloudEvents);
        assert!(!headers.contains_key("x-other"));
        let events = cloudevents::usage_events(&headers, &body, 1).unwrap();
        let id = cloudevents::transaction_id("/apps/ä", "e 1");
        assert!(events[0].get().contains(&id) && events[0].get().contains(r#""code":"api_calls""#), "{events:?}");
    }
}
