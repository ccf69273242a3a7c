//! Keys that are unique within a scope, events that are stored together or not at all, and events that take the
//! place of others.

use kit::clock::Timestamp;
use kit_journal::engine::{Action, Commit, ExceptionState, Settlement, Verdict};
use kit_journal::{DeliveryState, Seq};

use crate::bench::*;

crate::of_every_engine!(
    the_same_key_in_another_scope_is_another_event,
    other_content_under_a_known_key_is_told_by_the_first_ones_id,
    nothing_of_a_group_is_stored_with_a_contradiction_in_it,
    a_group_says_nothing_about_those_beside_it,
    what_was_delivered_can_be_parked_afterwards_and_delivered_again,
    values_are_found_by_how_their_names_begin,
    what_is_remembered_with_a_settlement_is_there_when_it_is,
    what_is_remembered_with_events_is_there_when_they_are,
);

/// The bodies that are stored, in their order.
fn bodies(bench: &Bench) -> Vec<String> {
    let mut reader = bench.reader();
    let last = i64::try_from(reader.statistics().unwrap().accepted).unwrap();
    let events = (1..=last).filter_map(|seq| reader.event(seq).unwrap());
    events.map(|event| String::from_utf8(event.body.to_vec()).unwrap()).collect()
}

fn the_same_key_in_another_scope_is_another_event(mut bench: Bench) {
    for restarted in [false, true] {
        if restarted {
            bench.restart();
        }
        for (subscription, content) in [("a", "1"), ("b", "2"), ("c", "1")] {
            let verdict = bench.append(vec![usage(subscription, "t-1", content)])[0];
            assert_eq!((verdict.duplicate, verdict.conflict), (restarted, false), "{subscription}");
            assert_eq!(verdict.id, usage(subscription, "t-1", content).head().id);
        }
    }
    assert_eq!(bodies(&bench), ["1", "2", "1"]);
    let known = bench.engine().known("usage", "t-1").unwrap();
    assert_eq!(known.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), [1, 2, 3], "all are found by their key");
    assert!(bench.engine().known("usage", "t-2").unwrap().is_empty());
}

fn other_content_under_a_known_key_is_told_by_the_first_ones_id(mut bench: Bench) {
    let first = bench.append(vec![usage("a", "t-1", "1")])[0];

    let verdict = bench.append(vec![usage("a", "t-1", "2")])[0];

    assert!(verdict.duplicate && !verdict.conflict);
    assert_eq!((verdict.id, verdict.seq), (first.id, first.seq));
    assert_ne!(verdict.id, usage("a", "t-1", "2").head().id);
    assert_eq!(bodies(&bench), ["1"]);
}

fn nothing_of_a_group_is_stored_with_a_contradiction_in_it(mut bench: Bench) {
    bench.append(vec![usage("a", "t-1", "1")]);

    for (group, expected) in [
        // (duplicate, withheld) of each: with the journal …
        (
            vec![("a", "t-2", "2"), ("a", "t-1", "other"), ("a", "t-3", "3")],
            [(false, true), (true, false), (false, true)],
        ),
        (
            vec![("a", "t-1", "1"), ("a", "t-1", "other"), ("b", "t-1", "3")],
            [(true, false), (true, false), (false, true)],
        ),
        // … and within the group.
        (vec![("a", "t-2", "2"), ("a", "t-4", "4"), ("a", "t-2", "5")], [(false, true), (false, true), (true, true)]),
    ] {
        let appends = group.iter().map(|(subscription, key, content)| usage(subscription, key, content)).collect();
        let verdicts = bench.append_together(appends);
        let seen: Vec<_> = verdicts.iter().map(|verdict| (verdict.duplicate, verdict.withheld)).collect();
        assert_eq!(seen, expected, "{group:?}");
        assert!(verdicts.iter().all(|verdict| !verdict.is_stored()));
    }
    assert_eq!(bodies(&bench), ["1"]);
    assert_eq!(bench.engine().last_seq(), 1);

    // What was withheld is new the next time, and what is the same is the same.
    let group = vec![usage("a", "t-2", "2"), usage("a", "t-1", "1"), usage("a", "t-2", "2"), usage("b", "t-2", "3")];
    let verdicts = bench.append_together(group);
    let seen: Vec<_> = verdicts.iter().map(|verdict| (verdict.seq, verdict.duplicate)).collect();
    assert_eq!(seen, [(2, false), (1, true), (2, true), (3, false)]);
    assert_eq!(bodies(&bench), ["1", "2", "3"]);
}

