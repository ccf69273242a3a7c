//! Whatever Lago answers, in whatever order: each event ends delivered, or parked for what Lago has said of it, by requests
//! that Lago can take. Journal, dispatcher and sink are the real ones, and the answers come over the wire.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kit::clock::{SystemClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_delivery::config::CircuitSection;
use kit_delivery::{DeliveryMetrics, Dispatcher, DispatcherSettings};
use kit_journal::{DeliveryState, Journal, JournalSection, NewEvent, Seq};
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::admit::admit;
use crate::catalogue::{Failed, Known};

/// What a request holds at most.
const MOST: usize = 100;
const DEADLINE: Duration = Duration::from_secs(60);

/// What Lago finds wrong with an event.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// It is there already.
    Known,
    Other,
    /// It is there already, and there is something else.
    KnownAndOther,
}

impl Wrong {
    fn details(self) -> serde_json::Value {
        match self {
            Self::Known => json!({ "transaction_id": ["value_already_exist"] }),
            Self::Other => json!({ "code": ["value_is_mandatory"] }),
            Self::KnownAndOther => json!({ "transaction_id": ["value_already_exist", "value_is_invalid"] }),
        }
    }

    fn told(self) -> Told {
        let words = match self {
            Self::Known => return Told::Done,
            Self::Other => "code: value_is_mandatory",
            Self::KnownAndOther => "transaction_id: value_already_exist, value_is_invalid",
        };
        Told::Refused(format!("Lago refuses it: {words}"))
    }
}

/// What Lago answers to a request.
#[derive(Clone, Debug)]
enum Answer {
    /// 200 with its events.
    Taken,
    /// 422 with what is wrong, by place.
    Refused(Vec<(Index, Wrong)>),
    /// 422 about an event that the request does not have.
    Beyond,
    /// A body that says nothing of any event.
    Unclear(u16, String),
    /// 200 with an event too many.
    Miscounted,
    /// 200, and the body breaks off.
    BrokenOff,
}

/// What an answer says of an event.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    /// Lago has it.
    Done,
    /// Lago will never take it, in these words.
    Refused(String),
    /// Others of its request are wrong.
    Nothing,
    /// There is no answer about events, in these words.
    Failed(String),
}

impl Answer {
    fn say(&self, events: usize) -> (Response, Vec<Told>) {
        let invalid = |details: &serde_json::Map<String, serde_json::Value>| {
            let body = json!({ "status": 422, "error": "Unprocessable Entity", "code": "validation_errors", "error_details": details });
            (StatusCode::UNPROCESSABLE_ENTITY, body.to_string()).into_response()
        };
        let unclear = || Told::Failed("answered 422 and did not say which event is wrong".to_owned());
        let uncounted = || Told::Failed("answered 200 OK without the events".to_owned());
        let with = |count: usize| json!({ "events": vec![json!({}); count] }).to_string().into_response();
        match self {
            Self::Taken => (with(events), vec![Told::Done; events]),
            Self::Refused(wrong) => {
                let (mut details, mut told) = (serde_json::Map::new(), vec![Told::Nothing; events]);
                for (place, wrong) in wrong {
                    let place = place.index(events);
                    details.insert(place.to_string(), wrong.details());
                    told[place] = wrong.told();
                }
                (invalid(&details), told)
            }
            Self::Beyond => {
                let places = [("0".to_owned(), Wrong::Other.details()), (events.to_string(), Wrong::Known.details())];
                (invalid(&places.into_iter().collect()), vec![unclear(); events])
            }
            Self::Miscounted => (with(events + 1), vec![uncounted(); events]),
            Self::BrokenOff => {
                let parts = [Ok(Bytes::from_static(b"{\"events\":[")), Err(std::io::Error::other("broken off"))];
                let body = Body::from_stream(futures_util::stream::iter(parts));
                (body.into_response(), vec![Told::Failed("answer broke off".to_owned()); events])
            }
            Self::Unclear(status, body) => {
                let status = StatusCode::from_u16(*status).unwrap();
                let told = match status.as_u16() {
                    200 => uncounted(),
                    422 => unclear(),
                    401 => Told::Failed("Lago refuses LAGO_API_KEY".to_owned()),
                    // About the request, not about what is in it, unless it is alone.
                    413 if events == 1 => Told::Refused(format!("answered {status}")),
                    _ => Told::Failed(format!("answered {status}")),
                };
                ((status, body.clone()).into_response(), vec![told; events])
            }
        }
    }
}

/// Answers from a script; when that is over, takes everything but what it cannot stand.
#[derive(Debug, Default)]
struct Lago {
    script: Mutex<VecDeque<Answer>>,
    /// An event that makes every request fail.
    poison: Option<String>,
    requests: Mutex<Vec<Vec<(String, Told)>>>,
}

