//! Lago's other paths, for producers that use more of its API than usage: passed on as they are, with the key that the
//! producer shows, to the one Lago there is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

/// Largest request that is passed on, and largest answer.
pub(crate) const REQUEST_BYTES: usize = 1 << 20;
const ANSWER_BYTES: usize = 16 << 20;
/// Requests on their way at most, each until its answer has been read; further ones wait, but not long.
const IN_FLIGHT: usize = 16;
const WAIT: Duration = Duration::from_secs(5);
/// What belongs to a connection and not to the request. Source: RFC 9110 section 7.6.1.
const OF_THE_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::HOST,
];

/// Passes requests on.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    client: reqwest::Client,
    /// Ends in `/api/v1/`.
    root: Url,
    in_flight: Arc<Semaphore>,
}

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotPassedOn {
    /// It is none of the API's paths.
    Elsewhere,
    /// Too many are on their way.
    Busy,
    /// Lago does not answer.
    Away,
    /// The answer is larger than what is passed on.
    TooLarge,
}

/// Why an answer that was begun is broken off.
#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error("Lago's answer is larger than {ANSWER_BYTES} bytes")]
    TooLarge,
    #[error("Lago's answer broke off")]
    Lago(#[source] reqwest::Error),
}

impl Proxy {
    pub(crate) fn new(client: reqwest::Client, root: Url) -> Self {
        Self { client, root, in_flight: Arc::new(Semaphore::new(IN_FLIGHT)) }
    }

    /// Where a request goes: the same path below Lago's API, whatever steps upwards it holds.
    fn target(&self, uri: &Uri) -> Option<Url> {
        let below = uri.path().strip_prefix("/api/v1/")?;
        let mut url = self.root.clone();
        url.set_path(&format!("{}{below}", self.root.path()));
        url.set_query(uri.query());
        url.path().starts_with(self.root.path()).then_some(url)
    }

