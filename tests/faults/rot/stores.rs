//! One small journal, as it was closed and as a kill left it.

use anyhow::{Context, Result, ensure};
use kit::clock::{Clock as _, SystemClock, Timestamp};
use kit_journal::engine::{Action, Attempt, AuditRecord, ExceptionRow, ExceptionState, Settlement};
use kit_journal::{BodyDigest, Dedupe, EventHead, EventId, Journal, NewEvent, Seq};
use kit_workbench::Digest;
use kit_workbench::ledger::GATEWAY;
use outrigger_tests::picture::{MemoryFolder, Picture, Viewer};

use super::{DATABASE, EVENTS, IN_MAIN, LOG, PAGE, SETTLING};

/// The files of one journal.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) database: Vec<u8>,
    pub(super) log: Vec<u8>,
}

/// One small journal, as it was closed and as a kill left it, and what it shows.
pub(super) struct Stores {
    pub(super) closed: Files,
    pub(super) killed: Files,
    pub(super) picture: Picture,
    /// What it showed after each of the commits that are in the log.
    pub(super) history: Vec<Picture>,
}

impl Stores {
    pub(super) fn make() -> Result<Self> {
        Self::made_with("rot", PAGE)
    }

    pub(super) fn made_with(name: &str, page_size: usize) -> Result<Self> {
        let (viewer, folder) = (Viewer::new()?, MemoryFolder::new()?);
        let path = folder.file(DATABASE);
        // An empty file of ours keeps the size that its pages have.
        rusqlite::Connection::open(&path)?
            .execute_batch(&format!("PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL;"))?;
        // What is in the main file at the kill is not in the log any more.
        viewer.with_journal(&path, |journal| viewer.wait(fill(journal, name, 1..=IN_MAIN)))??;
        let mut moments = vec![Files::read(&folder)?];
        viewer.with_journal(&path, |journal| {
            for number in IN_MAIN + 1..=EVENTS {
                viewer.wait(fill(journal, name, number..=number))?;
                moments.push(Files::read(&folder)?);
            }
            for step in 0..SETTLING {
                viewer.wait(settle(journal, step))?;
                moments.push(Files::read(&folder)?);
            }
            Ok::<_, anyhow::Error>(())
        })??;
        let closed = Files::read(&folder)?;
        let killed = moments.last().context("there are moments")?.clone();
        ensure!(closed.log.is_empty() && !killed.log.is_empty(), "the log is not where it should be");
        let picture = viewer.look(&path, EVENTS)?;
        ensure!(picture.complaints.is_empty(), "{:?}", picture.complaints);
        ensure!(
            picture.events.len() as u64 == EVENTS && picture.delivered.len() as u64 == EVENTS - 4,
            "{:?}",
            picture.states
        );
        let mut history = Vec::new();
        for moment in &moments {
            moment.put(&folder)?;
            history.push(viewer.look(&path, EVENTS)?);
        }
        ensure!(history.last() == Some(&picture), "a journal shows something else after a kill");
        Ok(Self { closed, killed, picture, history })
    }

    pub(super) fn bodies(&self) -> impl Iterator<Item = Digest> {
        self.picture.events.values().map(|seen| seen.body_sha256)
    }

    /// A body that the gateway has not got yet.
    pub(super) fn undelivered_body(&self) -> Result<String> {
        let body = body_of("rot", EVENTS - 1);
        ensure!(self.bodies().any(|digest| digest == Digest::of(body.as_bytes())), "no such body");
        Ok(body)
    }
}

impl Files {
    /// Makes these the folder's only files.
    pub(super) fn put(&self, folder: &MemoryFolder) -> Result<()> {
        let log = Some((LOG, self.log.as_slice())).filter(|(_, log)| !log.is_empty());
        folder.put(std::iter::once((DATABASE, self.database.as_slice())).chain(log))
    }

    pub(super) fn read(folder: &MemoryFolder) -> Result<Self> {
        let log = std::fs::read(folder.file(LOG)).unwrap_or_default();
        Ok(Self { database: std::fs::read(folder.file(DATABASE))?, log })
    }
}

fn body_of(name: &str, number: u64) -> String {
    // One is larger than a page of the store.
    let size = if number == 3 { 20_000 } else { 200 + usize::try_from(number).unwrap_or(0) * 37 };
    format!(r#"{{"journal":"{name}","number":{number},"text":"{}"}}"#, "amount ".repeat(size / 7))
}

async fn fill(journal: &Journal, name: &str, numbers: std::ops::RangeInclusive<u64>) -> Result<()> {
    journal.act(vec![Action::Register { sink: GATEWAY.to_owned() }]).await?;
    for number in numbers {
        let body = body_of(name, number);
        let (source, key) = ("lago/default", format!("{name}-{number}"));
        let digest = BodyDigest::of(body.as_bytes());
        let id = EventId::derive(source, &key, Some(&digest));
        let head = EventHead {
            tenant: Some("tenant".to_owned()),
            json: true,
            headers: vec![("content-type".into(), "application/json".to_owned())],
            ..EventHead::new(id, source, "lago.invoice.created", format!("invoice/{number}"), key)
        };
        journal.append(NewEvent { head, body: body.into_bytes(), dedupe: Dedupe::KeyAndBody }).await?;
    }
    Ok(())
}

/// Some are delivered, one is a dead letter, one dropped, one being retried, the last three are pending.
async fn settle(journal: &Journal, step: u32) -> Result<()> {
    let cursor = Seq::try_from(EVENTS)? - 3;
    let now = SystemClock.now();
    let row = |seq, state, next_at| ExceptionRow {
        seq,
        state,
        lane: 7,
        attempts: 3,
        first_at: Some(now),
        next_at,
        reason: "answered 500".to_owned(),
    };
    let later = Timestamp::from_millis(4_000_000_000_000);
    let attempt = Attempt {
        seq: 2,
        at: now,
        ms: 4,
        status: Some(500),
        outcome: "server_error".to_owned(),
        error: Some("answered 500".to_owned()),
        response: None,
    };
    let settlement = Settlement {
        sink: GATEWAY.to_owned(),
        cursor,
        set: vec![row(2, ExceptionState::Parked, None), row(4, ExceptionState::Retrying, Some(later))],
        attempts: vec![attempt],
        ..Settlement::default()
    };
    let drop = Action::Drop { sink: GATEWAY.to_owned(), seqs: vec![2], reason: "not wanted".to_owned() };
    let replay = Action::Replay { sink: GATEWAY.to_owned(), seqs: vec![5], from: later, spacing_ms: 0.0 };
    let detail = serde_json::json!({"ids": 1});
    let (at, actor) = (now, "127.0.0.1".to_owned());
    let audit = Action::Audit(AuditRecord { at, actor, action: "deliveries.drop".to_owned(), detail });
    // Again, so that there is one dead letter.
    let parked = Settlement {
        sink: GATEWAY.to_owned(),
        cursor,
        set: vec![row(8, ExceptionState::Parked, None)],
        ..Settlement::default()
    };
    match step {
        0 => journal.settle(vec![settlement]).await?,
        1 => {
            journal.act(vec![drop, replay, audit]).await?;
        }
        2 => journal.settle(vec![parked]).await?,
        _ => journal.put_value("lago.public_key", b"a key that is remembered".to_vec()).await?,
    }
    Ok(())
}
