//! What Lago says of events after it has answered 200 to them: the webhooks `event.error` and `events.errors`.
//!
//! Source: getlago/lago-api `app/serializers/v1/event_error_serializer.rb`, `app/services/events/post_process_service.rb`
//! and `app/serializers/v1/events_validation_errors_serializer.rb`, at v1.16.0 and at the head of 2026-08-21.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{in_words, is_known, printable};

/// One event that Lago says something of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The event's transaction id.
    pub transaction_id: String,
    /// Its subscription, where Lago says so: `events.errors` never does.
    pub external_subscription_id: Option<String>,
    /// Why Lago cannot use it, in its own codes; bounded, without control characters. `None` where nothing is lost: two
    /// requests brought the event at the same moment, and Lago has kept one.
    pub reason: Option<String>,
}

/// Reads the body of a webhook of this type. Empty for every other type, and for what names no events.
pub fn complaints(webhook_type: &str, body: &str) -> Vec<Complaint> {
    match webhook_type {
        "event.error" => one(body).into_iter().collect(),
        "events.errors" => many(body).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Right after the event was taken. v1.16.0: it turned out to be there already, or to be invalid; later versions: also a
/// wallet that does not exist.
fn one(body: &str) -> Option<Complaint> {
    #[derive(Deserialize)]
    struct Webhook<'a> {
        #[serde(borrow)]
        event_error: Error<'a>,
    }
    #[derive(Deserialize)]
    struct Error<'a> {
        #[serde(borrow, default)]
        error: Option<Cow<'a, str>>,
        /// JSON in a text: codes by field.
        #[serde(borrow, default)]
        message: Option<Cow<'a, str>>,
        #[serde(borrow)]
        event: Event<'a>,
    }
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        transaction_id: Cow<'a, str>,
        #[serde(borrow, default)]
        external_subscription_id: Option<Cow<'a, str>>,
    }
    let Webhook { event_error: Error { error, message, event } } = serde_json::from_str(body).ok()?;
    let codes = message.as_deref().and_then(|text| serde_json::from_str::<BTreeMap<String, Vec<String>>>(text).ok());
    let reason = match &codes {
        Some(codes) if is_known(codes) => None,
        Some(codes) if !codes.is_empty() => Some(in_words(codes)),
        _ => Some(printable(message.or(error).as_deref().unwrap_or("no reason given"))),
    };
    Some(Complaint {
        transaction_id: event.transaction_id.into_owned(),
        external_subscription_id: event.external_subscription_id.map(Cow::into_owned),
        reason,
    })
}

/// Once an hour, for the hour before: transaction ids by what is wrong.
fn many(body: &str) -> Option<Vec<Complaint>> {
    #[derive(Deserialize)]
    struct Webhook<'a> {
        #[serde(borrow)]
        events_errors: BTreeMap<Cow<'a, str>, &'a RawValue>,
    }
    let lists: Webhook<'_> = serde_json::from_str(body).ok()?;
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (kind, ids) in &lists.events_errors {
        // A list that is no longer filled is `null`.
        for id in serde_json::from_str::<Vec<String>>(ids.get()).unwrap_or_default() {
            kinds.entry(id).or_default().push(kind.to_string());
        }
    }
    let complaint = |(transaction_id, kinds): (String, Vec<String>)| Complaint {
        transaction_id,
        external_subscription_id: None,
        reason: Some(printable(&kinds.join(", "))),
    };
    Some(kinds.into_iter().map(complaint).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(id: &str, subscription: Option<&str>, reason: Option<&str>) -> Complaint {
        Complaint {
            transaction_id: id.to_owned(),
            external_subscription_id: subscription.map(str::to_owned),
            reason: reason.map(str::to_owned),
        }
    }

    fn about_one(message: &str) -> Vec<Complaint> {
        let message = serde_json::Value::from(message);
        let body = format!(
            r#"{{"webhook_type":"event.error","object_type":"event_error","event_error":{{"status":422,
                "error":"Unprocessable entity","message":{message},"event":{{"lago_id":"x","transaction_id":"t-1",
                "code":"calls","external_subscription_id":"s-1","properties":{{"a":1}}}}}}}}"#
        );
        complaints("event.error", &body)
    }

    #[test]
    fn an_error_of_one_event_is_told_in_lagos_codes() {
        for (message, reason) in [
            (
                r#"{"target_wallet_code":["target_wallet_code_not_found"]}"#,
                "target_wallet_code: target_wallet_code_not_found",
            ),
            (
                r#"{"code":["a","b"],"transaction_id":["value_already_exist"]}"#,
                "code: a, b; transaction_id: value_already_exist",
            ),
            ("no JSON\n", "no JSON "),
            ("{}", "{}"),
        ] {
            assert_eq!(about_one(message), [complaint("t-1", Some("s-1"), Some(reason))], "{message}");
        }
    }

    /// v1.16.0 says so of two requests that bring an event at the same moment: one of them was stored.
    #[test]
    fn an_event_that_is_there_already_is_no_loss() {
        assert_eq!(about_one(r#"{"transaction_id":["value_already_exist"]}"#), [complaint("t-1", Some("s-1"), None)]);
    }

    #[test]
    fn the_hourly_list_names_events_by_what_is_wrong_with_them() {
        let body = r#"{"webhook_type":"events.errors","object_type":"events_errors","events_errors":{
            "invalid_code":["b","a"],"missing_aggregation_property":["b"],"missing_group_key":null,
            "invalid_filter_values":[],"of_a_later_version":["c"],"odd":7}}"#;
        assert_eq!(
            complaints("events.errors", body),
            [
                complaint("a", None, Some("invalid_code")),
                complaint("b", None, Some("invalid_code, missing_aggregation_property")),
                complaint("c", None, Some("of_a_later_version")),
            ]
        );
    }

    #[test]
    fn the_built_in_samples_are_read() {
        for webhook_type in ["event.error", "events.errors"] {
            let body = crate::sample::sample(webhook_type, &crate::sample::Shape::default());
            assert_eq!(complaints(webhook_type, &body).len(), 1, "{body}");
        }
    }

    #[test]
    fn what_names_no_event_is_no_complaint() {
        for (webhook_type, body) in [
            ("invoice.created", r#"{"events_errors":{"invalid_code":["a"]}}"#),
            ("events.errors", r#"{"events_errors":null}"#),
            ("events.errors", "{}"),
            ("events.errors", "["),
            ("event.error", r#"{"event_error":{"message":"{}"}}"#),
            ("event.error", r#"{"event_error":{"message":"{}","event":{"transaction_id":null}}}"#),
            ("event.error", r#"{"event_error":{"message":{},"event":{"transaction_id":"t"}}}"#),
        ] {
            assert_eq!(complaints(webhook_type, body), [], "{webhook_type} {body}");
        }
    }
}
