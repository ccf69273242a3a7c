//! The accept loop and everything that stands between a socket and a handler: limits on
//! connections, heads, bodies, memory and time; refusal of ambiguous requests; an orderly stop.
//!
//! `axum::serve` has none of this (axum 0.8). Handlers are an ordinary axum router.

mod body;
mod budget;
mod connection;
mod io;
mod metrics;
pub mod scan;
mod signal;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt as _;
use rustix::process::Resource;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use body::{BodyError, BodyRules, read_body};
pub use metrics::ServeMetrics;

use crate::config::{ListenSection, StopSection};
use crate::lifecycle::StopToken;
use budget::Budget;
use signal::Signal;

/// Connections that may wait to be accepted; the kernel cuts this down to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// Fewer connections than this are no crowd, however small the limit.
const CROWD: usize = 64;

/// Who sent a request; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct ConnInfo {
    /// The other end of the connection.
    pub peer: SocketAddr,
}

/// Limits of one listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's head; at least 8 KiB.
    pub head_bytes: usize,
    /// Paths may be percent-encoded and hold any segment: for routes with a sender's own name in them. Without it,
    /// what two programs could read as different paths is no path.
    pub any_path: bool,
    /// Connections at the same time.
    pub connections: usize,
    /// Connections at the same time from one address; 0 means no limit of its own.
    pub connections_per_peer: usize,
    /// Bytes that all requests being read may hold together.
    pub memory_bytes: usize,
    /// From the first byte of a request (or the accept) to the end of its head.
    pub head_timeout: Duration,
    /// What a body may take before its rate counts.
    pub body_timeout: Duration,
    /// What a body may take in all, whatever its rate.
    pub body_total: Duration,
    /// Slowest acceptable body, in bytes per second.
    pub body_min_rate: u64,
    /// Without progress in writing an answer.
    pub write_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// From the stop until unfinished bodies are answered 503.
    pub unfinished_body: Duration,
    /// From the stop until connections are cut off.
    pub drain: Duration,
}

impl Limits {
    /// The configured limits with this size of head.
    pub fn new(listen: &ListenSection, stop: &StopSection, head_bytes: usize) -> Self {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(10));
        Self {
            head_bytes: head_bytes.max(8192),
            any_path: false,
            connections: listen.max_connections,
            connections_per_peer: listen.max_connections_per_peer,
            memory_bytes: listen.memory_budget_bytes,
            head_timeout: seconds(listen.head_timeout_seconds),
            body_timeout: seconds(listen.body_timeout_seconds),
            body_total: seconds(listen.body_total_seconds),
            body_min_rate: listen.body_min_bytes_per_second,
            write_timeout: seconds(listen.write_timeout_seconds),
            idle_timeout: seconds(listen.idle_timeout_seconds),
            unfinished_body: seconds(stop.unfinished_body_seconds),
            // What the daemon does after its listeners takes a moment as well.
            drain: seconds(stop.drain_seconds).mul_f64(0.85),
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: StopToken,
}

/// What all connections of a listener share.
#[derive(Debug)]
struct Shared {
    name: &'static str,
    limits: Limits,
    budget: Budget,
    peers: Mutex<HashMap<IpAddr, usize>>,
    open: AtomicUsize,
    metrics: ServeMetrics,
    /// The daemon stops.
    stopping: Signal,
    /// Bodies that are unfinished now are given up.
    cut_bodies: CancellationToken,
    /// Connections that are open now are given up.
    cut_all: Signal,
}

impl Server {
    /// Binds a listener; `name` is its label in logs and metrics.
    ///
    /// # Errors
    /// The operating system refuses the address.
    pub async fn bind(
        address: &str,
        name: &'static str,
        limits: Limits,
        metrics: ServeMetrics,
        stop: StopToken,
    ) -> std::io::Result<Self> {
        let address: SocketAddr = address.parse().map_err(|_| std::io::Error::from(ErrorKind::InvalidInput))?;
        metrics.prepare(name);
        let mut limits = limits;
        let room = room_for_connections(rustix::process::getrlimit(Resource::Nofile).current);
        if room < limits.connections {
            tracing::warn!(
                listener = name,
                connections = room,
                wanted = limits.connections,
                "the limit of open files leaves room for {room} connections only"
            );
            limits.connections = room;
        }
        let socket =
            if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let budget = Budget::new(limits.memory_bytes);
        let shared = Shared {
            name,
            limits,
            budget,
            peers: Mutex::new(HashMap::new()),
            open: AtomicUsize::new(0),
            metrics,
            stopping: Signal::default(),
            cut_bodies: CancellationToken::new(),
            cut_all: Signal::default(),
        };
        tracing::info!(listener = name, address = %listener.local_addr()?, "listening");
        Ok(Self { listener, shared: Arc::new(shared), stop })
    }

