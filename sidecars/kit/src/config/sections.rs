//! The sections that every daemon has.
//!
//! They stand in its configuration as a group, see [`super::Section::GROUPS`].

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problems;
use crate::secret::Secret;

/// What every daemon has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSections {
    /// Addresses and limits of the two listeners.
    pub listen: ListenSection,
    /// Access to the admin API.
    pub admin: AdminSection,
    /// What is logged and how.
    pub log: LogSection,
    /// How the daemon stops.
    pub stop: StopSection,
}

impl ProcessSections {
    /// With listeners at these ports: the public one on every address, the admin one on the loopback.
    pub fn at_ports(public: u16, admin: u16) -> Self {
        let (public, admin) = (format!("0.0.0.0:{public}"), format!("127.0.0.1:{admin}"));
        Self { listen: ListenSection { public, admin, ..ListenSection::default() }, ..Self::default() }
    }

    /// Checks the values.
    pub fn validate(&self, problems: &mut Problems) {
        self.listen.validate("listen", problems);
        self.log.validate("log", problems);
        self.stop.validate("stop", problems);
    }

    /// Checks what only reading files can tell.
    pub fn check(&self, problems: &mut Problems) {
        if let Err((field, message)) = self.admin.resolve() {
            problems.add(&format!("admin.{field}"), &message);
        }
    }
}

/// Addresses and limits of the listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenSection {
    /// Address and port of the public listener.
    pub public: String,
    /// Address and port of the admin listener: health, metrics, admin API. Keep it off public networks.
    pub admin: String,
    /// Connections at the same time; further ones are accepted and closed. While more than half of
    /// them are open, each is closed after its answer.
    pub max_connections: usize,
    /// Connections at the same time from one address; 0 means no limit of its own.
    pub max_connections_per_peer: usize,
    /// Bytes that all requests being read may hold together.
    pub memory_budget_bytes: usize,
    /// Seconds from the first byte of a request to the end of its head.
    pub head_timeout_seconds: f64,
    /// Seconds a body may take before it must have brought `body_min_bytes_per_second` for every
    /// further one.
    pub body_timeout_seconds: f64,
    /// Seconds a body may take in all, whatever its rate; at least `body_timeout_seconds`. A large body
    /// at the slowest rate would otherwise hold its place for more than an hour.
    pub body_total_seconds: f64,
    /// Slowest acceptable body, in bytes per second.
    pub body_min_bytes_per_second: u64,
    /// Seconds without progress in writing an answer.
    pub write_timeout_seconds: f64,
    /// Seconds that a connection may stay open between two requests.
    pub idle_timeout_seconds: f64,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            public: "0.0.0.0:8080".to_owned(),
            admin: "127.0.0.1:9090".to_owned(),
            max_connections: 10_240,
            max_connections_per_peer: 0,
            memory_budget_bytes: 64 << 20,
            head_timeout_seconds: 10.0,
            body_timeout_seconds: 20.0,
            body_total_seconds: 60.0,
            body_min_bytes_per_second: 1024,
            write_timeout_seconds: 10.0,
            idle_timeout_seconds: 75.0,
        }
    }
}

impl ListenSection {
    /// The largest request, head and body together, that can be read at all: a quarter of the memory is kept for requests of
    /// 64 KiB and less (see `serve::budget`).
    pub fn largest_request_bytes(&self) -> usize {
        self.memory_budget_bytes / 4 * 3
    }

    /// Checks the values; `prefix` is the section's path.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        for (name, address) in [("public", &self.public), ("admin", &self.admin)] {
            if address.parse::<std::net::SocketAddr>().is_err() {
                problems.add(&format!("{prefix}.{name}"), "must be an address and a port, for example 0.0.0.0:8080");
            }
        }
        if self.public == self.admin && !self.public.ends_with(":0") {
            problems.add(&format!("{prefix}.admin"), "must differ from the public listener's address");
        }
        if !(1..=1_000_000).contains(&self.max_connections) {
            problems.add(&format!("{prefix}.max_connections"), "must be between 1 and 1000000");
        }
        if self.memory_budget_bytes < 1 << 20 {
            problems.add(&format!("{prefix}.memory_budget_bytes"), "must be at least 1048576");
        }
        let seconds = [
            ("head_timeout_seconds", self.head_timeout_seconds),
            ("body_timeout_seconds", self.body_timeout_seconds),
            ("body_total_seconds", self.body_total_seconds),
            ("write_timeout_seconds", self.write_timeout_seconds),
            ("idle_timeout_seconds", self.idle_timeout_seconds),
        ];
        check_seconds(prefix, &seconds, problems);
        if self.body_total_seconds < self.body_timeout_seconds {
            problems.add(&format!("{prefix}.body_total_seconds"), "must be at least body_timeout_seconds");
        }
    }
}

/// Access to the admin API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// Bearer token of the admin API, at least 32 characters. Without one the API is closed.
    pub token: Option<Secret>,
    /// File with the bearer token.
    pub token_file: Option<PathBuf>,
}

impl AdminSection {
    /// The shortest token that is accepted.
    pub const TOKEN_CHARS: usize = 32;

    /// Reads the token.
    ///
    /// # Errors
    /// The setting that is wrong (`token` or `token_file`), and what is wrong with it.
    pub fn resolve(&self) -> Result<Option<Secret>, (&'static str, String)> {
        let (value, file) = ("SIDECAR_ADMIN__TOKEN", "SIDECAR_ADMIN__TOKEN_FILE");
        let field = if self.token_file.is_some() { "token_file" } else { "token" };
        let token = crate::secret::resolve(value, self.token.as_ref(), file, self.token_file.as_deref())
            .map_err(|error| (field, error.to_string()))?;
        match &token {
            Some(token) if token.expose().len() < Self::TOKEN_CHARS => Err((
                field,
                format!("must hold at least {} characters, for example from `openssl rand -hex 32`", Self::TOKEN_CHARS),
            )),
            _ => Ok(token),
        }
    }
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `error`, `warn`, `info`, `debug` or `trace`; also by module, as in `info,kit_delivery=debug`.
    pub level: String,
    /// JSON, one object a line; plain text otherwise.
    pub json: bool,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { level: "info".to_owned(), json: true }
    }
}

impl LogSection {
    /// Checks the values; `prefix` is the section's path.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        if crate::telemetry::filter(&self.level).is_err() {
            problems.add(&format!("{prefix}.level"), "must be error, warn, info, debug or trace");
        }
    }
}

/// How the daemon stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopSection {
    /// Seconds from the signal to the end; what is unfinished then is cut off.
    pub drain_seconds: f64,
    /// Seconds from the signal until a request whose body is still on its way is answered 503.
    pub unfinished_body_seconds: f64,
}

impl Default for StopSection {
    fn default() -> Self {
        Self { drain_seconds: 8.0, unfinished_body_seconds: 5.0 }
    }
}

impl StopSection {
    /// Checks the values; `prefix` is the section's path.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        let seconds =
            [("drain_seconds", self.drain_seconds), ("unfinished_body_seconds", self.unfinished_body_seconds)];
        check_seconds(prefix, &seconds, problems);
    }
}

fn check_seconds(prefix: &str, values: &[(&str, f64)], problems: &mut Problems) {
    for (name, value) in values {
        if !value.is_finite() || *value <= 0.0 || *value > 86_400.0 {
            problems.add(&format!("{prefix}.{name}"), "must be a number of seconds above 0 and at most a day");
        }
    }
}
