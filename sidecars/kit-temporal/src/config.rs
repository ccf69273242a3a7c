//! The section `[temporal]`: where Temporal is and how it is asked.
//!
//! The names of variables are those of Temporal's own command line and SDKs, so that a set-up is reused as it is.
//!
//! Source: temporalio/sdk-go `contrib/envconfig`, docs.temporal.io "Environment configuration".

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kit::config::{Problems, WellKnown};
use kit::secret::Secret;
use kit_delivery::config::{OauthSection, check_seconds, parse_url};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Variables known under Temporal's own names.
pub const WELL_KNOWN: [WellKnown; 14] = [
    WellKnown { env: "TEMPORAL_ADDRESS", path: "temporal.address" },
    WellKnown { env: "TEMPORAL_NAMESPACE", path: "temporal.namespace" },
    WellKnown { env: "TEMPORAL_API_KEY", path: "temporal.api_key" },
    WellKnown { env: "TEMPORAL_API_KEY_FILE", path: "temporal.api_key_file" },
    WellKnown { env: "TEMPORAL_TLS", path: "temporal.tls.enabled" },
    WellKnown { env: "TEMPORAL_TLS_CLIENT_CERT_PATH", path: "temporal.tls.client_cert_file" },
    WellKnown { env: "TEMPORAL_TLS_CLIENT_CERT_DATA", path: "temporal.tls.client_cert_data" },
    WellKnown { env: "TEMPORAL_TLS_CLIENT_KEY_PATH", path: "temporal.tls.client_key_file" },
    WellKnown { env: "TEMPORAL_TLS_CLIENT_KEY_DATA", path: "temporal.tls.client_key_data" },
    WellKnown { env: "TEMPORAL_TLS_SERVER_CA_CERT_PATH", path: "temporal.tls.server_ca_file" },
    WellKnown { env: "TEMPORAL_TLS_SERVER_CA_CERT_DATA", path: "temporal.tls.server_ca_data" },
    WellKnown { env: "TEMPORAL_TLS_SERVER_NAME", path: "temporal.tls.server_name" },
    WellKnown { env: "TEMPORAL_TLS_DISABLE_HOST_VERIFICATION", path: "temporal.tls.disable_host_verification" },
    WellKnown { env: "TEMPORAL_GRPC_META_*", path: "temporal.metadata" },
];

/// The server closes connections that are pinged more often.
///
/// Source: temporalio/temporal `common/dynamicconfig` `frontend.keepAliveMinTime`, 10 s.
const LEAST_KEEP_ALIVE: f64 = 10.0;

/// What a namespace can have: an hour (`LEAST_RETENTION`), and what does not end.
const RETENTIONS: std::ops::RangeInclusive<f64> = 3_600.0..=3_153_600_000.0;

/// Where Temporal is and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TemporalSection {
    /// Host and port of Temporal's frontend (gRPC), for example `temporal:7233`.
    pub address: Option<String>,
    /// Namespace whose workflows are meant where nothing else is said.
    pub namespace: String,
    /// API key (Temporal Cloud); turns TLS on.
    pub api_key: Option<Secret>,
    /// File with the API key.
    pub api_key_file: Option<PathBuf>,
    /// Access tokens by OAuth2 client credentials, for a server with an authorizer.
    pub oauth: OauthSection,
    /// Encryption, and a certificate of our own.
    pub tls: TlsSection,
    /// Further gRPC metadata by name, as `TEMPORAL_GRPC_META_<NAME>`.
    pub metadata: BTreeMap<String, Secret>,
    /// Seconds to connect, name look-up and TLS included.
    pub connect_timeout_seconds: f64,
    /// Seconds that an answer may take.
    pub request_timeout_seconds: f64,
    /// Seconds between two pings of a quiet connection, at least 10: the server closes what pings more often.
    pub keep_alive_seconds: f64,
    /// Seconds for which a namespace keeps what has ended, at least 3600; of several the shortest. Only used where we may
    /// not ask Temporal for it (`DescribeNamespace` is refused): with 0 an hour is assumed then, the least there is, and
    /// `/readyz` says so.
    pub retention_seconds: f64,
}

