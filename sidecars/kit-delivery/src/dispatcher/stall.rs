//! Too many deliveries wait for another attempt, or behind one that does: nothing new is fetched, and a person
//! has to know.

use std::sync::PoisonError;

use super::work::Work;

/// Whether the sink is stalled.
#[derive(Debug, Default)]
pub(super) struct Stall {
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Begins,
    Ends,
}

impl Stall {
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// `rows` wait of at most `limit`; `more`: there is something to fetch. It ends when a tenth is gone, so that it
    /// is not said with every row that comes and goes.
    fn turn(&mut self, rows: usize, limit: usize, more: bool) -> Option<Change> {
        match self.begun {
            false if rows >= limit && more => {
                self.begun = true;
                Some(Change::Begins)
            }
            true if rows <= limit - limit / 10 && rows < limit => {
                self.begun = false;
                Some(Change::Ends)
            }
            _ => None,
        }
    }
}

impl Work {
    /// Says when the sink stalls and when it goes on.
    pub(super) fn watch_stall(&mut self) {
        let more = !self.paused && self.window.loaded_to() < *self.tail.borrow();
        let (rows, limit) = (self.window.open_rows(), self.shell.settings.open_rows);
        let name = &self.name;
        match self.stall.turn(rows, limit, more) {
            None => return,
            Some(Change::Begins) => tracing::error!(
                sink = %name,
                retrying = rows,
                "{name} is stalled, {rows} deliveries wait for another attempt and nothing new is fetched: see what \
                 refuses them with `outrigger events list --state retrying`, then mend it or drop the first of each \
                 subject"
            ),
            Some(Change::Ends) => {
                tracing::info!(sink = %name, retrying = rows, "{name} is no longer stalled, new events are fetched again");
            }
        }
        self.shell.status.lock().unwrap_or_else(PoisonError::into_inner).stalled = self.stall.begun;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_said_once_when_it_begins_and_once_when_a_tenth_is_gone() {
        let mut stall = Stall::default();
        for (rows, more, expected) in [
            (99, true, None),
            // Nothing is held up yet.
            (100, false, None),
            (100, true, Some(Change::Begins)),
            (120, true, None),
            (99, true, None),
            (100, true, None),
            (91, false, None),
            (90, true, Some(Change::Ends)),
            (90, true, None),
            (100, true, Some(Change::Begins)),
        ] {
            assert_eq!(stall.turn(rows, 100, more), expected, "{rows} {more}");
        }
        assert!(stall.has_begun());
    }

    #[test]
    fn a_small_limit_ends_too() {
        let mut stall = Stall::default();

        assert_eq!(stall.turn(1, 1, true), Some(Change::Begins));
        assert_eq!(stall.turn(1, 1, true), None);
        assert_eq!(stall.turn(0, 1, true), Some(Change::Ends));
    }
}
