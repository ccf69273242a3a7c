//! A journal, a gateway and a dispatcher between them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kit::clock::SystemClock;
use kit::lifecycle::StopToken;
use kit::secret::Secret;
use kit_delivery::{DeliveryMetrics, Dispatcher, DispatcherSettings, GatewaySection, HttpSink, SinkStatus};
use kit_journal::engine::{Attempt, DedupeBounds, Engine, Reader, SinkRow};
use kit_journal::{
    Dedupe, DeliveryState, EngineKind, EventHead, EventId, Journal, JournalSection, JournalTask, NewEvent, Seq,
};
use kit_workbench::gateway::{Behaviour, Gateway, GatewayOptions, Received, ReceivedHead};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const SINK: &str = "gateway";

pub(crate) struct Bench {
    directory: TempDir,
    pub(crate) gateway: Gateway,
    pub(crate) section: GatewaySection,
    pub(crate) journal: Journal,
    task: Option<JournalTask>,
    running: Option<(StopToken, tokio::task::JoinHandle<()>)>,
    status: Arc<Mutex<SinkStatus>>,
    registry: Registry,
    /// Another limit than the usual one.
    open_rows: Option<usize>,
    appended: Seq,
}

impl Bench {
    pub(crate) async fn new(behaviour: Behaviour, change: impl FnOnce(&mut GatewaySection)) -> Self {
        let directory = TempDir::new().unwrap();
        let opened = open(&directory);
        Self::on(directory, opened, None, behaviour, change).await
    }

    /// With room for so many deliveries that wait for another attempt.
    pub(crate) async fn stalling_at(
        open_rows: usize,
        behaviour: Behaviour,
        change: impl FnOnce(&mut GatewaySection),
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let opened = open(&directory);
        Self::on(directory, opened, Some(open_rows), behaviour, change).await
    }

    /// With an engine that stands between the journal and its store.
    pub(crate) async fn over(behaviour: Behaviour, wrap: impl FnOnce(Box<dyn Engine>) -> Box<dyn Engine>) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("j.db");
        let engine = wrap(kit_journal::engine::open(&path, DedupeBounds::default()).unwrap());
        let section = JournalSection { path: path.clone(), ..JournalSection::default() };
        let readers = Box::new(move || kit_journal::engine::open_reader(&path));
        let opened = Journal::over(engine, readers, &section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        Self::on(directory, opened, None, behaviour, |_| {}).await
    }

    /// With readers that stand between the journal and its store.
    pub(crate) async fn over_readers(
        behaviour: Behaviour,
        change: impl FnOnce(&mut GatewaySection),
        wrap: impl Fn(Box<dyn Reader>) -> Box<dyn Reader> + Send + Sync + 'static,
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("j.db");
        let engine = kit_journal::engine::open(&path, DedupeBounds::default()).unwrap();
        let section = JournalSection { path: path.clone(), ..JournalSection::default() };
        let readers = Box::new(move || kit_journal::engine::open_reader(&path).map(&wrap));
        let opened = Journal::over(engine, readers, &section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        Self::on(directory, opened, None, behaviour, change).await
    }

    /// As [`Bench::stalling_at`], over a journal that other replicas share.
    pub(crate) async fn shared(
        url: &str,
        open_rows: Option<usize>,
        behaviour: Behaviour,
        change: impl FnOnce(&mut GatewaySection),
    ) -> Self {
        let section = JournalSection {
            engine: EngineKind::Postgres,
            database_url: Some(Secret::from(url.to_owned())),
            ..JournalSection::default()
        };
        let open = move || Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        let opened = tokio::task::spawn_blocking(open).await.unwrap();
        Self::on(TempDir::new().unwrap(), opened, open_rows, behaviour, change).await
    }

    async fn on(
        directory: TempDir,
        (journal, task): (Journal, JournalTask),
        open_rows: Option<usize>,
        behaviour: Behaviour,
        change: impl FnOnce(&mut GatewaySection),
    ) -> Self {
        let gateway =
            Gateway::start(GatewayOptions { behaviour, keep_bodies: true, ..GatewayOptions::default() }).await.unwrap();
        let mut section = GatewaySection { url: Some(gateway.url()), ..GatewaySection::default() };
        section.retry.schedule_seconds = vec![0.05, 0.05, 0.05];
        section.circuit.probe_seconds = 0.05;
        section.circuit.probe_max_seconds = 0.2;
        // High, so that tests of single events do not meet it; those about outages lower it.
        section.circuit.failures = 1000;
        change(&mut section);
        let mut bench = Self {
            directory,
            gateway,
            section,
            journal,
            task: Some(task),
            running: None,
            status: Arc::default(),
            registry: Registry::default(),
            open_rows,
            appended: 0,
        };
        bench.start();
        let deadline = Instant::now() + DEADLINE;
        while bench.journal.read(|reader| reader.sink(SINK)).await.is_err() {
            assert!(Instant::now() < deadline, "the sink is never registered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench
    }

    pub(crate) fn start(&mut self) {
        let clock = Arc::new(SystemClock);
        let sink = HttpSink::new(SINK, &self.section, clock.clone()).unwrap();
        self.registry = Registry::default();
        let metrics = DeliveryMetrics::register(&mut self.registry);
        let mut settings = DispatcherSettings::from(&self.section);
        settings.open_rows = self.open_rows.unwrap_or(settings.open_rows);
        let dispatcher = Dispatcher::new(Arc::new(sink), self.journal.clone(), clock, settings, metrics);
        self.status = dispatcher.status();
        let stop = StopToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { dispatcher.run(token).await.unwrap() });
        self.running = Some((stop, task));
    }

    pub(crate) async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.stop();
            tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap();
        }
    }

