//! The ledger where several replicas share a journal in a real PostgreSQL: whoever sends to Lago has the whole of it.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit_lago::stand_in::billing::{Faults, Latency, Profile};
use kit_workbench::database::Database;
use serde_json::{Value, json};

use crate::bench::*;
use crate::proof::{SETTLE, compared, prepare, states};

/// Another replica takes over, and keeps it.
const TAKEN: &str =
    "UPDATE outrigger.leases SET holder = gen_random_uuid(), epoch = epoch + 1, until = now() + interval '50 s'";
const FREE: &str = "UPDATE outrigger.leases SET until = now()";

async fn bench(database: &Database) -> Bench {
    database.create("j").unwrap();
    let url = database.url("j");
    let patience = ("SIDECAR_LAGO__TIMEOUT__TOTAL_SECONDS", "10");
    let env = [SETTLE, patience, ("SIDECAR_JOURNAL__ENGINE", "postgres"), ("DATABASE_URL", &*url)];
    Bench::beside(Profile::V1_39, &env, prepare).await
}

fn visits(numbers: std::ops::Range<usize>) -> Vec<Value> {
    let now = jiff::Timestamp::now().as_second();
    let visit = |n| json!({ "transaction_id": format!("t-{n}"), "external_subscription_id": "s-0", "code": "visits", "timestamp": now });
    numbers.map(visit).collect()
}

async fn until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Lago has confirmed events while no commit gets through, and then the lease is lost: they come again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_booked_and_not_recorded_when_a_lease_is_lost_is_booked_once() {
    let database = Database::start(&[]).unwrap();
    let bench = bench(&database).await;
    // Time for somebody to be in the way before the confirmation is recorded.
    let slow = Latency::Fixed(Duration::from_secs(3));
    bench.lago.set_faults(Faults { latency: slow, ..Faults::default() });
    bench.report(&visits(0..10)).await;
    bench.lago.wait_until(DEADLINE, |counts| counts.batches >= 1).await.unwrap();
    let mut keeping = Command::new("psql");
    keeping.args(["-XAtq", &database.url("j")]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut keeping = keeping.spawn().unwrap();
    writeln!(keeping.stdin.as_mut().unwrap(), "BEGIN; LOCK TABLE outrigger.replicas IN SHARE MODE;").unwrap();
    until("a confirmation", || bench.lago.ledger().len() == 10).await;
    let waits =
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("a commit that waits", || database.sql("j", waits).unwrap() == "t").await;

    database.sql("j", TAKEN).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while bench.is_ready().await {
        assert!(Instant::now() < deadline, "the commit is never given up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(keeping.stdin.take());
    keeping.wait().unwrap();
    bench.until_sinks("standing by", |sinks| sinks["lago"]["status"]["standby"] == true).await;
    database.sql("j", FREE).unwrap();

    bench
        .until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0 && sinks["lago"]["status"]["standby"] == false)
        .await;
    let ledger = compared(&bench).await;
    assert_eq!(states(&ledger), ["s-0 visits 10 10 equal"], "{ledger}");
}

/// A second replica was there from the beginning, and knows nothing of what the first one has booked.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_over_has_the_whole_ledger() {
    let database = Database::start(&[]).unwrap();
    let mut bench = bench(&database).await;
    let second = bench.replica().await;
    bench.report(&visits(0..10)).await;
    bench.until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0).await;
    assert_eq!(states(&compared(&bench).await), ["s-0 visits 10 10 equal"]);

    bench.go_on_with(second).await;
    bench.report(&visits(10..15)).await;

    bench
        .until_sinks("sending", |sinks| sinks["lago"]["pending"] == 0 && sinks["lago"]["status"]["standby"] == false)
        .await;
    let ledger = compared(&bench).await;
    assert_eq!(states(&ledger), ["s-0 visits 15 15 equal"], "{ledger}");
    let metrics = bench.metrics().await;
    assert_eq!(metrics.get("usage_missing_events", &[]), Some(0.0));
}
