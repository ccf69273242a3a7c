//! The event forwarder between Authentik and a gateway.

use anyhow::Result;
use kit::secret::Secret;
use kit_authentik::envelope::{SCHEMA, SIGNATURE_HEADER, SIGNATURE_PREFIX};
use kit_authentik::event::EventPk;
use kit_authentik::signature::sign;
use kit_journal::{BodyDigest, EventId};
use kit_workbench::load::{Pool, PreparedWebhook};
use kit_workbench::raw::{self, RawResponse};

use super::{Mode, REQUEST_DEADLINE, Rig};

/// The daemon.
pub const DAEMON: &str = "authentik-event-forwarder";
/// The header of signatures, as Authentik sends it.
const SIGNATURE: &str = "X-Outrigger-Signature";
/// Where it takes webhooks.
pub const PATH: &str = "/webhooks/authentik";

/// An event whose pk follows from `key`, with `payload`, which is JSON, in its context.
pub fn event(key: &str, payload: &str) -> String {
    of_user(key, 5, payload)
}

fn of_user(key: &str, user: usize, payload: &str) -> String {
    let pk = pk(key);
    format!(
        r#"{{"pk": "{pk}", "action": "login", "app": "authentik.events.signals", "created": "2026-11-22T13:27:00.123456Z", "client_ip": "203.0.113.7", "user": {{"pk": {user}, "email": "u{user}@example.com", "username": "u{user}"}}, "context": {{"auth_method": "password", "payload": {payload}}}, "brand": {{}}}}"#
    )
}

/// An event with this text wherever somebody in Authentik may write one, whose pk follows from `key`. Of a long text there is
/// the beginning: in so many places all of it would be more than a body may have.
pub fn full_of(key: &str, text: &str) -> String {
    let text = &text[..text.floor_char_boundary(64 << 10)];
    // A longer action is none.
    let action = &text[..text.floor_char_boundary(180)];
    serde_json::json!({
        "pk": pk(key).to_string(), "action": format!("custom_{action}"), "app": text, "created": text, "client_ip": text,
        "user": { "pk": 5, "email": text, "username": text, text: text },
        "context": { "username": text, "model": { "app": text, "model_name": text, "pk": text, "name": text }, text: text },
        "brand": { "name": text, text: text },
    })
    .to_string()
}

/// An event about a group of this name, whose pk follows from `key`: its subject is `group/<name>`.
pub fn of_group(key: &str, name: &str) -> String {
    let pk = pk(key);
    format!(
        r#"{{"pk": "{pk}", "action": "model_created", "app": "authentik.events.middleware", "created": "2026-11-22T13:27:00Z", "client_ip": null, "user": {{}}, "context": {{"model": {{"pk": "{name}", "app": "authentik_core", "name": "g", "model_name": "group"}}}}, "brand": {{}}}}"#
    )
}

/// The pk that follows from a key: the UUID that it is, or one made of it.
pub fn pk(key: &str) -> EventPk {
    key.parse().unwrap_or_else(|_| {
        let digest = BodyDigest::of(key.as_bytes()).0;
        let number = digest[..16].iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        EventPk::from_u128(number)
    })
}

/// The id under which an event is delivered.
pub fn event_id(pk: EventPk) -> EventId {
    EventId::derive("authentik/default", &pk.to_string(), None)
}

/// The envelope around an event.
pub fn envelope(event: &str) -> String {
    format!(r#"{{"schema": "{SCHEMA}", "event": {event}, "recipient": "outrigger", "nonce": "n"}}"#)
}

/// The value of the signature's header.
pub fn signature(secret: &str, body: &[u8]) -> String {
    format!("{SIGNATURE_PREFIX}{}", sign(&Secret::from(secret.to_owned()), body))
}

/// Webhooks of `count` users, each event with a pk of its own.
pub fn pool(secret: &str, count: usize) -> Pool {
    let webhook = |user: usize| {
        let secret = secret.to_owned();
        PreparedWebhook::made_of_key(move |key| {
            let event = of_user(key, user + 1, "null");
            let body = envelope(&event);
            let headers = vec![("X-Outrigger-Signature".to_owned(), signature(&secret, body.as_bytes()))];
            PreparedWebhook::new("default", format!("user/{}", user + 1), headers, body).delivering(event.as_bytes())
        })
    };
    Pool::new((0..count).map(webhook).collect())
}

impl Rig {
    /// A rig of the event forwarder, whose webhooks are signed in a header; not started yet.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub async fn forwarder(settings: &[(&str, &str)]) -> Result<Self> {
        let mut rig = Self::new(Mode::Hmac, &[]).await?;
        rig.environment.retain(|(name, _)| !name.contains("LAGO_"));
        let secret = rig.scratch.write("secret", &rig.hmac_key)?.display().to_string();
        rig.set("SIDECAR_AUTHENTIK__AUTHENTICATION", "hmac-header");
        rig.set("AUTHENTIK_WEBHOOK_SECRET_FILE", &secret);
        settings.iter().for_each(|(name, value)| rig.set(name, value));
        rig.daemon = DAEMON;
        Ok(rig)
    }

    /// A rig of the event forwarder that is ready.
    ///
    /// # Errors
    /// As [`Self::forwarder`] and [`Self::start`].
    pub async fn forwarder_started(settings: &[(&str, &str)]) -> Result<Self> {
        let mut rig = Self::forwarder(settings).await?;
        rig.start().await?;
        Ok(rig)
    }

    /// The secret of Authentik's webhooks.
    pub fn webhook_secret(&self) -> &str {
        &self.hmac_key
    }

    /// A genuine webhook under a key: its body, and the header lines that prove it. Lago's is the payload itself,
    /// Authentik's an event with the payload in its context.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn genuine(&self, key: &str, payload: &str) -> Result<(String, String)> {
        if self.daemon == DAEMON {
            let body = envelope(&event(key, payload));
            let signature = signature(&self.hmac_key, body.as_bytes());
            return Ok((body, format!("{SIGNATURE}: {signature}\r\n")));
        }
        let signature = self.sign(payload)?;
        Ok((payload.to_owned(), format!("X-Lago-Unique-Key: {key}\r\nX-Lago-Signature: {signature}\r\n")))
    }

    /// A text about Lago's webhooks – a request, a path – for the daemon of this rig.
    pub fn as_own(&self, text: &str) -> String {
        if self.daemon != DAEMON {
            return text.to_owned();
        }
        text.replace("X-Lago-Signature", SIGNATURE).replace("/lago", "/authentik").replace("/LAGO", "/AUTHENTIK")
    }

    /// Posts an event in an envelope, signed.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_event(&self, event: &str) -> Result<RawResponse> {
        let body = envelope(event);
        let signature = signature(&self.hmac_key, body.as_bytes());
        self.post_envelope(body.as_bytes(), &signature).await
    }

    /// Posts a body with this signature.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_envelope(&self, body: &[u8], signature: &str) -> Result<RawResponse> {
        let headers = [("Content-Type", "application/json"), (SIGNATURE_HEADER, signature)];
        Ok(raw::request(self.public, "POST", PATH, &headers, body, REQUEST_DEADLINE).await?)
    }
}
