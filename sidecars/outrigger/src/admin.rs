//! Talking to a daemon's admin listener.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use kit::client::{ClientOptions, http_client, read_capped};
use kit::secret;
use kit_delivery::api::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest wait for an answer to a question.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for an action: a replay by filter walks through the whole journal before it answers.
const ACTION_WITHIN: Duration = Duration::from_secs(900);
/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 << 20;

/// Where the webhook processor listens if nobody says otherwise.
const WEBHOOK_PROCESSOR: &str = "http://127.0.0.1:9081";
/// The same of the usage tracker.
const USAGE_TRACKER: &str = "http://127.0.0.1:9082";

/// The same of the event forwarder.
const EVENT_FORWARDER: &str = "http://127.0.0.1:9083";

/// How a daemon is reached.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connection {
    /// Admin address of the daemon [default: http://127.0.0.1:9081, for `usage` http://127.0.0.1:9082, for `authentik` http://127.0.0.1:9083].
    #[arg(long, global = true, env = "OUTRIGGER_ADMIN", help_heading = "Daemon", value_name = "URL")]
    admin: Option<String>,
    /// File with the bearer token of the admin API.
    #[arg(long, global = true, env = "OUTRIGGER_TOKEN_FILE", help_heading = "Daemon", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// A client of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    client: reqwest::Client,
    base: String,
    token: Option<secret::Secret>,
    /// Longest wait for an answer to a question.
    patience: Duration,
}

/// Why the admin API did not do what was asked of it, where somebody wants to know which.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// It was not even asked.
    #[error("no token: give --token-file (OUTRIGGER_TOKEN_FILE) with the file of SIDECAR_ADMIN__TOKEN_FILE")]
    NoToken,
    /// Another status than success, with what the daemon says of it.
    #[error("{text}")]
    Status { status: u16, text: String },
}

impl Refusal {
    /// What was asked for is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }
}

impl Connection {
    /// The daemon that is named, or else the webhook processor.
    pub(crate) fn open(&self) -> anyhow::Result<Admin> {
        self.open_or(WEBHOOK_PROCESSOR)
    }

    /// The daemon that the arguments name; or else the tracker that the environment names by itself, for where that names
    /// another daemon for all other commands; or else what is named, or where a tracker listens.
    pub(crate) fn open_tracker(&self) -> anyhow::Result<Admin> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut own = self.clone();
        // An argument and the environment look alike from here: what is otherwise than there is an argument.
        if self.admin == variable("OUTRIGGER_ADMIN")
            && let Some(tracker) = variable("OUTRIGGER_TRACKER")
        {
            own.admin = Some(tracker);
            let is_argument = self.token_file != variable("OUTRIGGER_TOKEN_FILE").map(PathBuf::from);
            if !is_argument && let Some(file) = variable("OUTRIGGER_TRACKER_TOKEN_FILE") {
                own.token_file = Some(PathBuf::from(file));
            }
        }
        own.open_or(USAGE_TRACKER)
    }

    /// The event forwarder, where that is named by itself; or else the daemon that is named, or where it listens.
    pub(crate) fn open_forwarder(&self, named: Option<&str>) -> anyhow::Result<Admin> {
        let admin = named.map(str::to_owned).or_else(|| self.admin.clone());
        Self { admin, ..self.clone() }.open_or(EVENT_FORWARDER)
    }

    /// The daemon that the arguments or the environment name.
    pub(crate) fn named(&self) -> Option<&str> {
        self.admin.as_deref()
    }

    /// The daemon that the arguments name, or else this one, or else the webhook processor, for those who wait no longer than
    /// that for an answer.
    pub(crate) fn open_for(&self, otherwise: Option<&str>, patience: Duration) -> anyhow::Result<Admin> {
        Ok(Admin { patience, ..self.open_or(otherwise.unwrap_or(WEBHOOK_PROCESSOR))? })
    }

    /// The daemon that is named, or else the webhook processor, for what needs no token.
    pub(crate) fn open_plain(&self) -> anyhow::Result<Admin> {
        Ok(Admin::without_token(
            &http_client(&ClientOptions::default())?,
            self.named().unwrap_or(WEBHOOK_PROCESSOR),
            ANSWER_WITHIN,
        ))
    }

    fn open_or(&self, default: &str) -> anyhow::Result<Admin> {
        // The value itself only by environment: an argument is there for everybody to read.
        let value = std::env::var("OUTRIGGER_TOKEN").ok().map(secret::Secret::from);
        let token = secret::resolve("OUTRIGGER_TOKEN", value.as_ref(), "--token-file", self.token_file.as_deref())?;
        let options = ClientOptions { read_timeout: ACTION_WITHIN, total_timeout: ACTION_WITHIN, ..Default::default() };
        let client = http_client(&options)?;
        let base = self.admin.as_deref().unwrap_or(default).trim_end_matches('/').to_owned();
        Ok(Admin { client, base, token, patience: ANSWER_WITHIN })
    }
}

