//! The stand-in against the contract, over the wire, each version by its own rules.
#![allow(clippy::unwrap_used)]

mod batches;
mod books;
mod catalogue;
mod current_usage;
mod events;
mod going_wrong;
mod management;
mod past_usage;
mod reading_events;

use std::time::Duration;

use jiff::Timestamp;
use kit::secret::Secret;
use serde_json::{Value, json};

use super::*;

const KEY: &str = "lago-key";
const SOON: Duration = Duration::from_secs(60);
const POSTGRES: [Profile; 2] = [Profile::V1_16, Profile::V1_39];

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(SOON).build().unwrap()
}

fn key() -> Secret {
    Secret::from(KEY.to_owned())
}

/// A running stand-in and somebody who talks to it.
struct Lago {
    server: LagoServer,
    client: reqwest::Client,
}

impl Lago {
    async fn start(profile: Profile) -> Self {
        Self { server: LagoServer::start(profile, key()).await.unwrap(), client: client() }
    }

    fn request(&self, method: http::Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.server.url())).bearer_auth(KEY)
    }

    fn posting(&self, path: &str, body: impl Into<String>) -> reqwest::RequestBuilder {
        let request = self.request(http::Method::POST, path).header("content-type", "application/json");
        request.body(body.into())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(http::Method::GET, path)).await
    }

    /// Posts the text of one event.
    async fn post(&self, event: &str) -> (u16, Value) {
        answer(self.posting("/api/v1/events", format!(r#"{{"event":{event}}}"#))).await
    }

    /// Posts the texts of events as a batch.
    async fn post_batch(&self, events: &[String]) -> (u16, Value) {
        answer(self.posting("/api/v1/events/batch", format!(r#"{{"events":[{}]}}"#, events.join(",")))).await
    }

    /// Transaction ids on the books, with their subscriptions.
    fn stored(&self) -> Vec<String> {
        let name = |event: LedgerEvent| {
            format!("{}/{}", event.external_subscription_id.as_deref().unwrap_or("-"), event.transaction_id)
        };
        self.server.ledger().into_iter().map(name).collect()
    }
}

/// Status and body; what is no JSON comes as a string.
async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// An event that every version takes.
fn event(subscription: &str, transaction_id: &str) -> String {
    let event = json!({
        "transaction_id": transaction_id,
        "external_subscription_id": subscription,
        "code": "api_calls",
        "timestamp": 1_788_000_000,
        "properties": { "gb": 1.5 },
    });
    event.to_string()
}

/// An event of subscription `sub` with these properties.
fn usage(transaction_id: &str, code: &str, timestamp: &str, properties: &str) -> String {
    format!(
        r#"{{"transaction_id":"{transaction_id}","external_subscription_id":"sub","code":"{code}","timestamp":{timestamp},"properties":{properties}}}"#
    )
}

fn validation_errors(details: Value) -> (u16, Value) {
    let code = "validation_errors";
    (422, json!({ "status": 422, "error": "Unprocessable Entity", "code": code, "error_details": details }))
}

fn already_exists() -> Value {
    json!({ "transaction_id": ["value_already_exist"] })
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}
