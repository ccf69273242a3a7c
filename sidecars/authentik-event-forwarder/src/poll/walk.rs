//! Which part of a page to read next when the page as a whole is refused because of some row in it. Without I/O.
//!
//! Rows are counted from the oldest one, 0, up: there events that come move nothing. And they do come: Authentik writes
//! an event about every question that it could not answer (goauthentik/authentik `authentik/events/middleware.py`,
//! `process_exception`, at 2024.10.1 and 2026.2.2), so that each refusal moves every row by one.

use super::window::Window;

/// Rows beyond the page that are read too: the oldest of the page has an older neighbour then, and what refusals have moved
/// out of the page is there.
pub(super) const BEYOND: usize = 8;

/// Rows were deleted while they were read: what is where is not known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deleted;

/// What follows from a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A smaller part, or the same row once more.
    Again,
    /// One row was refused twice: it is stepped over.
    SteppedOver,
}

/// What a refusal costs Authentik, and with it how the row that is to blame is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It fails at once: parts are halved.
    Quick,
    /// It works on until nobody waits any more, and longer. Small parts at once, and then single rows: many questions that
    /// are answered, few that are not.
    Wary,
}

/// Parts that a page is read in at first, where a refusal is expensive.
const SMALL_PARTS: usize = 8;

/// On the way through a page, from the newest row to the oldest.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// Rows that there are, as last heard.
    count: usize,
    /// The newest row that is still to be read, and the oldest one; `None` at the end.
    rest: Option<(usize, usize)>,
    /// Rows of the next part at most.
    step: usize,
    most: usize,
    pace: Pace,
    /// Rows that are still to be read one by one.
    singly: usize,
    /// The row that comes next was refused once.
    is_doubtful: bool,
}

impl Walk {
    /// Through this page, of so many rows in all.
    pub(super) fn new(window: Window, count: usize, pace: Pace) -> Self {
        let newest = count.checked_sub(window.start() + 1);
        let rest = newest.map(|newest| (newest, (newest + 1).saturating_sub(window.size + BEYOND)));
        let parts = if pace == Pace::Wary { SMALL_PARTS } else { 2 };
        let most = (window.size / parts).max(1);
        Self { count, rest, step: most, most, pace, singly: 0, is_doubtful: false }
    }

    /// Whether there are older rows than those on the way; asked before the first step.
    pub(super) fn leaves_older(&self) -> bool {
        self.rest.is_some_and(|(_, oldest)| oldest > 0)
    }

    /// What to ask for next: it begins with the newest row that is left.
    pub(super) fn part(&self) -> Option<Window> {
        let (newest, oldest) = self.rest?;
        let offset = self.count.saturating_sub(newest + 1);
        let most = self.step.min(newest - oldest + 1);
        // Pages of one size begin at multiples of it.
        let size = (1..=most).rev().find(|size| offset.is_multiple_of(*size)).unwrap_or(1);
        Some(Window { page: offset / size + 1, size })
    }

    /// The part was read: so many rows, when there were `count`.
    pub(super) fn read(&mut self, part: Window, rows: usize, count: usize) -> Result<(), Deleted> {
        self.heard(count)?;
        self.is_doubtful = false;
        self.passed(rows);
        let Some((_, oldest)) = self.rest else { return Ok(()) };
        let next = count.checked_sub(part.start() + rows + 1);
        self.rest = next.filter(|next| *next >= oldest && rows > 0).map(|next| (next, oldest));
        Ok(())
    }

    /// The part was refused; `count` was heard since.
    pub(super) fn refused(&mut self, part: Window, count: usize) -> Result<Refused, Deleted> {
        self.heard(count)?;
        self.step = match self.pace {
            Pace::Quick => (part.size / 2).max(1),
            Pace::Wary => 1,
        };
        if part.size > 1 {
            self.singly = part.size;
        }
        if part.size > 1 || !self.is_doubtful {
            self.is_doubtful = part.size == 1;
            return Ok(Refused::Again);
        }
        self.is_doubtful = false;
        if self.pace == Pace::Wary {
            self.passed(1);
        }
        self.rest = self.rest.and_then(|(newest, oldest)| (newest > oldest).then(|| (newest - 1, oldest)));
        Ok(Refused::SteppedOver)
    }

    /// So many rows are over: the next part may be larger.
    fn passed(&mut self, rows: usize) {
        self.singly = self.singly.saturating_sub(rows);
        self.step = match self.pace {
            Pace::Quick => (self.step * 2).min(self.most),
            Pace::Wary if self.singly > 0 => 1,
            Pace::Wary => self.most,
        };
    }

