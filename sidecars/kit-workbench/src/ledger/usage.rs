//! I6: usage reaches Lago exactly once in effect, and a retry repeats the very same event.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Entry, Invariant, Report};
use crate::Digest;

/// A usage event as its producer handed it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// With the subscription, what Lago deduplicates by.
    pub transaction_id: String,
    /// The subscription it is billed to.
    pub external_subscription_id: String,
    /// The billable metric.
    pub code: String,
    /// The timestamp, in the very characters in which it was written.
    pub timestamp: String,
    /// SHA-256 of the properties' bytes.
    pub properties_sha256: Digest,
}

/// A usage event as it arrived at the stand-in for Lago, answered or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageAttempt(pub UsageEvent);

/// A usage event on the books of the stand-in for Lago: a customer pays for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageStored(pub UsageEvent);

#[derive(Clone, Debug, Default)]
pub(super) struct UsageHistory {
    pub(super) sent: Vec<UsageEvent>,
    pub(super) attempts: Vec<UsageAttempt>,
    pub(super) stored: Vec<UsageStored>,
}

impl UsageHistory {
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        let sent = self.sent.iter().cloned().map(Entry::UsageSent);
        let attempts = self.attempts.iter().cloned().map(Entry::UsageAttempt);
        let stored = self.stored.iter().cloned().map(Entry::UsageStored);
        sent.chain(attempts).chain(stored)
    }

    pub(super) fn check(&self, report: &mut Report) {
        let identity = |event: &UsageEvent| {
            let UsageEvent { external_subscription_id, transaction_id, .. } = event;
            (external_subscription_id.clone(), transaction_id.clone())
        };
        let name = |event: &UsageEvent| {
            format!("transaction {} of subscription {}", event.transaction_id, event.external_subscription_id)
        };
        // A producer may repeat itself: the first content stands.
        let mut sent = BTreeMap::new();
        for event in &self.sent {
            sent.entry(identity(event)).or_insert(event);
        }
        for UsageAttempt(event) in &self.attempts {
            match sent.get(&identity(event)) {
                None => {
                    report.violate(Invariant::I6, || format!("{} was sent to Lago, no producer made it", name(event)))
                }
                Some(original) if *original != event => {
                    report.violate(Invariant::I6, || format!("an attempt changed {}: {event:?}", name(event)))
                }
                Some(_) => {}
            }
        }
        let mut stored = BTreeMap::new();
        for UsageStored(event) in &self.stored {
            *stored.entry(identity(event)).or_insert(0_u64) += 1;
            let original = sent.get(&identity(event));
            if original.is_some_and(|original| *original != event) || original.is_none() {
                report.violate(Invariant::I6, || format!("{} is on the books otherwise than it was made", name(event)));
            }
        }
        for (identity, event) in &sent {
            let times = stored.get(identity).copied().unwrap_or_default();
            if times != 1 {
                report.violate(Invariant::I6, || format!("{} is on the books {times} times", name(event)));
            }
        }
    }
}
