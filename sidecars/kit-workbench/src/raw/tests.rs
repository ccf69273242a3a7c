#![allow(clippy::unwrap_used)]

use tokio::net::TcpListener;

use super::*;

const SOON: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

/// A server for one connection that reads up to the first blank line and then does as told.
async fn serve<F>(then: impl FnOnce(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        then(stream).await;
    });
    address
}

#[tokio::test]
async fn an_answer_is_returned_with_headers_and_body() {
    let address = serve(|mut stream| async move {
        let answer = b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nX-A: b\r\n\r\n{}";
        stream.write_all(answer).await.unwrap();
    })
    .await;

    let answer = get(address, "/", SOON).await.unwrap();

    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("x-a"), Some("b"));
    assert_eq!(answer.json().unwrap(), serde_json::json!({}));
    assert!(answer.request_written);
}

#[tokio::test]
async fn refusal_close_reset_and_silence_are_told_apart() {
    let nobody = crate::scratch::free_address().unwrap();
    let refused = get(nobody, "/", SOON).await;
    assert!(matches!(refused, Err(RawError::Refused { .. })), "{refused:?}");

    let address = serve(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200").await.unwrap();
    })
    .await;
    let closed = get(address, "/", SOON).await;
    assert!(matches!(&closed, Err(RawError::Closed { received }) if received == b"HTTP/1.1 200"), "{closed:?}");

    let address = serve(|stream| async move { stream.set_zero_linger().unwrap() }).await;
    let reset = get(address, "/", SOON).await;
    assert!(matches!(reset, Err(RawError::Reset { .. })), "{reset:?}");

    let address = serve(|stream| async move {
        tokio::time::sleep(SOON).await;
        drop(stream);
    })
    .await;
    let silence = get(address, "/", SHORT).await;
    assert!(matches!(silence, Err(RawError::TimedOut { .. })), "{silence:?}");

    let address = serve(|mut stream| async move {
        stream.write_all(b"220 smtp ready\r\n\r\n").await.unwrap();
    })
    .await;
    let nonsense = get(address, "/", SOON).await;
    assert!(matches!(nonsense, Err(RawError::Malformed { .. })), "{nonsense:?}");
}

#[tokio::test]
async fn an_answer_before_the_request_is_complete_is_seen() {
    let address = serve(|mut stream| async move {
        let answer = b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        // Take nothing more: the client's write cannot finish.
        tokio::time::sleep(SOON).await;
    })
    .await;

    let answer = request(address, "POST", "/", &[], &vec![b'x'; 64 << 20], SOON).await;

    let answer = answer.unwrap();
    assert_eq!(answer.status, 413);
    assert!(!answer.request_written);
}

#[tokio::test]
async fn two_answers_on_one_connection_are_kept_apart() {
    let address = serve(|mut stream| async move {
        let two = b"HTTP/1.1 204 A\r\n\r\nHTTP/1.1 500 B\r\nContent-Length: 1\r\n\r\nb";
        stream.write_all(two).await.unwrap();
    })
    .await;
    let mut connection = RawConnection::open(address).await.unwrap();

    connection.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();

    assert_eq!(connection.read_response(SOON).await.unwrap().status, 204);
    let second = connection.read_response(SOON).await.unwrap();
    assert_eq!((second.status, second.text().as_str()), (500, "b"));
    assert!(connection.wait_closed(SOON).await.unwrap());
}

#[tokio::test]
async fn a_half_close_reaches_the_peer_as_the_end() {
    let address = serve(|mut stream| async move {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"body");
        stream.write_all(b"HTTP/1.1 204 A\r\n\r\n").await.unwrap();
    })
    .await;
    let mut connection = RawConnection::open(address).await.unwrap();

    connection.send(b"POST / HTTP/1.1\r\n\r\nbody").await.unwrap();
    connection.half_close().await.unwrap();

    assert_eq!(connection.read_response(SOON).await.unwrap().status, 204);
}

#[tokio::test]
async fn a_reset_reaches_the_peer_as_a_reset() {
    let (told, heard) = tokio::sync::oneshot::channel();
    let address = serve(|mut stream| async move {
        told.send(stream.read_u8().await.unwrap_err().kind()).unwrap();
    })
    .await;
    let mut connection = RawConnection::open(address).await.unwrap();
    connection.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();

    connection.reset();

    assert_eq!(heard.await.unwrap(), io::ErrorKind::ConnectionReset);
}
