//! One connection's worth of load.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Histogram, LoadControl, LoadOptions, Pacing, Pool};
use crate::http1::{self, ReadError, Received};
use crate::ledger::SentRequest;

/// An answer to a webhook is a few bytes; a larger one is a fault.
const ANSWER_LIMIT_BYTES: usize = 1024 * 1024;
/// Keys that may be repeated on purpose.
const REPEATABLE: usize = 4096;
/// After a failed connect, so that an absent daemon is not hammered by a closed loop.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What all workers of a run share.
pub(super) struct Shared {
    options: LoadOptions,
    pool: Arc<Pool>,
    control: LoadControl,
    begin: Instant,
    next: AtomicU64,
    repeatable: Mutex<VecDeque<(String, usize)>>,
}

impl Shared {
    pub(super) fn new(options: LoadOptions, pool: Arc<Pool>, control: LoadControl, begin: Instant) -> Self {
        Self { options, pool, control, begin, next: AtomicU64::new(0), repeatable: Mutex::new(VecDeque::new()) }
    }

    /// The number of the next request and when it is due, or `None` at the end of the run.
    fn next_slot(&self) -> Option<(u64, Instant)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.options.requests.is_some_and(|limit| number >= limit) {
            return None;
        }
        let now = Instant::now();
        let due = match self.options.pacing {
            Pacing::Closed => now,
            Pacing::Open { per_second } => self.begin + Duration::from_secs_f64(number as f64 / per_second),
        };
        let end = self.options.duration.map(|length| self.begin + length);
        // A slot that is due but late is still sent: leaving it out would hide the stall.
        let over = end.is_some_and(|end| due >= end);
        (!over && !self.control.stop.is_cancelled()).then_some((number, due))
    }

    /// Key and webhook of the next request, and whether it repeats an earlier one.
    fn choose(&self, number: u64) -> (String, usize, bool) {
        let share = self.options.duplicates_percent;
        if share > 0.0 {
            let mut earlier = self.repeatable.lock().unwrap_or_else(PoisonError::into_inner);
            if !earlier.is_empty() && fastrand::f64() * 100.0 < share {
                let (key, index) = earlier[fastrand::usize(..earlier.len())].clone();
                return (key, index, true);
            }
            let fresh = self.fresh(number);
            if earlier.len() == REPEATABLE {
                earlier.pop_front();
            }
            earlier.push_back(fresh.clone());
            return (fresh.0, fresh.1, false);
        }
        let (key, index) = self.fresh(number);
        (key, index, false)
    }

    fn fresh(&self, number: u64) -> (String, usize) {
        let index = usize::try_from(number % self.pool.len() as u64).unwrap_or_default();
        // From the worker's fast generator: the operating system's would cost a call per request.
        let key = uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid();
        (key.to_string(), index)
    }
}

/// What one worker counted.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) ok: u64,
    pub(super) retries: u64,
    pub(super) repeated: u64,
    pub(super) duplicates_answered: u64,
    pub(super) body_bytes: u64,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) latency: Histogram,
    pub(super) sent: Vec<SentRequest>,
}

impl Tally {
    fn failed(&mut self, kind: String) {
        *self.errors.entry(kind).or_default() += 1;
    }

    pub(super) fn add(&mut self, mut other: Self) {
        self.requests += other.requests;
        self.ok += other.ok;
        self.retries += other.retries;
        self.repeated += other.repeated;
        self.duplicates_answered += other.duplicates_answered;
        self.body_bytes += other.body_bytes;
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.latency.merge(&other.latency);
        self.sent.append(&mut other.sent);
    }
}

