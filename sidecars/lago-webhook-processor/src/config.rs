//! What can be set.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kit::config::{
    AdminSection, COMMON_WELL_KNOWN, ListenSection, LogSection, Problems, Section, StopSection, WellKnown,
};
use kit::run::Common;
use kit::secret::Secret;
use kit_amqp::AmqpSection;
use kit_delivery::GatewaySection;
use kit_delivery::format::Format;
use kit_journal::JournalSection;
use kit_lago::signature::Algorithm;
use kit_routes::{RouteSection, RoutesSection, Routing, SinkSection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The sink of `[gateway]`, by its name in the journal, metrics and the API.
pub const GATEWAY: &str = "gateway";
/// Name of the sink of `[amqp]`.
pub const RABBITMQ: &str = "rabbitmq";

/// Where webhooks are taken; each organisation's name follows.
pub const INTAKE_PATH: &str = "/webhooks/lago";

/// Organisation of the path without a name.
pub const UNNAMED: &str = "default";

/// Variables known under names of their own.
pub fn well_known() -> Vec<WellKnown> {
    const OURS: [WellKnown; 10] = [
        WellKnown { env: "LAGO_WEBHOOK_HMAC_KEY", path: "lago.hmac_key" },
        WellKnown { env: "LAGO_WEBHOOK_HMAC_KEY_FILE", path: "lago.hmac_key_file" },
        WellKnown { env: "LAGO_WEBHOOK_PUBLIC_KEY_FILE", path: "lago.public_key_file" },
        WellKnown { env: "LAGO_API_URL", path: "lago.api_url" },
        WellKnown { env: "LAGO_API_KEY", path: "lago.api_key" },
        WellKnown { env: "LAGO_API_KEY_FILE", path: "lago.api_key_file" },
        WellKnown { env: "BRAIN_GATEWAY_URL", path: "gateway.url" },
        WellKnown { env: "AMQP_URL", path: "amqp.url" },
        WellKnown { env: "AMQP_URL_FILE", path: "amqp.url_file" },
        COMMON_WELL_KNOWN[0],
    ];
    OURS.into_iter().chain([COMMON_WELL_KNOWN[1]]).chain(kit_journal::config::WELL_KNOWN).collect()
}

/// Configuration of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses and limits of the two listeners.
    pub listen: ListenSection,
    /// Who signs webhooks and how that is checked.
    pub lago: LagoSection,
    /// Where events go and how the answer is judged.
    pub gateway: GatewaySection,
    /// The RabbitMQ exchange that events are published to as well; none without a URL.
    pub amqp: AmqpSection,
    /// Further sinks by name (`a` to `z`, digits, `-` and `_`), each with a `type`; `type = "http"` has everything that
    /// `[gateway]` has, `type = "amqp"` everything that `[amqp]` has. In the environment `SIDECAR_SINKS__AUDIT__TYPE=http`, `SIDECAR_SINKS__AUDIT__URL` and so on.
    pub sinks: BTreeMap<String, SinkSection>,
    /// Which events go to which sinks: a list of `[[route]]`, see [Routes](routes.md).
    pub route: Vec<RouteSection>,
    /// Where routes come from, what gets no route, and what jq may use.
    pub routes: RoutesSection,
    /// Where and how events are kept.
    pub journal: JournalSection,
    /// Access to the admin API.
    pub admin: AdminSection,
    /// What is logged and how.
    pub log: LogSection,
    /// How the daemon stops.
    pub stop: StopSection,
}

