//! The bridge between Temporal and a gateway.

use anyhow::{Context, Result};
use kit_workbench::gateway::{Gateway, GatewayOptions};

use super::{Mode, Rig};

impl Rig {
    /// A rig of the bridge beside the Temporal at this address; not started yet. Its gateway keeps bodies.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub async fn bridge(address: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let mut rig = Self::new(Mode::Hmac, &[]).await?;
        let signing = rig.secrets.iter().find(|(name, _)| *name == "signing secret");
        let (_, signing) = signing.context("the rig signs")?.clone();
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
}
