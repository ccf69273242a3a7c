//! Faults, over the wire.

use std::time::Instant;

use super::*;

/// Posts one event and tells the status; 0 where there was no answer.
async fn post_status(lago: &Lago, transaction_id: &str) -> u16 {
    let body = format!(r#"{{"event":{}}}"#, event("sub", transaction_id));
    let answer = lago.posting("/api/v1/events", body).send().await;
    answer.map_or(0, |response| response.status().as_u16())
}

#[tokio::test]
async fn a_refusal_comes_as_often_as_told_and_does_nothing() {
    let lago = Lago::start(Profile::V1_16).await;
    for status in [401, 403, 500, 502, 503] {
        lago.server.set_faults(Faults::just(Effect::Answer(status), When::Next(2)));

        let id = format!("t-{status}");
        assert_eq!(post_status(&lago, &id).await, status);
        assert_eq!(post_status(&lago, &id).await, status);
        assert!(!lago.stored().contains(&format!("sub/{id}")));
        assert_eq!(post_status(&lago, &id).await, 200);
    }
    assert_eq!(lago.server.counts().faults, 10);
}

#[tokio::test]
async fn refusals_have_the_shape_of_who_refuses() {
    let lago = Lago::start(Profile::V1_39).await;
    let refused = async |status, path: &str| {
        let fault = Fault::new(Effect::Answer(status), When::Next(1)).on(On::Everything);
        lago.server.set_faults(Faults { rules: vec![fault], ..Faults::default() });
        if path.ends_with("events") { lago.post("{}").await.1 } else { lago.get(path).await.1 }
    };

    assert_eq!(refused(401, "/api/v1/billable_metrics").await, json!({ "status": 401, "error": "Unauthorized" }));
    assert_eq!(refused(403, "/api/v1/events").await["code"], "write_action_not_allowed_for_event");
    assert_eq!(refused(500, "/api/v1/events").await, json!({ "status": 500, "error": "Internal Server Error" }));
    assert!(refused(502, "/api/v1/events").await.as_str().unwrap().starts_with("<html>"));
    assert_eq!(lago.get("/health").await.0, 200, "health is outside of all");
}

#[tokio::test]
async fn what_was_done_and_denied_is_on_the_books() {
    for (effect, expected) in
        [(Effect::DoneThenAnswer(500), 500), (Effect::DoneThenAnswer(502), 502), (Effect::DoneThenClosed, 0)]
    {
        for profile in Profile::ALL {
            let lago = Lago::start(profile).await;
            lago.server.set_faults(Faults::just(effect, When::Next(1)));

            assert_eq!(post_status(&lago, "t").await, expected, "{effect:?}");

            assert_eq!(lago.stored(), ["sub/t"]);
            let again = post_status(&lago, "t").await;
            assert_eq!(again, if profile == Profile::ClickHouse { 200 } else { 422 });
            assert_eq!(lago.stored(), ["sub/t"]);
        }
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_keeps_its_thread_until_the_client_gives_up() {
    let lago = Lago::start(Profile::V1_16).await;
    let silence = Faults::just(Effect::DoneThenSilent, When::Nth(1));
    lago.server.set_faults(Faults { threads: Some(1), ..silence });
    let body = |id| format!(r#"{{"event":{}}}"#, event("sub", id));
    let mut silent = tokio::spawn(lago.posting("/api/v1/events", body("t-1")).send());
    lago.server.wait_until(SOON, |counts| counts.stored == 1).await.unwrap();
    let waiting = tokio::spawn(lago.posting("/api/v1/events", body("t-2")).send());
    lago.server.wait_until(SOON, |counts| counts.in_progress == 2).await.unwrap();
    assert!(!waiting.is_finished());
    assert_eq!(lago.stored(), ["sub/t-1"]);

    silent.abort();
    assert!((&mut silent).await.unwrap_err().is_cancelled());

    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!(lago.stored(), ["sub/t-1", "sub/t-2"]);
    assert_eq!(lago.server.counts().most_in_progress, 2);
}

#[tokio::test]
async fn a_reset_does_nothing_and_is_no_answer() {
    let lago = Lago::start(Profile::V1_16).await;
    lago.server.set_faults(Faults::just(Effect::Reset, When::Nth(2)));

    assert_eq!(
        [post_status(&lago, "1").await, post_status(&lago, "2").await, post_status(&lago, "3").await],
        [200, 0, 200]
    );

    assert_eq!(lago.stored(), ["sub/1", "sub/3"]);
    assert_eq!(lago.server.counts().distinct_events, 3, "it did arrive");
}

#[tokio::test]
async fn a_rate_limit_says_when_to_come_back() {
    let lago = Lago::start(Profile::ClickHouse).await;
    lago.server.set_faults(Faults::just(Effect::TooManyRequests { limit: 500, reset_seconds: 3 }, When::Next(1)));

    let body = format!(r#"{{"events":[{}]}}"#, event("sub", "t"));
    let response = lago.posting("/api/v1/events/batch", body).send().await.unwrap();

    assert_eq!(response.status(), 429);
    let header = |name| response.headers().get(name).unwrap().to_str().unwrap();
    assert_eq!(header("X-RateLimit-Limit"), "500");
    assert_eq!(header("X-RateLimit-Remaining"), "0");
    assert_eq!(header("X-RateLimit-Reset"), "3");
    assert!(lago.stored().is_empty());
}

#[tokio::test]
async fn a_poisoned_event_fails_every_request_that_holds_it() {
    let lago = Lago::start(Profile::V1_39).await;
    lago.server.set_faults(Faults { poisoned_transaction_ids: ["bad".to_owned()].into(), ..Faults::default() });

    assert_eq!(lago.post_batch(&[event("sub", "1"), event("other", "bad")]).await.0, 500);
    assert_eq!(post_status(&lago, "bad").await, 500);
    assert!(lago.stored().is_empty());
    assert_eq!(lago.post_batch(&[event("sub", "1"), event("sub", "worse")]).await.0, 200);
    lago.server.set_faults(Faults::default());
    assert_eq!(post_status(&lago, "bad").await, 200);
}

#[tokio::test]
async fn latency_is_added_to_each_request() {
    let lago = Lago::start(Profile::V1_16).await;
    let pause = Duration::from_millis(30);
    lago.server.set_faults(Faults { latency: Latency::Fixed(pause), ..Faults::default() });

    let before = std::time::Instant::now();
    assert_eq!(post_status(&lago, "t").await, 200);

    assert!(before.elapsed() >= pause);
}

#[tokio::test]
async fn without_database_the_health_check_says_so() {
    let lago = Lago::start(Profile::V1_16).await;
    lago.server.set_faults(Faults { unhealthy: true, ..Faults::default() });

    let (status, body) = lago.get("/health").await;

    assert_eq!((status, &body["message"], &body["version"]), (500, &json!("Unhealthy"), &json!("v1.16.0")));
    assert!(body["details"].is_string());
}

/// It takes requests and says nothing, then its proxy refuses, then it answers slowly, and less and less so.
#[tokio::test]
async fn a_lago_that_comes_up_is_silent_then_refuses_and_then_is_slow() {
    let lago = Lago::start(Profile::V1_39).await;
    let slow_start = SlowStart {
        silent: Duration::from_millis(300),
        refusing: Duration::from_millis(300),
        status: 503,
        slow_requests: 4,
        slowest: Duration::from_millis(400),
    };
    let begin = Instant::now();
    lago.server.set_faults(Faults { slow_start: Some(slow_start), ..Faults::default() });

    assert_eq!(post_status(&lago, "t-1").await, 503);
    assert!(begin.elapsed() >= slow_start.silent, "{:?}", begin.elapsed());
    while post_status(&lago, "t-1").await == 503 {
        assert!(begin.elapsed() < SOON, "it never comes up");
    }
    assert!(begin.elapsed() >= slow_start.silent + slow_start.refusing + slow_start.slowest, "{:?}", begin.elapsed());
    for (nth, least) in [(2, 300), (3, 200), (4, 100)] {
        let begin = Instant::now();
        assert_eq!(post_status(&lago, &format!("t-{nth}")).await, 200);
        assert!(begin.elapsed() >= Duration::from_millis(least), "{nth}: {:?}", begin.elapsed());
    }
    assert_eq!(lago.stored(), ["sub/t-1", "sub/t-2", "sub/t-3", "sub/t-4"]);
    assert_eq!((lago.server.counts().posts_in_progress, lago.server.counts().most_posts_in_progress), (0, 1));
}
