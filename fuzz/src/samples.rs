//! Events and a journal with a little of everything in it.

use std::path::Path;

use kit::clock::Timestamp;
use kit_journal::engine::{
    Action, Append, Attempt, AuditRecord, Commit, DedupeBounds, Engine, ExceptionRow, ExceptionState, Settlement, open,
};
use kit_journal::{BodyDigest, Dedupe, EventHead, EventId, NewEvent, Seq};
use serde_json::json;

/// The sink of every journal here.
pub(crate) const SINK: &str = "gateway";
/// When the samples were received.
pub(crate) const THEN: Timestamp = Timestamp::from_millis(1_795_233_600_000);
/// So few that a handful of keys moves to disk.
pub(crate) const SMALL: DedupeBounds = DedupeBounds { recent_keys: 6, run_keys: 4, filter_bytes: 128 };
/// Events of the journal that [`fill`] makes.
pub(crate) const EVENTS: Seq = 12;

/// The head of an event that its key and its body identify.
pub(crate) fn head(source: &str, key: &str, body: &[u8]) -> EventHead {
    let id = EventId::derive(source, key, Some(&BodyDigest::of(body)));
    EventHead {
        tenant: Some("tenant-1".to_owned()),
        json: true,
        ..EventHead::new(id, source, "lago.invoice.created", format!("invoice/{key}"), key)
    }
}

pub(crate) fn append(source: &str, key: &str, body: &[u8]) -> Append {
    append_as(Dedupe::KeyAndBody, source, key, body)
}

pub(crate) fn append_as(dedupe: Dedupe, source: &str, key: &str, body: &[u8]) -> Append {
    let digest = BodyDigest::of(body);
    let id = EventId::derive(source, key, (dedupe == Dedupe::KeyAndBody).then_some(&digest));
    let head = EventHead { id, ..head(source, key, body) };
    Append::new(NewEvent { head, body: body.to_vec(), dedupe }, digest)
}

/// The body of the sample at this position: some of them larger than a page.
pub(crate) fn body(seq: Seq) -> Vec<u8> {
    let length = if seq % 5 == 0 { 20_000 } else { 40 };
    format!("{{\"seq\":{seq},\"filler\":\"{}\"}}", "x".repeat(length)).into_bytes()
}

pub(crate) fn row(seq: Seq, state: ExceptionState) -> ExceptionRow {
    ExceptionRow {
        seq,
        state,
        lane: 7,
        attempts: 1,
        first_at: Some(THEN),
        next_at: Some(THEN.plus_millis(5_000)),
        reason: "answered 500".to_owned(),
    }
}

/// Opens the store and makes its sink known.
pub(crate) fn fresh(path: &Path) -> Box<dyn Engine> {
    let mut engine = open(path, SMALL).expect("a new store can be made");
    let actions = vec![Action::Register { sink: SINK.to_owned() }];
    engine.commit(&mut Commit { at: THEN, actions, ..Commit::default() }).expect("the sink is registered");
    engine
}

/// Twelve events: delivered, parked, retrying, dropped, pending; keys in memory and on disk; attempts,
/// an audit record and a value.
pub(crate) fn fill(engine: &mut dyn Engine) {
    let mut commit = |commit: Commit| drop(engine.commit(&mut Commit { at: THEN, ..commit }).expect("it is committed"));
    for seq in 1..=EVENTS {
        let appends = vec![append("lago/acme", &format!("key-{seq}"), &body(seq))];
        commit(Commit { appends, ..Commit::default() });
    }
    let attempt = Attempt {
        seq: 2,
        at: THEN,
        ms: 12,
        status: Some(500),
        outcome: "busy".to_owned(),
        error: Some("answered 500".to_owned()),
        response: None,
    };
    let settlement = Settlement {
        sink: SINK.to_owned(),
        cursor: 8,
        set: vec![row(2, ExceptionState::Retrying), row(3, ExceptionState::Parked), row(6, ExceptionState::Waiting)],
        attempts: vec![attempt],
        ..Settlement::default()
    };
    let audit = AuditRecord {
        at: THEN,
        actor: "127.0.0.1".to_owned(),
        action: "deliveries.drop".to_owned(),
        detail: json!({"request": {}, "result": {}}),
    };
    commit(Commit {
        settlements: vec![settlement],
        values: vec![("name".to_owned(), vec![1, 2, 3])],
        ..Commit::default()
    });
    let actions = vec![
        Action::Drop { sink: SINK.to_owned(), seqs: vec![10], reason: "a test".to_owned() },
        Action::Replay { sink: SINK.to_owned(), seqs: vec![1], from: THEN, spacing_ms: 0.0 },
        Action::Audit(audit),
    ];
    commit(Commit { actions, ..Commit::default() });
}
