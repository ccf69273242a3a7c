//! Events signal and end workflows, each once, whatever becomes of the answers.

use std::time::{Duration, Instant};

use kit_workbench::temporal::TemporalOptions;
use outrigger_tests::temporal::{Release, scaled};
use serde_json::{Value, json};

use crate::events::{ONE_AN_OBJECT, SOON, bench, event, lose_the_answer, proxied, signals, wait_workflow, workflows};

pub(crate) async fn signals_that_start_come_once_each_in_any_order(release: Release) {
    let bench = bench(release, TemporalOptions::default(), ONE_AN_OBJECT, &[("SIDECAR_CALLS__ORDER", "none")]).await;
    let (objects, each) = (8, scaled(25, 250));
    let mut events: Vec<Value> = (0..objects * each)
        .map(|n| event(&format!("p-{n}"), "payment.failed", json!({ "invoice": format!("i{}", n % objects) })))
        .collect();
    events.extend(events.clone());
    fastrand::shuffle(&mut events);

    for chunk in events.chunks(40) {
        futures_util::future::try_join_all(chunk.iter().map(|event| bench.taken(event))).await.unwrap();
    }

    let total = u64::try_from(objects * each).unwrap();
    bench.wait_at_temporal("delivered", total, 2 * SOON).await.unwrap();
    let found = workflows(&bench, "default", objects).await;
    assert_eq!(found.len(), objects);
    assert!(found.values().all(|runs| runs.len() == 1), "{found:?}");
    for id in found.keys() {
        assert_eq!(signals(&bench, id).await, each, "{id}");
    }
}

pub(crate) async fn an_event_whose_answer_was_lost_starts_nothing_twice(release: Release) {
    let (mut bench, proxy) = proxied(release, ONE_AN_OBJECT).await;
    let failed = |id: &str, invoice: &str| event(id, "payment.failed", json!({ "invoice": invoice }));
    bench.taken(&failed("p-0", "warm")).await.unwrap();
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();

    lose_the_answer(&mut bench, &proxy, &failed("p-1", "a")).await;
    wait_workflow(&bench, "dunning-a").await;
    bench.rig.kill().await.unwrap();
    // What the event has started is over before the bridge asks again: Temporal has forgotten the request with it.
    bench.terminate("dunning-a", "paid meanwhile").await.unwrap();
    proxy.heal();
    bench.rig.start().await.unwrap();
    bench.wait_at_temporal("delivered", 2, SOON).await.unwrap();

    assert_eq!(workflows(&bench, "default", 2).await["dunning-a"].len(), 1);
    // Another event of the same object is another matter.
    bench.taken(&failed("p-2", "a")).await.unwrap();
    bench.wait_at_temporal("delivered", 3, SOON).await.unwrap();
    assert_eq!(workflows(&bench, "default", 3).await["dunning-a"].len(), 2);
    // A restart in between changes nothing about what is known by then.
    bench.rig.kill().await.unwrap();
    bench.rig.start().await.unwrap();
    bench.taken(&failed("p-3", "a")).await.unwrap();
    bench.wait_at_temporal("delivered", 4, SOON).await.unwrap();
    assert_eq!(signals(&bench, "dunning-a").await, 2);
}

