//! Reading around rows that Authentik cannot give.
//!
//! Authentik answers 500 to a page with a row that it cannot put into its answer, every time, and whatever is older waits
//! behind it for ever. A page that is refused look after look is read in smaller parts down to the single row, as long as
//! other rows can be read at the same time. A row that is refused by itself is stepped over by its place and said; the
//! next looks try it again for as long as it lies in the overlap.
//!
//! The same goes for a row over which Authentik takes longer than anybody waits. It works on such an answer after nobody
//! waits for it any more, so few of them are asked for; and each time a neighbour has to be there at once, or it is
//! Authentik that is slow, or this depth of its table, and no row.

use std::collections::VecDeque;
use std::time::Duration;

use kit::clock::Timestamp;
use kit_authentik::api::{ApiError, EventPage};

use super::page::{self, Page, Place};
use super::walk::{BEYOND, Deleted, Pace, Refused, Walk};
use super::window::Window;
use super::{LookError, PAGE_AT_LEAST, Poller, Session};

/// Looks in a row that the same page may spoil before it is read around: most refusals are over by then.
const PATIENCE: u32 = 2;
/// Places where a row is tried that shows that rows can be read at all, from the newest on: of the two first ones the
/// one is what Authentik writes about a refusal.
const CONTROLS: [usize; 9] = [0, 1, 2, 4, 8, 16, 32, 64, 128];
/// Where Authentik was too slow it has to give a neighbour within this part of the time that an answer may take, of the
/// places that are tried at most so many.
const AT_ONCE: u32 = 4;
const SLOW_CONTROLS: usize = 3;
/// And several rows within this part of it; only a single row is waited for as long as a page.
const SEVERAL: u32 = 3;
/// Answers that are waited for in vain on the way through one page.
const IN_VAIN: usize = 24;
/// Gaps that are remembered as said.
const SAID: usize = 256;

/// Rows that were stepped over, between two that were read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    /// The next one that was read; none where it is the newest.
    pub(super) newer: Option<Place>,
    older: Option<Place>,
    pub(super) rows: usize,
}

impl Gap {
    /// Everything in it happened before that.
    fn is_before(&self, time: Timestamp) -> bool {
        self.newer.is_some_and(|newer| newer.is_before(time))
    }

    /// What it is known by: its older neighbour stays, where newer ones come.
    fn key(&self) -> u128 {
        self.older.or(self.newer).map_or(0, |place| place.pk.as_u128())
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = |place: Place| format!("event {} of {}", place.pk, place.time());
        match (self.older, self.newer) {
            (Some(older), Some(newer)) => write!(f, "between {} and {}", place(older), place(newer)),
            (Some(older), None) => write!(f, "after {}", place(older)),
            (None, Some(newer)) => write!(f, "before {}", place(newer)),
            (None, None) => write!(f, "at an unknown place"),
        }
    }
}

/// Where the pages end that were taken, on the way to newer ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    /// The newest row that was read, and rows stepped over since.
    pub(super) newest: Option<Place>,
    pub(super) stepped_over: usize,
    /// The place of the newest row of either kind, and of how many.
    pub(super) offset: usize,
    pub(super) count: usize,
}

impl Edge {
    pub(super) fn of(page: &Page, before: Option<Self>) -> Self {
        let (newest, stepped_over) = match (page.newest(), before) {
            (None, Some(before)) => (before.newest, before.stepped_over + page.stepped_over()),
            (newest, _) => (newest, page.stepped_over()),
        };
        Self { newest, stepped_over, offset: page.window.start(), count: page.count }
    }
}

/// What is known of pages that are refused.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// Looks in a row that ended with a refused page; while rows are stepped over it stays where the next one is read around.
    refusals: u32,
    /// Gaps of this look, with the rows that were stepped over there, and where the last of them lies: pages of a look
    /// overlap, and several of them may hold the same gap.
    gaps: Vec<(u128, usize)>,
    last: String,
    /// Gaps that have been said, with their rows.
    said: VecDeque<(u128, usize)>,
}

impl Around {
    pub(super) fn begin(&mut self) {
        self.gaps.clear();
        self.last.clear();
    }

    /// Everything was read, but for what was stepped over; what there is to say about that.
    pub(super) fn end(&mut self) -> Option<String> {
        let (rows, last) = (self.gaps.iter().map(|(_, rows)| rows).sum::<usize>(), &self.last);
        self.refusals = if rows == 0 { 0 } else { PATIENCE };
        (rows > 0).then(|| {
            format!("Authentik cannot give {rows} of its latest events, they are stepped over and tried again: {last}")
        })
    }

