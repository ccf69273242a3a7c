//! The HTTP sink: one request an event, judged by status and body.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use kit::client::{ClientOptions, http_client, read_capped};
use kit::clock::SharedClock;
use kit::retry::parse_retry_after;
use kit::secret::{self, Secret};
use kit::trace::{Kind, Span};
use kit_journal::StoredEvent;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::conditions::first_unmet;
use crate::config::{DEFAULT_PATH, GatewaySection, HeaderSource, Otherwise, header_name, parse_url};
use crate::format::{Format, render};
use crate::oauth::TokenSource;
use crate::outcome::{Failure, Outcome, Sink, Verdict};
use crate::signature::{SigningSecret, signature_header};

/// Bytes of a response that are read at most.
const RESPONSE_BYTES: usize = 64 * 1024;
/// Bytes of a response that the delivery log keeps.
const LOGGED_BYTES: usize = 256;
/// What stays as it is within one path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A setting of the sink that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct HttpSinkError {
    /// Path of the setting within the section.
    pub path: String,
    /// What is wrong and how to mend it.
    pub message: String,
}

/// Delivers events to one gateway by HTTP.
#[derive(Debug)]
pub struct HttpSink {
    name: String,
    client: reqwest::Client,
    base: String,
    template: String,
    /// Templates of single sources.
    templates: BTreeMap<String, String>,
    format: Format,
    headers: HeaderMap,
    secrets: Vec<SigningSecret>,
    section: GatewaySection,
    oauth: Option<TokenSource>,
    clock: SharedClock,
}

