//! Events of the daemon's own, for the gateway.

use futures_util::future::BoxFuture;
use kit::clock::SharedClock;
use kit_delivery::HttpSink;
use kit_delivery::{Outcome, Sink};
use kit_journal::{Dedupe, EventHead, EventId, Journal, NewEvent, StoredEvent};
use serde_json::Value;

/// CloudEvents `source` of these events.
pub(crate) const SOURCE: &str = "lago-usage-tracker";
/// Name of the sink in the journal, metrics and the API.
pub(crate) const SINK: &str = "gateway";

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

    /// Tells something once: the same `kind` and `key` again are the same event. What the journal cannot take is told
    /// when it is found again.
    pub(crate) async fn tell(&self, kind: &str, subject: &str, key: &str, data: &Value) {
        let Some(journal) = &self.journal else { return };
        let key = format!("{kind}/{key}");
        let head = EventHead {
            json: true,
            time: Some(self.clock.now().to_string()),
            ..EventHead::new(EventId::derive(SOURCE, &key, None), SOURCE, kind, subject, key)
        };
        let event = NewEvent { head, body: data.to_string().into_bytes(), dedupe: Dedupe::Key };
        match journal.append(event).await {
            Ok(appended) if !appended.duplicate => {
                tracing::info!(kind, id = %appended.id, "{kind} is told to the gateway")
            }
            Ok(_) => {}
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::warn!(kind, error = %error, "{kind} cannot be told to the gateway yet: {error}");
            }
        }
    }
}

/// The gateway takes these events and nothing else.
#[derive(Debug)]
pub(crate) struct Gateway(pub(crate) HttpSink);

impl Sink for Gateway {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn wants(&self, head: &EventHead) -> bool {
        head.source == SOURCE
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        self.0.deliver(event)
    }
}
