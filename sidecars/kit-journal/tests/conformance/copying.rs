//! A journal moved from one engine to the other and back is the same journal.

use std::path::{Path, PathBuf};

use kit::clock::Timestamp;
use kit::secret::Secret;
use kit_journal::copy::{CopyError, Database as Schema, Doing, Passed, Place, Plan, Report, Table, copy};
use kit_journal::engine::{
    Action, Attempt, AuditRecord, Commit, DedupeBounds, Engine, ExceptionState, Purge, Reader, Settlement, Verdict,
};
use kit_journal::{Dedupe, JournalError, JournalSection, OpenError};
use kit_workbench::database::Database;
use tempfile::TempDir;

use crate::bench::{
    Bench, SINK, append, append_from, new_database, nothing_to_purge, open, pooler, row, section_at, server, usage,
};

/// A file of its own.
struct File {
    _directory: TempDir,
    path: PathBuf,
}

impl File {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("journal.db");
        Self { _directory: directory, path }
    }

    fn place(&self) -> Place {
        Place::Sqlite(self.path.clone())
    }

    fn section(&self) -> JournalSection {
        JournalSection { path: self.path.clone(), ..JournalSection::default() }
    }
}

fn database_place(name: &str) -> Place {
    place_at(server().url(name))
}

fn place_at(url: String) -> Place {
    let url = Secret::from(url);
    Place::Postgres(Schema { url, ca_file: None, schema: "outrigger".to_owned(), allow_shared: false })
}

fn plan(from: &Place, to: &Place) -> Plan {
    Plan { from: from.clone(), to: to.clone(), name: None, keep_damaged: false, dedupe: DedupeBounds::default() }
}

fn copied(from: &Place, to: &Place) -> Report {
    copy(&plan(from, to), &mut |_| {}).unwrap_or_else(|error| panic!("{}", kit::error::chain(&error)))
}

