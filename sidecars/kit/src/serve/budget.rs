//! The memory that requests being read may hold together.
//!
//! A request's first 8 KiB are the connection's own buffer and cost nothing here. Up to 64 KiB come
//! from a *small* pool, what exceeds that from a *large* one for at most 64 connections at a time, so
//! that a few huge heads cannot keep ordinary requests from being read. When a pool is empty the
//! connection is simply not read until there is room; its timers go on.

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

#[derive(Debug)]
pub(super) struct Budget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    large_connections: Arc<Semaphore>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        let blocks = (bytes / BLOCK).max(8);
        Self {
            small: Arc::new(Semaphore::new(blocks / 4)),
            large: Arc::new(Semaphore::new(blocks - blocks / 4)),
            large_connections: Arc::new(Semaphore::new(LARGE_CONNECTIONS)),
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
    /// A wait under way, and for which pool.
    waiting: Option<(Pool, PollSemaphore)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    Small,
    Large,
    LargeConnection,
}

impl Held {
    pub(super) fn new() -> Self {
        Self { read: 0, covered: FREE, permits: Vec::new(), is_large: false, waiting: None }
    }

    /// How much may be read now; pending while there is no room.
    pub(super) fn poll_allowance(&mut self, budget: &Budget, cx: &mut Context<'_>) -> Poll<usize> {
        while self.read >= self.covered {
            let pool = match self.covered {
                covered if covered < SMALL => Pool::Small,
                _ if !self.is_large => Pool::LargeConnection,
                _ => Pool::Large,
            };
            let permit = ready!(self.poll_acquire(pool, budget, cx));
            self.permits.extend(permit);
            match pool {
                Pool::LargeConnection => self.is_large = true,
                Pool::Small | Pool::Large => self.covered += BLOCK,
            }
        }
        Poll::Ready(self.covered - self.read)
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
        let permit = ready!(waiting.poll_acquire(cx));
        self.waiting = None;
        Poll::Ready(permit)
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// The request is over.
    pub(super) fn release(&mut self) {
        self.read = 0;
        self.covered = FREE;
        self.is_large = false;
        self.waiting = None;
        if !self.permits.is_empty() {
            self.permits = Vec::new();
        }
    }
}
