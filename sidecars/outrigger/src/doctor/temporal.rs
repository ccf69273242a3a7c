//! Temporal: whether its frontend serves, and knows the namespace.
//!
//! A frontend that serves does not prove that the namespace is there: it is made a while after. What the server reads as its
//! dynamic configuration cannot be asked for; that it answers proves that the file was there when it started.

use kit::config::{Problems, Section, Source, read};
use kit_temporal::config::WELL_KNOWN;
use kit_temporal::{ErrorClass, Temporal, TemporalSection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Asking;
use super::finding::{
    SETTING, TEMPORAL_AWAY, TEMPORAL_DYNAMIC, TEMPORAL_NAMESPACE, TEMPORAL_NOT_SERVING, TEMPORAL_REFUSED,
};
use crate::finding::Finding;

const CHECK: &str = "temporal";
const DYNAMIC: &str = "DYNAMIC_CONFIG_FILE_PATH";
/// Relative paths begin here: temporalio/docker-builds, WORKDIR of the server's image.
const WORK_FOLDER: &str = "/etc/temporal";
/// What the server takes where nothing is said; images before 1.30 have a file there.
const SHIPPED: &str = "/etc/temporal/config/dynamicconfig/docker.yaml";

/// The section alone, under the names that the daemons give it.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Only {
    temporal: TemporalSection,
}

impl Section for Only {
    fn validate(&self, problems: &mut Problems) {
        self.temporal.validate("temporal", problems);
    }
}

pub(crate) async fn examine(asking: &Asking<'_>) -> Vec<Finding> {
    if asking.settings.get("TEMPORAL_ADDRESS").is_none() {
        return vec![Finding::unset(CHECK, "TEMPORAL_ADDRESS (temporal:7233) and TEMPORAL_NAMESPACE")];
    }
    let is_ours = |name: &str| name.starts_with("TEMPORAL_") || name.starts_with("SIDECAR_TEMPORAL__");
    let env = asking.settings.all().filter(|(name, _)| is_ours(name));
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let (Only { temporal: mut section }, lines) =
        read::<Only>(&Source { file: None, env, well_known: WELL_KNOWN.to_vec() });
    if !lines.is_empty() {
        return lines.into_iter().map(|line| Finding::of(&SETTING, line)).collect();
    }
    section.connect_timeout_seconds = super::ANSWER_WITHIN.as_secs_f64();
    section.request_timeout_seconds = super::ANSWER_WITHIN.as_secs_f64();
    let address = section.address.clone().unwrap_or_default();
    let temporal = match Temporal::new("temporal", &section, env!("CARGO_PKG_VERSION")) {
        Ok(temporal) => temporal,
        Err(errors) => return errors.iter().map(|error| Finding::of(&SETTING, error.to_string())).collect(),
    };
    let mut findings = Vec::new();
    match temporal.is_serving().await {
        Ok(true) => {}
        Ok(false) => {
            findings.push(Finding::of(&TEMPORAL_NOT_SERVING, format!("{address} answers, and does not serve yet")));
            return findings;
        }
        Err(error) => return vec![failed(&address, &error)],
    }
    let namespace = temporal.namespace().to_owned();
    match temporal.describe_namespace(&namespace).await {
        Ok(_) => findings.push(Finding::good(CHECK, format!("{address} serves, and has the namespace {namespace}"))),
        Err(error) if error.class == ErrorClass::NoNamespace => {
            let fix = format!(
                "temporal operator namespace create -n {namespace} --retention 72h; or mend TEMPORAL_NAMESPACE"
            );
            let text = format!("{address} serves, and has no namespace {namespace}");
            findings.push(Finding::of(&TEMPORAL_NAMESPACE, text).mended_by(fix));
        }
        Err(error) => findings.push(failed(&address, &error)),
    }
    findings.push(dynamic(asking.settings.get(DYNAMIC)));
    findings
}

fn failed(address: &str, error: &kit_temporal::TemporalError) -> Finding {
    let text = format!("{address}: {error}");
    if error.class == ErrorClass::Denied {
        Finding::of(&TEMPORAL_REFUSED, text)
    } else {
        Finding::of(&TEMPORAL_AWAY, text)
    }
}

/// What the server that has answered must have read.
fn dynamic(path: Option<&str>) -> Finding {
    let Some(path) = path else {
        return Finding::unset(CHECK, "DYNAMIC_CONFIG_FILE_PATH, as Temporal has it, for its dynamic configuration");
    };
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{WORK_FOLDER}/{path}") };
    if whole == SHIPPED {
        return Finding::of(&TEMPORAL_DYNAMIC, format!("{DYNAMIC} is {whole}, the image's own"));
    }
    let text = format!("its dynamic configuration is {whole}: without that file it would not have started");
    Finding::good(CHECK, text)
}
