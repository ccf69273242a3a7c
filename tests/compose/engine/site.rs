//! An installation as an operator makes it: a copy of `compose/` with an `.env` of its own, and the stand-ins that its
//! sidecars find in place of the neighbours.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit::secret::Secret;
use kit_authentik::emulator::{AuthentikServer, AuthentikState, Generation};
use kit_lago::signature::RsaSigner;
use kit_lago::stand_in::billing::{AggregationType, LagoServer, LagoState, Metric, Profile, Subscription};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::ledger::{Expectations, GATEWAY, Ledger, Report};
use kit_workbench::load::{LoadOptions, Signing, Target};
use kit_workbench::scratch::Scratch;
use outrigger_tests::binaries;
use outrigger_tests::journal_file;

use crate::containers::Sidecar;
use crate::engine::{Engine, HOST, Said, run, try_run};

/// The webhook processor's service.
pub(crate) const PROCESSOR: &str = "lago-webhook-processor";
/// The usage tracker's.
pub(crate) const TRACKER: &str = "lago-usage-tracker";
/// The event forwarder's.
pub(crate) const FORWARDER: &str = "authentik-event-forwarder";
/// The bridge's.
pub(crate) const BRIDGE: &str = "temporal-event-bridge";
/// Every daemon that goes on running.
pub(crate) const ALL: [&str; 4] = [PROCESSOR, TRACKER, FORWARDER, BRIDGE];
/// The port that sidecars find the gateway under, by default, and the other one of `standins.yml`.
const GATEWAY_PORT: u16 = 8000;
const OTHER_GATEWAY_PORT: u16 = 8001;
const LAGO_PORT: u16 = 3000;
const AUTHENTIK_PORT: u16 = 9000;
/// `LAGO_API_URL` of Lago's worker.
const ISSUER: &str = "http://lago-api:3000";
/// Subscriptions that the stand-in for Lago has.
pub(crate) const SUBSCRIPTIONS: u64 = 7;
/// How long everything accepted may take to be delivered.
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);
/// Copied for an installation.
const FILES: [&str; 7] =
    ["sidecars.yml", "core.yml", "sidecars.toml", "up", "make-secrets", "fill-env", ".env.example"];

/// An installation.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) engine: &'static Engine,
    scratch: Scratch,
    project: String,
    /// The stand-in for the gateway, once [`Self::neighbours`] have been started.
    gateway: Option<Gateway>,
    /// The one of the forwarder and the bridge.
    other_gateway: Option<Gateway>,
    lago: Option<Arc<LagoState>>,
    lago_server: Option<LagoServer>,
    authentik: Option<Arc<AuthentikState>>,
    authentik_server: Option<AuthentikServer>,
}

impl Site {
    /// Copies `compose/`, and fills `.env` in. Nothing is started.
    pub(crate) fn new(engine: &'static Engine, settings: &[(&str, &str)]) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let scratch = Scratch::new("site")?;
        let (from, to) = (binaries::repository().join("compose"), scratch.file("compose"));
        std::fs::create_dir_all(to.join("secrets"))?;
        for name in FILES {
            std::fs::copy(from.join(name), to.join(name)).with_context(|| format!("copy compose/{name}"))?;
        }
        std::fs::copy(from.join("secrets/generated"), to.join("secrets/generated"))?;
        let overlay = binaries::repository().join("tests/compose/standins.yml");
        std::fs::copy(overlay, to.join("standins.yml"))?;
        std::fs::copy(to.join(".env.example"), to.join(".env"))?;
        // The catalogue is where `.env.example` has it: beside the folder.
        let (catalogues, ours) = (binaries::repository().join("config/lago"), scratch.file("config/lago"));
        std::fs::create_dir_all(&ours)?;
        std::fs::copy(catalogues.join("catalogue.toml"), ours.join("catalogue.toml")).context("copy the catalogue")?;
        let project = format!("site{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let site = Self {
            engine,
            scratch,
            project,
            gateway: None,
            other_gateway: None,
            lago: None,
            lago_server: None,
            authentik: None,
            authentik_server: None,
        };
        site.set("COMPOSE_PROJECT_NAME", &site.project)?;
        site.set("COMPOSE_FILE", "sidecars.yml:standins.yml")?;
        site.set("COMPOSE_PROFILES", &format!("{PROCESSOR},{TRACKER}"))?;
        // Not a setting of an operator, so not in the example.
        let environment = std::fs::read_to_string(site.file(".env"))?;
        std::fs::write(site.file(".env"), format!("{environment}\nSTANDINS={HOST}\n"))?;
        // `compose/up` waits for health.
        site.set("SIDECAR_HEALTH_INTERVAL", "1s")?;
        settings.iter().try_for_each(|(name, value)| site.set(name, value))?;
        Ok(site)
    }

