//! Where a load goes.

use std::net::SocketAddr;

/// A resolved `http://` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// Path and query.
    pub path: String,
}

/// The text is no URL that a load can be sent to.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not an absolute `http://` URL.
    #[error("{url} is not an http:// URL with a host")]
    NotHttp {
        /// The text.
        url: String,
    },
    /// The host has no address.
    #[error("resolve {host}")]
    Resolve {
        /// The host.
        host: String,
        /// What the system said; `None` when it knows the name but no address of it.
        source: Option<std::io::Error>,
    },
}

impl Target {
    /// A path at an address.
    pub fn new(address: SocketAddr, path: impl Into<String>) -> Self {
        Self { address, host: address.to_string(), path: path.into() }
    }

    /// Reads a URL and resolves its host, once.
    ///
    /// # Errors
    /// See [`TargetError`]. TLS is not spoken: it would measure the generator.
    pub async fn resolve(url: &str) -> Result<Self, TargetError> {
        let not_http = || TargetError::NotHttp { url: url.to_owned() };
        let uri: http::Uri = url.parse().map_err(|_| not_http())?;
        if uri.scheme_str() != Some("http") {
            return Err(not_http());
        }
        let authority = uri.authority().ok_or_else(not_http)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(80);
        let unresolved = |source| TargetError::Resolve { host: host.clone(), source };
        let mut addresses =
            tokio::net::lookup_host((host.as_str(), port)).await.map_err(|error| unresolved(Some(error)))?;
        let address = addresses.next().ok_or_else(|| unresolved(None))?;
        Ok(Self {
            address,
            host: authority.to_string(),
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn urls_are_read() {
        let target = Target::resolve("http://127.0.0.1:8080/webhooks/lago?a=b").await;
        let target = target.unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(target.host, "127.0.0.1:8080");
        assert_eq!(target.path, "/webhooks/lago?a=b");

        let target = Target::resolve("http://[::1]").await.unwrap();
        assert_eq!(target.address, "[::1]:80".parse().unwrap());
        assert_eq!(target.path, "/");
    }

    #[tokio::test]
    async fn what_is_not_http_is_refused() {
        for url in ["", "/path", "https://127.0.0.1/", "127.0.0.1:80", "http:// x/"] {
            let target = Target::resolve(url).await;
            assert!(matches!(target, Err(TargetError::NotHttp { .. })), "{url}");
        }
    }
}
