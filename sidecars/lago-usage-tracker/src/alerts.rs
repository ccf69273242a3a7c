//! Events of the daemon's own, for the gateway.

use futures_util::future::BoxFuture;
use std::time::Duration;

use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use kit_delivery::HttpSink;
use kit_delivery::{Outcome, Sink};
use kit_journal::engine::Settlement;
use kit_journal::{Dedupe, EventHead, EventId, Journal, JournalError, NewEvent, StoredEvent};
use serde_json::Value;

/// CloudEvents `source` of these events.
pub(crate) const SOURCE: &str = "lago-usage-tracker";
/// Name of the sink in the journal, metrics and the API.
pub(crate) const SINK: &str = "gateway";
/// How far a gateway that is gone may be behind.
const PASS_BY_EVERY: Duration = Duration::from_secs(10);

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

    /// Tells something once: the same `kind` and `key` again are the same event. False where the journal could not take
    /// it: to be told again.
    pub(crate) async fn tell(&self, kind: &str, subject: &str, key: &str, data: &Value) -> bool {
        let Some(journal) = &self.journal else { return true };
        let key = format!("{kind}/{key}");
        let head = EventHead {
            json: true,
            time: Some(self.clock.now().to_string()),
            ..EventHead::new(EventId::derive(SOURCE, &key, None), SOURCE, kind, subject, key)
        };
        let event = NewEvent { head, body: data.to_string().into_bytes(), dedupe: Dedupe::Key };
        match journal.append(event).await {
            Ok(appended) => {
                if !appended.duplicate {
                    tracing::info!(kind, id = %appended.id, "{kind} is told to the gateway");
                }
                true
            }
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::warn!(kind, error = %error, "{kind} cannot be told to the gateway yet: {error}");
                false
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
    let read = journal.read(move |reader| {
        let cursor = match reader.sink(SINK) {
            Ok(row) => row.cursor,
            // There never was one.
            Err(JournalError::UnknownSink(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let rows = reader.rows_between(SINK, cursor, tail)?.len();
        Ok((tail > cursor).then(|| u64::try_from(tail - cursor).unwrap_or(0).saturating_sub(rows as u64)))
    });
    let Some(filtered) = read.await? else { return Ok(()) };
    // Where another replica passes them by, they are passed by.
    let Some(held) = journal.lease(SINK).await? else { return Ok(()) };
    let (sink, lease) = (SINK.to_owned(), held.epoch());
    let settled =
        journal.settle(vec![Settlement { sink, lease, cursor: tail, filtered, ..Settlement::default() }]).await;
    held.give_back().await?;
    settled
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