impl HttpSink {
    /// Builds the sink from its section; reads every secret file.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn new(name: &str, section: &GatewaySection, clock: SharedClock) -> Result<Self, Vec<HttpSinkError>> {
        let mut errors = Vec::new();
        let mut keep = |path: &str, message: String| errors.push(HttpSinkError { path: path.to_owned(), message });
        let url = match parse_url(section.url.as_deref().unwrap_or_default()) {
            Ok(url) => Some(url),
            Err(text) => {
                keep("url", text.to_owned());
                None
            }
        };
        let mut headers = HeaderMap::new();
        for (key, source) in &section.headers {
            match header(key, source) {
                Ok((name, value)) => {
                    headers.append(name, value);
                }
                Err(message) => keep(&format!("headers.{key}"), message),
            }
        }
        let secrets = signing_secrets(section).unwrap_or_else(|message| {
            keep("signing_secret_file", message);
            Vec::new()
        });
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(30));
        let options = ClientOptions {
            connect_timeout: seconds(section.timeout.connect_seconds),
            read_timeout: seconds(section.timeout.read_seconds),
            total_timeout: seconds(section.timeout.total_seconds),
            ca_file: section.ca_file.clone(),
            ..ClientOptions::default()
        };
        let client = match http_client(&options) {
            Ok(client) => Some(client),
            Err(error) => {
                keep("ca_file", kit::error::chain(&error));
                None
            }
        };
        let oauth = match (&section.oauth.token_url, &client) {
            (Some(_), Some(client)) => match TokenSource::new(&section.oauth, client.clone()) {
                Ok(source) => Some(source),
                Err(message) => {
                    keep("oauth.client_secret_file", message);
                    None
                }
            },
            _ => None,
        };
        let (Some(url), Some(client), true) = (url, client, errors.is_empty()) else { return Err(errors) };
        let (base, template) = split(&url, &section.path);
        Ok(Self {
            name: name.to_owned(),
            client,
            base,
            template,
            templates: BTreeMap::new(),
            format: section.format,
            headers,
            secrets,
            section: section.clone(),
            oauth,
            clock,
        })
    }

    /// Sends events of these CloudEvents sources to paths of their own.
    #[must_use]
    pub fn with_paths(mut self, templates: BTreeMap<String, String>) -> Self {
        self.templates = templates;
        self
    }

    /// Where an event goes.
    pub fn url_for(&self, event: &StoredEvent) -> String {
        let head = &event.head;
        let template = self.templates.get(&head.source).unwrap_or(&self.template);
        let path = template
            .replace("{source}", &encode(&head.source))
            .replace("{type}", &encode(&head.event_type))
            .replace("{tenant}", &encode(head.tenant.as_deref().unwrap_or("-")));
        format!("{}{path}", self.base)
    }

    async fn attempt(&self, event: &StoredEvent) -> Outcome {
        let mut span = Span::begin("deliver", Kind::Client, event.head.traceparent.as_deref());
        span.set("event.id", event.head.id.to_string());
        span.set("sink", self.name.clone());
        let outcome = self.attempt_with_token(event, span.traceparent()).await;
        if let Some(status) = outcome.status {
            span.set("http.response.status_code", i64::from(status));
        }
        if outcome.verdict != Verdict::Delivered {
            span.fail(outcome.word());
        }
        outcome
    }

    async fn attempt_with_token(&self, event: &StoredEvent, traceparent: Option<String>) -> Outcome {
        let traceparent = traceparent.or_else(|| event.head.traceparent.clone());
        let outcome = self.attempt_once(event, traceparent.as_deref()).await;
        // An access token may have been withdrawn before its time: once with a new one.
        if let (Some(oauth), Some(401)) = (&self.oauth, outcome.status) {
            oauth.forget().await;
            return self.attempt_once(event, traceparent.as_deref()).await;
        }
        outcome
    }

    async fn attempt_once(&self, event: &StoredEvent, traceparent: Option<&str>) -> Outcome {
        let rendered = render(event, self.format);
        let id = event.head.id.to_string();
        let timestamp = self.clock.now().as_millis() / 1000;
        let mut headers = rendered.headers;
        headers.extend(self.headers.clone());
        let own = [
            ("webhook-id", id.clone()),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signature_header(&self.secrets, &id, timestamp, &rendered.body)),
        ];
        for (name, value) in own {
            if let (false, Ok(value)) = (value.is_empty(), HeaderValue::try_from(value)) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        for (name, value) in [("traceparent", traceparent), ("tracestate", event.head.tracestate.as_deref())] {
            if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if let Some(oauth) = &self.oauth {
            match oauth.token().await {
                Ok(token) => {
                    headers.insert(http::header::AUTHORIZATION, token);
                }
                Err(error) => return Outcome::failed(Failure::Unreachable, format!("no access token: {error}")),
            }
        }
        let request = self.client.post(self.url_for(event)).headers(headers).body(rendered.body);
        match request.send().await {
            Ok(response) => self.judge(response).await,
            Err(error) if error.is_builder() => {
                Outcome::failed(Failure::Unsendable, format!("request cannot be built: {}", describe(error)))
            }
            Err(error) => Outcome::failed(Failure::Unreachable, describe(error)),
        }
    }

    async fn judge(&self, response: reqwest::Response) -> Outcome {
        let status = response.status();
        let retry_after = response.headers().get(http::header::RETRY_AFTER).and_then(|value| {
            let cap = Duration::from_secs_f64(self.section.retry.retry_after_max_seconds);
            parse_retry_after(value.as_bytes(), self.clock.now(), cap)
        });
        let body = match read_capped(response, RESPONSE_BYTES).await {
            Ok(body) => body,
            // The status alone does not say that the gateway has it: the answer broke off.
            Err(error) => {
                let mut outcome =
                    Outcome::failed(Failure::Unreachable, format!("answer broke off: {}", describe(error)));
                outcome.status = Some(status.as_u16());
                return outcome;
            }
        };
        let (verdict, error) = self.verdict(status, &body);
        Outcome {
            verdict,
            status: Some(status.as_u16()),
            error,
            response: (verdict != Verdict::Delivered && !body.is_empty()).then(|| first_bytes(&body)),
            retry_after,
        }
    }

    fn verdict(&self, status: StatusCode, body: &[u8]) -> (Verdict, Option<String>) {
        if status.is_success() {
            return match first_unmet(&self.section.success.conditions, body) {
                None => (Verdict::Delivered, None),
                Some(unmet) => {
                    let failure = match self.section.success.otherwise {
                        Otherwise::Retry => Failure::Condition,
                        Otherwise::Park => Failure::ConditionRefused,
                    };
                    (Verdict::Failed(failure), Some(format!("answered {} but {unmet}", status.as_u16())))
                }
            };
        }
        let failure = match status.as_u16() {
            code if self.section.retry.statuses.contains(&code) => Failure::Busy,
            502..=504 => Failure::Unavailable,
            code if code >= 500 => Failure::Busy,
            300..=399 => Failure::Redirected,
            _ => Failure::Refused,
        };
        let text = if failure == Failure::Redirected {
            format!("answered {} and redirects are not followed: set the final URL", status.as_u16())
        } else {
            format!("answered {status}")
        };
        (Verdict::Failed(failure), Some(text))
    }
}

