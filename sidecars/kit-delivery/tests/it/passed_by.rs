//! Sinks that find an event not to be for them: before it is delivered, or only then. Whatever comes after – other
//! attempts, replays, kills – the account closes and the listing says the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use kit::clock::{SystemClock, Timestamp};
use kit::lifecycle::StopToken;
use kit::retry::Schedule;
use kit_delivery::{
    DeliveryMetrics, Dispatcher, DispatcherSettings, Failure, GatewaySection, Interest, Outcome, PassedBy, Sink,
};
use kit_journal::engine::{Action, SinkRow};
use kit_journal::{Dedupe, DeliveryState, EventHead, EventId, Journal, NewEvent, Seq, StoredEvent};
use prometheus_client::registry::Registry;

use crate::bench::{DEADLINE, open};

const NAME: &str = "choosy";

/// What it says is in the body: a letter an attempt, the last one for all further ones. `F`, `D` and `P` before a colon
/// are said when it is loaded.
struct Choosy {
    attempts: Mutex<HashMap<Seq, usize>>,
}

fn script(event: &StoredEvent) -> String {
    String::from_utf8(event.body.to_vec()).unwrap()
}

impl Sink for Choosy {
    fn name(&self) -> &str {
        NAME
    }

    fn interest(&self, event: &StoredEvent) -> Interest {
        match script(event).as_str() {
            "F:" => Interest::PassedBy(PassedBy::Filtered, "not this one".to_owned()),
            "D:" => Interest::PassedBy(PassedBy::Dropped, "for nobody".to_owned()),
            "P:" => Interest::Parked("for a person".to_owned()),
            "-" => Interest::Unwanted,
            _ => Interest::Wanted,
        }
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        let mut attempts = self.attempts.lock().unwrap();
        let nth = attempts.entry(event.seq).or_default();
        let script = script(event).trim_end_matches(':').to_owned();
        let said = script.as_bytes()[(*nth).min(script.len() - 1)];
        *nth += 1;
        let outcome = match said {
            b'o' => Outcome::delivered(200),
            b'b' => Outcome::failed(Failure::Busy, "busy"),
            b'p' | b'P' => Outcome::failed(Failure::Refused, "no"),
            b'f' | b'F' => Outcome::passed_by(PassedBy::Filtered, "not this one"),
            _ => Outcome::passed_by(PassedBy::Dropped, "for nobody"),
        };
        Box::pin(async move { outcome })
    }
}

async fn append(journal: &Journal, script: &str, n: usize) {
    let key = format!("{script}{n}");
    let subject = format!("subject/{}", n % 7);
    let head = EventHead::new(EventId::derive("test", &key, None), "test", "test.happened", subject, key);
    let event = NewEvent { head, body: script.as_bytes().to_vec(), dedupe: Dedupe::Key };
    journal.append(event).await.unwrap();
}

fn run(journal: &Journal, sink: &Arc<Choosy>) -> (StopToken, tokio::task::JoinHandle<()>) {
    let mut settings = DispatcherSettings::from(&GatewaySection::default());
    settings.circuit_failures = 100_000;
    settings.schedule = Schedule::new(vec![Duration::from_millis(10); 3]);
    let metrics = DeliveryMetrics::register(&mut Registry::default());
    let dispatcher = Dispatcher::new(sink.clone(), journal.clone(), Arc::new(SystemClock), settings, metrics);
    let stop = StopToken::new();
    let token = stop.clone();
    (stop, tokio::spawn(async move { dispatcher.run(token).await.unwrap() }))
}

