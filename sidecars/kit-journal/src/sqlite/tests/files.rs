//! The file itself: whose it is, what is refused, what is never served.

use super::*;

#[test]
fn a_record_changed_behind_our_back_is_never_served() {
    let mut bench = Bench::new();
    bench.append((0..3).map(|n| append(&n.to_string(), "{\"amount\":1}")).collect());
    for change in [
        "UPDATE events SET body = CAST('{\"amount\":9}' AS BLOB) WHERE seq = 2",
        "UPDATE events SET at = at + 1 WHERE seq = 2",
        "UPDATE events SET head = replace(head, 'invoice', 'invoicf') WHERE seq = 2",
        "UPDATE events SET sum = zeroblob(32) WHERE seq = 2",
        "UPDATE events SET body = 7 WHERE seq = 2",
    ] {
        bench.engine().conn.execute_batch("SAVEPOINT s").unwrap();
        bench.engine().conn.execute(change, []).unwrap();
        bench.engine().conn.execute_batch("RELEASE s").unwrap();
        let mut reader = bench.reader();
        assert!(matches!(reader.event(2), Err(JournalError::Damaged { seq: 2, .. })), "{change}");
        let (before, _) = reader.events_after(SINK, 0, 100, u64::MAX).unwrap();
        assert_eq!(before.len(), 1, "the batch ends before the damaged record");
        assert!(matches!(reader.events_after(SINK, 1, 100, u64::MAX), Err(JournalError::Damaged { seq: 2, .. })));
        assert_eq!(reader.search(&EventFilter::default(), None, 10, 100).unwrap().found.len(), 2);
        drop(reader);
        bench = Bench::new();
        bench.append((0..3).map(|n| append(&n.to_string(), "{\"amount\":1}")).collect());
    }
}

#[test]
fn a_newer_file_and_somebody_elses_are_refused_untouched() {
    let directory = TempDir::new().unwrap();
    let newer = directory.path().join("newer.db");
    {
        let engine = SqliteEngine::open(&newer).unwrap();
        engine.conn.execute_batch("PRAGMA user_version = 999").unwrap();
        Box::new(engine).close();
    }
    let foreign = directory.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let text = directory.path().join("notes.txt");
    std::fs::write(&text, "not a database at all").unwrap();

    for path in [&newer, &foreign, &text] {
        let before = std::fs::read(path).unwrap();
        let error = SqliteEngine::open(path).err().unwrap();
        match path.file_name().unwrap().to_str().unwrap() {
            "newer.db" => assert!(matches!(error, OpenError::Newer { found: 999, .. }), "{error}"),
            _ => assert!(matches!(error, OpenError::Foreign { .. }), "{error}"),
        }
        assert_eq!(std::fs::read(path).unwrap(), before);
    }
}

/// The main file was moved without its log, or a restore that ran out of disk left nothing in its place.
#[test]
fn a_log_whose_main_file_is_missing_or_empty_is_left_alone() {
    for truncated in [false, true] {
        let mut bench = Bench::new();
        bench.append(vec![append("1", "{}")]);
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("j.db");
        let log = directory.path().join("j.db-wal");
        std::fs::copy(bench.path().with_file_name("j.db-wal"), &log).unwrap();
        let whole = std::fs::read(bench.path()).unwrap();
        let held = std::fs::read(&log).unwrap();
        if truncated {
            std::fs::write(&path, b"").unwrap();
        }

        let error = SqliteEngine::open(&path).err().unwrap();

        assert!(matches!(error, OpenError::LogAlone { .. }), "{error}");
        assert_eq!(std::fs::read(&log).unwrap(), held);
        std::fs::write(&path, whole).unwrap();
        assert_eq!(SqliteEngine::open(&path).unwrap().last_seq(), 1, "put back, nothing is missing");
    }
}

/// What a kill in the first start can leave behind, from nothing to a database without tables.
#[test]
fn an_unfinished_first_start_is_taken_up() {
    let directory = TempDir::new().unwrap();
    let empty = directory.path().join("empty.db");
    std::fs::write(&empty, b"").unwrap();
    let headed = directory.path().join("headed.db");
    connect(&headed).unwrap();
    assert!(std::fs::metadata(&headed).unwrap().len() > 0, "the header is written before the tables");
    for path in [&empty, &headed] {
        let engine = SqliteEngine::open(path).unwrap();
        assert_eq!(engine.last_seq(), 0);
    }
}

