//! Events that scenarios send to a bridge, and what they find of them in Temporal.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kit_workbench::chaos::{ChaosProxy, Direction, Fault};
use kit_workbench::temporal::{TemporalOptions, TemporalServer};
use outrigger_tests::temporal::{Bench, Release};
use serde_json::{Value, json};

/// Generous: what is promised is measured where it is the point.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Short waits, so that tests are none.
pub(crate) const QUICK: [(&str, &str); 3] = [
    ("SIDECAR_CALLS__CIRCUIT__PROBE_SECONDS", "0.1"),
    ("SIDECAR_CALLS__CIRCUIT__PROBE_MAX_SECONDS", "0.3"),
    ("SIDECAR_OBSERVER__ENABLED", "false"),
];

pub(crate) const ONE_AN_EVENT: &str = r#"[{name="each", types=["order.*"], workflow_type="Wait", task_queue="work"}]"#;

pub(crate) const ONE_AN_OBJECT: &str = r#"[{name="dunning", action="signal_with_start", types=["payment.*"], workflow_id="dunning-{data.invoice}",
    workflow_type="Dunning", task_queue="nobody", signal="payment_failed", input="none", reuse="allow_duplicate"}]"#;

pub(crate) fn with<'a>(rules: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    QUICK.iter().copied().chain([("SIDECAR_RULE", rules)]).chain(more.iter().copied()).collect()
}

pub(crate) async fn bench(release: Release, options: TemporalOptions, rules: &str, more: &[(&str, &str)]) -> Bench {
    // A TOML array stands on one line in the environment.
    let rules = rules.replace('\n', " ");
    let mut bench = Bench::new(release, options, &with(&rules, more)).await.unwrap();
    bench.rig.start().await.unwrap();
    bench
}

pub(crate) fn event(id: &str, kind: &str, data: Value) -> Value {
    json!({ "specversion": "1.0", "id": id, "source": "shop", "type": kind, "data": data })
}

/// The workflows there are, each with its runs, once there are so many runs.
pub(crate) async fn workflows(bench: &Bench, namespace: &str, runs: usize) -> BTreeMap<String, Vec<String>> {
    let begin = Instant::now();
    loop {
        let found = bench.runs(namespace).await.unwrap();
        // The index follows what happens.
        if found.len() >= runs || begin.elapsed() > SOON {
            let mut workflows: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (workflow, run) in found {
                workflows.entry(workflow).or_default().push(run);
            }
            return workflows;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a workflow is there.
pub(crate) async fn wait_workflow(bench: &Bench, id: &str) -> Value {
    let begin = Instant::now();
    loop {
        match bench.get("default", &format!("/workflows/{id}")).await {
            Ok(description) => return description,
            Err(error) => assert!(begin.elapsed() < SOON, "{error:#}\n{}", bench.rig.end_of_log(10)),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn signals(bench: &Bench, id: &str) -> usize {
    let history = bench.history("default", id).await.unwrap_or_default();
    history.iter().filter(|event| event["eventType"] == "EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED").count()
}

/// Forgets everything that the bridge knows.
pub(crate) async fn forget(bench: &mut Bench) {
    bench.rig.kill().await.unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", bench.rig.journal_path().display());
        let _ = std::fs::remove_file(file);
    }
    bench.rig.start().await.unwrap();
}

/// A bridge that reaches its server through a proxy, whose answers can be held back.
pub(crate) async fn proxied(release: Release, rules: &str) -> (Bench, ChaosProxy) {
    let options = TemporalOptions { binary: release.binary().unwrap(), ..TemporalOptions::default() };
    let server = TemporalServer::start(options).await.unwrap();
    let address: SocketAddr = server.address().parse().unwrap();
    let proxy = ChaosProxy::start(address).await.unwrap();
    let (rules, through) = (rules.replace('\n', " "), proxy.addr().to_string());
    let mut bench = Bench::over(server, &with(&rules, &[("TEMPORAL_ADDRESS", &through)])).await.unwrap();
    bench.rig.start().await.unwrap();
    (bench, proxy)
}

/// Holds answers back from now on, and lets the bridge send an event whose answer it will never have.
pub(crate) async fn lose_the_answer(bench: &mut Bench, proxy: &ChaosProxy, event: &Value) {
    // Bytes are counted for each connection: nothing more comes down any of them.
    proxy.set(Direction::Down, Fault::Stall(0));
    bench.taken(event).await.unwrap();
}

/// The whole schedule is over in half a second.
pub(crate) const HASTY: (&str, &str) = ("SIDECAR_CALLS__RETRY_SCHEDULE_SECONDS", "0.1,0.1,0.1");