/// Why it is refused, in one line.
fn refused(plan: &Plan) -> String {
    kit::error::chain(&copy(plan, &mut |_| {}).expect_err("it is refused"))
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Does to a journal all that can be done to one.
fn live(bench: &mut Bench) {
    const OTHER: &str = "amqp";
    bench.append((1..=40).map(|n| append(&format!("k{n}"), &format!("{{\"n\":{n}}}"))).collect());
    bench.act(Action::Register { sink: OTHER.to_owned() });
    bench.now += 60_000;
    // Bytes that are no text, an empty body, a conflict, keys within a scope.
    bench.append(vec![append("empty", ""), append("zero", "\u{0}\u{1}"), append("k1", "another body")]);
    bench.append(vec![usage("sub", "t1", "{}"), usage("other", "t1", "{}")]);
    bench.append(vec![append_from("key/only", "k", "first", Dedupe::Key)]);
    let rows = [
        (3, ExceptionState::Retrying),
        (4, ExceptionState::Waiting),
        (5, ExceptionState::Parked),
        (6, ExceptionState::Dropped),
        (7, ExceptionState::Filtered),
    ];
    let attempt = |seq| Attempt {
        seq,
        at: at(bench_time(seq)),
        ms: 12,
        status: Some(500),
        outcome: "server error".to_owned(),
        error: Some("answered 500".to_owned()),
        response: Some("no \u{0} idea".to_owned()),
    };
    bench.settle(Settlement {
        cursor: 30,
        filtered: 2,
        set: rows.iter().map(|(seq, state)| row(*seq, *state)).collect(),
        attempts: (1..=5).map(attempt).collect(),
        values: vec![("ledger/sub".to_owned(), b"17".to_vec())],
        ..Settlement::default()
    });
    bench.act(Action::Replay { sink: SINK.to_owned(), seqs: vec![8], from: at(1_800_000_000_000), spacing_ms: 0.0 });
    bench.act(Action::Drop { sink: SINK.to_owned(), seqs: vec![45], reason: "no\u{0}body wants it".to_owned() });
    bench.act(Action::Pause { sink: OTHER.to_owned(), paused: true });
    bench.act(Action::Remember { name: "key".to_owned(), value: vec![0, 1, 255] });
    let detail = serde_json::json!({"of": "\u{0}"});
    bench.act(Action::Audit(AuditRecord { at: at(5), actor: "me".to_owned(), action: "drop".to_owned(), detail }));
    bench.now += 60_000;
    // What was delivered goes, and its keys stay.
    assert!(bench.purge(Purge { max_bytes: 0, ..nothing_to_purge() }).events > 5);
    let rows = [row(32, ExceptionState::Filtered), row(33, ExceptionState::Dropped)];
    bench.settle(Settlement { cursor: 33, set: rows.to_vec(), ..Settlement::default() });
    bench.append((1..=3).map(|n| append(&format!("late{n}"), "{}")).collect());
}

fn bench_time(seq: i64) -> i64 {
    1_700_000_000_000 + seq
}

/// Every event's verdict when all of them come again.
fn come_again(engine: &mut dyn Engine) -> Vec<Verdict> {
    let mut appends: Vec<_> = (1..=40).map(|n| append(&format!("k{n}"), &format!("{{\"n\":{n}}}"))).collect();
    appends.extend([append("empty", ""), append("zero", "\u{0}\u{1}"), append("k1", "another body")]);
    appends.extend([usage("sub", "t1", "{}"), usage("other", "t1", "{}"), usage("other", "t1", "{\"n\":2}")]);
    appends.push(append_from("key/only", "k", "later", Dedupe::Key));
    engine.commit(&mut Commit { appends, ..Commit::default() }).unwrap().verdicts
}

#[test]
fn a_journal_that_went_to_postgresql_and_back_is_the_same() {
    let mut bench = Bench::sqlite();
    live(&mut bench);
    let from = Place::Sqlite(bench.path());
    let statistics = bench.reader().statistics().unwrap();
    bench.close();
    let original = std::fs::read(bench.path()).unwrap();
    let database = new_database();
    let (between, back, again) = (database_place(&database), File::new(), File::new());

    let there = copied(&from, &between);
    let home = copied(&between, &back.place());
    let twice = copied(&back.place(), &again.place());

    assert_eq!(there.tables, home.tables);
    assert_eq!(there.tables, twice.tables);
    for tally in &there.tables {
        assert!(tally.rows > 0, "the journal has no {}", tally.table.name());
    }
    assert_eq!((there.last_position, there.journal.as_str()), (49, "j"));
    assert!(!there.resumed && !there.was_finished && there.damaged.is_empty());
    assert!(std::fs::read(bench.path()).unwrap() == original, "the source was changed");
    for section in [section_at(server().url(&database)), back.section(), again.section()] {
        let name = if section.database_url.is_some() { "j.db" } else { "journal.db" };
        let section = JournalSection { path: section.path.with_file_name(name), ..section };
        let opened = open(&section).unwrap();
        let mut reader = (opened.open_reader)().unwrap();
        let copy = reader.statistics().unwrap();
        assert_eq!((copy.accepted, &copy.sinks, copy.oldest_seq), (49, &statistics.sinks, statistics.oldest_seq));
        let (events, own) = reader.events_after(SINK, 33, 100, u64::MAX).unwrap();
        assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), {
            let mut pending: Vec<_> = (34..=49).collect();
            pending.retain(|seq| *seq != 45);
            pending
        });
        assert_eq!((own, &events[8].body[..]), (vec![45], &b"\x00\x01"[..]));
        assert_eq!(reader.attempts(3).unwrap().len(), 1);
        assert_eq!(reader.audit(None, 10).unwrap().len(), 1);
        assert_eq!(reader.value("key").unwrap(), Some(vec![0, 1, 255]));
        drop(reader);
        let mut engine = opened.engine;
        let verdicts = come_again(&mut *engine);
        let new: Vec<_> = verdicts.iter().filter(|verdict| verdict.is_stored()).collect();
        assert!(new.is_empty() && verdicts.len() == 47, "{new:?}");
        // What is new gets the next position, and is written as ever.
        let next = engine.commit(&mut Commit { appends: vec![append("new", "{}")], ..Commit::default() }).unwrap();
        assert_eq!(next.verdicts[0].seq, 50);
        let audit = AuditRecord { at: at(6), actor: String::new(), action: String::new(), detail: 1.into() };
        engine.commit(&mut Commit { actions: vec![Action::Audit(audit)], ..Commit::default() }).unwrap();
        engine.close();
    }
}

