//! The bridge between Temporal and a gateway.

use anyhow::{Context, Result};
use kit::secret::Secret;
use kit_delivery::signature::{SigningSecret, signature_header};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::raw::{self, RawResponse};
use serde_json::{Value, json};

use super::{Mode, REQUEST_DEADLINE, Rig};

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

    /// Brings the bridge a CloudEvent, signed as the other daemons' sinks do it.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn announce(&self, id: &str, kind: &str, subject: &str, data: &Value) -> Result<RawResponse> {
        let signing = self.signing_secret()?;
        let event = json!({
            "specversion": "1.0", "id": id, "source": "test", "type": kind, "subject": subject,
            "datacontenttype": "application/json", "data": data,
        });
        let body = event.to_string();
        let now = jiff::Timestamp::now().as_second();
        let secret = SigningSecret::parse(&Secret::from(signing))?;
        let signature = signature_header(&[secret], id, now, body.as_bytes());
        let now = now.to_string();
        let headers = [
            ("Content-Type", "application/cloudevents+json"),
            ("webhook-id", id),
            ("webhook-timestamp", now.as_str()),
            ("webhook-signature", signature.as_str()),
        ];
        Ok(raw::request(self.public, "POST", "/webhooks/events", &headers, body.as_bytes(), REQUEST_DEADLINE).await?)
    }

    /// What the daemons' sinks sign with in this rig.
    ///
    /// # Errors
    /// They do not.
    pub fn signing_secret(&self) -> Result<String> {
        let signing = self.secrets.iter().find(|(name, _)| *name == "signing secret");
        signing.map(|(_, signing)| signing.clone()).context("the rig signs")
    }
}
