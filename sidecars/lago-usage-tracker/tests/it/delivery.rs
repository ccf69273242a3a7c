//! What reaches Lago: every event once, with the same bytes however often it is sent, whatever Lago does.

use std::time::Duration;

use kit_lago::stand_in::billing::{Effect, Fault, Faults, LagoServer, Profile, When};
use serde_json::{Value, json};

use crate::bench::*;

fn events(count: usize) -> Vec<Value> {
    (0..count)
        .map(|n| usage(&format!("s-{}", n % 7), &format!("t-{n}"), &format!("{}.{:02}", n % 13, n % 100)))
        .collect()
}

fn just(effect: Effect, when: When) -> Faults {
    Faults::just(effect, when)
}

/// It has stored the batch and says something else, or nothing: what is sent again is known, and done.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_done_and_said_otherwise_is_billed_once() {
    for profile in Profile::ALL {
        let bench = Bench::new(profile).await;
        for effect in [Effect::DoneThenClosed, Effect::DoneThenAnswer(500), Effect::DoneThenSilent, Effect::Reset] {
            let rule = Fault::new(effect, When::Next(3));
            bench.lago.set_faults(Faults { rules: vec![rule], ..Faults::default() });
            let prefix = format!("{effect:?}");
            let events: Vec<Value> = (0..300).map(|n| usage("s", &format!("{prefix}-{n}"), "1.50")).collect();
            bench.report(&events).await;
            let row = bench.settled().await;
            assert_eq!(row["parked"], 0, "{profile:?} {effect:?}");
        }
        assert_eq!(bench.billed().len(), 1_200, "{profile:?}");
        assert_eq!(bench.lago.differing_retries(), 0, "{profile:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_waits_while_lago_is_away_and_none_is_lost() {
    let mut bench = Bench::new(Profile::V1_16).await;
    let events = events(1_000);
    let (address, before) = (bench.lago.address(), bench.billed());
    assert!(before.is_empty());
    let state =
        std::mem::replace(&mut bench.lago, LagoServer::start(Profile::V1_16, "x".to_owned().into()).await.unwrap())
            .stop()
            .await;
    bench.report(&events).await;
    bench.wait("the circuit", |row| row["status"]["circuit"] == "open" && row["pending"] == 1_000).await;
    bench.restart().await;

    bench.lago = LagoServer::start_with(address, state).await.unwrap();
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1_000), &json!(0)));
    let mut expected: Vec<String> = events
        .iter()
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap().to_owned();
            let (subscription, transaction) = (text("external_subscription_id"), text("transaction_id"));
            format!("{subscription}/{transaction} api_calls 1732000000 {}", event["properties"])
        })
        .collect();
    expected.sort();
    assert_eq!(bench.billed(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_lago_cannot_stand_is_parked_alone() {
    let bench = Bench::new(Profile::V1_39).await;
    bench.lago.set_faults(Faults { poisoned_transaction_ids: ["t-50".to_owned()].into(), ..Faults::default() });

    bench.report(&events(200)).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(199), &json!(1)));
    let (_, answer) = bench.get("/api/v1/events/t-50").await;
    assert_eq!(answer["event"]["status"], "parked");
    assert!(answer["event"]["reason"].as_str().unwrap().contains("500"), "{answer}");
    assert_eq!(bench.billed().len(), 199);
}

/// A key that was withdrawn is an operator's mistake: nothing is parked, and nothing is tried but now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_api_key_stops_the_sender_and_costs_no_event() {
    for status in [401, 403] {
        let bench = Bench::new(Profile::V1_39).await;
        bench.lago.set_faults(just(Effect::Answer(status), When::Always));
        bench.report(&events(300)).await;
        assert!(bench.lago.wait_until(DEADLINE, |counts| counts.refused_posts + counts.faults >= 8).await.is_ok());
        let sinks = bench.api("/api/v1/sinks").await;
        assert!(sinks.to_string().contains("LAGO_API_KEY"), "{sinks}");
        let row = bench.wait("standing still", |row| row["parked"] == 0 && row["delivered"] == 0).await;
        assert_eq!(row["pending"], 300);

        bench.lago.set_faults(Faults::default());
        let row = bench.settled().await;

        assert_eq!((&row["delivered"], &row["parked"]), (&json!(300), &json!(0)), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_pause_is_kept() {
    let bench = Bench::new(Profile::V1_39).await;
    let pause = Effect::TooManyRequests { limit: 10, reset_seconds: 1 };
    bench.lago.set_faults(just(pause, When::Next(1)));
    let begin = std::time::Instant::now();

    bench.report(&events(10)).await;
    let row = bench.settled().await;

    assert!(begin.elapsed() >= Duration::from_millis(950), "{:?}", begin.elapsed());
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(10), &json!(0)));
    assert_eq!(bench.lago.counts().batches, 2);
}