/// Encryption, and a certificate of our own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    /// `true` or `false`. When it is not set: with TLS where an API key or anything else of this section is set.
    #[serde(deserialize_with = "yes_or_no")]
    #[schemars(with = "Option<bool>")]
    pub enabled: Option<bool>,
    /// PEM file with our certificate, and those between it and its authority.
    pub client_cert_file: Option<PathBuf>,
    /// The same in PEM itself.
    pub client_cert_data: Option<Secret>,
    /// PEM file with the certificate's private key.
    pub client_key_file: Option<PathBuf>,
    /// The same in PEM itself.
    pub client_key_data: Option<Secret>,
    /// PEM file with the certificate authority of the server; the system's authorities when unset.
    pub server_ca_file: Option<PathBuf>,
    /// The same in PEM itself.
    pub server_ca_data: Option<Secret>,
    /// Name that the server's certificate must have, where it is not the host of the address.
    pub server_name: Option<String>,
    /// Must be `false`: a certificate that nobody looks at protects from nobody.
    pub disable_host_verification: bool,
}

/// The environment has texts only, and nothing by default to tell what is meant.
fn yes_or_no<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Nothing,
        Truth(bool),
        Text(String),
    }
    match Given::deserialize(deserializer)? {
        Given::Nothing => Ok(None),
        Given::Truth(value) => Ok(Some(value)),
        Given::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Some(true)),
            "false" | "0" | "no" | "off" => Ok(Some(false)),
            _ => Err(serde::de::Error::custom("must be true or false")),
        },
    }
}

impl Default for TemporalSection {
    fn default() -> Self {
        Self {
            address: None,
            namespace: "default".to_owned(),
            api_key: None,
            api_key_file: None,
            oauth: OauthSection::default(),
            tls: TlsSection::default(),
            metadata: BTreeMap::new(),
            connect_timeout_seconds: 5.0,
            request_timeout_seconds: 10.0,
            keep_alive_seconds: 30.0,
            retention_seconds: 0.0,
        }
    }
}

impl TemporalSection {
    /// Whether the connection is encrypted.
    pub fn uses_tls(&self) -> bool {
        let says_something = TlsSection { enabled: None, ..self.tls.clone() } != TlsSection::default();
        let has_key = self.api_key.is_some() || self.api_key_file.is_some();
        self.tls.enabled.unwrap_or(says_something || has_key)
    }

