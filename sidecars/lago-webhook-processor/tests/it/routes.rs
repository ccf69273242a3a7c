//! Which events go to which sinks.

use std::time::{Duration, Instant};

use kit_workbench::Digest;
use kit_workbench::broker::Broker;
use kit_workbench::gateway::Behaviour;
use kit_workbench::ledger::{Counters, Expectations, Ledger, SentRequest};
use kit_workbench::process::DaemonCommand;
use serde_json::json;

use crate::bench::*;
use crate::routing::{Routed, children, hang_up};

const ROUTES: &str = r#"
[routes]
default_route = ["gateway"]

[[route]]
name = "money"
types = ["lago.invoice.*", "lago.payment*"]
when = [{ field = "data.invoice.status", not = "draft" }]
to = ["billing", "gateway"]

[[route]]
name = "noise"
types = ["lago.event.*", "lago.invoice.*"]
drop = true

[[route]]
name = "audit"
when = [{ field = "tenantid", exists = true }]
to = ["audit"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_sink_gets_what_the_routes_say_and_the_account_of_each_closes() {
    let mut routed = Routed::start(&["audit", "billing"], ROUTES).await;
    let final_invoice = routed.send("invoice.created", json!({"status": "finalized"})).await;
    let draft = routed.send("invoice.created", json!({"status": "draft"})).await;
    let customer = routed.send("customer.created", json!({"external_id": "acme"})).await;
    let fee = routed.send("fee.created", json!({"status": "x"})).await;

    routed.assert_account("gateway", [("delivered", 2), ("filtered", 1), ("dropped", 1), ("parked", 0)]).await;
    routed.assert_account("billing", [("delivered", 1), ("filtered", 2), ("dropped", 1), ("parked", 0)]).await;
    routed.assert_account("audit", [("delivered", 1), ("filtered", 2), ("dropped", 1), ("parked", 0)]).await;
    assert!(routed.taken("billing").into_keys().eq([final_invoice.clone()]));
    assert!(routed.taken("audit").into_keys().eq([customer.clone()]));
    assert!(routed.taken("gateway").contains_key(&fee), "no route matches it");

    let listed = |state: &str| format!("/api/v1/events?state={state}&sink=audit");
    let (_, page) = routed.bench.api("GET", &listed("filtered"), None).await;
    assert_eq!(page["events"].as_array().unwrap().len(), 2, "{page}");
    let (state, reason) = routed.delivery(&draft, "audit").await;
    assert_eq!((state.as_str(), reason.as_str()), ("dropped", "dropped by route noise"));
    assert_eq!(routed.delivery(&final_invoice, "audit").await.0, "filtered");

    let matched = |route: &'static str, sink: &'static str| [("route", route), ("sink", sink)];
    routed.until_metric("routes_matched_total", &matched("money", "billing"), 1.0).await;
    routed.until_metric("routes_matched_total", &matched("default route", "gateway"), 1.0).await;
    routed.until_metric("routes_dropped_total", &[("route", "noise")], 3.0).await;

    // After a kill the accounts are the same, and what was passed by stays passed by.
    routed.bench.restart(&[]).await;
    routed.assert_account("audit", [("delivered", 1), ("filtered", 2), ("dropped", 1), ("parked", 0)]).await;

    // A replay asks the routes again, and they say the same.
    let wanted = json!({ "select": { "ids": [final_invoice, draft], "sink": "audit" } });
    let (status, answer) = routed.bench.api("POST", "/api/v1/deliveries/replay", Some(wanted)).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["changed"], 2, "{answer}");
    routed.assert_account("audit", [("delivered", 1), ("filtered", 2), ("dropped", 1), ("parked", 0)]).await;
}

