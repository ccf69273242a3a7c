//! The store against a model of it in memory: every byte chooses what is done next.
//!
//! Promises: positions are given once and without gaps; an event is known for as long as its key is
//! remembered, and read back unchanged until it is delivered and old; every delivery is in the state
//! that was last said; the counters close; all of it after any restart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use kit::clock::Timestamp;
use kit_journal::engine::{
    Action, Commit, Committed, Engine, ExceptionRow, ExceptionState, Purge, Reader, Settlement, Verdict, open,
    open_reader,
};
use kit_journal::{BodyDigest, Dedupe, DeliveryState, EventId, Seq};

use crate::samples::{SINK, SMALL, THEN, append_as, fresh, head, row};
use crate::scratch::Scratch;

/// Steps of one input.
const STEPS: usize = 60;
const HOUR: i64 = 3_600_000;

/// An empty store, so that not every input makes the tables anew.
static EMPTY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = Scratch::new();
    fresh(&folder.path("j.db")).close();
    std::fs::read(folder.path("j.db")).expect("the store has its file")
});

/// Does what the bytes say to a store and to the model.
///
/// # Panics
/// They differ.
pub fn target(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut bench = Bench::new();
    for _ in 0..STEPS {
        let Some(step) = bytes.next() else { break };
        bench.step(step, &mut || bytes.next().unwrap_or(0));
        bench.compare_counters();
    }
    bench.compare();
    bench.restart(true);
    bench.compare();
}

struct Known {
    source: usize,
    key: u8,
    id: EventId,
    body: Vec<u8>,
    at: Timestamp,
    state: DeliveryState,
    /// It has a row ahead of the cursor or behind it.
    row: Option<ExceptionState>,
    gone: bool,
}

struct Bench {
    path: PathBuf,
    engine: Option<Box<dyn Engine>>,
    reader: Box<dyn Reader>,
    _folder: Scratch,
    now: Timestamp,
    events: Vec<Known>,
    cursor: Seq,
    paused: bool,
    values: BTreeMap<String, Vec<u8>>,
    /// Keys first seen before this may have been forgotten.
    forgotten_before: Timestamp,
}

/// Under the first source key and body identify an event, under the second the key alone.
const SOURCES: [(&str, Dedupe); 2] = [("lago/acme", Dedupe::KeyAndBody), ("lago/other", Dedupe::Key)];

impl Bench {
    fn new() -> Self {
        let folder = Scratch::new();
        let path = folder.path("j.db");
        std::fs::write(&path, &*EMPTY).expect("the file can be written");
        let engine = Some(open(&path, SMALL).expect("a store of ours opens"));
        Self {
            reader: open_reader(&path).expect("it can be read"),
            path,
            engine,
            _folder: folder,
            now: THEN,
            events: Vec::new(),
            cursor: 0,
            paused: false,
            values: BTreeMap::new(),
            forgotten_before: Timestamp::from_millis(i64::MIN),
        }
    }

    fn step(&mut self, step: u8, next: &mut impl FnMut() -> u8) {
        match step % 12 {
            0..4 => self.append(1 + usize::from(step / 12 % 4), next),
            4 | 5 => self.settle(step & 16 != 0, next),
            6 => self.replay(next),
            7 => self.drop(next),
            8 => self.purge(next),
            9 => self.other(next),
            10 => self.now = self.now.plus_millis(i64::from(next()) * HOUR / 4),
            _ => self.restart(step & 16 != 0),
        }
    }

    fn commit(&mut self, commit: Commit) -> Committed {
        let mut commit = Commit { at: self.now, age: self.now, ..commit };
        self.engine.as_mut().expect("it is open").commit(&mut commit).expect("a good store commits")
    }

    /// After a clean end or a cut-off one.
    fn restart(&mut self, clean: bool) {
        if let Some(engine) = self.engine.take().filter(|_| clean) {
            engine.close();
        }
        self.engine = Some(open(&self.path, SMALL).expect("a store of ours opens"));
        self.reader = open_reader(&self.path).expect("it can be read");
    }

