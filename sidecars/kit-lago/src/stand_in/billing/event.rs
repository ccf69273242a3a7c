//! Usage events as they arrive, read without copying them: the text of every value stays what the
//! sender wrote. What Lago's parameter lists let through is decided here, what it accepts is not.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The body of a request, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct Root<'a> {
    /// The value of `event`.
    pub(super) event: Option<&'a RawValue>,
    /// The value of `events`.
    pub(super) events: Option<&'a RawValue>,
}

/// The body is no JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What was sent under `event` or `events`.
#[derive(Debug)]
pub(super) enum Sent<'a> {
    /// Nothing, or something empty.
    Nothing,
    /// Events in the order of the request.
    Events(Vec<Incoming<'a>>),
    /// A shape that Lago's code does not expect: it fails with a 500.
    Unexpected,
}

/// One event as it arrived. Fields of another type than a scalar are dropped by Lago's parameter
/// list and count as absent, as do all fields with other names.
///
/// Source: getlago/lago-api `app/controllers/api/v1/events_controller.rb`, `create_params` and
/// `batch_params`, at v1.16.0; rails/rails `ActionController::Parameters#permit` at 7.1.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    /// The whole object, byte for byte.
    pub(super) raw: &'a str,
    pub(super) transaction_id: Option<Cow<'a, str>>,
    pub(super) code: Option<Cow<'a, str>>,
    pub(super) external_subscription_id: Option<Cow<'a, str>>,
    pub(super) timestamp: Option<&'a RawValue>,
    /// An object, `{}` where there is none.
    pub(super) properties: &'a str,
    pub(super) precise_total_amount_cents: Option<Cow<'a, str>>,
}

impl<'a> Root<'a> {
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        // Rails gives a request without body no parameters, and puts a list or a scalar under
        // `_json`: both lack the root key.
        let beginning = body.iter().find(|byte| !byte.is_ascii_whitespace());
        match beginning {
            None => Ok(Self::default()),
            Some(b'{') => serde_json::from_slice(body).map_err(|_| Malformed),
            Some(_) => serde_json::from_slice::<IgnoredAny>(body).map(|_| Self::default()).map_err(|_| Malformed),
        }
    }

    /// What was sent to the endpoint for single events.
    pub(super) fn single(&self) -> Sent<'a> {
        let Some(raw) = self.event.map(RawValue::get) else {
            return Sent::Nothing;
        };
        match Incoming::read(raw) {
            Some(_) if is_empty(raw) => Sent::Nothing,
            Some(event) => Sent::Events(vec![event]),
            None if matches!(raw, "null" | "false" | "\"\"") || is_empty(raw) => Sent::Nothing,
            None => Sent::Unexpected,
        }
    }

    /// What was sent to the endpoint for batches. What is not an object drops out of the list, and
    /// later positions are counted without it.
    pub(super) fn batch(&self) -> Sent<'a> {
        let Some(raw) = self.events.map(RawValue::get) else {
            return Sent::Nothing;
        };
        if raw.starts_with('{') {
            return if is_empty(raw) { Sent::Nothing } else { Sent::Unexpected };
        }
        let Ok(list) = serde_json::from_str::<Vec<&'a RawValue>>(raw) else {
            return Sent::Nothing;
        };
        let events: Vec<_> = list.into_iter().filter_map(|event| Incoming::read(event.get())).collect();
        if events.is_empty() { Sent::Nothing } else { Sent::Events(events) }
    }
}

impl<'a> Incoming<'a> {
    fn read(raw: &'a str) -> Option<Self> {
        let fields: Fields<'a> = raw.starts_with('{').then(|| serde_json::from_str(raw).ok())??;
        let properties = fields.properties.map(RawValue::get).filter(|properties| properties.starts_with('{'));
        Some(Self {
            raw,
            transaction_id: fields.transaction_id.and_then(text),
            code: fields.code.and_then(text),
            external_subscription_id: fields.external_subscription_id.and_then(text),
            timestamp: fields.timestamp,
            properties: properties.unwrap_or("{}"),
            precise_total_amount_cents: fields.precise_total_amount_cents.and_then(text),
        })
    }
}

/// Rails' notion of nothing: no characters, or blanks only.
pub(super) fn is_blank(text: Option<&str>) -> bool {
    text.is_none_or(|text| text.chars().all(char::is_whitespace))
}

/// A scalar as the text that a string column keeps of it.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let raw = raw.get();
    match raw.as_bytes().first() {
        Some(b'"') => {
            let plain = raw.get(1..raw.len() - 1).filter(|text| !text.contains('\\'));
            plain.map(Cow::Borrowed).or_else(|| serde_json::from_str(raw).ok().map(Cow::Owned))
        }
        Some(b'-' | b'0'..=b'9') => Some(Cow::Borrowed(raw)),
        // Source: rails/rails `activemodel/lib/active_model/type/immutable_string.rb` at 7.1.
        Some(b't') => Some(Cow::Borrowed("t")),
        Some(b'f') => Some(Cow::Borrowed("f")),
        _ => None,
    }
}

/// An object or a list without content.
fn is_empty(raw: &str) -> bool {
    raw.starts_with(['{', '[']) && raw[1..raw.len() - 1].trim().is_empty()
}

#[derive(Default)]
struct Fields<'a> {
    transaction_id: Option<&'a RawValue>,
    code: Option<&'a RawValue>,
    external_subscription_id: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    properties: Option<&'a RawValue>,
    precise_total_amount_cents: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum RootKey {
    Event,
    Events,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum FieldKey {
    TransactionId,
    Code,
    ExternalSubscriptionId,
    Timestamp,
    Properties,
    PreciseTotalAmountCents,
    #[serde(other)]
    Other,
}

// Written by hand, because a derived one refuses a key that comes twice, where Ruby takes the last.

impl<'de> Deserialize<'de> for Root<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RootVisitor;
        impl<'de> Visitor<'de> for RootVisitor {
            type Value = Root<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Root<'de>, A::Error> {
                let mut root = Root::default();
                while let Some(key) = map.next_key()? {
                    match key {
                        RootKey::Event => root.event = Some(map.next_value()?),
                        RootKey::Events => root.events = Some(map.next_value()?),
                        RootKey::Other => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(root)
            }
        }
        deserializer.deserialize_map(RootVisitor)
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key()? {
                    let value: &'de RawValue = map.next_value()?;
                    let field = match key {
                        FieldKey::TransactionId => &mut fields.transaction_id,
                        FieldKey::Code => &mut fields.code,
                        FieldKey::ExternalSubscriptionId => &mut fields.external_subscription_id,
                        FieldKey::Timestamp => &mut fields.timestamp,
                        FieldKey::Properties => &mut fields.properties,
                        FieldKey::PreciseTotalAmountCents => &mut fields.precise_total_amount_cents,
                        FieldKey::Other => continue,
                    };
                    *field = Some(value);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}
