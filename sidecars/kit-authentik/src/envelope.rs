//! The webhook body that our blueprint's mapping has Authentik send. The words here are those of the mapping: both sides
//! change together, and a change that an older side cannot read gets another [`SCHEMA`].
//!
//! ```json
//! {"schema": "outrigger.authentik/1",
//!  "event": {"pk": "0f0e0d0c0b0a49088706050403020100", "action": "login", "app": "authentik.events.signals",
//!            "created": "2026-11-22T13:27:00.123456Z", "client_ip": "203.0.113.7", "user": {}, "context": {}, "brand": {}},
//!  "recipient": "outrigger", "nonce": "…", "signature": "…", "secret": "…"}
//! ```

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{Event, NotAnEvent, is_object};

/// Value of `schema`.
pub const SCHEMA: &str = "outrigger.authentik/1";
/// Header with the signature over the raw body, in lower case: `sha256=<hex>`.
pub const SIGNATURE_HEADER: &str = "x-outrigger-signature";
/// What the header's value begins with.
pub const SIGNATURE_PREFIX: &str = "sha256=";
/// What the value of `Authorization` begins with.
pub const BEARER_PREFIX: &str = "Bearer ";
/// First line of the text that the signature in the body covers.
pub const CANONICAL_VERSION: &str = "v2";
/// User name of the service account that the blueprint makes.
pub const SERVICE_ACCOUNT: &str = "outrigger";
/// The blueprint's file, for messages that say what is missing.
pub const BLUEPRINT: &str = "config/authentik/outrigger.yaml";
/// Longest nonce.
const NONCE_BYTES: usize = 200;

/// Why a body is not our envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEnvelope {
    /// Not a JSON object with `schema` and `event`.
    #[error("the body is not a JSON object with schema and event")]
    Malformed,
    /// The mapping is of another version.
    #[error("the body's schema is not {SCHEMA}: the blueprint {BLUEPRINT} is of another version")]
    OtherSchema,
    /// What Authentik sends without a mapping. It has no key of the event, so nothing can be made of it.
    #[error("the body is Authentik's own: no mapping is set, apply the blueprint {BLUEPRINT}")]
    Unmapped,
    /// The event in it is none.
    #[error("the event in the body: {0}")]
    Event(NotAnEvent),
}

/// A webhook body.
#[derive(Clone, Debug)]
pub struct Envelope<'a> {
    /// What happened.
    pub event: Event<'a>,
    /// The user that the notification was for.
    pub recipient: Option<String>,
    /// A text that is new in every body; signed.
    pub nonce: Option<String>,
    /// Hexadecimal HMAC-SHA256 over [`canonical`].
    pub signature: Option<String>,
    /// The shared secret itself. Never stored, never passed on.
    pub secret: Option<kit::secret::Secret>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    schema: Option<String>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(default)]
    recipient: Option<String>,
    #[serde(default)]
    nonce: Option<String>,
    #[serde(default)]
    signature: Option<String>,
    #[serde(default)]
    secret: Option<String>,
}

impl<'a> Envelope<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// [`NotAnEnvelope`].
    pub fn read(body: &'a [u8]) -> Result<Self, NotAnEnvelope> {
        let malformed = || if is_unmapped(body) { NotAnEnvelope::Unmapped } else { NotAnEnvelope::Malformed };
        if !is_object(body) {
            return Err(NotAnEnvelope::Malformed);
        }
        let wire: Wire<'a> = serde_json::from_slice(body).map_err(|_| malformed())?;
        let (Some(schema), Some(event)) = (wire.schema, wire.event) else { return Err(malformed()) };
        if schema != SCHEMA {
            return Err(NotAnEnvelope::OtherSchema);
        }
        Ok(Self {
            event: Event::read(event.get()).map_err(NotAnEnvelope::Event)?,
            recipient: wire.recipient,
            // A line of the signed text: with two in it, one text would stand for several bodies.
            nonce: wire.nonce.filter(|nonce| nonce.len() <= NONCE_BYTES && !nonce.contains('\n')),
            signature: wire.signature,
            secret: wire.secret.map(kit::secret::Secret::from),
        })
    }

    /// The text that the signature in the body covers: the whole event, and of the envelope around it the nonce.
    ///
    /// `None` without a nonce.
    pub fn canonical(&self) -> Option<String> {
        Some(canonical(self.nonce.as_deref()?, self.event.raw))
    }
}

