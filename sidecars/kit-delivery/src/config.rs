//! The `[gateway]` section: where events go and how the answer is judged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kit::config::Problems;
use kit::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::conditions::Condition;
use crate::format::Format;
use crate::signature;

/// The path used when neither the URL nor `path` names one.
pub const DEFAULT_PATH: &str = "/webhooks/events";

/// The HTTP sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySection {
    /// Base URL of the gateway, for example `http://brain-gateway:8000`. A path in it is kept.
    pub url: Option<String>,
    /// Path template appended to the URL; `{source}`, `{type}` and `{tenant}` are replaced, each
    /// percent-encoded (`-` for an event without tenant, and for `.` and `..`, which no encoding keeps
    /// in their place). Empty means `/webhooks/events`, or nothing where the URL has a path already.
    pub path: String,
    /// Shape of the request: `cloudevents-structured`, `cloudevents-binary`, `envelope` or `raw`.
    pub format: Format,
    /// Extra headers by name; a value, or `{ file = "/run/secrets/…" }`. In the environment
    /// `SIDECAR_GATEWAY__HEADERS__X_API_KEY` is the header `x-api-key`, and with `_FILE` its file.
    pub headers: BTreeMap<String, HeaderSource>,
    /// Standard Webhooks secret (`whsec_…`) that signs every request.
    pub signing_secret: Option<Secret>,
    /// File with signing secrets, one a line; all of them sign, so that receivers can change over.
    pub signing_secret_file: Option<PathBuf>,
    /// PEM file with further certificate authorities for `https`.
    pub ca_file: Option<PathBuf>,
    /// `subject`: events of one subject go one after the other; `none`: in parallel.
    pub order: Order,
    /// Requests in flight at most.
    pub concurrency: usize,
    /// Requests started per second at most; 0 means no limit.
    pub rate_per_second: u32,
    /// Time limits of a request.
    pub timeout: TimeoutSection,
    /// What counts as success beyond a 2xx status.
    pub success: SuccessSection,
    /// When and how often to try again.
    pub retry: RetrySection,
    /// When to stop trying for a while.
    pub circuit: CircuitSection,
    /// Bearer token by OAuth2 client credentials.
    pub oauth: OauthSection,
}

/// Where a header's value comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HeaderSource {
    /// The value itself.
    Value(Secret),
    /// A file that holds it.
    File {
        /// The file.
        file: PathBuf,
    },
}

/// Order of deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Events of one subject go one after the other, subjects in parallel.
    #[default]
    Subject,
    /// No order.
    None,
}

/// Time limits of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutSection {
    /// Seconds to connect, name look-up and TLS included.
    pub connect_seconds: f64,
    /// Seconds without a byte from the gateway.
    pub read_seconds: f64,
    /// Seconds for the whole request and answer.
    pub total_seconds: f64,
}

impl Default for TimeoutSection {
    fn default() -> Self {
        Self { connect_seconds: 3.0, read_seconds: 10.0, total_seconds: 30.0 }
    }
}

/// What counts as success beyond a 2xx status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SuccessSection {
    /// Conditions on the JSON body of a 2xx answer; all must hold.
    pub conditions: Vec<Condition>,
    /// What happens to an event whose answer fails a condition: `retry` or `park`.
    pub otherwise: Otherwise,
}

/// What happens to an event whose answer fails a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// Try again by the schedule.
    #[default]
    Retry,
    /// Make it a dead letter.
    Park,
}

/// When and how often an event that was answered is tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySection {
    /// Seconds before each further attempt; after the last one the event is parked. Each is varied
    /// by ±20 %. The default ends after three days.
    pub schedule_seconds: Vec<f64>,
    /// Longest `Retry-After` that is honoured, in seconds.
    pub retry_after_max_seconds: f64,
    /// 4xx statuses that are tried again instead of parking the event at once.
    pub statuses: Vec<u16>,
}

impl Default for RetrySection {
    fn default() -> Self {
        let mut schedule_seconds = vec![5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0, 10_800.0];
        // Every six hours until three days are over.
        let used: f64 = schedule_seconds.iter().sum();
        let mut end = used;
        while end + 21_600.0 <= 259_200.0 {
            schedule_seconds.push(21_600.0);
            end += 21_600.0;
        }
        Self { schedule_seconds, retry_after_max_seconds: 3_600.0, statuses: vec![408, 425, 429] }
    }
}

