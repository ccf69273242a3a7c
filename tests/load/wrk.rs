//! Runs wrk, whose own cost is small and the same for every server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use outrigger_tests::binaries::repository;
use serde::{Deserialize, Serialize};

/// What one run saw.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Seen {
    /// Answers.
    pub(crate) requests: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Answers that were no 2xx.
    pub(crate) not_2xx: u64,
    /// Connections that broke, and requests that timed out.
    pub(crate) broken: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Seen {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// The script that sends prepared webhooks with keys of their own.
pub(crate) const WEBHOOKS: &str = "hook.lua";
/// The script that sends prepared requests of producers with ids of their own.
pub(crate) const USAGE: &str = "usage.lua";
/// Characters of the word that makes the ids of a run its own, and of an id made with it.
pub(crate) const ID_LENGTH: usize = 32 + 13;

/// How to drive it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drive<'a> {
    /// Which script.
    pub(crate) script: &'static str,
    /// What it sends.
    pub(crate) prepared: &'a Path,
    /// Connections at once.
    pub(crate) connections: u32,
    /// Seconds.
    pub(crate) seconds: u64,
    /// One connection for each request.
    pub(crate) fresh: bool,
}

/// Drives a server with requests of fresh keys or ids.
pub(crate) async fn drive(address: SocketAddr, drive: Drive<'_>) -> Result<Seen> {
    let mut command = tokio::process::Command::new("wrk");
    command
        .arg(format!("-t{}", drive.connections.min(2)))
        .arg(format!("-c{}", drive.connections))
        .arg(format!("-d{}s", drive.seconds))
        .args(["--timeout", "10s", "-s", drive.script])
        .arg(format!("http://{address}/"))
        .arg("--")
        .arg(drive.prepared)
        .arg(uuid::Uuid::new_v4().simple().to_string())
        .arg(if drive.fresh { "close" } else { "keep" })
        // Scripts read what they share from there.
        .current_dir(repository().join("tests/load"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.context("run wrk (Debian package wrk)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.lines().find_map(|line| line.strip_prefix("#json "));
    let json = json.with_context(|| format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let seen: Seen = serde_json::from_str(json).with_context(|| json.to_owned())?;
    ensure!(seen.requests > 0, "{address} answered nothing: {text}");
    Ok(seen)
}