    pub(crate) async fn pass_on(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Vec<u8>,
    ) -> Result<Response, NotPassedOn> {
        let url = self.target(uri).ok_or(NotPassedOn::Elsewhere)?;
        let permit = tokio::time::timeout(WAIT, Arc::clone(&self.in_flight).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(NotPassedOn::Busy) };
        let request = self.client.request(method, url).headers(of_the_request(headers)).body(body);
        let answer = request.send().await.map_err(|_| NotPassedOn::Away)?;
        let (status, headers) = (answer.status(), of_the_request(answer.headers()));
        if answer.content_length().is_some_and(|bytes| bytes > ANSWER_BYTES as u64) {
            return Err(NotPassedOn::TooLarge);
        }
        let mut response = (status, as_it_comes(answer, permit)).into_response();
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// An answer that is passed on piece by piece: no more than a piece of it is held here, however slowly it is read.
/// Whoever does not read at all is cut off by the listener (`listen.write_timeout_seconds`), and Lago's answer may take
/// `lago.timeout.total_seconds`.
fn as_it_comes(answer: reqwest::Response, permit: OwnedSemaphorePermit) -> Body {
    Body::from_stream(stream::try_unfold((answer, 0, permit), |(mut answer, passed, permit)| async move {
        let Some(piece) = answer.chunk().await.map_err(|error| BrokenOff::Lago(error.without_url()))? else {
            return Ok(None);
        };
        let passed = passed + piece.len();
        if passed > ANSWER_BYTES {
            return Err(BrokenOff::TooLarge);
        }
        Ok(Some((piece, (answer, passed, permit))))
    }))
}

/// Headers without those of the connection, and without those that `Connection` names.
fn of_the_request(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let is_ours = |name: &HeaderName| {
        OF_THE_CONNECTION.contains(name) || name == "keep-alive" || named.iter().any(|own| own == name.as_str())
    };
    headers.iter().filter(|(name, _)| !is_ours(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl NotPassedOn {
    /// Status and error, in Lago's way.
    pub(crate) fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::Elsewhere => (StatusCode::NOT_FOUND, "Not Found"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
            Self::Away => (StatusCode::BAD_GATEWAY, "Bad Gateway: Lago does not answer"),
            Self::TooLarge => (StatusCode::BAD_GATEWAY, "Bad Gateway: Lago's answer is larger than what is passed on"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn proxy() -> Proxy {
        Proxy::new(reqwest::Client::new(), Url::parse("http://lago:3000/base/api/v1/").unwrap())
    }

    #[test]
    fn only_paths_of_the_api_go_to_lago_and_nowhere_else() {
        for (path, expected) in [
            ("/api/v1/customers/a%2Fb?page=2", Some("http://lago:3000/base/api/v1/customers/a%2Fb?page=2")),
            ("/api/v1/", Some("http://lago:3000/base/api/v1/")),
            ("/api/v1//evil.example/x", Some("http://lago:3000/base/api/v1//evil.example/x")),
            ("/api/v1/../../admin", None),
            ("/api/v1/%2e%2e/x", None),
            ("/api/v1/a/../../x", None),
            ("/api/v1/a/../b", Some("http://lago:3000/base/api/v1/b")),
            ("/api/v2/customers", None),
            ("/", None),
        ] {
            let target = proxy().target(&path.parse().unwrap());
            assert_eq!(target.as_ref().map(Url::as_str), expected, "{path}");
        }
    }

    /// A Lago that answers any request with so many bytes, saying before how many or not.
    async fn answering(bytes: usize, says_how_many: bool) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let root = format!("http://{}/api/v1/", listener.local_addr().unwrap());
        let answer = move || async move {
            let piece = axum::body::Bytes::from(vec![b'x'; 64 << 10]);
            let pieces = (0..bytes.div_ceil(piece.len())).map(move |_| Ok::<_, BrokenOff>(piece.clone()));
            let mut response = Body::from_stream(stream::iter(pieces)).into_response();
            if says_how_many {
                response.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
            }
            response
        };
        let app = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Proxy::new(reqwest::Client::builder().no_proxy().build().unwrap(), Url::parse(&root).unwrap())
    }

    async fn get(proxy: &Proxy) -> Result<Response, NotPassedOn> {
        proxy.pass_on(Method::GET, &"/api/v1/invoices".parse().unwrap(), &HeaderMap::new(), Vec::new()).await
    }

    #[tokio::test]
    async fn an_answer_is_whole_or_seen_to_be_cut() {
        let read = async |proxy: &Proxy| axum::body::to_bytes(get(proxy).await.unwrap().into_body(), usize::MAX).await;
        let fits = answering(ANSWER_BYTES, false).await;
        assert_eq!(read(&fits).await.unwrap().len(), ANSWER_BYTES);
        let says_so = answering(ANSWER_BYTES + (64 << 10), true).await;
        assert_eq!(get(&says_so).await.err(), Some(NotPassedOn::TooLarge));
        let does_not = answering(ANSWER_BYTES + (64 << 10), false).await;
        assert!(read(&does_not).await.is_err(), "not the beginning, as if it were all");
        for proxy in [fits, says_so, does_not] {
            assert_eq!(proxy.in_flight.available_permits(), IN_FLIGHT);
        }
    }

    /// Answers that nobody reads are bounded, by their number and by what of each is held.
    #[tokio::test]
    async fn an_answer_takes_its_place_until_it_has_been_read() {
        let proxy = answering(1 << 20, true).await;
        let mut unread = Vec::new();
        for _ in 0..IN_FLIGHT {
            unread.push(get(&proxy).await.unwrap());
        }
        assert_eq!(proxy.in_flight.available_permits(), 0);
        unread.pop();
        assert_eq!(proxy.in_flight.available_permits(), 1);
        let last = unread.pop().unwrap();
        assert_eq!(axum::body::to_bytes(last.into_body(), usize::MAX).await.unwrap().len(), 1 << 20);
        assert_eq!(proxy.in_flight.available_permits(), 2);
    }

    #[test]
    fn what_belongs_to_the_connection_stays_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "tracker"),
            ("content-length", "3"),
            ("accept", "application/json"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let left: Vec<String> = of_the_request(&headers).keys().map(ToString::to_string).collect();
        assert_eq!(left, ["authorization", "accept"]);
    }
}
