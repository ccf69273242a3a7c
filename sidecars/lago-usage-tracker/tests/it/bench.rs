//! One daemon with its neighbours.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kit::secret::Secret;
use kit_lago::stand_in::billing::{LagoServer, Profile};
use kit_workbench::metrics::Metrics;
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::Scratch;
use serde_json::{Value, json};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const PRODUCER: &str = "producer-0123456789";
pub(crate) const API_KEY: &str = "lago-api-key-0123456789";
const ADMIN: &str = "0123456789abcdef0123456789abcdef";

pub(crate) struct Bench {
    /// Removed with the bench.
    _scratch: Scratch,
    pub(crate) lago: LagoServer,
    pub(crate) daemon: DaemonProcess,
    public: SocketAddr,
    admin: SocketAddr,
    env: Vec<(String, String)>,
    client: reqwest::Client,
}

impl Bench {
    pub(crate) async fn new(profile: Profile) -> Self {
        Self::with(profile, &[]).await
    }

    /// A daemon with these variables beside the usual ones.
    pub(crate) async fn with(profile: Profile, env: &[(&str, &str)]) -> Self {
        Self::beside(profile, env, |_| {}).await
    }

    /// The same beside a Lago that was prepared before.
    pub(crate) async fn beside(profile: Profile, env: &[(&str, &str)], prepare: impl FnOnce(&LagoServer)) -> Self {
        let scratch = Scratch::new("tracker").unwrap();
        let lago = LagoServer::start(profile, Secret::from(API_KEY.to_owned())).await.unwrap();
        prepare(&lago);
        let token = scratch.write("token", ADMIN).unwrap();
        let mut all: Vec<(String, String)> = [
            ("LAGO_API_URL", lago.url()),
            ("LAGO_API_KEY", API_KEY.to_owned()),
            ("USAGE_PRODUCER_TOKEN", PRODUCER.to_owned()),
            ("SIDECAR_JOURNAL__PATH", scratch.file("j.db").display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC", "127.0.0.1:0".to_owned()),
            ("SIDECAR_LISTEN__ADMIN", "127.0.0.1:0".to_owned()),
            ("SIDECAR_ADMIN__TOKEN_FILE", token.display().to_string()),
            ("SIDECAR_LAGO__LINGER_SECONDS", "0.02".to_owned()),
            ("SIDECAR_LAGO__TIMEOUT__TOTAL_SECONDS", "1".to_owned()),
            ("SIDECAR_LAGO__RETRY_SCHEDULE_SECONDS", "0.1,0.1,0.1".to_owned()),
            ("SIDECAR_LAGO__CIRCUIT__PROBE_SECONDS", "0.1".to_owned()),
            ("SIDECAR_LAGO__CIRCUIT__PROBE_MAX_SECONDS", "0.3".to_owned()),
            ("SIDECAR_CHECKS__UNKNOWN_METRIC", "pass".to_owned()),
            ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "pass".to_owned()),
            ("LOG_LEVEL", "debug".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for (name, value) in env {
            all.retain(|(known, _)| known != name);
            all.push(((*name).to_owned(), value.replace("{scratch}", &scratch.path().display().to_string())));
        }
        let (daemon, public, admin) = run(&all).await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { _scratch: scratch, lago, daemon, public, admin, env: all, client }
    }

    /// Kills the daemon and starts it again on the same journal.
    pub(crate) async fn restart(&mut self) {
        self.daemon.kill9().await.unwrap();
        (self.daemon, self.public, self.admin) = run(&self.env).await;
    }

    /// Another daemon with the same settings, over the same journal.
    pub(crate) async fn replica(&self) -> Replica {
        run(&self.env).await
    }

    /// Kills the daemon, and is that replica's bench from now on.
    pub(crate) async fn go_on_with(&mut self, replica: Replica) {
        self.daemon.kill9().await.unwrap();
        (self.daemon, self.public, self.admin) = replica;
    }

    /// Where other daemons reach it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.public)
    }

    /// For the next start.
    pub(crate) fn unset(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.request(reqwest::Method::POST, path, Some(PRODUCER), body.to_string()).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.request(reqwest::Method::GET, path, Some(PRODUCER), String::new()).await
    }

    pub(crate) async fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        token: Option<&str>,
        body: String,
    ) -> (u16, Value) {
        let mut request = self.client.request(method, format!("http://{}{path}", self.public)).body(body);
        request = request.header("content-type", "application/json");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
    }

