//! The engine's reading side: one connection, made anew when it is lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kit::clock::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::address::Address;
use super::books::{ROW, exception_row};
use super::link::{Link, Param, Saying, Speaker, param, together};
use super::no_head;
use crate::engine::{
    Attempt, AuditRecord, ExceptionRow, ExceptionState, Found, FoundDelivery, Page, Reader, SinkRow, Statistics,
};
use crate::error::JournalError;
use crate::event::{BodyDigest, EventHead, EventId, Seq, StoredEvent};
use crate::filter::{DeliveryState, EventFilter};
use crate::packed::{self, checksum, state_code};

/// Records of a search that are read at a time.
const SEARCHED: usize = 200;

/// Longer than that no question of a person may keep the database busy: some of them are walks through a whole table.
const BROWSED_WITHIN: Duration = Duration::from_secs(10);

/// Longer than that no look-up of a delivery may keep the database busy. It is the database that ends it, before nobody
/// waits for the answer any more: a session whose client has gone would go on with it, and another one come beside it.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// One reading connection.
pub(crate) struct PostgresReader {
    link: Link,
    sinks: HashMap<String, i32>,
    patience: Duration,
    /// How far the journal is known to have come.
    expected: Seq,
}

impl PostgresReader {
    /// A reader that connects when it is first asked.
    pub(crate) fn new(address: Arc<Address>) -> Result<Self, JournalError> {
        Ok(Self { link: Link::new(address)?, sinks: HashMap::new(), patience: BROWSED_WITHIN, expected: 0 })
    }

    fn sink_id(&mut self, name: &str) -> Result<i32, JournalError> {
        if let Some(id) = self.sinks.get(name) {
            return Ok(*id);
        }
        let row = self.look_up_one("SELECT id FROM @sinks WHERE name = $1", &[param(name, Type::TEXT)])?;
        let id = row.map(|row| row.get(0)).ok_or_else(|| JournalError::UnknownSink(name.to_owned()))?;
        // Given once and never changed, also where a sink is forgotten and comes back; there are a handful.
        self.sinks.insert(name.to_owned(), id);
        Ok(id)
    }

    /// One question of a delivery, which goes by an index; what limits it is said in the same message.
    fn look_up(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, JournalError> {
        let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", READ_WITHIN.as_millis());
        let found = self.link.again(async |speaker| {
            let said: Vec<Saying<'_, Vec<Row>>> = vec![
                Box::pin(async { speaker.batch(&begin).await.map(|()| Vec::new()) }),
                Box::pin(speaker.query(sql, params)),
                // After an error before it the database takes this for a ROLLBACK.
                Box::pin(async { speaker.batch("COMMIT").await.map(|()| Vec::new()) }),
            ];
            together(said).await
        });
        match found {
            Err(error) if error.is_stopped_statement() => Err(JournalError::NoAnswer),
            found => Ok(found?.into_iter().nth(1).unwrap_or_default()),
        }
    }

