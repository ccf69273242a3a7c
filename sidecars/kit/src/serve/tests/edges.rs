//! What happens at the edges of the rules: crowds, slow readers, interrupted clients, the stop.

use super::*;
use crate::telemetry::Metrics;

/// The figure of one metric line that starts with `name{`.
fn figure(metrics: &Metrics, line: &str) -> u64 {
    metrics.render().lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok()).unwrap_or(0)
}

/// As `start`, with metrics to look at and one more route that answers with 8 MiB.
async fn start_counted(limits: Limits) -> (Running, Metrics) {
    let stop = StopToken::new();
    let metrics = Metrics::new("probe", "1");
    let serve = metrics.with_registry(ServeMetrics::register);
    let server = Server::bind("127.0.0.1:0", "public", limits, serve, stop.clone()).await.unwrap();
    let address = server.local_addr().unwrap();
    let app = Router::new()
        .route("/echo", post(echo))
        .route("/hello", get(|| async { "hello" }))
        .route("/large", get(|| async { vec![b'x'; LARGE] }));
    (Running { address, stop, task: tokio::spawn(server.run(app)) }, metrics)
}

const LARGE: usize = 8 << 20;

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads a head and as much body as its Content-Length says.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        let mut part = [0; 4096];
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut part)).await.unwrap().unwrap();
        assert!(read > 0, "closed in the middle of an answer: {text:?}");
        answer.extend_from_slice(&part[..read]);
    }
}

/// An alert on a rate sees nothing of a failure that is the beginning of its series.
#[tokio::test]
async fn every_class_of_answers_is_counted_from_zero_on() {
    let (running, metrics) = start_counted(limits()).await;

    let text = metrics.render();

    for class in ["1xx", "2xx", "3xx", "4xx", "5xx"] {
        let line = format!("http_requests_total{{listener=\"public\",status=\"{class}\"}} 0\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    running.stop.stop();
}

#[tokio::test]
async fn more_large_heads_at_once_than_the_budget_holds_are_all_served() {
    let mut large = limits();
    large.head_bytes = 8 << 20;
    large.head_timeout = Duration::from_secs(120);
    let (running, _) = start_counted(large).await;
    let running = Arc::new(running);
    let head = format!("X: {}\r\nContent-Length: 2\r\n", "x".repeat(6_500_000));
    let bytes = Arc::new(request("/echo", &head, "{}"));

    let started = std::time::Instant::now();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (running, bytes) = (Arc::clone(&running), Arc::clone(&bytes));
            tokio::spawn(async move { exchange(&running, &bytes).await })
        })
        .collect();
    for client in clients {
        assert_status(&client.await.unwrap(), "200");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "nobody waited for a timeout: {:?}", started.elapsed());
}

