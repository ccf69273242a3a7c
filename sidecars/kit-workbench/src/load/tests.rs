#![allow(clippy::unwrap_used)]

use super::*;
use crate::gateway::{Behaviour, Gateway, GatewayOptions};
use crate::ledger::{Expectations, Ledger};
use crate::scratch;

fn pool() -> Arc<Pool> {
    let webhooks = (0..5).map(|number| {
        let body = format!(r#"{{"webhook_type":"invoice.created","number":{number}}}"#);
        let headers = vec![("X-Lago-Signature".to_owned(), "abc".to_owned())];
        PreparedWebhook::new("acme", format!("invoice/{number}"), headers, body)
    });
    Arc::new(Pool::new(webhooks.collect()))
}

/// A receiver that answers like the processor: an id made from the key, and whether it was seen.
async fn receiver() -> Gateway {
    let seen = std::sync::Mutex::new(std::collections::HashSet::new());
    let behaviour = Behaviour::by_request(move |head| {
        let key = head.headers["x-lago-unique-key"].to_str().unwrap();
        let duplicate = !seen.lock().unwrap().insert(key.to_owned());
        Behaviour::json(&format!(r#"{{"id":"id-{key}","duplicate":{duplicate}}}"#))
    });
    Gateway::start(GatewayOptions { behaviour, ..GatewayOptions::default() }).await.unwrap()
}

fn options(receiver: &Gateway) -> LoadOptions {
    LoadOptions {
        record: true,
        requests: Some(200),
        ..LoadOptions::new(Target::new(receiver.addr(), "/webhooks/lago"))
    }
}

async fn run_load(options: LoadOptions) -> LoadOutcome {
    run(options, pool(), &LoadControl::new()).await.unwrap()
}

#[tokio::test]
async fn a_closed_loop_sends_what_it_counts() {
    let receiver = receiver().await;

    let outcome = run_load(options(&receiver)).await;

    let report = &outcome.report;
    assert_eq!((report.requests, report.ok), (200, 200));
    assert!(report.errors.is_empty(), "{report:?}");
    assert!(report.rps > 0.0 && report.latency_ms.max >= report.latency_ms.p50);
    assert_eq!(receiver.counts().received, 200);
    let received = receiver.received();
    assert_eq!(received[0].header("x-lago-signature"), Some("abc"));
    assert_eq!(received[0].path, "/webhooks/lago");
    let mut keys: Vec<_> = received.iter().map(|r| r.unique_key.clone()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 200);
}

#[tokio::test]
async fn the_recorded_requests_balance_in_a_ledger() {
    let receiver = receiver().await;
    let outcome = run_load(LoadOptions { duplicates_percent: 20.0, ..options(&receiver) }).await;
    let mut ledger = Ledger::new();
    ledger.extend_sent(outcome.sent);
    // The receiver is the daemon here; it "delivers" what it accepted as new, once.
    let mut delivered: Vec<_> = receiver.received();
    let mut seen = std::collections::HashSet::new();
    delivered.retain_mut(|received| {
        let key = received.unique_key.clone().unwrap();
        received.event_id = Some(format!("id-{key}"));
        seen.insert(key)
    });
    ledger.extend_received(&delivered);

    let report = ledger.check(&Expectations::default());

    assert!(report.is_clean(), "{report}");
    assert_eq!(report.sent, 200);
    assert_eq!(report.duplicates_answered, outcome.report.repeated);
    assert_eq!(report.duplicates_answered, outcome.report.duplicates_answered);
    assert!(outcome.report.repeated > 5, "{:?}", outcome.report);
    assert_eq!(report.accepted + report.duplicates_answered, 200);
}

#[tokio::test]
async fn a_connection_per_request_is_closed_each_time() {
    let receiver = receiver().await;

    run_load(LoadOptions { keep_alive: false, ..options(&receiver) }).await;

    receiver.with_received(|received| {
        assert!(received.iter().all(|r| r.header("connection") == Some("close")));
    });
}

#[tokio::test]
async fn an_open_loop_keeps_its_rate_and_counts_from_when_a_request_was_due() {
    let receiver = receiver().await;
    // One connection, each answer takes 50 ms, and ten requests are due at once: the last one
    // waits for all before it, although its own exchange is as short as the first one's.
    receiver.set_behaviour(Behaviour::status(200).after(Duration::from_millis(50)));

    let outcome = run_load(LoadOptions {
        connections: 1,
        pacing: Pacing::Open { per_second: 1e4 },
        requests: Some(10),
        ..options(&receiver)
    })
    .await;

    assert!(outcome.report.latency_ms.max >= 490.0, "{:?}", outcome.report);
    assert!(outcome.report.latency_ms.p50 >= 200.0, "{:?}", outcome.report);
}

#[tokio::test]
async fn an_open_loop_sends_every_request_that_is_due_in_its_time() {
    let receiver = receiver().await;

    let outcome = run_load(LoadOptions {
        pacing: Pacing::Open { per_second: 400.0 },
        requests: None,
        duration: Some(Duration::from_millis(500)),
        ..options(&receiver)
    })
    .await;

    assert_eq!(outcome.report.requests, 200);
    assert!(outcome.report.seconds >= 0.49, "{:?}", outcome.report);
}

#[tokio::test]
async fn a_closed_loop_ends_with_its_time_or_when_told() {
    let receiver = receiver().await;
    let unbounded = LoadOptions { requests: None, ..options(&receiver) };

    let timed = run_load(LoadOptions { duration: Some(Duration::from_millis(500)), ..unbounded.clone() }).await;
    assert!(timed.report.ok > 0);

    let control = LoadControl::new();
    let running = tokio::spawn({
        let control = control.clone();
        async move { run(unbounded, pool(), &control).await.unwrap() }
    });
    receiver.wait_for(400, Duration::from_secs(20)).await.unwrap();
    control.stop();
    let outcome = running.await.unwrap();
    assert_eq!(outcome.report.requests, control.requests());
    assert_eq!(outcome.report.ok, control.ok());
}

#[tokio::test]
async fn failures_are_counted_by_kind_and_retried_with_the_same_key() {
    let receiver = receiver().await;
    receiver.set_behaviour(Behaviour::Script(vec![Behaviour::status(503), Behaviour::Reset, Behaviour::Drop]));

    let outcome = run_load(LoadOptions {
        connections: 1,
        requests: Some(1),
        attempts: 4,
        retry_pause: Duration::from_millis(1),
        timeout: Duration::from_secs(2),
        ..options(&receiver)
    })
    .await;

    let report = &outcome.report;
    let errors: Vec<_> = report.errors.iter().map(|(k, n)| (k.as_str(), *n)).collect();
    assert_eq!(errors, [("reset", 1), ("status 503", 1), ("timeout", 1)]);
    assert_eq!((report.requests, report.ok, report.retries), (1, 1, 3));
    let statuses: Vec<_> = outcome.sent.iter().map(|s| s.status).collect();
    assert_eq!(statuses, [Some(503), None, None, Some(200)]);
    assert!(outcome.sent.iter().all(|s| s.key == outcome.sent[0].key));
    assert!(outcome.sent.iter().all(|s| s.status.is_some() == s.answered.is_some()));
}

#[tokio::test]
async fn an_absent_daemon_is_counted_as_refused() {
    let nobody = scratch::free_address().unwrap();

    let outcome =
        run_load(LoadOptions { connections: 1, requests: Some(3), ..LoadOptions::new(Target::new(nobody, "/")) }).await;

    assert_eq!(outcome.report.ok, 0);
    assert_eq!(outcome.report.errors["refused"], 3);
    assert!(outcome.sent.is_empty());
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused() {
    let base = LoadOptions::new(Target::new(scratch::free_address().unwrap(), "/"));
    let cases = [
        (LoadOptions { connections: 0, ..base.clone() }, LoadError::NoConnections),
        (LoadOptions { attempts: 0, ..base.clone() }, LoadError::NoConnections),
        (LoadOptions { pacing: Pacing::Open { per_second: 0.0 }, ..base.clone() }, LoadError::Rate),
        (LoadOptions { duplicates_percent: f64::NAN, ..base.clone() }, LoadError::Duplicates),
    ];
    for (options, wanted) in cases {
        let error = run(options, pool(), &LoadControl::new()).await.unwrap_err();
        assert_eq!(error, wanted);
    }
    let empty = Arc::new(Pool::new(Vec::new()));
    let error = run(base, empty, &LoadControl::new()).await.unwrap_err();
    assert_eq!(error, LoadError::EmptyPool);
}

#[test]
fn a_prepared_request_is_exactly_http() {
    let webhook = PreparedWebhook::new("o", "s", vec![("A".to_owned(), "b".to_owned())], "{}");
    let target = Target::new("127.0.0.1:80".parse().unwrap(), "/x");

    let bytes = webhook.request(&target, "k", false);

    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        "POST /x HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\nX-Lago-Unique-Key: k\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\nA: b\r\n\r\n{}"
    );
}
