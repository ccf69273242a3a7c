//! Several processes over one journal: what only an engine that can be shared promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::clock::{Clock, ManualClock, SharedClock, SystemClock, Timestamp};
use kit_journal::engine::{Action, Commit, Engine, ExceptionState, Purge, Settlement, Verdict, open_section};
use kit_journal::{Health, Journal, Seq};
use kit_workbench::database::{Database, End};
use prometheus_client::registry::Registry;

use crate::bench::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn appending(engine: &mut dyn Engine, keys: impl IntoIterator<Item = String>) -> Vec<Verdict> {
    let appends = keys.into_iter().map(|key| append(&key, "{}")).collect();
    let now = Timestamp::from_millis(1_700_000_000_000);
    engine.commit(&mut Commit { at: now, age: now, appends, ..Commit::default() }).unwrap().verdicts
}

fn settling(engine: &mut dyn Engine, settlement: Settlement) -> Vec<(usize, String)> {
    let settlements = vec![Settlement { sink: SINK.to_owned(), ..settlement }];
    engine.commit(&mut Commit { settlements, ..Commit::default() }).unwrap().refused
}

/// Three replicas append the same keys at the same time, in different groups.
#[test]
fn of_what_several_replicas_take_at_once_each_is_stored_once_and_positions_have_no_gaps() {
    let bench = Bench::postgres();
    let verdicts: Vec<Vec<Verdict>> = std::thread::scope(|scope| {
        let replicas = (0..3_usize).map(|replica| {
            let mut opened = bench.replica();
            scope.spawn(move || {
                let mut all = Vec::new();
                for batch in 0..40_usize {
                    let first = batch * 10;
                    let keys = (first..first + 10).map(|n| ((n * (replica + 1)) % 400).to_string());
                    all.extend(appending(&mut *opened.engine, keys));
                    all.extend(appending(&mut *opened.engine, [format!("own-{replica}-{batch}")]));
                }
                all
            })
        });
        let replicas: Vec<_> = replicas.collect();
        replicas.into_iter().map(|replica| replica.join().unwrap()).collect()
    });

    let mut stored: BTreeMap<Seq, _> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for verdict in verdicts.iter().flatten() {
        if verdict.is_stored() {
            assert!(stored.insert(verdict.seq, verdict.id).is_none(), "{} was given twice", verdict.seq);
        }
        ids.insert(verdict.id);
    }
    assert_eq!(stored.keys().copied().collect::<Vec<_>>(), (1..=Seq::try_from(ids.len()).unwrap()).collect::<Vec<_>>());
    assert!(verdicts.iter().flatten().all(|verdict| stored[&verdict.seq] == verdict.id), "duplicates name the first");
    let (events, _) = bench.reader().events_after(SINK, 0, 10_000, 1 << 30).unwrap();
    assert_eq!(events.iter().map(|event| (event.seq, event.head.id)).collect::<BTreeMap<_, _>>(), stored);
}

#[test]
fn a_sink_is_forgotten_under_its_lease_and_who_delivered_before_records_nothing_at_the_next_of_that_name() {
    let mut bench = Bench::postgres();
    let mut other = bench.replica();
    bench.append((0..5).map(|n| append(&n.to_string(), "{}")).collect());
    let delivering = other.engine.lease(SINK).unwrap().unwrap();
    let forget = |lease| Action::Forget { sink: SINK.to_owned(), lease, rows: 10 };

    assert_eq!(bench.engine().lease(SINK).unwrap(), None);
    let outcome = bench.act(forget(delivering.epoch - 1));
    assert_eq!((outcome.unchanged, outcome.forgotten), (1, None));
    other.engine.give_back(SINK, delivering.epoch).unwrap();
    let lease = bench.engine().lease(SINK).unwrap().unwrap();
    let forgotten = bench.act(forget(lease.epoch)).forgotten.unwrap();
    assert_eq!((forgotten.pending, forgotten.account.unwrap().dropped), (5, 5));

    bench.act(Action::Register { sink: SINK.to_owned() });
    for epoch in [delivering.epoch, lease.epoch] {
        let late =
            Settlement { cursor: 5, set: vec![row(3, ExceptionState::Parked)], lease: epoch, ..Settlement::default() };
        assert_eq!(settling(&mut *other.engine, late).len(), 1, "epoch {epoch}");
    }
    assert_eq!(bench.reader().sink(SINK).unwrap().parked, 0);
    let next = other.engine.lease(SINK).unwrap().unwrap();
    assert!(next.epoch > lease.epoch);
}

