//! Order within a subject, independence between subjects.

use kit_delivery::config::Order;
use kit_workbench::gateway::{Behaviour, Received};

use crate::bench::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_subject_arrive_in_order_while_others_overtake() {
    let slow = Behaviour::by_request(|head| {
        if subject_is(head, "a/slow") { Behaviour::Ok.after(Duration::from_millis(20)) } else { Behaviour::Ok }
    });
    let mut bench = Bench::new(slow, |_| {}).await;
    // However long the disk takes, all are there when the first one goes.
    bench.stop().await;
    let mut slow = Vec::new();
    for n in 0..60 {
        let subject = if n % 3 == 0 { "a/slow".to_owned() } else { format!("b/{}", n % 7) };
        let seq = bench.append(&subject).await;
        if n % 3 == 0 {
            slow.push(seq);
        }
    }
    bench.start();
    bench.all_settled().await;

    let taken = bench.taken();
    assert_eq!(taken.iter().copied().filter(|seq| slow.contains(seq)).collect::<Vec<_>>(), slow);
    let first_fast_last = taken.iter().position(|seq| !slow.contains(seq)).unwrap();
    assert!(first_fast_last < 5 && taken.last() == slow.last(), "others do not wait: {taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_head_holds_its_subject_and_nobody_else() {
    let mut bench = Bench::new(
        Behaviour::by_request(|head| {
            // The first event of the subject fails twice.
            if subject_is(head, "a/1") && head.event_id.as_deref() == Some(&first_id()) && head.attempt < 3 {
                Behaviour::status(500)
            } else {
                Behaviour::Ok
            }
        }),
        |_| {},
    )
    .await;
    for n in 0..20 {
        bench.append(if n % 2 == 0 { "a/1" } else { "b/1" }).await;
    }
    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.parked), (20, 0));
    let taken = bench.taken();
    let of = |odd: i64| taken.iter().copied().filter(|seq| seq % 2 == odd).collect::<Vec<_>>();
    assert_eq!(of(1), (0..10).map(|n| 2 * n + 1).collect::<Vec<_>>());
    assert_eq!(of(0), (1..=10).map(|n| 2 * n).collect::<Vec<_>>());
    assert_eq!(bench.attempts(1).await.len(), 3);
}

fn first_id() -> String {
    kit_journal::EventId::derive("test", "1", None).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_head_releases_its_subject() {
    let refused = Behaviour::by_request(|head| {
        if head.event_id.as_deref() == Some(&first_id()) { Behaviour::status(422) } else { Behaviour::Ok }
    });
    let mut bench = Bench::new(refused, |_| {}).await;
    for _ in 0..5 {
        bench.append("a/1").await;
    }
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (4, 1));
    assert_eq!(bench.taken(), [2, 3, 4, 5]);
    assert!(bench.reason(1).await.contains("422"), "{}", bench.reason(1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_order_one_subject_goes_in_parallel() {
    let mut bench =
        Bench::new(Behaviour::Ok.after(Duration::from_millis(100)), |section| section.order = Order::None).await;
    bench.stop().await;
    for _ in 0..32 {
        bench.append("a/1").await;
    }
    bench.start();
    bench.all_settled().await;
    let received = bench.gateway.received();
    let at_once = received.iter().map(|one| {
        let is_open = |other: &&Received| other.at <= one.at && other.answered_at.is_some_and(|at| at > one.at);
        received.iter().filter(is_open).count()
    });
    assert!(at_once.max().unwrap() > 8, "of 16 that may go at once: {received:?}");
}

/// One event that the gateway sits on for long must not keep thousands of others from going.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_event_does_not_hold_the_window() {
    let stuck = Behaviour::by_request(|head| if subject_is(head, "a/stuck") { Behaviour::Drop } else { Behaviour::Ok });
    let mut bench = Bench::new(stuck, |section| {
        section.timeout.read_seconds = 20.0;
        section.timeout.total_seconds = 20.0;
    })
    .await;
    bench.append("a/stuck").await;
    for n in 0..3000 {
        bench.append(&format!("b/{}", n % 50)).await;
    }
    let row = bench.wait("everything but one", |row| row.delivered == 3000).await;
    assert!(row.cursor > 1, "the cursor has passed the stuck event: {row:?}");
    bench.gateway.set_behaviour(Behaviour::Ok);
    bench.stop().await;
    bench.start();
    bench.all_settled().await;
}
