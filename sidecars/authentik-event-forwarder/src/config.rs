//! What can be set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kit::clock::Timestamp;
use kit::config::{COMMON_WELL_KNOWN, Problems, ProcessSections, Section, WellKnown};
use kit::secret::Secret;
use kit_authentik::api::ANSWER_TIMEOUT;
use kit_authentik::signature::Proof;
use kit_journal::JournalSection;
use kit_routes::{Outgoing, OutgoingSections};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tenant::Pattern;

/// Variables known under names of their own.
pub fn well_known() -> Vec<WellKnown> {
    const OURS: [WellKnown; 8] = [
        WellKnown { env: "AUTHENTIK_WEBHOOK_SECRET", path: "authentik.webhook_secret" },
        WellKnown { env: "AUTHENTIK_WEBHOOK_SECRET_FILE", path: "authentik.webhook_secret_file" },
        WellKnown { env: "AUTHENTIK_URL", path: "authentik.url" },
        WellKnown { env: "AUTHENTIK_TOKEN", path: "authentik.token" },
        WellKnown { env: "AUTHENTIK_TOKEN_FILE", path: "authentik.token_file" },
        WellKnown { env: "BRAIN_GATEWAY_URL", path: "gateway.url" },
        WellKnown { env: "AMQP_URL", path: "amqp.url" },
        WellKnown { env: "AMQP_URL_FILE", path: "amqp.url_file" },
    ];
    OURS.into_iter()
        .chain([COMMON_WELL_KNOWN[0], COMMON_WELL_KNOWN[1]])
        .chain(kit_journal::config::WELL_KNOWN)
        .collect()
}

/// Configuration of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every daemon has: `listen`, `admin`, `log` and `stop`.
    pub process: ProcessSections,
    /// How webhooks prove themselves, and where Authentik's API is.
    pub authentik: AuthentikSection,
    /// How events are read from Authentik's API; without `authentik.url` they are not.
    pub poll: PollSection,
    /// Which events are taken, and what they are called.
    pub events: EventsSection,
    /// What is added to an event about its user.
    pub enrichment: EnrichmentSection,
    /// Where events go: `gateway`, `amqp`, `sinks`, `route` and `routes`.
    pub outgoing: OutgoingSections,
    /// Where and how events are kept.
    pub journal: JournalSection,
}

/// How webhooks prove themselves, and where Authentik's API is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuthentikSection {
    /// Name of this Authentik: the CloudEvents source is `authentik/<name>`. It is part of every event's id: do not change
    /// it while events are under way. 1 to 64 of `a` to `z`, digits, `-` and `_`.
    pub name: String,
    /// What a webhook must prove itself with, one of these at least and any of those listed: `hmac-header` (Authentik 2025.4 and later; covers every byte),
    /// `hmac-body` (2024.10; covers every byte of the event, not the envelope around it), `bearer` (2025.4) and
    /// `body-secret` (2024.10), which prove only that the sender has the secret. Never taken from the request.
    pub authentication: Vec<Authentication>,
    /// The shared secret, at least 32 bytes.
    pub webhook_secret: Option<Secret>,
    /// File with secrets, one a line; all of them are accepted while one replaces the other.
    pub webhook_secret_file: Option<PathBuf>,
    /// Authentik's address, for example `http://authentik-server:9000`. Without it nothing is read from the API: a webhook
    /// that is lost stays lost.
    pub url: Option<String>,
    /// API token (intent `api`) of a user that may view events, users and groups.
    pub token: Option<Secret>,
    /// File with the token.
    pub token_file: Option<PathBuf>,
    /// PEM file with certificate authorities to trust beside the platform's, for `https`.
    pub ca_file: Option<PathBuf>,
    /// Seconds that one answer of the API may take, 1 to 600. Raise it where Authentik is slow as a whole.
    pub timeout_seconds: f64,
    /// Largest body of a webhook in bytes.
    pub body_limit_bytes: usize,
}

/// What a webhook proves itself with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// HMAC-SHA256 over the raw body in `X-Outrigger-Signature`.
    HmacHeader,
    /// HMAC-SHA256 in the body, over some of it.
    HmacBody,
    /// The secret in `Authorization`.
    Bearer,
    /// The secret in the body.
    BodySecret,
}

