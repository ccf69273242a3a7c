//! A Lago with more subscriptions than are read: the active ones are known all the same.

use http::Method;
use kit_lago::stand_in::billing::{AggregationType, Metric, Profile, Subscription};
use serde_json::{Value, json};

use crate::bench::*;

const ALL: &str = "/api/v1/subscriptions?status[]=active&status[]=terminated&page=1&per_page=100";
const ACTIVE: &str = "/api/v1/subscriptions?status[]=active&page=1&per_page=100";
const ENV: [(&str, &str); 3] = [
    ("SIDECAR_CHECKS__UNKNOWN_METRIC", "park"),
    ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park"),
    ("SIDECAR_CHECKS__REFRESH_SECONDS", "1"),
];

fn visit(subscription: &str, transaction: &str) -> Value {
    json!({ "transaction_id": transaction, "external_subscription_id": subscription, "code": "visits",
        "timestamp": 1_732_000_000 })
}

/// The first page of a hundred thousand and one.
fn too_many() -> Value {
    json!({ "subscriptions": [], "meta": { "current_page": 1, "next_page": 2, "total_pages": 1_001, "total_count": 100_001 } })
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_subscriptions_the_active_ones_are_known_and_the_ended_ones_from_before() {
    let started = "2024-01-01T00:00:00Z".parse().unwrap();
    let subscribe = |id: &str| Subscription::active(id, "customer", "plan", started);
    let mut bench = Bench::beside(Profile::V1_39, &ENV, |lago| {
        lago.put_metric(Metric::new("visits", AggregationType::Count, None));
        lago.put_subscription(subscribe("ends"));
    })
    .await;
    knows(&bench, "Lago has told").await;
    bench.lago.answer_instead(Method::GET, ALL, 200, too_many());
    bench.lago.end_subscription("ends", jiff::Timestamp::now());
    bench.lago.put_subscription(subscribe("new"));

    bench.report(&[visit("new", "t"), visit("ends", "t"), visit("never", "t")]).await;
    let row = bench.settled().await;

    // What happened before its end is still billed.
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(2), &json!(1)));
    assert!(bench.daemon.stdout().contains("more than 100,000 subscriptions"));
    let gauge = async |bench: &Bench, name: &str| bench.metrics().await.get(&format!("usage_catalogue_{name}"), &[]);
    assert_eq!(gauge(&bench, "partial").await, Some(1.0));
    assert_eq!(gauge(&bench, "subscriptions").await, Some(2.0));
    let told = gauge(&bench, "told_timestamp_seconds").await;
    assert!(told > Some(1_732_000_000.0), "{told:?}");

    // So it is after a restart. Where the active ones are too many as well, what was known stands, and its age is told.
    bench.lago.answer_instead(Method::GET, ACTIVE, 200, too_many());
    bench.restart().await;
    bench.report(&[visit("ends", "t-2"), visit("new", "t-2")]).await;
    let row = bench.settled().await;
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(4), &json!(1)));
    let stands = gauge(&bench, "told_timestamp_seconds").await;
    let now = jiff::Timestamp::now().as_millisecond() as f64 / 1_000.0;
    assert!(stands > Some(1_732_000_000.0) && stands <= Some(now), "{stands:?}");

    bench.lago.answer_as_usual();
    let deadline = std::time::Instant::now() + DEADLINE;
    while gauge(&bench, "partial").await != Some(0.0) || gauge(&bench, "told_timestamp_seconds").await <= stands {
        assert!(std::time::Instant::now() < deadline, "the whole list is never read again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
