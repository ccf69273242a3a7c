//! Ends of workflows become events.

use std::collections::BTreeSet;
use std::time::Duration;

use kit_workbench::temporal::{TemporalOptions, TemporalServer};
use outrigger_tests::temporal::{Bench, Release, Told, scaled};
use serde_json::{Value, json};

/// Generous: what is promised is measured where it is the point.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Looks follow each other quickly, so that tests do.
pub(crate) const QUICK: [(&str, &str); 2] =
    [("SIDECAR_OBSERVER__IDLE_SECONDS", "0.3"), ("SIDECAR_OBSERVER__BUSY_SECONDS", "0.3")];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    QUICK.iter().chain(more).copied().collect()
}

fn of<'a>(told: &'a [Told], workflow: &str) -> &'a Told {
    let found: Vec<&Told> = told.iter().filter(|told| told.workflow() == workflow).collect();
    assert_eq!(found.len(), 1, "{workflow} in {told:?}");
    found[0]
}

pub(crate) async fn every_end_is_told_once_with_what_it_says(release: Release) {
    let options = TemporalOptions { search_attributes: vec!["Tier=Keyword".to_owned()], ..TemporalOptions::default() };
    let settings =
        with(&[("SIDECAR_OBSERVER__SEARCH_ATTRIBUTES", "Tier"), ("SIDECAR_OBSERVER__REDACT", "card*,secret")]);
    let mut bench = Bench::observing(release, options, &settings).await.unwrap();
    bench.work("default").await.unwrap();
    let input = json!({ "invoice": 7, "card_number": "4242", "deep": [{ "Secret": 1, "open": 2 }] });
    let more = json!({ "memo": { "fields": { "customer": "acme", "secret": "s" } }, "searchAttributes": { "indexedFields": { "Tier": "gold" } } });

    let completed = bench.start("a:completed", "Complete", input, more).await.unwrap();
    bench.start("failed", "Fail", Value::Null, json!({})).await.unwrap();
    bench.start("timed-out", "Wait", Value::Null, json!({ "workflowExecutionTimeout": "1s" })).await.unwrap();
    bench.start("canceled", "Wait", Value::Null, json!({})).await.unwrap();
    bench.start("terminated", "Wait", Value::Null, json!({})).await.unwrap();
    bench.cancel("canceled").await.unwrap();
    bench.terminate("terminated", "no longer needed").await.unwrap();

    let told = bench.wait_told(5, SOON).await.unwrap();
    bench.nothing_more(5, 3.0).await.unwrap();
    let kinds: BTreeSet<(&str, &str)> = told.iter().map(|told| (told.workflow(), told.kind.as_str())).collect();
    let expected = [
        ("a:completed", "temporal.workflow.completed"),
        ("canceled", "temporal.workflow.canceled"),
        ("failed", "temporal.workflow.failed"),
        ("terminated", "temporal.workflow.terminated"),
        ("timed-out", "temporal.workflow.timed_out"),
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
    let end = of(&told, "a:completed");
    assert_eq!(end.subject, "workflow/a:completed");
    let data = &end.data;
    let identity = (&data["namespace"], &data["run_id"], &data["workflow_type"], &data["task_queue"], &data["status"]);
    assert_eq!(
        identity,
        (&json!("default"), &json!(completed), &json!("Complete"), &json!("work"), &json!("completed"))
    );
    assert_eq!(data["first_run_id"], json!(completed));
    let given = json!({ "invoice": 7, "card_number": "[redacted]", "deep": [{ "Secret": "[redacted]", "open": 2 }] });
    assert_eq!(data["result"], json!({ "given": given }));
    assert_eq!(data["memo"], json!({ "customer": "acme", "secret": "[redacted]" }));
    assert_eq!(data["search_attributes"], json!({ "Tier": "gold" }));
    assert!(data["close_time"].as_str() > data["start_time"].as_str(), "{data}");
    let failure = &of(&told, "failed").data["failure"];
    assert_eq!((&failure["message"], &failure["type"]), (&json!("the card was declined"), &json!("CardDeclined")));
    assert_eq!((&failure["details"], &failure["stack_trace"]), (&json!({ "code": 51 }), &Value::Null));
    assert_eq!(of(&told, "terminated").data["reason"], json!("no longer needed"));
}

const RETRIED: &str = r#"{ "retryPolicy": { "initialInterval": "0.2s", "maximumAttempts": 5 } }"#;

/// Starts a workflow that is tried three times, one whose last attempt fails too, one that goes on as new twice.
async fn start_chains(bench: &Bench) -> [String; 3] {
    let retry: Value = serde_json::from_str(RETRIED).unwrap();
    let good = bench.start("retried", "FailUntil", json!(3), retry).await.unwrap();
    let twice = json!({ "retryPolicy": { "initialInterval": "0.2s", "maximumAttempts": 2 } });
    let bad = bench.start("in-vain", "FailUntil", json!(9), twice).await.unwrap();
    let continued = bench.start("continued", "Continue", json!(2), json!({})).await.unwrap();
    [good, bad, continued]
}

pub(crate) async fn a_chain_of_runs_has_one_end(release: Release) {
    let mut bench = Bench::observing(release, TemporalOptions::default(), &QUICK).await.unwrap();
    bench.work("default").await.unwrap();
    let [good, bad, continued] = start_chains(&bench).await;

    let told = bench.wait_told(3, SOON).await.unwrap();
    bench.nothing_more(3, 3.0).await.unwrap();
    for (workflow, first, kind) in [
        ("retried", &good, "temporal.workflow.completed"),
        ("in-vain", &bad, "temporal.workflow.failed"),
        ("continued", &continued, "temporal.workflow.completed"),
    ] {
        let end = of(&told, workflow);
        assert_eq!((end.kind.as_str(), &end.data["first_run_id"]), (kind, &json!(first)), "{end:?}");
        assert_ne!(&end.data["run_id"], &json!(first));
    }
    assert_eq!(of(&told, "retried").data["result"], json!({ "attempt": 3 }));
    assert_eq!(of(&told, "in-vain").data["retry_state"], json!("maximum_attempts_reached"));
    assert_eq!(of(&told, "continued").data["result"], json!("the end"));
}

pub(crate) async fn every_run_of_a_chain_is_told_where_that_is_wanted(release: Release) {
    let settings = with(&[("SIDECAR_OBSERVER__CONTINUED", "true")]);
    let mut bench = Bench::observing(release, TemporalOptions::default(), &settings).await.unwrap();
    bench.work("default").await.unwrap();
    start_chains(&bench).await;

    // Three, two and three runs.
    let told = bench.wait_told(8, SOON).await.unwrap();
    bench.nothing_more(8, 3.0).await.unwrap();
    let chain = |workflow: &str| -> Vec<&Told> { told.iter().filter(|told| told.workflow() == workflow).collect() };
    for (workflow, status, by) in [
        ("retried", json!("failed"), "retry"),
        ("in-vain", json!("failed"), "retry"),
        ("continued", Value::Null, "workflow"),
    ] {
        let chain = chain(workflow);
        let (last, before) = chain.split_last().unwrap();
        assert_ne!(last.kind, "temporal.workflow.continued", "the end comes last");
        for run in before {
            assert_eq!(run.kind, "temporal.workflow.continued");
            assert_eq!((&run.data["run_status"], &run.data["continued_by"]), (&status, &json!(by)), "{run:?}");
            let next = chain.iter().filter(|other| other.data["run_id"] == run.data["next_run_id"]);
            assert_eq!(next.count(), 1, "{run:?}");
        }
    }
}

pub(crate) fn workflows(told: &[Told]) -> BTreeSet<String> {
    told.iter().map(|told| told.workflow().to_owned()).collect()
}

pub(crate) async fn four_hundred_ends_at_once_are_told(release: Release) {
    // Two pages a look.
    let settings = with(&[("SIDECAR_OBSERVER__PAGE_SIZE", "150")]);
    let bench = Bench::observing(release, TemporalOptions::default(), &settings).await.unwrap();
    let mut all = BTreeSet::new();
    for burst in 0..scaled(1, 5) {
        let ids = bench.start_idle(&format!("burst-{burst}"), 400).await.unwrap();

        futures_util::future::try_join_all(ids.iter().map(|id| bench.terminate(id, "over"))).await.unwrap();

        all.extend(ids);
        let told = bench.wait_told(all.len(), 2 * SOON).await.unwrap();
        assert_eq!(workflows(&told), all);
        assert!(told.iter().all(|told| told.kind == "temporal.workflow.terminated" && told.data["reason"] == "over"));
    }
    bench.nothing_more(all.len(), 3.0).await.unwrap();
}

/// With what is set by default. The machine does other things beside this, now and then for seconds: what is too late is
/// measured again.
pub(crate) async fn ends_are_told_soon(release: Release) {
    const TRIES: usize = 3;
    const IDLE: Duration = Duration::from_secs(3);
    const AFTER_A_BURST: Duration = Duration::from_secs(10);
    let bench = Bench::observing(release, TemporalOptions::default(), &[]).await.unwrap();
    let mut all = 0;
    let (mut idle, mut p99) = (Vec::new(), Vec::new());
    while idle.len() < TRIES && idle.last().is_none_or(|late| *late > IDLE) {
        let ids = bench.start_idle(&format!("single-{}", idle.len()), 8).await.unwrap();
        for id in &ids {
            bench.terminate(id, "over").await.unwrap();
            all += 1;
            bench.wait_told(all, SOON).await.unwrap();
        }
        idle.push(lateness(&bench.told().unwrap()[all - ids.len()..])[ids.len() - 1]);
    }
    while p99.len() < TRIES && p99.last().is_none_or(|late| *late > AFTER_A_BURST) {
        let burst = bench.start_idle(&format!("burst-{}", p99.len()), 1000).await.unwrap();
        bench.terminate_all(&burst).await.unwrap();
        all += burst.len();
        let told = bench.wait_told(all, 4 * SOON).await.unwrap();
        p99.push(lateness(&told[all - burst.len()..])[burst.len() * 99 / 100]);
    }

    println!(
        "{release:?}: an end is told within {idle:?} when idle, and after a burst of 1,000 within {p99:?} (99 of 100)"
    );
    assert!(idle.last().is_some_and(|late| *late <= IDLE), "{idle:?}");
    assert!(p99.last().is_some_and(|late| *late <= AFTER_A_BURST), "{p99:?}");
}

/// How late these were told, the latest last.
fn lateness(told: &[Told]) -> Vec<Duration> {
    let mut late: Vec<Duration> = told.iter().map(|told| told.lateness().unwrap()).collect();
    late.sort();
    late
}

pub(crate) async fn a_server_that_restarts_with_its_data_loses_nothing(release: Release) {
    let options = TemporalOptions { keeps_data: true, ..TemporalOptions::default() };
    let mut bench = Bench::observing(release, options, &QUICK).await.unwrap();
    let ids = bench.start_idle("w", 60).await.unwrap();

    bench.terminate_all(&ids[..20]).await.unwrap();
    bench.server.kill().await.unwrap();
    bench.server.start_again().await.unwrap();
    // While the bridge is away too.
    bench.rig.kill().await.unwrap();
    bench.terminate_all(&ids[20..40]).await.unwrap();
    bench.server.kill().await.unwrap();
    bench.rig.start().await.unwrap();
    bench.server.start_again().await.unwrap();
    bench.terminate_all(&ids[40..]).await.unwrap();

    let told = bench.wait_told(60, 2 * SOON).await.unwrap();
    assert_eq!(workflows(&told), ids.into_iter().collect());
}

pub(crate) async fn a_server_that_restarts_without_its_data_is_observed_again(release: Release) {
    let mut bench = Bench::observing(release, TemporalOptions::default(), &QUICK).await.unwrap();
    let ids = bench.start_idle("before", 5).await.unwrap();
    bench.terminate_all(&ids).await.unwrap();
    bench.wait_told(5, SOON).await.unwrap();

    bench.server.kill().await.unwrap();
    bench.server.start_again().await.unwrap();
    let ids = bench.start_idle("after", 5).await.unwrap();
    bench.terminate_all(&ids).await.unwrap();

    bench.wait_told(10, SOON).await.unwrap();
    bench.nothing_more(10, 3.0).await.unwrap();
}

pub(crate) async fn a_server_that_throttles_is_asked_more_slowly(release: Release) {
    let rates = ["frontend.namespaceRPS.visibility", "frontend.namespaceBurstRatio.visibility"];
    let dynamic = rates.map(|name| (name.to_owned(), "1".to_owned())).into();
    let options = TemporalOptions { dynamic, ..TemporalOptions::default() };
    let settings = [("SIDECAR_OBSERVER__IDLE_SECONDS", "0.2"), ("SIDECAR_OBSERVER__BUSY_SECONDS", "0.2")];
    let bench = Bench::observing(release, options, &settings).await.unwrap();
    let ids = bench.start_idle("w", 30).await.unwrap();
    bench.terminate_all(&ids).await.unwrap();

    let told = bench.wait_told(30, 2 * SOON).await.unwrap();
    assert_eq!(workflows(&told), ids.into_iter().collect());
    let begin = std::time::Instant::now();
    while bench.rig.metrics().await.unwrap().sum("observer_sweeps_total", &[("result", "throttled")]) < 1.0 {
        assert!(begin.elapsed() < SOON, "nothing was throttled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Thirty pages, and three questions a second.
pub(crate) async fn a_long_list_beside_a_server_that_throttles_has_an_end(release: Release) {
    let limits = [("frontend.namespaceRPS.visibility", "3"), ("frontend.namespaceBurstRatio.visibility", "1")];
    let dynamic = limits.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let options = TemporalOptions { dynamic, ..TemporalOptions::default() };
    let settings = with(&[("SIDECAR_OBSERVER__PAGE_SIZE", "3")]);
    let mut bench = Bench::observing(release, options, &settings).await.unwrap();
    bench.rig.kill().await.unwrap();
    let ids = bench.start_idle("w", 90).await.unwrap();
    bench.terminate_all(&ids).await.unwrap();
    bench.rig.start().await.unwrap();

    let told = bench.wait_told(90, 3 * SOON).await.unwrap();
    assert_eq!(workflows(&told), ids.into_iter().collect());
    bench.observed().await.unwrap();
}

/// With what is set by default, and a task queue that is watched.
pub(crate) async fn an_idle_server_is_left_alone(release: Release) {
    const SECONDS: u64 = 40;
    let settings = [("SIDECAR_OBSERVER__BACKLOG__TASK_QUEUES", "work")];
    let bench = Bench::observing(release, TemporalOptions::default(), &settings).await.unwrap();
    // The first look has been counted by the server, and the busy time is over.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (begin, before) = (std::time::Instant::now(), bench.asked().await.unwrap());

    tokio::time::sleep(Duration::from_secs(SECONDS)).await;

    let asked = bench.asked().await.unwrap() - before;
    let seconds = begin.elapsed().as_secs();
    println!("{release:?}: {asked} requests in {seconds} s to an idle server");
    assert!(asked >= 10, "{asked}: it is not observed, or not counted");
    assert!(asked * 2 <= seconds, "{asked} requests in {seconds} s");
}

pub(crate) async fn a_bridge_that_is_killed_at_random_loses_and_invents_nothing(release: Release) {
    let mut bench = Bench::observing(release, TemporalOptions::default(), &QUICK).await.unwrap();
    let count = scaled(6, 60) * 40;
    let ids = bench.start_idle("w", count).await.unwrap();

    for chunk in ids.chunks(40) {
        let ending = async {
            for ten in chunk.chunks(10) {
                bench.terminate_all(ten).await.unwrap();
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..150))).await;
            }
        };
        ending.await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..600))).await;
        bench.rig.kill().await.unwrap();
        bench.rig.start().await.unwrap();
    }

    let told = bench.wait_told(count, 2 * SOON).await.unwrap();
    assert_eq!(workflows(&told), ids.into_iter().collect());
    bench.observed().await.unwrap();
    bench.nothing_more(count, 3.0).await.unwrap();
}

