//! A usage tracker between the command line and a stand-in for Lago.

use std::net::SocketAddr;
use std::path::PathBuf;

use kit::secret::Secret;
use kit_lago::stand_in::billing::{AggregationType, LagoServer, Metric, Profile, Subscription};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::raw;
use kit_workbench::scratch::{Scratch, free_ports};
use serde_json::Value;

use crate::bench::{BINARY, DEADLINE, Ran, TOKEN, command, outrigger, wait_sink};

const PRODUCER: &str = "producer-0123456789";
const API_KEY: &str = "lago-api-key-0123456789";

pub(crate) struct Tracker {
    pub(crate) scratch: Scratch,
    pub(crate) lago: LagoServer,
    daemon: DaemonProcess,
    public: SocketAddr,
    admin: SocketAddr,
    settings: Vec<(String, String)>,
    environment: Vec<(&'static str, String)>,
}

impl Tracker {
    /// A tracker that sends everything on, beside a Lago that takes everything.
    pub(crate) async fn start() -> Self {
        let settings = [("SIDECAR_CHECKS__UNKNOWN_METRIC", "pass"), ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "pass")];
        Self::beside(&settings, |_| {}).await
    }

    /// A tracker that refuses what is of another metric than `gb`.
    pub(crate) async fn rejecting() -> Self {
        let settings = [("SIDECAR_CHECKS__UNKNOWN_METRIC", "reject"), ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "pass")];
        Self::beside(&settings, |lago| lago.put_metric(Metric::new("gb", AggregationType::Sum, Some("gb")))).await
    }

    /// A tracker with these variables beside the usual ones, beside a Lago that was prepared before. Its ports stay the
    /// same when it is started again.
    async fn beside(settings: &[(&str, &str)], prepare: impl FnOnce(&LagoServer)) -> Self {
        let scratch = Scratch::new("outrigger-usage").unwrap();
        let lago = LagoServer::start(Profile::V1_39, Secret::from(API_KEY.to_owned())).await.unwrap();
        prepare(&lago);
        let [public, admin] = free_ports().unwrap().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let file = |name: &str, content: &str| scratch.write(name, content).unwrap().display().to_string();
        let (token, producer) = (file("token", TOKEN), file("producer", PRODUCER));
        let own = [
            ("LAGO_API_URL", lago.url()),
            ("LAGO_API_KEY", API_KEY.to_owned()),
            ("USAGE_PRODUCER_TOKEN_FILE", producer.clone()),
            ("SIDECAR_JOURNAL__PATH", scratch.file("journal.db").display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC", public.to_string()),
            ("SIDECAR_LISTEN__ADMIN", admin.to_string()),
            ("SIDECAR_ADMIN__TOKEN_FILE", token.clone()),
            ("SIDECAR_LAGO__LINGER_SECONDS", "0.02".to_owned()),
            ("SIDECAR_LAGO__RETRY_SCHEDULE_SECONDS", "0.1,0.1,0.1".to_owned()),
        ];
        let given = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let settings: Vec<_> = own.into_iter().chain(given).map(|(name, value)| (name.to_owned(), value)).collect();
        let environment = vec![
            ("OUTRIGGER_ADMIN", format!("http://{admin}")),
            ("OUTRIGGER_TOKEN_FILE", token),
            ("OUTRIGGER_USAGE_URL", format!("http://{public}")),
            ("USAGE_PRODUCER_TOKEN_FILE", producer),
        ];
        let daemon = run(&settings, admin).await;
        Self { scratch, lago, daemon, public, admin, settings, environment }
    }

    /// Starts it again on the same journal, after it was killed.
    pub(crate) async fn restart(&mut self) {
        self.daemon = run(&self.settings, self.admin).await;
    }

    /// Kills it, and waits until somebody has called in vain.
    pub(crate) async fn be_missed(&mut self) {
        self.daemon.kill9().await.unwrap();
        let listener = tokio::net::TcpListener::bind(self.public).await.unwrap();
        tokio::time::timeout(DEADLINE, listener.accept()).await.expect("somebody calls").unwrap();
    }

    /// What the command line has to know.
    pub(crate) fn environment(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// Runs `usage` with these arguments.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Ran {
        outrigger(&with_usage(arguments), &self.environment()).await
    }

    /// As [`Self::ask`], for machines; it must succeed.
    pub(crate) async fn ask_json(&self, arguments: &[&str]) -> Value {
        self.ask(&[arguments, &["--json"]].concat()).await.ok().json()
    }

    /// Starts `usage` with these arguments.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> tokio::process::Child {
        command(&with_usage(arguments), &self.environment()).spawn().unwrap()
    }

    /// As [`Self::ask_json`], of a command outside of `usage`.
    pub(crate) async fn ask_json_of(&self, arguments: &[&str]) -> Value {
        outrigger(&[arguments, &["--json"]].concat(), &self.environment()).await.ok().json()
    }

    /// Reports an event of 2024 as a producer does.
    pub(crate) async fn report(&self, subscription: &str, transaction: &str, code: &str) {
        self.report_at(1_732_000_000, subscription, transaction, code).await;
    }

    /// The same of this moment.
    pub(crate) async fn report_now(&self, subscription: &str, transaction: &str, code: &str) {
        self.report_at(jiff::Timestamp::now().as_second(), subscription, transaction, code).await;
    }

    async fn report_at(&self, seconds: i64, subscription: &str, transaction: &str, code: &str) {
        let event = serde_json::json!({"event": {
            "transaction_id": transaction, "external_subscription_id": subscription, "code": code,
            "timestamp": seconds, "properties": {"gb": "1.50"},
        }});
        let (bearer, body) = (format!("Bearer {PRODUCER}"), event.to_string());
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let answer = raw::request(self.public, "POST", "/api/v1/events", &headers, body.as_bytes(), DEADLINE).await;
        assert_eq!(answer.unwrap().status, 200);
    }

    pub(crate) async fn wait_sink(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_sink(&self.environment(), "lago", wanted).await
    }

    /// A file in the bench's folder.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        self.scratch.write(name, content).unwrap()
    }

    /// What Lago has, as `subscription transaction code timestamp properties`, sorted.
    pub(crate) fn billed(&self) -> Vec<String> {
        let one = |event: &kit_lago::stand_in::billing::LedgerEvent| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let (subscription, timestamp) = (text(&event.external_subscription_id), text(&event.timestamp));
            [&subscription, &event.transaction_id, &event.code, &timestamp, &event.properties]
                .map(String::as_str)
                .join(" ")
        };
        let mut billed: Vec<String> = self.lago.ledger().iter().map(one).collect();
        billed.sort();
        billed
    }
}

/// A tracker beside a Lago that knows the metric `gb` and the subscription `s`, with what does not fit parked.
pub(crate) async fn strict(settings: &[(&str, &str)]) -> Tracker {
    let settings = [&[("SIDECAR_CHECKS__REFRESH_SECONDS", "3600")], settings].concat();
    Tracker::beside(&settings, |lago| {
        lago.put_metric(Metric::new("gb", AggregationType::Sum, Some("gb")));
        let started = "2024-01-01T00:00:00Z".parse().unwrap();
        lago.put_subscription(Subscription::active("s", "customer", "plan", started));
    })
    .await
}

fn with_usage<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    ["usage"].into_iter().chain(arguments.iter().copied()).collect()
}

async fn run(settings: &[(String, String)], admin: SocketAddr) -> DaemonProcess {
    let mut daemon =
        DaemonCommand::new(BINARY).args(["run-lago-usage-tracker"]).envs(settings.iter().cloned()).spawn().unwrap();
    daemon.wait_ready(admin, DEADLINE).await.unwrap();
    daemon
}
