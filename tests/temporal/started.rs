//! Workflows that the bridge has started itself, from the event to their end; and Lago's webhook all the way round.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kit_workbench::temporal::TemporalOptions;
use outrigger_tests::rig::{Mode, Rig};
use outrigger_tests::temporal::{Bench, Release};
use serde_json::{Value, json};

use crate::observer::{SOON, with_callbacks, workflows};

/// Starts a workflow of the type that the event names, with its input and its retry policy.
const RULES: &str = "[ \
    { name = \"start\", types = [\"test.start\"], workflow_id = \"{subject}\", workflow_type = \"{data.type}\", task_queue = \"work\", \
    transform = \".data.input\", retry = { max_attempts = 5, initial_seconds = 0.2 } } \
    ]";
/// Nothing is found by looking at what has closed; tracked runs are looked at every second, at first.
const TRACKED: [(&str, &str); 5] = [
    ("SIDECAR_RULE", RULES),
    ("SIDECAR_OBSERVER__BACKLOG__SECONDS", "0"),
    ("SIDECAR_OBSERVER__IDLE_SECONDS", "600"),
    ("SIDECAR_OBSERVER__BUSY_SECONDS", "600"),
    ("SIDECAR_OBSERVER__TRACKED_SECONDS", "1"),
];

async fn start(bench: &Bench, workflow: &str, kind: &str, input: Value) {
    let data = json!({ "type": kind, "input": input });
    let answer = bench.rig.announce(workflow, "test.start", workflow, &data).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Waits until so many runs are looked after.
async fn tracked(bench: &Bench, runs: f64) {
    let begin = Instant::now();
    while bench.rig.metrics().await.unwrap().sum("observer_tracked_runs", &[]) < runs {
        assert!(begin.elapsed() < SOON, "{runs} are not looked after");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn what_the_bridge_has_started_is_looked_after(release: Release) {
    let mut bench = Bench::observing(release, TemporalOptions::default(), &TRACKED).await.unwrap();
    bench.work("default").await.unwrap();

    start(&bench, "once", "Complete", json!(1)).await;
    start(&bench, "retried", "FailUntil", json!(3)).await;
    start(&bench, "waiting", "Wait", Value::Null).await;

    // A chain is looked after to its end.
    let told = bench.wait_told(2, SOON).await.unwrap();
    assert_eq!(workflows(&told), BTreeSet::from(["once".to_owned(), "retried".to_owned()]));
    let retried = told.iter().find(|told| told.workflow() == "retried").unwrap();
    assert_eq!(retried.data["result"], json!({ "attempt": 3 }));
    // One that goes on is remembered.
    bench.rig.kill().await.unwrap();
    bench.rig.set("SIDECAR_OBSERVER__WIDE_OVERLAP_SECONDS", "5");
    bench.rig.start().await.unwrap();
    bench.observed().await.unwrap();
    tracked(&bench, 1.0).await;
    bench.signal("waiting", "finish", json!("done")).await.unwrap();

    let told = bench.wait_told(3, SOON).await.unwrap();
    assert_eq!((told[2].workflow(), &told[2].data["result"]), ("waiting", &json!("done")));
    let begin = Instant::now();
    while bench.rig.metrics().await.unwrap().sum("observer_tracked_runs", &[]) > 0.0 {
        assert!(begin.elapsed() < SOON, "what has ended is looked after no more");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// As after its retention: the server has lost everything.
pub(crate) async fn what_the_server_has_forgotten_is_told_as_unknown(release: Release) {
    let settings: Vec<_> = TRACKED.into_iter().chain([("SIDECAR_OBSERVER__UNKNOWN_AFTER_SECONDS", "2")]).collect();
    let mut bench = Bench::observing(release, TemporalOptions::default(), &settings).await.unwrap();
    start(&bench, "forgotten", "Wait", Value::Null).await;
    tracked(&bench, 1.0).await;
    bench.drained().await.unwrap();

    bench.rig.kill().await.unwrap();
    bench.server.kill().await.unwrap();
    bench.server.start_again().await.unwrap();
    bench.rig.start().await.unwrap();

    let told = bench.wait_told(1, SOON).await.unwrap();
    assert_eq!((told[0].kind.as_str(), told[0].workflow()), ("temporal.workflow.unknown", "forgotten"));
    assert!(told[0].data["run_id"].is_string(), "{told:?}");
    bench.nothing_more(1, 0.0).await.unwrap();
}

/// Started without its volume, say, and then as it should be.
pub(crate) async fn a_server_over_other_data_makes_no_end_unknown(release: Release) {
    let options = TemporalOptions { keeps_data: true, ..TemporalOptions::default() };
    let settings: Vec<_> = TRACKED.into_iter().chain([("SIDECAR_OBSERVER__UNKNOWN_AFTER_SECONDS", "60")]).collect();
    let mut bench = Bench::observing(release, options, &settings).await.unwrap();
    start(&bench, "waiting", "Wait", Value::Null).await;
    tracked(&bench, 1.0).await;
    bench.drained().await.unwrap();

    bench.server.kill().await.unwrap();
    bench.server.keep_data(false);
    bench.server.start_again().await.unwrap();
    let begin = Instant::now();
    while bench.server.requests("DescribeWorkflowExecution").await.unwrap() < 2 {
        assert!(begin.elapsed() < SOON, "the run is not asked for");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.server.kill().await.unwrap();
    bench.server.keep_data(true);
    bench.server.start_again().await.unwrap();
    bench.work("default").await.unwrap();
    bench.signal("waiting", "finish", json!("done")).await.unwrap();

    let told = bench.wait_told(1, 2 * SOON).await.unwrap();
    assert_eq!((told[0].kind.as_str(), &told[0].data["result"]), ("temporal.workflow.completed", &json!("done")));
}

pub(crate) async fn what_the_bridge_starts_calls_back_where_the_server_allows_it(release: Release) {
    let late = [
        ("SIDECAR_OBSERVER__TRACKED_SECONDS", "3600"),
        ("SIDECAR_OBSERVER__CALLBACKS__TOKEN", "the-token-of-callbacks"),
    ];
    let settings: Vec<_> = TRACKED.into_iter().chain(late).collect();
    let mut bench = Bench::new(release, with_callbacks(), &settings).await.unwrap();
    let public = format!("http://{}", bench.rig.public);
    bench.rig.set("SIDECAR_OBSERVER__CALLBACKS__URL", &public);
    bench.rig.start().await.unwrap();
    bench.observed().await.unwrap();
    bench.work("default").await.unwrap();
    start(&bench, "lago:invoice 1", "FailUntil", json!(2)).await;

    let told = bench.wait_told(1, SOON).await.unwrap();
    assert_eq!((told[0].workflow(), &told[0].data["result"]), ("lago:invoice 1", &json!({ "attempt": 2 })));

    // A server that allows no callbacks: the workflow is started all the same.
    let settings: Vec<_> = settings.into_iter().filter(|(name, _)| !name.ends_with("TRACKED_SECONDS")).collect();
    let mut strict = Bench::new(release, TemporalOptions::default(), &settings).await.unwrap();
    strict.rig.set("SIDECAR_OBSERVER__CALLBACKS__URL", &public);
    strict.rig.set("SIDECAR_OBSERVER__TRACKED_SECONDS", "1");
    strict.rig.start().await.unwrap();
    strict.observed().await.unwrap();
    strict.work("default").await.unwrap();
    start(&strict, "uncalled", "Complete", json!(1)).await;
    let told = strict.wait_told(1, SOON).await.unwrap();
    assert_eq!(told[0].workflow(), "uncalled");
}

/// What dunning does: a failed payment begins it, or is signalled to the one that goes on; one that succeeds ends it. Its
/// patience outlasts the first wait of both daemons' retry schedules, which a kill may cost a payment.
const DUNNING: &str = "[ \
    { name = \"dunning\", types = [\"lago.invoice.payment_failure\"], action = \"signal_with_start\", signal = \"payment_failed\", \
    workflow_id = \"dunning:{data.payment_provider_invoice_payment_error.lago_invoice_id}\", workflow_type = \"Dunning\", \
    task_queue = \"work\", transform = \"{patience_seconds: 20}\", signal_transform = \"{id: .id}\", \
    on_conflict = \"ignore\" }, \
    { name = \"paid\", types = [\"lago.invoice.payment_status_updated\"], action = \"signal\", signal = \"payment_succeeded\", \
    workflow_id = \"dunning:{data.invoice.lago_id}\", on_missing = \"retry\" } \
    ]";

/// Lago's webhook about an invoice.
fn webhook(kind: &str, invoice: &str) -> String {
    let payload = json!({
        "lago_id": invoice, "external_customer_id": "acme", "payment_status": "succeeded", "status": "finalized",
        "lago_invoice_id": invoice, "provider_error": "declined",
    });
    let object = if kind == "invoice.payment_failure" { "payment_provider_invoice_payment_error" } else { "invoice" };
    json!({ "webhook_type": kind, "object_type": object, "organization_id": "o", object: payload }).to_string()
}

async fn kill_and_start(rig: &mut Rig) {
    rig.kill().await.unwrap();
    rig.start().await.unwrap();
}

pub(crate) async fn a_failed_payment_is_dunned_and_its_end_is_told_whoever_is_killed(release: Release) {
    let settings = [
        ("SIDECAR_RULE", DUNNING),
        ("SIDECAR_OBSERVER__IDLE_SECONDS", "0.5"),
        ("SIDECAR_OBSERVER__BUSY_SECONDS", "0.5"),
    ];
    let options = TemporalOptions { keeps_data: true, ..TemporalOptions::default() };
    let mut bench = Bench::observing(release, options, &settings).await.unwrap();
    bench.work("default").await.unwrap();
    // Lago → processor → bridge: what its sink signs with is what the bridge takes.
    let bridge = format!("http://{}", bench.rig.public);
    let mut processor = Rig::new(Mode::Hmac, &[("BRAIN_GATEWAY_URL", &bridge)]).await.unwrap();
    let signing = bench.rig.signing_secret().unwrap();
    let file = processor.scratch.write("bridge-secret", signing).unwrap();
    processor.set("SIDECAR_GATEWAY__SIGNING_SECRET_FILE", &file.display().to_string());
    processor.start().await.unwrap();

    let mut expected = BTreeSet::new();
    for number in 0..12 {
        let invoice = format!("00000000-0000-4000-8000-{number:012}");
        for attempt in 0..2 {
            let body = webhook("invoice.payment_failure", &invoice);
            // Lago sends some of them twice.
            for _ in 0..=attempt {
                let key = format!("failure-{number}-{attempt}");
                assert_eq!(processor.post(&key, &body).await.unwrap().status, 200);
            }
        }
        match number % 4 {
            0 => kill_and_start(&mut processor).await,
            1 => kill_and_start(&mut bench.rig).await,
            _ => {}
        }
        let is_paid = number % 2 == 0;
        if is_paid {
            let body = webhook("invoice.payment_status_updated", &invoice);
            assert_eq!(processor.post(&format!("paid-{number}"), &body).await.unwrap().status, 200);
        }
        expected.insert((format!("dunning:{invoice}"), is_paid));
    }

    let told = bench.wait_told(12, 2 * SOON).await.unwrap();
    let ended: BTreeSet<(String, bool)> =
        told.iter().map(|told| (told.workflow().to_owned(), told.data["result"]["outcome"] == "paid")).collect();
    assert_eq!(ended, expected);
    for end in &told {
        assert_eq!(end.kind, "temporal.workflow.completed");
        assert!(end.data["result"]["failures"].as_i64() <= Some(2), "{end:?}");
    }
    bench.nothing_more(12, 3.0).await.unwrap();
}
