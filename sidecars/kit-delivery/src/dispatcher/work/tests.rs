#![allow(clippy::unwrap_used)]
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::clock::SystemClock;
use kit::secret::Secret;
use kit_journal::engine::Action;
use kit_journal::{EngineKind, EventHead, EventId, Journal, JournalSection};
use kit_workbench::database::Database;
use prometheus_client::registry::Registry;

use super::*;

/// A sink that may not be asked any more.
struct Forbidden;

impl Sink for Forbidden {
    fn name(&self) -> &'static str {
        "forbidden"
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        async move { panic!("asked about {}", event.seq) }.boxed()
    }
}

/// What a frozen process does first when it goes on: it has read an event, and its lease has run out meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_sink_is_not_asked_without_the_lease() {
    let opened = tokio::task::spawn_blocking(|| {
        let server = Database::start(&[]).unwrap();
        server.create("j").unwrap();
        let database_url = Some(Secret::from(server.url("j")));
        let section = JournalSection { engine: EngineKind::Postgres, database_url, ..JournalSection::default() };
        let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        (server, journal, task)
    });
    let (server, journal, task) = opened.await.unwrap();
    journal.act(vec![Action::Register { sink: "forbidden".to_owned() }]).await.unwrap();
    let held = journal.lease("forbidden").await.unwrap().unwrap();
    server.sql("j", "UPDATE outrigger.leases SET holder = gen_random_uuid(), epoch = epoch + 1").unwrap();
    let mut end = held.end();
    tokio::time::timeout(Duration::from_secs(30), end.lost()).await.unwrap();
    let head = EventHead::new(EventId::derive("s", "k", None), "s", "t", "", "k");
    let event = StoredEvent { seq: 7, at: kit::clock::Timestamp::default(), head, body: bytes::Bytes::new() };
    let clock: SharedClock = Arc::new(SystemClock);

    let ended = ask(&Forbidden, &clock, &end, &[Arc::new(event)]).await;

    assert!(matches!(&ended[..], [(7, Err(NotAsked::Unread(_)))]));
    tokio::task::spawn_blocking(move || task.close()).await.unwrap();
}
