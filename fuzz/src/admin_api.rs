//! The admin API with a valid token: the first line is method and target, the rest the body.
//!
//! Promises: a request is served or refused with a sentence, never an internal error; a dry run
//! changes nothing; whatever is asked, the counters close.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, Uri};
use http_body_util::BodyExt as _;
use kit::admin::{AdminState, Readiness, router};
use kit::api::Title;
use kit::clock::{ManualClock, SharedClock};
use kit::secret::Secret;
use kit::serve::ConnInfo;
use kit::telemetry::Metrics;
use kit_delivery::SinkStatus;
use kit_delivery::api::{self, ApiState};
use kit_journal::{Journal, JournalSection, JournalTask};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::parts::{first_line, runtime};
use crate::samples::{EVENTS, SINK, THEN, fill, fresh};
use crate::scratch::Scratch;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const TITLE: Title = Title { name: "fuzz", version: "0", text: "The admin API of nobody." };

/// Kept from one input to the next until one has changed it.
static BENCH: Mutex<Option<Bench>> = Mutex::new(None);

/// The files of the journal that every bench begins with.
static FILLED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = Scratch::new();
    let mut engine = fresh(&folder.path("j.db"));
    fill(&mut *engine);
    engine.close();
    std::fs::read(folder.path("j.db")).expect("the store has its file")
});

struct Bench {
    app: Router,
    task: JournalTask,
    totals: Value,
    _folder: Scratch,
}

/// Sends the request.
///
/// # Panics
/// It is answered in a way it must not be.
pub fn target(data: &[u8]) {
    let (line, body) = first_line(data);
    let Some((method, target)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' ')) else { return };
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), target.parse::<Uri>()) else { return };
    let mut kept = BENCH.lock().unwrap_or_else(PoisonError::into_inner);
    let bench = kept.take().unwrap_or_else(|| runtime().block_on(Bench::new()));
    let reads = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
    let dry_run = serde_json::from_slice::<Value>(body).is_ok_and(|body| body["dry_run"] == true);

    let status = runtime().block_on(bench.ask(method, uri, body.to_vec()));
    let totals = runtime().block_on(bench.totals());
    let unchanged = totals == bench.totals;
    assert!(unchanged || !(reads || dry_run || status != StatusCode::OK), "changed by {status}: {totals}");
    if unchanged && (reads || status != StatusCode::OK) {
        *kept = Some(bench);
    } else {
        // Every input meets the same journal; without the audit records of others, too.
        bench.task.close();
    }
}

impl Bench {
    async fn new() -> Self {
        let folder = Scratch::new();
        let path = folder.path("j.db");
        std::fs::write(&path, &*FILLED).expect("the file can be written");
        let clock: SharedClock = Arc::new(ManualClock::new(THEN));
        let section = JournalSection { path, ..JournalSection::default() };
        let (journal, task) =
            Journal::open(&section, Arc::clone(&clock), &mut Registry::default()).expect("a good journal opens");
        let status = Arc::new(Mutex::new(SinkStatus { circuit: "closed", ..SinkStatus::default() }));
        let sinks = Arc::new(BTreeMap::from([(SINK.to_owned(), status)]));
        let api = api::api(ApiState { journal, clock, sinks, at_work: Arc::default(), choosy: api::Choosy::default() });
        let metrics = Arc::new(Metrics::new("fuzz", "0"));
        let token = Some(Secret::from(TOKEN.to_owned()));
        let app = router(AdminState { metrics, readiness: Readiness::default(), token, api, title: TITLE });
        let mut bench = Self { app, task, totals: Value::Null, _folder: folder };
        bench.totals = bench.totals().await;
        bench
    }

    async fn ask(&self, method: Method, uri: Uri, body: Vec<u8>) -> StatusCode {
        let path = uri.path().to_owned();
        let head = method == Method::HEAD;
        let (status, answer) = self.send(method, uri, body).await;
        match status {
            StatusCode::OK if path == "/livez" || path == "/metrics" || path.ends_with("/body") || head => {}
            StatusCode::OK => assert!(serde_json::from_slice::<Value>(&answer).is_ok(), "{path}: not JSON"),
            StatusCode::SERVICE_UNAVAILABLE if path == "/readyz" => {}
            // Refused, with a sentence or by the router.
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::CONFLICT
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => {
                assert!(answer.len() < 16_384, "{path}: {} bytes of refusal", answer.len());
            }
            other => panic!("{path}: {other} {}", String::from_utf8_lossy(&answer)),
        }
        status
    }

    async fn send(&self, method: Method, uri: Uri, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let header = |text: &str| http::HeaderValue::from_str(text).expect("a header's value");
        request.headers_mut().insert("authorization", header(&format!("Bearer {TOKEN}")));
        request.headers_mut().insert("content-type", header("application/json"));
        request.extensions_mut().insert(ConnInfo { peer: SocketAddr::from(([127, 0, 0, 1], 1)) });
        let response = self.app.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = response.status();
        let body = response.into_body().collect().await.expect("an answer is complete");
        (status, body.to_bytes().to_vec())
    }

    /// The counters, checked to close.
    async fn totals(&self) -> Value {
        let (status, answer) = self.send(Method::GET, Uri::from_static("/api/v1/statistics"), Vec::new()).await;
        assert_eq!(status, StatusCode::OK);
        let mut totals: Value = serde_json::from_slice(&answer).expect("it is JSON");
        let sink = &totals["sinks"][0];
        let parts = ["delivered", "pending", "parked", "dropped", "filtered"];
        let sum: u64 = parts.iter().filter_map(|name| sink[name].as_u64()).sum();
        assert_eq!(Some(sum), sink["accepted"].as_u64(), "{totals}");
        assert_eq!(totals["accepted"], EVENTS);
        // An audit record takes room, too.
        totals["journal_bytes"] = Value::Null;
        totals
    }
}