/// When the sink counts as away. While it does, events wait without using up their attempts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitSection {
    /// Consecutive failures that open the circuit.
    pub failures: u32,
    /// Seconds to the first probe with one event; doubled after each that fails.
    pub probe_seconds: f64,
    /// Longest time between two probes, in seconds.
    pub probe_max_seconds: f64,
}

impl Default for CircuitSection {
    fn default() -> Self {
        Self { failures: 5, probe_seconds: 1.0, probe_max_seconds: 60.0 }
    }
}

/// OAuth2 client credentials (RFC 6749 section 4.4).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OauthSection {
    /// Token endpoint; setting it turns OAuth2 on.
    pub token_url: Option<String>,
    /// Client id.
    pub client_id: String,
    /// Client secret.
    pub client_secret: Option<Secret>,
    /// File with the client secret.
    pub client_secret_file: Option<PathBuf>,
    /// Space-separated scopes to ask for.
    pub scope: String,
    /// Audience to ask for, where the provider wants one.
    pub audience: String,
}

impl Default for GatewaySection {
    fn default() -> Self {
        Self {
            url: None,
            path: String::new(),
            format: Format::default(),
            headers: BTreeMap::new(),
            signing_secret: None,
            signing_secret_file: None,
            ca_file: None,
            order: Order::default(),
            concurrency: 16,
            rate_per_second: 0,
            timeout: TimeoutSection::default(),
            success: SuccessSection::default(),
            retry: RetrySection::default(),
            circuit: CircuitSection::default(),
            oauth: OauthSection::default(),
        }
    }
}

/// Longest time a setting may ask for: what is longer is a mistake of units.
const LONGEST_SECONDS: f64 = 30.0 * 86_400.0;

impl GatewaySection {
    /// Checks the values; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        let mut problem = |name: &str, text: &str| problems.add(&format!("{prefix}.{name}"), text);
        match self.url.as_deref() {
            None | Some("") => {
                problem("url", "must be set to the gateway's base URL, for example http://brain-gateway:8000")
            }
            Some(url) => {
                if let Err(text) = parse_url(url) {
                    problem("url", text);
                }
            }
        }
        if let Some(mistake) = path_mistake(&self.path) {
            problem("path", &mistake);
        }
        for name in self.headers.keys() {
            let name = header_name(name);
            if http::HeaderName::try_from(name.as_str()).is_err() {
                problem("headers", &format!("{name:?} is not a header name"));
            } else if RESERVED_HEADERS.contains(&name.as_str()) {
                problem("headers", &format!("{name} is set by the sink itself"));
            }
        }
        if !(1..=1024).contains(&self.concurrency) {
            problem("concurrency", "must be between 1 and 1024");
        }
        for (nth, condition) in self.success.conditions.iter().enumerate() {
            if let Some(text) = condition.mistake() {
                problem("success.conditions", &format!("condition {}: {text}", nth + 1));
            }
        }
        if let Some(url) = &self.oauth.token_url {
            if let Err(text) = parse_url(url) {
                problem("oauth.token_url", text);
            }
            if self.oauth.client_id.is_empty() {
                problem("oauth.client_id", "must be set when oauth.token_url is");
            }
        }
        self.timeout.validate(&format!("{prefix}.timeout"), problems);
        self.retry.validate(&format!("{prefix}.retry"), problems);
        self.circuit.validate(&format!("{prefix}.circuit"), problems);
    }
}

/// Checks a time that somebody waits.
pub fn check_seconds(path: &str, value: f64, problems: &mut Problems) {
    if !value.is_finite() || value <= 0.0 || value > LONGEST_SECONDS {
        problems.add(path, "must be a number of seconds above 0 and at most 30 days");
    }
}

impl TimeoutSection {
    /// Checks the values; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        for (name, value) in [
            ("connect_seconds", self.connect_seconds),
            ("read_seconds", self.read_seconds),
            ("total_seconds", self.total_seconds),
        ] {
            check_seconds(&format!("{prefix}.{name}"), value, problems);
        }
    }
}

