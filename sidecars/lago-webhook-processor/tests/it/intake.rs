//! One webhook after the other.

use kit_lago::sample::{Shape, sample};
use kit_workbench::raw;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_answered_with_its_id_and_reaches_the_gateway_byte_for_byte() {
    let bench = Bench::hmac().await;
    let body = sample("invoice.created", &Shape::default());
    let answer = bench.send(&hmac().delivery("invoice.created", body.clone()).unwrap()).await;

    assert_eq!(answer.status, 200);
    assert_eq!(json(&answer)["duplicate"], false);
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    let received = &bench.gateway.received()[0];
    assert_eq!(received.event_id.as_deref(), json(&answer)["id"].as_str());
    assert_eq!(received.event_type.as_deref(), Some("lago.invoice.created"));
    assert_eq!(received.source.as_deref(), Some("lago/default"));
    assert_eq!(received.data_sha256, kit_workbench::Digest::of(body.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_webhook_gets_the_same_answer_and_is_delivered_once_also_across_a_kill() {
    let mut bench = Bench::hmac().await;
    let delivery = hmac().delivery("fee.created", sample("fee.created", &Shape::default())).unwrap();
    let first = json(&bench.send(&delivery).await);
    let second = json(&bench.send(&delivery).await);
    bench.restart(&[]).await;
    let third = json(&bench.send(&delivery).await);

    assert_eq!((&first["id"], &first["id"]), (&second["id"], &third["id"]));
    assert_eq!((second["duplicate"].as_bool(), third["duplicate"].as_bool()), (Some(true), Some(true)));
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["delivered"] == 1 && s["accepted"] == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_body_under_the_same_key_is_taken_flagged_and_counted() {
    let bench = Bench::hmac().await;
    let first = hmac().delivery("fee.created", r#"{"a":1}"#).unwrap();
    let mut second = hmac().delivery("fee.created", r#"{"a":2}"#).unwrap();
    second.unique_key.clone_from(&first.unique_key);

    let (one, two) = (json(&bench.send(&first).await), json(&bench.send(&second).await));
    assert_ne!(one["id"], two["id"]);
    assert_eq!(two["duplicate"], false);
    let event =
        bench.wait_api(&format!("/api/v1/events/{}", two["id"].as_str().unwrap()), |e| e["id"] == two["id"]).await;
    assert_eq!(event["conflict"], true);
    let metrics = bench.metrics().await;
    assert!((metrics.sum("lago_webhooks_total", &[("result", "conflict")]) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_body_under_a_new_key_is_taken_and_counted() {
    let bench = Bench::hmac().await;
    for _ in 0..2 {
        assert_eq!(bench.send_body(r#"{"a":1}"#).await.status, 200);
    }
    let metrics = bench.metrics().await;
    assert!((metrics.sum("lago_webhooks_repeated_body_total", &[]) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_webhook_gets_the_same_401_whatever_is_wrong_and_leaves_nothing_behind() {
    let bench = Bench::start(&[
        ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY),
        ("SIDECAR_LAGO__ORGANIZATIONS__ACME__HMAC_KEY", "another-key"),
    ])
    .await;
    let good = hmac().delivery("fee.created", r#"{"a":1}"#).unwrap();
    let mut answers = Vec::new();
    for (path, change) in [
        ("/webhooks/lago", "signature"),
        ("/webhooks/lago", "none"),
        ("/webhooks/lago", "jwt"),
        ("/webhooks/lago/acme", "other organisation's key"),
        ("/webhooks/lago/nobody", "unknown organisation"),
        ("/webhooks/lago/default", "the unnamed one's own name"),
    ] {
        let mut delivery = good.clone();
        match change {
            "signature" => delivery.signature = "AAAA".to_owned() + &delivery.signature[4..],
            "none" => delivery.signature = String::new(),
            "jwt" => delivery.signature = "eyJhbGciOiJub25lIn0.e30.".to_owned(),
            _ => {}
        }
        let answer = bench.sender(path).send_once(&delivery).await.unwrap();
        assert_eq!(answer.status, 401, "{change}");
        answers.push((answer.body, answer.headers.iter().filter(|(n, _)| n != "date").cloned().collect::<Vec<_>>()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let (_, statistics) = bench.api("GET", "/api/v1/statistics", None).await;
    assert_eq!(statistics["accepted"], 0);

    // A forged request with a key does not spoil that key for the real one (T18).
    let mut forged = good.clone();
    forged.signature = hmac().delivery("fee.created", "{}").unwrap().signature;
    assert_eq!(bench.send(&forged).await.status, 401);
    assert_eq!(json(&bench.send(&good).await)["duplicate"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_rotation_both_hmac_keys_are_accepted() {
    let scratch = tempfile::TempDir::new().unwrap();
    let file = scratch.path().join("keys");
    std::fs::write(&file, format!("new-key\n{HMAC_KEY}\n")).unwrap();
    let bench = Bench::start(&[("LAGO_WEBHOOK_HMAC_KEY_FILE", file.to_str().unwrap())]).await;
    let new = kit_lago::sender::Signing::Hmac("new-key".to_owned().into());
    for signing in [hmac(), new] {
        assert_eq!(bench.send(&signing.delivery("fee.created", "{}").unwrap()).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_body_that_is_not_json_is_kept_and_forwarded_too() {
    let bench = Bench::hmac().await;
    for body in ["not json", "", "\u{feff}{}", "[1e400]", &"[".repeat(100_000)] {
        assert_eq!(bench.send_body(body).await.status, 200, "{}", &body[..body.len().min(20)]);
    }
    bench.gateway.wait_for_unique(5, DEADLINE).await.unwrap();
    let received = bench.gateway.received();
    for body in ["not json", "", "\u{feff}{}", "[1e400]"] {
        let digest = kit_workbench::Digest::of(body.as_bytes());
        assert!(received.iter().any(|r| r.data_sha256 == digest), "{body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_two_paths_and_only_post_are_served() {
    let bench = Bench::hmac().await;
    for (request, status) in [
        ("GET /webhooks/lago", 405),
        ("PUT /webhooks/lago", 405),
        ("POST /", 404),
        ("POST /webhooks", 404),
        ("POST /webhooks/lago/", 404),
        ("POST /webhooks/lago/a/b", 404),
        ("POST /webhooks//lago", 404),
        ("POST /webhooks/lag%6f", 404),
        ("POST /webhooks/lago/..%2f", 404),
        ("GET /metrics", 404),
        ("GET /api/v1/events", 404),
    ] {
        let bytes = format!("{request} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let response = raw::exchange(bench.public, bytes.as_bytes(), DEADLINE).await.unwrap();
        assert_eq!(response.status, status, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_415() {
    let bench = Bench::hmac().await;
    for encoding in ["gzip", "br", "gzip, identity", "x"] {
        let bytes = format!(
            "POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nContent-Encoding: {encoding}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
        assert_eq!(raw::exchange(bench.public, bytes.as_bytes(), DEADLINE).await.unwrap().status, 415);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_with_thousands_of_fees_passes_in_both_modes() {
    let signer = std::sync::Arc::new(kit_lago::signature::RsaSigner::generate().unwrap());
    let scratch = tempfile::TempDir::new().unwrap();
    let file = scratch.path().join("key.pem");
    std::fs::write(&file, signer.public_pem()).unwrap();
    let bench = Bench::start(&[
        ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY),
        ("SIDECAR_LAGO__ORGANIZATIONS__ACME__PUBLIC_KEY_FILE", file.to_str().unwrap()),
    ])
    .await;
    let mut fees = 1000;
    let body = loop {
        let body = sample("invoice.created", &Shape { fees, ..Shape::default() });
        if body.len() > 3_700_000 {
            break body;
        }
        fees = fees * 3_900_000 / body.len();
    };
    assert!(body.len() <= 4 << 20, "{}", body.len());
    assert_eq!(bench.send(&hmac().delivery("invoice.created", body.clone()).unwrap()).await.status, 200);
    let jwt = kit_lago::sender::Signing::Jwt(signer, "http://lago".to_owned());
    let delivery = jwt.delivery("invoice.created", body.clone()).unwrap();
    assert!(delivery.signature.len() > 5 << 20, "{}", delivery.signature.len());
    let answer = bench.sender("/webhooks/lago/acme").send_once(&delivery).await.unwrap();
    assert_eq!(answer.status, 200);
    bench.gateway.wait_for_unique(2, DEADLINE).await.unwrap();
    let digest = kit_workbench::Digest::of(body.as_bytes());
    assert!(bench.gateway.received().iter().all(|r| r.data_sha256 == digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_raw_format_passes_the_bytes_the_original_headers_and_the_trace() {
    let bench = Bench::start(&[("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY), ("SIDECAR_GATEWAY__FORMAT", "raw")]).await;
    let body = r#"{"a":"\u0026"}"#;
    let signature = kit_lago::signature::sign_hmac(&HMAC_KEY.to_owned().into(), body.as_bytes());
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let bytes = format!(
        "POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-Lago-Signature: {signature}\r\n\
         X-Lago-Signature-Algorithm: hmac\r\nX-Lago-Unique-Key: k-1\r\nTraceparent: {trace}\r\nCookie: a=b\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(raw::exchange(bench.public, bytes.as_bytes(), DEADLINE).await.unwrap().status, 200);
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    let received = &bench.gateway.received()[0];
    assert_eq!(received.body.as_deref(), Some(body.as_bytes()));
    assert_eq!(received.header("x-lago-signature"), Some(signature.as_str()));
    assert_eq!(received.header("x-lago-unique-key"), Some("k-1"));
    assert_eq!(received.header("traceparent"), Some(trace));
    assert_eq!(received.header("cookie"), None, "only what is listed is copied");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_can_have_its_own_path_at_the_gateway() {
    let bench = Bench::start(&[
        ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY),
        ("SIDECAR_GATEWAY__PATH", "/all"),
        ("SIDECAR_LAGO__ORGANIZATIONS__ACME__HMAC_KEY", HMAC_KEY),
        ("SIDECAR_LAGO__ORGANIZATIONS__ACME__GATEWAY_PATH", "/acme/{type}"),
    ])
    .await;
    let delivery = hmac().delivery("fee.created", r#"{"webhook_type":"fee.created"}"#).unwrap();
    for path in ["/webhooks/lago", "/webhooks/lago/acme"] {
        assert_eq!(bench.sender(path).send_once(&delivery).await.unwrap().status, 200);
    }
    bench.gateway.wait_for_unique(2, DEADLINE).await.unwrap();
    let mut paths: Vec<_> = bench.gateway.received().into_iter().map(|received| received.path).collect();
    paths.sort();
    assert_eq!(paths, ["/acme/lago.fee.created", "/all"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_nobody_knows_do_not_grow_the_metrics() {
    let bench = Bench::hmac().await;
    // What exists only from the first webhook on is not what this is about.
    assert_eq!(bench.send_body(r#"{"webhook_type":"new.type"}"#).await.status, 200);
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["delivered"] == 1).await;
    let before = bench.metrics().await.series_count();
    for n in 0..200 {
        let body = format!(
            r#"{{"webhook_type":"new.type_{n}","object_type":"novelty_{n}","novelty_{n}":{{"lago_id":"{n}"}}}}"#
        );
        assert_eq!(bench.send_body(&body).await.status, 200);
    }
    let metrics = bench.metrics().await;
    assert!((metrics.sum("lago_webhooks_by_type_total", &[("webhook_type", "other")]) - 201.0).abs() < f64::EPSILON);
    assert!(metrics.series_count() <= before + 4, "{} then {}", before, metrics.series_count());
}

#[tokio::test(flavor = "multi_thread")]
async fn business_events_are_counted_for_the_alert_rules_that_expect_them() {
    let bench = Bench::hmac().await;
    let count = async |event_type: &str, status: &str| {
        bench.metrics().await.get("business_events_total", &[("event_type", event_type), ("status", status)])
    };
    assert_eq!(count("payment", "failed").await, Some(0.0), "the series exists before the first failure");
    let body = sample("invoice.payment_failure", &Shape::default());
    bench.send(&hmac().delivery("invoice.payment_failure", body).unwrap()).await;
    assert_eq!(count("payment", "failed").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_are_exported_where_the_environment_asks_and_continue_at_the_gateway() {
    let collector = kit_workbench::gateway::Gateway::start(kit_workbench::gateway::GatewayOptions {
        keep_bodies: true,
        ..Default::default()
    })
    .await
    .unwrap();
    let bench = Bench::start(&[
        ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url()),
        // A proxy of the environment is not for us, and is not there.
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("http_proxy", "http://127.0.0.1:9"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ])
    .await;
    assert_eq!(bench.send_body("{}").await.status, 200);
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    let received = bench.gateway.received();
    let traceparent = received[0].header("traceparent").unwrap().to_owned();
    let trace = traceparent.split('-').nth(1).unwrap();
    let trace: Vec<u8> = (0..16).map(|n| u8::from_str_radix(&trace[2 * n..2 * n + 2], 16).unwrap()).collect();

    let deadline = std::time::Instant::now() + DEADLINE;
    let holds = |name: &str| {
        collector.received().iter().any(|request| {
            let body = request.body.as_deref().unwrap_or_default();
            request.path == "/v1/traces"
                && body.windows(16).any(|window| window == trace)
                && body.windows(name.len()).any(|window| window == name.as_bytes())
        })
    };
    while !(holds("lago.webhook") && holds("deliver")) {
        assert!(std::time::Instant::now() < deadline, "{:?}", collector.received().len());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
