//! A replica that delivers no longer, over a real database: another one has its lease.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kit::admin::Readiness;
use kit::lifecycle::{Shell, Signals};
use kit_journal::Health;
use kit_workbench::database::Database;
use kit_workbench::gateway::Behaviour;

use crate::bench::*;

/// Another replica takes over, and keeps it.
const TAKEN: &str =
    "UPDATE outrigger.leases SET holder = gen_random_uuid(), epoch = epoch + 1, until = now() + interval '50 s'";

fn server() -> &'static Database {
    static SERVER: OnceLock<Database> = OnceLock::new();
    SERVER.get_or_init(|| Database::start(&[]).unwrap())
}

fn new_database() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("j{}", COUNT.fetch_add(1, Ordering::Relaxed));
    server().create(&name).unwrap();
    name
}

/// Somebody's transaction that stays open until its standard input is closed.
fn keeping(database: &str, sql: &str) -> Child {
    let mut psql = Command::new("psql");
    psql.args(["-XAtq", &server().url(database)]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut psql = psql.spawn().unwrap();
    writeln!(psql.stdin.as_mut().unwrap(), "BEGIN; {sql};").unwrap();
    psql
}

fn let_go(mut psql: Child) {
    drop(psql.stdin.take());
    psql.wait().unwrap();
}

fn is(database: &str, condition: &str) -> bool {
    let sql = format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND {condition}");
    server().sql(database, &sql).unwrap() == "t"
}

/// A table that nobody can read any more makes every look wait; what is in flight is cut off all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_ends_what_is_in_flight_whatever_the_database_keeps_waiting() {
    let database = new_database();
    let mut bench = Bench::shared(&server().url(&database), None, Behaviour::Drop, |_| {}).await;
    bench.append("a/1").await;
    bench.until("a request", |bench| bench.status().in_flight == 1).await;
    let kept = keeping(&database, "LOCK TABLE outrigger.exceptions");
    bench.until("a look that waits", |_| is(&database, "wait_event_type = 'Lock'")).await;

    server().sql(&database, TAKEN).unwrap();

    let since = Instant::now();
    // The lock keeps the writing thread too, which is asked before this replica says that it stands by.
    bench.until("nothing in flight", |bench| bench.status().in_flight == 0).await;
    // The look itself ends after ten.
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    let_go(kept);
    bench.stop().await;
}

/// An operator forgets a sink while the replica that is configured with it is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_was_forgotten_meanwhile_begins_again_with_the_next_event() {
    let database = new_database();
    let mut bench = Bench::shared(&server().url(&database), None, Behaviour::Ok, |_| {}).await;
    server().sql(&database, TAKEN).unwrap();
    bench.until("standing by", |bench| bench.status().standby).await;
    bench.append("before").await;
    let forget = "DELETE FROM outrigger.sinks; INSERT INTO outrigger.meta VALUES ('sinks.forgotten/gateway', '1');
        UPDATE outrigger.leases SET until = now()";

    server().sql(&database, forget).unwrap();

    let known = "SELECT count(*) FROM outrigger.sinks";
    bench.until("it is known again", |_| server().sql(&database, known).unwrap() == "1").await;
    let seq = bench.append("after").await;
    bench.until("it is delivered", |bench| bench.taken() == [seq]).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_by_says_nothing_of_how_the_sink_is() {
    let database = new_database();
    let url = server().url(&database);
    let refusing = Behaviour::status(500);
    let change = |section: &mut kit_delivery::GatewaySection| {
        section.circuit.failures = 1;
        section.retry.schedule_seconds = vec![600.0];
    };
    let mut bench = Bench::shared(&url, Some(1), refusing, change).await;
    bench.append("a/first").await;
    bench.until("a failure", |bench| bench.status().circuit != "closed").await;
    // What was fetched before the failure was recorded holds nothing up.
    for n in 0.. {
        assert!(n < 1000, "a stall did not happen: {:?}", bench.status());
        if bench.status().stalled {
            break;
        }
        bench.append(&format!("a/{n}")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let shown = |bench: &Bench, name: &str| bench.metrics().contains(&format!("{name}{{sink=\"gateway\"}} 1"));
    bench.until("its metrics", |bench| shown(bench, "delivery_stalled") && shown(bench, "delivery_circuit_open")).await;
    assert!(shown(&bench, "delivery_leading"));

    server().sql(&database, TAKEN).unwrap();

    bench.until("standing by", |bench| bench.status().standby).await;
    let status = bench.status();
    assert_eq!((status.circuit, status.stalled, status.in_flight), ("closed", false, 0));
    assert!(!shown(&bench, "delivery_stalled") && !shown(&bench, "delivery_circuit_open"));
    assert!(!shown(&bench, "delivery_leading"));
    bench.stop().await;
}

/// A dead letter releases its subject before it is recorded. Where that is refused, whoever delivers next knows nothing of
/// it (ADR 0016).
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_was_not_recorded_is_tried_again_and_may_come_behind_its_subject() {
    let database = new_database();
    let behaviour = Behaviour::by_request(|head| if head.number == 1 { Behaviour::status(400) } else { Behaviour::Ok });
    let mut bench = Bench::shared(&server().url(&database), None, behaviour, |_| {}).await;
    server().sql(&database, TAKEN).unwrap();
    bench.until("standing by", |bench| bench.status().standby).await;
    let (first, second) = (bench.append("a").await, bench.append("a").await);
    // No commit gets through any more.
    let kept = keeping(&database, "LOCK TABLE outrigger.replicas IN SHARE MODE");
    bench.until("the lock", |_| is(&database, "state = 'idle in transaction'")).await;
    let free = "UPDATE outrigger.leases SET until = now()";
    server().sql(&database, free).unwrap();
    bench.until("the second one", |bench| bench.taken() == [second]).await;

    server().sql(&database, TAKEN).unwrap();
    bench.until("standing by", |bench| bench.status().standby).await;
    bench.until("the commit to fail", |bench| *bench.journal.health().borrow() != Health::Writable).await;
    let_go(kept);
    server().sql(&database, free).unwrap();

    let row = bench.all_settled().await;
    assert_eq!((row.delivered, row.parked), (2, 0));
    assert_eq!(bench.taken(), [second, first, second]);
    bench.stop().await;
}

/// In front of the server: while `refusing`, nobody reads; commits and leases pass.
fn without_reads(database: &str, refusing: &Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, behind) = (listener.local_addr().unwrap().port(), server().port());
    let refusing = Arc::clone(refusing);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let upstream = TcpStream::connect(("127.0.0.1", behind)).unwrap();
            let answers = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
            let refusing = Arc::clone(&refusing);
            std::thread::spawn(move || pass(answers, |_| true));
            std::thread::spawn(move || {
                let reads = |said: &[u8]| said.windows(9).any(|window| window == b"READ ONLY");
                pass((client, upstream), |said| !(refusing.load(Ordering::Relaxed) && reads(said)));
            });
        }
    });
    server().url(database).replace(&format!(":{behind}/"), &format!(":{own}/"))
}

