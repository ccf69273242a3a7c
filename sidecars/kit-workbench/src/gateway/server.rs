//! The gateway's wire side: what it notes of a request, and what becomes of it.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use kit::stand_in::{Body, End, Line, Party, read, whole};

use super::behaviour::{Ending, Pace, Plan};
use super::received::{Received, ReceivedHead, unpack};
use super::{JournalLine, Shared, signature};
use crate::Moment;

impl Party for Shared {
    const WHO: &'static str = "the gateway";
    /// Room for the head of a raw delivery that keeps Lago's JWT header.
    const HEAD_LIMIT_BYTES: Option<usize> = Some(8 * 1024 * 1024);

    async fn answer(self: Arc<Self>, request: Request<Incoming>, line: Line) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = match read(body, self.options.body_limit_bytes).await {
            Ok(body) => body,
            Err(StatusCode::PAYLOAD_TOO_LARGE) => return plain(StatusCode::PAYLOAD_TOO_LARGE, "too large"),
            Err(status) => return plain(status, "incomplete"),
        };
        let (head, plan) = self.record(&parts, body);
        if plan.pause > Duration::ZERO {
            tokio::time::sleep(plan.pause).await;
        }
        match plan.end {
            Ending::Answer { status, headers, body, taken, pace } => {
                let response = match build(status, &headers, body, pace, line) {
                    Ok(response) => response,
                    Err(error) => {
                        let why = format!("the gateway's behaviour is not HTTP: {error}");
                        plain(StatusCode::INTERNAL_SERVER_ERROR, &why)
                    }
                };
                self.record_answer(&head, response.status().as_u16(), taken);
                response
            }
            Ending::Wire { bytes, taken } => {
                let status = std::str::from_utf8(bytes.get(9..12).unwrap_or_default()).unwrap_or_default();
                self.record_answer(&head, status.parse().unwrap_or(0), taken);
                line.end(End::Bytes(bytes)).await
            }
            Ending::Reset => {
                self.tell(head.number);
                line.end(End::Reset).await
            }
            Ending::Silence => {
                self.tell(head.number);
                std::future::pending().await
            }
        }
    }
}

fn build(
    status: u16,
    headers: &[(String, String)],
    body: Vec<u8>,
    pace: Pace,
    line: Line,
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
                let line = line.clone();
                async move {
                    if let Some(part) = part {
                        return Some((Ok(Frame::data(part)), None));
                    }
                    // Let the connection write what it has before it is broken.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    line.end(End::Reset).await
                }
            });
            // One byte more than will ever come, so that a full body is cut as well.
            response.header(http::header::CONTENT_LENGTH, length + 1).body(BoxBody::new(StreamBody::new(cut)))
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(whole(text.to_owned()));
    *response.status_mut() = status;
    response
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
