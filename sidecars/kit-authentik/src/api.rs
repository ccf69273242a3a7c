//! Authentik's REST API, as far as daemons read it: its version, pages of events, a user with its groups.
//!
//! Types are written by hand: the generated client's closed enum of actions fails a whole page over one `custom_*` event.
//!
//! Source: goauthentik/authentik `authentik/events/api/events.py`, `authentik/api/pagination.py`,
//! `authentik/core/api/users.py` and `internal/web/proxy.go` at 2024.10.1 and 2026.2.2.

use std::fmt;
use std::time::Duration;

use kit::client::{self, ReadError, bearer, read_whole};
use kit::clock::Timestamp;
use kit::secret::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, DATE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use url::Url;

/// Usually nobody waits longer for one answer. A client's own limits must not be shorter than what is waited:
/// Authentik is silent while it reads a page.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read: a hundred events with contexts of a hundred kilobytes each.
const ANSWER_BYTES: usize = 16 << 20;
/// Longest wait that is taken from `Retry-After`.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Most events of a page; Authentik gives no more from 2025.12 on.
pub const PAGE_SIZE: usize = 100;

/// Why Authentik's API cannot be asked at all. Each message says what to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// `AUTHENTIK_URL` is not the address of an API.
    #[error("AUTHENTIK_URL is not a plain http or https address such as http://authentik-server:9000 ({0})")]
    BadUrl(&'static str),
    /// The token cannot stand in a header.
    #[error("AUTHENTIK_TOKEN holds characters that a token cannot have, such as a line break")]
    BadToken,
}

/// Why Authentik did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No connection, or it broke off.
    #[error("Authentik cannot be reached at AUTHENTIK_URL")]
    Unreachable(
        /// Without the address, which may be private.
        #[source]
        reqwest::Error,
    ),
    /// Connected, and no complete answer in time.
    #[error("Authentik at AUTHENTIK_URL gives no complete answer within {0:?}")]
    TooSlow(
        /// How long was waited.
        Duration,
    ),
    /// 502 (2024.10) or 503 (2026.2): the router waits for the server behind it.
    #[error("Authentik is starting, or its server is away ({status})")]
    Starting {
        /// The status.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// 429: Authentik does not limit whoever shows a token (`throttle.default`), what stands before it may.
    #[error("Authentik, or a proxy before it, wants fewer requests (429)")]
    Throttled {
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// 401 or 403 for everything: the token is not known, has expired, or is no API token.
    #[error("AUTHENTIK_TOKEN is refused by Authentik ({0}): it must be a token with intent api that does not expire")]
    Denied(u16),
    /// 403 for this alone.
    #[error("the user of AUTHENTIK_TOKEN lacks the permission {0} (global) in Authentik")]
    Forbidden(&'static str),
    /// 404: it is not there, or the page is past the end.
    #[error("Authentik does not know what it was asked for (404)")]
    NotFound,
    /// A redirect, for example to https.
    #[error("Authentik at AUTHENTIK_URL answers with a redirect ({0}): set the address that it leads to")]
    Redirect(u16),
    /// Any other status than 200.
    #[error("Authentik answered status {0}")]
    Status(u16),
    /// One answer is longer than is read.
    #[error("an answer of Authentik has more than {0} bytes")]
    TooLarge(usize),
    /// Not Authentik's JSON.
    #[error("the answer is not Authentik's JSON: check AUTHENTIK_URL")]
    NotAuthentik,
}

/// A version of Authentik, such as 2024.10.1. What cannot be read is taken for the oldest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Year.
    pub year: u32,
    /// Month.
    pub month: u32,
    /// Patch.
    pub patch: u32,
}

impl Version {
    /// The oldest that is supported.
    pub const OLDEST: Self = Self::new(2024, 10, 0);
    /// Since then events can be filtered by several actions.
    const ACTIONS: Self = Self::new(2025, 8, 0);

    /// A version.
    pub const fn new(year: u32, month: u32, patch: u32) -> Self {
        Self { year, month, patch }
    }

    /// Reads the text that `admin/version/` gives; a suffix such as `-rc1` says nothing.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-', '+']).map(str::parse);
        let (Some(Ok(year)), Some(Ok(month))) = (parts.next(), parts.next()) else { return None };
        Some(Self { year, month, patch: parts.next().and_then(Result::ok).unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.year, self.month, self.patch)
    }
}

/// How events of some actions are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// All of them.
    #[default]
    None,
    /// `action=`, until 2025.6 for those that *contain* the text: `login` is also `login_failed`.
    Containing(String),
    /// `actions=`, several times.
    AnyOf(Vec<String>),
}

