//! Over raw sockets: what a well-behaved client library would never send.
#![allow(clippy::unwrap_used)]

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

mod edges;

const DEADLINE: Duration = Duration::from_secs(60);

struct Running {
    address: SocketAddr,
    stop: StopToken,
    task: tokio::task::JoinHandle<Result<(), std::convert::Infallible>>,
}

fn limits() -> Limits {
    Limits::new(&ListenSection::default(), &StopSection::default(), 64 * 1024)
}

async fn start(limits: Limits) -> Running {
    let stop = StopToken::new();
    let server = Server::bind("127.0.0.1:0", "public", limits, ServeMetrics::default(), stop.clone()).await.unwrap();
    let address = server.local_addr().unwrap();
    let app = Router::new()
        .route("/echo", post(echo))
        .route("/ignore", post(|| async { StatusCode::NO_CONTENT }))
        .route("/hello", get(|| async { "hello" }))
        .route(
            "/panic",
            get(|| async {
                if true {
                    panic!("test")
                }
            }),
        );
    Running { address, stop, task: tokio::spawn(server.run(app)) }
}

/// Answers with the length of the body and of the longest header.
async fn echo(request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let rules = parts.extensions.get::<Arc<BodyRules>>().unwrap().clone();
    let longest = parts.headers.values().map(axum::http::HeaderValue::len).max().unwrap_or(0);
    match read_body(&parts.headers, body, 100_000, &rules).await {
        Ok(body) => format!("{} {longest}", body.len()).into_response(),
        Err(error) => (error.status(), error.to_string()).into_response(),
    }
}

async fn connect(running: &Running) -> TcpStream {
    TcpStream::connect(running.address).await.unwrap()
}

/// Sends bytes and reads until the other end closes; errors of writing are not ours to judge.
async fn exchange(running: &Running, bytes: &[u8]) -> String {
    let mut stream = connect(running).await;
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let send = async {
        let _ = writer.write_all(bytes).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = send => {}
        read = tokio::time::timeout(DEADLINE, reader.read_to_end(&mut answer)) => {
            read.expect("the connection is closed in time").expect("it is closed, not reset");
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n{body}").into_bytes()
}

fn assert_status(answer: &str, status: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "wanted {status}: {answer:?}");
}

#[tokio::test]
async fn bodies_up_to_the_limit_pass_and_larger_ones_are_refused_early() {
    let running = start(limits()).await;
    let check = async |length: usize, chunked: bool, status: &str| {
        let body = "x".repeat(length);
        let bytes = if chunked {
            request("/echo", "Transfer-Encoding: chunked\r\n", &format!("{length:x}\r\n{body}\r\n0\r\n\r\n"))
        } else {
            request("/echo", &format!("Content-Length: {length}\r\n"), &body)
        };
        assert_status(&exchange(&running, &bytes).await, status);
    };
    for length in [1, 1000, 8192, 65_536, 99_999, 100_000] {
        check(length, false, "200").await;
        check(length, true, "200").await;
    }
    for length in [100_001, 1_000_000, 8_000_000] {
        check(length, false, "413").await;
        check(length, true, "413").await;
    }
    let announced = request("/echo", "Content-Length: 1073741824\r\n", "");
    assert_status(&exchange(&running, &announced).await, "413");
}

#[tokio::test]
async fn heads_up_to_the_limit_pass_and_larger_ones_are_431() {
    let mut large = limits();
    large.head_bytes = 8 << 20;
    large.head_timeout = DEADLINE;
    let running = start(large).await;
    let started = std::time::Instant::now();
    let answer =
        exchange(&running, &request("/echo", &format!("X: {}\r\nContent-Length: 2\r\n", "x".repeat(6_500_000)), "{}"))
            .await;
    assert_status(&answer, "200");
    assert!(answer.ends_with("2 6500000"), "{}", &answer[answer.len() - 60..]);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "reading a large head is linear work: {:?}",
        started.elapsed()
    );
    let answer = exchange(&running, &request("/echo", &format!("X: {}\r\n", "x".repeat(9 << 20)), "")).await;
    assert_status(&answer, "431");

    let running = start(limits()).await;
    let answer = exchange(&running, &request("/echo", &format!("X: {}\r\n", "x".repeat(393_000)), "")).await;
    assert_status(&answer, "431");
}

#[tokio::test]
async fn ambiguous_requests_are_400_and_closed() {
    let running = start(limits()).await;
    for headers in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: two\r\n",
        "Content-Length : 2\r\n",
        "X: a\r\n folded\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Host: b\r\n",
    ] {
        assert_status(&exchange(&running, &request("/echo", headers, "{}")).await, "400");
    }
    for chunk in ["zz\r\n{}\r\n0\r\n\r\n", "2\r\n{}x\r\n0\r\n\r\n", "ffffffffffffffffff\r\n{}\r\n"] {
        assert_status(&exchange(&running, &request("/echo", "Transfer-Encoding: chunked\r\n", chunk)).await, "400");
    }
    for raw in [
        "POST /echo HTTP/1.1\r\n\r\n",
        "POST /echo HTTP/1.1\nHost: a\n\n",
        "nonsense\r\n\r\n",
        "GET / HTTP/3.0\r\n\r\n",
    ] {
        assert_status(&exchange(&running, raw.as_bytes()).await, "400");
    }
}

