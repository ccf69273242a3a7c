//! The bytes of a connection: TCP, with TLS where the address says so, that can be cut off from outside.
//!
//! lapin closes a connection by asking the broker, and a frozen one never answers; its thread and its socket would stay.
//! So every connection gets a switch of ours. What comes in is looked at before lapin sees it (`scan.rs`), and not read
//! while too much of it lies here unhandled.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::Tokio;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::scan::Scanner;

/// The switch of a connection, and what lies here of it.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Bytes of bodies that came and were not let go of.
    held: AtomicUsize,
    /// Since when nothing is read, because too much is held.
    full_since: Mutex<Option<Instant>>,
}

impl Guard {
    /// Ends the connection for both sides, whatever state it is in.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// So many bytes of bodies are handled.
    pub(crate) fn let_go(&self, bytes: usize) {
        let less = |held: usize| Some(held.saturating_sub(bytes));
        let _ = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        self.reader.wake();
    }

    /// For how long nothing has been read because too much is held.
    pub(crate) fn full_for(&self) -> Option<Duration> {
        self.full_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }

    /// Whether more than `most` bytes are held; remembers since when.
    fn is_full(&self, most: usize) -> bool {
        let is_full = self.held.load(Ordering::Acquire) > most;
        let mut since = self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = is_full.then(|| since.unwrap_or_else(Instant::now));
        is_full
    }

    fn refuses(&self) -> io::Result<()> {
        if self.cut.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut off"));
        }
        Ok(())
    }
}

/// What carries the bytes.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection's bytes, as lapin reads and writes them.
#[derive(Debug)]
pub(crate) struct Transport {
    wire: Wire,
    guard: Arc<Guard>,
    scanner: Scanner,
    held_max: usize,
}

impl Transport {
    /// Reads no further while more than `held_max` bytes of bodies are held.
    pub(crate) fn new(wire: Wire, guard: Arc<Guard>, scanner: Scanner, held_max: usize) -> Self {
        Self { wire, guard, scanner, held_max }
    }
}

impl futures_io::AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.guard.reader.register(cx.waker());
        this.guard.refuses()?;
        if this.guard.is_full(this.held_max) {
            return Poll::Pending;
        }
        let mut read = ReadBuf::new(buffer);
        let polled = match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, &mut read),
            Wire::Tls(stream) => Pin::new(stream).poll_read(cx, &mut read),
        };
        std::task::ready!(polled)?;
        let bodies = this.scanner.look(read.filled()).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))?;
        this.guard.held.fetch_add(bodies, Ordering::AcqRel);
        Poll::Ready(Ok(read.filled().len()))
    }
}

impl futures_io::AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.guard.writer.register(cx.waker());
        this.guard.refuses()?;
        match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.guard.writer.register(cx.waker());
        this.guard.refuses()?;
        match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.guard.writer.register(cx.waker());
        // Whatever is left of a connection that was cut off needs no farewell.
        if this.guard.refuses().is_err() {
            return Poll::Ready(Ok(()));
        }
        match &mut this.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The runtime that lapin runs on: ours, with our transport in place of its own.
#[derive(Clone, Debug)]
pub(crate) struct Kit(Tokio);

impl Kit {
    /// On the runtime that we are called in.
    pub(crate) fn current() -> Self {
        Self(Tokio::current())
    }
}

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Kit {
    type TcpStream = Transport;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Never asked for: connections are made in `connection.rs`, with limits on time.
    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}
