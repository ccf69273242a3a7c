//! The webhook processor with a broker beside the gateway.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kit_workbench::ledger::SentRequest;

use super::{Mode, Rig};
use crate::queue::Found;

/// Name of the sink.
pub const RABBITMQ: &str = "rabbitmq";
/// The queue that everything is routed to.
pub const QUEUE: &str = "all";
/// Short limits, so that an experiment is not a wait.
pub const QUICK: [(&str, &str); 6] = [
    ("SIDECAR_AMQP__PUBLISH_TIMEOUT_SECONDS", "1"),
    ("SIDECAR_AMQP__CONFIRM_TIMEOUT_SECONDS", "2"),
    ("SIDECAR_AMQP__CONNECT_TIMEOUT_SECONDS", "1"),
    ("SIDECAR_AMQP__HEARTBEAT_SECONDS", "2"),
    ("SIDECAR_AMQP__CIRCUIT__PROBE_SECONDS", "0.2"),
    ("SIDECAR_AMQP__CIRCUIT__PROBE_MAX_SECONDS", "0.5"),
];

impl Rig {
    /// A rig that publishes to the broker at `url`, exchange `events`, with the queue [`QUEUE`] bound to everything; not
    /// started yet.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub async fn publishing(url: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let mut rig = Self::new(Mode::Hmac, &QUICK).await?;
        rig.set("AMQP_URL", url);
        let config = format!("[amqp.queues]\n{QUEUE} = [\"lago.#\"]\n");
        let file = rig.scratch.write("config.toml", config)?.display().to_string();
        rig.set("SIDECAR_CONFIG", &file);
        settings.iter().for_each(|(name, value)| rig.set(name, value));
        Ok(rig)
    }

    /// The broker's sink in the statistics.
    ///
    /// # Errors
    /// The daemon does not tell.
    pub async fn published(&self) -> Result<serde_json::Value> {
        let statistics = self.api("/api/v1/statistics").await?;
        let sinks = statistics["sinks"].as_array().cloned().unwrap_or_default();
        let found = sinks.into_iter().find(|sink| sink["name"] == RABBITMQ || sink["sink"] == RABBITMQ);
        found.ok_or_else(|| anyhow::anyhow!("no sink {RABBITMQ} in {statistics}"))
    }

    /// Waits until nothing is left to publish.
    ///
    /// # Errors
    /// That does not happen.
    pub async fn published_all(&self, deadline: Duration) -> Result<serde_json::Value> {
        let begin = Instant::now();
        loop {
            let sink = self.published().await?;
            if sink["pending"] == 0 {
                return Ok(sink);
            }
            if begin.elapsed() > deadline {
                bail!("not published after {deadline:?}: {sink}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Attempts that the broker confirmed.
    ///
    /// # Errors
    /// The daemon does not tell.
    pub async fn confirmed(&self) -> Result<u64> {
        let labels = [("sink", RABBITMQ), ("outcome", "delivered")];
        Ok(self.metrics().await?.sum("delivery_attempts_total", &labels) as u64)
    }
}

/// What was accepted and lies in the queue: everything, under its own id, whole, and several times only as the same.
/// Returns how many came more than once.
///
/// # Errors
/// Something is missing, made up, or different.
pub fn compare(sent: &[SentRequest], found: &Found) -> Result<usize> {
    let accepted: BTreeSet<&str> = sent.iter().filter_map(|request| request.event_id.as_deref()).collect();
    ensure!(!accepted.is_empty(), "nothing was accepted");
    let missing: Vec<_> = accepted.iter().filter(|id| !found.contains_key(**id)).take(3).collect();
    ensure!(missing.is_empty(), "accepted and not in the queue: {missing:?} of {}", accepted.len());
    for (id, bodies) in found {
        ensure!(accepted.contains(id.as_str()), "{id} is in the queue and was never accepted");
        ensure!(bodies.iter().all(|body| *body == bodies[0]), "{id} came with different bodies");
    }
    Ok(found.values().filter(|bodies| bodies.len() > 1).count())
}
