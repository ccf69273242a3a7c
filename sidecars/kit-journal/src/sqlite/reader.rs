//! The engine's reading side: read-only connections beside the one writer.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use kit::clock::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::dedupe::{ENTRY, parse_block};
use super::records::{self, COLUMNS};
use super::settle::row_state;
use super::{saving, schema};
use crate::engine::{
    Attempt, AuditRecord, ExceptionRow, ExceptionState, Found, FoundDelivery, Page, Reader, SinkRow, Statistics,
};
use crate::error::JournalError;
use crate::event::{EventId, Seq, StoredEvent};
use crate::filter::{DeliveryState, EventFilter};
use crate::packed::{self, state_code, state_of};

/// One read-only connection.
pub(crate) struct SqliteReader {
    conn: Connection,
    /// Events passed by because of a damaged page, since the last that was not.
    damaged_pages: Cell<u32>,
}

/// So many events in a row are passed by because of damaged pages.
const PASSED_BY: u32 = 1_000;

impl SqliteReader {
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        // Looking at an empty file alone makes SQLite remove the log beside it.
        schema::check_log(path).map_err(|error| JournalError::Unavailable(error.to_string()))?;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(std::time::Duration::from_secs(2))?;
        conn.execute_batch("PRAGMA cache_size = -2048; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF;")?;
        Ok(Self { conn, damaged_pages: Cell::new(0) })
    }

    /// As [`Self::open`], with every file open that reading takes: SQLite opens the write-ahead log when
    /// it is first read.
    pub(crate) fn ready(path: &Path) -> Result<Self, JournalError> {
        let reader = Self::open(path)?;
        reader.conn.query_row("SELECT count(*) FROM sinks", [], |_| Ok(()))?;
        Ok(reader)
    }

    fn sink_id(&self, name: &str) -> Result<i64, JournalError> {
        self.conn
            .prepare_cached("SELECT id FROM sinks WHERE name = ?")?
            .query_row([name], |row| row.get(0))
            .optional()?
            .ok_or_else(|| JournalError::UnknownSink(name.to_owned()))
    }

    fn sinks(&self) -> Result<Vec<(i64, SinkRow)>, JournalError> {
        let mut query = self.conn.prepare_cached(
            "SELECT id, name, start, cursor, delivered, open, parked, dropped, filtered, ahead, paused
             FROM sinks ORDER BY id",
        )?;
        let rows = query.query_map([], |row| {
            let count = |n: usize| row.get::<_, i64>(n).map(|n| u64::try_from(n).unwrap_or(0));
            let sink = SinkRow {
                name: row.get(1)?,
                start: row.get(2)?,
                cursor: row.get(3)?,
                delivered: count(4)?,
                open: count(5)?,
                parked: count(6)?,
                dropped: count(7)?,
                filtered: count(8)?,
                ahead: count(9)?,
                paused: row.get(10)?,
            };
            Ok((row.get(0)?, sink))
        })?;
        rows.collect::<Result<_, _>>().map_err(Into::into)
    }

    fn exception(&self, sink: i64, seq: Seq) -> Result<Option<ExceptionRow>, JournalError> {
        let mut query =
            self.conn.prepare_cached(&format!("SELECT {ROW} FROM exceptions WHERE sink = ? AND seq = ?"))?;
        query.query_row(params![sink, seq], |row| Ok(exception_row(row))).optional()?.transpose()
    }

    fn describe(&self, event: StoredEvent, sinks: &[(i64, SinkRow)]) -> Result<Found, JournalError> {
        let mut deliveries = BTreeMap::new();
        for (id, sink) in sinks {
            if event.seq <= sink.start {
                continue;
            }
            let row = self.exception(*id, event.seq)?;
            let state = DeliveryState::of(row.as_ref().map(|row| row.state), event.seq <= sink.cursor);
            deliveries.insert(sink.name.clone(), FoundDelivery { state, row });
        }
        Ok(Found { body_bytes: event.body.len() as u64, event, deliveries })
    }

    /// Positions to look at, newest first, at most `examine`, and whether there are more below.
    fn candidates(
        &self,
        filter: &EventFilter,
        sinks: &[(i64, SinkRow)],
        before: Seq,
        examine: u64,
    ) -> Result<Vec<Seq>, JournalError> {
        let limit = i64::try_from(examine).unwrap_or(i64::MAX);
        if !filter.ids.is_empty() {
            let mut seqs = Vec::new();
            for id in &filter.ids {
                seqs.extend(self.position(*id)?.filter(|seq| *seq < before));
            }
            seqs.sort_unstable_by(|a, b| b.cmp(a));
            return Ok(seqs);
        }
        let Some(states) = filter.state.and_then(DeliveryState::rows) else {
            let mut query =
                self.conn.prepare_cached("SELECT seq FROM events WHERE seq < ? ORDER BY seq DESC LIMIT ?")?;
            let rows = query.query_map(params![before, limit], |row| row.get(0))?;
            return rows.collect::<Result<_, _>>().map_err(Into::into);
        };
        let mut seqs: Vec<Seq> = Vec::new();
        for (id, sink) in sinks {
            if filter.sink.as_ref().is_some_and(|name| *name != sink.name) {
                continue;
            }
            for state in states {
                let mut query = self.conn.prepare_cached(
                    "SELECT seq FROM exceptions WHERE sink = ? AND state = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
                )?;
                let rows = query.query_map(params![id, state_code(*state), before, limit], |row| row.get(0))?;
                seqs.extend(rows.collect::<Result<Vec<Seq>, _>>()?);
            }
        }
        seqs.sort_unstable_by(|a, b| b.cmp(a));
        seqs.dedup();
        seqs.truncate(usize::try_from(examine).unwrap_or(usize::MAX));
        Ok(seqs)
    }

    /// Whether events of a damaged page may be passed by one after the other. A disk that does not read may read
    /// again; and where a page of the tree itself is damaged that would be the whole backlog.
    fn pages_are_few(&self, error: &JournalError) -> bool {
        self.damaged_pages.update(|count| count + 1);
        error.is_corrupt() && self.damaged_pages.get() <= PASSED_BY
    }

    fn position(&self, id: EventId) -> Result<Option<Seq>, JournalError> {
        if let Some(seq) = saving::position(&self.conn, id)? {
            return Ok(Some(seq));
        }
        let mut query = self.conn.prepare_cached("SELECT first_seq, entries FROM keys ORDER BY first_seq DESC")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let first: Seq = row.get(0)?;
            let entries = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            if let Some(nth) = entries.chunks_exact(ENTRY).position(|entry| &entry[16..] == id.as_bytes()) {
                return Ok(Some(first + Seq::try_from(nth).unwrap_or(0)));
            }
        }
        let mut query = self.conn.prepare_cached("SELECT entries FROM key_blocks")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let entries = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
            if let Some((_, _, seq)) = parse_block(entries).find(|(_, known, _)| *known == id) {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }
}

