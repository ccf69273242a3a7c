#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncReadExt as _;

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

/// Answers with what it was sent, or as its path says.
#[derive(Debug, Default)]
struct Echo {
    requests: AtomicU64,
}

impl Party for Echo {
    const WHO: &'static str = "the stand-in for an echo";

    async fn answer(self: Arc<Self>, request: Request<Incoming>, line: Line) -> Response<Body> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        match parts.uri.path() {
            "/close" => return line.end(End::Close).await,
            "/reset" => return line.end(End::Reset).await,
            "/bytes" => return line.end(End::Bytes(b"ICY 200 OK\r\n".to_vec())).await,
            "/silence" => return pending().await,
            _ => {}
        }
        match read(body, 16).await {
            Ok(body) => Response::new(whole(body)),
            Err(status) => {
                let mut response = Response::new(whole(""));
                *response.status_mut() = status;
                response
            }
        }
    }
}

async fn echo() -> StandIn<Echo> {
    StandIn::start(ANY_PORT, Arc::default()).await.unwrap()
}

/// Sends a request and reads until the connection ends.
async fn sent(address: SocketAddr, path: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: echo\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap()?;
    Ok(answer)
}

#[tokio::test]
async fn a_request_is_answered_unless_its_body_is_too_large() {
    let echo = echo().await;

    let answer = sent(echo.address(), "/", "sixteen bytes ok").await.unwrap();
    let refusal = sent(echo.address(), "/", "seventeen bytes !").await.unwrap();

    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nsixteen bytes ok"), "{answer}");
    assert!(refusal.starts_with("HTTP/1.1 413 "), "{refusal}");
}

#[tokio::test]
async fn a_connection_ends_as_the_party_says() {
    let echo = echo().await;

    assert_eq!(sent(echo.address(), "/close", "").await.unwrap(), "");
    assert_eq!(sent(echo.address(), "/bytes", "").await.unwrap(), "ICY 200 OK\r\n");
    assert_eq!(sent(echo.address(), "/reset", "").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(echo.requests.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn stopping_breaks_what_is_open_and_the_state_goes_on_elsewhere() {
    let echo = echo().await;
    let address = echo.address();
    let waiting = tokio::spawn(async move { sent(address, "/silence", "").await });
    let begin = tokio::time::Instant::now();
    while echo.requests.load(Ordering::Relaxed) == 0 {
        assert!(begin.elapsed() < DEADLINE, "the request does not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let state = echo.stop().await;

    let broken = waiting.await.unwrap();
    assert!(broken.as_ref().is_ok_and(String::is_empty) || broken.is_err(), "{broken:?}");
    assert_eq!(sent(address, "/", "").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let again = StandIn::start(address, state).await.unwrap();
    assert!(sent(address, "/", "back").await.unwrap().ends_with("back"));
    assert_eq!(again.requests.load(Ordering::Relaxed), 2);
}
