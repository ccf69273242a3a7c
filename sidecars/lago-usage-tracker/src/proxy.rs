//! Lago's other paths, for producers that use more of its API than usage: passed on as they are, with the key that the
//! producer shows, to the one Lago there is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use kit::client::read_capped;
use tokio::sync::Semaphore;
use url::Url;

/// Largest request that is passed on, and largest answer.
pub(crate) const REQUEST_BYTES: usize = 1 << 20;
const ANSWER_BYTES: usize = 16 << 20;
/// Requests on their way at most; further ones wait, but not long.
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
        let permit = tokio::time::timeout(WAIT, self.in_flight.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(NotPassedOn::Busy) };
        let request = self.client.request(method, url).headers(of_the_request(headers)).body(body);
        let answer = request.send().await.map_err(|_| NotPassedOn::Away)?;
        let (status, headers) = (answer.status(), of_the_request(answer.headers()));
        let body = read_capped(answer, ANSWER_BYTES).await.map_err(|_| NotPassedOn::Away)?;
        let mut response = (status, Body::from(Bytes::from(body))).into_response();
        *response.headers_mut() = headers;
        Ok(response)
    }
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
