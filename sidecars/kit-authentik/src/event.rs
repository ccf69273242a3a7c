//! An event as Authentik's API shows it and as our envelope carries it. Everything about it is read tolerantly: actions
//! are an open set, `user` is empty for what the system did, and a field of another type than expected counts as missing.
//!
//! Source: goauthentik/authentik `authentik/events/models.py` and `authentik/events/utils.py` at 2024.10.1 and 2026.2.2.

use std::fmt;
use std::str::FromStr;

use kit::clock::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Longest action that is taken over; Authentik's own have at most 30 characters.
const ACTION_BYTES: usize = 200;

/// Primary key of an event (`event_uuid`), the only identity it has. Its text has no dashes: the API shows it with them,
/// a webhook mapping passes it on without.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventPk(Uuid);

/// The text is not the key of an event: 32 hexadecimal digits, with dashes or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an event's pk: 32 hexadecimal digits, with dashes or without")]
pub struct NotAPk;

impl EventPk {
    /// The key as a number.
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }

    /// A key from its number.
    pub fn from_u128(number: u128) -> Self {
        Self(Uuid::from_u128(number))
    }

    /// With dashes, as the API's paths have it.
    pub fn dashed(self) -> String {
        self.0.hyphenated().to_string()
    }
}

impl FromStr for EventPk {
    type Err = NotAPk;

    fn from_str(text: &str) -> Result<Self, NotAPk> {
        // Braces and `urn:` are other spellings of a UUID that Authentik has no use for.
        match text.len() {
            32 | 36 => Uuid::try_parse(text).map(Self).map_err(|_| NotAPk),
            _ => Err(NotAPk),
        }
    }
}

impl fmt::Display for EventPk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.simple(), f)
    }
}

impl fmt::Debug for EventPk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why something is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEvent {
    /// Not a JSON object, or one with the same key twice.
    #[error("it is not a JSON object, or has a member twice")]
    Malformed,
    /// `pk` is missing or no key.
    #[error("its pk is missing, or is not a UUID")]
    NoPk,
    /// `action` is missing, empty or too long.
    #[error("its action is missing, or has more than {ACTION_BYTES} bytes")]
    NoAction,
}

/// An event. What is not read here is in [`Event::raw`].
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// Its key.
    pub pk: EventPk,
    /// What happened, for example `login`, `model_updated` or `custom_<name>`.
    pub action: String,
    /// The part of Authentik that says so, usually a Python module.
    pub app: Option<String>,
    /// When, exactly as sent; it has microseconds.
    pub created: Option<String>,
    /// From where.
    pub client_ip: Option<String>,
    /// Who did it; nobody, where the system did.
    pub user: EventUser,
    /// What is read of the context.
    pub context: EventContext,
    /// The whole event, byte for byte.
    pub raw: &'a str,
}

/// Who caused an event, as it was then. Authentik gives no uuid, no groups and no attributes here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct EventUser {
    /// Its number; `None` where the system did it.
    pub pk: Option<i64>,
    /// Its name.
    pub username: Option<String>,
    /// Its address.
    pub email: Option<String>,
    /// Nobody had logged in.
    pub is_anonymous: bool,
}

/// What is read of an event's context; the rest depends on the action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventContext {
    /// The object that `model_*` events are about.
    pub model: Option<ModelRef>,
    /// The name that somebody tried to log in with.
    pub username: Option<String>,
    /// `user_write`: the user was made by it.
    pub created: Option<bool>,
}

/// An object in Authentik, as its sanitiser writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// For example `authentik_core`.
    pub app: String,
    /// For example `user`.
    pub model_name: String,
    /// Its key as text: a number, or 32 hexadecimal digits.
    pub pk: String,
    /// Its name.
    pub name: Option<String>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    pk: Option<&'a RawValue>,
    #[serde(borrow)]
    action: Option<&'a RawValue>,
    #[serde(borrow)]
    app: Option<&'a RawValue>,
    #[serde(borrow)]
    created: Option<&'a RawValue>,
    #[serde(borrow)]
    client_ip: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    context: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireContext<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    username: Option<&'a RawValue>,
    #[serde(borrow)]
    created: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireModel<'a> {
    #[serde(borrow)]
    app: Option<&'a RawValue>,
    #[serde(borrow)]
    model_name: Option<&'a RawValue>,
    #[serde(borrow)]
    pk: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUser<'a> {
    #[serde(borrow)]
    pk: Option<&'a RawValue>,
    #[serde(borrow)]
    username: Option<&'a RawValue>,
    #[serde(borrow)]
    email: Option<&'a RawValue>,
    #[serde(borrow)]
    is_anonymous: Option<&'a RawValue>,
}

/// What the value is, if it is one of this type.
fn lenient<T: DeserializeOwned>(raw: Option<&RawValue>) -> Option<T> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

/// The object's members, none where it is not an object.
fn members<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    raw.filter(|raw| is_object(raw.get().as_bytes()))
        .and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

/// Whether the JSON is an object: serde would fill a struct from an array as well.
pub(crate) fn is_object(json: &[u8]) -> bool {
    json.trim_ascii_start().first() == Some(&b'{')
}

