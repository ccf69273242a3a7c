//! A bridge that was away for longer than the server remembers what has ended.

use std::time::Duration;

use kit_workbench::raw;
use kit_workbench::temporal::TemporalOptions;
use outrigger_tests::grpc::{Does, GrpcProxy};
use outrigger_tests::temporal::{Bench, Release};
use serde_json::{Value, json};

use crate::observer::{QUICK, SOON};

/// Dates what the bridge remembers of `default` back by so many hours, while it is down: how far it has come, and when it
/// has looked.
fn date_back(bench: &Bench, hours: i64) {
    let journal = rusqlite::Connection::open(bench.rig.journal_path()).unwrap();
    let earlier = |time: &Value| json!(time.as_i64().unwrap() - hours * 3_600_000_000);
    for name in ["observer/position/default", "observer/looked/default"] {
        let stored = "SELECT value FROM meta WHERE name = ?1";
        let stored: Vec<u8> = journal.query_row(stored, [name], |row| row.get(0)).unwrap();
        let mut value: Value = serde_json::from_slice(&stored).unwrap();
        match value.as_object_mut() {
            Some(position) => position.values_mut().for_each(|time| *time = earlier(time)),
            None => value = earlier(&value),
        }
        let changed = "UPDATE meta SET value = ?2 WHERE name = ?1";
        assert_eq!(journal.execute(changed, (name, value.to_string().into_bytes())).unwrap(), 1);
    }
}

/// The namespace keeps what has ended for a day.
pub(crate) async fn a_bridge_that_was_away_longer_than_the_retention_says_so(release: Release) {
    let mut bench = Bench::observing(release, TemporalOptions::default(), &QUICK).await.unwrap();
    let ids = bench.start_idle("w", 3).await.unwrap();
    bench.terminate_all(&ids).await.unwrap();
    bench.wait_told(3, SOON).await.unwrap();
    let missed = async |bench: &Bench| bench.rig.metrics().await.unwrap().sum("observer_missed_seconds", &[]);
    let said = |bench: &Bench| bench.rig.end_of_log(1000).lines().filter(|line| line.contains("may be lost")).count();

    bench.rig.stop().await.unwrap();
    date_back(&bench, 20);
    bench.rig.start().await.unwrap();
    bench.nothing_more(3, 5.0).await.unwrap();
    assert_eq!((missed(&bench).await, said(&bench)), (0.0, 0), "the server still knows all of it");

    bench.rig.stop().await.unwrap();
    date_back(&bench, 30);
    bench.rig.start().await.unwrap();
    bench.nothing_more(3, 5.0).await.unwrap();
    let seconds = missed(&bench).await;
    assert!((5.9 * 3600.0..6.2 * 3600.0).contains(&seconds), "{seconds} s of 6 h");
    assert_eq!(said(&bench), 1, "{}", bench.rig.end_of_log(10));
    // And goes on as ever.
    let more = bench.start_idle("more", 3).await.unwrap();
    bench.terminate_all(&more).await.unwrap();
    bench.wait_told(6, SOON).await.unwrap();
    assert_eq!(said(&bench), 1);
}

/// What `/readyz` says of the observer.
async fn ready(bench: &Bench) -> String {
    let ready = raw::get(bench.rig.admin, "/readyz", Duration::from_secs(10)).await.unwrap();
    ready.json().unwrap()["parts"]["observer of default"].as_str().unwrap_or_default().to_owned()
}

/// The namespace keeps what has ended for a day, and whoever asks for that is refused.
pub(crate) async fn a_retention_that_may_not_be_asked_for_is_an_hour_or_configured_and_said(release: Release) {
    let mut bench = Bench::observing(release, TemporalOptions::default(), &QUICK).await.unwrap();
    let proxy = GrpcProxy::start(bench.server.addr(), Does::Refuse("DescribeNamespace")).await.unwrap();
    bench.rig.set("TEMPORAL_ADDRESS", &proxy.addr().to_string());
    let ids = bench.start_idle("w", 3).await.unwrap();
    bench.terminate_all(&ids).await.unwrap();
    bench.wait_told(3, SOON).await.unwrap();
    let missed = async |bench: &Bench| bench.rig.metrics().await.unwrap().sum("observer_missed_seconds", &[]);
    let said =
        |bench: &Bench, what: &str| bench.rig.end_of_log(1000).lines().filter(|line| line.contains(what)).count();

    bench.rig.stop().await.unwrap();
    date_back(&bench, 20);
    bench.rig.set("SIDECAR_TEMPORAL__RETENTION_SECONDS", "86400");
    bench.rig.start().await.unwrap();
    bench.nothing_more(3, 5.0).await.unwrap();
    assert_eq!((missed(&bench).await, said(&bench, "may be lost")), (0.0, 0), "the server still knows all of it");
    assert_eq!(ready(&bench).await, "ready");

    bench.rig.stop().await.unwrap();
    date_back(&bench, 20);
    bench.rig.set("SIDECAR_TEMPORAL__RETENTION_SECONDS", "");
    bench.rig.start().await.unwrap();
    let begin = std::time::Instant::now();
    while !ready(&bench).await.contains("SIDECAR_TEMPORAL__RETENTION_SECONDS") {
        assert!(begin.elapsed() < SOON, "{}: {}", ready(&bench).await, bench.rig.end_of_log(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.nothing_more(3, 5.0).await.unwrap();
    let seconds = missed(&bench).await;
    assert!((18.9 * 3600.0..19.2 * 3600.0).contains(&seconds), "{seconds} s of 19 h");
    assert_eq!(said(&bench, "may be lost"), 1, "{}", bench.rig.end_of_log(10));
    assert_eq!(said(&bench, "may not be asked"), 1, "{}", bench.rig.end_of_log(10));
}

pub(crate) async fn a_position_that_cannot_be_read_is_said_and_not_begun_anew(release: Release) {
    let mut bench = Bench::observing(release, TemporalOptions::default(), &QUICK).await.unwrap();
    let ids = bench.start_idle("w", 3).await.unwrap();
    bench.terminate_all(&ids[..1]).await.unwrap();
    bench.wait_told(1, SOON).await.unwrap();
    bench.rig.stop().await.unwrap();
    let swap = |bench: &Bench, value: &[u8]| -> Vec<u8> {
        let journal = rusqlite::Connection::open(bench.rig.journal_path()).unwrap();
        let name = "observer/position/default";
        let was = journal.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).unwrap();
        assert_eq!(journal.execute("UPDATE meta SET value = ?2 WHERE name = ?1", (name, value)).unwrap(), 1);
        was
    };
    let position = swap(&bench, br#"{"cursor":7}"#);
    bench.terminate_all(&ids[1..]).await.unwrap();
    bench.rig.start().await.unwrap();
    let begin = std::time::Instant::now();
    while !ready(&bench).await.contains("value observer/position/default of the journal") {
        assert!(begin.elapsed() < SOON, "{}: {}", ready(&bench).await, bench.rig.end_of_log(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.rig.stop().await.unwrap();
    swap(&bench, &position);
    bench.rig.start().await.unwrap();
    bench.wait_told(3, SOON).await.unwrap();
}
