//! The writing half of Lago's management API: what an organisation sells, by what it counts, and where it sends webhooks.
//! Objects are Lago's JSON as it is; what they should be is the caller's.
//!
//! Source: getlago/lago-api `app/controllers/api/v1/` and `app/services/`, read at v1.16.0 and at the head of 2026-08-21.

use std::time::Duration;

use kit::client::read_capped;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use url::Url;

use crate::api::{ApiError, Entry, LagoApi, Meta};

/// Nobody waits longer for a change. A plan with many charges takes Lago some seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest part of a refusal that is read.
const REFUSAL_BYTES: usize = 64 << 10;
/// Longest text of a refusal that is shown.
const SHOWN_CHARS: usize = 400;
/// Where a client is asked to wait longer, it is not asked by Lago.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A JSON object.
pub type Object = Map<String, Value>;

/// A kind of object that the management API keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A tax.
    Tax,
    /// A billable metric.
    BillableMetric,
    /// A feature that plans grant; from v1.32.0 on.
    Feature,
    /// A plan with its charges.
    Plan,
    /// Something that is billed once.
    AddOn,
    /// A coupon.
    Coupon,
    /// Where webhooks are sent.
    WebhookEndpoint,
}

impl Kind {
    /// All of them: each needs at most what stands before it.
    pub const ALL: [Self; 7] =
        [Self::Tax, Self::BillableMetric, Self::Feature, Self::Plan, Self::AddOn, Self::Coupon, Self::WebhookEndpoint];

    /// The path below the API's root; also what a list of them is called.
    pub fn path(self) -> &'static str {
        match self {
            Self::Tax => "taxes",
            Self::BillableMetric => "billable_metrics",
            Self::Feature => "features",
            Self::Plan => "plans",
            Self::AddOn => "add_ons",
            Self::Coupon => "coupons",
            Self::WebhookEndpoint => "webhook_endpoints",
        }
    }

    /// The key that one of them stands under.
    pub fn root(self) -> &'static str {
        match self {
            Self::Tax => "tax",
            Self::BillableMetric => "billable_metric",
            Self::Feature => "feature",
            Self::Plan => "plan",
            Self::AddOn => "add_on",
            Self::Coupon => "coupon",
            Self::WebhookEndpoint => "webhook_endpoint",
        }
    }

    /// What people know one by: its code, or of a webhook endpoint its address.
    pub fn identity(self) -> &'static str {
        if self == Self::WebhookEndpoint { "webhook_url" } else { "code" }
    }

    /// What it is called in a sentence.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Tax => "tax",
            Self::BillableMetric => "metric",
            Self::Feature => "feature",
            Self::Plan => "plan",
            Self::AddOn => "add-on",
            Self::Coupon => "coupon",
            Self::WebhookEndpoint => "webhook endpoint",
        }
    }
}

/// Why Lago did not change something, or nobody knows whether it did.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// No answer, or one that is none of Lago's.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// 429, which only Lago Cloud and proxies say.
    #[error("Lago takes no more requests for now (429)")]
    TooMany(
        /// How long to wait, where it was said.
        Option<Duration>,
    ),
    /// Lago has looked at it and does not want it.
    #[error("Lago refuses it ({status}): {reason}")]
    Refused {
        /// 400, 403, 404, 405 or 422.
        status: u16,
        /// Lago's own words.
        reason: String,
        /// Something with this code or address is there already.
        is_taken: bool,
    },
}

impl ManagementError {
    /// Whether somebody else has made the same thing in the meantime.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Refused { is_taken: true, .. })
    }

    /// Whether the same request may be answered otherwise a little later. What was asked for may have been done.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::TooMany(_) => true,
            Self::Api(error) => match error {
                ApiError::Unreachable(_) | ApiError::TooSlow | ApiError::Unsteady => true,
                ApiError::Status(status) => matches!(status, 408 | 429 | 500..),
                _ => false,
            },
            Self::Refused { .. } => false,
        }
    }

    /// Whether it is Lago's own error: of a request that it cannot digest as well as of a moment.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Api(ApiError::Status(500)))
    }

    /// Whether the key is refused, which no repetition mends.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Api(ApiError::Denied(401)))
    }
}

