//! A gateway that reads every request to the letter of RFC 9112 and says what is wrong with it, and
//! that answers with any bytes. It knows nothing of events and shares no code with any HTTP library.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A head that is longer is no request of ours.
const HEAD_LIMIT_BYTES: usize = 64 * 1024;
const BODY_LIMIT_BYTES: usize = 8 * 1024 * 1024;
/// An answer that takes the event.
pub const TAKEN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

/// One request, byte for byte.
#[derive(Clone, Debug)]
pub struct StrictRequest {
    /// The connection it came on, from 1.
    pub connection: u64,
    /// Which request on this connection it is, from 1.
    pub nth: u32,
    /// When it had been read.
    pub at: Instant,
    /// Path and query.
    pub target: String,
    /// Names in lower case, values without the blanks around them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl StrictRequest {
    /// Every value of a header.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_slice())
    }
}

/// What follows a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These bytes; the connection stays open.
    Keep(Vec<u8>),
    /// These bytes, then the end of the connection.
    Close(Vec<u8>),
}

type Decide = dyn Fn(&StrictRequest) -> Reply + Send + Sync;

/// A running strict gateway. Dropping it closes its port and all connections.
pub struct StrictGateway {
    address: SocketAddr,
    seen: Arc<Seen>,
    _stop: DropGuard,
}

struct Seen {
    connections: AtomicU64,
    read: AtomicU64,
    requests: Mutex<Vec<StrictRequest>>,
    mistakes: Mutex<Vec<String>>,
    decide: Box<Decide>,
}

impl StrictGateway {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The loopback has no free port.
    pub async fn start(decide: impl Fn(&StrictRequest) -> Reply + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen {
            connections: AtomicU64::new(0),
            read: AtomicU64::new(0),
            requests: Mutex::default(),
            mistakes: Mutex::default(),
            decide: Box::new(decide),
        });
        let stop = CancellationToken::new();
        tokio::spawn({
            let (seen, stop) = (Arc::clone(&seen), stop.clone());
            async move {
                while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                    let number = seen.connections.fetch_add(1, Ordering::Relaxed) + 1;
                    let (seen, stop) = (Arc::clone(&seen), stop.clone());
                    tokio::spawn(async move { stop.run_until_cancelled(serve(&seen, number, stream)).await });
                }
            }
        });
        Ok(Self { address, seen, _stop: stop.drop_guard() })
    }

    /// Its address as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests were read without a mistake.
    pub fn count(&self) -> u64 {
        self.seen.read.load(Ordering::Relaxed)
    }

    /// The requests since the last call, which are forgotten by it: a long run does not keep them all.
    pub fn take_requests(&self) -> Vec<StrictRequest> {
        std::mem::take(&mut *lock(&self.seen.requests))
    }

    /// Every request that was read without a mistake and not taken.
    pub fn requests(&self) -> Vec<StrictRequest> {
        lock(&self.seen.requests).clone()
    }

    /// What was wrong with the others.
    pub fn mistakes(&self) -> Vec<String> {
        lock(&self.seen.mistakes).clone()
    }

    /// Waits until so many requests have been read.
    ///
    /// # Errors
    /// They have not at the deadline, or one had a mistake.
    pub async fn wait_for(&self, wanted: u64, deadline: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let (seen, mistakes) = (self.count(), self.mistakes());
            ensure!(mistakes.is_empty(), "malformed requests: {mistakes:?}");
            if seen >= wanted {
                return Ok(());
            }
            ensure!(begin.elapsed() < deadline, "{seen} of {wanted} requests after {deadline:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl std::fmt::Debug for StrictGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StrictGateway").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A panic elsewhere must not hide what was recorded before it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(seen: &Seen, connection: u64, mut stream: TcpStream) {
    // A connection that breaks is the client's affair; what was wrong with its bytes is noted.
    if let Err(error) = talk(seen, connection, &mut stream).await {
        lock(&seen.mistakes).push(format!("connection {connection}: {error:#}"));
    }
}

async fn talk(seen: &Seen, connection: u64, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    let mut received = Vec::new();
    for nth in 1.. {
        let Some(head) = read_head(stream, &mut received).await? else { return Ok(()) };
        let mut request = parse(&head).with_context(|| String::from_utf8_lossy(&head).into_owned())?;
        (request.connection, request.nth) = (connection, nth);
        let length = body_length(&request)?;
        while received.len() < length {
            // Cut off by the client: nothing was wrong with what came.
            if read_some(stream, &mut received).await == 0 {
                return Ok(());
            }
        }
        request.body = received.drain(..length).collect();
        // A client that does not pipeline has nothing to say before it is answered.
        ensure!(received.is_empty(), "{} bytes after the body of {}", received.len(), request.target);
        let reply = (seen.decide)(&request);
        lock(&seen.requests).push(request);
        seen.read.fetch_add(1, Ordering::Relaxed);
        let (bytes, close) = match reply {
            Reply::Keep(bytes) => (bytes, false),
            Reply::Close(bytes) => (bytes, true),
        };
        if stream.write_all(&bytes).await.is_err() || close {
            let _ = stream.shutdown().await;
            return Ok(());
        }
    }
    Ok(())
}

async fn read_some(stream: &mut (impl AsyncRead + Unpin), received: &mut Vec<u8>) -> usize {
    stream.read_buf(received).await.unwrap_or(0)
}

/// The next head with its empty line; `None` where the client has ended instead.
async fn read_head(stream: &mut (impl AsyncRead + Unpin), received: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(received.drain(..end + 4).collect()));
        }
        ensure!(received.len() <= HEAD_LIMIT_BYTES, "a head of more than {HEAD_LIMIT_BYTES} bytes");
        if read_some(stream, received).await == 0 {
            return Ok(None);
        }
    }
}

