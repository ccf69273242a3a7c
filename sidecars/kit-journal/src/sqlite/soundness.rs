//! What must be true of a journal that nobody has damaged, looked at once when it is opened.
//!
//! A record carries a checksum; a cursor, a counter and the row of a dead letter do not. A flipped bit
//! in one of them would make an event disappear without a word. They are kept twice, though – counters
//! beside rows, rows beside their indexes – and one fault does not change both alike.

use rusqlite::{Connection, params};

use super::saving;
use crate::error::JournalError;
use crate::event::Seq;

/// Above so many rows they are not compared with their indexes, which takes a second for a million: a
/// start must not wait for it. Counters are compared always.
const ROWS_COMPARED: i64 = 200_000;

/// Refuses a journal whose accounts do not agree. Looks at no event's body.
pub(super) fn check(conn: &Connection, last_seq: Seq) -> Result<(), JournalError> {
    let rows: i64 = conn.query_row("SELECT count(*) FROM exceptions", [], |row| row.get(0))?;
    let tables: &[&str] = if rows <= ROWS_COMPARED { &["sinks", "exceptions"] } else { &["sinks"] };
    for table in tables {
        let said: String = conn.query_row(&format!("PRAGMA integrity_check({table})"), [], |row| row.get(0))?;
        if said != "ok" {
            return Err(JournalError::Inconsistent(format!("table {table}: {said}")));
        }
    }
    let mut sinks = conn
        .prepare("SELECT id, name, start, cursor, delivered + open + parked + dropped + filtered - ahead FROM sinks")?;
    let mut sinks = sinks.query([])?;
    let mut settled = Seq::MAX;
    while let Some(row) = sinks.next()? {
        let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let (start, cursor, counted): (Seq, Seq, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
        let wrong = |what: &str| Err(JournalError::Inconsistent(format!("sink {name}: {what}")));
        if start < 0 || cursor < start || cursor > last_seq || cursor - start != counted {
            return wrong("its cursor and its counters do not agree");
        }
        for (counter, states) in [("open", "1, 2, 3"), ("parked", "4")] {
            let agree: bool = conn.query_row(
                &format!(
                    "SELECT {counter} = (SELECT count(*) FROM exceptions WHERE sink = ?1 AND state IN ({states}))
                     FROM sinks WHERE id = ?1"
                ),
                params![id],
                |row| row.get(0),
            )?;
            if !agree {
                return wrong("its counters and its rows do not agree");
            }
        }
        settled = settled.min(cursor);
    }
    saving::check(conn, last_seq)?;
    // What a sink has still to deliver is never purged.
    let last_event: Option<Seq> = conn.query_row("SELECT max(seq) FROM events", [], |row| row.get(0))?;
    if settled < last_seq && last_event != Some(last_seq) {
        return Err(JournalError::Inconsistent(format!("event {last_seq}, its last one, is not there")));
    }
    // A page that leads to the wrong one hides the last events from whoever asks which is the last, and not from whoever
    // asks what comes after that one.
    let hidden = "SELECT EXISTS (SELECT 1 FROM events WHERE seq > ?)";
    if conn.query_row(hidden, [last_event.unwrap_or(0)], |row| row.get(0))? {
        return Err(JournalError::Inconsistent("events lie behind the last one".to_owned()));
    }
    Ok(())
}
