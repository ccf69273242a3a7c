//! The port: an accept loop of its own over hyper, because a stand-in has to break connections.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::generation::Generation;
use super::routes::{self, Ending, Request};
use super::state::AuthentikState;

/// The kernel is out of descriptors or the like: wait instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BODY_LIMIT_BYTES: usize = 1024 * 1024;

/// A running stand-in for Authentik's API: its [`AuthentikState`] on a port. Dropping it closes the port and breaks all
/// connections.
///
/// ```
/// use kit_authentik::emulator::{AuthentikServer, Generation, NewEvent, User};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let authentik = AuthentikServer::start(Generation::V2026_2).await?;
/// let pk = authentik.happen(NewEvent::login(&User::new(5, "ada")));
///
/// let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
/// let url = format!("{}/api/v3/events/events/", authentik.url());
/// let page = client.get(url).bearer_auth(authentik.token()).send().await?.text().await?;
/// assert!(page.contains(&pk.dashed()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AuthentikServer {
    address: SocketAddr,
    state: Arc<AuthentikState>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl AuthentikServer {
    /// Starts with nothing in it but what our blueprint makes, on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(generation: Generation) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_with(address, AuthentikState::new(generation)).await
    }

    /// Starts with what a stand-in knew that was stopped, for example on its address.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_with(address: SocketAddr, state: Arc<AuthentikState>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(Arc::clone(&state), listener, stop.clone()));
        Ok(Self { address, state, stop, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its `AUTHENTIK_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it knows, to be kept beyond the port.
    pub fn state(&self) -> &Arc<AuthentikState> {
        &self.state
    }

    /// Goes down: closes the port and breaks every connection. When this returns, new connections are refused.
    pub async fn stop(mut self) -> Arc<AuthentikState> {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::warn!(%error, "the listener of the stand-in for Authentik ended badly");
        }
        Arc::clone(&self.state)
    }
}

/// A running stand-in is used like its state.
impl Deref for AuthentikServer {
    type Target = AuthentikState;

    fn deref(&self) -> &AuthentikState {
        &self.state
    }
}

impl Drop for AuthentikServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(state: Arc<AuthentikState>, listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(Arc::clone(&state), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "the stand-in for Authentik cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(state: Arc<AuthentikState>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let broken = CancellationToken::new();
    let service = service_fn(|request| {
        let (state, broken) = (Arc::clone(&state), broken.clone());
        async move { Ok::<_, Infallible>(serve(&state, &broken, request).await) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection to the stand-in for Authentik ended");
            }
        }
        () = broken.cancelled() => {}
    }
}

async fn serve(
    state: &Arc<AuthentikState>,
    broken: &CancellationToken,
    request: http::Request<Incoming>,
) -> Response<Reply> {
    let (parts, body) = request.into_parts();
    if Limited::new(body, BODY_LIMIT_BYTES).collect().await.is_err() {
        return response(Answer::detail(413, "Request body is too large."), false);
    }
    let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let request = Request {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        token: bearer.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned),
        method: parts.method,
    };
    match routes::handle(state, &request).await {
        Ending::Answer(answer) => response(answer, false),
        Ending::Cut(answer) => response(answer, true),
        Ending::Close => {
            broken.cancel();
            std::future::pending().await
        }
        Ending::Redirect(location) => {
            let mut response = response(Answer::text(301, "text/html; charset=utf-8", ""), false);
            if let Ok(location) = HeaderValue::try_from(location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
struct Reply {
    rest: Bytes,
    /// Half of it has been announced only, and then the connection is closed.
    is_cut: bool,
    told: bool,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        }
        if !self.is_cut {
            return Poll::Ready(None);
        }
        // What was given is sent before the connection ends.
        if !std::mem::replace(&mut self.told, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && !self.is_cut
    }
}

fn response(answer: Answer, is_cut: bool) -> Response<Reply> {
    let mut body = answer.body.into_bytes();
    let announced = body.len();
    if is_cut {
        body.truncate(announced / 2);
    }
    let mut response = Response::new(Reply { rest: Bytes::from(body), is_cut, told: false });
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(announced));
    if let Some(seconds) = answer.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
