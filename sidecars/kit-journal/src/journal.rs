//! The handle that intakes, sinks and the admin API share. Writes go to the writing thread, reads to
//! a small pool of read-only connections.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kit::clock::{SharedClock, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use crate::age::Age;
use crate::config::JournalSection;
use crate::engine::{self, Action, ActionOutcome, Append, Engine, Lease, Opened, Reader, Settlement, Verdict};
use crate::error::{AppendError, JournalError, OpenError};
use crate::event::{BodyDigest, EventId, NewEvent, Seq, StoredEvent};
use crate::lease::{Held, Keep, start_keeping};
use crate::metrics::JournalMetrics;
use crate::pace::Pace;
use crate::reads::Reads;
use crate::recent::Recent;
use crate::request::{QUEUED_BYTES, Request};
use crate::writer::Writer;

/// Read connections kept open.
pub(crate) const READERS: u32 = 3;

/// What became of an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The event's id; the first arrival's where this is a duplicate.
    pub id: EventId,
    /// Its position.
    pub seq: Seq,
    /// Its receipt time, where it is new; of a duplicate, when that was found.
    pub at: Timestamp,
    /// It was accepted before.
    pub duplicate: bool,
    /// Its key was known with another body.
    pub conflict: bool,
    /// It was not stored, because of another one that it was to be stored together with; `seq` says nothing then.
    pub withheld: bool,
}

impl Appended {
    /// By a commit made at `at`.
    pub(crate) fn new(verdict: &Verdict, at: Timestamp) -> Self {
        let Verdict { id, seq, duplicate, conflict, withheld } = *verdict;
        Self { id, seq, at, duplicate, conflict, withheld }
    }
}

/// Whether the journal takes events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Writable,
    /// It does not, and why.
    Failing(String),
    /// It does not, and this process never will again, whatever is tried: it has to end. The next one goes on.
    Over(String),
}

/// Makes one more reader of an engine's store.
pub type OpenReader = Box<dyn Fn() -> Result<Box<dyn Reader>, JournalError> + Send + Sync>;

/// The journal. Cheap to clone; all clones speak to the same file.
#[derive(Clone)]
pub struct Journal {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

/// What the handle and the writing thread share.
pub(crate) struct Shared {
    path: std::path::PathBuf,
    clock: SharedClock,
    open_reader: OpenReader,
    pub(crate) readers: Mutex<Vec<Box<dyn Reader>>>,
    pub(crate) recent: Mutex<Recent>,
    /// Whoever reads has one; who has all of them is alone with the store.
    pub(crate) reader_permits: Arc<tokio::sync::Semaphore>,
    /// One less: whatever people look for, a reader is left for deliveries.
    browsing_permits: tokio::sync::Semaphore,
    /// How long an append may wait for the disk.
    wait: Duration,
    tail: watch::Receiver<Seq>,
    actions: watch::Receiver<u64>,
    health: watch::Receiver<Health>,
    reads: Reads,
    /// Where leases are renewed, if that is not by the writing thread.
    keeper: Option<mpsc::Sender<Keep>>,
    pub(crate) used_bytes: AtomicU64,
    /// Bodies of what is queued. They stay when those who sent them have given up.
    pub(crate) queued_bytes: AtomicUsize,
    pub(crate) metrics: JournalMetrics,
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

impl Journal {
    /// Opens or creates the journal and starts its writing thread. Blocks for as long as loading
    /// the deduplication memory takes, or until the database answers.
    ///
    /// # Errors
    /// [`OpenError`], each kind with its own exit code; the file is untouched where it is not ours.
    pub fn open(
        section: &JournalSection,
        clock: SharedClock,
        registry: &mut prometheus_client::registry::Registry,
    ) -> Result<(Self, JournalTask), OpenError> {
        let Opened { engine, open_reader, clock } = engine::open_section(section, clock)?;
        Self::over(engine, open_reader, section, clock, registry)
    }

