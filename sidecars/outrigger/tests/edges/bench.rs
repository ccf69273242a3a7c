//! A daemon between a stand-in gateway and the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kit_workbench::gateway::{Behaviour, Gateway, GatewayOptions};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::Scratch;
use serde_json::Value;
use tokio::process::Command;

/// Far above what anything here takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_outrigger");
pub(crate) const HMAC_KEY: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// How a command ended and what it printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// It must have ended with 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It must have ended with this code and one line that names the trouble.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, naming: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(naming), "{naming:?} is not in {self:?}");
        if code == 1 {
            assert_eq!(self.err.trim_end().lines().count(), 1, "{self:?}");
        }
        assert!(!self.err.contains("panicked"), "{self:?}");
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Standard output as lines of JSON.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A command that depends on nothing of this machine's environment.
pub(crate) fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().envs(environment.iter().copied());
    if let Some(folder) = std::env::var_os("TMPDIR") {
        command.env("TMPDIR", folder);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs the binary to its end.
pub(crate) async fn outrigger(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let running = command(arguments, environment).output();
    let output = tokio::time::timeout(DEADLINE, running).await.expect("it ends in time").unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) struct Bench {
    pub(crate) scratch: Scratch,
    pub(crate) gateway: Gateway,
    pub(crate) daemon: DaemonProcess,
    public: SocketAddr,
    admin: SocketAddr,
    token_file: PathBuf,
}

impl Bench {
    /// A daemon that is ready, delivering to a gateway that takes everything.
    pub(crate) async fn start() -> Self {
        let scratch = Scratch::new("outrigger-cli").unwrap();
        let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
        let token_file = scratch.write("token", TOKEN).unwrap();
        let environment = [
            ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY.to_owned()),
            ("BRAIN_GATEWAY_URL", gateway.url()),
            ("SIDECAR_JOURNAL__PATH", scratch.file("journal.db").display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC", "127.0.0.1:0".to_owned()),
            ("SIDECAR_LISTEN__ADMIN", "127.0.0.1:0".to_owned()),
            ("SIDECAR_ADMIN__TOKEN_FILE", token_file.display().to_string()),
            ("SIDECAR_GATEWAY__CIRCUIT__PROBE_SECONDS", "0.1".to_owned()),
            ("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS", "0.2".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let mut daemon =
            DaemonCommand::new(BINARY).args(["run-lago-webhook-processor"]).envs(environment).spawn().unwrap();
        let public = daemon.address("public", DEADLINE).await.unwrap();
        let admin = daemon.address("admin", DEADLINE).await.unwrap();
        daemon.wait_ready(admin, DEADLINE).await.unwrap();
        Self { scratch, gateway, daemon, public, admin, token_file }
    }

    /// A daemon with this many dead letters, of a gateway that is well again.
    pub(crate) async fn with_dead_letters(count: u64) -> Self {
        let bench = Self::start().await;
        bench.gateway.set_behaviour(Behaviour::status(400));
        bench.send(&["--count", &count.to_string()]).await.ok();
        bench.wait_sink(|sink| sink["parked"] == count).await;
        bench.gateway.set_behaviour(Behaviour::Ok);
        bench
    }

    /// A verb that talks to the daemon.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Ran {
        outrigger(arguments, &self.environment()).await
    }

    /// As [`Self::ask`], for machines; it must succeed.
    pub(crate) async fn ask_json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        self.ask(&arguments).await.ok().json()
    }

    pub(crate) async fn send(&self, arguments: &[&str]) -> Ran {
        let url = self.url();
        let arguments: Vec<&str> = ["send", "--url", &url].iter().chain(arguments).copied().collect();
        outrigger(&arguments, &[("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY)]).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/webhooks/lago", self.public)
    }

    pub(crate) fn environment(&self) -> [(&'static str, &'static str); 2] {
        // Leaked: a few bytes a test, for signatures that read well.
        let admin = format!("http://{}", self.admin).leak();
        let file = self.token_file.display().to_string().leak();
        [("OUTRIGGER_ADMIN", admin), ("OUTRIGGER_TOKEN_FILE", file)]
    }

    /// Waits until the gateway's sink is as wanted, and returns it.
    pub(crate) async fn wait_sink(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_sink(&self.environment(), "gateway", wanted).await
    }
}

/// Waits until a daemon's sink is as wanted, and returns it.
pub(crate) async fn wait_sink(environment: &[(&str, &str)], name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let sinks = outrigger(&["sinks", "list", "--json"], environment).await.ok().json();
        let sink = sinks.as_array().unwrap().iter().find(|sink| sink["name"] == name);
        if let Some(sink) = sink.filter(|sink| wanted(sink)) {
            return sink.clone();
        }
        assert!(Instant::now() < deadline, "the sink never became as wanted: {sinks}");
    }
}
