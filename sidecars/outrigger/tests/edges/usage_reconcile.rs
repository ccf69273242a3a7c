//! `usage reconcile`: against the tracker, and for pages, states and failures that are hard to bring about there, against
//! a stand-in for its ledger, written from the API's description.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use kit_lago::stand_in::billing::Faults;

use crate::bench::{Ran, outrigger};
use crate::tracker::strict;

/// Rows in one answer, whatever is asked for.
const PAGE: usize = 2;
const BEFORE: &str = "2026-11-21T04:00:00.000Z";
const NOW: &str = "2026-11-21T05:00:00.250Z";

/// What the stand-in answers.
#[derive(Debug, Default)]
struct Ledger {
    rows: Vec<Value>,
    compared_at: Option<&'static str>,
    failed: Option<&'static str>,
    /// Looks until a comparison that was asked for has ended; `None` without one, and for ever for one that fails.
    looks_left: Option<u32>,
}

type Shared = Arc<Mutex<Ledger>>;

#[derive(Deserialize)]
struct Asked {
    subscription: Option<String>,
    code: Option<String>,
    after: Option<usize>,
}

async fn show(State(ledger): State<Shared>, Query(asked): Query<Asked>) -> Json<Value> {
    let mut ledger = ledger.lock().unwrap();
    match &mut ledger.looks_left {
        Some(0) => (ledger.compared_at, ledger.looks_left) = (Some(NOW), None),
        Some(left) => *left -= 1,
        None => {}
    }
    let is =
        |row: &Value, name: &str, wanted: &Option<String>| wanted.as_ref().is_none_or(|wanted| row[name] == **wanted);
    let all =
        ledger.rows.iter().filter(|row| is(row, "subscription", &asked.subscription) && is(row, "code", &asked.code));
    let rest: Vec<&Value> = all.skip(asked.after.unwrap_or(0)).collect();
    let next = (rest.len() > PAGE).then(|| (asked.after.unwrap_or(0) + PAGE).to_string());
    Json(json!({
        "rows": &rest[..rest.len().min(PAGE)], "next": next,
        "compared_at": ledger.compared_at, "failed": ledger.failed,
    }))
}

async fn compare(State(ledger): State<Shared>) -> (StatusCode, Json<Value>) {
    let mut ledger = ledger.lock().unwrap();
    if ledger.failed.is_none() {
        ledger.looks_left = Some(3);
    }
    (StatusCode::ACCEPTED, Json(json!({"started": true, "at": NOW})))
}

fn row(subscription: &str, code: &str, state: &str, missing: u64) -> Value {
    json!({
        "subscription": subscription, "code": code, "from": "2026-11-01T00:00:00.000Z", "to": null,
        "events": 12, "units": "34.5",
        "lago": {"events": 12 - missing, "units": "30", "at": BEFORE},
        "missing_events": missing, "surplus_events": 0, "state": state,
    })
}

/// Whatever is missing of the subscription is accepted.
async fn accept(State(ledger): State<Shared>, Json(asked): Json<Value>) -> (StatusCode, Json<Value>) {
    let mut accepted = Vec::new();
    for row in &mut ledger.lock().unwrap().rows {
        let is_meant = row["subscription"] == asked["subscription"] && asked["reason"] == "billed by hand";
        if is_meant && row["state"] == "missing" {
            row["state"] = json!("accepted");
            accepted.push(row.clone());
        }
    }
    let status = if accepted.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    let error = "nothing is missing of a period of it that has ended, by the last comparison";
    (status, Json(if accepted.is_empty() { json!({"error": error}) } else { json!({"rows": accepted}) }))
}

async fn start(ledger: Ledger) -> (String, Shared) {
    let ledger = Arc::new(Mutex::new(ledger));
    let router = Router::new()
        .route("/api/v1/sinks", get(async || axum::Json(serde_json::json!([{ "name": "lago" }]))))
        .route("/api/v1/usage/ledger", get(show))
        .route("/api/v1/usage/reconcile", post(compare))
        .route("/api/v1/usage/accept", post(accept))
        .with_state(Arc::clone(&ledger));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, ledger)
}

async fn reconcile(url: &str, arguments: &[&str]) -> Ran {
    let all: Vec<&str> = ["usage", "reconcile", "--admin", url].into_iter().chain(arguments.iter().copied()).collect();
    outrigger(&all, &[("OUTRIGGER_TOKEN", "x")]).await
}

