//! One daemon with its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kit::secret::Secret;
use kit_authentik::emulator::{AuthentikServer, Generation, User};
use kit_authentik::envelope::canonical;
use kit_authentik::event::EventPk;
use kit_authentik::signature::sign;
use kit_journal::{EventId, Journal, JournalSection};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::metrics::Metrics;
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::raw::{self, RawResponse};
use kit_workbench::scratch::Scratch;
use serde_json::Value;

/// Thousands of events, both sides unoptimised, take a while on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const TOKEN: &str = "fedcba9876543210fedcba9876543210";
pub(crate) const PK: &str = "0f0e0d0c0b0a49088706050403020100";

pub(crate) struct Bench {
    /// Removed with the bench.
    _scratch: Scratch,
    pub(crate) gateway: Gateway,
    pub(crate) daemon: DaemonProcess,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    env: Vec<(String, String)>,
}

pub(crate) fn secret() -> Secret {
    Secret::from(SECRET.to_owned())
}

pub(crate) fn ada() -> User {
    User::new(5, "ada")
}

impl Bench {
    /// A daemon that takes webhooks with this proof, ready.
    pub(crate) async fn start(authentication: &str, env: &[(&str, &str)]) -> Self {
        let mut all = vec![("SIDECAR_AUTHENTIK__AUTHENTICATION", authentication), ("AUTHENTIK_WEBHOOK_SECRET", SECRET)];
        all.extend(env);
        let mut bench = Self::spawn(&all).await;
        bench.daemon.wait_ready(bench.admin, DEADLINE).await.unwrap();
        bench
    }

    /// As [`Bench::start`], beside this Authentik.
    pub(crate) async fn beside(authentik: &AuthentikServer, env: &[(&str, &str)]) -> Self {
        let (url, token) = (authentik.url(), authentik.token());
        let mut all = vec![
            ("AUTHENTIK_URL", url.as_str()),
            ("AUTHENTIK_TOKEN", token.as_str()),
            ("SIDECAR_POLL__INTERVAL_SECONDS", "0.2"),
            ("SIDECAR_POLL__OVERLAP_SECONDS", "5"),
        ];
        all.extend(env);
        Self::start("hmac-header", &all).await
    }

    pub(crate) async fn spawn(env: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new("forwarder").unwrap();
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
            ("LOG_LEVEL".to_owned(), "debug".to_owned()),
        ];
        for (name, value) in env {
            all.retain(|(known, _)| known != name);
            all.push(((*name).to_owned(), (*value).to_owned()));
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
        self.daemon.wait_ready(self.admin, DEADLINE).await.unwrap();
    }

    /// As [`Bench::restart`], with this value in the journal in place of what the daemon has recorded.
    pub(crate) async fn restart_with_value(&mut self, name: &str, value: &str) {
        self.daemon.kill9().await.unwrap();
        let path = self.env.iter().find(|(name, _)| name == "SIDECAR_JOURNAL__PATH").unwrap().1.clone();
        let section = JournalSection { path: path.into(), ..JournalSection::default() };
        let clock = std::sync::Arc::new(kit::clock::SystemClock);
        let (journal, task) =
            Journal::open(&section, clock, &mut prometheus_client::registry::Registry::default()).unwrap();
        let values = vec![(name.to_owned(), value.as_bytes().to_vec())];
        journal.append_recording(Vec::new(), values).await.unwrap();
        drop(journal);
        tokio::task::spawn_blocking(move || task.close()).await.unwrap();
        (self.daemon, self.public, self.admin) = run(&self.env).await;
        self.daemon.wait_ready(self.admin, DEADLINE).await.unwrap();
    }

