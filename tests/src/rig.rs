//! One daemon between a load and a stand-in gateway, on fixed ports, so that a sender finds it again
//! after a restart.

mod accounts;
pub mod amqp;
mod bridge;
pub mod forwarder;
mod tracker;

pub use self::bridge::EventSender;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit::secret::Secret;
use kit_lago::signature::{RsaSigner, sign_hmac, sign_jwt};
use kit_lago::stand_in::billing::LagoServer;
use kit_workbench::Moment;
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::ledger::{Counters, Crash, EndRecord, ExpectedEnd, GATEWAY, Ledger};
use kit_workbench::load::{LagoWebhooks, LoadOptions, Pool, Signing, Target};
use kit_workbench::metrics::Metrics;
use kit_workbench::process::{DaemonCommand, DaemonProcess, Exit, ProcessError};
use kit_workbench::raw::{self, RawResponse};
use kit_workbench::scratch::{Scratch, free_ports};

use crate::binaries;

/// The daemon under test.
pub const DAEMON: &str = "lago-webhook-processor";
/// The issuer of a rig's tokens.
pub const ISSUER: &str = "http://lago-api:3000";
/// How long a daemon may take to say that it is ready. Far above the promise, which tests check.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long one request may take before a test gives up.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// Deliveries that may be unsettled when a daemon dies: those it has results of but has not recorded
/// (`UNSETTLED` in `kit-delivery/src/dispatcher.rs`), and those in flight.
pub const UNSETTLED: u64 = 1024 + 16;
/// Requests that the gateway keeps: more than the longest part of a campaign sends.
const RECORDED: usize = 5_000_000;
/// How long everything accepted may take to be delivered, once the load has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(180);
/// SIGTERM to exit, by the promise.
pub const STOP_LIMIT: Duration = Duration::from_secs(8);

/// How the rig's webhooks are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// HMAC-SHA256.
    Hmac,
    /// RS256.
    Jwt,
}

/// A daemon with its neighbours.
#[derive(Debug)]
pub struct Rig {
    /// Where everything of this run lies.
    pub scratch: Scratch,
    /// Which daemon it is.
    pub daemon: &'static str,
    /// Who receives.
    pub gateway: Gateway,
    /// Lago, for daemons that send to it.
    pub lago: Option<LagoServer>,
    /// The public listener.
    pub public: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
    /// The bearer token of the admin API.
    pub token: String,
    /// How webhooks are signed.
    pub mode: Mode,
    /// What producers show.
    pub producer: String,
    hmac_key: String,
    signer: Option<Arc<RsaSigner>>,
    secrets: Vec<(&'static str, String)>,
    environment: Vec<(String, String)>,
    journal: PathBuf,
    wrapper: Vec<String>,
    process: Option<DaemonProcess>,
}

/// The counters of the gateway's sink, as the daemon's metrics say them.
pub fn counters_of(metrics: &Metrics, point: &str) -> Counters {
    let value = |name: &str| metrics.sum(&format!("delivery_{name}"), &[("sink", GATEWAY)]) as u64;
    Counters {
        point: point.to_owned(),
        origin: "metrics".to_owned(),
        sink: GATEWAY.to_owned(),
        accepted: value("accepted"),
        delivered: value("delivered"),
        pending: value("pending"),
        retrying: 0,
        parked: value("parked"),
        dropped: value("dropped"),
        filtered: value("filtered"),
    }
}

impl Rig {
    /// A rig whose daemon is not started yet. `settings` are variables on top of the usual ones.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub async fn new(mode: Mode, settings: &[(&str, &str)]) -> Result<Self> {
        let scratch = Scratch::new("outrigger-test")?;
        let signing = format!("whsec_{}", crate::tokens::b64([7; 32]).replace('-', "+").replace('_', "/") + "=");
        let options =
            GatewayOptions { secrets: vec![signing.clone()], record_limit: RECORDED, ..GatewayOptions::default() };
        let gateway = Gateway::start(options).await?;
        let [public, admin] = free_ports()?.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let hmac_key = format!("canary-hmac-{}", uuid::Uuid::new_v4());
        let token = format!("canary-token-{}", uuid::Uuid::new_v4());
        let mut rig = Self {
            daemon: DAEMON,
            lago: None,
            public,
            admin,
            token: token.clone(),
            mode,
            producer: String::new(),
            hmac_key: hmac_key.clone(),
            signer: None,
            secrets: vec![
                ("HMAC key", hmac_key.clone()),
                ("admin token", token.clone()),
                ("signing secret", signing.clone()),
            ],
            environment: Vec::new(),
            journal: scratch.file("state/journal.db"),
            wrapper: Vec::new(),
            process: None,
            gateway,
            scratch,
        };
        let file = |name: &str, content: &str| -> Result<String> {
            Ok(rig.scratch.write(name, content)?.display().to_string())
        };
        let mut environment = vec![
            ("BRAIN_GATEWAY_URL", rig.gateway.url()),
            ("SIDECAR_GATEWAY__SIGNING_SECRET_FILE", file("signing", &signing)?),
            ("SIDECAR_JOURNAL__PATH", rig.journal_path().display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC", public.to_string()),
            ("SIDECAR_LISTEN__ADMIN", admin.to_string()),
            ("SIDECAR_ADMIN__TOKEN_FILE", file("token", &token)?),
        ];
        match mode {
            Mode::Hmac => {
                environment.push(("SIDECAR_LAGO__SIGNATURE", "hmac".to_owned()));
                environment.push(("LAGO_WEBHOOK_HMAC_KEY_FILE", file("hmac", &hmac_key)?));
            }
            Mode::Jwt => {
                let signer = tokio::task::spawn_blocking(RsaSigner::generate).await??;
                environment.push(("SIDECAR_LAGO__SIGNATURE", "jwt".to_owned()));
                environment.push(("SIDECAR_LAGO__ISSUER", ISSUER.to_owned()));
                environment.push(("LAGO_WEBHOOK_PUBLIC_KEY_FILE", file("public.pem", &signer.public_pem())?));
                rig.signer = Some(Arc::new(signer));
            }
        }
        rig.environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        for (name, value) in settings {
            rig.set(name, value);
        }
        std::fs::create_dir(rig.scratch.file("state"))?;
        Ok(rig)
    }

