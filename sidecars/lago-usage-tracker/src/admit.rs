//! From what a producer sends to an event for the journal: decisions over values, without I/O.

use std::borrow::Cow;

use kit::clock::Timestamp;
use kit_journal::{BodyDigest, Dedupe, EventHead, EventId, NewEvent, StoredEvent};
use kit_lago::usage::answer::EventAnswer;
use kit_lago::usage::{EpochSeconds, FieldErrors, UsageEvent, property};
use serde::Deserialize;
use serde_json::value::RawValue;

/// CloudEvents `source` of everything that producers report; with the transaction id as the key, and the subscription
/// as its scope, it is what makes an event the same event.
pub(crate) const SOURCE: &str = "usage";
/// Type of an event that Lago can be sent as it is.
pub(crate) const READY: &str = "usage.event";
/// Type of an event that is added up with others first.
pub(crate) const ROLLUP: &str = "usage.rollup";
/// Source of what producers report for a customer without naming the subscription, whose scope is the customer. It is
/// another one, so that a customer and a subscription may have the same id.
pub(crate) const CUSTOMERS: &str = "usage/customer";
/// Type of an event whose subscription is to be found.
pub(crate) const UNRESOLVED: &str = "usage.unresolved";
/// About what an answer has more than what is stored.
const ANSWER_ROOM: usize = 256;
/// Tenants that mean nobody in particular: whatever is reported for them is nobody's bill.
pub(crate) const NOBODY: [&str; 4] = ["default", "default_tenant", "global", "system"];

/// Turns a producer's event into one for the journal; what is wrong with it is said as Lago would. `name` is its
/// transaction id where it has none. One that names only a customer is [`UNRESOLVED`].
pub(crate) fn admit(event: &RawValue, name: Option<String>, now: Timestamp) -> Result<NewEvent, FieldErrors> {
    admit_answered(event, name, now).map(|(event, _)| event)
}

/// As [`admit`], with the event as Lago would show it, but for the time of its receipt ([`EventAnswer::finish`]).
pub(crate) fn admit_answered(
    event: &RawValue,
    name: Option<String>,
    now: Timestamp,
) -> Result<(NewEvent, String), FieldErrors> {
    let (event, content) = UsageEvent::read_hashed(event)?;
    let mut errors = FieldErrors::new();
    let Some(transaction_id) = event.transaction_id.as_deref().or(name.as_deref()) else {
        // Never made here: an id of ours would be another one when the same event comes again.
        errors.insert("transaction_id", vec!["value_is_mandatory"]);
        return Err(errors);
    };
    let customer = event.external_customer_id.as_deref();
    if customer.is_some_and(|customer| NOBODY.contains(&customer)) {
        errors.insert("external_customer_id", vec!["value_is_invalid"]);
        return Err(errors);
    }
    let timestamp = event.timestamp.clone().unwrap_or_else(|| EpochSeconds::from(now));
    let content = BodyDigest(content.0);
    // As what is stored will be answered with when it comes again.
    let properties = match event.external_subscription_id {
        Some(_) => event.outgoing_properties(),
        None => event.properties.map(Cow::Borrowed),
    };
    let properties = properties.as_deref();
    let new = match (event.external_subscription_id.as_deref(), customer) {
        (Some(subscription), _) => ready(&event, transaction_id, subscription, &timestamp, &content, properties),
        (None, Some(customer)) => {
            let id = EventId::derive_scoped(CUSTOMERS, transaction_id, customer, &content);
            let head = EventHead {
                scope: Some(customer.to_owned()),
                tenant: Some(customer.to_owned()),
                // Whether the time is the producer's: an event is the same whenever it comes.
                time: event.timestamp.as_ref().map(|time| time.to_timestamp().to_string()),
                json: true,
                ..EventHead::new(id, CUSTOMERS, UNRESOLVED, format!("customer/{customer}"), transaction_id)
            };
            NewEvent {
                head,
                body: event.to_json_with(transaction_id, None, &timestamp, properties),
                dedupe: Dedupe::Key,
            }
        }
        (None, None) => {
            errors.insert("external_subscription_id", vec!["value_is_mandatory"]);
            return Err(errors);
        }
    };
    let mut id = EventId::buffer();
    let answer = EventAnswer {
        lago_id: new.head.id.text(&mut id),
        transaction_id,
        lago_customer_id: None,
        code: &event.code,
        timestamp: timestamp.to_timestamp(),
        precise_total_amount_cents: event.precise_total_amount_cents.as_deref(),
        properties,
        lago_subscription_id: None,
        external_subscription_id: event.external_subscription_id.as_deref(),
        created_at: None,
    };
    // Texts and values that were read from JSON: nothing in it can fail to be written.
    let mut written = Vec::with_capacity(new.body.len() + ANSWER_ROOM);
    let _ = serde_json::to_writer(&mut written, &answer);
    Ok((new, String::from_utf8(written).unwrap_or_default()))
}

