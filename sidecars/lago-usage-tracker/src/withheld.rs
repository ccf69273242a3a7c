//! Events of a sink that wait until Lago can be asked about them: so many, and no more.

use std::collections::HashSet;

use kit::clock::Timestamp;
use kit_journal::Seq;

/// Events that wait until Lago can be asked about them, at most: a fifth of the deliveries that may wait for another
/// attempt (`kit_delivery`), so that events that fit go on however long Lago cannot be asked. Further ones are parked, and
/// go on when they fit what it says then.
const MOST: usize = 10_000;
/// What is said of those.
pub(crate) const TOO_MANY: &str =
    " (many events wait until Lago can be asked; it is sent when it fits what Lago says then)";

/// Events that wait until Lago can be asked about them.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    seqs: HashSet<Seq>,
    /// When Lago has last told what it knows: whoever has waited for that comes again.
    told_at: Option<Timestamp>,
}

impl Withheld {
    /// Whether this one may wait.
    pub(crate) fn has_room(&mut self, seq: Seq, told_at: Option<Timestamp>) -> bool {
        if std::mem::replace(&mut self.told_at, told_at) != told_at {
            self.seqs.clear();
        }
        if self.seqs.len() < MOST {
            self.seqs.insert(seq);
        }
        self.seqs.contains(&seq)
    }
}
