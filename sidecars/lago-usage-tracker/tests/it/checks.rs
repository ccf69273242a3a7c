//! What Lago would take and never bill is found before it is sent.

use kit_lago::stand_in::billing::{
    AggregationType, Effect, Fault, Faults, LagoServer, Metric, On, Profile, Subscription, When,
};
use serde_json::{Value, json};

use crate::bench::*;

const PARK: [(&str, &str); 2] =
    [("SIDECAR_CHECKS__UNKNOWN_METRIC", "park"), ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park")];
const REJECT: [(&str, &str); 4] = [
    ("SIDECAR_CHECKS__UNKNOWN_METRIC", "reject"),
    ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "reject"),
    ("SIDECAR_CHECKS__PROPERTY", "reject"),
    ("SIDECAR_CHECKS__TIME", "reject"),
];

fn subscribe(lago: &LagoServer, id: &str) {
    let started = "2024-01-01T00:00:00Z".parse().unwrap();
    lago.put_subscription(Subscription::active(id, "customer", "plan", started));
}

fn metrics(lago: &LagoServer) {
    lago.put_metric(Metric::new("api_calls", AggregationType::Sum, Some("calls")));
    lago.put_metric(Metric::new("visits", AggregationType::Count, None));
}

fn of(subscription: &str, transaction: &str, code: &str, properties: Value) -> Value {
    json!({ "transaction_id": transaction, "external_subscription_id": subscription, "code": code,
        "timestamp": 1_732_000_000, "properties": properties })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lago_would_not_bill_is_parked_with_a_reason_and_the_rest_is_sent() {
    let bench = Bench::beside(Profile::V1_39, &PARK, |lago| {
        metrics(lago);
        subscribe(lago, "s");
    })
    .await;
    bench
        .report(&[
            of("s", "good", "api_calls", json!({ "calls": 1 })),
            of("x", "nobody", "api_calls", json!({ "calls": 1 })),
            of("s", "typo", "api_cals", json!({ "calls": 1 })),
            of("s", "missing", "api_calls", json!({ "cals": 1 })),
            of("s", "words", "api_calls", json!({ "calls": "many" })),
            of("s", "power", "api_calls", json!({ "calls": "1e3" })),
            json!({ "transaction_id": "future", "external_subscription_id": "s", "code": "visits", "timestamp": 32_000_000_000_i64 }),
            json!({ "transaction_id": "past", "external_subscription_id": "s", "code": "visits", "timestamp": 17 }),
            of("s", "counted", "visits", json!({})),
        ])
        .await;

    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(2), &json!(7)));
    assert_eq!(bench.billed().len(), 2);
    for (transaction, expected) in [
        ("nobody", "no_subscription: Lago has no active subscription \"x\""),
        ("typo", "unknown_metric: Lago has no billable metric with the code \"api_cals\""),
        ("missing", "property: api_calls counts the property \"calls\", which the event does not have"),
        (
            "words",
            "property: api_calls counts the property \"calls\", which is not a number in the event: a text must hold plain digits, such as \"-1.5\"",
        ),
        (
            "power",
            "property: api_calls counts the property \"calls\", which is not a number in the event: a text must hold plain digits, such as \"-1.5\"",
        ),
        ("future", "time: its time, 2984-01-15T08:53:20.000Z, is in the future"),
        (
            "past",
            "time: its time, 1970-01-01T00:00:17.000Z, is before the subscription began, 2024-01-01T00:00:00.000Z",
        ),
    ] {
        let (_, answer) = bench.get(&format!("/api/v1/events/{transaction}")).await;
        assert_eq!((&answer["event"]["status"], &answer["event"]["reason"]), (&json!("parked"), &json!(expected)));
    }
    let metrics = bench.metrics().await;
    let refused = metrics.get("usage_lago_events_total", &[("result", "refused")]);
    assert_eq!(refused, Some(0.0), "Lago has refused none of them");
    let count = |check| metrics.get("usage_checks_failed_total", &[("check", check), ("policy", "park")]);
    assert_eq!((count("no_subscription"), count("property"), count("time")), (Some(1.0), Some(3.0), Some(2.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_subscription_that_was_just_made_is_sent() {
    let bench = Bench::beside(Profile::V1_39, &PARK, metrics).await;
    knows(&bench, "Lago has told").await;
    for n in 0..3 {
        let id = format!("new-{n}");
        subscribe(&bench.lago, &id);
        bench.report(&[of(&id, "t", "api_calls", json!({ "calls": 1 }))]).await;
        let row = bench.settled().await;
        assert_eq!((&row["delivered"], &row["parked"]), (&json!(n + 1), &json!(0)));
    }
}

/// Its producer had no answer and sends it again, after Lago has forgotten the metric: it is what was taken.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_is_not_rejected_when_it_comes_again() {
    let bench = Bench::beside(Profile::V1_39, &REJECT, |lago| {
        lago.put_metric(Metric::new("visits", AggregationType::Count, None));
        subscribe(lago, "s");
    })
    .await;
    knows(&bench, "Lago has told").await;
    let first = json!({ "event": of("s", "first", "visits", json!({})) });
    let (status, answer) = bench.post("/api/v1/events", &first).await;
    assert_eq!(status, 200, "{answer}");
    bench.lago.remove_metric("visits");
    // Lago is asked again before one is refused; where that takes long, an event is taken meanwhile.
    let deadline = std::time::Instant::now() + DEADLINE;
    let other = |n: u32| json!({ "event": of("x", &format!("other-{n}"), "visits", json!({})) });
    let mut sent = 0;
    while bench.post("/api/v1/events", &other(sent)).await.0 != 422 {
        assert!(std::time::Instant::now() < deadline, "what Lago has forgotten is never refused");
        sent += 1;
    }

    let (status, again) = bench.post("/api/v1/events", &first).await;
    assert_eq!((status, &again), (200, &answer));
    let batch = json!({ "events": [of("s", "first", "visits", json!({})), of("s", "second", "visits", json!({}))] });
    let (status, refused) = bench.post("/api/v1/events/batch", &batch).await;
    assert_eq!((status, &refused["error_details"]), (422, &json!({ "1": { "code": ["billable_metric_not_found"] } })));
    // Another event under its id is none that was taken.
    let other = json!({ "event": of("s", "first", "visits", json!({ "page": 2 })) });
    assert_eq!(bench.post("/api/v1/events", &other).await.0, 422);
}

/// Requests for what Lago knows.
fn asked(bench: &Bench) -> u64 {
    let counts = bench.lago.counts();
    counts.requests - counts.batches
}

/// What does not fit waits for the next look at Lago; what does is sent beside it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_does_not_fit_holds_up_nobody() {
    let bench = Bench::beside(Profile::V1_39, &PARK, |lago| {
        lago.put_metric(Metric::new("visits", AggregationType::Count, None));
        subscribe(lago, "s");
    })
    .await;
    knows(&bench, "Lago has told").await;
    bench.report(&[of("s", "seen", "visits", json!({}))]).await;
    bench.settled().await;
    // With the first event of a subscription Lago is asked for its billing period.
    let deadline = std::time::Instant::now() + DEADLINE;
    while !bench.api("/api/v1/usage/ledger").await["rows"][0]["from"].is_string() {
        assert!(std::time::Instant::now() < deadline, "the billing period is never asked for");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }

    // Where this took so long that the next look was due, it is made at once, and nothing can be told: then again.
    for round in 1.. {
        let before = asked(&bench);
        let (good, bad) = (format!("good-{round}"), format!("bad-{round}"));
        bench.report(&[of("s", &good, "visits", json!({})), of("x", &bad, "visits", json!({}))]).await;
        bench.wait("sending what fits", |row| row["delivered"] == 1 + round).await;
        let at_its_delivery = asked(&bench);
        let row = bench.settled().await;
        assert_eq!((&row["delivered"], &row["parked"]), (&json!(1 + round), &json!(round)));
        assert!(asked(&bench) > before, "what did not fit was not parked without a look");
        if at_its_delivery == before {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "what fits never goes without waiting for a look");
    }

    let metrics = bench.metrics().await;
    let withheld = metrics.get("delivery_attempts_total", &[("sink", "lago"), ("outcome", "withheld")]);
    assert!(withheld >= Some(1.0), "{withheld:?}");
    assert_eq!(metrics.get("delivery_circuit_open", &[("sink", "lago")]), Some(0.0));
}

/// A producer whose events never fit is a matter between it and us.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_never_fit_do_not_have_lago_asked_all_the_time() {
    // Before the first look: the looks are counted from there.
    let begin = std::time::Instant::now();
    let bench = Bench::with(Profile::V1_39, &PARK).await;
    knows(&bench, "Lago has told").await;
    let mut reported = 0;
    while begin.elapsed() < std::time::Duration::from_millis(7_500) {
        bench.report(&[of("x", &format!("t-{reported}"), "visits", json!({}))]).await;
        reported += 1;
        // As fast as such a producer may be.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    // At the start, 2 s later, another 2 s later, and the next one not before another 4 s, and so on: two requests each.
    let (asked, took) = (asked(&bench), begin.elapsed().as_secs());
    let looks = 1 + u64::from(took.ilog2());
    assert!((4..=2 * looks).contains(&asked), "{asked} requests in {took} s");
    let row = bench.settled().await;
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(0), &json!(reported)));
}