    /// As a kill would: nothing is settled any more. The journal is closed and opened again.
    pub(crate) async fn crash(&mut self) {
        if let Some((_, task)) = self.running.take() {
            task.abort();
            let _ = task.await;
        }
        let task = self.task.take().unwrap();
        tokio::task::spawn_blocking(move || task.close()).await.unwrap();
        let (journal, task) = open(&self.directory);
        (self.journal, self.task) = (journal, Some(task));
        self.start();
    }

    pub(crate) async fn append(&mut self, subject: &str) -> Seq {
        self.append_body(subject, b"{}").await
    }

    pub(crate) async fn append_body(&mut self, subject: &str, body: &[u8]) -> Seq {
        self.appended += 1;
        let key = self.appended.to_string();
        let head = EventHead {
            json: true,
            ..EventHead::new(EventId::derive("test", &key, None), "test", "test.happened", subject, key)
        };
        let event = NewEvent { head, body: body.to_vec(), dedupe: Dedupe::Key };
        self.journal.append(event).await.unwrap().seq
    }

    pub(crate) async fn sink(&self) -> SinkRow {
        self.journal.read(|reader| reader.sink(SINK)).await.unwrap()
    }

    /// Waits until something holds.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !wanted(self) {
            assert!(Instant::now() < deadline, "{what} did not happen: {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The metrics as they are scraped.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// What the dispatcher says that it is doing.
    pub(crate) fn status(&self) -> SinkStatus {
        self.status.lock().unwrap().clone()
    }

    pub(crate) async fn state(&self, seq: Seq) -> DeliveryState {
        let found = self.journal.read(move |reader| reader.found(seq)).await.unwrap().unwrap();
        found.deliveries[SINK].state
    }

    pub(crate) async fn reason(&self, seq: Seq) -> String {
        let found = self.journal.read(move |reader| reader.found(seq)).await.unwrap().unwrap();
        found.deliveries[SINK].row.as_ref().map(|row| row.reason.clone()).unwrap_or_default()
    }

    pub(crate) async fn attempts(&self, seq: Seq) -> Vec<Attempt> {
        let attempts = self.journal.read(move |reader| reader.attempts(seq)).await.unwrap();
        attempts.into_iter().map(|(_, attempt)| attempt).collect()
    }

    /// Waits until the sink's row is as wanted, and checks that its counters close.
    pub(crate) async fn wait(&self, what: &str, wanted: impl Fn(&SinkRow) -> bool) -> SinkRow {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let row = self.sink().await;
            if wanted(&row) {
                let sum = row.delivered + row.pending(self.appended) + row.parked + row.dropped + row.filtered;
                assert_eq!(sum, row.accepted(self.appended), "{row:?}");
                return row;
            }
            assert!(Instant::now() < deadline, "{what} did not happen: {row:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn all_settled(&self) -> SinkRow {
        let appended = self.appended;
        self.wait("settling everything", |row| row.pending(appended) == 0).await
    }

    /// Positions in the order in which the gateway took them.
    pub(crate) fn taken(&self) -> Vec<Seq> {
        self.gateway.received().iter().filter(|received| received.taken).map(seq_of).collect()
    }
}

pub(crate) fn seq_of(received: &Received) -> Seq {
    let body: serde_json::Value = serde_json::from_slice(received.body.as_ref().unwrap()).unwrap();
    body["sequence"].as_str().unwrap().parse().unwrap()
}

pub(crate) fn subject_is(head: &ReceivedHead, subject: &str) -> bool {
    head.subject.as_deref() == Some(subject)
}

pub(crate) fn open(directory: &TempDir) -> (Journal, JournalTask) {
    let section = JournalSection { path: directory.path().join("j.db"), ..JournalSection::default() };
    Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap()
}