#[tokio::test]
async fn only_plain_paths_are_routed() {
    let running = start(limits()).await;
    for path in [
        "//hello",
        "/%68ello",
        "/hello/..%2f",
        "/a/../hello",
        "/hello%00",
        "http://a/hello",
        "/hello/",
        "/Hello",
        "\\hello",
        "/h\u{e9}llo",
    ] {
        let answer =
            exchange(&running, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
    let answer = exchange(&running, b"GET /hello?x=%2f HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_status(&answer, "200");
}

#[tokio::test]
async fn a_second_request_in_the_same_breath_is_not_served_on_a_guess() {
    let running = start(limits()).await;
    let two = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}POST /echo HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = exchange(&running, two).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn connections_are_reused_and_a_panic_costs_one_request() {
    let running = start(limits()).await;
    let mut stream = connect(&running).await;
    for (path, status) in [("/hello", "200"), ("/panic", "500"), ("/hello", "200")] {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut answer)).await.unwrap().unwrap();
        assert_status(&String::from_utf8_lossy(&answer[..read]), status);
    }
}

#[tokio::test]
async fn slow_heads_slow_bodies_and_idle_connections_are_closed() {
    let mut short = limits();
    short.head_timeout = Duration::from_millis(200);
    short.body_timeout = Duration::from_millis(200);
    short.idle_timeout = Duration::from_millis(300);
    let running = start(short).await;
    assert_eq!(exchange(&running, b"").await, "", "nothing sent");
    assert_eq!(exchange(&running, b"POST /echo HTTP/1.1\r\nHost: a\r\n").await, "", "half a head");
    assert_status(&exchange(&running, &request("/echo", "Content-Length: 5\r\n", "{}")).await, "408");
    let answer = exchange(&running, b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_status(&answer, "200");
}

/// 4 MiB at 1,024 bytes a second would hold one of the few places for large requests for an hour.
#[tokio::test]
async fn a_body_that_keeps_the_slowest_rate_is_cut_off_at_the_total() {
    let mut short = limits();
    short.body_timeout = Duration::from_millis(200);
    short.body_total = Duration::from_millis(600);
    short.body_min_rate = 10;
    let running = start(short).await;
    let started = std::time::Instant::now();
    let mut stream = connect(&running).await;
    stream.write_all(&request("/echo", "Content-Length: 90000\r\n", "")).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];

    tokio::select! {
        () = drip => {}
        read = tokio::time::timeout(DEADLINE, reader.read_exact(&mut answer)) => {
            read.expect("it is cut off").unwrap();
        }
    }

    assert_eq!(&answer, b"HTTP/1.1 408");
    assert!(started.elapsed() >= Duration::from_millis(600), "{:?}", started.elapsed());
}

#[test]
fn open_files_are_left_for_the_others() {
    for (files, room) in [(Some(64), 32), (Some(256), 128), (Some(1024), 896), (Some(0), 0)] {
        assert_eq!(room_for_connections(files), room, "{files:?}");
    }
    assert!(room_for_connections(None) > 1_000_000);
}

#[tokio::test]
async fn connections_over_the_cap_are_closed_and_the_others_go_on() {
    let mut few = limits();
    few.connections = 2;
    let running = start(few).await;
    let mut first = connect(&running).await;
    let mut answer = vec![0; 4096];
    first.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(first.read(&mut answer).await.unwrap() > 0);
    let mut second = connect(&running).await;
    second.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(second.read(&mut answer).await.unwrap() > 0);

    let mut third = connect(&running).await;
    let closed = tokio::time::timeout(DEADLINE, third.read(&mut answer)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");

    first.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(first.read(&mut answer).await.unwrap() > 0);
}

#[tokio::test]
async fn large_heads_wait_for_the_budget_and_small_requests_do_not() {
    let mut tight = limits();
    tight.head_bytes = 8 << 20;
    tight.memory_bytes = 1 << 20;
    tight.head_timeout = Duration::from_secs(2);
    let running = start(tight).await;
    let mut hogs = Vec::new();
    for _ in 0..8 {
        let mut hog = connect(&running).await;
        let _ = hog.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nX: ").await;
        let _ = tokio::time::timeout(Duration::from_millis(100), hog.write_all(&vec![b'x'; 2 << 20])).await;
        hogs.push(hog);
    }
    for _ in 0..50 {
        let body = "x".repeat(4000);
        let answer = exchange(&running, &request("/echo", "Content-Length: 4000\r\n", &body)).await;
        assert_status(&answer, "200");
    }
    // Whoever holds blocks without getting on is cut off by the head timeout; then there is room.
    let head = format!("X: {}\r\nContent-Length: 2\r\n", "x".repeat(700_000));
    let deadline = std::time::Instant::now() + DEADLINE;
    while !exchange(&running, &request("/echo", &head, "{}")).await.starts_with("HTTP/1.1 200") {
        assert!(std::time::Instant::now() < deadline, "a large head never gets through");
    }
    drop(hogs);
}

#[tokio::test]
async fn stopping_answers_what_is_under_way_and_gives_up_unfinished_bodies() {
    let mut short = limits();
    short.unfinished_body = Duration::from_millis(300);
    short.drain = Duration::from_secs(3);
    let running = start(short).await;
    let mut idle = connect(&running).await;
    let mut answer = vec![0; 4096];
    idle.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut answer).await.unwrap() > 0);
    let mut unfinished = connect(&running).await;
    unfinished.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{}").await.unwrap();
    let mut finishing = connect(&running).await;
    finishing.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n{}").await.unwrap();
    // Served at all means accepted: its head has been seen when another connection's answer comes.
    let _ = exchange(&running, &request("/echo", "Content-Length: 2\r\n", "{}")).await;

    running.stop.stop();
    finishing.write_all(b"{}").await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(DEADLINE, finishing.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_status(&text, "200");
    assert!(text.contains("connection: close"), "{text}");
    text.clear();
    tokio::time::timeout(DEADLINE, unfinished.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_status(&text, "503");
    assert_eq!(tokio::time::timeout(DEADLINE, idle.read(&mut answer)).await.unwrap().unwrap(), 0);
    tokio::time::timeout(DEADLINE, running.task).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}