/// Lago's pages shift while they are read: what is not on them is no reason to park anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_was_not_read_whole_parks_nothing() {
    let bench = Bench::with(Profile::V1_16, &PARK).await;
    subscribe(&bench.lago, "s");
    knows(&bench, "Lago has told").await;
    metrics(&bench.lago);
    let shifted = Fault::new(Effect::Shifted, When::Next(1)).on(On::Reading);
    bench.lago.set_faults(Faults { rules: vec![shifted], ..Faults::default() });

    bench.report(&[of("s", "t", "visits", json!({}))]).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_dead_letters_is_told_in_one_line() {
    let mut bench = Bench::with(Profile::V1_39, &PARK).await;
    let events: Vec<Value> = (0..300).map(|n| of("x", &format!("t-{n}"), "visits", json!({}))).collect();
    bench.report(&events).await;
    assert_eq!(bench.settled().await["parked"], 300);

    let log = bench.daemon.whole_stdout(DEADLINE).await.unwrap();

    assert_eq!(log.matches("parked as a dead letter:").count(), 10, "{log}");
    let rest = "290 more events parked as dead letters within a minute, the last one: unknown_metric: Lago has no";
    assert_eq!(log.matches(rest).count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_sent_when_their_subscription_or_metric_appears() {
    let bench = Bench::with(Profile::V1_39, &[PARK[0], PARK[1], ("SIDECAR_CHECKS__REFRESH_SECONDS", "1")]).await;
    subscribe(&bench.lago, "s");
    let events: Vec<Value> = (0..700)
        .map(|n| match n % 3 {
            0 => of("later", &format!("t-{n}"), "visits", json!({})),
            1 => of("s", &format!("t-{n}"), "api_calls", json!({ "calls": 1 })),
            _ => of("never", &format!("t-{n}"), "visits", json!({})),
        })
        .collect();
    bench.report(&events).await;
    let row = bench.settled().await;
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(0), &json!(700)));

    metrics(&bench.lago);
    subscribe(&bench.lago, "later");
    let row = bench.wait("sending what fits", |row| row["parked"] == 233 && row["pending"] == 0).await;

    assert_eq!(row["delivered"], 467);
    assert_eq!(bench.billed().len(), 467);
    let audit = bench.api("/api/v1/audit").await;
    assert!(audit.to_string().contains("they fit what Lago knows by now"), "{audit}");
}