/// Lago tells the events of a batch apart by their transaction ids alone.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_several_subscriptions_with_one_id_are_all_billed() {
    for profile in Profile::ALL {
        let bench = Bench::new(profile).await;
        let events: Vec<Value> = (0..50).map(|n| usage(&format!("s-{n}"), "the-same", "1")).collect();

        bench.report(&events).await;
        let row = bench.settled().await;

        assert_eq!(row["delivered"], 50, "{profile:?}");
        assert_eq!(bench.billed().len(), 50, "{profile:?}");
        assert_eq!(bench.lago.counts().in_batch_duplicates, 0);
    }
}

/// Something answers 200 that is not Lago: a proxy, a login page.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_lagos_is_no_delivery() {
    let bench = Bench::new(Profile::V1_39).await;
    bench.lago.set_faults(just(Effect::Answer(200), When::Next(3)));

    bench.report(&events(10)).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(10), &json!(0)));
    assert_eq!(bench.billed().len(), 10);
}

/// A gateway that takes no such request, or the wrong port: what is parked for it would be all there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_is_not_lagos_parks_nothing_at_once() {
    for status in [400, 406, 410, 421, 431, 451] {
        let bench = Bench::new(Profile::V1_39).await;
        bench.lago.set_faults(just(Effect::Page(status), When::Next(2)));

        bench.report(&events(1)).await;
        let row = bench.settled().await;

        assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(0)), "{status}");
    }
    // In Lago's own words it is about the event.
    let bench = Bench::new(Profile::V1_39).await;
    bench.lago.set_faults(just(Effect::Answer(400), When::Next(1)));
    bench.report(&events(1)).await;
    assert_eq!(bench.settled().await["parked"], 1);
}

/// Lago takes no more for a while, of anybody: that says nothing of any event.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_cost_no_event_anything() {
    let bench = Bench::new(Profile::V1_39).await;
    let pause = Effect::TooManyRequests { limit: 10, reset_seconds: 0 };
    bench.lago.set_faults(just(pause, When::Next(64)));

    bench.report(&events(10)).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(10), &json!(0)));
    let metrics = bench.metrics().await;
    let throttled = metrics.get("delivery_attempts_total", &[("sink", "lago"), ("outcome", "throttled")]);
    assert!(throttled >= Some(10.0), "{throttled:?}");
}

/// Events that cannot go together are requests of their own.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_a_second_are_made_than_lago_is_to_have() {
    let bench = Bench::with(Profile::V1_39, &[("SIDECAR_LAGO__RATE_PER_SECOND", "10")]).await;
    let events: Vec<Value> = (0..21).map(|n| usage(&format!("s-{n}"), "the-same", "1")).collect();
    let begin = std::time::Instant::now();

    bench.report(&events).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], bench.lago.counts().batches), (&json!(21), 21));
    assert!(begin.elapsed() >= Duration::from_millis(1_900), "{:?}", begin.elapsed());
}

/// However often it is tried, it is one event that was sent although Lago may not bill it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_sent_all_the_same_is_counted_once() {
    let bench = Bench::with(Profile::V1_39, &[]).await;
    knows(&bench, "Lago has told").await;
    bench.lago.set_faults(just(Effect::Answer(503), When::Next(3)));

    bench.report(&[usage("nobody", "t", "1")]).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(0)));
    let metrics = bench.metrics().await;
    let passed = metrics.get("usage_checks_failed_total", &[("check", "unknown_metric"), ("policy", "pass")]);
    assert_eq!(passed, Some(1.0));
}
