//! Sinks that take several events in one request, that do not want all of them, and that remember what they took.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use kit::clock::SystemClock;
use kit::lifecycle::StopToken;
use kit::retry::Schedule;
use kit_delivery::{
    Batching, DeliveryMetrics, Dispatcher, DispatcherSettings, Failure, GatewaySection, Outcome, Sink, SinkStatus,
};
use kit_journal::engine::{Action, SinkRow};
use kit_journal::{Dedupe, EventHead, EventId, Journal, JournalTask, NewEvent, Seq, StoredEvent};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use crate::bench::{DEADLINE, open};

const NAME: &str = "batches";

/// What the sink says to a request.
type Answer = dyn Fn(&[Seq]) -> Result<(), Failure> + Send + Sync;

/// Takes or refuses a request as a whole.
struct Scripted {
    batching: Batching,
    answer: Box<Answer>,
    requests: Mutex<Vec<Vec<Seq>>>,
    recorded: Mutex<HashMap<Seq, u32>>,
}

impl Scripted {
    fn new(most: usize, answer: impl Fn(&[Seq]) -> Result<(), Failure> + Send + Sync + 'static) -> Self {
        let batching = Batching { most, bytes: 1 << 20, linger: Duration::from_millis(100) };
        Self { batching, answer: Box::new(answer), requests: Mutex::default(), recorded: Mutex::default() }
    }

    fn requests(&self) -> Vec<Vec<Seq>> {
        self.requests.lock().unwrap().clone()
    }
}

impl Sink for Scripted {
    fn name(&self) -> &str {
        NAME
    }

    fn wants(&self, head: &EventHead) -> bool {
        head.event_type != "unwanted"
    }

    fn batching(&self) -> Batching {
        self.batching
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { self.take(&[event.seq]).remove(0) })
    }

    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        let seqs: Vec<Seq> = events.iter().map(|event| event.seq).collect();
        Box::pin(async move { self.take(&seqs) })
    }

    fn recording(&self, delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        let mut recorded = self.recorded.lock().unwrap();
        delivered.iter().for_each(|seq| *recorded.entry(*seq).or_default() += 1);
        vec![("recorded".to_owned(), recorded.len().to_string().into_bytes())]
    }
}

impl Scripted {
    fn take(&self, seqs: &[Seq]) -> Vec<Outcome> {
        self.requests.lock().unwrap().push(seqs.to_vec());
        let outcome = match (self.answer)(seqs) {
            Ok(()) => Outcome::delivered(200),
            Err(failure) => Outcome::failed(failure, "said the test"),
        };
        vec![outcome; seqs.len()]
    }
}

struct Bench {
    directory: TempDir,
    journal: Journal,
    task: Option<JournalTask>,
    sink: Arc<Scripted>,
    status: Arc<Mutex<SinkStatus>>,
    running: Option<(StopToken, tokio::task::JoinHandle<()>)>,
    appended: Seq,
    schedule: Vec<Duration>,
    /// Failures in a row that open the circuit.
    failures: u32,
}

impl Bench {
    fn new(sink: Scripted) -> Self {
        let directory = TempDir::new().unwrap();
        let (journal, task) = open(&directory);
        let (sink, status) = (Arc::new(sink), Arc::default());
        let (schedule, failures) = (vec![Duration::from_millis(30); 3], GatewaySection::default().circuit.failures);
        Self { directory, journal, task: Some(task), sink, status, running: None, appended: 0, schedule, failures }
    }

    fn start(&mut self) {
        let section = GatewaySection::default();
        let mut settings = DispatcherSettings::from(&section);
        settings.ordered = false;
        settings.concurrency = 4;
        settings.schedule = Schedule::new(self.schedule.clone());
        settings.circuit_failures = self.failures;
        settings.probe = (Duration::from_millis(50), Duration::from_millis(100));
        let metrics = DeliveryMetrics::register(&mut Registry::default());
        let clock = Arc::new(SystemClock);
        let dispatcher = Dispatcher::new(self.sink.clone(), self.journal.clone(), clock, settings, metrics);
        self.status = dispatcher.status();
        let stop = StopToken::new();
        let token = stop.clone();
        self.running = Some((stop, tokio::spawn(async move { dispatcher.run(token).await.unwrap() })));
    }

    /// As a kill would. Nothing is delivered before the next start.
    async fn kill(&mut self) {
        if let Some((_, task)) = self.running.take() {
            task.abort();
            let _ = task.await;
        }
        let task = self.task.take().unwrap();
        tokio::task::spawn_blocking(move || task.close()).await.unwrap();
        let (journal, task) = open(&self.directory);
        (self.journal, self.task) = (journal, Some(task));
    }

