//! What the writing thread is asked for, and where it answers.

use tokio::sync::oneshot;

use crate::engine::{Action, ActionOutcome, Append, Lease, Settlement};
use crate::error::{AppendError, JournalError};
use crate::event::{EventId, Seq};
use crate::journal::Appended;

/// Where the writing thread answers.
pub(crate) type Reply<T, E = JournalError> = oneshot::Sender<Result<T, E>>;

/// Bodies that may wait for the disk. More is refused at once: a disk that hangs would otherwise collect what each sender
/// in turn has given up, up to the number that the queue holds.
pub(crate) const QUEUED_BYTES: usize = 48 << 20;

/// What the writing thread is asked for.
pub(crate) enum Request {
    /// Boxed: the other requests are a tenth of its size.
    Append(Box<Append>, Reply<Appended, AppendError>),
    Together(Vec<Append>, Reply<Vec<Appended>, AppendError>),
    /// With values that are true once the events are stored.
    Recording(Vec<Append>, Vec<(String, Vec<u8>)>, Reply<Vec<Appended>, AppendError>),
    Instead(Vec<Append>, Settlement, Reply<Vec<Appended>, AppendError>),
    Known(String, String, Reply<Vec<(EventId, Seq)>>),
    Settle(Vec<Settlement>, Reply<()>),
    Act(Vec<Action>, Reply<Vec<ActionOutcome>>),
    Value(String, Vec<u8>, Reply<()>),
    Lease(String, Reply<Option<Lease>>),
    GiveBack(String, u64, Reply<()>),
    Close,
}

impl Request {
    /// Bytes of the bodies in it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Append(append, _) => append.body.len(),
            Self::Together(appends, _) | Self::Recording(appends, ..) | Self::Instead(appends, ..) => {
                appends.iter().map(|append| append.body.len()).sum()
            }
            _ => 0,
        }
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Request")
    }
}
