//! The one way to make an HTTP client: every wait limited, no redirects, no proxy from the
//! environment, no decompression, responses read up to a limit.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use url::Url;

use crate::secret::Secret;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Name look-up, connect and TLS together.
    pub connect_timeout: Duration,
    /// Longest silence while waiting for or reading an answer.
    pub read_timeout: Duration,
    /// Request and answer together.
    pub total_timeout: Duration,
    /// How long an unused connection is kept; less than what common servers do (uvicorn, Node and
    /// Apache: 5 s), so that a request rarely meets a connection the other side is closing.
    pub pool_idle: Duration,
    /// PEM file with certificate authorities to trust beside the platform's.
    pub ca_file: Option<PathBuf>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(10),
            total_timeout: Duration::from_secs(30),
            pool_idle: Duration::from_secs(4),
            ca_file: None,
        }
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file with certificate authorities cannot be read.
    #[error("cannot read certificate authorities from {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The file with certificate authorities holds none.
    #[error("{path} holds no PEM certificates")]
    NoCertificates {
        /// The file.
        path: String,
    },
    /// TLS cannot be set up; in an empty image the certificate bundle may be missing.
    #[error("cannot set up TLS (is a certificate bundle mounted at /etc/ssl/certs/ca-certificates.crt?)")]
    Tls(#[source] reqwest::Error),
}

/// Makes a client.
///
/// # Errors
/// [`ClientError`].
pub fn http_client(options: &ClientOptions) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.read_timeout)
        .timeout(options.total_timeout)
        .pool_idle_timeout(options.pool_idle)
        .tcp_keepalive(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only()
        .user_agent(concat!("outrigger/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &options.ca_file {
        let shown = path.display().to_string();
        let pem = std::fs::read(path).map_err(|source| ClientError::Unreadable { path: shown.clone(), source })?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(ClientError::NoCertificates { path: shown });
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(ClientError::Tls)
}

/// Why a response was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It broke off.
    #[error("the answer broke off")]
    Broken(#[source] reqwest::Error),
    /// It is longer than is read.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
}

/// Reads a response of at most `limit` bytes, where a part of it would be taken for something else.
///
/// # Errors
/// [`ReadError`].
pub async fn read_whole(response: reqwest::Response, limit: usize) -> Result<Vec<u8>, ReadError> {
    // One byte more tells.
    let body = read_capped(response, limit.saturating_add(1)).await.map_err(ReadError::Broken)?;
    if body.len() > limit { Err(ReadError::TooLarge(limit)) } else { Ok(body) }
}

/// Reads a response up to `limit` bytes, where its beginning will do, as of a text that is shown; what is beyond is not read
/// and the connection not reused. Nothing tells that something was left out: [`read_whole`] does.
///
/// # Errors
/// The answer broke off before its end or the limit.
pub async fn read_capped(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() < limit {
        let Some(chunk) = response.chunk().await? else { break };
        let room = limit - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    Ok(body)
}

/// The root of an API from whichever form of its address is configured: with or without a trailing slash or the API's own
/// path, such as `/api/v1`.
///
/// # Errors
/// What is wrong with it; the address is not shown, it may hold a password.
pub fn api_root(address: &str, path: &str) -> Result<Url, &'static str> {
    let mut url = Url::parse(address.trim()).map_err(|_| "not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("its scheme is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it holds a user name or password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("it has a query or a fragment");
    }
    let before = url.path().trim_end_matches('/');
    let root = format!("{}{path}/", before.strip_suffix(path).unwrap_or(before).trim_end_matches('/'));
    url.set_path(&root);
    Ok(url)
}

/// The `Authorization` that shows a bearer token; it prints as sensitive. `None` where the token cannot stand in a header.
pub fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn answer(body: &'static str) -> reqwest::Response {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        http_client(&ClientOptions::default()).unwrap().get(url).send().await.unwrap()
    }

    #[tokio::test]
    async fn an_answer_that_is_longer_than_is_read_is_no_answer() {
        assert_eq!(read_whole(answer("12345678").await, 8).await.unwrap(), b"12345678");
        let error = read_whole(answer("123456789").await, 8).await.unwrap_err();
        assert!(matches!(error, ReadError::TooLarge(8)), "{error}");
        assert_eq!(read_capped(answer("123456789").await, 8).await.unwrap(), b"12345678");
    }
}
