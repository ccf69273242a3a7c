//! Keys of committed events that have no row in `keys` yet.
//!
//! A row for every commit would put a page of its own into every commit. The events tell their keys
//! themselves, so that rows are written for some hundred keys at once – or before a step of purging, which may
//! remove events – and what has no row yet is read from the events when the journal is opened.

use std::borrow::Cow;

use kit::clock::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;

use super::dedupe::ENTRY;
use crate::error::JournalError;
use crate::event::{EventId, KeyHash, Seq};

/// Keys in a row at most: with its header they fit a page.
pub(super) const ROW_KEYS: usize = 480;
/// Name of the value that says up to which position keys have rows, or had until they were forgotten.
pub(super) const THROUGH: &str = "keys.through";

/// A key, the event that has it, and its position.
pub(super) type Key = (KeyHash, EventId, Seq);

/// What a key is made of, in an event's head.
#[derive(Deserialize)]
struct HeadKey<'a> {
    id: EventId,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default)]
    scope: Option<Cow<'a, str>>,
}

/// The keys without a row, in order of position.
#[derive(Default)]
pub(super) struct Unsaved {
    keys: Vec<Key>,
    /// The commit being built writes rows for all of them, and for what it appends.
    saving: bool,
}

impl Unsaved {
    /// Reads them from their events, one after the other: the key of an event that is damaged is not known,
    /// and those around it are.
    pub(super) fn load(conn: &Connection) -> Result<Self, JournalError> {
        // Two questions, each of one end: asked as one, everything between would be read.
        let end = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, Seq>(0)).map_err(JournalError::from);
        let first = match end("SELECT ifnull((SELECT min(seq) FROM events), 1)") {
            // Nothing is lost by looking further down for the first that can be read.
            Err(error) if error.is_damage() => 1,
            first => first?,
        };
        let last = end("SELECT ifnull((SELECT max(seq) FROM events), 0)")?;
        let mut event = conn.prepare("SELECT head FROM events WHERE seq = ?")?;
        let mut keys = Vec::new();
        for seq in first.max(through(conn)? + 1)..=last {
            let key = event.query_row([seq], |row| {
                let head = row.get_ref(0)?.as_str()?;
                let read = serde_json::from_str::<HeadKey<'_>>(head).ok();
                Ok(read.map(|HeadKey { id, source, key, scope }| {
                    (KeyHash::within(&source, &key, scope.as_deref()), id, seq)
                }))
            });
            match key.optional().map_err(JournalError::from) {
                Ok(key) => keys.extend(key.flatten()),
                Err(error) if error.is_damage() => {}
                // The head is no text.
                Err(JournalError::Store(rusqlite::Error::FromSqlConversionFailure(..))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { keys, saving: false })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Whether there are, with `staged` more, enough for a row.
    pub(super) fn fill_a_row(&self, staged: usize) -> bool {
        self.keys.len() + staged >= ROW_KEYS
    }

    /// The key at a position, if it has no row yet.
    pub(super) fn at(&self, seq: Seq) -> Option<(KeyHash, EventId)> {
        let found = self.keys.binary_search_by_key(&seq, |(_, _, seq)| *seq).ok()?;
        self.keys.get(found).map(|(key, id, _)| (*key, *id))
    }

    /// Writes rows for all of them and for `staged`. Inside the caller's transaction, after which
    /// [`Unsaved::committed`] or [`Unsaved::discarded`] says what became of it.
    pub(super) fn save(&mut self, conn: &Connection, staged: &[Key], at: Timestamp) -> Result<(), JournalError> {
        let all: Vec<&Key> = self.keys.iter().chain(staged).collect();
        let Some((_, _, last)) = all.last() else { return Ok(()) };
        for stretch in all.chunk_by(|a, b| a.2 + 1 == b.2) {
            for row in stretch.chunks(ROW_KEYS) {
                let mut entries = Vec::with_capacity(row.len() * ENTRY);
                for (key, id, _) in row {
                    entries.extend_from_slice(&key.0);
                    entries.extend_from_slice(id.as_bytes());
                }
                conn.prepare_cached("INSERT INTO keys (first_seq, at, entries) VALUES (?, ?, ?)")?.execute(params![
                    row.first().map(|(_, _, seq)| seq),
                    at.as_millis(),
                    entries
                ])?;
            }
        }
        conn.prepare_cached("UPDATE meta SET value = ? WHERE name = ?")?.execute(params![last, THROUGH])?;
        self.saving = true;
        Ok(())
    }

    /// The commit has gone through, with the keys that were `staged`.
    pub(super) fn committed(&mut self, staged: &[Key]) {
        if std::mem::take(&mut self.saving) {
            self.keys.clear();
        } else {
            self.keys.extend_from_slice(staged);
        }
    }

    /// The commit has not gone through.
    pub(super) fn discarded(&mut self) {
        self.saving = false;
    }
}

/// Up to which position keys have, or had, rows.
fn through(conn: &Connection) -> Result<Seq, JournalError> {
    Ok(conn.prepare_cached("SELECT value FROM meta WHERE name = ?")?.query_row([THROUGH], |row| row.get(0))?)
}

/// Where the event with this id is, if its key has no row yet.
pub(super) fn position(conn: &Connection, wanted: EventId) -> Result<Option<Seq>, JournalError> {
    #[derive(Deserialize)]
    struct Id {
        id: EventId,
    }
    // Newest first: whoever asks for an event has usually just seen it.
    let mut events = conn.prepare_cached(
        "SELECT seq, head FROM events WHERE seq > (SELECT value FROM meta WHERE name = ?) ORDER BY seq DESC",
    )?;
    let mut events = events.query([THROUGH])?;
    while let Some(row) = events.next()? {
        let head = row.get_ref(1)?.as_str().ok().and_then(|head| serde_json::from_str::<Id>(head).ok());
        if head.is_some_and(|head| head.id == wanted) {
            return Ok(Some(row.get(0)?));
        }
    }
    Ok(None)
}

/// Refuses a journal whose rows end elsewhere than it says.
pub(super) fn check(conn: &Connection, last_seq: Seq) -> Result<(), JournalError> {
    let through = through(conn)?;
    let end = "SELECT first_seq - 1 + length(entries) / ? FROM keys ORDER BY first_seq DESC LIMIT 1";
    let end: Option<Seq> = conn.prepare(end)?.query_map([ENTRY as i64], |row| row.get(0))?.next().transpose()?;
    let runs: Option<Seq> = conn.query_row("SELECT max(last_seq) FROM key_runs", [], |row| row.get(0))?;
    if through < 0
        || through > last_seq
        || end.is_some_and(|end| end != through)
        || runs.is_some_and(|runs| runs > through)
    {
        return Err(JournalError::Inconsistent("the deduplication keys do not end where they should".to_owned()));
    }
    Ok(())
}