/// An event for Lago. `content` is what its producer sent, `properties` are what Lago is sent.
fn ready(
    event: &UsageEvent<'_>,
    transaction_id: &str,
    subscription: &str,
    timestamp: &EpochSeconds,
    content: &BodyDigest,
    properties: Option<&RawValue>,
) -> NewEvent {
    let id = EventId::derive_scoped(SOURCE, transaction_id, subscription, content);
    let head = EventHead {
        scope: Some(subscription.to_owned()),
        tenant: event.external_customer_id.as_deref().map(str::to_owned),
        json: true,
        ..EventHead::new(id, SOURCE, READY, format!("subscription/{subscription}"), transaction_id)
    };
    NewEvent {
        head,
        body: event.to_json_with(transaction_id, Some(subscription), timestamp, properties),
        dedupe: Dedupe::Key,
    }
}

/// An [`UNRESOLVED`] event as the event of this subscription: the same, id and all, as if its producer had named it.
pub(crate) fn resolved(unresolved: &StoredEvent, subscription: &str) -> Option<NewEvent> {
    let event = UsageEvent::reread(&unresolved.body)?;
    let timestamp = event.timestamp.clone()?;
    let sent = match unresolved.head.time {
        Some(_) => event.content(),
        None => UsageEvent { timestamp: None, ..event.clone() }.content(),
    };
    let properties = event.outgoing_properties();
    Some(ready(&event, &unresolved.head.key, subscription, &timestamp, &BodyDigest(sent.0), properties.as_deref()))
}

/// A stored event, read back for an answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Stored<'a> {
    #[serde(borrow)]
    pub(crate) transaction_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) external_subscription_id: Option<Cow<'a, str>>,
    /// Only where no subscription is named.
    #[serde(borrow, default)]
    pub(crate) external_customer_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) code: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: &'a RawValue,
    #[serde(borrow, default)]
    pub(crate) precise_total_amount_cents: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) properties: Option<&'a RawValue>,
}

impl<'a> Stored<'a> {
    /// Reads the body of an event that was admitted.
    pub(crate) fn read(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// A value of `properties`, as it was written.
    pub(crate) fn property(&self, name: &str) -> Option<&'a RawValue> {
        property(self.properties?, name)
    }

    /// When it happened.
    pub(crate) fn time(&self) -> Option<Timestamp> {
        self.seconds().map(|seconds| seconds.to_timestamp())
    }

    /// The same, digit by digit.
    pub(crate) fn seconds(&self) -> Option<EpochSeconds> {
        EpochSeconds::of_json(self.timestamp).ok()
    }

    /// The event as Lago would show it, received at `at`, if that is known.
    pub(crate) fn answer(&'a self, id: &'a str, at: Option<Timestamp>) -> EventAnswer<'a> {
        EventAnswer {
            lago_id: id,
            transaction_id: &self.transaction_id,
            lago_customer_id: None,
            code: &self.code,
            timestamp: self.time().or(at).unwrap_or_default(),
            precise_total_amount_cents: self.precise_total_amount_cents.as_deref(),
            properties: self.properties,
            lago_subscription_id: None,
            external_subscription_id: self.external_subscription_id.as_deref(),
            created_at: at,
        }
    }
}

