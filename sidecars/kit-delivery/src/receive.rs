//! Requests of other daemons: signed as Standard Webhooks says, and nothing else is read.
//!
//! What a request says of its signature is looked at before its body is, the signature before anything in the body.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use kit::clock::Timestamp;
use kit::config::Problems;
use kit::secret::{self, Secret};
use kit::serve::{BodyError, BodyRules, read_body};

use crate::signature::{SignatureClaim, SigningSecret, Unverified};

/// Why a request is not read.
#[derive(Debug)]
pub enum NotReceived {
    /// Compressed: unpacking is work that a sender chooses.
    Encoded,
    /// Nobody has signed it whom we know, now.
    Unsigned(Unverified),
    /// The body did not come, or is too long.
    Body(BodyError),
}

/// Who may send.
#[derive(Debug)]
pub struct Receiver {
    secrets: Vec<SigningSecret>,
    tolerance: Duration,
}

/// A receiver's part of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverSettings<'a> {
    /// The variable with the secret, whose file's is called the same with `_FILE`.
    pub variable: &'a str,
    /// Path of the secrets' file in the configuration, for mistakes.
    pub path: &'a str,
    /// The secret.
    pub secret: Option<&'a Secret>,
    /// File with secrets, one a line.
    pub secret_file: Option<&'a Path>,
    /// Seconds that the sender's clock may differ from ours.
    pub tolerance_seconds: f64,
}

impl Receiver {
    /// Reads the secrets; `None` without one. What is wrong goes to `problems`, without showing any.
    pub fn load(settings: ReceiverSettings<'_>, problems: &mut Problems) -> Option<Self> {
        let ReceiverSettings { variable, path, secret, secret_file, tolerance_seconds } = settings;
        // The one that is set is the one to mend.
        let path = if secret.is_some() { path.strip_suffix("_file").unwrap_or(path) } else { path };
        let lines = secret::resolve_lines(variable, secret, &format!("{variable}_FILE"), secret_file);
        let lines = lines.unwrap_or_else(|error| {
            problems.add(path, &error.to_string());
            Vec::new()
        });
        let mut secrets = Vec::with_capacity(lines.len());
        for (nth, line) in (1..).zip(&lines) {
            match SigningSecret::parse(line) {
                Ok(secret) => secrets.push(secret),
                Err(error) => problems.add(path, &format!("secret {nth}: {error}")),
            }
        }
        if secrets.is_empty() {
            return None;
        }
        let tolerance = Duration::try_from_secs_f64(tolerance_seconds).unwrap_or(Duration::from_secs(300));
        Some(Self { secrets, tolerance })
    }

    /// The body of a request that is signed at about `now`, and its `webhook-id`.
    ///
    /// # Errors
    /// [`NotReceived`].
    pub async fn verified<'p>(
        &self,
        parts: &'p Parts,
        body: Body,
        limit: usize,
        now: impl FnOnce() -> Timestamp,
    ) -> Result<(Vec<u8>, &'p str), NotReceived> {
        // Before the body is read: who shows no signature costs nothing.
        let claim = SignatureClaim::read(&parts.headers).map_err(NotReceived::Unsigned)?;
        let body = plain_body(parts, body, limit).await?;
        claim.verify(&self.secrets, &body, now(), self.tolerance).map_err(NotReceived::Unsigned)?;
        Ok((body, claim.id()))
    }
}

/// A body as it was sent, under its limits.
///
/// # Errors
/// [`NotReceived::Encoded`] and [`NotReceived::Body`].
pub async fn plain_body(parts: &Parts, body: Body, limit: usize) -> Result<Vec<u8>, NotReceived> {
    if !is_plain(&parts.headers) {
        return Err(NotReceived::Encoded);
    }
    body_within(parts, body, limit).await.map_err(NotReceived::Body)
}

/// A body within the listener's limits and this one.
///
/// # Errors
/// [`BodyError`].
pub async fn body_within(parts: &Parts, body: Body, limit: usize) -> Result<Vec<u8>, BodyError> {
    body_by(parts.extensions.get(), &parts.headers, body, limit).await
}

/// A body within these limits of the listener's, where there is a listener, and this one.
///
/// # Errors
/// [`BodyError`].
pub async fn body_by(
    rules: Option<&Arc<BodyRules>>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Vec<u8>, BodyError> {
    let fallback;
    let rules = match rules {
        Some(rules) => rules,
        None => {
            fallback = BodyRules::unhurried();
            &fallback
        }
    };
    read_body(headers, body, limit, rules).await
}

/// Whether a body is not compressed: unpacking is work that a sender chooses.
pub fn is_plain(headers: &HeaderMap) -> bool {
    let is_identity = |encoding: &HeaderValue| encoding.as_bytes().eq_ignore_ascii_case(b"identity");
    headers.get_all(header::CONTENT_ENCODING).iter().all(is_identity)
}
