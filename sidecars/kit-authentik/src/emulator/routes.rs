//! From a request to its answer.
//!
//! Source: goauthentik/authentik `authentik/events/api/events.py`, `authentik/api/{pagination,authentication}.py`,
//! `authentik/rbac/{filters,permissions}.py` at 2024.10.1 and 2026.2.2.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::Answer;
use super::configuration::{Account, Kind};
use super::event::{NewEvent, Row, User};
use super::generation::Generation;
use super::mapping::{self, Mapping, Recipient};
use super::state::{AuthentikState, Fault};
use super::wire;
use crate::blueprint::Authentication;

const API: &str = "/api/v3/";
const VIEW_EVENT: &str = "authentik_events.view_event";
const CHANGE_TRANSPORT: &str = "authentik_events.change_notificationtransport";

/// A request whose body nobody reads.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) token: Option<String>,
}

/// How a request ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Answer(Answer),
    /// The answer ends in the middle.
    Cut(Answer),
    /// The connection is closed.
    Close,
    /// To the same with a slash at its end.
    Redirect(String),
}

/// What stands behind the `?`, in order.
struct Query(Vec<(String, String)>);

impl Query {
    /// Of several the last one, as Django has it.
    fn last(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Decides about a request, and does what it asks for.
pub(super) async fn handle(state: &Arc<AuthentikState>, request: &Request) -> Ending {
    state.count(|counts| counts.requests += 1);
    let generation = state.generation();
    if state.is_starting() {
        let starting = generation.starting();
        let answer = Answer::text(starting.status, starting.content_type, starting.body);
        return Ending::Answer(Answer { retry_after: starting.retry_after, ..answer });
    }
    let fault = state.next_fault();
    match fault {
        Some(Fault::Answer(status)) => {
            return Ending::Answer(server_error(status));
        }
        Some(Fault::TooMany(seconds)) => {
            let answer = Answer::detail(429, "Request was throttled.");
            return Ending::Answer(Answer { retry_after: Some(seconds), ..answer });
        }
        Some(Fault::Close) => return Ending::Close,
        Some(Fault::Wait(time)) => tokio::time::sleep(time).await,
        Some(Fault::Cut) | None => {}
    }
    let ending = respond(state, generation, request).await;
    if let Ending::Answer(answer) = &ending
        && matches!(answer.status, 401 | 403)
    {
        state.count(|counts| counts.refused += 1);
    }
    match (fault, ending) {
        (Some(Fault::Cut), Ending::Answer(answer)) => Ending::Cut(answer),
        (_, ending) => ending,
    }
}

async fn respond(state: &Arc<AuthentikState>, generation: Generation, request: &Request) -> Ending {
    let Some(path) = request.path.strip_prefix(API) else {
        return Ending::Answer(Answer::text(404, "text/html; charset=utf-8", "<h1>Not Found</h1>"));
    };
    if !path.ends_with('/') {
        return Ending::Redirect(format!("{}/", request.path));
    }
    Ending::Answer(answer(state, generation, request, path).await)
}

async fn answer(state: &Arc<AuthentikState>, generation: Generation, request: &Request, path: &str) -> Answer {
    if path == "root/config/" {
        return Answer::json(
            200,
            &json!({ "capabilities": ["can_save_media"], "error_reporting": { "enabled": false } }),
        );
    }
    let Some(token) = &request.token else {
        return Answer::detail(403, "Authentication credentials were not provided.");
    };
    let Some(account) = state.with_configuration(|configuration| configuration.account(token).cloned()) else {
        return Answer::detail(403, "Token invalid/expired");
    };
    if state.is_forbidden(path) {
        return denied();
    }
    if let Some(pk) = path.strip_prefix("events/transports/").and_then(|rest| rest.strip_suffix("/test/")) {
        return if request.method == Method::POST {
            test_transport(state, generation, &account, pk).await
        } else {
            Answer::detail(405, &format!("Method \"{}\" not allowed.", request.method))
        };
    }
    if request.method != Method::GET {
        return Answer::detail(405, &format!("Method \"{}\" not allowed.", request.method));
    }
    let query = Query(url::form_urlencoded::parse(request.query.as_bytes()).into_owned().collect());
    match path {
        "admin/version/" => Answer::json(
            200,
            &json!({
                "version_current": generation.version(), "version_latest": generation.version(),
                "version_latest_valid": true, "build_hash": "", "outdated": false, "outpost_outdated": false,
            }),
        ),
        "core/users/me/" => me(state, &account),
        "events/events/" if !may(&account, VIEW_EVENT) => denied(),
        "events/events/" => events(state, generation, &query).await,
        _ => match path.strip_prefix("events/events/") {
            Some(_) if !may(&account, VIEW_EVENT) => denied(),
            Some(rest) => event(state, rest.trim_end_matches('/')),
            None => object(state, generation, &account, path, &query),
        },
    }
}

fn server_error(status: u16) -> Answer {
    Answer::text(status, "text/html; charset=utf-8", "<h1>Server Error</h1>")
}

fn denied() -> Answer {
    Answer::detail(403, "You do not have permission to perform this action.")
}

fn not_found() -> Answer {
    Answer::detail(404, "Not found.")
}

fn may(account: &Account, permission: &str) -> bool {
    account.is_superuser || account.permissions.contains(permission)
}

fn me(state: &AuthentikState, account: &Account) -> Answer {
    let shown = state.with_configuration(|configuration| {
        let users = configuration.objects(Kind::User).iter();
        users.clone().find(|user| user["pk"] == account.user_pk).cloned()
    });
    let mut user = shown.unwrap_or_else(|| json!({ "pk": account.user_pk, "username": account.username }));
    user["is_superuser"] = json!(account.is_superuser);
    user["system_permissions"] = json!(account.permissions.iter().collect::<Vec<_>>());
    Answer::json(200, &json!({ "user": user }))
}

fn event(state: &AuthentikState, pk: &str) -> Answer {
    let row = pk.parse().ok().and_then(|pk| state.find(pk));
    match row {
        None => not_found(),
        Some(row) if state.fails_with(std::slice::from_ref(&row)) => server_error(500),
        Some(row) => Answer::json(200, &row.shown()),
    }
}

async fn events(state: &AuthentikState, generation: Generation, query: &Query) -> Answer {
    let actions: Vec<String> = if generation.has_actions_filter() {
        query.all("actions").into_iter().map(str::to_owned).collect()
    } else {
        Vec::new()
    };
    let part = query.last("action").filter(|part| !part.is_empty()).map(str::to_lowercase);
    // Full text, or a language that this server has no licence for: either way nothing is found.
    let searched = query.last("search").is_some_and(|text| !text.is_empty());
    let newest_first = query.last("ordering").is_none_or(|ordering| ordering != "created");
    let fits = |row: &Row| {
        !searched
            && part.as_ref().is_none_or(|part| row.new.action.to_lowercase().contains(part))
            && (actions.is_empty() || actions.iter().any(|action| **action == *row.new.action))
    };
    let Some(paging) = Paging::read(generation, query) else { return Answer::detail(404, "Invalid page.") };
    let (count, rows) = {
        let wanted: Option<&dyn Fn(&Row) -> bool> =
            if part.is_none() && actions.is_empty() && !searched { None } else { Some(&fits) };
        state.page(wanted, newest_first, paging.skip(), paging.size)
    };
    match state.time_for(&rows) {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
    if state.fails_with(&rows) {
        return server_error(500);
    }
    let results = rows.iter().map(Row::shown).collect();
    let answer = paging.answer(generation, count, results);
    if answer.status == 200 {
        state.count(|counts| counts.event_pages += 1);
    }
    answer
}

fn object(state: &AuthentikState, generation: Generation, account: &Account, path: &str, query: &Query) -> Answer {
    let Some(kind) = Kind::ALL.into_iter().find(|kind| path.starts_with(kind.path())) else { return not_found() };
    if !may(account, kind.permission()) {
        return denied();
    }
    let objects = state.with_configuration(|configuration| configuration.objects(kind).to_vec());
    let key = path[kind.path().len()..].trim_end_matches('/');
    if !key.is_empty() {
        let found = objects.iter().find(|object| {
            ["pk", "identifier", "brand_uuid"]
                .iter()
                .any(|name| shown(&object[name]).replace('-', "") == key.replace('-', ""))
        });
        return found.map_or_else(not_found, |object| Answer::json(200, object));
    }
    let filters = query.0.iter().filter(|(name, _)| !matches!(name.as_str(), "page" | "page_size" | "ordering"));
    // A filter that is none of the kind's is ignored.
    let results: Vec<Value> = objects
        .into_iter()
        .filter(|object| filters.clone().all(|(name, value)| object.get(name).is_none_or(|held| shown(held) == *value)))
        .collect();
    let Some(paging) = Paging::read(generation, query) else { return Answer::detail(404, "Invalid page.") };
    let count = results.len();
    paging.answer(generation, count, results.into_iter().skip(paging.skip()).take(paging.size).collect())
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Which page of a list.
struct Paging {
    page: usize,
    size: usize,
}

impl Paging {
    /// `None` for what is no number of a page.
    fn read(generation: Generation, query: &Query) -> Option<Self> {
        let page = match query.last("page") {
            None => 1,
            Some(text) => text.parse().ok().filter(|page| *page > 0)?,
        };
        let size = query.last("page_size").and_then(|text| text.parse().ok()).filter(|size| *size > 0);
        Some(Self { page, size: size.unwrap_or(generation.default_page_size()).min(generation.max_page_size()) })
    }

    fn skip(&self) -> usize {
        (self.page - 1).saturating_mul(self.size)
    }

    fn answer(&self, generation: Generation, count: usize, results: Vec<Value>) -> Answer {
        let pages = count.div_ceil(self.size).max(1);
        if self.page > pages {
            return Answer::detail(404, "Invalid page.");
        }
        let start = if count == 0 { 0 } else { self.skip() + 1 };
        let mut list = json!({
            "pagination": {
                "next": if self.page < pages { self.page + 1 } else { 0 },
                "previous": self.page - 1,
                "count": count,
                "current": self.page,
                "total_pages": pages,
                "start_index": start,
                "end_index": (self.skip() + self.size).min(count),
            },
            "results": results,
        });
        if generation >= Generation::V2025_8 {
            list["autocomplete"] = json!({});
        }
        Answer::json(200, &list)
    }
}

/// The button in Authentik's pages: the server itself sends, and waits; the event is a real one, which rules are told about
/// too.
async fn test_transport(state: &Arc<AuthentikState>, generation: Generation, account: &Account, pk: &str) -> Answer {
    let transport = state.with_configuration(|configuration| {
        let transports = configuration.objects(Kind::Transport).iter();
        transports.clone().find(|transport| transport["pk"] == pk).cloned()
    });
    let Some(transport) = transport else { return not_found() };
    if !may(account, CHANGE_TRANSPORT) {
        return denied();
    }
    let user = User::new(account.user_pk, &account.username);
    let shown = json!({ "pk": user.pk, "username": user.username, "email": user.email });
    let context = json!({ "user": shown, "context": { "foo": "bar" } });
    let event =
        NewEvent::of_system("custom_notification_test", context).by_app("authentik.events.api.notification_transports");
    let pk = state.happen(event);
    let Some(row) = state.find(pk) else { return not_found() };
    let mapping = match (transport[generation.body_mapping_field()].is_string(), state.webhook_secret()) {
        (false, _) => Mapping::Unmapped,
        (true, None) => Mapping::Unsigned,
        (true, Some(secret)) => Mapping::Blueprint(Authentication::Hmac, secret),
    };
    let recipient = Recipient { username: user.username, email: user.email };
    let nonce = Uuid::new_v4().simple().to_string();
    let failed = |text: &str| Answer::json(500, &json!(text));
    let Ok(mut made) = mapping::make(&mapping, generation, &row, &recipient, &nonce) else { return failed("None") };
    if !transport["webhook_mapping_headers"].is_string() {
        made.headers.clear();
    }
    let url = transport["webhook_url"].as_str().unwrap_or_default();
    let agent = format!("authentik@{}", generation.version());
    let patience = generation.http_timeout().unwrap_or(Duration::from_secs(600));
    match wire::send(url, &made, &agent, patience).await {
        Ok(sent) if sent.is_success() => {
            Answer::json(200, &json!({ "messages": [sent.status.to_string(), sent.text] }))
        }
        Ok(sent) => failed(&format!("{} Client Error: for url: {url}", sent.status)),
        Err(_) => failed(&format!("HTTPConnectionPool: Max retries exceeded with url: {url}")),
    }
}