impl<'a> Event<'a> {
    /// Reads an event.
    ///
    /// # Errors
    /// [`NotAnEvent`]: nothing can be done with it without its key and its action.
    pub fn read(raw: &'a str) -> Result<Self, NotAnEvent> {
        if !is_object(raw.as_bytes()) {
            return Err(NotAnEvent::Malformed);
        }
        let wire: Wire<'a> = serde_json::from_str(raw).map_err(|_| NotAnEvent::Malformed)?;
        let pk: String = lenient(wire.pk).ok_or(NotAnEvent::NoPk)?;
        let pk = pk.parse().map_err(|_| NotAnEvent::NoPk)?;
        let action: String = lenient(wire.action).ok_or(NotAnEvent::NoAction)?;
        if !(1..=ACTION_BYTES).contains(&action.len()) {
            return Err(NotAnEvent::NoAction);
        }
        Ok(Self {
            pk,
            action,
            app: lenient(wire.app),
            created: lenient(wire.created),
            client_ip: lenient(wire.client_ip),
            user: user(wire.user),
            context: context(wire.context),
            raw,
        })
    }

    /// When it happened, in microseconds since 1970, which is how Authentik orders events.
    pub fn created_micros(&self) -> Option<i64> {
        let time: jiff::Timestamp = self.created.as_deref()?.parse().ok()?;
        Some(time.as_microsecond())
    }

    /// When it happened; `None` where that is not said in a way that can be read.
    pub fn created_at(&self) -> Option<Timestamp> {
        self.created.as_deref().and_then(|text| text.parse().ok())
    }
}

fn user(raw: Option<&RawValue>) -> EventUser {
    let wire: WireUser<'_> = members(raw);
    EventUser {
        pk: lenient(wire.pk),
        username: lenient(wire.username),
        email: lenient(wire.email),
        is_anonymous: lenient(wire.is_anonymous).unwrap_or(false),
    }
}

fn context(raw: Option<&RawValue>) -> EventContext {
    let wire: WireContext<'_> = members(raw);
    EventContext { model: model(wire.model), username: lenient(wire.username), created: lenient(wire.created) }
}

fn model(raw: Option<&RawValue>) -> Option<ModelRef> {
    let wire: WireModel<'_> = members(raw);
    let pk = lenient::<String>(wire.pk).or_else(|| lenient::<i64>(wire.pk).map(|number| number.to_string()))?;
    // UUIDs come with dashes or without.
    let pk = pk.parse::<EventPk>().map_or(pk, |uuid| uuid.to_string());
    Some(ModelRef { app: lenient(wire.app)?, model_name: lenient(wire.model_name)?, pk, name: lenient(wire.name) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_has_one_text_whatever_it_came_as() {
        for text in ["0f0e0d0c0b0a49088706050403020100", "0F0E0D0C-0B0A-4908-8706-050403020100"] {
            let pk: EventPk = text.parse().unwrap();
            assert_eq!(pk.to_string(), "0f0e0d0c0b0a49088706050403020100");
            assert_eq!(pk.dashed(), "0f0e0d0c-0b0a-4908-8706-050403020100");
        }
        for wrong in ["", "5", "{0f0e0d0c-0b0a-4908-8706-050403020100}", "0f0e0d0c0b0a4908870605040302010g"] {
            assert!(wrong.parse::<EventPk>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn whatever_else_an_event_holds_it_is_read() {
        let pk = "0f0e0d0c0b0a49088706050403020100";
        for (user, context) in [
            ("{}", "{}"),
            ("null", "null"),
            (r#"[1]"#, r#""text""#),
            (r#"{"pk":"5","username":7,"is_anonymous":"yes"}"#, r#"{"model":"x","created":"yes"}"#),
            (r#"{"pk":1e400}"#, r#"{"model":{"pk":[]}}"#),
        ] {
            let raw = format!(r#"{{"pk":"{pk}","action":"custom_x","user":{user},"context":{context},"more":1}}"#);
            let event = Event::read(&raw).unwrap();
            assert_eq!((event.user, event.context), Default::default(), "{raw}");
        }
    }

    #[test]
    fn what_it_needs_is_read() {
        let raw = r#"{"pk":"0f0e0d0c-0b0a-4908-8706-050403020100","action":"model_created","app":"authentik.events.middleware",
            "created":"2026-11-22T13:27:00.123456Z","client_ip":"203.0.113.7","user":{"pk":5,"username":"jane","email":"j@x"},
            "context":{"created":true,"username":"u","model":{"app":"authentik_core","model_name":"user","pk":9,"name":"n"}}}"#;
        let event = Event::read(raw).unwrap();
        assert_eq!((event.user.pk, event.user.username.as_deref()), (Some(5), Some("jane")));
        let model = event.context.model.clone().unwrap();
        assert_eq!((model.app.as_str(), model.model_name.as_str(), model.pk.as_str()), ("authentik_core", "user", "9"));
        assert_eq!(event.context.created, Some(true));
        assert_eq!(event.created_at().unwrap().as_millis() % 1000, 123);
        assert_eq!(event.created_micros().unwrap() % 1_000_000, 123_456);
    }

    #[test]
    fn without_key_or_action_it_is_none() {
        let check = |raw: &str, expected: NotAnEvent| assert_eq!(Event::read(raw).unwrap_err(), expected, "{raw}");
        check("[]", NotAnEvent::Malformed);
        check(r#"["0f0e0d0c0b0a49088706050403020100","login",null,null,null,null,null]"#, NotAnEvent::Malformed);
        check(r#"{"pk":"a","pk":"b"}"#, NotAnEvent::Malformed);
        check("{}", NotAnEvent::NoPk);
        check(r#"{"pk":5,"action":"login"}"#, NotAnEvent::NoPk);
        check(r#"{"pk":"0f0e0d0c0b0a49088706050403020100"}"#, NotAnEvent::NoAction);
        check(r#"{"pk":"0f0e0d0c0b0a49088706050403020100","action":""}"#, NotAnEvent::NoAction);
    }
}
