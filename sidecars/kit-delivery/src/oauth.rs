//! Access tokens by OAuth2 client credentials: fetched when first needed, kept until shortly before
//! they expire, fetched by one caller while the others wait.
//!
//! Source: RFC 6749 sections 4.4 and 5.

use std::time::{Duration, Instant};

use http::HeaderValue;
use kit::client::read_capped;
use kit::secret::{self, Secret};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::config::OauthSection;

/// A token is renewed this long before it expires, or at a tenth of its life if that is less.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// Life of a token whose answer does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(300);
const ANSWER_BYTES: usize = 64 * 1024;
/// A fetch that failed is not tried again for this long: those who waited for it share its end, instead of
/// waiting one after the other.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// Access tokens of one client.
#[derive(Debug)]
pub struct TokenSource {
    client: reqwest::Client,
    section: OauthSection,
    secret: Secret,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    failed: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Held {
    header: HeaderValue,
    renew_at: Instant,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<f64>,
}

impl TokenSource {
    /// `place` is where the section that holds this one is in the configuration.
    ///
    /// # Errors
    /// The client's secret cannot be had, in a sentence that does not show it.
    pub fn new(place: &str, section: &OauthSection, client: reqwest::Client) -> Result<Self, String> {
        let variable = |name: &str| kit::config::variable(&format!("{place}.oauth.{name}"), &[]);
        let secret = secret::resolve(
            &variable("client_secret"),
            section.client_secret.as_ref(),
            &variable("client_secret_file"),
            section.client_secret_file.as_deref(),
        )
        .map_err(|e| e.to_string())?
        .ok_or("a client secret must be set when oauth.token_url is")?;
        Ok(Self { client, section: section.clone(), secret, state: Mutex::default() })
    }

    /// The `Authorization` header.
    ///
    /// # Errors
    /// Why there is no token, in a sentence.
    pub async fn token(&self) -> Result<HeaderValue, String> {
        let mut state = self.state.lock().await;
        if let Some(held) = state.held.as_ref().filter(|held| held.renew_at > Instant::now()) {
            return Ok(held.header.clone());
        }
        if let Some((at, error)) = state.failed.as_ref().filter(|(at, _)| at.elapsed() < FAILED_FOR) {
            tracing::debug!(ago = ?at.elapsed(), "the token endpoint is not asked again yet");
            return Err(error.clone());
        }
        match self.fetch().await {
            Ok(fresh) => {
                let header = fresh.header.clone();
                *state = State { held: Some(fresh), failed: None };
                Ok(header)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// This token was refused. Another one that somebody has fetched since stays.
    pub async fn forget(&self, refused: &HeaderValue) {
        let mut state = self.state.lock().await;
        if state.held.as_ref().is_some_and(|held| held.header == *refused) {
            state.held = None;
        }
    }

    async fn fetch(&self) -> Result<Held, String> {
        let section = &self.section;
        let mut form = vec![("grant_type", "client_credentials")];
        form.extend(
            [("scope", section.scope.as_str()), ("audience", &section.audience)]
                .into_iter()
                .filter(|(_, v)| !v.is_empty()),
        );
        let body = form
            .iter()
            .map(|(name, value)| {
                format!("{name}={}", url::form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>())
            })
            .collect::<Vec<_>>()
            .join("&");
        let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let response = self
            .client
            .post(section.token_url.as_deref().unwrap_or_default())
            .basic_auth(encode(&section.client_id), Some(encode(self.secret.expose())))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(body)
            .send()
            .await
            .map_err(|e| format!("token endpoint: {}", kit::error::chain(&e.without_url())))?;
        let status = response.status();
        let body = read_capped(response, ANSWER_BYTES)
            .await
            .map_err(|e| format!("token endpoint: {}", kit::error::chain(&e.without_url())))?;
        if !status.is_success() {
            return Err(format!("token endpoint answered {status}"));
        }
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| "token endpoint's answer is not a token".to_owned())?;
        if answer.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err("token endpoint's token is not a bearer token".to_owned());
        }
        let mut header = HeaderValue::try_from(format!("Bearer {}", answer.access_token))
            .map_err(|_| "token endpoint's token is not allowed in a header".to_owned())?;
        header.set_sensitive(true);
        let life = answer
            .expires_in
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(DEFAULT_LIFE)
            .min(Duration::from_secs(86_400));
        let renew_at = Instant::now() + life.saturating_sub(RENEW_BEFORE.min(life / 10));
        Ok(Held { header, renew_at })
    }
}
