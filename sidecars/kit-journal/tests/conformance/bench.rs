//! One store of any engine, and the servers that all tests of this process share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kit::clock::{SystemClock, Timestamp};
use kit::secret::Secret;
use kit_journal::engine::{
    Action, ActionOutcome, Append, Commit, Committed, Engine, ExceptionRow, ExceptionState, Opened, Purge, Purged,
    Reader, Settlement, Verdict, open_section,
};
use kit_journal::{
    BodyDigest, Dedupe, DeliveryState, EngineKind, EventHead, EventId, JournalSection, NewEvent, OpenError, OpenReader,
    Seq,
};
use kit_workbench::database::{Database, Pooler};
use tempfile::TempDir;

pub(crate) const SINK: &str = "gateway";

/// The server; ends with this process.
pub(crate) fn server() -> &'static Database {
    static SERVER: OnceLock<Database> = OnceLock::new();
    SERVER.get_or_init(|| Database::start(&[]).unwrap())
}

pub(crate) fn pooler() -> &'static Pooler {
    static POOLER: OnceLock<Pooler> = OnceLock::new();
    POOLER.get_or_init(|| Pooler::start(server(), "transaction").unwrap())
}

/// A new and empty database of the server.
pub(crate) fn new_database() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("j{}", COUNT.fetch_add(1, Ordering::Relaxed));
    server().create(&name).unwrap();
    name
}

/// A section for a journal in this database.
pub(crate) fn section_at(url: String) -> JournalSection {
    JournalSection { engine: EngineKind::Postgres, database_url: Some(Secret::from(url)), ..JournalSection::default() }
}

pub(crate) fn open(section: &JournalSection) -> Result<Opened, OpenError> {
    open_section(section, Arc::new(SystemClock))
}

/// Waits until something holds.
pub(crate) fn wait_until(patience: Duration, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < patience);
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) struct Bench {
    section: JournalSection,
    engine: Option<Box<dyn Engine>>,
    open_reader: Option<OpenReader>,
    pub(crate) now: i64,
    /// Of the lease under which [`Bench::settle`] settles.
    pub(crate) lease: u64,
    pub(crate) database: String,
    _directory: TempDir,
}

impl Bench {
    pub(crate) fn sqlite() -> Self {
        let directory = TempDir::new().unwrap();
        let section = JournalSection { path: directory.path().join("j.db"), ..JournalSection::default() };
        Self::over(section, directory, String::new())
    }

    pub(crate) fn postgres() -> Self {
        let database = new_database();
        Self::over(section_at(server().url(&database)), TempDir::new().unwrap(), database)
    }

    pub(crate) fn pooled() -> Self {
        let database = new_database();
        Self::over(section_at(pooler().url(&database)), TempDir::new().unwrap(), database)
    }

    fn over(section: JournalSection, directory: TempDir, database: String) -> Self {
        let mut bench = Self {
            section,
            engine: None,
            open_reader: None,
            now: 1_700_000_000_000,
            lease: 0,
            database,
            _directory: directory,
        };
        bench.open();
        bench.act(Action::Register { sink: SINK.to_owned() });
        bench
    }

    fn open(&mut self) {
        let opened = open(&self.section).unwrap();
        (self.engine, self.open_reader) = (Some(opened.engine), Some(opened.open_reader));
    }

    /// The journal's file.
    pub(crate) fn path(&self) -> PathBuf {
        self.section.path.clone()
    }

    /// As a daemon that stops.
    pub(crate) fn close(&mut self) {
        self.open_reader = None;
        self.engine.take().unwrap().close();
    }

    /// As a crash would: nothing is closed in order.
    pub(crate) fn restart(&mut self) {
        (self.engine, self.open_reader) = (None, None);
        self.open();
    }

    /// Another process over the same store.
    pub(crate) fn replica(&self) -> Opened {
        open(&self.section).unwrap()
    }

    pub(crate) fn engine(&mut self) -> &mut dyn Engine {
        self.engine.as_deref_mut().unwrap()
    }

    pub(crate) fn reader(&self) -> Box<dyn Reader> {
        (self.open_reader.as_ref().unwrap())().unwrap()
    }

    pub(crate) fn commit(&mut self, commit: Commit) -> Committed {
        let now = Timestamp::from_millis(self.now);
        self.engine().commit(&mut Commit { at: now, age: now, ..commit }).unwrap()
    }

    pub(crate) fn append(&mut self, appends: Vec<Append>) -> Vec<Verdict> {
        self.commit(Commit { appends, ..Commit::default() }).verdicts
    }

    /// Events that are stored together or not at all.
    pub(crate) fn append_together(&mut self, appends: Vec<Append>) -> Vec<Verdict> {
        let together = std::iter::once(0..appends.len()).collect();
        self.commit(Commit { appends, together, ..Commit::default() }).verdicts
    }

    pub(crate) fn act(&mut self, action: Action) -> ActionOutcome {
        self.commit(Commit { actions: vec![action], ..Commit::default() }).actions[0]
    }

    pub(crate) fn settle(&mut self, settlement: Settlement) {
        let settlement = Settlement { sink: SINK.to_owned(), lease: self.lease, ..settlement };
        let committed = self.commit(Commit { settlements: vec![settlement], ..Commit::default() });
        assert!(committed.refused.is_empty(), "{:?}", committed.refused);
    }

    pub(crate) fn purge(&mut self, plan: Purge) -> Purged {
        self.commit(Commit { purge: Some(plan), ..Commit::default() }).purged
    }

    pub(crate) fn state(&self, seq: Seq) -> DeliveryState {
        self.reader().found(seq).unwrap().unwrap().deliveries[SINK].state
    }
}

pub(crate) fn nothing_to_purge() -> Purge {
    let never = Timestamp::from_millis(0);
    Purge { delivered_before: never, max_bytes: u64::MAX, keys_before: never, audit_before: never, limit: 512 }
}

pub(crate) fn append(key: &str, body: &str) -> Append {
    append_from("lago/acme", key, body, Dedupe::KeyAndBody)
}

pub(crate) fn append_from(source: &str, key: &str, body: &str, dedupe: Dedupe) -> Append {
    let digest = BodyDigest::of(body.as_bytes());
    let id = EventId::derive(source, key, (dedupe == Dedupe::KeyAndBody).then_some(&digest));
    let head = EventHead {
        tenant: Some("t".to_owned()),
        json: true,
        ..EventHead::new(id, source, "lago.invoice.created", format!("invoice/{key}"), key)
    };
    Append::new(NewEvent { head, body: body.as_bytes().to_vec(), dedupe }, digest)
}

/// Usage: a key that is unique within a subscription, and content that tells whether it is the same.
pub(crate) fn usage(subscription: &str, transaction: &str, content: &str) -> Append {
    let digest = BodyDigest::of(content.as_bytes());
    let id = EventId::derive_scoped("usage", transaction, subscription, &digest);
    let scope = Some(subscription.to_owned());
    let head = EventHead { scope, ..EventHead::new(id, "usage", "usage.event", subscription, transaction) };
    Append::new(NewEvent { head, body: content.as_bytes().to_vec(), dedupe: Dedupe::Key }, digest)
}

pub(crate) fn row(seq: Seq, state: ExceptionState) -> ExceptionRow {
    ExceptionRow {
        seq,
        state,
        lane: -7,
        attempts: 1,
        first_at: Some(Timestamp::from_millis(1)),
        next_at: Some(Timestamp::from_millis(2)),
        reason: "answered 500".to_owned(),
    }
}