/// Our clock was behind, or the producer's ahead: an hour later it is no future any more.
#[tokio::test(flavor = "multi_thread")]
async fn usage_of_the_future_is_sent_when_its_time_has_come() {
    let env = [PARK[0], PARK[1], ("SIDECAR_CHECKS__REFRESH_SECONDS", "1"), ("SIDECAR_CHECKS__FUTURE_SECONDS", "1")];
    let bench = Bench::beside(Profile::V1_39, &env, |lago| {
        metrics(lago);
        subscribe(lago, "s");
    })
    .await;
    knows(&bench, "Lago has told").await;
    let now = kit::clock::Clock::now(&kit::clock::SystemClock).as_millis() / 1000;
    let event =
        json!({ "transaction_id": "t", "external_subscription_id": "s", "code": "visits", "timestamp": now + 12 });

    bench.report(&[event]).await;
    bench.wait("parking it", |row| row["parked"] == 1).await;
    let row = bench.wait("sending it", |row| row["delivered"] == 1).await;

    assert_eq!((&row["pending"], &row["parked"]), (&json!(0), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_rejected_is_refused_at_once_and_a_new_subscription_is_not() {
    let mut bench = Bench::beside(Profile::V1_39, &REJECT, |lago| {
        metrics(lago);
        subscribe(lago, "s");
    })
    .await;
    knows(&bench, "Lago has told").await;
    let events = json!({ "events": [
        of("s", "a", "api_calls", json!({ "calls": 1 })),
        of("x", "b", "visits", json!({})),
        of("s", "c", "nothing", json!({})),
        of("s", "d", "api_calls", json!({ "calls": [] })),
        json!({ "transaction_id": "e", "external_subscription_id": "s", "code": "visits", "timestamp": 17 }),
    ] });

    let (status, answer) = bench.post("/api/v1/events/batch", &events).await;

    assert_eq!(status, 422, "{answer}");
    assert_eq!(
        answer["error_details"],
        json!({
            "1": { "external_subscription_id": ["subscription_not_found"] },
            "2": { "code": ["billable_metric_not_found"] },
            "3": { "properties": ["value_is_invalid"] },
            "4": { "timestamp": ["value_is_out_of_range"] },
        })
    );
    assert_eq!(bench.api("/api/v1/statistics").await["accepted"], 0);
    subscribe(&bench.lago, "x");
    bench.report(&[of("x", "b", "visits", json!({}))]).await;
    bench.settled().await;

    // Also after a restart without Lago, as far as what it would say now does not matter.
    bench.lago.set_faults(Faults {
        rules: vec![Fault::new(Effect::Reset, When::Always).on(On::Everything)],
        ..Faults::default()
    });
    bench.restart().await;
    let past = json!({ "event": { "transaction_id": "e", "external_subscription_id": "s", "code": "visits", "timestamp": 17 } });
    assert_eq!(bench.post("/api/v1/events", &past).await.0, 422);
    let unknown = json!({ "event": of("y", "f", "visits", json!({})) });
    assert_eq!(bench.post("/api/v1/events", &unknown).await.0, 200, "Lago may know it by now");
    bench.lago.set_faults(Faults::default());
    let row = bench.settled().await;
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)));
}

