//! `usage import`: every event of a file reaches Lago once, whatever ends in between.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::bench::{DEADLINE, command, outrigger};
use crate::events::interrupt;
use crate::tracker::Tracker;

const HEADER: &str = "transaction_id,external_subscription_id,code,timestamp,gb\n";

/// A file with so many events.
fn csv(count: usize) -> String {
    let mut text = HEADER.to_owned();
    for n in 0..count {
        let _ = writeln!(text, "t-{n},s-{},gb,{},{}.{:02}", n % 7, 1_732_000_000 + n, n % 13, n % 100);
    }
    text
}

/// What Lago must have of it.
fn expected(count: usize) -> Vec<String> {
    let one = |n: usize| format!(r#"s-{} t-{n} gb {} {{"gb":"{}.{:02}"}}"#, n % 7, 1_732_000_000 + n, n % 13, n % 100);
    let mut all: Vec<String> = (0..count).map(one).collect();
    all.sort();
    all
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

async fn settled(tracker: &Tracker, count: usize) {
    tracker.wait_sink(|sink| sink["delivered"] == count && sink["pending"] == 0).await;
    assert_eq!(tracker.billed(), expected(count));
}

/// Waits until the import has remembered that events were taken; how many.
async fn some_taken(state: &Path) -> u64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let kept = std::fs::read(state).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        if let Some(taken) = kept.and_then(|kept| kept["events"].as_u64()).filter(|taken| *taken > 0) {
            return taken;
        }
        assert!(Instant::now() < deadline, "nothing is remembered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_file_is_checked_first_and_then_brought_to_lago_as_it_is_written() {
    let tracker = Tracker::start().await;
    let file = text(&tracker.write("usage.csv", &csv(1_234)));

    let dry = tracker.ask_json(&["import", &file, "--dry-run"]).await;
    assert_eq!((&dry["events"], &dry["taken"]), (&1_234.into(), &0.into()));
    assert_eq!((&dry["by"][0]["subscription"], &dry["by"][0]["events"]), (&"s-0".into(), &177.into()));
    assert_eq!(dry["first"], "2024-11-19T07:06:40.000Z");
    assert_eq!(tracker.wait_sink(|_| true).await["accepted"], 0);

    let said = tracker.ask(&["import", &file]).await.ok().out;
    assert!(said.contains("1234 events are taken"), "{said}");
    settled(&tracker, 1_234).await;

    // Once more, as JSON lines and by standard input: Lago has them all.
    let mut lines = String::new();
    for line in csv(1_234).lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let [id, subscription, code, timestamp, gb] = cells[..] else { panic!("{line}") };
        let _ = writeln!(
            lines,
            r#"{{"transaction_id":"{id}","external_subscription_id":"{subscription}","code":"{code}","timestamp":{timestamp},"properties":{{"gb":"{gb}"}}}}"#
        );
    }
    let mut import = command(&["usage", "import", "-", "--format", "jsonl", "--json"], &tracker.environment());
    let mut import = import.stdin(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(lines.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(DEADLINE, import.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["taken"], 1_234);
    settled(&tracker, 1_234).await;
}

/// The command is killed, then interrupted, in the middle of a file.
#[tokio::test]
async fn an_interrupted_import_goes_on_and_every_event_is_billed_once() {
    let tracker = Tracker::start().await;
    let path = tracker.write("usage.csv", &csv(5_000));
    let (file, state) = (text(&path), path.with_added_extension("progress"));

    let mut import = tracker.spawn(&["import", &file, "--rate", "500"]);
    let taken = some_taken(&state).await;
    import.kill().await.unwrap();
    assert!(taken < 5_000, "{taken}");

    let import = tracker.spawn(&["import", &file, "--rate", "500"]);
    let before = std::fs::read(&state).unwrap();
    while std::fs::read(&state).unwrap() == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    interrupt(&import);
    let ended = tokio::time::timeout(DEADLINE, import.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("interrupted"), "{ended:?}");

    let report = tracker.ask_json(&["import", &file]).await;
    assert!(report["from_line"].as_u64().unwrap() > taken, "it went on: {report}");
    assert_eq!(report["taken"], 5_000);
    assert!(!state.exists(), "nothing is left to go on with");
    settled(&tracker, 5_000).await;
}

#[tokio::test]
async fn an_import_waits_for_a_tracker_that_is_killed() {
    let mut tracker = Tracker::start().await;
    let path = tracker.write("usage.csv", &csv(4_000));
    let import = tracker.spawn(&["import", &text(&path), "--rate", "800", "--json"]);
    some_taken(&path.with_added_extension("progress")).await;

    tracker.be_missed().await;
    tracker.restart().await;

    let ended = tokio::time::timeout(DEADLINE, import.wait_with_output()).await.unwrap().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    settled(&tracker, 4_000).await;
}

#[tokio::test]
async fn a_file_with_a_wrong_line_is_not_sent_unless_that_is_left_out() {
    let tracker = Tracker::start().await;
    let good = csv(10);
    let path = tracker.write("usage.csv", &format!("{good},s-1,gb,1,1\nx,s-1,gb,tomorrow,1\n"));
    let file = text(&path);

    let ran = tracker.ask(&["import", &file]).await;
    assert!(ran.out.contains("line 12: transaction_id is missing"), "{ran:?}");
    assert!(ran.out.contains("line 13: timestamp: invalid_format"), "{ran:?}");
    ran.failed(1, "2 of 12 lines are wrong, none was sent");
    assert_eq!(tracker.wait_sink(|_| true).await["accepted"], 0);
    tracker.ask(&["import", &file, "--dry-run"]).await.failed(1, "2 of 12 lines are wrong");

    let report = tracker.ask_json(&["import", &file, "--skip-invalid"]).await;
    assert_eq!((&report["taken"], &report["rejected"]), (&10.into(), &2.into()));
    let rejected = std::fs::read_to_string(path.with_added_extension("rejected")).unwrap();
    assert_eq!(rejected, format!("{HEADER},s-1,gb,1,1\nx,s-1,gb,tomorrow,1\n"));
    settled(&tracker, 10).await;
}

/// What is here already with other content was reported without a time, say. It cannot be billed again, and keeps nothing
/// else back; only the tracker knows of it.
#[tokio::test]
async fn lines_that_are_known_with_other_content_are_named_at_the_end_and_keep_nothing_back() {
    let tracker = Tracker::start().await;
    for n in [1, 2, 700] {
        tracker.report(&format!("s-{}", n % 7), &format!("t-{n}"), "gb").await;
    }
    tracker.wait_sink(|sink| sink["delivered"] == 3).await;
    let path = tracker.write("usage.csv", &csv(1_000));
    let file = text(&path);

    let ran = tracker.ask(&["import", &file]).await;
    assert!(ran.out.contains("997 events are taken"), "{ran:?}");
    assert!(ran.out.contains("3 lines have a transaction id that is there with other content: 3–4, 702"), "{ran:?}");
    ran.failed(1, "3 lines were not taken");
    tracker.wait_sink(|sink| sink["delivered"] == 1_000).await;
    assert!(!path.with_added_extension("progress").exists(), "nothing is left to go on with");

    let report = tracker.ask_json(&["import", &file, "--skip-invalid"]).await;
    assert_eq!((&report["taken"], &report["rejected"], &report["known"]), (&997.into(), &3.into(), &3.into()));
    assert_eq!((&report["wrong"][0]["line"], &report["known_lines"]), (&3.into(), &serde_json::json!([3, 4, 702])));
    let rejected = std::fs::read_to_string(path.with_added_extension("rejected")).unwrap();
    let lines: Vec<&str> = rejected.lines().collect();
    assert_eq!(lines[..2], [HEADER.trim(), "t-1,s-1,gb,1732000001,1.01"], "{rejected}");
    assert_eq!(lines.len(), 4, "{rejected}");
}

/// Anything else that only the tracker finds wrong ends the import, unless it is left out.
#[tokio::test]
async fn lines_that_the_tracker_refuses_stop_the_import_or_are_left_out() {
    let tracker = Tracker::rejecting().await;
    let path = tracker.write("usage.csv", &csv(1_000).replacen("t-1,s-1,gb", "t-1,s-1,tb", 1));
    let file = text(&path);

    let ran = tracker.ask(&["import", &file]).await;
    assert!(ran.out.contains("line 3: code: billable_metric_not_found"), "{ran:?}");
    ran.failed(1, "the tracker refuses 1 lines");
    assert!(tracker.billed().is_empty());

    let report = tracker.ask_json(&["import", &file, "--skip-invalid"]).await;
    assert_eq!((&report["taken"], &report["rejected"], &report["known"]), (&999.into(), &1.into(), &0.into()));
    assert_eq!(report["wrong"][0]["line"], 3);
    tracker.wait_sink(|sink| sink["delivered"] == 999).await;
}

#[tokio::test]
async fn what_an_import_needs_is_said_before_anything_is_sent() {
    let tracker = Tracker::start().await;
    let file = text(&tracker.write("usage.csv", &csv(3)));
    let odd = text(&tracker.write("usage.txt", &csv(3)));
    let wrong = text(&tracker.write("wrong", "another-token-another-token"));
    let [admin, url] = [tracker.environment()[0].1, tracker.environment()[2].1];

    outrigger(&["usage", "import", &file, "--url", url], &[]).await.failed(1, "--producer-token-file");
    let token = ["--producer-token-file", &wrong];
    tracker.ask(&["import", &file, token[0], token[1]]).await.failed(1, "the token is not known");
    tracker.ask(&["import", &odd]).await.failed(1, "--format csv");
    tracker.ask(&["import", &odd, "--format", "jsonl", "--dry-run"]).await.failed(1, "4 of 4 lines are wrong");
    tracker.ask(&["import", "/nonexistent.csv"]).await.failed(1, "/nonexistent.csv");
    tracker.ask(&["import", &text(tracker.scratch.path()), "--format", "csv"]).await.failed(1, "is a folder");
    tracker.ask(&["import", "-", "--format", "csv", "--skip-invalid"]).await.failed(1, "--rejected");
    tracker.ask(&["import", &file, "--rate", "0"]).await.failed(2, "--rate");
    tracker.ask(&["import", &file, "--url", "nowhere"]).await.failed(1, "--url");
    // The admin listener is not where usage is taken.
    tracker.ask(&["import", &file, "--url", admin]).await.failed(1, "--url");
    let nobody = format!("http://{}", kit_workbench::scratch::free_address().unwrap());
    tracker.ask(&["import", &file, "--url", &nobody, "--patience", "1"]).await.failed(1, "--patience");
    assert_eq!(tracker.wait_sink(|_| true).await["accepted"], 0);
}

#[tokio::test]
async fn a_file_that_changed_after_an_interruption_is_not_gone_on_with() {
    let tracker = Tracker::start().await;
    let path = tracker.write("usage.csv", &csv(4_000));
    let (file, state) = (text(&path), path.with_added_extension("progress"));
    let mut import = tracker.spawn(&["import", &file, "--rate", "1000"]);
    some_taken(&state).await;
    import.kill().await.unwrap();
    tracker.write("usage.csv", &csv(4_000).replacen("t-0", "x-0", 1));

    tracker.ask(&["import", &file]).await.failed(1, "the file has changed before line");
    tracker.write("usage.csv", &csv(4_000));
    let elsewhere = format!("http://localhost:{}", tracker.environment()[2].1.rsplit(':').next().unwrap());
    tracker.ask(&["import", &file, "--url", &elsewhere]).await.failed(1, "is of an import to http://127.0.0.1");

    tracker.ask(&["import", &file]).await.ok();
    settled(&tracker, 4_000).await;
}
