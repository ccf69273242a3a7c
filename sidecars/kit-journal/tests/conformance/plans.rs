//! How PostgreSQL looks things up: with tables it has not analysed, as they are in the first minutes.

use std::time::{Duration, Instant};

use kit_journal::engine::{ExceptionState, Settlement};

use crate::bench::*;

const PATIENCE: Duration = Duration::from_secs(30);

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
