//! The port: who is asked, and how an answer goes out.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use kit::stand_in::{ANY_PORT, Body, End, Line, Party, StandIn, read, whole};

use super::answer::Answer;
use super::generation::Generation;
use super::routes::{self, Ending, Request};
use super::state::AuthentikState;

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
pub struct AuthentikServer(StandIn<AuthentikState>);

impl AuthentikServer {
    /// Starts with nothing in it but what our blueprint makes, on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(generation: Generation) -> io::Result<Self> {
        Self::start_with(ANY_PORT, AuthentikState::new(generation)).await
    }

    /// Starts with what a stand-in knew that was stopped, for example on its address.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_with(address: SocketAddr, state: Arc<AuthentikState>) -> io::Result<Self> {
        StandIn::start(address, state).await.map(Self)
    }

    /// Goes down, see [`StandIn::stop`].
    pub async fn stop(self) -> Arc<AuthentikState> {
        self.0.stop().await
    }
}

/// A running stand-in is used like its port, and that like its state.
impl Deref for AuthentikServer {
    type Target = StandIn<AuthentikState>;

    fn deref(&self) -> &StandIn<AuthentikState> {
        &self.0
    }
}

impl Party for AuthentikState {
    const WHO: &'static str = "the stand-in for Authentik";

    async fn answer(self: Arc<Self>, request: http::Request<Incoming>, line: Line) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if read(body, BODY_LIMIT_BYTES).await.is_err() {
            return response(Answer::detail(413, "Request body is too large."), whole);
        }
        let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let request = Request {
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            token: bearer.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned),
            method: parts.method,
        };
        match routes::handle(&self, &request).await {
            Ending::Answer(answer) => response(answer, whole),
            Ending::Cut(answer) => response(answer, Half::of),
            Ending::Close => line.end(End::Close).await,
            Ending::Redirect(location) => {
                let mut response = response(Answer::text(301, "text/html; charset=utf-8", ""), whole);
                if let Ok(location) = HeaderValue::try_from(location) {
                    response.headers_mut().insert(header::LOCATION, location);
                }
                response
            }
        }
    }
}

/// The first half of a body; then the connection is closed.
#[derive(Debug)]
struct Half {
    rest: Bytes,
    told: bool,
}

impl Half {
    fn of(body: Bytes) -> Body {
        let rest = body.slice(..body.len() / 2);
        Self { rest, told: false }.boxed()
    }
}

impl hyper::body::Body for Half {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        }
        // What was given is sent before the connection ends.
        if !std::mem::replace(&mut self.told, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())))
    }
}

/// `body` makes of the whole body what is sent of it.
fn response(answer: Answer, body: impl FnOnce(Bytes) -> Body) -> Response<Body> {
    let announced = answer.body.len();
    let mut response = Response::new(body(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(announced));
    if let Some(seconds) = answer.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
