//! Temporal's own HTTP API, as a test asks it: none of it is our client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Of one request to Temporal.
const REQUEST: Duration = Duration::from_secs(30);

/// The HTTP API of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TemporalApi {
    client: reqwest::Client,
    address: SocketAddr,
}

impl TemporalApi {
    /// The API of the server at this address, whether it is there or not.
    ///
    /// # Errors
    /// There can be no client.
    pub fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self { client: reqwest::Client::builder().timeout(REQUEST).build()?, address })
    }

    /// Posts, below the namespace.
    ///
    /// # Errors
    /// It is not answered 200.
    pub async fn post(&self, namespace: &str, path: &str, body: &Value) -> Result<Value> {
        self.answer(self.client.post(self.url(namespace, path)).json(body), path).await
    }

    /// Asks, below the namespace.
    ///
    /// # Errors
    /// It is not answered 200.
    pub async fn get(&self, namespace: &str, path: &str) -> Result<Value> {
        self.answer(self.client.get(self.url(namespace, path)), path).await
    }

    /// Terminates a workflow.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn terminate(&self, namespace: &str, id: &str, reason: &str) -> Result<()> {
        self.post(namespace, &format!("/workflows/{id}/terminate"), &json!({ "reason": reason })).await.map(drop)
    }

    fn url(&self, namespace: &str, path: &str) -> String {
        format!("http://{}/api/v1/namespaces/{namespace}{path}", self.address)
    }

    async fn answer(&self, request: reqwest::RequestBuilder, path: &str) -> Result<Value> {
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status == 200, "{path} is answered {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}
