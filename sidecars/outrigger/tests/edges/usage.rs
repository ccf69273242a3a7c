//! `usage tail`, `show`, `parked`, `redrive`, `reconcile`.

use kit_lago::stand_in::billing::{Effect, Fault, Faults, When};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::bench::{DEADLINE, outrigger, wait_sink};
use crate::events::interrupt;
use crate::tracker::{Tracker, strict};

#[tokio::test]
async fn an_event_is_shown_by_its_transaction_id_whatever_became_of_it() {
    let tracker = strict(&[]).await;
    tracker.report("s", "fine", "gb").await;
    tracker.report("s", "shared", "gb").await;
    tracker.report("nobody", "shared", "gb").await;
    tracker.wait_sink(|sink| sink["delivered"] == 2 && sink["parked"] == 1).await;

    let fine = tracker.ask_json(&["show", "fine"]).await;
    let shared = tracker.ask_json(&["show", "shared"]).await;

    assert_eq!(fine.as_array().unwrap().len(), 1);
    assert_eq!(fine[0]["deliveries"]["lago"]["state"], "delivered");
    assert!(fine[0]["body"].as_str().unwrap().contains(r#""gb":"1.50""#), "{fine}");
    let state = |n: usize| (shared[n]["subject"].as_str().unwrap(), shared[n]["deliveries"]["lago"]["state"].as_str());
    assert_eq!(state(0), ("subscription/nobody", Some("parked")));
    assert_eq!(state(1), ("subscription/s", Some("delivered")));
    let text = tracker.ask(&["show", "shared"]).await.ok().out;
    assert!(text.contains("no_subscription: Lago has no active subscription") && text.contains("delivered"), "{text}");
    let by_event_id = tracker.ask_json(&["show", fine[0]["id"].as_str().unwrap()]).await;
    assert_eq!(by_event_id[0]["key"], "fine");
    tracker.ask(&["show", "never"]).await.failed(1, "no event with the transaction id \"never\"");
    tracker.ask(&["show", "00000000-0000-4000-8000-000000000000"]).await.failed(1, "404");
}

#[tokio::test]
async fn parked_events_are_counted_by_reason_and_listed() {
    let tracker = strict(&[]).await;
    for n in 0..3 {
        tracker.report("nobody", &format!("n-{n}"), "gb").await;
    }
    tracker.report("s", "u-0", "cpu").await;
    tracker.wait_sink(|sink| sink["parked"] == 4).await;

    let parked = tracker.ask_json(&["parked", "--limit", "2"]).await;

    assert_eq!(parked["reasons"]["no_subscription"]["events"], 3);
    assert_eq!(parked["reasons"]["unknown_metric"]["events"], 1);
    let listed: Vec<_> = parked["events"].as_array().unwrap().iter().map(|event| &event["transaction_id"]).collect();
    assert_eq!(listed, ["u-0", "n-2"]);
    assert_eq!((&parked["events"][0]["code"], &parked["events"][0]["subscription"]), (&"cpu".into(), &"s".into()));
    let table = tracker.ask(&["parked", "--limit", "2"]).await.ok().out;
    assert!(table.contains("2 of 4 are listed") && table.contains("Lago has no billable metric"), "{table}");
    let of_s = tracker.ask_json(&["parked", "--subscription", "s"]).await;
    assert_eq!(of_s["events"].as_array().unwrap().len(), 1);
    let by_reason = tracker.ask_json(&["parked", "--reason", "no_subscription"]).await;
    assert_eq!(by_reason["events"].as_array().unwrap().len(), 3);
    assert!(by_reason["reasons"]["unknown_metric"].is_null());
    let none = tracker.ask(&["parked", "--subscription", "elsewhere"]).await.ok().out;
    assert_eq!(none, "nothing is parked\n");
}

/// Two events of `s` that Lago could not stand, and one of nobody.
async fn with_refused() -> Tracker {
    let tracker = strict(&[]).await;
    let poisoned_transaction_ids = ["p-0", "p-1"].map(str::to_owned).into();
    tracker.lago.set_faults(Faults { poisoned_transaction_ids, ..Faults::default() });
    tracker.report("s", "p-0", "gb").await;
    tracker.report("s", "p-1", "gb").await;
    tracker.report("nobody", "n-0", "gb").await;
    tracker.wait_sink(|sink| sink["parked"] == 3).await;
    tracker
}

#[tokio::test]
async fn parked_events_are_sent_again_by_reason_by_subscription_or_all() {
    let tracker = with_refused().await;
    tracker.lago.set_faults(Faults::default());

    let counted = tracker.ask_json(&["redrive", "--reason", "gave", "--dry-run"]).await;
    assert_eq!((&counted["matched"], &counted["changed"]), (&2.into(), &0.into()));
    // Without a terminal to confirm on nothing happens.
    tracker.ask(&["redrive", "--reason", "gave"]).await.failed(1, "--yes");
    assert_eq!(tracker.wait_sink(|_| true).await["parked"], 3);

    let done = tracker.ask_json(&["redrive", "--reason", "gave", "--yes"]).await;
    assert_eq!((&done["matched"], &done["changed"]), (&2.into(), &2.into()));
    let sink = tracker.wait_sink(|sink| sink["delivered"] == 2).await;
    assert_eq!(sink["parked"], 1);
    assert_eq!(tracker.billed().len(), 2);

    let text = tracker.ask(&["redrive", "--subscription", "s", "--yes"]).await.ok().out;
    assert!(text.contains("0 matched"), "{text}");
    let done = tracker.ask_json(&["redrive", "--all", "--yes"]).await;
    assert_eq!(done["changed"], 1);
    // It fits no better than before.
    tracker.wait_sink(|sink| sink["parked"] == 1 && sink["pending"] == 0).await;
}

#[tokio::test]
async fn parked_events_are_sent_again_by_their_transaction_ids() {
    let tracker = with_refused().await;
    tracker.lago.set_faults(Faults::default());
    tracker.report("s", "fine", "gb").await;
    tracker.wait_sink(|sink| sink["delivered"] == 1).await;

    let done = tracker.ask_json(&["redrive", "p-1", "fine", "never"]).await;

    let counts = ["matched", "changed", "unchanged", "unavailable"].map(|name| done[name].as_u64().unwrap());
    assert_eq!(counts, [2, 1, 1, 1]);
    let sink = tracker.wait_sink(|sink| sink["delivered"] == 2).await;
    assert_eq!(sink["parked"], 2);
    tracker.ask(&["redrive"]).await.failed(1, "--all");
    tracker.ask(&["redrive", "--all", "p-0"]).await.failed(2, "--all");
    tracker.ask(&["redrive", "--reason", "gave", "p-0"]).await.failed(2, "--reason");
}

#[tokio::test]
async fn tail_prints_what_comes_in_with_its_code() {
    let tracker = Tracker::start().await;
    tracker.report("s", "before", "gb").await;
    let mut tail = tracker.spawn(&["tail", "--subscription", "s", "--code", "gb", "--json"]);
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    // What was there before is not printed, so events are reported until one is seen.
    let first = async {
        for n in 0.. {
            tracker.report("s", &format!("m-{n}"), "gb").await;
            let line = tokio::time::timeout(std::time::Duration::from_secs(1), lines.next_line()).await;
            if let Ok(line) = line {
                return line.unwrap().unwrap();
            }
        }
        unreachable!("it looks for ever")
    };
    let first = tokio::time::timeout(DEADLINE, first).await.unwrap();
    assert!(first.contains("\"m-"), "{first}");

    tracker.report("other", "not-this", "gb").await;
    tracker.report("s", "nor-this", "cpu").await;
    tracker.report("s", "this", "gb").await;

    let line = loop {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if !line["transaction_id"].as_str().unwrap().starts_with("m-") {
            break line;
        }
    };
    assert_eq!(
        (&line["transaction_id"], &line["code"], &line["subscription"]),
        (&"this".into(), &"gb".into(), &"s".into())
    );
    interrupt(&tail);
    let status = tokio::time::timeout(DEADLINE, tail.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn the_tracker_is_looked_for_where_it_listens_by_itself() {
    let token = ("OUTRIGGER_TOKEN", "x");
    for arguments in [&["usage", "parked"][..], &["usage", "show", "x"], &["usage", "reconcile"]] {
        let ran = outrigger(arguments, &[token]).await;
        assert!(ran.err.contains("127.0.0.1:9082"), "{ran:?}");
    }
    outrigger(&["usage", "parked"], &[]).await.failed(1, "--token-file");
    let tracker = Tracker::start().await;
    tracker.lago.set_faults(Faults { rules: vec![Fault::new(Effect::Answer(401), When::Always)], ..Faults::default() });
    tracker.report("s", "t", "gb").await;
    tracker.wait_sink(|sink| sink["status"]["last_error"].is_string()).await;
    let waiting = tracker.ask_json(&["show", "t"]).await;
    assert_ne!(waiting[0]["deliveries"]["lago"]["state"], "parked");
}

#[tokio::test]
async fn an_event_that_is_rolled_up_says_so_and_its_sum_is_found() {
    let settings = [("SIDECAR_ROLLUP__CODES", "gb"), ("SIDECAR_ROLLUP__WINDOW_SECONDS", "1")];
    let tracker = strict(&settings).await;
    // In one request, and so in one commit: no window ends in between.
    let seconds = jiff::Timestamp::now().as_second();
    let lines: String = (0..10).map(|n| format!("part-{n},s,gb,{seconds},0.25\n")).collect();
    let file =
        tracker.write("usage.csv", &["transaction_id,external_subscription_id,code,timestamp,gb\n", &lines].concat());
    tracker.ask(&["import", file.to_str().unwrap()]).await.ok();
    tracker.wait_sink(|sink| sink["delivered"] == 1).await;

    let part = tracker.ask_json(&["show", "part-3"]).await;
    assert_eq!(part[0]["deliveries"].as_object().unwrap().keys().collect::<Vec<_>>(), ["rollup"], "{part}");
    let events = tracker.ask_json_of(&["events", "list", "--type", "usage.event"]).await;
    let sum = tracker.ask_json(&["show", events[0]["key"].as_str().unwrap()]).await;
    assert_eq!(sum[0]["deliveries"]["lago"]["state"], "delivered", "{sum}");
    assert!(sum[0]["body"].as_str().unwrap().contains(r#""gb":"2.5""#), "{sum}");
}

#[tokio::test]
async fn usage_of_a_customer_is_shown_with_the_event_that_was_made_of_it() {
    let tracker = strict(&[]).await;
    let seconds = jiff::Timestamp::now().as_second();
    let lines = format!("c-1,customer,gb,{seconds},1\nc-2,nobody-knows,gb,{seconds},1\n");
    let header = "transaction_id,external_customer_id,code,timestamp,gb\n";
    let file = tracker.write("usage.csv", &[header, &lines].concat());
    tracker.ask(&["import", file.to_str().unwrap()]).await.ok();
    tracker.wait_sink(|sink| sink["delivered"] == 1).await;
    wait_sink(&tracker.environment(), "resolve", |sink| sink["parked"] == 1).await;

    let shown = tracker.ask_json(&["show", "c-1"]).await;
    let told: Vec<_> =
        shown.as_array().unwrap().iter().map(|event| (&event["subject"], &event["deliveries"])).collect();
    assert_eq!(told[0].0, "subscription/s");
    assert_eq!(told[0].1["lago"]["state"], "delivered");
    assert_eq!(
        (told[1].0.as_str(), told[1].1["resolve"]["state"].as_str()),
        (Some("customer/customer"), Some("delivered"))
    );
    assert_eq!(told.len(), 2);
    let parked = tracker.ask_json(&["parked"]).await;
    assert_eq!(parked["events"][0]["transaction_id"], "c-2", "{parked}");
    let done = tracker.ask_json(&["redrive", "c-2"]).await;
    assert_eq!((&done["matched"], &done["changed"]), (&1.into(), &1.into()));
}

#[tokio::test]
async fn what_a_lago_lost_that_went_back_to_a_dump_is_brought_to_it_again() {
    let tracker = strict(&[]).await;
    for n in 0..150 {
        tracker.report("s", &format!("t-{n}"), "gb").await;
    }
    tracker.report("nobody", "parked", "gb").await;
    tracker.wait_sink(|sink| sink["delivered"] == 150 && sink["parked"] == 1).await;
    // What upgrade.md warns of: the tracker's own replay sends nothing again that Lago has confirmed.
    let before = tracker.billed();
    assert_eq!(before.len(), 150);
    // The dump has the first hundred and twenty of them, in whatever order they came.
    let profile = kit_lago::stand_in::billing::Profile::V1_39;
    let key = "restored-api-key-0123456789";
    let restored = kit_lago::LagoServer::start(profile, kit::secret::Secret::from(key.to_owned())).await.unwrap();
    let metric = kit_lago::stand_in::billing::AggregationType::Sum;
    restored.put_metric(kit_lago::stand_in::billing::Metric::new("gb", metric, Some("gb")));
    let key_file = tracker.write("lago-api-key", key).display().to_string();
    let url = restored.url();
    let import = async |name: &str, text: &str| {
        let file = tracker.write(name, text).display().to_string();
        let arguments = ["import", &file, "--url", &url, "--producer-token-file", &key_file, "--batch", "100"];
        tracker.ask(&[&arguments[..], &["--skip-invalid", "--json"]].concat()).await.ok().json()
    };

    let sent = tracker.ask(&["export", "--since", "2024-01-01T00:00:00Z"]).await.ok();
    assert!(sent.err.contains("150 events"), "{sent:?}");
    let of_dump: Vec<&str> = sent.out.lines().take(120).collect();
    import("dump.jsonl", &of_dump.join("\n")).await;
    assert_eq!(restored.ledger().len(), 120);

    let report = import("sent.jsonl", &sent.out).await;

    assert_eq!((&report["taken"], &report["rejected"]), (&30.into(), &120.into()), "{report}");
    let mut now: Vec<String> =
        restored.ledger().iter().map(|event| format!("{} {}", event.transaction_id, event.properties)).collect();
    now.sort();
    let was: Vec<String> =
        tracker.lago.ledger().iter().map(|e| format!("{} {}", e.transaction_id, e.properties)).collect();
    let mut was = was;
    was.sort();
    assert_eq!(now, was, "each once, as it was sent the first time");
    let none = tracker.ask(&["export", "--since", "2999-01-01T00:00:00Z"]).await.ok();
    assert!(none.out.is_empty() && none.err.contains("0 events"), "{none:?}");
}

#[tokio::test]
async fn usage_finds_the_tracker_where_the_environment_names_another_daemon_too() {
    let tracker = strict(&[]).await;
    tracker.report("s", "fine", "gb").await;
    let known = tracker.environment();
    let of = |name: &str| known.iter().find(|(known, _)| *known == name).unwrap().1;
    let (admin, token) = (of("OUTRIGGER_ADMIN"), of("OUTRIGGER_TOKEN_FILE"));
    let other_token = tracker.write("other-token", "fedcba9876543210fedcba9876543210").display().to_string();
    // As compose has it: the webhook processor for everything else.
    let compose = [
        ("OUTRIGGER_ADMIN", "http://127.0.0.1:1"),
        ("OUTRIGGER_TOKEN_FILE", other_token.as_str()),
        ("OUTRIGGER_TRACKER", admin),
        ("OUTRIGGER_TRACKER_TOKEN_FILE", token),
    ];

    outrigger(&["usage", "show", "fine"], &compose).await.ok();
    outrigger(&["stats"], &compose).await.failed(1, "127.0.0.1:1");
    // An argument is more than the environment.
    outrigger(&["usage", "show", "fine", "--admin", "http://127.0.0.1:2"], &compose).await.failed(1, "127.0.0.1:2");
    outrigger(&["usage", "show", "fine", "--token-file", &other_token, "--admin", admin], &compose)
        .await
        .failed(1, "401");

    // What needs no token, of whichever daemon.
    let metrics = outrigger(&["metrics", "--admin", admin], &[]).await.ok().out;
    assert!(metrics.lines().any(|line| line.starts_with("delivery_pending{")), "{metrics}");
    let ready = outrigger(&["ready", "--admin", admin], &[]).await.ok().out;
    assert!(ready.contains("\"journal\""), "{ready}");
    outrigger(&["ready"], &compose).await.failed(1, "127.0.0.1:1");
}
