//! Webhooks whose subject a test chooses, so that a gateway can tell them apart.

use anyhow::{Result, ensure};
use kit_workbench::Digest;
use kit_workbench::ledger::{Ledger, SentRequest};

use crate::rig::Rig;

/// Type of the named webhooks, as the gateway sees it.
pub const EVENT_TYPE: &str = "lago.fee.created";

/// The subject of the webhook with this name, as the gateway sees it.
pub fn subject(name: &str) -> String {
    format!("fee/{name}")
}

/// The name in such a subject.
pub fn name(subject: Option<&str>) -> Option<&str> {
    subject?.strip_prefix("fee/")
}

/// The body of the webhook with this name.
pub fn body(name: &str) -> String {
    serde_json::json!({ "webhook_type": "fee.created", "object_type": "fee", "fee": { "lago_id": name } }).to_string()
}

/// Posts the webhook with this name under a fresh key, tells the ledger, and returns the event's id.
///
/// # Errors
/// It is not accepted as new.
pub async fn send(rig: &Rig, ledger: &mut Ledger, name: &str) -> Result<String> {
    let sent = post(rig, name).await?;
    let id = sent.event_id.clone().unwrap_or_default();
    ledger.sent(sent);
    Ok(id)
}

/// As [`send`], for callers that keep the ledger's entry themselves.
///
/// # Errors
/// It is not accepted as new.
pub async fn post(rig: &Rig, name: &str) -> Result<SentRequest> {
    let (key, body) = (uuid::Uuid::new_v4().to_string(), body(name));
    let mut sent = SentRequest::begin("default", key.as_str(), subject(name), Digest::of(body.as_bytes()));
    let answer = rig.post(&key, &body).await?;
    sent.finish(answer.status, &answer.body);
    ensure!(answer.status == 200, "{name} is answered {} {}", answer.status, answer.text());
    ensure!(sent.duplicate == Some(false), "{name} is not new: {}", answer.text());
    Ok(sent)
}
