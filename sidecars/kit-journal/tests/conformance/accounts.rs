//! Accepted = delivered + pending + parked + dropped + filtered, whatever happens in which order.

use std::collections::BTreeMap;

use kit::clock::Timestamp;
use kit_journal::engine::{
    Action, Attempt, AuditRecord, Commit, ExceptionRow, ExceptionState, Purge, Settlement, SinkRow,
};
use kit_journal::{DeliveryState, EventFilter, Seq};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::bench::*;

crate::of_every_engine!(
    a_settlement_may_come_twice,
    replaying_and_dropping_move_between_states,
    revived_reconsidered_and_parked,
    what_was_dropped_too_late_is_delivered_and_not_to_be_had_again,
    a_value_may_be_remembered_and_forgotten,
    an_unknown_sink_in_an_action_fails_nobody_elses_commit,
    a_later_sink_begins_with_the_next_event,
    a_sink_is_forgotten_step_by_step_and_its_account_closes,
    a_sink_that_has_the_name_of_a_forgotten_one_is_another,
    delivered_events_go_by_the_journals_time_whatever_the_wall_clock_said,
    what_is_not_delivered_is_never_purged,
    what_one_of_several_sinks_has_not_got_is_never_purged,
    a_purge_goes_on_past_any_number_of_events_that_it_keeps,
    a_purge_says_whether_there_is_more,
    what_is_listed_as_filtered_is_purged_with_what_was_delivered_and_stays_counted,
    what_is_parked_in_the_commit_of_a_purge_stays,
    values_attempts_and_audit_are_kept,
    the_counters_close_after_every_step,
);

fn counters(bench: &Bench) -> (SinkRow, u64, Seq) {
    let sink = bench.reader().sink(SINK).unwrap();
    let last = Seq::try_from(bench.reader().statistics().unwrap().accepted).unwrap();
    let sum = sink.delivered + sink.pending(last) + sink.parked + sink.dropped + sink.filtered;
    (sink, sum, last)
}

/// The counters against the states a search shows, one event at a time.
fn assert_closed(bench: &Bench) {
    let (sink, sum, last) = counters(bench);
    assert_eq!(sum, sink.accepted(last), "{sink:?}");
    let mut by_state = BTreeMap::new();
    let mut reader = bench.reader();
    for seq in 1..=last {
        let state = reader.found(seq).unwrap().unwrap().deliveries[SINK].state;
        *by_state.entry(state).or_insert(0_u64) += 1;
    }
    let count = |state| by_state.get(&state).copied().unwrap_or(0);
    assert_eq!(sink.delivered, count(DeliveryState::Delivered), "{sink:?}");
    assert_eq!(sink.parked, count(DeliveryState::Parked), "{sink:?}");
    assert_eq!(sink.dropped, count(DeliveryState::Dropped), "{sink:?}");
    assert_eq!(sink.filtered, count(DeliveryState::Filtered), "{sink:?}");
    assert_eq!(sink.pending(last), count(DeliveryState::Pending) + count(DeliveryState::Retrying), "{sink:?}");
}

fn some_events(bench: &mut Bench, count: usize) {
    some_events_named(bench, "", count);
}

fn some_events_named(bench: &mut Bench, name: &str, count: usize) {
    bench.append((0..count).map(|n| append(&format!("{name}{n}"), "{}")).collect());
}

fn some_events_after(bench: &mut Bench, before: usize, count: usize) {
    bench.append((before..before + count).map(|n| append(&n.to_string(), "{}")).collect());
}

fn attempt(seq: Seq) -> Attempt {
    let at = Timestamp::from_millis(seq);
    Attempt { seq, at, ms: 1, status: Some(200), outcome: "delivered".to_owned(), error: None, response: None }
}

fn replay(seqs: Vec<Seq>) -> Action {
    Action::Replay { sink: SINK.to_owned(), seqs, from: Timestamp::from_millis(5), spacing_ms: 10.0 }
}

fn drop_these(seqs: Vec<Seq>) -> Action {
    Action::Drop { sink: SINK.to_owned(), seqs, reason: "test".to_owned() }
}

fn forget(rows: u32) -> Action {
    Action::Forget { sink: SINK.to_owned(), lease: 0, rows }
}

