//! The port: own accept loop over hyper, because a stand-in has to reset, to close and to ignore
//! connections, which a server framework does not let a handler do.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kit::secret::Secret;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::profile::Profile;
use super::routes::{self, Ending, Request};
use super::state::LagoState;

/// The kernel is out of descriptors or the like: wait instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A hundred events of any reasonable size.
const BODY_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// A running stand-in for Lago's usage API: its [`LagoState`] on a port. Dropping it closes the port
/// and breaks all connections.
///
/// ```
/// use kit::secret::Secret;
/// use kit_lago::LagoServer;
/// use kit_lago::stand_in::billing::{Effect, Faults, Profile, When};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let lago = LagoServer::start(Profile::V1_16, Secret::from("key".to_owned())).await?;
/// lago.set_faults(Faults::just(Effect::DoneThenAnswer(500), When::Next(1)));
///
/// let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
/// let event = r#"{"event":{"transaction_id":"t-1","external_subscription_id":"sub","code":"calls"}}"#;
/// let post = || {
///     let url = format!("{}/api/v1/events", lago.url());
///     client.post(url).bearer_auth("key").header("content-type", "application/json").body(event)
/// };
/// assert_eq!(post().send().await?.status(), 500);
/// assert_eq!(post().send().await?.status(), 422, "it was stored the first time");
/// assert_eq!(lago.ledger().len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LagoServer {
    address: SocketAddr,
    state: Arc<LagoState>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl LagoServer {
    /// Starts with empty books on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(profile: Profile, api_key: Secret) -> io::Result<Self> {
        Self::start_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), profile, api_key).await
    }

    /// Starts with empty books on a given address.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_on(address: SocketAddr, profile: Profile, api_key: Secret) -> io::Result<Self> {
        Self::start_with(address, LagoState::new(profile, api_key)).await
    }

    /// Starts with the books of a stand-in that was stopped, for example on its address.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_with(address: SocketAddr, state: Arc<LagoState>) -> io::Result<Self> {
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

    /// Its `LAGO_API_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it knows, to be kept beyond the port.
    pub fn state(&self) -> &Arc<LagoState> {
        &self.state
    }

    /// Goes down: closes the port and breaks every connection with whatever it was doing. When this
    /// returns, new connections are refused. The books stay in what it returns.
    pub async fn stop(mut self) -> Arc<LagoState> {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::warn!(%error, "the listener of the stand-in for Lago ended badly");
        }
        Arc::clone(&self.state)
    }
}

/// A running stand-in is used like its state.
impl Deref for LagoServer {
    type Target = LagoState;

    fn deref(&self) -> &LagoState {
        &self.state
    }
}

impl Drop for LagoServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Accepts until stopped; then closes the port and breaks all connections before it returns.
async fn run(state: Arc<LagoState>, listener: TcpListener, stop: CancellationToken) {
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
                tracing::warn!(%error, "the stand-in for Lago cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// How a handler ends its connection by other means than an answer.
#[derive(Debug, Default)]
struct Break {
    now: CancellationToken,
    by_reset: AtomicBool,
}

async fn connection(state: Arc<LagoState>, stream: TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection is gone before it began");
        return;
    }
    let breaks = Arc::new(Break::default());
    let service = service_fn(|request| {
        let (state, breaks) = (Arc::clone(&state), Arc::clone(&breaks));
        async move { Ok::<_, Infallible>(serve(&state, &breaks, request).await) }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        done = &mut connection => {
            if let Err(error) = done {
                tracing::debug!(%error, "connection to the stand-in for Lago ended");
            }
        }
        () = breaks.now.cancelled() => {
            let stream = connection.into_parts().io.into_inner();
            if breaks.by_reset.load(Ordering::Relaxed)
                // With no time to linger, closing sends RST and discards what is unsent.
                && let Err(error) = stream.set_zero_linger()
            {
                tracing::debug!(%error, "connection is gone before its reset");
            }
        }
    }
}

async fn serve(state: &LagoState, breaks: &Break, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return response(Answer::bare(413)),
        // The client broke off: there is nobody to answer, and nothing was received.
        Err(_) => return response(Answer::bare(400)),
    };
    let request = Request {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        authorization: parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes().to_vec()),
        is_json: is_json(&parts.headers),
        method: parts.method,
        body,
    };
    match routes::handle(state, request).await {
        Ending::Answer(answer) => return response(answer),
        Ending::Close => breaks.now.cancel(),
        Ending::Reset => {
            breaks.by_reset.store(true, Ordering::Relaxed);
            breaks.now.cancel();
        }
    }
    std::future::pending().await
}

/// Source: rails/rails `actionpack/lib/action_dispatch/http/mime_types.rb` at 7.1.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    ["application/json", "text/x-json", "application/jsonrequest"]
        .iter()
        .any(|known| media_type.eq_ignore_ascii_case(known))
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    // A test may ask for a status that HTTP does not know.
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    response
}