impl Admin {
    /// A daemon that is asked only what needs no token.
    pub(crate) fn without_token(client: &reqwest::Client, address: &str, patience: Duration) -> Self {
        Self { client: client.clone(), base: address.trim_end_matches('/').to_owned(), token: None, patience }
    }

    /// The daemon's admin address.
    pub(crate) fn address(&self) -> &str {
        &self.base
    }

    /// A request without a token: health and metrics.
    pub(crate) async fn plain(&self, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        let response = self.client.get(format!("{}{path}", self.base)).timeout(self.patience).send().await;
        let response = response.with_context(|| format!("reach the daemon at {} (--admin)", self.base))?;
        let status = response.status().as_u16();
        Ok((status, read_capped(response, ANSWER_BYTES).await?))
    }

    /// The `Date` header of an answer.
    pub(crate) async fn date(&self) -> Option<String> {
        let response = self.client.get(format!("{}/livez", self.base)).timeout(self.patience).send().await.ok()?;
        Some(response.headers().get("date")?.to_str().ok()?.to_owned())
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<T> {
        self.send(self.client.get(self.url(path, query)?).timeout(self.patience), path).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.send(self.client.post(self.url(path, &[])?).json(body), path).await
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<url::Url> {
        let mut url: url::Url = format!("{}/api/v1{path}", self.base).parse().context("--admin is not a URL")?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// What is not JSON.
    pub(crate) async fn bytes(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Vec<u8>> {
        self.answer(self.client.get(self.url(path, query)?).timeout(self.patience)).await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder, path: &str) -> anyhow::Result<T> {
        let body = self.answer(request).await?;
        serde_json::from_slice(&body).with_context(|| format!("understand the answer of {path}"))
    }

    /// The body of a good answer.
    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Vec<u8>> {
        let Some(token) = &self.token else {
            return Err(Refusal::NoToken.into());
        };
        let response = request.bearer_auth(token.expose()).send().await;
        let response = response.with_context(|| format!("reach the daemon at {} (--admin)", self.base))?;
        let status = response.status();
        let body = read_capped(response, ANSWER_BYTES).await?;
        if status.is_success() {
            return Ok(body);
        }
        let error = serde_json::from_slice(&body).map_or_else(
            |_| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
            |ErrorBody { error }| error,
        );
        let hint = match status.as_u16() {
            401 => " (the token of --token-file is not this daemon's)",
            404 if body.is_empty() => "is this the admin address (SIDECAR_LISTEN__ADMIN)?",
            _ => "",
        };
        let text = format!("{status}: {}{hint}", crate::output::safe(&error));
        Err(Refusal::Status { status: status.as_u16(), text }.into())
    }
}

/// Filters that listings and actions share.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Type glob, for example 'lago.invoice.*'.
    #[arg(long = "type", value_name = "GLOB")]
    pub(crate) event_type: Option<String>,
    /// Exact subject.
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// Exact tenant.
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Received at or after, for example 2026-11-21T04:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Received before.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only this sink. Whoever replays or drops names it where there are several.
    #[arg(long)]
    pub(crate) sink: Option<String>,
}

impl Filter {
    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let pairs = [
            ("type", &self.event_type),
            ("subject", &self.subject),
            ("tenant", &self.tenant),
            ("since", &self.since),
            ("until", &self.until),
            ("sink", &self.sink),
        ];
        pairs.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.query().iter().all(|(name, _)| *name == "sink")
    }
}