#[test]
fn a_copy_goes_through_a_pooler_in_both_directions() {
    let (source, back) = (stopped(), File::new());
    let between = place_at(pooler().url(&new_database()));

    let there = copied(&source.place(), &between);
    let home = copied(&between, &back.place());

    assert_eq!(there.tables, home.tables);
}

#[test]
fn places_are_told_apart_by_what_they_are_and_not_by_how_they_are_spelled() {
    // Another cluster with a database of the same name, on another port of the same host.
    let other = Database::start(&[]).unwrap();
    let name = new_database();
    other.create(&name).unwrap();
    let (here, there) = (database_place(&name), place_at(other.url(&name)));
    let source = stopped();
    let first = copied(&source.place(), &here);

    let second = copied(&here, &there);

    assert!(first.tables == second.tables && !second.was_finished);
    assert!(second.from != second.to && second.to.contains(&format!("127.0.0.1:{}/", other.port())), "{second:?}");
    // One place: by its name and its address, and through a pooler.
    let by_name = place_at(server().url(&name).replace("127.0.0.1", "localhost"));
    for same in [&here, &by_name, &place_at(pooler().url(&name))] {
        let said = refused(&plan(&here, same));
        assert!(said.contains("already: name another target"), "{said}");
        let said = refused(&plan(same, &here));
        assert!(said.contains("already: name another target"), "{said}");
    }
    // Another schema of it is another place.
    let Place::Postgres(database) = here.clone() else { unreachable!() };
    let beside = Place::Postgres(Schema { schema: "beside".to_owned(), allow_shared: true, ..database });
    assert!(!copied(&here, &beside).was_finished);
}

#[test]
fn nothing_changes_a_database_while_it_is_copied_and_a_lost_connection_ends_the_copy() {
    let (name, file) = (new_database(), File::new());
    let from = database_place(&name);
    copied(&stopped().place(), &from);
    let plan = plan(&from, &file.place());
    // What every commit begins with.
    let commit = "SET lock_timeout = 100; SELECT 1 FROM outrigger.head FOR UPDATE";
    let mut steps = 0;

    let error = copy(&plan, &mut |_| {
        steps += 1;
        if steps == 2 {
            assert!(server().sql(&name, commit).is_err(), "a replica may commit");
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND state = 'idle in transaction'";
            assert_eq!(server().sql(&name, end).unwrap(), "1");
        }
    });

    let said = kit::error::chain(&error.expect_err("the moment that was copied is gone"));
    assert!(said.contains("the same command goes on from there"), "{said}");
    server().sql(&name, commit).unwrap();
    assert!(copy(&plan, &mut |_| {}).unwrap().resumed);
}

#[test]
fn old_keys_of_a_large_journal_do_not_fill_the_memory_of_its_copy() {
    let bounds = DedupeBounds { recent_keys: 400, run_keys: 100, filter_bytes: 1 << 16 };
    let (file, back) = (File::new(), File::new());
    let mut engine = kit_journal::engine::open(&file.path, bounds).unwrap();
    for n in 0..60_i64 {
        let appends = (0..20).map(|k| append(&format!("k{n}-{k}"), "{}")).collect();
        let time = at(1_700_000_000_000 + n * 1_000);
        engine.commit(&mut Commit { at: time, age: time, appends, ..Commit::default() }).unwrap();
    }
    engine.close();
    let between = database_place(&new_database());

    let there = copy(&Plan { dedupe: bounds, ..plan(&file.place(), &between) }, &mut |_| {}).unwrap();
    copy(&Plan { dedupe: bounds, ..plan(&between, &back.place()) }, &mut |_| {}).unwrap();

    assert_eq!(there.tables.iter().find(|tally| tally.table == Table::Keys).unwrap().rows, 1_200);
    let mut engine = kit_journal::engine::open(&back.path, bounds).unwrap();
    let (bytes, keys) = engine.dedupe_memory();
    assert!(keys == 1_200 && bytes < 20_000, "{keys} keys in {bytes} bytes");
    let appends = (0..60).flat_map(|n| (0..20).map(move |k| append(&format!("k{n}-{k}"), "{}"))).collect();
    let verdicts = engine.commit(&mut Commit { appends, ..Commit::default() }).unwrap().verdicts;
    assert!(verdicts.iter().all(|verdict| verdict.duplicate));
    engine.close();
}

