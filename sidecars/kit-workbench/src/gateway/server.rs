//! The gateway's wire side: own accept loop over hyper, because a stand-in has to reset and to
//! ignore connections, which a server framework does not let a handler do.

use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::behaviour::{End, Pace, Plan};
use super::received::{Received, ReceivedHead, unpack};
use super::{JournalLine, Shared, signature};
use crate::Moment;

/// The kernel is out of descriptors or the like: wait instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const HEAD_LIMIT_BYTES: usize = 8 * 1024 * 1024;

type Body = BoxBody<Bytes, std::io::Error>;

/// Accepts until stopped; then closes the port and breaks all connections before it returns.
pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(Arc::clone(&shared), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "the gateway cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection is gone before it began");
        return;
    }
    let reset = CancellationToken::new();
    let wire = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let (shared, breaks) = (Arc::clone(&shared), Break { reset: reset.clone(), wire: Arc::clone(&wire) });
        async move { Ok::<_, Infallible>(answer(shared, breaks, request).await) }
    });
    // Room for the head of a raw delivery that keeps Lago's JWT header.
    let mut connection =
        http1::Builder::new().max_buf_size(HEAD_LIMIT_BYTES).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        done = &mut connection => {
            if let Err(error) = done {
                tracing::debug!(%error, "connection to the gateway ended");
            }
        }
        () = reset.cancelled() => {
            let mut stream = connection.into_parts().io.into_inner();
            let bytes = wire.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(bytes) = bytes {
                // The client may have had enough of it before the end.
                if stream.write_all(&bytes).await.is_err() || stream.shutdown().await.is_err() {
                    tracing::debug!("connection is gone before the end of the gateway's bytes");
                }
                return;
            }
            // With no time to linger, closing sends RST and discards what is unsent.
            if let Err(error) = stream.set_zero_linger() {
                tracing::debug!(%error, "connection is gone before its reset");
            }
        }
    }
}

/// How a handler ends its connection by other means than an answer.
#[derive(Clone)]
struct Break {
    reset: CancellationToken,
    /// Bytes to send first; without them the connection is reset.
    wire: Arc<Mutex<Option<Vec<u8>>>>,
}

async fn answer(shared: Arc<Shared>, breaks: Break, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, shared.options.body_limit_bytes).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "too large");
        }
        // The client broke off: there is nobody to answer, and nothing was received.
        Err(_) => return plain(StatusCode::BAD_REQUEST, "incomplete"),
    };
    let (head, plan) = shared.record(&parts, body);
    if plan.pause > Duration::ZERO {
        tokio::time::sleep(plan.pause).await;
    }
    match plan.end {
        End::Answer { status, headers, body, taken, pace } => {
            let response = match build(status, &headers, body, pace, breaks.reset) {
                Ok(response) => response,
                Err(error) => {
                    let why = format!("the gateway's behaviour is not HTTP: {error}");
                    plain(StatusCode::INTERNAL_SERVER_ERROR, &why)
                }
            };
            shared.record_answer(&head, response.status().as_u16(), taken);
            response
        }
        End::Wire { bytes, taken } => {
            let status = std::str::from_utf8(bytes.get(9..12).unwrap_or_default()).unwrap_or_default();
            shared.record_answer(&head, status.parse().unwrap_or(0), taken);
            *breaks.wire.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
            breaks.reset.cancel();
            std::future::pending().await
        }
        End::Reset => {
            shared.tell(head.number);
            breaks.reset.cancel();
            std::future::pending().await
        }
        End::Silence => {
            shared.tell(head.number);
            std::future::pending().await
        }
    }
}

