//! Lago's management API, as far as daemons read it: pages of metrics and subscriptions, and current usage.
//!
//! Source: getlago/lago-api `app/controllers/api/v1/` and `app/serializers/v1/`, read at v1.16.0 and at the head of
//! 2026-08-21.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kit::client::{self, ReadError, read_whole};
use kit::clock::Timestamp;
use kit::secret::{self, Secret, SecretError};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Client, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::usage::Quantity;

/// Nobody waits longer for one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest page that is read.
pub(crate) const PAGE_BYTES: usize = 16 << 20;
/// Lago's own default.
const PER_PAGE: usize = 100;
/// More pages than that are not read: a hundred thousand of anything.
const PAGES: usize = 1_000;
/// Invoices of a subscription that are looked at: of one period there may be several.
const PERIODS: usize = 12;
/// Times that a list is read before it is said that it cannot be had whole.
const READINGS: usize = 3;

/// Why Lago's API cannot be asked at all. Each message says what to set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// `LAGO_API_URL` is not the address of an API.
    #[error("LAGO_API_URL is not a plain http or https address such as http://lago-api:3000 ({0})")]
    BadUrl(&'static str),
    /// The API key cannot stand in a header.
    #[error("LAGO_API_KEY holds characters that an API key cannot have, such as a line break")]
    BadApiKey,
}

/// Why Lago did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No connection, or no answer in time.
    #[error("Lago cannot be reached at LAGO_API_URL")]
    Unreachable(
        /// Without the address, which may be private.
        #[source]
        reqwest::Error,
    ),
    /// Connected, and no complete answer in time.
    #[error("Lago at LAGO_API_URL gives no complete answer within {PAGE_TIMEOUT:?}")]
    TooSlow,
    /// 401 or 403.
    #[error("LAGO_API_KEY is refused by Lago ({0})")]
    Denied(u16),
    /// 404: what was asked for is not there.
    #[error("Lago does not know what it was asked for (404)")]
    NotFound,
    /// 405: a refusal for what the object is, not for how it was asked.
    #[error("Lago does not allow the question (405)")]
    NotAllowed,
    /// Any other status than 200.
    #[error("Lago answered status {0}")]
    Status(u16),
    /// More than are read: some hundred thousand.
    #[error("Lago has more than {} of these", PAGES * PER_PAGE)]
    TooMany,
    /// One answer is longer than is read.
    #[error("an answer of Lago has more than {0} bytes")]
    TooLarge(usize),
    /// Entries were added or removed while it was read, again and again.
    #[error("Lago's list changes while it is read, {READINGS} times in a row")]
    Unsteady,
    /// Not Lago's JSON.
    #[error("the answer is not Lago's JSON: check LAGO_API_URL")]
    NotLago,
}

/// The root of Lago's API from whichever form of its address is configured: with or without a trailing slash or
/// `/api/v1`.
///
/// # Errors
/// [`SetupError::BadUrl`]; the address is not shown, it may hold a password.
pub fn api_root(api_url: &str) -> Result<Url, SetupError> {
    client::api_root(api_url, "/api/v1").map_err(SetupError::BadUrl)
}

/// The API key from `LAGO_API_KEY` or `LAGO_API_KEY_FILE`; `None` where neither is set.
///
/// # Errors
/// Both are set, or the file cannot be read; names the variable.
pub fn api_key(value: Option<&Secret>, file: Option<&Path>) -> Result<Option<Secret>, SecretError> {
    secret::resolve("LAGO_API_KEY", value, "LAGO_API_KEY_FILE", file)
}

/// The `Authorization` of an API key; it prints as sensitive.
///
/// # Errors
/// [`SetupError::BadApiKey`].
pub fn authorization(api_key: &Secret) -> Result<HeaderValue, SetupError> {
    client::bearer(api_key).ok_or(SetupError::BadApiKey)
}

/// Asks Lago, one question at a time; when to ask again is the caller's.
#[derive(Clone, Debug)]
pub struct LagoApi {
    pub(crate) client: Client,
    pub(crate) root: Url,
    pub(crate) authorization: HeaderValue,
}

/// How a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Events.
    CountAgg,
    /// The sum of a field.
    SumAgg,
    /// The largest value of a field.
    MaxAgg,
    /// Different values of a field.
    UniqueCountAgg,
    /// The sum of a field, by how long it held.
    WeightedSumAgg,
    /// The last value of a field.
    LatestAgg,
    /// Something else.
    #[serde(other)]
    Custom,
}

impl Aggregation {
    /// Whether the metric's field must hold a number.
    pub fn wants_a_number(self) -> bool {
        matches!(self, Self::SumAgg | Self::MaxAgg | Self::WeightedSumAgg | Self::LatestAgg)
    }
}

