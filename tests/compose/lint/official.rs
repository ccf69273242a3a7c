//! Official services: as their makers publish them.

use serde_json::Value;

use super::{Finding, Service, tables};
use crate::project::{self, File};

pub(crate) fn look(service: &Service<'_>, findings: &mut Vec<Finding>) {
    let mut find = |rule, message: String| findings.push(service.finding(rule, message));
    if service.get("build").is_some() {
        find(
            "no-build",
            "take build out: official images are used as they are; what is missing becomes a sidecar".into(),
        );
    }
    if service.get("entrypoint").is_some() {
        find("own-command", "take entrypoint out: the image has its own".into());
    }
    for mount in tables::mounts(service).iter().filter(|mount| mount.is_bind() && !mount.read_only) {
        find("no-code-mount", format!("{} can be written from inside: add :ro", mount.source));
    }
    for port in service.list("ports") {
        if !port.starts_with("127.0.0.1:") {
            find(
                "loopback-ports",
                format!("port {port} is open to everybody: \"127.0.0.1:<port>:<port>\"; a proxy opens it"),
            );
        }
    }
    if !service.is_defined() {
        return;
    }
    if let Some(message) = unpinned(service.text("image").unwrap_or("")) {
        find("pinned-image", message);
    }
    let Some(image) = tables::known(service) else {
        if service.get("image").is_some() {
            find(
                "own-command",
                "its image is not in the table: add it to tests/compose/lint/tables.rs with what it may do".into(),
            );
        }
        return;
    };
    let targets = tables::mounts(service).into_iter().map(|mount| mount.target).chain(tables::secret_targets(service));
    for target in targets {
        let allowed = |at: &&str| target == *at || (at.ends_with('/') && target.starts_with(*at));
        if !image.mounts.iter().any(allowed) {
            find(
                "no-code-mount",
                format!("mounts over {target}: {} has {} for that", image.name, image.mounts.join(", ")),
            );
        }
    }
    let command = service.list("command");
    if service.get("command").is_some() && !image.commands.iter().any(|(begins, _)| command.starts_with(begins)) {
        let known: Vec<_> =
            image.commands.iter().map(|(begins, from)| format!("{} ({from})", begins.join(" "))).collect();
        find("own-command", format!("runs {}: {} has {}", command.join(" "), image.name, known.join(", or ")));
    }
    if !service.is_one_shot() {
        healthy(service, &mut find);
        if image.keeps_data && service.get("stop_grace_period").is_none() {
            find(
                "stop-grace",
                "add stop_grace_period: after ten seconds the engine kills it, whatever it is writing".into(),
            );
        }
    }
    let environment = service.environment();
    let dynamic = tables::mounts(service).into_iter().find(|mount| mount.target.contains("/dynamicconfig/"));
    if image.name == "temporalio/server"
        && environment.get("DYNAMIC_CONFIG_FILE_PATH").map(String::as_str) != dynamic.as_ref().map(|mount| mount.target)
    {
        let message =
            "DYNAMIC_CONFIG_FILE_PATH must name the mounted file: without it the server looks for docker.yaml and ends";
        find("temporal-dynamic-config", message.into());
    }
}

/// Why an image is not one version that is changed in one line, if it is not.
fn unpinned(image: &str) -> Option<String> {
    let (name, Some(tag)) = tables::image_name(image) else {
        return Some(format!("{image} has no tag: {image}:${{…_VERSION:-<version>}}"));
    };
    if tag.starts_with("sha256:") {
        return None;
    }
    let default = project::at_defaults(tag);
    // At least major and minor: `7` and `7-alpine` are another image every month.
    let numbered = default.split(['-', '+', 'v']).any(|part| {
        let mut numbers = part.split('.');
        part.contains('.') && numbers.all(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    });
    let variable = tag.starts_with("${") && tag.contains("_VERSION:-");
    match (numbered, variable) {
        (false, _) => {
            Some(format!("the tag '{default}' of {name} is no single version: name major and minor at least"))
        }
        (true, false) => {
            Some(format!("write {name}:${{…_VERSION:-{default}}}, so that an upgrade is one line of .env"))
        }
        (true, true) => None,
    }
}

fn healthy(service: &Service<'_>, find: &mut impl FnMut(&'static str, String)) {
    let Some(check) = service.get("healthcheck") else {
        find("health-check", "add healthcheck with what the image offers, or restart: \"no\" if it runs once".into());
        return;
    };
    let test = check["test"].as_array().and_then(|test| test.first()?.as_str()).or_else(|| check["test"].as_str());
    if test.is_none_or(|test| test == "NONE") || check["disable"] == Value::Bool(true) {
        find("health-check", "its healthcheck asks nothing".into());
    }
    for key in ["interval", "timeout", "retries", "start_period"] {
        if check.get(key).is_none() {
            find("health-check", format!("its healthcheck has no {key}"));
        }
    }
}

/// What has to be together in one file.
pub(crate) fn look_at_file(file: &File, findings: &mut Vec<Finding>) {
    let services = file.section("services");
    let defines = |name: &str| services.get(name).is_some_and(|service| service.get("image").is_some());
    if defines("lago-worker") && !defines("lago-clock") {
        findings.push(Finding {
            file: file.name.clone(),
            service: "lago-clock".to_owned(),
            rule: "clock",
            message: "is missing: without it no subscription is ever billed; add it with ./scripts/start.clock.sh"
                .to_owned(),
        });
    }
}