/// What a power cut in the first transaction can leave behind: a page that is not all there, beside the journal
/// that undoes it.
#[test]
fn a_first_page_that_was_cut_off_is_undone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("torn.db");
    let mut journal = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    // No records, a nonce, no pages before, sectors of 512 bytes, pages of 16 KiB.
    for word in [0_u32, 7, 0, 512, 16_384] {
        journal.extend(word.to_be_bytes());
    }
    journal.resize(512, 0);
    for first_page in [vec![0; 16_384], vec![0x5a; 512]] {
        std::fs::write(&path, &first_page).unwrap();
        std::fs::write(directory.path().join("torn.db-journal"), &journal).unwrap();
        let engine = SqliteEngine::open(&path).unwrap();
        assert_eq!(engine.last_seq(), 0);
        drop(engine);
    }
    // The same page with nothing beside it is no file of ours.
    std::fs::write(&path, vec![0; 16_384]).unwrap();
    for leftover in ["torn.db-wal", "torn.db-shm"] {
        let _ = std::fs::remove_file(directory.path().join(leftover));
    }
    assert!(matches!(SqliteEngine::open(&path).err().unwrap(), OpenError::Foreign { .. }));
}

#[test]
fn a_second_process_is_told_and_an_absent_directory_is_named() {
    let bench = Bench::new();
    assert!(matches!(SqliteEngine::open(&bench.path()).err().unwrap(), OpenError::Locked { .. }));
    let missing = bench.directory.path().join("missing/j.db");
    assert!(matches!(SqliteEngine::open(&missing).err().unwrap(), OpenError::Io { .. }));
}

#[test]
fn durability_settings_are_in_force() {
    let bench = Bench::new();
    let conn = &bench.engine.as_ref().unwrap().conn;
    let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("synchronous"), 2, "FULL");
    assert_eq!(pragma("page_size"), 16_384);
    let options: String = conn
        .prepare("PRAGMA compile_options")
        .unwrap()
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap()
        .map(|option| option.unwrap() + " ")
        .collect();
    assert!(!options.contains("NO_SYNC"), "{options}");
}

/// Cursors, counters and rows have no checksum of their own: they vouch for each other.
#[test]
fn a_journal_whose_accounts_disagree_is_refused() {
    for damage in [
        "UPDATE sinks SET cursor = cursor + 1",
        "UPDATE sinks SET start = start + 1",
        "UPDATE sinks SET delivered = delivered + 1, parked = parked - 1",
        "UPDATE exceptions SET state = 5",
        "DELETE FROM exceptions",
        "UPDATE keys SET first_seq = first_seq + 4096",
        "UPDATE meta SET value = value + 1 WHERE name = 'keys.through'",
        "UPDATE meta SET value = value - 1 WHERE name = 'keys.through'",
        "UPDATE meta SET value = -4611686018427387904 WHERE name = 'keys.through'",
        "DELETE FROM keys WHERE first_seq > 1",
        "DELETE FROM events WHERE seq = 4",
    ] {
        let mut bench = Bench::new();
        for half in [0..2, 2..4] {
            bench.append(half.map(|n| append(&n.to_string(), "{}")).collect());
            bench.save_keys();
        }
        bench.settle(Settlement { cursor: 2, set: vec![row(1, ExceptionState::Parked)], ..Settlement::default() });
        bench.restart();
        bench.engine().conn.execute(damage, []).unwrap();
        let path = bench.path();
        drop(bench.engine.take());
        let error = SqliteEngine::open(&path).err();
        assert!(
            matches!(error, Some(OpenError::Store { source: JournalError::Inconsistent(_), .. })),
            "{damage}: {error:?}"
        );
    }
}

/// One bit in the page that leads to the pages of events, in the number of the last of them: whoever asks for the last
/// event is led to an earlier one, and the positions of those behind it would be given once more.
#[test]
fn a_journal_that_hides_its_last_events_is_refused() {
    let mut bench = Bench::new();
    let body = "x".repeat(6_000);
    bench.append((0..20).map(|n| append(&n.to_string(), &body)).collect());
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'events'";
    let root: i64 = bench.engine().conn.query_row(root, [], |row| row.get(0)).unwrap();
    let end = usize::try_from(root).unwrap() * 16_384;
    let path = bench.path();
    Box::new(bench.engine.take().unwrap()).close();
    let mut file = std::fs::read(&path).unwrap();
    let page = &mut file[end - 16_384..end];
    assert_eq!(page[0], 5, "the page does not lead to others");
    let first_cell = usize::from(u16::from_be_bytes([page[12], page[13]]));
    let first_child = page[first_cell..first_cell + 4].to_vec();
    page[8..12].copy_from_slice(&first_child);
    std::fs::write(&path, &file).unwrap();

    let error = SqliteEngine::open(&path).err();

    assert!(
        matches!(error, Some(OpenError::Store { source: JournalError::Inconsistent(_), .. })),
        "events are hidden, and nobody is told: {error:?}"
    );
}