#[test]
fn one_replica_delivers_to_a_sink_and_another_takes_over_when_it_is_gone() {
    let mut bench = Bench::postgres();
    let mut other = bench.replica();
    bench.append((0..5).map(|n| append(&n.to_string(), "{}")).collect());
    let first = bench.engine().lease(SINK).unwrap().unwrap();
    let renewed = Instant::now();
    assert_eq!(bench.engine().lease(SINK).unwrap(), Some(first), "kept");
    assert_eq!(other.engine.lease(SINK).unwrap(), None, "held");
    assert!(other.engine.lease("elsewhere").unwrap().is_some(), "sinks are apart");
    bench.lease = first.epoch;
    bench.settle(Settlement { cursor: 1, ..Settlement::default() });

    // It asks no more, as if it had been killed.
    let since = Instant::now();
    let second = loop {
        match other.engine.lease(SINK).unwrap() {
            Some(lease) => break lease,
            None => assert!(since.elapsed() < PATIENCE),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let lasts = first.lasts.unwrap();
    assert!(since.elapsed() < lasts + Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(renewed.elapsed() + Duration::from_millis(50) > lasts, "before its end: {:?}", renewed.elapsed());
    assert!(second.epoch > first.epoch);
    assert_eq!(bench.engine().lease(SINK).unwrap(), None);

    // What the first one still wants to say comes too late, whatever it is.
    let refused = settling(bench.engine(), Settlement { cursor: 4, lease: first.epoch, ..Settlement::default() });
    assert!(refused[0].1.contains("another replica"), "{refused:?}");
    assert_eq!(bench.reader().sink(SINK).unwrap().cursor, 1);
    assert!(
        settling(&mut *other.engine, Settlement { cursor: 2, lease: second.epoch, ..Settlement::default() }).is_empty()
    );

    // One that stops gives it back at once.
    other.engine.give_back(SINK, second.epoch).unwrap();
    let third = bench.engine().lease(SINK).unwrap().unwrap();
    assert!(third.epoch > second.epoch);
    other.engine.give_back(SINK, second.epoch).unwrap();
    assert_eq!(bench.engine().lease(SINK).unwrap(), Some(third), "somebody else's is not given back");
}

/// A step keeps the others waiting for as long as any commit does; between two steps nothing is kept from them, however much
/// is left to purge.
#[test]
fn a_replica_appends_between_any_two_steps_of_a_purge_and_no_step_is_larger_than_it_may_be() {
    const LIMIT: u32 = 512;
    const EVENTS: u64 = 20_000;
    let mut bench = Bench::postgres();
    bench.lease = bench.engine().lease(SINK).unwrap().unwrap().epoch;
    let mut last = 0;
    for round in 0..20 {
        let appends = (0..EVENTS / 20).map(|n| append(&format!("{round}-{n}"), "{}")).collect();
        last = bench.append(appends).last().unwrap().seq;
    }
    bench.settle(Settlement { cursor: last, ..Settlement::default() });
    let left = "SELECT count(*) FROM outrigger.events";
    let left = |bench: &Bench| server().sql(&bench.database, left).unwrap().parse::<u64>().unwrap();
    let mut other = bench.replica().engine;

    let later = Timestamp::from_millis(bench.now + 1);
    let plan = Purge { delivered_before: later, keys_before: later, limit: LIMIT, ..nothing_to_purge() };
    let (mut steps, mut purged) = (0_u32, 0);
    while purged < EVENTS {
        let before = left(&bench);
        let step = bench.purge(plan);
        assert_eq!(before - left(&bench), step.events);
        assert!(step.events > 0 && step.events <= u64::from(LIMIT), "{} at once", step.events);
        assert!(step.keys <= u64::from(LIMIT), "{} keys at once", step.keys);
        (steps, purged) = (steps + 1, purged + step.events);
        // A lock kept past the step would be waited for until the commit is given up.
        let verdicts = appending(&mut *other, [format!("beside-{steps}")]);
        assert_eq!(verdicts[0].seq, last + Seq::from(steps));
    }
    assert_eq!(left(&bench), u64::from(steps));
}

#[test]
fn what_one_replica_does_the_others_see() {
    let mut bench = Bench::postgres();
    let mut other = bench.replica();
    other.engine.look().unwrap();

    bench.append(vec![append("k", "{}")]);
    let news = other.engine.look().unwrap().unwrap();
    assert_eq!((news.last_seq, news.acted_elsewhere), (1, false));
    bench.act(Action::Pause { sink: SINK.to_owned(), paused: true });
    assert!(other.engine.look().unwrap().unwrap().acted_elsewhere);
    assert!(!other.engine.look().unwrap().unwrap().acted_elsewhere, "once");

    bench.act(Action::Pause { sink: SINK.to_owned(), paused: false });
    let mut commit = Commit { appends: vec![append("l", "{}")], ..Commit::default() };
    assert!(other.engine.commit(&mut commit).unwrap().acted_elsewhere, "a commit looks as well");
    assert!(!bench.engine().look().unwrap().unwrap().acted_elsewhere, "what one has done oneself is no news");
}

/// Hosts that disagree about the time by hours go by the database's clock.
#[test]
fn replicas_whose_clocks_are_hours_apart_tell_the_same_time() {
    let database = new_database();
    let section = section_at(server().url(&database));
    let now = SystemClock.now();
    for hours in [-30_i64, 30] {
        let host: SharedClock = Arc::new(ManualClock::new(now.plus_millis(hours * 3_600_000)));
        let opened = open_section(&section, host).unwrap();
        let off = opened.clock.now().as_millis().abs_diff(SystemClock.now().as_millis());
        assert!(off < 10_000, "{off} ms");
    }
}

/// Every connection is cut, again and again, while a replica commits.
#[test]
fn a_cut_connection_costs_no_event_and_stores_none_twice() {
    let mut bench = Bench::postgres();
    let database = bench.database.clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cut = format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
            );
            let mut pauses = [3, 10, 30, 100].into_iter().cycle();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                server().sql("postgres", &cut).unwrap();
                // Within a commit or between two; now and then there is time for some.
                std::thread::sleep(Duration::from_millis(pauses.next().unwrap()));
            }
        });
        for n in 0..400 {
            let now = Timestamp::from_millis(bench.now);
            let since = Instant::now();
            loop {
                let mut commit =
                    Commit { at: now, age: now, appends: vec![append(&n.to_string(), "{}")], ..Commit::default() };
                match bench.engine().commit(&mut commit) {
                    Ok(committed) => {
                        // Where it had been refused and was made all the same it is known now.
                        assert_eq!(committed.verdicts[0].seq, n + 1);
                        break;
                    }
                    Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
                }
                while bench.engine().reopen(true).is_err() {
                    assert!(since.elapsed() < PATIENCE);
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let (events, _) = bench.reader().events_after(SINK, 0, 1_000, 1 << 30).unwrap();
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
}

/// A database that has lost what it had said is noticed, and not gone on with.
#[test]
fn positions_that_are_gone_stop_the_journal() {
    let mut bench = Bench::postgres();
    bench.append(vec![append("a", "{}"), append("b", "{}")]);
    let undo = "UPDATE outrigger.head SET last_seq = 1; DELETE FROM outrigger.events WHERE seq = 2; DELETE FROM outrigger.keys WHERE seq = 2";
    server().sql(&bench.database, undo).unwrap();

    let mut commit = Commit { appends: vec![append("c", "{}")], ..Commit::default() };
    let error = bench.engine().commit(&mut commit).unwrap_err().to_string();
    assert!(error.contains("has lost the positions 2 to 2"), "{error}");
    assert!(bench.engine().reopen(true).is_err(), "also when the position has been given again");
    bench.restart();
    assert_eq!(bench.append(vec![append("c", "{}")])[0].seq, 2, "after a start it goes on with what is there");
}

#[test]
fn a_record_changed_behind_our_back_is_never_served() {
    let mut bench = Bench::postgres();
    bench.append((0..3).map(|n| append(&n.to_string(), "{\"a\":1}")).collect());
    for change in ["body = 'x'", "at = at + 1", "head = replace(head, 'acme', 'evil')"] {
        server().sql(&bench.database, &format!("UPDATE outrigger.events SET {change} WHERE seq = 2")).unwrap();
        let mut reader = bench.reader();
        assert!(reader.event(2).is_err(), "{change}");
        assert_eq!(reader.events_after(SINK, 0, 10, 1 << 20).unwrap().0.len(), 1, "what comes before is good");
        assert!(reader.events_after(SINK, 1, 10, 1 << 20).is_err());
        let page = reader.search(&kit_journal::EventFilter::default(), None, 10, 10).unwrap();
        assert_eq!(page.found.iter().map(|found| found.event.seq).collect::<Vec<_>>(), [3, 1], "{change}");
    }
}

/// A replica that stops in the middle of a commit holds up the others for seconds and not for ever.
#[test]
fn a_frozen_replica_lets_go_of_the_lock() {
    let mut bench = Bench::postgres();
    let url = server().url(&bench.database);
    let mut frozen = std::process::Command::new("psql")
        .args(["-XAtq", &url])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // As an engine begins a commit.
    let begin =
        b"BEGIN; SET LOCAL idle_in_transaction_session_timeout = 5000; SELECT 1 FROM outrigger.head FOR UPDATE;\n";
    std::io::Write::write_all(frozen.stdin.as_mut().unwrap(), begin).unwrap();
    let since = Instant::now();
    let held =
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()";
    while server().sql(&bench.database, held).unwrap() != "1" {
        assert!(since.elapsed() < PATIENCE);
    }

    let since = Instant::now();
    bench.append(vec![append("k", "{}")]);
    assert!(since.elapsed() < Duration::from_secs(14), "{:?}", since.elapsed());
    drop(frozen.stdin.take());
    frozen.wait().unwrap();
}

/// The handle over a server that goes away and comes back: nothing is accepted that is not stored, and it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_is_ridden_out() {
    let mut server = tokio::task::spawn_blocking(|| Database::start(&[]).unwrap()).await.unwrap();
    server.create("j").unwrap();
    let section = section_at(server.url("j"));
    let opening = section.clone();
    let (journal, task) = tokio::task::spawn_blocking(move || {
        Journal::open(&opening, Arc::new(SystemClock), &mut Registry::default()).unwrap()
    })
    .await
    .unwrap();
    let appending = |n: usize| {
        let journal = journal.clone();
        async move {
            let (head, body) = {
                let a = append(&n.to_string(), "{}");
                (a.head().clone(), a.body().to_vec())
            };
            journal.append(kit_journal::NewEvent { head, body, dedupe: kit_journal::Dedupe::KeyAndBody }).await
        }
    };
    let mut accepted = BTreeSet::new();
    for round in 0..2 {
        for n in 0..20 {
            accepted.insert(appending(round * 1_000 + n).await.unwrap().id);
        }
        let how = if round == 0 { End::Crash } else { End::Fast };
        server = tokio::task::spawn_blocking(move || {
            server.end(how).unwrap();
            server
        })
        .await
        .unwrap();
        let since = Instant::now();
        while appending(round * 1_000 + 100).await.is_ok() {
            assert!(since.elapsed() < PATIENCE, "it accepts without a server");
        }
        assert!(matches!(*journal.health().borrow(), Health::Failing(_)));
        server = tokio::task::spawn_blocking(move || {
            server.run().unwrap();
            server
        })
        .await
        .unwrap();
        let since = Instant::now();
        accepted.insert(loop {
            match appending(round * 1_000 + 100).await {
                Ok(appended) => break appended.id,
                Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        });
    }
    let stored = journal.read(|reader| {
        let page = reader.search(&kit_journal::EventFilter::default(), None, 1_000, 1_000)?;
        Ok(page.found.iter().map(|found| found.event.head.id).collect::<Vec<_>>())
    });
    let stored = stored.await.unwrap();
    assert_eq!(stored.len(), accepted.len(), "none twice");
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), accepted);
    tokio::task::spawn_blocking(move || task.close()).await.unwrap();
}
