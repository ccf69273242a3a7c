//! Asking Lago for the public half of its RSA key. One question, one answer: when to ask again and
//! what to keep is the caller's.
//!
//! Source: getlago/lago-api `app/controllers/api/v1/webhooks_controller.rb` at v1.16.0 and at the
//! head of 2026-08-21.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kit::secret::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;

use crate::api::{SetupError, api_root, authorization};
use crate::signature::{KeyError, RsaKey};

/// The path below the API's root.
pub const PUBLIC_KEY_PATH: &str = "webhooks/json_public_key";

/// A genuine answer has less than 1.5 KiB, for the largest supported key less than 3.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Nothing waits for a key longer than this. The client's own limits apply too where they are shorter.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Why Lago's public key could not be had. Each message names the setting to look at.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address or the key cannot be right.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// No connection, or no answer in time.
    #[error("Lago cannot be reached at LAGO_API_URL")]
    Unreachable(
        /// Without the address, which may be private.
        #[source]
        reqwest::Error,
    ),
    /// Connected, and no complete answer within 15 seconds.
    #[error("Lago at LAGO_API_URL gives no complete answer within {FETCH_TIMEOUT:?}")]
    TooSlow,
    /// Lago answered 401.
    #[error("LAGO_API_KEY is refused by Lago (401)")]
    Unauthorized,
    /// Lago answered 403: newer releases have a permission per key.
    #[error("LAGO_API_KEY lacks the permission webhook_jwt_public_key in Lago (403)")]
    Forbidden,
    /// Lago answered 404, or something that is not Lago did.
    #[error("there is no Lago API at LAGO_API_URL (404 for /api/v1/{PUBLIC_KEY_PATH})")]
    NotFound,
    /// Any other status than 200.
    #[error("Lago answered status {0} when asked for its public key")]
    Status(u16),
    /// More than a key can take.
    #[error("the answer is larger than {MAX_ANSWER_BYTES} bytes, so it is not a public key")]
    TooLarge,
    /// Not `{"webhook":{"public_key":"…"}}`.
    #[error("the answer is not Lago's JSON with webhook.public_key: check LAGO_API_URL")]
    NotLago,
    /// The field is there and does not hold a usable key.
    #[error("Lago's public key is not usable")]
    Key(#[from] AnswerError),
}

/// Why the text in Lago's answer is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not the Base64 of a text, line breaks aside.
    #[error("it is not the Base64 of a PEM")]
    NotBase64,
    /// What was decoded is not a key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Decodes the text that Lago gives for its key: Base64 **of the PEM**, with a line break every 60
/// characters and one at the end. Returns the PEM, checked to hold a usable RSA public key.
///
/// # Errors
/// [`AnswerError`], which says what the text is instead.
///
/// Source: `Base64.encode64` in getlago/lago-api `app/controllers/api/v1/webhooks_controller.rb`.
pub fn decode_public_key_answer(text: &str) -> Result<String, AnswerError> {
    let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(compact).map_err(|_| AnswerError::NotBase64)?;
    let pem = String::from_utf8(bytes).map_err(|_| AnswerError::NotBase64)?;
    RsaKey::from_pem(&pem)?;
    Ok(pem)
}

/// Fetches Lago's public key and returns it as a PEM, checked to be usable.
///
/// `api_url` is `LAGO_API_URL`, with or without a trailing slash or `/api/v1`. Follows no redirect
/// that `client` does not follow; reads at most 64 KiB; ends within 15 seconds. One attempt: Lago
/// may be down when a sidecar starts, so callers ask again later.
///
/// # Errors
/// [`FetchError`]. No variant shows the API key or the address.
pub async fn fetch_public_key(client: &Client, api_url: &str, api_key: &Secret) -> Result<String, FetchError> {
    let url = api_root(api_url)?.join(PUBLIC_KEY_PATH).map_err(|_| FetchError::NotLago)?;
    let authorization = authorization(api_key)?;
    let request = client.get(url).header(AUTHORIZATION, authorization).header(ACCEPT, "application/json");
    let body = tokio::time::timeout(FETCH_TIMEOUT, ask(request)).await.map_err(|_| FetchError::TooSlow)??;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| FetchError::NotLago)?;
    Ok(decode_public_key_answer(&answer.webhook.public_key)?)
}

async fn ask(request: RequestBuilder) -> Result<Vec<u8>, FetchError> {
    let response = request.send().await.map_err(unreachable)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Err(FetchError::Unauthorized),
        StatusCode::FORBIDDEN => return Err(FetchError::Forbidden),
        StatusCode::NOT_FOUND => return Err(FetchError::NotFound),
        other => return Err(FetchError::Status(other.as_u16())),
    }
    read_answer(response).await
}

#[derive(Deserialize)]
struct Answer {
    webhook: AnswerWebhook,
}

#[derive(Deserialize)]
struct AnswerWebhook {
    public_key: String,
}

async fn read_answer(mut response: Response) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unreachable(error: reqwest::Error) -> FetchError {
    FetchError::Unreachable(error.without_url())
}
