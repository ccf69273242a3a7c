//! What can be set.

use std::path::PathBuf;
use std::time::Duration;

use kit::client::ClientOptions;
use kit::config::{COMMON_WELL_KNOWN, LogSection, Problems, Section, WellKnown};
use kit::secret::Secret;
use kit_lago::api::api_root;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::seeder::Settings;

/// Variables known under names of their own.
pub(crate) fn well_known() -> Vec<WellKnown> {
    const OURS: [WellKnown; 3] = [
        WellKnown { env: "LAGO_API_URL", path: "lago.api_url" },
        WellKnown { env: "LAGO_API_KEY", path: "lago.api_key" },
        WellKnown { env: "LAGO_API_KEY_FILE", path: "lago.api_key_file" },
    ];
    OURS.into_iter().chain(COMMON_WELL_KNOWN).collect()
}

/// Configuration of the one-shot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which Lago.
    pub lago: LagoSection,
    /// What is to be in it.
    pub catalogue: CatalogueSection,
    /// How long others are waited for.
    pub wait: WaitSection,
    /// What is logged and how.
    pub log: LogSection,
}

/// Which Lago.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LagoSection {
    /// Address of Lago's API, for example `http://lago-api:3000`.
    pub api_url: Option<String>,
    /// API key of the organisation.
    pub api_key: Option<Secret>,
    /// File with the API key.
    pub api_key_file: Option<PathBuf>,
    /// PEM file with certificate authorities to trust beside the platform's.
    pub ca_file: Option<PathBuf>,
}

/// What is to be in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CatalogueSection {
    /// The catalogue file.
    pub file: PathBuf,
    /// Delete what Lago has and the catalogue does not, of the kinds that the catalogue has any of. Also `--prune`.
    pub prune: bool,
}

impl Default for CatalogueSection {
    fn default() -> Self {
        Self { file: PathBuf::from("/etc/outrigger/catalogue.toml"), prune: false }
    }
}

/// How long others are waited for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WaitSection {
    /// Seconds that Lago is waited for, at the start and each time that it goes away. Its first start migrates a database.
    pub seconds: f64,
    /// Seconds that something is waited for to answer at a webhook endpoint before that is registered; 0 registers it unseen.
    pub endpoint_seconds: f64,
}

impl Default for WaitSection {
    fn default() -> Self {
        Self { seconds: 600.0, endpoint_seconds: 120.0 }
    }
}

impl Section for Config {
    fn validate(&self, problems: &mut Problems) {
        match self.lago.api_url.as_deref() {
            None | Some("") => {
                problems.add("lago.api_url", "must be set to Lago's API, for example http://lago-api:3000")
            }
            Some(url) => {
                if let Err(error) = api_root(url) {
                    problems.add("lago.api_url", &error.to_string());
                }
            }
        }
        for (name, seconds) in [("seconds", self.wait.seconds), ("endpoint_seconds", self.wait.endpoint_seconds)] {
            if !(0.0..=86_400.0).contains(&seconds) {
                problems.add(&format!("wait.{name}"), "must be a number of seconds from 0 to a day");
            }
        }
        self.log.validate("log", problems);
    }
}

impl LagoSection {
    /// The API key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn key(&self) -> Result<Secret, String> {
        kit_lago::api::api_key(self.api_key.as_ref(), self.api_key_file.as_deref())
            .map_err(|error| error.to_string())?
            .ok_or_else(|| "must be set: in Lago, Developers, API keys".to_owned())
    }

    /// How Lago is connected to.
    pub fn client(&self) -> ClientOptions {
        ClientOptions { ca_file: self.ca_file.clone(), ..ClientOptions::default() }
    }
}

impl Config {
    /// How the catalogue is applied; `prune` is asked for in the arguments.
    pub fn settings(&self, prune: bool) -> Settings {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Settings {
            prune: prune || self.catalogue.prune,
            wait: seconds(self.wait.seconds),
            wait_for_endpoint: seconds(self.wait.endpoint_seconds),
        }
    }
}