    async fn append(&mut self, event_type: &str, count: usize) {
        for _ in 0..count {
            self.appended += 1;
            let key = self.appended.to_string();
            let head = EventHead::new(EventId::derive("test", &key, None), "test", event_type, "all", key);
            let event = NewEvent { head, body: b"{}".to_vec(), dedupe: Dedupe::Key };
            self.journal.append(event).await.unwrap();
        }
    }

    async fn wait(&self, what: &str, wanted: impl Fn(&SinkRow) -> bool) -> SinkRow {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Ok(row) = self.journal.read(|reader| reader.sink(NAME)).await
                && wanted(&row)
            {
                return row;
            }
            assert!(Instant::now() < deadline, "{what} did not happen: {:?}", self.status.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the circuit is open and nobody is asked: between two probes, say.
    async fn open_again(&self) {
        let deadline = Instant::now() + DEADLINE;
        while self.status.lock().unwrap().circuit != "open" {
            assert!(Instant::now() < deadline, "the circuit is not open: {:?}", self.status.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn all_settled(&self) -> SinkRow {
        let appended = self.appended;
        let row = self.wait("settling everything", |row| row.pending(appended) == 0).await;
        assert_eq!(row.delivered + row.parked + row.dropped + row.filtered, row.accepted(appended), "{row:?}");
        row
    }

    async fn recorded(&self) -> String {
        let value = self.journal.read(|reader| reader.value("recorded")).await.unwrap();
        String::from_utf8(value.unwrap_or_default()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_together_and_each_is_delivered_once() {
    let mut bench = Bench::new(Scripted::new(100, |_| Ok(())));
    bench.append("wanted", 1_050).await;

    bench.start();
    let row = bench.all_settled().await;

    assert_eq!(row.delivered, 1_050);
    let requests = bench.sink.requests();
    assert!(requests.iter().all(|request| request.len() <= 100));
    assert!(requests.len() <= 20, "{} requests", requests.len());
    let mut seqs = requests.concat();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=1_050).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_a_batch_waits_for_others_a_little() {
    let mut bench = Bench::new(Scripted::new(100, |_| Ok(())));
    bench.start();
    bench.append("wanted", 1).await;
    bench.all_settled().await;

    bench.append("wanted", 5).await;
    bench.all_settled().await;

    let requests = bench.sink.requests();
    assert_eq!(requests[0], [1], "one that stays alone goes alone");
    assert!(requests.len() <= 3, "five that come together go together: {requests:?}");
}

/// Whoever shares its requests is delivered, and it is parked when its own schedule is used up.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_every_request_is_soon_alone() {
    let poison = |seqs: &[Seq]| if seqs.contains(&77) { Err(Failure::Busy) } else { Ok(()) };
    let mut bench = Bench::new(Scripted::new(100, poison));
    bench.append("wanted", 300).await;

    bench.start();
    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.parked), (299, 1));
    let found = bench.journal.read(|reader| reader.found(77)).await.unwrap().unwrap();
    assert!(found.deliveries[NAME].row.as_ref().unwrap().reason.contains("gave up after"));
    let failed: Vec<usize> = bench.sink.requests().iter().filter(|r| r.contains(&77)).map(Vec::len).collect();
    assert!(failed[0] > 10 && failed[1] <= 10 && failed[2..].iter().all(|size| *size == 1), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_the_sink_is_passed_by_and_counted() {
    let mut bench = Bench::new(Scripted::new(10, |_| Ok(())));
    bench.start();
    for _ in 0..20 {
        bench.append("unwanted", 7).await;
        bench.append("wanted", 3).await;
    }

    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.filtered), (60, 140));
    assert_eq!(bench.sink.requests().concat().len(), 60);
    assert_eq!(bench.recorded().await, "60", "only what was delivered is recorded");
}

/// A key that is no longer good says nothing about any event: nothing is used up, and nothing else is tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_refuses_us_is_left_alone_until_it_takes_us() {
    let allowed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answer = {
        let allowed = Arc::clone(&allowed);
        move |_: &[Seq]| {
            if allowed.load(std::sync::atomic::Ordering::SeqCst) { Ok(()) } else { Err(Failure::Denied) }
        }
    };
    let mut bench = Bench::new(Scripted::new(10, answer));
    bench.append("wanted", 200).await;
    bench.start();
    let deadline = Instant::now() + DEADLINE;
    // More probes than the schedule has attempts.
    while bench.sink.requests().len() < 12 {
        assert!(Instant::now() < deadline, "it is not probed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let requests = bench.sink.requests();
    assert!(requests[4..].iter().all(|request| request.len() == 1), "one at a time: {requests:?}");
    bench.open_again().await;

    allowed.store(true, std::sync::atomic::Ordering::SeqCst);
    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.parked), (200, 0));
}

/// What the sink does not know enough about yet: nobody was asked, and nobody pays for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_withholds_uses_up_nothing_and_opens_no_circuit() {
    let seen: Mutex<HashMap<Seq, u32>> = Mutex::default();
    let answer = move |seqs: &[Seq]| {
        let mut seen = seen.lock().unwrap();
        let first = seqs.iter().filter(|seq| {
            let times = seen.entry(**seq).or_default();
            *times += 1;
            *times == 1
        });
        if first.count() > 0 { Err(Failure::Withheld) } else { Ok(()) }
    };
    let mut bench = Bench::new(Scripted::new(10, answer));
    bench.append("wanted", 100).await;
    bench.start();

    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.parked), (100, 0));
    let requests = bench.sink.requests();
    // So many failures in a row would have opened the circuit, and what is charged goes one by one.
    assert!(requests[..10].iter().all(|request| request.len() == 10), "{requests:?}");
    assert!(requests.len() < 60, "{requests:?}");
}

/// A probe that asked nobody is not made again at once: it would come to the same event.
#[tokio::test(flavor = "multi_thread")]
async fn withheld_probes_keep_their_distance() {
    let (begin, times) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let answer = {
        let times = Arc::clone(&times);
        move |_: &[Seq]| {
            let mut times = times.lock().unwrap();
            times.push(begin.elapsed());
            if times.len() <= 8 { Err(Failure::Unreachable) } else { Err(Failure::Withheld) }
        }
    };
    let mut bench = Bench::new(Scripted::new(1, answer));
    bench.append("wanted", 200).await;
    bench.start();
    let deadline = Instant::now() + DEADLINE;
    while times.lock().unwrap().len() < 16 {
        assert!(Instant::now() < deadline, "it is not probed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let times = times.lock().unwrap().clone();
    let distances: Vec<Duration> = times[9..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(distances.iter().all(|distance| *distance >= Duration::from_millis(45)), "{distances:?}");
    bench.open_again().await;
}

/// What the sink remembers is in the same commit as the deliveries: cut off anywhere, both agree.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_sink_remembers_agrees_with_what_is_delivered() {
    // As slow as a request is, so that there is a middle to be killed in.
    let slow = |_: &[Seq]| {
        std::thread::sleep(Duration::from_millis(3));
        Ok(())
    };
    let mut bench = Bench::new(Scripted::new(10, slow));
    bench.append("wanted", 2_000).await;
    bench.start();
    let mut before = 0;
    for kills in 0.. {
        // What was on its way may have been all that was left when it was killed.
        let row = bench.wait("progress", |row| row.delivered > before || row.delivered == 2_000).await;
        if row.delivered == 2_000 {
            assert!(kills > 3, "killed {kills} times only");
            break;
        }
        bench.kill().await;
        let read = bench.journal.read(|reader| Ok((reader.sink(NAME)?.delivered, reader.value("recorded")?))).await;
        let (delivered, value) = read.unwrap();
        let value: u64 = String::from_utf8(value.unwrap_or_default()).unwrap().parse().unwrap_or(0);
        assert_eq!(value, delivered, "after {kills} kills");
        let sink = Scripted::new(10, slow);
        sink.recorded.lock().unwrap().extend((1..).take(usize::try_from(value).unwrap()).map(|n: Seq| (-n, 1)));
        bench.sink = Arc::new(sink);
        before = delivered;
        bench.start();
    }
    let row = bench.all_settled().await;
    assert_eq!((row.delivered, bench.recorded().await.as_str()), (2_000, "2000"));
    assert!(bench.sink.recorded.lock().unwrap().values().all(|count| *count == 1), "recorded twice");
}

/// Whatever is delivered ahead of an event that has to come again, it comes again, though nothing new is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_ahead_of_a_lost_request_does_not_keep_it_from_coming_again() {
    let lost = std::sync::atomic::AtomicBool::new(false);
    let first_is_lost = move |seqs: &[Seq]| match seqs {
        [1, ..] if !lost.swap(true, std::sync::atomic::Ordering::SeqCst) => Err(Failure::Unreachable),
        _ => Ok(()),
    };
    let mut bench = Bench::new(Scripted::new(100, first_is_lost));
    // As many as the window holds of them.
    bench.append("wanted", 1_600).await;

    bench.start();
    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.parked), (1_600, 0));
}

