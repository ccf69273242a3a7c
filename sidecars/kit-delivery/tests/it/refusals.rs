//! A journal that refuses results at the worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kit_journal::JournalError;
use kit_journal::engine::{Commit, Committed, Engine};
use kit_journal::{DeliveryState, EventId, Seq};
use kit_workbench::gateway::Behaviour;

use crate::bench::*;

/// Holds the first commit that brings a dead letter until it is let go, and then refuses it.
struct Refusing {
    inner: Box<dyn Engine>,
    held: Arc<AtomicBool>,
    let_go: Arc<AtomicBool>,
}

impl Engine for Refusing {
    fn commit(&mut self, commit: &mut Commit) -> Result<Committed, JournalError> {
        let dead_letter = commit.settlements.iter().any(|settlement| !settlement.set.is_empty());
        if dead_letter && !self.held.swap(true, Ordering::SeqCst) {
            while !self.let_go.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err(JournalError::Unavailable("refused by the test".to_owned()));
        }
        self.inner.commit(commit)
    }

    fn reopen(&mut self, alone: bool) -> Result<(), JournalError> {
        self.inner.reopen(alone)
    }

    fn idle(&mut self, age: kit::clock::Timestamp) -> Result<(), JournalError> {
        self.inner.idle(age)
    }

    fn last_seq(&self) -> Seq {
        self.inner.last_seq()
    }

    fn known(&self, source: &str, key: &str) -> Result<Vec<(EventId, Seq)>, JournalError> {
        self.inner.known(source, key)
    }

    fn remembered(&self, name: &str) -> Result<(Option<Vec<u8>>, Option<kit::clock::Timestamp>), JournalError> {
        self.inner.remembered(name)
    }

    fn dedupe_memory(&self) -> (u64, u64) {
        self.inner.dedupe_memory()
    }

    fn used_bytes(&self) -> Result<u64, JournalError> {
        self.inner.used_bytes()
    }

    fn close(self: Box<Self>) {
        self.inner.close();
    }
}

/// The commit with a dead letter is refused while the daemon stops; what was delivered after it must not
/// be recorded without it, or it would count as delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_refused_during_the_stop_is_not_counted_as_delivered() {
    let behaviour = Behaviour::by_request(|head| {
        if subject_is(head, "a/bad") { Behaviour::status(400) } else { Behaviour::Ok.after(Duration::from_millis(900)) }
    });
    let (held, let_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let wrap = {
        let (held, let_go) = (Arc::clone(&held), Arc::clone(&let_go));
        move |inner| Box::new(Refusing { inner, held, let_go }) as Box<dyn Engine>
    };
    let mut bench = Bench::over(behaviour, wrap).await;
    // All are there before the first is delivered: while a commit is held nothing can be appended.
    bench.stop().await;
    let mut appends = Vec::new();
    for subject in ["a/bad", "b/1", "b/2", "b/3"] {
        appends.push(bench.append(subject).await);
    }
    bench.start();
    let deadline = std::time::Instant::now() + DEADLINE;
    while !held.load(Ordering::SeqCst) {
        assert!(std::time::Instant::now() < deadline, "no dead letter is recorded");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.gateway.wait_for(4, DEADLINE).await.unwrap();
    tokio::join!(bench.stop(), async {
        // The deliveries in flight end meanwhile, so that their results are there to be recorded too.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let_go.store(true, Ordering::SeqCst);
    });
    let row = bench.sink().await;
    assert_eq!((row.delivered, row.parked), (3, 1), "{row:?}");
    assert_eq!(bench.state(appends[0]).await, DeliveryState::Parked);
}
