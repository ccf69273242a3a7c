//! What the ledger holds of subscriptions that ended long ago goes, so that it does not grow for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use kit_journal::engine::Reader;
use kit_journal::{DeliveryState, EventFilter, JournalError, Seq, StoredEvent};
use tokio::time::Instant;

use super::Reconciler;
use super::past::is_active;
use crate::admit::UNRESOLVED;
use crate::resolve::RESOLVE;
use crate::{rollup, sender};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(3_600);
/// With more undelivered events than that nothing is forgotten: they would all have to be looked at.
const UNDELIVERED: u64 = 50_000;
/// Events looked at in one read.
const PAGE: u32 = 500;
/// Bytes of bodies in one read, about.
const PAGE_BYTES: u64 = 4 << 20;

/// Whose events are not delivered.
#[derive(Debug, Default)]
pub(super) struct Undelivered {
    subscriptions: BTreeSet<String>,
    customers: BTreeSet<String>,
}

impl Undelivered {
    fn note(&mut self, event: &StoredEvent) {
        self.subscriptions.extend(event.head.scope.clone());
        if event.head.event_type == UNRESOLVED {
            self.customers.extend(event.head.tenant.clone());
        }
    }
}

impl Reconciler {
    /// Forgets what ended before the time that is kept, of subscriptions that Lago does not call active and for which
    /// no event is waiting, retried or parked.
    pub(super) async fn forget(&self) {
        {
            let mut looked = self.looked_to_forget.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if looked.is_some_and(|at| at.elapsed() < EVERY) {
                return;
            }
            *looked = Some(Instant::now());
        }
        let seen = self.known.current();
        let Some(catalogue) = seen.catalogue.filter(|_| seen.failed.is_none()) else { return };
        #[expect(clippy::cast_possible_truncation, reason = "validated to at most ten years")]
        let then = self.clock.now().plus_millis(-((self.section.keep_days * 86_400_000.0) as i64));
        let mut over = self.books.ledger().of_before(then);
        over.retain(|subscription| !is_active(&catalogue, subscription));
        if over.is_empty() {
            return;
        }
        let undelivered = match self.journal.browse(undelivered).await {
            Ok(Some(undelivered)) => undelivered,
            Ok(None) => return,
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::debug!(error = %error, "what is not delivered cannot be read, nothing is forgotten: {error}");
                return;
            }
        };
        let awaited = undelivered.customers.iter().flat_map(|customer| catalogue.subscriptions_of(customer));
        let awaited: BTreeSet<&str> = awaited.map(|own| own.external_id.as_str()).collect();
        over.retain(|own| !awaited.contains(own.as_str()) && !undelivered.subscriptions.contains(own));
        let (mut ledger, mut results) = (self.books.ledger(), self.books.results());
        let mut count = 0;
        for subscription in &over {
            for name in ledger.forget(subscription, then) {
                results.pairs.remove(&name);
                results.ended.remove(&name);
                count += 1;
            }
        }
        if count > 0 {
            tracing::info!(count, "{count} pairs of subscriptions that ended long ago are forgotten");
        }
    }
}

/// Whose events are not delivered; `None` where there are too many of them.
pub(super) fn undelivered(reader: &mut dyn Reader) -> Result<Option<Undelivered>, JournalError> {
    let mut all = Undelivered::default();
    let known: BTreeSet<String> = reader.statistics()?.sinks.into_iter().map(|sink| sink.name).collect();
    for sink in [sender::SINK, RESOLVE, rollup::SINK].into_iter().filter(|sink| known.contains(*sink)) {
        let row = reader.sink(sink)?;
        if row.open + row.parked > UNDELIVERED || !read_on(reader, sink, row.cursor, &mut all)? {
            return Ok(None);
        }
        for state in [DeliveryState::Retrying, DeliveryState::Parked] {
            let mut filter = EventFilter::default();
            (filter.state, filter.sink) = (Some(state), Some(sink.to_owned()));
            let mut before = None;
            loop {
                let page = reader.search(&filter, before, PAGE, u64::from(PAGE))?;
                page.found.iter().for_each(|found| all.note(&found.event));
                let Some(next) = page.next else { break };
                before = Some(next);
            }
        }
    }
    Ok(Some(all))
}

/// What is after the cursor; false where that is too much.
fn read_on(reader: &mut dyn Reader, sink: &str, mut after: Seq, all: &mut Undelivered) -> Result<bool, JournalError> {
    let mut count = 0;
    loop {
        let (events, own) = reader.events_after(sink, after, PAGE, PAGE_BYTES)?;
        let Some(last) = events.iter().map(|event| event.seq).chain(own).max() else { return Ok(true) };
        events.iter().for_each(|event| all.note(event));
        (after, count) = (last, count + events.len() as u64);
        if count > UNDELIVERED {
            return Ok(false);
        }
    }
}
