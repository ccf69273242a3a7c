//! `POST /api/v1/events`.

use super::*;

#[tokio::test]
async fn a_single_event_is_answered_as_it_was_taken() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let sent = r#"{"transaction_id":"t-1","external_subscription_id":"sub","code":"storage","timestamp":1788000000.25,"properties":{"gb":1.50,"region":"eu"},"precise_total_amount_cents":"120","unknown":true}"#;

        let (status, body) = lago.post(sent).await;

        assert_eq!(status, 200, "{profile:?}");
        let mut event = body["event"].clone();
        let (lago_id, created_at) = (event["lago_id"].take(), event["created_at"].take());
        let expected = json!({
            "lago_id": null,
            "transaction_id": "t-1",
            "lago_customer_id": null,
            "code": "storage",
            "timestamp": "2026-08-29T10:40:00.250Z",
            "precise_total_amount_cents": "120.0",
            "properties": { "gb": 1.5, "region": "eu" },
            "lago_subscription_id": null,
            "external_subscription_id": "sub",
            "created_at": null,
        });
        assert_eq!(event, expected, "{profile:?}");
        // ClickHouse has not stored anything yet when the answer is written.
        let is_clickhouse = profile == Profile::ClickHouse;
        assert_eq!((lago_id.is_null(), created_at.is_null()), (is_clickhouse, is_clickhouse));
        if !is_clickhouse {
            assert!(lago_id.as_str().unwrap().parse::<uuid::Uuid>().is_ok());
            assert!(created_at.as_str().unwrap().parse::<Timestamp>().is_ok());
        }
    }
}

#[tokio::test]
async fn neither_subscription_nor_code_need_exist() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;

        let (status, body) = lago.post(r#"{"transaction_id":"t-1","code":"nobody_knows"}"#).await;

        assert_eq!(status, 200, "{profile:?}");
        assert_eq!(body["event"]["external_subscription_id"], Value::Null);
        assert_eq!(body["event"]["properties"], json!({}));
        assert_eq!(body["event"]["precise_total_amount_cents"], Value::Null);
        assert_eq!(lago.stored(), ["-/t-1"]);
    }
}

#[tokio::test]
async fn the_second_word_of_the_authorization_is_the_key() {
    let lago = Lago::start(Profile::V1_16).await;
    let unauthorized = (401, json!({ "status": 401, "error": "Unauthorized" }));
    for (header, admitted) in [
        (None, false),
        (Some(""), false),
        (Some(KEY), false),
        (Some("Bearer wrong"), false),
        (Some("Bearer lago-key-and-more"), false),
        (Some("Bearer lago-key"), true),
        (Some("token  lago-key whatever"), true),
    ] {
        for path in ["/api/v1/events", "/api/v1/events/batch", "/api/v1/billable_metrics", "/api/v1/customers/x"] {
            let method = if path.contains("events") { http::Method::POST } else { http::Method::GET };
            let mut request = lago.client.request(method, format!("{}{path}", lago.server.url()));
            if let Some(header) = header {
                request = request.header("authorization", header);
            }
            let answer = answer(request).await;
            assert_eq!(answer != unauthorized, admitted, "{header:?} {path} {answer:?}");
        }
    }
    assert!(lago.stored().is_empty());
}

#[tokio::test]
async fn a_body_without_its_root_key_is_a_bad_request() {
    let lago = Lago::start(Profile::V1_39).await;
    for body in ["", "{}", "[]", "7", r#"{"event":{}}"#, r#"{"event":null}"#, r#"{"events":[]}"#, r#"{"event":[ ]}"#] {
        let (status, answer) = answer(lago.posting("/api/v1/events", body)).await;

        assert_eq!((status, &answer["status"]), (400, &json!(400)), "{body}");
        assert!(answer["error"].as_str().unwrap().starts_with("BadRequest: "), "{body}");
        assert_eq!(answer.get("code"), None);
    }
}