    fn append(&mut self, count: usize, next: &mut impl FnMut() -> u8) {
        let mut asked = Vec::new();
        for _ in 0..count {
            let choice = next();
            let (source, key, body) = (usize::from(choice & 1), choice >> 1 & 15, choice >> 5 & 3);
            asked.push((source, key, vec![b'x'; usize::from(body) * 3]));
        }
        let appends = asked.iter().map(|(source, key, body)| {
            let (name, dedupe) = SOURCES[*source];
            append_as(dedupe, name, &key.to_string(), body)
        });
        let committed = self.commit(Commit { appends: appends.collect(), ..Commit::default() });
        assert_eq!(committed.verdicts.len(), asked.len());
        for ((source, key, body), verdict) in asked.into_iter().zip(committed.verdicts) {
            self.judge(source, key, body, verdict);
        }
        assert_eq!(committed.last_seq, self.last());
    }

    fn judge(&mut self, source: usize, key: u8, body: Vec<u8>, verdict: Verdict) {
        let (name, dedupe) = SOURCES[source];
        let id = match dedupe {
            Dedupe::KeyAndBody => EventId::derive(name, &key.to_string(), Some(&BodyDigest::of(&body))),
            Dedupe::Key => EventId::derive(name, &key.to_string(), None),
        };
        let under_key = || self.events.iter().filter(|known| (known.source, known.key) == (source, key));
        let remembered = |known: &Known| known.at >= self.forgotten_before;
        let same = under_key().filter(|known| known.id == id).any(remembered);
        assert_eq!(verdict.id, id, "the id follows from the event");
        if verdict.duplicate {
            let first = self.known(verdict.seq);
            assert_eq!((first.source, first.key, first.id), (source, key, id), "a duplicate of another event");
            assert!(!verdict.conflict);
            return;
        }
        assert!(!same, "an event that must be known is taken again");
        assert_eq!(verdict.seq, self.last() + 1, "positions have no gaps");
        if under_key().any(remembered) {
            assert!(verdict.conflict, "a known key with another body");
        }
        assert!(!verdict.conflict || under_key().next().is_some(), "a conflict with nothing");
        let state = DeliveryState::Pending;
        self.events.push(Known { source, key, id, body, at: self.now, state, row: None, gone: false });
    }

    fn settle(&mut self, twice: bool, next: &mut impl FnMut() -> u8) {
        let cursor = self.cursor + i64::from(next()) % (self.last() - self.cursor + 1);
        let mut rows: BTreeMap<Seq, ExceptionRow> = BTreeMap::new();
        let mut delivered = Vec::new();
        let (row_count, delivered_count) = {
            let n = next();
            (n % 4, n / 4 % 4)
        };
        for _ in 0..row_count {
            const STATES: [ExceptionState; 3] =
                [ExceptionState::Retrying, ExceptionState::Waiting, ExceptionState::Parked];
            let (place, state) = (next(), STATES[usize::from(next()) % 3]);
            // What is purged is never settled again: its deliveries are over.
            if cursor > 0 && !self.known(1 + i64::from(place) % cursor).gone {
                let seq = 1 + i64::from(place) % cursor;
                rows.insert(seq, row(seq, state));
            }
        }
        for _ in 0..delivered_count {
            let place = next();
            if cursor > 0 {
                delivered.push(1 + i64::from(place) % cursor);
            }
        }
        let set: Vec<ExceptionRow> = rows.into_values().collect();
        let settlement =
            Settlement { sink: SINK.to_owned(), cursor, set, delivered: delivered.clone(), ..Settlement::default() };
        for _ in 0..=u8::from(twice) {
            self.commit(Commit { settlements: vec![settlement.clone()], ..Commit::default() });
            self.settled(&settlement);
        }
    }

    fn settled(&mut self, settlement: &Settlement) {
        for seq in self.cursor + 1..=settlement.cursor {
            let known = self.known_mut(seq);
            if known.row.is_none() {
                known.state = DeliveryState::Delivered;
            }
        }
        self.cursor = self.cursor.max(settlement.cursor);
        for row in &settlement.set {
            let known = self.known_mut(row.seq);
            // The operator's word stands.
            if known.row != Some(ExceptionState::Dropped) {
                known.put(row.state);
            }
        }
        for seq in &settlement.delivered {
            let known = self.known_mut(*seq);
            if known.row.is_some_and(ExceptionState::is_open) {
                known.row = None;
                known.state = DeliveryState::Delivered;
            }
        }
    }