impl From<Authentication> for Proof {
    fn from(authentication: Authentication) -> Self {
        match authentication {
            Authentication::HmacHeader => Self::HmacHeader,
            Authentication::HmacBody => Self::HmacBody,
            Authentication::Bearer => Self::Bearer,
            Authentication::BodySecret => Self::BodySecret,
        }
    }
}

/// How events are read from Authentik's API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PollSection {
    /// Seconds between two looks. A webhook that is lost is filled in within one.
    pub interval_seconds: f64,
    /// Seconds before the newest known event that are read again at every look: Authentik sets an event's time before it
    /// can be seen.
    pub overlap_seconds: f64,
    /// The first look ever takes events from this time on (RFC 3339), as far as Authentik still has them; without it those from now on.
    pub since: Option<String>,
    /// Events in a request, 16 to 100: Authentik 2025.12 and later give no more.
    pub page_size: usize,
}

/// Which events are taken, and what they are called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventsSection {
    /// Actions that are taken, with `*` and `?`; all of them when empty.
    pub include: Vec<String>,
    /// Actions that are not taken, with `*` and `?`. The default is what Authentik says about its own working.
    pub exclude: Vec<String>,
    /// Take `model_*` events that `service_account` itself causes. What writes to Authentik because of such an event
    /// causes the next one.
    pub own_writes: bool,
    /// User name of the account that this daemon and its neighbours use.
    pub service_account: String,
    /// Give events the platform's names (`user.created`, `security.auth_failed` …) as `typealias`.
    pub platform_names: bool,
    /// Further names by action, or by action and model: `login = "user.seen"`, `"model_created:authentik_core.group" =
    /// "tenant.created"`. They go before the platform's.
    pub aliases: BTreeMap<String, String>,
}

/// What is added to an event about its user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EnrichmentSection {
    /// Add the member `enriched` to the event: the user with uuid, uid, type and names of groups, and the tenant.
    pub user: bool,
    /// Names of groups that say whose tenant a user is, for example `tenant_{id}_*`: `{id}` is the tenant, `*` anything.
    pub tenant_group_pattern: Option<String>,
    /// Attribute of a user, or of one of its groups, that holds the tenant, for example `tenant_id`.
    pub tenant_attribute: Option<String>,
    /// Seconds that what is known of a user is used without asking again.
    pub cache_seconds: f64,
    /// Users that are remembered at most.
    pub cache_users: usize,
}

impl EnrichmentSection {
    /// Whether Authentik is asked about users at all.
    pub fn is_on(&self) -> bool {
        self.user || self.tenant_group_pattern.is_some() || self.tenant_attribute.is_some()
    }
}

impl Default for AuthentikSection {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            authentication: Vec::new(),
            webhook_secret: None,
            webhook_secret_file: None,
            url: None,
            token: None,
            token_file: None,
            ca_file: None,
            timeout_seconds: ANSWER_TIMEOUT.as_secs_f64(),
            body_limit_bytes: 4 << 20,
        }
    }
}

impl Default for PollSection {
    fn default() -> Self {
        Self { interval_seconds: 20.0, overlap_seconds: 300.0, since: None, page_size: 100 }
    }
}

impl Default for EventsSection {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            exclude: crate::exclude::OPERATIONAL.map(str::to_owned).to_vec(),
            own_writes: false,
            service_account: kit_authentik::envelope::SERVICE_ACCOUNT.to_owned(),
            platform_names: false,
            aliases: BTreeMap::new(),
        }
    }
}

impl Default for EnrichmentSection {
    fn default() -> Self {
        Self {
            user: false,
            tenant_group_pattern: None,
            tenant_attribute: None,
            cache_seconds: 600.0,
            cache_users: 4096,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            process: ProcessSections::at_ports(8083, 9083),
            authentik: AuthentikSection::default(),
            poll: PollSection::default(),
            events: EventsSection::default(),
            enrichment: EnrichmentSection::default(),
            outgoing: OutgoingSections::default(),
            journal: JournalSection {
                path: PathBuf::from("/var/lib/outrigger/authentik-event-forwarder.db"),
                ..JournalSection::default()
            },
        }
    }
}

impl AsRef<ProcessSections> for Config {
    fn as_ref(&self) -> &ProcessSections {
        &self.process
    }
}

