//! Events start workflows, each once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_workbench::broker::Broker;
use kit_workbench::temporal::{TemporalOptions, TemporalServer};
use outrigger_tests::queue::{Client, Found};
use outrigger_tests::temporal::{Bench, Release, scaled};
use serde_json::{Value, json};

use crate::events::{HASTY, ONE_AN_EVENT, SOON, bench, event, forget, signals, with, workflows};

pub(crate) async fn a_repeated_event_starts_one_workflow_whether_it_runs_or_has_ended(release: Release) {
    let mut bench = bench(release, TemporalOptions::default(), ONE_AN_EVENT, &[]).await;
    let order = event("o-1", "order.placed", json!({ "n": 1 }));

    assert!(!bench.taken(&order).await.unwrap());
    assert!(bench.taken(&order).await.unwrap(), "known by its source and id");
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();
    let first = workflows(&bench, "default", 1).await;
    // Whoever has lost everything but Temporal still starts nothing twice.
    forget(&mut bench).await;
    assert!(!bench.taken(&order).await.unwrap());
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();
    assert_eq!(workflows(&bench, "default", 1).await, first);
    let id = first.keys().next().unwrap();
    assert!(id.starts_with("order.placed:"), "{id}");
    bench.terminate(id, "over").await.unwrap();
    forget(&mut bench).await;
    assert!(!bench.taken(&order).await.unwrap());
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();

    assert_eq!(workflows(&bench, "default", 1).await, first);
    let description = bench.get("default", &format!("/workflows/{id}")).await.unwrap();
    assert_eq!(description["workflowExecutionInfo"]["status"], json!("WORKFLOW_EXECUTION_STATUS_TERMINATED"));
}

pub(crate) async fn what_a_rule_says_is_what_the_workflow_gets(release: Release) {
    let options = TemporalOptions {
        search_attributes: vec!["Tier=Keyword".to_owned(), "Cents=Int".to_owned()],
        ..TemporalOptions::default()
    };
    let rules = r#"[{name="none", action="ignore", types=["order.test"]},
        {name="full", types=["order.*"], when=[{field="data.kind", equals="full"}], filter=".data.cents > 100",
         workflow_id="order-{data.number}", workflow_type="Order{data.kind}", task_queue="q-{data.kind}",
         transform="{number: .data.number, from: .source, event: .id}", memo={who="{data.customer.name}", all="{data.customer}"},
         search_attributes={Tier="tier-{data.tier}", Cents="{data.cents}"}, execution_timeout_seconds=3600,
         run_timeout_seconds=600, task_timeout_seconds=20.5,
         retry={initial_seconds=2, backoff=1.5, max_seconds=30, max_attempts=3, not_retried=["Bad"]}},
        {name="event", types=["order.event"], workflow_id="e", workflow_type="W", task_queue="q"},
        {name="data", types=["order.data"], workflow_id="d", workflow_type="W", task_queue="q", input="data"}]"#;
    let bench = bench(release, options, rules, &[]).await;
    let data =
        json!({ "kind": "full", "number": "7/8", "cents": 1999, "tier": "gold", "customer": { "name": "acme" } });

    bench.taken(&event("1", "order.placed", data.clone())).await.unwrap();
    bench.taken(&event("2", "order.event", json!([1]))).await.unwrap();
    bench.taken(&event("3", "order.data", json!({ "a": 1 }))).await.unwrap();
    bench.taken(&event("4", "order.test", data.clone())).await.unwrap();
    let cheap = json!({ "kind": "full", "cents": 1 });
    bench.taken(&event("5", "order.placed", cheap)).await.unwrap();
    bench.taken(&event("6", "nobody.knows", data)).await.unwrap();

    bench.wait_at_temporal("delivered", 3, SOON).await.unwrap();
    bench.wait_at_temporal("filtered", 3, SOON).await.unwrap();
    let started = |history: Vec<Value>| history[0]["workflowExecutionStartedEventAttributes"].clone();
    // The slash is written so that the HTTP API could name it; its own decoding takes one away.
    let id = workflows(&bench, "default", 3).await.into_keys().find(|id| id.starts_with("order-")).unwrap();
    assert_eq!(id, "order-7%2F8");
    let full = started(bench.history("default", "order-7%252F8").await.unwrap());
    assert_eq!(full["workflowType"]["name"], json!("Orderfull"));
    assert_eq!(full["taskQueue"]["name"], json!("q-full"));
    assert_eq!(full["input"], json!([{ "number": "7/8", "from": "shop", "event": "1" }]));
    assert_eq!(full["memo"]["fields"], json!({ "who": "acme", "all": { "name": "acme" } }));
    let attribute = |name: &str| full["searchAttributes"]["indexedFields"][name]["data"].clone();
    assert_eq!(
        (attribute("Tier"), attribute("Cents")),
        (json!(STANDARD.encode("\"tier-gold\"")), json!(STANDARD.encode("1999")))
    );
    let times =
        ["workflowExecutionTimeout", "workflowRunTimeout", "workflowTaskTimeout"].map(|name| full[name].clone());
    assert_eq!(times, [json!("3600s"), json!("600s"), json!("20.500s")]);
    let retry = &full["retryPolicy"];
    assert_eq!((&retry["initialInterval"], &retry["maximumInterval"]), (&json!("2s"), &json!("30s")));
    assert_eq!((&retry["maximumAttempts"], &retry["nonRetryableErrorTypes"]), (&json!(3), &json!(["Bad"])));
    assert!(full["identity"].as_str().unwrap().starts_with("temporal-event-bridge/"), "{full}");
    let whole = started(bench.history("default", "e").await.unwrap());
    let whole = &whole["input"][0];
    assert_eq!((&whole["id"], &whole["type"], &whole["data"]), (&json!("2"), &json!("order.event"), &json!([1])));
    assert!(whole.get("subject").is_none() && whole.get("sequence").is_none(), "{whole}");
    let data = started(bench.history("default", "d").await.unwrap());
    assert_eq!(data["input"], json!([{ "a": 1 }]));
}