/// A billable metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillableMetric {
    /// What events name.
    pub code: String,
    /// How it counts.
    pub aggregation_type: Aggregation,
    /// The property it counts, where it counts one.
    #[serde(default)]
    pub field_name: Option<String>,
    /// Lago computes the property itself, from others.
    #[serde(default)]
    pub expression: Option<String>,
    /// It goes on into the next period.
    #[serde(default)]
    pub recurring: bool,
    /// Lago rounds what it counts.
    #[serde(default)]
    pub rounding_function: Option<String>,
}

impl BillableMetric {
    /// The property that is counted as it stands in the event: not one that Lago computes from others.
    pub fn counted_field(&self) -> Option<&str> {
        let is_computed = self.expression.as_deref().is_some_and(|expression| !expression.trim().is_empty());
        self.field_name.as_deref().filter(|field| !field.is_empty() && !is_computed)
    }
}

/// A subscription, for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// What events name.
    pub external_id: String,
    /// Whose it is.
    pub external_customer_id: String,
    /// What it is billed by.
    #[serde(default)]
    pub plan_code: Option<String>,
    /// Since when it is billed.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub terminated_at: Option<Timestamp>,
    /// Newer versions of Lago only.
    #[serde(default)]
    pub current_billing_period_started_at: Option<Timestamp>,
    /// Newer versions of Lago only.
    #[serde(default)]
    pub current_billing_period_ending_at: Option<Timestamp>,
}

/// What Lago has counted of a subscription in the current billing period.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CurrentUsage {
    /// Beginning of the period.
    pub from_datetime: Timestamp,
    /// Its last second.
    pub to_datetime: Timestamp,
    /// Of each charge of the plan.
    pub charges_usage: Vec<ChargeUsage>,
}

/// What Lago has put on the invoice of a billing period that has ended. Several invoices may be of one period.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PastUsage {
    /// Beginning of the period.
    pub from_datetime: Timestamp,
    /// Its last second; the moment of its end where the subscription was terminated.
    pub to_datetime: Timestamp,
    /// The invoice.
    #[serde(default)]
    pub lago_invoice_id: Option<String>,
    /// Of each charge of the plan that has counted something.
    #[serde(default)]
    pub charges_usage: Vec<ChargeUsage>,
}

/// A charge of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PlanCharge {
    /// The metric that it counts.
    pub billable_metric_code: String,
    /// Each event is billed when it comes, on an invoice of its own or on none.
    #[serde(default)]
    pub pay_in_advance: bool,
}

/// Whether an invoice may still change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvoiceStatus {
    /// Finalised, or closed for good in another way.
    Final,
    /// A draft, or not made yet.
    Open,
}

/// What Lago has counted for one charge.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ChargeUsage {
    /// How much of the metric.
    pub units: Quantity,
    /// From how many events.
    #[serde(default)]
    pub events_count: u64,
    /// The metric.
    pub billable_metric: ChargedMetric,
}

/// The metric of a charge.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ChargedMetric {
    /// What events name.
    pub code: String,
}

