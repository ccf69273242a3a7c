//! Keys in bounded memory and on disk: what is special to this engine. The promises themselves are asked of every engine in
//! `tests/conformance`.

use super::*;

/// Ten thousand keys through a memory of a hundred: everything moves to runs on disk, filters are
/// folded down, and still every key is known and no other is.
#[test]
fn keys_beyond_the_memory_are_found_on_disk_also_after_a_restart() {
    let bounds = DedupeBounds { recent_keys: 100, run_keys: 40, filter_bytes: 600 };
    let mut bench = Bench::bounded(bounds);
    for batch in 0..100 {
        let appends = (0..100).map(|n| append(&format!("{batch}-{n}"), "{}")).collect();
        assert!(bench.append(appends).iter().all(|verdict| !verdict.duplicate));
        bench.idle();
        while bench.engine().dedupe.wants_run(false) {
            bench.idle();
        }
    }
    let (memory, keys) = bench.engine().dedupe_memory();
    assert_eq!(keys, 10_000);
    assert!(memory < 100 * 64 + 600 + 4096, "{memory}");

    for restarted in [false, true] {
        if restarted {
            bench.restart();
        }
        for key in ["0-0", "0-99", "50-50", "99-0", "99-99"] {
            assert!(bench.append(vec![append(key, "{}")])[0].duplicate, "{key}, restarted: {restarted}");
            let conflict = bench.append(vec![append(key, if restarted { "[1]" } else { "[2]" })]);
            assert!(conflict[0].conflict, "{key}");
        }
        assert!(!bench.append(vec![append(&format!("new-{restarted}"), "{}")])[0].duplicate);
    }
    let id = append("0-0", "{}").head.id;
    assert_eq!(bench.reader().find(id).unwrap(), Some(1), "an event is found by its id wherever its key lies");
}