pub(crate) async fn an_id_that_is_taken_is_as_the_rule_says(release: Release) {
    let rules = r#"[{name="park", types=["x.park"], workflow_id="w", workflow_type="Wait", task_queue="q"},
        {name="signal", types=["x.signal"], workflow_id="w", workflow_type="Wait", task_queue="q", on_conflict="signal", signal="again", signal_input="data"},
        {name="ignore", types=["x.ignore"], workflow_id="w", workflow_type="Wait", task_queue="q", on_conflict="ignore"},
        {name="existing", types=["x.existing"], workflow_id="w", workflow_type="Wait", task_queue="q", conflict="use_existing"},
        {name="again", types=["x.again"], workflow_id="w", workflow_type="Wait", task_queue="q", reuse="allow_duplicate"}]"#;
    let bench = bench(release, TemporalOptions::default(), rules, &[]).await;
    bench.start("w", "Wait", Value::Null, json!({})).await.unwrap();

    for kind in ["park", "signal", "ignore", "existing"] {
        bench.taken(&event(kind, &format!("x.{kind}"), json!({ "by": kind }))).await.unwrap();
    }
    bench.wait_at_temporal("delivered", 2, SOON).await.unwrap();
    bench.wait_at_temporal("parked", 1, SOON).await.unwrap();
    bench.wait_at_temporal("filtered", 1, SOON).await.unwrap();
    assert_eq!((workflows(&bench, "default", 1).await["w"].len(), signals(&bench, "w").await), (1, 1));
    let parked = bench.rig.api("/api/v1/events?state=parked").await.unwrap().to_string();
    assert!(parked.contains("rule park: another event has started workflow w"), "{parked}");

    // What has ended keeps its id, but where the rule says otherwise.
    bench.terminate("w", "over").await.unwrap();
    bench.taken(&event("late", "x.signal", json!({}))).await.unwrap();
    bench.wait_at_temporal("parked", 2, SOON).await.unwrap();
    bench.taken(&event("more", "x.again", json!({}))).await.unwrap();
    bench.wait_at_temporal("delivered", 3, SOON).await.unwrap();
    assert_eq!(workflows(&bench, "default", 2).await["w"].len(), 2);
}

