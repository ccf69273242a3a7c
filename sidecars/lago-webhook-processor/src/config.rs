//! What can be set.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kit::config::{COMMON_WELL_KNOWN, Problems, ProcessSections, Section, WellKnown};
use kit::secret::Secret;
use kit_journal::JournalSection;
use kit_lago::signature::Algorithm;
use kit_routes::{Outgoing, OutgoingSections};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// What every daemon has: `listen`, `admin`, `log` and `stop`.
    pub process: ProcessSections,
    /// Who signs webhooks and how that is checked.
    pub lago: LagoSection,
    /// Where events go: `gateway`, `amqp`, `sinks`, `route` and `routes`.
    pub outgoing: OutgoingSections,
    /// Where and how events are kept.
    pub journal: JournalSection,
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
    /// PEM file with certificate authorities to trust for `lago.api_url`, beside the platform's.
    pub ca_file: Option<PathBuf>,
    /// Issuer (`iss`) that a JWT must have: the `LAGO_API_URL` of Lago's worker. Not checked when unset.
    pub issuer: Option<String>,
    /// Lago's id of the organisation. Where a body names its organisation (Lago v1.33.3 and later) and
    /// names another one, the webhook is refused.
    pub organization_id: Option<String>,
    /// As `gateway.path`, for events of this path only.
    pub gateway_path: Option<String>,
    /// Seconds between two fetches of the public key, at least, after signatures that do not match. Half a minute from the
    /// last of them Lago is asked again until it has a new key; it tries a webhook for 21 seconds by default.
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
            ca_file: None,
            issuer: None,
            organization_id: None,
            gateway_path: None,
            public_key_refresh_seconds: 5.0,
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
            process: ProcessSections::at_ports(8081, 9081),
            lago: LagoSection::default(),
            outgoing: OutgoingSections::default(),
            journal: JournalSection {
                path: PathBuf::from("/var/lib/outrigger/lago-webhook-processor.db"),
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
        self.lago.validate(problems);
        self.outgoing().validate(problems);
    }
}

impl Config {
    /// What is said about where events go.
    pub fn outgoing(&self) -> Outgoing<'_> {
        Outgoing { paths: self.lago.gateway_paths(), ..self.outgoing.outgoing() }
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
