//! Who may use the admin API.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::raw::{RawConnection, RawResponse};
use outrigger_tests::api::{self, Route, ask, ask_with_token};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use serde_json::json;

/// Failed attempts a second that one peer may make.
const FAILURES_PER_SECOND: usize = 5;
/// Everything that the documentation says an operator can do; a route less in the OpenAPI document
/// would be a route less in this experiment.
const ROUTES: [&str; 12] = [
    "GET /api/v1/audit",
    "GET /api/v1/deliveries",
    "GET /api/v1/events",
    "GET /api/v1/events/{id}",
    "GET /api/v1/events/{id}/body",
    "GET /api/v1/sinks",
    "GET /api/v1/statistics",
    "POST /api/v1/deliveries/drop",
    "POST /api/v1/deliveries/replay",
    "POST /api/v1/sinks/{name}/forget",
    "POST /api/v1/sinks/{name}/pause",
    "POST /api/v1/sinks/{name}/resume",
];

fn all_routes(described: Vec<Route>) -> Result<Vec<Route>> {
    let names: BTreeSet<String> = described.iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    for expected in ROUTES {
        ensure!(names.contains(expected), "{expected} is not described; {names:?} are");
    }
    // Not described in itself, and for nobody either.
    let more = ["openapi.json", "nothing", "../livez", "events/../../livez"];
    let more = more.map(|path| Route { method: "GET".to_owned(), path: format!("/api/v1/{path}") });
    Ok(described.into_iter().chain(more).collect())
}

/// The body with which a route would do what it does.
fn body_for(route: &Route) -> Option<String> {
    if !route.writes() {
        return None;
    }
    Some(match route.path.as_str() {
        path if path.ends_with("/replay") => json!({"select": {"state": "delivered"}}).to_string(),
        path if path.ends_with("/drop") => json!({"select": {"state": "parked"}, "reason": "test"}).to_string(),
        path if path.ends_with("/forget") => json!({"reason": "test"}).to_string(),
        _ => String::new(),
    })
}

/// Every `Authorization` header that is not the right one.
fn wrong(token: &str) -> Vec<Option<String>> {
    let mut flipped = token.to_owned().into_bytes();
    if let Some(last) = flipped.last_mut() {
        *last ^= 1;
    }
    let flipped = String::from_utf8_lossy(&flipped).into_owned();
    vec![
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(format!("Bearer {flipped}")),
        Some(format!("Bearer {}", &token[..token.len() - 1])),
        Some(format!("Bearer {token}x")),
        Some(format!("Bearer {token} {token}")),
        Some(format!("Bearer  {token}")),
        Some(format!("Bearer {}", token.to_uppercase())),
        Some(format!("Bearer \"{token}\"")),
        Some(format!("Basic {token}")),
        Some(format!("Token {token}")),
        Some(token.to_owned()),
        Some(format!("Bearer, Bearer {token}")),
        Some("Bearer null".to_owned()),
    ]
}

