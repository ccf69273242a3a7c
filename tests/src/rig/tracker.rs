//! The usage tracker between producers and a stand-in for Lago.

use anyhow::Result;
use kit::secret::Secret;
use kit_lago::stand_in::billing::{LagoServer, Profile};
use kit_workbench::raw::{self, RawResponse};

use super::{Mode, REQUEST_DEADLINE, Rig};

impl Rig {
    /// A rig of the usage tracker between producers and Lago; not started yet.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub async fn tracker(profile: Profile, settings: &[(&str, &str)]) -> Result<Self> {
        let mut rig = Self::new(Mode::Hmac, &[]).await?;
        let key = format!("canary-api-key-{}", uuid::Uuid::new_v4());
        let lago = LagoServer::start(profile, Secret::from(key.clone())).await?;
        let producer = format!("canary-producer-{}", uuid::Uuid::new_v4());
        let file = |name: &str, content: &str| -> Result<String> {
            Ok(rig.scratch.write(name, content)?.display().to_string())
        };
        let own = [
            ("LAGO_API_URL", lago.url()),
            ("LAGO_API_KEY_FILE", file("api-key", &key)?),
            ("USAGE_PRODUCER_TOKEN_FILE", file("producer", &producer)?),
        ];
        rig.environment.retain(|(name, _)| {
            ["SIDECAR_JOURNAL__", "SIDECAR_LISTEN__", "SIDECAR_ADMIN__"].iter().any(|prefix| name.starts_with(prefix))
        });
        own.into_iter().for_each(|(name, value)| rig.set(name, &value));
        settings.iter().for_each(|(name, value)| rig.set(name, value));
        rig.secrets.extend([("API key", key), ("producer token", producer.clone())]);
        (rig.daemon, rig.lago, rig.producer) = ("lago-usage-tracker", Some(lago), producer);
        Ok(rig)
    }

    /// Sends a request of a producer.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn produce(&self, path: &str, token: &str, body: &str) -> Result<RawResponse> {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        Ok(raw::request(self.public, "POST", path, &headers, body.as_bytes(), REQUEST_DEADLINE).await?)
    }
}
