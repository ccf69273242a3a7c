//! The stand-in against the contract, over the wire, each version by its own rules.
#![allow(clippy::unwrap_used)]

mod api;
mod golden;
mod notifications;
mod receiver;

use std::time::Duration;

use kit::secret::Secret;
use serde_json::Value;

use super::*;

const SOON: Duration = Duration::from_secs(60);

fn secret() -> Secret {
    Secret::from("webhook-secret-0123456789abcdef0123456789".to_owned())
}

fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .timeout(SOON)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

/// Asks the API; status and body, which is null where it is no JSON.
async fn get(authentik: &AuthentikServer, path: &str) -> (u16, Value) {
    get_as(authentik, &authentik.token(), path).await
}

async fn get_as(authentik: &AuthentikServer, token: &str, path: &str) -> (u16, Value) {
    let url = format!("{}/api/v3/{path}", authentik.url());
    let answer = client().get(url).bearer_auth(token).send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}
