//! One connection from accept to close.

use std::future::{Future as _, poll_fn};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use futures_util::FutureExt as _;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

use super::body::BodyRules;
use super::io::{Guarded, Phase, Watched};
use super::scan::Framing;
use super::signal::Waiting;
use super::{ConnInfo, Shared};

/// A connection that is idle when the daemon stops may still bring a request that is on its way.
const LAST_REQUEST: Duration = Duration::from_millis(700);
/// A gentle close reads and discards at most this long and this much, so that the other end, still
/// sending, finds the answer and not a reset.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 32 << 20;

pub(super) async fn drive(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, app: Router) {
    let watched = Watched::new();
    // hyper reserves 8 KiB before it first looks at the stream, so that it is not asked to look before
    // there is something to see: whoever connects and says nothing costs next to nothing.
    let mut spoken = false;
    let gracefully = watch(shared, &watched, |cx| {
        // A look at the first byte: a new stream counts as readable until somebody has tried.
        stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map(|_| {
            spoken = true;
            true
        })
    })
    .await;
    if spoken {
        // Boxed: its state is large as well.
        Box::pin(converse(shared, stream, watched, peer, app)).await;
    } else {
        close(stream, !gracefully && !shared.cut_all.is_raised()).await;
    }
}

async fn converse(shared: &Arc<Shared>, stream: TcpStream, watched: Watched, peer: SocketAddr, app: Router) {
    let guarded = Guarded::new(stream, watched.clone(), Arc::clone(shared));
    let rules = Arc::new(BodyRules::new(&shared.limits, shared.cut_bodies.clone()));
    let service = {
        let (shared, watched) = (Arc::clone(shared), watched.clone());
        hyper::service::service_fn(move |request| {
            // Boxed: the connection is polled by reference below, and that needs futures that can move.
            Box::pin(answer(Arc::clone(&shared), watched.clone(), Arc::clone(&rules), peer, app.clone(), request))
        })
    };
    let mut http = hyper::server::conn::http1::Builder::new();
    // A client that closes its sending half after the request still gets its answer.
    http.half_close(true).header_read_timeout(None).max_buf_size(shared.limits.head_bytes);
    let mut connection = http.serve_connection(TokioIo::new(guarded), service);

    let gracefully =
        watch(shared, &watched, |cx| connection.poll_without_shutdown(cx).map(|result| result.is_ok())).await;

    let stream = connection.into_parts().io.into_inner().into_stream();
    let linger = {
        let mut state = watched.lock();
        // hyper and its buffers are gone: what is left to do needs no memory of others.
        state.held.release();
        state.linger || !gracefully
    };
    close(stream, linger && !shared.cut_all.is_raised()).await;
}

/// Goes on with `progress` until it is ready, a deadline has passed or everything is cut off; says
/// whether that is an end in order.
async fn watch(shared: &Shared, watched: &Watched, mut progress: impl FnMut(&mut Context<'_>) -> Poll<bool>) -> bool {
    let mut timer = pin!(tokio::time::sleep_until(next_deadline(shared, watched, None).0.into()));
    let (stopping, cut) = (pin!(shared.stopping.raised()), pin!(shared.cut_all.raised()));
    let mut stopping = Waiting::new(&shared.stopping, stopping);
    let mut cut = Waiting::new(&shared.cut_all, cut);
    let mut stopped_at = None;
    poll_fn(|cx| {
        if let Poll::Ready(in_order) = progress(cx) {
            return Poll::Ready(in_order);
        }
        if stopped_at.is_none() && stopping.poll(cx) {
            stopped_at = Some(Instant::now());
        }
        if cut.poll(cx) {
            return Poll::Ready(false);
        }
        poll_deadline(shared, watched, stopped_at, timer.as_mut(), cx)
    })
    .await
}

/// What a connection waits for at most until its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The next request.
    Idle,
    /// The rest of a head.
    Head,
    /// Nothing that is limited here: a handler keeps its own time.
    Handler,
    /// The other end, to read.
    Write,
    /// A request that may be on its way although the daemon stops.
    Stop,
}

