//! Which of the daemon's threads give way to which.

use std::collections::BTreeMap;
use std::fs;

use crate::bench::*;

/// The nice value of each kind of thread; all of a kind have the same one.
fn nice_by_name(pid: u32) -> BTreeMap<String, i32> {
    let mut found = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        // `number (name) state …`; the 19th field is the nice value, and a name may hold anything.
        let (before, after) = stat.rsplit_once(')').unwrap();
        let name = before.split_once('(').unwrap().1.to_owned();
        let nice = after.split_whitespace().nth(16).unwrap().parse().unwrap();
        let other = found.insert(name.clone(), nice);
        assert!(other.is_none_or(|other| other == nice), "{name}: {other:?} and {nice}");
    }
    found
}

/// Where a burst fills the processors, what is on the disk can wait and a sender that waits for its answer cannot (ADR 0026).
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_give_way_to_whoever_accepts() {
    let bench = Bench::hmac().await;
    let sender = bench.sender("/webhooks/lago");
    for n in 0..20 {
        let delivery = hmac().delivery("invoice.created", format!("{{\"n\":{n}}}")).unwrap();
        assert_eq!(sender.send_once(&delivery).await.unwrap().status, 200);
    }
    bench.gateway.wait_for(20, DEADLINE).await.unwrap();

    let nice = nice_by_name(bench.daemon.pid());

    let own = rustix::process::getpriority_process(None).unwrap();
    assert_eq!(nice["background"], (own + 10).min(19), "{nice:?}");
    for name in ["tokio-rt-worker", "journal-writer"] {
        assert_eq!(nice[name], own, "{name}; {nice:?}");
    }
}
