//! One sidecar's container: what the engine says about it, and what it says itself.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::ledger::Counters;
use kit_workbench::metrics::Metrics;
use kit_workbench::raw;
use outrigger_tests::rig::{REQUEST_DEADLINE, counters_of};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::engine::Engine;
use crate::site::{ALL, Site};

/// How long until a condition holds; above anything that is promised.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A container, as it was when it was found.
#[derive(Debug)]
pub(crate) struct Sidecar {
    engine: &'static Engine,
    pub(crate) name: String,
    pub(crate) admin: SocketAddr,
    token: String,
    /// What the engine said of it then.
    pub(crate) seen: Value,
}

impl Sidecar {
    pub(crate) async fn find(site: &Site, service: &str) -> Result<Self> {
        let seen = site.container(service).await?;
        let network = site.name("outrigger-internal");
        let address = seen["NetworkSettings"]["Networks"][network.as_str()]["IPAddress"].as_str().unwrap_or_default();
        let address: IpAddr = address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let number = ALL.iter().position(|known| *known == service).context("has no admin listener")?;
        let admin = 9081 + u16::try_from(number)?;
        Ok(Self {
            engine: site.engine,
            name: seen["Name"].as_str().context("no name")?.trim_start_matches('/').to_owned(),
            admin: SocketAddr::from((address, admin)),
            token: site.secret(&format!("{service}-admin-token"))?,
            seen,
        })
    }

    /// What the engine says now.
    pub(crate) async fn look(&self) -> Result<Value> {
        self.engine.inspect(&self.name).await
    }

    /// The process in the container, as this run's namespaces number it.
    pub(crate) async fn pid(&self) -> Result<Pid> {
        let pid = self.look().await?["State"]["Pid"].as_i64().unwrap_or_default();
        i32::try_from(pid).ok().and_then(Pid::from_raw).context("the container has no process")
    }

    /// Sends its process a signal, past the engine.
    pub(crate) async fn signal(&self, signal: Signal) -> Result<()> {
        Ok(rustix::process::kill_process(self.pid().await?, signal)?)
    }

    /// Waits until the engine says what is wanted; returns what it says.
    pub(crate) async fn until(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        let begin = Instant::now();
        loop {
            let seen = self.look().await?;
            if wanted(&seen) {
                return Ok(seen);
            }
            ensure!(begin.elapsed() < PATIENCE, "{} is not {what} after {PATIENCE:?}: {}", self.name, seen["State"]);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it says itself that it is ready.
    pub(crate) async fn ready(&self) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let answer = raw::get(self.admin, "/readyz", Duration::from_secs(1)).await;
            match answer {
                Ok(answer) if answer.status == 200 => return Ok(begin.elapsed()),
                _ if begin.elapsed() > PATIENCE => {
                    let log = self.log().await?;
                    let said = answer.map_or_else(|error| error.to_string(), |answer| answer.text());
                    let end: Vec<&str> = log.lines().rev().take(3).collect();
                    bail!("{} is not ready after {PATIENCE:?}: {said}; {}", self.name, end.join(" / "));
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Everything it has said.
    pub(crate) async fn log(&self) -> Result<String> {
        let mut command = self.engine.command("docker");
        command.args(["logs", &self.name]);
        let said = crate::engine::try_run(command).await?;
        Ok(said.out + &said.err)
    }

    /// Asks its admin API, with the token.
    pub(crate) async fn api(&self, path: &str) -> Result<Value> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("Authorization", bearer.as_str())];
        let answer = raw::request(self.admin, "GET", path, &headers, b"", REQUEST_DEADLINE).await?;
        ensure!(answer.status == 200, "{path} is answered {}: {}", answer.status, answer.text());
        Ok(answer.json()?)
    }

    /// Its metrics.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::fetch(self.admin, REQUEST_DEADLINE).await?)
    }

    /// The counters of the gateway's sink.
    pub(crate) async fn counters(&self, point: &str) -> Result<Counters> {
        Ok(counters_of(&self.metrics().await?, point))
    }

    /// What the engine counts as its memory, in bytes: everything but page cache that nobody has used lately.
    pub(crate) async fn memory(&self) -> Result<u64> {
        let said = self.engine.docker(["stats", "--no-stream", "--format", "{{.MemUsage}}", &self.name]).await?;
        let used = said.split('/').next().unwrap_or_default().trim();
        bytes(used).with_context(|| format!("docker stats says {said}"))
    }

    /// What the kernel accounts to it: with the page cache, without it, and how often it was killed for want of memory.
    pub(crate) async fn accounted(&self) -> Result<Accounted> {
        let path = format!("/proc/{}/cgroup", self.pid().await?.as_raw_nonzero());
        let groups = std::fs::read_to_string(path)?;
        let folder = |prefix: &str| groups.lines().find_map(|line| Some(line.split_once(prefix)?.1.to_owned()));
        let (folder, total, anonymous, kills) = match folder(":memory:") {
            Some(group) => {
                (format!("/sys/fs/cgroup/memory{group}"), "memory.usage_in_bytes", "rss ", "memory.oom_control")
            }
            None => {
                let group = folder("0::").context("the container is in no group")?;
                (format!("/sys/fs/cgroup{group}"), "memory.current", "anon ", "memory.events")
            }
        };
        let folder = PathBuf::from(folder);
        let read = |name: &str| {
            std::fs::read_to_string(folder.join(name)).with_context(|| format!("read {}/{name}", folder.display()))
        };
        let value = |text: &str, prefix: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(prefix)).context("no such line")?;
            Ok(line.trim().parse()?)
        };
        Ok(Accounted {
            total: read(total)?.trim().parse()?,
            anonymous: value(&read("memory.stat")?, anonymous)?,
            kills: value(&read(kills)?, "oom_kill ")?,
        })
    }
}

/// What the kernel accounts to a container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accounted {
    /// Bytes, page cache included.
    pub(crate) total: u64,
    /// Bytes that are nobody's file.
    pub(crate) anonymous: u64,
    /// Processes killed because the limit was reached.
    pub(crate) kills: u64,
}

/// `4.91MiB` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * factor) as u64)
}
