//! Accepted = delivered + pending + parked + dropped + filtered, whatever happens in which order.

use proptest::prelude::*;

use super::*;

fn counters(bench: &Bench) -> (crate::engine::SinkRow, u64, Seq) {
    let sink = bench.reader().sink(SINK).unwrap();
    let last = Seq::try_from(bench.reader().statistics().unwrap().accepted).unwrap();
    let sum = sink.delivered + sink.pending(last) + sink.parked + sink.dropped + sink.filtered;
    (sink, sum, last)
}

/// The counters against the states a search shows, one event at a time.
fn assert_closed(bench: &Bench) {
    let (sink, sum, last) = counters(bench);
    assert_eq!(sum, sink.accepted(last), "{sink:?}");
    let mut by_state = std::collections::BTreeMap::new();
    for seq in 1..=last {
        *by_state.entry(bench.state(seq)).or_insert(0_u64) += 1;
    }
    let count = |state| by_state.get(&state).copied().unwrap_or(0);
    assert_eq!(sink.delivered, count(DeliveryState::Delivered), "{sink:?}");
    assert_eq!(sink.parked, count(DeliveryState::Parked), "{sink:?}");
    assert_eq!(sink.dropped, count(DeliveryState::Dropped), "{sink:?}");
    assert_eq!(sink.filtered, count(DeliveryState::Filtered), "{sink:?}");
    assert_eq!(sink.pending(last), count(DeliveryState::Pending) + count(DeliveryState::Retrying), "{sink:?}");
}

#[test]
fn a_settlement_may_come_twice() {
    let mut bench = Bench::new();
    bench.append((0..10).map(|n| append(&n.to_string(), "{}")).collect());
    let first = Settlement {
        cursor: 6,
        set: vec![row(2, ExceptionState::Retrying), row(3, ExceptionState::Parked)],
        ..Settlement::default()
    };
    let second = Settlement { cursor: 8, delivered: vec![2], ..Settlement::default() };
    for settlement in [&first, &first, &second, &second, &first] {
        bench.settle(settlement.clone());
        let (sink, sum, last) = counters(&bench);
        assert_eq!(sum, sink.accepted(last), "{sink:?}");
    }
    let (sink, _, _) = counters(&bench);
    assert_eq!((sink.cursor, sink.parked), (8, 1));
}

#[test]
fn replaying_and_dropping_move_between_states() {
    let mut bench = Bench::new();
    bench.append((0..6).map(|n| append(&n.to_string(), "{}")).collect());
    bench.settle(Settlement {
        cursor: 4,
        set: vec![row(2, ExceptionState::Parked), row(3, ExceptionState::Retrying)],
        ..Settlement::default()
    });
    let replay = |seqs: Vec<Seq>| Action::Replay {
        sink: SINK.to_owned(),
        seqs,
        from: Timestamp::from_millis(5),
        spacing_ms: 10.0,
    };
    let drop = |seqs: Vec<Seq>| Action::Drop { sink: SINK.to_owned(), seqs, reason: "test".to_owned() };

    let outcome = bench.act(replay(vec![1, 2, 3, 5, 99]));
    assert_eq!((outcome.changed, outcome.unchanged, outcome.unavailable), (3, 1, 1));
    assert_closed(&bench);
    let (due, next) = bench.reader().replays(SINK, Timestamp::from_millis(5), 10).unwrap();
    assert_eq!(due.iter().map(|row| row.seq).collect::<Vec<_>>(), [1]);
    assert_eq!(next, Some(Timestamp::from_millis(15)), "replays are spaced");

    let outcome = bench.act(drop(vec![2, 4, 6, 6]));
    assert_eq!((outcome.changed, outcome.unchanged), (2, 2), "4 is delivered, the second 6 is dropped already");
    assert_closed(&bench);
    assert_eq!(bench.state(6), DeliveryState::Dropped);

    let (events, own) = bench.reader().events_after(SINK, 4, 10, 1 << 20).unwrap();
    assert_eq!((events.len(), own.as_slice()), (1, &[6][..]), "what was dropped ahead is not offered");
    bench.settle(Settlement { cursor: 6, ..Settlement::default() });
    assert_closed(&bench);
    bench.settle(Settlement { cursor: 6, delivered: vec![1, 3, 2], ..Settlement::default() });
    assert_closed(&bench);
    assert_eq!(bench.state(2), DeliveryState::Dropped, "a delivery under way does not undo the operator's word");
}

