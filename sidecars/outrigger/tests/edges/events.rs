//! `events`, and what a listing does about a daemon that does not answer as hoped.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::bench::{Bench, DEADLINE, command, outrigger};

#[tokio::test]
async fn accepted_events_are_listed_newest_first_and_shown_in_full() {
    let bench = Bench::start().await;
    bench.send(&["--type", "fee.created", "--customer", "c-1"]).await.ok();
    bench.send(&["--type", "wallet.created", "--customer", "c-2"]).await.ok();
    bench.wait_sink(|sink| sink["delivered"] == 2).await;

    let all = bench.ask_json(&["events", "list"]).await;
    let fees = bench.ask_json(&["events", "list", "--type", "lago.fee.*", "--state", "delivered"]).await;

    let types: Vec<_> = all.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["lago.wallet.created", "lago.fee.created"]);
    assert_eq!(fees.as_array().unwrap().len(), 1);
    assert_eq!(fees[0]["tenant"], "c-1");

    // Of a misspelt sink an empty list would say that all is well.
    for verb in ["events", "dead-letters"] {
        bench.ask(&[verb, "list", "--sink", "nosuch"]).await.failed(1, "sink \"nosuch\" not found");
    }

    let id = fees[0]["id"].as_str().unwrap();
    let twice = bench.ask(&["dead-letters", "replay", id, id, "--dry-run", "--json"]).await.ok().json();
    assert_eq!((&twice["matched"], &twice["unavailable"]), (&1.into(), &0.into()));
    let shown = bench.ask_json(&["events", "show", id]).await;
    assert_eq!(shown["attempts"].as_array().unwrap().len(), 1);
    assert!(shown["body"].as_str().unwrap().contains("fee.created"));
    // With its place it is found there, and with another one all the same.
    for place in ["", "?seq=1", "?seq=2", "?seq=99"] {
        let [(_, admin), (_, token_file)] = bench.environment();
        let token = std::fs::read_to_string(token_file).unwrap();
        let url = format!("{admin}/api/v1/events/{id}/body{place}");
        let body = reqwest::Client::new().get(url).bearer_auth(token.trim()).send().await.unwrap();
        assert_eq!(body.text().await.unwrap(), shown["body"].as_str().unwrap(), "{place}");
    }
    // To another daemon than the tracker every question about usage would be answered that there is nothing.
    for verb in [&["parked"][..], &["show", "t-1"], &["redrive", "--all", "--yes"], &["reconcile"], &["tail"]] {
        bench.ask(&[&["usage"], verb].concat()).await.failed(1, "is not a usage tracker");
    }
    let table = bench.ask(&["events", "list"]).await.ok().out;
    assert!(table.contains(id) && table.contains("lago.wallet.created"), "{table}");
    let text = bench.ask(&["events", "show", id]).await.ok().out;
    assert!(text.contains("c-1") && text.contains("delivered"), "{text}");
}

#[tokio::test]
async fn a_listing_goes_on_over_pages_up_to_its_limit() {
    let bench = Bench::start().await;
    bench.send(&["--count", "7"]).await.ok();

    let listed = bench.ask_json(&["events", "list", "--limit", "3"]).await;

    assert_eq!(listed.as_array().unwrap().len(), 3);
    let table = bench.ask(&["events", "list", "--limit", "3"]).await.ok().out;
    assert!(table.contains("there are more"), "{table}");
    bench.ask(&["events", "list", "--limit", "0"]).await.failed(2, "--limit");
}

#[tokio::test]
async fn an_event_that_does_not_exist_is_an_error() {
    let bench = Bench::start().await;

    bench.ask(&["events", "show", "00000000-0000-4000-8000-000000000000"]).await.failed(1, "404");
    bench.ask(&["events", "show", "not-an-id"]).await.failed(1, "UUID");
    bench.ask(&["events", "list", "--since", "yesterday"]).await.failed(1, "since");
    bench.ask(&["events", "list", "--state", "happy"]).await.failed(1, "state");
}