pub(crate) async fn a_signal_whose_answer_was_lost_is_no_dead_letter(release: Release) {
    let rules = r#"[{name="begin", types=["payment.failed"], workflow_id="w-{data.invoice}", workflow_type="Dunning", task_queue="nobody"},
        {name="paid", action="signal", types=["payment.succeeded"], workflow_id="w-{data.invoice}", signal="paid"},
        {name="stop", action="terminate", types=["payment.void"], workflow_id="w-{data.invoice}", reason="{type}"}]"#;
    let (mut bench, proxy) = proxied(release, rules).await;
    bench.taken(&event("1", "payment.failed", json!({ "invoice": "a" }))).await.unwrap();
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();
    // More than one answer may have: what is looked for is not found in one look.
    for _ in 0..12 {
        bench.signal("w-a", "big", json!("x".repeat(1_800_000))).await.unwrap();
    }

    lose_the_answer(&mut bench, &proxy, &event("2", "payment.succeeded", json!({ "invoice": "a" }))).await;
    let signalled = async || -> u64 { bench.server.requests("SignalWorkflowExecution").await.unwrap_or_default() };
    let begin = Instant::now();
    while signalled().await < 13 {
        assert!(begin.elapsed() < SOON, "it does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.rig.kill().await.unwrap();
    bench.terminate("w-a", "over").await.unwrap();
    proxy.heal();
    bench.rig.start().await.unwrap();
    bench.wait_at_temporal("delivered", 2, SOON).await.unwrap();
    assert_eq!(bench.at_temporal("parked").await.unwrap(), 0);

    // An end that was not answered does not end the next workflow of that name.
    bench.start("w-b", "Wait", Value::Null, json!({})).await.unwrap();
    lose_the_answer(&mut bench, &proxy, &event("3", "payment.void", json!({ "invoice": "b" }))).await;
    let begin = Instant::now();
    while bench.get("default", "/workflows/w-b").await.unwrap()["workflowExecutionInfo"]["closeTime"].is_null() {
        assert!(begin.elapsed() < SOON, "it does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.rig.kill().await.unwrap();
    bench.start("w-b", "Wait", Value::Null, json!({})).await.unwrap();
    proxy.heal();
    bench.rig.start().await.unwrap();
    bench.wait_at_temporal("delivered", 3, SOON).await.unwrap();
    let next = bench.get("default", "/workflows/w-b").await.unwrap();
    assert_eq!(next["workflowExecutionInfo"]["status"], json!("WORKFLOW_EXECUTION_STATUS_RUNNING"), "{next}");
}

pub(crate) async fn what_runs_is_signalled_cancelled_and_terminated_and_what_does_not_is_as_the_rule_says(
    release: Release,
) {
    let rules = r#"[{name="s", action="signal", types=["do.signal"], workflow_id="w-{data.w}", signal="finish", signal_input="data"},
        {name="c", action="cancel", types=["do.cancel"], workflow_id="w-{data.w}", reason="{data.why}"},
        {name="t", action="terminate", types=["do.terminate"], workflow_id="w-{data.w}", reason="{data.why}"},
        {name="i", action="signal", types=["do.ignore"], workflow_id="w-{data.w}", signal="finish", on_missing="ignore"},
        {name="r", action="signal", types=["do.retry"], workflow_id="w-{data.w}", signal="finish", on_missing="retry"}]"#;
    let more = [("SIDECAR_CALLS__RETRY_SCHEDULE_SECONDS", "0.2,0.2,0.2,0.5,1,2,5,10,20")];
    let bench = bench(release, TemporalOptions::default(), rules, &more).await;
    for id in ["w-s", "w-c", "w-t"] {
        bench.start(id, "Wait", Value::Null, json!({})).await.unwrap();
    }

    bench.taken(&event("1", "do.signal", json!({ "w": "s" }))).await.unwrap();
    bench.taken(&event("2", "do.cancel", json!({ "w": "c", "why": "too late" }))).await.unwrap();
    bench.taken(&event("3", "do.terminate", json!({ "w": "t", "why": "enough" }))).await.unwrap();
    bench.wait_at_temporal("delivered", 3, SOON).await.unwrap();
    let history = bench.history("default", "w-s").await.unwrap();
    let signal = &history.last().unwrap()["workflowExecutionSignaledEventAttributes"];
    assert_eq!((&signal["signalName"], &signal["input"]), (&json!("finish"), &json!([{ "w": "s" }])));
    let history = bench.history("default", "w-c").await.unwrap();
    let cancel = &history.last().unwrap()["workflowExecutionCancelRequestedEventAttributes"];
    assert_eq!(cancel["cause"], json!("too late"), "{history:?}");
    let history = bench.history("default", "w-t").await.unwrap();
    assert_eq!(history.last().unwrap()["workflowExecutionTerminatedEventAttributes"]["reason"], json!("enough"));

    // None of these is running, and the last one will be.
    for (id, kind) in
        [("4", "do.signal"), ("5", "do.cancel"), ("6", "do.terminate"), ("7", "do.ignore"), ("8", "do.retry")]
    {
        bench.taken(&event(id, kind, json!({ "w": "none", "why": "-" }))).await.unwrap();
    }
    bench.wait_at_temporal("parked", 3, SOON).await.unwrap();
    bench.wait_at_temporal("filtered", 1, SOON).await.unwrap();
    let parked = bench.rig.api("/api/v1/events?state=parked").await.unwrap().to_string();
    assert!(parked.contains("rule c: no workflow w-none is running"), "{parked}");
    bench.start("w-none", "Wait", Value::Null, json!({})).await.unwrap();
    bench.wait_at_temporal("delivered", 4, SOON).await.unwrap();
}