    /// Notes a gap; how many rows of it had not been said before.
    fn add(&mut self, gap: &Gap) -> usize {
        self.last = gap.to_string();
        let key = gap.key();
        if more(self.gaps.iter_mut(), key, gap.rows).is_none() {
            self.gaps.push((key, gap.rows));
        }
        if let Some(more) = more(self.said.iter_mut(), key, gap.rows) {
            return more;
        }
        self.said.push_back((key, gap.rows));
        if self.said.len() > SAID {
            self.said.pop_front();
        }
        gap.rows
    }
}

/// How many rows a gap has that were not known of it, which they are now; `None` for one that is not known at all.
fn more<'a>(mut gaps: impl Iterator<Item = &'a mut (u128, usize)>, key: u128, rows: usize) -> Option<usize> {
    let (_, known) = gaps.find(|(gap, _)| *gap == key)?;
    let more = rows.saturating_sub(*known);
    *known += more;
    Some(more)
}

/// What an answer costs that may be about one row of a page; `None` where it is about the page or Authentik.
fn is_about_a_row(error: &ApiError) -> Option<Pace> {
    match error {
        ApiError::Status(500) | ApiError::NotAuthentik | ApiError::TooLarge(_) => Some(Pace::Quick),
        // 504 is what a proxy before Authentik says of it.
        ApiError::TooSlow(_) | ApiError::Status(504) => Some(Pace::Wary),
        _ => None,
    }
}

/// Where a row is tried that shows that rows can be read at once as deep in the table as this page: beside it, and for
/// want of others on it.
fn neighbours(window: Window) -> impl Iterator<Item = usize> {
    let start = window.start();
    let newer = start.checked_sub(1);
    [start + window.size + BEYOND].into_iter().chain(newer).chain([0, 1, 3, 7, 15].map(|more| start + more))
}

impl Poller {
    /// What to do about a page that was refused: it is read around some row in it, or the look ends.
    pub(super) async fn refused(
        &mut self,
        session: &mut Session,
        window: Window,
        floor: Option<Timestamp>,
        error: ApiError,
    ) -> Result<Page, LookError> {
        let Some(pace) = is_about_a_row(&error) else { return Err(error.into()) };
        self.around.refusals += 1;
        if self.around.refusals <= PATIENCE {
            return Err(error.into());
        }
        let page = self.read_around(session, window, floor, (pace, error)).await;
        match &page {
            // No row is to blame, there were too many at once.
            Ok(page) if pace == Pace::Wary && page.gaps.is_empty() => {
                session.most = (session.most / 2).max(PAGE_AT_LEAST).min(session.most);
            }
            // It is slow as a whole, and is left alone for some looks.
            Err(_) if pace == Pace::Wary => self.around.refusals = 0,
            _ => {}
        }
        page
    }

    async fn read_around(
        &self,
        session: &Session,
        window: Window,
        floor: Option<Timestamp>,
        (pace, refused): (Pace, ApiError),
    ) -> Result<Page, LookError> {
        let Some((count, now)) = self.control(session, pace, window).await? else { return Err(refused.into()) };
        let mut walk = Walk::new(window, count, pace);
        let mut in_vain = 0;
        let has_next = walk.leaves_older();
        let mut page = Page { window, rows: Vec::new(), len: 0, count, has_next, now, gaps: Vec::new() };
        let mut stepped_over = 0;
        while let Some(part) = walk.part() {
            let answer = match self.part(session, pace, part).await {
                Ok(answer) => answer,
                // The end has come nearer.
                Err(ApiError::NotFound) => {
                    page.has_next = false;
                    break;
                }
                Err(error) => {
                    let Some(cost) = is_about_a_row(&error) else { return Err(error.into()) };
                    in_vain += usize::from(cost == Pace::Wary);
                    // That others can be read now, too, is what makes it this row's fault.
                    let control = if in_vain < IN_VAIN { self.control(session, cost, window).await? } else { None };
                    let Some((count, _)) = control else { return Err(error.into()) };
                    if walk.refused(part, count)? == Refused::SteppedOver {
                        stepped_over += 1;
                    }
                    continue;
                }
            };
            let EventPage { events, count, .. } = answer;
            walk.read(part, events.len(), count)?;
            let newer = page.rows.last().map(|row| row.at);
            let mut rows = page::rows(events, now);
            // What came meanwhile has moved some into this part that were read.
            rows.retain(|row| !page.rows.iter().any(|known| known.at.pk == row.at.pk));
            if stepped_over > 0 && !rows.is_empty() {
                let older = rows.first().map(|row| row.at);
                page.gaps.push(Gap { newer, older, rows: std::mem::take(&mut stepped_over) });
            }
            page.rows.extend(rows);
            if floor.is_some_and(|floor| page.rows.last().is_some_and(|oldest| oldest.at.is_before(floor))) {
                page.has_next = true;
                break;
            }
        }
        if stepped_over > 0 {
            page.gaps.push(Gap { newer: page.rows.last().map(|row| row.at), older: None, rows: stepped_over });
        }
        // As many as were asked for, unless there are no more.
        page.len = if page.has_next { window.size } else { page.rows.len() };
        Ok(page)
    }

