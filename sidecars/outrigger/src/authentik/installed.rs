//! What is there, as Authentik's API tells it.
//!
//! Source of paths and fields: goauthentik/authentik `authentik/events/api/`, `authentik/core/api/`,
//! `authentik/policies/api/` at 2024.10.1 and 2026.2.2.

use kit::client::read_whole;
use kit::error::chain;
use kit::secret::Secret;
use kit_authentik::blueprint::{BODY_MAPPING, HEADERS_MAPPING, NAME, PERMISSIONS};
use kit_authentik::envelope::SERVICE_ACCOUNT;
use serde_json::Value;

use super::finding::{AWAY, OTHER, READER_REFUSED, TOKEN_LACKS, TOKEN_REFUSED, TOKEN_SUPERUSER};
use crate::finding::Finding;

/// A page of objects with long expressions.
const ANSWER_BYTES: usize = 8 << 20;

/// Authentik's API, for one who asks.
pub(super) struct Api<'a> {
    client: &'a reqwest::Client,
    base: String,
    token: &'a Secret,
}

/// An answer: its status, and its body where that is JSON.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Option<Value>,
}

impl<'a> Api<'a> {
    pub(super) fn new(client: &'a reqwest::Client, url: &str, token: &'a Secret) -> Self {
        let base = url.trim_end_matches('/');
        Self { client, base: base.strip_suffix("/api/v3").unwrap_or(base).to_owned(), token }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, Finding> {
        self.send(self.client.get(self.url(path))).await
    }

    pub(super) async fn post(&self, path: &str) -> Result<Answer, Finding> {
        self.send(self.client.post(self.url(path))).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v3/{path}", self.base)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Finding> {
        let away = |error: &dyn std::error::Error| Finding::of(&AWAY, format!("Authentik: {}", chain(error)));
        let answer = request.bearer_auth(self.token.expose()).send().await;
        let answer = answer.map_err(|error| away(&error.without_url()))?;
        let status = answer.status().as_u16();
        if matches!(status, 502..=504) {
            return Err(Finding::of(&AWAY, format!("Authentik answers {status}: it is starting, or down")));
        }
        let body = read_whole(answer, ANSWER_BYTES).await.map_err(|error| away(&error))?;
        Ok(Answer { status, body: serde_json::from_slice(&body).ok() })
    }

    /// The one object of a kind that has this name.
    async fn find(&self, path: &str, field: &str, value: &str) -> Result<Option<Value>, Finding> {
        Ok(self.find_all(path, field, value).await?.into_iter().next())
    }

    async fn find_all(&self, path: &str, field: &str, value: &str) -> Result<Vec<Value>, Finding> {
        let answer = self.get(&format!("{path}?{field}={value}&page_size=100")).await?;
        match answer.status {
            200 => {}
            401 | 403 => {
                let text = format!("GET {path} answers {}", answer.status);
                return Err(Finding::of(&READER_REFUSED, text));
            }
            status => return Err(Finding::of(&OTHER, format!("GET {path} answers {status}"))),
        }
        let Some(results) = answer.body.as_ref().and_then(|body| body["results"].as_array()) else {
            return Err(Finding::of(&OTHER, format!("GET {path} is answered without results")));
        };
        // A version that does not know the filter answers with everything.
        Ok(results.iter().filter(|object| object[field] == value).cloned().collect())
    }
}

/// What the blueprint makes, as far as it is there.
#[derive(Debug, Default)]
pub(super) struct Installed {
    /// Year and month of the version, and the number behind them.
    pub(super) version: (u32, u32, u32),
    pub(super) version_text: String,
    pub(super) account: Option<Value>,
    pub(super) token: Option<Value>,
    pub(super) group: Option<Value>,
    pub(super) body: Option<Value>,
    pub(super) headers: Option<Value>,
    pub(super) transport: Option<Value>,
    pub(super) policy: Option<Value>,
    pub(super) rule: Option<Value>,
    /// Of the rule.
    pub(super) bindings: Vec<Value>,
}

/// Reads everything.
pub(super) async fn read(api: &Api<'_>) -> Result<Installed, Finding> {
    let (version_text, version) = version(api, &READER_REFUSED).await?;
    let rule = api.find("events/rules/", "name", NAME).await?;
    let bindings = match rule.as_ref().and_then(|rule| rule["pk"].as_str()) {
        Some(rule) => api.find_all("policies/bindings/", "target", rule).await?,
        None => Vec::new(),
    };
    Ok(Installed {
        version,
        version_text,
        account: api.find("core/users/", "username", SERVICE_ACCOUNT).await?,
        token: api.find("core/tokens/", "identifier", NAME).await?,
        group: api.find("core/groups/", "name", NAME).await?,
        body: api.find("propertymappings/notification/", "name", BODY_MAPPING).await?,
        headers: api.find("propertymappings/notification/", "name", HEADERS_MAPPING).await?,
        transport: api.find("events/transports/", "name", NAME).await?,
        policy: api.find("policies/expression/", "name", NAME).await?,
        rule,
        bindings,
    })
}

/// Which version it is. Every user may ask that.
async fn version(api: &Api<'_>, refused: &crate::finding::Known) -> Result<(String, (u32, u32, u32)), Finding> {
    let answer = api.get("admin/version/").await?;
    if matches!(answer.status, 401 | 403) {
        return Err(Finding::of(refused, format!("Authentik refuses the token ({})", answer.status)));
    }
    let text = answer.body.as_ref().and_then(|body| body["version_current"].as_str());
    let parsed = text.and_then(parse_version).filter(|_| answer.status == 200);
    match (text, parsed) {
        (Some(text), Some(version)) => Ok((text.to_owned(), version)),
        _ => Err(Finding::of(&OTHER, format!("admin/version/ answers {} without a version", answer.status))),
    }
}

/// `2026.5.0-rc1` is 2026.5.0.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let digits = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next().and_then(|part| part.parse().ok());
    let mut parts = text.splitn(3, '.');
    Some((digits(parts.next()?)?, digits(parts.next()?)?, parts.next().and_then(digits).unwrap_or(0)))
}

