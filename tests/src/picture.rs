//! Everything that a journal shows of itself, read in this process with the daemon's own code: for files that
//! were damaged, cut or left by an old version, of which there are too many to start a daemon for each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use kit::clock::SystemClock;
use kit_journal::engine::{Attempt, AuditRecord, ExceptionRow, Reader, SinkRow};
use kit_journal::{EventHead, Journal, JournalError, JournalSection, OpenError, Seq, StoredEvent};
use kit_workbench::Digest;
use kit_workbench::ledger::GATEWAY;
use kit_workbench::scratch::Scratch;
use serde::Serialize;

/// A damaged counter may name any number of events; further than this beyond what is expected nobody looks.
const BEYOND: Seq = 16;
/// Names of values that are looked for.
const VALUES: [&str; 2] = ["probe", "lago.public_key"];

/// One event as it is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// When it was received, in milliseconds since 1970.
    pub at_ms: i64,
    /// The envelope's part.
    pub head: EventHead,
    /// SHA-256 of the body.
    pub body_sha256: Digest,
}

impl Seen {
    fn of(event: &StoredEvent) -> Self {
        Self { at_ms: event.at.as_millis(), head: event.head.clone(), body_sha256: Digest::of(&event.body) }
    }
}

/// A delivery's state, and its row where it has one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct State {
    /// The state, as the API names it.
    pub state: &'static str,
    /// The row's state, attempts and reason.
    pub row: Option<(String, u32, String)>,
}

/// What a journal shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Picture {
    /// The last position it knows.
    pub accepted: u64,
    /// The events by position, as the admin API reads them.
    pub events: BTreeMap<Seq, Seen>,
    /// The same, as deliveries read them: in order, from the beginning.
    #[serde(skip)]
    pub delivered: BTreeMap<Seq, Seen>,
    /// Positions of events that are not found by their id: their keys are not known any more.
    pub unknown: Vec<Seq>,
    /// Each event's state at the gateway.
    pub states: BTreeMap<Seq, State>,
    /// The rows of the sinks.
    pub sinks: Vec<SinkRow>,
    /// The log of attempts, by position.
    pub attempts: BTreeMap<Seq, Vec<Attempt>>,
    /// The audit trail, newest first.
    pub audit: Vec<AuditRecord>,
    /// Remembered values by name, as SHA-256.
    pub values: BTreeMap<String, Digest>,
    /// What was said instead: records that do not match their checksum, are missing, or cannot be read.
    #[serde(skip)]
    pub complaints: Vec<String>,
}

/// Opens journals, one after the other.
#[derive(Debug)]
pub struct Viewer {
    runtime: tokio::runtime::Runtime,
}

impl Viewer {
    /// A viewer of its own. Not inside a runtime: it blocks.
    ///
    /// # Errors
    /// The machine has no room for another thread.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Ok(Self { runtime: runtime.context("start a runtime")? })
    }

    /// Opens the file as a daemon would and reads all of it, looking for `expected` events.
    ///
    /// # Errors
    /// The journal refuses the file.
    pub fn look(&self, path: &Path, expected: u64) -> Result<Picture, OpenError> {
        self.with_journal(path, |journal| {
            let read = journal.read(move |reader| Ok(picture(reader, expected)));
            self.runtime
                .block_on(read)
                .unwrap_or_else(|error| Picture { complaints: vec![kit::error::chain(&error)], ..Picture::default() })
        })
    }

    /// Opens the file and hands the journal over; closes it afterwards.
    ///
    /// # Errors
    /// The journal refuses the file.
    pub fn with_journal<T>(&self, path: &Path, work: impl FnOnce(&Journal) -> T) -> Result<T, OpenError> {
        let section = JournalSection { path: path.to_owned(), ..JournalSection::default() };
        let mut registry = prometheus_client::registry::Registry::default();
        let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut registry)?;
        let result = work(&journal);
        drop(journal);
        task.close();
        Ok(result)
    }

    /// Waits for something that a journal does.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