#[tokio::test]
async fn a_client_that_asks_before_sending_is_told_to_go_on_or_refused() {
    let (running, _) = start_counted(limits()).await;
    let mut stream = connect(&running).await;
    let ask = |length: usize| {
        format!("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    stream.write_all(ask(2).as_bytes()).await.unwrap();
    assert_status(&read_answer(&mut stream).await, "100");
    stream.write_all(b"{}").await.unwrap();
    assert_status(&read_answer(&mut stream).await, "200");

    stream.write_all(ask(100_001).as_bytes()).await.unwrap();
    let refused = read_answer(&mut stream).await;
    assert_status(&refused, "413");
    assert!(refused.contains("connection: close"), "{refused}");
}

#[tokio::test]
async fn whoever_does_not_read_the_answer_is_cut_off() {
    let mut short = limits();
    short.write_timeout = Duration::from_millis(200);
    let (running, metrics) = start_counted(short).await;
    let mut deaf = connect(&running).await;
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let given_up = "http_timeouts_total{listener=\"public\",phase=\"write\"}";
    until("the connection is given up", || figure(&metrics, given_up) == 1).await;
    until("it is closed", || figure(&metrics, "http_connections_open{listener=\"public\"}") == 0).await;
}

#[tokio::test]
async fn a_slow_reader_gets_its_whole_answer_although_the_idle_time_passes() {
    let mut short = limits();
    short.idle_timeout = Duration::from_millis(100);
    let (running, _) = start_counted(short).await;
    let mut slow = connect(&running).await;
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut read, mut part) = (0, vec![0; 1 << 20]);
    loop {
        let more = tokio::time::timeout(DEADLINE, slow.read(&mut part)).await.unwrap().unwrap();
        if more == 0 {
            break;
        }
        read += more;
        // That it is slow is what is asked about.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(read > LARGE, "{read} of {LARGE}");
}

#[tokio::test]
async fn an_answer_under_way_is_finished_although_the_daemon_stops() {
    let (running, _) = start_counted(limits()).await;
    let mut slow = connect(&running).await;
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut part = vec![0; 1 << 20];
    let mut read = slow.read(&mut part).await.unwrap();
    running.stop.stop();
    loop {
        // That it is slow is what is asked about: the stop has long begun when the answer ends.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let more = tokio::time::timeout(DEADLINE, slow.read(&mut part)).await.unwrap().unwrap();
        if more == 0 {
            break;
        }
        read += more;
    }
    assert!(read > LARGE, "{read} of {LARGE}");
}

#[tokio::test]
async fn clients_that_vanish_leave_nothing_behind() {
    let mut tight = limits();
    tight.memory_bytes = 1 << 20;
    let (running, metrics) = start_counted(tight).await;
    for bytes in [
        &b""[..],
        b"POST /echo HT",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n",
        b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        for _ in 0..40 {
            let mut stream = connect(&running).await;
            stream.write_all(bytes).await.unwrap();
            let _ = stream.write_all(&vec![b'x'; 60_000]).await;
            // Half of them with a reset instead of an end.
            if fastrand::bool() {
                stream.set_zero_linger().unwrap();
            }
        }
    }
    until("all places are free again", || figure(&metrics, "http_connections_open{listener=\"public\"}") == 0).await;
    let body = "x".repeat(100_000);
    let answer = exchange(&running, &request("/echo", "Content-Length: 100000\r\n", &body)).await;
    assert_status(&answer, "200");
}

#[tokio::test]
async fn an_old_client_is_answered_and_closed() {
    let (running, _) = start_counted(limits()).await;
    let answer = exchange(&running, b"GET /hello HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let answer = exchange(&running, b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert!(answer.contains(" 400 "), "{answer}");
}

#[tokio::test]
async fn a_connection_is_not_kept_with_the_buffer_of_a_large_head() {
    let mut large = limits();
    large.head_bytes = 1 << 20;
    let (running, _) = start_counted(large).await;
    let mut stream = connect(&running).await;
    for (length, kept) in [(10, true), (5_000, true), (500_000, false)] {
        let head =
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nX: {}\r\nContent-Length: 2\r\n\r\n{{}}", "x".repeat(length));
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_status(&answer, "200");
        assert_eq!(!answer.contains("connection: close"), kept, "{length}: {answer}");
    }
}

#[tokio::test]
async fn a_crowd_is_answered_and_not_invited_to_stay() {
    let mut small = limits();
    small.connections = 2 * CROWD + 10;
    let (running, metrics) = start_counted(small).await;
    let mut few = Vec::new();
    for _ in 0..CROWD {
        let mut stream = connect(&running).await;
        stream.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(!read_answer(&mut stream).await.contains("connection: close"));
        few.push(stream);
    }
    for _ in 0..10 {
        few.push(connect(&running).await);
    }
    until("the crowd is there", || figure(&metrics, "http_connections_open{listener=\"public\"}") == 74).await;

    let mut late = connect(&running).await;
    late.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_answer(&mut late).await.contains("connection: close"));

    few.clear();
    until("the crowd has gone", || figure(&metrics, "http_connections_open{listener=\"public\"}") <= 1).await;
    let mut after = connect(&running).await;
    after.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(!read_answer(&mut after).await.contains("connection: close"));
}