    /// A rig whose daemon is ready.
    ///
    /// # Errors
    /// As [`Self::new`] and [`Self::start`].
    pub async fn started(mode: Mode, settings: &[(&str, &str)]) -> Result<Self> {
        let mut rig = Self::new(mode, settings).await?;
        rig.start().await?;
        Ok(rig)
    }

    /// Sets a variable of the daemon, from its next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The journal file.
    pub fn journal_path(&self) -> PathBuf {
        self.journal.clone()
    }

    /// Puts the journal into another folder, from the next start on: on a disk of its own, say.
    pub fn place_journal(&mut self, folder: &Path) {
        self.journal = folder.join("journal.db");
        let path = self.journal.display().to_string();
        self.set("SIDECAR_JOURNAL__PATH", &path);
    }

    /// The command that starts the daemon.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn command(&self) -> Result<DaemonCommand> {
        let command = DaemonCommand::new(binaries::daemon_with(self.daemon, &self.environment)?);
        let command = command.envs(self.environment.clone()).log_file(self.scratch.file("daemon.log"));
        Ok(match self.wrapper.split_first() {
            Some((program, arguments)) => command.wrapped(program, arguments),
            None => command,
        })
    }

    /// Runs the daemon inside another command from its next start on: `ip netns exec …`, `prlimit …`.
    pub fn wrap(&mut self, command: &[&str]) {
        self.wrapper = command.iter().map(|word| (*word).to_owned()).collect();
    }