const ROW: &str = "seq, state, lane, attempts, first_at, next_at, reason";

fn exception_row(row: &Row<'_>) -> Result<ExceptionRow, JournalError> {
    let seq: Seq = row.get(0)?;
    let state = state_of(row.get(1)?).ok_or(JournalError::Damaged { seq, what: "delivery state is unknown" })?;
    Ok(ExceptionRow {
        seq,
        state,
        lane: row.get(2)?,
        attempts: row.get(3)?,
        first_at: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_millis),
        next_at: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
        reason: row.get(6)?,
    })
}

impl Reader for SqliteReader {
    fn events_after(
        &mut self,
        sink: &str,
        after: Seq,
        limit: u32,
        max_bytes: u64,
    ) -> Result<(Vec<StoredEvent>, Vec<Seq>), JournalError> {
        let sink = self.sink_id(sink)?;
        let (mut events, mut own) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        // One transaction, so that rows and events are of the same moment.
        let snapshot = self.conn.unchecked_transaction()?;
        {
            let mut query = self
                .conn
                .prepare_cached(&format!("SELECT {COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?"))?;
            let mut rows = query.query(params![after, limit])?;
            loop {
                let row = match rows.next() {
                    Ok(Some(row)) => row,
                    Ok(None) => break,
                    Err(error) => {
                        let error = JournalError::from(error);
                        let first = events.is_empty() && own.is_empty();
                        if !error.is_damage() || (first && !self.pages_are_few(&error)) {
                            return Err(error);
                        }
                        // What comes before is good; of what comes after nobody can tell where it begins.
                        if first {
                            let (seq, what) = (after + 1, "the journal's page that holds it is damaged");
                            if row_state(&self.conn, sink, seq)?.is_none() {
                                return Err(JournalError::Damaged { seq, what });
                            }
                            own.push(seq);
                        }
                        break;
                    }
                };
                self.damaged_pages.set(0);
                let seq: Seq = row.get(0)?;
                if row_state(&self.conn, sink, seq)?.is_some() {
                    own.push(seq);
                    continue;
                }
                match records::read(row) {
                    Ok(event) => {
                        bytes += event.body.len() as u64;
                        events.push(event);
                    }
                    Err(JournalError::Damaged { .. }) if !events.is_empty() || !own.is_empty() => break,
                    Err(error) => return Err(error),
                }
                if bytes >= max_bytes {
                    break;
                }
            }
        }
        snapshot.finish()?;
        Ok((events, own))
    }