pub(crate) async fn a_server_that_is_away_longer_than_the_schedule_parks_nothing(release: Release) {
    let options = TemporalOptions { keeps_data: true, ..TemporalOptions::default() };
    let mut bench = bench(release, options, ONE_AN_EVENT, &[HASTY]).await;
    bench.taken(&event("before", "order.placed", json!({}))).await.unwrap();
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();

    bench.server.kill().await.unwrap();
    let count = scaled(60, 1_000);
    for n in 0..count {
        bench.taken(&event(&format!("o-{n}"), "order.placed", json!({ "n": n }))).await.unwrap();
    }
    let failures = ["unreachable", "unavailable"];
    let tried = async || -> f64 {
        let metrics = bench.rig.metrics().await.unwrap();
        let of = |outcome: &str| metrics.sum("delivery_attempts_total", &[("sink", "temporal"), ("outcome", outcome)]);
        failures.map(of).iter().sum()
    };
    let begin = Instant::now();
    while tried().await < 20.0 {
        assert!(begin.elapsed() < SOON, "it is hardly tried");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.at_temporal("parked").await.unwrap(), 0);
    bench.server.start_again().await.unwrap();

    bench.wait_at_temporal("delivered", u64::try_from(count).unwrap() + 1, 2 * SOON).await.unwrap();
    let found = workflows(&bench, "default", count + 1).await;
    assert!(found.len() == count + 1 && found.values().all(|runs| runs.len() == 1), "{found:?}");
}

pub(crate) async fn a_server_that_comes_back_without_its_data_gets_what_it_has_not_answered(release: Release) {
    let mut bench = bench(release, TemporalOptions::default(), ONE_AN_EVENT, &[HASTY]).await;
    bench.taken(&event("before", "order.placed", json!({}))).await.unwrap();
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();

    bench.server.kill().await.unwrap();
    for n in 0..10 {
        bench.taken(&event(&format!("o-{n}"), "order.placed", json!({ "n": n }))).await.unwrap();
    }
    bench.server.start_again().await.unwrap();

    bench.wait_at_temporal("delivered", 11, SOON).await.unwrap();
    assert_eq!(workflows(&bench, "default", 10).await.len(), 10);
}

pub(crate) async fn a_server_that_throttles_parks_nothing(release: Release) {
    let limits = ["frontend.rps", "frontend.namespaceRPS"].map(|name| (name.to_owned(), "20".to_owned()));
    let options = TemporalOptions { dynamic: limits.to_vec(), ..TemporalOptions::default() };
    let bench = bench(release, options, ONE_AN_EVENT, &[HASTY]).await;

    for n in 0..150 {
        bench.taken(&event(&format!("o-{n}"), "order.placed", json!({ "n": n }))).await.unwrap();
    }
    bench.wait_at_temporal("delivered", 150, 2 * SOON).await.unwrap();

    let metrics = bench.rig.metrics().await.unwrap();
    let attempts = |outcome| metrics.sum("delivery_attempts_total", &[("sink", "temporal"), ("outcome", outcome)]);
    assert!(attempts("throttled") > 0.0, "the server has not throttled");
    assert_eq!(bench.at_temporal("parked").await.unwrap(), 0);
}