/// What the event forwarder itself would meet with its token.
pub(super) async fn ask_as_service(api: &Api<'_>) -> Vec<Finding> {
    let check = "token";
    if let Err(finding) = version(api, &TOKEN_REFUSED).await {
        return vec![finding];
    }
    let mut findings = Vec::new();
    match api.get("core/users/me/").await {
        Ok(answer) => {
            let is_superuser = answer.body.as_ref().is_some_and(|body| body["user"]["is_superuser"] == true);
            if is_superuser {
                let name = answer.body.as_ref().and_then(|body| body["user"]["username"].as_str()).unwrap_or("?");
                findings.push(Finding::of(&TOKEN_SUPERUSER, format!("the token is {name}'s, who may do everything")));
            }
        }
        Err(finding) => return vec![finding],
    }
    let reads = ["events/events/", "core/users/", "core/groups/", "core/brands/"];
    for (path, permission) in reads.into_iter().zip(PERMISSIONS) {
        match api.get(&format!("{path}?page_size=1")).await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) if matches!(answer.status, 401 | 403) => {
                findings.push(Finding::of(&TOKEN_LACKS, format!("{permission} is missing")));
            }
            Ok(answer) => findings.push(Finding::of(&OTHER, format!("GET {path} answers {}", answer.status))),
            Err(finding) => return vec![finding],
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(
            check,
            "reads events, users, groups and brands, and may do nothing else that was tried",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_authentik_writes_them() {
        for (text, version) in [
            ("2024.10.1", Some((2024, 10, 1))),
            ("2026.5.0-rc1", Some((2026, 5, 0))),
            ("2026.8", Some((2026, 8, 0))),
            ("x", None),
            ("2026", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }
}
