//! From a verified body to what the envelope needs: type, subject, tenant, time. Pure, total, and
//! blind to everything else: the body itself is stored and forwarded byte for byte.
//!
//! Only the envelope's fields are looked at, in one pass where `object_type` stands before the payload,
//! as Lago writes it; nothing is parsed into a tree, so depth, huge numbers and megabytes of fees cost a
//! scan and no more. `serde_json` skips what it ignores without recursion, so nesting cannot exhaust the
//! stack either.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::payload::{Payload, PayloadSeed};
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
        source: ["lago/", organisation].concat(),
        event_type: String::new(),
        type_alias: None,
        webhook_type: None,
        object_type: None,
        subject: String::new(),
        tenant: None,
        tenant_unattributed: false,
        time: None,
        organization_id: None,
        organization_ambiguous: false,
        is_json: false,
        business: None,
    };
    // RFC 8259 wants UTF-8, and serde_json does not look into strings that it skips.
    if let Ok(text) = std::str::from_utf8(body) {
        // What stands in the payload's place may be nothing that can be read on the way: a number beyond
        // all bounds, say. Then the payload stays unread.
        match parse(text, true).or_else(|_| parse(text, false)) {
            Ok(envelope) => {
                description.is_json = true;
                envelope.fill(&mut description);
            }
            Err(_) => description.is_json = serde_json::from_str::<IgnoredAny>(text).is_ok(),
        }
    }
    if description.event_type.is_empty() {
        UNKNOWN_TYPE.clone_into(&mut description.event_type);
    }
    if description.subject.is_empty() {
        description.subject = generic_subject(unique_key);
    }
    description
}

fn parse(text: &str, with_payload: bool) -> serde_json::Result<Envelope<'_>> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let envelope = EnvelopeSeed { with_payload }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(envelope)
}

fn generic_subject(unique_key: &str) -> String {
    if is_usable_id(unique_key) { ["webhook/", unique_key].concat() } else { "webhook".to_owned() }
}

/// The outer object, its values still raw.
struct Envelope<'a> {
    webhook_type: Field<'a>,
    object_type: Field<'a>,
    organization_id: Field<'a>,
    /// Possible payloads, in order.
    candidates: Vec<(Cow<'a, str>, Candidate<'a>)>,
    /// `object_type` as soon as it is known.
    payload_key: Option<String>,
    /// Something was not kept that might be the payload, or a second one.
    overflowed: bool,
}

/// A value that may be the payload.
enum Candidate<'a> {
    /// It came before `object_type`, or is not to be looked into.
    Unread(&'a RawValue),
    Read(Option<Box<Payload<'a>>>),
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
    fn fill(mut self, description: &mut Description) {
        self.fill_organization(description);
        if self.webhook_type.is_repeated() || self.object_type.is_repeated() {
            return;
        }
        let webhook_type = self.webhook_type.once().and_then(type_name);
        if let Some(name) = &webhook_type {
            description.event_type = ["lago.", name].concat();
            description.type_alias = catalogue_alias(name).map(|alias| ["lago.", alias].concat());
            description.business = business_event(name, None);
        }
        if let Some(object_type) = &self.payload_key
            && !self.overflowed
            && let Some(payload) = payload(std::mem::take(&mut self.candidates), object_type)
        {
            payload.fill(webhook_type.as_deref(), object_type, description);
        }
        description.object_type = self.payload_key;
        description.webhook_type = webhook_type;
    }

    fn fill_organization(&self, description: &mut Description) {
        match self.organization_id {
            Field::Absent => {}
            Field::Once(value) if value.get() == "null" => {}
            Field::Once(value) => {
                description.organization_id = id(value).map(Cow::into_owned);
                description.organization_ambiguous = description.organization_id.is_none();
            }
            Field::Repeated => description.organization_ambiguous = true,
        }
    }

    fn add_object_type(&mut self, value: &'a RawValue) {
        self.object_type.add(value);
        self.payload_key = self.object_type.once().and_then(type_name);
    }

    /// Whether a value under this key could be the payload, as far as is known yet. Two are enough to know
    /// that there is more than one.
    fn may_be_payload(&mut self, key: &str) -> bool {
        let limit = match &self.payload_key {
            Some(payload_key) if key != payload_key => return false,
            Some(_) => MAX_CANDIDATES + 2,
            None => MAX_CANDIDATES,
        };
        let fits = self.candidates.len() < limit;
        self.overflowed |= !fits;
        fits
    }
}

/// The object under the key that `object_type` names, if there is exactly one and none of the fields that
/// are read from it is there twice.
fn payload<'a>(candidates: Vec<(Cow<'a, str>, Candidate<'a>)>, object_type: &str) -> Option<Box<Payload<'a>>> {
    let mut named = candidates.into_iter().filter(|(key, _)| key == object_type);
    let (Some((_, value)), None) = (named.next(), named.next()) else {
        return None;
    };
    match value {
        Candidate::Read(payload) => payload,
        Candidate::Unread(raw) => {
            PayloadSeed.deserialize(&mut serde_json::Deserializer::from_str(raw.get())).ok().flatten().map(Box::new)
        }
    }
}

struct EnvelopeSeed {
    /// Reads the payload on the way.
    with_payload: bool,
}

impl<'de> DeserializeSeed<'de> for EnvelopeSeed {
    type Value = Envelope<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed {
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
            match key.as_ref() {
                "webhook_type" => envelope.webhook_type.add(map.next_value()?),
                "object_type" => envelope.add_object_type(map.next_value()?),
                "organization_id" => envelope.organization_id.add(map.next_value()?),
                _ if !envelope.may_be_payload(&key) => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ if self.with_payload && envelope.payload_key.is_some() => {
                    let payload = map.next_value_seed(PayloadSeed)?;
                    envelope.candidates.push((key, Candidate::Read(payload.map(Box::new))));
                }
                _ => envelope.candidates.push((key, Candidate::Unread(map.next_value()?))),
            }
        }
        Ok(envelope)
    }
}

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The string in a raw value, if it is one that can be an identifier.
pub(crate) fn id(raw: &RawValue) -> Option<Cow<'_, str>> {
    if raw.get().len() > MAX_ID_JSON_BYTES {
        return None;
    }
    let Text(text) = serde_json::from_str(raw.get()).ok()?;
    is_usable_id(&text).then_some(text)
}

/// The string in a raw value, if it is one that can be a type.
fn type_name(raw: &RawValue) -> Option<String> {
    let text = id(raw)?;
    let is_type =
        text.len() <= MAX_TYPE_CHARS && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    is_type.then(|| text.into_owned())
}

/// Not empty, not too long, and nothing that CloudEvents bars from its strings.
///
/// Source: cloudevents/spec `cloudevents/spec.md`, "Type system", String.
fn is_usable_id(text: &str) -> bool {
    let is_plain = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    !text.is_empty()
        && text.len() <= MAX_ID_BYTES
        && (is_plain(text) || !text.chars().any(|c| c.is_control() || is_noncharacter(c)))
}

fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}
