//! What producers are answered: as Lago would, but for what Lago gets wrong.

use kit_lago::stand_in::billing::{Effect, Fault, Faults, On, Profile, When};
use reqwest::Method;
use serde_json::{Value, json};

use crate::bench::*;

fn lago_is_away() -> Faults {
    Faults { rules: vec![Fault::new(Effect::Reset, When::Always).on(On::Everything)], ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_answered_as_lago_answers_and_reaches_it_as_it_was_sent() {
    // As a JSON number Lago would read 0.1.
    let bench = Bench::new(Profile::V1_16).await;
    let body = r#"{"event":{"transaction_id":"t-1","external_subscription_id":"s-1","code":"gb","timestamp":1732000000.5,
        "precise_total_amount_cents":"12.5","properties":{"gb":0.10000000000000000001,"region":"eu"}}}"#;

    let (status, answer) = bench.request(Method::POST, "/api/v1/events", Some(PRODUCER), body.to_owned()).await;

    assert_eq!(status, 200, "{answer}");
    let event = &answer["event"];
    assert_eq!(event["transaction_id"], "t-1");
    assert_eq!(event["timestamp"], "2024-11-19T07:06:40.500Z");
    assert_eq!(event["external_subscription_id"], "s-1");
    assert_eq!((&event["lago_customer_id"], &event["lago_subscription_id"]), (&Value::Null, &Value::Null));
    assert!(event["lago_id"].as_str().unwrap().len() == 36 && event["created_at"].is_string());
    bench.settled().await;
    assert_eq!(bench.billed(), [r#"s-1/t-1 gb 1732000000.5 {"gb":"0.10000000000000000001","region":"eu"}"#]);
}

/// Answered once, the same answer for ever; another event under the same id is another matter.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_is_taken_once_and_another_one_under_its_id_not_at_all() {
    let mut bench = Bench::new(Profile::V1_39).await;
    let event = json!({ "event": { "transaction_id": "t", "external_subscription_id": "s", "code": "c" } });
    let first = bench.post("/api/v1/events", &event).await;
    assert_eq!(first.0, 200);

    for restarted in [false, true] {
        if restarted {
            bench.restart().await;
        }
        assert_eq!(bench.post("/api/v1/events", &event).await, first, "with the time of the first receipt");
        let other = json!({ "event": { "transaction_id": "t", "external_subscription_id": "s", "code": "d" } });
        let (status, answer) = bench.post("/api/v1/events", &other).await;
        assert_eq!((status, &answer["code"]), (422, &json!("validation_errors")));
        assert_eq!(answer["error_details"], json!({ "transaction_id": ["value_already_exist"] }));
        let elsewhere = json!({ "event": { "transaction_id": "t", "external_subscription_id": "s-2", "code": "d" } });
        assert_eq!(bench.post("/api/v1/events", &elsewhere).await.0, 200, "the id is the subscription's");
    }
    bench.settled().await;
    assert_eq!(bench.billed().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_is_taken_and_cut_for_lago() {
    let bench = Bench::new(Profile::V1_39).await;
    let events: Vec<Value> = (0..250).map(|n| usage("s", &format!("t-{n}"), "1")).collect();

    let (status, answer) = bench.post("/api/v1/events/batch", &json!({ "events": events })).await;

    assert_eq!(status, 200);
    let ids: Vec<_> = answer["events"].as_array().unwrap().iter().map(|event| &event["transaction_id"]).collect();
    assert_eq!(ids, events.iter().map(|event| &event["transaction_id"]).collect::<Vec<_>>(), "in the same order");
    bench.settled().await;
    assert_eq!(bench.billed().len(), 250);
    let counts = bench.lago.counts();
    assert!(counts.largest_batch <= 100 && counts.batches <= 6, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_batch_with_a_wrong_event_is_stored() {
    let bench = Bench::new(Profile::V1_39).await;
    bench.report(&[usage("s", "known", "1")]).await;
    let post = async |events: Value| bench.post("/api/v1/events/batch", &json!({ "events": events })).await;

    let (status, answer) =
        post(json!([usage("s", "a", "1"), { "transaction_id": "b" }, usage("s", "known", "2"), 7])).await;
    assert_eq!(status, 422);
    assert_eq!(
        answer["error_details"],
        json!({
            "1": { "code": ["value_is_mandatory"], "external_subscription_id": ["value_is_mandatory"] },
            "3": { "event": ["value_is_invalid"] },
        })
    );
    let (status, answer) = post(json!([usage("s", "a", "1"), usage("s", "known", "2"), usage("s", "a", "9")])).await;
    assert_eq!(status, 422);
    let exists = json!({ "transaction_id": ["value_already_exist"] });
    assert_eq!(answer["error_details"], json!({ "1": exists, "2": exists }));

    // Mended, the rest of it is as good as new; what was there is there.
    let (status, _) = post(json!([usage("s", "a", "1"), usage("s", "known", "1"), usage("s", "a", "1")])).await;
    assert_eq!(status, 200);
    bench.settled().await;
    assert_eq!(bench.billed().len(), 2);
    let metrics = bench.metrics().await;
    for (result, count) in [("accepted", 2.0), ("duplicate", 2.0), ("contradiction", 2.0), ("invalid", 2.0)] {
        assert_eq!(metrics.get("usage_events_total", &[("result", result)]), Some(count), "{result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_of_lagos_is_refused_in_its_words() {
    let bench = Bench::new(Profile::V1_39).await;
    let post = async |path: &str, body: &str| bench.request(Method::POST, path, Some(PRODUCER), body.to_owned()).await;
    for (path, body, status, code) in [
        ("/api/v1/events", "", 400, Value::Null),
        ("/api/v1/events", "{}", 400, Value::Null),
        ("/api/v1/events", r#"{"event":{}}"#, 400, Value::Null),
        ("/api/v1/events", "[]", 400, Value::Null),
        ("/api/v1/events/batch", r#"{"events":[]}"#, 422, json!("validation_errors")),
        ("/api/v1/events/batch", r#"{"event":{"code":"c"}}"#, 422, json!("validation_errors")),
        ("/api/v1/customers", "{}", 404, json!("resource_not_found")),
        ("/", "", 404, json!("resource_not_found")),
    ] {
        let (seen, answer) = post(path, body).await;
        assert_eq!((seen, &answer["status"], &answer["code"]), (status, &json!(status), &code), "{path} {body}");
    }
    let many: Vec<Value> = (0..10_001).map(|n| usage("s", &n.to_string(), "1")).collect();
    let (status, answer) = bench.post("/api/v1/events/batch", &json!({ "events": many })).await;
    assert_eq!((status, &answer["error_details"]), (422, &json!({ "events": ["too_many_events"] })));
    // Without a place for each of millions.
    let small = format!(r#"{{"events":[{}1]}}"#, "1,".repeat(4 << 20 >> 1));
    let (status, answer) = bench.request(Method::POST, "/api/v1/events/batch", Some(PRODUCER), small.clone()).await;
    assert_eq!((status, &answer["error_details"]), (422, &json!({ "events": ["too_many_events"] })));
    let headers = [("content-type", "application/cloudevents-batch+json")];
    let (status, answer) = bench.send("/api/v1/cloudevents", &headers, small[10..small.len() - 1].to_owned()).await;
    assert_eq!((status, &answer["error_details"]), (422, &json!({ "events": ["too_many_events"] })));
    let large = "x".repeat(9 << 20);
    assert_eq!(post("/api/v1/events", &large).await.0, 413);
    assert_eq!(bench.api("/api/v1/statistics").await["accepted"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_cannot_report_without_a_token_or_for_somebody_else() {
    let tokens = "first-token-0123456\nsecond-token-012345 subscription:s-1 customer:c-1\n";
    let bench = Bench::with(Profile::V1_39, &[("USAGE_PRODUCER_TOKEN", tokens)]).await;
    let report = async |token: Option<&str>, subscription: &str| {
        let body = json!({ "events": [usage("s-1", "t", "1"), usage(subscription, "t", "1")] }).to_string();
        bench.request(Method::POST, "/api/v1/events/batch", token, body).await
    };
    for token in [None, Some(""), Some("first-token-012345")] {
        let (status, answer) = report(token, "s-1").await;
        assert_eq!((status, answer), (401, json!({ "status": 401, "error": "Unauthorized" })), "{token:?}");
    }
    let (status, answer) = report(Some("second-token-012345"), "s-2").await;
    assert_eq!((status, &answer["code"]), (403, &json!("subscription_not_allowed")));
    assert_eq!(bench.api("/api/v1/statistics").await["accepted"], 0);
    assert_eq!(report(Some("second-token-012345"), "s-1").await.0, 200);
    assert_eq!(report(Some("first-token-0123456"), "s-2").await.0, 200);
    // Nor is it shown what others have reported.
    for (token, transaction, expected) in
        [("second-token-012345", "t", 200), ("first-token-0123456", "t", 200), ("first-token-0123456", "u", 404)]
    {
        let path = format!("/api/v1/events/{transaction}");
        let (status, answer) = bench.request(Method::GET, &path, Some(token), String::new()).await;
        assert_eq!(status, expected, "{token} {transaction}");
        assert!(expected == 404 || answer["event"]["external_subscription_id"] == "s-1");
    }
    assert_eq!(bench.request(Method::GET, "/api/v1/events/t", None, String::new()).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_can_be_asked_for_and_says_how_far_it_has_come() {
    let bench = Bench::new(Profile::V1_39).await;
    bench.lago.set_faults(lago_is_away());
    bench.report(&[usage("s", "t/1?x=1", "2.50")]).await;

    let path = "/api/v1/events/t%2F1%3Fx=1";
    let (status, answer) = bench.get(path).await;
    assert_eq!((status, &answer["event"]["status"]), (200, &json!("queued")), "{answer}");
    assert_eq!(answer["event"]["transaction_id"], "t/1?x=1");
    bench.lago.set_faults(Faults::default());
    bench.settled().await;

    let (_, answer) = bench.get(path).await;
    assert_eq!((&answer["event"]["status"], &answer["event"]["reason"]), (&json!("confirmed"), &Value::Null));
    assert_eq!(answer["event"]["properties"], json!({ "calls": 2.5 }));
    let (status, answer) = bench.get("/api/v1/events/unknown").await;
    assert_eq!((status, answer), (404, json!({ "status": 404, "error": "Not Found", "code": "event_not_found" })));
}

#[tokio::test(flavor = "multi_thread")]
async fn cloudevents_are_usage_in_every_mode_and_the_same_event_is_billed_once() {
    let bench = Bench::new(Profile::V1_39).await;
    let event = json!({ "specversion": "1.0", "id": "e-1", "source": "/apps/a", "type": "api_calls", "subject": "s",
        "time": "2024-11-19T07:06:40Z", "data": { "calls": 2 } });
    let send = async |headers: &[(&str, &str)], body: String| bench.send("/api/v1/cloudevents", headers, body).await;
    let structured = [("content-type", "application/cloudevents+json")];

    let (status, answer) = send(&structured, event.to_string()).await;
    assert_eq!((status, &answer["events"][0]["external_subscription_id"]), (200, &json!("s")), "{answer}");
    let batch = [("content-type", "application/cloudevents-batch+json")];
    assert_eq!(send(&batch, json!([event, event]).to_string()).await.0, 200);
    let binary = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "e-1"),
        ("ce-source", "/apps/a"),
        ("ce-type", "api_calls"),
        ("ce-subject", "s"),
        ("ce-time", "2024-11-19T07:06:40Z"),
    ];
    assert_eq!(send(&binary, r#"{"calls":2}"#.to_owned()).await.0, 200);
    assert_eq!(send(&[("content-type", "application/json")], event.to_string()).await.0, 415);
    assert_eq!(send(&structured, "{}".to_owned()).await.0, 400);

    bench.settled().await;
    let billed = bench.billed();
    assert_eq!(billed.len(), 1, "{billed:?}");
    assert!(
        billed[0].starts_with("s/ce-") && billed[0].ends_with(r#" api_calls 1732000000 {"calls":2}"#),
        "{billed:?}"
    );
}

/// Producers whose events have no id give one to the request.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_an_idempotency_key_names_its_events() {
    let bench = Bench::new(Profile::V1_39).await;
    let event = json!({ "external_subscription_id": "s", "code": "c", "properties": {} });
    let body = json!({ "events": [event, event] }).to_string();
    let send = async |headers: &[(&str, &str)]| bench.send("/api/v1/events/batch", headers, body.clone()).await;

    assert_eq!(send(&[]).await.0, 422, "two events that are alike are two events");
    let (_, first) = send(&[("idempotency-key", "request-1")]).await;
    let (_, again) = send(&[("idempotency-key", "request-1")]).await;
    assert_eq!(first, again);
    assert_eq!(send(&[("idempotency-key", "request-2")]).await.0, 200);

    bench.settled().await;
    assert_eq!(bench.billed().len(), 4);
}

/// Rails takes these, and Lago's Go client makes them of a base URL that ends with a slash.
#[tokio::test(flavor = "multi_thread")]
async fn other_spellings_of_lagos_paths_are_taken_as_lago_takes_them() {
    let bench = Bench::new(Profile::V1_39).await;
    for (nth, path) in
        ["//api/v1/events", "/api/v1/events/", "/api/v1/events.json", "/api//v1/events"].iter().enumerate()
    {
        let event = usage("s", &format!("one-{nth}"), "1");
        let (status, answer) = bench.post(path, &json!({ "event": event })).await;
        assert_eq!((status, &answer["event"]["external_subscription_id"]), (200, &json!("s")), "{path}");
    }
    for (nth, path) in
        ["//api/v1/events/batch", "/api/v1/events/batch/", "/api/v1/events/batch.json"].iter().enumerate()
    {
        let event = usage("s", &format!("many-{nth}"), "1");
        let (status, answer) = bench.post(path, &json!({ "events": [event] })).await;
        assert_eq!((status, answer["events"].as_array().map(Vec::len)), (200, Some(1)), "{path}");
    }
    bench.settled().await;
    assert_eq!(bench.billed().len(), 7);
    for (path, expected) in [
        ("//api/v1/events/one-0", 200),
        ("/api/v1/events/one%2D1/", 200),
        ("//api/v1/events/nobody", 404),
        ("/api/v1/event", 404),
        ("/api/v1/events/one-0/x", 404),
    ] {
        assert_eq!(bench.get(path).await.0, expected, "{path}");
    }
}

/// Libraries that keep data as bytes write it so in the structured mode.
#[tokio::test(flavor = "multi_thread")]
async fn data_in_base64_is_data() {
    let bench = Bench::new(Profile::V1_39).await;
    let event = |id: &str, data: &str| {
        json!({ "specversion": "1.0", "id": id, "source": "/apps/a", "type": "api_calls", "subject": "s",
            "time": "2024-11-19T07:06:40Z", "data_base64": data })
    };
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let send = async |event: Value| bench.send("/api/v1/cloudevents", &batch, json!([event]).to_string()).await.0;

    // {"calls":2}
    assert_eq!(send(event("good", "eyJjYWxscyI6Mn0=")).await, 200);
    for (id, data) in [("base64", "eyJjYWxs!"), ("json", "aGVsbG8=")] {
        assert_eq!(send(event(id, data)).await, 400, "{id}");
    }
    let mut both = event("both", "eyJjYWxscyI6Mn0=");
    both["data"] = json!({ "calls": 3 });
    assert_eq!(send(both).await, 400, "one of the two, says CloudEvents");

    bench.settled().await;
    let billed = bench.billed();
    assert!(billed.len() == 1 && billed[0].ends_with(r#"{"calls":2}"#), "{billed:?}");
}

/// A producer that uses more of Lago than usage changes its base URL all the same, where the operator wants that.
#[tokio::test(flavor = "multi_thread")]
async fn lagos_other_paths_are_passed_on_only_where_that_is_wanted() {
    let bench = Bench::new(Profile::V1_39).await;
    for (method, path) in [(reqwest::Method::GET, "/api/v1/billable_metrics"), (reqwest::Method::GET, "/api/v1/events")]
    {
        let (status, answer) = bench.request(method, path, Some(API_KEY), String::new()).await;
        assert_eq!((status, &answer["code"]), (404, &json!("resource_not_found")));
        assert!(answer["error"].as_str().unwrap().contains("SIDECAR_USAGE__PROXY"), "{answer}");
    }
    let bench = Bench::with(Profile::V1_39, &[("SIDECAR_USAGE__PROXY", "true")]).await;
    let path = "/api/v1/billable_metrics?page=1&per_page=1";
    let (status, answer) = bench.request(reqwest::Method::GET, path, Some(API_KEY), String::new()).await;
    assert_eq!((status, &answer["meta"]["current_page"]), (200, &json!(0)), "{answer}");
    // Its own key is what Lago is shown, not ours.
    let (status, _) = bench.request(reqwest::Method::GET, path, Some(PRODUCER), String::new()).await;
    assert_eq!(status, 401);
    let (status, answer) = bench.request(reqwest::Method::GET, "/api/v2/x", Some(API_KEY), String::new()).await;
    assert_eq!((status, &answer["error"]), (404, &json!("Not Found")));
    // Usage stays here.
    let (status, _) = bench.post("/api/v1/events", &json!({ "event": usage("s", "t", "1") })).await;
    assert_eq!(status, 200);
    bench.settled().await;
    assert_eq!(bench.billed().len(), 1);
    for (path, expected) in [
        ("/api/v1/events/", 401),
        ("/api/v1/events.json", 401),
        ("/api/v1//events", 401),
        ("/api/v1/events/batch/", 401),
        ("/api/v1/x/events", 404),
    ] {
        let body = json!({ "event": usage("s", "t2", "1") }).to_string();
        let (status, _) = bench.request(reqwest::Method::POST, path, Some(API_KEY), body).await;
        assert_eq!(status, expected, "{path}");
    }
    assert_eq!(bench.billed().len(), 1);
    let large = "x".repeat(2 << 20);
    let (status, _) = bench.request(reqwest::Method::POST, "/api/v1/customers", Some(API_KEY), large).await;
    assert_eq!(status, 413);
}
