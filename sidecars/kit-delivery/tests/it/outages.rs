//! The gateway is away, or comes and goes; so does the engine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kit_delivery::GatewaySection;
use kit_journal::DeliveryState;
use kit_workbench::gateway::{Behaviour, Received};
use kit_workbench::moment::Moment;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_gateway_costs_no_attempts_and_no_event() {
    let mut bench = Bench::new(Behaviour::Ok, |section| {
        section.circuit.failures = 3;
        section.retry.schedule_seconds = vec![0.01];
    })
    .await;
    bench.gateway.stop().await;
    for n in 0..200 {
        bench.append(&format!("a/{}", n % 10)).await;
    }
    // Many probes fail, far more than the schedule has attempts.
    let deadline = Instant::now() + DEADLINE;
    while bench.attempts_somewhere().await < 8 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.sink().await.parked, 0);

    bench.gateway.restart_on_same_port().await.unwrap();
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (200, 0));
    let taken = bench.taken();
    for subject in 0..10 {
        let of: Vec<i64> = taken.iter().copied().filter(|seq| (seq - 1) % 10 == subject).collect();
        assert!(of.is_sorted(), "order holds through the outage: {of:?}");
    }
}

impl Bench {
    async fn attempts_somewhere(&self) -> usize {
        let mut all = 0;
        for seq in 1..=10 {
            all += self.attempts(seq).await.len();
        }
        all
    }
}

/// 503 from a proxy in front of an absent gateway, for longer than the schedule.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_answers_for_an_absent_gateway_parks_nothing_while_the_circuit_is_open() {
    let mut bench = Bench::new(Behaviour::status(503), |section| section.circuit.failures = 3).await;
    for n in 0..20 {
        bench.append(&format!("a/{n}")).await;
    }
    bench.gateway.wait_for(30, DEADLINE).await.unwrap();
    assert_eq!(bench.sink().await.parked, 0);
    bench.gateway.set_behaviour(Behaviour::Ok);
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (20, 0));
}

/// As in maintenance: every request is answered alike. The circuit is the one that ships.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_asks_all_to_wait_is_left_alone_for_that_long() {
    const ASKED: Duration = Duration::from_secs(3);
    let busy = || Behaviour::retry_after(503, "3");
    let mut bench = Bench::new(busy(), |section| section.circuit = GatewaySection::default().circuit).await;
    for n in 0..20 {
        bench.append(&format!("a/{n}")).await;
    }
    // Past the opening, the first probe and the second.
    bench.until("a third round", |bench| rounds(&bench.gateway.received()).len() >= 3).await;
    bench.gateway.set_behaviour(Behaviour::Ok);
    bench.all_settled().await;

    let received = bench.gateway.received();
    let rounds = rounds(&received);
    for pair in rounds.windows(2) {
        let waited = pair[1].0.since(pair[0].1);
        assert!(waited >= ASKED.mul_f64(0.99), "asked again after {waited:?}: {rounds:?}");
    }
    let mut answered = BTreeMap::new();
    for one in received.iter() {
        let before = answered.insert(seq_of(one), one.answered_at.unwrap_or(one.at));
        let waited = before.map(|before| one.at.since(before));
        assert!(waited.is_none_or(|waited| waited >= ASKED.mul_f64(0.99)), "event {}: {waited:?}", seq_of(one));
    }
}

