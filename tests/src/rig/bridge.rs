//! The bridge between Temporal and a gateway.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit::secret::Secret;
use kit_delivery::signature::{SigningSecret, signature_header};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::raw::{self, RawResponse};
use serde_json::{Value, json};

use super::{Mode, REQUEST_DEADLINE, Rig};

/// Until an event is taken, the bridge's own restarts included.
const TAKEN: Duration = Duration::from_secs(30);
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
        let sender = self.sender()?;
        let sender = if forged { EventSender { secret: FORGED.to_owned(), ..sender } } else { sender };
        sender.send(event).await
    }

    /// Whoever sends the bridge events, while something else is done to it.
    ///
    /// # Errors
    /// The bridge has no secret.
    pub fn sender(&self) -> Result<EventSender> {
        let secret = self.environment.iter().find(|(name, _)| name == "BRIDGE_WEBHOOK_SECRET");
        let (_, secret) = secret.context("the bridge has a secret")?;
        Ok(EventSender { bridge: self.public, secret: secret.clone() })
    }
}

/// Sends CloudEvents to a bridge, signed.
#[derive(Clone, Debug)]
pub struct EventSender {
    bridge: SocketAddr,
    secret: String,
}

impl EventSender {
    /// Sends an event; returns what it is answered.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, event: &Value) -> Result<RawResponse> {
        let secret = SigningSecret::parse(&Secret::from(self.secret.clone()))?;
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
        Ok(raw::request(self.bridge, "POST", "/webhooks/events", &headers, body.as_bytes(), REQUEST_DEADLINE).await?)
    }

    /// Sends an event until it is taken, as every sender does; true where the bridge knew it.
    ///
    /// # Errors
    /// It is refused, or not taken within half a minute.
    pub async fn taken(&self, event: &Value) -> Result<bool> {
        let begin = Instant::now();
        loop {
            match self.send(event).await {
                Ok(answer) if answer.status == 200 => return Ok(answer.json()?["duplicate"] == json!(true)),
                Ok(answer) if answer.status < 500 => bail!("answered {}: {}", answer.status, answer.text()),
                other => ensure!(begin.elapsed() < TAKEN, "not taken: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