pub(crate) async fn a_namespace_may_be_created_late(release: Release) {
    let server =
        TemporalServer::prepare(TemporalOptions { binary: release.binary().unwrap(), ..TemporalOptions::default() });
    let settings = with(&[("TEMPORAL_NAMESPACE", "late")]);
    let mut bench = Bench::over(server.unwrap(), &settings).await.unwrap();
    // Nobody is there at all, then a server without the namespace.
    bench.rig.start().await.unwrap();
    bench.server.start_again().await.unwrap();
    let named = |line: &str| line.contains("late") && line.contains("Namespace");
    bench.rig.process().unwrap().wait_for_line(named, SOON).await.unwrap();
    bench.server.kill().await.unwrap();
    bench.server.add_namespace("late");
    bench.server.start_again().await.unwrap();
    bench.work("late").await.unwrap();

    bench.start_in("late", "w", "Complete", json!(1), json!({})).await.unwrap();

    let told = bench.wait_told(1, 2 * SOON).await.unwrap();
    assert_eq!((&told[0].data["namespace"], &told[0].data["result"]), (&json!("late"), &json!({ "given": 1 })));
}

pub(crate) async fn only_what_is_wanted_is_told(release: Release) {
    let options = TemporalOptions { search_attributes: vec!["Tier=Keyword".to_owned()], ..TemporalOptions::default() };
    let settings = with(&[
        ("SIDECAR_OBSERVER__TYPES", "Com*,Wait"),
        ("SIDECAR_OBSERVER__TASK_QUEUES", "work"),
        ("SIDECAR_OBSERVER__QUERY", "Tier = 'gold' OR Tier = 'silver'"),
        ("SIDECAR_OBSERVER__PAYLOAD_LIMIT_BYTES", "100"),
    ]);
    let mut bench = Bench::observing(release, options, &settings).await.unwrap();
    bench.work("default").await.unwrap();
    let tier = |tier: &str| json!({ "searchAttributes": { "indexedFields": { "Tier": tier } } });
    bench.start("type", "Fail", Value::Null, tier("gold")).await.unwrap();
    bench.start("tier", "Complete", Value::Null, tier("bronze")).await.unwrap();
    bench.start("wanted", "Complete", json!("x".repeat(200)), tier("silver")).await.unwrap();

    let told = bench.wait_told(1, SOON).await.unwrap();
    bench.nothing_more(1, 5.0).await.unwrap();
    assert_eq!(told[0].workflow(), "wanted");
    assert_eq!(told[0].data["result"]["omitted"], json!("too large"), "{:?}", told[0]);
}

