//! The ledger and the counts, and how they outlive the port.

use super::*;

#[tokio::test]
async fn the_ledger_keeps_every_text_as_it_was_sent() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let properties = r#"{ "gb" : 1.50e0,"id":12345678901234567890.000000000000001 , "n":"\u00fc" }"#;
        lago.post_batch(&[
            format!(r#"{{"transaction_id":"\u0074-1","external_subscription_id":"sub","code":"c","timestamp": 1788000000.10 ,"properties":{properties}}}"#),
            usage("t-2", "c", r#""1788000000.1""#, "{}"),
            r#"{"transaction_id":"t-3","code":"d"}"#.to_owned(),
        ])
        .await;

        let ledger = lago.server.ledger();

        let times: Vec<_> = ledger.iter().map(|event| event.timestamp.as_deref()).collect();
        assert_eq!(times, [Some("1788000000.10"), Some(r#""1788000000.1""#), None], "{profile:?}");
        let first = &ledger[0];
        assert_eq!((first.transaction_id.as_str(), first.properties.as_str()), ("t-1", properties));
        assert_eq!((first.external_subscription_id.as_deref(), first.code.as_str()), (Some("sub"), "c"));
        assert_eq!((ledger[2].external_subscription_id.as_deref(), ledger[2].properties.as_str()), (None, "{}"));
        assert_eq!(ledger[2].timestamp_micros, ledger[2].stored_micros, "now is when it was stored");
        let mut visited = Vec::new();
        lago.server.visit_ledger(|entry| visited.push(entry.to_owned()));
        assert_eq!(visited, ledger);
    }
}

#[tokio::test]
async fn a_retry_with_other_bytes_is_noticed_whether_it_was_stored_or_not() {
    let lago = Lago::start(Profile::V1_16).await;
    let usage = |properties| usage("t-1", "c", "1788000000", properties);
    lago.server.set_faults(Faults::just(Effect::Answer(503), When::Next(1)));

    lago.post(&usage("{}")).await;
    lago.post(&usage("{}")).await;
    assert_eq!(lago.server.differing_retries(), 0);
    lago.post_batch(&[usage("{ }")]).await;
    lago.post(&event("other", "t-1")).await;

    assert_eq!(lago.server.differing_retries(), 1);
    let example = &lago.server.differing_examples()[0];
    assert_eq!((example.external_subscription_id.as_deref(), example.transaction_id.as_str()), (Some("sub"), "t-1"));
    let counts = lago.server.counts();
    assert_eq!((counts.events_received, counts.distinct_events, counts.differing_retries), (4, 2, 1));
}

#[tokio::test]
async fn requests_batches_and_duplicates_within_them_are_counted() {
    let lago = Lago::start(Profile::V1_39).await;
    lago.post(&event("sub", "1")).await;
    lago.post_batch(&[event("sub", "2"), event("sub", "3"), event("sub", "2"), event("other", "2")]).await;
    lago.post_batch(&[event("sub", "2"), event("sub", "3")]).await;
    lago.get("/health").await;

    let counts = lago.server.wait_until(SOON, |counts| counts.in_progress == 0).await.unwrap();

    let expected = Counts {
        requests: 4,
        single_posts: 1,
        batches: 2,
        largest_batch: 4,
        events_received: 7,
        distinct_events: 4,
        in_batch_duplicates: 1,
        stored: 3,
        refused_posts: 1,
        most_in_progress: 1,
        most_posts_in_progress: 1,
        ..Counts::default()
    };
    assert_eq!(counts, expected);
}

#[tokio::test]
async fn a_wait_that_is_in_vain_says_what_there_was() {
    let lago = Lago::start(Profile::V1_16).await;
    lago.post(&event("sub", "1")).await;

    let error = lago.server.wait_until(Duration::ZERO, |counts| counts.stored == 2).await.unwrap_err();

    assert_eq!((error.seen.stored, error.waited), (1, Duration::ZERO));
}

#[tokio::test]
async fn a_lago_that_was_down_comes_back_with_its_books() {
    let lago = Lago::start(Profile::V1_16).await;
    let address = lago.server.address();
    lago.server.put_metric(Metric::new("api_calls", AggregationType::Count, None));
    assert_eq!(lago.post(&event("sub", "1")).await.0, 200);

    let state = lago.server.stop().await;
    // A client that has no connection from before.
    let refused = client().get(format!("http://{address}/health")).send().await.unwrap_err();
    assert!(refused.is_connect());
    let lago = Lago { server: LagoServer::start_with(address, state).await.unwrap(), client: client() };

    assert_eq!(lago.server.address(), address);
    assert_eq!(lago.post(&event("sub", "1")).await, validation_errors(already_exists()));
    assert_eq!(lago.get("/api/v1/billable_metrics/api_calls").await.0, 200);
    assert_eq!(lago.stored(), ["sub/1"]);
}

#[tokio::test]
async fn going_down_breaks_requests_in_progress() {
    let lago = Lago::start(Profile::V1_16).await;
    lago.server.set_faults(Faults::just(Effect::DoneThenSilent, When::Always));
    let body = format!(r#"{{"event":{}}}"#, event("sub", "1"));
    let hanging = tokio::spawn(lago.posting("/api/v1/events", body).send());
    lago.server.wait_until(SOON, |counts| counts.stored == 1).await.unwrap();

    let state = lago.server.stop().await;

    assert!(hanging.await.unwrap().is_err());
    assert_eq!((state.counts().in_progress, state.ledger().len()), (0, 1));
}

/// So that a run of a million, which needs ten times as much, fits beside a daemon under test. Measured in a process of
/// its own: the other tests of this one take memory too.
#[test]
fn a_hundred_thousand_events_fit_into_40_mib() {
    const ALONE: &str = "OUTRIGGER_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = concat!(module_path!(), "::a_hundred_thousand_events_fit_into_40_mib");
        let name = name.split_once("::").unwrap().1;
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let state = LagoState::new(Profile::V1_39, key());
    let before = resident_mib();
    for batch in 0..1_000_u64 {
        let events: Vec<_> = (0..100)
            .map(|number| {
                let id = format!("{batch:08x}-0000-4000-8000-{number:012x}");
                let properties = r#"{"gb":12.50,"region":"eu-central-1","model":"large","input_tokens":12345}"#;
                usage(&id, "storage", "1788000000.125", properties)
            })
            .collect();
        let body = format!(r#"{{"events":[{}]}}"#, events.join(","));
        let root = event::Root::read(body.as_bytes()).unwrap();
        let event::Sent::Events(events) = root.batch() else { panic!("not a batch") };
        let rules = ingest::Rules { profile: Profile::V1_39, now_micros: 0, torn_batch_status: 422 };
        let answer = state.change(|books| {
            let again = events.iter().filter(|event| books.arrivals.note(event, batch)).count();
            assert_eq!(again, 0);
            ingest::create_batch(&mut books.ledger, rules, &event::Sent::Events(events))
        });
        assert_eq!(answer.status, 200);
    }

    let grown = resident_mib() - before;
    assert_eq!(state.counts().stored, 100_000);
    assert!(grown <= 40, "{grown} MiB");
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1_024
}