pub(crate) async fn events_wait_for_a_namespace_that_is_created_late(release: Release) {
    let server =
        TemporalServer::prepare(TemporalOptions { binary: release.binary().unwrap(), ..TemporalOptions::default() });
    let more = [("TEMPORAL_NAMESPACE", "late"), HASTY];
    let mut bench = Bench::over(server.unwrap(), &with(ONE_AN_EVENT, &more)).await.unwrap();
    bench.rig.start().await.unwrap();
    bench.server.start_again().await.unwrap();
    for n in 0..10 {
        bench.taken(&event(&format!("o-{n}"), "order.placed", json!({ "n": n }))).await.unwrap();
    }
    let named = |line: &str| line.contains("Namespace late is not found");
    bench.rig.process().unwrap().wait_for_line(named, SOON).await.unwrap();
    let refused = async || {
        let metrics = bench.rig.metrics().await.unwrap();
        metrics.sum("delivery_attempts_total", &[("sink", "temporal"), ("outcome", "denied")])
    };
    let begin = Instant::now();
    // More often than the schedule has attempts.
    while refused().await < 6.0 {
        assert!(begin.elapsed() < SOON, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.at_temporal("parked").await.unwrap(), 0);

    bench.server.kill().await.unwrap();
    bench.server.add_namespace("late");
    bench.server.start_again().await.unwrap();
    bench.wait_at_temporal("delivered", 10, SOON).await.unwrap();

    assert_eq!(workflows(&bench, "late", 10).await.len(), 10);
}

pub(crate) async fn what_temporal_refuses_is_a_dead_letter_with_the_reason(release: Release) {
    let rules = r#"[{name="attribute", types=["x.attribute"], workflow_type="W", task_queue="q", search_attributes={Unknown="{type}"}},
        {name="elsewhere", types=["x.elsewhere"], namespace="nowhere", workflow_type="W", task_queue="q"},
        {name="lacking", types=["x.lacking"], workflow_id="w-{data.nothing}", workflow_type="W", task_queue="q"},
        {name="jq", types=["x.jq"], workflow_type="W", task_queue="q", transform=".data | error"},
        {name="fine", types=["x.fine"], workflow_type="W", task_queue="q"}]"#;
    let more = [HASTY, ("SIDECAR_WEBHOOKS__BODY_LIMIT_BYTES", "8388608")];
    let bench = bench(release, TemporalOptions::default(), rules, &more).await;

    for kind in ["attribute", "elsewhere", "lacking", "jq"] {
        bench.taken(&event(kind, &format!("x.{kind}"), json!({}))).await.unwrap();
    }
    // More than a blob may have, and more than gRPC takes.
    for (id, bytes) in [("blob", 3 << 20), ("message", 5 << 20)] {
        bench.taken(&event(id, "x.fine", json!("x".repeat(bytes)))).await.unwrap();
    }
    bench.taken(&event("fine", "x.fine", json!({}))).await.unwrap();

    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();
    bench.wait_at_temporal("parked", 6, SOON).await.unwrap();
    let parked = bench.rig.api("/api/v1/events?state=parked").await.unwrap().to_string();
    for reason in [
        "rule fine: Temporal answered StartWorkflowExecution with InvalidArgument",
        "rule fine: StartWorkflowExecution would have 5",
        "rule attribute: Temporal answered StartWorkflowExecution with InvalidArgument",
        "after 4 attempts: rule elsewhere: Temporal answered StartWorkflowExecution with NotFound: Namespace nowhere is not found",
        "rule lacking: workflow_id: the event has no {data.nothing}",
        "jq: transform of rule jq:",
    ] {
        assert!(parked.contains(reason), "{reason}: {parked}");
    }
}

