//! A journal that cannot read what is to be delivered: its trouble is not the gateway's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use kit::admin::Readiness;
use kit::clock::Timestamp;
use kit::lifecycle::Shell;
use kit_journal::engine::{AuditRecord, ExceptionRow, ExceptionState, Found, Page, Reader, SinkRow, Statistics};
use kit_journal::{EventFilter, EventId, Health, JournalError, Seq, StoredEvent};
use kit_workbench::gateway::Behaviour;

use crate::bench::*;

/// What reading says; what is not named here can be read.
#[derive(Default)]
pub(crate) struct Trouble {
    failing: AtomicBool,
    /// As of a database that does not answer.
    silent: AtomicBool,
    damaged: AtomicBool,
    /// Nothing is known of the sink.
    no_sinks: AtomicBool,
    asked: AtomicU64,
    no_ranges: AtomicBool,
    ranges_asked: AtomicU64,
    /// Up to here there is nothing but one damaged record, this one.
    gap_to: AtomicI64,
    /// Replays that the engine has been given.
    pub(crate) replays_given: AtomicU64,
}

impl Trouble {
    /// A reader that says this.
    pub(crate) fn in_front_of(self: &Arc<Self>, inner: Box<dyn Reader>) -> Box<dyn Reader> {
        Box::new(Troubled { inner, trouble: Arc::clone(self) })
    }
}

struct Troubled {
    inner: Box<dyn Reader>,
    trouble: Arc<Trouble>,
}

impl Reader for Troubled {
    fn event(&mut self, seq: Seq) -> Result<Option<StoredEvent>, JournalError> {
        self.trouble.asked.fetch_add(1, Ordering::SeqCst);
        if self.trouble.damaged.load(Ordering::SeqCst) {
            return Err(JournalError::Damaged { seq, what: "said the test" });
        }
        if self.trouble.silent.load(Ordering::SeqCst) {
            return Err(JournalError::NoAnswer);
        }
        if self.trouble.failing.load(Ordering::SeqCst) {
            return Err(JournalError::Unavailable("said the test".to_owned()));
        }
        self.inner.event(seq)
    }

    fn events_after(
        &mut self,
        sink: &str,
        after: Seq,
        limit: u32,
        max_bytes: u64,
    ) -> Result<(Vec<StoredEvent>, Vec<Seq>), JournalError> {
        self.trouble.ranges_asked.fetch_add(1, Ordering::SeqCst);
        if self.trouble.no_ranges.load(Ordering::SeqCst) {
            return Err(JournalError::Unavailable("said the test".to_owned()));
        }
        let gap_to = self.trouble.gap_to.load(Ordering::SeqCst);
        if after < gap_to {
            return Err(JournalError::Damaged { seq: gap_to, what: "said the test" });
        }
        self.inner.events_after(sink, after, limit, max_bytes)
    }

    fn find(&mut self, id: EventId) -> Result<Option<Seq>, JournalError> {
        self.inner.find(id)
    }

    fn blocked(&mut self, sink: &str, limit: u32) -> Result<Vec<ExceptionRow>, JournalError> {
        self.inner.blocked(sink, limit)
    }

    fn rows_between(&mut self, sink: &str, after: Seq, to: Seq) -> Result<Vec<Seq>, JournalError> {
        self.inner.rows_between(sink, after, to)
    }

    fn not_in_state(&mut self, sink: &str, seqs: &[Seq], state: ExceptionState) -> Result<Vec<Seq>, JournalError> {
        self.inner.not_in_state(sink, seqs, state)
    }

    fn replays(
        &mut self,
        sink: &str,
        now: Timestamp,
        limit: u32,
    ) -> Result<(Vec<ExceptionRow>, Option<Timestamp>), JournalError> {
        let found = self.inner.replays(sink, now, limit)?;
        self.trouble.replays_given.fetch_add(found.0.len() as u64, Ordering::SeqCst);
        Ok(found)
    }

