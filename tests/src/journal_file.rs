//! Reads a journal file after its daemon has ended: the second account, beside the metrics.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kit::clock::{Clock as _, SystemClock};
use kit_journal::engine::{self, Commit, DedupeBounds, Statistics};
use kit_journal::{EventId, Journal, JournalSection, Seq};
use kit_workbench::ledger::Counters;

/// What a journal holds.
#[derive(Debug)]
pub struct Contents {
    /// Totals and the row of every sink.
    pub statistics: Statistics,
    /// The ids of all stored events, and of those that were delivered, removed after their retention, and are still
    /// known.
    pub event_ids: Vec<String>,
}

/// Opens the file as a daemon would, so that recovery is part of what is looked at, and reads it.
///
/// # Errors
/// The file is in use, damaged, or not a journal.
pub async fn read(path: &Path) -> Result<Contents> {
    let section = JournalSection { path: path.to_owned(), ..JournalSection::default() };
    let open =
        move || Journal::open(&section, Arc::new(SystemClock), &mut prometheus_client::registry::Registry::default());
    let (journal, task) = tokio::task::spawn_blocking(open).await?.context("open the journal")?;
    let read = journal.read(|reader| {
        let statistics = reader.statistics()?;
        let last = i64::try_from(statistics.accepted).unwrap_or(i64::MAX);
        let (mut event_ids, mut removed) = (Vec::new(), HashSet::new());
        for position in 1..=last {
            match reader.event(position)? {
                Some(event) => event_ids.push(event.head.id.to_string()),
                None => drop(removed.insert(position)),
            }
        }
        Ok((Contents { statistics, event_ids }, removed))
    });
    let read = read.await.context("read the journal");
    drop(journal);
    tokio::task::spawn_blocking(|| task.close()).await?;
    let (mut contents, removed) = read?;
    if !removed.is_empty() {
        contents.event_ids.extend(known(path, &removed)?);
    }
    Ok(contents)
}

/// The ids of events that are no longer stored, from the deduplication keys (docs/adr/0008).
fn known(path: &Path, removed: &HashSet<Seq>) -> Result<Vec<String>> {
    const KEY: usize = 16;
    let store = rusqlite::Connection::open(path)?;
    let mut ids = Vec::new();
    let mut take = |position: Seq, id: &[u8]| -> Result<()> {
        if removed.contains(&position) {
            ids.push(EventId::from_bytes(id.try_into()?).to_string());
        }
        Ok(())
    };
    let mut rows = store.prepare("SELECT first_seq, entries FROM keys")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let first: Seq = row.get(0)?;
        for (position, entry) in (first..).zip(row.get_ref(1)?.as_blob()?.chunks_exact(2 * KEY)) {
            take(position, &entry[KEY..])?;
        }
    }
    let mut blocks = store.prepare("SELECT entries FROM key_blocks")?;
    let mut blocks = blocks.query([])?;
    while let Some(row) = blocks.next()? {
        for entry in row.get_ref(0)?.as_blob()?.chunks_exact(2 * KEY + 8) {
            take(Seq::from_le_bytes(entry[2 * KEY..].try_into()?), &entry[KEY..2 * KEY])?;
        }
    }
    Ok(ids)
}

/// Makes a journal that no daemon holds remember a value.
///
/// # Errors
/// It cannot be opened or written.
pub async fn remember(path: &Path, name: &'static str, value: &'static [u8]) -> Result<()> {
    let path = path.to_owned();
    let write = move || -> Result<()> {
        let mut engine = engine::open(&path, DedupeBounds::default())?;
        let values = vec![(name.to_owned(), value.to_vec())];
        engine.commit(&mut Commit { at: SystemClock.now(), values, ..Commit::default() })?;
        engine.close();
        Ok(())
    };
    tokio::task::spawn_blocking(write).await?
}

/// What SQLite itself says about the file, read from a copy: recovery is left to the daemon. A journal that
/// is not there yet is sound.
///
/// # Errors
/// The file is damaged.
pub fn check_store(path: &Path, workspace: &Path) -> Result<()> {
    let copy = workspace.join("copied.db");
    for suffix in ["", "-wal"] {
        let (from, to) = (suffixed(path, suffix), suffixed(&copy, suffix));
        match std::fs::copy(&from, &to) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match std::fs::remove_file(&to) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            },
            Err(error) => return Err(error).with_context(|| format!("copy {}", from.display())),
        }
    }
    if !copy.exists() {
        return Ok(());
    }
    let said: String = rusqlite::Connection::open(&copy)?
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .context("look through the store")?;
    ensure!(said == "ok", "the store is damaged: {said}");
    Ok(())
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Contents {
    /// The counters of a sink, as the ledger compares them.
    ///
    /// # Errors
    /// The journal does not know the sink.
    pub fn counters(&self, sink: &str, point: &str) -> Result<Counters> {
        let row = self.statistics.sinks.iter().find(|row| row.name == sink);
        let row = row.with_context(|| format!("the journal has no sink {sink}"))?;
        let last = i64::try_from(self.statistics.accepted)?;
        Ok(Counters {
            point: point.to_owned(),
            origin: "file".to_owned(),
            sink: sink.to_owned(),
            accepted: row.accepted(last),
            delivered: row.delivered,
            // Tried or not: the metrics do not tell them apart.
            pending: row.pending(last),
            retrying: 0,
            parked: row.parked,
            dropped: row.dropped,
            filtered: row.filtered,
        })
    }
}
