//! What an operator can see and do.

use kit_lago::sample::{Shape, sample};
use kit_workbench::gateway::Behaviour;
use serde_json::{Value, json};

use crate::bench::*;

async fn filled(behaviour: Behaviour, count: u64) -> Bench {
    let bench = Bench::hmac().await;
    bench.gateway.set_behaviour(behaviour);
    for seq in 0..count {
        let kind = if seq % 2 == 0 { "invoice.created" } else { "customer.created" };
        let body = sample(kind, &Shape { seq, ..Shape::default() });
        assert_eq!(bench.send(&hmac().delivery(kind, body).unwrap()).await.status, 200);
    }
    bench
}

#[tokio::test(flavor = "multi_thread")]
async fn events_can_be_listed_searched_and_paged_with_a_stable_cursor() {
    let bench = filled(Behaviour::Ok, 25).await;
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["delivered"] == 25).await;
    let mut ids = Vec::new();
    let mut cursor = String::new();
    loop {
        let (status, page) = bench.api("GET", &format!("/api/v1/events?limit=10{cursor}"), None).await;
        assert_eq!(status, 200);
        ids.extend(page["events"].as_array().unwrap().iter().map(|event| event["id"].clone()));
        // Something arriving meanwhile does not move the pages.
        bench.send_body(&format!(r#"{{"n":{}}}"#, ids.len())).await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut unique = ids.clone();
    unique.sort_by_key(ToString::to_string);
    unique.dedup();
    assert_eq!((ids.len(), unique.len()), (25, 25));

    for (query, count) in [
        ("type=lago.invoice.*&limit=100", 13),
        ("type=lago.customer.created&limit=100", 12),
        ("type=nothing.*", 0),
        ("state=parked", 0),
        ("until=2001-01-01T00:00:00Z", 0),
        ("subject=nobody", 0),
    ] {
        let (_, page) = bench.api("GET", &format!("/api/v1/events?{query}"), None).await;
        assert_eq!(page["events"].as_array().unwrap().len(), count, "{query}");
    }
    let never = "since=2026-11-20T00:00:00Z&until=2026-11-20T00:00:00Z";
    for bad in ["limit=0", "limit=many", "state=lost", "since=yesterday", "cursor=x", "nonsense=1", "type=[", never] {
        assert_eq!(bench.api("GET", &format!("/api/v1/events?{bad}"), None).await.0, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_shows_its_body_and_every_attempt() {
    let failing = Behaviour::Script(vec![
        Behaviour::Status(500, Vec::new(), b"database is \x07down".to_vec()),
        Behaviour::retry_after(429, "0"),
    ]);
    let bench = Bench::hmac().await;
    bench.gateway.set_behaviour(failing);
    let body = sample("invoice.created", &Shape::default());
    let id = json(&bench.send(&hmac().delivery("invoice.created", body.clone()).unwrap()).await)["id"].clone();
    let path = format!("/api/v1/events/{}", id.as_str().unwrap());
    let event = bench.wait_api(&path, |event| event["attempts"].as_array().is_some_and(|a| a.len() == 3)).await;

    assert_eq!(event["body"], Value::String(body.clone()));
    let attempts = event["attempts"].as_array().unwrap();
    let statuses: Vec<_> = attempts.iter().map(|attempt| attempt["status"].as_u64()).collect();
    assert_eq!(statuses, [Some(500), Some(429), Some(200)]);
    assert_eq!(attempts[0]["response"], "database is  down");
    assert_eq!(attempts[2]["outcome"], "delivered");
    let raw = bench.api_raw("GET", &format!("{path}/body"), None, Some(TOKEN)).await;
    assert_eq!(raw.body, body.as_bytes());
    assert_eq!(bench.api("GET", "/api/v1/events/00000000-0000-8000-8000-000000000000", None).await.0, 404);
    assert_eq!(bench.api("GET", "/api/v1/events/nonsense", None).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_counted_replayed_and_dropped() {
    let bench = filled(Behaviour::status(422), 10).await;
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["parked"] == 10).await;
    let (_, page) = bench.api("GET", "/api/v1/deliveries?state=parked&limit=100", None).await;
    let entries = page["deliveries"].as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert!(entries[0]["reason"].as_str().unwrap().contains("422"));

    bench.gateway.set_behaviour(Behaviour::Ok);
    let replay = |body: Value| async { bench.api("POST", "/api/v1/deliveries/replay", Some(body)).await };
    let (_, dry) = replay(json!({"select": {"type": "lago.invoice.*"}, "dry_run": true})).await;
    assert_eq!((&dry["matched"], &dry["changed"]), (&json!(5), &json!(0)));
    let (_, done) = replay(json!({"select": {"type": "lago.invoice.*"}, "rate_per_second": 100})).await;
    assert_eq!((&done["matched"], &done["changed"]), (&json!(5), &json!(5)));
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["delivered"] == 5 && s["sinks"][0]["parked"] == 5).await;
    let (_, again) = replay(json!({"select": {"type": "lago.invoice.*"}})).await;
    assert_eq!(again["matched"], 0, "a filter means dead letters");
    assert_eq!(replay(json!({"select": {}})).await.0, 400, "nothing in particular is not everything");
    assert_eq!(replay(json!({"select": {"sink": "nobody", "state": "parked"}})).await.0, 404);

    let id = entries.iter().find(|e| e["type"] == "lago.customer.created").unwrap()["event_id"].clone();
    let drop = json!({"select": {"ids": [id, "00000000-0000-8000-8000-000000000000"]}, "reason": "test data"});
    let (_, dropped) = bench.api("POST", "/api/v1/deliveries/drop", Some(drop)).await;
    assert_eq!((&dropped["changed"], &dropped["unavailable"]), (&json!(1), &json!(1)));
    let (_, page) = bench.api("GET", "/api/v1/deliveries?state=dropped", None).await;
    assert_eq!(page["deliveries"][0]["reason"], "test data");
    let (_, statistics) = bench.api("GET", "/api/v1/statistics", None).await;
    let sink = &statistics["sinks"][0];
    assert_eq!((&sink["parked"], &sink["dropped"], &sink["accepted"]), (&json!(4), &json!(1), &json!(10)));

    let (_, audit) = bench.api("GET", "/api/v1/audit", None).await;
    let actions: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["deliveries.drop", "deliveries.replay", "deliveries.replay", "deliveries.replay"]);
    assert_eq!(audit["records"][0]["actor"], "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_can_be_paused_and_resumed_while_webhooks_go_on() {
    let bench = Bench::hmac().await;
    let (status, paused) = bench.api("POST", "/api/v1/sinks/gateway/pause", None).await;
    assert_eq!((status, &paused["changed"]), (200, &json!(true)));
    bench.wait_api("/api/v1/sinks", |sinks| sinks[0]["paused"] == true).await;
    for _ in 0..3 {
        assert_eq!(bench.send_body("{}").await.status, 200);
    }
    assert_eq!(bench.gateway.counts().received, 0);
    bench.api("POST", "/api/v1/sinks/gateway/resume", None).await;
    bench.gateway.wait_for_unique(3, DEADLINE).await.unwrap();
    assert_eq!(bench.api("POST", "/api/v1/sinks/nobody/pause", None).await.0, 404);
}

/// Every route of the served description, with the method it names.
#[tokio::test(flavor = "multi_thread")]
async fn every_described_route_wants_the_token() {
    let bench = Bench::hmac().await;
    let (_, description) = bench.api("GET", "/api/v1/openapi.json", None).await;
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() >= 9, "{paths:?}");
    for (path, methods) in paths {
        let path = path.replace("{id}", "x").replace("{name}", "gateway");
        for method in methods.as_object().unwrap().keys() {
            let response = bench.api_raw(&method.to_uppercase(), &format!("/api/v1{path}"), None, None).await;
            assert!(matches!(response.status, 401 | 429), "{method} {path}: {}", response.status);
        }
    }
}

/// One write must not put megabytes into a trail that is kept for months, nor into the log.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_write_leaves_in_the_audit_trail_and_in_the_log_is_bounded() {
    let mut bench = Bench::hmac().await;
    let long = "x".repeat(1_025);
    for field in ["type", "subject", "tenant", "state", "sink", "since", "until"] {
        for path in ["/api/v1/deliveries/replay", "/api/v1/deliveries/drop"] {
            let (status, refused) = bench.api("POST", path, Some(json!({"select": {field: long}}))).await;
            assert_eq!((status, refused), (400, json!({"error": format!("{field} must be at most 1024 bytes")})));
        }
        let (status, _) = bench.api("GET", &format!("/api/v1/events?{field}={long}"), None).await;
        assert_eq!(status, 400, "{field}");
    }
    let (_, audit) = bench.api("GET", "/api/v1/audit", None).await;
    assert_eq!(audit["records"], json!([]), "what is refused leaves nothing");

    let drop = json!({"select": {"subject": "s".repeat(1_024)}, "reason": "r".repeat(1_000_000)});
    assert_eq!(bench.api("POST", "/api/v1/deliveries/drop", Some(drop)).await.0, 200);

    let (_, audit) = bench.api("GET", "/api/v1/audit", None).await;
    assert_eq!(audit["records"][0]["detail"]["request"]["reason"], "r".repeat(500));
    let written = |line: &str| line.contains("admin action deliveries.drop");
    let line = bench.daemon.wait_for_line(written, DEADLINE).await.unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["matched"], &line["changed"], &line["sink"]), (&json!(0), &json!(0), &json!("gateway")));
    assert!(line.to_string().len() < 1_000, "{line}");
}
