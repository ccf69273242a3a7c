//! One webhook on the wire, as Python's `requests` 2.32 sends it: the same fields, order and case, a connection of its own,
//! and redirects followed, the first three kinds of which turn a POST into a GET without a body.
//!
//! Source: psf/requests `src/requests/sessions.py` at v2.32.3; that its bytes are these is tested in
//! `tests/clients/authentik.rs`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use url::Url;

use super::mapping::Made;

/// As many redirects as `requests` follows.
const MAX_REDIRECTS: usize = 30;
/// The text of an answer is only shown.
const ANSWER_BYTES: usize = 1024 * 1024;

/// How a webhook ended, as its sender sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The last answer's status.
    pub status: u16,
    /// The last answer's text.
    pub text: String,
    /// How often it was sent elsewhere.
    pub redirects: usize,
}

impl Sent {
    /// Whether Authentik takes it for delivered: whatever is no error, a GET without a body after a redirect too.
    pub fn is_success(&self) -> bool {
        self.status < 400
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsent {
    /// The receiver cannot be reached, or broke off.
    Broken,
    /// The receiver takes too long.
    TimedOut,
}

/// Sends a webhook, and waits for the answer this long.
pub(super) async fn send(url: &str, made: &Made, agent: &str, patience: Duration) -> Result<Sent, Unsent> {
    match tokio::time::timeout(patience, follow(url, made, agent)).await {
        Ok(ended) => ended.ok_or(Unsent::Broken),
        Err(_) => Err(Unsent::TimedOut),
    }
}

async fn follow(url: &str, made: &Made, agent: &str) -> Option<Sent> {
    let mut url: Url = url.parse().ok()?;
    let (mut method, mut body) = (Method::POST, Some(made.body.clone()));
    for redirects in 0..=MAX_REDIRECTS {
        let request = request(&url, &method, &body, &made.headers, agent)?;
        let (status, location, text) = exchange(&url, request).await?;
        let Some(location) = location.filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308)) else {
            return Some(Sent { status, text, redirects });
        };
        url = url.join(&location).ok()?;
        if status < 307 {
            (method, body) = (Method::GET, None);
        }
    }
    None
}

fn request(
    url: &Url,
    method: &Method,
    body: &Option<Option<String>>,
    headers: &[(String, String)],
    agent: &str,
) -> Option<Request<Full<Bytes>>> {
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str()?),
        None => url.host_str()?.to_owned(),
    };
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
    for (name, value) in [
        (header::USER_AGENT, agent),
        (header::ACCEPT_ENCODING, "gzip, deflate"),
        (header::ACCEPT, "*/*"),
        (header::CONNECTION, "keep-alive"),
    ] {
        request = request.header(name, value);
    }
    for (name, value) in headers {
        request = request.header(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
    }
    let bytes = match body {
        None => Bytes::new(),
        Some(None) => {
            request = request.header(header::CONTENT_LENGTH, 0);
            Bytes::new()
        }
        Some(Some(body)) => {
            request = request.header(header::CONTENT_LENGTH, body.len());
            request = request.header(header::CONTENT_TYPE, "application/json");
            Bytes::from(body.clone())
        }
    };
    request.body(Full::new(bytes)).ok()
}

/// Ends the task that drives a connection with the request that it is for.
struct Driven(AbortHandle);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange(url: &Url, request: Request<Full<Bytes>>) -> Option<(u16, Option<String>, String)> {
    let stream = TcpStream::connect((url.host_str()?, url.port_or_known_default()?)).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let mut builder = http1::Builder::new();
    builder.title_case_headers(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
    let _driven = Driven(tokio::spawn(connection).abort_handle());
    let answer = sender.send_request(request).await.ok()?;
    let status = answer.status().as_u16();
    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.ok()?.to_bytes();
    Some((status, location, String::from_utf8_lossy(&body).into_owned()))
}
