//! What routes cost beside a durable append, in one run on one machine: a ratio, in which only the disk's speed is left of the machine.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::clock::{SystemClock, Timestamp};
use kit_journal::{Dedupe, EventHead, EventId, Journal, JournalSection, NewEvent, StoredEvent};
use kit_routes::{RouteSection, Table, WhenSection};
use prometheus_client::registry::Registry;

/// As many types as Lago has.
const TYPES: usize = 76;
const EVENTS: usize = 4_000;
/// Of an append's time at most. On the fastest disk that was seen it is 8 %, and an accept takes several times an append: what
/// routes cost of that, `tests/load/run routes` measures.
const MOST: f64 = 0.15;
/// Appends at the same time.
const TOGETHER: usize = 64;

/// A hundred routes; only the last one leads anywhere for most types.
fn hundred() -> Table {
    let mut routes: Vec<RouteSection> = (0..99)
        .map(|n| RouteSection {
            name: format!("route-{n}"),
            types: vec![format!("lago.*{n}.creat?d"), format!("lago.nothing{n}.*")],
            when: vec![WhenSection {
                field: "source".to_owned(),
                equals: Some(serde_json::json!("lago/other")),
                ..WhenSection::default()
            }],
            to: vec!["audit".to_owned()],
            ..RouteSection::default()
        })
        .collect();
    routes.push(RouteSection {
        name: "last".to_owned(),
        types: vec!["lago.*".to_owned()],
        to: vec!["gateway".to_owned()],
        ..RouteSection::default()
    });
    Table::compile(&routes, &[], &["gateway".to_owned(), "audit".to_owned()]).unwrap()
}

fn head(n: usize) -> EventHead {
    let key = n.to_string();
    let event_type = format!("lago.object{}.created", n % TYPES);
    EventHead {
        json: true,
        ..EventHead::new(EventId::derive("lago/acme", &key, None), "lago/acme", event_type, "a/b", key)
    }
}

/// The shortest of a few runs: what disturbs a run only makes it longer.
fn shortest(mut run: impl FnMut() -> Duration) -> Duration {
    (0..5).map(|_| run()).min().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_globs_cost_little_beside_an_append() {
    let body = format!("{{\"invoice\":\"{}\"}}", "x".repeat(2_000));
    let folder = tempfile::TempDir::new().unwrap();
    let section = JournalSection { path: folder.path().join("j.db"), ..JournalSection::default() };
    let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
    let mut appending = Duration::MAX;
    for round in 0..3 {
        let begin = Instant::now();
        let appenders = (0..TOGETHER).map(|place| {
            let (journal, body) = (journal.clone(), body.clone());
            tokio::spawn(async move {
                for n in (place..EVENTS).step_by(TOGETHER) {
                    let event = NewEvent {
                        head: head(round * EVENTS + n),
                        body: body.clone().into_bytes(),
                        dedupe: Dedupe::Key,
                    };
                    journal.append(event).await.unwrap();
                }
            })
        });
        for appender in appenders.collect::<Vec<_>>() {
            appender.await.unwrap();
        }
        appending = appending.min(begin.elapsed());
    }
    tokio::task::spawn_blocking(move || task.close()).await.unwrap();

    let table = hundred();
    let events: Vec<StoredEvent> = (0..EVENTS)
        .map(|n| StoredEvent { seq: 1, at: Timestamp::from_millis(0), head: head(n), body: body.clone().into() })
        .collect();
    let routing = shortest(|| {
        let begin = Instant::now();
        for event in &events {
            // One walk for each of two sinks.
            std::hint::black_box((table.walk(0, event, |_| None), table.walk(1, event, |_| None)));
        }
        begin.elapsed()
    });

    let share = routing.as_secs_f64() / appending.as_secs_f64();
    let each = |all: Duration| all.as_secs_f64() * 1e6 / EVENTS as f64;
    println!("append {:.1} us, two walks {:.2} us, share {:.2} %", each(appending), each(routing), share * 100.0);
    assert!(share < MOST, "routes take {:.1} % of the time of an append", share * 100.0);
}
