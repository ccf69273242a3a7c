//! What a webhook is made of: what the mappings make of a notification, or what Authentik sends without.

use kit::secret::Secret;

use super::event::{Row, moment};
use super::generation::Generation;
use super::python::{dumps, object, repr, sanitised, text};
use crate::blueprint::Authentication;
use crate::envelope;
use crate::signature;

/// How a transport's mappings are set.
#[derive(Clone, Debug)]
pub enum Mapping {
    /// By our blueprint.
    Blueprint(Authentication, Secret),
    /// By our blueprint, where worker and server have no secret.
    Unsigned,
    /// Not at all: Authentik's own body.
    Unmapped,
    /// The mapping of the body returns `None`.
    Nothing,
    /// The mapping of the body raises an exception.
    Raises,
    /// The mapping of headers has a value that is a number.
    NumberInHeader(Secret),
}

/// A webhook that can be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// By the mapping, beside what `requests` adds.
    pub(super) headers: Vec<(String, String)>,
    /// `None` is no body at all.
    pub(super) body: Option<String>,
}

/// Why there is nothing to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmade {
    /// The mapping raised, which is an event of its own.
    Raised,
    /// `requests` refused the headers.
    Refused,
}

/// Whom a notification is for.
#[derive(Clone, Debug)]
pub(super) struct Recipient {
    pub(super) username: String,
    pub(super) email: String,
}

/// Makes the webhook for a notification. The nonce is the notification's own key: the same for both mappings.
pub(super) fn make(
    mapping: &Mapping,
    generation: Generation,
    row: &Row,
    recipient: &Recipient,
    nonce: &str,
) -> Result<Made, Unmade> {
    match mapping {
        Mapping::Blueprint(authentication, secret) => {
            Ok(by_blueprint(*authentication, secret, generation, row, recipient, nonce))
        }
        Mapping::Unsigned => Ok(Made { headers: Vec::new(), body: Some(object(envelope(row, recipient, nonce))) }),
        Mapping::Unmapped => Ok(Made { headers: Vec::new(), body: Some(own_body(row, recipient)) }),
        Mapping::Nothing => Ok(Made::default()),
        Mapping::Raises => Err(Unmade::Raised),
        // A mapping that older versions do not run.
        Mapping::NumberInHeader(_) if generation.has_header_mapping() => Err(Unmade::Refused),
        Mapping::NumberInHeader(secret) => {
            Ok(by_blueprint(Authentication::Hmac, secret, generation, row, recipient, nonce))
        }
    }
}

/// The body but for what proves that it is Authentik's, in the order in which the mapping makes it.
fn envelope(row: &Row, recipient: &Recipient, nonce: &str) -> Vec<(&'static str, String)> {
    let event = object([
        ("pk", text(&row.pk.dashed())),
        ("action", text(&row.new.action)),
        ("app", text(&row.new.app)),
        ("created", text(&moment(row.created))),
        ("client_ip", row.new.client_ip.as_deref().map_or_else(|| "null".to_owned(), text)),
        ("user", dumps(&row.new.user)),
        ("context", dumps(&sanitised(&row.new.context))),
        ("brand", dumps(&row.new.brand)),
    ]);
    vec![
        ("schema", text(envelope::SCHEMA)),
        ("event", event),
        ("recipient", text(&recipient.username)),
        ("nonce", text(nonce)),
    ]
}

fn by_blueprint(
    authentication: Authentication,
    secret: &Secret,
    generation: Generation,
    row: &Row,
    recipient: &Recipient,
    nonce: &str,
) -> Made {
    let mut members = envelope(row, recipient, nonce);
    match authentication {
        Authentication::Hmac => {
            let event = members.iter().find(|(name, _)| *name == "event").map_or("", |(_, text)| text.as_str());
            let signed = envelope::canonical(nonce, event);
            members.push(("signature", text(&signature::sign(secret, signed.as_bytes()))));
        }
        Authentication::Bearer => {}
        Authentication::BodySecret => members.push(("secret", text(secret.expose()))),
    }
    let body = object(members);
    let mut headers = Vec::new();
    if generation.has_header_mapping() {
        match authentication {
            Authentication::Hmac => {
                let value = format!("{}{}", envelope::SIGNATURE_PREFIX, signature::sign(secret, body.as_bytes()));
                headers.push((envelope::SIGNATURE_HEADER.to_owned(), value));
            }
            Authentication::Bearer => {
                let value = format!("{}{}", envelope::BEARER_PREFIX, secret.expose());
                headers.push(("Authorization".to_owned(), value));
            }
            Authentication::BodySecret => {}
        }
    }
    Made { headers, body: Some(body) }
}

/// Source: goauthentik/authentik `authentik/events/models.py` (`send_webhook`, `Event.summary`) at 2026.2.2.
fn own_body(row: &Row, recipient: &Recipient) -> String {
    let summary = row.new.context["message"].as_str().map(str::to_owned);
    let summary = summary.unwrap_or_else(|| format!("{}: {}", row.new.action, repr(&row.new.context)));
    let mut members = vec![
        ("body", text(&summary)),
        ("severity", text("notice")),
        ("user_email", text(&recipient.email)),
        ("user_username", text(&recipient.username)),
    ];
    if row.new.user.as_object().is_some_and(|user| !user.is_empty()) {
        members.push(("event_user_email", dumps(&row.new.user["email"])));
        members.push(("event_user_username", dumps(&row.new.user["username"])));
    }
    object(members)
}