fn build(
    status: u16,
    headers: &[(String, String)],
    body: Vec<u8>,
    pace: Pace,
    reset: CancellationToken,
) -> Result<Response<Body>, http::Error> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let length = body.len();
    match pace {
        Pace::AtOnce => response.body(whole(body)),
        Pace::PerByte(every) => {
            let bytes = stream::unfold(body.into_iter(), move |mut rest| async move {
                let byte = rest.next()?;
                tokio::time::sleep(every).await;
                Some((Ok(Frame::data(Bytes::from(vec![byte]))), rest))
            });
            response.header(http::header::CONTENT_LENGTH, length).body(BoxBody::new(StreamBody::new(bytes)))
        }
        Pace::CutAfter(bytes) => {
            let part = Bytes::copy_from_slice(&body[..bytes.min(length)]);
            let cut = stream::unfold(Some(part), move |part| {
                let reset = reset.clone();
                async move {
                    if let Some(part) = part {
                        return Some((Ok(Frame::data(part)), None));
                    }
                    // Let the connection write what it has before it is broken.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    reset.cancel();
                    std::future::pending().await
                }
            });
            // One byte more than will ever come, so that a full body is cut as well.
            response.header(http::header::CONTENT_LENGTH, length + 1).body(BoxBody::new(StreamBody::new(cut)))
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(whole(text.as_bytes().to_vec()));
    *response.status_mut() = status;
    response
}

fn whole(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed()
}

impl Shared {
    /// Notes a complete request and decides what to do with it.
    fn record(&self, parts: &Parts, body: Bytes) -> (ReceivedHead, Plan) {
        let at = Moment::now();
        let unpacked = unpack(&parts.headers, &body);
        let signature_ok = self.judge_signature(&parts.headers, &body);
        let path = parts.uri.path_and_query().map_or_else(|| parts.uri.path().to_owned(), ToString::to_string);

        let mut state = self.state();
        state.counts.received += 1;
        state.counts.bad_signatures += u64::from(signature_ok == Some(false));
        let number = state.counts.received;
        let attempt = match &unpacked.event_id {
            Some(id) if state.attempts.len() < self.options.record_limit => {
                let attempts = state.attempts.entry(id.clone()).or_default();
                *attempts += 1;
                *attempts
            }
            Some(id) => state.attempts.get(id).map_or(1, |attempts| attempts + 1),
            None => 1,
        };
        let head = ReceivedHead {
            number,
            method: parts.method.to_string(),
            path,
            headers: parts.headers.clone(),
            event_id: unpacked.event_id,
            event_type: unpacked.event_type,
            subject: unpacked.subject,
            attempt,
        };
        let behaviour = state.behaviour.next();
        let received = Received {
            number,
            at,
            method: head.method.clone(),
            path: head.path.clone(),
            headers: self.kept_headers(&parts.headers),
            format: unpacked.format,
            event_id: head.event_id.clone(),
            event_type: head.event_type.clone(),
            subject: head.subject.clone(),
            source: unpacked.source,
            tenant: unpacked.tenant,
            unique_key: text(&parts.headers, "x-lago-unique-key"),
            data_sha256: unpacked.data_sha256,
            body_len: body.len(),
            signature_ok,
            answered: 0,
            answered_at: None,
            taken: false,
            body: self.options.keep_bodies.then_some(body),
        };
        state.append(&JournalLine::Received(Box::new(received.clone())));
        if state.received.len() < self.options.record_limit {
            state.received.push(received);
        } else {
            state.counts.unrecorded += 1;
        }
        self.counts.send_replace(state.counts);
        drop(state);

        // Decided outside the lock: a decision may look at the gateway it belongs to.
        let plan = Plan::resolve(behaviour, &head);
        (head, plan)
    }

    fn record_answer(&self, head: &ReceivedHead, status: u16, taken: bool) {
        let at = Moment::now();
        let mut state = self.state();
        if let Some(received) = state.find(head.number) {
            received.answered = status;
            received.answered_at = Some(at);
            received.taken = taken;
        }
        state.append(&JournalLine::Answered { number: head.number, status, at, taken });
        if taken {
            state.counts.taken += 1;
            let new = match &head.event_id {
                Some(id) => state.taken_ids.insert(id.clone()),
                None => true,
            };
            state.counts.unique += u64::from(new);
        }
        self.counts.send_replace(state.counts);
        drop(state);
        self.tell(head.number);
    }

    /// Tells the observer about a request whose fate is decided.
    fn tell(&self, number: u64) {
        let Some(tell) = &self.options.on_received else {
            return;
        };
        // Outside the lock: the observer may ask the gateway something.
        let received = self.state().find(number).cloned();
        if let Some(received) = received {
            tell(&received);
        }
    }

    fn judge_signature(&self, headers: &HeaderMap, body: &[u8]) -> Option<bool> {
        if self.secrets.is_empty() {
            return None;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let tolerance = self.options.signature_tolerance;
        Some(signature::verify(&self.secrets, headers, body, now, tolerance))
    }

    fn kept_headers(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        if !self.options.keep_headers {
            return Vec::new();
        }
        headers
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect()
    }
}

impl super::State {
    /// The record with this number, where it was kept.
    fn find(&mut self, number: u64) -> Option<&mut Received> {
        // Numbers ascend, but after `forget` the first is not 1.
        let index = self.received.binary_search_by_key(&number, |received| received.number).ok()?;
        Some(&mut self.received[index])
    }

    fn append(&mut self, line: &JournalLine) {
        let Some(file) = &mut self.journal else {
            return;
        };
        let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            // One write per line: lines stay whole whatever ends the process.
            file.write_all(&text)
        });
        if let Err(error) = written {
            tracing::error!(%error, "the gateway's journal cannot be written");
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
