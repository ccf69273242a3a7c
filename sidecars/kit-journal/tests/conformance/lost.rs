//! What a replica notices: a database that has lost what it said, a connection that ends or says nothing, and others that
//! keep what it needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kit::clock::{Clock as _, SystemClock};
use kit_journal::engine::Commit;
use kit_journal::{Dedupe, EventFilter, EventId, Health, Journal, JournalTask, NewEvent};
use prometheus_client::registry::Registry;

use crate::bench::*;
use crate::wire::{Fate, Keeping, holds, let_go_after, proxied, silent_port};

const PATIENCE: Duration = Duration::from_secs(60);

/// As a standby does that takes over without the last event, and without the commit of whoever stored it.
fn lose_the_last(bench: &Bench) {
    let undo = "DELETE FROM outrigger.events WHERE seq = (SELECT last_seq FROM outrigger.head);
        DELETE FROM outrigger.keys WHERE seq = (SELECT last_seq FROM outrigger.head);
        UPDATE outrigger.head SET last_seq = last_seq - 1;
        UPDATE outrigger.replicas SET commits = commits - 1
            WHERE id = (SELECT id FROM outrigger.replicas ORDER BY seen DESC LIMIT 1)";
    server().sql(&bench.database, undo).unwrap();
}

#[test]
fn own_commits_that_are_lost_are_noticed_when_others_have_filled_their_place() {
    let mut bench = Bench::postgres();
    let mut other = bench.replica();
    bench.append(vec![append("a", "{}")]);
    // A commit that stores no event is one too.
    bench.settle(kit_journal::engine::Settlement { cursor: 1, ..Default::default() });
    let undo = "UPDATE outrigger.sinks SET cursor = 0, delivered = 0;
        UPDATE outrigger.replicas SET commits = commits - 1
            WHERE id = (SELECT id FROM outrigger.replicas ORDER BY commits DESC LIMIT 1)";
    server().sql(&bench.database, undo).unwrap();
    let appends = vec![append("b", "{}")];
    other.engine.commit(&mut Commit { appends, ..Commit::default() }).unwrap();

    let error = bench.engine().look().unwrap_err().to_string();
    assert!(error.contains("2 of the 3 commits of this replica"), "{error}");
    assert!(bench.engine().reopen(true).is_err(), "for good");
    assert!(bench.engine().lease(SINK).is_err(), "and another one delivers");
    bench.restart();
    assert_eq!(bench.append(vec![append("c", "{}")])[0].seq, 3, "after a start it goes on with what is there");
}

#[test]
fn positions_that_are_lost_and_filled_again_are_noticed_by_whoever_knew_them() {
    for by_looking in [true, false] {
        let mut bench = Bench::postgres();
        let (mut other, mut third) = (bench.replica(), bench.replica());
        let appending = |replica: &mut kit_journal::engine::Opened, key: &str| {
            let mut commit = Commit { appends: vec![append(key, "{}")], ..Commit::default() };
            replica.engine.commit(&mut commit).unwrap().verdicts[0].seq
        };
        appending(&mut other, "a");
        assert_eq!(bench.engine().look().unwrap().unwrap().last_seq, 1);
        lose_the_last(&bench);
        assert_eq!(appending(&mut third, "b"), 1, "the place of another one");
        appending(&mut third, "c");

        let error = if by_looking {
            bench.engine().look().unwrap_err()
        } else {
            let mut commit = Commit { appends: vec![append("d", "{}")], ..Commit::default() };
            bench.engine().commit(&mut commit).unwrap_err()
        };
        assert!(error.to_string().contains("lost the event at position 1"), "{error}");
        assert_eq!(bench.reader().statistics().unwrap().accepted, 2, "nothing was stored");
    }
}

/// A replica that has been away for long is no replica that has lost anything.
#[test]
fn keys_that_were_forgotten_in_their_time_are_not_lost() {
    let mut bench = Bench::postgres();
    bench.append(vec![append("a", "{}")]);
    server().sql(&bench.database, "DELETE FROM outrigger.keys").unwrap();
    bench.engine().look().unwrap();
    assert_eq!(bench.append(vec![append("b", "{}")])[0].seq, 2);
}

pub(crate) async fn opened(url: String) -> (Journal, JournalTask) {
    let section = section_at(url);
    let open = move || Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
    let (journal, task) = tokio::task::spawn_blocking(open).await.unwrap();
    journal.act(vec![kit_journal::engine::Action::Register { sink: SINK.to_owned() }]).await.unwrap();
    (journal, task)
}