    /// As [`Self::look_up`], where there is one row at most.
    fn look_up_one(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, JournalError> {
        Ok(self.look_up(sql, params)?.into_iter().next())
    }

    /// What was read is of the journal as it is known, with its last position read by the same statement: a proxy may send
    /// what only reads to another server (pgpool-II, PgCat), where what was committed is not yet.
    fn is_up_to_date(&mut self, last_seq: Seq) -> Result<(), JournalError> {
        if last_seq >= self.expected {
            return Ok(());
        }
        // The next one may go to the right place.
        self.link.let_go();
        Err(JournalError::Behind { last_seq, known: self.expected })
    }

    /// Several questions about one moment, of which none takes long: for what people look for.
    fn browse<T>(&mut self, look: impl AsyncFn(&Speaker<'_>) -> Result<T, JournalError>) -> Result<T, JournalError> {
        let limit = self.patience.as_millis();
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 10000; \
             SET LOCAL statement_timeout = {limit}"
        );
        let found = self.link.again(async |speaker| {
            let looked = async {
                speaker.batch(&begin).await?;
                look(speaker).await
            };
            let looked = looked.await;
            let ended = speaker.batch("ROLLBACK").await;
            let looked = looked?;
            ended.map(|()| looked)
        });
        match found {
            Err(error) if error.is_stopped_statement() => {
                Err(JournalError::TooLong { seconds: self.patience.as_secs() })
            }
            found => found,
        }
    }
}

const SINKS: &str =
    "SELECT id, name, start, cursor, delivered, open, parked, dropped, filtered, ahead, paused FROM @sinks ORDER BY id";

async fn sinks(speaker: &Speaker<'_>) -> Result<Vec<(i32, SinkRow)>, JournalError> {
    speaker.query(SINKS, &[]).await.map(|rows| sink_rows(&rows))
}

/// Rows of [`SINKS`].
fn sink_rows(rows: &[Row]) -> Vec<(i32, SinkRow)> {
    let sink = |row: &Row| {
        let count = |n: usize| u64::try_from(row.get::<_, i64>(n)).unwrap_or(0);
        let sink = SinkRow {
            name: row.get(1),
            start: row.get(2),
            cursor: row.get(3),
            delivered: count(4),
            open: count(5),
            parked: count(6),
            dropped: count(7),
            filtered: count(8),
            ahead: count(9),
            paused: row.get(10),
        };
        (row.get(0), sink)
    };
    rows.iter().map(sink).collect()
}

/// An event from its columns, the body among them; never bytes that are not the ones that were stored.
fn stored(row: &Row) -> Result<StoredEvent, JournalError> {
    let body: &[u8] = row.get(4);
    let event = head_of(row, &BodyDigest::of(body))?;
    Ok(StoredEvent { body: bytes::Bytes::copy_from_slice(body), ..event })
}

/// An event without its body, of which `digest` is the digest.
fn head_of(row: &Row, digest: &BodyDigest) -> Result<StoredEvent, JournalError> {
    let seq: Seq = row.get(0);
    let damaged = |what| JournalError::Damaged { seq, what };
    let at = Timestamp::from_millis(row.get(1));
    let (head, sum): (&str, &[u8]) = (row.get(2), row.get(3));
    if checksum(seq, at, head.as_bytes(), digest).as_slice() != sum {
        return Err(damaged("checksum differs"));
    }
    let head: EventHead = serde_json::from_str(head).map_err(|_| damaged("head is not understood"))?;
    Ok(StoredEvent { seq, at, head, body: bytes::Bytes::new() })
}

fn describe(
    event: StoredEvent,
    body_bytes: u64,
    sinks: &[(i32, SinkRow)],
    rows: &HashMap<(i32, Seq), ExceptionRow>,
) -> Found {
    let mut deliveries = BTreeMap::new();
    for (id, sink) in sinks.iter().filter(|(_, sink)| event.seq > sink.start) {
        let row = rows.get(&(*id, event.seq)).cloned();
        let state = DeliveryState::of(row.as_ref().map(|row| row.state), event.seq <= sink.cursor);
        deliveries.insert(sink.name.clone(), FoundDelivery { state, row });
    }
    Found { body_bytes, event, deliveries }
}

/// Rows of these positions by sink.
async fn rows_of(speaker: &Speaker<'_>, seqs: &[Seq]) -> Result<HashMap<(i32, Seq), ExceptionRow>, JournalError> {
    let sql = format!("SELECT sink, {ROW} FROM @exceptions WHERE sink IN (SELECT id FROM @sinks) AND seq = ANY($1)");
    let rows = speaker.query(&sql, &[param(seqs, Type::INT8_ARRAY)]).await?;
    rows.iter().map(|row| Ok(((row.get(0), row.get(1)), exception_row(row, 1)?))).collect()
}

/// Positions to look at, newest first, at most `examine`.
async fn candidates(
    speaker: &Speaker<'_>,
    filter: &EventFilter,
    sinks: &[(i32, SinkRow)],
    before: Seq,
    examine: u64,
) -> Result<Vec<Seq>, JournalError> {
    let limit = i64::try_from(examine).unwrap_or(i64::MAX);
    let first = |rows: Vec<Row>| rows.iter().map(|row| row.get(0)).collect::<Vec<Seq>>();
    let bounds = || [param(before, Type::INT8), param(limit, Type::INT8)];
    if !filter.ids.is_empty() {
        let ids: Vec<Uuid> = filter.ids.iter().map(|id| Uuid::from_bytes(*id.as_bytes())).collect();
        let sql = "SELECT seq FROM @keys WHERE id = ANY($1) AND seq < $2 ORDER BY seq DESC";
        return speaker.query(sql, &[param(ids, Type::UUID_ARRAY), param(before, Type::INT8)]).await.map(first);
    }
    let Some(states) = filter.state.and_then(DeliveryState::rows) else {
        let sql = "SELECT seq FROM @events WHERE seq < $1 ORDER BY seq DESC LIMIT $2";
        return speaker.query(sql, &bounds()).await.map(first);
    };
    let mut seqs: Vec<Seq> = Vec::new();
    for (id, _) in sinks.iter().filter(|(_, sink)| filter.sink.as_ref().is_none_or(|name| *name == sink.name)) {
        for state in states {
            let code = state_code(*state);
            let sql = format!(
                "SELECT seq FROM @exceptions WHERE sink = {id} AND state = {code} AND seq < $1 ORDER BY seq DESC LIMIT $2"
            );
            seqs.extend(speaker.query(&sql, &bounds()).await.map(first)?);
        }
    }
    seqs.sort_unstable_by(|a, b| b.cmp(a));
    seqs.dedup();
    seqs.truncate(usize::try_from(examine).unwrap_or(usize::MAX));
    Ok(seqs)
}

async fn search(
    speaker: &Speaker<'_>,
    filter: &EventFilter,
    before: Option<Seq>,
    limit: u32,
    examine: u64,
) -> Result<Page, JournalError> {
    let sinks = sinks(speaker).await?;
    let candidates = candidates(speaker, filter, &sinks, before.unwrap_or(Seq::MAX), examine).await?;
    let mut page = Page { found: Vec::new(), next: None, examined: 0 };
    let by_id = !filter.ids.is_empty();
    let cut_off = !by_id && candidates.len() as u64 == examine;
    for (nth, some) in candidates.chunks(SEARCHED).enumerate() {
        // The body's digest is enough for the checksum: bodies are not shown, and stay where they are.
        let sql = "SELECT seq, at, head, sum, sha256(body), octet_length(body) FROM @events WHERE seq = ANY($1)";
        let events = speaker.query(sql, &[param(some, Type::INT8_ARRAY)]).await?;
        let events: HashMap<Seq, &Row> = events.iter().map(|row| (row.get(0), row)).collect();
        let rows = rows_of(speaker, some).await?;
        for (at, seq) in some.iter().enumerate() {
            page.examined += 1;
            // Purged meanwhile, or damaged: never shown, reported by the delivery that meets it.
            let Some(row) = events.get(seq) else { continue };
            let Ok(digest) = <[u8; 32]>::try_from(row.get::<_, &[u8]>(4)) else { continue };
            let Ok(event) = head_of(row, &BodyDigest(digest)) else { continue };
            if !filter.matches(event.at, &event.head) {
                continue;
            }
            let body_bytes = u64::try_from(row.get::<_, i32>(5)).unwrap_or(0);
            let found = describe(event, body_bytes, &sinks, &rows);
            let wanted = found.deliveries.iter().any(|(name, delivery)| {
                filter.sink.as_ref().is_none_or(|sink| sink == name)
                    && filter.state.is_none_or(|state| state == delivery.state)
            });
            if wanted || (filter.state.is_none() && filter.sink.is_none()) {
                page.found.push(found);
            }
            if page.found.len() >= limit as usize {
                let more = nth * SEARCHED + at + 1 < candidates.len() || cut_off;
                page.next = more.then_some(*seq);
                return Ok(page);
            }
        }
    }
    if cut_off {
        page.next = candidates.last().copied();
    }
    Ok(page)
}

impl Reader for PostgresReader {
    fn expects(&mut self, last_seq: Seq) {
        self.expected = last_seq;
    }