    /// Checks the values that no file is needed for; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        let mut problem = |name: &str, text: &str| problems.add(&format!("{prefix}.{name}"), text);
        match self.address.as_deref() {
            None | Some("") => problem("address", "must be set to Temporal's host and port, for example temporal:7233"),
            Some(address) => {
                if let Some(text) = address_mistake(address) {
                    problem("address", text);
                }
            }
        }
        if let Some(text) = namespace_mistake(&self.namespace) {
            problem("namespace", text);
        }
        let has_key = self.api_key.is_some() || self.api_key_file.is_some();
        if has_key && self.oauth.token_url.is_some() {
            problem("api_key", "and oauth.token_url are both set: there is one authorization, keep one");
        }
        if let Some(url) = &self.oauth.token_url {
            if let Err(text) = parse_url(url) {
                problem("oauth.token_url", text);
            }
            if self.oauth.client_id.is_empty() {
                problem("oauth.client_id", "must be set when oauth.token_url is");
            }
        }
        for name in self.metadata.keys() {
            if let Some(text) = metadata_mistake(name) {
                problem("metadata", &format!("{name:?} {text}"));
            }
        }
        let tls = &self.tls;
        if tls.disable_host_verification {
            let text = "must be false: nothing is sent to a server that cannot prove who it is. For a certificate of your \
                        own authority set TEMPORAL_TLS_SERVER_CA_CERT_PATH, for another name in it TEMPORAL_TLS_SERVER_NAME";
            problem("tls.disable_host_verification", text);
        }
        let says_something = TlsSection { enabled: None, ..tls.clone() } != TlsSection::default();
        if tls.enabled == Some(false) && has_key {
            problem("tls.enabled", "must not be false with an API key, which would be sent unencrypted");
        } else if tls.enabled == Some(false) && says_something && !tls.disable_host_verification {
            problem("tls.enabled", "must not be false with certificates or a server's name, which mean nothing then");
        }
        let has_certificate = tls.client_cert_file.is_some() || tls.client_cert_data.is_some();
        let has_private_key = tls.client_key_file.is_some() || tls.client_key_data.is_some();
        if has_certificate != has_private_key {
            problem("tls.client_key_file", "must be set together with a client certificate, or neither");
        }
        for (file, data, name) in [
            (tls.client_cert_file.is_some(), tls.client_cert_data.is_some(), "tls.client_cert_file"),
            (tls.client_key_file.is_some(), tls.client_key_data.is_some(), "tls.client_key_file"),
            (tls.server_ca_file.is_some(), tls.server_ca_data.is_some(), "tls.server_ca_file"),
        ] {
            if file && data {
                problem(name, "is given as a file and as data: keep one");
            }
        }
        if !self.keep_alive_seconds.is_finite() || !(LEAST_KEEP_ALIVE..=3_600.0).contains(&self.keep_alive_seconds) {
            problem(
                "keep_alive_seconds",
                "must be a number of seconds from 10, which is what the server allows, to an hour",
            );
        }
        if self.retention_seconds != 0.0 && !RETENTIONS.contains(&self.retention_seconds) {
            problem(
                "retention_seconds",
                "must be a number of seconds from 3600, below which Temporal takes none, to 3153600000, or 0 for not known",
            );
        }
        for (name, value) in [
            ("connect_timeout_seconds", self.connect_timeout_seconds),
            ("request_timeout_seconds", self.request_timeout_seconds),
        ] {
            check_seconds(&format!("{prefix}.{name}"), value, problems);
        }
    }

    pub(crate) fn retention(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.retention_seconds).ok().filter(|retention| !retention.is_zero())
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.request_timeout_seconds).unwrap_or(Duration::from_secs(10))
    }
}

/// What is wrong with an address, if anything is. It is a bare host and port: `[::1]:7233` for IPv6.
pub fn address_mistake(address: &str) -> Option<&'static str> {
    if address.contains("://") {
        return Some("must be a host and a port without http:// or https://; TEMPORAL_TLS=true turns TLS on");
    }
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        let is_host = !host.is_empty() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'));
        is_host && !host.contains(['/', '@', ' ', '?', '#']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    (!has_port).then_some("must be a host and a port, for example temporal:7233")
}

/// What is wrong with the name of a namespace, if anything is.
pub fn namespace_mistake(name: &str) -> Option<&'static str> {
    let fits =
        (1..=255).contains(&name.len()) && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/');
    (!fits).then_some("must be the name of a namespace, of 1 to 255 bytes")
}

/// Metadata that the client sets itself.
const RESERVED: [&str; 6] =
    ["authorization", "temporal-namespace", "client-name", "client-version", "content-type", "te"];

fn metadata_mistake(name: &str) -> Option<&'static str> {
    let name = metadata_name(name);
    if name.starts_with("grpc-") || name.ends_with("-bin") || http::HeaderName::try_from(name.as_str()).is_err() {
        Some("cannot be the name of gRPC metadata")
    } else if RESERVED.contains(&name.as_str()) && name != "authorization" {
        Some("is set by the client itself")
    } else {
        None
    }
}