fn a_group_says_nothing_about_those_beside_it(mut bench: Bench) {
    bench.append(vec![usage("a", "t-1", "1")]);
    let appends = vec![
        usage("a", "before", "b"),
        usage("a", "t-2", "2"),
        usage("a", "t-1", "other"),
        usage("a", "t-5", "5"),
        usage("a", "t-6", "6"),
        usage("a", "after", "a"),
    ];

    let committed = bench.commit(Commit { appends, together: vec![1..3, 3..5], ..Commit::default() });

    let stored: Vec<bool> = committed.verdicts.iter().map(Verdict::is_stored).collect();
    assert_eq!(stored, [true, false, false, true, true, true]);
    assert_eq!(bodies(&bench), ["1", "b", "5", "6", "a"]);
    assert_eq!(committed.last_seq, 5);
}

fn what_was_delivered_can_be_parked_afterwards_and_delivered_again(mut bench: Bench) {
    bench.append((0..5).map(|n| usage("a", &n.to_string(), "1")).collect());
    bench.settle(Settlement {
        cursor: 4,
        set: vec![row(2, ExceptionState::Retrying), row(3, ExceptionState::Dropped)],
        ..Settlement::default()
    });
    let park = |seqs: Vec<Seq>| Action::Park { sink: SINK.to_owned(), seqs, reason: "invalid_code".to_owned() };

    let outcome = bench.act(park(vec![1, 2, 3, 5, 9]));

    // One that is being tried, one that was dropped, and one that is not there.
    assert_eq!((outcome.changed, outcome.unchanged, outcome.unavailable), (2, 2, 1));
    assert_eq!(bench.act(park(vec![1, 5])).changed, 0, "once");
    let found = bench.reader().found(1).unwrap().unwrap();
    assert_eq!(found.deliveries[SINK].row.as_ref().unwrap().reason, "invalid_code");
    for (seq, state) in [(2, DeliveryState::Retrying), (3, DeliveryState::Dropped), (5, DeliveryState::Parked)] {
        assert_eq!(bench.state(seq), state, "{seq}");
    }
    let check = |bench: &Bench, delivered, parked| {
        let sink = bench.reader().sink(SINK).unwrap();
        assert_eq!((sink.delivered, sink.parked), (delivered, parked), "{sink:?}");
        assert_eq!(sink.delivered + sink.pending(5) + sink.parked + sink.dropped, sink.accepted(5), "{sink:?}");
    };
    check(&bench, 1, 2);
    bench.settle(Settlement { cursor: 5, ..Settlement::default() });
    check(&bench, 1, 2);
    bench.act(Action::Replay { sink: SINK.to_owned(), seqs: vec![1], from: Timestamp::default(), spacing_ms: 0.0 });
    bench.settle(Settlement { cursor: 5, delivered: vec![1], ..Settlement::default() });
    check(&bench, 2, 1);
    // 5 is parked, 3 was dropped by a person, 1 is delivered.
    let again = Action::Reconsider { sink: SINK.to_owned(), seqs: vec![1, 3, 5], from: Timestamp::default() };
    assert_eq!(bench.act(again).changed, 1);
    assert_eq!((bench.state(3), bench.state(5)), (DeliveryState::Dropped, DeliveryState::Retrying));
    check(&bench, 2, 0);
    // 1 is delivered, and stays so.
    let revive =
        Action::Revive { sink: SINK.to_owned(), seqs: vec![1, 3, 9], from: Timestamp::default(), spacing_ms: 0.0 };
    let outcome = bench.act(revive);
    assert_eq!((outcome.changed, outcome.unchanged, outcome.unavailable), (1, 1, 1));
    assert_eq!((bench.state(1), bench.state(3)), (DeliveryState::Delivered, DeliveryState::Retrying));
}

