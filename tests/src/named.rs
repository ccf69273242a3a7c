//! Webhooks whose subject a test chooses, so that a gateway can tell them apart.

use anyhow::{Result, ensure};
use kit_workbench::Digest;
use kit_workbench::ledger::{Ledger, SentRequest};
use kit_workbench::raw::RawResponse;

use crate::rig::{Rig, forwarder};

/// Type of the named webhooks, as the gateway sees it.
pub const EVENT_TYPE: &str = "lago.fee.created";

/// The subject of the webhook with this name, as the gateway sees it.
pub fn subject(name: &str) -> String {
    format!("fee/{name}")
}

/// The name in such a subject.
pub fn name(subject: Option<&str>) -> Option<&str> {
    let subject = subject?;
    subject.strip_prefix("fee/").or_else(|| subject.strip_prefix("group/"))
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
    let key = uuid::Uuid::new_v4().to_string();
    if rig.daemon == forwarder::DAEMON {
        let event = forwarder::of_group(&key, name);
        let digest = Digest::of(event.as_bytes());
        let sent = SentRequest::begin("default", key.as_str(), format!("group/{name}"), digest);
        return answered(sent, name, rig.post_event(&event).await?);
    }
    let body = body(name);
    let sent = SentRequest::begin("default", key.as_str(), subject(name), Digest::of(body.as_bytes()));
    answered(sent, name, rig.post(&key, &body).await?)
}

fn answered(mut sent: SentRequest, name: &str, answer: RawResponse) -> Result<SentRequest> {
    sent.finish(answer.status, &answer.body);
    ensure!(answer.status == 200, "{name} is answered {} {}", answer.status, answer.text());
    ensure!(sent.duplicate == Some(false), "{name} is not new: {}", answer.text());
    Ok(sent)
}