    /// The daemon's variables.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Starts the daemon and waits until it is ready; returns how long that took, from the start of
    /// the process.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let mut process = self.command()?.spawn()?;
        process.wait_ready(self.admin, START_DEADLINE).await?;
        self.process = Some(process);
        Ok(begin.elapsed())
    }

    /// Starts a command, usually [`Self::command`] inside another one, and does not wait for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&mut self, command: &DaemonCommand) -> Result<()> {
        self.process = Some(command.spawn()?);
        Ok(())
    }

    /// Kills the daemon with SIGKILL and leaves it at that.
    ///
    /// # Errors
    /// It is not running.
    pub async fn kill(&mut self) -> Result<Exit> {
        let mut process = self.process.take().context("the daemon is not running")?;
        Ok(process.kill9().await?)
    }

    /// The last lines that it has logged.
    pub fn end_of_log(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(self.scratch.file("daemon.log")).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The running daemon.
    ///
    /// # Errors
    /// It is not running.
    pub fn process(&mut self) -> Result<&mut DaemonProcess> {
        self.process.as_mut().context("the daemon is not running")
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// It is not running.
    pub fn rss_bytes(&self) -> Result<u64> {
        Ok(self.process.as_ref().context("the daemon is not running")?.rss_bytes()?)
    }

    /// Kills the daemon with SIGKILL and starts it again; the crash goes into the ledger. Returns how
    /// long the new one took to be ready.
    ///
    /// # Errors
    /// It ended by itself, or does not become ready again.
    pub async fn crash(&mut self, ledger: &mut Ledger) -> Result<Duration> {
        let from = Moment::now();
        let mut process = self.process.take().context("the daemon is not running")?;
        let exit = process.kill9().await?;
        ledger.end(EndRecord::new(self.daemon, ExpectedEnd::Signal(9), exit));
        let ready = self.start().await?;
        ledger.crash(Crash { what: "kill -9".to_owned(), from, until: Moment::now(), in_flight: UNSETTLED });
        Ok(ready)
    }

    /// Stops the daemon with SIGTERM and starts it again. Deliveries whose results were not recorded
    /// by then may be repeated, which the ledger is told.
    ///
    /// # Errors
    /// It does not end with 0, or does not become ready again.
    pub async fn restart(&mut self, ledger: &mut Ledger) -> Result<()> {
        let from = Moment::now();
        let (exit, _) = self.stop().await?;
        ledger.end(EndRecord::new(self.daemon, ExpectedEnd::Code(0), exit));
        self.start().await?;
        ledger.crash(Crash { what: "restart".to_owned(), from, until: Moment::now(), in_flight: UNSETTLED });
        Ok(())
    }

    /// Stops the daemon with SIGTERM; returns how it ended and how long that took.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&mut self) -> Result<(Exit, Duration)> {
        self.end_with(DaemonProcess::term).await
    }

    /// Stops the daemon with SIGINT; as [`Self::stop`].
    ///
    /// # Errors
    /// It does not end.
    pub async fn interrupt(&mut self) -> Result<(Exit, Duration)> {
        self.end_with(DaemonProcess::interrupt).await
    }

    async fn end_with(
        &mut self,
        signal: fn(&mut DaemonProcess) -> Result<(), ProcessError>,
    ) -> Result<(Exit, Duration)> {
        let mut process = self.process.take().context("the daemon is not running")?;
        let begin = Instant::now();
        signal(&mut process)?;
        let exit = process.wait(STOP_LIMIT + Duration::from_secs(12)).await?;
        Ok((exit, begin.elapsed()))
    }

    /// Where Lago would send to.
    pub fn target(&self) -> Target {
        Target::new(self.public, self.path())
    }

    /// The path of webhooks.
    pub fn path(&self) -> &'static str {
        if self.daemon == forwarder::DAEMON { forwarder::PATH } else { "/webhooks/lago" }
    }

    /// The signature of a body.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn sign(&self, body: &str) -> Result<String> {
        Ok(match &self.signer {
            None => sign_hmac(&Secret::from(self.hmac_key.clone()), body.as_bytes()),
            Some(signer) => sign_jwt(signer, body, ISSUER)?,
        })
    }

    /// Lago's key in a rig that signs tokens.
    ///
    /// # Errors
    /// This rig does not.
    pub fn signer(&self) -> Result<Arc<RsaSigner>> {
        self.signer.clone().context("the rig signs with HMAC")
    }

    /// Posts a body with the right signature under a key.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post(&self, key: &str, body: &str) -> Result<RawResponse> {
        if self.daemon == forwarder::DAEMON {
            return self.post_event(&forwarder::event(key, body)).await;
        }
        let signature = self.sign(body)?;
        self.post_signed(key, body, &signature).await
    }

    /// Posts a body with this signature.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_signed(&self, key: &str, body: &str, signature: &str) -> Result<RawResponse> {
        let headers =
            [("Content-Type", "application/json"), ("X-Lago-Unique-Key", key), ("X-Lago-Signature", signature)];
        Ok(raw::request(self.public, "POST", "/webhooks/lago", &headers, body.as_bytes(), REQUEST_DEADLINE).await?)
    }

    /// A pool of signed webhooks for a load.
    ///
    /// # Errors
    /// They cannot be signed.
    pub fn pool(&self, count: usize) -> Result<Arc<Pool>> {
        if self.daemon == forwarder::DAEMON {
            return Ok(Arc::new(forwarder::pool(&self.hmac_key, count)));
        }
        let webhooks = LagoWebhooks { count, ..LagoWebhooks::new("default", self.signing()) };
        Ok(Arc::new(Pool::lago(&webhooks)?))
    }

    /// How this rig's webhooks are signed, for pools of one's own.
    pub fn signing(&self) -> Signing {
        match &self.signer {
            None => Signing::Hmac(Secret::from(self.hmac_key.clone())),
            Some(signer) => Signing::Jwt { signer: Arc::clone(signer), issuer: ISSUER.to_owned() },
        }
    }

    /// A load that never gives up and tells the ledger everything.
    pub fn load(&self) -> LoadOptions {
        LoadOptions {
            record: true,
            attempts: 10_000,
            retry_pause: Duration::from_millis(20),
            timeout: Duration::from_secs(10),
            ..LoadOptions::new(self.target())
        }
    }

    /// The daemon's metrics.
    ///
    /// # Errors
    /// It does not tell.
    pub async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::fetch(self.admin, REQUEST_DEADLINE).await?)
    }

    /// How many webhooks were taken, duplicates not counted, by the daemon's own account.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn taken(&self) -> Result<u64> {
        let metrics = self.metrics().await?;
        if self.daemon == forwarder::DAEMON {
            return Ok(metrics.sum("authentik_events_total", &[("result", "accepted")]) as u64);
        }
        let results = ["accepted", "conflict"].map(|result| metrics.sum("lago_webhooks_total", &[("result", result)]));
        Ok(results.iter().sum::<f64>() as u64)
    }

    /// The daemon's counters of the gateway, from its metrics.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn counters(&self, point: &str) -> Result<Counters> {
        Ok(counters_of(&self.metrics().await?, point))
    }

    /// Asks the admin API, with the token.
    ///
    /// # Errors
    /// There is no answer, or it is no JSON.
    pub async fn api(&self, path: &str) -> Result<serde_json::Value> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("Authorization", bearer.as_str())];
        let answer = raw::request(self.admin, "GET", path, &headers, b"", REQUEST_DEADLINE).await?;
        ensure!(answer.status == 200, "{path} is answered {}: {}", answer.status, answer.text());
        Ok(answer.json()?)
    }

    /// Posts to the admin API, with the token. Whatever the answer is, it is returned.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn act(&self, path: &str, body: &serde_json::Value) -> Result<RawResponse> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let body = body.to_string();
        Ok(raw::request(self.admin, "POST", path, &headers, body.as_bytes(), REQUEST_DEADLINE).await?)
    }

    /// Waits until nothing is left to deliver and the metrics say so too; they are read from the
    /// journal every other second.
    ///
    /// # Errors
    /// That does not happen.
    pub async fn drained(&self) -> Result<Counters> {
        let begin = Instant::now();
        loop {
            let journal = self.api("/api/v1/statistics").await?;
            let sink = &journal["sinks"][0];
            let counters = self.counters("drained").await?;
            let quiet = sink["pending"] == 0 && counters.pending == 0;
            if quiet && journal["accepted"] == counters.accepted && sink["delivered"] == counters.delivered {
                return Ok(counters);
            }
            if begin.elapsed() > DRAIN_DEADLINE {
                bail!("not drained after {DRAIN_DEADLINE:?}: {counters:?}, {sink}, {:?}", self.gateway.counts());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