fn a_sink_is_forgotten_step_by_step_and_its_account_closes(mut bench: Bench) {
    some_events(&mut bench, 20);
    bench.act(Action::Register { sink: "other".to_owned() });
    let set = [
        (2, ExceptionState::Retrying),
        (3, ExceptionState::Waiting),
        (4, ExceptionState::Parked),
        (5, ExceptionState::Parked),
        (6, ExceptionState::Dropped),
        (7, ExceptionState::Filtered),
    ];
    let set = set.map(|(seq, state)| row(seq, state)).to_vec();
    bench.settle(Settlement { cursor: 10, filtered: 2, set, ..Settlement::default() });
    // Ahead of the cursor, and asked for again behind it.
    bench.act(drop_these(vec![15]));
    bench.act(replay(vec![1]));
    let (before, _, last) = counters(&bench);
    assert_eq!((before.pending(last), before.parked, before.delivered), (3 + 9, 2, 1));

    let (mut pending, mut parked, mut steps) = (0, 0, 0);
    let account = loop {
        let outcome = bench.act(forget(3));
        let forgotten = outcome.forgotten.unwrap();
        assert_eq!(outcome.changed, forgotten.pending + forgotten.parked);
        (pending, parked, steps) = (pending + forgotten.pending, parked + forgotten.parked, steps + 1);
        if let Some(account) = forgotten.account {
            break account;
        }
        // Whatever happens between two steps: the account is true, also to whoever opens the journal now.
        bench.restart();
        let (sink, sum, last) = counters(&bench);
        assert_eq!(sum, sink.accepted(last), "{sink:?}");
        some_events_named(&mut bench, &format!("between{steps}"), 1);
    };

    let late = steps - 1;
    assert_eq!((pending, parked, steps), (12 + late, 2, 3));
    assert_eq!((account.accepted, account.delivered), (20 + late, 1));
    assert_eq!((account.dropped, account.filtered), (2 + pending + parked, 3));
    assert_eq!(account.accepted, account.delivered + account.dropped + account.filtered);
    assert_eq!(bench.act(forget(3)).unavailable, 1, "it is gone");
    let sinks = bench.reader().statistics().unwrap().sinks;
    assert_eq!(sinks.iter().map(|sink| &*sink.name).collect::<Vec<_>>(), ["other"]);
    bench.restart();
    // What it kept is purged as soon as the others are done with it.
    let settlement = Settlement { sink: "other".to_owned(), cursor: 22, ..Settlement::default() };
    assert!(bench.commit(Commit { settlements: vec![settlement], ..Commit::default() }).refused.is_empty());
    assert_eq!(bench.purge(Purge { max_bytes: 0, ..nothing_to_purge() }).events, 22);
}

fn a_sink_that_has_the_name_of_a_forgotten_one_is_another(mut bench: Bench) {
    let attempt = Attempt {
        seq: 1,
        at: Timestamp::from_millis(1),
        ms: 1,
        status: Some(500),
        outcome: "server error".to_owned(),
        error: None,
        response: None,
    };
    some_events(&mut bench, 4);
    bench.settle(Settlement { cursor: 2, attempts: vec![attempt], ..Settlement::default() });
    bench.act(Action::Register { sink: "other".to_owned() });
    let mut reader = bench.reader();
    assert_eq!(reader.events_after(SINK, 2, 10, 1 << 20).unwrap().0.len(), 2);

    // Also when there is no other one left.
    for sink in ["other", SINK] {
        let action = Action::Forget { sink: sink.to_owned(), lease: 0, rows: 10 };
        assert!(bench.act(action).forgotten.unwrap().account.is_some());
    }
    for sink in ["third", SINK, "other"] {
        bench.act(Action::Register { sink: sink.to_owned() });
    }

    let (sink, sum, last) = counters(&bench);
    assert_eq!((sink.start, sink.cursor, sum, last), (4, 4, 0, 4));
    let log: Vec<_> = reader.attempts(1).unwrap().into_iter().map(|(sink, _)| sink).collect();
    assert_eq!(log, [SINK], "the log stays, and is no other one's");
    some_events_named(&mut bench, "later", 2);
    bench.act(drop_these(vec![6]));
    // Of whoever has known the one before, too.
    let (events, own) = reader.events_after(SINK, 4, 10, 1 << 20).unwrap();
    assert_eq!((events.len(), own), (1, vec![6]));
    bench.settle(Settlement { cursor: 6, ..Settlement::default() });
    let (sink, sum, last) = counters(&bench);
    assert_eq!((sink.delivered, sink.dropped, sum), (1, 1, sink.accepted(last)));
}