impl Filter {
    /// The filter that brings at least these actions and the fewest others. Custom actions are not known to it: where one
    /// is wanted there is none. None for no actions: all are wanted.
    pub fn at_least(actions: &[String], version: Version) -> Self {
        if actions.is_empty() || actions.iter().any(|action| action.starts_with("custom_")) {
            return Self::None;
        }
        match actions {
            several if version >= Version::ACTIONS => Self::AnyOf(several.to_vec()),
            [only] => Self::Containing(only.clone()),
            _ => Self::None,
        }
    }
}

/// One page of events, the newest first.
#[derive(Debug)]
pub struct EventPage {
    /// The events as they stand in the answer.
    pub events: Vec<Box<RawValue>>,
    /// Events that there are, on all pages.
    pub count: usize,
    /// Whether there is a page after it, with older events.
    pub has_next: bool,
    /// What time it is there.
    pub server_time: Option<Timestamp>,
}

#[derive(Deserialize)]
struct WirePage {
    pagination: Pagination,
    results: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Pagination {
    /// The next page, 0 where there is none; a decimal in Django's arithmetic.
    #[serde(default)]
    next: Value,
    count: f64,
}

impl Pagination {
    /// Whether there is another page, where it says so.
    fn has_next(&self) -> Option<bool> {
        match &self.next {
            Value::Number(next) => next.as_f64().map(|next| next >= 1.0),
            Value::String(next) => Some(next.parse().is_ok_and(|next: f64| next >= 1.0)),
            Value::Bool(next) => Some(*next),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

impl WirePage {
    /// `before` events are on the pages before it.
    fn into_page(self, before: usize, server_time: Option<Timestamp>) -> EventPage {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of rows, never negative")]
        let count = self.pagination.count as usize;
        let has_next = self.pagination.has_next().unwrap_or(before.saturating_add(self.results.len()) < count);
        EventPage { events: self.results, count, has_next, server_time }
    }
}

impl EventPage {
    /// Reads the answer for the first page.
    ///
    /// # Errors
    /// [`ApiError::NotAuthentik`].
    pub fn read(answer: &[u8]) -> Result<Self, ApiError> {
        let page: WirePage = serde_json::from_slice(answer).map_err(|_| ApiError::NotAuthentik)?;
        Ok(page.into_page(0, None))
    }
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// Its number, as events have it.
    pub pk: i64,
    /// Its name.
    #[serde(default)]
    pub username: String,
    /// For example `internal` or `service_account`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
}

/// A user, as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Its number, as events have it.
    pub pk: i64,
    /// Its name.
    pub username: String,
    /// Its full name.
    #[serde(default)]
    pub name: String,
    /// Its address.
    #[serde(default)]
    pub email: Option<String>,
    /// Whether it can log in.
    #[serde(default)]
    pub is_active: bool,
    /// For example `internal` or `service_account`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Its UUID.
    #[serde(default)]
    pub uuid: Option<String>,
    /// SHA-256 over its number and the id of the installation: `sub` of its tokens, unless that is set otherwise.
    #[serde(default)]
    pub uid: Option<String>,
    /// Its groups.
    #[serde(default, rename = "groups_obj")]
    pub groups: Option<Vec<Group>>,
    /// What operators have noted.
    #[serde(default)]
    pub attributes: serde_json::Map<String, serde_json::Value>,
}

/// A group of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its key.
    pub pk: String,
    /// Its name.
    pub name: String,
    /// What operators have noted.
    #[serde(default)]
    pub attributes: serde_json::Map<String, serde_json::Value>,
}

/// Asks Authentik, one question at a time; when to ask again is the caller's.
#[derive(Clone, Debug)]
pub struct AuthentikApi {
    client: Client,
    root: Url,
    authorization: HeaderValue,
    timeout: Duration,
}

/// The root of the API from whichever form of its address is configured: with or without a trailing slash or `/api/v3`.
///
/// # Errors
/// [`SetupError::BadUrl`]; the address is not shown, it may hold a password.
pub fn api_root(api_url: &str) -> Result<Url, SetupError> {
    client::api_root(api_url, "/api/v3").map_err(SetupError::BadUrl)
}

impl AuthentikApi {
    /// Asks the API at `api_url` with this token.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(client: Client, api_url: &str, token: &Secret) -> Result<Self, SetupError> {
        let authorization = bearer(token).ok_or(SetupError::BadToken)?;
        Ok(Self { client, root: api_root(api_url)?, authorization, timeout: ANSWER_TIMEOUT })
    }

