//! The receivers that are compared, each a process of its own on a port of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit::secret::Secret;
use kit_lago::signature::{RsaSigner, sign_hmac};
use kit_workbench::load::{LagoWebhooks, Pool, PreparedWebhook, Signing};
use kit_workbench::metrics::Metrics;
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::raw;
use kit_workbench::scratch::{Scratch, free_address};
use outrigger_tests::binaries;
use std::sync::Arc;

use crate::measure::Usage;

const START: Duration = Duration::from_secs(60);
const QUESTION: Duration = Duration::from_secs(10);
const ISSUER: &str = "http://lago-api:3000";
const DAEMON: &str = "lago-webhook-processor";
const TRACKER: &str = "lago-usage-tracker";
/// What producers show to the usage tracker, and it shows to Lago.
pub(crate) const PRODUCER: &str = "a-producer-of-this-load";
pub(crate) const API_KEY: &str = "an-api-key-of-this-load";
/// Different webhooks of a run: as many subjects whose order is kept.
const WEBHOOKS: usize = 256;
/// Where `tests/load/run` installs the Python receiver.
pub(crate) const VENV_VARIABLE: &str = "OUTRIGGER_LOAD_VENV";

/// Serves the bare handler until killed.
pub(crate) fn serve_bare(address: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let handler = |headers: axum::http::HeaderMap, body: axum::body::Bytes| async move {
            // Looked at, so that neither is optimised away.
            std::hint::black_box((headers.len(), body.len()));
            axum::http::StatusCode::OK
        };
        let router = axum::Router::new().fallback(handler);
        axum::serve(tokio::net::TcpListener::bind(address).await?, router).await.context("serve")
    })
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Reads the body, answers 200.
    Bare,
    /// The webhook processor; deliveries paused, or going to a bare handler.
    Ours {
        /// Tokens instead of HMAC.
        jwt: bool,
        /// Whether events go on to a gateway.
        delivering: bool,
    },
    /// The webhook processor over a journal that stores nothing.
    NullJournal {
        /// It delivers; otherwise what it has taken is gone at once.
        delivering: bool,
    },
    /// The usage tracker.
    Tracker {
        /// Where Lago is, or nobody.
        lago: SocketAddr,
        /// Nothing is sent to it.
        paused: bool,
    },
    /// Lago, as far as usage goes.
    Lago {
        /// How long it takes for a batch.
        millis: u64,
    },
    /// FastAPI and SQLite: verified, committed, answered.
    FastApi,
    /// Debian's `webhook`, which answers first and runs its command later, or waits for it.
    Webhook {
        /// Waits.
        waits: bool,
    },
}

impl Variant {
    pub(crate) const ALONE: Self = Self::Ours { jwt: false, delivering: false };
    pub(crate) const DELIVERING: Self = Self::Ours { jwt: false, delivering: true };
    pub(crate) const JWT: Self = Self::Ours { jwt: true, delivering: false };

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare axum handler",
            Self::Ours { jwt: false, delivering: false } => "outrigger",
            Self::Ours { jwt: false, delivering: true } => "outrigger, delivering",
            Self::Ours { jwt: true, delivering: false } => "outrigger, JWT",
            Self::Ours { jwt: true, delivering: true } => "outrigger, JWT, delivering",
            Self::NullJournal { delivering: false } => "outrigger over a journal that stores nothing",
            Self::NullJournal { delivering: true } => "outrigger over a journal that stores nothing, delivering",
            Self::Tracker { .. } => "usage tracker",
            Self::Lago { .. } => "Lago for usage",
            Self::FastApi => "FastAPI, uvicorn and SQLite",
            Self::Webhook { waits: false } => "Debian's webhook, answers before its command",
            Self::Webhook { waits: true } => "Debian's webhook, waits for its command",
        }
    }

    /// Whether events go on to a gateway.
    pub(crate) fn delivers(self) -> bool {
        matches!(self, Self::NullJournal { delivering: true } | Self::Ours { delivering: true, .. })
    }

    /// What it delivers to.
    fn sink(self) -> &'static str {
        if matches!(self, Self::Tracker { .. }) { "lago" } else { "gateway" }
    }

    /// Why it cannot be measured here, if it cannot.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::FastApi if python().is_none() => {
                Some(format!("{VENV_VARIABLE} names no environment with uvicorn: use tests/load/run"))
            }
            Self::Webhook { .. } if !Path::new("/usr/bin/webhook").exists() => {
                Some("Debian's package webhook is not installed".to_owned())
            }
            _ => None,
        }
    }
}