/// Nothing is parked for a Lago that cannot be asked; it is asked when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn an_absent_lago_parks_nothing() {
    let bench = Bench::beside(Profile::V1_39, &PARK, |lago| {
        metrics(lago);
        subscribe(lago, "s");
    })
    .await;
    knows(&bench, "Lago has told").await;
    bench.lago.set_faults(Faults {
        rules: vec![Fault::new(Effect::Reset, When::Always).on(On::Everything)],
        ..Faults::default()
    });
    bench.report(&[of("new", "t", "visits", json!({})), of("never", "t", "visits", json!({}))]).await;
    let deadline = std::time::Instant::now() + DEADLINE;
    while !bench.api("/api/v1/sinks").await.to_string().contains("Lago cannot be asked about it now") {
        assert!(std::time::Instant::now() < deadline, "it is never tried");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let row = bench.wait("waiting", |_| true).await;
    assert_eq!((&row["pending"], &row["parked"]), (&json!(2), &json!(0)));

    subscribe(&bench.lago, "new");
    bench.lago.set_faults(Faults::default());
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)));
}

/// A proxy without its backend answers 404, and a key that is being replaced 401: Lago has said before what it knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_lago_that_says_nothing_for_a_while_parks_nothing() {
    for status in [401, 403, 404] {
        let bench = Bench::beside(Profile::V1_39, &PARK, |lago| {
            metrics(lago);
            subscribe(lago, "s");
        })
        .await;
        knows(&bench, "Lago has told").await;
        let silent = Fault::new(Effect::Answer(status), When::Always).on(On::Reading);
        bench.lago.set_faults(Faults { rules: vec![silent], ..Faults::default() });
        bench.report(&[of("new", "t", "visits", json!({})), of("never", "t", "visits", json!({}))]).await;
        bench
            .until_sinks("trying them", |sinks| {
                !sinks["lago"]["status"]["last_error"].is_null() || sinks["lago"]["parked"] != 0
            })
            .await;
        knows(&bench, "Lago does not tell its metrics and subscriptions").await;
        let row = bench.wait("waiting", |_| true).await;
        assert_eq!((&row["pending"], &row["parked"]), (&json!(2), &json!(0)), "{status}");

        subscribe(&bench.lago, "new");
        bench.lago.set_faults(Faults::default());
        let row = bench.settled().await;

        assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)), "{status}");
    }
}

