//! Where alerts go: the committed configuration, as `amtool` and a real Alertmanager take it.

use std::sync::Arc;
use std::time::Duration;

use kit_workbench::scratch::{Scratch, free_address};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::files;
use crate::live::Server;
use crate::tools::run;

const CONFIG: &str = "config/alertmanager/alertmanager.yml";
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn amtool_takes_the_configuration_and_every_alert_goes_to_the_gateway() {
    let (ok, said) = run("amtool", &["check-config", CONFIG]);
    assert!(ok, "{said}");
    for rule in files::rules() {
        let labels = [format!("alertname={}", rule.name), format!("severity={}", rule.severity.unwrap())];
        let config = format!("--config.file={CONFIG}");
        let arguments = ["config", "routes", "test", &config, &labels[0], &labels[1], "daemon=lago-usage-tracker"];
        let (ok, said) = run("amtool", &arguments);
        assert!(ok && said.lines().next() == Some("gateway"), "{labels:?} go to {said}");
    }
}

/// What holds back others is told itself.
#[test]
fn what_holds_others_back_is_an_alert_that_there_is() {
    let config = files::yaml(CONFIG);
    let names: Vec<String> = files::rules().into_iter().map(|rule| rule.name).collect();
    let mut found = 0;
    for rule in config["inhibit_rules"].as_array().unwrap() {
        for matcher in ["source_matchers", "target_matchers"].iter().flat_map(|key| rule[key].as_array().unwrap()) {
            let name = matcher.as_str().unwrap().strip_prefix("alertname = ").unwrap();
            assert!(names.iter().any(|known| known == name), "there is no alert {name}");
            found += 1;
        }
    }
    assert!(found >= 8, "only {found} matchers were read");
}

/// A request as the gateway sees it.
#[derive(Debug)]
struct Seen {
    path: String,
    authorization: Option<String>,
    body: Value,
}

/// A gateway that takes everything on one path.
async fn gateway() -> (String, mpsc::UnboundedReceiver<Seen>) {
    let (tell, seen) = mpsc::unbounded_channel();
    let take = move |uri: axum::http::Uri, headers: axum::http::HeaderMap, body: bytes::Bytes| {
        let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let body = serde_json::from_slice(&body).unwrap_or_default();
        drop(tell.send(Seen { path: uri.path().to_owned(), authorization, body }));
        async { "" }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(take)).await });
    (address.to_string(), seen)
}

/// An alert goes the whole way: to the gateway's alert receiver, in the shape and with the token that it takes.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_arrives_at_the_gateway_with_its_token() {
    let scratch = Scratch::new("alerts").unwrap();
    let token = scratch.write("token", "5ec4e7").unwrap();
    let (address, mut seen) = gateway().await;
    // Addresses of containers and their waits are others here.
    let config = files::read(CONFIG)
        .replace("brain-gateway:8000", &address)
        .replace("/run/secrets/gateway-alert-token", &token.display().to_string())
        .replace("group_wait: 10s", "group_wait: 0s")
        .replace("group_wait: 30s", "group_wait: 0s")
        .replace("group_interval: 5m", "group_interval: 1s");
    let config = scratch.write("alertmanager.yml", config).unwrap();
    let own = free_address().unwrap();
    let alertmanager = Server::start(
        "prometheus-alertmanager",
        &scratch,
        own,
        &[
            format!("--config.file={}", config.display()),
            format!("--storage.path={}", scratch.file("alerts").display()),
            "--cluster.listen-address=".to_owned(),
            format!("--web.listen-address={own}"),
        ],
    );
    let client = Arc::new(reqwest::Client::builder().no_proxy().build().unwrap());
    let labels = json!({"alertname": "JournalFails", "severity": "critical", "daemon": "lago-usage-tracker"});
    let alerts = json!([{"labels": labels, "annotations": {"summary": "it fails", "runbook": "docs/runbooks/x.md"}}]);
    let url = format!("http://{}/api/v2/alerts", alertmanager.address);
    let begin = std::time::Instant::now();
    loop {
        let sent = client.post(&url).header("content-type", "application/json").body(alerts.to_string()).send().await;
        if sent.is_ok_and(|answer| answer.status().is_success()) {
            break;
        }
        assert!(begin.elapsed() < DEADLINE, "Alertmanager takes nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let seen = tokio::time::timeout(DEADLINE, seen.recv()).await.expect("nothing arrives").unwrap();

    assert_eq!(seen.path, "/api/brain/metrics/alert");
    assert_eq!(seen.authorization.as_deref(), Some("Bearer 5ec4e7"));
    assert_eq!(seen.body["status"], "firing");
    assert_eq!(seen.body["alerts"][0]["labels"], labels);
    assert_eq!(seen.body["alerts"][0]["annotations"]["summary"], "it fails");
}