pub(crate) async fn a_bridge_that_is_killed_at_random_starts_every_workflow_once(release: Release) {
    let rules = r#"[{name="each", types=["order.each"], workflow_id="each-{id}", workflow_type="Wait", task_queue="q"},
        {name="object", types=["order.object"], workflow_id="object-{data.n}", workflow_type="Wait", task_queue="q", reuse="allow_duplicate"},
        {name="signal", action="signal_with_start", types=["order.signal"], workflow_id="signal-{data.n}", workflow_type="Wait",
         task_queue="q", signal="s", reuse="allow_duplicate"}]"#;
    let mut bench = bench(release, TemporalOptions::default(), rules, &[("SIDECAR_CALLS__ORDER", "none")]).await;
    let kinds = ["each", "object", "signal"];
    let per_kill = 30;
    let kills = scaled(8, 100);

    for kill in 0..kills {
        let events: Vec<Value> = (0..per_kill)
            .map(|n| {
                let (n, kind) = (kill * per_kill + n, kinds[n % 3]);
                event(&format!("o-{n}"), &format!("order.{kind}"), json!({ "n": n }))
            })
            .collect();
        futures_util::future::try_join_all(events.iter().map(|event| bench.taken(event))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..120))).await;
        bench.rig.kill().await.unwrap();
        // What has been started by then ends: whoever asks Temporal alone would start it again.
        let open: Vec<String> =
            bench.runs("default").await.unwrap().into_iter().map(|(workflow, _)| workflow).collect();
        let ended: BTreeSet<&String> = open.iter().filter(|id| fastrand::bool() && !id.starts_with("each")).collect();
        for id in ended {
            let _ = bench.terminate(id, "over").await;
        }
        bench.rig.start().await.unwrap();
    }

    let total = kills * per_kill;
    bench.wait_at_temporal("delivered", u64::try_from(total).unwrap(), SOON).await.unwrap();
    let found = workflows(&bench, "default", total).await;
    let twice: Vec<_> = found.iter().filter(|(_, runs)| runs.len() != 1).collect();
    assert!(found.len() == total && twice.is_empty(), "{} of {total}, more than once: {twice:?}", found.len());
    for id in found.keys().filter(|id| id.starts_with("signal-")) {
        assert_eq!(signals(&bench, id).await, 1, "{id}");
    }
}

pub(crate) async fn events_come_from_a_queue_once_each(release: Release) {
    if !Broker::is_installed() {
        // The same is said of every test beside a broker.
        return;
    }
    let broker = Broker::start().await.unwrap();
    let url = broker.url();
    let more = [("AMQP_URL", url.as_str()), ("SIDECAR_AMQP_SOURCE__QUEUE", "orders")];
    let mut bench = bench(release, TemporalOptions::default(), ONE_AN_EVENT, &more).await;
    let begin = Instant::now();
    while bench.rig.metrics().await.unwrap().sum("amqp_connected", &[("connection", "events")]) < 1.0 {
        assert!(begin.elapsed() < SOON, "no connection: {}", bench.rig.end_of_log(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    broker.write_down_queues().await.unwrap();
    let client = Client::connect(&broker).await.unwrap();

    let count = scaled(40, 1_000);
    for n in 0..count {
        // Each twice, and the bridge is killed in between.
        for _ in 0..2 {
            let body = event(&format!("o-{n}"), "order.placed", json!({ "n": n })).to_string();
            client.publish("orders", &format!("m-{n}"), "application/cloudevents+json", body.as_bytes()).await.unwrap();
        }
        if n % (count / 2) == count / 4 {
            bench.rig.kill().await.unwrap();
            bench.rig.start().await.unwrap();
        }
    }
    client.publish("orders", "poison", "application/json", b"{}").await.unwrap();

    bench.wait_at_temporal("delivered", u64::try_from(count).unwrap(), 2 * SOON).await.unwrap();
    assert_eq!(workflows(&bench, "default", count).await.len(), count);
    let mut dead = Found::new();
    let begin = Instant::now();
    while dead.is_empty() {
        assert!(begin.elapsed() < SOON, "what is no event is nowhere");
        client.drain("orders.dead", &mut dead).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(dead.into_keys().collect::<Vec<_>>(), ["poison"]);
}
