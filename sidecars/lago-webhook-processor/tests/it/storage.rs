//! When the disk says no.

use std::time::{Duration, Instant};

use kit_workbench::gateway::Behaviour;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn at_its_maximum_the_journal_answers_503_and_takes_events_again_when_there_is_room() {
    let bench = Bench::start(&[
        ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY),
        ("SIDECAR_JOURNAL__MAX_BYTES", "4194304"),
        ("SIDECAR_JOURNAL__RETENTION__MAX_BYTES", "1"),
    ])
    .await;
    bench.gateway.stop().await;
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000));
    let (mut taken, mut refused) = (0, None);
    for _ in 0..60 {
        let answer = bench.send_body(&body).await;
        match answer.status {
            200 => taken += 1,
            _ => {
                refused = Some(answer);
                break;
            }
        }
    }
    let refused = refused.expect("the maximum is reached");
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());

    // It may have taken a smaller commit after that one, and is full all the same a moment later.
    let deadline = Instant::now() + DEADLINE;
    let parts = loop {
        let (ready, parts) = bench.readyz().await;
        if ready == 503 {
            break parts;
        }
        assert!(Instant::now() < deadline, "the readiness never tells: {parts}");
        taken += u64::from(bench.send_body(&body).await.status == 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(parts["parts"]["journal"].as_str().unwrap().contains("SIDECAR_JOURNAL__MAX_BYTES"), "{parts}");

    bench.gateway.restart_on_same_port().await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while bench.send_body(&body).await.status != 200 {
        assert!(Instant::now() < deadline, "deliveries and the purge make room");
        // Between two tries. What is waited for is a 200.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bench.gateway.wait_for_unique(taken + 1, DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_answers_503_loses_nothing_and_recovers_without_a_restart() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED (needs root to mount a small file system): a_full_disk_answers_503");
        return;
    }
    let mount = tempfile::TempDir::new().unwrap();
    let at = mount.path().to_str().unwrap().to_owned();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs", &at]).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED (mounting is refused here): a_full_disk_answers_503");
        return;
    }
    let _unmount = Unmount(at.clone());
    let journal = format!("{at}/j.db");
    let mut bench = Bench::start(&[("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY), ("SIDECAR_JOURNAL__PATH", &journal)]).await;
    bench.gateway.set_behaviour(Behaviour::Ok);
    let filler = format!("{at}/filler");
    std::fs::write(&filler, vec![0; 1 << 20]).unwrap();

    let body = |n: usize| format!(r#"{{"n":{n},"x":"{}"}}"#, "x".repeat(50_000));
    let mut accepted = Vec::new();
    let (mut refused, mut outages, mut out, mut not_ready) = (0, 0, false, false);
    for n in 0..60 {
        let answer = bench.send_body(&body(n)).await;
        match answer.status {
            200 => {
                accepted.push(n);
                out = false;
            }
            status => {
                assert_eq!(status, 503);
                refused += 1;
                outages += usize::from(!out);
                out = true;
                not_ready |= bench.readyz().await.0 == 503;
            }
        }
    }
    assert!(refused > 0, "the disk was never full");
    assert!(not_ready, "the readiness never told");

    std::fs::remove_file(&filler).unwrap();
    let freed = Instant::now();
    while bench.send_body(&body(1000)).await.status != 200 {
        assert!(freed.elapsed() < Duration::from_secs(10), "not taking events 10 s after there is room");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.readyz().await.0, 200);
    bench.gateway.wait_for_unique(accepted.len() as u64 + 1, DEADLINE).await.unwrap();
    let received: Vec<_> = bench.gateway.received().iter().map(|r| r.data_sha256).collect();
    for n in accepted {
        assert!(received.contains(&kit_workbench::Digest::of(body(n).as_bytes())), "{n} was accepted and is lost");
    }
    let complaints = bench.daemon.whole_stdout(DEADLINE).await.unwrap().matches("refusing events").count();
    // The probe of a failing store may find room for a moment that the next webhook does not find.
    assert!(
        (1..=outages + 1).contains(&complaints),
        "one line an outage: {complaints} for {outages}, {refused} refused"
    );
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l", &self.0]).status();
    }
}

/// The block of the page about moving a journal, typed in while webhooks come in.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_ends_and_a_daemon_goes_on_from_it() {
    const BLOCK: &str = r#"sqlite3 -readonly "$SIDECAR_JOURNAL__PATH" "VACUUM INTO '/backup/journal.db'""#;
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/runbooks/moving-the-journal.md");
    assert!(std::fs::read_to_string(page).unwrap().contains(BLOCK), "the page says something else");
    let folder = tempfile::TempDir::new().unwrap();
    let (journal, copy) = (folder.path().join("j.db"), folder.path().join("backup/journal.db"));
    std::fs::create_dir(folder.path().join("backup")).unwrap();
    let path = journal.to_str().unwrap();
    let mut bench = Bench::start(&[("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY), ("SIDECAR_JOURNAL__PATH", path)]).await;
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000));
    for _ in 0..100 {
        assert_eq!(bench.send_body(&body).await.status, 200);
    }

    let stop = kit::lifecycle::StopToken::new();
    let load = tokio::spawn({
        let (sender, stop) = (bench.sender("/webhooks/lago"), stop.clone());
        async move {
            let mut sent = 0;
            while !stop.is_stopped() {
                let webhook = hmac().delivery("fee.created", format!(r#"{{"n":{sent}}}"#)).unwrap();
                assert_eq!(sender.send_once(&webhook).await.unwrap().status, 200);
                sent += 1;
            }
            sent
        }
    });
    let block = BLOCK.replace("/backup", folder.path().join("backup").to_str().unwrap());
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &block]).env("SIDECAR_JOURNAL__PATH", path).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends").unwrap();
    stop.stop();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(load.await.unwrap() > 0);

    bench.restart(&[("SIDECAR_JOURNAL__PATH", copy.to_str().unwrap())]).await;
    bench.daemon.wait_ready(bench.admin, DEADLINE).await.unwrap();
    let event = bench.wait_api("/api/v1/events?limit=500", |page| page["events"].is_array()).await;
    assert!(event["events"].as_array().unwrap().len() >= 100, "{}", event["events"]);
    assert_eq!(bench.send_body(&body).await.status, 200);
}