/// Dropped while they were on their way to a receiver that must get nothing twice: they have arrived.
#[test]
fn what_was_dropped_too_late_is_delivered_and_not_to_be_had_again() {
    for twice in [false, true] {
        let mut bench = Bench::new();
        bench.append((0..8).map(|n| append(&n.to_string(), "{}")).collect());
        bench.settle(Settlement { cursor: 2, set: vec![row(2, ExceptionState::Retrying)], ..Settlement::default() });
        let drop = |seqs: Vec<Seq>| Action::Drop { sink: SINK.to_owned(), seqs, reason: "test".to_owned() };
        bench.act(drop(vec![2, 3, 4, 5, 7]));
        let park = Action::Park { sink: SINK.to_owned(), seqs: vec![6], reason: "the receiver's word".to_owned() };
        bench.act(park);
        let revive = |seqs: Vec<Seq>| {
            let (sink, from) = (SINK.to_owned(), Timestamp::default());
            Action::Revive { sink, seqs, from, spacing_ms: 0.0 }
        };
        bench.act(revive(vec![4]));

        // 5 was dropped before it was sent; 7 was asked for again, sent and dropped again, ahead of the cursor.
        let settlement =
            Settlement { cursor: 6, delivered: vec![2, 7], once: vec![1, 2, 3, 4, 6, 7], ..Settlement::default() };
        for _ in 0..=usize::from(twice) {
            bench.settle(settlement.clone());
            assert_closed(&bench);
        }

        for (seq, state) in [
            (2, DeliveryState::Delivered),
            (3, DeliveryState::Delivered),
            (4, DeliveryState::Delivered),
            (5, DeliveryState::Dropped),
            (6, DeliveryState::Parked),
        ] {
            assert_eq!(bench.state(seq), state, "{seq}");
        }
        let outcome = bench.act(revive(vec![2, 3, 4, 5]));
        assert_eq!((outcome.changed, outcome.unchanged), (1, 3));
        bench.settle(Settlement { cursor: 8, ..Settlement::default() });
        assert_closed(&bench);
        assert_eq!(bench.state(7), DeliveryState::Delivered);
    }
}

#[test]
fn an_unknown_sink_in_an_action_fails_nobody_elses_commit() {
    let mut bench = Bench::new();
    let nobody = || "nobody".to_owned();
    let actions = vec![
        Action::Pause { sink: nobody(), paused: true },
        Action::Drop { sink: nobody(), seqs: vec![1], reason: String::new() },
        Action::Replay { sink: nobody(), seqs: vec![1], from: Timestamp::from_millis(0), spacing_ms: 0.0 },
    ];
    let committed = bench.commit(Commit { appends: vec![append("k", "{}")], actions, ..Commit::default() });
    assert_eq!(committed.verdicts.len(), 1);
    assert!(committed.actions.iter().all(|outcome| outcome.unavailable == 1));
}

#[test]
fn delivered_events_go_by_the_journals_time_whatever_the_wall_clock_said() {
    for bounds in [DedupeBounds::default(), DedupeBounds { recent_keys: 10, run_keys: 5, filter_bytes: 1024 }] {
        let mut bench = Bench::bounded(bounds);
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
        assert_eq!(oldest(begin + 24_500, 0), Some(26), "{bounds:?}");
        assert_eq!(oldest(begin + 24_000, 0), Some(26), "nothing comes back");
        // Their keys are gone: then they are older than any that is left.
        for _ in 0..10 {
            oldest(begin, begin + 27_500);
        }
        assert!(oldest(begin, 0).is_none_or(|seq| seq > 26), "{bounds:?}");
        assert_eq!(oldest(begin + 30_000, 0), None);
    }
}