    fn sink(&mut self, name: &str) -> Result<SinkRow, JournalError> {
        if self.trouble.no_sinks.load(Ordering::SeqCst) {
            return Err(JournalError::NoAnswer);
        }
        self.inner.sink(name)
    }

    fn search(
        &mut self,
        filter: &EventFilter,
        before: Option<Seq>,
        limit: u32,
        examine: u64,
    ) -> Result<Page, JournalError> {
        self.inner.search(filter, before, limit, examine)
    }

    fn found(&mut self, seq: Seq) -> Result<Option<Found>, JournalError> {
        self.inner.found(seq)
    }

    fn attempts(&mut self, seq: Seq) -> Result<Vec<(String, kit_journal::engine::Attempt)>, JournalError> {
        self.inner.attempts(seq)
    }

    fn audit(&mut self, before: Option<i64>, limit: u32) -> Result<Vec<(i64, AuditRecord)>, JournalError> {
        self.inner.audit(before, limit)
    }

    fn value(&mut self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.inner.value(name)
    }

    fn values(&mut self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        self.inner.values(prefix)
    }

    fn statistics(&mut self) -> Result<Statistics, JournalError> {
        self.inner.statistics()
    }

    fn oldest_pending(&mut self, sink: &str) -> Result<Option<Timestamp>, JournalError> {
        self.inner.oldest_pending(sink)
    }
}