/// The metadata that a key means: the environment cannot hold dashes.
pub(crate) fn metadata_name(key: &str) -> String {
    key.to_ascii_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit::config::{Section, Source, read};

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(default)]
    struct Config {
        temporal: TemporalSection,
    }

    impl Section for Config {
        fn validate(&self, problems: &mut Problems) {
            self.temporal.validate("temporal", problems);
        }
    }

    fn read_from(env: &[(&str, &str)]) -> (TemporalSection, Vec<String>) {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let source = Source { file: None, env, well_known: WELL_KNOWN.to_vec() };
        let (config, mistakes) = read::<Config>(&source);
        (config.temporal, mistakes)
    }

    #[test]
    fn the_variables_are_those_of_temporals_own_tools() {
        let (section, mistakes) = read_from(&[
            ("TEMPORAL_ADDRESS", "ns.tmprl.cloud:7233"),
            ("TEMPORAL_NAMESPACE", "ns.acct"),
            ("TEMPORAL_TLS", "true"),
            ("TEMPORAL_TLS_SERVER_NAME", "other"),
            ("TEMPORAL_TLS_CLIENT_CERT_DATA", "c"),
            ("TEMPORAL_TLS_CLIENT_KEY_PATH", "/k"),
            ("TEMPORAL_GRPC_META_X_TEAM", "billing"),
            ("TEMPORAL_GRPC_META_", "nothing"),
        ]);

        assert_eq!(mistakes, [""; 0]);
        assert_eq!((section.namespace.as_str(), section.tls.enabled), ("ns.acct", Some(true)));
        assert_eq!(section.metadata, BTreeMap::from([("x_team".to_owned(), Secret::from("billing".to_owned()))]));
        assert_eq!(metadata_name("x_team"), "x-team");
        assert!(section.uses_tls());
    }

    #[test]
    fn a_key_or_a_certificate_means_tls_and_cannot_go_without() {
        let uses = |env: &[(&str, &str)]| read_from(env).0.uses_tls();
        assert!(!uses(&[]) && !uses(&[("TEMPORAL_TLS", "false")]));
        assert!(uses(&[("TEMPORAL_API_KEY", "k")]) && uses(&[("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "/ca")]));
        for (name, value) in [("TEMPORAL_API_KEY", "k"), ("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "/ca")] {
            let (_, mistakes) = read_from(&[("TEMPORAL_ADDRESS", "t:1"), ("TEMPORAL_TLS", "false"), (name, value)]);
            assert!(mistakes.len() == 1 && mistakes[0].starts_with("TEMPORAL_TLS: must not be false"), "{mistakes:?}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_variable() {
        let (_, mistakes) = read_from(&[
            ("TEMPORAL_ADDRESS", "https://temporal:7233"),
            ("TEMPORAL_NAMESPACE", "a b"),
            ("TEMPORAL_TLS", "perhaps"),
            ("TEMPORAL_TLS_DISABLE_HOST_VERIFICATION", "true"),
            ("TEMPORAL_TLS_CLIENT_CERT_PATH", "/c"),
            ("TEMPORAL_GRPC_META_CLIENT_NAME", "me"),
            ("SIDECAR_TEMPORAL__KEEP_ALIVE_SECONDS", "5"),
            ("SIDECAR_TEMPORAL__RETENTION_SECONDS", "72"),
        ]);

        let all = mistakes.join("\n");
        for expected in [
            "TEMPORAL_ADDRESS: must be a host and a port without http://",
            "TEMPORAL_NAMESPACE: must be the name of a namespace",
            "TEMPORAL_TLS: must be true or false",
            "TEMPORAL_TLS_DISABLE_HOST_VERIFICATION: must be false",
            "TEMPORAL_TLS_CLIENT_KEY_PATH: must be set together with a client certificate",
            "TEMPORAL_GRPC_META_*: \"client_name\" is set by the client itself",
            "SIDECAR_TEMPORAL__KEEP_ALIVE_SECONDS: must be a number of seconds from 10",
            "SIDECAR_TEMPORAL__RETENTION_SECONDS: must be a number of seconds from 3600",
        ] {
            assert!(all.contains(expected), "{expected}:\n{all}");
        }
        assert_eq!(mistakes.len(), 8, "{all}");
        let (_, mistakes) = read_from(&[]);
        assert_eq!(mistakes, ["TEMPORAL_ADDRESS: must be set to Temporal's host and port, for example temporal:7233"]);
    }

    #[test]
    fn an_address_is_a_bare_host_and_port() {
        for good in ["temporal:7233", "127.0.0.1:7233", "[::1]:7233", "a.b-c.tmprl.cloud:443"] {
            assert_eq!(address_mistake(good), None, "{good}");
        }
        for bad in
            ["", "temporal", "temporal:", "temporal:0", ":7233", "::1:7233", "a/b:1", "u@h:1", "h:1?x", "dns:///h:1"]
        {
            assert!(address_mistake(bad).is_some(), "{bad}");
        }
    }
}
