//! Late usage at a Lago whose list of subscriptions does not say which billing period is the current one (v1.16).

use std::time::Instant;

use kit_lago::stand_in::billing::{
    AggregationType, Effect, Fault, Faults, LagoServer, Metric, On, Profile, Subscription, When,
};
use serde_json::{Value, json};

use crate::bench::*;

const PARK: [(&str, &str); 3] = [
    ("SIDECAR_CHECKS__UNKNOWN_METRIC", "park"),
    ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park"),
    ("SIDECAR_CHECKS__LATE", "park"),
];

fn prepared(lago: &LagoServer) {
    lago.put_metric(Metric::new("visits", AggregationType::Count, None));
    let started = "2024-01-01T00:00:00Z".parse().unwrap();
    for id in ["s", "other"] {
        lago.put_subscription(Subscription::active(id, "customer", "plan", started));
    }
}

fn visit(subscription: &str, transaction: &str, timestamp: i64) -> Value {
    json!({ "transaction_id": transaction, "external_subscription_id": subscription, "code": "visits", "timestamp": timestamp })
}

fn now() -> i64 {
    kit::clock::Clock::now(&kit::clock::SystemClock).as_millis() / 1000
}

async fn reason(bench: &Bench, transaction: &str) -> String {
    let (_, answer) = bench.get(&format!("/api/v1/events/{transaction}")).await;
    assert_eq!(answer["event"]["status"], "parked", "{answer}");
    answer["event"]["reason"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn late_usage_is_parked_also_where_only_current_usage_tells_the_period() {
    for profile in Profile::ALL {
        let mut bench = Bench::beside(profile, &PARK, prepared).await;

        // The first event of a subscription is the late one: nothing was ever sent of it.
        bench.report(&[visit("s", "late", 1_732_000_000), visit("s", "good", now())]).await;
        let row = bench.settled().await;

        assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)), "{profile:?}");
        let reason = reason(&bench, "late").await;
        assert!(reason.starts_with("late: its time, 2024-11-19T07:06:40.000Z, is before the current"), "{reason}");

        // After a restart the ledger or Lago tells it again.
        bench.restart().await;
        bench.report(&[visit("s", "late-2", 1_732_000_000), visit("other", "good-2", now())]).await;
        let row = bench.settled().await;
        assert_eq!((&row["delivered"], &row["parked"]), (&json!(2), &json!(2)), "{profile:?}");
    }
}

/// Where Lago never tells, usage is sent: what waited for that would never be billed.
#[tokio::test(flavor = "multi_thread")]
async fn usage_of_which_lago_tells_no_period_is_sent_and_that_is_said() {
    let bench = Bench::beside(Profile::V1_16, &PARK, |lago| {
        prepared(lago);
        lago.set_faults(Faults { no_active_subscription: true, ..Faults::default() });
    })
    .await;

    bench.report(&[visit("s", "late", 1_732_000_000)]).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(0)));
    assert!(bench.daemon.stdout().contains("does not tell the billing period"), "it is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_may_be_late_waits_until_lago_can_be_asked() {
    let bench = Bench::beside(Profile::V1_16, &PARK, prepared).await;
    knows(&bench, "Lago has told").await;
    let silent = Fault::new(Effect::Reset, When::Always).on(On::Reading);
    bench.lago.set_faults(Faults { rules: vec![silent], ..Faults::default() });

    bench.report(&[visit("s", "late", 1_732_000_000), visit("other", "good", now())]).await;
    let deadline = Instant::now() + DEADLINE;
    while bench.metrics().await.get("delivery_attempts_total", &[("sink", "lago"), ("outcome", "withheld")]) < Some(2.0)
    {
        assert!(Instant::now() < deadline, "they are never withheld");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(bench.billed(), Vec::<String>::new());
    bench.lago.set_faults(Faults::default());
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)));
    assert!(reason(&bench, "late").await.starts_with("late: "));
}
