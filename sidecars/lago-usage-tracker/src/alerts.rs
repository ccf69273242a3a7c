//! Events of the daemon's own, for the gateway.

use futures_util::future::BoxFuture;
use std::time::Duration;

use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use kit_delivery::HttpSink;
use kit_delivery::{Outcome, Sink};
use kit_journal::engine::Settlement;
use kit_journal::{Dedupe, EventHead, EventId, Journal, JournalError, NewEvent, Seq, StoredEvent};
use serde_json::Value;

/// CloudEvents `source` of these events.
pub(crate) const SOURCE: &str = "lago-usage-tracker";
/// Name of the sink in the journal, metrics and the API.
pub(crate) const SINK: &str = "gateway";
/// How far a gateway that is gone may be behind.
const PASS_BY_EVERY: Duration = Duration::from_secs(10);

/// What became of something that was to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is in the journal now, or there is nobody to tell it to.
    Now,
    /// It was told before.
    Before,
    /// The journal could not take it: to be told again.
    NotYet,
}

/// Puts events into the journal, from where they go to the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Alerts {
    /// `None` where no gateway is configured.
    journal: Option<Journal>,
    clock: SharedClock,
}

impl Alerts {
    pub(crate) fn new(journal: Option<Journal>, clock: SharedClock) -> Self {
        Self { journal, clock }
    }

    /// Tells something once: the same `kind` and `key` again are the same event.
    pub(crate) async fn tell(&self, kind: &str, subject: &str, key: &str, data: &Value) -> Told {
        let Some(journal) = &self.journal else { return Told::Now };
        let key = format!("{kind}/{key}");
        let head = EventHead {
            json: true,
            time: Some(self.clock.now().to_string()),
            ..EventHead::new(EventId::derive(SOURCE, &key, None), SOURCE, kind, subject, key)
        };
        let event = NewEvent { head, body: data.to_string().into_bytes(), dedupe: Dedupe::Key };
        match journal.append(event).await {
            Ok(appended) if appended.duplicate => Told::Before,
            Ok(appended) => {
                tracing::info!(kind, id = %appended.id, "{kind} is told to the gateway");
                Told::Now
            }
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::warn!(kind, error = %error, "{kind} cannot be told to the gateway yet: {error}");
                Told::NotYet
            }
        }
    }
}

/// Where the gateway is not configured any more: its row in the journal follows the others, so that it does not keep what
/// they have delivered from being removed.
pub(crate) async fn pass_by(journal: Journal, stop: StopToken) -> Result<(), std::convert::Infallible> {
    loop {
        if let Err(error) = pass_by_once(&journal).await {
            let error = kit::error::chain(&error);
            tracing::debug!(error = %error, "what is not for anybody cannot be passed by now: {error}");
        }
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = tokio::time::sleep(PASS_BY_EVERY) => {}
        }
    }
}

async fn pass_by_once(journal: &Journal) -> Result<(), JournalError> {
    let tail = *journal.tail().borrow();
    if left(journal, tail).await?.is_none() {
        return Ok(());
    }
    // Where another replica passes them by, they are passed by.
    let Some(held) = journal.lease(SINK).await? else { return Ok(()) };
    let passed = pass_by_alone(journal, tail, held.epoch()).await;
    passed.and(held.give_back().await)
}

/// How many up to `tail` have no row of their own; `None` where all are passed, or there never was a gateway.
async fn left(journal: &Journal, tail: Seq) -> Result<Option<u64>, JournalError> {
    let read = journal.read(move |reader| {
        let cursor = match reader.sink(SINK) {
            Ok(row) => row.cursor,
            Err(JournalError::UnknownSink(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let rows = reader.rows_between(SINK, cursor, tail)?.len();
        Ok((tail > cursor).then(|| u64::try_from(tail - cursor).unwrap_or(0).saturating_sub(rows as u64)))
    });
    read.await
}

/// Under the lease nobody else moves the cursor: what was counted before may be another number by now.
async fn pass_by_alone(journal: &Journal, tail: Seq, lease: u64) -> Result<(), JournalError> {
    let Some(filtered) = left(journal, tail).await? else { return Ok(()) };
    let sink = SINK.to_owned();
    journal.settle(vec![Settlement { sink, lease, cursor: tail, filtered, ..Settlement::default() }]).await
}

/// Whether an event is for the gateway.
pub(crate) fn wants(head: &EventHead) -> bool {
    head.source == SOURCE
}

/// The gateway takes these events and nothing else.
#[derive(Debug)]
pub(crate) struct Gateway(pub(crate) HttpSink);

impl Sink for Gateway {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn wants(&self, head: &EventHead) -> bool {
        wants(head)
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        self.0.deliver(event)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::time::Instant;

    use kit::clock::SystemClock;
    use kit::secret::Secret;
    use kit_journal::engine::Action;
    use kit_journal::{EngineKind, JournalSection};
    use kit_workbench::database::Database;
    use prometheus_client::registry::Registry;

    use super::*;

    /// Another replica passes some of them by while this one waits for the lease.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_several_replicas_pass_by_is_counted_once() {
        let opened = tokio::task::spawn_blocking(|| {
            let server = Database::start(&[]).unwrap();
            server.create("j").unwrap();
            let database_url = Some(Secret::from(server.url("j")));
            let section = JournalSection { engine: EngineKind::Postgres, database_url, ..JournalSection::default() };
            let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
            (server, journal, task)
        });
        let (server, journal, task) = opened.await.unwrap();
        journal.act(vec![Action::Register { sink: SINK.to_owned() }]).await.unwrap();
        for key in ["a", "b", "c"] {
            let head = EventHead::new(EventId::derive("s", key, None), "s", "t", "", key);
            journal.append(NewEvent { head, body: b"{}".to_vec(), dedupe: Dedupe::Key }).await.unwrap();
        }
        let mut keeping = Command::new("psql")
            .args(["-XAtq", &server.url("j")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        writeln!(keeping.stdin.as_mut().unwrap(), "BEGIN; LOCK TABLE outrigger.leases;").unwrap();
        let until = |wanted: &str| {
            let sql = format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'j' AND {wanted}");
            let since = Instant::now();
            while server.sql("j", &sql).unwrap() != "t" {
                assert!(since.elapsed() < Duration::from_secs(30), "{wanted}");
            }
        };
        until("state = 'idle in transaction'");

        let passing = tokio::spawn({
            let journal = journal.clone();
            async move { pass_by_once(&journal).await }
        });
        until("wait_event_type = 'Lock'");
        server.sql("j", "UPDATE outrigger.sinks SET cursor = 2, filtered = 2").unwrap();
        drop(keeping.stdin.take());
        keeping.wait().unwrap();
        passing.await.unwrap().unwrap();

        let row = journal.read(|reader| reader.sink(SINK)).await.unwrap();
        assert_eq!((row.cursor, row.delivered, row.filtered), (3, 0, 3));
        tokio::task::spawn_blocking(move || task.close()).await.unwrap();
    }
}