impl Sink for HttpSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        self.attempt(event).boxed()
    }
}

/// A value as one segment of a path. A segment of one or two dots would be taken out of the path, and
/// the one before it too, also where the dots are percent-encoded (URL standard, section 4.4): those two
/// values are encoded twice.
fn encode(text: &str) -> String {
    match text {
        "." => "%252E".to_owned(),
        ".." => "%252E%252E".to_owned(),
        text => utf8_percent_encode(text, SEGMENT).to_string(),
    }
}

/// Base without trailing slash, and the template to append.
fn split(url: &Url, path: &str) -> (String, String) {
    let has_path = !matches!(url.path(), "" | "/");
    let base = url.as_str().trim_end_matches('/').to_owned();
    let template = match path {
        "" if has_path => "",
        "" => DEFAULT_PATH,
        path => path,
    };
    (base, template.to_owned())
}

fn header(key: &str, source: &HeaderSource) -> Result<(HeaderName, HeaderValue), String> {
    let name = header_name(key);
    let from_file = key.to_ascii_lowercase().replace('-', "_").ends_with("_file");
    let value = match source {
        HeaderSource::File { file } => secret::resolve(key, None, key, Some(file)),
        HeaderSource::Value(path) if from_file => {
            secret::resolve(key, None, key, Some(std::path::Path::new(path.expose())))
        }
        HeaderSource::Value(value) => Ok(Some(value.clone())),
    };
    let value: Secret = value.map_err(|e| e.to_string())?.ok_or("has no value")?;
    let mut header =
        HeaderValue::from_str(value.expose()).map_err(|_| "value is not allowed in a header".to_owned())?;
    header.set_sensitive(true);
    Ok((HeaderName::try_from(name).map_err(|_| "is not a header name".to_owned())?, header))
}

fn signing_secrets(section: &GatewaySection) -> Result<Vec<SigningSecret>, String> {
    let secrets = secret::resolve_lines(
        "SIDECAR_GATEWAY__SIGNING_SECRET",
        section.signing_secret.as_ref(),
        "SIDECAR_GATEWAY__SIGNING_SECRET_FILE",
        section.signing_secret_file.as_deref(),
    )
    .map_err(|e| e.to_string())?;
    secrets.iter().map(|secret| SigningSecret::parse(secret).map_err(|e| e.to_string())).collect()
}

/// The error and its causes without the URL, whose path may name a tenant.
fn describe(error: reqwest::Error) -> String {
    let kind = if error.is_timeout() { "timed out: " } else { "" };
    format!("{kind}{}", kit::error::chain(&error.without_url()))
}

