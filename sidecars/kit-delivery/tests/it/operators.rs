//! Replay, drop, pause: while the engine runs.

use kit::clock::{Clock as _, SystemClock};
use kit_journal::engine::Action;
use kit_journal::{DeliveryState, Seq};
use kit_workbench::gateway::Behaviour;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::bench::*;
use crate::unreadable::Trouble;

fn replay(seqs: Vec<Seq>) -> Action {
    Action::Replay { sink: "gateway".to_owned(), seqs, from: SystemClock.now(), spacing_ms: 0.0 }
}

fn give_up(seqs: Vec<Seq>) -> Action {
    Action::Drop { sink: "gateway".to_owned(), seqs, reason: "test".to_owned() }
}

fn pause(paused: bool) -> Action {
    Action::Pause { sink: "gateway".to_owned(), paused }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_delivered_when_asked_for_again() {
    let mut bench = Bench::new(Behaviour::status(400), |_| {}).await;
    for n in 0..50 {
        bench.append(&format!("a/{n}")).await;
    }
    bench.wait("parking", |row| row.parked == 50).await;
    bench.gateway.set_behaviour(Behaviour::Ok);
    bench.journal.act(vec![replay((1..=50).collect())]).await.unwrap();
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (50, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivered_event_can_be_asked_for_again_with_the_same_id() {
    let mut bench = Bench::new(Behaviour::Ok, |_| {}).await;
    let seq = bench.append("a/1").await;
    bench.all_settled().await;
    bench.journal.act(vec![replay(vec![seq])]).await.unwrap();
    bench.gateway.wait_for(2, DEADLINE).await.unwrap();
    bench.all_settled().await;
    let received = bench.gateway.received();
    assert_eq!(received[0].event_id, received[1].event_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_fails_again_becomes_a_dead_letter_again() {
    let mut bench = Bench::new(Behaviour::status(400), |_| {}).await;
    let seq = bench.append("a/1").await;
    bench.wait("parking", |row| row.parked == 1).await;
    bench.journal.act(vec![replay(vec![seq])]).await.unwrap();
    bench.gateway.wait_for(2, DEADLINE).await.unwrap();
    bench.wait("parking again", |row| row.parked == 1 && row.open == 0).await;
}

/// Whoever is asked when it is dropped may say that it failed: it is not asked again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_on_its_way_is_not_tried_again() {
    for is_replay in [false, true] {
        // Long enough for a commit on a busy machine.
        let slow = Behaviour::status(500).after(Duration::from_secs(3));
        let short = |section: &mut kit_delivery::GatewaySection| section.retry.schedule_seconds = vec![0.1; 1_000];
        let mut bench = Bench::new(if is_replay { Behaviour::status(400) } else { slow.clone() }, short).await;
        let seq = bench.append("a/1").await;
        let asked = if is_replay {
            bench.wait("parking", |row| row.parked == 1).await;
            bench.gateway.set_behaviour(slow);
            bench.journal.act(vec![replay(vec![seq])]).await.unwrap();
            2
        } else {
            1
        };
        bench.gateway.wait_for(asked, DEADLINE).await.unwrap();
        bench.journal.act(vec![give_up(vec![seq])]).await.unwrap();

        // Another one that comes back after its answer: whatever was to be tried again would have been.
        bench.append("b/1").await;
        bench.gateway.set_behaviour(Behaviour::status(500));
        let is_answered = |bench: &Bench| bench.gateway.with_received(|got| got[asked - 1].answered_at.is_some());
        bench.until("its answer", is_answered).await;
        bench.gateway.wait_for(bench.gateway.received().len() + 10, DEADLINE).await.unwrap();

        let first = kit_journal::EventId::derive("test", &seq.to_string(), None).to_string();
        let own = bench.gateway.received().iter().filter(|got| got.event_id.as_deref() == Some(&first)).count();
        assert_eq!(own, asked, "{is_replay}");
        assert_eq!(bench.state(seq).await, DeliveryState::Dropped);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_head_of_a_subject_lets_the_next_one_go() {
    let stuck = Behaviour::by_request(|head| {
        if head.event_id == Some(kit_journal::EventId::derive("test", "1", None).to_string()) {
            Behaviour::status(500)
        } else {
            Behaviour::Ok
        }
    });
    let mut bench = Bench::new(stuck, |section| section.retry.schedule_seconds = vec![3600.0; 10]).await;
    for _ in 0..3 {
        bench.append("a/1").await;
    }
    bench.wait("waiting", |row| row.open == 3).await;
    bench.journal.act(vec![give_up(vec![1])]).await.unwrap();
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.dropped), (2, 1));
    assert_eq!(bench.state(1).await, DeliveryState::Dropped);
    assert_eq!(bench.taken(), [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retrying_event_can_be_tried_now() {
    let mut bench =
        Bench::new(Behaviour::failing_first(1, 500), |section| section.retry.schedule_seconds = vec![3600.0]).await;
    let seq = bench.append("a/1").await;
    bench.wait("retrying", |row| row.open == 1).await;
    bench.journal.act(vec![replay(vec![seq])]).await.unwrap();
    assert_eq!(bench.all_settled().await.delivered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sink_takes_nothing_also_after_a_restart_and_dropped_ones_are_never_sent() {
    let mut bench = Bench::new(Behaviour::Ok, |_| {}).await;
    bench.journal.act(vec![pause(true)]).await.unwrap();
    bench.stop().await;
    bench.start();
    for n in 0..5 {
        bench.append(&format!("a/{n}")).await;
    }
    bench.journal.act(vec![give_up(vec![2, 4])]).await.unwrap();
    // Nothing is to happen, for which there is nothing to wait: time itself is the condition.
    let deadline = Instant::now() + Duration::from_millis(300);
    while Instant::now() < deadline {
        assert_eq!(bench.gateway.counts().received, 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.journal.act(vec![pause(false)]).await.unwrap();
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.dropped), (3, 2));
    let mut taken = bench.taken();
    taken.sort_unstable();
    assert_eq!(taken, [1, 3, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept() {
    let mut bench = Bench::new(Behaviour::Ok, |section| section.rate_per_second = 50).await;
    let started = Instant::now();
    for n in 0..30 {
        bench.append(&format!("a/{n}")).await;
    }
    bench.all_settled().await;
    assert!(started.elapsed() >= Duration::from_millis(550), "{:?}", started.elapsed());
}

/// A replay that waits in memory behind a pause is dropped there too.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_dropped_again_is_not_sent() {
    let reading = Arc::new(Trouble::default());
    let seen = Arc::clone(&reading);
    let wrap = move |inner| seen.in_front_of(inner);
    let mut bench = Bench::over_readers(Behaviour::status(400), |_| {}, wrap).await;
    for n in 0..10 {
        bench.append(&format!("a/{n}")).await;
    }
    bench.wait("parking", |row| row.parked == 10).await;
    bench.gateway.set_behaviour(Behaviour::Ok);
    bench.journal.act(vec![pause(true)]).await.unwrap();
    bench.journal.act(vec![replay((1..=10).collect())]).await.unwrap();
    // What the engine has been given it has in memory before it sees what is asked for next.
    bench.until("taking the replays up", |_| reading.replays_given.load(Ordering::SeqCst) >= 10).await;
    bench.journal.act(vec![give_up((1..=10).collect())]).await.unwrap();
    bench.journal.act(vec![pause(false)]).await.unwrap();
    let seq = bench.append("b/1").await;
    bench.wait("the next delivery", |row| row.delivered == 1).await;
    assert_eq!(bench.taken(), [seq], "nothing that was dropped is sent");
    assert_eq!(bench.sink().await.dropped, 10);
}

/// An event that waits for another attempt, behind a stuck one, is dropped: it is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_ahead_of_the_cursor_that_is_dropped_is_not_sent() {
    let behaviour = Behaviour::by_request(|head| match () {
        () if subject_is(head, "a/stuck") => Behaviour::Ok.after(Duration::from_secs(3)),
        () if subject_is(head, "a/failing") => Behaviour::status(500),
        () => Behaviour::Ok,
    });
    let mut bench = Bench::new(behaviour, |section| section.retry.schedule_seconds = vec![1.0; 20]).await;
    bench.append("a/stuck").await;
    let failing = bench.append("a/failing").await;
    bench.gateway.wait_for(2, DEADLINE).await.unwrap();
    // Its row stays in memory until the cursor comes by, so that the journal does not show it: the status does.
    bench.until("judging the answer", |bench| bench.status().last_error.is_some()).await;
    bench.journal.act(vec![give_up(vec![failing])]).await.unwrap();
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.dropped), (1, 1));
    assert_eq!(bench.gateway.received().len(), 2, "the dropped one was tried once, before");
}

/// Drops an event and asks for it again, behind one that the gateway takes its time for.
async fn replay_ahead_of_the_cursor(bench: &mut Bench) {
    bench.append("a/stuck").await;
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    bench.journal.act(vec![pause(true)]).await.unwrap();
    let seq = bench.append("b/1").await;
    bench.journal.act(vec![give_up(vec![seq])]).await.unwrap();
    bench.journal.act(vec![replay(vec![seq])]).await.unwrap();
    bench.journal.act(vec![pause(false)]).await.unwrap();
}

/// Dropped, then asked for again, while the cursor is held up before it: delivered once, and counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_ahead_of_the_cursor_is_delivered_once_and_counted() {
    let behaviour = Behaviour::by_request(|head| {
        if subject_is(head, "a/stuck") { Behaviour::Ok.after(Duration::from_secs(2)) } else { Behaviour::Ok }
    });
    let mut bench = Bench::new(behaviour, |_| {}).await;
    replay_ahead_of_the_cursor(&mut bench).await;
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.dropped, row.open), (2, 0, 0));
    bench.crash().await;
    bench.append("c/1").await;
    let row = bench.all_settled().await;
    assert_eq!(row.delivered, 3);
    assert_eq!(bench.taken().len(), 3, "each was sent once");
}

/// The same where it is refused first: what became of it in the end is what stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_ahead_of_the_cursor_that_was_refused_first_is_delivered_once_and_counted() {
    let behaviour = Behaviour::by_request(|head| match head.attempt {
        _ if subject_is(head, "a/stuck") => Behaviour::Ok.after(Duration::from_secs(3)),
        1 => Behaviour::status(500),
        _ => Behaviour::Ok,
    });
    let mut bench = Bench::new(behaviour, |section| section.retry.schedule_seconds = vec![0.1; 5]).await;
    replay_ahead_of_the_cursor(&mut bench).await;
    bench.gateway.wait_for(3, DEADLINE).await.unwrap();

    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.dropped, row.open), (2, 0, 0));
    assert_eq!(bench.gateway.received().len(), 3, "refused once, taken once, and the one before");
}
