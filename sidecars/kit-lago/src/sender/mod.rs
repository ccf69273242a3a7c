//! A stand-in for Lago's delivery worker: the same request on the wire, the same notion of success,
//! the same few retries. For the demo, the command-line tool, the load generator and the tests.
//!
//! It speaks HTTP/1.1 over a plain socket instead of through a client library, because the order
//! and case of the headers are part of what is imitated, and because it must know whether an answer
//! was *read*: only then has the receiver promised anything.
//!
//! Source: getlago/lago-api `app/services/webhooks/send_http_service.rb` and
//! `lib/lago_http_client/lago_http_client/client.rb` at v1.16.0; requests as recorded in
//! `tests/fixtures/captures`.

mod wire;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kit::secret::Secret;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use url::Url;
use uuid::Uuid;

use crate::signature::{Algorithm, RsaSigner, SignerError, sign_hmac, sign_jwt};

/// The only statuses that Lago takes for success; any other 2xx and every 3xx is a failure to it.
pub const SUCCESS: [u16; 4] = [200, 201, 202, 204];
/// Lago's `LAGO_WEBHOOK_TIMEOUT_SECONDS` by default since v1.39.0; 60 seconds before.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections kept for reuse; further ones are closed after their answer.
const MAX_IDLE: usize = 256;

/// What an endpoint's webhooks are signed with.
#[derive(Debug, Clone)]
pub enum Signing {
    /// HMAC with the organisation's key.
    Hmac(Secret),
    /// RS256 with the instance's key, naming the issuer (`LAGO_API_URL` of the worker).
    Jwt(Arc<RsaSigner>, String),
}

impl Signing {
    /// The algorithm, as `X-Lago-Signature-Algorithm` names it.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hmac(_) => Algorithm::Hmac,
            Self::Jwt(..) => Algorithm::Jwt,
        }
    }

    /// The value of `X-Lago-Signature` for a body.
    ///
    /// # Errors
    /// [`SignerError::Failed`] when the RSA operation fails.
    pub fn sign(&self, body: &str) -> Result<String, SignerError> {
        match self {
            Self::Hmac(key) => Ok(sign_hmac(key, body.as_bytes())),
            Self::Jwt(signer, issuer) => sign_jwt(signer, body, issuer),
        }
    }

    /// A signed delivery under a fresh unique key.
    ///
    /// # Errors
    /// As [`Signing::sign`].
    pub fn delivery(&self, webhook_type: &str, body: impl Into<String>) -> Result<Delivery, SignerError> {
        let body = body.into();
        Ok(Delivery {
            unique_key: Uuid::new_v4().to_string(),
            webhook_type: webhook_type.to_owned(),
            signature: self.sign(&body)?,
            algorithm: self.algorithm(),
            body: Bytes::from(body),
        })
    }
}

/// One webhook, ready to be sent any number of times. The fields are public so that a test can
/// spoil any of them.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// `X-Lago-Unique-Key`: the same on every attempt.
    pub unique_key: String,
    /// What it announces; for the sender's own bookkeeping, not on the wire.
    pub webhook_type: String,
    /// The exact bytes.
    pub body: Bytes,
    /// `X-Lago-Signature`.
    pub signature: String,
    /// `X-Lago-Signature-Algorithm`.
    pub algorithm: Algorithm,
}

/// An answer that was read completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code of the final (not 1xx) answer.
    pub status: u16,
    /// Header fields in wire order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, without transfer coding.
    pub body: Vec<u8>,
    /// From the start of connecting to the last byte read.
    pub latency: Duration,
}

impl Answer {
    /// Whether Lago would mark the delivery as succeeded.
    pub fn is_success(&self) -> bool {
        SUCCESS.contains(&self.status)
    }