/// Who signs webhooks and how that is checked. The settings here are those of the path
/// `/webhooks/lago`; `[lago.organizations.<name>]` adds `/webhooks/lago/<name>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LagoSection {
    /// `hmac` or `jwt`, as the webhook endpoint is set in Lago. Never taken from the request. When it
    /// is not set: `hmac` where an HMAC key is configured, `jwt` where a public key or `api_url` is.
    pub signature: Option<Signature>,
    /// The organisation's HMAC key, as Lago's UI shows it.
    pub hmac_key: Option<Secret>,
    /// File with HMAC keys, one a line; all of them are accepted while one replaces the other.
    pub hmac_key_file: Option<PathBuf>,
    /// File with Lago's RSA public key in PEM, up to four of them during a rotation. Without it the key
    /// is fetched from Lago.
    pub public_key_file: Option<PathBuf>,
    /// Lago's API, from where the public key is fetched.
    pub api_url: Option<String>,
    /// API key for that.
    pub api_key: Option<Secret>,
    /// File with the API key.
    pub api_key_file: Option<PathBuf>,
    /// Issuer (`iss`) that a JWT must have: the `LAGO_API_URL` of Lago's worker. Not checked when unset.
    pub issuer: Option<String>,
    /// Lago's id of the organisation. Where a body names its organisation (Lago v1.33.3 and later) and
    /// names another one, the webhook is refused.
    pub organization_id: Option<String>,
    /// As `gateway.path`, for events of this path only.
    pub gateway_path: Option<String>,
    /// Seconds between two fetches of the public key, at least, after signatures that do not match.
    pub public_key_refresh_seconds: f64,
    /// Seconds that the old public key is still accepted after a new one was fetched.
    pub public_key_overlap_seconds: f64,
    /// Largest body in bytes.
    pub body_limit_bytes: usize,
    /// Largest request head in bytes; 0 means 64 KiB, or 8 MiB where an organisation uses `jwt`, whose
    /// header is 1.7 times the body.
    pub head_limit_bytes: usize,
    /// Further organisations by name (`a` to `z`, digits, `-` and `_`).
    pub organizations: BTreeMap<String, OrganizationSection>,
}

/// One further organisation, served at `/webhooks/lago/<name>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OrganizationSection {
    /// As in `[lago]`.
    pub signature: Option<Signature>,
    /// As in `[lago]`.
    pub hmac_key: Option<Secret>,
    /// As in `[lago]`.
    pub hmac_key_file: Option<PathBuf>,
    /// As in `[lago]`; without it, the key fetched from Lago: it is one key for all organisations.
    pub public_key_file: Option<PathBuf>,
    /// As in `[lago]`; the one from there when unset.
    pub issuer: Option<String>,
    /// As in `[lago]`. In `jwt` mode the only thing that tells organisations of one Lago apart.
    pub organization_id: Option<String>,
    /// Path template at the gateway for events of this organisation; `gateway.path` when unset.
    pub gateway_path: Option<String>,
}

impl OrganizationSection {
    /// The signature that is set, or the one that the only key is for.
    pub(crate) fn stated_signature(&self) -> Option<Signature> {
        let has_hmac = self.hmac_key.is_some() || self.hmac_key_file.is_some();
        match (self.signature, has_hmac, self.public_key_file.is_some()) {
            (Some(signature), ..) => Some(signature),
            (None, true, false) => Some(Signature::Hmac),
            (None, false, true) => Some(Signature::Jwt),
            (None, ..) => None,
        }
    }
}

/// Signature algorithm of a webhook endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Signature {
    /// HMAC-SHA256 with the organisation's key.
    Hmac,
    /// JSON Web Token (RS256) with the instance's key.
    Jwt,
}

impl From<Signature> for Algorithm {
    fn from(signature: Signature) -> Self {
        match signature {
            Signature::Hmac => Self::Hmac,
            Signature::Jwt => Self::Jwt,
        }
    }
}

impl Default for LagoSection {
    fn default() -> Self {
        Self {
            signature: None,
            hmac_key: None,
            hmac_key_file: None,
            public_key_file: None,
            api_url: None,
            api_key: None,
            api_key_file: None,
            issuer: None,
            organization_id: None,
            gateway_path: None,
            public_key_refresh_seconds: 60.0,
            public_key_overlap_seconds: 86_400.0,
            body_limit_bytes: 4 << 20,
            head_limit_bytes: 0,
            organizations: BTreeMap::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ListenSection {
                public: "0.0.0.0:8081".to_owned(),
                admin: "127.0.0.1:9081".to_owned(),
                ..ListenSection::default()
            },
            lago: LagoSection::default(),
            gateway: GatewaySection::default(),
            amqp: AmqpSection::default(),
            sinks: BTreeMap::new(),
            route: Vec::new(),
            routes: RoutesSection::default(),
            journal: JournalSection {
                path: PathBuf::from("/var/lib/outrigger/lago-webhook-processor.db"),
                ..JournalSection::default()
            },
            admin: AdminSection::default(),
            log: LogSection::default(),
            stop: StopSection::default(),
        }
    }
}

impl Common for Config {
    fn listen(&self) -> &ListenSection {
        &self.listen
    }

    fn log(&self) -> &LogSection {
        &self.log
    }

    fn stop(&self) -> &StopSection {
        &self.stop
    }
}

