//! Usage that names only a customer is billed to the subscription that the customer had at that time.

use std::time::Duration;

use kit_lago::stand_in::billing::{AggregationType, Effect, Fault, Faults, Metric, On, Profile, Subscription, When};
use reqwest::Method;
use serde_json::{Value, json};

use crate::bench::*;

const QUICK: [(&str, &str); 3] = [
    ("SIDECAR_CHECKS__UNKNOWN_METRIC", "park"),
    ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park"),
    ("SIDECAR_CHECKS__REFRESH_SECONDS", "1"),
];

async fn bench(env: &[(&str, &str)]) -> Bench {
    let env: Vec<(&str, &str)> = QUICK.iter().chain(env).copied().collect();
    Bench::beside(Profile::V1_39, &env, |lago| {
        lago.put_metric(Metric::new("api_calls", AggregationType::Sum, Some("calls")));
    })
    .await
}

fn subscribe(bench: &Bench, id: &str, customer: &str) {
    let started = "2024-01-01T00:00:00Z".parse().unwrap();
    bench.lago.put_subscription(Subscription::active(id, customer, "plan", started));
}

fn of(customer: &str, transaction: &str) -> Value {
    json!({ "transaction_id": transaction, "external_customer_id": customer, "code": "api_calls",
        "timestamp": 1_732_000_000, "properties": { "calls": 1 } })
}