    /// Rows of a page that was refused.
    async fn part(&self, session: &Session, pace: Pace, part: Window) -> Result<EventPage, ApiError> {
        let whole = self.api.timeout();
        let limit = if pace == Pace::Wary && part.size > 1 { whole / SEVERAL } else { whole };
        self.ask(session, part, limit).await
    }

    async fn ask(&self, session: &Session, part: Window, limit: Duration) -> Result<EventPage, ApiError> {
        let asked = tokio::time::timeout(limit, self.api.events(part.page, part.size, &session.filter));
        self.count(asked.await.unwrap_or(Err(ApiError::TooSlow(limit))))
    }

    /// How many rows there are, and what time it is there, by a row that can be read; `None` where none can.
    async fn control(
        &self,
        session: &Session,
        pace: Pace,
        window: Window,
    ) -> Result<Option<(usize, Timestamp)>, LookError> {
        let whole = self.api.timeout();
        let (offsets, limit): (Vec<usize>, _) = match pace {
            Pace::Quick => (CONTROLS.to_vec(), whole),
            Pace::Wary => (neighbours(window).collect(), whole / AT_ONCE),
        };
        let mut slow = 0;
        for offset in offsets {
            let now = self.clock.now();
            match self.ask(session, Window { page: offset + 1, size: 1 }, limit).await {
                Ok(page) => return Ok(Some((page.count, page::time_there(page.server_time, now)))),
                // Behind the last row; where places ascend, so are the next ones.
                Err(ApiError::NotFound) if pace == Pace::Quick => return Ok(None),
                Err(ApiError::NotFound) => {}
                Err(error) => match is_about_a_row(&error) {
                    None => return Err(error.into()),
                    Some(Pace::Quick) => {}
                    Some(Pace::Wary) => slow += 1,
                },
            }
            if slow >= SLOW_CONTROLS {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Says and counts what was stepped over on a page that is taken, once each.
    pub(super) fn say_gaps(&mut self, gaps: &[Gap], floor: Timestamp) {
        for gap in gaps.iter().filter(|gap| !gap.is_before(floor)) {
            let new = self.around.add(gap);
            if new > 0 {
                self.metrics.polls.skipped.inc_by(new as u64);
                tracing::error!(
                    count = new,
                    "Authentik cannot give {new} of its events, which lie {gap}: its API fails with each of them, or \
                     takes too long; they are stepped over, and tried again for the next {} seconds",
                    self.settings.overlap.as_secs()
                );
            }
        }
    }
}

impl From<Deleted> for LookError {
    fn from(_: Deleted) -> Self {
        Self::Unsteady
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kit_authentik::event::EventPk;

    fn place(number: u128) -> Option<Place> {
        Some(Place { created: i64::try_from(number).unwrap_or(0) * 1_000_000, pk: EventPk::from_u128(number) })
    }

    #[test]
    fn each_row_is_said_once_whatever_comes_after_it() {
        let mut around = Around::default();
        let gap = |newer, rows| Gap { newer, older: place(1), rows };
        assert_eq!(around.add(&gap(None, 2)), 2);
        assert_eq!(around.add(&gap(place(9), 2)), 0, "its newer neighbour has come");
        assert_eq!(around.add(&gap(place(9), 3)), 1);
        assert_eq!(around.add(&gap(place(9), 2)), 0);
        for number in 0..SAID as u128 {
            around.add(&Gap { newer: None, older: place(100 + number), rows: 1 });
        }
        assert_eq!(around.said.len(), SAID);
    }

    #[test]
    fn it_is_said_until_it_is_over() {
        let mut around = Around { refusals: PATIENCE + 1, ..Around::default() };
        around.begin();
        around.add(&Gap { newer: place(3), older: place(2), rows: 1 });
        let said = around.end().unwrap_or_default();
        assert!(said.contains("cannot give 1 of") && said.contains("00000002 of 1970-01-01T00:00:02"), "{said}");
        assert_eq!(around.refusals, PATIENCE, "the next one is read around at once");
        around.begin();
        for rows in [1, 2, 1] {
            around.add(&Gap { newer: place(3), older: place(2), rows });
        }
        let said = around.end().unwrap_or_default();
        assert!(said.contains("cannot give 2 of"), "a gap that is on several pages is one: {said}");
        around.begin();
        assert_eq!((around.end(), around.refusals), (None, 0));
    }
}
