//! One daemon with its neighbours.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kit::secret::Secret;
use kit_lago::sender::{Answer, Delivery, Sender, Signing};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::metrics::Metrics;
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::raw::{self, RawResponse};
use kit_workbench::scratch::Scratch;
use serde_json::Value;

/// Programs in routes take processor time, of which a busy machine has little.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
pub(crate) const HMAC_KEY: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub(crate) struct Bench {
    /// Removed with the bench.
    _scratch: Scratch,
    pub(crate) gateway: Gateway,
    pub(crate) daemon: DaemonProcess,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    env: Vec<(String, String)>,
}

pub(crate) fn hmac() -> Signing {
    Signing::Hmac(Secret::from(HMAC_KEY.to_owned()))
}

impl Bench {
    /// A daemon with these variables beside the usual ones, ready to take webhooks.
    pub(crate) async fn start(env: &[(&str, &str)]) -> Self {
        let mut bench = Self::spawn(env).await;
        bench.daemon.wait_ready(bench.admin, DEADLINE).await.unwrap();
        bench
    }

    pub(crate) async fn hmac() -> Self {
        Self::start(&[("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY)]).await
    }

    /// As [`Bench::start`], without waiting for readiness.
    pub(crate) async fn spawn(env: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new("processor").unwrap();
        let gateway = Gateway::start(GatewayOptions { keep_bodies: true, ..GatewayOptions::default() }).await.unwrap();
        let token = scratch.write("token", TOKEN).unwrap();
        let mut all: Vec<(String, String)> = vec![
            ("BRAIN_GATEWAY_URL".to_owned(), gateway.url()),
            ("SIDECAR_JOURNAL__PATH".to_owned(), scratch.file("j.db").display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC".to_owned(), "127.0.0.1:0".to_owned()),
            ("SIDECAR_LISTEN__ADMIN".to_owned(), "127.0.0.1:0".to_owned()),
            ("SIDECAR_ADMIN__TOKEN_FILE".to_owned(), token.display().to_string()),
            ("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS".to_owned(), "0.1,0.1,0.1".to_owned()),
            ("SIDECAR_GATEWAY__CIRCUIT__PROBE_SECONDS".to_owned(), "0.1".to_owned()),
            ("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS".to_owned(), "0.5".to_owned()),
            ("LOG_LEVEL".to_owned(), "debug".to_owned()),
        ];
        for (name, value) in env {
            all.retain(|(known, _)| known != name);
            all.push(((*name).to_owned(), value.replace("{scratch}", &scratch.path().display().to_string())));
        }
        let (daemon, public, admin) = run(&all).await;
        Self { _scratch: scratch, gateway, daemon, public, admin, env: all }
    }

    /// Kills the daemon and starts it again on the same journal, with these variables changed.
    pub(crate) async fn restart(&mut self, changes: &[(&str, &str)]) {
        self.daemon.kill9().await.unwrap();
        for (name, value) in changes {
            self.env.retain(|(known, _)| known != name);
            self.env.push(((*name).to_owned(), (*value).to_owned()));
        }
        (self.daemon, self.public, self.admin) = run(&self.env).await;
    }

    pub(crate) fn sender(&self, path: &str) -> Sender {
        Sender::new(&format!("http://{}{path}", self.public)).unwrap()
    }

    /// Sends one webhook to the unnamed path.
    pub(crate) async fn send(&self, delivery: &Delivery) -> Answer {
        self.sender("/webhooks/lago").send_once(delivery).await.unwrap()
    }

    /// Sends a signed body of its own.
    pub(crate) async fn send_body(&self, body: &str) -> Answer {
        self.send(&hmac().delivery("fee.created", body).unwrap()).await
    }

    pub(crate) async fn api(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let response = self.api_raw(method, path, body, Some(TOKEN)).await;
        let value = response.json().unwrap_or(Value::Null);
        (response.status, value)
    }

    pub(crate) async fn api_raw(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        token: Option<&str>,
    ) -> RawResponse {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n{authorization}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        raw::exchange(self.admin, request.as_bytes(), DEADLINE).await.unwrap()
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::fetch(self.admin, DEADLINE).await.unwrap()
    }

    /// Asks the API until the answer is as wanted.
    pub(crate) async fn wait_api(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (_, value) = self.api("GET", path, None).await;
            if wanted(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{path} never became as wanted: {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn readyz(&self) -> (u16, Value) {
        let response = raw::get(self.admin, "/readyz", DEADLINE).await.unwrap();
        let value = response.json().unwrap();
        (response.status, value)
    }
}

async fn run(env: &[(String, String)]) -> (DaemonProcess, SocketAddr, SocketAddr) {
    let command = DaemonCommand::new(env!("CARGO_BIN_EXE_lago-webhook-processor")).envs(env.iter().cloned());
    let mut daemon = command.spawn().unwrap();
    let public = daemon.address("public", DEADLINE).await.unwrap();
    let admin = daemon.address("admin", DEADLINE).await.unwrap();
    (daemon, public, admin)
}

/// The answer's body as JSON.
pub(crate) fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}