/// First arrival and last answer of what came without a pause of a second.
fn rounds(received: &[Received]) -> Vec<(Moment, Moment)> {
    let mut rounds: Vec<(Moment, Moment)> = Vec::new();
    for one in received {
        let answered = one.answered_at.unwrap_or(one.at);
        match rounds.last_mut() {
            Some((_, last)) if one.at.since(*last) < Duration::from_secs(1) => *last = answered.max(*last),
            _ => rounds.push((one.at, answered)),
        }
    }
    rounds
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_always_refused_uses_up_its_schedule_and_is_parked() {
    let mut bench = Bench::new(Behaviour::status(500), |section| section.circuit.failures = 2).await;
    let seq = bench.append("a/1").await;
    bench.wait("parking", |row| row.parked == 1).await;
    assert!(bench.reason(seq).await.starts_with("gave up after 4 attempts: answered 500"));
    assert_eq!(bench.state(seq).await, DeliveryState::Parked);
}

/// A receiver that crashes on one event answers others: that event is charged all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_only_gets_resets_is_parked_when_others_get_through() {
    let poison =
        Behaviour::by_request(|head| if subject_is(head, "a/poison") { Behaviour::Reset } else { Behaviour::Ok });
    let mut bench = Bench::new(poison, |_| {}).await;
    let seq = bench.append("a/poison").await;
    let deadline = Instant::now() + DEADLINE;
    while bench.sink().await.parked == 0 {
        assert!(Instant::now() < deadline, "never parked: {:?}", bench.sink().await);
        bench.append("b/1").await;
        // Between two events that get through. What is waited for is the dead letter.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(bench.reason(seq).await.starts_with("gave up after"), "{}", bench.reason(seq).await);
    bench.all_settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_goes_on_where_the_journal_is() {
    let mut bench = Bench::new(
        Behaviour::by_request(|head| {
            if subject_is(head, "a/3") && head.attempt < 4 { Behaviour::status(500) } else { Behaviour::Ok }
        }),
        |section| section.retry.schedule_seconds = vec![0.1; 20],
    )
    .await;
    for round in 0..5_usize {
        for n in 0..100 {
            bench.append(&format!("a/{}", n % 8)).await;
        }
        if round < 4 {
            bench.gateway.wait_for(round * 60 + 10, DEADLINE).await.unwrap();
            bench.crash().await;
        }
    }
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (500, 0));

    let mut seen = std::collections::BTreeSet::new();
    let mut last_first = std::collections::BTreeMap::new();
    for seq in bench.taken() {
        if seen.insert(seq) {
            let lane = (seq - 1) % 100 % 8;
            let last = last_first.insert(lane, seq).unwrap_or(0);
            assert!(last < seq, "first deliveries keep their order: {seq} after {last}");
        }
    }
    assert_eq!(seen.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_settles_what_is_under_way() {
    let mut bench = Bench::new(Behaviour::Ok.after(Duration::from_millis(150)), |_| {}).await;
    for n in 0..8 {
        bench.append(&format!("a/{n}")).await;
    }
    bench.gateway.wait_for(8, DEADLINE).await.unwrap();
    bench.stop().await;
    assert_eq!(bench.sink().await.delivered, 8);
    bench.start();
    bench.append("a/9").await;
    bench.all_settled().await;
    assert_eq!(bench.taken().len(), 9, "nothing is sent twice after an orderly stop");
}

/// One event is stuck while others behind it are delivered: an orderly stop remembers those.
#[tokio::test(flavor = "multi_thread")]
async fn stopping_behind_a_stuck_event_does_not_repeat_the_others() {
    let stuck = Behaviour::by_request(|head| if subject_is(head, "a/stuck") { Behaviour::Drop } else { Behaviour::Ok });
    let mut bench = Bench::new(stuck, |_| {}).await;
    bench.append("a/stuck").await;
    bench.append("a/stuck").await;
    for n in 0..50 {
        bench.append(&format!("b/{n}")).await;
    }
    bench.gateway.wait_for_unique(50, DEADLINE).await.unwrap();
    bench.stop().await;
    assert_eq!(bench.sink().await.delivered, 50);

    bench.gateway.set_behaviour(Behaviour::Ok);
    bench.start();
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (52, 0));
    assert_eq!(bench.taken().len(), 52, "nothing was sent twice");
    assert!(bench.taken()[50..].is_sorted(), "the stuck subject keeps its order");
}