/// RFC 9112 sections 3 and 5, RFC 9110 section 5.5, without any of the leniency they allow.
fn parse(head: &[u8]) -> Result<StrictRequest> {
    let mut lines =
        head[..head.len() - 4].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let bare = head.iter().enumerate().any(|(at, byte)| match byte {
        b'\n' => at == 0 || head[at - 1] != b'\r',
        b'\r' => head.get(at + 1) != Some(&b'\n'),
        _ => false,
    });
    ensure!(!bare, "a bare CR or LF");
    let line = lines.next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { bail!("a request line of {} words", words.len()) };
    ensure!(method == b"POST", "method {method:?}");
    ensure!(version == b"HTTP/1.1", "version {version:?}");
    ensure!(target.first() == Some(&b'/'), "a target without a path");
    ensure!(target.iter().all(|byte| is_target_byte(*byte)), "a target with {:?}", String::from_utf8_lossy(target));
    let mut headers = Vec::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').context("a header without a colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        ensure!(!name.is_empty() && name.iter().all(|byte| is_token_byte(*byte)), "header name {name:?}");
        let clean = value.iter().all(|byte| *byte == b'\t' || (0x20..0x7f).contains(byte) || *byte >= 0x80);
        ensure!(clean, "a control character in {:?}", String::from_utf8_lossy(line));
        headers.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()));
    }
    let target = String::from_utf8_lossy(target).into_owned();
    Ok(StrictRequest { connection: 0, nth: 0, at: Instant::now(), target, headers, body: Vec::new() })
}

/// RFC 3986: what may stand in a path or a query as it is.
fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Exactly one length, in digits, no other framing, one host, nothing that asks for more.
fn body_length(request: &StrictRequest) -> Result<usize> {
    for name in ["transfer-encoding", "te", "trailer", "upgrade", "expect"] {
        ensure!(request.header(name).next().is_none(), "a header {name}");
    }
    for name in ["host", "content-length", "content-type", "webhook-id", "webhook-timestamp", "webhook-signature"] {
        ensure!(request.header(name).count() == 1, "{} headers {name}", request.header(name).count());
    }
    let text = std::str::from_utf8(request.header("content-length").next().unwrap_or_default())?;
    ensure!(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()), "content-length {text:?}");
    let length: usize = text.parse()?;
    ensure!(length <= BODY_LIMIT_BYTES, "a body of {length} bytes");
    Ok(length)
}

/// Shows that the parser takes a right request and finds every mistake that is made in it: an
/// experiment that rests on it asks first.
///
/// # Errors
/// A mistake passed.
pub fn check_parser() -> Result<()> {
    const GOOD: &str = "POST /a%0Ab HTTP/1.1\r\nHost: g\r\nContent-Length: 7\r\nContent-Type: x\r\nwebhook-id: 1\r\n\
                        webhook-timestamp: 1\r\nwebhook-signature: v1,x\r\nce-subject: caf\u{e9}\r\n\r\n";
    let check = |head: &str| parse(head.as_bytes()).and_then(|request| body_length(&request));
    ensure!(check(GOOD)? == 7, "a right request is read wrongly");
    for (from, to) in [
        ("POST", "GET"),
        ("/a%0Ab", "/a b"),
        ("/a%0Ab", "/a\tb"),
        ("/a%0Ab", "/a\u{e9}"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("Host: g\r\n", ""),
        ("Host: g\r\n", "Host: g\r\nHost: h\r\n"),
        ("Content-Length: 7", "Content-Length: +7"),
        ("Content-Length: 7", "Content-Length: 7\r\nContent-Length: 7"),
        ("Content-Length: 7", "Content-Length: 7\r\nTransfer-Encoding: chunked"),
        ("Host: g\r\n", "Host: g\n"),
        ("caf", "a\rb"),
        ("caf", "a\0b"),
        ("caf", "a\u{1b}b"),
        ("caf", "x\r\nInjected"),
        ("ce-subject:", "ce subject:"),
        ("ce-subject:", "ce-subject :"),
        ("webhook-id: 1", "webhook-id: 1\r\nwebhook-id: 2"),
    ] {
        ensure!(GOOD.contains(from) && check(&GOOD.replacen(from, to, 1)).is_err(), "{to:?} for {from:?} passed");
    }
    Ok(())
}