/// The lists fail while events would be taken: nothing goes out that nobody has looked at.
#[tokio::test(flavor = "multi_thread")]
async fn before_lago_has_ever_told_what_it_knows_nothing_is_sent() {
    for effect in [Effect::Reset, Effect::Answer(500), Effect::Answer(404)] {
        let failing = Fault::new(effect, When::Always).on(On::Reading);
        let faults = Faults { rules: vec![failing], ..Faults::default() };
        let bench = Bench::beside(Profile::V1_39, &PARK, |lago| {
            metrics(lago);
            subscribe(lago, "s");
            lago.set_faults(faults);
        })
        .await;
        knows(&bench, "Lago does not tell its metrics and subscriptions").await;

        bench.report(&[of("x", "t", "visits", json!({})), of("s", "t", "visits", json!({}))]).await;
        bench
            .until_sinks("trying", |sinks| {
                sinks["lago"]["status"]["last_error"].is_string() || sinks["lago"]["pending"] == 0
            })
            .await;
        assert_eq!(bench.lago.counts().stored, 0, "{effect:?}");

        bench.lago.set_faults(Faults::default());
        let row = bench.settled().await;
        assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)), "{effect:?}");
    }
}

/// An API key that may send events and read nothing: what cannot be checked is sent.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_catalogue_events_are_sent_unchecked() {
    let denied = Fault::new(Effect::Answer(403), When::Always).on(On::Reading);
    let faults = Faults { rules: vec![denied], ..Faults::default() };
    let bench = Bench::beside(Profile::V1_39, &PARK, |lago| lago.set_faults(faults)).await;

    bench.report(&[of("x", "t", "visits", json!({}))]).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(0)));
}

/// A token for a customer is good for what Lago says is the customer's.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_customer_is_good_for_its_subscriptions() {
    let tokens = "first-token-0123456 customer:customer\nsecond-token-012345 customer:other";
    let bench = Bench::with(Profile::V1_39, &[PARK[0], PARK[1], ("USAGE_PRODUCER_TOKEN", tokens)]).await;
    metrics(&bench.lago);
    subscribe(&bench.lago, "s");
    let body = |customer: Value| {
        let mut event = of("s", "t", "visits", json!({}));
        event["external_customer_id"] = customer;
        json!({ "event": event }).to_string()
    };
    for (token, customer, expected) in [
        ("second-token-012345", Value::Null, 403),
        ("second-token-012345", json!("other"), 403),
        ("first-token-0123456", json!("other"), 403),
        ("first-token-0123456", Value::Null, 200),
    ] {
        let (status, answer) =
            bench.request(reqwest::Method::POST, "/api/v1/events", Some(token), body(customer.clone())).await;
        assert_eq!(status, expected, "{token} {customer}: {answer}");
    }
    for (token, expected) in [("first-token-0123456", 200), ("second-token-012345", 404)] {
        let shown = bench.request(reqwest::Method::GET, "/api/v1/events/t", Some(token), String::new()).await;
        assert_eq!(shown.0, expected, "{token}");
    }
}

