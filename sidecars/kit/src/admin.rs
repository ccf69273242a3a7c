//! The admin listener's routes: health and metrics for everybody who reaches it, the API for those
//! who hold the token.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api::{self, Api, Title};
use crate::secret::Secret;
use crate::serve::ConnInfo;
use crate::telemetry::Metrics;

/// Failed attempts a second that one peer may make.
const FAILURES_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).expect("five is not zero");
/// Peers remembered for that; above it the oldest are forgotten.
const PEERS: usize = 4096;

/// A sentence is shorter.
const ERROR_BYTES: usize = 16 << 10;
/// What axum says before what is wrong.
const AXUMS_WORDS: [&str; 3] = [
    "Failed to deserialize query string: ",
    "Failed to deserialize the JSON body into the target type: ",
    "Failed to parse the request body as JSON: ",
];

/// Which parts of the daemon are ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<String, PartState>>>,
}

#[derive(Clone, Debug)]
enum PartState {
    Ready,
    /// Ready, and something about it is to be known.
    ReadyBut(String),
    NotReady(String),
}

impl PartState {
    fn is_ready(&self) -> bool {
        !matches!(self, Self::NotReady(_))
    }

    fn shown(&self) -> &str {
        match self {
            Self::Ready => "ready",
            Self::ReadyBut(text) | Self::NotReady(text) => text,
        }
    }
}

/// One part's way to say whether it is ready.
#[derive(Clone, Debug)]
pub struct Part {
    name: String,
    readiness: Readiness,
}

impl Readiness {
    /// A part that is not ready yet.
    pub fn part(&self, name: &str) -> Part {
        let part = Part { name: name.to_owned(), readiness: self.clone() };
        part.set_not_ready("starting");
        part
    }

    /// Whether all parts are.
    pub fn is_ready(&self) -> bool {
        self.report().0
    }

    fn report(&self) -> (bool, serde_json::Value) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = parts.values().all(PartState::is_ready);
        let shown: BTreeMap<&String, &str> = parts.iter().map(|(name, state)| (name, state.shown())).collect();
        (ready, json!({ "ready": ready, "parts": shown }))
    }
}

impl Part {
    /// The part works.
    pub fn set_ready(&self) {
        self.set(PartState::Ready);
    }

    /// The part works, and a person should know this about it.
    pub fn set_ready_but(&self, note: &str) {
        self.set(PartState::ReadyBut(note.to_owned()));
    }

    /// It does not, and why.
    pub fn set_not_ready(&self, reason: &str) {
        self.set(PartState::NotReady(reason.to_owned()));
    }

    fn set(&self, state: PartState) {
        let mut parts = self.readiness.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(self.name.clone(), state);
    }
}

/// What the admin routes need.
pub struct AdminState {
    /// Metrics to show.
    pub metrics: Arc<Metrics>,
    /// Parts to ask.
    pub readiness: Readiness,
    /// Bearer token of the API; without one it is closed.
    pub token: Option<Secret>,
    /// The API, mounted at `/api/v1`.
    pub api: Api,
    /// What its description says of the whole.
    pub title: Title,
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminState").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

struct Shared {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    token: Option<[u8; 32]>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    title: Title,
    described: Vec<&'static str>,
}

/// The admin listener's router.
pub fn router(state: AdminState) -> Router {
    let shared = Arc::new(Shared {
        metrics: state.metrics,
        readiness: state.readiness,
        token: state.token.map(|token| digest(token.expose().as_bytes())),
        failures: RateLimiter::keyed(Quota::per_second(FAILURES_PER_SECOND)),
        title: state.title,
        described: state.api.described,
    });
    let api = Router::new()
        .route("/openapi.json", get(openapi))
        .with_state(Arc::clone(&shared))
        .merge(state.api.routes)
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "no such path") })
        .layer(map_response(in_one_form))
        .layer(from_fn_with_state(Arc::clone(&shared), authorise));
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shared)
        .nest("/api/v1", api)
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "no such path") })
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let (ready, report) = shared.readiness.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], shared.metrics.render()).into_response()
}

async fn openapi(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api::document(shared.title, &shared.described)).into_response()
}

