//! `POST /api/v1/events/batch`.

use super::*;

fn events(names: &[&str]) -> Vec<String> {
    let split = |name: &&str| {
        let (subscription, transaction_id) = name.split_once('/').unwrap();
        event(subscription, transaction_id)
    };
    names.iter().map(split).collect()
}

#[tokio::test]
async fn events_come_back_in_the_order_of_the_batch() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;

        let (status, body) = lago.post_batch(&events(&["b/2", "a/1", "c/3"])).await;

        assert_eq!(status, 200);
        let ids: Vec<_> = body["events"].as_array().unwrap().iter().map(|event| &event["transaction_id"]).collect();
        assert_eq!(ids, ["2", "1", "3"], "{profile:?}");
        assert_eq!(body["events"][0]["lago_id"].is_null(), profile == Profile::ClickHouse);
        assert_eq!(lago.stored(), ["b/2", "a/1", "c/3"]);
    }
}

#[tokio::test]
async fn a_batch_without_events_is_refused() {
    let lago = Lago::start(Profile::V1_39).await;
    let refused = validation_errors(json!({ "events": ["no_events"] }));
    for body in [
        "",
        "{}",
        "[]",
        r#"{"events":[]}"#,
        r#"{"events":null}"#,
        r#"{"events":{}}"#,
        r#"{"events":"x"}"#,
        r#"{"event":{}}"#,
    ] {
        assert_eq!(answer(lago.posting("/api/v1/events/batch", body)).await, refused, "{body}");
    }
    assert_eq!(answer(lago.posting("/api/v1/events/batch", r#"{"events":{"code":"c"}}"#)).await.0, 500);
}

#[tokio::test]
async fn a_hundred_events_are_a_batch_and_one_more_is_too_many() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let mut batch: Vec<_> = (0..101).map(|number| event("sub", &format!("t-{number}"))).collect();

        assert_eq!(lago.post_batch(&batch).await, validation_errors(json!({ "events": ["too_many_events"] })));
        assert!(lago.stored().is_empty());
        batch.pop();
        assert_eq!(lago.post_batch(&batch).await.0, 200);
        assert_eq!(lago.stored().len(), 100);
    }
}

#[tokio::test]
async fn invalid_events_are_named_by_their_index_and_nothing_is_stored() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let batch = [
            event("sub", "good"),
            r#"{"transaction_id":"t"}"#.to_owned(),
            event("sub", "good-too"),
            r#"{"code":"c","timestamp":"today"}"#.to_owned(),
        ];

        let answer = lago.post_batch(&batch).await;

        // A timestamp that cannot be read keeps the rest from being judged.
        let last = match profile {
            Profile::V1_16 => json!({ "transaction_id": ["value_is_mandatory"] }),
            Profile::V1_39 | Profile::ClickHouse => json!({ "timestamp": ["invalid_format"] }),
        };
        assert_eq!(answer, validation_errors(json!({ "1": { "code": ["value_is_mandatory"] }, "3": last })));
        assert!(lago.stored().is_empty(), "{profile:?}");
    }
}

#[tokio::test]
async fn a_batch_with_a_known_event_stores_nothing_and_names_the_index() {
    for profile in POSTGRES {
        let lago = Lago::start(profile).await;
        lago.post_batch(&events(&["sub/1", "sub/2"])).await;

        let answer = lago.post_batch(&events(&["sub/3", "sub/2", "sub/4", "sub/1"])).await;

        assert_eq!(answer, validation_errors(json!({ "1": already_exists(), "3": already_exists() })), "{profile:?}");
        assert_eq!(lago.stored(), ["sub/1", "sub/2"]);
        assert_eq!(lago.post_batch(&events(&["sub/3", "sub/4"])).await.0, 200);
    }
}

#[tokio::test]
async fn a_repeated_batch_names_every_index() {
    for profile in POSTGRES {
        let lago = Lago::start(profile).await;
        let batch = events(&["sub/1", "sub/2"]);
        lago.post_batch(&batch).await;

        let answer = lago.post_batch(&batch).await;

        assert_eq!(answer, validation_errors(json!({ "0": already_exists(), "1": already_exists() })));
    }
}