fn pass((mut from, mut to): (TcpStream, TcpStream), may: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !may(&buffer[..read]) || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// As where a role has used up its connections, or a pool: those for commits and leases are there.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_read_leaves_the_sink_to_one_that_can() {
    let database = new_database();
    let refusing = Arc::new(AtomicBool::new(false));
    let blind = without_reads(&database, &refusing);
    let mut first = Bench::shared(&blind, None, Behaviour::Ok, |_| {}).await;
    first.until("it leads", |bench| bench.metrics().contains("delivery_leading{sink=\"gateway\"} 1")).await;
    let mut second = Bench::shared(&server().url(&database), None, Behaviour::Ok, |_| {}).await;
    second.until("standing by", |bench| bench.status().standby).await;

    refusing.store(true, Ordering::Relaxed);
    let seq = second.append("a").await;

    second.until("the other one delivers", |bench| bench.taken() == [seq]).await;
    // The first one gets the lease, cannot begin, and does not keep it.
    second.stop().await;
    let taken = "SELECT count(*) FROM outrigger.leases WHERE epoch > 2";
    second.until("the first one has tried", |_| server().sql(&database, taken).unwrap() == "1").await;
    second.start();
    let seq = [seq, second.append("a").await];
    second.until("the other one delivers again", |bench| bench.taken() == seq).await;
    first.stop().await;
    second.stop().await;
}

/// Nothing but a new process goes on, and nobody but this one knows: it ends, so that what supervises it starts another.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_database_has_lost_something_ends() {
    let database = new_database();
    let mut bench = Bench::shared(&server().url(&database), None, Behaviour::Ok, |_| {}).await;
    bench.append("a").await;
    bench.until("it is delivered", |bench| bench.taken().len() == 1).await;
    let (mut shell, readiness) = (Shell::new(), Readiness::default());
    kit_delivery::start::watch_journal(&mut shell, &bench.journal, &readiness);

    let restored = "DELETE FROM outrigger.events; DELETE FROM outrigger.keys; UPDATE outrigger.head SET last_seq = 0";
    server().sql(&database, restored).unwrap();

    let code = tokio::time::timeout(DEADLINE, shell.run(Duration::from_secs(5), Signals::receive())).await.unwrap();
    assert_eq!(code, kit::lifecycle::exit::DIED);
    assert!(!readiness.is_ready());
    bench.stop().await;
}
