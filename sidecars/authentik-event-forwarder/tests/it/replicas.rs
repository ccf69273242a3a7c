//! Several replicas over one journal in PostgreSQL.

use std::time::Instant;

use kit_authentik::emulator::{Generation, NewEvent};
use kit_workbench::database::Database;

use crate::bench::*;

const STANDBY: &str = "another replica reads Authentik's events";
const INTERVAL: f64 = 0.5;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_asks_authentik_and_the_other_takes_over() {
    let database = Database::start(&[]).unwrap();
    database.create("journal").unwrap();
    let url = database.url("journal");
    let authentik = authentik(Generation::V2026_2).await;
    let interval = INTERVAL.to_string();
    let settings = [
        ("SIDECAR_JOURNAL__ENGINE", "postgres"),
        ("DATABASE_URL", url.as_str()),
        ("SIDECAR_POLL__INTERVAL_SECONDS", interval.as_str()),
        ("SIDECAR_POLL__OVERLAP_SECONDS", "60"),
    ];
    let mut first = Bench::beside(&authentik, &settings).await;
    first.wait_said("ready").await;
    let second = Bench::beside(&authentik, &settings).await;
    second.wait_said(STANDBY).await;

    let (begun, before) = (Instant::now(), authentik.counts().requests);
    first.wait_metric("authentik_api_requests_total", &[], before + 8).await;
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let (asked, intervals) = ((authentik.counts().requests - before) as f64, begun.elapsed().as_secs_f64() / INTERVAL);
    assert!(asked <= intervals + 1.5, "{asked} requests in {intervals} intervals");
    assert_eq!(second.metric("authentik_api_requests_total", &[]).await, 0);

    first.daemon.kill9().await.unwrap();
    authentik.happen(NewEvent::login(&ada()));

    second.wait_api("/api/v1/statistics", |s| s["accepted"] == 1).await;
    second.wait_said("ready").await;
    assert!(second.metric("authentik_api_requests_total", &[]).await > 0);
    // Stopped in order it lets the next one begin at once.
    let third = Bench::beside(&authentik, &settings).await;
    third.wait_said(STANDBY).await;
    let held = |condition: &str| {
        let sql = "SELECT coalesce(max(epoch), 0) FROM outrigger.leases WHERE until > clock_timestamp() AND sink ~ 'poll' AND ";
        database.sql("journal", &format!("{sql} {condition}")).unwrap()
    };
    let of_the_second = held("true");
    assert_ne!(of_the_second, "0");
    let mut second = second;
    second.daemon.term().unwrap();
    assert_eq!(second.daemon.wait(DEADLINE).await.unwrap().code, Some(0));
    assert_eq!(held(&format!("epoch = {of_the_second}")), "0", "given back");
    third.wait_said("ready").await;
}
