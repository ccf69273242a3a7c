//! `GET /api/v1/events`, one and many.

use super::*;

async fn ids(lago: &Lago, query: &str) -> Vec<String> {
    let (status, body) = lago.get(&format!("/api/v1/events{query}")).await;
    assert_eq!(status, 200, "{query} {body}");
    let events = body["events"].as_array().unwrap().iter();
    events.map(|event| event["transaction_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_event_is_found_by_its_transaction_id() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let (_, created) = lago.post(&event("sub-1", "a b/ü")).await;
        lago.post(&event("sub-2", "a b/ü")).await;

        let (status, shown) = lago.get("/api/v1/events/a%20b%2F%C3%BC/").await;

        assert_eq!(status, 200, "{profile:?}");
        assert_eq!(shown["event"]["external_subscription_id"], "sub-1", "the first of several");
        if profile == Profile::ClickHouse {
            assert!(shown["event"]["lago_id"].as_str().unwrap().contains("-sub-1-a b/ü-"));
            assert!(shown["event"]["created_at"].is_string());
        } else {
            assert_eq!(shown, created);
        }
        let missing = (404, json!({ "status": 404, "error": "Not Found", "code": "event_not_found" }));
        assert_eq!(lago.get("/api/v1/events/nothing").await, missing);
    }
}

#[tokio::test]
async fn an_id_is_cut_at_its_dot_before_v1_42() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        for id in ["a", "a.b", "a.b.c"] {
            lago.post(&event("sub", id)).await;
        }
        let code = async |path: &str| {
            let (status, body) = lago.get(path).await;
            (status, body["event"]["transaction_id"].as_str().or(body["code"].as_str()).unwrap().to_owned())
        };

        let dots = (code("/api/v1/events/a.b").await, code("/api/v1/events/a.b.c").await);

        if profile == Profile::ClickHouse {
            assert_eq!(dots, ((200, "a.b".to_owned()), (200, "a.b.c".to_owned())));
        } else {
            assert_eq!(dots, ((200, "a".to_owned()), (404, "resource_not_found".to_owned())), "{profile:?}");
        }
        assert_eq!(code("/api/v1/events/a%2Eb").await, (200, "a.b".to_owned()), "an escaped dot is no dot");
    }
}

#[tokio::test]
async fn the_newest_stored_come_first_and_on_v1_39_the_latest_by_timestamp() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        lago.post_batch(&[usage("1", "c", "30", "{}"), usage("2", "c", "10", "{}"), usage("3", "c", "30", "{}")]).await;

        let expected = match profile {
            Profile::V1_16 | Profile::ClickHouse => ["3", "2", "1"],
            Profile::V1_39 => ["1", "3", "2"],
        };
        assert_eq!(ids(&lago, "").await, expected, "{profile:?}");
    }
}

#[tokio::test]
async fn a_list_is_filtered_and_paged() {
    let lago = Lago::start(Profile::V1_16).await;
    lago.post_batch(&[usage("1", "a", "100", "{}"), usage("2", "b", "200", "{}"), usage("3", "a", "300", "{}")]).await;
    lago.post(&event("other", "4")).await;

    assert_eq!(ids(&lago, "?code=a").await, ["3", "1"]);
    assert_eq!(ids(&lago, "?external_subscription_id=other").await, ["4"]);
    let in_1970 = "timestamp_from=1970-01-01T00:01:41Z&timestamp_to=1970-01-01T01:05:00%2B01:00";
    assert_eq!(ids(&lago, &format!("?{in_1970}")).await, ["3", "2"]);
    assert_eq!(ids(&lago, "?timestamp_to=1970-01-02&code=&page=2&per_page=2").await, ["1"]);
    let (_, page) = lago.get("/api/v1/events?page=2&per_page=1").await;
    let meta = json!({ "current_page": 2, "next_page": 3, "prev_page": 1, "total_pages": 4, "total_count": 4 });
    assert_eq!(page["meta"], meta);
    let refused = lago.get("/api/v1/events?timestamp_from=yesterday").await;
    assert_eq!(refused, validation_errors(json!({ "timestamp_from": ["invalid_date"] })));
}
