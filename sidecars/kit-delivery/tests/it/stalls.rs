//! So many deliveries wait for another attempt that nothing new is fetched.

use kit_workbench::gateway::Behaviour;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fetches_nothing_new_says_so_until_it_does_again() {
    let mut bench = Bench::stalling_at(10, Behaviour::status(500), |section| {
        section.retry.schedule_seconds = vec![0.3; 1_000];
    })
    .await;
    for n in 0..10 {
        bench.append(&format!("a/{n}")).await;
    }
    bench.wait("refusing all", |row| row.open == 10).await;
    assert!(!bench.status().stalled, "nothing is held up yet");
    for n in 0..5 {
        bench.append(&format!("b/{n}")).await;
    }

    bench.until("stalling", |bench| bench.status().stalled).await;
    bench.until("the gauge", |bench| bench.metrics().contains("delivery_stalled{sink=\"gateway\"} 1")).await;
    // Two more rounds of all that wait: whatever else might be sent would be by then.
    let seen = bench.gateway.received().len();
    bench.gateway.wait_for(seen + 20, DEADLINE).await.unwrap();
    assert!(bench.gateway.received().iter().all(|received| seq_of(received) <= 10), "nothing new is fetched");

    bench.gateway.set_behaviour(Behaviour::Ok);
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (15, 0));
    bench.until("going on", |bench| !bench.status().stalled).await;
    bench.until("the gauge", |bench| bench.metrics().contains("delivery_stalled{sink=\"gateway\"} 0")).await;
}