fn a_settlement_may_come_twice(mut bench: Bench) {
    some_events(&mut bench, 10);
    let first = Settlement {
        cursor: 6,
        set: vec![row(2, ExceptionState::Retrying), row(3, ExceptionState::Parked)],
        filtered: 1,
        ..Settlement::default()
    };
    let second = Settlement { cursor: 8, delivered: vec![2], ..Settlement::default() };
    for settlement in [&first, &first, &second, &second, &first] {
        bench.settle(settlement.clone());
        let (sink, sum, last) = counters(&bench);
        assert_eq!(sum, sink.accepted(last), "{sink:?}");
    }
    let (sink, _, _) = counters(&bench);
    assert_eq!((sink.cursor, sink.parked, sink.filtered), (8, 1, 1));
    let rows = bench.reader().blocked(SINK, 10).unwrap();
    assert_eq!(rows, [row(2, ExceptionState::Retrying)], "a row comes back as it was written");
}

fn replaying_and_dropping_move_between_states(mut bench: Bench) {
    some_events(&mut bench, 6);
    bench.settle(Settlement {
        cursor: 4,
        set: vec![row(2, ExceptionState::Parked), row(3, ExceptionState::Retrying)],
        ..Settlement::default()
    });

    let outcome = bench.act(replay(vec![1, 2, 3, 5, 99]));
    assert_eq!((outcome.changed, outcome.unchanged, outcome.unavailable), (3, 1, 1));
    assert_closed(&bench);
    let (due, next) = bench.reader().replays(SINK, Timestamp::from_millis(5), 10).unwrap();
    assert_eq!(due.iter().map(|row| row.seq).collect::<Vec<_>>(), [1]);
    assert_eq!(next, Some(Timestamp::from_millis(15)), "replays are spaced");

    let outcome = bench.act(drop_these(vec![2, 4, 6, 6]));
    assert_eq!((outcome.changed, outcome.unchanged), (2, 2), "4 is delivered, the second 6 is dropped already");
    assert_closed(&bench);
    assert_eq!(bench.state(6), DeliveryState::Dropped);
    assert_eq!(bench.reader().rows_between(SINK, 4, 6).unwrap(), [6]);
    assert_eq!(bench.reader().not_in_state(SINK, &[1, 2, 5], ExceptionState::Replaying).unwrap(), [2, 5]);

    let (events, own) = bench.reader().events_after(SINK, 4, 10, 1 << 20).unwrap();
    assert_eq!((events.len(), own.as_slice()), (1, &[6][..]), "what was dropped ahead is not offered");
    bench.settle(Settlement { cursor: 6, ..Settlement::default() });
    assert_closed(&bench);
    bench.settle(Settlement { cursor: 6, delivered: vec![1, 3, 2], ..Settlement::default() });
    assert_closed(&bench);
    assert_eq!(bench.state(2), DeliveryState::Dropped, "a delivery under way does not undo the operator's word");
}

fn revived_reconsidered_and_parked(mut bench: Bench) {
    some_events(&mut bench, 5);
    bench.settle(Settlement {
        cursor: 4,
        set: vec![row(2, ExceptionState::Parked), row(3, ExceptionState::Retrying)],
        ..Settlement::default()
    });
    let (sink, from) = (SINK.to_owned(), Timestamp::from_millis(9));
    let outcome = |outcome: kit_journal::engine::ActionOutcome| (outcome.changed, outcome.unchanged);

    let revive = Action::Revive { sink: sink.clone(), seqs: vec![1, 2, 3], from, spacing_ms: 0.0 };
    assert_eq!(outcome(bench.act(revive)), (2, 1), "1 is delivered");
    assert_closed(&bench);
    let park = Action::Park { sink: sink.clone(), seqs: vec![1, 2, 5], reason: "late".to_owned() };
    assert_eq!(outcome(bench.act(park)), (2, 1), "2 is on its way");
    assert_closed(&bench);
    let reconsider = Action::Reconsider { sink, seqs: vec![1, 2, 4], from };
    assert_eq!(outcome(bench.act(reconsider)), (1, 2));
    assert_closed(&bench);
    assert!(bench.act(Action::Pause { sink: SINK.to_owned(), paused: true }).changed == 1);
    assert!(bench.act(Action::Pause { sink: SINK.to_owned(), paused: true }).changed == 0);
    assert!(bench.reader().sink(SINK).unwrap().paused);
}

