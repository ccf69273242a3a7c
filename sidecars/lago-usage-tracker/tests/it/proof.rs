//! Whether Lago has counted what it has confirmed: the ledger, drifts and the canary.

use std::time::{Duration, Instant};

use kit_lago::stand_in::billing::{
    AggregationType, Effect, Fault, Faults, LagoServer, Latency, Metric, Profile, Subscription, When,
};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use serde_json::{Value, json};

use crate::bench::*;

pub(crate) const SETTLE: (&str, &str) = ("SIDECAR_RECONCILE__SETTLING_SECONDS", "0.1");
const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) fn prepare(lago: &LagoServer) {
    lago.put_metric(Metric::new("api_calls", AggregationType::Sum, Some("calls")));
    lago.put_metric(Metric::new("visits", AggregationType::Count, None));
    lago.put_metric(Metric::new("seats", AggregationType::UniqueCount, Some("seat")));
    for subscription in ["s-0", "s-1"] {
        let started = "2024-01-01T00:00:00Z".parse().unwrap();
        lago.put_subscription(Subscription::active(subscription, "customer", "plan", started));
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn event(n: usize) -> Value {
    let (code, properties) = match n % 3 {
        0 => ("api_calls", format!(r#"{{"calls":0.{:02}}}"#, n % 100)),
        1 => ("visits", "{}".to_owned()),
        _ => ("seats", format!(r#"{{"seat":"{}"}}"#, n % 11)),
    };
    let text = format!(
        r#"{{"transaction_id":"t-{n}","external_subscription_id":"s-{}","code":"{code}","timestamp":{},"properties":{properties}}}"#,
        n % 2,
        now()
    );
    serde_json::from_str(&text).unwrap()
}

/// The ledger after a comparison that begins now.
pub(crate) async fn compared(bench: &Bench) -> Value {
    let started = bench.act("/api/v1/usage/reconcile").await;
    let since = started["at"].as_str().unwrap().to_owned();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let ledger = bench.api("/api/v1/usage/ledger").await;
        if ledger["compared_at"].as_str().is_some_and(|at| at >= since.as_str()) {
            return ledger;
        }
        assert!(Instant::now() < deadline, "no comparison: {ledger}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn states(ledger: &Value) -> Vec<String> {
    let rows = ledger["rows"].as_array().unwrap().iter();
    let text = |row: &Value| {
        let field = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {} {} {}", field("subscription"), field("code"), row["events"], field("units"), field("state"))
    };
    rows.map(text).collect()
}

/// Kills, and a Lago that does what it is asked and says otherwise: the ledger counts each event once.
#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_holds_what_lago_has_counted_whatever_dies() {
    // However often Lago says otherwise, by chance, no event is given up.
    let schedule = ["0.1"; 40].join(",");
    for profile in Profile::ALL {
        let env = [SETTLE, ("SIDECAR_LAGO__RETRY_SCHEDULE_SECONDS", schedule.as_str())];
        let mut bench = Bench::beside(profile, &env, prepare).await;
        let rules = vec![
            Fault::new(Effect::DoneThenClosed, When::Chance(0.2)),
            Fault::new(Effect::DoneThenAnswer(500), When::Chance(0.2)),
        ];
        bench.lago.set_faults(Faults { rules, ..Faults::default() });
        let events: Vec<Value> = (0..600).map(event).collect();
        for part in events.chunks(60) {
            bench.report(part).await;
            bench.restart().await;
        }
        bench.lago.set_faults(Faults::default());
        let sinks = bench.until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0).await;
        assert_eq!(sinks["lago"]["parked"], 0, "{sinks}");

        let ledger = compared(&bench).await;

        let units = |first: usize| {
            let hundredths: usize = (first..600).step_by(6).map(|n| n % 100).sum();
            format!("{}.{:02}", hundredths / 100, hundredths % 100)
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
        };
        let expected = [
            format!("s-0 api_calls 100 {} equal", units(0)),
            "s-0 seats 100 - unknown".to_owned(),
            "s-0 visits 100 100 equal".to_owned(),
            format!("s-1 api_calls 100 {} equal", units(3)),
            "s-1 seats 100 - unknown".to_owned(),
            "s-1 visits 100 100 equal".to_owned(),
        ];
        assert_eq!(states(&ledger), expected, "{profile:?} {ledger}");
        let metrics = bench.metrics().await;
        assert_eq!(metrics.get("usage_ledger_pairs", &[("state", "equal")]), Some(4.0));
        assert_eq!(metrics.get("usage_missing_events", &[]), Some(0.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lago_does_not_count_is_told_once_and_what_others_report_is_not_ours() {
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let url = gateway.url();
    let bench = Bench::beside(Profile::V1_39, &[SETTLE, ("SIDECAR_GATEWAY__URL", &url)], prepare).await;
    bench.lago.set_faults(Faults { usage_lag: HOUR, ..Faults::default() });
    bench.report(&(0..6).map(event).collect::<Vec<_>>()).await;
    bench.until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0).await;

    for _ in 0..2 {
        let ledger = compared(&bench).await;
        assert_eq!(ledger["rows"].as_array().unwrap().len(), 6);
        // Of different values Lago does not say how many events they come from.
        for row in ledger["rows"].as_array().unwrap().iter().filter(|row| row["code"] != "seats") {
            assert_eq!((&row["state"], &row["missing_events"]), (&json!("missing"), &row["events"]), "{row}");
        }
    }
    assert_eq!(bench.metrics().await.get("usage_missing_events", &[]), Some(4.0));
    gateway.wait_for_unique(4, DEADLINE).await.unwrap();
    // Told once: the second comparison said the same.
    bench.until_sinks("telling", |sinks| sinks["gateway"]["pending"] == 0 && sinks["gateway"]["delivered"] == 4).await;
    assert!(gateway.received().iter().all(|told| told.event_type.as_deref() == Some("usage.drift")));

    bench.lago.set_faults(Faults::default());
    let ledger = compared(&bench).await;
    assert!(states(&ledger).iter().all(|row| row.ends_with(" equal") || row.contains(" seats ")), "{ledger}");

    // Somebody else reports to Lago itself.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "event": { "transaction_id": "theirs", "external_subscription_id": "s-0", "code": "visits",
        "timestamp": now() } });
    let theirs = client.post(format!("{}/api/v1/events", bench.lago.url())).bearer_auth(API_KEY).json(&body);
    assert_eq!(theirs.send().await.unwrap().status(), 200);
    let ledger = compared(&bench).await;
    let visits = ledger["rows"].as_array().unwrap().iter().find(|row| row["code"] == "visits").unwrap();
    assert_eq!((&visits["state"], &visits["surplus_events"]), (&json!("surplus"), &json!(1)), "{ledger}");
    let page = bench.api("/api/v1/usage/ledger?limit=4&code=visits").await;
    assert_eq!((page["rows"].as_array().unwrap().len(), &page["next"]), (2, &Value::Null));
    let page = bench.api("/api/v1/usage/ledger?limit=4").await;
    let next =
        percent_encoding::utf8_percent_encode(page["next"].as_str().unwrap(), percent_encoding::NON_ALPHANUMERIC);
    let rest = bench.api(&format!("/api/v1/usage/ledger?limit=4&after={next}")).await;
    assert_eq!(rest["rows"].as_array().unwrap().len(), 2);
}

/// An operator who has everything delivered again: what Lago has confirmed is left, and counted once.
#[tokio::test(flavor = "multi_thread")]
async fn what_lago_has_is_neither_sent_nor_counted_again() {
    let bench = Bench::beside(Profile::V1_39, &[SETTLE], prepare).await;
    bench.report(&(0..6).map(event).collect::<Vec<_>>()).await;
    bench.until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0).await;
    let requests = bench.lago.counts().batches;
    let select = json!({ "select": { "sink": "lago", "type": "usage.*", "state": "delivered" } });
    let result = bench.act_with("/api/v1/deliveries/replay", &select).await;
    assert_eq!((&result["matched"], &result["changed"], &result["unchanged"]), (&json!(6), &json!(0), &json!(6)));
    let ledger = compared(&bench).await;
    assert!(states(&ledger).iter().all(|row| row.ends_with(" equal") || row.contains(" seats ")), "{ledger}");
    assert_eq!(bench.lago.counts().batches, requests);
}

/// A person drops events that are on their way to Lago, and has them sent later after all.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_on_its_way_and_sent_again_is_counted_once() {
    for profile in Profile::ALL {
        let bench = Bench::beside(profile, &[SETTLE, ("SIDECAR_LAGO__TIMEOUT__TOTAL_SECONDS", "10")], prepare).await;
        knows(&bench, "Lago has told its metrics and subscriptions").await;
        // Long enough for a commit on a busy machine.
        let slow = Latency::Fixed(Duration::from_secs(3));
        bench.lago.set_faults(Faults { latency: slow, ..Faults::default() });
        bench.report(&(0..6).map(event).collect::<Vec<_>>()).await;
        bench.lago.wait_until(DEADLINE, |counts| counts.batches == 1).await.unwrap();
        let select =
            json!({ "select": { "sink": "lago", "type": "usage.*", "state": "pending" }, "reason": "a mistake" });
        let dropped = bench.act_with("/api/v1/deliveries/drop", &select).await;
        assert_eq!(dropped["changed"], 6, "{dropped}");
        bench.until_sinks("arriving", |sinks| sinks["lago"]["pending"] == 0 && sinks["lago"]["delivered"] == 6).await;
        assert_eq!(bench.lago.ledger().len(), 6);
        bench.lago.set_faults(Faults::default());

        for state in ["dropped", "delivered"] {
            let select = json!({ "select": { "sink": "lago", "type": "usage.*", "state": state } });
            let again = bench.act_with("/api/v1/deliveries/replay", &select).await;
            assert_eq!(again["changed"], 0, "{state} {again}");
        }
        bench.until_sinks("settling", |sinks| sinks["lago"]["pending"] == 0).await;

        let ledger = compared(&bench).await;
        assert!(states(&ledger).iter().all(|row| row.ends_with(" equal") || row.contains(" seats ")), "{ledger}");
        let events: u64 = ledger["rows"].as_array().unwrap().iter().filter_map(|row| row["events"].as_u64()).sum();
        assert_eq!(events, 6, "{profile:?} {ledger}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lago_that_does_not_answer_is_no_drift() {
    let bench = Bench::beside(Profile::V1_16, &[SETTLE], prepare).await;
    bench.report(&(0..6).map(event).collect::<Vec<_>>()).await;
    bench.until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0).await;
    bench.lago.set_faults(Faults { no_active_subscription: true, ..Faults::default() });
    let ledger = compared(&bench).await;
    assert!(states(&ledger).iter().all(|row| row.ends_with(" unknown")), "{ledger}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_lago_stops_counting_is_told() {
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let url = gateway.url();
    let env = [
        ("SIDECAR_GATEWAY__URL", url.as_str()),
        ("SIDECAR_CANARY__SUBSCRIPTION", "s-0"),
        ("SIDECAR_CANARY__CODE", "visits"),
        ("SIDECAR_CANARY__EVERY_SECONDS", "1"),
        ("SIDECAR_CANARY__ALARM_SECONDS", "8"),
    ];
    let bench = Bench::beside(Profile::V1_39, &env, prepare).await;
    let waits = async |wanted: &dyn Fn(f64) -> bool| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let metrics = bench.metrics().await;
            let seconds = metrics.get("usage_canary_unbilled_seconds", &[]).unwrap_or_default();
            let sent = metrics.get("usage_canary_events_total", &[]).unwrap_or_default();
            if sent >= 2.0 && wanted(seconds) {
                return;
            }
            assert!(Instant::now() < deadline, "{seconds} s, {sent} sent");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    waits(&|seconds| seconds < 8.0).await;
    assert!(gateway.received().is_empty());

    bench.lago.set_faults(Faults { usage_lag: HOUR, ..Faults::default() });
    waits(&|seconds| seconds >= 8.0).await;
    gateway.wait_for_unique(1, DEADLINE).await.unwrap();
    bench.lago.set_faults(Faults::default());
    waits(&|seconds| seconds < 8.0).await;
    gateway.wait_for_unique(2, DEADLINE).await.unwrap();

    let told: Vec<Option<String>> = gateway.received().into_iter().map(|told| told.event_type).collect();
    assert_eq!(told, [Some("usage.canary_unbilled".to_owned()), Some("usage.canary_billed".to_owned())]);
}

/// A canary that is looked for every second, and is late after so many.
fn canary<'a>(gateway: &'a str, alarm_seconds: &'a str) -> [(&'a str, &'a str); 6] {
    [
        ("SIDECAR_GATEWAY__URL", gateway),
        ("SIDECAR_CANARY__SUBSCRIPTION", "s-0"),
        ("SIDECAR_CANARY__CODE", "visits"),
        ("SIDECAR_CANARY__EVERY_SECONDS", "1"),
        ("SIDECAR_CANARY__ALARM_SECONDS", alarm_seconds),
        ("SIDECAR_CHECKS__REFRESH_SECONDS", "1"),
    ]
}

/// The kinds of what was told. What was on its way when the daemon was killed may come twice, under one id.
fn told(gateway: &Gateway) -> Vec<String> {
    let mut ids = std::collections::BTreeSet::new();
    let received = gateway.received().into_iter().filter(|told| ids.insert(told.event_id.clone()));
    received.filter_map(|told| told.event_type).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_goes_on_waiting_after_a_restart() {
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let url = gateway.url();
    let mut bench = Bench::beside(Profile::V1_39, &canary(&url, "3"), prepare).await;
    bench.lago.set_faults(Faults { usage_lag: HOUR, ..Faults::default() });
    gateway.wait_for_unique(1, DEADLINE).await.unwrap();

    bench.restart().await;
    bench.lago.set_faults(Faults::default());
    gateway.wait_for_unique(2, DEADLINE).await.unwrap();

    assert_eq!(told(&gateway), ["usage.canary_unbilled", "usage.canary_billed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_whose_subscription_has_ended_is_told() {
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let url = gateway.url();
    // Long enough that the end is known before it is late.
    let bench = Bench::beside(Profile::V1_39, &canary(&url, "10"), prepare).await;
    bench.lago.set_faults(Faults { usage_lag: HOUR, ..Faults::default() });
    let deadline = Instant::now() + DEADLINE;
    while bench.metrics().await.get("usage_canary_unbilled_seconds", &[]).unwrap_or_default() == 0.0 {
        assert!(Instant::now() < deadline, "nothing waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    bench.lago.end_subscription("s-0", jiff::Timestamp::now());
    gateway.wait_for_unique(1, DEADLINE).await.unwrap();

    assert_eq!(told(&gateway), ["usage.canary_unbilled"]);
}

/// What nobody takes any more is passed by, so that it keeps nothing from being removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_configured_any_more_is_waited_for_by_nothing() {
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let url = gateway.url();
    let mut bench = Bench::beside(Profile::V1_39, &[("SIDECAR_GATEWAY__URL", &url)], prepare).await;
    bench.unset("SIDECAR_GATEWAY__URL");
    bench.restart().await;
    bench.report(&(0..6).map(event).collect::<Vec<_>>()).await;
    bench
        .until_sinks("passing by", |sinks| sinks["gateway"]["pending"] == 0 && sinks["gateway"]["filtered"] == 6)
        .await;
}

/// Each sink takes one kind of event. To the others an event is filtered: it is listed so, and there is nothing to send again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_a_sink_is_listed_as_filtered_and_not_sent_there_by_a_replay() {
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let url = gateway.url();
    let bench = Bench::beside(Profile::V1_39, &[("SIDECAR_GATEWAY__URL", &url)], prepare).await;
    bench.report(&(0..3).map(event).collect::<Vec<_>>()).await;
    let is_done = |sinks: &Value| {
        sinks["lago"]["delivered"] == 3 && sinks["gateway"]["filtered"] == 3 && sinks["resolve"]["filtered"] == 3
    };
    let before = bench.until_sinks("sending", is_done).await;

    let events = bench.api("/api/v1/events").await["events"].as_array().unwrap().clone();
    assert_eq!(events.len(), 3);
    for event in &events {
        let shown = bench.api(&format!("/api/v1/events/{}", event["id"].as_str().unwrap())).await;
        for deliveries in [&event["deliveries"], &shown["deliveries"]] {
            let states = ["lago", "gateway", "resolve"].map(|sink| deliveries[sink]["state"].as_str().unwrap());
            assert_eq!(states, ["delivered", "filtered", "filtered"], "{shown}");
        }
    }
    for (query, count) in [
        ("state=filtered&sink=gateway", 3),
        ("state=delivered&sink=gateway", 0),
        ("state=delivered&sink=lago", 3),
        ("state=filtered&sink=lago", 0),
        ("state=filtered", 3),
        ("state=delivered", 3),
    ] {
        let listed = bench.api(&format!("/api/v1/events?{query}")).await;
        assert_eq!(listed["events"].as_array().unwrap().len(), count, "{query}: {listed}");
    }
    let ids: Vec<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    for (select, matched) in [
        (json!({ "sink": "gateway", "ids": ids }), 3),
        (json!({ "sink": "gateway", "state": "filtered" }), 3),
        (json!({ "sink": "gateway", "state": "delivered" }), 0),
    ] {
        let replayed = bench.act_with("/api/v1/deliveries/replay", &json!({ "select": select })).await;
        let counts = ["matched", "changed", "unchanged", "unavailable"].map(|name| replayed[name].as_u64().unwrap());
        assert_eq!(counts, [matched, 0, matched, 0], "{select}: {replayed}");
    }
    let after = bench.until_sinks("counting", is_done).await;
    for sink in ["gateway", "resolve"] {
        assert_eq!(after[sink]["delivered"], before[sink]["delivered"]);
        assert_eq!(after[sink]["pending"], 0);
    }
    assert!(gateway.received().is_empty(), "usage is no alert");
}

/// Of these Lago does not say how many events it has counted, or counts on from period to period.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_on_a_metric_that_counts_no_events_tells_so_and_never_cries() {
    let env = [
        ("SIDECAR_CANARY__SUBSCRIPTION", "s-0"),
        ("SIDECAR_CANARY__CODE", "seats"),
        ("SIDECAR_CANARY__PROPERTIES__SEAT", "x"),
        ("SIDECAR_CANARY__EVERY_SECONDS", "1"),
        ("SIDECAR_CANARY__ALARM_SECONDS", "2"),
    ];
    let bench = Bench::beside(Profile::V1_39, &env, prepare).await;
    knows(&bench, "the canary cannot tell whether Lago counts").await;

    let confirmed = bench.wait("confirming some", |row| row["delivered"] == 5).await;

    assert_eq!(confirmed["parked"], 0);
    let seconds = bench.metrics().await.get("usage_canary_unbilled_seconds", &[]).unwrap_or_default();
    assert_eq!(seconds, 0.0);
}

/// Its interval began before its subscription did.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_of_a_canary_is_of_when_it_came() {
    let env = [
        ("SIDECAR_CANARY__SUBSCRIPTION", "new"),
        ("SIDECAR_CANARY__CODE", "visits"),
        ("SIDECAR_CANARY__EVERY_SECONDS", "86400"),
        ("SIDECAR_CHECKS__UNKNOWN_METRIC", "park"),
        ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park"),
    ];
    let mut bench = Bench::beside(Profile::V1_39, &env, |lago| {
        prepare(lago);
        let started = jiff::Timestamp::from_second(now() - 5).unwrap();
        lago.put_subscription(Subscription::active("new", "customer", "plan", started));
    })
    .await;

    bench.wait("sending it", |row| row["delivered"] == 1 || row["parked"] == 1).await;
    bench.restart().await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(0)));
    assert_eq!(bench.billed().len(), 1);
}