/// Asks until the guard against guessing lets the question through.
async fn refused(rig: &Rig, route: &Route, authorization: Option<&str>) -> Result<RawResponse> {
    let begin = Instant::now();
    loop {
        let path = route.filled("gateway", "00000000-0000-4000-8000-000000000000");
        let answer = ask(rig, &route.method, &path, authorization, body_for(route).as_deref()).await?;
        if answer.status != 429 || begin.elapsed() > REQUEST_DEADLINE {
            return Ok(answer);
        }
        ensure!(answer.header("retry-after") == Some("1"), "429 without a time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn audited(rig: &Rig) -> Result<Vec<serde_json::Value>> {
    let page = rig.api("/api/v1/audit?limit=500").await?;
    Ok(page["records"].as_array().context("the audit trail is a list")?.clone())
}

/// T12: every route of the API – those of its own OpenAPI document, and paths that do not exist –
/// answers 401 without the token and with a wrong one, and nothing is changed or recorded by that.
/// Without a configured token every route is closed. Guessing is held to five a second for one peer,
/// which does not lock the holder of the token out. Every write leaves one record.
pub(crate) async fn every_admin_route_wants_the_token(trial: Trial) -> Result<Outcome> {
    let mut asked = 0;
    for _ in 0..trial.count {
        asked += one_round().await?;
    }
    asked += closed_without_a_token().await?;
    let per_second = guessing_is_held_up().await?;
    Ok(Outcome::new(asked, format!("refused; {per_second:.1} guesses a second at most")))
}

async fn one_round() -> Result<u64> {
    every_route_of(Rig::started(Mode::Hmac, &[]).await?).await
}

/// The same for any daemon that takes webhooks; how often it was asked.
pub(crate) async fn every_route_of(mut rig: Rig) -> Result<u64> {
    for nth in 0..3 {
        rig.post(&format!("k-{nth}"), &format!(r#"{{"webhook_type":"fee.created","n":{nth}}}"#)).await?;
    }
    rig.drained().await?;
    let before = rig.api("/api/v1/statistics").await?;
    let routes = all_routes(api::routes(&rig).await?)?;
    let forms = wrong(&rig.token);
    let mut asked = 0;
    for (nth, route) in routes.iter().enumerate() {
        // Each route without, with a wrong one, and with some of the other forms in turn: each refusal
        // uses up a fifth of a second.
        for form in [0, 4, 5 + nth % (forms.len() - 5), 1 + nth % 3] {
            let answer = refused(&rig, route, forms[form].as_deref()).await?;
            let shown = format!("{} {} with {:?}", route.method, route.path, forms[form]);
            // A target that has to be normalised is no path at all.
            let expected = if route.path.contains("..") { 404 } else { 401 };
            ensure!(answer.status == expected, "{shown}: {} {}", answer.status, answer.text());
            if expected == 401 {
                let said = answer.text();
                ensure!(said == r#"{"error":"a bearer token is required"}"#, "{shown}: the 401 tells {said}");
                ensure!(answer.header("www-authenticate") == Some("Bearer"), "{shown}: no challenge");
            }
            ensure!(answer.header("set-cookie").is_none(), "{shown}: a cookie");
            asked += 1;
        }
    }
    // The guard must not be passed by another method, a second header, or the token elsewhere.
    let token = rig.token.clone();
    let mut connection = RawConnection::open(rig.admin).await?;
    for request in [
        format!("GET /api/v1/events?token={token}&access_token={token} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /api/v1/events HTTP/1.1\r\nHost: a\r\nCookie: token={token}; Authorization=Bearer {token}\r\n\r\n"),
        format!("GET /api/v1/events HTTP/1.1\r\nHost: a\r\nX-Authorization: Bearer {token}\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n"),
        format!("GET /api/v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nAuthorization: Bearer {token}\r\n\r\n"),
        "OPTIONS /api/v1/events HTTP/1.1\r\nHost: a\r\nOrigin: http://evil\r\nAccess-Control-Request-Method: GET\r\n\r\n".to_owned(),
        "HEAD /api/v1/events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let begin = Instant::now();
        let answer = loop {
            let answer = connection.exchange(request.as_bytes(), REQUEST_DEADLINE).await;
            // HEAD has no body to wait for, which the client here does not know.
            let answer = match answer {
                Err(kit_workbench::raw::RawError::Closed { received }) if received.starts_with(b"HTTP/1.1 ") => {
                    let status = std::str::from_utf8(&received[9..12])?.parse()?;
                    connection = RawConnection::open(rig.admin).await?;
                    RawResponse { status, headers: vec![], body: vec![], interim: vec![], keep_alive: false, request_written: true }
                }
                other => other?,
            };
            if answer.status != 429 || begin.elapsed() > REQUEST_DEADLINE {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        ensure!(answer.status == 401, "{request:?}: {} {}", answer.status, answer.text());
        ensure!(answer.header("access-control-allow-origin").is_none(), "a browser of another site may ask");
        asked += 1;
    }

    // Nothing was done by any of that.
    ensure!(audited(&rig).await?.is_empty(), "a refused request left an audit record");
    let after = rig.api("/api/v1/statistics").await?;
    for field in ["accepted", "sinks"] {
        ensure!(after[field] == before[field], "{field} changed from {} to {}", before[field], after[field]);
    }

    // And each write with the token leaves its record, before the answer and for good.
    let mut actions = Vec::new();
    for route in routes.iter().filter(|route| route.writes()) {
        let path = route.filled("gateway", "-");
        let answer = ask_with_token(&rig, &route.method, &path, body_for(route).as_deref()).await?;
        let records = audited(&rig).await?;
        if path.ends_with("/forget") {
            // A sink that is configured is not forgotten, and nothing was done.
            ensure!(answer.status == 409, "{path}: {} {}", answer.status, answer.text());
            ensure!(records.len() == actions.len(), "{path} left a record");
            continue;
        }
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        actions.push(path.trim_start_matches("/api/v1/").replace("/gateway/", ".").replace('/', "."));
        ensure!(records.len() == actions.len(), "{path} left {} records", records.len() + 1 - actions.len());
        let newest = &records[0];
        ensure!(Some(newest["action"].as_str().unwrap_or_default()) == actions.last().map(String::as_str), "{newest}");
        ensure!(newest["actor"] == "127.0.0.1", "{newest}");
    }
    rig.stop().await?;
    let log = std::fs::read_to_string(rig.scratch.file("daemon.log"))?;
    let logged = log.lines().filter(|line| line.contains("admin action ")).count();
    ensure!(logged == actions.len(), "{logged} log lines for {} writes", actions.len());
    rig.start().await?;
    ensure!(audited(&rig).await?.len() == actions.len(), "audit records are gone after a restart");
    Ok(asked)
}

/// Without a token in the configuration nobody gets in, whatever they bring.
async fn closed_without_a_token() -> Result<u64> {
    let mut rig = Rig::started(Mode::Hmac, &[]).await?;
    let routes = all_routes(api::routes(&rig).await?)?;
    rig.stop().await?;
    rig.set("SIDECAR_ADMIN__TOKEN_FILE", "");
    rig.start().await?;
    let forms = wrong(&rig.token);
    let right = Some(format!("Bearer {}", rig.token));
    let mut asked = 0;
    for route in routes.iter().filter(|route| !route.path.contains("..")) {
        for authorization in forms.iter().take(4).chain([&right]) {
            let path = route.filled("gateway", "-");
            let body = body_for(route);
            let answer = ask(&rig, &route.method, &path, authorization.as_deref(), body.as_deref()).await?;
            ensure!(answer.status == 403, "{path} is open without a token: {}", answer.status);
            asked += 1;
        }
    }
    for open in ["/livez", "/readyz", "/metrics"] {
        ensure!(ask(&rig, "GET", open, None, None).await?.status == 200, "{open} is closed");
    }
    Ok(asked)
}

/// Wrong tokens as fast as one peer can: returns how many a second were looked at.
async fn guessing_is_held_up() -> Result<f64> {
    const SECONDS: u64 = 3;
    let rig = Rig::started(Mode::Hmac, &[]).await?;
    let (mut looked_at, mut turned_away, mut right) = (0_usize, 0, 0_usize);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(SECONDS) {
        let guess = format!("Bearer {}", uuid::Uuid::new_v4());
        match ask(&rig, "GET", "/api/v1/events", Some(&guess), None).await?.status {
            401 => looked_at += 1,
            429 => turned_away += 1,
            other => anyhow::bail!("a guess is answered {other}"),
        }
        if turned_away % 100 == 1 {
            rig.api("/api/v1/statistics").await.context("the holder is locked out")?;
            right += 1;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    // One burst of five, then five a second.
    let limit = FAILURES_PER_SECOND as f64 * (seconds + 1.0) + 1.0;
    ensure!((looked_at as f64) <= limit, "{looked_at} guesses in {seconds:.1} s were looked at, {turned_away} not");
    ensure!(turned_away > 0 && right > 0, "{turned_away} were turned away: too few to tell");
    Ok(looked_at as f64 / seconds)
}
