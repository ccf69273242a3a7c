//! A real Prometheus that scrapes real daemons under the configuration as it is committed: names of targets, relabelling, rules.
//! Only addresses are others, by a proxy, and the clock of its scrapes is faster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kit_lago::stand_in::billing::{AggregationType, Metric, Profile, Subscription};
use kit_workbench::scratch::{Scratch, free_address};
use outrigger_tests::binaries::repository;
use outrigger_tests::rig::{Mode, Rig, forwarder};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::dashboards::{self, Query};
use crate::files;
use crate::metrics::{Answers, Targets, neighbour, proxy};
use crate::query::asked;

/// How long everything may take to be scraped.
const DEADLINE: Duration = Duration::from_secs(60);
/// Series that Prometheus makes itself, when there is one. Their labels are those of the alert.
const OF_ALERTS: &str = "ALERTS";

/// What holds in this installation: it has a broker and an Authentik configured, and there are none.
const OF_WHO_IS_MISSING: [&str; 3] = ["BrokerUnreachable", "IdentityEventsNotRead", "SinkUnreachable"];

/// A server that ends with its test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _child: Child,
}

impl Server {
    /// Starts a program that listens on the address that its last argument ends with.
    pub(crate) fn start(program: &str, folder: &Scratch, address: SocketAddr, arguments: &[String]) -> Self {
        let log = std::fs::File::create(folder.file(&format!("{program}.log"))).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; Debian: prometheus, prometheus-alertmanager"));
        Self { address, _child: child }
    }
}

/// The committed configuration, with every target behind the proxy.
fn configuration(proxy: SocketAddr) -> (Value, Vec<String>) {
    let mut config = files::yaml("config/prometheus/prometheus.yml");
    config["global"] = json!({"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"});
    config["rule_files"] = json!([repository().join("config/prometheus/rules/*.yml")]);
    let proxy = format!("http://{proxy}");
    config["alerting"]["alertmanagers"][0]["proxy_url"] = json!(proxy);
    let mut targets = Vec::new();
    for job in config["scrape_configs"].as_array_mut().unwrap() {
        job["proxy_url"] = json!(proxy);
        let of_job =
            job["static_configs"].as_array().unwrap().iter().flat_map(|one| one["targets"].as_array().unwrap());
        targets.extend(of_job.map(|target| target.as_str().unwrap().to_owned()));
    }
    (config, targets)
}

/// A Prometheus, and whom it scrapes.
struct Site {
    prometheus: Server,
    client: reqwest::Client,
    _alertmanager: Server,
    _daemons: Vec<Rig>,
    scratch: Scratch,
}

