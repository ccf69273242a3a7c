//! The whole daemon over real connections: the first byte chooses the listener (`a` admin, anything
//! else public), the rest is what a client sends.
//!
//! Promises: every connection is answered or closed soon; no answer is an internal error; a webhook
//! is accepted only with a signature that was recorded; and the next genuine one is accepted.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use kit::lifecycle::Shell;
use kit::run::Daemon as _;
use kit::secret::Secret;
use kit::telemetry::Metrics;
use lago_webhook_processor::LagoWebhookProcessor;
use lago_webhook_processor::config::{Config, OrganizationSection, Signature};

use crate::captures::{HMAC, HMAC_KEY, ISSUER, JWT};
use crate::parts::{fold, occurrences, runtime};
use crate::scratch::Scratch;

/// After so many inputs a genuine webhook is sent.
const GENUINE_EVERY: u64 = 16;
/// Far more than any deadline of the daemon here.
const PATIENCE: Duration = Duration::from_secs(10);

static COUNT: AtomicU64 = AtomicU64::new(0);

/// The running daemon.
static DAEMON: LazyLock<Running> = LazyLock::new(Running::start);

struct Running {
    public: SocketAddr,
    admin: SocketAddr,
    /// Holds the tasks; the lock is only there to share it.
    _shell: Mutex<Shell>,
    _folder: Scratch,
}

impl Running {
    fn start() -> Self {
        let folder = Scratch::new();
        let (public, admin) = (free(), free());
        let mut config = Config::default();
        config.process.listen.public = public.to_string();
        config.process.listen.admin = admin.to_string();
        config.process.listen.head_timeout_seconds = 2.0;
        config.process.listen.body_timeout_seconds = 2.0;
        config.process.listen.idle_timeout_seconds = 2.0;
        config.journal.path = folder.path("j.db");
        config.lago.hmac_key = Some(Secret::from(HMAC_KEY.to_owned()));
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../sidecars/kit-lago/tests/fixtures/captures");
        let jwt = OrganizationSection {
            signature: Some(Signature::Jwt),
            public_key_file: Some(format!("{fixtures}/lago-jwt-public.pem").into()),
            issuer: Some(ISSUER.to_owned()),
            ..OrganizationSection::default()
        };
        config.lago.organizations.insert("acme".to_owned(), jwt);
        config.process.admin.token = Some(Secret::from("0123456789abcdef0123456789abcdef".to_owned()));
        // Nobody listens there: deliveries wait.
        config.outgoing.gateway.url = Some("http://127.0.0.1:9".to_owned());
        let mut shell = Shell::new();
        let metrics = Arc::new(Metrics::new("fuzz", "0"));
        runtime().block_on(LagoWebhookProcessor::start(config, metrics, &mut shell)).expect("the daemon starts");
        Self { public, admin, _shell: Mutex::new(shell), _folder: folder }
    }
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound")
}

/// Sends the bytes and reads what comes back.
///
/// # Panics
/// The answer is not one that the daemon gives.
pub fn target(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let public = *choice != b'a';
    let answer = exchange(if public { DAEMON.public } else { DAEMON.admin }, bytes);

    let statuses = statuses(&answer);
    assert!(answer.is_empty() || !statuses.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
    for status in &statuses {
        let known = [100, 200, 400, 401, 404, 405, 408, 413, 414, 415, 422, 429, 431, 503].contains(status);
        assert!(known, "{status}: {:?}", String::from_utf8_lossy(&answer));
    }
    if public {
        let accepted = statuses.iter().filter(|status| **status == 200).count();
        let signatures = HMAC.iter().chain(&*JWT).map(|known| occurrences(bytes, known.signature.as_bytes()));
        assert!(accepted <= signatures.sum(), "{accepted} webhooks are accepted: {answer:?}");
    }
    if COUNT.fetch_add(1, Ordering::Relaxed).is_multiple_of(GENUINE_EVERY) {
        genuine();
    }
}

fn genuine() {
    let Some(known) = HMAC.first() else { return };
    let mut request = format!(
        "POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nX-Lago-Signature: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        known.signature,
        known.body.len()
    )
    .into_bytes();
    request.extend_from_slice(&known.body);
    let answer = exchange(DAEMON.public, &request);
    assert_eq!(statuses(&answer), [200], "{:?}", String::from_utf8_lossy(&answer));
}

fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the daemon accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    stream.set_nodelay(true).expect("a socket can be told not to wait");
    let mut random = fastrand::Rng::with_seed(fold(bytes));
    let mut rest = bytes;
    // In a few pieces; the daemon may have closed before the last.
    while !rest.is_empty() {
        let most = if random.u8(0..4) == 0 { rest.len().min(64) } else { rest.len() };
        let (part, after) = rest.split_at(random.usize(1..=most));
        if stream.write_all(part).is_err() {
            break;
        }
        rest = after;
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // Closed with something of ours unread.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("neither answered nor closed: {error}, {:?}", String::from_utf8_lossy(&answer)),
    }
    answer
}

fn statuses(answer: &[u8]) -> Vec<u16> {
    const VERSION: &[u8] = b"HTTP/1.";
    let places = answer.windows(VERSION.len()).enumerate().filter(|(_, window)| *window == VERSION).map(|(at, _)| at);
    let digits = |at: usize| std::str::from_utf8(answer.get(at + 9..at + 12)?).ok()?.parse().ok();
    places.filter_map(digits).collect()
}
