//! A journal that refuses results at the worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kit_journal::JournalError;
use kit_journal::engine::{Commit, Committed, Engine};
use kit_journal::{AppendError, Dedupe, DeliveryState, EventHead, EventId, NewEvent, Seq};
use kit_workbench::gateway::Behaviour;

use crate::bench::*;

/// Holds the first commit of a kind until it is let go, and then refuses it.
struct Refusing {
    inner: Box<dyn Engine>,
    is_meant: fn(&Commit) -> bool,
    held: Arc<AtomicBool>,
    let_go: Arc<AtomicBool>,
}

fn with_a_dead_letter(commit: &Commit) -> bool {
    commit.settlements.iter().any(|settlement| !settlement.set.is_empty())
}

fn with_events(commit: &Commit) -> bool {
    !commit.appends.is_empty()
}

impl Engine for Refusing {
    fn commit(&mut self, commit: &mut Commit) -> Result<Committed, JournalError> {
        if (self.is_meant)(commit) && !self.held.swap(true, Ordering::SeqCst) {
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
        move |inner| Box::new(Refusing { inner, is_meant: with_a_dead_letter, held, let_go }) as Box<dyn Engine>
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

/// What waits for a disk that hangs is bounded, also after those who sent it have given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_collects_bodies_up_to_a_bound() {
    let (held, let_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let wrap = {
        let (held, let_go) = (Arc::clone(&held), Arc::clone(&let_go));
        move |inner| Box::new(Refusing { inner, is_meant: with_events, held, let_go }) as Box<dyn Engine>
    };
    let bench = Bench::over(Behaviour::Ok, wrap).await;
    let append = |n: u32| {
        let journal = bench.journal.clone();
        let key = n.to_string();
        let head = EventHead::new(EventId::derive("test", &key, None), "test", "large", "all", key);
        let event = NewEvent { head, body: vec![b'x'; 1 << 20], dedupe: Dedupe::Key };
        tokio::spawn(async move { journal.append(event).await })
    };
    let mut appends = vec![append(0)];
    let deadline = std::time::Instant::now() + DEADLINE;
    while !held.load(Ordering::SeqCst) {
        assert!(std::time::Instant::now() < deadline, "nothing is committed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 1..=60 {
        appends.push(append(n));
    }
    while appends.iter().filter(|append| append.is_finished()).count() < 60 - 48 {
        assert!(std::time::Instant::now() < deadline, "all of them wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let_go.store(true, Ordering::SeqCst);

    let (mut stored, mut busy, mut refused) = (0, 0, 0);
    for append in appends {
        match append.await.unwrap() {
            Ok(_) => stored += 1,
            Err(AppendError::Busy) => busy += 1,
            Err(_) => refused += 1,
        }
    }
    assert_eq!((stored + refused, busy), (49, 12), "{stored} {refused}");
    while append(100).await.unwrap().is_err() {
        assert!(std::time::Instant::now() < deadline, "it is not taken again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