/// Waits until all is settled; the account must close and agree with the listing all the time.
async fn settled(journal: &Journal, last: Seq) -> SinkRow {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Ok(row) = journal.read(|reader| reader.sink(NAME)).await {
            let sum = row.delivered + row.pending(last) + row.parked + row.dropped + row.filtered;
            assert_eq!(sum, row.accepted(last), "{row:?}");
            if row.pending(last) == 0 {
                return row;
            }
        }
        assert!(Instant::now() < deadline, "nothing moves");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn state(journal: &Journal, seq: Seq) -> (DeliveryState, String) {
    let found = journal.read(move |reader| reader.found(seq)).await.unwrap().unwrap();
    let delivery = &found.deliveries[NAME];
    (delivery.state, delivery.row.as_ref().map(|row| row.reason.clone()).unwrap_or_default())
}

/// Events of a round.
const ROUND: usize = 60;

const SCRIPTS: [(&str, DeliveryState); 13] = [
    ("o", DeliveryState::Delivered),
    ("F:", DeliveryState::Filtered),
    ("D:", DeliveryState::Dropped),
    ("P:", DeliveryState::Parked),
    ("f", DeliveryState::Filtered),
    ("d", DeliveryState::Dropped),
    ("bf", DeliveryState::Filtered),
    ("bd", DeliveryState::Dropped),
    ("bbo", DeliveryState::Delivered),
    ("p", DeliveryState::Parked),
    ("bp", DeliveryState::Parked),
    ("b", DeliveryState::Parked),
    ("bbf", DeliveryState::Filtered),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_be_passed_by_is_listed_and_the_account_closes_also_after_replays_and_kills() {
    let directory = tempfile::TempDir::new().unwrap();
    let (mut journal, mut task) = open(&directory);
    let sink = Arc::new(Choosy { attempts: Mutex::default() });
    journal.act(vec![Action::Register { sink: NAME.to_owned() }]).await.unwrap();
    let mut last = 0;
    for round in 0..6 {
        let (stop, running) = run(&journal, &sink);
        for (n, (script, _)) in SCRIPTS.iter().cycle().take(ROUND).enumerate() {
            append(&journal, script, 1000 * round + n).await;
            last += 1;
        }
        if round % 2 == 0 {
            // Cut off in the middle.
            running.abort();
            let _ = running.await;
        } else {
            settled(&journal, last).await;
            let again: Vec<Seq> = (1..=last).filter(|seq| seq % 5 == 0).collect();
            let (sink_name, from) = (NAME.to_owned(), Timestamp::from_millis(0));
            journal.act(vec![Action::Replay { sink: sink_name, seqs: again, from, spacing_ms: 0.0 }]).await.unwrap();
            settled(&journal, last).await;
            stop.stop();
            running.await.unwrap();
        }
        tokio::task::spawn_blocking(move || task.close()).await.unwrap();
        (journal, task) = open(&directory);
    }
    let (stop, running) = run(&journal, &sink);
    let row = settled(&journal, last).await;

    let mut found: BTreeMap<DeliveryState, u64> = BTreeMap::new();
    for seq in 1..=last {
        let (state, reason) = state(&journal, seq).await;
        *found.entry(state).or_default() += 1;
        let (script, expected) = SCRIPTS[usize::try_from(seq - 1).unwrap() % ROUND % SCRIPTS.len()];
        // Replays, and attempts before a kill, may have gone on in the script; it ends with what it says for good.
        assert!(state == expected, "{seq} {script}: {state:?} {reason}");
        match state {
            DeliveryState::Filtered => assert_eq!(reason, "not this one"),
            DeliveryState::Dropped => assert_eq!(reason, "for nobody"),
            _ => {}
        }
    }
    let count = |state| found.get(&state).copied().unwrap_or(0);
    assert_eq!(
        (row.delivered, row.parked, row.dropped, row.filtered),
        (
            count(DeliveryState::Delivered),
            count(DeliveryState::Parked),
            count(DeliveryState::Dropped),
            count(DeliveryState::Filtered)
        )
    );
    stop.stop();
    running.await.unwrap();
    tokio::task::spawn_blocking(move || task.close()).await.unwrap();
}

/// What a sink parks is listed with the reason and nobody is asked; a person who replays it has it delivered as it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_parks_is_delivered_where_a_person_says_so() {
    let directory = tempfile::TempDir::new().unwrap();
    let (journal, task) = open(&directory);
    let sink = Arc::new(Choosy { attempts: Mutex::default() });
    journal.act(vec![Action::Register { sink: NAME.to_owned() }]).await.unwrap();
    append(&journal, "P:", 0).await;
    append(&journal, "o", 0).await;
    let (stop, running) = run(&journal, &sink);

    let row = settled(&journal, 2).await;
    assert_eq!((row.parked, row.delivered), (1, 1), "its subject goes on");
    assert_eq!(state(&journal, 1).await, (DeliveryState::Parked, "for a person".to_owned()));
    assert!(!sink.attempts.lock().unwrap().contains_key(&1), "nobody was asked");
    let (name, from) = (NAME.to_owned(), Timestamp::from_millis(0));
    journal.act(vec![Action::Replay { sink: name, seqs: vec![1], from, spacing_ms: 0.0 }]).await.unwrap();
    settled(&journal, 2).await;

    assert_eq!(state(&journal, 1).await, (DeliveryState::Parked, "no".to_owned()), "the sink itself has said so");
    assert_eq!(sink.attempts.lock().unwrap()[&1], 1);
    stop.stop();
    running.await.unwrap();
    tokio::task::spawn_blocking(move || task.close()).await.unwrap();
}
