//! From a verified body to what the envelope needs: type, subject, tenant, time. Pure, total, and
//! blind to everything else: the body itself is stored and forwarded byte for byte.
//!
//! Only the envelope's fields are looked at, as borrowed slices; nothing is parsed into a tree, so
//! depth, huge numbers and megabytes of fees cost a scan and no more. `serde_json` skips what it
//! ignores without recursion, so nesting cannot exhaust the stack either.

use std::borrow::Cow;
use std::fmt;

use kit::clock::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::webhook_type::{BusinessEvent, business_event, catalogue_alias};

/// Longest `webhook_type` or `object_type` that is taken over, in characters.
pub const MAX_TYPE_CHARS: usize = 128;
/// Longest identifier that is taken over, in bytes.
pub const MAX_ID_BYTES: usize = 256;
/// [`Description::event_type`] of a body that names no type.
pub const UNKNOWN_TYPE: &str = "lago.unknown";

/// Keys of the body that are kept until `object_type` is known. Lago writes `object_type` second,
/// so one would do.
const MAX_CANDIDATES: usize = 16;
/// A string of [`MAX_ID_BYTES`] has at most this many bytes in JSON, if every byte is escaped.
const MAX_ID_JSON_BYTES: usize = MAX_ID_BYTES * 6 + 2;
/// Tenant ids of the reference platform that mean "nobody in particular": such events are forwarded
/// and flagged, never billed.
const UNATTRIBUTED_TENANTS: [&str; 4] = ["default", "default_tenant", "global", "system"];

/// What the envelope of a webhook says.
///
/// Every text is bounded and free of control characters; all but [`Description::source`] and the
/// business pair come from the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// CloudEvents `source`: `lago/<organisation>`.
    pub source: String,
    /// CloudEvents `type`: `lago.<webhook_type>` with the name the body carries, or
    /// [`UNKNOWN_TYPE`].
    pub event_type: String,
    /// Second name of the type (`lago.<catalogue name>`) where Lago's catalogue has another one.
    pub type_alias: Option<String>,
    /// `webhook_type` as the body has it.
    pub webhook_type: Option<String>,
    /// `object_type`: the key of the payload.
    pub object_type: Option<String>,
    /// CloudEvents `subject`: `<object_type>/<external_id or lago_id>`, else `webhook/<unique key>`.
    pub subject: String,
    /// The customer's `external_id`, wherever this type has it.
    pub tenant: Option<String>,
    /// [`Description::tenant`] is one of the literals that mean nobody in particular.
    pub tenant_unattributed: bool,
    /// RFC 3339 time of the event where the payload clearly has it; otherwise the receipt counts.
    pub time: Option<String>,
    /// `organization_id`; absent before v1.33.3.
    pub organization_id: Option<String>,
    /// `organization_id` is there and cannot be relied on: twice, no string, too long. Where the
    /// organisation must match, this is a mismatch.
    pub organization_ambiguous: bool,
    /// The body is exactly one JSON text in UTF-8, so it can be embedded in another.
    pub is_json: bool,
    /// What it counts as in `business_events_total`.
    pub business: Option<BusinessEvent>,
}

/// Describes a verified body. Never fails: what cannot be read is described as unknown.
///
/// `organisation` is the configured name of the path the webhook came in on, `unique_key` its
/// `X-Lago-Unique-Key`. Keys that decide (`webhook_type`, `object_type`, `organization_id`, the
/// payload's) count only when they occur once: readers disagree on whether the first or the last of
/// two wins, so neither does.
///
/// Source: getlago/lago-api `app/services/webhooks/base_service.rb` and `app/serializers/v1/`.
pub fn describe(body: &[u8], organisation: &str, unique_key: &str) -> Description {
    let mut description = Description {
        source: format!("lago/{organisation}"),
        event_type: UNKNOWN_TYPE.to_owned(),
        type_alias: None,
        webhook_type: None,
        object_type: None,
        subject: generic_subject(unique_key),
        tenant: None,
        tenant_unattributed: false,
        time: None,
        organization_id: None,
        organization_ambiguous: false,
        is_json: false,
        business: None,
    };
    // RFC 8259 wants UTF-8, and serde_json does not look into strings that it skips.
    let Ok(text) = std::str::from_utf8(body) else {
        return description;
    };
    match serde_json::from_str::<Envelope<'_>>(text) {
        Ok(envelope) => {
            description.is_json = true;
            envelope.fill(&mut description);
        }
        Err(_) => description.is_json = serde_json::from_str::<IgnoredAny>(text).is_ok(),
    }
    description
}

