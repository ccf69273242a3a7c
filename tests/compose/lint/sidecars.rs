//! Sidecars: locked in.

use serde_json::Value;

use super::{Finding, Service, tables};

/// Ports of admin listeners: 9081, 9082, …
const ADMIN_PORTS: &str = "90";

pub(crate) fn look(service: &Service<'_>, findings: &mut Vec<Finding>) {
    let mut find = |rule, message: String| findings.push(service.finding(rule, message));
    let number = |id: &str| id.parse::<u32>().is_ok_and(|id| id > 0);
    let user = service.text("user").unwrap_or("");
    if !user.split_once(':').is_some_and(|(user, group)| number(user) && number(group)) {
        find("sidecar-user", "add user: \"65532:65532\": by number, because the image has no names, and not 0".into());
    }
    if service.get("read_only") != Some(&Value::Bool(true)) {
        find("sidecar-read-only", "add read_only: true; what it writes is its volume".into());
    }
    if !service.list("cap_add").is_empty() {
        find("least-privilege", "take cap_add out: a sidecar needs no capability".into());
    }
    let tmpfs = service.list("tmpfs");
    if tmpfs.is_empty() {
        find("sidecar-tmpfs", "add tmpfs: [\"/tmp:rw,noexec,nosuid,nodev,size=8m\"]".into());
    }
    for entry in tmpfs {
        for option in ["noexec", "nosuid", "nodev", "size="] {
            if !entry.contains(option) {
                find("sidecar-tmpfs", format!("{entry} lacks {option}"));
            }
        }
    }
    if service.get("stop_grace_period").is_none() {
        find("sidecar-grace", "add stop_grace_period: 15s: it drains for 8 seconds".into());
    }
    let asked = |check: &Value| check["test"][0] == "CMD" && check["test"][2] == "health";
    if !service.is_one_shot() && !service.get("healthcheck").is_some_and(asked) {
        let message = "add healthcheck with [\"CMD\", \"/usr/bin/<daemon>\", \"health\"]: a scratch image has no shell";
        find("health-check", message.into());
    }
    for (name, value) in service.environment() {
        if tables::is_secret(&name) && !value.is_empty() {
            find("sidecar-secrets", format!("{name} is a secret in the environment: {name}_FILE, and a secret"));
        }
    }
    for port in service.list("ports") {
        if port.rsplit(':').next().is_some_and(|inside| inside.starts_with(ADMIN_PORTS)) {
            find("sidecar-admin", format!("port {port} opens the admin listener to the host: take it out"));
        }
        if !port.starts_with("127.0.0.1:") && !port.contains(":-127.0.0.1:") {
            find("loopback-ports", format!("port {port} is open to everybody: begin with 127.0.0.1"));
        }
    }
    if service.list("profiles") != [service.name] {
        find(
            "sidecar-profile",
            format!("add profiles: [{}]: it is switched on and off without touching the rest", service.name),
        );
    }
    if service.text("pull_policy") != Some("never") {
        find(
            "sidecar-image",
            "add pull_policy: never: compose v2 asks the registry first, where the name is whoever's; compose/up gets images".into(),
        );
    }
    if service.get("depends_on").is_some() {
        find("sidecar-order", "take depends_on out: whatever it needs may be away".into());
    }
}
