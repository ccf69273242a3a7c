//! Many small events that become few: what Lago adds up is what came in, whatever dies in between.

use kit_lago::stand_in::billing::{AggregationType, Effect, Fault, Faults, Metric, Profile, Subscription, When};
use kit_lago::usage::Quantity;
use serde_json::{Value, json};

use crate::bench::*;

const ROLLUP: [(&str, &str); 3] = [
    ("SIDECAR_ROLLUP__CODES", "gb,visits"),
    ("SIDECAR_ROLLUP__WINDOW_SECONDS", "1"),
    // However often Lago says by chance that it has not taken a sum, none is given up.
    ("SIDECAR_LAGO__RETRY_SCHEDULE_SECONDS", "0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1"),
];

async fn bench() -> Bench {
    Bench::beside(Profile::V1_16, &ROLLUP, |lago| {
        lago.put_metric(Metric::new("gb", AggregationType::Sum, Some("gb")));
        lago.put_metric(Metric::new("visits", AggregationType::Count, None));
        lago.put_metric(Metric::new("api_calls", AggregationType::Sum, Some("calls")));
        for subscription in ["s-0", "s-1", "s-2"] {
            let started = "2024-01-01T00:00:00Z".parse().unwrap();
            lago.put_subscription(Subscription::active(subscription, "customer", "plan", started));
        }
    })
    .await
}

fn gb(n: usize) -> Value {
    let event = format!(
        r#"{{"transaction_id":"t-{n}","external_subscription_id":"s-{}","code":"gb","timestamp":{},
            "properties":{{"gb":0.{:03},"region":"r-{}"}}}}"#,
        n % 3,
        1_732_000_000 + n % 7,
        n % 997,
        n % 2
    );
    serde_json::from_str(&event).unwrap()
}

/// Exact units by subscription and region.
fn totals<'a>(events: impl Iterator<Item = (&'a str, &'a Value)>) -> std::collections::BTreeMap<String, Quantity> {
    let mut totals = std::collections::BTreeMap::new();
    for (subscription, properties) in events {
        let raw: &serde_json::value::RawValue = &serde_json::value::to_raw_value(&properties["gb"]).unwrap();
        let total: &mut Quantity = totals.entry(format!("{subscription} {}", properties["region"])).or_default();
        *total += &Quantity::of_json(raw).unwrap();
    }
    totals
}