fn generic_subject(unique_key: &str) -> String {
    if is_usable_id(unique_key) { format!("webhook/{unique_key}") } else { "webhook".to_owned() }
}

/// The outer object, its values still raw.
struct Envelope<'a> {
    webhook_type: Field<'a>,
    object_type: Field<'a>,
    organization_id: Field<'a>,
    /// Possible payloads, in order.
    candidates: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// `object_type` as soon as it is known.
    payload_key: Option<String>,
    /// Something was not kept that might be the payload, or a second one.
    overflowed: bool,
}

/// A key that may occur once.
#[derive(Clone, Copy)]
enum Field<'a> {
    Absent,
    Once(&'a RawValue),
    Repeated,
}

impl<'a> Field<'a> {
    fn add(&mut self, value: &'a RawValue) {
        *self = match self {
            Self::Absent => Self::Once(value),
            Self::Once(_) | Self::Repeated => Self::Repeated,
        };
    }

    fn is_repeated(self) -> bool {
        matches!(self, Self::Repeated)
    }

    fn once(self) -> Option<&'a RawValue> {
        match self {
            Self::Once(value) => Some(value),
            Self::Absent | Self::Repeated => None,
        }
    }
}

impl<'a> Envelope<'a> {
    fn fill(&self, description: &mut Description) {
        self.fill_organization(description);
        if self.webhook_type.is_repeated() || self.object_type.is_repeated() {
            return;
        }
        let webhook_type = self.webhook_type.once().and_then(type_name);
        if let Some(name) = &webhook_type {
            description.event_type = format!("lago.{name}");
            description.type_alias = catalogue_alias(name).map(|alias| format!("lago.{alias}"));
            description.business = business_event(name, None);
        }
        if let Some(object_type) = &self.payload_key
            && let Some(payload) = self.payload(object_type)
        {
            payload.fill(webhook_type.as_deref(), object_type, description);
        }
        description.object_type.clone_from(&self.payload_key);
        description.webhook_type = webhook_type;
    }

    fn fill_organization(&self, description: &mut Description) {
        match self.organization_id {
            Field::Absent => {}
            Field::Once(value) if value.get() == "null" => {}
            Field::Once(value) => {
                description.organization_id = id(value);
                description.organization_ambiguous = description.organization_id.is_none();
            }
            Field::Repeated => description.organization_ambiguous = true,
        }
    }

    /// The object under the key that `object_type` names, if there is exactly one and none of the
    /// fields that are read from it is there twice.
    fn payload(&self, object_type: &str) -> Option<Payload<'a>> {
        if self.overflowed {
            return None;
        }
        let mut named = self.candidates.iter().filter(|(key, _)| key == object_type);
        let (Some((_, value)), None) = (named.next(), named.next()) else {
            return None;
        };
        serde_json::from_str(value.get()).ok()
    }

    fn add_object_type(&mut self, value: &'a RawValue) {
        self.object_type.add(value);
        self.payload_key = self.object_type.once().and_then(type_name);
    }

    fn keep(&mut self, key: Cow<'a, str>, value: &'a RawValue) {
        let limit = match &self.payload_key {
            Some(payload_key) if key != payload_key.as_str() => return,
            // Two are enough to know that there is more than one.
            Some(_) => MAX_CANDIDATES + 2,
            None => MAX_CANDIDATES,
        };
        if self.candidates.len() < limit {
            self.candidates.push((key, value));
        } else {
            self.overflowed = true;
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a webhook's object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut envelope = Envelope {
            webhook_type: Field::Absent,
            object_type: Field::Absent,
            organization_id: Field::Absent,
            candidates: Vec::new(),
            payload_key: None,
            overflowed: false,
        };
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            let value: &'de RawValue = map.next_value()?;
            match key.as_ref() {
                "webhook_type" => envelope.webhook_type.add(value),
                "object_type" => envelope.add_object_type(value),
                "organization_id" => envelope.organization_id.add(value),
                _ => envelope.keep(key, value),
            }
        }
        Ok(envelope)
    }
}

