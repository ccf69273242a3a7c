//! The engine's promises, checked on the file.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod dedupe;
mod files;

use kit::clock::Timestamp;
use tempfile::TempDir;

use super::dedupe::DedupeBounds;
use super::*;
use crate::engine::{Action, Commit, ExceptionRow, ExceptionState, Purge, Reader, Settlement};
use crate::event::{BodyDigest, Dedupe, EventHead, EventId, NewEvent};
use crate::filter::EventFilter;

const SINK: &str = "gateway";

struct Bench {
    directory: TempDir,
    engine: Option<SqliteEngine>,
    bounds: DedupeBounds,
    now: i64,
}

impl Bench {
    fn new() -> Self {
        Self::bounded(DedupeBounds::default())
    }

    fn bounded(bounds: DedupeBounds) -> Self {
        let directory = TempDir::new().unwrap();
        let engine = SqliteEngine::open_bounded(&directory.path().join("j.db"), bounds).unwrap();
        let mut bench = Self { directory, engine: Some(engine), bounds, now: 1_700_000_000_000 };
        bench.act(Action::Register { sink: SINK.to_owned() });
        bench
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("j.db")
    }

    fn engine(&mut self) -> &mut SqliteEngine {
        self.engine.as_mut().unwrap()
    }

    fn restart(&mut self) {
        drop(self.engine.take());
        self.engine = Some(SqliteEngine::open_bounded(&self.path(), self.bounds).unwrap());
    }

    fn commit(&mut self, commit: Commit) -> Committed {
        let now = Timestamp::from_millis(self.now);
        let mut commit = Commit { at: now, age: now, ..commit };
        self.engine().commit(&mut commit).unwrap()
    }

    fn idle(&mut self) {
        let now = Timestamp::from_millis(self.now);
        self.engine().idle(now).unwrap();
    }

    fn append(&mut self, appends: Vec<Append>) -> Vec<Verdict> {
        self.commit(Commit { appends, ..Commit::default() }).verdicts
    }

    fn act(&mut self, action: Action) -> crate::engine::ActionOutcome {
        self.commit(Commit { actions: vec![action], ..Commit::default() }).actions[0]
    }

    fn settle(&mut self, settlement: Settlement) {
        self.commit(Commit {
            settlements: vec![Settlement { sink: SINK.to_owned(), ..settlement }],
            ..Commit::default()
        });
    }

    fn purge(&mut self, plan: Purge) -> crate::engine::Purged {
        self.commit(Commit { purge: Some(plan), ..Commit::default() }).purged
    }

    /// A step of purging with nothing to purge, before which rows are written for all keys.
    fn save_keys(&mut self) {
        self.purge(nothing_to_purge());
    }

    /// How many rows of keys there are, and how many keys are in them.
    fn rows_of_keys(&self) -> (i64, i64) {
        let rows = "SELECT count(*), ifnull(sum(length(entries)), 0) / 32 FROM keys";
        self.engine.as_ref().unwrap().conn.query_row(rows, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }

    fn reader(&self) -> SqliteReader {
        SqliteReader::open(&self.path()).unwrap()
    }
}

fn nothing_to_purge() -> Purge {
    let never = Timestamp::from_millis(0);
    Purge { delivered_before: never, max_bytes: u64::MAX, keys_before: never, audit_before: never, limit: 512 }
}

fn append(key: &str, body: &str) -> Append {
    append_from("lago/acme", key, body, Dedupe::KeyAndBody)
}

fn append_from(source: &str, key: &str, body: &str, dedupe: Dedupe) -> Append {
    let digest = BodyDigest::of(body.as_bytes());
    let id = EventId::derive(source, key, (dedupe == Dedupe::KeyAndBody).then_some(&digest));
    let head = EventHead {
        tenant: Some("t".to_owned()),
        json: true,
        ..EventHead::new(id, source, "lago.invoice.created", format!("invoice/{key}"), key)
    };
    Append::new(NewEvent { head, body: body.as_bytes().to_vec(), dedupe }, digest)
}

fn row(seq: Seq, state: ExceptionState) -> ExceptionRow {
    ExceptionRow {
        seq,
        state,
        lane: 7,
        attempts: 1,
        first_at: Some(Timestamp::from_millis(1)),
        next_at: Some(Timestamp::from_millis(2)),
        reason: "answered 500".to_owned(),
    }
}