/// Nothing can be done any more, so that it has to end: by itself, or nobody does it for hours.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_whose_database_has_lost_something_is_over_and_the_next_goes_on() {
    let bench = tokio::task::spawn_blocking(Bench::postgres).await.unwrap();
    let url = server().url(&bench.database);
    let mut registry = Registry::default();
    let (journal, task) = tokio::task::block_in_place(|| {
        Journal::open(&section_at(url.clone()), Arc::new(SystemClock), &mut registry).unwrap()
    });
    let shows = |registry: &Registry| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text.lines().find(|line| line.starts_with("journal_writable ")).unwrap().to_owned()
    };
    appended(&journal, "a").await.unwrap();
    assert_eq!(shows(&registry), "journal_writable 1");

    tokio::task::block_in_place(|| lose_the_last(&bench));

    let mut health = journal.health();
    let over = health.wait_for(|health| matches!(health, Health::Over(_)));
    let over = tokio::time::timeout(PATIENCE, over).await.unwrap().unwrap().clone();
    assert!(matches!(&over, Health::Over(what) if what.contains("lost the positions 1 to 1")), "{over:?}");
    assert_eq!(shows(&registry), "journal_writable 0");
    assert!(appended(&journal, "b").await.is_err());
    closed(task).await;
    let (journal, task) = opened(url).await;
    assert_eq!(appended(&journal, "b").await.unwrap(), 1);
    closed(task).await;
}

pub(crate) async fn closed(task: JournalTask) {
    tokio::task::spawn_blocking(move || task.close()).await.unwrap();
}

async fn appended(journal: &Journal, key: &str) -> Result<i64, kit_journal::AppendError> {
    let append = append(key, "{}");
    let event = NewEvent { head: append.head().clone(), body: append.body().to_vec(), dedupe: Dedupe::KeyAndBody };
    journal.append(event).await.map(|appended| appended.seq)
}

/// What was in memory may be of positions that are lost.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_delivered_from_memory_after_a_connection_was_lost() {
    let cut = Arc::new(AtomicBool::new(false));
    let cuts = Arc::clone(&cut);
    let fate = move |_: &[u8]| if cuts.load(Ordering::Relaxed) { Fate::Cut } else { Fate::Passed };
    let (journal, task) = opened(proxied(&new_database(), fate)).await;
    appended(&journal, "a").await.unwrap();
    // Kept at hand after the answer.
    let since = Instant::now();
    while journal.recent(0, 10, 1_000).is_none() {
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let mut health = journal.health();
    cut.store(true, Ordering::Relaxed);
    tokio::time::timeout(PATIENCE, health.wait_for(|health| *health != Health::Writable)).await.unwrap().unwrap();
    cut.store(false, Ordering::Relaxed);
    let since = Instant::now();
    while appended(&journal, "b").await.is_err() {
        assert!(since.elapsed() < PATIENCE);
    }

    assert!(journal.recent(0, 10, 1_000).is_none(), "the first one is read again");
    closed(task).await;
}

/// A proxy sends what only reads to a standby that lags: what is not there yet is not missing.
#[tokio::test(flavor = "multi_thread")]
async fn what_answers_from_behind_the_last_commit_is_not_believed() {
    let (journal, task) = tokio::task::block_in_place(|| {
        let [own, lagging] = [new_database(), new_database()];
        let section = section_at(server().url(&own));
        let (ahead, behind) = (open(&section).unwrap(), open(&section_at(server().url(&lagging))).unwrap());
        let sink = format!("INSERT INTO outrigger.sinks (id, name, start, cursor) VALUES (1, '{SINK}', 0, 0)");
        server().sql(&lagging, &sink).unwrap();
        let registry = &mut Registry::default();
        Journal::over(ahead.engine, behind.open_reader, &section, ahead.clock, registry).unwrap()
    });
    journal.act(vec![kit_journal::engine::Action::Register { sink: SINK.to_owned() }]).await.unwrap();
    let seq = appended(&journal, "a").await.unwrap();
    journal.tail().wait_for(|tail| *tail == seq).await.unwrap();

    let range = journal.read(|reader| reader.events_after(SINK, 0, 1, 1_000).map(drop)).await;
    let one = journal.read(move |reader| reader.event(seq).map(drop)).await;

    for error in [range.unwrap_err(), one.unwrap_err()] {
        assert!(matches!(error, kit_journal::JournalError::Behind { last_seq: 0, known: 1 }), "{error}");
    }
    assert!(journal.unreadable().borrow().as_ref().is_some_and(|why| why.contains("standby")));
    closed(task).await;
}