/// Dropped while they were on their way to a receiver that must get nothing twice: they have arrived.
fn what_was_dropped_too_late_is_delivered_and_not_to_be_had_again(mut bench: Bench) {
    use DeliveryState::{Delivered, Dropped, Parked, Pending};
    some_events(&mut bench, 8);
    bench.settle(Settlement { cursor: 2, set: vec![row(2, ExceptionState::Retrying)], ..Settlement::default() });
    bench.act(drop_these(vec![2, 3, 4, 5, 7]));
    bench.act(Action::Park { sink: SINK.to_owned(), seqs: vec![6], reason: "the receiver's word".to_owned() });
    let revive = |seqs: Vec<Seq>| {
        let (sink, from) = (SINK.to_owned(), Timestamp::default());
        Action::Revive { sink, seqs, from, spacing_ms: 0.0 }
    };
    bench.act(revive(vec![4]));

    // 5 was dropped before it was sent; 7 was asked for again, sent and dropped again, ahead of the cursor.
    let settlement =
        Settlement { cursor: 6, delivered: vec![2, 7], once: vec![1, 2, 3, 4, 6, 7], ..Settlement::default() };
    for round in ["first", "repeated"] {
        bench.settle(settlement.clone());

        assert_closed(&bench);
        let states: Vec<_> = (1..=7).map(|seq| bench.state(seq)).collect();
        assert_eq!(states, [Delivered, Delivered, Delivered, Delivered, Dropped, Parked, Pending], "{round}");
    }
    let outcome = bench.act(revive(vec![2, 3, 4, 5]));
    assert_eq!((outcome.changed, outcome.unchanged), (1, 3));
    bench.settle(Settlement { cursor: 8, ..Settlement::default() });
    assert_closed(&bench);
    assert_eq!(bench.state(7), Delivered);
}

fn a_value_may_be_remembered_and_forgotten(mut bench: Bench) {
    let remember = |value: &[u8]| Action::Remember { name: "a".to_owned(), value: value.to_vec() };
    bench.act(remember(b"1"));
    assert_eq!(bench.reader().value("a").unwrap(), Some(b"1".to_vec()));
    let values = vec![("a".to_owned(), Vec::new()), ("b".to_owned(), vec![2])];
    bench.settle(Settlement { values, ..Settlement::default() });
    assert_eq!(bench.reader().value("a").unwrap(), None);
    assert_eq!(bench.reader().values("b").unwrap(), [("b".to_owned(), vec![2])]);
    bench.act(remember(b""));
    assert_eq!(bench.reader().value("a").unwrap(), None);
}

