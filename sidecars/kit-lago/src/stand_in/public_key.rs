//! A stand-in for the corner of Lago's API that a webhook receiver needs: the public key and the
//! health check, over real HTTP on loopback. It can be slow, broken, gone, and rotate its key.
//!
//! Source: getlago/lago-api `app/controllers/api/v1/webhooks_controller.rb`,
//! `app/controllers/application_controller.rb` at v1.16.0.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kit::secret::Secret;
use kit::stand_in::{ANY_PORT, listen};
use subtle::ConstantTimeEq;
use tokio::task::JoinHandle;

/// Characters a line of Ruby's `Base64.encode64`.
const BASE64_COLUMNS: usize = 60;

/// How the stand-in answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Answering {
    /// As Lago does.
    #[default]
    Normally,
    /// As Lago does, after a while.
    Slowly(Duration),
    /// As a proxy does whose Lago is gone: 503 and some HTML.
    Unavailable,
    /// Anything.
    With {
        /// Status code.
        status: u16,
        /// Body, sent as JSON.
        body: String,
    },
}

/// A running stand-in. Dropping it closes the port.
#[derive(Debug)]
pub struct PublicKeyServer {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    public_pem: String,
    api_key: Secret,
    answering: Answering,
    requests: u64,
}

type SharedState = State<Arc<Mutex<Shared>>>;

impl PublicKeyServer {
    /// Starts on a free loopback port, handing out `public_pem` to whoever has `api_key`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(public_pem: impl Into<String>, api_key: Secret) -> io::Result<Self> {
        Self::start_on(ANY_PORT, public_pem, api_key).await
    }

    /// Starts on a given address, for example on that of a stand-in that was dropped.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_on(address: SocketAddr, public_pem: impl Into<String>, api_key: Secret) -> io::Result<Self> {
        let listener = listen(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared {
            public_pem: public_pem.into(),
            api_key,
            answering: Answering::Normally,
            requests: 0,
        }));
        let app = Router::new()
            .route("/api/v1/webhooks/json_public_key", get(json_public_key))
            .route("/api/v1/webhooks/public_key", get(text_public_key))
            .route("/health", get(health))
            .fallback(not_found)
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::warn!(%error, "the stand-in for Lago's API stopped");
            }
        });
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its `LAGO_API_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how the next requests are answered.
    pub fn answer(&self, answering: Answering) {
        lock(&self.shared).answering = answering;
    }

    /// Hands out another key from now on. Lago has no overlap either.
    pub fn rotate(&self, public_pem: impl Into<String>) {
        lock(&self.shared).public_pem = public_pem.into();
    }

    /// How often a key was asked for, with or without success.
    pub fn requests(&self) -> u64 {
        lock(&self.shared).requests
    }

    /// Closes the port and waits until it is closed, so that it can be bound again.
    pub async fn stop(mut self) {
        self.task.abort();
        // An aborted task reports so; there is nothing else to learn.
        let _aborted = (&mut self.task).await;
    }
}

impl Drop for PublicKeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The text Lago gives for a PEM: Base64 in lines of 60 characters, each ended by a line feed.
pub fn encode_public_key_answer(public_pem: &str) -> String {
    let encoded = STANDARD.encode(public_pem);
    let mut text = String::with_capacity(encoded.len() + encoded.len() / BASE64_COLUMNS + 1);
    for (index, character) in encoded.chars().enumerate() {
        if index > 0 && index % BASE64_COLUMNS == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push('\n');
    text
}

async fn json_public_key(State(shared): SharedState, headers: HeaderMap) -> Response {
    match key_for(&shared, &headers).await {
        Ok(key) => axum::Json(serde_json::json!({ "webhook": { "public_key": key } })).into_response(),
        Err(refusal) => refusal,
    }
}

async fn text_public_key(State(shared): SharedState, headers: HeaderMap) -> Response {
    match key_for(&shared, &headers).await {
        Ok(key) => key.into_response(),
        Err(refusal) => refusal,
    }
}

async fn key_for(shared: &Mutex<Shared>, headers: &HeaderMap) -> Result<String, Response> {
    let answering = {
        let mut shared = lock(shared);
        shared.requests += 1;
        shared.answering.clone()
    };
    match answering {
        Answering::Normally => {}
        Answering::Slowly(delay) => tokio::time::sleep(delay).await,
        Answering::Unavailable => {
            let page = axum::response::Html("<h1>503 Service Unavailable</h1>");
            return Err((StatusCode::SERVICE_UNAVAILABLE, page).into_response());
        }
        Answering::With { status, body } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Err(json(status, body));
        }
    }
    let shared = lock(shared);
    let expected = format!("Bearer {}", shared.api_key.expose());
    let given = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    if bool::from(given.ct_eq(expected.as_bytes())) {
        Ok(encode_public_key_answer(&shared.public_pem))
    } else {
        let body = r#"{"status":401,"error":"Unauthorized"}"#;
        Err(json(StatusCode::UNAUTHORIZED, body.to_owned()))
    }
}

async fn health(State(shared): SharedState) -> Response {
    if lock(&shared).answering == Answering::Unavailable {
        let body = r#"{"version":"v1.16.0","message":"Unhealthy","details":"database"}"#;
        return json(StatusCode::INTERNAL_SERVER_ERROR, body.to_owned());
    }
    let body =
        r#"{"version":"v1.16.0","github_url":"https://github.com/getlago/lago-api/tree/v1.16.0","message":"Success"}"#;
    json(StatusCode::OK, body.to_owned())
}

async fn not_found() -> Response {
    let body = r#"{"status":404,"error":"Not Found","code":"resource_not_found"}"#;
    json(StatusCode::NOT_FOUND, body.to_owned())
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