    /// Waits so long for one answer; the client must wait as long.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How long it waits for one answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Which version it is. Any user may ask.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn version(&self) -> Result<Version, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            version_current: String,
        }
        let (answer, _): (Answer, _) = self.get(self.at("admin/version/"), None).await?;
        Version::read(&answer.version_current).ok_or(ApiError::NotAuthentik)
    }

    /// The user that the token is of.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn own_account(&self) -> Result<Account, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            user: Account,
        }
        self.get(self.at("core/users/me/"), None).await.map(|(answer, _): (Answer, _)| answer.user)
    }

    /// A page of events, the newest first; the first page is 1. `page_size` may be answered with fewer.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] where the page is past the end; others of [`ApiError`].
    pub async fn events(&self, page: usize, page_size: usize, filter: &Filter) -> Result<EventPage, ApiError> {
        let mut url = self.at("events/events/");
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("ordering", "-created");
            query.append_pair("page_size", &page_size.to_string());
            query.append_pair("page", &page.to_string());
            match filter {
                Filter::None => {}
                Filter::Containing(action) => drop(query.append_pair("action", action)),
                Filter::AnyOf(actions) => {
                    for action in actions {
                        query.append_pair("actions", action);
                    }
                }
            }
        }
        let (answer, server_time): (WirePage, _) = self.get(url, Some("authentik_events.view_event")).await?;
        Ok(answer.into_page(page.saturating_sub(1).saturating_mul(page_size), server_time))
    }

    /// A user with its groups; `None` where there is none of this number.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn user(&self, pk: i64) -> Result<Option<User>, ApiError> {
        match self.get(self.at(&format!("core/users/{pk}/")), Some("authentik_core.view_user")).await {
            Ok((user, _)) => Ok(Some(user)),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page of users, each with its groups; and whether there are more.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn users(&self, page: usize) -> Result<(Vec<User>, bool), ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            pagination: Pagination,
            results: Vec<User>,
        }
        let mut url = self.at("core/users/");
        url.query_pairs_mut()
            .append_pair("ordering", "-last_login")
            .append_pair("page_size", &PAGE_SIZE.to_string())
            .append_pair("page", &page.to_string());
        let (answer, _): (Answer, _) = self.get(url, Some("authentik_core.view_user")).await?;
        let has_next = answer.pagination.has_next().unwrap_or(answer.results.len() == PAGE_SIZE);
        Ok((answer.results, has_next))
    }

    /// Paths below the root end with a slash: without it Authentik answers with a redirect.
    fn at(&self, path: &str) -> Url {
        let mut url = self.root.clone();
        url.set_path(&format!("{}{path}", self.root.path()));
        url
    }

    async fn get<T: DeserializeOwned>(
        &self,
        url: Url,
        permission: Option<&'static str>,
    ) -> Result<(T, Option<Timestamp>), ApiError> {
        let request =
            self.client.get(url).header(AUTHORIZATION, &self.authorization).header(ACCEPT, "application/json");
        let unreachable = |error: reqwest::Error| match error.is_timeout() && !error.is_connect() {
            true => ApiError::TooSlow(self.timeout),
            false => ApiError::Unreachable(error.without_url()),
        };
        let ask = async {
            let response = request.send().await.map_err(unreachable)?;
            let server_time = date(&response);
            match response.status() {
                StatusCode::OK => {
                    let body = read_whole(response, ANSWER_BYTES).await.map_err(|error| match error {
                        ReadError::Broken(error) => unreachable(error),
                        ReadError::TooLarge(most) => ApiError::TooLarge(most),
                    })?;
                    Ok((body, server_time))
                }
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => {
                    Err(ApiError::Starting { status: response.status().as_u16(), retry_after: retry_after(&response) })
                }
                StatusCode::TOO_MANY_REQUESTS => Err(ApiError::Throttled { retry_after: retry_after(&response) }),
                StatusCode::UNAUTHORIZED => Err(ApiError::Denied(401)),
                StatusCode::FORBIDDEN => Err(forbidden(response, permission).await),
                StatusCode::NOT_FOUND => Err(ApiError::NotFound),
                status if status.is_redirection() => Err(ApiError::Redirect(status.as_u16())),
                other => Err(ApiError::Status(other.as_u16())),
            }
        };
        let answer = tokio::time::timeout(self.timeout, ask).await;
        let (body, server_time) = answer.map_err(|_| ApiError::TooSlow(self.timeout))??;
        let answer = serde_json::from_slice(&body).map_err(|_| ApiError::NotAuthentik)?;
        Ok((answer, server_time))
    }
}

