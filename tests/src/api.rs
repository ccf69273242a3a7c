//! The admin API as its own description tells it, and requests to it.

use anyhow::{Context, Result, ensure};
use kit_workbench::raw::{self, RawResponse};

use crate::rig::{REQUEST_DEADLINE, Rig};

/// One method of one path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// `GET` and the like.
    pub method: String,
    /// With the API's prefix; parameters still in braces.
    pub path: String,
}

impl Route {
    /// Its path with these values in the place of the parameters.
    pub fn filled(&self, sink: &str, id: &str) -> String {
        self.path.replace("{name}", sink).replace("{id}", id)
    }

    /// Whether it changes something.
    pub fn writes(&self) -> bool {
        self.method != "GET"
    }
}

/// Every route that the daemon's OpenAPI document describes.
///
/// # Errors
/// There is no such document, or it describes no routes.
pub async fn routes(rig: &Rig) -> Result<Vec<Route>> {
    let document = rig.api("/api/v1/openapi.json").await?;
    let paths = document["paths"].as_object().context("the OpenAPI document has paths")?;
    let mut routes = Vec::new();
    for (path, methods) in paths {
        let methods = methods.as_object().with_context(|| format!("{path} has methods"))?;
        for method in methods.keys().filter(|key| ["get", "post", "put", "patch", "delete"].contains(&key.as_str())) {
            routes.push(Route { method: method.to_uppercase(), path: format!("/api/v1{path}") });
        }
    }
    ensure!(routes.len() >= 10, "the document describes only {routes:?}");
    Ok(routes)
}

/// Asks the admin listener, with this `Authorization` header or none, and a JSON body where there is one.
///
/// # Errors
/// There is no answer.
pub async fn ask(
    rig: &Rig,
    method: &str,
    path: &str,
    authorization: Option<&str>,
    body: Option<&str>,
) -> Result<RawResponse> {
    let mut headers = Vec::new();
    headers.extend(authorization.map(|value| ("Authorization", value)));
    headers.extend(body.map(|_| ("Content-Type", "application/json")));
    let body = body.unwrap_or_default().as_bytes();
    Ok(raw::request(rig.admin, method, path, &headers, body, REQUEST_DEADLINE).await?)
}

/// As [`ask`], with the right token.
///
/// # Errors
/// There is no answer.
pub async fn ask_with_token(rig: &Rig, method: &str, path: &str, body: Option<&str>) -> Result<RawResponse> {
    ask(rig, method, path, Some(&format!("Bearer {}", rig.token)), body).await
}