    /// The address in use, for a listener bound to port 0.
    ///
    /// # Errors
    /// The operating system cannot say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until stopped and every connection has ended or its time is over.
    ///
    /// # Errors
    /// Never; the type is what the shell wants of a task.
    pub async fn run(self, app: Router) -> Result<(), std::convert::Infallible> {
        let Self { listener, shared, stop } = self;
        let connections = TaskTracker::new();
        let accepting = async {
            let mut pause = Pause::default();
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        pause = Pause::default();
                        shared.admit(stream, peer, &app, &connections);
                    }
                    Err(error) => pause.after(&error, shared.name).await,
                }
            }
        };
        tokio::select! {
            () = stop.stopped() => {}
            () = accepting => {}
        }
        shared.stopping.raise();
        // Whoever has connected before the stop is served: closing the listener now would reset them.
        // A moment, so that the runtime has seen them; then only what is there, because under load
        // there would always be one more.
        tokio::time::sleep(Duration::from_millis(10)).await;
        for _ in 0..BACKLOG {
            // Unconstrained: a task that has used up its share of a turn is told that nobody is there.
            let accepted = tokio::task::coop::unconstrained(listener.accept()).now_or_never();
            let Some(Ok((stream, peer))) = accepted else { break };
            shared.admit(stream, peer, &app, &connections);
        }
        drop(listener);
        connections.close();
        let limits = &shared.limits;
        let cut_off = async {
            let bodies = limits.unfinished_body.min(limits.drain);
            tokio::time::sleep(bodies).await;
            shared.cut_bodies.cancel();
            tokio::time::sleep(limits.drain.saturating_sub(bodies)).await;
            shared.cut_all.raise();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = connections.wait() => {}
            () = cut_off => {}
        }
        Ok(())
    }
}

impl Shared {
    /// More than half of the places are taken. A connection that has brought a request keeps hyper's
    /// buffers, 12 KiB of them, for as long as it lives, so that a crowd is not invited to stay.
    fn is_crowded(&self) -> bool {
        self.open.load(Ordering::Relaxed) > (self.limits.connections / 2).max(CROWD)
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, app: &Router, connections: &TaskTracker) {
        self.metrics.accepted(self.name);
        let Some(place) = Place::take(self, peer.ip(), connections.len()) else {
            // Closed without a word: an answer would cost what the limit protects.
            self.metrics.refused(self.name);
            return;
        };
        // Answers are one small write each.
        let _ = stream.set_nodelay(true);
        let app = app.clone();
        let shared = Arc::clone(self);
        connections.spawn(async move {
            connection::drive(&shared, stream, peer, app).await;
            drop(place);
        });
    }
}

/// A connection's place under the limits, given back when dropped.
struct Place {
    shared: Arc<Shared>,
    peer: Option<IpAddr>,
}

impl Place {
    fn take(shared: &Arc<Shared>, peer: IpAddr, open: usize) -> Option<Self> {
        if open >= shared.limits.connections {
            return None;
        }
        let most = shared.limits.connections_per_peer;
        let counted = (most > 0).then_some(peer);
        if let Some(peer) = counted {
            let mut peers = shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
            let held = peers.entry(peer).or_insert(0);
            if *held >= most {
                return None;
            }
            *held += 1;
        }
        shared.open.fetch_add(1, Ordering::Relaxed);
        shared.metrics.opened(shared.name, 1);
        Some(Self { shared: Arc::clone(shared), peer: counted })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.opened(self.shared.name, -1);
        if let Some(peer) = self.peer {
            let mut peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = peers.get_mut(&peer) {
                *held -= 1;
                if *held == 0 {
                    peers.remove(&peer);
                }
            }
        }
    }
}

/// Connections that a limit of open files leaves room for: the store, the clients and the other
/// listener need files as well, above all when this listener is flooded.
fn room_for_connections(open_files: Option<u64>) -> usize {
    const OTHERS: usize = 128;
    let files = open_files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    files.saturating_sub(OTHERS).max(files / 2)
}

/// Waiting after a failed accept: without file descriptors `accept` fails at once, again and again.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    async fn after(&mut self, error: &std::io::Error, listener: &'static str) {
        // The other end gave up between connecting and being accepted: nothing is wrong here.
        if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
            return;
        }
        if self.failures == 0 {
            tracing::error!(listener, error = %error, "connections cannot be accepted, trying again: {error}");
        }
        let wait = Self::FIRST * 2_u32.pow(self.failures.min(5));
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(wait.min(Self::LONGEST)).await;
    }
}
