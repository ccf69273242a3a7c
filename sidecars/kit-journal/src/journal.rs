//! The handle that intakes, sinks and the admin API share, and the one thread that writes.
//!
//! The thread takes whatever has queued up during the last sync and commits it in one go: group
//! commit without a timer. After a failed commit the store counts as poisoned: everything is refused
//! until it has been reopened and what it shows is known to be on the disk.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kit::clock::SharedClock;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::JournalSection;
use crate::engine::{Action, ActionOutcome, Append, Commit, Engine, Purge, Reader, Settlement, Verdict};
use crate::error::{AppendError, JournalError, OpenError};
use crate::event::{BodyDigest, EventId, NewEvent, Seq};
use crate::metrics::JournalMetrics;
use crate::sqlite::{SqliteEngine, SqliteReader};

/// At most this many requests in one commit …
const GROUP_REQUESTS: usize = 512;
/// … and about this many bytes of bodies.
const GROUP_BYTES: usize = 8 << 20;
/// Between two attempts to reopen a failed store.
const REOPEN_EVERY: Duration = Duration::from_millis(250);
/// How often a step of purging joins a commit or makes one of its own.
const PURGE_EVERY: Duration = Duration::from_secs(5);
/// Rows one purge step removes at most.
const PURGE_ROWS: u32 = 512;
/// Read connections kept open.
const READERS: usize = 3;

/// What became of an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The event's id; the first arrival's where this is a duplicate.
    pub id: EventId,
    /// Its position.
    pub seq: Seq,
    /// It was accepted before.
    pub duplicate: bool,
    /// Its key was known with another body.
    pub conflict: bool,
}

/// Whether the journal takes events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Writable,
    /// It does not, and why.
    Failing(String),
}

enum Request {
    Append(Append, oneshot::Sender<Result<Appended, AppendError>>),
    Settle(Vec<Settlement>, oneshot::Sender<Result<(), JournalError>>),
    Act(Vec<Action>, oneshot::Sender<Result<Vec<ActionOutcome>, JournalError>>),
    Value(String, Vec<u8>, oneshot::Sender<Result<(), JournalError>>),
    Close,
}

/// The journal. Cheap to clone; all clones speak to the same file.
#[derive(Clone)]
pub struct Journal {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

struct Shared {
    path: std::path::PathBuf,
    readers: Mutex<Vec<SqliteReader>>,
    reader_permits: tokio::sync::Semaphore,
    tail: watch::Receiver<Seq>,
    actions: watch::Receiver<u64>,
    health: watch::Receiver<Health>,
    used_bytes: AtomicU64,
    metrics: JournalMetrics,
}

/// The writing thread; [`JournalTask::close`] ends it.
#[derive(Debug)]
pub struct JournalTask {
    thread: Option<std::thread::JoinHandle<()>>,
    requests: mpsc::Sender<Request>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Request")
    }
}

