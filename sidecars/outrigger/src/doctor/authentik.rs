//! Authentik: alive, ready, and whether it takes the token.
//!
//! Source: goauthentik/authentik `authentik/root/monitoring.py`, `authentik/core/api/users.py`; live and ready answer 200,
//! of old 204, and 5xx where they are not.

use kit::error::chain;
use reqwest::StatusCode;

use super::Asking;
use super::finding::{AUTHENTIK_AWAY, AUTHENTIK_NOT_READY, AUTHENTIK_TOKEN, SETTING};
use crate::finding::Finding;

const CHECK: &str = "authentik";

pub(crate) async fn examine(asking: &Asking<'_>) -> Vec<Finding> {
    let Some(url) = asking.settings.get("AUTHENTIK_URL") else {
        return vec![Finding::unset(CHECK, "AUTHENTIK_URL")];
    };
    let base = url.trim_end_matches('/');
    let base = base.strip_suffix("/api/v3").unwrap_or(base);
    let ask = async |path: &str| {
        let answer = asking.client.get(format!("{base}{path}")).send().await;
        answer.map(|answer| answer.status()).map_err(|error| chain(&error.without_url()))
    };
    match ask("/-/health/live/").await {
        Ok(status) if status.is_success() => {}
        Ok(status) => {
            return vec![Finding::of(&AUTHENTIK_AWAY, format!("/-/health/live/ answers {}", status.as_u16()))];
        }
        Err(error) => return vec![Finding::of(&AUTHENTIK_AWAY, error)],
    }
    match ask("/-/health/ready/").await {
        Ok(status) if status.is_success() => {}
        Ok(status) => {
            return vec![Finding::of(&AUTHENTIK_NOT_READY, format!("/-/health/ready/ answers {}", status.as_u16()))];
        }
        Err(error) => return vec![Finding::of(&AUTHENTIK_NOT_READY, format!("/-/health/ready/: {error}"))],
    }
    let mut findings = vec![Finding::good(CHECK, "alive and ready")];
    match asking.settings.secret("AUTHENTIK_TOKEN") {
        Err(error) => findings.push(Finding::of(&SETTING, chain(&error))),
        Ok(None) => findings.push(Finding::unset(CHECK, "AUTHENTIK_TOKEN_FILE for its API")),
        Ok(Some(token)) => {
            let me =
                asking.client.get(format!("{base}/api/v3/core/users/me/")).bearer_auth(token.expose()).send().await;
            findings.push(match me.map(|answer| answer.status()) {
                Ok(status) if status.is_success() => Finding::good(CHECK, "takes AUTHENTIK_TOKEN"),
                Ok(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => {
                    Finding::of(&AUTHENTIK_TOKEN, format!("AUTHENTIK_TOKEN is refused ({})", status.as_u16()))
                }
                Ok(status) => {
                    Finding::unknown(CHECK, format!("/api/v3/core/users/me/ answers {}", status.as_u16()), "ask again")
                }
                Err(error) => Finding::unknown(CHECK, chain(&error.without_url()), "ask again"),
            });
        }
    }
    findings
}
