//! The stream under hyper: it counts, times and looks at what passes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Shared;
use super::budget::Held;
use super::scan::Scanner;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Between requests.
    Idle,
    /// Reading a head. Before the first byte of the first request too: it counts from the accept.
    Head,
    /// The handler has the request; it reads the body under its own rules. Lasts until the answer
    /// has left for the kernel.
    Handling,
}

/// State of a connection that the stream, the service and the timer share. They run in one task, so
/// that the lock is never waited for.
#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) since: Instant,
    /// Writing makes no progress since then.
    pub(super) write_blocked: Option<Instant>,
    /// hyper has taken the whole answer, but may still hold some of it.
    pub(super) handed_over: bool,
    /// No byte of the current request has come yet.
    pub(super) untouched: bool,
    /// Something was left unread: close gently.
    pub(super) linger: bool,
    pub(super) scanner: Scanner,
    pub(super) held: Held,
}

impl State {
    pub(super) fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
        self.handed_over = false;
    }
}

#[derive(Clone, Debug)]
pub(super) struct Watched(Arc<Mutex<State>>);

impl Watched {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            phase: Phase::Head,
            since: Instant::now(),
            write_blocked: None,
            handed_over: false,
            untouched: true,
            linger: false,
            scanner: Scanner::new(),
            held: Held::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// hyper has taken the whole answer; once that is written the connection waits for its next
    /// request.
    pub(super) fn request_over(&self) {
        let mut state = self.lock();
        let in_step = !state.scanner.overran();
        state.handed_over = true;
        state.untouched = true;
        state.held.release();
        if in_step {
            state.scanner = Scanner::new();
        } else {
            state.scanner.out_of_step();
        }
    }
}

pub(super) struct Guarded {
    stream: TcpStream,
    watched: Watched,
    shared: Arc<Shared>,
}

impl Guarded {
    pub(super) fn new(stream: TcpStream, watched: Watched, shared: Arc<Shared>) -> Self {
        Self { stream, watched, shared }
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn noted_write<T>(&self, result: Poll<T>) -> Poll<T> {
        let mut state = self.watched.lock();
        match result {
            Poll::Ready(_) => state.write_blocked = None,
            Poll::Pending => {
                state.write_blocked.get_or_insert_with(Instant::now);
            }
        }
        result
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let mut state = this.watched.lock();
        let allowed = ready!(state.held.poll_allowance(&this.shared.budget, cx));
        let before = buf.filled().len();
        if buf.remaining() <= allowed {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        } else {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(allowed));
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            let read = part.filled().len();
            buf.advance(read);
        }
        let read = &buf.filled()[before..];
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if state.untouched {
            state.untouched = false;
            if state.phase == Phase::Idle || state.handed_over {
                state.begin(Phase::Head);
            }
        }
        state.held.add(read.len());
        state.scanner.feed(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.noted_write(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // hyper flushes once it has written all it holds.
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        let mut state = self.watched.lock();
        if state.handed_over && result.is_ready() {
            state.begin(Phase::Idle);
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.noted_write(result)
    }
}