/// Somebody keeps every commit waiting for longer than a lease lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_takes_long_loses_no_lease() {
    let database = new_database();
    let (journal, task) = opened(server().url(&database)).await;
    let lease = journal.lease(SINK).await.unwrap().unwrap();
    let kept = Keeping::of(&database, "SELECT 1 FROM outrigger.head FOR UPDATE");
    let waiting = tokio::spawn({
        let journal = journal.clone();
        async move { appended(&journal, "a").await }
    });

    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(7) {
        assert!(lease.is_held(), "lost after {:?}", since.elapsed());
        let known = server().sql(&database, "SELECT epoch, until > clock_timestamp() FROM outrigger.leases").unwrap();
        assert_eq!(known, "1|t", "to be taken over after {:?}", since.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!waiting.is_finished());
    drop(kept);
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    lease.give_back().await.unwrap();
    assert_eq!(server().sql(&database, "SELECT until > clock_timestamp() FROM outrigger.leases").unwrap(), "f");
    closed(task).await;
}

/// The same for a lease that another one has: it ends here as soon as that is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_another_one_has_ends_at_the_next_renewal() {
    let database = new_database();
    let (journal, task) = opened(server().url(&database)).await;
    let lease = journal.lease(SINK).await.unwrap().unwrap();
    let theirs = "UPDATE outrigger.leases SET holder = gen_random_uuid(), epoch = epoch + 1";
    server().sql(&database, theirs).unwrap();

    tokio::time::timeout(Duration::from_secs(4), lease.end().lost()).await.unwrap();

    assert!(!lease.is_held());
    closed(task).await;
}

/// The database's clock was set back, or a standby's is behind: its end would be waited for that long.
#[test]
fn a_lease_that_ends_impossibly_late_is_taken_over() {
    let mut bench = Bench::postgres();
    let mut other = bench.replica();
    let first = bench.engine().lease(SINK).unwrap().unwrap();
    let ends_in = |time: &str| {
        let sql = format!("UPDATE outrigger.leases SET until = clock_timestamp() + interval '{time}'");
        server().sql(&bench.database, &sql).unwrap();
    };
    ends_in("50 s");
    assert_eq!(other.engine.lease(SINK).unwrap(), None);
    ends_in("2 min");
    assert!(other.engine.lease(SINK).unwrap().unwrap().epoch > first.epoch);
}

/// What was delivered from positions that the database does not have is not booked on those that come to be there.
#[test]
fn a_settlement_of_what_is_not_there_stops_the_replica() {
    let mut bench = Bench::postgres();
    bench.lease = bench.engine().lease(SINK).unwrap().unwrap().epoch;
    bench.append(vec![append("a", "{}")]);
    let beyond =
        kit_journal::engine::Settlement { sink: SINK.to_owned(), lease: bench.lease, cursor: 2, ..Default::default() };
    let mut commit = Commit { settlements: vec![beyond], ..Commit::default() };
    let error = bench.engine().commit(&mut commit).unwrap_err().to_string();
    assert!(error.contains("positions 2 to 2"), "{error}");
    assert!(bench.engine().reopen(true).is_err() && bench.engine().lease(SINK).is_err(), "for good");
    bench.restart();
    assert_eq!(bench.reader().sink(SINK).unwrap().cursor, 0);
}

/// A host that says nothing stands before the one that took over.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_in_front_costs_no_lease() {
    let database = new_database();
    let silent = silent_port();
    let url = server().url(&database).replace("@127.0.0.1:", &format!("@127.0.0.1:{},127.0.0.1:", silent.port()));
    let (journal, task) = opened(url).await;
    let lease = journal.lease(SINK).await.unwrap().unwrap();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(8) {
        assert!(lease.is_held(), "lost after {:?}", since.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lease.give_back().await.unwrap();
    closed(task).await;
}

#[test]
fn a_commit_that_takes_long_sets_no_clock_back() {
    let bench = Bench::postgres();
    let mut opened = bench.replica();
    // The time is told after one of these, and before the other.
    for kept in ["SELECT 1 FROM outrigger.head FOR UPDATE", "LOCK TABLE outrigger.replicas IN SHARE MODE"] {
        let holder = let_go_after(Keeping::of(&bench.database, kept), Duration::from_secs(3));
        let since = Instant::now();
        let mut commit = Commit { appends: vec![append(kept, "{}")], ..Commit::default() };
        opened.engine.commit(&mut commit).unwrap();
        assert!(since.elapsed() > Duration::from_secs(2), "it did not wait: {:?}", since.elapsed());
        let off = opened.clock.now().as_millis() - SystemClock.now().as_millis();
        assert!(off.abs() < 1_000, "{off} ms after {kept}");
        holder.join().unwrap();
    }
}

#[test]
fn a_connection_that_ends_while_opening_is_made_again() {
    let database = new_database();
    let cuts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&cuts);
    let url = proxied(&database, move |said| {
        if holds(said, "BEGIN") && counted.fetch_add(1, Ordering::Relaxed) == 0 { Fate::Cut } else { Fate::Passed }
    });

    open(&section_at(url)).unwrap();

    assert!(cuts.load(Ordering::Relaxed) > 1);
}