/// Blocks on disk are found by their first key: all events of a key lie in one, also where they are more than a block has.
#[test]
fn a_key_with_more_events_than_a_block_is_known_with_all_of_them() {
    let mut bench = Bench::bounded(DedupeBounds { recent_keys: 100, run_keys: 600, filter_bytes: 1024 });
    let body = |n: usize| format!("[{n}]");
    let others = (0..200).map(|n| append(&format!("other-{n}"), "{}"));
    bench.append(others.chain((0..300).map(|n| append("same", &body(n)))).collect());
    bench.idle();
    let runs = "SELECT count(*) FROM key_runs";
    assert_eq!(bench.engine().conn.query_row(runs, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    for restarted in [false, true] {
        if restarted {
            bench.restart();
        }
        for n in [0, 1, 150, 299] {
            let again = bench.append(vec![append("same", &body(n))])[0];
            assert_eq!((again.duplicate, again.seq), (true, Seq::try_from(n).unwrap() + 201), "body {n}");
        }
    }
}

#[test]
fn keys_are_forgotten_after_the_window_and_not_before() {
    for bounds in [DedupeBounds::default(), DedupeBounds { recent_keys: 10, run_keys: 5, filter_bytes: 1024 }] {
        let mut bench = Bench::bounded(bounds);
        bench.append((0..20).map(|n| append(&format!("old-{n}"), "{}")).collect());
        // A daemon purges every few seconds; a key is as old as its row.
        bench.save_keys();
        bench.now += 90 * 86_400_000;
        bench.append(vec![append("young", "{}")]);
        // What is saved at a quiet moment right after an opening is as old as what a commit saves.
        bench.restart();
        bench.idle();
        let plan = |keys_before| Purge {
            delivered_before: Timestamp::from_millis(0),
            max_bytes: u64::MAX,
            keys_before: Timestamp::from_millis(keys_before),
            audit_before: Timestamp::from_millis(0),
            limit: 512,
        };

        let now = bench.now;
        for _ in 0..10 {
            bench.purge(plan(now - 91 * 86_400_000));
        }
        assert!(bench.append(vec![append("old-3", "{}")])[0].duplicate);
        for _ in 0..10 {
            bench.purge(plan(now - 1));
        }
        assert_eq!(bench.engine().dedupe_memory().1, 1, "what is forgotten takes no memory");
        assert!(bench.append(vec![append("young", "{}")])[0].duplicate);
        assert!(!bench.append(vec![append("old-3", "{}")])[0].duplicate);
    }
}

/// The newest keys have no row of their own: their events tell them.
#[test]
fn a_key_is_known_before_it_has_a_row_and_after() {
    let mut bench = Bench::new();
    let ids: Vec<_> = (0..3).map(|n| bench.append(vec![append(&n.to_string(), "{}")])[0].id).collect();
    assert_eq!(bench.rows_of_keys(), (0, 0));
    for saved in [false, true] {
        for restarted in [false, true] {
            if restarted {
                bench.restart();
            }
            for (n, id) in ids.iter().enumerate() {
                let again = bench.append(vec![append(&n.to_string(), "{}")]);
                assert!(again[0].duplicate && again[0].id == *id, "saved: {saved}, restarted: {restarted}");
                assert_eq!(bench.reader().find(*id).unwrap(), Some(again[0].seq));
            }
            assert_eq!(bench.engine().dedupe_memory().1, 3);
            assert_eq!(bench.engine().last_seq(), 3);
        }
        bench.save_keys();
        assert_eq!(bench.rows_of_keys(), (1, 3));
    }
}

#[test]
fn rows_are_written_for_some_hundred_keys_at_once() {
    let mut bench = Bench::new();
    for n in 0..2_000 {
        bench.append(vec![append(&n.to_string(), "{}")]);
    }
    assert_eq!(bench.rows_of_keys(), (4, 1_920));
    bench.append((2_000..3_000).map(|n| append(&n.to_string(), "{}")).collect());
    assert_eq!(bench.rows_of_keys(), (7, 3_000), "a group that is larger than a row takes several");
    bench.restart();
    assert_eq!(bench.engine().dedupe_memory().1, 3_000);
}

/// A commit that fails leaves the keys without rows as they were.
#[test]
fn rows_of_a_failed_commit_are_written_again() {
    let mut bench = Bench::new();
    bench.append(vec![append("a", "{}")]);
    let refuse = "CREATE TRIGGER t BEFORE INSERT ON keys BEGIN SELECT raise(ABORT, 'no'); END";
    bench.engine().conn.execute_batch(refuse).unwrap();
    let mut commit = Commit { appends: vec![append("b", "{}")], purge: Some(nothing_to_purge()), ..Commit::default() };
    assert!(bench.engine().commit(&mut commit).is_err());
    bench.engine().conn.execute_batch("ROLLBACK; DROP TRIGGER t").unwrap();
    bench.engine().reopen(true).unwrap();

    assert!(!bench.append(vec![append("b", "{}")])[0].duplicate);
    bench.save_keys();
    assert_eq!(bench.rows_of_keys(), (1, 2));
    for key in ["a", "b"] {
        assert!(bench.append(vec![append(key, "{}")])[0].duplicate, "{key}");
    }
}

/// A disk that is full fails a commit behind the rows of keys that it has written: they are not there, and nothing is read
/// back after such a failure.
#[test]
fn rows_of_a_commit_without_room_are_written_again() {
    let mut bench = Bench::new();
    bench.append(vec![append("a", "{}")]);
    bench.engine().conn.execute_batch("PRAGMA max_page_count = 1").unwrap();
    let values = vec![("large".to_owned(), vec![7; 1 << 20])];
    let mut commit = Commit { values, purge: Some(nothing_to_purge()), ..Commit::default() };
    let error = bench.engine().commit(&mut commit).err().unwrap();
    assert!(error.is_full(), "{error}");
    bench.engine().reopen(true).unwrap();

    bench.append(vec![append("b", "{}")]);

    for key in ["a", "b"] {
        assert!(bench.append(vec![append(key, "{}")])[0].duplicate, "{key}");
    }
    bench.save_keys();
    assert_eq!(bench.rows_of_keys().1, 2);
}

/// A filter says which keys cannot be in a run. One that is damaged says it of none.
#[test]
fn a_filter_of_no_possible_size_keeps_no_key_back() {
    let mut bench = Bench::bounded(DedupeBounds { recent_keys: 100, run_keys: 600, filter_bytes: 1024 });
    bench.append((0..300).map(|n| append(&n.to_string(), "{}")).collect());
    bench.idle();
    assert_eq!(bench.engine().conn.execute("UPDATE key_runs SET filter = zeroblob(3)", []).unwrap(), 1);
    bench.restart();
    for key in ["0", "150", "299"] {
        assert!(bench.append(vec![append(key, "{}")])[0].duplicate, "{key}");
    }
}

/// What a damaged head said nobody knows; that its key is forgotten must not cost the others theirs.
#[test]
fn a_damaged_event_without_a_row_costs_its_own_key_only() {
    let mut bench = Bench::new();
    bench.append((0..3).map(|n| append(&n.to_string(), "{}")).collect());
    bench.engine().conn.execute("UPDATE events SET head = 'x' WHERE seq = 2", []).unwrap();
    bench.restart();
    let again = bench.append(["0", "1", "2"].map(|key| append(key, "{}")).into());
    assert_eq!(again.iter().map(|verdict| verdict.duplicate).collect::<Vec<_>>(), [true, false, true]);
    bench.save_keys();
    bench.restart();
    assert_eq!(bench.rows_of_keys(), (2, 3), "positions without a key begin another row");
    assert!(bench.append(["0", "1", "2"].map(|key| append(key, "{}")).into()).iter().all(|verdict| verdict.duplicate));
}

#[test]
fn delivered_events_go_by_the_journals_time_also_when_their_keys_have_left_memory() {
    let mut bench = Bench::bounded(DedupeBounds { recent_keys: 10, run_keys: 5, filter_bytes: 1024 });
    let begin = bench.now;
    for n in 0..30_i64 {
        let age = Timestamp::from_millis(begin + n * 1000);
        let at = Timestamp::from_millis(if n % 2 == 0 { 0 } else { i64::MAX / 2 });
        let appends = vec![append(&n.to_string(), "{}")];
        let purge = Some(nothing_to_purge());
        bench.engine().commit(&mut Commit { at, age, appends, purge, ..Commit::default() }).unwrap();
        bench.engine().idle(age).unwrap();
    }
    bench.settle(Settlement { cursor: 30, ..Settlement::default() });
    let mut oldest = |before: i64, keys_before: i64| {
        let plan = Purge {
            delivered_before: Timestamp::from_millis(before),
            max_bytes: u64::MAX,
            keys_before: Timestamp::from_millis(keys_before),
            audit_before: Timestamp::from_millis(0),
            limit: 512,
        };
        bench.purge(plan);
        bench.reader().statistics().unwrap().oldest_seq
    };

    assert_eq!(oldest(begin, 0), Some(1));
    assert_eq!(oldest(begin + 24_500, 0), Some(26));
    assert_eq!(oldest(begin + 24_000, 0), Some(26), "nothing comes back");
    // Their keys are gone: then they are older than any that is left.
    for _ in 0..10 {
        oldest(begin, begin + 27_500);
    }
    assert!(oldest(begin, 0).is_none_or(|seq| seq > 26));
    assert_eq!(oldest(begin + 30_000, 0), None);
}

/// Where nothing is left but keys, in memory or on disk, they alone tell which positions were given.
#[test]
fn positions_go_on_when_only_keys_are_left() {
    for bounds in [DedupeBounds::default(), DedupeBounds { recent_keys: 10, run_keys: 20, filter_bytes: 1024 }] {
        let mut bench = Bench::bounded(bounds);
        bench.append((0..20).map(|n| append(&n.to_string(), "{}")).collect());
        let set = vec![row(3, ExceptionState::Parked)];
        bench.settle(Settlement { cursor: 20, set, ..Settlement::default() });
        bench.act(Action::Drop { sink: SINK.to_owned(), seqs: vec![3], reason: "not wanted".to_owned() });
        let delivered_before = Timestamp::from_millis(bench.now + 1);
        bench.purge(Purge { delivered_before, ..nothing_to_purge() });
        bench.idle();
        let rows = "SELECT count(*) FROM exceptions";
        let rows: i64 = bench.engine().conn.query_row(rows, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0, "a row goes with its event");
        for _ in 0..3 {
            bench.act(Action::Forget { sink: SINK.to_owned(), lease: 0, rows: 10 });
        }
        let left = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM sinks)";
        assert_eq!(bench.engine().conn.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
        bench.restart();

        assert_eq!(bench.append(vec![append("new", "{}")])[0].seq, 21);
        assert!(bench.append(vec![append("7", "{}")])[0].duplicate);
    }
}

/// An hourly report of every subscription has one transaction id: neither memory nor disk is gone through for each.
#[test]
fn one_key_in_thousands_of_scopes_is_found_without_looking_at_the_others() {
    let bounds = DedupeBounds { recent_keys: 4_000, run_keys: 1_500, filter_bytes: 64 << 10 };
    let mut bench = Bench::bounded(bounds);
    let usage = |n: usize, content: &str| {
        let (subscription, digest) = (format!("s-{n}"), BodyDigest::of(content.as_bytes()));
        let id = EventId::derive_scoped("usage", "the-hour", &subscription, &digest);
        let head = EventHead::new(id, "usage", "usage.event", &subscription, "the-hour");
        let head = EventHead { scope: Some(subscription), ..head };
        Append::new(NewEvent { head, body: content.as_bytes().to_vec(), dedupe: Dedupe::Key }, digest)
    };
    for batch in 0..60 {
        let verdicts = bench.append((0..100).map(|n| usage(batch * 100 + n, "1")).collect());
        assert!(verdicts.iter().all(Verdict::is_stored));
        bench.idle();
    }
    for restarted in [false, true] {
        if restarted {
            bench.restart();
        }
        for n in [0, 1, 1_499, 1_500, 3_000, 5_999] {
            let verdict = bench.append(vec![usage(n, "1")])[0];
            assert_eq!((verdict.duplicate, verdict.seq), (true, Seq::try_from(n).unwrap() + 1), "{n}");
            let other = bench.append(vec![usage(n, "2")])[0];
            assert!(other.duplicate && other.id == usage(n, "1").head.id);
        }
        assert_eq!(bench.engine().known("usage", "the-hour").unwrap().len(), 6_000);
        assert!(bench.engine().known("usage", "another-hour").unwrap().is_empty());
    }
}
