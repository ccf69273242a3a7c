//! Parts of a commit that rest on something damaged.
//!
//! What is damaged will be the same the next time: a commit that fails for it would fail for ever, with everybody
//! who shares it. So it is done again without the part that met it. SQLite does not commit a transaction that has
//! met a damaged page, not even after going back to a savepoint; therefore all of it is done again.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::Committed;
use crate::error::JournalError;

/// Which parts are left out, by their place in the commit, and why.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub(super) settlements: BTreeMap<usize, String>,
    /// Appends whose key is not looked for.
    pub(super) lookups: BTreeSet<usize>,
    pub(super) purge: Option<String>,
}

impl LeftOut {
    pub(super) fn settlement(&mut self, place: usize, error: &JournalError) {
        if error.is_damage() || matches!(error, JournalError::UnknownSink(_)) {
            self.settlements.insert(place, kit::error::chain(error));
        }
    }

    pub(super) fn lookup(&mut self, place: usize, error: &JournalError) {
        if error.is_damage() {
            let reason = kit::error::chain(error);
            tracing::error!(
                reason = %reason,
                "a deduplication key cannot be read, and an event that may have it is taken as new: {reason}"
            );
            self.lookups.insert(place);
        }
    }

    pub(super) fn purge(&mut self, error: &JournalError) {
        if error.is_damage() {
            self.purge = Some(kit::error::chain(error));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.settlements.len() + self.lookups.len() + usize::from(self.purge.is_some())
    }

    /// The results of the commit, with those of the parts that it was done without.
    pub(super) fn told(self, committed: Committed) -> Committed {
        Committed { refused: self.settlements.into_iter().collect(), not_purged: self.purge, ..committed }
    }
}