    fn event(&mut self, seq: Seq) -> Result<Option<StoredEvent>, JournalError> {
        let mut query = self.conn.prepare_cached(&format!("SELECT {COLUMNS} FROM events WHERE seq = ?"))?;
        let mut rows = query.query([seq])?;
        rows.next()?.map(records::read).transpose()
    }

    fn find(&mut self, id: EventId) -> Result<Option<Seq>, JournalError> {
        self.position(id)
    }

    fn blocked(&mut self, sink: &str, limit: u32) -> Result<Vec<ExceptionRow>, JournalError> {
        let sink = self.sink_id(sink)?;
        let mut query = self.conn.prepare_cached(&format!(
            "SELECT {ROW} FROM exceptions WHERE sink = ? AND state IN (1, 2) ORDER BY seq LIMIT ?"
        ))?;
        let rows = query.query_map(params![sink, limit], |row| Ok(exception_row(row)))?;
        rows.collect::<Result<Vec<_>, _>>()?.into_iter().collect()
    }

    fn rows_between(&mut self, sink: &str, after: Seq, to: Seq) -> Result<Vec<Seq>, JournalError> {
        let sink = self.sink_id(sink)?;
        let mut query =
            self.conn.prepare_cached("SELECT seq FROM exceptions WHERE sink = ? AND seq > ? AND seq <= ?")?;
        let rows = query.query_map(params![sink, after, to], |row| row.get(0))?;
        rows.collect::<Result<_, _>>().map_err(Into::into)
    }

    fn not_in_state(&mut self, sink: &str, seqs: &[Seq], state: ExceptionState) -> Result<Vec<Seq>, JournalError> {
        let sink = self.sink_id(sink)?;
        let mut others = Vec::new();
        for seq in seqs {
            if row_state(&self.conn, sink, *seq)? != Some(state) {
                others.push(*seq);
            }
        }
        Ok(others)
    }

    fn replays(
        &mut self,
        sink: &str,
        now: Timestamp,
        limit: u32,
    ) -> Result<(Vec<ExceptionRow>, Option<Timestamp>), JournalError> {
        let sink = self.sink_id(sink)?;
        let mut query = self.conn.prepare_cached(&format!(
            "SELECT {ROW} FROM exceptions WHERE sink = ? AND state = 3 AND next_at <= ? ORDER BY next_at LIMIT ?"
        ))?;
        let due = query
            .query_map(params![sink, now.as_millis(), limit], |row| Ok(exception_row(row)))?
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let next: Option<i64> = self
            .conn
            .prepare_cached("SELECT min(next_at) FROM exceptions WHERE sink = ? AND state = 3 AND next_at > ?")?
            .query_row(params![sink, now.as_millis()], |row| row.get(0))?;
        Ok((due, next.map(Timestamp::from_millis)))
    }

    fn sink(&mut self, name: &str) -> Result<SinkRow, JournalError> {
        self.sinks()?
            .into_iter()
            .map(|(_, sink)| sink)
            .find(|sink| sink.name == name)
            .ok_or_else(|| JournalError::UnknownSink(name.to_owned()))
    }