/// The same when the sink wants nothing of us by then: it is asked whether it does.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_ahead_of_a_lost_request_does_not_keep_a_refusing_sink_from_being_probed() {
    let state = Arc::new(Mutex::new((false, 0, false)));
    let answer = {
        let state = Arc::clone(&state);
        move |seqs: &[Seq]| {
            let (lost, delivered, allowed) = &mut *state.lock().unwrap();
            match seqs {
                [1, ..] if !std::mem::replace(lost, true) => Err(Failure::Unreachable),
                _ if *delivered < 1_100 || *allowed => {
                    *delivered += seqs.len();
                    Ok(())
                }
                _ => Err(Failure::Denied),
            }
        }
    };
    let mut bench = Bench::new(Scripted::new(100, answer));
    bench.append("wanted", 1_600).await;
    bench.start();
    bench.open_again().await;

    state.lock().unwrap().2 = true;
    let row = bench.all_settled().await;

    assert_eq!((row.delivered, row.parked), (1_600, 0));
}

/// Replays that fail again wait for their schedule and hold up no other.
#[tokio::test(flavor = "multi_thread")]
async fn replays_that_are_put_off_hold_up_no_others() {
    let mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answer = {
        let mended = Arc::clone(&mended);
        move |seqs: &[Seq]| match seqs {
            _ if !mended.load(std::sync::atomic::Ordering::SeqCst) => Err(Failure::Unsendable),
            [seq] if *seq <= 80 => Err(Failure::Busy),
            _ => Ok(()),
        }
    };
    let mut bench = Bench::new(Scripted::new(1, answer));
    bench.schedule = vec![Duration::from_hours(1); 3];
    bench.append("wanted", 200).await;
    bench.start();
    bench.wait("parking", |row| row.parked == 200).await;
    let before = bench.sink.requests().len();
    mended.store(true, std::sync::atomic::Ordering::SeqCst);
    let from = kit::clock::Timestamp::default();
    let replay = Action::Replay { sink: NAME.to_owned(), seqs: (1..=200).collect(), from, spacing_ms: 0.0 };

    bench.journal.act(vec![replay]).await.unwrap();

    bench.wait("delivering those that can be", |row| row.delivered == 120).await;
    let row = bench.wait("recording all attempts", |row| row.open == 80).await;
    assert_eq!((row.delivered, row.parked, row.open), (120, 0, 80));
    let asked = bench.sink.requests()[before..].concat();
    assert!((1..=200).all(|seq| asked.iter().filter(|asked| **asked == seq).count() == 1), "{asked:?}");
}