    /// Fewer rows than before: those that are gone may have been newer ones, and rows were passed by.
    fn heard(&mut self, count: usize) -> Result<(), Deleted> {
        if count < self.count {
            return Err(Deleted);
        }
        self.count = count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    /// Reads a page of `total` rows in which those in `bad` – counted from the newest, 0 – are refused. Each refusal makes a
    /// new row, where it is quick, and so does every `busy`th question. Gives the rows that were read, those that were not,
    /// the questions, and those that were refused.
    fn walk(
        pace: Pace,
        total: usize,
        window: Window,
        bad: &[usize],
        busy: usize,
    ) -> (BTreeSet<usize>, Vec<usize>, usize, usize) {
        let bad: BTreeSet<usize> = bad.iter().map(|offset| total - 1 - offset).collect();
        let (mut count, mut asked, mut refused) = (total, 0, 0);
        let mut walk = Walk::new(window, count, pace);
        let (mut read, mut stepped) = (BTreeSet::new(), Vec::new());
        while let Some(part) = walk.part() {
            asked += 1;
            count += usize::from(busy > 0 && asked % busy == 0);
            let newest = count - part.start();
            let rows: Vec<usize> = (newest.saturating_sub(part.size)..newest).rev().collect();
            if rows.iter().any(|row| bad.contains(row)) {
                count += usize::from(pace == Pace::Quick);
                refused += 1;
                if walk.refused(part, count) == Ok(Refused::SteppedOver) {
                    stepped.push(rows[0]);
                }
            } else {
                walk.read(part, rows.len(), count).unwrap();
                read.extend(rows);
            }
            assert!(asked < 3_000, "no end");
        }
        (read, stepped, asked, refused)
    }

    fn check(window: Window, bad: &[usize], busy: usize, at_most: usize) {
        let (asked, _) = check_at(Pace::Quick, window, bad, busy);
        assert!(asked <= at_most, "{asked} questions for {bad:?}");
    }

    fn check_at(pace: Pace, window: Window, bad: &[usize], busy: usize) -> (usize, usize) {
        let total = 1_000;
        let (read, stepped, asked, refused) = walk(pace, total, window, bad, busy);
        let expected: Vec<usize> = bad.iter().map(|offset| total - 1 - offset).collect();
        assert_eq!(stepped, expected, "{window:?} {bad:?}");
        for offset in window.start()..window.start() + window.size {
            let row = total - 1 - offset;
            assert!(read.contains(&row) != expected.contains(&row), "{window:?} {bad:?} {offset}");
        }
        (asked, refused)
    }

    #[test]
    fn a_row_that_takes_for_ever_costs_three_answers_that_are_waited_for_in_vain() {
        let first = Window::first(100);
        for offset in 0..100 {
            for busy in [0, 5] {
                let (asked, refused) = check_at(Pace::Wary, first, &[offset], busy);
                // Rows that come meanwhile put it into one more part.
                assert!(refused <= if busy == 0 { 3 } else { 5 } && asked <= 80, "{offset}: {refused} of {asked}");
            }
        }
        let (asked, refused) = check_at(Pace::Wary, first, &[], 0);
        assert_eq!((asked <= 10, refused), (true, 0), "{asked}");
        for bad in [vec![3, 4], vec![3, 50], vec![0, 99]] {
            let (asked, refused) = check_at(
                Pace::Wary,
                Window { page: 3, size: 100 },
                &bad.iter().map(|n| n + 200).collect::<Vec<_>>(),
                0,
            );
            assert!(refused <= 6 && asked <= 80, "{bad:?}: {refused} of {asked}");
        }
    }

    #[test]
    fn one_row_that_is_refused_costs_a_few_questions_wherever_it_lies() {
        let first = Window::first(100);
        check(first, &[], 0, 4);
        for offset in 0..100 {
            check(first, &[offset], 0, 40);
            check(first, &[offset], 3, 60);
        }
        let window = Window { page: 7, size: 97 };
        for offset in [0, 1, 48, 96] {
            check(window, &[window.start() + offset], 0, 60);
        }
    }

    #[test]
    fn rows_beside_each_other_are_all_found_and_nothing_else_is() {
        check(Window::first(100), &[0, 1, 2], 0, 60);
        check(Window::first(100), &[40, 41, 43, 97, 99], 0, 150);
        check(Window { page: 3, size: 16 }, &(32..48).collect::<Vec<_>>(), 0, 100);
        check(Window::first(100), &(0..100).collect::<Vec<_>>(), 0, 320);
    }

    #[test]
    fn it_ends_with_the_oldest_row_and_does_not_go_on_after_deletions() {
        let (read, stepped, ..) = walk(Pace::Quick, 10, Window::first(100), &[9], 0);
        assert_eq!((read.len(), stepped), (9, vec![0]));
        assert!(Walk::new(Window { page: 2, size: 100 }, 10, Pace::Quick).part().is_none());
        let mut walk = Walk::new(Window::first(16), 100, Pace::Quick);
        assert_eq!(walk.read(Window::first(8), 8, 99), Err(Deleted));
    }
}