#[tokio::test]
async fn what_lago_misses_is_shown_and_ends_with_1() {
    let rows = vec![
        row("a", "gb", "equal", 0),
        row("a", "calls", "settling", 0),
        row("b", "gb", "missing", 3),
        row("c", "gb", "surplus", 0),
        row("d", "gb", "not_charged", 0),
    ];
    let (url, _) = start(Ledger { rows, compared_at: Some(BEFORE), ..Ledger::default() }).await;

    let ran = reconcile(&url, &["--json"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let report = ran.json();
    let shown: Vec<&Value> = report["rows"].as_array().unwrap().iter().map(|row| &row["subscription"]).collect();
    assert_eq!(shown, ["b", "c", "d"], "over several pages, without what agrees");
    assert_eq!(report["states"], json!({"equal": 1, "settling": 1, "missing": 1, "surplus": 1, "not_charged": 1}));

    let ran = reconcile(&url, &[]).await;
    assert!(ran.out.contains(BEFORE) && ran.out.contains("missing") && ran.out.contains("34.5"), "{ran:?}");
    assert!(ran.out.contains("1 missing") && ran.out.contains("--all shows every row"), "{ran:?}");
    let all = reconcile(&url, &["--all", "--json"]).await.json();
    assert_eq!(all["rows"].as_array().unwrap().len(), 5);

    reconcile(&url, &["--subscription", "a"]).await.ok();
    let calls = reconcile(&url, &["--code", "calls", "--all", "--json"]).await.ok().json();
    assert_eq!(calls["rows"][0]["subscription"], "a");
}

#[tokio::test]
async fn a_comparison_is_waited_for() {
    let ledger = Ledger { rows: vec![row("a", "gb", "equal", 0)], compared_at: Some(BEFORE), ..Ledger::default() };
    let (url, ledger) = start(ledger).await;

    let report = reconcile(&url, &["--now", "--json"]).await.ok().json();

    assert_eq!(report["compared_at"], NOW, "the one before does not count");
    assert!(ledger.lock().unwrap().looks_left.is_none());
}

#[tokio::test]
async fn a_comparison_that_fails_or_never_was_is_told() {
    let (url, _) = start(Ledger::default()).await;
    let ran = reconcile(&url, &[]).await;
    assert!(ran.out.contains("not compared yet") && ran.out.contains("no rows"), "{ran:?}");
    assert_eq!(ran.code, Some(1), "a scheduled job must not take it for a good end: {ran:?}");

    let failed = Some("Lago answered 500");
    let (url, _) = start(Ledger { compared_at: Some(BEFORE), failed, ..Ledger::default() }).await;
    let begin = std::time::Instant::now();
    reconcile(&url, &["--now", "--wait", "1"]).await.failed(1, "Lago answered 500");
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let ran = reconcile(&url, &[]).await;
    assert_eq!(ran.code, Some(1), "a scheduled job has to notice: {ran:?}");
    assert!(ran.out.contains("Lago answered 500"), "{ran:?}");
    reconcile(&url, &["--wait", "1"]).await.failed(2, "--now");
}

#[tokio::test]
async fn the_trackers_ledger_is_compared_with_what_lago_has_counted() {
    let tracker = strict(&[("SIDECAR_RECONCILE__SETTLING_SECONDS", "0.1")]).await;
    for n in 0..3 {
        tracker.report_now("s", &format!("t-{n}"), "gb").await;
    }
    tracker.wait_sink(|sink| sink["delivered"] == 3).await;

    let report = tracker.ask_json(&["reconcile", "--now", "--all"]).await;
    let row = &report["rows"][0];
    assert_eq!((&row["events"], &row["units"], &row["state"]), (&json!(3), &json!("4.5"), &json!("equal")), "{report}");
    assert_eq!(row["lago"]["events"], 3);

    // Lago confirms, and does not count.
    tracker.lago.set_faults(Faults { usage_lag: Duration::from_secs(3_600), ..Faults::default() });
    tracker.report_now("s", "lost", "gb").await;
    tracker.wait_sink(|sink| sink["delivered"] == 4).await;
    let ran = tracker.ask(&["reconcile", "--now", "--subscription", "s", "--json"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(ran.json()["rows"][0]["state"], "missing");
    let said = tracker.ask(&["reconcile"]).await.out;
    assert!(said.contains("1 missing"), "{said}");
}

#[tokio::test]
async fn what_is_accepted_is_no_failure_any_more() {
    let rows = vec![row("a", "gb", "equal", 0), row("b", "gb", "missing", 3)];
    let (url, _) = start(Ledger { rows, compared_at: Some(BEFORE), ..Ledger::default() }).await;
    let accept = async |arguments: &[&str]| {
        let all = [&["usage", "accept", "--admin", url.as_str(), "--reason", "billed by hand"][..], arguments].concat();
        outrigger(&all, &[("OUTRIGGER_TOKEN", "x")]).await
    };
    assert_eq!(reconcile(&url, &[]).await.code, Some(1));

    accept(&["b"]).await.failed(1, "--yes");
    accept(&["a", "--yes"]).await.failed(1, "nothing is missing");
    let said = accept(&["b", "--yes"]).await.ok().out;
    assert!(said.contains("gb: 3 missing events are accepted"), "{said}");

    let said = reconcile(&url, &[]).await.ok().out;
    assert!(said.contains("1 accepted, 1 equal") && !said.contains("missing events"), "{said}");
}