impl LagoApi {
    /// The version of a Lago that is up and has its database, for example `v1.16.0`. No key is needed.
    ///
    /// # Errors
    /// [`ApiError::Status`] where it is up without its database; as [`LagoApi::billable_metrics`] otherwise.
    ///
    /// Source: getlago/lago-api `app/controllers/application_controller.rb`: `/health`, never `/api/v1/health`.
    pub async fn health(&self) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            version: String,
        }
        let mut url = self.root.clone();
        let above = url.path().strip_suffix("api/v1/").unwrap_or("/").to_owned();
        url.set_path(&format!("{above}health"));
        self.get(url).await.map(|answer: Answer| answer.version)
    }

    /// One object by its code, or a webhook endpoint by its Lago id; `None` where there is none.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    pub async fn find(&self, kind: Kind, id: &str) -> Result<Option<Object>, ApiError> {
        match self.get::<Object>(self.below(&[kind.path(), id])?).await {
            Ok(mut answer) => match answer.remove(kind.root()) {
                Some(Value::Object(object)) => Ok(Some(object)),
                _ => Err(ApiError::NotLago),
            },
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every object of a kind.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`]; [`ApiError::NotFound`] where this Lago does not have the kind.
    pub async fn objects(&self, kind: Kind) -> Result<Vec<Object>, ApiError> {
        #[derive(Deserialize)]
        struct Page {
            meta: Meta,
            #[serde(flatten)]
            rest: Object,
        }
        let take = |mut page: Page| {
            let listed = match page.rest.remove(kind.path()) {
                Some(Value::Array(listed)) => listed,
                _ => Vec::new(),
            };
            let objects = listed.into_iter().filter_map(|object| match object {
                Value::Object(object) => Some(object),
                _ => None,
            });
            // Features have no id of Lago's.
            let name = |object: &Object| {
                ["lago_id", "code"].iter().find_map(|name| object.get(*name)?.as_str().map(str::to_owned))
            };
            let entries = objects.filter_map(|object| Some(Entry { lago_id: name(&object)?, item: object }));
            (entries.collect(), page.meta)
        };
        self.pages(kind.path(), take).await
    }

    /// Makes an object, and returns it as Lago has made it.
    ///
    /// # Errors
    /// [`ManagementError`].
    pub async fn create(&self, kind: Kind, object: &Object) -> Result<Object, ManagementError> {
        let answer = self.send(Method::POST, self.below(&[kind.path()])?, Some(json!({ kind.root(): object }))).await?;
        object_of(answer, kind.root())
    }

    /// Changes the named fields of an object, and returns it as it is then. What may not be changed any more Lago passes
    /// over in silence: compare.
    ///
    /// # Errors
    /// [`ManagementError`].
    pub async fn update(&self, kind: Kind, id: &str, fields: &Object) -> Result<Object, ManagementError> {
        let url = self.below(&[kind.path(), id])?;
        let answer = self.send(Method::PUT, url, Some(json!({ kind.root(): fields }))).await?;
        object_of(answer, kind.root())
    }

    /// Deletes an object. With a plan its subscriptions end, and with a metric what plans charge for it.
    ///
    /// # Errors
    /// [`ManagementError`].
    pub async fn delete(&self, kind: Kind, id: &str) -> Result<(), ManagementError> {
        self.send(Method::DELETE, self.below(&[kind.path(), id])?, None).await.map(drop)
    }

    /// What a plan grants, by features.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`]; [`ApiError::NotFound`] where there is no such plan, or no features.
    pub async fn entitlements(&self, plan: &str) -> Result<Vec<Object>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            entitlements: Vec<Object>,
        }
        self.get(self.below(&["plans", plan, "entitlements"])?).await.map(|answer: Answer| answer.entitlements)
    }

    /// Grants these features with a plan, `{feature: {privilege: value}}`; what it grants besides stays.
    ///
    /// # Errors
    /// [`ManagementError`].
    pub async fn grant(&self, plan: &str, entitlements: &Object) -> Result<(), ManagementError> {
        let url = self.below(&["plans", plan, "entitlements"])?;
        self.send(Method::PATCH, url, Some(json!({ "entitlements": entitlements }))).await.map(drop)
    }

    /// Takes a feature, or one privilege of it, out of a plan.
    ///
    /// # Errors
    /// [`ManagementError`].
    pub async fn revoke(&self, plan: &str, feature: &str, privilege: Option<&str>) -> Result<(), ManagementError> {
        let whole = ["plans", plan, "entitlements", feature];
        let url = match privilege {
            Some(privilege) => self.below(&[&whole[..], &["privileges", privilege]].concat())?,
            None => self.below(&whole)?,
        };
        self.send(Method::DELETE, url, None).await.map(drop)
    }

    /// Whether anybody has a subscription to a plan, one that begins later among them.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    pub async fn is_subscribed(&self, plan: &str) -> Result<bool, ApiError> {
        self.has_subscription(plan, &["active", "pending"]).await
    }

    /// Whether a subscription to a plan begins later, such as a first one or a downgrade.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    pub async fn is_awaited(&self, plan: &str) -> Result<bool, ApiError> {
        self.has_subscription(plan, &["pending"]).await
    }

    async fn has_subscription(&self, plan: &str, statuses: &[&str]) -> Result<bool, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            subscriptions: Vec<Value>,
        }
        let mut url = self.below(&["subscriptions"])?;
        url.query_pairs_mut().append_pair("plan_code", plan).append_pair("per_page", "1");
        statuses.iter().for_each(|status| _ = url.query_pairs_mut().append_pair("status[]", status));
        self.get(url).await.map(|answer: Answer| !answer.subscriptions.is_empty())
    }

    /// Whether a customer has a coupon now. Older versions do not know the filter, so that all of them may be looked at.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    pub async fn is_coupon_applied(&self, code: &str) -> Result<bool, ApiError> {
        #[derive(Deserialize)]
        struct Page {
            meta: Meta,
            applied_coupons: Vec<Applied>,
        }
        #[derive(Deserialize)]
        struct Applied {
            lago_id: String,
            coupon_code: String,
            #[serde(default)]
            status: Option<String>,
        }
        let mut list = self.below(&["applied_coupons"])?;
        list.query_pairs_mut().append_pair("status", "active").append_pair("coupon_code[]", code);
        let take = |page: Page| {
            let entries = page.applied_coupons.into_iter();
            (entries.map(|item| Entry { lago_id: item.lago_id.clone(), item }).collect(), page.meta)
        };
        let applied: Vec<Applied> = self.pages(list.as_str(), take).await?;
        let is_active = |applied: &Applied| applied.status.as_deref().is_none_or(|status| status == "active");
        Ok(applied.iter().any(|applied| applied.coupon_code == code && is_active(applied)))
    }

    async fn send(&self, method: Method, url: Url, body: Option<Value>) -> Result<Value, ManagementError> {
        let mut request = self
            .client
            .request(method, url)
            .header(AUTHORIZATION, &self.authorization)
            .header(ACCEPT, "application/json");
        if let Some(body) = &body {
            request = request.json(body);
        }
        let broken = |error: reqwest::Error| ApiError::Unreachable(error.without_url());
        let ask = async {
            let response = request.send().await.map_err(broken)?;
            let (status, pause) = (response.status(), pause(response.headers()));
            // What is beyond the limit is no JSON any more, and nothing that is needed.
            let limit = if status == StatusCode::OK { crate::api::PAGE_BYTES } else { REFUSAL_BYTES };
            Ok::<_, ApiError>((status, pause, read_capped(response, limit).await.map_err(broken)?))
        };
        let (status, pause, body) = tokio::time::timeout(WRITE_TIMEOUT, ask).await.map_err(|_| ApiError::TooSlow)??;
        match status {
            StatusCode::OK => Ok(serde_json::from_slice(&body).map_err(|_| ApiError::NotLago)?),
            StatusCode::UNAUTHORIZED => Err(ApiError::Denied(401).into()),
            StatusCode::TOO_MANY_REQUESTS => Err(ManagementError::TooMany(pause)),
            StatusCode::BAD_REQUEST
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::UNPROCESSABLE_ENTITY => Err(refusal(status.as_u16(), &body)),
            other => Err(ApiError::Status(other.as_u16()).into()),
        }
    }
}

