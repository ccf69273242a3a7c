//! Lago, as a daemon sees it that brings usage: it takes every batch after a while, and costs nearly nothing. The
//! stand-in of `kit-lago` keeps books of every event, which costs as much as what is measured here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Threads of Lago's API, unless it is told otherwise.
///
/// Source: getlago/lago-api `config/puma.rb` at v1.16.0.
pub(crate) const THREADS: usize = 5;
/// The metric of all events: the sum of the property of the same name.
pub(crate) const METRIC: &str = "gb";
/// Events are spread over so many subscriptions.
pub(crate) const SUBSCRIPTIONS: usize = 256;
/// An event in an answer, as Lago writes it.
const EVENT: &str = concat!(
    r#"{"lago_id":null,"transaction_id":"0123456789abcdef0123456789abcdef-00-000000000-00","lago_customer_id":null,"#,
    r#""code":"gb","timestamp":"2024-11-19T07:06:40.250Z","precise_total_amount_cents":null,"#,
    r#""properties":{"gb":512.64,"region":"eu-central-1","tier":"standard","cached":false},"#,
    r#""lago_subscription_id":null,"external_subscription_id":"s-000","created_at":"2024-11-19T07:06:41Z"}"#
);

/// External id of a subscription.
pub(crate) fn subscription(number: usize) -> String {
    format!("s-{:03}", number % SUBSCRIPTIONS)
}

/// What came.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Came {
    /// Batches.
    pub(crate) requests: u64,
    /// Events in them.
    pub(crate) events: u64,
    /// Bytes of their bodies.
    pub(crate) bytes: u64,
}

struct Lago {
    time: Duration,
    threads: tokio::sync::Semaphore,
    requests: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
}

/// Serves until killed; `GET /came` says what came.
pub(crate) fn serve(address: SocketAddr, millis: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let lago = Lago {
        time: Duration::from_millis(millis),
        threads: tokio::sync::Semaphore::new(THREADS),
        requests: AtomicU64::new(0),
        events: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    let router = Router::new()
        .route("/api/v1/events/batch", post(batch))
        .route("/api/v1/billable_metrics", get(metrics))
        .route("/api/v1/subscriptions", get(subscriptions))
        .route("/came", get(came))
        .with_state(Arc::new(lago));
    runtime.block_on(async move {
        axum::serve(tokio::net::TcpListener::bind(address).await?, router).await.context("serve")
    })
}

async fn batch(State(lago): State<Arc<Lago>>, body: Bytes) -> Response {
    #[derive(Deserialize)]
    struct Batch {
        events: Vec<IgnoredAny>,
    }
    let Ok(batch) = serde_json::from_slice::<Batch>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let _thread = lago.threads.acquire().await;
    tokio::time::sleep(lago.time).await;
    lago.requests.fetch_add(1, Ordering::Relaxed);
    lago.events.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
    lago.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    json(format!(r#"{{"events":[{}]}}"#, vec![EVENT; batch.events.len()].join(",")))
}

async fn came(State(lago): State<Arc<Lago>>) -> Response {
    let came = Came {
        requests: lago.requests.load(Ordering::Relaxed),
        events: lago.events.load(Ordering::Relaxed),
        bytes: lago.bytes.load(Ordering::Relaxed),
    };
    json(serde_json::to_string(&came).unwrap_or_default())
}

/// One page that holds all.
fn page(name: &str, items: Vec<serde_json::Value>) -> Response {
    let meta = json!({ "current_page": 1, "next_page": null, "prev_page": null, "total_pages": 1, "total_count": items.len() });
    json(json!({ name: items, "meta": meta }).to_string())
}

async fn metrics() -> Response {
    page("billable_metrics", vec![json!({ "code": METRIC, "aggregation_type": "sum_agg", "field_name": METRIC })])
}

async fn subscriptions() -> Response {
    let subscription = |number| {
        let started = "2024-01-01T00:00:00Z";
        json!({ "external_id": subscription(number), "external_customer_id": "customer", "started_at": started })
    };
    page("subscriptions", (0..SUBSCRIPTIONS).map(subscription).collect())
}

fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}