/// Ready when a deadline has passed. The timer is moved only when it stands too late; standing too
/// early costs one look.
fn poll_deadline(
    shared: &Shared,
    watched: &Watched,
    stopped_at: Option<Instant>,
    mut timer: Pin<&mut tokio::time::Sleep>,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    loop {
        let (deadline, wait) = next_deadline(shared, watched, stopped_at);
        if timer.deadline().into_std() > deadline {
            timer.as_mut().reset(deadline.into());
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let now = Instant::now();
        if deadline <= now {
            shared.metrics.timed_out(shared.name, wait);
            return Poll::Ready(matches!(wait, Wait::Idle | Wait::Stop));
        }
        timer.as_mut().reset(deadline.into());
    }
}

fn next_deadline(shared: &Shared, watched: &Watched, stopped_at: Option<Instant>) -> (Instant, Wait) {
    let limits = &shared.limits;
    let state = watched.lock();
    let phase = match state.phase {
        Phase::Idle => (state.since + limits.idle_timeout, Wait::Idle),
        Phase::Head => (state.since + limits.head_timeout, Wait::Head),
        // This only bounds how late the timer looks again.
        Phase::Handling => (Instant::now() + limits.idle_timeout, Wait::Handler),
    };
    let write = state.write_blocked.map(|since| (since + limits.write_timeout, Wait::Write));
    let stop = stopped_at
        .filter(|_| state.untouched && state.phase != Phase::Handling)
        .map(|at| (at + LAST_REQUEST, Wait::Stop));
    [write, stop].into_iter().flatten().fold(phase, |a, b| if b.0 < a.0 { b } else { a })
}

/// Sends the end and, where something may still be on its way, waits for the other end to close.
async fn close(mut stream: TcpStream, linger: bool) {
    if stream.shutdown().await.is_err() || !linger {
        return;
    }
    let drain = async {
        let mut discarded = 0;
        while discarded < LINGER_BYTES && stream.readable().await.is_ok() {
            match discard(&stream) {
                Ok(0) => return,
                Ok(read) => discarded += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// Reads once what is there. The buffer lives on the stack and only here: thousands of connections
/// that are closed at the same moment must not hold one each.
fn discard(stream: &TcpStream) -> std::io::Result<usize> {
    stream.try_read(&mut [0; 16 * 1024])
}

async fn answer(
    shared: Arc<Shared>,
    watched: Watched,
    rules: Arc<BodyRules>,
    peer: SocketAddr,
    app: Router,
    request: Request<Incoming>,
) -> Result<Response<Tracked>, std::convert::Infallible> {
    let framing = {
        let mut state = watched.lock();
        state.begin(Phase::Handling);
        state.scanner.verdict(request.version() == Version::HTTP_11)
    };
    let body_read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let mut response = match framing {
        Err(reason) => {
            tracing::debug!(peer = %peer, reason, "request refused: {reason}");
            plain(StatusCode::BAD_REQUEST, "bad request")
        }
        Ok(_) if !is_target(request.uri(), shared.limits.any_path) => plain(StatusCode::NOT_FOUND, "no such path"),
        Ok(_) => {
            let counted = Arc::clone(&body_read);
            let mut request = request.map(|body| Body::new(Counted { body, ended: counted }));
            request.extensions_mut().insert(ConnInfo { peer });
            request.extensions_mut().insert(rules);
            match AssertUnwindSafe(app.oneshot(request)).catch_unwind().await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => {
                    shared.metrics.panicked(shared.name);
                    plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
                }
            }
        }
    };
    let unread = !body_read.load(Ordering::Acquire);
    let (overran, large) = {
        let mut state = watched.lock();
        state.linger |= unread || framing.is_err();
        (state.scanner.overran(), state.held.is_large())
    };
    // hyper keeps the buffer of a large head for as long as the connection lives, and nobody counts
    // it once the request is over.
    let spent = unread || overran || large || framing.is_err() || framing == Ok(Framing::Chunked);
    if spent || shared.stopping.is_raised() || shared.is_crowded() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    shared.metrics.answered(shared.name, response.status());
    Ok(response.map(|body| Tracked { body, watched }))
}

/// Only the plain form of a path is routed: whatever has to be decoded or normalised first could
/// mean something else to whoever looked at it before.
fn is_target(uri: &Uri, any_path: bool) -> bool {
    let path = uri.path();
    let plain = || !path.bytes().any(|b| matches!(b, b'%' | b'\\')) && !path.contains("//") && !path.contains("..");
    uri.authority().is_none()
        && path.starts_with('/')
        && path.bytes().all(|b| b.is_ascii_graphic())
        && (any_path || plain())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

/// A request body that tells whether it was read to its end.
struct Counted {
    body: Incoming,
    ended: Arc<AtomicBool>,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.ended.store(true, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body; when hyper lets go of it the request is over.
struct Tracked {
    body: Body,
    watched: Watched,
}

impl http_body::Body for Tracked {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.watched.request_over();
    }
}
