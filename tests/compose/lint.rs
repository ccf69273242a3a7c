//! What every compose file has to keep to: the official images stay as they are, the sidecars stay locked in. Each rule
//! has a name; a finding names the file, the service and what to do.

mod official;
mod sidecars;
mod tables;
mod variables;

mod refusals;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::project::{self, File};

/// The rules, in the order in which they are applied.
pub(crate) const RULES: &[(&str, &str)] = &[
    // All services.
    ("no-socket", "nobody is given the engine's socket: who has it has the host"),
    ("no-privilege", "no privileges, devices or namespaces of the host"),
    ("least-privilege", "capabilities are dropped, and none can be gained"),
    ("logging-limits", "logs are bounded"),
    ("logging-tag", "lines in Loki have the name of their container"),
    ("limits", "memory and processes are bounded"),
    ("restart-policy", "what runs comes back, what runs once does not"),
    ("networks", "networks are declared, and databases have no way out"),
    ("secrets", "secrets are files that `compose/up` makes"),
    ("no-literal-secret", "no key or password stands in a file of the repository"),
    // Official services.
    ("no-build", "official images are not built here"),
    ("pinned-image", "an image is one version, and changed in one line"),
    ("no-code-mount", "nothing is mounted over what the image brought"),
    ("own-command", "entrypoint and command are the image's own"),
    ("health-check", "what runs says whether it is well"),
    ("loopback-ports", "ports are open to this host only, unless somebody opens them"),
    ("stop-grace", "what keeps data gets time to put it away"),
    ("clock", "Lago without its clock bills nothing"),
    ("temporal-dynamic-config", "the server is told where its dynamic configuration is"),
    // Sidecars.
    ("sidecar-user", "nobody's user, by number"),
    ("sidecar-read-only", "nothing of the image can be written"),
    ("sidecar-tmpfs", "what can be written cannot be run"),
    ("sidecar-grace", "a stop has time to drain"),
    ("sidecar-secrets", "secrets come as files"),
    ("sidecar-admin", "the admin listener has no port on the host"),
    ("sidecar-profile", "each is switched by a profile of its own name"),
    ("sidecar-image", "nobody else's image is run under the name of ours"),
    ("sidecar-order", "they start in any order"),
    // Variables.
    ("explained", "every variable is explained in .env.example"),
    ("used", "every variable of .env.example is used"),
    ("one-default", "a version has one default"),
];

/// What is wrong, and what to do about it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) file: String,
    /// Empty for what concerns no single service.
    pub(crate) service: String,
    pub(crate) rule: &'static str,
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, service, rule, message } = self;
        let service = if service.is_empty() { String::new() } else { format!(" {service}:") };
        write!(f, "compose/{file}:{service} {rule}: {message}")
    }
}

/// A service as one file has it. Overlays add to what another file defines: what must be there is asked of the file that
/// names the image, what must not be there of all.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    pub(crate) file: &'a File,
    pub(crate) name: &'a str,
    value: &'a Value,
}

impl<'a> Service<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// A list of strings, or the one string that stands for it.
    pub(crate) fn list(&self, key: &str) -> Vec<&'a str> {
        match self.get(key) {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// The environment, whether written as a mapping or as a list.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.pairs("environment")
    }

    fn pairs(&self, key: &str) -> BTreeMap<String, String> {
        let of = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match self.get(key) {
            Some(Value::Object(map)) => map.iter().map(|(name, value)| (name.clone(), of(value))).collect(),
            Some(Value::Array(list)) => {
                let pairs =
                    list.iter().filter_map(Value::as_str).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
            }
            _ => BTreeMap::new(),
        }
    }

    /// Defined here, and not only added to.
    pub(crate) fn is_defined(&self) -> bool {
        self.get("image").is_some() || self.get("build").is_some()
    }

    /// One of ours.
    pub(crate) fn is_sidecar(&self) -> bool {
        self.text("image").is_some_and(|image| image.starts_with("${SIDECAR_REGISTRY"))
    }

    /// Runs once and ends.
    pub(crate) fn is_one_shot(&self) -> bool {
        self.text("restart") == Some("no")
    }

    pub(crate) fn finding(&self, rule: &'static str, message: impl Into<String>) -> Finding {
        Finding { file: self.file.name.clone(), service: self.name.to_owned(), rule, message: message.into() }
    }
}

/// Everything that the rules look at.
pub(crate) struct Project<'a> {
    pub(crate) files: &'a [File],
    /// The text of `.env.example`.
    pub(crate) example: &'a str,
    /// The text of `secrets/generated`.
    pub(crate) generated: &'a str,
}

impl Project<'_> {
    pub(crate) fn services(&self) -> impl Iterator<Item = Service<'_>> {
        let of =
            |file| File::section(file, "services").into_iter().map(move |(name, value)| Service { file, name, value });
        self.files.iter().flat_map(of)
    }
}

/// Applies all rules.
pub(crate) fn lint(project: &Project<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in project.services() {
        common(project, &service, &mut findings);
        if service.is_sidecar() {
            sidecars::look(&service, &mut findings);
        } else {
            official::look(&service, &mut findings);
        }
    }
    for file in project.files {
        networks(file, &mut findings);
        official::look_at_file(file, &mut findings);
    }
    variables::look(project, &mut findings);
    findings.sort();
    findings.dedup();
    findings
}