    /// The first value of a header field, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Why there is no answer. In every case but [`SendError::Connect`] and [`SendError::BadField`] the
/// receiver may have taken the webhook.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A field of the delivery cannot stand in a header.
    #[error("{0} holds a character that cannot stand in a header")]
    BadField(&'static str),
    /// No connection.
    #[error("connect to the receiver")]
    Connect(#[source] io::Error),
    /// No connection or no complete answer within the timeout.
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke before the answer was complete.
    #[error("the connection broke before the answer was complete")]
    Broken(#[source] io::Error),
    /// What came back is not an HTTP/1.1 answer.
    #[error("the answer is not HTTP: {0}")]
    Malformed(&'static str),
}

impl SendError {
    /// Whether Lago sends again after this. It does so for refused, reset and closed connections,
    /// its own timeouts and bad answers, and lets the job die on the kernel's time-out and on an
    /// unreachable network.
    pub fn is_retried_by_lago(&self) -> bool {
        match self {
            Self::BadField(_) => false,
            Self::Connect(error) | Self::Broken(error) => {
                !matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::NetworkUnreachable)
            }
            Self::Timeout(_) | Self::Malformed(_) => true,
        }
    }
}

/// The receiver's address is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the receiver must be a plain http address with a host, such as http://127.0.0.1:8080/webhooks/lago")]
pub struct BadTarget;

/// Sends deliveries to one address. Cheap to share; any number may be under way at once.
#[derive(Debug)]
pub struct Sender {
    address: String,
    host: String,
    target: String,
    timeout: Duration,
    keep_alive: bool,
    idle: Mutex<Vec<TcpStream>>,
}

impl Sender {
    /// A sender that opens a connection for every delivery, as Lago does.
    ///
    /// # Errors
    /// [`BadTarget`] unless `url` is an `http` address; TLS is not imitated.
    pub fn new(url: &str) -> Result<Self, BadTarget> {
        let url = Url::parse(url).map_err(|_| BadTarget)?;
        let (true, Some(host), Some(port)) = (url.scheme() == "http", url.host_str(), url.port_or_known_default())
        else {
            return Err(BadTarget);
        };
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        Ok(Self {
            address: format!("{host}:{port}"),
            host: url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            target,
            timeout: DEFAULT_TIMEOUT,
            keep_alive: false,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Keeps connections and uses them again. Lago does not; a load generator may.
    #[must_use]
    pub fn keep_alive(mut self, keep_alive: bool) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// How long connecting and how long waiting for the answer may take, 30 seconds each by default.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The bytes that [`Sender::send_once`] writes for a delivery.
    ///
    /// # Errors
    /// [`SendError::BadField`] where a field would break out of its header.
    pub fn request(&self, delivery: &Delivery) -> Result<Vec<u8>, SendError> {
        wire::request(delivery, &self.target, &self.host, self.keep_alive)
    }

    /// Sends once and reads the whole answer, whatever its status.
    ///
    /// The answer is awaited while the request is still being written, so an early refusal of a
    /// request with megabytes of header is seen as what it is.
    ///
    /// # Errors
    /// [`SendError`]; an answer with a status that Lago counts as failure is not an error here.
    pub async fn send_once(&self, delivery: &Delivery) -> Result<Answer, SendError> {
        let request = self.request(delivery)?;
        let started = Instant::now();
        let mut stream = self.connection().await?;
        let exchange = tokio::time::timeout(self.timeout, exchange(&mut stream, &request));
        let response = exchange.await.map_err(|_| SendError::Timeout(self.timeout))??;
        if self.keep_alive && response.reusable {
            self.release(stream);
        }
        Ok(Answer {
            status: response.status,
            headers: response.headers,
            body: response.body,
            latency: started.elapsed(),
        })
    }

    /// Sends up to `plan.attempts` times with Lago's waits in between, until Lago would be content
    /// or would not try again. What every attempt met is returned.
    pub async fn send_with_retries(&self, delivery: &Delivery, plan: &RetryPlan) -> Outcome {
        let mut attempts = Vec::new();
        for attempt in 1..=plan.attempts {
            let result = self.send_once(delivery).await;
            let delivered = matches!(&result, Ok(answer) if answer.is_success());
            let hopeless = matches!(&result, Err(error) if !error.is_retried_by_lago());
            attempts.push(result);
            if delivered {
                return Outcome { attempts, delivered };
            }
            if hopeless {
                break;
            }
            if attempt < plan.attempts {
                tokio::time::sleep(plan.wait_after(attempt, fastrand::f64())).await;
            }
        }
        Outcome { attempts, delivered: false }
    }

    /// Connections kept for reuse that are still open.
    pub fn idle_connections(&self) -> usize {
        let mut idle = self.idle();
        idle.retain(is_quiet);
        idle.len()
    }

    async fn connection(&self) -> Result<TcpStream, SendError> {
        if let Some(stream) = self.quiet_connection() {
            return Ok(stream);
        }
        let connect = TcpStream::connect(&self.address);
        let stream = tokio::time::timeout(self.timeout, connect)
            .await
            .map_err(|_| SendError::Timeout(self.timeout))?
            .map_err(SendError::Connect)?;
        // Ruby's sockets set it too: Net::HTTP turns Nagle's algorithm off.
        stream.set_nodelay(true).map_err(SendError::Connect)?;
        Ok(stream)
    }

    fn quiet_connection(&self) -> Option<TcpStream> {
        let mut idle = self.idle();
        while let Some(stream) = idle.pop() {
            if is_quiet(&stream) {
                return Some(stream);
            }
        }
        None
    }

    fn release(&self, stream: TcpStream) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(stream);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lago's retry budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPlan {
    /// Attempts in all: `LAGO_WEBHOOK_ATTEMPTS`, 3 by default, over about 21 seconds.
    pub attempts: u32,
    /// Factor on every wait, so that a test need not take its time; 1.0 is Lago.
    pub time_scale: f64,
}

impl Default for RetryPlan {
    fn default() -> Self {
        Self { attempts: 3, time_scale: 1.0 }
    }
}

impl RetryPlan {
    /// The wait after the nth failed attempt: n⁴ + random · 0.15 · n⁴ + 2 seconds, scaled.
    /// `random` lies between 0 and 1. At most a year.
    ///
    /// Source: getlago/lago-api `app/services/webhooks/send_http_service.rb` (`wait_value`).
    pub fn wait_after(&self, attempt: u32, random: f64) -> Duration {
        const YEAR_SECONDS: f64 = 31_536_000.0;
        let power = f64::from(attempt).powi(4);
        let seconds = (power + random.clamp(0.0, 1.0) * 0.15 * power + 2.0) * self.time_scale;
        // A scale that is no number makes no wait.
        Duration::try_from_secs_f64(seconds.clamp(0.0, YEAR_SECONDS)).unwrap_or_default()
    }
}

/// What became of a delivery.
#[derive(Debug)]
pub struct Outcome {
    /// Every attempt, in order.
    pub attempts: Vec<Result<Answer, SendError>>,
    /// Whether the last one was a success to Lago.
    pub delivered: bool,
}

/// Nothing is expected on an idle connection: bytes or an end mean that it is spent.
fn is_quiet(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

async fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<wire::Response, SendError> {
    let (mut reader, mut writer) = stream.split();
    let write = writer.write_all(request);
    let read = wire::read_response(&mut reader);
    tokio::pin!(write, read);
    let mut writing = true;
    loop {
        tokio::select! {
            biased;
            response = &mut read => {
                let mut response = response?;
                // The rest of a half-written request would be taken for the next one.
                response.reusable &= !writing;
                return Ok(response);
            }
            // A receiver that refuses early may close its side: the answer tells more than the
            // write error does, and if there is none, reading fails as well.
            _ = &mut write, if writing => writing = false,
        }
    }
}