    fn some(&self, next: &mut impl FnMut() -> u8) -> Vec<Seq> {
        // One beyond the last is allowed: there is no such event.
        (0..next() % 5).map(|_| i64::from(next()) % (self.last() + 2)).collect()
    }

    fn replay(&mut self, next: &mut impl FnMut() -> u8) {
        let seqs = self.some(next);
        let action = Action::Replay { sink: SINK.to_owned(), seqs: seqs.clone(), from: self.now, spacing_ms: 0.5 };
        let outcome = self.commit(Commit { actions: vec![action], ..Commit::default() }).actions[0];
        let mut expected = (0, 0, 0);
        for seq in seqs {
            let (cursor, last) = (self.cursor, self.last());
            if seq < 1 || seq > last || self.known(seq).gone {
                expected.2 += 1;
                continue;
            }
            let known = self.known_mut(seq);
            match known.row {
                None if seq > cursor => expected.1 += 1,
                Some(ExceptionState::Waiting | ExceptionState::Replaying) => expected.1 += 1,
                Some(ExceptionState::Retrying) => expected.0 += 1,
                None | Some(ExceptionState::Parked | ExceptionState::Dropped | ExceptionState::Filtered) => {
                    expected.0 += 1;
                    known.put(ExceptionState::Replaying);
                }
            }
        }
        assert_eq!((outcome.changed, outcome.unchanged, outcome.unavailable), expected);
    }

    fn drop(&mut self, next: &mut impl FnMut() -> u8) {
        let seqs = self.some(next);
        let action = Action::Drop { sink: SINK.to_owned(), seqs: seqs.clone(), reason: "a test".to_owned() };
        let outcome = self.commit(Commit { actions: vec![action], ..Commit::default() }).actions[0];
        let mut expected = (0, 0, 0);
        for seq in seqs {
            if seq < 1 || seq > self.last() || self.known(seq).gone {
                expected.2 += 1;
                continue;
            }
            let cursor = self.cursor;
            let known = self.known_mut(seq);
            match known.row {
                Some(ExceptionState::Dropped | ExceptionState::Filtered) => expected.1 += 1,
                None if seq <= cursor => expected.1 += 1,
                _ => {
                    expected.0 += 1;
                    known.put(ExceptionState::Dropped);
                }
            }
        }
        assert_eq!((outcome.changed, outcome.unchanged, outcome.unavailable), expected);
    }

    fn purge(&mut self, next: &mut impl FnMut() -> u8) {
        let choice = next();
        let delivered_before = self.now.plus_millis(-i64::from(choice & 15) * HOUR);
        let plan = Purge {
            delivered_before,
            max_bytes: if choice & 16 == 0 { u64::MAX } else { 0 },
            // Keys tell how old events are, and so stay at least as long.
            keys_before: self.now.plus_millis(-i64::from(next()) * HOUR / 4).min(delivered_before),
            audit_before: delivered_before,
            limit: 1 + u32::from(next()) % 8,
        };
        self.forgotten_before = self.forgotten_before.max(plan.keys_before);
        let purged = self.commit(Commit { purge: Some(plan), ..Commit::default() }).purged;
        let mut removed = 0;
        for seq in 1..=self.last() {
            let stored = self.reader.event(seq).expect("it can be read").is_some();
            if stored || self.known(seq).gone {
                assert!(!stored || !self.known(seq).gone, "{seq} is back");
                continue;
            }
            removed += 1;
            let known = self.known(seq);
            let over = matches!(known.state, DeliveryState::Delivered | DeliveryState::Dropped) && seq <= self.cursor;
            assert!(over, "{seq} is gone and was {:?}", known.state);
            // Of an event whose key is forgotten it is known only that it was old enough then.
            let old = plan.delivered_before.max(self.forgotten_before);
            assert!(plan.max_bytes == 0 || known.at < old, "{seq} is gone too early");
            self.known_mut(seq).gone = true;
        }
        assert_eq!(purged.events, removed);
        assert!(removed <= u64::from(plan.limit));
    }

