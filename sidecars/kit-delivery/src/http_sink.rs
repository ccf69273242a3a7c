//! The HTTP sink: one request an event, judged by status and body.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use kit::client::{ClientOptions, http_client, read_capped};
use kit::clock::SharedClock;
use kit::secret::{self, Secret};
use kit::trace::{Kind, Span};
use kit_journal::StoredEvent;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::answer;
use crate::config::{DEFAULT_PATH, GatewaySection, HeaderSource, header_name, parse_url};
use crate::format::{Format, render};
use crate::oauth::TokenSource;
use crate::outcome::{Failure, Outcome, Sink, Verdict};
use crate::signature::{self, SigningSecret, signature_header};

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

/// What a sink would send.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Method and URL, or exchange and key.
    pub target: String,
    /// Headers, secret ones without their value.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: bytes::Bytes,
}

struct Request {
    url: String,
    headers: HeaderMap,
    body: bytes::Bytes,
}

impl HttpSink {
    /// Builds the sink from its section; reads every secret file.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn new(name: &str, section: &GatewaySection, clock: SharedClock) -> Result<Self, Vec<HttpSinkError>> {
        Self::at("gateway", name, section, clock)
    }

    /// The same for a section at another place of the configuration, which errors about secrets name.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn at(
        place: &str,
        name: &str,
        section: &GatewaySection,
        clock: SharedClock,
    ) -> Result<Self, Vec<HttpSinkError>> {
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
        let secrets = signing_secrets(place, section).unwrap_or_else(|message| {
            let of_value = section.signing_secret.is_some() && section.signing_secret_file.is_none();
            keep(if of_value { "signing_secret" } else { "signing_secret_file" }, message);
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
            (Some(_), Some(client)) => match TokenSource::new(place, &section.oauth, client.clone()) {
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
        let encode = |text: &str| match text {
            // Steps of a path in every spelling, encoded ones too (WHATWG URL, "double-dot URL path segment"):
            // a tenant of that name would choose another path.
            "." | ".." => "-".to_owned(),
            text => utf8_percent_encode(text, SEGMENT).to_string(),
        };
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
        let Some(oauth) = &self.oauth else {
            return self.attempt_once(event, traceparent.as_deref(), None).await;
        };
        let no_token = |error| Outcome::failed(Failure::Unreachable, format!("no access token: {error}"));
        let token = match oauth.token().await {
            Ok(token) => token,
            Err(error) => return no_token(error),
        };
        let outcome = self.attempt_once(event, traceparent.as_deref(), Some(&token)).await;
        if outcome.status != Some(401) {
            return outcome;
        }
        // It may have been withdrawn before its time: once with a new one.
        oauth.forget(&token).await;
        match oauth.token().await {
            Ok(token) => self.attempt_once(event, traceparent.as_deref(), Some(&token)).await,
            Err(error) => no_token(error),
        }
    }

    /// What would be sent now, without sending it. Values that are secret are not shown.
    pub fn preview(&self, event: &StoredEvent) -> Preview {
        let request = self.request(event, event.head.traceparent.as_deref());
        let shown = |value: &HeaderValue| match value.is_sensitive() {
            true => "(secret)".to_owned(),
            false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        let headers = request.headers.iter().map(|(name, value)| (name.to_string(), shown(value)));
        let token = self.oauth.iter().map(|_| ("authorization".to_owned(), "(secret)".to_owned()));
        Preview { target: format!("POST {}", request.url), headers: headers.chain(token).collect(), body: request.body }
    }

    fn request(&self, event: &StoredEvent, traceparent: Option<&str>) -> Request {
        let rendered = render(event, self.format);
        let id = event.head.id.to_string();
        let timestamp = self.clock.now().as_millis() / 1000;
        let mut headers = rendered.headers;
        headers.extend(self.headers.clone());
        let own = [
            (signature::ID, id.clone()),
            (signature::TIMESTAMP, timestamp.to_string()),
            (signature::SIGNATURE, signature_header(&self.secrets, &id, timestamp, &rendered.body)),
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
        // hyper says no length of an empty body, and some servers answer a POST without one 411.
        headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(rendered.body.len()));
        Request { url: self.url_for(event), headers, body: rendered.body }
    }

    async fn attempt_once(
        &self,
        event: &StoredEvent,
        traceparent: Option<&str>,
        token: Option<&HeaderValue>,
    ) -> Outcome {
        let Request { url, mut headers, body } = self.request(event, traceparent);
        if let Some(token) = token {
            headers.insert(http::header::AUTHORIZATION, token.clone());
        }
        match self.client.post(url).headers(headers).body(body).send().await {
            Ok(response) => self.judge(response).await,
            Err(error) if error.is_builder() => {
                Outcome::failed(Failure::Unsendable, format!("request cannot be built: {}", describe(error)))
            }
            Err(error) => Outcome::failed(Failure::Unreachable, describe(error)),
        }
    }

    async fn judge(&self, response: reqwest::Response) -> Outcome {
        let (status, now) = (response.status(), self.clock.now());
        let retry_after = response.headers().get(http::header::RETRY_AFTER).cloned();
        // One byte more tells that it is longer.
        match read_capped(response, answer::READ_BYTES + 1).await {
            Ok(body) => answer::judge(&self.section, status, retry_after.as_ref(), &body, now),
            // The status alone does not say that the gateway has it: the answer broke off.
            Err(error) => {
                let mut outcome =
                    Outcome::failed(Failure::Unreachable, format!("answer broke off: {}", describe(error)));
                outcome.status = Some(status.as_u16());
                outcome
            }
        }
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

fn signing_secrets(place: &str, section: &GatewaySection) -> Result<Vec<SigningSecret>, String> {
    let variable = |name: &str| kit::config::variable(&format!("{place}.{name}"), &[]);
    let secrets = secret::resolve_lines(
        &variable("signing_secret"),
        section.signing_secret.as_ref(),
        &variable("signing_secret_file"),
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
        for step in [".", ".."] {
            event.head.tenant = Some(step.to_owned());
            assert_eq!(sink.url_for(&event), "http://127.0.0.1:9/api/lago.invoice.created/-/lago%2Facme", "{step}");
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
    fn all_unusable_settings_are_named_at_once() {
        let mut section = GatewaySection { url: Some("gateway".to_owned()), ..GatewaySection::default() };
        section.signing_secret = Some(Secret::from("whsec_AAAA".to_owned()));
        section.headers.insert("x-key".to_owned(), HeaderSource::File { file: "/nonexistent/key".into() });
        let errors = HttpSink::new("gateway", &section, Arc::new(kit::clock::SystemClock)).unwrap_err();
        let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["url", "headers.x-key", "signing_secret"]);
    }
}
