//! What is wrong with what is there: a decision over values.

use kit_authentik::blueprint::{self, Authentication};
use serde_json::Value;

use super::finding::*;
use super::installed::Installed;
use crate::finding::Finding;

/// Judges what is there; `webhook_url` is where the transport has to send to.
pub(super) fn judge(installed: &Installed, webhook_url: &str) -> Vec<Finding> {
    let mut findings = vec![version(installed)];
    findings.extend(or_good("account", "the service account and its token, which does not expire", account(installed)));
    findings.extend(or_good("group", "somebody is in the group", group(installed)));
    let authentication = chosen(installed);
    findings.extend(or_good("mapping", mapping_text(authentication), mappings(installed, authentication)));
    let transport = transport(installed, webhook_url, authentication);
    findings.extend(or_good("transport", "sends once, with the mappings, to the event forwarder", transport));
    findings.extend(or_good("policy", "is the one of this version of outrigger", policy(installed)));
    findings.extend(or_good("rule", "notifies the group by the transport, where the policy says so", rule(installed)));
    findings
}

fn or_good(check: &'static str, good: impl Into<String>, findings: Vec<Finding>) -> Vec<Finding> {
    if findings.is_empty() { vec![Finding::good(check, good)] } else { findings }
}

fn version(installed: &Installed) -> Finding {
    let text = &installed.version_text;
    match installed.version {
        (2024, 10, patch) if patch < 3 => Finding::of(&UNSAFE, format!("Authentik {text} has known holes")),
        (year, month, _) if (year, month) >= (2026, 11) => {
            Finding::of(&TOO_NEW, format!("Authentik {text} is newer than the blueprint"))
        }
        _ => Finding::good("authentik", format!("Authentik {text}")),
    }
}

fn has_header_mapping(installed: &Installed) -> bool {
    (installed.version.0, installed.version.1) >= (2025, 4)
}

fn account(installed: &Installed) -> Vec<Finding> {
    let mut findings = Vec::new();
    let account = installed.account.as_ref();
    match account {
        None => findings.push(Finding::of(&ACCOUNT_MISSING, "there is no user outrigger")),
        Some(account) if account["is_active"] == false => {
            findings.push(Finding::of(&ACCOUNT_INACTIVE, "the user outrigger is not active"));
        }
        Some(_) => {}
    }
    let Some(token) = &installed.token else {
        findings.push(Finding::of(&TOKEN_MISSING, format!("there is no token {}", blueprint::NAME)));
        return findings;
    };
    if token["expiring"] != false {
        let when = token["expires"].as_str().unwrap_or("some day");
        findings.push(Finding::of(&TOKEN_EXPIRES, format!("the token expires {when}")));
    }
    if token["intent"] != "api" {
        let intent = token["intent"].as_str().unwrap_or("nothing");
        findings.push(Finding::of(&TOKEN_INTENT, format!("the token is for {intent}")));
    }
    if account.is_some_and(|account| token["user"] != account["pk"]) {
        findings.push(Finding::of(&TOKEN_OWNER, "the token is not the service account's"));
    }
    findings
}

fn group(installed: &Installed) -> Vec<Finding> {
    match &installed.group {
        None => vec![Finding::of(&GROUP_MISSING, format!("there is no group {}", blueprint::NAME))],
        Some(group) if group["users"].as_array().is_none_or(Vec::is_empty) => {
            vec![Finding::of(&GROUP_EMPTY, format!("nobody is in the group {}", blueprint::NAME))]
        }
        Some(_) => Vec::new(),
    }
}

fn expression(object: Option<&Value>) -> Option<&str> {
    // A form field may end its text in another way.
    object.and_then(|object| object["expression"].as_str()).map(str::trim)
}

/// The variant of the blueprint whose body is there.
fn chosen(installed: &Installed) -> Option<Authentication> {
    let body = expression(installed.body.as_ref())?;
    [Authentication::Hmac, Authentication::Bearer, Authentication::BodySecret]
        .into_iter()
        .find(|authentication| blueprint::body(*authentication).trim() == body)
}

fn mapping_text(authentication: Option<Authentication>) -> &'static str {
    match authentication {
        Some(Authentication::Bearer) => "are those of this version, with the secret in a header",
        Some(Authentication::BodySecret) => "is the one of this version, with the secret in the body",
        _ => "are those of this version, and sign",
    }
}