    fn other(&mut self, next: &mut impl FnMut() -> u8) {
        let choice = next();
        match choice % 4 {
            0 => {
                let paused = choice & 4 == 0;
                let action = Action::Pause { sink: SINK.to_owned(), paused };
                let outcome = self.commit(Commit { actions: vec![action], ..Commit::default() }).actions[0];
                assert_eq!(outcome.changed > 0, paused != self.paused);
                self.paused = paused;
            }
            1 => {
                let (name, value) = (format!("value-{}", choice / 64), vec![choice; usize::from(choice)]);
                self.commit(Commit { values: vec![(name.clone(), value.clone())], ..Commit::default() });
                self.values.insert(name, value);
            }
            2 => self.engine.as_mut().expect("it is open").idle(self.now).expect("a good store can be idle"),
            _ => self.engine.as_mut().expect("it is open").reopen(true).expect("a good store can be reopened"),
        }
    }

    fn last(&self) -> Seq {
        Seq::try_from(self.events.len()).expect("few events")
    }

    fn known(&self, seq: Seq) -> &Known {
        &self.events[usize::try_from(seq - 1).expect("positions begin with 1")]
    }

    fn known_mut(&mut self, seq: Seq) -> &mut Known {
        &mut self.events[usize::try_from(seq - 1).expect("positions begin with 1")]
    }

    fn compare_counters(&mut self) {
        let sink = self.reader.sink(SINK).expect("it is registered");
        let count =
            |wanted: &[DeliveryState]| self.events.iter().filter(|known| wanted.contains(&known.state)).count() as u64;
        let pending = count(&[DeliveryState::Pending, DeliveryState::Retrying]);
        assert_eq!((sink.cursor, sink.paused, sink.filtered), (self.cursor, self.paused, 0));
        assert_eq!(
            (sink.delivered, sink.parked, sink.dropped, sink.pending(self.last())),
            (
                count(&[DeliveryState::Delivered]),
                count(&[DeliveryState::Parked]),
                count(&[DeliveryState::Dropped]),
                pending
            ),
            "{sink:?}"
        );
        assert_eq!(sink.accepted(self.last()), self.events.len() as u64);
        let statistics = self.reader.statistics().expect("it can be read");
        assert_eq!(statistics.accepted, self.events.len() as u64);
        assert_eq!(self.engine.as_ref().map(|engine| engine.last_seq()), Some(self.last()));
    }

    /// Everything that is stored, event by event.
    fn compare(&mut self) {
        self.compare_counters();
        for (seq, known) in (1..).zip(&self.events) {
            let found = self.reader.found(seq).expect("it can be read");
            assert_eq!(found.is_none(), known.gone, "{seq}");
            let Some(found) = found else { continue };
            let name = SOURCES[known.source].0;
            let mut expected = head(name, &known.key.to_string(), &known.body);
            expected.id = known.id;
            expected.conflict = found.event.head.conflict;
            assert_eq!(
                (&found.event.head, &found.event.body[..], found.event.at),
                (&expected, &known.body[..], known.at)
            );
            assert_eq!(found.deliveries[SINK].state, known.state, "{seq}");
            assert_eq!(found.deliveries[SINK].row.as_ref().map(|row| row.state), known.row, "{seq}");
        }
        for (name, value) in &self.values {
            assert_eq!(self.reader.value(name).expect("it can be read").as_ref(), Some(value), "{name}");
        }
        let waiting = self.events.iter().filter(|known| known.row == Some(ExceptionState::Waiting));
        let retrying = self.events.iter().filter(|known| known.row == Some(ExceptionState::Retrying));
        assert_eq!(self.reader.blocked(SINK, 1_000).expect("it can be read").len(), waiting.count() + retrying.count());
    }
}

impl Known {
    fn put(&mut self, row: ExceptionState) {
        self.row = Some(row);
        self.state = match row {
            ExceptionState::Retrying | ExceptionState::Replaying => DeliveryState::Retrying,
            ExceptionState::Waiting => DeliveryState::Pending,
            ExceptionState::Parked => DeliveryState::Parked,
            ExceptionState::Dropped => DeliveryState::Dropped,
            ExceptionState::Filtered => DeliveryState::Filtered,
        };
    }
}
