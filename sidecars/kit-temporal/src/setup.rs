//! What a client is made of, as the configuration says: where it connects to, and what it shows.

use std::path::Path;
use std::time::Duration;

use http::HeaderValue;
use kit::client::{ClientOptions, http_client};
use kit::config::Problems;
use kit::secret::{self, Secret};
use kit_delivery::oauth::TokenSource;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::config::{TemporalSection, metadata_name};

/// How long a ping may stay without an answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct SetupError {
    /// Path of the setting within its section.
    pub path: &'static str,
    /// What is wrong, without showing any secret.
    pub message: String,
}

/// What the client shows that it may ask.
#[derive(Debug)]
pub(crate) enum Authorization {
    Nobody,
    Key(HeaderValue),
    Tokens(Box<TokenSource>),
}

/// What goes with every call.
pub(crate) type Metadata = Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>;

/// Reports what only reading files tells: keys, certificates, secrets.
pub fn check(place: &str, section: &TemporalSection, problems: &mut Problems) {
    for error in parts(place, section, "").err().into_iter().flatten() {
        problems.add(&format!("{place}.{}", error.path), &error.message);
    }
}

/// What a client is made of; everything that can be wrong with the section is found here.
pub(crate) fn parts(
    place: &str,
    section: &TemporalSection,
    version: &str,
) -> Result<(Endpoint, Authorization, Metadata), Vec<SetupError>> {
    let mut errors = Vec::new();
    let mut keep = |path: &'static str, message: String| errors.push(SetupError { path, message });
    let authorization = authorization(place, section).unwrap_or_else(|error| {
        keep(error.path, error.message);
        Authorization::Nobody
    });
    let tls = if section.uses_tls() { tls(section).map(Some) } else { Ok(None) };
    let tls = tls.unwrap_or_else(|more| {
        more.into_iter().for_each(|error| keep(error.path, error.message));
        None
    });
    let metadata = metadata(section, version).unwrap_or_else(|error| {
        keep(error.path, error.message);
        Vec::new()
    });
    match endpoint(section, tls) {
        Ok(endpoint) if errors.is_empty() => Ok((endpoint, authorization, metadata)),
        Ok(_) => Err(errors),
        Err(error) => {
            errors.push(error);
            Err(errors)
        }
    }
}

fn endpoint(section: &TemporalSection, tls: Option<ClientTlsConfig>) -> Result<Endpoint, SetupError> {
    let address = section.address.as_deref().unwrap_or_default();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let wrong = |message: String| SetupError { path: "address", message };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|_| wrong("must be a host and a port, for example temporal:7233".to_owned()))?;
    let seconds = |value: f64, otherwise: u64| {
        Duration::try_from_secs_f64(value).unwrap_or_else(|_| Duration::from_secs(otherwise))
    };
    let endpoint = endpoint
        .connect_timeout(seconds(section.connect_timeout_seconds, 5))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .http2_keep_alive_interval(seconds(section.keep_alive_seconds, 30))
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    match tls {
        Some(tls) => endpoint.tls_config(tls).map_err(|error| SetupError {
            path: "tls",
            message: format!("cannot be used: {}", kit::error::chain(&error)),
        }),
        None => Ok(endpoint),
    }
}

fn tls(section: &TemporalSection) -> Result<ClientTlsConfig, Vec<SetupError>> {
    let tls = &section.tls;
    let mut errors = Vec::new();
    let mut pem = |path: &'static str, file: Option<&Path>, data: Option<&Secret>, word: &str| {
        let text = secret::resolve(path, data, path, file).unwrap_or_else(|error| {
            errors.push(SetupError { path, message: error.to_string() });
            None
        })?;
        if !text.expose().contains(&format!("-----BEGIN {word}")) && !text.expose().contains(&format!(" {word}-----")) {
            errors.push(SetupError { path, message: format!("holds no {} in PEM", word.to_lowercase()) });
            return None;
        }
        Some(text)
    };
    let authority =
        pem("tls.server_ca_file", tls.server_ca_file.as_deref(), tls.server_ca_data.as_ref(), "CERTIFICATE");
    let certificate =
        pem("tls.client_cert_file", tls.client_cert_file.as_deref(), tls.client_cert_data.as_ref(), "CERTIFICATE");
    let key = pem("tls.client_key_file", tls.client_key_file.as_deref(), tls.client_key_data.as_ref(), "PRIVATE KEY");
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut config = ClientTlsConfig::new();
    config = match authority {
        Some(authority) => config.ca_certificate(Certificate::from_pem(authority.expose())),
        None => config.with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (certificate, key) {
        config = config.identity(Identity::from_pem(certificate.expose(), key.expose()));
    }
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    Ok(config)
}

fn authorization(place: &str, section: &TemporalSection) -> Result<Authorization, SetupError> {
    let wrong = |path: &'static str, message: String| SetupError { path, message };
    let key = secret::resolve(
        "TEMPORAL_API_KEY",
        section.api_key.as_ref(),
        "TEMPORAL_API_KEY_FILE",
        section.api_key_file.as_deref(),
    );
    if let Some(key) = key.map_err(|error| wrong("api_key_file", error.to_string()))? {
        let mut header = HeaderValue::try_from(format!("Bearer {}", key.expose()))
            .map_err(|_| wrong("api_key_file", "holds what cannot be in a header".to_owned()))?;
        header.set_sensitive(true);
        return Ok(Authorization::Key(header));
    }
    if section.oauth.token_url.is_none() {
        return Ok(Authorization::Nobody);
    }
    let client = http_client(&ClientOptions::default());
    let client = client.map_err(|error| wrong("oauth.token_url", kit::error::chain(&error)))?;
    let tokens = TokenSource::new(place, &section.oauth, client);
    tokens
        .map(|tokens| Authorization::Tokens(Box::new(tokens)))
        .map_err(|message| wrong("oauth.client_secret_file", message))
}

fn metadata(section: &TemporalSection, version: &str) -> Result<Metadata, SetupError> {
    let wrong = |name: &str| SetupError {
        path: "metadata",
        message: format!("{name:?} cannot be sent as gRPC metadata: its name or value is not allowed in a header"),
    };
    let own = [("client-name", "outrigger"), ("client-version", version)];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let given = section.metadata.iter().map(|(name, value)| (metadata_name(name), value.expose().to_owned()));
    own.chain(given)
        .map(|(name, value)| {
            let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong(&name))?;
            let mut value = MetadataValue::try_from(value).map_err(|_| wrong(&name))?;
            // It may be a secret, which nothing is to show.
            value.set_sensitive(true);
            Ok((key, value))
        })
        .collect()
}
