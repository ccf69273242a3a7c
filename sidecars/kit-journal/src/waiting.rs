//! Who waits for what of a commit that is being gathered, and who is told what when it is made.

use std::ops::Range;

use kit::clock::Timestamp;

use crate::engine::{ActionOutcome, Committed};
use crate::error::{AppendError, JournalError};
use crate::journal::Appended;
use crate::request::Reply;

/// Who waits for what in a commit, in the commit's order.
#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) appends: Vec<WaitingAppends>,
    pub(crate) settlements: Vec<(Range<usize>, Reply<()>)>,
    pub(crate) actions: Vec<(usize, Reply<Vec<ActionOutcome>>)>,
    pub(crate) values: Vec<Reply<()>>,
}

/// Who waits for appends.
pub(crate) enum WaitingAppends {
    One(Reply<Appended, AppendError>),
    /// So many that are stored together.
    Together(usize, Reply<Vec<Appended>, AppendError>),
    /// So many, with values that are recorded where they are not refused.
    Recording(usize, Vec<(String, Vec<u8>)>, Reply<Vec<Appended>, AppendError>),
    /// So many that take the place of what the settlement at this place settles.
    Instead(usize, usize, Reply<Vec<Appended>, AppendError>),
}

impl WaitingAppends {
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Together(count, _) | Self::Recording(count, _, _) | Self::Instead(count, _, _) => *count,
        }
    }

    pub(crate) fn refuse(self, reason: &str) {
        let error = AppendError::Unavailable(reason.to_owned());
        match self {
            Self::One(answer) => drop(answer.send(Err(error))),
            Self::Together(_, answer) | Self::Recording(_, _, answer) | Self::Instead(_, _, answer) => {
                drop(answer.send(Err(error)));
            }
        }
    }
}

impl Waiting {
    /// The values of appends that are part of the commit.
    pub(crate) fn recorded(&mut self) -> Vec<(String, Vec<u8>)> {
        let values = self.appends.iter_mut().filter_map(|waits| match waits {
            WaitingAppends::Recording(_, values, _) => Some(std::mem::take(values)),
            _ => None,
        });
        values.flatten().collect()
    }

    pub(crate) fn answer(self, committed: &Committed, at: Timestamp) {
        let mut verdicts = committed.verdicts.iter().map(|verdict| Appended::new(verdict, at));
        let refused = |own: &Range<usize>| committed.refused.iter().find(|(place, _)| own.contains(place));
        for waits in self.appends {
            match waits {
                WaitingAppends::One(answer) => {
                    let Some(appended) = verdicts.next() else { return };
                    let _ = answer.send(Ok(appended));
                }
                WaitingAppends::Together(count, answer) | WaitingAppends::Recording(count, _, answer) => {
                    let _ = answer.send(Ok(verdicts.by_ref().take(count).collect()));
                }
                WaitingAppends::Instead(count, place, answer) => {
                    let appended = verdicts.by_ref().take(count).collect();
                    let _ = answer.send(match refused(&(place..place + 1)) {
                        None => Ok(appended),
                        Some((_, why)) => Err(AppendError::Unavailable(why.clone())),
                    });
                }
            }
        }
        for (own, answer) in self.settlements {
            let _ = answer.send(refused(&own).map_or(Ok(()), |(_, why)| Err(JournalError::Unavailable(why.clone()))));
        }
        for answer in self.values {
            let _ = answer.send(Ok(()));
        }
        let mut outcomes = committed.actions.iter();
        for (count, answer) in self.actions {
            let _ = answer.send(Ok(outcomes.by_ref().take(count).copied().collect()));
        }
    }

    pub(crate) fn refuse(self, reason: &str) {
        let error = || JournalError::Unavailable(reason.to_owned());
        self.appends.into_iter().for_each(|waits| waits.refuse(reason));
        for answer in self.settlements.into_iter().map(|(_, answer)| answer).chain(self.values) {
            let _ = answer.send(Err(error()));
        }
        for (_, answer) in self.actions {
            let _ = answer.send(Err(error()));
        }
    }
}
