//! Everything that arrived at the event endpoints, stored or not: a retry has to repeat the very
//! same bytes, and a batch must not hold an event twice.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use serde::Serialize;

use super::event::Incoming;

/// A million events cannot flood a failure report.
const EXAMPLES: usize = 32;

/// An event that arrived again with other bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DifferingRetry {
    /// Its subscription.
    pub external_subscription_id: Option<String>,
    /// Its transaction id.
    pub transaction_id: String,
}

#[derive(Debug, Default)]
pub(super) struct Arrivals {
    seen: Vec<Seen>,
    by_identity: HashTable<u32>,
    identity_hashers: [RandomState; 2],
    content_hasher: RandomState,
    differing: u64,
    examples: Vec<DifferingRetry>,
}

/// One subscription and transaction id. Both are kept as 128 bits of two keyed hashes: with a
/// million events, that two share them is less likely than a fault of the memory.
#[derive(Debug)]
struct Seen {
    identity: [u64; 2],
    first_content: u64,
    last_request: u64,
}

impl Arrivals {
    /// Notes an event of a request; true when the same request had it before.
    pub(super) fn note(&mut self, event: &Incoming<'_>, request: u64) -> bool {
        // Without one there is nothing to recognise it by, and Lago refuses it.
        let Some(transaction_id) = event.transaction_id.as_deref() else {
            return false;
        };
        let subscription = event.external_subscription_id.as_deref();
        let identity = [0, 1].map(|number| self.identity_hashers[number].hash_one((subscription, transaction_id)));
        let content = self.content_hasher.hash_one(event.raw);
        let (hash, seen) = (identity[0], &self.seen);
        let known = self.by_identity.find(hash, |index| seen[*index as usize].identity == identity);
        let Some(index) = known.map(|index| *index as usize) else {
            if let Ok(index) = u32::try_from(self.seen.len()) {
                self.seen.push(Seen { identity, first_content: content, last_request: request });
                let seen = &self.seen;
                self.by_identity.insert_unique(hash, index, |index| seen[*index as usize].identity[0]);
            }
            return false;
        };
        let seen = &mut self.seen[index];
        let in_this_request = seen.last_request == request;
        seen.last_request = request;
        if seen.first_content != content {
            self.differing += 1;
            if self.examples.len() < EXAMPLES {
                self.examples.push(DifferingRetry {
                    external_subscription_id: subscription.map(str::to_owned),
                    transaction_id: transaction_id.to_owned(),
                });
            }
        }
        in_this_request
    }

    /// How many different events arrived.
    pub(super) fn distinct(&self) -> u64 {
        self.seen.len() as u64
    }

    /// How often an event arrived with other bytes than the first time.
    pub(super) fn differing(&self) -> u64 {
        self.differing
    }

    /// The first of them.
    pub(super) fn examples(&self) -> &[DifferingRetry] {
        &self.examples
    }
}