/// A stopped journal with ten thousand events in a file.
fn stopped() -> File {
    let file = File::new();
    let mut engine = kit_journal::engine::open(&file.path, DedupeBounds::default()).unwrap();
    let register = vec![Action::Register { sink: SINK.to_owned() }];
    engine.commit(&mut Commit { actions: register, ..Commit::default() }).unwrap();
    for n in 0..100_i64 {
        let appends = (0..100).map(|k| append(&format!("k{n}-{k}"), &format!("{{\"amount\":{n}}}"))).collect();
        let time = at(1_700_000_000_000 + n);
        engine.commit(&mut Commit { at: time, age: time, appends, ..Commit::default() }).unwrap();
    }
    engine.close();
    file
}

/// Copies, and gives up as a process that is killed does after this many steps.
fn cut_off(plan: &Plan, steps: usize) {
    let mut left = steps;
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        copy(plan, &mut |step| {
            left = left.checked_sub(1).unwrap_or_else(|| std::panic::panic_any("killed"));
            assert!(step.done <= step.total);
        })
    }));
    assert!(stopped.is_err(), "it had ended before");
}

#[test]
fn a_copy_that_was_cut_off_goes_on_and_no_daemon_opens_it_before() {
    let source = stopped();
    let whole = copied(&source.place(), &File::new().place());
    let (file, database) = (File::new(), new_database());
    let section = JournalSection { path: "journal.db".into(), ..section_at(server().url(&database)) };
    for (target, section) in [(file.place(), file.section()), (database_place(&database), section)] {
        let plan = plan(&source.place(), &target);
        // In the middle of events, of keys, and of comparing.
        for steps in [2, 5, 8, 2_000] {
            cut_off(&plan, steps);
            let error = open(&section).expect_err("nobody opens it");
            assert!(matches!(error, OpenError::Unfinished { .. }), "{error}");
        }
        let mut copying = 0;
        let report = copy(&plan, &mut |step| copying += usize::from(step.doing == Doing::Copying)).unwrap();
        assert!(report.resumed && copying <= Table::ALL.len(), "{copying} batches were copied again");
        assert_eq!(report.tables, whole.tables);
        assert_eq!(open(&section).unwrap().engine.last_seq(), whole.last_position);
        // And once more, for whoever does not know how it ended.
        let report = copied(&source.place(), &target);
        assert!(report.was_finished);
    }
}