impl Section for Config {
    const GROUPS: &'static [&'static str] = &["process", "outgoing"];

    fn validate(&self, problems: &mut Problems) {
        self.process.validate(problems);
        self.journal.validate("journal", problems);
        self.authentik.validate(problems);
        self.poll.validate(problems);
        self.events.validate(problems);
        self.enrichment.validate(self.authentik.url.is_some(), problems);
        self.outgoing().validate(problems);
    }
}

impl Config {
    /// What is said about where events go.
    pub fn outgoing(&self) -> Outgoing<'_> {
        self.outgoing.outgoing()
    }
}

impl AuthentikSection {
    /// CloudEvents source of this Authentik's events.
    pub fn source(&self) -> String {
        format!("authentik/{}", self.name)
    }

    /// How long one answer of the API may take.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.timeout_seconds).unwrap_or(ANSWER_TIMEOUT)
    }

    fn validate(&self, problems: &mut Problems) {
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(is_name) {
            problems.add("authentik.name", "must be 1 to 64 of a-z, 0-9, - and _");
        }
        if self.authentication.is_empty() {
            problems.add(
                "authentik.authentication",
                "must be set: hmac-header (Authentik 2025.4 and later) or hmac-body (2024.10), or bearer or body-secret, which prove less",
            );
        }
        if !(1024..=64 << 20).contains(&self.body_limit_bytes) {
            problems.add("authentik.body_limit_bytes", "must be between 1024 and 67108864");
        }
        if !(1.0..=600.0).contains(&self.timeout_seconds) {
            problems.add("authentik.timeout_seconds", "must be a number of seconds from 1 to 600");
        }
        let has_token = self.token.is_some() || self.token_file.is_some();
        match &self.url {
            Some(_) if !has_token => {
                problems.add("authentik.token_file", "must be set where AUTHENTIK_URL is: events are read with it");
            }
            None if has_token => problems.add("authentik.url", "must be set where a token is"),
            _ => {}
        }
    }
}

impl PollSection {
    fn validate(&self, problems: &mut Problems) {
        if !(0.1..=86_400.0).contains(&self.interval_seconds) {
            problems.add("poll.interval_seconds", "must be a number of seconds from 0.1 to a day");
        }
        if !(1.0..=86_400.0).contains(&self.overlap_seconds) {
            problems.add("poll.overlap_seconds", "must be a number of seconds from 1 to a day");
        }
        if !(16..=100).contains(&self.page_size) {
            problems.add("poll.page_size", "must be between 16 and 100");
        }
        if self.since.is_some() && self.since().is_none() {
            problems.add("poll.since", "must be a time such as 2026-11-21T04:40:24Z");
        }
    }

    /// Where the first look ever begins.
    pub(crate) fn since(&self) -> Option<Timestamp> {
        self.since.as_deref().and_then(|text| text.parse().ok())
    }
}

impl EventsSection {
    fn validate(&self, problems: &mut Problems) {
        for (path, actions) in [("events.include", &self.include), ("events.exclude", &self.exclude)] {
            if actions.iter().any(|action| action.trim().is_empty() || action.trim() != action) {
                problems.add(path, "must hold actions such as login or model_*, without spaces around them");
            }
        }
        for (what, name) in &self.aliases {
            if what.trim().is_empty() || name.trim().is_empty() || name.trim() != name {
                let path = format!("events.aliases.{what}");
                problems.add(&path, "must be a name such as user.created");
            }
        }
    }
}

impl EnrichmentSection {
    fn validate(&self, has_api: bool, problems: &mut Problems) {
        if self.is_on() && !has_api {
            problems.add("authentik.url", "must be set where events are to be enriched: users are asked for there");
        }
        if let Some(mistake) = self.tenant_group_pattern.as_deref().and_then(|text| Pattern::new(text).err()) {
            problems.add("enrichment.tenant_group_pattern", mistake);
        }
        if self.tenant_attribute.as_deref().is_some_and(|name| name.trim().is_empty()) {
            problems.add("enrichment.tenant_attribute", "must be the name of an attribute, such as tenant_id");
        }
        if !(1.0..=86_400.0).contains(&self.cache_seconds) {
            problems.add("enrichment.cache_seconds", "must be a number of seconds from 1 to a day");
        }
        if !(1..=100_000).contains(&self.cache_users) {
            problems.add("enrichment.cache_users", "must be between 1 and 100000");
        }
    }
}
