//! Which of several replicas over one journal reads from Authentik: one at a time, by a lease of the journal. Two that read
//! would do no harm – each event is stored once –, but Authentik would be asked twice as often.

use std::time::Duration;

use kit::admin::Part;
use kit::lifecycle::StopToken;
use kit_journal::{Held, Journal};

/// How often whoever stands by asks whether it is its turn.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Giving the lease back is not worth a longer wait: it runs out by itself.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(1);

/// The right to read.
#[derive(Debug)]
pub(super) struct Turn {
    journal: Journal,
    name: String,
    ready: Part,
}

impl Turn {
    pub(super) fn new(journal: &Journal, name: String, ready: Part) -> Self {
        Self { journal: journal.clone(), name, ready }
    }

    /// Waits until this replica may read; `None` when it is time to stop.
    pub(super) async fn wait(&self, stop: &StopToken) -> Option<Held> {
        let mut said = String::new();
        while !stop.is_stopped() {
            let asked = tokio::select! {
                () = stop.stopped() => break,
                asked = self.journal.lease(&self.name) => asked,
            };
            match asked {
                Ok(Some(lease)) => {
                    if !lease.is_for_good() {
                        tracing::info!(lease = lease.epoch(), "this replica reads Authentik's events now");
                    }
                    return Some(lease);
                }
                Ok(None) => self.ready.set_ready_but("another replica reads Authentik's events"),
                Err(error) => {
                    let text = kit::error::chain(&error);
                    self.ready.set_ready_but(&format!("events are only taken from webhooks: {text}"));
                    if text != said {
                        tracing::warn!(error = %text, "which replica reads Authentik's events cannot be found out: {text}");
                        said = text;
                    }
                }
            }
            tokio::select! {
                () = stop.stopped() => {}
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
        None
    }

    /// Another one may go on from here.
    pub(super) async fn end(&self, lease: Held) {
        if !lease.is_for_good() {
            tracing::info!("this replica does not read Authentik's events any more");
        }
        // What cannot be given back runs out.
        let _ = tokio::time::timeout(GIVE_BACK_WITHIN, lease.give_back()).await;
    }
}
