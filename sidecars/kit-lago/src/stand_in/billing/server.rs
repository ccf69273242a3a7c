//! The port: who is asked, and how an answer goes out.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use kit::secret::Secret;
use kit::stand_in::{ANY_PORT, Body, End, Line, Party, StandIn, read, whole};

use super::answer::Answer;
use super::profile::Profile;
use super::routes::{self, Ending, Request};
use super::state::LagoState;

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
pub struct LagoServer(StandIn<LagoState>);

impl LagoServer {
    /// Starts with empty books on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(profile: Profile, api_key: Secret) -> io::Result<Self> {
        Self::start_on(ANY_PORT, profile, api_key).await
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
        StandIn::start(address, state).await.map(Self)
    }

    /// Goes down, see [`StandIn::stop`]. The books stay in what it returns.
    pub async fn stop(self) -> Arc<LagoState> {
        self.0.stop().await
    }
}

/// A running stand-in is used like its port, and that like its state.
impl Deref for LagoServer {
    type Target = StandIn<LagoState>;

    fn deref(&self) -> &StandIn<LagoState> {
        &self.0
    }
}

impl Party for LagoState {
    const WHO: &'static str = "the stand-in for Lago";

    async fn answer(self: Arc<Self>, request: http::Request<Incoming>, line: Line) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = match read(body, BODY_LIMIT_BYTES).await {
            Ok(body) => body,
            Err(status) => return response(Answer::bare(status.as_u16())),
        };
        let request = Request {
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            authorization: parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes().to_vec()),
            is_json: is_json(&parts.headers),
            method: parts.method,
            body,
        };
        match routes::handle(&self, request).await {
            Ending::Answer(answer) => response(answer),
            Ending::Close => line.end(End::Close).await,
            Ending::Reset => line.end(End::Reset).await,
        }
    }
}

/// Source: rails/rails `actionpack/lib/action_dispatch/http/mime_types.rb` at 7.1.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    ["application/json", "text/x-json", "application/jsonrequest"]
        .iter()
        .any(|known| media_type.eq_ignore_ascii_case(known))
}

fn response(answer: Answer) -> Response<Body> {
    let mut response = Response::new(whole(answer.body));
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
