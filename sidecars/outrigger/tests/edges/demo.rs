//! `demo` when it is not left alone; `demo --once` as such is a step of `./test`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kit_workbench::raw;
use kit_workbench::scratch::Scratch;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::bench::{DEADLINE, command, outrigger};
use crate::events::interrupt;

#[tokio::test]
async fn a_small_demo_balances_and_leaves_nothing_behind() {
    let scratch = Scratch::new("outrigger-demo-test").unwrap();
    let folder = scratch.path().to_str().unwrap();

    let report = outrigger(&["demo", "--once", "--events", "40", "--json"], &[("TMPDIR", folder)]).await.ok().json();

    assert_eq!(report["accepted"], 40);
    assert_eq!((&report["lost"], &report["out_of_order"]), (&0.into(), &0.into()));
    assert_eq!(left_in(&scratch), Vec::<PathBuf>::new());
}

/// Both in the middle of the play and after it.
#[tokio::test]
async fn an_interrupted_demo_takes_its_processes_and_files_with_it() {
    for (events, wait_for) in [("2000", "webhooks go on being accepted"), ("20", "until Ctrl-C")] {
        let scratch = Scratch::new("outrigger-demo-test").unwrap();
        let folder = scratch.path().to_str().unwrap();
        let mut demo = command(&["demo", "--events", events], &[("TMPDIR", folder)]).spawn().unwrap();
        let admin = said(&mut demo, wait_for).await;
        assert!(!left_in(&scratch).is_empty());

        interrupt(&demo);

        let exit = tokio::time::timeout(DEADLINE, demo.wait()).await.unwrap().unwrap();
        assert!(exit.code().is_some(), "it ended by itself: {exit}");
        assert_eq!(left_in(&scratch), Vec::<PathBuf>::new());
        // The processor is in a process group of its own: only the demo can end it.
        wait_until_gone(admin).await;
    }
}

#[tokio::test]
async fn a_demo_that_is_killed_leaves_no_process_behind() {
    let scratch = Scratch::new("outrigger-demo-test").unwrap();
    let folder = scratch.path().to_str().unwrap();
    let mut demo = command(&["demo", "--events", "2000"], &[("TMPDIR", folder)]).spawn().unwrap();
    let admin = said(&mut demo, "webhooks go on being accepted").await;

    demo.kill().await.unwrap();

    wait_until_gone(admin).await;
}

/// Reads both outputs until this is said, and returns the processor's admin address.
async fn said(demo: &mut Child, wanted: &str) -> SocketAddr {
    let mut out = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut err = BufReader::new(demo.stderr.take().unwrap()).lines();
    let mut admin = None;
    let reading = async {
        loop {
            let line = tokio::select! {
                Ok(Some(line)) = out.next_line() => line,
                Ok(Some(line)) = err.next_line() => line,
                else => panic!("it ended without saying {wanted:?}"),
            };
            if let Some((_, rest)) = line.split_once("(admin ") {
                admin = rest.split_once(')').map(|(address, _)| address.parse().unwrap());
            }
            if line.contains(wanted) {
                break;
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.unwrap();
    // Somebody has to read what it says until its end.
    tokio::spawn(async move { while let Ok(Some(_)) = out.next_line().await {} });
    tokio::spawn(async move { while let Ok(Some(_)) = err.next_line().await {} });
    admin.expect("the addresses are said first")
}

async fn wait_until_gone(admin: SocketAddr) {
    let deadline = Instant::now() + DEADLINE;
    while raw::get(admin, "/livez", Duration::from_secs(1)).await.is_ok() {
        assert!(Instant::now() < deadline, "the processor is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn left_in(scratch: &Scratch) -> Vec<PathBuf> {
    std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
}