#[tokio::test]
async fn a_body_that_is_not_announced_as_json_is_not_looked_into() {
    let lago = Lago::start(Profile::V1_16).await;
    let body = format!(r#"{{"event":{}}}"#, event("sub", "t-1"));
    let send = |media_type| {
        let request = lago.request(http::Method::POST, "/api/v1/events").header("content-type", media_type);
        answer(request.body(body.clone()))
    };

    assert_eq!(send("text/plain").await.0, 400);
    assert_eq!(send("application/json; charset=utf-8").await.0, 200);
}

#[tokio::test]
async fn what_is_no_json_is_a_bad_request_without_code() {
    let lago = Lago::start(Profile::V1_16).await;
    for body in ["{", r#"{"event":{"code":}}"#, "{\"event\":\"\u{1}\"}", r#"{"event":{}} x"#] {
        for path in ["/api/v1/events", "/api/v1/events/batch"] {
            let (status, answer) = answer(lago.posting(path, body)).await;

            assert_eq!((status, answer.get("code")), (400, None), "{body}");
        }
    }
}

#[tokio::test]
async fn transaction_id_and_code_are_mandatory_and_blanks_do_not_count() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let mandatory = json!(["value_is_mandatory"]);

        let neither = lago.post(r#"{"external_subscription_id":"sub"}"#).await;
        let blank = lago.post(r#"{"transaction_id":" \t","code":"c"}"#).await;
        let list = lago.post(r#"{"transaction_id":"t","code":["c"]}"#).await;

        assert_eq!(neither, validation_errors(json!({ "transaction_id": mandatory, "code": mandatory })));
        assert_eq!(blank, validation_errors(json!({ "transaction_id": mandatory })));
        assert_eq!(list, validation_errors(json!({ "code": mandatory })), "what is no scalar is dropped");
        assert!(lago.stored().is_empty());
    }
}

#[tokio::test]
async fn a_repeated_event_is_refused_on_postgres_and_taken_on_clickhouse() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        lago.post(&event("sub", "t-1")).await;

        let again = lago.post(&event("sub", "t-1")).await;

        if profile == Profile::ClickHouse {
            assert_eq!((again.0, &again.1["event"]["lago_id"]), (200, &Value::Null));
        } else {
            assert_eq!(again, validation_errors(already_exists()), "{profile:?}");
        }
        assert_eq!(lago.stored(), ["sub/t-1"], "{profile:?}");
    }
}

#[tokio::test]
async fn the_same_id_in_another_subscription_is_another_event() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        for subscription in ["sub-1", "sub-2", ""] {
            assert_eq!(lago.post(&event(subscription, "t-1")).await.0, 200, "{profile:?}");
        }

        assert_eq!(lago.stored(), ["sub-1/t-1", "sub-2/t-1", "/t-1"], "{profile:?}");
        let again = lago.post(&event("", "t-1")).await.0;
        assert_eq!(again == 422, profile != Profile::ClickHouse, "an empty id is an id");
    }
}

#[tokio::test]
async fn without_subscription_postgres_takes_an_event_again_and_again() {
    for profile in POSTGRES {
        let lago = Lago::start(profile).await;
        let event = r#"{"transaction_id":"t-1","code":"c","timestamp":1}"#;

        assert_eq!((lago.post(event).await.0, lago.post(event).await.0), (200, 200));
        assert_eq!(lago.stored(), ["-/t-1", "-/t-1"], "{profile:?}");
    }
}

