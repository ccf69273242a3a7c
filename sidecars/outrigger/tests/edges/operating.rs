//! `dead-letters`, `sinks`, `stats` and `doctor`.

use kit_workbench::gateway::Behaviour;
use serde_json::Value;

use crate::bench::{Bench, DEADLINE, outrigger};

#[tokio::test]
async fn dead_letters_are_counted_first_and_replayed_on_request() {
    let bench = Bench::with_dead_letters(3).await;

    let listed = bench.ask_json(&["dead-letters", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let table = bench.ask(&["dead-letters", "list"]).await.ok().out;
    assert!(table.contains("400"), "the reason is shown: {table}");
    let id = listed[0]["event_id"].as_str().unwrap();
    let shown = bench.ask_json(&["dead-letters", "show", id]).await;
    assert_eq!(shown["attempts"][0]["status"], 400);

    let counted = bench.ask_json(&["dead-letters", "replay", "--all", "--dry-run"]).await;
    assert_eq!((&counted["matched"], &counted["changed"]), (&3.into(), &0.into()));
    // A filter without a terminal to confirm on does nothing.
    bench.ask(&["dead-letters", "replay", "--all"]).await.failed(1, "--yes");
    assert_eq!(bench.wait_sink(|_| true).await["parked"], 3);

    let one = bench.ask_json(&["dead-letters", "replay", id]).await;
    assert_eq!(one["changed"], 1);
    bench.wait_sink(|sink| sink["delivered"] == 1).await;
    let rest = bench.ask_json(&["dead-letters", "replay", "--type", "lago.invoice.*", "--rate", "100", "--yes"]).await;
    assert_eq!(rest["changed"], 2);
    bench.wait_sink(|sink| sink["delivered"] == 3 && sink["parked"] == 0).await;
    assert_eq!(bench.gateway.counts().unique, 3);
    let none = bench.ask(&["dead-letters", "list"]).await.ok().out;
    assert!(none.contains("no dead letters"), "{none}");
}

#[tokio::test]
async fn dropped_dead_letters_stay_listed_with_the_reason() {
    let bench = Bench::with_dead_letters(2).await;

    bench.ask(&["dead-letters", "drop", "--all", "--yes", "--reason", "test data"]).await.ok();

    let sink = bench.wait_sink(|sink| sink["parked"] == 0).await;
    assert_eq!((&sink["dropped"], &sink["delivered"]), (&2.into(), &0.into()));
    let dropped = bench.ask_json(&["events", "list", "--state", "dropped"]).await;
    assert_eq!(dropped[0]["deliveries"]["gateway"]["reason"], "test data");
}

#[tokio::test]
async fn an_action_wants_to_know_which() {
    let bench = Bench::start().await;

    for verb in ["replay", "drop"] {
        bench.ask(&["dead-letters", verb]).await.failed(1, "--all");
        bench.ask(&["dead-letters", verb, "--sink", "gateway"]).await.failed(1, "--all");
        bench.ask(&["dead-letters", verb, "--all", "some-id"]).await.failed(2, "--all");
        bench.ask(&["dead-letters", verb, "not-an-id"]).await.failed(1, "UUID");
    }
    bench.ask(&["dead-letters", "replay", "--all", "--sink", "elsewhere"]).await.failed(1, "elsewhere");
    bench.ask(&["dead-letters", "replay", "--all", "--rate=-1"]).await.failed(1, "rate");
    bench.ask(&["dead-letters", "list", "--limit", "0"]).await.failed(2, "--limit");
}

#[tokio::test]
async fn an_unknown_id_is_reported_as_unavailable() {
    let bench = Bench::start().await;

    let result = bench.ask_json(&["dead-letters", "replay", "00000000-0000-4000-8000-000000000000"]).await;

    assert_eq!((&result["matched"], &result["unavailable"]), (&0.into(), &1.into()));
}

#[tokio::test]
async fn a_sink_is_paused_and_resumed() {
    let bench = Bench::start().await;

    let said = bench.ask(&["sinks", "pause", "gateway"]).await.ok().out;
    assert!(said.contains("paused"), "{said}");
    let again = bench.ask(&["sinks", "pause", "gateway"]).await.ok().out;
    assert!(again.contains("already"), "{again}");
    bench.send(&["--count", "2"]).await.ok();
    assert_eq!(bench.wait_sink(|sink| sink["pending"] == 2).await["paused"], true);
    let table = bench.ask(&["sinks", "list"]).await.ok().out;
    assert!(table.contains("paused"), "{table}");
    bench.ask(&["doctor"]).await.failed_on_stdout("outrigger sinks resume gateway");

    let resumed = bench.ask_json(&["sinks", "resume", "gateway"]).await;
    assert_eq!(resumed["changed"], true);
    bench.wait_sink(|sink| sink["delivered"] == 2).await;
    bench.ask(&["sinks", "pause", "elsewhere"]).await.failed(1, "elsewhere");
    bench.ask(&["sinks", "pause", "../statistics"]).await.failed(1, "404");
}

#[tokio::test]
async fn statistics_add_up() {
    let bench = Bench::start().await;
    bench.send(&["--count", "5"]).await.ok();
    bench.wait_sink(|sink| sink["delivered"] == 5).await;

    let statistics = bench.ask_json(&["stats"]).await;

    assert_eq!(statistics["accepted"], 5);
    assert_eq!(statistics["sinks"][0]["accepted"], 5);
    let text = bench.ask(&["stats"]).await.ok().out;
    assert!(text.contains("gateway") && text.contains('5'), "{text}");
    outrigger(&["stats"], &[]).await.failed(1, "--token-file");
}

#[tokio::test]
async fn the_doctor_finds_nothing_wrong_with_a_healthy_daemon() {
    let bench = Bench::start().await;

    let findings = bench.ask_json(&["doctor"]).await;

    assert_eq!(findings["healthy"], true);
    let findings = findings["findings"].as_array().unwrap();
    for check in ["daemon", "ready", "journal", "sink", "clock"] {
        let is_well = |finding: &Value| finding["check"] == check && finding["state"] == "ok";
        assert!(findings.iter().any(is_well), "{check} is not in {findings:?}");
    }
}

#[tokio::test]
async fn the_doctor_names_dead_letters_and_an_absent_gateway() {
    let bench = Bench::with_dead_letters(1).await;
    bench.ask(&["doctor"]).await.failed_on_stdout("dead letters");

    bench.gateway.stop().await;
    bench.send(&["--count", "8"]).await.ok();
    bench.wait_sink(|sink| sink["status"]["circuit"] != "closed").await;

    bench.ask(&["doctor"]).await.failed_on_stdout("gateway does not take events");
    let findings = bench.ask(&["doctor", "--json"]).await;
    assert_eq!(findings.code, Some(1));
    assert!(findings.json()["findings"].as_array().unwrap().iter().any(|finding| finding["fix"].is_string()));
}

#[tokio::test]
async fn the_doctor_tells_a_missing_daemon_from_a_wrong_token() {
    let mut bench = Bench::start().await;
    let [admin, _] = bench.environment();

    outrigger(&["doctor"], &[admin, ("OUTRIGGER_TOKEN", "wrong")]).await.failed_on_stdout("--token-file");
    outrigger(&["doctor"], &[admin]).await.failed_on_stdout("--token-file");
    // Not a daemon at all.
    let gateway = bench.gateway.url();
    bench.gateway.set_behaviour(Behaviour::status(404));
    outrigger(&["doctor", "--admin", &gateway], &[]).await.failed_on_stdout("/livez answers 404");
    bench.daemon.kill9().await.unwrap();
    bench.daemon.wait(DEADLINE).await.unwrap();
    bench.ask(&["doctor"]).await.failed_on_stdout("start it");
}

impl crate::bench::Ran {
    /// Findings are results, so they are on standard output; only the code says that some are bad.
    #[track_caller]
    fn failed_on_stdout(self, naming: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.out.contains(naming), "{naming:?} is not in {self:?}");
    }
}