async fn rolled_up(bench: &Bench, expected: u64) -> Value {
    // What came out of the last window is counted when that is stored.
    bench
        .until_sinks("rolling up", |sinks| sinks["rollup"]["delivered"] == expected && sinks["rollup"]["pending"] == 0)
        .await;
    bench.until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lago_adds_up_what_came_in_whatever_dies_and_however_often_it_is_sent() {
    const COUNT: usize = 3_000;
    let mut bench = bench().await;
    let rules = vec![
        Fault::new(Effect::DoneThenClosed, When::Chance(0.1)),
        Fault::new(Effect::DoneThenAnswer(500), When::Chance(0.1)),
    ];
    bench.lago.set_faults(Faults { rules, ..Faults::default() });
    let events: Vec<Value> = (0..COUNT).map(gb).collect();
    for part in events.chunks(COUNT / 10) {
        bench.report(part).await;
        bench.restart().await;
        // A producer that was not answered sends again, and that is no other usage.
        bench.report(&part[..20]).await;
    }
    bench.lago.set_faults(Faults::default());
    let sinks = rolled_up(&bench, COUNT as u64).await;
    assert_eq!((&sinks["lago"]["parked"], bench.lago.differing_retries()), (&json!(0), 0), "{sinks}");

    let sent =
        totals(events.iter().map(|event| (event["external_subscription_id"].as_str().unwrap(), &event["properties"])));
    let ledger = bench.lago.ledger();
    let properties: Vec<(String, Value)> = ledger
        .iter()
        .map(|event| {
            let subscription = event.external_subscription_id.clone().unwrap_or_default();
            (subscription.to_string(), serde_json::from_str(&event.properties.to_string()).unwrap())
        })
        .collect();
    let billed = totals(properties.iter().map(|(subscription, properties)| (subscription.as_str(), properties)));
    assert_eq!(billed, sent);
    assert!(ledger.len() < COUNT / 10, "{} events for {COUNT}", ledger.len());
    let metrics = bench.metrics().await;
    assert!(metrics.get("usage_rollup_events_total", &[("result", "summed")]).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_a_sum_stands_where_the_sum_stands() {
    let bench = bench().await;
    bench.report(&[gb(1), gb(4)]).await;
    let (_, answer) = bench.get("/api/v1/events/t-1").await;
    assert!(["queued", "sent", "confirmed"].contains(&answer["event"]["status"].as_str().unwrap()), "{answer}");
    rolled_up(&bench, 2).await;
    for transaction in ["t-1", "t-4"] {
        let (status, answer) = bench.get(&format!("/api/v1/events/{transaction}")).await;
        assert_eq!((status, &answer["event"]["status"]), (200, &json!("confirmed")), "{answer}");
        assert_eq!(answer["event"]["transaction_id"], transaction);
    }
}

/// Not a sum, not a number, no such subscription: as it came, under its own transaction id.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_added_up_is_sent_as_it_came() {
    let bench = bench().await;
    let visit = json!({ "transaction_id": "v", "external_subscription_id": "s-0", "code": "visits", "timestamp": 1_732_000_000 });
    let words = json!({ "transaction_id": "w", "external_subscription_id": "s-0", "code": "gb", "timestamp": 1_732_000_000,
        "properties": { "gb": "much" } });
    bench.report(&[visit.clone(), visit, words, usage("s-0", "other", "1")]).await;
    let sinks = rolled_up(&bench, 2).await;
    assert_eq!((&sinks["lago"]["delivered"], &sinks["lago"]["parked"]), (&json!(2), &json!(1)), "{sinks}");
    let mut ids: Vec<String> = bench.lago.ledger().iter().map(|event| event.transaction_id.to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["other", "v"]);
    let (_, answer) = bench.get("/api/v1/events/w").await;
    assert_eq!(answer["event"]["status"], "parked", "{answer}");
}

/// What names only the customer is added up with what names the subscription.
#[tokio::test(flavor = "multi_thread")]
async fn a_customers_usage_is_added_up_too() {
    let bench = Bench::beside(Profile::V1_39, &ROLLUP, |lago| {
        lago.put_metric(Metric::new("gb", AggregationType::Sum, Some("gb")));
        let started = "2024-01-01T00:00:00Z".parse().unwrap();
        lago.put_subscription(Subscription::active("s-0", "customer", "plan", started));
    })
    .await;
    let mut of_customer = gb(3);
    of_customer["external_customer_id"] = json!("customer");
    of_customer.as_object_mut().unwrap().remove("external_subscription_id");
    of_customer["properties"]["region"] = json!("r-0");
    bench.report(&[gb(0), gb(6), of_customer]).await;
    rolled_up(&bench, 3).await;
    let (_, answer) = bench.get("/api/v1/events/t-3").await;
    assert_eq!(answer["event"]["status"], "confirmed", "{answer}");
    let events = bench.lago.ledger();
    let units = events.iter().map(|event| {
        let properties: Value = serde_json::from_str(&event.properties.to_string()).unwrap();
        properties["gb"].as_str().unwrap().parse::<Quantity>().unwrap()
    });
    let sum = units.fold(Quantity::default(), |mut sum, units| {
        sum += &units;
        sum
    });
    assert_eq!(sum.to_string(), "0.009");
}

/// What happened before the end is billed, and would not be as a part of a sum of after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sum_does_not_reach_over_the_end_of_its_subscription() {
    let env: Vec<(&str, &str)> = ROLLUP.into_iter().chain([("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park")]).collect();
    let bench = Bench::beside(Profile::V1_16, &env, |lago| {
        lago.put_metric(Metric::new("gb", AggregationType::Sum, Some("gb")));
        let started = "2024-01-01T00:00:00Z".parse().unwrap();
        lago.put_subscription(Subscription::active("s-0", "customer", "plan", started));
    })
    .await;
    knows(&bench, "Lago has told").await;
    let ended = jiff::Timestamp::now().as_second() - 5;
    assert!(bench.lago.end_subscription("s-0", jiff::Timestamp::from_second(ended).unwrap()));
    let event = |transaction: &str, seconds: i64, gb: &str| {
        json!({ "transaction_id": transaction, "external_subscription_id": "s-0", "code": "gb", "timestamp": seconds,
            "properties": { "gb": gb } })
    };
    bench
        .report(&[
            event("first", ended - 20, "0.125"),
            event("second", ended - 20, "0.25"),
            event("just before", ended - 1, "0.5"),
            event("at the end", ended, "1"),
            event("after", ended + 3, "2"),
        ])
        .await;
    let sinks = rolled_up(&bench, 5).await;

    assert_eq!(sinks["lago"]["parked"], 1, "{sinks}");
    let (_, answer) = bench.get("/api/v1/events/after").await;
    assert_eq!(answer["event"]["status"], "parked", "{answer}");
    let mut billed = bench.billed();
    billed.retain(|event| !event.starts_with("s-0/rollup-"));
    assert_eq!(billed.len(), 2, "within a second of the end each goes alone: {billed:?}");
    let sums: Vec<String> = bench.billed().into_iter().filter(|event| event.starts_with("s-0/rollup-")).collect();
    assert!(sums.len() == 1 && sums[0].ends_with(r#"{"gb":"0.375"}"#), "{sums:?}");
}
