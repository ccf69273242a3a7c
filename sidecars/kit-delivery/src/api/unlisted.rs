//! What a sink passes by and only counts. The journal has no row for it, so that a sink that wants one event in a thousand
//! costs nothing for the others; to the journal it looks like what was delivered. Here it is told apart: whether such a
//! sink wants an event is the same for ever, and the event's head says it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kit_journal::engine::{Found, Page};
use kit_journal::{DeliveryState, EventFilter, EventHead, JournalError, Seq};

use super::ApiState;
use super::query::EXAMINE;

/// Whether a sink wants an event: what its [`crate::Sink::wants`] says.
pub type Wants = fn(&EventHead) -> bool;

/// The sinks that pass events by without listing them, by name, also those that are not configured now.
pub type Choosy = Arc<BTreeMap<String, Wants>>;

impl ApiState {
    /// One page of what matches, as [`kit_journal::engine::Reader::search`] gives it, with what was only counted as
    /// filtered told apart from what was delivered.
    pub(super) async fn search(
        &self,
        mut filter: EventFilter,
        before: Option<Seq>,
        limit: u32,
    ) -> Result<Page, JournalError> {
        let (state, sink) = (filter.state, filter.sink.clone());
        let is_choosy = sink.as_deref().map_or(!self.choosy.is_empty(), |sink| self.choosy.contains_key(sink));
        if is_choosy && state == Some(DeliveryState::Filtered) {
            // It may be without a row: everything is looked at.
            filter.state = None;
        }
        let mut page = self.journal.browse(move |reader| reader.search(&filter, before, limit, EXAMINE)).await?;
        page.found.iter_mut().for_each(|found| self.tell_apart(found));
        if let Some(state) = state.filter(|_| is_choosy) {
            page.found.retain(|found| {
                let mut deliveries = found.deliveries.iter();
                deliveries.any(|(name, d)| d.state == state && sink.as_ref().is_none_or(|sink| sink == name))
            });
        }
        Ok(page)
    }

    pub(super) fn tell_apart(&self, found: &mut Found) {
        for (name, delivery) in &mut found.deliveries {
            let is_unwanted = || self.choosy.get(name).is_some_and(|wants| !wants(&found.event.head));
            if delivery.state == DeliveryState::Delivered && delivery.row.is_none() && is_unwanted() {
                delivery.state = DeliveryState::Filtered;
            }
        }
    }
}

/// Whether a sink has only counted this event as filtered: there is nothing to deliver again.
pub(super) fn is_only_counted(found: &Found, sink: &str) -> bool {
    let delivery = found.deliveries.get(sink);
    delivery.is_some_and(|delivery| delivery.state == DeliveryState::Filtered && delivery.row.is_none())
}