impl LagoApi {
    /// Asks the API at `api_url` with this key.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(client: Client, api_url: &str, api_key: &Secret) -> Result<Self, SetupError> {
        Ok(Self { client, root: api_root(api_url)?, authorization: authorization(api_key)? })
    }

    /// Every billable metric.
    ///
    /// Pages shift when entries come or go while they are read, and some lists of v1.16.0 are in no order at all. So the
    /// entries are counted, and where there are fewer than Lago says the list is read again. Its count may itself be
    /// half an hour old (in a cache, at the head): what is read twice alike is taken for all there is.
    ///
    /// # Errors
    /// [`ApiError`]; what was read before it is thrown away.
    pub async fn billable_metrics(&self) -> Result<Vec<BillableMetric>, ApiError> {
        #[derive(Deserialize)]
        struct Page {
            billable_metrics: Vec<Entry<BillableMetric>>,
            meta: Meta,
        }
        self.pages("billable_metrics", |page: Page| (page.billable_metrics, page.meta)).await
    }

    /// Every active subscription, and those that have ended: what happened before their end is still billed. One that was
    /// upgraded is there twice, under the same external id.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    ///
    /// Source: getlago/lago-api `app/controllers/api/v1/subscriptions_controller.rb`: active ones only, unless asked.
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, ApiError> {
        self.subscriptions_of("subscriptions?status[]=active&status[]=terminated").await
    }

    /// Every active subscription: where all that ever were are too many ([`ApiError::TooMany`], after one page).
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    pub async fn active_subscriptions(&self) -> Result<Vec<Subscription>, ApiError> {
        self.subscriptions_of("subscriptions?status[]=active").await
    }

    async fn subscriptions_of(&self, resource: &str) -> Result<Vec<Subscription>, ApiError> {
        #[derive(Deserialize)]
        struct Page {
            subscriptions: Vec<Entry<Subscription>>,
            meta: Meta,
        }
        self.pages(resource, |page: Page| (page.subscriptions, page.meta)).await
    }

    /// What Lago has counted of an active subscription. It counts a while after it has taken events, and caches.
    ///
    /// # Errors
    /// [`ApiError::NotAllowed`] where the subscription is not an active one of this customer; as
    /// [`LagoApi::billable_metrics`] otherwise. v1.16 does not find customers whose id holds a dot.
    ///
    /// Source: getlago/lago-api `app/controllers/api/v1/customers/usage_controller.rb`.
    pub async fn current_usage(&self, customer: &str, subscription: &str) -> Result<CurrentUsage, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            customer_usage: CurrentUsage,
        }
        let mut url = self.below(&["customers", customer, "current_usage"])?;
        url.query_pairs_mut().append_pair("external_subscription_id", subscription);
        self.get(url).await.map(|answer: Answer| answer.customer_usage)
    }

    /// What is on the invoices of the last periods of a subscription that have ended, the newest first. Drafts are among
    /// them ([`LagoApi::invoice_status`]). Charges that are paid in advance have invoices of their own, which may not be
    /// here.
    ///
    /// # Errors
    /// As [`LagoApi::current_usage`]; subscriptions that have ended are known here.
    ///
    /// Source: getlago/lago-api `app/queries/past_usage_query.rb` and
    /// `app/serializers/v1/customers/past_usage_serializer.rb` at 09e56935 and at the head of 2026-08-21.
    pub async fn past_usage(&self, customer: &str, subscription: &str) -> Result<Vec<PastUsage>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            usage_periods: Vec<PastUsage>,
        }
        let mut url = self.below(&["customers", customer, "past_usage"])?;
        let periods = PERIODS.to_string();
        url.query_pairs_mut()
            .append_pair("external_subscription_id", subscription)
            .append_pair("periods_count", &periods)
            .append_pair("per_page", &periods);
        self.get(url).await.map(|answer: Answer| answer.usage_periods)
    }

    /// Whether an invoice may still change.
    ///
    /// # Errors
    /// As [`LagoApi::billable_metrics`].
    ///
    /// Source: getlago/lago-api `app/models/invoice.rb`: v1.16.0 has draft, finalized, voided, generating, failed, open and
    /// closed, newer ones pending too.
    pub async fn invoice_status(&self, lago_id: &str) -> Result<InvoiceStatus, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            invoice: Invoice,
        }
        #[derive(Deserialize)]
        struct Invoice {
            status: String,
        }
        let answer: Answer = self.get(self.below(&["invoices", lago_id])?).await?;
        Ok(match answer.invoice.status.as_str() {
            "finalized" | "voided" | "closed" => InvoiceStatus::Final,
            _ => InvoiceStatus::Open,
        })
    }

    /// The charges of a plan, as they are now.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] where the plan was deleted; as [`LagoApi::billable_metrics`] otherwise.
    ///
    /// Source: getlago/lago-api `app/controllers/api/v1/plans_controller.rb` and
    /// `app/serializers/v1/charge_serializer.rb` at v1.16.0.
    pub async fn plan_charges(&self, plan_code: &str) -> Result<Vec<PlanCharge>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            plan: Plan,
        }
        #[derive(Deserialize)]
        struct Plan {
            charges: Vec<PlanCharge>,
        }
        let answer: Answer = self.get(self.below(&["plans", plan_code])?).await?;
        Ok(answer.plan.charges)
    }

    pub(crate) fn below(&self, path: &[&str]) -> Result<Url, ApiError> {
        let mut url = self.root.clone();
        url.path_segments_mut().map_err(|()| ApiError::NotLago)?.pop_if_empty().extend(path);
        Ok(url)
    }

    pub(crate) async fn pages<P: DeserializeOwned, T>(
        &self,
        resource: &str,
        take: impl Fn(P) -> (Vec<Entry<T>>, Meta),
    ) -> Result<Vec<T>, ApiError> {
        let mut before: Option<BTreeMap<String, T>> = None;
        for _ in 0..READINGS {
            let (entries, count) = self.reading(resource, &take).await?;
            let is_whole = count.is_none_or(|count| entries.len() >= count);
            if is_whole || before.is_some_and(|before| before.keys().eq(entries.keys())) {
                return Ok(entries.into_values().collect());
            }
            before = Some(entries);
        }
        Err(ApiError::Unsteady)
    }

    /// All pages, the entries by Lago's ids, and how many there were at the beginning or at the end, whichever is less.
    async fn reading<P: DeserializeOwned, T>(
        &self,
        resource: &str,
        take: impl Fn(P) -> (Vec<Entry<T>>, Meta),
    ) -> Result<(BTreeMap<String, T>, Option<usize>), ApiError> {
        let (mut all, mut count): (BTreeMap<String, T>, Option<usize>) = (BTreeMap::new(), None);
        let mut next = Some(1);
        for _ in 0..PAGES {
            let Some(page) = next else { break };
            let mut url = self.root.join(resource).map_err(|_| ApiError::NotLago)?;
            url.query_pairs_mut().append_pair("page", &page.to_string()).append_pair("per_page", &PER_PAGE.to_string());
            let (entries, meta) = take(self.get(url).await?);
            let (is_full, known) = (entries.len() >= PER_PAGE, all.len());
            all.extend(entries.into_iter().map(|entry| (entry.lago_id, entry.item)));
            count = count.into_iter().chain(meta.total_count).min();
            // Known with the first page: the other nine hundred and more would be asked for in vain.
            if meta.total_count.is_some_and(|count| count > PAGES * PER_PAGE) {
                return Err(ApiError::TooMany);
            }
            next = match meta.next_page {
                // One that leads back would be read for ever.
                Some(next) => Some(next).filter(|next| *next > page),
                // A count that is too old ends the pages too early.
                None => (is_full && all.len() > known).then_some(page + 1),
            };
        }
        // What is incomplete must not be taken for all there is.
        if next.is_some() { Err(ApiError::TooMany) } else { Ok((all, count)) }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, ApiError> {
        let request =
            self.client.get(url).header(AUTHORIZATION, &self.authorization).header(ACCEPT, "application/json");
        let unreachable = |error: reqwest::Error| ApiError::Unreachable(error.without_url());
        let ask = async {
            let response = request.send().await.map_err(unreachable)?;
            match response.status() {
                StatusCode::OK => read_whole(response, PAGE_BYTES).await.map_err(|error| match error {
                    ReadError::Broken(error) => unreachable(error),
                    ReadError::TooLarge(most) => ApiError::TooLarge(most),
                }),
                StatusCode::UNAUTHORIZED => Err(ApiError::Denied(401)),
                StatusCode::FORBIDDEN => Err(ApiError::Denied(403)),
                StatusCode::NOT_FOUND => Err(ApiError::NotFound),
                StatusCode::METHOD_NOT_ALLOWED => Err(ApiError::NotAllowed),
                other => Err(ApiError::Status(other.as_u16())),
            }
        };
        let body = tokio::time::timeout(PAGE_TIMEOUT, ask).await.map_err(|_| ApiError::TooSlow)??;
        serde_json::from_slice(&body).map_err(|_| ApiError::NotLago)
    }
}