/// 403 is for ever: a producer's library drops the event. So it is not said where Lago could not be asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_customers_producer_is_not_refused_for_good_while_lago_says_nothing() {
    let env = [PARK[0], PARK[1], ("USAGE_PRODUCER_TOKEN", "first-token-0123456 customer:customer")];
    for (status, told_before) in [(401, true), (404, true), (401, false)] {
        let silent = || Faults {
            rules: vec![Fault::new(Effect::Answer(status), When::Always).on(On::Reading)],
            ..Faults::default()
        };
        let bench = Bench::beside(Profile::V1_39, &env, |lago| {
            if !told_before {
                lago.set_faults(silent());
            }
        })
        .await;
        knows(&bench, if told_before { "Lago has told" } else { "Lago does not tell" }).await;
        bench.lago.set_faults(silent());
        metrics(&bench.lago);
        subscribe(&bench.lago, "new");
        let body = json!({ "event": of("new", "t", "visits", json!({})) }).to_string();
        let post = async || {
            bench.request(reqwest::Method::POST, "/api/v1/events", Some("first-token-0123456"), body.clone()).await
        };

        let (refused, answer) = post().await;
        assert_eq!(refused, 503, "{status} {told_before}: {answer}");

        bench.lago.set_faults(Faults::default());
        let deadline = std::time::Instant::now() + DEADLINE;
        while post().await.0 != 200 {
            assert!(std::time::Instant::now() < deadline, "it is never taken");
        }
    }
}

/// An external id that one customer gave up and another one has now.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_customer_that_had_an_id_does_not_bill_the_one_that_has_it() {
    let tokens = "first-token-0123456 customer:first\nsecond-token-012345 customer:second";
    let now = kit::clock::Clock::now(&kit::clock::SystemClock).as_millis() / 1000;
    let at = |seconds: i64| jiff::Timestamp::from_second(seconds).unwrap();
    let bench = Bench::beside(Profile::V1_39, &[PARK[0], PARK[1], ("USAGE_PRODUCER_TOKEN", tokens)], |lago| {
        metrics(lago);
        lago.put_subscription(Subscription::active("s", "first", "plan", at(now - 90_000)));
        assert!(lago.end_subscription("s", at(now - 6_000)));
        lago.put_subscription(Subscription::active("s", "second", "plan", at(now - 3_000)));
    })
    .await;
    knows(&bench, "Lago has told").await;
    let post = async |token: &str, transaction: &str, seconds: Option<i64>| {
        let mut event = json!({ "transaction_id": transaction, "external_subscription_id": "s", "code": "visits" });
        if let Some(seconds) = seconds {
            event["timestamp"] = json!(seconds);
        }
        let body = json!({ "event": event }).to_string();
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            let (status, _) = bench.request(reqwest::Method::POST, "/api/v1/events", Some(token), body.clone()).await;
            // Before a no Lago is asked again, which takes longer and longer.
            if status != 503 || std::time::Instant::now() >= deadline {
                break status;
            }
        }
    };

    for (token, transaction, seconds, expected) in [
        ("first-token-0123456", "a", None, 403),
        ("first-token-0123456", "b", Some(now - 60), 403),
        ("first-token-0123456", "c", Some(now - 7_000), 200),
        ("second-token-012345", "d", Some(now - 7_000), 403),
        ("second-token-012345", "e", None, 200),
        // Nobody had it then: whoever had it last before.
        ("first-token-0123456", "f", Some(now - 4_500), 200),
        ("second-token-012345", "g", Some(now - 4_500), 403),
    ] {
        assert_eq!(post(token, transaction, seconds).await, expected, "{token} {transaction}");
    }
    for (token, transaction, expected) in [
        ("first-token-0123456", "e", 404),
        ("second-token-012345", "e", 200),
        ("first-token-0123456", "c", 200),
        ("second-token-012345", "c", 404),
    ] {
        let path = format!("/api/v1/events/{transaction}");
        let shown = bench.request(reqwest::Method::GET, &path, Some(token), String::new()).await;
        assert_eq!(shown.0, expected, "{token} {transaction}");
    }
}

/// What happened before an upgrade or an end is billed.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_usage_of_a_subscription_is_sent_after_its_end() {
    let now = kit::clock::Clock::now(&kit::clock::SystemClock).as_millis() / 1000;
    let bench = Bench::beside(Profile::V1_39, &PARK, |lago| {
        metrics(lago);
        subscribe(lago, "s");
        assert!(lago.end_subscription("s", jiff::Timestamp::from_second(now - 60).unwrap()));
    })
    .await;
    let at = |transaction: &str, seconds: i64| json!({ "transaction_id": transaction, "external_subscription_id": "s", "code": "visits", "timestamp": seconds });

    bench.report(&[at("before", now - 90), at("after", now - 30)]).await;
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)));
    let (_, answer) = bench.get("/api/v1/events/after").await;
    assert!(answer["event"]["reason"].as_str().unwrap().contains("ended"), "{answer}");
}