pub(super) async fn run(shared: Arc<Shared>) -> Tally {
    let mut tally = Tally::default();
    let mut connection = Connection::default();
    while let Some((number, due)) = shared.next_slot() {
        if due > Instant::now() {
            tokio::select! {
                () = sleep_until(due) => {}
                () = shared.control.stop.cancelled() => break,
            }
        }
        let (key, index, repeated) = shared.choose(number);
        tally.requests += 1;
        tally.repeated += u64::from(repeated);
        let ok = request(&shared, &mut connection, &key, index, &mut tally).await;
        if ok {
            tally.ok += 1;
            tally.latency.record(due.elapsed());
        }
        shared.control.finished(ok);
    }
    tally
}

/// Sends one webhook until it is accepted or the attempts are used up.
async fn request(shared: &Shared, connection: &mut Connection, key: &str, index: usize, tally: &mut Tally) -> bool {
    let options = &shared.options;
    let webhook = shared.pool.get(index);
    let made = webhook.of_key(key);
    let webhook = made.as_ref().unwrap_or(webhook);
    for attempt in 1..=options.attempts {
        if attempt > 1 {
            tokio::select! {
                () = sleep(options.retry_pause) => {}
                () = shared.control.stop.cancelled() => return false,
            }
            tally.retries += 1;
        }
        let bytes = webhook.request(&options.target, key, options.keep_alive);
        let organisation = Arc::clone(&webhook.organisation);
        let subject = Arc::clone(&webhook.subject);
        let mut sent = SentRequest::begin(organisation, key, subject, webhook.sha256());
        let exchange = connection.exchange(options, &bytes);
        let answer = timeout(options.timeout, exchange).await.unwrap_or(Err(Failure::Timeout));
        tally.body_bytes += webhook.body.len() as u64;
        let unreachable = matches!(answer, Err(Failure::Refused | Failure::Connect));
        match answer {
            Ok(answer) => {
                sent.finish(answer.status, &answer.body);
                if !sent.is_accepted() {
                    tally.failed(format!("status {}", answer.status));
                }
                if !options.keep_alive || !answer.keep_alive {
                    connection.close();
                }
            }
            Err(failure) => {
                tally.failed(failure.kind().to_owned());
                connection.close();
            }
        }
        let ok = sent.is_accepted();
        tally.duplicates_answered += u64::from(sent.duplicate == Some(true));
        if options.record {
            tally.sent.push(sent);
        }
        if ok {
            return true;
        }
        if unreachable {
            sleep(CONNECT_PAUSE).await;
        }
    }
    false
}

enum Failure {
    Refused,
    Connect,
    Reset,
    Closed,
    Timeout,
    Malformed,
    Io,
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::Io => "io",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Io,
        }
    }
}

#[derive(Default)]
struct Connection {
    stream: Option<TcpStream>,
    received: Received,
}

impl Connection {
    fn close(&mut self) {
        self.stream = None;
        self.received.take();
    }

    async fn exchange(&mut self, options: &LoadOptions, request: &[u8]) -> Result<http1::Answer, Failure> {
        // Taken out while in use: a request that is cut by its time limit must not leave a
        // connection behind on which its answer arrives later.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                self.received.take();
                let connected = TcpStream::connect(options.target.address).await;
                let stream = connected.map_err(|error| match Failure::of(&error) {
                    Failure::Refused => Failure::Refused,
                    _ => Failure::Connect,
                })?;
                stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
                stream
            }
        };
        // A refusal may come before the whole body was taken, and then the write fails while an
        // answer is there to be read.
        let written = stream.write_all(request).await;
        let answer = http1::read_answer(&mut stream, &mut self.received, ANSWER_LIMIT_BYTES).await;
        match (answer, written) {
            (Ok(answer), _) => {
                self.stream = Some(stream);
                Ok(answer)
            }
            (Err(ReadError::Io(error)), _) => Err(Failure::of(&error)),
            (Err(ReadError::Closed), Err(error)) => Err(Failure::of(&error)),
            (Err(ReadError::Closed), Ok(())) => Err(Failure::Closed),
            (Err(_), _) => Err(Failure::Malformed),
        }
    }
}
