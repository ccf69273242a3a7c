//! The tracker's intake: a request is repeated until it is answered, because an event that is sent twice is known.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use kit::client::{ClientOptions, http_client, read_capped};
use kit::secret::{self, Secret};
use kit_lago::api::{api_root, authorization};
use kit_lago::usage::answer::{batch_errors, holds_events, in_words, is_known};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use url::Url;

use crate::output::safe;

/// The tracker answers with every event it took, and some fields more.
const ANSWER_BYTES: usize = 16 << 20;
/// Wait before a request is repeated where the answer names none.
const WAIT: Duration = Duration::from_secs(1);
/// Longest wait that an answer may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Where the tracker takes usage.
#[derive(Args, Debug)]
pub(crate) struct Address {
    /// The tracker's public address.
    #[arg(long, env = "OUTRIGGER_USAGE_URL", default_value = "http://127.0.0.1:8082")]
    url: String,
    /// File with a producer's token; or set USAGE_PRODUCER_TOKEN. The first word of its first line is taken.
    #[arg(long, env = "USAGE_PRODUCER_TOKEN_FILE", value_name = "FILE")]
    producer_token_file: Option<PathBuf>,
    /// Seconds for which a request that is not answered is repeated; then the import ends and can be started again.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
}

impl Address {
    pub(super) fn open(&self) -> anyhow::Result<Intake> {
        let root = api_root(&self.url).map_err(|error| anyhow::anyhow!("--url: {error}"))?;
        let value = std::env::var("USAGE_PRODUCER_TOKEN").ok().filter(|token| !token.is_empty()).map(Secret::from);
        let file = self.producer_token_file.as_deref();
        let lines = secret::resolve_lines("USAGE_PRODUCER_TOKEN", value.as_ref(), "--producer-token-file", file)?;
        // The daemon's own file has words after a token that say whom it is for.
        let token = lines.first().and_then(|line| line.expose().split_ascii_whitespace().next());
        let Some(token) = token else {
            bail!("no token: give --producer-token-file (USAGE_PRODUCER_TOKEN_FILE) or set USAGE_PRODUCER_TOKEN");
        };
        let authorization = authorization(&Secret::from(token.to_owned()))
            .map_err(|_| anyhow::anyhow!("the producer's token cannot be sent in a header"))?;
        Ok(Intake {
            client: http_client(&ClientOptions::default())?,
            url: root.join("events/batch")?,
            authorization,
            patience: Duration::from_secs(self.patience),
        })
    }
}

/// What became of a batch.
#[derive(Debug)]
pub(super) enum Answer {
    /// All of it is on the tracker's disk.
    Taken,
    /// None of it is, because of these, by their place.
    Refused(BTreeMap<usize, Refusal>),
}

/// Why an event is not taken.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) words: String,
    /// Its transaction id is taken, and nothing else is wrong: it cannot be billed a second time under it.
    pub(super) is_known: bool,
}

/// The tracker.
#[derive(Debug)]
pub(super) struct Intake {
    client: reqwest::Client,
    url: Url,
    authorization: HeaderValue,
    patience: Duration,
}

impl Intake {
    /// Where events are sent.
    pub(super) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Sends a batch of so many events until it is answered; `waiting` is told why it is not yet.
    ///
    /// # Errors
    /// The tracker wants something else than another try, or it has not answered for too long.
    pub(super) async fn send(
        &self,
        body: String,
        events: usize,
        mut waiting: impl FnMut(&str),
    ) -> anyhow::Result<Answer> {
        let begin = Instant::now();
        loop {
            let (why, wait) = match self.ask(&body).await {
                Ok((status, headers, answer)) => match judge(status, &answer, events)? {
                    Some(answer) => return Ok(answer),
                    None => (format!("answered {status}"), asked_wait(&headers)),
                },
                Err(error) => (kit::error::chain(&error.without_url()), WAIT),
            };
            if begin.elapsed() + wait >= self.patience {
                bail!(
                    "{} has not taken a request for {} s (--patience): {why}; the same command goes on from there",
                    self.url,
                    self.patience.as_secs()
                );
            }
            waiting(&why);
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask(&self, body: &str) -> reqwest::Result<(u16, HeaderMap, Vec<u8>)> {
        let request = self.client.post(self.url.clone()).header(AUTHORIZATION, &self.authorization);
        let response = request.header(CONTENT_TYPE, "application/json").body(body.to_owned()).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok((status, headers, read_capped(response, ANSWER_BYTES).await?))
    }
}

/// What an answer says about a batch; nothing where the request may be repeated.
fn judge(status: u16, answer: &[u8], events: usize) -> anyhow::Result<Option<Answer>> {
    let shown = || safe(&String::from_utf8_lossy(&answer[..answer.len().min(200)]));
    match status {
        200 if holds_events(answer, events) => Ok(Some(Answer::Taken)),
        200 => bail!("answered 200 without the events: is --url the tracker's public address? {}", shown()),
        422 => {
            let errors = batch_errors(answer, events).with_context(|| format!("answered 422: {}", shown()))?;
            let refusals = errors
                .iter()
                .map(|(place, fields)| (*place, Refusal { words: in_words(fields), is_known: is_known(fields) }));
            Ok(Some(Answer::Refused(refusals.collect())))
        }
        401 => {
            bail!("the token is not known (--producer-token-file), or --url is not the tracker's public address: 401")
        }
        403 => bail!("this token may not report for one of these subscriptions: 403"),
        413 => bail!("the tracker's usage.body_limit_bytes is too small for a batch: 413"),
        408 | 425 | 429 | 500..=599 => Ok(None),
        _ => bail!("answered {status}: is --url the tracker's public address? {}", shown()),
    }
}

fn asked_wait(headers: &HeaderMap) -> Duration {
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    asked.map_or(WAIT, Duration::from_secs).clamp(WAIT, LONGEST_WAIT)
}
