//! A damaged journal. The first byte says how the files come about: `f` the rest is the main file,
//! `w` two bytes of length, the main file, its write-ahead log; anything else starts from a good
//! journal and damages it, seven bytes a change: kind, three bytes of place, three of value.
//!
//! Promises: whatever the files hold, opening ends; no record is served but as it was stored; what is
//! appended afterwards is read back unchanged or not at all.

use std::path::Path;
use std::sync::LazyLock;

use kit_journal::engine::{Commit, Engine, Reader, Settlement, open, open_reader};
use kit_journal::{EventFilter, Seq, StoredEvent};

use crate::samples::{EVENTS, SINK, SMALL, THEN, append, body, fill, fresh, head};
use crate::scratch::Scratch;

/// The good journal: main file and write-ahead log, as a process that was cut off leaves them.
static GOOD: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let folder = Scratch::new();
    let path = folder.path("j.db");
    let mut engine = fresh(&path);
    fill(&mut *engine);
    // The first life ends in order, so that its records are in the main file. The second is cut off, and
    // appends nothing: the page with the records must not be in the log as well.
    engine.close();
    let mut engine = open(&path, SMALL).expect("a store of ours opens");
    let settlements = vec![Settlement { sink: SINK.to_owned(), cursor: 9, ..Settlement::default() }];
    engine.commit(&mut Commit { at: THEN, settlements, ..Commit::default() }).expect("it is committed");
    let read = |path| std::fs::read(path).expect("the store has its files");
    (read(path.clone()), read(folder.path("j.db-wal")))
});

/// What the target itself appends.
const NEW: &[u8] = b"{\"new\":true}";

/// Opens the journal and uses it.
///
/// # Panics
/// A wrong record is served.
pub fn target(data: &[u8]) {
    let folder = Scratch::new();
    let path = folder.path("j.db");
    let (main, log) = files(data);
    std::fs::write(&path, main).expect("the file can be written");
    if !log.is_empty() {
        std::fs::write(folder.path("j.db-wal"), log).expect("the log can be written");
    }
    for _ in 0..2 {
        // A refusal is right; the daemon says so and ends.
        let Ok(mut engine) = open(&path, SMALL) else { continue };
        look(&path);
        change(&mut *engine);
        look(&path);
        engine.close();
    }
}

fn files(data: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match data.split_first() {
        Some((b'f', main)) => (main.to_vec(), Vec::new()),
        Some((b'w', [high, low, rest @ ..])) => {
            let length = usize::from(*high) * 256 + usize::from(*low);
            let (main, log) = rest.split_at(length.min(rest.len()));
            (main.to_vec(), log.to_vec())
        }
        _ => {
            let (mut main, mut log) = GOOD.clone();
            for change in data.chunks_exact(7).take(32) {
                let file = if change[0] & 1 == 0 { &mut main } else { &mut log };
                damage(file, change[0] >> 1, &change[1..]);
            }
            (main, log)
        }
    }
}

fn damage(file: &mut Vec<u8>, kind: u8, arguments: &[u8]) {
    const PAGE: usize = 16 * 1024;
    const BODY: &[u8] = b"\"filler\":\"";
    let [high, middle, low, values @ ..] = arguments else { return };
    let at = usize::from(*high) * 65_536 + usize::from(*middle) * 256 + usize::from(*low);
    let pages = file.len() / PAGE;
    if file.is_empty() {
        return;
    }
    let at = at % file.len();
    match kind % 8 {
        // Within a record's body, whichever page it is on.
        3 => {
            let bodies: Vec<usize> =
                file.windows(BODY.len()).enumerate().filter(|(_, part)| *part == BODY).map(|(at, _)| at).collect();
            let place = bodies.get(at % bodies.len().max(1)).copied().unwrap_or(at) + BODY.len();
            file.iter_mut().skip(place).zip(values).for_each(|(byte, value)| *byte = *value);
        }
        0..4 => file.iter_mut().skip(at).zip(values).for_each(|(byte, value)| *byte = *value),
        4 => file[at] ^= 1 << (values[0] % 8),
        5 => file.truncate(at),
        6 => file.iter_mut().skip(at / PAGE * PAGE).take(PAGE).for_each(|byte| *byte = 0),
        _ if pages > 0 => {
            let (from, to) = (at % pages * PAGE, usize::from(values[0]) % pages * PAGE);
            file.copy_within(from..from + PAGE, to);
        }
        _ => {}
    }
}

