//! The memory that requests being read may hold together.
//!
//! A request's first 8 KiB are the connection's own buffer and cost nothing here. Up to 64 KiB come
//! from a *small* pool, what exceeds that from a *large* one for at most 64 connections at a time, so
//! that a few huge heads cannot keep ordinary requests from being read. When a pool is empty the
//! connection is simply not read until there is room; its timers go on.
//!
//! Requests that each hold a part and wait for the rest could wait for each other until all of them
//! time out. Therefore a quarter of the memory is a *reserve* which one waiting request at a time
//! gets as a whole: it gets on, ends, and gives back what the next ones need.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

const BLOCK: usize = 16 * 1024;
/// What every connection may hold for itself.
pub(super) const FREE: usize = 8 * 1024;
const SMALL: usize = 64 * 1024;
/// Connections that may hold large requests at the same time.
const LARGE_CONNECTIONS: usize = 64;
/// The smallest budget that makes sense, in blocks.
const LEAST_BLOCKS: usize = 16;

#[derive(Debug)]
pub(super) struct Budget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    large_connections: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    reserve_bytes: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        let blocks = (bytes / BLOCK).max(LEAST_BLOCKS);
        let (small, reserve) = (blocks / 4, blocks / 4);
        Self {
            small: Arc::new(Semaphore::new(small)),
            large: Arc::new(Semaphore::new(blocks - small - reserve)),
            large_connections: Arc::new(Semaphore::new(LARGE_CONNECTIONS)),
            reserve: Arc::new(Semaphore::new(1)),
            reserve_bytes: reserve * BLOCK,
        }
    }
}

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Held {
    /// Bytes read of the current request.
    read: usize,
    /// Bytes that may be read before more has to be asked for.
    covered: usize,
    permits: Vec<OwnedSemaphorePermit>,
    is_large: bool,
    has_reserve: bool,
    /// A wait under way, and for which pool.
    waiting: Option<(Pool, PollSemaphore)>,
    /// The wait for the reserve beside it.
    waiting_for_reserve: Option<PollSemaphore>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    Small,
    Large,
    LargeConnection,
}

impl Held {
    pub(super) fn new() -> Self {
        Self {
            read: 0,
            covered: FREE,
            permits: Vec::new(),
            is_large: false,
            has_reserve: false,
            waiting: None,
            waiting_for_reserve: None,
        }
    }

    /// How much may be read now; pending while there is no room.
    pub(super) fn poll_allowance(&mut self, budget: &Budget, cx: &mut Context<'_>) -> Poll<usize> {
        while self.read >= self.covered {
            let pool = match self.covered {
                covered if covered < SMALL => Pool::Small,
                _ if !self.is_large => Pool::LargeConnection,
                _ => Pool::Large,
            };
            let Poll::Ready(permit) = self.poll_acquire(pool, budget, cx) else {
                // Whoever waits for a place among the large ones is let in when one of them ends.
                if pool == Pool::LargeConnection || self.has_reserve {
                    return Poll::Pending;
                }
                let permit = ready!(self.poll_acquire_reserve(budget, cx));
                self.permits.extend(permit);
                self.has_reserve = true;
                self.is_large = true;
                self.covered += budget.reserve_bytes;
                self.stop_waiting();
                continue;
            };
            self.permits.extend(permit);
            self.stop_waiting();
            match pool {
                Pool::LargeConnection => self.is_large = true,
                Pool::Small | Pool::Large => self.covered += BLOCK,
            }
        }
        Poll::Ready((self.covered - self.read).min(BLOCK))
    }

    /// Whether the request has taken more than a connection of its kind should go on holding.
    pub(super) fn is_large(&self) -> bool {
        self.is_large
    }

    /// Leaves every queue: a permit that is granted to somebody who no longer asks is lost to all.
    fn stop_waiting(&mut self) {
        self.waiting = None;
        self.waiting_for_reserve = None;
    }

    fn poll_acquire(
        &mut self,
        pool: Pool,
        budget: &Budget,
        cx: &mut Context<'_>,
    ) -> Poll<Option<OwnedSemaphorePermit>> {
        let semaphore = match pool {
            Pool::Small => &budget.small,
            Pool::Large => &budget.large,
            Pool::LargeConnection => &budget.large_connections,
        };
        let waiting = match &mut self.waiting {
            Some((waited_for, waiting)) if *waited_for == pool => waiting,
            _ => {
                if let Ok(permit) = Arc::clone(semaphore).try_acquire_owned() {
                    return Poll::Ready(Some(permit));
                }
                &mut self.waiting.insert((pool, PollSemaphore::new(Arc::clone(semaphore)))).1
            }
        };
        waiting.poll_acquire(cx)
    }