#[test]
fn what_is_not_delivered_is_never_purged() {
    let mut bench = Bench::new();
    bench.append((0..6).map(|n| append(&n.to_string(), "{}")).collect());
    bench.settle(Settlement {
        cursor: 4,
        set: vec![row(2, ExceptionState::Parked), row(3, ExceptionState::Retrying)],
        ..Settlement::default()
    });
    let plan = Purge {
        delivered_before: Timestamp::from_millis(i64::MAX),
        max_bytes: 0,
        keys_before: Timestamp::from_millis(0),
        audit_before: Timestamp::from_millis(0),
        limit: 512,
    };
    assert_eq!(bench.purge(plan).events, 2);
    for seq in [2, 3, 5, 6] {
        assert!(bench.reader().event(seq).unwrap().is_some(), "{seq}");
    }

    bench.settle(Settlement { cursor: 6, delivered: vec![3], ..Settlement::default() });
    bench.act(Action::Drop { sink: SINK.to_owned(), seqs: vec![2], reason: String::new() });
    for _ in 0..600 {
        bench.purge(plan);
    }
    assert_eq!(bench.reader().statistics().unwrap().oldest_seq, None);
    bench.restart();
    assert_eq!(bench.append(vec![append("new", "{}")])[0].seq, 7, "positions are never given twice");
    let (sink, sum, last) = counters(&bench);
    assert_eq!((sum, sink.delivered, sink.dropped), (sink.accepted(last), 5, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    Settle { by: u8, rows: Vec<(u8, u8)>, delivered: Vec<u8>, once: bool, twice: bool },
    Replay(Vec<u8>),
    Drop(Vec<u8>),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || proptest::collection::vec(any::<u8>(), 0..6);
    let step = prop_oneof![
        (1..8_u8).prop_map(Step::Append),
        (any::<u8>(), proptest::collection::vec((any::<u8>(), 0..6_u8), 0..5), some(), any::<(bool, bool)>())
            .prop_map(|(by, rows, delivered, (once, twice))| Step::Settle { by, rows, delivered, once, twice }),
        some().prop_map(Step::Replay),
        some().prop_map(Step::Drop),
        Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of what the engine may be asked, settlements repeated at will.
    #[test]
    fn the_counters_close_after_every_step(steps in steps()) {
        let mut bench = Bench::new();
        let (mut appended, mut cursor): (Seq, Seq) = (0, 0);
        for step in steps {
            let pick = |n: u8, to: Seq| if to == 0 { 0 } else { Seq::from(n) % to + 1 };
            match step {
                Step::Append(count) => {
                    let first = appended;
                    appended += Seq::from(count);
                    bench.append((first..appended).map(|n| append(&n.to_string(), "{}")).collect());
                }
                Step::Settle { by, rows, delivered, once, twice } => {
                    cursor += if appended > cursor { Seq::from(by) % (appended - cursor + 1) } else { 0 };
                    let states = [
                        ExceptionState::Retrying,
                        ExceptionState::Waiting,
                        ExceptionState::Replaying,
                        ExceptionState::Parked,
                        ExceptionState::Dropped,
                        ExceptionState::Filtered,
                    ];
                    let mut set: Vec<ExceptionRow> = rows
                        .into_iter()
                        .filter(|_| cursor > 0)
                        .map(|(n, state)| row(pick(n, cursor), states[usize::from(state)]))
                        .collect();
                    set.dedup_by_key(|row| row.seq);
                    let delivered: Vec<Seq> =
                        delivered.into_iter().filter(|_| cursor > 0).map(|n| pick(n, cursor)).collect();
                    let once = if once { delivered.clone() } else { Vec::new() };
                    let settlement = Settlement { cursor, set, delivered, once, ..Settlement::default() };
                    for _ in 0..=usize::from(twice) {
                        bench.settle(settlement.clone());
                    }
                }
                Step::Replay(seqs) => {
                    let seqs = seqs.into_iter().map(|n| pick(n, appended)).collect();
                    let from = Timestamp::from_millis(0);
                    bench.act(Action::Replay { sink: SINK.to_owned(), seqs, from, spacing_ms: 0.0 });
                }
                Step::Drop(seqs) => {
                    let seqs = seqs.into_iter().map(|n| pick(n, appended)).collect();
                    bench.act(Action::Drop { sink: SINK.to_owned(), seqs, reason: String::new() });
                }
                Step::Restart => bench.restart(),
            }
            assert_closed(&bench);
        }
    }
}