fn picture(reader: &mut dyn Reader, expected: u64) -> Picture {
    let mut picture = Picture::default();
    let mut complaints = Vec::new();
    match reader.statistics() {
        Ok(statistics) => (picture.accepted, picture.sinks) = (statistics.accepted, statistics.sinks),
        Err(error) => complaints.push(format!("statistics: {}", kit::error::chain(&error))),
    }
    let expected = Seq::try_from(expected).unwrap_or(Seq::MAX);
    let last = Seq::try_from(picture.accepted).unwrap_or(Seq::MAX).max(expected).min(expected.saturating_add(BEYOND));
    for seq in 1..=last {
        match reader.found(seq) {
            Ok(Some(found)) => {
                picture.events.insert(seq, Seen::of(&found.event));
                match reader.find(found.event.head.id) {
                    Ok(Some(known)) if known == seq => {}
                    Ok(_) => picture.unknown.push(seq),
                    Err(error) => complaints.push(format!("key of {seq}: {}", kit::error::chain(&error))),
                }
                if let Some(delivery) = found.deliveries.get(GATEWAY) {
                    let row = delivery.row.as_ref().map(row_of);
                    picture.states.insert(seq, State { state: delivery.state.as_str(), row });
                }
            }
            Ok(None) if u64::try_from(seq).is_ok_and(|seq| seq <= picture.accepted) => {
                complaints.push(format!("record {seq} is missing"))
            }
            Ok(None) => {}
            Err(error) => complaints.push(format!("{seq}: {}", kit::error::chain(&error))),
        }
        match reader.attempts(seq) {
            Ok(attempts) if attempts.is_empty() => {}
            Ok(attempts) => {
                let attempts = attempts.into_iter().map(|(_, attempt)| attempt).collect();
                picture.attempts.insert(seq, attempts);
            }
            Err(error) => complaints.push(format!("attempts of {seq}: {}", kit::error::chain(&error))),
        }
    }
    // The first sink begins with the first event, also where it was made known later.
    if picture.sinks.iter().any(|sink| sink.name == GATEWAY) {
        deliver(reader, last, &mut picture, &mut complaints);
    }
    match reader.audit(None, 1_000) {
        Ok(audit) => picture.audit = audit.into_iter().map(|(_, record)| record).collect(),
        Err(error) => complaints.push(format!("audit: {}", kit::error::chain(&error))),
    }
    for name in VALUES {
        match reader.value(name) {
            Ok(value) => picture.values.extend(value.map(|value| (name.to_owned(), Digest::of(&value)))),
            Err(error) => complaints.push(format!("value {name}: {}", kit::error::chain(&error))),
        }
    }
    picture.complaints = complaints;
    picture
}

/// Reads as the delivery engine does: on and on after the last position, past what is damaged.
fn deliver(reader: &mut dyn Reader, last: Seq, picture: &mut Picture, complaints: &mut Vec<String>) {
    let mut after = 0;
    while after < last {
        match reader.events_after(GATEWAY, after, 512, u64::MAX) {
            Ok((events, own)) => {
                let end = events.last().map(|event| event.seq).max(own.last().copied());
                // Nothing more, or nothing that brings us on.
                let Some(end) = end.filter(|end| *end > after) else { return };
                picture.delivered.extend(events.iter().map(|event| (event.seq, Seen::of(event))));
                after = end;
            }
            Err(JournalError::Damaged { seq, what }) if seq > after => {
                complaints.push(format!("delivery of {seq}: {what}"));
                after = seq;
            }
            Err(error) => {
                complaints.push(format!("deliveries after {after}: {}", kit::error::chain(&error)));
                return;
            }
        }
    }
}

fn row_of(row: &ExceptionRow) -> (String, u32, String) {
    (format!("{:?}", row.state).to_lowercase(), row.attempts, row.reason.clone())
}

/// A folder in memory where the machine has one, so that syncs cost nothing. It goes with its value.
#[derive(Debug)]
pub struct MemoryFolder {
    path: std::path::PathBuf,
    _scratch: Option<Scratch>,
}

impl MemoryFolder {
    /// Makes an empty one.
    ///
    /// # Errors
    /// No folder can be made.
    pub fn new() -> Result<Self> {
        let path = Path::new("/dev/shm").join(format!("outrigger-{}", uuid::Uuid::new_v4()));
        if std::fs::create_dir(&path).is_ok() {
            return Ok(Self { path, _scratch: None });
        }
        let scratch = Scratch::new("outrigger-memory")?;
        Ok(Self { path: scratch.path().to_owned(), _scratch: Some(scratch) })
    }

    /// The path of `name` inside it.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.path.join(name)
    }

    /// Makes these its only files.
    ///
    /// # Errors
    /// A file cannot be removed or written.
    pub fn put<'a>(&self, files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            std::fs::remove_file(entry?.path())?;
        }
        for (name, content) in files {
            std::fs::write(self.file(name), content)?;
        }
        Ok(())
    }
}

impl Drop for MemoryFolder {
    fn drop(&mut self) {
        // With a scratch folder there is nothing left to remove.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
