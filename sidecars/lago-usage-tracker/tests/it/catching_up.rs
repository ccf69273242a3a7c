//! After an outage: what has waited goes oldest first, and no faster than a Lago that has just come up can bear.

use std::time::Duration;

use kit_lago::stand_in::billing::{Faults, LagoServer, LagoState, Latency, Profile, SlowStart};
use serde_json::{Value, json};

use crate::bench::*;

const EVENTS: usize = 6_000;
const CONCURRENCY: usize = 3;
/// Requests in flight overtake each other, by as much as the one takes longer than the others; but an event comes no more
/// places early or late than this on the average. What has been tried before comes some hundred places late on the
/// average where it is left to its schedule, and everything some thousands where nothing is in order.
const OVERTAKING: usize = 200;

fn events() -> Vec<Value> {
    (0..EVENTS).map(|n| usage(&format!("s-{}", n % 7), &format!("t-{n}"), "1")).collect()
}

/// Takes Lago away, with its books.
async fn take_away(bench: &mut Bench) -> (std::net::SocketAddr, std::sync::Arc<LagoState>) {
    let nobody = LagoServer::start(Profile::V1_39, "x".to_owned().into()).await.unwrap();
    let lago = std::mem::replace(&mut bench.lago, nobody);
    (lago.address(), lago.stop().await)
}

/// The places of events by which Lago got them, those that it has had before apart.
fn order(bench: &Bench) -> Vec<usize> {
    let nth = |id: &str| id.strip_prefix("t-").and_then(|n| n.parse().ok());
    bench.lago.ledger().iter().filter_map(|event| nth(&event.transaction_id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_waited_through_an_outage_goes_oldest_first_and_under_a_ceiling() {
    let settings = [("SIDECAR_LAGO__CONCURRENCY", "3"), ("SIDECAR_LAGO__LINGER_SECONDS", "0")];
    let mut bench = Bench::with(Profile::V1_39, &settings).await;
    // It goes away under load: some events have been tried, and most have not.
    let slow = Faults { latency: Latency::Fixed(Duration::from_millis(200)), ..Faults::default() };
    bench.lago.set_faults(slow);
    let events = events();
    bench.report(&events[..500]).await;
    bench.wait("the first ones", |row| row["delivered"].as_u64() >= Some(100)).await;
    let (address, state) = take_away(&mut bench).await;
    bench.report(&events[500..]).await;
    bench.wait("the outage", |row| row["status"]["circuit"] == "open").await;
    let before = state.counts().stored;

    let latency = Latency::Between(Duration::from_millis(1), Duration::from_millis(20));
    state.set_faults(Faults { seed: 7, latency, ..Faults::default() });
    bench.lago = LagoServer::start_with(address, state).await.unwrap();
    let row = bench.settled().await;

    assert_eq!((&row["delivered"], &row["parked"]), (&json!(EVENTS), &json!(0)));
    assert!(before < 1_000, "nothing has waited: {before}");
    let order = order(&bench);
    let places: usize = order.iter().enumerate().map(|(place, nth)| place.abs_diff(*nth)).sum();
    assert!(order.len() == EVENTS && places <= EVENTS * OVERTAKING, "{} {}", order.len(), places / EVENTS);
    let counts = bench.lago.counts();
    assert_eq!(counts.most_posts_in_progress, CONCURRENCY as u64, "{counts:?}");
}

/// Rails boots, its proxy answers in its place, and its first answers are slow: it is met by one request, then by one more
/// with every round that got through.
#[tokio::test(flavor = "multi_thread")]
async fn a_lago_that_comes_up_slowly_is_not_met_by_everything_at_once() {
    for profile in Profile::ALL {
        let settings = [("SIDECAR_LAGO__CONCURRENCY", "8"), ("SIDECAR_LAGO__LINGER_SECONDS", "0")];
        let mut bench = Bench::with(profile, &settings).await;
        let (address, state) = take_away(&mut bench).await;
        bench.report(&events()).await;
        bench.wait("the outage", |row| row["status"]["circuit"] == "open").await;

        let slow_start = SlowStart {
            // Longer than a request may take.
            silent: Duration::from_millis(1_500),
            refusing: Duration::from_millis(700),
            status: 502,
            slow_requests: 12,
            slowest: Duration::from_millis(300),
        };
        state.set_faults(Faults { slow_start: Some(slow_start), ..Faults::default() });
        bench.lago = LagoServer::start_with(address, state).await.unwrap();
        let row = bench.settled().await;

        assert_eq!((&row["delivered"], &row["parked"]), (&json!(EVENTS), &json!(0)), "{profile:?}");
        let counts = bench.lago.counts();
        assert!(counts.rushed_posts == 0 && counts.most_posts_in_progress <= 8, "{profile:?}: {counts:?}");
        assert_eq!(bench.lago.differing_retries(), 0, "{profile:?}");
    }
}