/// A person mends Lago, has the parked event sent again, and does not have to wait for the timer.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_by_hand_is_judged_by_what_lago_says_then() {
    let env = [PARK[0], PARK[1], ("SIDECAR_CHECKS__REFRESH_SECONDS", "86400")];
    let bench = Bench::beside(Profile::V1_39, &env, |lago| {
        let started = "2024-01-01T00:00:00Z".parse().unwrap();
        lago.put_subscription(Subscription::active("s", "customer", "plan", started));
    })
    .await;
    bench.report(&[of("s", "early", "visits", json!({}))]).await;
    assert_eq!(bench.settled().await["parked"], 1);
    metrics(&bench.lago);
    let again = json!({ "select": { "sink": "lago", "state": "parked" } });
    assert_eq!(bench.act_with("/api/v1/deliveries/replay", &again).await["changed"], 1);
    bench.wait("sending it", |row| row["delivered"] == 1).await;
}

/// More events that do not fit than may wait, while Lago does not say whether they fit by now: none is lost, and those
/// that fit go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_that_does_not_fit_keeps_nothing_back_while_lago_cannot_be_asked() {
    const FLOOD: usize = 13_000;
    const MAY_WAIT: usize = 10_000;
    let bench = Bench::beside(Profile::V1_39, &PARK, |lago| {
        lago.put_metric(Metric::new("visits", AggregationType::Count, None));
        let started = "2024-01-01T00:00:00Z".parse().unwrap();
        lago.put_subscription(Subscription::active("s", "customer", "plan", started));
    })
    .await;
    knows(&bench, "Lago has told its metrics and subscriptions").await;
    let reads = Fault::new(Effect::Answer(500), When::Always).on(On::Reading);
    bench.lago.set_faults(Faults { rules: vec![reads], ..Faults::default() });
    let flood: Vec<Value> = (0..FLOOD).map(|n| of("not yet", &format!("f-{n}"), "visits", json!({}))).collect();
    let mut posted = 0;
    for batch in flood.chunks(5_000) {
        let (status, answer) = bench.post("/api/v1/events/batch", &json!({ "events": batch })).await;
        assert_eq!(status, 200, "{answer}");
        posted += batch.len();
    }
    bench.report(&(0..200).map(|n| of("s", &format!("t-{n}"), "visits", json!({}))).collect::<Vec<_>>()).await;

    let patience = std::time::Duration::from_secs(120);
    let delivered = bench.wait_for("delivering what fits", patience, |row| row["delivered"] == 200).await;

    let count = |row: &Value, field: &str| row[field].as_u64().unwrap();
    assert_eq!(count(&delivered, "pending") + count(&delivered, "parked"), posted as u64, "{delivered}");
    let all_told = bench.wait_for("parking what may not wait", patience, |row| row["parked"] == FLOOD - MAY_WAIT).await;
    assert_eq!(all_told["pending"], MAY_WAIT, "{all_told}");
    let metrics = bench.metrics().await;
    let parked = [("check", "no_subscription"), ("policy", "park")];
    assert_eq!(metrics.get("usage_checks_failed_total", &parked), Some((FLOOD - MAY_WAIT) as f64));
    knows(&bench, "many events wait until Lago can be asked").await;

    // Lago is well again, and has the subscription.
    let started = "2024-01-01T00:00:00Z".parse().unwrap();
    bench.lago.put_subscription(Subscription::active("not yet", "customer", "plan", started));
    bench.lago.set_faults(Faults::default());
    let row = bench.wait_for("sending all of it", patience * 2, |row| row["delivered"] == FLOOD + 200).await;
    assert_eq!((&row["pending"], &row["parked"]), (&json!(0), &json!(0)));
    assert_eq!(bench.lago.counts().stored, (FLOOD + 200) as u64);
}