/// What the limit of the journal is compared with: a file does not shrink, and its free pages take what comes next.
#[test]
fn pages_that_are_free_again_do_not_count() {
    let mut bench = Bench::new();
    let body = "x".repeat(100_000);
    let before = bench.engine().used_bytes().unwrap();
    bench.append((0..10).map(|n| append(&n.to_string(), &body)).collect());
    let full = bench.engine().used_bytes().unwrap();
    bench.settle(Settlement { cursor: 10, ..Settlement::default() });

    let delivered_before = Timestamp::from_millis(bench.now + 1);
    bench.purge(Purge { delivered_before, ..nothing_to_purge() });

    let left = bench.engine().used_bytes().unwrap();
    assert!(full >= before + 1_000_000 && left < before + 100_000, "{before}, {full}, {left}");
}

/// A disk that takes what is copied from the log and then fails to write it. SQLite counts it as copied; the
/// store is opened such that it is copied again.
#[test]
fn what_was_copied_and_then_lost_is_copied_again() {
    let mut bench = Bench::new();
    let body = "x".repeat(2_000);
    bench.append((0..50).map(|n| append(&n.to_string(), &body)).collect());
    // Somebody who reads keeps a pass from coming to the end of the log.
    let other = Connection::open(bench.path()).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
    bench.append((50..100).map(|n| append(&n.to_string(), &body)).collect());
    let main_file = std::fs::read(bench.path()).unwrap();
    let (log, copied): (i64, i64) = bench
        .engine()
        .conn
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(1)?, row.get(2)?)))
        .unwrap();
    assert!(0 < copied && copied < log, "{copied} of {log}");
    std::fs::write(bench.path(), main_file).unwrap();

    bench.engine().lost = true;
    let refused = |bench: &mut Bench, alone| bench.engine().reopen(alone).unwrap_err().to_string();
    assert!(refused(&mut bench, false).contains("readers"));
    assert!(refused(&mut bench, true).contains("another program"), "the log's index is theirs");
    drop(other);
    bench.engine().reopen(true).unwrap();

    let everything = |bench: &Bench| bench.reader().events_after(SINK, 0, 1_000, u64::MAX).unwrap().0.len();
    let said: String = bench.engine().conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!((said.as_str(), everything(&bench)), ("ok", 100));
    assert!(bench.append(vec![append("0", &body)])[0].duplicate);
    bench.restart();
    assert_eq!(everything(&bench), 100);
}

/// The same at a stop: the log stays, and the next start copies it.
#[test]
fn what_was_copied_and_then_lost_before_a_stop_is_copied_at_the_next_start() {
    let mut bench = Bench::new();
    let body = "x".repeat(2_000);
    bench.append((0..50).map(|n| append(&n.to_string(), &body)).collect());
    let main_file = std::fs::read(bench.path()).unwrap();
    bench.engine().conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    std::fs::write(bench.path(), main_file).unwrap();
    let mut engine = bench.engine.take().unwrap();
    engine.lost = true;
    Box::new(engine).close();

    bench.engine = Some(SqliteEngine::open_bounded(&bench.path(), bench.bounds).unwrap());
    assert_eq!(bench.reader().events_after(SINK, 0, 1_000, u64::MAX).unwrap().0.len(), 50);
}

/// What is damaged costs what rests on it, and keeps nobody else from being committed.
#[test]
fn a_damaged_part_of_the_store_fails_its_own_part_of_a_commit() {
    let mut bench = Bench::new();
    bench.append((0..20).map(|n| append(&n.to_string(), &"x".repeat(40_000))).collect());
    bench.settle(Settlement { cursor: 10, set: vec![row(3, ExceptionState::Retrying)], ..Settlement::default() });
    let conn = &bench.engine.as_ref().unwrap().conn;
    conn.execute("UPDATE exceptions SET state = 77", []).unwrap();
    let settlement = |cursor, delivered: &[Seq]| Settlement {
        sink: SINK.to_owned(),
        cursor,
        delivered: delivered.to_vec(),
        ..Settlement::default()
    };
    let committed = bench.commit(Commit {
        appends: vec![append("new", "{}")],
        settlements: vec![settlement(15, &[3]), settlement(12, &[])],
        ..Commit::default()
    });
    assert!(!committed.verdicts[0].duplicate);
    assert_eq!(committed.refused.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0]);
    let sinks = bench.reader().statistics().unwrap().sinks;
    assert_eq!((sinks[0].cursor, sinks[0].delivered), (12, 11), "nothing of the first, all of the second");
}