impl RetrySection {
    /// As [`TimeoutSection::validate`].
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        check_seconds(&format!("{prefix}.retry_after_max_seconds"), self.retry_after_max_seconds, problems);
        if self.schedule_seconds.iter().any(|s| !s.is_finite() || *s < 0.0 || *s > LONGEST_SECONDS) {
            problems.add(&format!("{prefix}.schedule_seconds"), "must be numbers of seconds from 0 to 30 days");
        }
        if self.schedule_seconds.len() > 1000 {
            problems.add(&format!("{prefix}.schedule_seconds"), "must hold at most 1000 delays");
        }
        if self.statuses.iter().any(|status| !(400..500).contains(status)) {
            problems.add(&format!("{prefix}.statuses"), "must be 4xx statuses; 5xx are tried again anyway");
        }
    }
}

impl CircuitSection {
    /// As [`TimeoutSection::validate`].
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        check_seconds(&format!("{prefix}.probe_seconds"), self.probe_seconds, problems);
        check_seconds(&format!("{prefix}.probe_max_seconds"), self.probe_max_seconds, problems);
        if self.failures == 0 {
            problems.add(&format!("{prefix}.failures"), "must be at least 1");
        }
    }
}

/// Headers that would contradict what the sink sends.
const RESERVED_HEADERS: [&str; 8] = [
    "content-length",
    "content-type",
    "transfer-encoding",
    "host",
    "connection",
    signature::ID,
    signature::TIMESTAMP,
    signature::SIGNATURE,
];

/// The header a configuration key means: the environment cannot hold dashes.
pub(crate) fn header_name(key: &str) -> String {
    let key = key.to_ascii_lowercase().replace('_', "-");
    key.strip_suffix("-file").map_or(key.clone(), str::to_owned)
}

/// An `http` or `https` URL without user information, query or fragment.
///
/// # Errors
/// What is wrong, as it follows the name of the setting.
pub fn parse_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "must be a URL such as http://brain-gateway:8000")?;
    if !matches!(url.scheme(), "http" | "https") {
        Err("must begin with http:// or https://")
    } else if url.host_str().is_none_or(str::is_empty) {
        Err("must name a host")
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("must not hold a user name or password: use a header from a file")
    } else if url.query().is_some() || url.fragment().is_some() {
        Err("must not hold a query or fragment")
    } else {
        Ok(url)
    }
}

/// What is wrong with a path template, if anything is.
pub fn path_mistake(path: &str) -> Option<String> {
    if !(path.is_empty() || path.starts_with('/')) {
        return Some("must begin with a slash".to_owned());
    }
    unknown_placeholder(path).map(|name| format!("{{{name}}} is not one of {{source}}, {{type}} and {{tenant}}"))
}

fn unknown_placeholder(path: &str) -> Option<&str> {
    path.split('{')
        .skip(1)
        .map(|rest| rest.split('}').next().unwrap_or(rest))
        .find(|name| !matches!(*name, "source" | "type" | "tenant"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_schedule_is_the_documented_one_and_ends_within_three_days() {
        let schedule = RetrySection::default().schedule_seconds;
        assert_eq!(schedule[..7], [5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0, 10_800.0]);
        assert!(schedule[7..].iter().all(|s| (*s - 21_600.0).abs() < f64::EPSILON));
        let total: f64 = schedule.iter().sum();
        assert!((259_200.0 - 21_600.0..=259_200.0).contains(&total), "{total}");
    }

    #[test]
    fn urls_that_would_leak_or_lead_elsewhere_are_refused() {
        for bad in ["gateway:8000", "ftp://g", "http://", "http://user:pw@g", "http://g/?key=1", "http://g/#x", ""] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
        assert!(parse_url("http://brain-gateway:8000").is_ok());
        assert!(parse_url("https://g/base/path").is_ok());
    }

    #[test]
    fn header_keys_of_the_environment_become_header_names() {
        assert_eq!(header_name("X_BIZOS_KEY"), "x-bizos-key");
        assert_eq!(header_name("x_bizos_key_file"), "x-bizos-key");
        assert_eq!(header_name("X-Api-Key"), "x-api-key");
    }
}
