//! The stand-in for Lago's delivery: the recorded bytes, and every way an answer can fail to come.

use std::time::Duration;

use bytes::Bytes;
use kit_lago::sender::{Delivery, RetryPlan, SendError, Sender, Signing};
use kit_lago::signature::Algorithm;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{CAPTURED_HMAC_KEY, captures, lago, secret};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Id: 7\r\n\r\nok";

fn delivery() -> Delivery {
    Signing::Hmac(secret(CAPTURED_HMAC_KEY)).delivery("invoice.created", "{}").unwrap()
}

/// What a receiver does with one connection.
#[derive(Clone, Debug)]
enum Reaction {
    /// Reads a whole request, writes this, closes.
    Answer(&'static [u8]),
    /// Reads whole requests and answers each with this.
    KeepAnswering(&'static [u8]),
    /// Writes this at once and reads on until the sender ends.
    AnswerEarly(&'static [u8]),
    /// Closes at once.
    Close,
    /// Reads and never answers.
    Ignore,
}

/// A receiver that treats its connections one after the other as told, the last of them for ever.
struct Receiver {
    url: String,
    task: JoinHandle<()>,
    seen: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Receiver {
    async fn start(reactions: Vec<Reaction>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhooks/lago?a=1", listener.local_addr().unwrap());
        let (tell, seen) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            for index in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let reaction = reactions.get(index).or(reactions.last()).unwrap().clone();
                tokio::spawn(react(stream, reaction, tell.clone()));
            }
        });
        Self { url, task, seen }
    }

    fn sender(&self) -> Sender {
        Sender::new(&self.url).unwrap().timeout(Duration::from_secs(10))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn react(mut stream: TcpStream, reaction: Reaction, tell: tokio::sync::mpsc::UnboundedSender<Vec<u8>>) {
    match reaction {
        Reaction::Answer(answer) => {
            let _told = tell.send(read_request(&mut stream).await.unwrap());
            stream.write_all(answer).await.unwrap();
        }
        Reaction::KeepAnswering(answer) => {
            while let Some(request) = read_request(&mut stream).await {
                let _told = tell.send(request);
                stream.write_all(answer).await.unwrap();
            }
        }
        Reaction::AnswerEarly(answer) => {
            stream.write_all(answer).await.unwrap();
            let mut sink = vec![0; 1 << 16];
            while stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        }
        Reaction::Close => {}
        Reaction::Ignore => {
            let mut sink = vec![0; 1 << 16];
            while stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.split("Content-Length: ").nth(1).unwrap();
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if request.len() >= head.len() + 4 + length {
                return Some(request);
            }
        }
        if stream.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    }
}

#[test]
fn the_request_is_the_recorded_one_byte_for_byte() {
    for algorithm in [Algorithm::Hmac, Algorithm::Jwt] {
        for capture in captures(algorithm.as_str()) {
            let host = capture.header("Host");
            let sender = Sender::new(&format!("http://{host}/webhooks/lago")).unwrap();
            let delivery = Delivery {
                unique_key: capture.header("X-Lago-Unique-Key").to_owned(),
                webhook_type: "any".to_owned(),
                body: Bytes::from(capture.body.clone()),
                signature: capture.header("X-Lago-Signature").to_owned(),
                algorithm,
            };

            let request = sender.request(&delivery).unwrap();

            let mut recorded = format!("{}\r\n", capture.request_line);
            for (name, value) in &capture.headers {
                recorded.push_str(&format!("{name}: {value}\r\n"));
            }
            recorded.push_str("\r\n");
            let recorded = [recorded.as_bytes(), &capture.body].concat();
            assert_eq!(String::from_utf8_lossy(&request), String::from_utf8_lossy(&recorded));
        }
    }
}

/// HMAC and RS256 with PKCS#1 padding are deterministic: our signatures are Ruby's.
#[test]
fn the_hmac_signature_is_the_recorded_one() {
    let signing = Signing::Hmac(secret(CAPTURED_HMAC_KEY));
    for capture in captures("hmac") {
        let body = std::str::from_utf8(&capture.body).unwrap();
        assert_eq!(signing.sign(body).unwrap(), capture.header("X-Lago-Signature"));
    }
}

/// The claims' bytes too, which only ruby-jwt's key could sign the same way.
#[test]
fn the_token_differs_from_the_recorded_one_in_its_signature_only() {
    let signing = Signing::Jwt(lago(), "http://lago-api:3000".to_owned());
    for capture in captures("jwt") {
        let body = std::str::from_utf8(&capture.body).unwrap();
        let ours = signing.sign(body).unwrap();
        let recorded = capture.header("X-Lago-Signature");
        assert_eq!(ours.rsplit_once('.').unwrap().0, recorded.rsplit_once('.').unwrap().0);
    }
}

#[tokio::test]
async fn an_answer_is_read_whole_and_judged_as_lago_does() {
    for (status, success) in [
        (200, true),
        (201, true),
        (202, true),
        (204, true),
        (203, false),
        (206, false),
        (301, false),
        (400, false),
        (401, false),
        (500, false),
        (503, false),
    ] {
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
        let receiver = Receiver::start(vec![Reaction::Answer(answer.leak().as_bytes())]).await;

        let answer = receiver.sender().send_once(&delivery()).await.unwrap();

        assert_eq!(answer.status, status);
        assert_eq!(answer.is_success(), success, "{status}");
    }
    let mut receiver = Receiver::start(vec![Reaction::Answer(OK)]).await;
    let answer = receiver.sender().send_once(&delivery()).await.unwrap();
    assert_eq!(answer.body, b"ok");
    assert_eq!(answer.header("x-id"), Some("7"));
    let request = receiver.seen.recv().await.unwrap();
    assert!(request.starts_with(b"POST /webhooks/lago?a=1 HTTP/1.1\r\nContent-Type: "));
    assert!(request.ends_with(b"\r\n\r\n{}"));
}

#[tokio::test]
async fn an_early_refusal_is_seen_although_the_request_is_not_finished() {
    let refusal = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n";
    let receiver = Receiver::start(vec![Reaction::AnswerEarly(refusal)]).await;
    let mut huge = delivery();
    huge.signature = "x".repeat(8 << 20);

    let answer = receiver.sender().send_once(&huge).await.unwrap();

    assert_eq!(answer.status, 431);
}

#[tokio::test]
async fn no_answer_is_told_apart_by_how_it_failed() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    let refused = Sender::new(&closed).unwrap().send_once(&delivery()).await;
    assert!(matches!(refused, Err(SendError::Connect(_))));

    for (reaction, is_broken) in [
        (Reaction::Close, true),
        (Reaction::Answer(b""), true),
        (Reaction::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"), true),
        (Reaction::Answer(b"SMTP ready\r\n\r\n"), false),
    ] {
        let receiver = Receiver::start(vec![reaction.clone()]).await;
        let error = receiver.sender().send_once(&delivery()).await.unwrap_err();
        assert_eq!(matches!(error, SendError::Broken(_)), is_broken, "{reaction:?}: {error}");
        assert!(error.is_retried_by_lago());
    }

    let receiver = Receiver::start(vec![Reaction::Ignore]).await;
    let impatient = receiver.sender().timeout(Duration::from_millis(50));
    let error = impatient.send_once(&delivery()).await.unwrap_err();
    assert!(matches!(error, SendError::Timeout(_)) && error.is_retried_by_lago());
}

#[tokio::test]
async fn a_field_that_would_break_out_of_its_header_is_never_sent() {
    let sender = Sender::new("http://127.0.0.1:9/").unwrap();
    for spoil in ["a\r\nX-Injected: 1", "a\nb", "a\0b"] {
        for field in [0, 1] {
            let mut delivery = delivery();
            let spoiled = if field == 0 { &mut delivery.signature } else { &mut delivery.unique_key };
            *spoiled = spoil.to_owned();
            let error = sender.send_once(&delivery).await.unwrap_err();
            assert!(matches!(error, SendError::BadField(_)) && !error.is_retried_by_lago());
        }
    }
    for url in ["", "https://127.0.0.1/", "ftp://x/", "127.0.0.1:80", "http://"] {
        assert!(Sender::new(url).is_err(), "{url}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_only_when_told_to_and_when_it_is_sound() {
    let receiver = Receiver::start(vec![Reaction::KeepAnswering(OK)]).await;
    let keeping = receiver.sender().keep_alive(true);
    for _ in 0..3 {
        assert_eq!(keeping.send_once(&delivery()).await.unwrap().status, 200);
    }
    assert_eq!(keeping.idle_connections(), 1);

    let closing = receiver.sender();
    closing.send_once(&delivery()).await.unwrap();
    assert_eq!(closing.idle_connections(), 0);

    // The receiver closes after each answer without saying so: every send finds a fresh connection.
    let receiver = Receiver::start(vec![Reaction::Answer(OK)]).await;
    let keeping = receiver.sender().keep_alive(true);
    for _ in 0..3 {
        assert_eq!(keeping.send_once(&delivery()).await.unwrap().status, 200);
        wait_until_closed(&keeping).await;
    }
}

/// Until the peer's end has arrived on the idle connection.
async fn wait_until_closed(sender: &Sender) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while sender.idle_connections() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "the connection stays open");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn retries_stop_at_success_and_use_the_same_unique_key() {
    let refusal = b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n";
    let reactions = vec![Reaction::Close, Reaction::Answer(refusal), Reaction::Answer(OK)];
    let mut receiver = Receiver::start(reactions).await;
    let plan = RetryPlan { attempts: 5, time_scale: 0.0 };
    let delivery = delivery();

    let outcome = receiver.sender().send_with_retries(&delivery, &plan).await;

    assert!(outcome.delivered);
    assert_eq!(outcome.attempts.len(), 3);
    assert!(matches!(outcome.attempts[0], Err(SendError::Broken(_))));
    assert_eq!(outcome.attempts[1].as_ref().unwrap().status, 503);
    let (second, third) = (receiver.seen.recv().await.unwrap(), receiver.seen.recv().await.unwrap());
    assert_eq!(second, third);
    assert!(String::from_utf8(third).unwrap().contains(&delivery.unique_key));
}

#[tokio::test]
async fn retries_end_with_the_budget() {
    let receiver = Receiver::start(vec![Reaction::Answer(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")]).await;
    let plan = RetryPlan { attempts: 3, time_scale: 0.0 };

    let outcome = receiver.sender().send_with_retries(&delivery(), &plan).await;

    assert!(!outcome.delivered);
    assert_eq!(outcome.attempts.len(), 3);
}

#[test]
fn the_waits_are_lagos() {
    let plan = RetryPlan::default();
    let seconds = |attempt, random| plan.wait_after(attempt, random).as_secs_f64();
    let about = |found: f64, expected: f64| assert!((found - expected).abs() < 0.01, "{found}");

    assert_eq!(plan.attempts, 3);
    for (attempt, least, most) in [(1, 3.0, 3.15), (2, 18.0, 20.4), (3, 83.0, 95.15), (5, 627.0, 720.75)] {
        about(seconds(attempt, 0.0), least);
        about(seconds(attempt, 1.0), most);
    }
    assert!(seconds(u32::MAX, 1.0) <= 31_536_000.0);
    let fast = RetryPlan { time_scale: 0.001, ..plan };
    about(fast.wait_after(2, 0.0).as_secs_f64() * 1000.0, 18.0);
    let broken = RetryPlan { time_scale: f64::NAN, ..plan };
    assert_eq!(broken.wait_after(1, 0.5), Duration::ZERO);
}