/// The interpreter of the environment that `tests/load/run` makes.
pub(crate) fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os(VENV_VARIABLE)?).join("bin/python");
    python.is_file().then_some(python)
}

/// What all receivers of a run share: keys and prepared webhooks.
pub(crate) struct Stage {
    pub(crate) scratch: Scratch,
    hmac_key: String,
    signer: Arc<RsaSigner>,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let stage = Self {
            scratch: Scratch::new("outrigger-load")?,
            hmac_key: "a key for the load only".to_owned(),
            signer: Arc::new(RsaSigner::generate()?),
        };
        stage.scratch.write("hmac", &stage.hmac_key)?;
        stage.scratch.write("public.pem", stage.signer.public_pem())?;
        stage.scratch.write("token", "a token of this load, long enough to be taken")?;
        stage.scratch.write("producer", PRODUCER)?;
        stage.scratch.write("api-key", API_KEY)?;
        stage.write("webhooks", &stage.pool(false)?)?;
        stage.write("webhooks-jwt", &stage.pool(true)?)?;
        stage.write("webhooks-small", &stage.small())?;
        Ok(stage)
    }

    /// The webhooks as `kit-workbench` sends them.
    pub(crate) fn pool(&self, jwt: bool) -> Result<Pool> {
        let signing = if jwt {
            Signing::Jwt { signer: Arc::clone(&self.signer), issuer: ISSUER.to_owned() }
        } else {
            Signing::Hmac(Secret::from(self.hmac_key.clone()))
        };
        Ok(Pool::lago(&LagoWebhooks { count: WEBHOOKS, fees: 0, ..LagoWebhooks::new("default", signing) })?)
    }

    /// The webhooks as `hook.lua` reads them.
    pub(crate) fn webhooks(&self, variant: Variant) -> PathBuf {
        self.scratch.file(if matches!(variant, Variant::Ours { jwt: true, .. }) { "webhooks-jwt" } else { "webhooks" })
    }

    /// Webhooks about as large as a usage event.
    pub(crate) fn small_webhooks(&self) -> PathBuf {
        self.scratch.file("webhooks-small")
    }

    fn small(&self) -> Pool {
        let key = Secret::from(self.hmac_key.clone());
        let webhook = |number: usize| {
            let customer = uuid::Uuid::from_u128(number as u128 + 1);
            let body = format!(
                r#"{{"webhook_type":"customer.created","object_type":"customer","organization_id":"{customer}","customer":{{"lago_id":"{customer}","external_id":"{customer}","name":"A customer","currency":"EUR"}}}}"#
            );
            let signed = sign_hmac(&key, body.as_bytes());
            let headers = [("X-Lago-Signature-Algorithm", "hmac".to_owned()), ("X-Lago-Signature", signed)];
            let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            PreparedWebhook::new("default", format!("customer/{customer}"), headers, body)
        };
        Pool::new((0..WEBHOOKS).map(webhook).collect())
    }

    fn write(&self, name: &str, pool: &Pool) -> Result<()> {
        let mut file = Vec::new();
        for webhook in pool.iter() {
            let mut head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", webhook.body.len());
            for (name, value) in &webhook.headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            file.extend_from_slice(format!("{} {}\n{head}", head.len(), webhook.body.len()).as_bytes());
            file.extend_from_slice(&webhook.body);
        }
        self.scratch.write(name, file)?;
        Ok(())
    }

    /// Starts a receiver with an empty store and waits until it answers.
    pub(crate) async fn start(&self, variant: Variant) -> Result<Receiver> {
        let folder = self.scratch.file(&format!("run-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&folder)?;
        let journal = folder.join("journal.db");
        self.start_on(variant, folder, &journal).await
    }

    /// As [`Self::start`], on a journal that may have something in it.
    pub(crate) async fn start_on(&self, variant: Variant, folder: PathBuf, journal: &Path) -> Result<Receiver> {
        self.start_with(variant, folder, journal, &[]).await
    }

    /// As [`Self::start_on`], with further settings where it is a daemon of ours.
    pub(crate) async fn start_with(
        &self,
        variant: Variant,
        folder: PathBuf,
        journal: &Path,
        settings: &[(&str, String)],
    ) -> Result<Receiver> {
        let address = free_address()?;
        let port = address.port().to_string();
        let mut gateway = None;
        let mut admin = None;
        let command = match variant {
            Variant::Bare => bare(address)?,
            Variant::Ours { .. } | Variant::NullJournal { .. } => {
                let to = free_address()?;
                // A paused sink needs no gateway, but one that is there must not be the difference.
                gateway = Some(Receiver::launch(variant, bare(to)?, to, None, None, None).await?);
                let own = free_address()?;
                admin = Some(own);
                let program = match variant {
                    Variant::NullJournal { .. } => DaemonCommand::new(std::env::current_exe()?).args(["null-journal"]),
                    _ => DaemonCommand::new(binaries::daemon(DAEMON)?),
                };
                let jwt = matches!(variant, Variant::Ours { jwt: true, .. });
                program
                    .env("BRAIN_GATEWAY_URL", format!("http://{to}"))
                    .env("SIDECAR_JOURNAL__PATH", journal.display().to_string())
                    .env("SIDECAR_LISTEN__PUBLIC", address.to_string())
                    .env("SIDECAR_LISTEN__ADMIN", own.to_string())
                    .env("SIDECAR_ADMIN__TOKEN_FILE", self.path("token"))
                    .env("SIDECAR_LAGO__SIGNATURE", if jwt { "jwt" } else { "hmac" })
                    .env("SIDECAR_LAGO__ISSUER", if jwt { ISSUER } else { "" })
                    .env(
                        if jwt { "LAGO_WEBHOOK_PUBLIC_KEY_FILE" } else { "LAGO_WEBHOOK_HMAC_KEY_FILE" },
                        self.path(if jwt { "public.pem" } else { "hmac" }),
                    )
            }
            Variant::Tracker { lago, .. } => {
                let own = free_address()?;
                admin = Some(own);
                DaemonCommand::new(binaries::daemon(TRACKER)?)
                    .env("LAGO_API_URL", format!("http://{lago}"))
                    .env("LAGO_API_KEY_FILE", self.path("api-key"))
                    .env("USAGE_PRODUCER_TOKEN_FILE", self.path("producer"))
                    .env("SIDECAR_JOURNAL__PATH", journal.display().to_string())
                    .env("SIDECAR_LISTEN__PUBLIC", address.to_string())
                    .env("SIDECAR_LISTEN__ADMIN", own.to_string())
                    .env("SIDECAR_ADMIN__TOKEN_FILE", self.path("token"))
            }
            Variant::Lago { millis } => DaemonCommand::new(std::env::current_exe()?).args([
                "lago".to_owned(),
                address.to_string(),
                millis.to_string(),
            ]),
            Variant::FastApi => DaemonCommand::new(python().context("no Python environment")?)
                .args(["-m", "uvicorn", "fastapi_sqlite:app", "--host", "127.0.0.1", "--port", &port])
                .args(["--log-level", "error", "--no-access-log"])
                .directory(binaries::repository().join("tests/load/peers"))
                .env("KEY", self.hmac_key.clone())
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("DATABASE", folder.join("webhooks.db").display().to_string()),
            Variant::Webhook { waits } => {
                let hooks = serde_json::json!([{
                    "id": "lago", "execute-command": "/usr/bin/true", "http-methods": ["POST"],
                    "include-command-output-in-response": waits
                }]);
                std::fs::write(folder.join("hooks.json"), hooks.to_string())?;
                DaemonCommand::new("/usr/bin/webhook")
                    .args(["-ip", "127.0.0.1", "-port", &port, "-urlprefix", "webhooks", "-hooks"])
                    .args([folder.join("hooks.json")])
            }
        };
        let command = settings.iter().fold(command, |command, (name, value)| command.env(*name, value.clone()));
        let receiver = Receiver::launch(variant, command, address, admin, gateway, Some(folder)).await?;
        if let Variant::Ours { delivering: false, .. }
        | Variant::NullJournal { delivering: false }
        | Variant::Tracker { paused: true, .. } = variant
        {
            receiver.set_paused(self, receiver.sink, true).await?;
        }
        Ok(receiver)
    }

    /// Starts mq-bridge between a port and a queue.
    pub(crate) async fn start_bridge(
        &self,
        python: &Path,
        address: SocketAddr,
        broker: &str,
        queue: &str,
        verifies: bool,
    ) -> Result<Receiver> {
        let key = verifies.then(|| self.hmac_key.clone());
        let command = DaemonCommand::new(python)
            .args(["mq_bridge_http.py", &address.to_string(), broker, queue])
            .args(key)
            .directory(binaries::repository().join("tests/load/peers"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Receiver::launch(Variant::FastApi, command, address, None, None, None).await
    }

    fn path(&self, name: &str) -> String {
        self.scratch.file(name).display().to_string()
    }
}

fn bare(address: SocketAddr) -> Result<DaemonCommand> {
    Ok(DaemonCommand::new(std::env::current_exe()?).args(["bare".to_owned(), address.to_string()]))
}

/// A receiver that runs.
pub(crate) struct Receiver {
    process: DaemonProcess,
    pub(crate) address: SocketAddr,
    admin: Option<SocketAddr>,
    sink: &'static str,
    folder: Option<PathBuf>,
    /// From its start until it answered.
    pub(crate) ready: Duration,
    _gateway: Option<Box<Receiver>>,
}

impl Receiver {
    async fn launch(
        variant: Variant,
        command: DaemonCommand,
        address: SocketAddr,
        admin: Option<SocketAddr>,
        gateway: Option<Receiver>,
        folder: Option<PathBuf>,
    ) -> Result<Self> {
        let begin = Instant::now();
        let mut process = command.spawn()?;
        match admin {
            Some(admin) => {
                process.wait_ready(admin, START).await?;
            }
            None => {
                while tokio::net::TcpStream::connect(address).await.is_err() {
                    if let Some(exit) = process.try_exit()? {
                        bail!("{}: {exit}: {}", variant.name(), process.stderr());
                    }
                    ensure!(begin.elapsed() < START, "{} does not listen", variant.name());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        let ready = begin.elapsed();
        let sink = variant.sink();
        Ok(Self { process, address, admin, sink, folder, ready, _gateway: gateway.map(Box::new) })
    }

    async fn set_paused(&self, stage: &Stage, sink: &str, paused: bool) -> Result<()> {
        let admin = self.admin.context("no admin listener")?;
        let bearer = format!("Bearer {}", std::fs::read_to_string(stage.path("token"))?.trim());
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let path = format!("/api/v1/sinks/{sink}/{}", if paused { "pause" } else { "resume" });
        let answer = raw::request(admin, "POST", &path, &headers, b"{}", QUESTION).await?;
        ensure!(answer.status == 200, "{path} is answered {}: {}", answer.status, answer.text());
        Ok(())
    }

    /// Lets deliveries go on.
    pub(crate) async fn resume(&self, stage: &Stage) -> Result<()> {
        self.set_paused(stage, self.sink, false).await
    }

    /// Lets those to one sink go on.
    pub(crate) async fn resume_sink(&self, stage: &Stage, sink: &str) -> Result<()> {
        self.set_paused(stage, sink, false).await
    }

    pub(crate) fn has_metrics(&self) -> bool {
        self.admin.is_some()
    }

    /// Waits until so many keys show in the metrics; they are read from the journal now and then.
    pub(crate) async fn observed(&self, keys: f64) -> Result<()> {
        self.counted("journal_dedupe_keys", &[], keys).await
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.pid())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::fetch(self.admin.context("has no metrics")?, QUESTION).await?)
    }

    /// Waits until so much is delivered.
    pub(crate) async fn drained(&self, accepted: f64) -> Result<()> {
        // Attempts are counted as they end; the gauges are read from the journal now and then.
        self.counted("delivery_attempts_total", &[("outcome", "delivered")], accepted).await
    }

    /// Waits until a metric has come so far.
    pub(crate) async fn counted(&self, name: &str, labels: &[(&str, &str)], wanted: f64) -> Result<()> {
        let begin = Instant::now();
        while self.metrics().await?.sum(name, labels) < wanted {
            ensure!(begin.elapsed() < Duration::from_secs(600), "{name} {labels:?} does not come to {wanted}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Kills it and removes its store.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.process.kill9().await?;
        if let Some(folder) = &self.folder {
            std::fs::remove_dir_all(folder)?;
        }
        Ok(())
    }

    /// Kills it and leaves its store.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.process.kill9().await?;
        Ok(())
    }
}
