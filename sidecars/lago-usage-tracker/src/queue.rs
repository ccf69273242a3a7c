//! Usage from a RabbitMQ queue, by the same rules as usage by HTTP (`http.rs`): a message is acknowledged once its events
//! are in the journal, and goes to the queue of dead letters where a producer would get a 4xx.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::clock::SharedClock;
use kit::config::Problems;
use kit::lifecycle::Shell;
use kit::run::StartError;
use kit::telemetry::Metrics;
use kit_amqp::{AmqpMetrics, AmqpSource, AmqpSourceSection, Message, Taken};
use kit_delivery::start::configuration;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::http::{Intake, Shape, take_body};
use crate::producers::Producer;
use crate::refusal::Refusal;

/// Name of the connection in metrics and at the broker.
const SOURCE: &str = "usage";
const DAEMON: &str = "lago-usage-tracker";

/// Reports what of the section cannot be used.
pub(crate) fn check(section: &AmqpSourceSection, problems: &mut Problems) {
    if !section.is_set() {
        return;
    }
    let clock = Arc::new(kit::clock::SystemClock);
    if let Err(errors) = AmqpSource::new(SOURCE, DAEMON, section, &AmqpMetrics::default(), clock) {
        for error in errors {
            problems.add(&format!("amqp_source.{}", error.path), &error.message);
        }
    }
}

/// Takes messages, if there is a queue to take them from.
pub(crate) fn start(
    shell: &mut Shell,
    section: &AmqpSourceSection,
    metrics: &Metrics,
    intake: &Arc<Intake>,
    clock: &SharedClock,
) -> Result<(), StartError> {
    if !section.is_set() {
        return Ok(());
    }
    let metrics = metrics.with_registry(AmqpMetrics::register);
    let source = AmqpSource::new(SOURCE, DAEMON, section, &metrics, Arc::clone(clock)).map_err(|errors| {
        configuration(errors.iter().map(|error| format!("amqp_source.{error}")).collect::<Vec<_>>().join("; "))
    })?;
    let (stop, health) = (shell.stop_token(), intake.journal.health());
    let (intake, producer) = (Arc::clone(intake), Arc::new(Producer::of_queue()));
    let receive = move |message: Arc<Message>| -> BoxFuture<'static, Taken> {
        let (intake, producer) = (Arc::clone(&intake), Arc::clone(&producer));
        async move { take(&intake, &producer, &message).await }.boxed()
    };
    shell.spawn("usage queue", source.run(stop, health, receive));
    Ok(())
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
                Refusal::Bad(bad) => Taken::Rejected(format!("the body is not usage in Lago's shape: {bad:?}")),
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
