//! The one way to make an HTTP client: every wait limited, no redirects, no proxy from the
//! environment, no decompression, responses read up to a limit.

use std::path::PathBuf;
use std::time::Duration;

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

/// Reads a response up to `limit` bytes; what is beyond is not read and the connection not reused.
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
