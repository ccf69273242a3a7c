//! Programs in routes, and what a bad one may do: nothing but park its own event.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::*;
use crate::routing::{Routed, children};

/// Processes that the daemon has started.
fn workers(routed: &Routed) -> Vec<u32> {
    children(routed.bench.daemon.pid())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_programs_of_one_sink_hold_up_no_other() {
    const EVENTS: u64 = 40;
    let routed = Routed::start(
        &["audit", "billing"],
        "[routes.jq]\ntime_limit_seconds = 30\n[[route]]\nname = \"slow\"\nto = [\"audit\"]\ntransform = { audit = '[range(60000)] | add' }\n\
         [[route]]\nname = \"quick\"\nto = [\"billing\"]\ntransform = { billing = '.data.fee.lago_id' }\n",
    )
    .await;
    // Both begin at once, however long the sending takes.
    let both = async |what: &str| {
        for sink in ["audit", "billing"] {
            let (status, _) = routed.bench.api("POST", &format!("/api/v1/sinks/{sink}/{what}"), None).await;
            assert_eq!(status, 200);
        }
    };
    both("pause").await;
    for n in 0..EVENTS {
        routed.send("fee.created", json!({ "lago_id": n.to_string() })).await;
    }
    both("resume").await;
    let billed = routed.settled("billing").await;
    let (_, statistics) = routed.bench.api("GET", "/api/v1/statistics", None).await;
    let of = |name: &str| statistics["sinks"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap().clone();

    assert_eq!(billed["delivered"], EVENTS, "{billed}");
    assert!(of("audit")["pending"].as_u64().unwrap() > EVENTS / 2, "{}", of("audit"));
    let begin = Instant::now();
    let audited = routed.settled("audit").await;
    assert_eq!(audited["delivered"], EVENTS, "after {:?}: {audited}", begin.elapsed());
}

/// A window is measured by the bodies as they came, and what is made of them is larger.
#[tokio::test(flavor = "multi_thread")]
async fn what_programs_make_takes_no_more_memory_than_there_is_room_for() {
    const EVENTS: u64 = 128;
    let broker = kit_workbench::broker::Broker::start().await.unwrap();
    let sink = format!(
        "[sinks.audit]\ntype = \"amqp\"\nurl = \"{}\"\nqueues.audit = [\"#\"]\n\
         [[route]]\nname = \"large\"\nto = [\"audit\"]\ntransform = {{ audit = '\"x\" * 1000000' }}\n",
        broker.url()
    );
    let routed = Routed::start(&[], &sink).await;
    routed.send("fee.created", json!({})).await;
    routed.settled("audit").await;
    let before = routed.bench.daemon.rss_bytes().unwrap();
    // Everything is there before the sink begins.
    broker.freeze().unwrap();
    for n in 0..EVENTS {
        routed.send("fee.created", json!({ "lago_id": n.to_string() })).await;
    }
    broker.thaw().unwrap();
    let mut most = 0;
    let begin = Instant::now();
    loop {
        most = most.max(routed.bench.daemon.rss_bytes().unwrap());
        let (_, statistics) = routed.bench.api("GET", "/api/v1/statistics", None).await;
        let sinks = statistics["sinks"].as_array().unwrap();
        if sinks.iter().any(|sink| sink["name"] == "audit" && sink["delivered"] == EVENTS + 1) {
            break;
        }
        assert!(begin.elapsed() < DEADLINE * 4, "{statistics}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let grown = most.saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MiB more while {EVENTS} MB were made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transform_changes_the_data_for_its_sink_alone_and_the_journal_keeps_the_original() {
    let routed = Routed::start(
        &["audit"],
        "[[route]]\nname = \"slim\"\nfilter = '.data.fee.cents > 10'\nto = [\"gateway\", \"audit\"]\n\
         transform = { audit = '{id: .data.fee.lago_id, kind: .type}' }\n\
         [[route]]\nname = \"rest\"\nto = [\"gateway\"]\n",
    )
    .await;
    assert_eq!(workers(&routed), Vec::<u32>::new(), "none is started before it is needed");
    let large = routed.send("fee.created", json!({"lago_id": "f1", "cents": 11})).await;
    let small = routed.send("fee.created", json!({"lago_id": "f2", "cents": 9})).await;

    routed.assert_account("audit", [("delivered", 1), ("filtered", 1), ("dropped", 0), ("parked", 0)]).await;
    routed.assert_account("gateway", [("delivered", 2), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;
    assert_eq!(routed.data("audit", &large), json!({"id": "f1", "kind": "lago.fee.created"}));
    assert_eq!(routed.data("gateway", &large)["fee"]["cents"], 11);
    let body = routed.bench.api_raw("GET", &format!("/api/v1/events/{large}/body"), None, Some(TOKEN)).await;
    assert_eq!(body.json().unwrap()["fee"]["cents"], 11);
    assert_eq!(routed.delivery(&small, "audit").await.0, "filtered");
}

const BAD: &str = r#"
[[route]]
name = "loop"
types = ["lago.a.*"]
filter = 'def f: f; f'
to = ["audit"]
[[route]]
name = "eat"
types = ["lago.b.*"]
to = ["audit"]
transform = { audit = '[limit(1e12; repeat("x" * 100000))]' }
[[route]]
name = "fail"
types = ["lago.c.*"]
to = ["audit"]
transform = { audit = 'error("no such thing")' }
[[route]]
name = "huge"
types = ["lago.d.*"]
to = ["audit"]
transform = { audit = '"x" * 2000000' }
[[route]]
name = "deep"
types = ["lago.e.*"]
to = ["audit"]
transform = { audit = 'def f: 1 + f; f' }
[[route]]
name = "not-json"
types = ["lago.f.*"]
to = ["audit"]
transform = { audit = 'nan' }
[[route]]
name = "good"
to = ["audit"]
transform = { audit = '.data.g.n' }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_loops_eats_fails_or_says_too_much_parks_its_event_and_harms_no_other() {
    let routed = Routed::start(&["audit"], BAD).await;
    let mut bad = Vec::new();
    for kind in ["a", "b", "c", "d", "e", "f"] {
        bad.push((kind, routed.send(&format!("{kind}.created"), json!({"n": 0})).await));
    }
    let mut good = Vec::new();
    for n in 0..20 {
        good.push((n, routed.send("g.created", json!({ "n": n })).await));
    }
    routed.assert_account("audit", [("delivered", 20), ("filtered", 0), ("dropped", 0), ("parked", 6)]).await;
    for (n, id) in &good {
        assert_eq!(routed.data("audit", id), json!(n));
    }
    let expected = [
        ("a", "jq: filter of route loop: takes more than 1 s of processor time"),
        ("b", "jq: transform of route eat for audit: takes more than 134217728 bytes of memory"),
        ("c", "jq: transform of route fail for audit: \"no such thing\""),
        ("d", "jq: transform of route huge for audit: gives more than 1048576 bytes"),
        ("e", "jq: transform of route deep for audit: "),
        ("f", "jq: transform of route not-json for audit: gives something that is not JSON"),
    ];
    for ((kind, reason), (_, id)) in expected.iter().zip(&bad) {
        let (state, found) = routed.delivery(id, "audit").await;
        assert_eq!(state, "parked", "{kind}");
        assert!(found.starts_with(reason), "{kind}: {found}");
    }
    assert_eq!(routed.taken("audit").len(), 20, "nothing of the others was sent");
    assert!(workers(&routed).len() <= 2, "{:?}", workers(&routed));
    assert!((routed.metric("routes_jq_failed_total", &[("sink", "audit")]).await - 6.0).abs() < f64::EPSILON);
    let circuit = routed.metric("delivery_circuit_open", &[("sink", "audit")]).await;
    assert!(circuit.abs() < f64::EPSILON, "the sink is not to blame");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_no_secret_no_file_and_no_more_than_its_limits() {
    let routed = Routed::start(&[], "[[route]]\nname = \"all\"\nfilter = 'env == {}'\nto = [\"gateway\"]\n").await;
    routed.send("fee.created", json!({})).await;
    routed.assert_account("gateway", [("delivered", 1), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;

    let workers = workers(&routed);
    let [pid] = workers.as_slice() else { panic!("{workers:?}") };
    // What this test was started with is handed on by everybody; of the daemon's own files there is none.
    let links = |pid: u32| {
        let found = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap());
        found
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, fs::read_link(entry.path()).ok()?)))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let (own, outer) = (links(*pid), links(std::process::id()));
    for (file, link) in &own {
        let pipe = ["0", "1"].contains(&file.as_str()) && link.to_string_lossy().starts_with("pipe:");
        let nothing = file == "2" && link.as_os_str() == "/dev/null";
        assert!(pipe || nothing || outer.get(file) == Some(link), "{file} is {link:?}");
    }
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(arguments.split('\0').collect::<Vec<_>>(), ["outrigger-jq", "jq-worker", "134217728", "1", ""]);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for (name, limit) in [("Max address space", "134217728"), ("Max core file size", "0"), ("Max open files", "3")] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line[name.len()..].split_whitespace().next(), Some(limit), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_somebody_kills_costs_no_event() {
    let routed = Routed::start(&[], "[[route]]\nname = \"all\"\nfilter = 'true'\nto = [\"gateway\"]\n").await;
    for n in 1..6_u64 {
        routed.send("fee.created", json!({ "n": n })).await;
        routed.assert_account("gateway", [("delivered", n), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;
        for pid in workers(&routed) {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
}

/// Whoever is out of memory has workers killed that are in nobody's way, and the ones after them.
#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_again_and_again_cost_time_and_no_event() {
    let routed = Routed::start(
        &[],
        "[[route]]\nname = \"all\"\nfilter = '[range(100000)] | add > 0'\nto = [\"gateway\"]\n\
         [routes.jq]\ntime_limit_seconds = 30\n",
    )
    .await;
    routed.send("fee.created", json!({})).await;
    let deadline = Instant::now() + DEADLINE;
    let mut killed = Vec::new();
    while killed.len() < 2 {
        assert!(Instant::now() < deadline, "{killed:?} were killed");
        for pid in workers(&routed).into_iter().filter(|pid| !killed.contains(pid)).collect::<Vec<_>>() {
            let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
            killed.push(pid);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    routed.assert_account("gateway", [("delivered", 1), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;
    let attempts = routed.metric("delivery_attempts_total", &[("outcome", "withheld")]).await;
    assert!(attempts >= 1.0, "it was withheld");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_with_the_daemon_also_one_that_is_busy() {
    let routed = Routed::start(
        &[],
        "[[route]]\nname = \"all\"\nfilter = 'def f: f; f'\nto = [\"gateway\"]\n[routes.jq]\ntime_limit_seconds = 3\n",
    )
    .await;
    routed.send("fee.created", json!({})).await;
    let deadline = Instant::now() + DEADLINE;
    let busy = loop {
        if let [pid] = workers(&routed).as_slice() {
            break *pid;
        }
        assert!(Instant::now() < deadline, "no worker is started");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // The daemon alone: the bench would kill what it has started as well.
    let daemon = rustix::process::Pid::from_raw(routed.bench.daemon.pid() as i32).unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    while fs::read_to_string(format!("/proc/{busy}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "it runs for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jq_mistakes_are_told_at_the_start_all_at_once() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("config.toml");
    let routes = "[gateway]\nurl = \"http://127.0.0.1:9\"\n[[route]]\nname = \"a\"\nfilter = '.a |'\nto = [\"gateway\"]\n\
                  [[route]]\nname = \"b\"\nto = [\"gateway\"]\ntransform.gateway = '''\n\n  . | nosuch'''\n";
    fs::write(&file, routes).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lago-webhook-processor"))
        .args(["--check-config", "--config"])
        .arg(&file)
        .env("LAGO_WEBHOOK_HMAC_KEY", "k")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8(output.stderr).unwrap();
    for expected in [
        "route 1 (a): filter: jq: column 5",
        "route 2 (b): transform.gateway: jq: line 2, column 7: filter nosuch is not defined",
    ] {
        assert!(told.contains(expected), "{told}");
    }
}