#[tokio::test]
async fn the_way_to_the_daemon_is_explained_when_it_is_closed() {
    let bench = Bench::start().await;
    let [admin, _] = bench.environment();
    let wrong = bench.scratch.write("wrong", "another-token-another-token-another").unwrap();
    let missing = bench.scratch.file("missing");

    outrigger(&["events", "list"], &[admin]).await.failed(1, "--token-file");
    outrigger(&["events", "list"], &[admin, ("OUTRIGGER_TOKEN_FILE", wrong.to_str().unwrap())]).await.failed(1, "401");
    outrigger(&["events", "list"], &[admin, ("OUTRIGGER_TOKEN_FILE", missing.to_str().unwrap())])
        .await
        .failed(1, "missing");
    let nobody = kit_workbench::scratch::free_address().unwrap();
    let nobody = format!("http://{nobody}");
    let token = ("OUTRIGGER_TOKEN", "x");
    outrigger(&["events", "list", "--admin", &nobody], &[token]).await.failed(1, &nobody);
    outrigger(&["events", "list", "--admin", "not a url"], &[token]).await.failed(1, "--admin");
}

#[tokio::test]
async fn the_token_may_come_by_environment() {
    let bench = Bench::start().await;
    let [admin, (_, file)] = bench.environment();
    let token = std::fs::read_to_string(file).unwrap();

    outrigger(&["events", "list"], &[admin, ("OUTRIGGER_TOKEN", &token)]).await.ok();
}

#[tokio::test]
async fn tail_prints_every_event_of_a_burst() {
    let bench = Bench::start().await;
    bench.send(&["--type", "fee.created"]).await.ok();
    let mut tail = command(&["events", "tail", "--json"], &bench.environment()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    // What was there before is not printed, so a first event has to be seen until the burst counts.
    let marker = async {
        loop {
            bench.send(&["--type", "wallet.created"]).await.ok();
            let line = tokio::time::timeout(std::time::Duration::from_secs(2), lines.next_line()).await;
            if let Ok(line) = line {
                return line.unwrap().unwrap();
            }
        }
    };
    let marker = tokio::time::timeout(DEADLINE, marker).await.unwrap();
    assert!(marker.contains("lago.wallet.created"), "{marker}");

    bench.send(&["--type", "coupon.created", "--count", "250"]).await.ok();

    let mut seen = 0;
    while seen < 250 {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("a line in time").unwrap().unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        seen += u64::from(event["type"] == "lago.coupon.created");
    }
    interrupt(&tail);
    let status = tokio::time::timeout(DEADLINE, tail.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let bench = Bench::start().await;
    bench.send(&["--count", "200"]).await.ok();
    let mut listing = command(&["events", "list", "--limit", "200"], &bench.environment());
    let mut listing = listing.stdout(Stdio::piped()).spawn().unwrap();
    // As `| head -0` does.
    drop(listing.stdout.take());

    let output = tokio::time::timeout(DEADLINE, listing.wait_with_output()).await.unwrap().unwrap();

    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

/// Ctrl-C.
pub(crate) fn interrupt(child: &tokio::process::Child) {
    let id = i32::try_from(child.id().expect("it runs")).unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
}

/// As the runbook about webhooks that Lago gave up says, long after it came.
#[tokio::test]
async fn one_event_is_looked_up_by_the_key_that_lago_has_for_it() {
    let bench = Bench::start().await;
    bench.send(&["--unique-key", "k-first"]).await.ok();
    bench.send(&["--count", "60"]).await.ok();

    let found = bench.ask_json(&["events", "list", "--source", "lago/default", "--key", "k-first"]).await;
    let missing = bench.ask_json(&["events", "list", "--source", "lago/default", "--key", "k-none"]).await;

    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["key"], "k-first");
    assert_eq!(missing.as_array().unwrap().len(), 0);
    let newest = bench.ask(&["events", "list", "--json"]).await.ok();
    assert_eq!(newest.json().as_array().unwrap().len(), 50);
    assert!(newest.err.contains("there are more"), "{newest:?}");
    bench.ask(&["events", "list", "--key", "k-first"]).await.failed(2, "--source");
}
