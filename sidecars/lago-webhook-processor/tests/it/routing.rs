//! One daemon with several gateways and routes between them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kit_workbench::gateway::{Gateway, GatewayOptions, Received};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::*;

pub(crate) struct Routed {
    pub(crate) bench: Bench,
    /// The further gateways; the bench has the one of `[gateway]`.
    pub(crate) gateways: BTreeMap<&'static str, Gateway>,
    folder: TempDir,
}

impl Routed {
    /// A daemon with these further sinks and this end of its configuration file.
    pub(crate) async fn start(sinks: &[&'static str], configuration: &str) -> Self {
        Self::with_file(sinks, configuration, None).await
    }

    /// The same with routes in a file of their own.
    pub(crate) async fn with_file(sinks: &[&'static str], configuration: &str, routes: Option<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let mut gateways = BTreeMap::new();
        let mut text = String::new();
        for name in sinks {
            let options = GatewayOptions { keep_bodies: true, ..GatewayOptions::default() };
            let gateway = Gateway::start(options).await.unwrap();
            text += &format!(
                "[sinks.{name}]\ntype = \"http\"\nurl = \"{}\"\nretry.schedule_seconds = [0.1, 0.1, 0.1]\n\
                 circuit.probe_seconds = 0.1\ncircuit.probe_max_seconds = 0.3\n",
                gateway.url()
            );
            gateways.insert(*name, gateway);
        }
        let routes_file = folder.path().join("routes.toml");
        if let Some(routes) = routes {
            std::fs::write(&routes_file, routes).unwrap();
            text += &format!("[routes]\nfile = \"{}\"\nlook_seconds = 0.05\n", routes_file.display());
        }
        text += configuration;
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let bench =
            Bench::start(&[("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY), ("SIDECAR_CONFIG", file.to_str().unwrap())]).await;
        Self { bench, gateways, folder }
    }

    pub(crate) fn routes_file(&self) -> PathBuf {
        self.folder.path().join("routes.toml")
    }

    /// Changes the routes file in one step, as an editor does.
    pub(crate) fn write_routes(&self, routes: &str) {
        let new = self.folder.path().join("routes.new");
        std::fs::write(&new, routes).unwrap();
        std::fs::rename(new, self.routes_file()).unwrap();
    }

    /// Sends a webhook of this type with these members in its payload; gives the event's id.
    pub(crate) async fn send(&self, webhook_type: &str, payload: Value) -> String {
        let object = webhook_type.split('.').next().unwrap();
        let body = json!({ "webhook_type": webhook_type, "object_type": object, object: payload });
        let answer = self.bench.send(&hmac().delivery(webhook_type, body.to_string()).unwrap()).await;
        assert_eq!(answer.status, 200);
        json(&answer)["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a sink has nothing left to do, and gives its account.
    pub(crate) async fn settled(&self, sink: &str) -> Value {
        let of = |statistics: &Value| {
            statistics["sinks"].as_array().unwrap().iter().find(|s| s["name"] == sink).unwrap().clone()
        };
        of(&self.bench.wait_api("/api/v1/statistics", |s| s["sinks"].is_array() && of(s)["pending"] == 0).await)
    }

    /// Asserts that a sink's account is this one, and closes.
    pub(crate) async fn assert_account(&self, sink: &str, expected: [(&str, u64); 4]) {
        let account = self.settled(sink).await;
        for (name, count) in expected {
            assert_eq!(account[name], count, "{sink} {name}: {account}");
        }
        let sum: u64 = ["delivered", "pending", "parked", "dropped", "filtered"]
            .iter()
            .map(|name| account[*name].as_u64().unwrap())
            .sum();
        assert_eq!(account["accepted"], sum, "{account}");
    }

    /// State and reason of an event's delivery.
    pub(crate) async fn delivery(&self, event: &str, sink: &str) -> (String, String) {
        let (_, shown) = self.bench.api("GET", &format!("/api/v1/events/{event}"), None).await;
        let found = &shown["deliveries"][sink];
        (found["state"].as_str().unwrap().to_owned(), found["reason"].as_str().unwrap_or_default().to_owned())
    }

    /// What a gateway took, by event id.
    pub(crate) fn taken(&self, sink: &str) -> BTreeMap<String, Received> {
        let gateway = if sink == "gateway" { &self.bench.gateway } else { &self.gateways[sink] };
        let taken = gateway.received().into_iter().filter(|received| received.taken);
        taken.map(|received| (received.event_id.clone().unwrap(), received)).collect()
    }

    /// The `data` that a gateway took of an event.
    pub(crate) fn data(&self, sink: &str, event: &str) -> Value {
        let body = self.taken(sink)[event].body.clone().unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["data"].clone()
    }

    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.bench.metrics().await.sum(name, labels)
    }

    /// Waits until a metric has this value.
    pub(crate) async fn until_metric(&self, name: &str, labels: &[(&str, &str)], wanted: f64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self.metric(name, labels).await;
            if (found - wanted).abs() < f64::EPSILON {
                return;
            }
            assert!(Instant::now() < deadline, "{name} {labels:?} is {found}, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends SIGHUP.
    pub(crate) fn hang_up(&self) {
        hang_up(self.bench.daemon.pid());
    }
}

/// Sends SIGHUP to a process.
pub(crate) fn hang_up(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

/// Processes that a process has started.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let of = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let named = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()?;
        (named == parent).then_some(pid)
    };
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter_map(of).collect()
}