impl Site {
    async fn start() -> Self {
        let scratch = Scratch::new("monitoring").unwrap();
        // Nobody is there: what the daemons tell of a broker is told all the same.
        let broker = [("AMQP_URL", "amqp://guest@127.0.0.1:1"), ("SIDECAR_AMQP_SOURCE__QUEUE", "usage")];
        let mut processor = Rig::new(Mode::Hmac, &broker[..1]).await.unwrap();
        processor.start().await.unwrap();
        let mut tracker = Rig::tracker(Profile::V1_39, &broker).await.unwrap();
        let lago = tracker.lago.as_ref().unwrap();
        lago.put_metric(Metric::new("c", AggregationType::Count, None));
        lago.put_subscription(Subscription::active("s", "customer", "plan", "2026-01-01T00:00:00Z".parse().unwrap()));
        tracker.start().await.unwrap();
        let mut forwarder =
            Rig::forwarder(&[("AUTHENTIK_URL", "http://127.0.0.1:1"), ("AUTHENTIK_TOKEN", "nobody")]).await.unwrap();
        forwarder.start().await.unwrap();
        forwarder.post_envelope(b"{}", "forged").await.unwrap();
        assert_eq!(forwarder.post_event(&forwarder::event("k", "1")).await.unwrap().status, 200);
        let settings = [
            ("SIDECAR_OBSERVER__BACKLOG__TASK_QUEUES", "[\"dunning\"]"),
            ("SIDECAR_RULE", r#"[{name="each", types=["lago.*"], workflow_type="Each", task_queue="dunning"}]"#),
        ];
        let mut bridge = Rig::bridge("127.0.0.1:1", &settings).await.unwrap();
        bridge.start().await.unwrap();
        bridge.send_event(&json!({}), true).await.unwrap();
        for n in 0..5 {
            let taken = processor.post(&format!("k-{n}"), r#"{"webhook_type":"invoice.created"}"#).await.unwrap();
            assert_eq!(taken.status, 200);
        }
        processor.post_signed("k", "{}", "forged").await.unwrap();
        let usage = r#"{"event":{"transaction_id":"t","external_subscription_id":"s","code":"c"}}"#;
        assert_eq!(tracker.produce("/api/v1/events", &tracker.producer, usage).await.unwrap().status, 200);

        let (prometheus, alertmanager) = (free_address().unwrap(), free_address().unwrap());
        let at = |name: &str, address| (name.to_owned(), Answers::At(address));
        let listed = |name: &str, target: &str| (target.to_owned(), Answers::Text(neighbour(name)));
        let targets: Targets = Arc::new(Mutex::new(BTreeMap::from([
            at("lago-webhook-processor:9081", processor.admin),
            at("lago-usage-tracker:9082", tracker.admin),
            at("authentik-event-forwarder:9083", forwarder.admin),
            at("temporal-event-bridge:9084", bridge.admin),
            at("localhost:9090", prometheus),
            at("alertmanager:9093", alertmanager),
            listed("lago", "lago-api:3000"),
            listed("authentik", "authentik-server:9300"),
            listed("authentik", "authentik-worker:9300"),
            listed("temporal", "temporal:8000"),
            listed("rabbitmq", "rabbitmq:15692"),
            listed("redis", "redis-exporter:9121"),
            listed("loki", "loki:3100"),
        ])));
        let (config, wanted) = configuration(proxy(Arc::clone(&targets)).await);
        for target in &wanted {
            assert!(
                targets.lock().unwrap().contains_key(target),
                "nobody answers for the target {target}: name it here"
            );
        }
        let config = scratch.write("prometheus.json", config.to_string()).unwrap();
        let quiet =
            scratch.write("alertmanager.yml", "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").unwrap();
        let alertmanager = Server::start(
            "prometheus-alertmanager",
            &scratch,
            alertmanager,
            &[
                format!("--config.file={}", quiet.display()),
                format!("--storage.path={}", scratch.file("alerts").display()),
                "--cluster.listen-address=".to_owned(),
                format!("--web.listen-address={alertmanager}"),
            ],
        );
        let prometheus = Server::start(
            "prometheus",
            &scratch,
            prometheus,
            &[
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", scratch.file("series").display()),
                format!("--web.listen-address={prometheus}"),
            ],
        );
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let site = Self {
            prometheus,
            client,
            _alertmanager: alertmanager,
            _daemons: vec![processor, tracker, forwarder, bridge],
            scratch,
        };
        site.scraped(wanted.len()).await;
        site
    }

    /// Waits until every target has been scraped three times.
    async fn scraped(&self, targets: usize) {
        let begin = Instant::now();
        loop {
            let up = self.query("count_over_time(up[1m]) >= 3 and up == 1").await.unwrap_or_default();
            if up.as_array().is_some_and(|up| up.len() == targets) {
                return;
            }
            let log = std::fs::read_to_string(self.scratch.file("prometheus.log")).unwrap_or_default();
            assert!(begin.elapsed() < DEADLINE, "not every target is up: {up}\n{log}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let url = format!("http://{}{path}?{}", self.prometheus.address, parameters.join("&"));
        let answer = self.client.get(url).send().await.map_err(|error| error.to_string())?;
        let answer: Value = answer.json().await.map_err(|error| error.to_string())?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }

    /// What a query comes to now.
    async fn query(&self, query: &str) -> Result<Value, String> {
        self.get("/api/v1/query", &[("query", query)]).await.map(|data| data["result"].clone())
    }

    /// What is wrong with a query: an error, a selector that finds nothing, a label that nothing has.
    async fn wrong(&self, query: &Query) -> Vec<String> {
        let text = &query.expr;
        let mut wrong = Vec::new();
        if let Err(error) = self.query(text).await {
            wrong.push(error);
        }
        let asked = asked(text);
        if asked.selectors.is_empty() {
            wrong.push("it asks for nothing".to_owned());
        }
        let mut labels: BTreeSet<String> = BTreeSet::new();
        for selector in &asked.selectors {
            if selector.starts_with(OF_ALERTS) {
                labels.extend(
                    ["alertname", "alertstate", "severity", "daemon", "sink", "instance", "job"].map(str::to_owned),
                );
                continue;
            }
            let series = self.get("/api/v1/series", &[("match[]", selector)]).await;
            let series = series.ok().and_then(|found| found.as_array().cloned()).unwrap_or_default();
            if series.is_empty() {
                wrong.push(format!("nothing is exposed that matches {selector}"));
            }
            labels.extend(series.iter().filter_map(Value::as_object).flat_map(|one| one.keys().cloned()));
        }
        for label in asked.labels.iter().chain(&query.labels) {
            if !labels.contains(label) {
                wrong.push(format!("nothing that it asks for has the label {label}"));
            }
        }
        wrong.into_iter().map(|message| format!("{}: {message}\n  {text}", query.from)).collect()
    }
}

/// As a part of a URL.
fn encoded(text: &str) -> String {
    let of =
        |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_finds_what_it_asks_for_in_what_is_really_exposed() {
    let site = Site::start().await;
    let of_rule = |rule: files::Rule| Query { from: rule.name, expr: rule.expr, labels: BTreeSet::new() };
    let queries: Vec<Query> = files::rules().into_iter().map(of_rule).chain(dashboards::queries()).collect();
    assert!(queries.len() > 60, "only {} queries were read", queries.len());

    let mut wrong = Vec::new();
    for query in &queries {
        wrong.extend(site.wrong(query).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Nobody is called for an installation that is well, but for the broker and the Authentik that are not there. What
    // holds for a moment, on a machine that has other things to do, calls nobody either.
    let begin = Instant::now();
    loop {
        let mut begun = BTreeSet::new();
        // How full this machine's disk is, is its own affair.
        for rule in files::rules().into_iter().filter(|rule| !rule.name.starts_with("JournalDisk")) {
            if site.query(&rule.expr).await.unwrap().as_array().is_none_or(|found| !found.is_empty()) {
                begun.insert(rule.name);
            }
        }
        if begun.iter().map(String::as_str).eq(OF_WHO_IS_MISSING) {
            break;
        }
        assert!(begin.elapsed() < DEADLINE, "{begun:?} for good");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // Prometheus has evaluated the rules itself.
    let begin = Instant::now();
    loop {
        let groups = site.get("/api/v1/rules", &[]).await.unwrap();
        let rules: Vec<&Value> =
            groups["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert_eq!(rules.len(), files::rules().len());
        let Some(not_yet) = rules.into_iter().find(|rule| rule["health"] != "ok") else {
            break;
        };
        assert!(begin.elapsed() < DEADLINE, "{not_yet}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // It would tell the Alertmanager that compose starts.
    let told = site.get("/api/v1/alertmanagers", &[]).await.unwrap();
    assert_eq!(told["activeAlertmanagers"], json!([{"url": "http://alertmanager:9093/api/v2/alerts"}]));

    // And what is wrong is found.
    let labels = || BTreeSet::from(["daemon".to_owned()]);
    for (expr, expected) in [
        ("delivery_parkd > 0", "nothing is exposed that matches delivery_parkd"),
        ("delivery_parked{snk=\"gateway\"} > 0", "nothing is exposed that matches delivery_parked{snk"),
        ("redis_memory_high > 0", "nothing is exposed that matches redis_memory_high"),
        ("sum by (sinc) (delivery_parked)", "nothing that it asks for has the label sinc"),
        ("delivery_parked + (", "parse error"),
        ("delivery_pending / on (daemon) delivery_attempts_total", "many-to-many"),
    ] {
        let query = Query { from: "a mistake".to_owned(), expr: expr.to_owned(), labels: labels() };
        let found = site.wrong(&query).await.join("\n");
        assert!(found.contains(expected), "{expr} is found to be {found}");
    }
}