/// The text that the signature in the body covers, one value a line: [`CANONICAL_VERSION`], the nonce, and the member
/// `event` exactly as it stands in the body, from its first brace to its last.
///
/// Nothing is read and written anew for it: what is stored and passed on are the bytes that were proven.
pub fn canonical(nonce: &str, event: &str) -> String {
    format!("{CANONICAL_VERSION}\n{nonce}\n{event}")
}

/// Whether this is the body that Authentik sends where its transport has no mapping.
///
/// Source: goauthentik/authentik `authentik/events/models.py` (`send_webhook`) at 2024.10.1 and 2026.2.2.
pub fn is_unmapped(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "their presence is all that is asked")]
    struct Default {
        body: String,
        severity: String,
        user_email: Option<String>,
        user_username: Option<String>,
        #[serde(default)]
        event_user_email: Option<String>,
        #[serde(default)]
        event_user_username: Option<String>,
    }
    is_object(body)
        && serde_json::from_slice::<Default>(body)
            .is_ok_and(|default| matches!(default.severity.as_str(), "notice" | "warning" | "alert"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_event_in_it_is_kept_byte_for_byte() {
        let event = r#"{ "pk":"0f0e0d0c0b0a49088706050403020100", "action":"login", "created":"t","context":{"a":1.50,"a":2} }"#;
        let body = format!(r#"{{"schema": "outrigger.authentik/1", "event": {event}, "nonce": "n"}}"#);
        let envelope = Envelope::read(body.as_bytes()).unwrap();
        assert_eq!(envelope.event.raw, event);
        assert_eq!(envelope.canonical().unwrap(), format!("v2\nn\n{event}"));
    }

    #[test]
    fn a_signed_text_stands_for_one_body() {
        let event = r#"{"pk":"0f0e0d0c0b0a49088706050403020100","action":"login"}"#;
        let canonical = |nonce: &str| {
            let body = format!(r#"{{"schema":"outrigger.authentik/1","event": {event} {nonce}}}"#);
            Envelope::read(body.as_bytes()).unwrap().canonical()
        };
        assert_eq!(canonical(r#","nonce":"n""#), Some(format!("v2\nn\n{event}")));
        for none in ["", r#","nonce":null"#, r#","nonce":"n\n{}""#, &format!(r#","nonce":"{}""#, "n".repeat(201))] {
            assert_eq!(canonical(none), None, "{none}");
        }
        for twice in ["event", r"\u0065vent"] {
            let body = format!(r#"{{"schema":"outrigger.authentik/1","event":{event},"{twice}":{event}}}"#);
            assert_eq!(Envelope::read(body.as_bytes()).unwrap_err(), NotAnEnvelope::Malformed, "{twice}");
        }
    }

    #[test]
    fn what_is_not_it_is_told_apart() {
        let check = |body: &str, expected: NotAnEnvelope| {
            assert_eq!(Envelope::read(body.as_bytes()).unwrap_err(), expected, "{body}");
        };
        check("", NotAnEnvelope::Malformed);
        check("[]", NotAnEnvelope::Malformed);
        let event = r#"{"pk":"0f0e0d0c0b0a49088706050403020100","action":"login"}"#;
        check(&format!(r#"["outrigger.authentik/1",{event},null,null,null,null]"#), NotAnEnvelope::Malformed);
        check(r#"{"schema":"outrigger.authentik/1"}"#, NotAnEnvelope::Malformed);
        check(r#"{"schema":"outrigger.authentik/1","schema":"x","event":{}}"#, NotAnEnvelope::Malformed);
        check(r#"{"schema":"outrigger.authentik/2","event":{}}"#, NotAnEnvelope::OtherSchema);
        check(r#"{"schema":"outrigger.authentik/1","event":{}}"#, NotAnEnvelope::Event(NotAnEvent::NoPk));
        let unmapped =
            r#"{"body": "login: {'a': 1}", "severity": "notice", "user_email": "", "user_username": "akadmin"}"#;
        check(unmapped, NotAnEnvelope::Unmapped);
        let with_user = unmapped.replace('}', r#", "event_user_email": "e", "event_user_username": "u"}"#);
        check(
            &with_user.replacen(r#", "event_user_email": "e", "event_user_username": "u"}"#, "}", 1),
            NotAnEnvelope::Unmapped,
        );
        assert!(!is_unmapped(unmapped.replace("notice", "panic").as_bytes()));
        assert!(!is_unmapped(unmapped.replace("user_email", "pk").as_bytes()));
    }
}
