//! The whole client: whatever a gateway sends back, byte by byte, over a real connection.
//!
//! Promises: a delivery always ends, it counts as one only after a 2xx, and what is kept for the log
//! is short and without control characters.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kit::clock::{SystemClock, Timestamp};
use kit_delivery::{GatewaySection, HttpSink, Sink as _, Verdict};
use kit_journal::StoredEvent;

use crate::parts::{occurrences, runtime};
use crate::samples::head;

/// What the gateway answers next.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

static SINK: LazyLock<HttpSink> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || answer_all(&listener));
    let mut section = GatewaySection { url: Some(format!("http://{address}")), ..GatewaySection::default() };
    section.timeout.read_seconds = 2.0;
    HttpSink::new("gateway", &section, Arc::new(SystemClock)).expect("the section is right")
});

/// Takes one request a connection, answers and closes.
fn answer_all(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        let answer = ANSWER.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The other end may leave at any time; that is its business.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let mut buffer = [0; 8192];
        if stream.read(&mut buffer).is_ok_and(|read| read > 0) {
            let _ = stream.write_all(&answer);
            let _ = stream.shutdown(Shutdown::Write);
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
        }
    }
}

/// Delivers an event to a gateway that answers this.
///
/// # Panics
/// The delivery does not end, or is judged wrongly.
pub fn target(data: &[u8]) {
    data.clone_into(&mut ANSWER.lock().unwrap_or_else(PoisonError::into_inner));
    let started = Instant::now();
    let outcome = runtime().block_on(SINK.deliver(&event()));

    assert!(started.elapsed() < Duration::from_secs(10), "{outcome:?} after {:?}", started.elapsed());
    if outcome.verdict == Verdict::Delivered {
        assert!(outcome.status.is_some_and(|status| (200..300).contains(&status)), "{outcome:?}");
        assert!(occurrences(data, b"HTTP/1.") > 0, "{outcome:?}");
    }
    for text in [&outcome.error, &outcome.response].into_iter().flatten() {
        assert!(text.len() <= 1_024 && !text.contains(char::is_control), "{text:?}");
    }
    assert!(outcome.retry_after.is_none_or(|wait| wait <= Duration::from_secs(3_600)));
}

fn event() -> StoredEvent {
    StoredEvent {
        seq: 1,
        at: Timestamp::from_millis(1_700_000_000_000),
        head: head("lago/acme", "k", b"{}"),
        body: bytes::Bytes::from_static(b"{}"),
    }
}
