//! Reads a journal file after its daemon has ended: the second account, beside the metrics.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use kit::clock::SystemClock;
use kit_journal::engine::Statistics;
use kit_journal::{Journal, JournalSection};
use kit_workbench::ledger::Counters;

/// What a journal holds.
#[derive(Debug)]
pub struct Contents {
    /// Totals and the row of every sink.
    pub statistics: Statistics,
    /// The ids of all stored events.
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
        let mut event_ids = Vec::new();
        for position in 1..=last {
            event_ids.extend(reader.event(position)?.map(|event| event.head.id.to_string()));
        }
        Ok(Contents { statistics, event_ids })
    });
    let contents = read.await.context("read the journal");
    drop(journal);
    tokio::task::spawn_blocking(|| task.close()).await?;
    contents
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