fn mappings(installed: &Installed, authentication: Option<Authentication>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if installed.body.is_none() {
        findings.push(Finding::of(&BODY_MISSING, format!("there is no mapping {}", blueprint::BODY_MAPPING)));
    } else if authentication.is_none() {
        let text = format!("{} is of another version, or was changed", blueprint::BODY_MAPPING);
        findings.push(Finding::of(&BODY_DIFFERS, text));
    }
    let wanted = authentication.map_or_else(|| blueprint::headers(Authentication::Hmac), blueprint::headers);
    let Some(wanted) = wanted.filter(|_| has_header_mapping(installed)) else { return findings };
    match expression(installed.headers.as_ref()) {
        None => {
            let text = format!("there is no mapping {}", blueprint::HEADERS_MAPPING);
            findings.push(Finding::of(&HEADERS_MISSING, text));
        }
        Some(there) if there != wanted.trim() => {
            let text = format!("{} is of another version, or was changed", blueprint::HEADERS_MAPPING);
            findings.push(Finding::of(&HEADERS_DIFFER, text));
        }
        Some(_) => {}
    }
    findings
}

fn transport(installed: &Installed, webhook_url: &str, authentication: Option<Authentication>) -> Vec<Finding> {
    let Some(transport) = &installed.transport else {
        return vec![Finding::of(&TRANSPORT_MISSING, format!("there is no transport {}", blueprint::NAME))];
    };
    let mut findings = Vec::new();
    if transport["mode"] != "webhook" {
        let mode = transport["mode"].as_str().unwrap_or("nothing");
        findings.push(Finding::of(&TRANSPORT_MODE, format!("its mode is {mode}")));
    }
    if transport["webhook_url"] != webhook_url {
        // Both may hold a password.
        let there = shown(transport["webhook_url"].as_str().unwrap_or_default());
        let text = format!("it sends to {there}, and not to {}", shown(webhook_url));
        findings.push(Finding::of(&TRANSPORT_URL, text));
    }
    let uses = |field: &str, mapping: Option<&Value>| {
        transport[field].is_string() && mapping.is_none_or(|mapping| mapping["pk"] == transport[field])
    };
    let field = if has_header_mapping(installed) { "webhook_mapping_body" } else { "webhook_mapping" };
    if !uses(field, installed.body.as_ref()) {
        findings.push(Finding::of(&TRANSPORT_BODY, format!("its {field} is not {}", blueprint::BODY_MAPPING)));
    }
    let needs_headers = has_header_mapping(installed) && authentication != Some(Authentication::BodySecret);
    if needs_headers && !uses("webhook_mapping_headers", installed.headers.as_ref()) {
        let text = format!("its webhook_mapping_headers is not {}", blueprint::HEADERS_MAPPING);
        findings.push(Finding::of(&TRANSPORT_HEADERS, text));
    }
    if transport["send_once"] != true {
        findings.push(Finding::of(&TRANSPORT_FANS_OUT, "send_once is off"));
    }
    findings
}

/// A URL without what may be secret in it.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            if url.query().is_some() {
                url.set_query(Some("…"));
            }
            url.to_string()
        }
        Err(_) => "no URL".to_owned(),
    }
}

fn policy(installed: &Installed) -> Vec<Finding> {
    match expression(installed.policy.as_ref()) {
        None => vec![Finding::of(&POLICY_MISSING, format!("there is no policy {}", blueprint::NAME))],
        Some(there) if there != blueprint::policy().trim() => {
            vec![Finding::of(&POLICY_DIFFERS, format!("{} is of another version, or was changed", blueprint::NAME))]
        }
        Some(_) => Vec::new(),
    }
}

fn rule(installed: &Installed) -> Vec<Finding> {
    let Some(rule) = &installed.rule else {
        return vec![Finding::of(&RULE_MISSING, format!("there is no rule {}", blueprint::NAME))];
    };
    let mut findings = Vec::new();
    if rule["enabled"] == false {
        findings.push(Finding::of(&RULE_DISABLED, "the rule is switched off"));
    }
    let field = if (installed.version.0, installed.version.1) >= (2025, 8) { "destination_group" } else { "group" };
    if !rule[field].is_string() || installed.group.as_ref().is_some_and(|group| group["pk"] != rule[field]) {
        findings.push(Finding::of(&RULE_TARGET, format!("its {field} is not the group {}", blueprint::NAME)));
    }
    if let Some(transport) = &installed.transport
        && !rule["transports"].as_array().is_some_and(|transports| transports.contains(&transport["pk"]))
    {
        findings.push(Finding::of(&RULE_TRANSPORT, "its transports do not include ours"));
    }
    let is_ours = |binding: &&Value| installed.policy.as_ref().is_none_or(|policy| binding["policy"] == policy["pk"]);
    let (ours, others): (Vec<&Value>, Vec<&Value>) = installed.bindings.iter().partition(is_ours);
    match ours.first() {
        None => findings.push(Finding::of(&BINDING_MISSING, "our policy is not bound to it")),
        Some(binding) if binding["enabled"] != true || binding["negate"] == true => {
            findings.push(Finding::of(&BINDING_OFF, "the binding is switched off or negated"));
        }
        Some(_) => {}
    }
    if others.iter().any(|binding| binding["enabled"] == true) {
        findings.push(Finding::of(&BINDING_OTHER, format!("{} more are bound to it", others.len())));
    }
    findings
}