#[tokio::test]
async fn v1_16_stores_what_comes_before_a_duplicate_in_the_batch_and_says_only_no() {
    for status in [422, 500] {
        let lago = Lago::start(Profile::V1_16).await;
        lago.server.set_faults(Faults { torn_batch_status: status, ..Faults::default() });

        let (answered, body) = lago.post_batch(&events(&["sub/1", "sub/2", "sub/1", "sub/3"])).await;

        assert_eq!(answered, status);
        assert_eq!((body.get("code"), body.get("error_details")), (None, None));
        assert_eq!(lago.stored(), ["sub/1", "sub/2"]);
    }
}

#[tokio::test]
async fn v1_39_names_the_later_one_of_a_duplicate_in_the_batch_and_stores_nothing() {
    let lago = Lago::start(Profile::V1_39).await;

    let answer = lago.post_batch(&events(&["sub/1", "sub/2", "sub/1", "sub/3"])).await;

    assert_eq!(answer, validation_errors(json!({ "2": already_exists() })));
    assert!(lago.stored().is_empty());
}

#[tokio::test]
async fn one_id_in_two_subscriptions_is_fine_in_a_batch_except_on_v1_39() {
    let batch = events(&["sub-1/t", "sub-2/t"]);
    for profile in [Profile::V1_16, Profile::ClickHouse] {
        let lago = Lago::start(profile).await;
        assert_eq!(lago.post_batch(&batch).await.0, 200);
        assert_eq!(lago.stored(), ["sub-1/t", "sub-2/t"], "{profile:?}");
    }

    let lago = Lago::start(Profile::V1_39).await;
    assert_eq!(lago.post_batch(&batch).await, validation_errors(json!({ "1": already_exists() })));
    assert!(lago.stored().is_empty(), "a false duplicate refuses the batch all the same");
}

/// Whoever takes the named event for known loses it, and asks about the known one once more.
#[tokio::test]
async fn v1_39_may_blame_a_new_event_for_a_known_one_with_the_same_id() {
    let lago = Lago::start(Profile::V1_39).await;
    lago.post_batch(&events(&["known/t"])).await;

    let known_first = lago.post_batch(&events(&["known/t", "new/t"])).await;
    let new_first = lago.post_batch(&events(&["new/t", "known/t"])).await;

    assert_eq!(known_first, validation_errors(json!({ "1": already_exists() })), "index 1 is the new one");
    assert_eq!(new_first, validation_errors(json!({ "1": already_exists() })));
    assert_eq!(lago.stored(), ["known/t"]);
}

#[tokio::test]
async fn without_subscription_v1_16_stores_both_and_v1_39_refuses_the_batch() {
    let batch = vec![r#"{"transaction_id":"t","code":"c","timestamp":1}"#.to_owned(); 2];

    let lago = Lago::start(Profile::V1_16).await;
    assert_eq!(lago.post_batch(&batch).await.0, 200);
    assert_eq!(lago.stored(), ["-/t", "-/t"]);

    let lago = Lago::start(Profile::V1_39).await;
    assert_eq!(lago.post_batch(&batch).await, validation_errors(json!({ "1": already_exists() })));
}

#[tokio::test]
async fn clickhouse_refuses_no_duplicate_and_keeps_one_row() {
    let lago = Lago::start(Profile::ClickHouse).await;
    let batch = events(&["sub/1", "sub/2", "sub/1"]);

    let (status, body) = lago.post_batch(&batch).await;
    assert_eq!((status, body["events"].as_array().unwrap().len()), (200, 3));
    assert_eq!(lago.post_batch(&batch).await.0, 200);

    assert_eq!(lago.stored(), ["sub/1", "sub/2"]);
}

#[tokio::test]
async fn what_is_no_object_drops_out_of_a_batch_and_shifts_the_indexes() {
    let lago = Lago::start(Profile::V1_39).await;
    let batch = ["null".to_owned(), event("sub", "1"), "7".to_owned(), r#"{"code":"c"}"#.to_owned()];

    let answer = lago.post_batch(&batch).await;

    assert_eq!(answer, validation_errors(json!({ "1": { "transaction_id": ["value_is_mandatory"] } })));
}

#[tokio::test]
async fn one_time_that_no_store_holds_ends_the_whole_batch() {
    let lago = Lago::start(Profile::V1_39).await;

    let answer = lago.post_batch(&[event("sub", "1"), usage("2", "c", "1e15", "{}")]).await;

    assert_eq!(answer.0, 500);
    assert!(lago.stored().is_empty());
}