impl Bench {
    /// Waits until nothing is left to resolve or to send, and gives what both sinks have delivered and parked.
    async fn resolved(&self) -> [(u64, u64); 2] {
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            let statistics = self.api("/api/v1/statistics").await;
            let rows = ["lago", "resolve"].map(|name| {
                let rows = statistics["sinks"].as_array().unwrap();
                rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_default()
            });
            if rows.iter().all(|row| row["pending"] == 0) {
                return rows.map(|row| (row["delivered"].as_u64().unwrap(), row["parked"].as_u64().unwrap()));
            }
            assert!(std::time::Instant::now() < deadline, "not resolved: {statistics}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until(&self, what: &str, transaction: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            let (_, answer) = self.get(&format!("/api/v1/events/{transaction}")).await;
            if wanted(&answer["event"]) {
                return answer["event"].clone();
            }
            assert!(std::time::Instant::now() < deadline, "{what} did not happen: {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_a_customer_is_billed_to_its_subscription_once() {
    let mut bench = bench(&[]).await;
    subscribe(&bench, "s", "c");
    let mut events: Vec<Value> = (0..250).map(|n| of("c", &format!("t-{n}"))).collect();
    let (status, first) = bench.post("/api/v1/events/batch", &json!({ "events": events })).await;
    assert_eq!((status, &first["events"][0]["external_subscription_id"]), (200, &Value::Null), "{first}");
    assert_eq!(bench.resolved().await, [(250, 0), (250, 0)]);

    bench.restart().await;
    let (status, again) = bench.post("/api/v1/events/batch", &json!({ "events": events })).await;
    assert_eq!((status, &again), (200, &first), "the answer of the first time");
    let other = json!({ "event": { "transaction_id": "t-0", "external_customer_id": "c", "code": "other" } });
    assert_eq!(bench.post("/api/v1/events", &other).await.0, 422, "another event under its transaction id");
    // With the subscription it is the same event too, with or without its customer.
    for (n, event) in events.iter_mut().enumerate() {
        event["external_subscription_id"] = json!("s");
        if n % 2 == 0 {
            event["external_customer_id"] = Value::Null;
        }
    }
    bench.report(&events).await;

    assert_eq!(bench.resolved().await, [(250, 0), (250, 0)]);
    let billed = bench.billed();
    assert_eq!(billed.len(), 250);
    assert!(billed.iter().all(|event| event.starts_with("s/t-")), "{billed:?}");
    let event = bench.until("being confirmed", "t-17", |event| event["status"] == "confirmed").await;
    assert_eq!((&event["external_subscription_id"], &event["reason"]), (&json!("s"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_queued_until_lago_has_told_its_subscriptions() {
    let away = Fault::new(Effect::Reset, When::Always).on(On::Everything);
    let faults = Faults { rules: vec![away], ..Faults::default() };
    let bench = Bench::beside(Profile::V1_39, &QUICK, |lago| lago.set_faults(faults)).await;
    bench.lago.put_metric(Metric::new("api_calls", AggregationType::Sum, Some("calls")));
    subscribe(&bench, "s", "c");
    bench.report(&[of("c", "t")]).await;

    let event = bench.until("a try", "t", |event| event["status"] == "queued").await;
    assert_eq!(event["external_subscription_id"], Value::Null);
    bench.lago.set_faults(Faults::default());

    assert_eq!(bench.resolved().await, [(1, 0), (1, 0)]);
    bench.until("being confirmed", "t", |event| event["status"] == "confirmed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_without_a_subscription_waits_for_one_and_one_with_several_is_named() {
    let bench = bench(&[("SIDECAR_CHECKS__NO_SUBSCRIPTION", "pass")]).await;
    subscribe(&bench, "s-1", "several");
    subscribe(&bench, "s-2", "several");
    bench.report(&[of("several", "which"), of("later", "early")]).await;
    assert_eq!(bench.resolved().await, [(0, 0), (0, 2)], "passing an event that names nobody would bill nobody");

    for (transaction, expected) in [
        ("early", "no_subscription: Lago has no active subscription of the customer \"later\""),
        (
            "which",
            "ambiguous_subscription: the customer \"several\" had 2 subscriptions at its time, 2024-11-19T07:06:40.000Z, \
             and the event does not say which is meant: \"s-1\", \"s-2\"",
        ),
    ] {
        let (_, answer) = bench.get(&format!("/api/v1/events/{transaction}")).await;
        assert_eq!((&answer["event"]["status"], &answer["event"]["reason"]), (&json!("parked"), &json!(expected)));
    }
    let metrics = bench.metrics().await;
    let count = |check| metrics.get("usage_checks_failed_total", &[("check", check), ("policy", "park")]);
    assert_eq!((count("no_subscription"), count("ambiguous_subscription")), (Some(1.0), Some(1.0)));

    subscribe(&bench, "s-3", "later");
    assert!(bench.lago.end_subscription("s-2", "2024-11-01T00:00:00Z".parse().unwrap()));
    for transaction in ["early", "which"] {
        bench.until("being sent after all", transaction, |event| event["status"] == "confirmed").await;
    }
    assert_eq!(bench.resolved().await, [(2, 0), (2, 0)]);
    let billed = bench.billed().concat();
    assert!(billed.contains("s-3/early") && billed.contains("s-1/which"), "{billed}");
    let audit = bench.api("/api/v1/audit").await.to_string();
    assert!(audit.contains("they fit what Lago knows by now") && audit.contains("resolve"), "{audit}");
}

/// The customer's subscription ends and another one begins, long before Lago would be asked again by the timer.
#[tokio::test(flavor = "multi_thread")]
async fn usage_is_billed_to_the_subscription_that_has_just_begun() {
    let bench = bench(&[("SIDECAR_CHECKS__REFRESH_SECONDS", "300")]).await;
    subscribe(&bench, "a", "c");
    // Lago is asked for it, and knows the first one.
    bench.report(&[of("c", "first")]).await;
    assert_eq!(bench.resolved().await, [(1, 0), (1, 0)]);

    for (n, (ended, begun)) in [("a", "b"), ("b", "d")].into_iter().enumerate() {
        let now = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(2);
        assert!(bench.lago.end_subscription(ended, now));
        bench.lago.put_subscription(Subscription::active(begun, "c", "plan", now));
        let event = json!({ "transaction_id": begun, "external_customer_id": "c", "code": "api_calls",
            "timestamp": jiff::Timestamp::now().as_second(), "properties": { "calls": 1 } });
        bench.report(&[event]).await;
        assert_eq!(bench.resolved().await, [(n as u64 + 2, 0); 2]);
        let billed = bench.billed();
        assert!(billed.iter().any(|event| event.starts_with(&format!("{begun}/{begun} "))), "{billed:?}");
    }
}

/// As after a crash between the two commits: the sink is asked again, and Lago says something else by then.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_resolved_again_is_not_billed_again() {
    let bench = bench(&[]).await;
    subscribe(&bench, "s-1", "c");
    bench.report(&[of("c", "t")]).await;
    assert_eq!(bench.resolved().await, [(1, 0), (1, 0)]);

    assert!(bench.lago.end_subscription("s-1", "2024-11-01T00:00:00Z".parse().unwrap()));
    subscribe(&bench, "s-2", "c");
    let mut events = 1;
    // The change has been seen when a new event's subscription is the other one.
    loop {
        events += 1;
        let transaction = format!("next-{events}");
        bench.report(&[of("c", &transaction)]).await;
        let event = bench.until("resolving", &transaction, |event| event["external_subscription_id"].is_string()).await;
        if event["external_subscription_id"] == "s-2" {
            break;
        }
    }
    // It shows as soon as it is there, and is recorded a moment later.
    bench.until_sinks("recording", |sinks| sinks["resolve"]["pending"] == 0).await;
    let again = json!({ "select": { "sink": "resolve", "type": "usage.unresolved", "state": "delivered" } });
    let done = bench.act_with("/api/v1/deliveries/replay", &again).await;
    assert_eq!(done["changed"], events, "{done}");

    let [(delivered, parked), resolved] = bench.resolved().await;
    assert_eq!((delivered + parked, resolved), (events, (events, 0)), "nothing was added");
    assert_eq!(bench.billed().iter().filter(|event| event.contains("/t ")).count(), 1);
    assert_eq!(bench.api("/api/v1/statistics").await["accepted"], 2 * events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_without_a_subscription_is_refused_where_that_is_asked_for() {
    let reject = [("SIDECAR_CHECKS__NO_SUBSCRIPTION", "reject"), ("SIDECAR_CHECKS__AMBIGUOUS_SUBSCRIPTION", "reject")];
    let bench = bench(&reject).await;
    knows(&bench, "Lago has told").await;
    subscribe(&bench, "s", "c");
    subscribe(&bench, "s-1", "several");
    subscribe(&bench, "s-2", "several");
    let events = json!({ "events": [of("c", "a"), of("nobody", "b"), of("several", "c"), of("global", "d")] });
    let (status, answer) = bench.post("/api/v1/events/batch", &events).await;
    let errors = json!({ "3": { "external_customer_id": ["value_is_invalid"] } });
    assert_eq!((status, &answer["error_details"]), (422, &errors), "{answer}");

    let events = json!({ "events": [of("c", "a"), of("nobody", "b"), of("several", "c")] });
    let (status, answer) = bench.post("/api/v1/events/batch", &events).await;
    let errors = json!({
        "1": { "external_customer_id": ["subscription_not_found"] },
        "2": { "external_customer_id": ["subscription_is_ambiguous"] },
    });
    assert_eq!((status, &answer["error_details"]), (422, &errors), "{answer}");
    bench.report(&[of("c", "a")]).await;
    assert_eq!(bench.resolved().await, [(1, 0), (1, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_customer_reports_for_it_and_one_for_subscriptions_does_not() {
    let tokens = "first-token-0123456 customer:c\nsecond-token-012345 subscription:s";
    let bench = bench(&[("USAGE_PRODUCER_TOKEN", tokens)]).await;
    subscribe(&bench, "s", "c");
    let body = |customer: &str| json!({ "event": of(customer, "t") }).to_string();
    for (token, customer, expected) in [
        ("second-token-012345", "c", 403),
        ("second-token-012345", "s", 403),
        ("first-token-0123456", "other", 403),
        ("first-token-0123456", "c", 200),
    ] {
        let (status, answer) = bench.request(Method::POST, "/api/v1/events", Some(token), body(customer)).await;
        assert_eq!(status, expected, "{token} {customer}: {answer}");
    }
    assert_eq!(bench.resolved().await, [(1, 0), (1, 0)]);
    let see = async |token| bench.request(Method::GET, "/api/v1/events/t", Some(token), String::new()).await;
    assert_eq!(see("first-token-0123456").await.1["event"]["status"], "confirmed");
    assert_eq!(see("second-token-012345").await.0, 200, "it is the subscription's by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloudevent_may_be_about_a_customer() {
    let bench = bench(&[]).await;
    subscribe(&bench, "s/1", "c/1");
    let event = json!({ "specversion": "1.0", "id": "e-1", "source": "/apps/a", "type": "api_calls",
        "subject": "customer/c/1", "time": "2024-11-19T07:06:40Z", "data": { "calls": 2 } });
    let headers = [("content-type", "application/cloudevents+json")];
    assert_eq!(bench.send("/api/v1/cloudevents", &headers, event.to_string()).await.0, 200);

    assert_eq!(bench.resolved().await, [(1, 0), (1, 0)]);
    let billed = bench.billed();
    assert!(billed.len() == 1 && billed[0].starts_with("s/1/ce-"), "{billed:?}");
}