/// Asks everything that can be asked. An error is right; a wrong answer is not.
fn look(path: &Path) {
    let Ok(mut reader) = open_reader(path) else { return };
    for after in [0, 4, EVENTS] {
        if let Ok((events, _)) = reader.events_after(SINK, after, 100, 1 << 20) {
            events.iter().for_each(genuine);
        }
    }
    for seq in 0..=EVENTS + 2 {
        if let Ok(Some(event)) = reader.event(seq) {
            assert_eq!(event.seq, seq);
            genuine(&event);
        }
        if let Ok(Some(found)) = reader.found(seq) {
            genuine(&found.event);
        }
        let _ = reader.attempts(seq);
        let _ = reader.find(head("lago/acme", &format!("key-{seq}"), &body(seq)).id);
    }
    if let Ok(page) = reader.search(&EventFilter::default(), None, 100, 1_000) {
        for mut found in page.found {
            // Listings leave the bodies out; only a length is left to compare.
            assert!(found.event.body.is_empty());
            if let Ok(Some(event)) = reader.event(found.event.seq) {
                assert_eq!(found.body_bytes, event.body.len() as u64);
                found.event.body = event.body;
                genuine(&found.event);
            }
        }
    }
    numbers(&mut *reader);
}

fn numbers(reader: &mut dyn Reader) {
    if let Ok(sink) = reader.sink(SINK) {
        let _ = (sink.accepted(EVENTS), sink.pending(EVENTS));
    }
    if let Ok(statistics) = reader.statistics() {
        let last = Seq::try_from(statistics.accepted).unwrap_or(Seq::MAX);
        let _ = statistics.sinks.iter().map(|sink| sink.pending(last)).max();
    }
    let _ = reader.blocked(SINK, 100);
    let _ = reader.rows_between(SINK, 0, Seq::MAX);
    let _ = reader.replays(SINK, THEN, 100);
    let _ = reader.audit(None, 100);
    let _ = reader.value("name");
    let _ = reader.oldest_pending(SINK);
}

/// What was stored under this position, by the journal or by this target, and nothing else.
fn genuine(event: &StoredEvent) {
    let stored = event.at == THEN && event.head.key == format!("key-{}", event.seq) && event.body == body(event.seq);
    // The second is known, unless the damage took its key.
    let appended = [("new", NEW.to_vec()), ("key-1", body(1))];
    let new = appended.iter().any(|(key, body)| event.head.key == *key && event.body == *body);
    assert!(stored || new, "a record that nobody stored: {event:?}");
}

fn change(engine: &mut dyn Engine) {
    let appends = vec![append("lago/acme", "new", NEW), append("lago/acme", "key-1", &body(1))];
    let settlement = Settlement { sink: SINK.to_owned(), cursor: 9, delivered: vec![2], ..Settlement::default() };
    let settlements = vec![settlement];
    let at = THEN.plus_millis(1);
    if engine.commit(&mut Commit { at, appends, settlements, ..Commit::default() }).is_err()
        && engine.reopen(true).is_err()
    {
        return;
    }
    let purge = kit_journal::engine::Purge {
        delivered_before: at,
        max_bytes: 0,
        keys_before: THEN,
        audit_before: THEN,
        limit: 4,
    };
    if engine.commit(&mut Commit { at, purge: Some(purge), ..Commit::default() }).is_ok() {
        let _ = engine.idle(at);
    }
    let _ = (engine.last_seq(), engine.dedupe_memory(), engine.used_bytes());
}
