//! The bridge between Temporal and a gateway.

use anyhow::{Context, Result};
use kit::secret::Secret;
use kit_delivery::signature::{SigningSecret, signature_header};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::raw::{self, RawResponse};
use serde_json::{Value, json};

use super::{Mode, REQUEST_DEADLINE, Rig};

/// A secret that the bridge does not have.
const FORGED: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

impl Rig {
    /// A rig of the bridge beside the Temporal at this address; not started yet. Its gateway keeps bodies.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub async fn bridge(address: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let mut rig = Self::new(Mode::Hmac, &[]).await?;
        let signing = rig.signing_secret()?;
        let options = GatewayOptions { secrets: vec![signing.clone()], keep_bodies: true, ..GatewayOptions::default() };
        rig.gateway = Gateway::start(options).await?;
        rig.environment.retain(|(name, _)| !name.contains("LAGO"));
        let url = rig.gateway.url();
        // What the daemons' sinks sign with is also what the bridge takes.
        let own =
            [("BRAIN_GATEWAY_URL", url.as_str()), ("TEMPORAL_ADDRESS", address), ("BRIDGE_WEBHOOK_SECRET", &signing)];
        own.into_iter().chain(settings.iter().copied()).for_each(|(name, value)| rig.set(name, value));
        rig.daemon = "temporal-event-bridge";
        Ok(rig)
    }

    /// Brings the bridge a CloudEvent with this data, signed as the other daemons' sinks do it.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn announce(&self, id: &str, kind: &str, subject: &str, data: &Value) -> Result<RawResponse> {
        let event = json!({
            "specversion": "1.0", "id": id, "source": "test", "type": kind, "subject": subject,
            "datacontenttype": "application/json", "data": data,
        });
        self.send_event(&event, false).await
    }

    /// What the daemons' sinks sign with in this rig.
    ///
    /// # Errors
    /// They do not.
    pub fn signing_secret(&self) -> Result<String> {
        let signing = self.secrets.iter().find(|(name, _)| *name == "signing secret");
        signing.map(|(_, signing)| signing.clone()).context("the rig signs")
    }

    /// Sends a CloudEvent, signed with our secret or with another one; returns what it is answered.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send_event(&self, event: &Value, forged: bool) -> Result<RawResponse> {
        let secret = self.environment.iter().find(|(name, _)| name == "BRIDGE_WEBHOOK_SECRET");
        let (_, secret) = secret.context("the bridge has a secret")?;
        let secret = if forged { FORGED } else { secret };
        let secret = SigningSecret::parse(&Secret::from(secret.to_owned()))?;
        let (id, seconds) = (event["id"].as_str().unwrap_or_default(), jiff::Timestamp::now().as_second());
        let body = event.to_string();
        let signature = signature_header(&[secret], id, seconds, body.as_bytes());
        let seconds = seconds.to_string();
        let headers = [
            ("Content-Type", "application/cloudevents+json"),
            ("webhook-id", id),
            ("webhook-timestamp", &seconds),
            ("webhook-signature", &signature),
        ];
        Ok(raw::request(self.public, "POST", "/webhooks/events", &headers, body.as_bytes(), REQUEST_DEADLINE).await?)
    }
}