impl Lago {
    fn answer(&self, body: &[u8]) -> Response {
        #[derive(serde::Deserialize)]
        struct Batch {
            events: Vec<Box<RawValue>>,
        }
        let batch: Batch = serde_json::from_slice(body).unwrap();
        let events: Vec<String> = batch.events.iter().map(|event| event.get().to_owned()).collect();
        let is_poisoned = self.poison.as_ref().is_some_and(|poison| events.contains(poison));
        let next = self.script.lock().unwrap().pop_front();
        let answer = if is_poisoned { Answer::Unclear(500, String::new()) } else { next.unwrap_or(Answer::Taken) };
        let (response, told) = answer.say(events.len());
        self.requests.lock().unwrap().push(events.into_iter().zip(told).collect());
        response
    }

    async fn start(self: Arc<Self>) -> String {
        let answer = |State(lago): State<Arc<Self>>, body: Bytes| async move { lago.answer(&body) };
        let router = Router::new().route("/api/v1/events/batch", axum::routing::post(answer)).with_state(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }
}

/// What producers send, and what Lago does about it.
#[derive(Clone, Debug)]
struct Case {
    /// Transaction and subscription of each.
    events: Vec<(u16, u8)>,
    answers: Vec<Answer>,
    poison: Option<Index>,
    concurrency: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let wrong = prop_oneof![4 => Just(Wrong::Known), 3 => Just(Wrong::Other), 1 => Just(Wrong::KnownAndOther)];
    let refused = prop::collection::vec((any::<Index>(), wrong), 1..6).prop_map(Answer::Refused);
    let status = prop::sample::select(vec![200_u16, 400, 401, 413, 421, 422, 422, 500, 500, 503]);
    let body =
        prop_oneof![Just(String::new()), "\\PC{0,40}", Just(r#"{"status":422,"code":"third_party"}"#.to_owned())];
    let answer = prop_oneof![
        3 => Just(Answer::Taken),
        8 => refused,
        1 => Just(Answer::Beyond),
        4 => (status, body).prop_map(|(status, body)| Answer::Unclear(status, body)),
        1 => Just(Answer::Miscounted),
        1 => Just(Answer::BrokenOff),
    ];
    // A few that meet every answer, or more than a request holds; ids that are all the same, or hardly ever.
    let events = prop_oneof![Just((1..6, 3_u16)), Just((1..260, 3)), Just((1..260, 200))]
        .prop_flat_map(|(count, ids)| prop::collection::vec((0..ids, 0..5_u8), count));
    (events, prop::collection::vec(answer, 0..30), prop::option::of(any::<Index>()), 1..6_usize)
        .prop_map(|(events, answers, poison, concurrency)| Case { events, answers, poison, concurrency })
}

fn written(transaction: u16, subscription: u8) -> String {
    // Some without a time: theirs is that of the receipt.
    let timestamp = if transaction.is_multiple_of(3) { "" } else { r#""timestamp":1732000000.5,"# };
    format!(
        r#"{{"transaction_id":"t-{transaction}","external_subscription_id":"s-{subscription}","code":"c",{timestamp}"properties":{{"n":{transaction}.{subscription}0}}}}"#
    )
}

/// What became of an event, and why.
type End = (DeliveryState, String);

/// Runs a case to its end; bodies as they are in the journal with their ends, and what Lago was asked.
async fn run(case: Case, journal: &Journal) -> (HashMap<String, End>, Vec<Vec<(String, Told)>>) {
    let received = Timestamp::from_millis(1_732_000_000_250);
    let mut admitted: Vec<NewEvent> = case
        .events
        .iter()
        .map(|(transaction, subscription)| {
            let event = RawValue::from_string(written(*transaction, *subscription)).unwrap();
            admit(&event, None, received).unwrap()
        })
        .collect();
    let poison = case.poison.map(|index| index.get(&admitted).body.clone());
    let lago = Arc::new(Lago {
        script: Mutex::new(case.answers.into()),
        poison: poison.map(|body| String::from_utf8(body).unwrap()),
        requests: Mutex::default(),
    });
    let section = LagoSection {
        api_url: Some(Arc::clone(&lago).start().await),
        batch_size: MOST,
        linger_seconds: 0.0,
        concurrency: case.concurrency,
        retry_schedule_seconds: vec![0.001; 3],
        // It opens at once: what has no answer then waits for a probe, not for a second.
        circuit: CircuitSection { failures: 1, probe_seconds: 0.001, probe_max_seconds: 0.01 },
        ..LagoSection::default()
    };
    let (stop, dispatcher) = dispatcher(&section, journal).await;
    let token = stop.clone();
    let task = tokio::spawn(async move { dispatcher.run(token).await.unwrap() });
    let (mut seqs, mut last) = (HashMap::new(), 0);
    while !admitted.is_empty() {
        let some: Vec<NewEvent> = admitted.drain(..admitted.len().min(64)).collect();
        let bodies: Vec<String> = some.iter().map(|event| String::from_utf8(event.body.clone()).unwrap()).collect();
        for (body, appended) in bodies.into_iter().zip(journal.append_together(some).await.unwrap()) {
            last = last.max(appended.seq);
            seqs.insert(body, appended.seq);
        }
    }
    settled(journal, last).await;
    stop.stop();
    task.await.unwrap();
    let mut ends = HashMap::new();
    for (body, seq) in seqs {
        let found = journal.read(move |reader| reader.found(seq)).await.unwrap().unwrap();
        let delivery = &found.deliveries[SINK];
        let reason = delivery.row.as_ref().map(|row| row.reason.clone()).unwrap_or_default();
        ends.insert(body, (delivery.state, reason));
    }
    let requests = std::mem::take(&mut *lago.requests.lock().unwrap());
    (ends, requests)
}

async fn dispatcher(section: &LagoSection, journal: &Journal) -> (StopToken, Dispatcher) {
    let (clock, key): (SharedClock, _) = (Arc::new(SystemClock), Secret::from("key".to_owned()));
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    // Lago does not tell what it knows: everything is sent.
    let (_, known) = Known::told(None, Some(Failed::Refused));
    let mut registry = Registry::default();
    let metrics = UsageMetrics::register(&mut registry);
    let sections = (section, &ChecksSection::default());
    let books = Arc::new(Books::new(journal.clone()));
    let sink = LagoSink::new(sections, client, &key, known, Arc::clone(&clock), metrics, books).unwrap();
    let settings = DispatcherSettings::unordered((section.concurrency, 0), &section.retry(), &section.circuit);
    let metrics = DeliveryMetrics::register(&mut registry);
    (StopToken::new(), Dispatcher::new(Arc::new(sink), journal.clone(), clock, settings, metrics))
}

async fn settled(journal: &Journal, last: Seq) {
    let begin = Instant::now();
    loop {
        let row = journal.read(|reader| reader.sink(SINK)).await;
        if row.as_ref().is_ok_and(|row| row.pending(last) == 0) {
            return;
        }
        assert!(begin.elapsed() < DEADLINE, "not settled: {row:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_event_ends_as_lago_has_said_of_it(case in cases()) {
        let directory = TempDir::new().unwrap();
        let section = JournalSection { path: directory.path().join("j.db"), ..JournalSection::default() };
        let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (ends, requests) = runtime.block_on(run(case, &journal));
        drop((runtime, journal));
        task.close();

        let mut told: HashMap<&str, Vec<(usize, &Told)>> = HashMap::new();
        for request in &requests {
            prop_assert!((1..=MOST).contains(&request.len()), "{} events", request.len());
            let mut ids = HashSet::new();
            for (event, said) in request {
                let transaction_id = Stored::read(event.as_bytes()).unwrap().transaction_id.into_owned();
                prop_assert!(ids.insert(transaction_id), "twice in a request: {event}");
                prop_assert!(ends.contains_key(event), "not as it was taken: {event}");
                told.entry(event).or_default().push((request.len(), said));
            }
        }
        for (event, (state, reason)) in &ends {
            let told = told.get(event.as_str()).map(Vec::as_slice).unwrap_or_default();
            let is_over = |said: &Told| matches!(said, Told::Done | Told::Refused(_));
            let Some(((alone, last), before)) = told.split_last() else {
                return Err(TestCaseError::fail(format!("never sent: {event}")));
            };
            prop_assert!(!before.iter().any(|(_, said)| is_over(said)), "sent after Lago's last word: {event} {told:?}");
            let as_told = match (state, last) {
                (DeliveryState::Delivered, Told::Done) => true,
                (DeliveryState::Parked, Told::Refused(words)) => reason == words,
                // What fails all is alone before it is given up.
                (DeliveryState::Parked, Told::Failed(words)) => {
                    *alone == 1 && reason.starts_with("gave up after 4 attempts: ")
                        && (reason.contains(words)
                            // It may break off before its head.
                            || words == "answer broke off" && reason.contains("error sending request"))
                }
                _ => false,
            };
            prop_assert!(as_told, "{event} is {state:?} ({reason}) and was told {told:?}");
        }
    }
}