    fn search(
        &mut self,
        filter: &EventFilter,
        before: Option<Seq>,
        limit: u32,
        examine: u64,
    ) -> Result<Page, JournalError> {
        let snapshot = self.conn.unchecked_transaction()?;
        let sinks = self.sinks()?;
        let candidates = self.candidates(filter, &sinks, before.unwrap_or(Seq::MAX), examine)?;
        let mut page = Page { found: Vec::new(), next: None, examined: 0 };
        let by_id = !filter.ids.is_empty();
        for (at, seq) in candidates.iter().enumerate() {
            page.examined += 1;
            let mut query = self.conn.prepare_cached(&format!("SELECT {COLUMNS} FROM events WHERE seq = ?"))?;
            let mut rows = query.query([seq])?;
            let event = match rows.next()?.map(records::read).transpose() {
                Ok(Some(event)) => event,
                // Purged meanwhile, or damaged: never shown, reported by the delivery that meets it.
                Ok(None) | Err(JournalError::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            if !filter.matches(event.at, &event.head) {
                continue;
            }
            let mut found = self.describe(event, &sinks)?;
            // A page of the largest bodies would take gigabytes; whoever wants one asks for that event.
            found.event.body = bytes::Bytes::new();
            let wanted = found.deliveries.iter().any(|(name, delivery)| {
                filter.sink.as_ref().is_none_or(|sink| sink == name)
                    && filter.state.is_none_or(|state| state == delivery.state)
            });
            if wanted || (filter.state.is_none() && filter.sink.is_none()) {
                page.found.push(found);
            }
            if page.found.len() >= limit as usize {
                page.next =
                    (at + 1 < candidates.len() || (!by_id && candidates.len() as u64 == examine)).then_some(*seq);
                snapshot.finish()?;
                return Ok(page);
            }
        }
        if !by_id && candidates.len() as u64 == examine {
            page.next = candidates.last().copied();
        }
        snapshot.finish()?;
        Ok(page)
    }

    fn found(&mut self, seq: Seq) -> Result<Option<Found>, JournalError> {
        let Some(event) = self.event(seq)? else { return Ok(None) };
        let sinks = self.sinks()?;
        self.describe(event, &sinks).map(Some)
    }

    fn attempts(&mut self, seq: Seq) -> Result<Vec<(String, Attempt)>, JournalError> {
        let mut query = self.conn.prepare_cached(
            "SELECT sinks.name, attempts.entries FROM attempts JOIN sinks ON sinks.id = attempts.sink
             WHERE min_seq <= ?1 AND max_seq >= ?1 ORDER BY attempts.id",
        )?;
        let mut rows = query.query([seq])?;
        let mut attempts = Vec::new();
        while let Some(row) = rows.next()? {
            let sink: String = row.get(0)?;
            let entries = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
            let own = packed::attempts_of(seq, entries)?;
            attempts.extend(own.into_iter().map(|attempt| (sink.clone(), attempt)));
        }
        Ok(attempts)
    }

    fn audit(&mut self, before: Option<i64>, limit: u32) -> Result<Vec<(i64, AuditRecord)>, JournalError> {
        let mut query = self
            .conn
            .prepare_cached("SELECT id, at, actor, action, detail FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?")?;
        let rows = query.query_map(params![before.unwrap_or(i64::MAX), limit], |row| {
            let detail: String = row.get(4)?;
            let record = AuditRecord {
                at: Timestamp::from_millis(row.get(1)?),
                actor: row.get(2)?,
                action: row.get(3)?,
                detail: serde_json::from_str(&detail).unwrap_or(serde_json::Value::String(detail)),
            };
            Ok((row.get(0)?, record))
        })?;
        rows.collect::<Result<_, _>>().map_err(Into::into)
    }

    fn value(&mut self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.conn
            .prepare_cached("SELECT value FROM meta WHERE name = ?")?
            .query_row([name], |row| row.get(0))
            .optional()
            .map_err(Into::into)
    }

    fn values(&mut self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let sql = "SELECT name, value FROM meta WHERE name >= ?1 AND substr(name, 1, length(?1)) = ?1 ORDER BY name";
        let mut statement = self.conn.prepare(sql)?;
        let rows = statement.query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<_, _>>().map_err(Into::into)
    }

    fn statistics(&mut self) -> Result<Statistics, JournalError> {
        let snapshot = self.conn.unchecked_transaction()?;
        let sinks = self.sinks()?.into_iter().map(|(_, sink)| sink).collect();
        let oldest: Option<(Seq, i64)> = self
            .conn
            .prepare_cached("SELECT seq, at FROM events ORDER BY seq LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let accepted = super::last_seq(&self.conn)?;
        let used_bytes = super::used_bytes(&self.conn)?;
        snapshot.finish()?;
        Ok(Statistics {
            accepted: u64::try_from(accepted).unwrap_or(0),
            used_bytes,
            oldest_seq: oldest.map(|(seq, _)| seq),
            oldest_at: oldest.map(|(_, at)| Timestamp::from_millis(at)),
            sinks,
        })
    }

    fn oldest_pending(&mut self, sink: &str) -> Result<Option<Timestamp>, JournalError> {
        let id = self.sink_id(sink)?;
        let oldest: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT min(at) FROM (
                    SELECT at FROM (SELECT at FROM events WHERE seq > (SELECT cursor FROM sinks WHERE id = ?1)
                        AND NOT EXISTS (SELECT 1 FROM exceptions WHERE sink = ?1 AND exceptions.seq = events.seq)
                        ORDER BY seq LIMIT 1)
                    UNION ALL
                    SELECT at FROM events WHERE seq IN (
                        SELECT seq FROM exceptions WHERE sink = ?1 AND state = 1 ORDER BY seq LIMIT 1)
                    UNION ALL
                    SELECT at FROM events WHERE seq IN (
                        SELECT seq FROM exceptions WHERE sink = ?1 AND state = 2 ORDER BY seq LIMIT 1))",
            )?
            .query_row([id], |row| row.get(0))?;
        Ok(oldest.map(Timestamp::from_millis))
    }
}
