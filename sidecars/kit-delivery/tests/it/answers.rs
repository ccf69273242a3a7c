//! Every way a gateway can answer, and what becomes of the event.

use std::time::Duration;

use kit_delivery::config::Otherwise;
use kit_journal::DeliveryState;
use kit_workbench::gateway::Behaviour;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn answers_decide_between_delivered_retried_and_parked() {
    let mut bench = Bench::new(
        Behaviour::by_request(|head| match head.subject.as_deref().and_then(|s| s.strip_prefix("status/")) {
            Some(status) => Behaviour::status(status.parse().unwrap_or(500)),
            None => Behaviour::Ok,
        }),
        |section| section.retry.schedule_seconds = vec![3600.0],
    )
    .await;
    let mut expected = Vec::new();
    for (statuses, state) in [
        (&[200, 201, 202, 204][..], DeliveryState::Delivered),
        (&[408, 425, 429, 500, 501, 502, 503, 504, 507, 599], DeliveryState::Retrying),
        (&[300, 301, 302, 303, 304, 307, 308], DeliveryState::Parked),
        (&[400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 451], DeliveryState::Parked),
    ] {
        for status in statuses {
            expected.push((bench.append(&format!("status/{status}")).await, *status, state));
        }
    }
    let count = |state| u64::try_from(expected.iter().filter(|(_, _, s)| *s == state).count()).unwrap();
    let (delivered, parked, open) =
        (count(DeliveryState::Delivered), count(DeliveryState::Parked), count(DeliveryState::Retrying));
    bench.wait("every verdict", |row| (row.delivered, row.parked, row.open) == (delivered, parked, open)).await;
    for (seq, status, state) in expected {
        assert_eq!(bench.state(seq).await, state, "{status}");
        assert_eq!(bench.attempts(seq).await.len(), 1, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_never_followed() {
    let target = kit_workbench::gateway::Gateway::start(Default::default()).await.unwrap();
    let location = vec![("location".to_owned(), target.url())];
    let mut bench = Bench::new(Behaviour::Status(307, location, Vec::new()), |_| {}).await;
    bench.append("a/1").await;
    bench.wait("parking", |row| row.parked == 1).await;
    assert_eq!(target.counts().received, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_within_its_bound() {
    let script = vec![Behaviour::retry_after(429, "1"), Behaviour::retry_after(503, "999999999")];
    let mut bench = Bench::new(Behaviour::Script(script), |section| {
        section.retry.schedule_seconds = vec![0.01; 5];
        section.retry.retry_after_max_seconds = 2.0;
    })
    .await;
    bench.append("a/1").await;
    bench.all_settled().await;
    // By the gateway's own notes: this test may be late in seeing what has happened.
    let asked: Vec<_> = bench.gateway.received().iter().map(|received| received.at).collect();
    let waited: Vec<_> = asked.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    assert_eq!(waited.len(), 2, "{waited:?}");
    assert!(waited[0] >= Duration::from_millis(990), "{waited:?}");
    assert!((1_990..15_000).contains(&waited[1].as_millis()), "an absurd wait is cut to 2 s: {waited:?}");
}

/// The gateway has done the work: whoever reads the reason is not to look for HTML.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_too_long_for_its_conditions_is_said_to_be_that() {
    let long = format!(r#"{{"executions":"{}","status":"processed"}}"#, "x".repeat(70_000));
    let mut bench = Bench::new(Behaviour::json(&long), |section| {
        section.success.otherwise = Otherwise::Park;
        section.success.conditions = serde_json::from_str(r#"[{"pointer":"/status","equals":"processed"}]"#).unwrap();
    })
    .await;
    let seq = bench.append("a/1").await;
    bench.wait("parking", |row| row.parked == 1).await;
    assert!(bench.reason(seq).await.contains("more than 65536 bytes"), "{}", bench.reason(seq).await);

    let short = format!(r#"{{"executions":"{}","status":"processed"}}"#, "x".repeat(65_000));
    bench.gateway.set_behaviour(Behaviour::json(&short));
    bench.append("a/2").await;
    bench.wait("delivery", |row| row.delivered == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ignores_the_event_is_not_a_delivery() {
    for (otherwise, parked) in [(Otherwise::Retry, false), (Otherwise::Park, true)] {
        let mut bench = Bench::new(Behaviour::Ignored, |section| {
            section.success.otherwise = otherwise;
            section.success.conditions =
                serde_json::from_str(r#"[{"pointer":"/status","equals":"processed"}]"#).unwrap();
            section.retry.schedule_seconds = vec![0.05; 100];
        })
        .await;
        bench.append("a/1").await;
        if parked {
            bench.wait("parking", |row| row.parked == 1).await;
        } else {
            bench.gateway.wait_for(3, DEADLINE).await.unwrap();
            bench.gateway.set_behaviour(Behaviour::json(r#"{"status":"processed"}"#));
            assert_eq!(bench.all_settled().await.delivered, 1);
        }
        assert!(bench.attempts(1).await[0].response.as_deref().unwrap().contains("ignored"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_drips_resets_and_huge_answers_do_not_hang_the_engine() {
    let mut bench = Bench::new(
        Behaviour::by_request(|head| {
            let huge = Behaviour::Status(200, Vec::new(), vec![b'x'; 3 << 20]);
            match (head.subject.as_deref(), head.attempt) {
                (_, 2..) | (None, _) => Behaviour::Ok,
                (Some("silence"), _) => Behaviour::Drop,
                (Some("drip"), _) => {
                    Behaviour::Drip(Duration::from_millis(400), Box::new(Behaviour::json(&"x".repeat(500))))
                }
                (Some("reset"), _) => Behaviour::Reset,
                (Some("cut"), _) => Behaviour::Cut(10, Box::new(Behaviour::json(&"x".repeat(500)))),
                _ => huge,
            }
        }),
        |section| {
            section.timeout.read_seconds = 0.5;
            section.timeout.total_seconds = 1.0;
        },
    )
    .await;
    for subject in ["silence", "drip", "reset", "cut", "huge"] {
        bench.append(subject).await;
    }
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (5, 0));
    assert_eq!(bench.attempts(5).await.len(), 1, "a huge answer with a good status is read no further than needed");
    for seq in 1..=4 {
        assert_eq!(bench.attempts(seq).await.len(), 2, "{seq}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_signed_and_carry_the_configured_headers_from_files() {
    let directory = tempfile::TempDir::new().unwrap();
    let key = directory.path().join("key");
    std::fs::write(&key, "s3cret\n").unwrap();
    let mut bench = Bench::new(Behaviour::Ok, |section| {
        section.signing_secret = Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into());
        section.headers = serde_json::from_value(serde_json::json!({
            "x_bizos_key_file": key,
            "x-static": "value",
        }))
        .unwrap();
        section.path = "/api/triggers/webhook/{type}".to_owned();
    })
    .await;
    bench.append("a/1").await;
    bench.all_settled().await;
    let received = &bench.gateway.received()[0];
    assert_eq!(received.path, "/api/triggers/webhook/test.happened");
    assert_eq!(received.header("x-bizos-key"), Some("s3cret"));
    assert_eq!(received.header("x-static"), Some("value"));
    assert!(received.header("webhook-signature").unwrap().starts_with("v1,"));
    assert_eq!(received.header("webhook-id"), received.event_id.as_deref());
}

#[tokio::test(flavor = "multi_thread")]
async fn oauth_tokens_are_fetched_kept_and_renewed_when_refused() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    let issued = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&issued);
    let provider = kit_workbench::gateway::Gateway::start(kit_workbench::gateway::GatewayOptions {
        behaviour: Behaviour::by_request(move |_| {
            let n = counter.fetch_add(1, Ordering::SeqCst) + 1;
            Behaviour::json(&format!(r#"{{"access_token":"token-{n}","token_type":"Bearer","expires_in":3600}}"#))
        }),
        ..Default::default()
    })
    .await
    .unwrap();
    // The gateway withdraws the first token.
    let gateway = Behaviour::by_request(|head| match head.headers.get("authorization").and_then(|v| v.to_str().ok()) {
        Some("Bearer token-2") => Behaviour::Ok,
        _ => Behaviour::status(401),
    });
    let url = format!("{}/token", provider.url());
    let mut bench = Bench::new(gateway, |section| {
        section.oauth.token_url = Some(url);
        section.oauth.client_id = "outrigger".to_owned();
        section.oauth.client_secret = Some("secret".to_owned().into());
    })
    .await;
    for n in 0..10 {
        bench.append(&format!("a/{}", n % 2)).await;
        bench.all_settled().await;
    }
    assert_eq!(bench.sink().await.delivered, 10);
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}