    /// An installation that is up, with its neighbours.
    pub(crate) async fn started(engine: &'static Engine, settings: &[(&str, &str)]) -> Result<Self> {
        let mut site = Self::new(engine, settings)?;
        site.up().await?;
        site.neighbours().await?;
        site.ready().await?;
        Ok(site)
    }

    /// A file of `compose/`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.scratch.file("compose").join(name)
    }

    /// Sets a variable of `.env`, which must be one that `.env.example` explains.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        let (path, prefix) = (self.file(".env"), format!("{name}="));
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.lines().any(|line| line.starts_with(&prefix)), "{name} is not in compose/.env.example");
        let set =
            |line: &str| if line.starts_with(&prefix) { format!("{prefix}{value}\n") } else { format!("{line}\n") };
        std::fs::write(&path, text.lines().map(set).collect::<String>())?;
        Ok(())
    }

    /// A secret that `compose/up` has made.
    pub(crate) fn secret(&self, name: &str) -> Result<String> {
        std::fs::read_to_string(self.file("secrets").join(name)).with_context(|| format!("read the secret {name}"))
    }

    /// The one command: `compose/up`.
    pub(crate) async fn up(&self) -> Result<String> {
        run(self.engine.command(self.file("up"))).await
    }

    /// The same, whatever comes of it.
    pub(crate) async fn try_up(&self) -> Result<Said> {
        let mut command = self.engine.command(self.file("up"));
        command.env("OUTRIGGER_UP_SECONDS", "20");
        try_run(command).await
    }

    /// Runs `docker-compose` as an operator does in the folder.
    pub(crate) async fn compose(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.engine.command("docker-compose");
        command.args(arguments).current_dir(self.scratch.file("compose"));
        run(command).await
    }

    /// The name of a network or volume.
    pub(crate) fn name(&self, thing: &str) -> String {
        format!("{}_{thing}", self.project)
    }

    /// The container of a service, running or not, as the engine sees it now. Past docker-compose, which takes a second and more
    /// to say which one it is.
    pub(crate) async fn container(&self, service: &str) -> Result<serde_json::Value> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={service}");
        // Without what somebody has started with `run`.
        let lasting = "label=com.docker.compose.oneoff=False";
        let words = ["ps", "--all", "--quiet", "--filter", &project, "--filter", &service, "--filter", lasting];
        let id = self.engine.docker(words).await?;
        self.engine.inspect(id.trim()).await.with_context(|| format!("find the container with {service}"))
    }

    /// A sidecar's container.
    pub(crate) async fn sidecar(&self, service: &'static str) -> Result<Sidecar> {
        Sidecar::find(self, service).await
    }

    /// Starts the gateways, Lago and Authentik, which know the secrets that were made.
    pub(crate) async fn neighbours(&mut self) -> Result<()> {
        let secrets = vec![self.secret("gateway-signing-secret")?];
        let options = |port: u16| GatewayOptions {
            addr: SocketAddr::from((HOST, port)),
            secrets: secrets.clone(),
            ..GatewayOptions::default()
        };
        self.gateway = Some(Gateway::start(options(GATEWAY_PORT)).await?);
        self.other_gateway = Some(Gateway::start(options(OTHER_GATEWAY_PORT)).await?);
        let authentik = AuthentikState::new(Generation::V2026_2);
        let token = self.secret("outrigger-authentik-token")?;
        authentik.configure(|configuration| configuration.rotate_service_token(&token));
        self.authentik = Some(authentik);
        self.start_authentik().await?;
        let state = LagoState::new(Profile::V1_16, Secret::from(self.secret("lago-api-key")?));
        state.put_metric(Metric::new("gb", AggregationType::Sum, Some("gb")));
        let started = "2025-01-01T00:00:00Z".parse()?;
        for n in 0..SUBSCRIPTIONS {
            state.put_subscription(Subscription::active(&format!("s-{n}"), &format!("c-{n}"), "plan", started));
        }
        self.lago = Some(state);
        self.start_lago().await
    }

    /// The gateway.
    pub(crate) fn gateway(&self) -> Result<&Gateway> {
        self.gateway.as_ref().context("the neighbours were not started")
    }

    /// The one of the forwarder and the bridge.
    pub(crate) fn other_gateway(&self) -> Result<&Gateway> {
        self.other_gateway.as_ref().context("the neighbours were not started")
    }

    /// What Authentik knows.
    pub(crate) fn authentik(&self) -> Result<&AuthentikState> {
        self.authentik.as_deref().context("the neighbours were not started")
    }

    /// Starts Authentik with what it had.
    async fn start_authentik(&mut self) -> Result<()> {
        let server = self.authentik_later(Duration::ZERO).await?;
        self.put_authentik(server);
        Ok(())
    }

    /// Authentik with what it had, started after a pause; [`Self::put_authentik`] takes it.
    pub(crate) async fn authentik_later(&self, pause: Duration) -> Result<AuthentikServer> {
        tokio::time::sleep(pause).await;
        let state = self.authentik.clone().context("the neighbours were not started")?;
        Ok(AuthentikServer::start_with(SocketAddr::from((HOST, AUTHENTIK_PORT)), state).await?)
    }

    /// Keeps an Authentik that was started.
    pub(crate) fn put_authentik(&mut self, server: AuthentikServer) {
        self.authentik_server = Some(server);
    }

    /// Stops Authentik.
    pub(crate) async fn stop_authentik(&mut self) {
        if let Some(server) = self.authentik_server.take() {
            server.stop().await;
        }
    }

    /// What Lago knows.
    pub(crate) fn lago(&self) -> Result<&LagoState> {
        self.lago.as_deref().context("the neighbours were not started")
    }

    /// Starts Lago with the books it had.
    pub(crate) async fn start_lago(&mut self) -> Result<()> {
        self.lago_server = Some(self.lago_later(Duration::ZERO).await?);
        Ok(())
    }

    /// Lago with the books it had, started after a pause; [`Self::put_lago`] takes it.
    pub(crate) async fn lago_later(&self, pause: Duration) -> Result<LagoServer> {
        tokio::time::sleep(pause).await;
        let state = self.lago.clone().context("the neighbours were not started")?;
        Ok(LagoServer::start_with(SocketAddr::from((HOST, LAGO_PORT)), state).await?)
    }

    /// Keeps a Lago that was started.
    pub(crate) fn put_lago(&mut self, server: LagoServer) {
        self.lago_server = Some(server);
    }

    /// Stops Lago.
    pub(crate) async fn stop_lago(&mut self) {
        if let Some(server) = self.lago_server.take() {
            server.stop().await;
        }
    }

    /// Waits until all daemons that are on are ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        let environment = std::fs::read_to_string(self.file(".env"))?;
        let on = environment.lines().find_map(|line| line.strip_prefix("COMPOSE_PROFILES="));
        let on: Vec<&str> = on.context("no COMPOSE_PROFILES")?.split(',').collect();
        for service in ALL.into_iter().filter(|service| on.contains(service)) {
            self.sidecar(service).await?.ready().await?;
        }
        Ok(())
    }

    /// Where senders on the host find the webhook processor.
    pub(crate) fn target(&self) -> Target {
        crate::load::target(PROCESSOR)
    }

    /// Signs as Lago does with the key that was made for it.
    pub(crate) fn jwt(&self) -> Result<Signing> {
        let signer = RsaSigner::from_pem(&self.secret("lago-rsa")?)?;
        Ok(Signing::Jwt { signer: Arc::new(signer), issuer: ISSUER.to_owned() })
    }

    /// A load that never gives up and tells the ledger everything.
    pub(crate) fn load(&self) -> LoadOptions {
        LoadOptions {
            record: true,
            attempts: 10_000,
            retry_pause: Duration::from_millis(20),
            timeout: Duration::from_secs(10),
            ..LoadOptions::new(self.target())
        }
    }

    /// Where the processor's journal is on the host.
    pub(crate) fn journal(&self) -> PathBuf {
        self.engine.volume(&self.name(PROCESSOR)).join(format!("{PROCESSOR}.db"))
    }

    /// Waits until the processor has delivered everything, and says what its metrics say then.
    pub(crate) async fn drained(&self) -> Result<kit_workbench::ledger::Counters> {
        let sidecar = self.sidecar(PROCESSOR).await?;
        let begin = Instant::now();
        loop {
            let journal = sidecar.api("/api/v1/statistics").await?;
            let sinks = journal["sinks"].as_array().context("no sinks")?;
            let counters = sidecar.counters("drained").await?;
            let quiet = sinks.iter().all(|sink| sink["pending"] == 0) && counters.pending == 0;
            if quiet && journal["accepted"] == counters.accepted {
                return Ok(counters);
            }
            if begin.elapsed() > DRAIN_DEADLINE {
                bail!("not drained after {DRAIN_DEADLINE:?}: {journal}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Lets everything be delivered, stops the containers, and checks every invariant: against the sender, the gateway,
    /// the metrics, the file in the volume and the log.
    pub(crate) async fn settle(&self, mut ledger: Ledger, evidence: &str) -> Result<Report> {
        ledger.counters(self.drained().await?);
        let secrets = ["gateway-signing-secret", "lago-webhook-processor-admin-token", "lago-rsa"];
        let secrets = secrets.iter().map(|name| Ok((*name, self.secret(name)?))).collect::<Result<Vec<_>>>()?;
        let secrets: Vec<(&str, &[u8])> = secrets.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        let log = self.compose(&["logs", "--no-color"]).await?;
        ledger.scan_output("the containers' log", log.as_bytes(), &secrets);
        self.compose(&["stop"]).await?;
        let contents = journal_file::read(&self.journal()).await?;
        ledger.counters(contents.counters(GATEWAY, "drained")?);
        ledger.stored(contents.event_ids);
        let gateway = self.gateway()?;
        ensure!(gateway.counts().unrecorded == 0, "the gateway has not recorded everything");
        gateway.with_received(|received| ledger.extend_received(received));
        let report = ledger.check(&Expectations { signed: true, ..Expectations::default() });
        if !report.is_clean() {
            let file = std::env::temp_dir().join(format!("outrigger-{evidence}.jsonl"));
            ledger.write_jsonl(&file)?;
            bail!("the ledger is broken, see {}\n{report}", file.display());
        }
        Ok(report)
    }

    /// Takes the installation away, volumes and all.
    pub(crate) async fn remove(mut self) -> Result<()> {
        self.stop_lago().await;
        self.stop_authentik().await;
        for gateway in [self.gateway.take(), self.other_gateway.take()].into_iter().flatten() {
            gateway.stop().await;
        }
        self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "2"]).await?;
        let mine = format!("label=com.docker.compose.project={}", self.project);
        let left = self.engine.docker(["ps", "--all", "--quiet", "--filter", &mine]).await?;
        ensure!(left.is_empty(), "down leaves containers: {left}");
        Ok(())
    }
}

impl Drop for Site {
    /// After a failure: the next installation wants the same ports.
    fn drop(&mut self) {
        let script = format!(
            "docker ps -aq --filter label=com.docker.compose.project={} | xargs -r docker rm --force --volumes",
            self.project
        );
        let mut command = self.engine.command("sh").into_std();
        let _ = command.args(["-c", &script]).stdout(std::process::Stdio::null()).status();
    }
}

/// A file that must not be there.
pub(crate) fn is_absent(path: &Path) -> bool {
    matches!(std::fs::symlink_metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}