impl Section for Config {
    fn validate(&self, problems: &mut Problems) {
        self.listen.validate("listen", problems);
        self.log.validate("log", problems);
        self.stop.validate("stop", problems);
        self.journal.validate("journal", problems);
        self.gateway.validate("gateway", problems);
        if self.amqp.is_set() {
            self.amqp.validate("amqp", problems);
        }
        self.amqp.validate_unset("amqp", problems);
        self.lago.validate(problems);
        self.routing().validate(problems);
    }
}

impl Config {
    /// What is said about routing.
    pub fn routing(&self) -> Routing<'_> {
        let own: &[&str] = if self.amqp.is_set() { &[GATEWAY, RABBITMQ] } else { &[GATEWAY] };
        Routing { own, sinks: &self.sinks, route: &self.route, routes: &self.routes }
    }

    /// Whether a sink is sent what the sender sent, with its headers.
    pub(crate) fn sends_raw(&self) -> bool {
        let raw = |section: &GatewaySection| section.format == Format::Raw;
        raw(&self.gateway)
            || self.amqp.is_set() && self.amqp.format == Format::Raw
            || self.sinks.values().any(|sink| match sink {
                SinkSection::Http(section) => raw(section),
                SinkSection::Amqp(section) => section.format == Format::Raw,
            })
    }
}

impl LagoSection {
    fn validate(&self, problems: &mut Problems) {
        let seconds = [
            ("lago.public_key_refresh_seconds", self.public_key_refresh_seconds),
            ("lago.public_key_overlap_seconds", self.public_key_overlap_seconds),
        ];
        for (path, value) in seconds {
            if !(0.0..=31_536_000.0).contains(&value) {
                problems.add(path, "must be a number of seconds from 0 to a year");
            }
        }
        if !(1024..=64 << 20).contains(&self.body_limit_bytes) {
            problems.add("lago.body_limit_bytes", "must be between 1024 and 67108864");
        }
        if self.head_limit_bytes != 0 && !(8192..=128 << 20).contains(&self.head_limit_bytes) {
            problems.add("lago.head_limit_bytes", "must be 0, or between 8192 and 134217728");
        }
        let own = std::iter::once(("lago".to_owned(), &self.gateway_path));
        let named = self.organizations.iter().map(|(name, o)| (format!("lago.organizations.{name}"), &o.gateway_path));
        for (path, template) in own.chain(named) {
            if let Some(mistake) = template.as_deref().and_then(kit_delivery::config::path_mistake) {
                problems.add(&format!("{path}.gateway_path"), &mistake);
            }
        }
        for name in self.organizations.keys() {
            let fits = (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
            if !fits || name == UNNAMED {
                problems.add(
                    &format!("lago.organizations.{name}"),
                    "must be named with 1 to 64 of a-z, 0-9, - and _, and not default",
                );
            }
        }
    }

    /// Whether the path without a name is in use.
    pub fn has_unnamed(&self) -> bool {
        self.organizations.is_empty()
            || self.signature.is_some()
            || self.hmac_key.is_some()
            || self.hmac_key_file.is_some()
            || self.public_key_file.is_some()
    }

    /// Where webhooks are taken: each path, with its signature where the settings leave no doubt about it. What a webhook
    /// endpoint in Lago has to lead to.
    pub fn intakes(&self) -> Vec<(String, Option<Signature>)> {
        let unnamed = self.has_unnamed().then(|| (INTAKE_PATH.to_owned(), self.unnamed().stated_signature()));
        let named =
            self.organizations.iter().map(|(name, own)| (format!("{INTAKE_PATH}/{name}"), own.stated_signature()));
        unnamed.into_iter().chain(named).collect()
    }

    /// Path templates at the gateway that differ from `gateway.path`, by CloudEvents source.
    pub fn gateway_paths(&self) -> BTreeMap<String, String> {
        let own = std::iter::once((UNNAMED, &self.gateway_path));
        let named = self.organizations.iter().map(|(name, organization)| (name.as_str(), &organization.gateway_path));
        let templates = own.chain(named).filter_map(|(name, template)| Some((name, template.clone()?)));
        templates.map(|(name, template)| (format!("lago/{name}"), template)).collect()
    }

    /// The unnamed path's settings in the form of the others.
    pub fn unnamed(&self) -> OrganizationSection {
        OrganizationSection {
            signature: self.signature,
            hmac_key: self.hmac_key.clone(),
            hmac_key_file: self.hmac_key_file.clone(),
            public_key_file: self.public_key_file.clone(),
            issuer: self.issuer.clone(),
            organization_id: self.organization_id.clone(),
            gateway_path: self.gateway_path.clone(),
        }
    }
}