    /// Waits until `/readyz`, which is 200 all the time, says this of Authentik.
    pub(crate) async fn wait_said(&self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (status, ready) = self.readyz().await;
            assert_eq!(status, 200);
            if ready["parts"]["authentik"].as_str().is_some_and(|said| said.contains(text)) {
                return;
            }
            assert!(Instant::now() < deadline, "{text}: {ready}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn webhook_url(&self) -> String {
        format!("http://{}/webhooks/authentik", self.public)
    }

    /// Sends a body with these lines in the head.
    pub(crate) async fn post_to(&self, path: &str, body: &[u8], headers: &str) -> RawResponse {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: forwarder\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        raw::exchange(self.public, &request, DEADLINE).await.unwrap()
    }

    pub(crate) async fn post(&self, body: &[u8], headers: &str) -> RawResponse {
        self.post_to("/webhooks/authentik", body, headers).await
    }

    /// Sends a body with its signature in the head.
    pub(crate) async fn send(&self, body: &str) -> RawResponse {
        self.post(body.as_bytes(), &signature(body)).await
    }

    pub(crate) async fn api(&self, path: &str) -> Value {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        raw::exchange(self.admin, request.as_bytes(), DEADLINE).await.unwrap().json().unwrap_or(Value::Null)
    }

    /// Posts to the admin API.
    pub(crate) async fn act(&self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        raw::exchange(self.admin, request.as_bytes(), DEADLINE).await.unwrap().json().unwrap_or(Value::Null)
    }

    pub(crate) async fn wait_api(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let value = self.api(path).await;
            if wanted(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{path} never became as wanted: {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn accepted(&self) -> u64 {
        self.api("/api/v1/statistics").await["accepted"].as_u64().unwrap()
    }

    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let count = Metrics::fetch(self.admin, DEADLINE).await.unwrap().sum(name, labels) as u64;
        count
    }

    pub(crate) async fn wait_metric(&self, name: &str, labels: &[(&str, &str)], at_least: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.metric(name, labels).await < at_least {
            assert!(Instant::now() < deadline, "{name} {labels:?} never reached {at_least}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn readyz(&self) -> (u16, Value) {
        let response = raw::get(self.admin, "/readyz", DEADLINE).await.unwrap();
        (response.status, response.json().unwrap())
    }

    /// Waits until the gateway has exactly these events, each at least once, and no other.
    pub(crate) async fn wait_delivered(&self, pks: &[EventPk]) {
        let wanted: BTreeSet<String> = pks.iter().map(|pk| id(*pk)).collect();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let got: BTreeSet<String> =
                self.gateway.received().iter().filter_map(|received| received.event_id.clone()).collect();
            if got == wanted {
                return;
            }
            let (missing, invented) = (wanted.difference(&got).count(), got.difference(&wanted).count());
            let log = || self.daemon.stdout().lines().rev().take(5).collect::<Vec<_>>().join("\n");
            assert!(
                Instant::now() < deadline,
                "{missing} of {} missing, {invented} invented; the log ends, backwards: {}",
                wanted.len(),
                log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Types of what the gateway has, with how often.
    pub(crate) fn types(&self) -> BTreeMap<String, usize> {
        let mut types = BTreeMap::new();
        for received in self.gateway.received() {
            *types.entry(received.event_type.clone().unwrap_or_default()).or_default() += 1;
        }
        types
    }
}

/// The id of an event of Authentik's.
pub(crate) fn id(pk: EventPk) -> String {
    EventId::derive("authentik/default", &pk.to_string(), None).to_string()
}

pub(crate) fn signature(body: &str) -> String {
    format!("X-Outrigger-Signature: sha256={}\r\n", sign(&secret(), body.as_bytes()))
}

/// An event, as a mapping makes it.
pub(crate) fn event(pk: &str, action: &str) -> String {
    format!(
        r#"{{"pk": "{pk}", "action": "{action}", "app": "authentik.events.signals", "created": "2026-11-22T13:27:00.123456Z", "client_ip": "203.0.113.7", "user": {{"pk": 5, "email": "ada@example.com", "username": "ada"}}, "context": {{"a": 1.50, "name": "\u00e4"}}, "brand": {{}}}}"#
    )
}

/// An envelope around it, with these members more.
pub(crate) fn envelope(event: &str, more: &str) -> String {
    format!(r#"{{"schema": "outrigger.authentik/1", "event": {event}, "recipient": "outrigger"{more}}}"#)
}

/// The members that sign an event in the body.
pub(crate) fn signed(event: &str, nonce: &str) -> String {
    let text = canonical(nonce, event);
    format!(r#", "nonce": "{nonce}", "signature": "{}""#, sign(&secret(), text.as_bytes()))
}

pub(crate) async fn authentik(generation: Generation) -> AuthentikServer {
    AuthentikServer::start(generation).await.unwrap()
}

async fn run(env: &[(String, String)]) -> (DaemonProcess, SocketAddr, SocketAddr) {
    let command = DaemonCommand::new(env!("CARGO_BIN_EXE_authentik-event-forwarder")).envs(env.iter().cloned());
    let mut daemon = command.spawn().unwrap();
    let public = daemon.address("public", DEADLINE).await.unwrap();
    let admin = daemon.address("admin", DEADLINE).await.unwrap();
    (daemon, public, admin)
}