/// The allow-list has another name in every release.
pub(crate) fn with_callbacks() -> TemporalOptions {
    let allowed = r#"[{"Pattern":"*","AllowInsecure":true}]"#;
    let names = ["callback.allowedAddresses", "component.callbacks.allowedAddresses"];
    let dynamic = names.map(|name| (name.to_owned(), allowed.to_owned())).into();
    TemporalOptions { dynamic, ..TemporalOptions::default() }
}

fn calling(url: &str, token: &str) -> Value {
    json!({ "completionCallbacks": [{ "nexus": { "url": url, "header": { "authorization": format!("Bearer {token}") } } }] })
}

/// Waits until Temporal says this of a workflow's callback.
async fn wait_callback(bench: &Bench, workflow: &str, state: &str) {
    let path = format!("/api/v1/namespaces/default/workflows/{workflow}");
    let begin = std::time::Instant::now();
    loop {
        let answer = kit_workbench::raw::get(bench.server.http(), &path, SOON).await.unwrap().json().unwrap();
        let seen = answer["callbacks"][0]["state"].as_str().unwrap_or_default().to_owned();
        if seen == format!("CALLBACK_STATE_{state}") {
            return;
        }
        assert!(seen != "CALLBACK_STATE_FAILED" && begin.elapsed() < SOON, "{answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn a_callback_tells_at_once_and_survives_a_wrong_token(release: Release) {
    // Nothing is found by looking within the test.
    let settings = [
        ("SIDECAR_OBSERVER__IDLE_SECONDS", "600"),
        ("SIDECAR_OBSERVER__BUSY_SECONDS", "600"),
        ("SIDECAR_OBSERVER__CALLBACKS__URL", "http://bridge:8084"),
        ("SIDECAR_OBSERVER__CALLBACKS__TOKEN", "an-earlier-token"),
    ];
    let mut bench = Bench::observing(release, with_callbacks(), &settings).await.unwrap();
    bench.work("default").await.unwrap();
    let url = format!("http://{}/webhooks/temporal?namespace=default&workflow_id=called", bench.rig.public);
    let retry: Value = serde_json::from_str(RETRIED).unwrap();
    let mut more = calling(&url, "the-token");
    more["retryPolicy"] = retry["retryPolicy"].clone();
    bench.start("called", "FailUntil", json!(2), more).await.unwrap();
    // Its token is not known yet: 503, and Temporal comes again. After a 4xx it never would.
    wait_callback(&bench, "called", "BACKING_OFF").await;
    bench.nothing_more(0, 0.0).await.unwrap();
    let metrics = bench.rig.metrics().await.unwrap();
    assert!(metrics.sum("observer_callbacks_refused_total", &[]) >= 1.0);
    assert_eq!(metrics.sum("observer_callbacks_total", &[]), 0.0);
    bench.rig.stop().await.unwrap();
    bench.rig.set("SIDECAR_OBSERVER__CALLBACKS__TOKEN", "the-token");
    bench.rig.start().await.unwrap();

    let told = bench.wait_told(1, 2 * SOON).await.unwrap();
    assert_eq!(
        (told[0].kind.as_str(), &told[0].data["result"]),
        ("temporal.workflow.completed", &json!({ "attempt": 2 }))
    );
    wait_callback(&bench, "called", "SUCCEEDED").await;
    // One that nothing but its callback can tell of.
    let id = "called-again";
    let url = format!("http://{}/webhooks/temporal?namespace=default&workflow_id={id}", bench.rig.public);
    bench.start(id, "Complete", json!(1), calling(&url, "the-token")).await.unwrap();
    let told = bench.wait_told(2, SOON).await.unwrap();
    assert_eq!(told[1].workflow(), id);
    assert!(bench.rig.metrics().await.unwrap().sum("observer_callbacks_total", &[]) >= 1.0);
}

pub(crate) async fn a_lost_callback_is_found_by_looking(release: Release) {
    let mut bench = Bench::observing(release, with_callbacks(), &QUICK).await.unwrap();
    bench.work("default").await.unwrap();
    // Callbacks are not configured: 404, which Temporal never repeats.
    let url = format!("http://{}/webhooks/temporal?namespace=default&workflow_id=lost", bench.rig.public);
    bench.start("lost", "Complete", json!(1), calling(&url, "t")).await.unwrap();

    let told = bench.wait_told(1, SOON).await.unwrap();
    assert_eq!(told[0].workflow(), "lost");
    bench.nothing_more(1, 3.0).await.unwrap();
}

pub(crate) async fn a_task_queue_without_a_worker_is_told(release: Release) {
    let settings =
        with(&[("SIDECAR_OBSERVER__BACKLOG__TASK_QUEUES", "work,idle"), ("SIDECAR_OBSERVER__BACKLOG__SECONDS", "1")]);
    let mut bench = Bench::observing(release, TemporalOptions::default(), &settings).await.unwrap();
    bench.start("w", "Complete", json!(1), json!({})).await.unwrap();

    let told = bench.wait_told(1, SOON).await.unwrap();
    assert_eq!((told[0].kind.as_str(), told[0].subject.as_str()), ("temporal.task_queue.stalled", "task-queue/work"));
    assert_eq!((&told[0].data["backlog"], &told[0].data["pollers"]), (&json!(1), &json!(0)));
    // Told once, whatever happens to the bridge.
    bench.rig.kill().await.unwrap();
    bench.rig.start().await.unwrap();
    bench.observed().await.unwrap();
    bench.nothing_more(1, 10.0).await.unwrap();
    bench.work("default").await.unwrap();

    let told = bench.wait_told(3, SOON).await.unwrap();
    let kinds: BTreeSet<&str> = told[1..].iter().map(|told| told.kind.as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["temporal.task_queue.resumed", "temporal.workflow.completed"]));
}

pub(crate) async fn observing_begins_now_or_where_it_is_said(release: Release) {
    let mut bench = Bench::new(release, TemporalOptions::default(), &QUICK).await.unwrap();
    let before = bench.start_idle("before", 3).await.unwrap();
    bench.terminate_all(&before).await.unwrap();
    // Visible before the bridge begins.
    let begin = std::time::Instant::now();
    let query = "/api/v1/namespaces/default/workflow-count?query=ExecutionStatus%3D'Terminated'";
    while kit_workbench::raw::get(bench.server.http(), query, SOON).await.unwrap().json().unwrap()["count"] != "3" {
        assert!(begin.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.rig.start().await.unwrap();
    bench.observed().await.unwrap();
    let after = bench.start_idle("after", 3).await.unwrap();
    bench.terminate_all(&after).await.unwrap();
    let told = bench.wait_told(3, SOON).await.unwrap();
    assert_eq!(workflows(&told), after.into_iter().collect());
    bench.nothing_more(3, 3.0).await.unwrap();

    // A new journal that is to know all.
    bench.rig.stop().await.unwrap();
    let folder = bench.rig.scratch.file("second");
    std::fs::create_dir(&folder).unwrap();
    bench.rig.place_journal(&folder);
    bench.rig.set("SIDECAR_OBSERVER__SINCE", "2020-01-01T00:00:00Z");
    bench.rig.start().await.unwrap();
    // The same three have the same ids.
    bench.wait_told(6, SOON).await.unwrap();
}