fn object_of(answer: Value, root: &str) -> Result<Object, ManagementError> {
    match answer {
        Value::Object(mut answer) => match answer.remove(root) {
            Some(Value::Object(object)) => Ok(object),
            _ => Err(ApiError::NotLago.into()),
        },
        _ => Err(ApiError::NotLago.into()),
    }
}

/// Lago's own words, as far as they fit a line.
///
/// Source: getlago/lago-api `app/controllers/concerns/api_errors.rb`.
fn refusal(status: u16, body: &[u8]) -> ManagementError {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let details = body.get("error_details").filter(|details| !details.is_null());
    let code = body.get("code").and_then(Value::as_str);
    let text = match (details, code) {
        (Some(details), _) => details.to_string(),
        (None, Some(code)) => code.to_owned(),
        (None, None) => body.get("error").and_then(Value::as_str).unwrap_or("without a reason").to_owned(),
    };
    let mut reason: String = text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect();
    if code == Some("feature_unavailable") {
        reason.push_str(", which needs a licence of Lago");
    }
    let taken = |field: &str| {
        let codes = details.and_then(|details| details.get(field)).and_then(Value::as_array);
        codes.is_some_and(|codes| codes.iter().any(|code| code == "value_already_exist"))
    };
    ManagementError::Refused { status, reason, is_taken: status == 422 && (taken("code") || taken("webhook_url")) }
}

/// What a 429 asks for: Lago Cloud in a header of its own, proxies in the usual one.
///
/// Source: docs.getlago.com, page api-reference/rate-limits.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let seconds = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    let asked = seconds("x-ratelimit-reset").or_else(|| seconds("retry-after"))?;
    Some(Duration::from_secs(asked).min(LONGEST_PAUSE))
}