#[test]
fn a_file_whose_end_is_in_its_log_only_is_taken_up() {
    let (source, file) = (stopped(), File::new());
    copied(&source.place(), &file.place());
    {
        let conn = rusqlite::Connection::open(&file.path).unwrap();
        conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        // As it is between the last commit and what follows: "OUTC" in the file, "OUTR" in the log.
        conn.execute_batch("PRAGMA application_id = 0x4f555443; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        conn.execute_batch("PRAGMA application_id = 0x4f555452").unwrap();
    }
    assert!(matches!(open(&file.section()), Err(OpenError::Unfinished { .. })));

    assert!(copied(&source.place(), &file.place()).was_finished);

    assert_eq!(open(&file.section()).unwrap().engine.last_seq(), 10_000);
}

#[test]
fn an_unfinished_copy_of_a_journal_that_was_gone_on_with_begins_again() {
    let source = stopped();
    let database = new_database();
    let plan = plan(&source.place(), &database_place(&database));
    cut_off(&plan, 5);
    let mut engine = kit_journal::engine::open(&source.path, DedupeBounds::default()).unwrap();
    engine.commit(&mut Commit { appends: vec![append("meanwhile", "{}")], ..Commit::default() }).unwrap();
    let last = engine.last_seq();
    engine.close();

    let report = copy(&plan, &mut |_| {}).unwrap();

    assert!(!report.resumed && report.last_position == last);

    let other = File::new();
    let between = database_place(&new_database());
    cut_off(&self::plan(&source.place(), &between), 5);
    kit_journal::engine::open(&other.path, DedupeBounds::default()).unwrap().close();
    let said = refused(&self::plan(&other.place(), &between));
    assert!(said.contains("is an unfinished copy of the journal"), "{said}");
    let said = refused(&Plan { name: Some("another".to_owned()), ..self::plan(&source.place(), &between) });
    assert!(said.contains("is an unfinished copy of the journal"), "{said}");
}

#[test]
fn what_is_in_use_or_holds_something_else_is_refused_untouched() {
    let source = stopped();
    let mut bench = Bench::postgres();
    live(&mut bench);
    let held = database_place(&bench.database);
    let check = |plan: &Plan, expected: &str| {
        let said = refused(plan);
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
        assert!(!said.contains("workbench"), "a password: {said}");
    };

    // A journal of another daemon, and one that a replica works on.
    let before = server().sql(&bench.database, "SELECT last_seq, journal FROM outrigger.head").unwrap();
    check(&plan(&source.place(), &held), "holds a journal called journal already, of 49 events");
    bench.engine().lease(SINK).unwrap().unwrap();
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| refused(&plan(&held, &File::new().place())));
        while !copying.is_finished() {
            bench.engine().lease(SINK).unwrap().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let said = copying.join().unwrap();
        assert!(said.contains("the journal is in use: stop every replica"), "{said}");
    });
    assert!(begin.elapsed().as_secs() < 8, "a replica that works is noticed soon");
    let after = server().sql(&bench.database, "SELECT last_seq, journal FROM outrigger.head").unwrap();
    assert_eq!(before, after);

    // Files: in use, of another program, of a newer version, not there.
    let target = File::new();
    let engine = kit_journal::engine::open(&target.path, DedupeBounds::default()).unwrap();
    check(&plan(&source.place(), &target.place()), "target: journal");
    check(&plan(&source.place(), &target.place()), "is in use by another process");
    check(&plan(&target.place(), &File::new().place()), "is in use by another process");
    engine.close();
    check(&plan(&source.place(), &target.place()), "holds a journal already, of 0 events");
    check(&plan(&source.place(), &source.place()), "name another target");
    let foreign = File::new();
    std::fs::write(&foreign.path, [b'x'; 4096]).unwrap();
    check(&plan(&source.place(), &foreign.place()), "is a database of another program");
    assert!(std::fs::read(&foreign.path).unwrap() == [b'x'; 4096]);
    check(&plan(&File::new().place(), &target.place()), "No such file");
    let newer = File::new();
    let mut bytes = std::fs::read(&target.path).unwrap();
    bytes[60..64].copy_from_slice(&999_u32.to_be_bytes());
    std::fs::write(&newer.path, &bytes).unwrap();
    check(&plan(&source.place(), &newer.place()), "has schema version 999");
    check(&plan(&newer.place(), &File::new().place()), "has schema version 999");
    assert!(std::fs::read(&newer.path).unwrap() == bytes);

    // Databases: no journal, another program's, a newer version.
    let empty = new_database();
    check(&plan(&database_place(&empty), &File::new().place()), "holds no journal");
    server().sql(&empty, "CREATE TABLE theirs (id int)").unwrap();
    check(&plan(&source.place(), &database_place(&empty)), "it holds tables of another program (public.theirs)");
    server().sql(&empty, "CREATE SCHEMA outrigger CREATE TABLE outrigger.theirs (id int)").unwrap();
    check(&plan(&source.place(), &database_place(&empty)), "the schema is another program's");
    server().sql(&bench.database, "UPDATE outrigger.head SET version = 99").unwrap();
    check(&plan(&source.place(), &held), "has schema version 99");
    check(&plan(&held, &File::new().place()), "has schema version 99");
}