/// A token that is not known is 403 as well (Django's REST framework without a challenge), with another text.
async fn forbidden(response: Response, permission: Option<&'static str>) -> ApiError {
    let body = read_whole(response, 4096).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    let about_token = text.contains("Token invalid") || text.contains("credentials were not provided");
    match permission {
        Some(permission) if !about_token => ApiError::Forbidden(permission),
        _ => ApiError::Denied(403),
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

/// `Date` as RFC 9110 has it.
fn date(response: &Response) -> Option<Timestamp> {
    let text = response.headers().get(DATE)?.to_str().ok()?;
    let time = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(Timestamp::from_millis(time.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_usual_form_of_the_address_leads_to_the_same_root() {
        for form in [
            "http://authentik-server:9000",
            "http://authentik-server:9000/",
            "http://authentik-server:9000/api/v3",
            " http://authentik-server:9000/api/v3/\n",
        ] {
            assert_eq!(api_root(form).unwrap().as_str(), "http://authentik-server:9000/api/v3/");
        }
        assert_eq!(api_root("https://example.test/auth/").unwrap().path(), "/auth/api/v3/");
    }

    #[test]
    fn an_address_that_cannot_be_the_api_is_refused_without_being_printed() {
        for wrong in ["", "authentik:9000", "ftp://authentik", "http://u:hunter2@authentik", "http://a?k=hunter2"] {
            let error = api_root(wrong).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let api = AuthentikApi::new(Client::new(), "http://a", &Secret::from("hunter2\n".to_owned()));
        assert_eq!(api.unwrap_err(), SetupError::BadToken);
    }

    #[tokio::test]
    async fn silence_is_told_apart_from_no_connection() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::builder().read_timeout(Duration::from_millis(20)).build().unwrap();
        let ask = async |port: u16| {
            let url = format!("http://127.0.0.1:{port}");
            AuthentikApi::new(client.clone(), &url, &Secret::from("t".to_owned())).unwrap().version().await.unwrap_err()
        };
        assert!(matches!(ask(silent.local_addr().unwrap().port()).await, ApiError::TooSlow(_)));
        assert!(matches!(ask(1).await, ApiError::Unreachable(_)));
    }

    #[test]
    fn whether_there_is_another_page_is_understood_in_any_form() {
        let check = |pagination: &str, expected: bool| {
            let page =
                EventPage::read(format!(r#"{{"pagination":{{{pagination}}},"results":[{{}},{{}}]}}"#).as_bytes());
            assert_eq!(page.unwrap().has_next, expected, "{pagination}");
        };
        for none in ["0", "0.0", "\"\"", "\"0\"", "false"] {
            check(&format!(r#""next":{none},"count":5"#), false);
        }
        for next in ["2", "2.0", "\"2\"", "true"] {
            check(&format!(r#""next":{next},"count":2"#), true);
        }
        // Where it is not said the number of rows tells.
        for (count, expected) in [(2, false), (3, true)] {
            check(&format!(r#""next":null,"count":{count}"#), expected);
            check(&format!(r#""count":{count}"#), expected);
        }
        assert!(EventPage::read(br#"{"pagination":{"next":0},"results":[]}"#).is_err());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let check = |text: &str, expected: Option<(u32, u32, u32)>| {
            assert_eq!(Version::read(text).map(|v| (v.year, v.month, v.patch)), expected, "{text}");
        };
        check("2024.10.1", Some((2024, 10, 1)));
        check("2026.5.0-rc1", Some((2026, 5, 0)));
        check("2026.2", Some((2026, 2, 0)));
        check("main", None);
        assert!(Version::new(2025, 10, 0) > Version::new(2025, 8, 4));
    }

    #[test]
    fn each_version_is_asked_in_its_own_dialect() {
        let check = |actions: &[&str], year, month, expected: Filter| {
            let actions: Vec<String> = actions.iter().map(|action| (*action).to_owned()).collect();
            assert_eq!(Filter::at_least(&actions, Version::new(year, month, 0)), expected, "{actions:?}");
        };
        check(&[], 2026, 8, Filter::None);
        check(&["login"], 2024, 10, Filter::Containing("login".to_owned()));
        check(&["login", "logout"], 2024, 10, Filter::None);
        check(&["login", "logout"], 2025, 8, Filter::AnyOf(vec!["login".to_owned(), "logout".to_owned()]));
        check(&["login", "custom_mine"], 2026, 8, Filter::None);
    }
}