/// The transaction id of an event in the journal.
pub(crate) fn transaction_id(event: &StoredEvent) -> &str {
    &event.head.key
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_732_000_000_250);

    fn admitted(json: &str) -> Result<NewEvent, FieldErrors> {
        admit(serde_json::from_str(json).unwrap(), None, NOW)
    }

    #[test]
    fn an_event_without_a_time_happened_when_it_came() {
        let event = admitted(r#"{"transaction_id":"t","external_subscription_id":"s","code":"c"}"#).unwrap();
        assert_eq!(
            String::from_utf8(event.body).unwrap(),
            r#"{"transaction_id":"t","external_subscription_id":"s","code":"c","timestamp":1732000000.25}"#
        );
        // Its identity does not hang on that: the same event comes again later.
        let json = r#"{"transaction_id":"t","external_subscription_id":"s","code":"c"}"#;
        let later = admit(serde_json::from_str(json).unwrap(), None, NOW.plus_millis(5_000)).unwrap();
        assert_eq!(later.head.id, event.head.id);
    }

    #[test]
    fn events_nobody_can_be_billed_for_or_that_have_no_name_are_refused() {
        for (json, field, code) in [
            (r#"{"external_subscription_id":"s","code":"c"}"#, "transaction_id", "value_is_mandatory"),
            (r#"{"transaction_id":"t","code":"c"}"#, "external_subscription_id", "value_is_mandatory"),
            (
                r#"{"transaction_id":"t","external_subscription_id":"s","external_customer_id":"global","code":"c"}"#,
                "external_customer_id",
                "value_is_invalid",
            ),
        ] {
            assert_eq!(admitted(json).unwrap_err(), FieldErrors::from([(field, vec![code])]), "{json}");
        }
    }

    fn stored(event: &NewEvent) -> StoredEvent {
        StoredEvent { seq: 1, at: NOW, head: event.head.clone(), body: event.body.clone().into() }
    }

    #[test]
    fn a_resolved_event_is_the_one_that_names_the_subscription() {
        for time in [r#","timestamp":"2024-11-19T07:06:40Z""#, ""] {
            // The number is one that Lago is sent as a text.
            let rest = format!(r#""transaction_id":"t","code":"c","properties":{{"gb":0.10000000000000000001}}{time}"#);
            let unresolved = admitted(&format!(r#"{{"external_customer_id":"c-1",{rest}}}"#)).unwrap();
            let direct =
                admitted(&format!(r#"{{"external_subscription_id":"s","external_customer_id":"c-1",{rest}}}"#))
                    .unwrap();
            assert_eq!(
                (unresolved.head.event_type.as_str(), unresolved.head.subject.as_str()),
                (UNRESOLVED, "customer/c-1")
            );

            let event = resolved(&stored(&unresolved), "s").unwrap();

            assert_eq!((&event.head, &event.body), (&direct.head, &direct.body));
            assert_ne!(resolved(&stored(&unresolved), "s-2").unwrap().head.id, event.head.id);
            // It comes again later, and is the same.
            let json = format!(r#"{{"external_customer_id":"c-1",{rest}}}"#);
            let later = admit(serde_json::from_str(&json).unwrap(), None, NOW.plus_millis(5_000)).unwrap();
            assert_eq!(later.head.id, unresolved.head.id);
            assert_eq!(resolved(&stored(&later), "s").unwrap().head.id, event.head.id);
        }
    }

    #[test]
    fn a_customer_and_a_subscription_may_have_the_same_id() {
        let of = |field: &str, id: &str| admitted(&format!(r#"{{"transaction_id":"t","code":"c","{field}":"{id}"}}"#));
        let customer = of("external_customer_id", "x").unwrap().head;
        for id in ["x", "customer/x"] {
            let subscription = of("external_subscription_id", id).unwrap().head;
            assert_ne!(customer.id, subscription.id);
            assert_ne!((&customer.source, &customer.scope), (&subscription.source, &subscription.scope));
        }
    }

    #[test]
    fn an_event_without_properties_is_answered_as_lago_does() {
        for properties in ["", r#","properties":null"#, r#","properties":[]"#] {
            let json = format!(r#"{{"transaction_id":"t","external_subscription_id":"s","code":"c"{properties}}}"#);
            let (event, answer) = admit_answered(serde_json::from_str(&json).unwrap(), None, NOW).unwrap();
            assert!(answer.contains(r#""properties":{},"#), "{answer}");
            let stored = Stored::read(&event.body).unwrap();
            assert_eq!(serde_json::to_string(&stored.answer(&event.head.id.to_string(), None)).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_stored_can_be_answered_with() {
        let json = r#"{"transaction_id":"t","external_subscription_id":"s","code":"c","timestamp":1732000000.5,
               "precise_total_amount_cents":"1.5","properties":{"gb":0.10,"tb":0.10000000000000000001}}"#;
        let (event, answer) = admit_answered(serde_json::from_str(json).unwrap(), None, NOW).unwrap();
        let stored = Stored::read(&event.body).unwrap();
        assert_eq!(serde_json::to_string(&stored.answer(&event.head.id.to_string(), None)).unwrap(), answer);
        let whole = serde_json::to_string(&stored.answer("id", Some(NOW))).unwrap();
        let mut finished = String::new();
        EventAnswer::finish(&serde_json::to_string(&stored.answer("id", None)).unwrap(), NOW, &mut finished);
        assert_eq!(finished, whole);
        assert_eq!(
            whole,
            concat!(
                r#"{"lago_id":"id","transaction_id":"t","lago_customer_id":null,"code":"c","#,
                r#""timestamp":"2024-11-19T07:06:40.500Z","precise_total_amount_cents":"1.5","properties":{"gb":0.10,"tb":"0.10000000000000000001"},"#,
                r#""lago_subscription_id":null,"external_subscription_id":"s","created_at":"2024-11-19T07:06:40.250Z"}"#
            )
        );
    }
}
