//! Leases of one replica beside each other: none is lost because others take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kit_journal::Held;

use crate::bench::{new_database, server};
use crate::lost::{closed, opened};
use crate::wire::{Fate, Keeping, proxied};

/// Longer than a lease lasts without being renewed.
const WATCHED: Duration = Duration::from_secs(8);

/// Fails when one of these is lost while it is watched.
async fn all_are_held(leases: &[Held]) {
    let since = Instant::now();
    while since.elapsed() < WATCHED {
        let lost = leases.iter().filter(|lease| !lease.is_held()).count();
        assert_eq!(lost, 0, "of {} after {:?}", leases.len(), since.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// As many sinks as a configuration may have, and a database in another zone, or one whose disk is busy.
#[tokio::test(flavor = "multi_thread")]
async fn many_leases_are_kept_over_a_slow_way_to_the_database() {
    const SLOW: Duration = Duration::from_millis(150);
    let is_slow = Arc::new(AtomicBool::new(false));
    let slowed = Arc::clone(&is_slow);
    let url = proxied(&new_database(), move |_| {
        if slowed.load(Ordering::Relaxed) {
            std::thread::sleep(SLOW);
        }
        Fate::Passed
    });
    let (journal, task) = opened(url).await;
    let mut leases = Vec::new();
    for sink in 0..33 {
        leases.push(journal.lease(&format!("sink-{sink}")).await.unwrap().unwrap());
    }

    is_slow.store(true, Ordering::Relaxed);
    all_are_held(&leases).await;

    is_slow.store(false, Ordering::Relaxed);
    drop(leases);
    closed(task).await;
}

/// As where another replica takes over what has run out, and its commit waits for a standby.
#[tokio::test(flavor = "multi_thread")]
async fn leases_that_somebody_holds_fast_cost_no_other_lease() {
    let database = new_database();
    let (journal, task) = opened(server().url(&database)).await;
    let (mut held_fast, mut others) = (Vec::new(), Vec::new());
    for sink in 0..6 {
        held_fast.push(journal.lease(&format!("fast-{sink}")).await.unwrap().unwrap());
        others.push(journal.lease(&format!("other-{sink}")).await.unwrap().unwrap());
    }
    let kept = Keeping::of(&database, "SELECT 1 FROM outrigger.leases WHERE sink LIKE 'fast-%' FOR UPDATE");

    all_are_held(&others).await;

    assert!(held_fast.iter().all(|lease| !lease.is_held()), "they could not be renewed");
    drop(kept);
    drop((held_fast, others));
    closed(task).await;
}