#[derive(Deserialize)]
pub(crate) struct Meta {
    next_page: Option<u64>,
    #[serde(default)]
    total_count: Option<usize>,
}

/// One entry of a list.
#[derive(Deserialize)]
pub(crate) struct Entry<T> {
    pub(crate) lago_id: String,
    #[serde(flatten)]
    pub(crate) item: T,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_usual_form_of_the_address_leads_to_the_same_root() {
        for form in [
            "http://lago-api:3000",
            "http://lago-api:3000/",
            "http://lago-api:3000/api/v1",
            "http://lago-api:3000/api/v1/",
            " http://lago-api:3000//\n",
        ] {
            assert_eq!(api_root(form).unwrap().as_str(), "http://lago-api:3000/api/v1/");
        }
        assert_eq!(api_root("https://example.test/lago/api/v1").unwrap().path(), "/lago/api/v1/");
    }

    #[test]
    fn an_address_that_cannot_be_the_api_is_refused_without_being_printed() {
        for wrong in [
            "",
            "lago-api:3000",
            "ftp://lago-api",
            "http://user:hunter2@lago-api:3000",
            "http://lago-api:3000?key=hunter2",
        ] {
            let error = api_root(wrong).unwrap_err();
            assert!(matches!(error, SetupError::BadUrl(_)), "{wrong}");
            assert!(!error.to_string().contains("hunter2"));
        }
        let error = authorization(&Secret::from("hunter2\n".to_owned())).unwrap_err();
        assert_eq!(error, SetupError::BadApiKey);
    }
}