fn values_are_found_by_how_their_names_begin(mut bench: Bench) {
    bench.append(vec![usage("a", "1", "1")]);
    let value = |name: &str| (name.to_owned(), name.as_bytes().to_vec());
    let values: Vec<_> = ["ledger/a", "ledger/\u{e4}", "ledger", "ledges", "ledger%b"].map(value).into();
    bench.settle(Settlement { sink: SINK.to_owned(), cursor: 1, values, ..Settlement::default() });
    assert_eq!(bench.reader().values("ledger/").unwrap(), [value("ledger/a"), value("ledger/\u{e4}")]);
    assert_eq!(bench.reader().values("nothing").unwrap(), []);
    // An empty one is none.
    let forget = |name: &str| Action::Remember { name: name.to_owned(), value: Vec::new() };
    let actions = vec![
        forget("ledger/a"),
        forget("never was"),
        Action::Remember { name: "ledger/b".to_owned(), value: b"b".to_vec() },
    ];
    bench.commit(Commit { actions, ..Commit::default() });
    assert_eq!(
        bench.reader().values("ledger/").unwrap(),
        [("ledger/b".to_owned(), b"b".to_vec()), value("ledger/\u{e4}")]
    );
}

/// The same settlement may come twice: what is remembered with it is what is true afterwards.
fn what_is_remembered_with_a_settlement_is_there_when_it_is(mut bench: Bench) {
    bench.append(vec![usage("a", "1", "1"), usage("a", "2", "2")]);
    let settlement = |cursor, value: &str| Settlement {
        sink: SINK.to_owned(),
        cursor,
        values: vec![("sum".to_owned(), value.as_bytes().to_vec())],
        ..Settlement::default()
    };

    for _ in 0..2 {
        bench.settle(settlement(1, "one"));
        assert_eq!(bench.reader().value("sum").unwrap().unwrap(), b"one");
    }
    // In one commit with another sink's that is not known: nothing of that one is recorded.
    let unknown = Settlement { sink: "nobody".to_owned(), ..settlement(2, "wrong") };
    let committed = bench.commit(Commit { settlements: vec![settlement(2, "two"), unknown], ..Commit::default() });

    assert_eq!(committed.refused.len(), 1);
    assert_eq!(bench.reader().value("sum").unwrap().unwrap(), b"two");
}

fn what_is_remembered_with_events_is_there_when_they_are(mut bench: Bench) {
    let remembered = |bench: &Bench| bench.reader().value("mark").unwrap();
    for (mark, keys) in [("1", &["a", "b"][..]), ("2", &["b", "c"])] {
        let appends = keys.iter().map(|key| usage("s", key, "1")).collect();
        let values = vec![("mark".to_owned(), mark.as_bytes().to_vec())];

        bench.commit(Commit { appends, values, ..Commit::default() });

        bench.restart();
        assert_eq!(remembered(&bench).as_deref(), Some(mark.as_bytes()));
    }
    assert_eq!(bodies(&bench).len(), 3);
    let nothing_new = vec![usage("s", "c", "1")];
    let forgotten = vec![("mark".to_owned(), Vec::new())];
    bench.commit(Commit { appends: nothing_new, values: forgotten, ..Commit::default() });
    bench.restart();
    assert_eq!((remembered(&bench), bodies(&bench).len()), (None, 3), "duplicates alone are a commit as well");
}