/// A bench whose first event to subject `a/1` is answered 500 and then has a row, which is read before each retry.
async fn troubled(failures: u32, trouble: &Arc<Trouble>) -> Bench {
    let first_fails = Behaviour::by_request(|head| {
        if subject_is(head, "a/1") && head.attempt == 1 { Behaviour::status(500) } else { Behaviour::Ok }
    });
    let trouble = Arc::clone(trouble);
    let wrap = move |inner| trouble.in_front_of(inner);
    Bench::over_readers(first_fails, |section| section.circuit.failures = failures, wrap).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_does_not_close_the_circuit() {
    let trouble = Arc::new(Trouble::default());
    trouble.damaged.store(true, Ordering::SeqCst);
    let mut bench = troubled(1, &trouble).await;

    let seq = bench.append("a/1").await;
    bench.wait("parking", |row| row.parked == 1).await;

    assert_eq!(bench.reason(seq).await, "record is damaged: said the test");
    assert_eq!(bench.gateway.received().len(), 1, "the probe did not ask the gateway");
    assert_ne!(bench.status().circuit, "closed");
    bench.append("b/1").await;
    bench.wait("the next probe", |row| row.delivered == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_read_opens_no_circuit_and_costs_no_attempt() {
    let trouble = Arc::new(Trouble::default());
    trouble.failing.store(true, Ordering::SeqCst);
    // The answer 500 is the first failure; one more would open it.
    let mut bench = troubled(2, &trouble).await;
    let seq = bench.append("a/1").await;
    let deadline = Instant::now() + DEADLINE;
    // More often than the schedule has attempts, and others get through meanwhile.
    while trouble.asked.load(Ordering::SeqCst) < 5 {
        assert!(Instant::now() < deadline, "the retry is not read again: {:?}", bench.sink().await);
        assert_eq!(bench.status().circuit, "closed");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if bench.status().last_error.is_some_and(|error| error.contains("said the test")) {
            bench.append("b/1").await;
        }
    }
    let found = bench.journal.read(move |reader| reader.found(seq)).await.unwrap().unwrap();
    assert_eq!(found.deliveries["gateway"].row.as_ref().map(|row| row.attempts), Some(1));

    trouble.failing.store(false, Ordering::SeqCst);
    let row = bench.all_settled().await;

    assert_eq!(row.parked, 0, "{}", bench.reason(seq).await);
    assert_eq!(bench.attempts(seq).await.len(), 2);
}

/// What takes events and cannot be read delivers nothing: whoever asks for the readiness is told, and of its end as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_does_not_answer_who_delivers_is_not_ready_until_it_does() {
    let trouble = Arc::new(Trouble::default());
    let mut bench = troubled(1_000, &trouble).await;
    let (mut shell, readiness) = (Shell::new(), Readiness::default());
    kit_delivery::start::watch_journal(&mut shell, &bench.journal, &readiness);
    bench.until("ready", |_| readiness.is_ready()).await;
    trouble.silent.store(true, Ordering::SeqCst);

    bench.append("a/1").await;

    bench.until("not ready", |_| !readiness.is_ready()).await;
    assert_eq!(*bench.journal.health().borrow(), Health::Writable);
    trouble.silent.store(false, Ordering::SeqCst);
    bench.until("ready again", |_| readiness.is_ready()).await;
    bench.all_settled().await;
}

/// More records are missing than the window has room for: all are listed, and what comes after them is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_larger_than_the_window_is_passed_in_several_turns() {
    let trouble = Arc::new(Trouble::default());
    let mut bench = troubled(1_000, &trouble).await;
    bench.stop().await;
    for _ in 0..2_500 {
        bench.append("b/1").await;
    }
    trouble.gap_to.store(2_500, Ordering::SeqCst);
    // Larger than what the journal keeps in memory, so that all of them have to be read.
    let last = bench.append_body("b/1", format!("\"{}\"", "x".repeat(5 << 20)).as_bytes()).await;

    bench.start();
    let row = bench.all_settled().await;

    assert_eq!((row.parked, row.delivered), (2_500, 1));
    assert_eq!(bench.reason(1).await, "record is missing from the journal");
    assert_eq!(bench.reason(2_499).await, "record is missing from the journal");
    assert_eq!(bench.reason(2_500).await, "record is damaged: said the test");
    assert_eq!(bench.taken(), [last]);
}

/// Every webhook that comes in wakes the sink; a journal that cannot be read is left alone all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_read_is_asked_now_and_then() {
    let trouble = Arc::new(Trouble::default());
    let mut bench = troubled(1_000, &trouble).await;
    bench.stop().await;
    // The second is larger than what the journal keeps in memory, so that both have to be read.
    bench.append("b/1").await;
    bench.append_body("b/1", format!("\"{}\"", "x".repeat(5 << 20)).as_bytes()).await;
    trouble.no_ranges.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    bench.start();
    for _ in 0..200 {
        bench.append("b/1").await;
    }
    while bench.status().last_error.is_none_or(|error| !error.contains("said the test")) {
        assert!(begin.elapsed() < DEADLINE, "nothing is ever read");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (asked, took) = (trouble.ranges_asked.load(Ordering::SeqCst), begin.elapsed());
    assert!(asked <= 2 + took.as_millis() as u64 / 500, "asked {asked} times in {took:?}");

    trouble.no_ranges.store(false, Ordering::SeqCst);
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (202, 0));
}

/// Alerts about the sink go by what the process knows itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_away_shows_also_while_the_journal_cannot_be_asked() {
    let trouble = Arc::new(Trouble::default());
    let (own, refusing) = (Arc::clone(&trouble), Behaviour::status(500));
    let change = |section: &mut kit_delivery::GatewaySection| {
        section.circuit.failures = 1;
        section.retry.schedule_seconds = vec![600.0];
    };
    let mut bench = Bench::over_readers(refusing, change, move |inner| own.in_front_of(inner)).await;
    let shows = |bench: &Bench, line: &str| bench.metrics().contains(line);
    bench.until("it leads", |bench| shows(bench, "delivery_leading{sink=\"gateway\"} 1")).await;
    trouble.no_sinks.store(true, Ordering::SeqCst);

    bench.append("a").await;
    bench.append("a").await;

    bench.until("the circuit", |bench| shows(bench, "delivery_circuit_open{sink=\"gateway\"} 1")).await;
    bench.until("what waits", |bench| shows(bench, "delivery_pending{sink=\"gateway\"} 2")).await;
    bench.stop().await;
}