    /// A producer's request with these headers beside its token.
    pub(crate) async fn send(&self, path: &str, headers: &[(&str, &str)], body: String) -> (u16, Value) {
        let mut request = self.client.post(format!("http://{}{path}", self.public)).bearer_auth(PRODUCER).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
    }

    pub(crate) async fn api(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.admin);
        let response = self.client.get(url).bearer_auth(ADMIN).send().await.unwrap();
        serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null)
    }

    /// An operator's request without a body.
    pub(crate) async fn act(&self, path: &str) -> Value {
        self.act_with(path, &Value::Null).await
    }

    /// An operator's request.
    pub(crate) async fn act_with(&self, path: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.admin);
        let request = self.client.post(url).bearer_auth(ADMIN);
        let request = if body.is_null() { request } else { request.json(body) };
        let response = request.send().await.unwrap();
        serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null)
    }

    /// Waits for something about the sinks, which are given by name.
    pub(crate) async fn until_sinks(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let statistics = self.api("/api/v1/statistics").await;
            let sinks = statistics["sinks"].as_array().into_iter().flatten();
            let named = sinks.map(|sink| (sink["name"].as_str().unwrap_or_default().to_owned(), sink.clone()));
            let named: Value = named.collect::<serde_json::Map<_, _>>().into();
            if wanted(&named) {
                return named;
            }
            assert!(Instant::now() < deadline, "{what} did not happen: {statistics}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends events in batches of a hundred.
    pub(crate) async fn report(&self, events: &[Value]) {
        for batch in events.chunks(100) {
            let (status, answer) = self.post("/api/v1/events/batch", &json!({ "events": batch })).await;
            assert_eq!(status, 200, "{answer}");
        }
    }

    /// Waits until nothing is left to deliver, and gives the row of the sink.
    pub(crate) async fn settled(&self) -> Value {
        self.wait("settling everything", |row| row["pending"] == 0).await
    }

    pub(crate) async fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(what, DEADLINE, wanted).await
    }

    pub(crate) async fn wait_for(&self, what: &str, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let statistics = self.api("/api/v1/statistics").await;
            let row = &statistics["sinks"][0];
            if wanted(row) {
                return row.clone();
            }
            assert!(Instant::now() < deadline, "{what} did not happen: {statistics}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.client.get(format!("http://{}/readyz", self.admin)).send().await.unwrap().status().is_success()
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::fetch(self.admin, DEADLINE).await.unwrap()
    }

    /// What Lago has, as `subscription/transaction code timestamp properties`, sorted.
    pub(crate) fn billed(&self) -> Vec<String> {
        let mut billed: Vec<String> = self
            .lago
            .ledger()
            .iter()
            .map(|event| {
                let id =
                    format!("{}/{}", event.external_subscription_id.as_deref().unwrap_or("-"), event.transaction_id);
                let timestamp = event.timestamp.as_deref().unwrap_or("-");
                format!("{id} {} {timestamp} {}", event.code, event.properties)
            })
            .collect();
        billed.sort();
        billed
    }
}

/// Waits until the daemon has said this in its log.
pub(crate) async fn knows(bench: &Bench, what: &str) {
    let deadline = Instant::now() + DEADLINE;
    // It is remembered before it is used.
    while !bench.daemon.stdout().contains(what) {
        assert!(Instant::now() < deadline, "never said: {what}; {}", bench.daemon.stdout());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An event of the metric `api_calls`.
pub(crate) fn usage(subscription: &str, transaction: &str, calls: &str) -> Value {
    let event = format!(
        r#"{{"transaction_id":"{transaction}","external_subscription_id":"{subscription}","code":"api_calls",
            "timestamp":1732000000,"properties":{{"calls":{calls}}}}}"#
    );
    serde_json::from_str(&event).unwrap()
}

/// A daemon and its two listeners.
type Replica = (DaemonProcess, SocketAddr, SocketAddr);

async fn run(env: &[(String, String)]) -> Replica {
    let command = DaemonCommand::new(env!("CARGO_BIN_EXE_lago-usage-tracker")).envs(env.iter().cloned());
    let mut daemon = command.spawn().unwrap();
    let public = daemon.address("public", DEADLINE).await.unwrap();
    let admin = daemon.address("admin", DEADLINE).await.unwrap();
    daemon.wait_ready(admin, DEADLINE).await.unwrap();
    (daemon, public, admin)
}