#[test]
fn damaged_events_are_named_and_carried_over_as_what_they_are_where_that_is_asked_for() {
    let source = stopped();
    let change = "UPDATE events SET body = x'7b7d' WHERE seq IN (7, 4000)";
    rusqlite::Connection::open(&source.path).unwrap().execute(change, []).unwrap();
    // A page of the file that is none.
    let mut bytes = std::fs::read(&source.path).unwrap();
    let body = br#"{"amount":55}"#;
    let place = bytes.windows(body.len()).position(|window| window == body).unwrap();
    let page = place / 16_384 * 16_384;
    bytes[page..page + 16].fill(0xee);
    std::fs::write(&source.path, &bytes).unwrap();
    let database = new_database();
    let between = database_place(&database);

    let said = refused(&plan(&source.place(), &between));

    assert!(said.contains("events of ") && said.contains("are damaged (positions 7, 4000, 5"), "{said}");
    assert!(said.contains("--keep-damaged"), "{said}");
    let section = JournalSection { path: "journal.db".into(), ..section_at(server().url(&database)) };
    assert!(matches!(open(&section), Err(OpenError::Unfinished { .. })));
    let report = copy(&Plan { keep_damaged: true, ..plan(&source.place(), &between) }, &mut |_| {}).unwrap();
    assert!(report.resumed && report.damaged_events > 3 && report.damaged[..2] == [7, 4000], "{report:?}");
    let mut reader = (open(&section).unwrap().open_reader)().unwrap();
    for seq in &report.damaged {
        assert!(matches!(reader.event(*seq), Err(JournalError::Damaged { .. })), "{seq}");
    }
    let readable = (1..=10_000).filter(|seq| reader.event(*seq).is_ok_and(|event| event.is_some())).count() as u64;
    assert_eq!(readable + report.damaged_events, 10_000);
}

/// Damages the page of a journal's file that holds its first events.
fn damage_first_page(path: &Path) {
    const PAGE: usize = 16_384;
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'events'";
    let root: i64 = rusqlite::Connection::open(path).unwrap().query_row(root, [], |row| row.get(0)).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let mut page = (usize::try_from(root).unwrap() - 1) * PAGE;
    // An interior page has type 5, its first cell begins where byte 12 says, and with the number of its child.
    while bytes[page] == 5 {
        let cell = page + usize::from(u16::from_be_bytes(bytes[page + 12..page + 14].try_into().unwrap()));
        let child = u32::from_be_bytes(bytes[cell..cell + 4].try_into().unwrap());
        page = (child as usize - 1) * PAGE;
    }
    bytes[page..page + 16].fill(0xee);
    std::fs::write(path, bytes).unwrap();
}

/// Positions of a journal's events, read one after the other: those that can be read, and those that are damaged.
fn readable(reader: &mut dyn Reader, last: i64) -> (Vec<i64>, Vec<i64>) {
    let (mut good, mut damaged) = (Vec::new(), Vec::new());
    for seq in 1..=last {
        match reader.event(seq) {
            Ok(Some(_)) => good.push(seq),
            Ok(None) => {}
            Err(JournalError::Damaged { .. }) => damaged.push(seq),
            Err(error) => panic!("{seq}: {error}"),
        }
    }
    (good, damaged)
}

#[test]
fn a_journal_whose_first_page_cannot_be_read_is_copied_from_the_second_one_on() {
    let source = stopped();
    damage_first_page(&source.path);
    let database = new_database();
    let between = database_place(&database);

    let said = refused(&plan(&source.place(), &between));

    assert!(said.contains("are damaged (positions 1, 2, 3, "), "{said}");
    let keep = |from: &Place, to: &Place| copy(&Plan { keep_damaged: true, ..plan(from, to) }, &mut |_| {}).unwrap();
    let report = keep(&source.place(), &between);
    assert!(report.resumed && report.damaged_events > 10 && report.passed.is_none(), "{report:?}");
    let section = JournalSection { path: "journal.db".into(), ..section_at(server().url(&database)) };
    let (good, damaged) = readable(&mut *(open(&section).unwrap().open_reader)().unwrap(), 10_000);
    let count = i64::try_from(report.damaged_events).unwrap();
    assert_eq!((good, damaged), ((count + 1..=10_000).collect(), (1..=count).collect()));
    assert!(keep(&source.place(), &between).was_finished);
    // Nor does it keep a daemon from the rest of the journal.
    open(&source.section()).unwrap().engine.close();
}

