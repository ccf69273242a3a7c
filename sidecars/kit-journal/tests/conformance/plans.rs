//! How PostgreSQL looks things up: with tables it has not analysed, as they are in the first minutes.

use std::time::{Duration, Instant};

use kit::clock::Timestamp;
use kit_journal::engine::{ExceptionState, Purge, Settlement};

use crate::bench::*;
use crate::wire::Keeping;

const PATIENCE: Duration = Duration::from_secs(60);

/// A commit asks for all its keys at once. Without numbers about a table the server takes so many for most of it.
#[test]
fn a_commit_reads_no_table_from_end_to_end_that_grows() {
    let mut bench = Bench::postgres();
    bench.lease = bench.engine().lease(SINK).unwrap().unwrap().epoch;
    let mut last = 0;
    for round in 0..40 {
        let appends = (0..64).map(|n| append(&format!("{round}-{n}"), "{}")).collect();
        last = bench.append(appends).last().unwrap().seq;
        let rows = (last - 63..=last).map(|seq| row(seq, ExceptionState::Retrying)).collect();
        bench.settle(Settlement { cursor: last, set: rows, ..Settlement::default() });
    }
    bench.settle(Settlement { cursor: last, delivered: (1..=last).collect(), ..Settlement::default() });

    // What a session has done it counts when it ends. Making an index counts as well.
    bench.restart();
    let scans =
        "SELECT sum(idx_scan), string_agg(relname || ' ' || seq_scan || ' ' || n_tup_ins, ', ' ORDER BY relname)
         FILTER (WHERE relname IN ('events', 'keys', 'exceptions') AND seq_scan >= 20) FROM pg_stat_user_tables";
    let begin = Instant::now();
    loop {
        let said = server().sql(&bench.database, scans).unwrap();
        let (by_index, whole) = said.split_once('|').unwrap();
        if by_index.parse::<u64>().is_ok_and(|count| count > 100) {
            assert_eq!(whole, "", "table, times read whole, rows");
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "the server does not say: {said}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A backup, or a forgotten transaction: what is removed stays at the head of its index for as long.
#[test]
fn a_purge_under_an_old_snapshot_does_not_go_through_what_it_has_removed_with_every_step() {
    const EVENTS: usize = 64;
    const STEPS: usize = 80;
    let mut bench = Bench::postgres();
    bench.lease = bench.engine().lease(SINK).unwrap().unwrap().epoch;
    let old = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM outrigger.head";
    let mut last = 0;
    for step in 0..STEPS {
        last = bench.append((0..EVENTS).map(|n| append(&format!("{step}-{n}"), "{}")).collect()).last().unwrap().seq;
    }
    bench.settle(Settlement { cursor: last, ..Settlement::default() });
    let _snapshot = Keeping::of(&bench.database, old);

    let later = Timestamp::from_millis(bench.now + 1);
    let limit = u32::try_from(EVENTS).unwrap();
    let plan = Purge { delivered_before: later, keys_before: later, limit, ..nothing_to_purge() };
    let (mut events, mut keys) = (0, 0);
    for _ in 0..STEPS {
        let purged = bench.purge(plan);
        (events, keys) = (events + purged.events, keys + purged.keys);
    }
    assert_eq!((events, keys), ((EVENTS * STEPS) as u64, (EVENTS * STEPS) as u64));

    // What a session has done it counts when it ends.
    bench.close();
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'keys_pkey'";
    let begin = Instant::now();
    loop {
        let read: usize = server().sql(&bench.database, read).unwrap().parse().unwrap();
        if read > EVENTS * STEPS {
            // To be found, to be joined, and to be removed; each step beginning at the first would be twenty times as many.
            assert!(read < 6 * EVENTS * STEPS, "{read} entries read to remove {}", EVENTS * STEPS);
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "the server does not say: {read}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a step costs depends on the step, not on what the tables hold: a step keeps all replicas waiting. Nothing has been
/// analysed, and none of the events that go has a row of its own.
#[test]
fn a_purge_step_reads_no_more_where_there_is_more_to_purge_or_to_keep() {
    const EVENTS: usize = 64;
    const STEPS: usize = 80;
    let mut bench = Bench::postgres();
    bench.lease = bench.engine().lease(SINK).unwrap().unwrap().epoch;
    let young = "ALTER TABLE outrigger.events SET (autovacuum_enabled = off);
        ALTER TABLE outrigger.keys SET (autovacuum_enabled = off);
        ALTER TABLE outrigger.exceptions SET (autovacuum_enabled = off)";
    server().sql(&bench.database, young).unwrap();
    let mut last = 0;
    for step in 0..2 * STEPS {
        last = bench.append((0..EVENTS).map(|n| append(&format!("{step}-{n}"), "{}")).collect()).last().unwrap().seq;
    }
    let kept = (last - 2047..=last).map(|seq| row(seq, ExceptionState::Retrying)).collect();
    bench.settle(Settlement { cursor: last, set: kept, ..Settlement::default() });

    let read = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN ('events', 'exceptions')";
    let said = |bench: &Bench| server().sql(&bench.database, read).unwrap().parse::<usize>().unwrap();
    let later = Timestamp::from_millis(bench.now + 1);
    let plan = Purge { delivered_before: later, limit: u32::try_from(EVENTS).unwrap(), ..nothing_to_purge() };
    for _ in 0..STEPS {
        assert_eq!(bench.purge(plan).events, EVENTS as u64);
    }

    // What a session has done it counts when it ends.
    bench.close();
    wait_until(PATIENCE, || said(&bench) >= 2 * EVENTS * STEPS);
    // To be found, and to be removed. Each step going through all that there is would be some hundred times as many.
    let read = said(&bench);
    assert!(read < 6 * EVENTS * STEPS, "{read} entries read to remove {}", EVENTS * STEPS);
}