/// The beginning of a response for the log: readable, without control characters.
fn first_bytes(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(LOGGED_BYTES)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::tests::event;
    use std::sync::Arc;

    fn sink(change: impl FnOnce(&mut GatewaySection)) -> HttpSink {
        let mut section = GatewaySection { url: Some("http://127.0.0.1:9".to_owned()), ..GatewaySection::default() };
        change(&mut section);
        HttpSink::new("gateway", &section, Arc::new(kit::clock::SystemClock)).unwrap()
    }

    #[test]
    fn the_path_template_cannot_be_broken_out_of() {
        let sink = sink(|s| s.path = "/api/{type}/{tenant}/{source}".to_owned());
        let mut event = event(b"{}", true);
        event.head.tenant = Some("../../admin?x=1#".to_owned());
        assert_eq!(
            sink.url_for(&event),
            "http://127.0.0.1:9/api/lago.invoice.created/..%2F..%2Fadmin%3Fx%3D1%23/lago%2Facme"
        );
    }

    #[test]
    fn a_tenant_of_dots_does_not_take_the_path_away() {
        let sink = sink(|s| s.path = "/in/{tenant}/end".to_owned());
        for (tenant, segment) in [(".", "%252E"), ("..", "%252E%252E"), ("...", "..."), ("%2e%2E", "%252e%252E")] {
            let mut event = event(b"{}", true);
            event.head.tenant = Some(tenant.to_owned());
            let url = Url::parse(&sink.url_for(&event)).unwrap();
            assert_eq!(url.path(), format!("/in/{segment}/end"), "{tenant}");
        }
    }

    #[test]
    fn a_source_can_have_a_path_of_its_own() {
        let sink = sink(|s| s.path = "/all".to_owned())
            .with_paths(BTreeMap::from([("lago/acme".to_owned(), "/acme/{type}".to_owned())]));
        let mut event = event(b"{}", true);
        assert_eq!(sink.url_for(&event), "http://127.0.0.1:9/acme/lago.invoice.created");
        event.head.source = "lago/other".to_owned();
        assert_eq!(sink.url_for(&event), "http://127.0.0.1:9/all");
    }

    #[test]
    fn a_path_in_the_url_is_kept() {
        let check = |url: &str, path: &str, expected: &str| {
            let sink = sink(|s| {
                s.url = Some(url.to_owned());
                s.path = path.to_owned();
            });
            assert_eq!(sink.url_for(&event(b"{}", true)), expected);
        };
        check("http://g:8000", "", "http://g:8000/webhooks/events");
        check("http://g:8000/", "/api/events", "http://g:8000/api/events");
        check("http://g:8000/base/", "", "http://g:8000/base");
        check("http://g:8000/base", "/in", "http://g:8000/base/in");
    }

    #[test]
    fn statuses_are_judged_as_documented() {
        let sink = sink(|s| s.retry.statuses.push(401));
        let check = |code: u16, expected: Verdict| {
            assert_eq!(sink.verdict(StatusCode::from_u16(code).unwrap(), b"").0, expected, "{code}");
        };
        for code in [200, 201, 202, 204, 299] {
            check(code, Verdict::Delivered);
        }
        for code in [408, 425, 429, 500, 501, 505, 599, 401] {
            check(code, Verdict::Failed(Failure::Busy));
        }
        for code in [502, 503, 504] {
            check(code, Verdict::Failed(Failure::Unavailable));
        }
        for code in [301, 302, 303, 307, 308, 304] {
            check(code, Verdict::Failed(Failure::Redirected));
        }
        for code in [400, 403, 404, 409, 410, 413, 422, 451] {
            check(code, Verdict::Failed(Failure::Refused));
        }
    }

    #[test]
    fn all_unusable_settings_are_named_at_once() {
        let mut section = GatewaySection { url: Some("gateway".to_owned()), ..GatewaySection::default() };
        section.signing_secret = Some(Secret::from("whsec_AAAA".to_owned()));
        section.headers.insert("x-key".to_owned(), HeaderSource::File { file: "/nonexistent/key".into() });
        let errors = HttpSink::new("gateway", &section, Arc::new(kit::clock::SystemClock)).unwrap_err();
        let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["url", "headers.x-key", "signing_secret_file"]);
    }
}