    /// A journal over another engine. `section.path` is only what [`Journal::path`] says.
    ///
    /// # Errors
    /// The writing thread cannot be started.
    pub fn over(
        engine: Box<dyn Engine>,
        open_reader: OpenReader,
        section: &JournalSection,
        clock: SharedClock,
        registry: &mut prometheus_client::registry::Registry,
    ) -> Result<(Self, JournalTask), OpenError> {
        let store = |source| OpenError::Store { path: section.path.clone(), source };
        let (stored, newest_key) = engine.remembered(Age::NAME).map_err(store)?;
        let age = Age::restore(stored.as_deref(), newest_key, clock.now());
        let metrics = JournalMetrics::register(registry);
        metrics.max_bytes.set(i64::try_from(section.max_bytes).unwrap_or(i64::MAX));
        engine.disk().into_iter().for_each(|disk| metrics.disk(disk));
        // Opened now and not when they are first needed: reading must go on when the process runs out
        // of file descriptors. One that cannot be opened is tried again when it is needed.
        let readers = (0..READERS).filter_map(|_| open_reader().ok()).collect();
        let thread_failed = |source| OpenError::Io { path: section.path.clone(), source };
        let keeper = engine.keeper().map_err(store)?.map(start_keeping).transpose().map_err(thread_failed)?;
        let (requests, received) = mpsc::channel(section.queue);
        let (tail, tail_seen) = watch::channel(engine.last_seq());
        let (actions, actions_seen) = watch::channel(0);
        let (health, health_seen) = watch::channel(Health::Writable);
        let shared = Arc::new(Shared {
            path: section.path.clone(),
            clock: Arc::clone(&clock),
            open_reader,
            readers: Mutex::new(readers),
            recent: Mutex::default(),
            reader_permits: Arc::new(tokio::sync::Semaphore::new(READERS as usize)),
            browsing_permits: tokio::sync::Semaphore::new(READERS as usize - 1),
            wait: Duration::from_secs_f64(section.wait_seconds),
            tail: tail_seen,
            actions: actions_seen,
            health: health_seen,
            reads: Reads::default(),
            keeper,
            used_bytes: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            metrics,
        });
        let next_look = engine.look_every().map(|every| Instant::now() + every);
        let writer = Writer {
            engine,
            section: section.clone(),
            clock,
            age,
            requests: received,
            tail,
            actions,
            pace: Pace::default(),
            health,
            shared: Arc::clone(&shared),
            next_reopen: None,
            next_purge: Instant::now(),
            next_look,
        };
        let thread = std::thread::Builder::new()
            .name("journal-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(thread_failed)?;
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
        let append = Append::new(event, digest);
        let (answer, answered) = oneshot::channel();
        self.offer(Request::Append(Box::new(append), answer), answered).await
    }

    /// Appends events together: all of them in one commit, and none where the key of one is known with other content
    /// ([`Dedupe::Key`](crate::Dedupe::Key)). Which one that is shows in the answers, which are in the order of
    /// the events: a duplicate with another id than its own.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub async fn append_together(&self, events: Vec<NewEvent>) -> Result<Vec<Appended>, AppendError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let appends = events.into_iter().map(Append::hashed).collect();
        let (answer, answered) = oneshot::channel();
        self.offer(Request::Together(appends, answer), answered).await
    }

    /// Appends events, each judged for itself, and remembers small values in the same commit: how far what they came from
    /// has been read. An empty value is forgotten.
    ///
    /// # Errors
    /// As [`Journal::append`]; neither events nor values were recorded, as far as anyone knows.
    pub async fn append_recording(
        &self,
        events: Vec<NewEvent>,
        values: Vec<(String, Vec<u8>)>,
    ) -> Result<Vec<Appended>, AppendError> {
        let appends = events.into_iter().map(Append::hashed).collect();
        let (answer, answered) = oneshot::channel();
        self.offer(Request::Recording(appends, values, answer), answered).await
    }

    /// Appends events and settles those that they take the place of, in one commit.
    ///
    /// # Errors
    /// Nothing of it was recorded, as far as anyone knows; what was is recorded when the same comes again.
    pub async fn append_instead(
        &self,
        events: Vec<NewEvent>,
        settlement: Settlement,
    ) -> Result<Vec<Appended>, AppendError> {
        let appends = events.into_iter().map(Append::hashed).collect();
        let (answer, answered) = oneshot::channel();
        self.offer(Request::Instead(appends, settlement, answer), answered).await
    }

    /// The events that are remembered under a key, in any scope, in order of position. Look at the event itself: now and
    /// then another key's is among them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn known(&self, source: &str, key: &str) -> Result<Vec<(EventId, Seq)>, JournalError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Known(source.to_owned(), key.to_owned(), answer)).await?;
        // The thread that answers waits for the disk like everybody.
        let late = |_| Err(JournalError::Unavailable("it takes too long".to_owned()));
        let answer = tokio::time::timeout(self.shared.wait, answered).await;
        answer.map_or_else(late, |answer| answer.unwrap_or_else(|_| Err(stopped())))
    }