/// The `BEGIN` went through, and what was said with it did not.
#[test]
fn a_transaction_that_does_not_come_about_is_left() {
    let bench = Bench::postgres();
    let due = Arc::new(AtomicBool::new(false));
    let garbled = Arc::clone(&due);
    let url = proxied(&bench.database, move |said| {
        let text = "SET LOCAL lock_timeout";
        if holds(said, text) && garbled.swap(false, Ordering::Relaxed) {
            let mut changed = said.to_vec();
            let at = changed.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
            changed[at..at + text.len()].copy_from_slice(b"SET LOCAL lock_tineout");
            return Fate::Changed(changed);
        }
        Fate::Passed
    });
    let mut opened = open(&section_at(url)).unwrap();

    due.store(true, Ordering::Relaxed);
    let error = kit::error::chain(&opened.engine.lease(SINK).unwrap_err());
    assert!(error.contains("lock_tineout"), "{error}");
    assert!(opened.engine.lease(SINK).unwrap().is_some(), "the connection is not within a transaction any more");
}

#[test]
fn a_question_that_gets_no_answer_is_asked_once() {
    let bench = Bench::postgres();
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    let url = proxied(&bench.database, move |said| {
        if holds(said, "events e ON e.seq = $1") {
            counted.fetch_add(1, Ordering::Relaxed);
            return Fate::Swallowed;
        }
        Fate::Passed
    });
    let opened = open(&section_at(url)).unwrap();
    let mut reader = (opened.open_reader)().unwrap();

    assert_eq!(reader.statistics().unwrap().accepted, 0, "it has a connection");
    let error = reader.event(1).unwrap_err();

    assert!(matches!(error, kit_journal::JournalError::NoAnswer), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(reader.statistics().is_ok(), "on another connection");
}

/// Somebody's lock on what is read; what is written goes elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_that_the_database_does_not_answer_ends_there_too_and_shows() {
    let bench = tokio::task::spawn_blocking(Bench::postgres).await.unwrap();
    let (database, section) = (bench.database.clone(), section_at(server().url(&bench.database)));
    let (journal, task, registry) = tokio::task::spawn_blocking(move || {
        let mut registry = Registry::default();
        let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut registry).unwrap();
        (journal, task, registry)
    })
    .await
    .unwrap();
    let asked = database.clone();
    let kept = tokio::task::spawn_blocking(move || Keeping::of(&asked, "LOCK TABLE outrigger.exceptions"));
    let kept = kept.await.unwrap();

    let since = Instant::now();
    let error = journal.read(|reader| reader.events_after(SINK, 0, 10, 1 << 20).map(drop)).await.unwrap_err();

    assert!(matches!(error, kit_journal::JournalError::NoAnswer), "{error}");
    assert!(since.elapsed() < Duration::from_secs(14), "{:?}", since.elapsed());
    // What tries on is younger.
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query_start < now() - interval '7 s'";
    assert_eq!(server().sql(&database, busy).unwrap(), "0", "nobody waits any more");
    let mut unreadable = journal.unreadable();
    let said = unreadable.borrow().clone();
    assert_eq!(said.as_deref(), Some("the database does not answer"));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("journal_read_failures_total 1\n"), "{text}");
    // Nobody has to ask for it to show that it is over.
    tokio::task::spawn_blocking(move || drop(kept)).await.unwrap();
    tokio::time::timeout(PATIENCE, unreadable.wait_for(Option::is_none)).await.unwrap().unwrap();
    tokio::task::spawn_blocking(move || task.close()).await.unwrap();
}

/// A walk through all keys, say, of which there are very many.
#[test]
fn a_look_that_takes_too_long_is_stopped_and_says_so() {
    let bench = Bench::postgres();
    let kept = Keeping::of(&bench.database, "LOCK TABLE outrigger.keys");
    let mut filter = EventFilter::default();
    filter.ids.push(EventId::derive("lago/acme", "k", None));

    let error = bench.reader().search(&filter, None, 10, 10).unwrap_err().to_string();

    assert!(error.contains("takes longer than 10 s") && error.contains("source and key"), "{error}");
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    assert_eq!(server().sql(&bench.database, busy).unwrap(), "0", "nobody waits any more");
    drop(kept);
}
