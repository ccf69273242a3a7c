//! One record a key, for as long as the window; events that are stored instead of others.

use kit::clock::Timestamp;
use kit_journal::engine::{Commit, Purge, Settlement, Verdict};
use kit_journal::{Dedupe, Seq};

use crate::bench::*;

crate::of_every_engine!(
    a_repeated_event_is_the_same_event_also_within_a_commit_and_across_a_restart,
    another_body_under_a_known_key_is_a_new_event_that_says_so,
    where_the_key_alone_identifies_the_first_arrival_wins,
    only_duplicates_cost_no_sync,
    thousands_of_keys_are_known_also_after_a_restart,
    keys_are_forgotten_after_the_window_and_not_before,
    a_key_is_known_in_all_its_scopes,
    what_takes_the_place_of_others_is_stored_only_with_their_settlement,
);

fn a_repeated_event_is_the_same_event_also_within_a_commit_and_across_a_restart(mut bench: Bench) {
    let both = bench.append(vec![append("k", "{}"), append("k", "{}")]);

    assert!(!both[0].duplicate && both[1].duplicate);
    assert_eq!((both[0].id, both[0].seq), (both[1].id, both[1].seq));

    bench.restart();
    let again = bench.append(vec![append("k", "{}")]);
    assert!(again[0].duplicate);
    assert_eq!((again[0].id, again[0].seq), (both[0].id, 1));
    assert_eq!(bench.reader().find(both[0].id).unwrap(), Some(1));
}

fn another_body_under_a_known_key_is_a_new_event_that_says_so(mut bench: Bench) {
    bench.append(vec![append("k", "{}")]);

    let other = bench.append(vec![append("k", "[]")]);
    assert!(other[0].conflict && !other[0].duplicate);
    let repeated = bench.append(vec![append("k", "[]"), append("k", "{}")]);
    assert!(repeated[0].duplicate && repeated[1].duplicate);

    let stored = bench.reader().event(other[0].seq).unwrap().unwrap();
    assert!(stored.head.conflict);
    assert!(!bench.reader().event(1).unwrap().unwrap().head.conflict);
}

fn where_the_key_alone_identifies_the_first_arrival_wins(mut bench: Bench) {
    let first = bench.append(vec![append_from("authentik", "pk", "{}", Dedupe::Key)]);
    let second = bench.append(vec![append_from("authentik", "pk", "[]", Dedupe::Key)]);
    assert!(second[0].duplicate);
    assert_eq!(second[0].id, first[0].id);
    assert!(!bench.append(vec![append_from("other", "pk", "[]", Dedupe::Key)])[0].duplicate, "sources are apart");
}

fn only_duplicates_cost_no_sync(mut bench: Bench) {
    bench.append(vec![append("k", "{}")]);
    let committed = bench.commit(Commit { appends: vec![append("k", "{}")], ..Commit::default() });
    assert!(!committed.synced);
    assert_eq!(committed.last_seq, 1);
}

fn thousands_of_keys_are_known_also_after_a_restart(mut bench: Bench) {
    for batch in 0..6 {
        let appends = (0..500).map(|n| append(&format!("{batch}-{n}"), "{}")).collect();
        assert!(bench.append(appends).iter().all(Verdict::is_stored));
    }
    for restarted in [false, true] {
        if restarted {
            bench.restart();
        }
        assert_eq!(bench.engine().last_seq(), 3_000 + Seq::from(restarted) * 2);
        for key in ["0-0", "5-499"] {
            assert!(bench.append(vec![append(key, "{}")])[0].duplicate, "{key}, restarted: {restarted}");
            assert!(bench.append(vec![append(key, if restarted { "[1]" } else { "[2]" })])[0].conflict, "{key}");
        }
    }
}

fn keys_are_forgotten_after_the_window_and_not_before(mut bench: Bench) {
    bench.append((0..20).map(|n| append(&format!("old-{n}"), "{}")).collect());
    bench.purge(nothing_to_purge());
    bench.now += 90 * 86_400_000;
    bench.append(vec![append("young", "{}")]);
    bench.restart();
    let plan = |keys_before| Purge { keys_before: Timestamp::from_millis(keys_before), ..nothing_to_purge() };

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

fn a_key_is_known_in_all_its_scopes(mut bench: Bench) {
    bench.append((0..50).map(|n| usage(&format!("s-{n}"), "the-hour", "1")).collect());
    bench.append(vec![usage("s-1", "another-hour", "1")]);

    let known = bench.engine().known("usage", "the-hour").unwrap();
    assert_eq!(known.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    assert!(bench.engine().known("usage", "no-hour").unwrap().is_empty());
    assert!(bench.engine().known("other", "the-hour").unwrap().is_empty());
}

fn what_takes_the_place_of_others_is_stored_only_with_their_settlement(mut bench: Bench) {
    bench.append((0..3).map(|n| usage("s", &n.to_string(), "1")).collect());
    let instead = |bench: &mut Bench, sink: &str, key: &str, cursor| {
        let settlements = vec![Settlement { sink: sink.to_owned(), cursor, ..Settlement::default() }];
        let (appends, instead) = (vec![usage("s", key, "3"), append(key, "{}")], vec![(0..1, 0)]);
        bench.commit(Commit { appends, instead, settlements, ..Commit::default() })
    };

    let committed = instead(&mut bench, "nobody", "refused", 3);
    assert!(committed.verdicts[0].withheld && committed.verdicts[1].is_stored(), "{committed:?}");
    assert_eq!(committed.refused.len(), 1);
    assert_eq!((committed.last_seq, bench.reader().sink(SINK).unwrap().cursor), (4, 0));

    let committed = instead(&mut bench, SINK, "sum", 3);
    assert!(committed.verdicts[0].is_stored() && committed.refused.is_empty());
    assert_eq!((committed.last_seq, bench.reader().sink(SINK).unwrap().cursor), (6, 3));
}