/// A broker's sink takes many at a time, which is another way than one by one.
#[tokio::test(flavor = "multi_thread")]
async fn what_routes_keep_from_a_broker_a_replay_keeps_from_it_too() {
    const ROUTES: &str = r#"
[[route]]
name = "invoices"
types = ["lago.invoice.*"]
to = ["books", "gateway"]

[[route]]
name = "customers"
types = ["lago.customer.*"]
to = ["gateway"]
"#;
    let broker = Broker::start().await.unwrap();
    let url = broker.url();
    let sink =
        format!("[sinks.books]\ntype = \"amqp\"\nurl = \"{url}\"\nexchange = \"books\"\nqueues.books = [\"#\"]\n");
    let routed = Routed::start(&[], &(sink + ROUTES)).await;
    let mut kept = Vec::new();
    for number in 0..5 {
        kept.push(routed.send("customer.created", json!({ "external_id": number.to_string() })).await);
    }
    routed.send("invoice.created", json!({ "lago_id": "1" })).await;
    let account = [("delivered", 1), ("filtered", 5), ("dropped", 0), ("parked", 0)];
    routed.assert_account("books", account).await;

    let wanted = json!({ "select": { "ids": kept, "sink": "books" } });
    let (status, answer) = routed.bench.api("POST", "/api/v1/deliveries/replay", Some(wanted)).await;
    assert_eq!((status, &answer["changed"]), (200, &json!(5)), "{answer}");
    routed.assert_account("books", account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_are_sinks_like_any_other() {
    const ROUTES: &str = r#"
[[route]]
name = "invoices"
types = ["lago.invoice.*"]
to = ["books", "gateway"]

[[route]]
name = "customers"
types = ["lago.customer.*"]
to = ["crm"]
transform = { crm = ".data.customer.external_id" }
"#;
    let broker = Broker::start().await.unwrap();
    let sink = |name: &str| {
        let url = broker.url();
        format!("[sinks.{name}]\ntype = \"amqp\"\nurl = \"{url}\"\nexchange = \"{name}\"\nqueues.{name} = [\"#\"]\n")
    };
    let routed = Routed::start(&[], &(sink("books") + &sink("crm") + ROUTES)).await;
    routed.send("invoice.created", json!({ "lago_id": "1" })).await;
    routed.send("invoice.paid_credit_added", json!({ "lago_id": "2" })).await;
    routed.send("customer.created", json!({ "external_id": "acme" })).await;

    routed.assert_account("books", [("delivered", 2), ("filtered", 1), ("dropped", 0), ("parked", 0)]).await;
    routed.assert_account("crm", [("delivered", 1), ("filtered", 2), ("dropped", 0), ("parked", 0)]).await;
    routed.assert_account("gateway", [("delivered", 2), ("filtered", 1), ("dropped", 0), ("parked", 0)]).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let queues = broker.ctl(&["--quiet", "list_queues", "name", "messages"]).await.unwrap();
        if queues.contains("books\t2") && queues.contains("crm\t1") {
            break;
        }
        assert!(Instant::now() < deadline, "{queues}");
    }
    for sink in ["books", "crm"] {
        routed.until_metric("amqp_connected", &[("connection", sink)], 1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_down_holds_up_no_other() {
    let routed = Routed::start(&["audit", "billing"], "").await;
    routed.gateways["billing"].stop().await;
    for n in 0..50 {
        routed.send("invoice.created", json!({ "lago_id": n.to_string() })).await;
    }
    for sink in ["gateway", "audit"] {
        routed.assert_account(sink, [("delivered", 50), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;
    }
    let (_, statistics) = routed.bench.api("GET", "/api/v1/statistics", None).await;
    assert!(statistics["sinks"].as_array().unwrap().iter().any(|s| s["name"] == "billing" && s["pending"] == 50));

    routed.gateways["billing"].restart_on_same_port().await.unwrap();
    routed.assert_account("billing", [("delivered", 50), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;
    assert_eq!(routed.taken("billing").len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sink_has_its_own_format_and_schedule() {
    let routed = Routed::start(&["audit"], "[sinks.audit.headers]\nx-key = \"secret-of-audit\"\n").await;
    routed.gateways["audit"].set_behaviour(Behaviour::failing_first(1, 503));
    let event = routed.send("fee.created", json!({"a": 1})).await;
    routed.assert_account("audit", [("delivered", 1), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;
    assert_eq!(routed.taken("audit")[&event].header("x-key"), Some("secret-of-audit"));
    assert_eq!(routed.taken("gateway")[&event].header("x-key"), None);
}

const OLD: &str =
    "default_route = [\"gateway\"]\n[[route]]\nname = \"old\"\ntypes = [\"lago.invoice.*\"]\nto = [\"audit\"]\n";
const NEW: &str =
    "default_route = [\"gateway\"]\n[[route]]\nname = \"new\"\ntypes = [\"lago.fee.*\"]\nto = [\"audit\"]\n";
const WRONG: &str =
    "[[route]]\nname = \"new\"\nto = [\"nowhere\"]\n[[route]]\nname = \"x\"\nfilter = \".a |\"\nto = [\"audit\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_taken_whole_or_not_at_all() {
    let routed = Routed::with_file(&["audit"], "", Some(OLD)).await;
    let before = routed.send("invoice.created", json!({})).await;
    routed.settled("audit").await;

    routed.write_routes(WRONG);
    routed.until_metric("routes_reloads_total", &[("result", "refused")], 1.0).await;
    routed.until_metric("routes_file_wrong", &[], 1.0).await;
    let (_, shown) = routed.bench.api("GET", "/api/v1/routes", None).await;
    let problem = shown["problem"].as_str().unwrap();
    assert!(problem.contains("route 1 (new): \"nowhere\" is not a sink"), "{problem}");
    assert!(problem.contains("route 2 (x): filter: jq: column"), "{problem}");
    assert_eq!(shown["routes"][0]["name"], "old");
    let (status, ready) = routed.bench.readyz().await;
    assert_eq!(status, 200);
    assert!(ready["parts"]["routes"].as_str().unwrap().contains("before it are in force"), "{ready}");
    let still = routed.send("invoice.created", json!({})).await;
    routed.settled("audit").await;

    routed.write_routes(NEW);
    routed.until_metric("routes_reloads_total", &[("result", "taken")], 1.0).await;
    routed.until_metric("routes_file_wrong", &[], 0.0).await;
    let after = routed.send("fee.created", json!({})).await;
    let not = routed.send("invoice.created", json!({})).await;
    routed.assert_account("audit", [("delivered", 3), ("filtered", 1), ("dropped", 0), ("parked", 0)]).await;
    let taken = routed.taken("audit");
    assert!([&before, &still, &after].into_iter().all(|id| taken.contains_key(id)) && !taken.contains_key(&not));
    assert_eq!(routed.bench.readyz().await.1["parts"]["routes"], "ready");
    let metrics = routed.bench.metrics().await;
    assert!(metrics.get("routes_matched_total", &[("route", "old"), ("sink", "audit")]).is_none(), "its route is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_empty_or_gone_changes_nothing_and_sighup_reads_at_once() {
    let routed = Routed::with_file(&["audit"], "", Some(OLD)).await;
    std::fs::write(routed.routes_file(), "").unwrap();
    routed.until_metric("routes_reloads_total", &[("result", "refused")], 1.0).await;
    std::fs::remove_file(routed.routes_file()).unwrap();
    routed.until_metric("routes_reloads_total", &[("result", "refused")], 2.0).await;
    assert_eq!(routed.bench.api("GET", "/api/v1/routes", None).await.1["routes"][0]["name"], "old");

    std::fs::write(routed.routes_file(), NEW).unwrap();
    routed.hang_up();
    routed.bench.wait_api("/api/v1/routes", |shown| shown["routes"][0]["name"] == "new").await;
}

/// The file is right, and no process could be had to look at its programs.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_could_not_be_compiled_for_a_moment_is_read_again() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let routed = Routed::with_file(&["audit"], "", Some(OLD)).await;
    let pid = routed.bench.daemon.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: std::collections::BTreeSet<u64> =
        open.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect();
    let process = Pid::from_raw(pid as i32);
    // Room for three more – a file, a connection –, and not for the pipes of a process.
    let limit = (0..).find(|limit| limit - open.range(..limit).count() as u64 == 3).unwrap();
    let few = Rlimit { current: Some(limit), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(process, Resource::Nofile, few).unwrap();

    routed.write_routes(&format!("{NEW}[[route]]\nname = \"more\"\nfilter = 'true'\nto = [\"audit\"]\n"));
    routed.until_metric("routes_reloads_total", &[("result", "refused")], 1.0).await;
    let (_, shown) = routed.bench.api("GET", "/api/v1/routes", None).await;
    let problem = shown["problem"].as_str().unwrap();
    assert!(problem.contains("jq does not run here"), "{problem}");
    prlimit(process, Resource::Nofile, before).unwrap();

    routed.bench.wait_api("/api/v1/routes", |shown| shown["routes"][0]["name"] == "new").await;
    routed.until_metric("routes_reloads_total", &[("result", "refused")], 1.0).await;
    routed.until_metric("routes_file_wrong", &[], 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_change_under_load_lose_nothing_and_deliver_nothing_twice() {
    let routed = Routed::with_file(&["audit"], "", Some(OLD)).await;
    let mut ledger = Ledger::new();
    let sending = async {
        let mut sent = Vec::new();
        for n in 0..300 {
            let webhook_type = if n % 2 == 0 { "invoice.created" } else { "fee.created" };
            let body = json!({"webhook_type": webhook_type, "n": n}).to_string();
            let delivery = hmac().delivery(webhook_type, body.clone()).unwrap();
            let mut request = SentRequest::begin(
                "default",
                delivery.unique_key.clone(),
                // Nothing in it names an object, so that each is a subject of its own.
                delivery.unique_key.clone(),
                Digest::of(body.as_bytes()),
            );
            let answer = routed.bench.send(&delivery).await;
            request.finish(answer.status, &answer.body);
            sent.push(request);
        }
        sent
    };
    let changing = async {
        for n in 0.. {
            routed.write_routes(if n % 2 == 0 { NEW } else { OLD });
            routed.hang_up();
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    let sent = tokio::select! { sent = sending => sent, () = changing => unreachable!() };
    ledger.extend_sent(sent);

    let name = |n: usize| ["gateway", "audit"][n];
    for n in 0..2 {
        let account = routed.settled(name(n)).await;
        let count = |field: &str| account[field].as_u64().unwrap();
        ledger.counters(Counters {
            point: "drained".to_owned(),
            origin: "api".to_owned(),
            sink: name(n).to_owned(),
            accepted: count("accepted"),
            delivered: count("delivered"),
            pending: count("pending"),
            retrying: 0,
            parked: count("parked"),
            dropped: count("dropped"),
            filtered: count("filtered"),
        });
        let (_, page) =
            routed.bench.api("GET", &format!("/api/v1/events?state=filtered&sink={}&limit=500", name(n)), None).await;
        let filtered: Vec<String> =
            page["events"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(filtered.len() as u64, count("filtered"), "each is listed");
        assert!(count("filtered") > 0 && count("delivered") > 0, "{account}");
        filtered.iter().for_each(|id| ledger.set_aside(name(n), id));
    }
    let (gateway, audit) = (routed.taken("gateway"), routed.taken("audit"));
    ledger.extend_received(&routed.bench.gateway.received());
    for received in routed.gateways["audit"].received() {
        ledger.delivered(kit_workbench::ledger::Delivery::from_received(&"audit".into(), &received));
    }
    let sinks = vec!["gateway".to_owned(), "audit".to_owned()];
    let report = ledger.check(&Expectations { sinks, signed: false, ..Expectations::default() });
    assert!(report.is_clean(), "{report}");
    for id in gateway.keys() {
        assert!(!audit.contains_key(id) || routed.delivery(id, "audit").await.0 == "delivered");
    }
}

/// Routes with so many programs that compiling them takes a while.
fn many_programs(name: &str) -> String {
    let route =
        |n: usize| format!("[[route]]\nname = \"{name}-{n}\"\nfilter = '.data.fee.n == {n}'\nto = [\"audit\"]\n");
    (0..500).map(route).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_ends_nothing_while_the_configuration_is_still_read() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("config.toml");
    let sink = "[sinks.audit]\ntype = \"http\"\nurl = \"http://127.0.0.1:1\"\n";
    std::fs::write(&file, sink.to_owned() + &many_programs("r")).unwrap();
    let mut daemon = DaemonCommand::new(env!("CARGO_BIN_EXE_lago-webhook-processor"))
        .envs([
            ("LAGO_WEBHOOK_HMAC_KEY".to_owned(), HMAC_KEY.to_owned()),
            ("BRAIN_GATEWAY_URL".to_owned(), "http://127.0.0.1:1".to_owned()),
            ("SIDECAR_CONFIG".to_owned(), file.display().to_string()),
            ("SIDECAR_JOURNAL__PATH".to_owned(), folder.path().join("j.db").display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC".to_owned(), "127.0.0.1:0".to_owned()),
            ("SIDECAR_LISTEN__ADMIN".to_owned(), "127.0.0.1:0".to_owned()),
        ])
        .spawn()
        .unwrap();
    // It has a child: it compiles programs.
    let begin = Instant::now();
    while children(daemon.pid()).is_empty() {
        assert!(begin.elapsed() < DEADLINE, "no program is compiled");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    hang_up(daemon.pid());
    let admin = daemon.address("admin", DEADLINE).await.unwrap();
    daemon.wait_ready(admin, DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_routes_that_are_read() {
    let mut routed = Routed::with_file(&["audit"], "", Some(OLD)).await;
    routed.write_routes(&many_programs("new"));
    routed.hang_up();
    let begin = Instant::now();
    while children(routed.bench.daemon.pid()).is_empty() {
        assert!(begin.elapsed() < DEADLINE, "no program is compiled");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let begin = Instant::now();
    routed.bench.daemon.term().unwrap();
    let exit = routed.bench.daemon.wait(DEADLINE).await.unwrap();
    assert_eq!(exit.code, Some(0), "{exit}");
    // All that is left to compile would take longer.
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_routes_file_sighup_ends_nothing() {
    let routed = Routed::start(&[], "").await;
    routed.hang_up();
    routed.send("fee.created", json!({})).await;
    routed.assert_account("gateway", [("delivered", 1), ("filtered", 0), ("dropped", 0), ("parked", 0)]).await;
}
