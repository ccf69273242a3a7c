//! One event as a row, and the checksum that stands between a damaged disk and a delivery; small values.

use kit::clock::Timestamp;
use rusqlite::{Connection, Row, params};

use crate::engine::Append;
use crate::error::JournalError;
use crate::event::{BodyDigest, EventHead, Seq, StoredEvent};
use crate::packed::checksum;

/// The columns that [`read`] expects, in order.
pub(super) const COLUMNS: &str = "events.seq, events.at, events.head, events.sum, events.body";

pub(super) fn insert(conn: &Connection, seq: Seq, at: Timestamp, append: &Append) -> Result<(), JournalError> {
    let sum = checksum(seq, at, append.json.as_bytes(), &append.digest);
    conn.prepare_cached("INSERT INTO events (seq, at, head, sum, body) VALUES (?, ?, ?, ?, ?)")?.execute(params![
        seq,
        at.as_millis(),
        append.json,
        sum.as_slice(),
        append.body
    ])?;
    Ok(())
}

/// Remembers a small value; an empty one is forgotten.
pub(super) fn put_value(conn: &Connection, name: &str, value: &[u8]) -> Result<(), JournalError> {
    if value.is_empty() {
        conn.prepare_cached("DELETE FROM meta WHERE name = ?")?.execute([name])?;
        return Ok(());
    }
    conn.prepare_cached(
        "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
    )?
    .execute(params![name, value])?;
    Ok(())
}

/// Reads a row of [`COLUMNS`]; never returns bytes that are not the ones that were stored.
pub(super) fn read(row: &Row<'_>) -> Result<StoredEvent, JournalError> {
    let seq: Seq = row.get(0)?;
    let damaged = |what| JournalError::Damaged { seq, what };
    let at = Timestamp::from_millis(row.get(1).map_err(|_| damaged("receipt time is not a number"))?);
    let head = row.get_ref(2)?.as_str().map_err(|_| damaged("head is not text"))?;
    let sum = row.get_ref(3)?.as_blob().map_err(|_| damaged("checksum is missing"))?;
    let body = row.get_ref(4)?.as_blob().map_err(|_| damaged("body is missing"))?;
    if checksum(seq, at, head.as_bytes(), &BodyDigest::of(body)).as_slice() != sum {
        return Err(damaged("checksum differs"));
    }
    let head: EventHead = serde_json::from_str(head).map_err(|_| damaged("head is not understood"))?;
    Ok(StoredEvent { seq, at, head, body: bytes::Bytes::copy_from_slice(body) })
}