#[tokio::test]
async fn on_clickhouse_an_event_is_another_one_with_another_time_or_code() {
    let lago = Lago::start(Profile::ClickHouse).await;
    let post = async |code: &str, timestamp: &str, gb: &str| {
        lago.post(&usage("t-1", code, timestamp, &format!(r#"{{"gb":{gb}}}"#))).await
    };
    post("a", "1788000000.001", "1").await;
    post("a", "1788000000.0019", "2").await;
    post("a", "1788000000.002", "3").await;
    post("b", "1788000000.001", "4").await;

    let properties: Vec<_> = lago.server.ledger().into_iter().map(|event| event.properties).collect();
    assert_eq!(
        properties,
        [r#"{"gb":2}"#, r#"{"gb":3}"#, r#"{"gb":4}"#],
        "the later one replaces within a millisecond"
    );
}

#[tokio::test]
async fn without_timestamp_a_retry_on_clickhouse_is_counted_twice() {
    let lago = Lago::start(Profile::ClickHouse).await;
    let event = r#"{"transaction_id":"t-1","external_subscription_id":"sub","code":"c"}"#;
    lago.post(event).await;
    let first_millis = lago.server.ledger()[0].timestamp_micros / 1_000;
    while jiff::Timestamp::now().as_millisecond() == first_millis {
        tokio::task::yield_now().await;
    }

    lago.post(event).await;

    assert_eq!(lago.stored(), ["sub/t-1", "sub/t-1"]);
}

#[tokio::test]
async fn scalars_become_texts_and_the_last_of_equal_keys_counts() {
    let lago = Lago::start(Profile::V1_16).await;

    let (_, body) = lago
        .post(r#"{"transaction_id":"x","transaction_id":12.50,"code":true,"external_subscription_id":"s\u00fcd \"1\"","properties":[1]}"#)
        .await;

    let event = &body["event"];
    assert_eq!((&event["transaction_id"], &event["code"]), (&json!("12.50"), &json!("t")));
    assert_eq!(event["external_subscription_id"], "süd \"1\"");
    assert_eq!(event["properties"], json!({}), "what is no object is dropped");
}

#[tokio::test]
async fn an_iso_timestamp_lands_in_1970_on_v1_16_and_is_refused_later() {
    let event = usage("t-1", "c", r#""2026-08-29T10:40:00Z""#, "{}");
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;

        let answer = lago.post(&event).await;

        if profile == Profile::V1_16 {
            assert_eq!(answer.1["event"]["timestamp"], "1970-01-01T00:33:46.000Z");
        } else {
            assert_eq!(answer, validation_errors(json!({ "timestamp": ["invalid_format"] })), "{profile:?}");
            assert!(lago.stored().is_empty());
        }
    }
}

#[tokio::test]
async fn milliseconds_are_taken_for_seconds_and_land_in_the_far_future() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;

        let (status, body) = lago.post(&usage("t-1", "c", "1732010400000", "{}")).await;

        assert_eq!((status, &body["event"]["timestamp"]), (200, &json!("56855-03-23T16:00:00.000Z")), "{profile:?}");
    }
}

#[tokio::test]
async fn a_numeric_text_is_a_timestamp_and_none_at_all_is_now() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;

        let (_, body) = lago.post(&usage("t-1", "c", r#""1788000000.5""#, "{}")).await;
        assert_eq!(body["event"]["timestamp"], "2026-08-29T10:40:00.500Z", "{profile:?}");

        let before = Timestamp::now();
        let (_, body) = lago.post(r#"{"transaction_id":"t-2","code":"c","timestamp":null}"#).await;
        let taken = time(body["event"]["timestamp"].as_str().unwrap());
        assert!((before.as_millisecond()..=Timestamp::now().as_millisecond()).contains(&taken.as_millisecond()));
    }
}

#[tokio::test]
async fn what_no_code_of_lago_expects_is_a_500_without_more() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let crash = (500, json!({ "status": 500, "error": "Internal Server Error" }));

        assert_eq!(lago.post(&usage("t-1", "c", "true", "{}")).await, crash);
        assert_eq!(lago.post(&usage("t-1", "c", "1e15", "{}")).await, crash, "no store holds this time");
        assert_eq!(lago.post(r#""text""#).await, crash);
        assert!(lago.stored().is_empty());
    }
}