/// The fields of a payload that the envelope is made from. Deriving refuses a field that occurs
/// twice, and then nothing of the payload is used.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    lago_id: Option<&'a RawValue>,
    #[serde(borrow)]
    external_id: Option<&'a RawValue>,
    #[serde(borrow)]
    external_customer_id: Option<&'a RawValue>,
    #[serde(borrow)]
    customer: Option<&'a RawValue>,
    #[serde(borrow)]
    wallet: Option<&'a RawValue>,
    #[serde(borrow)]
    payment_status: Option<&'a RawValue>,
    #[serde(borrow)]
    triggered_at: Option<&'a RawValue>,
    #[serde(borrow)]
    terminated_at: Option<&'a RawValue>,
    #[serde(borrow)]
    canceled_at: Option<&'a RawValue>,
    #[serde(borrow)]
    trial_ended_at: Option<&'a RawValue>,
    #[serde(borrow)]
    voided_at: Option<&'a RawValue>,
    #[serde(borrow)]
    updated_at: Option<&'a RawValue>,
    #[serde(borrow)]
    created_at: Option<&'a RawValue>,
}

/// The customer inside an object, or the wallet inside a transaction.
#[derive(Deserialize)]
struct Owner<'a> {
    #[serde(borrow)]
    external_id: Option<&'a RawValue>,
    #[serde(borrow)]
    external_customer_id: Option<&'a RawValue>,
}

impl Payload<'_> {
    fn fill(&self, webhook_type: Option<&str>, object_type: &str, description: &mut Description) {
        if let Some(id) = self.external_id.and_then(id).or_else(|| self.lago_id.and_then(id)) {
            description.subject = format!("{object_type}/{id}");
        }
        description.tenant = self.tenant(object_type);
        description.tenant_unattributed =
            description.tenant.as_deref().is_some_and(|tenant| UNATTRIBUTED_TENANTS.contains(&tenant));
        if let Some(name) = webhook_type {
            description.time = self.time(name);
            let status = self.payment_status.and_then(id);
            description.business = business_event(name, status.as_deref());
        }
    }

    /// The external id of the customer this is about.
    fn tenant(&self, object_type: &str) -> Option<String> {
        if let Some(tenant) = self.external_customer_id.and_then(id) {
            return Some(tenant);
        }
        if let Some(tenant) = owner(self.customer).and_then(|owner| owner.external_id.and_then(id)) {
            return Some(tenant);
        }
        if object_type == "customer" {
            return self.external_id.and_then(id);
        }
        // Later releases put the wallet, with its owner, into a wallet transaction.
        owner(self.wallet).and_then(|owner| owner.external_customer_id.and_then(id))
    }

    /// The time the event happened, only for types whose object says so without doubt. Lago
    /// serialises an object when it sends, and creation times can be months older than the event (a
    /// draft that is finalised, a customer that is upserted, a backdated subscription).
    fn time(&self, webhook_type: &str) -> Option<String> {
        let field = match webhook_type {
            "alert.triggered" => self.triggered_at,
            "subscription.terminated" | "wallet.terminated" => self.terminated_at,
            "subscription.canceled" => self.canceled_at,
            "subscription.trial_ended" => self.trial_ended_at,
            "invoice.voided" => self.voided_at,
            "customer.updated" => self.updated_at,
            "payment_request.created" => self.created_at,
            _ => None,
        };
        let time: Timestamp = field.and_then(id)?.parse().ok()?;
        Some(time.to_string())
    }
}

fn owner(raw: Option<&RawValue>) -> Option<Owner<'_>> {
    serde_json::from_str(raw?.get()).ok()
}

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The string in a raw value, if it is one that can be an identifier.
fn id(raw: &RawValue) -> Option<String> {
    if raw.get().len() > MAX_ID_JSON_BYTES {
        return None;
    }
    let Text(text) = serde_json::from_str(raw.get()).ok()?;
    is_usable_id(&text).then(|| text.into_owned())
}

/// The string in a raw value, if it is one that can be a type.
fn type_name(raw: &RawValue) -> Option<String> {
    id(raw).filter(|text| {
        text.len() <= MAX_TYPE_CHARS && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    })
}

/// Not empty, not too long, and nothing that CloudEvents bars from its strings.
///
/// Source: cloudevents/spec `cloudevents/spec.md`, "Type system", String.
fn is_usable_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_ID_BYTES && !text.chars().any(|c| c.is_control() || is_noncharacter(c))
}

fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}