    fn poll_acquire_reserve(&mut self, budget: &Budget, cx: &mut Context<'_>) -> Poll<Option<OwnedSemaphorePermit>> {
        self.waiting_for_reserve.get_or_insert_with(|| PollSemaphore::new(Arc::clone(&budget.reserve))).poll_acquire(cx)
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// The request is over.
    pub(super) fn release(&mut self) {
        self.read = 0;
        self.covered = FREE;
        self.is_large = false;
        self.has_reserve = false;
        self.stop_waiting();
        if !self.permits.is_empty() {
            self.permits = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const TOTAL: usize = 4 << 20;

    /// Reads on until `target` bytes have been read or nothing more is allowed; says whether it is done.
    fn advance(held: &mut Held, budget: &Budget, target: usize) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        while held.read < target {
            match held.poll_allowance(budget, &mut cx) {
                Poll::Ready(allowed) => held.add(allowed.min(target - held.read)),
                Poll::Pending => return false,
            }
        }
        true
    }

    fn read_by_all(held: &[Held]) -> usize {
        held.iter().map(|held| held.read.saturating_sub(FREE)).sum()
    }

    /// All read a block at a time in turns, so that each holds a part when the memory is used up.
    fn all_get_through(count: usize, target: usize) {
        let budget = Budget::new(TOTAL);
        let mut waiting: Vec<Held> = (0..count).map(|_| Held::new()).collect();
        let mut goal = 0;
        for _ in 0..100_000 {
            goal = (goal + BLOCK).min(target);
            let mut at = 0;
            while at < waiting.len() {
                let got_there = advance(&mut waiting[at], &budget, goal);
                assert!(read_by_all(&waiting) <= TOTAL, "more is held than there is");
                if got_there && goal == target {
                    waiting.swap_remove(at);
                } else {
                    at += 1;
                }
            }
            if waiting.is_empty() {
                break;
            }
        }
        assert_eq!(waiting.len(), 0, "{count} requests of {target} bytes wait for each other");
        assert_eq!(budget.reserve.available_permits(), 1);
        let blocks = budget.small.available_permits() + budget.large.available_permits();
        assert_eq!(blocks * BLOCK + budget.reserve_bytes, TOTAL, "everything has been given back");
        assert_eq!(budget.large_connections.available_permits(), LARGE_CONNECTIONS);
    }

    #[test]
    fn requests_that_are_too_many_at_once_do_not_wait_for_each_other() {
        for (count, target) in [(1, 1 << 20), (10, 1 << 20), (100, 200_000), (300, 60_000), (1000, 20_000)] {
            all_get_through(count, target);
        }
    }

    #[test]
    fn an_unfinished_crowd_leaves_room_for_small_requests() {
        let budget = Budget::new(TOTAL);
        let mut hogs: Vec<Held> = (0..200).map(|_| Held::new()).collect();
        for hog in hogs.iter_mut().take(10) {
            advance(hog, &budget, TOTAL);
        }
        assert!(read_by_all(&hogs) <= TOTAL);

        let mut small = Held::new();
        assert!(advance(&mut small, &budget, 60_000), "the small pool is not theirs");
        let mut tiny: Vec<Held> = (0..1000).map(|_| Held::new()).collect();
        assert!(tiny.iter_mut().all(|held| advance(held, &budget, FREE)), "what is free needs no pool");
    }

    #[test]
    fn whoever_gives_up_waiting_stands_in_nobodys_way() {
        let budget = Budget::new(TOTAL);
        let mut first = Held::new();
        advance(&mut first, &budget, TOTAL * 2);
        let mut impatient = Held::new();
        assert!(!advance(&mut impatient, &budget, 1 << 20));
        let mut patient = Held::new();
        assert!(!advance(&mut patient, &budget, 1 << 20));

        drop(impatient);
        first.release();

        assert!(advance(&mut patient, &budget, 1 << 20));
    }

    #[test]
    fn whoever_gets_on_without_the_reserve_leaves_it_to_others() {
        let budget = Budget::new(TOTAL);
        let mut filling = Held::new();
        let take_the_pool = |held: &mut Held| advance(held, &budget, SMALL + budget.large.available_permits() * BLOCK);
        take_the_pool(&mut filling);
        let mut reserved = Held::new();
        assert!(advance(&mut reserved, &budget, 1 << 20), "by the reserve");
        let (mut second, mut third) = (Held::new(), Held::new());
        assert!(!advance(&mut second, &budget, 200_000));
        filling.release();
        assert!(advance(&mut second, &budget, 200_000), "by the pool");

        reserved.release();
        take_the_pool(&mut filling);
        assert!(advance(&mut third, &budget, 500_000), "by the reserve, for which the second no longer asks");
    }
}