/// What is asked of every service.
fn common(project: &Project<'_>, service: &Service<'_>, findings: &mut Vec<Finding>) {
    let mut find = |rule, message: String| findings.push(service.finding(rule, message));
    for mount in tables::mounts(service) {
        if mount.source.ends_with(".sock") || ["/run", "/var/run", "/"].contains(&mount.source.trim_end_matches(['/']))
        {
            find(
                "no-socket",
                format!("mounts {}: take it out; what needs the engine runs beside it, not in it", mount.source),
            );
        }
    }
    for key in [
        "privileged",
        "devices",
        "device_cgroup_rules",
        "pid",
        "ipc",
        "uts",
        "cgroup_parent",
        "userns_mode",
        "network_mode",
    ] {
        if let Some(value) = service.get(key).filter(|value| **value != Value::Bool(false)) {
            find(
                "no-privilege",
                format!("has {key}: {value}; take it out, or run this on the host and not in a container"),
            );
        }
    }
    for capability in service.list("cap_add") {
        if !tables::CAPABILITIES.contains(&capability) {
            find("no-privilege", format!("is given {capability}: only {} are", tables::CAPABILITIES.join(", ")));
        }
    }
    if !service.is_defined() {
        return;
    }
    if !service.list("cap_drop").contains(&"ALL") {
        find("least-privilege", "add cap_drop: [ALL], and cap_add with what its entrypoint needs".into());
    }
    if !service.list("security_opt").contains(&"no-new-privileges:true") {
        find("least-privilege", "add security_opt: [\"no-new-privileges:true\"]".into());
    }
    let logging = |option: &str| service.get("logging").and_then(|logging| logging.get("options")?.get(option));
    if logging("max-size").is_none() {
        find("logging-limits", "add logging with the options max-size and max-file".into());
    }
    if logging("tag").is_none_or(|tag| tag != "{{.Name}}") {
        find(
            "logging-tag",
            "add the logging option tag: \"{{.Name}}\": by it config/vector/vector.yaml knows whose a line is".into(),
        );
    }
    for key in ["mem_limit", "pids_limit"] {
        if service.get(key).is_none() {
            find("limits", format!("add {key}: a container that takes everything stops the others"));
        }
    }
    match service.get("restart").map(|restart| restart.as_str().unwrap_or("")) {
        Some("unless-stopped" | "no") => {}
        Some(_) => find("restart-policy", "restart is unless-stopped, or the string \"no\" for what runs once".into()),
        None => find("restart-policy", "add restart: unless-stopped, or \"no\" for what runs once".into()),
    }
    let awaited = project.services().any(|other| {
        other.get("depends_on").and_then(|on| on.get(service.name)).and_then(|on| on["condition"].as_str())
            == Some("service_completed_successfully")
    });
    if awaited && !service.is_one_shot() {
        find("restart-policy", "others wait until it has ended: restart must be \"no\"".into());
    }
    for secret in tables::secrets(service) {
        let path = service.file.section("secrets").get(secret).and_then(|secret| secret["file"].as_str());
        let Some(name) = path.and_then(|path| path.strip_prefix("./secrets/")) else {
            find(
                "secrets",
                format!("secret {secret} is no file ./secrets/… of this compose file: add it under secrets"),
            );
            continue;
        };
        let lines = project.generated.lines().filter(|line| !line.starts_with('#'));
        let made =
            lines.filter_map(|line| line.split_whitespace().next()).any(|made| made == name.trim_end_matches(".pub"));
        if !made {
            find("secrets", format!("nothing makes secrets/{name}: add a line to compose/secrets/generated"));
        }
    }
    for message in tables::literal_secrets(service) {
        find("no-literal-secret", message);
    }
}

/// The networks of a file, and who is in them.
fn networks(file: &File, findings: &mut Vec<Finding>) {
    let declared = file.section("networks");
    let mut find = |service: &str, message: String| {
        findings.push(Finding { file: file.name.clone(), service: service.to_owned(), rule: "networks", message });
    };
    if declared.get("outrigger-internal").is_some_and(|network| network["internal"] != Value::Bool(true)) {
        find("", "outrigger-internal must have internal: true in every file".into());
    }
    for (name, value) in file.section("services") {
        let service = Service { file, name, value };
        let joined = service.list("networks");
        if service.is_defined() && joined.is_empty() {
            find(name, "add networks: without any it joins the project's default, which has a way out".into());
        }
        for network in joined {
            if !declared.contains_key(network) {
                find(name, format!("network {network} is not declared in this file: add it under networks"));
            }
        }
    }
}

#[test]
fn every_compose_file_keeps_to_the_rules() {
    let files: Vec<_> = project::names().iter().map(|name| File::parse(name, &project::read(name)).unwrap()).collect();
    let (example, generated) = (project::read(".env.example"), project::read("secrets/generated"));
    let project = Project { files: &files, example: &example, generated: &generated };

    let findings: Vec<_> = lint(&project).iter().map(ToString::to_string).collect();

    assert!(project.services().count() > 20, "the files are not read");
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}