fn an_unknown_sink_in_an_action_fails_nobody_elses_commit(mut bench: Bench) {
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

fn a_later_sink_begins_with_the_next_event(mut bench: Bench) {
    some_events(&mut bench, 3);
    let register = |sink: &str| Action::Register { sink: sink.to_owned() };
    assert_eq!(bench.act(register("second")).changed, 1);
    assert_eq!(bench.act(register("second")).changed, 0);

    let row = bench.reader().sink("second").unwrap();
    assert_eq!((row.start, row.cursor, row.accepted(3)), (3, 3, 0));
    assert_eq!(bench.reader().sink(SINK).unwrap().start, 0);
    assert_eq!(bench.reader().statistics().unwrap().sinks.len(), 2);
}

fn delivered_events_go_by_the_journals_time_whatever_the_wall_clock_said(mut bench: Bench) {
    let begin = bench.now;
    for n in 0..30_i64 {
        let age = Timestamp::from_millis(begin + n * 1000);
        let at = Timestamp::from_millis(if n % 2 == 0 { 0 } else { i64::MAX / 2 });
        let appends = vec![append(&n.to_string(), "{}")];
        let purge = Some(nothing_to_purge());
        bench.engine().commit(&mut Commit { at, age, appends, purge, ..Commit::default() }).unwrap();
    }
    bench.settle(Settlement { cursor: 30, ..Settlement::default() });
    let mut oldest = |before: i64, keys_before: i64| {
        let plan = Purge {
            delivered_before: Timestamp::from_millis(before),
            keys_before: Timestamp::from_millis(keys_before),
            ..nothing_to_purge()
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

fn everything() -> Purge {
    Purge { delivered_before: Timestamp::from_millis(i64::MAX), max_bytes: 0, ..nothing_to_purge() }
}

fn what_is_not_delivered_is_never_purged(mut bench: Bench) {
    some_events(&mut bench, 6);
    let full = bench.engine().used_bytes().unwrap();
    bench.settle(Settlement {
        cursor: 4,
        set: vec![row(2, ExceptionState::Parked), row(3, ExceptionState::Retrying)],
        ..Settlement::default()
    });
    assert_eq!(bench.purge(everything()).events, 2);
    for seq in [2, 3, 5, 6] {
        assert!(bench.reader().event(seq).unwrap().is_some(), "{seq}");
    }

    bench.settle(Settlement { cursor: 6, delivered: vec![3], ..Settlement::default() });
    bench.act(drop_these(vec![2]));
    for _ in 0..600 {
        bench.purge(everything());
    }
    assert_eq!(bench.reader().statistics().unwrap().oldest_seq, None, "what was kept is looked at again");
    assert!(bench.engine().used_bytes().unwrap() <= full);
    bench.restart();
    assert_eq!(bench.append(vec![append("new", "{}")])[0].seq, 7, "positions are never given twice");
    let (sink, sum, last) = counters(&bench);
    assert_eq!((sum, sink.delivered, sink.dropped), (sink.accepted(last), 5, 1));
}

fn what_one_of_several_sinks_has_not_got_is_never_purged(mut bench: Bench) {
    bench.act(Action::Register { sink: "another".to_owned() });
    some_events(&mut bench, 4);
    bench.settle(Settlement { cursor: 4, ..Settlement::default() });

    assert_eq!(bench.purge(everything()).events, 0);

    for seq in 1..=4 {
        assert!(bench.reader().event(seq).unwrap().is_some(), "{seq}");
    }
}

fn a_purge_goes_on_past_any_number_of_events_that_it_keeps(mut bench: Bench) {
    some_events(&mut bench, 520);
    let set = (1..=513).map(|seq| row(seq, ExceptionState::Parked)).collect();
    bench.settle(Settlement { cursor: 520, set, ..Settlement::default() });

    let (mut steps, mut removed) = (0, 0);
    loop {
        let step = bench.purge(Purge { limit: 1, ..everything() });
        steps += 1;
        removed += step.events;
        if !step.more {
            break;
        }
    }

    assert_eq!((removed, steps), (7, 521), "at once, and each was looked at once");
    // What is behind them by then is found without looking at them again.
    some_events_after(&mut bench, 520, 1);
    bench.settle(Settlement { cursor: 521, ..Settlement::default() });
    assert_eq!(bench.purge(Purge { limit: 2, ..everything() }).events, 1);
}

fn a_purge_says_whether_there_is_more(mut bench: Bench) {
    some_events(&mut bench, 3);
    for seq in 1..=3 {
        let attempts = vec![attempt(seq)];
        bench.settle(Settlement { cursor: seq, attempts, ..Settlement::default() });
    }
    let plan = |limit| Purge { limit, max_bytes: u64::MAX, ..everything() };

    let more: Vec<bool> = (0..5).map(|_| bench.purge(plan(1)).more).collect();

    assert_eq!(more, [true, true, true, false, false], "attempts and events");
    assert_eq!(bench.reader().statistics().unwrap().oldest_seq, None);
}

fn what_is_listed_as_filtered_is_purged_with_what_was_delivered_and_stays_counted(mut bench: Bench) {
    some_events(&mut bench, 3);
    let set = vec![row(1, ExceptionState::Filtered), row(2, ExceptionState::Dropped)];
    bench.settle(Settlement { cursor: 3, set, ..Settlement::default() });
    assert_closed(&bench);
    let mut filtered = EventFilter::default();
    filtered.state = Some(DeliveryState::Filtered);
    let page = bench.reader().search(&filtered, None, 10, 10).unwrap();
    assert_eq!(page.found.iter().map(|found| found.event.seq).collect::<Vec<_>>(), [1]);
    assert_eq!(bench.act(drop_these(vec![1])).unchanged, 1, "there is nothing to give up");

    assert_eq!(bench.purge(everything()).events, 3);
    bench.restart();
    let (sink, sum, last) = counters(&bench);
    assert_eq!((sum, sink.filtered, sink.dropped, sink.delivered), (sink.accepted(last), 1, 1, 1));
}

fn what_is_parked_in_the_commit_of_a_purge_stays(mut bench: Bench) {
    some_events(&mut bench, 4);
    bench.settle(Settlement { cursor: 2, ..Settlement::default() });
    let settlement = Settlement {
        sink: SINK.to_owned(),
        lease: bench.lease,
        cursor: 4,
        set: vec![row(3, ExceptionState::Parked)],
        ..Settlement::default()
    };
    let park = Action::Park { sink: SINK.to_owned(), seqs: vec![1], reason: "late".to_owned() };
    bench.commit(Commit {
        settlements: vec![settlement],
        actions: vec![park],
        purge: Some(everything()),
        ..Commit::default()
    });
    for _ in 0..3 {
        bench.purge(everything());
    }
    assert_eq!((bench.state(1), bench.state(3)), (DeliveryState::Parked, DeliveryState::Parked));
}

fn values_attempts_and_audit_are_kept(mut bench: Bench) {
    some_events(&mut bench, 3);
    let at = Timestamp::from_millis(7);
    let attempt = |seq, error: Option<&str>| Attempt {
        seq,
        at,
        ms: 3,
        status: Some(500),
        outcome: "refused".to_owned(),
        error: error.map(str::to_owned),
        response: Some("nul \0 and \u{fffd}".to_owned()),
    };
    let reason = ExceptionRow { reason: "nul \0 too".to_owned(), ..row(2, ExceptionState::Parked) };
    bench.settle(Settlement {
        cursor: 3,
        set: vec![reason],
        attempts: vec![attempt(2, Some("answered 500")), attempt(3, None)],
        values: vec![("ledger.a".to_owned(), b"1".to_vec()), ("other".to_owned(), vec![0, 255])],
        ..Settlement::default()
    });
    bench.settle(Settlement {
        cursor: 3,
        attempts: vec![attempt(2, None)],
        values: vec![("ledger.b".to_owned(), b"2".to_vec()), ("ledger.a".to_owned(), b"3".to_vec())],
        ..Settlement::default()
    });
    let record = AuditRecord {
        at,
        actor: "127.0.0.1".to_owned(),
        action: "deliveries.drop".to_owned(),
        detail: serde_json::json!({ "dropped": 1 }),
    };
    bench.act(Action::Audit(record.clone()));
    bench.restart();

    let mut reader = bench.reader();
    let attempts = reader.attempts(2).unwrap();
    assert_eq!(
        attempts.iter().map(|(sink, a)| (sink.as_str(), a.clone())).collect::<Vec<_>>(),
        [(SINK, attempt(2, Some("answered 500"))), (SINK, attempt(2, None)),]
    );
    assert!(reader.found(2).unwrap().unwrap().deliveries[SINK].row.as_ref().unwrap().reason.starts_with("nul "));
    assert_eq!(reader.value("other").unwrap(), Some(vec![0, 255]));
    assert_eq!(reader.value("nothing").unwrap(), None);
    let ledger = reader.values("ledger.").unwrap();
    assert_eq!(ledger, [("ledger.a".to_owned(), b"3".to_vec()), ("ledger.b".to_owned(), b"2".to_vec())]);
    let audit = reader.audit(None, 10).unwrap();
    assert_eq!(audit.iter().map(|(_, record)| record).collect::<Vec<_>>(), [&record]);
    assert!(reader.audit(Some(audit[0].0), 10).unwrap().is_empty());
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

/// Any sequence of what the engine may be asked, settlements repeated at will: each in a journal that is new.
fn the_counters_close_after_every_step(bench: Bench) {
    // A database is made for each.
    let (again, cases): (fn() -> Bench, _) =
        if bench.database.is_empty() { (Bench::sqlite, 48) } else { (Bench::postgres, 12) };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            take(&mut again(), steps);
            Ok(())
        })
        .unwrap();
}

fn take(bench: &mut Bench, steps: Vec<Step>) {
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
                bench.act(replay(seqs.into_iter().map(|n| pick(n, appended)).collect()));
            }
            Step::Drop(seqs) => {
                bench.act(drop_these(seqs.into_iter().map(|n| pick(n, appended)).collect()));
            }
            Step::Restart => bench.restart(),
        }
        assert_closed(bench);
    }
}