impl Journal {
    /// Opens or creates the journal and starts its writing thread. Blocks for as long as loading
    /// the deduplication memory takes.
    ///
    /// # Errors
    /// [`OpenError`], each kind with its own exit code; the file is untouched where it is not ours.
    pub fn open(
        section: &JournalSection,
        clock: SharedClock,
        registry: &mut prometheus_client::registry::Registry,
    ) -> Result<(Self, JournalTask), OpenError> {
        let engine = SqliteEngine::open(&section.path)?;
        let metrics = JournalMetrics::register(registry);
        let (requests, received) = mpsc::channel(section.queue);
        let (tail, tail_seen) = watch::channel(engine.last_seq());
        let (actions, actions_seen) = watch::channel(0);
        let (health, health_seen) = watch::channel(Health::Writable);
        let shared = Arc::new(Shared {
            path: section.path.clone(),
            readers: Mutex::new(Vec::new()),
            reader_permits: tokio::sync::Semaphore::new(READERS),
            tail: tail_seen,
            actions: actions_seen,
            health: health_seen,
            used_bytes: AtomicU64::new(0),
            metrics,
        });
        let writer = Writer {
            engine: Box::new(engine),
            section: section.clone(),
            clock,
            requests: received,
            tail,
            actions,
            health,
            shared: Arc::clone(&shared),
            next_reopen: None,
            next_purge: Instant::now() + PURGE_EVERY,
        };
        let thread = std::thread::Builder::new()
            .name("journal-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io { path: section.path.clone(), source })?;
        let task = JournalTask { thread: Some(thread), requests: requests.clone() };
        Ok((Self { requests, shared }, task))
    }

    /// Appends an event. When this returns `Ok` the event is on the disk.
    ///
    /// # Errors
    /// [`AppendError`]: the sender should come again.
    pub async fn append(&self, event: NewEvent) -> Result<Appended, AppendError> {
        let digest = BodyDigest::of(&event.body);
        self.append_digested(event, digest).await
    }

    /// As [`Journal::append`], for callers that have hashed the body already.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub async fn append_digested(&self, event: NewEvent, digest: BodyDigest) -> Result<Appended, AppendError> {
        let append = Append { head: event.head, body: event.body, digest, dedupe: event.dedupe };
        let (answer, answered) = oneshot::channel();
        match self.requests.try_send(Request::Append(append, answer)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.shared.metrics.refused_busy.inc();
                return Err(AppendError::Busy);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(AppendError::Unavailable("it has stopped".to_owned()));
            }
        }
        answered.await.unwrap_or_else(|_| Err(AppendError::Unavailable("it has stopped".to_owned())))
    }

    /// Records results of deliveries. When this returns `Ok` they are on the disk.
    ///
    /// # Errors
    /// The commit failed; nothing of it was recorded as far as anyone knows. Settling again is safe.
    pub async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), JournalError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Settle(settlements, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Does what an operator asked for; all of it in one commit.
    ///
    /// # Errors
    /// The commit failed.
    pub async fn act(&self, actions: Vec<Action>) -> Result<Vec<ActionOutcome>, JournalError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Act(actions, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Remembers a small value across restarts.
    ///
    /// # Errors
    /// The commit failed.
    pub async fn put_value(&self, name: &str, value: Vec<u8>) -> Result<(), JournalError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Value(name.to_owned(), value, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn send(&self, request: Request) -> Result<(), JournalError> {
        self.requests.send(request).await.map_err(|_| stopped())
    }

    /// Reads from the journal on a blocking thread.
    ///
    /// # Errors
    /// Whatever `read` says, or that no reader could be opened.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Reader) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let _permit = self.shared.reader_permits.acquire().await.map_err(|_| stopped())?;
        let shared = Arc::clone(&self.shared);
        let joined = tokio::task::spawn_blocking(move || {
            let pooled = shared.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut reader = match pooled {
                Some(reader) => reader,
                None => SqliteReader::open(&shared.path)?,
            };
            let result = read(&mut reader);
            // After a store error the connection is not trusted with the next question.
            if !matches!(result, Err(JournalError::Store(_))) {
                shared.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            }
            result
        });
        joined.await.unwrap_or_else(|_| Err(JournalError::Unavailable("a read was cut off".to_owned())))
    }

    /// The last position, and a signal when it grows.
    pub fn tail(&self) -> watch::Receiver<Seq> {
        self.shared.tail.clone()
    }

    /// A signal when an operator's action changed deliveries.
    pub fn actions(&self) -> watch::Receiver<u64> {
        self.shared.actions.clone()
    }

    /// Whether events are taken, and a signal when that changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.clone()
    }

    /// Bytes in use within the file, as of the last commit that looked.
    pub fn used_bytes(&self) -> u64 {
        self.shared.used_bytes.load(Ordering::Relaxed)
    }

    /// The journal file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

impl JournalTask {
    /// Commits what is queued, closes the file and waits for the thread. Blocks.
    pub fn close(mut self) {
        if self.requests.blocking_send(Request::Close).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread panicked");
        }
    }

    /// Whether the thread has ended without being asked to.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

fn stopped() -> JournalError {
    JournalError::Unavailable("it has stopped".to_owned())
}

struct Writer {
    engine: Box<dyn Engine>,
    section: JournalSection,
    clock: SharedClock,
    requests: mpsc::Receiver<Request>,
    tail: watch::Sender<Seq>,
    actions: watch::Sender<u64>,
    health: watch::Sender<Health>,
    shared: Arc<Shared>,
    /// Set while the store is poisoned.
    next_reopen: Option<Instant>,
    next_purge: Instant,
}

/// Who waits for what in a commit, in the commit's order.
#[derive(Default)]
struct Waiting {
    appends: Vec<oneshot::Sender<Result<Appended, AppendError>>>,
    settlements: Vec<oneshot::Sender<Result<(), JournalError>>>,
    actions: Vec<(usize, oneshot::Sender<Result<Vec<ActionOutcome>, JournalError>>)>,
    values: Vec<oneshot::Sender<Result<(), JournalError>>>,
}

impl Writer {
    fn run(mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(runtime) = runtime else {
            self.health.send_replace(Health::Failing("no timer for the journal's thread".to_owned()));
            return;
        };
        loop {
            let wait = self.next_reopen.unwrap_or(self.next_purge).saturating_duration_since(Instant::now());
            // Whatever is there already is taken without touching the timer.
            let first = match self.requests.try_recv() {
                Ok(request) => Some(Some(request)),
                Err(mpsc::error::TryRecvError::Disconnected) => Some(None),
                Err(mpsc::error::TryRecvError::Empty) => {
                    runtime.block_on(async { tokio::time::timeout(wait, self.requests.recv()).await.ok() })
                }
            };
            let closing = match first {
                Some(None) => true,
                Some(Some(request)) => self.take_group(Some(request)),
                None => self.take_group(None),
            };
            if closing {
                break;
            }
            self.reopen_if_due();
        }
        self.engine.close();
    }

    /// Gathers what is queued, commits it and answers; true when asked to close.
    fn take_group(&mut self, first: Option<Request>) -> bool {
        let mut commit = Commit { at: self.clock.now(), ..Commit::default() };
        let mut waiting = Waiting::default();
        let (mut bytes, mut requests, mut closing) = (0, 0, false);
        let mut next = first;
        while let Some(request) = next.take() {
            requests += 1;
            match request {
                Request::Append(append, answer) => {
                    bytes += append.body.len();
                    commit.appends.push(append);
                    waiting.appends.push(answer);
                }
                Request::Settle(settlements, answer) => {
                    commit.settlements.extend(settlements);
                    waiting.settlements.push(answer);
                }
                Request::Act(actions, answer) => {
                    waiting.actions.push((actions.len(), answer));
                    commit.actions.extend(actions);
                }
                Request::Value(name, value, answer) => {
                    commit.values.push((name, value));
                    waiting.values.push(answer);
                }
                Request::Close => {
                    closing = true;
                    break;
                }
            }
            if requests >= GROUP_REQUESTS || bytes >= GROUP_BYTES {
                break;
            }
            next = self.requests.try_recv().ok();
        }
        self.shared.metrics.queued.set(i64::try_from(self.requests.len()).unwrap_or(i64::MAX));
        if self.next_reopen.is_some() {
            let reason = match &*self.health.borrow() {
                Health::Failing(reason) => reason.clone(),
                Health::Writable => "it is being reopened".to_owned(),
            };
            waiting.refuse(&reason);
            return closing;
        }
        self.refuse_when_too_large(&mut commit, &mut waiting);
        self.add_purge(&mut commit);
        if !commit.is_empty() {
            self.commit(commit, waiting);
        }
        closing
    }

    fn commit(&mut self, mut commit: Commit, waiting: Waiting) {
        let started = Instant::now();
        let appends = commit.appends.len();
        let purging = commit.purge.is_some();
        match self.engine.commit(&mut commit) {
            Ok(committed) => {
                let took = started.elapsed();
                if committed.synced {
                    self.shared.metrics.committed(took, appends);
                }
                self.shared.metrics.purged.inc_by(committed.purged.events);
                if purging {
                    self.observe();
                    // As long as there is more to purge, go on at once between commits.
                    if committed.purged.events + committed.purged.keys >= u64::from(PURGE_ROWS) {
                        self.next_purge = Instant::now();
                    }
                }
                self.tail.send_if_modified(|tail| {
                    let grown = committed.last_seq > *tail;
                    *tail = committed.last_seq;
                    grown
                });
                let acted = !committed.actions.is_empty();
                waiting.answer(&committed.verdicts, &committed.actions);
                if acted {
                    self.actions.send_modify(|n| *n += 1);
                }
                if self.requests.is_empty()
                    && let Err(error) = self.engine.idle()
                {
                    self.poisoned(&error);
                }
            }
            Err(error) => {
                let reason = self.poisoned(&error);
                waiting.refuse(&reason);
            }
        }
    }

    fn poisoned(&mut self, error: &JournalError) -> String {
        let reason = kit::error::chain(error);
        self.shared.metrics.failures.inc();
        tracing::error!(reason = %reason, "journal commit failed, refusing events until the store is reopened: {reason}");
        self.health.send_replace(Health::Failing(reason.clone()));
        self.next_reopen = Some(Instant::now());
        reason
    }

    fn reopen_if_due(&mut self) {
        if self.next_reopen.is_none_or(|due| due > Instant::now()) {
            return;
        }
        // Readers of the failed store let go, so that the checkpoint is not kept from finishing.
        self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        match self.engine.reopen() {
            Ok(()) => {
                self.next_reopen = None;
                self.health.send_replace(Health::Writable);
                self.tail.send_if_modified(|tail| std::mem::replace(tail, self.engine.last_seq()) < self.engine.last_seq());
                tracing::info!("journal reopened, taking events again");
            }
            Err(error) => {
                let reason = kit::error::chain(&error);
                self.health.send_replace(Health::Failing(reason.clone()));
                tracing::warn!(reason = %reason, "journal still failing: {reason}");
                self.next_reopen = Some(Instant::now() + REOPEN_EVERY);
            }
        }
    }

    fn refuse_when_too_large(&self, commit: &mut Commit, waiting: &mut Waiting) {
        let max_bytes = self.section.max_bytes;
        if max_bytes == 0 || commit.appends.is_empty() || self.engine.used_bytes().unwrap_or(0) < max_bytes {
            return;
        }
        let reason = kit::error::chain(&JournalError::TooLarge { max_bytes });
        commit.appends.clear();
        for answer in waiting.appends.drain(..) {
            let _ = answer.send(Err(AppendError::Unavailable(reason.clone())));
        }
    }

    fn add_purge(&mut self, commit: &mut Commit) {
        if Instant::now() < self.next_purge {
            return;
        }
        self.next_purge = Instant::now() + PURGE_EVERY;
        commit.purge = Some(Purge {
            delivered_before: commit.at.plus_millis(-days_in_millis(self.section.retention.days)),
            max_bytes: self.section.retention.max_bytes,
            keys_before: commit.at.plus_millis(-days_in_millis(self.section.dedupe_days)),
            limit: PURGE_ROWS,
        });
    }

    fn observe(&self) {
        if let Ok(bytes) = self.engine.used_bytes() {
            self.shared.used_bytes.store(bytes, Ordering::Relaxed);
            self.shared.metrics.used_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        let (bytes, keys) = self.engine.dedupe_memory();
        self.shared.metrics.dedupe_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.shared.metrics.dedupe_keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}

impl Waiting {
    fn answer(self, verdicts: &[Verdict], outcomes: &[ActionOutcome]) {
        for (answer, verdict) in self.appends.into_iter().zip(verdicts) {
            let Verdict { id, seq, duplicate, conflict } = *verdict;
            let _ = answer.send(Ok(Appended { id, seq, duplicate, conflict }));
        }
        for answer in self.settlements.into_iter().chain(self.values) {
            let _ = answer.send(Ok(()));
        }
        let mut outcomes = outcomes.iter();
        for (count, answer) in self.actions {
            let _ = answer.send(Ok(outcomes.by_ref().take(count).copied().collect()));
        }
    }

    fn refuse(self, reason: &str) {
        let error = || JournalError::Unavailable(reason.to_owned());
        for answer in self.appends {
            let _ = answer.send(Err(AppendError::Unavailable(reason.to_owned())));
        }
        for answer in self.settlements.into_iter().chain(self.values) {
            let _ = answer.send(Err(error()));
        }
        for (_, answer) in self.actions {
            let _ = answer.send(Err(error()));
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "validated to at most 36,500 days")]
fn days_in_millis(days: f64) -> i64 {
    (days * 86_400_000.0) as i64
}
