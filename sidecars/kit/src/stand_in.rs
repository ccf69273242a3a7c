//! The port of a stand-in for somebody whom daemons talk to: an accept loop of its own over hyper, because a stand-in has to
//! reset, to close and to ignore connections, which a server framework does not let a handler do.
//!
//! Not here: what is answered. That is a [`Party`], of which there is one in the crate of each of them. For the command line
//! and the tests (feature `stand-in`); daemons listen with [`crate::serve`].

pub mod ports;

use std::convert::Infallible;
use std::future::{Future, Pending, pending};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Any free port of the loopback. A stand-in gets one that nobody else is given while it is down, see [`ports`].
pub const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// The kernel is out of descriptors or the like: wait instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The body of an answer.
pub type Body = BoxBody<Bytes, io::Error>;

/// Who is stood in for: what it knows, and what it answers.
pub trait Party: Send + Sync + 'static {
    /// Who that is, as log lines say it: `the stand-in for …`.
    const WHO: &'static str;
    /// Longest head; hyper's own limit where there is none.
    const HEAD_LIMIT_BYTES: Option<usize> = None;

    /// Answers a request, or ends its connection.
    fn answer(self: Arc<Self>, request: Request<Incoming>, line: Line) -> impl Future<Output = Response<Body>> + Send;
}

/// A party on a port. Dropping it closes the port and breaks all connections.
#[derive(Debug)]
pub struct StandIn<P> {
    address: SocketAddr,
    state: Arc<P>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl<P: Party> StandIn<P> {
    /// Listens; the state may be that of a stand-in that was stopped. Requests are taken from the moment this returns.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(address: SocketAddr, state: Arc<P>) -> io::Result<Self> {
        let listener = listen(address).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let (party, stopped) = (Arc::clone(&state), stop.clone());
        let task = tokio::spawn(async move {
            accept(listener, stopped, P::WHO, |stream| connection(Arc::clone(&party), stream)).await;
        });
        Ok(Self { address, state, stop, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it knows, to be kept beyond the port.
    pub fn state(&self) -> &Arc<P> {
        &self.state
    }

    /// Goes down: closes the port and breaks every connection with whatever it was doing. When this returns, new connections
    /// are refused. What it knows stays in what this returns.
    pub async fn stop(mut self) -> Arc<P> {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::warn!(%error, "the listener of {} ended badly", P::WHO);
        }
        Arc::clone(&self.state)
    }
}

/// Listens on an address, which may be that of a listener that has just been dropped; [`ANY_PORT`] is one of [`ports`], so that
/// what stops there may come back.
///
/// # Errors
/// When the address cannot be bound.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let address = if address == ANY_PORT { (Ipv4Addr::LOCALHOST, ports::free_port()?).into() } else { address };
    // A child that was being started when a listener stopped has a copy of it until it becomes another program.
    let patience = Instant::now() + Duration::from_secs(1);
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < patience => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            bound => return bound,
        }
    }
}

/// A running stand-in is used like its state.
impl<P> Deref for StandIn<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.state
    }
}

impl<P> Drop for StandIn<P> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The connection that a request came on.
#[derive(Clone, Debug, Default)]
pub struct Line {
    broken: CancellationToken,
    end: Arc<Mutex<Option<End>>>,
}

/// How a connection ends by other means than an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// In order.
    Close,
    /// By a reset, which discards what is unsent.
    Reset,
    /// In order, after these bytes, whatever they are.
    Bytes(Vec<u8>),
}

impl Line {
    /// Ends the connection. Never ready: there is nothing to answer any more.
    pub fn end<T>(&self, end: End) -> Pending<T> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        self.broken.cancel();
        pending()
    }
}

/// Reads a request's body.
///
/// # Errors
/// The status to answer with: 413 where it is larger than the limit, 400 where the client broke off; then there is nobody to
/// answer, and nothing was received.
pub async fn read(body: Incoming, limit_bytes: usize) -> Result<Bytes, StatusCode> {
    match Limited::new(body, limit_bytes).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::BAD_REQUEST),
    }
}

/// A body that is all there.
pub fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

/// Accepts until stopped, and has `handle` do something with each connection; then closes the port and breaks all
/// connections before it returns. `who` is whose port it is, for log lines.
pub async fn accept<F>(listener: TcpListener, stop: CancellationToken, who: &str, handle: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(handle(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "{who} cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection<P: Party>(party: Arc<P>, stream: TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection is gone before it began");
        return;
    }
    let line = Line::default();
    let service = service_fn(|request| {
        let answer = Arc::clone(&party).answer(request, line.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut http = http1::Builder::new();
    if let Some(bytes) = P::HEAD_LIMIT_BYTES {
        http.max_buf_size(bytes);
    }
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        done = &mut connection => {
            if let Err(error) = done {
                tracing::debug!(%error, "connection to {} ended", P::WHO);
            }
        }
        () = line.broken.cancelled() => {
            let end = line.end.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = connection.into_parts().io.into_inner();
            if let Err(error) = finish(stream, end.unwrap_or(End::Close)).await {
                tracing::debug!(%error, "connection to {} is gone before its end", P::WHO);
            }
        }
    }
}

async fn finish(mut stream: TcpStream, end: End) -> io::Result<()> {
    match end {
        End::Close => Ok(()),
        // With no time to linger, closing sends RST and discards what is unsent.
        End::Reset => stream.set_zero_linger(),
        // The client may have had enough of it before the end.
        End::Bytes(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
    }
}

#[cfg(test)]
mod tests;
