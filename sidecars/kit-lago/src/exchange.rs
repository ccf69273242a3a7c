//! One request and whatever Lago answers to it, refusals too: for whoever checks what the other modules rely on.

use std::time::Duration;

use kit::client::read_capped;
use reqwest::header::{ACCEPT, AUTHORIZATION, DATE, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use url::Url;

use crate::api::{ApiError, LagoApi, PAGE_BYTES};
use crate::management::Object;

/// Nobody waits longer for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// The status.
    pub status: u16,
    /// The body, where it is JSON of at most 16 MiB; null otherwise.
    pub body: Value,
    /// The `Date` header.
    pub date: Option<String>,
}

/// Where a request goes, and as whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Below `/api/v1/`, with the key. May have a query.
    Api(&'a str),
    /// Below `/api/v1/`, with a key that nobody has.
    ApiWithWrongKey(&'a str),
    /// Beside `/api/v1/`, with no key: `health`.
    Plain(&'a str),
}

impl LagoApi {
    /// Asks, and returns the answer whatever it is.
    ///
    /// # Errors
    /// [`ApiError::Unreachable`], [`ApiError::TooSlow`].
    pub async fn exchange(&self, method: Method, place: Place<'_>, body: Option<&Value>) -> Result<Exchange, ApiError> {
        let unreachable = |error: reqwest::Error| ApiError::Unreachable(error.without_url());
        let mut request = self.client.request(method, self.at(place)?).header(ACCEPT, "application/json");
        request = match place {
            Place::Api(_) => request.header(AUTHORIZATION, &self.authorization),
            Place::ApiWithWrongKey(_) => {
                request.header(AUTHORIZATION, HeaderValue::from_static("Bearer outrigger-asks-with-a-wrong-key"))
            }
            Place::Plain(_) => request,
        };
        if let Some(body) = body {
            request = request.json(body);
        }
        let ask = async {
            let response = request.send().await.map_err(unreachable)?;
            let status = response.status();
            let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
            let body = read_capped(response, PAGE_BYTES).await.map_err(unreachable)?;
            let body = serde_json::from_slice(&body).unwrap_or_default();
            Ok(Exchange { status: status.as_u16(), body, date })
        };
        tokio::time::timeout(ANSWER_WITHIN, ask).await.map_err(|_| ApiError::TooSlow)?
    }

    /// The first page of a list with its query, for example `subscriptions?status[]=pending`: a hundred of them at most.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    pub async fn first_page(&self, list: &str) -> Result<Vec<Object>, ApiError> {
        let answer = self.exchange(Method::GET, Place::Api(list), None).await?;
        match StatusCode::from_u16(answer.status).unwrap_or_default() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(ApiError::Denied(answer.status)),
            StatusCode::NOT_FOUND => return Err(ApiError::NotFound),
            _ => return Err(ApiError::Status(answer.status)),
        }
        let name = list.split('?').next().unwrap_or(list);
        let Value::Object(mut body) = answer.body else { return Err(ApiError::NotLago) };
        let Some(Value::Array(objects)) = body.remove(name) else { return Err(ApiError::NotLago) };
        let object = |value| match value {
            Value::Object(object) => Ok(object),
            _ => Err(ApiError::NotLago),
        };
        objects.into_iter().map(object).collect()
    }

    fn at(&self, place: Place<'_>) -> Result<Url, ApiError> {
        match place {
            Place::Api(path) | Place::ApiWithWrongKey(path) => self.root.join(path).map_err(|_| ApiError::NotLago),
            Place::Plain(path) => {
                let mut url = self.root.clone();
                let above = url.path().strip_suffix("api/v1/").unwrap_or("/").to_owned();
                url.set_path(&format!("{above}{path}"));
                Ok(url)
            }
        }
    }
}
