//! The object that a webhook is about, read as it passes: the few fields that the envelope is made from.

use std::borrow::Cow;
use std::fmt;

use kit::clock::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::describe::{Description, id};
use crate::webhook_type::business_event;

/// Tenant ids of the reference platform that mean "nobody in particular": such events are forwarded
/// and flagged, never billed.
const UNATTRIBUTED_TENANTS: [&str; 4] = ["default", "default_tenant", "global", "system"];

/// The fields of a payload that are looked at.
#[derive(Default)]
pub(crate) struct Payload<'a> {
    lago_id: Option<&'a RawValue>,
    external_id: Option<&'a RawValue>,
    external_customer_id: Option<&'a RawValue>,
    customer: Option<Owner<'a>>,
    wallet: Option<Owner<'a>>,
    payment_status: Option<&'a RawValue>,
    triggered_at: Option<&'a RawValue>,
    terminated_at: Option<&'a RawValue>,
    canceled_at: Option<&'a RawValue>,
    trial_ended_at: Option<&'a RawValue>,
    voided_at: Option<&'a RawValue>,
    updated_at: Option<&'a RawValue>,
    created_at: Option<&'a RawValue>,
}

/// The customer inside an object, or the wallet inside a transaction.
#[derive(Default)]
struct Owner<'a> {
    external_id: Option<&'a RawValue>,
    external_customer_id: Option<&'a RawValue>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    LagoId,
    ExternalId,
    ExternalCustomerId,
    Customer,
    Wallet,
    PaymentStatus,
    TriggeredAt,
    TerminatedAt,
    CanceledAt,
    TrialEndedAt,
    VoidedAt,
    UpdatedAt,
    CreatedAt,
    #[serde(other)]
    Other,
}

impl Payload<'_> {
    /// Adds what the payload of a webhook of this type says.
    pub(crate) fn fill(&self, webhook_type: Option<&str>, object_type: &str, description: &mut Description) {
        if let Some(id) = self.external_id.and_then(id).or_else(|| self.lago_id.and_then(id)) {
            description.subject = [object_type, "/", &id].concat();
        }
        description.tenant = self.tenant(object_type).map(Cow::into_owned);
        description.tenant_unattributed =
            description.tenant.as_deref().is_some_and(|tenant| UNATTRIBUTED_TENANTS.contains(&tenant));
        if let Some(name) = webhook_type {
            description.time = self.time(name);
            let status = self.payment_status.and_then(id);
            description.business = business_event(name, status.as_deref());
        }
    }

    /// The external id of the customer this is about.
    fn tenant(&self, object_type: &str) -> Option<Cow<'_, str>> {
        if let Some(tenant) = self.external_customer_id.and_then(id) {
            return Some(tenant);
        }
        if let Some(tenant) = self.customer.as_ref().and_then(|owner| owner.external_id.and_then(id)) {
            return Some(tenant);
        }
        if object_type == "customer" {
            return self.external_id.and_then(id);
        }
        // Later releases put the wallet, with its owner, into a wallet transaction.
        self.wallet.as_ref().and_then(|owner| owner.external_customer_id.and_then(id))
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

/// Reads a payload; `None` where it is no object, or has one of its fields twice: readers disagree on
/// which of them counts.
pub(crate) struct PayloadSeed;

/// Reads an owner, by the same rules.
struct OwnerSeed;

/// Notes a value, and that there was one before.
fn note<'a>(place: &mut Option<&'a RawValue>, value: &'a RawValue, repeated: &mut bool) {
    *repeated |= place.replace(value).is_some();
}

/// Whatever is no object says nothing.
macro_rules! nothing_but_objects {
    () => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    };
}

impl<'de> DeserializeSeed<'de> for PayloadSeed {
    type Value = Option<Payload<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PayloadSeed {
    type Value = Option<Payload<'de>>;

    nothing_but_objects!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut payload = Payload::default();
        let (mut customer, mut wallet, mut repeated) = (false, false, false);
        while let Some(key) = map.next_key::<Key>()? {
            let place = match key {
                Key::LagoId => &mut payload.lago_id,
                Key::ExternalId => &mut payload.external_id,
                Key::ExternalCustomerId => &mut payload.external_customer_id,
                Key::PaymentStatus => &mut payload.payment_status,
                Key::TriggeredAt => &mut payload.triggered_at,
                Key::TerminatedAt => &mut payload.terminated_at,
                Key::CanceledAt => &mut payload.canceled_at,
                Key::TrialEndedAt => &mut payload.trial_ended_at,
                Key::VoidedAt => &mut payload.voided_at,
                Key::UpdatedAt => &mut payload.updated_at,
                Key::CreatedAt => &mut payload.created_at,
                Key::Customer => {
                    payload.customer = map.next_value_seed(OwnerSeed)?;
                    repeated |= std::mem::replace(&mut customer, true);
                    continue;
                }
                Key::Wallet => {
                    payload.wallet = map.next_value_seed(OwnerSeed)?;
                    repeated |= std::mem::replace(&mut wallet, true);
                    continue;
                }
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            note(place, map.next_value()?, &mut repeated);
        }
        Ok((!repeated).then_some(payload))
    }
}

impl<'de> DeserializeSeed<'de> for OwnerSeed {
    type Value = Option<Owner<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OwnerSeed {
    type Value = Option<Owner<'de>>;

    nothing_but_objects!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut owner, mut repeated) = (Owner::default(), false);
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::ExternalId => note(&mut owner.external_id, map.next_value()?, &mut repeated),
                Key::ExternalCustomerId => note(&mut owner.external_customer_id, map.next_value()?, &mut repeated),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok((!repeated).then_some(owner))
    }
}