    /// Queues a request that appends, and waits as long as an append may take.
    async fn offer<T>(
        &self,
        request: Request,
        answered: oneshot::Receiver<Result<T, AppendError>>,
    ) -> Result<T, AppendError> {
        let bytes = request.bytes();
        let before = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A single one always fits, however large it is.
        let sent = match before == 0 || before + bytes <= QUEUED_BYTES {
            true => self.requests.try_send(request),
            false => Err(mpsc::error::TrySendError::Full(request)),
        };
        if sent.is_err() {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        match sent {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.shared.metrics.refused_busy.inc();
                return Err(AppendError::Busy);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(AppendError::Unavailable("it has stopped".to_owned()));
            }
        }
        match tokio::time::timeout(self.shared.wait, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(AppendError::Unavailable("it has stopped".to_owned()))),
            // It stays in the queue: most likely it will be stored, and is known when it comes again.
            Err(_) => {
                self.shared.metrics.refused_late.inc();
                Err(AppendError::Late)
            }
        }
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

    /// As [`Journal::read`], for what may take long and can wait: searches and lists for people.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub async fn browse<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Reader) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let _permit = self.shared.browsing_permits.acquire().await.map_err(|_| stopped())?;
        self.read(read).await
    }

    /// Reads from the journal on a blocking thread.
    ///
    /// # Errors
    /// Whatever `read` says, or that no reader could be opened.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Reader) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let result = self.ask(read).await;
        if let Err(error) = &result
            && error.is_of_the_database()
        {
            self.shared.reads.failed(error, self);
        }
        result
    }

    /// As [`Journal::read`], for whoever tries whether it can be read.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Reader) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let permit = Arc::clone(&self.shared.reader_permits).acquire_owned().await.map_err(|_| stopped())?;
        let shared = Arc::clone(&self.shared);
        let joined = tokio::task::spawn_blocking(move || {
            // Until the reader is back, also when nobody waits for the answer any more.
            let _permit = permit;
            let pooled = shared.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut reader = match pooled {
                Some(reader) => reader,
                None => (shared.open_reader)()?,
            };
            reader.expects(*shared.tail.borrow());
            let result = read(reader.as_mut());
            if matches!(&result, Err(JournalError::Store(_)))
                || result.as_ref().is_err_and(JournalError::is_of_the_database)
            {
                shared.metrics.read_failures.inc();
            }
            // After a store error the connection is not trusted with the next question.
            if !matches!(result, Err(JournalError::Store(_))) {
                shared.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            }
            result
        });
        joined.await.unwrap_or_else(|_| Err(JournalError::Unavailable("a read was cut off".to_owned())))
    }

    /// Events after `after` from memory, in order, at most `limit` and about `max_bytes` of bodies (but
    /// always one); `None` when they have to be read. Rows ahead of a sink's cursor are not looked at.
    pub fn recent(&self, after: Seq, limit: u32, max_bytes: u64) -> Option<Vec<Arc<StoredEvent>>> {
        self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner).after(after, limit, max_bytes)
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

    /// Why the store cannot be read, and a signal when that changes; `None` where it can. Events are taken all the same.
    pub fn unreadable(&self) -> watch::Receiver<Option<String>> {
        self.shared.reads.seen()
    }

    /// Whether nothing will be written any more.
    pub(crate) fn is_over(&self) -> bool {
        self.requests.is_closed()
    }

    /// Bytes in use within the file, as of the last commit that looked.
    pub fn used_bytes(&self) -> u64 {
        self.shared.used_bytes.load(Ordering::Relaxed)
    }

    /// The clock that whatever is stored here is told by: where several replicas share the journal, one that they share.
    pub fn clock(&self) -> SharedClock {
        Arc::clone(&self.shared.clock)
    }

    /// Asks for the right to deliver to a sink; `None`: another replica has it, ask again later. It is kept until what
    /// comes back is dropped or cannot be kept any more.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub async fn lease(&self, sink: &str) -> Result<Option<Held>, JournalError> {
        Held::ask(self.clone(), sink).await
    }

    /// One question for a lease.
    pub(crate) async fn ask_lease(&self, sink: &str) -> Result<Option<Lease>, JournalError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Lease(sink.to_owned(), answer)).await?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Has a lease last on: beside the commits, where the store can do that.
    pub(crate) async fn keep_lease(&self, sink: &str, epoch: u64) -> Result<Option<Lease>, JournalError> {
        let Some(keeper) = &self.shared.keeper else { return self.ask_lease(sink).await };
        let (answer, answered) = oneshot::channel();
        keeper.send((sink.to_owned(), epoch, answer)).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    pub(crate) async fn give_lease_back(&self, sink: &str, epoch: u64) -> Result<(), JournalError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::GiveBack(sink.to_owned(), epoch, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
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
