//! One record a key, for as long as the window, in bounded memory.

use super::*;

#[test]
fn a_repeated_event_is_the_same_event_also_within_a_commit_and_across_a_restart() {
    let mut bench = Bench::new();
    let both = bench.append(vec![append("k", "{}"), append("k", "{}")]);

    assert!(!both[0].duplicate && both[1].duplicate);
    assert_eq!((both[0].id, both[0].seq), (both[1].id, both[1].seq));

    bench.restart();
    let again = bench.append(vec![append("k", "{}")]);
    assert!(again[0].duplicate);
    assert_eq!(again[0].id, both[0].id);
}

#[test]
fn another_body_under_a_known_key_is_a_new_event_that_says_so() {
    let mut bench = Bench::new();
    bench.append(vec![append("k", "{}")]);

    let other = bench.append(vec![append("k", "[]")]);
    assert!(other[0].conflict && !other[0].duplicate);
    let repeated = bench.append(vec![append("k", "[]"), append("k", "{}")]);
    assert!(repeated[0].duplicate && repeated[1].duplicate);

    let stored = bench.reader().event(other[0].seq).unwrap().unwrap();
    assert!(stored.head.conflict);
    assert!(!bench.reader().event(1).unwrap().unwrap().head.conflict);
}

#[test]
fn where_the_key_alone_identifies_the_first_arrival_wins() {
    let mut bench = Bench::new();
    let first = bench.append(vec![append_from("authentik", "pk", "{}", Dedupe::Key)]);
    let second = bench.append(vec![append_from("authentik", "pk", "[]", Dedupe::Key)]);
    assert!(second[0].duplicate);
    assert_eq!(second[0].id, first[0].id);
    assert!(!bench.append(vec![append_from("other", "pk", "[]", Dedupe::Key)])[0].duplicate, "sources are apart");
}

#[test]
fn only_duplicates_cost_no_sync() {
    let mut bench = Bench::new();
    bench.append(vec![append("k", "{}")]);
    let committed = bench.commit(Commit { appends: vec![append("k", "{}")], ..Commit::default() });
    assert!(!committed.synced);
    assert_eq!(committed.last_seq, 1);
}

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