    fn events_after(
        &mut self,
        sink: &str,
        after: Seq,
        limit: u32,
        max_bytes: u64,
    ) -> Result<(Vec<StoredEvent>, Vec<Seq>), JournalError> {
        let sink = self.sink_id(sink)?;
        let bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        // Events and rows are of one moment. What comes after so many bytes of bodies is not sent.
        let rows = self.look_up(
            "SELECT l.seq, l.at, l.head, l.sum, CASE WHEN l.own THEN ''::bytea ELSE l.body END, l.own, h.last_seq
                     FROM @head h LEFT JOIN (SELECT * FROM (
                        SELECT e.*, x.seq IS NOT NULL AS own, sum(CASE WHEN x.seq IS NULL THEN octet_length(e.body) END)
                            OVER (ORDER BY e.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                        FROM (SELECT * FROM @events WHERE seq > $2 ORDER BY seq LIMIT $3) e
                            LEFT JOIN @exceptions x ON x.sink = $1 AND x.seq = e.seq) t
                     WHERE coalesce(before, 0) < $4) l ON true ORDER BY l.seq",
            &[
                param(sink, Type::INT4),
                param(after, Type::INT8),
                param(i64::from(limit), Type::INT8),
                param(bytes.max(1), Type::INT8),
            ],
        )?;
        self.is_up_to_date(rows.first().ok_or_else(no_head)?.get(6))?;
        let (mut events, mut own) = (Vec::new(), Vec::new());
        // Without any there is one row, of the head alone.
        for row in rows.iter().filter(|row| row.get::<_, Option<Seq>>(0).is_some()) {
            if row.get(5) {
                own.push(row.get(0));
                continue;
            }
            match stored(row) {
                Ok(event) => events.push(event),
                // What comes before is good.
                Err(JournalError::Damaged { .. }) if !events.is_empty() || !own.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok((events, own))
    }

    fn event(&mut self, seq: Seq) -> Result<Option<StoredEvent>, JournalError> {
        let sql =
            "SELECT e.seq, e.at, e.head, e.sum, e.body, h.last_seq FROM @head h LEFT JOIN @events e ON e.seq = $1";
        let row = self.look_up_one(sql, &[param(seq, Type::INT8)])?.ok_or_else(no_head)?;
        self.is_up_to_date(row.get(5))?;
        row.get::<_, Option<Seq>>(0).map(|_| stored(&row)).transpose()
    }

    fn find(&mut self, id: EventId) -> Result<Option<Seq>, JournalError> {
        let id = Uuid::from_bytes(*id.as_bytes());
        let row = self.browse(async |speaker| {
            speaker.query_opt("SELECT max(seq) FROM @keys WHERE id = $1", &[param(id, Type::UUID)]).await
        })?;
        Ok(row.and_then(|row| row.get(0)))
    }

    fn blocked(&mut self, sink: &str, limit: u32) -> Result<Vec<ExceptionRow>, JournalError> {
        let sink = self.sink_id(sink)?;
        let sql = format!("SELECT {ROW} FROM @exceptions WHERE sink = $1 AND state IN (1, 2) ORDER BY seq LIMIT $2");
        let rows = self.look_up(&sql, &[param(sink, Type::INT4), param(i64::from(limit), Type::INT8)])?;
        rows.iter().map(|row| exception_row(row, 0)).collect()
    }

    fn rows_between(&mut self, sink: &str, after: Seq, to: Seq) -> Result<Vec<Seq>, JournalError> {
        let sink = self.sink_id(sink)?;
        let sql = "SELECT seq FROM @exceptions WHERE sink = $1 AND seq > $2 AND seq <= $3 ORDER BY seq";
        let rows = self.look_up(sql, &[param(sink, Type::INT4), param(after, Type::INT8), param(to, Type::INT8)])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn not_in_state(&mut self, sink: &str, seqs: &[Seq], state: ExceptionState) -> Result<Vec<Seq>, JournalError> {
        let sink = self.sink_id(sink)?;
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT seq FROM unnest($2::bigint[]) AS w (seq) WHERE NOT EXISTS (
                SELECT 1 FROM @exceptions e WHERE e.sink = $1 AND e.seq = w.seq AND e.state = {})",
            state_code(state)
        );
        let rows = self.look_up(&sql, &[param(sink, Type::INT4), param(seqs, Type::INT8_ARRAY)])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn replays(
        &mut self,
        sink: &str,
        now: Timestamp,
        limit: u32,
    ) -> Result<(Vec<ExceptionRow>, Option<Timestamp>), JournalError> {
        let sink = self.sink_id(sink)?;
        let sql = format!(
            "SELECT {ROW} FROM @exceptions WHERE sink = $1 AND state = 3 AND next_at <= $2 ORDER BY next_at LIMIT $3"
        );
        let own = || param(sink, Type::INT4);
        let until = || param(now.as_millis(), Type::INT8);
        let due = self.look_up(&sql, &[own(), until(), param(i64::from(limit), Type::INT8)])?;
        let sql = "SELECT min(next_at) FROM @exceptions WHERE sink = $1 AND state = 3 AND next_at > $2";
        let next = self.look_up_one(sql, &[own(), until()])?;
        let due = due.iter().map(|row| exception_row(row, 0)).collect::<Result<_, _>>()?;
        Ok((due, next.and_then(|row| row.get::<_, Option<i64>>(0)).map(Timestamp::from_millis)))
    }

    fn sink(&mut self, name: &str) -> Result<SinkRow, JournalError> {
        let all = sink_rows(&self.look_up(SINKS, &[])?);
        let named = all.into_iter().map(|(_, sink)| sink).find(|sink| sink.name == name);
        named.ok_or_else(|| JournalError::UnknownSink(name.to_owned()))
    }

    fn search(
        &mut self,
        filter: &EventFilter,
        before: Option<Seq>,
        limit: u32,
        examine: u64,
    ) -> Result<Page, JournalError> {
        self.browse(async |speaker| search(speaker, filter, before, limit, examine).await)
    }

    fn found(&mut self, seq: Seq) -> Result<Option<Found>, JournalError> {
        let Some(event) = self.event(seq)? else { return Ok(None) };
        let (sinks, rows) =
            self.browse(async |speaker| Ok((sinks(speaker).await?, rows_of(speaker, &[seq]).await?)))?;
        let bytes = event.body.len() as u64;
        Ok(Some(describe(event, bytes, &sinks, &rows)))
    }

    fn attempts(&mut self, seq: Seq) -> Result<Vec<(String, Attempt)>, JournalError> {
        let rows = self.browse(async |speaker| {
            let sql = "SELECT s.name, a.entries FROM @attempts a JOIN @sinks s ON s.id = a.sink
                 WHERE a.min_seq <= $1 AND a.max_seq >= $1 ORDER BY a.id";
            speaker.query(sql, &[param(seq, Type::INT8)]).await
        })?;
        let mut attempts = Vec::new();
        for row in &rows {
            let own = packed::attempts_of(seq, row.get(1))?;
            attempts.extend(own.into_iter().map(|attempt| (row.get(0), attempt)));
        }
        Ok(attempts)
    }

    fn audit(&mut self, before: Option<i64>, limit: u32) -> Result<Vec<(i64, AuditRecord)>, JournalError> {
        let rows = self.browse(async |speaker| {
            let sql = "SELECT id, at, actor, action, detail FROM @audit WHERE id < $1 ORDER BY id DESC LIMIT $2";
            let params = [param(before.unwrap_or(i64::MAX), Type::INT8), param(i64::from(limit), Type::INT8)];
            speaker.query(sql, &params).await
        })?;
        let record = |row: &Row| {
            let detail: String = row.get(4);
            let record = AuditRecord {
                at: Timestamp::from_millis(row.get(1)),
                actor: row.get(2),
                action: row.get(3),
                detail: serde_json::from_str(&detail).unwrap_or(serde_json::Value::String(detail)),
            };
            (row.get(0), record)
        };
        Ok(rows.iter().map(record).collect())
    }

    fn value(&mut self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        let row = self.look_up_one("SELECT value FROM @meta WHERE name = $1", &[param(name, Type::TEXT)])?;
        Ok(row.map(|row| row.get(0)))
    }

    fn values(&mut self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let rows = self.browse(async |speaker| {
            let sql = "SELECT name, value FROM @meta WHERE starts_with(name, $1) ORDER BY name COLLATE \"C\"";
            speaker.query(sql, &[param(prefix, Type::TEXT)]).await
        })?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    fn statistics(&mut self) -> Result<Statistics, JournalError> {
        let statistics = self.browse(async |speaker| {
            // The head first: what the sinks have come to later may be counted as pending, and never as lost.
            let oldest = speaker.query_opt("SELECT seq, at FROM @events ORDER BY seq LIMIT 1", &[]).await?;
            let sinks = sinks(speaker).await?.into_iter().map(|(_, sink)| sink).collect();
            let head = speaker.query_opt("SELECT last_seq, bytes FROM @head", &[]).await?;
            let count = |at: usize| head.as_ref().map_or(0, |row| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0));
            Ok(Statistics {
                accepted: count(0),
                used_bytes: count(1),
                oldest_seq: oldest.as_ref().map(|row| row.get(0)),
                oldest_at: oldest.map(|row| Timestamp::from_millis(row.get(1))),
                sinks,
            })
        })?;
        self.is_up_to_date(Seq::try_from(statistics.accepted).unwrap_or(Seq::MAX))?;
        Ok(statistics)
    }

    fn oldest_pending(&mut self, sink: &str) -> Result<Option<Timestamp>, JournalError> {
        let id = self.sink_id(sink)?;
        let sql = "SELECT min(at) FROM (
                    SELECT at FROM (SELECT at FROM @events e WHERE seq > (SELECT cursor FROM @sinks WHERE id = $1)
                        AND NOT EXISTS (SELECT 1 FROM @exceptions x WHERE x.sink = $1 AND x.seq = e.seq)
                        ORDER BY seq LIMIT 1) a
                    UNION ALL
                    SELECT at FROM @events WHERE seq IN (
                        SELECT seq FROM @exceptions WHERE sink = $1 AND state = 1 ORDER BY seq LIMIT 1)
                    UNION ALL
                    SELECT at FROM @events WHERE seq IN (
                        SELECT seq FROM @exceptions WHERE sink = $1 AND state = 2 ORDER BY seq LIMIT 1)) o";
        let row = self.look_up_one(sql, &[param(id, Type::INT4)])?;
        Ok(row.and_then(|row| row.get::<_, Option<i64>>(0)).map(Timestamp::from_millis))
    }
}