/// What is put off leaves memory, and its row brings it back in time.
#[tokio::test(flavor = "multi_thread")]
async fn replays_that_are_put_off_come_back_when_they_are_due() {
    let parked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answer = {
        let (parked, seen) = (Arc::clone(&parked), Mutex::new(HashMap::<Seq, u32>::new()));
        move |seqs: &[Seq]| {
            if !parked.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(Failure::Unsendable);
            }
            let mut seen = seen.lock().unwrap();
            let times = seen.entry(seqs[0]).or_default();
            *times += 1;
            if *times <= 2 { Err(Failure::Busy) } else { Ok(()) }
        }
    };
    let mut bench = Bench::new(Scripted::new(1, answer));
    // It is about them and not about the sink: probes would take half a minute for all.
    bench.failures = u32::MAX;
    bench.append("wanted", 150).await;
    bench.start();
    bench.wait("parking", |row| row.parked == 150).await;
    parked.store(true, std::sync::atomic::Ordering::SeqCst);
    let before = bench.sink.requests().len();
    let from = kit::clock::Timestamp::default();
    let replay = Action::Replay { sink: NAME.to_owned(), seqs: (1..=150).collect(), from, spacing_ms: 0.0 };

    bench.journal.act(vec![replay]).await.unwrap();

    let row = bench.wait("delivering", |row| row.delivered == 150).await;
    assert_eq!((row.delivered, row.parked, row.open), (150, 0, 0));
    assert_eq!(bench.sink.requests()[before..].len(), 450, "twice refused, once taken");
}