#[test]
fn what_was_purged_before_a_page_that_cannot_be_read_is_counted_and_nothing_is_made_up_for_it() {
    let mut bench = Bench::sqlite();
    bench.append((1..=4_000).map(|n| append(&format!("k{n}"), &format!("{{\"n\":{n}}}"))).collect());
    let kept = [3, 17, 2_000];
    let set = kept.iter().map(|seq| row(*seq, ExceptionState::Parked)).collect();
    bench.settle(Settlement { cursor: 3_900, set, ..Settlement::default() });
    while bench.purge(Purge { max_bytes: 0, ..nothing_to_purge() }).events > 0 {}
    bench.close();
    damage_first_page(&bench.path());
    let from = Place::Sqlite(bench.path());
    let (database, file) = (new_database(), File::new());

    let said = refused(&plan(&from, &database_place(&database)));

    assert!(
        said.contains("are damaged (positions 3, 17, 2000")
            && said.contains(" positions from 1 to 3900 cannot be read"),
        "{said}"
    );
    let name = Some("j".to_owned());
    for target in [database_place(&database), file.place()] {
        let keep = Plan { keep_damaged: true, name: name.clone(), ..plan(&from, &target) };
        let report = copy(&keep, &mut |_| {}).unwrap();
        assert_eq!(report.passed, Some(Passed { first: 1, last: 3_900, positions: 3_897 }), "{report:?}");
        assert_eq!(report.damaged[..3], kept);
        assert!(copy(&keep, &mut |_| {}).unwrap().was_finished);
    }
    let path = file.path.with_file_name("j.db");
    let section = JournalSection { path: path.clone(), ..section_at(server().url(&database)) };
    for section in [section, file.section()] {
        let (good, damaged) = readable(&mut *(open(&section).unwrap().open_reader)().unwrap(), 4_000);
        let pending: Vec<i64> = damaged.iter().skip(kept.len()).copied().collect();
        assert_eq!(damaged[..3], kept);
        assert!(good.iter().chain(&pending).all(|seq| *seq > 3_900), "{good:?} {pending:?}");
        assert_eq!(good.len() + pending.len(), 100);
    }
}

#[test]
fn of_two_runs_of_a_copy_the_later_one_goes_on() {
    // A database may be read by both of them.
    let source = database_place(&new_database());
    copied(&stopped().place(), &source);
    let plan = plan(&source, &database_place(&new_database()));
    let mut steps = 0;

    let error = copy(&plan, &mut |_| {
        steps += 1;
        if steps == 3 {
            cut_off(&plan, 2);
        }
    });

    let said = kit::error::chain(&error.expect_err("it is not alone"));
    assert!(said.contains("another run of the copy has taken over"), "{said}");
    assert!(copy(&plan, &mut |_| {}).unwrap().resumed);
}

#[test]
fn a_difference_is_named_and_what_differs_is_not_finished() {
    let source = stopped();
    let database = new_database();
    let plan = plan(&source.place(), &database_place(&database));
    cut_off(&plan, 20);
    let change = "UPDATE outrigger.events SET body = 'x' WHERE seq = 5; DELETE FROM outrigger.keys WHERE seq = 9;
        INSERT INTO outrigger.audit (at, actor, action, detail) VALUES (1, '', '', '')";
    server().sql(&database, change).unwrap();

    let error = copy(&plan, &mut |_| {}).unwrap_err();

    let said = error.to_string();
    assert!(matches!(error, CopyError::Different { count: 3, .. }), "{said}");
    for named in ["events 5 differs", "keys 9 is missing in the copy", "audit 1 is in the copy only"] {
        assert!(said.contains(named), "{said}");
    }
    let section = JournalSection { path: "journal.db".into(), ..section_at(server().url(&database)) };
    assert!(matches!(open(&section), Err(OpenError::Unfinished { .. })));
}
