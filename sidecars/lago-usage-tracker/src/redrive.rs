//! Parked events that fit by now go on after all: their metric or subscription has appeared, or their time has come.

use std::sync::Arc;
use std::time::Duration;

use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_journal::engine::{Action, AuditRecord};
use kit_journal::{DeliveryState, EventFilter, Journal, JournalError, Seq, StoredEvent};
use tokio::time::Instant;

use crate::admit::Stored;
use crate::catalogue::{Catalogue, Known};
use crate::check::{Kind, Policy, check, whose};
use crate::config::ChecksSection;
use crate::resolve::RESOLVE;
use crate::sender::SINK;

/// Parked events looked at in one read.
const PAGE: u32 = 500;
/// After an operator's action: what it has sent is judged and recorded by then.
const AFTER_AN_ACTION: Duration = Duration::from_secs(1);
/// Between two reads, so that deliveries come first.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Redrive {
    pub(crate) journal: Journal,
    pub(crate) known: Known,
    pub(crate) clock: SharedClock,
    pub(crate) checks: ChecksSection,
}

impl Redrive {
    /// Looks through what is parked whenever Lago tells something new, and now and then for what was parked meanwhile.
    pub(crate) async fn run(mut self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let every = Duration::try_from_secs_f64(self.checks.refresh_seconds).unwrap_or(Duration::from_secs(300));
        let mut last: Option<(Arc<Catalogue>, Instant)> = None;
        let mut actions = self.journal.actions();
        loop {
            let changed = tokio::select! {
                () = stop.stopped() => return Ok(()),
                seen = self.known.changed() => seen,
                Ok(()) = actions.changed() => {
                    // Who has parked events sent again has mended something in Lago, most likely. What was parked again
                    // by what was known before is then found here.
                    tokio::time::sleep(AFTER_AN_ACTION).await;
                    self.known.look_again(self.clock.now());
                    continue;
                }
            };
            // Whoever asks has ended, and with it the daemon.
            let Some(seen) = changed else { return Ok(()) };
            let Some(catalogue) = seen.catalogue.filter(|_| seen.failed.is_none()) else { continue };
            let is_due =
                last.as_ref().is_none_or(|(known, at)| !known.says_the_same(&catalogue) || at.elapsed() >= every);
            if !is_due {
                continue;
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                looked = self.look_through(Arc::clone(&catalogue)) => match looked {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "{count} parked events fit what Lago knows by now and are sent"),
                    Err(error) => {
                        let error = kit::error::chain(&error);
                        tracing::warn!(error = %error, "parked events cannot be looked through: {error}");
                    }
                },
            }
            last = Some((catalogue, Instant::now()));
        }
    }

    async fn look_through(&self, catalogue: Arc<Catalogue>) -> Result<u64, JournalError> {
        let (mut before, mut sink, mut sent) = (None, RESOLVE, 0);
        loop {
            let (now, checks, catalogue) = (self.clock.now(), self.checks.clone(), Arc::clone(&catalogue));
            let read = self.journal.browse(move |reader| {
                let mut filter = EventFilter::default();
                (filter.state, filter.sink) = (Some(DeliveryState::Parked), Some(sink.to_owned()));
                let page = reader.search(&filter, before, PAGE, u64::from(PAGE))?;
                let mut fit: Vec<Seq> = Vec::new();
                for found in &page.found {
                    let row = found.deliveries.get(sink).and_then(|delivery| delivery.row.as_ref());
                    if !row.is_some_and(|row| may_change(&row.reason)) {
                        continue;
                    }
                    let Some(event) = reader.event(found.event.seq)? else { continue };
                    if fits(&event, sink, &catalogue, &checks, now) {
                        fit.push(event.seq);
                    }
                }
                Ok((page.next, fit))
            });
            let (next, fit) = read.await?;
            if !fit.is_empty() {
                sent += self.send(sink, fit).await?;
            }
            (before, sink) = match (next, sink) {
                (Some(next), sink) => (Some(next), sink),
                (None, RESOLVE) => (None, SINK),
                (None, _) => return Ok(sent),
            };
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn send(&self, sink: &str, seqs: Vec<Seq>) -> Result<u64, JournalError> {
        let now = self.clock.now();
        let detail =
            serde_json::json!({ "sink": sink, "events": seqs.len(), "why": "they fit what Lago knows by now" });
        let audit =
            AuditRecord { at: now, actor: "catalogue".to_owned(), action: "deliveries.replay".to_owned(), detail };
        let replay = Action::Reconsider { sink: sink.to_owned(), seqs, from: now };
        let outcomes = self.journal.act(vec![replay, Action::Audit(audit)]).await?;
        Ok(outcomes.first().map_or(0, |outcome| outcome.changed))
    }
}

/// Whether a sink would take by now what it has parked.
fn fits(event: &StoredEvent, sink: &str, catalogue: &Catalogue, checks: &ChecksSection, now: Timestamp) -> bool {
    let Some(stored) = Stored::read(&event.body) else { return false };
    if sink == RESOLVE {
        let customer = event.head.tenant.as_deref().unwrap_or_default();
        return whose(customer, stored.time().unwrap_or(event.at), catalogue).is_ok();
    }
    check(&stored, catalogue, checks, now).is_none_or(|finding| finding.kind.policy(checks) == Policy::Pass)
}

/// Whether an event was parked for something that may fit by now: Lago may know more, and what was the future is past,
/// whoever's clock was wrong.
fn may_change(reason: &str) -> bool {
    let word = reason.split(':').next().unwrap_or_default();
    Kind::ALL.iter().any(|kind| (kind.may_change() || *kind == Kind::Time) && kind.word() == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_fit_by_now_is_looked_at_again() {
        for (reason, expected) in [
            ("no_subscription: Lago has no active subscription \"s\"", true),
            ("ambiguous_subscription: the customer \"c\" had 2 subscriptions", true),
            ("contradiction: its customer's subscription has another event with this transaction id", false),
            ("unknown_metric: Lago has no billable metric with the code \"c\"", true),
            ("property: gb counts the property \"gb\", which the event does not have", true),
            ("time: its time is in the future", true),
            ("Lago refuses it: code: value_is_mandatory", false),
            ("gave up after 4 attempts: answered 500", false),
            ("", false),
        ] {
            assert_eq!(may_change(reason), expected, "{reason}");
        }
    }
}