async fn authorise(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let Some(token) = &shared.token else {
        return refusal(
            StatusCode::FORBIDDEN,
            "the admin API is closed: set SIDECAR_ADMIN__TOKEN_FILE and start again",
        );
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| digest(token));
    // Digests of equal length are compared, and one is compared even when none was given.
    let matches: bool = given.unwrap_or([0; 32]).ct_eq(token).into();
    if matches && given.is_some() {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<ConnInfo>().map_or(IpAddr::from([0, 0, 0, 0]), |info| info.peer.ip());
    if shared.failures.len() > PEERS {
        shared.failures.retain_recent();
    }
    if shared.failures.check_key(&peer).is_err() {
        let mut response = refusal(StatusCode::TOO_MANY_REQUESTS, "too many failed attempts");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    }
    let mut response = refusal(StatusCode::UNAUTHORIZED, "a bearer token is required");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Every error is `{"error":"a sentence"}`, also those that axum makes of a request that it cannot read for us: they are a
/// text, or nothing.
async fn in_one_form(mut response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = to_bytes(std::mem::take(response.body_mut()), ERROR_BYTES).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let text = AXUMS_WORDS.iter().find_map(|words| text.strip_prefix(words)).unwrap_or(&text);
    let text = if text.is_empty() { status.canonical_reason().unwrap_or("refused") } else { text };
    *response.body_mut() = Body::from(json!({ "error": text }).to_string());
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn refusal(status: StatusCode, error: &'static str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::extract::Query;
    use tower::ServiceExt as _;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Number {
        #[serde(rename = "number")]
        _number: u8,
    }

    fn app(token: Option<&str>) -> (Router, Readiness) {
        let readiness = Readiness::default();
        let state = AdminState {
            metrics: Arc::new(Metrics::new("probe", "1")),
            readiness: readiness.clone(),
            token: token.map(|token| Secret::from(token.to_owned())),
            api: Api {
                routes: Router::new()
                    .route("/things", get(|| async { "things" }))
                    .route("/number", get(|Query(_): Query<Number>| async {}).post(|Json(_): Json<Number>| async {})),
                described: Vec::new(),
            },
            title: Title { name: "probe", version: "1", text: "" },
        };
        (router(state), readiness)
    }

    async fn status(app: &Router, path: &str, authorization: Option<&str>) -> StatusCode {
        let mut request = Request::builder().uri(path);
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn every_error_has_one_form() {
        let (app, _) = app(Some(TOKEN));
        for (method, path, kind, body, status, error) in [
            ("GET", "/number?number=300", "", "", 400, "number: number too large to fit in target type"),
            ("GET", "/number", "", "", 400, "missing field `number`"),
            ("POST", "/number", "application/json", "{", 400, "EOF while parsing an object at line 1 column 1"),
            (
                "POST",
                "/number",
                "application/json",
                r#"{"n":1}"#,
                422,
                "unknown field `n`, expected `number` at line 1 column 4",
            ),
            ("POST", "/number", "text/plain", "{}", 415, "Expected request with `Content-Type: application/json`"),
            ("DELETE", "/number", "", "", 405, "Method Not Allowed"),
            ("GET", "/nothing", "", "", 404, "no such path"),
        ] {
            let request = Request::builder().method(method).uri(format!("/api/v1{path}"));
            let request = request.header("authorization", format!("Bearer {TOKEN}")).header("content-type", kind);
            let response = app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();

            assert_eq!(response.status(), status, "{method} {path}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json", "{method} {path}");
            assert!(method != "DELETE" || response.headers().contains_key(header::ALLOW));
            let told = to_bytes(response.into_body(), ERROR_BYTES).await.unwrap();
            let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
            assert!(told["error"].as_str().unwrap().contains(error), "{method} {path}: {told}");
        }
    }

    #[tokio::test]
    async fn every_api_path_wants_the_token_also_those_that_do_not_exist() {
        let (app, _) = app(Some(TOKEN));
        let bearer = format!("Bearer {TOKEN}");
        for path in ["/api/v1/things", "/api/v1/openapi.json"] {
            assert_eq!(status(&app, path, Some(&bearer)).await, StatusCode::OK, "{path}");
        }
        assert_eq!(status(&app, "/api/v1/nothing", Some(&bearer)).await, StatusCode::NOT_FOUND);
        for (path, given) in [
            ("/api/v1/things", None),
            ("/api/v1/openapi.json", None),
            ("/api/v1/nothing", None),
            ("/api/v1/things", Some("Basic 0123456789abcdef0123456789abcdef")),
            ("/api/v1/things", Some("Bearer 0123456789abcdef0123456789abcdeX")),
        ] {
            assert_eq!(status(&app, path, given).await, StatusCode::UNAUTHORIZED, "{path} {given:?}");
        }
    }

    #[tokio::test]
    async fn guessing_is_slowed_down_and_does_not_lock_the_holder_out() {
        let (app, _) = app(Some(TOKEN));
        let mut seen = Vec::new();
        for _ in 0..20 {
            seen.push(status(&app, "/api/v1/things", Some("Bearer wrong")).await);
        }
        assert!(seen.contains(&StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(status(&app, "/api/v1/things", Some(&format!("bearer {TOKEN}"))).await, StatusCode::OK);
    }

    #[tokio::test]
    async fn without_a_token_the_api_is_closed_and_health_is_not() {
        let (app, readiness) = app(None);
        assert_eq!(status(&app, "/api/v1/things", Some("Bearer ")).await, StatusCode::FORBIDDEN);
        assert_eq!(status(&app, "/livez", None).await, StatusCode::OK);
        assert_eq!(status(&app, "/metrics", None).await, StatusCode::OK);

        let part = readiness.part("journal");
        assert_eq!(status(&app, "/readyz", None).await, StatusCode::SERVICE_UNAVAILABLE);
        part.set_ready();
        assert_eq!(status(&app, "/readyz", None).await, StatusCode::OK);
        part.set_not_ready("disk full");
        assert_eq!(status(&app, "/readyz", None).await, StatusCode::SERVICE_UNAVAILABLE);
    }
}