/// What takes the place of events is stored if their settlement is recorded, and only then: otherwise both would count.
#[test]
fn what_takes_the_place_of_events_is_not_stored_where_they_cannot_be_settled() {
    let mut bench = Bench::new();
    bench.append((0..20).map(|n| append(&n.to_string(), "{}")).collect());
    bench.settle(Settlement { cursor: 10, set: vec![row(3, ExceptionState::Retrying)], ..Settlement::default() });
    bench.engine.as_ref().unwrap().conn.execute("UPDATE exceptions SET state = 77", []).unwrap();
    let settlement = |cursor, delivered: &[Seq]| Settlement {
        sink: SINK.to_owned(),
        cursor,
        delivered: delivered.to_vec(),
        ..Settlement::default()
    };

    let committed = bench.commit(Commit {
        appends: ["another", "sum", "and its rest", "sum of others"].map(|key| append(key, "{}")).into(),
        settlements: vec![settlement(12, &[]), settlement(15, &[3]), settlement(14, &[])],
        instead: vec![(1..3, 1), (3..4, 2)],
        ..Commit::default()
    });

    assert_eq!(committed.refused.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1]);
    let stored: Vec<bool> = committed.verdicts.iter().map(Verdict::is_stored).collect();
    assert_eq!(stored, [true, false, false, true]);
    assert_eq!((committed.last_seq, committed.verdicts[3].seq), (22, 22));
    assert_eq!(bench.reader().sink(SINK).unwrap().cursor, 14);
    // The damage is mended: the same sum is no duplicate of one that was never stored.
    bench.engine.as_ref().unwrap().conn.execute("UPDATE exceptions SET state = 1", []).unwrap();
    let again = bench.commit(Commit {
        appends: vec![append("sum", "{}")],
        settlements: vec![settlement(15, &[3])],
        instead: vec![(0..1, 0)],
        ..Commit::default()
    });
    assert!(again.refused.is_empty() && again.verdicts[0].is_stored());
}

/// A page that is none: events before it are served, the one that cannot be read is named, and purging goes on
/// after it.
#[test]
fn a_damaged_page_is_passed_by() {
    let mut bench = Bench::new();
    bench.append((1..=20).map(|n| append(&n.to_string(), &"x".repeat(40_000))).collect());
    let conn = &bench.engine.as_ref().unwrap().conn;
    schema::checkpoint(conn).unwrap();
    // Each event begins on a page of its own or shares one with few others; its body goes on elsewhere.
    let page: u32 =
        conn.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'events'", [], |row| row.get(0)).unwrap();
    assert!(page > 1);
    let path = bench.path();
    drop(bench.engine.take());
    let mut file = std::fs::read(&path).unwrap();
    let leaf = file
        .chunks(16_384)
        .rposition(|page| page[0] == 13 && page.windows(9).any(|text| text == b"invoice/9"))
        .unwrap();
    file[leaf * 16_384..][..16_384].fill(0xab);
    std::fs::write(&path, file).unwrap();
    bench.engine = Some(SqliteEngine::open_bounded(&path, bench.bounds).unwrap());

    let mut reader = bench.reader();
    let (mut after, mut read, mut passed_by) = (0, 0, 0);
    while after < 20 {
        match reader.events_after(SINK, after, 100, u64::MAX) {
            Ok((events, _)) => {
                read += events.len();
                after = events.last().unwrap().seq;
            }
            Err(JournalError::Damaged { seq, .. }) => {
                assert_eq!(seq, after + 1);
                passed_by += 1;
                after = seq;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(passed_by > 0 && read + passed_by == 20, "{read} read, {passed_by} passed by");

    bench.settle(Settlement { cursor: 20, ..Settlement::default() });
    let everything = Purge { delivered_before: Timestamp::from_millis(bench.now + 1), ..nothing_to_purge() };
    let mut steps = 0;
    while bench.reader().statistics().map(|statistics| statistics.oldest_seq).ok() != Some(None) && steps < 40 {
        let now = Timestamp::from_millis(bench.now);
        let mut commit = Commit { at: now, age: now, purge: Some(everything), ..Commit::default() };
        bench.engine().commit(&mut commit).unwrap();
        assert!(!bench.append(vec![append(&format!("new-{steps}"), "{}")])[0].duplicate, "a webhook meanwhile");
        steps += 1;
    }
}
